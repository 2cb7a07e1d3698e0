//! How many instructions the verifier follows before it takes each program, on each kernel of the VMs, compared with
//! the table in `docs/instructions.md`: a program that comes near the verifier's limit shows in the commit that does it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use crate::cache;

const PAGE: &str = "docs/instructions.md";
/// First cell of the table's header.
const HEADER: &str = "program";
/// First cell of the row that says which kernels were asked.
const VERSIONS: &str = "*kernel*";
const NOT_TOLD: &str = "not told";
const NOT_LOADED: &str = "not loaded";
const REMEDY: &str = "if that is meant: `cargo xtask test --only vm --bless`, and commit the page";

/// The first process of a VM says so much before the name and the count of a program.
const TOLD: &str = "VM-INSTRUCTIONS: ";

/// What one kernel told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Column {
    /// As `uname -r` tells it.
    version: String,
    /// By name. A kernel that does not tell the count still tells that it took the program.
    programs: BTreeMap<String, Option<u32>>,
}

/// Columns by series of kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table(BTreeMap<String, Column>);

/// How far a count may be from the table, in percent of what the table says.
struct Margin {
    above: u32,
    below: u32,
}

impl Margin {
    /// The same kernel and compiler give the same count; room for a change that hardly matters.
    const SAME_KERNEL: Self = Self {
        above: 2,
        below: 10,
    };
    /// Debian's newest kernel of a series is fetched once and kept, so that another machine may have another one.
    const OTHER_KERNEL: Self = Self {
        above: 25,
        below: 50,
    };

    fn holds(&self, table: u32, measured: u32) -> bool {
        let (table, measured) = (u64::from(table) * 100, u64::from(measured) * 100);
        let part = |percent: u32| table / 100 * u64::from(percent);
        measured <= table + part(self.above) && measured + part(self.below) >= table
    }
}

/// Compares what the VMs told with the page, or writes it there.
pub(crate) fn settle(measured: &Table, bless: bool) -> Result<()> {
    let path = cache::repository()?.join(PAGE);
    let page = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (prose, table) = Table::read(&page).with_context(|| format!("read {}", path.display()))?;
    let mut new = table.clone();
    new.0.extend(measured.0.clone());
    let new = new.markdown();
    ensure!(!measured.0.is_empty(), "no VM told anything");
    if bless {
        println!("{new}");
        return fs::write(&path, prose + &new).with_context(|| format!("write {}", path.display()));
    }
    let found = table.differences(measured);
    if found.is_empty() {
        println!("{} kernels as {PAGE} says:\n{new}", measured.0.len());
        return Ok(());
    }
    bail!(
        "{PAGE} does not hold:\n{}\n  help: {REMEDY}; the new table:\n{new}",
        found.join("\n")
    )
}

impl Table {
    /// Adds what the console of a VM says.
    pub(crate) fn add(&mut self, series: &str, version: &str, console: &str) {
        let programs = console
            .lines()
            .filter_map(|line| line.split_once(TOLD)?.1.split_once(' '))
            .map(|(name, count)| (name.to_owned(), count.trim().parse().ok()))
            .collect();
        let version = version.to_owned();
        self.0
            .insert(series.to_owned(), Column { version, programs });
    }

    /// What stands before the table, and the table.
    fn read(page: &str) -> Result<(String, Self)> {
        let is_table = |line: &str| line.starts_with('|');
        let prose: Vec<_> = page.lines().take_while(|line| !is_table(line)).collect();
        let prose = prose.join("\n") + "\n";
        let mut rows = page.lines().filter(|line| is_table(line)).map(cells);
        let header = rows.next().unwrap_or_default();
        ensure!(
            header.first() == Some(&HEADER),
            "it has no table that begins with `{HEADER}`"
        );
        let mut columns = vec![Column::default(); header.len() - 1];
        for row in rows.skip(1) {
            let (name, row) = row.split_first().context("an empty row")?;
            ensure!(row.len() == columns.len(), "`{name}` has another length");
            for (column, cell) in columns.iter_mut().zip(row) {
                column.set(name, cell)?;
            }
        }
        let names = header.iter().skip(1).map(|&name| name.to_owned());
        Ok((prose, Self(names.zip(columns).collect())))
    }

    fn markdown(&self) -> String {
        let mut columns: Vec<_> = self.0.iter().collect();
        columns.sort_by_key(|(series, _)| series_number(series));
        let mut names = BTreeSet::new();
        for column in self.0.values() {
            names.extend(column.programs.keys());
        }
        let line = |first: &str, cell: &dyn Fn(&str, &Column) -> String| {
            let cells: Vec<_> = columns
                .iter()
                .map(|(series, column)| cell(series, column))
                .collect();
            format!("| {first} | {} |\n", cells.join(" | "))
        };
        let mut text = line(HEADER, &|series, _| series.to_owned());
        text += "|---|";
        text += &"--:|".repeat(columns.len());
        text += "\n";
        text += &line(VERSIONS, &|_, column| column.version.clone());
        for name in names {
            text += &line(&format!("`{name}`"), &|_, column| column.cell(name));
        }
        text
    }

    /// What is not as this table says, each as a line.
    fn differences(&self, measured: &Self) -> Vec<String> {
        let mut found = Vec::new();
        for (series, new) in &measured.0 {
            let Some(old) = self.0.get(series) else {
                found.push(format!("kernel {}: no column {series}", new.version));
                continue;
            };
            let margin = if old.version == new.version {
                Margin::SAME_KERNEL
            } else {
                Margin::OTHER_KERNEL
            };
            let names: BTreeSet<_> = old.programs.keys().chain(new.programs.keys()).collect();
            for name in names {
                let is_same = match (old.programs.get(name), new.programs.get(name)) {
                    (Some(Some(old)), Some(Some(new))) => margin.holds(*old, *new),
                    (old, new) => old == new,
                };
                if !is_same {
                    let (is, was) = (new.cell(name), old.cell(name));
                    found.push(format!(
                        "kernel {}: {name}: {is}; the table says {was}",
                        new.version
                    ));
                }
            }
        }
        found
    }
}

impl Column {
    fn set(&mut self, name: &str, cell: &str) -> Result<()> {
        let name = name.trim_matches('`');
        let count = match cell {
            NOT_LOADED => return Ok(()),
            NOT_TOLD => None,
            _ if name == VERSIONS => {
                cell.clone_into(&mut self.version);
                return Ok(());
            }
            number => Some(
                number
                    .replace(',', "")
                    .parse()
                    .with_context(|| format!("`{name}`: `{number}` is no number"))?,
            ),
        };
        self.programs.insert(name.to_owned(), count);
        Ok(())
    }

    fn cell(&self, name: &str) -> String {
        match self.programs.get(name) {
            Some(Some(count)) => with_commas(*count),
            Some(None) => NOT_TOLD.to_owned(),
            None => NOT_LOADED.to_owned(),
        }
    }
}

fn cells(row: &str) -> Vec<&str> {
    row.trim()
        .trim_matches('|')
        .split('|')
        .map(str::trim)
        .collect()
}

fn series_number(series: &str) -> Vec<u32> {
    series
        .split('.')
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn with_commas(number: u32) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# Title\n\ntext\n\n\
        | program | 5.10 | 6.1 |\n|---|--:|--:|\n| *kernel* | 5.10.0-46 | 6.1.0-1 |\n\
        | `on_egress` | not told | 97,220 |\n| `on_unix` | not loaded | 999 |\n";

    fn table() -> Table {
        Table::read(PAGE).unwrap().1
    }

    fn differences(console: &str, version: &str) -> Vec<String> {
        let mut measured = Table::default();
        measured.add("6.1", version, console);
        table().differences(&measured)
    }

    #[test]
    fn page_is_written_as_it_was_read() {
        let (prose, table) = Table::read(PAGE).unwrap();
        assert_eq!(prose + &table.markdown(), PAGE);
    }

    #[test]
    fn console_is_read() {
        let mut table = Table::default();
        let console = "x\n[ 1.0] VM-INSTRUCTIONS: on_egress 97220\nVM-INSTRUCTIONS: old not told\n";
        table.add("6.1", "6.1.0-1", console);
        let text = table.markdown();
        assert!(text.contains("| `on_egress` | 97,220 |"), "{text}");
        assert!(text.contains("| `old` | not told |"), "{text}");
    }

    #[test]
    fn same_kernel_holds_within_two_percent() {
        let says = |count: u32| {
            format!("VM-INSTRUCTIONS: on_egress {count}\nVM-INSTRUCTIONS: on_unix 999\n")
        };
        assert_eq!(differences(&says(97_220), "6.1.0-1"), [""; 0]);
        assert_eq!(differences(&says(99_000), "6.1.0-1"), [""; 0]);
        assert_eq!(differences(&says(100_000), "6.1.0-1").len(), 1);
        assert_eq!(differences(&says(80_000), "6.1.0-1").len(), 1);
        assert_eq!(differences(&says(100_000), "6.1.0-2"), [""; 0]);
        assert_eq!(differences(&says(130_000), "6.1.0-2").len(), 1);
    }

    #[test]
    fn program_that_came_or_went_is_a_difference() {
        let found = differences("VM-INSTRUCTIONS: on_egress 97220\n", "6.1.0-1");
        assert_eq!(
            found,
            ["kernel 6.1.0-1: on_unix: not loaded; the table says 999"]
        );
        let console = "VM-INSTRUCTIONS: on_egress 97220\nVM-INSTRUCTIONS: on_unix 999\nVM-INSTRUCTIONS: x 1\n";
        let found = differences(console, "6.1.0-1");
        assert_eq!(found, ["kernel 6.1.0-1: x: 1; the table says not loaded"]);
    }

    #[test]
    fn kernel_without_a_column_is_a_difference() {
        let mut measured = Table::default();
        measured.add("7", "7.3", "");
        assert_eq!(table().differences(&measured).len(), 1);
    }
}
