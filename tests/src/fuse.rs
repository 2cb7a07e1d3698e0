//! A file system of one file whose owner answers what it likes, as any user may mount one (`FUSE`).
//!
//! Source: `include/uapi/linux/fuse.h`. Whoever has its file open and closes it waits for its owner, and cannot be killed meanwhile
//! (`fuse_flush`).

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::place::Scratch;

/// `enum fuse_opcode`.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const READ: u32 = 15;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;
/// `struct fuse_in_header`.
const HEADER: usize = 40;
/// Longer than any request here.
const REQUEST_MAX: usize = 1 << 17;
const ENOSYS: i32 = 38;
const ROOT: u64 = 1;
/// Length of the file: a page, so that it can be mapped.
const SIZE: u64 = 4096;

/// The file system.
#[derive(Debug)]
pub struct Slow {
    directory: Scratch,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    holds: AtomicBool,
    held: AtomicU32,
}

impl Slow {
    /// Mounts one that answers everything.
    pub fn new() -> Result<Self> {
        let directory = Scratch::new()?;
        let device = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .context("open /dev/fuse")?;
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let options = CString::new(options).context("options of the mount")?;
        mount(
            "slow",
            directory.path(),
            "fuse",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )
        .context("mount a file system of the tests' own")?;
        let state = Arc::<State>::default();
        let answering = state.clone();
        thread::spawn(move || answer(device, &answering));
        Ok(Self { directory, state })
    }

    /// Its file.
    #[must_use]
    pub fn file(&self) -> PathBuf {
        self.directory.join("file")
    }

    /// From now on nobody who reads its file or closes it gets an answer, until the guard is dropped: before those who wait are waited for.
    #[must_use]
    pub fn hold(&self) -> Holding<'_> {
        self.state.holds.store(true, Ordering::SeqCst);
        Holding(self)
    }
}

/// The owner of a file system does not answer.
#[derive(Debug)]
pub struct Holding<'s>(&'s Slow);

impl Holding<'_> {
    /// How many wait for an answer.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.0.state.held.load(Ordering::SeqCst)
    }
}

impl Drop for Holding<'_> {
    fn drop(&mut self) {
        self.0.state.holds.store(false, Ordering::SeqCst);
        // Whoever waits is let go with an error; a mount that is in use stays, which is no error here.
        let _busy = unmount(self.0.directory.path(), UnmountFlags::FORCE);
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let path = self.directory.path();
        let flags = UnmountFlags::FORCE.union(UnmountFlags::DETACH);
        if let Err(error) = unmount(path, flags) {
            eprintln!("cannot unmount {}: {error}", path.display());
        }
    }
}

/// Answers until the file system is unmounted.
fn answer(mut device: File, state: &State) {
    let mut request = vec![0; REQUEST_MAX];
    while let Ok(len) = device.read(&mut request) {
        let Some(header) = request.get(..len.min(HEADER)) else {
            return;
        };
        let number = |at: usize| {
            let bytes = header.get(at..at + 4).and_then(<[u8]>::first_chunk);
            bytes.copied().map_or(0, u32::from_ne_bytes)
        };
        let node = header.get(16..24).and_then(<[u8]>::first_chunk);
        let node = node.copied().map_or(ROOT, u64::from_ne_bytes);
        let opcode = number(4);
        let reply = match opcode {
            FORGET | INTERRUPT => continue,
            FLUSH | READ if state.holds.load(Ordering::SeqCst) => {
                state.held.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            INIT => Ok(init()),
            LOOKUP => Ok(entry()),
            GETATTR => Ok([vec![0; 16], attributes(node)].concat()),
            OPEN => Ok(vec![0; 16]),
            FLUSH | RELEASE => Ok(Vec::new()),
            _ => Err(ENOSYS),
        };
        let (error, body) = match reply {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let len = u32::try_from(16 + body.len()).unwrap_or(16);
        let mut packet = len.to_ne_bytes().to_vec();
        packet.extend(error.to_ne_bytes());
        packet.extend(header.get(8..16).unwrap_or_default());
        packet.extend(body);
        // Who asked may be gone.
        drop(device.write_all(&packet));
    }
}

/// `struct fuse_init_out` of version 7.31.
fn init() -> Vec<u8> {
    let mut body = vec![0; 64];
    for (at, number) in [(0, 7_u32), (4, 31), (20, 4096)] {
        if let Some(place) = body.get_mut(at..at + 4) {
            place.copy_from_slice(&number.to_ne_bytes());
        }
    }
    body
}

/// `struct fuse_entry_out` of the file.
fn entry() -> Vec<u8> {
    let mut body = 2_u64.to_ne_bytes().to_vec();
    body.resize(40, 0);
    body.extend(attributes(2));
    body
}

/// `struct fuse_attr`.
fn attributes(node: u64) -> Vec<u8> {
    let mode: u32 = if node == ROOT { 0o040_755 } else { 0o100_644 };
    let mut body = node.to_ne_bytes().to_vec();
    body.extend(SIZE.to_ne_bytes());
    body.resize(60, 0);
    body.extend(mode.to_ne_bytes());
    body.extend(1_u32.to_ne_bytes());
    body.resize(88, 0);
    body
}
