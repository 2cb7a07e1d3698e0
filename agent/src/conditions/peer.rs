//! Who is at the other end of a session on this host: the client's socket, as `sock_diag` of the kernel knows it.
//!
//! It answers for the network namespace of the agent. That the session is one of that namespace is certain, because the kernel finds
//! its server's end by the session's cookie there: addresses and ports can be the same in several.

use std::io;

use musttls_common::session::Endpoints;
use netlink_packet_core::{NetlinkPayload, Nla as _};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::inet::InetResponse;
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_sys::Socket;

use crate::sock_diag::{End, connect, end, exchange, request, unexpected};

/// `INET_DIAG_CGROUP_ID` (`include/uapi/linux/inet_diag.h`): the cgroup that the socket was made in, where the kernel has
/// `CONFIG_SOCK_CGROUP_DATA`.
const CGROUP_ID: u16 = 21;
/// `TCP_ESTABLISHED` (`include/net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
/// `INET_DIAG_NOCOOKIE`: any cookie.
const ANY_COOKIE: [u8; 8] = [0xff; 8];

/// The process that made the client's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user, in the user namespace of the agent: the host's.
    pub uid: u32,
    /// Its cgroup v2, if the kernel says it.
    pub cgroup: Option<u64>,
}

/// What is known of a client's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is this process's.
    Peer(Peer),
    /// The session is none of the agent's network namespace, or is gone.
    Elsewhere,
    /// No socket of this namespace is connected to the server's from the client's address and port: the client is behind a
    /// translation of addresses, or has closed its socket.
    Nobody,
    /// The kernel could not be asked.
    Unknown,
}

/// The client of the session with `cookie` between `endpoints`.
pub fn of(endpoints: &Endpoints, cookie: u64) -> io::Result<Found> {
    let server = end(endpoints.server_addr, endpoints.server_port);
    let client = end(endpoints.client_addr, endpoints.client_port);
    let socket = connect()?;
    let own = ask(&socket, server, client, cookie.to_ne_bytes())?;
    if own.is_none_or(|own| !is_between(&own, server, client)) {
        return Ok(Found::Elsewhere);
    }
    let other = ask(&socket, client, server, ANY_COOKIE)?;
    let Some(other) = other.filter(|other| is_between(other, client, server)) else {
        return Ok(Found::Nobody);
    };
    // A socket that nobody holds any more has no owner, which the kernel tells as user 0 (`sock_i_uid`).
    if other.header.state != ESTABLISHED || other.header.inode == 0 {
        return Ok(Found::Nobody);
    }
    Ok(Found::Peer(Peer {
        uid: other.header.uid,
        cgroup: other.nlas.iter().find_map(cgroup),
    }))
}

/// The socket that is connected from `source` to `destination`; the kernel may also name a listener.
fn ask(
    socket: &Socket,
    source: End,
    destination: End,
    cookie: [u8; 8],
) -> io::Result<Option<InetResponse>> {
    let message = SockDiagMessage::InetRequest(request(source, destination, cookie));
    match exchange(socket, message, 0)? {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
            Ok(Some(*response))
        }
        NetlinkPayload::Error(error) => {
            let error = error.to_io();
            match error.raw_os_error() {
                // No such socket, or none with this cookie.
                Some(libc::ENOENT | libc::ESTALE) => Ok(None),
                _ => Err(error),
            }
        }
        other => Err(unexpected(&other)),
    }
}

fn is_between(response: &InetResponse, source: End, destination: End) -> bool {
    let id = &response.header.socket_id;
    (id.source_address.to_canonical(), id.source_port) == source
        && (id.destination_address.to_canonical(), id.destination_port) == destination
}

fn cgroup(nla: &Nla) -> Option<u64> {
    let Nla::Other(nla) = nla else { return None };
    if nla.kind() != CGROUP_ID {
        return None;
    }
    let mut id = [0; 8];
    if nla.value_len() != id.len() {
        return None;
    }
    nla.emit_value(&mut id);
    Some(u64::from_ne_bytes(id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::endpoints;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    struct Session {
        client: TcpStream,
        _server: TcpStream,
        endpoints: Endpoints,
        cookie: u64,
    }

    fn session(listen_at: &str) -> Session {
        let listener = TcpListener::bind(listen_at).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, peer) = listener.accept().unwrap();
        let local = server.local_addr().unwrap();
        let endpoints = endpoints(peer, local);
        let cookie = rustix::net::sockopt::socket_cookie(server.as_fd()).unwrap();
        Session {
            client,
            _server: server,
            endpoints,
            cookie,
        }
    }

    #[test]
    fn a_client_of_this_host_is_known_by_its_socket() {
        for listen_at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let session = session(listen_at);
            let Found::Peer(peer) = of(&session.endpoints, session.cookie).unwrap() else {
                panic!("{listen_at}");
            };
            assert_eq!(peer.uid, rustix::process::getuid().as_raw());
            assert!(peer.cgroup.is_some(), "INET_DIAG_CGROUP_ID (Linux 5.10)");
        }
    }

    #[test]
    fn a_session_with_another_cookie_is_another_namespaces() {
        let session = session("127.0.0.1:0");
        assert_eq!(
            of(&session.endpoints, session.cookie + 1).unwrap(),
            Found::Elsewhere
        );
    }

    /// The kernel would call it root's.
    #[test]
    fn a_socket_that_was_closed_is_nobodys() {
        let session = session("127.0.0.1:0");
        drop(session.client);
        assert_eq!(
            of(&session.endpoints, session.cookie).unwrap(),
            Found::Nobody
        );
    }

    #[test]
    fn a_client_that_is_not_there_is_nobody_although_the_server_listens() {
        let session = session("127.0.0.1:0");
        let socket = connect().unwrap();
        let server = end(session.endpoints.server_addr, session.endpoints.server_port);
        let stranger = end(session.endpoints.client_addr, 1);
        let answer = ask(&socket, stranger, server, ANY_COOKIE).unwrap();
        assert!(answer.is_none_or(|answer| !is_between(&answer, stranger, server)));
    }
}
