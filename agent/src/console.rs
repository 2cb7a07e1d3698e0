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

/// Prints data for a person: on a terminal, lines that are too long for it go on below, and no word is cut.
pub fn print_wrapped(text: &str) -> Result<()> {
    let size = rustix::termios::tcgetwinsize(io::stdout());
    match size.map(|size| usize::from(size.ws_col)) {
        Ok(width) if width >= NARROWEST => print(&wrapped(text, width)),
        _ => print(text),
    }
}

/// The narrowest terminal for which lines are broken: below, they would hold a word or two.
const NARROWEST: usize = 40;

/// `text` with lines of at most `width` characters, but for longer words. What goes on below stands further in.
fn wrapped(text: &str, width: usize) -> String {
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let line = &whole_cells(line);
        let indent = line.len() - line.trim_start_matches(' ').len();
        let further = (indent + 4).min(width / 2);
        let mut used = 0;
        for (index, word) in line.split_inclusive(' ').enumerate() {
            let len = word.trim_end_matches(' ').chars().count();
            if index > 0 && len > 0 && used + len > width {
                out.truncate(out.trim_end_matches(' ').len());
                out.push('\n');
                out.push_str(&" ".repeat(further));
                used = further;
            }
            out.push_str(word);
            used += word.chars().count();
        }
        out.truncate(out.trim_end_matches(' ').len());
        out.push('\n');
    }
    out.replace(JOINT, " ")
}

/// A space between words of one cell.
const JOINT: char = '\u{a0}';

/// The row of a table with the words of each cell held together; another line as it is. Columns are two spaces or more apart.
fn whole_cells(line: &str) -> String {
    let cells: Vec<&str> = line.split("  ").filter(|cell| !cell.is_empty()).collect();
    if cells.len() < COLUMNS {
        return line.to_owned();
    }
    let cells = line.split("  ").map(|cell| {
        let words = cell.trim_start_matches(' ');
        let (space, _) = cell.split_at(cell.len() - words.len());
        format!(
            "{space}{}",
            words.replace(' ', JOINT.encode_utf8(&mut [0; 2]))
        )
    });
    cells.collect::<Vec<_>>().join("  ")
}

/// What has so many columns is a table.
const COLUMNS: usize = 4;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_are_too_long_go_on_below_between_words() {
        let text = "  driver: one two three four\nshort\n\n";
        assert_eq!(
            wrapped(text, 20),
            "  driver: one two\n      three four\nshort\n\n"
        );
        assert_eq!(
            wrapped("a-word-that-is-too-long x\n", 10),
            "a-word-that-is-too-long\n    x\n"
        );
        assert_eq!(wrapped("1  22  333\n", 10), "1  22  333\n");
    }

    #[test]
    fn cells_of_a_table_are_not_broken() {
        let text =
            "  SERVER  USER   TLS  LAST SEEN (UTC)\n  orders  a b c  -    2026-11-23 12:00\n";
        assert_eq!(
            wrapped(text, 28),
            "  SERVER  USER   TLS\n      LAST SEEN (UTC)\n  orders  a b c  -\n      2026-11-23 12:00\n"
        );
    }
}
