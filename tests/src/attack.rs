//! Plaintext logins smuggled segment by segment: what is sent, and what the server did of it.
//!
//! Each attempt logs in as [`OPEN_USER`], who has no password, and inserts a number of its own, all in one
//! stream: the numbers in the table are the attempts that got in.

pub mod honest;
pub mod random;
pub mod share;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::evidence;
use crate::server::{OPEN_USER, Options, SCHEMA, Server};
use crate::tcp::{Connection, Opening, Segment, Stack};
use crate::wait::{self, PATIENCE};
use crate::wire::{CLIENT_SSL, query};

/// Numbers below are in the table from the start.
const FIRST_NUMBER: u32 = 1000;
/// A port that the agent does not know for that of a server, because it does not read the short form of
/// --extra-port: the gate judges from the greeting on.
pub const UNNAMED_PORT: u16 = 3399;
/// Options of a server that listens there.
pub const UNNAMED_OPTIONS: [&str; 2] = ["--extra-por=3399", "--extra-max-connections=2000"];

/// Connections at the same time: servers take as many handshakes at once.
const AT_A_TIME: usize = 400;
/// What a step that settles waits for: the server's kernel, and the gate, to be done with what was sent.
const SETTLE: Duration = Duration::from_millis(20);

/// Options of a server that many failed logins do not impress, beside `options`.
#[must_use]
pub fn patient(options: Options) -> Options {
    options
        .with("--skip-name-resolve")
        .with("--max-connections=2000")
        .with("--max-connect-errors=1000000000")
        .with("--back-log=1000")
}

/// Enforce mode, where an exception allows the plaintext logins of `users`.
#[must_use]
pub fn enforcing(users: &[&str]) -> String {
    let mode = "mode = \"enforce\"\n";
    if users.is_empty() {
        return mode.to_owned();
    }
    format!(
        "{mode}[[exception]]\nname = \"lure\"\nsource = [\"0.0.0.0/0\", \"::/0\"]\nuser = {users:?}\n\
         expires = \"never\"\nowner = \"tests\"\nreason = \"to be misused\"\n"
    )
}

/// The bytes of one attempt.
#[derive(Clone, Debug)]
pub struct Stream {
    /// What it inserts.
    pub number: u32,
    /// A plaintext login, and the command behind it.
    pub plain: Vec<u8>,
    /// The same as something that passes: first with `CLIENT_SSL` set, a claim of TLS that no TLS follows.
    pub lures: Vec<Vec<u8>>,
    /// The plaintext of the form before 4.1, as long, whose packet header a TLS record has, too: its length is not
    /// that of the login.
    pub disguised: Vec<u8>,
    /// Whether it goes over IPv6.
    pub is_v6: bool,
}

impl Stream {
    /// Behind the login's capability flags and all else.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.plain.len()
    }

    /// It never is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.plain.is_empty()
    }

    /// All of the claim.
    #[must_use]
    pub fn claim_bytes(&self) -> &[u8] {
        self.lures.first().map_or(&[], Vec::as_slice)
    }

    /// The plaintext bytes `from..to` as a segment.
    #[must_use]
    pub fn plain(&self, from: usize, to: usize) -> Segment {
        Segment::of(&self.plain, from, to)
    }

    /// The same bytes of the claim.
    #[must_use]
    pub fn claim(&self, from: usize, to: usize) -> Segment {
        Segment::of(self.claim_bytes(), from, to)
    }

    /// All of the plaintext.
    #[must_use]
    pub fn whole(&self) -> Segment {
        self.plain(0, self.len())
    }
}

/// Users that an exception names, for attempts to get another in by it: as long as [`OPEN_USER`], and shorter.
/// The server does not know them.
pub const EXCEPTED: [&str; 2] = ["opem", "o"];

/// Makes streams for a server, each with a number of its own.
#[derive(Debug)]
pub struct Streams<'a> {
    server: &'a Server,
    next: u32,
    is_v6: bool,
    excepted: &'a [&'a str],
}

impl<'a> Streams<'a> {
    /// From the first number on.
    #[must_use]
    pub const fn new(server: &'a Server, is_v6: bool) -> Self {
        Self {
            server,
            next: FIRST_NUMBER,
            is_v6,
            excepted: &[],
        }
    }

    /// With plaintext logins of these users as further lures, in either form.
    #[must_use]
    pub const fn excepting(mut self, users: &'a [&'a str]) -> Self {
        self.excepted = users;
        self
    }

    /// The next one.
    pub fn make(&mut self) -> Stream {
        let number = self.next;
        self.next += 1;
        let login = self.server.open_login().schema(SCHEMA);
        let command = query(&format!("INSERT INTO t VALUES ({number})"));
        let behind = |login: Vec<u8>| [login, command.clone()].concat();
        let mut lures = vec![behind(login.clone().caps(CLIENT_SSL).packet_41())];
        for user in self.excepted {
            let mut login = login.clone();
            (*user).clone_into(&mut login.user);
            lures.push(behind(login.packet_41()));
            lures.push(behind(login.packet_320()));
        }
        let login = login.packet_41();
        let disguised = behind(disguised(login.len()));
        Stream {
            number,
            plain: behind(login),
            disguised,
            lures,
            is_v6: self.is_v6,
        }
    }
}

/// A login of [`OPEN_USER`] of `len` bytes, header included, in the form before 4.1 and disguised as a TLS record.
fn disguised(len: usize) -> Vec<u8> {
    // Of the flags CLIENT_CONNECT_WITH_DB, and in place of a ClientHello's type one that changes nothing; then
    // the largest packet.
    let mut login = vec![0x16, 3, 1, 1, 8, 1, 0, 0, 0];
    for text in [OPEN_USER, "", SCHEMA] {
        login.extend(text.as_bytes());
        login.push(0);
    }
    login.resize(len, 0);
    login
}

/// What is done at a time.
#[derive(Clone, Debug)]
pub enum Step {
    /// Send this.
    Send(Segment),
    /// Let what was sent arrive, and take what comes.
    Settle,
}

/// One connection of an attacker.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// What is tried.
    pub name: String,
    /// What it inserts if it gets in.
    pub number: u32,
    /// How the connection is opened.
    pub opening: Opening,
    /// What follows the greeting.
    pub steps: Vec<Step>,
    /// Whether it gets in where nothing is refused.
    pub works: bool,
}

impl Attempt {
    /// One that sends `segments` behind the greeting, each after the server's kernel is done with the one before.
    pub fn new(
        name: impl Into<String>,
        stream: &Stream,
        segments: impl IntoIterator<Item = Segment>,
    ) -> Self {
        let steps = segments
            .into_iter()
            .flat_map(|segment| [Step::Send(segment), Step::Settle])
            .collect();
        Self {
            name: name.into(),
            number: stream.number,
            opening: Opening {
                isn: 0x1234_5678,
                ..Opening::default()
            },
            steps,
            works: true,
        }
    }

    /// One that does not get in anyway.
    #[must_use]
    pub const fn futile(mut self) -> Self {
        self.works = false;
        self
    }

    /// One that gets in where nothing is refused if `works`.
    #[must_use]
    pub const fn works_if(mut self, works: bool) -> Self {
        self.works = works;
        self
    }

    /// Opened like this.
    #[must_use]
    pub fn opening(mut self, opening: Opening) -> Self {
        self.opening = opening;
        self
    }
}

/// Whether a connection has come to something: the command answered, an error, TLS, or its end.
#[must_use]
pub fn is_over(connection: &Connection) -> bool {
    let packets = connection.packets();
    connection.end().is_some()
        || connection.error().is_some()
        || packets.len() > 2
        || connection.is_tls()
}

/// Makes the attempts, many at the same time. Those that have come to nothing after `patience` are left; those that
/// work are waited for as long as `success`.
pub fn make(
    stack: &mut Stack,
    attempts: &[Attempt],
    success: Duration,
    patience: Duration,
) -> Result<()> {
    for some in attempts.chunks(AT_A_TIME) {
        make_at_once(stack, some, success, patience)?;
    }
    Ok(())
}

fn make_at_once(
    stack: &mut Stack,
    attempts: &[Attempt],
    success: Duration,
    patience: Duration,
) -> Result<()> {
    let mut locals = Vec::new();
    for attempt in attempts {
        let local = stack.open(attempt.opening.clone());
        locals.push(local.with_context(|| attempt.name.clone())?);
    }
    let end = Instant::now() + wait::here(patience);
    for (attempt, local) in attempts.iter().zip(&locals) {
        await_greeting(stack, attempt, *local, end)?;
    }
    let longest = attempts.iter().map(|attempt| attempt.steps.len()).max();
    for number in 0..longest.unwrap_or_default() {
        let mut settles = false;
        for (attempt, local) in attempts.iter().zip(&locals) {
            match attempt.steps.get(number) {
                Some(Step::Send(segment)) => {
                    stack
                        .send(*local, segment)
                        .with_context(|| attempt.name.clone())?;
                }
                Some(Step::Settle) => settles = true,
                None => {}
            }
        }
        if settles {
            stack.pump(SETTLE)?;
        }
    }
    await_all(stack, &locals, patience, is_over)?;
    let works = attempts.iter().zip(&locals).filter(|(it, _)| it.works);
    let works: Vec<_> = works.map(|(_, local)| *local).collect();
    await_all(stack, &works, success, is_over)?;
    for local in locals {
        stack.abort(local)?;
    }
    // What of them the server still answers is reset.
    stack.pump(SETTLE)
}

/// A handshake with payload may come to nothing, and is given up at `end`; every other ends with a greeting.
fn await_greeting(
    stack: &mut Stack,
    attempt: &Attempt,
    local: SocketAddr,
    end: Instant,
) -> Result<()> {
    let is_plain = attempt.opening.is_plain();
    let end = if is_plain {
        Instant::now() + wait::here(PATIENCE)
    } else {
        end
    };
    let is_greeted = stack.watch_until(local, end, |it| it.greeting().is_some())?;
    ensure!(is_greeted || !is_plain, "no greeting: {}", attempt.name);
    Ok(())
}

/// Waits until all connections are as `wanted`, for `patience` at most.
pub fn await_all(
    stack: &mut Stack,
    locals: &[SocketAddr],
    patience: Duration,
    wanted: impl Fn(&Connection) -> bool,
) -> Result<()> {
    let end = Instant::now() + wait::here(patience);
    for local in locals {
        stack.watch_until(*local, end, &wanted)?;
    }
    Ok(())
}

/// The numbers of the attempts whose command the server carried out, once it holds no connection.
pub fn carried_out(server: &Server) -> Result<BTreeSet<u32>> {
    evidence::await_no_connection(server)?;
    let rows = server.query(&format!(
        "SELECT n FROM {SCHEMA}.t WHERE n >= {FIRST_NUMBER}"
    ))?;
    rows.lines()
        .map(|row| row.parse().with_context(|| format!("`{row}` in the table")))
        .collect()
}

/// Lines of the general log from `place` on that name a plaintext login of [`OPEN_USER`], let in or not.
pub fn plaintext_logins(server: &Server, mark: evidence::Mark) -> Result<Vec<String>> {
    let mut logins = evidence::logins(server, OPEN_USER, mark)?;
    logins.retain(|login| is_plaintext(login));
    Ok(logins)
}

/// Whether a line of the general log with a login names no TLS.
#[must_use]
pub fn is_plaintext(login: &str) -> bool {
    !login.contains("using SSL/TLS")
}
