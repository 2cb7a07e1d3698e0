//! Waiting for a condition, never for a time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Long enough for any step on a busy machine with two cores; only a failing test waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);

/// Asks `look` until it has an answer; after `deadline` it fails and names `what` was waited for.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
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
