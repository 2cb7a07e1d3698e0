//! Shares and times as a report writes them.

use jiff::Timestamp;

/// A share. All is said of all only, nothing of nothing only: what is left out in between would be what matters.
pub(super) fn percent(part: u64, all: u64) -> String {
    let all = u128::from(all.max(1));
    let tenths = u128::from(part) * 1000 / all;
    match (part, tenths) {
        (0, _) => "0 %".to_owned(),
        (_, 1000..) => "100 %".to_owned(),
        (_, 0) => "less than 0.1 %".to_owned(),
        _ => format!("{}.{} %", tenths / 10, tenths % 10),
    }
}

/// An instant, UTC, to the minute.
pub(super) fn minute(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearly_all_is_not_all_and_nearly_nothing_is_something() {
        for (part, all, text) in [
            (0, 0, "0 %"),
            (0, 7, "0 %"),
            (7, 7, "100 %"),
            (99_999, 100_000, "99.9 %"),
            (1, 100_000, "less than 0.1 %"),
            (1, 3, "33.3 %"),
            (u64::MAX - 1, u64::MAX, "99.9 %"),
        ] {
            assert_eq!(percent(part, all), text);
        }
    }
}
