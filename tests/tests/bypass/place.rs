//! A local user's program of a server's name that listens by MPTCP is covered by its place, and by no other: who listens at the same
//! port elsewhere is not judged with it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::Duration;

use musttls_tests::agent::Agent;
use musttls_tests::bpf;
use musttls_tests::netns::{Host, Net};
use musttls_tests::place::{Killed, Scratch};
use musttls_tests::server::{Options, PORT, Product, Server};
use musttls_tests::wait::{self, PATIENCE};
use rustix::net::{Shutdown, shutdown};

use super::{ENFORCE, assert_in, assert_refused, by_tls, greeted, in_plaintext, is_covered};

/// A port that no `[[server]]` and no default names; LDAP's.
const LDAP: u16 = 389;
/// An anonymous bind (RFC 4511 section 4.2). Its fourth byte is that of a login.
const BIND: &[u8] = b"\x30\x0c\x02\x01\x01\x60\x07\x02\x01\x03\x04\x00\x80\x00";
/// The answer: success.
const BOUND: &[u8] = b"\x30\x0c\x02\x01\x01\x61\x07\x0a\x01\x00\x04\x00\x04\x00";

/// On a kernel that does not tell programs of network namespaces, it goes on when the other is gone.
#[test]
fn service_at_the_port_of_a_listener_of_mptcp_in_another_namespace_goes_on() {
    let net = Net::new().unwrap();
    let to = SocketAddr::new(net.app.db_v4(), LDAP);
    let tells = bpf::tells_namespaces().unwrap();
    for order in [
        "service agent fake",
        "agent service fake",
        "agent fake service",
    ] {
        let (mut service, mut agent, mut fake) = (None, None, None);
        for word in order.split(' ') {
            match word {
                "service" => service = Some(Service::start(&net.db, Ipv4Addr::UNSPECIFIED.into())),
                "agent" => agent = Some(Agent::start(ENFORCE).unwrap()),
                _ => fake = Some(Fake::start(&net.legacy, LDAP, Ipv4Addr::UNSPECIFIED, &[])),
            }
        }
        let (agent, fake) = (agent.unwrap(), fake.unwrap());
        fake.await_covered(&agent);
        for _ in 0..3 {
            assert!(
                !tells || is_answered(&net.app, to),
                "{order}: while it is there"
            );
        }
        fake.end(&agent);
        let answered = || Ok(is_answered(&net.app, to));
        wait::until_true(&format!("{order}: an answer"), PATIENCE, answered).unwrap();
        drop(service);
    }
}

#[test]
fn service_at_another_address_than_a_listener_of_mptcp_goes_on() {
    let net = Net::new().unwrap();
    let to = SocketAddr::new(net.app.db_v4(), LDAP);
    for service_first in [true, false] {
        let start = || Service::start(&net.db, net.app.db_v4());
        let early = service_first.then(start);
        let agent = Agent::start(ENFORCE).unwrap();
        let fake = Fake::start(&net.db, LDAP, Ipv4Addr::new(127, 0, 0, 2), &[]);
        fake.await_covered(&agent);
        let service = early.unwrap_or_else(start);
        for _ in 0..3 {
            assert!(is_answered(&net.app, to), "service first: {service_first}");
        }
        drop(service);
    }
}

/// A program can say of its port what it likes.
#[test]
fn listener_of_a_server_is_never_taken_for_what_is_at_its_port_elsewhere() {
    let net = Net::new().unwrap();
    for agent_first in [true, false] {
        let early = agent_first.then(|| Agent::start(ENFORCE).unwrap());
        let x = "--mysqlx-port=3306";
        let fake = Fake::start(&net.legacy, PORT, Ipv4Addr::UNSPECIFIED, &[x]);
        let options = Options::new(Product::MariaDb).with("--bind-address=0.0.0.0");
        let server = Server::start(&net.db, &options).unwrap();
        let agent = early.unwrap_or_else(|| Agent::start(ENFORCE).unwrap());
        fake.await_covered(&agent);
        assert_refused(&in_plaintext(greeted(&net, &server), &server));
        assert_in(&by_tls(greeted(&net, &server), &server));
    }
}

/// A program named `mysqld` that listens by MPTCP, and serves nobody.
struct Fake {
    process: Killed,
    _directory: Scratch,
}

impl Fake {
    fn start(host: &Host, port: u16, address: Ipv4Addr, arguments: &[&str]) -> Self {
        let directory = Scratch::new().unwrap();
        let program = directory.join("mysqld");
        fs::copy(env!("CARGO_BIN_EXE_fake-mysqld"), &program).unwrap();
        let ready = directory.join("ready");
        let mut command = Command::new(&program);
        command.arg(port.to_string()).arg(&ready).arg("multipath");
        command.arg(address.to_string()).args(arguments);
        let process = Killed(host.spawn(&mut command).unwrap());
        wait::until_true("the listener", PATIENCE, || Ok(ready.exists())).unwrap();
        Self {
            process,
            _directory: directory,
        }
    }

    fn await_covered(&self, agent: &Agent) {
        let is_covered = || Ok(is_covered(agent, self.process.0.id())? == Some(true));
        wait::until_true("the listener to be covered", PATIENCE, is_covered).unwrap();
    }

    /// Ends it, and waits until the agent knows.
    fn end(mut self, agent: &Agent) {
        self.process.0.kill().unwrap();
        self.process.0.wait().unwrap();
        let is_gone = || Ok(is_covered(agent, self.process.0.id())?.is_none());
        wait::until_true("the listener to be forgotten", PATIENCE, is_gone).unwrap();
    }
}

/// A service whose clients speak first.
struct Service(TcpListener);

impl Service {
    fn start(host: &Host, address: IpAddr) -> Self {
        let listener = host.run(|| TcpListener::bind((address, LDAP)));
        let listener = listener.unwrap().unwrap();
        let accepting = listener.try_clone().unwrap();
        thread::spawn(move || {
            while let Ok((mut session, _)) = accepting.accept() {
                thread::spawn(move || {
                    let mut request = [0; BIND.len()];
                    let whole = session.read_exact(&mut request);
                    whole.and_then(|()| session.write_all(BOUND))
                });
            }
        });
        Self(listener)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It accepts no more.
        shutdown(&self.0, Shutdown::Both).unwrap();
    }
}

/// Whether a client of such a service that speaks at once gets its answer: at once, or after TCP has sent its bytes again.
fn is_answered(host: &Host, to: SocketAddr) -> bool {
    let client = host.run(|| TcpStream::connect(to)).unwrap();
    let mut client = client.unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    client.write_all(BIND).unwrap();
    let mut answer = [0; BOUND.len()];
    client.read_exact(&mut answer).is_ok() && answer == BOUND
}
