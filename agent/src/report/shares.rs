//! Sessions by what became of them, over time: what the charts of a report show.

use jiff::Timestamp;

use crate::audit::record::Outcome;
use crate::history::{Class, HOUR_S, Tally};

/// What became of a session, as a report tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// TLS, and let in.
    Tls,
    /// In the clear, and let in by an exception.
    Excepted,
    /// In the clear, and let in because its server only observes, or because it is older than the gate.
    Clear,
    /// Refused.
    Refused,
}

impl Kind {
    /// All, in the order in which bars are stacked.
    pub(super) const ALL: [Self; 4] = [Self::Tls, Self::Excepted, Self::Clear, Self::Refused];

    /// What a session came to; `None` for Unix sockets and failed handshakes, which are no sessions over TCP.
    pub(super) const fn of(class: Class, passed: Outcome) -> Option<Self> {
        match (class, passed) {
            (Class::Unix | Class::TlsFailed, _) | (_, Outcome::TlsFailed) => None,
            (_, Outcome::Denied) => Some(Self::Refused),
            (Class::Tls, _) => Some(Self::Tls),
            (_, Outcome::Excepted) => Some(Self::Excepted),
            (_, Outcome::Allowed | Outcome::Observed | Outcome::Kept) => Some(Self::Clear),
        }
    }

    /// What a reader calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tls => "TLS",
            Self::Excepted => "plaintext, by an exception",
            Self::Clear => "plaintext, only observed",
            Self::Refused => "refused",
        }
    }
}

/// Sessions by [`Kind`], in the order of [`Kind::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shares([u64; 4]);

impl Shares {
    /// The sum of what `tallies` tell.
    pub(super) fn of(tallies: &[Tally]) -> Self {
        let mut shares = Self::default();
        for tally in tallies {
            shares.add(tally);
        }
        shares
    }

    fn add(&mut self, tally: &Tally) {
        let kind = Kind::of(tally.class, tally.passed);
        if let Some(slot) = kind.and_then(|kind| self.0.get_mut(kind as usize)) {
            *slot += tally.sessions;
        }
    }

    /// How many of `kind`.
    pub(super) fn count(&self, kind: Kind) -> u64 {
        self.0.get(kind as usize).copied().unwrap_or(0)
    }

    /// How many in all.
    pub(super) fn all(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How many were let in.
    pub(super) fn let_in(&self) -> u64 {
        self.all() - self.count(Kind::Refused)
    }
}

/// How long a bar is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// An hour.
    Hour,
    /// A day, UTC.
    Day,
    /// A week from Monday on, UTC.
    Week,
}

impl Step {
    /// Most bars of a chart.
    const BARS: i64 = 100;
    const DAY_S: i64 = 24 * HOUR_S;
    /// From the first Monday to the beginning of Unix time, a Thursday.
    const THURSDAY_S: i64 = 3 * Self::DAY_S;

    /// The shortest of which there are not too many.
    const fn between(from_s: i64, to_s: i64) -> Self {
        match to_s.saturating_sub(from_s) {
            span if span <= Self::BARS * HOUR_S => Self::Hour,
            span if span <= Self::BARS * Self::DAY_S => Self::Day,
            _ => Self::Week,
        }
    }

    /// Its word.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
        }
    }

    const fn seconds(self) -> i64 {
        match self {
            Self::Hour => HOUR_S,
            Self::Day => Self::DAY_S,
            Self::Week => 7 * Self::DAY_S,
        }
    }

    /// The beginning of the one that `at_s` is in.
    const fn begin(self, at_s: i64) -> i64 {
        let offset_s = match self {
            Self::Hour | Self::Day => 0,
            Self::Week => Self::THURSDAY_S,
        };
        (at_s + offset_s).div_euclid(self.seconds()) * self.seconds() - offset_s
    }

    /// How its beginning is written.
    pub(super) fn label(self, begin_s: i64) -> String {
        let at = Timestamp::from_second(begin_s).unwrap_or(Timestamp::UNIX_EPOCH);
        at.strftime(match self {
            Self::Hour => "%Y-%m-%d %H:00",
            Self::Day | Self::Week => "%Y-%m-%d",
        })
        .to_string()
    }

    /// The same without the year, where there is no room.
    pub(super) fn short(self, begin_s: i64) -> String {
        self.label(begin_s).split_off(5)
    }
}

/// Sessions over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Course {
    /// How long each bar is.
    pub(super) step: Step,
    /// When each begins, in seconds of Unix time, and what it shows; without a gap.
    pub(super) bars: Vec<(i64, Shares)>,
}

impl Course {
    /// `tallies`, which come in the order of time, from `from_s` to `to_s`.
    pub(super) fn of(tallies: &[Tally], from_s: i64, to_s: i64) -> Self {
        let step = Step::between(from_s, to_s);
        let mut bars = Vec::new();
        let mut tallies = tallies.iter().peekable();
        let mut begin_s = step.begin(from_s);
        while begin_s <= to_s {
            let end_s = begin_s + step.seconds();
            let mut shares = Shares::default();
            while let Some(tally) = tallies.next_if(|tally| tally.begin_s < end_s) {
                shares.add(tally);
            }
            bars.push((begin_s, shares));
            begin_s = end_s;
        }
        Self { step, bars }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(at: &str, class: Class, passed: Outcome, sessions: u64) -> Tally {
        Tally {
            begin_s: at.parse::<Timestamp>().unwrap().as_second(),
            class,
            passed,
            tls: 0,
            sessions,
        }
    }

    #[test]
    fn every_session_over_tcp_is_of_one_kind() {
        let at = "2026-11-23T12:00:00Z";
        let shares = Shares::of(&[
            tally(at, Class::Tls, Outcome::Allowed, 1),
            // Below the floor, and only observed.
            tally(at, Class::Tls, Outcome::Observed, 2),
            tally(at, Class::Plaintext, Outcome::Excepted, 4),
            tally(at, Class::Plaintext, Outcome::Observed, 8),
            tally(at, Class::Older, Outcome::Kept, 16),
            tally(at, Class::NoException, Outcome::Denied, 32),
            tally(at, Class::Tls, Outcome::Denied, 64),
            tally(at, Class::TlsFailed, Outcome::TlsFailed, 128),
            tally(at, Class::Unix, Outcome::Allowed, 256),
        ]);
        assert_eq!(shares, Shares([3, 4, 24, 96]));
        assert_eq!((shares.all(), shares.let_in()), (127, 31));
    }

    #[test]
    fn bars_have_no_gap_and_begin_with_the_hour_the_day_or_monday() {
        let second = |at: &str| at.parse::<Timestamp>().unwrap().as_second();
        let now_s = second("2026-11-23T12:30:00Z");
        let seen = [
            tally("2026-11-20T09:00:00Z", Class::Tls, Outcome::Allowed, 5),
            tally("2026-11-23T12:00:00Z", Class::Tls, Outcome::Allowed, 7),
        ];
        for (from, step, count, first) in [
            ("2026-11-20T09:00:00Z", Step::Hour, 76, "2026-11-20 09:00"),
            ("2026-11-09T13:00:00Z", Step::Day, 15, "2026-11-09"),
            // A Monday.
            ("2026-01-01T00:00:00Z", Step::Week, 48, "2025-12-29"),
        ] {
            let course = Course::of(&seen, second(from), now_s);
            assert_eq!((course.step, course.bars.len()), (step, count), "{from}");
            assert_eq!(step.label(course.bars[0].0), first);
            let sums: Vec<u64> = course.bars.iter().map(|(_, it)| it.all()).collect();
            assert_eq!(sums.iter().sum::<u64>(), 12, "{from}");
            assert_eq!(sums.last(), Some(&7), "{from}");
        }
    }
}
