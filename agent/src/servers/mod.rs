//! The servers of this host: which processes, which of their sockets listen, and who is told.
//!
//! Found in procfs, on the host and in containers alike. A socket that begins to listen later is reported by
//! the gate at once ([`Registry`] is then refreshed); what became a server's without listening anew (a socket
//! passed on, a process that has changed its image) is found by the periodic refresh.
//!
//! A listener of MPTCP or SMC is to its server another socket than to the kernel's TCP, which has one of its own below
//! it that no descriptor leads to. So it is covered by its place.

mod discovery;
mod look;
pub mod mapped;
mod place;
mod tables;
mod tag;
pub mod unix;
mod unix_table;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use musttls_common::session::ListenerClass;

use crate::socket::Kind;

pub use discovery::{Finder, ScanError, Search, find, ports_of_init};
pub use place::Namespace;
pub use tag::{NewListener, Tagger};

/// Ports of listeners of a server process that speak neither protocol of logins, unless a `[[server]]`
/// names them: group communication (33061), Galera (4567 group, 4568 IST, 4444 SST). Each with the library that speaks it, without
/// which the port says nothing: an administrator of the server can move X Protocol there.
const OTHER_PROTOCOLS: [(u16, &str, &str); 4] = [
    (33061, "group communication", "group_replication.so"),
    (4567, "Galera replication", "libgalera"),
    (4568, "Galera state transfer", "libgalera"),
    (4444, "Galera state transfer", "libgalera"),
];

/// A server process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Process id, as the agent sees it.
    pub pid: i32,
    /// When it started, in clock ticks after boot: with the pid, its identity.
    pub start_time: u64,
    /// Name of its program file.
    pub program: String,
    /// Its cgroup v2 path.
    pub cgroup: String,
    /// Id of the container it runs in, if its cgroup tells.
    pub container: Option<String>,
    /// Its listening TCP sockets.
    pub listeners: Vec<Listener>,
    /// Its listening Unix sockets.
    pub unix: Vec<UnixListener>,
    /// All its sockets: inode number and descriptor.
    pub sockets: HashMap<u64, i32>,
    /// Its sockets by which bytes can come that no TCP socket has seen: number of the descriptor, and kind.
    pub beside_tcp: Vec<(i32, Kind)>,
    /// Devices of user-space networks that it has open.
    pub devices: Vec<String>,
    /// Why the kinds of its sockets are not known, if they are not.
    pub kinds_unread: Option<String>,
}

impl Server {
    /// When it started, after boot.
    #[must_use]
    pub const fn started(&self) -> Duration {
        // `USER_HZ` is 100 on all architectures of Linux but alpha (`include/asm-generic/param.h`).
        Duration::from_millis(self.start_time.saturating_mul(10))
    }
}

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where it listens.
    pub address: SocketAddr,
    /// Number of its descriptor in the server.
    pub fd: i32,
    /// Its inode number, by which procfs names it.
    pub inode: u64,
    /// Its cookie, once it is tagged.
    pub cookie: Option<u64>,
    /// What it is to the server: TCP, MPTCP or SMC.
    pub kind: Kind,
    /// Its network namespace. Unknown of one of TCP, where it does not matter.
    pub namespace: Namespace,
    /// What it speaks.
    pub protocol: Protocol,
    /// Why it is not covered, if so.
    pub uncovered: Option<String>,
}

/// A listening Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixListener {
    /// Its path, as the server gave it.
    pub path: PathBuf,
    /// Number of its descriptor in the server.
    pub fd: i32,
    /// Its inode number in the socket filesystem.
    pub inode: u64,
}

/// What a listener of a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The classic protocol.
    Classic,
    /// X Protocol.
    X,
    /// One of the two: its greeting tells, and its sessions are judged from there on.
    ByGreeting,
    /// One without logins, by this name.
    Other(&'static str),
}

impl Protocol {
    /// What people call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::X => "X Protocol",
            Self::ByGreeting => "by greeting",
            Self::Other(name) => name,
        }
    }

    /// Whether the gate judges its sessions.
    #[must_use]
    pub const fn is_judged(self) -> bool {
        !matches!(self, Self::Other(_))
    }

    /// What the gate is told.
    #[must_use]
    pub const fn class(self) -> ListenerClass {
        match self {
            Self::Classic => ListenerClass::Classic,
            Self::X => ListenerClass::X,
            Self::ByGreeting => ListenerClass::Pending,
            Self::Other(_) => ListenerClass::Other,
        }
    }

    /// What it is when the configuration names its port as a server's: more than its number told.
    const fn named(self) -> Self {
        match self {
            Self::Classic | Self::ByGreeting | Self::Other(_) => Self::Classic,
            Self::X => Self::ByGreeting,
        }
    }
}

impl Listener {
    /// Whether its sessions are judged.
    #[must_use]
    pub const fn is_covered(&self) -> bool {
        self.protocol.is_judged() && self.uncovered.is_none()
    }
}

/// The servers found last, shared with the refusal thread.
#[derive(Debug, Default)]
pub struct Registry(RwLock<Vec<Arc<Server>>>);

impl Registry {
    /// The processes that own the listener with this cookie. None while the agent has yet to look at the server that has
    /// begun to listen there.
    #[must_use]
    pub fn owners_of(&self, listener_cookie: u64) -> Vec<i32> {
        let servers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let owner = |server: &&Arc<Server>| {
            server
                .listeners
                .iter()
                .any(|listener| listener.cookie == Some(listener_cookie))
        };
        servers
            .iter()
            .filter(owner)
            .map(|server| server.pid)
            .collect()
    }

    /// The processes of all servers.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let servers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        servers.iter().map(|server| server.pid).collect()
    }

    /// The server that owns the listener with this cookie.
    #[must_use]
    pub fn owner(&self, listener_cookie: u64) -> Option<Arc<Server>> {
        let servers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        servers
            .iter()
            .find(|server| {
                server
                    .listeners
                    .iter()
                    .any(|listener| listener.cookie == Some(listener_cookie))
            })
            .cloned()
    }

    /// The server that owns the listening Unix socket with this inode number, and the socket's path.
    #[must_use]
    pub fn unix_owner(&self, inode: u64) -> Option<(Arc<Server>, PathBuf)> {
        let servers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        servers.iter().find_map(|server| {
            let listener = server
                .unix
                .iter()
                .find(|listener| listener.inode == inode)?;
            Some((server.clone(), listener.path.clone()))
        })
    }

    /// Whether process `pid` is a server.
    #[must_use]
    pub fn is_server(&self, pid: i32) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|server| server.pid == pid)
    }

    /// All servers.
    #[must_use]
    pub fn servers(&self) -> Vec<Arc<Server>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Replaces what was found before. Returns whether servers or listeners came or went.
    pub fn replace(&self, servers: Vec<Server>) -> bool {
        let servers: Vec<Arc<Server>> = servers.into_iter().map(Arc::new).collect();
        let identity = |servers: &[Arc<Server>]| -> HashSet<(i32, u64, Vec<u64>)> {
            servers
                .iter()
                .map(|server| {
                    let inodes = server
                        .listeners
                        .iter()
                        .map(|listener| listener.inode)
                        .collect();
                    (server.pid, server.start_time, inodes)
                })
                .collect()
        };
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let changed = identity(&known) != identity(&servers);
        *known = servers;
        changed
    }
}
