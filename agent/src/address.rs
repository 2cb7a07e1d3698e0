//! Addresses as the gate has them, and back: 16 bytes, IPv4 as IPv4-mapped.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use musttls_common::addr::v4_mapped;
use musttls_common::session::Endpoints;

/// The gate's bytes of an address.
#[must_use]
pub const fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => v4_mapped(address.octets()),
        IpAddr::V6(address) => address.octets(),
    }
}

/// The address that the gate has as these bytes: of IPv4 where it is IPv4-mapped.
#[must_use]
pub fn from_octets(octets: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(octets).to_canonical()
}

/// Both ends of a session of this client and this server.
#[must_use]
pub fn endpoints(client: SocketAddr, server: SocketAddr) -> Endpoints {
    Endpoints {
        client_addr: octets(client.ip()),
        server_addr: octets(server.ip()),
        client_port: client.port(),
        server_port: server.port(),
        ..Endpoints::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_come_back_and_ipv4_is_one_of_sixteen_bytes() {
        for address in ["192.0.2.7", "2001:db8::7", "::", "255.255.255.255"] {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(from_octets(octets(address)), address);
        }
        let mapped = "::ffff:192.0.2.7".parse().unwrap();
        assert_eq!(octets("192.0.2.7".parse().unwrap()), octets(mapped));
    }
}
