//! Installs what is missing, and only that, each with one line that says why.

mod apt;
mod bpffs;
mod clients;
pub(crate) mod kernels;

mod packages;
mod servers;
mod toolchain;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, anyhow};

use crate::cache::{self, Cache};
use crate::vm;

/// Part of what `setup` installs: some builds for minutes, and only one command needs it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    Everything,
    EverythingAndDeny,
    /// For packages.
    EverythingAndPackagers,
}

/// A step of `setup` that failed. The cause is the error below it.
#[derive(Debug)]
pub(crate) struct Failed {
    step: &'static str,
    pub(crate) remedy: &'static str,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "setup step `{}`", self.step)
    }
}

struct Step {
    name: &'static str,
    why: &'static str,
    is_there: fn(&Cache) -> Result<bool>,
    install: fn(&Cache) -> Result<()>,
    remedy: &'static str,
}

const STEPS: &[Step] = &[
    Step {
        name: "Debian packages",
        why: "servers under test, tools of the tests, QEMU",
        is_there: |_| Ok(packages::missing()?.is_empty()),
        install: |_| packages::install(),
        remedy: "run `apt-get update` and the `apt-get install` above by hand and read what apt says",
    },
    Step {
        name: "BPF file system",
        why: "the gate that outlives its agent is pinned there; an agent that cannot see the mounts of process 1 does not mount it",
        is_there: |_| bpffs::is_mounted(),
        install: |_| bpffs::mount(),
        remedy: "have /sys mounted and writable; in a container, mount it on the host and give it to the container",
    },
    Step {
        name: "rust-src",
        why: "the BPF target has no prebuilt core library, so cargo builds it from source",
        is_there: |cache| toolchain::has_rust_src(cache),
        install: toolchain::install_rust_src,
        remedy: "put the `library` directory of exactly this rustc under `$(rustc --print sysroot)/lib/rustlib/src/rust`",
    },
    Step {
        name: "bpf-linker",
        why: "links the kernel programs, with the LLVM of the pinned rustc",
        is_there: |_| Ok(toolchain::has_bpf_linker()),
        install: |_| toolchain::install_bpf_linker(),
        remedy: "run the `cargo install` above by hand, and have cargo's bin directory in PATH",
    },
    Step {
        name: "MySQL tree",
        why: "Debian has MySQL in sid only, so it lives in a tree of its own and runs by chroot",
        is_there: |cache| Ok(servers::MYSQL.is_there(cache)),
        install: |cache| servers::MYSQL.install(cache),
        remedy: "look whether the Debian mirror of this host carries sid; the next run starts this step afresh",
    },
    Step {
        name: "MariaDB 11.8 tree",
        why: "it refuses plaintext in another place than the 10.11 of this release, and has TLS without configuration",
        is_there: |cache| Ok(servers::MARIADB_11_8.is_there(cache)),
        install: |cache| servers::MARIADB_11_8.install(cache),
        remedy: "look whether the Debian mirror of this host carries trixie; the next run starts this step afresh",
    },
    Step {
        name: "MariaDB 10.5 tree",
        why: "the oldest that knows require_secure_transport",
        is_there: |cache| Ok(servers::MARIADB_10_5.is_there(cache)),
        install: |cache| servers::MARIADB_10_5.install(cache),
        remedy: "look whether the Debian mirror of this host carries bullseye; the next run starts this step afresh",
    },
    Step {
        name: "kernels",
        why: "the agent must work on each kernel generation, not on this host's only",
        is_there: kernels::is_there,
        install: kernels::install,
        remedy: "look whether the Debian mirrors of this host carry the suite above, and have a `-security` source",
    },
    Step {
        name: "Python clients",
        why: "each driver reads the refusal in its own way",
        is_there: |cache| Ok(clients::has_python(cache)),
        install: clients::install_python,
        remedy: "look whether pip reaches its registry: `pip download PyMySQL`",
    },
    Step {
        name: "Node client",
        why: "each driver reads the refusal in its own way",
        is_there: |cache| Ok(clients::has_node(cache)),
        install: clients::install_node,
        remedy: "look whether npm reaches its registry: `npm view mysql2`",
    },
    Step {
        name: "VM userland",
        why: "MariaDB with its files and a small data directory, the root file system of the test VMs",
        is_there: |cache| Ok(vm::userland::is_there(cache)),
        install: vm::userland::install,
        remedy: "remove the directory `vm` of the cache and run setup again",
    },
];

const DENY: Step = Step {
    name: "cargo-deny",
    why: "checks licences, advisories and duplicates among the dependencies",
    is_there: |_| Ok(toolchain::has_cargo_deny()),
    install: |_| toolchain::install_cargo_deny(),
    remedy: "run the `cargo install` above by hand, and have cargo's bin directory in PATH",
};

const PACKAGERS: Step = Step {
    name: "cargo-deb and cargo-generate-rpm",
    why: "make the packages",
    is_there: |_| Ok(toolchain::has_packagers()),
    install: |_| toolchain::install_packagers(),
    remedy: "run the `cargo install` above by hand, and have cargo's bin directory in PATH",
};

const DEBIAN: Step = Step {
    name: "Debian 12 tree",
    why: "a system with systemd and MariaDB, in which the package is installed and which boots in a VM",
    is_there: |cache| Ok(servers::DEBIAN.is_there(cache)),
    install: |cache| servers::DEBIAN.install(cache),
    remedy: "look whether the Debian mirror of this host carries bookworm; the next run starts this step afresh",
};

/// Where the tree is that [`DEBIAN`] makes.
pub(crate) fn debian_tree(cache: &Cache) -> std::path::PathBuf {
    servers::DEBIAN.path(cache)
}

pub(crate) fn run(cache: &Cache, extent: Extent) -> Result<()> {
    // Before all else, and not installed: which toolchain a person has is theirs to say.
    toolchain::is_pinned().context(Failed {
        step: "rustc",
        remedy: toolchain::REMEDY,
    })?;
    let more: &[Step] = match extent {
        Extent::Everything => &[],
        Extent::EverythingAndDeny => &[DENY],
        Extent::EverythingAndPackagers => &[PACKAGERS, DEBIAN],
    };
    let steps: Vec<_> = STEPS.iter().chain(more).collect();
    if all_there(cache, &steps)? {
        println!("setup: everything is there");
        return Ok(());
    }
    require_root()?;
    // Two runs at a time would remove each other's unfinished work.
    let _lock = cache::lock(&cache.root().join("lock"))?;
    for step in steps {
        // Asked one by one: what a step needs may come with the step before it, and another run
        // may have installed it while this one waited for the lock.
        if (step.is_there)(cache).with_context(|| failed(step))? {
            continue;
        }
        println!("setup: installing {}: {}", step.name, step.why);
        (step.install)(cache).with_context(|| failed(step))?;
        if !(step.is_there)(cache).with_context(|| failed(step))? {
            return Err(anyhow!("it was installed and still is not found").context(failed(step)));
        }
    }
    println!("setup: done, in {}", cache.root().display());
    Ok(())
}

fn all_there(cache: &Cache, steps: &[&Step]) -> Result<bool> {
    for step in steps {
        if !(step.is_there)(cache).with_context(|| failed(step))? {
            return Ok(false);
        }
    }
    Ok(true)
}

const fn failed(step: &Step) -> Failed {
    Failed {
        step: step.name,
        remedy: step.remedy,
    }
}

/// The user that runs this, by number.
pub(crate) fn user() -> Result<u32> {
    Ok(fs::metadata("/proc/self").context("read /proc/self")?.uid())
}

fn require_root() -> Result<()> {
    let uid = user()?;
    if uid != 0 {
        let remedy =
            "run it as root: it installs packages, makes a chroot and loads kernel programs";
        return Err(anyhow!("this is user {uid}").context(Failed {
            step: "become root",
            remedy,
        }));
    }
    Ok(())
}
