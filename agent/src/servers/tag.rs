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
        for server in servers {
            let process = Process::open(server.pid);
            for listener in &mut server.listeners {
                seen.insert(listener.inode);
                let port = listener.address.port();
                let index = config.server_index(port);
                if config.names_port(port) {
                    listener.protocol = listener.protocol.named();
                }
                let tag = Tag::named(index, listener.protocol.class());
                if listener.kind != Kind::Tcp {
                    self.by_port(listener, tag);
                    continue;
                }
                if let Some(&(known, cookie)) = self.tagged.get(&listener.inode)
                    && known == tag
                {
                    listener.cookie = Some(cookie);
                    continue;
                }
                match self.tag_listener(&process, listener, tag) {
                    Ok(cookie) => {
                        self.tagged.insert(listener.inode, (tag, cookie));
                        listener.cookie = Some(cookie);
                    }
                    Err(error) => self.untouched(listener, tag, &error),
                }
            }
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
    }

    /// Tells the gate what a new listener is that no server has a descriptor of: covered by its port, or no server's.
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
            if !self.ports.contains_key(&port)
                && let Err(error) = self.maps.untag_port(port)
            {
                tracing::warn!(
                    port,
                    error = format!("{error:#}"),
                    help = "musttls disarm takes everything off; then start again",
                    "a former agent's port stays covered"
                );
            }
        }
    }

    fn tag_listener(
        &mut self,
        process: &io::Result<Process>,
        listener: &Listener,
        tag: Tag,
    ) -> anyhow::Result<u64> {
        let socket = duplicate(process, listener.fd)?;
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
        Err(error) => anyhow::bail!("pidfd_open: {error}"),
    };
    process
        .duplicate(fd)
        .context("pidfd_getfd (needs CAP_SYS_PTRACE, and kernel.yama.ptrace_scope below 3)")
}
