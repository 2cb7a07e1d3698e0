//! Runs a program of the test package against the release build of the agent: the demo, the benchmarks.

use std::env;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Parser;

use crate::cache::Cache;
use crate::cmd::Cmd;
use crate::setup::{self, Extent};

#[derive(Parser)]
pub(crate) struct Args {
    /// Passed on to the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<String>,
}

/// The profile of the test package, and the name of its directory.
pub(crate) const TESTS_PROFILE: &str = "tests";

pub(crate) fn run(cache: &Cache, program: &str, args: &Args) -> Result<()> {
    setup::run(cache, Extent::Everything)?;
    build_agent()?;
    let cargo = Cmd::cargo()?.args([
        "run",
        "--profile",
        TESTS_PROFILE,
        "--package",
        "musttls-tests",
        "--bin",
        program,
        "--",
    ]);
    for_tests(cargo, cache)?.args(&args.rest).stream()
}

pub(crate) fn build_agent() -> Result<()> {
    Cmd::cargo()?
        .args(["build", "--release", "--package", "musttls"])
        .stream()
}

/// Adds what programs of the test package learn from the environment.
pub(crate) fn for_tests(command: Cmd, cache: &Cache) -> Result<Cmd> {
    Ok(command
        .env("MUSTTLS_BIN", agent_binary()?)
        .env("MUSTTLS_CACHE", cache.root()))
}

/// The agent of the release build.
pub(crate) fn agent_binary() -> Result<PathBuf> {
    binary("release", "musttls")
}

/// A program of the test package.
pub(crate) fn test_binary(name: &str) -> Result<PathBuf> {
    binary(TESTS_PROFILE, name)
}

/// A binary. The target directory is the one this program is running from, so every way to name one
/// (environment, configuration) is followed.
fn binary(profile: &str, name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("find the path of xtask")?;
    let target = own
        .ancestors()
        .nth(2)
        .with_context(|| format!("{} is in no target directory", own.display()))?;
    Ok(target.join(profile).join(name))
}
