//! The audit file and those it was rotated into, oldest first; those that gzip has compressed, too.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{DirEntryExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::{Context as _, Result};

use super::packed::Known;
use super::parts::Part;
use crate::login::printable;

/// The ending of files that gzip has compressed.
const GZIP: &str = ".gz";
/// Endings of files that cannot be read as they are.
const OTHERS: [&str; 5] = [".xz", ".zst", ".bz2", ".lz4", ".Z"];
/// How often files are looked up again that were renamed meanwhile. logrotate is done in far less time than that takes.
const LOOKS: usize = 100;

/// Files of one audit file, as they come and go.
#[derive(Debug)]
pub struct Folder {
    audit: PathBuf,
    /// Compressed files that were there at the last look, oldest first.
    packed: Vec<Seen>,
    /// Files that cannot be read as they are.
    others: Vec<Flaw>,
}

#[derive(Debug)]
struct Seen {
    path: PathBuf,
    modified: SystemTime,
    identity: Identity,
    known: Arc<Known>,
    /// Whether it is the only one with its content.
    counts: bool,
}

/// Of a file that does not change any more: device, inode, length, and when it was written to last, in seconds and nanoseconds.
type Identity = (u64, u64, u64, i64, i64);

fn identity(metadata: &Metadata) -> Identity {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
    )
}

/// A file that was not read, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// Where it is.
    pub path: PathBuf,
    /// When it was written to last.
    pub modified: SystemTime,
    /// Why.
    pub why: Why,
}

/// Why a file was not read, or not to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is compressed, and not by gzip.
    Compressed,
    /// It is damaged.
    Damaged(String),
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = printable(self.path.as_os_str().as_encoded_bytes()).0;
        match &self.why {
            Why::Compressed => write!(
                f,
                "{path} is left out: it is compressed, and not by gzip\n  \
                 help: decompress it to a file beside it, or have logrotate use gzip; then: musttls history rebuild"
            ),
            Why::Damaged(how) => write!(
                f,
                "{path} is damaged, and read up to there: {how}\n  \
                 help: put a whole copy in its place, then: musttls history rebuild; if there is none, move it to another directory"
            ),
        }
    }
}

/// How a file of the audit file's name has to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Gzip,
    Other,
}

/// What a listing has: a name, and which file that is.
type Entry = (OsString, u64);

impl Folder {
    /// The files of `audit`.
    #[must_use]
    pub fn new(audit: &Path) -> Self {
        Self {
            audit: audit.to_owned(),
            packed: Vec::new(),
            others: Vec::new(),
        }
    }

    /// The audit file.
    #[must_use]
    pub fn audit(&self) -> &Path {
        &self.audit
    }

    /// The files that can be read, oldest first. One without a whole first line has not begun.
    pub fn parts(&mut self) -> Result<Vec<Part>> {
        let mut entries = self.list()?;
        for _ in 1..LOOKS {
            let parts = self.open(&entries)?;
            // One that was renamed or compressed meanwhile may be there under neither name.
            let now = self.list()?;
            if now == entries {
                return Ok(parts);
            }
            entries = now;
        }
        self.open(&entries)
    }

    /// What was not read of these files, as far as that is known, oldest first.
    #[must_use]
    pub fn flaws(&self) -> Vec<Flaw> {
        let damaged = self.packed.iter().filter(|seen| seen.counts);
        let mut flaws: Vec<Flaw> = damaged
            .filter_map(|seen| {
                Some(Flaw {
                    path: seen.path.clone(),
                    modified: seen.modified,
                    why: Why::Damaged(seen.known.damage()?),
                })
            })
            .collect();
        flaws.extend(self.others.iter().cloned());
        flaws.sort_by_key(|flaw| flaw.modified);
        flaws
    }

    /// The audit file and the files that have its name with a number, by their names.
    fn list(&self) -> Result<Vec<Entry>> {
        let directory = self.audit.parent().unwrap_or(&self.audit);
        let name = self.name();
        let listing = || format!("list {}", directory.display());
        let mut entries = Vec::new();
        let found = match std::fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(entries),
            found => found.with_context(listing)?,
        };
        for entry in found {
            let entry = entry.with_context(listing)?;
            let other = entry.file_name();
            if other.to_string_lossy() == name || kind(&name, &other.to_string_lossy()).is_some() {
                entries.push((other, entry.ino()));
            }
        }
        // As they are looked at: of two that were written to in the same instant the older one first.
        entries
            .sort_by_cached_key(|(other, inode)| (order(&name, &other.to_string_lossy()), *inode));
        Ok(entries)
    }

    fn name(&self) -> String {
        let name = self.audit.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    fn open(&mut self, entries: &[Entry]) -> Result<Vec<Part>> {
        let name = self.name();
        let former: HashMap<Identity, Arc<Known>> = std::mem::take(&mut self.packed)
            .into_iter()
            .map(|seen| (seen.identity, seen.known))
            .collect();
        self.others.clear();
        // With the number of the compressed file that it is.
        let mut parts: Vec<(Part, Option<usize>)> = Vec::new();
        for (other, _) in entries {
            let path = self.audit.with_file_name(other);
            let reading = || format!("read {}", path.display());
            let other = other.to_string_lossy();
            let is_current = other == name;
            // It has been decompressed, or is about to be compressed.
            let is_beside = |ending: &str| {
                let plain = other.strip_suffix(ending);
                plain.is_some_and(|plain| entries.iter().any(|(name, _)| name == plain))
            };
            match kind(&name, &other) {
                Some(Kind::Gzip) => {
                    let part = self.unpack(&path, &former, is_beside(GZIP));
                    parts.extend(part.with_context(reading)?);
                }
                Some(Kind::Other) => {
                    let is_known = OTHERS.iter().any(|ending| is_beside(ending));
                    let metadata = std::fs::symlink_metadata(&path);
                    if let Ok(metadata) = metadata
                        && metadata.is_file()
                        && !is_known
                    {
                        self.others.push(Flaw {
                            modified: metadata.modified().with_context(reading)?,
                            why: Why::Compressed,
                            path,
                        });
                    }
                }
                Some(Kind::Plain) | None => {
                    let part = found(&path, |path| Part::open(path, is_current));
                    parts.extend(part.with_context(reading)?.map(|part| (part, None)));
                }
            }
        }
        Ok(self.distinct(parts))
    }

    /// Opens a compressed file, of which something may be known from a `former` look. While one of the same name `is_beside` it, it
    /// need not be whole.
    fn unpack(
        &mut self,
        path: &Path,
        former: &HashMap<Identity, Arc<Known>>,
        is_beside: bool,
    ) -> io::Result<Option<(Part, Option<usize>)>> {
        let mut seen = None;
        let part = found(path, |path| {
            Part::unpack(path, |metadata| {
                let identity = identity(metadata);
                let known = former.get(&identity).cloned().unwrap_or_default();
                seen = Some((identity, known.clone(), metadata.modified()));
                known
            })
        })?;
        let Some((identity, known, modified)) = seen else {
            return Ok(None);
        };
        self.packed.push(Seen {
            path: path.to_owned(),
            modified: modified?,
            identity,
            known,
            counts: part.is_some() || !is_beside,
        });
        Ok(part.map(|part| (part, Some(self.packed.len() - 1))))
    }

    /// Each content once, oldest first.
    fn distinct(&mut self, mut parts: Vec<(Part, Option<usize>)>) -> Vec<Part> {
        parts.sort_by_key(|(part, _)| (part.is_current(), part.modified()));
        let mut distinct: Vec<(Part, Option<usize>)> = Vec::new();
        for (part, number) in parts {
            let Some((known, known_number)) = distinct
                .iter_mut()
                .find(|(known, _)| known.head() == part.head())
            else {
                distinct.push((part, number));
                continue;
            };
            // Copies of one file: the longest has all that the others have. A compressed one may not be whole yet.
            let is_better = match (known.is_packed(), part.is_packed()) {
                (true, false) => true,
                (false, true) => false,
                _ => known.length() < part.length(),
            };
            let is_current = known.is_current() || part.is_current();
            let mut spare = number;
            if is_better {
                *known = part;
                spare = std::mem::replace(known_number, number);
            } else {
                known.set_current(is_current);
            }
            if let Some(seen) = spare.and_then(|spare| self.packed.get_mut(spare)) {
                seen.counts = false;
            }
        }
        distinct.into_iter().map(|(part, _)| part).collect()
    }
}

/// `audit.jsonl.1`, `audit.jsonl-20261123`: as logrotate names them, and how they are to be read.
fn kind(name: &str, other: &str) -> Option<Kind> {
    let rest = other.strip_prefix(name)?;
    let number = rest.strip_prefix(['.', '-'])?;
    if !number.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some(if rest.ends_with(GZIP) {
        Kind::Gzip
    } else if OTHERS.iter().any(|ending| rest.ends_with(ending)) {
        Kind::Other
    } else {
        Kind::Plain
    })
}

/// What stands before what: numbers grow with age, dates shrink.
fn order(name: &str, other: &str) -> i64 {
    let rest = other.strip_prefix(name).unwrap_or_default();
    let digits = rest.get(1..).unwrap_or_default();
    let end = digits.find(|c: char| !c.is_ascii_digit());
    let number = digits
        .get(..end.unwrap_or(digits.len()))
        .unwrap_or_default();
    let number: i64 = number.parse().unwrap_or(i64::MAX);
    if rest.starts_with('.') {
        number.saturating_neg()
    } else {
        number
    }
}

/// Opens a file that was found in a listing.
fn found(
    path: &Path,
    open: impl FnOnce(&Path) -> io::Result<Option<Part>>,
) -> io::Result<Option<Part>> {
    match open(path) {
        Ok(part) => Ok(part),
        // It has just been rotated away, or is a link.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
            Ok(None)
        }
        // No file of records.
        Err(_) if std::fs::symlink_metadata(path).is_ok_and(|it| !it.is_file()) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;
    use std::ops::ControlFlow;
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};

    struct Place {
        directory: tempfile::TempDir,
        folder: Folder,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let folder = Folder::new(&directory.path().join("audit.jsonl"));
            Self { directory, folder }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.path(name), content).unwrap();
        }

        /// The program, which is on every Linux.
        fn gzip(&self, name: &str) {
            let status = Command::new("gzip").arg(self.path(name)).status();
            assert!(status.unwrap().success());
        }

        fn set_modified(&self, name: &str, seconds: u64) {
            let file = fs::File::options()
                .append(true)
                .open(self.path(name))
                .unwrap();
            let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            file.set_modified(at).unwrap();
        }

        fn lines(&mut self) -> Vec<String> {
            lines(&self.folder.parts().unwrap())
        }
    }

    fn records(count: usize) -> String {
        let lines: Vec<String> = (0..count).map(|n| format!("record {n}\n")).collect();
        lines.concat()
    }

    fn lines(parts: &[Part]) -> Vec<String> {
        let mut lines = Vec::new();
        for part in parts {
            part.lines(0, |line| {
                lines.push(String::from_utf8(line.to_vec()).unwrap());
                ControlFlow::Continue(())
            })
            .unwrap();
        }
        lines
    }

    #[test]
    fn rotated_files_are_those_that_logrotate_makes() {
        let kind = |other| kind("audit.jsonl", other);
        for plain in ["audit.jsonl.1", "audit.jsonl-20261123", "audit.jsonl.12"] {
            assert_eq!(kind(plain), Some(Kind::Plain), "{plain}");
        }
        for gzip in ["audit.jsonl.2.gz", "audit.jsonl-20261123.gz"] {
            assert_eq!(kind(gzip), Some(Kind::Gzip), "{gzip}");
        }
        for other in [
            "audit.jsonl-20261123.zst",
            "audit.jsonl.2.xz",
            "audit.jsonl.2.bz2",
        ] {
            assert_eq!(kind(other), Some(Kind::Other), "{other}");
        }
        for none in [
            "audit.jsonl",
            "audit.jsonl.bak",
            "audit.jsonl~",
            "audit.jsonl.gz",
            "other.1",
            "audit.json.db-1x",
        ] {
            assert_eq!(kind(none), None, "{none}");
        }
    }

    #[test]
    fn compressed_files_stand_in_their_order() {
        let mut place = Place::new();
        place.write("audit.jsonl.3", "a\nb\n");
        place.write("audit.jsonl.2", "c\n");
        place.write("audit.jsonl.1", "d\n");
        place.write("audit.jsonl", "e\n");
        for (name, at) in [
            ("audit.jsonl.3", 1),
            ("audit.jsonl.2", 2),
            ("audit.jsonl.1", 3),
        ] {
            place.set_modified(name, at);
        }
        let heads: Vec<i64> = place
            .folder
            .parts()
            .unwrap()
            .iter()
            .map(Part::head)
            .collect();
        place.gzip("audit.jsonl.2");
        place.gzip("audit.jsonl.3");
        assert_eq!(place.lines(), ["a", "b", "c", "d", "e"]);
        let parts = place.folder.parts().unwrap();
        assert_eq!(parts.iter().map(Part::head).collect::<Vec<_>>(), heads);
        assert!(place.folder.flaws().is_empty());
    }

    #[test]
    fn of_files_of_the_same_instant_the_older_is_first() {
        let names = [
            "audit.jsonl.10",
            "audit.jsonl.9.gz",
            "audit.jsonl.1",
            "audit.jsonl-20261115",
            "audit.jsonl-20261122.gz",
            "audit.jsonl",
        ];
        assert!(names.map(|name| order("audit.jsonl", name)).is_sorted());
    }

    #[test]
    fn while_it_is_compressed_a_file_is_there_once_and_not_damaged() {
        let mut place = Place::new();
        let content = records(5000);
        place.write("audit.jsonl.2", &content);
        place.write("audit.jsonl", "now\n");
        let whole = {
            place.gzip("audit.jsonl.2");
            fs::read(place.path("audit.jsonl.2.gz")).unwrap()
        };
        // As much of it as gzip has written, and then all of it, with the other still there.
        for written in [0, 5, 30, whole.len() / 2, whole.len()] {
            place.write("audit.jsonl.2", &content);
            fs::write(place.path("audit.jsonl.2.gz"), &whole[..written]).unwrap();
            place.set_modified("audit.jsonl.2", 1);
            let parts = place.folder.parts().unwrap();
            assert_eq!(parts.len(), 2, "{written}");
            assert!(!parts[0].is_packed());
            assert_eq!(lines(&parts).len(), 5001);
            assert_eq!(place.folder.flaws(), []);
        }
        // Without the other, half of it is damage.
        fs::remove_file(place.path("audit.jsonl.2")).unwrap();
        fs::write(place.path("audit.jsonl.2.gz"), &whole[..whole.len() / 2]).unwrap();
        assert!(place.lines().len() < 5001);
        assert_eq!(place.folder.flaws().len(), 1);
    }

    #[test]
    fn a_look_during_rotation_and_compression_misses_no_file() {
        let mut place = Place::new();
        let content = records(2000);
        let directory = place.directory.path().to_owned();
        place.write("audit.jsonl.1", &format!("a\n{content}"));
        place.write("audit.jsonl", "now\n");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..100 {
                    let path =
                        |n: usize, end: &str| directory.join(format!("audit.jsonl.{n}{end}"));
                    fs::rename(path(n, ""), path(n + 1, "")).unwrap();
                    let mut file = fs::File::create(path(n + 1, ".gz")).unwrap();
                    let plain = fs::read(path(n + 1, "")).unwrap();
                    let fast = flate2::Compression::fast();
                    let mut encoder = flate2::write::GzEncoder::new(&mut file, fast);
                    for bytes in plain.chunks(5000) {
                        encoder.write_all(bytes).unwrap();
                    }
                    encoder.finish().unwrap();
                    fs::remove_file(path(n + 1, "")).unwrap();
                    fs::write(path(n + 1, ""), plain).unwrap();
                    fs::remove_file(path(n + 1, ".gz")).unwrap();
                }
                is_over.store(true, Ordering::Relaxed);
            });
            let mut looks = 0;
            while !is_over.load(Ordering::Relaxed) {
                let parts = place.folder.parts().unwrap();
                assert!(parts.len() >= 2, "the older one was missed at look {looks}");
                looks += 1;
            }
            assert!(looks > 10, "{looks}");
        });
    }

    #[test]
    fn what_is_compressed_by_another_program_is_named_until_it_is_decompressed() {
        let mut place = Place::new();
        place.write("audit.jsonl.3.zst", "no matter what");
        place.write("audit.jsonl", "now\n");
        assert_eq!(place.lines(), ["now"]);
        let flaws = place.folder.flaws();
        assert_eq!(flaws.len(), 1);
        let text = flaws[0].to_string();
        assert!(
            text.contains("audit.jsonl.3.zst is left out") && text.contains("help: decompress it"),
            "{text}"
        );
        place.write("audit.jsonl.3", "then\n");
        place.set_modified("audit.jsonl.3", 1);
        assert_eq!(place.lines(), ["then", "now"]);
        assert_eq!(place.folder.flaws(), []);
    }

    #[test]
    fn what_is_no_file_of_its_own_is_passed_over() {
        let mut place = Place::new();
        place.write("audit.jsonl", "now\n");
        place.write("elsewhere", "other\n");
        std::os::unix::fs::symlink(place.path("elsewhere"), place.path("audit.jsonl.4.gz"))
            .unwrap();
        fs::create_dir(place.path("audit.jsonl.5.gz")).unwrap();
        fs::create_dir(place.path("audit.jsonl.6.zst")).unwrap();
        assert_eq!(place.lines(), ["now"]);
        assert_eq!(place.folder.flaws(), []);
    }
}
