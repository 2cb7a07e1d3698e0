//! A session over the server's Unix socket that lasts until it is told to end.

use std::io::Write as _;
use std::process::{Child, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::netns::Host;
use crate::place;
use crate::server::{PASSWORD, Product, Server, USER};

/// The command-line client of the server's product, logged in as the usual user.
#[derive(Debug)]
pub struct SocketSession {
    child: Child,
}

impl SocketSession {
    /// Starts it on `host`, or where this program is, under user id `uid`; another than 0 needs a client that
    /// is not in a tree of its own.
    pub fn start(server: &Server, host: Option<&Host>, uid: u32) -> Result<Self> {
        let client = server.product().client()?;
        let mut command = place::of_user(uid);
        command.arg(client.get_program()).args(client.get_args());
        command.args([
            "--no-defaults",
            "--batch",
            "--skip-column-names",
            "--user",
            USER,
        ]);
        command.arg(format!("--password={PASSWORD}"));
        command
            .arg("--socket")
            .arg(server.product().name_of(&server.socket())?);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let child = match host {
            Some(host) => host.spawn(&mut command)?,
            None => command.spawn().context("run the client")?,
        };
        Ok(Self { child })
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Name of its program.
    #[must_use]
    pub const fn program(product: Product) -> &'static str {
        if product.is_mysql() {
            "mysql"
        } else {
            "mariadb"
        }
    }

    /// Asks one last question, and ends it.
    pub fn finish(mut self, sql: &str) -> Result<String> {
        let mut input = self
            .child
            .stdin
            .take()
            .context("the client has no standard input")?;
        writeln!(input, "{sql};").context("ask the client")?;
        drop(input);
        let mut text = String::new();
        let mut output = self
            .child
            .stdout
            .take()
            .context("the client has no standard output")?;
        std::io::Read::read_to_string(&mut output, &mut text).context("read the answer")?;
        let status = self.child.wait().context("wait for the client")?;
        ensure!(status.success(), "the client ended with {status}");
        Ok(text.trim().to_owned())
    }
}

impl Drop for SocketSession {
    /// Ended by [`SocketSession::finish`], or here when a test gives up on it.
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("cannot end a client: {error}");
        }
    }
}
