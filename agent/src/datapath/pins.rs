//! What outlives the agent, pinned on a BPF file system (bpffs).
//!
//! ```text
//! /sys/fs/bpf/musttls/      for root only
//!   abi-3/                  one for each `ABI_VERSION`: what lies in it fits together
//!     maps/SOCKETS ...      records, counters, rings: every gate of this ABI works on the same ones
//!     links/on_ingress ...  what attaches the gate's programs to the root cgroup
//!     gate-7/INGRESS ...    of the gate in force: what the kernel would empty without it, and its policy's version
//! ```
//!
//! An agent puts its own programs in the place of the former one's, link by link (`BPF_LINK_UPDATE`): a packet meets
//! the one or the other. The policy's tables are the new gate's own, so a policy comes with the programs.
//!
//! Invariant: whatever step an agent dies in, what is pinned judges on, and the next agent can take it over.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, ensure};
use aya::Ebpf;
use aya::maps::{Array, Map, MapData};
use musttls_common::ABI_VERSION;
use musttls_common::policy::PolicyRoot;

use super::links::ATTACHED;
use super::sys;
use super::tables::wait_for_programs;
use crate::error::Failed;

const FILE_SYSTEM: &str = "/sys/fs/bpf";
const ROOT: &str = "/sys/fs/bpf/musttls";
/// `BPF_FS_MAGIC` (`include/uapi/linux/magic.h`).
const MAGIC: u64 = 0xcafe_4a11;

/// The maps of [`Pins::map`].
///
/// SCRATCH is among them because a segment may be judged by the one gate and its session made by the other.
pub(super) const LASTING: [&str; 12] = [
    "SOCKETS",
    "LISTENERS",
    "PLACES",
    "HELD",
    "DENIALS",
    "LISTENS",
    "SESSIONS",
    "ASKS",
    "ANSWERS",
    "COUNTERS",
    "TOLD",
    "SCRATCH",
];
/// Maps of one gate that are pinned beside it: the kernel empties a map of programs when user space lets go of it, and
/// the others tell the next agent which policy was in force.
const OF_GATE: [&str; 4] = ["INGRESS", "EGRESS", "ACTIVE", "ROOTS"];

/// What is pinned for this ABI.
#[derive(Debug)]
pub struct Pins {
    directory: PathBuf,
    /// Number of the gate that is being loaded.
    gate: u32,
    /// Whether a gate was attached by links that are pinned here.
    found: bool,
}

impl Pins {
    /// Makes the place for what is to outlive the agent; what a former one has left there is kept.
    pub fn open() -> Result<Self> {
        mount().with_context(|| {
            Failed::new(
                format!("use the BPF file system at {FILE_SYSTEM}"),
                "mount it (mount -t bpf -o mode=700 bpf /sys/fs/bpf), and let the agent see it: in a container, as a host path",
            )
        })?;
        let pins = Self::at(Path::new(ROOT))?;
        let (maps, links) = (pins.directory.join("maps"), pins.directory.join("links"));
        for directory in [Path::new(ROOT), &pins.directory, &maps, &links] {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    ensure_ours(directory)?;
                }
                created => created.with_context(|| format!("create {}", directory.display()))?,
            }
        }
        Ok(pins)
    }

    /// What a former agent has left attached, if anything.
    pub fn find() -> Result<Option<Self>> {
        let pins = Self::at(Path::new(ROOT))?;
        Ok(pins.found.then_some(pins))
    }

    fn at(root: &Path) -> Result<Self> {
        let directory = root.join(format!("abi-{ABI_VERSION}"));
        for directory in [root, &directory] {
            ensure_ours(directory)?;
        }
        let gates = numbered(&directory, "gate-")?;
        Ok(Self {
            gate: gates.iter().max().map_or(1, |last| last + 1),
            // The last link: without it nothing is judged.
            found: directory.join("links/on_ingress").exists(),
            directory,
        })
    }

    /// Whether there is a gate to be taken over.
    #[must_use]
    pub const fn found(&self) -> bool {
        self.found
    }

    /// The newest version of a policy that any gate here judges by.
    pub fn policy_version(&self) -> Result<u32> {
        let mut newest = 0;
        for number in numbered(&self.directory, "gate-")? {
            let directory = self.gate_directory(number);
            newest = newest.max(policy_version(&directory).unwrap_or(0));
        }
        Ok(newest)
    }

    /// Where a map is pinned that all gates work on.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.directory.join("maps").join(name)
    }

    fn gate_directory(&self, number: u32) -> PathBuf {
        self.directory.join(format!("gate-{number}"))
    }

    fn link_path(&self, name: &str) -> PathBuf {
        self.directory.join("links").join(name)
    }

    /// The link of the program `name`, if there is one.
    pub(super) fn link(&self, name: &str) -> Result<Option<OwnedFd>> {
        let path = self.link_path(name);
        match sys::pinned(&path) {
            Ok(fd) => Ok(Some(fd)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| {
                Failed::new(
                    format!("open what is pinned at {}", path.display()),
                    "musttls disarm takes away what is pinned; then start again",
                )
            }),
        }
    }

    /// Whether the link of the program `name` is the one with this number.
    pub(super) fn has_link(&self, name: &str, id: u32) -> bool {
        let link = sys::pinned(&self.link_path(name)).and_then(|link| sys::link_info(link.as_fd()));
        link.is_ok_and(|link| link.id == id)
    }

    /// Pins a new link, in the place of what is there.
    pub(super) fn pin_link(&self, name: &str, link: BorrowedFd<'_>) -> Result<()> {
        let path = self.link_path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sys::pin(link, &path),
        }
        .with_context(|| format!("pin {}", path.display()))
    }

    /// Pins what the new gate needs, before a link leads to it.
    pub(super) fn pin_gate(&self, gate: &Ebpf) -> Result<()> {
        let directory = self.gate_directory(self.gate);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("create {}", directory.display()))?;
        for name in OF_GATE {
            let path = directory.join(name);
            gate.map(name)
                .with_context(|| format!("the gate has no map {name}"))?
                .pin(&path)
                .with_context(|| format!("pin {}", path.display()))?;
        }
        Ok(())
    }

    /// All links lead to the new gate: the former ones go.
    pub(super) fn let_former_go(&self) -> Result<()> {
        // A program of theirs that still runs must find what it calls.
        wait_for_programs();
        for number in numbered(&self.directory, "gate-")? {
            if number != self.gate {
                remove(&self.gate_directory(number))?;
            }
        }
        Ok(())
    }

    /// Nothing is to outlive the agent any more. What it holds itself stays until it ends.
    pub(super) fn unpin(&self) -> Result<()> {
        take_off(&self.directory).map(drop)
    }

    /// Takes away what was pinned for a gate that could not be loaded: no link leads to it.
    pub(super) fn give_up(&self) {
        let removed = if self.found {
            remove(&self.gate_directory(self.gate))
        } else {
            take_off(&self.directory).map(drop)
        };
        if let Err(error) = removed {
            tracing::warn!(
                directory = %self.directory.display(),
                error = format!("{error:#}"),
                help = "musttls disarm takes it off",
                "what is pinned stays"
            );
        }
    }
}

/// The version of a gate's policy; `None` if the gate was not pinned to its end.
fn policy_version(gate: &Path) -> Option<u32> {
    let map = |name| MapData::from_pin(gate.join(name)).map(Map::Array).ok();
    let active = Array::<_, u32>::try_from(map("ACTIVE")?).ok()?;
    let roots = Array::<_, PolicyRoot>::try_from(map("ROOTS")?).ok()?;
    let root = roots.get(&active.get(&0, 0).ok()?, 0).ok()?;
    Some(root.version)
}

/// Takes off every gate that is pinned, whatever its ABI, and all that belongs to it. Returns whether one was attached.
pub fn disarm() -> Result<bool> {
    let root = Path::new(ROOT);
    ensure_ours(root)?;
    let mut attached = false;
    for abi in numbered(root, "abi-")? {
        attached |= take_off(&root.join(format!("abi-{abi}")))?;
    }
    match fs::remove_dir(root) {
        // The unit gives an agent this directory alone to write to: its own agent cannot remove it. Empty, it is harmless.
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound
                    | io::ErrorKind::ResourceBusy
                    | io::ErrorKind::ReadOnlyFilesystem
            ) =>
        {
            Err(error).with_context(|| format!("remove {}", root.display()))
        }
        _ => Ok(attached),
    }
}

/// Takes off the gate that is pinned in `directory`. Returns whether one was attached.
pub(super) fn take_off(directory: &Path) -> Result<bool> {
    let mut attached = false;
    // Ingress first: without it nothing is held any more.
    for (name, _) in ATTACHED.iter().rev() {
        let path = directory.join("links").join(name);
        match fs::remove_file(&path) {
            Ok(()) => attached = true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    Failed::new(
                        format!("remove {}", path.display()),
                        "run it as root, where the host's BPF file system is seen",
                    )
                });
            }
        }
    }
    remove(directory)?;
    Ok(attached)
}

/// Whether a gate of any ABI is attached.
pub fn any() -> Result<bool> {
    let root = Path::new(ROOT);
    ensure_ours(root)?;
    let abis = numbered(root, "abi-")?;
    let links = |abi: &u32| root.join(format!("abi-{abi}/links/on_ingress"));
    Ok(abis.iter().any(|abi| links(abi).exists()))
}

/// The gates of other ABIs that are attached: ABI and directory.
pub(super) fn others() -> Result<Vec<(u32, PathBuf)>> {
    let root = Path::new(ROOT);
    let mut others = Vec::new();
    for abi in numbered(root, "abi-")? {
        let directory = root.join(format!("abi-{abi}"));
        if abi == u32::from(ABI_VERSION) {
            continue;
        }
        if entries(&directory.join("links"))?.is_empty() {
            remove(&directory)?;
        } else {
            others.push((abi, directory));
        }
    }
    Ok(others)
}

/// Sees to it that the BPF file system is there.
fn mount() -> Result<()> {
    if is_mounted()? {
        return Ok(());
    }
    // A mount in a namespace of the agent's own would end with it, and with it what is pinned there.
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt"));
    let of_host = namespace("1").context("read /proc/1/ns/mnt")?;
    ensure!(
        namespace("self").context("read /proc/self/ns/mnt")? == of_host,
        "it is not mounted, and the agent has a mount namespace of its own"
    );
    rustix::mount::mount(
        "bpf",
        FILE_SYSTEM,
        "bpf",
        rustix::mount::MountFlags::NOSUID
            | rustix::mount::MountFlags::NODEV
            | rustix::mount::MountFlags::NOEXEC,
        Some(c"mode=700"),
    )
    .context("mount(bpf)")?;
    ensure!(is_mounted()?, "it is not there after it was mounted");
    Ok(())
}

fn is_mounted() -> Result<bool> {
    let file_system = rustix::fs::statfs(FILE_SYSTEM).context("statfs")?;
    Ok(u64::try_from(file_system.f_type).is_ok_and(|magic| magic == MAGIC))
}

/// Whether a directory is root's alone. On a BPF file system that everybody may write to (mode 1777, the kernel's default)
/// anybody can make it first, and take away what is pinned there. It is no error if it is not there.
fn ensure_ours(directory: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.with_context(|| format!("look at {}", directory.display()))?,
    };
    let for_others = metadata.mode() & 0o077;
    let ours = metadata.is_dir() && metadata.uid() == 0 && for_others == 0;
    if ours {
        return Ok(());
    }
    Err(anyhow!(
        "it is of user {}, with mode {:o}: somebody else has made it",
        metadata.uid(),
        metadata.mode() & 0o7777
    ))
    .with_context(|| {
        Failed::new(
            format!("trust what is pinned in {}", directory.display()),
            "find out who made it, and remove it (rm -r); mount the BPF file system with -o mode=700",
        )
    })
}

/// The numbers of the directories in `directory` whose names begin with `prefix`.
fn numbered(directory: &Path, prefix: &str) -> Result<Vec<u32>> {
    Ok(entries(directory)?
        .iter()
        .filter_map(|name| name.to_str()?.strip_prefix(prefix)?.parse().ok())
        .collect())
}

/// The names in a directory; none if it is not there.
fn entries(directory: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.with_context(|| format!("read {}", directory.display()))?,
    };
    entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<io::Result<_>>()
        .with_context(|| format!("read {}", directory.display()))
}

/// Removes a directory with all in it; it is no error if it is not there.
fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("remove {}", directory.display())),
    }
}
