//! The event loop: the only place that waits.
//!
//! | event | what is done |
//! |---|---|
//! | a report of the refusal thread | record, metric |
//! | a record in the ring of listeners | it is named |
//! | a record in the ring of sessions | record, metric; a session older than the gate is refused if a command of it is held |
//! | sockets wait to be looked at | some of them are, for sessions older than the gate |
//! | a look for servers goes on | some more processes and descriptors are looked at |
//! | a tick | the canary logs in if it is time; exceptions that have ended leave the tables; counters are read |
//! | the pause after a look is over | servers are looked for |
//! | SIGHUP, `musttls reload` | the configuration is read again, and swapped or kept |
//! | SIGUSR1 | the audit file is opened again |
//! | SIGTERM, SIGINT | end |

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result};
use musttls_common::event::Kind;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, MissedTickBehavior};

use super::Daemon;
use super::coverage::Why;
use super::reload::Compiled;
use crate::canary;
use crate::clock;
use crate::control::{Answer, Command};
use crate::error::Exit;
use crate::refusal::Report;
use crate::tally;

/// How often servers are looked for that did not announce themselves by listening.
const REFRESH: Duration = Duration::from_secs(1);
/// The look pauses this many times as long as it took of a CPU, however long it had to wait for one: on a server with
/// many descriptors it takes at most two percent.
const REFRESH_SHARE: u32 = 50;
/// The same after listeners were named: who listens again and again takes at most a tenth of a CPU.
const NAMING_SHARE: u32 = 10;
/// How often counters are read, and exceptions that have ended taken out.
const TICK: Duration = Duration::from_secs(1);
/// How often the ring of sessions is looked into: the gate wakes the agent only when much is in it.
const DRAIN: Duration = Duration::from_millis(100);
/// The same where nothing was in it.
const DRAIN_IDLE: Duration = Duration::from_secs(1);
/// How often some sockets of a server are looked at, as long as any wait.
const STEP: Duration = Duration::from_millis(5);
/// Sessions that are recorded before other events get their turn.
pub(super) const BATCH: usize = 4096;

/// The signals that the agent takes.
pub(super) struct Signals {
    hangup: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let take = |kind| signal(kind).context("take signals");
        Ok(Self {
            hangup: take(SignalKind::hangup())?,
            reopen: take(SignalKind::user_defined1())?,
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
        })
    }
}

impl Daemon {
    pub(super) async fn work(&mut self, mut signals: Signals) -> Result<Exit> {
        let mut refresh = std::pin::pin!(tokio::time::sleep(REFRESH));
        // Whether the pause after listeners were named still goes on.
        let mut named = false;
        let mut naming = std::pin::pin!(tokio::time::sleep(Duration::ZERO));
        let mut tick = tokio::time::interval(TICK);
        let mut drain = std::pin::pin!(tokio::time::sleep(DRAIN));
        let mut step = tokio::time::interval(STEP);
        step.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut looked = None;
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                Some(report) = self.reports.recv() => self.report(report),
                ready = self.sessions.readable_mut() => {
                    ready.context("wait for the ring of sessions")?.clear_ready();
                    self.drain();
                }
                ready = self.listens.readable_mut(), if !named && !self.is_looking() => {
                    ready.context("wait for the ring of listeners")?.clear_ready();
                    looked = self.look_for_new();
                }
                () = &mut naming, if named => named = false,
                () = &mut drain => {
                    let pause = if self.drain() > 0 { DRAIN } else { DRAIN_IDLE };
                    drain.as_mut().reset(Instant::now() + pause);
                }
                Some((command, reply)) = self.commands.recv() => {
                    let answer = self.command(command);
                    if reply.send(answer).is_err() {
                        tracing::debug!("the control peer is gone");
                    }
                }
                _ = signals.hangup.recv() => {
                    notify(&[sd_notify::NotifyState::Reloading]);
                    // What it says is in the journal already.
                    let _answer = self.reload();
                    notify(&[sd_notify::NotifyState::Ready]);
                }
                _ = signals.reopen.recv() => self.recorder.reopen(),
                () = &mut refresh, if !self.is_looking() => looked = self.begin_look(Why::Routine),
                _ = step.tick(), if self.older.is_scanning() || self.is_looking() => {
                    if self.older.is_scanning() {
                        self.step_older();
                    }
                    looked = self.step_look();
                }
                _ = tick.tick() => self.tick(),
            }
            match looked {
                Some(looked) if looked.was_for_new => {
                    naming
                        .as_mut()
                        .reset(Instant::now() + looked.cpu * NAMING_SHARE);
                    named = true;
                }
                Some(looked) => {
                    let pause = REFRESH.max(looked.cpu * REFRESH_SHARE);
                    refresh.as_mut().reset(Instant::now() + pause);
                }
                None => {}
            }
            if self
                .answers
                .as_ref()
                .is_some_and(std::thread::JoinHandle::is_finished)
            {
                self.end();
                anyhow::bail!(
                    "the thread that looks at conditions of exceptions ended: logins would stay held\n  help: start musttls again; what ended it stands above"
                );
            }
            if self
                .refusals
                .as_ref()
                .is_some_and(std::thread::JoinHandle::is_finished)
            {
                self.end();
                anyhow::bail!(
                    "the refusal thread ended: denied clients would not be told\n  help: start musttls again; what ended it stands above"
                );
            }
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        self.end();
        match &self.ends_with_agent {
            None => tracing::info!(
                help = "musttls disarm takes it off",
                "the gate stays on, and judges by this policy; refused clients are not told until an agent runs again"
            ),
            Some(why) => tracing::info!(why, "the gate is off"),
        }
        Ok(Exit::Ok)
    }

    /// Takes what is still in flight, and ends.
    fn end(&mut self) {
        self.refusal_thread.stop.store(true, Ordering::Relaxed);
        for (thread, what) in [
            (self.refusals.take(), "the refusal thread"),
            (
                self.answers.take(),
                "the thread that looks at conditions of exceptions",
            ),
        ] {
            match thread.map(std::thread::JoinHandle::join) {
                None | Some(Ok(Ok(()))) => {}
                Some(Ok(Err(error))) => tracing::error!(%error, "{what} failed"),
                Some(Err(_panic)) => tracing::error!(
                    help = "please report it, with the lines above",
                    "{what} panicked"
                ),
            }
        }
        while let Ok(report) = self.reports.try_recv() {
            self.report(report);
        }
        while self.drain() == BATCH {}
        self.tick();
        self.history.stop();
        if let Err(error) = std::fs::remove_file(&self.config.control.socket) {
            tracing::debug!(%error, "remove the control socket");
        }
    }

    /// Records sessions that the gate reports, up to a batch. Returns how many.
    pub(super) fn drain(&mut self) -> usize {
        let now = clock::monotonic_ns();
        for done in 0..BATCH {
            let record = self.sessions.get_mut().next_record();
            if let Some(record) = &record {
                self.tally_session(record);
            }
            match record {
                Some(Ok(record)) if canary::is_of_canary(&record.event) => {}
                Some(Ok(record)) if record.event.kind == Kind::Older as u8 => self.older(record),
                Some(Ok(record)) => self.recorder.session(&record),
                Some(Err(error)) => self.recorder.unreadable(&error),
                None => {
                    self.tally.emptied(tally::Ring::Sessions, now);
                    return done;
                }
            }
        }
        BATCH
    }

    pub(super) fn report(&mut self, report: Report) {
        match report {
            // It says itself what became of it.
            Report::Refused(refused) if canary::is_of_canary(&refused.record.event) => {
                tracing::debug!(
                    outcome = refused.outcome.as_str(),
                    "the canary's refusal has ended"
                );
            }
            Report::Refused(refused) => self.recorder.refused(&refused),
            Report::Session(record) => self.recorder.session(&record),
            Report::Unreadable(error) => self.recorder.unreadable(&error),
        }
    }

    pub(super) fn tick(&mut self) {
        self.check_gate();
        self.turn_canary();
        self.tell_if_ready();
        let now = clock::wall();
        if Compiled::of(&self.config, now).differs(&self.compiled) {
            self.recompile(now);
        }
        // As long as former gates are there, it is known which sessions they have judged: those are not older than any gate.
        if !self.older.is_looking() {
            self.tagger.let_outgoing_go();
        }
        self.check_older();
        let totals = self.compare_counters();
        self.metrics.set_kernel_counters(&self.config, &totals);
        let coverage = self.coverage();
        self.metrics
            .set_coverage(coverage.listeners, coverage.covered);
        self.metrics.set_bypasses(&self.watch.last);
        self.recorder.settle(&totals);
        self.history.tell(self.recorder.audit().sequence());
        let (history, errors) = self.history.state();
        self.metrics.set_history(history.as_ref(), errors);
        self.note(&totals);
        // The service manager starts the agent again if the event loop or the refusal thread hangs.
        if self.refusal_thread.turned.swap(false, Ordering::Relaxed)
            && sd_notify::watchdog_enabled().is_some()
        {
            notify(&[sd_notify::NotifyState::Watchdog]);
        }
    }

    pub(super) fn totals(&self) -> Vec<u64> {
        // Entry 0 is the one of servers without settings of their own.
        self.counters.totals(1 + self.server_names.len())
    }

    fn command(&mut self, command: Command) -> Answer {
        match command {
            Command::Status => Answer::Status(Box::new(self.status())),
            Command::Reload => self.reload(),
            Command::KillPlaintext { execute } => self.kill_plaintext(execute),
        }
    }
}

/// Tells the service manager, if there is one.
pub(super) fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(
            %error,
            socket = std::env::var("NOTIFY_SOCKET").unwrap_or_default(),
            help = "let the unit reach it: AF_UNIX in RestrictAddressFamilies=, NotifyAccess=main",
            "the service manager cannot be told"
        );
    }
}
