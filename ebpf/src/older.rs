//! Sessions older than the gate, client to server: what they speak, and by policy the refusal of those in the clear. A
//! program of its own; the agent finds the sessions and gives them their records.

use aya_ebpf::programs::SkBuffContext;
use musttls_common::event::{Event, Kind};
use musttls_common::older::{HEADER_LEN, Spoken};
use musttls_common::policy::NO_RULE;
use musttls_common::session::{Phase, SocketRecord};
use musttls_common::verdict::{Action, Mode, Reason, Verdict};

use crate::emit::Ring;
use crate::maps::SOCKETS;
use crate::packet::{self, Tcp};
use crate::policy::{Client, Policy};
use crate::{emit, sock};

/// Takes one packet.
#[inline(always)]
pub(crate) fn on_packet(ctx: &SkBuffContext) -> Action {
    let Some(record) = sock(ctx).and_then(|sk| SOCKETS.get(sk.cast())) else {
        return Action::Pass;
    };
    let Ok(tcp) = packet::tcp(ctx) else {
        return Action::Pass;
    };
    if tcp.payload_len == 0 {
        return Action::Pass;
    }
    let begins = listen(ctx, record, &tcp);
    if !record.older.is_certain() {
        return Action::Pass;
    }
    let Some(policy) = Policy::of(record.endpoints.server) else {
        return Action::Pass;
    };
    record.policy_version = policy.version();
    match record.older.spoken() {
        Spoken::Unknown => Action::Pass,
        Spoken::Tls => conclude(record, None, policy.mode()),
        Spoken::Plaintext => in_the_clear(ctx, record, begins, &policy),
    }
}

/// Reads what the segment says. Returns whether it begins with a command.
#[inline(always)]
fn listen(ctx: &SkBuffContext, record: &mut SocketRecord, tcp: &Tcp) -> bool {
    // Not in the map: another CPU would see it half changed.
    let mut older = record.older;
    let begins = older.take(tcp.seq, tcp.payload_len, |at| {
        packet::load::<{ HEADER_LEN as usize }>(ctx, tcp.payload.wrapping_add(at)).ok()
    });
    record.older = older;
    begins
}

/// A session in the clear. Who its user is nobody knows: of the exceptions, those apply that name neither users nor
/// conditions.
#[inline(always)]
fn in_the_clear(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    begins: bool,
    policy: &Policy<'_>,
) -> Action {
    let mode = policy.mode();
    let client = Client::direct(ctx, record.endpoints.client_addr);
    let rule = policy.exception(&client, &mut record.walk);
    record.rule = rule.unwrap_or(NO_RULE);
    if rule.is_some() || !policy.refuses_older() {
        return conclude(record, None, mode);
    }
    if begins || mode == Mode::Observe {
        return conclude(record, Some(Reason::OlderPlaintext), mode);
    }
    // The server has the beginning of this command: the next one is held.
    Action::Pass
}

/// Enters and reports what the session is.
#[inline(always)]
fn conclude(record: &mut SocketRecord, reason: Option<Reason>, mode: Mode) -> Action {
    // SAFETY: a valid place in the record; another CPU may change it meanwhile.
    match unsafe { (&raw const record.apart).read_volatile() } {
        SocketRecord::OLDER => {}
        // Concluded by another CPU.
        SocketRecord::DENIED => return Action::Drop,
        _ => return Action::Pass,
    }
    let action = match reason {
        Some(reason) => {
            record.reason = reason as u8;
            Verdict::Deny(reason).action(mode)
        }
        None => Action::Pass,
    };
    let ring = match action {
        Action::Pass => {
            record.phase = Phase::Foreign as u8;
            record.apart = 0;
            Ring::Sessions
        }
        Action::Drop => {
            record.apart = SocketRecord::DENIED;
            Ring::SessionsNow
        }
    };
    let mut event = Event::default();
    emit::fill(&mut event, Kind::Older, mode, record);
    emit::event(&event, ring);
    action
}
