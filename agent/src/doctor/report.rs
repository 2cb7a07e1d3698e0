//! What `musttls doctor` found, as text and as JSON.

use std::fmt;

use serde::Serialize;

/// What was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Whether plaintext sessions can be refused on this host.
    pub can_enforce: bool,
    /// Release of the kernel.
    pub kernel: String,
    /// Each feature.
    pub checks: Vec<Check>,
}

/// A feature of the host.
#[derive(Debug, Serialize)]
pub struct Check {
    /// What was looked for.
    pub name: &'static str,
    /// Whether it is there.
    pub found: bool,
    /// Whether nothing can be refused without it.
    pub required: bool,
    /// What was seen.
    pub detail: String,
    /// What is lost without it; empty if it was found.
    pub cost: &'static str,
    /// What to do; empty if it was found.
    pub remedy: &'static str,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Linux {}\n", self.kernel)?;
        for check in &self.checks {
            let mark = match (check.found, check.required) {
                (true, _) => "ok     ",
                (false, true) => "MISSING",
                (false, false) => "lacking",
            };
            writeln!(f, "{mark}  {}: {}", check.name, check.detail)?;
            if !check.found {
                writeln!(f, "         costs: {}", check.cost)?;
                writeln!(f, "         help:  {}", check.remedy)?;
            }
        }
        let verdict = if self.can_enforce {
            "Plaintext sessions can be refused on this host."
        } else {
            "Plaintext sessions CANNOT be refused on this host."
        };
        writeln!(f, "\n{verdict}")
    }
}
