//! Finds the descriptor of a denied session in its server's process.
//!
//! A server gives the lowest free number to a connection, and a refused one gives it back at once, so the
//! next is likely to have one of the last numbers found: these are tried first, a few microseconds each.
//! Else the numbers are gone through from the highest in use, once for all sessions that wait: on a server
//! with many open sessions a new one is at the top, more often than not. Reading `/proc/PID/fd` instead
//! would cost several times as much for each descriptor.

use std::collections::{HashMap, VecDeque};
use std::io;

use super::socket::{Process, Socket};

/// How many of the last numbers are tried before a scan.
const HINTS: usize = 8;
/// How many numbers above the highest known are tried before all below it.
const HEADROOM: i32 = 64;

/// Finds sessions in one process.
#[derive(Debug)]
pub(super) struct Locator {
    process: Process,
    hints: VecDeque<i32>,
    /// The highest number that the last scan met.
    highest: i32,
}

impl Locator {
    /// A locator for process `pid`.
    pub(super) fn open(pid: i32) -> io::Result<Self> {
        Ok(Self {
            process: Process::open(pid)?,
            hints: VecDeque::new(),
            highest: 0,
        })
    }

    /// Looks where the last sessions were.
    pub(super) fn guess(&mut self, cookie: u64) -> io::Result<Option<Socket>> {
        for place in 0..self.hints.len() {
            let Some(&fd) = self.hints.get(place) else {
                break;
            };
            match self.process.duplicate_if(fd, cookie) {
                Ok(Some(socket)) => {
                    self.note(fd);
                    return Ok(Some(socket));
                }
                Ok(None) => {}
                // Closed meanwhile.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Looks at all sockets for any of `cookies`.
    pub(super) fn scan(&mut self, cookies: &[u64]) -> io::Result<HashMap<u64, Socket>> {
        let mut found = HashMap::new();
        let end = self.process.descriptor_table_len()?;
        let top = self.highest.saturating_add(HEADROOM).min(end);
        self.highest = 0;
        for fd in (0..top).rev().chain(top..end) {
            if found.len() == cookies.len() {
                break;
            }
            let socket = match self.process.duplicate(fd) {
                Ok(socket) => socket,
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => continue,
                Err(error) => return Err(error),
            };
            self.highest = self.highest.max(fd);
            // A descriptor that is no socket has no cookie.
            if let Ok(cookie) = socket.cookie()
                && cookies.contains(&cookie)
            {
                self.note(fd);
                found.insert(cookie, socket);
            }
        }
        Ok(found)
    }

    fn note(&mut self, fd: i32) {
        self.hints.retain(|&known| known != fd);
        self.hints.push_front(fd);
        self.hints.truncate(HINTS);
    }
}
