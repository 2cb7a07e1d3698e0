//! The client's stream in X Protocol, before TLS.

use musttls_common::judge::{Judgement, Segment};
use musttls_common::mysqlx::{ClientFrames, FIRST_RECORD_MAX, FRAMES};
use musttls_common::verdict::Hold;

/// `AuthenticateStart` of `MYSQL41`: what must not get in.
const LOGIN: [u8; 14] = [
    10, 0, 0, 0, 4, 0x0a, 7, b'M', b'Y', b'S', b'Q', b'L', b'4', b'1',
];
/// Cuts of a stream that are tried.
const CUTS: usize = 24;

/// Sends the stream in every cut, followed by other copies of its bytes, and asserts that a server which takes any
/// of the copies that passed reads no login from them.
pub fn target(stream: &[u8]) {
    other_structures(stream);
    let step = stream.len() / CUTS + 1;
    let cuts = (0..stream.len()).step_by(step);
    // What a client that wants to get in would have the server read in place of what was judged.
    let shifted = stream.get(1..).unwrap_or_default();
    let reversed: Vec<u8> = stream.iter().rev().copied().collect();
    let twins = [stream, &LOGIN[..], shifted, &reversed];
    for cut in cuts {
        let (head, tail) = stream.split_at_checked(cut).unwrap_or_default();
        for twin in twins {
            for at in [0, cut, cut.saturating_sub(1)] {
                session(&[(0, head), (cut, tail), (at, twin), (0, stream)]);
                session(&[(at, twin), (0, head), (cut, tail)]);
            }
        }
        let mut frames = ClientFrames::default();
        let whole = judge(&mut frames, 0, stream);
        if whole == Judgement::Neutral {
            assert!(usize::from(frames.end()) >= stream.len().min(usize::from(u16::MAX)));
        }
    }
}

/// Two harmless frames, the second with a login inside, and a copy of the first header that would end the first frame
/// where that login begins. The stream says how long they are.
fn other_structures(stream: &[u8]) {
    let Some(&[first, padding, kind]) = stream.first_chunk() else {
        return;
    };
    let (first, padding) = (first % 32, padding % 32);
    let kind = kind % 6;
    let frame = |payload: &[u8]| {
        let length = u8::try_from(payload.len() + 1).unwrap_or(u8::MAX);
        [&[length, 0, 0, 0, 2], payload].concat()
    };
    let inner = [&vec![0; padding.into()], &LOGIN[..]].concat();
    let judged = [frame(&vec![0; first.into()]), frame(&inner)].concat();
    for length in 0..64 {
        let twin = [length, 0, 0, 0, kind];
        session(&[(0, &judged), (0, &twin), (0, &judged)]);
        session(&[(0, &twin), (0, &judged)]);
        session(&[
            (5, judged.get(5..).unwrap_or_default()),
            (0, &twin),
            (0, &judged),
        ]);
    }
}

/// A session of these segments, each an offset and its bytes.
fn session(segments: &[(usize, &[u8])]) {
    let mut frames = ClientFrames::default();
    let end = segments.iter().map(|(at, bytes)| at + bytes.len()).max();
    let mut taken = [Server::new(end), Server::new(end)];
    for &(at, bytes) in segments {
        if bytes.is_empty() {
            continue;
        }
        let before = frames;
        match judge(&mut frames, at, bytes) {
            Judgement::Neutral | Judgement::Claim => {
                let [first, last] = &mut taken;
                first.take(at, bytes, false);
                last.take(at, bytes, true);
            }
            Judgement::SplitClaim => unreachable!("X Protocol knows no split claim"),
            Judgement::Plaintext(_) | Judgement::Hold(_) => {}
        }
        assert!(frames.end() >= before.end(), "{before:?} became {frames:?}");
        // In enforce mode a session ends with its plaintext verdict, but what passed by then has passed.
        for server in &taken {
            assert!(!server.reads_a_login(), "{segments:x?}");
        }
    }
}

fn judge(frames: &mut ClientFrames, start: usize, bytes: &[u8]) -> Judgement {
    let (Ok(first), Ok(len)) = (i32::try_from(start), u32::try_from(bytes.len())) else {
        return Judgement::Hold(Hold::Gap);
    };
    let segment = Segment {
        start: first,
        len,
        urgent: false,
    };
    let mut at = 0;
    for index in 0..=FRAMES {
        let header = |place: u32| {
            let place = usize::try_from(place).ok()?;
            bytes.get(place..)?.first_chunk().copied()
        };
        match frames.judge(segment, index, at, header) {
            Ok(next) => {
                assert!(next > at, "frame {index} ends where it begins");
                at = next;
            }
            Err(judgement) => {
                if judgement == Judgement::Claim {
                    let end = i64::from(at) + i64::from(FIRST_RECORD_MAX);
                    assert!(segment.end() <= end, "more than a first record passed");
                }
                return judgement;
            }
        }
    }
    Judgement::Hold(Hold::Gap)
}

/// A server that is not in TLS, and takes the first or the last copy of each byte that reaches it.
struct Server(Vec<Option<u8>>);

impl Server {
    fn new(len: Option<usize>) -> Self {
        Self(vec![None; len.unwrap_or_default()])
    }

    fn take(&mut self, at: usize, bytes: &[u8], takes_last: bool) {
        for (place, &byte) in self.0.iter_mut().skip(at).zip(bytes) {
            if takes_last || place.is_none() {
                *place = Some(byte);
            }
        }
    }

    /// Whether it has read a whole frame that is neither of capabilities nor the end.
    fn reads_a_login(&self) -> bool {
        let mut at = 0;
        loop {
            let header: Option<Vec<u8>> = self
                .0
                .get(at..at + 5)
                .and_then(|header| header.iter().copied().collect());
            let Some(&[a, b, c, d, kind]) = header.as_deref() else {
                return false;
            };
            let length = usize::try_from(u32::from_le_bytes([a, b, c, d])).unwrap_or(usize::MAX);
            let is_whole = at
                .checked_add(4 + length.max(1))
                .and_then(|end| self.0.get(at..end))
                .is_some_and(|frame| frame.iter().all(Option::is_some));
            if !is_whole {
                return false;
            }
            if !(1..=3).contains(&kind) {
                return true;
            }
            at += 4 + length.max(1);
        }
    }
}
