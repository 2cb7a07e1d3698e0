//! Writes the manual pages and the completions of `musttls` from its command line, into the directory that is named: a program of its
//! own, so that the agent does not carry what writes them.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;
use musttls::cli::Cli;

/// Programs of administration (man-pages(7)).
const SECTION: &str = "8";

fn main() -> Result<()> {
    let directory = env::args_os()
        .nth(1)
        .map(PathBuf::from)
        .context("usage: musttls-pages DIRECTORY")?;
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let mut command = Cli::command();
    // Gives subcommands the names by which their pages go: `musttls-run`.
    command.build();
    write_page(&command, &directory)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut Cli::command(), "musttls", &directory)
            .with_context(|| format!("write the completions of {shell}"))?;
    }
    Ok(())
}

/// Writes the page of `command` and those of its subcommands.
fn write_page(command: &Command, directory: &Path) -> Result<()> {
    let name = command
        .get_display_name()
        .unwrap_or_else(|| command.get_name());
    let path = directory.join(format!("{name}.{SECTION}"));
    // Without the date of the build, which would be another each time.
    let page = Man::new(command.clone())
        .section(SECTION)
        .date("")
        .manual("musttls");
    let mut text = Vec::new();
    page.render(&mut text)
        .and_then(|()| fs::write(&path, text))
        .with_context(|| format!("write {}", path.display()))?;
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        write_page(sub, directory)?;
    }
    Ok(())
}
