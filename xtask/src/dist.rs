//! The packages: a deb and an rpm from the release build, the same bytes each time; and their test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;

use crate::cache::{self, Cache};
use crate::cmd::Cmd;
use crate::run::{agent_binary, build_agent};
use crate::setup::{self, Extent};
use crate::vm::{self, Payload, System};

#[derive(Parser)]
pub(crate) struct Args {
    /// Build all a second time, in another target directory, and fail unless the packages are the same
    #[arg(long)]
    twice: bool,
}

/// What `systemd-analyze security` may say of the unit, in tenths: 0 is no exposure at all, 100 the most.
const MAX_EXPOSURE: &str = "30";

/// Of Debian 12, for which the package's test is.
const KERNEL: &str = "6.1";

/// Its tests take some two minutes on an idle machine; the CPU is emulated.
const PATIENCE: Duration = Duration::from_mins(15);

pub(crate) fn run(cache: &Cache, args: &Args) -> Result<()> {
    setup::run(cache, Extent::EverythingAndPackagers)?;
    let packages = make()?;
    if args.twice {
        again(&packages)?;
    }
    for package in &packages {
        println!("{}  {}", hash(package)?, package.display());
    }
    Ok(())
}

/// Where the packages are made; the manifest of the agent names it, too.
fn place() -> Result<PathBuf> {
    Ok(cache::repository()?.join("target/dist"))
}

/// Builds, and packs what was built.
fn make() -> Result<[PathBuf; 2]> {
    let place = place()?;
    build_agent()?;
    Cmd::cargo()?
        .args(["build", "--release", "--package", "musttls-pages"])
        .stream()?;
    let pages = place.join("pages");
    cache::remove(&pages)?;
    Cmd::new(agent_binary()?.with_file_name("musttls-pages"))
        .arg(&pages)
        .quiet()?;
    Ok([
        deb(&place.join("musttls.deb"), None)?,
        rpm(&place.join("musttls.rpm"))?,
    ])
}

/// `cargo` with the time that packages give their files: that of the commit.
fn packager() -> Result<Cmd> {
    let time = Cmd::new("git")
        .args(["log", "-1", "--format=%ct"])
        .dir(cache::repository()?)
        .output()
        .context("ask for the time of the commit, which is that of the packages")?;
    Ok(Cmd::cargo()?
        .env("SOURCE_DATE_EPOCH", time.trim())
        .env("CARGO_TARGET_DIR", target()?))
}

/// The target directory of the release build.
fn target() -> Result<PathBuf> {
    let binary = agent_binary()?;
    let target = binary.ancestors().nth(2);
    Ok(target
        .context("the agent is in no target directory")?
        .to_owned())
}

fn deb(to: &Path, version: Option<&str>) -> Result<PathBuf> {
    let mut cargo = packager()?
        .args(["deb", "--package", "musttls", "--no-build", "--locked"])
        .arg("--output")
        .arg(to);
    if let Some(version) = version {
        cargo = cargo.args(["--deb-version", version]);
    }
    cargo.quiet()?;
    Ok(to.to_owned())
}

fn rpm(to: &Path) -> Result<PathBuf> {
    packager()?
        .args(["generate-rpm", "--package", "agent", "--output"])
        .arg(to)
        .arg("--target-dir")
        .arg(target()?)
        .quiet()?;
    Ok(to.to_owned())
}

/// Builds everything anew where nothing was built, and compares.
fn again(packages: &[PathBuf; 2]) -> Result<()> {
    let first: Vec<_> = packages
        .iter()
        .map(|package| hash(package))
        .collect::<Result<_>>()?;
    let other = place()?.join("again");
    cache::remove(&other)?;
    Cmd::cargo()?
        .args(["build", "--release", "--package", "musttls", "--target-dir"])
        .arg(&other)
        .stream()?;
    let binary = hash(&other.join("release/musttls"))?;
    ensure!(
        binary == hash(&agent_binary()?)?,
        "two builds gave two agents: {} and {}",
        agent_binary()?.display(),
        other.join("release/musttls").display()
    );
    cache::remove(&other)?;
    let second = make()?;
    for (package, first) in second.iter().zip(first) {
        ensure!(
            hash(package)? == first,
            "{} is not the same when it is made again",
            package.display()
        );
    }
    println!("dist: two builds gave the same packages");
    Ok(())
}

fn hash(file: &Path) -> Result<String> {
    let said = Cmd::new("sha256sum").arg(file).output()?;
    let hash = said.split_whitespace().next();
    Ok(hash.context("sha256sum said nothing")?.to_owned())
}

/// Makes the package, makes it again, and has it installed, upgraded and removed in a Debian that boots in a VM.
pub(crate) fn test(cache: &Cache) -> Result<()> {
    setup::run(cache, Extent::EverythingAndPackagers)?;
    let [deb_file, rpm_file] = make()?;
    let first = [hash(&deb_file)?, hash(&rpm_file)?];
    let [deb_file, rpm_file] = make()?;
    ensure!(
        first == [hash(&deb_file)?, hash(&rpm_file)?],
        "the packages are not the same when they are made again"
    );
    let next = deb(&place()?.join("musttls-next.deb"), Some("99.0.0-1"))?;
    let top = cache::repository()?;
    let tree = place()?.join("tree");
    cache::write(&tree, &setup::debian_tree(cache).to_string_lossy())?;
    let payload = Payload {
        init: top.join("packaging/test/init"),
        agent: None,
        tests: None,
        system: Some(System {
            name: "dist",
            files: vec![
                (deb_file, "dist/musttls.deb"),
                (next, "dist/musttls-next.deb"),
                (top.join("packaging/test/installed"), "dist/installed"),
                (tree, "dist/tree"),
            ],
            patience: PATIENCE,
        }),
    };
    let kernels = vm::all(cache)?;
    let kernel = kernels.iter().find(|kernel| kernel.name == KERNEL);
    let kernel = kernel.with_context(|| format!("no kernel {KERNEL} in the cache"))?;
    vm::run(cache, kernel, &payload).map(drop)
}

/// Fails where the unit exposes more than it may.
pub(crate) fn unit_is_confined() -> Result<()> {
    let unit = cache::repository()?.join("packaging/systemd/musttls.service");
    Cmd::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(format!("--threshold={MAX_EXPOSURE}"))
        .arg(unit)
        .output()
        .map(drop)
}
