//! Sessions that were established before the gate was there.

#![cfg(test)]

use std::time::Duration;

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::netns::Net;
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{OPEN_USER, Options, Product, Server};
use musttls_tests::site::Site;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{REFUSED, query};
use serde_json::Value;

const KEEP: &str = "persist = true\nmode = \"enforce\"";
const REFUSE: &str = "mode = \"enforce\"\nexisting = \"refuse-plaintext\"";
/// How long nothing may happen to a session.
const A_WHILE: Duration = Duration::from_secs(2);

fn site(product: Product) -> Site {
    Site::new(&Options::new(product)).unwrap()
}

/// A session in the clear, logged in.
fn logged_in(site: &Site) -> Raw {
    let mut raw = site.plaintext().unwrap();
    assert!(raw.receive().unwrap().is_ok());
    raw
}

fn handshake_errors(site: &Site) -> (u64, u64) {
    let counts = evidence::counts(&site.server, site.net.app.v4()).unwrap();
    (counts.handshake_errors, counts.connect_errors)
}

fn lives<S: std::io::Read + std::io::Write>(raw: &mut Raw<S>) {
    assert_eq!(raw.rows("SELECT 41 + 1").unwrap(), [["42"]]);
}

/// The listed session of a client at this port: what it speaks, and how sure that is.
fn listed(status: &Value, port: u16) -> Option<(String, String)> {
    let sessions = status["older"]["sessions"].as_array().unwrap();
    let session = sessions.iter().find(|session| {
        let client = session["client"].as_str().unwrap();
        client.ends_with(&format!(":{port}"))
    })?;
    let word = |name: &str| session[name].as_str().unwrap_or("-").to_owned();
    Some((word("speaks"), word("certainty")))
}

#[track_caller]
fn await_listed(agent: &Agent, port: u16, speaks: &str, certainty: &str) {
    let wanted = (speaks.to_owned(), certainty.to_owned());
    let mut last = None;
    let result = wait::until_true(&format!("{speaks} at port {port}"), PATIENCE, || {
        last = listed(&agent.status()?, port);
        Ok(last.as_ref() == Some(&wanted))
    });
    assert!(result.is_ok(), "{result:?}, but {last:?}");
}

fn of_port(port: u16) -> impl Fn(&Record) -> bool {
    move |record| {
        record.source_port() == Some(port.into()) && !record.at("/unmapped/older_than").is_null()
    }
}

#[test]
fn older_sessions_are_listed_told_apart_and_kept() {
    for product in Product::all() {
        let site = site(product);
        let mut tls = site.tls().unwrap();
        let mut plaintext = logged_in(&site);
        let mut idle = logged_in(&site);
        let (tls_port, plaintext_port, idle_port) = (
            tls.local().unwrap().port(),
            plaintext.local().unwrap().port(),
            idle.local().unwrap().port(),
        );
        let mut agent = Agent::start(KEEP).unwrap();
        for port in [tls_port, plaintext_port, idle_port] {
            await_listed(&agent, port, "unknown", "-");
        }
        let session = &agent.status().unwrap()["older"]["sessions"][0];
        assert_eq!(
            session["pid"].as_u64(),
            Some(site.server.pid().into()),
            "{session}"
        );
        assert!(session["age_at_least_s"].as_u64() <= session["age_at_most_s"].as_u64());

        lives(&mut plaintext);
        await_listed(&agent, plaintext_port, "plaintext", "likely");
        for _ in 0..3 {
            lives(&mut plaintext);
            lives(&mut tls);
        }
        await_listed(&agent, plaintext_port, "plaintext", "certain");
        await_listed(&agent, tls_port, "tls", "certain");
        await_listed(&agent, idle_port, "unknown", "-");
        let kept = agent
            .await_record("of the session in the clear", of_port(plaintext_port))
            .unwrap();
        assert_eq!(kept.text("/unmapped/verdict"), "kept", "{}", kept.line);
        assert_eq!(*kept.at("/is_cleartext"), Value::Bool(true));
        assert_eq!(kept.text("/unmapped/older_than"), "gate");
        let secure = agent
            .await_record("of the TLS session", of_port(tls_port))
            .unwrap();
        assert_eq!(secure.transport(), "tls", "{}", secure.line);
        let text = agent.musttls(&["status"]).unwrap();
        let text = String::from_utf8_lossy(&text.stdout);
        assert!(
            text.contains(
                "older than the gate or its enforcement: 1 in the clear, 1 TLS, 1 unknown"
            ),
            "{text}"
        );

        // The next agent knows them, and nobody else: a session that the gate has judged is none of them.
        let mut judged = site.tls().unwrap();
        let judged_port = judged.local().unwrap().port();
        agent.kill().unwrap();
        agent.start_again().unwrap();
        await_listed(&agent, plaintext_port, "plaintext", "certain");
        await_listed(&agent, tls_port, "tls", "certain");
        await_listed(&agent, idle_port, "unknown", "-");
        assert_eq!(listed(&agent.status().unwrap(), judged_port), None);
        lives(&mut judged);
        lives(&mut idle);
        drop((tls, plaintext, idle));
        wait::until_true("an empty list", PATIENCE, || {
            let older = agent.status()?["older"]["sessions"].clone();
            Ok(older.as_array().is_some_and(Vec::is_empty))
        })
        .unwrap();
    }
}

#[test]
fn older_plaintext_session_is_refused_at_a_command_if_the_policy_says_so() {
    for product in Product::all() {
        let site = site(product);
        let mut tls = site.tls().unwrap();
        let mut plaintext = logged_in(&site);
        let port = plaintext.local().unwrap().port();
        let before = handshake_errors(&site);
        let agent = Agent::start(REFUSE).unwrap();
        await_listed(&agent, port, "unknown", "-");
        // The first command passes: it is not certain yet what it is.
        lives(&mut plaintext);
        plaintext.send(&query("SELECT 'must not run'")).unwrap();
        let answer = plaintext.receive().unwrap();
        let error = answer.error().unwrap();
        assert_eq!(error.number, REFUSED, "{error:?}");
        let Next::Packet(packet) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(packet.sequence, 1);
        let end = plaintext.receive().unwrap();
        assert!(matches!(end, Next::Closed | Next::Reset), "{end:?}");
        for _ in 0..3 {
            lives(&mut tls);
        }
        let record = agent.await_record("of the refusal", of_port(port)).unwrap();
        assert!(record.is_denied(), "{}", record.line);
        assert_eq!(record.text("/unmapped/reason"), "older-plaintext");
        assert_eq!(record.text("/status_code"), "3159", "{}", record.line);
        wait::until_true("the server to let go", PATIENCE, || {
            Ok(evidence::connections(&site.server)?.len() == 1)
        })
        .unwrap();
        assert!(!site.server.general_log().unwrap().contains("must not run"));
        assert_eq!(handshake_errors(&site), before);
        assert_eq!(listed(&agent.status().unwrap(), port), None);
    }
}

#[test]
fn a_policy_that_comes_later_refuses_and_one_that_only_observes_does_not() {
    let site = site(Product::MariaDb);
    site.server
        .query(&format!(
            "CREATE TABLE shop.fresh (n INT PRIMARY KEY) ENGINE = InnoDB; \
             GRANT ALL ON shop.* TO '{OPEN_USER}'@'%'"
        ))
        .unwrap();
    let mut plaintext = logged_in(&site);
    let port = plaintext.local().unwrap().port();
    let agent = Agent::start(KEEP).unwrap();
    await_listed(&agent, port, "unknown", "-");
    for sql in ["BEGIN", "INSERT INTO shop.fresh VALUES (1)"] {
        plaintext.send(&query(sql)).unwrap();
        assert!(plaintext.receive().unwrap().is_ok(), "{sql}");
    }
    for _ in 0..3 {
        lives(&mut plaintext);
    }
    await_listed(&agent, port, "plaintext", "certain");
    agent
        .set_policy("mode = \"observe\"\nexisting = \"refuse-plaintext\"")
        .unwrap();
    for _ in 0..3 {
        lives(&mut plaintext);
    }
    // Its port has settings of its own by now.
    agent
        .set_policy(&format!(
            "{REFUSE}\n[[server]]\nname = \"pool\"\nports = [{}]\nmode = \"observe\"",
            site.server.at(site.net.app.db_v4()).port()
        ))
        .unwrap();
    for _ in 0..3 {
        lives(&mut plaintext);
    }
    // An exception that names no users covers it.
    agent
        .set_policy(&format!(
            "{REFUSE}\n[[exception]]\nname = \"legacy\"\nsource = [\"{}/32\"]\n\
             owner = \"dba@example.com\"\nreason = \"old\"\nexpires = 2099-01-01\n",
            site.net.app.v4()
        ))
        .unwrap();
    for _ in 0..3 {
        lives(&mut plaintext);
    }
    let spared = agent.musttls(&["kill-plaintext", "--execute"]).unwrap();
    let spared = String::from_utf8(spared.stdout).unwrap();
    assert!(spared.contains("allowed by legacy: stays"), "{spared}");
    lives(&mut plaintext);
    let record = agent
        .await_record("of the exception", |record| record.rule() == "legacy")
        .unwrap();
    assert!(of_port(port)(&record), "{}", record.line);
    agent.set_policy(REFUSE).unwrap();
    plaintext.send(&query("SELECT 1")).unwrap();
    let answer = plaintext.receive().unwrap();
    assert_eq!(answer.error_number(), Some(REFUSED), "{answer:?}");
    // The server has rolled its transaction back, and holds no lock.
    wait::until_true("the server to let go", PATIENCE, || {
        Ok(evidence::connections(&site.server)?.is_empty())
    })
    .unwrap();
    let rows = site
        .server
        .query("INSERT INTO shop.fresh VALUES (1); SELECT COUNT(*) FROM shop.fresh")
        .unwrap();
    assert_eq!(rows.trim(), "1");
}

/// Who enforces after a time of observing has the sessions of that time still there.
#[test]
fn sessions_that_were_let_through_are_found_when_their_server_is_enforced() {
    for product in Product::all() {
        let site = site(product);
        let agent = Agent::start("mode = \"observe\"").unwrap();
        let mut tls = site.tls().unwrap();
        let mut plaintext = logged_in(&site);
        let mut silent = logged_in(&site);
        let ports = [&plaintext, &silent].map(|raw| raw.local().unwrap().port());
        let would = |port: u16| {
            move |record: &Record| {
                record.source_port() == Some(port.into())
                    && record.text("/unmapped/verdict") == "would_deny"
            }
        };
        for port in ports {
            agent.await_record("of the login", would(port)).unwrap();
            assert_eq!(listed(&agent.status().unwrap(), port), None);
        }
        let before = handshake_errors(&site);

        agent.set_policy(KEEP).unwrap();
        for port in ports {
            await_listed(&agent, port, "plaintext", "certain");
        }
        let status = agent.status().unwrap();
        let sessions = status["older"]["sessions"].as_array().unwrap();
        assert_eq!(sessions.len(), 2, "{status}");
        assert!(
            sessions.iter().all(|it| it["older_than"] == "enforcement"),
            "{status}"
        );
        lives(&mut plaintext);
        let kept = agent
            .await_record("that it goes on", of_port(ports[0]))
            .unwrap();
        assert_eq!(kept.text("/unmapped/verdict"), "kept", "{}", kept.line);
        assert_eq!(kept.text("/unmapped/older_than"), "enforcement");
        lives(&mut plaintext);

        agent.set_policy(REFUSE).unwrap();
        for raw in [&mut plaintext, &mut silent] {
            raw.send(&query("SELECT 'must not run'")).unwrap();
            let answer = raw.receive().unwrap();
            assert_eq!(answer.error_number(), Some(REFUSED), "{answer:?}");
        }
        for port in ports {
            let record = agent
                .await_record("of the refusal", |it| of_port(port)(it) && it.is_denied())
                .unwrap();
            assert_eq!(record.text("/unmapped/older_than"), "enforcement");
        }
        lives(&mut tls);
        wait::until_true("the server to let go", PATIENCE, || {
            Ok(evidence::connections(&site.server)?.len() == 1)
        })
        .unwrap();
        assert!(!site.server.general_log().unwrap().contains("must not run"));
        assert_eq!(handshake_errors(&site), before);
    }
}

/// The next agent enforces what the former one has observed.
#[test]
fn sessions_that_a_former_agent_let_through_are_found_by_one_that_enforces() {
    let site = site(Product::MariaDb);
    let mut agent = Agent::start("persist = true\nmode = \"observe\"").unwrap();
    let mut plaintext = logged_in(&site);
    let port = plaintext.local().unwrap().port();
    agent.kill().unwrap();
    agent.home().configure(KEEP).unwrap();
    agent.start_again().unwrap();
    await_listed(&agent, port, "plaintext", "certain");
    let kill = agent.musttls(&["kill-plaintext", "--execute"]).unwrap();
    assert!(kill.status.success(), "{kill:?}");
    let end = plaintext.receive().unwrap();
    assert!(matches!(end, Next::Closed | Next::Reset), "{end:?}");
    agent
        .await_record("of the end", |record| {
            of_port(port)(record)
                && record.text("/unmapped/refusal/outcome") == "killed"
                && record.text("/unmapped/older_than") == "enforcement"
        })
        .unwrap();
}

/// Nobody answers it, but its server does not keep its locks until `wait_timeout`.
#[test]
fn session_that_is_held_without_an_agent_ends_with_its_client() {
    let site = site(Product::MariaDb);
    let mut held = logged_in(&site);
    let port = held.local().unwrap().port();
    let mut agent = Agent::start(KEEP).unwrap();
    await_listed(&agent, port, "unknown", "-");
    for _ in 0..3 {
        lives(&mut held);
    }
    agent
        .set_policy(&format!("persist = true\n{REFUSE}"))
        .unwrap();
    agent.kill().unwrap();
    held.send(&query("SELECT 'must not run'")).unwrap();
    let next = held.receive_within(A_WHILE).unwrap();
    assert!(matches!(next, Next::Silence), "{next:?}");
    assert_eq!(evidence::connections(&site.server).unwrap().len(), 1);
    held.reset().unwrap();
    wait::until_true("the server to let go", PATIENCE, || {
        Ok(evidence::connections(&site.server)?.is_empty())
    })
    .unwrap();
    assert!(!site.server.general_log().unwrap().contains("must not run"));

    agent.start_again().unwrap();
    let record = agent
        .await_record("of the denial", |record| {
            of_port(port)(record) && record.is_denied()
        })
        .unwrap();
    let outcome = record.text("/unmapped/refusal/outcome");
    assert_eq!(outcome, "gone", "{}", record.line);
}

#[test]
fn kill_plaintext_ends_what_is_certain_and_only_on_command() {
    for product in Product::all() {
        let site = site(product);
        let mut tls = site.tls().unwrap();
        let mut plaintext = logged_in(&site);
        let mut likely = logged_in(&site);
        let mut idle = logged_in(&site);
        let ports = [&plaintext, &likely].map(|raw| raw.local().unwrap().port());
        let tls_port = tls.local().unwrap().port();
        let before = handshake_errors(&site);
        let agent = Agent::start(KEEP).unwrap();
        for port in [ports[0], ports[1], tls_port] {
            await_listed(&agent, port, "unknown", "-");
        }
        lives(&mut likely);
        for _ in 0..3 {
            lives(&mut plaintext);
            lives(&mut tls);
        }
        await_listed(&agent, ports[0], "plaintext", "certain");
        let kill = |options: &[&str]| {
            let output = agent
                .musttls(&[&["kill-plaintext"], options].concat())
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let dry = kill(&[]);
        let line = |text: &str, port: u16| {
            let mut lines = text.lines();
            lines
                .find(|line| line.contains(&format!(":{port} ")))
                .unwrap_or_else(|| panic!("no port {port} in {text}"))
                .to_owned()
        };
        assert!(line(&dry, ports[0]).ends_with("would be ended"), "{dry}");
        assert!(line(&dry, ports[1]).ends_with("stays"), "{dry}");
        assert_eq!(dry.lines().count(), 2, "{dry}");
        lives(&mut plaintext);

        let done = kill(&["--execute"]);
        assert!(line(&done, ports[0]).ends_with("ended"), "{done}");
        let end = plaintext.receive().unwrap();
        assert!(matches!(end, Next::Closed | Next::Reset), "{end:?}");
        lives(&mut tls);
        lives(&mut idle);
        wait::until_true("the server to let go", PATIENCE, || {
            Ok(evidence::connections(&site.server)?.len() == 3)
        })
        .unwrap();
        let record = agent
            .await_record("of the end", |record| {
                record.text("/unmapped/refusal/outcome") == "killed"
            })
            .unwrap();
        assert!(of_port(ports[0])(&record), "{}", record.line);
        assert_eq!(handshake_errors(&site), before);
        drop(likely);
    }
}

#[test]
fn what_a_server_connects_to_itself_is_not_listed() {
    let net = Net::new().unwrap();
    let options = |id: u8| Options::new(Product::MariaDb).with(&format!("--server-id={id}"));
    let source = Server::start(&net.app, &options(1).with("--log-bin=binlog")).unwrap();
    let replica = Site {
        server: Server::start(&net.db, &options(2)).unwrap(),
        net,
    };
    source
        .query(&format!(
            "GRANT REPLICATION SLAVE ON *.* TO '{OPEN_USER}'@'%'"
        ))
        .unwrap();
    let at = source.at(replica.net.app.v4());
    replica
        .server
        .query(&format!(
            "CHANGE MASTER TO MASTER_HOST = '{}', MASTER_PORT = {}, MASTER_USER = '{}', \
             MASTER_CONNECT_RETRY = 1; START SLAVE IO_THREAD",
            at.ip(),
            at.port(),
            OPEN_USER,
        ))
        .unwrap();
    let connected = wait::until_true("the replica's connection", PATIENCE, || {
        Ok(evidence::connections(&source)?.len() == 1)
    });
    assert!(
        connected.is_ok(),
        "{}",
        replica.server.query("SHOW SLAVE STATUS").unwrap()
    );
    let agent = Agent::start(KEEP).unwrap();
    wait::until_true("the source's session", PATIENCE, || {
        let status = agent.status()?;
        let sessions = status["older"]["sessions"].as_array().unwrap().clone();
        Ok(sessions.len() == 1)
    })
    .unwrap();
    std::thread::sleep(wait::here(A_WHILE));
    let status = agent.status().unwrap();
    let pids: Vec<u64> = status["older"]["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|session| session["pid"].as_u64())
        .collect();
    assert_eq!(pids, [u64::from(source.pid())], "{status}");
    let login = Login::new(&replica.server, &replica.net.app, Tls::Required);
    let answer = Client::PyMySql.login(&replica.net.app, &login).unwrap();
    assert!(answer.is_in(), "{}", answer.text);
}
