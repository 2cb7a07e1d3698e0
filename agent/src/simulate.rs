//! What a policy would do about the clients of the history.
//!
//! It is asked as the gate asks: the same tables ([`policy::compile`]), the same walk over exceptions, the same floor, the same
//! table of modes ([`Verdict::action`]).

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use jiff::Timestamp;
use musttls_common::floor::shortfall;
use musttls_common::policy::{Found, LOOPBACK_RULE};
use musttls_common::verdict::{Action, Mode, Reason, Verdict};
use serde::{Serialize, Serializer};

use crate::address::octets;
use crate::audit::record::Outcome;
use crate::clients::{Row, columns, missing, table};
use crate::config::{Config, Exception, LOOPBACK};
use crate::count::{counted, counted_of};
use crate::history::{Class, Client};
use crate::policy::{self, Login, Tables};

/// What would become of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate<'p> {
    /// It passes: it is secure, or no policy is asked.
    Passes,
    /// This exception lets it pass.
    Excepted(&'p str),
    /// This exception lets it pass if its user or cgroup on this host is one that it names, which the history does not know.
    /// Otherwise it is refused.
    Undecided(&'p str, Reason),
    /// It would be refused if its server were in enforce mode.
    Observed(Reason),
    /// It is refused.
    Refused(Reason),
}

/// The instant of judging on the clock of the kernel, which may count from anywhere.
const NOW_NS: u64 = 0;

/// A policy, as it would be in force at an instant.
#[derive(Debug)]
pub struct Judge<'p> {
    config: &'p Config,
    tables: Tables,
}

impl<'p> Judge<'p> {
    /// `config`, as if it came into force at `now`.
    #[must_use]
    pub fn new(config: &'p Config, now: Timestamp) -> Self {
        let tables = policy::compile(config, 0, now, NOW_NS);
        Self { config, tables }
    }

    /// What would become of `client`, were it to come at that instant.
    #[must_use]
    pub fn fate(&self, client: &Client) -> Fate<'p> {
        self.fate_on(self.config.server_index(client.port), client)
    }

    /// The same with an entry of the table of servers in place of the client's port.
    #[must_use]
    pub fn fate_on(&self, index: u16, client: &Client) -> Fate<'p> {
        let (reason, user) = match client.class {
            Class::Unix | Class::TlsFailed => return Fate::Passes,
            Class::NoException => return self.denied(index, Reason::Unjudgeable),
            Class::Plaintext => (Reason::NoClientSsl, known_user(client)),
            Class::Older if self.refuses_older(index) => (Reason::OlderPlaintext, None),
            Class::Older => return Fate::Passes,
            Class::Tls => match self.shortfall(index, client) {
                Some(reason) => (reason, None),
                None => return Fate::Passes,
            },
        };
        let login = self.address(client).map(|address| Login {
            client: octets(address),
            is_local: self.may_be_local(client),
            server: index,
            user: user.map(str::as_bytes),
        });
        let Some(login) = login else {
            return self.denied(index, reason);
        };
        let exception = |rule: u16| self.config.exceptions.get(usize::from(rule));
        match self.tables.found(&login, NOW_NS) {
            Found::Rule(LOOPBACK_RULE) => Fate::Excepted(LOOPBACK),
            Found::Rule(rule) => exception(rule).map_or_else(
                || self.denied(index, reason),
                |exception| Fate::Excepted(&exception.name),
            ),
            // The agent is asked about logins only.
            Found::Depends if client.class == Class::Plaintext => {
                let rules = self.tables.conditional(&login, NOW_NS);
                self.by_conditions(
                    client,
                    rules.into_iter().filter_map(exception),
                    index,
                    reason,
                )
            }
            Found::Depends | Found::Nothing => self.denied(index, reason),
        }
    }

    /// Whether PROXY protocol headers of `peer` are believed.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.tables.trusts(octets(peer))
    }

    /// What becomes of a client to which one of these applies if it meets the conditions.
    fn by_conditions(
        &self,
        client: &Client,
        exceptions: impl Iterator<Item = &'p Exception>,
        index: u16,
        reason: Reason,
    ) -> Fate<'p> {
        let mut may = None;
        for exception in exceptions {
            let name = exception.name.as_str();
            // It met them when it was seen last.
            let met = client.rule.as_deref() == Some(name);
            if !exception
                .conditions
                .meets_program(client.program.as_deref())
            {
                continue;
            }
            if met || !exception.conditions.are_local() {
                return Fate::Excepted(name);
            }
            may = may.or(Some(name));
        }
        match (may, self.denied(index, reason)) {
            (Some(name), Fate::Refused(reason)) => Fate::Undecided(name, reason),
            (_, fate) => fate,
        }
    }

    /// Whether the client may be a process of this host: by its address, or because a rule for such clients let it pass last. The
    /// history does not know over which device it came.
    fn may_be_local(&self, client: &Client) -> bool {
        let is_peer = self.address(client) == client.peer;
        let is_loopback = client
            .peer
            .is_some_and(|peer| peer.to_canonical().is_loopback());
        let rule = client.rule.as_deref().unwrap_or_default();
        let was_local = rule == LOOPBACK
            || self
                .config
                .exceptions
                .iter()
                .any(|exception| exception.conditions.are_local() && exception.name == rule);
        is_peer && (is_loopback || was_local)
    }

    /// Whose address exceptions are held against: the client that a trusted proxy has named, or the peer.
    #[must_use]
    pub fn address(&self, client: &Client) -> Option<IpAddr> {
        let peer = client.peer?;
        let proxied = client
            .proxied
            .filter(|_| client.class != Class::Older && self.trusts(peer));
        Some(proxied.unwrap_or(peer))
    }

    fn denied(&self, index: u16, reason: Reason) -> Fate<'p> {
        let server = self.tables.servers.get(usize::from(index));
        let mode = server.map_or(Mode::Enforce, |server| server.mode(|| NOW_NS));
        match Verdict::Deny(reason).action(mode) {
            Action::Pass => Fate::Observed(reason),
            Action::Drop => Fate::Refused(reason),
        }
    }

    fn refuses_older(&self, index: u16) -> bool {
        let server = self.tables.servers.get(usize::from(index));
        server.is_some_and(|server| server.refuses_older != 0)
    }

    fn shortfall(&self, index: u16, client: &Client) -> Option<Reason> {
        let server = self.tables.servers.get(usize::from(index))?;
        // Nothing was seen of a session that is older than the gate, or whose offer could not be read.
        if client.tls == 0 {
            return None;
        }
        let mut is_refused = self.refuses(index, client.cipher);
        // What it had offered instead is not known.
        if client.cipher == 0 && matches!(client.passed, Outcome::Denied | Outcome::Observed) {
            is_refused = self
                .tables
                .ciphers
                .iter()
                .any(|(_, servers)| servers >> index & 1 != 0);
        }
        shortfall(client.tls, is_refused, server.floor)
    }

    fn refuses(&self, index: u16, cipher: u16) -> bool {
        let found = self
            .tables
            .ciphers
            .binary_search_by_key(&cipher, |(number, _)| *number);
        found
            .ok()
            .and_then(|at| self.tables.ciphers.get(at))
            .is_some_and(|(_, servers)| servers >> index & 1 != 0)
    }
}

/// The user, if the record has the name as it was sent: a character in it may stand for one that could not be shown.
#[must_use]
pub fn known_user(client: &Client) -> Option<&str> {
    client
        .user
        .as_deref()
        .filter(|user| !user.contains(char::REPLACEMENT_CHARACTER))
}

/// A client and what would become of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judged {
    /// The client.
    #[serde(flatten)]
    pub row: Row,
    /// The exception by which it would pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exception: Option<String>,
    /// Why it would be refused: `plaintext`, or the reason of audit records.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
}

/// What a policy would do about the history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Simulation {
    /// The file of the policy.
    pub policy: String,
    /// How many clients were judged.
    pub clients: usize,
    /// How many sessions they had.
    pub sessions: u64,
    /// When the first of these clients was first seen; none if there is no client.
    #[serde(serialize_with = "as_text")]
    pub first_seen: Option<Timestamp>,
    /// Clients that would be refused.
    pub refused: Vec<Judged>,
    /// Clients that would pass by an exception.
    pub excepted: Vec<Judged>,
    /// Clients that would be refused if they do not meet the conditions of an exception that the history cannot tell.
    pub undecided: Vec<Judged>,
    /// Clients that would be refused if their server were in enforce mode.
    pub observed: Vec<Judged>,
    /// Exceptions that no client needs.
    pub unused: Vec<String>,
    /// How often records are missing from the history: whom they were about is not known.
    pub holes: usize,
}

#[expect(
    clippy::ref_option,
    reason = "serde gives a reference to what is serialized"
)]
fn as_text<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(|at| at.to_string()).serialize(serializer)
}

/// Judges `clients` by `config`; `progress` is called with how many are done.
#[must_use]
pub fn simulate(
    config: &Config,
    policy: String,
    clients: &[Client],
    now: Timestamp,
    mut progress: impl FnMut(usize),
) -> Simulation {
    let judge = Judge::new(config, now);
    let mut simulation = Simulation {
        policy,
        clients: clients.len(),
        ..Simulation::default()
    };
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for (done, client) in clients.iter().enumerate() {
        if done % 4096 == 0 {
            progress(done);
        }
        simulation.sessions += client.sessions;
        let judged = |exception: Option<&str>, reason: Option<Reason>| Judged {
            row: Row::of(client),
            exception: exception.map(str::to_owned),
            why: reason.map(|reason| why(client, reason)),
        };
        match judge.fate(client) {
            Fate::Passes => {}
            Fate::Excepted(rule) => {
                used.insert(rule);
                simulation.excepted.push(judged(Some(rule), None));
            }
            Fate::Undecided(rule, reason) => {
                used.insert(rule);
                simulation.undecided.push(judged(Some(rule), Some(reason)));
            }
            Fate::Observed(reason) => simulation.observed.push(judged(None, Some(reason))),
            Fate::Refused(reason) => simulation.refused.push(judged(None, Some(reason))),
        }
    }
    for judged in [
        &mut simulation.refused,
        &mut simulation.excepted,
        &mut simulation.undecided,
        &mut simulation.observed,
    ] {
        judged.sort_by_key(|judged| std::cmp::Reverse(judged.row.sessions));
    }
    simulation.first_seen = clients
        .iter()
        .map(|client| client.first_s)
        .min()
        .and_then(|first| Timestamp::from_second(first).ok());
    simulation.unused = config
        .exceptions
        .iter()
        .map(|exception| exception.name.clone())
        .filter(|name| !used.contains(name.as_str()))
        .collect();
    simulation
}

/// Why, in a word: of plaintext the history does not keep more.
const fn why(client: &Client, reason: Reason) -> &'static str {
    match client.class {
        Class::Plaintext => "plaintext",
        Class::NoException => "plaintext, no exception applies",
        Class::Older | Class::Tls | Class::TlsFailed | Class::Unix => reason.as_str(),
    }
}

impl fmt::Display for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            policy,
            clients,
            sessions,
            first_seen,
            refused,
            excepted,
            undecided,
            observed,
            unused,
            holes,
        } = self;
        missing(f, *holes)?;
        let Some(first) = first_seen else {
            return writeln!(
                f,
                "{policy}: whom it would refuse is not known: nobody is on record, or not since then\n  \
                 help: let the agent run in observe mode for as long as the rarest job takes; musttls history says what is on record"
            );
        };
        writeln!(
            f,
            "{policy}, held against {} with {}, the first seen {} UTC",
            counted_of(*clients, "client", "clients"),
            counted(*sessions, "session", "sessions"),
            first.strftime("%Y-%m-%d %H:%M")
        )?;
        section(f, "would be refused", refused, |judged| judged.why)?;
        section(
            f,
            "may pass by an exception, if their uid or cgroup on this host is one that it names (the history does not know); else \
             would be refused",
            undecided,
            |judged| judged.exception.as_deref(),
        )?;
        section(
            f,
            "would be refused if their server were in enforce mode",
            observed,
            |judged| judged.why,
        )?;
        section(f, "would pass by an exception", excepted, |judged| {
            judged.exception.as_deref()
        })?;
        if !unused.is_empty() {
            writeln!(f, "\nexceptions that nobody needed: {}", unused.join(", "))?;
        }
        match (refused.len(), observed.len()) {
            (0, 0) if undecided.is_empty() => writeln!(f, "\nnobody would be refused")?,
            (0, observed) if observed > 0 => writeln!(
                f,
                "\nnobody would be refused as long as their servers are in observe mode; in enforce mode {observed} would"
            )?,
            _ => {}
        }
        Ok(())
    }
}

fn section<'j>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    judged: &'j [Judged],
    last: impl Fn(&'j Judged) -> Option<&'j str>,
) -> fmt::Result {
    if judged.is_empty() {
        return Ok(());
    }
    writeln!(f, "\n{} {title}", judged.len())?;
    let rows = judged.iter().map(|judged| {
        let mut cells = columns(&judged.row);
        cells.push(last(judged).unwrap_or_default().to_owned());
        cells
    });
    let mut titles = crate::clients::COLUMNS.to_vec();
    titles.push("BY");
    f.write_str(&table(&titles, rows.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        Conditions, Exception, Existing, Expiry, Floor, Loopback, ModeEnd, OwnTls, ServerConfig,
    };
    use ipnet::IpNet;
    use jiff::SignedDuration;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn client(peer: IpAddr, port: u16, user: Option<&str>) -> Client {
        Client {
            port,
            peer: Some(peer),
            user: user.map(Arc::from),
            ..Client::in_the_clear()
        }
    }

    #[test]
    fn nobody_on_record_is_not_nobody_refused() {
        let config = config(Vec::new());
        let said = |clients: &[Client]| {
            simulate(&config, "f.toml".to_owned(), clients, now(), |_| ()).to_string()
        };
        let text = said(&[]);
        assert!(text.contains("is not known: nobody is on record"), "{text}");
        assert!(!text.contains("nobody would be refused"), "{text}");

        let one = client(Ipv4Addr::new(10, 0, 0, 1).into(), 3306, None);
        let text = said(&[Client {
            first_s: now().as_second(),
            sessions: 1,
            ..one
        }]);
        let first =
            "f.toml, held against 1 client with 1 session, the first seen 2026-11-23 12:00 UTC\n";
        assert!(text.starts_with(first), "{text}");
    }

    fn config(exceptions: Vec<Exception>) -> Config {
        let server = |name: &str, port, mode, index| ServerConfig {
            name: name.to_owned(),
            ports: vec![port],
            mode: Some(mode),
            mode_end: None,
            tls: OwnTls::default(),
            loopback: None,
            index,
        };
        Config {
            mode: Mode::Enforce,
            servers: vec![
                server("a", 3306, Mode::Enforce, 1),
                server("b", 3307, Mode::Observe, 2),
            ],
            exceptions,
            ..Config::default()
        }
    }

    fn exception(name: &str, source: &str, users: &[&str], server: Option<&str>) -> Exception {
        Exception {
            name: name.to_owned(),
            source: vec![source.parse().unwrap()],
            users: users.iter().map(|&user| user.to_owned()).collect(),
            server: server.map(str::to_owned),
            conditions: Conditions::default(),
            not_before: None,
            expires: Expiry::Never,
            owner: "o".to_owned(),
            reason: "r".to_owned(),
        }
    }

    /// What the documentation says of a plaintext login.
    fn naive<'c>(config: &'c Config, client: &Client) -> Fate<'c> {
        let index = config.server_index(client.port);
        let name = config.server_name(index);
        let allows = |exception: &&Exception| {
            exception
                .source
                .iter()
                .any(|network| network.contains(&client.peer.unwrap()))
                && exception
                    .server
                    .as_deref()
                    .is_none_or(|server| server == name)
                && (exception.users.is_empty()
                    || client
                        .user
                        .as_deref()
                        .is_some_and(|user| exception.users.iter().any(|one| one == user)))
                && exception.expires.holds(now())
        };
        match config.exceptions.iter().find(allows) {
            Some(exception) => Fate::Excepted(&exception.name),
            None if config.mode_of(index) == Mode::Enforce => Fate::Refused(Reason::NoClientSsl),
            None => Fate::Observed(Reason::NoClientSsl),
        }
    }

    fn an_exception() -> impl Strategy<Value = Exception> {
        (
            (0..4u8, 20..=32u8),
            prop::collection::vec(prop::sample::select(vec!["x", "y"]), 0..2),
            prop::option::of(prop::sample::select(vec!["a", "b"])),
            prop::sample::select(vec![-1_i64, 0, 10]),
        )
            .prop_map(|((last, bits), users, server, left)| Exception {
                source: vec![
                    IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), bits)
                        .unwrap()
                        .trunc(),
                ],
                expires: Expiry::At(now() + SignedDuration::from_secs(left)),
                ..exception(&format!("{last}/{bits}"), "10.0.0.0/32", &users, server)
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2048))]
        #[test]
        fn every_session_has_the_fate_that_the_policy_says(
            exceptions in prop::collection::vec(an_exception(), 0..8),
        ) {
            let config = config(exceptions);
            let judge = Judge::new(&config, now());
            for last in 0..6u8 {
                for port in [3306, 3307, 3308] {
                    for user in [None, Some("x"), Some("y"), Some("z")] {
                        let client = client(Ipv4Addr::new(10, 0, 0, last).into(), port, user);
                        prop_assert_eq!(judge.fate(&client), naive(&config, &client), "{:?}", client);
                    }
                }
            }
        }
    }

    #[test]
    fn a_mode_that_is_over_is_not_in_force() {
        let mut config = config(Vec::new());
        let end = |seconds| ModeEnd {
            at: now() + SignedDuration::from_secs(seconds),
            then: Mode::Observe,
        };
        let client = client(Ipv4Addr::LOCALHOST.into(), 3306, None);
        for (seconds, fate) in [
            (1, Fate::Refused(Reason::NoClientSsl)),
            (0, Fate::Observed(Reason::NoClientSsl)),
            (-1, Fate::Observed(Reason::NoClientSsl)),
        ] {
            config.servers[0].mode_end = Some(end(seconds));
            assert_eq!(Judge::new(&config, now()).fate(&client), fate, "{seconds}");
        }
    }

    #[test]
    fn what_is_secure_passes_and_what_no_exception_excuses_does_not() {
        let config = config(vec![exception("all", "0.0.0.0/0", &[], None)]);
        let judge = Judge::new(&config, now());
        let fate = |class| {
            judge.fate(&Client {
                class,
                ..client([10, 0, 0, 1].into(), 3306, None)
            })
        };
        assert_eq!(fate(Class::Unix), Fate::Passes);
        assert_eq!(fate(Class::TlsFailed), Fate::Passes);
        assert_eq!(fate(Class::Plaintext), Fate::Excepted("all"));
        assert_eq!(fate(Class::NoException), Fate::Refused(Reason::Unjudgeable));
        // `existing = "keep"`.
        assert_eq!(fate(Class::Older), Fate::Passes);
    }

    #[test]
    fn sessions_older_than_the_gate_have_no_user() {
        let mut config = config(vec![exception("etl", "10.0.0.0/8", &["etl"], None)]);
        config.existing = Existing::RefusePlaintext;
        let judge = Judge::new(&config, now());
        let older = Client {
            class: Class::Older,
            ..client([10, 0, 0, 1].into(), 3306, Some("etl"))
        };
        assert_eq!(judge.fate(&older), Fate::Refused(Reason::OlderPlaintext));
    }

    #[test]
    fn the_floor_decides_about_tls_and_exceptions_without_users_excuse_it() {
        let mut config = config(vec![
            exception("named", "10.0.0.0/8", &["etl"], None),
            exception("any", "10.1.0.0/16", &[], None),
        ]);
        config.tls.require = Floor::V1_2;
        let judge = Judge::new(&config, now());
        let fate = |peer: [u8; 4], tls, cipher, passed| {
            judge.fate(&Client {
                class: Class::Tls,
                tls,
                cipher,
                passed,
                ..client(peer.into(), 3306, Some("etl"))
            })
        };
        assert_eq!(
            fate([10, 0, 0, 1], 0x0304, 0x1301, Outcome::Allowed),
            Fate::Passes
        );
        assert_eq!(
            fate([10, 0, 0, 1], 0x0302, 0x002f, Outcome::Allowed),
            Fate::Refused(Reason::TlsBelowFloor)
        );
        assert_eq!(
            fate([10, 1, 0, 1], 0x0302, 0x002f, Outcome::Allowed),
            Fate::Excepted("any")
        );
        // RC4.
        assert_eq!(
            fate([10, 0, 0, 1], 0x0303, 0x0005, Outcome::Allowed),
            Fate::Refused(Reason::TlsCipherRefused)
        );
        assert_eq!(
            fate([10, 0, 0, 1], 0x0303, 0, Outcome::Denied),
            Fate::Refused(Reason::TlsCipherRefused)
        );
        // Nothing is known of it.
        assert_eq!(fate([10, 0, 0, 1], 0, 0, Outcome::Allowed), Fate::Passes);
    }

    #[test]
    fn whom_a_trusted_proxy_names_is_the_client() {
        let mut config = config(vec![exception("behind", "192.0.2.0/24", &[], None)]);
        config.trusted_proxies = vec!["10.4.0.10/32".parse().unwrap()];
        let judge = Judge::new(&config, now());
        let fate = |peer: [u8; 4]| {
            judge.fate(&Client {
                proxied: Some([192, 0, 2, 9].into()),
                ..client(peer.into(), 3306, None)
            })
        };
        assert_eq!(fate([10, 4, 0, 10]), Fate::Excepted("behind"));
        assert_eq!(fate([10, 4, 0, 11]), Fate::Refused(Reason::NoClientSsl));
    }

    #[test]
    fn a_name_that_could_not_be_shown_is_no_name() {
        let config = config(vec![exception("etl", "10.0.0.0/8", &["\u{fffd}"], None)]);
        let judge = Judge::new(&config, now());
        let hostile = client([10, 0, 0, 1].into(), 3306, Some("\u{fffd}"));
        assert_eq!(judge.fate(&hostile), Fate::Refused(Reason::NoClientSsl));
    }

    #[test]
    fn programs_are_known_and_uids_are_not() {
        let mut dumps = exception("dumps", "10.0.0.0/8", &[], None);
        dumps.conditions.programs = vec!["mysqldump".to_owned()];
        let mut backup = exception("backup", "10.0.0.0/8", &[], None);
        backup.source.clear();
        backup.conditions.uids = Some(vec![34]);
        let mut config = config(vec![dumps, backup]);
        let judge = Judge::new(&config, now());
        let seen = |peer: [u8; 4], program: Option<&str>, rule: Option<&str>| Client {
            program: program.map(Arc::from),
            rule: rule.map(Arc::from),
            ..client(peer.into(), 3306, Some("u"))
        };
        let refused = Fate::Refused(Reason::NoClientSsl);
        let undecided = Fate::Undecided("backup", Reason::NoClientSsl);
        for (client, fate) in [
            (
                seen([10, 0, 0, 1], Some("mysqldump"), None),
                Fate::Excepted("dumps"),
            ),
            (seen([10, 0, 0, 1], Some("mysql"), None), refused),
            (seen([10, 0, 0, 1], None, None), refused),
            (seen([127, 0, 0, 1], Some("mysqldump"), None), undecided),
            (
                seen([127, 0, 0, 1], None, Some("backup")),
                Fate::Excepted("backup"),
            ),
            // The host itself, by another address.
            (
                seen([10, 0, 0, 1], None, Some("backup")),
                Fate::Excepted("backup"),
            ),
        ] {
            assert_eq!(judge.fate(&client), fate, "{client:?}");
        }
        let clients = [seen([127, 0, 0, 1], None, None)];
        let simulation = simulate(&config, "p.toml".to_owned(), &clients, now(), |_| {});
        assert_eq!(simulation.undecided.len(), 1);
        assert_eq!(simulation.unused, ["dumps"]);
        let text = simulation.to_string();
        assert!(
            text.contains("1 may pass by an exception, if")
                && !text.contains("nobody would be refused"),
            "{text}"
        );

        config.loopback = Loopback::Allow;
        config.exceptions.clear();
        let judge = Judge::new(&config, now());
        assert_eq!(judge.fate(&clients[0]), Fate::Excepted(LOOPBACK));
        assert_eq!(judge.fate(&seen([10, 0, 0, 1], None, None)), refused);
    }

    #[test]
    fn a_simulation_names_the_refused_the_excused_and_the_unused() {
        let config = config(vec![
            exception("etl", "10.0.0.0/24", &["etl"], Some("a")),
            exception("nobody", "192.0.2.0/24", &[], None),
        ]);
        let clients = [
            client([10, 0, 0, 1].into(), 3306, Some("etl")),
            client([10, 0, 0, 1].into(), 3306, Some("app")),
            client([10, 0, 0, 1].into(), 3307, Some("app")),
        ];
        let simulation = simulate(&config, "p.toml".to_owned(), &clients, now(), |_| {});
        assert_eq!(simulation.refused.len(), 1);
        assert_eq!(simulation.observed.len(), 1);
        assert_eq!(simulation.excepted[0].exception.as_deref(), Some("etl"));
        assert_eq!(simulation.unused, ["nobody"]);
        let text = simulation.to_string();
        assert!(
            text.contains("1 would be refused\n") && text.contains("nobody needed: nobody"),
            "{text}"
        );
    }
}
