//! Client to server: every segment of an undecided session is judged.

use core::arch::asm;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_TCP_LISTEN;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SkBuffContext;
use musttls_common::counter::{Global, Outcome};
use musttls_common::event::{Kind, Login, TAIL_MAX};
use musttls_common::judge::{Judgement, MAX_HOLDS, Segment, judge, may_overtake};
use musttls_common::mysql::{
    AuthResponse, CLIENT_PROTOCOL_41, FLAGS_HIGH_OFFSET, FLAGS_LOW_OFFSET, HEADER_LEN, USER_MAX,
    USER_OFFSET_41, USER_OFFSET_320, auth_response,
};
use musttls_common::policy::{Found, NO_RULE, Sets, UserKey, Walk};
use musttls_common::session::{Endpoints, ListenerClass, Phase, Place, SocketRecord};
use musttls_common::verdict::{Action, Hold, Mode, Reason, Verdict};

use crate::emit::Ring;
use crate::maps::{
    INGRESS, INGRESS_LOGIN, INGRESS_OLDER, INGRESS_PROXY, INGRESS_THIRD_ACK, INGRESS_X, LISTENERS,
    SCRATCH, SOCKETS, Scratch,
};
use crate::packet::{self, Unreadable};
use crate::place::{self, Cover};
use crate::policy::{self, Client, Policy};
use crate::{early, emit, floor, go_on, session, sock};

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
    if record.apart != 0 {
        return apart(ctx, record);
    }
    if record.phase >= Phase::DECIDED {
        return Action::Pass;
    }
    match Phase::from_u8(record.phase) {
        Phase::Listener => {
            // SAFETY: as above.
            let state = unsafe { (*sk).state };
            if state == BPF_TCP_LISTEN {
                if record.listener_cookie == 0 {
                    // `session::listens` has made it on another CPU and is yet to fill it.
                    fill(ctx, record, place::of_packet(ctx, sk));
                }
                listener(ctx, sk, record)
            } else {
                without_session(ctx, record)
            }
        }
        Phase::Denied => denied(ctx),
        Phase::Plain | Phase::Claimed | Phase::ExceptedUser => undecided(ctx, record),
        Phase::Secure | Phase::Excepted | Phase::Observed | Phase::Foreign | Phase::Older => {
            Action::Pass
        }
    }
}

/// A packet of a session that is denied, or older than the gate.
#[inline(always)]
fn apart(ctx: &SkBuffContext, record: &SocketRecord) -> Action {
    if record.apart == SocketRecord::OLDER {
        // SAFETY: nothing here waits to be dropped.
        unsafe { INGRESS.tail_call(ctx, INGRESS_OLDER) };
        // Not there: it passes as it did before the gate.
        return Action::Pass;
    }
    // Its server has logged it in and waits for a command: a client that gives up frees its locks.
    if record.older.is_older()
        && packet::tcp(ctx).is_ok_and(|tcp| tcp.is_reset() && tcp.payload_len == 0)
    {
        return Action::Pass;
    }
    denied(ctx)
}

/// A listener without a record: none of a server's, or one of which nobody has told. That is from before the gate, or its `listen(2)`
/// has not come to its end: the kernel makes the callback for it (`session::listens`) when connections may come already
/// (`inet_listen`), and a session that were established before that would have no record, ever. So the first packet for a
/// listener gives it one, too.
#[inline(always)]
fn untagged_listener(ctx: &SkBuffContext, sk: *mut aya_ebpf::bindings::bpf_sock) -> Action {
    let place = place::of_packet(ctx, sk);
    // SAFETY: the helper takes the context of a `cgroup_skb` program; the packet's socket is the listener.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let mode = match place::cover(place) {
        Cover::No if is_nobodys(cookie) => return Action::Pass,
        Cover::No | Cover::ByNamespace => None,
        Cover::By(known) => Some(policy::mode(known.server)),
    };
    let Some(record) = SOCKETS.get_or_create(sk.cast()) else {
        if let Some(mode) = mode {
            return held(Hold::NoRecord, mode);
        }
        emit::count_global(Global::ListenerFull);
        return Action::Pass;
    };
    fill(ctx, record, place);
    listener(ctx, sk, record)
}

/// Fills the new record of a listener. Its sessions are of the listener with this cookie: one that had none would be of nobody's.
#[inline(always)]
fn fill(ctx: &SkBuffContext, record: &mut SocketRecord, place: Place) {
    // SAFETY: the helper takes the context of a `cgroup_skb` program; the packet's socket is the listener.
    record.listener_cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    record.abi = musttls_common::ABI_VERSION;
    record.cookie = place.netns;
    record.endpoints.server_addr = place.addr;
    record.endpoints.server_port = place.port as u16;
    record.endpoints.server = policy::server_of(place.port as u16);
}

/// Whether the agent has found that a listener is no server's.
#[inline(always)]
fn is_nobodys(cookie: u64) -> bool {
    // SAFETY: entries are replaced as a whole, and a value of mixed age is still a valid listener.
    let named = unsafe { LISTENERS.get(cookie) };
    named.is_some_and(|named| named.class == ListenerClass::Other as u8 && named.learned == 0)
}

/// How long the agent may take to name a listener before it is asked again, in seconds.
const ASKED_AGAIN: u32 = 5;

/// A packet for a listener that has no name yet: the agent is asked for it, and again if it has not answered. An event may be lost, and what it
/// could not find out then it may now. Until then what could be a login waits, also where it is none.
#[inline(always)]
fn ask(record: &mut SocketRecord, port: u32) {
    // 0 stands for never.
    let now = (policy::boottime() / 1_000_000_000) as u32 | 1;
    if record.client_base != 0 && now.wrapping_sub(record.client_base) < ASKED_AGAIN {
        return;
    }
    record.client_base = now;
    // Its place is covered in another namespace than its own, and it has a name.
    if is_nobodys(record.listener_cookie) {
        return;
    }
    let endpoints = Endpoints {
        server_addr: record.endpoints.server_addr,
        server_port: port as u16,
        ..Endpoints::default()
    };
    emit::listener(record.listener_cookie, record.cookie, endpoints);
}

/// What a listener is: what the agent has named it; else by its place, if that is covered; else what its greeting has told. A class that
/// comes from a place is not kept, and goes with its entry.
#[inline(always)]
fn class_of(record: &mut SocketRecord) -> ListenerClass {
    if record.is_named() {
        return ListenerClass::from_u8(record.class);
    }
    match place::cover(record.place()) {
        Cover::By(known) => {
            record.endpoints.server = known.server;
            ListenerClass::from_u8(known.class)
        }
        // It is told when a session is established (`session::accepted_as`).
        Cover::ByNamespace => ListenerClass::Pending,
        Cover::No => session::resolve(record),
    }
}

/// A packet for a listening socket: SYN, or the third ACK of the handshake. Payload is delivered before the session
/// has judged a segment: it is held, but for what [`early`] hands over.
#[inline(always)]
fn listener(
    ctx: &SkBuffContext,
    sk: *mut aya_ebpf::bindings::bpf_sock,
    record: &mut SocketRecord,
) -> Action {
    let scratch = SCRATCH.get_ptr_mut(0);
    if let Some(scratch) = scratch {
        // SAFETY: the entry belongs to this CPU, and ingress does not interrupt itself.
        unsafe { (*scratch).early.forget() };
    }
    let class = class_of(record);
    if class == ListenerClass::Other {
        // From here on its sessions cost nothing.
        SOCKETS.delete(sk.cast());
        return Action::Pass;
    }
    if class == ListenerClass::Pending {
        // SAFETY: `sk` is not null, and the verifier checks the read.
        ask(record, unsafe { (*sk).src_port });
    }
    let tcp = packet::tcp(ctx);
    if let Ok(tcp) = &tcp
        && tcp.payload_len == 0
        && !tcp.is_urgent()
    {
        return Action::Pass;
    }
    let mode = policy::mode(record.endpoints.server);
    let Some(scratch) = scratch else {
        return held(Hold::NoRecord, mode);
    };
    // SAFETY: as above.
    let scratch = unsafe { &mut *scratch };
    match tcp {
        Ok(tcp) if tcp.is_urgent() => held(Hold::Urgent, mode),
        Ok(tcp) if class == ListenerClass::Classic && early::may_be(&tcp) => {
            scratch.segment = Segment {
                start: 0,
                len: tcp.payload_len,
                urgent: false,
            };
            scratch.payload = tcp.payload;
            scratch.header_index = 0;
            scratch.header_at = 0;
            scratch.early.tcp = tcp.header;
            scratch.early.seq = tcp.seq;
            scratch.early.listener_cookie = record.listener_cookie;
            go_on(ctx, record, &INGRESS, INGRESS_THIRD_ACK)
        }
        Ok(_) => held(Hold::NotEstablished, mode),
        Err(Unreadable) => held(Hold::Unreadable, mode),
    }
}

/// A connected socket whose record is still its listener's: `sock_ops` did not run for it.
#[inline(always)]
fn without_session(ctx: &SkBuffContext, record: &mut SocketRecord) -> Action {
    match class_of(record) {
        ListenerClass::Classic | ListenerClass::X => {
            held(Hold::NoRecord, policy::mode(record.endpoints.server))
        }
        ListenerClass::Pending => {
            // It is about to run, on another CPU: should the server greet, nobody has judged this segment.
            let is_empty = packet::tcp(ctx).is_ok_and(|tcp| tcp.payload_len == 0);
            if !is_empty {
                record.client_spoke = 1;
                record.unjudged = 1;
            }
            Action::Pass
        }
        ListenerClass::Other => Action::Pass,
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

/// Holds a segment of a session, with its place behind the headers; one that goes on like that is denied in the
/// end.
#[inline(always)]
pub(crate) fn hold(
    record: &mut SocketRecord,
    segment: Segment,
    hold: Hold,
    policy: Option<&Policy<'_>>,
) -> Action {
    let mode = policy.map_or(Mode::Enforce, Policy::mode);
    let action = held(hold, mode);
    let whole = Segment {
        start: segment.start.wrapping_add(i32::from(record.headers.end())),
        ..segment
    };
    if action == Action::Drop && whole.counts_as_hold() {
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
    let is_empty = segment.len == 0 || segment.end() <= 0;
    if is_empty && !segment.urgent {
        return Action::Pass;
    }
    let class = session::resolve(record);
    if class == ListenerClass::Other {
        // Named since the session was opened.
        record.phase = Phase::Foreign as u8;
        return Action::Pass;
    }
    if record.counted == 0 && class != ListenerClass::Pending {
        // Named, or its listener learned, since the session was opened.
        session::seen(record);
    }
    if record.unjudged != 0 && class != ListenerClass::Pending {
        return session::spoke_too_early(record);
    }
    if record.multipath != 0 && !is_empty {
        // Of MPTCP, the first bytes tell nothing.
        if class == ListenerClass::Pending {
            return held(Hold::BeforeGreeting, policy::mode(record.endpoints.server));
        }
        let policy = Policy::of(record.endpoints.server);
        return session::deny(record, Reason::Multipath, policy.as_ref());
    }
    if class == ListenerClass::X {
        return go_on(ctx, record, &INGRESS, INGRESS_X);
    }
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return held(Hold::NoRecord, policy::mode(record.endpoints.server));
    };
    // SAFETY: the entry belongs to this CPU, and ingress does not interrupt itself.
    let scratch = unsafe { &mut *scratch };
    scratch.segment = segment;
    scratch.payload = tcp.payload;
    scratch.header_index = 0;
    scratch.header_at = 0;
    let is_login = record
        .headers
        .login()
        .is_some_and(|at| segment.start >= i32::from(at));
    if segment.urgent || is_login && class != ListenerClass::Pending {
        go_on(ctx, record, &INGRESS, INGRESS_LOGIN)
    } else {
        go_on(ctx, record, &INGRESS, INGRESS_PROXY)
    }
}

/// What `on_ingress` hands on to the programs that it calls: the session and, in `scratch`, its segment.
#[inline(always)]
pub(crate) fn handed_on<'a>(
    ctx: &SkBuffContext,
) -> Option<(&'a mut SocketRecord, &'a mut Scratch)> {
    let record = sock(ctx).and_then(|sk| SOCKETS.get(sk.cast()))?;
    let scratch = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: the entry belongs to this CPU, and ingress does not interrupt itself.
    Some((record, unsafe { &mut *scratch }))
}

/// Runs `judge` if no other CPU does for the same session.
#[inline(always)]
pub(crate) fn alone<T>(
    record: &mut SocketRecord,
    judge: impl FnOnce(&mut SocketRecord) -> T,
) -> Option<T> {
    let counter = &raw mut record.judging;
    add(counter, 1);
    // SAFETY: a valid place in the record; another CPU may change it meanwhile.
    let is_alone = unsafe { counter.read_volatile() } == 1;
    let judged = is_alone.then(|| judge(record));
    add(counter, -1);
    judged
}

/// Holds a segment while another CPU judges one of its session.
#[inline(always)]
pub(crate) fn concurrent(record: &SocketRecord) -> Action {
    held(Hold::Concurrent, policy::mode(record.endpoints.server))
}

/// Adds to a counter that other CPUs change, too.
#[inline(always)]
fn add(counter: *mut u32, change: i32) {
    // BPF_XADD (all kernels); Rust's atomics are not available on the BPF target.
    // SAFETY: one instruction on four aligned bytes of a record, which lives until the program ends.
    unsafe {
        asm!("lock *(u32 *)({counter} + 0) += {change}", counter = in(reg) counter, change = in(reg) i64::from(change));
    }
}

/// A segment with bytes of the login, all of whose headers have been judged; or one with the URG flag.
#[inline(always)]
pub(crate) fn on_login(ctx: &SkBuffContext) -> Action {
    let Some((record, scratch)) = handed_on(ctx) else {
        return Action::Drop;
    };
    let payload = scratch.payload;
    let segment = record.headers.behind(scratch.segment);
    if segment.len != 0 && segment.end() > 0 {
        record.client_spoke = 1;
    }
    let login_follows = i64::from(segment.start) >= i64::from(record.login_head_end);
    if record.phase == Phase::ExceptedUser as u8 && login_follows && !segment.urgent {
        record.passes_from(segment.start);
        return Action::Pass;
    }
    let claimed = record.phase == Phase::Claimed as u8;
    let judgement = judge(segment, record.greeting.greeting(), claimed, |index| {
        packet::byte(ctx, payload + index)
    });
    let reason = match judgement {
        Judgement::Hold(Hold::Gap) if overtakes(ctx, record, payload, segment) => {
            return Action::Pass;
        }
        Judgement::Neutral | Judgement::Claim => None,
        Judgement::Plaintext(reason) => {
            return plaintext(ctx, record, scratch, segment, reason);
        }
        Judgement::SplitClaim => Some(Hold::Split),
        Judgement::Hold(reason) => Some(reason),
    };
    if let Some(reason) = reason {
        let policy = Policy::of(record.endpoints.server);
        if hold(record, segment, reason, policy.as_ref()) == Action::Drop {
            return Action::Drop;
        }
    }
    note_header(ctx, record, payload, segment);
    let claims = matches!(judgement, Judgement::Claim | Judgement::SplitClaim);
    if claims {
        record.passes_from(FLAGS_HIGH_OFFSET as i32 + 1);
        if record.phase == Phase::Plain as u8 {
            record.phase = Phase::Claimed as u8;
        }
    }
    floor::behind_claim(ctx, record)
}

/// Lets a segment pass ahead of its login where that is safe, and enters it: in the record before the segment is in the
/// server's queue.
#[inline(always)]
pub(crate) fn overtakes(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    payload: u32,
    segment: Segment,
) -> bool {
    let overtakes = record.phase == Phase::Plain as u8
        && may_overtake(
            segment,
            record.greeting.greeting(),
            record.ahead_from(),
            |index| packet::byte(ctx, payload + index),
        );
    if overtakes {
        record.client_spoke = 1;
        record.passes_from(segment.start);
    }
    overtakes
}

/// Keeps the packet header of the login: the soft landing needs to know what the server has read.
#[inline(always)]
fn note_header(ctx: &SkBuffContext, record: &mut SocketRecord, payload: u32, segment: Segment) {
    if segment.start >= HEADER_LEN as i32 {
        return;
    }
    let mut offset = 0;
    while offset < HEADER_LEN {
        if segment.covers(offset) {
            let byte = packet::byte(ctx, payload + segment.payload_index(offset));
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
pub(crate) enum User {
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
    scratch: &mut Scratch,
    segment: Segment,
    reason: Reason,
) -> Action {
    let payload = scratch.payload;
    note_header(ctx, record, payload, segment);
    if segment.covers(FLAGS_HIGH_OFFSET) {
        let index = segment.payload_index(FLAGS_HIGH_OFFSET);
        record.flags_high = packet::byte(ctx, payload + index).unwrap_or(0);
    }
    let policy = Policy::of(record.endpoints.server);
    if let Some(policy) = &policy {
        record.policy_version = policy.version();
        let client = policy.client(ctx, record);
        let cookie = record.cookie;
        let (user, found) = exception::<true>(
            ctx,
            scratch,
            segment,
            reason,
            policy,
            &client,
            |end| record.is_judged_alone(end),
            |sets, walk| policy.answered(sets, walk, cookie),
        );
        if let Found::Rule(rule) = found {
            let for_all = policy.is_for_any_login(rule) || policy.mode() == Mode::Observe;
            return excepted(record, scratch, rule, for_all, policy.mode());
        }
        if user == User::Cut && policy.names_users() && policy.mode() == Mode::Enforce {
            return hold(record, segment, Hold::UserUnreadable, Some(policy));
        }
        if found == Found::Depends {
            return depends(record, scratch, segment, reason, policy);
        }
    } else {
        read_user(ctx, scratch, segment, reason);
    }
    refused(
        record,
        scratch,
        reason,
        policy.as_ref().map_or(Mode::Enforce, Policy::mode),
    )
}

/// Reads what a plaintext login says of itself.
#[inline(always)]
fn read_user(ctx: &SkBuffContext, scratch: &mut Scratch, segment: Segment, reason: Reason) -> User {
    if reason == Reason::NotALogin {
        // What stands where a login has its user is none.
        clear(&mut scratch.login);
        User::TooLong
    } else {
        read_login(ctx, segment, scratch)
    }
}

/// A plaintext login that the agent is asked about: it is held, and its client's TCP sends it again. In observe mode it passes, and the
/// agent says in its record which exception it would have been.
#[inline(always)]
fn depends(
    record: &mut SocketRecord,
    scratch: &mut Scratch,
    segment: Segment,
    reason: Reason,
    policy: &Policy<'_>,
) -> Action {
    let mode = policy.mode();
    let [a, b, c, _] = record.login_header;
    let login_end = HEADER_LEN + u32::from_le_bytes([a, b, c, 0]);
    let action = Verdict::Hold(Hold::Asked).action(mode);
    record.rule = NO_RULE;
    let (kind, ring) = match action {
        Action::Pass => {
            record.reason = reason as u8;
            (session::decide(record, action), Ring::AsksForRecord)
        }
        Action::Drop => (Kind::Asked, Ring::Asks),
    };
    emit::fill(&mut scratch.event, kind, mode, record);
    scratch.event.local = u8::from(scratch.walk.is_local());
    scratch.event.cut = u8::from((segment.end() as u32) < login_end);
    emit::login(scratch, ring);
    match action {
        Action::Pass => Action::Pass,
        Action::Drop => hold(record, segment, Hold::Asked, Some(policy)),
    }
}

/// Reads a plaintext login and looks for an exception that allows it to come from `client`; for one that names users if
/// nothing that has passed `is_alone` in place of its head, up to an offset. `depends` as in [`Policy::found`].
#[inline(always)]
#[expect(
    clippy::too_many_arguments,
    reason = "it is inlined, and each is a thing of its own"
)]
pub(crate) fn exception<const CONDITIONS: bool>(
    ctx: &SkBuffContext,
    scratch: &mut Scratch,
    segment: Segment,
    reason: Reason,
    policy: &Policy<'_>,
    client: &Client,
    is_alone: impl FnOnce(u32) -> bool,
    depends: impl FnOnce(&Sets<'_>, &Walk) -> Found,
) -> (User, Found) {
    let user = read_user(ctx, scratch, segment, reason);
    scratch.user.slot = u64::from(policy.slot());
    scratch.user.user = UserKey(scratch.login.user);
    let head_end = user_offset(scratch.login.caps) + u32::from(scratch.login.user_len) + 1;
    let named = if user == User::Whole && is_alone(head_end) {
        Some(&scratch.user)
    } else {
        None
    };
    (
        user,
        policy.found::<CONDITIONS>(client, named, &mut scratch.walk, depends),
    )
}

/// No exception allows the login that was read.
#[inline(always)]
pub(crate) fn refused(
    record: &mut SocketRecord,
    scratch: &mut Scratch,
    reason: Reason,
    mode: Mode,
) -> Action {
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

/// An exception allows the login. One that names users does not hold `for_all` bytes but for these: each segment that
/// covers the user name is judged again until the server has answered.
#[inline(always)]
pub(crate) fn excepted(
    record: &mut SocketRecord,
    scratch: &mut Scratch,
    rule: u16,
    for_all: bool,
    mode: Mode,
) -> Action {
    let first = record.phase != Phase::ExceptedUser as u8;
    record.rule = rule;
    record.reason = 0;
    if for_all {
        record.phase = Phase::Excepted as u8;
        emit::count_outcome(record, Outcome::Excepted);
    } else {
        if first {
            let user_at = user_offset(scratch.login.caps);
            record.login_head_end = user_at + u32::from(scratch.login.user_len) + 1;
        }
        record.phase = Phase::ExceptedUser as u8;
    }
    if first {
        emit::fill(&mut scratch.event, Kind::Excepted, mode, record);
        emit::login(scratch, Ring::Sessions);
    }
    Action::Pass
}

/// Offset of the user name in the client's stream behind its headers.
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
fn read_login(ctx: &SkBuffContext, segment: Segment, scratch: &mut Scratch) -> User {
    let login = &mut scratch.login;
    clear(login);
    // A packet header that came before is no loss. Each segment that passes holds the flags and the whole user.
    if segment.start > FLAGS_LOW_OFFSET as i32 {
        return User::Cut;
    }
    // `at` turns offsets in the client's stream behind its headers into places in the packet.
    let origin = scratch.payload.wrapping_sub(segment.start.cast_unsigned());
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
