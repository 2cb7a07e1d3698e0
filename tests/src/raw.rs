//! A client that speaks the protocol byte by byte, and can misbehave at will.

use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{SendFlags, send};
use rustls::{ClientConnection, HandshakeKind, StreamOwned};

use crate::client::Session;
use crate::netns::Host;
use crate::tls::{TlsClient, TlsStream};
use crate::wait::{self, PATIENCE};
use crate::wire::{COM_QUIT, ErrorPacket, Greeting, Packet, query};

/// A connection.
#[derive(Debug)]
pub struct Raw<S = TcpStream> {
    stream: S,
}

/// What came instead of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// A packet.
    Packet(Packet),
    /// The other side closed in order.
    Closed,
    /// The other side reset the connection.
    Reset,
    /// Nothing, for as long as was waited.
    Silence,
}

impl Next {
    /// The ERR packet it is, if it is one.
    #[must_use]
    pub fn error(&self) -> Option<ErrorPacket> {
        match self {
            Self::Packet(packet) => packet.error(),
            Self::Closed | Self::Reset | Self::Silence => None,
        }
    }

    /// The number of that error.
    #[must_use]
    pub fn error_number(&self) -> Option<u16> {
        self.error().map(|error| error.number)
    }

    /// Whether the server let the client in.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        matches!(self, Self::Packet(packet) if packet.is_ok())
    }
}

impl Raw {
    /// Connects from `host` and reads nothing yet. Each write is a segment of its own.
    pub fn connect(host: &Host, to: SocketAddr) -> Result<Self> {
        host.run(|| Self::connect_here(to))?
    }

    /// Connects from where this program is.
    pub fn connect_here(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, wait::here(PATIENCE))
            .with_context(|| format!("connect to {to}"))?;
        Self::over(stream)
    }

    /// Over a connection made elsewhere.
    pub fn over(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true).context("set TCP_NODELAY")?;
        let raw = Self { stream };
        raw.set_patience(PATIENCE)?;
        Ok(raw)
    }

    /// Connects and reads the greeting.
    pub fn greeted(host: &Host, to: SocketAddr) -> Result<(Self, Greeting)> {
        let mut raw = Self::connect(host, to)?;
        let greeting = raw.greeting()?;
        Ok((raw, greeting))
    }

    /// This side's address.
    pub fn local(&self) -> Result<SocketAddr> {
        self.stream.local_addr().context("find the own address")
    }

    /// Sends one byte a segment.
    pub fn send_singly(&mut self, bytes: &[u8]) -> Result<()> {
        for byte in bytes {
            self.send(std::slice::from_ref(byte))?;
        }
        Ok(())
    }

    /// Sends one byte as urgent data.
    pub fn send_urgent(&mut self, byte: u8) -> Result<()> {
        let sent = send(&self.stream, &[byte], SendFlags::OOB).context("send an urgent byte")?;
        ensure!(sent == 1, "sent {sent} urgent bytes");
        Ok(())
    }

    /// Says that nothing more comes.
    pub fn close_writing(&self) -> Result<()> {
        self.stream
            .shutdown(std::net::Shutdown::Write)
            .context("close for writing")
    }

    /// Leaves with a reset in place of an orderly end.
    pub fn reset(self) -> Result<()> {
        set_socket_linger(&self.stream, Some(Duration::ZERO)).context("set SO_LINGER")
    }

    /// Reads a packet, or how the connection ended; [`Next::Silence`] after `patience`.
    pub fn receive_within(&mut self, patience: Duration) -> Result<Next> {
        self.set_patience(patience)?;
        let next = self.receive();
        self.set_patience(PATIENCE)?;
        next
    }

    /// Waits no longer for what is read from here on.
    pub fn set_patience(&self, patience: Duration) -> Result<()> {
        self.stream
            .set_read_timeout(Some(wait::here(patience)))
            .context("set a time limit")
    }

    /// Reads as many bytes as `buffer` holds.
    pub fn read_exactly(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.stream
            .read_exact(buffer)
            .context("read from the server")
    }

    /// Reads until the connection ends: all bytes, and whether it ended by a reset.
    pub fn read_to_end(&mut self) -> Result<(Vec<u8>, Next)> {
        let mut all = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok((all, Next::Closed)),
                Ok(length) => all.extend(chunk.iter().take(length)),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                    return Ok((all, Next::Reset));
                }
                Err(error) if is_timeout(&error) => return Ok((all, Next::Silence)),
                Err(error) => return Err(error).context("read from the server"),
            }
        }
    }

    /// Goes over to TLS, whatever the server's certificate says.
    pub fn into_tls(self) -> Result<Raw<TlsStream>> {
        self.into_tls_of(&TlsClient::new()?)
    }

    /// Goes over to TLS as `client` does.
    pub fn into_tls_of(mut self, client: &TlsClient) -> Result<Raw<TlsStream>> {
        let (connection, hello) = client.begin()?;
        self.send(&hello)?;
        self.finish_tls(connection)
    }

    /// Goes over to TLS behind a `ClientHello` that was sent.
    pub fn finish_tls(self, connection: ClientConnection) -> Result<Raw<TlsStream>> {
        let mut stream = StreamOwned::new(connection, self.stream);
        while stream.conn.is_handshaking() {
            stream
                .conn
                .complete_io(&mut stream.sock)
                .context("TLS handshake")?;
        }
        Ok(Raw { stream })
    }
}

impl Raw<TlsStream> {
    /// This side's address.
    pub fn local(&self) -> Result<SocketAddr> {
        self.stream
            .sock
            .local_addr()
            .context("find the own address")
    }

    /// Which kind of handshake it was.
    #[must_use]
    pub fn handshake(&self) -> Option<HandshakeKind> {
        self.stream.conn.handshake_kind()
    }

    /// What the server says of the session's TLS.
    pub fn session(&mut self) -> Result<Session> {
        let rows =
            self.rows("SHOW SESSION STATUS WHERE Variable_name IN ('Ssl_version', 'Ssl_cipher')")?;
        let value = |name: &str| {
            rows.iter().find_map(|row| match row.as_slice() {
                [key, value] if key == name => Some(value.clone()),
                _ => None,
            })
        };
        Ok(Session {
            tls_version: value("Ssl_version").context("no Ssl_version")?,
            cipher: value("Ssl_cipher").context("no Ssl_cipher")?,
        })
    }

    /// Leaves as a client does, and waits for the server to close.
    pub fn quit(mut self) -> Result<()> {
        self.send(&COM_QUIT)?;
        // Servers differ in whether they say goodbye in TLS first.
        let end = self.receive()?;
        ensure!(matches!(end, Next::Closed | Next::Reset), "{end:?}");
        Ok(())
    }
}

impl<S: std::io::Read + std::io::Write> Raw<S> {
    /// Sends `bytes` at once.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("send to the server")?;
        self.stream.flush().context("send to the server")
    }

    /// Reads a packet, or how the connection ended.
    pub fn receive(&mut self) -> Result<Next> {
        let mut header = [0; 4];
        if let Some(end) = self.fill(&mut header)? {
            return Ok(end);
        }
        let [a, b, c, sequence] = header;
        let mut payload = vec![0; usize::try_from(u32::from_le_bytes([a, b, c, 0]))?];
        match self.fill(&mut payload)? {
            None => Ok(Next::Packet(Packet { sequence, payload })),
            Some(end) => bail!("{end:?} within a packet of {} bytes", payload.len()),
        }
    }

    /// Fills `buffer`, or says how the connection ended.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<Option<Next>> {
        match self.stream.read_exact(buffer) {
            Ok(()) => Ok(None),
            Err(error) => match error.kind() {
                ErrorKind::UnexpectedEof => Ok(Some(Next::Closed)),
                ErrorKind::ConnectionReset => Ok(Some(Next::Reset)),
                _ if is_timeout(&error) => Ok(Some(Next::Silence)),
                _ => Err(error).context("read from the server"),
            },
        }
    }

    /// Reads the greeting.
    pub fn greeting(&mut self) -> Result<Greeting> {
        match self.receive()? {
            Next::Packet(packet) => Greeting::read(&packet),
            other => bail!("no greeting: {other:?}"),
        }
    }

    /// Sends a query and reads the packets of its answer: number of columns, columns, rows.
    pub fn ask(&mut self, sql: &str) -> Result<Vec<Packet>> {
        self.send(&query(sql))?;
        let mut packets = Vec::new();
        // Before and behind the rows stands an EOF packet; an ERR packet ends the answer at once.
        let mut ends = 0;
        while ends < 2 {
            let Next::Packet(packet) = self.receive()? else {
                bail!("the answer to `{sql}` broke off after {packets:?}");
            };
            if packet.error().is_some() {
                ends = 2;
            } else if packet.payload.first() == Some(&0xfe) && packet.payload.len() < 9 {
                ends += 1;
            }
            packets.push(packet);
        }
        Ok(packets)
    }

    /// Sends a query and reads the rows of its answer.
    pub fn rows(&mut self, sql: &str) -> Result<Vec<Vec<String>>> {
        let packets = self.ask(sql)?;
        if let Some(error) = packets.iter().find_map(Packet::error) {
            bail!("`{sql}`: {error:?}");
        }
        let columns = packets
            .first()
            .and_then(|packet| packet.payload.first().copied())
            .context("no number of columns")?;
        // Number of columns, columns, EOF, rows, EOF.
        packets
            .iter()
            .skip(usize::from(columns) + 2)
            .rev()
            .skip(1)
            .rev()
            .map(Packet::row)
            .collect()
    }
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
