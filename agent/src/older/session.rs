//! A session older than the gate or its enforcement, as the agent knows it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use musttls_common::older::Spoken;
use musttls_common::session::{Endpoints, ListenerClass, Phase, SocketRecord};
use musttls_common::verdict::Mode;

use crate::address;
use crate::audit::record::OlderThan;
use crate::config::{Config, Exception, Existing, LOOPBACK, Loopback};
use crate::socket::Connection;

/// A session older than the gate or its enforcement.
#[derive(Clone, Debug)]
pub struct Session {
    /// The server's process.
    pub server_pid: i32,
    /// Its program.
    pub program: String,
    /// The client.
    pub client: SocketAddr,
    /// Where it has connected to.
    pub server: SocketAddr,
    /// What it speaks.
    pub spoken: Spoken,
    /// Whether that is certain.
    pub is_certain: bool,
    /// What became of it.
    pub state: State,
    /// The listener's cookie.
    pub listener_cookie: u64,
    pub(super) fd: i32,
    pub(super) class: ListenerClass,
    /// The gate let it through in observe mode.
    was_observed: bool,
    /// The exception by which the gate was last asked to judge it.
    excepted: Option<String>,
    found: Instant,
    /// How old it was at least when it was found: so long the client had sent nothing.
    idle: Duration,
    /// The server's process had been started so long before.
    server_age: Duration,
}

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It goes on.
    Open,
    /// A command of it is held, and it is about to be refused.
    Held,
}

/// Whose descriptor a session is.
pub(super) struct Owner {
    pub(super) pid: i32,
    pub(super) program: String,
    pub(super) age: Duration,
    pub(super) fd: i32,
}

impl Session {
    /// One that was found just now.
    pub(super) fn new(owner: Owner, connection: &Connection, record: &SocketRecord) -> Self {
        let mut session = Self {
            server_pid: owner.pid,
            program: owner.program,
            client: canonical(connection.peer),
            server: canonical(connection.local),
            spoken: Spoken::Unknown,
            is_certain: false,
            state: State::Open,
            listener_cookie: record.listener_cookie,
            fd: owner.fd,
            class: ListenerClass::from_u8(record.class),
            was_observed: record.older.was_observed(),
            excepted: None,
            found: Instant::now(),
            idle: connection.idle,
            server_age: owner.age,
        };
        session.take(record);
        session
    }

    /// Takes what the gate has learned.
    pub(super) const fn take(&mut self, record: &SocketRecord) {
        self.spoken = record.older.spoken();
        self.is_certain = record.older.is_certain();
        self.state = match record.phase() {
            Phase::Denied => State::Held,
            Phase::Listener
            | Phase::Plain
            | Phase::Claimed
            | Phase::ExceptedUser
            | Phase::Secure
            | Phase::Excepted
            | Phase::Observed
            | Phase::Foreign
            | Phase::Older => State::Open,
        };
    }

    /// Whether the gate is to judge it anew, if it is in the clear: nothing allows it, or an exception that has not been
    /// recorded yet.
    pub(super) fn is_due(&mut self, config: &Config, now: Timestamp) -> bool {
        if config.existing != Existing::RefusePlaintext
            || config.mode_of(self.settings(config)) != Mode::Enforce
        {
            return false;
        }
        let exception = self.exception(config, now).map(str::to_owned);
        let is_recorded = exception.is_some() && exception == self.excepted;
        self.excepted = exception;
        !is_recorded
    }

    /// The index of its server's settings.
    #[must_use]
    pub fn settings(&self, config: &Config) -> u16 {
        config.server_index(self.server.port())
    }

    /// The name of the exception that allows it to be in the clear at `now`, if one does. Its user is not known: one that names
    /// users or conditions does not apply.
    #[must_use]
    pub fn exception<'c>(&self, config: &'c Config, now: Timestamp) -> Option<&'c str> {
        let server = config.server_name(self.settings(config));
        let matches = |exception: &&Exception| {
            exception.users.is_empty()
                && exception.server.as_deref().is_none_or(|one| one == server)
                && exception.holds(now)
                && !exception.conditions.are_some()
                && exception.is_for(self.client.ip())
        };
        let exception = config.exceptions.iter().find(matches);
        // The gate knows the device, of which the addresses are a sign.
        let is_local = self.client.ip() == self.server.ip() || self.client.ip().is_loopback();
        let loopback = || {
            let is_allowed = config.loopback_of(self.settings(config)) == Loopback::Allow;
            (is_local && is_allowed).then_some(LOOPBACK)
        };
        exception
            .map(|exception| exception.name.as_str())
            .or_else(loopback)
    }

    /// What it is older than.
    #[must_use]
    pub const fn older_than(&self) -> OlderThan {
        if self.was_observed {
            OlderThan::Enforcement
        } else {
            OlderThan::Gate
        }
    }

    /// How old it is at least.
    #[must_use]
    pub fn age_at_least(&self) -> Duration {
        self.idle + self.found.elapsed()
    }

    /// How old it is at most: as old as its server's process.
    #[must_use]
    pub fn age_at_most(&self) -> Duration {
        self.server_age + self.found.elapsed()
    }

    /// Its two ends, as they stand in events, and the index of its server's settings.
    #[must_use]
    pub fn endpoints(&self, settings: u16) -> Endpoints {
        endpoints(self.client, self.server, settings)
    }
}

pub(super) fn endpoints(client: SocketAddr, server: SocketAddr, settings: u16) -> Endpoints {
    Endpoints {
        server: settings,
        ..address::endpoints(client, server)
    }
}

const fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
