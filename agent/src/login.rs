//! What a plaintext login says about itself, behind its auth response.
//!
//! Source: `MySQL` 9.x Source Code Documentation, `Protocol::HandshakeResponse41` and
//! `Protocol::LengthEncodedInteger`.
//!
//! Invariant: the input starts behind the auth response, so no auth byte can come out. Output is bounded
//! and safe to print: a client chooses every byte of it.

use musttls_common::mysql::{
    CLIENT_CONNECT_ATTRS, CLIENT_CONNECT_WITH_DB, CLIENT_PLUGIN_AUTH, CLIENT_PROTOCOL_41,
};

/// Most connection attributes kept. Drivers send 5 to 10.
const ATTRIBUTES_MAX: usize = 32;
/// Longest text kept, in characters: `MySQL` names have 64, program names and versions fit easily.
const TEXT_MAX: usize = 256;
/// Takes the place of a value whose name says that it is a secret.
const REMOVED: &str = "(removed)";

/// What follows the auth response of a login.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoginDetails {
    /// The schema it asks for.
    pub schema: Option<String>,
    /// The authentication plugin it names.
    pub plugin: Option<String>,
    /// Connection attributes, in the order sent.
    pub attributes: Vec<(String, String)>,
    /// Something is missing: the packet was cut or malformed, or a text or the list was too long.
    pub truncated: bool,
}

impl LoginDetails {
    /// Reads `tail`, the bytes behind the auth response of a login with capability flags `caps`.
    #[must_use]
    pub fn parse(caps: u32, tail: &[u8]) -> Self {
        let mut details = Self::default();
        // A 320 login has no flags for what follows, and no plugin or attributes.
        if caps & CLIENT_PROTOCOL_41 != 0 {
            details.truncated = details.read(caps, tail).is_none();
        }
        details
    }

    /// The client program, if the driver told it.
    #[must_use]
    pub fn program(&self) -> Option<&str> {
        self.attributes
            .iter()
            .find(|(name, _)| name == "program_name")
            .map(|(_, value)| value.as_str())
    }

    /// `None` where something is missing; what was read before stays.
    fn read(&mut self, caps: u32, tail: &[u8]) -> Option<()> {
        let mut cut = false;
        let mut keep = |bytes: &[u8]| {
            let (text, whole) = printable(bytes);
            cut |= !whole;
            text
        };
        let mut rest = tail;
        if caps & CLIENT_CONNECT_WITH_DB != 0 {
            self.schema = Some(keep(until_nul(&mut rest)?));
        }
        if caps & CLIENT_PLUGIN_AUTH != 0 {
            self.plugin = Some(keep(until_nul(&mut rest)?));
        }
        if caps & CLIENT_CONNECT_ATTRS != 0 {
            let total = usize::try_from(lenenc(&mut rest)?).unwrap_or(usize::MAX);
            let whole = rest.len() >= total;
            let mut pairs = rest.get(..total).unwrap_or(rest);
            while !pairs.is_empty() {
                let name = lenenc_bytes(&mut pairs)?;
                let value = lenenc_bytes(&mut pairs)?;
                if self.attributes.len() == ATTRIBUTES_MAX {
                    return None;
                }
                let name = keep(name);
                let value = if is_secret(&name) {
                    REMOVED.to_owned()
                } else {
                    keep(value)
                };
                self.attributes.push((name, value));
            }
            cut |= !whole;
        }
        (!cut).then_some(())
    }
}

/// Text from a stranger's bytes, bounded, without control characters; and whether it is whole.
///
/// What is not UTF-8 and what could disturb a terminal or the reading order becomes U+FFFD.
#[must_use]
pub fn printable(bytes: &[u8]) -> (String, bool) {
    // A character has at most 4 bytes: more input cannot matter.
    let head = bytes.get(..4 * TEXT_MAX + 4).unwrap_or(bytes);
    let text = String::from_utf8_lossy(head);
    let kept: String = text
        .chars()
        .take(TEXT_MAX)
        .map(|c| {
            if disturbs(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect();
    (kept, text.chars().nth(TEXT_MAX).is_none())
}

/// Control characters, line separators and the bidirectional formatting characters of Unicode
/// Standard Annex 9.
#[must_use]
pub fn disturbs(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// No driver sends secrets as attributes, but an application may.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["pass", "pwd", "secret", "token", "credential"]
        .iter()
        .any(|word| name.contains(word))
}

fn until_nul<'t>(rest: &mut &'t [u8]) -> Option<&'t [u8]> {
    let end = rest.iter().position(|&byte| byte == 0)?;
    let (text, behind) = rest.split_at_checked(end)?;
    *rest = behind.get(1..)?;
    Some(text)
}

fn lenenc_bytes<'t>(rest: &mut &'t [u8]) -> Option<&'t [u8]> {
    let len = usize::try_from(lenenc(rest)?).ok()?;
    let (bytes, behind) = rest.split_at_checked(len)?;
    *rest = behind;
    Some(bytes)
}

fn lenenc(rest: &mut &[u8]) -> Option<u64> {
    let (&first, behind) = rest.split_first()?;
    let width = match first {
        0xfc => 2,
        0xfd => 3,
        0xfe => 8,
        // 0xfb is NULL in a result row and 0xff an error: neither is a length.
        0xfb | 0xff => return None,
        small => {
            *rest = behind;
            return Some(small.into());
        }
    };
    let (bytes, behind) = behind.split_at_checked(width)?;
    *rest = behind;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |value, &byte| value << 8 | u64::from(byte)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: u32 =
        CLIENT_PROTOCOL_41 | CLIENT_CONNECT_WITH_DB | CLIENT_PLUGIN_AUTH | CLIENT_CONNECT_ATTRS;

    fn attributes(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for text in pairs.iter().flat_map(|(name, value)| [name, value]) {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend(text.as_bytes());
        }
        let mut total = match u16::try_from(bytes.len()).unwrap() {
            small @ 0..=0xfa => vec![small.to_le_bytes()[0]],
            large => [&[0xfc], &large.to_le_bytes()[..]].concat(),
        };
        total.extend(bytes);
        total
    }

    fn sample() -> Vec<u8> {
        let mut tail = b"petname\0caching_sha2_password\0".to_vec();
        tail.extend(attributes(&[
            ("_client_name", "libmysql"),
            ("_client_version", "9.7.4"),
            ("program_name", "mysqldump"),
            ("_os", "Linux"),
        ]));
        tail
    }

    #[test]
    fn a_whole_login_is_read() {
        let details = LoginDetails::parse(ALL, &sample());
        assert_eq!(details.schema.as_deref(), Some("petname"));
        assert_eq!(details.plugin.as_deref(), Some("caching_sha2_password"));
        assert_eq!(details.program(), Some("mysqldump"));
        assert_eq!(details.attributes.len(), 4);
        assert!(!details.truncated);
    }

    #[test]
    fn every_prefix_is_told_as_truncated_and_agrees_with_the_whole() {
        let bytes = sample();
        let whole = LoginDetails::parse(ALL, &bytes);
        for len in 0..bytes.len() {
            let part = LoginDetails::parse(ALL, &bytes[..len]);
            assert!(part.truncated, "{len} bytes");
            assert!(part.schema.is_none() || part.schema == whole.schema);
            assert!(
                whole.attributes.starts_with(&part.attributes),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn only_what_the_flags_announce_is_read() {
        let none = LoginDetails::parse(CLIENT_PROTOCOL_41, b"junk");
        assert_eq!(none, LoginDetails::default());
        assert_eq!(
            LoginDetails::parse(CLIENT_CONNECT_WITH_DB, b"db\0"),
            LoginDetails::default()
        );
        let plugin = LoginDetails::parse(CLIENT_PROTOCOL_41 | CLIENT_PLUGIN_AUTH, b"p\0");
        assert_eq!(plugin.plugin.as_deref(), Some("p"));
    }

    #[test]
    fn more_than_250_bytes_of_attributes_are_read() {
        let long = "v".repeat(240);
        let bytes = attributes(&[("a", &long), ("b", &long)]);
        let details = LoginDetails::parse(CLIENT_PROTOCOL_41 | CLIENT_CONNECT_ATTRS, &bytes);
        assert_eq!(details.attributes.len(), 2);
        assert!(!details.truncated);
    }

    #[test]
    fn text_is_safe_to_print() {
        let (text, whole) = printable(b"a\x1b[2Jb\n\xff\xe2\x80\xae");
        assert_eq!(
            (text.as_str(), whole),
            ("a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}", true)
        );
        let (text, whole) = printable("ü".repeat(TEXT_MAX + 1).as_bytes());
        assert_eq!((text.chars().count(), whole), (TEXT_MAX, false));
        assert_eq!(
            printable("ü".repeat(TEXT_MAX).as_bytes()).0.chars().count(),
            TEXT_MAX
        );
    }

    #[test]
    fn values_of_secrets_are_removed() {
        let bytes = attributes(&[("app_Password", "hunter2"), ("auth_token", "t")]);
        let details = LoginDetails::parse(CLIENT_PROTOCOL_41 | CLIENT_CONNECT_ATTRS, &bytes);
        assert!(details.attributes.iter().all(|(_, value)| value == REMOVED));
    }

    proptest! {
        #[test]
        fn any_bytes_are_bounded_and_printable(
            caps: u32,
            tail in prop::collection::vec(prop_oneof![any::<u8>(), Just(0u8), 0..8u8], 0..2048),
        ) {
            let details = LoginDetails::parse(caps, &tail);
            prop_assert!(details.attributes.len() <= ATTRIBUTES_MAX);
            let texts = details.attributes.iter().flat_map(|(name, value)| [name, value]);
            for text in texts.chain(&details.schema).chain(&details.plugin) {
                prop_assert!(text.chars().count() <= TEXT_MAX);
                prop_assert!(!text.chars().any(disturbs));
            }
        }
    }
}
