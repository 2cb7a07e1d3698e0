//! The client's first TLS flight, behind its request for TLS.

use musttls_common::floor::ClientHelloReader;
use musttls_common::mysql::HEADER_LEN;

use crate::cuts;

/// Asserts what a reader promises, and that the offered version is that of a plain reading of the record.
pub fn target(stream: &[u8]) {
    let Some((flight, start)) = behind_request(stream) else {
        return;
    };
    let reader = cuts::check(
        ClientHelloReader::at(start),
        start,
        flight,
        ClientHelloReader::is_whole,
    );
    if reader.is_whole() {
        assert_eq!(Some(reader.version()), offered(flight), "{reader:?}");
    }
}

/// What follows the first packet, and where that begins.
fn behind_request(stream: &[u8]) -> Option<(&[u8], u32)> {
    let [a, b, c, _, ..] = *stream else {
        return None;
    };
    let start = HEADER_LEN + u32::from_le_bytes([a, b, c, 0]);
    Some((stream.get(usize::try_from(start).ok()?..)?, start))
}

/// `ClientHello` field by field (RFC 8446 section 4.1.2): the best version offered, if all of it is there.
fn offered(flight: &[u8]) -> Option<u16> {
    let [0x16, 3, _, _, _, 1, 0, ..] = flight else {
        return None;
    };
    let legacy = number(flight, 9)?;
    let suites = 44 + usize::from(*flight.get(43)?);
    let compressions = suites + 2 + usize::from(number(flight, suites)?).next_multiple_of(2);
    let list = compressions + 1 + usize::from(*flight.get(compressions)?);
    let record_end = 5 + usize::from(number(flight, 3)?);
    if list >= record_end {
        return Some(legacy);
    }
    let end = list + 2 + usize::from(number(flight, list)?);
    let mut at = list + 2;
    while at < end {
        let kind = number(flight, at)?;
        let length = usize::from(number(flight, at + 2)?);
        if kind == 0x2b {
            let versions = at + 5..at + 5 + usize::from(*flight.get(at + 4)?);
            let all: Option<Vec<_>> = versions.step_by(2).map(|at| number(flight, at)).collect();
            let known = all?
                .into_iter()
                .filter(|version| (0x0301..=0x0304).contains(version));
            return Some(known.max().unwrap_or(0));
        }
        at += 4 + length;
    }
    Some(legacy)
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u16::from_be_bytes)
}
