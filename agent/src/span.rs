//! Lengths of time as people write them: `90d`, `12h`.

use std::time::Duration;

use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, SpanRelativeTo, Timestamp};

/// What is said of a text that is none.
const HELP: &str = "write a length of time as a number with its unit, such as 30m, 12h, 14d or 2w";

/// Reads a length of time above nothing: `14d`, `2w`, `12h`, `1mo`.
pub fn parse(text: &str) -> Result<Span, String> {
    match text.parse::<Span>() {
        Ok(span) if span.is_positive() => Ok(span),
        Ok(_) => Err(format!("{HELP}, more than nothing")),
        // What the parser says is of its whole grammar, most of which nobody needs here.
        Err(_) => Err(HELP.to_owned()),
    }
}

/// The instant `span` behind `now`.
pub fn after(now: Timestamp, span: Span) -> Result<Timestamp, String> {
    now.to_zoned(TimeZone::UTC)
        .checked_add(span)
        .map(|later| later.timestamp())
        .map_err(|error| format!("this length of time cannot be used: {error}"))
}

/// How long a span is that is as long at any time; `None` for months and years, or less than a second.
#[must_use]
pub fn fixed(span: Span) -> Option<Duration> {
    // Days of 24 hours, but months are of no length.
    let days = SpanRelativeTo::days_are_24_hours();
    let length = Duration::try_from(span.to_duration(days).ok()?).ok()?;
    (length.as_secs() > 0).then_some(length)
}

/// The shortest text that [`parse`] and [`fixed`] read as this, to the second.
#[must_use]
pub fn text(length: Duration) -> String {
    let seconds = length.as_secs();
    // Days, not weeks, are what people count in.
    let units = [(24 * 3600, 'd'), (3600, 'h'), (60, 'm')];
    let unit = units
        .into_iter()
        .find(|(unit, _)| seconds.is_multiple_of(*unit));
    let (unit, letter) = unit.unwrap_or((1, 's'));
    format!("{}{letter}", seconds / unit)
}

/// Since when: so long ago, or from a day or an instant on.
#[derive(Clone, Copy, Debug)]
pub enum Since {
    /// So long before now.
    Ago(Span),
    /// From this instant on.
    At(Timestamp),
}

impl Since {
    /// Reads `14d`, a day such as `2026-11-01` (UTC), or a time with its offset such as `2026-11-01T12:00:00Z`.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Ok(at) = text.parse::<Timestamp>() {
            return Ok(Self::At(at));
        }
        // Without an offset it would be read as its day.
        if text.contains(':') && text.parse::<DateTime>().is_ok() {
            return Err(
                "this time has no offset from UTC, such as a `Z` at its end: 2026-11-01T12:00:00Z"
                    .to_owned(),
            );
        }
        if let Ok(day) = text.parse::<Date>() {
            return day
                .to_zoned(TimeZone::UTC)
                .map(|at| Self::At(at.timestamp()))
                .map_err(|error| error.to_string());
        }
        parse(text).map(Self::Ago).map_err(|help| {
            format!("{help}; or a day as 2026-11-01; or a time as 2026-11-01T12:00:00Z")
        })
    }

    /// The instant, seen from `now`.
    #[must_use]
    pub fn instant(self, now: Timestamp) -> Timestamp {
        match self {
            Self::Ago(span) => after(now, span.negate()).unwrap_or(Timestamp::MIN),
            Self::At(at) => at,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_numbers_with_a_unit() {
        let seconds = |text| parse(text).map(|span| fixed(span).map(|length| length.as_secs()));
        assert_eq!(seconds("90d"), Ok(Some(90 * 24 * 3600)));
        assert_eq!(seconds("2w"), Ok(Some(14 * 24 * 3600)));
        assert_eq!(seconds("1d12h"), Ok(Some(36 * 3600)));
        assert_eq!(seconds("1mo"), Ok(None), "as long as the month");
        for wrong in ["", "d", "90", "0d", "-1d", "9x", "99999999999d", "1\u{fc}"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn texts_of_lengths_are_read_as_the_same() {
        let again = |length: &str| text(fixed(parse(length).unwrap()).unwrap());
        for length in ["90d", "12h", "30m", "14d", "90s"] {
            assert_eq!(again(length), length);
        }
        assert_eq!(again("2w"), "14d");
    }

    #[test]
    fn months_are_counted_by_the_calendar() {
        let now: Timestamp = "2027-01-31T12:00:00Z".parse().unwrap();
        let later = after(now, parse("1mo").unwrap()).map(|later| later.to_string());
        assert_eq!(later.as_deref(), Ok("2027-02-28T12:00:00Z"));
        let now: Timestamp = "9999-12-30T00:00:00Z".parse().unwrap();
        assert!(after(now, parse("1y").unwrap()).is_err());
    }

    #[test]
    fn since_is_a_span_a_day_or_a_time() {
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let since = |text| Since::parse(text).map(|since| since.instant(now).to_string());
        assert_eq!(since("14d"), Ok("2026-11-09T12:00:00Z".to_owned()));
        assert_eq!(since("2026-11-01"), Ok("2026-11-01T00:00:00Z".to_owned()));
        assert_eq!(
            since("2026-11-01T12:00:00+02:00"),
            Ok("2026-11-01T10:00:00Z".to_owned())
        );
        for wrong in ["2026-11-01T12:00", "2026-11-01 12:00:00"] {
            let help = since(wrong).unwrap_err();
            assert!(help.contains("no offset"), "{wrong}: {help}");
        }
        for wrong in ["yesterday", "23.11.2026", "14", "12:00", "2026-02-31"] {
            let help = since(wrong).unwrap_err();
            assert!(help.contains("14d") && !help.contains("parse"), "{help}");
        }
    }
}
