//! A client that keeps to the protocol, over the tests' own TCP: TLS, then a login.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::ClientConnection;

use crate::server::Server;
use crate::tcp::{Extension, Opening, Segment, Stack};
use crate::tls::TlsClient;
use crate::wait::PATIENCE;
use crate::wire::ssl_request;

/// Below the maximum segment size of an Ethernet.
pub const SEGMENT: usize = 1400;
/// Where a stream begins whose place does not matter.
const ISN: u32 = 0x1234_5678;
/// How long the server's kernel has for each segment.
const A_MOMENT: Duration = Duration::from_millis(2);

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
    let tls = TlsClient::new()?.connection()?;
    let mut session = Session::greeted(stack, isn, tls)?;
    session.extensions = extensions;
    session.send(&ssl_request())?;
    session.finish(server)
}

/// Logs in over TLS, with the stream up to the end of the `ClientHello` in segments that arrive in this order: each of
/// `head`, then the `ClientHello`, cut. No segment is sent twice.
pub fn log_in_out_of_order(
    stack: &mut Stack,
    server: &Server,
    client: &TlsClient,
    head: &[Vec<u8>],
    order: &[usize],
) -> Result<()> {
    let (tls, hello) = client.begin()?;
    let mut session = Session::greeted(stack, ISN, tls)?;
    let mut segments = Vec::new();
    let head = head.iter().map(Vec::as_slice);
    for bytes in head.chain(hello.chunks(SEGMENT)) {
        let offset = i32::try_from(session.sent).context("a long session")?;
        segments.push(Segment::at(offset, bytes));
        session.sent += bytes.len();
    }
    ensure!(order.len() == segments.len(), "{} segments", segments.len());
    for number in order {
        let segment = segments.get(*number).context("no such segment")?;
        session.stack.send(session.local, segment)?;
        session.stack.pump(A_MOMENT)?;
    }
    session.finish(server)
}

impl<'a> Session<'a> {
    fn greeted(stack: &'a mut Stack, isn: u32, tls: ClientConnection) -> Result<Self> {
        let opening = Opening {
            isn,
            stamps: true,
            ..Opening::default()
        };
        let local = stack.greeted(opening)?;
        let taken = stack.connection(local)?.received().len();
        Ok(Self {
            stack,
            local,
            tls,
            sent: 0,
            taken,
            extensions: &[],
        })
    }

    /// Logs in behind the request for TLS, and leaves.
    fn finish(mut self, server: &Server) -> Result<()> {
        self.tls
            .writer()
            .write_all(&server.open_login().packet_over_tls())
            .context("write the login")?;
        let answer = self.answer()?;
        ensure!(answer.get(4) == Some(&0), "no OK packet: {answer:?}");
        self.stack.abort(self.local)
    }

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
