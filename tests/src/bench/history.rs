//! What the commands over the history cost: records as the agent writes them, in files that are read and taken away.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use musttls_tests::audit::Record;
use musttls_tests::place::{Scratch, agent_binary};
use serde_json::{Value, json};

use super::numbers::{Sample, float};
use super::report::{Line, Verdict};
use super::setting::{Setting, open_session, timed_login};

/// Records of one file: more than are read in a transaction, and few enough for a disk.
const FILE: u64 = 1_000_000;
/// Sessions of each client.
const EACH: u64 = 10;
/// User names in use.
const USERS: u64 = 1_000;
/// Of so many clients one is in the clear.
const IN_THE_CLEAR: u64 = 10;
/// Runs of each command.
const RUNS: u32 = 5;

pub(super) fn measure(setting: &mut Setting) -> Result<Vec<Line>> {
    let records = setting.scale.sessions;
    let clients = (records / EACH).max(1);
    let templates = templates(setting)?;
    let place = Scratch::new()?;
    let (audit, config) = (place.join("audit.jsonl"), place.join("musttls.toml"));
    let index = place.join("state/history.db");
    fs::write(
        &config,
        format!(
            "mode = \"enforce\"\n[audit]\npath = \"{}\"\n[history]\npath = \"{}\"\nmax_clients = 100000000\n",
            audit.display(),
            index.display()
        ),
    )
    .context("write a configuration")?;

    let mut read = Duration::ZERO;
    let mut written = 0;
    for first in (0..records).step_by(usize::try_from(FILE)?) {
        let last = records.min(first + FILE);
        written += write(&audit, &templates, first..last, clients)?;
        read += time(&config, &["history"])?;
        // What was read is in the index.
        fs::remove_file(&audit).context("remove the audit file")?;
    }
    File::create(&audit).context("make an audit file")?;
    let size = fs::metadata(&index).context("look at the index")?.len();

    let commands: [(&[&str], Option<f64>); 4] = [
        (&["clients"], Some(1.0)),
        (&["clients", "--json"], None),
        (&["clients", "--plaintext"], Some(1.0)),
        (&["simulate"], Some(60.0)),
    ];
    let mut lines = Vec::new();
    for (command, goal_s) in commands {
        let times: Vec<_> = (0..RUNS)
            .map(|_| time(&config, command))
            .collect::<Result<_>>()?;
        let times = Sample::of_times(&times);
        let what = format!(
            "`musttls {}`, {records} sessions of {clients} clients",
            command.join(" ")
        );
        let measured = format!("{:.0} ms ({})", times.median(), times.spread(0));
        let line = match goal_s {
            // The goal is of 10 million sessions; fewer show nothing of it.
            Some(goal) if records >= 10_000_000 => Line::new(
                what,
                measured,
                &format!("<= {goal} s"),
                Verdict::at_most(goal * 1e3, times.median_interval()),
            ),
            _ => Line::beside(what, measured),
        };
        lines.push(line.value("ms", times.median()));
    }
    let bytes = float(size) / float(clients);
    lines.push(
        Line::new(
            "the index, bytes a client",
            format!("{bytes:.0}"),
            "<= 200",
            Verdict::of(bytes <= 200.0),
        )
        .value("bytes", bytes),
    );
    let speed = float(written) / read.as_secs_f64() / 1e6;
    lines.push(
        Line::beside(
            format!(
                "reading the audit file, {} bytes a record",
                written / records
            ),
            format!("{speed:.0} MB/s"),
        )
        .value("mb_per_s", speed),
    );
    Ok(lines)
}

/// A record in the clear and one of TLS, as this agent writes them.
fn templates(setting: &Setting) -> Result<[Value; 2]> {
    let to = setting.at(&setting.mariadb);
    let login = setting.mariadb.open_login();
    setting.client().run(|| -> Result<()> {
        timed_login(to, &login.packet_41())?;
        open_session(to, &login).map(drop)
    })??;
    let record = |transport: &str| -> Result<Value> {
        let wanted = |record: &Record| record.is_session() && record.transport() == transport;
        let record = setting.agent.await_record(transport, wanted)?;
        serde_json::from_str(&record.line).context("a record is JSON")
    };
    Ok([record("plaintext")?, record("tls")?])
}

/// Writes `records`, by number; returns how many bytes.
fn write(
    path: &Path,
    [plaintext, tls]: &[Value; 2],
    records: std::ops::Range<u64>,
    clients: u64,
) -> Result<u64> {
    let mut file = BufWriter::new(File::create(path).context("make an audit file")?);
    let mut bytes = 0;
    for number in records {
        // In no order, as clients come.
        let client = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % clients;
        let mut record = if client.is_multiple_of(IN_THE_CLEAR) {
            plaintext.clone()
        } else {
            tls.clone()
        };
        let [_, a, b, c] = u32::try_from(client % (1 << 24))?.to_be_bytes();
        for (at, value) in [
            ("/src_endpoint/ip", json!(format!("10.{a}.{b}.{c}"))),
            ("/user/name", json!(format!("user{}", client % USERS))),
            ("/metadata/sequence", json!(number + 1)),
            ("/metadata/uid", json!(format!("bench/1/{}", number + 1))),
        ] {
            // The user of a TLS session is not known.
            if let Some(place) = record.pointer_mut(at) {
                *place = value;
            }
        }
        let mut line = serde_json::to_vec(&record).context("encode a record")?;
        line.push(b'\n');
        file.write_all(&line).context("write records")?;
        bytes += u64::try_from(line.len())?;
    }
    file.flush().context("write records")?;
    Ok(bytes)
}

/// How long a command takes.
fn time(config: &Path, command: &[&str]) -> Result<Duration> {
    let mut musttls = Command::new(agent_binary()?);
    musttls.args(command).arg("--config").arg(config);
    if command == ["simulate"] {
        musttls.arg("--policy").arg(config);
    }
    let start = Instant::now();
    let status = musttls
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .with_context(|| format!("run musttls {command:?}"))?;
    let time = start.elapsed();
    // Somebody would be refused: simulate ends with 1.
    ensure!(
        matches!(status.code(), Some(0 | 1)),
        "musttls {command:?} ended with {status}"
    );
    Ok(time)
}
