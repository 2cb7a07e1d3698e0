//! The measurements: what musttls costs, each beside its peer and its goal, in one run.
//!
//! | module | content |
//! |---|---|
//! | [`packets`] | cost of a packet over an empty program |
//! | [`throughput`] | sysbench and new TLS sessions, with and without the gate |
//! | [`logins`] | how soon, and how many, refusals |
//! | [`crowd`] | many sessions open: memory, and refusals beside them |
//! | [`policy`] | a large policy over a small one |
//! | [`history`] | the commands over the history |
//! | [`million`] | plaintext logins that get in, of a million sessions |
//! | [`setting`] | hosts, servers, agent, clients |
//! | [`numbers`], [`report`] | medians, and the table |

mod crowd;
mod history;
mod logins;
mod million;
mod numbers;
mod packets;
mod policy;
mod report;
mod setting;
mod throughput;

use std::fs;
use std::time::Instant;

use anyhow::Result;

use report::Line;
pub(crate) use report::Report;
pub(crate) use setting::Scale;
use setting::{Setting, told};

type Section = fn(&mut Setting) -> Result<Vec<Line>>;

/// What is measured, in this order.
const SECTIONS: [(&str, Section); 8] = [
    ("Cost of a packet", packets::measure),
    ("Clients that use TLS", throughput::measure),
    ("Time to a refusal", logins::latency),
    ("Refusals a second", logins::storm),
    ("Many sessions", crowd::measure),
    ("Size of the policy", policy::measure),
    ("The history", history::measure),
    ("Logins carried out", million::measure),
];

/// Measures everything, or what has `only` in its title. A measurement that fails is a line of the report.
pub(crate) fn run(scale: Scale, only: &str) -> Result<Report> {
    let start = Instant::now();
    let load = || fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load_before = load();
    let mut setting = Setting::new(scale)?;
    let mut report = Report::default();
    report.about("date", told("date", &["--utc", "+%F %H:%M UTC"]));
    report.about("kernel", told("uname", &["-srm"]));
    report.about("cores", format!("{}, {}", told("nproc", &[]), processor()));
    for server in [Ok(&setting.mariadb), setting.mysql.as_ref()] {
        let version = match server {
            Ok(server) => server.query("SELECT VERSION()")?.trim().to_owned(),
            Err(error) => format!("not measured: {error:#}"),
        };
        report.about("server", version);
    }
    for (title, section) in SECTIONS {
        if !title.contains(only) {
            continue;
        }
        eprintln!("{:4} s  {title}", start.elapsed().as_secs());
        let lines = section(&mut setting);
        report.section(title, lines);
        // The next one starts from the same place, whatever happened.
        setting.gate(true)?;
    }
    report.about(
        "load average of 1 minute",
        format!(
            "{} before, {} after",
            first_word(&load_before),
            first_word(&load())
        ),
    );
    report.about("took", format!("{} s", start.elapsed().as_secs()));
    Ok(report)
}

fn first_word(text: &str) -> &str {
    text.split_whitespace().next().unwrap_or("?")
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("model name")?.split(':').nth(1))
        .map_or_else(
            || "unknown processor".to_owned(),
            |name| name.trim().to_owned(),
        )
}
