//! What was measured, as Markdown for people and JSON for programs.

use serde_json::{Map, Value, json};

/// How a measurement stands to its goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// As good as wanted, or better.
    Met,
    /// Not so.
    Missed,
    /// The noise is larger than the distance to the goal.
    Unresolved,
    /// There is no goal: it is for comparison.
    None,
    /// It could not be measured.
    Missing,
}

impl Verdict {
    /// Met if `is_met`.
    pub(crate) const fn of(is_met: bool) -> Self {
        if is_met { Self::Met } else { Self::Missed }
    }

    /// Met or missed if all values between `low` and `high` are.
    pub(crate) fn at_least(goal: f64, (low, high): (f64, f64)) -> Self {
        if low >= goal {
            Self::Met
        } else if high < goal {
            Self::Missed
        } else {
            Self::Unresolved
        }
    }

    /// The same, the other way round.
    pub(crate) fn at_most(goal: f64, (low, high): (f64, f64)) -> Self {
        Self::at_least(-goal, (-high, -low))
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Met => "met",
            Self::Missed => "missed",
            Self::Unresolved => "lost in noise",
            Self::None => "",
            Self::Missing => "not measured",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    what: String,
    measured: String,
    goal: String,
    verdict: Verdict,
    values: Map<String, Value>,
}

impl Line {
    /// A measurement with a goal: what musttls may cost.
    pub(crate) fn new(
        what: impl Into<String>,
        measured: String,
        goal: &str,
        verdict: Verdict,
    ) -> Self {
        Self {
            what: what.into(),
            measured,
            goal: goal.to_owned(),
            verdict,
            values: Map::new(),
        }
    }

    /// A measurement for comparison.
    pub(crate) fn beside(what: impl Into<String>, measured: String) -> Self {
        Self::new(what, measured, "", Verdict::None)
    }

    /// Something that could not be measured.
    pub(crate) fn missing(what: impl Into<String>, why: &anyhow::Error) -> Self {
        let why = format!("{why:#}").replace(['\n', '|'], " ");
        Self::new(what, why, "", Verdict::Missing)
    }

    fn markdown(&self) -> String {
        let Self {
            what,
            measured,
            goal,
            verdict,
            ..
        } = self;
        format!("| {what} | {measured} | {goal} | {} |\n", verdict.as_str())
    }

    /// With a number for programs.
    #[must_use]
    pub(crate) fn value(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }
}

/// All lines of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    about: Vec<(&'static str, String)>,
    sections: Vec<(&'static str, Vec<Line>)>,
}

impl Report {
    /// Says something about the machine or the run.
    pub(crate) fn about(&mut self, what: &'static str, value: String) {
        self.about.push((what, value));
    }

    /// Adds a section; one that failed is a line that says so.
    pub(crate) fn section(&mut self, title: &'static str, lines: anyhow::Result<Vec<Line>>) {
        let lines = lines.unwrap_or_else(|error| vec![Line::missing(title, &error)]);
        self.sections.push((title, lines));
    }

    /// For people.
    pub(crate) fn markdown(&self) -> String {
        let about = self
            .about
            .iter()
            .map(|(what, value)| format!("- {what}: {value}\n"));
        let sections = self.sections.iter().flat_map(|(title, lines)| {
            let head =
                format!("\n### {title}\n\n| what | measured | goal | |\n|---|---|---|---|\n");
            std::iter::once(head).chain(lines.iter().map(Line::markdown))
        });
        about.chain(sections).collect()
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let about: Map<_, _> = self
            .about
            .iter()
            .map(|(what, value)| ((*what).to_owned(), value.clone().into()))
            .collect();
        let lines: Vec<_> = self
            .sections
            .iter()
            .flat_map(|(title, lines)| {
                lines.iter().map(move |line| {
                    json!({
                        "section": title,
                        "what": line.what,
                        "measured": line.measured,
                        "goal": line.goal,
                        "verdict": line.verdict.as_str(),
                        "values": line.values,
                    })
                })
            })
            .collect();
        json!({ "about": about, "lines": lines })
    }
}
