//! What is answered, in words.

use super::*;

use std::fs;

use clap::Parser as _;

use crate::cli::{Cli, Command};

const NOW: &str = "2026-11-23T12:00:00Z";

const POLICY: &str = r#"
mode = "enforce"
trusted_proxies = ["10.9.0.0/16"]
[[server]]
name = "orders"
ports = [3306]
[[server]]
name = "billing"
ports = [3307]
mode = "observe"
[[exception]]
name = "etl-batch"
source = ["10.1.0.0/16"]
user = ["etl"]
expires = 2026-11-01
owner = "dba@example.com"
reason = "DB-812"
[[exception]]
name = "old-etl"
source = ["10.3.0.0/16"]
user = ["etl"]
server = "orders"
expires = 2027-03-31
owner = "dba@example.com"
reason = "DB-813"
"#;

fn config() -> Config {
    let now = NOW.parse().unwrap();
    let path = Path::new("/etc/musttls/musttls.toml");
    Config::parse(path, POLICY, now, PastDates::Warn)
        .unwrap()
        .config
}

fn args(line: &str) -> WhyArgs {
    let words = ["musttls", "why"].into_iter().chain(line.split(' '));
    let Command::Why(args) = Cli::try_parse_from(words).unwrap().command else {
        panic!()
    };
    *args
}

fn answer(line: &str) -> Answer {
    let args = args(line);
    let Target::Address(address) = args.target else {
        panic!()
    };
    of_address(&config(), &args, address, NOW.parse().unwrap()).unwrap()
}

#[test]
fn each_server_that_differs_has_its_answer() {
    let answer = answer("10.1.2.3:51884 etl");
    assert_eq!(
        answer.to_string(),
        "a plaintext login from 10.1.2.3 as user etl\n\
         \x20 on default: refused: the mode is enforce, and no exception allows a login in plaintext\n\
         \x20   exception etl-batch allows 10.1.0.0/16 as user etl, but it ended on 2026-11-01\n\
         \x20 on orders: refused: the mode is enforce, and no exception allows a login in plaintext\n\
         \x20   exception etl-batch allows 10.1.0.0/16 as user etl, but it ended on 2026-11-01\n\
         \x20   exception old-etl allows 10.3.0.0/16 as user etl on server orders, but not 10.1.2.3\n\
         \x20 on billing: passes: server billing is in observe mode; in enforce mode it would be refused: no exception allows a login in plaintext\n\
         \x20   exception etl-batch allows 10.1.0.0/16 as user etl, but it ended on 2026-11-01\n\
         \x20 by /etc/musttls/musttls.toml, as it would be in force now\n\
         \x20 help: turn on TLS in the client, `musttls clients` says how for its driver; or excuse it for a time: musttls except add\n"
    );
    let fates: Vec<_> = answer.now.iter().map(|decision| decision.fate).collect();
    assert_eq!(fates, ["refused", "refused", "observed"]);
    let alike = self::answer("10.1.2.3 app").now;
    assert_eq!(alike[0].servers, ["default", "orders"]);
    assert_eq!(alike[1].servers, ["billing"]);
}

#[test]
fn the_exception_that_allows_is_named_with_who_answers_for_it() {
    let text = answer("10.3.0.7 etl --port 3306").to_string();
    assert!(
        text.contains(
            "on orders: passes: exception old-etl allows 10.3.0.0/16 as user etl on server orders; \
             it ends on 2027-03-31; dba@example.com answers for it: DB-813\n"
        ),
        "{text}"
    );
    assert!(!text.contains("help: "), "{text}");
    let text = answer("10.3.0.7 --server orders").to_string();
    assert!(text.contains("whoever the user is\n"), "{text}");
    assert!(
        text.contains("on server orders, but for that user only\n"),
        "{text}"
    );
    let text = answer("10.3.0.7 etl --port 3307").to_string();
    assert!(text.contains("but this is server billing\n"), "{text}");
    let text = answer("10.9.0.1 etl").to_string();
    assert!(text.contains("a trusted proxy"), "{text}");
}

#[test]
fn servers_have_names() {
    let line = args("10.3.0.7 --server order\u{1b}s");
    let error =
        of_address(&config(), &line, [10, 3, 0, 7].into(), NOW.parse().unwrap()).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("`order\u{fffd}s`") && text.contains("default, orders, billing"),
        "{text}"
    );
}

#[test]
fn targets_are_addresses_and_what_records_are_known_by() {
    let address = |text: &str| Ok(Target::Address(text.parse().unwrap()));
    assert_eq!(Target::parse("::ffff:10.0.0.1"), address("10.0.0.1"));
    assert_eq!(Target::parse("[2001:db8::1]:3306"), address("2001:db8::1"));
    for event in ["187", "b00t/5f1c/187"] {
        assert_eq!(
            Target::parse(event),
            Ok(Target::Event(Event::parse(event).unwrap()))
        );
    }
    for (wrong, told) in [
        ("10.0.0.0/8", "a network"),
        ("db1", "neither"),
        ("/1", "neither"),
        ("b00t/", "neither"),
        ("+5", "neither"),
        ("", "neither"),
    ] {
        let error = Target::parse(wrong).unwrap_err();
        assert!(error.contains(told), "{wrong}: {error}");
    }
}

#[test]
fn a_record_is_told_as_it_was_then_and_as_it_would_be_now() {
    let directory = tempfile::tempdir().unwrap();
    let audit = directory.path().join("audit.jsonl");
    let page = include_str!("../../../docs/audit-records.md");
    let lines: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("{\"class_uid\""))
        .collect();
    // The older half was rotated away; a former run of the agent used the same numbers.
    let (older, newer) = lines.split_at(7);
    let former = older
        .join("\n")
        .replace("b00t/5f1c", "b00t/0000")
        .replace("app_rw", "former");
    fs::write(directory.path().join("audit.jsonl.2"), former + "\n").unwrap();
    fs::write(
        directory.path().join("audit.jsonl.1"),
        older.join("\n") + "\nno JSON\n",
    )
    .unwrap();
    fs::write(&audit, newer.join("\n") + "\n").unwrap();
    let config = Config {
        audit: crate::config::AuditTarget::File(audit),
        ..config()
    };
    let now = NOW.parse().unwrap();
    let path = Path::new("p.toml");
    let of = |event: &str| of_event(&config, path, &Event::parse(event).unwrap(), now);

    let answer = of("185").unwrap();
    assert_eq!(
        answer.to_string(),
        "2026-11-22 05:17:58.391 UTC, b00t/5f1c/185: plaintext login from 10.20.4.17:51884 as user app_rw by mysqldump to server orders, port 3306\n\
         \x20 then: refused by rule require-tls: no exception allows a login in plaintext (no-client-ssl); its client was told after 184 us, \
         and the server took it for a failed login and let go (landed); by version 42 of /etc/musttls/musttls.toml, in enforce mode\n\
         \x20 now:  refused: the mode is enforce, and no exception allows a login in plaintext\n\
         \x20 by p.toml, as it would be in force now\n\
         \x20 help: turn on TLS in the client, `musttls clients` says how for its driver; or excuse it for a time: musttls except add\n"
    );
    assert_eq!(answer.event.unwrap()["metadata"]["uid"], "b00t/5f1c/185");
    assert!(
        of("b00t/0000/185")
            .unwrap()
            .to_string()
            .contains("as user former by")
    );

    // Each kind of record has its words.
    for line in &lines {
        let record: Value = serde_json::from_str(line).unwrap();
        let uid = record["metadata"]["uid"].as_str().unwrap();
        let answer = of(uid).unwrap();
        assert_eq!(answer.event.as_ref(), Some(&record));
        let is_session = record["class_uid"] == 3002;
        assert_eq!(answer.then.is_some(), is_session, "{answer}");
        assert_eq!(answer.now.len(), usize::from(is_session), "{answer}");
    }
    let told = |event: &str| of(event).unwrap().to_string();
    assert!(told("186").contains("then: passed, since observe mode only reports; rule require-tls would refuse it: no exception"));
    assert!(told("187").contains("then: passed: exception legacy-etl allowed it; by"));
    assert!(told("189").contains("now:  passes: a Unix socket is secure\n"));
    assert!(told("191").contains("its TLS version is below what `require` asks for"));
    assert!(told("193").contains("went on: it is older than the gate"));
    assert!(told("212").ends_with(": server orders: from enforce to observe mode (panic)\n"));

    let error = crate::error::text(&of("4711").unwrap_err());
    assert!(
        error.contains("no record is known by `4711`") && error.contains("help: "),
        "{error}"
    );
    drop(directory);
    let error = crate::error::text(&of("4711").unwrap_err());
    assert!(
        error.contains("there is no such file\n  help: start the agent"),
        "{error}"
    );
}
