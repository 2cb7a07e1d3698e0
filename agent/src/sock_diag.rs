//! `sock_diag(7)`: questions and commands about one TCP connection of the agent's network namespace.

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

use crate::address::from_octets;

/// Address and port of one end of a connection.
pub type End = (IpAddr, u16);

/// The end at an address of the gate, IPv4 as IPv4-mapped there.
#[must_use]
pub fn end(address: [u8; 16], port: u16) -> End {
    (from_octets(address), port)
}

/// Names the socket that is connected from `source` to `destination` and has this cookie.
#[must_use]
pub const fn request(source: End, destination: End, cookie: [u8; 8]) -> InetRequest {
    let family = if source.0.is_ipv4() && destination.0.is_ipv4() {
        AF_INET
    } else {
        AF_INET6
    };
    InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: source.1,
            destination_port: destination.1,
            source_address: source.0,
            destination_address: destination.0,
            interface_id: 0,
            cookie,
        },
    }
}

/// A socket to ask by.
pub fn connect() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Sends a message, with `flags` beside `NLM_F_REQUEST`, and returns what the kernel answers.
pub fn exchange<M: NetlinkSerializable>(
    socket: &Socket,
    message: impl Into<NetlinkPayload<M>>,
    flags: u16,
) -> io::Result<NetlinkPayload<SockDiagMessage>> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    let mut packet = NetlinkMessage::new(header, message.into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    NetlinkMessage::<SockDiagMessage>::deserialize(&answer)
        .map(|answer| answer.payload)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

/// The error of an answer that is none to what was sent.
#[must_use]
pub fn unexpected(answer: &NetlinkPayload<SockDiagMessage>) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("netlink answered {answer:?}"),
    )
}
