//! `musttls why`, `musttls events` and what commands print as JSON: with a real agent, a real server and its clients.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use musttls_tests::agent::Agent;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::place::agent_binary;
use musttls_tests::server::{OPEN_USER, Options, Product, USER};
use musttls_tests::site::Site;
use musttls_tests::terminal::Terminal;
use musttls_tests::wait::{self, PATIENCE};
use rustix::process::Signal;
use serde_json::Value;

fn policy(site: &Site) -> String {
    format!(
        "mode = \"observe\"\nmode_until = 2099-01-01T00:00:00Z\nmode_then = \"enforce\"\n[[server]]\nname = \"orders\"\nports = [{}]\nmode = \"enforce\"\n\
         [[exception]]\nname = \"open\"\nsource = [\"{}/32\"]\nuser = [\"{OPEN_USER}\"]\nexpires = \"never\"\n\
         owner = \"dba@example.com\"\nreason = \"until the move\"\n\
         [[exception]]\nname = \"late\"\nsource = [\"0.0.0.0/0\"]\nuser = [\"{USER}\"]\nexpires = 2026-01-01\n\
         owner = \"dba@example.com\"\nreason = \"r\"\n",
        site.server.port(),
        site.net.app.v4()
    )
}

fn login(site: &Site, user: Option<&str>) -> Option<u16> {
    let mut login = Login::new(&site.server, &site.net.app, Tls::Off);
    if let Some(user) = user {
        login = login.user(user, "");
    }
    Client::PyMySql
        .login(&site.net.app, &login)
        .unwrap()
        .error()
}

/// A refused login, an excepted one and a TLS session, on record.
fn three_sessions(site: &Site, agent: &Agent) {
    assert_eq!(login(site, None), Some(3159));
    assert_eq!(login(site, Some(OPEN_USER)), None);
    site.tls_passes().unwrap();
    for verdict in ["denied", "excepted", "allowed"] {
        agent
            .await_record(verdict, |record| {
                record.text("/unmapped/verdict") == verdict
            })
            .unwrap();
    }
}

#[test]
fn a_refusal_is_explained_as_it_was_and_as_it_would_be() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(&policy(&site)).unwrap();
    three_sessions(&site, &agent);
    let denied = agent
        .await_record("the refusal", |it| it.text("/unmapped/verdict") == "denied")
        .unwrap();
    let uid = denied.text("/metadata/uid").to_owned();
    let number = denied.number("/metadata/sequence").unwrap().to_string();

    let (text, errors, code) = agent.told(&["why", &uid]).unwrap();
    assert_eq!(code, Some(1), "{text}{errors}");
    let app = site.net.app.v4();
    for told in [
        format!("{uid}: plaintext login from {app}:"),
        format!(" as user {USER} "),
        " to server orders, port ".to_owned(),
        "then: refused by rule require-tls: no exception allows a login in plaintext (no-client-ssl); its client was told after ".to_owned(),
        "(landed)".to_owned(),
        "in enforce mode".to_owned(),
        "now:  refused: server orders is in enforce mode, and no exception".to_owned(),
        format!("exception late allows 0.0.0.0/0 as user {USER}, but it ended on 2026-01-01"),
        format!("exception open allows {app}/32 as user {OPEN_USER}, but not this user"),
    ] {
        assert!(text.contains(&told), "no `{told}` in {text}");
    }
    assert_eq!(agent.told(&["why", &number]).unwrap().0, text);

    // Excused meanwhile: what was decided stays, what would be decided does not.
    let excused = policy(&site).replace("2026-01-01", "\"never\"");
    agent.set_policy(&excused).unwrap();
    let (text, _, code) = agent.told(&["why", &uid]).unwrap();
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("then: refused") && text.contains("now:  passes: exception late allows"),
        "{text}"
    );
    // The gate is of one mind with it.
    assert_eq!(login(&site, None), None);

    // The file was rotated away, and has half a line and garbage in it.
    let audit = agent.home().audit();
    let rotated = audit.with_extension("jsonl.1");
    fs::rename(audit, &rotated).unwrap();
    agent.signal(Signal::USR1).unwrap();
    wait::until("a new audit file", PATIENCE, || {
        Ok(audit.exists().then_some(()))
    })
    .unwrap();
    let (text, _, code) = agent.told(&["why", &uid]).unwrap();
    assert!(code == Some(0) && text.contains("then: refused"), "{text}");
    let (_, errors, code) = agent.told(&["why", "999999"]).unwrap();
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("no record is known by `999999`")
            && errors.contains("help: `musttls events`"),
        "{errors}"
    );
}

#[test]
fn what_is_said_of_an_address_is_what_the_gate_does() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(&policy(&site)).unwrap();
    let app = site.net.app.v4().to_string();
    let port = site.server.port().to_string();
    for (user, refused) in [(None, Some(3159)), (Some(OPEN_USER), None)] {
        assert_eq!(login(&site, user), refused);
        let name = user.unwrap_or(USER);
        let (text, _, code) = agent.told(&["why", &app, name, "--port", &port]).unwrap();
        assert_eq!(code, Some(i32::from(refused.is_some())), "{text}");
        let (text, _, _) = agent
            .told(&["why", &app, name, "--server", "orders", "--json"])
            .unwrap();
        let answer: Value = serde_json::from_str(&text).unwrap();
        let fate = if refused.is_some() {
            "refused"
        } else {
            "excepted"
        };
        assert_eq!(answer["now"][0]["fate"], fate, "{text}");
    }
    let (text, _, code) = agent.told(&["why", &app, USER]).unwrap();
    assert_eq!(code, Some(1), "orders refuses it: {text}");
    assert!(
        text.contains("on default: passes: the mode is observe until 2099-01-01T00:00:00Z, then enforce; in enforce mode it would be refused"),
        "{text}"
    );
    let (_, errors, code) = agent.told(&["why", "10.0.0.0/8"]).unwrap();
    assert!(code == Some(2) && errors.contains("a network"), "{errors}");
    let (_, errors, code) = agent.told(&["why", &app, "--server", "order"]).unwrap();
    assert!(
        code == Some(1) && errors.contains("default, orders"),
        "{errors}"
    );
    let (_, errors, code) = agent.told(&["why", "7", "root"]).unwrap();
    assert!(
        code == Some(2) && errors.contains("has its own user"),
        "{errors}"
    );
}

#[test]
fn records_are_listed_and_filtered() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(&policy(&site)).unwrap();
    three_sessions(&site, &agent);
    let app = site.net.app.v4().to_string();
    let rows = |args: &[&str]| {
        let mut words = vec!["events"];
        words.extend(args);
        let (text, errors, code) = agent.told(&words).unwrap();
        assert_eq!(code, Some(0), "{args:?}: {errors}");
        assert!(text.starts_with("TIME (UTC)"), "{text}");
        assert!(
            !text.contains('\x1b'),
            "colours without a terminal: {text:?}"
        );
        text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    let refused = rows(&["--refused"]);
    assert_eq!(refused.len(), 1, "{refused:?}");
    for told in [
        "  denied ",
        &app,
        USER,
        "orders",
        "no-client-ssl, told after",
        "landed",
    ] {
        assert!(refused[0].contains(told), "no {told}: {refused:?}");
    }
    assert!(rows(&["--outcome", "excepted"])[0].contains("exception open"));
    assert_eq!(rows(&["--user", OPEN_USER, "--client", &app]).len(), 1);
    assert_eq!(
        rows(&["--user", OPEN_USER, "--client", "192.0.2.0/24"]).len(),
        0
    );
    assert!(rows(&["--kind", "tls", "--server", "orders"])[0].contains("TLS 1.3"));
    assert_eq!(rows(&["--until", "2026-01-01"]).len(), 0);
    assert_eq!(rows(&["--since", "1h", "-n", "1"]).len(), 1);
    let all = rows(&[]);
    assert_eq!(rows(&["-n", "2"]), all[all.len() - 2..]);

    // As they stand in the file.
    let (text, _, _) = agent.told(&["events", "--json"]).unwrap();
    assert_eq!(text, fs::read_to_string(agent.home().audit()).unwrap());
    let path = agent.home().audit();
    let mut file = fs::read_to_string(path).unwrap();
    let later = file
        .lines()
        .next()
        .unwrap()
        .replace("\"schema_version\":1", "\"schema_version\":9");
    file = format!("garbage\n{later}\n{file}half a li");
    fs::write(path, &file).unwrap();
    let (text, errors, code) = agent.told(&["events"]).unwrap();
    assert_eq!(code, Some(0), "{errors}");
    assert_eq!(text.lines().count(), all.len() + 2, "{text}");
    assert!(
        text.contains("  unknown ") && errors.contains("no JSON: 1"),
        "{text}{errors}"
    );
    assert!(
        errors.contains("of a later release of musttls, shown as they are by --json: 1"),
        "{errors}"
    );
}

#[test]
fn records_are_followed_over_rotation_until_nobody_reads() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(&policy(&site)).unwrap();
    let mut follow = Command::new(agent_binary().unwrap())
        .args(["events", "-f", "--json", "--kind", "plaintext", "--config"])
        .arg(agent.home().config())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let mut next = || -> Result<String> {
        let line = lines.next().context("it has ended")??;
        let record: Value = serde_json::from_str(&line)?;
        Ok(record["unmapped"]["verdict"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    assert_eq!(login(&site, None), Some(3159));
    assert_eq!(next().unwrap(), "denied");
    fs::rename(agent.home().audit(), agent.home().file("audit.jsonl.1")).unwrap();
    assert_eq!(login(&site, Some(OPEN_USER)), None);
    assert_eq!(
        next().unwrap(),
        "excepted",
        "the old file is still written to"
    );
    agent.signal(Signal::USR1).unwrap();
    assert_eq!(login(&site, None), Some(3159));
    assert_eq!(next().unwrap(), "denied", "in the new file");
    // Nobody reads any more, and nothing happens.
    drop(lines);
    let status = wait::until("its end", PATIENCE, || Ok(follow.try_wait()?)).unwrap();
    assert_eq!(status.code(), Some(0));
    let mut errors = String::new();
    follow
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut errors)
        .unwrap();
    assert_eq!(errors, "");
}

#[test]
fn in_a_terminal_names_are_shown_safely_and_ctrl_c_ends_it() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(&policy(&site)).unwrap();
    let binary = agent_binary().unwrap();
    let config = agent.home().config();
    let words = ["events", "--follow", "--config"].map(Path::new);
    let words: Vec<_> = std::iter::once(binary.as_path())
        .chain(words)
        .chain(std::iter::once(config.as_path()))
        .collect();
    let mut terminal = Terminal::run(&words, (200, 24)).unwrap();
    terminal.await_text("TIME (UTC)", PATIENCE).unwrap();
    assert_eq!(login(&site, Some("x\u{1b}]0;owned\u{7}")), Some(3159));
    terminal
        .await_text("x\u{fffd}]0;owned\u{fffd}", PATIENCE)
        .unwrap();
    terminal
        .await_text("no-client-ssl, told after", PATIENCE)
        .unwrap();
    terminal.keys("\u{3}").unwrap();
    terminal.await_end(PATIENCE).unwrap();
    let said = String::from_utf8_lossy(terminal.said()).into_owned();
    assert!(
        said.contains("\x1b[31mdenied"),
        "a refusal is red: {said:?}"
    );
    assert!(
        !said.contains("\x1b]"),
        "a client's escape sequence reached the terminal: {said:?}"
    );
}

/// The keys that a page documents for each command, by its headings.
fn documented() -> BTreeMap<String, Vec<String>> {
    let page = include_str!("../../docs/json.md");
    let mut commands: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut command = String::new();
    for line in page.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.clone_into(&mut command);
        } else if line.starts_with("| `") {
            let cell = line.split('|').nth(1).unwrap();
            let keys = cell.split('`').skip(1).step_by(2).map(str::to_owned);
            commands.entry(command.clone()).or_default().extend(keys);
        }
    }
    commands
}

/// `a.b[].c?` as steps: names, `*` and `[]`.
fn steps(key: &str) -> Vec<String> {
    let spread = key.trim_end_matches('?').replace("[]", ".[]");
    spread
        .split('.')
        .filter(|step| !step.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Every place in `value`, as steps, with nothing below arrays and objects that are documented as a whole.
fn places(value: &Value, at: &[String], found: &mut Vec<Vec<String>>) {
    let below = |step: &str| [at, &[step.to_owned()]].concat();
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, value) in object {
                places(value, &below(key), found);
            }
        }
        Value::Array(array) if !array.is_empty() => {
            for value in array {
                places(value, &below("[]"), found);
            }
        }
        _ => found.push(at.to_vec()),
    }
}

fn is_documented(place: &[String], documented: &[Vec<String>]) -> bool {
    documented.iter().any(|key| {
        let alike = |(step, one): (&String, &String)| step == one || step == "*";
        // Shorter: documented as a whole. Longer: an empty array, an empty object or null.
        key.iter().zip(place).all(alike)
    })
}

/// Whether `value` has what `steps` lead to, in each element of arrays.
fn has(value: &Value, steps: &[String]) -> bool {
    let Some((step, rest)) = steps.split_first() else {
        return true;
    };
    match (step.as_str(), value) {
        (_, Value::Null) => true,
        ("[]", Value::Array(array)) => array.iter().all(|value| has(value, rest)),
        ("*", Value::Object(object)) => object.values().all(|value| has(value, rest)),
        (name, Value::Object(object)) => object.get(name).is_some_and(|value| has(value, rest)),
        _ => false,
    }
}

#[test]
fn the_keys_of_json_are_those_of_the_page() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(&policy(&site)).unwrap();
    three_sessions(&site, &agent);
    let app = site.net.app.v4().to_string();
    let config = agent.home().config();
    let config = config.to_str().unwrap();
    let denied = agent
        .await_record("the refusal", |it| it.text("/unmapped/verdict") == "denied")
        .unwrap();
    let number = denied.number("/metadata/sequence").unwrap().to_string();
    let pages = documented();
    let commands: [(&str, Vec<&str>); 14] = [
        ("status", vec!["status"]),
        ("scan", vec!["scan"]),
        ("doctor", vec!["doctor"]),
        ("kill-plaintext", vec!["kill-plaintext"]),
        ("mode", vec!["mode", "--config", config]),
        ("except list, except expiring", vec!["except", "list"]),
        ("except list, except expiring", vec!["except", "expiring"]),
        ("clients", vec!["clients"]),
        ("simulate", vec!["simulate", "--policy", config]),
        ("learn", vec!["learn", "--owner", "dba@example.com"]),
        ("history", vec!["history"]),
        ("why", vec!["why", &number]),
        ("why", vec!["why", &app, USER]),
        ("why", vec!["why", &app]),
    ];
    for (heading, mut words) in commands {
        words.push("--json");
        let (text, errors, _) = agent.told(&words).unwrap();
        let printed: Value = serde_json::from_str(&text)
            .with_context(|| format!("{words:?}: {text}{errors}"))
            .unwrap();
        let keys = &pages[heading];
        let documented: Vec<_> = keys.iter().map(|key| steps(key)).collect();
        let mut found = Vec::new();
        places(&printed, &[], &mut found);
        for place in found {
            assert!(
                is_documented(&place, &documented),
                "{words:?}: {place:?} is not on the page"
            );
        }
        for key in keys.iter().filter(|key| !key.ends_with('?')) {
            assert!(has(&printed, &steps(key)), "{words:?}: no {key} in {text}");
        }
    }
    // Every page is of a command that was asked.
    assert_eq!(pages.len(), 11);
}

#[test]
fn a_key_that_is_missing_on_either_side_is_found() {
    let printed: Value = serde_json::from_str(
        "{\"a\": [{\"b\": 1, \"c\": {\"x\": 1}}, {\"b\": 2, \"c\": {}}], \"d\": null, \"e\": []}",
    )
    .unwrap();
    let mut found = Vec::new();
    places(&printed, &[], &mut found);
    let unknown = |keys: &[&str]| {
        let documented: Vec<_> = keys.iter().map(|key| steps(key)).collect();
        let places = found
            .iter()
            .filter(|place| !is_documented(place, &documented));
        places.map(|place| place.join(".")).collect::<Vec<_>>()
    };
    assert_eq!(unknown(&["a[].b", "a[].c.*", "d.f", "e[].g"]), [""; 0]);
    assert_eq!(unknown(&["a[].b", "a[].c.y", "d"]), ["a.[].c.x", "e"]);
    assert!(has(&printed, &steps("a[].b")) && has(&printed, &steps("a[].c.*")));
    assert!(has(&printed, &steps("d.f")) && has(&printed, &steps("e[].g")));
    assert!(!has(&printed, &steps("a[].c.x")), "the second has none");
    assert!(!has(&printed, &steps("g")));
}
