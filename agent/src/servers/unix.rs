//! Sessions over Unix sockets where the kernel does not report them: found by polling.
//!
//! The server's own descriptors are looked at, not `/proc/net/unix`: its end of a session belongs to the network
//! namespace of the client. What is lost: sessions that begin and end between two looks.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use procfs::process::Process as ProcProcess;

use super::Server;
use crate::socket::Process;

/// A session over a Unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSession {
    /// The server's process.
    pub server_pid: i32,
    /// Path of the socket.
    pub path: Option<PathBuf>,
    /// The client's process.
    pub pid: i32,
    /// The client's effective user id.
    pub uid: u32,
    /// Name of the client's program, if it is still there.
    pub program: Option<String>,
}

/// Remembers which sockets were seen.
#[derive(Debug, Default)]
pub struct Poller {
    seen: HashSet<u64>,
}

impl Poller {
    /// Sessions that have begun since the last look.
    pub fn look(&mut self, servers: &[Arc<Server>]) -> Vec<UnixSession> {
        let sessions = servers
            .iter()
            .flat_map(|server| self.look_at(server))
            .collect();
        self.seen = servers
            .iter()
            .flat_map(|server| server.sockets.keys().copied())
            .collect();
        sessions
    }

    fn look_at(&self, server: &Server) -> Vec<UnixSession> {
        let fresh = server
            .sockets
            .iter()
            .filter(|(inode, _)| !self.seen.contains(inode));
        let mut fresh = fresh.map(|(_, &fd)| fd).peekable();
        // A server that is gone has no sessions.
        let process = fresh.peek().and_then(|_| Process::open(server.pid).ok());
        let Some(process) = process else {
            return Vec::new();
        };
        fresh
            .filter_map(|fd| session(server, &process, fd))
            .collect()
    }
}

/// What descriptor `fd` of a server is, if it is its end of a session over one of its Unix sockets.
fn session(server: &Server, process: &Process, fd: i32) -> Option<UnixSession> {
    let socket = process.duplicate(fd).ok()?;
    // The end that accepted has the name of the socket that listens.
    let path = socket.unix_path()?;
    let listens = server.unix.iter().any(|listener| listener.fd == fd);
    let accepted = server.unix.iter().any(|listener| listener.path == path);
    if listens || !accepted {
        return None;
    }
    let peer = socket.peer_credentials().ok()?;
    let pid = peer.pid.as_raw_nonzero().get();
    Some(UnixSession {
        server_pid: server.pid,
        path: Some(path),
        pid,
        uid: peer.uid.as_raw(),
        program: program(pid),
    })
}

/// Name of a process's program, if it is still there.
#[must_use]
pub fn program(pid: i32) -> Option<String> {
    let process = ProcProcess::new(pid).ok()?;
    let exe = process.exe().ok()?;
    Some(exe.file_name()?.to_str()?.to_owned())
}
