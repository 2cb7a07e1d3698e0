//! `cargo xtask`: installs what the project needs, then runs its demo, tests, benchmarks and checks.
#![forbid(unsafe_code)]

mod cache;
mod check;
mod cmd;
mod dist;
mod instructions;
mod layering;
mod run;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::Parser;

use crate::cache::Cache;
use crate::setup::Extent;

#[derive(Parser)]
#[command(about = "Installs what musttls needs, and runs its demo, tests, benchmarks and checks")]
enum Cli {
    /// Install what is missing: toolchain parts, Debian packages, servers, kernels, clients
    Setup,
    /// Show a server refusing plaintext logins, start to end
    Demo(run::Args),
    /// Run unit tests, integration tests on this kernel, and a VM on each other kernel
    Test(test::Args),
    /// Run the benchmarks; what follows is passed on to them
    Bench(run::Args),
    /// Make the packages: a deb and an rpm in target/dist
    Dist(dist::Args),
    /// Check format, lints, dependencies, documentation and layering
    Check,
}

fn main() -> ExitCode {
    let cache = Cache::from_environment();
    let done = match Cli::parse() {
        Cli::Setup => setup::run(&cache, Extent::Everything),
        Cli::Demo(args) => run::run(&cache, "demo", &args),
        Cli::Test(args) => test::run(&cache, &args),
        Cli::Bench(args) => run::run(&cache, "bench", &args),
        Cli::Dist(args) => dist::run(&cache, &args),
        Cli::Check => check::run(&cache),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if let Some(step) = error.downcast_ref::<setup::Failed>() {
                eprintln!("  help: {}", step.remedy);
            }
            ExitCode::FAILURE
        }
    }
}
