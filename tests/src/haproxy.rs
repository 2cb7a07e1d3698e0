//! HAProxy, which puts the first bytes of a connection on the third ACK of its handshake (`TCP_QUICKACK` off).

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

use crate::netns::Host;
use crate::place::Scratch;
use crate::wait::{self, PATIENCE};

/// Checks that it makes at a time.
pub const CHECKS: u64 = 4;

/// HAProxy on a host.
#[derive(Debug)]
pub struct HaProxy {
    child: Child,
    directory: Scratch,
}

impl HaProxy {
    /// One that checks a server under some names with the option `check`, again 100 ms after each result.
    pub fn checking(host: &Host, to: SocketAddr, check: &str) -> Result<Self> {
        let mut config = format!("backend db\n  {check}\n");
        for number in 0..CHECKS {
            writeln!(config, "  server db{number} {to} check inter 100ms")?;
        }
        Self::start(host, &config)
    }

    /// One that passes on what comes to `at` to a server, with the option `header`.
    pub fn proxying(host: &Host, at: SocketAddr, to: SocketAddr, header: &str) -> Result<Self> {
        let config = format!("listen db\n  bind {at}\n  server db0 {to} {header}\n");
        Self::start(host, &config)
    }

    fn start(host: &Host, sections: &str) -> Result<Self> {
        let directory = Scratch::new()?;
        let config = format!(
            "global\n  stats socket {}\n\
             defaults\n  mode tcp\n  timeout connect 20s\n  timeout client 20s\n  timeout server 20s\n  \
             timeout check 20s\n{sections}",
            directory.join("stats.sock").display()
        );
        let file = directory.join("haproxy.cfg");
        fs::write(&file, config)?;
        let mut command = Command::new("haproxy");
        command
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = host.spawn(&mut command)?;
        Ok(Self { child, directory })
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("stats.sock")
    }

    /// Waits until the server's state and the result of its last check begin with `state`, and returns the
    /// whole with what the server said.
    pub fn await_state(&self, state: &str) -> Result<String> {
        wait::until(&format!("the state {state}"), PATIENCE, || {
            Ok(self.state().filter(|found| found.starts_with(state)))
        })
        .with_context(|| format!("not {:?}", self.state()))
    }

    /// `status,check_status,last_chk` of the server; none before the first check.
    fn state(&self) -> Option<String> {
        let mut socket = UnixStream::connect(self.socket()).ok()?;
        socket.write_all(b"show stat\n").ok()?;
        let mut table = String::new();
        socket.read_to_string(&mut table).ok()?;
        let mut lines = table.lines();
        let head: Vec<_> = lines.next()?.trim_start_matches("# ").split(',').collect();
        let row: Vec<_> = lines
            .find(|line| line.starts_with("db,db0,"))?
            .split(',')
            .collect();
        let field = |name: &str| {
            let index = head.iter().position(|column| *column == name)?;
            row.get(index).copied()
        };
        // A star stands there while the next check runs.
        let last = field("check_status")?.trim_start_matches("* ");
        let done = !last.is_empty() && last != "INI";
        done.then(|| {
            format!(
                "{},{last},{}",
                field("status").unwrap_or_default(),
                row.join(",")
            )
        })
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
