//! `musttls why`: which rule decides about a session, and why.
//!
//! | file | content |
//! |---|---|
//! | `mod` | what is asked about, and the answer as text and JSON |
//! | [`event`] | a record: where it is, what was decided then |
//! | [`present`] | what the present policy does |
//! | [`near`] | exceptions that come near, and which of their conditions are not met |
//! | [`words`] | words of audit records as people say them |

pub mod event;
pub mod near;
pub mod present;
pub mod words;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use ipnet::IpNet;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use self::event::{Event, Then};
use self::present::Decision;
use crate::cli::past::WhyArgs;
use crate::config::{Config, DEFAULT_SERVER, PastDates};
use crate::console::{complain, print_json, print_wrapped};
use crate::error::{Exit, Failed};
use crate::history::Client;
use crate::login::printable;
use crate::simulate::Judge;
use crate::{clock, trail};

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A client.
    Address(IpAddr),
    /// A record.
    Event(Event),
}

impl Target {
    /// Reads an address, also with a port as `musttls events` shows it, or what a record is known by.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self::Address(address.ip().to_canonical()));
        }
        if text.parse::<IpNet>().is_ok() {
            return Err("it is a network; name one of its addresses".to_owned());
        }
        Event::parse(text).map(Self::Event).ok_or_else(|| {
            "it is neither an address nor what a record is known by; `musttls events` shows both: 10.3.0.7, 187"
                .to_owned()
        })
    }
}

/// What is answered.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// The file of the present policy.
    pub policy: String,
    /// The record, as it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<Value>,
    /// What was decided then; absent if the record is not about a session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub then: Option<Then>,
    /// Where the login comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Its user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether that address is a trusted proxy: then exceptions are held against whom its header names.
    pub is_trusted_proxy: bool,
    /// What the present policy does, on servers that it treats alike.
    pub now: Vec<Decision>,
    /// What is asked about, in words.
    #[serde(skip)]
    title: String,
}

/// Answers `args`.
pub fn run(args: &WhyArgs) -> Result<Exit> {
    let now = clock::wall();
    let config = Config::load(&args.config, now, PastDates::Warn)?.config;
    let answer = match &args.target {
        Target::Address(address) => of_address(&config, args, *address, now)?,
        Target::Event(_) if args.user.is_some() || args.server.is_some() || args.port.is_some() => {
            complain("error: a record has its own user, server and port: name it alone");
            return Ok(Exit::Usage);
        }
        Target::Event(event) => of_event(&config, &args.config, event, now)?,
    };
    if args.output.json {
        print_json(&answer)?;
    } else {
        print_wrapped(&answer.to_string())?;
    }
    Ok(if answer.now.iter().any(Decision::is_refused) {
        Exit::Finding
    } else {
        Exit::Ok
    })
}

fn of_address(config: &Config, args: &WhyArgs, address: IpAddr, now: Timestamp) -> Result<Answer> {
    let client = Client {
        peer: Some(address),
        user: args.user.as_deref().map(Arc::from),
        ..Client::in_the_clear()
    };
    let indices = match (&args.server, args.port) {
        (Some(name), _) => vec![index_of(config, name)?],
        (None, Some(port)) => vec![config.server_index(port)],
        // Of the default entry there is nothing, if a server without ports takes all that is not named.
        (None, None) => config
            .indices()
            .filter(|&index| index != 0 || config.unnamed_index() == 0)
            .collect(),
    };
    let decisions = indices
        .into_iter()
        .map(|index| Decision::of(config, index, &client, now));
    Ok(Answer {
        policy: args.config.display().to_string(),
        event: None,
        then: None,
        address: Some(address),
        user: args.user.clone(),
        is_trusted_proxy: Judge::new(config, now).trusts(address),
        now: Decision::alike(decisions),
        title: match &args.user {
            Some(user) => format!(
                "a plaintext login from {address} as user {}",
                printable(user.as_bytes()).0
            ),
            None => format!("a plaintext login from {address}, whoever the user is"),
        },
    })
}

fn index_of(config: &Config, name: &str) -> Result<u16> {
    let found = config
        .indices()
        .find(|&index| config.server_name(index) == name);
    found.ok_or_else(|| {
        let names: Vec<&str> = config.indices().map(|index| config.server_name(index)).collect();
        anyhow!(
            "no server has the name `{}`\n  help: the servers with settings of their own, and {DEFAULT_SERVER} for all others: {}",
            printable(name.as_bytes()).0,
            names.join(", ")
        )
    })
}

fn of_event(config: &Config, path: &Path, event: &Event, now: Timestamp) -> Result<Answer> {
    let audit = trail::file(config)?;
    let (line, flaws) = event::find(audit, event)?;
    for flaw in &flaws {
        complain(&format!("warning: {flaw}"));
    }
    let line = line.ok_or_else(|| {
        if !audit.exists() {
            return trail::missing(audit);
        }
        anyhow!("no record is known by `{event}`").context(Failed::new(
            format!(
                "look through {} and the files it was rotated into",
                audit.display()
            ),
            "`musttls events` shows the numbers of records",
        ))
    })?;
    let told = event::tell(&line)?;
    let decision = told.client.as_ref().map(|client| {
        let index = config.server_index(client.port);
        Decision::of(config, index, client, now)
    });
    let peer = told.client.as_ref().and_then(|client| client.peer);
    Ok(Answer {
        policy: path.display().to_string(),
        event: Some(told.record),
        then: told.then,
        address: peer,
        user: told
            .client
            .as_ref()
            .and_then(|client| client.user.as_deref().map(str::to_owned)),
        is_trusted_proxy: peer.is_some_and(|peer| Judge::new(config, now).trusts(peer)),
        now: decision.into_iter().collect(),
        title: told.title,
    })
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title)?;
        if let Some(then) = &self.then {
            writeln!(f, "  then: {}", then.why)?;
        }
        for decision in &self.now {
            match self.then {
                Some(_) => write!(f, "  now:  {decision}")?,
                None => write!(f, "  on {}: {decision}", decision.servers.join(", "))?,
            }
        }
        if self.is_trusted_proxy {
            writeln!(
                f,
                "  this address is a trusted proxy: exceptions are held against the client that its PROXY protocol header names"
            )?;
        }
        if !self.now.is_empty() {
            writeln!(f, "  by {}, as it would be in force now", self.policy)?;
        }
        if self.now.iter().any(Decision::is_refused) {
            writeln!(
                f,
                "  help: turn on TLS in the client, `musttls clients` says how for its driver; or excuse it for a time: musttls except add"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
