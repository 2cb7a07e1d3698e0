//! The clocks. The kernel and the record do not count from the same instant, and not the same seconds:
//!
//! | clock | unit and start | stops in suspend | who uses it |
//! |---|---|---|---|
//! | wall clock | Unix time, UTC; may be set | no | audit records, exceptions of the file |
//! | `CLOCK_MONOTONIC` | ns since boot (`bpf_ktime_get_ns`) | yes | events of the gate |
//! | `CLOCK_BOOTTIME` | ns since boot (`bpf_ktime_get_boot_ns`) | no | end times in the policy tables |
//! | `CLOCK_THREAD_CPUTIME_ID` | ns of CPU of this thread | yes | the share of a CPU that looks may take |
//!
//! Deadlines within the agent are `std::time::Instant`, taken where they are set.

use std::time::Duration;

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// The wall clock.
#[must_use]
pub fn wall() -> Timestamp {
    Timestamp::now()
}

/// The wall clock, in milliseconds of Unix time: the unit of audit records.
#[must_use]
pub fn wall_ms() -> i64 {
    wall().as_millisecond()
}

/// Time since boot on `CLOCK_BOOTTIME`.
#[must_use]
pub fn boottime() -> Duration {
    read(ClockId::Boottime)
}

/// [`boottime`] in nanoseconds: the unit of the policy tables.
#[must_use]
pub fn boottime_ns() -> u64 {
    u64::try_from(boottime().as_nanos()).unwrap_or(u64::MAX)
}

/// The CPU that this thread has used.
#[must_use]
pub fn thread_cpu() -> Duration {
    read(ClockId::ThreadCPUTime)
}

/// `CLOCK_MONOTONIC` in nanoseconds, as events of the gate have it.
#[must_use]
pub fn monotonic_ns() -> u64 {
    u64::try_from(read(ClockId::Monotonic).as_nanos()).unwrap_or(u64::MAX)
}

/// How long ago an event of the gate was: `ktime_ns` is `CLOCK_MONOTONIC` in nanoseconds. Zero for one in the
/// future.
#[must_use]
pub fn since_ktime(ktime_ns: u64) -> Duration {
    read(ClockId::Monotonic).saturating_sub(Duration::from_nanos(ktime_ns))
}

/// When an event of the gate was, in milliseconds of Unix time.
#[must_use]
pub fn wall_ms_of_ktime(ktime_ns: u64) -> i64 {
    let age_ms = i64::try_from(since_ktime(ktime_ns).as_millis()).unwrap_or(0);
    wall_ms() - age_ms
}

fn read(clock: ClockId) -> Duration {
    let now = clock_gettime(clock);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_a_second_ago_was_a_second_ago_on_the_wall_clock() {
        let monotonic = read(ClockId::Monotonic);
        let then = u64::try_from(monotonic.as_nanos()).unwrap() - 1_000_000_000;
        let age_ms = wall_ms() - wall_ms_of_ktime(then);
        assert!((999..5_000).contains(&age_ms), "{age_ms} ms");
    }

    #[test]
    fn an_event_of_the_future_is_now() {
        assert_eq!(since_ktime(u64::MAX), Duration::ZERO);
        let ahead_ms = wall_ms_of_ktime(u64::MAX) - wall_ms();
        assert!((-5_000..=1).contains(&ahead_ms), "{ahead_ms} ms");
    }

    #[test]
    fn boottime_counts_what_monotonic_does_and_suspend() {
        assert!(boottime() >= read(ClockId::Monotonic).saturating_sub(Duration::from_secs(1)));
    }
}
