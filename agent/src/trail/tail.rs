//! What has come since the last look at the audit file.
//!
//! Invariant: a look never waits. Lines are whole; one that grows is told when it ends. A file is known by its first line, so what
//! was written before it was rotated, or copied and truncated, is read to its end before its successor is.

use std::io::{self, ErrorKind};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::folder::Folder;
use super::parts::Part;

/// An audit file that is followed.
#[derive(Debug)]
pub struct Tail {
    folder: Folder,
    place: Option<Place>,
    /// How much of what is there before the first look is read, in bytes.
    first: u64,
    /// Most bytes that one look reads of a file; of more that has come since the last, the older part is passed over.
    most: u64,
}

#[derive(Debug)]
struct Place {
    part: Part,
    /// Up to here it has been read: a line begins.
    offset: u64,
}

impl Tail {
    /// Follows `path`. Of what is there before the first look, and of what comes between two, only the end is wanted.
    #[must_use]
    pub fn of_end(path: &Path, first: u64, most: u64) -> Self {
        Self {
            folder: Folder::new(path),
            place: None,
            first,
            most,
        }
    }

    /// Follows `path`, of which `part` has been read up to `offset`; without a part, from the beginning of the file that will come.
    #[must_use]
    pub fn behind(path: &Path, part: Option<(Part, u64)>) -> Self {
        Self {
            folder: Folder::new(path),
            place: part.map(|(part, offset)| Place { part, offset }),
            first: u64::MAX,
            most: u64::MAX,
        }
    }

    /// The file that is followed.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.audit()
    }

    /// Whether there has been a file.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.place.is_some()
    }

    /// Tells `each` the lines that have come since the last look, the oldest first.
    pub fn look(&mut self, mut each: impl FnMut(&[u8])) -> Result<()> {
        let path = self.path().to_owned();
        let reading = || format!("read {}", path.display());
        let current = match Part::open(&path, true) {
            Ok(current) => current,
            // Moved away, and the agent has not opened a new one yet.
            Err(error) if error.kind() == ErrorKind::NotFound && self.place.is_some() => None,
            Err(error) => return Err(error).with_context(reading),
        };
        let Some(place) = &mut self.place else {
            let Some(part) = current else {
                return Ok(());
            };
            let mut place = Place { part, offset: 0 };
            place.pass_to_last(self.first).with_context(reading)?;
            place.read(self.most, &mut each).with_context(reading)?;
            self.place = Some(place);
            return Ok(());
        };
        match current {
            Some(part) if part.head() == place.part.head() => {
                place.part = part;
                place.read(self.most, &mut each).with_context(reading)
            }
            current => self.move_on(current, &mut each),
        }
    }

    /// Reads what is left of the file that had the name, and those that have had it since.
    fn move_on(&mut self, current: Option<Part>, each: &mut impl FnMut(&[u8])) -> Result<()> {
        let path = self.path().to_owned();
        let reading = || format!("read {}", path.display());
        let Some(place) = &mut self.place else {
            return Ok(());
        };
        let head = place.part.head();
        let mut parts = self.folder.parts()?;
        let Some(at) = parts.iter().position(|part| part.head() == head) else {
            // It was compressed or removed, and is still open. Where it was truncated, what it had is gone.
            if place.part.head_now().with_context(reading)? == Some(head) {
                place.read(self.most, each).with_context(reading)?;
            }
            if let Some(part) = current {
                *place = Place { part, offset: 0 };
                place.read(self.most, each).with_context(reading)?;
            }
            return Ok(());
        };
        for part in parts.drain(at..) {
            let is_same = part.head() == head;
            // What is open is the whole of a file that was compressed meanwhile.
            if !(is_same
                && part.is_packed()
                && place.part.head_now().with_context(reading)? == Some(head))
            {
                let offset = if is_same { place.offset } else { 0 };
                *place = Place { part, offset };
            }
            place.read(self.most, each).with_context(reading)?;
        }
        Ok(())
    }
}

impl Place {
    fn read(&mut self, most: u64, each: &mut impl FnMut(&[u8])) -> io::Result<()> {
        self.pass_to_last(most)?;
        self.offset = self.part.lines(self.offset, |line| {
            each(line);
            ControlFlow::Continue(())
        })?;
        Ok(())
    }

    /// Passes over what is more than `most` bytes before the end, to the beginning of a line.
    fn pass_to_last(&mut self, most: u64) -> io::Result<()> {
        // How long it is, is not known before it has been read.
        if self.part.is_packed() {
            return Ok(());
        }
        let newest = self.part.length_now()?.saturating_sub(most);
        if self.offset < newest {
            let before = self.part.line_end(newest)?;
            self.offset = self.offset.max(before);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write as _;
    use std::path::PathBuf;

    struct Place {
        directory: tempfile::TempDir,
        tail: Tail,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let tail = Tail::behind(&directory.path().join("audit.jsonl"), None);
            Self { directory, tail }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn append(&self, text: &str) {
            let mut file = fs::File::options()
                .append(true)
                .create(true)
                .open(self.path("audit.jsonl"))
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }

        fn rotate(&self, name: &str) {
            fs::rename(self.path("audit.jsonl"), self.path(name)).unwrap();
        }

        fn gzip(&self, name: &str) {
            let status = std::process::Command::new("gzip")
                .arg(self.path(name))
                .status();
            assert!(status.unwrap().success());
        }

        fn look(&mut self) -> Vec<String> {
            lines(&mut self.tail).unwrap()
        }
    }

    fn lines(tail: &mut Tail) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        tail.look(|line| lines.push(String::from_utf8(line.to_vec()).unwrap()))?;
        Ok(lines)
    }

    #[test]
    fn a_growing_file_is_followed_over_half_lines_and_rotation() {
        let mut place = Place::new();
        let missing = lines(&mut place.tail).unwrap_err();
        assert!(
            format!("{missing:#}").contains("No such file"),
            "{missing:#}"
        );

        place.append("a\nb");
        assert_eq!(place.look(), ["a"]);
        assert!(place.look().is_empty());
        place.append("b\nc\n");
        assert_eq!(place.look(), ["bb", "c"]);

        place.append("d\n");
        place.rotate("audit.jsonl.1");
        assert_eq!(place.look(), ["d"], "the rest of the old one");
        assert!(place.look().is_empty());
        place.append("e\n");
        assert_eq!(place.look(), ["e"]);
    }

    #[test]
    fn files_that_came_and_went_between_two_looks_are_read() {
        let mut place = Place::new();
        place.append("a\n");
        assert_eq!(place.look(), ["a"]);
        place.append("b\n");
        place.rotate("audit.jsonl.2");
        place.append("c\n");
        place.rotate("audit.jsonl.1");
        place.append("d\n");
        assert_eq!(place.look(), ["b", "c", "d"]);
    }

    #[test]
    fn what_was_truncated_is_read_from_its_copy() {
        let mut place = Place::new();
        place.append("a\n");
        assert_eq!(place.look(), ["a"]);
        place.append("b\n");
        fs::copy(place.path("audit.jsonl"), place.path("audit.jsonl.1")).unwrap();
        fs::write(place.path("audit.jsonl"), "").unwrap();
        assert_eq!(place.look(), ["b"]);
        // Longer than what it had before.
        place.append("first\nsecond\n");
        assert_eq!(place.look(), ["first", "second"]);
        // And without a copy.
        fs::write(place.path("audit.jsonl"), "other\n").unwrap();
        assert_eq!(place.look(), ["other"]);
    }

    #[test]
    fn a_file_that_was_compressed_is_read_to_its_end() {
        let mut place = Place::new();
        place.append("a\n");
        assert_eq!(place.look(), ["a"]);
        place.append("b\n");
        place.rotate("audit.jsonl.1");
        place.gzip("audit.jsonl.1");
        // Nobody has opened a new one yet.
        assert_eq!(place.look(), ["b"]);
        assert!(place.look().is_empty());
        place.append("c\n");
        assert_eq!(place.look(), ["c"]);
        // One that came and went, and was compressed by then.
        place.append("d\n");
        place.rotate("audit.jsonl.3");
        place.append("e\nf\n");
        place.rotate("audit.jsonl.2");
        place.gzip("audit.jsonl.2");
        place.append("g\n");
        assert_eq!(place.look(), ["d", "e", "f", "g"]);
        // It was removed, and is still open.
        place.append("h\n");
        fs::remove_file(place.path("audit.jsonl")).unwrap();
        place.append("i\n");
        assert_eq!(place.look(), ["h", "i"]);
    }

    #[test]
    fn of_a_long_file_only_the_end_is_read_if_that_is_wanted() {
        let mut place = Place::new();
        place.tail = Tail::of_end(place.tail.path(), 100, 50);
        place.append(&"old line\n".repeat(100));
        place.append("new\n");
        let found = place.look();
        assert_eq!(found.last().unwrap(), "new");
        assert!(found.iter().all(|line| line == "old line" || line == "new"));
        assert!((5..13).contains(&found.len()), "{}", found.len());
        place.append(&"more\n".repeat(100));
        assert!((10..13).contains(&place.look().len()));
    }

    #[test]
    fn what_is_no_file_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let error = lines(&mut Tail::behind(directory.path(), None)).unwrap_err();
        assert!(format!("{error:#}").contains("regular file"), "{error:#}");
    }
}
