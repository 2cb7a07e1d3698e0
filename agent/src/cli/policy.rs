//! The command line of what changes or shows the policy: `config`, `except`, `mode`.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use ipnet::IpNet;
use jiff::Span;
use musttls_common::verdict::Mode;

use super::Output;
use crate::{config, span};

pub(super) const CONFIG_EXAMPLES: &str = "\
Examples:
  musttls config check new.toml && install -m 0640 new.toml \\
      /etc/musttls/musttls.toml && musttls reload
  musttls config show --origin           # which file says what";

pub(super) const EXCEPT_EXAMPLES: &str = "\
Examples:
  musttls except list
  musttls except add --name legacy-etl --source 10.3.0.0/16 --user etl \\
      --for 14d --owner dba@example.com --reason 'MySQL 5.6, until DB-812'
  musttls except expiring --within 30d   # exit 1: ask the owners
  musttls except rm legacy-etl";

pub(super) const MODE_EXAMPLES: &str = "\
Examples:
  musttls mode                           # which server is in which mode
  musttls mode enforce orders --for 30m --execute
  musttls mode enforce --execute
  musttls mode observe orders";

pub(super) const PANIC_EXAMPLES: &str = "\
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

const CONFIG_CHECK_EXAMPLES: &str = "\
Examples:
  musttls config check                   # exit 78: it is wrong, and where
  musttls config check new.toml && install -m 0640 new.toml \\
      /etc/musttls/musttls.toml && musttls reload";

const CONFIG_SHOW_EXAMPLES: &str = "\
Examples:
  musttls config show --origin           # which file says what
  musttls config show --json | jq '.exception'";

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

const EXCEPT_ADD_EXAMPLES: &str = "\
Examples:
  musttls except add --name legacy-etl --source 10.3.0.0/16 --user etl \\
      --for 14d --owner dba@example.com --reason 'MySQL 5.6, until DB-812'
  musttls except add --name audit --server orders --source 10.9.8.7/32 \\
      2001:db8::7/128 --not-before 2027-03-01 --expires 2027-03-31 \\
      --owner audit@example.com --reason 'yearly audit'
  musttls except add --name backup --local-user backup \\
      --cgroup /system.slice/backup.service --for 90d \\
      --owner ops@example.com --reason 'dumps here; the tool has no TLS'";

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
    #[command(after_help = "Example:\n  musttls except list --json \\
      | jq -r '.[] | select(.expires == \"never\") | .name'")]
    List {
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
    /// List the exceptions that end soon or have ended; exit 1 if there are any
    #[command(after_help = "Example:\n  musttls except expiring --within 30d \\
      || logger -p daemon.warning 'exceptions of musttls end soon'")]
    Expiring {
        /// How soon
        #[arg(long, value_name = "SPAN", default_value = "14d", value_parser = span::parse, allow_hyphen_values = true)]
        within: Span,
        /// How to show it.
        #[command(flatten)]
        output: Output,
    },
}

/// A new exception.
#[derive(Clone, Debug, Args)]
#[group(skip)]
#[command(group = ArgGroup::new("end").required(true).args(["expires", "length"]))]
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
    #[arg(long, value_name = "TIME", value_parser = config::edit::end)]
    pub expires: Option<String>,
    /// How long it holds from now on, or from its beginning: 14d, 12h, 1mo
    #[arg(
        long = "for",
        id = "length",
        value_name = "SPAN",
        value_parser = span::parse,
        allow_hyphen_values = true
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
