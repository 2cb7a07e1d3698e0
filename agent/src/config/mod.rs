//! The configuration: TOML files become a valid [`Config`], or a report that points at each mistake.
//!
//! | file | content |
//! |---|---|
//! | `mod` | the valid configuration and its rules of look-up |
//! | `layers` | which files there are, and where in them a value stands |
//! | `file` | reading one: size, encoding, permissions |
//! | `merge` | several files as one |
//! | `decode` | TOML values to configuration, all mistakes collected |
//! | `walk` | tables and keys, and the mistakes common to all |
//! | `exception` | the keys of an exception |
//! | `conditions` | what an exception may ask of the client; the loopback device |
//! | `history` | the keys of the history |
//! | `tls` | the keys about TLS itself: floors and cipher suites |
//! | `value` | single values: networks, dates, words |
//! | `show` | the valid configuration in full, each value with its origin |
//! | [`edit`] | edits of a file's text that keep its comments |
//! | `report` | mistakes as text that points at file, line and column |
//!
//! Invariant: reading a configuration has no effect on the system. Only this module names `toml`,
//! `toml_edit` and `annotate-snippets`.

mod conditions;
mod decode;
pub mod edit;
mod exception;
mod file;
mod history;
mod layers;
mod merge;
mod report;
mod show;
mod tls;
mod value;
mod walk;

use std::fmt;
use std::iter;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use musttls_common::policy::MAX_SERVERS;
use musttls_common::verdict::Mode;

pub use conditions::{Conditions, Loopback, unknown_user};
pub use layers::{DROP_INS, Layer, Layers, Origin, drop_ins};
pub use show::Effective;
pub use tls::{Floor, OwnTls, TlsPolicy};
pub(crate) use value::similar;

/// Where the packaged configuration file lies.
pub const DEFAULT_PATH: &str = "/etc/musttls/musttls.toml";
/// Where audit records go unless the file says otherwise.
pub const DEFAULT_AUDIT: &str = "/var/log/musttls/audit.jsonl";
/// Where the control socket is unless the file says otherwise.
pub const DEFAULT_CONTROL: &str = "/run/musttls/control.sock";
/// The group whose members may ask at the control socket unless the file says otherwise; it may be missing.
pub const DEFAULT_CONTROL_GROUP: &str = "musttls";
/// Where the index of the history is unless the file says otherwise.
pub const DEFAULT_HISTORY: &str = "/var/lib/musttls/history.db";
/// Name of the settings that hold for every server without a `[[server]]` of its own.
pub const DEFAULT_SERVER: &str = "default";
/// Name in records of the rule that applies when no exception does.
pub const REQUIRE_TLS: &str = "require-tls";
/// Name in records of the rule by which `loopback = "allow"` lets a session pass.
pub const LOOPBACK: &str = "loopback";

/// Most networks in all exceptions and `trusted_proxies` together. Each is an entry of a kernel map (152 bytes and the
/// trie's node), so this is about 20 MiB.
pub const MAX_NETWORKS: usize = 100_000;
/// Most user names in all exceptions together; each is an entry of a kernel map, 256 bytes.
pub const MAX_USERS: usize = 10_000;
/// Most servers with settings of their own. The table of servers has two entries more: one for all other servers, and that of the canary.
pub const MAX_NAMED_SERVERS: usize = MAX_SERVERS - 2;
/// How often the canary logs in unless the file says otherwise.
pub const DEFAULT_CANARY: Duration = Duration::from_mins(1);

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Whether all servers are in observe mode, whatever they say.
    pub panic: bool,
    /// The mode of servers that do not set their own.
    pub mode: Mode,
    /// When that mode ends, if it does.
    pub mode_end: Option<ModeEnd>,
    /// What TLS must be like on servers that do not say it themselves.
    pub tls: TlsPolicy,
    /// Servers with settings of their own, in the order of the files.
    pub servers: Vec<ServerConfig>,
    /// Exceptions, in the order of the files. An ended one may be among them: see [`PastDates`].
    pub exceptions: Vec<Exception>,
    /// Peers whose PROXY protocol headers are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether the gate outlives the agent.
    pub persist: bool,
    /// What is done about sessions older than the gate or its enforcement.
    pub existing: Existing,
    /// What is done about plaintext over the loopback device, on servers that do not say it themselves.
    pub loopback: Loopback,
    /// How often the canary logs in; `None` for never.
    pub canary: Option<Duration>,
    /// Where audit records go.
    pub audit: AuditTarget,
    /// The history of who has connected how.
    pub history: HistoryConfig,
    /// Where metrics are served, if they are.
    pub metrics: Option<SocketAddr>,
    /// The control socket.
    pub control: ControlConfig,
}

/// The control socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlConfig {
    /// Where it is.
    pub socket: PathBuf,
    /// The group whose members may ask, and change nothing; [`DEFAULT_CONTROL_GROUP`], if it exists, where the files name none.
    pub group: Option<String>,
}

/// The end of a mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeEnd {
    /// The first instant at which another mode is in force.
    pub at: Timestamp,
    /// That mode.
    pub then: Mode,
}

/// What is done about sessions older than the gate or its enforcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// They are shown, and go on.
    Keep,
    /// Those in the clear are refused on servers in enforce mode.
    RefusePlaintext,
}

impl Existing {
    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::RefusePlaintext => "refuse-plaintext",
        }
    }
}

/// The history of who has connected how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryConfig {
    /// Whether there is one.
    pub enabled: bool,
    /// The file of its index.
    pub path: PathBuf,
    /// How long a client is kept that is not seen any more.
    pub keep: Duration,
    /// Most clients that are kept.
    pub max_clients: u64,
}

impl Default for HistoryConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            path: PathBuf::from(DEFAULT_HISTORY),
            keep: Duration::from_hours(90 * 24),
            max_clients: 1_000_000,
        }
    }
}

/// Settings of one server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Its name in exceptions, records and metrics.
    pub name: String,
    /// The TCP ports it listens on; empty for every port that no other server names.
    pub ports: Vec<u16>,
    /// Its mode, if it is not the global one.
    pub mode: Option<Mode>,
    /// When its own mode ends, if it does.
    pub mode_end: Option<ModeEnd>,
    /// What it says about TLS itself.
    pub tls: OwnTls,
    /// What it says about plaintext over the loopback device itself.
    pub loopback: Option<Loopback>,
    /// Its entry in the gate's table of servers, which is also that of its counters. 0 is for servers without settings of
    /// their own.
    pub index: u16,
}

/// A named, owned, dated permission for plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its name in records and metrics.
    pub name: String,
    /// The networks it allows; empty, for any address of this host, only beside conditions that are local. IPv4-mapped networks are IPv4 here, and no network has
    /// host bits.
    pub source: Vec<IpNet>,
    /// The users it allows; empty for any.
    pub users: Vec<String>,
    /// The server it is for; `None` for any.
    pub server: Option<String>,
    /// What the agent looks at.
    pub conditions: Conditions,
    /// The first instant at which it holds; `None` for always.
    pub not_before: Option<Timestamp>,
    /// When it ends.
    pub expires: Expiry,
    /// Who answers for it.
    pub owner: String,
    /// Why it exists.
    pub reason: String,
}

impl Exception {
    /// Whether a client at this address is among those that it allows.
    #[must_use]
    pub fn is_for(&self, client: IpAddr) -> bool {
        self.source.is_empty() || self.source.iter().any(|network| network.contains(&client))
    }

    /// Whether it has begun and not ended at `now`.
    #[must_use]
    pub fn holds(&self, now: Timestamp) -> bool {
        self.not_before.is_none_or(|begin| begin <= now) && self.expires.holds(now)
    }
}

/// When an exception ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// The first instant at which it no longer holds.
    At(Timestamp),
    /// It does not end.
    Never,
}

impl Expiry {
    /// Whether an exception with this end holds at `now`.
    #[must_use]
    pub fn holds(self, now: Timestamp) -> bool {
        match self {
            Self::At(end) => now < end,
            Self::Never => true,
        }
    }
}

/// Where audit records go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditTarget {
    /// Standard output.
    Stdout,
    /// This file, appended to.
    File(PathBuf),
}

/// What to do about an exception that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PastDates {
    /// `config check`: a past date is an error.
    Refuse,
    /// The daemon starts or reads its configuration again: it warns and leaves the exception out, because one that has ended must
    /// not stand in the way of anything else (ADR 0007).
    Warn,
}

/// A configuration and what a person should look at in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What was read.
    pub layers: Layers,
    /// Warnings, one line each.
    pub warnings: Vec<String>,
    /// Where each exception begins, as places in the layers.
    exceptions: Vec<usize>,
}

impl Loaded {
    /// The exceptions, each with where it stands.
    pub fn exceptions(&self) -> impl Iterator<Item = (&Exception, Origin)> {
        let lines = self.layers.lines();
        let places = self.exceptions.iter();
        let exceptions = self.config.exceptions.iter().zip(places);
        exceptions.map(move |(exception, at)| (exception, lines.origin(*at)))
    }
}

/// A configuration file that cannot be used. Its text is complete: what is wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    text: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ConfigError {}

impl Default for Config {
    fn default() -> Self {
        Self {
            panic: false,
            mode: Mode::Observe,
            mode_end: None,
            tls: TlsPolicy::default(),
            servers: Vec::new(),
            exceptions: Vec::new(),
            trusted_proxies: Vec::new(),
            persist: true,
            existing: Existing::Keep,
            loopback: Loopback::SameRule,
            canary: Some(DEFAULT_CANARY),
            audit: AuditTarget::File(PathBuf::from(DEFAULT_AUDIT)),
            history: HistoryConfig::default(),
            metrics: None,
            control: ControlConfig {
                socket: PathBuf::from(DEFAULT_CONTROL),
                group: None,
            },
        }
    }
}

impl Config {
    /// Reads and checks the file at `path` and the layers that belong to it; exceptions are held against `now`.
    pub fn load(path: &Path, now: Timestamp, past: PastDates) -> Result<Loaded, ConfigError> {
        let (layers, warnings) = Layers::read(path)?;
        let mut loaded = Self::check(layers, now, past)?;
        loaded.warnings.extend(warnings);
        Ok(loaded)
    }

    /// Checks `text`; `path` only stands in messages.
    pub fn parse(
        path: &Path,
        text: &str,
        now: Timestamp,
        past: PastDates,
    ) -> Result<Loaded, ConfigError> {
        Self::check(Layers::single(path, text), now, past)
    }

    /// Checks what [`Layers::keep`] has made; `path` only stands in messages.
    pub fn recall(
        path: &Path,
        text: &str,
        now: Timestamp,
        past: PastDates,
    ) -> Result<Loaded, ConfigError> {
        Self::check(Layers::kept(path, text), now, past)
    }

    /// Checks the layers; see [`Layers::with`].
    pub fn check(layers: Layers, now: Timestamp, past: PastDates) -> Result<Loaded, ConfigError> {
        let mut problems = report::Problems::default();
        let decoded = decode::decode(&layers, now, past, &mut problems);
        problems.finish(&layers)?;
        let warnings = decoded
            .warnings
            .into_iter()
            .map(|(at, warning)| report::locate(&layers, at, &warning))
            .collect();
        Ok(Loaded {
            config: decoded.config,
            layers,
            warnings,
            exceptions: decoded.exceptions,
        })
    }

    /// The entry in the table of servers for a listener on `port`; 0 is the default entry.
    #[must_use]
    pub fn server_index(&self, port: u16) -> u16 {
        let named = |server: &&ServerConfig| server.ports.contains(&port);
        let server = self.servers.iter().find(named);
        server.map_or_else(|| self.unnamed_index(), |server| server.index)
    }

    /// The entry in the table of servers for a listener on a port that no `[[server]]` names.
    #[must_use]
    pub fn unnamed_index(&self) -> u16 {
        let any = |server: &&ServerConfig| server.ports.is_empty();
        self.servers
            .iter()
            .find(any)
            .map_or(0, |server| server.index)
    }

    /// Whether a `[[server]]` names `port`.
    #[must_use]
    pub fn names_port(&self, port: u16) -> bool {
        self.servers
            .iter()
            .any(|server| server.ports.contains(&port))
    }

    /// The name of an entry in the table of servers.
    #[must_use]
    pub fn server_name(&self, index: u16) -> &str {
        self.server(index)
            .map_or(DEFAULT_SERVER, |server| &server.name)
    }

    /// The mode of an entry in the table of servers.
    #[must_use]
    pub fn mode_of(&self, index: u16) -> Mode {
        self.timed_mode_of(index).0
    }

    /// The mode of an entry in the table of servers, and when it ends, if it does.
    #[must_use]
    pub fn timed_mode_of(&self, index: u16) -> (Mode, Option<ModeEnd>) {
        if self.panic {
            return (Mode::Observe, None);
        }
        let server = self.server(index);
        server
            .and_then(|server| Some((server.mode?, server.mode_end)))
            .unwrap_or((self.mode, self.mode_end))
    }

    /// Whether an entry in the table of servers has a mode of its own.
    #[must_use]
    pub fn has_mode(&self, index: u16) -> bool {
        self.server(index)
            .is_some_and(|server| server.mode.is_some())
    }

    /// Whether a mode is over at `now`.
    #[must_use]
    pub fn has_ended_mode(&self, now: Timestamp) -> bool {
        let ends = self.servers.iter().map(|server| server.mode_end);
        ends.chain([self.mode_end])
            .flatten()
            .any(|end| end.at <= now)
    }

    /// The same with the modes that are in force at `now`.
    #[must_use]
    pub fn at(&self, now: Timestamp) -> Self {
        let settle = |mode: &mut Mode, end: &mut Option<ModeEnd>| {
            if let Some(over) = end.take_if(|end| end.at <= now) {
                *mode = over.then;
            }
        };
        let mut config = self.clone();
        settle(&mut config.mode, &mut config.mode_end);
        for server in &mut config.servers {
            if let Some(mode) = &mut server.mode {
                settle(mode, &mut server.mode_end);
            }
        }
        config
    }

    /// What TLS must be like on an entry in the table of servers.
    #[must_use]
    pub fn tls_of(&self, index: u16) -> TlsPolicy {
        self.server(index)
            .map_or_else(|| self.tls.clone(), |server| self.tls.with(&server.tls))
    }

    /// What is done on an entry in the table of servers about plaintext over the loopback device.
    #[must_use]
    pub fn loopback_of(&self, index: u16) -> Loopback {
        let own = self.server(index).and_then(|server| server.loopback);
        own.unwrap_or(self.loopback)
    }

    /// The entries in the table of servers that have a name.
    pub fn indices(&self) -> impl Iterator<Item = u16> {
        iter::once(0).chain(self.servers.iter().map(|server| server.index))
    }

    /// Gives each server the entry that its name has had before. `names` are those of entries 1 and up, and grows by the new ones; a
    /// name that is no longer used keeps its entry until there is no other left. So the records of listeners and open sessions,
    /// which hold the number, mean the same server whatever the file's order is.
    pub fn keep_indices(&mut self, names: &mut Vec<String>) {
        names.truncate(MAX_NAMED_SERVERS);
        for at in 0..self.servers.len() {
            let Some(name) = self.servers.get(at).map(|server| server.name.clone()) else {
                continue;
            };
            let known = names.iter().position(|known| *known == name);
            let place = known.or_else(|| {
                if names.len() < MAX_NAMED_SERVERS {
                    names.push(name.clone());
                    return Some(names.len() - 1);
                }
                let is_free =
                    |known: &String| self.servers.iter().all(|server| server.name != *known);
                let place = names.iter().position(is_free)?;
                if let Some(free) = names.get_mut(place) {
                    free.clone_from(&name);
                }
                Some(place)
            });
            if let (Some(place), Some(server)) = (place, self.servers.get_mut(at)) {
                server.index = u16::try_from(place + 1).unwrap_or(0);
            }
        }
    }

    fn server(&self, index: u16) -> Option<&ServerConfig> {
        self.servers.iter().find(|server| server.index == index)
    }
}

#[cfg(test)]
mod tests;
