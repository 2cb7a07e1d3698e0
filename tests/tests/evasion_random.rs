//! Enforce mode against attempts made up at random, among clients that keep to the protocol.
//!
//! `MUSTTLS_EVASION_SESSIONS` is how many attempts are made (100,000 for the full run), and
//! `MUSTTLS_EVASION_SEED` the seed of the first one, which is printed. An attempt that got in is named by its
//! seed: run it alone with that seed and one session.

#![cfg(test)]

use std::time::Instant;

use musttls_tests::agent::Agent;
use musttls_tests::attack::random::seed_and_sessions;
use musttls_tests::attack::share::{BATCH, Share};
use musttls_tests::attack::{self, Attempt};
use musttls_tests::evidence;
use musttls_tests::netns::Net;
use musttls_tests::server::{OPEN_USER, Server};

/// In a normal test run: about a minute and a half.
const SESSIONS: usize = 40_000;
/// Of a hundred attempts, at least so many get in where nothing is refused.
const WORKS: usize = 15;

/// Those of `attempts` whose command the server has carried out.
fn got_in(server: &Server, mut attempts: Vec<Attempt>) -> Vec<Attempt> {
    let carried_out = attack::carried_out(server).unwrap();
    attempts.retain(|attempt| carried_out.contains(&attempt.number));
    attempts
}

/// Makes `sessions` attempts, and a batch before in observe mode.
fn attack(share: &Share, first: u64, sessions: usize) {
    let net = Net::new().unwrap();
    let server = share.server(&net).unwrap();
    let mut site = share.site(&net, &server, first).unwrap();

    let agent = Agent::start("mode = \"observe\"").unwrap();
    let control = sessions.min(BATCH);
    let attempts = site.make(first..first + control as u64).unwrap();
    let worked = got_in(&server, attempts).len();
    println!("{worked} of {control} attempts get in where nothing is refused");
    assert!(
        control < BATCH || worked * 100 >= control * WORKS,
        "{worked} of {control}"
    );
    drop(agent);

    let mut agent = Agent::start(&attack::enforcing(share.excepted)).unwrap();
    let honest = site.honest();
    let start = Instant::now();
    let mut made = 0;
    let mut logged = 0;
    for batch in (0..sessions).step_by(BATCH) {
        let mark = evidence::mark(&server).unwrap();
        let from = first + batch as u64;
        let to = first + sessions.min(batch + BATCH) as u64;
        let attempts = site.make(from..to).unwrap();
        made += attempts.len();
        let got_in = got_in(&server, attempts);
        let logins = attack::plaintext_logins(&server, mark).unwrap();
        assert!(
            got_in.is_empty() && logins.is_empty(),
            "seeds {from}..{to}: carried out {got_in:#?}, logged {logins:#?}"
        );
        logged += evidence::logins(&server, OPEN_USER, mark).unwrap().len();
    }
    assert_eq!(made, sessions);
    println!("{sessions} attempts in {} s", start.elapsed().as_secs_f32());
    assert!(agent.is_running().unwrap(), "{}", agent.log().unwrap());
    let honest = site.honest() - honest;
    assert_eq!(logged as u64, honest, "logins of honest clients");
}

#[test]
fn no_random_attempt_gets_a_login_in() {
    let (seed, sessions) = seed_and_sessions("MUSTTLS_EVASION", SESSIONS).unwrap();
    for share in Share::GREETED
        .iter()
        .filter(|it| it.product.is_under_test())
    {
        attack(share, seed, sessions.div_ceil(Share::GREETED.len()));
    }
}

// It finds the holes of `evasion_tcp.rs`.
#[test]
fn no_random_attempt_before_the_greeting_gets_a_login_in() {
    let (seed, sessions) = seed_and_sessions("MUSTTLS_EVASION", SESSIONS).unwrap();
    attack(&Share::EARLY, seed, sessions.div_ceil(Share::GREETED.len()));
}
