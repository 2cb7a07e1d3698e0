//! `sock_ops`: listeners and sessions come and go.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    BPF_NOEXIST, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_LISTEN_CB, BPF_TCP_CLOSE, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_load_hdr_opt};
use aya_ebpf::programs::SockOpsContext;
use musttls_common::addr::v4_mapped;
use musttls_common::counter::{Global, Outcome};
use musttls_common::event::{Event, Kind};
use musttls_common::session::{Endpoints, Listener, ListenerClass, Phase, Place, SocketRecord};
use musttls_common::verdict::{Action, Mode, Reason, Verdict};

use crate::emit::Ring;
use crate::maps::{HELD, LISTENERS, SOCKETS};
use crate::place::{self, Cover};
use crate::policy::{self, Policy};
use crate::{early, emit};

const AF_INET: u32 = 2;
/// The TCP option of MPTCP (RFC 8684 section 8.1).
const OPTION_MPTCP: u8 = 30;
/// A TCP header without options.
const TCP_HEADER_LEN: usize = 20;
/// What `bpf_load_hdr_opt` returns for a header without the option.
const ENOMSG: i64 = 42;

/// Reads one field of the context. Volatile, because the verifier rewrites each such read by its offset
/// from the context: the compiler must not merge two of them, nor compute the address first.
macro_rules! field {
    ($ops:expr, $($field:tt)+) => {
        // SAFETY: `ops` is the context the kernel passed; these fields may be read in every callback.
        unsafe { (&raw const (*$ops).$($field)+).read_volatile() }
    };
}

/// Takes one callback.
#[inline(always)]
pub(crate) fn on_socket_event(ctx: &SockOpsContext) {
    // SAFETY: `ops` is the context the kernel passed; `op` may be read in every callback.
    let op = unsafe { (*ctx.ops).op };
    match op {
        BPF_SOCK_OPS_TCP_LISTEN_CB => listens(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => established(ctx),
        BPF_SOCK_OPS_STATE_CB => changed(ctx),
        _ => {}
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut c_void> {
    // SAFETY: `ops` is the context the kernel passed; the verifier turns the read into a checked one.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk.cast()) }
}

#[inline(always)]
fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context of a `sock_ops` program.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// A socket begins to listen: it gets a record at once, so that no session of it can be missed, and the
/// agent is asked whose it is.
#[inline(always)]
fn listens(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let Some(record) = SOCKETS.get_or_create(sk) else {
        emit::count_global(Global::ListenerFull);
        return;
    };
    record.listener_cookie = cookie(ctx);
    record.abi = musttls_common::ABI_VERSION;
    record.cookie = place::namespace(ctx);
    let server = policy::server_of(field!(ctx.ops, local_port) as u16);
    record.endpoints = endpoints(ctx.ops, server);
    emit::listener(record.listener_cookie, record.cookie, record.endpoints);
}

/// Takes over what the agent has found out about a listener, into its record or that of a session.
/// Returns the class.
#[inline(always)]
pub(crate) fn resolve(record: &mut SocketRecord) -> ListenerClass {
    let class = ListenerClass::from_u8(record.class);
    if class != ListenerClass::Pending && record.learned == 0 {
        return class;
    }
    // SAFETY: entries are replaced as a whole, and a value of mixed age is still a valid listener.
    if let Some(listener) = unsafe { LISTENERS.get(record.listener_cookie) } {
        record.endpoints.server = listener.server;
        record.class = listener.class;
        record.learned = listener.learned;
    }
    ListenerClass::from_u8(record.class)
}

/// The server's own bytes have told the class of a session whose listener nobody has named. It holds for the
/// listener's next sessions too, until the agent names it.
#[inline(always)]
pub(crate) fn greets(record: &mut SocketRecord, class: ListenerClass) {
    record.class = class as u8;
    record.learned = 1;
    let listener = Listener::learned(record.endpoints.server, class);
    if let Some(known) = LISTENERS.get_ptr_mut(record.listener_cookie) {
        // SAFETY: an entry lives until the program ends, and its fields are bytes.
        unsafe {
            if (*known).class == ListenerClass::Pending as u8 {
                (*known).learned = 1;
                (*known).class = class as u8;
            }
        }
        return;
    }
    // Not to be overwritten: the agent may have named it meanwhile. It is no error if it has. Else it is told: the
    // socket may have been passed on to a server since it began to listen.
    let _named = LISTENERS.insert(record.listener_cookie, listener, u64::from(BPF_NOEXIST));
    emit::listener(
        record.listener_cookie,
        Place::ANY_NAMESPACE,
        record.endpoints,
    );
}

/// A connection is established: its record, so far the listener's, becomes that of a session. The
/// kernel calls this before the socket can get payload, also with TCP Fast Open, with data on the third
/// ACK and with SYN cookies.
#[inline(always)]
fn established(ctx: &SockOpsContext) {
    let Some(sk) = socket(ctx) else { return };
    let Some(record) = SOCKETS.get(sk) else {
        return;
    };
    let class = accepted_as(ctx, record);
    if class == ListenerClass::Other {
        record.phase = Phase::Foreign as u8;
        return;
    }
    record.cookie = cookie(ctx);
    if class == ListenerClass::Pending {
        // By the policy of now.
        record.endpoints.server = policy::server_of(field!(ctx.ops, local_port) as u16);
    }
    record.endpoints = endpoints(ctx.ops, record.endpoints.server);
    // SAFETY: `ops` is the context the kernel passed, and the socket is a full one in this callback.
    record.client_base = unsafe { (*ctx.ops).rcv_nxt };
    // SAFETY: as above.
    record.server_base = unsafe { (*ctx.ops).snd_nxt };
    record.rule = musttls_common::policy::NO_RULE;
    record.multipath = u8::from(is_multipath(ctx));
    if class != ListenerClass::Pending {
        seen(record);
    }
    // From the phase on another CPU judges what comes.
    match carried(ctx) {
        Some((_, 0)) => record.phase = Phase::Plain as u8,
        Some((seq, len)) => early::take_over(record, seq, len),
        None => early::unjudged(record),
    }
    // The close is wanted for sessions that end without a verdict.
    if ctx.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_err() {
        emit::count_global(Global::EndUnwatched);
    }
}

/// What the listener of a new session is: by its place, if that is covered; else by its record.
#[inline(always)]
fn accepted_as(ctx: &SockOpsContext, record: &mut SocketRecord) -> ListenerClass {
    if record.is_named() {
        return ListenerClass::from_u8(record.class);
    }
    let mut place = record.place();
    if place.netns == Place::ANY_NAMESPACE {
        place.netns = place::namespace(ctx);
    }
    match place::cover(place) {
        Cover::By(known) => {
            record.endpoints.server = known.server;
            record.class = known.class;
            record.learned = 0;
            ListenerClass::from_u8(known.class)
        }
        Cover::No | Cover::ByNamespace => resolve(record),
    }
}

/// Sequence number and length of the payload that the segment of this callback carries. `None` if it cannot be read.
/// The context shows its TCP header only (`bpf_skops_init_skb`, since Linux 5.10), and its length with that header.
#[inline(always)]
fn carried(ctx: &SockOpsContext) -> Option<(u32, u32)> {
    let header = field!(ctx.ops, __bindgen_anon_3.skb_data).cast::<u8>();
    let end = field!(ctx.ops, __bindgen_anon_4.skb_data_end).cast::<u8>();
    let len = field!(ctx.ops, skb_len);
    if header.wrapping_add(TCP_HEADER_LEN) > end {
        return None;
    }
    // SAFETY: 20 bytes of the header are there, as the verifier sees from the comparison.
    let (seq, data_offset) = unsafe {
        (
            header.add(4).cast::<[u8; 4]>().read(),
            header.add(12).read(),
        )
    };
    let header_len = u32::from(data_offset >> 4) * 4;
    Some((u32::from_be_bytes(seq), len.wrapping_sub(header_len)))
}

/// Whether the session speaks MPTCP. The kernel takes one for MPTCP if its listener does and the segment that makes
/// the accepted socket has the option (`subflow_syn_recv_sock` in `net/mptcp/subflow.c`, RFC 8684 section 3.7);
/// that segment is the one of this callback. A client that speaks MPTCP to a listener that does not leaves the
/// option out from the third ACK on.
#[inline(always)]
fn is_multipath(ctx: &SockOpsContext) -> bool {
    // Kind and length of the option that is looked for, 0 for any; then room for what is found.
    let mut option = [OPTION_MPTCP, 0, 0, 0];
    // SAFETY: `option` is as long as is said. The helper is there since Linux 5.10, for this callback too.
    let found =
        unsafe { bpf_load_hdr_opt(ctx.ops, option.as_mut_ptr().cast(), option.len() as u32, 0) };
    // An option that is longer than the room is an error, too.
    found != -ENOMSG
}

/// Counts a session of a server.
#[inline(always)]
pub(crate) fn seen(record: &mut SocketRecord) {
    record.counted = 1;
    emit::count_outcome(record, Outcome::Seen);
}

/// A session changes state: at its end, one without a verdict gets its outcome.
#[inline(always)]
fn changed(ctx: &SockOpsContext) {
    // SAFETY: in this callback `args` holds the old and the new state.
    let [_, state, _, _] = unsafe { (*ctx.ops).__bindgen_anon_1.args };
    if state != BPF_TCP_CLOSE {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    let Some(record) = SOCKETS.get(sk) else {
        return;
    };
    let outcome = match record.phase() {
        Phase::Plain if record.client_spoke == 0 => Outcome::HalfOpen,
        Phase::Plain => Outcome::Incomplete,
        Phase::Claimed => Outcome::TlsFailed,
        Phase::Denied => {
            // Nothing is left to refuse. It is no error if the agent has removed it.
            let _absent = HELD.remove(record.cookie);
            let mut event = Event::default();
            emit::fill(&mut event, Kind::Released, Mode::Enforce, record);
            emit::event(&event, Ring::Denials);
            record.phase = Phase::Foreign as u8;
            return;
        }
        // It came, and was not answered.
        Phase::ExceptedUser => Outcome::Excepted,
        Phase::Listener
        | Phase::Secure
        | Phase::Excepted
        | Phase::Observed
        | Phase::Foreign
        | Phase::Older => {
            return;
        }
    };
    if record.counted != 0 {
        emit::count_outcome(record, outcome);
    }
    if outcome == Outcome::TlsFailed {
        tls_failed(record, policy::mode(record.endpoints.server));
    }
    record.phase = Phase::Foreign as u8;
}

/// The server's own bytes were a TLS flight.
#[inline(always)]
pub(crate) fn secure(record: &mut SocketRecord, mode: Mode) {
    if record.apart != 0 {
        // By another CPU, at the same time.
        return;
    }
    record.phase = Phase::Secure as u8;
    emit::count_outcome(record, Outcome::Secure);
    let mut event = Event::default();
    emit::fill(&mut event, Kind::Secure, mode, record);
    emit::event(&event, Ring::Sessions);
}

/// Enters the verdict on a plaintext session.
#[inline(always)]
pub(crate) fn decide(record: &mut SocketRecord, action: Action) -> Kind {
    match action {
        Action::Pass => {
            record.phase = Phase::Observed as u8;
            emit::count_outcome(record, Outcome::Observed);
            Kind::Observed
        }
        Action::Drop => {
            record.phase = Phase::Denied as u8;
            record.apart = SocketRecord::DENIED;
            emit::count_outcome(record, Outcome::Denied);
            Kind::Denied
        }
    }
}

/// Denies a session without a readable login.
#[inline(always)]
pub(crate) fn deny(
    record: &mut SocketRecord,
    reason: Reason,
    policy: Option<&Policy<'_>>,
) -> Action {
    let mode = policy.map_or(Mode::Enforce, Policy::mode);
    let action = Verdict::Deny(reason).action(mode);
    record.reason = reason as u8;
    record.policy_version = policy.map_or(0, Policy::version);
    let kind = decide(record, action);
    let mut event = Event::default();
    emit::fill(&mut event, kind, mode, record);
    if action == Action::Drop {
        emit::hold_session(&event);
    }
    emit::event(&event, emit::ring_of(action));
    action
}

/// An exception for any user allows a session without a readable login.
#[inline(always)]
pub(crate) fn excepted(record: &mut SocketRecord, rule: u16, policy: &Policy<'_>) -> Action {
    record.rule = rule;
    record.policy_version = policy.version();
    record.phase = Phase::Excepted as u8;
    emit::count_outcome(record, Outcome::Excepted);
    let mut event = Event::default();
    emit::fill(&mut event, Kind::Excepted, policy.mode(), record);
    emit::event(&event, Ring::Sessions);
    Action::Pass
}

/// The server turned out to speak a protocol of `MySQL` after client bytes had passed unjudged.
#[inline(always)]
pub(crate) fn spoke_too_early(record: &mut SocketRecord) -> Action {
    deny(
        record,
        Reason::LoginBeforeGreeting,
        Policy::of(record.endpoints.server).as_ref(),
    )
}

/// Whether the session is denied for its TLS, and not for plaintext.
#[inline(always)]
pub(crate) const fn is_denied_for_tls(record: &SocketRecord) -> bool {
    match Reason::from_u8(record.reason) {
        Some(reason) => reason.is_of_tls(),
        None => false,
    }
}

/// The client claimed TLS, and nothing came of it.
#[inline(always)]
pub(crate) fn tls_failed(record: &mut SocketRecord, mode: Mode) {
    let mut event = Event::default();
    emit::fill(&mut event, Kind::TlsFailed, mode, record);
    emit::event(&event, Ring::Sessions);
}

#[inline(always)]
fn endpoints(ops: *mut bpf_sock_ops, server: u16) -> Endpoints {
    // Both forms are read whatever the family is: two branches would make the compiler join their reads.
    let remote_v4 = v4_mapped(field!(ops, remote_ip4).to_ne_bytes());
    let local_v4 = v4_mapped(field!(ops, local_ip4).to_ne_bytes());
    let remote_v6 = ip6([
        field!(ops, remote_ip6[0]),
        field!(ops, remote_ip6[1]),
        field!(ops, remote_ip6[2]),
        field!(ops, remote_ip6[3]),
    ]);
    let local_v6 = ip6([
        field!(ops, local_ip6[0]),
        field!(ops, local_ip6[1]),
        field!(ops, local_ip6[2]),
        field!(ops, local_ip6[3]),
    ]);
    let (client_addr, server_addr) = if field!(ops, family) == AF_INET {
        (remote_v4, local_v4)
    } else {
        (remote_v6, local_v6)
    };
    Endpoints {
        client_addr,
        server_addr,
        // Network byte order, in the upper half on little-endian machines (`bpf_sock_ops.remote_port`).
        client_port: u32::from_be(field!(ops, remote_port)) as u16,
        server_port: field!(ops, local_port) as u16,
        server,
        _pad: 0,
    }
}

#[inline(always)]
pub(crate) fn ip6(words: [u32; 4]) -> [u8; 16] {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    let [a0, a1, a2, a3] = a;
    let [b0, b1, b2, b3] = b;
    let [c0, c1, c2, c3] = c;
    let [d0, d1, d2, d3] = d;
    [
        a0, a1, a2, a3, b0, b1, b2, b3, c0, c1, c2, c3, d0, d1, d2, d3,
    ]
}
