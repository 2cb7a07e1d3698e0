//! Where the lines of the audit log go. A sink that fails loses records, counts them and says so; it
//! never stops the daemon and never leaves a broken line behind, as far as that is in its power.

use std::fmt;
use std::fs::{File, Permissions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, FileType, Mode, OFlags, access};
use rustix::io::Errno;

use crate::config::AuditTarget;

/// Rights of a new file: `musttls` and its group read it, nobody else.
const FILE_MODE: u32 = 0o640;
/// How often a failing sink is reported.
const REPORT_EVERY: Duration = Duration::from_mins(1);
/// How long a record waits for a pipe that is full, in milliseconds. While the sink fails, it does not wait.
const PIPE_WAIT_MS: i64 = 100;
/// Most bytes in one write to a pipe: so much fits into one that polls as writable (`PIPE_BUF`, pipe(7)).
const PIPE_CHUNK: usize = 4096;

/// Why a record could not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkError {
    /// No space is left, or the quota is used up.
    NoSpace,
    /// Nobody reads the pipe any more.
    Closed,
    /// The reader of the pipe does not keep up.
    Full,
    /// The device failed.
    Io,
    /// Anything else.
    Other,
}

impl SinkError {
    /// All, in the order of [`Stats::errors`].
    pub const ALL: [Self; 5] = [
        Self::NoSpace,
        Self::Closed,
        Self::Full,
        Self::Io,
        Self::Other,
    ];

    /// The word used in records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoSpace => "no-space",
            Self::Closed => "closed",
            Self::Full => "full",
            Self::Io => "io",
            Self::Other => "other",
        }
    }

    const fn remedy(self) -> &'static str {
        match self {
            Self::NoSpace => "make space on its file system, or raise the quota",
            Self::Closed => "start what reads the records again, then musttls",
            Self::Full => "what reads the records must keep up, or set [audit] path to a file",
            Self::Io => "look in the kernel's log (journalctl -k) for the device",
            Self::Other => REMEDY_OTHER,
        }
    }

    const fn of(errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Self::NoSpace,
            Errno::PIPE => Self::Closed,
            Errno::AGAIN => Self::Full,
            Errno::IO => Self::Io,
            _ => Self::Other,
        }
    }
}

/// What a sink has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Records written.
    pub written: u64,
    /// Records lost.
    pub lost: u64,
    /// Failed attempts by kind, in the order of [`SinkError::ALL`].
    pub errors: [u64; SinkError::ALL.len()],
}

/// An audit file that cannot be used. Its text is complete, with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("cannot write audit records to {path}: {problem}\n  help: {remedy}")]
pub struct OpenError {
    path: String,
    problem: String,
    remedy: &'static str,
}

/// Writes lines to a file or to standard output.
pub struct AuditSink {
    /// `None`: standard output.
    path: Option<PathBuf>,
    output: Output,
    /// A line of which the end is still to be written, and how much of it is.
    unfinished: Option<(Vec<u8>, usize)>,
    stats: Stats,
    /// Records lost that no loss record has told yet, and why the last one was.
    untold: (u64, Option<SinkError>),
    /// When the present series of failures was last reported.
    reported: Option<Instant>,
}

enum Output {
    Stdout,
    File(File),
    #[cfg(test)]
    Pipe(io::PipeWriter),
}

impl fmt::Debug for AuditSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditSink")
            .field("sink", &self.name())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl AuditSink {
    /// Opens `target`.
    pub fn open(target: &AuditTarget) -> Result<Self, OpenError> {
        let (path, output) = match target {
            AuditTarget::Stdout => (None, Output::Stdout),
            AuditTarget::File(path) => (Some(path.clone()), Output::File(open_file(path)?)),
        };
        Ok(Self::new(path, output))
    }

    /// Says what [`Self::open`] would, and opens and makes nothing: as this user, now.
    pub fn examine(target: &AuditTarget) -> Result<(), OpenError> {
        match target {
            AuditTarget::Stdout => Ok(()),
            AuditTarget::File(path) => examine_file(path).map_err(|errno| refused(errno, path)),
        }
    }

    /// Whether the file could be made in its directory if it were not there: with what this process may do now.
    pub fn examine_anew(target: &AuditTarget) -> Result<(), OpenError> {
        match target {
            AuditTarget::File(path) if !path.starts_with("/dev") => {
                examine_directory(path).map_err(|errno| refused(errno, path))
            }
            AuditTarget::File(_) | AuditTarget::Stdout => Ok(()),
        }
    }

    const fn new(path: Option<PathBuf>, output: Output) -> Self {
        let stats = Stats {
            written: 0,
            lost: 0,
            errors: [0; SinkError::ALL.len()],
        };
        Self {
            path,
            output,
            unfinished: None,
            stats,
            untold: (0, None),
            reported: None,
        }
    }

    /// The word used for it in metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        if self.path.is_some() {
            "file"
        } else {
            "stdout"
        }
    }

    /// What it has done so far.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Records lost that no loss record has told yet, and why the last one was.
    #[must_use]
    pub const fn lost(&self) -> (u64, Option<SinkError>) {
        self.untold
    }

    /// Writes `line` (without newline). On an error it is lost, which is counted and reported here.
    pub fn write(&mut self, line: &str, now: Instant) -> Result<(), SinkError> {
        let written = self.put(line, now);
        if let Err(error) = written {
            self.lose(error);
        }
        written
    }

    /// Counts a record as lost that was not tried, because the sink has just failed with `error`.
    pub const fn lose(&mut self, error: SinkError) {
        self.stats.lost += 1;
        self.untold = (self.untold.0 + 1, Some(error));
    }

    /// Writes the loss record `line`, which tells `lost` records. On an error they stay untold.
    pub fn write_loss(&mut self, line: &str, lost: u64, now: Instant) -> Result<(), SinkError> {
        self.put(line, now)?;
        self.untold.0 = self.untold.0.saturating_sub(lost);
        Ok(())
    }

    /// Writes the rest of an unfinished line.
    pub fn flush(&mut self, now: Instant) -> Result<(), SinkError> {
        match self.finish_line() {
            Ok(()) => {
                self.works();
                Ok(())
            }
            Err(errno) => Err(self.failed(errno, now)),
        }
    }

    /// Opens the file again after it was moved away; on an error it goes on with the old one. An
    /// unfinished line is written whole to the new file and taken off the old one.
    pub fn reopen(&mut self) -> Result<(), OpenError> {
        let Some(path) = self.path.clone() else {
            return Ok(());
        };
        let new = open_file(&path)?;
        if self.finish_line().is_err()
            && let (Some((_, done)), Output::File(old)) = (&mut self.unfinished, &self.output)
        {
            match take_back(old, *done) {
                Ok(()) => {}
                Err(error) => tracing::warn!(
                    %error,
                    path = %path.display(),
                    help = BROKEN_LINE,
                    "the audit file that was moved away ends in a broken line"
                ),
            }
            *done = 0;
        }
        self.output = Output::File(new);
        Ok(())
    }

    /// Writes `line`, behind what is unfinished. A line that was written in part counts as written: its
    /// rest goes out before anything else.
    fn put(&mut self, line: &str, now: Instant) -> Result<(), SinkError> {
        self.flush(now)?;
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        self.unfinished = Some((bytes, 0));
        let result = self.finish_line();
        if let Err(errno) = result {
            let error = self.failed(errno, now);
            if self.unfinished.as_ref().is_some_and(|(_, done)| *done == 0) {
                self.unfinished = None;
                return Err(error);
            }
        }
        self.stats.written += 1;
        Ok(())
    }

    fn finish_line(&mut self) -> Result<(), Errno> {
        while let Some((bytes, done)) = &mut self.unfinished {
            let rest = bytes.get(*done..).unwrap_or_default();
            if rest.is_empty() {
                self.unfinished = None;
                break;
            }
            let wait = if self.reported.is_some() {
                0
            } else {
                PIPE_WAIT_MS
            };
            *done += write_some(&self.output, rest, wait)?;
        }
        Ok(())
    }

    /// Ends a series of failures.
    fn works(&mut self) {
        if self.reported.take().is_some() {
            let lost = self.stats.lost;
            tracing::info!(sink = self.name(), lost, "audit records are written again");
        }
    }

    fn failed(&mut self, errno: Errno, now: Instant) -> SinkError {
        let kind = SinkError::of(errno);
        let position = SinkError::ALL.iter().position(|known| *known == kind);
        if let Some(count) = position.and_then(|position| self.stats.errors.get_mut(position)) {
            *count += 1;
        }
        if self
            .reported
            .is_none_or(|last| now.duration_since(last) >= REPORT_EVERY)
        {
            self.reported = Some(now);
            tracing::error!(
                sink = self.name(),
                path = self.path.as_deref().map(|path| tracing::field::display(path.display())),
                error = %io::Error::from(errno),
                lost = self.stats.lost,
                help = kind.remedy(),
                "audit records are lost"
            );
        }
        kind
    }
}

fn write_some(output: &Output, bytes: &[u8], wait_ms: i64) -> Result<usize, Errno> {
    let written = match output {
        Output::File(file) => retry(|| rustix::io::write(file, bytes)),
        Output::Stdout => write_pipe(io::stdout().as_fd(), bytes, wait_ms),
        #[cfg(test)]
        Output::Pipe(pipe) => write_pipe(pipe.as_fd(), bytes, wait_ms),
    }?;
    // A file system may take nothing without saying why; that must not become an endless loop.
    if written == 0 {
        Err(Errno::IO)
    } else {
        Ok(written)
    }
}

fn write_pipe(pipe: BorrowedFd<'_>, bytes: &[u8], wait_ms: i64) -> Result<usize, Errno> {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: wait_ms * 1_000_000,
    };
    let mut fds = [PollFd::from_borrowed_fd(pipe, PollFlags::OUT)];
    if retry(|| poll(&mut fds, Some(&timeout)))? == 0 {
        return Err(Errno::AGAIN);
    }
    let chunk = bytes.get(..PIPE_CHUNK).unwrap_or(bytes);
    retry(|| rustix::io::write(pipe, chunk))
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

fn failed(path: &Path, problem: String, remedy: &'static str) -> OpenError {
    OpenError {
        path: path.display().to_string(),
        problem,
        remedy,
    }
}

fn refused(errno: Errno, path: &Path) -> OpenError {
    failed(
        path,
        io::Error::from(errno).to_string(),
        remedy(errno, path),
    )
}

/// The error that opening the file would end with.
fn examine_file(path: &Path) -> Result<(), Errno> {
    let found = match rustix::fs::lstat(path) {
        Ok(found) => FileType::from_raw_mode(found.st_mode),
        Err(Errno::NOENT) => return examine_directory(path),
        Err(errno) => return Err(errno),
    };
    match found {
        FileType::Symlink => Err(Errno::LOOP),
        FileType::Directory => Err(Errno::ISDIR),
        FileType::RegularFile | FileType::CharacterDevice => {
            access(path, Access::READ_OK | Access::WRITE_OK)
        }
        FileType::Fifo | FileType::Socket | FileType::BlockDevice | FileType::Unknown => {
            Err(Errno::NXIO)
        }
    }
}

/// The error that making the file would end with.
fn examine_directory(path: &Path) -> Result<(), Errno> {
    let directory = path.parent().unwrap_or(path);
    access(directory, Access::WRITE_OK | Access::EXEC_OK)
}

fn open_file(path: &Path) -> Result<File, OpenError> {
    let fail = |problem, remedy| failed(path, problem, remedy);
    // O_NOFOLLOW: a link put there by another must not lead records (written as root) elsewhere.
    // O_NONBLOCK: opening a FIFO must not wait.
    let flags = OFlags::RDWR
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    let existed = path.symlink_metadata().is_ok();
    let mut file = rustix::fs::open(path, flags, Mode::from_raw_mode(FILE_MODE))
        .map(File::from)
        .map_err(|errno| refused(errno, path))?;
    let metadata = file
        .metadata()
        .map_err(|error| fail(error.to_string(), REMEDY_OTHER))?;
    let kind = metadata.file_type();
    if !kind.is_file() && !kind.is_char_device() {
        return Err(fail(
            "it is not a regular file".to_owned(),
            "name a file, or \"-\" for standard output",
        ));
    }
    if kind.is_file() {
        if !existed {
            // The umask may have taken the group's right.
            file.set_permissions(Permissions::from_mode(FILE_MODE))
                .map_err(|error| fail(error.to_string(), REMEDY_OTHER))?;
        }
        end_last_line(&mut file, path);
    }
    Ok(file)
}

const BROKEN_LINE: &str = "take its last line out before a program reads it";
const REMEDY_OTHER: &str = "check the file system it is on, or set [audit] path";

fn remedy(errno: Errno, path: &Path) -> &'static str {
    match errno {
        Errno::NOENT if !path.parent().is_some_and(Path::is_dir) => {
            "create its directory (mode 0750, owned by the user musttls runs as), or set [audit] path"
        }
        Errno::NOTDIR => "what it names as a directory is a file: set [audit] path",
        Errno::LOOP => "it is a symbolic link: name the file it leads to",
        Errno::ISDIR => "it is a directory: name a file in it",
        Errno::ACCESS | Errno::PERM | Errno::ROFS => {
            "let the user musttls runs as write there (ReadWritePaths= in the unit), or set [audit] path"
        }
        Errno::NXIO => {
            "it is a pipe, a socket or a disk: name a file, or \"-\" for standard output"
        }
        _ => REMEDY_OTHER,
    }
}

/// Ends a line that an earlier process, or a host that lost power, left unfinished.
fn end_last_line(file: &mut File, path: &Path) {
    let mut last = [b'\n'];
    let read = file
        .seek(SeekFrom::End(-1))
        .and_then(|_| file.read_exact(&mut last));
    // An empty file has no last byte. Where the newline cannot be written, neither can the next record.
    if read.is_ok()
        && last != [b'\n']
        && let Err(errno) = rustix::io::write(&*file, b"\n")
    {
        tracing::warn!(
            error = %io::Error::from(errno),
            path = %path.display(),
            help = BROKEN_LINE,
            "the audit file ends in a broken line"
        );
    }
}

/// Takes the last `len` bytes off a file that this process appended them to.
fn take_back(file: &File, len: usize) -> io::Result<()> {
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    // After an O_APPEND write the offset is behind the written bytes. If it is not the end, another
    // process wrote there, and nothing may be cut.
    let end = rustix::fs::tell(file)?;
    let start = u64::try_from(len).ok().and_then(|len| end.checked_sub(len));
    match start {
        Some(start) if end == file.metadata()?.len() => file.set_len(start),
        _ => Err(io::Error::other("it was changed by another process")),
    }
}

#[cfg(test)]
impl AuditSink {
    /// A sink into a pipe, to be treated as standard output.
    pub(super) const fn pipe(pipe: io::PipeWriter) -> Self {
        Self::new(None, Output::Pipe(pipe))
    }
}
