//! The lists of `musttls top`: what stands in their rows.

use ratatui::layout::Constraint;

use super::session::Session;
use super::state::{Pane, State};
use super::view::{SOON_MS, Scene, Tone, duration, safe};
use crate::count::{by_thousands, counted_of};
use crate::status::{OlderSessions, Status};

/// A list before filter and scrolling.
#[derive(Debug)]
pub struct Grid {
    /// Titles of the columns.
    pub titles: Vec<&'static str>,
    /// Widths of the columns.
    pub widths: Vec<Constraint>,
    /// The rows, each a cell a column.
    pub rows: Vec<(Tone, Vec<String>)>,
    /// What is said when there are none.
    pub empty: String,
}

impl Grid {
    fn new(columns: &[(&'static str, Constraint)], empty: &str) -> Self {
        Self {
            titles: columns.iter().map(|(title, _)| *title).collect(),
            widths: columns.iter().map(|(_, width)| *width).collect(),
            rows: Vec::new(),
            empty: empty.to_owned(),
        }
    }
}

/// The list of the pane that is shown, `width` columns wide.
#[must_use]
pub fn list(state: &State, scene: &Scene<'_>, width: usize) -> Grid {
    let status = state.newest.as_ref().map(|newest| newest.status.as_ref());
    let mut grid = match state.pane {
        Pane::Clients => clients(state, scene),
        Pane::Refusals => refusals(state, scene),
        Pane::Exceptions => exceptions(status, scene),
        Pane::Servers => servers(status),
        Pane::Health => health(status, state, width),
    };
    if status.is_none() {
        "no agent has answered yet".clone_into(&mut grid.empty);
    }
    grid
}

/// What is said of records where there are none.
fn no_records(state: &State, none: &str) -> String {
    match &state.unread {
        Some(why) => format!("the audit file is not read: {}", safe(why)),
        None => none.to_owned(),
    }
}

fn ago(session: &Session, scene: &Scene<'_>) -> String {
    duration(scene.now_ms - session.time_ms)
}

/// Columns that the addresses of clients need: from a short one of IPv4 to the longest of IPv6.
fn width_of<'a>(clients: impl Iterator<Item = &'a str>) -> u16 {
    clients
        .filter_map(|client| u16::try_from(client.chars().count()).ok())
        .fold(9, u16::max)
        .min(39)
}

fn clients(state: &State, scene: &Scene<'_>) -> Grid {
    let client = width_of(state.clients.keys().map(|who| who.client.as_str()));
    let empty = no_records(state, "no client in plaintext among the newest records");
    let mut grid = Grid::new(
        &[
            ("ago", Constraint::Length(9)),
            ("sessions", Constraint::Length(8)),
            ("client", Constraint::Length(client)),
            ("user", Constraint::Fill(1)),
            ("program", Constraint::Fill(1)),
            ("server", Constraint::Fill(1)),
            ("verdict", Constraint::Fill(1)),
        ],
        &empty,
    );
    for (who, client) in state.clients_by_time() {
        let (tone, verdict) = match client.last.verdict.as_str() {
            "denied" => (Tone::Bad, "refused".to_owned()),
            "would_deny" => (Tone::Warn, "passed".to_owned()),
            "excepted" => (Tone::Plain, safe(&client.last.rule)),
            other => (Tone::Warn, safe(other)),
        };
        let cells = vec![
            ago(&client.last, scene),
            by_thousands(client.sessions),
            safe(&who.client),
            known(&who.user),
            known(&who.program),
            safe(&who.server),
            verdict,
        ];
        grid.rows.push((tone, cells));
    }
    grid
}

fn refusals(state: &State, scene: &Scene<'_>) -> Grid {
    let clients = state.refusals.iter().map(|session| session.client.as_str());
    let client = width_of(clients);
    let empty = no_records(state, "no refusal among the newest records");
    let mut grid = Grid::new(
        &[
            ("ago", Constraint::Length(9)),
            ("client", Constraint::Length(client)),
            ("user", Constraint::Fill(1)),
            ("program", Constraint::Fill(1)),
            ("server", Constraint::Fill(1)),
            ("reason", Constraint::Length(14)),
            ("ended", Constraint::Length(8)),
        ],
        &empty,
    );
    for session in &state.refusals {
        let cells = vec![
            ago(session, scene),
            safe(&session.client),
            known(&session.user),
            known(&session.program),
            safe(&session.server),
            safe(&session.reason),
            safe(&session.outcome),
        ];
        grid.rows.push((Tone::Plain, cells));
    }
    grid
}

/// A name that a client gave, or a dash.
fn known(name: &str) -> String {
    if name.is_empty() {
        "-".to_owned()
    } else {
        safe(name)
    }
}

fn exceptions(status: Option<&Status>, scene: &Scene<'_>) -> Grid {
    let mut grid = Grid::new(
        &[
            ("ends", Constraint::Length(14)),
            ("exception", Constraint::Fill(2)),
            ("owner", Constraint::Fill(2)),
            ("server", Constraint::Fill(1)),
            ("sessions", Constraint::Length(9)),
        ],
        "the policy has no exceptions",
    );
    let mut all: Vec<_> = status
        .iter()
        .flat_map(|status| &status.exceptions)
        .collect();
    // The next end first, then those without an end; those that have ended last.
    all.sort_by_key(|exception| (!exception.holds, exception.ends_ms.unwrap_or(i64::MAX)));
    for exception in all {
        let (tone, ends) = match exception.ends_ms {
            _ if !exception.holds => (Tone::Bad, "not in force".to_owned()),
            None => (Tone::Plain, "never".to_owned()),
            Some(end) => {
                let left = end - scene.now_ms;
                let tone = if left < SOON_MS {
                    Tone::Warn
                } else {
                    Tone::Plain
                };
                (tone, format!("in {}", duration(left)))
            }
        };
        let cells = vec![
            ends,
            safe(&exception.name),
            safe(&exception.owner),
            exception
                .server
                .as_deref()
                .map_or_else(|| "any".to_owned(), safe),
            by_thousands(exception.sessions),
        ];
        grid.rows.push((tone, cells));
    }
    grid
}

fn servers(status: Option<&Status>) -> Grid {
    let mut grid = Grid::new(
        &[
            ("mode", Constraint::Length(8)),
            ("listener", Constraint::Fill(3)),
            ("speaks", Constraint::Length(7)),
            ("settings", Constraint::Fill(1)),
            ("program", Constraint::Length(15)),
            ("covered", Constraint::Fill(1)),
        ],
        "no server was found",
    );
    for server in status.iter().flat_map(|status| &status.servers) {
        let program = format!("{} {}", safe(&server.program), server.pid);
        for listener in &server.listeners {
            let (tone, covered) = match (listener.covered, &listener.reason) {
                (true, _) => (Tone::Plain, "yes".to_owned()),
                (false, Some(reason)) => (Tone::Warn, format!("no: {}", safe(reason))),
                (false, None) => (Tone::Warn, "no".to_owned()),
            };
            let cells = vec![
                safe(&listener.mode),
                safe(&listener.address),
                safe(&listener.protocol),
                safe(&listener.settings),
                program.clone(),
                covered,
            ];
            grid.rows.push((tone, cells));
        }
        for path in &server.unix {
            let cells = ["recorded", &safe(path), "unix", "", &program, ""];
            let cells = cells.map(str::to_owned).to_vec();
            grid.rows.push((Tone::Plain, cells));
        }
    }
    grid
}

/// Width of the first column of the list of health.
const LABEL: usize = 12;

fn health(status: Option<&Status>, state: &State, width: usize) -> Grid {
    let mut grid = Grid::new(
        &[
            ("what", Constraint::Length(12)),
            ("how it is", Constraint::Fill(1)),
        ],
        "nothing is known",
    );
    let Some(status) = status else {
        return grid;
    };
    let columns = width.saturating_sub(LABEL + 1).max(20);
    let mut tell = |tone: Tone, label: &str, text: &str| {
        for (at, line) in wrap(&safe(text), columns).into_iter().enumerate() {
            let label = if at == 0 { label } else { "" };
            grid.rows.push((tone, vec![label.to_owned(), line]));
        }
    };
    troubles(status, &mut tell);
    if let Some(why) = &state.unread {
        tell(Tone::Warn, "audit file", &format!("is not read: {why}"));
    }
    counts(status, &mut tell);
    grid
}

/// Puts a row, or several if its text is long, into the list of health.
type Tell<'a> = dyn FnMut(Tone, &str, &str) + 'a;

/// What somebody should look at.
fn troubles(status: &Status, tell: &mut Tell<'_>) {
    for alarm in &status.alarms {
        let whose = alarm.program.as_ref().zip(alarm.pid);
        let whose = whose.map_or_else(String::new, |(program, pid)| format!("{program} {pid}: "));
        tell(
            Tone::Bad,
            "ALARM",
            &format!("{whose}{} ({})", alarm.found, alarm.kind),
        );
        tell(Tone::Plain, "  means", &alarm.meaning);
        tell(Tone::Plain, "  help", &alarm.remedy);
    }
    for error in &status.gate_errors {
        tell(Tone::Bad, "ALARM", error);
    }
    for error in status.watch_alarms() {
        tell(Tone::Bad, "ALARM", &error);
    }
    for (fault, times) in status.gate_faults.iter().filter(|(_, times)| **times > 0) {
        tell(
            Tone::Warn,
            "gate",
            &format!("found {fault} by somebody else: {times} times"),
        );
    }
    if let Some(why) = &status.policy.rejected {
        tell(
            Tone::Warn,
            "policy",
            &format!("the last reload was rejected: {why}"),
        );
    }
    for error in &status.coverage.errors {
        tell(Tone::Warn, "coverage", error);
    }
    for unchecked in &status.unchecked {
        tell(
            Tone::Plain,
            "unchecked",
            &format!("not looked for: {unchecked}"),
        );
    }
}

/// How the rest is.
fn counts(status: &Status, tell: &mut Tell<'_>) {
    let gate = status.ends_with_agent.as_ref().map_or_else(
        || "stays on without the agent (musttls disarm takes it off)".to_owned(),
        |why| format!("ends with the agent: {why}"),
    );
    let tone = if status.ends_with_agent.is_some() {
        Tone::Warn
    } else {
        Tone::Plain
    };
    tell(tone, "gate", &gate);
    let policy = &status.policy;
    let text = format!(
        "{} version {}, {}, {} in force",
        policy.name,
        policy.version,
        policy.mode,
        counted_of(policy.exceptions, "exception", "exceptions")
    );
    tell(Tone::Plain, "policy", &text);
    let audit = &status.audit;
    let tone = if audit.lost > 0 {
        Tone::Bad
    } else {
        Tone::Plain
    };
    let text = format!(
        "{}: {} written, {} lost",
        audit.target, audit.written, audit.lost
    );
    tell(tone, "audit", &text);
    tell_older(&status.older, tell);
    if status.credentials_exposed > 0 {
        let text = format!(
            "{} TLS sessions sent their login in the clear before the TLS",
            status.credentials_exposed
        );
        tell(Tone::Warn, "exposed", &text);
    }
    for (label, counts, tone) in [
        ("refusals", &status.refusals, Tone::Plain),
        ("held", &status.held_segments, Tone::Plain),
        ("lost", &status.lost_events, Tone::Bad),
    ] {
        let some: Vec<_> = counts
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(word, n)| format!("{word} {}", by_thousands(*n)))
            .collect();
        if some.is_empty() {
            tell(Tone::Plain, label, "none");
        } else {
            tell(tone, label, &some.join(", "));
        }
    }
    for (server, versions) in &status.tls_versions {
        let some: Vec<_> = versions
            .iter()
            .filter(|(_, n)| **n > 0)
            .map(|(version, n)| format!("{version}: {}", by_thousands(*n)))
            .collect();
        if !some.is_empty() {
            tell(
                Tone::Plain,
                "TLS",
                &format!("{server}  {}", some.join(", ")),
            );
        }
    }
    tell(
        Tone::Plain,
        "Unix",
        &format!("sessions are found by {}", status.coverage.unix_sessions),
    );
    if let Some(confined) = &status.confined {
        tell(Tone::Plain, "confined", &confined.summary);
    }
}

fn tell_older(older: &OlderSessions, tell: &mut Tell<'_>) {
    let OlderSessions {
        existing,
        tls,
        plaintext,
        unknown,
        beyond,
        ..
    } = older;
    if tls + plaintext + unknown + beyond > 0 {
        let text = format!(
            "older than the gate or its enforcement: {plaintext} in the clear, {tls} TLS, {unknown} unknown, \
             {beyond} not followed (existing = \"{existing}\")"
        );
        let tone = if *plaintext > 0 {
            Tone::Warn
        } else {
            Tone::Plain
        };
        tell(tone, "older", &text);
    }
}

/// Lines of at most `columns` characters, broken between words where one fits.
fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    let mut room = columns;
    for word in text.split_whitespace() {
        let len = word.chars().count();
        let is_first = lines.last().is_none_or(String::is_empty);
        let needed = if is_first { len } else { len + 1 };
        if needed <= room {
            if let Some(line) = lines.last_mut() {
                if !is_first {
                    line.push(' ');
                }
                line.push_str(word);
            }
            room -= needed;
            continue;
        }
        let letters: Vec<_> = word.chars().collect();
        for piece in letters.chunks(columns.max(1)) {
            room = columns - piece.len();
            lines.push(piece.iter().collect());
        }
    }
    if lines.len() > 1 && lines.first().is_some_and(String::is_empty) {
        lines.remove(0);
    }
    lines
}
