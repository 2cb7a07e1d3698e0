//! What is told in a record: what the daemon knows of a session, and what else happened. `ocsf` makes a line of it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use musttls_common::verdict::{Mode, Reason};
use serde::Serialize;

use crate::config::Conditions;
use crate::login::LoginDetails;

/// Who writes the log.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Name of this host.
    pub hostname: String,
    /// Names this run of the agent: the boot id and the time of its start, for example. With the
    /// sequence number it is unique among all records.
    pub run: String,
}

/// A session, as the daemon knows it.
#[derive(Clone, Debug)]
pub struct Session<'s> {
    /// When the gate decided, in milliseconds of Unix time.
    pub time_ms: i64,
    /// How it reached the server.
    pub transport: Transport<'s>,
    /// What was done.
    pub outcome: Outcome,
    /// Why it is denied, or would be.
    pub reason: Option<Reason>,
    /// The mode of its server.
    pub mode: Mode,
    /// Name of the server's settings ([`crate::config::Config::server_name`]).
    pub server: &'s str,
    /// Program of the server, for example `mariadbd`.
    pub server_program: Option<&'s str>,
    /// Process id of the server.
    pub server_pid: Option<u32>,
    /// cgroup of the server.
    pub cgroup: Option<&'s str>,
    /// Container of the server.
    pub container: Option<&'s str>,
    /// Name of the policy: the path of its file.
    pub policy_name: &'s str,
    /// Version of the policy that judged.
    pub policy_version: u32,
    /// The exception that allowed; `None` stands for the rule that requires TLS.
    pub rule: Option<&'s str>,
    /// What that exception asked of the client.
    pub rests_on: RestsOn,
    /// The user, where the gate could read it; already safe to print ([`crate::login::printable`]).
    pub user: Option<&'s str>,
    /// What else the login said, where there was one to read.
    pub details: Option<&'s LoginDetails>,
    /// How long the packet was by which the client asked for TLS, in bytes, if it was longer than an `SSLRequest`: a
    /// login, sent in the clear before the TLS.
    pub exposed: Option<u32>,
    /// How the refusal went, where there was one.
    pub refusal: Option<Refusal<'s>>,
    /// What it is older than: then what it speaks was concluded from what its client sent.
    pub older_than: Option<OlderThan>,
}

/// What an exception has asked of the client beside its address and its user.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RestsOn {
    /// The program: what the client claims, which nobody can check.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub claimed_program: bool,
    /// The user on this host.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub uid: bool,
    /// The cgroup on this host.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub cgroup: bool,
}

impl RestsOn {
    /// What these conditions ask.
    #[must_use]
    pub const fn of(conditions: &Conditions) -> Self {
        Self {
            claimed_program: !conditions.programs.is_empty(),
            uid: conditions.uids.is_some(),
            cgroup: !conditions.cgroups.is_empty(),
        }
    }

    pub(super) fn is_something(self) -> bool {
        self != Self::default()
    }
}

/// How a session reaches the server.
#[derive(Clone, Copy, Debug)]
pub enum Transport<'s> {
    /// TCP and TLS: the server's own bytes were a TLS flight, or the client claimed it and the
    /// handshake failed, or was ended.
    Tls {
        /// Client and server.
        endpoints: Endpoints,
        /// Negotiated `ProtocolVersion`, 0 if unknown.
        version: u16,
        /// IANA number of the cipher suite, 0 if unknown.
        cipher: u16,
        /// The best `ProtocolVersion` that the client offered, 0 if that was not read.
        offered: u16,
        /// The floor that refuses or would refuse the session, as `ProtocolVersion`; 0 if none.
        floor: u16,
    },
    /// TCP without TLS.
    Plaintext {
        /// Client and server.
        endpoints: Endpoints,
    },
    /// A Unix socket: secure transport.
    Unix {
        /// Path of the socket.
        path: Option<&'s str>,
        /// Who connected.
        peer: Option<UnixPeer<'s>>,
    },
}

impl Transport<'_> {
    /// The word used in records and in the label `transport` of metrics.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Tls { .. } => "tls",
            Self::Plaintext { .. } => "plaintext",
            Self::Unix { .. } => "unix",
        }
    }

    pub(super) const fn endpoints(&self) -> Option<Endpoints> {
        match self {
            Self::Tls { endpoints, .. } | Self::Plaintext { endpoints } => Some(*endpoints),
            Self::Unix { .. } => None,
        }
    }
}

/// Both ends of a TCP session.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints {
    /// The client.
    pub client: SocketAddr,
    /// The server.
    pub server: SocketAddr,
    /// What the client's first PROXY protocol header says.
    pub proxied: Option<Proxied>,
}

/// What a PROXY protocol header says.
#[derive(Clone, Copy, Debug)]
pub struct Proxied {
    /// Whom it names as the client, if it names an address.
    pub client: Option<SocketAddr>,
    /// Whether the peer is a trusted proxy.
    pub trusted: bool,
}

/// The process at the client's end of a Unix socket.
#[derive(Clone, Copy, Debug)]
pub struct UnixPeer<'s> {
    /// Its process id.
    pub pid: u32,
    /// Its effective user id.
    pub uid: u32,
    /// Its name.
    pub program: Option<&'s str>,
}

/// What was done about a session. Numbers are append-only: they stand in the history's index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Outcome {
    /// It is secure.
    Allowed = 1,
    /// An exception allows it.
    Excepted = 2,
    /// It would have been denied; observe mode only reports.
    Observed = 3,
    /// It was refused.
    Denied = 4,
    /// The gate let it pass as TLS; the handshake failed.
    TlsFailed = 5,
    /// It is in the clear, and goes on because it is older than the gate or than the enforcement of its policy.
    Kept = 6,
}

impl Outcome {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Allowed,
        Self::Excepted,
        Self::Observed,
        Self::Denied,
        Self::TlsFailed,
        Self::Kept,
    ];

    /// The outcome whose [`Self::verdict`] is this word.
    #[must_use]
    pub fn of_verdict(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.verdict() == word)
    }

    /// The outcome of this number.
    #[must_use]
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|one| *one as u8 == number)
    }

    /// The word used in records and in the label `verdict` of metrics.
    #[must_use]
    pub const fn verdict(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Excepted => "excepted",
            Self::Observed => "would_deny",
            Self::Denied => "denied",
            Self::TlsFailed => "tls_failed",
            Self::Kept => "kept",
        }
    }
}

/// What a session is older than that was not judged when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OlderThan {
    /// The gate: how it began is not known.
    Gate,
    /// The enforcement of the policy on its server: it logged in in observe mode.
    Enforcement,
}

impl OlderThan {
    /// The word used in status and records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gate => "gate",
            Self::Enforcement => "enforcement",
        }
    }
}

/// How a refusal went.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Refusal<'s> {
    /// How it ended: the word used in `musttls_refusals_total`.
    pub outcome: &'s str,
    /// From the login to the ERR packet, in microseconds; absent if the client was not told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub err_after_us: Option<u64>,
    /// From the login until the server let go of its socket, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released_after_us: Option<u64>,
}

/// Records that were lost.
#[derive(Clone, Copy, Debug)]
pub struct Loss<'s> {
    /// When this was found, in milliseconds of Unix time.
    pub time_ms: i64,
    /// How many.
    pub lost: u64,
    /// Where or why: the word used in `musttls_bpf_events_lost_total` or `musttls_sink_errors_total`.
    pub reason: &'s str,
}

/// A time in which the gate judged and no agent ran.
#[derive(Clone, Debug)]
pub struct Gap<'s> {
    /// When the former agent noted the counters last, in milliseconds of Unix time.
    pub since_ms: i64,
    /// When this one took over.
    pub until_ms: i64,
    /// Name of the policy that judged: the path of its file.
    pub policy_name: &'s str,
    /// Its version.
    pub policy_version: u32,
    /// Sessions by outcome since then, by the gate's own count; those with none are left out.
    pub sessions: BTreeMap<&'s str, u64>,
}

/// Somebody has changed what attaches the gate.
#[derive(Clone, Debug)]
pub struct GateFault<'s> {
    /// When all was well last, in milliseconds of Unix time.
    pub since_ms: i64,
    /// When this was found.
    pub time_ms: i64,
    /// Name of the policy in force: the path of its file.
    pub policy_name: &'s str,
    /// Its version.
    pub policy_version: u32,
    /// The program of the gate that it is about.
    pub program: &'s str,
    /// The word used in `musttls_gate_faults_total`.
    pub fault: &'s str,
    /// Whether it is as it was again.
    pub mended: bool,
}

/// Another mode came into force on a server.
#[derive(Clone, Copy, Debug)]
pub struct ModeChange<'s> {
    /// When, in milliseconds of Unix time.
    pub time_ms: i64,
    /// Name of the policy: the path of its file.
    pub policy_name: &'s str,
    /// The version of the policy that brought it.
    pub policy_version: u32,
    /// The name of the `[[server]]`, or `default`.
    pub server: &'s str,
    /// The mode before.
    pub from: Mode,
    /// The mode now.
    pub to: Mode,
    /// What brought it.
    pub cause: ModeCause,
}

/// What has brought another mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeCause {
    /// The configuration was read again.
    Reload,
    /// The time of the mode before was over.
    Until,
    /// `musttls panic`.
    Panic,
}

impl ModeCause {
    /// The word used in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reload => "reload",
            Self::Until => "mode-until",
            Self::Panic => "panic",
        }
    }
}
