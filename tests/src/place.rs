//! Where things are, and directories that vanish with their test.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail, ensure};

/// Beginning of every name the tests give to a directory or namespace; the process id follows.
pub(crate) const PREFIX: &str = "musttls-test";

/// Directories of a target directory.
const PROFILES: &[&str] = &["debug", "release", "tests"];

/// Where packages put the agent; the VMs have it there.
const INSTALLED: &str = "/usr/sbin/musttls";

/// The agent under test: `MUSTTLS_BIN`, or the release build of the target directory that the running
/// program is in, or the installed one.
pub fn agent_binary() -> Result<PathBuf> {
    let own = env::current_exe().context("find the path of this program")?;
    let path = match env::var_os("MUSTTLS_BIN") {
        Some(path) => PathBuf::from(path),
        None => own
            .ancestors()
            .find(|path| PROFILES.iter().any(|profile| path.ends_with(profile)))
            .and_then(Path::parent)
            .map_or_else(|| INSTALLED.into(), |target| target.join("release/musttls")),
    };
    ensure!(
        path.exists(),
        "no agent at {}; build it (`cargo build --release --package musttls`) or name one by MUSTTLS_BIN",
        path.display()
    );
    Ok(path)
}

/// What `cargo xtask setup` made: `MUSTTLS_CACHE`, or `/var/cache/musttls`.
#[must_use]
pub fn cache() -> PathBuf {
    env::var_os("MUSTTLS_CACHE").map_or_else(|| "/var/cache/musttls".into(), PathBuf::from)
}

/// Something that `setup` makes; its absence is an error and names the remedy.
pub(crate) fn from_setup(path: PathBuf) -> Result<PathBuf> {
    ensure!(
        path.exists(),
        "{} is missing; run `cargo xtask setup`",
        path.display()
    );
    Ok(path)
}

/// What the tests themselves make once and keep.
pub(crate) fn kept() -> Result<PathBuf> {
    let path = cache().join("tests");
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}

/// A name nobody else uses, by process id and a number.
pub(crate) fn unique_name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}-{}-{number}", process::id())
}

/// Whether `name` was made by [`unique_name`] in a process that is gone: killed before it could
/// clean up.
pub(crate) fn is_stale(name: &str) -> bool {
    let process = name
        .strip_prefix(PREFIX)
        .and_then(|rest| rest.strip_prefix('-'))
        .and_then(|rest| rest.split('-').next());
    process.is_some_and(|id| !Path::new("/proc").join(id).exists())
}

/// A directory of one test, removed when it is dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one below the system's directory for temporary files, open to every user.
    pub fn new() -> Result<Self> {
        Self::in_directory(&env::temp_dir())
    }

    /// Makes one below `parent`, and removes what killed tests left there.
    pub fn in_directory(parent: &Path) -> Result<Self> {
        remove_stale(parent)?;
        let path = parent.join(unique_name());
        fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("open {} to all users", path.display()))?;
        Ok(Self { path })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in it.
    #[must_use]
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("cannot remove {}: {error}", self.path.display());
        }
    }
}

fn remove_stale(parent: &Path) -> Result<()> {
    let entries = match fs::read_dir(parent) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {}", parent.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", parent.display()))?;
        if is_stale(&entry.file_name().to_string_lossy()) {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// A process that ends with its owner, whatever becomes of the test.
#[derive(Debug)]
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// The beginning of a command that runs as the user `uid`, of no group but that of the same number.
#[must_use]
pub fn of_user(uid: u32) -> Command {
    let id = uid.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]);
    command
}

/// The same with one supplementary group.
#[must_use]
pub fn of_user_in(uid: u32, gid: u32) -> Command {
    let id = uid.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--groups", &gid.to_string()]);
    command
}

/// Runs a helper program to its end and returns what it printed on standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_dead_processes_are_stale_and_no_others() {
        assert!(is_stale("musttls-test-999999999-0"));
        assert!(!is_stale(&unique_name()));
        assert!(!is_stale("musttls-999999999"));
    }

    #[test]
    fn scratch_directory_vanishes_with_its_owner() {
        let scratch = Scratch::new().unwrap();
        let path = scratch.path().to_path_buf();
        assert!(path.exists());
        drop(scratch);
        assert!(!path.exists());
    }
}
