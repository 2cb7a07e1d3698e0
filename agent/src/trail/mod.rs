//! The audit file as it is read: by the history, by `musttls events` and `why`, and by `musttls top`.
//!
//! | file | content |
//! |---|---|
//! | `folder` | the audit file and those it was rotated into: which there are, which cannot be read |
//! | `parts` | one of them: what it is known by, its lines in both directions |
//! | `packed` | one that gzip has compressed |
//! | `tail` | what has come since the last look, over rotation and truncation |
//! | [`record`] | what a line tells |

mod folder;
mod packed;
mod parts;
pub mod record;
mod tail;

use std::path::Path;

use anyhow::{Error, anyhow};

use crate::config::{AuditTarget, Config};
use crate::error::Failed;

pub use folder::{Flaw, Folder, Why};
pub use parts::{Part, whole_lines};
pub use tail::Tail;

/// There is no audit file to read. The text is complete.
#[derive(Debug, thiserror::Error)]
#[error(
    "there is no audit file: records go to {0}\n  help: set [audit] path to a file, or look where they go"
)]
pub struct NoFile(String);

/// The audit file of `config`.
pub fn file(config: &Config) -> Result<&Path, NoFile> {
    match &config.audit {
        AuditTarget::Stdout => Err(NoFile("the agent's standard output".to_owned())),
        AuditTarget::File(path) if path.starts_with("/dev") => {
            Err(NoFile(path.display().to_string()))
        }
        AuditTarget::File(path) => Ok(path),
    }
}

/// What is said where neither the audit file nor one that it was rotated into is there.
#[must_use]
pub fn missing(audit: &Path) -> Error {
    anyhow!("there is no such file").context(Failed::new(
        format!("read the audit file {}", audit.display()),
        "start the agent, which makes it, or name the agent's configuration: --config FILE",
    ))
}
