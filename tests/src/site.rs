//! What most tests begin with: namespaces, and a server in one of them.

use anyhow::{Result, ensure};

use crate::client::{Client, Login, Tls};
use crate::netns::Net;
use crate::raw::Raw;
use crate::server::{Options, Server};
use crate::tls::TlsStream;
use crate::wire::ssl_request;

/// A server, and clients beside it.
#[derive(Debug)]
pub struct Site {
    /// The server.
    pub server: Server,
    /// Where it and its clients are.
    pub net: Net,
}

impl Site {
    /// Namespaces of their own, and a server started with `options`.
    pub fn new(options: &Options) -> Result<Self> {
        let net = Net::new()?;
        let server = Server::start(&net.db, options)?;
        Ok(Self { server, net })
    }

    /// A plaintext login of a user without a password, sent.
    pub fn plaintext(&self) -> Result<Raw> {
        let at = self.server.at(self.net.app.db_v4());
        let (mut raw, _) = Raw::greeted(&self.net.app, at)?;
        raw.send(&self.server.open_login().packet_41())?;
        Ok(raw)
    }

    /// A session with TLS, logged in.
    pub fn tls(&self) -> Result<Raw<TlsStream>> {
        let at = self.server.at(self.net.app.db_v4());
        let (mut raw, _) = Raw::greeted(&self.net.app, at)?;
        raw.send(&ssl_request())?;
        let mut raw = raw.into_tls()?;
        raw.send(&self.server.open_login().packet_over_tls())?;
        let answer = raw.receive()?;
        ensure!(answer.is_ok(), "{answer:?}");
        Ok(raw)
    }

    /// Logs in with TLS; it is an error if that is refused.
    pub fn tls_passes(&self) -> Result<()> {
        let login = Login::new(&self.server, &self.net.app, Tls::Required);
        let answer = Client::PyMySql.login(&self.net.app, &login)?;
        ensure!(answer.is_in(), "{}", answer.text);
        Ok(())
    }
}
