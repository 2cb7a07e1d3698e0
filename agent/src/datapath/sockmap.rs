//! Sockmaps of others on this host. Their programs move bytes from one local socket to another without a packet, so
//! that no `cgroup_skb` program sees them.
//!
//! Numbers and offsets are those of `include/uapi/linux/bpf.h`, Linux 6.12; they are ABI.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_GET_NEXT_KEY: i32 = 4;
const MAP_GET_NEXT_ID: i32 = 12;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const PROG_QUERY: i32 = 16;

/// `BPF_MAP_TYPE_SOCKMAP`, `BPF_MAP_TYPE_SOCKHASH`.
const SOCKMAPS: [u32; 2] = [15, 18];
/// `BPF_SK_SKB_STREAM_PARSER`, `BPF_SK_SKB_STREAM_VERDICT`, `BPF_SK_MSG_VERDICT`, `BPF_SK_SKB_VERDICT`.
const ATTACH_TYPES: [u32; 4] = [4, 5, 7, 38];
/// More maps than a host has; and more sockets of one than are looked at.
const MAPS_MAX: usize = 100_000;
const ENTRIES_MAX: usize = 65_536;
/// Longest key of a sockhash that is read. The kernel's own limit is 512 bytes (`MAX_BPF_STACK`).
const KEY_MAX: usize = 512;
/// `struct bpf_map_info` up to `name`.
const INFO_LEN: u32 = 40;

/// Of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    fd: i32,
    len: u32,
    info: u64,
}

/// Of `BPF_MAP_LOOKUP_ELEM`; of `BPF_MAP_GET_NEXT_KEY`, with the next key in place of the value.
#[repr(C)]
struct ElementAttr {
    fd: i32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A sockmap, or a sockhash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockmap {
    /// Its number.
    pub id: u32,
    /// Its name, up to 15 characters.
    pub name: String,
    /// Whether it has a program; `None` before Linux 5.17, which does not tell.
    pub has_programs: Option<bool>,
    /// Cookies of the sockets in it; `None` where its maker has left the kernel no room to tell them: values of 4
    /// bytes instead of 8.
    pub cookies: Option<BTreeSet<u64>>,
}

/// All sockmaps of this host. Needs `CAP_SYS_ADMIN`.
pub fn all() -> io::Result<Vec<Sockmap>> {
    let mut found = Vec::new();
    let mut id = 0;
    for _ in 0..MAPS_MAX {
        // start_id, next_id, open_flags
        let mut attr = [id, 0, 0];
        match bpf(MAP_GET_NEXT_ID, &mut attr) {
            Ok(_) => id = attr[1],
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
            Err(error) => return Err(error),
        }
        match open(id).and_then(|map| look(id, &map)) {
            Ok(map) => found.extend(map),
            // Gone since.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn open(id: u32) -> io::Result<OwnedFd> {
    let mut attr = [id, 0, 0];
    let fd = bpf(MAP_GET_FD_BY_ID, &mut attr)?;
    // SAFETY: the kernel has just opened it for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn look(id: u32, map: &OwnedFd) -> io::Result<Option<Sockmap>> {
    let mut info = [0_u8; INFO_LEN as usize];
    let mut attr = InfoAttr {
        fd: map.as_raw_fd(),
        len: INFO_LEN,
        info: address(&mut info),
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    let number = |offset: usize| {
        let bytes = info
            .get(offset..)
            .and_then(|bytes| bytes.first_chunk::<4>());
        bytes.copied().map_or(0, u32::from_ne_bytes)
    };
    // type, id, key_size, value_size, max_entries, map_flags, name
    if !SOCKMAPS.contains(&number(0)) {
        return Ok(None);
    }
    let name = info.get(24..).unwrap_or_default();
    let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
    let (key_len, value_len) = (number(8) as usize, number(12) as usize);
    Ok(Some(Sockmap {
        id,
        name: String::from_utf8_lossy(name).into_owned(),
        has_programs: has_programs(map),
        cookies: (value_len == size_of::<u64>() && key_len <= KEY_MAX).then(|| cookies(map)),
    }))
}

fn has_programs(map: &OwnedFd) -> Option<bool> {
    let mut any = false;
    for attach_type in ATTACH_TYPES {
        // target_fd, attach_type, query_flags, attach_flags, prog_ids (64 bits), prog_cnt, and what came later
        let fd = u32::try_from(map.as_raw_fd()).ok()?;
        let mut attr = [fd, attach_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        match bpf(PROG_QUERY, &mut attr) {
            Ok(_) => any |= attr[6] > 0,
            // Linux 5.17 knows BPF_SK_SKB_VERDICT too, which is younger than sockmaps.
            Err(_) => return None,
        }
    }
    Some(any)
}

fn cookies(map: &OwnedFd) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut key = [0_u8; KEY_MAX];
    let mut next = [0_u8; KEY_MAX];
    let mut first = true;
    for _ in 0..ENTRIES_MAX {
        let mut attr = ElementAttr {
            fd: map.as_raw_fd(),
            _pad: 0,
            // None for the first.
            key: if first { 0 } else { address(&mut key) },
            value: address(&mut next),
            flags: 0,
        };
        if bpf(MAP_GET_NEXT_KEY, &mut attr).is_err() {
            break;
        }
        (key, first) = (next, false);
        let mut cookie = [0_u64];
        attr.key = address(&mut key);
        attr.value = address(&mut cookie);
        // An empty place of an array is an error.
        if bpf(MAP_LOOKUP_ELEM, &mut attr).is_ok() {
            found.extend(cookie);
        }
    }
    found
}

fn address<T>(place: &mut [T]) -> u64 {
    place.as_mut_ptr().expose_provenance() as u64
}

/// `bpf(2)`. Places that `attr` names by address must be valid, and as long as the command needs.
fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    let len = size_of::<T>();
    // SAFETY: `attr` has `len` bytes, and the callers in this file let it name only places that are long enough.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), len) };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}
