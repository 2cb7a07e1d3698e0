//! `SOCK_DESTROY` (`include/uapi/linux/sock_diag.h`, Linux 4.5, `CONFIG_INET_DIAG_DESTROY`): the kernel resets
//! a connection of this network namespace, chosen by its addresses and its cookie.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use musttls_common::session::Endpoints;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};

/// Resets the connection between `endpoints` whose socket on this host has `cookie`. The server's side sees
/// `ECONNABORTED`, the client an RST.
pub fn destroy(endpoints: &Endpoints, cookie: u64) -> io::Result<()> {
    let server = Ipv6Addr::from(endpoints.server_addr).to_canonical();
    let client = Ipv6Addr::from(endpoints.client_addr).to_canonical();
    let family = if matches!((server, client), (IpAddr::V4(_), IpAddr::V4(_))) {
        AF_INET
    } else {
        AF_INET6
    };
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: endpoints.server_port,
            destination_port: endpoints.client_port,
            source_address: server,
            destination_address: client,
            interface_id: 0,
            cookie: cookie.to_ne_bytes(),
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
    let mut packet = NetlinkMessage::new(header, message.into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);

    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("netlink answered {other:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr as Address, TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    fn octets(address: Address) -> [u8; 16] {
        match address.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }

    #[test]
    fn the_connection_with_the_cookie_is_reset_and_no_other() {
        for listen_at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(listen_at).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let cookie = rustix::net::sockopt::socket_cookie(server.as_fd()).unwrap();
            let endpoints = Endpoints {
                client_addr: octets(client.local_addr().unwrap()),
                server_addr: octets(server.local_addr().unwrap()),
                client_port: client.local_addr().unwrap().port(),
                server_port: server.local_addr().unwrap().port(),
                ..Endpoints::default()
            };
            assert!(
                destroy(&endpoints, cookie + 1).is_err(),
                "another cookie must not match"
            );
            assert!(server.take_error().unwrap().is_none());
            destroy(&endpoints, cookie).expect("SOCK_DESTROY (needs CAP_NET_ADMIN)");
            let error = server.take_error().unwrap().map(|error| error.kind());
            assert_eq!(error, Some(io::ErrorKind::ConnectionAborted));
        }
    }
}
