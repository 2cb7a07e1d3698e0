//! How soon a plaintext login is answered, and how many refusals a second: musttls, the servers' own
//! refusal, and a firewall rule.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use musttls_tests::evidence;
use musttls_tests::netns::Host;
use musttls_tests::place::output;
use musttls_tests::server::Server;
use musttls_tests::wire::REFUSED;

use super::numbers::{Sample, float};
use super::report::{Line, Verdict};
use super::setting::{Setting, cpu_time, inside, timed_login, timed_logins};

/// Clients of the storm.
const CLIENTS: u32 = 8;
/// Refusals of the storm, at most.
const STORM_MAX: u64 = 1_000_000;
/// `ER_ACCESS_DENIED_ERROR`, MariaDB's refusal before 11.2.
const ACCESS_DENIED: u16 = 1045;

type Times = Vec<Duration>;

pub(super) fn latency(setting: &mut Setting) -> Result<Vec<Line>> {
    let mut gate = [Times::new(), Times::new()];
    let mut own = [Times::new(), Times::new()];
    let mut rule = Ok(Times::new());
    let count = setting.scale.logins;
    for _ in 0..setting.scale.login_blocks {
        setting.gate(true)?;
        let [mariadb, mysql] = &mut gate;
        block(setting, &setting.mariadb, count, REFUSED, mariadb)?;
        if let Ok(server) = &setting.mysql {
            block(setting, server, count, REFUSED, mysql)?;
        }
        setting.gate(false)?;
        let [mariadb, mysql] = &mut own;
        evidence::await_no_connection(&setting.mariadb_own)?;
        let error = own_error(setting)?;
        block(setting, &setting.mariadb_own, count, error, mariadb)?;
        if let Ok(server) = &setting.mysql_own {
            block(setting, server, count, REFUSED, mysql)?;
        }
        // The server is left with a connection each time.
        rule = rule.and_then(|times| by_rule(setting, count / 2, times));
    }
    setting.gate(true)?;

    let mut lines = Vec::new();
    let names = ["MariaDB", "MySQL"];
    for ((name, gate), own) in names.into_iter().zip(&gate).zip(&own) {
        if gate.is_empty() || own.is_empty() {
            let why = setting
                .mysql
                .as_ref()
                .err()
                .or(setting.mysql_own.as_ref().err());
            let why = why.map_or_else(
                || anyhow::anyhow!("no sample"),
                |error| anyhow::anyhow!("{error:#}"),
            );
            lines.push(Line::missing(format!("login -> 3159, {name}"), &why));
            continue;
        }
        let (gate, own) = (Sample::of_times(gate), Sample::of_times(own));
        for (percent, goal) in [(50, 1.0), (99, 2.0)] {
            let (gate, own) = (gate.quantile(percent), own.quantile(percent));
            let measured = format!("{gate:.3} ms / {own:.3} ms = {:.2}", gate / own);
            lines.push(
                Line::new(
                    format!(
                        "login -> 3159, {name}, p{percent}, musttls / the server's own refusal"
                    ),
                    measured,
                    &format!("<= {goal:.1}"),
                    Verdict::of(gate <= goal * own),
                )
                .value("musttls_ms", gate)
                .value("own_ms", own)
                .value("ratio", gate / own),
            );
        }
    }
    let what = "beside: login -> RST of the nftables rule, p50 and p99 (no 3159)";
    lines.push(match rule {
        Ok(times) => {
            let times = Sample::of_times(&times);
            let (p50, p99) = (times.quantile(50), times.quantile(99));
            Line::beside(what, format!("{p50:.3} ms, {p99:.3} ms"))
                .value("p50_ms", p50)
                .value("p99_ms", p99)
        }
        Err(error) => Line::missing(what, &error),
    });
    Ok(lines)
}

fn block(
    setting: &Setting,
    server: &Server,
    count: u32,
    error: u16,
    times: &mut Times,
) -> Result<()> {
    let login = server.open_login().packet_41();
    let to = setting.at(server);
    times.extend(timed_logins(
        setting.client(),
        to,
        &login,
        count,
        Some(error),
    )?);
    Ok(())
}

/// MariaDB's own refusal has another number before 11.2.
fn own_error(setting: &Setting) -> Result<u16> {
    let server = &setting.mariadb_own;
    let to = setting.at(server);
    let login = server.open_login().packet_41();
    let (_, next) = setting.client().run(|| timed_login(to, &login))??;
    let number = next.error_number();
    ensure!(
        matches!(number, Some(REFUSED | ACCESS_DENIED)),
        "MariaDB with require_secure_transport answered {next:?}"
    );
    number.context("no error number")
}

fn by_rule(setting: &Setting, count: u32, mut times: Times) -> Result<Times> {
    let server = &setting.mariadb_own;
    let rule = Rule::new(&setting.net.db, server.port())?;
    let login = server.open_login().packet_41();
    let made = timed_logins(setting.client(), setting.at(server), &login, count, None);
    drop(rule);
    times.extend(made?);
    Ok(times)
}

/// The rule an administrator would try (reference: kernel.md section 9).
struct Rule<'h>(&'h Host);

impl<'h> Rule<'h> {
    fn new(host: &'h Host, port: u16) -> Result<Self> {
        let table = format!(
            "table ip bench {{ chain input {{ type filter hook input priority 0;\n\
             tcp dport {port} @ih,24,8 1 @ih,32,16 & 0x0008 == 0 reject with tcp reset\n}}\n}}\n"
        );
        let mut nft = inside(host, "nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run nft")?;
        let rule = Self(host);
        nft.stdin
            .take()
            .context("nft has no input")?
            .write_all(table.as_bytes())
            .context("write to nft")?;
        let done = nft.wait_with_output().context("wait for nft")?;
        ensure!(
            done.status.success(),
            "nft does not take the rule: {}",
            String::from_utf8_lossy(&done.stderr).trim()
        );
        Ok(rule)
    }
}

impl Drop for Rule<'_> {
    fn drop(&mut self) {
        if let Err(error) = output(inside(self.0, "nft").args(["delete", "table", "ip", "bench"])) {
            eprintln!("{error:#}");
        }
    }
}

/// Refusals a second with the agent on one core, and what one costs the agent.
pub(super) fn storm(setting: &mut Setting) -> Result<Vec<Line>> {
    setting.fresh_gate()?;
    let pid = setting.agent.pid();
    output(
        Command::new("taskset")
            .args(["--all-tasks", "--cpu-list", "--pid", "0"])
            .arg(pid.to_string()),
    )
    .context("put the agent on one core")?;
    let to = setting.at(&setting.mariadb);
    let login = setting.mariadb.open_login().packet_41();
    let (right, wrong) = (AtomicU64::new(0), AtomicU64::new(0));
    let before = cpu_time(pid)?;
    let start = Instant::now();
    let end = start + setting.scale.storm;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    setting.client().run(|| {
                        while Instant::now() < end && right.load(Ordering::Relaxed) < STORM_MAX {
                            let is_right = timed_login(to, &login).is_ok_and(|(_, next)| {
                                next.error().is_some_and(|error| {
                                    error.number == REFUSED
                                        && error.sqlstate.as_deref() == Some("08004")
                                        && error.sequence == 2
                                })
                            });
                            let counter = if is_right { &right } else { &wrong };
                            counter.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| {
            client
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a client panicked"))
        })
    })?;
    let time = start.elapsed().as_secs_f64();
    let cpu = cpu_time(pid)?.saturating_sub(before).as_secs_f64();
    let (right, wrong) = (right.into_inner(), wrong.into_inner());
    let rate = float(right) / time;
    let of_agent = cpu / float(right.max(1));
    let goal = "2,000 /s on one core";
    Ok(vec![
        Line::new(
            format!("refusals sustained, MariaDB, agent on one core, {CLIENTS} clients, {time:.0} s"),
            format!("{rate:.0} /s with the right 3159; {wrong} others of {}", right + wrong),
            goal,
            Verdict::of(rate >= 2_000.0 && wrong == 0),
        )
        .value("per_s", rate)
        .value("right", right)
        .value("wrong", wrong),
        Line::beside(
            "the agent's own time for a refusal (user and system), and what one core could do at that",
            format!("{:.0} us, {:.0} /s; {:.0} % of its core used", of_agent * 1e6, 1.0 / of_agent, 100.0 * cpu / time),
        )
        .value("us_per_refusal", of_agent * 1e6),
    ])
}
