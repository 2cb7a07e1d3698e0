//! X Protocol before TLS: what a client may say in plaintext, and where the server's TLS flight begins.
//!
//! Source: `MySQL` 9.x Source Code Documentation, "X Protocol" (message frame, life cycle of a session,
//! `Mysqlx.proto`: ids of client and server messages). A frame is `length[4] type[1] payload[length - 1]`, little
//! endian. The client speaks first (`CapabilitiesGet`, `CapabilitiesSet`); a newer server sends a notice
//! before. TLS begins with the client's `ClientHello` in place of a frame, once the server has taken the
//! capability `tls`.
//!
//! Whether it has is not asked here, because it need not be: read as a frame, a TLS record is longer than any
//! first record of TLS may be ([`FIRST_RECORD_MAX`]), so that a server that is not in TLS waits for the rest of
//! that frame, and the rest is held until the server's own TLS flight is seen.

use crate::judge::{Judgement, Segment};
use crate::stream::Reader;
use crate::tls::begins_handshake;
use crate::verdict::{Hold, Reason};

/// Length of a frame's header, its type included, in bytes.
pub const HEADER_LEN: u32 = 5;
/// Client messages that carry no login: `CON_CAPABILITIES_GET` 1, `CON_CAPABILITIES_SET` 2, `CON_CLOSE` 3.
const HARMLESS: core::ops::RangeInclusive<u8> = 1..=3;

/// Most frames of a client before TLS. Drivers send one to three.
pub const FRAMES: usize = 4;

/// Longest first TLS record, header included: 2^14 bytes and what encryption may add in TLS 1.2 (RFC 5246
/// section 6.2.3), though a `ClientHello` is not encrypted.
pub const FIRST_RECORD_MAX: u32 = 5 + (1 << 14) + 2048;
// `16 03 01` and more as the low bytes of a frame's length.
const _: () = assert!(FIRST_RECORD_MAX < 0x01_0316);

/// The frames of a client before TLS: where each ends.
///
/// The first copy of a frame's header that passes fixes its length; every other copy must say the same, so
/// that the server cannot read another structure than was judged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ClientFrames {
    /// Offsets in the client's stream behind each frame.
    ends: [u16; FRAMES],
    /// The last of them.
    end: u16,
    count: u8,
    /// 1 when a TLS record begins behind the last frame.
    tls: u8,
}

impl ClientFrames {
    /// Offset behind the last whole frame that was read.
    #[must_use]
    #[inline(always)]
    pub const fn end(&self) -> u16 {
        self.end
    }

    /// Judges the part of `segment` that belongs to frame number `index`, which begins at `at`. Returns where
    /// the next frame begins, or the judgement of the segment.
    ///
    /// `index` goes from 0 to [`FRAMES`]; `header` gives the bytes of a frame's header at a place in the payload.
    #[inline(always)]
    pub fn judge(
        &mut self,
        segment: Segment,
        index: usize,
        at: u32,
        header: impl Fn(u32) -> Option<[u8; HEADER_LEN as usize]>,
    ) -> Result<u32, Judgement> {
        if segment.end() <= at as i64 {
            return Err(Judgement::Neutral);
        }
        let known = index < usize::from(self.count);
        let end = self.ends.get(index).map_or(0, |&end| u32::from(end));
        if i64::from(segment.start) >= i64::from(at + HEADER_LEN) {
            return if known {
                Ok(end)
            } else if self.tls != 0 {
                Err(Self::record(segment, at))
            } else {
                Err(Judgement::Hold(Hold::Gap))
            };
        }
        if !segment.covers(at) || !segment.covers(at + HEADER_LEN - 1) {
            return Err(Judgement::Hold(Hold::Split));
        }
        let Some([b0, b1, b2, b3, kind]) = header(segment.payload_index(at)) else {
            return Err(Judgement::Hold(Hold::Unreadable));
        };
        if begins_handshake(b0, b1, b2) {
            if known {
                return Err(Judgement::Plaintext(Reason::NotALogin));
            }
            self.tls = 1;
            return Err(Self::record(segment, at));
        }
        let length = u16::from_le_bytes([b0, b1]);
        if b2 != 0 || b3 != 0 || length == 0 {
            return Err(Judgement::Plaintext(Reason::NotALogin));
        }
        if !HARMLESS.contains(&kind) {
            return Err(Judgement::Plaintext(Reason::XWithoutTls));
        }
        let next = at + 4 + u32::from(length);
        if known {
            return if next == end {
                Ok(end)
            } else {
                Err(Judgement::Plaintext(Reason::NotALogin))
            };
        }
        let (Some(slot), Ok(end)) = (self.ends.get_mut(index), u16::try_from(next)) else {
            return Err(Judgement::Plaintext(Reason::Unjudgeable));
        };
        if self.tls != 0 {
            return Err(Judgement::Plaintext(Reason::NotALogin));
        }
        *slot = end;
        self.end = end;
        self.count = index as u8 + 1;
        Ok(next)
    }

    /// A segment of the first TLS record, which begins at `at`.
    #[inline(always)]
    const fn record(segment: Segment, at: u32) -> Judgement {
        if segment.end() <= (at + FIRST_RECORD_MAX) as i64 {
            Judgement::Claim
        } else {
            Judgement::Hold(Hold::Gap)
        }
    }
}

/// Finds the server's TLS flight behind its frames, and its answer to a login before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ServerFrames {
    /// Offset in the server's stream of the next byte that is wanted.
    position: u32,
    /// The frame's length so far; where the TLS flight begins, once it is found.
    value: u32,
    /// How many bytes of the header were read; [`ServerFrames::TLS`] once the flight is found;
    /// [`ServerFrames::LOST`] behind what is no frame.
    state: u8,
    /// 1 when a frame answered a login.
    login: u8,
    _pad: [u8; 2],
}

impl ServerFrames {
    const TLS: u8 = 5;
    const LOST: u8 = 6;
    /// Lengths of a frame that is followed. Before TLS a server says little, and a length near 2^32 would lead the
    /// reader backwards.
    pub const LENGTHS: core::ops::RangeInclusive<u32> = 1..=0x00ff_ffff;
    /// `Mysqlx.Session.AuthenticateContinue` and `AuthenticateOk`.
    const ANSWERS: core::ops::RangeInclusive<u8> = 3..=4;

    /// Upper bound of [`Reader::take`] calls for one segment: eight frames.
    pub const STEPS: u32 = 40;

    /// Where the TLS flight begins, once it is found.
    #[must_use]
    #[inline(always)]
    pub const fn flight(&self) -> Option<u32> {
        if self.state == Self::TLS {
            Some(self.value)
        } else {
            None
        }
    }

    /// Whether the server has answered a login.
    #[must_use]
    #[inline(always)]
    pub const fn answers_login(&self) -> bool {
        self.login != 0
    }
}

impl Reader for ServerFrames {
    #[inline(always)]
    fn position(&self) -> u32 {
        self.position
    }

    #[inline(always)]
    fn is_done(&self) -> bool {
        self.state >= Self::TLS
    }

    #[inline(always)]
    fn take(&mut self, byte: u8) {
        self.position = self.position.wrapping_add(1);
        if self.state >= 4 {
            self.login |= u8::from(Self::ANSWERS.contains(&byte));
            // The length counts the type, which was read.
            self.position = self.position.wrapping_add(self.value).wrapping_sub(1);
            self.value = 0;
            self.state = 0;
            return;
        }
        self.value |= u32::from(byte) << (8 * (self.state & 3));
        self.state += 1;
        let [b0, b1, b2, _] = self.value.to_le_bytes();
        if self.state == 3 && begins_handshake(b0, b1, b2) {
            self.state = Self::TLS;
            self.value = self.position.wrapping_sub(3);
        } else if self.state == 4 && !Self::LENGTHS.contains(&self.value) {
            self.state = Self::LOST;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::stream::advance;
    use proptest::prelude::*;
    use std::vec::Vec;

    const GET: [u8; 5] = [1, 0, 0, 0, 1];
    /// `CapabilitiesSet` of the capability `tls`, as MySQL's own connectors send it.
    const SET_TLS: &[u8] = &[
        0x16, 0, 0, 0, 2, 0x0a, 0x13, 0x0a, 0x11, 0x0a, 3, b't', b'l', b's', 0x12, 0x0a, 8, 1,
        0x12, 6, 8, 7, 0x40, 1, 0, 0,
    ];
    const CLIENT_HELLO: [u8; 11] = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    /// `AuthenticateStart` of `MYSQL41`.
    const LOGIN: [u8; 14] = [
        10, 0, 0, 0, 4, 0x0a, 7, b'M', b'Y', b'S', b'Q', b'L', b'4', b'1',
    ];

    fn segment(start: usize, len: usize) -> Segment {
        Segment {
            start: i32::try_from(start).unwrap(),
            len: len as u32,
            urgent: false,
        }
    }

    fn judge(frames: &mut ClientFrames, stream: &[u8], start: usize, len: usize) -> Judgement {
        let segment = segment(start, len);
        let mut at = 0;
        for index in 0..=FRAMES {
            match frames.judge(segment, index, at, |place| {
                stream.get(start + place as usize..)?.first_chunk().copied()
            }) {
                Ok(next) => at = next,
                Err(judgement) => return judgement,
            }
        }
        Judgement::Hold(Hold::Gap)
    }

    fn whole(stream: &[u8]) -> Judgement {
        judge(&mut ClientFrames::default(), stream, 0, stream.len())
    }

    #[test]
    fn capabilities_pass_and_a_login_does_not() {
        assert_eq!(whole(&GET), Judgement::Neutral);
        assert_eq!(whole(&[&GET[..], SET_TLS].concat()), Judgement::Neutral);
        let login = Judgement::Plaintext(Reason::XWithoutTls);
        assert_eq!(whole(&LOGIN), login);
        assert_eq!(whole(&[&GET[..], &LOGIN].concat()), login);
        assert_eq!(whole(&[SET_TLS, &LOGIN].concat()), login);
    }

    #[test]
    fn tls_is_claimed_and_no_more_than_a_first_record_passes() {
        let mut frames = ClientFrames::default();
        let stream = [SET_TLS, &CLIENT_HELLO[..], &std::vec![0; 40_000]].concat();
        assert_eq!(
            judge(&mut frames, &stream, 0, SET_TLS.len()),
            Judgement::Neutral
        );
        let at = SET_TLS.len();
        assert_eq!(judge(&mut frames, &stream, at, 500), Judgement::Claim);
        assert_eq!(judge(&mut frames, &stream, at + 500, 500), Judgement::Claim);
        let last = at + FIRST_RECORD_MAX as usize - 500;
        assert_eq!(judge(&mut frames, &stream, last, 500), Judgement::Claim);
        assert_eq!(
            judge(&mut frames, &stream, last, 501),
            Judgement::Hold(Hold::Gap)
        );
    }

    #[test]
    fn copies_that_differ_in_structure_are_refused() {
        let mut frames = ClientFrames::default();
        let long = [&[40, 0, 0, 0, 2][..], &[0; 39]].concat();
        assert_eq!(judge(&mut frames, &long, 0, long.len()), Judgement::Neutral);
        assert_eq!(
            judge(&mut frames, &GET, 0, GET.len()),
            Judgement::Plaintext(Reason::NotALogin)
        );
        assert_eq!(
            judge(&mut frames, &CLIENT_HELLO, 0, CLIENT_HELLO.len()),
            Judgement::Plaintext(Reason::NotALogin)
        );
        let mut frames = ClientFrames::default();
        assert_eq!(judge(&mut frames, &CLIENT_HELLO, 0, 11), Judgement::Claim);
        assert_eq!(
            judge(&mut frames, &GET, 0, GET.len()),
            Judgement::Plaintext(Reason::NotALogin)
        );
    }

    #[test]
    fn what_lies_behind_unread_frames_is_held() {
        let stream = [&GET[..], &LOGIN].concat();
        let mut frames = ClientFrames::default();
        assert_eq!(
            judge(&mut frames, &stream, 5, 14),
            Judgement::Hold(Hold::Gap)
        );
        assert_eq!(
            judge(&mut frames, &stream, 0, 3),
            Judgement::Hold(Hold::Split)
        );
        assert_eq!(
            judge(&mut frames, &stream, 0, 8),
            Judgement::Hold(Hold::Split)
        );
    }

    #[test]
    fn too_many_frames_are_refused() {
        let stream = GET.repeat(FRAMES + 1);
        assert_eq!(whole(&stream), Judgement::Plaintext(Reason::Unjudgeable));
        assert_eq!(whole(&stream[5..]), Judgement::Neutral);
    }

    #[test]
    fn ssl_3_and_long_frames_are_no_claim() {
        for first in [
            [0x16, 3, 0, 0, 4],
            [0, 0, 1, 0, 2],
            [0, 0, 0, 1, 2],
            [0, 0, 0, 0, 1],
        ] {
            assert!(
                matches!(whole(&first), Judgement::Plaintext(_)),
                "{first:x?}"
            );
        }
    }

    fn read(stream: &[u8], cuts: &[usize]) -> ServerFrames {
        let mut frames = ServerFrames::default();
        let mut from = 0;
        for &to in cuts.iter().chain([&stream.len()]) {
            assert!(advance(
                &mut frames,
                from as u32,
                to as u32,
                ServerFrames::STEPS,
                |at| { stream.get(at as usize).copied() }
            ));
            from = to;
        }
        frames
    }

    #[test]
    fn flight_of_the_server_is_found_behind_its_frames_in_any_cut() {
        let hello = [5, 0, 0, 0, 11, 8, 5, 0x1a, 0];
        let ok = [1, 0, 0, 0, 0];
        let flight = [0x16, 3, 3, 0, 0x7a, 2, 0, 0, 0x76, 3, 3];
        let stream = [&hello[..], &ok, &flight].concat();
        for cut in 0..stream.len() {
            assert_eq!(read(&stream, &[cut]).flight(), Some(14), "cut at {cut}");
        }
        let plain = [&hello[..], &ok].concat();
        assert_eq!(read(&plain, &[]).flight(), None);
        assert!(!read(&stream, &[]).answers_login());
        let challenge = [22, 0, 0, 0, 3, 0x0a, 20];
        for cut in 0..challenge.len() {
            assert!(read(&[&plain[..], &challenge].concat(), &[14 + cut]).answers_login());
        }
    }

    /// A server that takes the frames as a client meant them to be taken, from the copies that passed.
    fn server_reads_a_login(accepted: &[Option<u8>]) -> bool {
        let mut at = 0;
        loop {
            let Some(header) = accepted.get(at..at + 5) else {
                return false;
            };
            let Some(header) = header.iter().copied().collect::<Option<Vec<u8>>>() else {
                return false;
            };
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let whole = accepted.get(at..at + 4 + length);
            if !whole.is_some_and(|frame| frame.iter().all(Option::is_some)) {
                return false;
            }
            if header[4] > 3 {
                return true;
            }
            at += 4 + length.max(1);
        }
    }

    proptest! {
        /// Whatever copies a client sends, in whatever order, and whichever of those that pass the server's TCP
        /// takes for each byte: no login comes out.
        #[test]
        fn no_mix_of_copies_that_pass_makes_a_login(
            segments in prop::collection::vec(
                (0_usize..40, prop::collection::vec(prop_oneof![0_u8..6, Just(0x16), any::<u8>()], 1..24)),
                1..12,
            ),
            takes_later in prop::collection::vec(any::<bool>(), 12),
        ) {
            let mut frames = ClientFrames::default();
            let mut accepted: Vec<Option<u8>> = std::vec![None; 64];
            for ((start, bytes), later) in segments.iter().zip(takes_later) {
                let mut stream = std::vec![0; *start];
                stream.extend(bytes);
                match judge(&mut frames, &stream, *start, bytes.len()) {
                    Judgement::Neutral | Judgement::Claim => {}
                    Judgement::Plaintext(_) => break,
                    Judgement::Hold(_) | Judgement::SplitClaim => continue,
                }
                for (place, byte) in accepted.iter_mut().skip(*start).zip(bytes) {
                    if place.is_none() || later {
                        *place = Some(*byte);
                    }
                }
                prop_assert!(!server_reads_a_login(&accepted), "{accepted:x?}");
            }
        }
    }
}
