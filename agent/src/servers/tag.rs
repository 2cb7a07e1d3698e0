//! Marks the listening sockets of servers, so that the gate judges their sessions.

use std::collections::{HashMap, HashSet};
use std::io;

use anyhow::Context as _;
use musttls_common::session::{Listener as Tag, ListenerClass};

use super::{Listener, Server};
use crate::config::Config;
use crate::datapath::Listeners;
use crate::error;
use crate::socket::{Kind, Process, Socket};

/// Tags listeners, and remembers which.
pub struct Tagger {
    maps: Listeners,
    /// Whether the kernel reports Unix sessions.
    unix_probe: bool,
    /// By inode: the tag, and the socket's cookie.
    tagged: HashMap<u64, (Tag, u64)>,
    unix: HashSet<u64>,
    /// Ports covered in place of sockets.
    ports: HashMap<u16, Tag>,
}

impl Tagger {
    /// A tagger that has tagged nothing yet.
    #[must_use]
    pub fn new(maps: Listeners, unix_probe: bool) -> Self {
        Self {
            maps,
            unix_probe,
            tagged: HashMap::new(),
            unix: HashSet::new(),
            ports: HashMap::new(),
        }
    }

    /// Tags the sockets of `servers` that are not yet, and notes in them what was done.
    pub fn tag(&mut self, servers: &mut [Server], config: &Config) {
        let mut seen = HashSet::new();
        let mut ports = HashSet::new();
        for server in servers {
            let process = Process::open(server.pid);
            server.listeners.retain_mut(|listener| {
                seen.insert(listener.inode);
                let port = listener.address.port();
                let index = config.server_index(port);
                if config.names_port(port) {
                    listener.protocol = listener.protocol.named();
                }
                let tag = Tag::named(index, listener.protocol.class());
                if listener.kind != Kind::Tcp {
                    ports.insert(port);
                    self.by_port(listener, tag);
                    return true;
                }
                if let Some(&(known, cookie)) = self.tagged.get(&listener.inode)
                    && known == tag
                {
                    listener.cookie = Some(cookie);
                    return true;
                }
                match self.tag_listener(&process, listener, tag) {
                    Ok(cookie) => {
                        self.tagged.insert(listener.inode, (tag, cookie));
                        listener.cookie = Some(cookie);
                    }
                    // It is the server's no longer, and says nothing of its port.
                    Err(error) if is_gone(&error) => return false,
                    Err(error) => {
                        ports.insert(port);
                        self.untouched(listener, tag, &error);
                    }
                }
                true
            });
            for listener in &server.unix {
                seen.insert(listener.inode);
                if self.unix_probe && !self.unix.contains(&listener.inode) {
                    match self.tag_unix(&process, listener.fd, listener.inode) {
                        Ok(()) => {
                            self.unix.insert(listener.inode);
                        }
                        Err(error) => tracing::warn!(
                            path = %listener.path.display(),
                            error = format!("{error:#}"),
                            "sessions of this Unix socket are not reported"
                        ),
                    }
                }
            }
        }
        self.tagged.retain(|inode, _| seen.contains(inode));
        self.unix.retain(|inode| seen.contains(inode));
        self.keep_ports(&ports);
    }

    /// Tells the gate what a new listener is that no server has a descriptor of: covered by its port, or no server's. The
    /// caller knows that none can be a server's at a port that is not covered.
    pub fn name(&mut self, cookie: u64, port: u16) -> anyhow::Result<()> {
        let covered = self.ports.get(&port).copied();
        let tag = covered.unwrap_or_else(|| Tag::named(0, ListenerClass::Other));
        self.maps.note(cookie, tag)
    }

    /// What the gate knows of sockets.
    pub const fn maps(&mut self) -> &mut Listeners {
        &mut self.maps
    }

    /// Takes off former gates of another ABI that have nothing left to judge.
    pub fn let_outgoing_go(&mut self) {
        self.maps.let_outgoing_go();
    }

    /// Takes back ports that a former agent has covered and this one has not.
    pub fn forget_ports(&mut self) {
        if let Err(error) = self.maps.untag_outgoing_ports() {
            tracing::warn!(
                error = error::text(&error),
                help = "musttls disarm takes everything off; then start again",
                "a former gate goes on judging at its ports"
            );
        }
        for port in self.maps.ports() {
            if !self.ports.contains_key(&port) {
                self.untag_port(port);
            }
        }
    }

    /// Takes back the ports at which no server listens any more: others may, in any network namespace, and there are 256 places.
    fn keep_ports(&mut self, listening: &HashSet<u16>) {
        let ports = self.ports.keys().copied();
        let left: Vec<u16> = ports.filter(|port| !listening.contains(port)).collect();
        for port in left {
            if self.untag_port(port) {
                self.ports.remove(&port);
                tracing::info!(port, "no server listens there any more: no longer covered");
            }
        }
    }

    fn untag_port(&mut self, port: u16) -> bool {
        let untagged = self.maps.untag_port(port);
        if let Err(error) = &untagged {
            tracing::warn!(
                port,
                error = format!("{error:#}"),
                help = "musttls disarm takes everything off; then start again",
                "a port at which no server listens stays covered"
            );
        }
        untagged.is_ok()
    }

    fn tag_listener(
        &mut self,
        process: &io::Result<Process>,
        listener: &Listener,
        tag: Tag,
    ) -> anyhow::Result<u64> {
        let socket = duplicate(process, listener.fd)?;
        if socket.inode()? != listener.inode {
            // The number is another file's by now.
            return Err(io::Error::from_raw_os_error(libc::EBADF).into());
        }
        let cookie = socket.cookie().context("SO_COOKIE")?;
        self.maps.tag(&socket, cookie, tag)?;
        Ok(cookie)
    }

    fn tag_unix(
        &mut self,
        process: &io::Result<Process>,
        fd: i32,
        inode: u64,
    ) -> anyhow::Result<()> {
        let socket = duplicate(process, fd)?;
        self.maps.tag_unix(&socket, inode)
    }

    /// A socket that may not be touched is covered by its port.
    fn untouched(&mut self, listener: &mut Listener, tag: Tag, error: &anyhow::Error) {
        if self.by_port(listener, tag) {
            tracing::warn!(
                port = listener.address.port(),
                error = format!("{error:#}"),
                "the server's socket may not be touched: covered by its port, in all network namespaces"
            );
        } else if let Some(full) = &listener.uncovered {
            listener.uncovered = Some(format!("{error:#}; {full}"));
        }
    }

    /// Covers a listener by its port, which is less exact: it covers that port in every network namespace. Returns
    /// whether that is new.
    fn by_port(&mut self, listener: &mut Listener, tag: Tag) -> bool {
        let port = listener.address.port();
        if !listener.protocol.is_judged() || self.ports.get(&port) == Some(&tag) {
            return false;
        }
        match self.maps.tag_port(port, tag) {
            Ok(()) => {
                self.ports.insert(port, tag);
                true
            }
            Err(full) => {
                listener.uncovered = Some(format!("{full:#}"));
                false
            }
        }
    }
}

fn duplicate(process: &io::Result<Process>, fd: i32) -> anyhow::Result<Socket> {
    let process = match process {
        Ok(process) => process,
        Err(error) => {
            let error = error
                .raw_os_error()
                .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            return Err(error).context("pidfd_open");
        }
    };
    process
        .duplicate(fd)
        .context("pidfd_getfd (needs CAP_SYS_PTRACE, and kernel.yama.ptrace_scope below 3)")
}

/// Whether an error says that the socket or its process is gone, and nothing of what may be touched.
fn is_gone(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref());
    causes.any(|cause: &io::Error| {
        matches!(
            cause.raw_os_error(),
            Some(libc::EBADF | libc::ESRCH | libc::ENOTSOCK)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    #[test]
    fn what_is_gone_is_told_from_what_may_not_be_touched() {
        let me = i32::try_from(std::process::id()).unwrap();
        let process = Process::open(me);
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().as_raw_fd();
        assert!(is_gone(&duplicate(&process, closed).unwrap_err()));
        // Above any process id (`PID_MAX_LIMIT`).
        let nobody = Process::open(1 << 23);
        assert!(is_gone(&duplicate(&nobody, 0).unwrap_err()));
        let refused = Err(io::Error::from_raw_os_error(libc::EPERM));
        assert!(!is_gone(&duplicate(&refused, 0).unwrap_err()));
    }
}
