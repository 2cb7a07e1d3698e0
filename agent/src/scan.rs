//! `musttls scan`: the servers of this host, without an agent and without a configuration.
//!
//! Whether a server offers TLS stands in its greeting. That is read over its Unix socket where there is one:
//! a connection over TCP that is not followed by a login counts as an aborted handshake against the address
//! it comes from (`max_connect_errors`); over a Unix socket there is no address to count against.

use std::fmt;
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use musttls_common::mysql::{GREETING_STEPS, Greeting, GreetingReader};
use musttls_common::stream::advance;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde::Serialize;

use crate::bypass::Watch;
use crate::login::printable;
use crate::servers::{self, Server};
use crate::status::Alarm;

/// How long a server may take to greet.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest greeting that is read, in bytes.
const GREETING_MAX: usize = 512;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The servers.
    pub servers: Vec<Entry>,
    /// Ways by which bytes reach them without passing a gate.
    pub alarms: Vec<Alarm>,
    /// Kinds of alarms that could not be looked for, and why.
    pub unchecked: Vec<String>,
    /// Processes that could not be looked into.
    pub errors: Vec<String>,
}

/// A server.
#[derive(Debug, Serialize)]
pub struct Entry {
    /// Its process id.
    pub pid: i32,
    /// Its program.
    pub program: String,
    /// Its version, from its greeting.
    pub version: Option<String>,
    /// Whether it offers TLS, from its greeting.
    pub tls_offered: Option<bool>,
    /// Why the greeting could not be read.
    pub problem: Option<String>,
    /// Its cgroup.
    pub cgroup: String,
    /// Its container, if any.
    pub container: Option<String>,
    /// Its listening sockets: address, and `classic` or what else it speaks.
    pub listeners: Vec<(String, String)>,
    /// Paths of its Unix sockets.
    pub unix: Vec<String>,
}

/// Finds the servers of this host.
pub fn scan() -> Result<Found> {
    let (servers, errors) = servers::find().context("list the processes of this host")?;
    let look = Watch::default().look(&servers.iter().collect::<Vec<_>>());
    Ok(Found {
        alarms: look.alarms.iter().map(Alarm::from).collect(),
        unchecked: look.unchecked_lines(),
        servers: servers.iter().map(entry).collect(),
        errors: errors.iter().map(ToString::to_string).collect(),
    })
}

fn entry(server: &Server) -> Entry {
    let greeting = greet(server);
    let (version, tls_offered, problem) = match greeting {
        Ok((version, offered)) => (Some(version), Some(offered), None),
        Err(error) => (None, None, Some(format!("{error:#}"))),
    };
    Entry {
        pid: server.pid,
        program: server.program.clone(),
        version,
        tls_offered,
        problem,
        cgroup: server.cgroup.clone(),
        container: server.container.clone(),
        listeners: server
            .listeners
            .iter()
            .map(|listener| {
                (
                    listener.address.to_string(),
                    listener.protocol.as_str().to_owned(),
                )
            })
            .collect(),
        unix: server
            .unix
            .iter()
            .map(|listener| listener.path.display().to_string())
            .collect(),
    }
}

/// Reads the version and the offer of TLS from the greeting on the first Unix socket that has one.
fn greet(server: &Server) -> Result<(String, bool)> {
    let mut last = anyhow::anyhow!("it has no Unix socket to ask");
    for listener in &server.unix {
        match greeting(server.pid, &listener.path) {
            Ok(greeting) => return Ok(greeting),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Connects within [`PATIENCE`]: a server that accepts nothing has its caller wait for ever (`unix_stream_connect`).
fn connect(path: &Path) -> std::io::Result<UnixStream> {
    let to = SocketAddrUnix::new(path)?;
    let began = Instant::now();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&socket, &to) {
            Ok(()) => {
                let stream = UnixStream::from(socket);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            // Its queue is full.
            Err(Errno::AGAIN) if began.elapsed() < PATIENCE => sleep(PATIENCE / 20),
            Err(error) => return Err(error.into()),
        }
    }
}

fn greeting(pid: i32, path: &Path) -> Result<(String, bool)> {
    // Through the server's own root: it may be in a container, or in a chroot.
    let relative = path.strip_prefix("/").unwrap_or(path);
    let there = Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(relative);
    let mut stream = connect(&there).with_context(|| format!("connect to {}", path.display()))?;
    stream
        .set_read_timeout(Some(PATIENCE))
        .context("set a timeout")?;
    let mut bytes = Vec::new();
    let mut reader = GreetingReader::default();
    let mut buffer = [0; GREETING_MAX];
    while reader.greeting() == Greeting::Unknown && bytes.len() < GREETING_MAX {
        let n = stream
            .read(&mut buffer)
            .with_context(|| format!("read from {}", path.display()))?;
        if n == 0 {
            break;
        }
        let start = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes.extend(buffer.get(..n).unwrap_or_default());
        let end = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let load = |at: u32| bytes.get(usize::try_from(at).ok()?).copied();
        if !advance(&mut reader, start, end, GREETING_STEPS, load) {
            break;
        }
    }
    let offered = match reader.greeting() {
        Greeting::WithTls => true,
        Greeting::WithoutTls => false,
        Greeting::Unknown | Greeting::Error | Greeting::Foreign | Greeting::MysqlX => {
            anyhow::bail!(
                "{} does not greet as the classic protocol does",
                path.display()
            )
        }
    };
    let version = bytes
        .get(5..)
        .unwrap_or_default()
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default();
    Ok((printable(without_hack(version)).0, offered))
}

/// The version of a greeting as the server itself has it. `MariaDB` before 11 puts one of `MySQL` before its own, for old replicas.
///
/// Source: `MariaDB` 10.11, `include/mysql_com.h`, `RPL_VERSION_HACK`.
fn without_hack(version: &[u8]) -> &[u8] {
    version
        .strip_prefix(b"5.5.5-")
        .filter(|rest| rest.first().is_some_and(u8::is_ascii_digit))
        .unwrap_or(version)
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.servers.is_empty() && self.errors.is_empty() {
            return writeln!(f, "no MySQL or MariaDB server runs on this host");
        }
        for server in &self.servers {
            let tls = match server.tls_offered {
                Some(true) => "offers TLS",
                Some(false) => "offers NO TLS: in enforce mode no client could log in over TCP",
                None => "TLS unknown",
            };
            let version = server.version.as_deref().unwrap_or("version unknown");
            writeln!(f, "{} {} {version}: {tls}", server.program, server.pid)?;
            if let Some(problem) = &server.problem {
                writeln!(f, "  {}", printable(problem.as_bytes()).0)?;
            }
            for (address, protocol) in &server.listeners {
                writeln!(f, "  {address:<28} {protocol}")?;
            }
            for path in &server.unix {
                let path = printable(path.as_bytes()).0;
                writeln!(f, "  {path:<28} Unix socket")?;
            }
        }
        for alarm in &self.alarms {
            write!(f, "{alarm}")?;
        }
        for unchecked in &self.unchecked {
            writeln!(f, "not looked for: {unchecked}")?;
        }
        self.errors
            .iter()
            .try_for_each(|error| writeln!(f, "{error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn versions_are_those_of_the_servers() {
        for (sent, own) in [
            ("5.5.5-10.11.14-MariaDB-log", "10.11.14-MariaDB-log"),
            ("11.8.2-MariaDB", "11.8.2-MariaDB"),
            ("8.4.6", "8.4.6"),
            ("5.5.5-m3", "5.5.5-m3"),
        ] {
            assert_eq!(without_hack(sent.as_bytes()), own.as_bytes());
        }
    }

    #[test]
    fn a_server_that_accepts_nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let _waits = connect(&path).unwrap();
        let began = Instant::now();
        let error = connect(&path).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
        assert!(began.elapsed() >= PATIENCE);
    }

    #[test]
    fn paths_of_sockets_reach_no_terminal_with_control_characters() {
        let path = "/tmp/\u{1b}]0;name\u{7}";
        let found = Found {
            servers: vec![Entry {
                pid: 7,
                program: "mysqld".to_owned(),
                version: None,
                tls_offered: None,
                problem: Some(format!("connect to {path}")),
                cgroup: "/".to_owned(),
                container: None,
                listeners: Vec::new(),
                unix: vec![path.to_owned()],
            }],
            alarms: Vec::new(),
            unchecked: Vec::new(),
            errors: Vec::new(),
        };
        let text = found.to_string();
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{text:?}");
        assert!(text.contains("/tmp/\u{fffd}]0;name\u{fffd}"), "{text:?}");
    }
}
