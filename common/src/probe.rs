//! What tests ask of `on_probe`, a program beside the gate's, and what it answers: the one entry of the map `PROBE`.
//!
//! It has no version: gate and agent are built with it in one go, and no gate that judges sessions has it.

use crate::policy::{Found, NO_RULE};
use crate::proxy::Proxied;

/// A plaintext login whose packet `on_probe` gets, and what the policy in force says of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Probe {
    /// The session's cookie, by which the agent's answer about it is found.
    pub cookie: u64,
    /// Answer: when the tables had been read, by `CLOCK_BOOTTIME` in nanoseconds. 0 if they were not.
    pub read_ns: u64,
    /// Whom a PROXY header has named.
    pub proxied: Proxied,
    /// Answer: version of the policy.
    pub version: u32,
    /// A cipher suite.
    pub cipher: u16,
    /// Answer: the entry in the table of servers for the packet's destination port.
    pub server: u16,
    /// Answer: the exception, if `found` is [`Self::RULE`].
    pub rule: u16,
    /// Whether the client is one of another host: a packet in `BPF_PROG_TEST_RUN` comes over the loopback device.
    pub is_remote: u8,
    /// Answer: one of the numbers below.
    pub found: u8,
    /// Answer: whether the user name was whole, and policy could be asked about it.
    pub has_user: u8,
    /// Answer: whether the client counts as one of this host.
    pub is_local: u8,
    /// Answer: the [`crate::verdict::Mode`] in force.
    pub mode: u8,
    /// Answer: whether the server refuses `cipher`.
    pub refuses: u8,
    /// Answer: whether some exception names users.
    pub names_users: u8,
    #[doc(hidden)]
    pub _pad: [u8; 3],
}

impl Probe {
    /// Nothing allows the login.
    pub const NOTHING: u8 = 0;
    /// An exception does.
    pub const RULE: u8 = 1;
    /// One may, whose conditions the agent looks at.
    pub const DEPENDS: u8 = 2;

    /// Notes what was found.
    #[inline(always)]
    pub const fn set_found(&mut self, found: Found) {
        (self.found, self.rule) = match found {
            Found::Nothing => (Self::NOTHING, NO_RULE),
            Found::Rule(rule) => (Self::RULE, rule),
            Found::Depends => (Self::DEPENDS, NO_RULE),
        };
    }

    /// What was found; `None` if the number is none of those.
    #[must_use]
    pub const fn found(&self) -> Option<Found> {
        match self.found {
            Self::NOTHING => Some(Found::Nothing),
            Self::RULE => Some(Found::Rule(self.rule)),
            Self::DEPENDS => Some(Found::Depends),
            _ => None,
        }
    }
}
