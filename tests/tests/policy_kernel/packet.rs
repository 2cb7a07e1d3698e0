//! A login's packet, from the IP header on.

use std::net::IpAddr;

use musttls_common::mysql::{CLIENT_PROTOCOL_41, CLIENT_SSL};

/// Bytes of an IPv4 and of a TCP header without options.
const HEADER_LEN: usize = 20;
const IPPROTO_TCP: u8 = 6;
const ACK_AND_PSH: u8 = 0x18;

/// How a login begins (`docs/adr/0002-judge-by-offset.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `HandshakeResponse41`.
    Current,
    /// `HandshakeResponse320`.
    Old,
}

/// A plaintext login of `user` with any other flags and whatever follows the name; `keep` of its bytes.
pub(crate) fn login(form: Form, user: &[u8], flags: u32, keep: usize) -> Vec<u8> {
    let flags = flags & !CLIENT_SSL;
    let mut body = Vec::new();
    match form {
        Form::Current => {
            body.extend((flags | CLIENT_PROTOCOL_41).to_le_bytes());
            body.extend([0, 0, 0, 1, 33]);
            body.extend([0; 23]);
        }
        Form::Old => {
            let [low, high, ..] = (flags & !CLIENT_PROTOCOL_41).to_le_bytes();
            body.extend([low, high, 0, 0, 1]);
        }
    }
    body.extend(user);
    body.push(0);
    body.extend(b"\x14aaaaaaaaaaaaaaaaaaaamysql_native_password\0");
    let [a, b, c, _] = u32::try_from(body.len()).unwrap().to_le_bytes();
    let mut packet = vec![a, b, c, 1];
    packet.extend(body);
    packet.truncate(keep);
    packet
}

/// The packet of `payload` from `client` to `port`. An IPv4-mapped address makes it one of IPv6.
pub(crate) fn segment(client: IpAddr, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = ip(client, HEADER_LEN + payload.len());
    packet.extend(40_000_u16.to_be_bytes());
    packet.extend(port.to_be_bytes());
    packet.extend([0, 0, 0, 1, 0, 0, 0, 1]);
    packet.extend([5 << 4, ACK_AND_PSH, 1, 0, 0, 0, 0, 0]);
    packet.extend(payload);
    packet
}

fn ip(client: IpAddr, len: usize) -> Vec<u8> {
    let mut header = Vec::new();
    match client {
        IpAddr::V4(client) => {
            let len = u16::try_from(HEADER_LEN + len).unwrap();
            header.extend([4 << 4 | 5, 0]);
            header.extend(len.to_be_bytes());
            header.extend([0, 0, 0, 0, 64, IPPROTO_TCP, 0, 0]);
            header.extend(client.octets());
            header.extend([127, 0, 0, 1]);
        }
        IpAddr::V6(client) => {
            let len = u16::try_from(len).unwrap();
            header.extend([6 << 4, 0, 0, 0]);
            header.extend(len.to_be_bytes());
            header.extend([IPPROTO_TCP, 64]);
            header.extend(client.octets());
            header.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        }
    }
    header
}
