//! A tracing program, where the kernel allows it: who connects to a server's Unix socket. Nothing is refused here,
//! and the gate does not need it.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
};
use aya_ebpf::helpers::{bpf_get_current_comm, generated::bpf_ktime_get_ns};
use aya_ebpf::programs::FEntryContext;
use musttls_common::event::{Event, Kind, UnixPeer};

use crate::emit;
use crate::maps::UNIX_LISTENERS;

/// Takes one `security_unix_stream_connect(sock, other, newsk)`: `other` is the listener.
#[inline(always)]
pub(crate) fn on_connect(ctx: &FEntryContext) {
    let listener: *mut c_void = ctx.arg(1);
    let Some(inode) = UNIX_LISTENERS.get(listener) else {
        return;
    };
    let inode = *inode;
    let mut both = (Event::default(), UnixPeer::default());
    let (event, peer) = (&mut both.0, &mut both.1);
    event.kind = Kind::Unix as u8;
    event.abi = musttls_common::ABI_VERSION;
    event.cookie = inode;
    // SAFETY: the helper has no requirements.
    event.ktime_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above.
    peer.pid = (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32;
    // SAFETY: as above.
    peer.uid = unsafe { bpf_get_current_uid_gid() } as u32;
    // SAFETY: as above.
    peer.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    peer.comm = bpf_get_current_comm().unwrap_or_default();
    emit::event_with(&both);
}
