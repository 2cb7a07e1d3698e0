//! Boots a kernel of the cache in QEMU, with a program as its first process, and reads its verdict.

mod archive;
pub(crate) mod host;
pub(crate) mod userland;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cache::{self, Cache};
use crate::cmd;
pub(crate) use crate::setup::kernels::{Kernel, all, series};
use crate::vm::host::{Files, HostTests};

/// A boot with MariaDB takes 20 s under emulation on two cores; a busy host gets room.
const DEADLINE: Duration = Duration::from_mins(5);

/// After its verdict the VM has only to power off.
const POWER_OFF: Duration = Duration::from_secs(15);

const CONSOLE_LINES: usize = 60;

/// The first process prints this and `pass` or `fail: why`.
const RESULT: &str = "VM-RESULT: ";

/// What goes into a VM beside the userland: built anew all the time.
pub(crate) struct Payload {
    /// Becomes `/init`.
    pub(crate) init: PathBuf,
    /// Becomes `/usr/sbin/musttls`.
    pub(crate) agent: Option<PathBuf>,
    /// What runs with the host's files, behind the checks of `init`.
    pub(crate) tests: Option<HostTests>,
    /// A whole system of the host's files, which `init` hands over to.
    pub(crate) system: Option<System>,
}

/// A system that boots in place of the checks.
pub(crate) struct System {
    /// Name of its place in the cache, where a kernel has its own else.
    pub(crate) name: &'static str,
    /// What becomes which file below `/`.
    pub(crate) files: Vec<(PathBuf, &'static str)>,
    /// How long its tests take at the most.
    pub(crate) patience: Duration,
}

/// Boots `kernel` and fails unless the payload says that it passed. Returns what stood on the console.
pub(crate) fn run(cache: &Cache, kernel: &Kernel, payload: &Payload) -> Result<String> {
    // Of one kernel, only one at a time: image, socket and console have its name.
    let name = payload
        .system
        .as_ref()
        .map_or(kernel.name.as_str(), |system| system.name);
    let place = cache.vm().join(name);
    let _lock = cache::lock(&place.join("lock"))?;
    let image = place.join("initramfs");
    let series = series(kernel)?;
    archive::write_image(cache, kernel, payload, &image)?;
    println!("vm {name}: booting {}", kernel.version);
    let files = if payload.tests.is_some() || payload.system.is_some() {
        Some(Files::share(&place)?)
    } else {
        None
    };
    let console = Console::boot(kernel, &image, files.as_ref())?;
    let of_tests = payload.tests.as_ref().map(|tests| tests.patience(series));
    let of_system = payload.system.as_ref().map(|system| system.patience);
    let patience = of_tests.or(of_system).unwrap_or_default();
    let log = place.join("console.log");
    let (text, ending) = console.watch(name, DEADLINE + patience);
    fs::write(&log, &text).with_context(|| format!("write {}", log.display()))?;
    fs::remove_file(&image).with_context(|| format!("remove {}", image.display()))?;
    match ending {
        Ending::Result(result) if result == "pass" => Ok(text),
        ending => {
            let last = cmd::last_lines(&text, CONSOLE_LINES);
            bail!(
                "kernel {}: {ending}; whole console in {}, its last lines:\n{last}",
                kernel.version,
                log.display()
            )
        }
    }
}

enum Ending {
    Result(String),
    Panic(String),
    Deadline(Duration),
    /// QEMU ended by itself: a power-off or reset without a verdict, or an error of QEMU.
    Silent,
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Result(result) => write!(f, "the tests said `{result}`"),
            Self::Panic(line) => write!(f, "the kernel panicked (`{line}`)"),
            Self::Deadline(after) => write!(f, "no result after {} s", after.as_secs()),
            Self::Silent => f.write_str("the machine went off without a result"),
        }
    }
}

struct Console {
    qemu: Child,
    lines: Receiver<String>,
}

impl Console {
    fn boot(kernel: &Kernel, image: &Path, files: Option<&Files>) -> Result<Self> {
        // QEMU does not outlive this program, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
        // KVM is not there or does not work inside most build machines, and emulation is fast enough.
        // Five-level page tables (la57) are slow to emulate and hang some kernels at boot.
        command.args([
            "-accel",
            // Not a thread for each CPU: QEMU 7.2 then may run code that the kernel has just patched (an
            // Oops "int3" while it boots).
            "tcg,thread=single",
            "-cpu",
            "max,la57=off",
            "-smp",
            "2",
        ]);
        // With the host's files, what is written to them is in memory, too.
        let memory = if files.is_some() { "4096M" } else { "2048M" };
        command.args(["-m", memory]);
        command.args(files.map_or_else(Vec::new, |files| files.options(memory)));
        command.args([
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-no-reboot",
        ]);
        command
            .arg("-kernel")
            .arg(&kernel.vmlinuz)
            .arg("-initrd")
            .arg(image);
        command.args([
            "-append",
            "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off random.trust_cpu=on",
        ]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut qemu = command.spawn().context("run qemu-system-x86_64")?;
        let output = qemu.stdout.take().context("QEMU has no standard output")?;
        Ok(Self {
            qemu,
            lines: read_lines(output),
        })
    }

    /// Prints the console as it comes, until the verdict, a panic, the end or the deadline.
    fn watch(self, name: &str, patience: Duration) -> (String, Ending) {
        let mut deadline = Instant::now() + patience;
        let mut text = String::new();
        let mut result = None;
        let mut panic = None;
        let end = loop {
            let line = match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => line,
                Err(end) => break end,
            };
            println!("[{name}] {line}");
            text.push_str(&line);
            text.push('\n');
            if let Some((_, verdict)) = line.split_once(RESULT) {
                result.get_or_insert_with(|| verdict.trim().to_owned());
                deadline = Instant::now() + POWER_OFF;
            } else if line.contains("Kernel panic - not syncing") {
                // The trace follows, and then QEMU ends by itself.
                panic.get_or_insert(line);
                deadline = Instant::now() + POWER_OFF;
            }
        };
        // Leaving `self` stops QEMU if it still runs.
        let ending = match (panic, result, end) {
            (Some(line), _, _) => Ending::Panic(line),
            (None, Some(result), _) => Ending::Result(result),
            (None, None, RecvTimeoutError::Timeout) => Ending::Deadline(patience),
            (None, None, RecvTimeoutError::Disconnected) => Ending::Silent,
        };
        (text, ending)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if let Err(error) = self.qemu.kill().and_then(|()| self.qemu.wait()) {
            eprintln!("vm: cannot stop QEMU, process {}: {error}", self.qemu.id());
        }
    }
}

/// Reads in a thread of its own, so that a silent VM does not outlive its deadline.
fn read_lines(output: ChildStdout) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// Appends the bytes of `path` to `file`.
fn append(file: &mut File, path: &Path) -> Result<()> {
    let mut source = File::open(path).with_context(|| format!("open {}", path.display()))?;
    std::io::copy(&mut source, file).with_context(|| format!("append {}", path.display()))?;
    file.flush().context("flush the image")
}
