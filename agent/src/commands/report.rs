//! `musttls report`: what a report is made of, and where it goes.

use std::path::Path;

use anyhow::Result;

use super::past::{load, open};
use crate::cli::past::Past;
use crate::clock;
use crate::config::Config;
use crate::console::{Progress, complain};
use crate::control::{self, Answer};
use crate::error::Exit;
use crate::history::Filter;
use crate::report::{self, Facts, output};

pub(super) fn run(policy: Option<&Path>, past: &Past, file: Option<&Path>) -> Result<Exit> {
    if output::is_for_terminal(file) {
        complain(&format!("error: {}", output::TERMINAL));
        return Ok(Exit::Usage);
    }
    let now = clock::wall();
    let own = load(&past.config)?;
    let other = policy.map(load).transpose()?;
    let mut history = open(&own)?;
    let since = past.since.map(|since| since.instant(now));
    let since_s = since.map(jiff::Timestamp::as_second);
    let clients = history.clients(&Filter {
        since_s,
        ..Filter::default()
    })?;
    let facts = Facts {
        host: host(),
        now,
        since,
        policy: policy.unwrap_or(&past.config).display().to_string(),
        version: other
            .is_none()
            .then(|| version(&own, &past.config))
            .flatten(),
        config: other.as_ref().unwrap_or(&own),
        tallies: history.tallies(since_s)?,
        state: history.state()?,
        clients,
    };
    let all = u64::try_from(facts.clients.len()).unwrap_or(u64::MAX);
    let mut progress = Progress::new("judging");
    let page = report::report(&facts, |done| {
        progress.at(u64::try_from(done).unwrap_or(all), all);
    });
    drop(progress);
    output::write(file, &page)?;
    if let Some(file) = file {
        complain(&format!("the report is in {}", file.display()));
    }
    Ok(Exit::Ok)
}

/// The number of the policy in force, if an agent runs and it is that of the file `main`. A report can do without.
fn version(config: &Config, main: &Path) -> Option<u32> {
    match control::ask(&config.control.socket, control::Command::Status) {
        Ok(Answer::Status(status)) if Path::new(&status.policy.name) == main => {
            Some(status.policy.version)
        }
        _ => None,
    }
}

fn host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}
