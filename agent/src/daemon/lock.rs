//! One agent a host: the gate is attached to the root cgroup, and two would refuse each session twice.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rustix::fs::{FlockOperation, flock};

use crate::error::Failed;

/// Where the lock is, whatever the configuration says: two agents with two configurations are two agents.
pub const PATH: &str = "/run/musttls/agent.lock";

/// Who may open it may lock it (flock(2) asks for no more), and would keep every agent from starting.
const MODE: u32 = 0o600;

const RIGHTS: &str = "run as root, or let the user musttls runs as write there";

/// Held as long as the agent runs; the kernel lets go of it when the process ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "keeps the lock")] File);

/// Takes the lock, or names the agent that has it.
pub fn take(path: &Path) -> Result<Lock> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)
            .with_context(|| Failed::new(format!("create {}", directory.display()), RIGHTS))?;
    }
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(MODE)
        .open(path)
        .with_context(|| Failed::new(format!("open {}", path.display()), RIGHTS))?;
    if let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
        if error != rustix::io::Errno::WOULDBLOCK {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
        let mut holder = String::new();
        file.read_to_string(&mut holder)
            .with_context(|| format!("read {}", path.display()))?;
        bail!(
            "another musttls is running: process {}\n  help: stop it first (systemctl stop musttls), or ask it: musttls status",
            holder.trim()
        );
    }
    file.set_permissions(Permissions::from_mode(MODE))
        .and_then(|()| file.set_len(0))
        .and_then(|()| file.rewind())
        .with_context(|| format!("empty {}", path.display()))?;
    writeln!(file, "{}", std::process::id())
        .with_context(|| format!("write {}", path.display()))?;
    Ok(Lock(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_agent_is_told_of_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/agent.lock");
        let first = take(&path).unwrap();
        let error = take(&path).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        take(&path).unwrap();
    }

    #[test]
    fn only_its_owner_may_open_it_also_where_that_was_not_so() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.lock");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        drop(take(&path).unwrap());
        assert_eq!(mode(), MODE);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        drop(take(&path).unwrap());
        assert_eq!(mode(), MODE);
    }
}
