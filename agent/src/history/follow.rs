//! The daemon's thread that keeps the index up to date. Nothing waits for it: it is told that there is more, and goes at its own
//! pace. Where it fails, it says so and tries again.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{History, State, rebuilt_text, source};
use crate::clock;
use crate::config::Config;
use crate::error;
use crate::trail::Flaw;

/// How nice the thread is: everything else comes first (sched(7)).
const NICE: i32 = 19;
/// How often it looks without being told.
const EVERY: Duration = Duration::from_mins(10);
/// How long it waits after a failure.
const AGAIN: Duration = Duration::from_secs(30);
/// How often the same series of failures is told.
const REPORT_EVERY: Duration = Duration::from_mins(10);

/// What the thread has come to.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Option<State>>,
    /// Why the last look failed, if it did.
    problem: Mutex<Option<String>>,
    errors: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    fn note(&self, problem: Option<String>) {
        if let Ok(mut place) = self.problem.lock() {
            *place = problem;
        }
    }
}

/// The thread, as the daemon has it.
#[derive(Debug)]
pub struct Follower {
    more: Option<SyncSender<()>>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The newest record that the thread was told of.
    told: u64,
    /// Why there is no history, if there is none.
    none: Option<String>,
}

impl Follower {
    /// Starts the thread, or says why there is no history.
    pub fn start(config: &Arc<Config>) -> Self {
        let shared = Arc::new(Shared::default());
        let started = source(config)
            .map_err(anyhow::Error::from)
            .and_then(|_| spawn(config.clone(), shared.clone()));
        match started {
            Ok((more, thread)) => Self {
                more: Some(more),
                shared,
                thread: Some(thread),
                told: 0,
                none: None,
            },
            Err(error) => {
                let why = error::text(&error);
                if config.history.enabled {
                    tracing::warn!("who connects how is not kept: {why}");
                }
                Self {
                    more: None,
                    shared,
                    thread: None,
                    told: 0,
                    none: Some(why),
                }
            }
        }
    }

    /// Tells the thread that the audit file goes up to record `sequence`.
    pub fn tell(&mut self, sequence: u64) {
        let Some(more) = self.more.as_ref().filter(|_| sequence != self.told) else {
            return;
        };
        match more.try_send(()) {
            Ok(()) => self.told = sequence,
            // It has not come to what it was told before: once more when it has.
            Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => self.more = None,
        }
    }

    /// What the index held after the last look, and how many looks have failed. `None` before the first, and without a
    /// history.
    #[must_use]
    pub fn state(&self) -> (Option<State>, u64) {
        let state = self.shared.state.lock().ok().and_then(|it| it.clone());
        (state, self.shared.errors.load(Ordering::Relaxed))
    }

    /// Why there is no history, or why it is not up to date.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        let problem = || self.shared.problem.lock().ok().and_then(|it| it.clone());
        self.none.clone().or_else(problem)
    }

    /// Ends the thread. What it has not read, the next agent or command reads.
    pub fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.more = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the history panicked");
        }
    }
}

fn spawn(config: Arc<Config>, shared: Arc<Shared>) -> Result<(SyncSender<()>, JoinHandle<()>)> {
    let (more, told) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("history".to_owned())
        .spawn(move || work(&config, &shared, &told))
        .context("start the thread of the history")?;
    Ok((more, thread))
}

fn work(config: &Config, shared: &Shared, told: &Receiver<()>) {
    // On Linux it is a thread that has a priority (setpriority(2), NOTES).
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "the thread of the history is as urgent as the others");
    }
    let mut history = None;
    let mut flaws = Vec::new();
    let mut reported: Option<Instant> = None;
    loop {
        let pause = match look(config, shared, &mut history, &mut flaws) {
            Ok(()) => {
                shared.note(None);
                if reported.take().is_some() {
                    tracing::info!("the history is kept again");
                }
                EVERY
            }
            Err(error) => {
                shared.errors.fetch_add(1, Ordering::Relaxed);
                // What it was about may have been put in order by hand.
                history = None;
                shared.note(Some(error::text(&error)));
                if reported.is_none_or(|last| last.elapsed() >= REPORT_EVERY) {
                    reported = Some(Instant::now());
                    tracing::warn!("the history is not up to date: {}", error::text(&error));
                }
                AGAIN
            }
        };
        // After a failure not before the pause is over, however much is told.
        let wait = |pause| told.recv_timeout(pause);
        match wait(pause) {
            Err(RecvTimeoutError::Disconnected) => return,
            Ok(()) if reported.is_some() => {
                if sleep(shared, AGAIN) {
                    return;
                }
            }
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
        }
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Sleeps, unless it is to stop. Returns whether it is.
fn sleep(shared: &Shared, pause: Duration) -> bool {
    let until = Instant::now() + pause;
    while Instant::now() < until {
        if shared.stop.load(Ordering::Relaxed) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    false
}

/// Reads what is new. What cannot be read is told once.
fn look(
    config: &Config,
    shared: &Shared,
    open: &mut Option<History>,
    told: &mut Vec<Flaw>,
) -> Result<()> {
    if open.as_ref().is_some_and(|history| !history.is_current()) {
        *open = None;
    }
    let history = match open {
        Some(history) => history,
        None => open.insert(History::open(config)?),
    };
    let go_on = || !shared.stop.load(Ordering::Relaxed);
    history.update(clock::wall(), |_, _| go_on())?;
    if let Some(why) = history.take_rebuilt() {
        tracing::warn!("{}", rebuilt_text(history, &why));
    }
    for flaw in history.flaws()? {
        if !told.contains(&flaw) {
            tracing::warn!("{flaw}");
            told.push(flaw);
        }
    }
    let state = history.state()?;
    if let Ok(mut place) = shared.state.lock() {
        *place = Some(state);
    }
    Ok(())
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.stop();
    }
}
