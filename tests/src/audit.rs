//! The agent's records: OCSF 1.8.0 Authentication (3002), one JSON line a session.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// One record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The line as it stands in the file.
    pub line: String,
    value: Value,
}

impl Record {
    /// Reads one line.
    pub fn read(line: &str) -> Result<Self> {
        let value = serde_json::from_str(line).with_context(|| format!("audit line: {line}"))?;
        Ok(Self {
            line: line.to_owned(),
            value,
        })
    }

    /// The value at `path`, a JSON pointer (RFC 6901).
    #[must_use]
    pub fn at(&self, path: &str) -> &Value {
        self.value.pointer(path).unwrap_or(&Value::Null)
    }

    /// The text at `path`; empty if there is none.
    #[must_use]
    pub fn text(&self, path: &str) -> &str {
        self.at(path).as_str().unwrap_or_default()
    }

    /// The number at `path`.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        self.at(path).as_u64()
    }

    /// Whether it is of a session; the agent also tells of its own start, stop and losses.
    #[must_use]
    pub fn is_session(&self) -> bool {
        self.number("/class_uid") == Some(3002)
    }

    /// `tls`, `plaintext` or `unix`.
    #[must_use]
    pub fn transport(&self) -> &str {
        self.text("/unmapped/transport")
    }

    /// The user name of the login.
    #[must_use]
    pub fn user(&self) -> &str {
        self.text("/user/name")
    }

    /// 1 allowed, 2 denied, 3 observed.
    #[must_use]
    pub fn action(&self) -> Option<u64> {
        self.number("/action_id")
    }

    /// 1 allowed, 15 detected, 21 reset.
    #[must_use]
    pub fn disposition(&self) -> Option<u64> {
        self.number("/disposition_id")
    }

    /// Whether a plaintext login was denied.
    #[must_use]
    pub fn is_denied(&self) -> bool {
        self.is_session() && self.action() == Some(2)
    }

    /// The rule that decided: an exception's name, or `require-tls`.
    #[must_use]
    pub fn rule(&self) -> &str {
        self.text("/firewall_rule/name")
    }

    /// The client's address.
    #[must_use]
    pub fn source(&self) -> Option<IpAddr> {
        self.text("/src_endpoint/ip").parse().ok()
    }

    /// The client's port.
    #[must_use]
    pub fn source_port(&self) -> Option<u64> {
        self.number("/src_endpoint/port")
    }

    /// The negotiated TLS version, written as the server writes it (`TLSv1.3`).
    #[must_use]
    pub fn tls_version(&self) -> String {
        let version = self
            .text("/unmapped/tls/version")
            .trim_start_matches("TLSv");
        format!("TLSv{}", version.trim_start_matches("TLS "))
    }

    /// The negotiated cipher suite.
    #[must_use]
    pub fn tls_cipher(&self) -> &str {
        self.text("/unmapped/tls/cipher")
    }

    /// The number in the sequence of records.
    #[must_use]
    pub fn sequence(&self) -> Option<u64> {
        self.number("/metadata/sequence")
    }
}
