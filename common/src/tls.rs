//! The server's first TLS flight: proof that it speaks TLS, the version and the cipher suite.
//!
//! Sources: RFC 8446 sections 5.1 (record), 4 (handshake), 4.1.3 (`ServerHello`),
//! 4.1.4 (`HelloRetryRequest`, the same structure), 4.2.1 (`supported_versions`); RFC 5246
//! section 7.4.1.3 for TLS 1.2 and earlier. All of it travels in the clear.

use crate::stream::Reader;

/// `ContentType.handshake` (RFC 8446 section 5.1).
pub const CONTENT_HANDSHAKE: u8 = 0x16;
/// `ContentType.alert`.
pub const CONTENT_ALERT: u8 = 0x15;
/// `HandshakeType.client_hello` (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 0x01;
/// `HandshakeType.server_hello`.
const SERVER_HELLO: u8 = 0x02;
/// `ExtensionType.supported_versions` (RFC 8446 section 4.2).
pub const SUPPORTED_VERSIONS: u16 = 0x002b;

/// `ProtocolVersion` of TLS 1.0.
pub const TLS_1_0: u16 = 0x0301;
/// `ProtocolVersion` of TLS 1.1.
pub const TLS_1_1: u16 = 0x0302;
/// `ProtocolVersion` of TLS 1.2.
pub const TLS_1_2: u16 = 0x0303;
/// `ProtocolVersion` of TLS 1.3.
pub const TLS_1_3: u16 = 0x0304;

/// Whether these are the first bytes of a handshake record of TLS 1.0 or later, as a client sends it (RFC 8446 section
/// 5.1, `legacy_record_version`).
#[must_use]
#[inline(always)]
pub const fn begins_handshake(content_type: u8, major: u8, minor: u8) -> bool {
    content_type == CONTENT_HANDSHAKE && major == 3 && minor >= 1 && minor <= 4
}

/// Whether a record that begins with these bytes, the last of which is its sixth, begins as that of a `ClientHello` does
/// (RFC 8446 section 4).
#[must_use]
#[inline(always)]
pub const fn begins_client_hello(content_type: u8, major: u8, minor: u8, kind: u8) -> bool {
    begins_handshake(content_type, major, minor) && kind == CLIENT_HELLO
}

/// Upper bound of [`Reader::take`] calls for one `ServerHello`: 13 bytes up to the extensions, then four for
/// the header of each of at most eight extensions, and the two of the version.
pub const SERVER_HELLO_STEPS: u32 = 48;

/// Where the reader stands.
mod state {
    pub(super) const CONTENT_TYPE: u8 = 0;
    pub(super) const RECORD_MAJOR: u8 = 1;
    pub(super) const RECORD_MINOR: u8 = 2;
    pub(super) const HANDSHAKE_TYPE: u8 = 3;
    pub(super) const HELLO_HIGH: u8 = 4;
    pub(super) const HELLO_LOW: u8 = 5;
    pub(super) const VERSION_HIGH: u8 = 6;
    pub(super) const VERSION_LOW: u8 = 7;
    pub(super) const SESSION_ID_LEN: u8 = 8;
    pub(super) const CIPHER_HIGH: u8 = 9;
    pub(super) const CIPHER_LOW: u8 = 10;
    pub(super) const EXTENSIONS_HIGH: u8 = 11;
    pub(super) const EXTENSIONS_LOW: u8 = 12;
    pub(super) const TYPE_HIGH: u8 = 13;
    pub(super) const TYPE_LOW: u8 = 14;
    pub(super) const LEN_HIGH: u8 = 15;
    pub(super) const LEN_LOW: u8 = 16;
    pub(super) const SELECTED_HIGH: u8 = 17;
    pub(super) const SELECTED_LOW: u8 = 18;
    pub(super) const DONE: u8 = 19;
    pub(super) const NOT_TLS: u8 = 20;
}

/// Reads the bytes that follow the greeting in the server's stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServerHelloReader {
    /// Offset in the server's stream of the next byte that is wanted.
    position: u32,
    /// Offset just behind the message, then behind the extensions.
    end: u32,
    /// `ProtocolVersion`, 0 until read. TLS 1.3 says 0x0303 here until `supported_versions` is read.
    version: u16,
    /// Cipher suite (IANA number), 0 until read.
    cipher: u16,
    /// High byte of a number whose low byte comes next.
    high: u8,
    state: u8,
    /// Type of the extension being read.
    extension: u16,
}

impl ServerHelloReader {
    /// A reader whose flight begins at `start` in the server's stream.
    #[must_use]
    #[inline(always)]
    pub const fn at(start: u32) -> Self {
        Self {
            position: start,
            end: 0,
            version: 0,
            cipher: 0,
            high: 0,
            state: state::CONTENT_TYPE,
            extension: 0,
        }
    }

    /// Whether the record header and the handshake type were those of a `ServerHello`: the server
    /// speaks TLS.
    #[must_use]
    #[inline(always)]
    pub const fn is_proof(&self) -> bool {
        self.state > state::HANDSHAKE_TYPE && self.state != state::NOT_TLS
    }

    /// Whether the flight cannot be a `ServerHello`.
    #[must_use]
    #[inline(always)]
    pub const fn is_not_tls(&self) -> bool {
        self.state == state::NOT_TLS
    }

    /// The negotiated version, `ProtocolVersion` of RFC 8446; 0 when not read.
    #[must_use]
    #[inline(always)]
    pub const fn version(&self) -> u16 {
        self.version
    }

    /// The cipher suite, IANA number; 0 when not read.
    #[must_use]
    #[inline(always)]
    pub const fn cipher(&self) -> u16 {
        self.cipher
    }

    #[inline(always)]
    const fn number(&self, low: u8) -> u16 {
        u16::from_be_bytes([self.high, low])
    }

    /// The next extension, or the end.
    #[inline(always)]
    const fn extension_or_end(&mut self) {
        self.state = if self.position >= self.end {
            state::DONE
        } else {
            state::TYPE_HIGH
        };
    }
}

impl Reader for ServerHelloReader {
    #[inline(always)]
    fn position(&self) -> u32 {
        self.position
    }

    #[inline(always)]
    fn is_done(&self) -> bool {
        self.state >= state::DONE
    }

    #[inline(always)]
    fn take(&mut self, byte: u8) {
        self.position += 1;
        match self.state {
            state::CONTENT_TYPE if byte == CONTENT_HANDSHAKE => self.state = state::RECORD_MAJOR,
            state::RECORD_MAJOR if byte == 0x03 => self.state = state::RECORD_MINOR,
            state::RECORD_MINOR if byte <= 0x04 => {
                self.position += 2; // record length
                self.state = state::HANDSHAKE_TYPE;
            }
            state::HANDSHAKE_TYPE if byte == SERVER_HELLO => {
                self.position += 1; // highest byte of the length: a record holds less
                self.state = state::HELLO_HIGH;
            }
            state::CONTENT_TYPE..=state::HANDSHAKE_TYPE => self.state = state::NOT_TLS,
            state::HELLO_LOW => {
                self.end = self.position + self.number(byte) as u32;
                self.state = state::VERSION_HIGH;
            }
            state::VERSION_LOW => {
                self.version = self.number(byte);
                self.position += 32; // random
                self.state = state::SESSION_ID_LEN;
            }
            state::SESSION_ID_LEN => {
                self.position += byte as u32;
                self.state = state::CIPHER_HIGH;
            }
            state::CIPHER_LOW => {
                self.cipher = self.number(byte);
                self.position += 1; // compression method
                // Before TLS 1.3 there need be no extensions (RFC 5246 section 7.4.1.3). What follows is another message.
                self.state = if self.position >= self.end {
                    state::DONE
                } else {
                    state::EXTENSIONS_HIGH
                };
            }
            state::EXTENSIONS_LOW => {
                self.end = self.position + self.number(byte) as u32;
                self.extension_or_end();
            }
            state::TYPE_LOW => {
                self.extension = self.number(byte);
                self.state = state::LEN_HIGH;
            }
            state::LEN_LOW => {
                if self.extension == SUPPORTED_VERSIONS {
                    self.state = state::SELECTED_HIGH;
                } else {
                    self.position += self.number(byte) as u32;
                    self.extension_or_end();
                }
            }
            state::SELECTED_LOW => {
                self.version = self.number(byte);
                self.state = state::DONE;
            }
            _ => {
                // The high byte of a number: each such state is followed by that of the low byte.
                self.high = byte;
                self.state += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::advance;

    /// A `ServerHello` of OpenSSL 3.0: TLS 1.3, `TLS_AES_256_GCM_SHA384`.
    fn server_hello(version_extension: Option<u16>, key_share_first: bool) -> std::vec::Vec<u8> {
        let mut extensions = std::vec::Vec::new();
        let key_share = [
            &[0x00, 0x33, 0x00, 0x24, 0x00, 0x1d, 0x00, 0x20][..],
            &[7; 32],
        ]
        .concat();
        if key_share_first {
            extensions.extend(&key_share);
        }
        if let Some(version) = version_extension {
            extensions.extend([0x00, 0x2b, 0x00, 0x02]);
            extensions.extend(version.to_be_bytes());
        }
        if !key_share_first {
            extensions.extend(&key_share);
        }
        let mut body = std::vec::Vec::from([0x03, 0x03]);
        body.extend([0xaa; 32]);
        body.push(32);
        body.extend([0xbb; 32]);
        body.extend([0x13, 0x02, 0x00]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut record = std::vec::Vec::from([0x16, 0x03, 0x03]);
        record.extend((body.len() as u16 + 4).to_be_bytes());
        record.extend([0x02, 0x00]);
        record.extend((body.len() as u16).to_be_bytes());
        record.extend(body);
        record
    }

    fn read(bytes: &[u8], cuts: &[usize]) -> ServerHelloReader {
        const START: u32 = 100;
        let mut reader = ServerHelloReader::at(START);
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            let done = advance(
                &mut reader,
                START + from as u32,
                START + to as u32,
                SERVER_HELLO_STEPS,
                |at| bytes.get((at - START) as usize).copied(),
            );
            assert!(done, "more than SERVER_HELLO_STEPS");
            from = to;
        }
        reader
    }

    #[test]
    fn tls_1_3_is_told_by_supported_versions_wherever_it_stands() {
        for key_share_first in [false, true] {
            let reader = read(&server_hello(Some(TLS_1_3), key_share_first), &[]);
            assert!(reader.is_proof() && reader.is_done());
            assert_eq!((reader.version(), reader.cipher()), (TLS_1_3, 0x1302));
        }
    }

    #[test]
    fn without_the_extension_the_legacy_version_counts() {
        let reader = read(&server_hello(None, false), &[]);
        assert_eq!((reader.version(), reader.cipher()), (0x0303, 0x1302));
    }

    #[test]
    fn without_any_extension_the_message_ends_behind_the_compression_method() {
        let mut bytes = server_hello(None, false);
        let extensions = 2 + 40;
        bytes.truncate(bytes.len() - extensions);
        bytes[4] -= extensions as u8;
        bytes[8] -= extensions as u8;
        for next in [&[][..], &[0x16, 3, 3, 4, 0, 0x0b, 0, 3]] {
            let reader = read(&[&bytes[..], next].concat(), &[]);
            assert!(reader.is_done(), "{next:x?}");
            assert_eq!((reader.version(), reader.cipher()), (0x0303, 0x1302));
        }
        for len in 0..bytes.len() - 1 {
            assert!(!read(&bytes[..len], &[]).is_done(), "{len} bytes");
        }
    }

    #[test]
    fn every_cut_gives_the_same_answer() {
        let bytes = server_hello(Some(TLS_1_3), true);
        let whole = read(&bytes, &[]);
        for first in 0..bytes.len() {
            assert_eq!(read(&bytes, &[first]), whole, "cut at {first}");
        }
        let each: std::vec::Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(read(&bytes, &each), whole);
    }

    #[test]
    fn six_bytes_prove_tls() {
        let bytes = server_hello(Some(TLS_1_3), false);
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len], &[]).is_proof(), len >= 6, "{len} bytes");
        }
    }

    #[test]
    fn a_mysql_packet_is_no_proof() {
        let ok = [0x07, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0];
        let of_length_22 = [0x16, 0, 0, 2, 0xff, 0x13, 0x04];
        for packet in [&ok[..], &of_length_22[..]] {
            assert!(read(packet, &[]).is_not_tls(), "{packet:x?}");
        }
    }

    extern crate std;
}
