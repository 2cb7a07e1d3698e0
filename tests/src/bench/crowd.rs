//! Many sessions open: what they cost in memory, and what a refusal takes beside them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use musttls_tests::evidence;
use musttls_tests::place::output;
use musttls_tests::wire::{COM_QUIT, REFUSED};

use super::numbers::{Sample, float};
use super::report::{Line, Verdict};
use super::setting::{Session, Setting, field, inside, open_session, timed_logins};

/// Threads that open sessions.
const CLIENTS: u32 = 4;
/// Refusals each of which has its descriptor searched for.
const SEARCHED: u32 = 200;

pub(super) fn measure(setting: &mut Setting) -> Result<Vec<Line>> {
    // What the kernel charges a socket that the gate does not know.
    setting.gate(false)?;
    // The kernel frees the records some time after the last descriptor of their map.
    thread::sleep(Duration::from_secs(1));
    let ungated = {
        let _sessions = open(setting, 4)?;
        charged(setting)?
    };
    evidence::await_no_connection(&setting.mariadb)?;
    setting.fresh_gate()?;

    let status = format!("/proc/{}/status", setting.agent.pid());
    let status = Path::new(&status);
    let memory = || -> Result<_> { Ok([field(status, "VmRSS")?, field(status, "VmHWM")?]) };
    let [before, peak_before] = memory()?;
    let count = setting.scale.crowd;
    let mut sessions = open(setting, count)?;
    let [after, peak] = memory()?;
    let gated = charged(setting)?;
    let session = gated.saturating_sub(ungated);
    let mib = |kib: u64| float(kib) / 1024.0;

    let n = f64::from(count);
    let mut lines = vec![
        Line::new(
            format!("agent, resident with {count} TLS sessions open (peak)"),
            format!("{:.1} MiB ({:.1})", mib(after), mib(peak)),
            "<= 32 MiB with 10,000",
            Verdict::of(mib(after) <= 32.0),
        )
        .value("rss_kib", after)
        .value("hwm_kib", peak),
        Line::beside(
            "agent, resident with no session (peak), and growth a session",
            format!(
                "{:.1} MiB ({:.1}), {:.0} B",
                mib(before),
                mib(peak_before),
                float(after.saturating_sub(before)) * 1024.0 / n
            ),
        )
        .value("rss_kib", before),
        Line::new(
            "kernel, charged to a session's socket by the gate (inet_diag)",
            format!("{session} B ({gated} - {ungated})"),
            "<= 512 B",
            Verdict::of(session > 0 && session <= 512),
        )
        .value("bytes", session),
    ];
    lines.push(match maps(setting.agent.pid()) {
        Ok(maps) => of_maps(&maps),
        Err(error) => Line::missing("kernel, memory of all maps", &error),
    });

    let to = setting.at(&setting.mariadb);
    let login = setting.mariadb.open_login();
    let plain = login.packet_41();
    let logins = setting.scale.logins;
    let times = timed_logins(setting.client(), to, &plain, logins, Some(REFUSED))?;
    let what = format!("login -> 3159, MariaDB, p99 with {count} other sessions open");
    lines.push(of_times(&what, &times, "<= 2 ms"));

    // Another session takes the descriptor that the last refused one had, so that it must be searched.
    let mut searched = Vec::new();
    for _ in 0..SEARCHED {
        sessions.push(setting.client().run(|| open_session(to, &login))??);
        searched.extend(timed_logins(
            setting.client(),
            to,
            &plain,
            1,
            Some(REFUSED),
        )?);
    }
    let what = format!(
        "the same when a new session comes before each login, so that the descriptor is searched among {count}"
    );
    lines.push(of_times(&what, &searched, "<= 2 ms"));

    for session in &mut sessions {
        session.send(&COM_QUIT)?;
    }
    drop(sessions);
    evidence::await_no_connection(&setting.mariadb)?;
    Ok(lines)
}

fn of_times(what: &str, times: &[Duration], goal: &str) -> Line {
    let times = Sample::of_times(times);
    let (p50, p99) = (times.median(), times.quantile(99));
    let measured = format!("{p99:.3} ms (p50 {p50:.3} ms)");
    Line::new(what, measured, goal, Verdict::of(p99 <= 2.0))
        .value("p50_ms", p50)
        .value("p99_ms", p99)
}

fn open(setting: &Setting, count: u32) -> Result<Vec<Session>> {
    let to = setting.at(&setting.mariadb);
    let login = setting.mariadb.open_login();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let share = count / CLIENTS + u32::from(client < count % CLIENTS);
                let login = &login;
                scope.spawn(move || {
                    setting.client().run(|| -> Result<Vec<_>> {
                        (0..share).map(|_| open_session(to, login)).collect()
                    })?
                })
            })
            .collect();
        let mut sessions = Vec::new();
        for client in clients {
            sessions.extend(
                client
                    .join()
                    .unwrap_or_else(|_| anyhow::bail!("a client panicked"))?,
            );
        }
        Ok(sessions)
    })
}

/// Bytes of option memory, where socket storage is charged, of the server's sessions: the middle one
/// (`SK_MEMINFO_OPTMEM`; `ss -m` calls it `o`).
fn charged(setting: &Setting) -> Result<u64> {
    let port = setting.mariadb.port();
    let text = output(inside(&setting.net.db, "ss").args([
        "--tcp",
        "--memory",
        "--numeric",
        "--no-header",
        "state",
        "established",
        &format!("sport = :{port}"),
    ]))?;
    let mut charges: Vec<u64> = text
        .split("skmem:(")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter_map(|fields| fields.split(',').find_map(|field| field.strip_prefix('o')))
        .filter_map(|bytes| bytes.parse().ok())
        .collect();
    charges.sort_unstable();
    ensure!(!charges.is_empty(), "ss shows no memory of sockets");
    charges
        .get(charges.len() / 2)
        .copied()
        .context("ss shows no memory of sockets")
}

/// Bytes of each map that a process has a descriptor of, by the map's number (`fdinfo`).
fn maps(pid: u32) -> Result<BTreeMap<u64, u64>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("list {directory}"))? {
        let path = entry.with_context(|| format!("list {directory}"))?.path();
        // Descriptors that are no maps have no such fields.
        if let (Ok(id), Ok(bytes)) = (field(&path, "map_id"), field(&path, "memlock")) {
            maps.insert(id, bytes);
        }
    }
    ensure!(!maps.is_empty(), "{directory} shows no map");
    Ok(maps)
}

fn of_maps(maps: &BTreeMap<u64, u64>) -> Line {
    let bytes: u64 = maps.values().sum();
    Line::beside(
        format!(
            "kernel, memory of the {} maps the agent has open (memlock)",
            maps.len()
        ),
        format!("{:.1} MiB", float(bytes) / 1024.0 / 1024.0),
    )
    .value("bytes", bytes)
}
