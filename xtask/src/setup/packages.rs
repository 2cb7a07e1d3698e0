//! Packages of the host's own Debian release.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cmd::Cmd;

/// A package and what it is for.
pub(crate) type Package = (&'static str, &'static str);

const PACKAGES: &[Package] = &[
    ("mariadb-server", "a server under test"),
    ("mariadb-client", "a client under test"),
    ("haproxy", "a health check under test"),
    ("sysbench", "load of the benchmarks"),
    (
        "nftables",
        "the peer that the benchmarks compare with; loses and redirects packets in tests",
    ),
    ("iproute2", "network namespaces and veth pairs of the tests"),
    ("logrotate", "rotates and compresses records in tests"),
    ("openssl", "certificates of the test servers"),
    ("debootstrap", "makes the MySQL tree"),
    ("qemu-system-x86", "boots the other kernels"),
    ("busybox-static", "shell and small tools inside the VMs"),
    ("cpio", "packs the root file system of the VMs"),
    ("kmod", "indexes the kernel modules for the VMs"),
    ("xz-utils", "unpacks the kernel modules for the VMs"),
    ("zstd", "unpacks the kernel modules for the VMs"),
    ("python3-venv", "home of the Python clients"),
];

/// Asked of PATH, not of dpkg: Node comes from many places, and not all are Debian's.
const NODE_PACKAGES: &[Package] = &[
    ("nodejs", "runs the Node client"),
    ("npm", "installs the Node client"),
];

pub(crate) fn missing() -> Result<Vec<Package>> {
    let installed = installed()?;
    let is_there = |name: &str| installed.lines().any(|line| line == name);
    let answers = |program| Cmd::new(program).arg("--version").answer().is_some();
    let node: &[Package] = if answers("node") && answers("npm") {
        &[]
    } else {
        NODE_PACKAGES
    };
    let absent = PACKAGES
        .iter()
        .chain(node)
        .filter(|(name, _)| !is_there(name));
    Ok(absent.copied().collect())
}

fn installed() -> Result<String> {
    let status = Path::new("/var/lib/dpkg/status");
    anyhow::ensure!(
        status.exists(),
        "this is no Debian: {} is missing",
        status.display()
    );
    let all = Cmd::new("dpkg-query")
        .args(["--show", "--showformat", "${db:Status-Status} ${Package}\n"])
        .output()?;
    Ok(all
        .lines()
        .filter_map(|line| line.strip_prefix("installed "))
        .collect::<Vec<_>>()
        .join("\n"))
}

pub(crate) fn install() -> Result<()> {
    let missing = missing()?;
    for (name, why) in &missing {
        println!("setup:   {name}: {why}");
    }
    let _no_services = NoServices::in_tree(Path::new("/"))?;
    Cmd::new("apt-get").arg("update").quiet()?;
    Cmd::new("apt-get")
        .args(["install", "--yes", "--no-install-recommends"])
        // Another apt, such as the host's nightly upgrade, may be at work.
        .args(["--option", "DPkg::Lock::Timeout=300"])
        .args(missing.iter().map(|(name, _)| name))
        .env("DEBIAN_FRONTEND", "noninteractive")
        .quiet()
}

/// While it lives, package scripts start no service: a mysqld of the host would take port 3306.
///
/// Source: Debian Policy 9.3.3.1; `invoke-rc.d(8)`, "policy-rc.d", exit code 101.
pub(crate) struct NoServices {
    policy: PathBuf,
    set_aside: Option<PathBuf>,
}

impl NoServices {
    pub(crate) fn in_tree(tree: &Path) -> Result<Self> {
        let policy = tree.join("usr/sbin/policy-rc.d");
        let set_aside = policy.with_added_extension("musttls-saved");
        // A copy set aside by a run that was killed is the host's own: ours is what stands in place.
        if policy.exists() && !set_aside.exists() {
            fs::rename(&policy, &set_aside)
                .with_context(|| format!("set {} aside", policy.display()))?;
        }
        let writing = || format!("write {}", policy.display());
        fs::write(&policy, "#!/bin/sh\nexit 101\n").with_context(writing)?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755)).with_context(writing)?;
        let set_aside = set_aside.exists().then_some(set_aside);
        Ok(Self { policy, set_aside })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        let restored = match &self.set_aside {
            Some(saved) => fs::rename(saved, &self.policy),
            None => fs::remove_file(&self.policy),
        };
        if let Err(error) = restored {
            eprintln!("setup: cannot put {} back: {error}", self.policy.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_of_the_host_comes_back() {
        let tree = std::env::temp_dir().join(format!("xtask-policy-{}", std::process::id()));
        let policy = tree.join("usr/sbin/policy-rc.d");
        crate::cache::write(&policy, "own").unwrap();
        let guard = NoServices::in_tree(&tree).unwrap();
        assert!(fs::read_to_string(&policy).unwrap().contains("exit 101"));
        drop(guard);
        assert_eq!(fs::read_to_string(&policy).unwrap(), "own");
        fs::remove_file(&policy).unwrap();
        drop(NoServices::in_tree(&tree).unwrap());
        assert!(!policy.exists());
        fs::remove_dir_all(&tree).unwrap();
    }
}
