//! What OCSF makes of a record: 1.8.0, classes Authentication (3002), Application Lifecycle (6002) and Application Error
//! (6008), profiles `security_control` and `host`.
//!
//! Source: <https://github.com/ocsf/ocsf-schema> at tag 1.8.0, `events/iam/authentication.json`,
//! `objects/user.json`, `profiles/security_control.json`. The page for readers of the log is
//! `docs/audit-records.md`; `SCHEMA` grows when a field is renamed or removed.

use std::collections::BTreeMap;

use musttls_common::floor::{ALERT_HANDSHAKE_FAILURE, ALERT_PROTOCOL_VERSION};
use musttls_common::mysql::ER_SECURE_TRANSPORT_REQUIRED;
use musttls_common::verdict::{Mode, Reason};
use serde::Serialize;

use super::record::{
    Endpoints, Gap, GateFault, Identity, Loss, ModeCause, ModeChange, OlderThan, Outcome, Session,
    Transport,
};
use super::shape::{
    Actor, ActorUser, ApplicationRecord, Device, Endpoint, FaultUnmapped, GapUnmapped,
    LossUnmapped, Metadata, ModeUnmapped, Named, Policy, Process, Product, Proxied as ProxiedShape,
    SessionRecord, Tls, Unmapped, User,
};
use crate::cipher;
use crate::config::{Floor, LOOPBACK, REQUIRE_TLS};
use crate::login::LoginDetails;

/// Version of what stands under `unmapped`.
const SCHEMA: u32 = 1;

/// The line of a session, without its newline.
pub(super) fn session(identity: &Identity, session: &Session<'_>, sequence: u64) -> String {
    line(&session_record(identity, session, sequence))
}

/// The line about lost records, without its newline.
pub(super) fn loss(identity: &Identity, loss: &Loss<'_>, sequence: u64) -> String {
    line(&ApplicationRecord {
        class_uid: 6008,
        class_name: "Application Error",
        category_uid: 6,
        category_name: "Application Activity",
        activity_id: 1,
        activity_name: "General Error",
        type_uid: 600_801,
        time: loss.time_ms,
        start_time: None,
        severity_id: 4,
        severity: "High",
        message: format!("{} audit records were lost: {}", loss.lost, loss.reason),
        app: None,
        policy: None,
        device: Device::of(identity),
        metadata: Metadata::of(identity, sequence, &["host"]),
        unmapped: LossUnmapped {
            schema_version: SCHEMA,
            lost: loss.lost,
            reason: loss.reason,
        },
    })
}

/// The line about a time without an agent, without its newline.
pub(super) fn gap(identity: &Identity, gap: &Gap<'_>, sequence: u64) -> String {
    let seconds = gap.until_ms.saturating_sub(gap.since_ms).max(0) / 1000;
    let happened = Lifecycle {
        activity: (3, "Start"),
        severity: (2, "Low"),
        since_ms: gap.since_ms,
        time_ms: gap.until_ms,
        message: format!("for {seconds} s no agent ran; the gate went on judging"),
        policy: Policy {
            name: gap.policy_name,
            version: gap.policy_version.to_string(),
            is_applied: true,
        },
    };
    let sessions = GapUnmapped {
        schema_version: SCHEMA,
        sessions: &gap.sessions,
    };
    lifecycle(identity, happened, sessions, sequence)
}

/// The line about a change of the gate by somebody else, without its newline.
pub(super) fn gate_fault(identity: &Identity, fault: &GateFault<'_>, sequence: u64) -> String {
    let GateFault { program, .. } = fault;
    let after = if fault.mended {
        "it is as it was again"
    } else {
        "it is still so"
    };
    let happened = Lifecycle {
        activity: (7, "Disable"),
        severity: (4, "High"),
        since_ms: fault.since_ms,
        time_ms: fault.time_ms,
        message: format!("{program} was found {}; {after}", fault.fault),
        policy: Policy {
            name: fault.policy_name,
            version: fault.policy_version.to_string(),
            is_applied: fault.mended,
        },
    };
    let found = FaultUnmapped {
        schema_version: SCHEMA,
        fault: fault.fault,
        program,
        mended: fault.mended,
    };
    lifecycle(identity, happened, found, sequence)
}

/// The line about another mode, without its newline.
pub(super) fn mode_change(identity: &Identity, change: &ModeChange<'_>, sequence: u64) -> String {
    let (activity, severity) = match (change.to, change.cause) {
        (Mode::Enforce, _) => ((6, "Enable"), (1, "Informational")),
        (Mode::Observe, ModeCause::Panic) => ((7, "Disable"), (4, "High")),
        (Mode::Observe, ModeCause::Reload | ModeCause::Until) => ((7, "Disable"), (3, "Medium")),
    };
    let (from, to) = (change.from.as_str(), change.to.as_str());
    let cause = change.cause.as_str();
    let happened = Lifecycle {
        activity,
        severity,
        since_ms: change.time_ms,
        time_ms: change.time_ms,
        message: format!(
            "server {}: from {from} to {to} mode ({cause})",
            change.server
        ),
        policy: Policy {
            name: change.policy_name,
            version: change.policy_version.to_string(),
            is_applied: true,
        },
    };
    let unmapped = ModeUnmapped {
        schema_version: SCHEMA,
        server: change.server,
        from,
        mode: to,
        cause,
    };
    lifecycle(identity, happened, unmapped, sequence)
}

/// What records of the class Application Lifecycle differ in.
struct Lifecycle<'s> {
    activity: (u32, &'s str),
    severity: (u32, &'s str),
    since_ms: i64,
    time_ms: i64,
    message: String,
    policy: Policy<'s>,
}

fn lifecycle(
    identity: &Identity,
    happened: Lifecycle<'_>,
    unmapped: impl Serialize,
    sequence: u64,
) -> String {
    let (activity_id, activity_name) = happened.activity;
    let (severity_id, severity) = happened.severity;
    line(&ApplicationRecord {
        class_uid: 6002,
        class_name: "Application Lifecycle",
        category_uid: 6,
        category_name: "Application Activity",
        activity_id,
        activity_name,
        type_uid: 600_200 + activity_id,
        time: happened.time_ms,
        start_time: Some(happened.since_ms),
        severity_id,
        severity,
        message: happened.message,
        app: Some(Product::this()),
        policy: Some(happened.policy),
        device: Device::of(identity),
        metadata: Metadata::of(identity, sequence, &["host", "security_control"]),
        unmapped,
    })
}

fn line(record: &impl Serialize) -> String {
    // Strings, numbers, booleans and maps with string keys: serde_json fails on none of them. If it
    // did, an empty line would be an honest gap in the sequence numbers.
    serde_json::to_string(record).unwrap_or_default()
}

/// What OCSF says about an outcome.
struct Classified {
    verdict: &'static str,
    severity: (u32, &'static str),
    status: (u32, &'static str),
    action: (u32, &'static str),
    disposition: (u32, &'static str),
}

impl Outcome {
    /// The numbers of OCSF. Whether the server takes the credentials of a session that passed is not
    /// known here: its status is Unknown.
    const fn classify(self) -> Classified {
        let (severity, status, action, disposition) = match self {
            Self::Allowed | Self::Excepted => (
                (1, "Informational"),
                (0, "Unknown"),
                (1, "Allowed"),
                (1, "Allowed"),
            ),
            Self::Observed => (
                (2, "Low"),
                (0, "Unknown"),
                (3, "Observed"),
                (15, "Detected"),
            ),
            Self::Kept => ((2, "Low"), (0, "Unknown"), (1, "Allowed"), (1, "Allowed")),
            Self::Denied => ((3, "Medium"), (2, "Failure"), (2, "Denied"), (21, "Reset")),
            Self::TlsFailed => (
                (1, "Informational"),
                (2, "Failure"),
                (1, "Allowed"),
                (1, "Allowed"),
            ),
        };
        Classified {
            verdict: self.verdict(),
            severity,
            status,
            action,
            disposition,
        }
    }
}

impl Transport<'_> {
    fn tls(&self) -> Option<Tls> {
        match *self {
            Self::Tls {
                version,
                cipher,
                offered,
                ..
            } => Some(Tls {
                version: cipher::version_name(version).into_owned(),
                cipher: cipher::name(cipher).into_owned(),
                offered: (offered != 0).then(|| cipher::version_name(offered).into_owned()),
            }),
            Self::Plaintext { .. } | Self::Unix { .. } => None,
        }
    }
}

fn session_record<'s>(
    identity: &'s Identity,
    session: &'s Session<'s>,
    sequence: u64,
) -> SessionRecord<'s> {
    let Classified {
        verdict,
        severity,
        status,
        action,
        disposition,
    } = session.outcome.classify();
    let severity = if session.exposed.is_some() {
        // As for a login that observe mode let through: it was on the wire, too.
        severity.max((2, "Low"))
    } else {
        severity
    };
    let endpoints = session.transport.endpoints();
    let (logon_type_id, logon_type) = match session.transport {
        Transport::Unix { .. } => (99, "Unix socket"),
        Transport::Tls { .. } | Transport::Plaintext { .. } => (3, "Network"),
    };
    let details = session.details;
    let plugin = details.and_then(|details| details.plugin.as_deref());
    SessionRecord {
        class_uid: 3002,
        class_name: "Authentication",
        category_uid: 3,
        category_name: "Identity & Access Management",
        activity_id: 1,
        activity_name: "Logon",
        type_uid: 300_201,
        time: session.time_ms,
        severity_id: severity.0,
        severity: severity.1,
        status_id: status.0,
        status: status.1,
        // What the client was told, if it was.
        status_code: session
            .refusal
            .and_then(|refusal| refusal.err_after_us)
            .map(|_| status_code(session.reason)),
        status_detail: status_detail(session),
        action_id: action.0,
        action: action.1,
        disposition_id: disposition.0,
        disposition: disposition.1,
        is_alert: matches!(
            session.outcome,
            Outcome::Denied | Outcome::Observed | Outcome::Kept
        ) || session.exposed.is_some(),
        is_cleartext: matches!(session.transport, Transport::Plaintext { .. }),
        is_remote: endpoints.is_some_and(is_remote),
        logon_type_id,
        logon_type,
        auth_protocol_id: if plugin.is_some() { 99 } else { 0 },
        auth_protocol: plugin.map(|plugin| format!("mysql:{plugin}")),
        user: user(session),
        actor: actor(session),
        src_endpoint: endpoints.map(|endpoints| Endpoint::of(endpoints.client)),
        dst_endpoint: endpoints.map(|endpoints| Endpoint::of(endpoints.server)),
        service: Named {
            name: session.server_program.unwrap_or("mysql"),
        },
        policy: Policy {
            name: session.policy_name,
            version: session.policy_version.to_string(),
            is_applied: session.mode == Mode::Enforce,
        },
        firewall_rule: Named {
            name: session.rule.unwrap_or(REQUIRE_TLS),
        },
        device: Device::of(identity),
        metadata: Metadata::of(identity, sequence, &["security_control", "host"]),
        unmapped: Unmapped {
            schema_version: SCHEMA,
            transport: session.transport.as_str(),
            verdict,
            reason: session.reason.map(Reason::as_str),
            mode: session.mode.as_str(),
            server: session.server,
            tls: session.transport.tls(),
            floor: floor_of(session, session.outcome != Outcome::Allowed),
            would_refuse: floor_of(session, session.outcome == Outcome::Allowed),
            schema: details.and_then(|details| details.schema.as_deref()),
            client_program: client_program(session),
            connection_attributes: attributes(details),
            credential_exposed: session.exposed.is_some(),
            exposed_packet_len: session.exposed,
            login_truncated: details.is_some_and(|details| details.truncated),
            server_pid: session.server_pid,
            cgroup: session.cgroup,
            container: session.container,
            socket: match session.transport {
                Transport::Unix { path, .. } => path,
                Transport::Tls { .. } | Transport::Plaintext { .. } => None,
            },
            refusal: session.refusal,
            older_than: session.older_than,
            rule_rests_on: session.rests_on.is_something().then_some(session.rests_on),
            proxied: endpoints
                .and_then(|endpoints| endpoints.proxied)
                .map(ProxiedShape::of),
        },
    }
}

/// What the client was told: the number of the error or of the alert.
fn status_code(reason: Option<Reason>) -> String {
    match reason {
        Some(Reason::TlsBelowFloor) => format!("alert {ALERT_PROTOCOL_VERSION}"),
        Some(Reason::TlsCipherRefused) => format!("alert {ALERT_HANDSHAKE_FAILURE}"),
        _ => ER_SECURE_TRANSPORT_REQUIRED.to_string(),
    }
}

fn status_detail(session: &Session<'_>) -> Option<&'static str> {
    let is_of_tls = session.reason.is_some_and(Reason::is_of_tls);
    match (session.outcome, is_of_tls) {
        (Outcome::Allowed, _) if session.exposed.is_some() => {
            Some("the client sent more than a request for TLS before the TLS")
        }
        (Outcome::Allowed, _) => None,
        (Outcome::Excepted, false) if session.rests_on.claimed_program => Some(
            "insecure transport, allowed by an exception for the program that the client claims to be",
        ),
        (Outcome::Excepted, false) if session.rule == Some(LOOPBACK) => {
            Some("insecure transport, allowed over the loopback device")
        }
        (Outcome::Excepted, false) => Some("insecure transport, allowed by an exception"),
        (Outcome::Excepted, true) => Some("weak TLS, allowed by an exception"),
        (Outcome::Observed, false) => Some("insecure transport, would be refused in enforce mode"),
        (Outcome::Observed, true) => Some("weak TLS, would be refused in enforce mode"),
        (Outcome::Denied, false) => Some("insecure transport"),
        (Outcome::Denied, true) => Some("weak TLS"),
        (Outcome::TlsFailed, _) => Some("the TLS handshake failed"),
        (Outcome::Kept, _) => Some(match session.older_than {
            Some(OlderThan::Enforcement) => "insecure transport, let through in observe mode",
            Some(OlderThan::Gate) | None => "insecure transport, older than the gate",
        }),
    }
}

/// The floor of a session, if `is_wanted`.
fn floor_of(session: &Session<'_>, is_wanted: bool) -> Option<&'static str> {
    match session.transport {
        Transport::Tls { floor, .. } if is_wanted => Floor::of_version(floor).map(Floor::as_str),
        Transport::Tls { .. } | Transport::Plaintext { .. } | Transport::Unix { .. } => None,
    }
}

fn is_remote(endpoints: Endpoints) -> bool {
    let client = endpoints.client.ip().to_canonical();
    !client.is_loopback() && client != endpoints.server.ip().to_canonical()
}

const fn user<'s>(session: &Session<'s>) -> User<'s> {
    let uid = match (session.user, session.transport) {
        (Some(_), _) => None,
        (None, Transport::Tls { .. }) => Some("encrypted"),
        (None, Transport::Plaintext { .. } | Transport::Unix { .. }) => Some("not-read"),
    };
    User {
        name: session.user,
        uid,
        type_id: 0,
    }
}

fn actor<'s>(session: &Session<'s>) -> Option<Actor<'s>> {
    match session.transport {
        Transport::Unix {
            peer: Some(peer), ..
        } => Some(Actor {
            process: Process {
                pid: peer.pid,
                name: peer.program,
            },
            user: ActorUser {
                uid: peer.uid.to_string(),
            },
        }),
        Transport::Unix { peer: None, .. }
        | Transport::Tls { .. }
        | Transport::Plaintext { .. } => None,
    }
}

fn client_program<'s>(session: &Session<'s>) -> Option<&'s str> {
    match session.transport {
        Transport::Unix { peer, .. } => peer.and_then(|peer| peer.program),
        Transport::Tls { .. } | Transport::Plaintext { .. } => {
            session.details.and_then(LoginDetails::program)
        }
    }
}

/// The attributes; of two with one name, the first.
fn attributes(details: Option<&LoginDetails>) -> BTreeMap<&str, &str> {
    details
        .iter()
        .flat_map(|details| details.attributes.iter().rev())
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}
