//! The audit file and those it was rotated into, oldest first.
//!
//! A file is known by its first line, which has a number of its own (`metadata.uid`): so it is the same file under another name
//! (rotation), as a copy (`copytruncate`), and another one in the same inode.

use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};

/// How much of its first line a file is known by, in bytes: a record is shorter as a rule, and its number is in it.
const HEAD: usize = 4096;
/// How much is read at once, in bytes. A longer line is no record.
const CHUNK: usize = 1 << 20;
/// Endings of files that cannot be read as they are.
const COMPRESSED: [&str; 6] = [".gz", ".xz", ".zst", ".bz2", ".lz4", ".Z"];

/// A file with records.
#[derive(Debug)]
pub struct Part {
    file: File,
    head: i64,
    device: u64,
    inode: u64,
    len: u64,
    modified: SystemTime,
    /// Whether it has the name of the audit file.
    is_current: bool,
}

impl Part {
    /// Opens the file at `path`. None if its first line has not come yet.
    pub fn open(path: &Path, is_current: bool) -> io::Result<Option<Self>> {
        // O_NONBLOCK: a FIFO of that name must not make this wait.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let mut part = Self {
            file,
            head: 0,
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: metadata.modified()?,
            is_current,
        };
        match part.head_now()? {
            Some(head) => {
                part.head = head;
                Ok(Some(part))
            }
            None => Ok(None),
        }
    }

    /// What it is known by now: it may have been truncated. None if it has no whole first line.
    pub fn head_now(&self) -> io::Result<Option<i64>> {
        let head = self.read(0, HEAD)?;
        let line = match head.iter().position(|&byte| byte == b'\n') {
            Some(end) => head.get(..end),
            None if head.len() == HEAD => Some(head.as_slice()),
            None => None,
        };
        Ok(line.map(fingerprint))
    }

    /// What its first line is known by.
    #[must_use]
    pub const fn head(&self) -> i64 {
        self.head
    }

    /// Device and inode, for who looks into the database.
    #[must_use]
    pub const fn place(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Its length when it was opened.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.len
    }

    /// Whether it has the name of the audit file.
    #[must_use]
    pub const fn is_current(&self) -> bool {
        self.is_current
    }

    /// When it was written to last.
    #[must_use]
    pub const fn modified(&self) -> SystemTime {
        self.modified
    }

    /// Its length now: the agent goes on writing.
    pub fn length_now(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads up to `most` bytes from `offset` on.
    pub fn read(&self, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let left = self.length_now()?.saturating_sub(offset);
        let wanted = usize::try_from(left).map_or(most, |left| left.min(most));
        let mut bytes = vec![0; wanted];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match self.file.read_at(rest, at) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }

    /// Reads its whole lines from `offset` on, where one begins, until `each` says so. Returns where the next begins.
    pub fn lines(
        &self,
        mut offset: u64,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<u64> {
        loop {
            let bytes = self.read(offset, CHUNK)?;
            let lines = whole_lines(&bytes, CHUNK);
            if lines.is_empty() {
                return Ok(offset);
            }
            for line in lines.split_inclusive(|&byte| byte == b'\n') {
                offset += u64::try_from(line.len()).unwrap_or(0);
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                if !line.is_empty() && each(line).is_break() {
                    return Ok(offset);
                }
            }
        }
    }

    /// Reads its whole lines before `end`, the last first, until `each` says so.
    pub fn lines_back(
        &self,
        end: u64,
        mut each: impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut start = self.line_end(end)?;
        // Lines from `start` on whose beginning is known, behind one whose beginning is not.
        let mut rest: Vec<u8> = Vec::new();
        while start > 0 {
            let most = u64::try_from(CHUNK).unwrap_or(u64::MAX).min(start);
            start -= most;
            let mut bytes = self.read(start, usize::try_from(most).unwrap_or(CHUNK))?;
            // No record is as long: it is passed over.
            if rest.len() <= CHUNK {
                bytes.append(&mut rest);
            }
            let begins = match bytes.iter().position(|&byte| byte == b'\n') {
                _ if start == 0 => 0,
                Some(end) => end + 1,
                None => bytes.len(),
            };
            let (head, lines) = bytes.split_at(begins);
            for line in lines.rsplit(|&byte| byte == b'\n') {
                if !line.is_empty() && each(line).is_break() {
                    return Ok(());
                }
            }
            rest = head.to_vec();
        }
        Ok(())
    }

    /// The end of the last whole line before `end`.
    pub fn line_end(&self, end: u64) -> io::Result<u64> {
        let mut end = end;
        while end > 0 {
            let most = u64::try_from(HEAD).unwrap_or(u64::MAX).min(end);
            let start = end - most;
            let bytes = self.read(start, HEAD.min(usize::try_from(most).unwrap_or(HEAD)))?;
            if let Some(at) = bytes.iter().rposition(|&byte| byte == b'\n') {
                return Ok(start + u64::try_from(at).unwrap_or(0) + 1);
            }
            end = start;
        }
        Ok(0)
    }
}

/// The lines of `bytes` that are whole; all of it where one is longer than what is read at once (`most`): it is no record.
#[must_use]
pub fn whole_lines(bytes: &[u8], most: usize) -> &[u8] {
    match bytes.iter().rposition(|&byte| byte == b'\n') {
        Some(end) => bytes.get(..=end).unwrap_or_default(),
        None if bytes.len() == most => bytes,
        None => &[],
    }
}

/// The files of `audit`, oldest first. One without a whole first line has not begun.
pub fn parts(audit: &Path) -> Result<Vec<Part>> {
    let directory = audit.parent().unwrap_or(audit);
    let name = audit.file_name().unwrap_or_default().to_string_lossy();
    let listing = || format!("list {}", directory.display());
    let mut parts: Vec<Part> = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(parts),
        entries => entries.with_context(listing)?,
    };
    for entry in entries {
        let entry = entry.with_context(listing)?;
        let other = entry.file_name();
        let other = other.to_string_lossy();
        let is_current = other == name;
        if !is_current && !is_rotated(&name, &other) {
            continue;
        }
        if let Some(part) = open(&entry.path(), is_current)
            .with_context(|| format!("read {}", entry.path().display()))?
        {
            parts.push(part);
        }
    }
    parts.sort_by_key(|part| (part.is_current, part.modified));
    // Copies of one file: the longest has all that the others have.
    let mut distinct: Vec<Part> = Vec::new();
    for part in parts {
        match distinct.iter_mut().find(|known| known.head == part.head) {
            Some(known) if known.len < part.len => *known = part,
            Some(known) => known.is_current |= part.is_current,
            None => distinct.push(part),
        }
    }
    Ok(distinct)
}

/// `audit.jsonl.1`, `audit.jsonl-20261123`: as logrotate names them.
fn is_rotated(name: &str, other: &str) -> bool {
    other.strip_prefix(name).is_some_and(|rest| {
        rest.strip_prefix(['.', '-'])
            .is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
            && !COMPRESSED.iter().any(|ending| rest.ends_with(ending))
    })
}

/// As [`Part::open`], of a file that was found in a listing.
fn open(path: &Path, is_current: bool) -> io::Result<Option<Part>> {
    match Part::open(path, is_current) {
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

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): the same in every release.
fn fingerprint(bytes: &[u8]) -> i64 {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    hash.cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotated_files_are_those_that_logrotate_makes() {
        let is = |other| is_rotated("audit.jsonl", other);
        assert!(is("audit.jsonl.1") && is("audit.jsonl-20261123") && is("audit.jsonl.12"));
        assert!(!is("audit.jsonl") && !is("audit.jsonl.2.gz") && !is("audit.jsonl-20261123.zst"));
        assert!(
            !is("audit.jsonl.bak")
                && !is("audit.jsonl~")
                && !is("other.1")
                && !is("audit.jsonl.db-1x".replace("jsonl.db", "json").as_str())
        );
    }

    #[test]
    fn fingerprints_are_those_of_fnv_1a() {
        assert_eq!(fingerprint(b""), 0xcbf2_9ce4_8422_2325_u64.cast_signed());
        assert_eq!(
            fingerprint(b"foobar"),
            0x8594_4171_f739_67e8_u64.cast_signed()
        );
    }

    fn part(content: &[u8]) -> (tempfile::TempDir, Part) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        std::fs::write(&path, content).unwrap();
        let part = Part::open(&path, true).unwrap().unwrap();
        (directory, part)
    }

    #[test]
    fn lines_are_the_same_in_both_directions() {
        let mut content = Vec::new();
        // More than is read at once, with lines over its boundaries, an empty one, and one without an end.
        for n in 0..30_000 {
            content.extend(format!("{n}{}\n", " ".repeat(n % 97)).bytes());
        }
        content.extend(b"\nlast\nno end");
        let (_directory, part) = part(&content);
        let mut forwards = Vec::new();
        let collect = |line: &[u8]| {
            forwards.push(line.to_vec());
            ControlFlow::Continue(())
        };
        let end = part.lines(0, collect).unwrap();
        let second = part.lines(0, |_| ControlFlow::Break(())).unwrap();
        assert_eq!(second, 2, "behind the first line");
        assert_eq!(forwards.len(), 30_001);
        assert_eq!(end, u64::try_from(content.len()).unwrap() - 6);
        assert_eq!(part.line_end(part.length()).unwrap(), end);
        let mut backwards = Vec::new();
        let collect = |line: &[u8]| {
            backwards.push(line.to_vec());
            ControlFlow::Continue(())
        };
        part.lines_back(part.length(), collect).unwrap();
        backwards.reverse();
        assert!(forwards == backwards);

        let mut last = Vec::new();
        let first = |line: &[u8]| {
            last.push(line.to_vec());
            ControlFlow::Break(())
        };
        part.lines_back(end, first).unwrap();
        assert_eq!(last, [b"last"]);
    }

    #[test]
    fn a_line_that_no_record_is_as_long_as_hides_no_other() {
        let mut content = b"first\n".to_vec();
        content.extend(vec![b'x'; 5 * CHUNK]);
        content.extend(b"\nlast\n");
        let (_directory, part) = part(&content);
        let mut short = Vec::new();
        let mut longest = 0;
        let mut each = |line: &[u8]| {
            longest = longest.max(line.len());
            if line.len() < 10 {
                short.push(String::from_utf8(line.to_vec()).unwrap());
            }
            ControlFlow::Continue(())
        };
        part.lines(0, &mut each).unwrap();
        part.lines_back(part.length(), each).unwrap();
        assert_eq!(short, ["first", "last", "last", "first"]);
        assert!(longest <= 2 * CHUNK, "{longest}");
    }
}
