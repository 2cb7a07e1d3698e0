//! The root file system that all test VMs share: the host's own MariaDB, a data directory made once,
//! and small tools. The payload's `/init` finds in it:
//!
//! - `/usr/sbin/mariadbd`, `/usr/bin/mariadb`, `/usr/bin/mariadb-admin`; `/etc/mysql/my.cnf` names the rest
//! - a data directory `/var/lib/mysql` of user `mysql`: `root` without password on localhost, and
//!   `tester` with password `tester` from everywhere
//! - `/etc/musttls-test`: `ca.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem`, `client-key.pem`
//! - `ip`, `ss`, `openssl`, and busybox for everything else (its shell prefers its own `ip`,
//!   so a script names `/bin/ip`); `modprobe` finds the modules of `setup/kernels.rs`
//!
//! Nothing is mounted and no interface is up.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::archive::{copy_libraries, inside, pack, place};
use crate::cache::{self, Cache};
use crate::cmd::Cmd;

/// Grows with each change of what is in the archive.
const FORMAT: u32 = 1;

const DIRECTORIES: &[&str] = &[
    "dev",
    "etc",
    "proc",
    "root",
    "run/mysqld",
    "sys",
    "tmp",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "usr/sbin",
    "var/lib",
    "var/log",
];

const PROGRAMS: &[&str] = &[
    "/usr/sbin/mariadbd",
    "/usr/bin/mariadb",
    "/usr/bin/mariadb-admin",
    "/bin/ip",
    "/bin/ss",
    "/usr/bin/openssl",
];

/// Authentication plugins of server and client, below the directories they are searched in.
const PLUGINS: &[&str] = &[
    "/usr/lib/mysql/plugin/auth_ed25519.so",
    "/usr/lib/x86_64-linux-gnu/libmariadb3/plugin/caching_sha2_password.so",
    "/usr/lib/x86_64-linux-gnu/libmariadb3/plugin/client_ed25519.so",
    "/usr/lib/x86_64-linux-gnu/libmariadb3/plugin/mysql_clear_password.so",
];

/// Debian gives no fixed number to `mysql`, so the VM has its own.
const MYSQL_UID: u32 = 999;

/// Holds at `mariadb-install-db` and at run time: with another log size the server would rebuild it
/// at its first start. The root file system is in memory, where direct and native asynchronous
/// I/O do not work on all kernels.
const STORAGE_SETTINGS: &str = "\
[mariadbd]
innodb_log_file_size = 8M
innodb_buffer_pool_size = 32M
innodb_flush_method = fsync
innodb_use_native_aio = 0
aria_log_file_size = 8M
aria_pagecache_buffer_size = 8M
";

const SERVER_SETTINGS: &str = "\
[mariadbd]
user = mysql
basedir = /usr
datadir = /var/lib/mysql
lc_messages_dir = /usr/share/mysql
socket = /run/mysqld/mysqld.sock
pid_file = /run/mysqld/mysqld.pid
skip_name_resolve
performance_schema = 0
ssl_ca = /etc/musttls-test/ca.pem
ssl_cert = /etc/musttls-test/server-cert.pem
ssl_key = /etc/musttls-test/server-key.pem

[client]
socket = /run/mysqld/mysqld.sock
";

/// `mariadb-install-db` runs the server without its grant tables, which have no users to alter.
const ACCOUNTS: &str = "\
FLUSH PRIVILEGES;
CREATE USER tester@'%' IDENTIFIED BY 'tester';
GRANT ALL ON *.* TO tester@'%';
";

/// Builds a CA and certificates of server and client in the working directory. 10 years: the
/// userland is made once and kept.
const CERTIFICATES: &str = "\
new='openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650'
$new -subj '/CN=musttls test CA' -addext 'keyUsage=critical,keyCertSign,cRLSign' -keyout ca-key.pem -out ca.pem
issue() { $new -subj \"/CN=$2\" -addext \"subjectAltName=$3\" -addext basicConstraints=CA:FALSE \
-CA ca.pem -CAkey ca-key.pem -keyout \"$1-key.pem\" -out \"$1-cert.pem\"; }
issue server localhost 'DNS:localhost,IP:127.0.0.1,IP:::1'
issue client tester 'DNS:tester'
rm ca-key.pem
";

pub(crate) fn archive(cache: &Cache) -> PathBuf {
    cache.vm().join("userland/userland.cpio")
}

pub(crate) fn is_there(cache: &Cache) -> bool {
    let made_from = fs::read_to_string(cache.vm().join("userland/version")).ok();
    made_from.is_some() && made_from == source_version()
}

pub(crate) fn install(cache: &Cache) -> Result<()> {
    let version = source_version().context("mariadb-server is not installed")?;
    let partial = cache::begin(&cache.vm().join("userland"))?;
    let tree = partial.join("tree");
    for directory in DIRECTORIES {
        let path = tree.join(directory);
        cache::create(&path)?;
    }
    Cmd::new("chmod")
        .arg("1777")
        .arg(tree.join("tmp"))
        .output()?;
    for link in ["bin", "sbin", "lib", "lib64"] {
        symlink(format!("usr/{link}"), tree.join(link)).with_context(|| format!("link /{link}"))?;
    }
    // The kernel opens it for the first process, before anything is mounted.
    Cmd::new("mknod")
        .arg(tree.join("dev/console"))
        .args(["c", "5", "1"])
        .output()?;
    write_etc(&tree)?;
    copy_programs(&tree)?;
    make_certificates(&tree.join("etc/musttls-test"))?;
    make_data_directory(&tree, &partial)?;
    pack(&tree, &partial.join("userland.cpio"))?;
    cache::remove(&tree)?;
    cache::write(&partial.join("version"), &version)?;
    cache::commit(&partial, &cache.vm().join("userland"))
}

/// What the archive is made from; another answer than the one kept beside it means to make it anew.
fn source_version() -> Option<String> {
    let mariadb = Cmd::new("dpkg-query")
        .args(["--show", "--showformat", "${Version}", "mariadb-server"])
        .answer()?;
    Some(format!("format {FORMAT}, MariaDB {}", mariadb.trim()))
}

fn write_etc(tree: &Path) -> Result<()> {
    let etc = tree.join("etc");
    let passwd = format!(
        "root:x:0:0:root:/root:/bin/sh\nmysql:x:{MYSQL_UID}:{MYSQL_UID}::/var/lib/mysql:/bin/false\n"
    );
    cache::write(&etc.join("passwd"), &passwd)?;
    cache::write(
        &etc.join("group"),
        &format!("root:x:0:\nmysql:x:{MYSQL_UID}:\n"),
    )?;
    cache::write(
        &etc.join("nsswitch.conf"),
        "passwd: files\ngroup: files\nhosts: files\n",
    )?;
    cache::write(&etc.join("hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    cache::write(
        &etc.join("mysql/my.cnf"),
        &format!("{STORAGE_SETTINGS}\n{SERVER_SETTINGS}"),
    )
}

fn copy_programs(tree: &Path) -> Result<()> {
    for path in PROGRAMS.iter().chain(PLUGINS).map(Path::new) {
        place(path, &inside(tree, path))?;
        copy_libraries(path, tree)?;
    }
    let messages = tree.join("usr/share/mysql");
    cache::copy(
        Path::new("/usr/share/mysql/english/errmsg.sys"),
        &messages.join("english/errmsg.sys"),
    )?;
    Cmd::new("cp")
        .args(["--recursive", "/usr/share/mysql/charsets"])
        .arg(&messages)
        .output()?;
    place(Path::new("/bin/busybox"), &tree.join("usr/bin/busybox"))?;
    for applet in Cmd::new("busybox").arg("--list").output()?.lines() {
        let (user, system) = (
            tree.join("usr/bin").join(applet),
            tree.join("usr/sbin").join(applet),
        );
        if !user.exists() && !system.exists() {
            symlink("/usr/bin/busybox", &user)
                .with_context(|| format!("link {}", user.display()))?;
        }
    }
    // The kernel runs it by this path to load what a system call asks for.
    symlink("/usr/bin/busybox", tree.join("usr/sbin/modprobe")).context("link /sbin/modprobe")?;
    Cmd::new("ldconfig").arg("-r").arg(tree).output().map(drop)
}

fn make_certificates(directory: &Path) -> Result<()> {
    cache::create(directory)?;
    Cmd::new("sh")
        .args(["-ec", CERTIFICATES])
        .dir(directory)
        .output()?;
    own_by_mysql(directory)
}

fn make_data_directory(tree: &Path, scratch: &Path) -> Result<()> {
    let (settings, accounts) = (scratch.join("storage.cnf"), scratch.join("accounts.sql"));
    cache::write(&settings, STORAGE_SETTINGS)?;
    cache::write(&accounts, ACCOUNTS)?;
    let data = tree.join("var/lib/mysql");
    let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
    Cmd::new("mariadb-install-db")
        .arg(option("defaults-file", &settings))
        .args([
            "--user=root",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        ])
        .arg(option("extra-file", &accounts))
        .arg(option("datadir", &data))
        .output()?;
    cache::remove(&settings)?;
    cache::remove(&accounts)?;
    own_by_mysql(&data)?;
    own_by_mysql(&tree.join("run/mysqld"))
}

fn own_by_mysql(path: &Path) -> Result<()> {
    Cmd::new("chown")
        .arg("--recursive")
        .arg(format!("{MYSQL_UID}:{MYSQL_UID}"))
        .arg(path)
        .output()
        .map(drop)
}
