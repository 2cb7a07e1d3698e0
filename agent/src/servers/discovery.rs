//! Reads procfs.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};

use super::{Listener, Namespace, OTHER_PROTOCOLS, Protocol, Server, UnixListener, unix_table};
use crate::socket::{self, Kind};

/// Program files of servers: MySQL and Percona, MariaDB, and their debug builds.
const PROGRAMS: [&str; 4] = ["mysqld", "mariadbd", "mysqld-debug", "mariadbd-debug"];

/// Ports that a server gives to the classic protocol unless told otherwise: main and administrative.
const CLASSIC_PORTS: [u16; 2] = [3306, 33062];
/// Command-line options that give a port to the classic protocol.
const CLASSIC_OPTIONS: [&str; 3] = ["port", "admin-port", "extra-port"];
/// Port that a server gives to X Protocol unless told otherwise.
const X_PORT: u16 = 33060;
/// Command-line option that gives a port to X Protocol.
const X_OPTIONS: [&str; 1] = ["mysqlx-port"];

/// A server that could not be looked into.
#[derive(Debug, thiserror::Error)]
#[error(
    "process {pid} ({program}) cannot be looked into: {source}\n  help: the agent needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH to read /proc/{pid}/fd"
)]
pub struct ScanError {
    /// Its process id.
    pub pid: i32,
    /// Name of its program file.
    pub program: String,
    /// What procfs said.
    pub source: procfs::ProcError,
}

/// Looks for the server processes of this host, again and again.
#[derive(Debug, Default)]
pub struct Finder {
    /// Processes that were no server's when they were looked at.
    others: HashSet<i32>,
    round: i32,
}

/// Of the processes that were no server's, each is looked at again in one of so many rounds: its number may be another's
/// by now, or it has become a server without listening anew (`execve(2)`).
const ROUNDS: i32 = 10;

impl Finder {
    /// Finds the server processes, and what was in the way of some. With `all`, each process is looked at.
    ///
    /// A process that ends meanwhile is not there; that is no error.
    pub fn find(&mut self, all: bool) -> Result<(Vec<Server>, Vec<ScanError>), procfs::ProcError> {
        let mut servers = Vec::new();
        let mut errors = Vec::new();
        let mut others = HashSet::new();
        self.round = (self.round + 1) % ROUNDS;
        for pid in pids()? {
            if !all && pid % ROUNDS != self.round && self.others.contains(&pid) {
                others.insert(pid);
                continue;
            }
            let Ok(process) = Process::new(pid) else {
                continue;
            };
            let looked = match program(&process) {
                Ok(Some(program)) => {
                    look_into(&process, program.clone()).map_err(|error| (program, error))
                }
                Ok(None) => {
                    others.insert(pid);
                    continue;
                }
                Err(failed) => Err(failed),
            };
            match looked {
                Ok(server) => servers.push(server),
                Err((_, procfs::ProcError::NotFound(_))) => {}
                Err((program, source)) => errors.push(ScanError {
                    pid,
                    program,
                    source,
                }),
            }
        }
        self.others = others;
        Ok((servers, errors))
    }
}

/// Finds them once, as [`Finder::find`] does.
pub fn find() -> Result<(Vec<Server>, Vec<ScanError>), procfs::ProcError> {
    Finder::default().find(true)
}

/// The processes there are.
fn pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    Ok(pids)
}

/// Ports at which the service manager (process 1) listens, to start services for them.
pub fn ports_of_init() -> Result<HashSet<u16>, procfs::ProcError> {
    let init = Process::new(1)?;
    let inodes: HashSet<u64> = init
        .fd()?
        .flatten()
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    let mut entries = init.tcp()?;
    entries.extend(init.tcp6().unwrap_or_default());
    Ok(entries
        .iter()
        .filter(|entry| entry.state == TcpState::Listen && inodes.contains(&entry.inode))
        .map(|entry| entry.local_address.port())
        .collect())
}

/// The name of the process's program file, if it is a server's. Where that may not be read, the name of its
/// thread (which anyone may) tells whether it should have been. Where its path is too long for the kernel to tell
/// (4,096 bytes), which any user can arrange, that name stands for it.
fn program(process: &Process) -> Result<Option<String>, (String, procfs::ProcError)> {
    let is_server = |name: &str| PROGRAMS.contains(&name).then(|| name.to_owned());
    match process.exe() {
        Ok(exe) => {
            let name = exe
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            // procfs marks a file that was replaced by an upgrade.
            Ok(is_server(name.strip_suffix(" (deleted)").unwrap_or(name)))
        }
        Err(error) => match process.stat().ok().and_then(|stat| is_server(&stat.comm)) {
            Some(name) if is_too_long(&error) => Ok(Some(name)),
            Some(name) => Err((name, error)),
            None => Ok(None),
        },
    }
}

fn is_too_long(error: &procfs::ProcError) -> bool {
    matches!(error, procfs::ProcError::Io(error, _) if error.raw_os_error() == Some(libc::ENAMETOOLONG))
}

fn look_into(process: &Process, program: String) -> Result<Server, procfs::ProcError> {
    let mut sockets = HashMap::new();
    let mut devices = Vec::new();
    for descriptor in process.fd()?.flatten() {
        match descriptor.target {
            FDTarget::Socket(inode) => {
                sockets.insert(inode, descriptor.fd);
            }
            FDTarget::Path(path) => devices.extend(device(&path)),
            _ => {}
        }
    }
    devices.sort_unstable();
    devices.dedup();
    let command_line = process.cmdline().unwrap_or_default();
    let classic_ports = ports(&command_line, &CLASSIC_OPTIONS);
    let x_ports = ports(&command_line, &X_OPTIONS);
    let mut listeners = Vec::new();
    // A kernel without IPv6 has no tcp6.
    let entries = process
        .tcp()?
        .into_iter()
        .chain(process.tcp6().unwrap_or_default());
    let listener = |address: SocketAddr, fd, inode, kind| Listener {
        address,
        fd,
        inode,
        cookie: None,
        kind,
        namespace: Namespace::Unknown,
        protocol: protocol(address.port(), &classic_ports, &x_ports),
        uncovered: None,
    };
    let mut listed = HashSet::new();
    for entry in entries {
        let Some(&fd) = sockets.get(&entry.inode) else {
            continue;
        };
        listed.insert(entry.inode);
        if entry.state == TcpState::Listen {
            listeners.push(listener(entry.local_address, fd, entry.inode, Kind::Tcp));
        }
    }
    let mut unix = Vec::new();
    let mut named = unix_table::read(process.pid())?;
    for (&inode, &fd) in &sockets {
        if let Some(name) = named.remove(&inode) {
            listed.insert(inode);
            unix.extend(name.map(|path| UnixListener { path, fd, inode }));
        }
    }
    unix.sort_unstable_by_key(|listener| listener.inode);
    let unlisted = sockets
        .iter()
        .filter(|(inode, _)| !listed.contains(inode))
        .map(|(&inode, &fd)| (inode, fd))
        .collect();
    let (unlisted, kinds_unread) = match kinds(process.pid(), &mut listeners, unlisted) {
        Ok(unlisted) => (unlisted, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let mut beside_tcp = Vec::new();
    for Unlisted {
        inode,
        fd,
        kind,
        namespace,
        listens_at,
    } in unlisted
    {
        match (kind, listens_at) {
            (Kind::Tcp | Kind::Mptcp | Kind::Smc, Some(address)) => {
                listeners.push(Listener {
                    namespace,
                    ..listener(address, fd, inode, kind)
                });
            }
            (Kind::Xdp | Kind::Packet | Kind::RawIp, _) => beside_tcp.push((fd, kind)),
            (Kind::Tcp | Kind::Mptcp | Kind::Smc, None) | (Kind::Other, _) => {}
        }
    }
    beside_tcp.sort_unstable();
    by_library(process.pid(), &mut listeners);
    let cgroup = cgroup(process);
    Ok(Server {
        pid: process.pid(),
        start_time: process.stat()?.starttime,
        program,
        container: container(&cgroup),
        cgroup,
        listeners,
        unix,
        sockets,
        beside_tcp,
        devices,
        kinds_unread,
    })
}

/// A socket that procfs does not list as one of TCP or of the server's Unix sockets.
struct Unlisted {
    inode: u64,
    fd: i32,
    kind: Kind,
    namespace: Namespace,
    listens_at: Option<SocketAddr>,
}

/// Finds out of what kind the listeners are, and the other sockets of a server. procfs lists an MPTCP listener as
/// one of TCP, and one of SMC not at all; nor what is in another network namespace than the process (systemd's `PrivateNetwork=`
/// with socket activation, rootless containers).
fn kinds(
    pid: i32,
    listeners: &mut [Listener],
    unlisted: Vec<(u64, i32)>,
) -> io::Result<Vec<Unlisted>> {
    if listeners.is_empty() && unlisted.is_empty() {
        return Ok(Vec::new());
    }
    let process = socket::Process::open(pid)?;
    let duplicate = |fd| match process.duplicate(fd) {
        // Closed since.
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(None),
        other => other.map(Some),
    };
    for listener in listeners {
        if let Some(socket) = duplicate(listener.fd)? {
            listener.kind = socket.kind()?;
            if listener.kind != Kind::Tcp {
                listener.namespace = namespace(&socket);
            }
        }
    }
    let mut found = Vec::new();
    for (inode, fd) in unlisted {
        let Some(socket) = duplicate(fd)? else {
            continue;
        };
        let kind = socket.kind()?;
        let listens_at = match kind {
            Kind::Tcp | Kind::Mptcp | Kind::Smc => socket.listens_at()?,
            Kind::Xdp | Kind::Packet | Kind::RawIp | Kind::Other => None,
        };
        found.push(Unlisted {
            inode,
            fd,
            kind,
            namespace: listens_at.map_or(Namespace::Unknown, |_| namespace(&socket)),
            listens_at,
        });
    }
    Ok(found)
}

fn namespace(socket: &socket::Socket) -> Namespace {
    let cookie = socket.netns_cookie();
    cookie.map_or(Namespace::Unknown, Namespace::Cookie)
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
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
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
