//! Client drivers from other languages' registries, each pinned.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::cache::{self, Cache};
use crate::cmd::Cmd;

const REQUIREMENTS: &str = include_str!("../../clients/requirements.txt");
const PACKAGE_JSON: &str = include_str!("../../clients/package.json");

pub(crate) fn has_python(cache: &Cache) -> bool {
    is_made_from(&cache.python(), "requirements.txt", REQUIREMENTS)
}

/// The interpreter keeps the path it was made with, so the environment is made in its place and the
/// requirements file, written last, is what says it is whole.
pub(crate) fn install_python(cache: &Cache) -> Result<()> {
    let home = cache.python();
    cache::remove(&home)?;
    cache::write(&home.join("requirements.in"), REQUIREMENTS)?;
    // By path: Debian's own, for which `python3-venv` was installed, whatever else PATH holds.
    Cmd::new("/usr/bin/python3")
        .args(["-m", "venv"])
        .arg(&home)
        .quiet()?;
    Cmd::new(home.join("bin/pip"))
        .args([
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "--requirement",
        ])
        .arg(home.join("requirements.in"))
        .quiet()?;
    cache::write(&home.join("requirements.txt"), REQUIREMENTS)
}

pub(crate) fn has_node(cache: &Cache) -> bool {
    is_made_from(&cache.node(), "package.json", PACKAGE_JSON)
}

pub(crate) fn install_node(cache: &Cache) -> Result<()> {
    let partial = cache::begin(&cache.node())?;
    cache::write(&partial.join("package.json"), PACKAGE_JSON)?;
    Cmd::new("npm")
        .args([
            "install",
            "--no-audit",
            "--no-fund",
            "--ignore-scripts",
            "--loglevel",
            "error",
        ])
        .dir(&partial)
        .quiet()?;
    cache::commit(&partial, &cache.node())
}

fn is_made_from(home: &Path, file: &str, text: &str) -> bool {
    fs::read_to_string(home.join(file)).is_ok_and(|found| found == text)
}
