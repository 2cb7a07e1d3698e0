//! How a record looks in a line.

use std::borrow::Cow;

use jiff::Timestamp;

use crate::audit::record::Outcome;
use crate::cipher;
use crate::history::Class;
use crate::login::printable;
use crate::trail::record::{Content, Line, Seen};

/// Titles and widths of the columns, in characters; the last has none. What is wider moves the rest of its line.
const COLUMNS: [(&str, usize); 7] = [
    ("TIME (UTC)", 23),
    ("EVENT", 8),
    ("WHAT", 10),
    ("CLIENT", 21),
    ("USER", 16),
    ("SERVER", 12),
    ("WHY", 0),
];

/// Escape sequences (ECMA-48, SGR) around a word that has to be seen.
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// The line above all.
#[must_use]
pub fn titles() -> String {
    let cells = COLUMNS.map(|(title, _)| Cow::Borrowed(title));
    text(&cells, "")
}

/// `line` as it is shown; none if it is no record.
#[must_use]
pub fn row(line: &Line<'_>, has_colors: bool) -> Option<String> {
    let event = line
        .number
        .as_ref()
        .map_or(Cow::Borrowed("-"), |(_, sequence)| {
            sequence.to_string().into()
        });
    let cells = match &line.content {
        Content::Session(seen) => [
            time(seen.time_ms).into(),
            event,
            seen.passed.verdict().into(),
            safe(&client(seen)),
            safe(seen.user.as_deref().unwrap_or("-")),
            safe(&seen.server),
            safe(&why(seen)),
        ],
        Content::Other(notice) => [
            time(notice.time_ms).into(),
            event,
            "agent".into(),
            "-".into(),
            "-".into(),
            safe(notice.server.as_deref().unwrap_or("-")),
            safe(&notice.message),
        ],
        Content::Later => [
            "-".into(),
            event,
            "unknown".into(),
            "-".into(),
            "-".into(),
            "-".into(),
            "a record of a later release: --json has it".into(),
        ],
        Content::Garbage => return None,
    };
    let color = match &line.content {
        Content::Session(seen) if has_colors => match seen.passed {
            Outcome::Denied => RED,
            Outcome::Observed | Outcome::Excepted | Outcome::Kept | Outcome::TlsFailed => YELLOW,
            Outcome::Allowed => "",
        },
        _ => "",
    };
    Some(text(&cells, color))
}

fn text(cells: &[Cow<'_, str>; 7], color: &str) -> String {
    let mut line = String::new();
    for (at, (cell, (_, width))) in cells.iter().zip(COLUMNS).enumerate() {
        if at > 0 {
            line.push_str("  ");
        }
        let cell = match at {
            1 => format!("{cell:>width$}"),
            _ => format!("{cell:<width$}"),
        };
        if at == 2 && !color.is_empty() {
            line.extend([color, &cell, PLAIN]);
        } else {
            line.push_str(&cell);
        }
    }
    line.truncate(line.trim_end().len());
    line
}

/// The audit log writes no character that disturbs a terminal; whoever else writes to the file may.
fn safe(text: &str) -> Cow<'static, str> {
    Cow::Owned(printable(text.as_bytes()).0)
}

/// With milliseconds, as long for each.
#[must_use]
pub fn time(time_ms: i64) -> String {
    Timestamp::from_millisecond(time_ms).map_or_else(
        |_| time_ms.to_string(),
        |at| at.strftime("%Y-%m-%d %H:%M:%S%.3f").to_string(),
    )
}

/// Where a session comes from.
#[must_use]
pub fn client(seen: &Seen<'_>) -> String {
    let Some(peer) = seen.peer else {
        return match seen.class {
            Class::Unix => "Unix socket".to_owned(),
            _ => "-".to_owned(),
        };
    };
    let peer = std::net::SocketAddr::new(peer, seen.peer_port);
    match seen.proxied {
        Some(proxied) => format!("{proxied} via {peer}"),
        None => peer.to_string(),
    }
}

fn why(seen: &Seen<'_>) -> String {
    let mut parts: Vec<Cow<'_, str>> = Vec::new();
    match seen.class {
        Class::Tls | Class::TlsFailed if seen.tls != 0 => {
            parts.push(format!("TLS {}", cipher::version_name(seen.tls)).into());
            if seen.cipher != 0 {
                parts.push(cipher::name(seen.cipher));
            }
        }
        Class::Tls | Class::TlsFailed => parts.push("TLS".into()),
        Class::Unix => parts.push(seen.program.as_deref().unwrap_or("-").into()),
        Class::Plaintext | Class::NoException | Class::Older => {}
    }
    if let Some(reason) = &seen.reason {
        parts.push(reason.as_ref().into());
    }
    if let Some(than) = &seen.older_than {
        parts.push(format!("older than the {than}").into());
    }
    if seen.passed == Outcome::Excepted
        && let Some(rule) = &seen.rule
    {
        parts.push(format!("exception {rule}").into());
    }
    if let Some(floor) = &seen.would_refuse {
        parts.push(format!("below {floor}, which is observed").into());
    }
    if seen.is_exposed {
        parts.push("the login was sent before TLS".into());
    }
    if let Some(refusal) = &seen.refusal {
        parts.push(match refusal.err_after_us {
            Some(us) => format!("told after {}", duration(us)).into(),
            None => "not told".into(),
        });
        parts.extend(refusal.outcome.as_deref().map(Cow::Borrowed));
    }
    if seen.class.is_plaintext()
        && let Some(program) = seen.program.as_deref().or(seen.driver.as_deref())
    {
        parts.push(format!("by {program}").into());
    }
    parts.join(", ")
}

/// Microseconds as people read them.
#[must_use]
pub fn duration(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
        _ => format!("{}.{} s", us / 1_000_000, us % 1_000_000 / 100_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail::record::read;

    fn documented() -> Vec<String> {
        let page = include_str!("../../../docs/audit-records.md");
        let lines = page
            .lines()
            .filter(|line| line.starts_with("{\"class_uid\""));
        lines
            .map(|line| row(&read(line.as_bytes()), false).unwrap())
            .collect()
    }

    #[test]
    fn each_kind_of_record_has_its_line() {
        let rows = documented();
        assert_eq!(
            titles(),
            "TIME (UTC)                  EVENT  WHAT        CLIENT                 USER              SERVER        WHY"
        );
        let told: Vec<&str> = rows
            .iter()
            .map(|row| row.strip_prefix("2026-11-22 05:17:58.391  ").unwrap())
            .collect();
        let expected = [
            "     184  allowed     10.20.4.17:51884       -                 orders        TLS 1.3, TLS_AES_256_GCM_SHA384",
            "     185  denied      10.20.4.17:51884       app_rw            orders        no-client-ssl, told after 184 us, landed, by mysqldump",
            "     186  would_deny  10.20.4.17:51884       app_rw            orders        no-client-ssl, by mysqldump",
            "     187  excepted    10.20.4.17:51884       app_rw            orders        exception legacy-etl, by mysqldump",
            "     188  tls_failed  10.20.4.17:51884       -                 orders        TLS",
            "     191  denied      10.20.4.17:51884       -                 orders        TLS 1.1, tls-below-floor, told after 184 us, answered",
            "     192  allowed     10.20.4.17:51884       -                 orders        TLS 1.2, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, below tls1.3, which is observed",
            "     189  allowed     Unix socket            -                 orders        php-fpm8.2",
            "     193  kept        10.20.4.17:51884       -                 orders        older than the gate",
            "     194  kept        10.20.4.17:51884       -                 orders        older than the enforcement",
            "       1  agent       -                      -                 -             for 12 s no agent ran; the gate went on judging",
            "     211  agent       -                      -                 -             on_ingress was found detached; it is as it was again",
            "     212  agent       -                      -                 orders        server orders: from enforce to observe mode (panic)",
            "     190  agent       -                      -                 -             7 audit records were lost: no-space",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn columns_begin_where_their_titles_do() {
        let starts: Vec<usize> = ["WHAT", "CLIENT", "USER", "SERVER", "WHY"]
            .into_iter()
            .map(|title| titles().find(title).unwrap())
            .collect();
        for row in documented() {
            for &start in &starts {
                assert_eq!(row.get(start - 2..start), Some("  "), "{row}");
                assert_ne!(row.get(start..=start), Some(" "), "{row}");
            }
        }
    }

    #[test]
    fn what_would_disturb_a_terminal_is_not_shown() {
        let page = include_str!("../../../docs/audit-records.md");
        let line = page.lines().find(|line| line.contains("app_rw")).unwrap();
        let hostile = line.replace("app_rw", "x\\u001b]0;owned\\u0007\\u202e");
        let row = row(&read(hostile.as_bytes()), true).unwrap();
        assert!(row.contains("x\u{fffd}]0;owned\u{fffd}\u{fffd}"), "{row:?}");
        assert_eq!(
            row.matches('\x1b').count(),
            2,
            "the colour, and its end: {row:?}"
        );
    }

    #[test]
    fn durations_have_the_unit_that_suits_them() {
        assert_eq!(
            [999, 1_000, 10_611, 2_350_000].map(duration),
            ["999 us", "1.0 ms", "10.6 ms", "2.3 s"]
        );
    }
}
