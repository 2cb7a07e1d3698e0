//! What the two ends of the canary say.

use musttls_common::mysql::ER_SECURE_TRANSPORT_REQUIRED;

use crate::refusal::packet;

/// The user that logs in. It exists nowhere, and stands in no record.
pub(super) const USER: &str = "musttls-canary";

/// `Protocol::HandshakeV10` of a server that offers TLS: protocol 10, version, thread, 8 bytes of the challenge, capabilities (protocol 4.1,
/// TLS, the challenge in two parts, plugins), character set, status, length of the challenge, 12 bytes and a NUL of it, plugin.
pub(super) const GREETING: &[u8; 84] = b"\x50\x00\x00\x00\x0a8.0.0-canary\x00\x01\x00\x00\x00challeng\x00\
    \x00\x8a\x2d\x02\x00\x08\x00\x15\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00e-of-a-canar\x00mysql_native_password\x00";

/// A plaintext login of nobody, without a password.
pub(super) fn login() -> Vec<u8> {
    packet::login_of(USER)
}

/// Whether all that a server has got is (a part of) the soft landing that a refusal gives it.
pub(super) fn begins_a_landing(got: &[u8]) -> bool {
    packet::landing([0; 4], 0, 0).is_some_and(|landing| landing.starts_with(got))
}

/// Whether the payload of an answer is error 3159; else what it is.
pub(super) fn read_refusal(payload: &[u8]) -> Result<(), String> {
    match *payload {
        [0xff, low, high, ..] => match u16::from_le_bytes([low, high]) {
            ER_SECURE_TRANSPORT_REQUIRED => Ok(()),
            other => Err(format!("error {other}")),
        },
        [0, ..] => Err("the login was accepted".to_owned()),
        [first, ..] => Err(format!("a packet that begins with {first:#04x}")),
        [] => Err("an empty packet, or the end of the connection".to_owned()),
    }
}
