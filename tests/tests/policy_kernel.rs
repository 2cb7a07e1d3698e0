//! Policy by three: the gate's own look-ups in the kernel's tables, the same tables in user space, and what the documentation says of
//! each exception. They agree on policies and sessions made up at random.
//!
//! `MUSTTLS_POLICY_SESSIONS` is how many sessions there are, and `MUSTTLS_POLICY_SEED` the seed of the first policy, which is printed;
//! the next policy has the next seed. A session on which they do not agree is told with the seed of its policy: run that alone with
//! that seed and as many sessions as a policy has ([`EACH`]).
//!
//! The gate is loaded and attached nowhere: the kernel runs `on_probe` (`ebpf/src/probe.rs`) by `BPF_PROG_TEST_RUN`.

#![cfg(test)]

#[path = "policy_kernel/altered.rs"]
mod altered;
#[path = "policy_kernel/packet.rs"]
mod packet;
#[path = "policy_kernel/random.rs"]
mod random;

use std::net::IpAddr;
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use musttls::clock;
use musttls::config::Config;
use musttls::datapath::probe::Prober;
use musttls::datapath::{Loaded, PolicyTables};
use musttls::policy::naive::{self, Seen};
use musttls::policy::{Login, Tables, compile};
use musttls_common::mysql::USER_MAX;
use musttls_common::policy::{Answer, Found, LOOPBACK_RULE, MAX_ENDED, NO_RULE};
use musttls_common::probe::Probe;
use musttls_common::proxy::{Proxied, Source};
use musttls_tests::attack::random::seed_and_sessions;

use self::altered::ALTERATIONS;
use self::random::{Maker, Session};

/// In a normal test run: about twenty seconds.
const SESSIONS: usize = 100_000;
/// Sessions of one policy.
const EACH: usize = 100;
/// Of a hundred sessions, at least so many end in each way.
const SHARE: usize = 2;

/// The kernel, with the policies that are put in force one after the other.
struct Kernel {
    prober: Prober,
    tables: PolicyTables,
    cookie: u64,
}

impl Kernel {
    fn new() -> Self {
        let mut loaded = Loaded::new(None).unwrap();
        let tables = loaded.policy().unwrap();
        Self {
            prober: loaded.prober().unwrap(),
            tables,
            cookie: 0,
        }
    }

    fn ask(&mut self, session: &Session) -> Asked {
        let payload = packet::login(session.form, &session.user, session.flags, session.keep);
        let packet = packet::segment(session.peer, session.port, &payload);
        let question = Probe {
            cookie: self.cookie,
            proxied: session
                .proxied
                .map_or(Proxied::default(), |client| Proxied {
                    addr: mapped(client),
                    source: Source::Address as u8,
                    ..Proxied::default()
                }),
            cipher: session.cipher,
            is_remote: u8::from(session.is_remote),
            ..Probe::default()
        };
        let before_ns = clock::boottime_ns();
        let answer = self.prober.ask(question, &packet).unwrap();
        Asked { before_ns, answer }
    }
}

/// What the kernel said, and when at the earliest.
struct Asked {
    before_ns: u64,
    answer: Probe,
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A policy, and when it was compiled: some time ago.
struct Policy {
    config: Config,
    tables: Tables,
    now: Timestamp,
    boottime_ns: u64,
}

impl Policy {
    fn random(seed: u64) -> (Self, Maker) {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let later = SignedDuration::from_millis(i64::try_from(seed % 5).unwrap() * 1500);
        let mut maker = Maker::new(seed, now, later);
        let config = maker.config();
        let later_ns = u64::try_from(later.as_nanos()).unwrap();
        let boottime_ns = clock::boottime_ns().saturating_sub(later_ns);
        // Versions are counted up from 1.
        let version = u32::try_from(seed % 0xffff).unwrap() + 1;
        let tables = compile(&config, version, now, boottime_ns);
        let policy = Self {
            config,
            tables,
            now,
            boottime_ns,
        };
        (policy, maker)
    }

    /// One whose last exception allows a session behind `waiting` that begin tomorrow.
    fn waiting(seed: u64, waiting: usize) -> (Self, Session) {
        let (mut policy, mut maker) = Self::random(seed);
        policy.config = maker.waiting(waiting);
        policy.tables = compile(&policy.config, 1, policy.now, policy.boottime_ns);
        let session = maker.session_of(&policy.config);
        (policy, session)
    }

    /// An instant of the boot clock on that of the configuration.
    fn at(&self, boottime_ns: u64) -> Timestamp {
        let passed = i64::try_from(boottime_ns - self.boottime_ns).unwrap();
        self.now + SignedDuration::from_nanos(passed)
    }

    /// The instants at which the kernel may have looked: one, unless something began or ended meanwhile.
    fn instants(&self, asked: &Asked) -> Vec<u64> {
        let mut instants = self.changes(asked.before_ns, asked.answer.read_ns);
        instants.insert(0, asked.before_ns);
        instants
    }

    /// When something begins or ends behind `from` and until `to`.
    fn changes(&self, from: u64, to: u64) -> Vec<u64> {
        let times = self.tables.times.iter();
        let times = times.flat_map(|times| [times.begins_ns, times.expires_ns]);
        let modes = self.tables.servers.iter().map(|it| it.mode_until_ns);
        let mut changes: Vec<_> = times
            .chain(modes)
            .filter(|at| (from + 1..=to).contains(at))
            .collect();
        changes.sort_unstable();
        changes.dedup();
        changes
    }
}

/// What became of a session, on which all agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Rule,
    Loopback,
    /// By the agent's answer.
    Answered,
    Nothing,
    /// Something began or ended while the kernel looked: what it said is right at one of the instants.
    Meanwhile,
}

/// A session as the policy sees it.
struct Case<'c> {
    policy: &'c Policy,
    session: &'c Session,
    client: IpAddr,
    is_local: bool,
    server: u16,
    has_user: bool,
}

impl<'c> Case<'c> {
    fn new(policy: &'c Policy, session: &'c Session) -> Self {
        let config = &policy.config;
        let peer = session.peer.to_canonical();
        let trusts = config.trusted_proxies.iter().any(|it| it.contains(&peer));
        let proxied = session.proxied.filter(|_| trusts);
        Self {
            policy,
            session,
            client: proxied.unwrap_or(peer),
            is_local: proxied.is_none() && !session.is_remote,
            server: config.server_index(session.port),
            has_user: session.user.len() <= USER_MAX && session.shows_user(),
        }
    }

    fn user(&self) -> Option<&'c [u8]> {
        self.has_user.then_some(&self.session.user[..])
    }

    fn seen(&self) -> Seen<'c> {
        Seen {
            client: self.client,
            server: self.server,
            user: self.user(),
            program: self.session.program,
            uid: self.is_local.then_some(self.session.uid),
        }
    }

    fn login(&self) -> Login<'c> {
        Login {
            client: mapped(self.client),
            is_local: self.is_local,
            server: self.server,
            user: self.user(),
        }
    }

    /// Compares what does not depend on the exceptions.
    fn compare_settings(&self, asked: &Asked) -> Result<(), String> {
        let (
            Policy {
                config,
                tables,
                now,
                ..
            },
            answer,
        ) = (self.policy, &asked.answer);
        let tls = config.tls_of(self.server);
        let names_users = config
            .exceptions
            .iter()
            .any(|exception| !exception.users.is_empty() && exception.expires.holds(*now));
        let (mode, end) = config.timed_mode_of(self.server);
        let modes = self.policy.instants(asked).into_iter().map(|at| {
            let then = end.filter(|end| end.at <= self.policy.at(at));
            let server = &tables.servers[usize::from(self.server)];
            (
                then.map_or(mode, |end| end.then) as u8,
                server.mode(|| at) as u8,
            )
        });
        let said = (
            answer.server,
            answer.version,
            answer.has_user != 0,
            answer.is_local != 0,
            answer.refuses != 0,
            answer.names_users != 0,
        );
        let right = (
            self.server,
            tables.root.version,
            self.has_user,
            self.is_local,
            tls.refused_ciphers.contains(&self.session.cipher),
            names_users,
        );
        agree(
            "(server, version, has user, is local, refuses, names users)",
            &said,
            &[right],
        )?;
        agree(
            "mode",
            &(answer.mode, answer.mode),
            &modes.collect::<Vec<_>>(),
        )
    }

    /// Compares what allows the session, as far as the kernel can know. Returns it, and whether there was only one instant.
    fn compare_found(&self, asked: &Asked) -> Result<(Found, bool), String> {
        let Policy { config, tables, .. } = self.policy;
        let instants = self.policy.instants(asked);
        let found = asked.answer.found().ok_or("a number that means nothing")?;
        let by_tables: Vec<_> = instants
            .iter()
            .map(|&at| tables.found(&self.login(), at))
            .collect();
        agree("kernel and compiled tables", &found, &by_tables)?;
        let seen = self.seen();
        let by_exceptions: Vec<_> = instants
            .iter()
            .map(|&at| naive::found(config, &seen, self.policy.at(at)))
            .collect();
        agree("kernel and exceptions one by one", &found, &by_exceptions)?;
        Ok((found, instants.len() == 1))
    }
}

fn agree<T: PartialEq + std::fmt::Debug>(
    what: &str,
    kernel: &T,
    others: &[T],
) -> Result<(), String> {
    if others.contains(kernel) {
        Ok(())
    } else {
        Err(format!("{what}: {kernel:?} in the kernel, {others:?}"))
    }
}

impl Kernel {
    /// Whether all three agree on a session.
    fn compare(&mut self, policy: &Policy, session: &Session) -> Result<Ended, String> {
        self.cookie += 1;
        let case = Case::new(policy, session);
        let first = self.ask(session);
        case.compare_settings(&first)?;
        let (found, is_exact) = case.compare_found(&first)?;
        Ok(match found {
            _ if !is_exact => Ended::Meanwhile,
            Found::Rule(LOOPBACK_RULE) => Ended::Loopback,
            Found::Rule(_) => Ended::Rule,
            Found::Nothing => Ended::Nothing,
            Found::Depends => self.compare_answered(&case, &first)?,
        })
    }

    /// The same once the agent has answered; and that the kernel takes no answer about another session, another policy, or an exception
    /// that the session cannot meet.
    fn compare_answered(&mut self, case: &Case<'_>, first: &Asked) -> Result<Ended, String> {
        let Policy { config, tables, .. } = case.policy;
        let at = first.before_ns;
        let version = tables.root.version;
        let rule = naive::decided(config, &case.seen(), case.policy.at(at)).unwrap_or(NO_RULE);
        let other = u16::try_from(self.cookie % config.exceptions.len() as u64).unwrap();
        let right = |rule| match rule {
            NO_RULE => Found::Nothing,
            rule if tables.conditional(&case.login(), at).contains(&rule) => Found::Rule(rule),
            _ => Found::Depends,
        };
        let cookie = self.cookie;
        for (answer, right) in [
            (Answer::new(cookie + 1, version, rule), Found::Depends),
            (Answer::new(cookie, version + 1, rule), Found::Depends),
            (Answer::new(cookie, version, other), right(other)),
            (Answer::new(cookie, version, rule), right(rule)),
        ] {
            self.prober.answers.give(cookie, answer).unwrap();
            let again = self.ask(case.session);
            let all = Asked {
                before_ns: at,
                ..again
            };
            if case.policy.instants(&all).len() > 1 {
                return Ok(Ended::Meanwhile);
            }
            let found = all.answer.found().ok_or("a number that means nothing")?;
            agree(&format!("answered {answer:x?}"), &found, &[right])?;
        }
        let decided = (rule != NO_RULE).then_some(Found::Rule(rule));
        agree(
            "decided",
            &right(rule),
            &[decided.unwrap_or(Found::Nothing)],
        )?;
        Ok(Ended::Answered)
    }
}

#[test]
fn kernel_tables_and_exceptions_agree_on_random_sessions() {
    let (first, sessions) = seed_and_sessions("MUSTTLS_POLICY", SESSIONS).unwrap();
    let mut kernel = Kernel::new();
    let start = Instant::now();
    let mut ends = Vec::with_capacity(sessions);
    for seed in first..first + sessions.div_ceil(EACH) as u64 {
        let (policy, mut maker) = Policy::random(seed);
        kernel.tables.install(&policy.tables).unwrap();
        for _ in 0..EACH.min(sessions - ends.len()) {
            let session = maker.session(&policy.config);
            let ended = kernel.compare(&policy, &session).unwrap_or_else(|wrong| {
                panic!(
                    "MUSTTLS_POLICY_SEED={seed} MUSTTLS_POLICY_SESSIONS={EACH}: {wrong}\n{session:#?}\n{} exceptions",
                    policy.config.exceptions.len()
                )
            });
            ends.push(ended);
        }
    }
    assert_eq!(ends.len(), sessions);
    let count = |ended| ends.iter().filter(|it| **it == ended).count();
    let counts = [
        Ended::Rule,
        Ended::Loopback,
        Ended::Answered,
        Ended::Nothing,
        Ended::Meanwhile,
    ]
    .map(|ended| (ended, count(ended)));
    println!("{counts:?} in {} s", start.elapsed().as_secs_f32());
    for (ended, count) in counts {
        assert!(
            sessions < SESSIONS / 10
                || (count * 100 >= sessions * SHARE) != (ended == Ended::Meanwhile),
            "{count} of {sessions} are {ended:?}"
        );
    }
}

/// How often each alteration is looked for.
const TIMES: usize = 3;

#[test]
fn altered_table_is_noticed() {
    let (first, sessions) = seed_and_sessions("MUSTTLS_POLICY", SESSIONS).unwrap();
    let mut kernel = Kernel::new();
    let mut noticed = [0; ALTERATIONS.len()];
    let mut seeds = (first..).take(sessions.max(SESSIONS) / EACH);
    while let Some(seed) = seeds.next()
        && noticed.iter().any(|times| *times < TIMES)
    {
        let (policy, mut maker) = Policy::random(seed);
        for _ in 0..EACH / 5 {
            let session = maker.session(&policy.config);
            let case = Case::new(&policy, &session);
            let begin = clock::boottime_ns();
            let found = policy.tables.found(&case.login(), begin);
            for ((what, alter), times) in ALTERATIONS.iter().zip(&mut noticed) {
                let mut altered = policy.tables.clone();
                if *times == TIMES || alter(&mut altered, &case, found).is_none() {
                    continue;
                }
                kernel.tables.install(&policy.tables).unwrap();
                let as_it_is = kernel.compare(&policy, &session);
                kernel.tables.install(&altered).unwrap();
                let difference = kernel.compare(&policy, &session);
                if !policy.changes(begin, clock::boottime_ns()).is_empty() {
                    continue;
                }
                assert!(
                    as_it_is.is_ok() && difference.is_err(),
                    "MUSTTLS_POLICY_SEED={seed}: {what}: {as_it_is:?}, altered {difference:?}\n{session:#?}"
                );
                *times += 1;
            }
        }
    }
    let noticed = ALTERATIONS.map(|(what, _)| what).into_iter().zip(noticed);
    let noticed: Vec<_> = noticed.collect();
    assert!(
        noticed.iter().all(|(_, times)| *times == TIMES),
        "{noticed:?}"
    );
}

/// Exceptions that have not begun are in the tables, and a walk gets over so many.
#[test]
fn kernel_and_tables_give_up_behind_as_many_that_do_not_hold() {
    let mut kernel = Kernel::new();
    let mut given_up = 0;
    for (seed, waiting) in (60..100).enumerate() {
        let (policy, session) = Policy::waiting(seed as u64, waiting);
        let case = Case::new(&policy, &session);
        kernel.tables.install(&policy.tables).unwrap();
        kernel.cookie += 1;
        let asked = kernel.ask(&session);
        let found = asked.answer.found().unwrap();
        assert_eq!(
            found,
            policy.tables.found(&case.login(), asked.before_ns),
            "{waiting}"
        );
        let last = u16::try_from(policy.config.exceptions.len() - 1).unwrap();
        assert!(
            found == Found::Rule(last) || waiting >= MAX_ENDED,
            "{waiting}"
        );
        given_up += usize::from(found == Found::Nothing);
    }
    assert!(given_up > 0);
}
