//! What the servers' own test suites assert of `require_secure_transport`, with the agent in place of the option.
//!
//! MySQL: `auth_sec.require_secure_transport`, `auth_sec.admin_channel_tls`, `auth_sec.mysql_protocol_types`,
//! `x.connection_require_secure_transport`, `x.capabilities`. MariaDB: `main.require_secure_transport`.

#![cfg(test)]

use std::process::Stdio;

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::mysqlx::{authenticate, frame, into_tls, is_refusal, start_tls};
use musttls_tests::netns::{Host, Net};
use musttls_tests::raw::Raw;
use musttls_tests::server::{Options, PASSWORD, Product, Server, USER};
use musttls_tests::wire::{REFUSED, ssl_request};

const ENFORCE: &str = "mode = \"enforce\"";
const OBSERVE: &str = "mode = \"observe\"";
const ER_ACCESS_DENIED: u16 = 1045;
const CR_SSL_CONNECTION_ERROR: u16 = 2026;
/// An account that must use TLS by its own definition.
const TLS_USER: &str = "requiressl";

/// How a command-line client is to connect.
#[derive(Clone, Copy)]
enum By<'a> {
    Socket,
    Tcp(u16),
    /// Over TCP, without a word about TLS.
    TcpWith(u16, &'a str),
    SocketWith(&'a str),
}

/// The answer to one query, or the number of the error.
fn ask(net: &Net, server: &Server, user: &str, by: By<'_>, query: &str) -> Result<String, u16> {
    let mut command = server.product().client().unwrap();
    command.args(["--no-defaults", "--batch", "--skip-column-names"]);
    command.args([format!("--user={user}"), format!("--password={PASSWORD}")]);
    let host: &Host = match by {
        By::Socket | By::SocketWith(_) => {
            let socket = server.product().name_of(&server.socket()).unwrap();
            command.arg("--socket").arg(socket);
            &net.db
        }
        By::Tcp(port) | By::TcpWith(port, _) => {
            command.args(["--protocol=TCP".to_owned(), format!("--port={port}")]);
            command.arg(format!("--host={}", net.app.db_v4()));
            &net.app
        }
    };
    if let By::TcpWith(_, option) | By::SocketWith(option) = by {
        command.arg(option);
    }
    command
        .args(["--execute", query])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = host
        .spawn(&mut command)
        .unwrap()
        .wait_with_output()
        .unwrap();
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let number = text
        .lines()
        .find_map(|line| line.strip_prefix("ERROR ")?.split(' ').next()?.parse().ok());
    Err(number.unwrap_or_else(|| panic!("no error number in: {text}")))
}

fn with_tls_user(server: &Server) {
    server
        .query(&format!(
            "CREATE USER {TLS_USER}@'%' IDENTIFIED BY '{PASSWORD}' REQUIRE SSL; \
             CREATE USER {TLS_USER}@localhost IDENTIFIED BY '{PASSWORD}' REQUIRE SSL"
        ))
        .unwrap();
}

const ONE: &str = "SELECT 1";

#[test]
fn require_secure_transport_of_mysql() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MySql)).unwrap();
    with_tls_user(&server);
    let ask = |user, by| ask(&net, &server, user, by, ONE).map(drop);
    let tcp = server.port();
    for (mode, plaintext) in [(OBSERVE, Ok(())), (ENFORCE, Err(REFUSED))] {
        let _agent = Agent::start(mode).unwrap();
        assert_eq!(ask(USER, By::SocketWith("--ssl-mode=DISABLED")), Ok(()));
        assert_eq!(
            ask(TLS_USER, By::SocketWith("--ssl-mode=DISABLED")),
            Err(ER_ACCESS_DENIED)
        );
        assert_eq!(ask(TLS_USER, By::SocketWith("--ssl-mode=REQUIRED")), Ok(()));
        assert_eq!(
            ask(USER, By::TcpWith(tcp, "--ssl-mode=DISABLED")),
            plaintext
        );
        assert_eq!(ask(USER, By::TcpWith(tcp, "--ssl-mode=REQUIRED")), Ok(()));
        assert_eq!(ask(TLS_USER, By::Tcp(tcp)), Ok(()));
    }
}

#[test]
fn require_secure_transport_of_mysql_without_tls() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MySql).without_tls()).unwrap();
    with_tls_user(&server);
    let _agent = Agent::start(ENFORCE).unwrap();
    let ask = |user, by| ask(&net, &server, user, by, ONE).map(drop);
    for user in [USER, TLS_USER] {
        assert_eq!(ask(user, By::Tcp(server.port())), Err(REFUSED), "{user}");
    }
    assert_eq!(ask(USER, By::Socket), Ok(()));
    assert_eq!(ask(TLS_USER, By::Socket), Err(ER_ACCESS_DENIED));
    assert_eq!(
        ask(TLS_USER, By::SocketWith("--ssl-mode=REQUIRED")),
        Err(CR_SSL_CONNECTION_ERROR)
    );
}

#[test]
fn require_secure_transport_of_mariadb() {
    let net = Net::new().unwrap();
    for product in Product::releases().filter(|it| !it.is_mysql()) {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let cipher = |option| {
            let by = By::TcpWith(server.port(), option);
            ask(&net, &server, USER, by, "SHOW STATUS LIKE 'Ssl_cipher'")
        };
        {
            let _agent = Agent::start(ENFORCE).unwrap();
            assert_eq!(cipher("--skip-ssl"), Err(REFUSED), "{product:?}");
            let answer = cipher("--ssl").unwrap();
            assert_ne!(answer, "Ssl_cipher", "{product:?}");
        }
        let _agent = Agent::start(OBSERVE).unwrap();
        assert_eq!(cipher("--skip-ssl"), Ok("Ssl_cipher".to_owned()));
    }
}

/// `performance_schema` and the record name the same transport for each way in.
#[test]
fn connection_types_of_mysql() {
    const TYPE: &str = "SELECT CONNECTION_TYPE FROM performance_schema.threads \
                        WHERE PROCESSLIST_ID = CONNECTION_ID()";
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MySql)).unwrap();
    let agent = Agent::start(OBSERVE).unwrap();
    for (by, connection_type, transport) in [
        (By::Socket, "Socket", "unix"),
        (
            By::TcpWith(server.port(), "--ssl-mode=DISABLED"),
            "TCP/IP",
            "plaintext",
        ),
        (
            By::TcpWith(server.port(), "--ssl-mode=REQUIRED"),
            "SSL/TLS",
            "tls",
        ),
    ] {
        let answer = ask(&net, &server, USER, by, TYPE).unwrap();
        assert_eq!(answer, connection_type);
        // A session over the socket may be shorter than the look for such sessions (see pass.rs).
        if transport != "unix" {
            let is_it = |record: &Record| record.transport() == transport;
            agent.await_record(transport, is_it).unwrap();
        }
    }
}

/// The administrative interface may be without TLS where the main one has it, and the other way round.
#[test]
fn admin_channel_of_mysql() {
    const ADMIN: u16 = 33062;
    let net = Net::new().unwrap();
    let admin = |options: Options| {
        let server = Server::start(
            &net.db,
            &options
                .with(&format!("--admin-address={}", net.app.db_v4()))
                .with(&format!("--admin-port={ADMIN}")),
        )
        .unwrap();
        server
            .query(&format!(
                "GRANT SERVICE_CONNECTION_ADMIN, CONNECTION_ADMIN ON *.* TO {USER}@'%'"
            ))
            .unwrap();
        server
    };
    let required = |port| By::TcpWith(port, "--ssl-mode=REQUIRED");
    let disabled = |port| By::TcpWith(port, "--ssl-mode=DISABLED");

    let server = admin(Options::new(Product::MySql));
    {
        let _agent = Agent::start(ENFORCE).unwrap();
        let ask = |by| ask(&net, &server, USER, by, ONE).map(drop);
        assert_eq!(ask(required(ADMIN)), Ok(()), "it shares the certificate");
        assert_eq!(ask(disabled(ADMIN)), Err(REFUSED));

        // A session stays when the certificate is loaded anew, and the next one has it.
        let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
        raw.send(&ssl_request()).unwrap();
        let mut raw = raw.into_tls().unwrap();
        raw.send(&server.open_login().packet_over_tls()).unwrap();
        assert!(raw.receive().unwrap().is_ok());
        server.query("ALTER INSTANCE RELOAD TLS").unwrap();
        raw.ask(ONE).unwrap();
        assert_eq!(ask(required(server.port())), Ok(()));
    }
    drop(server);

    let server = admin(Options::new(Product::MySql).with("--admin-tls-version="));
    let _agent = Agent::start(ENFORCE).unwrap();
    let ask = |by| ask(&net, &server, USER, by, ONE).map(drop);
    assert_eq!(ask(required(ADMIN)), Err(CR_SSL_CONNECTION_ERROR));
    assert_eq!(ask(disabled(ADMIN)), Err(REFUSED));
    assert_eq!(ask(required(server.port())), Ok(()));
}

const X_PORT: u16 = 33060;
const OK: u8 = 0;
const ERROR: u8 = 1;
const AUTHENTICATED: u8 = 4;

fn with_x(options: Options) -> Options {
    options
        .with("--mysqlx=ON")
        .with("--mysqlx-bind-address=*")
        .with("--mysqlx-socket=/tmp/musttls-suites-x.sock")
        .with(&format!("--mysqlx-port={X_PORT}"))
}

fn x(net: &Net) -> Raw {
    Raw::connect(&net.app, (net.app.db_v4(), X_PORT).into()).unwrap()
}

fn plain_login() -> Vec<u8> {
    authenticate("PLAIN", format!("\0{USER}\0{PASSWORD}").as_bytes())
}

#[test]
fn x_connection_with_required_secure_transport() {
    let net = Net::new().unwrap();
    let _server = Server::start(&net.db, &with_x(Options::new(Product::MySql))).unwrap();
    {
        let _agent = Agent::start(ENFORCE).unwrap();
        let mut tls = into_tls(x(&net)).unwrap();
        tls.send(&plain_login()).unwrap();
        assert_eq!(tls.receive_x().unwrap().unwrap().kind, AUTHENTICATED);
        // The server itself refuses PLAIN with 1251 and the others with 3159. Here no name of a mechanism is read.
        for login in [plain_login(), authenticate("MYSQL41", &[])] {
            let mut raw = x(&net);
            raw.send(&login).unwrap();
            let answer = raw.receive_x().unwrap();
            assert!(is_refusal(&answer), "{answer:?}");
        }
    }
    let _agent = Agent::start(OBSERVE).unwrap();
    let mut raw = x(&net);
    raw.send(&plain_login()).unwrap();
    let answer = raw.receive_x().unwrap().unwrap();
    assert_eq!(answer.kind, ERROR);
    assert!(!is_refusal(&Ok(answer)), "the server's own 1251");
}

/// `CapabilitiesSet` of `tls` with other values than true is the server's to answer.
#[test]
fn x_capabilities() {
    /// `Scalar.Type` of `Mysqlx.Datatypes`, and the field with a value of that type.
    const STRING: &[u8] = &[8, 8, 0x4a, 3, 0x0a, 1, b'y'];
    const FLOAT: &[u8] = &[8, 6, 0x3d, 0, 0, 0x80, 0x3f];
    const NULL: &[u8] = &[8, 3];
    let net = Net::new().unwrap();
    for tls in [true, false] {
        let options = with_x(Options::new(Product::MySql));
        let options = if tls { options } else { options.without_tls() };
        let _server = Server::start(&net.db, &options).unwrap();
        let answers = || {
            [STRING, FLOAT, NULL].map(|scalar| {
                let mut raw = x(&net);
                raw.send(&set_tls(scalar)).unwrap();
                raw.receive_x().unwrap()
            })
        };
        let alone = answers();
        let _agent = Agent::start(ENFORCE).unwrap();
        assert_eq!(answers(), alone);
        let mut raw = x(&net);
        raw.send(&start_tls()).unwrap();
        let expected = if tls { OK } else { ERROR };
        assert_eq!(raw.receive_x().unwrap().unwrap().kind, expected);
        if !tls {
            // Without TLS nobody gets in.
            raw.send(&plain_login()).unwrap();
            assert!(is_refusal(&raw.receive_x().unwrap()));
        }
    }
}

/// `CapabilitiesSet` of `tls` to this scalar.
fn set_tls(scalar: &[u8]) -> Vec<u8> {
    let field = |tag: u8, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).unwrap_or(u8::MAX);
        [&[tag, length][..], bytes].concat()
    };
    let any = [&[8, 1][..], &field(0x12, scalar)].concat();
    let capability = [field(0x0a, b"tls"), field(0x12, &any)].concat();
    frame(2, &field(0x0a, &field(0x0a, &capability)))
}
