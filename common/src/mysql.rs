//! The `MySQL` connection phase: greeting, login, ERR packet.
//!
//! Source: `MySQL` 9.x Source Code Documentation, pages "Connection Phase Packets" (`Protocol::HandshakeV10`,
//! `Protocol::SSLRequest`, `Protocol::HandshakeResponse41`, `Protocol::HandshakeResponse320`),
//! "Protocol Basics" (packet header) and `ERR_Packet`; `MariaDB` Knowledge Base, "Connection".
//!
//! A packet is `length[3] sequence_id[1] payload[length]`, little endian. The server speaks first.

use crate::stream::Reader;

/// Length of a packet header, in bytes.
pub const HEADER_LEN: u32 = 4;
/// Length of an `SSLRequest` of the 4.1 protocol, without its packet header: what comes before the user name in a
/// login.
pub const SSL_REQUEST_LEN: u32 = 32;

/// Capability flag: the client speaks the 4.1 protocol (`Protocol::HandshakeResponse41`).
pub const CLIENT_PROTOCOL_41: u32 = 0x0000_0200;
/// Capability flag: the client asks for (the server offers) TLS.
pub const CLIENT_SSL: u32 = 0x0000_0800;
/// Capability flag: the auth response is length-encoded by one byte.
pub const CLIENT_SECURE_CONNECTION: u32 = 0x0000_8000;
/// Capability flag: the login names a schema.
pub const CLIENT_CONNECT_WITH_DB: u32 = 0x0000_0008;
/// Capability flag: the login names an authentication plugin.
pub const CLIENT_PLUGIN_AUTH: u32 = 0x0008_0000;
/// Capability flag: the login carries connection attributes.
pub const CLIENT_CONNECT_ATTRS: u32 = 0x0010_0000;
/// Capability flag: the auth response is length-encoded by a length-encoded integer.
pub const CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA: u32 = 0x0020_0000;

/// Offset in the client's stream of the sequence id of its first packet, which is 1.
pub const SEQUENCE_ID_OFFSET: u32 = 3;
/// Offset in the client's stream of the low byte of its capability flags.
pub const FLAGS_LOW_OFFSET: u32 = HEADER_LEN;
/// Offset in the client's stream of the byte that holds `CLIENT_SSL` and `CLIENT_PROTOCOL_41`, in
/// the 4.1 form and in the 320 form alike.
pub const FLAGS_HIGH_OFFSET: u32 = HEADER_LEN + 1;
/// `CLIENT_SSL` in that byte.
pub const FLAGS_HIGH_SSL: u8 = (CLIENT_SSL >> 8) as u8;
/// `CLIENT_PROTOCOL_41` in that byte.
pub const FLAGS_HIGH_PROTOCOL_41: u8 = (CLIENT_PROTOCOL_41 >> 8) as u8;

/// Offset in the client's stream of the user name, `Protocol::HandshakeResponse41`:
/// flags 4, max packet 4, character set 1, filler 23.
pub const USER_OFFSET_41: u32 = HEADER_LEN + 32;
/// Offset in the client's stream of the user name, `Protocol::HandshakeResponse320`:
/// flags 2, max packet 3.
pub const USER_OFFSET_320: u32 = HEADER_LEN + 5;

/// Longest user name that is read, in bytes: `MariaDB`'s 80 characters fit unless they are nearly
/// all multi-byte; `MySQL` allows 32 characters. A longer one is not known to policy.
pub const USER_MAX: usize = 128;

/// Error number `ER_SECURE_TRANSPORT_REQUIRED`.
pub const ER_SECURE_TRANSPORT_REQUIRED: u16 = 3159;
/// Its message, the same in `MySQL` and `MariaDB`.
pub const SECURE_TRANSPORT_REQUIRED: &[u8; 88] =
    b"Connections using insecure transport are prohibited while --require_secure_transport=ON.";

/// `SQLSTATE` sent with error 3159 by `MySQL` and Percona Server.
pub const SQLSTATE_MYSQL: &[u8; 5] = b"HY000";
/// `SQLSTATE` sent with error 3159 by `MariaDB`.
pub const SQLSTATE_MARIADB: &[u8; 5] = b"08004";

/// Length of the refusal for a 4.1 client, header included.
pub const REFUSAL_LEN_41: u32 = HEADER_LEN + 1 + 2 + 6 + 88;
/// Length of the refusal for an older client: an ERR packet without `SQLSTATE`.
pub const REFUSAL_LEN_320: u32 = HEADER_LEN + 1 + 2 + 88;

/// First payload byte of an ERR packet.
const ERR: u8 = 0xff;
/// First payload byte of `Protocol::HandshakeV10`.
const PROTOCOL_V10: u8 = 0x0a;
/// In X Protocol this byte is a frame's type: `Mysqlx.Notice.Frame`.
const X_NOTICE: u8 = 11;
/// The notice with which a server of `MySQL` 8.0.16 or newer greets in X Protocol: `SERVER_HELLO`, whole.
const X_HELLO_LEN: u32 = 9;
/// Bytes of the greeting between the version's NUL and the low capability bytes: thread id 4,
/// scramble 8, filler 1.
const AFTER_VERSION: u32 = 13;

/// Steps that read one greeting: header and protocol version 5, server version up to 87 bytes (`SERVER_VERSION_LENGTH`
/// is 60) and its NUL, two capability bytes, and one to see that it is done.
pub const GREETING_STEPS: u32 = 96;

/// What the server's first packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Greeting {
    /// Not read yet.
    Unknown = 0,
    /// `Protocol::HandshakeV10` without `CLIENT_SSL`.
    WithoutTls = 1,
    /// `Protocol::HandshakeV10` that offers TLS.
    WithTls = 2,
    /// An ERR packet (1040, 1129, 1130): no login follows.
    Error = 3,
    /// Not the classic protocol.
    Foreign = 4,
    /// The notice with which a server greets in X Protocol.
    MysqlX = 5,
}

mod state {
    pub(super) const LENGTH_0: u8 = 0;
    pub(super) const LENGTH_1: u8 = 1;
    pub(super) const LENGTH_2: u8 = 2;
    pub(super) const SEQUENCE_ID: u8 = 3;
    pub(super) const PROTOCOL: u8 = 4;
    pub(super) const VERSION: u8 = 5;
    pub(super) const FLAGS_LOW: u8 = 6;
    pub(super) const FLAGS_HIGH: u8 = 7;
    pub(super) const DONE: u8 = 8;
}

/// The name that tells `MariaDB`'s version strings from `MySQL`'s ("11.8.3-MariaDB", "5.5.5-10.11.19-MariaDB").
const MARIADB: [u8; 7] = *b"MariaDB";

/// Reads the server's first packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct GreetingReader {
    /// Offset in the server's stream of the next byte that is wanted.
    position: u32,
    /// Length of the packet, header included; valid once the state is past the header.
    packet_len: u32,
    state: u8,
    /// A [`Greeting`].
    greeting: u8,
    /// How many bytes of [`MARIADB`] the last version bytes match.
    matched: u8,
    _pad: u8,
}

impl GreetingReader {
    /// What is known so far.
    #[must_use]
    #[inline(always)]
    pub const fn greeting(&self) -> Greeting {
        match self.greeting {
            0 => Greeting::Unknown,
            1 => Greeting::WithoutTls,
            2 => Greeting::WithTls,
            3 => Greeting::Error,
            5 => Greeting::MysqlX,
            _ => Greeting::Foreign,
        }
    }

    /// Length of the server's first packet, header included: where its next flight begins.
    /// `None` until the greeting is known.
    #[must_use]
    #[inline(always)]
    pub const fn packet_len(&self) -> Option<u32> {
        match self.greeting() {
            Greeting::WithoutTls | Greeting::WithTls => Some(self.packet_len),
            Greeting::Unknown | Greeting::Error | Greeting::Foreign | Greeting::MysqlX => None,
        }
    }

    /// Whether the version string names `MariaDB`.
    #[must_use]
    #[inline(always)]
    pub const fn is_mariadb(&self) -> bool {
        self.matched == 7
    }

    /// Ends the reading of a version string that is longer than any server's: its capability
    /// flags stay unknown, so TLS counts as not offered.
    #[inline(always)]
    pub const fn give_up(&mut self) {
        self.finish(Greeting::WithoutTls);
    }

    #[inline(always)]
    const fn finish(&mut self, greeting: Greeting) {
        self.greeting = greeting as u8;
        self.state = state::DONE;
    }

    #[inline(always)]
    fn match_version_byte(&mut self, byte: u8) {
        if self.matched < 7 {
            // 'M' stands nowhere else in the name, so a mismatch can only restart at its first byte.
            let expected = match self.matched {
                0 => MARIADB[0],
                1 => MARIADB[1],
                2 => MARIADB[2],
                3 => MARIADB[3],
                4 => MARIADB[4],
                5 => MARIADB[5],
                _ => MARIADB[6],
            };
            self.matched = if byte == expected {
                self.matched + 1
            } else {
                u8::from(byte == MARIADB[0])
            };
        }
    }
}

impl Reader for GreetingReader {
    #[inline(always)]
    fn position(&self) -> u32 {
        self.position
    }

    #[inline(always)]
    fn is_done(&self) -> bool {
        self.state == state::DONE
    }

    #[inline(always)]
    fn take(&mut self, byte: u8) {
        self.position += 1;
        match self.state {
            state::LENGTH_0 => {
                self.packet_len = HEADER_LEN + byte as u32;
                self.state = state::LENGTH_1;
            }
            state::LENGTH_1 => {
                self.packet_len += (byte as u32) << 8;
                self.state = state::LENGTH_2;
            }
            state::LENGTH_2 => {
                self.packet_len += (byte as u32) << 16;
                self.state = state::SEQUENCE_ID;
            }
            state::SEQUENCE_ID if byte == 0 => self.state = state::PROTOCOL,
            state::PROTOCOL if byte == PROTOCOL_V10 => self.state = state::VERSION,
            state::PROTOCOL if byte == ERR => self.finish(Greeting::Error),
            state::PROTOCOL if byte == X_NOTICE && self.packet_len == X_HELLO_LEN => {
                self.finish(Greeting::MysqlX);
            }
            state::SEQUENCE_ID | state::PROTOCOL => self.finish(Greeting::Foreign),
            state::VERSION if byte == 0 => {
                self.position += AFTER_VERSION;
                self.state = state::FLAGS_LOW;
            }
            state::VERSION => self.match_version_byte(byte),
            state::FLAGS_LOW => self.state = state::FLAGS_HIGH,
            state::FLAGS_HIGH => self.finish(if byte & FLAGS_HIGH_SSL == 0 {
                Greeting::WithoutTls
            } else {
                Greeting::WithTls
            }),
            _ => {}
        }
    }
}

/// How long the auth response of a login is, told by the byte behind the user name.
///
/// Only the place of what follows is wanted: the auth response itself is never read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthResponse {
    /// What follows starts this many bytes behind the user name's NUL.
    Ends(u32),
    /// What follows cannot be found without reading the auth response.
    Opaque,
}

/// Finds the end of the auth response in a `Protocol::HandshakeResponse41` with flags `caps`;
/// `length` is the byte behind the user name's NUL.
#[must_use]
#[inline(always)]
pub const fn auth_response(caps: u32, length: u8) -> AuthResponse {
    // A length-encoded integer of one byte is below 0xfb ("Protocol::LengthEncodedInteger").
    let lenenc = caps & CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA != 0 && length < 0xfb;
    let one_byte =
        caps & CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA == 0 && caps & CLIENT_SECURE_CONNECTION != 0;
    if lenenc || one_byte {
        AuthResponse::Ends(1 + length as u32)
    } else {
        AuthResponse::Opaque
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::stream::advance;
    use std::vec::Vec;

    fn greeting(version: &str, offers_tls: bool) -> Vec<u8> {
        let mut payload = Vec::from([PROTOCOL_V10]);
        payload.extend(version.as_bytes());
        payload.push(0);
        payload.extend([1, 0, 0, 0]);
        payload.extend(*b"scramble");
        payload.push(0);
        payload.extend([0xff, if offers_tls { 0xff } else { 0xf7 }]);
        payload.extend([45, 2, 0, 0xff, 0xff, 21]);
        payload.extend([0; 10]);
        payload.extend(*b"twelve chars\0caching_sha2_password\0");
        let mut packet = Vec::from([payload.len() as u8, 0, 0, 0]);
        packet.extend(payload);
        packet
    }

    fn read(bytes: &[u8], cuts: &[usize]) -> GreetingReader {
        let mut reader = GreetingReader::default();
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            assert!(advance(
                &mut reader,
                from as u32,
                to as u32,
                GREETING_STEPS,
                |at| bytes.get(at as usize).copied()
            ));
            from = to;
        }
        reader
    }

    #[test]
    fn tls_offer_and_length_are_read() {
        for (version, mariadb) in [
            ("9.7.4", false),
            ("8.0.36-28", false),
            ("5.5.5-10.11.19-MariaDB-0+deb12u1", true),
            ("11.8.3-MariaDB", true),
            ("MMariaDB", true),
            ("5.7.44-MariaDBless", true),
            ("5.7.44-Maria", false),
        ] {
            for offers_tls in [false, true] {
                let bytes = greeting(version, offers_tls);
                let reader = read(&bytes, &[]);
                let expected = if offers_tls {
                    Greeting::WithTls
                } else {
                    Greeting::WithoutTls
                };
                assert_eq!(reader.greeting(), expected, "{version}");
                assert_eq!(reader.packet_len(), Some(bytes.len() as u32));
                assert_eq!(reader.is_mariadb(), mariadb, "{version}");
            }
        }
    }

    #[test]
    fn every_cut_gives_the_same_answer() {
        let bytes = greeting("5.5.5-10.11.19-MariaDB", true);
        let whole = read(&bytes, &[]);
        for first in 0..bytes.len() {
            assert_eq!(read(&bytes, &[first]), whole, "cut at {first}");
        }
        let each: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(read(&bytes, &each), whole);
    }

    #[test]
    fn every_prefix_is_unknown_until_the_flags_are_seen() {
        let bytes = greeting("9.7.4", true);
        let flags_end = 5 + 6 + 13 + 2;
        for len in 0..bytes.len() {
            let expected = if len < flags_end {
                Greeting::Unknown
            } else {
                Greeting::WithTls
            };
            assert_eq!(read(&bytes[..len], &[]).greeting(), expected, "{len} bytes");
        }
    }

    #[test]
    fn an_error_instead_of_the_greeting_is_told() {
        assert_eq!(
            read(&[0x45, 0, 0, 0, 0xff, 0x69, 0x04], &[]).greeting(),
            Greeting::Error
        );
    }

    #[test]
    fn other_protocols_are_foreign() {
        let mysqlx_notice = [0x05, 0, 0, 0, 0x0b, 0x08, 0x05, 0x1a, 0x00];
        assert_eq!(read(&mysqlx_notice, &[]).greeting(), Greeting::MysqlX);
        let long_notice = [0x06, 0, 0, 0, 0x0b, 0x08, 0x05, 0x1a, 0x00];
        for first in [&long_notice[..], b"HTTP/1.1 200 OK", b"SSH-2.0-OpenSSH"] {
            assert_eq!(read(first, &[]).greeting(), Greeting::Foreign, "{first:x?}");
        }
    }

    #[test]
    fn refusal_lengths_are_those_of_the_reference_packets() {
        assert_eq!(REFUSAL_LEN_41, 4 + 0x61);
        assert_eq!(REFUSAL_LEN_320, 4 + 0x5b);
    }

    #[test]
    fn auth_responses_are_passed_over() {
        let plugin =
            CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION | CLIENT_PLUGIN_AUTH_LENENC_CLIENT_DATA;
        assert_eq!(auth_response(plugin, 32), AuthResponse::Ends(33));
        assert_eq!(auth_response(plugin, 0xfc), AuthResponse::Opaque);
        assert_eq!(
            auth_response(CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION, 0xfc),
            AuthResponse::Ends(0xfd)
        );
        assert_eq!(auth_response(CLIENT_PROTOCOL_41, 20), AuthResponse::Opaque);
    }
}
