//! What the gate costs the clients that already use TLS: sysbench, and new sessions, in pairs with and
//! without it that follow each other at once.

use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use musttls_tests::certs::Certs;
use musttls_tests::place::Scratch;
use musttls_tests::server::{PASSWORD, SCHEMA, USER};
use musttls_tests::wire::COM_QUIT;

use super::numbers::{Sample, float};
use super::report::{Line, Verdict};
use super::setting::{Setting, cpu_time, open_session};

/// Clients at once: two for each core of the machine this is made for.
const CLIENTS: u32 = 4;
/// Sessions of one half of a pair, at most: there are only so many ports.
const SESSIONS_MAX: u32 = 20_000;

pub(super) fn measure(setting: &mut Setting) -> Result<Vec<Line>> {
    let certs = Scratch::new()?;
    let kept = Certs::new()?;
    for (from, name) in [
        (&kept.ca, "cacert.pem"),
        (&kept.cert, "client-cert.pem"),
        (&kept.key, "client-key.pem"),
    ] {
        let to = certs.join(name);
        std::fs::copy(from, &to).with_context(|| format!("make {}", to.display()))?;
    }
    let is_prepared = sysbench(setting, certs.path(), "prepare");

    let mut queries = [Vec::new(), Vec::new()];
    let mut sessions = [Vec::new(), Vec::new()];
    let mut agent = Vec::new();
    for pair in 0..setting.scale.pairs {
        let [with_queries, without_queries] = &mut queries;
        let [with_sessions, without_sessions] = &mut sessions;
        let mut half = |gated: bool| -> Result<()> {
            setting.gate(gated)?;
            let pid = setting.agent.pid();
            let (queries, sessions) = if gated {
                (&mut *with_queries, &mut *with_sessions)
            } else {
                (&mut *without_queries, &mut *without_sessions)
            };
            if is_prepared.is_ok() {
                queries.push(transactions(&sysbench(setting, certs.path(), "run")?)?);
            }
            let before = gated.then(|| cpu_time(pid)).transpose()?;
            let (count, rate) = new_sessions(setting)?;
            if let Some(before) = before {
                let time = cpu_time(pid)?.saturating_sub(before).as_secs_f64();
                agent.push(1e6 * time / float(count));
            }
            sessions.push(rate);
            Ok(())
        };
        // Who is first takes turns, too.
        half(pair % 2 == 0)?;
        half(pair % 2 != 0)?;
    }
    setting.gate(true)?;

    let mut lines = Vec::new();
    let what = "sysbench oltp_point_select over TLS, MariaDB, with / without the gate";
    match is_prepared {
        Ok(_) => lines.push(ratio(what, "/s", &queries, 0.99)),
        Err(error) => lines.push(Line::missing(what, &error)),
    }
    lines.push(ratio(
        "new TLS sessions (connect, TLS 1.3, login, quit), MariaDB, with / without the gate",
        "/s",
        &sessions,
        0.98,
    ));
    let agent = Sample::new(agent);
    lines.push(
        Line::beside(
            "the agent's own time for a new TLS session (user and system)",
            format!("{:.0} us ({})", agent.median(), agent.spread(0)),
        )
        .value("us_per_session", agent.median()),
    );
    Ok(lines)
}

fn ratio(what: &str, unit: &str, rates: &[Vec<f64>; 2], goal: f64) -> Line {
    let [with, without] = rates;
    let ratios = Sample::new(
        with.iter()
            .zip(without)
            .map(|(with, without)| with / without),
    );
    let [with, without] = [with, without].map(|rates| Sample::new(rates.iter().copied()).median());
    let (low, high) = ratios.median_interval();
    let measured = format!(
        "{:.3} (95 % sure of {low:.3} to {high:.3}; pairs {}; {with:.0} and {without:.0} {unit})",
        ratios.median(),
        ratios.spread(2),
    );
    let verdict = Verdict::at_least(goal, (low, high));
    Line::new(what, measured, &format!(">= {goal}"), verdict)
        .value("ratio", ratios.median())
        .value("pairs", ratios.len())
        .value("median_low", low)
        .value("median_high", high)
        .value("ratio_p10", ratios.quantile(10))
        .value("ratio_p90", ratios.quantile(90))
        .value("with_per_s", with)
        .value("without_per_s", without)
}

fn sysbench(setting: &Setting, certs: &Path, what: &str) -> Result<String> {
    let to = setting.at(&setting.mariadb);
    let mut command = super::setting::inside(setting.client(), "sysbench");
    command
        .arg("oltp_point_select")
        .args(["--tables=1", "--table-size=10000", "--db-driver=mysql"])
        .args(["--mysql-ssl=on", "--db-ps-mode=disable"])
        .arg(format!("--mysql-host={}", to.ip()))
        .arg(format!("--mysql-port={}", to.port()))
        .arg(format!("--mysql-user={USER}"))
        .arg(format!("--mysql-password={PASSWORD}"))
        .arg(format!("--mysql-db={SCHEMA}"))
        .arg(format!("--threads={CLIENTS}"))
        .arg(format!("--time={}", setting.scale.pair_time.as_secs()))
        .arg(what)
        .current_dir(certs)
        .stdin(Stdio::null());
    let output = command.output().context("run sysbench")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "sysbench {what} ended with {}: {text}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(text)
}

/// `    transactions:    123456 (12345.67 per sec.)`
fn transactions(text: &str) -> Result<f64> {
    text.lines()
        .find_map(|line| line.trim().strip_prefix("transactions:"))
        .and_then(|rest| rest.split('(').nth(1)?.split_whitespace().next())
        .and_then(|rate| rate.parse().ok())
        .with_context(|| format!("sysbench told no rate: {text}"))
}

/// New TLS sessions: how many, and how many a second.
fn new_sessions(setting: &Setting) -> Result<(u64, f64)> {
    let to = setting.at(&setting.mariadb);
    let login = setting.mariadb.open_login();
    let count = AtomicU32::new(0);
    let start = Instant::now();
    let end = start + setting.scale.pair_time;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    setting.client().run(|| -> Result<()> {
                        while Instant::now() < end && count.load(Ordering::Relaxed) < SESSIONS_MAX {
                            open_session(to, &login)?.send(&COM_QUIT)?;
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })?
                })
            })
            .collect();
        clients.into_iter().try_for_each(|client| {
            client
                .join()
                .unwrap_or_else(|_| anyhow::bail!("a client panicked"))
        })
    })?;
    let (time, count) = (start.elapsed(), u64::from(count.into_inner()));
    Ok((count, float(count) / time.as_secs_f64()))
}
