//! Which cgroups lie below one that an exception names, by their ids.
//!
//! The kernel tells a socket's cgroup as an id, which is the inode number of its directory (`cgroup_id`, Linux 5.5). The agent may not
//! open files by handle (ADR 0016), so it looks through the directories below the named one, and keeps what it found.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
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
        let ids = self.below(path)?;
        let contains = ids.contains(&id);
        let looked = Instant::now();
        self.known.insert(path.to_owned(), Known { ids, looked });
        Ok(Some(contains))
    }

    /// The ids of `path` and of all below it; none if it is not there.
    fn below(&self, path: &str) -> io::Result<HashSet<u64>> {
        let mut ids = HashSet::new();
        let mut waiting = match self.open(Path::new(path.trim_start_matches('/'))) {
            Ok(directory) => vec![directory],
            Err(Errno::NOENT) => return Ok(ids),
            Err(error) => return Err(error.into()),
        };
        while let Some(directory) = waiting.pop() {
            ids.insert(fstat(&directory)?.st_ino);
            let entries = Dir::read_from(&directory)?;
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                if entry.file_type() != FileType::Directory
                    || matches!(name.to_bytes(), b"." | b"..")
                {
                    continue;
                }
                if ids.len() + waiting.len() >= DIRECTORIES {
                    return Err(io::Error::other(format!(
                        "more than {DIRECTORIES} cgroups below {path}"
                    )));
                }
                match openat(&directory, name, FLAGS, Mode::empty()) {
                    Ok(below) => waiting.push(below),
                    // It went meanwhile.
                    Err(Errno::NOENT | Errno::NODEV) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(ids)
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
}
