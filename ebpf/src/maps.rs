//! Every map: who writes it, who reads it, what an entry costs, and what happens when it is full.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf};
use aya_ebpf::helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use musttls_common::counter::{COUNTERS as COUNTER_COUNT, Mark};
use musttls_common::event::{Event, Login};
use musttls_common::judge::Segment;
use musttls_common::policy::{
    MAX_CIPHER_ENTRIES, MAX_NETWORK_ENTRIES, MAX_RULES, MAX_SERVERS, MAX_USER_ENTRIES, PolicyRoot,
    RuleSet, RuleTimes, ServerPolicy, SlotAddress, SlotUser, Walk,
};
use musttls_common::proxy::{HeaderReader, WINDOW};
use musttls_common::session::{Listener, Place, SocketRecord};

use crate::early::Early;

/// `BPF_F_CLONE` (`include/uapi/linux/bpf.h`, Linux 5.4): an accepted socket gets a copy of its
/// listener's storage.
const BPF_F_CLONE: usize = 1 << 9;

/// Socket storage with flags of our own: the wrapper of aya-ebpf has neither `BPF_F_CLONE` nor access
/// from `cgroup_skb`, `sock_ops` and tracing programs. The layout is what the loader reads from BTF.
#[repr(C)]
pub(crate) struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
}

// SAFETY: the fields are never read; the loader patches the static into a map reference.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
        }
    }

    const fn as_ptr(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }

    /// The value on socket `sk`, which is not null.
    #[inline(always)]
    pub(crate) fn get(&self, sk: *mut c_void) -> Option<&mut T> {
        // SAFETY: the verifier has seen that `sk` is a socket; a value that is found lives until the
        // program ends (RCU), and its bytes are plain numbers that several programs may write.
        unsafe {
            bpf_sk_storage_get(self.as_ptr(), sk, ptr::null_mut(), 0)
                .cast::<T>()
                .as_mut()
        }
    }

    /// The value on socket `sk`, made of zeros if there is none; `None` when memory is short.
    #[inline(always)]
    pub(crate) fn get_or_create(&self, sk: *mut c_void) -> Option<&mut T> {
        let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        // SAFETY: as in `get`.
        unsafe {
            bpf_sk_storage_get(self.as_ptr(), sk, ptr::null_mut(), flags)
                .cast::<T>()
                .as_mut()
        }
    }

    /// Removes the value from socket `sk`.
    #[inline(always)]
    pub(crate) fn delete(&self, sk: *mut c_void) {
        // SAFETY: as in `get`. The only error is that there is no value.
        let _absent = unsafe { bpf_sk_storage_delete(self.as_ptr(), sk) };
    }
}

/// The record of each listener and session.
///
/// Writer: all programs; the agent, for listeners and for sessions older than the gate. Readers: all programs. Entry: 232 bytes and about
/// 80 of the kernel's, charged to the socket (`net.core.optmem_max`). Full: the kernel does not accept
/// the connection.
#[btf_map]
pub(crate) static SOCKETS: SocketStorage<
    SocketRecord,
    { BPF_F_NO_PREALLOC as usize | BPF_F_CLONE },
> = SocketStorage::new();

/// Listening Unix sockets of servers: their inode numbers.
///
/// Writer: agent. Reader: `unix`. Entry: as above.
#[btf_map]
pub(crate) static UNIX_LISTENERS: SocketStorage<u64, { BPF_F_NO_PREALLOC as usize }> =
    SocketStorage::new();

/// Programs that `on_ingress` calls.
///
/// Writer: agent, before it attaches the gate. Readers: `ingress`, `proxy`, `floor`, `early`. Empty: what they would judge is held.
#[btf_map]
pub(crate) static INGRESS: ProgramArray<8> = ProgramArray::new();
/// `x_ingress` in [`INGRESS`].
pub(crate) const INGRESS_X: u32 = 0;
/// `on_proxy` in [`INGRESS`].
pub(crate) const INGRESS_PROXY: u32 = 1;
/// `on_login` in [`INGRESS`].
pub(crate) const INGRESS_LOGIN: u32 = 2;
/// `on_client_hello` in [`INGRESS`].
pub(crate) const INGRESS_CLIENT_HELLO: u32 = 3;
/// `on_third_ack` in [`INGRESS`].
pub(crate) const INGRESS_THIRD_ACK: u32 = 4;
/// `on_early_login` in [`INGRESS`].
pub(crate) const INGRESS_EARLY_LOGIN: u32 = 5;
/// `on_early_end` in [`INGRESS`].
pub(crate) const INGRESS_EARLY_END: u32 = 6;
/// `on_older` in [`INGRESS`].
pub(crate) const INGRESS_OLDER: u32 = 7;

/// Programs that `on_egress` calls. A map of its own, because all programs of one have one attach type.
///
/// Writer: agent, before it attaches the gate. Readers: `egress`, `floor`. Empty: what they would read is held.
#[btf_map]
pub(crate) static EGRESS: ProgramArray<3> = ProgramArray::new();
/// `x_egress` in [`EGRESS`].
pub(crate) const EGRESS_X: u32 = 0;
/// `on_answer` in [`EGRESS`].
pub(crate) const EGRESS_ANSWER: u32 = 1;
/// `on_server_hello` in [`EGRESS`].
pub(crate) const EGRESS_SERVER_HELLO: u32 = 2;

/// What the agent found out about listeners that the gate has asked about, by cookie: those that begin to listen while it is on,
/// and others at their first packet.
///
/// Writer: agent; `session`, for what a greeting has told. Readers: `ingress`; `session`, which moves it to the listener's record. Entry: 16 bytes; 4,096
/// entries, 0.4 MB. Full: the oldest is dropped; its listener stays pending.
#[btf_map]
pub(crate) static LISTENERS: LruHashMap<u64, Listener, 4096> = LruHashMap::new();

/// Where servers listen with sockets that the agent has no descriptor of (MPTCP, SMC) or may not touch (`yama.ptrace_scope` 3). Each
/// place has an entry for any namespace, and others for those whose cookie is known: what is covered there, or that nothing is.
///
/// Writer: agent. Readers: `ingress`, `session`, for listeners that are not named by their cookie. Entry: 40 bytes; 512. Full: the
/// listener stays pending.
#[btf_map]
pub(crate) static PLACES: HashMap<Place, Listener, 512> = HashMap::new();

/// Denied sessions that wait for the agent's refusal, by cookie: the truth of which events are the hint.
///
/// Writer: `emit` adds; the agent and `session` (at close) remove. Reader: agent. Entry: 128 bytes; 16,384
/// entries, 3.1 MB. Full: the session stays denied and is counted in `HeldFull`.
#[btf_map]
pub(crate) static HELD: HashMap<u64, Event, 16384> = HashMap::new();

/// Denied sessions, for the agent to refuse.
///
/// Writer: `emit`. Reader: agent. 2 MiB: 1,600 logins of the largest size, some 5,000 usual ones.
/// Full: counted in `LostDenials`; [`HELD`] has the session.
#[btf_map]
pub(crate) static DENIALS: RingBuf<u8, { 2 << 20 }> = RingBuf::new();

/// Plaintext logins that an exception may allow whose conditions the agent looks at. A ring of its own: who floods it delays no refusal.
///
/// Writer: `emit`. Reader: agent. 256 KiB: 200 logins of the largest size, some 600 usual ones. Full: counted in `LostAsks`; the
/// session stays held, and the next copy of its login asks again.
#[btf_map]
pub(crate) static ASKS: RingBuf<u8, { 256 << 10 }> = RingBuf::new();

/// The agent's answers, by the session's cookie (`musttls_common::policy::Answer`).
///
/// Writer: agent. Reader: `policy`. Entry: 16 bytes; 4,096 entries, 0.4 MB. Full: the oldest is dropped; its session asks again if
/// it is not decided yet.
#[btf_map]
pub(crate) static ANSWERS: LruHashMap<u64, u64, 4096> = LruHashMap::new();

/// New listeners, for the agent to name. A ring of its own: any local process can listen as often as it likes.
///
/// Writer: `emit`. Reader: agent. 64 KiB: 512 listeners. Full: counted in `LostListens`; the listener stays pending
/// until the agent's next look, or for good if it is no server's.
#[btf_map]
pub(crate) static LISTENS: RingBuf<u8, { 64 << 10 }> = RingBuf::new();

/// All other sessions, for the audit stream. A ring of its own, so that a flood of them cannot delay a
/// refusal.
///
/// Writer: `emit`. Reader: agent. 2 MiB: 16,000 TLS sessions. Full: counted in `LostSessions`.
#[btf_map]
pub(crate) static SESSIONS: RingBuf<u8, { 2 << 20 }> = RingBuf::new();

/// Counters, by `musttls_common::counter`.
///
/// Writer: all programs. Reader: agent. 8 bytes an entry and CPU.
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, COUNTER_COUNT> = PerCpuArray::new();

/// How far agents have taken notice of the counters: what happened since is told by the next one.
///
/// Writer and reader: agent.
#[btf_map]
pub(crate) static TOLD: Array<Mark, 1> = Array::new();

/// A record being made: too large for the stack.
#[repr(C)]
pub(crate) struct Scratch {
    pub(crate) event: Event,
    pub(crate) login: Login,
    pub(crate) user: SlotUser,
    pub(crate) walk: Walk,
    pub(crate) segment: Segment,
    /// Where its payload is in the packet.
    pub(crate) payload: u32,
    /// Which header of it comes next, and where that begins.
    pub(crate) header_index: u32,
    pub(crate) header_at: u32,
    /// The first bytes of that.
    pub(crate) window: [u8; WINDOW],
    pub(crate) header: HeaderReader,
    /// What the handshake's third ACK carries.
    pub(crate) early: Early,
}

/// Where `ingress` makes its records. Only ingress uses it, and `session` for a packet that ingress has just let
/// through: it runs in softirq and is not interrupted by itself; egress, which it may interrupt, makes its smaller
/// records on the stack.
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Which of the two slots of the policy tables is in force. Changing it is what makes a new policy
/// visible, in one step.
///
/// Writer: agent. Reader: `policy`.
#[btf_map]
pub(crate) static ACTIVE: Array<u32, 1> = Array::new();

/// What a policy holds once, by slot.
///
/// Policy tables have two slots in one map. The agent fills the slot that is not in force, waits until no
/// program uses it, and then writes [`ACTIVE`]. (Not maps in maps: before Linux 6.2 the kernel takes an inner
/// map only if it was made with the BTF of the one declared here, which the agent's library cannot.)
///
/// Writer: agent. Reader: `policy`.
#[btf_map]
pub(crate) static ROOTS: Array<PolicyRoot, 2> = Array::new();
/// Settings of each server, by slot and index. See [`ROOTS`].
#[btf_map]
pub(crate) static SERVERS: Array<ServerPolicy, { 2 * MAX_SERVERS }> = Array::new();
/// Exceptions by slot and source network; trusted proxies. Entry: 152 bytes and about 60 of the kernel's. See [`ROOTS`].
#[btf_map]
pub(crate) static NETWORKS: LpmTrie<SlotAddress, RuleSet, { 2 * MAX_NETWORK_ENTRIES }> =
    LpmTrie::new();
/// Exceptions by slot and user. Entry: 264 bytes and about 60 of the kernel's. See [`ROOTS`].
#[btf_map]
pub(crate) static USERS: HashMap<
    SlotUser,
    RuleSet,
    { 2 * MAX_USER_ENTRIES },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
/// When each exception begins and ends, by slot and index. See [`ROOTS`].
#[btf_map]
pub(crate) static TIMES: Array<RuleTimes, { 2 * MAX_RULES }> = Array::new();
/// The servers that ports are named by, by slot and port (`musttls_common::policy::slot_port`): the settings of a listener that the
/// agent has not named yet. Entry: 6 bytes and about 60 of the kernel's. See [`ROOTS`].
#[btf_map]
pub(crate) static SERVER_PORTS: HashMap<u32, u16, { 2 * 65_536 }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();
/// Refused cipher suites, by slot and number (`musttls_common::policy::slot_cipher`): the servers that refuse each.
/// Entry: 12 bytes and about 60 of the kernel's. See [`ROOTS`].
#[btf_map]
pub(crate) static CIPHERS: HashMap<
    u32,
    u64,
    { 2 * MAX_CIPHER_ENTRIES },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();
