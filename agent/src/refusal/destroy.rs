//! `SOCK_DESTROY` (`include/uapi/linux/sock_diag.h`, Linux 4.5, `CONFIG_INET_DIAG_DESTROY`): the kernel resets
//! a connection of this network namespace, chosen by its addresses and its cookie.

use std::io;

use musttls_common::session::Endpoints;
use netlink_packet_core::{NLM_F_ACK, NetlinkPayload};
use netlink_packet_sock_diag::{SockDiagDestroy, SockDiagMessage};

use crate::sock_diag::{connect, end, exchange, request, unexpected};

/// Resets the connection between `endpoints` whose socket on this host has `cookie`. The server's side sees
/// `ECONNABORTED`, the client an RST.
pub fn destroy(endpoints: &Endpoints, cookie: u64) -> io::Result<()> {
    let server = end(endpoints.server_addr, endpoints.server_port);
    let client = end(endpoints.client_addr, endpoints.client_port);
    let request = request(server, client, cookie.to_ne_bytes());
    let message = SockDiagDestroy::new(SockDiagMessage::InetRequest(request));
    match exchange(&connect()?, message, NLM_F_ACK)? {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        other => Err(unexpected(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::endpoints;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    #[test]
    fn the_connection_with_the_cookie_is_reset_and_no_other() {
        for listen_at in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(listen_at).unwrap();
            let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (server, _) = listener.accept().unwrap();
            let cookie = rustix::net::sockopt::socket_cookie(server.as_fd()).unwrap();
            let endpoints = endpoints(client.local_addr().unwrap(), server.local_addr().unwrap());
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
