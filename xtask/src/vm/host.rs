//! The tests of the host in a VM: which ones, and the file system that they see there.
//!
//! The VM gets the host's files by virtiofs, writes over them in memory, and runs the very programs that the host runs.
//! An emulated CPU is some ten times slower. So a test that goes over several servers takes MariaDB of the host only,
//! which no kernel treats in another way than MySQL, and without `--full` only [`CHOSEN`] run.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::cache::{self, Cache};
use crate::cmd::Cmd;
use crate::run::{TESTS_PROFILE, agent_binary};

/// Where Debian has it: 12 in the package of QEMU, 13 in one of its own.
const DAEMONS: [&str; 2] = ["/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"];

/// What runs on every kernel without `--full`, in about five minutes: what kernels do in ways of their own.
const CHOSEN: &[(&str, &[&str])] = &[
    ("evasion", &["login_in_single_bytes_is_refused"]),
    (
        "evasion_tcp",
        &[
            "any_order_of_segments_gets_no_login_in",
            "payload_on_the_third_ack_gets_no_login_in",
            "payload_on_the_third_ack_under_syn_cookies_gets_no_login_in",
            "payload_in_the_syn_gets_no_login_in",
            "ip_options_get_no_login_in",
            "ip_fragments_get_no_login_in",
        ],
    ),
    (
        "floor",
        &["while_half_a_server_hello_is_out_nothing_of_the_client_passes"],
    ),
    ("honest", &["joined_segments_pass"]),
    (
        "persist",
        &["gate_of_a_killed_agent_refuses_and_the_next_agent_tells_the_clients"],
    ),
    ("proxy", &["contradicting_copies_get_no_login_in"]),
    (
        "refusal",
        &["server_lets_go_of_a_refused_session_within_100_ms"],
    ),
    ("x", &["login_in_any_cut_is_kept_out"]),
];

/// What `--full` runs, whole.
const FULL: &[&str] = &[
    "bypass",
    "conditions",
    "evasion",
    "evasion_random",
    "evasion_tcp",
    "except",
    "faults",
    "floor",
    "health",
    "history",
    "honest",
    "listeners",
    "mode",
    "observe",
    "older",
    "pass",
    "persist",
    "policy_kernel",
    "privileges",
    "proxy",
    "refusal",
    "reload",
    "suites",
    "watch",
    "why",
    "x",
];

/// Test programs that no VM runs, and why.
const NEVER: &[(&str, &str)] = &[
    (
        "hostile",
        "file systems in user space, which the kernels in the VMs are without; what is done about a hostile process is no kernel's matter",
    ),
    (
        "native",
        "what servers do without the agent: nothing of musttls runs in it",
    ),
    (
        "rollout",
        "a page of the documentation: what it shows is tested command by command in mode, except, history and refusal",
    ),
    (
        "top",
        "a view of what the agent says: no kernel treats terminals in another way",
    ),
];

/// Tests that the kernel of a series cannot run: the beginning of their names, and why.
const LACKING: &[(&str, &str, &str, &str)] = &[
    (
        "5.10",
        "bypass",
        "client_of_",
        "Debian's cloud kernel 5.10 is built without CONFIG_MPTCP",
    ),
    (
        "5.10",
        "bypass",
        "settings_of_a_listener_that_is_covered_by_port",
        "its listener is one of MPTCP, as above",
    ),
    ("5.10", "bypass", "listener_that_found_no_place", "the same"),
    (
        "5.10",
        "bypass",
        "place::",
        "their listeners are of MPTCP, as above",
    ),
    (
        "5.10",
        "bypass",
        "sockmap_without_a_program",
        "before Linux 5.17 the kernel does not tell which sockmaps have programs: all are an alarm",
    ),
    (
        "5.10",
        "bypass",
        "clients_of_a_listener_of_smc",
        "no login gets in, but Linux 5.10 keeps a denied socket of SMC for more than nine minutes, and its record comes at the end",
    ),
    (
        "7",
        "bypass",
        "clients_of_a_listener_of_smc",
        "Debian's cloud kernel 7 is built without CONFIG_DIBS, and so without SMC",
    ),
];

/// For one test; what it takes on an idle machine is in `docs/kernel-support.md`, and others may build on this one.
const PATIENCE: Duration = Duration::from_mins(3);

/// The tests of one run of VMs.
pub(crate) struct HostTests {
    environment: String,
    programs: Vec<Program>,
    /// What does not run, each as a line.
    left_out: Vec<String>,
}

struct Program {
    name: String,
    path: PathBuf,
    tests: Vec<String>,
}

impl HostTests {
    /// Builds the test programs and chooses among their tests.
    pub(crate) fn build(cache: &Cache, full: bool, only: &[String]) -> Result<Self> {
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
            let (tests, others) = if only.is_empty() {
                choose(name, &all, full)
            } else {
                (select(name, &all, only), None)
            };
            left_out.extend(others);
            if !tests.is_empty() {
                let name = name.to_owned();
                programs.push(Program { name, path, tests });
            }
        }
        ensure!(!programs.is_empty(), "no tests among:\n{said}");
        for (name, tests) in CHOSEN.iter().filter(|_| only.is_empty()) {
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
        Ok(Self {
            environment: format!(
                "MUSTTLS_BIN={} MUSTTLS_CACHE={} MUSTTLS_SERVER=mariadb MUSTTLS_PATIENCE=3 MUSTTLS_EVASION_SESSIONS=100 \
                 MUSTTLS_POLICY_SESSIONS=10000 MUSTTLS_TLS_LOGINS=20",
                agent_binary()?.display(),
                cache.root().display()
            ),
            programs,
            left_out,
        })
    }

    /// What runs on a kernel of `series`: programs, and their tests.
    fn on<'a>(&'a self, series: &'a str) -> impl Iterator<Item = (&'a Program, Vec<&'a str>)> {
        self.programs
            .iter()
            .map(move |program| {
                let can_run = |test: &&String| lack(series, &program.name, test).is_none();
                let tests = program.tests.iter().filter(can_run);
                (program, tests.map(String::as_str).collect::<Vec<_>>())
            })
            .filter(|(_, tests)| !tests.is_empty())
    }

    /// For all tests on a kernel of `series`.
    pub(crate) fn patience(&self, series: &str) -> Duration {
        self.on(series)
            .map(|(_, tests)| PATIENCE * u32::try_from(tests.len()).unwrap_or(u32::MAX))
            .sum()
    }

    /// What the first process of a VM reads, whose kernel is of `series`.
    pub(crate) fn list(&self, series: &str) -> String {
        let mut text = format!("{}\n", self.environment);
        for (Program { name, path, .. }, tests) in self.on(series) {
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
        for Program { name, tests, .. } in &self.programs {
            for (series, program, test, why) in LACKING {
                if program == name && tests.iter().any(|it| it.starts_with(test)) {
                    println!("  NOT RUN  {name}: {test}* on {series} ({why})");
                }
            }
        }
    }
}

/// Why a kernel of `series` cannot run this test of `program`, if it cannot.
fn lack(series: &str, program: &str, test: &str) -> Option<&'static str> {
    let is_this = |(it, name, start, _): &&(&str, &str, &str, &str)| {
        *it == series && *name == program && test.starts_with(*start)
    };
    LACKING.iter().find(is_this).map(|(.., why)| *why)
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

/// The tests of program `name` that `only` names: whole programs, or `PROGRAM::TEST`, a part of a name being enough.
fn select(name: &str, all: &[&str], only: &[String]) -> Vec<String> {
    let is_named = |test: &str| {
        only.iter().any(|wanted| match wanted.split_once("::") {
            Some((program, part)) => program == name && test.contains(part),
            None => wanted == name,
        })
    };
    all.iter()
        .filter(|test| is_named(test))
        .map(|&test| test.to_owned())
        .collect()
}

/// A running `virtiofsd`, which gives the host's files to one VM; it ends with the VM, at the latest when this is dropped.
pub(crate) struct Files {
    daemon: Child,
    socket: PathBuf,
}

impl Files {
    /// With its socket in the directory `place`.
    pub(crate) fn share(place: &Path) -> Result<Self> {
        let socket = place.join("files.sock");
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
        assert!(tests.is_empty() && said.unwrap().contains("without the agent"));
    }

    #[test]
    fn tests_are_selected_by_program_and_by_a_part_of_their_name() {
        let all = ["login_in_single_bytes_is_refused", "other"];
        let select = |only: &str| select("evasion", &all, &[only.to_owned()]);
        assert_eq!(select("evasion"), all);
        assert_eq!(select("evasion::single"), all[..1]);
        assert!(select("evasion_tcp").is_empty() && select("evasion_tcp::other").is_empty());
    }

    #[test]
    fn what_a_kernel_lacks_is_left_out_on_it_alone() {
        let tests = HostTests {
            environment: String::new(),
            programs: vec![Program {
                name: "bypass".to_owned(),
                path: PathBuf::from("/b"),
                tests: vec!["client_of_mptcp_a".to_owned(), "other".to_owned()],
            }],
            left_out: Vec::new(),
        };
        assert_eq!(tests.list("5.10"), "\nbypass /b other \n");
        assert_eq!(tests.list("6.1"), "\nbypass /b client_of_mptcp_a other \n");
        assert_eq!(tests.patience("6.1"), PATIENCE * 2);
    }
}
