//! Sessions older than the gate or its enforcement: what is done when they are found, when the gate has understood one, and by command.

use std::time::Duration;

use musttls_common::event::Event;
use musttls_common::older::Spoken;
use musttls_common::policy::NO_RULE;
use musttls_common::verdict::{Mode, Reason};

use super::Daemon;
use super::events::BATCH;
use crate::audit::record::{OlderThan, Outcome, Refusal};
use crate::clock;
use crate::config::Config;
use crate::control::Answer;
use crate::datapath::{Extra, Record};
use crate::older::{Counts, Ending, Session, State};
use crate::status;

/// Sessions that are looked at once a second: some 1 ms.
const LOOKED_AT: usize = 256;
/// The ring of sessions holds no more batches.
const RING_BATCHES: usize = 5;
/// Denials that wait for their sessions to be found.
const MAX_DENIALS: usize = 1024;

impl Daemon {
    /// Looks at some sockets: of servers whose listeners are newly covered, and of all sessions after a new policy.
    pub(super) fn step_older(&mut self) {
        let held = self.older.step(self.tagger.maps(), &self.config);
        if let Some(Counts {
            tls,
            plaintext,
            unknown,
            beyond,
        }) = self.older.news()
        {
            tracing::info!(
                tls,
                plaintext,
                unknown,
                beyond,
                help = "musttls status lists them",
                "sessions are older than the gate"
            );
        }
        self.refuse_held(held);
    }

    /// Finds out what has become of some of the sessions.
    pub(super) fn check_older(&mut self) {
        self.look_at_older(LOOKED_AT);
        if !self.older.is_looking() {
            // Theirs have ended before an agent found them.
            for record in std::mem::take(&mut self.older_denials) {
                self.record_refused(&record, "gone", None, None);
            }
        }
        self.metrics.set_older(&self.older.counts());
    }

    fn look_at_older(&mut self, most: usize) {
        let held = self.older.check(most, self.tagger.maps(), &self.config);
        self.refuse_held(held);
    }

    /// Refuses sessions that were found with a command held. The events of most are still in the ring.
    fn refuse_held(&mut self, held: Vec<u64>) {
        if held.is_empty() {
            return;
        }
        for _ in 0..RING_BATCHES {
            if self.drain() < BATCH {
                break;
            }
        }
        for cookie in held {
            self.refuse_older(cookie, None);
        }
    }

    /// The gate is certain what a session speaks.
    pub(super) fn older(&mut self, record: Record) {
        let event = &record.event;
        let denies = Reason::from_u8(event.reason) == Some(Reason::OlderPlaintext);
        if denies && Mode::from_u8(event.mode) == Mode::Enforce {
            return self.refuse_older(event.cookie, Some(record));
        }
        let outcome = match Spoken::from_u8(event.spoken) {
            Spoken::Plaintext if denies => Outcome::Observed,
            Spoken::Plaintext if event.rule != NO_RULE => Outcome::Excepted,
            Spoken::Plaintext => Outcome::Kept,
            Spoken::Tls | Spoken::Unknown => Outcome::Allowed,
        };
        let session = self.older.get(event.cookie);
        let than = session.map_or(OlderThan::Gate, Session::older_than);
        self.recorder.older(&record, than, outcome, None, None);
    }

    /// Refuses a session of which a command is held.
    fn refuse_older(&mut self, cookie: u64, denial: Option<Record>) {
        let Some(refused) = self.older.refuse(cookie, self.tagger.maps()) else {
            if let Some(record) = denial {
                // Not found yet, if servers are still gone over.
                if self.older.is_looking() && self.older_denials.len() < MAX_DENIALS {
                    self.older_denials.push(record);
                } else {
                    self.record_refused(&record, "gone", None, None);
                }
            }
            return;
        };
        let (session, ending) = match refused {
            Ok(refused) => refused,
            Err(error) => {
                // Its command stays held, and it is tried again when the session is looked at next.
                tracing::debug!(cookie, error = format!("{error:#}"), "older session");
                return;
            }
        };
        let waiting = self
            .older_denials
            .iter()
            .position(|record| record.event.cookie == cookie);
        let record = denial
            .or_else(|| waiting.map(|at| self.older_denials.swap_remove(at)))
            .unwrap_or_else(|| self.event_of(cookie, &session));
        let outcome = match ending {
            Ending::Told | Ending::Ended => "ended",
            Ending::Destroyed => "destroyed",
            Ending::Gone => "gone",
        };
        let after =
            matches!(ending, Ending::Told).then(|| clock::since_ktime(record.event.ktime_ns));
        tracing::debug!(client = %session.client, pid = session.server_pid, outcome, "a session older than the gate was refused");
        self.record_refused(&record, outcome, after, Some(&session));
    }

    fn record_refused(
        &mut self,
        record: &Record,
        outcome: &'static str,
        err_after: Option<Duration>,
        session: Option<&Session>,
    ) {
        let refusal = Refusal {
            outcome,
            err_after_us: err_after
                .map(|after| u64::try_from(after.as_micros()).unwrap_or(u64::MAX)),
            released_after_us: None,
        };
        let than = session.map_or(OlderThan::Gate, Session::older_than);
        let pid = session.map(|session| session.server_pid);
        self.recorder
            .older(record, than, Outcome::Denied, Some(refusal), pid);
    }

    /// Lists what is in the clear and no exception allows, and ends it if `execute`.
    pub(super) fn kill_plaintext(&mut self, execute: bool) -> Answer {
        self.look_at_older(usize::MAX);
        let plaintext: Vec<(u64, Session)> = self
            .older
            .all()
            .filter(|(_, session)| session.spoken == Spoken::Plaintext)
            .map(|(cookie, session)| (cookie, session.clone()))
            .collect();
        let mut sessions = Vec::new();
        for (cookie, session) in plaintext {
            let mut shown = status::Older::of(&session, &self.config);
            let is_due = session.is_certain && shown.exception.is_none();
            if execute && is_due {
                match self.older.kill(cookie) {
                    Ok(()) => {
                        shown.killed = true;
                        tracing::debug!(client = %session.client, pid = session.server_pid, "a session older than the gate was ended by command");
                        let record = self.event_of(cookie, &session);
                        self.record_refused(&record, "killed", None, Some(&session));
                    }
                    Err(error) => shown.error = Some(format!("{error:#}")),
                }
            }
            sessions.push(shown);
        }
        Answer::Plaintext { sessions }
    }

    /// What `musttls status` shows of them.
    pub(super) fn older_status(&mut self) -> status::OlderSessions {
        self.look_at_older(usize::MAX);
        let counts = self.older.counts();
        status::OlderSessions {
            existing: self.config.existing.as_str().to_owned(),
            tls: counts.tls,
            plaintext: counts.plaintext,
            unknown: counts.unknown,
            beyond: counts.beyond,
            sessions: self
                .older
                .all()
                .map(|(_, session)| status::Older::of(session, &self.config))
                .collect(),
        }
    }

    /// An event for what the agent does of its own accord.
    fn event_of(&self, cookie: u64, session: &Session) -> Record {
        let mut event = Event {
            ktime_ns: clock::monotonic_ns(),
            cookie,
            listener_cookie: session.listener_cookie,
            rule: NO_RULE,
            reason: Reason::OlderPlaintext as u8,
            spoken: session.spoken as u8,
            policy_version: self.policy_version,
            ..Event::default()
        };
        let index = session.settings(&self.config);
        event.mode = self.config.mode_of(index) as u8;
        event.endpoints = session.endpoints(index);
        Record {
            event,
            extra: Extra::None,
        }
    }
}

impl status::Older {
    fn of(session: &Session, config: &Config) -> Self {
        let certainty = match (session.spoken, session.is_certain) {
            (Spoken::Unknown, _) => None,
            (Spoken::Tls | Spoken::Plaintext, true) => Some("certain".to_owned()),
            (Spoken::Tls | Spoken::Plaintext, false) => Some("likely".to_owned()),
        };
        Self {
            client: session.client.to_string(),
            server: session.server.to_string(),
            pid: session.server_pid,
            program: session.program.clone(),
            older_than: session.older_than().as_str().to_owned(),
            speaks: session.spoken.as_str().to_owned(),
            certainty,
            age_at_least_s: session.age_at_least().as_secs(),
            age_at_most_s: session.age_at_most().as_secs(),
            exception: session
                .exception(config, clock::wall())
                .filter(|_| session.spoken == Spoken::Plaintext)
                .map(str::to_owned),
            held: session.state == State::Held,
            killed: false,
            error: None,
        }
    }
}
