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
//! 5. behind offset 5: pass once a claim has passed, else hold; unless it [may overtake](may_overtake) the login's head.

use crate::mysql::{
    FLAGS_HIGH_OFFSET, FLAGS_HIGH_SSL, FLAGS_LOW_OFFSET, Greeting, SEQUENCE_ID_OFFSET, USER_MAX,
    USER_OFFSET_41,
};
use crate::proxy::HEADERS_MAX;
use crate::tls::begins_client_hello;
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

/// From this offset on a stream holds no PROXY protocol header, no flags of a login and no user name that an exception
/// could allow, however many headers are still to come.
const BEHIND_ALL_HEADS: i32 = (HEADERS_MAX + USER_OFFSET_41 + USER_MAX as u32 + 1).cast_signed();

/// Whether a segment behind the flags of a login that has not begun yet, or not passed, may pass all the same: TCP has lost
/// or reordered what comes before it. `segment` is the stream behind the headers that have come; `ahead_from` is where it
/// holds the first byte that has passed like that.
///
/// The server reads none of it before the flags, and these pass only as [`judge`] says. What has passed must not be what
/// is judged later, though: no header may move the login on top of it ([`crate::proxy::Headers::judge`]), and no
/// exception that names users may judge a user name that it could replace
/// ([`crate::session::SocketRecord::is_judged_alone`]). Both are refused, and no honest client meets that: what begins
/// inside a header or a login's head does not begin as a `ClientHello`.
#[inline(always)]
pub fn may_overtake(
    segment: Segment,
    greeting: Greeting,
    ahead_from: Option<i32>,
    byte: impl Fn(u32) -> Option<u8>,
) -> bool {
    if segment.urgent
        || segment.start <= FLAGS_HIGH_OFFSET.cast_signed()
        || !matches!(greeting, Greeting::WithTls)
    {
        return false;
    }
    if segment.start >= BEHIND_ALL_HEADS {
        return true;
    }
    if let Some(from) = ahead_from
        && segment.start >= from
    {
        return true;
    }
    // Each read ends it: where all are made first, the compiler may keep what it concludes from one in a place that it has not written on every
    // path, and Linux 5.10 does not take a program that reads it.
    let begins = || Some(begins_client_hello(byte(0)?, byte(1)?, byte(2)?, byte(5)?));
    begins() == Some(true)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::proxy::{Found, HEADERS, Head, HeaderReader, WINDOW};
    use crate::session::{Phase, SocketRecord};
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

    fn overtakes(start: i32, bytes: &[u8], ahead_from: Option<i32>) -> bool {
        let segment = Segment {
            start,
            len: bytes.len() as u32,
            urgent: false,
        };
        may_overtake(segment, Greeting::WithTls, ahead_from, |index| {
            bytes.get(index as usize).copied()
        })
    }

    const HELLO: [u8; 9] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc];

    #[test]
    fn a_client_hello_and_what_follows_it_may_overtake() {
        assert!(overtakes(6, &HELLO, None));
        assert!(overtakes(8, &HELLO, None));
        assert!(overtakes(36, &HELLO, Some(100)));
        assert!(!overtakes(5, &HELLO, None), "the flags");
        assert!(!overtakes(0, &HELLO, Some(36)), "the flags");
        assert!(!overtakes(36, &HELLO[..5], None), "what cannot be told");
        assert!(!overtakes(36, &HELLO[1..], None));
        assert!(!overtakes(35, &HELLO[1..], Some(36)));
        assert!(overtakes(36, &HELLO[1..], Some(36)));
        assert!(overtakes(45, b"anything", Some(36)));
        assert!(!overtakes(BEHIND_ALL_HEADS - 1, b"anything", None));
        assert!(overtakes(BEHIND_ALL_HEADS, b"anything", None));
    }

    #[test]
    fn nothing_overtakes_with_the_urgent_flag_or_without_an_offer_of_tls() {
        for greeting in [
            Greeting::Unknown,
            Greeting::WithTls,
            Greeting::WithoutTls,
            Greeting::Error,
            Greeting::Foreign,
            Greeting::MysqlX,
        ] {
            for urgent in [false, true] {
                for start in [36, BEHIND_ALL_HEADS] {
                    let segment = Segment {
                        start,
                        len: 9,
                        urgent,
                    };
                    let passes = may_overtake(segment, greeting, None, |index| {
                        HELLO.get(index as usize).copied()
                    });
                    let wanted = !urgent && greeting == Greeting::WithTls;
                    assert_eq!(passes, wanted, "{segment:?} {greeting:?}");
                }
            }
        }
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

    /// What the gate lets pass of a session, where an exception allows [`USER`].
    #[derive(Default)]
    struct Gate {
        record: SocketRecord,
        /// Offset of the first byte that has passed without a judgement of its own.
        first_unjudged: Option<i64>,
    }

    const USER: &[u8] = b"app";

    impl Gate {
        fn take(&mut self, stream: &[u8], start: usize, len: usize) {
            let bytes = &stream[start..start + len];
            let segment = Segment {
                start: i32::try_from(start).unwrap(),
                len: len as u32,
                urgent: false,
            };
            let head = self.head(segment, bytes);
            let record = &mut self.record;
            let behind = record.headers.behind(segment);
            match head {
                Head::Gap => return self.overtake(behind, bytes),
                Head::Login => {}
                Head::Pass | Head::Split | Head::Contradiction | Head::Next => return,
            }
            let phase = record.phase();
            if phase == Phase::ExceptedUser && behind.start >= record.login_head_end.cast_signed() {
                record.passes_from(behind.start);
                return self.pass(behind.start);
            }
            let claimed = phase == Phase::Claimed;
            let byte = |index: u32| bytes.get(index as usize).copied();
            match judge(behind, Greeting::WithTls, claimed, byte) {
                Judgement::Claim => {
                    record.passes_from(6);
                    if phase == Phase::Plain {
                        record.phase = Phase::Claimed as u8;
                    }
                    self.pass(6);
                }
                Judgement::Neutral if behind.end() > 4 => self.pass(behind.start),
                Judgement::Plaintext(Reason::NoClientSsl) => self.except(behind, bytes),
                Judgement::Hold(Hold::Gap) => self.overtake(behind, bytes),
                Judgement::Neutral
                | Judgement::SplitClaim
                | Judgement::Plaintext(_)
                | Judgement::Hold(_) => {}
            }
        }

        fn head(&mut self, segment: Segment, bytes: &[u8]) -> Head {
            let record = &mut self.record;
            let mut at = 0;
            for index in 0..=HEADERS {
                let read = |place: u32| {
                    let bytes = &bytes[place as usize..];
                    let mut window = [0; WINDOW];
                    let len = bytes.len().min(WINDOW);
                    window[..len].copy_from_slice(&bytes[..len]);
                    let mut reader = HeaderReader::default();
                    let parsed = reader.read(&window, bytes.len() as u32, |_| {});
                    Found {
                        parsed,
                        len: reader.header_len(),
                        proxied: *reader.proxied(),
                    }
                };
                match record
                    .headers
                    .judge(segment, index, at, record.ahead_from, read)
                {
                    Head::Next => at = record.headers.end_of(index),
                    head => return head,
                }
            }
            panic!("more headers than may be");
        }

        fn overtake(&mut self, behind: Segment, bytes: &[u8]) {
            let record = &mut self.record;
            let byte = |index: u32| bytes.get(index as usize).copied();
            let from = record.ahead_from();
            if record.phase() == Phase::Plain && may_overtake(behind, Greeting::WithTls, from, byte)
            {
                record.passes_from(behind.start);
                self.pass(behind.start);
            }
        }

        /// A plaintext login of the 4.1 form passes if it is the user's.
        fn except(&mut self, behind: Segment, bytes: &[u8]) {
            let user: Vec<u8> = (USER_OFFSET_41..)
                .map(|offset| behind.payload_index(offset) as usize)
                .map_while(|index| bytes.get(index).copied().filter(|byte| *byte != 0))
                .collect();
            let end = USER_OFFSET_41 + user.len() as u32 + 1;
            let is_whole = behind.covers(4) && behind.covers(end - 1);
            if !is_whole || user != USER || !self.record.is_judged_alone(end) {
                return;
            }
            let end_of_head = i64::from(self.record.headers.end()) + i64::from(end);
            let unjudged = self.first_unjudged.unwrap_or(i64::MAX);
            assert!(unjudged >= end_of_head, "{unjudged} in {:?}", self.record);
            self.record.login_head_end = end;
            self.record.phase = Phase::ExceptedUser as u8;
        }

        fn pass(&mut self, start: i32) {
            let at = i64::from(self.record.headers.end()) + i64::from(start);
            let first = self.first_unjudged.unwrap_or(at);
            self.first_unjudged = Some(first.min(at));
        }
    }

    const PROXY_LINE: &[u8] = b"PROXY UNKNOWN\r\n";

    /// Logins and requests for TLS behind headers or none, with what begins as a `ClientHello` here and there.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let login = prop_oneof![
            Just(SSL_REQUEST.to_vec()),
            Just(plaintext_login()),
            Just(b"\x16\x03\x01\x01\x08\x01".repeat(10)),
        ];
        let hellos = prop::collection::vec(0_usize..80, 0..3);
        (0_usize..6, login, hellos).prop_map(|(headers, login, hellos)| {
            let mut stream = PROXY_LINE.repeat(headers);
            stream.extend(login);
            stream.resize(BEHIND_ALL_HEADS as usize + 100, 0xaa);
            for at in hellos {
                // Not where a user or a header stands: it would be another one.
                if stream[at..at + 6]
                    .iter()
                    .all(|byte| matches!(byte, 0 | 0xaa))
                {
                    stream[at..at + 6].copy_from_slice(&HELLO[..6]);
                }
            }
            stream
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// What passes ahead is never a login's flags, wherever headers put them, nor part of the head of a login that
        /// passes by the name of its user.
        #[test]
        fn nothing_that_passes_ahead_is_judged_later(
            streams in prop::collection::vec(streams(), 1..4),
            segments in prop::collection::vec((0_usize..4, prop_oneof![0_usize..120, 1100_usize..1280], 1_usize..90), 1..16),
        ) {
            let mut gate = Gate::default();
            gate.record.phase = Phase::Plain as u8;
            for (which, start, len) in segments {
                let stream = &streams[which % streams.len()];
                let start = if start < 20 { 0 } else { start };
                let len = len.min(stream.len() - start);
                gate.take(stream, start, len);
                let flags = i64::from(gate.record.headers.end()) + i64::from(FLAGS_HIGH_OFFSET);
                prop_assert!(gate.first_unjudged.is_none_or(|first| first > flags), "{:?}", gate.record);
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
