//! MySQL, in a Debian sid tree.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::apt::Mirrors;
use super::packages::NoServices;
use crate::cache::{self, Cache};
use crate::cmd::Cmd;

/// Path inside the tree.
const SERVER: &str = "/usr/sbin/mysqld";
const PACKAGES: &[&str] = &["mysql-server", "mysql-client", "openssl"];

/// A sandbox whose mounts and processes end with this program, also when it is killed: a tree with
/// a live `/proc` in it could not be removed, and a package script could still write to it.
const SANDBOX: &[&str] = &[
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--propagation",
    "private",
    "--pid",
    "--fork",
    "--kill-child",
    "--",
];

pub(crate) fn is_there(cache: &Cache) -> bool {
    cache.mysql_tree().join("version").exists()
}

pub(crate) fn install(cache: &Cache) -> Result<()> {
    let tree = cache::begin(&cache.mysql_tree())?;
    let mirror = Mirrors::of_host()?.debian;
    Cmd::new("setpriv")
        .args(SANDBOX)
        .args(["debootstrap", "--variant=minbase", "sid"])
        .arg(&tree)
        .arg(mirror)
        .quiet()
        .context("make a sid tree")?;
    // Proxies and date checks hold in the tree as they do on the host.
    cache::write(&tree.join("etc/apt/apt.conf.d/99host"), &fetch_settings()?)?;
    {
        let _no_services = NoServices::in_tree(&tree)?;
        in_tree(&tree, &["apt-get", "update"])?;
        let install = ["apt-get", "install", "--yes", "--no-install-recommends"];
        in_tree(&tree, &[&install, PACKAGES].concat())?;
    }
    in_tree(&tree, &["apt-get", "clean"])?;
    cache::remove(&tree.join("var/lib/apt/lists"))?;
    // Each test server makes a data directory of its own.
    cache::remove(&tree.join("var/lib/mysql"))?;
    let version = Cmd::new("chroot")
        .arg(&tree)
        .args([SERVER, "--version"])
        .output()?;
    println!("setup:   {}", version.trim());
    cache::write(&tree.join("version"), &version)?;
    cache::commit(&tree, &cache.mysql_tree())
}

fn in_tree(tree: &Path, command: &[&str]) -> Result<()> {
    Cmd::new("setpriv")
        .args(SANDBOX)
        .args([
            "sh",
            "-ec",
            "mount -t proc proc \"$0/proc\"; exec chroot \"$0\" \"$@\"",
        ])
        .arg(tree)
        .args(command)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C.UTF-8")
        .quiet()
}

fn fetch_settings() -> Result<String> {
    let all = Cmd::new("apt-config").arg("dump").output()?;
    let kept = [
        "Acquire::http",
        "Acquire::https",
        "Acquire::Check-",
        "Acquire::Retries",
    ];
    Ok(all
        .lines()
        .filter(|line| kept.iter().any(|start| line.starts_with(start)))
        .flat_map(|line| [line, "\n"])
        .collect())
}
