//! The daemon: starts everything, and then waits for what happens.
//!
//! | file | content |
//! |---|---|
//! | `mod` | what the daemon holds |
//! | `start` | the order of the start: what can fail without the gate comes first |
//! | `events` | the event loop: what happens, and what is done about it |
//! | `reload` | a policy comes into force: reload, an exception that begins or ends, a clock that was set |
//! | `former` | what an agent leaves to the next |
//! | `older` | sessions older than the gate |
//! | `coverage` | servers are looked for, their listeners are named, the service manager is told |
//! | `watch` | whether the gate is as it was left, and its counters are as its events |
//! | `canary` | when the agent logs in to itself, and what becomes of it |
//! | `status` | what `musttls status` shows |
//! | `recorder` | events and refusals to audit records, metrics, losses |
//! | [`lock`] | one agent a host |

mod canary;
mod coverage;
mod events;
mod former;
pub mod lock;
mod older;
mod recorder;
mod reload;
mod start;
mod status;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::bypass::Watch;
use crate::clock;
use crate::conditions::InForce;
use crate::config::{Config, Layers, PastDates};
use crate::confine::{self, Confinement};
use crate::control::Pending;
use crate::datapath::{self, Counters, PolicyTables, Record, Ring, Told, UnixProbe, cgroup, pins};
use crate::error::{self, Exit};
use crate::history::follow::Follower;
use crate::metrics::Metrics;
use crate::older::Sessions;
use crate::refusal::{Report, ThreadState};
use crate::servers::unix::Poller;
use crate::servers::{Finder, NewListener, Registry, Tagger};
use crate::tally::{Ledger, Tally};
use canary::Sentry;
use coverage::Look;
use events::Signals;
use recorder::Recorder;
use reload::Compiled;

/// Runs the agent until a signal ends it.
pub fn run(path: &Path) -> Result<Exit> {
    confine::never_dump()?;
    let loaded = Config::load(path, clock::wall(), PastDates::Warn)?;
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    let _lock = lock::take(Path::new(lock::PATH))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let _context = runtime.enter();
    // Before the service manager is told that the agent is ready, which may answer with a signal at once.
    let signals = Signals::new()?;
    let was_on = pins::any()?;
    let mut daemon = Daemon::start(path, loaded).inspect_err(|_| {
        // A first start that failed leaves nothing behind. A later one leaves a gate on, by the new policy if it came so far.
        if !was_on && let Err(error) = pins::disarm() {
            tracing::error!("the gate stays on: {}", error::text(&error));
        }
    })?;
    runtime.block_on(daemon.work(signals))
}

struct Daemon {
    path: PathBuf,
    config: Arc<Config>,
    policy_version: u32,
    /// Why the last reload was rejected.
    rejected: Option<String>,
    /// What the tables in force were compiled from: which exceptions held, and by which clock.
    compiled: Compiled,
    /// The policy in force, as it was read.
    layers: Layers,
    /// The names that the entries of the table of servers have had, from entry 1 on.
    server_names: Vec<String>,
    tables: PolicyTables,
    counters: Counters,
    told: Told,
    /// Why the gate ends with this agent; none if it outlives it.
    ends_with_agent: Option<String>,
    sessions: AsyncFd<Ring>,
    listens: AsyncFd<Ring>,
    reports: mpsc::Receiver<Report>,
    commands: mpsc::Receiver<Pending>,
    registry: Arc<Registry>,
    tagger: Tagger,
    finder: Finder,
    look: Option<Look>,
    /// Listeners that wait to be named.
    new_listeners: Vec<NewListener>,
    scan_errors: Vec<String>,
    watch: Watch,
    /// Since when the gate of this agent is in force, until the service manager has been told that the agent is ready.
    unready_since: Option<Instant>,
    canary: Sentry,
    tally: Arc<Tally>,
    ledger: Ledger,
    unix_probe: UnixProbe,
    poller: Poller,
    older: Sessions,
    /// Denials of older sessions that have not been found yet.
    older_denials: Vec<Record>,
    recorder: Recorder,
    history: Follower,
    metrics: Arc<Metrics>,
    confinement: Confinement,
    started: Timestamp,
    refusal_thread: Arc<ThreadState>,
    refusals: Option<std::thread::JoinHandle<std::io::Result<()>>>,
    /// The policy that the thread of the answers goes by.
    in_force: Arc<InForce>,
    answers: Option<std::thread::JoinHandle<std::io::Result<()>>>,
    gate: Gate,
}

/// What must live as long as the gate.
struct Gate {
    programs: datapath::Gate,
    /// Kept open as long as the gate is attached to it.
    root: cgroup::Root,
    /// When all was found in order last, in milliseconds of Unix time.
    seen_ms: i64,
    /// What others have changed and could not be put back, by program.
    errors: BTreeMap<&'static str, String>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.refusal_thread.stop.store(true, Ordering::Relaxed);
    }
}
