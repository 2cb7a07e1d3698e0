//! One server process, looked into in steps: its sockets, where it listens, and what its listeners speak.

use std::collections::{HashMap, HashSet};
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::path::Path;

use procfs::process::{FDTarget, FDsIter, Process};

use super::tables::Tables;
use super::{Listener, Namespace, OTHER_PROTOCOLS, Protocol, Server, UnixListener, mapped};
use crate::socket::{self, Kind, Socket};

/// Ports that a server gives to the classic protocol unless told otherwise: main and administrative.
const CLASSIC_PORTS: [u16; 2] = [3306, 33062];
/// Command-line options that give a port to the classic protocol.
const CLASSIC_OPTIONS: [&str; 3] = ["port", "admin-port", "extra-port"];
/// Port that a server gives to X Protocol unless told otherwise.
const X_PORT: u16 = 33060;
/// Command-line option that gives a port to X Protocol.
const X_OPTIONS: [&str; 1] = ["mysqlx-port"];

/// A look at a process, as far as it has come.
pub(super) struct ProcessLook {
    process: Process,
    program: String,
    stage: Stage,
}

/// What is looked at.
enum Stage {
    /// Its descriptors.
    Descriptors {
        rest: FDsIter,
        sockets: HashMap<u64, i32>,
        devices: Vec<String>,
    },
    /// Of what kind its sockets are that procfs does not tell.
    Kinds(Box<Kinds>),
    Over,
}

struct Kinds {
    server: Server,
    ports: Ports,
    /// To duplicate the sockets.
    process: io::Result<socket::Process>,
    /// How many of its listeners have been looked at.
    listeners: usize,
    /// Sockets that procfs lists neither as ones of TCP nor of the server's Unix sockets.
    unlisted: std::vec::IntoIter<(u64, i32)>,
    /// What of them listens.
    found: Vec<Listener>,
}

/// Ports that the command line names.
struct Ports {
    classic: Vec<u16>,
    x: Vec<u16>,
}

impl ProcessLook {
    pub(super) fn new(process: Process, program: String) -> Result<Self, procfs::ProcError> {
        let rest = process.fd()?;
        Ok(Self {
            process,
            program,
            stage: Stage::Descriptors {
                rest,
                sockets: HashMap::new(),
                devices: Vec::new(),
            },
        })
    }

    pub(super) const fn pid(&self) -> i32 {
        self.process.pid
    }

    pub(super) fn program(&self) -> &str {
        &self.program
    }

    /// Goes on for up to `budget` descriptors, and takes them off it. Returns the server once all is known.
    pub(super) fn step(
        &mut self,
        budget: &mut usize,
        tables: &mut Tables,
    ) -> Result<Option<Server>, procfs::ProcError> {
        if let Stage::Descriptors {
            rest,
            sockets,
            devices,
        } = &mut self.stage
        {
            loop {
                if *budget == 0 {
                    return Ok(None);
                }
                *budget -= 1;
                let Some(descriptor) = rest.next() else { break };
                let Ok(descriptor) = descriptor else { continue };
                match descriptor.target {
                    FDTarget::Socket(inode) => {
                        sockets.insert(inode, descriptor.fd);
                    }
                    FDTarget::Path(path) => devices.extend(device(&path)),
                    _ => {}
                }
            }
            let (sockets, devices) = (mem::take(sockets), mem::take(devices));
            self.stage = Stage::Kinds(Box::new(self.listed(sockets, devices, tables)?));
        }
        if let Stage::Kinds(kinds) = &mut self.stage {
            match kinds.step(budget) {
                Ok(false) => return Ok(None),
                Ok(true) => {}
                Err(error) => {
                    kinds.server.kinds_unread = Some(error.to_string());
                    kinds.server.beside_tcp.clear();
                    kinds.found.clear();
                }
            }
        }
        Ok(match mem::replace(&mut self.stage, Stage::Over) {
            Stage::Kinds(kinds) => Some(kinds.end()),
            Stage::Descriptors { .. } | Stage::Over => None,
        })
    }

    /// What procfs lists of these sockets.
    fn listed(
        &self,
        sockets: HashMap<u64, i32>,
        mut devices: Vec<String>,
        tables: &mut Tables,
    ) -> Result<Kinds, procfs::ProcError> {
        let process = &self.process;
        devices.sort_unstable();
        devices.dedup();
        let ports = Ports::of(&process.cmdline().unwrap_or_default());
        let mut listeners = Vec::new();
        let mut listed = HashSet::new();
        let mut unix = Vec::new();
        // Who has none needs no table.
        let table = if sockets.is_empty() {
            None
        } else {
            Some(tables.of(process.pid())?)
        };
        for (&inode, &fd) in &sockets {
            let Some(table) = &table else { break };
            if let Some(listens_at) = table.tcp.get(&inode) {
                listed.insert(inode);
                listeners.extend(
                    listens_at.map(|address| ports.listener(address, fd, inode, Kind::Tcp)),
                );
            }
            if let Some(name) = table.unix.get(&inode) {
                listed.insert(inode);
                let path = name.clone();
                unix.extend(path.map(|path| UnixListener { path, fd, inode }));
            }
        }
        listeners.sort_unstable_by_key(|listener| listener.inode);
        unix.sort_unstable_by_key(|listener| listener.inode);
        let unlisted: Vec<(u64, i32)> = sockets
            .iter()
            .filter(|(inode, _)| !listed.contains(inode))
            .map(|(&inode, &fd)| (inode, fd))
            .collect();
        let cgroup = cgroup(process);
        Ok(Kinds {
            process: socket::Process::open(process.pid()),
            ports,
            listeners: 0,
            unlisted: unlisted.into_iter(),
            found: Vec::new(),
            server: Server {
                pid: process.pid(),
                start_time: process.stat()?.starttime,
                program: self.program.clone(),
                container: container(&cgroup),
                cgroup,
                listeners,
                unix,
                sockets,
                beside_tcp: Vec::new(),
                devices,
                kinds_unread: None,
            },
        })
    }
}

impl Kinds {
    /// Finds out of what kind up to `budget` sockets are. procfs lists an MPTCP listener as
    /// one of TCP, and one of SMC not at all; nor what is in another network namespace than the process (systemd's `PrivateNetwork=`
    /// with socket activation, rootless containers). Returns whether all are known.
    fn step(&mut self, budget: &mut usize) -> io::Result<bool> {
        while let Some(listener) = self.server.listeners.get_mut(self.listeners) {
            if *budget == 0 {
                return Ok(false);
            }
            *budget -= 1;
            self.listeners += 1;
            if let Some(socket) = duplicate(&self.process, listener.fd)? {
                listener.kind = socket.kind()?;
                if listener.kind != Kind::Tcp {
                    listener.namespace = namespace(&socket);
                }
            }
        }
        while *budget > 0 {
            let Some((inode, fd)) = self.unlisted.next() else {
                return Ok(true);
            };
            *budget -= 1;
            let Some(socket) = duplicate(&self.process, fd)? else {
                continue;
            };
            let kind = socket.kind()?;
            match kind {
                Kind::Tcp | Kind::Mptcp | Kind::Smc => {
                    if let Some(address) = socket.listens_at()? {
                        self.found.push(Listener {
                            namespace: namespace(&socket),
                            ..self.ports.listener(address, fd, inode, kind)
                        });
                    }
                }
                Kind::Xdp | Kind::Packet | Kind::RawIp => self.server.beside_tcp.push((fd, kind)),
                Kind::Other => {}
            }
        }
        Ok(false)
    }

    fn end(self: Box<Self>) -> Server {
        let mut server = self.server;
        server.listeners.extend(self.found);
        server.beside_tcp.sort_unstable();
        by_library(server.pid, &mut server.listeners);
        server
    }
}

/// Duplicates a socket; none if it was closed since, or its number is a file's by now.
fn duplicate(process: &io::Result<socket::Process>, fd: i32) -> io::Result<Option<Socket>> {
    let process = process.as_ref().map_err(|error| {
        error
            .raw_os_error()
            .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
    })?;
    match process.duplicate(fd) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK)) => {
            Ok(None)
        }
        other => other.map(Some),
    }
}

fn namespace(socket: &Socket) -> Namespace {
    let cookie = socket.netns_cookie();
    cookie.map_or(Namespace::Unknown, Namespace::Cookie)
}

impl Ports {
    fn of(command_line: &[String]) -> Self {
        Self {
            classic: ports(command_line, &CLASSIC_OPTIONS),
            x: ports(command_line, &X_OPTIONS),
        }
    }

    fn listener(&self, address: SocketAddr, fd: i32, inode: u64, kind: Kind) -> Listener {
        Listener {
            address,
            fd,
            inode,
            cookie: None,
            kind,
            namespace: Namespace::Unknown,
            protocol: protocol(address.port(), &self.classic, &self.x),
            uncovered: None,
        }
    }
}

/// The device of a user-space network that `path` is, if it is one: of `OpenOnload`, of RDMA (VMA, XLIO), and those by
/// which DPDK (F-Stack) takes a network card from the kernel.
fn device(path: &Path) -> Option<String> {
    const DEVICES: [&str; 4] = [
        "/dev/onload",
        "/dev/infiniband/uverbs",
        "/dev/vfio/",
        "/dev/uio",
    ];
    let path = path.to_str()?;
    DEVICES
        .iter()
        .any(|device| path.starts_with(device))
        .then(|| path.to_owned())
}

/// The process's cgroup v2 path; "/" where there is none.
fn cgroup(process: &Process) -> String {
    let v2 = |groups: procfs::ProcessCGroups| {
        groups
            .into_iter()
            .find(|group| group.hierarchy == 0)
            .map(|group| group.pathname)
    };
    process
        .cgroups()
        .ok()
        .and_then(v2)
        .unwrap_or_else(|| "/".to_owned())
}

/// The container id in a cgroup path: 64 hexadecimal digits, as container engines name their groups
/// (`docker-<id>.scope`, `cri-containerd-<id>.scope`, `/kubepods/.../<id>`).
fn container(cgroup: &str) -> Option<String> {
    const ID_LEN: usize = 64;
    cgroup
        .split(|c: char| !c.is_ascii_hexdigit())
        .find(|part| part.len() == ID_LEN)
        .map(str::to_owned)
}

/// Ports that a command line gives with one of `options`, as `--name=port` or `--name port`; the servers take
/// `-` and `_` for the same.
fn ports(command_line: &[String], options: &[&str]) -> Vec<u16> {
    let mut ports = Vec::new();
    let mut arguments = command_line.iter().peekable();
    while let Some(argument) = arguments.next() {
        let Some(option) = argument.strip_prefix("--") else {
            continue;
        };
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, arguments.peek().map(|next| next.as_str())),
        };
        let name = name.replace('_', "-");
        let name = name.strip_prefix("loose-").unwrap_or(&name);
        if options.contains(&name)
            && let Some(port) = value.and_then(|value| value.parse().ok())
        {
            ports.push(port);
        }
    }
    ports
}

/// Leaves another protocol only to a process that has mapped the library which speaks it. Where that cannot be told, the
/// listener is judged.
fn by_library(pid: i32, listeners: &mut [Listener]) {
    let is_other = |listener: &&mut Listener| matches!(listener.protocol, Protocol::Other(_));
    let mut others = listeners.iter_mut().filter(is_other).peekable();
    if others.peek().is_none() {
        return;
    }
    let maps = mapped::read(pid).unwrap_or_default();
    for listener in others {
        let port = listener.address.port();
        if !OTHER_PROTOCOLS
            .iter()
            .any(|(known, _, library)| *known == port && has_mapped(&maps, library))
        {
            listener.protocol = Protocol::ByGreeting;
        }
    }
}

/// Whether a file whose name begins so is in the text of `/proc/PID/maps` (proc(5)).
fn has_mapped(maps: &str, library: &str) -> bool {
    let names = maps.lines().filter_map(|line| line.rsplit_once('/'));
    names
        .map(|(_, name)| name)
        .any(|name| name.starts_with(library))
}

/// What a port says of its listener: the command line's word first.
fn protocol(port: u16, classic_ports: &[u16], x_ports: &[u16]) -> Protocol {
    if classic_ports.contains(&port) {
        return Protocol::Classic;
    }
    if x_ports.contains(&port) {
        return Protocol::X;
    }
    let other = OTHER_PROTOCOLS.iter().find(|(known, ..)| *known == port);
    match (port, other) {
        (_, Some(&(_, name, _))) => Protocol::Other(name),
        (X_PORT, None) => Protocol::X,
        _ if CLASSIC_PORTS.contains(&port) => Protocol::Classic,
        _ => Protocol::ByGreeting,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::{Ipv4Addr, TcpListener, UdpSocket};
    use std::os::fd::AsRawFd as _;

    /// The listener has a descriptor behind those of the other sockets.
    #[test]
    fn look_is_cut_up_and_still_finds_the_listener_behind_many_descriptors() {
        const BUDGET: usize = 16;
        let others: Vec<UdpSocket> = (0..100)
            .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
            .collect();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let mut look = ProcessLook::new(Process::myself().unwrap(), "test".to_owned()).unwrap();
        let mut steps = 0;
        let server = loop {
            let mut budget = BUDGET;
            let server = look.step(&mut budget, &mut Tables::default()).unwrap();
            steps += 1;
            if let Some(server) = server {
                break server;
            }
            assert_eq!(budget, 0, "a step that does nothing");
        };
        // Each is read once, and asked for its kind once.
        assert!(steps > 2 * others.len() / BUDGET, "{steps} steps");
        let address = listener.local_addr().unwrap();
        let found = server.listeners.iter().find(|it| it.address == address);
        let found = found.expect("the listener");
        assert_eq!(found.fd, listener.as_raw_fd());
        assert_eq!(found.kind, Kind::Tcp);
    }

    fn line(words: &str) -> Vec<String> {
        words.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn other_ports_are_read_in_each_spelling() {
        assert_eq!(
            ports(&line("mysqld --mysqlx-port=13060"), &X_OPTIONS),
            [13060]
        );
        assert_eq!(
            ports(
                &line("mysqld --loose_mysqlx_port 13060 --port=3306"),
                &X_OPTIONS
            ),
            [13060]
        );
        assert_eq!(
            ports(&line("mysqld --port=3306 --mysqlx-port"), &X_OPTIONS),
            [] as [u16; 0]
        );
    }

    #[test]
    fn protocols_of_well_known_ports_are_named() {
        let of = |port| protocol(port, &[], &[]);
        assert_eq!(of(33060), Protocol::X);
        assert_eq!(of(4567), Protocol::Other("Galera replication"));
        assert_eq!(of(3306), Protocol::Classic);
        assert_eq!(of(33062), Protocol::Classic);
        assert_eq!(of(3307), Protocol::ByGreeting);
    }

    #[test]
    fn libraries_are_found_by_the_names_of_their_files() {
        let maps = "\
7f1c00000000-7f1c00021000 rw-p 00000000 00:00 0
7f1c08000000-7f1c08100000 r-xp 00000000 08:01 1234 /usr/lib64/galera-4/libgalera_smm.so
7f1c09000000-7f1c09100000 r-xp 00000000 08:01 1235 /srv/group_replication.so/plugin (deleted)
";
        assert!(has_mapped(maps, "libgalera"));
        assert!(!has_mapped(maps, "group_replication.so"));
        assert!(!has_mapped("", "libgalera"));
    }

    #[test]
    fn command_line_outweighs_well_known_ports() {
        assert_eq!(protocol(33060, &[33060], &[]), Protocol::Classic);
        assert_eq!(protocol(4567, &[4567], &[]), Protocol::Classic);
        assert_eq!(protocol(3306, &[], &[3306]), Protocol::X);
    }

    #[test]
    fn container_ids_are_found_in_cgroup_paths() {
        let id = "0123456789abcdef".repeat(4);
        for path in [
            format!("/system.slice/docker-{id}.scope"),
            format!("/kubepods/burstable/pod1/{id}"),
        ] {
            assert_eq!(container(&path), Some(id.clone()), "{path}");
        }
        assert_eq!(container("/system.slice/mysql.service"), None);
    }
}
