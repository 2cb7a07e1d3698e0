//! A client that keeps to the protocol, over the tests' own TCP: TLS, then a login.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use rustls::ClientConnection;

use crate::server::Server;
use crate::tcp::{Extension, Opening, Segment, Stack};
use crate::tls::TlsClient;
use crate::wait::PATIENCE;
use crate::wire::ssl_request;

/// Below the maximum segment size of an Ethernet.
const SEGMENT: usize = 1400;

struct Session<'a> {
    stack: &'a mut Stack,
    local: SocketAddr,
    tls: ClientConnection,
    /// How much of the own stream has been sent.
    sent: usize,
    /// How much of the server's stream TLS has taken.
    taken: usize,
    /// IPv6 extension headers of each segment.
    extensions: &'a [Extension],
}

/// Logs in over TLS, and leaves.
pub fn log_in(stack: &mut Stack, server: &Server, isn: u32) -> Result<()> {
    log_in_behind(&[], stack, server, isn)
}

/// The same, with IPv6 extension headers in each segment.
pub fn log_in_behind(
    extensions: &[Extension],
    stack: &mut Stack,
    server: &Server,
    isn: u32,
) -> Result<()> {
    let opening = Opening {
        isn,
        stamps: true,
        ..Opening::default()
    };
    let local = stack.greeted(opening)?;
    let tls = TlsClient::new()?.connection()?;
    let taken = stack.connection(local)?.received().len();
    let mut session = Session {
        stack,
        local,
        tls,
        sent: 0,
        taken,
        extensions,
    };
    session.send(&ssl_request())?;
    session
        .tls
        .writer()
        .write_all(&server.open_login().packet_over_tls())
        .context("write the login")?;
    let answer = session.answer()?;
    ensure!(answer.get(4) == Some(&0), "no OK packet: {answer:?}");
    stack.abort(local)
}

impl Session<'_> {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(SEGMENT) {
            let offset = i32::try_from(self.sent).context("a long session")?;
            let segment = Segment::at(offset, chunk).extensions(self.extensions);
            self.stack.send(self.local, &segment)?;
            self.sent += chunk.len();
        }
        Ok(())
    }

    /// Goes on with TLS until the server has said something in it.
    fn answer(&mut self) -> Result<Vec<u8>> {
        loop {
            while self.tls.wants_write() {
                let mut bytes = Vec::new();
                self.tls.write_tls(&mut bytes).context("write TLS")?;
                self.send(&bytes)?;
            }
            let mut answer = vec![0; 64];
            match self.tls.reader().read(&mut answer) {
                Ok(len) => {
                    answer.truncate(len);
                    return Ok(answer);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("read the answer to the login"),
            }
            let taken = self.taken;
            let has_more = self.stack.watch(self.local, PATIENCE, |it| {
                it.received().len() > taken || it.end().is_some()
            })?;
            let connection = self.stack.connection(self.local)?;
            let mut new = connection.received().get(taken..).unwrap_or_default();
            ensure!(has_more && !new.is_empty(), "TLS broke off: {connection:?}");
            self.taken += self.tls.read_tls(&mut new).context("read TLS")?;
            self.tls.process_new_packets().context("take TLS")?;
        }
    }
}
