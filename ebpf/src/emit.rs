//! Counters and records.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::offset_of;
use core::ptr;

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_ringbuf_output, bpf_ringbuf_query};
use musttls_common::counter::{self, Global, Outcome};
use musttls_common::event::{Event, Kind, LOGIN_HEAD_LEN, Login, TAIL_MAX};
use musttls_common::session::{Endpoints, ListenerClass, SocketRecord};
use musttls_common::verdict::{Action, Hold, Mode};

use crate::maps::{ASKS, COUNTERS, DENIALS, HELD, LISTENS, SESSIONS, Scratch};

/// Adds one to a counter.
#[inline(always)]
fn count(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // One instruction, because a softirq on this CPU may come between a read and a write. It is
        // BPF_XADD (all kernels); Rust's atomics are not available on the BPF target.
        // SAFETY: the entry is 8 aligned bytes of this CPU's and lives as long as the map.
        unsafe {
            asm!("lock *(u64 *)({counter} + 0) += {one}", counter = in(reg) counter, one = in(reg) 1_u64);
        }
    }
}

#[inline(always)]
pub(crate) fn count_outcome(record: &SocketRecord, outcome: Outcome) {
    count(counter::outcome(record.endpoints.server, outcome));
}

#[inline(always)]
pub(crate) fn count_below_observed(record: &SocketRecord) {
    count(counter::below_observed(record.endpoints.server));
}

#[inline(always)]
pub(crate) fn count_hold(hold: Hold) {
    count(counter::hold(hold));
}

#[inline(always)]
pub(crate) fn count_global(global: Global) {
    count(global as u32);
}

/// What a session's record says, as an event.
#[inline(always)]
pub(crate) fn fill(event: &mut Event, kind: Kind, mode: Mode, record: &SocketRecord) {
    // SAFETY: the helper has no requirements.
    event.ktime_ns = unsafe { bpf_ktime_get_ns() };
    event.cookie = record.cookie;
    event.listener_cookie = record.listener_cookie;
    event.endpoints = record.endpoints;
    event.greeting_len = record.greeting.packet_len().unwrap_or(0);
    event.policy_version = record.policy_version;
    event.rule = record.rule;
    event.tls_version = record.hello.version();
    event.tls_cipher = record.hello.cipher();
    event.abi = musttls_common::ABI_VERSION;
    event.login_header = record.login_header;
    event.kind = kind as u8;
    event.reason = record.reason;
    event.mode = mode as u8;
    event.mariadb = u8::from(record.greeting.is_mariadb());
    event.flags_high = record.flags_high;
    event.class = record.class;
    event.client_end = if record.class == ListenerClass::X as u8 {
        record.client_frames.end()
    } else {
        record.headers.end()
    };
    event.proxied = record.headers.proxied;
    event.offered_version = record.client_hello.version();
    event.floor = record.floor;
    event.spoken = record.older.spoken() as u8;
    event.local = 0;
    event.cut = 0;
}

/// Records of sessions that may wait before the agent is woken, in bytes. It looks by itself once to ten times a
/// second; a denial wakes it at once.
const WAKE_AT: u64 = 256 << 10;

/// Where a record goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ring {
    /// To the refusal.
    Denials,
    /// To the record.
    Sessions,
    /// The same, and wakes the agent: a session waits for it.
    SessionsNow,
    /// To who names listeners.
    Listens,
    /// To who looks at the conditions of exceptions, and answers.
    Asks,
    /// To the same, and then to the record.
    AsksForRecord,
}

/// Writes `size` bytes of a record to its ring.
#[inline(always)]
fn output(ring: Ring, data: *const u8, size: u64) {
    let (map, lost): (*mut c_void, _) = match ring {
        Ring::Denials => (
            ptr::from_ref(&DENIALS).cast_mut().cast(),
            Global::LostDenials,
        ),
        Ring::Sessions | Ring::SessionsNow => (
            ptr::from_ref(&SESSIONS).cast_mut().cast(),
            Global::LostSessions,
        ),
        Ring::Listens => (
            ptr::from_ref(&LISTENS).cast_mut().cast(),
            Global::LostListens,
        ),
        Ring::Asks => (ptr::from_ref(&ASKS).cast_mut().cast(), Global::LostAsks),
        Ring::AsksForRecord => (ptr::from_ref(&ASKS).cast_mut().cast(), Global::LostSessions),
    };
    let flags = match ring {
        Ring::Sessions => {
            // SAFETY: `map` is a ring buffer.
            let waiting = unsafe { bpf_ringbuf_query(map, u64::from(BPF_RB_AVAIL_DATA)) };
            if waiting < WAKE_AT {
                BPF_RB_NO_WAKEUP
            } else {
                BPF_RB_FORCE_WAKEUP
            }
        }
        Ring::SessionsNow => BPF_RB_FORCE_WAKEUP,
        Ring::Denials | Ring::Listens | Ring::Asks | Ring::AsksForRecord => 0,
    };
    let flags = u64::from(flags);
    // SAFETY: `data` has `size` readable bytes: each caller passes a record and at most its length.
    let error = unsafe { bpf_ringbuf_output(map, data.cast_mut().cast(), size, flags) };
    if error != 0 {
        count_global(lost);
    }
}

/// Sends an event without a login.
#[inline(always)]
pub(crate) fn event(event: &Event, ring: Ring) {
    output(ring, ptr::from_ref(event).cast(), size_of::<Event>() as u64);
}

/// Asks the agent whose a listener is. `endpoints` are the listener's, or those of a session of it.
#[inline(always)]
pub(crate) fn listener(cookie: u64, netns: u64, endpoints: Endpoints) {
    let listens = Event {
        cookie,
        listener_cookie: netns,
        endpoints,
        kind: Kind::Listen as u8,
        abi: musttls_common::ABI_VERSION,
        ..Event::default()
    };
    event(&listens, Ring::Listens);
}

/// Sends an event that is followed by `extra`.
#[inline(always)]
pub(crate) fn event_with<T>(both: &(Event, T)) {
    output(
        Ring::Sessions,
        ptr::from_ref(both).cast(),
        size_of::<(Event, T)>() as u64,
    );
}

/// The ring for a verdict with this action.
#[inline(always)]
pub(crate) const fn ring_of(action: Action) -> Ring {
    match action {
        Action::Drop => Ring::Denials,
        Action::Pass => Ring::Sessions,
    }
}

/// Sends the event and the login in `scratch`, cut behind the login's tail.
#[inline(always)]
pub(crate) fn login(scratch: &Scratch, ring: Ring) {
    const HEAD: u64 = (offset_of!(Scratch, login) + offset_of!(Login, tail)) as u64;
    const _: () = assert!(HEAD as usize == size_of::<Event>() + LOGIN_HEAD_LEN);
    let mut tail = u64::from(scratch.login.tail_len);
    if tail > TAIL_MAX as u64 {
        tail = TAIL_MAX as u64;
    }
    output(ring, ptr::from_ref(scratch).cast(), HEAD + tail);
}

/// Notes a denied session for the agent.
#[inline(always)]
pub(crate) fn hold_session(event: &Event) {
    if HELD.insert(event.cookie, event, 0).is_err() {
        count_global(Global::HeldFull);
    }
}
