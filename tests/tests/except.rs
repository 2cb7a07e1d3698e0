//! Exceptions by command, and the layers that they are written to: in force without a restart, or not written.

#![cfg(test)]

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use musttls_tests::agent::{Agent, Home};
use musttls_tests::place::{self, Scratch};
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{Options, Product};
use musttls_tests::site::Site;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::REFUSED;

const ENFORCE: &str = "mode = \"enforce\"";
/// How long nothing happens to a session that is held.
const A_WHILE: Duration = Duration::from_millis(500);

fn site() -> Site {
    Site::new(&Options::new(Product::MariaDb)).unwrap()
}

/// The error a plaintext client gets that connects to `server`; `None` when it is let in.
fn plaintext_to(site: &Site, server: IpAddr) -> Option<u16> {
    let (mut raw, _) = Raw::greeted(&site.net.app, site.server.at(server)).unwrap();
    raw.send(&site.server.open_login().packet_41()).unwrap();
    let next = raw.receive().unwrap();
    assert!(next.is_ok() || next.error().is_some(), "{next:?}");
    next.error_number()
}

/// The same over IPv4.
fn plaintext(site: &Site) -> Option<u16> {
    plaintext_to(site, site.net.app.db_v4())
}

/// `musttls except` with `words`, and with more of them: its exit code, and what it said.
fn except_with(home: &Home, words: &str, more: &[&str]) -> (Option<i32>, String) {
    let mut all = vec!["except"];
    all.extend(words.split(' '));
    all.extend(more);
    let output = home.musttls(&all).unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

fn except(home: &Home, words: &str) -> (Option<i32>, String) {
    except_with(home, words, &[])
}

/// The words that allow plaintext from `source` for an hour.
fn add(name: &str, source: IpAddr) -> String {
    let bits = if source.is_ipv4() { 32 } else { 128 };
    format!(
        "add --name {name} --source {source}/{bits} --for 1h --owner dba@example.com --reason old"
    )
}

/// A file of the layer above the main file.
fn layer(home: &Home, name: &str) -> PathBuf {
    home.config().with_file_name("conf.d").join(name)
}

fn in_force(agent: &Agent) -> u64 {
    agent.status().unwrap()["policy"]["exceptions"]
        .as_u64()
        .unwrap()
}

#[test]
fn plaintext_client_is_let_in_and_refused_again_without_a_restart() {
    let site = site();
    let mut agent = Agent::start(ENFORCE).unwrap();
    assert_eq!(plaintext(&site), Some(REFUSED));

    let (code, text) = except(agent.home(), &add("legacy", site.net.app.v4()));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("is in force"), "{text}");
    assert_eq!(plaintext(&site), None, "in force when the command returns");
    agent
        .await_record("by the exception", |record| record.rule() == "legacy")
        .unwrap();

    let (code, text) = except(agent.home(), &add("legacy", site.net.app.v6()));
    let place = format!("{}:3", layer(agent.home(), "50-exceptions.toml").display());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&place), "{text}");

    let (code, text) = except(agent.home(), "expiring --within 1d");
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("legacy"), "{text}");

    let (code, text) = except(agent.home(), "rm legacy");
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(plaintext(&site), Some(REFUSED));
    assert_eq!(except(agent.home(), "expiring --within 1d").0, Some(0));
    assert!(agent.is_running().unwrap());
    site.tls_passes().unwrap();
}

#[test]
fn parallel_additions_are_all_in_force() {
    const MORE: u8 = 6;
    let site = site();
    let agent = Agent::start(ENFORCE).unwrap();
    let (v4, v6) = (site.net.app.v4(), site.net.app.v6());
    assert_eq!(plaintext_to(&site, site.net.app.db_v4()), Some(REFUSED));
    assert_eq!(plaintext_to(&site, site.net.app.db_v6()), Some(REFUSED));
    let additions = [add("four", v4), add("six", v6)].into_iter();
    let others = (0..MORE).map(|n| add(&format!("other-{n}"), [192, 0, 2, n].into()));
    thread::scope(|scope| {
        for words in additions.chain(others) {
            let home = agent.home();
            scope.spawn(move || {
                let (code, text) = except(home, &words);
                assert_eq!(code, Some(0), "{text}");
            });
        }
    });
    assert_eq!(in_force(&agent), u64::from(MORE) + 2);
    assert_eq!(plaintext_to(&site, site.net.app.db_v4()), None);
    assert_eq!(plaintext_to(&site, site.net.app.db_v6()), None);
}

#[test]
fn contradictory_layers_keep_the_policy_and_name_both_files() {
    let site = site();
    let agent = Agent::start(ENFORCE).unwrap();
    let (code, text) = except(agent.home(), &add("legacy", site.net.app.v4()));
    assert_eq!(code, Some(0), "{text}");

    let other = layer(agent.home(), "90-other.toml");
    let contradiction = format!(
        "mode = \"observe\"\n\n[[exception]]\nname = \"legacy\"\nsource = [\"{}/128\"]\nexpires = \"never\"\n\
         owner = \"dba@example.com\"\nreason = \"old\"\n",
        site.net.app.v6()
    );
    fs::write(&other, contradiction).unwrap();
    let (is_taken, text) = agent.reload().unwrap();
    assert!(!is_taken, "{text}");
    let first = layer(agent.home(), "50-exceptions.toml");
    for place in [
        format!("{}:4:8", other.display()),
        format!("the first is at {}:4", first.display()),
    ] {
        assert!(text.contains(&place), "{place} is not in\n{text}");
    }
    assert_eq!(plaintext(&site), None, "the exception still holds");
    assert_eq!(
        plaintext_to(&site, site.net.app.db_v6()),
        Some(REFUSED),
        "neither the mode nor the exception of the other file is in force"
    );

    let before = fs::read_to_string(&first).unwrap();
    let (code, text) = except(agent.home(), &add("more", site.net.app.v6()));
    assert_eq!(code, Some(78), "{text}");
    assert!(text.contains("two sections are named `legacy`"), "{text}");
    assert_eq!(fs::read_to_string(&first).unwrap(), before);

    fs::write(&other, "mode = \"observe\"\n").unwrap();
    assert!(agent.reload().unwrap().0);
    assert_eq!(
        plaintext_to(&site, site.net.app.db_v6()),
        None,
        "a later layer wins"
    );
}

#[test]
fn exception_begins_and_ends_by_itself() {
    let site = site();
    let agent = Agent::start(ENFORCE).unwrap();
    let begin = SystemTime::now() + wait::here(Duration::from_secs(4));
    let end = begin + wait::here(Duration::from_secs(6));
    let words = add("window", site.net.app.v4()).replace(" --for 1h", "");
    let (begin_text, end_text) = (wait::utc(begin).unwrap(), wait::utc(end).unwrap());
    let (code, text) = except_with(
        agent.home(),
        &words,
        &["--not-before", &begin_text, "--expires", &end_text],
    );
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(in_force(&agent), 0);
    assert_eq!(plaintext(&site), Some(REFUSED));
    wait::until_true("its beginning", PATIENCE, || Ok(plaintext(&site).is_none())).unwrap();
    // `date` cuts to the second.
    assert!(SystemTime::now() + Duration::from_secs(1) >= begin);
    // The gate begins it to the instant, the agent counts once a second.
    wait::until_true("its count", PATIENCE, || Ok(in_force(&agent) == 1)).unwrap();
    wait::until_true("its end", PATIENCE, || Ok(plaintext(&site).is_some())).unwrap();
}

#[test]
fn exception_begins_while_no_agent_runs() {
    let site = site();
    let mut agent = Agent::start("persist = true\nmode = \"enforce\"").unwrap();
    let begin = SystemTime::now() + wait::here(Duration::from_secs(4));
    let begin_text = wait::utc(begin).unwrap();
    let (code, text) = except_with(
        agent.home(),
        &add("window", site.net.app.v4()),
        &["--not-before", &begin_text],
    );
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(plaintext(&site), Some(REFUSED));
    agent.kill().unwrap();
    let next = |site: &Site| site.plaintext()?.receive_within(wait::here(A_WHILE));
    let first = next(&site).unwrap();
    assert!(first.is_ok() || matches!(first, Next::Silence), "{first:?}");
    wait::until_true("its beginning", PATIENCE, || Ok(next(&site)?.is_ok())).unwrap();
    assert!(SystemTime::now() + Duration::from_secs(1) >= begin);
    agent.start_again().unwrap();
    assert_eq!(plaintext(&site), None);
}

#[test]
fn next_agent_names_an_exception_of_a_layer_that_is_gone() {
    let site = site();
    let mut agent = Agent::start("persist = true\nmode = \"enforce\"").unwrap();
    let (code, text) = except(agent.home(), &add("legacy", site.net.app.v4()));
    assert_eq!(code, Some(0), "{text}");
    agent.kill().unwrap();
    fs::remove_file(layer(agent.home(), "50-exceptions.toml")).unwrap();
    assert_eq!(plaintext(&site), None, "the gate judges by the last policy");
    agent.start_again().unwrap();
    agent
        .await_record("of the time without an agent", |record| {
            record.rule() == "legacy"
        })
        .unwrap();
    assert_eq!(plaintext(&site), Some(REFUSED));
}

#[test]
fn exception_made_while_no_agent_runs_holds_from_its_start() {
    let site = site();
    let home = Home::new().unwrap();
    home.configure(ENFORCE).unwrap();
    let (code, text) = except(&home, &add("legacy", site.net.app.v4()));
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("no agent answers"), "{text}");
    let agent = Agent::start_in(home).unwrap();
    assert_eq!(plaintext(&site), None);
    let shown = except(agent.home(), "list --json").1;
    assert!(shown.contains("50-exceptions.toml"), "{shown}");
}

#[test]
fn agent_that_reads_other_files_is_not_taken_for_theirs() {
    let agent = Agent::start(ENFORCE).unwrap();
    let elsewhere = Scratch::new().unwrap();
    let main = elsewhere.join("musttls.toml");
    fs::copy(agent.home().config(), &main).unwrap();
    let words = add("legacy", [192, 0, 2, 1].into());
    let output = Command::new(place::agent_binary().unwrap())
        .arg("except")
        .args(words.split(' '))
        .arg("--config")
        .arg(&main)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let theirs = format!("--config {}", agent.home().config().display());
    assert!(text.contains(&theirs), "{text}");
    assert!(!elsewhere.join("conf.d/50-exceptions.toml").exists());
    assert_eq!(in_force(&agent), 0);
}
