//! The gate's maps, each as what is done with it.

use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, SkStorage};
use musttls_common::counter::{self, COUNTERS, Mark};
use musttls_common::event::Event;
use musttls_common::policy::Answer;
use musttls_common::session::{Listener, Place, SocketRecord};

use super::Outgoing;
use crate::clock;

/// Counters, by `musttls_common::counter`.
pub struct Counters(pub(super) PerCpuArray<MapData, u64>);

impl Counters {
    /// The counters, summed over the CPUs: those of the entries of the table of servers from `servers` on, which are not in
    /// use, are not read.
    #[must_use]
    pub fn totals(&self, servers: usize) -> Vec<u64> {
        let mut totals = vec![0; COUNTERS];
        for index in counter::of_servers(servers) {
            let place = usize::try_from(index).ok();
            if let Some(total) = place.and_then(|place| totals.get_mut(place)) {
                let values = self.0.get(&index, 0);
                *total = values.map_or(0, |values| values.iter().sum());
            }
        }
        totals
    }
}

/// What the agent says of the conditions that sessions meet.
pub struct Answers(pub(super) HashMap<MapData, u64, u64>);

impl Answers {
    /// Gives an answer about the session with this cookie, in the place of a former one.
    pub fn give(&mut self, cookie: u64, answer: Answer) -> Result<()> {
        self.0
            .insert(cookie, answer.0, 0)
            .context("write map ANSWERS")
    }
}

/// How far agents have taken notice of the counters.
pub struct Told(pub(super) Array<MapData, Mark>);

impl Told {
    /// Of a gate that nothing has met yet: all that it will count is still to be told.
    pub(super) fn begin(&mut self) -> Result<()> {
        let mark = self.mark()?;
        if mark.boottime_ns != 0 {
            return Ok(());
        }
        self.note(Mark {
            boottime_ns: clock::boottime_ns(),
            ..mark
        })
    }

    /// What was noted last.
    pub fn mark(&self) -> Result<Mark> {
        self.0.get(&0, 0).context("read map TOLD")
    }

    /// Notes that an agent has seen these counters.
    pub fn note(&mut self, mark: Mark) -> Result<()> {
        self.0.set(0, mark, 0).context("write map TOLD")
    }
}

/// Denied sessions that wait for their refusal.
pub struct Held(pub(super) HashMap<MapData, u64, Event>);

impl Held {
    /// All of them.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.0
            .iter()
            .filter_map(Result::ok)
            .map(|(_, event)| event)
            .collect()
    }

    /// Takes one out. The gate does so too, when its socket closes: then there is nothing to take.
    pub fn remove(&mut self, cookie: u64) {
        if let Err(error) = self.0.remove(&cookie) {
            tracing::trace!(%error, cookie, "held session");
        }
    }
}

/// What gates know of a session.
pub enum Known {
    /// Its record.
    Record(Box<SocketRecord>),
    /// It is judged by a gate of another ABI.
    Elsewhere,
    /// Nothing: it is older.
    No,
}

/// `BPF_NOEXIST` (`include/uapi/linux/bpf.h`).
const BPF_NOEXIST: u64 = 1;

/// What the gate knows of listeners and sessions.
pub struct Listeners {
    pub(super) sockets: SkStorage<MapData, SocketRecord>,
    pub(super) unix: SkStorage<MapData, u64>,
    pub(super) by_cookie: HashMap<MapData, u64, Listener>,
    pub(super) by_place: HashMap<MapData, Place, Listener>,
    pub(super) tells_namespaces: bool,
    /// Gates of another ABI that judge beside this one.
    pub(super) outgoing: Vec<Outgoing>,
}

impl Listeners {
    /// Marks a listening TCP socket.
    pub fn tag(&mut self, socket: &impl AsRawFd, cookie: u64, listener: Listener) -> Result<()> {
        // First what the gate reads for sessions that are already on their way, then the socket itself.
        self.note(cookie, listener)?;
        self.sockets
            .insert(socket, SocketRecord::listener(cookie, listener), 0)
            .context("write map SOCKETS (socket storage)")?;
        for outgoing in &self.outgoing {
            outgoing.untag(socket).with_context(|| {
                format!("take a listener from the gate of ABI {}", outgoing.abi)
            })?;
        }
        Ok(())
    }

    /// The record of a session's socket, if it has one: of a gate of another ABI, only that there is one.
    pub fn session(&self, socket: &impl AsRawFd) -> Result<Known> {
        match self.sockets.get(socket, 0) {
            Ok(record) => return Ok(Known::Record(Box::new(record))),
            Err(MapError::KeyNotFound) => {}
            Err(error) => return Err(error).context("read map SOCKETS (socket storage)"),
        }
        for outgoing in &self.outgoing {
            if outgoing.knows(socket)? {
                return Ok(Known::Elsewhere);
            }
        }
        Ok(Known::No)
    }

    /// Gives a session older than the gate its record. Returns whether it had none.
    pub fn found(&mut self, socket: &impl AsRawFd, record: &SocketRecord) -> Result<bool> {
        match self.sockets.insert(socket, record, BPF_NOEXIST) {
            Ok(()) => Ok(true),
            Err(MapError::SyscallError(error))
                if error.io_error.raw_os_error() == Some(libc::EEXIST) =>
            {
                Ok(false)
            }
            Err(error) => Err(error).context("write map SOCKETS (socket storage)"),
        }
    }

    /// Writes the record of a session older than the gate.
    pub fn rewrite(&mut self, socket: &impl AsRawFd, record: &SocketRecord) -> Result<()> {
        self.sockets
            .insert(socket, record, 0)
            .context("write map SOCKETS (socket storage)")
    }

    /// Tells what a listener is that was reported by its cookie.
    pub fn note(&mut self, cookie: u64, listener: Listener) -> Result<()> {
        self.by_cookie
            .insert(cookie, listener, 0)
            .context("write map LISTENERS")
    }

    /// Whether the gate can tell network namespaces.
    #[must_use]
    pub const fn tells_namespaces(&self) -> bool {
        self.tells_namespaces
    }

    /// Marks the listener at a place.
    pub fn tag_place(&mut self, place: Place, listener: Listener) -> Result<()> {
        self.by_place
            .insert(place, listener, 0)
            .context("write map PLACES")
    }

    /// Takes the places from the gates of another ABI: those that are covered here are, and the others no longer.
    pub fn untag_outgoing_places(&self) -> Result<()> {
        self.outgoing.iter().try_for_each(|outgoing| {
            outgoing
                .untag_places()
                .with_context(|| format!("take the places from the gate of ABI {}", outgoing.abi))
        })
    }

    /// Takes off the gates of another ABI that have nothing left to judge; the journal is told.
    pub fn let_outgoing_go(&mut self) {
        self.outgoing.retain(|outgoing| {
            let undecided = outgoing.undecided();
            if undecided > 0 {
                tracing::debug!(abi = outgoing.abi, undecided, "a former gate stays on");
                return true;
            }
            match outgoing.end() {
                Ok(()) => {
                    tracing::info!(abi = outgoing.abi, "a former gate of another ABI is off");
                    false
                }
                Err(error) => {
                    tracing::error!("{}", crate::error::text(&error));
                    true
                }
            }
        });
    }

    /// The places of [`Self::tag_place`].
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        self.by_place.keys().filter_map(Result::ok).collect()
    }

    /// Takes back [`Self::tag_place`].
    pub fn untag_place(&mut self, place: Place) -> Result<()> {
        self.by_place.remove(&place).context("write map PLACES")
    }

    /// Marks a listening Unix socket, by its inode number.
    pub fn tag_unix(&mut self, socket: &impl AsRawFd, inode: u64) -> Result<()> {
        self.unix
            .insert(socket, inode, 0)
            .context("write map UNIX_LISTENERS")
    }
}
