//! The command line: what can be typed, and the exit codes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config;

/// Makes MySQL and MariaDB servers refuse plaintext TCP logins, from outside the server.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(
    name = "musttls",
    version,
    arg_required_else_help = true,
    propagate_version = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground
    Run {
        /// Configuration file
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Show the servers, their modes and what the running agent has counted
    Status {
        /// How to show it.
        #[command(flatten)]
        output: Output,
        /// Whom to ask.
        #[command(flatten)]
        control: Control,
    },
    /// List the MySQL and MariaDB servers of this host; needs no agent and changes nothing
    Scan {
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// Say what this host lacks, what that costs and what to do; exit 1 if enforcement is impossible, 77 if you may not look
    Doctor {
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// List sessions older than the gate or its enforcement that are in the clear; end those of which that is certain with --execute
    KillPlaintext {
        /// End them; without it nothing is changed
        #[arg(long)]
        execute: bool,
        /// How to show it.
        #[command(flatten)]
        output: Output,
        /// Whom to ask.
        #[command(flatten)]
        control: Control,
    },
    /// Take off a gate that stays on without an agent; stop the agent first
    Disarm,
    /// Work with configuration files
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Make the running agent read its configuration again; a bad file changes nothing
    Reload {
        /// Whom to ask.
        #[command(flatten)]
        control: Control,
    },
}

/// What to do with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Check a file, without any effect on the running agent
    Check {
        /// Configuration file
        #[arg(value_name = "FILE", default_value = config::DEFAULT_PATH)]
        file: PathBuf,
    },
}

/// How data is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How the running agent is reached.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Control {
    /// Control socket of the running agent
    #[arg(long, value_name = "PATH", default_value = config::DEFAULT_CONTROL)]
    pub socket: PathBuf,
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
    /// Trying again may help (`EX_TEMPFAIL`).
    TryAgain = 75,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;
    use std::path::Path;

    fn parse(line: &str) -> Result<Command, ErrorKind> {
        Cli::try_parse_from(line.split(' '))
            .map(|cli| cli.command)
            .map_err(|error| error.kind())
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults_are_the_packaged_paths() {
        let Ok(Command::Run { config }) = parse("musttls run") else {
            panic!()
        };
        assert_eq!(config, Path::new("/etc/musttls/musttls.toml"));
        let Ok(Command::Status { output, control }) = parse("musttls status --json") else {
            panic!()
        };
        assert!(output.json);
        assert_eq!(control.socket, Path::new("/run/musttls/control.sock"));
    }

    #[test]
    fn every_command_of_the_contract_is_there() {
        for line in [
            "musttls run --config f.toml",
            "musttls status --socket /s",
            "musttls scan --json",
            "musttls doctor --json",
            "musttls config check f.toml",
            "musttls reload --socket /s",
            "musttls kill-plaintext --execute --json --socket /s",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        assert_eq!(parse("musttls --version"), Err(ErrorKind::DisplayVersion));
        assert_eq!(parse("musttls enforce"), Err(ErrorKind::InvalidSubcommand));
    }

    #[test]
    fn the_configuration_exit_code_is_one_number() {
        assert_eq!(Exit::Config as u8, config::ConfigError::EXIT_CODE);
    }
}
