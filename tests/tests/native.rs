//! What servers and clients do without the agent. The other tests rest on these facts.

#![cfg(test)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use musttls_tests::client::{Answer, Client, Login, Tls};
use musttls_tests::evidence::{self, Counts};
use musttls_tests::netns::Net;
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{OPEN_USER, Options, Product, Server, USER};
use musttls_tests::tls::TlsClient;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{
    CLIENT_SSL, COM_QUIT, ErrorPacket, LoginPacket, REFUSED, REFUSED_TEXT, packet,
    short_ssl_request, ssl_request,
};

const ER_HOST_IS_BLOCKED: u16 = 1129;

#[test]
fn every_client_logs_in_with_and_without_tls_on_each_server() {
    let net = Net::new().unwrap();
    for product in Product::releases() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        for client in Client::ALL {
            let plain = client
                .login(&net.app, &Login::new(&server, &net.app, Tls::Off))
                .unwrap();
            let session = plain
                .result
                .unwrap_or_else(|_| panic!("{client:?} {}", plain.text));
            assert_eq!(session.cipher, "", "{product:?} {client:?}");
            let login = Login::new(&server, &net.app, Tls::Required).to(net.app.db_v6());
            let tls = client.login(&net.app, &login).unwrap();
            let session = tls
                .result
                .unwrap_or_else(|_| panic!("{client:?} {}", tls.text));
            assert!(!session.cipher.is_empty(), "{product:?} {client:?}");
        }
    }
}

#[test]
fn every_client_logs_in_to_servers_without_tls() {
    let net = Net::new().unwrap();
    for product in Product::releases() {
        let server = Server::start(&net.db, &Options::new(product).without_tls()).unwrap();
        let (_, greeting) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
        assert!(!greeting.offers_tls);
        for client in Client::ALL {
            let plain = client
                .login(&net.app, &Login::new(&server, &net.app, Tls::Off))
                .unwrap();
            assert!(plain.is_in(), "{product:?} {client:?} {}", plain.text);
        }
    }
}

#[test]
fn mysql_refuses_plaintext_itself_with_3159_after_the_password() {
    let net = Net::new().unwrap();
    let options = Options::new(Product::MySql).with("--require-secure-transport=ON");
    let server = Server::start(&net.db, &options).unwrap();
    for client in Client::ALL {
        let answer = client
            .login(&net.app, &Login::new(&server, &net.app, Tls::Off))
            .unwrap();
        assert_eq!(answer.error(), Some(3159), "{client:?} {}", answer.text);
    }
    let wrong = Login::new(&server, &net.app, Tls::Off).user("app", "wrong");
    let answer = Client::PyMySql.login(&net.app, &wrong).unwrap();
    assert_eq!(answer.error(), Some(1045), "{}", answer.text);
    assert_eq!(
        evidence::counts(&server, net.app.v4())
            .unwrap()
            .connect_errors,
        0
    );
}

#[test]
fn mariadb_refuses_plaintext_itself_with_1045_up_to_10_11_and_then_with_3159() {
    let net = Net::new().unwrap();
    for (product, number, sqlstate) in [
        (Product::MariaDb105, 1045, "28000"),
        (Product::MariaDb, 1045, "28000"),
        (Product::MariaDb118, 3159, "08004"),
    ] {
        let options = Options::new(product).with("--require-secure-transport=ON");
        let server = Server::start(&net.db, &options).unwrap();
        let answer = Client::MariaDbCli
            .login(&net.app, &Login::new(&server, &net.app, Tls::Off))
            .unwrap();
        let failure = answer.result.expect_err(&answer.text);
        assert_eq!(failure.number, number, "{product:?} {}", answer.text);
        assert_eq!(failure.sqlstate.as_deref(), Some(sqlstate), "{product:?}");
    }
}

#[test]
fn half_open_probes_lock_their_address_out() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let options = Options::new(product).with("--max-connect-errors=5");
        let server = Server::start(&net.db, &options).unwrap();
        for probe in 1..=5 {
            drop(Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap());
            wait::until_true("the server to count the probe", PATIENCE, || {
                Ok(evidence::counts(&server, net.app.v4())?.handshake_errors == probe)
            })
            .unwrap();
        }
        let tls = Login::new(&server, &net.app, Tls::Required);
        let answer = Client::MySqlCli.login(&net.app, &tls).unwrap();
        assert_eq!(
            answer.error(),
            Some(ER_HOST_IS_BLOCKED),
            "{product:?} {}",
            answer.text
        );
        let from_elsewhere = Login::new(&server, &net.legacy, Tls::Required);
        assert!(
            Client::MySqlCli
                .login(&net.legacy, &from_elsewhere)
                .unwrap()
                .is_in()
        );
    }
}

#[test]
fn failed_logins_count_no_handshake_error() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let before = evidence::counts(&server, net.app.v4()).unwrap();
        let login = Login::new(&server, &net.app, Tls::Required).user("app", "wrong");
        assert_eq!(
            Client::MySqlCli.login(&net.app, &login).unwrap().error(),
            Some(1045)
        );
        let after = evidence::counts(&server, net.app.v4()).unwrap();
        assert_eq!(after.handshake_errors, 0);
        assert_eq!(
            after.aborted_connects_preauth,
            before.aborted_connects_preauth
        );
        assert_eq!(
            after.aborted_connects,
            before.aborted_connects + 1,
            "{product:?}"
        );
    }
}

#[test]
fn counts_of_an_unseen_address_are_zero() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let counts = evidence::counts(&server, net.app.v4()).unwrap();
    assert_eq!(
        counts,
        Counts {
            aborted_connects: counts.aborted_connects,
            ..Counts::default()
        }
    );
}

#[test]
fn general_log_shows_a_login_with_its_user_and_transport() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let mark = evidence::mark(&server).unwrap();
        assert!(evidence::logins(&server, "app", mark).unwrap().is_empty());
        let login = Login::new(&server, &net.app, Tls::Off);
        assert!(Client::PyMySql.login(&net.app, &login).unwrap().is_in());
        let logins = evidence::logins(&server, "app", mark).unwrap();
        assert!(
            matches!(&logins[..], [one] if one.contains("using TCP/IP")),
            "{logins:?}"
        );
        let wrong = login.user("app", "wrong");
        assert_eq!(
            Client::PyMySql.login(&net.app, &wrong).unwrap().error(),
            Some(1045)
        );
        assert!(
            evidence::logins(&server, "app", mark).unwrap().len() > 1,
            "{product:?}"
        );
    }
}

#[test]
fn raw_client_logs_in_over_plaintext_and_tls() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let to = server.at(net.app.db_v4());
        let login = server.open_login();

        let (mut plain, greeting) = Raw::greeted(&net.app, to).unwrap();
        assert!(greeting.offers_tls);
        plain.send(&login.packet_41()).unwrap();
        assert!(plain.receive().unwrap().is_ok(), "{product:?}");
        assert!(!plain.ask("SELECT 1").unwrap().is_empty());
        plain.send(&COM_QUIT).unwrap();
        assert_eq!(plain.receive().unwrap(), Next::Closed);

        let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
        raw.send_singly(&ssl_request()).unwrap();
        let mut tls = raw.into_tls().unwrap();
        tls.send(&login.packet_over_tls()).unwrap();
        assert!(tls.receive().unwrap().is_ok(), "{product:?}");
    }
}

#[test]
fn mariadb_without_tls_takes_a_login_that_claims_it() {
    let net = Net::new().unwrap();
    let login = LoginPacket::new(OPEN_USER).caps(CLIENT_SSL);
    for product in [Product::MariaDb105, Product::MariaDb, Product::MariaDb118] {
        let server = Server::start(&net.db, &Options::new(product).without_tls()).unwrap();
        for packet in [login.packet_41(), login.packet_320()] {
            let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
            raw.send(&packet).unwrap();
            let answer = raw.receive().unwrap();
            assert!(answer.is_ok(), "{product:?} {answer:?} {packet:?}");
        }
    }
}

#[test]
fn urgent_byte_lets_a_plaintext_login_look_like_tls_on_the_wire() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
    let packet = LoginPacket::new(OPEN_USER).packet_41();
    raw.send(&packet[..5]).unwrap();
    raw.send_urgent(0x0a).unwrap();
    raw.send(&packet[5..]).unwrap();
    assert!(raw.receive().unwrap().is_ok());
}

#[test]
fn wrong_sequence_id_gets_1156_from_the_server() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        for sequence in [0, 2, 3] {
            let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
            let mut packet = server.open_login().packet_41();
            packet[3] = sequence;
            raw.send(&packet).unwrap();
            let error: Option<ErrorPacket> = raw.receive().unwrap().error();
            assert_eq!(
                error.map(|error| error.number),
                Some(1156),
                "{product:?} {sequence}"
            );
        }
    }
}

/// Old versions of Connector/J ask for TLS with the flags alone. MySQL's source has kept a branch for it,
/// but 9.7 takes no login behind it; MariaDB does not know the form.
#[test]
fn ssl_request_of_4_bytes_ends_in_a_handshake_error() {
    const ER_HANDSHAKE_ERROR: u16 = 1043;
    let net = Net::new().unwrap();
    let mariadb = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let (mut raw, _) = Raw::greeted(&net.app, mariadb.at(net.app.db_v4())).unwrap();
    raw.send(&short_ssl_request()).unwrap();
    let answer = raw.receive().unwrap().error().unwrap();
    assert_eq!(answer.number, ER_HANDSHAKE_ERROR, "{answer:?}");

    let options = Options::new(Product::MySql).port(3307);
    let mysql = Server::start(&net.db, &options).unwrap();
    let (mut raw, _) = Raw::greeted(&net.app, mysql.at(net.app.db_v4())).unwrap();
    raw.send(&short_ssl_request()).unwrap();
    let mut tls = raw.into_tls().unwrap();
    tls.send(&mysql.open_login().packet_over_tls()).unwrap();
    let answer = tls.receive().unwrap().error().unwrap();
    assert_eq!(answer.number, ER_HANDSHAKE_ERROR, "{answer:?}");
}

/// What stands behind ADR 0011: a login cannot be kept at home by an answer behind the greeting, and in place of
/// the greeting the gate has nothing to write with.
#[test]
fn an_error_behind_the_greeting_does_not_keep_a_login_at_home_and_one_in_its_place_does() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb).without_tls()).unwrap();
    let greeting = greeting_of(&net, &server);
    let behind = [greeting, refusal(2)].concat();
    let in_place = refusal(0);
    for client in Client::ALL {
        let (heard, answer) = ask(&net, client, &server, &behind);
        assert_eq!(answer.error(), Some(REFUSED), "{client:?} {}", answer.text);
        assert!(names_user(&heard), "{client:?} sent its login all the same");
        let (heard, answer) = ask(&net, client, &server, &in_place);
        assert!(
            answer.text.contains(REFUSED_TEXT),
            "{client:?} {}",
            answer.text
        );
        assert!(!names_user(&heard), "{client:?}");
        println!("{}: {}", client.name(), answer.text.trim());
    }
}

fn greeting_of(net: &Net, server: &Server) -> Vec<u8> {
    let at = server.at(net.app.db_v4());
    net.app
        .run(|| {
            let mut stream = TcpStream::connect(at).unwrap();
            let mut header = [0; 4];
            stream.read_exact(&mut header).unwrap();
            let mut payload = vec![0; usize::from(header[0])];
            stream.read_exact(&mut payload).unwrap();
            [&header[..], &payload].concat()
        })
        .unwrap()
}

/// The servers' own error 3159 as a packet.
fn refusal(sequence: u8) -> Vec<u8> {
    let number = REFUSED.to_le_bytes();
    let payload = [&[0xff], &number[..], b"#HY000", REFUSED_TEXT.as_bytes()].concat();
    packet(sequence, &payload)
}

/// Lets `client` log in to a server that says `words`: what it sent, and what it printed.
fn ask(net: &Net, client: Client, server: &Server, words: &[u8]) -> (Vec<u8>, Answer) {
    const OTHER_PORT: u16 = 3399;
    let listener = net
        .db
        .run(|| TcpListener::bind(("0.0.0.0", OTHER_PORT)))
        .unwrap()
        .unwrap();
    thread::scope(|scope| {
        let heard = scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(words).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut heard = Vec::new();
            // The client may reset the connection: what came before is kept.
            stream.read_to_end(&mut heard).ok();
            heard
        });
        let mut login = Login::new(server, &net.app, Tls::Off);
        login.port = OTHER_PORT;
        let answer = client.login(&net.app, &login).unwrap();
        (heard.join().unwrap(), answer)
    })
}

fn names_user(heard: &[u8]) -> bool {
    heard
        .windows(USER.len())
        .any(|window| window == USER.as_bytes())
}

/// So a refusal of its TLS costs the server the same, however it is done.
#[test]
fn whatever_follows_the_request_for_tls_but_tls_is_a_handshake_error() {
    const FATAL: [u8; 7] = [0x15, 3, 1, 0, 2, 2, 70];
    const CLOSE_NOTIFY: [u8; 7] = [0x15, 3, 1, 0, 2, 1, 0];
    let net = Net::new().unwrap();
    for product in Product::all() {
        let options = Options::new(product).with("--tls-version=TLSv1.3");
        let server = Server::start(&net.db, &options).unwrap();
        let offer = |client: TlsClient| {
            move |raw: &mut Raw| {
                let (_, hello) = client.begin().unwrap();
                raw.send(&hello).unwrap();
                let mut first = [0; 1];
                raw.read_exactly(&mut first).unwrap();
                first[0]
            }
        };
        let offer_1_2 = offer(TlsClient::v1_2().unwrap());
        let offer_1_3 = offer(TlsClient::v1_3().unwrap());
        let acts: [(&str, &dyn Fn(Raw)); 7] = [
            ("FIN", &drop),
            ("RST", &|raw| raw.reset().unwrap()),
            ("a fatal alert", &|mut raw| raw.send(&FATAL).unwrap()),
            ("close_notify", &|mut raw| raw.send(&CLOSE_NOTIFY).unwrap()),
            ("an offer below its floor", &|mut raw| {
                assert_eq!(offer_1_2(&mut raw), 0x15, "an alert");
            }),
            ("its answer, then FIN", &|mut raw| {
                assert_eq!(offer_1_3(&mut raw), 0x16, "its flight");
            }),
            ("its answer, then an alert", &|mut raw| {
                assert_eq!(offer_1_3(&mut raw), 0x16, "its flight");
                raw.send(&FATAL).unwrap();
            }),
        ];
        for (expected, (what, act)) in (1..).zip(acts) {
            let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
            raw.send(&ssl_request()).unwrap();
            act(raw);
            let counted = wait::until_true("the server to count it", PATIENCE, || {
                let counts = evidence::counts(&server, net.app.v4())?;
                Ok((counts.handshake_errors, counts.connect_errors) == (expected, expected))
            });
            assert!(counted.is_ok(), "{product:?}, {what}: {counted:?}");
        }
    }
}
