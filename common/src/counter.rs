//! Indices of the per-CPU counters. Append-only.

use crate::policy::MAX_SERVERS;
use crate::verdict::Hold;

/// How a session of a protected listener ended up. Each counted session has exactly one outcome in
/// the end, so that the sum of outcomes and of open, undecided sessions is [`Outcome::Seen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// The session was seen. Not an outcome, but their sum.
    Seen = 0,
    /// The server's own bytes were a TLS flight.
    Secure = 1,
    /// Plaintext, denied.
    Denied = 2,
    /// Plaintext, allowed by an exception.
    Excepted = 3,
    /// Plaintext, seen in observe mode.
    Observed = 4,
    /// The client claimed TLS, and the server did not take it.
    TlsFailed = 5,
    /// The client sent nothing: a probe.
    HalfOpen = 6,
    /// The client sent something, but the session ended before it could be judged.
    Incomplete = 7,
    /// The server answered with an error instead of a greeting, or does not speak the classic protocol.
    NoLogin = 8,
}

impl Outcome {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Seen,
        Self::Secure,
        Self::Denied,
        Self::Excepted,
        Self::Observed,
        Self::TlsFailed,
        Self::HalfOpen,
        Self::Incomplete,
        Self::NoLogin,
    ];

    /// The word used in status and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Seen => "seen",
            Self::Secure => "secure",
            Self::Denied => "denied",
            Self::Excepted => "excepted",
            Self::Observed => "observed",
            Self::TlsFailed => "tls-failed",
            Self::HalfOpen => "half-open",
            Self::Incomplete => "incomplete",
            Self::NoLogin => "no-login",
        }
    }
}

/// Counters that do not belong to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Global {
    /// The ring buffer of denials was full; the session stays held and in the map of held sessions.
    LostDenials = 0,
    /// The ring buffer of sessions was full.
    LostSessions = 1,
    /// The map of held sessions was full: the agent cannot answer this client.
    HeldFull = 2,
    /// A record could not be made on a new listener.
    ListenerFull = 3,
    /// First of the held segments, by [`crate::verdict::Hold`]; those for which there is no room are behind all others ([`hold`]).
    Hold = 4,
    /// The end of a session will not be seen: one without a verdict gets no outcome.
    EndUnwatched = 13,
    /// The ring buffer of new listeners was full; they stay pending.
    LostListens = 14,
    /// The ring buffer of questions was full; the session stays held, and its client's next copy asks again.
    LostAsks = 15,
}

/// How far the agent has taken notice of the counters: value of the map `TOLD`, which the next agent reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Mark {
    /// When it did, by `CLOCK_BOOTTIME`; 0 for never.
    pub boottime_ns: u64,
    /// The counters, summed over the CPUs.
    pub counters: [u64; COUNTERS],
}

/// Number of counters: the global ones, then [`Outcome::ALL`] for each server, then [`below_observed`] for each, then the held segments
/// that are not among the global ones.
pub const COUNTERS: usize = MORE_HOLDS_BASE + Hold::ALL.len() - FIRST_HOLDS;
/// Index of the first outcome counter: the same in every ABI, because an agent reads those of a former gate.
const OUTCOMES_BASE: usize = 16;
/// Index of the first counter of sessions below an observed floor.
const BELOW_OBSERVED_BASE: usize = OUTCOMES_BASE + MAX_SERVERS * Outcome::ALL.len();

/// Index of the first counter of held segments that is not among the global ones.
const MORE_HOLDS_BASE: usize = BELOW_OBSERVED_BASE + MAX_SERVERS;
/// How many are.
const FIRST_HOLDS: usize = 9;

const _: () = assert!(Global::Hold as usize + FIRST_HOLDS == Global::EndUnwatched as usize);
const _: () = assert!((Global::LostAsks as usize) < OUTCOMES_BASE);

/// Indices of the global counters and of those of the first `servers` entries of the table of servers.
pub fn of_servers(servers: usize) -> impl Iterator<Item = u32> {
    let servers = servers.min(MAX_SERVERS);
    let outcomes = 0..OUTCOMES_BASE + servers * Outcome::ALL.len();
    let below_observed = BELOW_OBSERVED_BASE..BELOW_OBSERVED_BASE + servers;
    outcomes
        .chain(below_observed)
        .chain(MORE_HOLDS_BASE..COUNTERS)
        .map(|index| u32::try_from(index).unwrap_or(0))
}

/// Index of a server's outcome counter. A server out of range is counted as server 0.
#[must_use]
#[inline(always)]
pub const fn outcome(server: u16, outcome: Outcome) -> u32 {
    OUTCOMES_BASE as u32 + place(server) * Outcome::ALL.len() as u32 + outcome as u32
}

/// Index of a server's counter of secure sessions that a floor which is only observed would refuse.
#[must_use]
#[inline(always)]
pub const fn below_observed(server: u16) -> u32 {
    BELOW_OBSERVED_BASE as u32 + place(server)
}

#[inline(always)]
const fn place(server: u16) -> u32 {
    if (server as usize) < MAX_SERVERS {
        server as u32
    } else {
        0
    }
}

/// Index of the counter of held segments.
#[must_use]
#[inline(always)]
pub const fn hold(hold: Hold) -> u32 {
    let number = hold as u32;
    if number < FIRST_HOLDS as u32 {
        Global::Hold as u32 + number
    } else {
        MORE_HOLDS_BASE as u32 + number - FIRST_HOLDS as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_stay_in_the_array() {
        assert!((outcome(u16::MAX, Outcome::NoLogin) as usize) < COUNTERS);
        assert_eq!(
            outcome(63, Outcome::NoLogin) + 1,
            below_observed(0),
            "no index stands for two"
        );
        assert_eq!(below_observed(63) + 1, hold(Hold::Asked));
        assert_eq!(hold(Hold::Asked) as usize, COUNTERS - 1);
        assert_eq!(hold(Hold::NoRecord), 11);
        assert_eq!(of_servers(1).last(), Some(hold(Hold::Asked)));
        // Those of a former gate are read, too.
        assert_eq!(outcome(0, Outcome::Seen), 16);
    }
}
