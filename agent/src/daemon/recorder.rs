//! Turns what happened into audit records, metrics and counts.

pub(super) mod losses;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use musttls_common::event::{Event, Kind};
use musttls_common::mysql::SSL_REQUEST_LEN;
use musttls_common::policy::{LOOPBACK_RULE, NO_RULE};
use musttls_common::proxy::Source;
use musttls_common::verdict::{Mode, Reason};

use crate::address::from_octets;
use crate::audit::AuditLog;
use crate::audit::record::{
    Endpoints, OlderThan, Outcome, Proxied, Refusal, RestsOn, Session, Transport, UnixPeer,
};
use crate::clock;
use crate::config::{Config, LOOPBACK};
use crate::datapath::{Extra, Record};
use crate::login::{LoginDetails, printable};
use crate::metrics::Metrics;
use crate::refusal::Refused;
use crate::servers::unix::{UnixSession, program};
use crate::servers::{Registry, Server};

/// How many former policies are kept to name the rules of sessions that they judged.
const FORMER_POLICIES: usize = 16;

pub(super) struct Recorder {
    policy_name: String,
    /// The policies that may have judged what is recorded, the newest last.
    policies: VecDeque<(u32, Arc<Config>)>,
    registry: Arc<Registry>,
    audit: AuditLog,
    metrics: Arc<Metrics>,
    /// Reports that the refusal thread could not hand over.
    lost_reports: Arc<AtomicU64>,
    refusals: BTreeMap<&'static str, u64>,
    /// Sessions whose client sent a login in the clear before the TLS.
    exposed: u64,
    unreadable: u64,
    /// Sessions that the gate has counted, and whose events have not come.
    unaccounted: u64,
    /// How many losses have been told, by reason.
    told: BTreeMap<&'static str, u64>,
}

impl Recorder {
    pub(super) const fn new(
        policy_name: String,
        registry: Arc<Registry>,
        audit: AuditLog,
        metrics: Arc<Metrics>,
        lost_reports: Arc<AtomicU64>,
    ) -> Self {
        Self {
            policy_name,
            policies: VecDeque::new(),
            registry,
            audit,
            metrics,
            lost_reports,
            refusals: BTreeMap::new(),
            exposed: 0,
            unreadable: 0,
            unaccounted: 0,
            told: BTreeMap::new(),
        }
    }

    /// A policy comes into force.
    pub(super) fn policy(&mut self, version: u32, config: Arc<Config>) {
        self.policies.push_back((version, config));
        if self.policies.len() > FORMER_POLICIES {
            self.policies.pop_front();
        }
    }

    fn config(&self, version: u32) -> Option<Arc<Config>> {
        // A session that is secure was not judged by a policy.
        let judged = self.policies.iter().find(|(known, _)| *known == version);
        judged
            .or(self.policies.back())
            .map(|(_, config)| config.clone())
    }

    /// Records a session that the gate reports.
    pub(super) fn session(&mut self, record: &Record) {
        if let Extra::Unix(peer) = &record.extra {
            let Some((server, path)) = self.registry.unix_owner(record.event.cookie) else {
                return;
            };
            let comm = peer
                .comm
                .split(|&byte| byte == 0)
                .next()
                .unwrap_or_default();
            let pid = i32::try_from(peer.pid).unwrap_or(0);
            let session = UnixSession {
                server_pid: server.pid,
                path: Some(path),
                pid,
                uid: peer.uid,
                program: program(pid).or_else(|| Some(printable(comm).0)),
            };
            return self.unix_of(
                &server,
                &session,
                clock::wall_ms_of_ktime(record.event.ktime_ns),
            );
        }
        let outcome = match Kind::from_u8(record.event.kind) {
            Some(Kind::Secure) => Outcome::Allowed,
            Some(Kind::Excepted) => Outcome::Excepted,
            Some(Kind::Observed) => Outcome::Observed,
            Some(Kind::TlsFailed) => Outcome::TlsFailed,
            Some(
                Kind::Denied
                | Kind::Listen
                | Kind::Unix
                | Kind::Released
                | Kind::Older
                | Kind::Asked,
            )
            | None => return,
        };
        self.tcp(record, outcome, None, None, None);
    }

    /// Records a refusal.
    pub(super) fn refused(&mut self, refused: &Refused) {
        let micros =
            |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let refusal = Refusal {
            outcome: refused.outcome.as_str(),
            err_after_us: refused.told_after.map(micros),
            released_after_us: refused.released_after.map(micros),
        };
        self.metrics
            .refusal(refused.outcome.as_str(), refused.told_after);
        *self.refusals.entry(refused.outcome.as_str()).or_default() += 1;
        self.tcp(
            &refused.record,
            Outcome::Denied,
            Some(refusal),
            refused.pid,
            None,
        );
    }

    /// Records a session that is older than the gate or its enforcement.
    pub(super) fn older(
        &mut self,
        record: &Record,
        than: OlderThan,
        outcome: Outcome,
        refusal: Option<Refusal<'static>>,
        pid: Option<i32>,
    ) {
        if let Some(refusal) = &refusal {
            self.metrics.refusal(refusal.outcome, None);
            *self.refusals.entry(refusal.outcome).or_default() += 1;
        }
        self.tcp(record, outcome, refusal, pid, Some(than));
    }

    fn tcp(
        &mut self,
        record: &Record,
        outcome: Outcome,
        refusal: Option<Refusal<'_>>,
        pid: Option<i32>,
        older_than: Option<OlderThan>,
    ) {
        let event = &record.event;
        let Some(config) = self.config(event.policy_version) else {
            return;
        };
        let (user, details) = match &record.extra {
            Extra::Login { caps, user, tail } => (
                Some(printable(user).0),
                Some(LoginDetails::parse(*caps, tail)),
            ),
            Extra::None | Extra::Unix(_) => (None, None),
        };
        let server = self.registry.owner(event.listener_cookie);
        let rule = config
            .exceptions
            .get(usize::from(event.rule))
            .filter(|_| event.rule != NO_RULE);
        let endpoints = endpoints(event);
        let reason = Reason::from_u8(event.reason);
        let is_tls = match outcome {
            Outcome::Allowed | Outcome::TlsFailed => true,
            Outcome::Excepted | Outcome::Observed | Outcome::Denied => {
                reason.is_some_and(Reason::is_of_tls)
            }
            Outcome::Kept => false,
        };
        let transport = if is_tls {
            Transport::Tls {
                endpoints,
                version: event.tls_version,
                cipher: event.tls_cipher,
                offered: event.offered_version,
                floor: event.floor,
            }
        } else {
            Transport::Plaintext { endpoints }
        };
        let version = match event.policy_version {
            0 => self.policies.back().map_or(0, |(version, _)| *version),
            judged => judged,
        };
        let session = Session {
            time_ms: clock::wall_ms_of_ktime(event.ktime_ns),
            transport,
            outcome,
            reason,
            mode: Mode::from_u8(event.mode),
            server: config.server_name(event.endpoints.server),
            server_program: server.as_ref().map(|server| server.program.as_str()),
            server_pid: pid
                .or(server.as_ref().map(|server| server.pid))
                .and_then(|pid| u32::try_from(pid).ok()),
            cgroup: server.as_ref().map(|server| server.cgroup.as_str()),
            container: server
                .as_ref()
                .and_then(|server| server.container.as_deref()),
            policy_name: &self.policy_name,
            policy_version: version,
            rule: if event.rule == LOOPBACK_RULE {
                Some(LOOPBACK)
            } else {
                rule.map(|rule| rule.name.as_str())
            },
            rests_on: rule.map_or(RestsOn::default(), |rule| RestsOn::of(&rule.conditions)),
            user: user.as_deref(),
            details: details.as_ref(),
            exposed: matches!(transport, Transport::Tls { .. })
                .then(|| exposed(event.login_header))
                .flatten(),
            refusal,
            older_than,
        };
        self.exposed += u64::from(session.exposed.is_some());
        Self::write(&mut self.audit, &self.metrics, &session);
    }

    /// Records a session over a Unix socket that was found by polling.
    pub(super) fn unix(&mut self, session: &UnixSession) {
        let servers = self.registry.servers();
        let Some(server) = servers
            .iter()
            .find(|server| server.pid == session.server_pid)
        else {
            return;
        };
        self.unix_of(server, session, clock::wall_ms());
    }

    fn unix_of(&mut self, server: &Server, session: &UnixSession, time_ms: i64) {
        let Some((version, config)) = self.policies.back().cloned() else {
            return;
        };
        let index = server
            .listeners
            .first()
            .map_or(0, |tcp| config.server_index(tcp.address.port()));
        let path = session.path.as_ref().map(|path| path.display().to_string());
        let record = Session {
            time_ms,
            transport: Transport::Unix {
                path: path.as_deref(),
                peer: Some(UnixPeer {
                    pid: u32::try_from(session.pid).unwrap_or(0),
                    uid: session.uid,
                    program: session.program.as_deref(),
                }),
            },
            outcome: Outcome::Allowed,
            reason: None,
            mode: config.mode_of(index),
            server: config.server_name(index),
            server_program: Some(&server.program),
            server_pid: u32::try_from(server.pid).ok(),
            cgroup: Some(&server.cgroup),
            container: server.container.as_deref(),
            policy_name: &self.policy_name,
            policy_version: version,
            rule: None,
            rests_on: RestsOn::default(),
            user: None,
            details: None,
            exposed: None,
            refusal: None,
            older_than: None,
        };
        Self::write(&mut self.audit, &self.metrics, &record);
    }

    fn write(audit: &mut AuditLog, metrics: &Metrics, session: &Session<'_>) {
        metrics.session(session);
        losses::trace_lost(audit.session(session, Instant::now()));
    }

    /// Opens the audit file again.
    pub(super) fn reopen(&mut self) {
        match self.audit.reopen() {
            Ok(()) => tracing::info!("the audit file is opened again"),
            Err(error) => tracing::error!("records go on into the old audit file: {error}"),
        }
    }

    /// Refusals by how they ended.
    pub(super) const fn refusals(&self) -> &BTreeMap<&'static str, u64> {
        &self.refusals
    }

    /// How many clients sent a login in the clear before the TLS.
    pub(super) const fn exposed(&self) -> u64 {
        self.exposed
    }

    /// The audit log.
    pub(super) const fn audit(&self) -> &AuditLog {
        &self.audit
    }
}

/// The length of the packet by which a client asked for TLS, if it was longer than an `SSLRequest`. The server reads
/// the flags in it and ignores the rest.
fn exposed([low, middle, high, _]: [u8; 4]) -> Option<u32> {
    let len = u32::from_le_bytes([low, middle, high, 0]);
    (len > SSL_REQUEST_LEN).then_some(len)
}

fn endpoints(event: &Event) -> Endpoints {
    let address =
        |octets: [u8; 16], port: u16| -> SocketAddr { SocketAddr::new(from_octets(octets), port) };
    let (ends, proxied) = (&event.endpoints, &event.proxied);
    Endpoints {
        client: address(ends.client_addr, ends.client_port),
        server: address(ends.server_addr, ends.server_port),
        proxied: (proxied.source != Source::Direct as u8).then(|| Proxied {
            client: proxied
                .has_address()
                .then(|| address(proxied.addr, proxied.port)),
            trusted: proxied.trusted != 0,
        }),
    }
}
