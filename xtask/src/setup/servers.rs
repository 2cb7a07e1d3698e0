//! Servers that this Debian release does not have, each in a Debian tree of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::apt::Mirrors;
use super::packages::NoServices;
use crate::cache::{self, Cache};
use crate::cmd::Cmd;

/// A Debian tree with a server in it, to be used by chroot.
pub(crate) struct Tree {
    /// Name of its directory in the cache.
    name: &'static str,
    suite: &'static str,
    packages: &'static [&'static str],
    /// Path inside the tree.
    server: &'static str,
    /// Whether the server's data directory stays in it: then it can be booted.
    boots: bool,
}

/// MySQL, with the `openssl` that its tools call.
pub(crate) const MYSQL: Tree = Tree {
    name: "mysql-tree",
    suite: "sid",
    packages: &["mysql-server", "mysql-client", "openssl"],
    server: "/usr/sbin/mysqld",
    boots: false,
};
/// The first long-term release of MariaDB that refuses plaintext with 3159, and has TLS without configuration.
pub(crate) const MARIADB_11_8: Tree = Tree {
    name: "mariadb-11.8-tree",
    suite: "trixie",
    packages: &["mariadb-server", "mariadb-client"],
    server: "/usr/sbin/mariadbd",
    boots: false,
};
/// The oldest MariaDB that knows `require_secure_transport`.
pub(crate) const MARIADB_10_5: Tree = Tree {
    name: "mariadb-10.5-tree",
    suite: "bullseye",
    packages: &["mariadb-server", "mariadb-client"],
    server: "/usr/sbin/mariadbd",
    boots: false,
};
/// A whole Debian of the release for which the packages are, with its MariaDB: musttls is installed there, and it boots.
pub(crate) const DEBIAN: Tree = Tree {
    name: "debian-12-tree",
    suite: "bookworm",
    packages: &["systemd-sysv", "kmod", "mariadb-server", "mariadb-client"],
    server: "/usr/sbin/mariadbd",
    boots: true,
};

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

impl Tree {
    pub(crate) fn path(&self, cache: &Cache) -> PathBuf {
        cache.root().join(self.name)
    }

    pub(crate) fn is_there(&self, cache: &Cache) -> bool {
        self.path(cache).join("version").exists()
    }

    pub(crate) fn install(&self, cache: &Cache) -> Result<()> {
        let tree = cache::begin(&self.path(cache))?;
        let mirror = Mirrors::of_host()?.debian;
        Cmd::new("setpriv")
            .args(SANDBOX)
            .args(["debootstrap", "--variant=minbase", self.suite])
            .arg(&tree)
            .arg(mirror)
            .quiet()
            .with_context(|| format!("make a tree of {}", self.suite))?;
        // Proxies and date checks hold in the tree as they do on the host.
        cache::write(&tree.join("etc/apt/apt.conf.d/99host"), &fetch_settings()?)?;
        {
            let _no_services = NoServices::in_tree(&tree)?;
            in_tree(&tree, &["apt-get", "update"])?;
            let install = ["apt-get", "install", "--yes", "--no-install-recommends"];
            in_tree(&tree, &[&install, self.packages].concat())?;
        }
        in_tree(&tree, &["apt-get", "clean"])?;
        cache::remove(&tree.join("var/lib/apt/lists"))?;
        if !self.boots {
            // Each test server makes a data directory of its own.
            cache::remove(&tree.join("var/lib/mysql"))?;
        }
        let version = Cmd::new("chroot")
            .arg(&tree)
            .args([self.server, "--version"])
            .output()?;
        println!("setup:   {}", version.trim());
        cache::write(&tree.join("version"), &version)?;
        cache::commit(&tree, &self.path(cache))
    }
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
