//! What a person sees of an error, and the exit code of the process.

use std::fmt;

use crate::config::ConfigError;

/// A step that failed, as the context of its cause: what was tried, on what, and what to do about it.
#[derive(Debug)]
pub struct Failed {
    tried: String,
    help: &'static str,
}

impl Failed {
    /// `tried` names the attempt and the object, `help` is the remedy.
    pub fn new(tried: impl Into<String>, help: &'static str) -> Self {
        Self {
            tried: tried.into(),
            help,
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tried)
    }
}

/// Rights are missing; the text is complete.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotPermitted(pub String);

/// The error with its causes on one line, then its remedy on a line of its own.
#[must_use]
pub fn text(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Failed>() {
        Some(failed) => format!("{error:#}\n  help: {}", failed.help),
        None => format!("{error:#}"),
    }
}

/// Exit codes, as in sysexits(3) where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// All is well.
    Ok = 0,
    /// The command worked and found something to act on.
    Finding = 1,
    /// The command line is wrong; clap's own code.
    Usage = 2,
    /// The agent does not run (`EX_UNAVAILABLE`).
    NotRunning = 69,
    /// Rights are missing (`EX_NOPERM`).
    NotPermitted = 77,
    /// The configuration is wrong (`EX_CONFIG`).
    Config = 78,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The exit code of a process that ends with `error`.
#[must_use]
pub fn exit_code(error: &anyhow::Error) -> Exit {
    if error.is::<ConfigError>() {
        return Exit::Config;
    }
    if is_of_rights(error) {
        Exit::NotPermitted
    } else {
        Exit::Finding
    }
}

/// Whether rights are missing.
#[must_use]
pub fn is_of_rights(error: &anyhow::Error) -> bool {
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied)
    };
    error.is::<NotPermitted>() || error.chain().any(refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, PastDates};
    use anyhow::Context as _;
    use jiff::Timestamp;
    use std::io::{Error, ErrorKind};
    use std::path::Path;

    #[test]
    fn the_remedy_stands_behind_all_causes() {
        let cause: Result<(), Error> = Err(Error::from_raw_os_error(libc::EPERM));
        let error = cause
            .context("bind")
            .with_context(|| Failed::new("open the socket /s", "run as root"))
            .context("start")
            .unwrap_err();
        assert_eq!(
            text(&error),
            "start: open the socket /s: bind: Operation not permitted (os error 1)\n  help: run as root"
        );
        assert_eq!(exit_code(&error), Exit::NotPermitted);
    }

    #[test]
    fn an_error_without_a_remedy_is_its_causes() {
        let error = anyhow::Error::from(Error::from(ErrorKind::AddrInUse)).context("bind");
        assert_eq!(text(&error), "bind: address in use");
        assert_eq!(exit_code(&error), Exit::Finding);
    }

    #[test]
    fn a_bad_file_and_missing_rights_have_exit_codes_of_their_own() {
        let file = Path::new("/dev/null/musttls.toml");
        let file = Config::load(file, Timestamp::UNIX_EPOCH, PastDates::Warn).unwrap_err();
        assert_eq!(exit_code(&anyhow::Error::from(file)), Exit::Config);
        let rights = anyhow::Error::from(NotPermitted("no".to_owned()));
        assert_eq!(exit_code(&rights), Exit::NotPermitted);
    }
}
