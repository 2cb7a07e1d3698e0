//! Finds the descriptor of a denied session in its server's process.
//!
//! A server gives the lowest free number to a connection. So a new session has the lowest of the numbers that
//! refused ones gave back, or, while none is free, the one behind the last: these are tried first, a few
//! microseconds each. Else the numbers are gone through from the highest in use, once for all sessions that wait: on
//! a server with many open sessions a new one is at the top, more often than not. Reading `/proc/PID/fd` instead
//! would cost several times as much for each descriptor.

use std::collections::{BTreeSet, HashMap};
use std::io;

use crate::socket::{Process, Socket};

/// How many of the numbers given back are tried before a scan, and how many behind the last.
const GUESSES: usize = 4;
/// How many numbers given back are remembered: the lowest.
const FREE: usize = 1024;
/// How many numbers above the highest known are tried before all below it.
const HEADROOM: i32 = 64;

/// Finds sessions in one process.
#[derive(Debug)]
pub(super) struct Locator {
    process: Process,
    /// Numbers that refused sessions gave back.
    free: BTreeSet<i32>,
    /// The number found last.
    last: i32,
    /// The highest number that the last scan met.
    highest: i32,
}

impl Locator {
    /// A locator for process `pid`.
    pub(super) fn open(pid: i32) -> io::Result<Self> {
        Ok(Self {
            process: Process::open(pid)?,
            free: BTreeSet::new(),
            last: 0,
            highest: 0,
        })
    }

    /// Looks where the next session is likely to be.
    pub(super) fn guess(&mut self, cookie: u64) -> io::Result<Option<(i32, Socket)>> {
        let free: Vec<i32> = self.free.iter().copied().take(GUESSES).collect();
        let behind = (self.last..).take(GUESSES);
        for fd in free.into_iter().chain(behind) {
            match self.process.duplicate_if(fd, cookie) {
                Ok(Some(socket)) => {
                    self.note(fd);
                    return Ok(Some((fd, socket)));
                }
                // Taken by another session.
                Ok(None) => {
                    self.free.remove(&fd);
                }
                // Taken by a file.
                Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
                    self.free.remove(&fd);
                }
                // Still free.
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// A refused session has given its number back.
    pub(super) fn given_back(&mut self, fd: i32) {
        self.free.insert(fd);
        if self.free.len() > FREE {
            self.free.pop_last();
        }
    }

    /// Looks at all sockets for any of `cookies`.
    pub(super) fn scan(&mut self, cookies: &[u64]) -> io::Result<HashMap<u64, (i32, Socket)>> {
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
                Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => {
                    self.highest = self.highest.max(fd);
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.highest = self.highest.max(fd);
            if let Ok(cookie) = socket.cookie()
                && cookies.contains(&cookie)
            {
                self.note(fd);
                found.insert(cookie, (fd, socket));
            }
        }
        Ok(found)
    }

    fn note(&mut self, fd: i32) {
        self.free.remove(&fd);
        self.last = fd;
    }
}
