//! The command line: what can be typed, and the exit codes.

use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use jiff::{Span, Timestamp};
use musttls_common::verdict::Mode;

use crate::audit::record::Outcome;
use crate::config;
use crate::events::filter::{self, Filter, Kind};
use crate::span::{self, Since};
use crate::why::Target;

/// Makes MySQL and MariaDB servers refuse plaintext TCP logins, from outside the server.
#[derive(Clone, Debug, Parser)]
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
        It goes on trying while no agent answers. To print the numbers once: musttls status"
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
        after_help = "Example:\n  systemctl stop musttls && musttls disarm       # plaintext logins pass from then on"
    )]
    Disarm,
    /// Check or show the configuration
    #[command(after_help = CONFIG_EXAMPLES)]
    Config {
        /// What to do with it.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Exceptions: let plaintext clients in for a time, take that back, see which end soon
    #[command(after_help = EXCEPT_EXAMPLES)]
    Except {
        /// What to do with them.
        #[command(subcommand)]
        command: ExceptCommand,
        /// Main configuration file; `conf.d` is beside it
        #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Show the modes, or set one: observe (report plaintext logins) or enforce (refuse them)
    #[command(after_help = MODE_EXAMPLES)]
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
    #[command(after_help = CLIENTS_EXAMPLES)]
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
    #[command(after_help = EVENTS_EXAMPLES)]
    Events(Box<EventsArgs>),
    /// Say which rule decides about a session on record, or about a plaintext login, and why; exit 1 if it would be refused now
    #[command(after_help = WHY_EXAMPLES)]
    Why(Box<WhyArgs>),
    /// Say whom a policy would refuse of those who have connected; exit 1 if anybody
    #[command(after_help = SIMULATE_EXAMPLES)]
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
    #[command(after_help = REPORT_EXAMPLES)]
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
    #[command(after_help = LEARN_EXAMPLES)]
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
    #[command(after_help = HISTORY_EXAMPLES, args_conflicts_with_subcommands = true)]
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
    #[command(after_help = PANIC_EXAMPLES)]
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

const RUN_EXAMPLES: &str = "\
Examples:
  musttls run                                   # as the unit does; Ctrl-C ends it
  RUST_LOG=debug musttls run --config new.toml";

const STATUS_EXAMPLES: &str = "\
Examples:
  musttls status
  musttls status --json | jq '.servers'
  watch musttls status                          # or live: musttls top";

const SCAN_EXAMPLES: &str = "\
Examples:
  musttls scan                                  # before anything is turned on
  musttls scan --json | jq '.servers[].listeners'";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  musttls doctor                                # what this host lacks, and what to do
  musttls doctor --json | jq '.checks[] | select(.found | not)'";

const KILL_EXAMPLES: &str = "\
Examples:
  musttls kill-plaintext                        # whom it would end
  musttls kill-plaintext --execute";

const CONFIG_EXAMPLES: &str = "\
Examples:
  musttls config check new.toml && install -m 0640 new.toml /etc/musttls/musttls.toml && musttls reload
  musttls config show --origin                  # which file says what";

const CONFIG_CHECK_EXAMPLES: &str = "\
Examples:
  musttls config check                          # exit 78: it is wrong, and where
  musttls config check new.toml && install -m 0640 new.toml /etc/musttls/musttls.toml && musttls reload";

const EXCEPT_EXAMPLES: &str = "\
Examples:
  musttls except list
  musttls except add --name legacy-etl --source 10.3.0.0/16 --user etl --for 14d \\
      --owner dba@example.com --reason 'MySQL 5.6 client, migration DB-812'
  musttls except expiring --within 30d          # exit 1: ask the owners
  musttls except rm legacy-etl";

const RELOAD_EXAMPLES: &str = "\
Examples:
  musttls config check && musttls reload        # exit 78: the file is wrong, the old policy stays";

const MODE_EXAMPLES: &str = "\
Examples:
  musttls mode                                  # which server is in which mode
  musttls mode enforce orders --for 30m --execute
  musttls mode enforce --execute
  musttls mode observe orders";

const PANIC_EXAMPLES: &str = "\
Examples:
  musttls panic
  musttls panic --end";

/// A mode, as it is typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ModeName {
    /// Report plaintext logins
    Observe,
    /// Refuse them
    Enforce,
}

impl From<ModeName> for Mode {
    fn from(name: ModeName) -> Self {
        match name {
            ModeName::Observe => Self::Observe,
            ModeName::Enforce => Self::Enforce,
        }
    }
}

/// What to do with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum ConfigCommand {
    /// Check a file and the layers that belong to it, without any effect on the running agent
    #[command(after_help = CONFIG_CHECK_EXAMPLES)]
    Check {
        /// Main configuration file
        #[arg(value_name = "FILE", default_value = config::DEFAULT_PATH)]
        file: PathBuf,
    },
    /// Show the configuration in full, as its layers and the defaults make it
    #[command(after_help = CONFIG_SHOW_EXAMPLES)]
    Show {
        /// Main configuration file
        #[arg(value_name = "FILE", default_value = config::DEFAULT_PATH)]
        file: PathBuf,
        /// Tell the file and line of each value, or that it is a default
        #[arg(long)]
        origin: bool,
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
}

const CONFIG_SHOW_EXAMPLES: &str = "\
Examples:
  musttls config show --origin                  # which file says what
  musttls config show --json | jq '.exception'";

/// What to do with exceptions.
#[derive(Clone, Debug, Subcommand)]
pub enum ExceptCommand {
    /// Add an exception to conf.d/50-exceptions.toml and have the running agent apply it
    #[command(after_help = EXCEPT_ADD_EXAMPLES)]
    Add(Box<ExceptAdd>),
    /// Remove exceptions from the files they are in and have the running agent apply that
    #[command(after_help = "Example:\n  musttls except rm legacy-etl")]
    Rm {
        /// Names of exceptions
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
    /// List the exceptions of the files, with where they stand
    #[command(
        after_help = "Example:\n  musttls except list --json | jq -r '.[] | select(.expires == \"never\") | .name'"
    )]
    List {
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// List the exceptions that end soon or have ended; exit 1 if there are any
    #[command(
        after_help = "Example:\n  musttls except expiring --within 30d || logger -p daemon.warning 'exceptions of musttls end soon'"
    )]
    Expiring {
        /// How soon
        #[arg(long, value_name = "TIME", default_value = "14d", value_parser = span::parse, allow_hyphen_values = true)]
        within: Span,
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
}

const EXCEPT_ADD_EXAMPLES: &str = "\
Examples:
  musttls except add --name legacy-etl --source 10.3.0.0/16 --user etl --for 14d \\
      --owner dba@example.com --reason 'MySQL 5.6 client, migration DB-812'
  musttls except add --name audit --server orders --source 10.9.8.7/32 2001:db8::7/128 \\
      --not-before 2027-03-01 --expires 2027-03-31 --owner audit@example.com --reason 'yearly audit'
  musttls except add --name backup --local-user backup --cgroup /system.slice/backup.service --for 90d \\
      --owner ops@example.com --reason 'dumps of this host; the tool has no TLS'";

/// A new exception.
#[derive(Clone, Debug, Args)]
pub struct ExceptAdd {
    /// Its name in records and metrics
    #[arg(long)]
    pub name: String,
    /// Networks of the clients; beside a uid, a local user or a cgroup, without it any address of this host
    #[arg(
        long,
        value_name = "NET",
        required_unless_present_any = ["uid", "local_user", "cgroup"],
        num_args = 1..,
        value_parser = config::edit::source
    )]
    pub source: Vec<IpNet>,
    /// Users; without it any user
    #[arg(long, value_name = "USER", num_args = 1..)]
    pub user: Vec<String>,
    /// Name of a server with settings of its own; without it any server
    #[arg(long)]
    pub server: Option<String>,
    /// Programs, as clients call themselves (`musttls clients` shows it): a claim that anybody can make
    #[arg(long, value_name = "PROGRAM", num_args = 1..)]
    pub program: Vec<String>,
    /// User ids of processes of this host that connect over TCP
    #[arg(long, value_name = "UID", num_args = 1..)]
    pub uid: Vec<u32>,
    /// The same by the names that /etc/passwd has
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub local_user: Vec<String>,
    /// Cgroups (v2) of processes of this host that connect over TCP, with all below them
    #[arg(long, value_name = "PATH", num_args = 1..)]
    pub cgroup: Vec<String>,
    /// When it begins: a date (UTC) or a time with its offset; without it at once
    #[arg(long, value_name = "TIME", value_parser = config::edit::begin)]
    pub not_before: Option<String>,
    /// When it ends: a date (through that day, UTC), a time with its offset, or never
    #[arg(long, value_name = "TIME", value_parser = config::edit::end, required_unless_present = "length")]
    pub expires: Option<String>,
    /// How long it holds from now on, or from its beginning: 14d, 12h, 1mo
    #[arg(
        long = "for",
        id = "length",
        value_name = "TIME",
        value_parser = span::parse,
        allow_hyphen_values = true,
        conflicts_with = "expires"
    )]
    pub length: Option<Span>,
    /// Who answers for it
    #[arg(long)]
    pub owner: String,
    /// Why it exists
    #[arg(long)]
    pub reason: String,
    /// Let the networks be all addresses of IPv4 or of IPv6
    #[arg(long)]
    pub everyone: bool,
}

const CLIENTS_EXAMPLES: &str = "\
Examples:
  musttls clients --plaintext --since 14d
  musttls clients --server orders --user etl --json";

const EVENTS_EXAMPLES: &str = "\
Examples:
  musttls events -f                             # the last 10, and then as they come
  musttls events --refused --since 2h
  musttls events -n 20 --client 10.3.0.0/16 --user etl
  musttls events --since 2026-11-01 --until 2026-11-07 --outcome excepted --json | jq -r .user.name
  musttls events --kind agent                   # modes, faults of the gate, losses

The number in the column EVENT is for `musttls why`.";

/// Which records, and how they are shown.
#[derive(Clone, Debug, Args)]
pub struct EventsArgs {
    /// Go on with records as they are written, until Ctrl-C
    #[arg(short, long, conflicts_with = "until")]
    pub follow: bool,
    /// Only the last so many of them; 10 with --follow, unless --since is given
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub last: Option<usize>,
    /// Only those since then: 14d, 12h, a day (UTC) as 2026-11-01, or a time as 2026-11-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = filter::since)]
    pub since: Option<Since>,
    /// Only those before then; a day is meant to its end
    #[arg(long, value_name = "TIME", value_parser = filter::until)]
    pub until: Option<Since>,
    /// Only those of clients in this network, or of this address
    #[arg(long, value_name = "NETWORK", value_parser = filter::network)]
    pub client: Option<IpNet>,
    /// Only those of this server and this user.
    #[command(flatten)]
    pub of: Of,
    /// Only those with this outcome; may be given several times
    #[arg(long, value_name = "WORD", value_parser = outcome())]
    pub outcome: Vec<Outcome>,
    /// Only those that were refused: --outcome denied
    #[arg(long, conflicts_with = "outcome")]
    pub refused: bool,
    /// Only those about this; may be given several times
    #[arg(long, value_name = "WORD")]
    pub kind: Vec<Kind>,
    /// Configuration file of the agent, which says where the audit file is
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// How to show them.
    #[command(flatten)]
    pub output: Output,
}

impl EventsArgs {
    /// Which records are wanted, seen from `now`.
    #[must_use]
    pub fn filter(&self, now: Timestamp) -> Filter {
        let instant = |since: Since| since.instant(now).as_millisecond();
        Filter {
            since_ms: self.since.map(instant),
            until_ms: self.until.map(instant),
            client: self.client,
            user: self.of.user.clone(),
            server: self.of.server.clone(),
            outcomes: if self.refused {
                vec![Outcome::Denied]
            } else {
                self.outcome.clone()
            },
            kinds: self.kind.clone(),
        }
    }
}

/// The words of `verdict` in audit records.
fn outcome() -> impl TypedValueParser<Value = Outcome> {
    PossibleValuesParser::new(Outcome::ALL.map(Outcome::verdict))
        .try_map(|word| Outcome::of_verdict(&word).ok_or("it is no outcome"))
}

const WHY_EXAMPLES: &str = "\
Examples:
  musttls events --refused -n 5                 # the column EVENT has the numbers
  musttls why 187                               # what was decided then, and what would be now
  musttls why 10.3.0.7 etl                      # a plaintext login from there, on each server
  musttls why 10.3.0.7 etl --server orders --json
  musttls why 2001:db8::7 --port 3307 || echo 'would be refused'";

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct WhyArgs {
    /// The number of an audit record (its metadata.sequence; the newest of that number) or its metadata.uid; or the address of a client
    #[arg(value_name = "EVENT|ADDRESS", value_parser = Target::parse)]
    pub target: Target,
    /// The user of a plaintext login from that address; without it, only exceptions for any user count
    pub user: Option<String>,
    /// Only what is done about it on this server: the name of a server with settings of its own, or default
    #[arg(long, value_name = "NAME", conflicts_with = "port")]
    pub server: Option<String>,
    /// Only what is done about it on this port
    #[arg(long)]
    pub port: Option<u16>,
    /// Configuration file with the policy, which also says where the audit file is
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
    /// How to show it.
    #[command(flatten)]
    pub output: Output,
}

const SIMULATE_EXAMPLES: &str = "\
Examples:
  musttls simulate --policy new.toml --since 14d
  musttls simulate --policy new.toml --json | jq '.refused[].client'";

const REPORT_EXAMPLES: &str = "\
Examples:
  musttls report --output report.html
  musttls report --since 14d --policy new.toml --output report.html";

const LEARN_EXAMPLES: &str = "\
Examples:
  musttls learn --owner dba@example.com
  musttls learn --since 30d --server orders --for 60d --owner dba@example.com --write learned.toml
  musttls learn --interactive --owner dba@example.com --write learned.toml";

const HISTORY_EXAMPLES: &str = "\
Examples:
  musttls history
  musttls history rebuild";

/// What to do with the history.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum HistoryCommand {
    /// Make its index anew from the audit file and its rotated files
    #[command(after_help = "Example:\n  musttls history rebuild")]
    Rebuild {
        /// Configuration file of the agent
        #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

/// Which part of the history, and where it is.
#[derive(Clone, Debug, Args)]
pub struct Past {
    /// Only who was seen since then: 14d, 12h, or a day (UTC) as 2026-11-01
    #[arg(long, value_name = "SPAN", value_parser = Since::parse)]
    pub since: Option<Since>,
    /// Configuration file of the agent, which says where the history is
    #[arg(long, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    pub config: PathBuf,
}

/// Which clients.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Of {
    /// Only those of this server
    #[arg(long, value_name = "NAME")]
    pub server: Option<String>,
    /// Only those of this user
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
}

/// What proposed exceptions say of themselves.
#[derive(Clone, Debug, Args)]
pub struct Terms {
    /// Who answers for them
    #[arg(long, value_name = "TEXT", value_parser = NonEmptyStringValueParser::new())]
    pub owner: String,
    /// Why they exist
    #[arg(
        long,
        value_name = "TEXT",
        value_parser = NonEmptyStringValueParser::new(),
        default_value = "plaintext when TLS became required; to be fixed before it ends"
    )]
    pub reason: String,
    /// How long they hold
    #[arg(long = "for", value_name = "SPAN", default_value = "30d", value_parser = span::parse)]
    pub span: Span,
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
            "musttls top --interval 5 --socket /s",
            "musttls kill-plaintext --execute --json --socket /s",
            "musttls config show f.toml --origin --json",
            "musttls except add --name n --source 10.0.0.0/8 ::1/128 --user a b --expires never --owner o --reason r",
            "musttls except add --name n --uid 1001 7 --local-user backup --cgroup /a --program mysql --for 1d --owner o --reason r",
            "musttls except rm a b --config f.toml",
            "musttls except --config f.toml list --json",
            "musttls except expiring --within 30d --json",
            "musttls clients --plaintext --server a --user u --since 14d --config f.toml --json",
            "musttls events -f -n 5 --since 1h --client 10.0.0.0/8 --user u --server a --kind tls --outcome denied --outcome kept --json --config f.toml",
            "musttls events --refused --since 2026-11-01T12:00:00Z --until 2026-11-02",
            "musttls why 10.0.0.1 etl --server a --json --config f.toml",
            "musttls why b00t/5f1c/187 --json",
            "musttls simulate --policy f.toml --since 2026-11-01 --json",
            "musttls report --policy f.toml --since 14d --output r.html --config f.toml",
            "musttls learn --server a --since 14d --for 60d --owner o --reason r --write f.toml",
            "musttls history --json --config f.toml",
            "musttls history rebuild --config f.toml",
            "musttls mode enforce orders --for 30m --execute --config f.toml",
            "musttls mode --json",
            "musttls panic --end --config f.toml",
        ] {
            assert!(parse(line).is_ok(), "{line}");
        }
        for (line, kind) in [
            ("musttls --version", ErrorKind::DisplayVersion),
            ("musttls enforce", ErrorKind::InvalidSubcommand),
            ("musttls learn", ErrorKind::MissingRequiredArgument),
            (
                "musttls clients --since yesterday",
                ErrorKind::ValueValidation,
            ),
            (
                "musttls why 10.0.0.1 --server a --port 1",
                ErrorKind::ArgumentConflict,
            ),
            ("musttls why db1", ErrorKind::ValueValidation),
            ("musttls why 10.0.0.0/8", ErrorKind::ValueValidation),
            (
                "musttls events -f --until 2026-11-01",
                ErrorKind::ArgumentConflict,
            ),
            ("musttls events --outcome refused", ErrorKind::InvalidValue),
            ("musttls mode --execute", ErrorKind::MissingRequiredArgument),
        ] {
            assert_eq!(parse(line).err(), Some(kind), "{line}");
        }
    }

    fn assert_examples(command: &clap::Command, path: &str) {
        let help = command.get_after_help().map(ToString::to_string);
        let help = help.unwrap_or_default();
        assert!(help.starts_with("Example"), "{path} has no examples");
        // An example is a command line that is taken as it stands.
        let mut examples = 0;
        for line in help
            .replace("\\\n", " ")
            .lines()
            .filter(|line| line.starts_with("  "))
        {
            for words in command_lines(line) {
                examples += 1;
                let taken = Cli::try_parse_from(&words);
                assert!(taken.is_ok(), "{path}: {words:?}: {}", taken.unwrap_err());
            }
        }
        assert!(examples > 0, "{path}: {help}");
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            assert_examples(sub, &format!("{path} {}", sub.get_name()));
        }
    }

    /// The command lines of `musttls` in a line of a shell, as words.
    fn command_lines(line: &str) -> Vec<Vec<String>> {
        let mut words = Vec::new();
        let mut word = String::new();
        let mut is_quoted = false;
        for c in line.chars().chain([' ']) {
            match c {
                '\'' => is_quoted = !is_quoted,
                ' ' if !is_quoted => {
                    if !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                }
                c => word.push(c),
            }
        }
        let shown: Vec<String> = words.into_iter().take_while(|word| word != "#").collect();
        shown
            .split(|word| matches!(word.as_str(), "|" | "||" | "&&"))
            .map(|words| {
                let before = |word: &&String| *word == "watch" || word.contains('=');
                words.iter().skip_while(before).cloned().collect()
            })
            .filter(|words: &Vec<String>| words.first().is_some_and(|word| word == "musttls"))
            .collect()
    }

    #[test]
    fn every_command_has_examples_that_are_taken_as_they_stand() {
        let mut command = Cli::command();
        command.build();
        for sub in command
            .get_subcommands()
            .filter(|sub| sub.get_name() != "help")
        {
            assert_examples(sub, sub.get_name());
        }
    }

    #[test]
    fn an_exception_has_a_name_a_source_one_end_an_owner_and_a_reason() {
        let whole =
            "musttls except add --name n --source 10.0.0.0/8 --for 14d --owner o --reason r";
        assert!(parse(whole).is_ok());
        for part in [
            "--name n ",
            "--source 10.0.0.0/8 ",
            "--for 14d ",
            "--owner o ",
            " --reason r",
        ] {
            let kind = parse(&whole.replace(part, "")).err();
            assert_eq!(kind, Some(ErrorKind::MissingRequiredArgument), "{part}");
        }
        let both = format!("{whole} --expires never");
        assert_eq!(parse(&both).err(), Some(ErrorKind::ArgumentConflict));
        for (good, bad) in [("10.0.0.0/8", "10.0.0.1/8"), ("14d", "-14d")] {
            let kind = parse(&whole.replace(good, bad)).err();
            assert_eq!(kind, Some(ErrorKind::ValueValidation), "{bad}");
        }
    }

    #[test]
    fn the_configuration_exit_code_is_one_number() {
        assert_eq!(Exit::Config as u8, config::ConfigError::EXIT_CODE);
    }
}
