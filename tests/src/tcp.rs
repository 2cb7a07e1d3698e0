//! A TCP of the tests' own, which keeps to the protocol as little as a test wants.
//!
//! It lives on addresses that no kernel owns: the network that [`crate::netns::Host::lend_network`] leads to
//! the client's host, where nobody answers for it. What the server sends there is read from a packet socket;
//! what goes out is written with its IP header by a raw one. It acknowledges what comes in order and sends
//! nothing twice by itself.

mod segment;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};
use rustix::net::{
    AddressFamily, Protocol, RawProtocol, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto,
    recv, sendto, socket_with,
};

pub use self::segment::{ACK, Extension, FIN, PSH, RST, SYN, Segment, Stamp, URG};
use self::segment::{Frame, Incoming};
use crate::netns::Host;
use crate::wait::{self, PATIENCE};
use crate::wire::{ErrorPacket, Greeting, Packet};

/// Ethernet types (IEEE 802), by which a packet socket chooses.
const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
/// Room for what a thousand servers' threads say at once.
const RECEIVE_BUFFER: usize = 16 << 20;
/// The largest packet, also of a virtual link that does not cut.
const LARGEST: usize = 1 << 16;

const MAXIMUM_SEGMENT_SIZE: [u8; 4] = [2, 4, 5, 0xb4];
const TIMESTAMP: u8 = 8;
const FAST_OPEN: u8 = 34;
/// First value of the timestamp clock; older than any later one, and not 0.
const CLOCK: u32 = 1_000_000;
/// How far back an old timestamp lies.
const AGES: u32 = 500_000;
/// Ports below belong to others.
const FIRST_PORT: u16 = 1024;

/// How a connection is opened.
#[derive(Clone, Debug, Default)]
pub struct Opening {
    /// Initial sequence number.
    pub isn: u32,
    /// Whether it offers timestamps.
    pub stamps: bool,
    /// Payload of the SYN.
    pub syn_payload: Vec<u8>,
    /// The Fast Open option of the SYN: empty asks for a cookie (RFC 7413 section 4.1).
    pub fast_open: Option<Vec<u8>>,
    /// The segments that complete the handshake, in place of a bare ACK.
    pub third: Option<Vec<Segment>>,
}

impl Opening {
    /// Whether no segment of the handshake carries anything.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.syn_payload.is_empty() && self.third.is_none()
    }
}

/// One connection.
#[derive(Clone, Debug)]
pub struct Connection {
    opening: Opening,
    /// Next sequence number expected from the server; none before its SYN.
    next: Option<u32>,
    acknowledged: u32,
    received: Vec<u8>,
    end: Option<End>,
    clock: u32,
    echo: Option<u32>,
    cookie: Option<Vec<u8>>,
    /// How much of the server's stream it takes, if not all.
    limit: Option<usize>,
}

/// How the server ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By FIN.
    Closed,
    /// By RST.
    Reset,
}

impl Connection {
    const fn new(opening: Opening) -> Self {
        Self {
            acknowledged: opening.isn,
            opening,
            next: None,
            received: Vec::new(),
            end: None,
            clock: CLOCK,
            echo: None,
            cookie: None,
            limit: None,
        }
    }

    /// The window that its segments advertise. There is no window scaling.
    fn window(&self) -> u16 {
        let room = |limit: usize| limit.saturating_sub(self.received.len());
        self.limit
            .and_then(|limit| u16::try_from(room(limit)).ok())
            .unwrap_or(u16::MAX)
    }

    /// Whether the server has answered the SYN.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.next.is_some()
    }

    /// What the server has sent, in order.
    #[must_use]
    pub fn received(&self) -> &[u8] {
        &self.received
    }

    /// How much of the client's stream the server's kernel has taken.
    #[must_use]
    pub const fn acknowledged(&self) -> u32 {
        self.acknowledged.wrapping_sub(self.base())
    }

    /// How the server ended it, if it did.
    #[must_use]
    pub const fn end(&self) -> Option<End> {
        self.end
    }

    /// The Fast Open cookie that the server gave.
    #[must_use]
    pub fn cookie(&self) -> Option<&[u8]> {
        self.cookie.as_deref()
    }

    /// What the server has sent, as packets; one that is not whole ends it.
    #[must_use]
    pub fn packets(&self) -> Vec<Packet> {
        let mut packets = Vec::new();
        let mut rest = self.received.as_slice();
        while let [a, b, c, sequence, tail @ ..] = rest {
            let len = usize::try_from(u32::from_le_bytes([*a, *b, *c, 0])).unwrap_or(usize::MAX);
            let Some((payload, following)) = tail.split_at_checked(len) else {
                break;
            };
            packets.push(Packet {
                sequence: *sequence,
                payload: payload.to_vec(),
            });
            rest = following;
        }
        packets
    }

    /// The greeting, if it has come.
    #[must_use]
    pub fn greeting(&self) -> Option<Greeting> {
        Greeting::read(self.packets().first()?).ok()
    }

    /// The ERR packet behind the greeting, or in place of it.
    #[must_use]
    pub fn error(&self) -> Option<ErrorPacket> {
        self.packets().iter().find_map(Packet::error)
    }

    /// Whether the packet behind the greeting is an OK packet.
    #[must_use]
    pub fn is_in(&self) -> bool {
        self.packets().get(1).is_some_and(Packet::is_ok)
    }

    /// Whether the server has gone over to TLS behind its greeting.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        let greeting = self
            .packets()
            .first()
            .map_or(0, |packet| packet.payload.len() + 4);
        matches!(self.received.get(greeting..), Some([0x16, 3, ..]))
    }

    const fn base(&self) -> u32 {
        self.opening.isn.wrapping_add(1)
    }

    fn stamps(&self, stamp: Stamp) -> Vec<u8> {
        let Some(echo) = self.echo else {
            return Vec::new();
        };
        let clock = match stamp {
            Stamp::Current => self.clock,
            Stamp::Old => self.clock.wrapping_sub(AGES),
            Stamp::Missing => return Vec::new(),
        };
        let mut option = vec![1, 1, TIMESTAMP, 10];
        option.extend(clock.to_be_bytes());
        option.extend(echo.to_be_bytes());
        option
    }

    /// Options of the SYN, padded to whole words.
    fn syn_options(&self) -> Vec<u8> {
        let mut options = MAXIMUM_SEGMENT_SIZE.to_vec();
        if self.opening.stamps {
            options.extend([1, 1, TIMESTAMP, 10]);
            options.extend(self.clock.to_be_bytes());
            options.extend([0; 4]);
        }
        if let Some(cookie) = &self.opening.fast_open {
            options.extend([FAST_OPEN, u8::try_from(cookie.len() + 2).unwrap_or(2)]);
            options.extend(cookie);
        }
        options.resize(options.len().next_multiple_of(4), 1);
        options
    }

    /// Takes a segment from the server; whether it wants an answer.
    fn take(&mut self, incoming: &Incoming) -> bool {
        if incoming.flags & RST != 0 {
            self.end = Some(End::Reset);
            return false;
        }
        if incoming.flags & ACK != 0 {
            self.acknowledged = incoming.ack;
        }
        if let Some(Some(stamp)) = incoming.option(TIMESTAMP).map(<[u8]>::first_chunk) {
            self.echo = Some(u32::from_be_bytes(*stamp));
        }
        if incoming.flags & SYN != 0 {
            let is_first = self.next.is_none();
            if is_first {
                self.next = Some(incoming.seq.wrapping_add(1));
            }
            if let Some(cookie) = incoming.option(FAST_OPEN) {
                self.cookie = Some(cookie.to_vec());
            }
            return is_first;
        }
        let Some(next) = self.next else {
            return false;
        };
        let is_in_order = incoming.seq == next;
        if is_in_order {
            let len = u32::try_from(incoming.bytes.len()).unwrap_or_default();
            self.received.extend(&incoming.bytes);
            let is_last = incoming.flags & FIN != 0;
            if is_last {
                self.end = Some(End::Closed);
            }
            self.next = Some(next.wrapping_add(len).wrapping_add(u32::from(is_last)));
        }
        !incoming.bytes.is_empty() || incoming.flags & FIN != 0
    }
}

/// All connections of one client to one server, by the client's address.
#[derive(Debug)]
pub struct Stack {
    sender: OwnedFd,
    receiver: OwnedFd,
    server: SocketAddr,
    first_local: SocketAddr,
    next_local: SocketAddr,
    connections: BTreeMap<SocketAddr, Connection>,
    buffer: Vec<u8>,
}

impl Stack {
    /// One on the network that `db` leads to `client`, for connections to `server`.
    pub fn new(client: &Host, db: &Host, server: SocketAddr) -> Result<Self> {
        let network = db.lend_network(client, server.is_ipv4())?;
        let mut stack = client.run(|| Self::here(network, server))??;
        // While the next hop is not known the kernel keeps some 270 packets, and drops the oldest.
        let local = stack.connect(Opening::default())?;
        stack.abort(local)?;
        Ok(stack)
    }

    fn here(network: IpAddr, server: SocketAddr) -> Result<Self> {
        let (family, ether) = if server.is_ipv4() {
            (AddressFamily::INET, ETH_P_IP)
        } else {
            (AddressFamily::INET6, ETH_P_IPV6)
        };
        let flags = SocketFlags::CLOEXEC;
        let sender = socket_with(family, SocketType::RAW, flags, Some(ipproto::RAW))
            .context("open a raw socket")?;
        let ether = RawProtocol::new(ether.to_be().into()).map(Protocol::from_raw);
        let receiver = socket_with(AddressFamily::PACKET, SocketType::DGRAM, flags, ether)
            .context("open a packet socket")?;
        set_socket_recv_buffer_size_force(&receiver, RECEIVE_BUFFER).context("set SO_RCVBUF")?;
        let first_local = SocketAddr::new(network, FIRST_PORT);
        Ok(Self {
            sender,
            receiver,
            server,
            first_local,
            next_local: first_local,
            connections: BTreeMap::new(),
            buffer: vec![0; LARGEST],
        })
    }

    /// Sends a SYN from an address not used before; the rest of the handshake happens in [`Self::pump`].
    pub fn open(&mut self, opening: Opening) -> Result<SocketAddr> {
        let local = self.next_local;
        self.next_local = following(local);
        let connection = Connection::new(opening);
        let frame = Frame {
            from: local,
            to: self.server,
            seq: connection.opening.isn,
            ack: 0,
            options: connection.syn_options(),
            window: u16::MAX,
        };
        let syn = Segment::at(-1, &connection.opening.syn_payload).flags(SYN);
        self.connections.insert(local, connection);
        self.write(&frame, &syn)?;
        Ok(local)
    }

    /// Opens a connection and waits for the server's SYN.
    pub fn connect(&mut self, opening: Opening) -> Result<SocketAddr> {
        let local = self.open(opening)?;
        self.await_that(local, "the server's SYN", Connection::is_open)?;
        Ok(local)
    }

    /// Opens a connection and reads the greeting.
    pub fn greeted(&mut self, opening: Opening) -> Result<SocketAddr> {
        let local = self.open(opening)?;
        self.await_that(local, "the greeting", |connection| {
            connection.greeting().is_some()
        })?;
        Ok(local)
    }

    /// Sends a segment as it is.
    pub fn send(&mut self, local: SocketAddr, segment: &Segment) -> Result<()> {
        let server = self.server;
        let connection = self.known(local)?;
        connection.clock = connection.clock.wrapping_add(1);
        let seq = connection.base().wrapping_add_signed(segment.offset);
        let frame = Frame {
            from: local,
            to: server,
            seq,
            ack: connection
                .next
                .unwrap_or_default()
                .wrapping_add(segment.ack_shift),
            options: connection.stamps(segment.stamp),
            window: connection.window(),
        };
        self.write(&frame, segment)
    }

    /// From its next segment on a connection takes `more` bytes of the server's stream; `None` for all.
    pub fn take_only(&mut self, local: SocketAddr, more: Option<usize>) -> Result<()> {
        let connection = self.known(local)?;
        connection.limit = more.map(|more| connection.received.len() + more);
        Ok(())
    }

    /// Ends a connection by RST, where the server's kernel expects the next byte, and forgets it.
    pub fn abort(&mut self, local: SocketAddr) -> Result<()> {
        let offset = self.known(local)?.acknowledged().cast_signed();
        self.send(local, &Segment::at(offset, b"").flags(RST | ACK))?;
        self.connections.remove(&local);
        Ok(())
    }

    /// A connection.
    pub fn connection(&self, local: SocketAddr) -> Result<&Connection> {
        self.connections
            .get(&local)
            .with_context(|| format!("no connection from {local}"))
    }

    fn known(&mut self, local: SocketAddr) -> Result<&mut Connection> {
        self.connections
            .get_mut(&local)
            .with_context(|| format!("no connection from {local}"))
    }

    /// Waits until a connection is as `wanted`; [`PATIENCE`] at most.
    pub fn await_that(
        &mut self,
        local: SocketAddr,
        what: &str,
        wanted: impl Fn(&Connection) -> bool,
    ) -> Result<()> {
        if self.watch(local, PATIENCE, wanted)? {
            return Ok(());
        }
        bail!("waited for {what} on {:?}", self.connection(local)?);
    }

    /// Waits until a connection is as `wanted`, for `patience` at most. Whether it is.
    pub fn watch(
        &mut self,
        local: SocketAddr,
        patience: Duration,
        wanted: impl Fn(&Connection) -> bool,
    ) -> Result<bool> {
        self.watch_until(local, Instant::now() + wait::here(patience), wanted)
    }

    /// Waits until a connection is as `wanted`, until `end` at most. Whether it is.
    pub fn watch_until(
        &mut self,
        local: SocketAddr,
        end: Instant,
        wanted: impl Fn(&Connection) -> bool,
    ) -> Result<bool> {
        loop {
            if wanted(self.connection(local)?) {
                return Ok(true);
            }
            if !self.pump_until(end)? {
                return Ok(false);
            }
        }
    }

    /// Takes what comes for that long.
    pub fn pump(&mut self, duration: Duration) -> Result<()> {
        let end = Instant::now() + wait::here(duration);
        while self.pump_until(end)? {}
        Ok(())
    }

    /// Takes one packet, if one comes before `end`.
    pub fn pump_until(&mut self, end: Instant) -> Result<bool> {
        let left = end.saturating_duration_since(Instant::now());
        let mut buffer = std::mem::take(&mut self.buffer);
        let received = receive(&self.receiver, &mut buffer, left);
        let result = match received {
            Ok(Some(len)) => self
                .take(buffer.get(..len).unwrap_or_default())
                .map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(error),
        };
        self.buffer = buffer;
        result
    }

    fn take(&mut self, packet: &[u8]) -> Result<()> {
        let Some(incoming) = Incoming::read(packet).filter(|it| it.from == self.server) else {
            return Ok(());
        };
        let Some(connection) = self.connections.get_mut(&incoming.to) else {
            return self.disown(&incoming);
        };
        if !connection.take(&incoming) {
            return Ok(());
        }
        let third = if incoming.flags & SYN == 0 {
            None
        } else {
            connection.opening.third.clone()
        };
        let offset = connection.acknowledged().cast_signed();
        let bare = || vec![Segment::at(offset, b"").flags(ACK)];
        for segment in third.unwrap_or_else(bare) {
            self.send(incoming.to, &segment)?;
        }
        Ok(())
    }

    /// Answers for a connection that is forgotten (RFC 9293 section 3.10.7.1): the server may not have taken
    /// the RST at its end, because it acknowledges late.
    fn disown(&self, incoming: &Incoming) -> Result<()> {
        let is_own = (self.first_local..self.next_local).contains(&incoming.to);
        if !is_own || incoming.flags & RST != 0 {
            return Ok(());
        }
        let frame = Frame {
            from: incoming.to,
            to: self.server,
            seq: incoming.ack,
            ack: 0,
            options: Vec::new(),
            window: u16::MAX,
        };
        self.write(&frame, &Segment::at(0, b"").flags(RST))
    }

    fn write(&self, frame: &Frame, segment: &Segment) -> Result<()> {
        // The port of a raw socket's address says nothing (`raw(7)`), and IPv6 refuses any but 0.
        let to = SocketAddr::new(self.server.ip(), 0);
        for packet in frame.packets(segment) {
            sendto(&self.sender, &packet, SendFlags::empty(), &to)
                .with_context(|| format!("send a packet of {} bytes", packet.len()))?;
        }
        Ok(())
    }
}

/// The next port, and behind the last one the next address.
fn following(local: SocketAddr) -> SocketAddr {
    if let Some(port) = local.port().checked_add(1) {
        return SocketAddr::new(local.ip(), port);
    }
    let ip = match local.ip() {
        IpAddr::V4(ip) => IpAddr::V4((ip.to_bits() + 1).into()),
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() + 1).into()),
    };
    SocketAddr::new(ip, FIRST_PORT)
}

fn receive(socket: &OwnedFd, buffer: &mut [u8], patience: Duration) -> Result<Option<usize>> {
    match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
        Ok((_, len)) => return Ok(Some(len)),
        Err(Errno::AGAIN) if !patience.is_zero() => {}
        Err(Errno::AGAIN) => return Ok(None),
        Err(error) => return Err(error).context("read the packet socket"),
    }
    set_socket_timeout(socket, Timeout::Recv, Some(patience)).context("set SO_RCVTIMEO")?;
    match recv(socket, buffer, RecvFlags::empty()) {
        Ok((_, len)) => Ok(Some(len)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(error) => Err(error).context("read the packet socket"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn incoming(seq: u32, flags: u8, bytes: &[u8]) -> Incoming {
        Incoming {
            from: "10.0.0.1:3306".parse().unwrap(),
            to: "10.0.0.2:1024".parse().unwrap(),
            seq,
            ack: 0,
            flags,
            options: Vec::new(),
            bytes: bytes.to_vec(),
        }
    }

    #[test]
    fn what_comes_in_order_is_kept_and_the_rest_is_answered() {
        let mut connection = Connection::new(Opening {
            isn: u32::MAX,
            ..Opening::default()
        });
        assert!(connection.take(&incoming(u32::MAX, SYN | ACK, b"")));
        assert_eq!(connection.acknowledged(), 0);
        assert!(connection.take(&incoming(1, ACK, b"late")));
        assert!(connection.take(&incoming(0, ACK, b"a")));
        assert_eq!(connection.received(), b"a");
        assert!(connection.take(&incoming(1, ACK | FIN, b"b")));
        assert_eq!(connection.received(), b"ab");
        assert_eq!(connection.end(), Some(End::Closed));
    }

    #[test]
    fn addresses_do_not_repeat() {
        let last = "10.0.0.1:65535".parse().unwrap();
        assert_eq!(following(last), "10.0.0.2:1024".parse().unwrap());
    }
}
