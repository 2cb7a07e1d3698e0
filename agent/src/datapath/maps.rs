//! The gate's maps, each as what is done with it.

use std::os::fd::AsRawFd;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData, PerCpuArray, SkStorage};
use musttls_common::event::Event;
use musttls_common::session::{Listener, SocketRecord};

/// Counters, by `musttls_common::counter`.
pub struct Counters(pub(super) PerCpuArray<MapData, u64>);

impl Counters {
    /// All counters, summed over the CPUs.
    #[must_use]
    pub fn totals(&self) -> Vec<u64> {
        self.0
            .iter()
            .map(|values| values.map_or(0, |values| values.iter().sum()))
            .collect()
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

/// What the gate knows of listeners.
pub struct Listeners {
    pub(super) sockets: SkStorage<MapData, SocketRecord>,
    pub(super) unix: SkStorage<MapData, u64>,
    pub(super) by_cookie: HashMap<MapData, u64, Listener>,
    pub(super) by_port: HashMap<MapData, u32, Listener>,
}

impl Listeners {
    /// Marks a listening TCP socket.
    pub fn tag(&mut self, socket: &impl AsRawFd, cookie: u64, listener: Listener) -> Result<()> {
        // First what the gate reads for sessions that are already on their way, then the socket itself.
        self.note(cookie, listener)?;
        self.sockets
            .insert(socket, SocketRecord::listener(cookie, listener), 0)
            .context("write map SOCKETS (socket storage)")
    }

    /// Tells what a listener is that was reported by its cookie.
    pub fn note(&mut self, cookie: u64, listener: Listener) -> Result<()> {
        self.by_cookie
            .insert(cookie, listener, 0)
            .context("write map LISTENERS")
    }

    /// Marks all listeners at a port, in all network namespaces.
    pub fn tag_port(&mut self, port: u16, listener: Listener) -> Result<()> {
        self.by_port
            .insert(u32::from(port), listener, 0)
            .context("write map PORTS")
    }

    /// Marks a listening Unix socket, by its inode number.
    pub fn tag_unix(&mut self, socket: &impl AsRawFd, inode: u64) -> Result<()> {
        self.unix
            .insert(socket, inode, 0)
            .context("write map UNIX_LISTENERS")
    }
}
