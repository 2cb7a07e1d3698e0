//! What a login says beside its authentication.

use musttls::login::LoginDetails;
use musttls_common::mysql::{
    AuthResponse, CLIENT_PROTOCOL_41, FLAGS_LOW_OFFSET, USER_OFFSET_41, auth_response,
};

/// Most attributes and characters that come out of a login.
const ATTRIBUTES: usize = 32;
const CHARACTERS: usize = 256;

/// Reads the stream as a login as the gate and the agent do, and asserts that what comes out is bounded, can be
/// printed, has no byte of the auth response in it, and does not change its mind when more comes.
pub fn target(stream: &[u8]) {
    let Some((caps, auth, tail)) = split(stream) else {
        // Whatever the gate copied, the agent reads it.
        bounded(&LoginDetails::parse(u32::MAX, stream));
        return;
    };
    let whole = LoginDetails::parse(caps, tail);
    bounded(&whole);

    // The same login with every other auth response of that length.
    let other: Vec<u8> = auth.iter().map(|byte| !byte).collect();
    let before = stream.len() - tail.len() - auth.len();
    let head = stream.get(..before).unwrap_or_default();
    let twin = [head, &other, tail].concat();
    let twin = split(&twin).map(|(caps, _, tail)| LoginDetails::parse(caps, tail));
    assert_eq!(twin.as_ref(), Some(&whole), "the auth response matters");

    let step = tail.len() / 64 + 1;
    for end in (0..tail.len()).step_by(step) {
        let part = LoginDetails::parse(caps, tail.get(..end).unwrap_or_default());
        if part.truncated {
            assert!(part.schema.is_none() || part.schema == whole.schema);
            assert!(part.plugin.is_none() || part.plugin == whole.plugin);
            assert!(
                whole.attributes.starts_with(&part.attributes),
                "{end} bytes: {part:?}"
            );
        } else {
            assert_eq!(part, whole, "{end} bytes were enough, and then not");
        }
    }
}

/// Capability flags, auth response and what follows it, as `ebpf/src/ingress.rs` finds them.
fn split(stream: &[u8]) -> Option<(u32, &[u8], &[u8])> {
    let place = |offset: u32| usize::try_from(offset).unwrap_or(usize::MAX);
    let caps = stream.get(place(FLAGS_LOW_OFFSET)..)?.first_chunk()?;
    let caps = u32::from_le_bytes(*caps);
    if caps & CLIENT_PROTOCOL_41 == 0 {
        return None;
    }
    let user = stream.get(place(USER_OFFSET_41)..)?;
    let behind = user.get(user.iter().position(|&byte| byte == 0)? + 1..)?;
    let AuthResponse::Ends(end) = auth_response(caps, *behind.first()?) else {
        return None;
    };
    assert!((1..=256).contains(&end), "the auth response ends at {end}");
    let (auth, tail) = behind.split_at_checked(place(end))?;
    // The length byte stays what it is.
    Some((caps, auth.get(1..)?, tail))
}

fn bounded(details: &LoginDetails) {
    assert!(details.attributes.len() <= ATTRIBUTES, "{details:?}");
    let texts = details
        .attributes
        .iter()
        .flat_map(|(name, value)| [name, value])
        .chain(&details.schema)
        .chain(&details.plugin);
    for text in texts {
        assert!(text.chars().count() <= CHARACTERS, "{text:?}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
    for (name, value) in &details.attributes {
        let name = name.to_lowercase();
        assert!(
            !name.contains("password") || value == "(removed)",
            "{name}: {value}"
        );
    }
    if let Some(program) = details.program() {
        let named = |(name, value): &(String, String)| name == "program_name" && value == program;
        assert!(details.attributes.iter().any(named));
    }
}
