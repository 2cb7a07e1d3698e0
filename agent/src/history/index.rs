//! The index: an `SQLite` database with a row for each client.
//!
//! | table | content |
//! |---|---|
//! | `client` | a row for each client; its key is all but times and counts |
//! | `text` | names, each once |
//! | `file` | how far each file has been read |
//! | `hole` | what is missing |
//! | `hour` | sessions by hour (`hours`) |
//! | `state` | counts, and the number of the newest record |
//!
//! WAL mode: readers do not wait for the daemon nor it for them; a commit survives the end of the process, and after a loss of power
//! the last ones may be gone, with how far they had read.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Error, Result};
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, Statement, Transaction,
    TransactionBehavior, params,
};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use super::hours::{self, Hours};
use super::{Class, Client, Filter, Hole, State, Tally};
use crate::audit::record::Outcome;
use crate::error::Failed;
use crate::login::printable;
use crate::trail::record::{self, Content, Line, Seen};
use crate::trail::{Part, whole_lines};

/// Grows when the tables change, or which files they know of: an index of another number is made anew.
const VERSION: i64 = 3;
/// "must": says in the file whose it is.
const APPLICATION: i64 = 0x6d75_7374;
/// Rights of the file: who connects how is nobody's but root's.
const FILE_MODE: u32 = 0o600;
/// How long a process waits for another that writes.
const BUSY: Duration = Duration::from_secs(5);
/// Holes that are kept ([`State::holes`]).
pub(super) const HOLES: usize = 100;
/// How many files are remembered that are not there any more.
const GONE: usize = 1000;
/// Longest text kept, in characters: the longest user name that a server knows.
const TEXT_MAX: usize = 128;

const TABLES: &str = "
    CREATE TABLE client (
        class INTEGER NOT NULL, server INTEGER NOT NULL, port INTEGER NOT NULL,
        peer BLOB NOT NULL, proxied BLOB NOT NULL, user INTEGER NOT NULL,
        driver INTEGER NOT NULL, version INTEGER NOT NULL, program INTEGER NOT NULL,
        tls INTEGER NOT NULL, cipher INTEGER NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL,
        sessions INTEGER NOT NULL, refused INTEGER NOT NULL,
        passed INTEGER NOT NULL, rule INTEGER NOT NULL,
        PRIMARY KEY (class, server, port, peer, proxied, user, driver, version, program, tls, cipher)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE text (id INTEGER PRIMARY KEY, value TEXT NOT NULL UNIQUE) STRICT;
    CREATE TABLE file (
        head INTEGER PRIMARY KEY, device INTEGER NOT NULL, inode INTEGER NOT NULL,
        offset INTEGER NOT NULL, current INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE hole (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, missing INTEGER, why TEXT NOT NULL) STRICT;
    CREATE TABLE state (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID;
";

/// The index is no database any more, or of no use.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Damage(pub(super) &'static str);

impl Damage {
    /// Whether `error` is about a damaged file.
    pub(super) fn is_in(error: &Error) -> bool {
        error.chain().any(|cause| {
            let sqlite = cause
                .downcast_ref::<rusqlite::Error>()
                .and_then(rusqlite::Error::sqlite_error);
            cause.is::<Self>()
                || sqlite.is_some_and(|error| {
                    matches!(
                        error.code,
                        ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase
                    ) || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHORT_READ
                })
        })
    }
}

/// An open index.
#[derive(Debug)]
pub(super) struct Index {
    db: Connection,
    path: PathBuf,
    /// Device and inode of the file that is open.
    place: (u64, u64),
}

impl Index {
    /// Opens the index at `path`, or makes it; and says why it was made anew, if it was.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<String>)> {
        super::make_directory(path)?;
        let _alone = alone(path)?;
        match Self::open_sound(path) {
            Err(error) if Damage::is_in(&error) => {
                let why = format!("{error:#}");
                remove(path)?;
                Ok((Self::open_sound(path)?, Some(why)))
            }
            opened => opened.map(|index| (index, None)),
        }
    }

    /// Makes it anew, unless another process just has.
    pub(super) fn anew(&mut self, why: &str) -> Result<Self> {
        tracing::debug!(why, "the index of the history is made anew");
        let _alone = alone(&self.path)?;
        let is_old = self.is_current();
        // The old one is closed before there is another by its name.
        self.db = Connection::open_in_memory().context("close the damaged index")?;
        if is_old {
            remove(&self.path)?;
        }
        Self::open_sound(&self.path)
    }

    /// Makes an empty one that no file has, in place of the one at `path`.
    pub(super) fn in_memory(path: &Path) -> Result<Self> {
        let mut index = Self {
            db: Connection::open_in_memory().context("make a history in memory")?,
            path: path.to_owned(),
            place: (0, 0),
        };
        index.prepare()?;
        Ok(index)
    }

    fn open_sound(path: &Path) -> Result<Self> {
        let place = make_file(path)?;
        let failed = || {
            Failed::new(
                format!("open the history {}", path.display()),
                "run it as root, or set [history] path to a place on a local file system",
            )
        };
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags).with_context(failed)?;
        let mut index = Self {
            db,
            path: path.to_owned(),
            place,
        };
        index.prepare().with_context(failed)?;
        Ok(index)
    }

    fn prepare(&mut self) -> Result<()> {
        self.db.busy_timeout(BUSY)?;
        // Before the first table, or it has no effect: what is taken out makes the file smaller.
        self.db.execute_batch(
            "PRAGMA auto_vacuum = INCREMENTAL; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;
             PRAGMA cell_size_check = ON; PRAGMA journal_size_limit = 16777216; PRAGMA wal_autocheckpoint = 4000;
             PRAGMA cache_size = -16384;",
        )?;
        let mode: String = self
            .db
            .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
        tracing::debug!(mode, "the journal of the history's index");
        self.db.execute_batch("PRAGMA synchronous = NORMAL;")?;
        let number = |db: &Connection, name: &str| {
            db.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0))
        };
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let found = (number(&tx, "application_id")?, number(&tx, "user_version")?);
        let objects: i64 =
            tx.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
        match found {
            (APPLICATION, VERSION) => {}
            (0, 0) if objects == 0 => {
                tx.execute_batch(TABLES)?;
                tx.execute_batch(hours::TABLE)?;
                tx.execute_batch(&format!(
                    "PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"
                ))?;
                let now = crate::clock::wall().as_second();
                put(&tx, "since", now)?;
            }
            _ => return Err(Damage("it is of another release, or of another program").into()),
        }
        tx.commit()?;
        Ok(())
    }

    /// Whether the file that is open is still the one at its path.
    pub(super) fn is_current(&self) -> bool {
        fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.place)
    }

    /// Notes which files are there, and returns how many bytes of them are to be read.
    pub(super) fn begin(&mut self, parts: &[Part]) -> Result<u64> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut to_read = 0;
        let mut known: HashMap<i64, (i64, bool)> = HashMap::new();
        {
            let mut files = tx.prepare("SELECT head, offset, current FROM file")?;
            let mut rows = files.query([])?;
            while let Some(row) = rows.next()? {
                known.insert(row.get(0)?, (row.get(1)?, row.get(2)?));
            }
        }
        for part in parts {
            let len = signed(part.length());
            let (offset, was_current) = known.remove(&part.head()).unwrap_or((0, false));
            // A file that was cut is read on from its new end.
            if part.is_current() && len < offset {
                tx.execute(
                    "UPDATE file SET offset = ?2 WHERE head = ?1",
                    params![part.head(), len],
                )?;
            }
            if was_current != part.is_current() {
                tx.execute(
                    "UPDATE file SET current = ?2 WHERE head = ?1",
                    params![part.head(), part.is_current()],
                )?;
            }
            to_read += part.left(unsigned(offset));
        }
        let mut gone = 0;
        for (head, (_, was_current)) in known {
            gone += 1;
            // One that comes back, decompressed or from a backup, is known; but not all that ever were.
            if gone > GONE {
                tx.execute("DELETE FROM file WHERE head = ?1", [head])?;
            }
            // What was written to it since the last look is not known.
            if was_current {
                tx.execute("UPDATE file SET current = 0 WHERE head = ?1", [head])?;
                put(&tx, "gone", 1)?;
            }
        }
        tx.commit()?;
        Ok(to_read)
    }

    /// How far `part` has been read.
    pub(super) fn offset(&self, part: &Part) -> Result<u64> {
        offset_of(&self.db, part)
    }

    /// Reads up to `most` bytes of `part`, in one transaction. Returns how many were taken; 0 at the end of its last whole line.
    pub(super) fn read(&mut self, part: &Part, most: usize, now_s: i64) -> Result<u64> {
        // Nothing new, as a rule, and then nobody is kept from writing.
        let offset = offset_of(&self.db, part)?;
        if part.ends_at(offset).context("read the audit file")? {
            return Ok(0);
        }
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have read on meanwhile.
        let offset = offset_of(&tx, part)?;
        let bytes = part.read(offset, most).context("read the audit file")?;
        let lines = whole_lines(&bytes, most);
        let taken = u64::try_from(lines.len()).unwrap_or(0);
        if taken > 0 {
            let mut batch = Batch::new(&tx, now_s)?;
            for line in lines.split(|&byte| byte == b'\n') {
                if !line.is_empty() {
                    batch.take(record::read(line))?;
                }
            }
            batch.store()?;
            let (device, inode) = part.place();
            tx.execute(
                "INSERT OR REPLACE INTO file VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    part.head(),
                    device.cast_signed(),
                    inode.cast_signed(),
                    signed(offset.saturating_add(taken)),
                    part.is_current()
                ],
            )?;
        }
        tx.commit()?;
        Ok(taken)
    }

    /// How many clients there are.
    pub(super) fn clients(&self) -> Result<u64> {
        Ok(unsigned(get(&self.db, "clients")?))
    }

    /// When clients were last taken out, in seconds of Unix time.
    pub(super) fn pruned_s(&self) -> Result<i64> {
        get(&self.db, "pruned")
    }

    /// Takes out clients that were not seen for `keep_s`, and of more than `max` those that were seen once, the oldest first.
    ///
    /// Ages are held against the newest record: a clock that is far ahead of the records takes nothing out.
    pub(super) fn prune(&mut self, now_s: i64, keep_s: i64, max: u64) -> Result<u64> {
        let tx = self
            .db
            .transaction_with_behavior(TransactionBehavior::Immediate)?;
        let newest: i64 = get(&tx, "newest")?;
        let oldest = newest.min(now_s).saturating_sub(keep_s);
        let mut gone = tx.execute("DELETE FROM client WHERE last < ?1", [oldest])?;
        hours::prune(&tx, oldest, newest.min(now_s))?;
        let count = |tx: &Transaction<'_>| {
            tx.query_row("SELECT count(*) FROM client", [], |row| {
                row.get::<_, i64>(0)
            })
        };
        let mut left = count(&tx)?;
        if unsigned(left) > max {
            // Some more, so that this is not done for each new client.
            let excess = left.saturating_sub(signed(max / 10 * 9));
            gone += tx.execute(
                "DELETE FROM client WHERE (class, server, port, peer, proxied, user, driver, version, program, tls, cipher) IN
                 (SELECT class, server, port, peer, proxied, user, driver, version, program, tls, cipher FROM client
                  ORDER BY sessions > 1, last LIMIT ?1)",
                [excess],
            )?;
            left = count(&tx)?;
        }
        if gone > 0 {
            tx.execute_batch(
                "DELETE FROM text WHERE id NOT IN (SELECT server FROM client UNION SELECT user FROM client
                 UNION SELECT driver FROM client UNION SELECT version FROM client UNION SELECT program FROM client
                 UNION SELECT rule FROM client)",
            )?;
        }
        put(&tx, "clients", left)?;
        put(&tx, "pruned", now_s)?;
        let gone = i64::try_from(gone).unwrap_or(i64::MAX);
        put(&tx, "forgotten", get::<i64>(&tx, "forgotten")? + gone)?;
        tx.commit()?;
        if gone > 0 {
            // A step of this statement frees a page: all of them, so its rows are read to their end.
            let mut vacuum = self.db.prepare("PRAGMA incremental_vacuum")?;
            let mut rows = vacuum.query([])?;
            while rows.next()?.is_some() {}
        }
        Ok(unsigned(gone))
    }

    /// What it holds, but for what is still to be read.
    pub(super) fn state(&self) -> Result<State> {
        let number = |key| get::<i64>(&self.db, key);
        let mut holes = self
            .db
            .prepare("SELECT at, missing, why FROM hole ORDER BY id")?;
        let holes = holes.query_map([], |row| {
            Ok(Hole {
                at_s: row.get(0)?,
                missing: row.get::<_, Option<i64>>(1)?.map(unsigned),
                why: row.get(2)?,
            })
        })?;
        Ok(State {
            clients: unsigned(number("clients")?),
            sessions: unsigned(number("sessions")?),
            behind: 0,
            garbage: unsigned(number("garbage")?),
            later: unsigned(number("later")?),
            forgotten: unsigned(number("forgotten")?),
            since_s: number("since")?,
            newest_s: number("newest")?,
            left_out: Vec::new(),
            holes: holes.collect::<Result<_, _>>()?,
        })
    }

    /// The hour of the oldest session and the time of the newest record, in seconds of Unix time; 0 if there is none.
    pub(super) fn span_s(&self) -> Result<(Option<i64>, i64)> {
        Ok((hours::oldest_s(&self.db)?, get(&self.db, "newest")?))
    }

    /// Every client that is `wanted`, in the order of the key.
    pub(super) fn clients_of(&self, wanted: &Filter) -> Result<Vec<Client>> {
        let id = |name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => text_id(&self.db, name).map(|id| Some(id.unwrap_or(-1))),
        };
        let (server, user) = (id(&wanted.server)?, id(&wanted.user)?);
        let texts = self.texts()?;
        let mut clients = self.db.prepare(
            "SELECT class, server, port, peer, proxied, user, driver, version, program, tls, cipher, first, last, sessions,
                    refused, passed, rule FROM client
             WHERE last >= ?1 AND (?2 IS NULL OR server = ?2) AND (?3 IS NULL OR user = ?3) AND class <= ?4",
        )?;
        let last_class = if wanted.plaintext {
            Class::Older
        } else {
            Class::Unix
        };
        let mut rows = clients.query(params![
            wanted.since_s.unwrap_or(i64::MIN),
            server,
            user,
            last_class as u8
        ])?;
        let mut found = Vec::new();
        while let Some(row) = rows.next()? {
            found.push(client(row, &texts)?);
        }
        Ok(found)
    }

    /// Sessions by hour, from that of `since_s` on.
    pub(super) fn tallies(&self, since_s: Option<i64>) -> Result<Vec<Tally>> {
        hours::read(&self.db, since_s)
    }

    fn texts(&self) -> Result<HashMap<i64, Arc<str>>> {
        let mut texts = self.db.prepare("SELECT id, value FROM text")?;
        let texts = texts.query_map([], |row| {
            let value: String = row.get(1)?;
            Ok((row.get(0)?, Arc::from(value)))
        })?;
        Ok(texts.collect::<Result<_, _>>()?)
    }

    /// How many bytes the database takes, with its journal.
    pub(super) fn size(&self) -> Result<u64> {
        let mut size = 0;
        for path in [self.path.clone(), beside(&self.path, "-wal")] {
            match fs::symlink_metadata(&path) {
                Ok(metadata) => size += metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("look at {}", path.display()));
                }
            }
        }
        Ok(size)
    }
}

fn offset_of(db: &Connection, part: &Part) -> Result<u64> {
    let offset = db
        .query_row(
            "SELECT offset FROM file WHERE head = ?1",
            [part.head()],
            |row| row.get::<_, i64>(0),
        )
        .optional()?;
    Ok(unsigned(offset.unwrap_or(0)))
}

/// Makes the file if it is not there. Returns its device and inode.
fn make_file(path: &Path) -> Result<(u64, u64)> {
    let failed = || {
        Failed::new(
            format!("open the history {}", path.display()),
            "run it as root; where it is the agent that may not: ReadWritePaths= in its unit, or another [history] path",
        )
    };
    let look = || fs::symlink_metadata(path);
    let metadata = match look() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::open(path, flags, Mode::from_raw_mode(FILE_MODE));
            drop(made.map_err(io::Error::from).with_context(failed)?);
            look()
        }
        found => found,
    };
    let metadata = metadata.with_context(failed)?;
    if !metadata.is_file() {
        let not_a_file = io::Error::other("it is no regular file");
        return Err(not_a_file).with_context(failed);
    }
    Ok((metadata.dev(), metadata.ino()))
}

/// Held while an index is opened or made anew: of two processes that find it damaged, the second must not take away what the first
/// has made.
fn alone(path: &Path) -> Result<fs::File> {
    let lock = beside(path, ".lock");
    let failed = || {
        Failed::new(
            format!("lock the history by {}", lock.display()),
            "run it as root; where it is the agent that may not: ReadWritePaths= in its unit, or another [history] path",
        )
    };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(&lock, flags, Mode::from_raw_mode(FILE_MODE))
        .map_err(io::Error::from)
        .with_context(failed)?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(io::Error::from)
        .with_context(failed)?;
    Ok(file.into())
}

/// Moves a damaged index aside, in place of the one before.
fn remove(path: &Path) -> Result<()> {
    for (ending, aside) in [("", Some(".damaged")), ("-wal", None), ("-shm", None)] {
        let from = beside(path, ending);
        let done = match aside {
            Some(aside) => fs::rename(&from, beside(path, aside)),
            None => fs::remove_file(&from),
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| {
                    Failed::new(
                        format!("move {} away", from.display()),
                        "remove it: the history is made anew from the audit file",
                    )
                });
            }
            _ => {}
        }
    }
    Ok(())
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// What is read in one transaction.
struct Batch<'t> {
    tx: &'t Transaction<'t>,
    texts: Texts<'t>,
    clients: HashMap<Key, Met>,
    hours: Hours,
    now_s: i64,
    sessions: i64,
    garbage: i64,
    later: i64,
    newest_s: i64,
    /// The run of the agent that wrote the newest record, and its number.
    run: Option<String>,
    sequence: u64,
    /// Lines behind it that had no number to read.
    unnumbered: u64,
    /// Whether the file that was read last is gone.
    is_gone: bool,
}

/// What makes a client: numbers of texts, 0 for none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Key {
    class: Class,
    server: i64,
    port: u16,
    peer: Address,
    proxied: Address,
    user: i64,
    driver: i64,
    version: i64,
    program: i64,
    tls: u16,
    cipher: u16,
}

/// An address as it stands in a row: none, 4 or 16 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Address(Option<IpAddr>);

impl Address {
    fn bytes(&self) -> Vec<u8> {
        match self.0.map(|address| address.to_canonical()) {
            None => Vec::new(),
            Some(IpAddr::V4(address)) => address.octets().to_vec(),
            Some(IpAddr::V6(address)) => address.octets().to_vec(),
        }
    }

    fn read(bytes: &[u8]) -> Result<Option<IpAddr>, Damage> {
        if let Ok(four) = <[u8; 4]>::try_from(bytes) {
            return Ok(Some(IpAddr::from(four)));
        }
        match <[u8; 16]>::try_from(bytes) {
            Ok(sixteen) => Ok(Some(IpAddr::from(sixteen))),
            Err(_) if bytes.is_empty() => Ok(None),
            Err(_) => Err(Damage("an address in it has another length than 4 or 16")),
        }
    }
}

/// How often and when a client was met.
struct Met {
    first_s: i64,
    last_s: i64,
    sessions: i64,
    refused: i64,
    passed: Outcome,
    rule: i64,
}

impl<'t> Batch<'t> {
    fn new(tx: &'t Transaction<'t>, now_s: i64) -> Result<Self> {
        let run: String = get(tx, "run")?;
        Ok(Self {
            texts: Texts::new(tx)?,
            clients: HashMap::new(),
            hours: Hours::default(),
            now_s,
            sessions: 0,
            garbage: 0,
            later: 0,
            newest_s: get(tx, "newest")?,
            run: (!run.is_empty()).then_some(run),
            sequence: unsigned(get(tx, "sequence")?),
            unnumbered: unsigned(get(tx, "unnumbered")?),
            is_gone: get::<i64>(tx, "gone")? != 0,
            tx,
        })
    }

    fn take(&mut self, line: Line<'_>) -> Result<()> {
        match line.number {
            Some((run, sequence)) => self.follow(&run, sequence)?,
            None => self.unnumbered += 1,
        }
        match line.content {
            Content::Session(seen) => self.session(&seen)?,
            Content::Other(_) => {}
            Content::Later => self.later += 1,
            Content::Garbage => self.garbage += 1,
        }
        Ok(())
    }

    /// Whether records are missing before number `sequence` of `run`.
    fn follow(&mut self, run: &str, sequence: u64) -> Result<()> {
        let is_same = self.run.as_deref() == Some(run);
        // Records are numbered from 1 in each run.
        let expected = if is_same { self.sequence + 1 } else { 1 };
        // Lines that could not be read may be those.
        let missing = sequence
            .saturating_sub(expected)
            .saturating_sub(self.unnumbered);
        if self.run.is_some() {
            if missing > 0 {
                let why = if is_same {
                    "their numbers are missing"
                } else {
                    "the first ones of a run of the agent are missing"
                };
                self.hole(Some(missing), why)?;
            }
            if self.is_gone && !is_same {
                let why =
                    "the audit file that was read last is gone, with what was written to it since";
                self.hole(None, why)?;
            }
        }
        if !is_same {
            self.run = Some(run.to_owned());
        }
        self.sequence = sequence;
        self.unnumbered = 0;
        self.is_gone = false;
        Ok(())
    }

    fn hole(&self, missing: Option<u64>, why: &str) -> Result<()> {
        self.tx.execute(
            "INSERT INTO hole (at, missing, why) VALUES (?1, ?2, ?3)",
            params![self.newest_s, missing.map(signed), why],
        )?;
        let most = i64::try_from(HOLES).unwrap_or(i64::MAX);
        self.tx.execute(
            "DELETE FROM hole WHERE id <= (SELECT max(id) FROM hole) - ?1",
            [most],
        )?;
        Ok(())
    }

    fn session(&mut self, seen: &Seen<'_>) -> Result<()> {
        // A clock that was ahead and has been set back must not make a client the newest for good.
        let at_s = (seen.time_ms / 1000).clamp(0, self.now_s.max(0));
        let mut id = |text: Option<&str>| match text {
            Some(text) => self.texts.id(text),
            None => Ok(0),
        };
        let key = Key {
            class: seen.class,
            server: id(Some(&seen.server))?,
            port: seen.port,
            peer: Address(seen.peer),
            proxied: Address(seen.proxied),
            user: id(seen.user.as_deref())?,
            driver: id(seen.driver.as_deref())?,
            version: id(seen.version.as_deref())?,
            program: id(seen.program.as_deref())?,
            tls: seen.tls,
            cipher: seen.cipher,
        };
        let rule = id(seen.rule.as_deref())?;
        let met = self.clients.entry(key).or_insert(Met {
            first_s: at_s,
            last_s: at_s,
            sessions: 0,
            refused: 0,
            passed: seen.passed,
            rule,
        });
        met.first_s = met.first_s.min(at_s);
        if at_s >= met.last_s {
            met.last_s = at_s;
            met.passed = seen.passed;
            met.rule = rule;
        }
        met.sessions += 1;
        met.refused += i64::from(seen.passed == Outcome::Denied);
        self.hours.count(at_s, seen);
        self.newest_s = self.newest_s.max(at_s);
        self.sessions += 1;
        Ok(())
    }

    fn store(self) -> Result<()> {
        let tx = self.tx;
        self.hours.store(tx)?;
        let mut clients: Vec<(Key, Met)> = self.clients.into_iter().collect();
        clients.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let mut known = tx.prepare(
            "UPDATE client SET first = min(first, ?12), last = max(last, ?13), sessions = sessions + ?14, refused = refused + ?15,
                passed = iif(?13 >= last, ?16, passed), rule = iif(?13 >= last, ?17, rule)
             WHERE class = ?1 AND server = ?2 AND port = ?3 AND peer = ?4 AND proxied = ?5 AND user = ?6 AND driver = ?7
               AND version = ?8 AND program = ?9 AND tls = ?10 AND cipher = ?11",
        )?;
        let mut new = tx.prepare(
            "INSERT INTO client VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
        )?;
        let mut added = 0;
        for (key, met) in &clients {
            let write = |statement: &mut Statement<'_>| {
                statement.execute(params![
                    key.class as u8,
                    key.server,
                    key.port,
                    key.peer.bytes(),
                    key.proxied.bytes(),
                    key.user,
                    key.driver,
                    key.version,
                    key.program,
                    key.tls,
                    key.cipher,
                    met.first_s,
                    met.last_s,
                    met.sessions,
                    met.refused,
                    met.passed as u8,
                    met.rule
                ])
            };
            if write(&mut known)? == 0 {
                write(&mut new)?;
                added += 1;
            }
        }
        for (key, more) in [
            ("clients", added),
            ("sessions", self.sessions),
            ("garbage", self.garbage),
            ("later", self.later),
        ] {
            if more > 0 {
                put(tx, key, get::<i64>(tx, key)? + more)?;
            }
        }
        put(tx, "newest", self.newest_s)?;
        put(tx, "run", self.run.unwrap_or_default())?;
        put(tx, "sequence", signed(self.sequence))?;
        put(tx, "unnumbered", signed(self.unnumbered))?;
        put(tx, "gone", i64::from(self.is_gone))
    }
}

/// Names and their numbers.
struct Texts<'t> {
    known: HashMap<String, i64>,
    find: Statement<'t>,
    add: Statement<'t>,
}

const FIND_TEXT: &str = "SELECT id FROM text WHERE value = ?1";

impl<'t> Texts<'t> {
    fn new(tx: &'t Transaction<'t>) -> Result<Self> {
        Ok(Self {
            known: HashMap::new(),
            find: tx.prepare(FIND_TEXT)?,
            add: tx.prepare("INSERT INTO text (value) VALUES (?1) RETURNING id")?,
        })
    }

    fn id(&mut self, text: &str) -> Result<i64> {
        if let Some(&id) = self.known.get(text) {
            return Ok(id);
        }
        // The audit file may have been edited.
        let kept: String = printable(text.as_bytes())
            .0
            .chars()
            .take(TEXT_MAX)
            .collect();
        let found = self.find.query_row([&kept], |row| row.get(0)).optional()?;
        let id = match found {
            Some(id) => id,
            None => self.add.query_row([&kept], |row| row.get(0))?,
        };
        self.known.insert(text.to_owned(), id);
        Ok(id)
    }
}

fn text_id(db: &Connection, text: &str) -> Result<Option<i64>> {
    Ok(db
        .query_row(FIND_TEXT, [text], |row| row.get(0))
        .optional()?)
}

fn client(row: &Row<'_>, texts: &HashMap<i64, Arc<str>>) -> Result<Client> {
    let text = |at: usize| -> Result<Option<Arc<str>>> {
        Ok(match row.get::<_, i64>(at)? {
            // Most have no more than a server and a rule: not looked for, it is a tenth of the time for all clients.
            0 => None,
            id => texts.get(&id).cloned(),
        })
    };
    let address =
        |at: usize| -> Result<Option<IpAddr>> { Ok(Address::read(row.get_ref(at)?.as_blob()?)?) };
    Ok(Client {
        class: Class::from_u8(row.get(0)?).ok_or(Damage("a class in it is not known"))?,
        server: text(1)?.ok_or(Damage("a name in it is missing"))?,
        port: row.get(2)?,
        peer: address(3)?,
        proxied: address(4)?,
        user: text(5)?,
        driver: text(6)?,
        version: text(7)?,
        program: text(8)?,
        tls: row.get(9)?,
        cipher: row.get(10)?,
        first_s: row.get(11)?,
        last_s: row.get(12)?,
        sessions: unsigned(row.get(13)?),
        refused: unsigned(row.get(14)?),
        passed: Outcome::from_u8(row.get(15)?).ok_or(Damage("a verdict in it is not known"))?,
        rule: text(16)?,
    })
}

/// A value of the table `state`; its type's empty one if there is none.
fn get<T: Default + rusqlite::types::FromSql>(db: &Connection, key: &str) -> Result<T> {
    let found = db
        .query_row("SELECT value FROM state WHERE key = ?1", [key], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(found.unwrap_or_default())
}

fn put(db: &Connection, key: &str, value: impl rusqlite::ToSql) -> Result<()> {
    db.execute(
        "INSERT OR REPLACE INTO state VALUES (?1, ?2)",
        params![key, value],
    )?;
    Ok(())
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
