//! The real clients, each reduced to one login: what it printed, and what the server said of its TLS.

mod driver;
mod program;
mod socket;

use std::net::IpAddr;

use anyhow::Result;

use crate::netns::Host;
use crate::server::{PASSWORD, Product, Server, USER};

pub use socket::SocketSession;

/// A client program or driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// `mariadb`, the command-line client of `MariaDB` (Connector/C).
    MariaDbCli,
    /// `mysql`, the command-line client of `MySQL` (libmysqlclient).
    MySqlCli,
    /// `PyMySQL`.
    PyMySql,
    /// `mysql-connector-python`, its pure Python form.
    ConnectorPython,
    /// `mysql2` of Node.
    NodeMySql2,
    /// `mysql_async` of Rust.
    MySqlAsync,
}

impl Client {
    /// All.
    pub const ALL: [Self; 6] = [
        Self::MariaDbCli,
        Self::MySqlCli,
        Self::PyMySql,
        Self::ConnectorPython,
        Self::NodeMySql2,
        Self::MySqlAsync,
    ];

    /// What its users call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MariaDbCli => "mariadb",
            Self::MySqlCli => "mysql",
            Self::PyMySql => "PyMySQL",
            Self::ConnectorPython => "mysql-connector-python",
            Self::NodeMySql2 => "node mysql2",
            Self::MySqlAsync => "mysql_async",
        }
    }

    /// Whether what it prints tells the SQLSTATE of an error, and the server's own. `PyMySQL` drops it.
    #[must_use]
    pub const fn shows_sqlstate(self) -> bool {
        !matches!(self, Self::PyMySql)
    }

    /// Logs in from `host`, asks for the cipher of the session, and leaves.
    pub fn login(self, host: &Host, login: &Login) -> Result<Answer> {
        match self {
            Self::MySqlAsync => driver::login(host, login),
            _ => program::login(self, host, login, &[]),
        }
    }

    /// The same of a client that is a program, started by `words`, which its command line follows.
    pub fn login_through(self, words: &[&str], host: &Host, login: &Login) -> Result<Answer> {
        program::login(self, host, login, words)
    }
}

/// Whether a client asks for TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// Never.
    Off,
    /// Any version, or no login.
    Required,
    /// TLS 1.2 or no login; only the command-line client of MySQL and `PyMySQL` can be told so.
    V1_2,
    /// TLS 1.3 or no login; the same.
    V1_3,
}

/// One login.
#[derive(Clone, Debug)]
pub struct Login {
    /// The server's address.
    pub ip: IpAddr,
    /// Its port.
    pub port: u16,
    /// User name.
    pub user: String,
    /// Password; empty for none.
    pub password: String,
    /// Schema; empty for none.
    pub schema: String,
    /// Whether TLS is asked for.
    pub tls: Tls,
}

impl Login {
    /// The usual user, from a client on another host, over IPv4.
    #[must_use]
    pub fn new(server: &Server, from: &Host, tls: Tls) -> Self {
        Self {
            ip: from.db_v4(),
            port: server.port(),
            user: USER.to_owned(),
            password: PASSWORD.to_owned(),
            schema: crate::server::SCHEMA.to_owned(),
            tls,
        }
    }

    /// To another address of the server.
    #[must_use]
    pub const fn to(mut self, ip: IpAddr) -> Self {
        self.ip = ip;
        self
    }

    /// As another user.
    #[must_use]
    pub fn user(mut self, user: &str, password: &str) -> Self {
        user.clone_into(&mut self.user);
        password.clone_into(&mut self.password);
        self
    }
}

/// What came of a login, as the client showed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// All it printed.
    pub text: String,
    /// Whether it was let in.
    pub result: Result<Session, Failure>,
}

/// A session the server opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The server's `Ssl_version` of the session; empty for plaintext.
    pub tls_version: String,
    /// The server's `Ssl_cipher` of the session; empty for plaintext.
    pub cipher: String,
}

/// An error as a user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Error number.
    pub number: u16,
    /// SQLSTATE, where the client shows it.
    pub sqlstate: Option<String>,
    /// The message.
    pub message: String,
}

impl Answer {
    /// Whether the client was let in.
    #[must_use]
    pub const fn is_in(&self) -> bool {
        self.result.is_ok()
    }

    /// The number of the error, if it failed with one.
    #[must_use]
    pub fn error(&self) -> Option<u16> {
        self.result.as_ref().err().map(|failure| failure.number)
    }
}

/// `mariadb-admin ping`, as a liveness probe runs it: exit code and text.
pub fn admin_ping(host: &Host, login: &Login) -> Result<(Option<i32>, String)> {
    admin_ping_of(Product::MariaDb, host, login)
}

/// The same by `mariadb-admin` or `mysqladmin`.
pub fn admin_ping_of(
    product: Product,
    host: &Host,
    login: &Login,
) -> Result<(Option<i32>, String)> {
    program::admin_ping(product, host, login)
}
