//! `musttls report`: the history as one HTML file, for people who would rather look.
//!
//! | file | content |
//! |---|---|
//! | `mod` | what a report is made of; what follows from it |
//! | `page` | the sections of the page |
//! | `chart`, `shares` | sessions over time: as SVG, as numbers |
//! | `html` | markup and text, which never becomes markup |
//! | `numbers` | how shares and times are written |
//! | [`output`] | where the file goes |
//!
//! Invariant: the page is a function of [`Facts`]. It loads nothing, runs nothing, and shows nothing that a client chose but as text.

mod chart;
mod html;
mod numbers;
pub mod output;
mod page;
mod shares;

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::config::Config;
use crate::history::{Client, HOUR_S, State, Tally};
use crate::simulate::{Judged, Simulation, simulate};

use self::shares::{Course, Shares};

/// What a report is made of.
#[derive(Debug)]
pub struct Facts<'f> {
    /// Name of the host.
    pub host: String,
    /// When it is made.
    pub now: Timestamp,
    /// Where its period begins, if not with the history.
    pub since: Option<Timestamp>,
    /// The policy that is held against the history, and its file.
    pub config: &'f Config,
    /// The file of that policy.
    pub policy: String,
    /// The number of that policy, where an agent says that it is in force.
    pub version: Option<u32>,
    /// Those who were seen in the period.
    pub clients: Vec<Client>,
    /// Their sessions by hour.
    pub tallies: Vec<Tally>,
    /// What the history holds.
    pub state: State,
}

/// How much somebody used an exception, or would.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Use {
    clients: u64,
    sessions: u64,
}

/// What follows from the facts.
#[derive(Debug)]
struct Findings<'f> {
    facts: &'f Facts<'f>,
    /// The period, in seconds of Unix time.
    from_s: i64,
    shares: Shares,
    course: Course,
    /// In the clear, the busiest first.
    clear: Vec<&'f Client>,
    /// Those of whom sessions were refused, most of them first.
    refused: Vec<&'f Client>,
    simulation: Simulation,
    /// By name of the exception.
    used: BTreeMap<String, Use>,
}

impl<'f> Findings<'f> {
    fn of(facts: &'f Facts<'f>, progress: impl FnMut(usize)) -> Self {
        let now_s = facts.now.as_second();
        let first_s = facts.tallies.first().map_or(now_s, |tally| tally.begin_s);
        // Hours are counted whole.
        let from_s = facts.since.map_or(first_s, |since| {
            since.as_second().div_euclid(HOUR_S) * HOUR_S
        });
        let simulation = simulate(
            facts.config,
            facts.policy.clone(),
            &facts.clients,
            facts.now,
            progress,
        );
        let mut used: BTreeMap<String, Use> = BTreeMap::new();
        for judged in &simulation.excepted {
            if let Some(name) = &judged.exception {
                let used = used.entry(name.clone()).or_default();
                used.clients += 1;
                used.sessions += judged.row.sessions;
            }
        }
        let of = |wanted: fn(&Client) -> bool| -> Vec<&'f Client> {
            let clients = facts.clients.iter();
            clients.filter(|client| wanted(client)).collect()
        };
        let mut clear = of(|client| client.class.is_plaintext());
        clear.sort_by_key(|client| Reverse(client.sessions));
        let mut refused = of(|client| client.refused > 0);
        refused.sort_by_key(|client| Reverse(client.refused));
        Self {
            facts,
            from_s,
            shares: Shares::of(&facts.tallies),
            // A bar for each day since then, and not since long before the first record.
            course: Course::of(&facts.tallies, from_s.max(first_s), now_s),
            clear,
            refused,
            simulation,
            used,
        }
    }

    /// Those whom enforce mode would refuse, on whichever server, the busiest first.
    fn broken(&self) -> Vec<&Judged> {
        let Simulation {
            refused,
            undecided,
            observed,
            ..
        } = &self.simulation;
        let mut broken: Vec<&Judged> = refused.iter().chain(undecided).chain(observed).collect();
        broken.sort_by_key(|judged| Reverse(judged.row.sessions));
        broken
    }
}

/// The report as HTML; `progress` is called with how many clients have been judged.
#[must_use]
pub fn report(facts: &Facts<'_>, progress: impl FnMut(usize)) -> String {
    page::render(&Findings::of(facts, progress))
}

#[cfg(test)]
mod tests;
