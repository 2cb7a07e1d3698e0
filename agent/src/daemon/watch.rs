//! Whether the gate is as it was left: root can detach its programs and put others in their place. And whether its counters are as its
//! events: root can read its rings, and write its maps.

use std::io;
use std::os::fd::AsFd as _;

use musttls_common::event::Kind;

use super::Daemon;
use crate::audit::record::GateFault;
use crate::canary;
use crate::clock;
use crate::datapath::{Fault, Found, Record};
use crate::error;
use crate::tally::{self, Counted};

/// What to do about any of it.
const HELP: &str = "find out which program does this (bpftool link, auditd: the system call bpf); musttls puts it back each second";

impl Daemon {
    /// Looks whether the gate is attached and pinned as it was, and puts it back.
    pub(super) fn check_gate(&mut self) {
        let found = self.gate.programs.check(self.gate.root.fd.as_fd());
        let now_ms = clock::wall_ms();
        let mut errors = std::mem::take(&mut self.gate.errors);
        errors.retain(|program, _| found.iter().any(|found| found.program == *program));
        for found in &found {
            let error = found.mended.as_ref().err().map(error::text);
            // One that stays is told once.
            if !errors.contains_key(found.program) {
                self.tell(found, error.as_deref(), now_ms);
            }
            match error {
                Some(error) => {
                    errors.insert(
                        found.program,
                        format!("{} is {}: {error}", found.program, found.fault.as_str()),
                    );
                }
                None => {
                    errors.remove(found.program);
                }
            }
        }
        self.gate.errors = errors;
        if found.is_empty() {
            self.gate.seen_ms = now_ms;
        }
    }

    /// Notes an event of the ring of sessions.
    pub(super) fn tally_session(&self, record: &io::Result<Record>) {
        let made_at = match record {
            Ok(Record { event, .. })
                if tally::is_compared(Kind::from_u8(event.kind))
                    && !canary::is_of_canary(event) =>
            {
                event.ktime_ns
            }
            Ok(_) => return,
            Err(_) => 0,
        };
        self.tally.received(tally::Ring::Sessions, made_at);
    }

    /// Reads the counters, and holds those of some seconds ago against the events that have come. Returns the counters.
    pub(super) fn compare_counters(&mut self) -> Vec<u64> {
        self.tally.begin(clock::monotonic_ns());
        let totals = self.totals();
        let servers = u16::try_from(1 + self.server_names.len()).unwrap_or(1);
        let counted = Counted::of(&totals, servers.min(canary::SERVER));
        let now = clock::monotonic_ns();
        self.tally.end(now, counted);
        let gone_back = self.ledger.gone_back();
        self.ledger.turn(&self.tally, now, counted);
        if self.ledger.gone_back() > gone_back {
            tracing::error!(
                help = "find out which program writes the gate's maps (bpftool map, auditd: the system call bpf)",
                "somebody has set back the gate's counters"
            );
        }
        self.recorder.unaccounted(self.ledger.missing());
        totals
    }

    fn tell(&mut self, found: &Found, error: Option<&str>, now_ms: i64) {
        let &Found { program, fault, .. } = found;
        let means = match fault {
            Fault::Detached | Fault::Replaced => "sessions were not judged meanwhile",
            Fault::Unpinned => "it would have ended with this agent",
        };
        match error {
            None => tracing::error!(
                program,
                fault = fault.as_str(),
                means,
                help = HELP,
                "somebody has changed the gate; it is as it was again"
            ),
            Some(error) => tracing::error!(
                program,
                fault = fault.as_str(),
                means,
                error,
                help = HELP,
                "somebody has changed the gate, and it cannot be put back"
            ),
        }
        self.metrics.gate_fault(fault);
        self.recorder.gate_fault(&GateFault {
            since_ms: self.gate.seen_ms,
            time_ms: now_ms,
            policy_name: &self.path.display().to_string(),
            policy_version: self.policy_version,
            program,
            fault: fault.as_str(),
            mended: error.is_none(),
        });
    }
}
