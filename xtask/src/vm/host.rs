//! The tests of the host in a VM: which ones, and the file system that they see there.
//!
//! The VM gets the host's files by virtiofs, writes over them in memory, and runs the very programs that the host runs.
//! An emulated CPU is some ten times slower, so without `--full` only [`CHOSEN`] run, on MariaDB only.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cache::{self, Cache};
use crate::cmd::Cmd;
use crate::run::{TESTS_PROFILE, agent_binary};

/// Where Debian has it: 12 in the package of QEMU, 13 in one of its own.
const DAEMONS: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// What runs on every kernel without `--full`.
const CHOSEN: &[(&str, &[&str])] = &[
    (
        "evasion",
        &[
            "login_in_single_bytes_is_refused",
            "tls_request_and_then_a_plaintext_login_is_kept_out",
        ],
    ),
    (
        "evasion_tcp",
        &[
            "any_order_of_segments_gets_no_login_in",
            "payload_on_the_third_ack_gets_no_login_in",
        ],
    ),
];

/// What runs with `--full`, hours for each kernel.
const FULL: &[&str] = &[
    "evasion",
    "evasion_tcp",
    "evasion_random",
    "refusal",
    "pass",
    "observe",
    "x",
    "proxy",
    "floor",
];

/// Test programs that no VM runs, and why.
const NEVER: &[(&str, &str)] = &[
    ("native", "says nothing about musttls"),
    (
        "reload",
        "storms and full disks need the speed and the disk of the host",
    ),
    ("health", "its deadlines are those of real health checks"),
    ("honest", "its deadlines are those of real clients"),
    ("listeners", "its hosts are not made for a VM yet"),
    ("suites", "the same gate as in refusal and pass"),
    (
        "bypass",
        "MPTCP, SMC and sockmaps are not tried in a VM yet",
    ),
];

/// The tests of one run of VMs.
pub(crate) struct HostTests {
    environment: String,
    programs: Vec<Program>,
    /// What does not run, each as a line.
    left_out: Vec<String>,
    /// For all of a VM's tests.
    pub(crate) patience: Duration,
}

struct Program {
    name: String,
    path: PathBuf,
    tests: Vec<String>,
}

impl HostTests {
    /// Builds the test programs and chooses among their tests.
    pub(crate) fn build(cache: &Cache, full: bool) -> Result<Self> {
        let top = cache::repository()?;
        let build = [
            "test",
            "--profile",
            TESTS_PROFILE,
            "--package",
            "musttls-tests",
            "--no-run",
        ];
        let said = Cmd::cargo()?.args(build).output()?;
        let mut programs = Vec::new();
        let mut left_out = Vec::new();
        for (name, path) in said.lines().filter_map(read_executable) {
            let path = top.join(path);
            let all = Cmd::new(&path)
                .args(["--list", "--format=terse"])
                .output()?;
            let all: Vec<_> = all
                .lines()
                .filter_map(|line| line.strip_suffix(": test"))
                .collect();
            ensure!(
                FULL.contains(&name) || NEVER.iter().any(|(never, _)| *never == name),
                "whether a VM runs {name} is not said: add it to FULL or to NEVER"
            );
            let (tests, others) = choose(name, &all, full);
            left_out.extend(others);
            if !tests.is_empty() {
                let name = name.to_owned();
                programs.push(Program { name, path, tests });
            }
        }
        ensure!(!programs.is_empty(), "no tests among:\n{said}");
        for (name, tests) in CHOSEN {
            let found = programs.iter().find(|program| program.name == *name);
            let is_there = |test: &&str| {
                found.is_some_and(|program| program.tests.iter().any(|name| name == test))
            };
            ensure!(
                tests.iter().all(is_there),
                "{name} has not all of {}",
                tests.join(", ")
            );
        }
        let servers = if full { "" } else { " MUSTTLS_SERVER=mariadb" };
        Ok(Self {
            environment: format!(
                "MUSTTLS_BIN={} MUSTTLS_CACHE={} MUSTTLS_EVASION_SESSIONS=100{servers}",
                agent_binary()?.display(),
                cache.root().display()
            ),
            programs,
            left_out,
            patience: Duration::from_mins(if full { 300 } else { 20 }),
        })
    }

    /// What the VM's first process reads.
    pub(crate) fn list(&self) -> String {
        let mut text = format!("{}\n", self.environment);
        for Program { name, path, tests } in &self.programs {
            text += &[
                name.as_str(),
                &path.to_string_lossy(),
                &tests.join(" "),
                "\n",
            ]
            .join(" ");
        }
        text
    }

    /// What runs and what does not, by name and number.
    pub(crate) fn print(&self) {
        println!("tests of the host in each VM, with {}:", self.environment);
        for Program { name, tests, .. } in &self.programs {
            println!("  run      {name}: {}: {}", tests.len(), tests.join(", "));
        }
        for line in &self.left_out {
            println!("  NOT RUN  {line}");
        }
    }
}

/// `Executable tests/NAME.rs (PATH)`.
fn read_executable(line: &str) -> Option<(&str, &str)> {
    let line = line.trim().strip_prefix("Executable tests/")?;
    let (name, path) = line.split_once(".rs (")?;
    Some((name, path.strip_suffix(')')?))
}

/// The tests of program `name` that run, and what is said of the others.
fn choose(name: &str, all: &[&str], full: bool) -> (Vec<String>, Option<String>) {
    let chosen: Vec<_> = if full && FULL.contains(&name) {
        all.to_vec()
    } else if full {
        Vec::new()
    } else {
        let chosen = CHOSEN.iter().find(|(program, _)| *program == name);
        let is_chosen = |test: &&str| chosen.is_some_and(|(_, tests)| tests.contains(test));
        all.iter().copied().filter(is_chosen).collect()
    };
    let others: Vec<_> = all
        .iter()
        .filter(|test| !chosen.contains(test))
        .copied()
        .collect();
    let never = NEVER.iter().find(|(program, _)| *program == name);
    let why = match never {
        Some((_, why)) => why,
        None => "takes long where the CPU is emulated; `--full` runs it",
    };
    let said = (!others.is_empty())
        .then(|| format!("{name}: {}: {} ({why})", others.len(), others.join(", ")));
    (chosen.into_iter().map(str::to_owned).collect(), said)
}

/// A running `virtiofsd`, which gives the host's files to one VM; it ends with the VM, at the latest when this is dropped.
pub(crate) struct Files {
    daemon: Child,
    socket: PathBuf,
}

impl Files {
    pub(crate) fn share(cache: &Cache) -> Result<Self> {
        let socket = cache.vm().join("files.sock");
        cache::remove(&socket)?;
        let program = DAEMONS.into_iter().find(|path| Path::new(path).exists());
        let program = program.context("there is no virtiofsd; it comes with Debian 12's QEMU")?;
        // Not outlived by this program, however that ends.
        let daemon = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", program])
            .arg(format!("--socket-path={}", socket.display()))
            .args([
                "-o",
                "source=/",
                "-o",
                "cache=always",
                "-o",
                "sandbox=chroot",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("run {program}"))?;
        let files = Self { daemon, socket };
        for _ in 0..100 {
            if files.socket.exists() {
                return Ok(files);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        anyhow::bail!("{program} made no {}", files.socket.display())
    }

    /// Options of QEMU for it, with `memory` as QEMU writes sizes.
    pub(crate) fn options(&self, memory: &str) -> Vec<String> {
        [
            "-object",
            &format!("memory-backend-memfd,id=memory,size={memory},share=on"),
            "-numa",
            "node,memdev=memory",
            "-chardev",
            &format!("socket,id=files,path={}", self.socket.display()),
            "-device",
            "vhost-user-fs-pci,chardev=files,tag=host",
        ]
        .map(str::to_owned)
        .to_vec()
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Err(error) = self.daemon.kill().and_then(|()| self.daemon.wait()) {
            eprintln!(
                "vm: cannot stop virtiofsd, process {}: {error}",
                self.daemon.id()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executable_of_a_test_is_read_and_no_other() {
        let line = "  Executable tests/evasion.rs (target/tests/deps/evasion-ec)";
        assert_eq!(
            read_executable(line),
            Some(("evasion", "target/tests/deps/evasion-ec"))
        );
        assert_eq!(
            read_executable("  Executable unittests src/lib.rs (a)"),
            None
        );
    }

    #[test]
    fn what_does_not_run_is_said_with_its_reason() {
        let all = ["login_in_single_bytes_is_refused", "other"];
        let (tests, said) = choose("evasion", &all, false);
        assert_eq!(tests, [all[0]]);
        assert!(said.unwrap().starts_with("evasion: 1: other (takes long"));
        let (tests, said) = choose("evasion", &all, true);
        assert_eq!((tests.len(), said), (2, None));
        let (tests, said) = choose("native", &all, true);
        assert!(tests.is_empty() && said.unwrap().contains("says nothing about musttls"));
    }
}
