//! Waiting for a condition, never for a time.

use std::process::Command;
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};

use crate::place;

/// Long enough for any step on a busy machine with two cores; only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// `MUSTTLS_PATIENCE`: how many times longer than elsewhere everything is waited for on this machine, where the CPU
/// is emulated.
static FACTOR: LazyLock<u32> = LazyLock::new(|| {
    let text = std::env::var("MUSTTLS_PATIENCE").unwrap_or_else(|_| "1".to_owned());
    let factor = text.parse().unwrap_or(0);
    assert!(factor > 0, "MUSTTLS_PATIENCE is `{text}`, and no number");
    factor
});

/// What `duration` is on this machine. Where a duration is waited for, and only there, it goes through this: deadlines
/// of what must come, and pauses in which nothing may come.
#[must_use]
pub fn here(duration: Duration) -> Duration {
    duration * *FACTOR
}

/// Whether this machine is one on which clients may be too slow for what a fast one shows.
#[must_use]
pub fn is_slow() -> bool {
    *FACTOR > 1
}

/// Asks `look` until it has an answer; after `deadline` it fails and names `what` was waited for.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = here(deadline);
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = look().with_context(|| format!("wait for {what}"))? {
            return Ok(answer);
        }
        if Instant::now() >= end {
            bail!("waited {} s for {what}", deadline.as_secs_f32());
        }
        thread::sleep(PAUSE);
    }
}

/// [`until`], for a condition without a value.
pub fn until_true(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, deadline, || Ok(look()?.then_some(())))
}

/// As TOML writes a point in time; `date` knows the calendar.
pub fn utc(time: SystemTime) -> Result<String> {
    let seconds = time
        .duration_since(UNIX_EPOCH)
        .context("a time before 1970")?
        .as_secs();
    let mut date = Command::new("date");
    date.args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"])
        .arg(format!("--date=@{seconds}"));
    Ok(place::output(&mut date)?.trim().to_owned())
}
