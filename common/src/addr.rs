//! Addresses: 16 bytes for both families.

/// Length of an IPv4 prefix in the 128-bit address space, in bits (RFC 4291 section 2.5.5.2).
pub const V4_MAPPED_PREFIX_BITS: u32 = 96;

/// The IPv4-mapped IPv6 address of `v4` (network byte order), RFC 4291 section 2.5.5.2.
#[must_use]
#[inline(always)]
pub const fn v4_mapped(v4: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d] = v4;
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v4_is_mapped_as_core_net_maps_it() {
        let v4 = core::net::Ipv4Addr::new(192, 0, 2, 7);
        assert_eq!(v4_mapped(v4.octets()), v4.to_ipv6_mapped().octets());
    }
}
