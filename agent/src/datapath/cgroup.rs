//! The root of the cgroup v2 hierarchy.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use rustix::fs::{Mode, OFlags, fstat, open, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use crate::error::Failed;

/// Inode number of the root of each cgroup hierarchy (kernfs gives the first number to its root).
const ROOT_INODE: u64 = 1;

/// Where the root was found.
#[derive(Debug)]
pub struct Root {
    /// A descriptor of the directory.
    pub fd: OwnedFd,
    /// A mount point of it, or `None` if it was opened without one.
    pub path: Option<PathBuf>,
}

/// Opens the root of the cgroup v2 hierarchy: at a mount point, or else without one.
///
/// On hybrid hosts (v1 and v2) it is mounted somewhere else than on v2 hosts, or nowhere, but it exists:
/// each process, and so each socket, is in it.
pub fn open_root() -> Result<Root> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    for path in cgroup2_mounts(&mounts) {
        let Ok(fd) = open(&path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
            continue;
        };
        if is_root(&fd) {
            return Ok(Root {
                fd,
                path: Some(path),
            });
        }
    }
    let fd = open_unmounted().with_context(|| {
        Failed::new(
            "open the root of cgroup v2: mounted nowhere, and not to be opened without a mount",
            "mount it (mount -t cgroup2 none /sys/fs/cgroup/unified), or boot without \
             systemd.unified_cgroup_hierarchy=0 SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
        )
    })?;
    if !is_root(&fd) {
        return Err(anyhow!("the inode number of what is seen as the root is not {ROOT_INODE}"))
            .with_context(|| {
                Failed::new(
                    "reach the root of cgroup v2: the agent is in a cgroup namespace of its own",
                    "run it on the host, or in a container with the host's cgroup namespace (--cgroupns=host)",
                )
            });
    }
    Ok(Root { fd, path: None })
}

fn is_root(directory: &OwnedFd) -> bool {
    fstat(directory).is_ok_and(|stat| stat.st_ino == ROOT_INODE)
}

/// A new mount of cgroup2 that is attached nowhere (Linux 5.2).
fn open_unmounted() -> Result<OwnedFd> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen(cgroup2)")?;
    fsconfig_create(&context).context("fsconfig(cgroup2)")?;
    let mount = fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .context("fsmount(cgroup2)")?;
    openat(
        &mount,
        Path::new("."),
        OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("open the root of the new cgroup2 mount")
}

/// Mount points of cgroup2 in the text of `/proc/self/mountinfo` (proc(5)).
fn cgroup2_mounts(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| {
        let (fields, tail) = line.split_once(" - ")?;
        let is_cgroup2 = tail.split(' ').next() == Some("cgroup2");
        let point = fields.split(' ').nth(4)?;
        is_cgroup2.then(|| PathBuf::from(point.replace("\\040", " ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroup2_is_found_on_hybrid_and_unified_hosts() {
        let mountinfo = "\
33 25 0:28 / /sys/fs/cgroup rw,nosuid shared:9 - tmpfs tmpfs rw,mode=755
34 33 0:29 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
35 33 0:30 / /sys/fs/cgroup/cpu rw shared:11 - cgroup cgroup rw,cpu
99 25 0:29 / /mnt/a\\040b rw - cgroup2 none rw
";
        let found: Vec<PathBuf> = cgroup2_mounts(mountinfo).collect();
        assert_eq!(
            found,
            [
                PathBuf::from("/sys/fs/cgroup/unified"),
                PathBuf::from("/mnt/a b")
            ]
        );
    }
}
