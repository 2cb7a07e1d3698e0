//! `docs/rollout.md`, walked: each command of the page is run, in its order, and must print what the page shows.
//!
//! Fenced blocks of the language `console` are read: a line that begins with a prompt (`db# `, `app$ `, `legacy$ `) is a command on that
//! host, what follows is its output. Where the output is another one each time, the page has a placeholder:
//!
//! | on the page | stands for |
//! |---|---|
//! | `<time>` | a date, with or without the time of the day and its offset |
//! | `<number>` | digits |
//! | `<word>` | what has no space in it |
//! | a line `...` | any lines, or none |
//!
//! Spaces count as one: a placeholder has another width than what it stands for. `musttls top` runs in a terminal of 80 columns and 24
//! rows; the lines of the page must stand on its screen, then `q` is typed.

#![cfg(test)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use musttls_tests::agent::{Agent, Home};
use musttls_tests::audit::Record;
use musttls_tests::netns::Host;
use musttls_tests::place::{self, Killed, Scratch};
use musttls_tests::server::{Options, Product};
use musttls_tests::site::Site;
use musttls_tests::terminal::Terminal;
use musttls_tests::wait::PATIENCE;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/rollout.md");
/// The configuration that the packages install.
const PACKAGED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/musttls.toml");
const SIZE: (u16, u16) = (80, 24);
/// The password of both users, which the page does not show.
const PASSWORD: &str = "Not-On-The-Page-5";
/// Where the packages' files are, and what is there during the walk.
const PLACES: [(&str, &str); 3] = [
    ("/etc/musttls", "etc"),
    ("/var/log/musttls", "log"),
    ("/var/lib/musttls", "lib"),
];

/// A command of the page and what it prints there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Step {
    line: usize,
    host: String,
    command: String,
    output: Vec<String>,
}

/// The steps of a page.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_console = false;
    for (index, line) in page.lines().enumerate() {
        if let Some(language) = line.strip_prefix("```") {
            is_console = !is_console && language == "console";
            continue;
        }
        if !is_console {
            continue;
        }
        let prompt = ["db# ", "app$ ", "legacy$ "]
            .into_iter()
            .find_map(|prompt| Some((prompt, line.strip_prefix(prompt)?)));
        if let Some((prompt, command)) = prompt {
            steps.push(Step {
                line: index + 1,
                host: prompt.trim_end_matches(['#', '$', ' ']).to_owned(),
                command: command.to_owned(),
                output: Vec::new(),
            });
            continue;
        }
        let step = steps.last_mut().expect("output without a command");
        if step.command.ends_with('\\') {
            step.command.push('\n');
            step.command.push_str(line);
        } else {
            step.output.push(line.to_owned());
        }
    }
    steps
}

fn is_time(text: &str) -> bool {
    let date = text.get(..10).unwrap_or_default();
    let is_date = date.char_indices().all(|(index, c)| match index {
        4 | 7 => c == '-',
        _ => c.is_ascii_digit(),
    });
    let rest = text.get(10..).unwrap_or_default();
    !date.is_empty()
        && is_date
        && rest
            .chars()
            .all(|c| c.is_ascii_digit() || "T:. Z+-".contains(c))
}

type Kind = (&'static str, fn(&str) -> bool);
const KINDS: [Kind; 3] = [
    ("<time>", is_time),
    ("<number>", |text| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
    }),
    ("<word>", |text| !text.is_empty() && !text.contains(' ')),
];

/// Whether `text` is what the page shows by `pattern`.
fn is_like(pattern: &str, text: &str) -> bool {
    for (name, is_it) in KINDS {
        if let Some(rest) = pattern.strip_prefix(name) {
            return text
                .char_indices()
                .map(|(index, _)| index)
                .chain([text.len()])
                .any(|end| is_it(&text[..end]) && is_like(rest, &text[end..]));
        }
    }
    match (pattern.chars().next(), text.chars().next()) {
        (None, None) => true,
        (Some(one), Some(other)) if one == other => {
            is_like(&pattern[one.len_utf8()..], &text[other.len_utf8()..])
        }
        _ => false,
    }
}

/// The same for lines, of which `...` stands for any.
fn are_like(patterns: &[String], lines: &[String]) -> bool {
    match patterns.split_first() {
        None => lines.is_empty(),
        Some((pattern, rest)) if pattern == "..." => {
            (0..=lines.len()).any(|skipped| are_like(rest, &lines[skipped..]))
        }
        Some((pattern, rest)) => lines
            .split_first()
            .is_some_and(|(line, others)| is_like(pattern, line) && are_like(rest, others)),
    }
}

/// Lines with single spaces, without empty ones at the end.
fn plain<'l>(lines: impl Iterator<Item = &'l str>) -> Vec<String> {
    let mut lines: Vec<String> = lines
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    lines
}

/// The hosts of the walk: a database server with the agent as the packages install it, and two hosts of clients.
struct Walk {
    agent: Agent,
    /// Keeps the mounts.
    mounts: Killed,
    scratch: Scratch,
    site: Site,
    /// Directories that were made to mount on.
    #[expect(dead_code, reason = "removes them behind all others")]
    made: Made,
}

/// Directories that go with the walk.
#[derive(Debug, Default)]
struct Made(Vec<&'static str>);

impl Walk {
    fn begin() -> Result<Self> {
        let site = Site::new(&Options::new(Product::MariaDb))?;
        for user in ["shop", "etl"] {
            site.server.query(&format!(
                "CREATE USER {user} IDENTIFIED BY '{PASSWORD}'; GRANT SELECT ON *.* TO {user}"
            ))?;
        }
        let home = Home::new()?;
        let scratch = Scratch::new()?;
        let mut made = Made::default();
        let mut script = String::new();
        for (place, name) in PLACES {
            fs::create_dir(scratch.join(name))?;
            if !Path::new(place).exists() {
                fs::create_dir(place)?;
                made.0.push(place);
            }
            let from = scratch.join(name).display().to_string();
            script.extend([
                "mount --bind ",
                &from,
                " ",
                place,
                "
",
            ]);
        }
        fs::copy(PACKAGED, scratch.join("etc/musttls.toml"))?;
        fs::create_dir(scratch.join("etc/conf.d"))?;
        script += "echo ready\nexec sleep infinity";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let said = holder.stdout.take().context("no standard output")?;
        let mounts = Killed(holder);
        BufReader::new(said).read_line(&mut line)?;
        ensure!(line == "ready\n", "the mounts failed: {line}");

        clients(&site, &scratch)?;
        let namespace = mount_namespace(&mounts);
        let home = home
            .audit_to(scratch.join("log/audit.jsonl"))
            // As the unit starts it, without an option.
            .through(&["nsenter", &namespace, "sh", "-c", "exec \"$0\" run"]);
        Ok(Self {
            agent: Agent::start_in(home)?,
            mounts,
            scratch,
            site,
            made,
        })
    }

    fn host(&self, name: &str) -> &Host {
        match name {
            "db" => &self.site.net.db,
            "app" => &self.site.net.app,
            _ => &self.site.net.legacy,
        }
    }

    /// The exit code of `step`, and what it prints.
    fn run(&self, step: &Step, last: i32) -> Result<(i32, String)> {
        let home = self.scratch.join(&step.host);
        let output = self.scratch.join("output");
        let file = fs::File::create(&output)?;
        let mut command = Command::new("nsenter");
        command
            .arg(mount_namespace(&self.mounts))
            .args(["sh", "-c", "cd; (exit $0); eval \"$1\""])
            .arg(last.to_string())
            .arg(&step.command)
            .env("HOME", home)
            .env("PATH", self.path()?)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let before = self.sessions()?;
        let mut child = Killed(self.host(&step.host).spawn(&mut command)?);
        let status =
            musttls_tests::wait::until(&step.command, PATIENCE * 2, || Ok(child.0.try_wait()?))?;
        // What is asked of the shell is no session.
        if step.host != "db" && !step.command.starts_with("echo ") {
            self.agent
                .await_records("of the client", before + 1, Record::is_session)?;
        }
        let text = String::from_utf8_lossy(&fs::read(&output)?).into_owned();
        Ok((status.code().unwrap_or(-1), text))
    }

    /// The screen of `musttls top`, once it is as the page shows it.
    fn top(&self, step: &Step) -> Result<String> {
        let namespace = mount_namespace(&self.mounts);
        let binary = place::agent_binary()?;
        let words = [Path::new("nsenter"), Path::new(&namespace), &binary];
        let words: Vec<&Path> = words.into_iter().chain([Path::new("top")]).collect();
        let mut terminal = Terminal::run(&words, SIZE)?;
        let expected = plain(step.output.iter().map(String::as_str));
        let lines = |text: &str| plain(text.lines());
        let seen = terminal.await_screen("the screen of the page", PATIENCE, |screen| {
            are_like(&expected, &lines(&screen.text()))
        });
        let shown = terminal.screen()?.text();
        if seen.is_ok() {
            terminal.keys("q")?;
            terminal.await_end(PATIENCE)?;
        }
        Ok(shown)
    }

    fn path(&self) -> Result<String> {
        let path = std::env::var("PATH").context("no PATH")?;
        Ok(format!("{}:{path}", self.scratch.join("bin").display()))
    }

    /// How many sessions are on record.
    fn sessions(&self) -> Result<usize> {
        let records = self.agent.records()?;
        Ok(records.iter().filter(|it| it.is_session()).count())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for place in &self.0 {
            if let Err(error) = fs::remove_dir(place) {
                eprintln!("{place}, which the test has made, stays: {error}");
            }
        }
    }
}

/// What is on the hosts of the clients: their passwords and a program; and the programs of all hosts.
fn clients(site: &Site, scratch: &Scratch) -> Result<()> {
    for name in ["db", "app", "legacy", "bin"] {
        fs::create_dir(scratch.join(name))?;
    }
    let server = site.net.app.db_v4();
    fs::write(
        scratch.join("app/.my.cnf"),
        format!("[client]\nhost={server}\nuser=shop\npassword={PASSWORD}\n"),
    )?;
    let server = site.net.legacy.db_v4();
    fs::write(
        scratch.join("legacy/etl.py"),
        format!(
            "import pymysql\n\
             connection = pymysql.connect(host='{server}', user='etl', password='{PASSWORD}', program_name='etl.py', ssl_disabled=True)\n\
             cursor = connection.cursor()\ncursor.execute('SELECT 42')\nprint('rows:', cursor.fetchone()[0])\n"
        ),
    )?;
    symlink(place::agent_binary()?, scratch.join("bin/musttls"))?;
    let python: PathBuf = place::cache().join("python/bin/python");
    // A link would take it for another one, without its packages.
    fs::write(
        scratch.join("bin/python3"),
        format!("#!/bin/sh\nexec {} \"$@\"\n", python.display()),
    )?;
    place::output(
        Command::new("chmod")
            .arg("755")
            .arg(scratch.join("bin/python3")),
    )
    .map(drop)
}

fn mount_namespace(holder: &Killed) -> String {
    format!("--mount=/proc/{}/ns/mnt", holder.0.id())
}

#[test]
fn every_command_of_the_page_prints_what_the_page_shows() {
    let page = fs::read_to_string(PAGE).unwrap();
    let steps = steps(&page);
    assert!(steps.len() > 20, "{} commands on the page", steps.len());
    let walk = Walk::begin().unwrap();
    let mut last = 0;
    for step in &steps {
        let (code, text) = if step.command == "musttls top" {
            (0, walk.top(step).unwrap())
        } else {
            walk.run(step, last).unwrap()
        };
        last = code;
        println!("{}:{} {}\n{text}", step.line, step.host, step.command);
        let lines = plain(text.lines());
        let expected = plain(step.output.iter().map(String::as_str));
        assert!(
            are_like(&expected, &lines),
            "docs/rollout.md:{}: {}\nthe page shows\n{}\nit printed\n{}",
            step.line,
            step.command,
            expected.join("\n"),
            text
        );
    }
}

#[test]
fn placeholders_stand_for_what_they_say_and_for_nothing_else() {
    for (pattern, text) in [
        ("at <time>, then", "at 2026-11-23T12:00:00Z, then"),
        ("seen <time>", "seen 2026-11-23 12:00"),
        ("ends <time>", "ends 2026-12-24"),
        ("<number> of <number>", "1 of 17"),
        ("pid <number>:", "pid 4711:"),
        ("from <word>:", "from [::1]:"),
    ] {
        assert!(is_like(pattern, text), "{pattern}: {text}");
    }
    for (pattern, text) in [
        ("at <time>", "at noon"),
        ("<number>", "12a"),
        ("<number> clients", " clients"),
        ("<word>", "two words"),
        ("same", "sane"),
    ] {
        assert!(!is_like(pattern, text), "{pattern}: {text}");
    }
    let lines = |text: &str| plain(text.lines());
    assert!(are_like(&lines("a\n...\nd"), &lines("a\nb\nc\nd")));
    assert!(are_like(&lines("a\n...\nd"), &lines("a\nd\n\n")));
    assert!(!are_like(&lines("a\n...\nd"), &lines("a\nb")));
    assert!(!are_like(&lines("a"), &lines("a\nb")));
}

#[test]
fn a_page_is_commands_with_their_output() {
    let page = "```sh\ndb# not this\n```\ntext\n```console\ndb# one \\\n    two\nout\napp$ three\n```\ndb# nor this\n";
    let found = steps(page);
    let commands: Vec<_> = found
        .iter()
        .map(|step| (step.line, step.host.as_str(), step.command.as_str()))
        .collect();
    assert_eq!(
        commands,
        [(6, "db", "one \\\n    two"), (9, "app", "three")]
    );
    assert_eq!(found[0].output, ["out"]);
}
