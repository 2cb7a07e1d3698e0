//! Metrics for Prometheus: names and labels are those of `docs/metrics.md`.
//!
//! Invariant: labels come from the configuration and from fixed sets of words, so their number is
//! bounded. No client address, user or program is a label.

mod bounded;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use musttls_common::counter::{self, Global, Outcome};
use musttls_common::older::Spoken;
use musttls_common::verdict::{Hold, Mode};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use tokio::net::TcpListener;

use bounded::Bounded;

use crate::audit::record::{self, Session, Transport};
use crate::audit::sink::{SinkError, Stats};
use crate::bypass::{self, Look};
use crate::cipher;
use crate::config::{Config, Expiry};
use crate::datapath::Fault;
use crate::history;
use crate::older::Counts;

/// From the login to the ERR, in seconds. The servers' own refusal takes 70 to 200 us on a local
/// network; above 1 s clients give up.
const LATENCY_BUCKETS: [f64; 15] = [
    50e-6, 75e-6, 100e-6, 150e-6, 250e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 50e-3, 0.1, 0.25, 0.5,
    1.0,
];
/// The content type of `OpenMetrics` text, which Prometheus reads since 2.5.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Names are fixed, values are words.
type Labels<const N: usize> = [(&'static str, String); N];

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    logins: Family<Labels<3>, Counter>,
    tls_handshakes: Family<Labels<2>, Counter>,
    exposed: Family<Labels<1>, Counter>,
    refusals: Family<Labels<1>, Counter>,
    refusal_latency: Histogram,
    servers: Gauge,
    servers_covered: Gauge,
    bypasses: Family<Labels<1>, Gauge>,
    history_clients: Gauge,
    history_behind: Gauge,
    history_skipped: Gauge,
    history_holes: Gauge,
    history_errors: Counter,
    gate_faults: Family<Labels<1>, Counter>,
    canaries: Family<Labels<1>, Counter>,
    canary_failed: Gauge,
    older: Family<Labels<1>, Gauge>,
    events_lost: Family<Labels<1>, Counter>,
    listeners_unrecorded: Counter,
    held_segments: Family<Labels<1>, Counter>,
    sessions: Family<Labels<2>, Counter>,
    below_observed_floor: Family<Labels<1>, Counter>,
    audit_events: Counter,
    audit_events_lost: Counter,
    sink_errors: Family<Labels<2>, Counter>,
    reload_success: Gauge,
    reload_success_time: Gauge,
    policy_mode: Family<Labels<2>, Gauge>,
    policy_info: Family<Labels<1>, Gauge>,
    exception_expiry: Family<Labels<1>, Gauge>,
    exception_hits: Family<Labels<1>, Counter>,
}

/// The build that runs.
#[derive(Clone, Copy, Debug)]
pub struct BuildInfo<'b> {
    /// Version of the agent.
    pub version: &'b str,
    /// Commit it was built from, or "unknown".
    pub commit: &'b str,
}

impl Metrics {
    /// All at zero.
    #[must_use]
    pub fn new(build: BuildInfo<'_>) -> Self {
        let mut registry = Registry::with_prefix("musttls");
        let r = &mut registry;
        let metrics = Self {
            logins: add(r, "logins", "Sessions on record, by transport and verdict"),
            tls_handshakes: add(r, "tls_handshakes", "TLS sessions on record, by version"),
            exposed: add(
                r,
                "credentials_exposed",
                "TLS sessions whose login came in the clear before the TLS",
            ),
            refusals: add(
                r,
                "refusals",
                "Refused sessions, by the way the refusal ended",
            ),
            refusal_latency: histogram(
                r,
                "refusal_latency_seconds",
                "From the login to the error packet",
            ),
            servers: add(r, "servers", "Listeners of servers found"),
            servers_covered: add(r, "servers_covered", "Listeners the gate watches"),
            bypasses: add(r, "bypasses", "Ways past the gate that were found"),
            history_clients: add(r, "history_clients", "Distinct clients in the history"),
            history_behind: add(
                r,
                "history_behind_bytes",
                "Bytes of the audit file that the history has not read yet",
            ),
            history_skipped: add(
                r,
                "history_skipped_lines",
                "Lines of the audit file that the history could not read",
            ),
            history_holes: add(
                r,
                "history_holes",
                "Places at which records are missing from the history",
            ),
            history_errors: add(
                r,
                "history_errors",
                "Failed looks of the history into the audit file",
            ),
            gate_faults: add(
                r,
                "gate_faults",
                "Changes by others of what attaches the gate",
            ),
            canaries: add(r, "canaries", "Plaintext logins of the agent to itself"),
            canary_failed: add(
                r,
                "canary_failed",
                "1 if these are not refused as they should be",
            ),
            older: add(
                r,
                "sessions_older",
                "Open sessions that are older than the gate or its enforcement, by what they speak",
            ),
            events_lost: add(
                r,
                "bpf_events_lost",
                "Events the kernel could not hand over",
            ),
            listeners_unrecorded: add(
                r,
                "bpf_listeners_unrecorded",
                "New listeners the kernel could not make a record for",
            ),
            held_segments: add(r, "held_segments", "Segments held to be sent again"),
            sessions: add(r, "sessions", "Sessions the kernel counted, by outcome"),
            below_observed_floor: add(
                r,
                "tls_below_observed_floor",
                "Secure sessions that the observed TLS floor would refuse",
            ),
            audit_events: add(r, "audit_events", "Audit records written"),
            audit_events_lost: add(r, "audit_events_lost", "Audit records lost by the sink"),
            sink_errors: add(r, "sink_errors", "Failed writes of audit records"),
            reload_success: add(r, "config_reload_success", "1 if the last reload was good"),
            reload_success_time: add(
                r,
                "config_last_reload_success_timestamp_seconds",
                "When a configuration was last taken over",
            ),
            policy_mode: add(r, "policy_mode", "1 for the mode of each server"),
            policy_info: add(r, "policy_info", "The policy in force"),
            exception_expiry: add(
                r,
                "exception_expiry_timestamp_seconds",
                "When each exception with a date ends",
            ),
            exception_hits: add(r, "exception_hits", "Sessions each exception allowed"),
            registry,
        };
        metrics.publish_fixed(build)
    }

    /// Counts a session that goes on record.
    pub fn session(&self, session: &Session<'_>) {
        let server = session.server;
        let labels = [
            ("server", server.to_owned()),
            ("transport", session.transport.as_str().to_owned()),
            ("verdict", session.outcome.verdict().to_owned()),
        ];
        self.logins.get_or_create(&labels).inc();
        if let (Transport::Tls { version, .. }, record::Outcome::Allowed) =
            (session.transport, session.outcome)
        {
            let labels = [
                ("server", server.to_owned()),
                ("version", version_word(version)),
            ];
            self.tls_handshakes.get_or_create(&labels).inc();
        }
        if session.exposed.is_some() {
            self.exposed.get_or_create(&one("server", server)).inc();
        }
        if let Some(rule) = session.rule {
            self.exception_hits.get_or_create(&one("rule", rule)).inc();
        }
    }

    /// Counts a refusal that ended, and how long the client waited for its error, if it got one.
    pub fn refusal(&self, outcome: &str, latency: Option<Duration>) {
        self.refusals.get_or_create(&one("outcome", outcome)).inc();
        if let Some(latency) = latency {
            self.refusal_latency.observe(latency.as_secs_f64());
        }
    }

    /// Counts an event that reached the agent and could not be read.
    pub fn event_unreadable(&self) {
        self.events_lost
            .get_or_create(&one("reason", "parse"))
            .inc();
    }

    /// Takes over the sums of the kernel's counters ([`musttls_common::counter`]) over all CPUs.
    pub fn set_kernel_counters(&self, config: &Config, totals: &[u64]) {
        let total = |index: u32| {
            usize::try_from(index)
                .ok()
                .and_then(|index| totals.get(index))
                .copied()
                .unwrap_or(0)
        };
        for (global, reason) in [
            (Global::LostDenials, "denials_ring_full"),
            (Global::LostSessions, "sessions_ring_full"),
            (Global::HeldFull, "held_map_full"),
            (Global::LostListens, "listens_ring_full"),
            (Global::LostAsks, "asks_ring_full"),
        ] {
            store(
                &self.events_lost.get_or_create(&one("reason", reason)),
                total(global as u32),
            );
        }
        store(
            &self.listeners_unrecorded,
            total(Global::ListenerFull as u32),
        );
        for hold in Hold::ALL {
            let labels = one("reason", hold.as_str());
            store(
                &self.held_segments.get_or_create(&labels),
                total(counter::hold(hold)),
            );
        }
        for server in config.indices() {
            for outcome in Outcome::ALL {
                let labels = [
                    ("server", config.server_name(server).to_owned()),
                    ("outcome", outcome.as_str().to_owned()),
                ];
                let value = total(counter::outcome(server, outcome));
                store(&self.sessions.get_or_create(&labels), value);
            }
            let labels = one("server", config.server_name(server));
            store(
                &self.below_observed_floor.get_or_create(&labels),
                total(counter::below_observed(server)),
            );
        }
    }

    /// Takes over how many events have not come that the gate has counted.
    pub fn set_unaccounted(&self, total: u64) {
        let labels = one("reason", "unaccounted");
        store(&self.events_lost.get_or_create(&labels), total);
    }

    /// Takes over what has become of canaries.
    pub fn set_canary(&self, refused: u64, failed: u64, has_failed: bool) {
        for (outcome, count) in [("refused", refused), ("failed", failed)] {
            store(
                &self.canaries.get_or_create(&one("outcome", outcome)),
                count,
            );
        }
        self.canary_failed.set(i64::from(has_failed));
    }

    /// Takes over what the audit sink has done.
    pub fn set_audit(&self, sink: &str, stats: &Stats) {
        store(&self.audit_events, stats.written);
        store(&self.audit_events_lost, stats.lost);
        for (kind, count) in SinkError::ALL.into_iter().zip(stats.errors) {
            let labels = [
                ("sink", sink.to_owned()),
                ("kind", kind.as_str().to_owned()),
            ];
            store(&self.sink_errors.get_or_create(&labels), count);
        }
    }

    /// Takes over what the history has come to; `None` before its first look, and without one.
    pub fn set_history(&self, state: Option<&history::State>, errors: u64) {
        store(&self.history_errors, errors);
        let Some(state) = state else {
            return;
        };
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.history_clients.set(number(state.clients));
        self.history_behind.set(number(state.behind));
        self.history_skipped
            .set(number(state.garbage + state.later));
        self.history_holes
            .set(i64::try_from(state.holes.len()).unwrap_or(i64::MAX));
    }

    /// Sets how many listeners of servers were found, and how many of them the gate watches.
    pub fn set_coverage(&self, found: usize, covered: usize) {
        self.servers.set(i64::try_from(found).unwrap_or(i64::MAX));
        self.servers_covered
            .set(i64::try_from(covered).unwrap_or(i64::MAX));
    }

    /// Sets how many ways past the gate were found. A kind that could not be looked for has no number, unless some of
    /// it was found.
    pub fn set_bypasses(&self, look: &Look) {
        for kind in bypass::Kind::ALL {
            let labels = one("kind", kind.as_str());
            let found = look.alarms.iter().filter(|alarm| alarm.kind == kind);
            let found = found.count();
            if found == 0 && look.unchecked.iter().any(|(one, _)| *one == kind) {
                self.bypasses.remove(&labels);
            } else {
                let found = i64::try_from(found).unwrap_or(i64::MAX);
                self.bypasses.get_or_create(&labels).set(found);
            }
        }
    }

    /// Counts a change of the gate by somebody else.
    pub fn gate_fault(&self, fault: Fault) {
        self.gate_faults
            .get_or_create(&one("fault", fault.as_str()))
            .inc();
    }

    /// How often each happened.
    pub fn gate_faults(&self) -> impl Iterator<Item = (Fault, u64)> {
        let count = |fault: Fault| {
            self.gate_faults
                .get_or_create(&one("fault", fault.as_str()))
                .get()
        };
        Fault::ALL
            .into_iter()
            .map(move |fault| (fault, count(fault)))
    }

    /// TLS sessions of `server` on record, by version, without those that are 0.
    #[must_use]
    pub fn tls_versions(&self, server: &str) -> BTreeMap<String, u64> {
        std::iter::once(0)
            .chain(0x0300..=0x0304)
            .filter_map(|version| {
                let version = version_word(version);
                let labels = [("server", server.to_owned()), ("version", version.clone())];
                // Not created by the look: it would be a series that never counted.
                let count = self.tls_handshakes.get(&labels)?.get();
                Some((version, count))
            })
            .collect()
    }

    /// Sessions that the exception `name` has allowed.
    #[must_use]
    pub fn exception_hits(&self, name: &str) -> u64 {
        self.exception_hits
            .get(&one("rule", name))
            .map_or(0, |hits| hits.get())
    }

    /// Sets how many open sessions are older than the gate or its enforcement. Those that are not followed are unknown.
    pub fn set_older(&self, counts: &Counts) {
        for (spoken, count) in [
            (Spoken::Tls, counts.tls),
            (Spoken::Plaintext, counts.plaintext),
            (Spoken::Unknown, counts.unknown + counts.beyond),
        ] {
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            let labels = one("speaks", spoken.as_str());
            self.older.get_or_create(&labels).set(count);
        }
    }

    /// Tells that a configuration was taken over.
    pub fn set_policy(&self, config: &Config, version: u32, now: Timestamp) {
        self.reload_success.set(1);
        self.reload_success_time.set(now.as_second());
        self.policy_info.clear();
        self.policy_info
            .get_or_create(&one("version", &version.to_string()))
            .set(1);
        self.policy_mode.clear();
        for server in config.indices() {
            for mode in [Mode::Observe, Mode::Enforce] {
                let labels = [
                    ("server", config.server_name(server).to_owned()),
                    ("mode", mode.as_str().to_owned()),
                ];
                let value = i64::from(config.mode_of(server) == mode);
                self.policy_mode.get_or_create(&labels).set(value);
            }
        }
        self.exception_expiry.clear();
        for exception in &config.exceptions {
            // From the start, so that the first hit is an increase.
            drop(
                self.exception_hits
                    .get_or_create(&one("rule", &exception.name)),
            );
            if let Expiry::At(end) = exception.expires {
                let labels = one("rule", &exception.name);
                self.exception_expiry
                    .get_or_create(&labels)
                    .set(end.as_second());
            }
        }
    }

    /// Tells that a reload failed: the old configuration stays in force.
    pub fn reload_failed(&self) {
        self.reload_success.set(0);
    }

    /// The text of `/metrics`.
    pub fn render(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn publish_fixed(mut self, build: BuildInfo<'_>) -> Self {
        let labels = [
            ("version", build.version.to_owned()),
            ("commit", build.commit.to_owned()),
        ];
        let info = Family::<Labels<2>, Gauge>::default();
        info.get_or_create(&labels).set(1);
        self.registry
            .register("build_info", "The build that runs", info);
        drop(self.events_lost.get_or_create(&one("reason", "parse")));
        self
    }
}

/// Serves `metrics` at `/metrics` until the listener fails.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) -> std::io::Result<()> {
    axum::serve(Bounded::new(listener), router(metrics)).await
}

fn router(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(respond))
        .with_state(metrics)
}

async fn respond(State(metrics): State<Arc<Metrics>>) -> Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn add<M: Metric + Clone + Default>(registry: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    registry.register(name, help, metric.clone());
    metric
}

fn histogram(registry: &mut Registry, name: &str, help: &str) -> Histogram {
    let metric = Histogram::new(LATENCY_BUCKETS);
    registry.register(name, help, metric.clone());
    metric
}

fn one(name: &'static str, value: &str) -> Labels<1> {
    [(name, value.to_owned())]
}

/// The word for a TLS version. A server of another kind could negotiate numbers that bound nothing.
fn version_word(version: u16) -> String {
    match version {
        0x0300..=0x0304 => cipher::version_name(version).into_owned(),
        _ => "unknown".to_owned(),
    }
}

fn store(counter: &Counter, value: u64) {
    counter.inner().store(value, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::{Endpoints, RestsOn, UnixPeer};
    use crate::config::PastDates;
    use musttls_common::counter::COUNTERS;
    use std::path::Path;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn metrics() -> Metrics {
        Metrics::new(BuildInfo {
            version: "0.1.0",
            commit: "abc",
        })
    }

    fn config() -> Config {
        let text = "[[server]]\nname = \"orders\"\nports = [3306]\nmode = \"enforce\"\n\
            [[exception]]\nname = \"etl\"\nsource = [\"10.0.0.0/8\"]\nexpires = 2027-03-31\n\
            owner = \"o\"\nreason = \"r\"\n";
        let now = "2026-11-22T12:00:00Z".parse().unwrap();
        Config::parse(Path::new("f"), text, now, PastDates::Refuse)
            .unwrap()
            .config
    }

    fn session(transport: Transport<'static>, outcome: record::Outcome) -> Session<'static> {
        Session {
            time_ms: 0,
            transport,
            outcome,
            reason: None,
            mode: Mode::Enforce,
            server: "orders",
            server_program: None,
            server_pid: None,
            cgroup: None,
            container: None,
            policy_name: "p",
            policy_version: 1,
            rule: (outcome == record::Outcome::Excepted).then_some("etl"),
            user: Some("secret_user"),
            details: None,
            exposed: None,
            refusal: None,
            rests_on: RestsOn::default(),
            older_than: None,
        }
    }

    fn endpoints() -> Endpoints {
        Endpoints {
            client: "192.0.2.7:50000".parse().unwrap(),
            server: "192.0.2.1:3306".parse().unwrap(),
            proxied: None,
        }
    }

    /// Metrics after one of everything.
    fn used() -> Metrics {
        let metrics = metrics();
        let tls = |version| Transport::Tls {
            endpoints: endpoints(),
            version,
            cipher: 0x1302,
            offered: 0,
            floor: 0,
        };
        metrics.session(&session(tls(0x0304), record::Outcome::Allowed));
        metrics.session(&session(tls(0x7777), record::Outcome::Allowed));
        metrics.session(&Session {
            exposed: Some(90),
            ..session(tls(0), record::Outcome::TlsFailed)
        });
        for outcome in [
            record::Outcome::Denied,
            record::Outcome::Observed,
            record::Outcome::Excepted,
        ] {
            metrics.session(&session(
                Transport::Plaintext {
                    endpoints: endpoints(),
                },
                outcome,
            ));
        }
        let peer = Some(UnixPeer {
            pid: 1,
            uid: 0,
            program: None,
        });
        metrics.session(&session(
            Transport::Unix { path: None, peer },
            record::Outcome::Allowed,
        ));
        metrics.refusal("landed", Some(Duration::from_micros(180)));
        metrics.refusal("held", None);
        metrics.event_unreadable();
        metrics.set_coverage(2, 1);
        metrics.set_older(&Counts {
            tls: 1,
            plaintext: 2,
            unknown: 3,
            beyond: 4,
        });
        metrics.set_bypasses(&Look {
            alarms: [bypass::Alarm {
                kind: bypass::Kind::Mptcp,
                server: Some((912, "mysqld".to_owned())),
                found: String::new(),
            }]
            .into(),
            unchecked: [(bypass::Kind::Sockmap, String::new())].into(),
        });
        metrics.set_policy(&config(), 3, "2026-11-22T12:00:00Z".parse().unwrap());
        let mut totals = vec![0; COUNTERS];
        totals[Global::LostSessions as usize] = 4;
        totals[counter::hold(Hold::Gap) as usize] = 5;
        totals[counter::outcome(1, Outcome::Denied) as usize] = 6;
        metrics.set_kernel_counters(&config(), &totals);
        metrics.set_audit(
            "file",
            &Stats {
                written: 7,
                lost: 8,
                errors: [9, 0, 0, 0, 0],
            },
        );
        metrics
    }

    #[test]
    fn the_status_has_versions_and_hits_and_its_look_makes_no_series() {
        let metrics = used();
        let versions = metrics.tls_versions("orders");
        assert_eq!(
            versions.into_iter().collect::<Vec<_>>(),
            [("1.3".to_owned(), 1), ("unknown".to_owned(), 1)]
        );
        assert_eq!(metrics.exception_hits("etl"), 1);
        let before = metrics.render().unwrap();
        assert!(metrics.tls_versions("other").is_empty());
        assert_eq!(metrics.exception_hits("other"), 0);
        assert_eq!(metrics.render().unwrap(), before);
    }

    #[test]
    fn every_metric_of_the_contract_is_there() {
        let text = used().render().unwrap();
        for line in [
            "musttls_logins_total{server=\"orders\",transport=\"tls\",verdict=\"allowed\"} 2",
            "musttls_logins_total{server=\"orders\",transport=\"plaintext\",verdict=\"denied\"} 1",
            "musttls_logins_total{server=\"orders\",transport=\"plaintext\",verdict=\"would_deny\"} 1",
            "musttls_logins_total{server=\"orders\",transport=\"plaintext\",verdict=\"excepted\"} 1",
            "musttls_logins_total{server=\"orders\",transport=\"unix\",verdict=\"allowed\"} 1",
            "musttls_tls_handshakes_total{server=\"orders\",version=\"1.3\"} 1",
            "musttls_tls_handshakes_total{server=\"orders\",version=\"unknown\"} 1",
            "musttls_refusals_total{outcome=\"landed\"} 1",
            "musttls_refusal_latency_seconds_count 1",
            "musttls_servers 2",
            "musttls_servers_covered 1",
            "musttls_sessions_older{speaks=\"plaintext\"} 2",
            "musttls_sessions_older{speaks=\"unknown\"} 7",
            "musttls_bypasses{kind=\"mptcp\"} 1",
            "musttls_bypasses{kind=\"smc\"} 0",
            "musttls_credentials_exposed_total{server=\"orders\"} 1",
            "musttls_bpf_events_lost_total{reason=\"sessions_ring_full\"} 4",
            "musttls_bpf_events_lost_total{reason=\"parse\"} 1",
            "musttls_held_segments_total{reason=\"gap\"} 5",
            "musttls_sessions_total{server=\"orders\",outcome=\"denied\"} 6",
            "musttls_audit_events_total 7",
            "musttls_audit_events_lost_total 8",
            "musttls_sink_errors_total{sink=\"file\",kind=\"no-space\"} 9",
            "musttls_config_reload_success 1",
            "musttls_config_last_reload_success_timestamp_seconds 1795348800",
            "musttls_policy_mode{server=\"orders\",mode=\"enforce\"} 1",
            "musttls_policy_mode{server=\"default\",mode=\"observe\"} 1",
            "musttls_policy_info{version=\"3\"} 1",
            "musttls_exception_expiry_timestamp_seconds{rule=\"etl\"} 1806537600",
            "musttls_exception_hits_total{rule=\"etl\"} 1",
            "musttls_build_info{version=\"0.1.0\",commit=\"abc\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in:\n{text}"
            );
        }
    }

    #[test]
    fn no_address_and_no_user_is_told() {
        let text = used().render().unwrap();
        assert!(
            !text.contains("192.0.2.") && !text.contains("secret_user"),
            "{text}"
        );
    }

    #[test]
    fn every_metric_is_documented() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        let page = std::fs::read_to_string(page).unwrap();
        let text = used().render().unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').unwrap();
            let name = if kind == "counter" {
                format!("{name}_total")
            } else {
                name.to_owned()
            };
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn a_reload_forgets_exceptions_that_are_gone_and_a_bad_one_is_told() {
        let metrics = used();
        metrics.set_policy(&Config::default(), 4, Timestamp::UNIX_EPOCH);
        metrics.reload_failed();
        let text = metrics.render().unwrap();
        assert!(
            !text.contains("musttls_exception_expiry_timestamp_seconds{"),
            "{text}"
        );
        assert!(
            !text.contains("musttls_policy_mode{server=\"orders\""),
            "{text}"
        );
        assert!(
            text.contains("musttls_policy_info{version=\"4\"} 1"),
            "{text}"
        );
        assert!(text.contains("musttls_config_reload_success 0"), "{text}");
        assert!(
            text.contains("musttls_exception_hits_total{rule=\"etl\"} 1"),
            "{text}"
        );
    }

    #[test]
    fn a_refusal_falls_into_its_bucket() {
        let text = used().render().unwrap();
        assert!(
            text.contains("musttls_refusal_latency_seconds_bucket{le=\"0.00015\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("musttls_refusal_latency_seconds_bucket{le=\"0.00025\"} 1"),
            "{text}"
        );
    }

    async fn answer(path: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, Arc::new(used())));
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn they_are_served_at_one_path_only() {
        let good = answer("/metrics").await;
        assert!(good.starts_with("HTTP/1.1 200 OK"), "{good}");
        assert!(good.contains("application/openmetrics-text"), "{good}");
        assert!(good.ends_with("# EOF\n"), "{good}");
        assert!(answer("/").await.starts_with("HTTP/1.1 404"));
        assert!(answer("/metrics/x").await.starts_with("HTTP/1.1 404"));
    }
}
