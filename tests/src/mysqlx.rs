//! X Protocol, byte by byte: `length[4] type[1] payload[length - 1]`.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Result, bail};

use crate::raw::{Next, Raw};

/// `Mysqlx.Error` that refuses a session, as the server's own would with `require_secure_transport`.
#[must_use]
pub fn refusal() -> Vec<u8> {
    let message = crate::wire::REFUSED_TEXT.as_bytes();
    let mut frame = b"\x67\x00\x00\x00\x01\x08\x01\x10\xd7\x18\x22\x05HY000\x1a\x58".to_vec();
    frame.extend(message);
    frame
}

/// A message with this type and payload.
#[must_use]
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 1).unwrap_or(u32::MAX);
    let mut frame = length.to_le_bytes().to_vec();
    frame.push(kind);
    frame.extend(payload);
    frame
}

/// `CapabilitiesGet`.
#[must_use]
pub fn capabilities_get() -> Vec<u8> {
    frame(1, &[])
}

/// `CapabilitiesSet` of the capability `tls`, on.
#[must_use]
pub fn start_tls() -> Vec<u8> {
    let any = [8, 1, 0x12, 4, 8, 7, 0x40, 1];
    let capability = [&[0x0a, 3][..], b"tls", &[0x12, 8], &any].concat();
    let capabilities = [&[0x0a, 15][..], &capability].concat();
    frame(2, &[&[0x0a, 17][..], &capabilities].concat())
}

/// `AuthenticateStart` with a mechanism and what it sends first.
#[must_use]
pub fn authenticate(mechanism: &str, data: &[u8]) -> Vec<u8> {
    let field = |number: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        [&[number << 3 | 2, length][..], bytes].concat()
    };
    frame(
        4,
        &[field(1, mechanism.as_bytes()), field(2, data)].concat(),
    )
}

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Its type: 0 Ok, 1 Error, 2 Capabilities, 3 `AuthenticateContinue`, 4 `AuthenticateOk`, 11 Notice.
    pub kind: u8,
    /// Its protobuf.
    pub payload: Vec<u8>,
}

impl<S: Read + Write> Raw<S> {
    /// Reads a message of X Protocol that is no notice, or how the connection ended.
    pub fn receive_x(&mut self) -> Result<std::result::Result<Message, Next>> {
        const NOTICE: u8 = 11;
        loop {
            let mut header = [0; 5];
            if let Some(end) = self.fill(&mut header)? {
                return Ok(Err(end));
            }
            let [a, b, c, d, kind] = header;
            let length = usize::try_from(u32::from_le_bytes([a, b, c, d]))?;
            let mut payload = vec![0; length.saturating_sub(1)];
            if let Some(end) = self.fill(&mut payload)? {
                bail!("{end:?} within a message of {length} bytes");
            }
            if kind != NOTICE {
                return Ok(Ok(Message { kind, payload }));
            }
        }
    }
}

/// Whether `next` is the refusal.
#[must_use]
pub fn is_refusal(next: &std::result::Result<Message, Next>) -> bool {
    matches!(next, Ok(message) if frame(message.kind, &message.payload) == refusal())
}

/// Turns TLS on as X Protocol does it.
pub fn into_tls(
    mut raw: Raw,
) -> Result<Raw<rustls::StreamOwned<rustls::ClientConnection, TcpStream>>> {
    raw.send(&start_tls())?;
    match raw.receive_x()? {
        Ok(Message { kind: 0, .. }) => raw.into_tls(),
        other => bail!("no TLS: {other:?}"),
    }
}
