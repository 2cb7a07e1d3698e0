//! The server's first TLS flight.

use musttls_common::stream::{Reader as _, advance};
use musttls_common::tls::{SERVER_HELLO_STEPS, ServerHelloReader};

use crate::cuts;

/// Where the flight begins: behind a greeting.
const START: u32 = 100;

/// Asserts what a reader promises, and that proof, version and cipher suite are those of a plain reading of the record.
pub fn target(flight: &[u8]) {
    let reader = cuts::check(ServerHelloReader::at(START), START, flight, |reader| {
        reader.is_proof() || reader.is_not_tls()
    });
    assert!(!(reader.is_proof() && reader.is_not_tls()), "{reader:?}");
    let head = flight.get(..6.min(flight.len())).unwrap_or_default();
    let is_hello = matches!(head, [0x16, 3, 0..=4, _, _, 2]);
    assert_eq!(reader.is_proof(), is_hello, "{reader:?}");
    let may_be_hello = head
        .iter()
        .zip([0x16..=0x16, 3..=3, 0..=4, 0..=0xff, 0..=0xff, 2..=2])
        .all(|(byte, may_be)| may_be.contains(byte));
    assert_eq!(reader.is_not_tls(), !may_be_hello, "{reader:?}");
    if let Some(hello) = read(flight) {
        assert_eq!((reader.version(), reader.cipher()), hello);
        assert!(reader.is_done(), "{reader:?}");
        // A hello as servers send it, with eight extensions at most, is read in the steps that the gate has.
        let mut bounded = ServerHelloReader::at(START);
        let end = START + u32::try_from(flight.len()).unwrap_or_default();
        let load = |at: u32| flight.get(usize::try_from(at - START).ok()?).copied();
        let is_enough = advance(&mut bounded, START, end, SERVER_HELLO_STEPS, load);
        assert!(is_enough || extensions(flight).map_or(0, Iterator::count) > 8);
    }
}

/// `ServerHello` field by field (RFC 8446 section 4.1.3): version and cipher suite, if all of it is there.
fn read(flight: &[u8]) -> Option<(u16, u16)> {
    let [0x16, 3, 0..=4, _, _, 2, ..] = flight else {
        return None;
    };
    let mut version = number(flight, 9)?;
    let suite = 44 + usize::from(*flight.get(43)?);
    let cipher = number(flight, suite)?;
    if suite + 3 >= hello_end(flight)? {
        // No extensions: what follows is another message.
        return Some((version, cipher));
    }
    let all: Option<Vec<_>> = extensions(flight)?.collect();
    for (kind, content) in all? {
        if kind == 0x2b {
            version = number(content, 0)?;
            break;
        }
    }
    Some((version, cipher))
}

/// Where the message ends, by its own length; the highest byte of that counts as zero, since a record holds less.
fn hello_end(flight: &[u8]) -> Option<usize> {
    Some(9 + usize::from(number(flight, 7)?))
}

/// Type and content of each extension; `None` where one is cut off. The last may reach behind the end of the
/// list: what a server's own kernel sends is not checked for that.
fn extensions(flight: &[u8]) -> Option<impl Iterator<Item = Option<(u16, &[u8])>>> {
    let list = 47 + usize::from(*flight.get(43)?);
    let end = list + 2 + usize::from(number(flight, list)?);
    let mut at = list + 2;
    Some(std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let extension = || {
            let length = usize::from(number(flight, at + 2)?);
            let content = flight.get(at + 4..at + 4 + length)?;
            Some((number(flight, at)?, content))
        };
        let extension = extension();
        at = extension.map_or(end, |(_, content)| at + 4 + content.len());
        Some(extension)
    }))
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u16::from_be_bytes)
}
