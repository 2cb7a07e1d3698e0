//! What commands print: data on standard output, talk on standard error.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Prints data. A reader that has gone away (`musttls status | head`) is no error.
pub fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

/// Prints data as JSON.
pub fn print_json(data: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(data).context("encode JSON")?;
    text.push('\n');
    print(&text)
}

/// Prints data as JSON while it is encoded: there may be a million rows of it.
pub fn stream_json(data: &impl serde::Serialize) -> Result<()> {
    let mut out = BufWriter::new(io::stdout().lock());
    let written = serde_json::to_writer_pretty(&mut out, data)
        .map_err(io::Error::from)
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write JSON to standard output")
        }
        _ => Ok(()),
    }
}

/// Standard output for many lines. Its reader may go away (`musttls events | head`): that is no error, and ends the work.
#[derive(Debug)]
pub struct Lines {
    out: BufWriter<Stdout>,
    is_gone: bool,
}

impl Lines {
    /// Nothing is written yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            out: BufWriter::new(io::stdout()),
            is_gone: false,
        }
    }

    /// Whether nobody reads any more.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Writes a line, without its newline.
    pub fn line(&mut self, line: &[u8]) -> Result<()> {
        if self.is_gone {
            return Ok(());
        }
        let written = self
            .out
            .write_all(line)
            .and_then(|()| self.out.write_all(b"\n"));
        self.note(written)
    }

    /// Writes out what is kept back.
    pub fn flush(&mut self) -> Result<()> {
        if self.is_gone {
            return Ok(());
        }
        let flushed = self.out.flush();
        self.note(flushed)
    }

    /// Waits for so long, or until nobody reads any more.
    pub fn wait(&mut self, pause: Duration) -> Result<()> {
        let stdout = io::stdout();
        let pause = Timespec::try_from(pause).context("wait")?;
        // What is told without being asked for: that the reader has gone away.
        let mut ends = [PollFd::new(&stdout, PollFlags::empty())];
        match poll(&mut ends, Some(&pause)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => self.is_gone = true,
            Err(error) => return Err(io::Error::from(error)).context("watch standard output"),
        }
        Ok(())
    }

    fn note(&mut self, written: io::Result<()>) -> Result<()> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.is_gone = true,
            Err(error) => return Err(error).context("write to standard output"),
            Ok(()) => {}
        }
        Ok(())
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether colours are wanted: by a terminal, unless the environment says otherwise (<https://no-color.org>: set to anything but
/// nothing).
#[must_use]
pub fn has_colors() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// How far a long work has come, as a line on a terminal that is written over; nothing elsewhere, and nothing of what is done
/// within a second.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    is_shown: bool,
    is_terminal: bool,
    next: Instant,
}

impl Progress {
    const FIRST: Duration = Duration::from_secs(1);
    const AGAIN: Duration = Duration::from_millis(200);

    /// Of the work `what`, which begins.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        Self {
            what,
            is_shown: false,
            is_terminal: io::stderr().is_terminal(),
            next: Instant::now() + Self::FIRST,
        }
    }

    /// `done` of `all` is done.
    pub fn at(&mut self, done: u64, all: u64) {
        let now = Instant::now();
        if !self.is_terminal || now < self.next {
            return;
        }
        self.next = now + Self::AGAIN;
        self.is_shown = true;
        let percent = done.saturating_mul(100) / all.max(1);
        let filled = usize::try_from(percent / 5).unwrap_or(0).min(20);
        let bar = format!("{}{}", "#".repeat(filled), ".".repeat(20 - filled));
        // Behind the bar the rest of the line is cleared.
        drop(write!(
            io::stderr().lock(),
            "\r{} [{bar}] {percent} %\x1b[K",
            self.what
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            drop(write!(io::stderr().lock(), "\r\x1b[K"));
        }
    }
}

/// Says something to the person at the terminal. There is nowhere to say that this failed.
pub fn complain(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
