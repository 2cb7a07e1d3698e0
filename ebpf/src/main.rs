//! The gate: what runs in the kernel. Entry points, and the table outcome -> return value.
//!
//! | program | hook | needs | without it |
//! |---|---|---|---|
//! | `on_sock_ops` | `sock_ops` on the root cgroup | Linux 5.10 | no gate |
//! | `on_ingress` | `cgroup_skb/ingress` | Linux 5.8 | no gate |
//! | `on_egress` | `cgroup_skb/egress` | Linux 5.8 | no gate |
//! | `on_proxy`, `on_login`, `on_third_ack`, `on_early_login`, `on_early_end`, `on_older`, `on_answer`, `on_client_hello`, `on_server_hello`, `x_ingress`, `x_egress` | called by the two above (`bpf_tail_call`) | the same | no gate |
//! | `on_unix_connect` | `fentry` of `security_unix_stream_connect` | Linux 5.11, BTF, tracing allowed | Unix sessions are found by polling |

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "the kernel's numbers come in registers of 64 bits; what is cast is bounded beside the cast"
)]
#![expect(
    clippy::multiple_unsafe_ops_per_block,
    reason = "reading a field of the context is a dereference and a union in one"
)]
#![expect(
    clippy::mut_from_ref,
    reason = "maps are changed through shared references"
)]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros of aya-ebpf pass contexts by value"
)]

mod early;
mod egress;
mod emit;
mod floor;
mod ingress;
mod maps;
mod older;
mod packet;
mod place;
mod policy;
#[cfg(feature = "probe")]
mod probe;
mod proxy;
mod session;
mod unix;
mod x;

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::macros::{cgroup_skb, fentry, sock_ops};
use aya_ebpf::programs::{FEntryContext, SkBuffContext, SockOpsContext};
use musttls_common::session::SocketRecord;
use musttls_common::verdict::{Action, Hold};

/// What `cgroup_skb` returns to drop a packet (`kernel/bpf/cgroup.c`, `__cgroup_bpf_run_filter_skb`).
const SK_DROP: i32 = 0;
/// What it returns to let it go on.
const SK_PASS: i32 = 1;

const fn skb_result(action: Action) -> i32 {
    match action {
        Action::Pass => SK_PASS,
        Action::Drop => SK_DROP,
    }
}

/// The socket of a packet: on ingress the one it is for, on egress the one it is from.
#[inline(always)]
fn sock(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: `skb` is the context the kernel passed; the verifier checks the read.
    let sk = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

/// Goes on in another program with the same packet. The verifier follows each program apart; in one, their loops
/// would be too much for Linux 6.1.
#[inline(always)]
fn go_on<const N: usize>(
    ctx: &SkBuffContext,
    record: &SocketRecord,
    programs: &ProgramArray<N>,
    index: u32,
) -> Action {
    // SAFETY: nothing here waits to be dropped.
    unsafe { programs.tail_call(ctx, index) };
    // It comes back only if the agent has not put the program in its place.
    ingress::held(Hold::NoRecord, policy::mode(record.endpoints.server))
}

/// Client to server. Inlined into the entry point that the macro makes, so that the packets of decided and of
/// unprotected sockets cost no call.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_ingress(ctx: SkBuffContext) -> i32 {
    skb_result(ingress::on_packet(&ctx))
}

/// Client to server: PROXY protocol headers, or what may be one.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_proxy(ctx: SkBuffContext) -> i32 {
    skb_result(proxy::on_packet(&ctx))
}

/// Client to server: the login.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_login(ctx: SkBuffContext) -> i32 {
    skb_result(ingress::on_login(&ctx))
}

/// Client to listener: payload on the third ACK of the handshake.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_third_ack(ctx: SkBuffContext) -> i32 {
    skb_result(early::on_third_ack(&ctx))
}

/// Client to listener: a login on the third ACK.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_early_login(ctx: SkBuffContext) -> i32 {
    skb_result(early::on_login(&ctx))
}

/// Client to listener: the end of the work on such payload, where it is to pass.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_early_end(ctx: SkBuffContext) -> i32 {
    skb_result(early::on_end(&ctx))
}

/// Client to server, in a session older than the gate.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_older(ctx: SkBuffContext) -> i32 {
    skb_result(older::on_packet(&ctx))
}

/// Server to client.
#[cgroup_skb(egress)]
#[inline(always)]
fn on_egress(ctx: SkBuffContext) -> i32 {
    skb_result(egress::on_packet(&ctx))
}

/// Server to client: what follows the greeting.
#[cgroup_skb(egress)]
#[inline(always)]
fn on_answer(ctx: SkBuffContext) -> i32 {
    skb_result(egress::on_answer(&ctx))
}

/// Client to server: what follows the claim of TLS.
#[cgroup_skb(ingress)]
#[inline(always)]
fn on_client_hello(ctx: SkBuffContext) -> i32 {
    skb_result(floor::on_client_hello(&ctx))
}

/// Server to client: the `ServerHello`.
#[cgroup_skb(egress)]
#[inline(always)]
fn on_server_hello(ctx: SkBuffContext) -> i32 {
    skb_result(floor::on_server_hello(&ctx))
}

/// Client to server, in X Protocol.
#[cgroup_skb(ingress)]
#[inline(always)]
fn x_ingress(ctx: SkBuffContext) -> i32 {
    skb_result(x::on_ingress(&ctx))
}

/// Server to client, in X Protocol.
#[cgroup_skb(egress)]
#[inline(always)]
fn x_egress(ctx: SkBuffContext) -> i32 {
    skb_result(x::on_egress(&ctx))
}

/// Listeners and sessions come and go.
#[sock_ops]
fn on_sock_ops(ctx: SockOpsContext) -> u32 {
    session::on_socket_event(&ctx);
    1
}

/// A process connects to a Unix socket.
#[fentry(function = "security_unix_stream_connect")]
fn on_unix_connect(ctx: FEntryContext) -> i32 {
    unix::on_connect(&ctx);
    0
}

/// A reachable panic must not load: the verifier refuses the endless loop.
#[panic_handler]
const fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that are GPL only need it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
