//! `musttls` itself, as its service manager and its operator see it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::audit::Record;
use crate::netns::Host;
use crate::place::{self, Scratch};
use crate::wait::{self, PATIENCE};

/// Where an agent keeps pinned what is to outlive it.
pub fn pinned() -> Result<PathBuf> {
    let root = Path::new("/sys/fs/bpf/musttls");
    let of_abi = fs::read_dir(root)
        .with_context(|| format!("read {}", root.display()))?
        .next()
        .context("nothing is pinned")?;
    Ok(of_abi?.path())
}

/// A directory for one agent: configuration, records, control socket.
#[derive(Debug)]
pub struct Home {
    scratch: Scratch,
    audit: PathBuf,
    launcher: Vec<String>,
    /// The gate hangs on the machine's root cgroup: agents of parallel tests would see each other.
    _alone: File,
}

impl Home {
    /// Makes one, and waits until no other test has an agent.
    pub fn new() -> Result<Self> {
        let path = place::kept()?.join("agent.lock");
        let lock = File::create(&path).with_context(|| format!("open {}", path.display()))?;
        flock(&lock, FlockOperation::LockExclusive)
            .context("wait for the agents of other tests")?;
        let scratch = Scratch::new()?;
        let audit = scratch.join("audit.jsonl");
        Ok(Self {
            scratch,
            audit,
            launcher: Vec::new(),
            _alone: lock,
        })
    }

    /// Sends the records elsewhere.
    #[must_use]
    pub fn audit_to(mut self, path: impl Into<PathBuf>) -> Self {
        self.audit = path.into();
        self
    }

    /// The agent is started by these words, which its command line follows.
    #[must_use]
    pub fn through(mut self, launcher: &[&str]) -> Self {
        self.launcher = launcher.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// The agent is started in the network namespace of `host`.
    #[must_use]
    pub fn on(self, host: &Host) -> Self {
        let enter = format!("--net={}", host.path().display());
        self.through(&["nsenter", &enter])
    }

    /// The configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.scratch.join("musttls.toml")
    }

    /// The control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.scratch.join("control.sock")
    }

    /// The index of the history.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.scratch.join("state/history.db")
    }

    /// Where records go.
    #[must_use]
    pub fn audit(&self) -> &Path {
        &self.audit
    }

    /// Writes the configuration: `policy`, then the paths of this directory. Unless the policy says otherwise, the gate
    /// ends with the agent.
    pub fn configure(&self, policy: &str) -> Result<()> {
        let persist = if policy.contains("persist") {
            ""
        } else {
            "persist = false\n"
        };
        let text = format!(
            "{persist}{policy}\n[audit]\npath = \"{}\"\n[history]\npath = \"{}\"\n[control]\nsocket = \"{}\"\n",
            self.audit.display(),
            self.history().display(),
            self.control().display()
        );
        let path = self.config();
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Runs `musttls` with `args` to its end.
    pub fn musttls(&self, args: &[&str]) -> Result<Output> {
        self.command(args)?
            .output()
            .with_context(|| format!("run musttls {args:?}"))
    }

    /// The same as the user `uid`, with a copy of the program that every user may run.
    pub fn musttls_of(&self, uid: u32, args: &[&str]) -> Result<Output> {
        self.musttls_as(place::of_user(uid), args)
            .with_context(|| format!("as user {uid}"))
    }

    /// The same behind `command`, which runs what is added to it as somebody.
    pub fn musttls_as(&self, mut command: Command, args: &[&str]) -> Result<Output> {
        let copy = self.scratch.join("musttls");
        if !copy.exists() {
            fs::copy(place::agent_binary()?, &copy).context("copy musttls")?;
        }
        command.arg(copy);
        self.with_options(&mut command, args)
            .output()
            .with_context(|| format!("run musttls {args:?}"))
    }

    /// `musttls disarm`; what it said.
    pub fn disarm(&self) -> Result<String> {
        let output = self.musttls(&["disarm"])?;
        ensure!(
            output.status.success(),
            "musttls disarm ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).context("what musttls disarm said")
    }

    /// A file of this directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn notify(&self) -> PathBuf {
        self.scratch.join("notify.sock")
    }

    fn spawn(&self) -> Result<Child> {
        let log = self.scratch.join("agent.log");
        let log = File::create(&log).with_context(|| format!("create {}", log.display()))?;
        self.command(&["run"])?
            .env("NOTIFY_SOCKET", self.notify())
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .context("run the agent")
    }

    /// A command of this agent, told where the configuration or the control socket is.
    fn command(&self, args: &[&str]) -> Result<Command> {
        let binary = place::agent_binary()?;
        let mut command = match self.launcher.split_first() {
            Some((launcher, words)) if args.first() == Some(&"run") => {
                let mut command = Command::new(launcher);
                command.args(words).arg(binary);
                command
            }
            _ => Command::new(binary),
        };
        self.with_options(&mut command, args);
        Ok(command)
    }

    fn with_options<'a>(&self, command: &'a mut Command, args: &[&str]) -> &'a mut Command {
        command.args(args);
        match args.first() {
            Some(
                &("run" | "except" | "clients" | "simulate" | "report" | "learn" | "history"
                | "events" | "why"),
            ) => command.arg("--config").arg(self.config()),
            Some(&("status" | "reload" | "kill-plaintext")) => {
                command.arg("--socket").arg(self.control())
            }
            _ => command,
        }
    }
}

/// A running agent; it is killed when this is dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    notify: UnixDatagram,
    home: Home,
}

impl Agent {
    /// Starts one with `policy` and waits until it says that every listener found is covered.
    pub fn start(policy: &str) -> Result<Self> {
        let home = Home::new()?;
        home.configure(policy)?;
        Self::start_in(home)
    }

    /// Starts one with the configuration of `home`.
    pub fn start_in(home: Home) -> Result<Self> {
        let path = home.notify();
        let notify =
            UnixDatagram::bind(&path).with_context(|| format!("bind {}", path.display()))?;
        notify
            .set_nonblocking(true)
            .context("make the notify socket not block")?;
        let child = home.spawn()?;
        let mut agent = Self {
            child,
            notify,
            home,
        };
        agent.await_notice("READY=1")?;
        Ok(agent)
    }

    /// Starts it anew after its end, with the configuration as it stands.
    pub fn start_again(&mut self) -> Result<()> {
        // What the former one said last.
        while self.notice()?.is_some() {}
        self.child = self.home.spawn()?;
        self.await_notice("READY=1")
    }

    /// Waits until the agent tells its service manager `notice` (`sd_notify(3)`).
    pub fn await_notice(&mut self, notice: &str) -> Result<()> {
        // Loading the gate is slow where the CPU is emulated.
        wait::until(&format!("the agent's {notice}"), PATIENCE * 3, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended with {status}:\n{}", self.log()?);
            }
            while let Some(text) = self.notice()? {
                if text.lines().any(|line| line == notice) {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })
        .with_context(|| format!("the agent's log:\n{}", self.log().unwrap_or_default()))
    }

    fn notice(&self) -> Result<Option<String>> {
        let mut buffer = [0; 4096];
        match self.notify.recv(&mut buffer) {
            Ok(length) => {
                let text = buffer.get(..length).unwrap_or_default();
                Ok(Some(String::from_utf8_lossy(text).into_owned()))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("read the notify socket"),
        }
    }

    /// Its directory.
    #[must_use]
    pub const fn home(&self) -> &Home {
        &self.home
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said on standard output and standard error.
    pub fn log(&self) -> Result<String> {
        let path = self.home.scratch.join("agent.log");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// All records, in order. A line without its end is still being written.
    pub fn records(&self) -> Result<Vec<Record>> {
        let path = self.home.audit();
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        text.split_inclusive('\n')
            .filter_map(|line| line.strip_suffix('\n'))
            .map(Record::read)
            .collect()
    }

    /// Waits for a record that is `wanted`.
    pub fn await_record(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> Result<Record> {
        wait::until(&format!("an audit record: {what}"), PATIENCE, || {
            Ok(self.records()?.into_iter().find(&wanted))
        })
        .with_context(|| format!("the records:\n{}", self.text_of_records()))
    }

    /// Waits until `count` records are `wanted`, and returns all that are.
    pub fn await_records(
        &self,
        what: &str,
        count: usize,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Vec<Record>> {
        wait::until(&format!("{count} audit records: {what}"), PATIENCE, || {
            let found: Vec<_> = self.records()?.into_iter().filter(&wanted).collect();
            Ok((found.len() >= count).then_some(found))
        })
        .with_context(|| format!("the records:\n{}", self.text_of_records()))
    }

    fn text_of_records(&self) -> String {
        let text = fs::read_to_string(self.home.audit()).unwrap_or_default();
        let lines: Vec<_> = text.lines().rev().take(20).collect();
        lines.join("\n")
    }

    /// Runs `musttls` with `args` to its end; commands for the agent go to this one.
    pub fn musttls(&self, args: &[&str]) -> Result<Output> {
        self.home.musttls(args)
    }

    /// The same: standard output, standard error and exit code.
    pub fn told(&self, args: &[&str]) -> Result<(String, String, Option<i32>)> {
        let output = self.musttls(args)?;
        let text = |bytes| {
            String::from_utf8(bytes).with_context(|| format!("what musttls {args:?} printed"))
        };
        Ok((
            text(output.stdout)?,
            text(output.stderr)?,
            output.status.code(),
        ))
    }

    /// `musttls status --json`.
    pub fn status(&self) -> Result<Value> {
        let output = self.home.musttls(&["status", "--json"])?;
        ensure!(
            output.status.success(),
            "musttls status ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout).context("read the status")
    }

    /// How many sessions of all servers came to `outcome`, by the status.
    pub fn outcome(&self, outcome: &str) -> Result<u64> {
        Ok(sum_of(&self.status()?, outcome))
    }

    /// How many sessions came to what, by the server's name in the configuration; `seen` is all of them.
    pub fn sessions(&self) -> Result<BTreeMap<String, BTreeMap<String, u64>>> {
        let status = self.status()?;
        let servers = status
            .pointer("/sessions")
            .context("a status without sessions")?;
        serde_json::from_value(servers.clone()).context("read the sessions of a status")
    }

    /// Segments held so far, by reason; reasons without any are left out.
    pub fn held(&self) -> Result<BTreeMap<String, u64>> {
        let status = self.status()?;
        let held = status
            .pointer("/held_segments")
            .and_then(Value::as_object)
            .context("a status without held segments")?;
        Ok(held
            .iter()
            .filter_map(|(reason, count)| Some((reason.clone(), count.as_u64()?)))
            .filter(|(_, count)| *count > 0)
            .collect())
    }

    /// `musttls reload`: whether it succeeded, and what it said.
    pub fn reload(&self) -> Result<(bool, String)> {
        let output = self.home.musttls(&["reload"])?;
        let text = [output.stdout, output.stderr].concat();
        Ok((
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        ))
    }

    /// Writes a new policy and has it taken.
    pub fn set_policy(&self, policy: &str) -> Result<()> {
        self.home.configure(policy)?;
        let (is_taken, text) = self.reload()?;
        ensure!(is_taken, "musttls reload failed: {text}");
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id out of range")?;
        let pid = Pid::from_raw(pid).context("process id 0")?;
        kill_process(pid, signal).context("signal the agent")
    }

    /// SIGHUP: the configuration is read anew.
    pub fn hang_up(&self) -> Result<()> {
        self.signal(Signal::HUP)
    }

    /// SIGTERM, and how it ended.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        wait::until("the agent to end", PATIENCE, || self.ended())
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().context("look for the agent")
    }

    /// SIGKILL, as the kernel does when memory runs out.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the agent")?;
        self.child.wait().context("wait for the killed agent")?;
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.ended()?.is_none())
    }

    /// How long a refusal may keep the server's connection open.
    pub const RELEASE: Duration = Duration::from_millis(100);
}

impl Drop for Agent {
    /// An orderly end first: what outlives the agent must not outlive the test.
    fn drop(&mut self) {
        let ended = match self.is_running() {
            Ok(true) => self.terminate().map(drop),
            Ok(false) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = ended.or_else(|_| self.kill()) {
            eprintln!("cannot end the agent, process {}: {error:#}", self.pid());
        }
        if let Err(error) = self.home.disarm() {
            eprintln!("the gate stays on: {error:#}");
        }
    }
}

/// The sum of all numbers named `name`, however deep; `-` and `_` are the same.
fn sum_of(value: &Value, name: &str) -> u64 {
    match value {
        Value::Object(fields) => fields
            .iter()
            .map(|(key, value)| match value.as_u64() {
                Some(number) if key.replace('_', "-") == name => number,
                _ => sum_of(value, name),
            })
            .sum(),
        Value::Array(values) => values.iter().map(|value| sum_of(value, name)).sum(),
        _ => 0,
    }
}
