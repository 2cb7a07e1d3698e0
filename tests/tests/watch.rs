//! The agent watches itself: a login of its own that must be refused, and whether the gate's counters and its events agree.

#![cfg(test)]

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use musttls_tests::agent::{Agent, Home};
use musttls_tests::audit::Record;
use musttls_tests::bpf::Map;
use musttls_tests::raw::Raw;
use musttls_tests::server::{Options, Product};
use musttls_tests::site::Site;
use musttls_tests::wait::{self, PATIENCE};
use rustix::process::Signal;
use serde_json::{Value, json};

const ENFORCE: &str = "mode = \"enforce\"";
const OBSERVE: &str = "mode = \"observe\"";
/// As often as can be.
const OFTEN: &str = "canary = \"10s\"";
/// Entries of the table of servers, and that of the canary.
const SERVERS: u32 = 64;
const CANARY: u32 = 63;
/// How long the agent takes to be certain of a difference: snapshots are settled after some 5 s, and three in a row tell.
const CERTAIN: Duration = Duration::from_secs(12);
/// Logins of a storm, and who makes them.
const STORM: usize = 2000;
const THREADS: usize = 8;

fn canary(agent: &Agent) -> Value {
    agent.status().unwrap()["canary"].clone()
}

/// Waits until the canary is as `wanted`, and returns what the status says of it.
fn await_canary(agent: &Agent, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait::until(what, PATIENCE * 2, || {
        let canary = canary(agent);
        Ok(wanted(&canary).then_some(canary))
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", canary(agent), agent.log().unwrap()))
}

fn refused(agent: &Agent, times: u64) -> Value {
    await_canary(agent, "refused canaries", |canary| {
        canary["refused"].as_u64() >= Some(times)
    })
}

fn descriptors(agent: &Agent) -> usize {
    let all = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
    all.count()
}

/// Nothing of the canary is among sessions, refusals, servers and records.
fn leaves_no_trace(agent: &Agent) {
    let status = agent.status().unwrap();
    assert_eq!(status["servers"], json!([]));
    assert_eq!(status["refusals"], json!({}));
    let sessions = agent.sessions().unwrap();
    let counts = sessions.values().flat_map(|outcomes| outcomes.values());
    assert_eq!(counts.sum::<u64>(), 0, "{sessions:?}");
    assert_eq!(agent.records().unwrap().len(), 0);
    assert!(agent.held().unwrap().is_empty());
}

#[test]
fn canary_is_refused_in_either_mode_and_leaves_no_trace() {
    for mode in [ENFORCE, OBSERVE] {
        let agent = Agent::start(&format!("{mode}\n{OFTEN}")).unwrap();
        let canary = refused(&agent, 1);
        assert_eq!(canary["state"], "refused", "{canary}");
        let before = descriptors(&agent);
        let canary = refused(&agent, 2);
        assert_eq!(
            (&canary["failed"], &canary["failure"]),
            (&json!(0), &Value::Null)
        );
        assert_eq!(descriptors(&agent), before);
        leaves_no_trace(&agent);
    }
}

/// Exceptions for everybody, plaintext over the loopback device allowed: neither is about the canary.
#[test]
fn canary_is_refused_whatever_the_policy_excuses() {
    let policy = format!(
        "{ENFORCE}\n{OFTEN}\nloopback = \"allow\"\ntrusted_proxies = [\"127.0.0.1/32\"]\n[[exception]]\nname = \"all\"\n\
         source = [\"0.0.0.0/0\"]\nexpires = \"never\"\nowner = \"o\"\nreason = \"r\"\n"
    );
    let agent = Agent::start(&policy).unwrap();
    refused(&agent, 1);
    agent
        .set_policy(&format!("panic = true\n{policy}"))
        .unwrap();
    assert_eq!(refused(&agent, 2)["failed"], 0);
    assert_eq!(agent.status().unwrap()["exceptions"][0]["sessions"], 0);
}

#[test]
fn canary_that_is_off_is_off_and_a_reload_turns_it_off() {
    let agent = Agent::start(&format!("{ENFORCE}\ncanary = \"off\"")).unwrap();
    assert_eq!(canary(&agent)["state"], "off");
    assert!(!listens_on_loopback(&agent));
    drop(agent);
    let agent = Agent::start(&format!("{ENFORCE}\n{OFTEN}")).unwrap();
    refused(&agent, 1);
    assert!(listens_on_loopback(&agent));
    agent
        .set_policy(&format!("{ENFORCE}\ncanary = \"off\""))
        .unwrap();
    assert_eq!(canary(&agent)["state"], "off");
}

/// Whether the agent has a listening socket of IPv4 (proc(5), `/proc/PID/net/tcp`: state 0A, inode in the 10th field).
fn listens_on_loopback(agent: &Agent) -> bool {
    let listeners = fs::read_to_string(format!("/proc/{}/net/tcp", agent.pid())).unwrap();
    let inodes: Vec<String> = listeners
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            (fields.get(3) == Some(&"0A")).then(|| format!("socket:[{}]", fields[9]))
        })
        .collect();
    fs::read_dir(format!("/proc/{}/fd", agent.pid()))
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.unwrap().path()).ok())
        .any(|target| {
            inodes
                .iter()
                .any(|inode| target.as_os_str() == inode.as_str())
        })
}

/// Sets the mode of an entry of the table of servers, in both slots, as only somebody with root's rights can. The mode and the one after
/// it are the first of the last eight bytes (`musttls_common::policy::ServerPolicy`).
fn set_mode(server: u32, mode: u8) {
    let servers = Map::find("SERVERS").unwrap();
    for slot in 0..2 {
        let index = slot * SERVERS + server;
        let mut value = servers.get(index).unwrap();
        let at = value.len() - 8;
        value[at..at + 2].fill(mode);
        servers.set(index, &value).unwrap();
    }
}

#[test]
fn canary_that_gets_in_is_an_alarm_until_it_is_refused_again() {
    const IN_OBSERVE_MODE: u8 = 0;
    const IN_ENFORCE_MODE: u8 = 1;
    let agent = Agent::start(&format!("{ENFORCE}\n{OFTEN}")).unwrap();
    refused(&agent, 1);
    let before = descriptors(&agent);
    set_mode(CANARY, IN_OBSERVE_MODE);
    let canary = await_canary(&agent, "a failed canary", |canary| {
        canary["state"] == "failed"
    });
    assert_eq!(canary["failure"]["step"], "login-passed", "{canary}");
    let (text, _, _) = agent.told(&["status"]).unwrap();
    assert!(
        text.contains("ALARM     the canary was not refused"),
        "{text}"
    );
    let log = agent.log().unwrap();
    assert!(log.contains("login-passed"), "{log}");
    leaves_no_trace(&agent);
    assert_eq!(descriptors(&agent), before);
    set_mode(CANARY, IN_ENFORCE_MODE);
    await_canary(&agent, "the canary", |canary| canary["state"] == "refused");
    let (text, _, _) = agent.told(&["status"]).unwrap();
    assert!(!text.contains("ALARM"), "{text}");
    assert!(text.contains("canary    refused"), "{text}");
}

/// `count` plaintext logins by some threads at once. What they are told is not looked at.
fn storm(site: &Site, count: usize) {
    let at = site.server.at(site.net.app.db_v4());
    // As large as an event can be.
    let login = site
        .server
        .open_login()
        .schema(&"x".repeat(1000))
        .packet_41();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..count / THREADS {
                    log_in(site, at, &login).unwrap();
                }
            });
        }
    });
}

fn log_in(site: &Site, at: SocketAddr, login: &[u8]) -> Result<()> {
    let (mut raw, _) = Raw::greeted(&site.net.app, at)?;
    raw.send(login)?;
    // It is over once the server or the agent has said something, or nothing for a while.
    raw.receive_within(Duration::from_millis(300)).map(drop)
}

fn counters(agent: &Agent) -> Value {
    agent.status().unwrap()["counters"].clone()
}

/// Waits until the agent would be certain of a difference, and sees that there is none.
fn agree(agent: &Agent) {
    thread::sleep(wait::here(CERTAIN));
    let counters = counters(agent);
    assert_eq!(
        counters,
        json!({"unaccounted": 0, "set_back": 0}),
        "{}",
        agent.log().unwrap()
    );
}

#[test]
fn counters_and_events_agree_in_a_storm_of_logins_and_over_a_restart() {
    // Without an agent refused sessions stay with the server for a while.
    let options = Options::new(Product::MariaDb).with("--max-connections=4000");
    let site = Site::new(&options).unwrap();
    let home = Home::new().unwrap();
    home.configure(&format!("persist = true\n{ENFORCE}"))
        .unwrap();
    let mut agent = Agent::start_in(home).unwrap();
    storm(&site, STORM);
    agree(&agent);
    thread::scope(|scope| {
        let storm = scope.spawn(|| storm(&site, STORM / 2));
        wait::until_true("the storm", PATIENCE, || {
            Ok(agent.outcome("denied")? > u64::try_from(STORM)? + 100)
        })
        .unwrap();
        agent.kill().unwrap();
        agent.start_again().unwrap();
        storm.join().unwrap();
    });
    agree(&agent);
    agent
        .set_policy(&format!("persist = true\n{OBSERVE}"))
        .unwrap();
    storm(&site, STORM / 4);
    site.tls_passes().unwrap();
    agree(&agent);
    assert_eq!(canary(&agent)["failed"], 0);
}

/// A stopped agent reads nothing, and the ring of sessions is full after some 1,700 of the largest events.
#[test]
fn what_did_not_fit_into_the_ring_is_lost_and_not_unaccounted() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(OBSERVE).unwrap();
    agent.signal(Signal::STOP).unwrap();
    storm(&site, STORM);
    agent.signal(Signal::CONT).unwrap();
    agree(&agent);
    let lost = agent.status().unwrap()["lost_events"].clone();
    assert!(lost["sessions_ring_full"].as_u64() > Some(100), "{lost}");
    assert_eq!(lost["unaccounted"], 0);
}

/// Sets the counter of an outcome of the default server, summed over the CPUs, by `change`.
fn change_counter(outcome: u32, change: impl Fn(u64) -> u64) -> Result<()> {
    // `musttls_common::counter::outcome` of server 0.
    let index = 16 + outcome;
    let counters = Map::find("COUNTERS")?;
    let mut value = counters.get(index)?;
    let first = value.first_chunk_mut::<8>().context("no counter")?;
    *first = change(u64::from_ne_bytes(*first)).to_ne_bytes();
    counters.set(index, &value)
}

/// To the agent it is the same whether an event is taken away or a counter is ahead; the latter is what a test can do.
#[test]
fn sessions_that_are_counted_and_do_not_come_are_an_alarm() {
    const DENIED: u32 = 2;
    const OBSERVED: u32 = 4;
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    storm(&site, 80);
    agree(&agent);
    change_counter(DENIED, |count| count + 50).unwrap();
    change_counter(OBSERVED, |count| count + 7).unwrap();
    wait::until_true("an alarm", PATIENCE * 2, || {
        Ok(counters(&agent)["unaccounted"] == 57)
    })
    .unwrap();
    let lost = |record: &Record| record.line.contains("records were lost: unaccounted");
    agent.await_record("what is missing", lost).unwrap();
    let (text, _, _) = agent.told(&["status"]).unwrap();
    assert!(
        text.contains("ALARM     57 sessions that the gate has counted have no record"),
        "{text}"
    );

    change_counter(DENIED, |_| 0).unwrap();
    wait::until_true(
        "another",
        PATIENCE,
        || Ok(counters(&agent)["set_back"] == 1),
    )
    .unwrap();
    // From here on it compares anew.
    storm(&site, 80);
    thread::sleep(wait::here(CERTAIN));
    assert_eq!(counters(&agent), json!({"unaccounted": 57, "set_back": 1}));
}
