//! Enforce mode against attempts made up at random, among clients that keep to the protocol.
//!
//! `MUSTTLS_EVASION_SESSIONS` is how many attempts are made (100,000 for the full run), and
//! `MUSTTLS_EVASION_SEED` the seed of the first one, which is printed. An attempt that got in is named by its
//! seed: run it alone with that seed and one session.

#![cfg(test)]

use std::collections::BTreeSet;
use std::env;
use std::time::{Duration, Instant, SystemTime};

use musttls_tests::agent::Agent;
use musttls_tests::attack::random::{self, Random};
use musttls_tests::attack::{self, Attempt, Streams, honest};
use musttls_tests::evidence;
use musttls_tests::netns::Net;
use musttls_tests::server::{OPEN_USER, Options, Product, Server};
use musttls_tests::tcp::Stack;

/// In a normal test run: about a minute.
const SESSIONS: usize = 16_000;
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
}

const SHARES: [Share; 5] = [
    Share {
        product: Product::MariaDb,
        tls: true,
        v6: false,
        excepted: &[],
        cookies: false,
    },
    Share {
        product: Product::MariaDb,
        tls: true,
        v6: true,
        excepted: &[],
        cookies: true,
    },
    Share {
        product: Product::MariaDb,
        tls: false,
        v6: false,
        excepted: &[],
        cookies: false,
    },
    Share {
        product: Product::MariaDb,
        tls: true,
        v6: false,
        excepted: &attack::EXCEPTED,
        cookies: false,
    },
    Share {
        product: Product::MySql,
        tls: true,
        v6: false,
        excepted: &[],
        cookies: false,
    },
];

struct Site<'a> {
    server: &'a Server,
    stack: Stack,
    streams: Streams<'a>,
    random: Random,
}

impl Site<'_> {
    /// Makes the attempts of these seeds, and returns those that got in.
    fn make(&mut self, seeds: std::ops::Range<u64>) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for seed in seeds {
            attempts.push(random::attempt(seed, &self.streams.make()));
        }
        attack::make(&mut self.stack, &attempts, A_MOMENT).unwrap();
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
        stack: Stack::new(&net.app, &net.db, server.at(to)).unwrap(),
        streams: Streams::new(&server, share.v6).excepting(share.excepted),
        random: Random::new(first),
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

#[test]
fn no_random_attempt_gets_a_login_in() {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let seed = number_from(
        "MUSTTLS_EVASION_SEED",
        usize::try_from(now.as_secs()).unwrap() << 20,
    );
    let sessions = number_from("MUSTTLS_EVASION_SESSIONS", SESSIONS);
    println!("MUSTTLS_EVASION_SEED={seed} MUSTTLS_EVASION_SESSIONS={sessions}");
    let part = sessions.div_ceil(SHARES.len());
    for place in &SHARES {
        share(place, seed as u64, part);
    }
}
