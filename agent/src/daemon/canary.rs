//! When the canary logs in, and what becomes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use musttls_common::session::{Listener, ListenerClass};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::Daemon;
use crate::canary::{self, Canary, Desk, Failure, Step};
use crate::clock;
use crate::config::Config;
use crate::error;
use crate::servers::Tagger;
use crate::status;

/// How soon one that failed is tried again, before anybody is told: a host that slept, or an agent that was stopped, passes then.
const AGAIN: Duration = Duration::from_secs(2);

/// The canary's state.
pub(super) struct Sentry {
    canary: Result<Arc<Canary>, Lack>,
    /// The one that is under way.
    running: Option<oneshot::Receiver<Result<Duration, Failure>>>,
    next: Instant,
    passed: u64,
    failed: u64,
    /// When the last one passed, in milliseconds of Unix time, and how long it took.
    last: Option<(i64, Duration)>,
    /// What failed, if the last one did.
    failure: Option<Failure>,
    /// Whether that was told: it has failed twice.
    is_told: bool,
}

/// Why there is no canary.
pub(super) enum Lack {
    /// It was off when the agent started.
    Off,
    /// It could not be made.
    Failed(Failure),
}

impl Lack {
    /// The listener, as long as the agent may listen.
    pub(super) fn or_bind(config: &Config, desk: &Arc<Desk>) -> Result<Canary, Self> {
        if config.canary.is_none() {
            return Err(Self::Off);
        }
        Canary::bind(desk.clone()).map_err(|error| Self::failed(format!("listen: {error}")))
    }

    const fn failed(found: String) -> Self {
        Self::Failed(Failure {
            step: Step::Connect,
            found,
        })
    }
}

impl Sentry {
    /// Tells the gate of the listener.
    pub(super) fn post(canary: Result<Canary, Lack>, tagger: &mut Tagger) -> Self {
        let canary = canary.and_then(|canary| {
            let tag = Listener::named(canary::SERVER, ListenerClass::Classic);
            match tagger.maps().tag(canary.listener(), canary.cookie(), tag) {
                Ok(()) => Ok(Arc::new(canary)),
                Err(error) => Err(Lack::failed(error::text(&error))),
            }
        });
        Self {
            canary,
            running: None,
            next: Instant::now(),
            passed: 0,
            failed: 0,
            last: None,
            failure: None,
            is_told: false,
        }
    }

    /// The cookie of its listener.
    pub(super) fn cookie(&self) -> Option<u64> {
        self.canary.as_ref().ok().map(|canary| canary.cookie())
    }

    /// Takes what the one under way has come to, and lets the next one go if it is time.
    fn turn(&mut self, every: Option<Duration>) {
        if let Some(result) = self.running.as_mut().map(oneshot::Receiver::try_recv) {
            match result {
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Closed) => {
                    self.running = None;
                    let found = "the task of the canary has ended; please report it".to_owned();
                    let step = Step::Connect;
                    self.take(Err(Failure { step, found }), every);
                }
                Ok(result) => {
                    self.running = None;
                    self.take(result, every);
                }
            }
        }
        let (Ok(canary), Some(_)) = (&self.canary, every) else {
            self.failure = None;
            self.is_told = false;
            return;
        };
        if Instant::now() < self.next {
            return;
        }
        let (tell, told) = oneshot::channel();
        let canary = canary.clone();
        tokio::spawn(async move {
            if tell.send(canary.log_in().await).is_err() {
                tracing::debug!("nobody waits for the canary");
            }
        });
        self.running = Some(told);
    }

    fn take(&mut self, result: Result<Duration, Failure>, every: Option<Duration>) {
        let every = every.unwrap_or_default();
        match result {
            Ok(took) => {
                self.passed += 1;
                self.last = Some((clock::wall_ms(), took));
                self.next = Instant::now() + every;
                tracing::debug!(?took, "the canary was refused");
                if self.is_told {
                    tracing::warn!("the canary is refused again");
                }
                self.failure = None;
                self.is_told = false;
            }
            Err(failure) => {
                self.failed += 1;
                let is_second = self.failure.is_some();
                self.next = Instant::now() + if is_second { every } else { AGAIN };
                let is_new =
                    self.failure.as_ref().map(|failure| failure.step) != Some(failure.step);
                if is_second && (is_new || !self.is_told) {
                    tracing::error!(
                        step = failure.step.as_str(),
                        found = failure.found,
                        means = failure.step.meaning(),
                        help = failure.step.remedy(),
                        "the canary, a plaintext login of the agent to itself, was not refused as it should be"
                    );
                }
                self.is_told |= is_second;
                self.failure = Some(failure);
            }
        }
    }

    /// What is wrong, once it is certain.
    fn alarm(&self) -> Option<&Failure> {
        match &self.canary {
            Err(Lack::Failed(failure)) => Some(failure),
            Err(Lack::Off) => None,
            Ok(_) => self.failure.as_ref().filter(|_| self.is_told),
        }
    }

    fn status(&self, every: Option<Duration>) -> status::Canary {
        let failure = self.alarm();
        let state = match (&self.canary, every, failure) {
            (Err(Lack::Off), ..) | (_, None, _) => "off",
            (_, _, Some(_)) => "failed",
            (Err(Lack::Failed(_)) | Ok(_), Some(_), None) if self.last.is_some() => "refused",
            (Err(Lack::Failed(_)) | Ok(_), Some(_), None) => "pending",
        };
        status::Canary {
            state: state.to_owned(),
            every_s: every.map(|every| every.as_secs()),
            refused: self.passed,
            failed: self.failed,
            last_refused_ms: self.last.map(|(at, _)| at),
            took_us: self
                .last
                .map(|(_, took)| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            failure: failure.map(|failure| status::CanaryFailure {
                step: failure.step.as_str().to_owned(),
                found: failure.found.clone(),
                meaning: failure.step.meaning().to_owned(),
                remedy: failure.step.remedy().to_owned(),
            }),
        }
    }
}

impl Daemon {
    /// Lets the canary go, and the metrics know.
    pub(super) fn turn_canary(&mut self) {
        let every = self.config.canary;
        self.canary.turn(every);
        let has_failed = every.is_some() && self.canary.alarm().is_some();
        self.metrics
            .set_canary(self.canary.passed, self.canary.failed, has_failed);
    }

    pub(super) fn canary_status(&self) -> status::Canary {
        self.canary.status(self.config.canary)
    }
}
