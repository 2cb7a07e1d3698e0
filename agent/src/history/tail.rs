//! The audit file and those it was rotated into, oldest first.
//!
//! A file is known by its first line, which has a number of its own (`metadata.uid`): so it is the same file under another name
//! (rotation), as a copy (`copytruncate`), and another one in the same inode.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::Path;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use rustix::fs::{Mode, OFlags};

/// How much of its first line a file is known by, in bytes: a record is shorter as a rule, and its number is in it.
const HEAD: usize = 4096;
/// Endings of files that cannot be read as they are.
const COMPRESSED: [&str; 6] = [".gz", ".xz", ".zst", ".bz2", ".lz4", ".Z"];

/// A file with records.
#[derive(Debug)]
pub(super) struct Part {
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
    /// What its first line is known by.
    pub(super) const fn head(&self) -> i64 {
        self.head
    }

    /// Device and inode, for who looks into the database.
    pub(super) const fn place(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    /// Its length when it was opened.
    pub(super) const fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has the name of the audit file.
    pub(super) const fn is_current(&self) -> bool {
        self.is_current
    }

    /// Its length now: the agent goes on writing.
    pub(super) fn length_now(&self) -> Result<u64> {
        let metadata = self.file.metadata();
        Ok(metadata.context("read the size of the audit file")?.len())
    }

    /// Reads up to `most` bytes from `offset` on.
    pub(super) fn read(&self, offset: u64, most: usize) -> Result<Vec<u8>> {
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
                Err(error) => return Err(error).context("read the audit file"),
            }
        }
        bytes.truncate(done);
        Ok(bytes)
    }
}

/// The files of `audit`, oldest first. One without a whole first line has not begun.
pub(super) fn parts(audit: &Path) -> Result<Vec<Part>> {
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

fn open(path: &Path, is_current: bool) -> Result<Option<Part>> {
    // O_NONBLOCK: a FIFO of that name must not make this wait.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        // It has just been rotated away, or is a link.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::LOOP) => return Ok(None),
        Err(error) => return Err(io::Error::from(error).into()),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let mut part = Part {
        file,
        head: 0,
        device: metadata.dev(),
        inode: metadata.ino(),
        len: metadata.len(),
        modified: metadata.modified()?,
        is_current,
    };
    let head = part.read(0, HEAD)?;
    let line = match head.iter().position(|&byte| byte == b'\n') {
        Some(end) => head.get(..end),
        None if head.len() == HEAD => Some(head.as_slice()),
        None => None,
    };
    let Some(line) = line else {
        return Ok(None);
    };
    part.head = fingerprint(line);
    Ok(Some(part))
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
}
