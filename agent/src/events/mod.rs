//! `musttls events`: the records of the audit file, filtered, and as they are written.

pub mod filter;
pub mod row;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use self::filter::Filter;
use crate::cli::past::EventsArgs;
use crate::clock;
use crate::config::{Config, PastDates};
use crate::console::{Lines, complain, has_colors};
use crate::error::{Exit, Failed};
use crate::trail::record::{Content, read};
use crate::trail::{self, Folder, Part, Tail};

/// How many records of the past are shown before those that come.
const FOLLOWED_LAST: usize = 10;
/// How often it is looked for new ones.
const EVERY: Duration = Duration::from_millis(250);
/// How much earlier than its file's last change a record may say it is: a clock was set back.
const CLOCK_STEP: Duration = Duration::from_hours(1);

/// Shows what `args` ask for.
pub fn run(args: &EventsArgs) -> Result<Exit> {
    let now = clock::wall();
    let config = Config::load(&args.config, now, PastDates::Warn)?.config;
    let audit = trail::file(&config)?;
    let filter = args.filter(now);
    let mut show = Show {
        out: Lines::new(),
        is_json: args.output.json,
        has_colors: has_colors(),
        filter,
        garbage: 0,
        has_shown: false,
        later: 0,
        failed: None,
        oldest: None,
    };
    let mut folder = Folder::new(audit);
    let parts = folder.parts().with_context(|| reading(audit))?;
    if parts.is_empty() && !args.follow {
        return nothing(audit);
    }
    show.titles()?;
    let last = match (args.last, args.follow) {
        (None, true) if show.filter.since_ms.is_none() => Some(FOLLOWED_LAST),
        (last, _) => last,
    };
    let place = match last {
        Some(last) => show.last(parts, last),
        None => show.all(parts),
    };
    let place = place.with_context(|| reading(audit))?;
    show.settle()?;
    show.left_out(&folder);
    if args.follow {
        show.follow(audit, place)?;
    } else if !show.has_shown {
        complain("no record is like that; musttls events without an option shows all");
    }
    Ok(Exit::Ok)
}

fn reading(audit: &Path) -> Failed {
    Failed::new(
        format!("read the audit file {}", audit.display()),
        "run it as root, and name the configuration of the agent: --config FILE",
    )
}

/// There is no record, or no file.
fn nothing(audit: &Path) -> Result<Exit> {
    if audit.exists() {
        complain(&format!("{} has no record yet", audit.display()));
        return Ok(Exit::Ok);
    }
    Err(trail::missing(audit))
}

/// What shows records.
struct Show {
    out: Lines,
    is_json: bool,
    has_colors: bool,
    filter: Filter,
    /// Lines that were no JSON since that was last said.
    garbage: u64,
    /// Whether a record was shown.
    has_shown: bool,
    /// Records of a later release.
    later: u64,
    /// When the oldest file was written to last that was looked into, unless it was all of them.
    oldest: Option<SystemTime>,
    /// Why nothing more can be written.
    failed: Option<anyhow::Error>,
}

impl Show {
    fn titles(&mut self) -> Result<()> {
        if self.is_json {
            return Ok(());
        }
        self.out.line(row::titles().as_bytes())
    }

    /// Shows all of `parts` that is wanted. Returns the last of them and how far it was read.
    fn all(&mut self, parts: Vec<Part>) -> Result<Option<(Part, u64)>> {
        let since = self.filter.since_ms;
        let mut place = None;
        for part in parts {
            // What was written to last before that time has nothing of it.
            let offset = if since.is_some_and(|since| is_before(part.modified(), since)) {
                if part.is_packed() {
                    continue;
                }
                part.line_end(part.length())?
            } else {
                part.lines(0, |line| {
                    self.take(line);
                    if self.out.is_gone() || self.failed.is_some() {
                        ControlFlow::Break(())
                    } else {
                        ControlFlow::Continue(())
                    }
                })?
            };
            place = behind(part, offset);
            if self.out.is_gone() {
                break;
            }
        }
        Ok(place)
    }

    /// Shows the `last` of `parts` that are wanted. Returns the last part and its end.
    fn last(&mut self, mut parts: Vec<Part>, last: usize) -> Result<Option<(Part, u64)>> {
        let mut wanted: VecDeque<Vec<u8>> = VecDeque::new();
        let mut end = 0;
        for (at, part) in parts.iter().enumerate().rev() {
            let part_end = if part.is_packed() {
                0
            } else {
                part.line_end(part.length())?
            };
            if at + 1 == parts.len() {
                end = part_end;
            }
            let is_old = |since| is_before(part.modified(), since);
            if wanted.len() >= last || self.filter.since_ms.is_some_and(is_old) {
                break;
            }
            let found = part.last(part_end, last - wanted.len(), |line| self.wants(line))?;
            found
                .into_iter()
                .rev()
                .for_each(|line| wanted.push_front(line));
            self.oldest = Some(part.modified());
        }
        if wanted.len() < last {
            self.oldest = None;
        }
        for line in &wanted {
            self.put(line);
        }
        Ok(parts.pop().and_then(|part| behind(part, end)))
    }

    /// Says which files were not read, or not to their end, though what is wanted may be there.
    fn left_out(&self, folder: &Folder) {
        for flaw in folder.flaws() {
            let since = self.filter.since_ms;
            let is_newer = self.oldest.is_none_or(|oldest| flaw.modified >= oldest);
            if is_newer && !since.is_some_and(|since| is_before(flaw.modified, since)) {
                complain(&format!("warning: {flaw}"));
            }
        }
    }

    /// Shows what comes, until nobody reads it.
    fn follow(&mut self, audit: &Path, place: Option<(Part, u64)>) -> Result<()> {
        if place.is_none() && !audit.exists() {
            complain(&format!(
                "{} is not there yet: waiting for the agent to make it",
                audit.display()
            ));
        }
        let mut tail = Tail::behind(audit, place);
        while !self.out.is_gone() {
            if audit.exists() || tail.has_begun() {
                tail.look(|line| self.take(line))
                    .with_context(|| reading(audit))?;
            }
            self.settle()?;
            self.out.wait(EVERY)?;
        }
        Ok(())
    }

    /// Shows `line` if it is wanted.
    fn take(&mut self, line: &[u8]) {
        if self.wants(line) {
            self.put(line);
        }
    }

    /// Whether `line` is wanted; what cannot be read is counted.
    fn wants(&mut self, line: &[u8]) -> bool {
        let line = read(line);
        match line.content {
            Content::Garbage => {
                self.garbage += 1;
                return false;
            }
            Content::Later => self.later += 1,
            Content::Session(_) | Content::Other(_) => {}
        }
        self.filter.takes(&line)
    }

    fn put(&mut self, line: &[u8]) {
        self.has_shown = true;
        let written = if self.is_json {
            self.out.line(line)
        } else {
            row::row(&read(line), self.has_colors)
                .map_or(Ok(()), |row| self.out.line(row.as_bytes()))
        };
        if let Err(error) = written {
            self.failed = Some(error);
        }
    }

    /// Writes out what was shown, and says what could not be.
    fn settle(&mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.out.flush()?;
        let (garbage, later) = (
            std::mem::take(&mut self.garbage),
            std::mem::take(&mut self.later),
        );
        if garbage > 0 {
            complain(&format!(
                "warning: lines that are no record, because they are no JSON: {garbage}"
            ));
        }
        if later > 0 {
            let told = if self.filter == Filter::default() {
                "shown as they are by --json"
            } else {
                "passed over, since no filter can tell of them"
            };
            complain(&format!(
                "warning: records of a later release of musttls, {told}: {later}"
            ));
        }
        Ok(())
    }
}

/// Where to go on behind `part`. A compressed one does not grow: with the file that comes behind it.
fn behind(part: Part, offset: u64) -> Option<(Part, u64)> {
    (!part.is_packed()).then_some((part, offset))
}

fn is_before(modified: SystemTime, since_ms: i64) -> bool {
    let since =
        u64::try_from(since_ms).map(|ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms));
    since.is_ok_and(|since| modified + CLOCK_STEP < since)
}
