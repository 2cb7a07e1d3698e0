//! Marks the listening sockets of servers, so that the gate judges their sessions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;

use anyhow::Context as _;
use musttls_common::event::Event;
use musttls_common::session::{Listener as Tag, ListenerClass};

use super::place::Places;
use super::{Listener, Server};
use crate::config::Config;
use crate::datapath::Listeners;
use crate::error;
use crate::socket::{Kind, Process, Socket};

/// Names of listeners that the gate keeps (`LISTENERS`).
const NAMES: usize = 4096;

/// A listener that the gate asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewListener {
    /// Its cookie.
    pub cookie: u64,
    /// The cookie of its network namespace; 0 if that is not known.
    pub netns: u64,
    /// The address that it is bound to, IPv4 as IPv4-mapped. None where a session of it has asked.
    pub address: Option<[u8; 16]>,
    /// Its port.
    pub port: u16,
}

impl From<&Event> for NewListener {
    fn from(event: &Event) -> Self {
        let endpoints = &event.endpoints;
        Self {
            cookie: event.cookie,
            netns: event.listener_cookie,
            // A listener has no client.
            address: (endpoints.client_port == 0).then_some(endpoints.server_addr),
            port: endpoints.server_port,
        }
    }
}

/// Tags listeners, and remembers which.
pub struct Tagger {
    maps: Listeners,
    /// Whether the kernel reports Unix sessions.
    unix_probe: bool,
    /// By inode: the tag, and the socket's cookie.
    tagged: HashMap<u64, (Tag, u64)>,
    unix: HashSet<u64>,
    /// What is covered in place of sockets.
    places: Places,
    /// Listeners that were no server's when the gate asked about them: as many as the gate keeps.
    nobodys: VecDeque<NewListener>,
}

impl Tagger {
    /// A tagger that has tagged nothing yet.
    #[must_use]
    pub fn new(maps: Listeners, unix_probe: bool) -> Self {
        let places = Places::new(maps.tells_namespaces());
        Self {
            maps,
            unix_probe,
            tagged: HashMap::new(),
            unix: HashSet::new(),
            places,
            nobodys: VecDeque::new(),
        }
    }

    /// Tags the sockets of `servers` that are not yet, and notes in them what was done.
    pub fn tag(&mut self, servers: &mut [Server], config: &Config) {
        let mut seen = HashSet::new();
        let mut by_place = HashMap::new();
        for server in servers.iter_mut() {
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
                    by_place.insert(listener.inode, None);
                    self.want(listener, tag);
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
                        listener.namespace = self.places.of_process(server.pid);
                        if self.want(listener, tag) {
                            tracing::warn!(
                                port,
                                error = format!("{error:#}"),
                                "the server's socket may not be touched: covered by its place"
                            );
                        }
                        by_place.insert(listener.inode, Some(error));
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
        self.places.settle(&mut self.maps);
        self.note_uncovered(servers, &by_place);
        self.ask_again();
    }

    /// Tells the gate what a new listener is that no server has a descriptor of: nothing more than its place tells, if that is covered;
    /// else no server's. The caller knows that none can be a server's at a place that is not covered.
    pub fn name(&mut self, new: NewListener) -> anyhow::Result<()> {
        if new.cookie == 0 {
            // No socket has this cookie: the name would be that of every listener whose record has yet to get its own.
            return Ok(());
        }
        let covering = self.places.covering(new.netns, new.address, new.port);
        let tag = covering.map_or_else(
            || Tag::named(0, ListenerClass::Other),
            |tag| Tag::named(tag.server, ListenerClass::Pending),
        );
        self.maps.note(new.cookie, tag)?;
        if covering.is_none() {
            self.nobodys.push_back(new);
            if self.nobodys.len() > NAMES {
                self.nobodys.pop_front();
            }
        }
        Ok(())
    }

    /// A listener that was nobody's may have been passed on to a server, and be judged by its place. If that found no room, it is
    /// judged from its greeting on.
    fn ask_again(&mut self) {
        let (maps, places) = (&mut self.maps, &self.places);
        self.nobodys.retain(|listener| {
            if !places.is_missing(listener) {
                return true;
            }
            let pending = Tag::named(0, ListenerClass::Pending);
            let noted = maps.note(listener.cookie, pending);
            if let Err(error) = &noted {
                tracing::warn!(
                    port = listener.port,
                    error = error::text(error),
                    help = "restart the server that listens there",
                    "a server's listener may not be judged"
                );
            }
            noted.is_err()
        });
    }

    /// What the gate knows of sockets.
    pub const fn maps(&mut self) -> &mut Listeners {
        &mut self.maps
    }

    /// Takes off former gates of another ABI that have nothing left to judge.
    pub fn let_outgoing_go(&mut self) {
        self.maps.let_outgoing_go();
    }

    /// Takes back places that a former agent has covered and this one has not.
    pub fn forget_places(&mut self) {
        if let Err(error) = self.maps.untag_outgoing_places() {
            tracing::warn!(
                error = error::text(&error),
                help = "musttls disarm takes everything off; then start again",
                "a former gate goes on judging at its places"
            );
        }
        self.places.forget_former(&mut self.maps);
    }

    /// Has a judged listener covered by its place. Returns whether that is new.
    fn want(&mut self, listener: &Listener, tag: Tag) -> bool {
        let (address, namespace) = (listener.address, listener.namespace);
        listener.protocol.is_judged() && self.places.want(address, namespace, tag)
    }

    /// Says why listeners have no place, and why their sockets were not touched.
    fn note_uncovered(
        &self,
        servers: &mut [Server],
        by_place: &HashMap<u64, Option<anyhow::Error>>,
    ) {
        let listeners = servers.iter_mut().flat_map(|server| &mut server.listeners);
        for listener in listeners {
            let Some(untouched) = by_place.get(&listener.inode) else {
                continue;
            };
            let missing = self.places.missing(listener);
            listener.uncovered = match (missing, untouched) {
                (Some(full), Some(error)) => Some(format!("{error:#}; {full}")),
                (Some(full), None) => Some(full.clone()),
                (None, _) => None,
            };
        }
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
