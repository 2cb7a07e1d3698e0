//! X Protocol of MySQL, in enforce mode unless a test says otherwise.

#![cfg(test)]

use std::process::{Command, Stdio};
use std::time::Duration;

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::evidence;
use musttls_tests::mysqlx::{
    authenticate, capabilities_get, frame, into_tls, is_refusal, start_tls,
};
use musttls_tests::netns::Net;
use musttls_tests::place;
use musttls_tests::raw::Raw;
use musttls_tests::server::{Options, PASSWORD, Product, Server, USER};
use musttls_tests::wait;
use serde_json::Value;

const ENFORCE: &str = "mode = \"enforce\"";
const X_PORT: u16 = 33060;
/// `AuthenticateOk`, `AuthenticateContinue`, `Capabilities`.
const AUTHENTICATED: u8 = 4;
const CHALLENGE: u8 = 3;
const CAPABILITIES: u8 = 2;
/// How long a client waits for an answer that need not come.
const A_WHILE: Duration = Duration::from_secs(1);

fn start(net: &Net) -> Server {
    let options = Options::new(Product::MySql)
        .with("--mysqlx=ON")
        .with("--mysqlx-bind-address=*")
        .with("--mysqlx-socket=/tmp/musttls-x.sock")
        .with(&format!("--mysqlx-port={X_PORT}"));
    Server::start(&net.db, &options).unwrap()
}

fn connect(net: &Net) -> Raw {
    Raw::connect(&net.app, (net.app.db_v4(), X_PORT).into()).unwrap()
}

fn login() -> Vec<u8> {
    authenticate("MYSQL41", &[])
}

/// What Oracle's own driver says.
fn driver(net: &Net, tls: &str) -> Value {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/x_session.py");
    let mut python = Command::new(place::cache().join("python/bin/python"));
    python
        .arg(script)
        .arg(net.app.db_v4().to_string())
        .args([X_PORT.to_string().as_str(), USER, PASSWORD, tls])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = net.app.spawn(&mut python).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(text.trim())
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn plaintext_login_gets_the_servers_own_error_and_the_server_nothing() {
    let net = Net::new().unwrap();
    let server = start(&net);
    // What is refused below is a login where nothing is refused: the server answers with its challenge.
    let mut raw = connect(&net);
    raw.send(&login()).unwrap();
    assert_eq!(raw.receive_x().unwrap().unwrap().kind, CHALLENGE);
    drop(raw);

    let agent = Agent::start(ENFORCE).unwrap();
    let mark = evidence::mark(&server).unwrap();
    let before = evidence::counts(&server, net.app.v4()).unwrap();
    for preface in [vec![], capabilities_get()] {
        let mut raw = connect(&net);
        raw.send(&[preface.clone(), login()].concat()).unwrap();
        let answer = raw.receive_x().unwrap();
        assert!(is_refusal(&answer), "{preface:x?}: {answer:?}");
    }
    let records = agent
        .await_records("refusals", 2, Record::is_denied)
        .unwrap();
    for record in &records {
        assert_eq!(
            record.text("/unmapped/reason"),
            "x-without-tls",
            "{}",
            record.line
        );
        assert_eq!(
            record.text("/unmapped/refusal/outcome"),
            "landed",
            "{}",
            record.line
        );
        assert_eq!(record.transport(), "plaintext", "{}", record.line);
    }
    // Oracle's driver does not show an error in place of a challenge; what it says all the same is the remedy.
    let answer = driver(&net, "off");
    let text = answer["text"].as_str().unwrap_or_default();
    assert!(text.contains("try a secure connection"), "{answer}");
    evidence::await_no_connection(&server).unwrap();
    assert_eq!(evidence::logins(&server, USER, mark).unwrap(), [""; 0]);
    assert_eq!(evidence::counts(&server, net.app.v4()).unwrap(), before);
}

#[test]
fn capabilities_alone_pass() {
    let net = Net::new().unwrap();
    let _server = start(&net);
    let _agent = Agent::start(ENFORCE).unwrap();
    let mut raw = connect(&net);
    for _ in 0..3 {
        raw.send(&capabilities_get()).unwrap();
        assert_eq!(raw.receive_x().unwrap().unwrap().kind, CAPABILITIES);
    }
}

#[test]
fn tls_passes_and_its_record_agrees_with_the_server() {
    let net = Net::new().unwrap();
    let _server = start(&net);
    let agent = Agent::start(ENFORCE).unwrap();
    let answer = driver(&net, "required");
    let cipher = answer["cipher"].as_str().unwrap_or_default();
    assert!(!cipher.is_empty(), "{answer}");
    agent
        .await_record("TLS over X Protocol", |record| {
            record.transport() == "tls"
                && record.tls_cipher() == cipher
                && record.tls_version() == answer["version"]
        })
        .unwrap();
    // Byte by byte: capabilities, TLS, and a login in it.
    let mut raw = connect(&net);
    raw.send(&capabilities_get()).unwrap();
    assert_eq!(raw.receive_x().unwrap().unwrap().kind, CAPABILITIES);
    let mut raw = into_tls(raw).unwrap();
    let secret = format!("\0{USER}\0{PASSWORD}");
    raw.send(&authenticate("PLAIN", secret.as_bytes())).unwrap();
    assert_eq!(raw.receive_x().unwrap().unwrap().kind, AUTHENTICATED);
    let status = agent.status().unwrap();
    let held = status["held_segments"].as_object().unwrap();
    assert!(held.values().all(|count| count == 0), "{status}");
}

#[test]
fn login_in_any_cut_is_kept_out() {
    let net = Net::new().unwrap();
    let server = start(&net);
    let _agent = Agent::start(ENFORCE).unwrap();
    let stream = [capabilities_get(), login()].concat();
    for cut in 1..stream.len() {
        let mut raw = connect(&net);
        let (first, second) = stream.split_at(cut);
        raw.send(first).unwrap();
        raw.send(second).unwrap();
        loop {
            match raw.receive_x().unwrap() {
                Ok(message) if message.kind == CAPABILITIES => {}
                answer => {
                    assert!(is_refusal(&answer), "cut at {cut}: {answer:?}");
                    break;
                }
            }
        }
    }
    evidence::await_no_connection(&server).unwrap();
}

#[test]
fn what_only_looks_like_tls_gets_no_login_in() {
    let net = Net::new().unwrap();
    let server = start(&net);
    let agent = Agent::start("mode = \"observe\"").unwrap();
    // To the server, a message of 66,326 bytes that begins as a TLS record does: an AuthenticateStart with padding
    // in fields that it does not know.
    let mut padded = vec![0x16, 3, 1, 0, 4];
    let mut payload = login().split_off(5);
    let padding = 0x0001_0316 - 1 - payload.len() - 4;
    // Field 15, bytes, and its length as a varint.
    payload.push(15 << 3 | 2);
    for shift in [0, 7] {
        payload.push(u8::try_from(padding >> shift & 0x7f).unwrap() | 0x80);
    }
    payload.push(u8::try_from(padding >> 14).unwrap());
    payload.resize(0x0001_0316 - 1, 0);
    padded.extend(payload);
    let send = || {
        let mut raw = connect(&net);
        // The rest may be held and the connection reset meanwhile.
        let _sent = raw.send(&padded);
        raw
    };
    assert_eq!(
        send().receive_x().unwrap().map(|message| message.kind),
        Ok(CHALLENGE),
        "it is a login where nothing is refused"
    );
    drop(agent);
    let _agent = Agent::start(ENFORCE).unwrap();
    let mut raw = send();
    raw.set_patience(A_WHILE).unwrap();
    for _ in 0..3 {
        let answer = raw.receive_x().unwrap();
        assert_ne!(answer.as_ref().map(|message| message.kind), Ok(CHALLENGE));
        if answer.is_err() {
            break;
        }
    }
    drop(raw);
    drop(server);
}

#[test]
fn plaintext_behind_a_promise_of_tls_is_refused() {
    let net = Net::new().unwrap();
    let server = start(&net);
    let _agent = Agent::start(ENFORCE).unwrap();
    let mut raw = connect(&net);
    raw.send(&[start_tls(), login()].concat()).unwrap();
    raw.set_patience(A_WHILE).unwrap();
    for _ in 0..3 {
        match raw.receive_x().unwrap() {
            Ok(message) => assert_ne!(message.kind, CHALLENGE),
            Err(_) => break,
        }
    }
    drop(raw);
    evidence::await_no_connection(&server).unwrap();
}

#[test]
fn exception_by_source_lets_a_plaintext_login_in() {
    let net = Net::new().unwrap();
    let _server = start(&net);
    let policy = format!(
        "{ENFORCE}\n[[exception]]\nname = \"legacy\"\nsource = [\"{}/32\"]\nexpires = \"never\"\n\
         owner = \"dba@example.com\"\nreason = \"test\"",
        net.app.v4()
    );
    let agent = Agent::start(&policy).unwrap();
    let mut raw = connect(&net);
    raw.send(&login()).unwrap();
    assert_eq!(raw.receive_x().unwrap().unwrap().kind, CHALLENGE);
    agent
        .await_record("the exception", |record| record.rule() == "legacy")
        .unwrap();
}

#[test]
fn observe_mode_reports_and_changes_nothing() {
    let net = Net::new().unwrap();
    let _server = start(&net);
    let agent = Agent::start("mode = \"observe\"").unwrap();
    // Whole, and with its header in two segments, which nobody judges before the server's answer.
    for cut in [0, 3] {
        let mut raw = connect(&net);
        let login = login();
        let (first, second) = login.split_at(cut);
        raw.send(first).unwrap();
        raw.send(second).unwrap();
        assert_eq!(raw.receive_x().unwrap().unwrap().kind, CHALLENGE, "{cut}");
    }
    agent
        .await_records("what would be refused", 2, |record| {
            record.action() == Some(3) && record.text("/unmapped/reason") == "x-without-tls"
        })
        .unwrap();
}

#[test]
fn a_port_that_the_configuration_names_is_judged_by_its_greeting() {
    let net = Net::new().unwrap();
    let _server = start(&net);
    let policy = format!("{ENFORCE}\n[[server]]\nname = \"documents\"\nports = [{X_PORT}]");
    let agent = Agent::start(&policy).unwrap();
    // The server's notice comes with the connection; the client waits for it, as the first one must.
    for _ in 0..2 {
        let mut raw = connect(&net);
        let mut notice = [0; 9];
        raw.read_exactly(&mut notice).unwrap();
        assert_eq!(notice.get(..5), Some(&frame(11, &[8, 5, 26, 0])[..5]));
        raw.send(&login()).unwrap();
        let answer = raw.receive_x().unwrap();
        assert!(is_refusal(&answer), "{answer:?}");
    }
    agent
        .await_records("refusals", 2, |record| {
            record.is_denied() && record.text("/unmapped/server") == "documents"
        })
        .unwrap();
    assert!(driver(&net, "required")["cipher"].is_string());
}

#[test]
fn x_socket_passes() {
    let net = Net::new().unwrap();
    let server = start(&net);
    let _agent = Agent::start(ENFORCE).unwrap();
    let socket = place::cache().join("mysql-tree/tmp/musttls-x.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
    stream
        .set_read_timeout(Some(wait::here(A_WHILE * 20)))
        .unwrap();
    std::io::Write::write_all(&mut stream, &login()).unwrap();
    let mut all = Vec::new();
    let mut byte = [0];
    // The notice, if it comes, and then the challenge: a frame of type 3.
    while !(all.len() >= 5 && all.get(4) == Some(&CHALLENGE) || all.len() >= 14) {
        std::io::Read::read_exact(&mut stream, &mut byte).unwrap();
        all.extend(byte);
    }
    assert!(
        all.get(4) == Some(&CHALLENGE) || all.get(13) == Some(&CHALLENGE),
        "{all:x?}"
    );
    drop(server);
}
