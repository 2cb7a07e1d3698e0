//! The order of the start: what can fail without the gate comes first, then the gate with its policy, then who it has held.

use std::collections::BTreeMap;
use std::net::TcpListener as StdTcpListener;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::canary::{Lack, Sentry};
use super::recorder::Recorder;
use super::reload::Compiled;
use super::{Daemon, Gate, former};
use crate::audit::AuditLog;
use crate::audit::record::Identity;
use crate::audit::sink::AuditSink;
use crate::bypass::Watch;
use crate::canary::Desk;
use crate::capability::{Effective, LOOKING};
use crate::clock;
use crate::conditions::{self, InForce};
use crate::config::{self, Config};
use crate::confine::{self, Confinement};
use crate::control::{self, Control};
use crate::datapath::{self, Datapath, Loaded, Pins, Ring, UnixProbe, cgroup};
use crate::error::{self, Failed, NotPermitted};
use crate::history::follow::Follower;
use crate::metrics::{self, BuildInfo, Metrics};
use crate::older::Sessions;
use crate::policy::{self, Tables};
use crate::refusal::{Engine, ThreadState};
use crate::servers::unix::Poller;
use crate::servers::{Finder, Registry, Tagger};
use crate::tally::{Ledger, Tally};

/// Reports of the refusal thread that may wait: 1.5 KiB each at the most.
const REPORTS: usize = 4096;

/// What to do where the kernel does not take the gate.
const LACKS: &str = "musttls doctor says what this host lacks; RUST_LOG=debug musttls run shows what the verifier says";

/// The build that runs.
const BUILD: BuildInfo<'static> = BuildInfo {
    version: env!("CARGO_PKG_VERSION"),
    commit: match option_env!("MUSTTLS_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
};

impl Daemon {
    pub(super) fn start(path: &Path, loaded: config::Loaded) -> Result<Self> {
        let config::Loaded {
            mut config, layers, ..
        } = loaded;
        let now = clock::wall();
        let sink = AuditSink::open(&config.audit)?;
        let metrics = Arc::new(Metrics::new(BUILD));
        let sockets = Sockets::bind(&config)?;
        let desk = Arc::<Desk>::default();
        let canary = Lack::or_bind(&config, &desk);

        let place = Place::find(config.persist)?;
        let server_names = place.number_servers(&mut config)?;
        let policy_version = place.former_policy.unwrap_or(0) + 1;
        let root = cgroup::open_root()?;
        // With the same clocks: loading the gate may take seconds.
        let compiled = Compiled::of(&config, now);
        let policy = policy::compile(&config, policy_version, now, clock::boottime_ns());
        let datapath = attach(place.pins, &policy, root.fd.as_fd())?;
        // Before another thread runs, and before anything that a stranger has chosen is read.
        let confinement = confine(&config)?;

        let registry = Arc::new(Registry::default());
        let mut tagger = Tagger::new(
            datapath.listeners,
            matches!(datapath.unix_probe, UnixProbe::Kernel),
        );
        let canary = Sentry::post(canary, &mut tagger);
        let (report, reports) = mpsc::channel(REPORTS);
        let lost = Arc::new(AtomicU64::new(0));
        let tally = Arc::<Tally>::default();
        let engine = Engine::new(
            datapath.denials,
            datapath.held,
            registry.clone(),
            desk,
            tally.clone(),
            report.clone(),
            lost.clone(),
        )
        .context("start the refusal thread")?;
        let in_force = Arc::<InForce>::default();
        let answers = conditions::Engine::new(
            datapath.asks,
            datapath.answers,
            in_force.clone(),
            tally.clone(),
            report,
            lost.clone(),
            &root.fd,
        )?;

        let commands = sockets.serve(&metrics);
        let config = Arc::new(config);
        let audit = AuditLog::new(identity(now), sink);
        let mut daemon = Self {
            path: path.to_owned(),
            compiled,
            layers,
            server_names,
            policy_version,
            rejected: None,
            tables: datapath.policy,
            counters: datapath.counters,
            told: datapath.told,
            ends_with_agent: place.ends_with_agent,
            sessions: waited_for(datapath.sessions, "sessions")?,
            listens: waited_for(datapath.listens, "listeners")?,
            reports,
            commands,
            recorder: Recorder::new(
                path.display().to_string(),
                registry.clone(),
                audit,
                metrics.clone(),
                lost,
            ),
            history: Follower::start(&config),
            registry,
            tagger,
            finder: Finder::default(),
            look: None,
            new_listeners: Vec::new(),
            scan_errors: Vec::new(),
            watch: Watch::default(),
            unready_since: Some(Instant::now()),
            canary,
            tally,
            ledger: Ledger::default(),
            unix_probe: datapath.unix_probe,
            poller: Poller::default(),
            older: Sessions::default(),
            older_denials: Vec::new(),
            metrics,
            confinement,
            started: now,
            refusal_thread: Arc::default(),
            refusals: None,
            in_force,
            answers: None,
            config,
            gate: Gate::new(datapath.gate, root, now),
        };
        daemon.begin(place.former_policy, engine, answers)?;
        Ok(daemon)
    }

    /// Goes on where a former agent ended, finds the servers, and lets refusals begin.
    fn begin(
        &mut self,
        former_policy: Option<u32>,
        engine: Engine,
        answers: conditions::Engine,
    ) -> Result<()> {
        if let Some(version) = former_policy {
            self.adopt(version)?;
        }
        self.in_force(self.policy_version, self.started);
        self.answers = Some(start_answers(answers, self.refusal_thread.clone())?);
        self.refresh(true);
        if let Some(error) = self.scan_errors.first() {
            may_look(error, Effective::of_this_process()?)?;
        }
        self.tagger.forget_places();
        // Only once it is known whose the sessions are that a former gate has held.
        self.refusals = Some(start_refusals(engine, self.refusal_thread.clone())?);
        self.tick();
        if self.ends_with_agent.is_some() {
            self.gate.programs.end_with_agent()?;
        }
        self.announce();
        Ok(())
    }
}

impl Gate {
    fn new(programs: datapath::Gate, root: cgroup::Root, now: Timestamp) -> Self {
        Self {
            programs,
            root,
            seen_ms: now.as_millisecond(),
            errors: BTreeMap::new(),
        }
    }
}

/// A ring that the event loop waits for.
fn waited_for(ring: Ring, what: &str) -> Result<AsyncFd<Ring>> {
    ring.into_async()
        .with_context(|| format!("wait for the ring of {what}"))
}

/// Where the gate is to be.
struct Place {
    /// Beside what a former agent has pinned, or to be pinned itself.
    pins: Option<Pins>,
    /// Why it does not outlive this agent, if it does not.
    ends_with_agent: Option<String>,
    /// The version of the policy by which it has judged until now, if it is there.
    former_policy: Option<u32>,
}

impl Place {
    fn find(persist: bool) -> Result<Self> {
        let (pins, ends_with_agent) = if persist {
            match Pins::open() {
                Ok(pins) => (Some(pins), None),
                Err(error) => {
                    let error = error::text(&error);
                    tracing::error!(
                        "the gate ends with this agent, because it cannot be pinned: {error}"
                    );
                    (None, Some(error))
                }
            }
        } else {
            (Pins::find()?, Some("persist = false".to_owned()))
        };
        let former_policy = match &pins {
            Some(pins) if pins.found() => Some(pins.policy_version()?),
            _ => None,
        };
        Ok(Self {
            pins,
            ends_with_agent,
            former_policy,
        })
    }

    /// Gives each server its entry in the table of servers: the one that it has had, if records of a former gate hold it.
    /// Returns the names of the entries.
    fn number_servers(&self, config: &mut Config) -> Result<Vec<String>> {
        let mut names = if self.former_policy.is_some() {
            former::names()?
        } else {
            Vec::new()
        };
        config.keep_indices(&mut names);
        former::keep_names(&names)?;
        Ok(names)
    }
}

/// Loads the gate, gives it its policy, and attaches it.
fn attach(pins: Option<Pins>, policy: &Tables, root: BorrowedFd<'_>) -> Result<Datapath> {
    let mut loaded = Loaded::new(pins).with_context(|| Failed::new("load the gate", LACKS))?;
    let mut tables = loaded.policy()?;
    tables.install(policy)?;
    loaded
        .attach(tables, root)
        .with_context(|| Failed::new("attach the gate", LACKS))
}

/// Gives up what is not needed from here on.
fn confine(config: &Config) -> Result<Confinement> {
    let confinement = confine::confine()?;
    if confinement.not_filtered.is_none() {
        tracing::info!("confined: {confinement}");
    } else {
        tracing::warn!(
            help = "a kernel with CONFIG_SECCOMP_FILTER=y",
            "confined: {confinement}"
        );
    }
    if let Err(error) = AuditSink::examine_anew(&config.audit) {
        tracing::warn!(
            "once the audit file has been moved away (log rotation), no new one can be made: {error}"
        );
    }
    Ok(confinement)
}

/// Fails if the agent lacks the rights to look into processes. Anything else that is in the way may be any user's doing: the gate
/// judges without that process, and the status shows it.
fn may_look(error: &str, effective: Effective) -> Result<()> {
    if effective.lacking(&LOOKING).next().is_some() {
        return Err(NotPermitted(error.to_owned()).into());
    }
    Ok(())
}

fn start_refusals(
    engine: Engine,
    state: Arc<ThreadState>,
) -> Result<std::thread::JoinHandle<std::io::Result<()>>> {
    std::thread::Builder::new()
        .name("refusals".to_owned())
        .spawn(move || engine.run(&state))
        .context("start the refusal thread")
}

fn start_answers(
    engine: conditions::Engine,
    state: Arc<ThreadState>,
) -> Result<std::thread::JoinHandle<std::io::Result<()>>> {
    std::thread::Builder::new()
        .name("answers".to_owned())
        .spawn(move || engine.run(&state))
        .context("start the thread that looks at conditions of exceptions")
}

/// Where the agent is asked.
struct Sockets {
    control: Control,
    metrics: Option<tokio::net::TcpListener>,
}

impl Sockets {
    fn bind(config: &Config) -> Result<Self> {
        Ok(Self {
            metrics: config.metrics.map(bind_metrics).transpose()?,
            control: control::bind(&config.control)?,
        })
    }

    /// Serves both; what is asked at the control socket comes out of the channel.
    fn serve(self, metrics: &Arc<Metrics>) -> mpsc::Receiver<control::Pending> {
        let (command, commands) = mpsc::channel(16);
        tokio::spawn(control::serve(self.control, command));
        if let Some(listener) = self.metrics {
            tokio::spawn(serve_metrics(listener, metrics.clone()));
        }
        commands
    }
}

async fn serve_metrics(listener: tokio::net::TcpListener, metrics: Arc<Metrics>) {
    let address = listener.local_addr().map(|address| address.to_string());
    if let Err(error) = metrics::serve(listener, metrics).await {
        tracing::error!(
            %error,
            address = address.unwrap_or_default(),
            help = "restart musttls; all else goes on until then",
            "metrics are no longer served"
        );
    }
}

fn bind_metrics(address: std::net::SocketAddr) -> Result<tokio::net::TcpListener> {
    let listener = StdTcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .and_then(tokio::net::TcpListener::from_std)
        .with_context(|| {
            Failed::new(
                format!("bind the metrics address {address}"),
                "set [metrics] listen to an address of this host that is free",
            )
        })?;
    Ok(listener)
}

/// Names this run in audit records: host, boot and start.
fn identity(now: Timestamp) -> Identity {
    let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
    let hostname = read("/proc/sys/kernel/hostname").unwrap_or_else(|_| "localhost".to_owned());
    let boot = read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = boot.split('-').next().unwrap_or_default().to_owned();
    Identity {
        run: format!("{hostname}/{boot}-{:x}", now.as_millisecond()),
        hostname,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_rights_that_the_agent_lacks_end_its_start() {
        let look = |bits| {
            let effective = Effective::parse(&format!("CapEff:\t{bits:016x}\n")).unwrap();
            may_look("process 7 (mysqld) cannot be looked into", effective).is_ok()
        };
        let (ptrace, read, override_) = (1_u64 << 19, 1 << 2, 1 << 1);
        assert!(look(ptrace | read) && look(ptrace | override_));
        assert!(!look(ptrace) && !look(read) && !look(0));
    }
}
