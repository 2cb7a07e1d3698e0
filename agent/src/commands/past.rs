//! The commands that read the history.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cli::Exit;
use crate::cli::past::{Of, Past, Terms};
use crate::clients::Inventory;
use crate::config::{Config, PastDates};
use crate::console::{Progress, complain, print, print_wrapped, stream_json};
use crate::error::{self, Failed};
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

/// The clients of `past`, and how many holes the history has.
fn clients_of(past: &Past, mut wanted: Filter) -> Result<(Config, Vec<Client>, usize)> {
    let config = load(&past.config)?;
    let mut history = open(&config)?;
    wanted.since_s = past
        .since
        .map(|since| since.instant(clock::wall()).as_second());
    let clients = history.clients(&wanted)?;
    let holes = history.state()?.holes.len();
    Ok((config, clients, holes))
}

pub(super) fn clients(plaintext: bool, of: Of, past: &Past, json: bool) -> Result<Exit> {
    let wanted = Filter {
        since_s: None,
        server: of.server,
        user: of.user,
        plaintext,
    };
    let (_, clients, holes) = clients_of(past, wanted)?;
    let inventory = Inventory::of(clients, holes);
    if json {
        stream_json(&inventory)?;
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
    let (_, clients, holes) = clients_of(past, Filter::default())?;
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
    let (config, clients, holes) = clients_of(past, wanted)?;
    let now = clock::wall();
    let mut lesson = learn::learn(&config, &clients, now);
    if holes > 0 {
        complain(&format!(
            "warning: records are missing in {holes} places (musttls history): nothing is proposed for whom they were about"
        ));
    }
    if way.json {
        return stream_json(&lesson).map(|()| Exit::Ok);
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
        "{} exceptions for {:#}, {} clients for whom there can be none: {}",
        lesson.proposals.len(),
        terms.span,
        lesson.hopeless.len(),
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
         holds     {clients} clients with {sessions} sessions, the newest of {newest}\n\
         keeps     {}, at most {} clients; {forgotten} were taken out\n\
         skipped   {garbage} lines that are no JSON, {later} of a later release\n\
         missing   {} places\n",
        shown.path,
        shown.bytes,
        at(*since_s),
        shown.audit,
        shown.keep,
        shown.max_clients,
        holes.len(),
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
