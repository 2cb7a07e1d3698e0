//! Bars over time as SVG inside the page: no script, no image, colours and hatches by the style sheet.

use super::html::Html;
use super::numbers::percent;
use super::shares::{Course, Kind, Shares};
use crate::count::by_thousands;

/// Size of the drawing, in its own units; it is shown as wide as the page.
const WIDTH: f64 = 640.0;
const LEFT: f64 = 56.0;
const TOP: f64 = 10.0;
/// Where bars stand.
const BASE: f64 = 160.0;
/// Widest bar: one alone is no wall.
const WIDEST: f64 = 60.0;
/// About how many times are written below the bars.
const LABELS: usize = 5;

/// What the height of a bar says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Height {
    /// The share of each kind in the sessions that were let in.
    Share,
    /// The number of sessions.
    Sessions,
}

/// Draws `course`.
pub(super) fn draw(html: &mut Html, course: &Course, height: Height) {
    let most = course
        .bars
        .iter()
        .map(|(_, shares)| shares.all())
        .max()
        .unwrap_or(0);
    let top = match height {
        Height::Share => 100,
        Height::Sessions => round_up(most),
    };
    let (id, title) = match height {
        Height::Share => ("share", "Share of TLS and plaintext"),
        Height::Sessions => ("sessions", "Sessions"),
    };
    html.raw("<svg class=\"chart\" viewBox=\"0 0 640 190\" role=\"img\" aria-labelledby=\"")
        .text(id)
        .raw("-t ")
        .text(id)
        .raw("-d\"><title id=\"")
        .text(id)
        .raw("-t\">")
        .text(title)
        .raw(" per ")
        .text(course.step.name())
        .raw("</title><desc id=\"")
        .text(id)
        .raw("-d\">");
    describe(html, course, height, most);
    html.raw("</desc>");
    for part in 0..=2 {
        let value = top * part / 2;
        let y = BASE - (BASE - TOP) * as_f64(part) / 2.0;
        html.raw("<path class=\"grid\" d=\"M56 ")
            .text(coordinate(y))
            .raw("H640\"/><text class=\"tick\" text-anchor=\"end\" x=\"50\" y=\"")
            .text(coordinate(y + 4.0))
            .raw("\">");
        match height {
            Height::Share => html.text(value).raw(" %"),
            Height::Sessions => html.text(by_thousands(value)),
        };
        html.raw("</text>");
    }
    let room = (WIDTH - LEFT) / as_f64(u64::try_from(course.bars.len()).unwrap_or(1).max(1));
    let width = room.min(WIDEST);
    let every = course.bars.len().div_ceil(LABELS).max(1);
    for (index, (begin_s, shares)) in course.bars.iter().enumerate() {
        let x = LEFT + width * as_f64(u64::try_from(index).unwrap_or(0));
        html.raw("<g><title>")
            .text(course.step.label(*begin_s))
            .raw(": ")
            .text(words(shares))
            .raw("</title>");
        bar(html, shares, height, top, (x, width));
        html.raw("</g>");
        if index % every == 0 {
            html.raw("<text class=\"tick\" y=\"178\" x=\"")
                .text(coordinate(x))
                .raw("\">")
                .text(course.step.short(*begin_s))
                .raw("</text>");
        }
    }
    html.raw("</svg>");
}

fn bar(html: &mut Html, shares: &Shares, height: Height, top: u64, (x, width): (f64, f64)) {
    let (all, kinds) = match height {
        Height::Share => (shares.let_in(), &Kind::ALL[..3]),
        Height::Sessions => (top, &Kind::ALL[..]),
    };
    if all == 0 {
        return;
    }
    let mut y = BASE;
    for &kind in kinds {
        let sessions = shares.count(kind);
        if sessions == 0 {
            continue;
        }
        // What there is, is to be seen, be it ever so little.
        let tall = ((BASE - TOP) * as_f64(sessions) / as_f64(all)).max(1.5);
        y = (y - tall).max(0.0);
        html.raw("<rect class=\"")
            .text(class(kind))
            .raw("\" x=\"")
            .text(coordinate(x + width * 0.08))
            .raw("\" y=\"")
            .text(coordinate(y))
            .raw("\" width=\"")
            .text(coordinate(width * 0.84))
            .raw("\" height=\"")
            .text(coordinate(tall))
            .raw("\"/>");
    }
}

/// What the drawing shows, for who does not see it.
fn describe(html: &mut Html, course: &Course, height: Height, most: u64) {
    let seen = course.bars.iter().filter(|(_, shares)| shares.let_in() > 0);
    let part = |shares: &Shares| percent(shares.count(Kind::Tls), shares.let_in());
    match (height, seen.clone().next(), seen.clone().next_back()) {
        (Height::Sessions, ..) => {
            html.text(format_args!(
                "At most {} sessions in one {}. The table below has all numbers.",
                by_thousands(most),
                course.step.name()
            ));
        }
        (Height::Share, Some((first_s, first)), Some((last_s, last))) => {
            html.text(format_args!(
                "TLS had {} of the sessions let in on {}, and {} on {}. The table below has all numbers.",
                part(first),
                course.step.label(*first_s),
                part(last),
                course.step.label(*last_s)
            ));
        }
        (Height::Share, ..) => {
            html.raw("There were no sessions.");
        }
    }
}

/// A bar in words.
fn words(shares: &Shares) -> String {
    let kinds = Kind::ALL
        .into_iter()
        .filter(|&kind| shares.count(kind) > 0)
        .map(|kind| format!("{} {}", by_thousands(shares.count(kind)), kind.name()));
    let kinds: Vec<String> = kinds.collect();
    if kinds.is_empty() {
        "no sessions".to_owned()
    } else {
        kinds.join(", ")
    }
}

/// The class of a kind in the style sheet.
pub(super) const fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Tls => "tls",
        Kind::Excepted => "excepted",
        Kind::Clear => "clear",
        Kind::Refused => "refused",
    }
}

/// The next number of which half is a good number, too.
fn round_up(number: u64) -> u64 {
    let mut scale = 1_u64;
    loop {
        for step in [2, 4, 6, 10] {
            let top = scale.saturating_mul(step);
            if top >= number {
                return top;
            }
        }
        scale = scale.saturating_mul(10);
    }
}

/// Two digits behind the point are finer than any screen.
fn coordinate(number: f64) -> String {
    format!("{number:.2}")
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a drawing: 53 bits are finer than any screen"
)]
const fn as_f64(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_at_good_numbers() {
        for (most, top) in [
            (0, 2),
            (2, 2),
            (3, 4),
            (5, 6),
            (7, 10),
            (11, 20),
            (45_000, 60_000),
        ] {
            assert_eq!(round_up(most), top);
        }
        assert_eq!(round_up(u64::MAX), u64::MAX);
    }
}
