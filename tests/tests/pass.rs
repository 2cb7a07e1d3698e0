//! Enforce mode: what passes untouched, and what the record of it says.

#![cfg(test)]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::client::{Client, Login, SocketSession, Tls};
use musttls_tests::evidence;
use musttls_tests::netns::{Host, Net};
use musttls_tests::raw::Raw;
use musttls_tests::server::{OPEN_USER, Options, Product, Server, USER};
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{REFUSED, ssl_request};

const ENFORCE: &str = "mode = \"enforce\"";

#[test]
fn tls_passes_and_its_record_agrees_with_the_server() {
    let net = Net::new().unwrap();
    for product in Product::releases() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        for client in [Client::MySqlCli, Client::PyMySql] {
            for (to, from) in [
                (net.app.db_v4(), net.app.v4()),
                (net.app.db_v6(), net.app.v6()),
            ] {
                for (tls, version) in [(Tls::V1_2, "TLSv1.2"), (Tls::V1_3, "TLSv1.3")] {
                    let of_this = |record: &Record| {
                        record.transport() == "tls"
                            && record.source() == Some(from)
                            && record.tls_version() == version
                    };
                    let records = agent.records().unwrap();
                    let before = records.iter().filter(|record| of_this(record)).count();
                    let login = Login::new(&server, &net.app, tls).to(to);
                    let answer = client.login(&net.app, &login).unwrap();
                    let session = answer.result.unwrap_or_else(|_| panic!("{}", answer.text));
                    assert_eq!(session.tls_version, version);
                    let records = agent
                        .await_records("the TLS session", before + 1, of_this)
                        .unwrap();
                    let record = records.last().unwrap();
                    assert_eq!(record.action(), Some(1), "{}", record.line);
                    assert_eq!(record.disposition(), Some(1), "{}", record.line);
                    assert_eq!(record.at("/is_cleartext").as_bool(), Some(false));
                    assert_eq!(record.tls_version(), session.tls_version, "{}", record.line);
                    let cipher = evidence::standard_name(&session.cipher).unwrap();
                    assert_eq!(record.tls_cipher(), cipher, "{}", record.line);
                }
            }
        }
    }
}

#[test]
fn every_client_passes_with_tls() {
    let net = Net::new().unwrap();
    for product in Product::releases() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        for client in Client::ALL {
            let login = Login::new(&server, &net.app, Tls::Required);
            let answer = client.login(&net.app, &login).unwrap();
            let session = answer.result.unwrap_or_else(|_| panic!("{}", answer.text));
            assert!(!session.cipher.is_empty(), "{client:?}");
        }
        let count = Client::ALL.len();
        let records = agent
            .await_records("TLS", count, |record| record.transport() == "tls")
            .unwrap();
        assert_eq!(records.len(), count, "one record a session");
        assert!(!agent.records().unwrap().iter().any(Record::is_denied));
    }
}

#[test]
fn unix_socket_passes_and_is_on_record_with_its_peer() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        unix_session_is_on_record(&server, Some(&net.db), 0);
    }
}

/// A container's server, reached by a client of the machine through a mounted directory: the server's
/// end of such a session belongs to the client's network namespace.
#[test]
fn unix_socket_of_another_network_namespace_is_on_record() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        unix_session_is_on_record(&server, None, 0);
    }
}

#[test]
fn unix_socket_of_another_user_is_on_record_with_that_user() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    unix_session_is_on_record(&server, Some(&net.db), 65534);
}

fn unix_session_is_on_record(server: &Server, host: Option<&Host>, uid: u32) {
    let agent = Agent::start(ENFORCE).unwrap();
    let client = SocketSession::start(server, host, uid).unwrap();
    let pid = u64::from(client.pid());
    let record = agent
        .await_record("the Unix session", |record| {
            record.number("/actor/process/pid") == Some(pid)
        })
        .unwrap();
    assert_eq!(
        client.finish("SELECT CURRENT_USER()").unwrap(),
        format!("{USER}@%")
    );
    let line = &record.line;
    assert_eq!(record.transport(), "unix", "{line}");
    assert_eq!(record.action(), Some(1), "{line}");
    assert_eq!(record.text("/actor/user/uid"), uid.to_string(), "{line}");
    let program = SocketSession::program(server.product());
    assert_eq!(record.text("/actor/process/name"), program, "{line}");
    assert_eq!(
        record.number("/unmapped/server_pid"),
        Some(server.pid().into()),
        "{line}"
    );
}

#[test]
fn half_open_probes_are_counted_and_not_reported() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let to = server.at(net.app.db_v4());
    for _ in 0..10 {
        let (raw, _) = Raw::greeted(&net.app, to).unwrap();
        drop(raw);
        let (raw, _) = Raw::greeted(&net.app, to).unwrap();
        raw.reset().unwrap();
    }
    wait::until_true("20 half-open probes in the status", PATIENCE, || {
        Ok(agent.outcome("half-open")? == 20)
    })
    .unwrap();
    let reported = agent.records().unwrap();
    assert!(
        !reported
            .iter()
            .any(|record| record.source() == Some(net.app.v4())),
        "{reported:?}"
    );
}

#[test]
fn tls_request_in_single_bytes_passes() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let _agent = Agent::start(ENFORCE).unwrap();
        let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
        raw.send_singly(&ssl_request()).unwrap();
        let mut tls = raw.into_tls().unwrap();
        tls.send(&server.open_login().packet_over_tls()).unwrap();
        assert!(tls.receive().unwrap().is_ok(), "{product:?}");
    }
}

#[test]
fn tls_request_before_the_greeting_passes() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let _agent = Agent::start(ENFORCE).unwrap();
        let mut raw = Raw::connect(&net.app, server.at(net.app.db_v4())).unwrap();
        raw.send(&ssl_request()).unwrap();
        assert!(raw.greeting().unwrap().offers_tls);
        let mut tls = raw.into_tls().unwrap();
        tls.send(&server.open_login().packet_over_tls()).unwrap();
        assert!(tls.receive().unwrap().is_ok(), "{product:?}");
    }
}

#[test]
fn exception_by_source_lets_that_source_in_and_no_other() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(&exception(
            "source = [\"10.77.2.0/24\", \"fd77:2::/64\"]",
            "\"never\"",
        ))
        .unwrap();
        for to in [net.legacy.db_v4(), net.legacy.db_v6()] {
            for client in Client::ALL {
                let login = Login::new(&server, &net.legacy, Tls::Off).to(to);
                let answer = client.login(&net.legacy, &login).unwrap();
                assert!(answer.is_in(), "{product:?} {client:?}: {}", answer.text);
            }
        }
        for from in [net.legacy.v4(), net.legacy.v6()] {
            let record = agent
                .await_record("the exception", |record| {
                    record.rule() == "legacy-etl" && record.source() == Some(from)
                })
                .unwrap();
            assert_eq!((record.action(), record.disposition()), (Some(1), Some(1)));
            assert_eq!(record.transport(), "plaintext", "{}", record.line);
            assert_eq!(record.user(), USER, "{}", record.line);
        }
        let elsewhere = Login::new(&server, &net.app, Tls::Off);
        let answer = Client::PyMySql.login(&net.app, &elsewhere).unwrap();
        assert_eq!(answer.error(), Some(REFUSED), "{}", answer.text);
    }
}

#[test]
fn exception_by_user_lets_that_user_in_and_no_other() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let policy = exception(
            "source = [\"0.0.0.0/0\", \"::/0\"]\nuser = [\"app\"]",
            "\"never\"",
        );
        let agent = Agent::start(&policy).unwrap();
        for client in Client::ALL {
            let login = Login::new(&server, &net.app, Tls::Off);
            let answer = client.login(&net.app, &login).unwrap();
            assert!(answer.is_in(), "{product:?} {client:?}: {}", answer.text);
        }
        agent
            .await_records("the exception", Client::ALL.len(), |record| {
                record.rule() == "legacy-etl" && record.user() == USER
            })
            .unwrap();
        for other in [OPEN_USER, "ap", "appp", "App"] {
            let login = Login::new(&server, &net.app, Tls::Off).user(other, "");
            let answer = Client::PyMySql.login(&net.app, &login).unwrap();
            assert_eq!(answer.error(), Some(REFUSED), "{other}: {}", answer.text);
        }
    }
}

#[test]
fn exception_ends_on_time_without_a_reload() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    // A whole second, as the file has it.
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let end = UNIX_EPOCH
        + Duration::from_secs(since_epoch.as_secs())
        + wait::here(Duration::from_secs(6));
    let policy = exception("source = [\"10.77.0.0/16\"]", &wait::utc(end).unwrap());
    agent.set_policy(&policy).unwrap();
    let login = Login::new(&server, &net.app, Tls::Off);
    assert!(Client::PyMySql.login(&net.app, &login).unwrap().is_in());
    let answer = wait::until("the exception to end", PATIENCE, || {
        let answer = Client::PyMySql.login(&net.app, &login)?;
        Ok((!answer.is_in()).then_some(answer))
    })
    .unwrap();
    assert!(SystemTime::now() >= end, "it ended early");
    assert_eq!(answer.error(), Some(REFUSED), "{}", answer.text);
    agent
        .await_record("a refusal", |record| record.rule() == "require-tls")
        .unwrap();
}

fn exception(what: &str, expires: &str) -> String {
    format!(
        "{ENFORCE}\n[[exception]]\nname = \"legacy-etl\"\n{what}\nexpires = {expires}\n\
         owner = \"dba@example.com\"\nreason = \"MySQL 5.6 client, migration DB-812\"\n"
    )
}

/// What a server says instead of a greeting is its own affair: too many connections, a blocked
/// address.
#[test]
fn error_in_place_of_a_greeting_passes() {
    const CONNECTIONS: usize = 10;
    const ER_CON_COUNT_ERROR: u16 = 1040;
    const ER_HOST_IS_BLOCKED: u16 = 1129;
    let net = Net::new().unwrap();
    for product in Product::all() {
        let options = Options::new(product)
            .with(&format!("--max-connections={CONNECTIONS}"))
            .with("--max-connect-errors=1");
        let server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        let at = server.at(net.app.db_v4());
        let error = || {
            let mut raw = Raw::connect(&net.app, at).unwrap();
            let error = raw.receive().unwrap().error();
            error.map(|error| error.number)
        };

        let silent: Vec<_> = (0..=CONNECTIONS)
            .map_while(|_| Raw::greeted(&net.app, at).ok())
            .collect();
        assert!(silent.len() >= CONNECTIONS, "{product:?}");
        assert_eq!(error(), Some(ER_CON_COUNT_ERROR), "{product:?}");
        drop(silent);
        evidence::await_no_connection(&server).unwrap();
        wait::until_true("the server to block the address", PATIENCE, || {
            Ok(error() == Some(ER_HOST_IS_BLOCKED))
        })
        .unwrap();
        assert!(!agent.records().unwrap().iter().any(Record::is_denied));
    }
}
