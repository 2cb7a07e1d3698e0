//! Changes of files: one at a time, whole or not at all, and to be undone.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown,
};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::error::Failed;

/// The lock of those who edit, in the directory of the files: no file of the configuration, as its name begins with a dot.
const LOCK: &str = ".lock";
/// Who may open it may lock it (flock(2) asks for no more), and would keep everyone from editing.
const LOCK_MODE: u32 = 0o600;
/// How long others may take: longer than an agent may take to reload.
const PATIENCE: Duration = Duration::from_secs(90);
/// Everybody may read what the policy is, as with the packaged file.
const MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

const RIGHTS: &str = "run as root, or let this user write there";

/// Held as long as files are edited.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "keeps the lock")] File);

impl Lock {
    /// Waits until nobody else edits; makes `directory` if it is not there.
    pub(super) fn take(directory: &Path) -> Result<Self> {
        let made = DirBuilder::new().mode(DIRECTORY_MODE).create(directory);
        if let Err(error) = made
            && error.kind() != ErrorKind::AlreadyExists
        {
            return Err(error)
                .with_context(|| Failed::new(format!("create {}", directory.display()), RIGHTS));
        }
        let path = directory.join(LOCK);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(LOCK_MODE)
            .open(&path)
            .with_context(|| Failed::new(format!("open {}", path.display()), RIGHTS))?;
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < PATIENCE => {
                    sleep(Duration::from_millis(20));
                }
                Err(error) => {
                    return Err(error).with_context(|| {
                        Failed::new(
                            format!("lock {}", path.display()),
                            "another musttls edits the configuration: wait for its end, and try again",
                        )
                    });
                }
            }
        }
    }
}

/// A file that gets another text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The file.
    pub path: PathBuf,
    /// Its text; `None` if there is no such file.
    pub before: Option<String>,
    /// The text that it gets; `None` if it is removed.
    pub after: Option<String>,
}

/// Changes that have been made.
#[derive(Debug)]
pub(super) struct Changed(Vec<Change>);

impl Changed {
    /// Makes all of them, or none.
    pub(super) fn make(changes: Vec<Change>) -> Result<Self> {
        let mut made = Self(Vec::new());
        for change in changes {
            let result =
                is_as_read(&change).and_then(|()| put(&change.path, change.after.as_deref()));
            if let Err(error) = result {
                return match made.undo() {
                    Ok(()) => Err(error),
                    Err(other) => {
                        Err(error).context(format!("and what was changed before stays: {other:#}"))
                    }
                };
            }
            made.0.push(change);
        }
        Ok(made)
    }

    /// Puts the files back as they were.
    pub(super) fn undo(self) -> Result<()> {
        for change in self.0.into_iter().rev() {
            put(&change.path, change.before.as_deref()).with_context(|| {
                Failed::new(
                    format!("put back {}", change.path.display()),
                    "it is to be put back by hand: musttls config check shows what is in it",
                )
            })?;
        }
        Ok(())
    }
}

/// Someone with an editor takes no lock.
fn is_as_read(change: &Change) -> Result<()> {
    let now = match fs::read_to_string(&change.path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => {
            return Err(error).with_context(|| format!("read {}", change.path.display()));
        }
    };
    if now != change.before {
        bail!(
            "{} was changed by someone else meanwhile; nothing was written\n  help: try again",
            change.path.display()
        );
    }
    Ok(())
}

/// Gives the file this text, or removes it.
fn put(path: &Path, text: Option<&str>) -> Result<()> {
    match text {
        Some(text) => write(path, text),
        None => fs::remove_file(path)
            .with_context(|| Failed::new(format!("remove {}", path.display()), RIGHTS)),
    }
}

/// Gives the file another text in one step: who reads it sees the one or the other. Its mode and owner stay.
fn write(path: &Path, text: &str) -> Result<()> {
    // A link stays one.
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        found => found.with_context(|| format!("find {}", path.display()))?,
    };
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} is not the path of a file", path.display());
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".new");
    let new = directory.join(hidden);
    let failed = || Failed::new(format!("write {}", path.display()), RIGHTS);
    let replace = || -> std::io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        match fs::metadata(&path) {
            Ok(former) => {
                let own = file.metadata()?;
                if (own.uid(), own.gid()) != (former.uid(), former.gid()) {
                    fchown(&file, Some(former.uid()), Some(former.gid()))?;
                }
                file.set_permissions(Permissions::from_mode(former.mode() & 0o7777))?;
            }
            Err(_) => file.set_permissions(Permissions::from_mode(MODE))?,
        }
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(directory)?.sync_all()
    };
    replace().with_context(failed).inspect_err(|_| {
        // What could not be made complete; the next one removes it, too.
        drop(fs::remove_file(&new));
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn change(path: &Path, before: Option<&str>, after: &str) -> Change {
        Change {
            path: path.to_owned(),
            before: before.map(str::to_owned),
            after: Some(after.to_owned()),
        }
    }

    #[test]
    fn a_file_keeps_its_mode_and_a_link_stays_a_link() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("a", &link).unwrap();
        Changed::make(vec![change(&link, Some("old"), "new")]).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o640);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let fresh = directory.path().join("c");
        Changed::make(vec![change(&fresh, None, "x")]).unwrap();
        assert_eq!(fs::metadata(&fresh).unwrap().mode() & 0o7777, MODE);
        assert_eq!(
            fs::read_dir(directory.path()).unwrap().count(),
            3,
            "nothing is left over"
        );
    }

    #[test]
    fn all_changes_are_made_or_none() {
        let directory = tempfile::tempdir().unwrap();
        let (a, b, c) = (
            directory.path().join("a"),
            directory.path().join("b"),
            directory.path().join("c"),
        );
        fs::write(&a, "a").unwrap();
        fs::write(&b, "changed by hand").unwrap();
        let error = Changed::make(vec![
            change(&a, Some("a"), "A"),
            change(&c, None, "C"),
            change(&b, Some("b"), "B"),
        ])
        .unwrap_err();
        assert!(
            error.to_string().contains("changed by someone else"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&a).unwrap(), "a");
        assert_eq!(fs::read_to_string(&b).unwrap(), "changed by hand");
        assert!(!c.exists());
        let made = Changed::make(vec![change(&a, Some("a"), "A"), change(&c, None, "C")]).unwrap();
        assert_eq!(fs::read_to_string(&a).unwrap(), "A");
        made.undo().unwrap();
        assert_eq!(fs::read_to_string(&a).unwrap(), "a");
        assert!(!c.exists());
    }

    #[test]
    fn one_edits_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("conf.d");
        let first = Lock::take(&place).unwrap();
        let mode = fs::metadata(place.join(LOCK)).unwrap().mode() & 0o7777;
        assert_eq!(mode, LOCK_MODE);
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let _lock = Lock::take(&place).unwrap();
                assert!(is_done.load(Ordering::SeqCst), "the first one still edits");
            });
            // Time for a wrong second one to come in; a right one does not depend on it.
            sleep(Duration::from_millis(100));
            is_done.store(true, Ordering::SeqCst);
            drop(first);
            second.join().unwrap();
        });
    }
}
