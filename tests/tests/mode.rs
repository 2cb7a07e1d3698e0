//! Modes by command: set, with an end that needs no agent, and taken off everywhere at once.

#![cfg(test)]

use std::time::Duration;

use musttls_tests::agent::Agent;
use musttls_tests::raw::Next;
use musttls_tests::server::{Options, Product};
use musttls_tests::site::Site;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::REFUSED;

const OBSERVE: &str = "persist = true\nmode = \"observe\"";
/// How long nothing happens to a session that is held.
const A_WHILE: Duration = Duration::from_millis(500);

fn site() -> Site {
    Site::new(&Options::new(Product::MariaDb)).unwrap()
}

fn is_let_in(site: &Site) -> bool {
    site.plaintext().unwrap().receive().unwrap().is_ok()
}

fn is_refused(site: &Site) -> bool {
    let answer = site.plaintext().unwrap().receive().unwrap();
    answer.error().is_some_and(|error| error.number == REFUSED)
}

/// The exit code of `musttls`, and what it said.
fn run(agent: &Agent, words: &str) -> (Option<i32>, String) {
    let config = agent.home().config();
    let config = config.to_str().unwrap();
    let words: Vec<&str> = words.split(' ').chain(["--config", config]).collect();
    let output = agent.musttls(&words).unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code(), text)
}

/// What it said, which must have gone well.
fn musttls(agent: &Agent, words: &str) -> String {
    let (code, said) = run(agent, words);
    assert_eq!(code, Some(0), "{words}: {said}");
    said
}

#[test]
fn enforcing_is_said_before_it_is_done_and_taken_back() {
    let site = site();
    let agent = Agent::start(OBSERVE).unwrap();
    assert!(is_let_in(&site));
    agent
        .await_record("of the login", |record| {
            record.text("/unmapped/verdict") == "would_deny"
        })
        .unwrap();
    let (code, said) = run(&agent, "mode enforce");
    assert_eq!(code, Some(1), "somebody would be refused: {said}");
    assert!(said.contains("1 would be refused"), "{said}");
    assert!(
        said.contains("would set default: enforce") && said.contains("--execute"),
        "{said}"
    );
    assert!(is_let_in(&site));
    musttls(&agent, "mode enforce --execute");
    assert!(is_refused(&site));
    assert!(musttls(&agent, "mode").contains("default              enforce"));
    musttls(&agent, "mode observe");
    assert!(is_let_in(&site));
    let changes = agent
        .await_records("both changes", 2, |record| {
            record.text("/unmapped/cause") == "reload"
        })
        .unwrap();
    let modes: Vec<&str> = changes.iter().map(|it| it.text("/unmapped/mode")).collect();
    assert_eq!(modes, ["enforce", "observe"]);
}

#[test]
fn mode_with_an_end_ends_with_an_agent_and_without() {
    let site = site();
    let mut agent = Agent::start(OBSERVE).unwrap();
    // As long as a start of an agent takes where the CPU is emulated.
    let length = wait::here(Duration::from_secs(8)).as_secs();
    musttls(&agent, &format!("mode enforce --for {length}s --execute"));
    assert!(is_refused(&site));
    let end = &agent.status().unwrap()["policy"]["mode_end"];
    assert_eq!(end["then"], "observe", "{end}");
    wait::until_true("the end of the mode", PATIENCE, || Ok(is_let_in(&site))).unwrap();
    agent
        .await_record("of the end", |record| {
            record.text("/unmapped/cause") == "mode-until"
        })
        .unwrap();
    assert_eq!(agent.status().unwrap()["policy"]["mode"], "observe");

    musttls(&agent, &format!("mode enforce --for {length}s --execute"));
    agent.kill().unwrap();
    let next = site
        .plaintext()
        .unwrap()
        .receive_within(wait::here(A_WHILE))
        .unwrap();
    assert!(matches!(next, Next::Silence), "{next:?}");
    wait::until_true("the end of the mode, without an agent", PATIENCE, || {
        let next = site.plaintext()?.receive_within(wait::here(A_WHILE))?;
        Ok(next.is_ok())
    })
    .unwrap();
    agent.start_again().unwrap();
    assert!(is_let_in(&site));
}

#[test]
fn panic_lets_everything_in_until_it_is_taken_back() {
    let site = site();
    let port = site.server.at(site.net.app.db_v4()).port();
    let agent = Agent::start(&format!(
        "mode = \"enforce\"\n[[server]]\nname = \"orders\"\nports = [{port}]\nmode = \"enforce\""
    ))
    .unwrap();
    assert!(is_refused(&site));
    musttls(&agent, "panic");
    assert!(is_let_in(&site));
    let status = agent.musttls(&["status"]).unwrap();
    let status = String::from_utf8(status.stdout).unwrap();
    assert!(
        status.contains("ALARM     all servers are in observe mode"),
        "{status}"
    );
    let record = agent
        .await_record("of the panic", |record| {
            record.text("/unmapped/cause") == "panic"
        })
        .unwrap();
    assert_eq!(*record.at("/severity_id"), 4, "{}", record.line);
    musttls(&agent, "panic --end");
    assert!(is_refused(&site));
}
