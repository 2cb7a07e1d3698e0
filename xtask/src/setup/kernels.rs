//! Debian's cloud kernels, one of each generation that the agent supports.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::apt::PrivateApt;
use crate::cache::{self, Cache};
use crate::cmd::Cmd;

struct Series {
    /// Leading part of the kernel's version.
    name: &'static str,
    suites: &'static [&'static str],
}

const SERIES: &[Series] = &[
    Series {
        name: "5.10",
        suites: &["bullseye-security"],
    },
    Series {
        name: "6.1",
        suites: &["bookworm-security"],
    },
    Series {
        name: "6.12",
        suites: &["trixie-security"],
    },
    Series {
        name: "7",
        suites: &["sid", "trixie-backports"],
    },
];

const FLAVOUR: &str = "-cloud-amd64";

/// Modules that the VM tests load or that the kernel loads for them, without their dependencies:
/// the rest of a kernel's modules is a hundred times as large.
const MODULES: &[&str] = &[
    "veth",
    "dummy",
    "bridge",
    "inet_diag",
    "tcp_diag",
    "unix_diag",
    "mptcp_diag",
    "tls",
    "nf_tables",
    "nft_ct",
    "nft_reject_inet",
    "nft_counter",
    "nft_objref",
    "nft_numgen",
    "nft_chain_nat",
    "nft_nat",
    "nft_redir",
    "nft_masq",
    "nf_conntrack",
    "sch_netem",
    "vsock",
    "smc",
    // The host's files in the VM (`virtiofs`), and what is written over them in memory.
    "virtio_pci",
    "virtiofs",
    "overlay",
];

/// In the directory of a kernel: the modules that were picked.
const PICKED: &str = "picked";

/// A kernel of the cache.
pub(crate) struct Kernel {
    /// `major.minor`.
    pub(crate) name: String,
    pub(crate) vmlinuz: PathBuf,
    /// A tree with `lib/modules/<version>` in it.
    pub(crate) modules: PathBuf,
    /// As `uname -r` tells it.
    pub(crate) version: String,
}

pub(crate) fn is_there(cache: &Cache) -> Result<bool> {
    let kernels = all(cache)?;
    let has = |series: &Series| {
        let mut kernels = kernels.iter();
        kernels.any(|kernel| series.holds(&kernel.name) && is_complete(cache, kernel))
    };
    Ok(SERIES.iter().all(has))
}

/// Whether it has all [`MODULES`]: another version of this program may have wanted fewer.
fn is_complete(cache: &Cache, kernel: &Kernel) -> bool {
    let picked = cache.kernels().join(&kernel.name).join(PICKED);
    let picked = fs::read_to_string(picked).unwrap_or_default();
    MODULES
        .iter()
        .all(|name| picked.split_whitespace().any(|word| word == *name))
}

/// The kernels of the cache, the oldest first.
pub(crate) fn all(cache: &Cache) -> Result<Vec<Kernel>> {
    let directory = cache.kernels();
    let listing = || format!("list {}", directory.display());
    let mut kernels = Vec::new();
    if !directory.exists() {
        return Ok(kernels);
    }
    for entry in fs::read_dir(&directory).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".partial") {
            let path = entry.path();
            let version = path.join("version");
            let version = fs::read_to_string(&version)
                .with_context(|| format!("read {}", version.display()))?;
            kernels.push(Kernel {
                name,
                vmlinuz: path.join("vmlinuz"),
                modules: path.join("modules"),
                version: version.trim().to_owned(),
            });
        }
    }
    kernels.sort_by_key(|kernel| numbers(&kernel.name));
    Ok(kernels)
}

pub(crate) fn install(cache: &Cache) -> Result<()> {
    let have = all(cache)?;
    for series in SERIES.iter().filter(|series| {
        !have
            .iter()
            .any(|kernel| series.holds(&kernel.name) && is_complete(cache, kernel))
    }) {
        let suites = series.suites.join(" and ");
        println!("setup:   kernel {} from {suites}", series.name);
        fetch(cache, series).with_context(|| format!("kernel {} from {suites}", series.name))?;
        let stale = |kernel: &&Kernel| series.holds(&kernel.name) && !is_complete(cache, kernel);
        for kernel in have.iter().filter(stale) {
            cache::remove(&cache.kernels().join(&kernel.name))?;
        }
    }
    Ok(())
}

fn fetch(cache: &Cache, series: &Series) -> Result<()> {
    let apt = PrivateApt::with_suites(cache, series.suites)?;
    let names = apt.names("linux-")?;
    let version = newest(&names, series)
        .with_context(|| format!("no package named linux-image-{}*{FLAVOUR}", series.name))?;
    let name = numbers(&version)
        .iter()
        .take(2)
        .map(u64::to_string)
        .collect::<Vec<_>>()
        .join(".");
    let partial = cache::begin(&cache.kernels().join(&name))?;
    let package = partial.join("package");
    cache::create(&package)?;
    for part in packages(&names, &version) {
        apt.unpack(&part, &package)?;
    }
    let vmlinuz = [
        format!("boot/vmlinuz-{version}"),
        format!("usr/lib/modules/{version}/vmlinuz"),
    ];
    let vmlinuz = vmlinuz
        .iter()
        .map(|path| package.join(path))
        .find(|path| path.exists());
    let vmlinuz = vmlinuz.with_context(|| format!("the packages of {version} hold no vmlinuz"))?;
    cache::copy(&vmlinuz, &partial.join("vmlinuz"))?;
    if let Some(config) = find_config(&package, &version) {
        cache::copy(&config, &partial.join("config"))?;
    }
    pick_modules(&package, &version, &partial.join("modules"))?;
    cache::remove(&package)?;
    cache::write(&partial.join("version"), &version)?;
    cache::write(&partial.join(PICKED), &MODULES.join("\n"))?;
    println!("setup:   kernel {name} is {version}");
    cache::commit(&partial, &cache.kernels().join(&name))
}

/// The series that a kernel of the cache is of.
pub(crate) fn series(kernel: &Kernel) -> Result<&'static str> {
    let series = SERIES.iter().find(|series| series.holds(&kernel.name));
    series
        .map(|series| series.name)
        .with_context(|| format!("kernel {} is of no series that is wanted", kernel.name))
}

impl Series {
    fn holds(&self, version: &str) -> bool {
        version
            .strip_prefix(self.name)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }
}

fn newest(names: &[String], series: &Series) -> Option<String> {
    names
        .iter()
        .filter_map(|name| {
            name.strip_prefix("linux-image-")
                .or_else(|| name.strip_prefix("linux-binary-"))
        })
        .map(|version| version.strip_suffix("-unsigned").unwrap_or(version))
        // A digit after the series tells a kernel from the package that points to the newest one.
        .filter(|version| {
            version.ends_with(FLAVOUR) && series.holds(version) && numbers(version).len() > 2
        })
        .max_by_key(|version| numbers(version))
        .map(str::to_owned)
}

/// The packages that one kernel comes in: a single image, or since 7.0 a binary, its modules and its configuration.
fn packages(names: &[String], version: &str) -> Vec<String> {
    let exists = |name: &String| names.contains(name);
    let split = ["binary", "modules", "base"].map(|part| format!("linux-{part}-{version}"));
    if exists(&split[0]) {
        return split.into_iter().filter(exists).collect();
    }
    let whole = [
        format!("linux-image-{version}"),
        format!("linux-image-{version}-unsigned"),
    ];
    whole.into_iter().find(exists).into_iter().collect()
}

fn find_config(package: &Path, version: &str) -> Option<PathBuf> {
    [
        format!("boot/config-{version}"),
        format!("usr/lib/modules/{version}/config"),
    ]
    .iter()
    .map(|path| package.join(path))
    .find(|path| path.exists())
}

/// Every number in `text`, in order: Debian's kernel versions sort by these.
fn numbers(text: &str) -> Vec<u64> {
    let version = text.strip_suffix(FLAVOUR).unwrap_or(text);
    version
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|digits| digits.parse().ok())
        .collect()
}

fn pick_modules(package: &Path, version: &str, target: &Path) -> Result<()> {
    // One place, whether or not the package already uses the merged /usr.
    let merged = package.join("usr/lib/modules").join(version);
    let base = if merged.join("kernel").exists() {
        package.join("usr")
    } else {
        package.to_owned()
    };
    let from = base.join("lib/modules").join(version);
    ensure!(
        from.join("kernel").exists(),
        "the packages of {version} hold no modules"
    );
    Cmd::new("depmod")
        .arg("--basedir")
        .arg(&base)
        .arg(version)
        .quiet()?;
    let index = from.join("modules.dep");
    let index = fs::read_to_string(&index).with_context(|| format!("read {}", index.display()))?;
    let to = target.join("lib/modules").join(version);
    for path in with_dependencies(&index, MODULES) {
        let copy = to.join(path);
        cache::copy(&from.join(path), &copy)?;
        // modprobe of busybox reads plain modules on every kernel.
        match copy.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => Cmd::new("xz")
                .arg("--decompress")
                .arg(&copy)
                .output()
                .map(drop)?,
            Some("zst") => Cmd::new("zstd")
                .args(["--decompress", "--rm", "--quiet"])
                .arg(&copy)
                .output()
                .map(drop)?,
            _ => {}
        }
    }
    for list in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        if from.join(list).exists() {
            cache::copy(&from.join(list), &to.join(list))?;
        }
    }
    Cmd::new("depmod")
        .arg("--basedir")
        .arg(target)
        .arg(version)
        .quiet()
}

/// The files of `wanted` and of what they depend on. A name that the kernel has built in, or not
/// at all, is in no line of `modules.dep` and gives none.
fn with_dependencies<'a>(index: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let mut files = Vec::new();
    for line in index.lines() {
        let Some((module, dependencies)) = line.split_once(':') else {
            continue;
        };
        let name = module
            .rsplit('/')
            .next()
            .and_then(|file| file.split('.').next())
            .unwrap_or_default();
        if wanted.contains(&name.replace('-', "_").as_str()) {
            files.push(module);
            files.extend(dependencies.split_whitespace());
        }
    }
    files.sort_unstable();
    files.dedup();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn newest_of_a_series_is_by_number_not_by_letter() {
        let names = names(&[
            "linux-image-6.1-cloud-amd64",
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-56-cloud-amd64-unsigned",
            "linux-image-6.1.0-57-cloud-amd64-dbg",
            "linux-image-6.12.117+deb12-cloud-amd64",
        ]);
        assert_eq!(newest(&names, &SERIES[1]).unwrap(), "6.1.0-56-cloud-amd64");
        assert_eq!(newest(&names, &SERIES[0]), None);
    }

    #[test]
    fn split_kernel_comes_in_its_parts_and_old_ones_whole() {
        let names = names(&[
            "linux-image-7.3.4+deb13-cloud-amd64",
            "linux-binary-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
            "linux-image-5.10.0-46-cloud-amd64-unsigned",
        ]);
        assert_eq!(
            packages(&names, "7.3.4+deb13-cloud-amd64"),
            [
                "linux-binary-7.3.4+deb13-cloud-amd64",
                "linux-modules-7.3.4+deb13-cloud-amd64"
            ]
        );
        assert_eq!(
            packages(&names, "5.10.0-46-cloud-amd64"),
            ["linux-image-5.10.0-46-cloud-amd64-unsigned"]
        );
    }

    #[test]
    fn series_holds_its_minor_versions_only() {
        assert!(SERIES[1].holds("6.1.0-56") && SERIES[1].holds("6.1") && SERIES[3].holds("7.3"));
        assert!(!SERIES[1].holds("6.12.117"));
    }

    #[test]
    fn modules_come_with_their_dependencies() {
        let index = "kernel/net/ipv4/tcp_diag.ko: kernel/net/ipv4/inet_diag.ko\n\
                     kernel/net/ipv4/inet_diag.ko:\n\
                     kernel/fs/xfs/xfs.ko:\n";
        assert_eq!(
            with_dependencies(index, &["tcp_diag"]),
            [
                "kernel/net/ipv4/inet_diag.ko",
                "kernel/net/ipv4/tcp_diag.ko"
            ]
        );
    }
}
