//! What the agent sees and has done, as `musttls status` shows it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::bypass;
use crate::config::Config;
use crate::confine::Confinement;
use crate::count::{counted, counted_of};
use crate::login::printable;
use crate::span;

/// The state of a running agent. Field names are stable; fields may be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started, in milliseconds of Unix time.
    pub started_ms: i64,
    /// The policy in force.
    pub policy: Policy,
    /// Why the gate ends with the agent; none if it outlives it.
    #[serde(default)]
    pub ends_with_agent: Option<String>,
    /// How often others have changed what attaches the gate, by what they did; it was put back, but for
    /// [`Self::gate_errors`].
    #[serde(default)]
    pub gate_faults: BTreeMap<String, u64>,
    /// What of it could not be put back, and why.
    #[serde(default)]
    pub gate_errors: Vec<String>,
    /// The canary.
    #[serde(default)]
    pub canary: Canary,
    /// Whether the gate's counters and its events agree.
    #[serde(default)]
    pub counters: Counters,
    /// What the agent has given up.
    #[serde(default)]
    pub confined: Option<Confined>,
    /// How much of what there is is covered.
    pub coverage: Coverage,
    /// Ways by which bytes reach servers without passing the gate.
    #[serde(default)]
    pub alarms: Vec<Alarm>,
    /// Kinds of alarms that could not be looked for, and why.
    #[serde(default)]
    pub unchecked: Vec<String>,
    /// The servers found.
    pub servers: Vec<Server>,
    /// Sessions by outcome, by name of the server's settings. `seen` is the sum of all others and of the
    /// sessions that are open and undecided.
    pub sessions: BTreeMap<String, BTreeMap<String, u64>>,
    /// TLS sessions on record that passed, by version, by name of the server's settings, since the agent started.
    #[serde(default)]
    pub tls_versions: BTreeMap<String, BTreeMap<String, u64>>,
    /// The policy's exceptions, those that have ended too.
    #[serde(default)]
    pub exceptions: Vec<Exception>,
    /// Sessions older than the gate or its enforcement.
    #[serde(default)]
    pub older: OlderSessions,
    /// TLS sessions on record whose client sent a login in the clear before the TLS.
    #[serde(default)]
    pub credentials_exposed: u64,
    /// Refusals by how they ended.
    pub refusals: BTreeMap<String, u64>,
    /// Held segments by reason.
    pub held_segments: BTreeMap<String, u64>,
    /// Events that the kernel could not hand over, by reason.
    pub lost_events: BTreeMap<String, u64>,
    /// The audit log.
    pub audit: Audit,
    /// The history of who has connected how.
    #[serde(default)]
    pub history: History,
}

/// The canary: a plaintext login of the agent to itself, which must be refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// `refused`, as it should be; `failed`; `pending`: none has come to its end yet; `off`.
    pub state: String,
    /// How often it logs in, in seconds; none if it is off.
    pub every_s: Option<u64>,
    /// How many were refused as they should be since the agent started.
    pub refused: u64,
    /// How many were not.
    pub failed: u64,
    /// When the last one was refused as it should be, in milliseconds of Unix time.
    pub last_refused_ms: Option<i64>,
    /// How long that took, from the connection to its end, in microseconds.
    pub took_us: Option<u64>,
    /// What is wrong, once it has failed twice.
    pub failure: Option<CanaryFailure>,
}

/// What is wrong with the canary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CanaryFailure {
    /// `no-connection`, `no-greeting`, `login-passed`, `no-answer`, `wrong-answer` or `not-ended`.
    pub step: String,
    /// What was there instead.
    pub found: String,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for CanaryFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, found, .. } = self;
        write!(
            f,
            "the canary was not refused as it should be: {found} ({step})"
        )
    }
}

impl fmt::Display for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            state,
            every_s,
            last_refused_ms,
            took_us,
            failure,
            ..
        } = self;
        if let Some(failure) = failure {
            writeln!(f, "ALARM     {failure}")?;
            writeln!(f, "          means: {}", failure.meaning)?;
            return writeln!(f, "          help:  {}", failure.remedy);
        }
        write!(f, "canary    {state}")?;
        if let (Some(every), "refused") = (every_s, state.as_str()) {
            let at = Timestamp::from_millisecond(last_refused_ms.unwrap_or(0)).unwrap_or_default();
            let took = took_us.unwrap_or(0) / 1000;
            let every = span::text(Duration::from_secs(*every));
            write!(f, " at {at:.0} in {took} ms, every {every}")?;
        }
        writeln!(f)
    }
}

/// Whether the gate's counters and its events agree, since the agent started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Sessions that the gate has counted, and whose events have neither come to the agent nor been lost by the kernel.
    pub unaccounted: u64,
    /// How often a counter was lower than before.
    pub set_back: u64,
}

impl Counters {
    /// What is wrong, a line each.
    fn alarms(&self) -> impl Iterator<Item = String> + use<> {
        let unaccounted = (self.unaccounted > 0).then(|| {
            let sessions = self.unaccounted;
            format!(
                "{sessions} sessions that the gate has counted have no record: somebody else reads its rings, or writes its counters"
            )
        });
        let set_back = (self.set_back > 0).then(|| {
            let times = self.set_back;
            format!("the gate's counters were set back by somebody else, {times} times")
        });
        unaccounted.into_iter().chain(set_back)
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for alarm in self.alarms() {
            writeln!(f, "ALARM     {alarm}")?;
            writeln!(
                f,
                "          help:  find out which program uses the gate's maps: bpftool map, auditd on the system call bpf"
            )?;
        }
        Ok(())
    }
}

/// What confines the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confined {
    /// The capabilities that it still has.
    pub capabilities: Vec<String>,
    /// Whether its system calls are filtered.
    pub seccomp: bool,
    /// The whole in one line.
    pub summary: String,
}

impl From<&Confinement> for Confined {
    fn from(confinement: &Confinement) -> Self {
        Self {
            capabilities: confinement
                .capabilities
                .iter()
                .map(|&name| name.to_owned())
                .collect(),
            seccomp: confinement.not_filtered.is_none(),
            summary: confinement.to_string(),
        }
    }
}

/// Sessions older than the gate or its enforcement that are still open.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OlderSessions {
    /// What is done about those in the clear: `keep` or `refuse-plaintext`.
    pub existing: String,
    /// How many speak TLS.
    pub tls: usize,
    /// How many are in the clear.
    pub plaintext: usize,
    /// Of how many it is not known: nothing that tells has come of their clients.
    pub unknown: usize,
    /// How many were not followed, because there were too many.
    pub beyond: usize,
    /// All but the last.
    pub sessions: Vec<Older>,
}

/// A session older than the gate or its enforcement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Older {
    /// The client's address and port.
    pub client: String,
    /// Address and port to which it has connected.
    pub server: String,
    /// The server's process id.
    pub pid: i32,
    /// Its program.
    pub program: String,
    /// `gate`: how it began is not known. `enforcement`: it logged in in plaintext in observe mode.
    #[serde(default)]
    pub older_than: String,
    /// `tls`, `plaintext` or `unknown`.
    pub speaks: String,
    /// `likely` or `certain`; absent if it is not known what it speaks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certainty: Option<String>,
    /// How old it is at least, in seconds: so long its client had sent nothing when it was found, and the time since.
    pub age_at_least_s: u64,
    /// How old it is at most: the age of the server's process.
    pub age_at_most_s: u64,
    /// The exception that allows it to be in the clear.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exception: Option<String>,
    /// Whether a command of it is held, and it is about to be refused.
    #[serde(default)]
    pub held: bool,
    /// Whether it was ended just now.
    #[serde(default)]
    pub killed: bool,
    /// Why it was not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl fmt::Display for Older {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certainty = self.certainty.as_deref().unwrap_or("-");
        write!(
            f,
            "{:<28} -> {:<22} {} {}  {}, {certainty}, age {} to {} s",
            self.client,
            self.server,
            self.program,
            self.pid,
            self.speaks,
            self.age_at_least_s,
            self.age_at_most_s
        )?;
        if let Some(exception) = &self.exception {
            write!(f, ", allowed by {exception}")?;
        }
        Ok(())
    }
}

/// Most sessions older than the gate or its enforcement that the text lists.
const LISTED: usize = 20;

impl fmt::Display for OlderSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            tls,
            plaintext,
            unknown,
            beyond,
            ..
        } = self;
        if tls + plaintext + unknown + beyond == 0 {
            return Ok(());
        }
        writeln!(
            f,
            "\nolder than the gate or its enforcement: {plaintext} in the clear, {tls} TLS, {unknown} unknown (existing = \"{}\")",
            self.existing
        )?;
        // Those that matter first.
        let order = ["plaintext", "unknown", "tls"];
        let sorted = order.iter().flat_map(|speaks| {
            self.sessions
                .iter()
                .filter(move |session| session.speaks == *speaks)
        });
        for session in sorted.take(LISTED) {
            writeln!(f, "  {session}")?;
        }
        if self.sessions.len() > LISTED {
            let more = self.sessions.len() - LISTED;
            writeln!(f, "  and {more} more: musttls status --json lists them")?;
        }
        if *beyond > 0 {
            writeln!(f, "  {beyond} more are not followed: too many")?;
        }
        Ok(())
    }
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Path of its file.
    pub name: String,
    /// Version, counted up since the agent started.
    pub version: u32,
    /// The mode of servers without one of their own.
    pub mode: String,
    /// When that mode ends, if it does.
    #[serde(default)]
    pub mode_end: Option<ModeEnd>,
    /// Whether all servers are in observe mode because of `musttls panic`.
    #[serde(default)]
    pub panic: bool,
    /// Number of exceptions that hold now.
    pub exceptions: usize,
    /// Why the last reload was rejected, if it was.
    pub rejected: Option<String>,
}

/// The end of a mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeEnd {
    /// When, in milliseconds of Unix time.
    pub at_ms: i64,
    /// The mode from then on.
    pub then: String,
}

impl ModeEnd {
    /// The end of the mode of an entry in the table of servers.
    #[must_use]
    pub fn of(config: &Config, index: u16) -> Option<Self> {
        let (_, end) = config.timed_mode_of(index);
        end.map(|end| Self {
            at_ms: end.at.as_millisecond(),
            then: end.then.as_str().to_owned(),
        })
    }
}

impl fmt::Display for ModeEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = Timestamp::from_millisecond(self.at_ms).unwrap_or_default();
        write!(f, "until {at:.0}, then {}", self.then)
    }
}

/// An exception of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exception {
    /// Its name.
    pub name: String,
    /// Who answers for it.
    pub owner: String,
    /// The server it is for; none for any.
    pub server: Option<String>,
    /// When it ends, in milliseconds of Unix time; none if it never does.
    pub ends_ms: Option<i64>,
    /// Whether it holds now.
    pub holds: bool,
    /// Sessions that it has allowed since the agent started.
    pub sessions: u64,
}

/// Coverage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// Listeners of servers that speak the classic protocol.
    pub listeners: usize,
    /// Those that the gate judges.
    pub covered: usize,
    /// How sessions over Unix sockets are found: `kernel`, or `polling` and why.
    pub unix_sessions: String,
    /// Processes that could not be looked into.
    pub errors: Vec<String>,
}

/// A way by which bytes reach a server without passing the gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// The word used in `musttls_bypasses`.
    pub kind: String,
    /// The server's process id; none if it concerns every server of the host.
    pub pid: Option<i32>,
    /// Its program.
    pub program: Option<String>,
    /// What was found.
    pub found: String,
    /// What it means.
    pub meaning: String,
    /// What to do.
    pub remedy: String,
}

impl From<&bypass::Alarm> for Alarm {
    fn from(alarm: &bypass::Alarm) -> Self {
        let (pid, program) = alarm.server.clone().unzip();
        Self {
            kind: alarm.kind.as_str().to_owned(),
            pid,
            program,
            found: alarm.found.clone(),
            meaning: alarm.kind.meaning().to_owned(),
            remedy: alarm.kind.remedy().to_owned(),
        }
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ALARM     ")?;
        if let (Some(pid), Some(program)) = (self.pid, &self.program) {
            write!(f, "{program} {pid}: ")?;
        }
        // A library's name is any user's choice.
        writeln!(f, "{} ({})", printable(self.found.as_bytes()).0, self.kind)?;
        writeln!(f, "          means: {}", self.meaning)?;
        writeln!(f, "          help:  {}", self.remedy)
    }
}

/// A server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Its process id.
    pub pid: i32,
    /// Its program.
    pub program: String,
    /// Its cgroup.
    pub cgroup: String,
    /// Its container, if any.
    pub container: Option<String>,
    /// Its listening sockets.
    pub listeners: Vec<Listener>,
    /// Paths of its Unix sockets.
    pub unix: Vec<String>,
}

/// A listening TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Address and port.
    pub address: String,
    /// `classic`, or what else it speaks.
    pub protocol: String,
    /// Name of its settings.
    pub settings: String,
    /// Its mode.
    pub mode: String,
    /// When that mode ends, if it does.
    #[serde(default)]
    pub mode_end: Option<ModeEnd>,
    /// Whether the gate judges its sessions.
    pub covered: bool,
    /// Why not.
    pub reason: Option<String>,
}

/// The audit log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audit {
    /// Where it goes.
    pub target: String,
    /// Records written.
    pub written: u64,
    /// Records lost by the sink.
    pub lost: u64,
    /// Number of the newest record.
    pub sequence: u64,
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            target,
            written,
            lost,
            ..
        } = self;
        write!(f, "audit     {target}: {written} written, {lost} lost")
    }
}

/// The history of who has connected how, as of the agent's last look.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// Distinct clients.
    pub clients: u64,
    /// Their sessions.
    pub sessions: u64,
    /// In how many places records are missing.
    pub holes: usize,
    /// Why there is none, or why it is not up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            clients,
            sessions,
            holes,
            problem,
        } = self;
        let clients = counted(*clients, "client", "clients");
        let sessions = counted(*sessions, "session", "sessions");
        write!(f, "history   {clients}, {sessions}")?;
        if *holes > 0 {
            let places = counted_of(*holes, "place", "places");
            write!(f, ", records missing in {places} (musttls history)")?;
        }
        writeln!(f)?;
        for line in problem.iter().flat_map(|problem| problem.lines()) {
            writeln!(f, "          {}", line.trim_start())?;
        }
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "musttls {}, process {}", self.version, self.pid)?;
        writeln!(
            f,
            "policy    {} version {}, {}, {} in force",
            self.policy.name,
            self.policy.version,
            self.policy.mode,
            counted_of(self.policy.exceptions, "exception", "exceptions")
        )?;
        if self.policy.panic {
            writeln!(
                f,
                "ALARM     all servers are in observe mode, because of `panic` (musttls panic --end takes it back)"
            )?;
        } else if let Some(end) = &self.policy.mode_end {
            writeln!(f, "          {} {end}", self.policy.mode)?;
        }
        if let Some(error) = &self.policy.rejected {
            writeln!(f, "          the last reload was rejected: {error}")?;
        }
        self.fmt_gate(f)?;
        writeln!(
            f,
            "coverage  {} of {} listeners",
            self.coverage.covered, self.coverage.listeners
        )?;
        writeln!(
            f,
            "          Unix sessions: {}",
            self.coverage.unix_sessions
        )?;
        for error in &self.coverage.errors {
            writeln!(f, "          {error}")?;
        }
        for unchecked in &self.unchecked {
            writeln!(f, "          not looked for: {unchecked}")?;
        }
        for alarm in &self.alarms {
            write!(f, "{alarm}")?;
        }
        for server in &self.servers {
            let cgroup = printable(server.cgroup.as_bytes()).0;
            writeln!(f, "\n{} {} {cgroup}", server.program, server.pid)?;
            for listener in &server.listeners {
                let state = match (&listener.reason, listener.covered) {
                    (_, true) => listener.mode.as_str(),
                    (Some(reason), false) => reason,
                    (None, false) => "not covered",
                };
                write!(
                    f,
                    "  {:<28} {:<18} {:<14} {state}",
                    listener.address, listener.protocol, listener.settings
                )?;
                match &listener.mode_end {
                    Some(end) if listener.covered => writeln!(f, " {end}")?,
                    _ => writeln!(f)?,
                }
            }
            for path in &server.unix {
                let path = printable(path.as_bytes()).0;
                writeln!(f, "  {path:<28} {:<18} {:<14} recorded", "classic", "")?;
            }
        }
        table(
            f,
            "sessions",
            self.sessions.iter().flat_map(|(server, outcomes)| {
                outcomes
                    .iter()
                    .map(move |(outcome, n)| (format!("{server} {outcome}"), *n))
            }),
        )?;
        write!(f, "{}", self.older)?;
        if self.credentials_exposed > 0 {
            writeln!(
                f,
                "\nexposed   {} TLS sessions sent their login in the clear before the TLS",
                self.credentials_exposed
            )?;
        }
        table(
            f,
            "refusals",
            self.refusals.iter().map(|(name, n)| (name.clone(), *n)),
        )?;
        table(
            f,
            "held segments",
            self.held_segments
                .iter()
                .map(|(name, n)| (name.clone(), *n)),
        )?;
        table(
            f,
            "lost events",
            self.lost_events.iter().map(|(name, n)| (name.clone(), *n)),
        )?;
        writeln!(f, "\n{}", self.audit)?;
        self.history.fmt(f)
    }
}

impl Status {
    /// What is wrong with the agent's own login and with the gate's counters, a line each.
    pub fn watch_alarms(&self) -> impl Iterator<Item = String> {
        let canary = self.canary.failure.as_ref().map(ToString::to_string);
        canary.into_iter().chain(self.counters.alarms())
    }

    /// How safe the gate and the agent are from others.
    fn fmt_gate(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.ends_with_agent {
            writeln!(f, "gate      ends with the agent: {why}")?;
        } else {
            writeln!(
                f,
                "gate      stays on without the agent (musttls disarm takes it off)"
            )?;
        }
        for (fault, times) in self.gate_faults.iter().filter(|(_, times)| **times > 0) {
            writeln!(f, "          found {fault} by somebody else: {times} times")?;
        }
        for error in &self.gate_errors {
            writeln!(f, "ALARM     {error}")?;
        }
        write!(f, "{}", self.canary)?;
        write!(f, "{}", self.counters)?;
        if let Some(confined) = &self.confined {
            writeln!(f, "confined  {}", confined.summary)?;
        }
        Ok(())
    }
}

/// The counts that are not zero.
fn table(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    rows: impl Iterator<Item = (String, u64)>,
) -> fmt::Result {
    let mut rows = rows.filter(|(_, n)| *n > 0).peekable();
    if rows.peek().is_some() {
        writeln!(f, "\n{title}")?;
    }
    rows.try_for_each(|(name, n)| writeln!(f, "  {name:<28} {n:>12}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_reach_no_terminal_with_control_characters() {
        let alarm = Alarm {
            kind: "user-space".to_owned(),
            pid: Some(7),
            program: Some("mysqld".to_owned()),
            found: "libvma.so\u{1b}[32m is loaded".to_owned(),
            meaning: String::new(),
            remedy: String::new(),
        };
        let text = alarm.to_string();
        assert!(text.contains("libvma.so\u{fffd}[32m is loaded"), "{text}");
        let json = serde_json::to_string(&alarm).unwrap();
        assert!(json.contains("libvma.so\\u001b[32m"), "{json}");
    }
}
