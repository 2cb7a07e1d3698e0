//! Observe mode: everything passes, nothing is changed, and what would be refused is on record.

#![cfg(test)]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};

use musttls_tests::agent::Agent;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::netns::{Host, Net};
use musttls_tests::place::Scratch;
use musttls_tests::raw::Raw;
use musttls_tests::server::{Options, Product, SCHEMA, Server, USER};
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{CLIENT_SSL, COM_QUIT, LoginPacket, query};

const OBSERVE: &str = "mode = \"observe\"";

#[test]
fn plaintext_of_every_client_passes_and_is_reported_once() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        for options in [Options::new(product), Options::new(product).without_tls()] {
            let server = Server::start(&net.db, &options).unwrap();
            let agent = Agent::start(OBSERVE).unwrap();
            for client in Client::ALL {
                let login = Login::new(&server, &net.app, Tls::Off);
                let answer = client.login(&net.app, &login).unwrap();
                assert!(answer.is_in(), "{client:?}: {}", answer.text);
            }
            let count = Client::ALL.len();
            let records = agent
                .await_records("plaintext", count, |record| {
                    record.transport() == "plaintext"
                })
                .unwrap();
            assert_eq!(records.len(), count, "one record a session");
            for record in &records {
                let line = &record.line;
                assert_eq!(
                    (record.action(), record.disposition()),
                    (Some(3), Some(15)),
                    "{line}"
                );
                assert_eq!(
                    record.at("/policy/is_applied").as_bool(),
                    Some(false),
                    "{line}"
                );
                assert_eq!(record.user(), USER, "{line}");
                assert_eq!(record.text("/unmapped/schema"), SCHEMA, "{line}");
                assert_eq!(record.text("/unmapped/mode"), "observe", "{line}");
                assert_eq!(record.rule(), "require-tls", "{line}");
            }
        }
    }
}

#[test]
fn observe_is_the_default_mode() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let _agent = Agent::start("").unwrap();
    let login = Login::new(&server, &net.app, Tls::Off);
    assert!(Client::PyMySql.login(&net.app, &login).unwrap().is_in());
}

#[test]
fn one_server_can_be_observed_while_another_is_enforced() {
    let net = Net::new().unwrap();
    let enforced = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let observed = Server::start(&net.db, &Options::new(Product::MySql).port(3307)).unwrap();
    let agent = Agent::start(
        "mode = \"enforce\"\n[[server]]\nname = \"orders\"\nports = [3307]\nmode = \"observe\"",
    )
    .unwrap();
    let login = Login::new(&enforced, &net.app, Tls::Off);
    assert_eq!(
        Client::PyMySql.login(&net.app, &login).unwrap().error(),
        Some(3159)
    );
    let login = Login::new(&observed, &net.app, Tls::Off);
    assert!(Client::PyMySql.login(&net.app, &login).unwrap().is_in());
    agent
        .await_record("the observed login", |record| {
            record.text("/unmapped/server") == "orders" && record.action() == Some(3)
        })
        .unwrap();
}

#[test]
fn not_one_byte_is_changed_in_either_direction() {
    let without: Vec<_> = conversations();
    let agent = Agent::start(OBSERVE).unwrap();
    let with = conversations();
    // The agent took the scripted server for a server, and judged.
    agent
        .await_records("the plaintext logins", 4, |record| {
            record.action() == Some(3)
        })
        .unwrap();
    assert_eq!(without.len(), SCRIPTS.len());
    for ((name, _), (without, with)) in SCRIPTS.iter().zip(without.into_iter().zip(with)) {
        assert!(!without.heard_by_server.is_empty(), "{name}");
        assert_eq!(without, with, "{name}");
    }
}

/// What a client sends behind the greeting, one segment an item.
type Script = fn() -> Vec<Vec<u8>>;

const SCRIPTS: &[(&str, Script)] = &[
    ("login and query", || {
        vec![login().packet_41(), query("SELECT 1"), COM_QUIT.to_vec()]
    }),
    ("login in single bytes", || {
        login()
            .packet_41()
            .into_iter()
            .map(|byte| vec![byte])
            .collect()
    }),
    ("login from before 4.1", || {
        vec![login().packet_320(), COM_QUIT.to_vec()]
    }),
    ("claim of TLS, then plaintext", || {
        vec![login().caps(CLIENT_SSL).packet_41(), query("SELECT 1")]
    }),
    ("garbage", || {
        vec![b"\x03\0\0\x01GET".to_vec(), vec![0xff, 0, 0]]
    }),
    ("login and query in one segment", || {
        vec![[login().packet_41(), query("SELECT 1")].concat()]
    }),
];

fn login() -> LoginPacket {
    LoginPacket::new(USER)
        .auth(b"SCRAMBLE-OF-20-BYTES")
        .schema(SCHEMA)
}

#[derive(Debug, PartialEq, Eq)]
struct Conversation {
    heard_by_server: Vec<u8>,
    heard_by_client: Vec<u8>,
}

fn conversations() -> Vec<Conversation> {
    SCRIPTS
        .iter()
        .map(|(_, script)| {
            let net = Net::new().unwrap();
            let server = FakeServer::start(&net.db);
            // A new listener is covered before its first session; nothing has to be waited for.
            let to = (net.app.db_v4(), 3306).into();
            let mut raw = Raw::connect(&net.app, to).unwrap();
            for segment in script() {
                raw.send(&segment).unwrap();
            }
            raw.close_writing().unwrap();
            let (heard_by_client, _) = raw.read_to_end().unwrap();
            Conversation {
                heard_by_server: server.heard(),
                heard_by_client,
            }
        })
        .collect()
}

struct FakeServer {
    child: Child,
    file: PathBuf,
    _directory: Scratch,
}

impl FakeServer {
    fn start(host: &Host) -> Self {
        let directory = Scratch::new().unwrap();
        let program = directory.join("mysqld");
        fs::copy(env!("CARGO_BIN_EXE_fake-mysqld"), &program).unwrap();
        let file = directory.join("heard");
        let child = host
            .spawn(Command::new(program).arg("3306").arg(&file))
            .unwrap();
        wait::until_true("the scripted server", PATIENCE, || Ok(file.exists())).unwrap();
        Self {
            child,
            file,
            _directory: directory,
        }
    }

    /// All it heard in its one session.
    fn heard(&self) -> Vec<u8> {
        wait::until("the scripted server to write", PATIENCE, || {
            Ok(Some(fs::read(&self.file)?).filter(|heard| !heard.is_empty()))
        })
        .unwrap()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}
