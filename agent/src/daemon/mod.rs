//! The daemon: starts everything, and then waits for what happens.
//!
//! | event | what is done |
//! |---|---|
//! | a report of the refusal thread | record, metric; a new listener is named |
//! | a record in the ring of sessions | record, metric |
//! | a tick | servers are looked for; exceptions that have ended leave the tables; counters are read |
//! | SIGHUP, `musttls reload` | the configuration is read again, and swapped or kept |
//! | SIGUSR1 | the audit file is opened again |
//! | SIGTERM, SIGINT | end |

pub mod lock;
mod recorder;

use std::net::TcpListener as StdTcpListener;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use crate::audit::AuditLog;
use crate::audit::record::Identity;
use crate::audit::sink::AuditSink;
use crate::cli::Exit;
use crate::clock;
use crate::config::{AuditTarget, Config, ConfigError, PastDates};
use crate::control::{self, Answer, Command, Pending};
use crate::datapath::{self, Counters, Loaded, PolicyTables, Ring, UnixProbe, cgroup};
use crate::metrics::{self, BuildInfo, Metrics};
use crate::policy;
use crate::refusal::{Engine, Report};
use crate::servers::unix::Poller;
use crate::servers::{self, Registry, ScanError, Tagger};
use crate::status::{self, Status};
use recorder::Recorder;

/// How often servers are looked for that did not announce themselves by listening.
const REFRESH: Duration = Duration::from_secs(1);
/// The look pauses this many times as long as it took: on a server with many descriptors it takes at most two
/// percent of a CPU.
const REFRESH_SHARE: u32 = 50;
/// How often counters are read and ended exceptions taken out.
const TICK: Duration = Duration::from_secs(1);
/// How often the ring of sessions is looked into: the gate wakes the agent only when much is in it.
const DRAIN: Duration = Duration::from_millis(100);
/// Reports of the refusal thread that may wait: 1.5 KiB each at the most.
const REPORTS: usize = 4096;
/// Sessions that are recorded before other events get their turn.
const BATCH: usize = 4096;

/// The build that runs.
const BUILD: BuildInfo<'static> = BuildInfo {
    version: env!("CARGO_PKG_VERSION"),
    commit: match option_env!("MUSTTLS_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
};

/// Runs the agent until a signal ends it.
pub fn run(path: &Path) -> Result<Exit> {
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
    let mut daemon = Daemon::start(path, loaded.config)?;
    runtime.block_on(daemon.work(signals))
}

/// The signals that the agent takes.
struct Signals {
    hangup: Signal,
    reopen: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let take = |kind| signal(kind).context("take signals");
        Ok(Self {
            hangup: take(SignalKind::hangup())?,
            reopen: take(SignalKind::user_defined1())?,
            terminate: take(SignalKind::terminate())?,
            interrupt: take(SignalKind::interrupt())?,
        })
    }
}

struct Daemon {
    path: PathBuf,
    config: Arc<Config>,
    policy_version: u32,
    /// Why the last reload was rejected.
    rejected: Option<String>,
    /// What the tables in force were compiled from: which exceptions held, and by which clock.
    compiled: Compiled,
    tables: PolicyTables,
    counters: Counters,
    sessions: AsyncFd<Ring>,
    reports: mpsc::Receiver<Report>,
    commands: mpsc::Receiver<Pending>,
    registry: Arc<Registry>,
    tagger: Tagger,
    scan_errors: Vec<String>,
    /// Whether the service manager has been told that everything found is covered.
    ready: bool,
    unix_probe: UnixProbe,
    poller: Poller,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    started: Timestamp,
    stop: Arc<AtomicBool>,
    refusals: Option<std::thread::JoinHandle<std::io::Result<()>>>,
    /// The root of cgroup v2, kept open as long as the gate is attached to it.
    _gate: Gate,
}

/// What must live as long as the gate.
struct Gate {
    _programs: datapath::Gate,
    _root: cgroup::Root,
}

struct Compiled {
    holding: Vec<bool>,
    /// Unix time at boot, in units of two seconds because the clocks are not read at the same instant: changes
    /// when the clock is set.
    boot: i64,
}

impl Compiled {
    fn of(config: &Config, now: Timestamp) -> Self {
        let boot = now.as_second() - i64::try_from(clock::boottime().as_secs()).unwrap_or(0);
        let holding = config
            .exceptions
            .iter()
            .map(|exception| exception.expires.holds(now))
            .collect();
        Self {
            holding,
            boot: boot / 2,
        }
    }

    fn differs(&self, other: &Self) -> bool {
        self.holding != other.holding || (self.boot - other.boot).abs() > 1
    }
}

impl Daemon {
    fn start(path: &Path, config: Config) -> Result<Self> {
        let now = clock::wall();
        // Everything that can fail without the gate comes first.
        let sink = AuditSink::open(&config.audit)?;
        let metrics = Arc::new(Metrics::new(BUILD));
        let metrics_listener = match config.metrics {
            Some(address) => Some(bind_metrics(address)?),
            None => None,
        };
        let control = control::bind(&config.control)?;

        let policy_version = 1;
        let mut loaded = Loaded::new()?;
        let mut tables = loaded.policy()?;
        tables.install(&policy::compile(
            &config,
            policy_version,
            now,
            clock::boottime_ns(),
        ))?;
        let root = cgroup::open_root()?;
        let datapath = loaded.attach(tables, root.fd.as_fd())?;

        let registry = Arc::new(Registry::default());
        let tagger = Tagger::new(
            datapath.listeners,
            matches!(datapath.unix_probe, UnixProbe::Kernel),
        );
        let (report, reports) = mpsc::channel(REPORTS);
        let lost = Arc::new(AtomicU64::new(0));
        let engine = Engine::new(
            datapath.denials,
            datapath.held,
            registry.clone(),
            report,
            lost.clone(),
        )
        .context("start the refusal thread")?;
        let stop = Arc::new(AtomicBool::new(false));
        let refusals = start_refusals(engine, stop.clone())?;

        let (command, commands) = mpsc::channel(16);
        tokio::spawn(control::serve(control, command));
        if let Some(listener) = metrics_listener {
            tokio::spawn(serve_metrics(listener, metrics.clone()));
        }
        let config = Arc::new(config);
        let identity = identity(now);
        let audit = AuditLog::new(identity, sink);
        let mut daemon = Self {
            path: path.to_owned(),
            compiled: Compiled::of(&config, now),
            policy_version,
            rejected: None,
            tables: datapath.policy,
            counters: datapath.counters,
            sessions: datapath
                .sessions
                .into_async()
                .context("wait for the ring of sessions")?,
            reports,
            commands,
            recorder: Recorder::new(
                path.display().to_string(),
                registry.clone(),
                audit,
                metrics.clone(),
                lost,
            ),
            registry,
            tagger,
            scan_errors: Vec::new(),
            ready: false,
            unix_probe: datapath.unix_probe,
            poller: Poller::default(),
            metrics,
            started: now,
            stop,
            refusals: Some(refusals),
            config,
            _gate: Gate {
                _programs: datapath.gate,
                _root: root,
            },
        };
        daemon
            .recorder
            .policy(policy_version, daemon.config.clone());
        daemon
            .metrics
            .set_policy(&daemon.config, policy_version, now);
        daemon.refresh();
        if let Some(error) = daemon.scan_errors.first() {
            let missing = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(anyhow::Error::from(missing).context(error.clone()));
        }
        daemon.tick();
        daemon.announce();
        daemon.ready_if_covered();
        Ok(daemon)
    }

    async fn work(&mut self, mut signals: Signals) -> Result<Exit> {
        let mut refresh = std::pin::pin!(tokio::time::sleep(REFRESH));
        let mut tick = tokio::time::interval(TICK);
        let mut drain = tokio::time::interval(DRAIN);
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                Some(report) = self.reports.recv() => self.report(report),
                ready = self.sessions.readable_mut() => {
                    ready.context("wait for the ring of sessions")?.clear_ready();
                    self.drain();
                }
                _ = drain.tick() => {
                    self.drain();
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
                () = &mut refresh => {
                    let began = Instant::now();
                    self.refresh();
                    self.poll_unix();
                    let pause = REFRESH.max(began.elapsed() * REFRESH_SHARE);
                    refresh.as_mut().reset(tokio::time::Instant::now() + pause);
                }
                _ = tick.tick() => self.tick(),
            }
            if self
                .refusals
                .as_ref()
                .is_some_and(std::thread::JoinHandle::is_finished)
            {
                self.end();
                anyhow::bail!("the refusal thread ended: denied clients would not be told");
            }
        }
        notify(&[sd_notify::NotifyState::Stopping]);
        self.end();
        tracing::info!("the gate is off");
        Ok(Exit::Ok)
    }

    /// Takes what is still in flight, and ends.
    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(refusals) = self.refusals.take() {
            match refusals.join() {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the refusal thread failed"),
                Err(_panic) => tracing::error!("the refusal thread panicked"),
            }
        }
        while let Ok(report) = self.reports.try_recv() {
            self.report(report);
        }
        while self.drain() {}
        self.tick();
        if let Err(error) = std::fs::remove_file(&self.config.control) {
            tracing::debug!(%error, "remove the control socket");
        }
    }

    /// Records sessions that the gate reports, a batch at a time. Returns whether there may be more.
    fn drain(&mut self) -> bool {
        for _ in 0..BATCH {
            match self.sessions.get_mut().next_record() {
                Some(Ok(record)) => self.recorder.session(&record),
                Some(Err(error)) => self.recorder.unreadable(&error),
                None => return false,
            }
        }
        true
    }

    fn report(&mut self, report: Report) {
        match report {
            Report::Refused(refused) => self.recorder.refused(&refused),
            Report::Unreadable(error) => self.recorder.unreadable(&error),
            Report::Listen(event) => {
                // One look for all that have begun to listen meanwhile.
                let mut cookies = vec![event.cookie];
                let mut others = Vec::new();
                while let Ok(next) = self.reports.try_recv() {
                    match next {
                        Report::Listen(event) => cookies.push(event.cookie),
                        other => others.push(other),
                    }
                }
                self.refresh();
                let known: Vec<u64> = self
                    .registry
                    .servers()
                    .iter()
                    .flat_map(|server| &server.listeners)
                    .filter_map(|listener| listener.cookie)
                    .collect();
                // Where a server cannot be looked into, a new listener may be its own: it stays pending, and is
                // judged if it greets as a server does.
                let all_known = self.scan_errors.is_empty();
                for cookie in cookies
                    .into_iter()
                    .filter(|cookie| all_known && !known.contains(cookie))
                {
                    if let Err(error) = self.tagger.is_no_server(cookie) {
                        tracing::warn!("a new listener stays pending: {error:#}");
                    }
                }
                for other in others {
                    self.report(other);
                }
            }
        }
    }

    /// Finds Unix sessions where the kernel does not report them.
    fn poll_unix(&mut self) {
        if matches!(self.unix_probe, UnixProbe::Polling(_)) {
            for session in self.poller.look(&self.registry.servers()) {
                self.recorder.unix(&session);
            }
        }
    }

    /// Looks for servers and tags their listeners.
    fn refresh(&mut self) {
        let (mut found, errors) = match servers::find() {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(%error, "the processes of this host cannot be listed");
                self.scan_errors = vec![error.to_string()];
                return;
            }
        };
        self.tagger.tag(&mut found, &self.config);
        let errors: Vec<String> = errors.iter().map(ScanError::to_string).collect();
        if errors != self.scan_errors {
            for error in &errors {
                tracing::error!("{error}");
            }
            self.scan_errors = errors;
        }
        if self.registry.replace(found) {
            for server in self.registry.servers() {
                for listener in &server.listeners {
                    tracing::info!(
                        pid = server.pid,
                        program = server.program,
                        address = %listener.address,
                        protocol = listener.other.unwrap_or("classic"),
                        covered = listener.is_classic() && listener.uncovered.is_none(),
                        "server"
                    );
                }
            }
        }
    }

    fn announce(&self) {
        let coverage = self.status().coverage;
        tracing::info!(
            policy = %self.path.display(),
            mode = self.config.mode.as_str(),
            listeners = coverage.listeners,
            covered = coverage.covered,
            unix = coverage.unix_sessions,
            "the gate is on"
        );
    }

    /// Tells the service manager once that every listener found is covered.
    fn ready_if_covered(&mut self) {
        let coverage = self.status().coverage;
        if !self.ready && coverage.covered == coverage.listeners && coverage.errors.is_empty() {
            self.ready = true;
            notify(&[sd_notify::NotifyState::Ready]);
        }
    }

    fn tick(&mut self) {
        self.ready_if_covered();
        let now = clock::wall();
        if Compiled::of(&self.config, now).differs(&self.compiled) {
            self.recompile(now);
        }
        let totals = self.counters.totals();
        self.metrics.set_kernel_counters(&self.config, &totals);
        let coverage = self.status().coverage;
        self.metrics
            .set_coverage(coverage.listeners, coverage.covered);
        self.recorder.settle(&totals);
    }

    /// Compiles the policy anew, for an exception that has ended or a clock that was set.
    fn recompile(&mut self, now: Timestamp) {
        if let Err(error) = self.take_over(self.config.clone(), now) {
            tracing::error!("the policy tables stay as they are: {error:#}");
        }
    }

    /// Puts a configuration's policy in force, or leaves everything as it is.
    fn take_over(&mut self, config: Arc<Config>, now: Timestamp) -> Result<()> {
        let version = self.policy_version + 1;
        self.tables.install(&policy::compile(
            &config,
            version,
            now,
            clock::boottime_ns(),
        ))?;
        self.policy_version = version;
        self.compiled = Compiled::of(&config, now);
        self.recorder.policy(version, config.clone());
        self.metrics.set_policy(&config, version, now);
        self.config = config;
        Ok(())
    }

    fn command(&mut self, command: Command) -> Answer {
        match command {
            Command::Status => Answer::Status(Box::new(self.status())),
            Command::Reload => self.reload(),
        }
    }

    /// Reads the configuration again, and swaps it in one step or keeps the old.
    fn reload(&mut self) -> Answer {
        let now = clock::wall();
        match self.try_reload(now) {
            Ok(warnings) => {
                self.rejected = None;
                tracing::info!(
                    version = self.policy_version,
                    mode = self.config.mode.as_str(),
                    "policy reloaded"
                );
                Answer::Reloaded {
                    policy_version: self.policy_version,
                    warnings,
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!("the old policy stays in force: {error}");
                self.metrics.reload_failed();
                self.rejected = Some(error.clone());
                Answer::Rejected { error }
            }
        }
    }

    fn try_reload(&mut self, now: Timestamp) -> Result<Vec<String>> {
        let loaded = Config::load(&self.path, now, PastDates::Refuse)?;
        let mut warnings = loaded.warnings;
        let mut config = loaded.config;
        for (same, key) in [
            (config.audit == self.config.audit, "[audit] path"),
            (config.metrics == self.config.metrics, "[metrics] listen"),
            (config.control == self.config.control, "[control] socket"),
        ] {
            if !same {
                warnings.push(format!("{key} changes with the next start only"));
            }
        }
        config.audit = self.config.audit.clone();
        config.metrics = self.config.metrics;
        config.control.clone_from(&self.config.control);
        self.take_over(Arc::new(config), now)?;
        // Servers may have settings of their own now.
        self.refresh();
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(warnings)
    }

    fn status(&self) -> Status {
        let servers: Vec<status::Server> = self
            .registry
            .servers()
            .iter()
            .map(|server| self.server_status(server))
            .collect();
        let classic = || {
            servers
                .iter()
                .flat_map(|server| &server.listeners)
                .filter(|listener| listener.protocol == "classic")
        };
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_ms: self.started.as_millisecond(),
            policy: status::Policy {
                name: self.path.display().to_string(),
                version: self.policy_version,
                mode: self.config.mode.as_str().to_owned(),
                exceptions: self.compiled.holding.iter().filter(|holds| **holds).count(),
                rejected: self.rejected.clone(),
            },
            coverage: status::Coverage {
                listeners: classic().count(),
                covered: classic().filter(|listener| listener.covered).count(),
                unix_sessions: match &self.unix_probe {
                    UnixProbe::Kernel => "kernel".to_owned(),
                    UnixProbe::Polling(why) => format!("polling ({why})"),
                },
                errors: self.scan_errors.clone(),
            },
            servers,
            ..self.recorder.status(&self.config, &self.counters.totals())
        }
    }

    fn server_status(&self, server: &servers::Server) -> status::Server {
        let listener = |listener: &servers::Listener| {
            let index = self.config.server_index(listener.address.port());
            status::Listener {
                address: listener.address.to_string(),
                protocol: listener.other.unwrap_or("classic").to_owned(),
                settings: self.config.server_name(index).to_owned(),
                mode: self.config.mode_of(index).as_str().to_owned(),
                covered: listener.is_classic() && listener.uncovered.is_none(),
                reason: match listener.other {
                    Some(_) => Some("not judged: another protocol".to_owned()),
                    None => listener.uncovered.clone(),
                },
            }
        };
        status::Server {
            pid: server.pid,
            program: server.program.clone(),
            cgroup: server.cgroup.clone(),
            container: server.container.clone(),
            listeners: server.listeners.iter().map(listener).collect(),
            unix: server
                .unix
                .iter()
                .map(|listener| listener.path.display().to_string())
                .collect(),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn start_refusals(
    engine: Engine,
    stop: Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<std::io::Result<()>>> {
    std::thread::Builder::new()
        .name("refusals".to_owned())
        .spawn(move || engine.run(&stop))
        .context("start the refusal thread")
}

async fn serve_metrics(listener: tokio::net::TcpListener, metrics: Arc<Metrics>) {
    if let Err(error) = metrics::serve(listener, metrics).await {
        tracing::error!(%error, "metrics are no longer served");
    }
}

fn bind_metrics(address: std::net::SocketAddr) -> Result<tokio::net::TcpListener> {
    let listener = StdTcpListener::bind(address)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .and_then(tokio::net::TcpListener::from_std)
        .with_context(|| {
            format!("bind the metrics address {address}\n  help: set [metrics] listen to an address that is free")
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

/// Tells the service manager, if there is one.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// The words for the target of audit records.
fn target(target: &AuditTarget) -> String {
    match target {
        AuditTarget::Stdout => "standard output".to_owned(),
        AuditTarget::File(path) => path.display().to_string(),
    }
}

/// The exit code for an error of [`run`].
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> Exit {
    if error.is::<ConfigError>() {
        return Exit::Config;
    }
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    if error.chain().any(refused) {
        Exit::NotPermitted
    } else {
        Exit::Finding
    }
}
