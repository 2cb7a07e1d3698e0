//! The tests of the host in a VM: its whole file system, through virtiofs, with what is written to it in memory.
//!
//! `xtask/src/vm/host.rs` writes what is to run to `/tests`: one line for each test program, its name, its path
//! and the names of its tests.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use musttls_tests::place::output;

const LIST: &str = "/tests";
/// The root directory of the tests.
const ROOT: &str = "/new";

/// Makes the root file system of the tests, in a namespace without a network, and only then mounts.
const ENTER: &str = "\
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
modprobe virtio_pci; modprobe virtiofs; modprobe overlay
mkdir -p /host /changes /new
mount -t virtiofs -o ro host /host
mount -t tmpfs tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /new
for place in proc sys dev; do mount --rbind /$place /new/$place; done
for place in tmp run dev/shm \"$1\"; do
  mkdir -p \"/new/$place\"
  mount -t tmpfs tmpfs \"/new/$place\"
done
chmod 1777 /new/tmp /new/dev/shm
";

/// Runs them all, if there are any.
pub(crate) fn run() -> Result<()> {
    if !Path::new(LIST).exists() {
        return Ok(());
    }
    let list = fs::read_to_string(LIST).context("read the list of tests")?;
    let mut lines = list.lines();
    let environment: Vec<_> = lines
        .next()
        .context("no environment")?
        .split_whitespace()
        .collect();
    // Servers of other runs come and go there on the host.
    let cache = environment
        .iter()
        .find_map(|pair| pair.strip_prefix("MUSTTLS_CACHE=/"))
        .context("no MUSTTLS_CACHE")?;
    let of_servers = format!("{cache}/mysql-tree/srv");
    output(Command::new("/bin/sh").args(["-ec", ENTER, "sh", &of_servers]))?;
    let mut failed = Vec::new();
    for line in lines {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default();
        let program = words.next().context("a line without a program")?;
        if let Err(error) = one(&environment, program, &words.collect::<Vec<_>>()) {
            println!("check: {name}: FAIL {error:#}");
            failed.push(name.to_owned());
        }
    }
    ensure!(failed.is_empty(), "tests of {} failed", failed.join(", "));
    Ok(())
}

/// Runs these tests of a program; every one must say that it passed.
fn one(environment: &[&str], program: &str, tests: &[&str]) -> Result<()> {
    // What is ignored elsewhere needs something that only kernels of VMs have.
    let mut child = Command::new("/usr/bin/busybox")
        .args(["chroot", ROOT, "/usr/bin/env", "--ignore-environment"])
        .args(["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"])
        .args(environment)
        .args([program, "--test-threads=1", "--include-ignored", "--exact"])
        .args(tests)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("run {program}"))?;
    let lines = BufReader::new(child.stdout.take().context("no standard output")?);
    let mut passed = 0;
    // One test after the other, each told when it ends.
    let mut last = Instant::now();
    for line in lines.lines() {
        let line = line.context("read what a test says")?;
        if line.starts_with("test ") && line.contains(" ... ") {
            println!("{line} {:.1} s", last.elapsed().as_secs_f32());
            last = Instant::now();
        } else {
            println!("{line}");
        }
        passed += usize::from(line.starts_with("test ") && line.ends_with(" ... ok"));
    }
    let status = child.wait().context("wait for the tests")?;
    if !status.success() || passed != tests.len() {
        bail!("{passed} of {} passed, {status}", tests.len());
    }
    Ok(())
}
