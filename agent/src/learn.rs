//! `musttls learn`: the narrowest exceptions for those that a policy would refuse, or the fix.
//!
//! An exception is for one user of one server, from the addresses that were seen, and ends. No network is wider than an address.

mod interactive;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Error, Result, bail, ensure};
use ipnet::IpNet;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use musttls_common::mysql::USER_MAX;
use musttls_common::policy::MAX_RULES;
use musttls_common::verdict::Mode;
use serde::Serialize;

use crate::clients::Row;
use crate::config::{Config, DEFAULT_SERVER, Exception, MAX_NETWORKS, PastDates};
use crate::count::counted;
use crate::fix;
use crate::history::{Class, Client};
use crate::simulate::{Fate, Judge, known_user};
use crate::span;

pub use interactive::choose;

/// What an exception is to say of itself.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Who answers for it.
    pub owner: String,
    /// Why it exists.
    pub reason: String,
    /// How long it holds.
    pub span: Span,
}

/// Whom a proposed exception is for: all that make it different from others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Subject {
    /// The server; `None` for those without settings of their own.
    pub server: Option<String>,
    /// The user; `None` where it is not visible.
    pub user: Option<String>,
}

/// A proposed exception.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Proposal {
    /// Whom it is for.
    #[serde(flatten)]
    pub subject: Subject,
    /// From where, and what was seen from there.
    pub sources: BTreeMap<IpAddr, Vec<Row>>,
}

/// What came of the history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lesson {
    /// Exceptions, in the order of server and user.
    pub proposals: Vec<Proposal>,
    /// Those for whom none can be made.
    pub hopeless: Vec<Hopeless>,
}

/// A client for whom no exception can be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hopeless {
    /// Why.
    pub why: &'static str,
    /// What is known of it.
    pub client: Row,
}

impl Lesson {
    fn give_up(&mut self, client: Row, why: &'static str) {
        self.hopeless.push(Hopeless { why, client });
    }
}

/// `config` with every server in enforce mode.
#[must_use]
pub fn enforced(config: &Config) -> Config {
    let mut config = config.clone();
    config.mode = Mode::Enforce;
    for server in &mut config.servers {
        server.mode = None;
    }
    config
}

/// Proposes exceptions for those of `clients` that `config` would refuse in enforce mode.
#[must_use]
pub fn learn(config: &Config, clients: &[Client], now: Timestamp) -> Lesson {
    let config = enforced(config);
    let judge = Judge::new(&config, now);
    let mut lesson = Lesson::default();
    let mut proposals: BTreeMap<Subject, BTreeMap<IpAddr, Vec<Row>>> = BTreeMap::new();
    for client in clients {
        let row = match judge.fate(client) {
            Fate::Refused(_) => Row::of(client),
            Fate::Undecided(..) => {
                let why = "an exception for a uid or cgroup of this host may let it pass";
                lesson.give_up(Row::of(client), why);
                continue;
            }
            Fate::Passes | Fate::Excepted(_) | Fate::Observed(_) => continue,
        };
        let user = match (client.class, &client.user) {
            (Class::NoException, _) => {
                lesson.give_up(row, "no exception applies to it");
                continue;
            }
            (Class::Older, _) => {
                let why = "it is older than the gate: it is named when it logs in anew";
                lesson.give_up(row, why);
                continue;
            }
            (Class::Plaintext, Some(_)) => {
                let user = known_user(client);
                let Some(user) = user.filter(|user| !user.is_empty() && user.len() <= USER_MAX)
                else {
                    lesson.give_up(row, "its user name cannot be written");
                    continue;
                };
                Some(user.to_owned())
            }
            (Class::Plaintext | Class::Tls | Class::TlsFailed | Class::Unix, _) => None,
        };
        let Some(source) = judge.address(client) else {
            lesson.give_up(row, "its address is not known");
            continue;
        };
        let server = config.server_name(config.server_index(client.port));
        let subject = Subject {
            server: (server != DEFAULT_SERVER).then(|| server.to_owned()),
            user,
        };
        let sources = proposals.entry(subject).or_default();
        sources.entry(source.to_canonical()).or_default().push(row);
    }
    lesson.proposals = proposals
        .into_iter()
        .map(|(subject, sources)| Proposal { subject, sources })
        .collect();
    lesson
}

/// The proposals as a part of a configuration, in TOML; checked: what is read of it is what was meant.
pub fn fragment(config: &Config, lesson: &Lesson, terms: &Terms, now: Timestamp) -> Result<String> {
    let room = MAX_RULES.saturating_sub(config.exceptions.len());
    ensure!(
        lesson.proposals.len() <= room,
        "{} exceptions would be needed, and the policy has room for {room}\n  help: narrow it with --server, --user or --since, or turn on TLS first",
        lesson.proposals.len()
    );
    let sources: usize = lesson.proposals.iter().map(|one| one.sources.len()).sum();
    let taken: usize = config.exceptions.iter().map(|one| one.source.len()).sum();
    ensure!(
        sources + taken + config.trusted_proxies.len() <= MAX_NETWORKS,
        "{sources} addresses would have to be named, more than a policy takes\n  help: narrow it with --server, --user or --since"
    );
    let end = span::after(now, terms.span)
        .map_err(Error::msg)?
        .to_zoned(TimeZone::UTC)
        .date();
    let mut names: BTreeSet<String> = config
        .exceptions
        .iter()
        .map(|exception| exception.name.clone())
        .collect();
    let mut text = format!(
        "# Proposed by musttls learn on {}. Each exception is for what was seen, and no more; look at each before\n\
         # it is applied, and turn on TLS where a line says how. They end on {end}.\n",
        now.to_zoned(TimeZone::UTC).date()
    );
    let mut meant = Vec::new();
    for proposal in &lesson.proposals {
        let name = name(&proposal.subject, &mut names);
        meant.push((name.clone(), proposal));
        exception(
            &mut text,
            &name,
            proposal,
            terms,
            &end.to_string(),
            !config.servers.is_empty(),
        );
    }
    for Hopeless { why, client } in &lesson.hopeless {
        let cells = crate::clients::columns(client).join(", ");
        writeln!(text, "\n# Not proposed, {why}: {cells}")?;
    }
    check(config, &text, &meant, now)
        .context("the proposal is no valid configuration; please report it")?;
    Ok(text)
}

fn exception(
    text: &mut String,
    name: &str,
    proposal: &Proposal,
    terms: &Terms,
    end: &str,
    has_servers: bool,
) {
    let Subject { server, user } = &proposal.subject;
    let mut fixes: BTreeMap<&str, &str> = BTreeMap::new();
    for row in proposal.sources.values().flatten() {
        if let Some(fix::Fix { driver, how }) = row.fix {
            fixes.insert(driver, how);
        }
    }
    let mut lines = vec![String::new()];
    for (driver, how) in fixes {
        lines.push(format!("# {driver}: {how}"));
    }
    lines.push("[[exception]]".to_owned());
    lines.push(format!("name    = {}", quoted(name)));
    lines.push("source  = [".to_owned());
    for (source, rows) in &proposal.sources {
        let network = IpNet::from(*source);
        for row in rows {
            let seen = seen(row);
            lines.push(format!("    # {seen}"));
        }
        lines.push(format!("    \"{network}\","));
    }
    lines.push("]".to_owned());
    match user {
        Some(user) => lines.push(format!("user    = [{}]", quoted(user))),
        None => lines.push("# Any user: who logs in is not visible in such a session.".to_owned()),
    }
    match server {
        Some(server) => lines.push(format!("server  = {}", quoted(server))),
        None if has_servers => {
            lines.push("# Any server: give this one a [[server]] to name it here.".to_owned());
        }
        None => {}
    }
    lines.push(format!("expires = {end}"));
    lines.push(format!("owner   = {}", quoted(&terms.owner)));
    lines.push(format!("reason  = {}", quoted(&terms.reason)));
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
}

/// What was seen, as a comment: without characters that end one.
fn seen(row: &Row) -> String {
    let mut parts = Vec::new();
    if let Some(program) = &row.program {
        parts.push(program.to_string());
    }
    if let Some(driver) = &row.driver {
        let version = row.driver_version.as_deref().unwrap_or_default();
        parts.push(format!("{driver} {version}").trim_end().to_owned());
    }
    if let Some(version) = &row.tls_version {
        parts.push(format!("TLS {version}"));
    }
    parts.push(format!(
        "{}, {} to {}",
        counted(row.sessions, "session", "sessions"),
        row.first_seen.strftime("%Y-%m-%d"),
        row.last_seen.strftime("%Y-%m-%d")
    ));
    let text = parts.join(", ");
    text.chars().filter(|c| !c.is_control()).collect()
}

/// A name of its own, of letters, digits and hyphens.
fn name(subject: &Subject, taken: &mut BTreeSet<String>) -> String {
    let word = |text: &str| -> String {
        let word: String = text
            .chars()
            .map(|c| {
                if c.is_ascii_alphanumeric() {
                    c.to_ascii_lowercase()
                } else {
                    '-'
                }
            })
            .take(20)
            .collect();
        word.trim_matches('-').to_owned()
    };
    let user = subject
        .user
        .as_deref()
        .map_or_else(|| "any".to_owned(), word);
    let server = subject.server.as_deref().map_or_else(String::new, word);
    let words = ["learned", &user, &server];
    let words: Vec<&str> = words.into_iter().filter(|word| !word.is_empty()).collect();
    let base = words.join("-");
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    let free = std::iter::once(base.clone())
        .chain(numbered)
        .find(|name| !taken.contains(name))
        .unwrap_or(base);
    taken.insert(free.clone());
    free
}

/// A basic string of TOML 1.0.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            c if c.is_control() => {
                quoted.extend(format!("\\u{:04X}", u32::from(c)).chars());
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Reads the fragment as it will be read, beside the servers that it names.
fn check(config: &Config, text: &str, meant: &[(String, &Proposal)], now: Timestamp) -> Result<()> {
    let mut whole = String::new();
    for server in &config.servers {
        write!(whole, "[[server]]\nname = {}\n", quoted(&server.name))?;
        if !server.ports.is_empty() {
            writeln!(whole, "ports = {:?}", server.ports)?;
        }
    }
    whole.push_str(text);
    let loaded = Config::parse(Path::new("proposal"), &whole, now, PastDates::Refuse)?;
    let read = &loaded.config.exceptions;
    ensure!(
        read.len() == meant.len(),
        "{} exceptions are read of {}",
        read.len(),
        meant.len()
    );
    for (read, (name, proposal)) in read.iter().zip(meant) {
        let Subject { server, user } = &proposal.subject;
        let Exception {
            name: read_name,
            source,
            users,
            server: read_server,
            ..
        } = read;
        let sources: Vec<IpNet> = proposal
            .sources
            .keys()
            .map(|&one| IpNet::from(one))
            .collect();
        if read_name != name
            || *source != sources
            || users.as_slice() != user.as_slice()
            || read_server != server
        {
            bail!("{name} is read as {read:?}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ServerConfig;
    use std::sync::Arc;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn terms() -> Terms {
        Terms {
            owner: "dba@example.com".to_owned(),
            reason: "seen, \"quoted\" and \\ kept".to_owned(),
            span: span::parse("30d").unwrap(),
        }
    }

    fn client(peer: [u8; 4], port: u16, user: &str) -> Client {
        Client {
            port,
            peer: Some(peer.into()),
            user: Some(Arc::from(user)),
            driver: Some(Arc::from("libmariadb")),
            version: Some(Arc::from("3.3.8")),
            program: Some(Arc::from("mysqldump")),
            first_s: now().as_second(),
            last_s: now().as_second(),
            sessions: 3,
            ..Client::in_the_clear()
        }
    }

    fn config() -> Config {
        Config {
            servers: vec![ServerConfig {
                name: "orders".to_owned(),
                ports: vec![3306],
                mode: Some(Mode::Observe),
                mode_end: None,
                tls: crate::config::OwnTls::default(),
                loopback: None,
                index: 1,
            }],
            ..Config::default()
        }
    }

    /// The policy with what was learned, in enforce mode.
    fn applied(config: &Config, text: &str) -> Config {
        let whole = format!("[[server]]\nname = \"orders\"\nports = [3306]\n{text}");
        let loaded = Config::parse(Path::new("p"), &whole, now(), PastDates::Refuse).unwrap();
        Config {
            exceptions: loaded.config.exceptions,
            ..enforced(config)
        }
    }

    #[test]
    fn what_is_proposed_lets_in_exactly_those_that_were_seen() {
        let config = config();
        let seen = [
            client([10, 3, 0, 7], 3306, "etl"),
            client([10, 3, 0, 9], 3306, "etl"),
            client([10, 3, 0, 7], 3306, "app"),
        ];
        let lesson = learn(&config, &seen, now());
        assert_eq!(lesson.proposals.len(), 2);
        let text = fragment(&config, &lesson, &terms(), now()).unwrap();
        assert!(
            text.contains("\"10.3.0.7/32\",") && text.contains("expires = 2026-12-23\n"),
            "{text}"
        );
        assert!(text.contains("# MariaDB Connector/C: "), "{text}");
        let applied = applied(&config, &text);
        let judge = Judge::new(&applied, now());
        for client in &seen {
            assert!(
                matches!(judge.fate(client), Fate::Excepted(_)),
                "{client:?}"
            );
        }
        for (peer, port, user) in [
            ([10, 3, 0, 8], 3306, "etl"),
            ([10, 3, 0, 9], 3306, "app"),
            ([10, 3, 0, 7], 3307, "etl"),
            ([10, 3, 0, 7], 3306, "other"),
        ] {
            let fate = judge.fate(&client(peer, port, user));
            assert!(
                matches!(fate, Fate::Refused(_)),
                "{peer:?} {port} {user}: {fate:?}"
            );
        }
        // And nothing is left to learn.
        assert!(learn(&applied, &seen, now()).proposals.is_empty());
    }

    #[test]
    fn who_passes_already_is_not_proposed() {
        let mut secure = client([10, 3, 0, 7], 3306, "etl");
        secure.class = Class::Unix;
        assert_eq!(learn(&config(), &[secure], now()), Lesson::default());
    }

    #[test]
    fn hostile_names_stay_in_their_strings_and_comments() {
        let config = config();
        let mut hostile = client(
            [10, 3, 0, 7],
            3306,
            "x\"]\n[[exception]]\nsource = [\"0.0.0.0/0\"]",
        );
        hostile.program = Some(Arc::from("p\n[[exception]]\r\u{85}"));
        hostile.driver = Some(Arc::from("d\u{2028}\"\"\""));
        let mut unwritable = client([10, 3, 0, 7], 3306, "a\u{fffd}");
        unwritable.sessions = 1;
        let anonymous = client([10, 3, 0, 7], 3306, "");
        let lesson = learn(&config, &[hostile, unwritable, anonymous], now());
        assert_eq!((lesson.proposals.len(), lesson.hopeless.len()), (1, 2));
        let text = fragment(&config, &lesson, &terms(), now()).unwrap();
        let applied = applied(&config, &text);
        assert_eq!(applied.exceptions.len(), 1, "{text}");
        assert_eq!(
            applied.exceptions[0].source,
            ["10.3.0.7/32".parse::<IpNet>().unwrap()]
        );
        assert_eq!(text.matches("\n[[exception]]").count(), 1, "{text}");
    }

    #[test]
    fn a_session_without_a_visible_user_gets_an_exception_for_its_address() {
        let mut config = config();
        config.tls.require = crate::config::Floor::V1_2;
        let mut weak = client([10, 3, 0, 7], 3306, "x");
        weak.class = Class::Tls;
        weak.user = None;
        weak.tls = 0x0301;
        let lesson = learn(&config, &[weak], now());
        assert_eq!(lesson.proposals[0].subject.user, None);
        let text = fragment(&config, &lesson, &terms(), now()).unwrap();
        assert!(text.contains("# Any user: "), "{text}");
    }

    #[test]
    fn more_than_a_policy_holds_is_an_error() {
        let config = config();
        let many: Vec<_> = (0..1025)
            .map(|n| client([10, 3, 0, 7], 3306, &format!("user{n}")))
            .collect();
        let lesson = learn(&config, &many, now());
        let error = fragment(&config, &lesson, &terms(), now())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("1025 exceptions") && error.contains("help: "),
            "{error}"
        );
    }

    #[test]
    fn names_are_unique_and_short() {
        let mut taken = BTreeSet::from(["learned-etl-orders".to_owned()]);
        let subject = |user: &str| Subject {
            server: Some("orders".to_owned()),
            user: Some(user.to_owned()),
        };
        assert_eq!(name(&subject("etl"), &mut taken), "learned-etl-orders-2");
        assert_eq!(name(&subject("ETL"), &mut taken), "learned-etl-orders-3");
        assert!(name(&subject(&"ü".repeat(100)), &mut taken).len() <= 64);
    }
}
