//! All tests: units, real servers on this kernel, and a VM for each other kernel.

use std::panic;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Parser, ValueEnum};

use crate::cache::Cache;
use crate::cmd::Cmd;
use crate::dist;
use crate::instructions;
use crate::run::{TESTS_PROFILE, agent_binary, build_agent, for_tests, test_binary};
use crate::setup::{self, Extent};
use crate::vm::host::HostTests;
use crate::vm::{self, Payload};

#[derive(Parser)]
pub(crate) struct Args {
    /// Run this part only
    #[arg(long, value_enum)]
    only: Option<Part>,

    /// Run more of the host's tests in the VMs, and 100,000 random attacks and TLS logins on this kernel: takes hours
    #[arg(long, conflicts_with = "init")]
    full: bool,

    /// Boot this kernel only, for example 6.1; may be given again
    #[arg(long)]
    kernel: Vec<String>,

    /// Run these tests of the host in the VMs and no others: `PROGRAM`, or `PROGRAM::PART-OF-NAME`; may be given again
    #[arg(long, value_name = "TEST", conflicts_with = "init")]
    test: Vec<String>,

    /// Write the instruction counts of the VMs to docs/instructions.md instead of comparing them
    #[arg(long, conflicts_with = "init")]
    bless: bool,

    /// Boot this program as the first process instead of the tests, to look into a VM
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
}

/// A VM keeps one CPU busy and takes up to 4 GiB.
const VMS_AT_A_TIME: usize = 2;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Unit tests: no servers, no kernel programs
    Unit,
    /// Integration tests with real servers on this kernel
    Host,
    /// A VM for each other kernel: checks, and some of the host's tests
    Vm,
    /// The package, installed, upgraded and removed in a Debian with its systemd, in a VM; without this only with `--full`
    Dist,
}

pub(crate) fn run(cache: &Cache, args: &Args) -> Result<()> {
    setup::run(cache, Extent::Everything)?;
    if let Some(init) = &args.init {
        let agent = agent_binary()?;
        let payload = Payload {
            init: init.clone(),
            agent: agent.exists().then_some(agent),
            tests: None,
            system: None,
        };
        let mut report = Report::default();
        boot_all(cache, args, &payload, &mut report)?;
        return report.finish();
    }
    let wanted = |part| args.only.is_none_or(|only| only == part);
    let host_kernel = Cmd::new("uname").arg("-r").output()?;
    let host_kernel = host_kernel.trim();
    let mut report = Report::default();
    if wanted(Part::Unit) {
        report.add(format!("unit tests, kernel {host_kernel}"), unit_tests);
    }
    if wanted(Part::Host) || wanted(Part::Vm) {
        let built = report.add("release build".to_owned(), build);
        if built && wanted(Part::Host) {
            report.add(format!("integration tests, kernel {host_kernel}"), || {
                integration_tests(cache, args.full)
            });
        }
        if built && wanted(Part::Vm) {
            let payload = Payload {
                init: test_binary("vm-init")?,
                agent: Some(agent_binary()?),
                tests: Some(HostTests::build(cache, args.full, &args.test)?),
                system: None,
            };
            if let Some(tests) = &payload.tests {
                tests.print();
            }
            let counts = boot_all(cache, args, &payload, &mut report)?;
            report.add("instruction counts of the VMs".to_owned(), || {
                instructions::settle(&counts, args.bless)
            });
        }
    }
    if args.only == Some(Part::Dist) || (args.only.is_none() && args.full) {
        report.add("the package, in a VM".to_owned(), || dist::test(cache));
    } else if args.only.is_none() {
        println!(
            "NOT RUN: the package in a Debian with its systemd; `--full` or `--only dist` runs it"
        );
    }
    report.finish()
}

fn unit_tests() -> Result<()> {
    let cargo = Cmd::cargo()?.args([
        "test",
        "--workspace",
        "--exclude",
        "musttls-tests",
        "--exclude",
        "musttls-ebpf",
    ]);
    // What `cargo test` leaves out, so that it works for everyone, needs root and nothing else.
    let cargo = match setup::user()? {
        0 => cargo.args(["--", "--include-ignored"]),
        uid => {
            println!("NOT RUN: unit tests that need root; this is user {uid}");
            cargo
        }
    };
    cargo.stream_tests()
}

fn build() -> Result<()> {
    build_agent()?;
    Cmd::cargo()?
        .args([
            "build",
            "--profile",
            TESTS_PROFILE,
            "--package",
            "musttls-tests",
            "--bin",
            "vm-init",
        ])
        .stream()
}

fn integration_tests(cache: &Cache, full: bool) -> Result<()> {
    let cargo = Cmd::cargo()?.args([
        "test",
        "--profile",
        TESTS_PROFILE,
        "--package",
        "musttls-tests",
        "--",
        "--test-threads=1",
    ]);
    let mut cargo = for_tests(cargo, cache)?;
    if full {
        for (times, count) in [
            ("MUSTTLS_EVASION_SESSIONS", "100000"),
            ("MUSTTLS_POLICY_SESSIONS", "1000000"),
            ("MUSTTLS_TLS_LOGINS", "100000"),
            ("MUSTTLS_KILLS", "50"),
            ("MUSTTLS_RELOADS", "1000"),
        ] {
            cargo = cargo.env(times, count);
        }
    }
    cargo.stream_tests()
}

/// Returns what each kernel told of the programs, of those that passed.
fn boot_all(
    cache: &Cache,
    args: &Args,
    payload: &Payload,
    report: &mut Report,
) -> Result<instructions::Table> {
    let kernels = vm::all(cache)?;
    for name in &args.kernel {
        let known = || {
            kernels
                .iter()
                .map(|kernel| kernel.name.as_str())
                .collect::<Vec<_>>()
                .join(", ")
        };
        ensure!(
            kernels.iter().any(|kernel| kernel.name == *name),
            "no kernel {name} in the cache, only {}",
            known()
        );
    }
    let mut counts = instructions::Table::default();
    let wanted =
        |kernel: &&vm::Kernel| args.kernel.is_empty() || args.kernel.contains(&kernel.name);
    let kernels: Vec<_> = kernels.iter().filter(wanted).collect();
    println!(
        "\n== VMs, {VMS_AT_A_TIME} at a time: {}",
        kernels
            .iter()
            .map(|kernel| kernel.version.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    );
    for (kernel, took, console) in boot_side_by_side(cache, &kernels, payload) {
        let series = vm::series(kernel)?;
        let result = console.map(|text| counts.add(series, &kernel.version, &text));
        report.note(format!("VM, kernel {}", kernel.version), took, result);
    }
    Ok(counts)
}

/// Boots them [`VMS_AT_A_TIME`] at a time; each with the time that it took and its console, in the given order.
fn boot_side_by_side<'a>(
    cache: &Cache,
    kernels: &[&'a vm::Kernel],
    payload: &Payload,
) -> Vec<(&'a vm::Kernel, Duration, Result<String>)> {
    let queue = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        while let number = queue.fetch_add(1, Ordering::Relaxed)
            && let Some(&kernel) = kernels.get(number)
        {
            let start = Instant::now();
            let console = vm::run(cache, kernel, payload);
            done.push((number, kernel, start.elapsed(), console));
        }
        done
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..VMS_AT_A_TIME).map(|_| scope.spawn(worker)).collect();
        let join = |it: thread::ScopedJoinHandle<'_, _>| {
            it.join()
                .unwrap_or_else(|cause| panic::resume_unwind(cause))
        };
        workers.into_iter().flat_map(join).collect()
    });
    done.sort_by_key(|(number, ..)| *number);
    done.into_iter()
        .map(|(_, kernel, took, console)| (kernel, took, console))
        .collect()
}

/// What ran, in order.
#[derive(Default)]
struct Report {
    done: Vec<(String, Duration, Result<()>)>,
}

impl Report {
    fn add(&mut self, what: String, run: impl FnOnce() -> Result<()>) -> bool {
        println!("\n== {what}");
        let start = Instant::now();
        let result = run();
        self.note(what, start.elapsed(), result)
    }

    fn note(&mut self, what: String, took: Duration, result: Result<()>) -> bool {
        let result = result.context("failed");
        if let Err(error) = &result {
            eprintln!("{what}: {error:#}");
        }
        let passed = result.is_ok();
        self.done.push((what, took, result));
        passed
    }

    /// Prints the summary; it fails if a part failed or nothing ran.
    fn finish(&self) -> Result<()> {
        println!("\n== summary");
        for (what, duration, result) in &self.done {
            let word = if result.is_ok() { "pass" } else { "FAIL" };
            println!("{word} {:>6.1} s  {what}", duration.as_secs_f32());
        }
        let failed = self
            .done
            .iter()
            .filter(|(_, _, result)| result.is_err())
            .count();
        // Once more, because much came in between.
        for (what, _, result) in &self.done {
            if let Err(error) = result {
                println!("{what}: {}", head(&format!("{error:#}")));
            }
        }
        println!(
            "parts: {} passed, {failed} failed",
            self.done.len() - failed
        );
        if failed > 0 || self.done.is_empty() {
            bail!("{failed} of {} parts of the tests failed", self.done.len());
        }
        Ok(())
    }
}

/// What is shown of an error at the end.
fn head(text: &str) -> String {
    const LINES: usize = 8;
    let lines: Vec<_> = text.lines().take(LINES).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_part_fails_the_whole() {
        let mut report = Report::default();
        assert!(report.add("good".to_owned(), || Ok(())));
        assert!(!report.add("bad".to_owned(), || bail!("no")));
        assert!(report.finish().is_err());
    }

    #[test]
    fn no_part_at_all_is_no_success() {
        assert!(Report::default().finish().is_err());
    }
}
