//! A file that gzip has compressed, read as if it were not.
//!
//! Invariant: of its content no more is in memory than what was asked for last. Where it is damaged it ends, and that is known of it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use flate2::read::MultiGzDecoder;

use super::parts::fill;

/// How much is passed over at once, in bytes.
const STEP: usize = 64 << 10;
/// Behind the last of its content stands how long that was, in so many bytes, the lowest first (RFC 1952, 2.3.1: ISIZE).
const LENGTH: usize = 4;

/// What is known of a file that has been looked at before.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<Facts>);

#[derive(Debug, Default)]
struct Facts {
    head: Option<i64>,
    /// Where its last whole line ends.
    end: Option<u64>,
    damage: Option<String>,
}

impl Known {
    /// What is wrong with it, if that has been found.
    pub(super) fn damage(&self) -> Option<String> {
        self.facts().damage.clone()
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file that gzip has compressed.
#[derive(Debug)]
pub(super) struct Packed {
    file: File,
    /// How long its content is, as it says of itself: the last 32 bits of it, and of the last piece only where files were joined.
    told: u32,
    known: Arc<Known>,
    stream: RefCell<Option<Stream>>,
}

impl Packed {
    /// The content of `file`, which is `len` bytes long.
    pub(super) fn new(file: File, len: u64, known: Arc<Known>) -> io::Result<Self> {
        let mut told = [0; LENGTH];
        if let Some(at) = len.checked_sub(4) {
            fill(&file, &mut told, at)?;
        }
        Ok(Self {
            file,
            told: u32::from_le_bytes(told),
            known,
            stream: RefCell::new(None),
        })
    }

    /// What it is known by, which `head_of` makes of its first `most` bytes.
    pub(super) fn head(
        &self,
        most: usize,
        head_of: impl FnOnce(&[u8]) -> Option<i64>,
    ) -> io::Result<Option<i64>> {
        let known = self.known.facts().head;
        if known.is_some() {
            return Ok(known);
        }
        let head = head_of(&self.read(0, most)?);
        // There are a dozen of them, and most are not read on.
        self.stream.replace(None);
        self.known.facts().head = head;
        Ok(head)
    }

    /// How long its content is, as far as that is known.
    pub(super) fn length(&self) -> u64 {
        self.known.facts().end.unwrap_or(u64::from(self.told))
    }

    /// Whether there is nothing at `offset` and behind it, as far as that is known: it was read to its end, or is as long as a file that
    /// was read to there before it was compressed.
    pub(super) fn ends_at(&self, offset: u64) -> bool {
        match self.known.facts().end {
            Some(end) => end <= offset,
            None => offset > 0 && offset & u64::from(u32::MAX) == u64::from(self.told),
        }
    }

    /// Reads up to `most` bytes of its content from `offset` on: fast if that is where the last ones were, or behind them.
    pub(super) fn read(&self, offset: u64, most: usize) -> io::Result<Vec<u8>> {
        let mut place = self.stream.borrow_mut();
        if self.known.facts().end.is_some_and(|end| end <= offset) {
            *place = None;
            return Ok(Vec::new());
        }
        let mut stream = match place.take() {
            Some(stream) if stream.start <= offset => stream,
            _ => Stream::new(&self.file)?,
        };
        stream.pass_to(offset)?;
        stream.fill(most)?;
        if stream.is_over {
            let mut facts = self.known.facts();
            if facts.end.is_none() {
                facts.end = Some(stream.last_end());
                facts.damage = stream.damage.take();
            }
        }
        let bytes = stream.ahead.get(..most).unwrap_or(&stream.ahead).to_vec();
        *place = Some(stream);
        Ok(bytes)
    }

    /// How much memory its content takes, in bytes.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        let place = self.stream.borrow();
        place.as_ref().map_or(0, |stream| stream.ahead.capacity())
    }
}

/// Content as it comes.
struct Stream {
    decoder: MultiGzDecoder<At>,
    /// What has come, and may be asked for again.
    ahead: Vec<u8>,
    /// Where that begins.
    start: u64,
    /// Whether no more will come.
    is_over: bool,
    damage: Option<String>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("start", &self.start)
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

impl Stream {
    fn new(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        Ok(Self {
            decoder: MultiGzDecoder::new(At { file, offset: 0 }),
            ahead: Vec::new(),
            start: 0,
            is_over: false,
            damage: None,
        })
    }

    /// Passes over what is before `offset`.
    fn pass_to(&mut self, offset: u64) -> io::Result<()> {
        while self.start < offset {
            if self.ahead.is_empty() {
                if self.is_over {
                    return Ok(());
                }
                self.fill(STEP)?;
            }
            let before = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
            let before = before.min(self.ahead.len());
            self.ahead.drain(..before);
            self.start += u64::try_from(before).unwrap_or(0);
        }
        Ok(())
    }

    /// Has `most` bytes come, or all that are left.
    fn fill(&mut self, most: usize) -> io::Result<()> {
        let missing = most.saturating_sub(self.ahead.len());
        if missing == 0 || self.is_over {
            return Ok(());
        }
        let mut wanted = (&mut self.decoder).take(u64::try_from(missing).unwrap_or(u64::MAX));
        match wanted.read_to_end(&mut self.ahead) {
            Ok(read) => self.is_over = read < missing,
            // The file could not be read: it is the system that says so.
            Err(error) if error.raw_os_error().is_some() => return Err(error),
            Err(error) => {
                self.is_over = true;
                self.damage = Some(match error.kind() {
                    ErrorKind::UnexpectedEof => "it ends too early".to_owned(),
                    _ => error.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Where the last whole line ends, of one that is over.
    fn last_end(&self) -> u64 {
        let last = self.ahead.iter().rposition(|&byte| byte == b'\n');
        let lines = last.map_or(0, |at| at + 1);
        self.start
            .saturating_add(u64::try_from(lines).unwrap_or(u64::MAX))
    }
}

/// A file from an offset on. Descriptors of one file share a place, and this has its own.
struct At {
    file: File,
    offset: u64,
}

impl Read for At {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = fill(&self.file, bytes, self.offset)?;
        self.offset = self
            .offset
            .saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::ops::ControlFlow;
    use std::path::{Path, PathBuf};

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use crate::trail::{Folder, Part};

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    fn records(count: usize) -> Vec<u8> {
        let lines: Vec<String> = (0..count)
            .map(|n| format!("{n}{}\n", "-".repeat(n % 97)))
            .collect();
        lines.concat().into_bytes()
    }

    /// A directory with `bytes` as the file of an earlier week.
    fn directory(bytes: &[u8]) -> (tempfile::TempDir, Folder, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl.2.gz");
        std::fs::write(&path, bytes).unwrap();
        let folder = Folder::new(&directory.path().join("audit.jsonl"));
        (directory, folder, path)
    }

    fn only(folder: &mut Folder) -> Part {
        let mut parts = folder.parts().unwrap();
        assert_eq!(parts.len(), 1);
        parts.remove(0)
    }

    fn lines(part: &Part, offset: u64) -> (Vec<u8>, u64) {
        let mut found = Vec::new();
        let end = part.lines(offset, |line| {
            found.extend_from_slice(line);
            found.push(b'\n');
            ControlFlow::Continue(())
        });
        (found, end.unwrap())
    }

    fn plain(content: &[u8], at: &Path) -> Part {
        std::fs::write(at, content).unwrap();
        Part::open(at, false).unwrap().unwrap()
    }

    #[test]
    fn its_lines_are_those_of_the_file_that_was_compressed() {
        let content = records(60_000);
        let (directory, mut folder, _) = directory(&gzip(&content));
        let part = only(&mut folder);
        let other = plain(&content, &directory.path().join("other"));
        assert_eq!(part.head(), other.head());
        assert_eq!(part.length(), other.length());
        let (found, end) = lines(&part, 0);
        assert!(found == content);
        assert_eq!(end, other.length());
        assert!(part.ends_at(end).unwrap() && part.left(end) == 0);
        assert!(part.read(end, 100).unwrap().is_empty());
        // From the middle, and back again.
        for offset in [3_000_000, 10, 0, 2_999_000] {
            let at = usize::try_from(offset).unwrap();
            assert_eq!(part.read(offset, 500).unwrap(), content[at..at + 500]);
        }
        let wants = |line: &[u8]| line.starts_with(b"4");
        for most in [0, 1, 7, 100_000] {
            let found = part.last(part.length(), most, wants).unwrap();
            assert_eq!(found, other.last(other.length(), most, wants).unwrap());
        }
        assert!(folder.flaws().is_empty());
    }

    #[test]
    fn files_that_were_joined_are_read_to_the_end_of_the_last() {
        let content = records(1000);
        let (one, two) = content.split_at(5000);
        let (_directory, mut folder, _) = directory(&[gzip(one), gzip(two)].concat());
        let part = only(&mut folder);
        // What it says of its length is that of the second.
        assert!(!part.ends_at(5000).unwrap());
        assert!(lines(&part, 0).0 == content);
        // That is known of it then.
        let part = only(&mut folder);
        assert!(part.ends_at(u64::try_from(content.len()).unwrap()).unwrap());
        assert!(folder.flaws().is_empty());
    }

    #[test]
    fn a_damaged_file_is_read_up_to_there_and_named() {
        let content = records(60_000);
        let whole = gzip(&content);
        let mut changed = whole.clone();
        changed[whole.len() / 2..whole.len() / 2 + 64].fill(0xff);
        let mut wrong_sum = whole.clone();
        let sum = whole.len() - 8;
        wrong_sum[sum] ^= 1;
        for (bytes, least) in [
            (&whole[..whole.len() / 2], content.len() / 3),
            (&whole[..whole.len() - 8], content.len() - 1),
            (&changed, content.len() / 4),
            (&wrong_sum, content.len()),
        ] {
            let (_directory, mut folder, path) = directory(bytes);
            let part = only(&mut folder);
            let (found, end) = lines(&part, 0);
            assert!(content.starts_with(&found[..found.len() / 2]));
            assert!(found.len() >= least, "{} of {least}", found.len());
            assert_eq!(part.left(end), 0, "nothing more will come of it");
            let flaws = folder.flaws();
            assert_eq!(flaws.len(), 1);
            let text = flaws[0].to_string();
            assert!(
                text.contains(&*path.to_string_lossy()) && text.contains("rebuild"),
                "{text}"
            );
            // It is known, and no more of it is read at the next look.
            assert!(only(&mut folder).ends_at(end).unwrap());
            assert_eq!(folder.flaws(), flaws);
        }
        for bytes in [
            &b""[..],
            b"\x1f",
            b"no gzip at all, and long enough",
            &whole[..12],
        ] {
            let (_directory, mut folder, _) = directory(bytes);
            assert!(folder.parts().unwrap().is_empty());
            assert_eq!(folder.flaws().len(), 1, "{bytes:?}");
        }
        // Nothing was in it.
        let (_directory, mut folder, _) = directory(&gzip(b""));
        assert!(folder.parts().unwrap().is_empty() && folder.flaws().is_empty());
    }

    #[test]
    fn what_swells_without_end_takes_no_memory() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(b"first\n").unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..40 {
            encoder.write_all(&zeros).unwrap();
        }
        encoder.write_all(b"\nlast\n").unwrap();
        let (_directory, mut folder, _) = directory(&encoder.finish().unwrap());
        let part = only(&mut folder);
        let mut longest = 0;
        let mut short = Vec::new();
        let mut held = 0;
        part.lines(0, |line| {
            longest = longest.max(line.len());
            held = held.max(part.held());
            if line.len() < 10 {
                short.push(line.to_vec());
            }
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(short, [b"first".to_vec(), b"last".to_vec()]);
        assert!(longest <= 1 << 20, "{longest}");
        assert!((1 << 20..4 << 20).contains(&held), "{held}");
    }
}
