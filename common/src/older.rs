//! Sessions older than the gate: what the client's segments say of them.
//!
//! Nobody has seen how such a session began, nor knows where in the stream a segment stands. Most segments begin where
//! the client's program began to write, though, and there stands the header of a TLS record (RFC 8446 section 5.1) or of
//! a packet of either protocol:
//!
//! | bytes | TLS record | classic packet | X Protocol frame |
//! |---|---|---|---|
//! | 0 to 2 | type 20 to 24, version 3.1 to 3.4 | length, little-endian | length, little-endian |
//! | 3 | length, big-endian | sequence id: 0, as a command has | length |
//! | 4 | length | command | message type |
//!
//! The two protocols cut the stream alike. A header is no evidence: where it says that its record ends is, if the segment
//! ends there, or if the next header stands there. A segment from the middle of a record says nothing.

/// What the client of a session older than the gate speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Spoken {
    /// Nothing yet, or nothing that can be told: compression, a session that nobody uses.
    Unknown = 0,
    /// TLS records.
    Tls = 1,
    /// Commands of the classic protocol, or messages of X Protocol, in the clear.
    Plaintext = 2,
}

impl Spoken {
    /// Reads it from a record; an unknown number is [`Spoken::Unknown`].
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Tls,
            2 => Self::Plaintext,
            _ => Self::Unknown,
        }
    }

    /// The word used in status, records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Tls => "tls",
            Self::Plaintext => "plaintext",
        }
    }
}

/// So much evidence is certainty: two records in a row, of which one follows the other and both end where they say.
/// Bytes that only happen to be there (ciphertext, a file that is loaded) look so once in 2^40 segments.
pub const CERTAIN: u8 = 3;

/// Most headers that are read of one segment.
pub const HEADERS: u32 = 4;
/// Bytes of a header that are read, and the shortest record of all (`COM_PING`).
pub const HEADER_LEN: u32 = 5;

/// Longest fragment of a TLS record: 2^14 + 2048 bytes (RFC 5246 section 6.2.3), which is more than RFC 8446 allows.
const TLS_MAX: u32 = (1 << 14) + 2048;
/// Shortest: an authentication tag of 16 bytes and a byte (RFC 8446 section 5.2).
const TLS_MIN: u32 = 17;

/// What is known of a session older than the gate, in its socket's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Older {
    /// Where the next record begins if `follows`, else behind what has been read; a sequence number.
    next: u32,
    /// 1 in the record of a session that is older than the gate, 2 in that of one that it has let through in observe mode.
    found: u8,
    /// A [`Spoken`].
    spoken: u8,
    /// How much speaks for it.
    evidence: u8,
    /// 1 when `next` is where a record is to begin; 2 when nothing has been read yet.
    follows: u8,
}

const UNREAD: u8 = 2;
const FOUND: u8 = 1;
const OBSERVED: u8 = 2;

impl Older {
    /// Of a session that is not older than the gate.
    pub const NOT: Self = Self {
        next: 0,
        found: 0,
        spoken: Spoken::Unknown as u8,
        evidence: 0,
        follows: 0,
    };

    /// Of a session that was found.
    pub const FOUND: Self = Self {
        next: 0,
        found: FOUND,
        spoken: Spoken::Unknown as u8,
        evidence: 0,
        follows: UNREAD,
    };

    /// Of a session that the gate has let through in observe mode; `in_the_clear` if it saw a plaintext login.
    #[must_use]
    pub const fn observed(in_the_clear: bool) -> Self {
        Self {
            found: OBSERVED,
            spoken: Spoken::Plaintext as u8,
            evidence: if in_the_clear { CERTAIN } else { 0 },
            ..Self::FOUND
        }
    }

    /// The same, after segments that were not taken: where the stream is by now is not known.
    #[must_use]
    pub const fn after_a_gap(self) -> Self {
        Self {
            follows: UNREAD,
            ..self
        }
    }

    /// Whether the session is older than the gate, or than the enforcement of its server's policy.
    #[must_use]
    #[inline(always)]
    pub const fn is_older(&self) -> bool {
        self.found != 0
    }

    /// Whether it is older than the enforcement only: the gate has seen it begin.
    #[must_use]
    pub const fn was_observed(&self) -> bool {
        self.found == OBSERVED
    }

    /// What it speaks.
    #[must_use]
    #[inline(always)]
    pub const fn spoken(&self) -> Spoken {
        if self.evidence == 0 {
            Spoken::Unknown
        } else {
            Spoken::from_u8(self.spoken)
        }
    }

    /// Whether that is certain; else it is likely, if it is known at all.
    #[must_use]
    #[inline(always)]
    pub const fn is_certain(&self) -> bool {
        self.evidence >= CERTAIN
    }

    /// Takes the segment of `len` bytes from sequence number `seq` on. `header` reads [`HEADER_LEN`] bytes at an offset
    /// in it. Returns whether the segment begins with the header of what is spoken.
    #[inline(always)]
    pub fn take(
        &mut self,
        seq: u32,
        len: u32,
        mut header: impl FnMut(u32) -> Option<[u8; HEADER_LEN as usize]>,
    ) -> bool {
        let end = seq.wrapping_add(len);
        if self.follows != UNREAD && end.wrapping_sub(self.next).cast_signed() <= 0 {
            // A copy, or the middle of a record.
            return false;
        }
        let mut at = self.next.wrapping_sub(seq);
        // 1 when a record has said that the next one begins at `at`.
        let mut said = self.follows == 1 && at < len;
        if !said {
            at = 0;
        }
        let mut begins = false;
        let mut round = 0;
        while round < HEADERS {
            round += 1;
            let bytes = header(at);
            let found = match bytes {
                Some(bytes) => frame(bytes),
                None => None,
            };
            let Some((spoken, length)) = found else {
                if bytes.is_some() && said && self.spoken == Spoken::Tls as u8 {
                    // No TLS: its records follow each other without a gap.
                    self.evidence = 0;
                }
                self.follows = 0;
                self.next = end;
                return begins;
            };
            if self.spoken != spoken as u8 {
                self.spoken = spoken as u8;
                self.evidence = 0;
            } else if said {
                self.add();
            }
            begins = begins || at == 0;
            at = at.wrapping_add(length);
            said = true;
            if at == len {
                self.add();
            }
            if at >= len {
                break;
            }
        }
        self.follows = 1;
        self.next = seq.wrapping_add(at);
        begins
    }

    #[inline(always)]
    const fn add(&mut self) {
        if self.evidence < CERTAIN {
            self.evidence += 1;
        }
    }
}

/// What a header says: of what it is, and how long that is with its header.
#[inline(always)]
const fn frame([b0, b1, b2, b3, b4]: [u8; HEADER_LEN as usize]) -> Option<(Spoken, u32)> {
    let tls = (b3 as u32) << 8 | b4 as u32;
    if b0 >= 20 && b0 <= 24 && b1 == 3 && b2 >= 1 && b2 <= 4 && tls >= TLS_MIN && tls <= TLS_MAX {
        return Some((Spoken::Tls, 5 + tls));
    }
    let length = b0 as u32 | (b1 as u32) << 8 | (b2 as u32) << 16;
    // The fourth byte is the sequence id of a command, or the upper byte of a length that is less than 16 MiB.
    if b3 == 0 && is_plausible(b4, length) {
        return Some((Spoken::Plaintext, 4 + length));
    }
    None
}

/// Whether a command of the classic protocol or a message of X Protocol has this number and length.
#[inline(always)]
const fn is_plausible(command: u8, length: u32) -> bool {
    match command {
        // Without parameters: quit, statistics, process info, debug, ping, reset connection; in X Protocol, none of these
        // numbers but 1 is a client's (`CapabilitiesGet`, without parameters as a rule).
        0x01 | 0x09 | 0x0a | 0x0d | 0x0e | 0x1f => length == 1,
        0x02..=0x20 | 0x28..=0x2e | 0xfa..=0xfe => length >= 1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::vec;
    use std::vec::Vec;

    /// Sends segments from sequence number `seq` on; returns where the stream is then.
    fn send(older: &mut Older, mut seq: u32, segments: &[&[u8]]) -> u32 {
        for segment in segments {
            let len = u32::try_from(segment.len()).unwrap();
            older.take(seq, len, |at| {
                let at = usize::try_from(at).unwrap();
                segment.get(at..)?.first_chunk().copied()
            });
            seq = seq.wrapping_add(len);
        }
        seq
    }

    fn record<const N: usize>() -> [u8; N] {
        let mut bytes = [0xa5; N];
        let [high, low] = u16::try_from(N - 5).unwrap().to_be_bytes();
        bytes[..5].copy_from_slice(&[23, 3, 3, high, low]);
        bytes
    }

    const PING: [u8; 5] = [1, 0, 0, 0, 0x0e];
    const QUERY: [u8; 13] = *b"\x09\0\0\0\x03SELECT 1";

    #[test]
    fn one_record_is_likely_and_two_are_certain() {
        let mut older = Older::FOUND;
        // The sequence numbers wrap.
        let seq = send(&mut older, u32::MAX - 20, &[&record::<40>()]);
        assert_eq!((older.spoken(), older.is_certain()), (Spoken::Tls, false));
        send(&mut older, seq, &[&record::<60>()]);
        assert_eq!((older.spoken(), older.is_certain()), (Spoken::Tls, true));
    }

    #[test]
    fn what_was_observed_in_the_clear_is_certain_and_held_at_its_next_command() {
        let mut older = Older::observed(true);
        assert!(older.is_older() && older.was_observed() && !Older::FOUND.was_observed());
        assert_eq!(
            (older.spoken(), older.is_certain()),
            (Spoken::Plaintext, true)
        );
        // The answer to the server's salt: no command.
        assert!(!older.take(7, 24, |_| Some([20, 0, 0, 3, 0x5a])));
        assert!(older.is_certain());
        assert!(older.take(31, 5, |_| Some(PING)));
        assert_eq!(Older::observed(false).spoken(), Spoken::Unknown);
    }

    #[test]
    fn one_command_is_likely_and_two_are_certain() {
        let mut older = Older::FOUND;
        let seq = send(&mut older, 7, &[&PING]);
        assert_eq!(
            (older.spoken(), older.is_certain()),
            (Spoken::Plaintext, false)
        );
        send(&mut older, seq, &[&QUERY]);
        assert_eq!(
            (older.spoken(), older.is_certain()),
            (Spoken::Plaintext, true)
        );
    }

    #[test]
    fn records_are_followed_across_segments_and_within_them() {
        let stream: Vec<u8> = (0..4).flat_map(|_| record::<1000>()).collect();
        for cut in [1, 3, 999, 1000, 1001, 1448, 2000, 4000] {
            let mut older = Older::FOUND;
            let segments: Vec<&[u8]> = stream.chunks(cut).collect();
            send(&mut older, 0, &segments);
            // A cut in the header of each record hides them.
            let is_hidden = cut < 5 || cut == 1001;
            assert_eq!(older.is_certain(), !is_hidden, "{cut}");
        }
    }

    #[test]
    fn copies_and_the_middle_of_a_record_say_nothing() {
        let mut older = Older::FOUND;
        for _ in 0..5 {
            send(&mut older, 7, &[&PING]);
        }
        assert!(!older.is_certain());
        let whole = record::<3000>();
        let mut older = Older::FOUND;
        let (front, back) = whole.split_at(1448);
        send(&mut older, 1448, &[back]);
        assert_eq!(older.spoken(), Spoken::Unknown);
        send(&mut older, 0, &[front]);
        assert_eq!(older.spoken(), Spoken::Unknown);
    }

    #[test]
    fn what_contradicts_itself_is_not_certain() {
        let mut older = Older::FOUND;
        let seq = send(&mut older, 0, &[&record::<40>()]);
        let seq = send(&mut older, seq, &[b"no record at all"]);
        assert_eq!(older.spoken(), Spoken::Unknown);
        // A command whose header could be a TLS record's: 66,327 bytes.
        let mut command = vec![0x17, 0x03, 0x01, 0, 0x17];
        command.resize(4 + 0x1_0317, b'x');
        let seq = send(&mut older, seq, &[&command[..1448], &command[1448..]]);
        assert_eq!(older.spoken(), Spoken::Unknown);
        send(&mut older, seq, &[&PING, &QUERY]);
        assert_eq!(
            (older.spoken(), older.is_certain()),
            (Spoken::Plaintext, true)
        );
    }

    #[test]
    fn after_a_gap_commands_are_seen_wherever_the_stream_is() {
        let mut older = Older::FOUND;
        let seq = send(&mut older, 7, &[&PING, &QUERY]);
        // More than 2 GiB on, a sequence number is taken for an earlier one.
        let seq = seq.wrapping_add(3 << 30);
        let ping = |_| Some(PING);
        assert!(!older.take(seq, 5, ping));
        let mut older = older.after_a_gap();
        assert!(older.is_certain());
        assert!(older.take(seq, 5, ping));
    }

    #[test]
    fn compressed_packets_stay_unknown() {
        // Header of the compressed protocol: length, sequence id 0, length before compression (0: not compressed).
        let compressed = b"\x0d\0\0\0\0\0\0\x09\0\0\0\x03SELECT 1";
        let mut older = Older::FOUND;
        let mut seq = 0;
        for _ in 0..5 {
            seq = send(&mut older, seq, &[compressed]);
        }
        assert_eq!(older.spoken(), Spoken::Unknown);
    }

    #[test]
    fn a_login_and_what_follows_it_are_no_commands() {
        let mut older = Older::FOUND;
        let login = b"\x20\0\0\x01\x85\xa6\xff\x01\0\0\0\x01\x21";
        send(&mut older, 0, &[login, b"\x04\0\0\x03abcd"]);
        assert_eq!(older.spoken(), Spoken::Unknown);
    }

    #[test]
    fn what_a_segment_begins_with_is_told() {
        let mut older = Older::FOUND;
        let take = |older: &mut Older, seq, bytes: &[u8]| {
            let len = u32::try_from(bytes.len()).unwrap();
            older.take(seq, len, |at| {
                bytes
                    .get(usize::try_from(at).unwrap()..)?
                    .first_chunk()
                    .copied()
            })
        };
        let long = [b"\xe8\x03\0\0\x03".as_slice(), &[b'x'; 999]].concat();
        assert!(take(&mut older, 0, &PING));
        assert!(take(&mut older, 5, &long[..500]));
        assert!(!take(&mut older, 505, &long[500..]));
        assert!(take(&mut older, 5 + 1004, &QUERY));
    }
}
