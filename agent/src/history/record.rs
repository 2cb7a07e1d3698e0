//! A line of the audit file as the history sees it.

use std::borrow::Cow;
use std::net::IpAddr;

use musttls_common::tls::{TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Class;
use crate::audit::record::Outcome;
use crate::cipher;
use crate::config::DEFAULT_SERVER;

/// The newest schema of `unmapped` that is understood ([`crate::audit::record`]).
const SCHEMA: u32 = 1;
/// The version of OCSF that is understood, up to its first dot.
const OCSF: &str = "1.";

/// What a line is.
#[derive(Debug)]
pub(super) struct Line<'l> {
    /// The run of the agent that wrote it, and its number.
    pub(super) number: Option<(Cow<'l, str>, u64)>,
    pub(super) content: Content<'l>,
}

/// What a line tells.
#[derive(Debug)]
pub(super) enum Content<'l> {
    /// A session.
    Session(Box<Seen<'l>>),
    /// A record of something else.
    Other,
    /// Of a later release, or of another program: not understood.
    Later,
    /// No JSON.
    Garbage,
}

/// A session.
#[derive(Debug)]
pub(super) struct Seen<'l> {
    pub(super) time_ms: i64,
    pub(super) class: Class,
    pub(super) server: Cow<'l, str>,
    pub(super) port: u16,
    pub(super) peer: Option<IpAddr>,
    pub(super) proxied: Option<IpAddr>,
    pub(super) user: Option<Cow<'l, str>>,
    pub(super) driver: Option<Cow<'l, str>>,
    pub(super) version: Option<Cow<'l, str>>,
    pub(super) program: Option<Cow<'l, str>>,
    /// `ProtocolVersion`: what was negotiated, or else the best that was offered; 0 if unknown.
    pub(super) tls: u16,
    pub(super) cipher: u16,
    pub(super) passed: Outcome,
    pub(super) rule: Option<Cow<'l, str>>,
}

#[derive(Deserialize)]
struct Raw<'l> {
    class_uid: u32,
    time: i64,
    #[serde(borrow, default)]
    user: User<'l>,
    src_endpoint: Option<Endpoint>,
    dst_endpoint: Option<Endpoint>,
    #[serde(borrow, default)]
    firewall_rule: Name<'l>,
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
    #[serde(default)]
    older_than_gate: bool,
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
pub(super) fn read(line: &[u8]) -> Line<'_> {
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
        _ => Content::Other,
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
        older_than_gate,
        proxied,
        ..
    } = raw.unmapped;
    let passed = Outcome::of_verdict(&verdict?.0)?;
    let reason = reason.as_ref().map(|reason| &*reason.0);
    let class = match (&*transport?.0, reason) {
        ("unix", _) => Class::Unix,
        ("tls", _) if passed == Outcome::TlsFailed => Class::TlsFailed,
        ("tls", _) => Class::Tls,
        ("plaintext", _) if older_than_gate => Class::Older,
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
            Some(Cow::Borrowed(super::REPLICA)),
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
        peer: raw.src_endpoint.and_then(|end| end.ip),
        proxied: proxied.and_then(|end| end.ip),
        // What stands there is no user, and no exception is asked about it.
        user: raw
            .user
            .name
            .map(|name| name.0)
            .filter(|_| reason != Some("not-a-login")),
        driver,
        version: version.map(|version| version.0),
        program: client_program.map(|program| program.0),
        tls: tls.0,
        cipher: tls.1,
        passed,
        rule: raw.firewall_rule.name.map(|name| name.0),
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
}
