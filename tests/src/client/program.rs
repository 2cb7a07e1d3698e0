//! Clients that are programs, or scripts around a driver.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::{Answer, Client, Failure, Login, Session, Tls};
use crate::netns::Host;
use crate::place;
use crate::server::Product;
use crate::wait;

const QUERY: &str = "SHOW SESSION STATUS WHERE Variable_name IN ('Ssl_version', 'Ssl_cipher')";

/// Each script reads the login as JSON from its argument and prints one JSON line.
const PYMYSQL: &str = include_str!("pymysql.py");
const CONNECTOR_PYTHON: &str = include_str!("connector.py");
const NODE_MYSQL2: &str = include_str!("mysql2.js");

pub(super) fn login(
    client: Client,
    host: &Host,
    login: &Login,
    launcher: &[&str],
) -> Result<Answer> {
    let command = match client {
        Client::MariaDbCli | Client::MySqlCli => command_line(client, login, QUERY)?,
        Client::PyMySql => python(PYMYSQL, login)?,
        Client::ConnectorPython => python(CONNECTOR_PYTHON, login)?,
        Client::NodeMySql2 => node(login)?,
        Client::MySqlAsync => bail!("mysql_async is no program"),
    };
    let (_, text) = run(host, &mut through(launcher, command))?;
    let result = match client {
        Client::MariaDbCli | Client::MySqlCli => read_table(&text),
        _ => read_json(&text),
    };
    let result = result.with_context(|| format!("{} printed: {text}", client.name()))?;
    Ok(Answer {
        text: text.trim().to_owned(),
        result,
    })
}

/// `command`, started by the words of `launcher`.
fn through(launcher: &[&str], command: Command) -> Command {
    let Some((first, words)) = launcher.split_first() else {
        return command;
    };
    let mut started = Command::new(first);
    started.args(words);
    started.arg(command.get_program()).args(command.get_args());
    started
}

pub(super) fn admin_ping(
    product: Product,
    host: &Host,
    login: &Login,
) -> Result<(Option<i32>, String)> {
    let mut command = product.admin_client()?;
    add_options(&mut command, login, product);
    command.arg("ping");
    run(host, &mut command)
}

pub(super) fn command_line(client: Client, login: &Login, sql: &str) -> Result<Command> {
    let product = if client == Client::MySqlCli {
        Product::MySql
    } else {
        Product::MariaDb
    };
    let mut command = product.client()?;
    add_options(&mut command, login, product);
    command.args(["--batch", "--skip-column-names", "--execute", sql]);
    if !login.schema.is_empty() {
        command.arg(&login.schema);
    }
    Ok(command)
}

fn add_options(command: &mut Command, login: &Login, product: Product) {
    command.args([
        "--no-defaults".to_owned(),
        "--protocol=TCP".to_owned(),
        format!("--host={}", login.ip),
        format!("--port={}", login.port),
        format!("--user={}", login.user),
        format!("--password={}", login.password),
        "--connect-timeout=20".to_owned(),
    ]);
    command.args(match (product.is_mysql(), login.tls) {
        (false, Tls::Off) => &["--skip-ssl"][..],
        (false, Tls::Required) => &["--ssl"],
        (false, Tls::V1_2) => &["--ssl", "--tls-version=TLSv1.2"],
        (false, Tls::V1_3) => &["--ssl", "--tls-version=TLSv1.3"],
        (true, Tls::Off) => &["--ssl-mode=DISABLED"],
        (true, Tls::Required) => &["--ssl-mode=REQUIRED"],
        (true, Tls::V1_2) => &["--ssl-mode=REQUIRED", "--tls-version=TLSv1.2"],
        (true, Tls::V1_3) => &["--ssl-mode=REQUIRED", "--tls-version=TLSv1.3"],
    });
}

fn python(script: &str, login: &Login) -> Result<Command> {
    let mut command = Command::new(place::from_setup(place::cache().join("python/bin/python"))?);
    command.args(["-c", script]).arg(as_json(login)?);
    Ok(command)
}

fn node(login: &Login) -> Result<Command> {
    let home: PathBuf = place::from_setup(place::cache().join("node"))?;
    let mut command = Command::new("node");
    command
        .current_dir(home)
        .args(["--eval", NODE_MYSQL2, "--"])
        .arg(as_json(login)?);
    Ok(command)
}

fn as_json(login: &Login) -> Result<String> {
    let tls = match login.tls {
        Tls::Off => Value::Null,
        Tls::Required => json!("any"),
        Tls::V1_2 => json!("1.2"),
        Tls::V1_3 => json!("1.3"),
    };
    let login = json!({
        "host": login.ip, "port": login.port, "user": login.user, "password": login.password,
        "schema": login.schema, "tls": tls, "query": QUERY,
    });
    serde_json::to_string(&login).context("write the login as JSON")
}

/// Runs a client to its end; what it prints on both streams belongs to its answer.
fn run(host: &Host, command: &mut Command) -> Result<(Option<i32>, String)> {
    let child = host.spawn(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped()),
    )?;
    let mut child = Running(child);
    // A client prints less than a pipe holds, so that it can be read behind its end.
    let status = wait::until("the client to end", wait::PATIENCE * 2, || {
        Ok(child.0.try_wait()?)
    })?;
    let mut text = String::new();
    if let Some(mut output) = child.0.stdout.take() {
        std::io::Read::read_to_string(&mut output, &mut text).context("read standard output")?;
    }
    if let Some(mut errors) = child.0.stderr.take() {
        std::io::Read::read_to_string(&mut errors, &mut text).context("read standard error")?;
    }
    Ok((status.code(), text))
}

/// Ended when a test gives up on it.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.0.kill().and_then(|()| self.0.wait()) {
            eprintln!("cannot end a client: {error}");
        }
    }
}

/// `Ssl_cipher<TAB>…`, or `ERROR 3159 (08004): message`; beside them any warning.
fn read_table(text: &str) -> Result<Result<Session, Failure>> {
    let column = |name: &str| {
        text.lines().find_map(|line| {
            line.strip_prefix(name)?
                .strip_prefix('\t')
                .map(str::to_owned)
        })
    };
    if let (Some(tls_version), Some(cipher)) = (column("Ssl_version"), column("Ssl_cipher")) {
        return Ok(Ok(Session {
            tls_version,
            cipher,
        }));
    }
    let error = text.lines().find_map(|line| line.strip_prefix("ERROR "));
    let (head, message) = error
        .and_then(|error| error.split_once(": "))
        .context("neither a session nor an error")?;
    let (number, sqlstate) = match head.split_once(' ') {
        Some((number, state)) => (number, Some(state.trim_matches(['(', ')']).to_owned())),
        None => (head, None),
    };
    Ok(Err(Failure {
        number: number.parse()?,
        sqlstate,
        message: message.to_owned(),
    }))
}

fn read_json(text: &str) -> Result<Result<Session, Failure>> {
    let line = text
        .lines()
        .rfind(|line| line.starts_with('{'))
        .context("no JSON line")?;
    let answer: Value = serde_json::from_str(line)?;
    let field = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    if let Some(cipher) = field("cipher") {
        return Ok(Ok(Session {
            tls_version: field("version").unwrap_or_default(),
            cipher,
        }));
    }
    let number = answer
        .get("number")
        .and_then(Value::as_u64)
        .context("no error number")?;
    Ok(Err(Failure {
        number: number.try_into()?,
        sqlstate: field("sqlstate"),
        message: field("message").unwrap_or_default(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_line_of_a_command_line_client_is_read() {
        let failure = read_table("WARNING: x\nERROR 3159 (08004): No: really\n").unwrap();
        assert_eq!(
            failure,
            Err(Failure {
                number: 3159,
                sqlstate: Some("08004".to_owned()),
                message: "No: really".to_owned()
            })
        );
    }

    #[test]
    fn plaintext_session_has_an_empty_cipher() {
        let session = read_table("Ssl_cipher\t\nSsl_version\t\n")
            .unwrap()
            .unwrap();
        assert_eq!(session.cipher, "");
    }
}
