//! What the server itself says about its clients.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::place::output;
use crate::server::Server;
use crate::wait::{self, PATIENCE};

/// A server's own counters for one client address and for all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// `host_cache.SUM_CONNECT_ERRORS`: at `max_connect_errors` the address is locked out.
    pub connect_errors: u64,
    /// `host_cache.COUNT_HANDSHAKE_ERRORS`.
    pub handshake_errors: u64,
    /// `host_cache.COUNT_AUTHENTICATION_ERRORS` and `COUNT_AUTH_PLUGIN_ERRORS`.
    pub authentication_errors: u64,
    /// `host_cache.COUNT_HOST_BLOCKED_ERRORS`.
    pub blocked: u64,
    /// Status `Aborted_connects`: failed logins count, too.
    pub aborted_connects: u64,
    /// Status `Aborted_connects_preauth`, of MariaDB only: ended before a login was read.
    pub aborted_connects_preauth: u64,
}

/// Counters for the client address `ip`; one that the server has not seen has none.
pub fn counts(server: &Server, ip: IpAddr) -> Result<Counts> {
    let rows = server.query(&format!(
        "SELECT SUM_CONNECT_ERRORS, COUNT_HANDSHAKE_ERRORS, \
         COUNT_AUTHENTICATION_ERRORS + COUNT_AUTH_PLUGIN_ERRORS, COUNT_HOST_BLOCKED_ERRORS \
         FROM performance_schema.host_cache WHERE IP = '{ip}'"
    ))?;
    let numbers: Vec<u64> = rows
        .split_whitespace()
        .map(|number| {
            number
                .parse()
                .with_context(|| format!("`{number}` in host_cache"))
        })
        .collect::<Result<_>>()?;
    let of_address = |index: usize| numbers.get(index).copied().unwrap_or_default();
    let status = status(server)?;
    let of_server = |name: &str| -> Result<u64> {
        let Some(value) = status.get(name) else {
            return Ok(0);
        };
        value
            .parse()
            .with_context(|| format!("status {name} is `{value}`"))
    };
    Ok(Counts {
        connect_errors: of_address(0),
        handshake_errors: of_address(1),
        authentication_errors: of_address(2),
        blocked: of_address(3),
        aborted_connects: of_server("Aborted_connects")?,
        aborted_connects_preauth: of_server("Aborted_connects_preauth")?,
    })
}

/// `SHOW GLOBAL STATUS`, whole.
pub fn status(server: &Server) -> Result<BTreeMap<String, String>> {
    Ok(server
        .query("SHOW GLOBAL STATUS")?
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// Client connections the server holds, other than the one that asks.
pub fn connections(server: &Server) -> Result<Vec<String>> {
    // The threads of the server itself have no host.
    let rows = server.query(
        "SELECT ID, USER, HOST, COMMAND, STATE FROM information_schema.PROCESSLIST \
         WHERE ID <> CONNECTION_ID() AND HOST <> '' AND USER NOT IN ('system user', 'event_scheduler')",
    )?;
    Ok(rows.lines().map(str::to_owned).collect())
}

/// Waits until the server holds no client connection but the one that asks.
pub fn await_no_connection(server: &Server) -> Result<()> {
    wait::until_true("the server to hold no connection", PATIENCE, || {
        Ok(connections(server)?.is_empty())
    })
}

/// The IANA name of a cipher suite that the server calls `cipher`, by OpenSSL's name.
pub fn standard_name(cipher: &str) -> Result<String> {
    let names = output(Command::new("openssl").args(["ciphers", "-stdname", "ALL:@SECLEVEL=0"]))?;
    let standard = names.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let standard = words.next()?;
        (words.nth(1)? == cipher).then(|| standard.to_owned())
    });
    standard.with_context(|| format!("OpenSSL knows no cipher suite `{cipher}`"))
}

/// A place in the general log.
#[derive(Clone, Copy, Debug)]
pub struct Mark(u64);

/// The end of the general log.
pub fn mark(server: &Server) -> Result<Mark> {
    server.general_log_len().map(Mark)
}

/// Logins of `user` that the server read since `mark`, as it logged them: let in or not.
pub fn logins(server: &Server, user: &str, mark: Mark) -> Result<Vec<String>> {
    let new = server.general_log_from(mark.0)?;
    // `Connect app@10.77.1.2 on …`, or of a refused one `Connect Access denied for user 'app'@'…'`.
    let (let_in, refused) = (format!("{user}@"), format!("'{user}'@"));
    Ok(new
        .lines()
        .filter(|line| {
            let mut words = line
                .split_whitespace()
                .skip_while(|word| *word != "Connect")
                .skip(1);
            let first = words.next().unwrap_or_default();
            first.starts_with(&let_in) || line.contains(&refused)
        })
        .map(str::to_owned)
        .collect())
}

/// All logins that the server read since `mark`, as it logged them, but for those of `root`, who asks
/// on behalf of the test.
pub fn connects(server: &Server, mark: Mark) -> Result<Vec<String>> {
    let new = server.general_log_from(mark.0)?;
    Ok(new
        .lines()
        .filter_map(|line| line.split_once("Connect"))
        .map(|(_, what)| what.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|what| !what.starts_with("root@"))
        .collect())
}

/// Whether anything the server logged since `mark` names `word`.
pub fn is_named(server: &Server, word: &str, mark: Mark) -> Result<bool> {
    Ok(server.general_log_from(mark.0)?.contains(word))
}
