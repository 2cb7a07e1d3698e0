//! The history: real clients are on it with their drivers, policies are held against it, and what is learned of it lets in
//! exactly those who were seen.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::netns::{Host, Net};
use musttls_tests::place::agent_binary;
use musttls_tests::raw::Raw;
use musttls_tests::server::{OPEN_USER, Options, Product, Server, USER};
use musttls_tests::site::Site;
use musttls_tests::terminal::Terminal;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::LoginPacket;
use rustix::process::Signal;
use serde_json::Value;

const OBSERVE: &str = "mode = \"observe\"";
const ENFORCE: &str = "mode = \"enforce\"\n[[server]]\nname = \"orders\"\nports = [3306]\n";
const OWNER: &str = "dba@example.com";

fn json(agent: &Agent, args: &[&str]) -> Value {
    let (text, errors, _) = agent.told(args).unwrap();
    serde_json::from_str(&text)
        .with_context(|| format!("{args:?} printed {text}\n{errors}"))
        .unwrap()
}

/// The rows of `clients --json` that are `wanted`, as soon as they have `sessions` in all.
fn await_clients(agent: &Agent, sessions: u64, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
    wait::until("the clients", PATIENCE, || {
        let found = json(agent, &["clients", "--json"]);
        let rows = found["clients"].as_array().context("no clients")?;
        let rows: Vec<Value> = rows.iter().filter(|row| wanted(row)).cloned().collect();
        let count: u64 = rows.iter().filter_map(|row| row["sessions"].as_u64()).sum();
        Ok((count == sessions).then_some(rows))
    })
    .with_context(|| json(agent, &["clients", "--json"]).to_string())
    .unwrap()
}

/// The index is root's, and whoever opens it writes to it.
#[test]
fn who_may_read_the_audit_file_alone_is_told_what_that_holds() {
    const NOBODY: u32 = 65534;
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(OBSERVE).unwrap();
    assert_eq!(login(&site.server, &site.net.app, USER), None);
    let rows = await_clients(&agent, 1, plaintext);
    let asked = |mode| {
        fs::set_permissions(agent.home().audit(), fs::Permissions::from_mode(mode)).unwrap();
        let output = agent
            .home()
            .musttls_of(NOBODY, &["clients", "--json"])
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), output.stdout, said)
    };
    let (code, _, said) = asked(0o600);
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains("audit.jsonl"), "{said}");
    let (code, told, said) = asked(0o644);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("is not yours to open"), "{said}");
    let told: Value = serde_json::from_slice(&told).unwrap();
    assert_eq!(told["clients"], Value::Array(rows));
}

fn plaintext(row: &Value) -> bool {
    row["transport"] == "plaintext"
}

/// The error of a plaintext login of `user` by a program of Python; `None` when it is let in.
fn login(server: &Server, host: &Host, user: &str) -> Option<u16> {
    let mut login = Login::new(server, host, Tls::Off);
    if user == OPEN_USER {
        login = login.user(OPEN_USER, "");
    }
    Client::PyMySql.login(host, &login).unwrap().error()
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn scrape(port: u16) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut page = String::new();
    stream.read_to_string(&mut page)?;
    Ok(page)
}

#[test]
fn every_client_is_listed_with_its_driver_and_the_fix() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(OBSERVE).unwrap();
    for client in Client::ALL {
        let answer = client
            .login(&net.app, &Login::new(&server, &net.app, Tls::Off))
            .unwrap();
        assert!(answer.is_in(), "{client:?}: {}", answer.text);
    }
    let secure = Login::new(&server, &net.legacy, Tls::Required);
    assert!(
        Client::MariaDbCli
            .login(&net.legacy, &secure)
            .unwrap()
            .is_in()
    );

    let count = u64::try_from(Client::ALL.len()).unwrap();
    let rows = await_clients(&agent, count, plaintext);
    let drivers: BTreeMap<&str, &str> = rows
        .iter()
        .map(|row| {
            (
                row["fix"]["driver"].as_str().unwrap(),
                row["driver"].as_str().unwrap_or("-"),
            )
        })
        .collect();
    let expected = [
        ("MariaDB Connector/C", "libmariadb"),
        ("PyMySQL", "pymysql"),
        ("libmysqlclient", "libmysql"),
        ("mysql-connector-python", "mysql-connector-python"),
        ("node mysql2", "Node-MySQL-2"),
        ("unknown", "-"),
    ];
    assert_eq!(drivers, expected.into());
    for row in &rows {
        assert_eq!(row["client"], net.app.v4().to_string(), "{row}");
        assert_eq!(row["user"], USER, "{row}");
        assert_eq!(row["port"], server.port(), "{row}");
        assert_eq!(row["last_verdict"], "would_deny", "{row}");
    }
    let secure = await_clients(&agent, 1, |row| row["transport"] == "tls");
    assert_eq!(secure[0]["client"], net.legacy.v4().to_string());
    assert_eq!(secure[0]["tls_version"], "1.3");
    assert!(secure[0].get("fix").is_none());

    let (text, _, code) = agent
        .told(&["clients", "--plaintext", "--since", "1h"])
        .unwrap();
    assert_eq!(code, Some(0));
    assert!(
        text.contains("sslMode") || text.contains("--ssl-mode=REQUIRED"),
        "{text}"
    );
    assert!(
        text.contains("PyMySQL (1): ") && !text.contains("secure"),
        "{text}"
    );
    let (text, _, _) = agent.told(&["clients", "--user", "nobody"]).unwrap();
    assert!(text.contains("on record none is like that"), "{text}");
    let (text, _, _) = agent.told(&["clients", "--server", "orders:3306"]).unwrap();
    assert!(
        text.contains("no server has the name `orders:3306`"),
        "{text}"
    );
}

#[test]
fn what_is_learned_lets_in_exactly_those_who_were_seen() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let observe = ENFORCE.replace("enforce", "observe");
    let agent = Agent::start(&observe).unwrap();
    assert_eq!(login(&server, &net.app, USER), None);
    let secure = Login::new(&server, &net.legacy, Tls::Required);
    assert!(Client::PyMySql.login(&net.legacy, &secure).unwrap().is_in());
    await_clients(&agent, 1, plaintext);

    // Enforce mode would refuse one of them, and says whom.
    let policy = agent.home().file("enforce.toml");
    let simulate = ["simulate", "--json", "--policy", policy.to_str().unwrap()];
    fs::write(&policy, ENFORCE).unwrap();
    let simulated = json(&agent, &simulate);
    assert_eq!(
        simulated["refused"].as_array().unwrap().len(),
        1,
        "{simulated}"
    );
    assert_eq!(simulated["refused"][0]["client"], net.app.v4().to_string());
    assert_eq!(simulated["refused"][0]["user"], USER);
    let (text, _, code) = agent
        .told(&["simulate", "--policy", policy.to_str().unwrap()])
        .unwrap();
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("1 would be refused\n") && text.contains(USER),
        "{text}"
    );
    // As it is in force, it would not, and says that, too.
    let (text, _, code) = agent
        .told(&[
            "simulate",
            "--policy",
            agent.home().config().to_str().unwrap(),
        ])
        .unwrap();
    assert_eq!(code, Some(0), "{text}");
    assert!(
        text.contains("if their server were in enforce mode"),
        "{text}"
    );

    let learned = agent.home().file("learned.toml");
    let learn = [
        "learn",
        "--owner",
        OWNER,
        "--for",
        "7d",
        "--write",
        learned.to_str().unwrap(),
    ];
    let (_, errors, code) = agent.told(&learn).unwrap();
    assert_eq!(code, Some(0), "{errors}");
    let text = fs::read_to_string(&learned).unwrap();
    assert!(text.contains(&format!("\"{}/32\"", net.app.v4())), "{text}");
    assert!(
        text.contains("# PyMySQL: ") && text.contains("server  = \"orders\""),
        "{text}"
    );
    assert_eq!(fs::metadata(&learned).unwrap().mode() & 0o777, 0o640);
    // What is there is not written over.
    let (_, errors, code) = agent.told(&learn).unwrap();
    assert_eq!(code, Some(1), "{errors}");
    assert!(
        errors.contains("File exists") && errors.contains("help: "),
        "{errors}"
    );
    assert_eq!(fs::read_to_string(&learned).unwrap(), text);

    // With it nobody would be refused, and nobody is but those who were not seen.
    let excused = format!("{ENFORCE}{text}");
    fs::write(&policy, &excused).unwrap();
    let simulated = json(&agent, &simulate);
    assert_eq!(
        simulated["refused"].as_array().unwrap().len(),
        0,
        "{simulated}"
    );
    assert_eq!(
        simulated["excepted"].as_array().unwrap().len(),
        1,
        "{simulated}"
    );
    assert_eq!(
        simulated["unused"].as_array().unwrap().len(),
        0,
        "{simulated}"
    );
    let (_, _, code) = agent.told(&simulate).unwrap();
    assert_eq!(code, Some(0));
    agent.set_policy(&excused).unwrap();
    assert_eq!(login(&server, &net.app, USER), None);
    assert_eq!(login(&server, &net.legacy, USER), Some(3159));
    assert_eq!(login(&server, &net.app, OPEN_USER), Some(3159));
}

#[test]
fn the_daemon_keeps_it_and_a_kill_loses_nothing() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let port = free_port();
    let policy = format!("{OBSERVE}\npersist = true\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    let mut agent = Agent::start(&policy).unwrap();
    assert_eq!(login(&site.server, &site.net.app, USER), None);
    // No command has asked yet: it is the daemon, confined as it is.
    wait::until_true("the daemon's history", PATIENCE, || {
        Ok(scrape(port)?.contains("musttls_history_clients 1\n"))
    })
    .with_context(|| agent.log().unwrap())
    .unwrap();
    let page = scrape(port).unwrap();
    assert!(page.contains("musttls_history_errors_total 0\n"), "{page}");
    let status = agent.status().unwrap();
    let history = &status["history"];
    assert_eq!(
        (&history["clients"], &history["sessions"]),
        (&1.into(), &1.into())
    );
    assert_eq!(history.get("problem"), None, "{history}");
    for _ in 0..2 {
        agent.kill().unwrap();
        agent.start_again().unwrap();
        assert_eq!(login(&site.server, &site.net.app, USER), None);
        site.tls_passes().unwrap();
    }
    agent
        .await_records("the sessions", 5, Record::is_session)
        .unwrap();
    let sessions = agent
        .records()
        .unwrap()
        .iter()
        .filter(|record| record.is_session())
        .count();
    await_clients(&agent, u64::try_from(sessions).unwrap(), |_| true);
    let state = json(&agent, &["history", "--json"]);
    assert_eq!(state["garbage"], 0, "{state}");
    assert_eq!(state["behind"], 0, "{state}");
    assert_eq!(state["holes"].as_array().unwrap().len(), 0, "{state}");
}

#[test]
fn a_damaged_index_is_made_anew_and_the_daemon_goes_on() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let mut agent = Agent::start(OBSERVE).unwrap();
    assert_eq!(login(&site.server, &site.net.app, USER), None);
    await_clients(&agent, 1, plaintext);
    // The file and its journal, which the daemon has open: the journal alone would mend the file.
    let index = agent.home().history();
    for path in [index.clone(), index.with_extension("db-wal")] {
        fs::write(&path, "no database ".repeat(10_000)).unwrap();
    }
    let (text, errors, code) = agent.told(&["clients"]).unwrap();
    assert_eq!(code, Some(0), "{errors}");
    assert!(errors.contains("was made anew"), "{errors}");
    assert!(text.contains(USER), "{text}");
    assert_eq!(login(&site.server, &site.net.app, USER), None);
    await_clients(&agent, 2, plaintext);
    // And between two agents.
    agent.terminate().unwrap();
    fs::write(&index, "no database ".repeat(10_000)).unwrap();
    agent.start_again().unwrap();
    wait::until_true("the daemon to say so", PATIENCE, || {
        Ok(agent.log()?.contains("was made anew"))
    })
    .unwrap();
    assert_eq!(login(&site.server, &site.net.app, USER), None);
    await_clients(&agent, 3, plaintext);
    let (_, _, code) = agent.told(&["history", "rebuild"]).unwrap();
    assert_eq!(code, Some(0));
    await_clients(&agent, 3, plaintext);
    assert!(!agent.log().unwrap().contains("panicked"));
}

#[test]
fn a_rotation_loses_nothing_and_counts_nothing_twice() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(OBSERVE).unwrap();
    for round in 1..=3 {
        assert_eq!(login(&site.server, &site.net.app, USER), None);
        await_clients(&agent, round * 2 - 1, plaintext);
        let audit = agent.home().audit();
        fs::rename(audit, audit.with_extension(format!("jsonl.{}", 10 - round))).unwrap();
        // Into the old file, until the agent is told.
        assert_eq!(login(&site.server, &site.net.app, USER), None);
        await_clients(&agent, round * 2, plaintext);
        agent.signal(Signal::USR1).unwrap();
        wait::until_true("the new audit file", PATIENCE, || Ok(audit.exists())).unwrap();
    }
    let state = json(&agent, &["history", "--json"]);
    assert_eq!(state["sessions"], 6, "{state}");
    assert_eq!(state["holes"].as_array().unwrap().len(), 0, "{state}");
}

/// Rotates the records of `agent` as the package has it done, but for the unit that is told.
fn logrotate(agent: &Agent) {
    let audit = agent.home().audit();
    let told = "systemctl kill --kill-who=main --signal=SIGUSR1 musttls.service";
    let packaged = include_str!("../../packaging/musttls.logrotate");
    assert!(packaged.contains(told) && packaged.contains("/var/log/musttls/audit.jsonl {"));
    let rules = packaged
        .replace("/var/log/musttls/audit.jsonl", &audit.to_string_lossy())
        .replace(told, &format!("kill -USR1 {}", agent.pid()));
    let file = audit.with_file_name("logrotate.conf");
    fs::write(&file, rules).unwrap();
    let state = audit.with_file_name("logrotate.state");
    let output = Command::new("/usr/sbin/logrotate")
        .args(["--force", "--state"])
        .args([&state, &file])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    wait::until_true("the new audit file", PATIENCE, || Ok(audit.exists())).unwrap();
}

/// The numbers of the records that `events` shows with `args`, and what it complains of.
fn events(agent: &Agent, args: &[&str]) -> (Vec<String>, String) {
    let (text, errors, code) = agent.told(&[&["events", "--json"], args].concat()).unwrap();
    assert_eq!(code, Some(0), "{errors}");
    let numbers = text.lines().map(|line| {
        let record: Value = serde_json::from_str(line).unwrap();
        record["metadata"]["uid"].as_str().unwrap().to_owned()
    });
    (numbers.collect(), errors)
}

fn set_modified(path: &Path, age: Duration) {
    let file = fs::File::options().append(true).open(path).unwrap();
    file.set_modified(SystemTime::now() - age).unwrap();
}

#[test]
fn what_logrotate_has_compressed_is_read_like_the_rest() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(OBSERVE).unwrap();
    let audit = agent.home().audit().to_owned();
    let part = |number: &str| audit.with_extension(format!("jsonl.{number}"));
    let mut first = None;
    for round in 1..=4 {
        for _ in 0..3 {
            assert_eq!(login(&site.server, &site.net.app, USER), None);
        }
        await_clients(&agent, round * 3, plaintext);
        first.get_or_insert_with(|| events(&agent, &[]).0);
        if round < 4 {
            logrotate(&agent);
        }
    }
    let first = first.unwrap();
    for name in ["1", "2.gz", "3.gz"] {
        assert!(part(name).exists(), "{name}");
    }
    // Nothing twice, as the daemon has read it over all of that, and the same from the files alone.
    let clients = json(&agent, &["clients", "--json"]);
    let state = json(&agent, &["history", "--json"]);
    assert_eq!(
        (&state["sessions"], &state["behind"]),
        (&12.into(), &0.into()),
        "{state}"
    );
    assert_eq!(state["holes"], Value::Array(Vec::new()), "{state}");
    let (_, errors, code) = agent.told(&["history", "rebuild"]).unwrap();
    assert_eq!((errors.as_str(), code), ("", Some(0)));
    assert_eq!(json(&agent, &["clients", "--json"]), clients);
    let rebuilt = json(&agent, &["history", "--json"]);
    assert_eq!(
        (&rebuilt["sessions"], &rebuilt["holes"]),
        (&state["sessions"], &state["holes"])
    );

    // Each record once and in its order, those of the oldest file first.
    let (all, errors) = events(&agent, &["--since", "1h"]);
    assert_eq!(errors, "");
    assert!(all.starts_with(&first), "{all:?} after {first:?}");
    let numbers: Vec<u64> = all
        .iter()
        .map(|uid| uid.rsplit_once('/').unwrap().1.parse().unwrap())
        .collect();
    let expected: Vec<u64> = (1..=u64::try_from(all.len()).unwrap()).collect();
    assert_eq!(numbers, expected);
    for count in [1, all.len() - 1, 1000] {
        let last = &all[all.len().saturating_sub(count)..];
        assert_eq!(events(&agent, &["-n", &count.to_string()]).0, last);
    }
    let (text, errors, _) = agent.told(&["why", first.last().unwrap()]).unwrap();
    assert!(
        text.contains(first.last().unwrap()) && text.contains("then: "),
        "{text}{errors}"
    );

    // One that is too old for what is asked is not looked into, damaged or not; else it is named, and what it has is shown.
    let whole = fs::read(part("3.gz")).unwrap();
    fs::write(part("3.gz"), &whole[..whole.len() - 4]).unwrap();
    fs::write(part("9.zst"), "no matter what").unwrap();
    for name in ["3.gz", "9.zst"] {
        set_modified(&part(name), Duration::from_hours(240));
    }
    let (recent, errors) = events(&agent, &["--since", "1d"]);
    assert_eq!((&recent[..], errors.as_str()), (&all[first.len()..], ""));
    let (again, errors) = events(&agent, &[]);
    assert_eq!(again, all);
    let named = |errors: &str| {
        let is_named = |name: &str, what: &str| {
            errors.contains(&format!("{} is {what}", part(name).display()))
        };
        assert!(
            is_named("3.gz", "damaged") && is_named("9.zst", "left out"),
            "{errors}"
        );
        assert!(errors.matches("help: ").count() >= 2, "{errors}");
    };
    named(&errors);
    for command in [
        &["clients"][..],
        &["history"],
        &["history", "rebuild"],
        &["why", "999999"],
    ] {
        let (_, errors, _) = agent.told(command).unwrap();
        named(&errors);
    }
    assert_eq!(json(&agent, &["clients", "--json"]), clients);
    assert_eq!(login(&site.server, &site.net.app, USER), None);
    wait::until_true("the daemon to say so", PATIENCE, || {
        Ok(agent.log()?.contains("3.gz is damaged"))
    })
    .with_context(|| agent.log().unwrap())
    .unwrap();
}

#[test]
fn names_that_disturb_a_terminal_are_shown_safely() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(OBSERVE).unwrap();
    let at = site.server.at(site.net.app.db_v4());
    let (mut raw, _) = Raw::greeted(&site.net.app, at).unwrap();
    let login = LoginPacket::new("bad12345user").attribute("_client_name", "\u{1b}[31mdriver\u{7}");
    let mut packet = login.packet_41();
    let place = packet
        .windows(5)
        .position(|bytes| bytes == b"12345")
        .unwrap();
    packet[place..place + 5].copy_from_slice(b"\x1b[2J\xff");
    raw.send(&packet).unwrap();
    await_clients(&agent, 1, plaintext);
    for args in [
        &["clients"][..],
        &["clients", "--json"],
        &[
            "simulate",
            "--policy",
            agent.home().config().to_str().unwrap(),
        ],
        &["learn", "--owner", OWNER],
        &["report"],
    ] {
        let output = agent.musttls(args).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("bad\u{fffd}[2J\u{fffd}user"),
            "{args:?}: {text}"
        );
        assert!(!text.contains(['\u{1b}', '\u{7}']), "{args:?}: {text:?}");
    }
    // Nobody can write such a name into a policy: no exception is proposed.
    let (text, _, _) = agent.told(&["learn", "--owner", OWNER]).unwrap();
    assert!(
        text.contains("# Not proposed") && !text.contains("\n[[exception]]"),
        "{text}"
    );
}

#[test]
fn a_report_is_a_page_in_a_file_and_no_text_for_a_terminal() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(OBSERVE).unwrap();
    assert_eq!(login(&site.server, &site.net.app, USER), None);
    let markup = site.server.at(site.net.app.db_v4());
    let (mut raw, _) = Raw::greeted(&site.net.app, markup).unwrap();
    raw.send(&LoginPacket::new("<script>alert('1')</script>").packet_41())
        .unwrap();
    await_clients(&agent, 2, plaintext);

    let file = agent.home().file("report.html");
    let write = [
        "report",
        "--since",
        "1h",
        "--output",
        file.to_str().unwrap(),
    ];
    let (text, said, code) = agent.told(&write).unwrap();
    assert_eq!((text.as_str(), code), ("", Some(0)), "{said}");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o640);
    let page = fs::read_to_string(&file).unwrap();
    assert!(page.contains("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;"));
    assert!(!page.contains("<script"));
    assert!(
        page.contains("<h1>0 % of the sessions over TCP used TLS</h1>")
            && page.contains("2 clients</b> would be refused if every server were in enforce mode"),
        "{page}"
    );
    // An agent runs with this policy.
    assert!(page.contains(", version 1, in force"), "{page}");
    let (text, _, _) = agent.told(&["report", "--since", "1h"]).unwrap();
    assert!(text.starts_with("<!DOCTYPE html>") && text.ends_with("</html>\n"));

    let (binary, config) = (agent_binary().unwrap(), agent.home().config());
    let words = [&binary, Path::new("report"), Path::new("--config"), &config];
    let mut terminal = Terminal::run(&words, (80, 24)).unwrap();
    let status = terminal.await_end(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(2));
    let said = terminal.screen().unwrap().text();
    assert!(
        said.contains("which a terminal does not show") && !said.contains('<'),
        "{said}"
    );
}

#[test]
fn without_a_file_of_records_there_is_none_and_it_is_said() {
    let _site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let home = musttls_tests::agent::Home::new()
        .unwrap()
        .audit_to("/dev/null");
    home.configure(OBSERVE).unwrap();
    let agent = Agent::start_in(home).unwrap();
    assert!(
        agent
            .log()
            .unwrap()
            .contains("who connects how is not kept")
    );
    let (status, _, _) = agent.told(&["status"]).unwrap();
    assert!(
        status.contains("\n          there is no history: audit records go to /dev/null\n"),
        "{status}"
    );
    let (_, errors, code) = agent.told(&["clients"]).unwrap();
    assert_eq!(code, Some(1));
    assert!(
        errors.contains("/dev/null") && errors.contains("help: "),
        "{errors}"
    );
}
