//! The command line of what is on record: `clients`, `events`, `why`, `simulate`, `report`, `learn`, `history`.

use std::path::PathBuf;

use clap::builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use jiff::{Span, Timestamp};

use super::Output;
use crate::audit::record::Outcome;
use crate::config;
use crate::events::filter::{self, Filter, Kind};
use crate::span::{self, Since};
use crate::why::Target;

pub(super) const CLIENTS_EXAMPLES: &str = "\
Examples:
  musttls clients --plaintext --since 14d
  musttls clients --server orders --user etl --json";

pub(super) const EVENTS_EXAMPLES: &str = "\
Examples:
  musttls events -f                      # the last 10, then as they come
  musttls events --refused --since 2h
  musttls events -n 20 --client 10.3.0.0/16 --user etl
  musttls events --since 2026-11-01 --until 2026-11-07 --outcome excepted \\
      --json | jq -r .user.name
  musttls events --kind agent            # modes, faults of the gate, losses

The number in the column EVENT is for `musttls why`.";

pub(super) const WHY_EXAMPLES: &str = "\
Examples:
  musttls events --refused -n 5          # the column EVENT has the numbers
  musttls why 187                        # as decided then, and as it is now
  musttls why 10.3.0.7 etl               # a plaintext login from there
  musttls why 10.3.0.7 etl --server orders --json
  musttls why 2001:db8::7 --port 3307 || echo 'would be refused'";

pub(super) const SIMULATE_EXAMPLES: &str = "\
Examples:
  musttls simulate --policy new.toml --since 14d
  musttls simulate --policy new.toml --json | jq '.refused[].client'";

pub(super) const REPORT_EXAMPLES: &str = "\
Examples:
  musttls report --output report.html
  musttls report --since 14d --policy new.toml --output report.html";

pub(super) const LEARN_EXAMPLES: &str = "\
Examples:
  musttls learn --owner dba@example.com
  musttls learn --since 30d --server orders --for 60d \\
      --owner dba@example.com --write learned.toml
  musttls learn --interactive --owner dba@example.com --write learned.toml";

pub(super) const HISTORY_EXAMPLES: &str = "\
Examples:
  musttls history
  musttls history rebuild";

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
    #[arg(long, value_name = "TIME", value_parser = Since::parse)]
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
    /// Only who was seen since then: 14d, 12h, a day (UTC) as 2026-11-01, or a time as 2026-11-01T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = Since::parse)]
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
