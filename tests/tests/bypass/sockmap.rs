//! A redirection by sockmaps, as other programs make them: what a client's socket sends goes straight into the
//! receive queue of the server's socket.
//!
//! Source of all numbers and offsets: `include/uapi/linux/bpf.h`, Linux 6.12; they are ABI.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use musttls_tests::bpf::{Attr, lift_memlock_limit};

const MAP_CREATE: i32 = 0;
const MAP_UPDATE_ELEM: i32 = 2;
const PROG_LOAD: i32 = 5;
const PROG_ATTACH: i32 = 8;

/// `BPF_MAP_TYPE_SOCKMAP`.
const SOCKMAP: u32 = 15;
/// `BPF_PROG_TYPE_SK_MSG`, and `BPF_SK_MSG_VERDICT`, where it is attached.
const SK_MSG: u32 = 16;
const SK_MSG_VERDICT: u32 = 7;

/// A map of one socket.
#[derive(Debug)]
pub(crate) struct Sockmap(OwnedFd);

impl Sockmap {
    /// With values of `value_len` bytes: 4, or 8, in which the kernel tells cookies.
    pub(crate) fn new(value_len: u32) -> Result<Self> {
        lift_memlock_limit();
        let mut attr = Attr::default();
        attr.u32(0, SOCKMAP)
            .u32(4, 4)
            .u32(8, value_len)
            .u32(12, 1)
            .bytes(28, b"redirection");
        // SAFETY: the attributes hold no pointer, and the command returns a new descriptor.
        let fd = unsafe { attr.call_for_fd(MAP_CREATE) };
        fd.map(Self).context("make a sockmap (bpf(2))")
    }

    /// Puts `socket` in.
    pub(crate) fn put(&self, socket: &impl AsFd) -> Result<()> {
        let key = 0_u32;
        let value = i64::from(socket.as_fd().as_raw_fd());
        let mut attr = Attr::default();
        attr.fd(0, &self.0)
            .pointer(8, &raw const key)
            .pointer(16, &raw const value);
        // SAFETY: key and value live until the call returns.
        unsafe { attr.call(MAP_UPDATE_ELEM) }
            .context("put a socket into a sockmap")
            .map(drop)
    }

    /// From now on, what the sockets in this map send is received by the socket in `to`.
    pub(crate) fn redirect_to(&self, to: &Self) -> Result<()> {
        let map = to.0.as_raw_fd().to_ne_bytes();
        let [a, b, c, d] = map;
        let program: [[u8; 8]; 7] = [
            // r2 = to, r3 = 0 (key), r4 = BPF_F_INGRESS; bpf_msg_redirect_map(); exit
            [0x18, 0x12, 0, 0, a, b, c, d],
            [0; 8],
            [0xb7, 3, 0, 0, 0, 0, 0, 0],
            [0xb7, 4, 0, 0, 1, 0, 0, 0],
            [0x85, 0, 0, 0, 60, 0, 0, 0],
            [0xb7, 0, 0, 0, 1, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        let license = c"GPL";
        let mut attr = Attr::default();
        attr.u32(0, SK_MSG)
            .u32(4, 7)
            .pointer(8, program.as_ptr())
            .pointer(16, license.as_ptr())
            .u32(68, SK_MSG_VERDICT);
        // SAFETY: program and licence live until the call returns, and the command returns a new descriptor.
        let program = unsafe { attr.call_for_fd(PROG_LOAD) }.context("load an sk_msg program")?;
        let mut attr = Attr::default();
        attr.fd(0, &self.0).fd(4, &program).u32(8, SK_MSG_VERDICT);
        // SAFETY: the attributes hold no pointer.
        unsafe { attr.call(PROG_ATTACH) }
            .context("attach an sk_msg program")
            .map(drop)
    }
}
