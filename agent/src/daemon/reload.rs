//! A policy comes into force: at a reload, when an exception has begun or ended, when a mode has ended, when
//! the clock was set.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Result;
use jiff::Timestamp;
use musttls_common::verdict::Mode;

use super::{Daemon, former};
use crate::audit::record::{ModeCause, ModeChange};
use crate::audit::sink::AuditSink;
use crate::clock;
use crate::config::{Config, PastDates};
use crate::control::Answer;
use crate::error;
use crate::policy;

/// What a policy was compiled from beside the configuration: two of them differ when it must be compiled anew.
pub(super) struct Compiled {
    /// Which exceptions hold. Tables do not change when one begins, the version of the policy does: answers about conditions and
    /// verdicts about older sessions, which were given before it held, go by the version.
    pub(super) holding: Vec<bool>,
    /// Whether a mode is over.
    has_ended_mode: bool,
    /// Unix time at boot, in units of two seconds because the clocks are not read at the same instant: changes
    /// when the clock is set.
    boot: i64,
}

impl Compiled {
    pub(super) fn of(config: &Config, now: Timestamp) -> Self {
        let boot = now.as_second() - i64::try_from(clock::boottime().as_secs()).unwrap_or(0);
        let holding = config
            .exceptions
            .iter()
            .map(|exception| exception.holds(now))
            .collect();
        Self {
            holding,
            has_ended_mode: config.has_ended_mode(now),
            boot: boot / 2,
        }
    }

    pub(super) fn differs(&self, other: &Self) -> bool {
        self.holding != other.holding
            || self.has_ended_mode != other.has_ended_mode
            || (self.boot - other.boot).abs() > 1
    }
}

impl Daemon {
    /// Compiles the policy anew, for an exception that has begun or ended, a mode that has ended, or a clock that was
    /// set.
    pub(super) fn recompile(&mut self, now: Timestamp) {
        let config = if self.config.has_ended_mode(now) {
            Arc::new(self.config.at(now))
        } else {
            self.config.clone()
        };
        if let Err(error) = self.take_over(config, now, ModeCause::Until) {
            tracing::error!(
                error = error::text(&error),
                help = "it is tried again each second; if it goes on, restart musttls",
                "the policy tables stay as they are: the gate begins and ends exceptions by the clock that it was told"
            );
        }
    }

    /// Puts a configuration's policy in force, or leaves everything as it is.
    fn take_over(&mut self, config: Arc<Config>, now: Timestamp, cause: ModeCause) -> Result<()> {
        let version = self.policy_version + 1;
        self.tables.install(&policy::compile(
            &config,
            version,
            now,
            clock::boottime_ns(),
        ))?;
        self.compiled = Compiled::of(&config, now);
        let former = std::mem::replace(&mut self.config, config);
        self.in_force(version, now);
        self.tell_modes(&former, now, cause);
        self.find_let_through(&former);
        Ok(())
    }

    /// Says which servers have another mode from now on.
    fn tell_modes(&mut self, former: &Config, now: Timestamp, cause: ModeCause) {
        let config = self.config.clone();
        let cause = if config.panic && !former.panic {
            ModeCause::Panic
        } else {
            cause
        };
        let indices: BTreeSet<u16> = config.indices().chain(former.indices()).collect();
        for index in indices {
            let (from, to) = (former.mode_of(index), config.mode_of(index));
            if from == to {
                continue;
            }
            let named = config.indices().any(|named| named == index);
            let server = if named { &config } else { former }.server_name(index);
            tracing::warn!(
                server,
                from = from.as_str(),
                to = to.as_str(),
                cause = cause.as_str(),
                "another mode is in force"
            );
            self.recorder.mode_change(&ModeChange {
                time_ms: now.as_millisecond(),
                policy_name: &self.path.display().to_string(),
                policy_version: self.policy_version,
                server,
                from,
                to,
                cause,
            });
        }
    }

    /// Has sessions found that logged in in plaintext on a server that is in enforce mode from now on.
    fn find_let_through(&mut self, former: &Config) {
        let mode = |config: &Config, port| config.mode_of(config.server_index(port));
        let servers = self.registry.servers();
        let mut listeners = servers.iter().flat_map(|server| &server.listeners);
        let is_enforced = listeners.any(|listener| {
            let port = listener.address.port();
            mode(former, port) == Mode::Observe && mode(&self.config, port) == Mode::Enforce
        });
        if is_enforced {
            self.older.enforced(&servers);
        }
    }

    /// Tells all who name it that a policy has come into force.
    pub(super) fn in_force(&mut self, version: u32, now: Timestamp) {
        self.policy_version = version;
        self.recorder.policy(version, self.config.clone());
        self.in_force.set(version, self.config.clone());
        self.metrics.set_policy(&self.config, version, now);
        self.older.judge_again();
        self.step_older();
        if let Err(error) = former::keep(&self.layers.keep(), version) {
            tracing::warn!(
                error = error::text(&error),
                help = "free space on /run",
                "if this agent is killed, the next one cannot name the rules of sessions that were judged meanwhile"
            );
        }
    }

    /// Reads the configuration again, and swaps it in one step or keeps the old.
    pub(super) fn reload(&mut self) -> Answer {
        let now = clock::wall();
        match self.try_reload(now) {
            Ok(warnings) => {
                self.rejected = None;
                tracing::info!(
                    version = self.policy_version,
                    mode = self.config.mode_of(0).as_str(),
                    "policy reloaded"
                );
                Answer::Reloaded {
                    policy_version: self.policy_version,
                    warnings,
                }
            }
            Err(error) => {
                let error = error::text(&error);
                tracing::error!("the old policy stays in force: {error}");
                self.metrics.reload_failed();
                self.rejected = Some(error.clone());
                Answer::Rejected { error }
            }
        }
    }

    fn try_reload(&mut self, now: Timestamp) -> Result<Vec<String>> {
        let loaded = Config::load(&self.path, now, PastDates::Warn)?;
        let mut warnings = loaded.warnings;
        let mut config = loaded.config;
        for (same, key) in [
            (config.audit == self.config.audit, "[audit] path"),
            (config.history == self.config.history, "[history]"),
            (config.metrics == self.config.metrics, "[metrics] listen"),
            (config.control == self.config.control, "[control]"),
            (config.persist == self.config.persist, "persist"),
        ] {
            if !same {
                warnings.push(format!("{key} changes with the next start only"));
            }
        }
        if config.audit != self.config.audit
            && let Err(error) = AuditSink::examine(&config.audit)
        {
            warnings.push(format!("the next start would fail: {error}"));
        }
        config.audit = self.config.audit.clone();
        config.history.clone_from(&self.config.history);
        config.metrics = self.config.metrics;
        config.persist = self.config.persist;
        config.control.clone_from(&self.config.control);
        config.keep_indices(&mut self.server_names);
        former::keep_names(&self.server_names)?;
        // Kept with the version that is in force by then.
        let former = std::mem::replace(&mut self.layers, loaded.layers);
        if let Err(error) = self.take_over(Arc::new(config), now, ModeCause::Reload) {
            self.layers = former;
            return Err(error);
        }
        // Servers may have settings of their own now.
        self.refresh(false);
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        Ok(warnings)
    }
}
