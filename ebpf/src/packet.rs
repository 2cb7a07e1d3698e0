//! The only reads of packet memory.
//!
//! A `cgroup_skb` program sees the packet from its network header on, behind reassembly and GRO. All
//! reads copy (`bpf_skb_load_bytes` works on paged skbs too). Sources: RFC 791 section 3.1, RFC 8200
//! sections 3 and 4, RFC 9293 section 3.1.

use core::arch::asm;
use core::ptr;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::programs::SkBuffContext;
use musttls_common::addr::v4_mapped;
use musttls_common::stream::{Reader, step};

const IPPROTO_TCP: u8 = 6;
/// IPv6 extension headers that may stand before TCP. All but the fragment header have the generic form (RFC 8200 4.2).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// Only of a packet that is one fragment in all (RFC 6946): the kernel takes it off others when it joins them
/// (`ipv6_frag_rcv`).
const FRAGMENT: u8 = 44;
const FRAGMENT_HEADER_LEN: u32 = 8;
const DESTINATION_OPTIONS: u8 = 60;
/// Most extension headers that are walked. RFC 8200 section 4.1 allows each once, destination options twice.
const MAX_EXTENSION_HEADERS: u32 = 8;

const TCP_FIN: u8 = 0x01;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const TCP_ACK: u8 = 0x10;
const TCP_URG: u8 = 0x20;

/// The packet has headers that cannot be read.
pub(crate) struct Unreadable;

/// A TCP segment.
pub(crate) struct Tcp {
    /// Offset of its header in the packet.
    pub(crate) header: u32,
    /// Sequence number.
    pub(crate) seq: u32,
    /// Offset of the payload in the packet.
    pub(crate) payload: u32,
    /// Length of the payload, in bytes.
    pub(crate) payload_len: u32,
    flags: u8,
}

impl Tcp {
    #[inline(always)]
    pub(crate) const fn is_urgent(&self) -> bool {
        self.flags & TCP_URG != 0
    }

    #[inline(always)]
    pub(crate) const fn is_reset(&self) -> bool {
        self.flags & TCP_RST != 0
    }

    /// Whether it has the ACK flag and none that changes what its payload is: no SYN, FIN, RST or URG.
    #[inline(always)]
    pub(crate) const fn is_plain(&self) -> bool {
        self.flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_URG | TCP_ACK) == TCP_ACK
    }

    /// Whether it carries nothing but an acknowledgement. One with URG carries more: Linux takes the urgent
    /// pointer of a segment without payload too, and takes the byte there out of the stream when it comes.
    #[inline(always)]
    pub(crate) const fn is_pure_ack(&self) -> bool {
        self.payload_len == 0 && self.flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_URG) == 0
    }
}

/// Reads `N` bytes at `offset` of the packet.
#[inline(always)]
pub(crate) fn load<const N: usize>(
    ctx: &SkBuffContext,
    offset: u32,
) -> Result<[u8; N], Unreadable> {
    let mut bytes = [0; N];
    // SAFETY: `bytes` has `N` writable bytes; the helper checks the packet's bounds.
    let error = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            offset,
            bytes.as_mut_ptr().cast(),
            N as u32,
        )
    };
    if error == 0 {
        Ok(bytes)
    } else {
        Err(Unreadable)
    }
}

/// The byte at `offset` of the packet.
#[inline(always)]
pub(crate) fn byte(ctx: &SkBuffContext, offset: u32) -> Option<u8> {
    match load::<1>(ctx, offset) {
        Ok([byte]) => Some(byte),
        Err(Unreadable) => None,
    }
}

/// The little-endian number at `offset` of the packet.
#[inline(always)]
pub(crate) fn u32_le(ctx: &SkBuffContext, offset: u32) -> Option<u32> {
    load(ctx, offset).ok().map(u32::from_le_bytes)
}

/// Copies `len` bytes at `offset` of the packet to `to`. `len` is 1 to `N`, a power of two.
#[inline(always)]
pub(crate) fn copy<const N: usize>(
    ctx: &SkBuffContext,
    offset: u32,
    len: u32,
    to: &mut [u8; N],
) -> bool {
    const { assert!(N.is_power_of_two()) };
    if len == 0 || len > N as u32 {
        return false;
    }
    let mut less_one = u64::from(len) - 1;
    // The compiler knows from the check above that this mask changes nothing, and would leave it out; but
    // from it the verifier sees the bounds 1 to `N`. (Linux 5.10 does not learn from `len != 0`.)
    // SAFETY: one instruction on one register.
    unsafe {
        asm!("{less_one} &= {mask}", less_one = inout(reg) less_one, mask = const N - 1);
    }
    let len = less_one + 1;
    // SAFETY: `to` has `N` writable bytes, and `len` is at most `N`; the helper checks the packet's bounds.
    let error = unsafe {
        bpf_skb_load_bytes(
            ctx.as_ptr().cast(),
            offset,
            to.as_mut_ptr().cast(),
            len as u32,
        )
    };
    error == 0
}

/// Feeds `reader`, which lies in a map, with the payload of a segment that covers `start..end` of its
/// stream, in at most `steps` bytes. Returns whether that was enough.
#[inline(always)]
pub(crate) fn advance<R: Reader + Copy>(
    ctx: &SkBuffContext,
    tcp: &Tcp,
    reader: &mut R,
    start: u32,
    end: u32,
    steps: u32,
) -> bool {
    advance_at(ctx, tcp.payload, reader, start, end, steps)
}

/// The same with the payload at an offset of the packet.
#[inline(always)]
pub(crate) fn advance_at<R: Reader + Copy>(
    ctx: &SkBuffContext,
    payload: u32,
    reader: &mut R,
    start: u32,
    end: u32,
    steps: u32,
) -> bool {
    let place = ptr::from_mut(reader);
    let mut taken = 0;
    while taken < steps {
        // The reader goes back to the map after each byte: a value loaded from a map is any number to
        // the verifier, which can then treat all rounds alike instead of following each state apart.
        let mut state = load_words(place);
        let more = step(&mut state, start, end, |at| {
            byte(ctx, payload + (at - start))
        });
        store_words(place, state);
        if !more {
            return true;
        }
        taken += 1;
    }
    false
}

/// Reads a value from a map, word by word into registers: on the stack, Linux 5.10 would take what a
/// former round left there for a difference between two states.
#[inline(always)]
pub(crate) fn load_words<T: Copy>(place: *const T) -> T {
    const { assert!(size_of::<T>().is_multiple_of(4) && size_of::<T>() <= 20 && align_of::<T>() >= 4) };
    let mut words = [0_u32; 5];
    let mut index = 0;
    while index < size_of::<T>() / 4 {
        // SAFETY: `place` is valid for as many words as `T` has.
        let word = unsafe { place.cast::<u32>().add(index).read_volatile() };
        if let Some(to) = words.get_mut(index) {
            *to = word;
        }
        index += 1;
    }
    // SAFETY: `words` has as many bytes as `T` at least, read from a valid `T`.
    unsafe { ptr::from_ref(&words).cast::<T>().read() }
}

/// Writes a value back, as [`load_words`] read it.
#[inline(always)]
pub(crate) fn store_words<T: Copy>(place: *mut T, value: T) {
    let mut words = [0_u32; 5];
    // SAFETY: `words` has as many bytes as `T` at least.
    unsafe { ptr::from_mut(&mut words).cast::<T>().write(value) };
    let mut index = 0;
    while index < size_of::<T>() / 4 {
        let word = words.get(index).copied().unwrap_or(0);
        // SAFETY: `place` is valid for as many words as `T` has.
        unsafe { place.cast::<u32>().add(index).write_volatile(word) };
        index += 1;
    }
}

/// The source address, IPv4 as IPv4-mapped.
#[inline(always)]
pub(crate) fn source(ctx: &SkBuffContext) -> Result<[u8; 16], Unreadable> {
    let [first] = load(ctx, 0)?;
    match first >> 4 {
        4 => load(ctx, 12).map(v4_mapped),
        6 => load(ctx, 8),
        _ => Err(Unreadable),
    }
}

/// Where the TCP header starts.
#[inline(always)]
fn transport(ctx: &SkBuffContext) -> Result<u32, Unreadable> {
    let [first] = load(ctx, 0)?;
    // The version of the packet, not the family of the socket: a dual-stack socket gets IPv4 packets.
    match first >> 4 {
        4 => {
            let [protocol] = load(ctx, 9)?;
            if protocol == IPPROTO_TCP {
                Ok(u32::from(first & 0x0f) * 4)
            } else {
                Err(Unreadable)
            }
        }
        6 => {
            let [mut next] = load(ctx, 6)?;
            let mut offset = 40;
            let mut walked = 0;
            while walked <= MAX_EXTENSION_HEADERS {
                match next {
                    IPPROTO_TCP => return Ok(offset),
                    HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS => {
                        let [following, len] = load(ctx, offset)?;
                        next = following;
                        offset += (u32::from(len) + 1) * 8;
                    }
                    FRAGMENT => {
                        [next] = load(ctx, offset)?;
                        offset += FRAGMENT_HEADER_LEN;
                    }
                    _ => return Err(Unreadable),
                }
                walked += 1;
            }
            Err(Unreadable)
        }
        _ => Err(Unreadable),
    }
}

/// Reads the headers of a packet.
#[inline(always)]
pub(crate) fn tcp(ctx: &SkBuffContext) -> Result<Tcp, Unreadable> {
    let start = transport(ctx)?;
    let [s0, s1, s2, s3] = load(ctx, start + 4)?;
    let [data_offset, flags] = load(ctx, start + 12)?;
    let payload = start + u32::from(data_offset >> 4) * 4;
    // The skb's length, not the IP header's: with BIG TCP the latter is 0.
    let len = ctx.len();
    if payload < start + 20 || payload > len {
        return Err(Unreadable);
    }
    Ok(Tcp {
        header: start,
        seq: u32::from_be_bytes([s0, s1, s2, s3]),
        payload,
        payload_len: len - payload,
        flags,
    })
}
