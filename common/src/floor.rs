//! The TLS floor: which TLS is good enough, and what a client's `ClientHello` offers.
//!
//! The server's `ServerHello` decides ([`shortfall`]). A `ClientHello` that offers nothing good enough is refused
//! before the server answers ([`shortfall_of_offer`]): earlier and with a plainer error, and never the other way
//! round, since a client can send two copies of it that say different things.
//!
//! Sources: RFC 8446 sections 4.1.2 (`ClientHello`), 4.2.1 (`supported_versions`), 6.2 (alerts); RFC 5246 section
//! 7.4.1.2 for TLS 1.2 and earlier; RFC 8701 (GREASE).

use crate::stream::Reader;
use crate::tls::{CONTENT_HANDSHAKE, SUPPORTED_VERSIONS, TLS_1_0, TLS_1_3};
use crate::verdict::Reason;

/// Length of an alert as a record of its own: type, version, length, level, description.
pub const ALERT_LEN: u32 = 7;

/// `AlertDescription` of a version that is refused (RFC 8446 section 6.2).
pub const ALERT_PROTOCOL_VERSION: u8 = 70;
/// `AlertDescription` where nothing acceptable is offered.
pub const ALERT_HANDSHAKE_FAILURE: u8 = 40;

/// What is wrong with a session that negotiated `version` and a cipher suite, of which `is_refused` says whether
/// policy refuses it. `None`: it is good enough.
#[must_use]
#[inline(always)]
pub const fn shortfall(version: u16, is_refused: bool, floor: u16) -> Option<Reason> {
    if version < floor {
        Some(Reason::TlsBelowFloor)
    } else if is_refused {
        Some(Reason::TlsCipherRefused)
    } else {
        None
    }
}

/// What is wrong with the offer in a `ClientHello`, all of which was read. `None`: the server may choose something that
/// is good enough.
#[must_use]
#[inline(always)]
pub const fn shortfall_of_offer(hello: &ClientHelloReader, floor: u16) -> Option<Reason> {
    // Clients that do not offer TLS 1.3 may name its cipher suites all the same.
    let newer = hello.version >= TLS_1_3 && hello.suites & SUITE_OF_1_3 != 0;
    let older = floor < TLS_1_3 && hello.suites & OLDER_SUITE != 0;
    shortfall(hello.version, !newer && !older, floor)
}

/// Whether a number in a list of cipher suites is one: there are signals among them (RFC 5746 section 3.3, RFC 7507
/// section 2), and numbers that only keep servers tolerant (RFC 8701).
#[must_use]
#[inline(always)]
pub const fn is_suite(number: u16) -> bool {
    const EMPTY_RENEGOTIATION_INFO_SCSV: u16 = 0x00ff;
    const FALLBACK_SCSV: u16 = 0x5600;
    number != EMPTY_RENEGOTIATION_INFO_SCSV && number != FALLBACK_SCSV && !is_grease(number)
}

/// `0a0a`, `1a1a` and so on to `fafa` (RFC 8701 section 2).
const fn is_grease(number: u16) -> bool {
    let [high, low] = number.to_be_bytes();
    high == low && low & 0x0f == 0x0a
}

/// In [`ClientHelloReader::suites`]: one of TLS 1.3 that is good enough, and one of an older version.
const SUITE_OF_1_3: u8 = 1;
const OLDER_SUITE: u8 = 2;

/// Whether a cipher suite is one of TLS 1.3 (RFC 8446 appendix B.4, RFC 9150).
const fn is_of_1_3(suite: u16) -> bool {
    suite >> 8 == 0x13 || suite == 0xc0b4 || suite == 0xc0b5
}

mod state {
    pub(super) const CONTENT_TYPE: u8 = 0;
    pub(super) const RECORD_MAJOR: u8 = 1;
    pub(super) const RECORD_LEN_HIGH: u8 = 2;
    pub(super) const RECORD_LEN_LOW: u8 = 3;
    pub(super) const HANDSHAKE_TYPE: u8 = 4;
    pub(super) const LEN_HIGHEST: u8 = 5;
    pub(super) const LEN_HIGH: u8 = 6;
    pub(super) const LEN_LOW: u8 = 7;
    pub(super) const VERSION_HIGH: u8 = 8;
    pub(super) const VERSION_LOW: u8 = 9;
    pub(super) const SESSION_ID_LEN: u8 = 10;
    pub(super) const SUITES_HIGH: u8 = 11;
    pub(super) const SUITES_LOW: u8 = 12;
    pub(super) const SUITE_HIGH: u8 = 13;
    pub(super) const SUITE_LOW: u8 = 14;
    pub(super) const COMPRESSIONS_LEN: u8 = 15;
    pub(super) const EXTENSIONS_HIGH: u8 = 16;
    pub(super) const EXTENSIONS_LOW: u8 = 17;
    pub(super) const TYPE_HIGH: u8 = 18;
    pub(super) const TYPE_LOW: u8 = 19;
    pub(super) const EXTENSION_HIGH: u8 = 20;
    pub(super) const EXTENSION_LOW: u8 = 21;
    pub(super) const OFFERS_LEN: u8 = 22;
    pub(super) const OFFER_HIGH: u8 = 23;
    pub(super) const OFFER_LOW: u8 = 24;
    pub(super) const DONE: u8 = 25;
    /// Not to be followed, or not to be asked: the `ServerHello` decides.
    pub(super) const LEFT: u8 = 26;
}

/// Reads what a client sends behind its request for TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClientHelloReader {
    /// Offset in the client's stream of the next byte that is wanted.
    position: u32,
    /// Offset behind the list that is read: cipher suites, then extensions, then versions.
    end: u32,
    /// Offset behind the record.
    record_end: u32,
    /// The best version offered so far.
    version: u16,
    /// Type of the extension being read; the cipher suite that was just read.
    number: u16,
    /// High byte of a number whose low byte comes next.
    high: u8,
    state: u8,
    /// 1 when a cipher suite was just read.
    at_suite: u8,
    /// Which cipher suites are good enough: bits.
    suites: u8,
}

impl ClientHelloReader {
    /// A reader of a flight that begins at `start` in the client's stream.
    #[must_use]
    #[inline(always)]
    pub const fn at(start: u32) -> Self {
        Self {
            position: start,
            end: 0,
            record_end: 0,
            version: 0,
            number: 0,
            high: 0,
            state: state::CONTENT_TYPE,
            at_suite: 0,
            suites: 0,
        }
    }

    /// Whether it has begun.
    #[must_use]
    #[inline(always)]
    pub const fn has_begun(&self) -> bool {
        self.position != 0
    }

    /// Leaves the decision to the `ServerHello`.
    #[inline(always)]
    pub const fn leave(&mut self) {
        self.state = state::LEFT;
    }

    /// Whether all of an offer was read, and not left.
    #[must_use]
    #[inline(always)]
    pub const fn is_whole(&self) -> bool {
        self.state == state::DONE
    }

    /// The cipher suite that was just read.
    #[must_use]
    #[inline(always)]
    pub const fn suite(&self) -> Option<u16> {
        if self.at_suite != 0 && is_suite(self.number) {
            Some(self.number)
        } else {
            None
        }
    }

    /// That suite is good enough.
    #[inline(always)]
    pub const fn accept_suite(&mut self) {
        self.suites |= if is_of_1_3(self.number) {
            SUITE_OF_1_3
        } else {
            OLDER_SUITE
        };
    }

    /// The best version offered, `ProtocolVersion` of RFC 8446; 0 when not read.
    #[must_use]
    #[inline(always)]
    pub const fn version(&self) -> u16 {
        self.version
    }

    #[inline(always)]
    const fn low(&self, low: u8) -> u16 {
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

impl Reader for ClientHelloReader {
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
        const CLIENT_HELLO: u8 = 1;
        self.position += 1;
        self.at_suite = 0;
        match self.state {
            state::CONTENT_TYPE if byte == CONTENT_HANDSHAKE => self.state = state::RECORD_MAJOR,
            state::RECORD_MAJOR if byte == 3 => {
                self.position += 1; // minor
                self.state = state::RECORD_LEN_HIGH;
            }
            state::RECORD_LEN_LOW => {
                self.record_end = self.position + self.low(byte) as u32;
                self.state = state::HANDSHAKE_TYPE;
            }
            state::HANDSHAKE_TYPE if byte == CLIENT_HELLO => self.state = state::LEN_HIGHEST,
            // More than a record can hold.
            state::LEN_HIGHEST if byte == 0 => self.state = state::LEN_HIGH,
            // Cut over several records, it is not followed.
            state::LEN_LOW if self.position + self.low(byte) as u32 <= self.record_end => {
                self.state = state::VERSION_HIGH;
            }
            state::CONTENT_TYPE
            | state::RECORD_MAJOR
            | state::HANDSHAKE_TYPE
            | state::LEN_HIGHEST
            | state::LEN_LOW => self.leave(),
            state::VERSION_LOW => {
                self.version = self.low(byte);
                self.position += 32; // random
                self.state = state::SESSION_ID_LEN;
            }
            state::SESSION_ID_LEN => {
                self.position += byte as u32;
                self.state = state::SUITES_HIGH;
            }
            state::SUITES_LOW => {
                self.end = self.position + self.low(byte) as u32;
                self.state = if self.position >= self.end {
                    state::COMPRESSIONS_LEN
                } else {
                    state::SUITE_HIGH
                };
            }
            state::SUITE_LOW => {
                self.number = self.low(byte);
                self.at_suite = 1;
                self.state = if self.position >= self.end {
                    state::COMPRESSIONS_LEN
                } else {
                    state::SUITE_HIGH
                };
            }
            state::COMPRESSIONS_LEN => {
                self.position += byte as u32;
                // Before TLS 1.2 there need be no extensions (RFC 5246 section 7.4.1.2).
                self.state = if self.position >= self.record_end {
                    state::DONE
                } else {
                    state::EXTENSIONS_HIGH
                };
            }
            state::EXTENSIONS_LOW => {
                self.end = self.position + self.low(byte) as u32;
                self.extension_or_end();
            }
            state::TYPE_LOW => {
                self.number = self.low(byte);
                self.state = state::EXTENSION_HIGH;
            }
            state::EXTENSION_LOW => {
                if self.number == SUPPORTED_VERSIONS {
                    // From here on the legacy version is none (RFC 8446 section 4.2.1).
                    self.version = 0;
                    self.state = state::OFFERS_LEN;
                } else {
                    self.position += self.low(byte) as u32;
                    self.extension_or_end();
                }
            }
            state::OFFERS_LEN => {
                self.end = self.position + byte as u32;
                self.state = if byte < 2 {
                    state::LEFT
                } else {
                    state::OFFER_HIGH
                };
            }
            state::OFFER_LOW => {
                let offer = self.low(byte);
                if offer > self.version && matches!(offer, TLS_1_0..=TLS_1_3) {
                    self.version = offer;
                }
                self.state = if self.position >= self.end {
                    state::DONE
                } else {
                    state::OFFER_HIGH
                };
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
    extern crate std;
    use super::*;
    use crate::stream::step;
    use crate::tls::{TLS_1_1, TLS_1_2};
    use proptest::prelude::*;
    use std::vec::Vec;

    const REFUSED: u16 = 0x000a;
    const START: u32 = 36;

    struct Hello {
        legacy_version: u16,
        suites: Vec<u16>,
        /// `None`: no extensions at all.
        versions: Option<Vec<u16>>,
        extension_before: usize,
    }

    impl Hello {
        fn bytes(&self) -> Vec<u8> {
            let mut body = self.legacy_version.to_be_bytes().to_vec();
            body.extend([0xaa; 32]);
            body.push(32);
            body.extend([0xbb; 32]);
            body.extend((self.suites.len() as u16 * 2).to_be_bytes());
            body.extend(self.suites.iter().flat_map(|suite| suite.to_be_bytes()));
            body.extend([1, 0]);
            if let Some(versions) = &self.versions {
                let mut extensions = Vec::from([0x00, 0x00]);
                extensions.extend((self.extension_before as u16).to_be_bytes());
                extensions.extend(std::vec![7; self.extension_before]);
                if !versions.is_empty() {
                    let list = versions.len() as u8 * 2;
                    extensions.extend([0x00, 0x2b, 0x00, list + 1, list]);
                    extensions.extend(versions.iter().flat_map(|version| version.to_be_bytes()));
                }
                extensions.extend([0x00, 0x33, 0x00, 0x02, 0xcc, 0xcc]);
                body.extend((extensions.len() as u16).to_be_bytes());
                body.extend(extensions);
            }
            let mut record = Vec::from([0x16, 0x03, 0x01]);
            record.extend((body.len() as u16 + 4).to_be_bytes());
            record.extend([0x01, 0x00]);
            record.extend((body.len() as u16).to_be_bytes());
            record.extend(body);
            record
        }
    }

    fn modern() -> Hello {
        Hello {
            legacy_version: TLS_1_2,
            suites: Vec::from([0x1302, 0x1301, 0xc030, 0x00ff]),
            versions: Some(Vec::from([0x5a5a, TLS_1_3, TLS_1_2])),
            extension_before: 40,
        }
    }

    /// As the gate does: whatever is in the segment, suite by suite.
    fn feed(reader: &mut ClientHelloReader, bytes: &[u8], from: usize, to: usize) {
        while step(reader, START + from as u32, START + to as u32, |at| {
            bytes.get((at - START) as usize).copied()
        }) {
            if reader.suite().is_some_and(|suite| suite != REFUSED) {
                reader.accept_suite();
            }
        }
    }

    fn read(bytes: &[u8], cuts: &[usize]) -> ClientHelloReader {
        let mut reader = ClientHelloReader::at(START);
        let mut from = 0;
        for &to in cuts.iter().chain([&bytes.len()]) {
            feed(&mut reader, bytes, from, to);
            from = to;
        }
        reader
    }

    fn whole(hello: &Hello) -> ClientHelloReader {
        let reader = read(&hello.bytes(), &[]);
        assert!(reader.is_whole(), "{reader:?}");
        reader
    }

    #[test]
    fn the_best_version_is_that_of_the_extension() {
        assert_eq!(whole(&modern()).version(), TLS_1_3);
        let without = Hello {
            versions: Some(Vec::new()),
            ..modern()
        };
        assert_eq!(whole(&without).version(), TLS_1_2);
        let lower = Hello {
            versions: Some(Vec::from([TLS_1_1, 0x0301])),
            ..modern()
        };
        assert_eq!(whole(&lower).version(), TLS_1_1);
        let drafts = Hello {
            versions: Some(Vec::from([0x7f1c, 0x0305])),
            ..modern()
        };
        assert_eq!(whole(&drafts).version(), 0);
    }

    #[test]
    fn a_hello_without_extensions_is_whole() {
        let old = Hello {
            legacy_version: 0x0301,
            versions: None,
            ..modern()
        };
        assert_eq!(whole(&old).version(), 0x0301);
    }

    #[test]
    fn signals_and_refused_suites_are_no_offer() {
        for suites in [
            &[REFUSED][..],
            &[0x00ff, 0x5600, REFUSED, 0x1a1a, 0xfafa],
            &[],
        ] {
            let hello = Hello {
                suites: suites.to_vec(),
                ..modern()
            };
            assert_eq!(
                shortfall_of_offer(&whole(&hello), TLS_1_0),
                Some(Reason::TlsCipherRefused),
                "{suites:x?}"
            );
        }
        assert!(is_suite(0x0a1a) && is_suite(0x1301));
    }

    #[test]
    fn every_cut_gives_the_same_answer() {
        let bytes = modern().bytes();
        let whole = read(&bytes, &[]);
        for first in 0..bytes.len() {
            assert_eq!(read(&bytes, &[first]), whole, "cut at {first}");
        }
        let each: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(read(&bytes, &each), whole);
    }

    #[test]
    fn what_cannot_be_followed_is_left() {
        let changed = |at: usize, byte: u8| {
            let mut bytes = modern().bytes();
            bytes[at] = byte;
            bytes
        };
        for (what, bytes) in [
            ("an alert", changed(0, 0x15)),
            ("SSL 2.0", changed(0, 0x80)),
            ("another message", changed(5, 2)),
            ("more than a record", changed(6, 1)),
            ("cut over records", changed(4, 20)),
        ] {
            let reader = read(&bytes, &[]);
            assert!(reader.is_done() && !reader.is_whole(), "{what}");
        }
    }

    #[test]
    fn a_beginning_is_not_whole() {
        let bytes = modern().bytes();
        // The list of versions ends before the last extension, of six bytes.
        for len in 0..bytes.len() - 6 {
            assert!(!read(&bytes[..len], &[]).is_whole(), "{len} bytes");
        }
    }

    #[test]
    fn a_segment_that_is_missing_stops_it() {
        let bytes = modern().bytes();
        let mut reader = ClientHelloReader::at(START);
        feed(&mut reader, &bytes, 0, 20);
        feed(&mut reader, &bytes, 60, bytes.len());
        assert!(!reader.is_done());
    }

    #[test]
    fn the_floor_is_the_lowest_that_is_good_enough() {
        assert_eq!(shortfall(TLS_1_2, false, TLS_1_2), None);
        assert_eq!(
            shortfall(TLS_1_1, true, TLS_1_2),
            Some(Reason::TlsBelowFloor)
        );
        assert_eq!(
            shortfall(TLS_1_3, true, TLS_1_2),
            Some(Reason::TlsCipherRefused)
        );
    }

    #[test]
    fn a_suite_counts_only_with_a_version_that_has_it() {
        let refusal = |suites: &[u16], versions: &[u16], floor| {
            let hello = Hello {
                suites: suites.to_vec(),
                versions: Some(versions.to_vec()),
                ..modern()
            };
            shortfall_of_offer(&whole(&hello), floor)
        };
        let refused = Some(Reason::TlsCipherRefused);
        assert_eq!(refusal(&[0x1301, REFUSED], &[TLS_1_2], TLS_1_2), refused);
        assert_eq!(refusal(&[0x1301, 0xc030], &[TLS_1_2], TLS_1_2), None);
        assert_eq!(refusal(&[0xc030], &[TLS_1_3, TLS_1_2], TLS_1_3), refused);
        assert_eq!(refusal(&[0xc030], &[TLS_1_3, TLS_1_2], TLS_1_2), None);
        assert_eq!(refusal(&[0x1301], &[TLS_1_3], TLS_1_3), None);
        assert_eq!(
            refusal(&[0x1301, 0xc030], &[TLS_1_2], TLS_1_3),
            Some(Reason::TlsBelowFloor)
        );
    }

    proptest! {
        /// Whatever a client sends: the reader goes on, and ends or waits.
        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..600), changes in prop::collection::vec((0usize..200, any::<u8>()), 0..4)) {
            read(&bytes, &[]);
            let mut hello = modern().bytes();
            for (at, byte) in changes {
                let len = hello.len();
                hello[at % len] = byte;
            }
            read(&hello, &[]);
        }

        /// An offer of good enough TLS is never taken for another.
        #[test]
        fn an_honest_offer_is_good_enough(before in 0usize..300, more in prop::collection::vec(any::<u16>(), 0..100), place in 0usize..100) {
            let mut suites = more;
            suites.insert(place.min(suites.len()), 0x1301);
            let hello = Hello { suites, extension_before: before, ..modern() };
            prop_assert_eq!(shortfall_of_offer(&whole(&hello), TLS_1_3), None);
        }
    }
}
