//! A warning that a client could cause with each session: it is said now and then, with how often it was not.

use std::time::{Duration, Instant};

/// How long it is not said again.
const AGAIN: Duration = Duration::from_secs(10);

/// One such warning.
#[derive(Debug, Default)]
pub(super) struct Seldom {
    said: Option<Instant>,
    unsaid: u64,
}

impl Seldom {
    /// Whether it is to be said now: then how often it was not since the last time.
    pub(super) fn due(&mut self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&mut self, now: Instant) -> Option<u64> {
        if self.said.is_some_and(|said| now < said + AGAIN) {
            self.unsaid += 1;
            return None;
        }
        self.said = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_said_at_once_and_then_with_how_often_it_was_not() {
        let mut warning = Seldom::default();
        let now = Instant::now();
        assert_eq!(warning.due_at(now), Some(0));
        assert_eq!(warning.due_at(now), None);
        assert_eq!(warning.due_at(now + AGAIN / 2), None);
        assert_eq!(warning.due_at(now + AGAIN), Some(2));
        assert_eq!(warning.due_at(now + AGAIN), None);
    }
}
