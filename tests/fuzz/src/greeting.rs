//! The server's first packet.

use musttls_common::mysql::{CLIENT_SSL, GREETING_STEPS, Greeting, GreetingReader};
use musttls_common::stream::{Reader as _, advance};

use crate::cuts;

/// Asserts what a reader promises, and that the answer is that of a plain reading of the packet.
pub fn target(stream: &[u8]) {
    let reader = cuts::check(GreetingReader::default(), 0, stream, |reader| {
        reader.greeting() != Greeting::Unknown
    });
    let greeting = reader.greeting();
    assert_eq!(greeting, read(stream), "{reader:?}");
    if matches!(greeting, Greeting::WithTls | Greeting::WithoutTls) {
        assert_eq!(reader.packet_len(), packet_len(stream));
        let version = version(stream).unwrap_or_default();
        let names_mariadb = version.windows(7).any(|word| word == b"MariaDB");
        assert_eq!(reader.is_mariadb(), names_mariadb, "{version:?}");
    } else {
        assert_eq!(reader.packet_len(), None);
    }
    given_up(stream);
}

/// The gate reads no more than so many bytes of a segment, and then takes TLS for not offered.
fn given_up(stream: &[u8]) {
    let mut reader = GreetingReader::default();
    let end = u32::try_from(stream.len()).unwrap_or(u32::MAX);
    let load = |at| stream.get(usize::try_from(at).ok()?).copied();
    let is_enough = advance(&mut reader, 0, end, GREETING_STEPS, load);
    let long = version(stream).is_none_or(|version| version.len() > 87);
    assert!(is_enough || long, "a greeting as servers send it took more");
    if !is_enough {
        reader.give_up();
        assert_eq!(reader.greeting(), Greeting::WithoutTls);
        assert!(reader.is_done());
    }
}

/// `Protocol::HandshakeV10` field by field.
fn read(stream: &[u8]) -> Greeting {
    let [_, _, _, sequence_id, rest @ ..] = stream else {
        return Greeting::Unknown;
    };
    if *sequence_id != 0 {
        return Greeting::Foreign;
    }
    match rest.first() {
        None => Greeting::Unknown,
        Some(0xff) => Greeting::Error,
        Some(0x0b) if packet_len(stream) == Some(9) => Greeting::MysqlX,
        Some(0x0a) => {
            let flags = version(stream).and_then(|version| {
                // Protocol version, NUL, thread id, scramble, filler.
                rest.get(1 + version.len() + 1 + 4 + 8 + 1..)?.first_chunk()
            });
            match flags {
                None => Greeting::Unknown,
                Some(&[low, high]) if u32::from_le_bytes([low, high, 0, 0]) & CLIENT_SSL != 0 => {
                    Greeting::WithTls
                }
                Some(_) => Greeting::WithoutTls,
            }
        }
        Some(_) => Greeting::Foreign,
    }
}

fn packet_len(stream: &[u8]) -> Option<u32> {
    let [a, b, c] = *stream.first_chunk()?;
    Some(4 + u32::from_le_bytes([a, b, c, 0]))
}

fn version(stream: &[u8]) -> Option<&[u8]> {
    let rest = stream.get(5..)?;
    let end = rest.iter().position(|&byte| byte == 0)?;
    rest.get(..end)
}
