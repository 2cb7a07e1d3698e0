//! Ways by which bytes reach a server without passing the gate: what of them is on this host, found by what the
//! servers have open and mapped, and by the host's sockmaps.
//!
//! Only what a server has is looked at, and only what lets bytes by. A server's environment is not read: it may hold
//! passwords, and what was preloaded is among what is mapped.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use crate::datapath::sockmap::{self, Sockmap};
use crate::servers::{Server, mapped};
use crate::socket::{self, Process};

/// How often the host's sockmaps are looked for.
const SOCKMAPS_EVERY: Duration = Duration::from_secs(5);
/// How long what a process has mapped is taken for known: at first, and at most. Reading it may hold up the process's
/// own memory management (`mmap_lock`), and a server with many threads has many mappings.
const MAPPED_FIRST: Duration = Duration::from_secs(1);
const MAPPED_LAST: Duration = Duration::from_secs(64);

/// Libraries that give a program another network than the kernel's TCP, by how their file names begin.
const LIBRARIES: [(&str, &str); 9] = [
    ("libonload", "OpenOnload, TCP in the process"),
    ("libvma", "VMA, TCP in the process"),
    ("libxlio", "XLIO, TCP in the process"),
    ("libfstack", "F-Stack, TCP in the process"),
    ("libff_", "F-Stack, TCP in the process"),
    ("libvcl_ldpreload", "VPP, TCP in another process"),
    ("librspreload", "RDMA in place of TCP"),
    ("libsmc-preload", "SMC in place of TCP"),
    ("libmptcpwrap", "MPTCP in place of TCP"),
];

/// A way past the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A listener of MPTCP.
    Mptcp,
    /// A listener of SMC.
    Smc,
    /// A socket that takes frames or packets past TCP.
    RawSocket,
    /// A library or a device of a network in user space.
    UserSpace,
    /// A sockmap.
    Sockmap,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 5] = [
        Self::Mptcp,
        Self::Smc,
        Self::RawSocket,
        Self::UserSpace,
        Self::Sockmap,
    ];

    /// The word used in metrics and in `musttls status --json`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mptcp => "mptcp",
            Self::Smc => "smc",
            Self::RawSocket => "raw-socket",
            Self::UserSpace => "user-space",
            Self::Sockmap => "sockmap",
        }
    }

    /// What it means.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Mptcp => {
                "clients that speak MPTCP are refused in enforce mode, with TLS too: the order of their bytes cannot be \
                 judged. Other clients are judged as ever"
            }
            Self::Smc => {
                "clients that speak SMC are refused in enforce mode, with TLS too. Other clients are judged as ever"
            }
            Self::RawSocket => {
                "sessions that the server takes from it are not judged and not on record"
            }
            Self::UserSpace => {
                "sessions that do not pass the kernel's TCP are not judged and not on record"
            }
            Self::Sockmap => {
                "what a local client sends can be moved into the server's socket without a packet: not judged"
            }
        }
    }

    /// What to do.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Mptcp => {
                "start the server without mptcpize and without other programs that turn TCP sockets into MPTCP ones"
            }
            Self::Smc => "start the server without smc_run and libsmc-preload",
            Self::RawSocket => {
                "find out which plugin or preloaded library opened it, and do without"
            }
            Self::UserSpace => {
                "start the server without it (LD_PRELOAD in its unit, /etc/ld.so.preload); else do not rely on musttls \
                 for this server"
            }
            Self::Sockmap => {
                "bpftool map show and bpftool cgroup tree name whose it is: keep database servers out of its redirection"
            }
        }
    }
}

/// Something that was found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Alarm {
    /// Which way.
    pub kind: Kind,
    /// The server's process and program; none if it concerns every server of the host.
    pub server: Option<(i32, String)>,
    /// What was seen.
    pub found: String,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.server {
            Some((pid, program)) => write!(f, "{program} {pid}: {}", self.found),
            None => f.write_str(&self.found),
        }
    }
}

/// What a look has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// What was found, in order.
    pub alarms: BTreeSet<Alarm>,
    /// What could not be looked for, and why.
    pub unchecked: BTreeSet<(Kind, String)>,
}

impl Look {
    /// What could not be looked for, a line each.
    #[must_use]
    pub fn unchecked_lines(&self) -> Vec<String> {
        let line = |(kind, why): &(Kind, String)| format!("{}: {why}", kind.as_str());
        self.unchecked.iter().map(line).collect()
    }
}

/// Looks again and again, and reads what is dear to read as seldom as can be.
#[derive(Debug, Default)]
pub struct Watch {
    /// What the last look has found.
    pub last: Look,
    /// By pid and start time.
    mapped: HashMap<(i32, u64), Mapped>,
    sockmaps: Option<(Instant, Result<Vec<Alarm>, String>)>,
}

/// What a process has mapped.
#[derive(Debug)]
struct Mapped {
    read: Instant,
    /// How long that is taken for known.
    good_for: Duration,
    libraries: Result<BTreeSet<String>, String>,
}

impl Watch {
    /// Looks at `servers`.
    pub fn look(&mut self, servers: &[&Server]) -> Look {
        let now = Instant::now();
        let mut look = Look::default();
        for server in servers {
            look.alarms.extend(of_sockets(server));
            look.alarms.extend(of_devices(server));
            if let Some(error) = &server.kinds_unread {
                for kind in [Kind::Mptcp, Kind::Smc, Kind::RawSocket] {
                    let why = format!("sockets of {} {}: {error}", server.program, server.pid);
                    look.unchecked.insert((kind, why));
                }
            }
            match self.libraries(server, now) {
                Ok(libraries) => look.alarms.extend(
                    libraries
                        .iter()
                        .map(|library| alarm(Kind::UserSpace, server, library.clone())),
                ),
                Err(error) => {
                    let why = format!("/proc/{}/maps: {error}", server.pid);
                    look.unchecked.insert((Kind::UserSpace, why));
                }
            }
        }
        let alive: BTreeSet<_> = servers
            .iter()
            .map(|server| (server.pid, server.start_time))
            .collect();
        self.mapped.retain(|process, _| alive.contains(process));

        let due = self
            .sockmaps
            .as_ref()
            .is_none_or(|(read, _)| now.duration_since(*read) >= SOCKMAPS_EVERY);
        if due {
            let found = sockmap::all()
                .map(|maps| of_sockmaps(&maps, servers))
                .map_err(|error| match error.kind() {
                    io::ErrorKind::PermissionDenied => "needs CAP_SYS_ADMIN".to_owned(),
                    _ => error.to_string(),
                });
            self.sockmaps = Some((now, found));
        }
        match &self.sockmaps {
            Some((_, Ok(alarms))) => look.alarms.extend(alarms.iter().cloned()),
            Some((_, Err(error))) => {
                look.unchecked.insert((Kind::Sockmap, error.clone()));
            }
            None => {}
        }
        look
    }

    fn libraries(&mut self, server: &Server, now: Instant) -> &Result<BTreeSet<String>, String> {
        let known = self
            .mapped
            .entry((server.pid, server.start_time))
            .or_insert_with(|| Mapped {
                read: now,
                good_for: Duration::ZERO,
                libraries: Ok(BTreeSet::new()),
            });
        if now.duration_since(known.read) >= known.good_for {
            known.read = now;
            // A process that has only begun has not loaded everything.
            known.good_for = (known.good_for * 2).clamp(MAPPED_FIRST, MAPPED_LAST);
            known.libraries = match mapped::read(server.pid) {
                Ok(maps) => Ok(libraries(&maps)),
                // It has ended.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => {
                    Ok(BTreeSet::new())
                }
                Err(error) => Err(error.to_string()),
            };
        }
        &known.libraries
    }
}

fn alarm(kind: Kind, server: &Server, found: String) -> Alarm {
    Alarm {
        kind,
        server: Some((server.pid, server.program.clone())),
        found,
    }
}

fn of_sockets(server: &Server) -> impl Iterator<Item = Alarm> {
    let listeners = server.listeners.iter().filter_map(|listener| {
        let (kind, name) = match listener.kind {
            socket::Kind::Mptcp => (Kind::Mptcp, "MPTCP"),
            socket::Kind::Smc => (Kind::Smc, "SMC"),
            _ => return None,
        };
        Some((kind, format!("{} listens by {name}", listener.address)))
    });
    let raw = server.beside_tcp.iter().map(|(fd, kind)| {
        let name = match kind {
            socket::Kind::Xdp => "AF_XDP",
            socket::Kind::Packet => "AF_PACKET",
            _ => "raw IP",
        };
        (
            Kind::RawSocket,
            format!("descriptor {fd} is an {name} socket"),
        )
    });
    listeners
        .chain(raw)
        .map(|(kind, found)| alarm(kind, server, found))
}

fn of_devices(server: &Server) -> impl Iterator<Item = Alarm> {
    server
        .devices
        .iter()
        .map(|device| alarm(Kind::UserSpace, server, format!("{device} is open")))
}

/// The libraries of [`LIBRARIES`] in the text of `/proc/PID/maps` (proc(5)).
fn libraries(maps: &str) -> BTreeSet<String> {
    let paths = maps.lines().filter_map(|line| line.split_once('/'));
    paths
        .filter_map(|(_, path)| {
            let file = path.rsplit('/').next()?;
            let (_, what) = LIBRARIES
                .iter()
                .find(|(begin, _)| file.starts_with(begin))?;
            Some(format!("/{path} is loaded: {what}"))
        })
        .collect()
}

/// Sockmaps are harmless without a program: others use them to hand listeners to `sk_lookup` programs. A program of
/// one map may move bytes into the sockets of another.
fn of_sockmaps(maps: &[Sockmap], servers: &[&Server]) -> Vec<Alarm> {
    let mut alarms = Vec::new();
    if maps.iter().all(|map| map.has_programs == Some(false)) {
        return alarms;
    }
    let cookies: BTreeSet<u64> = maps
        .iter()
        .filter_map(|map| map.cookies.as_ref())
        .flatten()
        .copied()
        .collect();
    if !cookies.is_empty() {
        for server in servers {
            let own = sockets_among(server, &cookies);
            for map in maps {
                let sessions = map
                    .cookies
                    .as_ref()
                    .map_or(0, |in_map| in_map.intersection(&own).count());
                if sessions > 0 {
                    let found = format!("{} has sockets of it", name(map));
                    alarms.push(alarm(Kind::Sockmap, server, found));
                }
            }
        }
    }
    if !servers.is_empty() {
        for map in maps.iter().filter(|map| map.cookies.is_none()) {
            alarms.push(Alarm {
                kind: Kind::Sockmap,
                server: None,
                found: format!(
                    "{} may have sockets of servers: it does not tell",
                    name(map)
                ),
            });
        }
    }
    alarms
}

fn name(map: &Sockmap) -> String {
    let programs = match map.has_programs {
        Some(true) => ", which has programs,",
        Some(false) => "",
        None => ", which may have programs,",
    };
    format!("sockmap {} ({}){programs}", map.id, map.name)
}

/// Which of `cookies` are those of the server's sockets.
fn sockets_among(server: &Server, cookies: &BTreeSet<u64>) -> BTreeSet<u64> {
    let Ok(process) = Process::open(server.pid) else {
        return BTreeSet::new();
    };
    let cookie = |fd: &i32| {
        process
            .duplicate(*fd)
            .and_then(|socket| socket.cookie())
            .ok()
    };
    server
        .sockets
        .values()
        .filter_map(cookie)
        .filter(|cookie| cookies.contains(cookie))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn server() -> Server {
        Server {
            pid: 912,
            start_time: 1,
            program: "mysqld".to_owned(),
            cgroup: "/".to_owned(),
            container: None,
            listeners: Vec::new(),
            unix: Vec::new(),
            sockets: HashMap::new(),
            beside_tcp: Vec::new(),
            devices: Vec::new(),
            kinds_unread: None,
        }
    }

    fn map(id: u32, has_programs: Option<bool>, cookies: Option<&[u64]>) -> Sockmap {
        Sockmap {
            id,
            name: "redirect".to_owned(),
            has_programs,
            cookies: cookies.map(|cookies| cookies.iter().copied().collect()),
        }
    }

    #[test]
    fn libraries_are_known_by_their_file_names() {
        let maps = "\
7f0000000000-7f0000001000 r-xp 00000000 08:01 11 /usr/lib/x86_64-linux-gnu/libvma.so.9.8.1\n\
7f0000001000-7f0000002000 rw-p 00001000 08:01 11 /usr/lib/x86_64-linux-gnu/libvma.so.9.8.1\n\
7f0000002000-7f0000003000 r-xp 00000000 08:01 12 /opt/a b/libsmc-preload.so.1 (deleted)\n\
7f0000003000-7f0000004000 r-xp 00000000 08:01 13 /usr/lib/x86_64-linux-gnu/libjemalloc.so.2\n\
7f0000004000-7f0000005000 r-xp 00000000 08:01 14 /srv/libvma/data.ibd\n\
7f0000005000-7f0000006000 rw-p 00000000 00:00 0 \n\
7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0 [stack]\n";
        let found: Vec<String> = libraries(maps).into_iter().collect();
        assert_eq!(
            found,
            [
                "/opt/a b/libsmc-preload.so.1 (deleted) is loaded: SMC in place of TCP",
                "/usr/lib/x86_64-linux-gnu/libvma.so.9.8.1 is loaded: VMA, TCP in the process",
            ]
        );
    }

    #[test]
    fn sockets_past_tcp_are_named_and_others_are_not() {
        let listener = |kind| crate::servers::Listener {
            address: "10.0.0.1:3306".parse().unwrap(),
            fd: 20,
            inode: 1,
            cookie: None,
            kind,
            namespace: crate::servers::Namespace::Unknown,
            protocol: crate::servers::Protocol::Classic,
            uncovered: None,
        };
        let server = Server {
            listeners: vec![
                listener(socket::Kind::Tcp),
                listener(socket::Kind::Mptcp),
                listener(socket::Kind::Smc),
            ],
            beside_tcp: vec![(7, socket::Kind::Xdp), (9, socket::Kind::Packet)],
            devices: vec!["/dev/uio0".to_owned()],
            ..server()
        };
        let all: Vec<String> = of_sockets(&server)
            .chain(of_devices(&server))
            .map(|alarm| format!("{} {alarm}", alarm.kind.as_str()))
            .collect();
        assert_eq!(
            all,
            [
                "mptcp mysqld 912: 10.0.0.1:3306 listens by MPTCP",
                "smc mysqld 912: 10.0.0.1:3306 listens by SMC",
                "raw-socket mysqld 912: descriptor 7 is an AF_XDP socket",
                "raw-socket mysqld 912: descriptor 9 is an AF_PACKET socket",
                "user-space mysqld 912: /dev/uio0 is open",
            ]
        );
    }

    #[test]
    fn sockmaps_alarm_only_if_a_program_may_reach_a_server() {
        let server = server();
        let of = |maps: &[Sockmap]| of_sockmaps(maps, &[&server]);
        assert_eq!(of(&[]), []);
        assert_eq!(of(&[map(1, Some(false), None)]), [], "no program");
        assert_eq!(of(&[map(1, Some(true), Some(&[4, 5]))]), [], "no server's");
        let told = of(&[map(1, Some(true), Some(&[4])), map(2, Some(false), None)]);
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            ["sockmap 2 (redirect) may have sockets of servers: it does not tell"]
        );
        assert_eq!(of(&[map(1, None, None)]).len(), 1, "before Linux 5.17");
        let nobody = of_sockmaps(&[map(1, Some(true), None)], &[]);
        assert_eq!(nobody, [], "no server runs");
    }

    /// The test's own process stands for a server.
    #[test]
    fn sockets_of_a_server_are_found_by_their_cookies() {
        use std::os::fd::{AsFd as _, AsRawFd as _};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let cookie = rustix::net::sockopt::socket_cookie(listener.as_fd()).unwrap();
        let server = Server {
            pid: i32::try_from(std::process::id()).unwrap(),
            sockets: HashMap::from([(1, listener.as_raw_fd())]),
            ..server()
        };
        let among = |cookies: &[u64]| sockets_among(&server, &cookies.iter().copied().collect());
        assert_eq!(among(&[cookie, cookie + 1]), BTreeSet::from([cookie]));
        assert_eq!(among(&[cookie + 1]), BTreeSet::new());
    }

    #[test]
    fn each_way_has_a_word_of_its_own_a_meaning_and_a_remedy() {
        let words: BTreeSet<&str> = Kind::ALL.iter().map(|kind| kind.as_str()).collect();
        assert_eq!(words.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert!(
                !kind.meaning().is_empty() && !kind.remedy().is_empty(),
                "{kind:?}"
            );
        }
    }

    #[test]
    fn documentation_names_each_way() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs");
        for page in ["metrics.md", "limitations.md"] {
            let text = std::fs::read_to_string(root.join(page)).unwrap();
            for kind in Kind::ALL {
                let word = format!("`{}`", kind.as_str());
                assert!(text.contains(&word), "{word} in {page}");
            }
        }
    }
}
