//! The server's stream in X Protocol, up to its TLS flight.

use musttls_common::mysqlx::ServerFrames;
use musttls_common::stream::Reader as _;

use crate::cuts;

/// Asserts what a reader promises, and that the flight and an answer to a login are found where a plain reading of
/// the frames finds them.
pub fn target(stream: &[u8]) {
    let reader = cuts::check(ServerFrames::default(), 0, stream, |reader| {
        reader.is_done() || reader.answers_login()
    });
    let (flight, answers) = read(stream);
    assert_eq!(reader.flight(), flight, "{reader:?}");
    assert_eq!(reader.answers_login(), answers, "{reader:?}");
}

/// Frame by frame: where the TLS flight begins, and whether a frame before it answered a login.
fn read(stream: &[u8]) -> (Option<u32>, bool) {
    let mut at = 0;
    let mut answers = false;
    loop {
        let rest = stream.get(at..).unwrap_or_default();
        if let [0x16, 3, 1..=4, ..] = rest {
            return (u32::try_from(at).ok(), answers);
        }
        let Some(&[a, b, c, d, kind]) = rest.first_chunk() else {
            return (None, answers);
        };
        let length = u32::from_le_bytes([a, b, c, d]);
        if !ServerFrames::LENGTHS.contains(&length) {
            return (None, answers);
        }
        answers |= matches!(kind, 3 | 4);
        at += 4 + usize::try_from(length).unwrap_or(usize::MAX);
    }
}
