//! Lengths of time as people write them: `90d`, `12h`.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// What is said of a text that is none.
const HELP: &str = "write a number and a unit, m, h, d or w: 14d, 12h";
/// Longest that makes sense, in seconds: a hundred years.
const MAX_S: u64 = 100 * 366 * 24 * 3600;

/// Reads a length of time: a whole number above 0, and `m`, `h`, `d` or `w`.
pub fn parse(text: &str) -> Result<Duration, String> {
    let unit_at = text.len().saturating_sub(1);
    let Some((number, unit)) = text.split_at_checked(unit_at) else {
        return Err(HELP.to_owned());
    };
    let unit_s = match unit {
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return Err(HELP.to_owned()),
    };
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    number
        .parse::<u64>()
        .ok()
        .filter(|_| is_number)
        .and_then(|number| number.checked_mul(unit_s))
        .filter(|seconds| (1..=MAX_S).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| HELP.to_owned())
}

/// The shortest text that [`parse`] reads as this.
#[must_use]
pub fn text(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(7 * 24 * 3600, 'w'), (24 * 3600, 'd'), (3600, 'h')];
    // Days, not weeks, are what people count in.
    let unit = units
        .into_iter()
        .skip(1)
        .find(|(unit, _)| seconds.is_multiple_of(*unit));
    let (unit, letter) = unit.unwrap_or((60, 'm'));
    format!("{}{letter}", seconds / unit)
}

/// Since when: so long ago, or from a day on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So long before now.
    Ago(Duration),
    /// From this instant on.
    At(Timestamp),
}

impl Since {
    /// Reads `14d`, or a day such as `2026-11-01` (UTC).
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(day) = text.parse::<Date>() {
            return day
                .to_zoned(TimeZone::UTC)
                .map(|at| Self::At(at.timestamp()))
                .map_err(|error| error.to_string());
        }
        parse(text)
            .map(Self::Ago)
            .map_err(|help| format!("{help}; or a day: 2026-11-01"))
    }

    /// The instant, seen from `now`.
    #[must_use]
    pub fn instant(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(span) => SignedDuration::try_from(span)
                .ok()
                .and_then(|span| now.checked_sub(span).ok())
                .unwrap_or(Timestamp::MIN),
            Self::At(at) => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_numbers_with_a_unit() {
        assert_eq!(parse("90d"), Ok(Duration::from_hours(90 * 24)));
        assert_eq!(parse("2w"), Ok(Duration::from_hours(14 * 24)));
        assert_eq!(parse("30m"), Ok(Duration::from_mins(30)));
        for wrong in [
            "",
            "d",
            "90",
            "0d",
            "-1d",
            "+1d",
            "1.5d",
            "9 d",
            "1y",
            "99999999999d",
            "1ü",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn texts_of_spans_are_read_as_the_same() {
        for span in ["90d", "12h", "30m", "14d"] {
            assert_eq!(text(parse(span).unwrap()), span);
        }
        assert_eq!(text(parse("2w").unwrap()), "14d");
    }

    #[test]
    fn since_is_a_span_or_a_day() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let since = |text| Since::parse(text).map(|since| since.instant(now).to_string());
        assert_eq!(since("14d"), Ok("2026-11-09T12:00:00Z".to_owned()));
        assert_eq!(since("2026-11-01"), Ok("2026-11-01T00:00:00Z".to_owned()));
        assert!(since("yesterday").is_err());
    }
}
