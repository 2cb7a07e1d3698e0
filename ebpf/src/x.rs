//! X Protocol, both directions. What the client says before TLS is judged frame by frame; what proves TLS is the
//! server's own flight behind its frames, as in the classic protocol.
//!
//! These are programs of their own, called by those that are attached (`bpf_tail_call`): the verifier would not
//! follow both protocols in one.

use aya_ebpf::programs::SkBuffContext;
use musttls_common::judge::{Judgement, Segment};
use musttls_common::mysqlx::{FRAMES, ServerFrames};
use musttls_common::policy::NO_RULE;
use musttls_common::session::{ListenerClass, Phase, SocketRecord};
use musttls_common::verdict::{Action, Hold, Reason};

use crate::egress::Hello;
use crate::maps::{SCRATCH, SOCKETS};
use crate::packet::{self, Tcp};
use crate::policy::{self, Policy};
use crate::{egress, floor, ingress, session, sock};

/// Client to server: a segment with payload, or with the URG flag, of an undecided session.
#[inline(always)]
pub(crate) fn on_ingress(ctx: &SkBuffContext) -> Action {
    let Some(record) = sock(ctx).and_then(|sk| SOCKETS.get(sk.cast())) else {
        return Action::Drop;
    };
    let action = ingress::alone(record, |record| alone(ctx, record))
        .unwrap_or_else(|| ingress::concurrent(record));
    if action == Action::Pass {
        floor::behind_claim(ctx, record)
    } else {
        action
    }
}

/// Judges a segment while no other CPU judges one of its session: the first copy of a header decides for the rest.
#[inline(always)]
fn alone(ctx: &SkBuffContext, record: &mut SocketRecord) -> Action {
    let policy = Policy::of(record.endpoints.server);
    let Ok(tcp) = packet::tcp(ctx) else {
        return ingress::held(Hold::Unreadable, policy::mode(record.endpoints.server));
    };
    if record.counted == 0 {
        session::seen(record);
    }
    let segment = Segment {
        start: tcp.seq.wrapping_sub(record.client_base).cast_signed(),
        len: tcp.payload_len,
        urgent: tcp.is_urgent(),
    };
    let hold = match judge(ctx, record, &tcp, segment) {
        Judgement::Neutral => return Action::Pass,
        Judgement::Claim => {
            if record.phase == Phase::Plain as u8 {
                record.phase = Phase::Claimed as u8;
            }
            return Action::Pass;
        }
        Judgement::Plaintext(reason) => return plaintext(ctx, record, reason, policy.as_ref()),
        Judgement::SplitClaim => Hold::Split,
        Judgement::Hold(hold) => hold,
    };
    ingress::hold(record, segment, hold, policy.as_ref())
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, record: &mut SocketRecord, tcp: &Tcp, segment: Segment) -> Judgement {
    if segment.urgent {
        return Judgement::Hold(Hold::Urgent);
    }
    record.client_spoke = 1;
    let mut at = 0;
    let mut index = 0;
    while index <= FRAMES {
        let header = |place| packet::load(ctx, tcp.payload + place).ok();
        match record.client_frames.judge(segment, index, at, header) {
            Ok(next) => at = next,
            Err(judgement) => return judgement,
        }
        index += 1;
    }
    Judgement::Hold(Hold::Gap)
}

/// A login before TLS. Only exceptions for any user and without conditions apply: who logs in
/// is named later, or among auth data.
#[inline(always)]
fn plaintext(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    reason: Reason,
    policy: Option<&Policy<'_>>,
) -> Action {
    record.rule = NO_RULE;
    if let (Some(policy), Some(scratch)) = (policy, SCRATCH.get_ptr_mut(0)) {
        // SAFETY: the entry belongs to this CPU, and ingress does not interrupt itself.
        let walk = unsafe { &mut (*scratch).walk };
        if let Some(rule) = policy.exception(&policy.client(ctx, record), walk) {
            return session::excepted(record, rule, policy);
        }
    }
    session::deny(record, reason, policy)
}

/// Server to client, until the session is decided; and a denied session.
#[inline(always)]
pub(crate) fn on_egress(ctx: &SkBuffContext) -> Action {
    let Some(record) = sock(ctx).and_then(|sk| SOCKETS.get(sk.cast())) else {
        return Action::Pass;
    };
    let is_denied = record.apart == SocketRecord::DENIED;
    let Ok(tcp) = packet::tcp(ctx) else {
        return if is_denied {
            Action::Drop
        } else {
            Action::Pass
        };
    };
    let start = tcp.seq.wrapping_sub(record.server_base);
    let end = start.wrapping_add(tcp.payload_len);
    let frames = &mut record.server_frames;
    // A server that says more than so many frames at once before TLS is not followed: no flight is found.
    packet::advance(ctx, &tcp, frames, start, end, ServerFrames::STEPS);
    if is_denied {
        return denied(record, &tcp);
    }
    undecided(ctx, record, &tcp, start, end)
}

#[inline(always)]
fn undecided(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    tcp: &Tcp,
    start: u32,
    end: u32,
) -> Action {
    if record.class != ListenerClass::X as u8 {
        // The server has greeted in X Protocol, whatever was thought of its listener.
        if session::resolve(record) == ListenerClass::Other {
            return egress::no_login(record);
        }
        session::greets(record, ListenerClass::X);
    }
    if record.counted == 0 {
        session::seen(record);
    }
    if record.unjudged != 0 {
        return session::spoke_too_early(record);
    }
    if record.server_frames.answers_login() {
        // In observe mode, or if the gate was wrong: the server has read a login that it did not see.
        let policy = Policy::of(record.endpoints.server);
        return session::deny(record, Reason::XWithoutTls, policy.as_ref());
    }
    let Some(flight) = record.server_frames.flight() else {
        return Action::Pass;
    };
    if record.phase != Phase::Claimed as u8 {
        return Action::Pass;
    }
    match egress::read_hello(ctx, record, tcp, start, end, flight) {
        Hello::Whole => floor::judge_server_hello(ctx, record),
        // What is not a `ServerHello` proves nothing, and is not looked at further: what follows stays held.
        Hello::Part | Hello::None => Action::Pass,
    }
}

/// A packet to the client of a denied session. What the server says goes out, since it has read no login: its answer
/// to what came before, and the refusal that the agent sends for it. If it may have read one, nothing does. Nor does
/// its end: the client gets a reset.
#[inline(always)]
const fn denied(record: &SocketRecord, tcp: &Tcp) -> Action {
    let may_have_read =
        record.reason == Reason::LoginBeforeGreeting as u8 || record.server_frames.answers_login();
    if tcp.payload_len == 0 || may_have_read {
        Action::Drop
    } else if session::is_denied_for_tls(record) {
        floor::lets_out(record, 0)
    } else {
        Action::Pass
    }
}
