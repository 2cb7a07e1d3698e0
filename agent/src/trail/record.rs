//! A line of the audit file, as its readers see it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use musttls_common::tls::{TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::audit::record::Outcome;
use crate::cipher;
use crate::config::DEFAULT_SERVER;
use crate::history::{self, Class};

/// The newest schema of `unmapped` that is understood ([`crate::audit::record`]).
const SCHEMA: u32 = 1;
/// The version of OCSF that is understood, up to its first dot.
const OCSF: &str = "1.";

/// What a line is.
#[derive(Debug)]
pub struct Line<'l> {
    /// The run of the agent that wrote it, and its number.
    pub number: Option<(Cow<'l, str>, u64)>,
    /// What it tells.
    pub content: Content<'l>,
}

/// What a line tells.
#[derive(Debug)]
pub enum Content<'l> {
    /// A session.
    Session(Box<Seen<'l>>),
    /// Something else that happened.
    Other(Notice<'l>),
    /// Of a later release, or of another program: not understood.
    Later,
    /// No JSON.
    Garbage,
}

/// Something that happened that is no session.
#[derive(Debug)]
pub struct Notice<'l> {
    /// When, in milliseconds of Unix time.
    pub time_ms: i64,
    /// What, in a sentence.
    pub message: Cow<'l, str>,
    /// The server it is about, if it is about one.
    pub server: Option<Cow<'l, str>>,
}

/// A session.
#[derive(Debug)]
pub struct Seen<'l> {
    /// When it was decided, in milliseconds of Unix time.
    pub time_ms: i64,
    /// What kind of session it is.
    pub class: Class,
    /// Name of the server's settings.
    pub server: Cow<'l, str>,
    /// The port of the server; 0 for Unix sockets.
    pub port: u16,
    /// The client's address; none for Unix sockets.
    pub peer: Option<IpAddr>,
    /// Its port.
    pub peer_port: u16,
    /// Whom a PROXY header names.
    pub proxied: Option<IpAddr>,
    /// The user, where the gate could read one; what stands in its place in a packet that is no login is none.
    pub user: Option<Cow<'l, str>>,
    /// The driver, as it calls itself.
    pub driver: Option<Cow<'l, str>>,
    /// Its version.
    pub version: Option<Cow<'l, str>>,
    /// The program, as it calls itself.
    pub program: Option<Cow<'l, str>>,
    /// `ProtocolVersion`: what was negotiated, or else the best that was offered; 0 if unknown.
    pub tls: u16,
    /// IANA number of the cipher suite; 0 if unknown.
    pub cipher: u16,
    /// What was done.
    pub passed: Outcome,
    /// Why it was denied, or would be.
    pub reason: Option<Cow<'l, str>>,
    /// The mode of its server.
    pub mode: Option<Cow<'l, str>>,
    /// The exception that allowed it, or the rule that requires TLS.
    pub rule: Option<Cow<'l, str>>,
    /// The policy that judged.
    pub policy: Policy<'l>,
    /// How its refusal ended.
    pub refusal: Option<Refusal<'l>>,
    /// `gate` or `enforcement`.
    pub older_than: Option<Cow<'l, str>>,
    /// The floor of `observe`, which would refuse it.
    pub would_refuse: Option<Cow<'l, str>>,
    /// Whether its client has sent its login in the clear before TLS.
    pub is_exposed: bool,
}

impl Seen<'_> {
    /// The same as a client of the history with one session.
    #[must_use]
    pub fn client(&self) -> history::Client {
        let text = |text: &Option<Cow<'_, str>>| text.as_deref().map(Arc::from);
        let at_s = self.time_ms.div_euclid(1000);
        history::Client {
            class: self.class,
            server: Arc::from(&*self.server),
            port: self.port,
            peer: self.peer,
            proxied: self.proxied,
            user: text(&self.user),
            driver: text(&self.driver),
            version: text(&self.version),
            program: text(&self.program),
            tls: self.tls,
            cipher: self.cipher,
            first_s: at_s,
            last_s: at_s,
            sessions: 1,
            refused: u64::from(self.passed == Outcome::Denied),
            passed: self.passed,
            rule: text(&self.rule),
        }
    }
}

/// A policy, as a record names it.
#[derive(Debug, Default)]
pub struct Policy<'l> {
    /// The path of its file.
    pub name: Option<Cow<'l, str>>,
    /// Its version.
    pub version: Option<Cow<'l, str>>,
}

/// How a refusal went.
#[derive(Debug)]
pub struct Refusal<'l> {
    /// How it ended: the word used in `musttls_refusals_total`.
    pub outcome: Option<Cow<'l, str>>,
    /// From the login until the client was told, in microseconds; absent if it was not.
    pub err_after_us: Option<u64>,
    /// From the login until the server let go, in microseconds.
    pub released_after_us: Option<u64>,
}

#[derive(Deserialize)]
struct Raw<'l> {
    class_uid: u32,
    time: i64,
    #[serde(borrow)]
    message: Option<Text<'l>>,
    #[serde(borrow, default)]
    user: User<'l>,
    src_endpoint: Option<Endpoint>,
    dst_endpoint: Option<Endpoint>,
    #[serde(borrow, default)]
    firewall_rule: Name<'l>,
    #[serde(borrow, default)]
    policy: RawPolicy<'l>,
    #[serde(borrow)]
    metadata: Metadata<'l>,
    #[serde(borrow)]
    unmapped: Unmapped<'l>,
}

/// Borrowed where it has no escapes, which serde does for a `Cow` that is a field, and not in an `Option`.
#[derive(Deserialize)]
struct Text<'l>(#[serde(borrow)] Cow<'l, str>);

#[derive(Default, Deserialize)]
struct User<'l> {
    #[serde(borrow)]
    name: Option<Text<'l>>,
}

#[derive(Default, Deserialize)]
struct Name<'l> {
    #[serde(borrow)]
    name: Option<Text<'l>>,
}

#[derive(Default, Deserialize)]
struct RawPolicy<'l> {
    #[serde(borrow)]
    name: Option<Text<'l>>,
    #[serde(borrow)]
    version: Option<Text<'l>>,
}

#[derive(Deserialize)]
struct RawRefusal<'l> {
    #[serde(borrow)]
    outcome: Option<Text<'l>>,
    err_after_us: Option<u64>,
    released_after_us: Option<u64>,
}

#[derive(Deserialize)]
struct Endpoint {
    ip: Option<IpAddr>,
    port: Option<u16>,
}

#[derive(Deserialize)]
struct Metadata<'l> {
    #[serde(borrow)]
    version: Text<'l>,
    #[serde(borrow)]
    uid: Option<Text<'l>>,
    sequence: Option<u64>,
}

#[derive(Deserialize)]
struct Unmapped<'l> {
    schema_version: u32,
    #[serde(borrow)]
    transport: Option<Text<'l>>,
    #[serde(borrow)]
    verdict: Option<Text<'l>>,
    #[serde(borrow)]
    reason: Option<Text<'l>>,
    #[serde(borrow)]
    server: Option<Text<'l>>,
    #[serde(borrow)]
    tls: Option<Tls<'l>>,
    #[serde(borrow)]
    client_program: Option<Text<'l>>,
    #[serde(borrow, default)]
    connection_attributes: Attributes<'l>,
    #[serde(borrow)]
    older_than: Option<Text<'l>>,
    #[serde(borrow)]
    would_refuse: Option<Text<'l>>,
    #[serde(default)]
    credential_exposed: bool,
    #[serde(borrow)]
    mode: Option<Text<'l>>,
    #[serde(borrow)]
    refusal: Option<RawRefusal<'l>>,
    proxied: Option<Endpoint>,
}

#[derive(Deserialize)]
struct Tls<'l> {
    #[serde(borrow)]
    version: Option<Text<'l>>,
    #[serde(borrow)]
    cipher: Option<Text<'l>>,
    #[serde(borrow)]
    offered: Option<Text<'l>>,
}

#[derive(Default, Deserialize)]
struct Attributes<'l> {
    #[serde(borrow, rename = "_client_name")]
    client_name: Option<Text<'l>>,
    #[serde(borrow, rename = "_client_version")]
    client_version: Option<Text<'l>>,
    #[serde(borrow, rename = "_connector_name")]
    connector_name: Option<Text<'l>>,
    #[serde(borrow, rename = "_connector_version")]
    connector_version: Option<Text<'l>>,
    #[serde(borrow, rename = "_client_role")]
    client_role: Option<Text<'l>>,
}

/// Reads a line, without its newline.
#[must_use]
pub fn read(line: &[u8]) -> Line<'_> {
    let unnumbered = |content| Line {
        number: None,
        content,
    };
    let raw = match serde_json::from_slice::<Raw<'_>>(line) {
        Ok(raw) => raw,
        // JSON of another shape is not of this release.
        Err(_) if serde_json::from_slice::<IgnoredAny>(line).is_ok() => {
            return unnumbered(Content::Later);
        }
        Err(_) => return unnumbered(Content::Garbage),
    };
    let is_known =
        raw.unmapped.schema_version <= SCHEMA && raw.metadata.version.0.starts_with(OCSF);
    let number = match (&raw.metadata.uid, raw.metadata.sequence) {
        (Some(uid), Some(sequence)) if is_known => uid
            .0
            .rsplit_once('/')
            .map(|(run, _)| (Cow::Owned(run.to_owned()), sequence)),
        _ => None,
    };
    let content = match raw.class_uid {
        _ if !is_known => Content::Later,
        3002 => session(raw).map_or(Content::Later, |seen| Content::Session(Box::new(seen))),
        _ => Content::Other(Notice {
            time_ms: raw.time,
            message: raw.message.map(|message| message.0).unwrap_or_default(),
            server: raw.unmapped.server.map(|server| server.0),
        }),
    };
    Line { number, content }
}

/// `None` where a word is not one of this release.
fn session(raw: Raw<'_>) -> Option<Seen<'_>> {
    let Unmapped {
        transport,
        verdict,
        reason,
        server,
        tls,
        client_program,
        connection_attributes: attributes,
        older_than,
        would_refuse,
        credential_exposed,
        mode,
        refusal,
        proxied,
        ..
    } = raw.unmapped;
    let passed = Outcome::of_verdict(&verdict?.0)?;
    let reason = reason.map(|reason| reason.0);
    let class = match (&*transport?.0, reason.as_deref()) {
        ("unix", _) => Class::Unix,
        ("tls", _) if passed == Outcome::TlsFailed => Class::TlsFailed,
        ("tls", _) => Class::Tls,
        ("plaintext", _) if older_than.is_some() => Class::Older,
        ("plaintext", Some(reason)) if NO_EXCEPTION.contains(&reason) => Class::NoException,
        ("plaintext", _) => Class::Plaintext,
        _ => return None,
    };
    let text = |text: Option<Text<'_>>| text.map_or(String::new(), |text| text.0.into_owned());
    let tls = tls.map_or((0, 0), |tls| {
        let negotiated = version_number(&text(tls.version));
        let version = if negotiated == 0 {
            version_number(&text(tls.offered))
        } else {
            negotiated
        };
        (version, cipher::number(&text(tls.cipher)).unwrap_or(0))
    });
    let is_replica = attributes
        .client_role
        .is_some_and(|role| role.0 == "binary_log_listener");
    let (driver, version) = if is_replica {
        (
            Some(Cow::Borrowed(history::REPLICA)),
            attributes.client_version,
        )
    } else if let Some(connector) = attributes.connector_name {
        (Some(connector.0), attributes.connector_version)
    } else {
        (
            attributes.client_name.map(|name| name.0),
            attributes.client_version,
        )
    };
    Some(Seen {
        time_ms: raw.time,
        class,
        server: server.map_or(Cow::Borrowed(DEFAULT_SERVER), |server| server.0),
        port: raw.dst_endpoint.and_then(|end| end.port).unwrap_or(0),
        peer: raw.src_endpoint.as_ref().and_then(|end| end.ip),
        peer_port: raw.src_endpoint.and_then(|end| end.port).unwrap_or(0),
        proxied: proxied.and_then(|end| end.ip),
        // What stands there is no user, and no exception is asked about it.
        user: raw
            .user
            .name
            .map(|name| name.0)
            .filter(|_| reason.as_deref() != Some("not-a-login")),
        driver,
        version: version.map(|version| version.0),
        program: client_program.map(|program| program.0),
        tls: tls.0,
        cipher: tls.1,
        passed,
        reason,
        mode: mode.map(|mode| mode.0),
        rule: raw.firewall_rule.name.map(|name| name.0),
        policy: Policy {
            name: raw.policy.name.map(|name| name.0),
            version: raw.policy.version.map(|version| version.0),
        },
        refusal: refusal.map(|refusal| Refusal {
            outcome: refusal.outcome.map(|outcome| outcome.0),
            err_after_us: refusal.err_after_us,
            released_after_us: refusal.released_after_us,
        }),
        older_than: older_than.map(|than| than.0),
        would_refuse: would_refuse.map(|floor| floor.0),
        is_exposed: credential_exposed,
    })
}

/// Reasons for which the gate denies without asking for an exception.
const NO_EXCEPTION: [&str; 4] = [
    "multipath",
    "unjudgeable",
    "not-borne-out",
    "login-before-greeting",
];

/// [`cipher::version_name`] the other way round.
fn version_number(name: &str) -> u16 {
    match name {
        "SSL 3.0" => 0x0300,
        "1.0" => TLS_1_0,
        "1.1" => TLS_1_1,
        "1.2" => TLS_1_2,
        "1.3" => TLS_1_3,
        other => other
            .strip_prefix("0x")
            .and_then(|digits| u16::from_str_radix(digits, 16).ok())
            .unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_are_written() {
        for version in [0, 0x0300, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3, 0x0305] {
            assert_eq!(version_number(&cipher::version_name(version)), version);
        }
    }

    #[test]
    fn the_documented_records_are_told_apart() {
        let page = include_str!("../../../docs/audit-records.md");
        let lines = page
            .lines()
            .filter(|line| line.starts_with("{\"class_uid\""));
        let told: Vec<_> = lines
            .map(|line| match read(line.as_bytes()).content {
                Content::Session(seen) => format!("{:?} {}", seen.class, seen.passed.verdict()),
                Content::Other(notice) => notice.message.into_owned(),
                content @ (Content::Later | Content::Garbage) => panic!("{content:?}: {line}"),
            })
            .collect();
        assert_eq!(
            told,
            [
                "Tls allowed",
                "Plaintext denied",
                "Plaintext would_deny",
                "Plaintext excepted",
                "TlsFailed tls_failed",
                "Tls denied",
                "Tls allowed",
                "Unix allowed",
                "Older kept",
                "Older kept",
                "for 12 s no agent ran; the gate went on judging",
                "on_ingress was found detached; it is as it was again",
                "server orders: from enforce to observe mode (panic)",
                "7 audit records were lost: no-space",
            ]
        );
    }
}
