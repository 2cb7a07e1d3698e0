//! Attempts made up at random, the same for the same seed.
//!
//! Each is a plaintext login in some cut and order, among copies of something that passes (a lure), segments
//! that the server's TCP discards, and urgent bytes; in the end most send the login once more in order, as a
//! TCP does that was not acknowledged, so that gaps are filled.

use std::env;
use std::num::ParseIntError;
use std::ops::Range;
use std::str::FromStr;
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use super::{Attempt, Step, Stream};
use crate::tcp::{ACK, Extension, FIN, Opening, PSH, RST, SYN, Segment, Stamp};

/// A generator of numbers (`SplitMix64`: Steele, Lea, Flood, "Fast splittable pseudorandom number generators",
/// 2014): small, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// An initial sequence number.
    pub fn initial_sequence_number(&mut self) -> u32 {
        u32::try_from(self.number() >> 32).unwrap_or_default()
    }

    /// A number in `range`; its start if that is empty.
    pub fn within(&mut self, range: Range<usize>) -> usize {
        let len = u64::try_from(range.len()).unwrap_or(u64::MAX).max(1);
        range.start + usize::try_from(self.number() % len).unwrap_or_default()
    }

    /// True so many times in a hundred.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.within(0..100) < percent
    }

    /// One of `all`.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        all.get(self.within(0..all.len()))
    }

    fn shuffle<T>(&mut self, all: &mut [T]) {
        for last in (1..all.len()).rev() {
            let other = self.within(0..last + 1);
            all.swap(last, other);
        }
    }
}

/// The seed of the first thing that is made up, and how many sessions come of it: from the environment, in `{name}_SEED` and
/// `{name}_SESSIONS`, or by the clock and `sessions`. Both are printed.
pub fn seed_and_sessions(name: &str, sessions: usize) -> Result<(u64, usize)> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let seed = number_from(&format!("{name}_SEED"), now.as_secs() << 20)?;
    let sessions = number_from(&format!("{name}_SESSIONS"), sessions)?;
    println!("{name}_SEED={seed} {name}_SESSIONS={sessions}");
    Ok((seed, sessions))
}

fn number_from<N>(variable: &str, default: N) -> Result<N>
where
    N: FromStr<Err = ParseIntError>,
{
    env::var(variable).map_or(Ok(default), |text| {
        text.parse()
            .with_context(|| format!("{variable} is `{text}`, no number"))
    })
}

/// The attempt of `seed` with the bytes of `stream`.
#[must_use]
pub fn attempt(seed: u64, stream: &Stream) -> Attempt {
    let mut maker = Maker {
        random: Random::new(seed),
        plain: stream.plain.clone(),
        lures: stream.lures.clone(),
        is_v6: stream.is_v6,
    };
    let opening = maker.opening();
    let segments = maker.segments();
    let mut attempt = Attempt::new(format!("seed {seed}"), stream, []).opening(opening);
    if !attempt.opening.is_plain() {
        // Else nothing would complete the handshake where that is dropped.
        for (offset, flags) in [(-1, SYN), (0, ACK)] {
            let empty = Segment::at(offset, b"").flags(flags);
            attempt.steps.extend([Step::Send(empty), Step::Settle]);
        }
    }
    attempt.steps.extend(segments.into_iter().map(Step::Send));
    attempt
}

/// The attempt of `seed` that sends most before the greeting, at once.
#[must_use]
pub fn early_attempt(seed: u64, stream: &Stream) -> Attempt {
    let mut maker = Maker {
        random: Random::new(seed),
        plain: stream.plain.clone(),
        lures: vec![stream.disguised.clone(), stream.plain.clone()],
        is_v6: stream.is_v6,
    };
    let mut opening = maker.opening();
    (opening.syn_payload, opening.fast_open) = (Vec::new(), None);
    let mut early = vec![Segment::at(0, b"").flags(ACK)];
    early.extend(maker.segments());
    // What was held is not missed where the rest is: some come only behind the greeting.
    early.retain(|segment| {
        segment.offset != 0 || maker.random.chance(70) || segment.bytes.is_empty()
    });
    opening.third = Some(early);
    let mut attempt = Attempt::new(format!("seed {seed}"), stream, []).opening(opening);
    attempt
        .steps
        .extend(maker.login().into_iter().map(Step::Send));
    attempt
}

struct Maker {
    random: Random,
    plain: Vec<u8>,
    lures: Vec<Vec<u8>>,
    is_v6: bool,
}

impl Maker {
    fn opening(&mut self) -> Opening {
        let isn = self.random.initial_sequence_number();
        let mut opening = Opening {
            // Every third one wraps within the login's head.
            isn: if self.random.chance(33) {
                isn | 0xffff_ffc0
            } else {
                isn
            },
            stamps: self.random.chance(50),
            ..Opening::default()
        };
        if self.random.chance(4) {
            opening.third = Some(self.login());
        }
        if self.random.chance(4) {
            let head = self.random.within(1..self.plain.len() + 1);
            opening.syn_payload = self.plain.get(..head).unwrap_or_default().to_vec();
            opening.fast_open = Some(Vec::new());
        }
        opening
    }

    fn segments(&mut self) -> Vec<Segment> {
        let mut segments = Vec::new();
        if self.random.chance(20) {
            segments.push(self.end_like_tls());
        }
        if self.random.chance(15) {
            segments.push(self.urgent_byte());
        }
        let mut login = self.login();
        if self.random.chance(50) {
            self.random.shuffle(&mut login);
        }
        for _ in 0..self.random.within(0..5) {
            let lure = self.lure();
            let place = self.random.within(0..login.len() + 1);
            login.insert(place, lure);
        }
        segments.extend(login);
        if self.random.chance(70) {
            segments.extend(self.login());
        }
        segments
    }

    /// Has the login look from some place on like a TLS record with a `ClientHello`, and returns what begins there. In its
    /// maximum packet size, character set and filler servers take that.
    fn end_like_tls(&mut self) -> Segment {
        let start = self.random.within(8..27);
        for (place, byte) in self
            .plain
            .iter_mut()
            .skip(start)
            .zip([0x16, 3, 1, 1, 0x2d, 1])
        {
            *place = byte;
        }
        Segment::of(&self.plain, start, self.plain.len())
    }

    /// Puts a byte into the stream that the server does not read, and returns the segment that says so.
    fn urgent_byte(&mut self) -> Segment {
        let offset = self.random.within(0..12);
        let byte = self
            .random
            .pick(&[1, 0x0a, 0x08, 0xff])
            .copied()
            .unwrap_or_default();
        self.plain.insert(offset, byte);
        for lure in &mut self.lures {
            if lure.len() > offset && self.random.chance(50) {
                lure.insert(offset, byte);
            }
        }
        let start = self.random.within(0..offset + 1);
        let pointer = u16::try_from(offset - start + 1).unwrap_or(1);
        let end = if self.random.chance(70) {
            start
        } else {
            offset + 1
        };
        Segment::of(&self.plain, start, end)
            .flags(ACK)
            .urgent(pointer)
    }

    /// The whole login in order, cut at random places.
    fn login(&mut self) -> Vec<Segment> {
        let len = self.plain.len();
        let mut cuts = vec![0, len];
        for _ in 0..self.random.within(0..4) {
            // Most where it matters.
            let end = if self.random.chance(70) { 12 } else { len };
            cuts.push(self.random.within(0..end));
        }
        if self.random.chance(10) {
            cuts.extend(0..12);
        }
        cuts.sort_unstable();
        cuts.dedup();
        let mut segments: Vec<_> = cuts
            .windows(2)
            .filter_map(|cut| Some(Segment::of(&self.plain, *cut.first()?, *cut.last()?)))
            .collect();
        if self.random.chance(5)
            && let Some(last) = segments.last_mut()
        {
            last.flags |= FIN;
        }
        segments
            .into_iter()
            .map(|segment| self.carried(segment))
            .collect()
    }

    /// In some IP packet.
    fn carried(&mut self, segment: Segment) -> Segment {
        match self.random.within(0..40) {
            0 if self.is_v6 => {
                let count = self.random.within(1..11);
                segment.extensions(&vec![Extension::destination_options(); count])
            }
            0 => {
                let words = self.random.within(1..11);
                segment.ip_options(&vec![1; words * 4])
            }
            1 => segment.in_fragments(8 * self.random.within(3..9)),
            2 => segment.hops(1),
            _ => segment,
        }
    }

    /// Part of something that passes, or of the login itself, mostly such that the server discards it.
    fn lure(&mut self) -> Segment {
        let bytes = if self.random.chance(80) {
            self.random.pick(&self.lures).unwrap_or(&self.plain)
        } else {
            &self.plain
        };
        let start = self.random.within(0..7);
        let end = match self.random.within(0..3) {
            0 => self.random.within(start..12) + 1,
            1 => self.random.within(start..bytes.len()) + 1,
            _ => bytes.len(),
        };
        let mut segment = Segment::of(bytes, start, end);
        if self.random.chance(10) {
            // Bytes before the stream are cut off.
            segment.offset -= 1;
            segment.bytes.insert(0, 0);
        }
        let segment = self.carried(segment);
        self.defect(segment)
    }

    fn defect(&mut self, mut segment: Segment) -> Segment {
        match self.random.within(0..16) {
            0..4 => segment.unsound(),
            4 => segment.stamp(Stamp::Old),
            5 => segment.stamp(Stamp::Missing),
            6 => segment.ack_ahead(),
            7 => segment.flags(PSH),
            8 => segment.flags(SYN | ACK),
            9 => {
                let distances = [1 << 20, i32::MAX, i32::MIN, -1 << 20];
                let distance = self.random.pick(&distances).copied().unwrap_or_default();
                segment.offset = segment.offset.wrapping_add(distance);
                segment
            }
            10 => {
                // One that matches ends the connection.
                segment.offset = segment.offset.max(1);
                segment.flags(RST | ACK)
            }
            11 => {
                let pointer = u16::try_from(self.random.within(0..12)).unwrap_or_default();
                segment.urgent(pointer).unsound()
            }
            12 => segment.flags(FIN | ACK).unsound(),
            // It contradicts, and nothing says which of the two the server takes.
            _ => segment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::LoginPacket;

    fn stream() -> Stream {
        let plain = LoginPacket::new("u").packet_41();
        let mut claim = plain.clone();
        claim[5] |= 8;
        Stream {
            number: 1,
            disguised: plain.clone(),
            plain,
            lures: vec![claim],
            is_v6: false,
        }
    }

    fn sent(attempt: &Attempt) -> Vec<Segment> {
        let steps = attempt.steps.iter();
        steps
            .filter_map(|step| match step {
                Step::Send(segment) => Some(segment.clone()),
                Step::Settle => None,
            })
            .collect()
    }

    #[test]
    fn the_same_seed_makes_the_same_attempt_and_another_another() {
        let make = |seed| sent(&attempt(seed, &stream()));
        assert_eq!(make(7), make(7));
        assert_ne!(make(7), make(8));
    }

    #[test]
    fn every_kind_of_trick_comes_up() {
        let all: Vec<_> = (0..2000).map(|seed| attempt(seed, &stream())).collect();
        let segments: Vec<_> = all.iter().flat_map(sent).collect();
        let some = |has: &dyn Fn(&Segment) -> bool| segments.iter().filter(|it| has(it)).count();
        let counts = [
            some(&|it| !it.is_sound),
            some(&|it| it.stamp == Stamp::Old),
            some(&|it| it.urgent > 0),
            some(&|it| it.flags & FIN != 0),
            some(&|it| it.flags & RST != 0),
            some(&|it| it.flags & SYN != 0),
            some(&|it| it.offset < 0),
            some(&|it| it.offset > 1 << 16),
            some(&|it| it.fragments_of.is_some()),
            some(&|it| !it.ip_options.is_empty()),
            some(&|it| it.ack_shift != 0),
            all.iter().filter(|it| it.opening.third.is_some()).count(),
            all.iter()
                .filter(|it| it.opening.fast_open.is_some())
                .count(),
            all.iter()
                .filter(|it| it.opening.isn >= 0xffff_ffc0)
                .count(),
        ];
        assert!(counts.iter().all(|count| *count > 20), "{counts:?}");
    }

    #[test]
    fn the_login_in_order_is_the_login() {
        let mut maker = Maker {
            random: Random::new(1),
            plain: stream().plain,
            lures: stream().lures,
            is_v6: false,
        };
        for _ in 0..100 {
            let bytes: Vec<u8> = maker.login().into_iter().flat_map(|it| it.bytes).collect();
            assert_eq!(bytes, maker.plain);
        }
    }
}
