//! Enforce mode against attempts made up at random, among clients that keep to the protocol.
//!
//! `MUSTTLS_EVASION_SESSIONS` is how many attempts are made (100,000 for the full run), and
//! `MUSTTLS_EVASION_SEED` the seed of the first one, which is printed. An attempt that got in is named by its
//! seed: run it alone with that seed and one session.

#![cfg(test)]

use std::collections::BTreeSet;
use std::env;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use musttls_tests::agent::Agent;
use musttls_tests::attack::random::{self, Random};
use musttls_tests::attack::{self, Attempt, Stream, Streams, honest};
use musttls_tests::evidence;
use musttls_tests::netns::Net;
use musttls_tests::server::{OPEN_USER, Options, PORT, Product, Server};
use musttls_tests::tcp::Stack;

/// In a normal test run: about a minute.
const SESSIONS: usize = 40_000;
/// Attempts at a time.
const BATCH: usize = 400;
/// How long the last of a batch may take that come to nothing.
const A_MOMENT: Duration = Duration::from_millis(60);
/// One honest client for so many attempts.
const HONEST: usize = 50;
/// Of a hundred attempts, at least so many get in where nothing is refused.
const WORKS: usize = 15;

fn number_from(variable: &str, default: usize) -> usize {
    env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// Where a share of the attempts is made.
struct Share {
    product: Product,
    tls: bool,
    v6: bool,
    excepted: &'static [&'static str],
    /// Whether the server's host answers each SYN by a cookie; else it takes payload in the SYN.
    cookies: bool,
    port: u16,
    /// Makes up an attempt from its seed.
    attempt: fn(u64, &Stream) -> Attempt,
}

impl Share {
    const MARIADB: Self = Self {
        product: Product::MariaDb,
        tls: true,
        v6: false,
        excepted: &[],
        cookies: false,
        port: PORT,
        attempt: random::attempt,
    };
}

const SHARES: [Share; 5] = [
    Share::MARIADB,
    Share {
        v6: true,
        cookies: true,
        ..Share::MARIADB
    },
    Share {
        tls: false,
        ..Share::MARIADB
    },
    Share {
        excepted: &attack::EXCEPTED,
        ..Share::MARIADB
    },
    Share {
        product: Product::MySql,
        ..Share::MARIADB
    },
];

struct Site<'a> {
    server: &'a Server,
    stack: Stack,
    streams: Streams<'a>,
    random: Random,
    attempt: fn(u64, &Stream) -> Attempt,
}

impl Site<'_> {
    /// Makes the attempts of these seeds, and returns those that got in.
    fn make(&mut self, seeds: std::ops::Range<u64>) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for seed in seeds {
            attempts.push((self.attempt)(seed, &self.streams.make()));
        }
        attack::make(&mut self.stack, &attempts, Duration::ZERO, A_MOMENT).unwrap();
        if self.server.offers_tls() {
            for _ in 0..attempts.len().div_ceil(HONEST) {
                let isn = u32::try_from(self.random.number() >> 32).unwrap();
                honest::log_in(&mut self.stack, self.server, isn).unwrap();
            }
        }
        let carried_out = attack::carried_out(self.server).unwrap();
        attempts.retain(|attempt| carried_out.contains(&attempt.number));
        attempts
    }
}

/// Makes `sessions` attempts, and a tenth of that before in observe mode.
fn share(share: &Share, first: u64, sessions: usize) {
    let net = Net::new().unwrap();
    let mut options = attack::patient(Options::new(share.product));
    options.tls = share.tls;
    if share.port == attack::UNNAMED_PORT {
        for option in attack::UNNAMED_OPTIONS {
            options = options.with(option);
        }
    }
    // 0x403: Fast Open for clients, servers, and every listener; 0x200: without a cookie of the client's.
    let (name, value) = if share.cookies {
        ("syncookies", "2")
    } else {
        ("fastopen", "1539")
    };
    net.db
        .set_sysctl(&format!("net.ipv4.tcp_{name}"), value)
        .unwrap();
    let server = Server::start(&net.db, &options).unwrap();
    let to = if share.v6 {
        net.app.db_v6()
    } else {
        net.app.db_v4()
    };
    let mut site = Site {
        server: &server,
        stack: Stack::new(&net.app, &net.db, SocketAddr::new(to, share.port)).unwrap(),
        streams: Streams::new(&server, share.v6).excepting(share.excepted),
        random: Random::new(first),
        attempt: share.attempt,
    };

    let agent = Agent::start("mode = \"observe\"").unwrap();
    let control = sessions.min(BATCH);
    let worked = site.make(first..first + control as u64).len();
    println!("{worked} of {control} attempts get in where nothing is refused");
    assert!(
        control < BATCH || worked * 100 >= control * WORKS,
        "{worked} of {control}"
    );
    drop(agent);

    let mut agent = Agent::start(&attack::enforcing(share.excepted)).unwrap();
    let mark = evidence::mark(&server).unwrap();
    let start = Instant::now();
    let mut seeds = BTreeSet::new();
    for batch in (0..sessions).step_by(BATCH) {
        let from = first + batch as u64;
        let to = first + sessions.min(batch + BATCH) as u64;
        let got_in = site.make(from..to);
        let logins = attack::plaintext_logins(&server, mark).unwrap();
        assert!(
            got_in.is_empty() && logins.is_empty(),
            "seeds {from}..{to}: carried out {got_in:#?}, logged {logins:#?}"
        );
        seeds.extend(from..to);
    }
    assert_eq!(seeds.len(), sessions);
    println!("{sessions} attempts in {} s", start.elapsed().as_secs_f32());
    assert!(agent.is_running().unwrap(), "{}", agent.log().unwrap());
    let logins = evidence::logins(&server, OPEN_USER, mark).unwrap();
    assert!(
        !share.tls || !logins.is_empty(),
        "no login of an honest client is logged"
    );
}

/// The seed of the first attempt, and how many are made.
fn seed_and_sessions() -> (u64, usize) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let seed = number_from(
        "MUSTTLS_EVASION_SEED",
        usize::try_from(now.as_secs()).unwrap() << 20,
    );
    let sessions = number_from("MUSTTLS_EVASION_SESSIONS", SESSIONS);
    println!("MUSTTLS_EVASION_SEED={seed} MUSTTLS_EVASION_SESSIONS={sessions}");
    (seed as u64, sessions)
}

#[test]
fn no_random_attempt_gets_a_login_in() {
    let (seed, sessions) = seed_and_sessions();
    for place in &SHARES {
        share(place, seed, sessions.div_ceil(SHARES.len()));
    }
}

// It finds the holes of `evasion_tcp.rs`.
#[test]
fn no_random_attempt_before_the_greeting_gets_a_login_in() {
    let (seed, sessions) = seed_and_sessions();
    let early = Share {
        port: attack::UNNAMED_PORT,
        attempt: random::early_attempt,
        ..Share::MARIADB
    };
    share(&early, seed, sessions.div_ceil(SHARES.len()));
}
