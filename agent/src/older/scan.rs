//! Going over servers' sockets for sessions that the gate does not know, or has let through in observe mode.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use musttls_common::session::SocketRecord;
use musttls_common::verdict::Mode;

use super::session::{Owner, Session, endpoints};
use crate::clock;
use crate::config::Config;
use crate::datapath::{Known, Listeners};
use crate::servers::Server;
use crate::socket::{Kind, Process};

/// When a server is gone over, counted from when a listener of it was first seen. Its descriptors were read before the
/// listener got its record, and a session may wait to be accepted: it has no descriptor until then.
const ROUNDS: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(500),
    Duration::from_secs(5),
];
/// How long after that once more, if there were too many sessions and there is room now.
const AGAIN: Duration = Duration::from_mins(1);

/// A server that is gone over.
struct Looked {
    since: Instant,
    last: Instant,
    rounds: usize,
    /// Sessions that were not followed, because there are too many.
    beyond: usize,
    /// Its judged listeners, by cookie.
    listeners: Vec<u64>,
}

impl Looked {
    fn new(listeners: Vec<u64>) -> Self {
        Self {
            since: Instant::now(),
            last: Instant::now(),
            rounds: 0,
            beyond: 0,
            listeners,
        }
    }

    fn is_due(&self, has_room: bool) -> bool {
        match ROUNDS.get(self.rounds) {
            Some(due) => self.since.elapsed() >= *due,
            None => self.beyond > 0 && has_room && self.last.elapsed() >= AGAIN,
        }
    }
}

/// Sockets of a server that wait to be looked at.
pub(super) struct Scan {
    server: Arc<Server>,
    process: Process,
    descriptors: Vec<i32>,
    beyond: usize,
    failed: usize,
    /// Why the first one could not be followed.
    error: Option<anyhow::Error>,
}

/// The servers that are gone over.
#[derive(Default)]
pub(super) struct Scanner {
    looked: HashMap<(i32, u64), Looked>,
    scans: VecDeque<Scan>,
}

/// What a socket turned out to be.
pub(super) enum Found {
    /// A session older than the gate or its enforcement, with its cookie.
    Session(u64, Session),
    /// Anything else, or one that cannot be followed.
    Other,
}

impl Scanner {
    /// Has servers gone over whose listeners are newly covered.
    pub(super) fn look(&mut self, servers: &[Arc<Server>], has_room: bool) {
        self.looked.retain(|(pid, start), _| {
            servers
                .iter()
                .any(|server| (server.pid, server.start_time) == (*pid, *start))
        });
        for server in servers {
            let mut listeners: Vec<u64> = server
                .listeners
                .iter()
                .filter(|listener| listener.is_covered())
                .filter_map(|listener| listener.cookie)
                .collect();
            listeners.sort_unstable();
            let looked = self
                .looked
                .entry((server.pid, server.start_time))
                .or_insert_with(|| Looked::new(listeners.clone()));
            if looked.listeners != listeners {
                *looked = Looked::new(listeners);
            }
            let waits = self.scans.iter().any(|scan| scan.server.pid == server.pid);
            if !looked.is_due(has_room) || waits || looked.listeners.is_empty() {
                continue;
            }
            // A server that is gone has no sessions.
            let Ok(process) = Process::open(server.pid) else {
                continue;
            };
            looked.rounds += 1;
            looked.last = Instant::now();
            looked.beyond = 0;
            self.scans.push_back(Scan {
                server: server.clone(),
                process,
                descriptors: server.sockets.values().copied().collect(),
                beyond: 0,
                failed: 0,
                error: None,
            });
        }
    }

    /// Has all servers gone over once more, because some of them are in enforce mode now. A login that the policy before has
    /// let through may still be on its way.
    pub(super) fn look_again(&mut self) {
        for looked in self.looked.values_mut() {
            *looked = Looked::new(std::mem::take(&mut looked.listeners));
        }
    }

    /// Whether sockets wait to be looked at.
    pub(super) fn is_scanning(&self) -> bool {
        !self.scans.is_empty()
    }

    /// Whether a server is to be gone over once more, as all are when they are new.
    pub(super) fn is_looking(&self) -> bool {
        let has_rounds =
            |looked: &Looked| !looked.listeners.is_empty() && looked.rounds < ROUNDS.len();
        self.is_scanning() || self.looked.values().any(has_rounds)
    }

    /// How many sessions are not followed.
    pub(super) fn beyond(&self) -> usize {
        self.looked.values().map(|looked| looked.beyond).sum()
    }

    /// The next descriptor to look at, and whose it is.
    pub(super) fn next(&mut self) -> Option<(&mut Scan, i32)> {
        while self.scans.front()?.descriptors.is_empty() {
            let done = self.scans.pop_front()?;
            done.warn();
            let key = (done.server.pid, done.server.start_time);
            if let Some(looked) = self.looked.get_mut(&key) {
                looked.beyond = done.beyond;
            }
        }
        let scan = self.scans.front_mut()?;
        let fd = scan.descriptors.pop()?;
        Some((scan, fd))
    }
}

impl Scan {
    /// Looks at a descriptor. A session that the gate does not know gets its record, if there is room for it.
    pub(super) fn look_at(
        &mut self,
        fd: i32,
        maps: &mut Listeners,
        config: &Config,
        has_room: bool,
    ) -> Found {
        self.examine(fd, maps, config, has_room)
            .unwrap_or_else(|error| {
                self.failed += 1;
                self.error.get_or_insert(error);
                Found::Other
            })
    }

    fn examine(
        &mut self,
        fd: i32,
        maps: &mut Listeners,
        config: &Config,
        has_room: bool,
    ) -> Result<Found> {
        // Closed since, or no socket any more.
        let Ok(socket) = self.process.duplicate(fd) else {
            return Ok(Found::Other);
        };
        let Ok(Some(connection)) = socket.connection() else {
            return Ok(Found::Other);
        };
        let port = connection.local.port();
        let listener = self.server.listeners.iter().find(|listener| {
            listener.kind == Kind::Tcp && listener.is_covered() && listener.address.port() == port
        });
        // Others are not the server's clients: it connects out itself, to its replication source for example.
        let Some((listener, listener_cookie)) =
            listener.and_then(|listener| Some((listener, listener.cookie?)))
        else {
            return Ok(Found::Other);
        };
        let cookie = socket.cookie().context("SO_COOKIE")?;
        let ends = endpoints(connection.peer, connection.local, config.server_index(port));
        let found = SocketRecord::found(cookie, listener_cookie, ends, listener.protocol.class());
        let record = match maps.session(&socket)? {
            Known::Record(record) if record.older.is_older() => *record,
            Known::Record(record)
                if record.was_let_through() && config.mode_of(ends.server) == Mode::Enforce =>
            {
                if !has_room {
                    self.beyond += 1;
                    return Ok(Found::Other);
                }
                let record = record.let_through(ends.server);
                maps.rewrite(&socket, &record)?;
                record
            }
            Known::Record(_) => return Ok(Found::Other),
            Known::Elsewhere => {
                // That gate will go, and its records with it: who looks then must not take the session for an older one.
                maps.found(&socket, &found.judged_elsewhere())?;
                return Ok(Found::Other);
            }
            Known::No if !has_room => {
                self.beyond += 1;
                return Ok(Found::Other);
            }
            Known::No if maps.found(&socket, &found)? => found,
            // Judged since.
            Known::No => return Ok(Found::Other),
        };
        let owner = Owner {
            pid: self.server.pid,
            program: self.server.program.clone(),
            age: clock::boottime().saturating_sub(self.server.started()),
            fd,
        };
        let mut session = Session::new(owner, &connection, &record);
        // A former agent may have kept what this one's policy refuses.
        session.settle(&socket, maps, config, clock::wall())?;
        Ok(Found::Session(cookie, session))
    }

    /// Says what could not be looked at.
    fn warn(&self) {
        if let Some(error) = &self.error {
            tracing::warn!(
                pid = self.server.pid,
                sessions = self.failed,
                error = format!("{error:#}"),
                help = "if memory for socket options is short, raise net.core.optmem_max",
                "sessions that may be older than the gate cannot be followed"
            );
        }
    }
}
