//! Whether a login costs more under a large policy: both policies in turn, by reload.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;
use musttls_tests::bpf::{Hook, Program, Runs, Stats};
use musttls_tests::wire::REFUSED;

use super::numbers::{Sample, float};
use super::report::{Line, Verdict};
use super::setting::{ENFORCE, Setting, field, timed_logins};

const EXCEPTIONS: u32 = 1_000;
const NETWORKS_EACH: u32 = 100;

pub(super) fn measure(setting: &mut Setting) -> Result<Vec<Line>> {
    setting.fresh_gate()?;
    let _stats = Stats::enable()?;
    let gate = Program::find(Hook::Ingress.of_gate())?;
    let policies = [policy(1, 1)?, policy(EXCEPTIONS, NETWORKS_EACH)?];
    let mut times = [Vec::new(), Vec::new()];
    let mut in_kernel = [Vec::new(), Vec::new()];
    let mut reloads = Vec::new();
    let login = setting.mariadb.open_login().packet_41();
    let to = setting.at(&setting.mariadb);
    let logins = setting.scale.logins;
    for _ in 0..setting.scale.policy_rounds {
        for ((policy, times), in_kernel) in policies.iter().zip(&mut times).zip(&mut in_kernel) {
            let start = Instant::now();
            setting.agent.set_policy(policy)?;
            reloads.push(start.elapsed());
            // The first ones warm the caches of the new tables.
            timed_logins(setting.client(), to, &login, logins / 10, Some(REFUSED))?;
            let before = gate.runs()?;
            let made = timed_logins(setting.client(), to, &login, logins, Some(REFUSED))?;
            let Runs { ns, .. } = gate.runs()?.since(before);
            times.push(Sample::of_times(&made).median());
            in_kernel.push(float(ns) / f64::from(logins));
        }
    }
    let status = format!("/proc/{}/status", setting.agent.pid());
    let memory = field(status.as_ref(), "VmRSS")?;
    setting.agent.set_policy(ENFORCE)?;

    let what = format!(
        "login -> 3159, p50, {EXCEPTIONS} exceptions and {} networks / one of each",
        EXCEPTIONS * NETWORKS_EACH
    );
    let reload = Sample::of_times(&reloads).quantile(100);
    Ok(vec![
        ratio(&what, "ms", 3, &times),
        ratio(
            "the same for on_ingress alone: its time for all packets of a connection",
            "ns",
            0,
            &in_kernel,
        ),
        Line::beside(
            "reload of the large policy, and the agent's memory with it",
            format!("{reload:.0} ms, {:.1} MiB", float(memory) / 1024.0),
        )
        .value("reload_ms", reload)
        .value("rss_kib", memory),
    ])
}

fn ratio(what: &str, unit: &str, digits: usize, values: &[Vec<f64>; 2]) -> Line {
    let [small, large] = values;
    let ratios = Sample::new(large.iter().zip(small).map(|(large, small)| large / small));
    let [small, large] = [small, large].map(|values| Sample::new(values.iter().copied()).median());
    let (low, high) = ratios.median_interval();
    let measured = format!(
        "{:.2} (95 % sure of {low:.2} to {high:.2}; rounds {}; {large:.digits$} and {small:.digits$} {unit})",
        ratios.median(),
        ratios.spread(2)
    );
    Line::new(what, measured, "<= 1.2", Verdict::at_most(1.2, (low, high)))
        .value("ratio", ratios.median())
        .value("large", large)
        .value("small", small)
}

/// Exceptions for the client's network but other users, and for other networks.
fn policy(exceptions: u32, networks: u32) -> Result<String> {
    let mut text = ENFORCE.to_owned();
    for exception in 0..exceptions {
        let sources: Vec<_> = (0..networks)
            .map(|network| {
                let number = exception * networks + network;
                if number == 0 {
                    return "\"10.77.1.0/24\"".to_owned();
                }
                format!(
                    "\"172.{}.{}.{}/28\"",
                    number >> 8 & 0xff,
                    number & 0xff,
                    (number >> 16) << 4
                )
            })
            .collect();
        write!(
            text,
            "[[exception]]\nname = \"e{exception}\"\nsource = [{}]\nuser = [\"user{exception}\"]\n\
             expires = \"never\"\nowner = \"bench@example.com\"\nreason = \"bench\"\n",
            sources.join(", ")
        )?;
    }
    Ok(text)
}
