//! The history: who has connected how, as an index over the audit file.
//!
//! | file | content |
//! |---|---|
//! | `mod` | what is known of a client; reading the audit file into the index, to its end |
//! | `index` | the database: with `hours` the only code that names `SQLite` |
//! | `hours` | its table of sessions by hour |
//! | [`follow`] | the daemon's thread that keeps it up to date |
//!
//! Invariant: the audit file is the truth, the index can be made anew from it. How far a file has been read stands in the same
//! transaction as what was read, so each line counts once, whoever reads it and however it ends (ADR 0018).

pub mod follow;
mod hours;
mod index;

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;

use crate::audit::record::Outcome;
use crate::clock;
use crate::config::{AuditTarget, Config, HistoryConfig};
use crate::error::{Failed, is_of_rights};
use crate::trail::{Flaw, Folder, Why};

use index::{Damage, Index};

/// The driver of replicas, which say what they are (`_client_role`).
pub const REPLICA: &str = "replica";
/// Most bytes that are read in one transaction. In steady state it is as much as was written since the last look; a backlog is read
/// the faster the more lines share a page of the index.
const CHUNK: usize = 8 << 20;
/// An hour, in seconds.
pub const HOUR_S: i64 = 3600;
/// How often what is too old is taken out, in seconds.
const PRUNE_EVERY_S: i64 = 3600;

/// What kind of session it is: what of a policy decides about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// TCP in the clear: exceptions decide.
    Plaintext = 1,
    /// The same, for a reason that no exception excuses.
    NoException = 2,
    /// In the clear, and older than the gate: its user is not known.
    Older = 3,
    /// TLS: the floor decides, then exceptions.
    Tls = 4,
    /// A TLS handshake that failed: no policy was asked.
    TlsFailed = 5,
    /// A Unix socket: secure transport.
    Unix = 6,
}

impl Class {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 6] = [
        Self::Plaintext,
        Self::NoException,
        Self::Older,
        Self::Tls,
        Self::TlsFailed,
        Self::Unix,
    ];

    fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|class| *class as u8 == number)
    }

    /// Whether it is in the clear.
    #[must_use]
    pub const fn is_plaintext(self) -> bool {
        match self {
            Self::Plaintext | Self::NoException | Self::Older => true,
            Self::Tls | Self::TlsFailed | Self::Unix => false,
        }
    }

    /// `plaintext`, `tls` or `unix`, as in audit records.
    #[must_use]
    pub const fn transport(self) -> &'static str {
        match self {
            Self::Plaintext | Self::NoException | Self::Older => "plaintext",
            Self::Tls | Self::TlsFailed => "tls",
            Self::Unix => "unix",
        }
    }
}

/// A client: all sessions that differ in nothing but the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// What kind of session.
    pub class: Class,
    /// Name of the server's settings when it was seen last.
    pub server: Arc<str>,
    /// The port it connected to; 0 for Unix sockets.
    pub port: u16,
    /// Where it connected from; none for Unix sockets.
    pub peer: Option<IpAddr>,
    /// Whom a PROXY protocol header named as the client.
    pub proxied: Option<IpAddr>,
    /// The user, where the gate could read one; safe to print.
    pub user: Option<Arc<str>>,
    /// The driver, as it calls itself; safe to print.
    pub driver: Option<Arc<str>>,
    /// Its version, as it says; safe to print.
    pub version: Option<Arc<str>>,
    /// The program, as it calls itself, or the process of a Unix socket; safe to print.
    pub program: Option<Arc<str>>,
    /// `ProtocolVersion` of TLS; 0 if unknown or none.
    pub tls: u16,
    /// IANA number of the cipher suite; 0 if unknown or none.
    pub cipher: u16,
    /// When it was first seen, in seconds of Unix time.
    pub first_s: i64,
    /// When it was last seen.
    pub last_s: i64,
    /// How often since then.
    pub sessions: u64,
    /// How many of them were refused.
    pub refused: u64,
    /// What was done about the last one.
    pub passed: Outcome,
    /// The rule that decided about the last one; safe to print.
    pub rule: Option<Arc<str>>,
}

impl Client {
    /// One that logged in in plaintext once, of which nothing else is known.
    #[must_use]
    pub fn in_the_clear() -> Self {
        Self {
            class: Class::Plaintext,
            server: Arc::from("default"),
            port: 3306,
            peer: None,
            proxied: None,
            user: None,
            driver: None,
            version: None,
            program: None,
            tls: 0,
            cipher: 0,
            first_s: 0,
            last_s: 0,
            sessions: 1,
            refused: 0,
            passed: Outcome::Observed,
            rule: None,
        }
    }
}

/// Sessions of an hour of which the same was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// When the hour begins, in seconds of Unix time.
    pub begin_s: i64,
    /// What kind of session.
    pub class: Class,
    /// What was done about them.
    pub passed: Outcome,
    /// `ProtocolVersion` of TLS; 0 if unknown or none.
    pub tls: u16,
    /// How many.
    pub sessions: u64,
}

/// Which clients are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Seen at this instant or later, in seconds of Unix time.
    pub since_s: Option<i64>,
    /// Of this server.
    pub server: Option<String>,
    /// Of this user.
    pub user: Option<String>,
    /// In the clear.
    pub plaintext: bool,
}

/// Records that are missing from the history.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Hole {
    /// The time of the first record behind it, in seconds of Unix time.
    pub at_s: i64,
    /// How many; not known where a file was not there any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<u64>,
    /// How that was found.
    pub why: String,
}

/// What the index holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct State {
    /// Distinct clients.
    pub clients: u64,
    /// Sessions read in all.
    pub sessions: u64,
    /// Bytes of the audit file that have not been read yet.
    pub behind: u64,
    /// Lines that were no JSON.
    pub garbage: u64,
    /// Lines of a later release.
    pub later: u64,
    /// Clients that were taken out because they were too old or too many.
    pub forgotten: u64,
    /// When the index was begun, in seconds of Unix time.
    pub since_s: i64,
    /// The newest record, in seconds of Unix time; 0 if there is none.
    pub newest_s: i64,
    /// Files with records that are not in it: compressed, and not by gzip, or damaged; the oldest first.
    pub left_out: Vec<String>,
    /// What is missing, the newest last; at most 100.
    pub holes: Vec<Hole>,
}

/// There is no history, because it is off or there is no audit file. The text is complete.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoHistory(String);

/// The history of one audit file.
#[derive(Debug)]
pub struct History {
    settings: HistoryConfig,
    folder: Folder,
    index: Index,
    /// Why it was made anew when it was opened, if it was.
    rebuilt: Option<String>,
}

/// The audit file that the history is about, or why there is none.
pub fn source(config: &Config) -> Result<&Path, NoHistory> {
    if !config.history.enabled {
        let text = "the history is off\n  help: set enabled = true in [history]";
        return Err(NoHistory(text.to_owned()));
    }
    match &config.audit {
        AuditTarget::Stdout => Err(NoHistory(
            "there is no history: audit records go to standard output\n  help: set [audit] path to a file".to_owned(),
        )),
        AuditTarget::File(path) if path.starts_with("/dev") => Err(NoHistory(format!(
            "there is no history: audit records go to {}\n  help: set [audit] path to a file",
            path.display()
        ))),
        AuditTarget::File(path) => Ok(path),
    }
}

impl History {
    /// Opens the index that `config` names, or makes it. One that is damaged, or of another release, is made anew.
    pub fn open(config: &Config) -> Result<Self> {
        let folder = Folder::new(source(config)?);
        let (index, rebuilt) = Index::open(&config.history.path)?;
        Ok(Self {
            settings: config.history.clone(),
            folder,
            index,
            rebuilt,
        })
    }

    /// Makes one for this process alone, from the audit file and its rotated files.
    fn in_memory(config: &Config) -> Result<Self> {
        Ok(Self {
            settings: config.history.clone(),
            folder: Folder::new(source(config)?),
            index: Index::in_memory(&config.history.path)?,
            rebuilt: None,
        })
    }

    /// Why it was made anew, if it was since this was asked last.
    pub const fn take_rebuilt(&mut self) -> Option<String> {
        self.rebuilt.take()
    }

    /// Makes the index anew. [`Self::update`] fills it.
    pub fn rebuild(&mut self) -> Result<()> {
        self.index = self.index.anew("asked for")?;
        Ok(())
    }

    /// Whether the file that is open is still the one at its path: another process may have made it anew.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.index.is_current()
    }

    /// Reads what was added to the audit file, to its end or until `go_on` (called with the bytes read and those to be read)
    /// says so. Returns whether the end was reached.
    pub fn update(
        &mut self,
        now: Timestamp,
        mut go_on: impl FnMut(u64, u64) -> bool,
    ) -> Result<bool> {
        match self.read_on(now, &mut go_on) {
            Err(error) if Damage::is_in(&error) => {
                let why = format!("{error:#}");
                self.index = self.index.anew(&why)?;
                self.rebuilt = Some(why);
                self.read_on(now, &mut go_on)
            }
            result => result,
        }
    }

    fn read_on(
        &mut self,
        now: Timestamp,
        go_on: &mut impl FnMut(u64, u64) -> bool,
    ) -> Result<bool> {
        let parts = self.folder.parts()?;
        let mut to_read = self.index.begin(&parts)?;
        let mut done = 0;
        for part in &parts {
            loop {
                let read = self.index.read(part, CHUNK, now.as_second())?;
                done += read;
                self.limit(now)?;
                if read == 0 {
                    break;
                }
                // The file grows meanwhile.
                to_read = to_read.max(done);
                if !go_on(done, to_read) {
                    return Ok(false);
                }
            }
        }
        self.limit(now)?;
        Ok(true)
    }

    /// Takes out what is too old, now and then, and what is too much, at once.
    fn limit(&mut self, now: Timestamp) -> Result<()> {
        let now_s = now.as_second();
        let is_due = self.index.pruned_s()?.abs_diff(now_s) >= PRUNE_EVERY_S.unsigned_abs();
        if !is_due && self.index.clients()? <= self.settings.max_clients {
            return Ok(());
        }
        let keep_s = i64::try_from(self.settings.keep.as_secs()).unwrap_or(i64::MAX);
        let gone = self.index.prune(now_s, keep_s, self.settings.max_clients)?;
        if gone > 0 {
            tracing::info!(gone, "clients are too old or too many for the history");
        }
        Ok(())
    }

    /// What it holds.
    pub fn state(&mut self) -> Result<State> {
        let mut state = self.index.state()?;
        for part in self.folder.parts()? {
            state.behind += part.left(self.index.offset(&part)?);
        }
        let left_out = self.flaws()?;
        state.left_out = left_out
            .iter()
            .map(|flaw| flaw.path.display().to_string())
            .collect();
        Ok(state)
    }

    /// Files that were not read, or not to their end, though what they have belongs here.
    pub fn flaws(&self) -> Result<Vec<Flaw>> {
        let keep_s = i64::try_from(self.settings.keep.as_secs()).unwrap_or(i64::MAX);
        let (oldest_s, newest_s) = self.index.span_s()?;
        let matters = |flaw: &Flaw| match flaw.why {
            Why::Damaged(_) => true,
            // What was written when others were read was read, too, before it was compressed; or there is a hole.
            Why::Compressed => {
                let modified = flaw.modified.duration_since(SystemTime::UNIX_EPOCH);
                let modified_s = modified.map_or(0, |since| {
                    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
                });
                modified_s >= newest_s.saturating_sub(keep_s)
                    && oldest_s.is_none_or(|oldest_s| modified_s < oldest_s)
            }
        };
        Ok(self.folder.flaws().into_iter().filter(matters).collect())
    }

    /// Every client that is `wanted`, those in the clear first.
    pub fn clients(&mut self, wanted: &Filter) -> Result<Vec<Client>> {
        self.ask(|index| index.clients_of(wanted))
    }

    /// Sessions by hour, from the hour of `since_s` on.
    pub fn tallies(&mut self, since_s: Option<i64>) -> Result<Vec<Tally>> {
        self.ask(|index| index.tallies(since_s))
    }

    /// Asks the index, which is made anew if it turns out to be damaged.
    fn ask<T>(&mut self, question: impl Fn(&Index) -> Result<T>) -> Result<T> {
        match question(&self.index) {
            Err(error) if Damage::is_in(&error) => {
                let why = format!("{error:#}");
                self.index = self.index.anew(&why)?;
                self.rebuilt = Some(why);
                self.read_on(clock::wall(), &mut |_, _| true)?;
                question(&self.index)
            }
            answer => answer,
        }
    }

    /// How many bytes the database takes on its file system.
    pub fn size(&self) -> Result<u64> {
        self.index.size()
    }

    /// Where the index is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.settings.path
    }

    /// What it is read from.
    #[must_use]
    pub fn audit(&self) -> &Path {
        self.folder.audit()
    }
}

/// Opens the history for a command, and brings it up to date; `progress` as in [`History::update`]. Damage that is found is
/// mended; `warn` is told. Who may not open the index, but read the audit file, gets what that holds: the index itself is
/// written to by all that open it.
pub fn for_command(
    config: &Config,
    mut progress: impl FnMut(u64, u64),
    mut warn: impl FnMut(&str),
) -> Result<History> {
    let (mut history, is_whole) = match History::open(config) {
        Err(error) if is_of_rights(&error) => (History::in_memory(config)?, false),
        opened => (opened?, true),
    };
    let now = clock::wall();
    history.update(now, |done, of| {
        progress(done, of);
        true
    })?;
    if !is_whole {
        warn(&format!(
            "the history {} is not yours to open: this is what {} and its rotated files hold",
            history.path().display(),
            history.audit().display()
        ));
    }
    if let Some(why) = history.take_rebuilt() {
        warn(&rebuilt_text(&history, &why));
    }
    for flaw in history.flaws()? {
        warn(&flaw.to_string());
    }
    Ok(history)
}

/// What is said of an index that was made anew.
fn rebuilt_text(history: &History, why: &str) -> String {
    format!(
        "the history {} was made anew from {} and its rotated files: {why}",
        history.path().display(),
        history.audit().display()
    )
}

/// The directory of the index is made if only it is missing.
fn make_directory(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let Some(directory) = path.parent() else {
        bail!("{} is no path of a file", path.display());
    };
    match std::fs::DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| {
                Failed::new(
                    format!("make the directory {}", directory.display()),
                    "make it (mode 0700, owned by the user musttls runs as), or set [history] path",
                )
            })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
