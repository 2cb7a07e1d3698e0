//! Client to server: PROXY protocol headers before the login, and sessions of listeners that nobody has named.
//!
//! A program of its own, called by `on_ingress` (`bpf_tail_call`) for the first bytes of a session, until the login has
//! begun. What the login's bytes mean is `ingress::on_login`'s to say.

use core::arch::asm;

use aya_ebpf::programs::SkBuffContext;
use musttls_common::judge::Segment;
use musttls_common::mysql::{FLAGS_HIGH_OFFSET, SEQUENCE_ID_OFFSET};
use musttls_common::mysqlx::FIRST_RECORD_MAX;
use musttls_common::proxy::{Found, Head, HeaderReader, Parsed, Source, WINDOW};
use musttls_common::session::{ListenerClass, SocketRecord};
use musttls_common::tls::begins_client_hello;
use musttls_common::verdict::{Action, Hold, Mode, Reason};

use crate::maps::{INGRESS, INGRESS_LOGIN, INGRESS_PROXY, Scratch};
use crate::packet;
use crate::policy::{self, Policy};
use crate::{go_on, ingress, session};

/// What is to be done with a packet.
enum Next {
    /// The next header in it is to be judged.
    Header,
    /// The login in it is to be judged.
    Login,
    Pass,
    Drop,
}

impl Next {
    #[inline(always)]
    const fn is(action: Action) -> Self {
        match action {
            Action::Pass => Self::Pass,
            Action::Drop => Self::Drop,
        }
    }
}

/// Takes one header in a segment with payload of an undecided session, unless its login has begun before that.
#[inline(always)]
pub(crate) fn on_packet(ctx: &SkBuffContext) -> Action {
    let Some((record, scratch)) = ingress::handed_on(ctx) else {
        return Action::Drop;
    };
    // The first copy of a header decides for the rest.
    let next = ingress::alone(record, |record| judge(ctx, record, scratch))
        .unwrap_or_else(|| Next::is(ingress::concurrent(record)));
    match next {
        Next::Header => go_on(ctx, record, &INGRESS, INGRESS_PROXY),
        Next::Login => go_on(ctx, record, &INGRESS, INGRESS_LOGIN),
        Next::Pass => Action::Pass,
        Next::Drop => Action::Drop,
    }
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, record: &mut SocketRecord, scratch: &mut Scratch) -> Next {
    let segment = scratch.segment;
    let index = scratch.header_index as usize & 7;
    let at = scratch.header_at;
    let known = record.headers.has(index);
    let is_first = record.headers.proxied.source == Source::Direct as u8;
    let ahead_from = record.ahead_from;
    let head = record
        .headers
        .judge(segment, index, at, ahead_from, |place| {
            read(
                ctx,
                place,
                segment,
                scratch.payload,
                &mut scratch.window,
                &mut scratch.header,
            )
        });
    if is_first && record.headers.proxied.source != Source::Direct as u8 {
        let peer = record.endpoints.client_addr;
        let trusted = Policy::of(record.endpoints.server).is_some_and(|policy| policy.trusts(peer));
        record.headers.proxied.trusted = u8::from(trusted);
    }
    let is_pending = record.class == ListenerClass::Pending as u8;
    if head == Head::Next {
        if is_pending && record.unjudged != 0 {
            // What has passed may be a login behind this header.
            return Next::is(before_greeting(record));
        }
        scratch.header_at = record.headers.end_of(index);
        scratch.header_index += 1;
        return Next::Header;
    }
    let behind = record.headers.behind(segment);
    if is_pending {
        return Next::is(match head {
            Head::Login | Head::Gap => pending(ctx, record, scratch.payload, behind),
            // Where the server begins to read is not known.
            Head::Split | Head::Contradiction => before_greeting(record),
            Head::Pass | Head::Next => Action::Pass,
        });
    }
    let hold = match head {
        Head::Login => return Next::Login,
        Head::Split => Hold::Split,
        // Told while no other CPU takes on a header.
        Head::Gap if ingress::overtakes(ctx, record, scratch.payload, behind) => {
            return Next::Pass;
        }
        Head::Gap => Hold::Gap,
        Head::Contradiction => {
            let policy = Policy::of(record.endpoints.server);
            return Next::is(session::deny(record, Reason::NotALogin, policy.as_ref()));
        }
        Head::Pass | Head::Next => return Next::Pass,
    };
    let policy = Policy::of(record.endpoints.server);
    if !known && policy.as_ref().map(Policy::mode) == Some(Mode::Observe) {
        // Nothing is held in observe mode, so it is judged as it is. What is cut here is no header then.
        if hold == Hold::Split {
            record.headers.close();
        }
        return Next::Login;
    }
    Next::is(ingress::hold(record, behind, hold, policy.as_ref()))
}

/// Reads a header at a place in a segment's payload, which is at `payload` in the packet. `window` and `header` lie in a map.
#[inline(always)]
pub(crate) fn read(
    ctx: &SkBuffContext,
    place: u32,
    segment: Segment,
    payload: u32,
    window: &mut [u8; WINDOW],
    header: &mut HeaderReader,
) -> Found {
    let available = segment.len.wrapping_sub(place);
    let len = available.min(WINDOW as u32);
    let at = payload.wrapping_add(place);
    let parsed = if packet::copy(ctx, at, len, window) {
        header.read(window, available, |reader| {
            // What the compiler holds of the reader goes back to the map, as in `packet::advance`.
            // SAFETY: one instruction, which changes nothing.
            unsafe {
                asm!("{reader} = {reader}", reader = in(reg) reader);
            }
        })
    } else {
        Parsed::Cut
    };
    Found {
        parsed,
        len: header.header_len(),
        proxied: *header.proxied(),
    }
}

/// What a client's first bytes look like, on a listener that nobody has named.
#[derive(Clone, Copy, PartialEq, Eq)]
enum First {
    /// A login of either protocol, or what may become one or have one behind it.
    Login,
    /// A TLS record.
    Tls,
    /// Something else.
    Other,
}

/// Looks at the first bytes of the client's stream behind its headers. The sequence id of the first packet of a login is 1. A TLS
/// `ClientHello` can have a 1 there too, as the high byte of its length; it is told by its first six bytes (RFC
/// 8446 sections 5.1 and 4), the last of which would be capability flags without `CLIENT_PROTOCOL_41` in a login.
/// In X Protocol a login is a frame below 64 MiB of type 4, `AuthenticateStart`, maybe behind one of type 1 to 3.
///
/// All this is told from one segment, and a part of it could be that of any login: the server might take the rest
/// from another copy.
#[inline(always)]
fn first(ctx: &SkBuffContext, payload: u32, segment: Segment) -> First {
    if segment.start > FLAGS_HIGH_OFFSET as i32 {
        return First::Other;
    }
    if !segment.covers(0) || !segment.covers(SEQUENCE_ID_OFFSET) {
        return First::Login;
    }
    let at = payload.wrapping_add(segment.payload_index(0));
    let Ok([b0, b1, b2, sequence_id]) = packet::load(ctx, at) else {
        return First::Login;
    };
    // What is not there is neither.
    let b4 = packet::byte(ctx, at.wrapping_add(4)).unwrap_or(0);
    let b5 = packet::byte(ctx, at.wrapping_add(5)).unwrap_or(0);
    let tls = begins_client_hello(b0, b1, b2, b5);
    let x = matches!(sequence_id, 0..=4) && matches!(b4, 1..=4);
    // No strict one, or one too many: a server may see another end of it, and a login behind that.
    let header = matches!(&[b0, b1, b2, sequence_id], b"PROX" | b"\r\n\r\n");
    if tls {
        First::Tls
    } else if x || header || sequence_id == 1 {
        First::Login
    } else {
        First::Other
    }
}

/// A session of a listener that nobody has named: it is held only if it looks like a login that comes
/// before the greeting. Once the server greets, its class is known. What begins as a TLS record does, and is
/// longer than a first one can be, may be a long packet with a login in it.
#[inline(always)]
fn pending(
    ctx: &SkBuffContext,
    record: &mut SocketRecord,
    payload: u32,
    segment: Segment,
) -> Action {
    let first = first(ctx, payload, segment);
    if first == First::Tls {
        record.tls_first = 1;
    }
    let too_long = record.tls_first != 0 && segment.end() > i64::from(FIRST_RECORD_MAX);
    if first == First::Login || too_long {
        return before_greeting(record);
    }
    record.client_spoke = 1;
    record.unjudged = 1;
    Action::Pass
}

#[inline(always)]
fn before_greeting(record: &mut SocketRecord) -> Action {
    let action = ingress::held(Hold::BeforeGreeting, policy::mode(record.endpoints.server));
    if action == Action::Pass {
        // Observe mode: should the server greet, it is on record.
        record.client_spoke = 1;
        record.unjudged = 1;
    }
    action
}
