//! PROXY protocol headers in front of the client's stream.

use std::net::{IpAddr, Ipv6Addr};

use musttls_common::proxy::{HeaderReader, Parsed, WINDOW};

/// Asserts that a header ends where every server says it does, that no beginning of it is taken for something else, that
/// what follows does not matter, and that the client is the one a plain reading finds.
pub fn target(stream: &[u8]) {
    let (parsed, reader) = read(stream);
    if parsed != Parsed::Header {
        return;
    }
    let len = usize::from(reader.header_len());
    let header = stream.get(..len).unwrap_or_default();
    assert_eq!(header.len(), len, "it is whole");
    assert_eq!(end(header), Some(len), "{header:?}");
    for cut in 1..len {
        let (parsed, _) = read(header.get(..cut).unwrap_or_default());
        assert_eq!(parsed, Parsed::Cut, "{cut} of {header:?}");
    }
    let (parsed, alone) = read(header);
    assert_eq!((parsed, alone), (Parsed::Header, reader), "{header:?}");
    let named = reader.proxied().has_address().then(|| {
        let address = Ipv6Addr::from(reader.proxied().addr).to_canonical();
        (address, reader.proxied().port)
    });
    if header.starts_with(b"PROXY TCP") {
        assert_eq!(named, client(header), "{header:?}");
    }
}

fn read(stream: &[u8]) -> (Parsed, HeaderReader) {
    let mut window = [0; WINDOW];
    for (to, from) in window.iter_mut().zip(stream) {
        *to = *from;
    }
    let mut reader = HeaderReader::default();
    let available = u32::try_from(stream.len()).unwrap_or(u32::MAX);
    let parsed = reader.read(&window, available, |_| {});
    (parsed, reader)
}

/// Where MariaDB and Percona Server see the end of a header.
fn end(header: &[u8]) -> Option<usize> {
    if header.starts_with(b"PROXY ") {
        let first = |wanted: u8| header.iter().position(|&byte| byte == wanted);
        let (cr, lf) = (first(b'\r')?, first(b'\n')?);
        return (cr + 1 == lf && lf < 107).then_some(lf + 1);
    }
    let [high, low] = *header.get(14..)?.first_chunk()?;
    let len = 16 + usize::from(u16::from_be_bytes([high, low]));
    (header.starts_with(b"\r\n\r\n\0\r\nQUIT\n") && len <= 256).then_some(len)
}

/// The client that a line names: address and port are its third and fifth word.
fn client(line: &[u8]) -> Option<(IpAddr, u16)> {
    let text = std::str::from_utf8(line).ok()?;
    let mut words = text.trim_end().split(' ');
    let address: IpAddr = words.nth(2)?.parse().ok()?;
    // A port is any number of digits; as the server does, its low 16 bits are taken.
    let digits = words.nth(1)?.bytes();
    let port = digits.fold(0_u16, |port, digit| {
        port.wrapping_mul(10)
            .wrapping_add(u16::from(digit.wrapping_sub(b'0')))
    });
    Some((address.to_canonical(), port))
}
