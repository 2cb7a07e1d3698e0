//! Sessions over Unix sockets where the kernel does not report them: found by polling.
//!
//! What is lost: sessions that begin and end between two looks.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use procfs::net::UnixState;
use procfs::process::{FDTarget, Process as ProcProcess};

use super::{Server, discovery};
use crate::refusal::socket::Process;

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

/// Remembers which sessions were seen.
#[derive(Debug, Default)]
pub struct Poller {
    seen: HashSet<u64>,
}

impl Poller {
    /// Sessions that have begun since the last look.
    pub fn look(&mut self, servers: &[Server]) -> Vec<UnixSession> {
        let mut found = Vec::new();
        let mut alive = HashSet::new();
        for server in servers {
            // A server that is gone has no sessions.
            if let Ok(sessions) = self.look_at(server, &mut alive) {
                found.extend(sessions);
            }
        }
        self.seen = alive;
        found
    }

    fn look_at(
        &self,
        server: &Server,
        alive: &mut HashSet<u64>,
    ) -> Result<Vec<UnixSession>, procfs::ProcError> {
        let process = ProcProcess::new(server.pid)?;
        let paths: HashSet<&PathBuf> = server.unix.iter().map(|listener| &listener.path).collect();
        // The server's end of a session has the name of the socket that accepted it.
        let mut fresh = HashMap::new();
        for entry in process.unix()? {
            if entry.state == UnixState::CONNECTED
                && let Some(path) = entry.path
                && paths.contains(&path)
            {
                alive.insert(entry.inode);
                if !self.seen.contains(&entry.inode) {
                    fresh.insert(entry.inode, path);
                }
            }
        }
        if fresh.is_empty() {
            return Ok(Vec::new());
        }
        let handle =
            Process::open(server.pid).map_err(|error| procfs::ProcError::Io(error, None))?;
        let mut sessions = Vec::new();
        for descriptor in process.fd()?.flatten() {
            let FDTarget::Socket(inode) = descriptor.target else {
                continue;
            };
            let Some(path) = fresh.remove(&inode) else {
                continue;
            };
            let peer = handle
                .duplicate(descriptor.fd)
                .and_then(|socket| socket.peer_credentials());
            let Ok(peer) = peer else { continue };
            let pid = peer.pid.as_raw_nonzero().get();
            sessions.push(UnixSession {
                server_pid: server.pid,
                path: Some(path),
                pid,
                uid: peer.uid.as_raw(),
                program: program(pid),
            });
        }
        Ok(sessions)
    }
}

/// Name of a process's program, if it is still there.
#[must_use]
pub fn program(pid: i32) -> Option<String> {
    let process = ProcProcess::new(pid).ok()?;
    let exe = process.exe().ok()?;
    Some(exe.file_name()?.to_str()?.to_owned())
}

/// cgroup v2 path and container id of a process, if it is still there.
#[must_use]
pub fn cgroup(pid: i32) -> Option<(String, Option<String>)> {
    let process = ProcProcess::new(pid).ok()?;
    let cgroup = discovery::cgroup(&process);
    let container = discovery::container(&cgroup);
    Some((cgroup, container))
}
