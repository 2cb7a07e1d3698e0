//! Where the things live that take long to fetch or make, shared by all work trees of a host.

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The directory of everything `setup` makes, `/var/cache/musttls` unless `MUSTTLS_CACHE` names one.
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(crate) fn from_environment() -> Self {
        let root =
            env::var_os("MUSTTLS_CACHE").map_or_else(|| "/var/cache/musttls".into(), PathBuf::from);
        Self {
            root: std::path::absolute(&root).unwrap_or(root),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// One directory a kernel, named `major.minor`.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("kernels")
    }

    pub(crate) fn rust_src(&self) -> PathBuf {
        self.root.join("rust-src")
    }

    pub(crate) fn python(&self) -> PathBuf {
        self.root.join("python")
    }

    pub(crate) fn node(&self) -> PathBuf {
        self.root.join("node")
    }

    pub(crate) fn vm(&self) -> PathBuf {
        self.root.join("vm")
    }

    /// Lists and downloads of the package look-ups that must not touch the host's own apt.
    pub(crate) fn apt(&self) -> PathBuf {
        self.root.join("apt")
    }
}

/// An empty directory `<name>.partial` beside `path`, made into `path` by [`commit`], so that what an
/// interrupted run leaves is never taken for the whole.
pub(crate) fn begin(path: &Path) -> Result<PathBuf> {
    let partial = path.with_added_extension("partial");
    remove(&partial)?;
    fs::create_dir_all(&partial).with_context(|| format!("create {}", partial.display()))?;
    Ok(partial)
}

/// Replaces `path` by the finished `partial`.
pub(crate) fn commit(partial: &Path, path: &Path) -> Result<()> {
    remove(path)?;
    fs::rename(partial, path)
        .with_context(|| format!("rename {} to {}", partial.display(), path.display()))
}

/// Waits until no other run holds the lock at `path`, and holds it while the file is open.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let locking = || format!("lock {}", path.display());
    create_parent(path)?;
    let file = File::create(path).with_context(locking)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(TryLockError::WouldBlock) => {
            println!("waiting for another run that holds {}", path.display());
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(locking),
    }
    file.lock().with_context(locking)?;
    Ok(file)
}

/// Removes a file, link or directory; a missing one is fine.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("remove {}", path.display()))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    create_parent(path)?;
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    create_parent(to)?;
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn create_parent(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), create)
}

pub(crate) fn create(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))
}

/// The top of the work tree this xtask was built from.
pub(crate) fn repository() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask/ has no parent directory")
}
