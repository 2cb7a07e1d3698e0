//! The shape of records: fields in the order in which they are written.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::record::{self, Identity, OlderThan, Refusal, RestsOn};

#[derive(Serialize)]
pub(super) struct SessionRecord<'s> {
    pub(super) class_uid: u32,
    pub(super) class_name: &'s str,
    pub(super) category_uid: u32,
    pub(super) category_name: &'s str,
    pub(super) activity_id: u32,
    pub(super) activity_name: &'s str,
    pub(super) type_uid: u32,
    pub(super) time: i64,
    pub(super) severity_id: u32,
    pub(super) severity: &'s str,
    pub(super) status_id: u32,
    pub(super) status: &'s str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status_detail: Option<&'s str>,
    pub(super) action_id: u32,
    pub(super) action: &'s str,
    pub(super) disposition_id: u32,
    pub(super) disposition: &'s str,
    pub(super) is_alert: bool,
    pub(super) is_cleartext: bool,
    pub(super) is_remote: bool,
    pub(super) logon_type_id: u32,
    pub(super) logon_type: &'s str,
    pub(super) auth_protocol_id: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auth_protocol: Option<String>,
    pub(super) user: User<'s>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) actor: Option<Actor<'s>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) src_endpoint: Option<Endpoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dst_endpoint: Option<Endpoint>,
    pub(super) service: Named<'s>,
    pub(super) policy: Policy<'s>,
    pub(super) firewall_rule: Named<'s>,
    pub(super) device: Device<'s>,
    pub(super) metadata: Metadata<'s>,
    pub(super) unmapped: Unmapped<'s>,
}

/// OCSF requires `user`, with at least one of `account`, `name` and `uid`. Where the gate cannot know the
/// name, `uid` says so: `name` then stays free of made-up values, so a search by name finds only
/// names that a client sent.
#[derive(Serialize)]
pub(super) struct User<'s> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<&'s str>,
    pub(super) type_id: u32,
}

#[derive(Serialize)]
pub(super) struct Actor<'s> {
    pub(super) process: Process<'s>,
    pub(super) user: ActorUser,
}

#[derive(Serialize)]
pub(super) struct Process<'s> {
    pub(super) pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'s str>,
}

#[derive(Serialize)]
pub(super) struct ActorUser {
    pub(super) uid: String,
}

#[derive(Serialize)]
pub(super) struct Endpoint {
    pub(super) ip: IpAddr,
    pub(super) port: u16,
}

impl Endpoint {
    pub(super) const fn of(address: SocketAddr) -> Self {
        Self {
            ip: address.ip().to_canonical(),
            port: address.port(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct Named<'s> {
    pub(super) name: &'s str,
}

#[derive(Serialize)]
pub(super) struct Policy<'s> {
    pub(super) name: &'s str,
    pub(super) version: String,
    pub(super) is_applied: bool,
}

#[derive(Serialize)]
pub(super) struct Device<'s> {
    pub(super) hostname: &'s str,
    pub(super) type_id: u32,
    pub(super) r#type: &'s str,
}

impl<'s> Device<'s> {
    pub(super) fn of(identity: &'s Identity) -> Self {
        Self {
            hostname: &identity.hostname,
            type_id: 1,
            r#type: "Server",
        }
    }
}

#[derive(Serialize)]
pub(super) struct Metadata<'s> {
    pub(super) version: &'s str,
    pub(super) product: Product<'s>,
    pub(super) profiles: &'s [&'s str],
    pub(super) log_name: &'s str,
    pub(super) uid: String,
    pub(super) sequence: u64,
}

#[derive(Serialize)]
pub(super) struct Product<'s> {
    pub(super) name: &'s str,
    pub(super) vendor_name: &'s str,
    pub(super) version: &'s str,
}

impl Product<'_> {
    pub(super) const fn this() -> Self {
        Self {
            name: "musttls",
            vendor_name: "musttls",
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

impl<'s> Metadata<'s> {
    pub(super) fn of(identity: &'s Identity, sequence: u64, profiles: &'s [&'s str]) -> Self {
        Self {
            version: "1.8.0",
            product: Product::this(),
            profiles,
            log_name: "audit",
            uid: format!("{}/{sequence}", identity.run),
            sequence,
        }
    }
}

#[derive(Serialize)]
pub(super) struct Unmapped<'s> {
    pub(super) schema_version: u32,
    pub(super) transport: &'s str,
    pub(super) verdict: &'s str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'s str>,
    pub(super) mode: &'s str,
    pub(super) server: &'s str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tls: Option<Tls>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) floor: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) would_refuse: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) schema: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) client_program: Option<&'s str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) connection_attributes: BTreeMap<&'s str, &'s str>,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) credential_exposed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exposed_packet_len: Option<u32>,
    #[serde(skip_serializing_if = "is_false")]
    pub(super) login_truncated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) server_pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cgroup: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) container: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) socket: Option<&'s str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) refusal: Option<Refusal<'s>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) older_than: Option<OlderThan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) rule_rests_on: Option<RestsOn>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) proxied: Option<Proxied>,
}

#[derive(Serialize)]
pub(super) struct Proxied {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    trusted: bool,
}

impl Proxied {
    pub(super) fn of(proxied: record::Proxied) -> Self {
        let client = proxied.client.map(Endpoint::of);
        Self {
            ip: client.as_ref().map(|client| client.ip),
            port: client.map(|client| client.port),
            trusted: proxied.trusted,
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Serialize)]
pub(super) struct Tls {
    pub(super) version: String,
    pub(super) cipher: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) offered: Option<String>,
}

/// What all records of OCSF's category Application Activity have, and what some do.
#[derive(Serialize)]
pub(super) struct ApplicationRecord<'s, U> {
    pub(super) class_uid: u32,
    pub(super) class_name: &'s str,
    pub(super) category_uid: u32,
    pub(super) category_name: &'s str,
    pub(super) activity_id: u32,
    pub(super) activity_name: &'s str,
    pub(super) type_uid: u32,
    pub(super) time: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) start_time: Option<i64>,
    pub(super) severity_id: u32,
    pub(super) severity: &'s str,
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) app: Option<Product<'s>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) policy: Option<Policy<'s>>,
    pub(super) device: Device<'s>,
    pub(super) metadata: Metadata<'s>,
    pub(super) unmapped: U,
}

#[derive(Serialize)]
pub(super) struct LossUnmapped<'s> {
    pub(super) schema_version: u32,
    pub(super) lost: u64,
    pub(super) reason: &'s str,
}

#[derive(Serialize)]
pub(super) struct FaultUnmapped<'s> {
    pub(super) schema_version: u32,
    pub(super) fault: &'s str,
    pub(super) program: &'s str,
    pub(super) mended: bool,
}

#[derive(Serialize)]
pub(super) struct ModeUnmapped<'s> {
    pub(super) schema_version: u32,
    pub(super) server: &'s str,
    pub(super) from: &'static str,
    pub(super) mode: &'static str,
    pub(super) cause: &'static str,
}

#[derive(Serialize)]
pub(super) struct GapUnmapped<'s> {
    pub(super) schema_version: u32,
    pub(super) sessions: &'s BTreeMap<&'s str, u64>,
}
