//! Enforce mode, health checks and replication: what monitors and replicas of a server see, with and
//! without an exception.

#![cfg(test)]

use std::net::SocketAddr;

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::client::{self, Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::haproxy::{CHECKS, HaProxy};
use musttls_tests::netns::{Host, Net};
use musttls_tests::server::{Options, PASSWORD, Product, Server};
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::REFUSED_TEXT;

const ENFORCE: &str = "mode = \"enforce\"";
/// As many failed handshakes lock an address out. A check is let fail more often.
const MAX_CONNECT_ERRORS: u64 = 2;

#[test]
fn mysql_check_of_haproxy_is_refused_with_3159_and_blocks_no_host() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = watched(&net.db, product);
        let agent = Agent::start(ENFORCE).unwrap();
        let to = server.at(net.app.db_v4());
        let haproxy = HaProxy::checking(&net.app, to, "option mysql-check user haproxy").unwrap();
        let down = haproxy.await_state("DOWN").unwrap();
        assert!(down.contains(REFUSED_TEXT), "{product:?} {down}");
        wait::until_true("more refusals than lock a host out", PATIENCE, || {
            Ok(agent.outcome("denied")? > 3 * MAX_CONNECT_ERRORS)
        })
        .unwrap();
        let counts = evidence::counts(&server, net.app.v4()).unwrap();
        assert_eq!(
            (counts.connect_errors, counts.blocked),
            (0, 0),
            "{product:?}"
        );
        let login = Login::new(&server, &net.app, Tls::Required);
        let answer = Client::PyMySql.login(&net.app, &login).unwrap();
        assert!(answer.is_in(), "{}", answer.text);
        let record = agent
            .await_record("a refused check", Record::is_denied)
            .unwrap();
        assert_eq!(record.user(), "haproxy", "{}", record.line);
    }
}

/// What it sends is the same as above, so it is the same check that goes down without the exception.
/// MySQL 9 has no account that HAProxy 2.6 could log in to: its check knows the old password plugin only.
#[test]
fn mysql_check_of_haproxy_with_an_exception_is_up() {
    let net = Net::new().unwrap();
    let server = watched(&net.db, Product::MariaDb);
    let to = server.at(net.app.db_v4());
    let check = || HaProxy::checking(&net.app, to, "option mysql-check user haproxy").unwrap();
    check().await_state("UP,L7OK").unwrap();
    let agent = Agent::start(&exception(&net.app, "haproxy")).unwrap();
    let haproxy = check();
    let checks_more = || {
        let before = agent.outcome("excepted").unwrap();
        wait::until_true("some checks in the status", PATIENCE, || {
            Ok(agent.outcome("excepted")? >= before + 3 * CHECKS)
        })
        .unwrap();
        haproxy.await_state("UP,L7OK").unwrap();
        assert_eq!(agent.outcome("denied").unwrap(), 0);
        // It answers the SYN-ACK with the login: no other acknowledgement (TCP_QUICKACK off).
        let held = agent.held().unwrap();
        assert!(held.is_empty(), "{held:?}");
    };
    checks_more();
    let record = agent
        .await_record("an excepted check", |record| record.rule() == "excused")
        .unwrap();
    assert_eq!(record.user(), "haproxy", "{}", record.line);
    let counts = evidence::counts(&server, net.app.v4()).unwrap();
    assert_eq!((counts.connect_errors, counts.blocked), (0, 0));

    let whoever = exception(&net.app, "haproxy").replace("user = [\"haproxy\"]\n", "");
    agent.set_policy(&whoever).unwrap();
    checks_more();
}

/// The gate holds a login on the third ACK until its listener has a name; HAProxy sends it again.
#[test]
fn mysql_check_of_haproxy_that_runs_when_the_gate_comes_stays_up() {
    let net = Net::new().unwrap();
    let server = watched(&net.db, Product::MariaDb);
    let to = server.at(net.app.db_v4());
    let haproxy = HaProxy::checking(&net.app, to, "option mysql-check user haproxy").unwrap();
    haproxy.await_state("UP,L7OK").unwrap();
    let agent = Agent::start(&exception(&net.app, "haproxy")).unwrap();
    let checked = |times| {
        wait::until_true("some checks in the status", PATIENCE, || {
            Ok(agent.outcome("excepted")? >= times * CHECKS)
        })
        .unwrap();
        haproxy.await_state("UP,L7OK").unwrap();
        agent.held().unwrap()
    };
    let at_the_start = checked(3);
    assert_eq!(checked(6), at_the_start, "once it has a name, none is held");
    assert_eq!(agent.outcome("denied").unwrap(), 0);
    let counts = evidence::counts(&server, net.app.v4()).unwrap();
    assert_eq!((counts.connect_errors, counts.blocked), (0, 0));
}

/// Who would be refused has to show before.
#[test]
fn mysql_check_of_haproxy_is_on_record_in_observe_mode() {
    let net = Net::new().unwrap();
    for product in Product::ALL {
        let server = watched(&net.db, product);
        let agent = Agent::start("mode = \"observe\"").unwrap();
        let to = server.at(net.app.db_v4());
        let _haproxy = HaProxy::checking(&net.app, to, "option mysql-check user haproxy").unwrap();
        let seen = |record: &Record| record.user() == "haproxy" && !record.is_denied();
        agent.await_records("checks", 3, seen).unwrap();
        assert!(agent.held().unwrap().is_empty(), "{:?}", agent.held());
        assert_eq!(agent.outcome("half-open").unwrap(), 0, "{product:?}");
    }
}

/// Without a user the check reads the greeting only. The server counts that against the address, with or
/// without the agent, and would lock it out.
#[test]
fn checks_that_send_nothing_are_up_and_not_reported() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let options = Options::new(product).with("--max-connect-errors=1000000");
        let server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        let to = server.at(net.app.db_v4());
        // It resets the connection before its handshake is complete: no session for the server or the gate.
        HaProxy::checking(&net.app, to, "option tcp-check")
            .unwrap()
            .await_state("UP,L4OK")
            .unwrap();
        let haproxy = HaProxy::checking(&net.app, to, "option mysql-check").unwrap();
        haproxy.await_state("UP,L7OK").unwrap();
        wait::until_true("some checks in the status", PATIENCE, || {
            Ok(agent.outcome("half-open")? >= 3 * CHECKS)
        })
        .unwrap();
        haproxy.await_state("UP,L7OK").unwrap();
        assert!(agent.held().unwrap().is_empty());
        let records = agent.records().unwrap();
        assert!(!records.iter().any(Record::is_session), "{records:?}");
    }
}

#[test]
fn ping_of_the_admin_programs_ends_with_exit_code_0() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let server = watched(&net.db, product);
        let agent = Agent::start(ENFORCE).unwrap();
        for program in Product::ALL {
            let login = Login::new(&server, &net.app, Tls::Off);
            let (code, text) = client::admin_ping_of(program, &net.app, &login).unwrap();
            assert_eq!(code, Some(0), "{product:?} {program:?}: {text}");
            assert!(text.contains(REFUSED_TEXT), "{text}");
            let login = Login::new(&server, &net.app, Tls::Required);
            let (code, text) = client::admin_ping_of(program, &net.app, &login).unwrap();
            assert_eq!(code, Some(0), "{product:?} {program:?}: {text}");
            assert!(text.contains("is alive"), "{text}");
        }
        agent
            .await_records("both refusals", 2, Record::is_denied)
            .unwrap();
    }
}

#[test]
fn replica_is_refused_in_plaintext_and_runs_with_an_exception_or_tls() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let primary = Server::start(&net.db, &replicating(product, 1)).unwrap();
        let replica = Replica::start(&net.app, product);
        primary
            .query(&format!(
                "CREATE USER repl@'%' IDENTIFIED BY '{PASSWORD}'; \
                 GRANT REPLICATION SLAVE ON *.* TO repl@'%'"
            ))
            .unwrap();
        let to = primary.at(net.app.db_v4());
        let agent = Agent::start(ENFORCE).unwrap();

        replica.follow(to, false);
        let error = replica.await_error("3159");
        assert!(error.contains(REFUSED_TEXT), "{error}");
        let record = agent
            .await_record("the replica", Record::is_denied)
            .unwrap();
        is_replica(product, &record);

        agent.set_policy(&exception(&net.app, "repl")).unwrap();
        primary.query("INSERT INTO shop.t VALUES (43)").unwrap();
        replica.await_row(43);
        let record = agent
            .await_record("the excepted replica", |record| record.rule() == "excused")
            .unwrap();
        is_replica(product, &record);

        agent.set_policy(ENFORCE).unwrap();
        replica.follow(to, true);
        primary.query("INSERT INTO shop.t VALUES (44)").unwrap();
        replica.await_row(44);
        agent
            .await_record("the replica over TLS", |record| {
                record.transport() == "tls" && record.source() == Some(net.app.v4())
            })
            .unwrap();
    }
}

/// MySQL's says what it is; MariaDB's is told by its user name, and by having no program name.
fn is_replica(product: Product, record: &Record) {
    assert_eq!(record.user(), "repl", "{}", record.line);
    assert_eq!(record.transport(), "plaintext", "{}", record.line);
    let attribute = |name: &str| record.text(&format!("/unmapped/connection_attributes/{name}"));
    if product.is_mysql() {
        assert_eq!(
            attribute("_client_role"),
            "binary_log_listener",
            "{}",
            record.line
        );
        assert_eq!(attribute("program_name"), "mysqld", "{}", record.line);
    } else {
        assert_eq!(attribute("_client_name"), "libmysql", "{}", record.line);
        assert_eq!(attribute("program_name"), "", "{}", record.line);
    }
}

fn exception(from: &Host, user: &str) -> String {
    format!(
        "{ENFORCE}\n[[exception]]\nname = \"excused\"\nsource = [\"{}/32\"]\nuser = [\"{user}\"]\n\
         expires = \"never\"\nowner = \"dba@example.com\"\nreason = \"a check that knows no TLS\"\n",
        from.v4()
    )
}

/// A server with an account for HAProxy, which locks out an address after few errors.
fn watched(host: &Host, product: Product) -> Server {
    let options = Options::new(product).with(&format!("--max-connect-errors={MAX_CONNECT_ERRORS}"));
    let server = Server::start(host, &options).unwrap();
    server.query("CREATE USER haproxy@'%'").unwrap();
    server
}

fn replicating(product: Product, id: u32) -> Options {
    let options = Options::new(product)
        .with("--log-bin=binlog")
        .with(&format!("--server-id={id}"));
    if product.is_mysql() {
        options
            .with("--gtid-mode=ON")
            .with("--enforce-gtid-consistency=ON")
    } else {
        options
    }
}

struct Replica {
    server: Server,
}

impl Replica {
    fn start(host: &Host, product: Product) -> Self {
        let server = Server::start(host, &replicating(product, 2)).unwrap();
        Self { server }
    }

    /// Follows the primary from now on, over TLS or not.
    fn follow(&self, to: SocketAddr, tls: bool) {
        let (stop, change, prefix, start, by_gtid) = if self.server.product().is_mysql() {
            (
                "STOP REPLICA",
                "CHANGE REPLICATION SOURCE TO",
                "SOURCE",
                "START REPLICA",
                "SOURCE_AUTO_POSITION = 1, GET_SOURCE_PUBLIC_KEY = 1",
            )
        } else {
            (
                "STOP SLAVE",
                "CHANGE MASTER TO",
                "MASTER",
                "START SLAVE",
                "MASTER_USE_GTID = slave_pos",
            )
        };
        self.server
            .query(&format!(
                "{stop}; {change} {prefix}_HOST = '{}', {prefix}_PORT = {}, {prefix}_USER = 'repl', \
                 {prefix}_PASSWORD = '{PASSWORD}', {prefix}_CONNECT_RETRY = 1, {prefix}_SSL = {}, {by_gtid}; \
                 {start}",
                to.ip(),
                to.port(),
                u8::from(tls),
            ))
            .unwrap();
    }

    /// Waits for an error of the thread that reads from the primary.
    fn await_error(&self, number: &str) -> String {
        let status = if self.server.product().is_mysql() {
            "SHOW REPLICA STATUS"
        } else {
            "SHOW SLAVE STATUS"
        };
        wait::until("the error of the replica", PATIENCE, || {
            let status = self.server.query(status)?;
            let is_there = status.split('\t').any(|field| field == number);
            Ok(is_there.then_some(status))
        })
        .unwrap()
    }

    fn await_row(&self, n: u32) {
        let sql = format!("SELECT COUNT(*) FROM shop.t WHERE n = {n}");
        let arrived = wait::until_true("the row on the replica", PATIENCE, || {
            Ok(self.server.query(&sql)?.trim() == "1")
        });
        arrived.unwrap_or_else(|error| panic!("{error:#}\n{}", self.server.error_log().unwrap()));
    }
}
