//! Runs other programs: says what it runs, and on failure what was run, how it ended and its last lines.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result, bail};

/// Enough to hold a compiler error or an apt failure with its cause.
const LAST_LINES: usize = 30;

pub(crate) struct Cmd {
    command: Command,
    line: String,
}

impl Cmd {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let line = program.as_ref().to_string_lossy().into_owned();
        Self {
            command: Command::new(program),
            line,
        }
    }

    /// `cargo` of the pinned toolchain, in the work tree. What `cargo run` has set for this program is not passed on: ring's
    /// build script depends on it, and would run and have all its dependents built again.
    pub(crate) fn cargo() -> Result<Self> {
        let mut cargo = Self::new("cargo").dir(crate::cache::repository()?);
        for (name, _) in std::env::vars_os() {
            let bytes = name.as_encoded_bytes();
            if bytes.starts_with(b"CARGO_PKG_") || bytes.starts_with(b"CARGO_MANIFEST_") {
                cargo.command.env_remove(&name);
            }
        }
        Ok(cargo)
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.line.push(' ');
        self.line.push_str(&arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn dir(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs with the terminal's own output, for what a person wants to watch.
    pub(crate) fn stream(mut self) -> Result<()> {
        println!("$ {}", self.line);
        let status = self
            .command
            .status()
            .with_context(|| format!("run `{}`", self.line))?;
        ended_well(&self.line, status, "")
    }

    /// Runs a `cargo test`, prints what it prints, and names on failure the tests that failed: other output
    /// may follow it.
    pub(crate) fn stream_tests(self) -> Result<()> {
        println!("$ {}", self.line);
        let mut failed = Vec::new();
        let (line, status) = self.each_line(|line| {
            println!("{line}");
            if line.starts_with("test ") && line.ends_with("FAILED") {
                failed.push(line.to_owned());
            }
        })?;
        ended_well(&line, status, &failed.join("\n"))
    }

    /// Runs in silence and shows the last lines only if it fails.
    pub(crate) fn quiet(self) -> Result<()> {
        println!("  $ {}", self.line);
        self.output().map(drop)
    }

    /// What the program printed, on both streams.
    pub(crate) fn output(self) -> Result<String> {
        let mut text = String::new();
        let (line, status) = self.each_line(|line| {
            text.push_str(line);
            text.push('\n');
        })?;
        ended_well(&line, status, &text)?;
        Ok(text)
    }

    /// Runs, and gives each line of both streams to `take`. Returns the command line and how it ended.
    fn each_line(self, mut take: impl FnMut(&str)) -> Result<(String, ExitStatus)> {
        let Self { mut command, line } = self;
        let running = || format!("run `{line}`");
        let (reader, writer) = io::pipe().with_context(running)?;
        let errors = writer.try_clone().with_context(running)?;
        command.stdin(Stdio::null()).stdout(writer).stderr(errors);
        let mut child = command.spawn().with_context(running)?;
        // It holds the writing ends; the reader sees an end only when they are closed.
        drop(command);
        for read in BufReader::new(reader).split(b'\n') {
            take(&String::from_utf8_lossy(&read.with_context(running)?));
        }
        let status = child.wait().with_context(running)?;
        Ok((line, status))
    }

    /// What the program printed, or nothing when it is missing or fails: for questions such as
    /// "which version is installed", where both mean no.
    pub(crate) fn answer(self) -> Option<String> {
        self.output().ok()
    }
}

fn ended_well(line: &str, status: ExitStatus, text: &str) -> Result<()> {
    if status.success() {
        return Ok(());
    }
    match last_lines(text, LAST_LINES) {
        lines if lines.is_empty() => bail!("`{line}` ended with {status}"),
        lines => bail!("`{line}` ended with {status}; its last lines:\n{lines}"),
    }
}

pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let mut last = VecDeque::with_capacity(count);
    for line in text.lines() {
        if last.len() == count {
            last.pop_front();
        }
        last.push_back(format!("    {line}"));
    }
    Vec::from(last).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_names_command_status_and_last_lines() {
        let error = Cmd::new("sh")
            .args(["-c", "echo one; echo two >&2; exit 3"])
            .output()
            .unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("sh -c") && text.contains("exit status: 3"),
            "{text}"
        );
        assert!(text.contains("one") && text.contains("two"), "{text}");
    }

    #[test]
    fn failed_tests_are_named() {
        let script = "echo 'test good ... ok'; echo 'test bad ... FAILED'; exit 101";
        let error = Cmd::new("sh").args(["-c", script]).stream_tests();
        let text = format!("{:#}", error.unwrap_err());
        assert!(text.contains("test bad"), "{text}");
        assert!(!text.contains("test good ... ok\n"), "{text}");
    }

    #[test]
    fn missing_program_is_no_answer() {
        assert_eq!(Cmd::new("/no/such/program").answer(), None);
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        assert_eq!(last_lines("a\nb\nc", 2), "    b\n    c");
    }
}
