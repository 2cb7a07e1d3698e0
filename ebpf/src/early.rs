//! Payload on the third ACK of the handshake: judged at the listener, entered in the session's record when the kernel
//! makes that of the same segment.
//!
//! Programs of their own, called by `on_ingress` (`bpf_tail_call`). What passes there: PROXY protocol headers with
//! nothing behind them, and a login that an exception allows; in observe mode any plaintext login is read. All else is
//! held, as is what would do harm if the server got an end of it only ([`musttls_common::early`]).
//!
//! From the hook to `session::established` the kernel stays on one CPU, in one softirq (`tcp_v4_rcv`, `tcp_check_req`,
//! `tcp_child_process`; with SYN cookies `tcp_v4_do_rcv`). So the judgement waits in the scratch record of the CPU.

use aya_ebpf::programs::SkBuffContext;
use musttls_common::early::{EARLY_MAX, LoginSearch};
use musttls_common::judge::{Judgement, judge};
use musttls_common::mysql::{FLAGS_HIGH_OFFSET, Greeting};
use musttls_common::policy::{Found, NO_RULE};
use musttls_common::proxy::{Head, Headers, Source};
use musttls_common::session::{Phase, SocketRecord};
use musttls_common::verdict::{Action, Hold, Mode, Reason};

use crate::maps::{
    INGRESS, INGRESS_EARLY_END, INGRESS_EARLY_LOGIN, INGRESS_THIRD_ACK, SCRATCH, Scratch,
};
use crate::packet::{self, Tcp};
use crate::policy::{self, Policy};
use crate::{go_on, ingress, proxy, session};

/// TCP headers that pass: without options, or with the timestamps alone as stacks lay them out (RFC 7323 appendix A).
/// MPTCP, which could map the payload to other places, has an option of its own.
const HEADER_LEN: u32 = 20;
const HEADER_LEN_STAMPED: u32 = 32;
const STAMPS: [u8; 4] = [1, 1, 8, 10];

/// What was concluded of a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Concluded {
    /// Nothing: it is held, or passes in observe mode as nobody has read it.
    Nothing = 0,
    /// It holds PROXY protocol headers.
    Headers = 1,
    /// An exception allows the login: whatever comes, or this one only.
    Excepted = 2,
    ExceptedUser = 3,
    /// A plaintext login, in observe mode.
    Observed = 4,
}

/// What is handed over from a segment to its session.
#[repr(C)]
pub(crate) struct Early {
    pub(crate) headers: Headers,
    client_addr: [u8; 16],
    pub(crate) listener_cookie: u64,
    /// Sequence number of the segment.
    pub(crate) seq: u32,
    /// Where its TCP header is in the packet.
    pub(crate) tcp: u32,
    search: LoginSearch,
    policy_version: u32,
    login_header: [u8; 4],
    client_port: u16,
    rule: u16,
    reason: u8,
    flags_high: u8,
    /// A [`Concluded`] of a segment that has passed.
    concluded: u8,
    /// A [`Concluded`] of one that is still looked at.
    wanted: u8,
}

impl Early {
    /// The last segment's session has not come.
    #[inline(always)]
    pub(crate) const fn forget(&mut self) {
        self.concluded = Concluded::Nothing as u8;
    }
}

/// Whether a segment for a listener is looked at.
#[inline(always)]
pub(crate) const fn may_be(tcp: &Tcp) -> bool {
    let header = tcp.payload.wrapping_sub(tcp.header);
    tcp.is_plain()
        && tcp.payload_len <= EARLY_MAX
        && (header == HEADER_LEN || header == HEADER_LEN_STAMPED)
}

#[inline(always)]
fn held(record: &SocketRecord) -> Action {
    ingress::held(Hold::NotEstablished, policy::mode(record.endpoints.server))
}

/// Takes one PROXY protocol header of a segment.
#[inline(always)]
pub(crate) fn on_third_ack(ctx: &SkBuffContext) -> Action {
    let Some((record, scratch)) = ingress::handed_on(ctx) else {
        return Action::Drop;
    };
    let index = scratch.header_index as usize & 7;
    if index == 0 && !begin(ctx, scratch) {
        return held(record);
    }
    let (segment, payload, at) = (scratch.segment, scratch.payload, scratch.header_at);
    let headers = &mut scratch.early.headers;
    let head = headers.judge(segment, index, at, 0, |place| {
        proxy::read(
            ctx,
            place,
            segment,
            payload,
            &mut scratch.window,
            &mut scratch.header,
        )
    });
    if index == 0 && headers.proxied.source != Source::Direct as u8 {
        let policy = Policy::of(record.endpoints.server);
        let trusted = policy.is_some_and(|policy| policy.trusts(scratch.early.client_addr));
        headers.proxied.trusted = u8::from(trusted);
    }
    match head {
        Head::Next => {
            // The last one, because none is known here before it is read.
            scratch.header_at = u32::from(headers.end());
            scratch.header_index += 1;
            go_on(ctx, record, &INGRESS, INGRESS_THIRD_ACK)
        }
        Head::Login => go_on(ctx, record, &INGRESS, INGRESS_EARLY_LOGIN),
        Head::Pass => conclude(ctx, record, scratch, Concluded::Headers),
        Head::Split | Head::Gap | Head::Contradiction => held(record),
    }
}

/// Notes whose segment it is. Whether it can be one.
#[inline(always)]
fn begin(ctx: &SkBuffContext, scratch: &mut Scratch) -> bool {
    let tcp = scratch.early.tcp;
    if scratch.payload.wrapping_sub(tcp) == HEADER_LEN_STAMPED {
        match packet::load(ctx, tcp.wrapping_add(HEADER_LEN)) {
            Ok(STAMPS) => {}
            _ => return false,
        }
    }
    let (Ok(client_addr), Ok(client_port)) = (packet::source(ctx), packet::load(ctx, tcp)) else {
        return false;
    };
    let early = &mut scratch.early;
    early.headers = Headers::default();
    early.client_addr = client_addr;
    early.client_port = u16::from_be_bytes(client_port);
    early.rule = NO_RULE;
    early.reason = 0;
    true
}

/// Goes on to the last look at a segment that is to pass.
#[inline(always)]
fn conclude(
    ctx: &SkBuffContext,
    record: &SocketRecord,
    scratch: &mut Scratch,
    concluded: Concluded,
) -> Action {
    scratch.early.wanted = concluded as u8;
    go_on(ctx, record, &INGRESS, INGRESS_EARLY_END)
}

/// Lets the segment through with what was concluded of it, if it is harmless wherever its session's stream begins.
#[inline(always)]
pub(crate) fn on_end(ctx: &SkBuffContext) -> Action {
    let Some((record, scratch)) = ingress::handed_on(ctx) else {
        return Action::Drop;
    };
    let len = scratch.segment.len;
    let payload = scratch.payload;
    let search = &mut scratch.early.search;
    *search = LoginSearch::new(len);
    let enough = packet::advance_at(ctx, payload, search, 0, len, EARLY_MAX + 1);
    if !enough || search.has_found() {
        return held(record);
    }
    scratch.early.concluded = scratch.early.wanted;
    Action::Pass
}

/// A login, maybe behind headers.
#[inline(always)]
pub(crate) fn on_login(ctx: &SkBuffContext) -> Action {
    let Some((record, scratch)) = ingress::handed_on(ctx) else {
        return Action::Drop;
    };
    let payload = scratch.payload;
    let segment = scratch.early.headers.behind(scratch.segment);
    // What is no plaintext is worth as much as the greeting, which is not there yet.
    let judgement = judge(segment, Greeting::Unknown, false, |index| {
        packet::byte(ctx, payload + index)
    });
    let (Judgement::Plaintext(reason), Some(policy)) =
        (judgement, Policy::of(record.endpoints.server))
    else {
        return held(record);
    };
    let client = policy.client_of(
        ctx,
        scratch.early.client_addr,
        &scratch.early.headers.proxied,
    );
    // Nothing is asked of the agent before there is a session; in observe mode the record then names no exception.
    let (_, found) = ingress::exception::<false>(
        ctx,
        scratch,
        segment,
        reason,
        &policy,
        &client,
        |_| true,
        |_, _| Found::Nothing,
    );
    let is_observed = policy.mode() == Mode::Observe;
    let (concluded, rule) = match found {
        Found::Rule(rule) if is_observed || policy.is_for_any_login(rule) => {
            (Concluded::Excepted, rule)
        }
        Found::Rule(rule) => (Concluded::ExceptedUser, rule),
        Found::Depends | Found::Nothing if is_observed => (Concluded::Observed, NO_RULE),
        Found::Depends | Found::Nothing => return held(record),
    };
    let at = payload + segment.payload_index(0);
    let flags_high = packet::byte(ctx, at + FLAGS_HIGH_OFFSET);
    let early = &mut scratch.early;
    early.login_header = packet::load(ctx, at).unwrap_or_default();
    early.flags_high = flags_high.unwrap_or(0);
    early.reason = reason as u8;
    early.rule = rule;
    early.policy_version = policy.version();
    conclude(ctx, record, scratch, concluded)
}

/// A session begins, with payload in the segment that makes it: enters what was concluded of that segment. Without such
/// a conclusion the server gets bytes that nobody has judged at their place, and the session is denied.
///
/// To be called before the record's phase says that there is a session.
#[inline(always)]
pub(crate) fn take_over(record: &mut SocketRecord, seq: u32, len: u32) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return unjudged(record);
    };
    // SAFETY: the entry belongs to this CPU. Ingress has just let this segment through, in the same softirq.
    let scratch = unsafe { &mut *scratch };
    let early = &mut scratch.early;
    let concluded = early.concluded;
    early.forget();
    let is_same = early.seq == seq
        && seq == record.client_base
        && early.listener_cookie == record.listener_cookie
        && scratch.segment.len == len
        && early.client_port == record.endpoints.client_port
        && early.client_addr == record.endpoints.client_addr;
    if concluded == Concluded::Nothing as u8 || !is_same {
        return unjudged(record);
    }
    record.headers = early.headers;
    if concluded == Concluded::Headers as u8 {
        record.phase = Phase::Plain as u8;
        return;
    }
    record.client_spoke = 1;
    record.login_header = early.login_header;
    record.flags_high = early.flags_high;
    record.policy_version = early.policy_version;
    let rule = early.rule;
    if concluded == Concluded::Observed as u8 {
        if let Some(reason) = Reason::from_u8(early.reason) {
            ingress::refused(record, scratch, reason, Mode::Observe);
        }
    } else {
        let for_all = concluded == Concluded::Excepted as u8;
        let mode = policy::mode(record.endpoints.server);
        ingress::excepted(record, scratch, rule, for_all, mode);
    }
}

/// A session begins with payload that nobody has judged at its place.
#[inline(always)]
pub(crate) fn unjudged(record: &mut SocketRecord) {
    let policy = Policy::of(record.endpoints.server);
    match policy.as_ref().map_or(Mode::Enforce, Policy::mode) {
        Mode::Observe => record.phase = Phase::Plain as u8,
        Mode::Enforce => {
            session::deny(record, Reason::Unjudgeable, policy.as_ref());
        }
    }
}
