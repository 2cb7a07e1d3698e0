//! The order of the start: what can fail without the gate comes first, and the gate is on before anybody is told.

use std::net::TcpListener as StdTcpListener;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::recorder::Recorder;
use super::reload::Compiled;
use super::{Daemon, Gate};
use crate::audit::AuditLog;
use crate::audit::record::Identity;
use crate::audit::sink::AuditSink;
use crate::bypass::Watch;
use crate::clock;
use crate::config::Config;
use crate::control;
use crate::datapath::{Loaded, UnixProbe, cgroup};
use crate::error::{Failed, NotPermitted};
use crate::metrics::{self, BuildInfo, Metrics};
use crate::policy;
use crate::refusal::Engine;
use crate::servers::unix::Poller;
use crate::servers::{Registry, Tagger};

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
    pub(super) fn start(path: &Path, config: Config) -> Result<Self> {
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
        let mut loaded = Loaded::new().with_context(|| Failed::new("load the gate", LACKS))?;
        let mut tables = loaded.policy()?;
        tables.install(&policy::compile(
            &config,
            policy_version,
            now,
            clock::boottime_ns(),
        ))?;
        let root = cgroup::open_root()?;
        let datapath = loaded
            .attach(tables, root.fd.as_fd())
            .with_context(|| Failed::new("attach the gate", LACKS))?;

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
            listens: datapath
                .listens
                .into_async()
                .context("wait for the ring of listeners")?,
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
            watch: Watch::default(),
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
            return Err(NotPermitted(error.clone()).into());
        }
        daemon.tick();
        daemon.announce();
        Ok(daemon)
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
