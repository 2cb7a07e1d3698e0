//! The BPF file system, which systemd mounts, and which a machine without it may lack.

use std::fs;

use anyhow::{Context as _, Result};

use crate::cmd::Cmd;

const AT: &str = "/sys/fs/bpf";

pub(crate) fn is_mounted() -> Result<bool> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let is_it = |line: &str| line.split(' ').skip(1).take(2).eq([AT, "bpf"]);
    Ok(mounts.lines().any(is_it))
}

pub(crate) fn mount() -> Result<()> {
    Cmd::new("mount")
        .args(["-t", "bpf", "-o", "nosuid,nodev,noexec,mode=700", "bpf", AT])
        .quiet()
}
