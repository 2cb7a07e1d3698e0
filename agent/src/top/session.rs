//! What the audit file says of sessions in plaintext and of refusals.

use std::path::Path;

use crate::audit::record::Outcome;
use crate::trail::Tail;
use crate::trail::record::{Content, read as read_line};

/// How much of the file's end is read first, in bytes: some 700 records.
const FIRST_LOOK: u64 = 1024 * 1024;
/// Most bytes that one look reads; of more that has come since the last, the older part is skipped.
const LOOK_MAX: u64 = 8 * 1024 * 1024;

/// Follows the audit file at `path`.
#[must_use]
pub fn follow(path: &Path) -> Tail {
    Tail::of_end(path, FIRST_LOOK, LOOK_MAX)
}

/// A session on record that was refused, or that is in plaintext.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    /// When it was decided, in milliseconds of Unix time.
    pub time_ms: i64,
    /// The client's address; the one that a PROXY header names, if there is one.
    pub client: String,
    /// The user of the login, if it could be read.
    pub user: String,
    /// What the client calls itself.
    pub program: String,
    /// Name of the server's settings.
    pub server: String,
    /// The word of the record: `denied`, `would_deny`, `excepted`, `kept`.
    pub verdict: String,
    /// Why it was denied, or would be.
    pub reason: String,
    /// The exception that allowed it, or `require-tls`.
    pub rule: String,
    /// How its refusal ended.
    pub outcome: String,
    /// Whether it is in plaintext; else it is TLS that was refused.
    pub is_plaintext: bool,
}

impl Session {
    /// Whether it was refused.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.verdict == "denied"
    }
}

/// Reads a line; none if it is of something else.
#[must_use]
pub fn read(line: &[u8]) -> Option<Session> {
    let Content::Session(seen) = read_line(line).content else {
        return None;
    };
    let is_plaintext = seen.class.is_plaintext();
    if !is_plaintext && seen.passed != Outcome::Denied {
        return None;
    }
    let address = seen.proxied.or(seen.peer);
    let text = |text: Option<std::borrow::Cow<'_, str>>| text.map_or(String::new(), Into::into);
    Some(Session {
        time_ms: seen.time_ms,
        client: address.map_or(String::new(), |address| address.to_string()),
        user: text(seen.user),
        program: text(seen.program),
        server: seen.server.into_owned(),
        verdict: seen.passed.verdict().to_owned(),
        reason: text(seen.reason),
        rule: text(seen.rule),
        outcome: text(seen.refusal.and_then(|refusal| refusal.outcome)),
        is_plaintext,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_records_are_read() {
        let page = include_str!("../../../docs/audit-records.md");
        let lines: Vec<_> = page
            .lines()
            .filter(|line| line.starts_with("{\"class_uid\""))
            .collect();
        let read: Vec<_> = lines
            .iter()
            .filter_map(|line| read(line.as_bytes()))
            .collect();
        let verdicts: Vec<_> = read
            .iter()
            .map(|session| session.verdict.as_str())
            .collect();
        assert_eq!(
            verdicts,
            ["denied", "would_deny", "excepted", "denied", "kept", "kept"]
        );
        let refused = Session {
            time_ms: 1_795_324_678_391,
            client: "10.20.4.17".to_owned(),
            user: "app_rw".to_owned(),
            program: "mysqldump".to_owned(),
            server: "orders".to_owned(),
            verdict: "denied".to_owned(),
            reason: "no-client-ssl".to_owned(),
            rule: "require-tls".to_owned(),
            outcome: "landed".to_owned(),
            is_plaintext: true,
        };
        assert_eq!(read.first(), Some(&refused));
        assert!(!read.get(3).unwrap().is_plaintext, "TLS below the floor");
    }

    #[test]
    fn a_proxied_client_is_named_by_its_header() {
        let page = include_str!("../../../docs/audit-records.md");
        let line = page
            .lines()
            .find(|line| line.starts_with("{\"class_uid\""))
            .map(|line| {
                line.replace(
                    "\"server\":\"orders\"",
                    "\"server\":\"orders\",\"proxied\":{\"ip\":\"192.0.2.9\",\"trusted\":true}",
                )
                .replace("\"tls\"", "\"plaintext\"")
            });
        let session = read(line.unwrap().as_bytes()).unwrap();
        assert_eq!(session.client, "192.0.2.9");
    }
}
