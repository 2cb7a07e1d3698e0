//! An agent in trouble: what its gate and its clients see.

#![cfg(test)]

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::evidence;
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{OPEN_USER, Options, Product};
use musttls_tests::site::Site;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::REFUSED;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, prlimit};

const ENFORCE: &str = "mode = \"enforce\"";
/// How long nothing happens to a session that is held.
const A_WHILE: Duration = Duration::from_millis(500);

/// Plaintext logins that come to nothing for now.
fn held(site: &Site, number: usize) -> Vec<Raw> {
    let mut held: Vec<Raw> = (0..number).map(|_| site.plaintext().unwrap()).collect();
    thread::sleep(wait::here(A_WHILE));
    for raw in &mut held {
        let next = raw.receive_within(Duration::from_millis(1)).unwrap();
        assert!(matches!(next, Next::Silence), "{next:?}");
    }
    held
}

/// A client whose refusal has come.
fn is_told(mut raw: Raw) -> bool {
    let answer = raw.receive().unwrap();
    answer.error().is_some_and(|error| error.number == REFUSED)
}

fn pid(agent: &Agent) -> Pid {
    Pid::from_raw(i32::try_from(agent.pid()).unwrap()).unwrap()
}

/// Whether no thread of it runs: a signal takes a moment.
fn is_stopped(agent: &Agent) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{}/task", agent.pid()))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        if !status.contains("State:\tT") {
            return Ok(false);
        }
    }
    Ok(true)
}

#[test]
fn stopped_agent_lets_nothing_in_and_tells_the_clients_when_it_goes_on() {
    for product in Product::all() {
        let site = Site::new(&Options::new(product)).unwrap();
        let mark = evidence::mark(&site.server).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        agent.signal(Signal::STOP).unwrap();
        wait::until_true("the agent to stand still", PATIENCE, || is_stopped(&agent)).unwrap();
        let held = held(&site, 20);
        site.tls_passes().unwrap();
        agent.signal(Signal::CONT).unwrap();
        assert!(held.into_iter().all(is_told));
        let records = agent
            .await_records("the refusals", 20, Record::is_denied)
            .unwrap();
        let landed = |record: &Record| record.text("/unmapped/refusal/outcome") == "landed";
        assert!(records.iter().all(landed));
        site.tls_passes().unwrap();
        let counts = evidence::counts(&site.server, site.net.app.v4()).unwrap();
        assert_eq!(counts.handshake_errors, 0);
        assert_eq!(
            evidence::logins(&site.server, OPEN_USER, mark).unwrap(),
            [""; 0]
        );
    }
}

#[test]
fn agent_without_descriptors_lets_nothing_in_and_tells_the_clients_when_it_has_some() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let mark = evidence::mark(&site.server).unwrap();
    // Which would have some at times.
    let agent = Agent::start(&format!("{ENFORCE}\ncanary = \"off\"")).unwrap();
    let usual = getrlimit(Resource::Nofile);
    let is_open = |number: u64| fs::exists(format!("/proc/{}/fd/{number}", agent.pid())).unwrap();
    // It has one more open at times, for a moment: the lowest of a second.
    let first_free = (0..200)
        .map(|_| {
            thread::sleep(Duration::from_millis(5));
            (0..65_536).find(|&number| !is_open(number))
        })
        .min()
        .flatten();
    // The hard limit stays, so that it can be raised again.
    let none_left = Rlimit {
        current: first_free,
        maximum: usual.maximum,
    };
    prlimit(Some(pid(&agent)), Resource::Nofile, none_left).unwrap();
    let held = held(&site, 20);
    site.tls_passes().unwrap();
    wait::until_true("the agent to say so", PATIENCE, || {
        Ok(agent.log()?.contains("raise LimitNOFILE="))
    })
    .unwrap();
    prlimit(Some(pid(&agent)), Resource::Nofile, usual).unwrap();
    assert!(held.into_iter().all(is_told));
    site.tls_passes().unwrap();
    agent
        .await_records("the refusals", 20, Record::is_denied)
        .unwrap();
    let counts = evidence::counts(&site.server, site.net.app.v4()).unwrap();
    assert_eq!(counts.handshake_errors, 0);
    assert_eq!(
        evidence::logins(&site.server, OPEN_USER, mark).unwrap(),
        [""; 0]
    );
}
