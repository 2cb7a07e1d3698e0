//! Exceptions with conditions: what the tables of the kernel cannot hold, the agent looks at, session by session.
//!
//! The gate holds a plaintext login that only such an exception may allow, and asks. The answer names the exception, or none, for this
//! session under this policy. The client's TCP sends the login again after some 200 ms, and the gate judges what it holds then: an
//! exception for users holds for the user of that copy. Without an answer the login stays held.
//!
//! | condition | where it is known from | how sure |
//! |---|---|---|
//! | program | the connection attributes of the login | what the client claims |
//! | uid, cgroup | the client's socket ([`peer`]), for sessions over the loopback device | certain |
//!
//! It runs in a thread of its own, on a ring of its own: who floods it with questions delays neither refusals nor records.

mod cgroups;
pub mod peer;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use jiff::Timestamp;
use musttls_common::event::{Event, Kind, TAIL_MAX};
use musttls_common::policy::{Answer, NO_RULE};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc;

use crate::address::from_octets;
use crate::clock;
use crate::config::{Conditions, Config, Exception};
use crate::datapath::{Answers, Extra, Record, Ring};
use crate::login::LoginDetails;
use crate::refusal::{Report, ThreadState};
use crate::tally::{self, Tally};
use cgroups::Cgroups;
use peer::{Found, Peer};

/// How long the thread waits before it checks whether it is to end.
const TURN: Duration = Duration::from_secs(1);
/// How often the journal is told that something cannot be looked up.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The policy in force, for the thread that answers.
#[derive(Debug, Default)]
pub struct InForce(RwLock<Option<(u32, Arc<Config>)>>);

impl InForce {
    /// A policy comes into force.
    pub fn set(&self, version: u32, config: Arc<Config>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some((version, config));
    }

    fn get(&self) -> Option<(u32, Arc<Config>)> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The thread that answers.
pub struct Engine {
    ring: Ring,
    answers: Answers,
    in_force: Arc<InForce>,
    tally: Arc<Tally>,
    reports: mpsc::Sender<Report>,
    /// Reports that the daemon had no room for.
    lost: Arc<AtomicU64>,
    host: Host,
    /// The policy that the cgroups were looked up for.
    version: u32,
}

impl Engine {
    /// One that reads `ring` and writes `answers`; `root` is the root of cgroup v2.
    pub fn new(
        ring: Ring,
        answers: Answers,
        in_force: Arc<InForce>,
        tally: Arc<Tally>,
        reports: mpsc::Sender<Report>,
        lost: Arc<AtomicU64>,
        root: &OwnedFd,
    ) -> Result<Self> {
        let root = root
            .try_clone()
            .context("duplicate the descriptor of the root of cgroup v2")?;
        Ok(Self {
            ring,
            answers,
            in_force,
            tally,
            reports,
            lost,
            host: Host {
                cgroups: Cgroups::new(root),
                said: None,
            },
            version: 0,
        })
    }

    /// Works until it is told to stop.
    pub fn run(mut self, state: &ThreadState) -> io::Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(TURN.as_secs()).unwrap_or(1),
            tv_nsec: 0,
        };
        while !state.stop.load(Ordering::Relaxed) {
            match poll(
                &mut [PollFd::new(&self.ring, PollFlags::IN)],
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let now = clock::monotonic_ns();
            while let Some(record) = self.ring.next_record() {
                match record {
                    Ok(record) => {
                        if tally::is_compared(Kind::from_u8(record.event.kind)) {
                            self.tally
                                .received(tally::Ring::Asks, record.event.ktime_ns);
                        }
                        self.asked(record);
                    }
                    Err(error) => self.report(Report::Unreadable(error)),
                }
            }
            self.tally.emptied(tally::Ring::Asks, now);
        }
        Ok(())
    }

    fn asked(&mut self, mut record: Record) {
        let Some((version, config)) = self.in_force.get() else {
            return;
        };
        if self.version != version {
            self.version = version;
            self.host.cgroups.keep(|path| {
                let mut named = config
                    .exceptions
                    .iter()
                    .flat_map(|exception| &exception.conditions.cgroups);
                named.any(|one| one == path)
            });
        }
        let question = Question::of(&record, &config);
        let decision = question.decide(&config, clock::wall(), &mut self.host);
        let event = &mut record.event;
        if event.kind == Kind::Asked as u8 {
            let rule = match decision {
                Decision::Met(rule) => rule,
                Decision::NotMet => NO_RULE,
                // The next copy asks again.
                Decision::NotYet => return,
            };
            let answer = Answer::new(event.cookie, version, rule);
            if let Err(error) = self.answers.give(event.cookie, answer) {
                self.host.say(&format!(
                    "cannot answer the gate: {}",
                    crate::error::text(&error)
                ));
            }
            return;
        }
        // In observe mode it has passed, and what is left is to say by what.
        if let Decision::Met(rule) = decision {
            event.kind = Kind::Excepted as u8;
            event.reason = 0;
            event.rule = rule;
            event.policy_version = version;
        }
        self.report(Report::Session(Box::new(record)));
    }

    fn report(&self, report: Report) {
        if self.reports.try_send(report).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What comes of the exceptions for a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    /// It meets the conditions of this one.
    Met(u16),
    /// It meets none.
    NotMet,
    /// That cannot be told yet.
    NotYet,
}

/// Whether a condition is met; `None` if that cannot be told yet.
type Meets = Option<bool>;

/// Where conditions about the host are looked up.
trait Lookup {
    fn peer(&mut self, event: &Event) -> Found;
    fn is_below(&mut self, cgroup: u64, path: &str) -> Meets;
}

/// This host.
struct Host {
    cgroups: Cgroups,
    said: Option<Instant>,
}

impl Host {
    /// Tells the journal, not too often.
    fn say(&mut self, what: &str) {
        if self.said.is_none_or(|said| said.elapsed() >= SAY_AGAIN) {
            self.said = Some(Instant::now());
            tracing::error!(
                help = "logins that only exceptions with conditions may allow stay held until it works",
                "{what}"
            );
        }
    }
}

impl Lookup for Host {
    fn peer(&mut self, event: &Event) -> Found {
        peer::of(&event.endpoints, event.cookie).unwrap_or_else(|error| {
            self.say(&format!(
                "cannot ask the kernel for a client's socket (sock_diag): {error}"
            ));
            Found::Unknown
        })
    }

    fn is_below(&mut self, cgroup: u64, path: &str) -> Meets {
        match self.cgroups.contains(path, cgroup) {
            Ok(found) => found,
            Err(error) => {
                self.say(&format!("cannot look below cgroup {path}: {error}"));
                None
            }
        }
    }
}

/// What a client claims to be.
enum Program {
    Claimed(String),
    Nothing,
    /// The rest of the login may say it, in the next copy.
    NotYet,
}

/// A login that the agent is asked about.
struct Question<'q> {
    event: &'q Event,
    client: IpAddr,
    user: Option<&'q [u8]>,
    program: Program,
}

impl<'q> Question<'q> {
    fn of(record: &'q Record, config: &Config) -> Self {
        let event = &record.event;
        let peer = from_octets(event.endpoints.client_addr);
        let is_proxy = event.proxied.has_address()
            && config
                .trusted_proxies
                .iter()
                .any(|network| network.contains(&peer));
        let client = if is_proxy {
            from_octets(event.proxied.addr)
        } else {
            peer
        };
        let (user, program) = match &record.extra {
            Extra::Login { caps, user, tail } => {
                let details = LoginDetails::parse(*caps, tail);
                let program = match details.program() {
                    Some(claimed) => Program::Claimed(claimed.to_owned()),
                    None if event.cut != 0 && tail.len() < TAIL_MAX => Program::NotYet,
                    None => Program::Nothing,
                };
                (Some(&user[..]), program)
            }
            Extra::None | Extra::Unix(_) => (None, Program::Nothing),
        };
        Self {
            event,
            client,
            user,
            program,
        }
    }

    /// The first exception whose conditions the session meets.
    fn decide(&self, config: &Config, now: Timestamp, host: &mut impl Lookup) -> Decision {
        let mut decision = Decision::NotMet;
        // Looked up once, and only if it matters.
        let mut peer = None;
        for (rule, exception) in config.exceptions.iter().enumerate() {
            if !self.is_for(config, exception, now) {
                continue;
            }
            match self.meets(&exception.conditions, &mut peer, host) {
                Some(true) => return u16::try_from(rule).map_or(decision, Decision::Met),
                Some(false) => {}
                None => decision = Decision::NotYet,
            }
        }
        decision
    }

    /// Whether an exception has conditions, and all else that it names is met: what the tables of the gate say, too.
    fn is_for(&self, config: &Config, exception: &Exception, now: Timestamp) -> bool {
        let server = config.server_name(self.event.endpoints.server);
        let is_user = |user: &[u8]| exception.users.iter().any(|named| named.as_bytes() == user);
        exception.conditions.are_some()
            && (self.event.local != 0 || !exception.conditions.are_local())
            && exception.holds(now)
            && exception.server.as_deref().is_none_or(|one| one == server)
            && (exception.users.is_empty() || self.user.is_some_and(is_user))
            && exception.is_for(self.client)
    }

    fn meets(
        &self,
        conditions: &Conditions,
        peer: &mut Option<Found>,
        host: &mut impl Lookup,
    ) -> Meets {
        let program = match &self.program {
            _ if conditions.programs.is_empty() => Some(true),
            Program::Claimed(claimed) => Some(conditions.meets_program(Some(claimed))),
            Program::Nothing => Some(false),
            Program::NotYet => None,
        };
        if program == Some(false) || !conditions.are_local() {
            return program;
        }
        let found = peer.get_or_insert_with(|| host.peer(self.event));
        let local = match found {
            Found::Peer(peer) => is_one_of(peer, conditions, host),
            Found::Elsewhere | Found::Nobody => Some(false),
            Found::Unknown => None,
        };
        match (program, local) {
            (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        }
    }
}

/// Whether a process has one of the users and one of the cgroups that are named.
fn is_one_of(peer: &Peer, conditions: &Conditions, host: &mut impl Lookup) -> Meets {
    if conditions
        .uids
        .as_ref()
        .is_some_and(|uids| !uids.contains(&peer.uid))
    {
        return Some(false);
    }
    if conditions.cgroups.is_empty() {
        return Some(true);
    }
    let Some(cgroup) = peer.cgroup else {
        return Some(false);
    };
    let mut meets = Some(false);
    for path in &conditions.cgroups {
        match host.is_below(cgroup, path) {
            Some(true) => return Some(true),
            Some(false) => {}
            None => meets = None,
        }
    }
    meets
}

#[cfg(test)]
mod tests;
