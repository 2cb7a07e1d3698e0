//! Drivers by what they call themselves, and how to turn on TLS in each.
//!
//! Names are those of the connection attribute `_client_name` (`_connector_name` where a connector stands on another driver),
//! as the drivers' sources have them; that of a replica is [`REPLICA`]. A client chooses what it sends: it is a hint, and
//! nothing is decided by it.

use crate::history::{Class, Client, REPLICA};

/// What is known of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fix {
    /// Its name, as its users know it.
    pub driver: &'static str,
    /// How to turn on TLS.
    pub how: &'static str,
}

/// What a row of [`FIXES`] is recognised by.
enum By {
    /// `_client_name` or `_connector_name` is, or begins with, this; in small letters.
    Driver(&'static str),
    /// `program_name` begins with this.
    Program(&'static str),
    /// The user has this in its name: of those that send no attributes.
    User(&'static str),
    /// By no attribute: such a driver sends none.
    Nothing,
}

/// In the order in which they are tried: what stands on another driver comes before it.
const FIXES: &[(By, Fix)] = &[
    (
        By::Driver(REPLICA),
        Fix {
            driver: "replica",
            how: "on the replica: CHANGE REPLICATION SOURCE TO SOURCE_SSL=1 (MariaDB, MySQL before 8.0.23: CHANGE MASTER TO \
                  MASTER_SSL=1), between STOP REPLICA and START REPLICA; Group Replication: group_replication_recovery_use_ssl=ON",
        },
    ),
    (
        By::User("repl"),
        Fix {
            driver: "replica",
            how: "on the replica: CHANGE MASTER TO MASTER_SSL=1 (MySQL 8.0.23 and later: CHANGE REPLICATION SOURCE TO SOURCE_SSL=1), \
                  between STOP and START",
        },
    ),
    (
        By::Program("proxysql"),
        Fix {
            driver: "ProxySQL",
            how: "UPDATE mysql_servers SET use_ssl=1; LOAD MYSQL SERVERS TO RUNTIME; SAVE MYSQL SERVERS TO DISK (the monitor follows)",
        },
    ),
    (
        By::User("proxysql"),
        Fix {
            driver: "ProxySQL",
            how: "UPDATE mysql_servers SET use_ssl=1; LOAD MYSQL SERVERS TO RUNTIME; SAVE MYSQL SERVERS TO DISK (the monitor follows)",
        },
    ),
    (
        By::User("haproxy"),
        Fix {
            driver: "HAProxy",
            how: "option mysql-check speaks no TLS: use it without user (it then reads the greeting only), or option tcp-check; the \
                  clients behind HAProxy turn on TLS themselves",
        },
    ),
    (
        By::Driver("mysql-connector-python"),
        Fix {
            driver: "mysql-connector-python",
            how: "connect(..., ssl_disabled=False), and ssl_ca=\"ca.pem\", ssl_verify_cert=True to check the server; TLS is on unless \
                  ssl_disabled=True",
        },
    ),
    (
        By::Driver("mysql-connector-cpp"),
        Fix {
            driver: "MySQL Connector/C++",
            how: "options[\"OPT_SSL_MODE\"] = sql::SSL_MODE_REQUIRED",
        },
    ),
    (
        By::Driver("mariadb connector/node"),
        Fix {
            driver: "node mariadb",
            how: "createConnection({..., ssl: { ca }}); ssl: true checks by the system's authorities",
        },
    ),
    (
        By::Driver("mariadb connector/j"),
        Fix {
            driver: "MariaDB Connector/J",
            how: "jdbc:mariadb://HOST/DB?sslMode=verify-full&serverSslCert=ca.pem, or sslMode=trust without a check (2.x: useSSL=true)",
        },
    ),
    (
        By::Driver("mysql connector/j"),
        Fix {
            driver: "MySQL Connector/J",
            how: "jdbc:mysql://HOST/DB?sslMode=REQUIRED, or VERIFY_CA with trustCertificateKeyStoreUrl",
        },
    ),
    (
        By::Driver("mysql connector java"),
        Fix {
            driver: "MySQL Connector/J 5.1",
            how: "jdbc:mysql://HOST/DB?useSSL=true&requireSSL=true; from 5.1.49 on sslMode=REQUIRED. Old Java needs \
                  enabledTLSProtocols=TLSv1.2",
        },
    ),
    (
        By::Driver("pymysql"),
        Fix {
            driver: "PyMySQL",
            how: "connect(..., ssl={\"ca\": \"ca.pem\"}), or ssl={\"check_hostname\": False} without a check (an empty ssl={} is no TLS)",
        },
    ),
    (
        By::Driver("go-mysql-driver"),
        Fix {
            driver: "go-sql-driver",
            how: "user:password@tcp(HOST:3306)/db?tls=true, or the name given to mysql.RegisterTLSConfig; tls=skip-verify without a check",
        },
    ),
    (
        By::Driver("go mysql driver"),
        Fix {
            driver: "go-sql-driver",
            how: "user:password@tcp(HOST:3306)/db?tls=true, or the name given to mysql.RegisterTLSConfig; tls=skip-verify without a check",
        },
    ),
    (
        By::Driver("node-mysql-2"),
        Fix {
            driver: "node mysql2",
            how: "createConnection({..., ssl: { ca }}); ssl: {} checks by the authorities of Node",
        },
    ),
    (
        By::Driver("mysqlnd"),
        Fix {
            driver: "mysqlnd (PHP)",
            how: "PDO: PDO::MYSQL_ATTR_SSL_CA => 'ca.pem'; mysqli: ssl_set(), then real_connect(..., flags: MYSQLI_CLIENT_SSL)",
        },
    ),
    (
        By::Driver("mysql_async"),
        Fix {
            driver: "mysql_async (Rust)",
            how: "OptsBuilder::ssl_opts(SslOpts::default()), or ?require_ssl=true in the URL; needs a feature for TLS (rustls-tls, native-tls)",
        },
    ),
    (
        By::Driver("rust-mysql-simple"),
        Fix {
            driver: "mysql (Rust)",
            how: "OptsBuilder::ssl_opts(SslOpts::default()), or ?require_ssl=true in the URL; needs a feature for TLS (rustls-tls, native-tls)",
        },
    ),
    (
        By::Driver("sqlx"),
        Fix {
            driver: "sqlx (Rust)",
            how: "mysql://...?ssl-mode=REQUIRED, or VERIFY_CA with ssl-ca=ca.pem; needs a tls- feature",
        },
    ),
    (
        By::Driver("libmariadb"),
        Fix {
            driver: "MariaDB Connector/C",
            how: "ssl-verify-server-cert and ssl-ca=ca.pem (or only ssl) below [client] of the option file, --ssl on the command line; in C \
                  MYSQL_OPT_SSL_ENFORCE. Python mysqlclient: connect(..., ssl_mode=\"REQUIRED\"), ssl={\"ca\": \"ca.pem\"}; Perl DBD::MariaDB: mariadb_ssl=1",
        },
    ),
    (
        By::Driver("libmysql"),
        Fix {
            driver: "libmysqlclient",
            how: "ssl-mode=REQUIRED below [client] of the option file, --ssl-mode=REQUIRED on the command line; in C MYSQL_OPT_SSL_MODE. Python \
                  mysqlclient: connect(..., ssl_mode=\"REQUIRED\"); Perl DBD::mysql: mysql_ssl=1;mysql_ssl_optional=0. Before 5.7.11: ssl-ca=ca.pem",
        },
    ),
    (
        By::Nothing,
        Fix {
            driver: "unknown",
            how: "it sends no name: node mysql, sqlx, drivers before MySQL 5.6 and health checks do not. node mysql: ssl: { ca } in the \
                  options; sqlx: ?ssl-mode=REQUIRED in the URL; else turn on TLS as its documentation says, or upgrade it",
        },
    ),
];

/// The fix for `client`: for the driver that it says it is.
#[must_use]
pub fn of(client: &Client) -> Fix {
    if client.class == Class::NoException {
        return NO_EXCEPTION;
    }
    let lower = |text: &Option<std::sync::Arc<str>>| {
        text.as_deref().unwrap_or_default().to_ascii_lowercase()
    };
    let (driver, program, user) = (
        lower(&client.driver),
        lower(&client.program),
        lower(&client.user),
    );
    let is_it = |by: &By| match by {
        By::Driver(name) => driver.starts_with(name),
        By::Program(name) => program.starts_with(name),
        // A program that says what it is, is no replica, whatever its user is called.
        By::User(name) => program.is_empty() && user.contains(name),
        By::Nothing => true,
    };
    FIXES
        .iter()
        .find(|(by, _)| is_it(by))
        .map_or(NO_EXCEPTION, |(_, fix)| *fix)
}

/// Sessions for a reason of the protocol, not of a driver that does without TLS.
const NO_EXCEPTION: Fix = Fix {
    driver: "unusual",
    how: "no exception can allow it: the client sends a login before the greeting or over MPTCP, or its server answers a request for TLS \
          in the clear; the audit record's `reason` says which",
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn client(driver: &str, program: &str, user: &str) -> Client {
        let text = |text: &str| (!text.is_empty()).then(|| Arc::from(text));
        Client {
            user: text(user),
            driver: text(driver),
            program: text(program),
            ..Client::in_the_clear()
        }
    }

    #[test]
    fn every_driver_is_recognised_by_what_it_sends() {
        for (driver, program, user, expected) in [
            ("libmysql", "mysqldump", "etl", "libmysqlclient"),
            ("libmariadb", "mysqldump", "etl", "MariaDB Connector/C"),
            ("MySQL Connector/J", "", "app", "MySQL Connector/J"),
            ("MySQL Connector Java", "", "app", "MySQL Connector/J 5.1"),
            ("MariaDB Connector/J", "", "app", "MariaDB Connector/J"),
            ("pymysql", "", "app", "PyMySQL"),
            (
                "mysql-connector-python",
                "",
                "app",
                "mysql-connector-python",
            ),
            ("Go-MySQL-Driver", "", "app", "go-sql-driver"),
            ("Node-MySQL-2", "", "app", "node mysql2"),
            ("MariaDB connector/Node", "", "app", "node mariadb"),
            ("mysqlnd", "", "app", "mysqlnd (PHP)"),
            ("", "", "app", "unknown"),
            ("replica", "mysqld", "repl", "replica"),
            ("libmysql", "", "repl", "replica"),
            ("libmariadb", "proxysql_monitor", "monitor", "ProxySQL"),
            ("", "", "haproxy_check", "HAProxy"),
            // A program that says what it is, is no replica.
            ("libmysql", "mysqldump", "repl", "libmysqlclient"),
        ] {
            let fix = of(&client(driver, program, user));
            assert_eq!(fix.driver, expected, "{driver} {program} {user}");
        }
    }

    #[test]
    fn the_documentation_has_every_fix() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/history.md");
        let page = std::fs::read_to_string(page).unwrap();
        for (_, fix) in FIXES {
            assert!(
                page.contains(&format!("| {} |", fix.driver)),
                "{}",
                fix.driver
            );
        }
    }
}
