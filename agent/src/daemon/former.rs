//! What an agent leaves to the next: the policy by which its gate goes on judging, and how far it has told of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use musttls_common::counter::{self, Mark, Outcome};

use super::recorder::losses::at;
use super::{Daemon, lock};
use crate::audit::record::Gap;
use crate::canary;
use crate::clock;
use crate::config::{Config, PastDates};
use crate::error;

/// The layers of the policy in force, as they were read, beside the lock: `policy-7.toml` is version 7.
const PREFIX: &str = "policy-";
const SUFFIX: &str = ".toml";
/// The names of servers, a line each, from entry 1 on.
const NAMES: &str = "servers";

impl Daemon {
    /// Goes on where a former agent ended, whose gate has judged until now by policy `version`.
    pub(super) fn adopt(&mut self, version: u32) -> Result<()> {
        if let Some(config) = kept(version, &self.server_names) {
            self.recorder.policy(version, config);
        }
        let mark = self.told.mark()?;
        let name = self.path.display().to_string();
        let gap = gap(&mark, &self.totals(), &name, version);
        self.recorder.resume(&mark.counters, &gap);
        tracing::info!(
            since_ms = gap.since_ms,
            sessions = ?gap.sessions,
            policy_version = version,
            "took over the gate that a former agent has left on"
        );
        Ok(())
    }

    /// Notes that the counters are told so far.
    pub(super) fn note(&mut self, totals: &[u64]) {
        let mut counters = [0; counter::COUNTERS];
        for (counter, total) in counters.iter_mut().zip(totals) {
            *counter = *total;
        }
        let mark = Mark {
            boottime_ns: clock::boottime_ns(),
            counters,
        };
        if let Err(error) = self.told.note(mark) {
            tracing::warn!(
                error = format!("{error:#}"),
                help = "please report it",
                "the next agent will not know how far this one has told"
            );
        }
    }
}

/// Keeps which entries of the table of servers have which names: the records of the gate hold the numbers.
pub(super) fn keep_names(names: &[String]) -> Result<()> {
    let path = directory().join(NAMES);
    write(&path, &names.join("\n")).with_context(|| format!("write {}", path.display()))
}

/// The names of [`keep_names`].
pub(super) fn names() -> Result<Vec<String>> {
    let path = directory().join(NAMES);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// Keeps the text of a policy that has come into force, and removes those before it.
pub(super) fn keep(text: &str, version: u32) -> Result<()> {
    let path = path(version);
    let keep = || -> std::io::Result<()> {
        write(&path, text)?;
        for other in versions()? {
            if other != version {
                fs::remove_file(self::path(other))?;
            }
        }
        Ok(())
    };
    keep().with_context(|| format!("keep the policy in {}", path.display()))
}

/// The policy of this version, if it was kept.
fn kept(version: u32, names: &[String]) -> Option<Arc<Config>> {
    let path = path(version);
    let loaded = fs::read_to_string(&path)
        .with_context(|| format!("read {}", path.display()))
        .and_then(|text| {
            Ok(Config::recall(
                &path,
                &text,
                clock::wall(),
                PastDates::Warn,
            )?)
        });
    match loaded {
        Ok(mut loaded) => {
            loaded.config.keep_indices(&mut names.to_vec());
            Some(Arc::new(loaded.config))
        }
        Err(error) => {
            tracing::warn!(
                error = error::text(&error),
                "what the former agent's policy calls its rules is not known"
            );
            None
        }
    }
}

fn directory() -> &'static Path {
    Path::new(lock::PATH).parent().unwrap_or(Path::new("/run"))
}

fn path(version: u32) -> PathBuf {
    directory().join(format!("{PREFIX}{version}{SUFFIX}"))
}

fn versions() -> std::io::Result<Vec<u32>> {
    let mut versions = Vec::new();
    for entry in fs::read_dir(directory())? {
        let name = entry?.file_name();
        let version: Option<u32> = name.to_str().and_then(|name| {
            name.strip_prefix(PREFIX)?
                .strip_suffix(SUFFIX)?
                .parse()
                .ok()
        });
        versions.extend(version);
    }
    Ok(versions)
}

/// What happened between `mark` and now, as far as the gate has counted it.
fn gap<'s>(mark: &Mark, totals: &[u64], policy_name: &'s str, policy_version: u32) -> Gap<'s> {
    let mut sessions = BTreeMap::new();
    // Without the canary.
    for server in 0..canary::SERVER {
        for outcome in Outcome::ALL {
            let index = counter::outcome(server, outcome);
            let since = at(totals, index).saturating_sub(at(&mark.counters, index));
            if since > 0 {
                *sessions.entry(outcome.as_str()).or_default() += since;
            }
        }
    }
    let until_ms = clock::wall_ms();
    let ago = clock::boottime_ns().saturating_sub(mark.boottime_ns) / 1_000_000;
    Gap {
        since_ms: until_ms.saturating_sub(i64::try_from(ago).unwrap_or(0)),
        until_ms,
        policy_name,
        policy_version,
        sessions,
    }
}
