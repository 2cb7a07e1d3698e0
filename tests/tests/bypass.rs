//! Ways by which bytes could reach a server without passing the gate: what they do, and that they are told.

#![cfg(test)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::evidence;
use musttls_tests::netns::{Host, Net};
use musttls_tests::place::{Killed, Scratch};
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{OPEN_USER, Options, Product, Server};
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{REFUSED, ssl_request};
use rustix::net::{
    AddressFamily, Protocol, SocketFlags, SocketType, bind, connect, getpeername, getsockname,
    ipproto, listen, socket_with, sockopt,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::Value;

#[path = "bypass/place.rs"]
mod place;
#[path = "bypass/sockmap.rs"]
mod sockmap;

use sockmap::Sockmap;

const ENFORCE: &str = "mode = \"enforce\"";

#[test]
fn client_of_tcp_is_judged_on_a_listener_of_mptcp() {
    let net = Net::new().unwrap();
    for agent_first in [false, true] {
        let early = agent_first.then(|| Agent::start(ENFORCE).unwrap());
        let listener = mptcp_listener(&net.db);
        let server = activated(&net.db, &listener);
        let agent = early.unwrap_or_else(|| Agent::start(ENFORCE).unwrap());
        let alarm = await_alarm(&agent, "mptcp");
        assert_eq!(alarm["pid"], server.pid(), "{alarm}");
        assert_eq!(alarm["program"], "mariadbd", "{alarm}");
        assert_eq!(alarm["found"], "0.0.0.0:3306 listens by MPTCP", "{alarm}");

        let mark = evidence::mark(&server).unwrap();
        assert_refused(&in_plaintext(greeted(&net, &server), &server));
        assert_eq!(evidence::logins(&server, OPEN_USER, mark).unwrap(), [""; 0]);
        assert_in(&by_tls(greeted(&net, &server), &server));
        let by_tls = |record: &Record| record.transport() == "tls" && record.action() == Some(1);
        agent.await_record("TLS", by_tls).unwrap();
    }
}

/// A session was opened before: the listener's record is as old as that.
#[test]
fn settings_of_a_listener_that_is_covered_by_port_change_by_reload() {
    let net = Net::new().unwrap();
    for agent_first in [false, true] {
        let early = agent_first.then(|| Agent::start("mode = \"observe\"").unwrap());
        let listener = mptcp_listener(&net.db);
        let server = activated(&net.db, &listener);
        let agent = early.unwrap_or_else(|| Agent::start("mode = \"observe\"").unwrap());
        await_alarm(&agent, "mptcp");
        let login = || in_plaintext(greeted(&net, &server), &server);
        assert_in(&login());
        let orders = "mode = \"observe\"\n[[server]]\nname = \"orders\"\nports = [3306]\n";
        agent
            .set_policy(&format!("{orders}mode = \"enforce\""))
            .unwrap();
        assert_refused(&login());
        agent.set_policy(orders).unwrap();
        assert_in(&login());
    }
}

/// Places that are covered have 512 entries. Any user may have a program of a server's name listen on more.
#[test]
fn listener_that_found_no_place_is_judged_from_its_greeting_on() {
    let net = Net::new().unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let directory = Scratch::new().unwrap();
    let program = directory.join("mysqld");
    fs::copy(env!("CARGO_BIN_EXE_fake-mysqld"), &program).unwrap();
    let ready = directory.join("ready");
    let mut command = Command::new(&program);
    command.arg("20000").arg(&ready).arg("hoards");
    let hoarder = Killed(net.legacy.spawn(&mut command).unwrap());
    wait::until_true("600 listeners", PATIENCE, || Ok(ready.exists())).unwrap();
    let all_taken = || Ok(agent.log()?.contains("covered=false"));
    wait::until_true("all places to be taken", PATIENCE, all_taken).unwrap();
    let listener = mptcp_listener(&net.db);
    let server = activated(&net.db, &listener);
    let is_covered = || is_covered(&agent, server.pid());
    assert!(!wait::until("the server to be found", PATIENCE, is_covered).unwrap());
    for _ in 0..3 {
        assert_refused(&in_plaintext(greeted(&net, &server), &server));
    }
    drop(hoarder);
    wait::until_true("a place", PATIENCE, || Ok(is_covered()? == Some(true))).unwrap();
}

/// What the kernel makes of a stream over several connections, or of one that its client maps elsewhere, no segment
/// tells. So no login gets in, whatever it looks like.
#[test]
fn client_of_mptcp_gets_no_login_in() {
    let net = Net::new().unwrap();
    for agent_first in [false, true] {
        let early = agent_first.then(|| Agent::start(ENFORCE).unwrap());
        let listener = mptcp_listener(&net.db);
        let server = activated(&net.db, &listener);
        let agent = early.unwrap_or_else(|| Agent::start(ENFORCE).unwrap());
        await_alarm(&agent, "mptcp");
        let mark = evidence::mark(&server).unwrap();
        let to = server.at(net.app.db_v4());
        for first in [server.open_login().packet_41(), ssl_request()] {
            let mut raw = mptcp_client(&net.app, to);
            raw.greeting().unwrap();
            raw.send(&first).unwrap();
            let answer = raw.receive_within(Duration::from_secs(2)).unwrap();
            assert!(matches!(answer, Next::Silence | Next::Reset), "{answer:?}");
        }
        let records = agent
            .await_records("both refusals", 2, Record::is_denied)
            .unwrap();
        for record in records {
            assert_eq!(
                record.text("/unmapped/reason"),
                "multipath",
                "{}",
                record.line
            );
        }
        assert_eq!(evidence::logins(&server, OPEN_USER, mark).unwrap(), [""; 0]);
        assert_eq!(agent.outcome("denied").unwrap(), 2);
    }
}

#[test]
fn client_of_mptcp_is_only_reported_in_observe_mode() {
    let net = Net::new().unwrap();
    let listener = mptcp_listener(&net.db);
    let server = activated(&net.db, &listener);
    let agent = Agent::start("mode = \"observe\"").unwrap();
    await_alarm(&agent, "mptcp");
    let mut raw = mptcp_client(&net.app, server.at(net.app.db_v4()));
    raw.greeting().unwrap();
    assert_in(&in_plaintext(raw, &server));
    let observed = |record: &Record| record.text("/unmapped/reason") == "multipath";
    let record = agent.await_record("the session", observed).unwrap();
    assert_eq!(record.action(), Some(3), "{}", record.line);
}

/// Both sides speak SMC, and neither has a device for it. The client's kernel says so in SMC's own words, on the TCP
/// connection and before anything else; with a device, its proposal would begin with the same bytes (RFC 7609
/// appendix A).
#[test]
#[ignore = "needs CONFIG_SMC, which kernels of the VMs have"]
fn clients_of_a_listener_of_smc_are_judged_or_refused() {
    let net = Net::new().unwrap();
    let listener = TcpListener::from(smc(&net.db));
    sockopt::set_socket_reuseaddr(&listener, true).unwrap();
    bind(&listener, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 3306)).unwrap();
    listen(&listener, 64).unwrap();
    let server = activated(&net.db, &listener);
    let to = server.at(net.app.db_v4());
    for (mode, lets_in) in [("observe", true), ("enforce", false)] {
        let agent = Agent::start(&format!("mode = \"{mode}\"")).unwrap();
        let alarm = await_alarm(&agent, "smc");
        assert_eq!(alarm["pid"], server.pid(), "{alarm}");
        assert_eq!(alarm["found"], "0.0.0.0:3306 listens by SMC", "{alarm}");

        // A client of TCP is one as any other.
        let mark = evidence::mark(&server).unwrap();
        let answer = in_plaintext(greeted(&net, &server), &server);
        if lets_in {
            assert_in(&answer);
        } else {
            assert_refused(&answer);
        }
        assert_in(&by_tls(greeted(&net, &server), &server));

        // One of SMC falls back to TCP where its word passes. The gate keeps it, so that its peer gives it up.
        let client = smc(&net.app);
        connect(&client, &to).unwrap();
        let port = local_port(&client);
        let mut raw = Raw::over(client.into()).unwrap();
        if lets_in {
            raw.greeting().unwrap();
            assert_in(&in_plaintext(raw, &server));
        } else {
            let end = raw.receive().unwrap();
            assert!(matches!(end, Next::Closed | Next::Reset), "{end:?}");
            drop(raw);
        }
        // It is on record when the kernel lets go of its socket. On Linux 5.10 that takes until the server accepts
        // the next session, and then until the FIN has been sent nine times in vain (`tcp_orphan_retries`): 100 s.
        drop(Raw::greeted(&net.app, to).unwrap());
        let record = wait::until("the record of the session of SMC", PATIENCE * 9, || {
            let is_its = |it: &Record| it.source_port() == Some(port);
            Ok(agent.records()?.into_iter().find(is_its))
        })
        .unwrap();
        let line = &record.line;
        assert_eq!(record.text("/unmapped/reason"), "not-a-login", "{line}");
        let verdict = if lets_in { "would_deny" } else { "denied" };
        assert_eq!(record.text("/unmapped/verdict"), verdict, "{line}");
        evidence::await_no_connection(&server).unwrap();
        let logins = evidence::logins(&server, OPEN_USER, mark).unwrap();
        assert_eq!(logins.len(), if lets_in { 3 } else { 1 }, "{logins:?}");
    }
}

fn local_port(socket: &OwnedFd) -> u64 {
    let local = getsockname(socket).unwrap();
    SocketAddr::try_from(local).unwrap().port().into()
}

fn smc(host: &Host) -> OwnedFd {
    /// `AF_SMC` of `<linux/socket.h>`.
    const AF_SMC: AddressFamily = AddressFamily::from_raw(43);
    let make = || socket_with(AF_SMC, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    host.run(make).unwrap().expect("a kernel with CONFIG_SMC")
}

/// The kernel falls back to TCP, so it is a client as any other.
#[test]
fn client_of_mptcp_passes_with_tls_on_a_listener_of_tcp() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        assert_eq!(alarms(&agent), [Value::Null; 0]);
        let mut raw = mptcp_client(&net.app, server.at(net.app.db_v4()));
        raw.greeting().unwrap();
        assert_in(&by_tls(raw, &server));
        let mut raw = mptcp_client(&net.app, server.at(net.app.db_v4()));
        raw.greeting().unwrap();
        assert_refused(&in_plaintext(raw, &server));
        assert!(agent.held().unwrap().is_empty());
    }
}

/// A server holds what it was started with: the kernel knows no other way to see such a socket from outside.
#[test]
fn socket_past_tcp_is_an_alarm_as_long_as_it_is_open() {
    let net = Net::new().unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    assert_eq!(alarms(&agent), [Value::Null; 0]);
    for (family, name) in [
        (AddressFamily::XDP, "AF_XDP"),
        (AddressFamily::PACKET, "AF_PACKET"),
    ] {
        let make = || socket_with(family, SocketType::RAW, SocketFlags::empty(), None);
        let inherited = net.db.run(make).unwrap().unwrap();
        let mut server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
        drop(inherited);
        let alarm = await_alarm(&agent, "raw-socket");
        assert_eq!(alarm["pid"], server.pid(), "{alarm}");
        assert!(alarm["found"].as_str().unwrap().contains(name), "{alarm}");
        await_told(&agent, &format!("an {name} socket"), 1);
        server.kill().unwrap();
        await_no_alarm(&agent);
        await_told(&agent, &format!("an {name} socket"), 2);
    }
}

#[test]
fn preloaded_network_is_an_alarm() {
    let net = Net::new().unwrap();
    let directory = Scratch::new().unwrap();
    let library = directory.join("libsmc-preload.so");
    fs::copy(any_library(), &library).unwrap();
    let preload = format!("LD_PRELOAD={}", library.display());
    let options = Options::new(Product::MariaDb).through(&["env", &preload]);
    let server = Server::start(&net.db, &options).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let alarm = await_alarm(&agent, "user-space");
    assert_eq!(alarm["pid"], server.pid(), "{alarm}");
    let found = alarm["found"].as_str().unwrap();
    assert!(found.contains("libsmc-preload.so is loaded"), "{alarm}");
    for command in ["scan", "doctor"] {
        let output = agent.home().musttls(&[command]).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            text.contains("libsmc-preload.so is loaded"),
            "{command}: {text}"
        );
    }
}

/// What is warned of is real: the login gets in, and no counter has seen it.
#[test]
fn session_in_a_sockmap_passes_by_the_gate_and_is_an_alarm() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    assert_eq!(alarms(&agent), [Value::Null; 0]);
    // A map whose entries tell cookies, and one whose entries do not.
    for (value_len, of_server) in [(8, true), (4, false)] {
        let to = server.at(Ipv4Addr::LOCALHOST.into());
        let client = net.db.run(|| TcpStream::connect(to)).unwrap().unwrap();
        let sender = client.try_clone().unwrap();
        let mut raw = Raw::over(client).unwrap();
        raw.greeting().unwrap();
        let accepted = accepted(&server, sender.local_addr().unwrap());
        let target = Sockmap::new(value_len).unwrap();
        target.put(&accepted).unwrap();
        let source = Sockmap::new(value_len).unwrap();
        source.redirect_to(&target).unwrap();
        source.put(&sender).unwrap();
        drop(accepted);

        let mark = evidence::mark(&server).unwrap();
        raw.send(&server.open_login().packet_41()).unwrap();
        assert!(raw.receive().unwrap().is_ok());
        assert_eq!(evidence::logins(&server, OPEN_USER, mark).unwrap().len(), 1);
        assert_eq!(agent.outcome("denied").unwrap(), 0);

        let alarm = await_alarm(&agent, "sockmap");
        if of_server {
            assert_eq!(alarm["pid"], server.pid(), "{alarm}");
        } else {
            assert_eq!(alarm["pid"], Value::Null, "{alarm}");
        }
        drop((raw, sender, source, target));
        await_no_alarm(&agent);
    }
}

/// Sockmaps without a program hand listeners to `sk_lookup` programs: nothing passes by the gate.
#[test]
fn sockmap_without_a_program_is_no_alarm() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let to = server.at(Ipv4Addr::LOCALHOST.into());
    let client = net.db.run(|| TcpStream::connect(to)).unwrap().unwrap();
    let from = client.local_addr().unwrap();
    // Now the server has accepted it.
    Raw::over(client.try_clone().unwrap())
        .unwrap()
        .greeting()
        .unwrap();
    let map = Sockmap::new(4).unwrap();
    map.put(&accepted(&server, from)).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    assert_eq!(alarms(&agent), [Value::Null; 0]);
}

/// A server whose classic port is a listening socket of MPTCP, as `mptcpize run` makes it.
fn activated(host: &Host, listener: &TcpListener) -> Server {
    Server::start_activated(host, &Options::new(Product::MariaDb), listener).unwrap()
}

fn mptcp(host: &Host) -> OwnedFd {
    let make = || {
        socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            Some(ipproto::MPTCP),
        )
    };
    host.run(make).unwrap().expect("a kernel with CONFIG_MPTCP")
}

fn mptcp_listener(host: &Host) -> TcpListener {
    let socket = mptcp(host);
    sockopt::set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 3306)).unwrap();
    listen(&socket, 64).unwrap();
    socket.into()
}

fn mptcp_client(host: &Host, to: SocketAddr) -> Raw {
    let socket = mptcp(host);
    connect(&socket, &to).unwrap();
    let protocol: Option<Protocol> = sockopt::socket_protocol(&socket).unwrap();
    assert_eq!(protocol, Some(ipproto::MPTCP));
    Raw::over(socket.into()).unwrap()
}

/// A client of TCP on `app`, greeted.
fn greeted(net: &Net, server: &Server) -> Raw {
    let greeted = Raw::greeted(&net.app, server.at(net.app.db_v4()));
    greeted.unwrap().0
}

/// The answer to a plaintext login.
fn in_plaintext(mut raw: Raw, server: &Server) -> Next {
    raw.send(&server.open_login().packet_41()).unwrap();
    raw.receive().unwrap()
}

/// The answer to the same with TLS.
fn by_tls(mut raw: Raw, server: &Server) -> Next {
    raw.send(&ssl_request()).unwrap();
    let mut tls = raw.into_tls().unwrap();
    tls.send(&server.open_login().packet_over_tls()).unwrap();
    tls.receive().unwrap()
}

fn assert_refused(answer: &Next) {
    assert_eq!(answer.error_number(), Some(REFUSED), "{answer:?}");
}

fn assert_in(answer: &Next) {
    assert!(answer.is_ok(), "{answer:?}");
}

/// Whether the agent covers the listener of the process `pid`; none if it does not know it.
fn is_covered(agent: &Agent, pid: u32) -> anyhow::Result<Option<bool>> {
    let status = agent.status()?;
    let servers = status["servers"].as_array().context("servers")?;
    let own = servers.iter().find(|it| it["pid"] == pid);
    Ok(own.map(|own| own["listeners"][0]["covered"] == true))
}

/// The server's own socket of a session.
fn accepted(server: &Server, client: SocketAddr) -> OwnedFd {
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let numbers = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    numbers
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter_map(|fd| pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).ok())
        .find(|socket| {
            let peer = getpeername(socket).ok().flatten();
            peer.and_then(|peer| SocketAddr::try_from(peer).ok())
                .is_some_and(|peer| peer.port() == client.port())
        })
        .expect("the server's end of the session")
}

/// A library that any program can load: the one that this test has loaded, too.
fn any_library() -> String {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter_map(|line| line.split_once('/'))
        .map(|(_, path)| format!("/{path}"))
        .find(|path| {
            let name = Path::new(path).file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("libgcc_s"))
        })
        .expect("libgcc_s, which every Rust program has loaded")
}

fn alarms(agent: &Agent) -> Vec<Value> {
    let status = agent.status().unwrap();
    assert_eq!(status["unchecked"], serde_json::json!([]));
    status["alarms"].as_array().unwrap().clone()
}

fn await_alarm(agent: &Agent, kind: &str) -> Value {
    let alarm = wait::until("the alarm", PATIENCE, || {
        let found = alarms(agent);
        assert!(found.iter().all(|alarm| alarm["kind"] == kind), "{found:?}");
        Ok(found.into_iter().next())
    })
    .unwrap();
    for field in ["meaning", "remedy"] {
        assert!(!alarm[field].as_str().unwrap().is_empty(), "{alarm}");
    }
    alarm
}

fn await_no_alarm(agent: &Agent) {
    wait::until_true("the end of the alarm", PATIENCE, || {
        Ok(alarms(agent).is_empty())
    })
    .unwrap();
}

/// The journal has so many warnings of it.
fn await_told(agent: &Agent, what: &str, times: usize) {
    wait::until_true("the journal", PATIENCE, || {
        let log = agent.log()?;
        let told = log
            .lines()
            .filter(|line| line.contains("WARN") && line.contains(what));
        Ok(told.count() == times)
    })
    .unwrap();
}
