//! Sessions by hour: how many came to what. A small table beside that of the clients, which know of no time but their first and last.
//!
//! Its key is made of what the gate knows, never of what a client chose, so that an hour has a bounded number of rows.

use std::collections::BTreeMap;

use anyhow::Result;
use musttls_common::tls::{TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3};
use rusqlite::{Connection, Transaction, params};

use super::index::{Damage, unsigned};
use super::{Class, HOUR_S, Tally};
use crate::audit::record::Outcome;
use crate::trail::record::Seen;

/// The table.
pub(super) const TABLE: &str = "
    CREATE TABLE hour (
        hour INTEGER NOT NULL, class INTEGER NOT NULL, passed INTEGER NOT NULL, tls INTEGER NOT NULL, sessions INTEGER NOT NULL,
        PRIMARY KEY (hour, class, passed, tls)
    ) STRICT, WITHOUT ROWID;
";
/// How many hours are kept at most, however long clients are: 400 days, a year and what it is compared with.
pub(super) const HOURS: i64 = 400 * 24;
/// Versions that are told apart; others are versions of which nothing is known.
const VERSIONS: [u16; 5] = [0x0300, TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3];

/// What is read in one transaction.
#[derive(Debug, Default)]
pub(super) struct Hours(BTreeMap<(i64, Class, Outcome, u16), i64>);

impl Hours {
    /// Counts a session of the instant `at_s`.
    pub(super) fn count(&mut self, at_s: i64, seen: &Seen<'_>) {
        let tls = if VERSIONS.contains(&seen.tls) {
            seen.tls
        } else {
            0
        };
        let hour = at_s.div_euclid(HOUR_S);
        *self
            .0
            .entry((hour, seen.class, seen.passed, tls))
            .or_default() += 1;
    }

    /// Adds them to the table.
    pub(super) fn store(&self, tx: &Transaction<'_>) -> Result<()> {
        let mut add = tx.prepare(
            "INSERT INTO hour VALUES (?1, ?2, ?3, ?4, ?5)
             ON CONFLICT DO UPDATE SET sessions = sessions + excluded.sessions",
        )?;
        for ((hour, class, passed, tls), sessions) in &self.0 {
            add.execute(params![hour, *class as u8, *passed as u8, tls, sessions])?;
        }
        Ok(())
    }
}

/// Takes out what is older than `oldest_s`, and what are too many.
pub(super) fn prune(tx: &Transaction<'_>, oldest_s: i64, newest_s: i64) -> Result<()> {
    let oldest = oldest_s.div_euclid(HOUR_S);
    let most = newest_s.div_euclid(HOUR_S).saturating_sub(HOURS);
    tx.execute("DELETE FROM hour WHERE hour < ?1", [oldest.max(most + 1)])?;
    Ok(())
}

/// When the oldest hour begins that has a session.
pub(super) fn oldest_s(db: &Connection) -> Result<Option<i64>> {
    let hour: Option<i64> = db.query_row("SELECT min(hour) FROM hour", [], |row| row.get(0))?;
    Ok(hour.map(|hour| hour.saturating_mul(HOUR_S)))
}

/// The sessions of the hour of `since_s` and later ones, in their order.
pub(super) fn read(db: &Connection, since_s: Option<i64>) -> Result<Vec<Tally>> {
    let mut tallies = db.prepare(
        "SELECT hour, class, passed, tls, sessions FROM hour WHERE hour >= ?1 ORDER BY hour, class, passed, tls",
    )?;
    let since = since_s.map_or(i64::MIN, |since_s| since_s.div_euclid(HOUR_S));
    let mut rows = tallies.query([since])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(Tally {
            begin_s: row.get::<_, i64>(0)?.saturating_mul(HOUR_S),
            class: Class::from_u8(row.get(1)?).ok_or(Damage("a class in it is not known"))?,
            passed: Outcome::from_u8(row.get(2)?).ok_or(Damage("a verdict in it is not known"))?,
            tls: row.get(3)?,
            sessions: unsigned(row.get(4)?),
        });
    }
    Ok(found)
}

/// How many sessions they are.
#[cfg(test)]
pub(super) fn sum(tallies: &[Tally]) -> u64 {
    tallies.iter().map(|tally| tally.sessions).sum()
}
