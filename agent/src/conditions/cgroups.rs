//! Which cgroups lie below one that an exception names, by their ids.
//!
//! The kernel tells a socket's cgroup as an id, which is the inode number of its directory (`cgroup_id`, Linux 5.5). The agent may not
//! open files by handle (ADR 0016), so it looks through the directories below the named one, and keeps what it found.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

/// Most directories below one named cgroup.
const DIRECTORIES: usize = 4096;
/// A look-up that fails is not made again for so long: who comes from elsewhere must not have the agent look for it each time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Cgroups below those that exceptions name.
#[derive(Debug)]
pub(super) struct Cgroups {
    root: OwnedFd,
    known: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    ids: HashSet<u64>,
    looked: Instant,
}

impl Cgroups {
    /// Of the hierarchy with this root.
    pub(super) fn new(root: OwnedFd) -> Self {
        Self {
            root,
            known: HashMap::new(),
        }
    }

    /// Forgets those that no exception names any more.
    pub(super) fn keep(&mut self, is_named: impl Fn(&str) -> bool) {
        self.known.retain(|path, _| is_named(path));
    }

    /// Whether the cgroup `id` is `path` or below it. `None` if that is not to be looked up again yet.
    pub(super) fn contains(&mut self, path: &str, id: u64) -> io::Result<Option<bool>> {
        if let Some(known) = self.known.get(path) {
            if known.ids.contains(&id) {
                return Ok(Some(true));
            }
            if known.looked.elapsed() < LOOK_AGAIN {
                return Ok(None);
            }
        }
        let below = self.below(path);
        let looked = Instant::now();
        let (ids, error) = match below {
            Ok(ids) => (ids, None),
            Err((ids, error)) => (ids, Some(error)),
        };
        let contains = ids.contains(&id);
        // A look-up that fails is not made again at once either, and what it has found is true.
        self.known.insert(path.to_owned(), Known { ids, looked });
        match error {
            Some(error) if !contains => Err(error),
            _ => Ok(Some(contains)),
        }
    }

    /// The ids of `path` and of all below it; none if it is not there. With an error, those that were found before.
    ///
    /// One directory is open at a time: a user who may make cgroups must not use up the agent's descriptors.
    fn below(&self, path: &str) -> Result<HashSet<u64>, (HashSet<u64>, io::Error)> {
        let mut ids = HashSet::new();
        let mut waiting = vec![PathBuf::from(path.trim_start_matches('/'))];
        while let Some(path) = waiting.pop() {
            if let Err(error) = self.read(&path, &mut ids, &mut waiting) {
                return Err((ids, error));
            }
        }
        Ok(ids)
    }

    /// Takes the id of `path`, and has what is in it wait.
    fn read(
        &self,
        path: &Path,
        ids: &mut HashSet<u64>,
        waiting: &mut Vec<PathBuf>,
    ) -> io::Result<()> {
        let went = |error: &Errno| matches!(*error, Errno::NOENT | Errno::NODEV);
        let directory = match self.open(path) {
            Ok(directory) => directory,
            Err(error) if went(&error) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        ids.insert(fstat(&directory)?.st_ino);
        for entry in Dir::read_from(&directory)? {
            let entry = match entry {
                Ok(entry) => entry,
                // It went meanwhile.
                Err(error) if went(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let name = entry.file_name();
            if entry.file_type() != FileType::Directory || matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if ids.len() + waiting.len() >= DIRECTORIES {
                return Err(io::Error::other(format!(
                    "more than {DIRECTORIES} cgroups below the one that is named"
                )));
            }
            waiting.push(path.join(OsStr::from_bytes(name.to_bytes())));
        }
        Ok(())
    }

    fn open(&self, path: &Path) -> rustix::io::Result<OwnedFd> {
        openat(&self.root, path, FLAGS, Mode::empty())
    }
}

const FLAGS: OFlags = OFlags::DIRECTORY
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOFOLLOW);

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn what_is_below_is_found_and_what_is_beside_is_not() {
        let place = std::env::temp_dir().join(format!("musttls-cgroups-{}", std::process::id()));
        for path in ["app.service/a/b", "app.service2"] {
            fs::create_dir_all(place.join(path)).unwrap();
        }
        let root = rustix::fs::open(&place, FLAGS, Mode::empty()).unwrap();
        let id = |path: &str| fs::metadata(place.join(path)).unwrap().ino();
        let contains = |path: &str| {
            let root = root.try_clone().unwrap();
            Cgroups::new(root)
                .contains("/app.service", id(path))
                .unwrap()
        };
        assert_eq!(contains("app.service"), Some(true));
        assert_eq!(contains("app.service/a/b"), Some(true));
        assert_eq!(contains("app.service2"), Some(false));
        assert_eq!(contains(""), Some(false));

        let mut cgroups = Cgroups::new(root.try_clone().unwrap());
        assert_eq!(cgroups.contains("/gone", 1).unwrap(), Some(false));
        assert_eq!(cgroups.contains("/app.service", 1).unwrap(), Some(false));
        // Not again at once.
        assert_eq!(cgroups.contains("/app.service", 1).unwrap(), None);
        assert_eq!(
            cgroups
                .contains("/app.service", id("app.service/a"))
                .unwrap(),
            Some(true)
        );
        cgroups.keep(|path| path != "/app.service");
        assert_eq!(cgroups.known.len(), 1);
        fs::remove_dir_all(&place).unwrap();
    }

    /// Whoever may make cgroups below the named one can make too many.
    #[test]
    fn too_many_are_looked_through_once_a_second_and_those_found_count() {
        let place =
            std::env::temp_dir().join(format!("musttls-many-cgroups-{}", std::process::id()));
        fs::create_dir_all(place.join("user.slice")).unwrap();
        for number in 0..=DIRECTORIES {
            fs::create_dir(place.join(format!("user.slice/{number}"))).unwrap();
        }
        let id = |path: &str| fs::metadata(place.join(path)).unwrap().ino();
        let mut cgroups = Cgroups::new(rustix::fs::open(&place, FLAGS, Mode::empty()).unwrap());
        cgroups.contains("/user.slice", 1).unwrap_err();
        // Not again at once.
        assert_eq!(cgroups.contains("/user.slice", 1).unwrap(), None);
        assert_eq!(
            cgroups.contains("/user.slice", id("user.slice")).unwrap(),
            Some(true)
        );
        fs::remove_dir_all(&place).unwrap();
    }
}
