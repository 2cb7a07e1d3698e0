//! What the gate (kernel) and the agent (user space) share.
//!
//! Everything here is a pure function of bytes and numbers, or the layout of a record that both
//! sides read. The same code runs in the kernel, in the agent, in unit tests and under the fuzzer.
//!
//! | module | content | written by | read by |
//! |---|---|---|---|
//! | [`addr`] | IPv4-mapped addresses | - | gate, agent |
//! | [`stream`] | a reader that takes a byte stream in any cut | - | gate, agent |
//! | [`mysql`] | the connection phase: server greeting, client login, ERR packet | - | gate, agent |
//! | [`mysqlx`] | X Protocol before TLS: frames of both sides | - | gate, agent |
//! | [`proxy`] | PROXY protocol headers before the login: where each ends, whom it names | - | gate |
//! | [`early`] | payload on the third ACK: what is harmless wherever the stream begins | - | gate |
//! | [`tls`] | the server's first TLS flight: version and cipher suite | - | gate |
//! | [`floor`] | which TLS is good enough; what a client's `ClientHello` offers | - | gate, agent |
//! | [`judge`] | what one client segment proves | - | gate |
//! | [`verdict`] | verdict, reason, mode, action | gate | agent |
//! | [`older`] | sessions older than the gate: what their clients speak | gate, agent (when it finds one) | gate, agent |
//! | [`policy`] | exceptions as bit vectors, evaluated in constant time | agent | gate, agent |
//! | [`session`] | the record that hangs on a socket | gate, agent (listeners, sessions older than the gate) | gate, agent (the latter) |
//! | [`event`] | ring buffer records | gate | agent |
//! | [`counter`] | indices of the per-CPU counters | gate | agent |
//! | `probe` | feature `probe`, of tests: a login that the kernel is asked about | tests, `on_probe` | the same |
//!
//! Invariant: no I/O, no clock, no allocation, no dependency; `unsafe` only in `pod`.

#![no_std]
#![expect(
    clippy::cast_lossless,
    clippy::cast_possible_truncation,
    reason = "`From` is not available in const functions, and what is cast is bounded beside the cast"
)]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

pub mod addr;
pub mod counter;
pub mod early;
pub mod event;
pub mod floor;
pub mod judge;
pub mod mysql;
pub mod mysqlx;
pub mod older;
pub mod policy;
#[cfg(feature = "probe")]
pub mod probe;
pub mod proxy;
pub mod session;
pub mod stream;
pub mod tls;
pub mod verdict;

#[cfg(feature = "user")]
mod pod;

/// Version of every layout in this crate that crosses the kernel border or outlives the agent.
///
/// It grows with each change of a `repr(C)` type, of a map or of a number in [`verdict`],
/// [`counter`] or [`event`], and stands in each record, so that one side refuses the other's
/// records instead of misreading them.
pub const ABI_VERSION: u16 = 8;
