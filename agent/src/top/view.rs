//! How `musttls top` looks: state to screen, and nothing else.
//!
//! Invariant: every text that a client, a server or a file chose goes through [`safe`] before it becomes part of a line.

use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph, Row, Table, Wrap};

use super::lists::{Grid, list};
use super::state::{Focus, Pane, Silence, State};
use crate::count::by_thousands;
use crate::login::disturbs;
use crate::status::Status;

/// Below this nothing of use fits.
const COLUMNS_MIN: u16 = 70;
const ROWS_MIN: u16 = 18;
/// An exception that ends sooner is pointed out.
pub const SOON_MS: i64 = 14 * 24 * 3600 * 1000;

/// An agent that takes longer to answer is pointed out.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is around the state.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// The control socket that is asked.
    pub socket: &'a str,
    /// Now.
    pub now: Instant,
    /// The same on the wall clock, in milliseconds of Unix time.
    pub now_ms: i64,
    /// Whether colours may be used.
    pub has_colors: bool,
}

/// How much a text matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As all else.
    Plain,
    /// All is well.
    Good,
    /// To be looked at.
    Warn,
    /// To be acted on.
    Bad,
}

impl Scene<'_> {
    const fn style(&self, tone: Tone) -> Style {
        let style = match tone {
            Tone::Bad => Style::new().add_modifier(Modifier::BOLD),
            Tone::Plain | Tone::Good | Tone::Warn => Style::new(),
        };
        let color = match tone {
            Tone::Plain => return style,
            Tone::Good => Color::Green,
            Tone::Warn => Color::Yellow,
            Tone::Bad => Color::Red,
        };
        if self.has_colors {
            style.fg(color)
        } else {
            style
        }
    }
}

const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);
const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);

/// Text that cannot disturb a terminal: control characters and those that change the reading direction become U+FFFD.
#[must_use]
pub fn safe(text: &str) -> String {
    text.chars()
        .map(|c| {
            if disturbs(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &mut State, scene: &Scene<'_>) {
    let area = frame.area();
    if area.width < COLUMNS_MIN || area.height < ROWS_MIN {
        let text = format!(
            "too small: {}x{}; musttls top needs {COLUMNS_MIN}x{ROWS_MIN}. q quits",
            area.width, area.height
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    if state.focus == Focus::Help {
        draw_help(frame, area, scene);
        return;
    }
    let banner = banner(state, scene);
    let banner_rows = rows_of(banner.as_ref(), area.width).min(3);
    let [header, alarm, summary, modes, tabs, list, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(banner_rows),
        Constraint::Length(7),
        Constraint::Length(2),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(head_line(state, scene)), header);
    if let Some((text, tone)) = banner {
        let style = scene.style(tone).add_modifier(Modifier::REVERSED);
        frame.render_widget(
            Paragraph::new(text).style(style).wrap(Wrap { trim: true }),
            alarm,
        );
    }
    draw_summary(frame, summary, state, scene);
    frame.render_widget(Paragraph::new(overview(state, scene)), modes);
    let grid = self::list(state, scene, usize::from(list.width));
    draw_tabs(frame, tabs, state);
    let shown = draw_list(frame, list, state, scene, grid);
    draw_footer(frame, footer, state, &shown);
}

/// Rows that a wrapped text takes, at most.
fn rows_of(banner: Option<&(String, Tone)>, width: u16) -> u16 {
    banner.map_or(0, |(text, _)| {
        // A word that does not fit leaves the end of its row empty.
        let columns = text.chars().count() + text.chars().count() / 8;
        u16::try_from(columns.div_ceil(usize::from(width).max(1))).unwrap_or(u16::MAX)
    })
}

fn banner(state: &State, scene: &Scene<'_>) -> Option<(String, Tone)> {
    if let Some(Silence { why, gate }) = &state.silence {
        let gate = match gate {
            Some(true) => {
                " THE GATE IS ON all the same: it judges by the last policy, and refused clients get no answer."
            }
            Some(false) => " No gate stays on without an agent.",
            None => "",
        };
        let age = state.newest.as_ref().map_or_else(String::new, |newest| {
            let age = scene.now.saturating_duration_since(newest.at).as_secs();
            format!(" What follows is {age} s old.")
        });
        return Some((
            format!("NO ANSWER: {}.{gate}{age} Trying on.", safe(why)),
            Tone::Bad,
        ));
    }
    if let Some(asked) = state.asked {
        let waited = scene.now.saturating_duration_since(asked);
        if waited >= PATIENCE {
            let waited = waited.as_secs();
            let text = format!(
                "the agent at {} has not answered for {waited} s",
                safe(scene.socket)
            );
            return Some((text, Tone::Bad));
        }
    }
    let status = &state.newest.as_ref()?.status;
    let alarms = alarms(status);
    if alarms > 0 {
        let text = format!("{alarms} ALARMS: see Health (key 5)");
        return Some((text, Tone::Bad));
    }
    status.policy.rejected.is_some().then(|| {
        (
            "the last reload was rejected, the old policy stays: see Health (key 5)".to_owned(),
            Tone::Warn,
        )
    })
}

/// What somebody must act on.
fn alarms(status: &Status) -> usize {
    status.alarms.len() + status.gate_errors.len() + status.watch_alarms().count()
}

fn head_line(state: &State, scene: &Scene<'_>) -> Line<'static> {
    let mut spans = vec![Span::styled("musttls top", BOLD)];
    match &state.newest {
        Some(newest) => {
            let status = &newest.status;
            spans.push(Span::raw(format!(
                "  agent {}, process {}, up {}  policy {} {}",
                safe(&status.version),
                status.pid,
                duration(scene.now_ms - status.started_ms),
                status.policy.version,
                safe(&status.policy.mode)
            )));
        }
        None if state.silence.is_none() => {
            spans.push(Span::raw(format!(
                "  asking the agent at {}",
                safe(scene.socket)
            )));
        }
        None => {}
    }
    if state.is_paused {
        spans.push(Span::raw("  "));
        spans.push(Span::styled("PAUSED", REVERSED));
    }
    Line::from(spans)
}

/// The table of outcomes on the left, versions and health on the right.
fn draw_summary(frame: &mut Frame<'_>, area: Rect, state: &State, scene: &Scene<'_>) {
    let [left, _, right] = Layout::horizontal([
        Constraint::Length(39),
        Constraint::Length(2),
        Constraint::Fill(1),
    ])
    .areas(area);
    frame.render_widget(Paragraph::new(outcomes(state, scene)), left);
    frame.render_widget(Paragraph::new(versions_and_health(state, scene)), right);
}

/// What is not TLS, plaintext or a failure: probes, other protocols.
const OTHERS: &[&str] = &["half-open", "incomplete", "no-login"];

fn outcomes(state: &State, scene: &Scene<'_>) -> Vec<Line<'static>> {
    let title = format!("{:<18}{:>11}{:>10}", "sessions", "total", "a second");
    let mut lines = vec![Line::styled(title, BOLD)];
    for (label, outcomes, tone) in [
        ("TLS", &["secure"][..], Tone::Good),
        ("refused", &["denied"], Tone::Bad),
        ("plaintext passed", &["observed"], Tone::Warn),
        ("by an exception", &["excepted"], Tone::Warn),
        ("TLS failed", &["tls-failed"], Tone::Plain),
        ("no login", OTHERS, Tone::Plain),
    ] {
        let count = state.total(outcomes);
        let rate = state
            .rate(outcomes)
            .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        let text = format!("{label:<18}{:>11}{rate:>10}", by_thousands(count));
        let tone = if count == 0 { Tone::Plain } else { tone };
        lines.push(Line::styled(text, scene.style(tone)));
    }
    lines
}

fn versions_and_health(state: &State, scene: &Scene<'_>) -> Vec<Line<'static>> {
    let Some(status) = state.newest.as_ref().map(|newest| &newest.status) else {
        return Vec::new();
    };
    let of_version = |version: &str| -> u64 {
        status
            .tls_versions
            .values()
            .filter_map(|versions| versions.get(version))
            .sum()
    };
    let all: u64 = status
        .tls_versions
        .values()
        .flat_map(|versions| versions.values())
        .sum();
    let (new, usual) = (of_version("1.3"), of_version("1.2"));
    let mut lines = vec![Line::styled("TLS versions on record", BOLD)];
    for (label, count) in [("1.3", new), ("1.2", usual), ("other", all - new - usual)] {
        let share = share(count, all);
        let tone = if label == "other" && count > 0 {
            Tone::Warn
        } else {
            Tone::Plain
        };
        let text = format!("{label:<9}{:>11}{share:>7}", by_thousands(count));
        lines.push(Line::styled(text, scene.style(tone)));
    }
    let coverage = &status.coverage;
    let is_whole = coverage.covered == coverage.listeners;
    lines.push(Line::styled(
        format!(
            "covered  {} of {} listeners",
            coverage.covered, coverage.listeners
        ),
        scene.style(if is_whole { Tone::Plain } else { Tone::Bad }),
    ));
    let lost = status.lost_events.values().sum::<u64>() + status.audit.lost;
    lines.push(Line::styled(
        format!("lost     {} events and records", by_thousands(lost)),
        scene.style(if lost == 0 { Tone::Plain } else { Tone::Bad }),
    ));
    let held: u64 = status.held_segments.values().sum();
    lines.push(Line::raw(format!(
        "held     {} segments",
        by_thousands(held)
    )));
    lines
}

/// The modes of the servers, and which exception ends next.
fn overview(state: &State, scene: &Scene<'_>) -> Vec<Line<'static>> {
    let Some(status) = state.newest.as_ref().map(|newest| &newest.status) else {
        return Vec::new();
    };
    let mut modes: Vec<_> = status
        .servers
        .iter()
        .flat_map(|server| &server.listeners)
        .map(|listener| format!("{} {}", safe(&listener.settings), safe(&listener.mode)))
        .collect();
    modes.sort();
    modes.dedup();
    let modes = if modes.is_empty() {
        "no server was found".to_owned()
    } else {
        modes.join(", ")
    };
    vec![
        Line::raw(format!("servers  {modes}")),
        next_end(status, scene),
    ]
}

fn next_end(status: &Status, scene: &Scene<'_>) -> Line<'static> {
    let holding = status.policy.exceptions;
    let next = status
        .exceptions
        .iter()
        .filter(|exception| exception.holds)
        .filter_map(|exception| Some((exception.ends_ms?, exception)))
        .min_by_key(|(end, _)| *end);
    let Some((end, exception)) = next else {
        return Line::raw(format!("exceptions  {holding} in force"));
    };
    let left = end - scene.now_ms;
    let tone = if left < SOON_MS {
        Tone::Warn
    } else {
        Tone::Plain
    };
    let text = format!(
        "exceptions  {holding} in force; {} ends in {} ({})",
        safe(&exception.name),
        duration(left),
        safe(&exception.owner)
    );
    Line::styled(text, scene.style(tone))
}

fn draw_tabs(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let mut spans = Vec::new();
    for (number, pane) in (1..).zip(Pane::ALL) {
        let style = if pane == state.pane {
            REVERSED.add_modifier(Modifier::BOLD)
        } else {
            Style::new()
        };
        spans.push(Span::styled(format!(" {number} {} ", pane.title()), style));
        spans.push(Span::raw(" "));
    }
    frame.render_widget(Paragraph::new(Line::from(spans)), area);
}

/// Draws the list; which rows of how many.
fn draw_list(
    frame: &mut Frame<'_>,
    area: Rect,
    state: &mut State,
    scene: &Scene<'_>,
    grid: Grid,
) -> String {
    let filter = state.filter.to_lowercase();
    let rows: Vec<_> = grid
        .rows
        .into_iter()
        .filter(|(_, cells)| filter.is_empty() || cells.join(" ").to_lowercase().contains(&filter))
        .collect();
    // One row has the titles.
    let page = usize::from(area.height.saturating_sub(1));
    state.page = page;
    state.offset = state.offset.min(rows.len().saturating_sub(page));
    if rows.is_empty() {
        let text = if filter.is_empty() {
            grid.empty
        } else {
            format!(
                "nothing has `{}` in it (Esc shows all)",
                safe(&state.filter)
            )
        };
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return "none".to_owned();
    }
    let count = rows.len();
    let shown = rows
        .into_iter()
        .skip(state.offset)
        .take(page)
        .map(|(tone, cells)| Row::new(cells).style(scene.style(tone)));
    let table = Table::new(shown, grid.widths).header(Row::new(grid.titles).style(BOLD));
    frame.render_widget(table, area);
    format!(
        "{}-{} of {count}",
        state.offset + 1,
        (state.offset + page).min(count)
    )
}

fn draw_footer(frame: &mut Frame<'_>, area: Rect, state: &State, shown: &str) {
    let keys = if state.focus == Focus::Filter {
        vec![
            Span::styled("Filter: ", BOLD),
            Span::raw(format!("{}_", safe(&state.filter))),
            Span::raw("   Enter keeps it, Esc shows all"),
        ]
    } else {
        let every = format!("every {} s ", state.interval.as_secs());
        let filter = match state.filter.as_str() {
            "" => "Filter ".to_owned(),
            filter => format!("Filter `{}` ", safe(filter)),
        };
        let pause = if state.is_paused { "Go on " } else { "Pause " };
        [
            ("F1", "Help "),
            ("Tab", "Next "),
            ("/", &filter),
            ("Space", pause),
            ("+-", &every),
            ("F10", "Quit"),
        ]
        .into_iter()
        .flat_map(|(key, does)| [Span::styled(key, REVERSED), Span::raw(does.to_owned())])
        .collect()
    };
    frame.render_widget(Paragraph::new(Line::from(keys)), area);
    let width = u16::try_from(shown.len()).unwrap_or(0).min(area.width);
    let [_, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(width)]).areas(area);
    frame.render_widget(
        Paragraph::new(shown.to_owned()).alignment(Alignment::Right),
        right,
    );
}

/// The help: keys, and what the words mean.
const HELP: &[(&str, &str)] = &[
    ("q F10 Ctrl-C", "quit"),
    ("F1 ? h", "this help; any key but q ends it"),
    (
        "Tab Shift-Tab",
        "the next list, the one before; also Left, Right, 1 to 5",
    ),
    (
        "Up Down",
        "scroll by a row; PgUp, PgDn by a page; Home, End",
    ),
    ("/ F4", "only rows with a text in them; Esc shows all"),
    ("Space", "pause, go on"),
    (
        "+ -",
        "longer, shorter time between two questions to the agent",
    ),
    ("Ctrl-Z", "stop; fg goes on"),
    ("Ctrl-L", "draw all anew"),
    ("", ""),
    (
        "sessions",
        "as the kernel counts them; a second: between two answers",
    ),
    (
        "Clients",
        "in plaintext, by the newest records of the audit file;",
    ),
    ("", "the program is what the client claims to be"),
    (
        "Refusals",
        "by the same records; landed: the server saw a failed login",
    ),
];

fn draw_help(frame: &mut Frame<'_>, area: Rect, scene: &Scene<'_>) {
    let mut lines = vec![Line::styled("musttls top", BOLD), Line::raw("")];
    lines.extend(HELP.iter().map(|(key, does)| {
        Line::from(vec![
            Span::styled(format!("{key:<15}"), BOLD),
            Span::raw((*does).to_owned()),
        ])
    }));
    lines.push(Line::raw(""));
    lines.push(Line::raw(format!(
        "Asked is the agent at {}.",
        safe(scene.socket)
    )));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(lines), area);
}

/// A duration in its two largest units.
#[must_use]
pub fn duration(ms: i64) -> String {
    let seconds = ms.max(0) / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {} min", minutes % 60),
        (1..=9, ..) => format!("{days} d {} h", hours % 24),
        _ => format!("{days} d"),
    }
}

/// `part` of `whole`, in percent.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    // Rounded down, so that 100 % are all of them.
    format!("{} %", u128::from(part) * 100 / u128::from(whole))
}
