//! The audit log: one record a session, and a record of what was lost.
//!
//! | file | content |
//! |---|---|
//! | [`record`] | what is told in a record |
//! | `ocsf` | what OCSF 1.8.0 makes of it, as `docs/audit-records.md` describes it |
//! | `shape` | its fields, in the order in which they are written |
//! | [`sink`] | where lines go, and what happens when they cannot |
//!
//! Invariant: no auth byte can get into a record. [`record::Session`] has no field for one, and
//! [`crate::login`] reads only what follows the auth response.

mod ocsf;
pub mod record;
mod shape;
pub mod sink;

use std::time::Instant;

use record::{Gap, GateFault, Identity, Loss, ModeChange, Session};
use sink::{AuditSink, SinkError, Stats};

/// Numbers the records of this process and writes them.
#[derive(Debug)]
pub struct AuditLog {
    identity: Identity,
    sink: AuditSink,
    sequence: u64,
}

impl AuditLog {
    /// A log of process `identity` into `sink`.
    #[must_use]
    pub const fn new(identity: Identity, sink: AuditSink) -> Self {
        Self {
            identity,
            sink,
            sequence: 0,
        }
    }

    /// Writes the record of a session. An error has been counted and reported; the record is lost and
    /// a later one will say so.
    pub fn session(&mut self, session: &Session<'_>, now: Instant) -> Result<(), SinkError> {
        self.number(session.time_ms, now, |identity, sequence| {
            ocsf::session(identity, session, sequence)
        })
    }

    /// Writes that `loss.lost` records were lost before they came here.
    pub fn loss(&mut self, loss: &Loss<'_>, now: Instant) -> Result<(), SinkError> {
        self.number(loss.time_ms, now, |identity, sequence| {
            ocsf::loss(identity, loss, sequence)
        })
    }

    /// Writes that the gate went on judging while no agent ran.
    pub fn gap(&mut self, gap: &Gap<'_>, now: Instant) -> Result<(), SinkError> {
        self.number(gap.until_ms, now, |identity, sequence| {
            ocsf::gap(identity, gap, sequence)
        })
    }

    /// Writes that somebody has changed what attaches the gate.
    pub fn gate_fault(&mut self, fault: &GateFault<'_>, now: Instant) -> Result<(), SinkError> {
        self.number(fault.time_ms, now, |identity, sequence| {
            ocsf::gate_fault(identity, fault, sequence)
        })
    }

    /// Writes that another mode came into force.
    pub fn mode_change(&mut self, change: &ModeChange<'_>, now: Instant) -> Result<(), SinkError> {
        self.number(change.time_ms, now, |identity, sequence| {
            ocsf::mode_change(identity, change, sequence)
        })
    }

    /// Writes what is overdue, where the sink works again: the rest of a line, and how many records
    /// were lost. Each record does this first; call it from a timer, too, for a quiet host, and
    /// before the process ends.
    pub fn settle(&mut self, time_ms: i64, now: Instant) -> Result<(), SinkError> {
        let (lost, reason) = self.sink.lost();
        if lost == 0 {
            return self.sink.flush(now);
        }
        let told = Loss {
            time_ms,
            lost,
            reason: reason.map_or("other", SinkError::as_str),
        };
        let line = ocsf::loss(&self.identity, &told, self.sequence + 1);
        self.sink.write_loss(&line, lost, now)?;
        self.sequence += 1;
        Ok(())
    }

    fn number(
        &mut self,
        time_ms: i64,
        now: Instant,
        line: impl FnOnce(&Identity, u64) -> String,
    ) -> Result<(), SinkError> {
        let settled = self.settle(time_ms, now);
        self.sequence += 1;
        if let Err(error) = settled {
            self.sink.lose(error);
            return Err(error);
        }
        self.sink.write(&line(&self.identity, self.sequence), now)
    }

    /// Opens the file again, after it was moved away.
    pub fn reopen(&mut self) -> Result<(), sink::OpenError> {
        self.sink.reopen()
    }

    /// What the sink has done so far.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        self.sink.stats()
    }

    /// The sink's word in metrics: `file` or `stdout`.
    #[must_use]
    pub const fn sink_name(&self) -> &'static str {
        self.sink.name()
    }

    /// Number of the newest record.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }
}

#[cfg(test)]
mod tests;
