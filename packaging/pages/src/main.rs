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
        .and_then(|()| fs::write(&path, with_examples(&String::from_utf8_lossy(&text))))
        .with_context(|| format!("write {}", path.display()))?;
    for sub in subcommands(command) {
        write_page(sub, directory)?;
    }
    Ok(())
}

fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
}

/// `page` with what stands behind the help as its examples, line by line: they would be filled and adjusted as a text is.
fn with_examples(page: &str) -> String {
    let Some((before, rest)) = page.split_once(".SH EXTRA\n") else {
        return page.to_owned();
    };
    let (extra, after) = match rest.find("\n.SH ") {
        Some(end) => rest.split_at(end + 1),
        None => (rest, ""),
    };
    // Their own heading is that of the section.
    let lines = ["Examples:\n", "Example:\n"]
        .iter()
        .find_map(|heading| extra.strip_prefix(heading))
        .unwrap_or(extra);
    format!("{before}.SH EXAMPLES\n.nf\n{lines}.fi\n{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_examples_that_keep_their_lines() {
        fn assert_page(command: &Command) {
            let mut text = Vec::new();
            Man::new(command.clone()).render(&mut text).unwrap();
            let page = with_examples(&String::from_utf8(text).unwrap());
            let (_, examples) = page.split_once(".SH EXAMPLES\n.nf\n  ").unwrap();
            assert!(examples.contains("\n.fi\n.SH VERSION\n"), "{page}");
            assert!(
                !page.contains("EXTRA") && !examples.contains("Example:"),
                "{page}"
            );
            for sub in subcommands(command) {
                assert_page(sub);
            }
        }
        let mut command = Cli::command();
        command.build();
        for sub in subcommands(&command) {
            assert_page(sub);
        }
        assert_eq!(with_examples(".SH NAME\nx\n"), ".SH NAME\nx\n");
    }
}
