//! A data directory with the accounts, made once for each version of a product and copied for each server.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::{OPEN_USER, PASSWORD, Product, SCHEMA, USER, base_command, give_to_server, stop};
use crate::place::{self, Scratch, output};
use crate::wait::{self, PATIENCE};

/// Holds when the directory is made and when it is used: another size would have the log rebuilt.
pub(super) const MARIADB_STORAGE: &[&str] =
    &["--innodb-log-file-size=8M", "--aria-log-file-size=8M"];
pub(super) const MYSQL_STORAGE: &[&str] = &["--innodb-redo-log-capacity=32M"];

/// Grows with each change of what is in a template.
const FORMAT: u32 = 1;

/// The kept template of `product`; makes it if it is not there.
pub(super) fn of(product: Product) -> Result<PathBuf> {
    let version = output(product.command(product.server_program())?.arg("--version"))?;
    let kept = place::kept()?.join(format!("template-{FORMAT}-{}", digest(&version)));
    if !kept.exists() {
        make(product, &kept).with_context(|| format!("make a data directory of {product:?}"))?;
    }
    Ok(kept)
}

/// The version text as a file name.
fn digest(version: &str) -> String {
    let kept = |c: char| c.is_ascii_alphanumeric() || c == '.';
    version
        .split_whitespace()
        .flat_map(|word| word.chars().filter(|c| kept(*c)))
        .collect()
}

fn make(product: Product, kept: &PathBuf) -> Result<()> {
    let directory = Scratch::in_directory(&product.data_parent()?)?;
    give_to_server(product, directory.path())?;
    let data = directory.join("data");
    if product.is_mysql() {
        let status = base_command(product, directory.path())?
            .arg("--initialize-insecure")
            .status()
            .context("run mysqld --initialize-insecure")?;
        anyhow::ensure!(
            status.success(),
            "mysqld --initialize-insecure ended with {status}:\n{}",
            fs::read_to_string(directory.join("error.log")).unwrap_or_default()
        );
    } else {
        let mut command = product.command("usr/bin/mariadb-install-db")?;
        command
            .args([
                "--no-defaults",
                "--user=mysql",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                // The name of this machine may have no address in the server's tree.
                "--force",
            ])
            .args(MARIADB_STORAGE)
            .arg(format!("--datadir={}", product.name_of(&data)?.display()));
        output(&mut command)?;
    }
    add_accounts(product, &directory)?;
    // On the same file system as its place, so that a half-made one is never taken for the whole.
    let partial = Scratch::in_directory(&place::kept()?)?;
    let copy = partial.join("data");
    super::copy(&data, &copy)?;
    fs::rename(&copy, kept).with_context(|| format!("make {}", kept.display()))
}

/// Made here, not in a server under test, whose log must not name the users before they come.
fn add_accounts(product: Product, directory: &Scratch) -> Result<()> {
    let mut child = base_command(product, directory.path())?
        .arg("--skip-networking")
        .spawn()
        .context("start the server")?;
    let sql = format!(
        "CREATE DATABASE {SCHEMA}; CREATE TABLE {SCHEMA}.t (n INT); INSERT INTO {SCHEMA}.t VALUES (42); \
         CREATE USER {USER}@'%' IDENTIFIED BY '{PASSWORD}'; CREATE USER {OPEN_USER}@'%'; \
         GRANT ALL ON *.* TO {USER}@'%'; GRANT ALL ON {SCHEMA}.* TO {OPEN_USER}@'%';"
    );
    let socket = product.name_of(&directory.join("mysqld.sock"))?;
    let client = |sql: &str| -> Result<String> {
        let mut command = product.client()?;
        command
            .args(["--no-defaults", "--user=root"])
            .arg("--socket")
            .arg(&socket);
        output(command.args(["--execute", sql]))
    };
    let made = wait::until("the server to answer", PATIENCE * 2, || {
        Ok(client("SELECT 1").ok())
    })
    .and_then(|_| client(&sql));
    let stopped = stop(&mut child, PATIENCE * 2);
    made?;
    stopped
}
