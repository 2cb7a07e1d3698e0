//! Enforce mode: what the refused client sees, and what the server does not.

#![cfg(test)]

use std::net::IpAddr;

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::client::{self, Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::netns::Net;
use musttls_tests::raw::Raw;
use musttls_tests::server::{Options, PASSWORD, Product, SCHEMA, Server, USER};
use musttls_tests::wait;
use musttls_tests::wire::{ErrorPacket, LoginPacket, REFUSED, REFUSED_TEXT};

const ENFORCE: &str = "mode = \"enforce\"";

#[test]
fn every_client_shows_the_refusal_of_mariadb_with_tls() {
    every_client_shows_the_refusal(&Options::new(Product::MariaDb));
}

#[test]
fn every_client_shows_the_refusal_of_mariadb_without_tls() {
    every_client_shows_the_refusal(&Options::new(Product::MariaDb).without_tls());
}

#[test]
fn every_client_shows_the_refusal_of_older_and_newer_mariadb() {
    for product in [Product::MariaDb105, Product::MariaDb118] {
        every_client_shows_the_refusal(&Options::new(product));
        every_client_shows_the_refusal(&Options::new(product).without_tls());
    }
}

#[test]
fn every_client_shows_the_refusal_of_mysql_with_tls() {
    every_client_shows_the_refusal(&Options::new(Product::MySql));
}

#[test]
fn every_client_shows_the_refusal_of_mysql_without_tls() {
    every_client_shows_the_refusal(&Options::new(Product::MySql).without_tls());
}

/// With the right password and a wrong one, over IPv4 and IPv6; and the server knows nothing of it.
fn every_client_shows_the_refusal(options: &Options) {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, options).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let mark = evidence::mark(&server).unwrap();
    let before = evidence::counts(&server, net.app.v4()).unwrap();
    for client in Client::ALL {
        for (ip, password) in [
            (net.app.db_v4(), PASSWORD),
            (net.app.db_v6(), PASSWORD),
            (net.app.db_v4(), "wrong"),
        ] {
            let login = Login::new(&server, &net.app, Tls::Off)
                .to(ip)
                .user(USER, password);
            let answer = client.login(&net.app, &login).unwrap();
            let what = format!("{} to {ip}: {}", client.name(), answer.text);
            let failure = answer.result.expect_err(&what);
            assert_eq!(failure.number, REFUSED, "{what}");
            assert_eq!(failure.message, REFUSED_TEXT, "{what}");
            let sqlstate = client
                .shows_sqlstate()
                .then(|| server.product().refusal_sqlstate());
            assert_eq!(failure.sqlstate.as_deref(), sqlstate, "{what}");
        }
    }
    let refusals = Client::ALL.len() * 3;
    agent
        .await_records("every refusal", refusals, Record::is_denied)
        .unwrap();
    evidence::await_no_connection(&server).unwrap();
    assert_eq!(evidence::logins(&server, USER, mark).unwrap(), [""; 0]);
    let after = evidence::counts(&server, net.app.v4()).unwrap();
    assert_eq!(after.handshake_errors, 0);
    assert_eq!(after.connect_errors, 0);
    assert_eq!(
        after.aborted_connects_preauth,
        before.aborted_connects_preauth
    );
}

#[test]
fn command_line_clients_print_the_servers_own_line() {
    let net = Net::new().unwrap();
    for (product, client, line) in [
        (Product::MariaDb, Client::MariaDbCli, "ERROR 3159 (08004): "),
        (Product::MySql, Client::MySqlCli, "ERROR 3159 (HY000): "),
    ] {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let _agent = Agent::start(ENFORCE).unwrap();
        let answer = client
            .login(&net.app, &Login::new(&server, &net.app, Tls::Off))
            .unwrap();
        let last = answer.text.lines().last().unwrap();
        assert_eq!(last, format!("{line}{REFUSED_TEXT}"));
    }
}

#[test]
fn liveness_probe_stays_green() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let _agent = Agent::start(ENFORCE).unwrap();
    let (code, text) =
        client::admin_ping(&net.app, &Login::new(&server, &net.app, Tls::Off)).unwrap();
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(REFUSED_TEXT), "{text}");
}

#[test]
fn refusal_is_the_answer_to_the_login_byte_by_byte() {
    let net = Net::new().unwrap();
    for product in Product::releases() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let _agent = Agent::start(ENFORCE).unwrap();
        let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
        raw.send(&server.open_login().packet_41()).unwrap();
        let error = raw.receive().unwrap().error();
        assert_eq!(
            error,
            Some(ErrorPacket::refusal(2, Some(product.refusal_sqlstate())))
        );
        let (rest, _) = raw.read_to_end().unwrap();
        assert_eq!(rest, b"", "{product:?}: nothing may follow");
    }
}

#[test]
fn login_from_before_4_1_gets_an_error_without_sqlstate() {
    let net = Net::new().unwrap();
    for product in Product::releases() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let _agent = Agent::start(ENFORCE).unwrap();
        let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
        raw.send(&server.open_login().packet_320()).unwrap();
        assert_eq!(
            raw.receive().unwrap().error(),
            Some(ErrorPacket::refusal(2, None)),
            "{product:?}"
        );
    }
}

#[test]
fn after_150_refusals_tls_from_the_same_address_still_works() {
    let net = Net::new().unwrap();
    for product in Product::releases() {
        for limit in [None, Some("--max-connect-errors=5")] {
            let options = limit.into_iter().fold(Options::new(product), Options::with);
            let server = Server::start(&net.db, &options).unwrap();
            let agent = Agent::start(ENFORCE).unwrap();
            let mark = evidence::mark(&server).unwrap();
            let before = evidence::counts(&server, net.app.v4()).unwrap();
            for _ in 0..150 {
                let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
                raw.send(&server.open_login().packet_41()).unwrap();
                let error = raw.receive().unwrap().error();
                assert_eq!(error.map(|error| error.number), Some(REFUSED));
            }
            let records = agent
                .await_records("150 refusals", 150, Record::is_denied)
                .unwrap();
            let not_landed: Vec<_> = records
                .iter()
                .map(|record| record.at("/unmapped/refusal"))
                .filter(|refusal| refusal["outcome"] != "landed")
                .collect();
            evidence::await_no_connection(&server).unwrap();
            let after = evidence::counts(&server, net.app.v4()).unwrap();
            assert_eq!(
                (after.connect_errors, after.handshake_errors),
                (0, 0),
                "{product:?} {not_landed:?}"
            );
            assert_eq!(
                after.aborted_connects_preauth,
                before.aborted_connects_preauth
            );
            assert_eq!(evidence::logins(&server, "open", mark).unwrap(), [""; 0]);
            let tls = Login::new(&server, &net.app, Tls::Required);
            let answer = Client::MySqlCli.login(&net.app, &tls).unwrap();
            assert!(answer.is_in(), "{product:?} {limit:?}: {}", answer.text);
        }
    }
}

#[test]
fn server_lets_go_of_a_refused_session_within_100_ms() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        let count = 21;
        for _ in 0..count {
            let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
            raw.send(&server.open_login().packet_41()).unwrap();
            assert!(raw.receive().unwrap().error().is_some());
            // The client stays: it is not its end that frees the server.
            evidence::await_no_connection(&server).unwrap();
        }
        let records = agent
            .await_records("refusals", count, Record::is_denied)
            .unwrap();
        let mut released: Vec<_> = records
            .iter()
            .map(|record| {
                record
                    .number("/unmapped/refusal/released_after_us")
                    .expect(&record.line)
            })
            .collect();
        released.sort_unstable();
        let median = u128::from(released[count / 2]);
        assert!(
            median <= wait::here(Agent::RELEASE).as_micros(),
            "{product:?} {released:?}"
        );
    }
}

#[test]
fn record_of_a_refusal_says_who_wanted_what() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        for to in [net.app.db_v4(), net.app.db_v6()] {
            let (mut raw, _) = Raw::greeted(&net.app, server.at(to)).unwrap();
            let login = LoginPacket::new(USER)
                .schema(SCHEMA)
                .plugin("caching_sha2_password")
                .attribute("_client_name", "raw")
                .attribute("program_name", "nightly-report");
            raw.send(&login.packet_41()).unwrap();
            assert!(raw.receive().unwrap().error().is_some());
            let port = u64::from(raw.local().unwrap().port());
            let record = agent
                .await_record("it", |record| record.source_port() == Some(port))
                .unwrap();
            let line = &record.line;
            assert_eq!(record.number("/class_uid"), Some(3002), "{line}");
            assert_eq!(record.number("/type_uid"), Some(300_201), "{line}");
            assert_eq!(
                (record.action(), record.disposition()),
                (Some(2), Some(21)),
                "{line}"
            );
            assert_eq!(record.at("/is_cleartext").as_bool(), Some(true), "{line}");
            assert_eq!(record.text("/status_code"), "3159", "{line}");
            assert_eq!(record.user(), USER, "{line}");
            assert_eq!(
                record.source(),
                raw.local().ok().map(|local| local.ip()),
                "{line}"
            );
            assert_eq!(
                record.text("/dst_endpoint/ip").parse::<IpAddr>().ok(),
                Some(to),
                "{line}"
            );
            assert_eq!(
                record.number("/dst_endpoint/port"),
                Some(server.port().into()),
                "{line}"
            );
            assert_eq!(
                record.text("/auth_protocol"),
                "mysql:caching_sha2_password",
                "{line}"
            );
            assert_eq!(
                record.at("/policy/is_applied").as_bool(),
                Some(true),
                "{line}"
            );
            assert_eq!(record.rule(), "require-tls", "{line}");
            assert_eq!(record.transport(), "plaintext", "{line}");
            assert_eq!(record.text("/unmapped/reason"), "no-client-ssl", "{line}");
            assert_eq!(record.text("/unmapped/mode"), "enforce", "{line}");
            assert_eq!(record.text("/unmapped/schema"), SCHEMA, "{line}");
            assert_eq!(
                record.text("/unmapped/client_program"),
                "nightly-report",
                "{line}"
            );
            assert_eq!(
                record.number("/unmapped/server_pid"),
                Some(server.pid().into()),
                "{line}"
            );
            assert_eq!(record.text("/unmapped/refusal/outcome"), "landed", "{line}");
            assert!(
                record.number("/unmapped/refusal/err_after_us").is_some(),
                "{line}"
            );
        }
        let sequence: Vec<_> = agent
            .records()
            .unwrap()
            .iter()
            .filter_map(Record::sequence)
            .collect();
        assert!(
            sequence.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "{sequence:?}"
        );
    }
}

#[test]
fn no_auth_byte_is_kept() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let secrets = ["SCRAMBLE-OF-20-BYTES", PASSWORD];
    let login = LoginPacket::new(USER)
        .schema(SCHEMA)
        .attribute("program_name", "leaky");
    let packets = [
        login.clone().auth(secrets[0].as_bytes()).packet_41(),
        login
            .clone()
            .auth(secrets[1].as_bytes())
            .plugin("mysql_clear_password")
            .packet_41(),
        login.auth(secrets[1].as_bytes()).packet_320(),
    ];
    for packet in &packets {
        let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
        raw.send(packet).unwrap();
        assert!(raw.receive().unwrap().error().is_some());
    }
    let records = agent
        .await_records("the refusals", packets.len(), Record::is_denied)
        .unwrap();
    assert!(records.iter().all(|record| record.user() == USER));
    let said = agent.log().unwrap()
        + &records
            .iter()
            .map(|record| record.line.as_str())
            .collect::<String>()
        + &server.general_log().unwrap();
    for secret in secrets {
        let hex: Vec<_> = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
        assert!(
            !said.contains(secret) && !said.to_lowercase().contains(&hex.concat()),
            "{said}"
        );
    }
}

#[test]
fn only_refused_sessions_are_touched() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let _agent = Agent::start(ENFORCE).unwrap();
        let to = server.at(net.app.db_v4());
        let mut sessions: Vec<_> = (0..10)
            .map(|_| {
                let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
                raw.send(&musttls_tests::wire::ssl_request()).unwrap();
                let mut tls = raw.into_tls().unwrap();
                tls.send(&server.open_login().packet_over_tls()).unwrap();
                assert!(tls.receive().unwrap().is_ok());
                tls
            })
            .collect();
        for _ in 0..50 {
            let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
            raw.send(&server.open_login().packet_41()).unwrap();
            assert!(raw.receive().unwrap().error().is_some());
            for session in &mut sessions {
                assert!(session.ask("SELECT 1").unwrap().len() > 1);
            }
        }
    }
}
