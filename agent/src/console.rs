//! What commands print: data on standard output, talk on standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

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
    let mut out = io::BufWriter::new(io::stdout().lock());
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
