//! Payload on the third ACK of the handshake.
//!
//! Linux makes the session's socket of that segment, and gives it the payload at once. Before, only the listener is
//! there, and nobody but the kernel knows where the client's stream begins: `tcp_check_req` takes any segment that
//! covers a byte of the window, and cuts off what lies before the stream. So the server may get an end of the segment
//! only, and the gate learns it from the socket when it is made: too late to hold the payload, early enough to deny the
//! session, so that nothing follows. What passes must be harmless then: no end of it may hold a login.

use crate::stream::Reader;

/// Longest payload that is looked at, in bytes: two PROXY protocol headers of any length, or a login. What is longer is
/// held.
pub const EARLY_MAX: u32 = 512;

/// Looks for a whole packet with the sequence id of a login behind the first byte of a segment.
///
/// A server takes nothing else for a login: another sequence id is an error to it (`judge`, rule 0), and it waits for
/// the rest of a packet that is not whole. What it skips, a PROXY protocol header, lies before such a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LoginSearch {
    position: u32,
    /// Length of the segment's payload.
    len: u32,
    /// The last four bytes, the last one highest.
    last: u32,
    found: u32,
}

impl LoginSearch {
    /// For a segment with `len` bytes of payload.
    #[must_use]
    #[inline(always)]
    pub const fn new(len: u32) -> Self {
        Self {
            position: 0,
            len,
            last: 0,
            found: 0,
        }
    }

    /// Whether there is one.
    #[must_use]
    #[inline(always)]
    pub const fn has_found(&self) -> bool {
        self.found != 0
    }
}

impl Reader for LoginSearch {
    #[inline(always)]
    fn position(&self) -> u32 {
        self.position
    }

    #[inline(always)]
    fn is_done(&self) -> bool {
        self.found != 0
    }

    #[inline(always)]
    fn take(&mut self, byte: u8) {
        self.position = self.position.wrapping_add(1);
        self.last = self.last >> 8 | (byte as u32) << 24;
        let packet = self.last & 0x00ff_ffff;
        let behind = self.len.wrapping_sub(self.position);
        // Behind the first byte: four and one of them have been taken.
        if byte == 1 && self.position > 4 && packet != 0 && packet <= behind {
            self.found = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::stream::advance;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn finds(bytes: &[u8]) -> bool {
        let len = u32::try_from(bytes.len()).unwrap();
        let mut search = LoginSearch::new(len);
        let load = |at| bytes.get(usize::try_from(at).ok()?).copied();
        assert!(advance(&mut search, 0, len, EARLY_MAX + 1, load));
        search.has_found()
    }

    /// What the shortest login of the form before 4.1 looks like.
    const LOGIN: [u8; 10] = [6, 0, 0, 1, 0, 0, 0, 0, b'a', 0];

    #[test]
    fn login_at_the_front_is_none_that_an_end_holds() {
        assert!(!finds(&LOGIN));
        for before in 1..20 {
            let mut bytes = std::vec![0xee; before];
            bytes.extend(LOGIN);
            assert!(finds(&bytes), "{before}");
            bytes.pop();
            assert!(!finds(&bytes), "{before}");
        }
    }

    #[test]
    fn usual_headers_and_checks_pass() {
        let addresses = |client: &[u8], server: &[u8]| {
            let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
            header.push(if client.len() == 4 { 0x11 } else { 0x21 });
            let len = u16::try_from(2 * client.len() + 4).unwrap();
            header.extend(len.to_be_bytes());
            header.extend([client, server, &[0x9c, 0x40, 0x0c, 0xea]].concat());
            header
        };
        assert!(!finds(
            b"PROXY TCP4 192.0.2.1 198.51.100.255 56324 3306\r\n"
        ));
        assert!(!finds(&addresses(&[10, 0, 0, 1], &[10, 0, 0, 1])));
        assert!(!finds(&addresses(&[127, 0, 0, 1], &[127, 0, 0, 1])));
        assert!(!finds(&addresses(&[172, 17, 0, 1], &[192, 168, 0, 1])));
        let loopback: Vec<u8> = [&[0; 15][..], &[1]].concat();
        assert!(!finds(&addresses(&loopback, &loopback)));
        // The check of HAProxy 2.6 (`tcpcheck.c`), with the COM_QUIT behind it.
        let check = b"\x28\0\0\x01\x00\x82\0\0\0\0\0\x01\x21\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0haproxy\0\0\
                      \x01\0\0\0\x01";
        assert!(!finds(check));
    }

    proptest! {
        /// Against the definition: some end of the segment, but not all of it, begins with such a packet.
        #[test]
        fn an_end_with_a_login_is_found(
            bytes in prop::collection::vec(prop_oneof![Just(0), Just(1), Just(2), 0_u8..40], 0..60)
        ) {
            let holds = |end: &[u8]| match end {
                [a, b, c, 1, rest @ ..] => {
                    let len = u32::from_le_bytes([*a, *b, *c, 0]);
                    len != 0 && len as usize <= rest.len()
                }
                _ => false,
            };
            let wanted = (1..bytes.len()).any(|from| holds(&bytes[from..]));
            prop_assert_eq!(finds(&bytes), wanted);
        }
    }
}
