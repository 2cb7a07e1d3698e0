//! What was lost: counted, told in the audit log and in the journal.

use std::sync::atomic::Ordering;
use std::time::Instant;

use musttls_common::counter::Global;

use super::Recorder;
use crate::audit::record::{Gap, GateFault, Loss, ModeChange};
use crate::audit::sink::SinkError;
use crate::clock;

impl Recorder {
    /// A record of the gate could not be read.
    pub(in crate::daemon) fn unreadable(&mut self, error: &std::io::Error) {
        self.unreadable += 1;
        self.metrics.event_unreadable();
        tracing::error!(
            %error,
            help = "gate and agent come in one program: please report it, with the version",
            "a record of the gate cannot be read, and is lost"
        );
    }

    /// So many sessions that the gate has counted have not come, in all.
    pub(in crate::daemon) fn unaccounted(&mut self, total: u64) {
        self.unaccounted = total;
        self.metrics.set_unaccounted(total);
    }

    /// Records what was lost since the last time, and brings the audit log up to date.
    pub(in crate::daemon) fn settle(&mut self, totals: &[u64]) {
        let time_ms = clock::wall_ms();
        for (reason, total) in self.losses(totals) {
            let told = self.told.entry(reason).or_default();
            let lost = total.saturating_sub(*told);
            if lost == 0 {
                continue;
            }
            tracing::error!(lost, reason, help = remedy(reason), "records are lost");
            if self
                .audit
                .loss(
                    &Loss {
                        time_ms,
                        lost,
                        reason,
                    },
                    Instant::now(),
                )
                .is_ok()
            {
                *told = total;
            }
        }
        if let Err(error) = self.audit.settle(time_ms, Instant::now()) {
            tracing::trace!(error = error.as_str(), "audit log");
        }
        self.metrics
            .set_audit(self.audit.sink_name(), self.audit.stats());
    }

    /// Goes on where a former agent ended, which has told of `counters`.
    pub(in crate::daemon) fn resume(&mut self, counters: &[u64], gap: &Gap<'_>) {
        for (reason, total) in self.losses(counters) {
            self.told.insert(reason, total);
        }
        trace_lost(self.audit.gap(gap, Instant::now()));
    }

    /// Records that somebody has changed the gate.
    pub(in crate::daemon) fn gate_fault(&mut self, fault: &GateFault<'_>) {
        trace_lost(self.audit.gate_fault(fault, Instant::now()));
    }

    /// Records that another mode came into force.
    pub(in crate::daemon) fn mode_change(&mut self, change: &ModeChange<'_>) {
        trace_lost(self.audit.mode_change(change, Instant::now()));
    }

    /// Records that were lost, by reason: each is told in the audit log.
    pub(in crate::daemon) fn losses(&self, totals: &[u64]) -> [(&'static str, u64); 5] {
        let total = |global: Global| at(totals, global as u32);
        [
            ("denials_ring_full", total(Global::LostDenials)),
            ("sessions_ring_full", total(Global::LostSessions)),
            ("reports_full", self.lost_reports.load(Ordering::Relaxed)),
            ("parse", self.unreadable),
            ("unaccounted", self.unaccounted),
        ]
    }
}

/// A record that could not be written is counted and reported by the sink.
pub(super) fn trace_lost(written: Result<(), SinkError>) {
    if let Err(error) = written {
        tracing::trace!(error = error.as_str(), "audit record lost");
    }
}

/// What to do about losses for this reason.
fn remedy(reason: &str) -> &'static str {
    match reason {
        "parse" => "gate and agent come in one program: please report it, with the version",
        "unaccounted" => {
            "find out which program reads the gate's rings (bpftool map, auditd: the system call bpf): what it takes has no record"
        }
        _ => {
            "give the agent more CPU (CPUWeight=, CPUQuota= of its unit): sessions come faster than it records them"
        }
    }
}

/// The counter with this index (`musttls_common::counter`).
pub(in crate::daemon) fn at(totals: &[u64], index: u32) -> u64 {
    usize::try_from(index)
        .ok()
        .and_then(|index| totals.get(index))
        .copied()
        .unwrap_or(0)
}
