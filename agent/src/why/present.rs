//! What the present policy does about a session, and which rule decides.

use std::fmt;

use jiff::Timestamp;
use musttls_common::verdict::Reason;
use serde::Serialize;

use super::near::{Login, Near, allows, end, near};
use super::words;
use crate::cipher;
use crate::config::{Config, Exception, Expiry, LOOPBACK};
use crate::history::{Class, Client};
use crate::simulate::{Fate, Judge, known_user};

/// Most exceptions that come near that the text lists.
const LISTED: usize = 10;

/// What a policy does on servers that it treats alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// The names of the servers' settings.
    pub servers: Vec<String>,
    /// `observe` or `enforce`.
    pub mode: &'static str,
    /// `passes`, `excepted`, `undecided` (excepted or refused, by its process on this host), `observed` or `refused`.
    pub fate: &'static str,
    /// The exception that allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exception: Option<String>,
    /// Why, as a sentence.
    pub why: String,
    /// Exceptions that come near.
    pub near: Vec<Near>,
}

impl Decision {
    /// Whether it is refused, or may be.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self.fate, "refused" | "undecided")
    }

    /// What `config` does about `client` on the entry `index` of its servers.
    #[must_use]
    pub fn of(config: &Config, index: u16, client: &Client, now: Timestamp) -> Self {
        let judge = Judge::new(config, now);
        let server = config.server_name(index);
        let login = Login {
            address: judge.address(client),
            user: known_user(client),
            server,
            program: client.program.as_deref(),
            last_rule: client.rule.as_deref(),
        };
        let config = config.at(now);
        let fate = judge.fate_on(index, client);
        let by = |name: &str| {
            let by = config.exceptions.iter().find(|it| it.name == name);
            by.map(|by| excepted(by, &login)).unwrap_or_default()
        };
        let (word, exception, why) = match fate {
            Fate::Passes => ("passes", None, passes(client)),
            Fate::Excepted(LOOPBACK) => ("excepted", Some(LOOPBACK), over_loopback()),
            Fate::Excepted(name) => ("excepted", Some(name), by(name)),
            Fate::Undecided(name, _) => {
                let why = format!("{}; which process it is, only the agent can tell", by(name));
                ("undecided", Some(name), why)
            }
            Fate::Observed(reason) => ("observed", None, observed(&config, index, reason)),
            Fate::Refused(reason) => ("refused", None, refused(&config, index, reason)),
        };
        let can_be_excepted = match client.class {
            Class::Plaintext | Class::Older | Class::Tls => {
                matches!(
                    fate,
                    Fate::Observed(_) | Fate::Refused(_) | Fate::Undecided(..)
                )
            }
            Class::NoException | Class::TlsFailed | Class::Unix => false,
        };
        Self {
            servers: vec![server.to_owned()],
            mode: config.mode_of(index).as_str(),
            fate: word,
            exception: exception.map(str::to_owned),
            why,
            near: if can_be_excepted {
                near(&config.exceptions, &login, now)
            } else {
                Vec::new()
            },
        }
    }

    /// `decisions`, those on servers that are treated alike as one.
    #[must_use]
    pub fn alike(decisions: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut distinct: Vec<Self> = Vec::new();
        for decision in decisions {
            let is_same = |known: &&mut Self| {
                Self {
                    servers: decision.servers.clone(),
                    ..(**known).clone()
                } == decision
            };
            match distinct.iter_mut().find(is_same) {
                Some(known) => known.servers.extend(decision.servers),
                None => distinct.push(decision),
            }
        }
        distinct
    }
}

fn passes(client: &Client) -> String {
    match client.class {
        Class::Unix => "a Unix socket is secure".to_owned(),
        Class::Tls if client.tls == 0 => "it is TLS".to_owned(),
        Class::Tls => format!("TLS {} is good enough", cipher::version_name(client.tls)),
        Class::TlsFailed => "the TLS handshake failed: no policy was asked".to_owned(),
        Class::Older => {
            "it is older than the gate, and existing = \"keep\" lets such sessions go on".to_owned()
        }
        Class::Plaintext | Class::NoException => "no rule is against it".to_owned(),
    }
}

fn over_loopback() -> String {
    "loopback = \"allow\" lets in what comes over the loopback device".to_owned()
}

fn excepted(by: &Exception, login: &Login<'_>) -> String {
    let until = match by.expires {
        Expiry::Never => "without an end".to_owned(),
        Expiry::At(at) => format!("it ends {}", end(at)),
    };
    format!(
        "exception {} allows {}; {until}; {} answers for it: {}",
        by.name,
        allows(by, login.address),
        by.owner,
        by.reason
    )
}

fn observed(config: &Config, index: u16, reason: Reason) -> String {
    let mode = if config.panic {
        "after `musttls panic` all servers are in observe mode".to_owned()
    } else {
        in_mode(config, index)
    };
    format!(
        "{mode}; in enforce mode it would be refused: {}",
        words::reason(reason.as_str())
    )
}

fn refused(config: &Config, index: u16, reason: Reason) -> String {
    format!(
        "{}, and {}",
        in_mode(config, index),
        words::reason(reason.as_str())
    )
}

fn in_mode(config: &Config, index: u16) -> String {
    let (mode, over) = config.timed_mode_of(index);
    let name = config.server_name(index);
    let server = if config.has_mode(index) {
        format!("server {name} is in {} mode", mode.as_str())
    } else {
        format!("the mode is {}", mode.as_str())
    };
    match over {
        Some(over) => format!("{server} until {}, then {}", over.at, over.then.as_str()),
        None => server,
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self.fate {
            "refused" => "refused",
            _ => "passes",
        };
        writeln!(f, "{word}: {}", self.why)?;
        for near in self.near.iter().take(LISTED) {
            writeln!(f, "    {}", near.why)?;
        }
        match self.near.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => writeln!(f, "    and {more} more that come near: --json lists them"),
        }
    }
}
