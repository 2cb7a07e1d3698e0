//! The commands that read the history.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cli::past::{Of, Past, Terms};
use crate::clients::Inventory;
use crate::config::{Config, PastDates};
use crate::console::{Progress, complain, print, print_wrapped, stream_json};
use crate::count::{by_thousands, counted, counted_of};
use crate::error::{self, Exit, Failed};
use crate::history::{self, Client, Filter, History, State};
use crate::learn::{self, Lesson};
use crate::login::printable;
use crate::{clock, simulate as simulation, span};

/// Rights of a file with exceptions: as of the configuration, it names users and addresses.
const FILE_MODE: u32 = 0o640;

/// The configuration of the agent. What has ended in it is the agent's affair.
pub(super) fn load(path: &Path) -> Result<Config> {
    let loaded = Config::load(path, clock::wall(), PastDates::Warn)?;
    Ok(loaded.config)
}

pub(super) fn open(config: &Config) -> Result<History> {
    let mut progress = Progress::new("reading the audit file");
    history::for_command(
        config,
        |done, of| progress.at(done, of),
        |warning| complain(&format!("warning: {warning}")),
    )
}

/// What was asked of the history.
struct Asked {
    config: Config,
    clients: Vec<Client>,
    /// In how many places records are missing.
    holes: usize,
    /// Why there is no client, if there is none.
    nobody: Option<String>,
}

/// The clients of `past` that are `wanted`.
fn clients_of(past: &Past, mut wanted: Filter) -> Result<Asked> {
    let config = load(&past.config)?;
    let mut history = open(&config)?;
    wanted.since_s = past
        .since
        .map(|since| since.instant(clock::wall()).as_second());
    let clients = history.clients(&wanted)?;
    let state = history.state()?;
    Ok(Asked {
        nobody: clients
            .is_empty()
            .then(|| nobody(&config, &wanted, state.clients)),
        config,
        clients,
        holes: state.holes.len(),
    })
}

/// Why none of the `all` clients on record is `wanted`.
fn nobody(config: &Config, wanted: &Filter, all: u64) -> String {
    if all == 0 {
        return format!(
            "nobody is on record in {}\n  help: the agent writes it as clients come; musttls status says whether it runs",
            config.history.path.display()
        );
    }
    let known: Vec<&str> = config
        .indices()
        .map(|index| config.server_name(index))
        .collect();
    let unknown = wanted
        .server
        .as_ref()
        .filter(|name| !known.contains(&name.as_str()))
        .map_or_else(String::new, |name| {
            format!(
                ": no server has the name `{}`\n  help: the servers are {}",
                printable(name.as_bytes()).0,
                known.join(", ")
            )
        });
    format!(
        "of {} on record none is like that{unknown}",
        counted(all, "client", "clients")
    )
}

pub(super) fn clients(plaintext: bool, of: Of, past: &Past, json: bool) -> Result<Exit> {
    let wanted = Filter {
        since_s: None,
        server: of.server,
        user: of.user,
        plaintext,
    };
    let asked = clients_of(past, wanted)?;
    if asked.nobody.is_some() && asked.holes > 0 {
        complain(&format!(
            "warning: records are missing in {} (musttls history): whom they were about is not known",
            counted_of(asked.holes, "place", "places")
        ));
    }
    let inventory = Inventory::of(asked.clients, asked.holes);
    if json {
        stream_json(&inventory)?;
    } else if let Some(nobody) = asked.nobody {
        print_wrapped(&format!("{nobody}\n"))?;
    } else {
        print_wrapped(&inventory.to_string())?;
    }
    Ok(Exit::Ok)
}

pub(super) fn simulate(policy: &Path, past: &Past, json: bool) -> Result<Exit> {
    let now = clock::wall();
    let loaded = Config::load(policy, now, PastDates::Warn)?;
    for warning in &loaded.warnings {
        complain(&format!("warning: {warning}"));
    }
    judge(&loaded.config, policy, past, json)
}

/// What would become of those whom the history has, for one who is about to enforce. That there is no history stands in nobody's way.
pub(super) fn preview(config: &Config, main: &Path) -> Result<Exit> {
    let past = Past {
        since: None,
        config: main.to_owned(),
    };
    judge(config, main, &past, false).or_else(|error| {
        complain(&format!(
            "warning: whom it would refuse is not known: {}",
            error::text(&error)
        ));
        Ok(Exit::Ok)
    })
}

fn judge(config: &Config, policy: &Path, past: &Past, json: bool) -> Result<Exit> {
    let now = clock::wall();
    let Asked { clients, holes, .. } = clients_of(past, Filter::default())?;
    let all = u64::try_from(clients.len()).unwrap_or(u64::MAX);
    let mut progress = Progress::new("judging");
    let mut simulated = simulation::simulate(
        config,
        policy.display().to_string(),
        &clients,
        now,
        |done| progress.at(u64::try_from(done).unwrap_or(all), all),
    );
    drop(progress);
    simulated.holes = holes;
    if json {
        stream_json(&simulated)?;
    } else {
        print_wrapped(&simulated.to_string())?;
    }
    Ok(
        if simulated.refused.is_empty() && simulated.undecided.is_empty() {
            Exit::Ok
        } else {
            Exit::Finding
        },
    )
}

/// What becomes of what was learned.
#[derive(Clone, Copy)]
pub(super) struct Way<'w> {
    pub(super) write: Option<&'w Path>,
    pub(super) interactive: bool,
    pub(super) json: bool,
}

pub(super) fn learn(of: Of, past: &Past, terms: Terms, way: Way<'_>) -> Result<Exit> {
    let wanted = Filter {
        server: of.server,
        user: of.user,
        ..Filter::default()
    };
    let Asked {
        config,
        clients,
        holes,
        nobody,
    } = clients_of(past, wanted)?;
    let now = clock::wall();
    let mut lesson = learn::learn(&config, &clients, now);
    if holes > 0 {
        complain(&format!(
            "warning: records are missing in {} (musttls history): nothing is proposed for whom they were about",
            counted_of(holes, "place", "places")
        ));
    }
    if way.json {
        return stream_json(&lesson).map(|()| Exit::Ok);
    }
    if let Some(nobody) = nobody {
        complain(&nobody);
        return Ok(Exit::Ok);
    }
    if lesson == Lesson::default() {
        complain("Enforce mode would refuse nobody who is on record: there is nothing to propose.");
        return Ok(Exit::Ok);
    }
    let terms = learn::Terms {
        owner: terms.owner,
        reason: terms.reason,
        span: terms.span,
    };
    if way.interactive {
        let mut answers = io::stdin().lock();
        lesson = learn::choose(lesson, &mut answers, &mut io::stderr().lock())
            .context("ask about the proposals")?;
        if lesson.proposals.is_empty() {
            complain("No exception was chosen.");
            return Ok(Exit::Ok);
        }
    }
    let text = learn::fragment(&config, &lesson, &terms, now)?;
    let Some(path) = way.write else {
        print(&text)?;
        return Ok(Exit::Ok);
    };
    let failed = || {
        Failed::new(
            format!("write {}", path.display()),
            "name a file that is not there yet, in a directory where you may write",
        )
    };
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(failed)?;
    complain(&format!(
        "{} for {:#}, {} for whom there can be none: {}",
        counted_of(lesson.proposals.len(), "exception", "exceptions"),
        terms.span,
        counted_of(lesson.hopeless.len(), "client", "clients"),
        path.display()
    ));
    Ok(Exit::Ok)
}

/// What `musttls history` shows.
#[derive(Serialize)]
struct Shown {
    path: String,
    audit: String,
    bytes: u64,
    keep: String,
    max_clients: u64,
    #[serde(flatten)]
    state: State,
}

pub(super) fn history(config: &Path, json: bool) -> Result<Exit> {
    let config = load(config)?;
    let history = open(&config)?;
    show(&config, history, json)
}

fn show(config: &Config, mut history: History, json: bool) -> Result<Exit> {
    let shown = Shown {
        path: history.path().display().to_string(),
        audit: history.audit().display().to_string(),
        bytes: history.size()?,
        keep: span::text(config.history.keep),
        max_clients: config.history.max_clients,
        state: history.state()?,
    };
    if json {
        stream_json(&shown)?;
    } else {
        print_wrapped(&text(&shown))?;
    }
    Ok(Exit::Ok)
}

fn text(shown: &Shown) -> String {
    let at = |seconds: i64| {
        jiff::Timestamp::from_second(seconds)
            .map_or_else(|_| seconds.to_string(), |at| at.to_string())
    };
    let State {
        clients,
        sessions,
        behind,
        garbage,
        later,
        forgotten,
        since_s,
        newest_s,
        left_out,
        holes,
    } = &shown.state;
    let newest = if *newest_s == 0 {
        "none".to_owned()
    } else {
        at(*newest_s)
    };
    let mut text = format!(
        "index     {}, {} bytes, since {}\n\
         read from {} and its rotated files, {behind} bytes of it not yet\n\
         holds     {} with {}, the newest of {newest}\n\
         keeps     {}, at most {} clients; {forgotten} taken out\n\
         skipped   lines that are no JSON: {garbage}; of a later release: {later}\n\
         missing   {}\n",
        shown.path,
        shown.bytes,
        at(*since_s),
        shown.audit,
        counted(*clients, "client", "clients"),
        counted(*sessions, "session", "sessions"),
        shown.keep,
        by_thousands(shown.max_clients),
        match holes.len() {
            0 => "nothing".to_owned(),
            places => format!("records in {}", counted_of(places, "place", "places")),
        },
    );
    text.extend(holes.iter().map(|hole| {
        let missing = hole
            .missing
            .map_or_else(|| "?".to_owned(), |missing| missing.to_string());
        format!(
            "          behind {}: {missing} records: {}\n",
            at(hole.at_s),
            hole.why
        )
    }));
    text.extend(
        left_out
            .iter()
            .map(|file| format!("left out  {}\n", printable(file.as_bytes()).0)),
    );
    text
}

pub(super) fn rebuild(config: &Path) -> Result<Exit> {
    let config = load(config)?;
    let mut history = History::open(&config)?;
    history.rebuild()?;
    let mut progress = Progress::new("reading the audit file");
    history.update(clock::wall(), |done, of| {
        progress.at(done, of);
        true
    })?;
    drop(progress);
    for flaw in history.flaws()? {
        complain(&format!("warning: {flaw}"));
    }
    show(&config, history, false)
}
