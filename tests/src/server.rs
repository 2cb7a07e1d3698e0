//! Real servers on a host of the test.
//!
//! Accounts, the same on both: `root`@`localhost` without a password (Unix socket only), and from
//! everywhere [`USER`] with [`PASSWORD`] and [`OPEN_USER`] without one, so that a raw client can log
//! in with an empty auth response.

mod template;

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use crate::certs::Certs;
use crate::netns::{self, Host};
use crate::place::{self, Scratch, output};
use crate::wait::{self, PATIENCE};
use crate::wire::LoginPacket;

/// The account of the clients under test.
pub const USER: &str = "app";
/// Its password, found nowhere else: a record that holds it is a leak.
pub const PASSWORD: &str = "Not-For-The-Record-7";
/// An account without a password.
pub const OPEN_USER: &str = "open";
/// A schema both users may use.
pub const SCHEMA: &str = "shop";
/// The classic port.
pub const PORT: u16 = 3306;

const EARLY_LOG: &str = "early.log";
/// `connect_timeout`, as both have it unless told otherwise. Longer where the CPU is emulated: agents start slowly there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// `MariaDB` of the host's Debian release, 10.11.
    MariaDb,
    /// `MariaDB` 10.5, in a tree of its own.
    MariaDb105,
    /// `MariaDB` 11.8, in a tree of its own.
    MariaDb118,
    /// `MySQL` of Debian sid, in a tree of its own.
    MySql,
}

impl Product {
    /// One of each kind.
    pub const ALL: [Self; 2] = [Self::MariaDb, Self::MySql];

    /// Every release.
    pub const RELEASES: [Self; 4] = [
        Self::MariaDb105,
        Self::MariaDb,
        Self::MariaDb118,
        Self::MySql,
    ];

    /// Those of [`Self::ALL`] that [are under test](Self::is_under_test).
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|it| it.is_under_test())
    }

    /// Those of [`Self::RELEASES`] that [are under test](Self::is_under_test).
    pub fn releases() -> impl Iterator<Item = Self> {
        Self::RELEASES.into_iter().filter(|it| it.is_under_test())
    }

    /// Whether `MUSTTLS_SERVER` does not name another one (`mariadb`, `mysql`): in a VM each takes its time.
    ///
    /// # Panics
    /// If `MUSTTLS_SERVER` names neither.
    #[must_use]
    pub fn is_under_test(self) -> bool {
        let only = std::env::var("MUSTTLS_SERVER").unwrap_or_default();
        assert!(
            matches!(only.as_str(), "" | "mariadb" | "mysql"),
            "MUSTTLS_SERVER is `{only}`, and neither mariadb nor mysql"
        );
        match self {
            Self::MariaDb => matches!(only.as_str(), "" | "mariadb"),
            Self::MySql => matches!(only.as_str(), "" | "mysql"),
            Self::MariaDb105 | Self::MariaDb118 => only.is_empty(),
        }
    }

    /// SQLSTATE of its own refusal of plaintext (reference: mysql-protocol.md section 2).
    #[must_use]
    pub const fn refusal_sqlstate(self) -> &'static str {
        if self.is_mysql() { "HY000" } else { "08004" }
    }

    /// Whether it is `MySQL`.
    #[must_use]
    pub const fn is_mysql(self) -> bool {
        matches!(self, Self::MySql)
    }

    /// The authentication plugin of its accounts.
    #[must_use]
    pub const fn default_plugin(self) -> &'static str {
        if self.is_mysql() {
            "caching_sha2_password"
        } else {
            "mysql_native_password"
        }
    }

    /// Name of its tree in the cache; `None` if it is installed on the host.
    const fn tree(self) -> Option<&'static str> {
        match self {
            Self::MariaDb => None,
            Self::MariaDb105 => Some("mariadb-10.5-tree"),
            Self::MariaDb118 => Some("mariadb-11.8-tree"),
            Self::MySql => Some("mysql-tree"),
        }
    }

    /// Where its files are: a server with a tree sees it as the root directory.
    fn root(self) -> Result<PathBuf> {
        self.tree().map_or_else(
            || Ok(PathBuf::from("/")),
            |tree| place::from_setup(place::cache().join(tree)),
        )
    }

    /// A directory for its data, outside its tree's packages.
    fn data_parent(self) -> Result<PathBuf> {
        match self.tree() {
            None => Ok(std::env::temp_dir()),
            Some(_) => Ok(self.root()?.join("srv")),
        }
    }

    /// A program of this product.
    fn command(self, program: &str) -> Result<Command> {
        let root = self.root()?;
        let program = place::from_setup(root.join(program))?;
        if self.tree().is_none() {
            return Ok(Command::new(program));
        }
        let mut command = Command::new("chroot");
        command.arg(&root).arg(inside(&root, &program)?);
        Ok(command)
    }

    /// The server program, with `hosts` as its table of host names.
    ///
    /// A server that cannot find out whether a client's address has a name (no name server answers)
    /// never locks that address out, so names must be found as they are on a real host.
    fn server(self, hosts: &Path) -> Result<Command> {
        let inner = self.command(self.server_program())?;
        let place = self.root()?.join("etc/hosts");
        File::options()
            .create(true)
            .append(true)
            .open(&place)
            .with_context(|| format!("open {}", place.display()))?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg("mount --bind \"$0\" \"$1\"; shift; exec \"$@\"")
            .arg(hosts)
            .arg(place)
            .arg(inner.get_program())
            .args(inner.get_args());
        Ok(command)
    }

    const fn server_program(self) -> &'static str {
        if self.is_mysql() {
            "usr/sbin/mysqld"
        } else {
            "usr/sbin/mariadbd"
        }
    }

    const fn client_program(self) -> &'static str {
        if self.is_mysql() {
            "usr/bin/mysql"
        } else {
            "usr/bin/mariadb"
        }
    }

    /// Its command-line client, without options.
    pub fn client(self) -> Result<Command> {
        self.command(self.client_program())
    }

    /// Its program for administrators, without options.
    pub fn admin_client(self) -> Result<Command> {
        self.command(if self.is_mysql() {
            "usr/bin/mysqladmin"
        } else {
            "usr/bin/mariadb-admin"
        })
    }

    /// `path` as this product's programs name it.
    pub fn name_of(self, path: &Path) -> Result<PathBuf> {
        inside(&self.root()?, path)
    }
}

/// `path` as a program sees it whose root directory is `root`.
fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    let relative = path
        .strip_prefix(root)
        .with_context(|| format!("{} is not below {}", path.display(), root.display()))?;
    Ok(Path::new("/").join(relative))
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which one.
    pub product: Product,
    /// Whether it offers TLS.
    pub tls: bool,
    /// Its port on every address.
    pub port: u16,
    /// Further options, as on its command line.
    pub extra: Vec<String>,
    /// Words before its command line: a program that ends by executing what follows.
    pub launcher: Vec<String>,
}

impl Options {
    /// With TLS, on the classic port.
    #[must_use]
    pub const fn new(product: Product) -> Self {
        Self {
            product,
            tls: true,
            port: PORT,
            extra: Vec::new(),
            launcher: Vec::new(),
        }
    }

    /// Without TLS.
    #[must_use]
    pub const fn without_tls(mut self) -> Self {
        self.tls = false;
        self
    }

    /// On another port.
    #[must_use]
    pub const fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// With one more option.
    #[must_use]
    pub fn with(mut self, option: &str) -> Self {
        self.extra.push(option.to_owned());
        self
    }

    /// Started by these words, which its command line follows.
    #[must_use]
    pub fn through(mut self, launcher: &[&str]) -> Self {
        self.launcher = launcher.iter().map(|&word| word.to_owned()).collect();
        self
    }
}

/// A running server; it is killed when this is dropped.
#[derive(Debug)]
pub struct Server {
    product: Product,
    tls: bool,
    port: u16,
    child: Child,
    directory: Scratch,
}

impl Server {
    /// Starts one on `host` and waits until it answers.
    pub fn start(host: &Host, options: &Options) -> Result<Self> {
        Self::launch(host, options, None)
    }

    /// Starts one that is handed its listening socket, as a service manager does (`sd_listen_fds(3)`).
    /// `MySQL` cannot be started so.
    pub fn start_activated(host: &Host, options: &Options, listener: &TcpListener) -> Result<Self> {
        Self::launch(host, options, Some(listener))
    }

    fn launch(host: &Host, options: &Options, listener: Option<&TcpListener>) -> Result<Self> {
        let product = options.product;
        let template = template::of(product)?;
        let directory = Scratch::in_directory(&product.data_parent()?)?;
        let data = directory.join("data");
        copy(&template, &data)?;
        // MySQL keeps its UUID there, and a replica must have another than its primary.
        if product.is_mysql() {
            fs::remove_file(data.join("auto.cnf")).context("make the server forget its UUID")?;
        }
        let certs = Certs::new()?.copy_to(directory.path())?;
        give_to_server(product, directory.path())?;

        let name = |path: &Path| product.name_of(path).map(|path| path.display().to_string());
        let mut command = base_command(product, directory.path())?;
        command.args([
            format!("--port={}", options.port),
            "--bind-address=*".to_owned(),
            format!(
                "--connect-timeout={}",
                wait::here(CONNECT_TIMEOUT).as_secs()
            ),
            "--general-log=ON".to_owned(),
            format!(
                "--general-log-file={}",
                name(&directory.join("general.log"))?
            ),
            "--performance-schema=ON".to_owned(),
            "--skip-log-bin".to_owned(),
        ]);
        command.args(if product.is_mysql() {
            ["--log-error-verbosity=3", "--mysqlx=OFF"]
        } else {
            ["--log-warnings=2", "--skip-feedback"]
        });
        if options.tls {
            command.args([
                format!("--ssl-ca={}", name(&certs.ca)?),
                format!("--ssl-cert={}", name(&certs.cert)?),
                format!("--ssl-key={}", name(&certs.key)?),
            ]);
        } else {
            command.args(without_tls(product));
        }
        command.args(&options.extra);
        if let Some(program) = options.launcher.first() {
            let mut launcher = Command::new(program);
            launcher.args(options.launcher.iter().skip(1));
            command = behind(launcher, &command);
            quiet(&mut command, directory.path())?;
        }
        if let Some(listener) = listener {
            command = activated(&command, directory.path(), listener)?;
        }
        let child = host.spawn(&mut command)?;
        let mut server = Self {
            product,
            tls: options.tls,
            port: options.port,
            child,
            directory,
        };
        server.await_ready()?;
        Ok(server)
    }

    fn await_ready(&mut self) -> Result<()> {
        wait::until("the server to answer", PATIENCE * 2, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the server ended with {status}:\n{}", self.error_log()?);
            }
            // Clients that come too early take the CPU that it needs to start.
            if !self.socket().exists() {
                return Ok(None);
            }
            Ok(self.query("SELECT 1").ok().map(drop))
        })?;
        // The first login of MySQL's default plugin over plaintext needs an exchange of keys that not all
        // clients do unasked; once the account is in its cache the login is one packet.
        self.login_over_socket(USER, PASSWORD).map(drop)
    }

    /// Which one it is.
    #[must_use]
    pub const fn product(&self) -> Product {
        self.product
    }

    /// Whether it offers TLS.
    #[must_use]
    pub const fn offers_tls(&self) -> bool {
        self.tls
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its port on `ip`.
    #[must_use]
    pub const fn at(&self, ip: IpAddr) -> SocketAddr {
        SocketAddr::new(ip, self.port)
    }

    /// The login of [`OPEN_USER`], which this server takes as it stands over any transport.
    #[must_use]
    pub fn open_login(&self) -> LoginPacket {
        LoginPacket::new(OPEN_USER).plugin(self.product.default_plugin())
    }

    /// Its Unix socket, as the machine names it.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.directory.join("mysqld.sock")
    }

    /// Its general log: every login and query, with transport.
    pub fn general_log(&self) -> Result<String> {
        self.general_log_from(0)
    }

    /// Its general log behind the first `place` bytes.
    pub fn general_log_from(&self, place: u64) -> Result<String> {
        let path = self.general_log_path();
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::Start(place))?;
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            Ok(text)
        };
        let text = read().with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// How many bytes its general log has.
    pub fn general_log_len(&self) -> Result<u64> {
        let path = self.general_log_path();
        let about = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?;
        Ok(about.len())
    }

    fn general_log_path(&self) -> PathBuf {
        self.directory.join("general.log")
    }

    /// What it says about itself.
    pub fn error_log(&self) -> Result<String> {
        Ok(self.read(EARLY_LOG)? + &self.read("error.log").unwrap_or_default())
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.directory.join(name);
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Asks as `root` over the Unix socket: rows by line, columns by tab.
    pub fn query(&self, sql: &str) -> Result<String> {
        self.socket_client("root", None, sql)
    }

    /// Logs in over the Unix socket and returns who the server takes the client for.
    pub fn login_over_socket(&self, user: &str, password: &str) -> Result<String> {
        self.socket_client(user, Some(password), "SELECT CURRENT_USER()")
    }

    fn socket_client(&self, user: &str, password: Option<&str>, sql: &str) -> Result<String> {
        let socket = self.product.name_of(&self.socket())?;
        let mut command = self.product.client()?;
        command.args([
            "--no-defaults",
            "--batch",
            "--skip-column-names",
            "--user",
            user,
        ]);
        command.args(password.map(|password| format!("--password={password}")));
        if !self.product.is_mysql() {
            // From 11.4 on the client wants TLS here, too.
            command.arg("--skip-ssl");
        }
        command.arg("--socket").arg(socket).args(["--execute", sql]);
        output(&mut command)
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the server")?;
        self.child.wait().context("wait for the killed server")?;
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self
            .child
            .try_wait()
            .context("look for the server")?
            .is_none())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{error:#}");
        }
    }
}

/// Options that both a template and a server under test need: small, and on no path of the host's own.
fn base_command(product: Product, directory: &Path) -> Result<Command> {
    let name = |file: &str| -> Result<String> {
        Ok(product
            .name_of(&directory.join(file))?
            .display()
            .to_string())
    };
    let hosts = directory.join("hosts");
    fs::write(&hosts, netns::HOSTS).with_context(|| format!("write {}", hosts.display()))?;
    let mut command = product.server(&hosts)?;
    command.args([
        "--no-defaults".to_owned(),
        "--user=mysql".to_owned(),
        format!("--datadir={}", name("data")?),
        format!("--socket={}", name("mysqld.sock")?),
        format!("--pid-file={}", name("mysqld.pid")?),
        format!("--log-error={}", name("error.log")?),
        "--innodb-buffer-pool-size=32M".to_owned(),
        "--innodb-flush-log-at-trx-commit=0".to_owned(),
    ]);
    command.args(if product.is_mysql() {
        template::MYSQL_STORAGE
    } else {
        template::MARIADB_STORAGE
    });
    quiet(&mut command, directory)?;
    Ok(command)
}

/// Keeps what it says before it opens its error log, which must belong to the server's own user.
fn quiet(command: &mut Command, directory: &Path) -> Result<()> {
    let early = directory.join(EARLY_LOG);
    let early = File::create(&early).with_context(|| format!("create {}", early.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(early);
    Ok(())
}

/// `command` behind the words of `launcher`.
fn behind(mut launcher: Command, command: &Command) -> Command {
    launcher.arg(command.get_program()).args(command.get_args());
    launcher
}

/// `command` with its TCP socket and its Unix socket as descriptors 3 and 4. A server that is handed a
/// socket opens none of its own, not even the Unix socket.
fn activated(command: &Command, directory: &Path, listener: &TcpListener) -> Result<Command> {
    const SCRIPT: &str = "exec 3<&0 4<&1 </dev/null >/dev/null; \
                          export LISTEN_FDS=2 LISTEN_PID=$$; exec \"$0\" \"$@\"";
    let path = directory.join("mysqld.sock");
    let unix = UnixListener::bind(&path).with_context(|| format!("bind {}", path.display()))?;
    let mut shell = Command::new("sh");
    shell.args(["-ec", SCRIPT]);
    let mut command = behind(shell, command);
    quiet(&mut command, directory)?;
    let tcp = listener.try_clone().context("share the listening socket")?;
    command
        .stdin(OwnedFd::from(tcp))
        .stdout(OwnedFd::from(unix));
    Ok(command)
}

/// MySQL 8.0.26 deprecated `--ssl`, MySQL 9 knows only the list of versions: an empty one is none.
const fn without_tls(product: Product) -> &'static [&'static str] {
    if product.is_mysql() {
        &["--tls-version="]
    } else {
        &["--skip-ssl"]
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    output(
        Command::new("cp")
            .args(["--archive", "--sparse=always"])
            .arg(from)
            .arg(to),
    )
    .map(drop)
}

/// Each system has its own number for `mysql`.
fn give_to_server(product: Product, directory: &Path) -> Result<()> {
    let mut command = product.command("usr/bin/chown")?;
    command
        .args(["--recursive", "mysql:mysql"])
        .arg(product.name_of(directory)?);
    output(&mut command).map(drop)
}

/// Ends `child` in an orderly way by SIGTERM.
fn stop(child: &mut Child, patience: Duration) -> Result<()> {
    output(
        Command::new("kill")
            .arg("-TERM")
            .arg(child.id().to_string()),
    )?;
    let status = wait::until(
        "the server to shut down",
        patience,
        || Ok(child.try_wait()?),
    )?;
    ensure!(status.success(), "the server ended with {status}");
    Ok(())
}
