//! Listeners that are covered by their place: network namespace, address, port.
//!
//! Which namespace a socket is of, no program may ask on every kernel. A program whose kernel lacks the helper loads all the
//! same: the verifier sees from the constants below that the call is never reached.

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::{SkBuffContext, SockOpsContext};
use musttls_common::addr::v4_mapped;
use musttls_common::session::{Listener, ListenerClass, Place};

use crate::maps::PLACES;

const AF_INET: u32 = 2;

/// Whether `sock_ops` programs may ask for the network namespace (Linux 5.15). The agent writes it before it loads them.
#[unsafe(no_mangle)]
static NAMESPACE_IN_SOCK_OPS: u8 = 0;
/// The same for `cgroup_skb` (Linux 6.15).
#[unsafe(no_mangle)]
static NAMESPACE_IN_SKB: u8 = 0;

/// Cookie of the network namespace of a `sock_ops` callback's socket; 0 if the kernel does not tell.
#[inline(always)]
pub(crate) fn namespace(ctx: &SockOpsContext) -> u64 {
    // SAFETY: a static of one byte.
    if unsafe { (&raw const NAMESPACE_IN_SOCK_OPS).read_volatile() } == 0 {
        return 0;
    }
    cookie(ctx.as_ptr())
}

/// The same of a packet's socket.
#[inline(always)]
fn namespace_of_packet(ctx: &SkBuffContext) -> u64 {
    // SAFETY: as above.
    if unsafe { (&raw const NAMESPACE_IN_SKB).read_volatile() } == 0 {
        return 0;
    }
    cookie(ctx.as_ptr())
}

#[inline(always)]
fn cookie(ctx: *mut c_void) -> u64 {
    // SAFETY: the helper takes the context of the program; the constants say that there is one for it.
    unsafe { bpf_get_netns_cookie(ctx) }
}

/// Where the listener of a packet listens.
#[inline(always)]
pub(crate) fn of_packet(ctx: &SkBuffContext, sk: *mut bpf_sock) -> Place {
    // SAFETY: `sk` is not null, and the verifier checks the reads.
    let (family, v4, v6, port) = unsafe {
        (
            (*sk).family,
            (&raw const (*sk).src_ip4).read_volatile(),
            [
                (&raw const (*sk).src_ip6[0]).read_volatile(),
                (&raw const (*sk).src_ip6[1]).read_volatile(),
                (&raw const (*sk).src_ip6[2]).read_volatile(),
                (&raw const (*sk).src_ip6[3]).read_volatile(),
            ],
            (*sk).src_port,
        )
    };
    let addr = if family == AF_INET {
        v4_mapped(v4.to_ne_bytes())
    } else {
        crate::session::ip6(v6)
    };
    Place {
        netns: namespace_of_packet(ctx),
        addr,
        port,
        _pad: 0,
    }
}

/// What covers the listener at this place, if anything does.
pub(crate) enum Cover {
    /// Nothing.
    No,
    /// This.
    By(Listener),
    /// That depends on its network namespace, which is not known here.
    ByNamespace,
}

/// What covers the listener at `place`.
#[inline(always)]
pub(crate) fn cover(mut place: Place) -> Cover {
    let netns = place.netns;
    place.netns = Place::ANY_NAMESPACE;
    // Few places are covered, and each has this entry: for all others one look-up is enough.
    let Some(any) = listener(&place) else {
        return Cover::No;
    };
    if netns == Place::ANY_NAMESPACE {
        return if any.here == 0 {
            Cover::ByNamespace
        } else {
            Cover::By(any)
        };
    }
    place.netns = netns;
    match listener(&place) {
        Some(own) if own.class == ListenerClass::Other as u8 => Cover::No,
        Some(own) => Cover::By(own),
        None if any.here == 0 => Cover::No,
        None => Cover::By(any),
    }
}

#[inline(always)]
fn listener(place: &Place) -> Option<Listener> {
    // SAFETY: entries are replaced as a whole, and a value of mixed age is still a valid listener.
    unsafe { PLACES.get(place) }.copied()
}
