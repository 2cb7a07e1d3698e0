//! Segments as they go on the wire, and as they come from it.
//!
//! Sources: RFC 791 section 3.1, RFC 8200 sections 3 and 4, RFC 9293 section 3.1, RFC 7323 section 3.2.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// FIN flag.
pub const FIN: u8 = 0x01;
/// SYN flag.
pub const SYN: u8 = 0x02;
/// RST flag.
pub const RST: u8 = 0x04;
/// PSH flag.
pub const PSH: u8 = 0x08;
/// ACK flag.
pub const ACK: u8 = 0x10;
/// URG flag.
pub const URG: u8 = 0x20;

const TCP: u8 = 6;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;
const TCP_HEADER: usize = 20;
/// What Linux sends; nothing on the way counts it down.
const HOPS: u8 = 64;
/// Any number that is not 0, which the kernel would replace: fragments of a packet share it.
const IDENTIFICATION: u16 = 0x4d54;

/// The timestamp option of a segment on a connection that agreed on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// As it must be.
    Current,
    /// Older than the last one: the server's TCP discards the segment (PAWS, RFC 7323 section 5).
    Old,
    /// Left out: discarded by some, taken by others.
    Missing,
}

/// An IPv6 extension header, but for its first byte, which names the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its number.
    pub kind: u8,
    /// From the second byte on.
    pub body: Vec<u8>,
}

impl Extension {
    /// One of the generic form with nothing but padding.
    #[must_use]
    pub fn padding(kind: u8) -> Self {
        // No further 8 bytes; PadN over the six of these.
        let body = vec![0, 1, 4, 0, 0, 0, 0];
        Self { kind, body }
    }

    /// A fragment header of a packet that is whole (RFC 6946).
    #[must_use]
    pub fn atomic_fragment() -> Self {
        let body = vec![0; 7];
        Self {
            kind: FRAGMENT,
            body,
        }
    }

    /// Destination options that say nothing.
    #[must_use]
    pub fn destination_options() -> Self {
        Self::padding(DESTINATION_OPTIONS)
    }
}

/// A segment to be sent, and all that can be wrong about it.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    /// Offset of its first byte in the client's stream: distance from ISN + 1.
    pub offset: i32,
    /// Payload.
    pub bytes: Vec<u8>,
    /// TCP flags.
    pub flags: u8,
    /// Urgent pointer, with whatever flags.
    pub urgent: u16,
    /// TTL or hop limit.
    pub hops: u8,
    /// Added to the acknowledgement number: one of what was never sent has the segment discarded.
    pub ack_shift: u32,
    /// Whether its TCP checksum is right.
    pub is_sound: bool,
    /// Its timestamp, if the connection has them.
    pub stamp: Stamp,
    /// IPv4 options, a multiple of four bytes.
    pub ip_options: Vec<u8>,
    /// IPv6 extension headers, in order.
    pub extensions: Vec<Extension>,
    /// Cut into IP fragments with that much payload each, a multiple of eight bytes.
    pub fragments_of: Option<usize>,
}

impl Segment {
    /// `bytes` at `offset` of the client's stream.
    #[must_use]
    pub fn at(offset: i32, bytes: &[u8]) -> Self {
        Self {
            offset,
            bytes: bytes.to_vec(),
            flags: ACK | PSH,
            urgent: 0,
            hops: HOPS,
            ack_shift: 0,
            is_sound: true,
            stamp: Stamp::Current,
            ip_options: Vec::new(),
            extensions: Vec::new(),
            fragments_of: None,
        }
    }

    /// The bytes `from..to` of `stream`, where they belong.
    #[must_use]
    pub fn of(stream: &[u8], from: usize, to: usize) -> Self {
        let bytes = stream.get(from..to.min(stream.len())).unwrap_or_default();
        Self::at(i32::try_from(from).unwrap_or(i32::MAX), bytes)
    }

    /// With these flags in place of ACK and PSH.
    #[must_use]
    pub const fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    /// With the URG flag and this pointer: the urgent byte is the one before it (RFC 6093 section 2.2).
    #[must_use]
    pub const fn urgent(mut self, pointer: u16) -> Self {
        self.flags |= URG;
        self.urgent = pointer;
        self
    }

    /// With this TTL.
    #[must_use]
    pub const fn hops(mut self, hops: u8) -> Self {
        self.hops = hops;
        self
    }

    /// With an acknowledgement of what the server has not sent.
    #[must_use]
    pub const fn ack_ahead(mut self) -> Self {
        self.ack_shift = 1 << 20;
        self
    }

    /// With a wrong checksum.
    #[must_use]
    pub const fn unsound(mut self) -> Self {
        self.is_sound = false;
        self
    }

    /// With this timestamp.
    #[must_use]
    pub const fn stamp(mut self, stamp: Stamp) -> Self {
        self.stamp = stamp;
        self
    }

    /// With IPv4 options.
    #[must_use]
    pub fn ip_options(mut self, options: &[u8]) -> Self {
        options.clone_into(&mut self.ip_options);
        self
    }

    /// With IPv6 extension headers.
    #[must_use]
    pub fn extensions(mut self, extensions: &[Extension]) -> Self {
        extensions.clone_into(&mut self.extensions);
        self
    }

    /// In IP fragments of `size` bytes.
    #[must_use]
    pub const fn in_fragments(mut self, size: usize) -> Self {
        self.fragments_of = Some(size);
        self
    }
}

/// On one line, because a test that fails shows dozens; what is as usual is left out.
impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}+{} {:02x?}",
            self.offset,
            self.bytes.len(),
            self.bytes
        )?;
        if self.flags != ACK | PSH || self.urgent != 0 {
            write!(f, " flags {:#x} urgent {}", self.flags, self.urgent)?;
        }
        if self.hops != HOPS || self.ack_shift != 0 || !self.is_sound {
            let Self {
                hops,
                ack_shift,
                is_sound,
                ..
            } = self;
            write!(f, " hops {hops} ack +{ack_shift} sound {is_sound}")?;
        }
        if self.stamp != Stamp::Current {
            write!(f, " stamp {:?}", self.stamp)?;
        }
        if !self.ip_options.is_empty() || !self.extensions.is_empty() {
            write!(
                f,
                " options {:x?} extensions {:x?}",
                self.ip_options, self.extensions
            )?;
        }
        if let Some(size) = self.fragments_of {
            write!(f, " in fragments of {size}")?;
        }
        Ok(())
    }
}

/// What the connection adds to a segment.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) options: Vec<u8>,
    pub(super) window: u16,
}

impl Frame {
    /// The packets of `segment`.
    pub(super) fn packets(&self, segment: &Segment) -> Vec<Vec<u8>> {
        let tcp = self.tcp(segment);
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => pieces(&tcp, segment.fragments_of)
                .map(|(offset, is_last, piece)| {
                    let more = if is_last { 0 } else { 0x2000 };
                    let place = u16::try_from(offset / 8).unwrap_or(u16::MAX) | more;
                    v4(segment, place, [from.octets(), to.octets()], piece)
                })
                .collect(),
            _ => self.v6(segment, &tcp),
        }
    }

    fn tcp(&self, segment: &Segment) -> Vec<u8> {
        let words = (TCP_HEADER + self.options.len()) / 4;
        let mut tcp = Vec::new();
        tcp.extend(self.from.port().to_be_bytes());
        tcp.extend(self.to.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.push(u8::try_from(words << 4).unwrap_or(u8::MAX));
        tcp.push(segment.flags);
        tcp.extend(self.window.to_be_bytes());
        let mut rest = segment.urgent.to_be_bytes().to_vec();
        rest.extend(&self.options);
        rest.extend(&segment.bytes);
        let sum = checksum(&[&self.pseudo_header(tcp.len() + 2 + rest.len()), &tcp, &rest]);
        let sum = if segment.is_sound { sum } else { sum ^ 0x5555 };
        tcp.extend(sum.to_be_bytes());
        tcp.extend(rest);
        tcp
    }

    /// What is summed beside the segment. IPv4 has the length in two bytes and IPv6 in four, which makes
    /// the same sum.
    fn pseudo_header(&self, len: usize) -> Vec<u8> {
        let mut header = Vec::new();
        for address in [self.from.ip(), self.to.ip()] {
            match address {
                IpAddr::V4(address) => header.extend(address.octets()),
                IpAddr::V6(address) => header.extend(address.octets()),
            }
        }
        header.extend(u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes());
        header.extend([0, 0, 0, TCP]);
        header
    }

    fn v6(&self, segment: &Segment, tcp: &[u8]) -> Vec<Vec<u8>> {
        let mut kinds: Vec<u8> = segment
            .extensions
            .iter()
            .map(|header| header.kind)
            .collect();
        kinds.push(TCP);
        let (first, following) = kinds.split_first().unwrap_or((&TCP, &[]));
        let mut body = Vec::new();
        for (header, next) in segment.extensions.iter().zip(following) {
            body.push(*next);
            body.extend(&header.body);
        }
        body.extend(tcp);
        if segment.fragments_of.is_none() {
            return vec![self.v6_packet(segment, *first, &body)];
        }
        pieces(&body, segment.fragments_of)
            .map(|(offset, is_last, piece)| {
                let place = u16::try_from(offset).unwrap_or(u16::MAX) | u16::from(!is_last);
                let mut fragment = vec![*first, 0];
                fragment.extend(place.to_be_bytes());
                // Two packets in flight at a time must not share it.
                fragment.extend(self.seq.wrapping_add(self.ack).to_be_bytes());
                fragment.extend(piece);
                self.v6_packet(segment, FRAGMENT, &fragment)
            })
            .collect()
    }

    fn v6_packet(&self, segment: &Segment, next: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0];
        packet.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        packet.extend([next, segment.hops]);
        for address in [self.from.ip(), self.to.ip()] {
            let address = match address {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            packet.extend(address.octets());
        }
        packet.extend(body);
        packet
    }
}

/// The kernel enters the checksum of the header (`raw(7)`).
fn v4(segment: &Segment, place: u16, addresses: [[u8; 4]; 2], body: &[u8]) -> Vec<u8> {
    let header = 20 + segment.ip_options.len();
    let mut packet = vec![u8::try_from(0x40 | (header / 4)).unwrap_or(0x45), 0];
    let len = u16::try_from(header + body.len()).unwrap_or(u16::MAX);
    packet.extend(len.to_be_bytes());
    packet.extend(IDENTIFICATION.to_be_bytes());
    packet.extend(place.to_be_bytes());
    packet.extend([segment.hops, TCP, 0, 0]);
    packet.extend(addresses.concat());
    packet.extend(&segment.ip_options);
    packet.extend(body);
    packet
}

/// `whole` in pieces of `size` bytes: offset, whether it is the last, and the piece.
fn pieces(whole: &[u8], size: Option<usize>) -> impl Iterator<Item = (usize, bool, &[u8])> {
    let size = size.unwrap_or(whole.len()).max(8);
    whole.chunks(size).enumerate().map(move |(number, piece)| {
        let offset = number * size;
        (offset, offset + piece.len() == whole.len(), piece)
    })
}

/// The Internet checksum (RFC 1071) over `parts`, all but the last of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            let high = pair.first().copied().unwrap_or_default();
            let low = pair.get(1).copied().unwrap_or_default();
            sum += u32::from(u16::from_be_bytes([high, low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// A segment from the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Incoming {
    pub(super) from: SocketAddr,
    pub(super) to: SocketAddr,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: u8,
    pub(super) options: Vec<u8>,
    pub(super) bytes: Vec<u8>,
}

impl Incoming {
    /// Reads a packet; `None` if it is not TCP. The server's kernel sends no IPv6 extension headers.
    pub(super) fn read(packet: &[u8]) -> Option<Self> {
        let version = packet.first()? >> 4;
        let (from, to, tcp): (IpAddr, IpAddr, &[u8]) = if version == 4 {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let len = u16::from_be_bytes(*packet.get(2..)?.first_chunk()?);
            let from: [u8; 4] = *packet.get(12..)?.first_chunk()?;
            let to: [u8; 4] = *packet.get(16..)?.first_chunk()?;
            let is_tcp = *packet.get(9)? == TCP;
            let tcp = packet.get(header..usize::from(len)).filter(|_| is_tcp)?;
            (from.into(), to.into(), tcp)
        } else {
            let len = usize::from(u16::from_be_bytes(*packet.get(4..)?.first_chunk()?));
            let from: [u8; 16] = *packet.get(8..)?.first_chunk()?;
            let to: [u8; 16] = *packet.get(24..)?.first_chunk()?;
            let is_tcp = *packet.get(6)? == TCP;
            let tcp = packet.get(40..40 + len).filter(|_| is_tcp)?;
            (from.into(), to.into(), tcp)
        };
        let port = |at: usize| Some(u16::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let number = |at: usize| Some(u32::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let header = usize::from(*tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddr::new(from, port(0)?),
            to: SocketAddr::new(to, port(2)?),
            seq: number(4)?,
            ack: number(8)?,
            flags: *tcp.get(13)?,
            options: tcp.get(TCP_HEADER..header)?.to_vec(),
            bytes: tcp.get(header..)?.to_vec(),
        })
    }

    /// The content of the TCP option `wanted`.
    pub(super) fn option(&self, wanted: u8) -> Option<&[u8]> {
        let mut rest = self.options.as_slice();
        loop {
            match rest {
                [1, tail @ ..] => rest = tail,
                [0, ..] | [] | [_] => return None,
                [kind, len, ..] => {
                    let option = rest.get(2..usize::from(*len))?;
                    if *kind == wanted {
                        return Some(option);
                    }
                    rest = rest.get(usize::from(*len)..)?;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(from: &str, to: &str) -> Frame {
        Frame {
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            seq: 7,
            ack: 9,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            window: u16::MAX,
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for frame in [
            frame("10.0.0.1:5", "10.0.0.2:6"),
            frame("[fd00::1]:5", "[fd00::2]:6"),
        ] {
            let packets = frame.packets(&Segment::at(0, b"odd"));
            let read = Incoming::read(&packets[0]).unwrap();
            assert_eq!((read.from, read.to), (frame.from, frame.to));
            assert_eq!((read.seq, read.ack, read.flags), (7, 9, ACK | PSH));
            assert_eq!(read.bytes, b"odd");
            assert_eq!(read.option(8).unwrap(), [0, 0, 0, 1, 0, 0, 0, 2]);
            assert_eq!(read.option(34), None);
        }
    }

    #[test]
    fn checksum_over_a_sound_segment_is_zero() {
        let frame = frame("10.0.0.1:5", "10.0.0.2:6");
        let sum = |segment: &Segment| {
            let tcp = frame.tcp(segment);
            checksum(&[&frame.pseudo_header(tcp.len()), &tcp])
        };
        assert_eq!(sum(&Segment::at(0, b"odd")), 0);
        assert_ne!(sum(&Segment::at(0, b"odd").unsound()), 0);
    }

    #[test]
    fn fragments_are_the_whole_in_order() {
        let frame = frame("10.0.0.1:5", "10.0.0.2:6");
        let segment = Segment::at(0, &[7; 61]);
        let whole = frame.packets(&segment)[0][20..].to_vec();
        let parts = frame.packets(&segment.in_fragments(16));
        let body: Vec<u8> = parts.iter().flat_map(|part| part[20..].to_vec()).collect();
        assert_eq!(body, whole);
        let places: Vec<_> = parts.iter().map(|part| (part[6], part[7])).collect();
        assert_eq!(places[0], (0x20, 0));
        assert_eq!(places.last().unwrap(), &(0, 10));
    }

    #[test]
    fn extension_headers_name_what_follows() {
        let segment = Segment::at(0, b"x").extensions(&[
            Extension::destination_options(),
            Extension::atomic_fragment(),
        ]);
        let packets = frame("[fd00::1]:5", "[fd00::2]:6").packets(&segment);
        let packet = &packets[0];
        assert_eq!((packet[6], packet[40], packet[48]), (60, 44, 6));
    }
}
