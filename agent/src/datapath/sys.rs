//! `bpf(2)`, for the commands that aya has no call for.
//!
//! Numbers and offsets are those of `include/uapi/linux/bpf.h`, Linux 6.12; they are ABI.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

const MAP_LOOKUP_ELEM: i32 = 1;
const MAP_DELETE_ELEM: i32 = 3;
const MAP_GET_NEXT_KEY: i32 = 4;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const MAP_GET_NEXT_ID: i32 = 12;
const MAP_GET_FD_BY_ID: i32 = 14;
const OBJ_GET_INFO_BY_FD: i32 = 15;
const PROG_QUERY: i32 = 16;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;

/// Longest key that is read. The kernel's own limit is that of a sockhash (`MAX_BPF_STACK`).
const KEY_MAX: usize = 512;
/// How much is read of `struct bpf_map_info`, `bpf_prog_info` and `bpf_link_info`: a map's up to `name`.
const INFO_LEN: u32 = 40;

/// A key: as many bytes of it as the map's keys have.
pub(super) type Key = [u8; KEY_MAX];

/// A map of any type.
pub(super) struct Map {
    fd: OwnedFd,
    /// Its `enum bpf_map_type`.
    pub(super) kind: u32,
    /// Up to 15 characters.
    pub(super) name: String,
    value_len: u32,
}

/// Of the commands for one element of a map; of `BPF_MAP_GET_NEXT_KEY`, with the next key in place of the value.
#[repr(C)]
struct ElementAttr {
    fd: i32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Of `BPF_OBJ_GET_INFO_BY_FD`.
#[repr(C)]
struct InfoAttr {
    fd: i32,
    len: u32,
    info: u64,
}

impl Map {
    /// The map with this number. Needs `CAP_SYS_ADMIN`.
    pub(super) fn by_id(id: u32) -> io::Result<Self> {
        let mut attr = [id, 0, 0];
        // SAFETY: it names no place.
        let fd = unsafe { bpf(MAP_GET_FD_BY_ID, &mut attr) }?;
        // SAFETY: the kernel has just opened it for this call.
        Self::of(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// The map that is pinned at `path`.
    pub(super) fn pinned(path: &Path) -> io::Result<Self> {
        Self::of(pinned(path)?)
    }

    fn of(fd: OwnedFd) -> io::Result<Self> {
        let info = Info::of(fd.as_fd())?;
        let number = |offset| info.number(offset);
        // type, id, key_size, value_size, max_entries, map_flags, name
        if number(8) as usize > KEY_MAX {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("its keys have {} bytes", number(8)),
            ));
        }
        let name = info.0.get(24..).unwrap_or_default();
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(Self {
            fd,
            kind: number(0),
            name: String::from_utf8_lossy(name).into_owned(),
            value_len: number(12),
        })
    }

    /// Whether [`Self::number`] may be asked.
    pub(super) const fn holds_numbers(&self) -> bool {
        self.value_len == 8
    }

    /// The key behind `key`, or the first one.
    pub(super) fn next_key(&self, key: Option<&Key>) -> io::Result<Key> {
        let mut next = [0; KEY_MAX];
        let mut key = key.copied();
        let mut attr = ElementAttr {
            fd: self.fd.as_raw_fd(),
            _pad: 0,
            key: key.as_mut().map_or(0, |key| address(key)),
            value: address(&mut next),
            flags: 0,
        };
        // SAFETY: both places have room for the longest key.
        unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) }?;
        Ok(next)
    }

    /// The value of `key`, of 8 bytes.
    pub(super) fn number(&self, key: &Key) -> io::Result<u64> {
        if !self.holds_numbers() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (mut key, mut value) = (*key, [0_u64]);
        let mut attr = ElementAttr {
            fd: self.fd.as_raw_fd(),
            _pad: 0,
            key: address(&mut key),
            value: address(&mut value),
            flags: 0,
        };
        // SAFETY: the key's place has room for the longest, the value's for the 8 bytes that values have.
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) }?;
        Ok(value[0])
    }

    /// Whether `key` is there.
    pub(super) fn contains(&self, key: &Key) -> io::Result<bool> {
        let mut key = *key;
        let mut value = vec![0_u64; (self.value_len as usize).div_ceil(8)];
        let mut attr = ElementAttr {
            fd: self.fd.as_raw_fd(),
            _pad: 0,
            key: address(&mut key),
            value: value.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the key's place has room for the longest, the value's for as many bytes as values have.
        match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes out `key`; it is no error if it is not there.
    pub(super) fn delete(&self, key: &Key) -> io::Result<()> {
        let mut key = *key;
        let mut attr = ElementAttr {
            fd: self.fd.as_raw_fd(),
            _pad: 0,
            key: address(&mut key),
            value: 0,
            flags: 0,
        };
        // SAFETY: the key's place has room for the longest.
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// How many programs of `attach_type` it has (`BPF_PROG_QUERY`, of sockmaps since Linux 5.17).
    pub(super) fn programs(&self, attach_type: u32) -> io::Result<u32> {
        let fd = u32::try_from(self.fd.as_raw_fd()).unwrap_or_default();
        // target_fd, attach_type, query_flags, attach_flags, prog_ids (64 bits), prog_cnt, and what came later
        let mut attr = [fd, attach_type, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        // SAFETY: `prog_ids` names no place: only their number is asked for.
        unsafe { bpf(PROG_QUERY, &mut attr) }?;
        Ok(attr[6])
    }
}

/// The beginning of what the kernel tells of a map, a program or a link.
struct Info([u8; INFO_LEN as usize]);

impl Info {
    fn of(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let mut info = [0; INFO_LEN as usize];
        let mut attr = InfoAttr {
            fd: fd.as_raw_fd(),
            len: INFO_LEN,
            info: address(&mut info),
        };
        // SAFETY: `info` has the length that `attr` gives it, and asks for no list.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
        Ok(Self(info))
    }

    fn number(&self, offset: usize) -> u32 {
        let bytes = self.0.get(offset..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(0, u32::from_ne_bytes)
    }
}

/// What the kernel tells of a link to a cgroup.
pub(super) struct LinkInfo {
    pub(super) id: u32,
    /// Number of the program.
    pub(super) program: u32,
    /// Whether it is attached: the number of the cgroup is not 0.
    pub(super) is_attached: bool,
}

/// Asks for a link (Linux 5.8).
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // type, id, prog_id, padding, cgroup_id (64 bits)
    let info = Info::of(link)?;
    Ok(LinkInfo {
        id: info.number(4),
        program: info.number(8),
        is_attached: info.number(16) != 0 || info.number(20) != 0,
    })
}

/// The number of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // type, id
    Ok(Info::of(program)?.number(4))
}

/// Attaches `program` to `cgroup`, beside what is there, for as long as the link is open or pinned (Linux 5.7).
pub(super) fn create_link(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let number = |fd: BorrowedFd<'_>| u32::try_from(fd.as_raw_fd()).unwrap_or_default();
    // prog_fd, target_fd, attach_type, flags
    let mut attr = [number(program), number(cgroup), attach_type, 0];
    // SAFETY: it names no place.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just made it for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins what `fd` is at `path`.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let mut path = CString::new(path.as_os_str().as_bytes())?.into_bytes_with_nul();
    // pathname, bpf_fd and file_flags: on machines of either byte order the descriptor comes first
    let [a, b, c, d] = fd.as_raw_fd().to_ne_bytes();
    let mut attr = [
        address(&mut path),
        u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]),
    ];
    // SAFETY: `path` is a string with its NUL.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// The number of the map behind the one numbered `id`; `NotFound` behind the last. Needs `CAP_SYS_ADMIN`.
pub(super) fn next_map(id: u32) -> io::Result<u32> {
    // start_id, next_id, open_flags
    let mut attr = [id, 0, 0];
    // SAFETY: it names no place.
    unsafe { bpf(MAP_GET_NEXT_ID, &mut attr) }?;
    Ok(attr[1])
}

/// Opens what is pinned at `path`.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let mut path = CString::new(path.as_os_str().as_bytes())?.into_bytes_with_nul();
    // pathname, bpf_fd and file_flags
    let mut attr = [address(&mut path), 0];
    // SAFETY: `path` is a string with its NUL.
    let fd = unsafe { bpf(OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just opened it for this call.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts `program` in the place of the one that `link` attaches, in one step (Linux 5.7, `cgroup_bpf_replace`).
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // link_fd, new_prog_fd, flags, old_prog_fd
    let mut attr = [link.as_raw_fd(), program.as_raw_fd(), 0, 0];
    // SAFETY: it names no place.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Calls `bpf(2)`.
///
/// # Safety
/// Each place that `attr` names by its address must be valid for the call, and as long as the command reads or writes there.
unsafe fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    let len = size_of::<T>();
    // SAFETY: `attr` has `len` bytes; for what it names, the caller answers.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), len) };
    match i32::try_from(answer) {
        Ok(answer) if answer >= 0 => Ok(answer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The address of a place, as attributes hold it.
fn address<T>(place: &mut [T]) -> u64 {
    place.as_mut_ptr().expose_provenance() as u64
}
