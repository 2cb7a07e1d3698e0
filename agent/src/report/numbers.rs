//! Numbers and times as a report writes them.

use jiff::Timestamp;

/// A count, by thousands.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with the word for what is counted.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

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
    fn counts_are_written_by_thousands() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1_000, "1,000"),
            (1_234_567, "1,234,567"),
        ] {
            assert_eq!(count(number), text);
        }
        assert_eq!(counted(1, "client", "clients"), "1 client");
        assert_eq!(counted(0, "client", "clients"), "0 clients");
    }

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
