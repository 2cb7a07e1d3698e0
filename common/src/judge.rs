//! What one client segment proves.
//!
//! In the connection phase the two low capability bytes of the login decide (offsets 4 and 5 of the
//! client's stream, `mysql::FLAGS_LOW_OFFSET`), in the 4.1 form and in the 320 form alike. A segment
//! is judged by the stream offsets it covers, never by its place in the order of arrival: every copy
//! of these bytes is judged, so that order, overlap, repetition, tiny segments and decoys cannot
//! change the answer. Linux resolves overlapping copies both ways, hence no copy may be trusted.
//!
//! The rules, for a segment that covers `start..end`:
//!
//! 0. offset 3, the sequence id, is not 1: no login. The server might take it for something else, behind
//!    which the login stands (a PROXY protocol header), so that offset 5 would say nothing;
//! 1. nothing from offset 4 on: only (parts of) the packet header, which carries nothing: pass;
//! 2. offset 5 without `CLIENT_SSL`: plaintext;
//! 3. offset 4 or 5 without the other: hold. Their sender's TCP sends them together in the end;
//! 4. both, with `CLIENT_SSL`: a claim of TLS, worth as much as the greeting of this connection:
//!    pass if it offered TLS, plaintext if it did not, hold if it has not been seen;
//! 5. behind offset 5: pass once a claim has passed, else hold.

use crate::mysql::{
    FLAGS_HIGH_OFFSET, FLAGS_HIGH_SSL, FLAGS_LOW_OFFSET, Greeting, SEQUENCE_ID_OFFSET,
};
use crate::verdict::{Hold, Reason};

/// How many segments of one session are held before it is denied: enough for the retransmissions of
/// a client whose first segments came before the greeting, or in the wrong order.
pub const MAX_HOLDS: u16 = 64;

/// Held segments count against their session if they begin below this offset in the client's stream. Who forges
/// segments without seeing the connection has to guess its sequence numbers, and hits one in 65,536 times.
const HOLDS_COUNT_BELOW: i32 = 1 << 16;

/// A segment of the client's stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset of the first payload byte: sequence number minus (ISN + 1), as a signed distance
    /// (RFC 9293 section 3.4), because keep-alive probes start before the stream does.
    pub start: i32,
    /// Payload length, in bytes.
    pub len: u32,
    /// Whether the URG flag is set.
    pub urgent: bool,
}

impl Segment {
    /// Whether it counts against its session when it is held.
    #[must_use]
    #[inline(always)]
    pub const fn counts_as_hold(&self) -> bool {
        self.start >= -1 && self.start < HOLDS_COUNT_BELOW
    }

    /// Offset behind the last payload byte.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> i64 {
        self.start as i64 + self.len as i64
    }

    /// Whether `offset` of the stream is in this segment.
    #[must_use]
    #[inline(always)]
    pub const fn covers(&self, offset: u32) -> bool {
        self.start as i64 <= offset as i64 && (offset as i64) < self.end()
    }

    /// Place in the payload of the byte at `offset` of the stream, which the segment covers.
    #[must_use]
    #[inline(always)]
    pub const fn payload_index(&self, offset: u32) -> u32 {
        offset.wrapping_sub(self.start.cast_unsigned())
    }
}

/// What a segment proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Nothing that matters.
    Neutral,
    /// A claim of TLS that the greeting backs.
    Claim,
    /// A claim that would be a [`Judgement::Claim`], but not all of it is in the segment. It must not
    /// reach the server; in observe mode, where it does, it counts as the claim.
    SplitClaim,
    /// A plaintext login.
    Plaintext(Reason),
    /// It cannot be told yet.
    Hold(Hold),
}

/// Judges a segment with payload. `claimed` says whether a [`Judgement::Claim`] has passed; `byte` gives the
/// byte at a place in the payload.
#[inline(always)]
pub fn judge(
    segment: Segment,
    greeting: Greeting,
    claimed: bool,
    byte: impl Fn(u32) -> Option<u8>,
) -> Judgement {
    if segment.urgent {
        return Judgement::Hold(Hold::Urgent);
    }
    if segment.covers(SEQUENCE_ID_OFFSET) {
        match byte(segment.payload_index(SEQUENCE_ID_OFFSET)) {
            Some(1) => {}
            Some(_) => return Judgement::Plaintext(Reason::NotALogin),
            None => return Judgement::Hold(Hold::Unreadable),
        }
    }
    if segment.end() <= FLAGS_LOW_OFFSET as i64 {
        return Judgement::Neutral;
    }
    if segment.covers(FLAGS_HIGH_OFFSET) {
        let Some(flags) = byte(segment.payload_index(FLAGS_HIGH_OFFSET)) else {
            return Judgement::Hold(Hold::Unreadable);
        };
        if flags & FLAGS_HIGH_SSL == 0 {
            return Judgement::Plaintext(Reason::NoClientSsl);
        }
        return match greeting {
            Greeting::Unknown => Judgement::Hold(Hold::BeforeGreeting),
            Greeting::WithTls if segment.covers(FLAGS_LOW_OFFSET) => Judgement::Claim,
            Greeting::WithTls => Judgement::SplitClaim,
            Greeting::WithoutTls | Greeting::Error | Greeting::Foreign | Greeting::MysqlX => {
                Judgement::Plaintext(Reason::TlsNotOffered)
            }
        };
    }
    if segment.covers(FLAGS_LOW_OFFSET) {
        return Judgement::Hold(Hold::Split);
    }
    if claimed {
        Judgement::Neutral
    } else {
        Judgement::Hold(Hold::Gap)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const SSL_REQUEST: [u8; 36] = {
        let mut bytes = [0; 36];
        bytes[0] = 32;
        bytes[3] = 1;
        bytes[4] = 0x05;
        bytes[5] = 0xae;
        bytes
    };

    fn of(bytes: &[u8], start: i32, len: usize, greeting: Greeting, claimed: bool) -> Judgement {
        let segment = Segment {
            start,
            len: len as u32,
            urgent: false,
        };
        judge(segment, greeting, claimed, |index| {
            bytes
                .get(usize::try_from(i64::from(start) + i64::from(index)).ok()?)
                .copied()
        })
    }

    fn plaintext_login() -> Vec<u8> {
        let mut bytes = SSL_REQUEST.to_vec();
        bytes[5] &= !FLAGS_HIGH_SSL;
        bytes.extend(*b"app\0\x14");
        bytes.extend([0xaa; 20]);
        bytes
    }

    #[test]
    fn a_claim_is_worth_what_the_greeting_says() {
        let claim = |greeting| of(&SSL_REQUEST, 0, 36, greeting, false);
        assert_eq!(claim(Greeting::WithTls), Judgement::Claim);
        assert_eq!(
            claim(Greeting::WithoutTls),
            Judgement::Plaintext(Reason::TlsNotOffered)
        );
        assert_eq!(
            claim(Greeting::Unknown),
            Judgement::Hold(Hold::BeforeGreeting)
        );
    }

    #[test]
    fn plaintext_is_told_before_the_greeting_too() {
        for greeting in [Greeting::Unknown, Greeting::WithTls, Greeting::WithoutTls] {
            assert_eq!(
                of(&plaintext_login(), 0, 61, greeting, false),
                Judgement::Plaintext(Reason::NoClientSsl)
            );
        }
    }

    #[test]
    fn a_plaintext_copy_is_judged_after_a_claim_too() {
        assert_eq!(
            of(&plaintext_login(), 4, 2, Greeting::WithTls, true),
            Judgement::Plaintext(Reason::NoClientSsl)
        );
    }

    #[test]
    fn a_keep_alive_probe_is_neutral() {
        assert_eq!(
            of(&SSL_REQUEST, -1, 1, Greeting::WithTls, false),
            Judgement::Neutral
        );
    }

    #[test]
    fn far_offsets_are_held() {
        assert_eq!(
            of(&SSL_REQUEST, i32::MAX, 8, Greeting::WithTls, false),
            Judgement::Hold(Hold::Gap)
        );
    }

    #[test]
    fn urgent_data_is_held_whatever_it_says() {
        let segment = Segment {
            start: 0,
            len: 36,
            urgent: true,
        };
        assert_eq!(
            judge(segment, Greeting::WithTls, true, |_| Some(0xff)),
            Judgement::Hold(Hold::Urgent)
        );
    }

    #[test]
    fn another_sequence_id_is_no_login_whatever_follows() {
        let mut bytes = SSL_REQUEST;
        for sequence_id in [0, 2, 0x0a, 0x58, 0xff] {
            bytes[3] = sequence_id;
            for (start, len) in [(0, 36), (0, 4), (3, 1), (2, 30)] {
                assert_eq!(
                    of(&bytes, start, len, Greeting::WithTls, true),
                    Judgement::Plaintext(Reason::NotALogin),
                    "{sequence_id} in {start}+{len}"
                );
            }
        }
    }

    proptest! {
        /// Whatever segments of a plaintext login come, in whatever order: the bytes from the flags on
        /// never pass as long as no claim has.
        #[test]
        fn no_cut_of_a_plaintext_login_passes(start in -8_i32..70, len in 1_usize..80) {
            let judgement = of(&plaintext_login(), start, len, Greeting::WithTls, false);
            let reaches_flags = i64::from(start) + i64::try_from(len).unwrap() > 4;
            prop_assert_eq!(judgement == Judgement::Neutral, !reaches_flags);
            prop_assert_ne!(judgement, Judgement::Claim);
        }

        /// A server that took bytes 4 and 5 from passed segments only took a claim: any passed
        /// segment that covers one of them covers both and has `CLIENT_SSL`.
        #[test]
        fn the_flags_pass_only_together_and_only_as_a_claim(start in -8_i32..8, len in 1_usize..40, claimed: bool, flags: u8) {
            let mut bytes = SSL_REQUEST;
            bytes[5] = flags;
            let judgement = of(&bytes, start, len, Greeting::WithTls, claimed);
            let segment = Segment { start, len: len as u32, urgent: false };
            if segment.covers(4) || segment.covers(5) {
                let whole = segment.covers(4) && segment.covers(5) && flags & FLAGS_HIGH_SSL != 0;
                prop_assert_eq!(judgement == Judgement::Claim, whole);
                prop_assert_ne!(judgement, Judgement::Neutral);
            }
        }
    }
}
