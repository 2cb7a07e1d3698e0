//! Enforce mode and every way into a server: a plaintext login is refused on each listener, and TLS passes.
//!
//! In each test the server is in another network namespace than the agent, as in a container.
//! `reload.rs` has the servers that start, restart and die while the agent runs.

#![cfg(test)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as SocketName, UnixDatagram};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::bpf::Program;
use musttls_tests::cgroup::Cgroup;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::mysqlx;
use musttls_tests::netns::{Host, Net};
use musttls_tests::place::{Killed, Scratch};
use musttls_tests::raw::Raw;
use musttls_tests::server::{OPEN_USER, Options, PORT, Product, Server};
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{ErrorPacket, LoginPacket, REFUSED, query};
use rustix::net::sockopt::set_socket_reuseport;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, listen, socket_with};
use serde_json::Value;

const ENFORCE: &str = "mode = \"enforce\"";

#[test]
fn every_address_of_a_server_is_gated() {
    let net = Net::new().unwrap();
    let addresses = "--bind-address=10.77.1.1,fd77:1::1,127.0.0.1";
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product).with(addresses)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        assert_eq!(listeners(&agent, server.pid(), "classic").len(), 3);
        is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
        is_gated(&agent, &server, &net.app, server.at(net.app.db_v6()));
        is_gated(
            &agent,
            &server,
            &net.db,
            server.at(Ipv4Addr::LOCALHOST.into()),
        );
    }
}

#[test]
fn server_on_ipv6_only_is_gated() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let options = Options::new(product).with("--bind-address=fd77:1::1");
        let server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        is_gated(&agent, &server, &net.app, server.at(net.app.db_v6()));
        Raw::connect(&net.app, server.at(net.app.db_v4())).unwrap_err();
    }
}

/// An IPv4 client of a socket that is bound to `::`. MariaDB's takes IPv6 only, whatever its address is.
#[test]
fn v4_mapped_client_is_gated_and_on_record_by_its_ipv4_address() {
    let net = Net::new().unwrap();
    let options = Options::new(Product::MySql).with("--bind-address=::");
    let server = Server::start(&net.db, &options).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    assert_eq!(
        listeners(&agent, server.pid(), "classic").len(),
        1,
        "one socket for both"
    );
    is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
    let mut sessions = agent.records().unwrap();
    sessions.retain(Record::is_session);
    assert!(
        sessions
            .iter()
            .all(|record| record.source() == Some(net.app.v4())),
        "{sessions:?}"
    );
}

#[test]
fn admin_port_of_mysql_is_gated() {
    let net = Net::new().unwrap();
    // The default, and one that only the command line names.
    for port in [33062, 13306] {
        let options = Options::new(Product::MySql)
            .with("--admin-address=10.77.1.1")
            .with(&format!("--admin-port={port}"));
        let server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        let to = SocketAddr::new(net.app.db_v4(), port);
        is_gated(&agent, &server, &net.app, to);
        is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
    }
}

#[test]
fn extra_port_of_mariadb_is_gated() {
    let net = Net::new().unwrap();
    let options = Options::new(Product::MariaDb)
        .with("--extra-port=3366")
        .with("--extra-max-connections=10");
    let server = Server::start(&net.db, &options).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    for to in [net.app.db_v4(), net.app.db_v6()] {
        is_gated(&agent, &server, &net.app, SocketAddr::new(to, 3366));
    }
    is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
}

#[test]
fn server_in_a_cgroup_of_its_own_is_gated() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let group = Cgroup::new().unwrap();
        let enter = format!(
            "echo $$ > {}/cgroup.procs; exec \"$@\"",
            group.path().display()
        );
        let options = Options::new(product).through(&["sh", "-ec", &enter, "sh"]);
        let server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        let found = of_process(&agent, server.pid()).unwrap();
        assert_eq!(found["cgroup"], format!("/{}", group.name()));
        is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
    }
}

/// The kernel takes connections before it tells programs that a socket listens. Here that takes some milliseconds longer
/// than it does, and clients try all the time.
#[test]
fn sessions_from_before_the_callback_of_their_listener_are_judged() {
    let net = Net::new().unwrap();
    let group = Cgroup::new().unwrap();
    let directory = File::open(group.path()).unwrap();
    let slow = Program::slow_to_listen().unwrap();
    let _link = slow.attach_to_sockets(&directory).unwrap();
    let enter = format!(
        "echo $$ > {}/cgroup.procs; exec \"$@\"",
        group.path().display()
    );
    let options = Options::new(Product::MariaDb).through(&["sh", "-ec", &enter, "sh"]);
    let _agent = Agent::start(ENFORCE).unwrap();
    let to = SocketAddr::new(net.app.db_v4(), PORT);
    let is_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        if let Ok(raw) = Raw::connect(&net.app, to) {
                            return Some(raw);
                        }
                        if is_up.load(Ordering::Relaxed) {
                            return None;
                        }
                    }
                })
            })
            .collect();
        let server = Server::start(&net.db, &options);
        is_up.store(true, Ordering::Relaxed);
        let server = server.unwrap();
        let sessions: Vec<_> = clients
            .into_iter()
            .filter_map(|client| client.join().unwrap())
            .collect();
        assert!(!sessions.is_empty(), "the server was up before any client");
        for mut raw in sessions {
            raw.greeting().unwrap();
            raw.send(&server.open_login().packet_41()).unwrap();
            let answer = raw.receive().unwrap();
            let number = answer.error_number();
            assert_eq!(number, Some(REFUSED), "{answer:?}");
        }
    });
}

#[test]
fn redirected_port_is_gated() {
    let net = Net::new().unwrap();
    net.db
        .nft(
            "add table ip test; add chain ip test in { type nat hook prerouting priority -100; }; \
             add rule ip test in tcp dport 13306 redirect to :3306",
        )
        .unwrap();
    for product in Product::all() {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        is_gated(
            &agent,
            &server,
            &net.app,
            SocketAddr::new(net.app.db_v4(), 13306),
        );
    }
}

/// A published port of a container: the middle host hands the client's packets on to the server's, with
/// its own address as their source.
#[test]
fn forwarded_port_is_gated() {
    let net = Net::new().unwrap();
    net.db
        .run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))
        .unwrap()
        .unwrap();
    net.db
        .nft(
            "add table ip test; add chain ip test in { type nat hook prerouting priority -100; }; \
             add rule ip test in tcp dport 13306 dnat to 10.77.1.2:3306; \
             add chain ip test out { type nat hook postrouting priority 100; }; \
             add rule ip test out oifname veth1 masquerade",
        )
        .unwrap();
    for product in Product::all() {
        let server = Server::start(&net.app, &Options::new(product)).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        is_gated(
            &agent,
            &server,
            &net.legacy,
            SocketAddr::new(net.legacy.db_v4(), 13306),
        );
    }
}

/// Neither server opens a port of its own accord while it runs, so a scripted one stands in.
#[test]
fn listener_that_opens_while_the_agent_runs_is_gated_from_its_first_session() {
    let net = Net::new().unwrap();
    let directory = Scratch::new().unwrap();
    let _server = scripted(&net.db, &directory, &["3306", "13306"]);
    let agent = Agent::start(ENFORCE).unwrap();
    drop(Raw::greeted(&net.app, SocketAddr::new(net.app.db_v4(), 3306)).unwrap());
    let later = SocketAddr::new(net.app.db_v4(), 13306);
    let mut raw = wait::until("the second port", PATIENCE, || {
        Ok(Raw::greeted(&net.app, later).ok().map(|(raw, _)| raw))
    })
    .unwrap();
    raw.send(&LoginPacket::new(OPEN_USER).packet_41()).unwrap();
    let answer = raw.receive().unwrap();
    assert_eq!(answer.error_number(), Some(REFUSED), "{answer:?}");
    agent
        .await_record("the refusal", Record::is_denied)
        .unwrap();
}

#[test]
fn socket_of_a_service_manager_is_gated() {
    let net = Net::new().unwrap();
    let listener = listener(&net.db, 3306);
    let server = activated(&net.db, &listener);
    let agent = Agent::start(ENFORCE).unwrap();
    is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
}

#[test]
fn socket_that_a_service_manager_passes_on_while_the_agent_runs_is_gated() {
    let net = Net::new().unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let listener = listener(&net.db, 3306);
    let server = activated(&net.db, &listener);
    wait::until_true("the listener to be found", PATIENCE, || {
        Ok(listeners(&agent, server.pid(), "classic").len() == 1)
    })
    .unwrap();
    is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
}

/// As systemd does with `PrivateNetwork=`: `/proc/PID/net` does not list the socket.
#[test]
fn socket_of_another_network_namespace_than_its_server_is_gated() {
    let net = Net::new().unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let listener = listener(&net.db, 3306);
    let server = activated(&net.legacy, &listener);
    wait::until_true("the listener to be found", PATIENCE, || {
        Ok(listeners(&agent, server.pid(), "classic").len() == 1)
    })
    .unwrap();
    is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
}

/// The session that has the service manager start the server: it is established before the socket is
/// a server's.
#[test]
fn session_that_starts_its_server_is_gated() {
    for opens_first in ["the agent", "the service manager"] {
        let net = Net::new().unwrap();
        let opened = (opens_first != "the agent").then(|| listener(&net.db, 3306));
        let policy = format!("{ENFORCE}\n[[server]]\nname = \"activated\"\nports = [3306]");
        let agent = Agent::start(&policy).unwrap();
        let listener = opened.unwrap_or_else(|| listener(&net.db, 3306));
        let to = SocketAddr::new(net.app.db_v4(), 3306);
        // Until the agent has found that the listener is no server's, and the gate knows it.
        for _ in 0..20 {
            agent.status().unwrap();
            drop(Raw::connect(&net.app, to).unwrap());
        }
        let mut raw = Raw::connect(&net.app, to).unwrap();
        let server = activated(&net.db, &listener);
        let mark = evidence::mark(&server).unwrap();
        raw.greeting().unwrap();
        raw.send(&server.open_login().packet_41()).unwrap();
        let answer = raw.receive().unwrap();
        assert_eq!(
            answer.error_number(),
            Some(REFUSED),
            "{opens_first}: {answer:?}"
        );
        assert_eq!(evidence::logins(&server, OPEN_USER, mark).unwrap(), [""; 0]);
    }
}

/// Others are only observed. The settings of a listener's port hold from its first session on, whoever names it and when.
#[test]
fn settings_of_a_server_hold_before_its_listener_has_a_name() {
    const ORDERS: &str = "[[server]]\nname = \"orders\"\nports = [3306]\nmode";
    let net = Net::new().unwrap();
    let to = SocketAddr::new(net.app.db_v4(), 3306);
    let ahead = || {
        let statement = query("SELECT 'ahead of the greeting'");
        [LoginPacket::new(OPEN_USER).packet_41(), statement].concat()
    };
    let mut agent = Agent::start(&format!(
        "persist = true\nmode = \"observe\"\n{ORDERS} = \"enforce\""
    ))
    .unwrap();
    {
        let socket = listener(&net.db, 3306);
        let mut raw = Raw::connect(&net.app, to).unwrap();
        raw.send(&ahead()).unwrap();
        let server = activated(&net.db, &socket);
        agent
            .await_record("of the login ahead of the greeting", Record::is_denied)
            .unwrap();
        let log = server.general_log().unwrap();
        assert!(!log.contains("ahead of the greeting"), "{log}");
    }
    agent.kill().unwrap();
    {
        let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
        let mark = evidence::mark(&server).unwrap();
        let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
        raw.send(&server.open_login().packet_41()).unwrap();
        agent.start_again().unwrap();
        let answer = raw.receive().unwrap();
        let number = answer.error_number();
        assert_eq!(number, Some(REFUSED), "{answer:?}");
        assert_eq!(evidence::logins(&server, OPEN_USER, mark).unwrap(), [""; 0]);
    }
    // The other way round: nothing is held there, and all is on record.
    agent
        .set_policy(&format!("mode = \"enforce\"\n{ORDERS} = \"observe\""))
        .unwrap();
    let socket = listener(&net.db, 3306);
    let mut raw = Raw::connect(&net.app, to).unwrap();
    raw.send(&ahead()).unwrap();
    let port = raw.local().unwrap().port();
    let server = activated(&net.db, &socket);
    let record = agent
        .await_record("of the login that is observed", |record| {
            record.source_port() == Some(port.into())
        })
        .unwrap();
    assert_eq!(
        record.text("/unmapped/verdict"),
        "would_deny",
        "{}",
        record.line
    );
    assert_eq!(record.text("/unmapped/server"), "orders");
    let log = server.general_log().unwrap();
    assert!(log.contains("ahead of the greeting"), "{log}");
}

/// An administrator of the server, who needs no rights on the host for it, moves X Protocol to a port of Galera.
#[test]
fn x_protocol_on_a_port_of_galera_is_gated() {
    let net = Net::new().unwrap();
    let restarts = "for a; do shift; [ \"$a\" = --no-defaults ] || set -- \"$@\" \"$a\"; done
        export MYSQLD_PARENT_PID=$$; while :; do \"$@\"; [ $? = 16 ] || exit; done";
    let options = Options::new(Product::MySql)
        .with("--mysqlx=ON")
        .through(&["sh", "-c", restarts, "sh"]);
    let server = Server::start(&net.db, &options).unwrap();
    let _agent = Agent::start(ENFORCE).unwrap();
    // The connection ends with it.
    drop(server.query(
        "SET PERSIST_ONLY mysqlx_port = 4567; SET PERSIST_ONLY mysqlx_bind_address = '*'; RESTART",
    ));
    let to = SocketAddr::new(net.app.db_v4(), 4567);
    wait::until("X Protocol at the other port", PATIENCE, || {
        Ok(Raw::connect(&net.app, to).ok())
    })
    .unwrap();
    let answered = || {
        let mut raw = Raw::connect(&net.app, to)?;
        raw.send(&mysqlx::authenticate("MYSQL41", &[]))?;
        raw.receive_x()
    };
    let answer = answered();
    server.query("SHUTDOWN").unwrap();
    let answer = answer.unwrap();
    assert!(mysqlx::is_refusal(&answer), "{answer:?}");
}

/// Any user may bind a Unix socket to any bytes, and procfs lists it beside the server's.
#[test]
fn names_of_other_sockets_hide_no_server() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let bind = |name: &[u8]| {
        let name = SocketName::from_abstract_name(name).unwrap();
        net.db
            .run(|| UnixDatagram::bind_addr(&name))
            .unwrap()
            .unwrap()
    };
    let _others = [
        bind(b"\xff\xfe\x80"),
        bind(b"\n: : :\n0: 1 0 00010000 1 1 1 /x\n"),
    ];
    let agent = Agent::start(ENFORCE).unwrap();
    is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
    let status = agent.status().unwrap();
    let unix = status["servers"][0]["unix"].as_array().unwrap();
    assert_eq!(unix.len(), 1, "{status}");
}

/// Neither server sets `SO_REUSEPORT` itself: a service manager does. The kernel spreads the sessions of
/// the port over its listeners.
#[test]
fn helper_that_shares_the_port_of_a_server_is_let_alone() {
    const SESSIONS: usize = 40;
    let net = Net::new().unwrap();
    let listener = listener(&net.db, 3306);
    let server = activated(&net.db, &listener);
    let helper = self::listener(&net.db, 3306);
    let agent = Agent::start(ENFORCE).unwrap();
    let to = server.at(net.app.db_v4());
    let login = server.open_login().packet_41();
    let (mut echoed, mut refused) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| echo(&helper));
        for _ in 0..SESSIONS {
            let mut stream = net.app.run(|| TcpStream::connect(to)).unwrap().unwrap();
            stream.set_read_timeout(Some(wait::here(PATIENCE))).unwrap();
            // The helper waits for the client, the server greets: an honest client of the helper's protocol
            // may speak first, and its first bytes look like a login.
            let mut first = [0; 4];
            stream.peek(&mut first).unwrap();
            if first == HELPER {
                stream.write_all(&login).unwrap();
                let mut all = vec![0; HELPER.len() + login.len()];
                stream.read_exact(&mut all).unwrap();
                assert_eq!(all, [HELPER.as_slice(), &login].concat());
                echoed += 1;
            } else {
                let mut raw = Raw::over(stream).unwrap();
                raw.greeting().unwrap();
                raw.send(&login).unwrap();
                let answer = raw.receive().unwrap();
                let number = answer.error_number();
                assert_eq!(number, Some(REFUSED), "{answer:?}");
                refused += 1;
            }
        }
        // The end of the helper.
        rustix::net::shutdown(&helper, rustix::net::Shutdown::Both).unwrap();
    });
    assert!(
        echoed > 0 && refused > 0,
        "{echoed} sessions of the helper, {refused} of the server"
    );
    wait::until_true("the refusals in the status", PATIENCE, || {
        Ok(agent.outcome("denied")? == refused)
    })
    .unwrap();
}

/// As a server that fails to start, again and again: its listener is gone before the agent has it.
#[test]
fn listener_that_comes_and_goes_covers_no_other_namespace() {
    let net = Net::new().unwrap();
    let service = listener(&net.app, PORT);
    let to = SocketAddr::new(net.app.v4(), PORT);
    let agent = Agent::start(ENFORCE).unwrap();
    let directory = Scratch::new().unwrap();
    let _server = scripted(&net.db, &directory, &[&PORT.to_string(), "flickers"]);
    thread::scope(|scope| {
        scope.spawn(|| echo(&service));
        let ends = Instant::now() + Duration::from_secs(8);
        while Instant::now() < ends {
            let mut stream = net.db.run(|| TcpStream::connect(to)).unwrap().unwrap();
            stream.set_read_timeout(Some(wait::here(PATIENCE))).unwrap();
            // To the gate this could be the head of a login.
            stream.write_all(&[9, 0, 0, 1]).unwrap();
            let mut answer = [0; 8];
            stream.read_exact(&mut answer).unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        rustix::net::shutdown(&service, rustix::net::Shutdown::Both).unwrap();
    });
    let log = agent.log().unwrap();
    assert!(!log.contains("may not be touched"), "{log}");
}

/// The agent looks at each descriptor of all servers before it knows whose a listener is, and has not seen the end of a former
/// server by then: its search for the session's socket must outlast both.
#[test]
fn first_client_is_told_before_it_is_known_whose_the_listener_is() {
    const SERVERS: u16 = 10;
    const SOCKETS: &str = "15000";
    let net = Net::new().unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let directory = Scratch::new().unwrap();
    let former = scripted(&net.db, &directory, &[&PORT.to_string()]);
    wait::until_true("the former server to be known", PATIENCE, || {
        let told = agent.status()?;
        Ok(told["servers"]
            .as_array()
            .is_some_and(|all| !all.is_empty()))
    })
    .unwrap();
    drop(former);
    let _servers: Vec<_> = (PORT..PORT + SERVERS)
        .rev()
        .map(|port| {
            let directory = Scratch::new().unwrap();
            scripted(&net.db, &directory, &[&port.to_string(), "opens", SOCKETS])
        })
        .collect();
    let to = SocketAddr::new(net.app.db_v4(), PORT);
    let mut raw = Raw::connect(&net.app, to).unwrap();
    raw.greeting().unwrap();
    raw.send(&LoginPacket::new("nobody").packet_41()).unwrap();
    let answer = raw.receive().unwrap();
    let told = Some(ErrorPacket::refusal(2, Some("HY000")));
    assert_eq!(
        answer.error(),
        told,
        "{}\n{}",
        agent.log().unwrap(),
        agent.status().unwrap()
    );
}

/// A scripted server of this name and these arguments, which is up.
fn scripted(host: &Host, directory: &Scratch, arguments: &[&str]) -> Killed {
    let program = directory.join("mysqld");
    fs::copy(env!("CARGO_BIN_EXE_fake-mysqld"), &program).unwrap();
    let heard = directory.join("heard");
    let (port, rest) = arguments.split_first().unwrap();
    let mut command = Command::new(&program);
    command.arg(port).arg(&heard).args(rest);
    let server = Killed(host.spawn(&mut command).unwrap());
    wait::until_true("the scripted server", PATIENCE, || Ok(heard.exists())).unwrap();
    server
}

/// Group communication, and both ways of state transfer, between two real nodes in plaintext: the second
/// one joins while the gate enforces. What the nodes' clients send on the classic port is judged.
#[test]
fn galera_cluster_forms_while_its_classic_port_is_gated() {
    let net = Net::new().unwrap();
    let node = |address: &str, cluster: &str| {
        [
            "--wsrep-on=ON",
            "--wsrep-provider=/usr/lib/galera/libgalera_smm.so",
            "--wsrep-sst-method=rsync",
            "--binlog-format=ROW",
            "--innodb-autoinc-lock-mode=2",
            &format!("--wsrep-node-address={address}"),
            &format!("--wsrep-cluster-address=gcomm://{cluster}"),
        ]
        .into_iter()
        .fold(Options::new(Product::MariaDb), |options, option| {
            options.with(option)
        })
    };
    let first = Server::start(&net.db, &node("10.77.1.1", "")).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let second = Server::start(&net.app, &node("10.77.1.2", "10.77.1.1")).unwrap();
    for server in [&first, &second] {
        // The first one takes no statements while the second one copies its data.
        wait::until_true("a cluster of two", PATIENCE * 2, || {
            let status = "SHOW STATUS WHERE Variable_name IN ('wsrep_cluster_size', 'wsrep_ready')";
            let status = server.query(status)?;
            let wanted = ["wsrep_cluster_size", "2", "wsrep_ready", "ON"];
            Ok(status.split_whitespace().eq(wanted))
        })
        .unwrap();
        let named = listeners(&agent, server.pid(), "Galera replication");
        assert_eq!(named.len(), 1, "{named:?}");
        assert!(
            named.iter().all(|listener| listener["covered"] == false),
            "{named:?}"
        );
    }
    first.query("INSERT INTO shop.t VALUES (43)").unwrap();
    wait::until_true("replication", PATIENCE, || {
        Ok(second
            .query("SELECT COUNT(*) FROM shop.t WHERE n = 43")?
            .trim()
            == "1")
    })
    .unwrap();
    assert_eq!(agent.outcome("denied").unwrap(), 0);
    assert!(agent.held().unwrap().is_empty());
    is_gated(&agent, &first, &net.app, first.at(net.app.db_v4()));
}

/// The only listener that a server opens by a statement, while the agent runs.
#[test]
fn group_communication_of_mysql_is_named_and_not_judged() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &first_of_a_group(33061)).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    assert!(listeners(&agent, server.pid(), "group communication").is_empty());
    server.query("START GROUP_REPLICATION").unwrap();
    let named = wait::until("the port of group communication", PATIENCE, || {
        let named = listeners(&agent, server.pid(), "group communication");
        Ok((!named.is_empty()).then_some(named))
    })
    .unwrap();
    assert!(
        named.iter().all(|listener| listener["covered"] == false),
        "{named:?}"
    );
    let seen = agent.outcome("seen").unwrap();
    let mut raw = Raw::connect(&net.app, SocketAddr::new(net.app.db_v4(), 33061)).unwrap();
    raw.send(&server.open_login().packet_41()).unwrap();
    // Its own answer to what it does not understand, or none.
    drop(raw.receive_within(PATIENCE / 20));
    assert_eq!(agent.outcome("seen").unwrap(), seen);
    assert!(agent.held().unwrap().is_empty());
    is_gated(&agent, &server, &net.app, server.at(net.app.db_v4()));
}

/// With `group_replication_communication_stack=MYSQL` members log in to each other on the classic port, the first one to
/// itself. They ask for TLS where it is offered, although `group_replication_ssl_mode` is `DISABLED` unless set.
#[test]
fn group_over_the_classic_port_logs_in_with_tls_and_starts() {
    let net = Net::new().unwrap();
    let options =
        first_of_a_group(3306).with("--loose-group-replication-communication-stack=MYSQL");
    let server = Server::start(&net.db, &options).unwrap();
    for statement in [
        "CREATE USER member@'%' IDENTIFIED BY 'of the group'",
        "GRANT GROUP_REPLICATION_STREAM, REPLICATION SLAVE, CONNECTION_ADMIN, BACKUP_ADMIN ON *.* TO member@'%'",
        "CHANGE REPLICATION SOURCE TO SOURCE_USER='member', SOURCE_PASSWORD='of the group' \
         FOR CHANNEL 'group_replication_recovery'",
    ] {
        server.query(statement).unwrap();
    }
    let agent = Agent::start(ENFORCE).unwrap();
    let mark = evidence::mark(&server).unwrap();
    server.query("START GROUP_REPLICATION").unwrap();
    let own = |record: &Record| record.is_session() && record.source() == Some(net.app.db_v4());
    let record = agent.await_record("the member's own login", own).unwrap();
    assert_eq!(
        (record.transport(), record.action()),
        ("tls", Some(1)),
        "{}",
        record.line
    );
    let logins = evidence::connects(&server, mark).unwrap();
    // The plug-in's own sessions inside the server have no user.
    let members: Vec<&String> = logins.iter().filter(|login| !login.is_empty()).collect();
    assert_eq!(members, ["member@10.77.1.1 on using SSL/TLS"]);
    wait::until_true("a group of one", PATIENCE, || {
        let members = "SELECT member_state FROM performance_schema.replication_group_members";
        Ok(server.query(members)?.trim() == "ONLINE")
    })
    .unwrap();
    assert_eq!(agent.outcome("denied").unwrap(), 0);
    assert!(agent.held().unwrap().is_empty());
}

/// A MySQL that can begin a group, whose members meet at this port.
fn first_of_a_group(port: u16) -> Options {
    [
        "--plugin-load-add=group_replication.so",
        "--log-bin=binlog",
        "--server-id=1",
        "--gtid-mode=ON",
        "--enforce-gtid-consistency=ON",
        "--report-host=10.77.1.1",
        "--loose-group-replication-group-name=c5e0a3d2-9f64-4a0e-8d4b-9f5a7e1b2c3d",
        "--loose-group-replication-bootstrap-group=ON",
        "--loose-group-replication-start-on-boot=OFF",
        &format!("--loose-group-replication-local-address=10.77.1.1:{port}"),
    ]
    .into_iter()
    .fold(Options::new(Product::MySql), Options::with)
}

/// Plaintext is refused as the server itself would, TLS passes, and both are on record.
fn is_gated(agent: &Agent, server: &Server, client: &Host, to: SocketAddr) {
    let count = |wanted: fn(&Record) -> bool| {
        agent
            .records()
            .unwrap()
            .iter()
            .filter(|record| wanted(record))
            .count()
    };
    let is_tls = |record: &Record| record.is_session() && record.transport() == "tls";
    let (denied, tls) = (count(Record::is_denied), count(is_tls));
    let (mut raw, _) = Raw::greeted(client, to).unwrap();
    raw.send(&server.open_login().packet_41()).unwrap();
    let answer = raw.receive().unwrap();
    let sqlstate = server.product().refusal_sqlstate();
    let refusal = ErrorPacket::refusal(2, Some(sqlstate));
    assert_eq!(answer.error(), Some(refusal), "{to}: {answer:?}");
    agent
        .await_records("the refusal", denied + 1, Record::is_denied)
        .unwrap();

    let mut login = Login::new(server, client, Tls::Required).to(to.ip());
    login.port = to.port();
    let answer = Client::PyMySql.login(client, &login).unwrap();
    let session = answer
        .result
        .unwrap_or_else(|_| panic!("{to}: {}", answer.text));
    let records = agent.await_records("TLS", tls + 1, is_tls).unwrap();
    let record = records.last().unwrap();
    assert_eq!(
        record.tls_version(),
        session.tls_version,
        "{to}: {}",
        record.line
    );
    assert_eq!(record.action(), Some(1), "{to}: {}", record.line);
}

/// What the status says of the server with this process id.
fn of_process(agent: &Agent, pid: u32) -> Option<Value> {
    let status = agent.status().unwrap();
    let servers = status["servers"].as_array().unwrap();
    servers.iter().find(|server| server["pid"] == pid).cloned()
}

/// Its listeners of this protocol.
fn listeners(agent: &Agent, pid: u32, protocol: &str) -> Vec<Value> {
    let server = of_process(agent, pid).unwrap_or_default();
    let all = server["listeners"].as_array().cloned().unwrap_or_default();
    all.into_iter()
        .filter(|listener| listener["protocol"] == protocol)
        .collect()
}

/// A MariaDB that is handed this socket.
fn activated(host: &Host, listener: &TcpListener) -> Server {
    Server::start_activated(host, &Options::new(Product::MariaDb), listener).unwrap()
}

/// A listening socket that shares its port.
fn listener(host: &Host, port: u16) -> TcpListener {
    let make = || -> rustix::io::Result<TcpListener> {
        let any = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        set_socket_reuseport(&socket, true)?;
        bind(&socket, &any)?;
        listen(&socket, 64)?;
        Ok(socket.into())
    };
    host.run(make).unwrap().unwrap()
}

/// What the helper says first.
const HELPER: [u8; 4] = *b"help";

/// Says [`HELPER`] and what the client says, session by session, until the listener is shut down.
fn echo(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        stream.set_read_timeout(Some(wait::here(PATIENCE))).unwrap();
        stream.write_all(&HELPER).unwrap();
        let mut chunk = [0; 4096];
        while let Ok(length @ 1..) = stream.read(&mut chunk) {
            stream.write_all(&chunk[..length]).unwrap();
        }
    }
}
