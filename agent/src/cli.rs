//! The command line: what can be typed, and the exit codes.

pub mod past;
pub mod policy;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use jiff::Span;

use self::past::{EventsArgs, HistoryCommand, Of, Past, Terms, WhyArgs};
use self::policy::{ConfigCommand, ExceptCommand, ModeName};
use crate::{config, span};

/// Makes MySQL and MariaDB servers refuse plaintext TCP logins, from outside the server.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "musttls",
    version,
    arg_required_else_help = true,
    propagate_version = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run the agent in the foreground
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        /// Configuration file
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Show the servers, their modes and what the running agent has counted
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        /// How to show it.
        #[command(flatten)]
        output: Output,
        /// Whom to ask.
        #[command(flatten)]
        control: Control,
    },
    /// Watch sessions, refusals, plaintext clients, exceptions and the agent's health live; q quits, F1 has the keys
    #[command(
        after_help = "Examples:\n  musttls top\n  musttls top --interval 10\n  NO_COLOR=1 musttls top\n\n\
        It goes on trying while no agent answers.\nTo print the numbers once: musttls status"
    )]
    Top {
        /// Seconds between two questions to the agent; + and - change it
        #[arg(long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=60))]
        interval: u64,
        /// Whom to ask.
        #[command(flatten)]
        control: Control,
    },
    /// List the MySQL and MariaDB servers of this host; needs no agent and changes nothing
    #[command(after_help = SCAN_EXAMPLES)]
    Scan {
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// Say what this host lacks, what that costs and what to do; exit 1 if enforcement is impossible, 77 if you may not look
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor {
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// List sessions older than the gate or its enforcement that are in the clear; end those of which that is certain with --execute
    #[command(after_help = KILL_EXAMPLES)]
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
    #[command(
        after_help = "Example:\n  systemctl stop musttls && musttls disarm # plaintext logins pass then"
    )]
    Disarm,
    /// Check or show the configuration
    #[command(after_help = policy::CONFIG_EXAMPLES)]
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Exceptions: let plaintext clients in for a time, take that back, see which end soon
    #[command(after_help = policy::EXCEPT_EXAMPLES)]
    Except {
        /// What to do with them.
        #[command(subcommand)]
        command: ExceptCommand,
        /// Main configuration file; `conf.d` is beside it
        #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Show the modes, or set one: observe (report plaintext logins) or enforce (refuse them)
    #[command(after_help = policy::MODE_EXAMPLES)]
    Mode {
        /// The mode; without it the modes are shown
        mode: Option<ModeName>,
        /// Name of a server with settings of its own; without it, all without a mode of their own
        #[arg(requires = "mode")]
        server: Option<String>,
        /// Go back to the mode before after this time, also if the agent ends meanwhile: 30m, 2h, 1d
        #[arg(long = "for", value_name = "SPAN", value_parser = span::parse, requires = "mode")]
        length: Option<Span>,
        /// Enforce: without it, it is only said what would be done
        #[arg(long, requires = "mode")]
        execute: bool,
        /// Main configuration file
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// List who connects how, those in the clear first, with how their driver turns on TLS
    #[command(after_help = past::CLIENTS_EXAMPLES)]
    Clients {
        /// Only those in the clear
        #[arg(long)]
        plaintext: bool,
        /// Which of them.
        #[command(flatten)]
        of: Of,
        /// Where the history is.
        #[command(flatten)]
        past: Past,
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// List what is on record: sessions, and what else happened; -f goes on as they come
    #[command(after_help = past::EVENTS_EXAMPLES)]
    Events(Box<EventsArgs>),
    /// Say which rule decides about a session on record, or about a plaintext login, and why; exit 1 if it would be refused now
    #[command(after_help = past::WHY_EXAMPLES)]
    Why(Box<WhyArgs>),
    /// Say whom a policy would refuse of those who have connected; exit 1 if anybody
    #[command(after_help = past::SIMULATE_EXAMPLES)]
    Simulate {
        /// Configuration file with the policy
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        policy: PathBuf,
        /// Where the history is.
        #[command(flatten)]
        past: Past,
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// Write what the history says and what enforcing would change as one HTML page, to look at, print or send on
    #[command(after_help = past::REPORT_EXAMPLES)]
    Report {
        /// Configuration file with the policy that is held against the history; without it that of the agent
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        /// Where the history is.
        #[command(flatten)]
        past: Past,
        /// Write it to this file, in place of a former one; without it to standard output, which must be no terminal
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Propose the narrowest exceptions for those whom enforce mode would refuse
    #[command(after_help = past::LEARN_EXAMPLES)]
    Learn {
        /// Which of them.
        #[command(flatten)]
        of: Of,
        /// Where the history is.
        #[command(flatten)]
        past: Past,
        /// What the exceptions say of themselves.
        #[command(flatten)]
        terms: Terms,
        /// Write them to a new file; without it they are printed
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        write: Option<PathBuf>,
        /// Ask about each one: an exception, the fix, or neither
        #[arg(long, conflicts_with = "json")]
        interactive: bool,
        /// How to show them.
        #[command(flatten)]
        output: Output,
    },
    /// Show what the history holds and what is missing from it
    #[command(after_help = past::HISTORY_EXAMPLES, args_conflicts_with_subcommands = true)]
    History {
        /// What to do with it.
        #[command(subcommand)]
        command: Option<HistoryCommand>,
        /// Configuration file of the agent
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// Refuse nothing from now on: all servers in observe mode, whatever the configuration says
    #[command(after_help = policy::PANIC_EXAMPLES)]
    Panic {
        /// Take it back: servers are in their own modes again
        #[arg(long)]
        end: bool,
        /// Main configuration file
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Make the running agent read its configuration again; a bad file changes nothing
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload {
        /// Whom to ask.
        #[command(flatten)]
        control: Control,
    },
}

const EXAMPLES: &str = "\
Examples, in the order of a first day:
  musttls doctor                 # can this host enforce? Changes nothing
  musttls scan                   # which servers are there, do they offer TLS?
  musttls status                 # the agent, which refuses nothing at first
  musttls clients --plaintext    # who is in the clear, and what to change
  musttls mode enforce           # whom it would refuse; it only says so

/usr/share/doc/musttls/docs/rollout.md goes on from there.";

const RUN_EXAMPLES: &str = "\
Examples:
  musttls run                            # as the unit does; Ctrl-C ends it
  RUST_LOG=debug musttls run --config new.toml";

const STATUS_EXAMPLES: &str = "\
Examples:
  musttls status
  musttls status --json | jq '.servers'
  watch musttls status                   # or live: musttls top";

const SCAN_EXAMPLES: &str = "\
Examples:
  musttls scan                           # before anything is turned on
  musttls scan --json | jq '.servers[].listeners'";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  musttls doctor                         # what this host lacks, what to do
  musttls doctor --json | jq '.checks[] | select(.found | not)'";

const KILL_EXAMPLES: &str = "\
Examples:
  musttls kill-plaintext                 # whom it would end
  musttls kill-plaintext --execute";

const RELOAD_EXAMPLES: &str = "\
Examples:
  musttls config check && musttls reload # exit 78: the old policy stays";

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

#[cfg(test)]
mod tests;
