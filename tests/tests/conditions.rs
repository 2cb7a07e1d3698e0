//! Exceptions with conditions: the program that a client claims to be, the user and the cgroup of a client of the same host; and
//! plaintext over the loopback device.
//!
//! The kernel holds such a login and asks the agent; the client's TCP sends it again.

#![cfg(test)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use musttls_tests::agent::{Agent, Home};
use musttls_tests::audit::Record;
use musttls_tests::cgroup::Cgroup;
use musttls_tests::client::{Answer, Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::netns::Host;
use musttls_tests::place::of_user;
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{OPEN_USER, Options, Product, USER};
use musttls_tests::site::Site;
use musttls_tests::tcp::{Opening, Segment, Stack};
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::REFUSED;

const ENFORCE: &str = "mode = \"enforce\"";
/// How long nothing happens to a session that is held.
const A_WHILE: Duration = Duration::from_secs(2);
/// A user of the clients' host; it needs no name.
const LOCAL: u32 = 54_321;
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn site() -> Site {
    Site::new(&Options::new(Product::MariaDb)).unwrap()
}

/// A policy with the exceptions `e0`, `e1` and so on, each with the lines that are its own.
fn policy(head: &str, exceptions: &[&str]) -> String {
    let mut text = head.to_owned();
    for (number, lines) in exceptions.iter().enumerate() {
        let end = "expires = \"never\"\nowner = \"o\"\nreason = \"r\"\n";
        let more = format!("\n[[exception]]\nname = \"e{number}\"\n{lines}\n{end}");
        text.push_str(&more);
    }
    text
}

/// An agent in the network namespace of the server.
fn agent_beside(site: &Site, policy: &str) -> Agent {
    let home = Home::new().unwrap().on(&site.net.db);
    home.configure(policy).unwrap();
    Agent::start_in(home).unwrap()
}

fn login_at(site: &Site, host: &Host, to: IpAddr) -> Login {
    Login::new(&site.server, host, Tls::Off).to(to)
}

/// A client of the server's own host, started by `words`.
fn local(site: &Site, words: &[&str], to: IpAddr) -> Answer {
    let login = login_at(site, &site.net.db, to);
    Client::MariaDbCli
        .login_through(words, &site.net.db, &login)
        .unwrap()
}

/// The words that start a client as the user `uid`.
fn as_user(uid: u32) -> Vec<String> {
    let command = of_user(uid);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| word.to_string_lossy().into_owned())
        .collect()
}

fn as_strs(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn assert_in(answer: &Answer) {
    assert!(answer.is_in(), "{}", answer.text);
}

fn assert_refused(answer: &Answer) {
    assert_eq!(answer.error(), Some(REFUSED), "{}", answer.text);
}

/// How often segments were held because the agent was asked.
fn asked(agent: &Agent) -> u64 {
    agent.held().unwrap().get("asked").copied().unwrap_or(0)
}

#[test]
fn program_that_is_claimed_lets_a_client_in_and_the_record_says_that_it_was_claimed() {
    let site = site();
    let app = &site.net.app;
    let lines = format!("source = [\"{}/32\"]\nprograms = [\"mysql\"]", app.v4());
    let agent = Agent::start(&policy(ENFORCE, &[&lines])).unwrap();
    let login = login_at(&site, app, app.db_v4());

    assert_in(&Client::MariaDbCli.login(app, &login).unwrap());
    let record = agent
        .await_record("of the exception", |record| record.rule() == "e0")
        .unwrap();
    assert_eq!(record.user(), USER, "{}", record.line);
    assert_eq!(
        record.text("/unmapped/verdict"),
        "excepted",
        "{}",
        record.line
    );
    assert_eq!(
        record.at("/unmapped/rule_rests_on/claimed_program"),
        true,
        "{}",
        record.line
    );
    assert!(
        record.text("/status_detail").contains("claims to be"),
        "{}",
        record.line
    );
    assert!(asked(&agent) > 0);

    // Another program from the same address, and the same program from another one.
    assert_refused(&Client::PyMySql.login(app, &login).unwrap());
    let legacy = &site.net.legacy;
    let elsewhere = login_at(&site, legacy, legacy.db_v4());
    assert_refused(&Client::MariaDbCli.login(legacy, &elsewhere).unwrap());
    let refused = agent
        .await_records("of the others", 2, Record::is_denied)
        .unwrap();
    assert!(refused.iter().all(|record| record.rule() == "require-tls"));
    site.tls_passes().unwrap();
    assert_eq!(agent.outcome("excepted").unwrap(), 1);
}

#[test]
fn exception_without_conditions_needs_no_answer() {
    let site = site();
    let app = &site.net.app;
    let (first, second) = (
        format!("source = [\"{}/32\"]\nprograms = [\"mysql\"]", app.v4()),
        format!("source = [\"{}/32\"]", app.v4()),
    );
    let agent = Agent::start(&policy(ENFORCE, &[&first, &second])).unwrap();
    let login = login_at(&site, app, app.db_v4());
    assert_in(&Client::MariaDbCli.login(app, &login).unwrap());
    agent
        .await_record("of the second", |record| record.rule() == "e1")
        .unwrap();
    assert_eq!(asked(&agent), 0);
}

#[test]
fn login_in_pieces_is_looked_at_once_it_is_whole() {
    let site = site();
    let app = &site.net.app;
    let lines = format!("source = [\"{}/32\"]\nprograms = [\"dump\"]", app.v4());
    let agent = Agent::start(&policy(ENFORCE, &[&lines])).unwrap();
    let login = site.server.open_login().attribute("program_name", "dump");
    let bytes = login.packet_41();
    let (mut raw, _) = Raw::greeted(app, site.server.at(app.db_v4())).unwrap();
    let (head, tail) = bytes.split_at(bytes.len() - 8);
    raw.send(head).unwrap();
    raw.send(tail).unwrap();
    let next = raw.receive().unwrap();
    assert!(next.is_ok(), "{next:?}");
    let record = agent
        .await_record("of the exception", |record| record.rule() == "e0")
        .unwrap();
    assert_eq!(record.user(), OPEN_USER);
}

/// The first copy has the user and the program of the exception, the one behind the agent's answer another user.
#[test]
fn another_copy_of_a_login_gets_no_other_user_in() {
    let site = site();
    let app = &site.net.app;
    let lines = "source = [\"0.0.0.0/0\"]\nuser = [\"nobody\"]\nprograms = [\"dump\"]";
    let agent = Agent::start(&policy(ENFORCE, &[lines])).unwrap();
    let to = site.server.at(app.db_v4());
    let mut stack = Stack::new(app, &site.net.db, to).unwrap();
    let client = stack.greeted(Opening::default()).unwrap();
    let of = |user: &str| {
        let mut login = site.server.open_login().attribute("program_name", "dump");
        user.clone_into(&mut login.user);
        login.packet_41()
    };
    let mark = evidence::mark(&site.server).unwrap();
    stack.send(client, &Segment::at(0, &of("nobody"))).unwrap();
    wait::until_true("the agent to be asked", PATIENCE, || {
        Ok(agent.held()?.contains_key("asked"))
    })
    .unwrap();
    // Long enough for the answer.
    stack.pump(Duration::from_millis(500)).unwrap();
    stack.send(client, &Segment::at(0, &of(OPEN_USER))).unwrap();
    stack
        .await_that(client, "the refusal", |connection| {
            connection.error().is_some()
        })
        .unwrap();
    let error = stack.connection(client).unwrap().error().unwrap();
    assert_eq!(error.number, REFUSED);
    let logins = evidence::logins(&site.server, OPEN_USER, mark).unwrap();
    assert_eq!(logins, [""; 0]);
    let record = agent
        .await_record("of the refusal", Record::is_denied)
        .unwrap();
    assert_eq!(record.user(), OPEN_USER, "{}", record.line);

    // The user of the exception gets as far as the server, which does not know it.
    let client = stack.greeted(Opening::default()).unwrap();
    for _ in 0..2 {
        stack.send(client, &Segment::at(0, &of("nobody"))).unwrap();
        stack.pump(Duration::from_millis(500)).unwrap();
    }
    stack
        .await_that(client, "the server's answer", |connection| {
            connection.error().is_some()
        })
        .unwrap();
    let error = stack.connection(client).unwrap().error().unwrap();
    assert_eq!(error.number, 1045);
}

#[test]
fn without_an_agent_the_login_stays_held_and_the_next_agent_answers() {
    let site = site();
    let app = &site.net.app;
    let lines = format!("source = [\"{}/32\"]\nprograms = [\"dump\"]", app.v4());
    let head = format!("{ENFORCE}\npersist = true");
    let mut agent = Agent::start(&policy(&head, &[&lines])).unwrap();
    agent.kill().unwrap();

    let mark = evidence::mark(&site.server).unwrap();
    let login = site.server.open_login().attribute("program_name", "dump");
    let (mut raw, _) = Raw::greeted(app, site.server.at(app.db_v4())).unwrap();
    raw.send(&login.packet_41()).unwrap();
    assert_eq!(raw.receive_within(A_WHILE).unwrap(), Next::Silence);
    let logins = evidence::logins(&site.server, OPEN_USER, mark).unwrap();
    assert_eq!(logins, [""; 0]);

    agent.start_again().unwrap();
    let next = raw.receive().unwrap();
    assert!(next.is_ok(), "{next:?}");
    agent
        .await_record("of the exception", |record| record.rule() == "e0")
        .unwrap();
}

#[test]
fn user_of_the_same_host_is_let_in_and_no_other() {
    let site = site();
    let lines = format!("uids = [{LOCAL}]");
    let agent = agent_beside(&site, &policy(ENFORCE, &[&lines]));
    let words = as_user(LOCAL);
    let words = as_strs(&words);
    let other = as_user(LOCAL + 1);
    let other = as_strs(&other);
    for to in [
        LOOPBACK,
        site.net.app.db_v4(),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ] {
        assert_in(&local(&site, &words, to));
        assert_refused(&local(&site, &other, to));
        assert_refused(&local(&site, &[], to));
    }
    let records = agent
        .await_records("of the exception", 3, |record| record.rule() == "e0")
        .unwrap();
    for record in records {
        assert_eq!(
            record.at("/unmapped/rule_rests_on/uid"),
            true,
            "{}",
            record.line
        );
    }

    // No client of another host is asked about, whoever it is there.
    let before = asked(&agent);
    let app = &site.net.app;
    let login = login_at(&site, app, app.db_v4());
    let answer = Client::MariaDbCli
        .login_through(&words, app, &login)
        .unwrap();
    assert_refused(&answer);
    assert_eq!(asked(&agent), before);
}

#[test]
fn cgroup_of_the_same_host_is_let_in_with_all_below_it() {
    let site = site();
    let group = Cgroup::new().unwrap();
    let beside = Cgroup::new().unwrap();
    let lines = format!("cgroups = [\"/{}\"]", group.name());
    let agent = agent_beside(&site, &policy(ENFORCE, &[&lines]));
    let below = group.below("worker").unwrap();
    let from = |path: &std::path::Path| {
        let words = Cgroup::enter(path);
        local(&site, &as_strs(&words), LOOPBACK)
    };
    assert_in(&from(group.path()));
    assert_in(&from(&below));
    assert_refused(&from(beside.path()));
    assert_refused(&local(&site, &[], LOOPBACK));
    // Made after the agent has looked.
    let later = group.below("later").unwrap();
    assert_in(&from(&later));
    let records = agent
        .await_records("of the exception", 3, |record| record.rule() == "e0")
        .unwrap();
    assert_eq!(records[0].at("/unmapped/rule_rests_on/cgroup"), true);
}

/// The agent's namespace has no such client, whatever the addresses say.
#[test]
fn user_of_a_host_in_another_network_namespace_than_the_agents_is_not_let_in() {
    let site = site();
    let lines = format!("uids = [0, {LOCAL}]");
    let agent = Agent::start(&policy(ENFORCE, &[&lines])).unwrap();
    assert_refused(&local(&site, &[], LOOPBACK));
    assert!(asked(&agent) > 0);
}

#[test]
fn loopback_is_allowed_only_where_it_is_said_and_only_for_the_same_host() {
    let site = site();
    let mut agent = Agent::start(&policy(ENFORCE, &[])).unwrap();
    assert_refused(&local(&site, &[], LOOPBACK));

    let allow = format!("{ENFORCE}\nloopback = \"allow\"");
    agent.set_policy(&policy(&allow, &[])).unwrap();
    for to in [LOOPBACK, site.net.app.db_v4()] {
        assert_in(&local(&site, &[], to));
    }
    let records = agent
        .await_records("by the loopback", 2, |record| record.rule() == "loopback")
        .unwrap();
    for record in records {
        assert_eq!(
            record.text("/unmapped/verdict"),
            "excepted",
            "{}",
            record.line
        );
    }
    let app = &site.net.app;
    let login = login_at(&site, app, app.db_v4());
    assert_refused(&Client::MariaDbCli.login(app, &login).unwrap());

    // One server of several.
    let port = site.server.port();
    let section =
        format!("{allow}\n[[server]]\nname = \"s\"\nports = [{port}]\nloopback = \"same-rule\"");
    agent.set_policy(&policy(&section, &[])).unwrap();
    assert_refused(&local(&site, &[], LOOPBACK));
    assert!(agent.is_running().unwrap());
}

#[test]
fn client_that_a_trusted_proxy_of_the_same_host_names_does_not_come_over_the_loopback_device() {
    let options = Options::new(Product::MariaDb).with("--proxy-protocol-networks=*");
    let site = Site::new(&options).unwrap();
    let head = format!("{ENFORCE}\nloopback = \"allow\"\ntrusted_proxies = [\"127.0.0.1/32\"]");
    let lines = "uids = [0]";
    let _agent = agent_beside(&site, &policy(&head, &[lines]));
    let to = SocketAddr::new(LOOPBACK, site.server.port());
    for (header, is_in) in [
        ("", true),
        ("PROXY TCP4 192.0.2.7 127.0.0.1 5 3306\r\n", false),
    ] {
        let (mut raw, _) = Raw::greeted(&site.net.db, to).unwrap();
        let login = site.server.open_login().packet_41();
        raw.send(&[header.as_bytes(), &login].concat()).unwrap();
        let next = raw.receive().unwrap();
        assert_eq!(next.is_ok(), is_in, "{header}: {next:?}");
    }
}

#[test]
fn observe_mode_holds_nothing_and_says_which_exception_it_would_be() {
    let site = site();
    let app = &site.net.app;
    let program = format!("source = [\"{}/32\"]\nprograms = [\"mysql\"]", app.v4());
    let uid = format!("uids = [{LOCAL}]");
    let agent = agent_beside(&site, &policy("mode = \"observe\"", &[&program, &uid]));
    let login = login_at(&site, app, app.db_v4());
    assert_in(&Client::MariaDbCli.login(app, &login).unwrap());
    assert_in(&Client::PyMySql.login(app, &login).unwrap());
    let words = as_user(LOCAL);
    assert_in(&local(&site, &as_strs(&words), LOOPBACK));
    agent
        .await_record("by the program", |record| record.rule() == "e0")
        .unwrap();
    agent
        .await_record("by the user", |record| record.rule() == "e1")
        .unwrap();
    let other = agent
        .await_record("by none", |record| record.rule() == "require-tls")
        .unwrap();
    assert_eq!(
        other.text("/unmapped/verdict"),
        "would_deny",
        "{}",
        other.line
    );
    assert_eq!(asked(&agent), 0);
}

/// Far more questions than the ring has room for.
#[test]
fn flood_of_questions_delays_no_refusal() {
    let site = site();
    let (app, legacy) = (&site.net.app, &site.net.legacy);
    let lines =
        format!("source = [\"0.0.0.0/0\"]\nuser = [\"{OPEN_USER}\"]\nprograms = [\"dump\"]");
    let agent = Agent::start(&policy(ENFORCE, &[&lines])).unwrap();
    let to = site.server.at(app.db_v4());
    let mut stack = Stack::new(app, &site.net.db, to).unwrap();
    let login = site.server.open_login().attribute("program_name", "none");
    let bytes = login.packet_41();
    let clients: Vec<SocketAddr> = (0..40)
        .map(|_| stack.greeted(Opening::default()).unwrap())
        .collect();
    for _ in 0..70 {
        for client in &clients {
            stack.send(*client, &Segment::at(0, &bytes)).unwrap();
        }
    }
    let elsewhere = login_at(&site, legacy, legacy.db_v4());
    assert_refused(&Client::MariaDbCli.login(legacy, &elsewhere).unwrap());
    for client in &clients {
        stack
            .await_that(*client, "its refusal", |connection| {
                connection.error().is_some()
            })
            .unwrap();
    }
    assert!(asked(&agent) >= 40);
    assert_eq!(agent.outcome("excepted").unwrap(), 0);
    assert_eq!(agent.outcome("denied").unwrap(), 41);
}
