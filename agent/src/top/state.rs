//! What `musttls top` knows and what its keys do. Pure: time, keys and answers are arguments.

use std::cmp::Reverse;
use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::session::Session;
use crate::status::Status;

/// Most refusals that are kept.
const REFUSALS_MAX: usize = 500;
/// Most clients that are kept; the one that was not seen for longest goes first.
const CLIENTS_MAX: usize = 2000;
/// Longest filter, in characters.
const FILTER_MAX: usize = 64;
/// Seconds between two questions that `+` and `-` step through.
const INTERVALS: [u64; 7] = [1, 2, 5, 10, 20, 30, 60];

/// A list that can be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pane {
    /// Who is in plaintext.
    Clients,
    /// Sessions that were refused.
    Refusals,
    /// Exceptions, the next to end first.
    Exceptions,
    /// Servers with their listeners and modes.
    Servers,
    /// How the agent and its gate are.
    Health,
}

impl Pane {
    /// All, in the order of the tabs.
    pub const ALL: [Self; 5] = [
        Self::Clients,
        Self::Refusals,
        Self::Exceptions,
        Self::Servers,
        Self::Health,
    ];

    /// Its tab.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Clients => "Clients",
            Self::Refusals => "Refusals",
            Self::Exceptions => "Exceptions",
            Self::Servers => "Servers",
            Self::Health => "Health",
        }
    }

    fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|pane| *pane == self).unwrap_or(0);
        let to = (at + by) % Self::ALL.len();
        Self::ALL.get(to).copied().unwrap_or(self)
    }
}

/// What keys go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Focus {
    /// The list.
    List,
    /// The filter, which is being typed.
    Filter,
    /// The help, which any key ends.
    Help,
}

/// What a key asks of the terminal loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// To draw what has changed.
    Draw,
    /// To draw all anew: something else has written to the terminal.
    Redraw,
    /// To end.
    Quit,
    /// To stop as SIGTSTP does.
    Stop,
}

/// One question, answered or not.
#[derive(Debug)]
pub struct Report {
    /// The agent's status, or why there is none.
    pub status: Result<Box<Status>, Silence>,
    /// Whether its audit file is another than that of the reports before.
    pub is_other_file: bool,
    /// What has come in its audit file since the last report.
    pub sessions: Vec<Session>,
    /// Why that could not be read.
    pub unread: Option<String>,
}

/// Why there is no status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// What was tried, and what the system said.
    pub why: String,
    /// Whether a gate is on all the same; none if an agent runs, or it could not be found out.
    pub gate: Option<bool>,
}

/// Clients in plaintext that look the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Who {
    /// Its address.
    pub client: String,
    /// Its user.
    pub user: String,
    /// What it calls itself.
    pub program: String,
    /// The server's settings.
    pub server: String,
}

/// What is known of such a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its sessions among the records that were read.
    pub sessions: u64,
    /// The newest of them.
    pub last: Session,
}

/// A status, and when it came.
#[derive(Clone, Debug)]
pub struct Sample {
    /// When.
    pub at: Instant,
    /// What.
    pub status: Box<Status>,
}

/// All that is shown.
#[derive(Debug)]
pub struct State {
    /// The newest status.
    pub newest: Option<Sample>,
    /// The one before, for rates.
    former: Option<Sample>,
    /// Why the last question had no answer.
    pub silence: Option<Silence>,
    /// Since when an answer is awaited, if one is.
    pub asked: Option<Instant>,
    /// Refusals, the newest first.
    pub refusals: VecDeque<Session>,
    /// Clients in plaintext.
    pub clients: HashMap<Who, Client>,
    /// Why the audit file could not be read.
    pub unread: Option<String>,
    /// The list that is shown.
    pub pane: Pane,
    /// What keys go to.
    pub focus: Focus,
    /// Rows without this, whatever the case of its letters, are left out.
    pub filter: String,
    /// Whether nothing is asked for now.
    pub is_paused: bool,
    /// Time between two questions.
    pub interval: Duration,
    /// First row that is shown; the view brings it within bounds.
    pub offset: usize,
    /// Rows that the list had when it was drawn last.
    pub page: usize,
}

impl State {
    /// Nothing is known yet.
    #[must_use]
    pub fn new(interval: Duration) -> Self {
        Self {
            newest: None,
            former: None,
            silence: None,
            asked: None,
            refusals: VecDeque::new(),
            clients: HashMap::new(),
            unread: None,
            pane: Pane::Clients,
            focus: Focus::List,
            filter: String::new(),
            is_paused: false,
            interval,
            offset: 0,
            page: 1,
        }
    }

    /// Takes over what was answered.
    pub fn take(&mut self, report: Report, now: Instant) {
        self.asked = None;
        self.unread = report.unread;
        if report.is_other_file {
            self.refusals.clear();
            self.clients.clear();
        }
        for session in report.sessions {
            self.take_session(session);
        }
        match report.status {
            Ok(status) => {
                self.silence = None;
                self.former = self.newest.replace(Sample { at: now, status });
            }
            Err(silence) => {
                self.silence = Some(silence);
                // A rate over the time of silence would be none.
                self.former = None;
            }
        }
    }

    fn take_session(&mut self, session: Session) {
        if session.is_plaintext {
            let who = Who {
                client: session.client.clone(),
                user: session.user.clone(),
                program: session.program.clone(),
                server: session.server.clone(),
            };
            if self.clients.len() >= CLIENTS_MAX && !self.clients.contains_key(&who) {
                let oldest = self
                    .clients
                    .iter()
                    .min_by_key(|(_, client)| client.last.time_ms);
                if let Some(oldest) = oldest.map(|(who, _)| who.clone()) {
                    self.clients.remove(&oldest);
                }
            }
            let client = self.clients.entry(who).or_insert_with(|| Client {
                sessions: 0,
                last: session.clone(),
            });
            client.sessions += 1;
            if client.last.time_ms <= session.time_ms {
                client.last = session.clone();
            }
        }
        if session.is_refused() {
            self.refusals.push_front(session);
            self.refusals.truncate(REFUSALS_MAX);
        }
    }

    /// Clients in plaintext, the last seen first.
    #[must_use]
    pub fn clients_by_time(&self) -> Vec<(&Who, &Client)> {
        let mut clients: Vec<_> = self.clients.iter().collect();
        clients.sort_by_key(|(who, client)| {
            (
                Reverse(client.last.time_ms),
                who.client.as_str(),
                who.user.as_str(),
            )
        });
        clients
    }

    /// Sessions with one of `outcomes`, of all servers, by the newest status.
    #[must_use]
    pub fn total(&self, outcomes: &[&str]) -> u64 {
        self.newest
            .as_ref()
            .map_or(0, |sample| total(&sample.status, outcomes))
    }

    /// How many of them came a second between the last two answers; none if that is not known.
    #[must_use]
    pub fn rate(&self, outcomes: &[&str]) -> Option<f64> {
        let (former, newest) = (self.former.as_ref()?, self.newest.as_ref()?);
        if former.status.pid != newest.status.pid
            || former.status.started_ms != newest.status.started_ms
        {
            return None;
        }
        let more = total(&newest.status, outcomes).checked_sub(total(&former.status, outcomes))?;
        let seconds = newest.at.saturating_duration_since(former.at).as_secs_f64();
        // Above 2^32 a second, precision is no matter.
        let more = u32::try_from(more).map_or(f64::INFINITY, f64::from);
        (seconds > 0.0).then(|| more / seconds)
    }

    /// Does what a key says.
    pub fn key(&mut self, key: KeyEvent) -> Action {
        if key.kind == KeyEventKind::Release {
            return Action::Draw;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Action::Quit,
                KeyCode::Char('z') => Action::Stop,
                KeyCode::Char('l') => Action::Redraw,
                _ => Action::Draw,
            };
        }
        match (self.focus, key.code) {
            (_, KeyCode::F(10)) => return Action::Quit,
            (Focus::Help, KeyCode::Char('q')) => return Action::Quit,
            (Focus::Help, _) => self.focus = Focus::List,
            (Focus::Filter, code) => self.type_filter(code),
            (Focus::List, KeyCode::Char('q' | 'Q')) => return Action::Quit,
            (Focus::List, code) => self.list_key(code),
        }
        Action::Draw
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.focus = Focus::List,
            KeyCode::Esc => {
                self.filter.clear();
                self.focus = Focus::List;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
        self.offset = 0;
    }

    fn list_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::F(1) | KeyCode::Char('?' | 'h') => self.focus = Focus::Help,
            KeyCode::F(4) | KeyCode::Char('/') => self.focus = Focus::Filter,
            KeyCode::Esc => {
                self.filter.clear();
                self.offset = 0;
            }
            KeyCode::Char(' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('+') => {
                self.set_interval(|now| INTERVALS.into_iter().find(|&other| other > now));
            }
            KeyCode::Char('-') => {
                self.set_interval(|now| INTERVALS.into_iter().rev().find(|&other| other < now));
            }
            KeyCode::Tab | KeyCode::Right => self.show(self.pane.step(1)),
            KeyCode::BackTab | KeyCode::Left => self.show(self.pane.step(Pane::ALL.len() - 1)),
            KeyCode::Char(digit @ '1'..='5') => {
                let at = digit.to_digit(10).map_or(0, |digit| digit as usize - 1);
                self.show(Pane::ALL.get(at).copied().unwrap_or(self.pane));
            }
            KeyCode::Down | KeyCode::Char('j') => self.offset = self.offset.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.offset = self.offset.saturating_sub(1),
            KeyCode::PageDown => self.offset = self.offset.saturating_add(self.page.max(1)),
            KeyCode::PageUp => self.offset = self.offset.saturating_sub(self.page.max(1)),
            KeyCode::Home => self.offset = 0,
            KeyCode::End => self.offset = usize::MAX,
            _ => {}
        }
    }

    const fn show(&mut self, pane: Pane) {
        self.pane = pane;
        self.offset = 0;
    }

    fn set_interval(&mut self, next: impl Fn(u64) -> Option<u64>) {
        if let Some(seconds) = next(self.interval.as_secs()) {
            self.interval = Duration::from_secs(seconds);
        }
    }
}

fn total(status: &Status, outcomes: &[&str]) -> u64 {
    status
        .sessions
        .values()
        .flat_map(|server| outcomes.iter().filter_map(|&outcome| server.get(outcome)))
        .sum()
}
