//! What `musttls status` shows.

use std::collections::BTreeMap;

use musttls_common::counter::{self, Global};
use musttls_common::verdict::Hold;

use super::Daemon;
use super::recorder::losses::at;
use crate::config::{AuditTarget, Expiry};
use crate::datapath::UnixProbe;
use crate::servers;
use crate::status::{
    Alarm, Audit, Confined, Counters, Coverage, Exception, History, Listener, ModeEnd, Policy,
    Server, Status,
};

impl Daemon {
    pub(super) fn status(&mut self) -> Status {
        let older = self.older_status();
        let totals = self.totals();
        let audit = self.recorder.audit();
        let servers = self.server_statuses();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_ms: self.started.as_millisecond(),
            policy: Policy {
                name: self.path.display().to_string(),
                version: self.policy_version,
                mode: self.config.mode_of(0).as_str().to_owned(),
                mode_end: ModeEnd::of(&self.config, 0),
                panic: self.config.panic,
                exceptions: self.compiled.holding.iter().filter(|holds| **holds).count(),
                rejected: self.rejected.clone(),
            },
            ends_with_agent: self.ends_with_agent.clone(),
            gate_faults: self
                .metrics
                .gate_faults()
                .map(|(fault, times)| (fault.as_str().to_owned(), times))
                .collect(),
            gate_errors: self.gate.errors.values().cloned().collect(),
            canary: self.canary_status(),
            counters: Counters {
                unaccounted: self.ledger.missing(),
                set_back: self.ledger.gone_back(),
            },
            confined: Some(Confined::from(&self.confinement)),
            coverage: self.coverage_of(&servers),
            alarms: self.watch.last.alarms.iter().map(Alarm::from).collect(),
            unchecked: self.watch.last.unchecked_lines(),
            servers,
            sessions: self.sessions_by_outcome(&totals),
            tls_versions: self.tls_versions(),
            exceptions: self.exceptions(),
            older,
            credentials_exposed: self.recorder.exposed(),
            refusals: self
                .recorder
                .refusals()
                .iter()
                .map(|(name, n)| ((*name).to_owned(), *n))
                .collect(),
            held_segments: Hold::ALL
                .into_iter()
                .map(|hold| (hold.as_str().to_owned(), at(&totals, counter::hold(hold))))
                .collect(),
            lost_events: self.lost_events(&totals),
            audit: Audit {
                target: target(&self.config.audit),
                written: audit.stats().written,
                lost: audit.stats().lost,
                sequence: audit.sequence(),
            },
            history: self.history_status(),
        }
    }

    fn history_status(&self) -> History {
        let (state, _) = self.history.state();
        let state = state.unwrap_or_default();
        History {
            clients: state.clients,
            sessions: state.sessions,
            holes: state.holes.len(),
            problem: self.history.problem(),
        }
    }

    /// How much of what there is is covered.
    pub(super) fn coverage(&self) -> Coverage {
        self.coverage_of(&self.server_statuses())
    }

    fn coverage_of(&self, servers: &[Server]) -> Coverage {
        let classic = || {
            servers
                .iter()
                .flat_map(|server| &server.listeners)
                .filter(|listener| listener.protocol == "classic")
        };
        Coverage {
            listeners: classic().count(),
            covered: classic().filter(|listener| listener.covered).count(),
            unix_sessions: match &self.unix_probe {
                UnixProbe::Kernel => "kernel".to_owned(),
                UnixProbe::Polling(why) => format!("polling ({why})"),
            },
            errors: self.scan_errors.clone(),
        }
    }

    fn server_statuses(&self) -> Vec<Server> {
        self.registry
            .servers()
            .iter()
            .map(|server| self.server_status(server))
            .collect()
    }

    fn server_status(&self, server: &servers::Server) -> Server {
        let listener = |listener: &servers::Listener| {
            let index = self.config.server_index(listener.address.port());
            Listener {
                address: listener.address.to_string(),
                protocol: listener.protocol.as_str().to_owned(),
                settings: self.config.server_name(index).to_owned(),
                mode: self.config.mode_of(index).as_str().to_owned(),
                mode_end: ModeEnd::of(&self.config, index),
                covered: listener.is_covered(),
                reason: if listener.protocol.is_judged() {
                    listener.uncovered.clone()
                } else {
                    Some("not judged: no logins in this protocol".to_owned())
                },
            }
        };
        Server {
            pid: server.pid,
            program: server.program.clone(),
            cgroup: server.cgroup.clone(),
            container: server.container.clone(),
            listeners: server.listeners.iter().map(listener).collect(),
            unix: server
                .unix
                .iter()
                .map(|listener| listener.path.display().to_string())
                .collect(),
        }
    }

    fn sessions_by_outcome(&self, totals: &[u64]) -> BTreeMap<String, BTreeMap<String, u64>> {
        self.config
            .indices()
            .map(|server| {
                let outcomes = counter::Outcome::ALL.into_iter().map(|outcome| {
                    (
                        outcome.as_str().to_owned(),
                        at(totals, counter::outcome(server, outcome)),
                    )
                });
                (
                    self.config.server_name(server).to_owned(),
                    outcomes.collect(),
                )
            })
            .collect()
    }

    fn tls_versions(&self) -> BTreeMap<String, BTreeMap<String, u64>> {
        self.config
            .indices()
            .map(|server| {
                let name = self.config.server_name(server);
                (name.to_owned(), self.metrics.tls_versions(name))
            })
            .collect()
    }

    fn exceptions(&self) -> Vec<Exception> {
        let holds = self.compiled.holding.iter().copied();
        self.config
            .exceptions
            .iter()
            .zip(holds.chain(std::iter::repeat(false)))
            .map(|(exception, holds)| Exception {
                name: exception.name.clone(),
                owner: exception.owner.clone(),
                server: exception.server.clone(),
                ends_ms: match exception.expires {
                    Expiry::At(end) => Some(end.as_millisecond()),
                    Expiry::Never => None,
                },
                holds,
                sessions: self.metrics.exception_hits(&exception.name),
            })
            .collect()
    }

    fn lost_events(&self, totals: &[u64]) -> BTreeMap<String, u64> {
        let others = [
            ("held_map_full", at(totals, Global::HeldFull as u32)),
            ("listens_ring_full", at(totals, Global::LostListens as u32)),
            ("asks_ring_full", at(totals, Global::LostAsks as u32)),
            (
                "listener_unrecorded",
                at(totals, Global::ListenerFull as u32),
            ),
        ];
        self.recorder
            .losses(totals)
            .into_iter()
            .chain(others)
            .map(|(reason, n)| (reason.to_owned(), n))
            .collect()
    }
}

/// The words for the target of audit records.
fn target(target: &AuditTarget) -> String {
    match target {
        AuditTarget::Stdout => "standard output".to_owned(),
        AuditTarget::File(path) => path.display().to_string(),
    }
}
