//! Whether the gate is as it was left: root can detach its programs and put others in their place.

use std::os::fd::AsFd as _;

use super::Daemon;
use crate::audit::record::GateFault;
use crate::clock;
use crate::datapath::{Fault, Found};
use crate::error;

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
