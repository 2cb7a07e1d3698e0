//! The end of the audit file: what it says of sessions in plaintext and of refusals, followed as it grows.
//!
//! Invariant: a look reads at most [`LOOK_MAX`] bytes and never waits; a line that is not a record of a session, or is not
//! JSON, is passed over.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

/// How much of the file's end is read first, in bytes: some 700 records.
const FIRST_LOOK: u64 = 1024 * 1024;
/// Most bytes that one look reads; of more that has come since the last, the older part is skipped.
const LOOK_MAX: u64 = 8 * 1024 * 1024;

/// An audit file that is followed.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    file: File,
    /// Device and inode, by which a file that was moved away is told from its successor.
    identity: (u64, u64),
    /// Up to here it has been read.
    offset: u64,
    /// The beginning of a line whose end has not come; none while the rest of a skipped line is awaited.
    line: Option<Vec<u8>>,
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

#[derive(Deserialize)]
struct Line {
    class_uid: u32,
    time: i64,
    #[serde(default)]
    user: User,
    #[serde(default)]
    src_endpoint: Endpoint,
    #[serde(default)]
    firewall_rule: Rule,
    unmapped: Unmapped,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Endpoint {
    ip: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Rule {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    outcome: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Unmapped {
    transport: String,
    verdict: String,
    reason: String,
    server: String,
    client_program: String,
    proxied: Endpoint,
    refusal: Refusal,
}

/// The class of audit records that are of sessions: OCSF Authentication.
const AUTHENTICATION: u32 = 3002;

/// Reads a line; none if it is of something else.
#[must_use]
pub fn read(line: &[u8]) -> Option<Session> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let Unmapped {
        transport,
        verdict,
        reason,
        server,
        client_program,
        proxied,
        refusal,
    } = line.unmapped;
    let is_plaintext = transport == "plaintext";
    if line.class_uid != AUTHENTICATION || !(is_plaintext || verdict == "denied") {
        return None;
    }
    let client = if proxied.ip.is_empty() {
        line.src_endpoint.ip
    } else {
        proxied.ip
    };
    Some(Session {
        time_ms: line.time,
        client,
        user: line.user.name,
        program: client_program,
        server,
        verdict,
        reason,
        rule: line.firewall_rule.name,
        outcome: refusal.outcome,
        is_plaintext,
    })
}

impl Tail {
    /// Nothing is opened yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            open: None,
        }
    }

    /// The file that is followed.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What has come since the last look, the oldest first; with the first, what the file's end has.
    pub fn look(&mut self) -> io::Result<Vec<Session>> {
        let mut found = Vec::new();
        if let Some(open) = &mut self.open {
            open.look(&mut found)?;
        }
        let identity = match std::fs::metadata(&self.path) {
            Ok(metadata) => (metadata.dev(), metadata.ino()),
            // Moved away, and the agent has not opened a new one yet.
            Err(error) if error.kind() == ErrorKind::NotFound && self.open.is_some() => {
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        if self
            .open
            .as_ref()
            .is_none_or(|open| open.identity != identity)
        {
            let mut open = Open::file(&self.path, self.open.is_none())?;
            open.look(&mut found)?;
            self.open = Some(open);
        }
        Ok(found)
    }
}

impl Open {
    /// `at_end`: only the end of the file is wanted, not all of it.
    fn file(path: &Path, at_end: bool) -> io::Result<Self> {
        // O_NONBLOCK: opening a FIFO must not wait for its writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let offset = if at_end {
            metadata.len().saturating_sub(FIRST_LOOK)
        } else {
            0
        };
        Ok(Self {
            file,
            identity: (metadata.dev(), metadata.ino()),
            offset,
            line: (offset == 0).then(Vec::new),
        })
    }

    fn look(&mut self, found: &mut Vec<Session>) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        if len < self.offset {
            // Truncated: what it has now is new.
            self.offset = 0;
            self.line = Some(Vec::new());
        }
        let newest = len.saturating_sub(LOOK_MAX);
        if self.offset < newest {
            self.offset = newest;
            self.line = None;
        }
        self.file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        (&self.file).take(LOOK_MAX).read_to_end(&mut bytes)?;
        self.offset += u64::try_from(bytes.len()).unwrap_or(0);
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let ends = piece.ends_with(b"\n");
            match (&mut self.line, ends) {
                (Some(line), _) => line.extend_from_slice(piece),
                (None, true) => {
                    self.line = Some(Vec::new());
                    continue;
                }
                (None, false) => continue,
            }
            if ends {
                let line = self.line.replace(Vec::new()).unwrap_or_default();
                found.extend(read(&line));
            }
            // No record is as long: it is none, and is not kept.
            if self
                .line
                .as_ref()
                .is_some_and(|line| line.len() as u64 > FIRST_LOOK)
            {
                self.line = None;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn line(user: &str, verdict: &str) -> String {
        format!(
            "{{\"class_uid\":3002,\"time\":7,\"user\":{{\"name\":\"{user}\"}},\"src_endpoint\":{{\"ip\":\"10.0.0.1\",\"port\":1}},\
             \"firewall_rule\":{{\"name\":\"require-tls\"}},\"unmapped\":{{\"transport\":\"plaintext\",\"verdict\":\"{verdict}\",\
             \"reason\":\"no-client-ssl\",\"server\":\"orders\",\"client_program\":\"etl\",\"refusal\":{{\"outcome\":\"landed\"}}}}}}\n"
        )
    }

    fn users(sessions: &[Session]) -> Vec<&str> {
        sessions
            .iter()
            .map(|session| session.user.as_str())
            .collect()
    }

    fn append(path: &Path, text: &str) {
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

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
        let line = line("u", "denied").replace(
            "\"server\"",
            "\"proxied\":{\"ip\":\"192.0.2.9\",\"trusted\":true},\"server\"",
        );
        assert_eq!(read(line.as_bytes()).unwrap().client, "192.0.2.9");
    }

    #[test]
    fn a_growing_file_is_followed_over_half_lines_rotation_and_truncation() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let mut tail = Tail::new(&path);
        assert_eq!(tail.look().unwrap_err().kind(), ErrorKind::NotFound);

        append(&path, &line("a", "denied"));
        assert_eq!(users(&tail.look().unwrap()), ["a"]);
        assert!(tail.look().unwrap().is_empty());

        let whole = line("b", "would_deny");
        let (head, rest) = whole.split_at(40);
        append(&path, head);
        assert!(tail.look().unwrap().is_empty());
        append(&path, &format!("{rest}not json\n{}", line("c", "excepted")));
        assert_eq!(users(&tail.look().unwrap()), ["b", "c"]);

        append(&path, &line("d", "denied"));
        std::fs::rename(&path, directory.path().join("audit.jsonl.1")).unwrap();
        assert_eq!(
            users(&tail.look().unwrap()),
            ["d"],
            "the rest of the old one"
        );
        append(&path, &line("e", "denied"));
        assert_eq!(users(&tail.look().unwrap()), ["e"]);

        std::fs::write(&path, "").unwrap();
        assert!(tail.look().unwrap().is_empty());
        append(&path, &line("f", "denied"));
        assert_eq!(users(&tail.look().unwrap()), ["f"]);
    }

    #[test]
    fn only_the_end_of_a_long_file_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let one = line("old", "denied");
        let count = usize::try_from(FIRST_LOOK).unwrap() / one.len() + 10;
        append(
            &path,
            &format!("{}{}", one.repeat(count), line("new", "denied")),
        );
        let found = Tail::new(&path).look().unwrap();
        assert_eq!(found.last().unwrap().user, "new");
        assert!(found.len() < count, "{} of {count}", found.len());
        assert!(found.len() > count / 2);
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let error = Tail::new(directory.path()).look().unwrap_err();
        assert!(error.to_string().contains("regular file"), "{error}");
    }
}
