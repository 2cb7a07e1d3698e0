//! For tests (feature `probe`): what the gate's own look-ups find in the policy's tables for a plaintext login. The agent attaches it
//! nowhere; `BPF_PROG_TEST_RUN` runs it, on a packet whose socket has no record.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::{btf_map, cgroup_skb};
use aya_ebpf::programs::SkBuffContext;
use musttls_common::judge::Segment;
use musttls_common::probe::Probe;
use musttls_common::verdict::Reason;

use crate::ingress::{self, User};
use crate::maps::SCRATCH;
use crate::packet::{self, Unreadable};
use crate::policy::{Policy, boottime, server_of};

/// The question and its answer.
///
/// Writers and readers: the test, `on_probe`.
#[btf_map]
static PROBE: Array<Probe, 1> = Array::new();

/// Offset of the destination port in a TCP header.
const DESTINATION_PORT: u32 = 2;

/// The login begins where the packet's payload does, and is its client's first byte.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_probe(ctx: SkBuffContext) -> i32 {
    // What was not read has no `read_ns`.
    let _unread = answer(&ctx);
    crate::SK_PASS
}

#[inline(always)]
fn answer(ctx: &SkBuffContext) -> Result<(), Unreadable> {
    let (Some(probe), Some(scratch)) = (PROBE.get_ptr_mut(0), SCRATCH.get_ptr_mut(0)) else {
        return Err(Unreadable);
    };
    // SAFETY: places in maps that live until the program ends; the test runs one at a time, and no gate is attached.
    let (probe, scratch) = unsafe { (&mut *probe, &mut *scratch) };
    let tcp = packet::tcp(ctx)?;
    let peer = packet::source(ctx)?;
    let port = packet::load(ctx, tcp.header + DESTINATION_PORT)?;
    probe.server = server_of(u16::from_be_bytes(port));
    let Some(policy) = Policy::of(probe.server) else {
        return Err(Unreadable);
    };
    let mut client = policy.client_of(ctx, peer, &probe.proxied);
    if probe.is_remote != 0 {
        client.is_local = false;
    }
    probe.is_local = u8::from(client.is_local);
    probe.version = policy.version();
    probe.mode = policy.mode() as u8;
    probe.refuses = u8::from(policy.refuses(probe.cipher));
    probe.names_users = u8::from(policy.names_users());
    scratch.payload = tcp.payload;
    scratch.segment = Segment {
        start: 0,
        len: tcp.payload_len,
        urgent: false,
    };
    let segment = scratch.segment;
    let cookie = probe.cookie;
    let (user, found) = ingress::exception::<true>(
        ctx,
        scratch,
        segment,
        Reason::NoClientSsl,
        &policy,
        &client,
        |_| true,
        |sets, walk| policy.answered(sets, walk, cookie),
    );
    probe.has_user = u8::from(user == User::Whole);
    probe.set_found(found);
    probe.read_ns = boottime();
    Ok(())
}
