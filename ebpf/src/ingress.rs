//! Client to server: every segment of an undecided session is judged.

use aya_ebpf::bindings::BPF_TCP_LISTEN;
use aya_ebpf::programs::SkBuffContext;
use musttls_common::counter::Outcome;
use musttls_common::event::{Kind, Login, TAIL_MAX};
use musttls_common::judge::{Judgement, MAX_HOLDS, Segment, judge};
use musttls_common::mysql::{
    AuthResponse, CLIENT_PROTOCOL_41, FLAGS_HIGH_OFFSET, FLAGS_LOW_OFFSET, HEADER_LEN,
    SEQUENCE_ID_OFFSET, USER_MAX, USER_OFFSET_41, USER_OFFSET_320, auth_response,
};
use musttls_common::mysqlx::FIRST_RECORD_MAX;
use musttls_common::policy::{NO_RULE, UserKey};
use musttls_common::session::{ListenerClass, Phase, SocketRecord};
use musttls_common::tls::begins_handshake;
use musttls_common::verdict::{Action, Hold, Mode, Reason, Verdict};

use crate::emit::Ring;
use crate::maps::{INGRESS, INGRESS_X, PORTS, SCRATCH, SOCKETS, Scratch};
use crate::packet::{self, Tcp, Unreadable};
use crate::policy::{self, Policy};
use crate::{emit, floor, go_on, session, sock};

/// Takes one packet.
#[inline(always)]
pub(crate) fn on_packet(ctx: &SkBuffContext) -> Action {
    let Some(sk) = sock(ctx) else {
        return Action::Pass;
    };
    let Some(record) = SOCKETS.get(sk.cast()) else {
        // SAFETY: `sk` is not null, and the verifier checks the read.
        let state = unsafe { (*sk).state };
        return if state == BPF_TCP_LISTEN {
            untagged_listener(ctx, sk)
        } else {
            Action::Pass
        };
    };
    if record.denied != 0 {
        return denied(ctx);
    }
    if record.phase >= Phase::DECIDED {
        return Action::Pass;
    }
    match Phase::from_u8(record.phase) {
        Phase::Listener => {
            // SAFETY: as above.
            let state = unsafe { (*sk).state };
            if state == BPF_TCP_LISTEN {
                listener(ctx, sk, record)
            } else {
                without_session(record)
            }
        }
        Phase::Denied => denied(ctx),
        Phase::Plain | Phase::Claimed | Phase::ExceptedUser => undecided(ctx, record),
        Phase::Secure | Phase::Excepted | Phase::Observed | Phase::Foreign => Action::Pass,
    }
}

/// A listener without a record: one that may not be touched has its port in [`PORTS`].
#[inline(always)]
fn untagged_listener(ctx: &SkBuffContext, sk: *mut aya_ebpf::bindings::bpf_sock) -> Action {
    // SAFETY: `sk` is not null, and the verifier checks the read.
    let port = unsafe { (*sk).src_port };
    // SAFETY: entries are replaced as a whole, and a value of mixed age is still a valid listener.
    let Some(known) = (unsafe { PORTS.get(port) }) else {
        return Action::Pass;
    };
    let Some(record) = SOCKETS.get_or_create(sk.cast()) else {
        emit::count_hold(Hold::NoRecord);
        return Verdict::Hold(Hold::NoRecord).action(policy::mode(known.server));
    };
    record.endpoints.server = known.server;
    record.class = known.class;
    record.abi = musttls_common::ABI_VERSION;
    listener(ctx, sk, record)
}

/// A packet for a listening socket: SYN, or the third ACK of the handshake. Payload would be delivered
/// before the session has a record of its own.
#[inline(always)]
fn listener(
    ctx: &SkBuffContext,
    sk: *mut aya_ebpf::bindings::bpf_sock,
    record: &mut SocketRecord,
) -> Action {
    let class = session::resolve(record);
    if class == ListenerClass::Other {
        // From here on its sessions cost nothing.
        SOCKETS.delete(sk.cast());
        return Action::Pass;
    }
    match packet::tcp(ctx) {
        Ok(tcp) if tcp.is_urgent() => {
            return held(Hold::Urgent, policy::mode(record.endpoints.server));
        }
        Ok(tcp) if tcp.payload_len == 0 => return Action::Pass,
        Ok(_) => {}
        Err(Unreadable) => return held(Hold::Unreadable, policy::mode(record.endpoints.server)),
    }
    held(Hold::NotEstablished, policy::mode(record.endpoints.server))
}

/// A connected socket whose record is still its listener's: `sock_ops` did not run for it.
#[inline(always)]
fn without_session(record: &SocketRecord) -> Action {
    match ListenerClass::from_u8(record.class) {
        ListenerClass::Classic | ListenerClass::X => {
            held(Hold::NoRecord, policy::mode(record.endpoints.server))
        }
        ListenerClass::Pending | ListenerClass::Other => Action::Pass,
    }
}

/// A packet of a denied session. The server must not see the client go either: that would count as an
/// aborted handshake against the client's address.
#[inline(always)]
fn denied(ctx: &SkBuffContext) -> Action {
    match packet::tcp(ctx) {
        Ok(tcp) if tcp.is_pure_ack() => Action::Pass,
        Ok(_) | Err(Unreadable) => Action::Drop,
    }
}

#[inline(always)]
pub(crate) fn held(hold: Hold, mode: Mode) -> Action {
    emit::count_hold(hold);
    Verdict::Hold(hold).action(mode)
}

/// Holds a segment of a session; one that goes on like that is denied in the end.
#[inline(always)]
pub(crate) fn hold(
    record: &mut SocketRecord,
    segment: Segment,
    hold: Hold,
    policy: Option<&Policy<'_>>,
) -> Action {
    let mode = policy.map_or(Mode::Enforce, Policy::mode);
    let action = held(hold, mode);
    if action == Action::Drop && segment.counts_as_hold() {
        record.holds += 1;
        if record.holds > MAX_HOLDS {
            session::deny(record, Reason::Unjudgeable, policy);
        }
    }
    action
}

#[inline(always)]
fn undecided(ctx: &SkBuffContext, record: &mut SocketRecord) -> Action {
    let Ok(tcp) = packet::tcp(ctx) else {
        return held(Hold::Unreadable, policy::mode(record.endpoints.server));
    };
    let segment = Segment {
        start: tcp.seq.wrapping_sub(record.client_base).cast_signed(),
        len: tcp.payload_len,
        urgent: tcp.is_urgent(),
    };
    // A segment without payload, or before the stream, sets the urgent pointer too.
    let is_empty = tcp.payload_len == 0 || segment.end() <= 0;
    if is_empty && !segment.urgent {
        return Action::Pass;
    }
    match session::resolve(record) {
        ListenerClass::Other => {
            // Named since the session was opened.
            record.phase = Phase::Foreign as u8;
            return Action::Pass;
        }
        ListenerClass::Pending if !segment.urgent => {
            return pending(ctx, record, &tcp, segment);
        }
        ListenerClass::Pending | ListenerClass::Classic | ListenerClass::X => {}
    }
    if record.unjudged != 0 && record.class != ListenerClass::Pending as u8 {
        return session::spoke_too_early(record);
    }
    if record.multipath != 0 && !is_empty {
        let policy = Policy::of(record.endpoints.server);
        return session::deny(record, Reason::Multipath, policy.as_ref());
    }
    if record.class == ListenerClass::X as u8 {
        return go_on(ctx, record, &INGRESS, INGRESS_X);
    }
    if !is_empty {
        record.client_spoke = 1;
    }
    let login_follows = i64::from(segment.start) >= i64::from(record.login_head_end);
    if record.phase == Phase::ExceptedUser as u8 && login_follows && !segment.urgent {
        return Action::Pass;
    }
    let claimed = record.phase == Phase::Claimed as u8;
    let judgement = judge(segment, record.greeting.greeting(), claimed, |index| {
        packet::byte(ctx, tcp.payload + index)
    });
    let reason = match judgement {
        Judgement::Neutral | Judgement::Claim => None,
        Judgement::Plaintext(reason) => return plaintext(ctx, record, &tcp, segment, reason),
        Judgement::SplitClaim => Some(Hold::Split),
        Judgement::Hold(reason) => Some(reason),
    };
    if let Some(reason) = reason {
        let policy = Policy::of(record.endpoints.server);
        if hold(record, segment, reason, policy.as_ref()) == Action::Drop {
            return Action::Drop;
        }
    }
    note_header(ctx, record, &tcp, segment);
    let claims = matches!(judgement, Judgement::Claim | Judgement::SplitClaim);
    if claims && record.phase == Phase::Plain as u8 {
        record.phase = Phase::Claimed as u8;
    }
    floor::behind_claim(ctx, record)
}

/// What a client's first bytes look like, on a listener that nobody has named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// A login of either protocol, or what may become one.
    Login,
    /// A TLS record.
    Tls,
    /// Something else.
    Other,
}

/// Looks at the first bytes of the client's stream. The sequence id of the first packet of a login is 1. A TLS
/// `ClientHello` can have a 1 there too, as the high byte of its length; it is told by its first six bytes (RFC
/// 8446 sections 5.1 and 4), the last of which would be capability flags without `CLIENT_PROTOCOL_41` in a login.
/// In X Protocol a login is a frame below 64 MiB of type 4, `AuthenticateStart`, maybe behind one of type 1 to 3.
///
/// All this is told from one segment, and a part of it could be that of any login: the server might take the rest
/// from another copy.
#[inline(always)]
fn first(ctx: &SkBuffContext, tcp: &Tcp, segment: Segment) -> First {
    const CLIENT_HELLO: u8 = 1;
    if segment.start > FLAGS_HIGH_OFFSET as i32 {
        return First::Other;
    }
    if segment.start != 0 || !segment.covers(SEQUENCE_ID_OFFSET) {
        return First::Login;
    }
    let at = |offset: u32| packet::byte(ctx, tcp.payload + offset);
    let sequence_id = at(SEQUENCE_ID_OFFSET);
    let tls = matches!((at(0), at(1), at(2)), (Some(a), Some(b), Some(c)) if begins_handshake(a, b, c))
        && at(5) == Some(CLIENT_HELLO);
    let x = matches!(sequence_id, Some(0..=4)) && matches!(at(4), Some(1..=4));
    if tls {
        First::Tls
    } else if x || sequence_id == Some(1) {
        First::Login
    } else {
        First::Other
    }
}

/// A session of a listener that nobody has named: it is held only if it looks like a login that comes
/// before the greeting. Once the server greets, its class is known. What begins as a TLS record does, and is
/// longer than a first one can be, may be a long packet with a login in it.
#[inline(always)]
fn pending(ctx: &SkBuffContext, record: &mut SocketRecord, tcp: &Tcp, segment: Segment) -> Action {
    let first = first(ctx, tcp, segment);
    if first == First::Tls {
        record.tls_first = 1;
    }
    let too_long = record.tls_first != 0 && segment.end() > i64::from(FIRST_RECORD_MAX);
    // Of MPTCP, the first bytes tell nothing.
    if first == First::Login || too_long || record.multipath != 0 {
        return held(Hold::BeforeGreeting, policy::mode(record.endpoints.server));
    }
    record.client_spoke = 1;
    record.unjudged = 1;
    Action::Pass
}

/// Keeps the packet header of the login: the soft landing needs to know what the server has read.
#[inline(always)]
fn note_header(ctx: &SkBuffContext, record: &mut SocketRecord, tcp: &Tcp, segment: Segment) {
    if segment.start >= HEADER_LEN as i32 {
        return;
    }
    let mut offset = 0;
    while offset < HEADER_LEN {
        if segment.covers(offset) {
            let byte = packet::byte(ctx, tcp.payload + segment.payload_index(offset));
            if let (Some(byte), Some(place)) = (byte, record.login_header.get_mut(offset as usize))
            {
                *place = byte;
            }
        }
        offset += 1;
    }
}

/// How much of a login's user name a segment holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum User {
    /// All of it.
    Whole,
    /// Not all of it: TCP may yet send it in one piece.
    Cut,
    /// It is longer than any name that policy can hold.
    TooLong,
}

/// A plaintext login: policy decides.
#[inline(always)]
fn plaintext(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    tcp: &Tcp,
    segment: Segment,
    reason: Reason,
) -> Action {
    note_header(ctx, record, tcp, segment);
    if segment.covers(FLAGS_HIGH_OFFSET) {
        let index = segment.payload_index(FLAGS_HIGH_OFFSET);
        record.flags_high = packet::byte(ctx, tcp.payload + index).unwrap_or(0);
    }
    let policy = Policy::of(record.endpoints.server);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return held(
            Hold::NoRecord,
            policy.as_ref().map_or(Mode::Enforce, Policy::mode),
        );
    };
    // SAFETY: the entry belongs to this CPU, and ingress does not interrupt itself.
    let scratch = unsafe { &mut *scratch };
    let user = if reason == Reason::NotALogin {
        // What stands where a login has its user is none.
        clear(&mut scratch.login);
        User::TooLong
    } else {
        read_login(ctx, tcp, segment, scratch)
    };

    if let Some(policy) = &policy {
        record.policy_version = policy.version();
        scratch.user.slot = u64::from(policy.slot());
        scratch.user.user = UserKey(scratch.login.user);
        let named = if user == User::Whole {
            Some(&scratch.user)
        } else {
            None
        };
        if let Some(rule) = policy.exception(&record.endpoints, named, &mut scratch.walk) {
            return excepted(record, scratch, policy, rule);
        }
        if user == User::Cut && policy.names_users() && policy.mode() == Mode::Enforce {
            return hold(record, segment, Hold::UserUnreadable, Some(policy));
        }
    }

    let mode = policy.as_ref().map_or(Mode::Enforce, Policy::mode);
    let action = Verdict::Deny(reason).action(mode);
    record.reason = reason as u8;
    record.rule = NO_RULE;
    let kind = session::decide(record, action);
    emit::fill(&mut scratch.event, kind, mode, record);
    if action == Action::Drop {
        emit::hold_session(&scratch.event);
    }
    emit::login(scratch, emit::ring_of(action));
    action
}

/// An exception allows the login. One that names users allows these bytes only: each segment that
/// covers the user name is judged again until the server has answered.
#[inline(always)]
fn excepted(
    record: &mut SocketRecord,
    scratch: &mut Scratch,
    policy: &Policy<'_>,
    rule: u16,
) -> Action {
    let first = record.phase != Phase::ExceptedUser as u8;
    record.rule = rule;
    record.reason = 0;
    if policy.is_for_any_user(rule) || policy.mode() == Mode::Observe {
        record.phase = Phase::Excepted as u8;
    } else {
        if first {
            let user_at = user_offset(scratch.login.caps);
            record.login_head_end = user_at + u32::from(scratch.login.user_len) + 1;
        }
        record.phase = Phase::ExceptedUser as u8;
    }
    if first {
        emit::count_outcome(record, Outcome::Excepted);
        emit::fill(&mut scratch.event, Kind::Excepted, policy.mode(), record);
        emit::login(scratch, Ring::Sessions);
    }
    Action::Pass
}

/// Offset of the user name in the client's stream.
#[inline(always)]
const fn user_offset(caps: u32) -> u32 {
    if caps & CLIENT_PROTOCOL_41 == 0 {
        USER_OFFSET_320
    } else {
        USER_OFFSET_41
    }
}

#[inline(always)]
const fn clear(login: &mut Login) {
    login.caps = 0;
    login.user_len = 0;
    login.tail_len = 0;
    login.user = [0; USER_MAX];
}

/// Copies what a login says to `scratch`, but for its auth response, which is never read.
#[inline(always)]
fn read_login(ctx: &SkBuffContext, tcp: &Tcp, segment: Segment, scratch: &mut Scratch) -> User {
    let login = &mut scratch.login;
    clear(login);
    // A packet header that came before is no loss. Each segment that passes holds the flags and the whole user.
    if segment.start > FLAGS_LOW_OFFSET as i32 {
        return User::Cut;
    }
    // Offsets in the client's stream are positive here, and `at` turns them into places in the packet.
    let origin = tcp.payload.wrapping_sub(segment.start.cast_unsigned());
    let at = |offset: u32| origin.wrapping_add(offset);
    let end = segment.end() as u32;

    let Some(caps) = packet::u32_le(ctx, at(FLAGS_LOW_OFFSET)) else {
        return User::Cut;
    };
    let is_41 = caps & CLIENT_PROTOCOL_41 != 0;
    login.caps = if is_41 { caps } else { caps & 0xffff };

    let user_at = user_offset(caps);
    let mut len = 0;
    loop {
        if user_at + len >= end {
            return User::Cut;
        }
        let Some(byte) = packet::byte(ctx, at(user_at + len)) else {
            return User::Cut;
        };
        if byte == 0 {
            break;
        }
        let Some(place) = login.user.get_mut(len as usize) else {
            return User::TooLong;
        };
        *place = byte;
        len += 1;
    }
    login.user_len = len as u16;
    // Read back from the map, so that the verifier follows what comes once, not for each length.
    // SAFETY: a valid place in the scratch record.
    let len = u32::from(unsafe { (&raw const login.user_len).read_volatile() });

    let auth_at = user_at + len + 1;
    if is_41
        && auth_at < end
        && let Some(length) = packet::byte(ctx, at(auth_at))
        && let AuthResponse::Ends(skip) = auth_response(caps, length)
    {
        let tail_at = auth_at + skip;
        if tail_at < end {
            let len = (end - tail_at).min(TAIL_MAX as u32);
            if packet::copy(ctx, at(tail_at), len, &mut login.tail) {
                login.tail_len = len as u16;
            }
        }
    }
    User::Whole
}
