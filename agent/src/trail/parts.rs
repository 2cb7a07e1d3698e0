//! A file with records.
//!
//! It is known by its first line, which has a number of its own (`metadata.uid`): so it is the same file under another name
//! (rotation), as a copy (`copytruncate`) and compressed, and another one in the same inode. Offsets are those of its content,
//! compressed or not.

use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};

use super::packed::{Known, Packed};

/// How much of its first line a file is known by, in bytes: a record is shorter as a rule, and its number is in it.
const HEAD: usize = 4096;
/// How much is read at once, in bytes. A longer line is no record.
const CHUNK: usize = 1 << 20;
/// A file with records.
#[derive(Debug)]
pub struct Part {
    source: Source,
    head: i64,
    device: u64,
    inode: u64,
    len: u64,
    modified: SystemTime,
    /// Whether it has the name of the audit file.
    is_current: bool,
}

#[derive(Debug)]
enum Source {
    Plain(File),
    Packed(Box<Packed>),
}

impl Part {
    /// Opens the file at `path`. None if its first line has not come yet.
    pub fn open(path: &Path, is_current: bool) -> io::Result<Option<Self>> {
        let (file, metadata) = open(path)?;
        Self::new(Source::Plain(file), &metadata, is_current)
    }

    /// Opens the file at `path`, which gzip has compressed, and of which something may be `known`. None if it has no whole first line.
    pub(super) fn unpack(
        path: &Path,
        known: impl FnOnce(&Metadata) -> Arc<Known>,
    ) -> io::Result<Option<Self>> {
        let (file, metadata) = open(path)?;
        let packed = Packed::new(file, metadata.len(), known(&metadata))?;
        Self::new(Source::Packed(Box::new(packed)), &metadata, false)
    }

    fn new(source: Source, metadata: &Metadata, is_current: bool) -> io::Result<Option<Self>> {
        let mut part = Self {
            source,
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
        if let Source::Packed(packed) = &self.source {
            return packed.head(HEAD, head_of);
        }
        Ok(head_of(&self.read(0, HEAD)?))
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

    /// Its length when it was opened; of a compressed one, as it says of itself until it has been read.
    #[must_use]
    pub fn length(&self) -> u64 {
        match &self.source {
            Source::Plain(_) => self.len,
            Source::Packed(packed) => packed.length(),
        }
    }

    /// Whether it is compressed.
    #[must_use]
    pub const fn is_packed(&self) -> bool {
        matches!(self.source, Source::Packed(_))
    }

    /// Whether it has the name of the audit file.
    #[must_use]
    pub const fn is_current(&self) -> bool {
        self.is_current
    }

    /// Takes it for the one with the name of the audit file, or not.
    pub(super) const fn set_current(&mut self, is_current: bool) {
        self.is_current = is_current;
    }

    /// When it was written to last.
    #[must_use]
    pub const fn modified(&self) -> SystemTime {
        self.modified
    }

    /// Its length now: the agent goes on writing.
    pub fn length_now(&self) -> io::Result<u64> {
        match &self.source {
            Source::Plain(file) => Ok(file.metadata()?.len()),
            Source::Packed(packed) => Ok(packed.length()),
        }
    }

    /// Whether there is nothing at `offset` and behind it. A compressed file is not read for it.
    pub fn ends_at(&self, offset: u64) -> io::Result<bool> {
        match &self.source {
            Source::Plain(_) => Ok(self.length_now()? <= offset),
            Source::Packed(packed) => Ok(packed.ends_at(offset)),
        }
    }

    /// How much there is from `offset` on, as far as that is known.
    #[must_use]
    pub fn left(&self, offset: u64) -> u64 {
        match &self.source {
            Source::Packed(packed) if packed.ends_at(offset) => 0,
            _ => self.length().saturating_sub(offset),
        }
    }

    /// Reads up to `most` bytes from `offset` on.
    pub fn read(&self, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let file = match &self.source {
            Source::Plain(file) => file,
            Source::Packed(packed) => return packed.read(offset, most),
        };
        let left = self.length_now()?.saturating_sub(offset);
        let wanted = usize::try_from(left).map_or(most, |left| left.min(most));
        let mut bytes = vec![0; wanted];
        let done = fill(file, &mut bytes, offset)?;
        bytes.truncate(done);
        Ok(bytes)
    }

    /// How much memory its content takes, of a compressed one.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        match &self.source {
            Source::Plain(_) => 0,
            Source::Packed(packed) => packed.held(),
        }
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

    /// The last whole lines before `end` that are wanted, at most so many, in their order. A compressed file, which ends at its end, can
    /// be read in one direction only.
    pub fn last(
        &self,
        end: u64,
        most: usize,
        mut wants: impl FnMut(&[u8]) -> bool,
    ) -> io::Result<VecDeque<Vec<u8>>> {
        let mut found: VecDeque<Vec<u8>> = VecDeque::new();
        if self.is_packed() {
            self.lines(0, |line| {
                if wants(line) {
                    found.push_back(line.to_vec());
                    if found.len() > most {
                        found.pop_front();
                    }
                }
                ControlFlow::Continue(())
            })?;
            return Ok(found);
        }
        if most > 0 {
            self.lines_back(end, |line| {
                if wants(line) {
                    found.push_front(line.to_vec());
                }
                if found.len() < most {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })?;
        }
        Ok(found)
    }

    /// Reads its whole lines before `end`, the last first, until `each` says so.
    fn lines_back(
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

/// Opens the file at `path` and looks at it.
fn open(path: &Path) -> io::Result<(File, Metadata)> {
    // O_NONBLOCK: a FIFO of that name must not make this wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok((file, metadata))
}

/// Reads `bytes` from `offset` on. Returns how many there were.
pub(super) fn fill(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// What a file is known by that begins with `head`.
fn head_of(head: &[u8]) -> Option<i64> {
    let line = match head.iter().position(|&byte| byte == b'\n') {
        Some(end) => head.get(..end),
        None if head.len() == HEAD => Some(head),
        None => None,
    };
    line.map(fingerprint)
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
