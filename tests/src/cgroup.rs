//! A cgroup of a test, made below the root of the hierarchy and removed when the test is over.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result};

use crate::place::{Scratch, output};
use crate::wait::{self, PATIENCE};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A cgroup (v2).
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    mount: Scratch,
}

impl Cgroup {
    /// Makes one, on a mount of its own: the hierarchy may be mounted elsewhere, or nowhere.
    pub fn new() -> Result<Self> {
        let mount = Scratch::new()?;
        let mut command = Command::new("mount");
        output(command.args(["-t", "cgroup2", "cgroup2"]).arg(mount.path()))?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = mount.join(format!("musttls-test-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path, mount })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, which is also its path below the root without the slash.
    #[must_use]
    pub fn name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Makes a cgroup in it. It must be empty when this one goes.
    pub fn below(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    /// Words that start a program in the cgroup `path`.
    #[must_use]
    pub fn enter(path: &Path) -> [String; 4] {
        let enter = format!("echo $$ > {}/cgroup.procs; exec \"$@\"", path.display());
        ["sh", "-ec", &enter, "sh"].map(str::to_owned)
    }

    fn remove(&self) -> bool {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries {
            let is_below = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_below && fs::remove_dir(entry.path()).is_err() {
                return false;
            }
        }
        fs::remove_dir(&self.path).is_ok()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Its processes have ended; the kernel may still be at it.
        let removed = wait::until_true("the group to be empty", PATIENCE, || Ok(self.remove()));
        let unmounted = output(Command::new("umount").arg(self.mount.path()));
        if let Err(error) = removed.and(unmounted.map(drop)) {
            eprintln!("cgroup {} is left: {error:#}", self.name());
        }
    }
}
