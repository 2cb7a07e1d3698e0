//! The TLS floor, both directions, in programs of their own, called by those that are attached. The `ServerHello`
//! decides. A `ClientHello` is read only to refuse what offers nothing good enough before the server answers it.

use aya_ebpf::programs::SkBuffContext;
use musttls_common::floor::{ALERT_LEN, ClientHelloReader, shortfall, shortfall_of_offer};
use musttls_common::mysql::HEADER_LEN;
use musttls_common::session::{ListenerClass, Phase, SocketRecord};
use musttls_common::stream::{Reader as _, step};
use musttls_common::tls::{TLS_1_0, TLS_1_3};
use musttls_common::verdict::{Action, Hold, Mode, Reason};

use crate::maps::{EGRESS, EGRESS_SERVER_HELLO, INGRESS, INGRESS_CLIENT_HELLO, SCRATCH, SOCKETS};
use crate::packet::{self, Tcp, load_words, store_words};
use crate::policy::{self, Policy};
use crate::{emit, go_on, ingress, session, sock};

/// Bytes of a `ClientHello` that one run of the program reads; then it calls itself. An offer of 60 cipher suites and
/// 20 extensions needs about 230.
const STEPS: u32 = 64;

/// A segment of a session that has claimed TLS passes, unless it completes a `ClientHello` that is refused.
///
/// While the server's `ServerHello` is out in part, nothing passes: who has read its first half could go on, up to a
/// login, on TLS that is not good enough, before the gate has seen which one it is. An honest client has nothing to
/// say then.
#[inline(always)]
pub(crate) fn behind_claim(ctx: &SkBuffContext, record: &SocketRecord) -> Action {
    if record.phase != Phase::Claimed as u8 {
        return Action::Pass;
    }
    if record.hello.is_proof() {
        return ingress::held(Hold::Gap, policy::mode(record.endpoints.server));
    }
    if record.client_hello.is_done() {
        return Action::Pass;
    }
    go_on(ctx, record, &INGRESS, INGRESS_CLIENT_HELLO)
}

/// Client to server: a segment of a session that has claimed TLS.
#[inline(always)]
pub(crate) fn on_client_hello(ctx: &SkBuffContext) -> Action {
    let Some(record) = sock(ctx).and_then(|sk| SOCKETS.get(sk.cast())) else {
        return Action::Drop;
    };
    let Some(policy) = Policy::of(record.endpoints.server) else {
        return Action::Pass;
    };
    if policy.mode() == Mode::Observe || policy.floor() <= TLS_1_0 {
        record.client_hello.leave();
        return Action::Pass;
    }
    let Ok(tcp) = packet::tcp(ctx) else {
        return ingress::held(Hold::Unreadable, policy.mode());
    };
    // A segment that two CPUs read at once would be read as something else.
    let has_more = ingress::alone(record, |record| {
        read_client_hello(ctx, record, &tcp, &policy)
    });
    if has_more == Some(true) {
        // SAFETY: nothing here waits to be dropped.
        unsafe { INGRESS.tail_call(ctx, INGRESS_CLIENT_HELLO) };
        // The kernel takes 33 calls in a row: a longer offer is left.
        record.client_hello.leave();
    }
    if record.client_hello.is_whole() {
        offered(ctx, record, &policy)
    } else {
        Action::Pass
    }
}

/// Reads what a segment holds of the `ClientHello`. Returns whether there may be more.
#[inline(always)]
fn read_client_hello(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    tcp: &Tcp,
    policy: &Policy<'_>,
) -> bool {
    if !record.client_hello.has_begun() {
        record.client_hello = ClientHelloReader::at(client_flight(record));
    }
    let start = tcp.seq.wrapping_sub(record.client_base);
    let end = start.wrapping_add(tcp.payload_len);
    let place = &raw mut record.client_hello;
    let mut taken = 0;
    while taken < STEPS {
        // As in `packet::advance`.
        let mut hello = load_words(place.cast_const());
        let more = step(&mut hello, start, end, |at| {
            packet::byte(ctx, tcp.payload + (at - start))
        });
        if let Some(suite) = hello.suite()
            && !policy.refuses(suite)
        {
            hello.accept_suite();
        }
        store_words(place, hello);
        if !more {
            return false;
        }
        taken += 1;
    }
    true
}

/// Where the client's TLS flight begins in its stream: behind its request for TLS.
#[inline(always)]
const fn client_flight(record: &SocketRecord) -> u32 {
    if record.class == ListenerClass::X as u8 {
        return record.client_frames.end() as u32;
    }
    let [a, b, c, _] = record.login_header;
    record.headers.end() as u32 + HEADER_LEN + u32::from_le_bytes([a, b, c, 0])
}

/// All of an offer was read.
#[inline(always)]
fn offered(ctx: &SkBuffContext, record: &mut SocketRecord, policy: &Policy<'_>) -> Action {
    let hello = record.client_hello;
    record.client_hello.leave();
    let floor = policy.floor();
    let Some(reason) = shortfall_of_offer(&hello, floor) else {
        return Action::Pass;
    };
    if let Some(scratch) = SCRATCH.get_ptr_mut(0) {
        // SAFETY: the entry belongs to this CPU, and ingress does not interrupt itself.
        let walk = unsafe { &mut (*scratch).walk };
        if policy
            .exception(&policy.client(ctx, record), walk)
            .is_some()
        {
            return Action::Pass;
        }
    }
    record.floor = floor;
    session::deny(record, reason, Some(policy))
}

/// Goes on to judge a `ServerHello`, all of which was read that can be.
#[inline(always)]
pub(crate) fn judge_server_hello(ctx: &SkBuffContext, record: &SocketRecord) -> Action {
    go_on(ctx, record, &EGRESS, EGRESS_SERVER_HELLO)
}

/// Server to client: the segment with (the end of) the `ServerHello`.
#[inline(always)]
pub(crate) fn on_server_hello(ctx: &SkBuffContext) -> Action {
    let Some(record) = sock(ctx).and_then(|sk| SOCKETS.get(sk.cast())) else {
        return Action::Pass;
    };
    let policy = Policy::of(record.endpoints.server);
    let policy = policy.as_ref();
    let mode = policy.map_or(Mode::Enforce, Policy::mode);
    let (version, cipher) = (record.hello.version(), record.hello.cipher());
    let floor = policy.map_or(TLS_1_0, Policy::floor);
    let is_refused = policy.is_some_and(|policy| policy.refuses(cipher));
    let Some(reason) = shortfall(version, is_refused, floor) else {
        let observed = policy.map_or(0, Policy::observed_floor);
        if version < observed {
            record.floor = observed;
            record.policy_version = policy.map_or(0, Policy::version);
            emit::count_below_observed(record);
        }
        session::secure(record, mode);
        return Action::Pass;
    };
    record.floor = floor;
    if let Some(policy) = policy {
        let client = policy.client(ctx, record);
        if let Some(rule) = policy.exception(&client, &mut record.walk) {
            return excepted(record, reason, rule, policy);
        }
    }
    match session::deny(record, reason, policy) {
        Action::Pass => Action::Pass,
        Action::Drop => lets_out(record, 0),
    }
}

/// An exception from TLS is one from its floor, too.
#[inline(always)]
fn excepted(record: &mut SocketRecord, reason: Reason, rule: u16, policy: &Policy<'_>) -> Action {
    if record.apart != 0 {
        return Action::Pass;
    }
    record.reason = reason as u8;
    session::excepted(record, rule, policy)
}

/// Whether a segment of the server, with payload that ends `behind` bytes behind what it said before TLS, goes out to
/// the client of a session that is denied for its TLS.
///
/// Up to TLS 1.2 the server's first flight does, so that the alert can follow it: the client answers it with a key and
/// no login. In TLS 1.3 it would answer with the login, so nothing goes out.
#[inline(always)]
pub(crate) const fn lets_out(record: &SocketRecord, behind: u32) -> Action {
    let version = record.hello.version();
    let passes = if version == 0 {
        behind <= ALERT_LEN
    } else {
        version < TLS_1_3
    };
    if passes { Action::Pass } else { Action::Drop }
}
