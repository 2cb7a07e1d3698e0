//! `musttls clients`: the inventory, those in the clear first, with the fix for the driver that was seen.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;

use crate::cipher;
use crate::count::counted_of;
use crate::fix::{self, Fix};
use crate::history::{Class, Client};

/// Widest cell, in characters; what is longer is in `--json`.
const CELL_MAX: usize = 40;

/// Most clients in the clear that the text lists: more is for programs.
const LISTED_CLEAR: usize = 10_000;
/// Most others.
const LISTED_SECURE: usize = 1_000;

/// A client as it is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `plaintext`, `tls` or `unix`.
    pub transport: &'static str,
    /// The name of the server's settings.
    pub server: Arc<str>,
    /// The port it connects to; absent for Unix sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Where it connects from; absent for Unix sockets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<IpAddr>,
    /// Whom a PROXY protocol header names as the client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxied: Option<IpAddr>,
    /// The user, where the gate could read one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<Arc<str>>,
    /// The program, as it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub program: Option<Arc<str>>,
    /// The driver, as it calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<Arc<str>>,
    /// Its version, as it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver_version: Option<Arc<str>>,
    /// `1.3`, `1.2`, ...; absent if unknown or none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_version: Option<String>,
    /// When it was first seen.
    #[serde(serialize_with = "as_text")]
    pub first_seen: Timestamp,
    /// When it was last seen.
    #[serde(serialize_with = "as_text")]
    pub last_seen: Timestamp,
    /// How many sessions it had between them.
    pub sessions: u64,
    /// How many of them were refused.
    pub refused: u64,
    /// What was done about the last one: `verdict` of audit records.
    pub last_verdict: &'static str,
    /// The rule that decided about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_rule: Option<Arc<str>>,
    /// How to turn on TLS; of those in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
}

impl Row {
    /// The row of `client`.
    #[must_use]
    pub fn of(client: &Client) -> Self {
        let at = |seconds| Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH);
        Self {
            transport: client.class.transport(),
            server: client.server.clone(),
            port: (client.class != Class::Unix).then_some(client.port),
            client: client.peer,
            proxied: client.proxied,
            user: client.user.clone(),
            program: client.program.clone(),
            driver: client.driver.clone(),
            driver_version: client.version.clone(),
            tls_version: (client.tls != 0).then(|| cipher::version_name(client.tls).into_owned()),
            first_seen: at(client.first_s),
            last_seen: at(client.last_s),
            sessions: client.sessions,
            refused: client.refused,
            last_verdict: client.passed.verdict(),
            last_rule: client.rule.clone(),
            fix: client.class.is_plaintext().then(|| fix::of(client)),
        }
    }
}

/// RFC 3339, UTC.
fn as_text<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

/// The inventory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Inventory {
    /// Those in the clear first, of them those with most sessions. A [`Row`] each where they are shown, and not all are.
    #[serde(serialize_with = "as_rows")]
    clients: Vec<Client>,
    /// How often records are missing from the history.
    holes: usize,
}

fn as_rows<S: serde::Serializer>(clients: &[Client], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(clients.iter().map(Row::of))
}

impl Inventory {
    /// The rows of `clients`, which come in the order of the history: those that differ in their cipher suite only are one.
    #[must_use]
    pub fn of(mut clients: Vec<Client>, holes: usize) -> Self {
        clients.dedup_by(|client, before| {
            let is_same = is_same(before, client);
            if is_same {
                merge(before, client);
            }
            is_same
        });
        // A client is large: keys are sorted, then each is moved once.
        clients.sort_by_cached_key(|client| {
            (
                !client.class.is_plaintext(),
                std::cmp::Reverse(client.sessions),
            )
        });
        Self { clients, holes }
    }

    fn in_the_clear(&self) -> &[Client] {
        let end = self
            .clients
            .partition_point(|client| client.class.is_plaintext());
        self.clients.get(..end).unwrap_or_default()
    }

    fn secure(&self) -> &[Client] {
        let start = self.in_the_clear().len();
        self.clients.get(start..).unwrap_or_default()
    }
}

/// Adds what was seen of `other`.
fn merge(client: &mut Client, other: &Client) {
    client.first_s = client.first_s.min(other.first_s);
    if other.last_s >= client.last_s {
        client.last_s = other.last_s;
        client.passed = other.passed;
        client.rule.clone_from(&other.rule);
    }
    client.sessions += other.sessions;
    client.refused += other.refused;
}

fn is_same(one: &Client, other: &Client) -> bool {
    (one.class, one.port, one.peer, one.proxied, one.tls)
        == (
            other.class,
            other.port,
            other.peer,
            other.proxied,
            other.tls,
        )
        && (&one.server, &one.user, &one.program) == (&other.server, &other.user, &other.program)
        && (&one.driver, &one.version) == (&other.driver, &other.version)
}

/// The titles of [`columns`].
pub const COLUMNS: [&str; 8] = [
    "SERVER",
    "CLIENT",
    "USER",
    "PROGRAM",
    "DRIVER",
    "TLS",
    "SESSIONS",
    "LAST SEEN (UTC)",
];

/// A row as cells.
#[must_use]
pub fn columns(row: &Row) -> Vec<String> {
    let text = |text: &Option<Arc<str>>| text.as_deref().unwrap_or("-").to_owned();
    let server = match row.port {
        Some(port) => format!("{}:{port}", row.server),
        None => row.server.to_string(),
    };
    let client = match (row.client, row.proxied) {
        (Some(peer), Some(proxied)) => format!("{proxied} via {peer}"),
        (Some(peer), None) => peer.to_string(),
        (None, _) => "Unix socket".to_owned(),
    };
    let driver = match (&row.driver, &row.driver_version) {
        (Some(driver), Some(version)) => format!("{driver} {version}"),
        (driver, _) => text(driver),
    };
    vec![
        server,
        client,
        text(&row.user),
        text(&row.program),
        driver,
        row.tls_version.clone().unwrap_or_else(|| "-".to_owned()),
        row.sessions.to_string(),
        row.last_seen.strftime("%Y-%m-%d %H:%M").to_string(),
    ]
}

/// Cells in columns as wide as they need, up to a bound.
#[must_use]
pub fn table(titles: &[&str], rows: Vec<Vec<String>>) -> String {
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|row| row.iter().map(|cell| shortened(cell)).collect())
        .collect();
    let mut widths: Vec<usize> = titles.iter().map(|title| title.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let titles = titles.iter().map(|&title| title.to_owned()).collect();
    for row in std::iter::once(&titles).chain(&rows) {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str("  ");
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn shortened(cell: &str) -> String {
    if cell.chars().count() <= CELL_MAX {
        return cell.to_owned();
    }
    let mut short: String = cell.chars().take(CELL_MAX - 1).collect();
    short.push('…');
    short
}

/// The first of `clients`, and how many there are besides.
fn listed(f: &mut fmt::Formatter<'_>, clients: &[Client], most: usize) -> fmt::Result {
    let shown = clients.iter().take(most);
    let shown = shown.map(|client| columns(&Row::of(client))).collect();
    f.write_str(&table(&COLUMNS, shown))?;
    match clients.len().saturating_sub(most) {
        0 => Ok(()),
        more => writeln!(f, "  and {more} more: --json lists them"),
    }
}

/// Says that the history has holes, if it has.
pub(crate) fn missing(f: &mut fmt::Formatter<'_>, holes: usize) -> fmt::Result {
    if holes == 0 {
        return Ok(());
    }
    writeln!(
        f,
        "records are missing in {} (musttls history): whom they were about is not known",
        counted_of(holes, "place", "places")
    )
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        missing(f, self.holes)?;
        if self.clients.is_empty() {
            return writeln!(f, "nobody is on record");
        }
        let (clear, secure) = (self.in_the_clear(), self.secure());
        writeln!(f, "{} in the clear", clear.len())?;
        if !clear.is_empty() {
            listed(f, clear, LISTED_CLEAR)?;
            writeln!(f, "\nhow they turn on TLS")?;
            let mut fixes: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
            for fix in clear.iter().map(fix::of) {
                fixes.entry(fix.driver).or_insert((0, fix.how)).0 += 1;
            }
            for (driver, (count, how)) in fixes {
                writeln!(f, "  {driver} ({count}): {how}")?;
            }
        }
        if !secure.is_empty() {
            writeln!(f, "\n{} secure", secure.len())?;
            listed(f, secure, LISTED_SECURE)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(class: Class, user: &str, sessions: u64) -> Client {
        Client {
            class,
            server: Arc::from("orders"),
            peer: Some([10, 0, 0, 1].into()),
            user: Some(Arc::from(user)),
            driver: Some(Arc::from("libmariadb")),
            version: Some(Arc::from("3.3.8")),
            tls: if class == Class::Tls { 0x0304 } else { 0 },
            last_s: 60,
            sessions,
            ..Client::in_the_clear()
        }
    }

    #[test]
    fn those_in_the_clear_come_first_and_of_them_the_busiest() {
        let clients = [
            client(Class::Plaintext, "quiet", 1),
            client(Class::Plaintext, "busy", 100),
            client(Class::Tls, "secure", 1000),
        ];
        let inventory = Inventory::of(clients.into(), 0);
        let users: Vec<_> = inventory
            .clients
            .iter()
            .map(|client| client.user.as_deref().unwrap())
            .collect();
        assert_eq!(users, ["busy", "quiet", "secure"]);
        let text = inventory.to_string();
        assert!(text.starts_with("2 in the clear\n"), "{text}");
        assert!(
            text.contains("MariaDB Connector/C (2): ") && text.contains("\n1 secure\n"),
            "{text}"
        );
    }

    #[test]
    fn what_differs_in_the_cipher_suite_only_is_one_client() {
        let mut other = client(Class::Tls, "app", 2);
        other.cipher = 0x1302;
        other.last_s = 90;
        let inventory = Inventory::of(vec![client(Class::Tls, "app", 1), other], 0);
        assert_eq!(inventory.clients.len(), 1);
        assert_eq!(inventory.clients[0].sessions, 3);
        assert_eq!(
            Row::of(&inventory.clients[0]).last_seen,
            Timestamp::from_second(90).unwrap()
        );
    }

    #[test]
    fn of_very_many_the_first_are_listed() {
        let clients: Vec<_> = (0..1_234)
            .map(|n| client(Class::Tls, &n.to_string(), 1))
            .collect();
        let text = Inventory::of(clients, 0).to_string();
        assert!(text.contains("\n1234 secure\n"), "{text}");
        assert!(text.contains("  and 234 more: --json"), "{text}");
    }

    #[test]
    fn cells_stay_in_their_columns() {
        let rows = vec![
            vec!["a".repeat(100), "x".to_owned()],
            vec!["ü".to_owned(), "y".to_owned()],
        ];
        let text = table(&["FIRST", "SECOND"], rows);
        let columns: Vec<_> = text.lines().map(|line| line.chars().count()).collect();
        assert!(columns.iter().all(|width| *width <= 54), "{text}");
        assert!(text.contains('…'));
    }
}
