//! The calls of `bpf(2)` that the tests and the measurements need: the gate's programs by name and what the kernel
//! tells of them, an empty program to compare with, what others can do to a link, the kernel's own clock around each
//! program.
//!
//! Source of all numbers and offsets: `include/uapi/linux/bpf.h`, Linux 6.12; they are ABI.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, setrlimit};

const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_TEST_RUN: i32 = 10;
const PROG_GET_NEXT_ID: i32 = 11;
const MAP_GET_NEXT_ID: i32 = 12;
const PROG_GET_FD_BY_ID: i32 = 13;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const OBJ_GET: i32 = 7;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;
const LINK_DETACH: i32 = 34;
const ENABLE_STATS: i32 = 32;

/// `BPF_PROG_TYPE_CGROUP_SKB`.
const CGROUP_SKB: u32 = 8;
/// `BPF_PROG_TYPE_SOCK_OPS` and `BPF_CGROUP_SOCK_OPS`.
const SOCK_OPS: u32 = 13;
const CGROUP_SOCK_OPS: u32 = 3;
/// Reads the clock 100,000 times in `BPF_SOCK_OPS_TCP_LISTEN_CB` (11), some milliseconds; else nothing.
#[rustfmt::skip]
const SLOW_TO_LISTEN: [u8; 64] = [
    0x61, 0x12, 0, 0, 0, 0, 0, 0,             // r2 = ctx->op
    0x55, 0x02, 4, 0, 11, 0, 0, 0,            // if r2 != 11 goto the end
    0xb7, 0x06, 0, 0, 0, 0, 0, 0,             // r6 = 0
    0x85, 0, 0, 0, 5, 0, 0, 0,                // again: call bpf_ktime_get_ns
    0x07, 0x06, 0, 0, 1, 0, 0, 0,             // r6 += 1
    0x55, 0x06, 0xfd, 0xff, 0xa0, 0x86, 1, 0, // if r6 != 100000 goto again
    0xb7, 0, 0, 0, 1, 0, 0, 0,                // the end: r0 = 1
    0x95, 0, 0, 0, 0, 0, 0, 0,                // exit
];
/// Asks for the network namespace of a socket, and ends.
#[rustfmt::skip]
const NAMESPACE: [u8; 24] = [
    0x85, 0, 0, 0, 122, 0, 0, 0, // call bpf_get_netns_cookie
    0xb7, 0, 0, 0, 1, 0, 0, 0,   // r0 = 1
    0x95, 0, 0, 0, 0, 0, 0, 0,   // exit
];
/// `r0 = 1; exit`: pass.
const EMPTY: [u8; 16] = [0xb7, 0, 0, 0, 1, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
/// More programs than any machine of a benchmark has.
const PROGRAMS_MAX: usize = 10_000;
/// `struct bpf_prog_info` up to `attach_btf_obj_id`. An older kernel fills what it knows.
const INFO_LEN: usize = 224;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
const PERCPU_ARRAY: u32 = 6;
/// `struct bpf_map_info` up to `name`.
const MAP_INFO_LEN: usize = 40;
/// Offset of its `name`, 16 bytes.
const NAME: usize = 64;
/// Offset of its `verified_insns`, which Linux 5.16 brought.
const VERIFIED: usize = 216;

/// Where a `cgroup_skb` program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// `BPF_CGROUP_INET_INGRESS`.
    Ingress,
    /// `BPF_CGROUP_INET_EGRESS`.
    Egress,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    const fn number(self) -> u32 {
        match self {
            Self::Ingress => 0,
            Self::Egress => 1,
        }
    }

    /// The gate's program there.
    #[must_use]
    pub const fn of_gate(self) -> &'static str {
        match self {
            Self::Ingress => "on_ingress",
            Self::Egress => "on_egress",
        }
    }
}

/// How often a program ran while statistics were on, and how long in all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Runs {
    /// Nanoseconds.
    pub ns: u64,
    /// Packets.
    pub count: u64,
}

impl Runs {
    /// What came since `before`.
    #[must_use]
    pub const fn since(self, before: Self) -> Self {
        Self {
            ns: self.ns.saturating_sub(before.ns),
            count: self.count.saturating_sub(before.count),
        }
    }
}

/// Whether `sock_ops` programs may ask the kernel for a socket's network namespace (Linux 5.15).
pub fn tells_namespaces() -> Result<bool> {
    match Program::of_sockets(&NAMESPACE, b"namespace") {
        Ok(_) => Ok(true),
        // The verifier does not know the helper, or not for such programs.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
            Ok(false)
        }
        Err(error) => Err(error).context("load a sock_ops program (bpf(2))"),
    }
}

/// A loaded program.
#[derive(Debug)]
pub struct Program(OwnedFd);

impl Program {
    /// Loads a program that does nothing but pass.
    pub fn empty(hook: Hook) -> Result<Self> {
        lift_memlock_limit();
        let license = c"GPL";
        let mut attr = Attr::default();
        attr.u32(0, CGROUP_SKB)
            .u32(4, 2)
            .pointer(8, EMPTY.as_ptr())
            .pointer(16, license.as_ptr())
            .bytes(48, b"bench_empty")
            .u32(68, hook.number());
        // SAFETY: the instructions and the licence are constants; the kernel only reads them.
        let fd = unsafe { attr.call_for_fd(PROG_LOAD) };
        fd.map(Self)
            .context("load an empty cgroup_skb program (bpf(2))")
    }

    /// Loads a program that makes `listen(2)` slow, between the moment when connections may come and the callback for it that
    /// programs of cgroups further up get.
    pub fn slow_to_listen() -> Result<Self> {
        Self::of_sockets(&SLOW_TO_LISTEN, b"slow_to_listen")
            .context("load a sock_ops program (bpf(2))")
    }

    fn of_sockets(instructions: &[u8], name: &[u8]) -> io::Result<Self> {
        lift_memlock_limit();
        let license = c"GPL";
        let mut attr = Attr::default();
        attr.u32(0, SOCK_OPS)
            .u32(4, u32::try_from(instructions.len() / 8).unwrap_or(0))
            .pointer(8, instructions.as_ptr())
            .pointer(16, license.as_ptr())
            .bytes(48, name);
        // SAFETY: the instructions and the licence live until the call is over; the kernel only reads them.
        unsafe { attr.call_for_fd(PROG_LOAD) }.map(Self)
    }

    /// The youngest program called `name`.
    pub fn find(name: &str) -> Result<Self> {
        let mut found = None;
        for program in Self::all() {
            if program.info()?.name() == name.as_bytes() {
                found = Some(program);
            }
        }
        found.with_context(|| format!("the kernel has no program {name}"))
    }

    /// All that are loaded, the oldest first.
    fn all() -> impl Iterator<Item = Self> {
        let mut id = 0;
        let ids = (0..PROGRAMS_MAX).map_while(move |_| {
            let mut attr = Attr::default();
            attr.u32(0, id);
            // SAFETY: the attributes hold no pointer.
            unsafe { attr.call(PROG_GET_NEXT_ID) }.ok()?;
            id = attr.read_u32(4);
            Some(id)
        });
        // One that has gone meanwhile has no descriptor.
        ids.filter_map(|id| {
            let mut attr = Attr::default();
            attr.u32(0, id);
            // SAFETY: the attributes hold no pointer.
            let fd = unsafe { attr.call_for_fd(PROG_GET_FD_BY_ID) };
            fd.map(Self).ok()
        })
    }

    fn info(&self) -> Result<Info> {
        let mut info = [0; INFO_LEN];
        let mut attr = Attr::default();
        attr.fd(0, &self.0)
            .u32(4, u32::try_from(INFO_LEN)?)
            .pointer(8, info.as_mut_ptr());
        // SAFETY: the kernel writes at most the length given, which is that of `info`; the lists that
        // the record could point to have length 0.
        unsafe { attr.call(OBJ_GET_INFO_BY_FD) }
            .context("ask for what the kernel tells of a program")?;
        // The kernel puts there how much it has filled.
        let len = usize::try_from(attr.read_u32(4))?;
        Ok(Info { bytes: info, len })
    }

    /// Its statistics.
    pub fn runs(&self) -> Result<Runs> {
        let info = self.info()?;
        Ok(Runs {
            ns: info.u64(192),
            count: info.u64(200),
        })
    }

    /// Runs it `repeat` times on `frame` and returns the mean time of a run, which the kernel tells in
    /// whole nanoseconds.
    pub fn test_run(&self, frame: &[u8], repeat: u32) -> Result<u32> {
        let mut attr = Attr::default();
        attr.fd(0, &self.0)
            .u32(8, u32::try_from(frame.len())?)
            .pointer(16, frame.as_ptr())
            .u32(32, repeat);
        // SAFETY: the kernel reads `frame`, of the length given, and has no room to write to.
        unsafe { attr.call(PROG_TEST_RUN) }.context("run a program (BPF_PROG_TEST_RUN)")?;
        Ok(attr.read_u32(36))
    }

    /// Attaches it to `cgroup`, beside what is there, until the link is dropped.
    pub fn attach(&self, cgroup: &File, hook: Hook) -> Result<Link> {
        self.attach_at(cgroup, hook.number())
    }

    /// The same for one that takes the callbacks of sockets.
    pub fn attach_to_sockets(&self, cgroup: &File) -> Result<Link> {
        self.attach_at(cgroup, CGROUP_SOCK_OPS)
    }

    fn attach_at(&self, cgroup: &File, at: u32) -> Result<Link> {
        let mut attr = Attr::default();
        attr.fd(0, &self.0).fd(4, cgroup).u32(8, at);
        // SAFETY: the attributes hold no pointer.
        let fd = unsafe { attr.call_for_fd(LINK_CREATE) };
        fd.map(Link).context("attach a program to a cgroup")
    }
}

/// `struct bpf_prog_info`.
struct Info {
    bytes: [u8; INFO_LEN],
    /// How much of it this kernel knows, in bytes.
    len: usize,
}

impl Info {
    fn name(&self) -> &[u8] {
        let field = self.bytes.get(NAME..NAME + 16).unwrap_or_default();
        field.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    fn u64(&self, offset: usize) -> u64 {
        let field = self.bytes.get(offset..).and_then(<[u8]>::first_chunk);
        field.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    fn verified(&self) -> Option<u32> {
        let field = self.bytes.get(VERIFIED..).and_then(<[u8]>::first_chunk);
        let told = self.len >= VERIFIED + size_of::<u32>();
        field
            .filter(|_| told)
            .map(|bytes| u32::from_ne_bytes(*bytes))
    }
}

/// Each loaded program, by the 15 bytes of its name that the kernel keeps, and how many instructions the verifier
/// followed before it took it. Linux before 5.16 does not tell.
pub fn verified_instructions() -> Result<BTreeMap<String, Option<u32>>> {
    Program::all()
        .map(|program| {
            let info = program.info()?;
            let name = String::from_utf8_lossy(info.name()).into_owned();
            Ok((name, info.verified()))
        })
        .collect()
}

/// A map of the gate, as others with root's rights can get at it.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    name: [u8; 16],
    /// Of one element: in an array for each CPU, of all of them.
    value_len: usize,
}

impl Map {
    /// The youngest map called `name`.
    pub fn find(name: &str) -> Result<Self> {
        let mut id = 0;
        let mut found = None;
        for _ in 0..PROGRAMS_MAX {
            let mut attr = Attr::default();
            attr.u32(0, id);
            // SAFETY: the attributes hold no pointer.
            if unsafe { attr.call(MAP_GET_NEXT_ID) }.is_err() {
                break;
            }
            id = attr.read_u32(4);
            let mut attr = Attr::default();
            attr.u32(0, id);
            // SAFETY: the attributes hold no pointer.
            let fd = unsafe { attr.call_for_fd(MAP_GET_FD_BY_ID) };
            // One that has gone meanwhile has no descriptor.
            if let Ok(fd) = fd {
                let map = Self::of(fd)?;
                if map.name.starts_with(&[name.as_bytes(), &[0]].concat()) {
                    found = Some(map);
                }
            }
        }
        found.with_context(|| format!("the kernel has no map {name}"))
    }

    fn of(fd: OwnedFd) -> Result<Self> {
        let mut info = [0_u8; MAP_INFO_LEN];
        let mut attr = Attr::default();
        attr.fd(0, &fd)
            .u32(4, u32::try_from(MAP_INFO_LEN)?)
            .pointer(8, info.as_mut_ptr());
        // SAFETY: the kernel writes at most the length given, which is that of `info`.
        unsafe { attr.call(OBJ_GET_INFO_BY_FD) }
            .context("ask for what the kernel tells of a map")?;
        // type, id, key_size, value_size, max_entries, map_flags, name
        let number = |offset: usize| {
            let field = info.get(offset..).and_then(<[u8]>::first_chunk);
            field.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        let name = info.get(24..).and_then(<[u8]>::first_chunk);
        let cpus = if number(0) == PERCPU_ARRAY {
            possible_cpus()?
        } else {
            1
        };
        Ok(Self {
            value_len: usize::try_from(number(12))?.next_multiple_of(8) * cpus,
            name: *name.context("a map without a name")?,
            fd,
        })
    }

    /// An entry of an array; of all CPUs, one behind the other, where each has its own. Lengths are multiples of 8.
    pub fn get(&self, index: u32) -> Result<Vec<u8>> {
        let mut value = vec![0_u8; self.value_len];
        let mut attr = Attr::default();
        attr.fd(0, &self.fd)
            .pointer(8, &raw const index)
            .pointer(16, value.as_mut_ptr());
        // SAFETY: key and value live until the call is over, and have the length of the map's.
        unsafe { attr.call(MAP_LOOKUP_ELEM) }.context("read a map")?;
        Ok(value)
    }

    /// Writes it.
    pub fn set(&self, index: u32, value: &[u8]) -> Result<()> {
        anyhow::ensure!(value.len() == self.value_len, "{} bytes", value.len());
        let mut attr = Attr::default();
        attr.fd(0, &self.fd)
            .pointer(8, &raw const index)
            .pointer(16, value.as_ptr());
        // SAFETY: as in `get`.
        unsafe { attr.call(MAP_UPDATE_ELEM) }
            .context("write a map")
            .map(drop)
    }
}

/// How many CPUs a map has values for (`num_possible_cpus`).
fn possible_cpus() -> Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit(['-', ',']).next().unwrap_or_default();
    Ok(1 + last
        .parse::<usize>()
        .with_context(|| format!("the possible CPUs are `{text}`"))?)
}

/// A program's place at a hook. Closing it detaches the program, unless it is pinned.
#[derive(Debug)]
pub struct Link(OwnedFd);

impl Link {
    /// One that is pinned at `path`.
    pub fn pinned(path: &Path) -> Result<Self> {
        let name = CString::new(path.as_os_str().as_bytes())?;
        let mut attr = Attr::default();
        attr.pointer(0, name.as_ptr());
        // SAFETY: the path is a string with its NUL, which lives until the call returns.
        let fd = unsafe { attr.call_for_fd(OBJ_GET) };
        fd.map(Self)
            .with_context(|| format!("open the link at {}", path.display()))
    }

    /// Detaches the program for good (Linux 5.9).
    pub fn detach(&self) -> Result<()> {
        let mut attr = Attr::default();
        attr.fd(0, &self.0);
        // SAFETY: the attributes hold no pointer.
        unsafe { attr.call(LINK_DETACH) }
            .context("detach a program")
            .map(drop)
    }

    /// Puts `program` in the place of the one that is there.
    pub fn replace(&self, program: &Program) -> Result<()> {
        let mut attr = Attr::default();
        attr.fd(0, &self.0).fd(4, &program.0);
        // SAFETY: the attributes hold no pointer.
        unsafe { attr.call(LINK_UPDATE) }
            .context("replace a program")
            .map(drop)
    }
}

/// The kernel takes the time of every program as long as this lives (Linux 5.8).
#[derive(Debug)]
pub struct Stats(#[expect(dead_code, reason = "closing it ends the statistics")] OwnedFd);

impl Stats {
    /// Turns them on.
    pub fn enable() -> Result<Self> {
        // SAFETY: the attributes hold no pointer; type 0 is BPF_STATS_RUN_TIME.
        let fd = unsafe { Attr::default().call_for_fd(ENABLE_STATS) };
        fd.map(Self).context("enable program statistics")
    }
}

/// Before Linux 5.11 maps and programs count against it. A kernel that needs it and does not allow it says so later.
pub fn lift_memlock_limit() {
    let limit = Rlimit {
        current: None,
        maximum: None,
    };
    if let Err(error) = setrlimit(Resource::Memlock, limit) {
        println!("RLIMIT_MEMLOCK stays as it is: {error}");
    }
}

/// `union bpf_attr`: zeros beyond what a command knows are allowed.
#[repr(align(8))]
#[derive(Debug)]
pub struct Attr([u8; 128]);

impl Default for Attr {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl Attr {
    /// Puts `bytes` at `offset`.
    pub fn bytes(&mut self, offset: usize, bytes: &[u8]) -> &mut Self {
        for (place, byte) in self.0.iter_mut().skip(offset).zip(bytes) {
            *place = *byte;
        }
        self
    }

    /// Puts a number there.
    pub fn u32(&mut self, offset: usize, value: u32) -> &mut Self {
        self.bytes(offset, &value.to_ne_bytes())
    }

    /// Puts the number of a descriptor there.
    pub fn fd(&mut self, offset: usize, fd: &impl AsFd) -> &mut Self {
        self.bytes(offset, &fd.as_fd().as_raw_fd().to_ne_bytes())
    }

    /// Puts a pointer there.
    pub fn pointer<T>(&mut self, offset: usize, pointer: *const T) -> &mut Self {
        self.bytes(offset, &pointer.expose_provenance().to_ne_bytes())
    }

    fn read_u32(&self, offset: usize) -> u32 {
        let field = self.0.get(offset..).and_then(<[u8]>::first_chunk);
        field.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    /// Calls `bpf(2)`; what it returns if it is no error.
    ///
    /// # Safety
    /// The pointers in the attributes must be good for what `command` does with them.
    pub unsafe fn call(&mut self, command: i32) -> io::Result<i32> {
        // SAFETY: the kernel reads and writes the attributes, of the length given; the caller answers
        // for the pointers in them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                self.0.as_mut_ptr(),
                size_of::<Self>(),
            )
        };
        match i32::try_from(result) {
            Ok(result @ 0..) => Ok(result),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Calls it for a descriptor.
    ///
    /// # Safety
    /// As [`Self::call`]; and `command` must be one that returns a new descriptor.
    pub unsafe fn call_for_fd(&mut self, command: i32) -> io::Result<OwnedFd> {
        // SAFETY: the caller answers for it.
        let fd = unsafe { self.call(command) }?;
        // SAFETY: the kernel has just made the descriptor for this process, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
