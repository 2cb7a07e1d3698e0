//! PROXY protocol headers, with which a proxy names the client before the client's own first byte.
//!
//! Source: "The PROXY protocol, Versions 1 & 2" (`HAProxy`, doc/proxy-protocol.txt), sections 2.1 and 2.2. Where a
//! header ends decides where the login begins, so only headers are taken on whose end all servers agree:
//!
//! | server | takes | a header ends |
//! |---|---|---|
//! | `MariaDB` from 10.3 (`sql/proxy_protocol.cc`) | any number, before the login; the first four bytes tell | version 1: behind the first `\n`, 255 bytes at most; version 2: by its length, 256 bytes at most |
//! | Percona Server (`vio/viosocket.cc`) | one, before its greeting | version 1: behind the first `\r`, which `\n` must follow, in 108 bytes; version 2: by its length, 108 bytes at most |
//! | `MySQL` | none: error 1156 | - |
//!
//! `MariaDB` takes what one `read` gives for a header of version 2. So each header must reach the server in one
//! segment, else it would read another length than the client sent.
//!
//! No header can be a login: its byte at offset 3 is `X` or 0x0a, never the sequence id 1.

use crate::addr::v4_mapped;
use crate::judge::Segment;
use crate::mysql::FLAGS_HIGH_OFFSET;

/// Most headers of a session: a chain of proxies. Servers take any number.
pub const HEADERS: usize = 4;
/// Longest header of version 1, line end included (section 2.1).
const LINE_MAX: u16 = 107;
/// Longest header of version 2 that `MariaDB` takes.
const BINARY_MAX: u16 = 256;
/// Most bytes of a session's headers.
pub const HEADERS_MAX: u32 = HEADERS as u32 * BINARY_MAX as u32;
/// Length of a header of version 2 without addresses (section 2.2).
const BINARY_MIN: u16 = 16;

/// The client that a header names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Proxied {
    /// Its address, IPv4 as IPv4-mapped; zeros if the header names none.
    pub addr: [u8; 16],
    /// Its port, host byte order.
    pub port: u16,
    /// A [`Source`].
    pub source: u8,
    /// 1 when the peer is a trusted proxy.
    pub trusted: u8,
}

impl Proxied {
    /// Whether a header names an address.
    #[must_use]
    #[inline(always)]
    pub const fn has_address(&self) -> bool {
        self.source == Source::Address as u8
    }
}

/// What a session's first header says of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Source {
    /// There is no header.
    Direct = 0,
    /// `UNKNOWN`, `LOCAL`, or a family without IP addresses: the peer itself counts.
    Peer = 1,
    /// An address.
    Address = 2,
}

/// What a place in the client's stream holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// No header.
    Other,
    /// The start of a header, or of what may become one; the segment ends in it.
    Cut,
    /// A header.
    Header,
}

/// What was read at a place in the client's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub parsed: Parsed,
    /// The length of a header; else without meaning.
    pub len: u16,
    /// What a header says of the client.
    pub proxied: Proxied,
}

/// Bytes of a header in which all stands that it says of the client.
pub const WINDOW: usize = 128;

/// No `::` so far.
const NO_GAP: u8 = 0xff;
/// More than an octet of an IPv4 address can be.
const NO_OCTET: u16 = 999;
/// Where the family stands in a header of version 1, and the client's address.
const FAMILY_AT: usize = 6;
const ADDRESS_AT: usize = 11;
/// Longest IPv6 address as text (`INET6_ADDRSTRLEN` less its NUL) and the space behind it.
const ADDRESS_STEPS: u32 = 46;
/// The server's address and the client's port, each with the space behind it.
const PORT_STEPS: u32 = ADDRESS_STEPS + 6;

/// Reads one header. All that changes while it reads stands in here, in a map, so that the verifier can treat all
/// rounds of a loop alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct HeaderReader {
    /// What it says of the client.
    proxied: Proxied,
    /// Offset in the header of the next byte.
    position: u16,
    /// Length of the header.
    len: u16,
    /// A group of an address as a hexadecimal number, and as a decimal one.
    word: u16,
    decimal: u16,
    /// 4 or 6.
    family: u8,
    /// Where the next byte of the address goes.
    place: u8,
    /// Digits of the group so far.
    digits: u8,
    /// Where `::` stood, or [`NO_GAP`].
    gap: u8,
    /// Dots of the address so far.
    dots: u8,
    /// 1 when the byte before was a colon.
    colon: u8,
    /// 1 when this is no header after all.
    wrong: u8,
    /// How many spaces stood behind the client's address.
    spaces: u8,
}

impl HeaderReader {
    /// Length of the header, if it is one.
    #[must_use]
    #[inline(always)]
    pub const fn header_len(&self) -> u16 {
        self.len
    }

    /// What the header says of the client.
    #[must_use]
    #[inline(always)]
    pub const fn proxied(&self) -> &Proxied {
        &self.proxied
    }

    /// Reads the header that `window` begins with, of which the segment holds `available` bytes. `fence` is called in
    /// each round of a loop: the gate's makes the compiler write this reader back to its map.
    #[inline(always)]
    pub fn read(
        &mut self,
        window: &[u8; WINDOW],
        available: u32,
        fence: impl Fn(*mut Self),
    ) -> Parsed {
        let [b0, b1, b2, b3, ..] = *window;
        *self = Self::default();
        if available < 4 {
            let begins = |sign: [u8; 3]| {
                b0 == sign[0]
                    && (available < 2 || b1 == sign[1])
                    && (available < 3 || b2 == sign[2])
            };
            return if begins(*b"PRO") || begins(*b"\r\n\r") {
                Parsed::Cut
            } else {
                Parsed::Other
            };
        }
        match &[b0, b1, b2, b3] {
            b"PROX" => self.line(window, available, fence),
            b"\r\n\r\n" => self.binary(window, available),
            _ => Parsed::Other,
        }
    }

    /// A header of version 2.
    #[inline(always)]
    fn binary(&mut self, window: &[u8; WINDOW], available: u32) -> Parsed {
        if available < BINARY_MIN as u32 {
            return Parsed::Cut;
        }
        let [
            _,
            _,
            _,
            _,
            0,
            b'\r',
            b'\n',
            b'Q',
            b'U',
            b'I',
            b'T',
            b'\n',
            command @ 0x20..=0x21,
            family,
            high,
            low,
            rest @ ..,
        ] = window
        else {
            return Parsed::Other;
        };
        let behind = u16::from_be_bytes([*high, *low]);
        if behind > BINARY_MAX - BINARY_MIN {
            return Parsed::Other;
        }
        self.len = BINARY_MIN + behind;
        self.proxied.source = Source::Peer as u8;
        if *command == 0x21 {
            match *family {
                FAMILY_UNSPECIFIED | FAMILY_UNIX => {}
                FAMILY_V4 if behind >= 12 => {
                    let [a, b, c, d, _, _, _, _, high, low, ..] = *rest;
                    self.proxied.addr = v4_mapped([a, b, c, d]);
                    self.proxied.port = u16::from_be_bytes([high, low]);
                    self.proxied.source = Source::Address as u8;
                }
                FAMILY_V6 if behind >= 36 => {
                    if let (Some(addr), Some(port)) = (
                        rest.first_chunk(),
                        rest.get(32..34).and_then(<[u8]>::first_chunk),
                    ) {
                        self.proxied.addr = *addr;
                        self.proxied.port = u16::from_be_bytes(*port);
                    }
                    self.proxied.source = Source::Address as u8;
                }
                _ => return Parsed::Other,
            }
        }
        if self.len as u32 <= available {
            Parsed::Header
        } else {
            Parsed::Cut
        }
    }

    /// A header of version 1.
    #[inline(always)]
    fn line(&mut self, window: &[u8; WINDOW], available: u32, fence: impl Fn(*mut Self)) -> Parsed {
        self.position = FAMILY_AT as u16;
        let mut step = 0;
        while step < LINE_MAX {
            fence(self);
            if self.position as u32 >= available || !matches!(self.byte(window), b' '..=b'~') {
                break;
            }
            self.position += 1;
            step += 1;
        }
        fence(self);
        if self.position > LINE_MAX - 2 {
            return Parsed::Other;
        }
        if self.position as u32 >= available {
            return Parsed::Cut;
        }
        if self.byte(window) != b'\r' {
            return Parsed::Other;
        }
        self.position += 1;
        if self.position as u32 >= available {
            return Parsed::Cut;
        }
        if self.byte(window) != b'\n' {
            return Parsed::Other;
        }
        self.len = self.position + 1;
        self.proxied.source = Source::Peer as u8;
        match window {
            [
                _,
                _,
                _,
                _,
                b'Y',
                b' ',
                b'U',
                b'N',
                b'K',
                b'N',
                b'O',
                b'W',
                b'N',
                b' ' | b'\r',
                ..,
            ] => Parsed::Header,
            [
                _,
                _,
                _,
                _,
                b'Y',
                b' ',
                b'T',
                b'C',
                b'P',
                family @ (b'4' | b'6'),
                b' ',
                ..,
            ] => {
                self.family = *family - b'0';
                self.address(window, fence)
            }
            _ => Parsed::Other,
        }
    }

    /// The byte at `position`.
    #[inline(always)]
    fn byte(&self, window: &[u8; WINDOW]) -> u8 {
        window.get(self.position as usize).copied().unwrap_or(0)
    }

    /// The client's address and port.
    #[inline(always)]
    fn address(&mut self, window: &[u8; WINDOW], fence: impl Fn(*mut Self)) -> Parsed {
        self.position = ADDRESS_AT as u16;
        self.gap = NO_GAP;
        if self.family == 4 {
            self.proxied.addr = v4_mapped([0; 4]);
            self.place = 12;
        }
        let mut step = 0;
        while step < ADDRESS_STEPS {
            fence(self);
            let byte = self.byte(window);
            if byte == b' ' || self.wrong != 0 {
                break;
            }
            self.position += 1;
            self.character(byte);
            step += 1;
        }
        fence(self);
        if self.byte(window) != b' ' {
            return Parsed::Other;
        }
        self.end_of_address();
        fence(self);
        self.close_gap();
        self.decimal = 0;
        step = 0;
        while step < PORT_STEPS {
            fence(self);
            self.position += 1;
            let byte = self.byte(window);
            let in_port = u8::from(self.spaces != 0);
            let digit = byte.wrapping_sub(b'0');
            self.wrong |= u8::from(byte == b'\r') | in_port & u8::from(byte != b' ' && digit > 9);
            if byte == b' ' {
                self.spaces += 1;
            } else {
                let tens = self.decimal.wrapping_mul(10);
                self.decimal = tens.wrapping_add(digit as u16) * in_port as u16;
            }
            fence(self);
            if self.spaces > 1 || self.wrong != 0 {
                break;
            }
            step += 1;
        }
        fence(self);
        self.proxied.port = self.decimal;
        self.proxied.source = Source::Address as u8;
        if self.wrong == 0 && self.spaces == 2 {
            Parsed::Header
        } else {
            Parsed::Other
        }
    }

    /// A character of the client's address, as `inet_pton` takes it.
    #[inline(always)]
    fn character(&mut self, byte: u8) {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'.' => return self.dot(),
            b':' => return self.colon(),
            _ => {
                self.wrong = 1;
                return;
            }
        };
        let only_colon = self.colon != 0 && self.place == 0 && self.gap == NO_GAP;
        let is_octet = self.family == 4 || self.dots != 0;
        if only_colon || self.digits >= 4 || (is_octet && digit > 9) {
            self.wrong = 1;
            return;
        }
        self.colon = 0;
        self.decimal = if digit > 9 || (self.digits != 0 && self.decimal == 0) {
            NO_OCTET
        } else if self.digits == 0 {
            digit as u16
        } else if self.decimal < NO_OCTET / 10 {
            self.decimal * 10 + digit as u16
        } else {
            NO_OCTET
        };
        self.word = if self.digits == 0 { 0 } else { self.word << 4 } | digit as u16;
        self.digits += 1;
    }

    #[inline(always)]
    fn put(&mut self, byte: u8) {
        match self.proxied.addr.get_mut(self.place as usize) {
            Some(place) => *place = byte,
            None => self.wrong = 1,
        }
        self.place = self.place.wrapping_add(1);
    }

    #[inline(always)]
    fn octet(&mut self) {
        if self.digits == 0 || self.decimal > 0xff {
            self.wrong = 1;
        }
        self.put(self.decimal as u8);
        self.digits = 0;
    }

    #[inline(always)]
    fn dot(&mut self) {
        if self.dots >= 3 || (self.dots == 0 && self.place > 12) {
            self.wrong = 1;
        }
        self.octet();
        self.dots = self.dots.wrapping_add(1);
    }

    #[inline(always)]
    fn group(&mut self) {
        let [high, low] = self.word.to_be_bytes();
        self.put(high);
        self.put(low);
        self.digits = 0;
    }

    #[inline(always)]
    fn colon(&mut self) {
        if self.family == 4 || self.dots != 0 {
            self.wrong = 1;
        } else if self.digits != 0 {
            self.group();
        } else if self.colon != 0 {
            if self.gap != NO_GAP {
                self.wrong = 1;
            }
            self.gap = self.place;
        } else if self.place != 0 || self.gap != NO_GAP {
            self.wrong = 1;
        }
        self.colon = 1;
    }

    #[inline(always)]
    fn end_of_address(&mut self) {
        if self.dots != 0 {
            if self.dots != 3 {
                self.wrong = 1;
            }
            self.octet();
        } else if self.digits != 0 && self.family == 6 {
            self.group();
        } else if self.gap != self.place {
            self.wrong = 1;
        }
        let is_whole = if self.gap == NO_GAP {
            self.place == 16
        } else {
            self.place < 16
        };
        if !is_whole {
            self.wrong = 1;
        }
    }

    /// Moves what stands behind the `::` of an address to its end.
    #[inline(always)]
    fn close_gap(&mut self) {
        if self.gap == NO_GAP {
            return;
        }
        let addr = &mut self.proxied.addr;
        let moved = self.place.wrapping_sub(self.gap);
        let mut index = 0;
        while index < 16 {
            if index < moved {
                let from = usize::from(self.place.wrapping_sub(index + 1));
                let byte = addr.get_mut(from).map_or(0, core::mem::take);
                if let Some(place) = addr.get_mut(usize::from(15 - index)) {
                    *place = byte;
                }
            }
            index += 1;
        }
    }
}

/// Families of version 2, each with the transport STREAM but for the first.
const FAMILY_UNSPECIFIED: u8 = 0x00;
const FAMILY_V4: u8 = 0x11;
const FAMILY_V6: u8 = 0x21;
const FAMILY_UNIX: u8 = 0x31;

/// The headers of a session: where each ends, and who the first says the client is.
///
/// The first copy of a header that passes fixes its end; every other copy must say the same. A segment may cover bytes
/// of headers only if it begins where one does and holds each of them whole. So whichever copies the server's TCP
/// takes, it reads the headers that were judged, and the login begins at [`Self::end`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Headers {
    /// Offsets in the client's stream behind each header.
    ends: [u16; HEADERS],
    /// Bits 0 to 15: the last of them; 16 to 23: how many there are; 24: what follows has begun, and is none. One
    /// number, so that another CPU sees all of it or nothing.
    state: u32,
    /// What the first one says.
    pub proxied: Proxied,
}

/// What becomes of a segment that may cover headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// It goes on behind this header, at [`Headers::end_of`].
    Next,
    /// It holds headers only, as far as can be told.
    Pass,
    /// It holds what follows the headers, too, which begins at [`Headers::end`] and is to be judged.
    Login,
    /// It holds a header in part: TCP is to send it whole.
    Split,
    /// It begins behind a place where nothing has been read yet.
    Gap,
    /// It contradicts a header that has passed, or moves the login to where bytes have passed.
    Contradiction,
}

impl Headers {
    const CLOSED: u32 = 1 << 24;

    /// Offset in the client's stream behind the last header: where its login begins.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> u16 {
        self.state as u16
    }

    /// Where the login begins, once what follows the headers has begun, so that none can come any more.
    #[must_use]
    #[inline(always)]
    pub const fn login(&self) -> Option<u16> {
        let state = self.state;
        if state & Self::CLOSED == 0 {
            None
        } else {
            Some(state as u16)
        }
    }

    /// A segment as the stream behind the headers has it. It begins before that stream if it holds headers.
    #[must_use]
    #[inline(always)]
    pub const fn behind(&self, segment: Segment) -> Segment {
        Segment {
            start: segment.start.wrapping_sub(self.end() as i32),
            ..segment
        }
    }

    /// No header follows.
    #[inline(always)]
    pub const fn close(&mut self) {
        self.state |= Self::CLOSED;
    }

    /// Offset in the client's stream behind header number `index`, which has been read.
    #[must_use]
    #[inline(always)]
    pub fn end_of(&self, index: usize) -> u32 {
        self.ends.get(index).map_or(0, |&end| end as u32)
    }

    /// Whether header number `index` has been read.
    #[must_use]
    #[inline(always)]
    pub const fn has(&self, index: usize) -> bool {
        index < self.count()
    }

    #[inline(always)]
    const fn count(&self) -> usize {
        (self.state >> 16 & 0xff) as usize
    }

    /// Judges the part of `segment` that belongs to header number `index`, which begins at `at`. `index` goes from 0 to [`HEADERS`].
    ///
    /// `read` reads a header at a place in the payload, and gives what it says of the client. `ahead_from` is where the
    /// first byte has passed ahead of the login, 0 for none: the login's flags must lie before it.
    #[inline(always)]
    pub fn judge(
        &mut self,
        segment: Segment,
        index: usize,
        at: u32,
        ahead_from: u32,
        read: impl FnOnce(u32) -> Found,
    ) -> Head {
        if segment.end() <= at as i64 {
            return Head::Pass;
        }
        let known = self.has(index);
        let end = self.end_of(index);
        if known && segment.start as i64 >= end as i64 {
            return Head::Next;
        }
        if !known && self.login().is_some() {
            return Head::Login;
        }
        // Linux drops what lies before the stream.
        if segment.start as i64 > at as i64 {
            return if known { Head::Split } else { Head::Gap };
        }
        let Found {
            parsed,
            len,
            proxied,
        } = read(segment.payload_index(at));
        match parsed {
            Parsed::Cut => Head::Split,
            Parsed::Header if known => {
                let same = index != 0
                    || proxied.addr == self.proxied.addr
                        && proxied.port == self.proxied.port
                        && proxied.source == self.proxied.source;
                if same && at + len as u32 == end {
                    Head::Next
                } else {
                    Head::Contradiction
                }
            }
            Parsed::Other if known => Head::Contradiction,
            Parsed::Header if index < HEADERS => {
                let end = at as u16 + len;
                if ahead_from != 0 && end as u32 + FLAGS_HIGH_OFFSET >= ahead_from {
                    return Head::Contradiction;
                }
                if let Some(place) = self.ends.get_mut(index) {
                    *place = end;
                }
                if index == 0 {
                    self.proxied = proxied;
                }
                self.state = end as u32 | (index as u32 + 1) << 16;
                Head::Next
            }
            // One header too many is judged as a login, which it is not.
            Parsed::Header | Parsed::Other => {
                self.close();
                Head::Login
            }
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::net::{IpAddr, Ipv6Addr};
    use proptest::prelude::*;
    use std::format;
    use std::string::String;
    use std::vec;
    use std::vec::Vec;

    const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

    fn parse(bytes: &[u8]) -> Found {
        let mut window = [0xee; WINDOW];
        let len = bytes.len().min(WINDOW);
        window[..len].copy_from_slice(&bytes[..len]);
        let mut reader = HeaderReader::default();
        let parsed = reader.read(&window, bytes.len() as u32, |_| {});
        Found {
            parsed,
            len: reader.header_len(),
            proxied: *reader.proxied(),
        }
    }

    fn client(bytes: &[u8]) -> Option<(IpAddr, u16)> {
        match parse(bytes) {
            Found {
                parsed: Parsed::Header,
                len,
                proxied,
            } if usize::from(len) == bytes.len() => proxied
                .has_address()
                .then(|| (Ipv6Addr::from(proxied.addr).to_canonical(), proxied.port)),
            other => panic!("{other:?}"),
        }
    }

    fn is_header(bytes: &[u8]) -> bool {
        parse(bytes).parsed == Parsed::Header && usize::from(parse(bytes).len) == bytes.len()
    }

    fn binary(version: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([version, family]);
        header.extend((rest.len() as u16).to_be_bytes());
        header.extend(rest);
        header
    }

    /// Addresses and ports of both ends, as version 2 has them, and a TLV of three bytes.
    fn addresses(client: &[u8], server: &[u8]) -> Vec<u8> {
        [client, server, &[0xdc, 4, 0x0c, 0xea], &[4, 0, 0]].concat()
    }

    #[test]
    fn lines_name_the_client() {
        let v4 = client(b"PROXY TCP4 192.0.2.1 198.51.100.255 56324 3306\r\n");
        assert_eq!(v4, Some(("192.0.2.1".parse().unwrap(), 56324)));
        for text in [
            "2001:db8::1",
            "::",
            "::1",
            "1::",
            "1:2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7::",
            "::2:3:4:5:6:7:8",
            "fe80::ABCD",
            "1:2:3:4:5:6:1.2.3.4",
            "64:ff9b::192.0.2.33",
        ] {
            let header = format!("PROXY TCP6 {text} 2001:db8::2 1 65535\r\n");
            assert_eq!(
                client(header.as_bytes()),
                Some((text.parse().unwrap(), 1)),
                "{text}"
            );
        }
        assert_eq!(client(b"PROXY UNKNOWN\r\n"), None);
        assert_eq!(client(b"PROXY UNKNOWN ff:: whatever 0 70000\r\n"), None);
    }

    #[test]
    fn binary_headers_name_the_client() {
        let v4 = binary(0x21, 0x11, &addresses(&[192, 0, 2, 1], &[10, 0, 0, 1]));
        assert_eq!(client(&v4), Some(("192.0.2.1".parse().unwrap(), 0xdc04)));
        let v6: Vec<u8> = (1..=16).collect();
        let header = binary(0x21, 0x21, &addresses(&v6, &[0xaa; 16]));
        let wanted = Ipv6Addr::from(<[u8; 16]>::try_from(v6).unwrap());
        assert_eq!(client(&header), Some((wanted.into(), 0xdc04)));
        for (version, family, len) in [
            (0x20, 0x00, 0),
            (0x20, 0x11, 12),
            (0x20, 0xff, 240),
            (0x21, 0x00, 3),
            (0x21, 0x31, 216),
        ] {
            assert_eq!(client(&binary(version, family, &vec![7; len])), None);
        }
    }

    #[test]
    fn what_servers_may_read_otherwise_is_no_header() {
        let long = |len: usize| format!("PROXY UNKNOWN {}\r\n", "x".repeat(len - 16)).into_bytes();
        assert!(is_header(&long(107)));
        for bytes in [
            &long(108)[..],
            b"PROXY UNKNOWN\n",
            b"PROXY UNKNOWN \r \r\n",
            b"PROXY UNKNOWN x\n\r\n",
            b"PROXY UNKNOWN x\0\r\n",
            b"PROXY UNKNOWN x\xff\r\n",
            b"PROXY UNKNOWNx\r\n",
            b"PROXY\tUNKNOWN\r\n",
            b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY UDP4 1.2.3.4 1.2.3.4 1 2\r\n",
            b"PROXY TCP4 1.2.3.4\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4\r\n",
            b"PROXY TCP4 1.2.3.4 1.2.3.4 x 2\r\n",
            b"PROXY TCP4 ::1 ::1 1 2\r\n",
            b"PROXY TCP4  1.2.3.4 1 2\r\n",
            b"PROXY TCP6 1.2.3.4 ::1 1 2\r\n",
            &binary(0x22, 0x11, &[0; 12]),
            &binary(0x11, 0x11, &[0; 12]),
            &binary(0x21, 0x12, &[0; 12]),
            &binary(0x21, 0x11, &[0; 11]),
            &binary(0x21, 0x21, &[0; 35]),
            &binary(0x20, 0x00, &[0; 241]),
        ] {
            assert_eq!(parse(bytes).parsed, Parsed::Other, "{bytes:x?}");
        }
    }

    #[test]
    fn a_cut_header_is_told_from_a_login_by_its_fourth_byte() {
        for header in [
            &b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\n"[..],
            &binary(0x20, 0, &[0; 9]),
        ] {
            for len in 1..header.len() {
                assert_eq!(parse(&header[..len]).parsed, Parsed::Cut, "{len}");
            }
            let mut login = header.to_vec();
            login[3] = 1;
            assert_eq!(parse(&login).parsed, Parsed::Other);
        }
    }

    fn judge(headers: &mut Headers, stream: &[u8], start: usize, len: usize) -> Head {
        judge_behind(headers, 0, stream, start, len)
    }

    fn judge_behind(
        headers: &mut Headers,
        ahead_from: u32,
        stream: &[u8],
        start: usize,
        len: usize,
    ) -> Head {
        let segment = Segment {
            start: i32::try_from(start).unwrap(),
            len: len as u32,
            urgent: false,
        };
        let mut at = 0;
        for index in 0..=HEADERS {
            let read = |place: u32| parse(&stream[start + place as usize..start + len]);
            match headers.judge(segment, index, at, ahead_from, read) {
                Head::Next => at = headers.end_of(index),
                head => return head,
            }
        }
        panic!("more headers than may be");
    }

    const V1: &[u8] = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n";
    const LOGIN: [u8; 40] = {
        let mut login = [0xee; 40];
        login[0] = 36;
        login[1] = 0;
        login[2] = 0;
        login[3] = 1;
        login
    };

    fn end(headers: &Headers) -> (usize, bool) {
        (headers.end().into(), headers.login().is_some())
    }

    #[test]
    fn headers_pass_whole_and_the_login_begins_behind_the_last() {
        let stream = [V1, &binary(0x20, 0, &[]), &LOGIN].concat();
        let (first, both) = (V1.len(), V1.len() + 16);
        let mut headers = Headers::default();
        assert_eq!(judge(&mut headers, &stream, first, 16), Head::Gap);
        assert_eq!(judge(&mut headers, &stream, 0, first - 1), Head::Split);
        assert_eq!(end(&headers), (0, false));
        assert_eq!(judge(&mut headers, &stream, 0, first), Head::Pass);
        assert_eq!(judge(&mut headers, &stream, first, 3), Head::Split);
        assert_eq!(judge(&mut headers, &stream, 0, both), Head::Pass);
        assert_eq!(end(&headers), (both, false));
        assert_eq!(judge(&mut headers, &stream, first, 17), Head::Login);
        assert_eq!(end(&headers), (both, true));
        // Once more, in other pieces.
        assert_eq!(judge(&mut headers, &stream, 0, stream.len()), Head::Login);
        assert_eq!(judge(&mut headers, &stream, 0, first), Head::Pass);
        assert_eq!(judge(&mut headers, &stream, 0, first + 3), Head::Split);
        assert_eq!(
            judge(&mut headers, &stream, 1, stream.len() - 1),
            Head::Split
        );
    }

    #[test]
    fn another_copy_of_a_header_contradicts() {
        let stream = [V1, &LOGIN].concat();
        let mut headers = Headers::default();
        assert_eq!(judge(&mut headers, &stream, 0, V1.len()), Head::Pass);
        let longer = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 23\r\n";
        let other_client = b"PROXY TCP4 192.0.2.9 192.0.2.2 1 2\r\n";
        let other_port = b"PROXY TCP4 192.0.2.1 192.0.2.2 7 2\r\n";
        let unknown = b"PROXY UNKNOWN 2.0.2.1 192.0.2.2 1 2\r\n";
        for copy in [&longer[..], other_client, other_port, unknown, &LOGIN] {
            assert_eq!(
                judge(&mut headers, copy, 0, copy.len()),
                Head::Contradiction
            );
        }
        assert_eq!(end(&headers), (V1.len(), false));
    }

    #[test]
    fn no_header_moves_the_flags_to_where_bytes_have_passed() {
        let stream = [V1, &LOGIN].concat();
        let flags_end = V1.len() as u32 + 6;
        for (ahead_from, head) in [
            (flags_end - 1, Head::Contradiction),
            (1, Head::Contradiction),
            (flags_end, Head::Pass),
            (0, Head::Pass),
        ] {
            let mut headers = Headers::default();
            let judged = judge_behind(&mut headers, ahead_from, &stream, 0, V1.len());
            assert_eq!(judged, head, "{ahead_from}");
            assert_eq!(headers.end() != 0, head == Head::Pass, "{ahead_from}");
        }
    }

    #[test]
    fn once_a_login_has_begun_no_header_comes() {
        let mut headers = Headers::default();
        assert_eq!(judge(&mut headers, &LOGIN, 0, 1), Head::Login);
        assert_eq!(judge(&mut headers, V1, 0, V1.len()), Head::Login);
        assert_eq!(end(&headers), (0, true));
    }

    #[test]
    fn a_fifth_header_is_judged_as_a_login() {
        let stream = V1.repeat(5);
        let mut headers = Headers::default();
        assert_eq!(judge(&mut headers, &stream, 0, 4 * V1.len()), Head::Pass);
        assert_eq!(judge(&mut headers, &stream, 0, 5 * V1.len()), Head::Login);
        assert_eq!(end(&headers), (4 * V1.len(), true));
    }

    /// Text as addresses have it, and nearly.
    fn nearly_v6() -> impl Strategy<Value = String> {
        prop_oneof![
            any::<[u8; 16]>().prop_map(|octets| format!("{}", Ipv6Addr::from(octets))),
            prop::collection::vec(prop_oneof![Just(0_u16), Just(1), any::<u16>()], 8).prop_map(
                |groups| format!("{}", Ipv6Addr::from(<[u16; 8]>::try_from(groups).unwrap()))
            ),
            "[0-9a-fA-F:.]{1,40}",
            "([0-9a-f]{1,5}:){0,8}:?([0-9a-f]{1,4}:){0,4}([0-9]{1,3}\\.){0,4}[0-9a-f]{0,4}",
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        #[test]
        fn addresses_are_what_the_standard_library_takes(v6 in nearly_v6(), v4 in "([0-9]{1,3}\\.){2,4}[0-9]{0,4}") {
            for (family, text) in [("TCP6", &v6), ("TCP4", &v4)] {
                let header = format!("PROXY {family} {text} x 7 8\r\n");
                let wanted: Option<IpAddr> = if family == "TCP6" {
                    text.parse().ok().map(IpAddr::V6)
                } else {
                    text.parse().ok().map(IpAddr::V4)
                };
                let Found { parsed, proxied, .. } = parse(header.as_bytes());
                prop_assert_eq!(parsed != Parsed::Other, wanted.is_some(), "{}", header);
                if let Some(wanted) = wanted {
                    prop_assert_eq!(Ipv6Addr::from(proxied.addr).to_canonical(), wanted.to_canonical());
                    prop_assert_eq!(proxied.port, 7);
                }
            }
        }

        /// A header of version 1 ends at its first line feed, behind its first carriage return; one of version 2
        /// where its length says.
        #[test]
        fn a_header_ends_where_all_servers_say(
            mut bytes in prop_oneof![
                Just(V1.to_vec()),
                Just(b"PROXY UNKNOWN\r\n".to_vec()),
                (0_usize..300, any::<u8>()).prop_map(|(len, family)| binary(0x20, family, &vec![0; len])),
            ],
            changes in prop::collection::vec((0_usize..40, any::<u8>()), 0..3),
            behind in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            for (at, byte) in changes {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            bytes.extend(behind);
            if let Found { parsed: Parsed::Header, len, .. } = parse(&bytes) {
                let len = usize::from(len);
                if bytes[0] == b'P' {
                    prop_assert!(len <= 107);
                    prop_assert_eq!(bytes.iter().position(|&byte| byte == b'\n'), Some(len - 1));
                    prop_assert_eq!(bytes.iter().position(|&byte| byte == b'\r'), Some(len - 2));
                    prop_assert!(!bytes[..len].contains(&0));
                } else {
                    prop_assert_eq!(&bytes[..12], SIGNATURE);
                    prop_assert_eq!(len, 16 + usize::from(bytes[14]) * 256 + usize::from(bytes[15]));
                    prop_assert!(len <= 256);
                }
                prop_assert_ne!(bytes[3], 1);
            }
        }

        /// The server puts its stream together from segments that passed, each byte from any copy. Then it reads the
        /// headers that were judged, and the login behind them.
        #[test]
        fn no_mix_of_passed_copies_moves_the_login(
            streams in prop::collection::vec(prop::sample::select(streams()), 1..4),
            segments in prop::collection::vec((0_usize..4, 0_usize..90, 1_usize..130), 1..12),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 200),
        ) {
            let mut headers = Headers::default();
            let mut copies: Vec<Vec<u8>> = vec![Vec::new(); 256];
            for (which, start, len) in segments {
                let stream = &streams[which % streams.len()];
                let start = if start < 45 { 0 } else { start };
                if start >= stream.len() {
                    continue;
                }
                let len = len.min(stream.len() - start);
                let head = judge(&mut headers, stream, start, len);
                // What `judge::judge` refuses: a login whose sequence id is not 1.
                let sequence_id = usize::from(headers.end()) + 3;
                let is_login = sequence_id < start
                    || sequence_id >= start + len
                    || stream[sequence_id] == 1;
                if head == Head::Pass || head == Head::Login && is_login {
                    for at in start..start + len {
                        copies[at].push(stream[at]);
                    }
                }
            }
            let read: Vec<u8> = copies
                .iter()
                .zip(picks)
                .map_while(|(copies, pick)| (!copies.is_empty()).then(|| *pick.get(copies)))
                .collect();
            let mut at = 0;
            while let Found { parsed: Parsed::Header, len, .. } = parse(&read[at..]) {
                at += usize::from(len);
                if at >= usize::from(headers.end()) {
                    break;
                }
            }
            prop_assert!(at == usize::from(headers.end()) || read.len() < usize::from(headers.end()), "{} {:?}", at, headers);
        }
    }

    /// Streams that begin alike or not.
    fn streams() -> Vec<Vec<u8>> {
        vec![
            [V1, &LOGIN].concat(),
            [V1, V1, &LOGIN].concat(),
            [&b"PROXY UNKNOWN\r\n"[..], &LOGIN].concat(),
            [&binary(0x20, 0, &[])[..], &LOGIN].concat(),
            [&binary(0x20, 0, b"PROXY UNKNOWN\r\n")[..], &LOGIN].concat(),
            LOGIN.to_vec(),
            [&LOGIN[..4], &V1[4..], &LOGIN].concat(),
        ]
    }
}
