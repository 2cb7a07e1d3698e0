//! Words of audit records as people say them.

/// Why a session is denied, or would be, as the end of a sentence. A word of a later release stands for itself.
#[must_use]
pub fn reason(word: &str) -> String {
    let text = match word {
        "no-client-ssl" => "no exception allows a login in plaintext",
        "tls-not-offered" => {
            "its client asked for TLS, but the server offers none: it would read the login as plaintext, and no exception allows that"
        }
        "not-borne-out" => {
            "its client asked for TLS, and the server answered in plaintext; no exception is asked about that"
        }
        "unjudgeable" => {
            "what its client sent could not be judged; no exception is asked about that"
        }
        "login-before-greeting" => {
            "its client sent bytes before the server had greeted; no exception is asked about that"
        }
        "not-a-login" => "its first packet is no login that all servers read alike",
        "x-without-tls" => "X Protocol went on without TLS, and no exception allows that",
        "multipath" => {
            "it speaks MPTCP, where it cannot be told what the server reads; no exception is asked about that"
        }
        "tls-below-floor" => {
            "its TLS version is below what `require` asks for, and no exception allows that"
        }
        "tls-cipher-refused" => {
            "its cipher suite is one of `refused_ciphers`, and no exception allows that"
        }
        "older-plaintext" => {
            "it is older than the gate and in the clear, which existing = \"refuse-plaintext\" refuses"
        }
        other => return format!("of `{other}`, a reason of a later release"),
    };
    text.to_owned()
}

/// How a refusal ended.
#[must_use]
pub fn ending(word: &str) -> &str {
    match word {
        "landed" => "the server took it for a failed login and let go",
        "answered" => "the server counts a handshake error",
        "ended" => "the connection was ended without an answer",
        "destroyed" => "the connection was reset without an answer",
        "gone" => "the session had ended by itself",
        "held" => "the gate held it until the server gave up",
        "killed" => "`musttls kill-plaintext` ended it",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use musttls_common::verdict::Reason;

    #[test]
    fn every_reason_and_every_ending_has_its_words() {
        let reasons: Vec<_> = (0..=u8::MAX).filter_map(Reason::from_u8).collect();
        assert!(reasons.len() >= 11);
        for word in reasons.into_iter().map(Reason::as_str) {
            assert!(!reason(word).contains("later release"), "{word}");
        }
        assert!(reason("new").contains("`new`"));
        let page = include_str!("../../../docs/audit-records.md");
        let row = page
            .lines()
            .find(|line| line.starts_with("| `refusal.outcome`"))
            .unwrap();
        let words: Vec<_> = row
            .split('`')
            .skip(3)
            .step_by(2)
            .filter(|word| word.chars().all(|c| c.is_ascii_lowercase()))
            .collect();
        assert!(
            words.contains(&"landed") && words.contains(&"killed"),
            "{words:?}"
        );
        for word in words {
            assert_ne!(ending(word), word);
        }
    }
}
