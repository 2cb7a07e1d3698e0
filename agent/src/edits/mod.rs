//! Changes of the configuration by command.
//!
//! A change is either in the files and in force, or nothing has happened: it is checked as a whole before a file is touched, and
//! put back if the running agent does not take it. Where no agent runs, it holds from the next start on.

mod store;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use jiff::Timestamp;

use crate::config::edit::EditError;
use crate::config::{Config, Layers, Loaded, PastDates, drop_ins};
use crate::console::{complain, print_wrapped};
use crate::control::{self, Answer, NotRunning};
use crate::datapath::Pins;
use crate::error::{Exit, Failed};
use store::{Changed, Lock};

pub use store::Change;

/// The text of a file of the configuration, or `None` if it has no such file.
#[must_use]
pub fn text_of(loaded: &Loaded, path: &Path) -> Option<String> {
    let layer = loaded.layers.files().find(|layer| layer.path() == path)?;
    Some(layer.text().to_owned())
}

/// What the files would be.
#[must_use]
pub fn changed(layers: Layers, changes: &[Change]) -> Layers {
    changes
        .iter()
        .fold(layers, |layers, change| match &change.after {
            Some(after) => layers.with(&change.path, after.clone()),
            None => layers.without(&change.path),
        })
}

/// The error of a file that cannot be edited.
#[must_use]
pub fn not_edited(path: &Path, error: &EditError) -> anyhow::Error {
    anyhow!("cannot edit {}: {error}", path.display())
}

/// Changes the files and has the running agent apply that; `done` says what was done.
pub fn change(
    main: &Path,
    now: Timestamp,
    edit: impl FnOnce(&Loaded) -> Result<Vec<Change>>,
    done: &str,
) -> Result<Exit> {
    let _lock = Lock::take(&drop_ins(main))?;
    let loaded = Config::load(main, now, PastDates::Warn)?;
    let changes = edit(&loaded)?;
    let control = loaded.config.control.socket.clone();
    is_of_the_agent(main, &control)?;
    let layers = changed(loaded.layers, &changes);
    let checked = Config::check(layers, now, PastDates::Warn).inspect_err(|_| {
        complain("note: nothing was written; the lines below are those that the files would have");
    })?;
    let made = Changed::make(changes)?;
    match apply(&control) {
        Applied::Yes(version, warnings) => {
            for warning in warnings {
                complain(&format!("warning: {warning}"));
            }
            print_wrapped(&format!("{done}; policy version {version} is in force\n"))?;
            Ok(Exit::Ok)
        }
        Applied::NoAgent(why) => {
            for warning in checked.warnings {
                complain(&format!("warning: {warning}"));
            }
            complain(&format!("note: {why}"));
            if Pins::find().is_ok_and(|pins| pins.is_some()) {
                complain(
                    "note: the gate is on all the same, and goes on by the last policy; musttls disarm takes it off",
                );
            }
            print_wrapped(&format!("{done}; it holds when an agent is started\n"))?;
            Ok(Exit::Ok)
        }
        Applied::No(error) => {
            made.undo()?;
            // The files that it has refused are gone: after one more reload its status does not speak of them.
            if let Applied::No(error) = apply(&control) {
                complain(&error);
            }
            complain(&error);
            complain(
                "The running agent did not take it: the files are as they were, and the old policy stays in force.",
            );
            Ok(Exit::Config)
        }
        Applied::Unknown(error) => Err(error).with_context(|| {
            Failed::new(
                format!("{done}; but whether the running agent applies it is not known"),
                "musttls reload says so; musttls config show --origin shows what is in the files",
            )
        }),
    }
}

/// That an agent which answers reads these files: one that reads others would say that all is well.
fn is_of_the_agent(main: &Path, control: &Path) -> Result<()> {
    let Ok(Answer::Status(status)) = control::ask(control, control::Command::Status) else {
        // None runs, or it will say so when it is asked to reload.
        return Ok(());
    };
    // Where the agent was started is not known.
    let theirs = Path::new(&status.policy.name);
    if theirs.is_relative() {
        return Ok(());
    }
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if real(theirs) != real(main) {
        bail!(
            "the agent that answers at {} reads {}, not {}; nothing was written\n  help: name its file: --config {}",
            control.display(),
            theirs.display(),
            main.display(),
            theirs.display()
        );
    }
    Ok(())
}

/// What the agent made of it.
enum Applied {
    /// It is in force, with this version.
    Yes(u32, Vec<String>),
    /// No agent runs.
    NoAgent(String),
    /// The agent refused.
    No(String),
    /// It could not be asked, or did not answer.
    Unknown(anyhow::Error),
}

fn apply(control: &Path) -> Applied {
    match control::ask(control, control::Command::Reload) {
        Ok(Answer::Reloaded {
            policy_version,
            warnings,
        }) => Applied::Yes(policy_version, warnings),
        Ok(Answer::Rejected { error } | Answer::Error { error }) => Applied::No(error),
        Ok(other) => Applied::Unknown(anyhow!("the agent answered {other:?} to a reload")),
        Err(error) if error.is::<NotRunning>() => {
            Applied::NoAgent(format!("no agent answers at {}", control.display()))
        }
        Err(error) => Applied::Unknown(error),
    }
}
