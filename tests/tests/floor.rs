//! The TLS floor: what is below it is refused with an alert, before the server answers where the client offers
//! nothing better, and else at the `ServerHello`.

#![cfg(test)]

use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::certs::Certs;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::mysqlx::start_tls;
use musttls_tests::netns::{Host, Net};
use musttls_tests::place::{Scratch, output};
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{Options, PASSWORD, Product, Server, USER};
use musttls_tests::tcp::{ACK, Opening, Segment, Stack};
use musttls_tests::tls::TlsClient;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::ssl_request;

const ENFORCE: &str = "mode = \"enforce\"";
const REQUIRE_1_3: &str = "mode = \"enforce\"\nrequire = \"tls1.3\"";
/// A fatal `protocol_version` alert in a record of TLS 1.2.
const PROTOCOL_VERSION: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 70];
/// A fatal `handshake_failure` alert.
const HANDSHAKE_FAILURE: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 40];
const X_PORT: u16 = 33060;
const ER_HOST_IS_BLOCKED: u16 = 1129;
/// What the tests' TLS client offers in TLS 1.2.
const ALL_OF_1_2: &str = "\"TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384\", \
     \"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256\", \"0xcca9\", \
     \"TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384\", \"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256\", \
     \"0xcca8\"";

/// Sends a request for TLS and an offer.
type Sends = dyn Fn(&mut Raw, &[u8]);

fn greeted(server: &Server, from: &Host) -> Raw {
    Raw::greeted(from, server.at(from.db_v4())).unwrap().0
}

/// Logs in over TLS; the version that the server tells.
fn version_of_login(server: &Server, mut raw: Raw, client: &TlsClient) -> String {
    raw.send(&ssl_request()).unwrap();
    let mut tls = raw.into_tls_of(client).unwrap();
    tls.send(&server.open_login().packet_over_tls()).unwrap();
    assert!(tls.receive().unwrap().is_ok());
    let version = tls.session().unwrap().tls_version;
    tls.quit().unwrap();
    version
}

/// A client of TLS 1.2 and its `ClientHello`, sent as `send` does; all that comes back.
fn offer_1_2(raw: &mut Raw, send: impl FnOnce(&mut Raw, &[u8])) -> (Vec<u8>, Next) {
    let (_, hello) = TlsClient::v1_2().unwrap().begin().unwrap();
    send(raw, &hello);
    raw.read_to_end().unwrap()
}

/// Sends a request for TLS, and then the offer.
fn in_two_segments(raw: &mut Raw, hello: &[u8]) {
    raw.send(&ssl_request()).unwrap();
    raw.send(hello).unwrap();
}

fn refused(agent: &Agent, raw: &Raw) -> Record {
    let port = u64::from(raw.local().unwrap().port());
    agent
        .await_record("the refusal", |record| {
            record.is_denied() && record.source_port() == Some(port)
        })
        .unwrap()
}

#[test]
fn every_client_shows_the_alert_of_a_refusal_before_the_server_answers() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(REQUIRE_1_3).unwrap();
        let mark = evidence::mark(&server).unwrap();
        let refused = every_client_shows_the_alert(&net, &server, Tls::V1_2);
        let records = agent
            .await_records("the refusals", refused, Record::is_denied)
            .unwrap();
        for record in &records {
            let line = &record.line;
            assert_eq!(record.text("/unmapped/reason"), "tls-below-floor", "{line}");
            assert_eq!(record.text("/unmapped/floor"), "tls1.3", "{line}");
            assert_eq!(record.text("/unmapped/tls/offered"), "1.2", "{line}");
            assert_eq!(record.text("/unmapped/tls/version"), "unknown", "{line}");
            assert_eq!(record.text("/status_code"), "alert 70", "{line}");
            let outcome = record.text("/unmapped/refusal/outcome");
            assert_eq!(outcome, "answered", "{line}");
            assert_eq!(record.at("/is_cleartext").as_bool(), Some(false), "{line}");
            assert_eq!(record.transport(), "tls", "{line}");
            assert_eq!(record.disposition(), Some(21), "{line}");
        }
        evidence::await_no_connection(&server).unwrap();
        assert_eq!(evidence::logins(&server, USER, mark).unwrap(), [""; 0]);
        for client in Client::ALL {
            let login = Login::new(&server, &net.app, Tls::Required);
            let answer = client.login(&net.app, &login).unwrap();
            let session = answer.result.unwrap_or_else(|_| panic!("{}", answer.text));
            assert_eq!(session.tls_version, "TLSv1.3", "{product:?} {client:?}");
        }
        assert!(agent.held().unwrap().is_empty());
        let denied = agent.outcome("denied").unwrap();
        assert_eq!(denied, u64::try_from(refused).unwrap());
        assert_eq!(
            agent.outcome("seen").unwrap(),
            denied + agent.outcome("secure").unwrap()
        );
    }
}

/// The clients offer TLS 1.3, too, but the server knows nothing above 1.2.
#[test]
fn every_client_shows_the_alert_of_a_refusal_at_the_server_hello() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let options = Options::new(product).with("--tls-version=TLSv1.2");
        let server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(REQUIRE_1_3).unwrap();
        let mark = evidence::mark(&server).unwrap();
        let refused = every_client_shows_the_alert(&net, &server, Tls::Required);
        let records = agent
            .await_records("the refusals", refused, Record::is_denied)
            .unwrap();
        for record in &records {
            let line = &record.line;
            assert_eq!(record.text("/unmapped/reason"), "tls-below-floor", "{line}");
            assert_eq!(record.tls_version(), "TLSv1.2", "{line}");
            assert_eq!(record.text("/unmapped/tls/offered"), "1.3", "{line}");
            assert_eq!(record.text("/status_code"), "alert 70", "{line}");
        }
        evidence::await_no_connection(&server).unwrap();
        assert_eq!(evidence::logins(&server, USER, mark).unwrap(), [""; 0]);
        assert_eq!(agent.outcome("secure").unwrap(), 0);
    }
}

/// Each that can be told a version tries twice, over IPv4 and IPv6; how many tries that is.
fn every_client_shows_the_alert(net: &Net, server: &Server, tls: Tls) -> usize {
    let mut refused = 0;
    for client in Client::ALL {
        if client == Client::MySqlAsync {
            // It cannot be told a version, and its words are those of its TLS library.
            continue;
        }
        for to in [net.app.db_v4(), net.app.db_v6()] {
            let login = Login::new(server, &net.app, tls).to(to);
            let answer = client.login(&net.app, &login).unwrap();
            let what = format!("{:?} {client:?}: {}", server.product(), answer.text);
            assert!(!answer.is_in(), "{what}");
            let text = answer.text.to_lowercase().replace('_', " ");
            // Behind the server's flight, MariaDB's client would rather speak of the certificate in it; and on an emulated
            // CPU the reset may come while a client still makes its key.
            let behind = tls != Tls::V1_2;
            let is_late = behind
                && wait::is_slow()
                && ["connection reset", "reason(0)"]
                    .iter()
                    .any(|word| text.contains(word));
            if !(is_late || behind && client == Client::MariaDbCli) {
                assert!(text.contains("tlsv1 alert protocol version"), "{what}");
            }
            refused += 1;
        }
    }
    refused
}

#[test]
fn offer_is_read_in_every_cut() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(REQUIRE_1_3).unwrap();
        let mut refusals = 0;
        let cuts: [(&str, &Sends); 5] = [
            ("request and offer in one segment", &|raw, hello| {
                raw.send(&[&ssl_request(), hello].concat()).unwrap();
            }),
            ("two segments", &in_two_segments),
            ("an offer in two segments", &|raw, hello| {
                let (first, second) = hello.split_at(60);
                raw.send(&ssl_request()).unwrap();
                raw.send(first).unwrap();
                raw.send(second).unwrap();
            }),
            ("request and a part of the offer", &|raw, hello| {
                let bytes = [&ssl_request(), hello].concat();
                let (first, second) = bytes.split_at(42);
                raw.send(first).unwrap();
                raw.send(second).unwrap();
            }),
            ("one byte a segment", &|raw, hello| {
                raw.send(&ssl_request()).unwrap();
                for byte in hello {
                    // A refusal ends the connection before the last.
                    if raw.send(std::slice::from_ref(byte)).is_err() {
                        break;
                    }
                }
            }),
        ];
        for (what, send) in cuts {
            let mut raw = greeted(&server, &net.app);
            let (bytes, end) = offer_1_2(&mut raw, send);
            assert_eq!(bytes, PROTOCOL_VERSION, "{product:?}, {what}");
            assert_eq!(end, Next::Reset, "{product:?}, {what}");
            let record = refused(&agent, &raw);
            let line = &record.line;
            assert_eq!(record.text("/unmapped/tls/version"), "unknown", "{line}");
            refusals += 1;

            let (connection, hello) = TlsClient::v1_3().unwrap().begin().unwrap();
            let mut raw = greeted(&server, &net.app);
            send(&mut raw, &hello);
            let mut tls = raw.finish_tls(connection).unwrap();
            tls.send(&server.open_login().packet_over_tls()).unwrap();
            assert!(tls.receive().unwrap().is_ok(), "{product:?}, {what}");
        }
        assert_eq!(agent.outcome("denied").unwrap(), refusals);
        assert!(agent.held().unwrap().is_empty());
    }
}

#[test]
fn long_offers_and_hello_retry_requests_pass() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(REQUIRE_1_3).unwrap();
        for client in [
            TlsClient::new().unwrap().longer_by(12_000),
            TlsClient::with_unknown_share(32).unwrap(),
            TlsClient::with_unknown_share(5_000).unwrap(),
        ] {
            let raw = greeted(&server, &net.app);
            assert_eq!(version_of_login(&server, raw, &client), "TLSv1.3");
        }
        let mut raw = greeted(&server, &net.app);
        let (_, hello) = TlsClient::v1_2()
            .unwrap()
            .longer_by(12_000)
            .begin()
            .unwrap();
        in_two_segments(&mut raw, &hello);
        assert_eq!(raw.read_to_end().unwrap().0, PROTOCOL_VERSION);
        assert_eq!(agent.outcome("denied").unwrap(), 1);
        assert_eq!(agent.outcome("secure").unwrap(), 3);
    }
}

/// The gate reads a copy of the offer that the server's TCP discards. The server then answers the other one.
#[test]
fn contradicting_offers_end_at_the_server_hello() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let to = server.at(net.app.db_v4());
        let mut stack = Stack::new(&net.app, &net.db, to).unwrap();
        let (_, good) = TlsClient::v1_3().unwrap().begin().unwrap();
        let (_, bad) = TlsClient::v1_2().unwrap().begin().unwrap();
        let request = ssl_request();
        let at = i32::try_from(request.len()).unwrap();
        let mut attempt = || {
            let opening = Opening {
                isn: 7,
                stamps: true,
                ..Opening::default()
            };
            let local = stack.greeted(opening).unwrap();
            stack.send(local, &Segment::at(0, &request)).unwrap();
            let lie = Segment::at(at, &good).unsound();
            stack.send(local, &lie).unwrap();
            let greeting = stack.connection(local).unwrap().received().len();
            stack.send(local, &Segment::at(at, &bad)).unwrap();
            stack
                .await_that(local, "the answer", |it| {
                    it.received().len() > greeting + 100
                })
                .unwrap();
            let said = stack.connection(local).unwrap().received().to_vec();
            // The next server gets connections from the same ports.
            stack.abort(local).unwrap();
            (local, said.get(greeting..).unwrap_or_default().to_vec())
        };
        // Where nothing is refused, the server takes the worse offer.
        let (_, answer) = attempt();
        assert_eq!(answer.get(..3), Some(&[0x16, 3, 3][..]), "{product:?}");

        let agent = Agent::start(REQUIRE_1_3).unwrap();
        let (local, _) = attempt();
        let record = agent
            .await_record("the refusal", |record| {
                record.is_denied() && record.source_port() == Some(local.port().into())
            })
            .unwrap();
        let line = &record.line;
        assert_eq!(record.text("/unmapped/reason"), "tls-below-floor", "{line}");
        assert_eq!(record.tls_version(), "TLSv1.2", "{line}");
        assert_eq!(record.text("/unmapped/tls/offered"), "1.3", "{line}");
        assert_eq!(agent.outcome("secure").unwrap(), 0);
    }
}

#[test]
fn refused_cipher_suites_are_refused_at_the_server_hello() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let policy = format!("{ENFORCE}\nrefused_ciphers = [{ALL_OF_1_2}]");
        let agent = Agent::start(&policy).unwrap();
        // Up to TLS 1.2 the server's flight goes out, and the alert behind it.
        let mut raw = greeted(&server, &net.app);
        let (bytes, end) = offer_1_2(&mut raw, in_two_segments);
        assert!(bytes.starts_with(&[0x16, 3, 3]), "{bytes:x?}");
        assert!(bytes.ends_with(&HANDSHAKE_FAILURE), "{bytes:x?}");
        assert_eq!(end, Next::Reset, "{product:?}");
        let record = refused(&agent, &raw);
        let line = &record.line;
        assert_eq!(
            record.text("/unmapped/reason"),
            "tls-cipher-refused",
            "{line}"
        );
        assert_eq!(record.text("/status_code"), "alert 40", "{line}");
        let cipher = record.tls_cipher();
        assert!(cipher.starts_with("TLS_ECDHE_"), "{line}");

        let raw = greeted(&server, &net.app);
        let best = TlsClient::new().unwrap();
        assert_eq!(version_of_login(&server, raw, &best), "TLSv1.3");

        // In TLS 1.3 the client would answer with its login: nothing goes out.
        agent
            .set_policy(&format!(
                "{ENFORCE}\nrefused_ciphers = [\"0x1301\", \"0x1302\", \"0x1303\"]"
            ))
            .unwrap();
        let mut raw = greeted(&server, &net.app);
        let (_, hello) = best.begin().unwrap();
        in_two_segments(&mut raw, &hello);
        assert_eq!(raw.read_to_end().unwrap(), (vec![], Next::Reset));
        let record = refused(&agent, &raw);
        let line = &record.line;
        assert_eq!(
            record.text("/unmapped/reason"),
            "tls-cipher-refused",
            "{line}"
        );
        assert_eq!(record.tls_version(), "TLSv1.3", "{line}");
        assert_eq!(record.text("/unmapped/refusal/outcome"), "ended", "{line}");
        assert_eq!(record.at("/status_code").as_str(), None, "{line}");
        let raw = greeted(&server, &net.app);
        let older = TlsClient::v1_2().unwrap();
        assert_eq!(version_of_login(&server, raw, &older), "TLSv1.2");
    }
}

#[test]
fn offer_of_nothing_but_refused_cipher_suites_gets_its_alert_at_once() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let policy = format!("{ENFORCE}\nrequire = \"tls1.2\"\nrefused_ciphers = [{ALL_OF_1_2}]");
        let agent = Agent::start(&policy).unwrap();
        let mut raw = greeted(&server, &net.app);
        let (bytes, _) = offer_1_2(&mut raw, in_two_segments);
        assert_eq!(bytes, HANDSHAKE_FAILURE, "{product:?}");
        let record = refused(&agent, &raw);
        let line = &record.line;
        assert_eq!(
            record.text("/unmapped/reason"),
            "tls-cipher-refused",
            "{line}"
        );
        assert_eq!(record.text("/unmapped/tls/cipher"), "unknown", "{line}");
    }
}

/// As many refusals lock an address out as with the server's own floor, and a login clears the count.
#[test]
fn refusals_cost_the_server_what_its_own_cost() {
    const LIMIT: u64 = 5;
    let net = Net::new().unwrap();
    for product in Product::all() {
        for own in [true, false] {
            let options = Options::new(product).with(&format!("--max-connect-errors={LIMIT}"));
            let options = if own {
                options.with("--tls-version=TLSv1.3")
            } else {
                options
            };
            let server = Server::start(&net.db, &options).unwrap();
            let _agent = Agent::start(if own { ENFORCE } else { REQUIRE_1_3 }).unwrap();
            let what = format!("{product:?}, own {own}");
            let refuse = |expected: u64| {
                let login = Login::new(&server, &net.app, Tls::V1_2);
                let answer = Client::PyMySql.login(&net.app, &login).unwrap();
                assert!(answer.text.contains("ALERT_PROTOCOL_VERSION"), "{what}");
                wait::until_true("the server to count it", PATIENCE, || {
                    Ok(evidence::counts(&server, net.app.v4())?.handshake_errors == expected)
                })
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            };
            let log_in = || {
                let login = Login::new(&server, &net.app, Tls::Required);
                Client::PyMySql.login(&net.app, &login).unwrap()
            };
            for n in 1..LIMIT {
                refuse(n);
            }
            let answer = log_in();
            assert!(answer.is_in(), "{what}: {}", answer.text);
            let counts = evidence::counts(&server, net.app.v4()).unwrap();
            assert_eq!(counts.connect_errors, 0, "{what}");
            let before = counts.handshake_errors;
            for n in 1..=LIMIT {
                refuse(before + n);
            }
            let answer = log_in();
            assert_eq!(
                answer.error(),
                Some(ER_HOST_IS_BLOCKED),
                "{what}: {}",
                answer.text
            );
        }
    }
}

#[test]
fn observe_mode_changes_nothing_and_reports() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start("mode = \"observe\"\nrequire = \"tls1.3\"").unwrap();
        for (client, version) in [
            (TlsClient::v1_2().unwrap(), "TLSv1.2"),
            (TlsClient::v1_3().unwrap(), "TLSv1.3"),
        ] {
            let raw = greeted(&server, &net.app);
            let port = u64::from(raw.local().unwrap().port());
            assert_eq!(version_of_login(&server, raw, &client), version);
            let record = agent
                .await_record("the session", |it| it.source_port() == Some(port))
                .unwrap();
            let line = &record.line;
            assert_eq!(record.transport(), "tls", "{line}");
            assert_eq!(record.tls_version(), version, "{line}");
            let is_below = version == "TLSv1.2";
            let verdict = if is_below { "would_deny" } else { "allowed" };
            assert_eq!(record.text("/unmapped/verdict"), verdict, "{line}");
            assert_eq!(record.at("/is_alert").as_bool(), Some(is_below), "{line}");
            assert_eq!(record.at("/is_cleartext").as_bool(), Some(false), "{line}");
        }
        assert_eq!(agent.outcome("observed").unwrap(), 1);
        assert_eq!(agent.outcome("secure").unwrap(), 1);
        assert!(agent.held().unwrap().is_empty());
    }
}

#[test]
fn observed_floor_passes_and_reports() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let policy = format!("{ENFORCE}\nrequire = \"tls1.2\"\nobserve = \"tls1.3\"");
    let agent = Agent::start(&policy).unwrap();
    for (client, version) in [
        (TlsClient::v1_2().unwrap(), "TLSv1.2"),
        (TlsClient::v1_3().unwrap(), "TLSv1.3"),
    ] {
        let raw = greeted(&server, &net.app);
        let port = u64::from(raw.local().unwrap().port());
        assert_eq!(version_of_login(&server, raw, &client), version);
        let record = agent
            .await_record("the session", |it| it.source_port() == Some(port))
            .unwrap();
        let line = &record.line;
        assert_eq!(record.text("/unmapped/verdict"), "allowed", "{line}");
        let would = record.at("/unmapped/would_refuse").as_str();
        assert_eq!(would, (version == "TLSv1.2").then_some("tls1.3"), "{line}");
    }
    assert_eq!(agent.outcome("secure").unwrap(), 2);
    // The same policy, in force: the open session goes on, a new one is refused.
    let mut raw = greeted(&server, &net.app);
    raw.send(&ssl_request()).unwrap();
    let mut open = raw.into_tls_of(&TlsClient::v1_2().unwrap()).unwrap();
    open.send(&server.open_login().packet_over_tls()).unwrap();
    assert!(open.receive().unwrap().is_ok());
    agent.set_policy(REQUIRE_1_3).unwrap();
    assert_eq!(open.session().unwrap().tls_version, "TLSv1.2");
    let mut raw = greeted(&server, &net.app);
    let (bytes, _) = offer_1_2(&mut raw, |raw, hello| {
        raw.send(&[&ssl_request(), hello].concat()).unwrap();
    });
    assert_eq!(bytes, PROTOCOL_VERSION);
}

#[test]
fn exception_from_tls_is_one_from_its_floor() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        for tls_1_2_only in [false, true] {
            let options = Options::new(product);
            let options = if tls_1_2_only {
                options.with("--tls-version=TLSv1.2")
            } else {
                options
            };
            let server = Server::start(&net.db, &options).unwrap();
            let exception = "[[exception]]\nname = \"legacy-etl\"\nsource = [\"10.77.2.0/24\"]\n\
                 expires = \"never\"\nowner = \"o\"\nreason = \"r\"\n";
            let agent = Agent::start(&format!("{REQUIRE_1_3}\n{exception}")).unwrap();
            let raw = greeted(&server, &net.legacy);
            let client = TlsClient::v1_2().unwrap();
            assert_eq!(version_of_login(&server, raw, &client), "TLSv1.2");
            let record = agent
                .await_record("the exception", |it| it.rule() == "legacy-etl")
                .unwrap();
            let line = &record.line;
            assert_eq!(record.text("/unmapped/verdict"), "excepted", "{line}");
            assert_eq!(record.text("/unmapped/reason"), "tls-below-floor", "{line}");
            assert_eq!(record.transport(), "tls", "{line}");
            assert_eq!(record.tls_version(), "TLSv1.2", "{line}");
            let mut raw = greeted(&server, &net.app);
            let (bytes, _) = offer_1_2(&mut raw, |raw, hello| {
                raw.send(&[&ssl_request(), hello].concat()).unwrap();
            });
            assert_eq!(bytes, PROTOCOL_VERSION, "{product:?}");
        }
    }
}

#[test]
fn x_protocol_has_the_same_floor() {
    let net = Net::new().unwrap();
    let server_tls = ["TLSv1.2,TLSv1.3", "TLSv1.2"];
    for versions in server_tls {
        let options = Options::new(Product::MySql)
            .with("--mysqlx=ON")
            .with("--mysqlx-bind-address=*")
            .with("--mysqlx-socket=/tmp/musttls-floor-x.sock")
            .with(&format!("--mysqlx-port={X_PORT}"))
            .with(&format!("--tls-version={versions}"));
        let _server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(REQUIRE_1_3).unwrap();
        let connect = || {
            let to = (net.app.db_v4(), X_PORT).into();
            let mut raw = Raw::connect(&net.app, to).unwrap();
            raw.send(&start_tls()).unwrap();
            assert_eq!(raw.receive_x().unwrap().unwrap().kind, 0);
            raw
        };
        let mut raw = connect();
        let (bytes, _) = offer_1_2(&mut raw, |raw, hello| raw.send(hello).unwrap());
        assert_eq!(bytes, PROTOCOL_VERSION);
        let record = refused(&agent, &raw);
        let line = &record.line;
        assert_eq!(record.text("/unmapped/reason"), "tls-below-floor", "{line}");
        assert_eq!(record.text("/unmapped/tls/offered"), "1.2", "{line}");

        let mut raw = connect();
        let (connection, hello) = TlsClient::new().unwrap().begin().unwrap();
        raw.send(&hello).unwrap();
        if versions.contains("1.3") {
            drop(raw.finish_tls(connection).unwrap());
            wait::until_true("a secure session", PATIENCE, || {
                Ok(agent.outcome("secure")? == 1)
            })
            .unwrap();
        } else {
            let (bytes, _) = raw.read_to_end().unwrap();
            assert!(bytes.starts_with(&[0x16, 3, 3]), "{bytes:x?}");
            assert!(bytes.ends_with(&PROTOCOL_VERSION), "{bytes:x?}");
            let record = refused(&agent, &raw);
            assert_eq!(record.tls_version(), "TLSv1.2", "{}", record.line);
        }
    }
}

/// With the server's random a client could finish a handshake, and log in, before the gate has seen the version.
#[test]
fn while_half_a_server_hello_is_out_nothing_of_the_client_passes() {
    /// Record header, handshake header, version, and most of the random.
    const HALF: usize = 40;
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        let mut stack = Stack::new(&net.app, &net.db, server.at(net.app.db_v4())).unwrap();
        let local = stack.greeted(Opening::default()).unwrap();
        let greeting = stack.connection(local).unwrap().received().len();
        stack.take_only(local, Some(HALF)).unwrap();
        let (_, hello) = TlsClient::v1_2().unwrap().begin().unwrap();
        let request = ssl_request();
        let behind = i32::try_from(request.len()).unwrap();
        let len = behind + i32::try_from(hello.len()).unwrap();
        // A segment from the same place as the one before does not make the window smaller.
        stack.send(local, &Segment::at(0, &request)).unwrap();
        stack.send(local, &Segment::at(behind, &hello)).unwrap();
        // The server's kernel waits for more room, and then sends what fits.
        stack
            .await_that(local, "half a ServerHello", |it| {
                it.received().len() == greeting + HALF
            })
            .unwrap();

        let more = Segment::at(len, b"\x16\x03\x03\0\x01\x10");
        stack.send(local, &more).unwrap();
        stack.pump(Duration::from_millis(300)).unwrap();
        let acknowledged = |stack: &Stack| stack.connection(local).unwrap().acknowledged();
        assert_eq!(acknowledged(&stack), len.cast_unsigned(), "{product:?}");
        assert_eq!(agent.held().unwrap()["gap"], 1, "{product:?}");

        stack.take_only(local, None).unwrap();
        let bare = Segment::at(len, b"").flags(ACK);
        stack.send(local, &bare).unwrap();
        let is_tls = |record: &Record| record.transport() == "tls" && !record.is_denied();
        stack.pump(Duration::from_millis(300)).unwrap();
        agent.await_record("the rest", is_tls).unwrap();
        stack.send(local, &more).unwrap();
        stack.pump(Duration::from_millis(300)).unwrap();
        assert_ne!(acknowledged(&stack), len.cast_unsigned(), "{product:?}");
        stack.abort(local).unwrap();
    }
}

/// OpenSSL signs and verifies in TLS 1.0 and 1.1 at security level 0 only, which both sides are told.
const LEVEL_0: &str = "--ssl-cipher=DEFAULT:@SECLEVEL=0";
/// For the client, whose library otherwise takes nothing below TLS 1.2 on Debian.
const OPENSSL_CONF: &str = "\
openssl_conf = all
[all]
ssl_conf = ssl
[ssl]
system_default = old
[old]
MinProtocol = TLSv1
CipherString = DEFAULT@SECLEVEL=0
";

/// MariaDB's client, which offers `versions` and is let in: what the server says of its session. Or why it is not.
fn old_login(net: &Net, to: IpAddr, server: &Server, versions: &str) -> Result<String, String> {
    let directory = Scratch::new().unwrap();
    let conf = directory.join("openssl.cnf");
    fs::write(&conf, OPENSSL_CONF).unwrap();
    let mut command = Command::new("mariadb");
    command.env("OPENSSL_CONF", conf).args([
        "--no-defaults".to_owned(),
        "--protocol=TCP".to_owned(),
        format!("--host={to}"),
        format!("--port={}", server.port()),
        format!("--user={USER}"),
        format!("--password={PASSWORD}"),
        "--ssl".to_owned(),
        format!("--ssl-ca={}", Certs::new().unwrap().ca.display()),
        LEVEL_0.to_owned(),
        format!("--tls-version={versions}"),
        "--batch".to_owned(),
        "--skip-column-names".to_owned(),
        "--execute=SHOW STATUS LIKE 'Ssl_version'".to_owned(),
    ]);
    let said = net.app.run(|| output(&mut command)).unwrap();
    said.map(|text| text.trim().replace("Ssl_version\t", ""))
        .map_err(|error| format!("{error:#}"))
}

/// Real sessions of TLS 1.0 and 1.1, with the server's and the client's own libraries. The clients of the other tests
/// cannot be told to make them, nor can MySQL 9.7.
#[test]
fn tls_1_0_and_1_1_are_below_the_floor_of_1_2() {
    let net = Net::new().unwrap();
    for (known, at_the_server_hello) in [
        ("TLSv1.0,TLSv1.1,TLSv1.2,TLSv1.3", false),
        // It knows nothing better, so that it is its answer that is refused.
        ("TLSv1.0,TLSv1.1", true),
    ] {
        let options = Options::new(Product::MariaDb)
            .with(LEVEL_0)
            .with(&format!("--tls-version={known}"));
        let server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(&format!("{ENFORCE}\nobserve = \"tls1.2\"")).unwrap();
        let offers = [("TLSv1.0", "TLSv1"), ("TLSv1.1", "TLSv1.1")];
        for (offered, version) in offers {
            for to in [net.app.db_v4(), net.app.db_v6()] {
                let said = old_login(&net, to, &server, offered);
                assert_eq!(said.as_deref(), Ok(version));
            }
            let record = agent
                .await_record("the session", |it| it.tls_version() == offered)
                .unwrap();
            let line = &record.line;
            assert_eq!(record.text("/unmapped/verdict"), "allowed", "{line}");
            assert_eq!(record.text("/unmapped/would_refuse"), "tls1.2", "{line}");
        }
        assert_eq!(agent.outcome("secure").unwrap(), 4);

        let mark = evidence::mark(&server).unwrap();
        agent
            .set_policy(&format!("{ENFORCE}\nrequire = \"tls1.2\""))
            .unwrap();
        let mut refused = 0;
        for (offered, version) in offers {
            let offered = if at_the_server_hello && version == "TLSv1.1" {
                "TLSv1.1,TLSv1.2,TLSv1.3"
            } else {
                offered
            };
            for to in [net.app.db_v4(), net.app.db_v6()] {
                let said = old_login(&net, to, &server, offered).unwrap_err();
                // Behind the server's flight, one that takes long over its answer finds the connection reset.
                let is_late = at_the_server_hello && said.contains("Connection reset by peer");
                assert!(
                    is_late || said.contains("tlsv1 alert protocol version"),
                    "{said}"
                );
                refused += 1;
            }
        }
        let records = agent
            .await_records("the refusals", refused, Record::is_denied)
            .unwrap();
        for record in &records {
            let line = &record.line;
            assert_eq!(record.text("/unmapped/reason"), "tls-below-floor", "{line}");
            assert_eq!(record.text("/unmapped/floor"), "tls1.2", "{line}");
            assert_eq!(record.text("/status_code"), "alert 70", "{line}");
        }
        let offers: Vec<_> = records
            .iter()
            .map(|record| record.text("/unmapped/tls/offered"))
            .collect();
        let second = if at_the_server_hello { "1.3" } else { "1.1" };
        assert_eq!(offers, ["1.0", "1.0", second, second]);
        evidence::await_no_connection(&server).unwrap();
        assert_eq!(evidence::logins(&server, USER, mark).unwrap(), [""; 0]);
        // Who can do better is let in by a server that can.
        if !at_the_server_hello {
            let raw = greeted(&server, &net.app);
            let best = TlsClient::new().unwrap();
            assert_eq!(version_of_login(&server, raw, &best), "TLSv1.3");
        }
    }
}
