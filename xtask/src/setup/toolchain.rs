//! What building the kernel programs needs beside the pinned rustc.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::apt::PrivateApt;
use crate::cache::{self, Cache};
use crate::cmd::Cmd;

/// The rustc that everything is built with (ADR 0004). There is no `rust-toolchain.toml`, which would name it as
/// rustup does: where it has another name, or rustup is missing, that file would start a download or fail.
const RUSTC: &str = "1.95.0";
/// How to get [`RUSTC`].
pub(crate) const REMEDY: &str = "rustup toolchain install 1.95.0 --profile minimal --component clippy,rustfmt, \
     then cargo +1.95.0 xtask ...; without rustup, put the rustc and cargo of that release first in PATH";
/// The last series whose default feature links with the LLVM 22 inside rustc 1.95.
const BPF_LINKER: &str = "0.10.3";
const CARGO_DENY: &str = "0.20.2";
const CARGO_DEB: &str = "3.8.0";
const CARGO_GENERATE_RPM: &str = "0.21.1";

/// Debian suites that may carry the sources of exactly the pinned rustc.
const RUST_SUITES: &[&str] = &["trixie-backports", "sid"];

/// Rustup waits for minutes where its server cannot be reached.
const RUSTUP_SECONDS: &str = "120";

/// Fails for another rustc than the pinned one: its LLVM may be too new for the linker, which says so only at
/// the end of a build, and not in these words.
pub(crate) fn is_pinned() -> Result<()> {
    is_release(&release()?)
}

fn is_release(release: &str) -> Result<()> {
    ensure!(
        release == RUSTC,
        "this is rustc {release}, and musttls is built with rustc {RUSTC}"
    );
    Ok(())
}

pub(crate) fn has_rust_src(cache: &Cache) -> Result<bool> {
    let sources = sources_in_sysroot()?;
    // A link into the cache can be left over from the rustc before; the component cannot.
    let right_version = match fs::read_link(&sources) {
        Ok(target) => target == debian_sources(cache, &release()?),
        Err(_) => true,
    };
    Ok(right_version
        && sources.join("library/core/Cargo.toml").exists()
        && sources.join("library/Cargo.lock").exists())
}

pub(crate) fn install_rust_src(cache: &Cache) -> Result<()> {
    let rustup =
        Cmd::new("timeout").args([RUSTUP_SECONDS, "rustup", "component", "add", "rust-src"]);
    match rustup.dir(cache::repository()?).quiet() {
        Ok(()) => Ok(()),
        Err(error) => {
            println!("setup:   rustup cannot add it, so Debian's package is taken: {error:#}");
            link_debian_sources(cache)
        }
    }
}

fn link_debian_sources(cache: &Cache) -> Result<()> {
    let release = release()?;
    let target = debian_sources(cache, &release);
    fetch_debian_sources(cache, &release, &target)?;
    let sources = sources_in_sysroot()?;
    cache::remove(&sources)?;
    let parent = sources
        .parent()
        .context("the sysroot's source directory has no parent")?;
    cache::create(parent)?;
    symlink(&target, &sources)
        .with_context(|| format!("link {} to {}", sources.display(), target.display()))
}

fn fetch_debian_sources(cache: &Cache, release: &str, target: &Path) -> Result<()> {
    let apt = PrivateApt::with_suites(cache, RUST_SUITES)?;
    let version = apt
        .versions("rust-src")?
        .into_iter()
        .find(|version| {
            version.starts_with(&format!("{release}+"))
                || version.starts_with(&format!("{release}-"))
        })
        .with_context(|| format!("no rust-src {release} in Debian {}", RUST_SUITES.join(", ")))?;
    let partial = cache::begin(target)?;
    let unpacked = partial.join("package");
    cache::create(&unpacked)?;
    apt.unpack(&format!("rust-src={version}"), &unpacked)?;
    // The compiler's sources are ten times as large and nobody builds them here.
    let library = unpacked.join(format!("usr/src/rustc-{release}/library"));
    fs::rename(&library, partial.join("library"))
        .with_context(|| format!("take {}", library.display()))?;
    cache::remove(&unpacked)?;
    cache::commit(&partial, target)
}

fn debian_sources(cache: &Cache, release: &str) -> PathBuf {
    cache.rust_src().join(format!("rustc-{release}"))
}

/// The sysroot of the toolchain that the work tree pins, whatever directory xtask was started in.
fn sources_in_sysroot() -> Result<PathBuf> {
    let sysroot = Cmd::new("rustc")
        .args(["--print", "sysroot"])
        .dir(cache::repository()?)
        .output()?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust"))
}

fn release() -> Result<String> {
    let version = Cmd::new("rustc")
        .args(["--version", "--verbose"])
        .dir(cache::repository()?)
        .output()?;
    let release = version
        .lines()
        .find_map(|line| line.strip_prefix("release: "));
    Ok(release
        .context("`rustc --version --verbose` names no release")?
        .to_owned())
}

pub(crate) fn has_bpf_linker() -> bool {
    is_version("bpf-linker", BPF_LINKER)
}

pub(crate) fn install_bpf_linker() -> Result<()> {
    cargo_install("bpf-linker", BPF_LINKER)
}

pub(crate) fn has_cargo_deny() -> bool {
    is_version("cargo-deny", CARGO_DENY)
}

pub(crate) fn install_cargo_deny() -> Result<()> {
    cargo_install("cargo-deny", CARGO_DENY)
}

pub(crate) fn has_packagers() -> bool {
    is_version("cargo-deb", CARGO_DEB) && is_version("cargo-generate-rpm", CARGO_GENERATE_RPM)
}

pub(crate) fn install_packagers() -> Result<()> {
    cargo_install("cargo-deb", CARGO_DEB)?;
    cargo_install("cargo-generate-rpm", CARGO_GENERATE_RPM)
}

fn is_version(program: &str, version: &str) -> bool {
    let answer = Cmd::new(program).arg("--version").answer();
    answer.is_some_and(|text| text.split_whitespace().any(|word| word == version))
}

fn cargo_install(name: &str, version: &str) -> Result<()> {
    Cmd::cargo()?
        .args(["install", name, "--version", version, "--locked", "--force"])
        .quiet()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_pinned_rustc_is_taken() {
        is_release(RUSTC).unwrap();
        for other in ["1.94.1", "1.95.1", "1.96.0", "1.95.0-nightly"] {
            let error = is_release(other).unwrap_err().to_string();
            assert!(error.contains(other) && error.contains(RUSTC), "{error}");
        }
    }

    #[test]
    fn the_remedy_names_the_pinned_rustc() {
        assert!(REMEDY.contains(RUSTC));
        let manifest = fs::read_to_string(cache::repository().unwrap().join("Cargo.toml")).unwrap();
        let (series, _) = RUSTC.rsplit_once('.').unwrap();
        assert!(manifest.contains(&format!("rust-version = \"{series}\"")));
    }
}
