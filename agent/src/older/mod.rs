//! Sessions older than the gate, or than the enforcement of its policy: found, listed, and ended.
//!
//! A session that was established before its listener had a record has none either. Each server's sockets are gone over
//! when a listener of it is covered, a few at a time, and those sessions get a record, from which on the gate listens to
//! them ([`musttls_common::older`]). What it has learned stands in that record, which is looked up here. When a server comes
//! to be in enforce mode, its sessions that have logged in in plaintext before are found in the same way, and are the same
//! from then on.

mod scan;
mod session;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use jiff::Timestamp;
use musttls_common::mysql::FLAGS_HIGH_PROTOCOL_41;
use musttls_common::older::Spoken;
use musttls_common::session::{ListenerClass, Phase, SocketRecord};

pub use self::session::{Session, State};

use self::scan::{Found, Scanner};
use crate::clock;
use crate::config::Config;
use crate::datapath::{Known, Listeners};
use crate::refusal::destroy::destroy;
use crate::refusal::packet;
use crate::servers::Server;
use crate::socket::{Process, Socket};

/// Most sessions that are followed: 0.3 KiB each here, and as much in the kernel.
const MAX_SESSIONS: usize = 16_384;
/// Sockets that are looked at in one step: some 0.5 ms.
const STEP: usize = 128;

/// How many sessions there are, by what they speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// TLS.
    pub tls: usize,
    /// In the clear.
    pub plaintext: usize,
    /// Not known.
    pub unknown: usize,
    /// Not followed, because there are too many.
    pub beyond: usize,
}

/// How the refusal of a session went.
#[derive(Debug)]
pub enum Ending {
    /// Its client was told, and both streams have been ended.
    Told,
    /// Both streams have been ended; the client could not be told.
    Ended,
    /// It was reset, because its socket could not be reached.
    Destroyed,
    /// It had ended already.
    Gone,
}

/// The sessions that were found.
#[derive(Default)]
pub struct Sessions {
    /// By cookie.
    open: BTreeMap<u64, Session>,
    scanner: Scanner,
    /// The session that was looked at last.
    cursor: u64,
    /// How many are to be looked at because another policy has come into force.
    unsettled: usize,
    /// What was said of them last.
    told: Counts,
}

impl Sessions {
    /// Has servers gone over whose listeners are newly covered.
    pub fn look(&mut self, servers: &[Arc<Server>]) {
        self.scanner.look(servers, self.open.len() < MAX_SESSIONS);
    }

    /// Has the gate judge all of them by a policy that has come into force.
    pub fn judge_again(&mut self) {
        self.unsettled = self.open.len();
    }

    /// Has sessions found that were let through until now, because servers are in enforce mode from now on.
    pub fn enforced(&mut self, servers: &[Arc<Server>]) {
        self.scanner.look_again();
        self.look(servers);
    }

    /// One that is open.
    #[must_use]
    pub fn get(&self, cookie: u64) -> Option<&Session> {
        self.open.get(&cookie)
    }

    /// Whether there is something to look at.
    #[must_use]
    pub fn is_scanning(&self) -> bool {
        self.unsettled > 0 || self.scanner.is_scanning()
    }

    /// Whether a server is to be gone over once more.
    #[must_use]
    pub fn is_looking(&self) -> bool {
        self.scanner.is_looking()
    }

    /// Looks at some of the sockets that wait. Returns the sessions of which a command is held already.
    pub fn step(&mut self, maps: &mut Listeners, config: &Config) -> Vec<u64> {
        let unsettled = self.unsettled.min(STEP);
        self.unsettled -= unsettled;
        let mut held = self.check(unsettled, maps, config);
        for _ in unsettled..STEP {
            let Some((scan, fd)) = self.scanner.next() else {
                break;
            };
            let has_room = self.open.len() < MAX_SESSIONS;
            let Found::Session(cookie, session) = scan.look_at(fd, maps, config, has_room) else {
                continue;
            };
            if session.state == State::Held {
                held.push(cookie);
            }
            self.open.entry(cookie).or_insert(session);
        }
        held
    }

    /// Finds out what has become of up to `most` sessions, and has the gate listen again to those that the policy asks for.
    /// Returns those of which a command is held.
    pub fn check(&mut self, most: usize, maps: &mut Listeners, config: &Config) -> Vec<u64> {
        let mut held = Vec::new();
        let now = clock::wall();
        let mut process: Option<(i32, io::Result<Process>)> = None;
        for _ in 0..most.min(self.open.len()) {
            let next = self.open.range_mut(self.cursor + 1..).next();
            let found = match next {
                Some(next) => Some(next),
                None => self.open.iter_mut().next(),
            };
            let Some((&cookie, session)) = found else {
                break;
            };
            self.cursor = cookie;
            let pid = session.server_pid;
            let (_, process) = match process.take() {
                Some(same) if same.0 == pid => process.insert(same),
                _ => process.insert((pid, Process::open(pid))),
            };
            let settled = match process {
                Ok(process) => session.socket_of(process, cookie),
                Err(error) if is_gone(error) => Ok(None),
                Err(error) => Err(anyhow!("pidfd_open: {error}")),
            }
            .and_then(|socket| match socket {
                Some(socket) => session.settle(&socket, maps, config, now).map(|()| true),
                None => Ok(false),
            });
            match settled {
                Ok(true) if session.state == State::Held => held.push(cookie),
                Ok(true) => {}
                Ok(false) => {
                    self.open.remove(&cookie);
                }
                // It stays: what cannot be looked at now may be later.
                Err(error) => {
                    tracing::debug!(cookie, error = format!("{error:#}"), "older session");
                }
            }
        }
        held
    }

    /// Refuses a session of which a command is held: error 3159 as the answer to it, and the end of both streams. The
    /// server sees a client that has gone. None if it is not among those that were found. After an error it still is,
    /// and its command still held.
    pub fn refuse(
        &mut self,
        cookie: u64,
        maps: &mut Listeners,
    ) -> Option<Result<(Session, Ending)>> {
        let session = self.open.get(&cookie)?;
        let ending = match session.socket(cookie) {
            Ok(Some(socket)) => session.refuse(&socket, maps),
            Ok(None) => Ok(Ending::Gone),
            Err(error) => destroy(&session.endpoints(0), cookie)
                .map(|()| Ending::Destroyed)
                .map_err(|destroy| error.context(format!("SOCK_DESTROY: {destroy}"))),
        };
        match ending {
            Ok(ending) => {
                let session = self.open.remove(&cookie)?;
                Some(Ok((session, ending)))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Ends a session that is in the clear for certain, and that no exception allows: both streams.
    pub fn kill(&mut self, cookie: u64) -> Result<()> {
        let gone = || anyhow!("the session has ended");
        let session = self.open.get(&cookie).ok_or_else(gone)?;
        let socket = session.socket(cookie)?.ok_or_else(gone)?;
        socket.end().context("shutdown")?;
        self.open.remove(&cookie);
        Ok(())
    }

    /// How many there are, if all sockets have been looked at and this has not been said.
    pub fn news(&mut self) -> Option<Counts> {
        let counts = self.counts();
        if self.is_scanning() || counts == self.told {
            return None;
        }
        self.told = counts;
        Some(counts)
    }

    /// All that are open, with their cookies.
    pub fn all(&self) -> impl Iterator<Item = (u64, &Session)> {
        self.open.iter().map(|(&cookie, session)| (cookie, session))
    }

    /// How many there are.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |spoken| {
            self.open
                .values()
                .filter(|session| session.spoken == spoken)
                .count()
        };
        Counts {
            tls: count(Spoken::Tls),
            plaintext: count(Spoken::Plaintext),
            unknown: count(Spoken::Unknown),
            beyond: self.scanner.beyond(),
        }
    }
}

impl Session {
    /// Its socket, if it is still established.
    fn socket(&self, cookie: u64) -> Result<Option<Socket>> {
        match Process::open(self.server_pid) {
            Ok(process) => self.socket_of(&process, cookie),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error).context("pidfd_open"),
        }
    }

    fn socket_of(&self, process: &Process, cookie: u64) -> Result<Option<Socket>> {
        match process.duplicate_if(self.fd, cookie) {
            Ok(Some(socket)) => Ok(socket.connection()?.map(|_| socket)),
            Ok(None) => Ok(None),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error).context("pidfd_getfd"),
        }
    }

    /// Takes what the gate has learned, and has it listen again if the policy asks for that.
    fn settle(
        &mut self,
        socket: &Socket,
        maps: &mut Listeners,
        config: &Config,
        now: Timestamp,
    ) -> Result<()> {
        let Known::Record(record) = maps.session(socket)? else {
            return Ok(());
        };
        self.take(&record);
        let settings = self.settings(config);
        let is_due =
            record.apart == 0 && self.spoken == Spoken::Plaintext && self.is_due(config, now);
        if self.state == State::Open && (is_due || record.endpoints.server != settings) {
            let mut next = if is_due { record.again() } else { *record };
            next.endpoints.server = settings;
            maps.rewrite(socket, &next)?;
        }
        Ok(())
    }

    fn refuse(&self, socket: &Socket, maps: &mut Listeners) -> Result<Ending> {
        let error = if self.class == ListenerClass::X {
            packet::x_refusal()
        } else {
            // By its program's name, since nobody has seen the greeting. Before 10.5 MariaDB's is mysqld, too: then the
            // error has MySQL's SQLSTATE.
            let is_mariadb = self.program.starts_with("mariadb");
            // A command has sequence id 0. The server's kernel holds the socket's stream at the answer before.
            packet::refusal(0, FLAGS_HIGH_PROTOCOL_41, is_mariadb)
        };
        let is_told = socket.send_now(&error).is_ok();
        socket.end().context("shutdown")?;
        // What still comes meets a socket that does not read: its kernel answers with a reset.
        if let Known::Record(record) = maps.session(socket)? {
            let passes = SocketRecord {
                phase: Phase::Foreign as u8,
                apart: 0,
                ..*record
            };
            maps.rewrite(socket, &passes)?;
        }
        Ok(if is_told { Ending::Told } else { Ending::Ended })
    }
}

/// Whether the process or the descriptor is no longer there.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::EBADF))
}
