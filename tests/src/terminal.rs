//! A terminal of the tests' own: a pseudo-terminal, and what a program has drawn on it.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::wait;

/// A program in a terminal; it is killed when this is dropped.
#[derive(Debug)]
pub struct Terminal {
    child: Child,
    master: File,
    /// Kept open: its modes can be asked for as long as it is.
    slave: File,
    /// Bytes that came, all of them.
    said: Vec<u8>,
    screen: Screen,
}

/// What stands on the screen.
#[derive(Clone, Debug)]
pub struct Screen {
    cells: Vec<Vec<char>>,
    row: usize,
    column: usize,
    /// Where the cursor was on the other screen.
    left_at: (usize, usize),
    /// Whether the alternate screen is shown.
    pub is_alternate: bool,
    /// Whether the cursor is shown.
    pub has_cursor: bool,
    /// The beginning of a character or of an escape sequence whose end has not come.
    rest: Vec<u8>,
}

impl Terminal {
    /// Runs `words` in a new terminal of that many columns and rows, as the leader of a session of its own.
    pub fn run(words: &[&Path], (columns, rows): (u16, u16)) -> Result<Self> {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).context("open a terminal")?;
        grantpt(&master).context("grant the terminal")?;
        unlockpt(&master).context("unlock the terminal")?;
        let name = ptsname(&master, Vec::new()).context("name the terminal")?;
        let path = Path::new(std::ffi::OsStr::from_bytes(name.as_bytes()));
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&master, size).context("set the size of the terminal")?;
        fcntl_setfl(&master, OFlags::RDWR | OFlags::NONBLOCK).context("make reads not block")?;
        // Without O_NOCTTY it could become that of the tests.
        let slave = rustix::fs::open(
            path,
            OFlags::RDWR | OFlags::NOCTTY,
            rustix::fs::Mode::empty(),
        )
        .map(File::from)
        .with_context(|| format!("open {}", path.display()))?;
        let share = || slave.try_clone().context("share the terminal");
        // Whoever runs the tests in the background may have them ignore what Ctrl-C sends.
        let child = Command::new("env")
            .args(["--default-signal=INT", "setsid", "--ctty"])
            .args(words)
            .env("TERM", "xterm-256color")
            .env_remove("NO_COLOR")
            .stdin(share()?)
            .stdout(share()?)
            .stderr(share()?)
            .spawn()
            .with_context(|| format!("run {words:?} in a terminal"))?;
        Ok(Self {
            child,
            master: master.into(),
            slave,
            said: Vec::new(),
            screen: Screen::new(columns, rows),
        })
    }

    /// Has another size from now on; what stood there is gone.
    pub fn resize(&mut self, (columns, rows): (u16, u16)) -> Result<()> {
        self.screen()?;
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).context("set the size of the terminal")?;
        self.screen.cells = vec![vec![' '; columns.into()]; rows.into()];
        Ok(())
    }

    /// Types.
    pub fn keys(&mut self, keys: &str) -> Result<()> {
        self.master.write_all(keys.as_bytes()).context("type")
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id out of range")?;
        kill_process(Pid::from_raw(pid).context("process id 0")?, signal).context("send a signal")
    }

    /// The program's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What stands on the screen now.
    pub fn screen(&mut self) -> Result<&Screen> {
        let mut buffer = [0; 4096];
        loop {
            match self.master.read(&mut buffer) {
                Ok(0) => break,
                Ok(len) => {
                    let bytes = buffer.get(..len).unwrap_or_default();
                    self.said.extend_from_slice(bytes);
                    self.screen.take(bytes);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("read the terminal"),
            }
        }
        Ok(&self.screen)
    }

    /// Waits until the screen is `wanted`.
    pub fn await_screen(
        &mut self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Screen) -> bool,
    ) -> Result<()> {
        let seen = wait::until_true(what, deadline, || Ok(wanted(self.screen()?)));
        seen.with_context(|| format!("the screen:\n{}", self.screen.text()))
    }

    /// Waits until `text` stands somewhere.
    pub fn await_text(&mut self, text: &str, deadline: Duration) -> Result<()> {
        self.await_screen(&format!("`{text}` on the screen"), deadline, |screen| {
            screen.text().contains(text)
        })
    }

    /// Waits for the end of the program, and takes in what it said last.
    pub fn await_end(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let status = wait::until("the program in the terminal to end", deadline, || {
            self.screen()?;
            self.child.try_wait().context("look for the program")
        })?;
        self.screen()?;
        Ok(status)
    }

    /// All bytes that came so far.
    #[must_use]
    pub fn said(&self) -> &[u8] {
        &self.said
    }

    /// Whether it echoes what is typed and hands it over by lines, as a shell leaves it.
    pub fn is_cooked(&self) -> Result<bool> {
        let modes = tcgetattr(&self.slave).context("ask for the terminal's modes")?;
        let usual = LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        Ok(modes.local_modes.contains(usual))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

impl Screen {
    fn new(columns: u16, rows: u16) -> Self {
        Self {
            cells: vec![vec![' '; columns.into()]; rows.into()],
            row: 0,
            column: 0,
            left_at: (0, 0),
            is_alternate: false,
            has_cursor: true,
            rest: Vec::new(),
        }
    }

    /// Its rows.
    #[must_use]
    pub fn text(&self) -> String {
        let rows = self.cells.iter().map(|row| {
            let text: String = row.iter().collect();
            text.trim_end().to_owned()
        });
        rows.collect::<Vec<_>>().join("\n")
    }

    /// The first row that begins with `start`.
    #[must_use]
    pub fn row(&self, start: &str) -> Option<String> {
        let text = self.text();
        text.lines()
            .find(|row| row.starts_with(start))
            .map(str::to_owned)
    }

    fn take(&mut self, bytes: &[u8]) {
        self.rest.extend_from_slice(bytes);
        let bytes = std::mem::take(&mut self.rest);
        // What is cut at the end waits for the next read.
        let whole = match std::str::from_utf8(&bytes) {
            Ok(_) => bytes.len(),
            Err(error) => error.valid_up_to(),
        };
        let (text, cut) = bytes.split_at(whole);
        let text: Vec<char> = String::from_utf8_lossy(text).chars().collect();
        let mut at = 0;
        while let Some(&c) = text.get(at) {
            if c != '\u{1b}' {
                self.put(c);
                at += 1;
                continue;
            }
            let rest = text.get(at..).unwrap_or_default();
            let Some(len) = sequence(rest) else {
                let rest: String = rest.iter().collect();
                self.rest.extend_from_slice(rest.as_bytes());
                break;
            };
            let sequence: String = rest.iter().take(len).collect();
            self.obey(&sequence);
            at += len;
        }
        self.rest.extend_from_slice(cut);
    }

    fn put(&mut self, c: char) {
        match c {
            '\r' => self.column = 0,
            '\n' => self.row = (self.row + 1).min(self.cells.len().saturating_sub(1)),
            c if c.is_control() => {}
            c => {
                let cell = self
                    .cells
                    .get_mut(self.row)
                    .and_then(|row| row.get_mut(self.column));
                if let Some(cell) = cell {
                    *cell = c;
                }
                self.column += 1;
            }
        }
    }

    /// Does what matters here: moves, erases, the two switches. Colours are passed over.
    fn obey(&mut self, sequence: &str) {
        match sequence {
            "\u{1b}[?1049h" | "\u{1b}[?1049l" => {
                self.is_alternate = sequence.ends_with('h');
                if self.is_alternate {
                    self.left_at = (self.row, self.column);
                } else {
                    (self.row, self.column) = self.left_at;
                }
                self.clear();
            }
            "\u{1b}[?25h" => self.has_cursor = true,
            "\u{1b}[?25l" => self.has_cursor = false,
            "\u{1b}[2J" => self.clear(),
            _ => {
                let place = sequence
                    .strip_prefix("\u{1b}[")
                    .and_then(|rest| rest.strip_suffix('H'));
                if let Some((row, column)) = place.and_then(|place| place.split_once(';')) {
                    let from_one =
                        |text: &str| text.parse::<usize>().unwrap_or(1).saturating_sub(1);
                    (self.row, self.column) = (from_one(row), from_one(column));
                }
            }
        }
    }

    fn clear(&mut self) {
        self.cells.iter_mut().for_each(|row| row.fill(' '));
    }
}

/// How long the escape sequence at the beginning of `text` is (ECMA-48 5.4); none if it is cut.
fn sequence(text: &[char]) -> Option<usize> {
    match text.get(1)? {
        '[' => {
            let last = text
                .iter()
                .skip(2)
                .position(|c| ('\u{40}'..='\u{7e}').contains(c))?;
            Some(last + 3)
        }
        _ => Some(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_drawn_in_pieces_stands_where_it_was_put() {
        let mut screen = Screen::new(10, 3);
        let drawn = "\u{1b}[?1049h\u{1b}[?25l\u{1b}[2;3H\u{1b}[1;31mmüd\u{1b}[0m\u{1b}[1;1Ha";
        for byte in drawn.as_bytes() {
            screen.take(&[*byte]);
        }
        assert_eq!(screen.text(), "a\n  müd\n");
        assert!(screen.is_alternate && !screen.has_cursor);
        screen.take(b"\x1b[?1049l\x1b[?25hb\r\nc");
        assert!(!screen.is_alternate && screen.has_cursor);
        assert_eq!(screen.text(), "b\nc\n");
    }
}
