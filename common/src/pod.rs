//! User space only: which types may be copied to and from maps as bytes.

use crate::counter::{COUNTERS, Mark};
use crate::event::{Event, UnixPeer};
use crate::policy::{PolicyRoot, RuleSet, RuleTimes, ServerPolicy, SlotAddress, SlotUser, UserKey};
use crate::session::{Listener, Place, SocketRecord};

/// A `repr(C)` type whose fields have no padding between them and no invalid bit pattern.
macro_rules! pod {
    ($($name:ty = $size:expr),* $(,)?) => {$(
        const _: () = assert!(size_of::<$name>() == $size);
        // SAFETY: the type is `Copy`, `repr(C)`, made of integers and arrays of integers only, and the
        // assertion above adds up the sizes of its fields: there is no padding.
        unsafe impl aya::Pod for $name {}
    )*};
}

pod! {
    Event = 8 + 8 + 8 + 40 + 4 + 4 + 2 + 2 + 2 + 2 + 4 + 6 + 2 + 20 + 2 + 2 + 4,
    Listener = 2 + 1 + 1 + 1 + 3,
    Mark = 8 + 8 * COUNTERS,
    Place = 8 + 16 + 4 + 4,
    PolicyRoot = 3 * 128 + 4 + 2 + 1 + 1 + 2 + 6,
    RuleSet = 128,
    RuleTimes = 8 + 8,
    ServerPolicy = 128 + 8 + 1 + 1 + 1 + 1 + 2 + 2,
    SlotAddress = 8 + 16,
    SlotUser = 8 + 128,
    SocketRecord = 8 + 8 + 40 + 16 + 4 + 4 + 12 + 16 + 20 + 12 + 12 + 32 + 4 + 4 + 4 + 2 + 2 + 4 + 6 + 2 + 4 + 2 + 2 + 4 + 8,
    UnixPeer = 8 + 4 + 4 + 16,
    UserKey = 128,
}

#[cfg(feature = "probe")]
pod! {
    crate::probe::Probe = 8 + 8 + 20 + 4 + 2 + 2 + 2 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 3,
}
