//! Mistakes as text that points at file, line and column.

use std::fmt::Write as _;
use std::ops::Range;
use std::path::Path;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::ConfigError;

/// Most mistakes shown; of the others, only the number is told.
const SHOWN: usize = 20;
/// Longest line that is shown with a mistake, in bytes. On a longer one only the place is told.
const LINE_MAX: usize = 400;

/// One mistake.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// Bytes of the file it is about.
    pub(super) at: Range<usize>,
    /// What is wrong.
    pub(super) title: String,
    /// What is wrong with the marked bytes, in a few words; may be empty.
    pub(super) label: String,
    /// What to do.
    pub(super) help: String,
}

/// The mistakes found so far. Bounded: a large file of nothing but mistakes costs no memory.
#[derive(Debug, Default)]
pub(super) struct Problems {
    first: Vec<Problem>,
    more: usize,
}

impl Problems {
    /// Adds a mistake; `problem` is only called for one that will be shown.
    pub(super) fn push(&mut self, problem: impl FnOnce() -> Problem) {
        if self.first.len() < SHOWN {
            self.first.push(problem());
        } else {
            self.more += 1;
        }
    }

    /// Whether there are any.
    pub(super) const fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// The report of all mistakes, in the order of the file; `Ok` if there are none.
    pub(super) fn finish(mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        if self.is_empty() {
            return Ok(());
        }
        self.first.sort_by_key(|problem| problem.at.start);
        let mut report = String::new();
        for problem in &self.first {
            report.push_str(&render(path, text, problem));
            report.push_str("\n\n");
        }
        let total = self.first.len() + self.more;
        if self.more > 0 {
            push_line(
                &mut report,
                format_args!("... and {} more errors", self.more),
            );
        }
        let errors = if total == 1 { "error" } else { "errors" };
        let summary = format_args!(
            "{}: {total} {errors}, no setting was changed",
            path.display()
        );
        push_line(&mut report, summary);
        report.truncate(report.trim_end().len());
        Err(ConfigError { text: report })
    }
}

/// An error about the file as a whole.
pub(super) fn plain(what: &str, remedy: &str) -> ConfigError {
    ConfigError {
        text: format!("error: {what}\n  help: {remedy}"),
    }
}

/// `path:line:column: message`.
pub(super) fn locate(path: &Path, text: &str, at: usize, message: &str) -> String {
    let place = Place::of(text, at);
    format!(
        "{}:{}:{}: {message}",
        path.display(),
        place.line,
        place.column
    )
}

/// Where a byte of the file is.
struct Place {
    line: usize,
    /// In characters, as editors count.
    column: usize,
    line_start: usize,
}

impl Place {
    fn of(text: &str, at: usize) -> Self {
        let before = text.get(..at).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
        Self {
            line,
            column,
            line_start,
        }
    }
}

fn render(path: &Path, text: &str, problem: &Problem) -> String {
    let place = Place::of(text, problem.at.start);
    let shown_path = path.display().to_string();
    // Only the marked line goes to the renderer: it walks through all it is given.
    let line = text
        .get(place.line_start..)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default();
    let start = problem
        .at
        .start
        .saturating_sub(place.line_start)
        .min(line.len());
    let end = problem
        .at
        .end
        .saturating_sub(place.line_start)
        .clamp(start, line.len());
    if line.len() > LINE_MAX {
        return format!(
            "error: {}\n --> {shown_path}:{}:{}\n  = help: {}",
            problem.title, place.line, place.column, problem.help
        );
    }
    let mark = AnnotationKind::Primary.span(start..end);
    let mark = if problem.label.is_empty() {
        mark
    } else {
        mark.label(problem.label.as_str())
    };
    let snippet = Snippet::source(line)
        .line_start(place.line)
        .path(shown_path.as_str())
        .annotation(mark);
    let group: Group<'_> = Level::ERROR
        .primary_title(problem.title.as_str())
        .element(snippet)
        .element(Level::HELP.message(problem.help.as_str()));
    Renderer::plain().render(&[group])
}

fn push_line(text: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a `String` cannot fail (`impl fmt::Write for String`).
    writeln!(text, "{line}").unwrap_or_default();
}
