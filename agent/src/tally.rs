//! Whether what the gate has counted has come to the agent.
//!
//! The gate counts a session and then sends its event. Whoever reads a ring in the agent's place takes events away, and nothing else shows
//! it. So once a second the counters are compared with the events that have come:
//!
//! - A snapshot of the counters is settled when some time has gone by and each ring has been seen empty since: all that was counted by
//!   then has come, is counted as lost by the kernel, or will never come.
//! - Sessions go on meanwhile. By the clock of events (`bpf_ktime_get_ns`), some are certain to be in the snapshot and some may be; a
//!   difference is told only if it is there either way, and again in the snapshots behind it.
//! - What a former agent has read is not known. The first settled snapshot is what the others are held against.
//!
//! | compared | counted as | not compared, because |
//! |---|---|---|
//! | refused sessions | `denied` | |
//! | TLS, plaintext in observe mode, TLS that failed | `secure`, `observed`, `tls-failed` | |
//! | sessions that an exception allows | `excepted` | an exception by user is told at the login, and counted when the server has answered |
//!
//! An event too many is no difference that counts: two CPUs may judge a session at once.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use musttls_common::counter::{self, Global, Outcome};
use musttls_common::event::Kind;

/// From when on a snapshot may be settled, in nanoseconds.
const SETTLE_NS: u64 = 3_000_000_000;
/// How much later than it is counted an event may have been made: the program that makes it was interrupted.
const SLACK_NS: u64 = 100_000_000;
/// How many snapshots in a row must have a difference before it is told.
const CERTAIN: usize = 3;
/// Most snapshots that wait. One of the threads is stuck if there are as many.
const WAITING: usize = 8;

/// Where events come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// The ring of denials.
    Denials,
    /// The ring of sessions.
    Sessions,
    /// The ring of questions, which also has sessions of observe mode.
    Asks,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Denied,
    Passed,
}

impl Ring {
    const fn group(self) -> Group {
        match self {
            Self::Denials => Group::Denied,
            Self::Sessions | Self::Asks => Group::Passed,
        }
    }
}

/// A number for each [`Group`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Each {
    denied: u64,
    passed: u64,
}

impl Each {
    const fn of(&mut self, group: Group) -> &mut u64 {
        match group {
            Group::Denied => &mut self.denied,
            Group::Passed => &mut self.passed,
        }
    }

    const fn is_below(self, other: Self) -> bool {
        self.denied < other.denied || self.passed < other.passed
    }
}

/// The counters, as far as they are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    sessions: Each,
    lost: Each,
    /// How many entries of the table of servers they are of.
    servers: u16,
}

impl Counted {
    /// Of the first `servers` entries of the table of servers; the canary's is the last, and not among them.
    #[must_use]
    pub fn of(totals: &[u64], servers: u16) -> Self {
        let total = |index: u32| {
            usize::try_from(index)
                .ok()
                .and_then(|index| totals.get(index))
                .copied()
                .unwrap_or(0)
        };
        let outcome = |outcome: Outcome| -> u64 {
            (0..servers)
                .map(|server| total(counter::outcome(server, outcome)))
                .sum()
        };
        Self {
            sessions: Each {
                denied: outcome(Outcome::Denied),
                passed: outcome(Outcome::Secure)
                    + outcome(Outcome::Observed)
                    + outcome(Outcome::TlsFailed),
            },
            lost: Each {
                denied: total(Global::LostDenials as u32),
                passed: total(Global::LostSessions as u32),
            },
            servers,
        }
    }

    const fn has_gone_back(&self, before: &Self) -> bool {
        self.sessions.is_below(before.sessions) || self.lost.is_below(before.lost)
    }
}

/// Whether an event of this kind stands for a session that is compared.
#[must_use]
pub const fn is_compared(kind: Option<Kind>) -> bool {
    match kind {
        Some(Kind::Secure | Kind::Observed | Kind::TlsFailed | Kind::Denied) => true,
        Some(
            Kind::Excepted | Kind::Listen | Kind::Unix | Kind::Released | Kind::Older | Kind::Asked,
        )
        | None => false,
    }
}

/// The counters at an instant.
#[derive(Debug)]
struct Snapshot {
    /// Before and after they were read, by `CLOCK_MONOTONIC` in nanoseconds; the latter is not known while they are read.
    before: u64,
    after: u64,
    counted: Counted,
    /// Events that are certain to be among what is counted, and those that may be.
    certain: Each,
    possible: Each,
}

/// What has come of events.
#[derive(Debug, Default)]
struct Come {
    received: Each,
    /// When each ring was seen empty: all before has been read.
    emptied: [u64; 3],
    waiting: VecDeque<Snapshot>,
}

impl Come {
    fn emptied(&mut self, ring: Ring) -> Option<&mut u64> {
        self.emptied.get_mut(ring as usize)
    }

    /// The oldest snapshot, if all that it may have counted has come by `now`.
    fn settled(&mut self, now: u64) -> Option<Snapshot> {
        let oldest = self.waiting.front()?;
        let since = oldest.after.saturating_add(SLACK_NS);
        let is_read = self.emptied.iter().all(|&emptied| emptied > since);
        if is_read && now > oldest.after.saturating_add(SETTLE_NS) {
            self.waiting.pop_front()
        } else {
            None
        }
    }
}

/// What the threads that read rings tell.
#[derive(Debug, Default)]
pub struct Tally(Mutex<Come>);

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Come> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An event that was made at `ktime_ns` has come; 0 where that could not be read.
    pub fn received(&self, ring: Ring, ktime_ns: u64) {
        let group = ring.group();
        let mut come = self.lock();
        *come.received.of(group) += 1;
        for snapshot in &mut come.waiting {
            if ktime_ns <= snapshot.before {
                *snapshot.certain.of(group) += 1;
            }
            if ktime_ns <= snapshot.after.saturating_add(SLACK_NS) {
                *snapshot.possible.of(group) += 1;
            }
        }
    }

    /// All events of a ring that were made up to `ktime_ns` have come.
    pub fn emptied(&self, ring: Ring, ktime_ns: u64) {
        if let Some(emptied) = self.lock().emptied(ring) {
            *emptied = ktime_ns;
        }
    }

    /// Begins a snapshot at `now`: the counters are read next.
    pub fn begin(&self, now: u64) {
        let mut come = self.lock();
        if come.waiting.len() >= WAITING {
            return;
        }
        let received = come.received;
        come.waiting.push_back(Snapshot {
            before: now,
            after: u64::MAX,
            counted: Counted::default(),
            certain: received,
            possible: received,
        });
    }

    /// Ends it: they were read by `now`.
    pub fn end(&self, now: u64, counted: Counted) {
        if let Some(snapshot) = self.lock().waiting.back_mut()
            && snapshot.after == u64::MAX
        {
            snapshot.after = now;
            snapshot.counted = counted;
        }
    }
}

/// What comes out of the comparison.
#[derive(Debug, Default)]
pub struct Ledger {
    denied: Book,
    passed: Book,
    /// The counters as they were read last.
    last: Option<Counted>,
    /// Sessions that were counted, and whose events have not come.
    missing: u64,
    /// How often a counter was lower than before.
    gone_back: u64,
}

impl Ledger {
    /// Sessions that were counted, and whose events have not come and were not lost by the kernel.
    #[must_use]
    pub const fn missing(&self) -> u64 {
        self.missing
    }

    /// How often a counter was lower than before.
    #[must_use]
    pub const fn gone_back(&self) -> u64 {
        self.gone_back
    }

    /// Takes the counters that were just read, and compares what is settled by `now`.
    pub fn turn(&mut self, tally: &Tally, now: u64, counted: Counted) {
        let before = self.last.replace(counted);
        let is_back = before.is_some_and(|before| counted.has_gone_back(&before));
        self.gone_back += u64::from(is_back);
        if is_back || before.is_some_and(|before| before.servers != counted.servers) {
            (self.denied, self.passed) = <(Book, Book)>::default();
            tally.lock().waiting.clear();
            return;
        }
        let settled = || tally.lock().settled(now);
        for snapshot in std::iter::from_fn(settled) {
            let Snapshot {
                counted: then,
                mut certain,
                mut possible,
                ..
            } = snapshot;
            for (group, book) in [
                (Group::Denied, &mut self.denied),
                (Group::Passed, &mut self.passed),
            ] {
                let (mut sessions, mut lost, mut lost_by_now) =
                    (then.sessions, then.lost, counted.lost);
                let sessions = *sessions.of(group);
                let most = difference(sessions, *certain.of(group) + *lost.of(group));
                // What the kernel has lost since may have been of these.
                let least = difference(sessions, *possible.of(group) + *lost_by_now.of(group));
                self.missing += book.enter(least, most);
            }
        }
    }
}

/// What is missing of a group.
#[derive(Debug, Default)]
struct Book {
    /// What has been missing at the most, and was told or was before this agent's time.
    known: Option<i64>,
    /// What was missing beyond it in the last snapshots.
    more: Vec<i64>,
}

impl Book {
    /// Takes what is missing by the next snapshot, at least and at most. Returns how much of it is new and certain.
    fn enter(&mut self, least: i64, most: i64) -> u64 {
        let known = self.known.map_or(most, |known| known.min(most));
        self.known = Some(known);
        let more = least.saturating_sub(known);
        if more <= 0 {
            self.more.clear();
            return 0;
        }
        self.more.push(more);
        if self.more.len() < CERTAIN {
            return 0;
        }
        let certain = self.more.drain(..).min().unwrap_or(0);
        self.known = Some(known.saturating_add(certain));
        u64::try_from(certain).unwrap_or(0)
    }
}

fn difference(counted: u64, come: u64) -> i64 {
    let number = |number| i64::try_from(number).unwrap_or(i64::MAX);
    number(counted).saturating_sub(number(come))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A gate that counts and sends, and an agent that reads and looks once a second.
    #[derive(Default)]
    struct Host {
        now: u64,
        counted: Counted,
        tally: Tally,
        ledger: Ledger,
    }

    impl Host {
        /// An agent that finds counters of a former one.
        fn adopting(denied: u64) -> Self {
            let mut host = Self::default();
            host.counted.sessions.denied = denied;
            host
        }

        fn count(&mut self, sessions: u64) {
            self.counted.sessions.denied += sessions;
        }

        fn come(&self, events: u64, made_at: u64) {
            for _ in 0..events {
                self.tally.received(Ring::Denials, made_at);
            }
        }

        /// A second passes, in the middle of which `sessions` are counted and sent; the event of `stolen` of them does not come.
        fn second(&mut self, sessions: u64, stolen: u64) {
            self.tally.begin(self.now);
            self.tally.end(self.now, self.counted);
            self.ledger.turn(&self.tally, self.now, self.counted);
            self.now += SECOND / 2;
            self.count(sessions);
            self.come(sessions - stolen, self.now);
            self.now += SECOND / 2;
            self.all_read();
        }

        fn all_read(&self) {
            for ring in [Ring::Denials, Ring::Sessions, Ring::Asks] {
                self.tally.emptied(ring, self.now);
            }
        }

        fn seconds(&mut self, number: u64, sessions: u64) {
            for _ in 0..number {
                self.second(sessions, 0);
            }
        }
    }

    #[test]
    fn what_is_taken_away_is_told_once() {
        let mut host = Host::adopting(1000);
        host.seconds(6, 50);
        host.second(50, 7);
        host.seconds(10, 50);
        assert_eq!(host.ledger.missing(), 7);
        host.second(0, 0);
        host.second(20, 5);
        host.seconds(10, 0);
        assert_eq!(host.ledger.missing(), 12);
        assert_eq!(host.ledger.gone_back(), 0);
    }

    #[test]
    fn events_that_come_late_are_not_missing() {
        let mut host = Host::default();
        host.seconds(8, 10);
        // Made, and not read: the agent stands still, or has too much to do.
        host.count(5000);
        let made_at = host.now - 1;
        let read = host.now;
        for _ in 0..20 {
            host.second(0, 0);
            for ring in [Ring::Denials, Ring::Sessions, Ring::Asks] {
                host.tally.emptied(ring, read);
            }
        }
        assert_eq!(host.ledger.missing(), 0);
        host.come(5000, made_at);
        host.all_read();
        host.seconds(10, 10);
        assert_eq!(host.ledger.missing(), 0);
    }

    #[test]
    fn events_that_were_waiting_when_the_agent_came_are_not_too_many_later() {
        let mut host = Host::adopting(1000);
        host.second(0, 0);
        host.come(30, 1);
        host.seconds(8, 0);
        host.second(10, 10);
        host.seconds(10, 0);
        assert_eq!(host.ledger.missing(), 10);
    }

    #[test]
    fn what_the_kernel_says_it_has_lost_is_not_missing() {
        let mut host = Host::default();
        host.seconds(6, 0);
        host.second(100, 40);
        host.counted.lost.denied += 40;
        host.seconds(10, 0);
        assert_eq!(host.ledger.missing(), 0);
        // More is lost than sessions: other events, too. What is taken away later still shows.
        host.counted.lost.denied += 15;
        host.seconds(6, 0);
        host.second(10, 4);
        host.seconds(10, 0);
        assert_eq!(host.ledger.missing(), 4);
    }

    #[test]
    fn session_that_is_counted_while_the_counters_are_read_is_not_missing() {
        let mut host = Host::default();
        for _ in 0..20 {
            host.tally.begin(host.now);
            host.count(3);
            host.tally.end(host.now + 10, host.counted);
            // The program was interrupted before it made the event.
            host.come(3, host.now + SLACK_NS);
            host.ledger.turn(&host.tally, host.now + 10, host.counted);
            host.now += SECOND;
            host.all_read();
        }
        host.seconds(6, 0);
        assert_eq!(host.ledger.missing(), 0);
    }

    #[test]
    fn counters_that_go_back_are_told_and_begin_anew() {
        let mut host = Host::adopting(100);
        host.seconds(6, 5);
        host.counted.sessions.denied = 0;
        host.seconds(8, 5);
        assert_eq!((host.ledger.gone_back(), host.ledger.missing()), (1, 0));
        host.second(9, 9);
        host.seconds(10, 5);
        assert_eq!(host.ledger.missing(), 9);
    }

    #[test]
    fn canary_is_not_among_what_is_counted() {
        let mut totals = vec![0; counter::COUNTERS];
        for server in [0, 2, crate::canary::SERVER] {
            let at = usize::try_from(counter::outcome(server, Outcome::Denied)).unwrap();
            totals[at] = 10;
        }
        let counted = Counted::of(&totals, crate::canary::SERVER);
        assert_eq!(counted.sessions.denied, 20);
        assert_eq!(Counted::of(&totals, 1).sessions.denied, 10);
    }
}
