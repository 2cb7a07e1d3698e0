//! Mistakes as text that points at file, line and column.

use std::fmt::Write as _;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::ConfigError;
use super::layers::{Layer, Layers};

/// Most mistakes shown; of the others, only the number is told.
const SHOWN: usize = 20;
/// Longest line that is shown with a mistake, in bytes. On a longer one only the place is told.
const LINE_MAX: usize = 400;

/// One mistake.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    /// Bytes of all layers together that it is about.
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

    /// The report of all mistakes, in the order of the layers; `Ok` if there are none.
    pub(super) fn finish(mut self, layers: &Layers) -> Result<(), ConfigError> {
        if self.is_empty() {
            return Ok(());
        }
        self.first.sort_by_key(|problem| problem.at.start);
        let mut report = String::new();
        let mut paths: Vec<String> = Vec::new();
        for problem in &self.first {
            let (Some(layer), at) = layers.layer_of(problem.at.start) else {
                continue;
            };
            report.push_str(&render(layer, at, problem));
            report.push_str("\n\n");
            let path = layer.path().display().to_string();
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        let total = self.first.len() + self.more;
        if self.more > 0 {
            push_line(
                &mut report,
                format_args!("... and {} more errors", self.more),
            );
        }
        let errors = if total == 1 { "error" } else { "errors" };
        let paths = paths.join(", ");
        push_line(
            &mut report,
            format_args!("{paths}: {total} {errors}, no setting was changed"),
        );
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
pub(super) fn locate(layers: &Layers, at: usize, message: &str) -> String {
    let (Some(layer), at) = layers.layer_of(at) else {
        return message.to_owned();
    };
    let place = Place::of(layer.text(), at);
    format!(
        "{}:{}:{}: {message}",
        layer.path().display(),
        place.line,
        place.column
    )
}

/// Where a byte of a file is.
pub(super) struct Place {
    pub(super) line: usize,
    /// In characters, as editors count.
    column: usize,
    line_start: usize,
}

impl Place {
    pub(super) fn of(text: &str, at: usize) -> Self {
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

/// `at` is where the problem begins in `layer`.
fn render(layer: &Layer, at: usize, problem: &Problem) -> String {
    let text = layer.text();
    let place = Place::of(text, at);
    let shown_path = layer.path().display().to_string();
    // Only the marked line goes to the renderer: it walks through all it is given.
    let line = text
        .get(place.line_start..)
        .unwrap_or_default()
        .lines()
        .next()
        .unwrap_or_default();
    let start = at.saturating_sub(place.line_start).min(line.len());
    let end = (at + problem.at.len())
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
