//! Server to client: the greeting, and the proof of TLS. Only these bytes, which the server's own kernel
//! sends, make a session secure.

use core::arch::asm;

use aya_ebpf::programs::SkBuffContext;
use musttls_common::counter::Outcome;
use musttls_common::event::{Event, Kind};
use musttls_common::mysql::{
    FLAGS_HIGH_PROTOCOL_41, GREETING_STEPS, Greeting, HEADER_LEN, REFUSAL_LEN_41, REFUSAL_LEN_320,
};
use musttls_common::session::{ListenerClass, Phase, SocketRecord};
use musttls_common::stream::Reader as _;
use musttls_common::tls::{CONTENT_ALERT, SERVER_HELLO_STEPS, ServerHelloReader};
use musttls_common::verdict::{Action, Mode, Reason};

use crate::emit::Ring;
use crate::maps::{EGRESS, EGRESS_ANSWER, EGRESS_X, SOCKETS};
use crate::packet::{self, Tcp};
use crate::policy::{self, Policy};
use crate::{emit, floor, go_on, session, sock};

/// Takes one packet.
#[inline(always)]
pub(crate) fn on_packet(ctx: &SkBuffContext) -> Action {
    let Some(sk) = sock(ctx) else {
        return Action::Pass;
    };
    let Some(record) = SOCKETS.get(sk.cast()) else {
        return Action::Pass;
    };
    if record.phase >= Phase::DECIDED && record.apart == 0 {
        return Action::Pass;
    }
    let phase = record.phase();
    // What the server of a session older than the gate sends is not read; once that is denied, the agent's refusal passes.
    if phase == Phase::Listener || record.older.is_older() {
        return Action::Pass;
    }
    let Ok(tcp) = packet::tcp(ctx) else {
        // What cannot be read cannot be proof, nor the refusal.
        return if phase == Phase::Denied {
            Action::Drop
        } else {
            Action::Pass
        };
    };
    if tcp.is_reset() || tcp.is_pure_ack() {
        return Action::Pass;
    }
    if record.class == ListenerClass::X as u8 {
        return go_on(ctx, record, &EGRESS, EGRESS_X);
    }
    let start = tcp.seq.wrapping_sub(record.server_base);
    let end = start.wrapping_add(tcp.payload_len);
    let greeted_before = record.greeting.is_done();
    if !greeted_before
        && !packet::advance(ctx, &tcp, &mut record.greeting, start, end, GREETING_STEPS)
    {
        record.greeting.give_up();
    }
    if phase == Phase::Denied || !greeted_before && is_denied_now(record) {
        denied(record, &tcp, end, greeted_before)
    } else {
        undecided(ctx, record, end)
    }
}

/// Whether the session is denied by now. Ingress denies it first and then looks for the greeting; egress does the
/// reverse. So one of them sees what the other has done, and the agent learns that the greeting is out.
#[inline(always)]
fn is_denied_now(record: &mut SocketRecord) -> bool {
    let word = &raw mut record.judging;
    // Adds nothing: what was read of the greeting is written before `apart` is read. A full barrier on x86-64, not
    // on arm64, whose barrier needs instructions that came after 5.10 (BPF_FETCH, 5.12).
    // SAFETY: one instruction on four aligned bytes of a record, which lives until the program ends.
    unsafe {
        asm!("lock *(u32 *)({word} + 0) += {zero}", word = in(reg) word, zero = in(reg) 0_i64);
    }
    // SAFETY: a valid place in the record; another CPU may change it meanwhile.
    unsafe { (&raw const record.apart).read_volatile() == SocketRecord::DENIED }
}

#[inline(always)]
fn undecided(ctx: &SkBuffContext, record: &mut SocketRecord, end: u32) -> Action {
    let greeting_len = match record.greeting.greeting() {
        Greeting::Unknown => return Action::Pass,
        Greeting::Error | Greeting::Foreign => return no_login(record),
        Greeting::MysqlX => return go_on(ctx, record, &EGRESS, EGRESS_X),
        Greeting::WithTls | Greeting::WithoutTls => record.greeting.packet_len().unwrap_or(0),
    };
    match session::resolve(record) {
        // Named since the session was opened: a proxy that greets as a server does.
        ListenerClass::Other => return no_login(record),
        ListenerClass::Pending => session::greets(record, ListenerClass::Classic),
        ListenerClass::Classic | ListenerClass::X => {}
    }
    if record.counted == 0 {
        session::seen(record);
    }
    if record.unjudged != 0 {
        return session::spoke_too_early(record);
    }
    if end <= greeting_len {
        return Action::Pass;
    }
    go_on(ctx, record, &EGRESS, EGRESS_ANSWER)
}

/// Takes a packet with (a part of) the server's answer to the greeting's client.
#[inline(always)]
pub(crate) fn on_answer(ctx: &SkBuffContext) -> Action {
    let Some(record) = sock(ctx).and_then(|sk| SOCKETS.get(sk.cast())) else {
        return Action::Pass;
    };
    let (Ok(tcp), Some(greeting_len)) = (packet::tcp(ctx), record.greeting.packet_len()) else {
        return Action::Pass;
    };
    let start = tcp.seq.wrapping_sub(record.server_base);
    let end = start.wrapping_add(tcp.payload_len);
    answered(ctx, record, &tcp, start, end, greeting_len)
}

/// The server sends more than its greeting: its answer to what the client claimed.
#[inline(always)]
fn answered(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    tcp: &Tcp,
    start: u32,
    end: u32,
    greeting_len: u32,
) -> Action {
    if record.phase == Phase::ExceptedUser as u8 {
        // It has read the login that was judged: later bytes cannot change it.
        record.phase = Phase::Excepted as u8;
        emit::count_outcome(record, Outcome::Excepted);
        return Action::Pass;
    }
    if record.phase != Phase::Claimed as u8 {
        return Action::Pass;
    }
    match read_hello(ctx, record, tcp, start, end, greeting_len) {
        Hello::Whole => return floor::judge_server_hello(ctx, record),
        Hello::Part => return Action::Pass,
        Hello::None if !record.hello.is_not_tls() => return Action::Pass,
        Hello::None => {}
    }
    if is_refusal(ctx, tcp, start, greeting_len) {
        record.phase = Phase::Foreign as u8;
        emit::count_outcome(record, Outcome::TlsFailed);
        session::tls_failed(record, policy::mode(record.endpoints.server));
        return Action::Pass;
    }
    let policy = Policy::of(record.endpoints.server);
    session::deny(record, Reason::NotBorneOut, policy.as_ref())
}

/// What there is of a `ServerHello`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hello {
    /// None, or not enough to tell.
    None,
    /// It is one, and more of it is to come: the client cannot answer it yet.
    Part,
    /// All of it, or all that is ever read.
    Whole,
}

/// Reads what is at hand of the server's TLS flight, which begins at `flight` of its stream.
#[inline(always)]
pub(crate) fn read_hello(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    tcp: &Tcp,
    start: u32,
    end: u32,
    flight: u32,
) -> Hello {
    if record.hello.position() == 0 {
        record.hello = ServerHelloReader::at(flight);
    }
    let enough = packet::advance(ctx, tcp, &mut record.hello, start, end, SERVER_HELLO_STEPS);
    let hello = record.hello;
    if !hello.is_proof() {
        Hello::None
    } else if hello.is_done() || !enough {
        Hello::Whole
    } else {
        Hello::Part
    }
}

/// Whether the server's answer ends the handshake: a TLS alert, or an ERR packet.
#[inline(always)]
fn is_refusal(ctx: &SkBuffContext, tcp: &Tcp, start: u32, greeting_len: u32) -> bool {
    const ERR: u8 = 0xff;
    // `AlertLevel` (RFC 8446 section 6). The handshake may go on behind a warning.
    const FATAL: u8 = 2;
    if start > greeting_len {
        return false;
    }
    let answer = tcp.payload + (greeting_len - start);
    let at = |offset: u32| packet::byte(ctx, answer + offset);
    let alert = at(0) == Some(CONTENT_ALERT) && at(1) == Some(3) && at(5) == Some(FATAL);
    // A packet below 64 KiB whose sequence id goes on from the client's, and that begins as an ERR does.
    let error = at(2) == Some(0) && matches!(at(3), Some(2..=3)) && at(HEADER_LEN) == Some(ERR);
    alert || error
}

/// The server's first packet is no greeting: no login follows.
#[inline(always)]
pub(crate) fn no_login(record: &mut SocketRecord) -> Action {
    record.phase = Phase::Foreign as u8;
    if record.counted != 0 {
        emit::count_outcome(record, Outcome::NoLogin);
    }
    Action::Pass
}

/// A packet of a denied session. What goes out is the greeting, behind which the agent puts the refusal,
/// and the refusal. What the server says to the login that the soft landing gave it is not for this client.
#[inline(always)]
fn denied(record: &mut SocketRecord, tcp: &Tcp, end: u32, greeted_before: bool) -> Action {
    if !greeted_before {
        // The client spoke first. The refusal waits for the greeting: tell the agent that it is out.
        if record.greeting.is_done() {
            let mut event = Event::default();
            emit::fill(&mut event, Kind::Denied, Mode::Enforce, record);
            emit::hold_session(&event);
            emit::event(&event, Ring::Denials);
        }
        return Action::Pass;
    }
    let Some(greeting_len) = record.greeting.packet_len() else {
        return Action::Pass;
    };
    let refusal = if record.flags_high & FLAGS_HIGH_PROTOCOL_41 == 0 {
        REFUSAL_LEN_320
    } else {
        REFUSAL_LEN_41
    };
    if session::is_denied_for_tls(record) {
        return if tcp.payload_len == 0 {
            Action::Drop
        } else if end <= greeting_len {
            Action::Pass
        } else {
            floor::lets_out(record, end - greeting_len)
        };
    }
    // A session that is denied for what the server answered has no room for a refusal any more.
    let room = if record.reason == Reason::NotBorneOut as u8 {
        0
    } else {
        refusal
    };
    if tcp.payload_len > 0 && end <= greeting_len + room {
        Action::Pass
    } else {
        Action::Drop
    }
}
