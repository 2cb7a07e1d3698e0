//! The demo of the README: real servers, real clients, the agent first in observe mode, then in enforce
//! mode, and what each of them says. It fails if anything is not as the README tells.

#![forbid(unsafe_code)]

use anyhow::{Context as _, Result, ensure};
use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::client::{Client, Login, SocketSession, Tls};
use musttls_tests::evidence;
use musttls_tests::netns::{Host, Net};
use musttls_tests::server::{Options, Product, Server};
use musttls_tests::wire::{REFUSED, REFUSED_TEXT};

/// The source that may still speak plaintext, in both modes.
const EXCEPTION: &str = "\
[[exception]]
name    = \"legacy-etl\"
source  = [\"10.77.2.0/24\"]
expires = \"never\"
owner   = \"dba@example.com\"
reason  = \"MySQL 5.6 client, migration DB-812\"
";

fn main() -> Result<()> {
    println!(
        "Making three hosts (network namespaces), a MariaDB and a MySQL. No option of theirs asks for TLS."
    );
    let net = Net::new()?;
    let mariadb = Server::start(&net.db, &Options::new(Product::MariaDb))?;
    let mysql = Server::start(&net.db, &Options::new(Product::MySql).port(3307))?;
    for (server, name) in [(&mariadb, "MariaDB"), (&mysql, "MySQL")] {
        let version = server.query("SELECT VERSION()")?;
        println!(
            "  {name} {} on db.test, port {}",
            version.trim(),
            server.port()
        );
    }

    let agent = Agent::start(&format!("mode = \"observe\"\n{EXCEPTION}"))?;
    println!(
        "Started `musttls run` beside them. The servers were not restarted and have no new account."
    );
    let visits = visits(&net, &mariadb, &mysql);

    let seen: Vec<_> = visits
        .iter()
        .map(|visit| visit.make(&agent))
        .collect::<Result<_>>()?;
    println!("\n== 1. mode = \"observe\": nothing is refused, and you learn who would break\n");
    show(&visits, &seen);
    for (visit, seen) in visits.iter().zip(&seen) {
        ensure!(
            seen.error.is_none(),
            "{}: {} was refused in observe mode",
            visit.who,
            seen.said
        );
    }

    agent.set_policy(&format!("mode = \"enforce\"\n{EXCEPTION}"))?;
    let seen: Vec<_> = visits
        .iter()
        .map(|visit| visit.make(&agent))
        .collect::<Result<_>>()?;
    println!(
        "\n== 2. mode = \"enforce\", by `musttls reload`: plaintext ends before the server sees it\n"
    );
    show(&visits, &seen);
    for (visit, seen) in visits.iter().zip(&seen) {
        let expected = visit.is_refused.then_some(REFUSED);
        ensure!(seen.error == expected, "{}: {}", visit.who, seen.said);
    }

    harm(&net, &[&mariadb, &mysql])?;
    let refused = seen
        .iter()
        .find(|seen| seen.record.is_denied())
        .context("no refusal")?;
    println!(
        "\n== 4. One whole audit record (OCSF 1.8.0)\n\n{}",
        refused.record.line
    );
    println!("\n== 5. musttls status\n\n{}", status(&agent)?);
    Ok(())
}

/// One client that connects.
struct Visit<'v> {
    who: &'static str,
    how: &'static str,
    server: &'v Server,
    path: Path<'v>,
    is_refused: bool,
}

enum Path<'v> {
    Tcp(Client, &'v Host, Tls),
    Unix(&'v Host),
}

fn visits<'v>(net: &'v Net, mariadb: &'v Server, mysql: &'v Server) -> Vec<Visit<'v>> {
    let tcp = |who, how, server, client, host, tls, is_refused| Visit {
        who,
        how,
        server,
        path: Path::Tcp(client, host, tls),
        is_refused,
    };
    let app = &net.app;
    vec![
        tcp(
            "mariadb",
            "plaintext to MariaDB",
            mariadb,
            Client::MariaDbCli,
            app,
            Tls::Off,
            true,
        ),
        tcp(
            "mysql",
            "plaintext to MySQL",
            mysql,
            Client::MySqlCli,
            app,
            Tls::Off,
            true,
        ),
        tcp(
            "PyMySQL",
            "plaintext to MariaDB",
            mariadb,
            Client::PyMySql,
            app,
            Tls::Off,
            true,
        ),
        tcp(
            "node mysql2",
            "plaintext to MySQL",
            mysql,
            Client::NodeMySql2,
            app,
            Tls::Off,
            true,
        ),
        tcp(
            "mariadb",
            "TLS to MariaDB",
            mariadb,
            Client::MariaDbCli,
            app,
            Tls::Required,
            false,
        ),
        tcp(
            "mysql",
            "TLS to MySQL",
            mysql,
            Client::MySqlCli,
            app,
            Tls::Required,
            false,
        ),
        tcp(
            "PyMySQL",
            "TLS to MySQL",
            mysql,
            Client::PyMySql,
            app,
            Tls::Required,
            false,
        ),
        tcp(
            "mariadb on legacy.test",
            "plaintext to MariaDB, excepted",
            mariadb,
            Client::MariaDbCli,
            &net.legacy,
            Tls::Off,
            false,
        ),
        Visit {
            who: "mariadb on db.test",
            how: "Unix socket of MariaDB",
            server: mariadb,
            path: Path::Unix(&net.db),
            is_refused: false,
        },
    ]
}

/// What each side said.
struct Seen {
    error: Option<u16>,
    /// The client.
    said: String,
    /// The server's general log.
    logged: String,
    /// The agent.
    record: Record,
}

impl Visit<'_> {
    fn make(&self, agent: &Agent) -> Result<Seen> {
        let known = agent.records()?.len();
        let mark = evidence::mark(self.server)?;
        let (error, said, transport) = match self.path {
            Path::Tcp(client, host, tls) => {
                let answer = client.login(host, &Login::new(self.server, host, tls))?;
                let said = match &answer.result {
                    Ok(session) if session.cipher.is_empty() => {
                        "logged in, Ssl_cipher empty".into()
                    }
                    Ok(session) => format!("logged in, Ssl_cipher {}", session.cipher),
                    Err(_) => first_error_line(&answer.text),
                };
                let transport = if tls == Tls::Off { "plaintext" } else { "tls" };
                (answer.error(), said, transport)
            }
            // It stays until it is on record: where the kernel allows no tracing, the agent polls.
            Path::Unix(host) => {
                let session = SocketSession::start(self.server, Some(host), 0)?;
                let pid = u64::from(session.pid());
                agent.await_record(self.how, |record| {
                    record.number("/actor/process/pid") == Some(pid)
                })?;
                let user = session.finish("SELECT CURRENT_USER()")?;
                (None, format!("logged in as {user}"), "unix")
            }
        };
        let record = agent.await_record(self.how, |record| {
            record.transport() == transport
                && record.number("/unmapped/server_pid") == Some(self.server.pid().into())
                && record
                    .sequence()
                    .is_some_and(|sequence| sequence > known as u64)
        })?;
        evidence::await_no_connection(self.server)?;
        let logins = evidence::connects(self.server, mark)?;
        let logged = if logins.is_empty() {
            "(nothing)".into()
        } else {
            logins.join("; ")
        };
        Ok(Seen {
            error,
            said,
            logged,
            record,
        })
    }
}

/// Not the warnings that stand around it, nor the JSON of our own scripts.
fn first_error_line(text: &str) -> String {
    let error = text.lines().find(|line| line.contains(REFUSED_TEXT));
    error
        .or_else(|| text.lines().last())
        .unwrap_or_default()
        .to_owned()
}

fn show(visits: &[Visit<'_>], seen: &[Seen]) {
    let saw = visits
        .iter()
        .zip(seen)
        .enumerate()
        .map(|(n, (visit, seen))| {
            vec![
                (n + 1).to_string(),
                visit.who.into(),
                visit.how.into(),
                seen.said.clone(),
            ]
        });
    table(
        &["#", "client", "connects by", "what the client saw"],
        &[3, 22, 24, 62],
        saw.collect(),
    );
    println!();
    let said = seen.iter().enumerate().map(|(n, seen)| {
        vec![
            (n + 1).to_string(),
            seen.logged.clone(),
            in_words(&seen.record),
        ]
    });
    table(
        &[
            "#",
            "what the server's own log says",
            "what the audit record says",
        ],
        &[3, 54, 54],
        said.collect(),
    );
}

fn in_words(record: &Record) -> String {
    let user = if record.user().is_empty() {
        "user not visible"
    } else {
        record.user()
    };
    let action = match record.action() {
        Some(1) => "allowed",
        Some(2) => "DENIED",
        Some(3) => "observed, would be denied",
        _ => "?",
    };
    let why = match record.transport() {
        "tls" => format!(
            "TLS {} {}",
            record.text("/unmapped/tls/version"),
            record.tls_cipher()
        ),
        "unix" => format!("Unix socket, process {}", record.at("/actor/process/pid")),
        _ if record.action() == Some(1) => format!("exception {}", record.rule()),
        _ => format!(
            "rule {}, {}",
            record.rule(),
            record.text("/unmapped/reason")
        ),
    };
    let refusal = record.number("/unmapped/refusal/err_after_us");
    let refusal = refusal
        .map(|us| format!(", 3159 after {us} us"))
        .unwrap_or_default();
    format!("{action}: {user}, {why}{refusal}")
}

fn harm(net: &Net, servers: &[&Server]) -> Result<()> {
    println!(
        "\n== 3. The servers are unharmed: no handshake error, so nobody is locked out (error 1129)\n"
    );
    let mut rows = Vec::new();
    for server in servers {
        let counts = evidence::counts(server, net.app.v4())?;
        rows.push(vec![
            format!("{:?}", server.product()),
            counts.handshake_errors.to_string(),
            counts.connect_errors.to_string(),
            evidence::connections(server)?.len().to_string(),
        ]);
        ensure!(
            counts.handshake_errors == 0,
            "{:?}: {counts:?}",
            server.product()
        );
    }
    let heads = [
        "server",
        "COUNT_HANDSHAKE_ERRORS",
        "SUM_CONNECT_ERRORS",
        "connections left",
    ];
    table(&heads, &[10, 24, 20, 18], rows);
    Ok(())
}

fn status(agent: &Agent) -> Result<String> {
    let output = agent.home().musttls(&["status"])?;
    ensure!(
        output.status.success(),
        "musttls status ended with {}",
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}

/// Prints a table whose cells are broken between words at the width of their column.
fn table(heads: &[&str], widths: &[usize], rows: Vec<Vec<String>>) {
    let rule = widths
        .iter()
        .map(|width| "-".repeat(*width))
        .collect::<Vec<_>>()
        .join("-+-");
    print_row(
        &heads
            .iter()
            .map(|head| (*head).to_owned())
            .collect::<Vec<_>>(),
        widths,
    );
    println!("{rule}");
    for row in rows {
        print_row(&row, widths);
    }
}

fn print_row(cells: &[String], widths: &[usize]) {
    let cells: Vec<Vec<String>> = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| broken(cell, *width))
        .collect();
    let height = cells.iter().map(Vec::len).max().unwrap_or_default();
    for line in 0..height {
        let parts = cells.iter().zip(widths).map(|(cell, width)| {
            let text = cell.get(line).map_or("", String::as_str);
            format!("{text:<width$}")
        });
        println!("{}", parts.collect::<Vec<_>>().join(" | ").trim_end());
    }
}

fn broken(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        if let Some(last) = lines.last_mut()
            && (last.is_empty() || last.len() + 1 + word.len() <= width)
        {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}
