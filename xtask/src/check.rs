//! Everything that can be said about the sources without running them.

use anyhow::Result;

use crate::cache::{self, Cache};
use crate::cmd::Cmd;
use crate::layering;
use crate::setup::{self, Extent};

/// Built for another target and without `std`, so `cargo` is asked about it alone.
const KERNEL_PACKAGE: &str = "musttls-ebpf";

pub(crate) fn run(cache: &Cache) -> Result<()> {
    setup::run(cache, Extent::EverythingAndDeny)?;
    layering::check(cache::repository()?)?;
    Cmd::cargo()?.args(["fmt", "--all", "--check"]).stream()?;
    clippy_host()?;
    clippy_kernel()?;
    Cmd::cargo()?
        .args(["deny", "check", "bans", "licenses", "sources"])
        .stream()?;
    let advisories = advisories()?;
    Cmd::cargo()?
        .args([
            "doc",
            "--no-deps",
            "--workspace",
            "--exclude",
            KERNEL_PACKAGE,
        ])
        .env("RUSTDOCFLAGS", "-Dwarnings")
        .stream()?;
    match advisories {
        Advisories::Clean => println!("check: everything is in order"),
        Advisories::OutOfReach => println!("check: in order, but ADVISORIES WERE NOT CHECKED"),
    }
    Ok(())
}

enum Advisories {
    Clean,
    OutOfReach,
}

/// The database is a git repository elsewhere, which build machines without the internet cannot
/// read. That is told and is no failure: nothing in the sources could mend it.
fn advisories() -> Result<Advisories> {
    let Err(error) = Cmd::cargo()?.args(["deny", "check", "advisories"]).quiet() else {
        return Ok(Advisories::Clean);
    };
    if format!("{error:#}").contains("failed to fetch advisory database") {
        println!("check: advisories: {error:#}");
        return Ok(Advisories::OutOfReach);
    }
    Err(error)
}

fn clippy_host() -> Result<()> {
    let what = [
        "clippy",
        "--all-targets",
        "--workspace",
        "--exclude",
        KERNEL_PACKAGE,
    ];
    Cmd::cargo()?
        .args(what)
        .args(["--", "-D", "warnings"])
        .stream()
}

/// Core is built from source for this target, which stable allows only with `RUSTC_BOOTSTRAP`.
fn clippy_kernel() -> Result<()> {
    let what = [
        "clippy",
        "--release",
        "--package",
        KERNEL_PACKAGE,
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
    ];
    Cmd::cargo()?
        .env("RUSTC_BOOTSTRAP", "1")
        .args(what)
        .args(["--", "-D", "warnings"])
        .stream()
}
