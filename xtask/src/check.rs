//! Everything that can be said about the sources without running them.

use anyhow::{Result, bail};

use crate::cache::{self, Cache};
use crate::cmd::Cmd;
use crate::layering;
use crate::setup::{self, Extent};

/// Built for another target and without `std`, so `cargo` is asked about it alone.
const KERNEL_PACKAGE: &str = "musttls-ebpf";

/// What `cargo deny` says when the database of advisories is out of reach.
const NOT_FETCHED: &str = "failed to fetch advisory database";

/// How a part of the check ended, if it did not fail.
enum Outcome {
    InOrder,
    /// It could not be asked, which nothing in the sources could mend.
    NotChecked(&'static str),
}

struct Part {
    name: &'static str,
    run: fn() -> Result<Outcome>,
}

const PARTS: &[Part] = &[
    Part {
        name: "layering",
        run: || in_order(layering::check(cache::repository()?)),
    },
    Part {
        name: "format",
        run: || in_order(Cmd::cargo()?.args(["fmt", "--all", "--check"]).stream()),
    },
    Part {
        name: "lints",
        run: || in_order(clippy_host()),
    },
    Part {
        name: "lints of the gate",
        run: || in_order(clippy_kernel()),
    },
    Part {
        name: "licences, duplicates and sources of dependencies",
        run: || {
            let deny = ["deny", "check", "bans", "licenses", "sources"];
            in_order(Cmd::cargo()?.args(deny).stream())
        },
    },
    Part {
        name: "advisories about dependencies",
        run: || judge_advisories(Cmd::cargo()?.args(["deny", "check", "advisories"]).quiet()),
    },
    Part {
        name: "what the unit exposes",
        run: || in_order(crate::dist::unit_is_confined()),
    },
    Part {
        name: "documentation",
        run: || in_order(documentation()),
    },
];

/// Runs every part, also behind one that failed, so that one run tells all.
pub(crate) fn run(cache: &Cache) -> Result<()> {
    setup::run(cache, Extent::EverythingAndDeny)?;
    let mut done = Vec::new();
    for part in PARTS {
        println!("\n== {}", part.name);
        let outcome = (part.run)();
        if let Err(error) = &outcome {
            eprintln!("{error:#}");
        }
        done.push((part.name, outcome));
    }
    summary(&done)
}

fn summary(done: &[(&'static str, Result<Outcome>)]) -> Result<()> {
    println!("\n== summary");
    let mut failed = Vec::new();
    let mut not_checked = Vec::new();
    for (name, outcome) in done {
        match outcome {
            Ok(Outcome::InOrder) => println!("pass         {name}"),
            Ok(Outcome::NotChecked(why)) => {
                println!("NOT CHECKED  {name}: {why}");
                not_checked.push(*name);
            }
            Err(_) => {
                println!("FAIL         {name}");
                failed.push(*name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("check: not in order: {}", failed.join("; "));
    }
    if not_checked.is_empty() {
        println!("check: everything is in order");
    } else {
        println!(
            "check: in order, BUT NOT CHECKED: {}",
            not_checked.join("; ")
        );
    }
    Ok(())
}

fn in_order(result: Result<()>) -> Result<Outcome> {
    result.map(|()| Outcome::InOrder)
}

/// The database is a git repository elsewhere, which build machines without the internet cannot
/// read. That is told and is no failure: nothing in the sources could mend it.
fn judge_advisories(answer: Result<()>) -> Result<Outcome> {
    match answer {
        Ok(()) => Ok(Outcome::InOrder),
        Err(error) if format!("{error:#}").contains(NOT_FETCHED) => {
            println!("{error:#}");
            Ok(Outcome::NotChecked(
                "their database cannot be fetched from here; run `cargo deny check advisories` where \
                 https://github.com/RustSec/advisory-db can be reached",
            ))
        }
        Err(error) => Err(error),
    }
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
        "--all-features",
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

/// The documentation is for who changes the code: private items are in it, and may be linked.
fn documentation() -> Result<()> {
    let what = [
        "doc",
        "--no-deps",
        "--document-private-items",
        "--workspace",
        "--exclude",
        KERNEL_PACKAGE,
    ];
    Cmd::cargo()?
        .args(what)
        .env(
            "RUSTDOCFLAGS",
            "-Dwarnings -Arustdoc::private_intra_doc_links",
        )
        .stream()
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn one_failed_part_fails_the_check_and_is_named() {
        let done = [
            ("format", Ok(Outcome::InOrder)),
            ("lints", Err(anyhow!("no"))),
        ];
        let error = summary(&done).unwrap_err().to_string();
        assert!(
            error.contains("lints") && !error.contains("format"),
            "{error}"
        );
    }

    #[test]
    fn advisories_out_of_reach_are_told_and_no_failure() {
        let out_of_reach = anyhow!("[ERROR] {NOT_FETCHED} https://example.org/db with cli");
        let outcome = judge_advisories(Err(out_of_reach)).unwrap();
        assert!(matches!(outcome, Outcome::NotChecked(why) if why.contains("cargo deny")));
    }

    #[test]
    fn an_advisory_is_a_failure() {
        assert!(judge_advisories(Err(anyhow!("error[vulnerability]: RUSTSEC"))).is_err());
    }
}
