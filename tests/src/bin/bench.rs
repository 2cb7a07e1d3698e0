//! `cargo xtask bench`: what musttls costs, each number beside its peer and its goal, in one run.
//!
//! It prints Markdown, and JSON to a file if asked; it asserts nothing: a number that misses its goal is
//! a line that says so.

#[path = "../bench/mod.rs"]
mod bench;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use bench::Scale;
use clap::Parser;

#[derive(Parser)]
#[command(about = "Measures musttls beside its peers and prints a table")]
struct Cli {
    /// One and a half minutes in place of seven: fewer rounds, wider spread
    #[arg(long)]
    quick: bool,
    /// Sessions of the last two sections; the goals are of 10,000,000 (The history) and 1,000,000 (Logins carried out), each about ten minutes
    #[arg(long, value_name = "COUNT")]
    sessions: Option<u64>,
    /// Also write the results as JSON to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only the sections whose title contains this
    #[arg(long, value_name = "WORD", default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut scale = if cli.quick { Scale::QUICK } else { Scale::FULL };
    scale.sessions = cli.sessions.unwrap_or(scale.sessions);
    let report = bench::run(scale, &cli.only)?;
    print!("{}", report.markdown());
    if let Some(path) = cli.json {
        let text = serde_json::to_string_pretty(&report.json()).context("write JSON")?;
        fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
