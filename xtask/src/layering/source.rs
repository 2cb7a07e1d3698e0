//! What of a Rust source is code: the text without comments and literals, and its identifiers.

/// The text with comments, strings and characters left out and its lines kept.
pub(crate) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = length_of_non_code(rest, code.chars().next_back());
        let length = if skipped > 0 {
            skipped
        } else {
            first.len_utf8()
        };
        let (taken, after) = rest.split_at(length);
        if skipped > 0 {
            code.push(' ');
            code.extend(taken.chars().filter(|&c| c == '\n'));
        } else {
            code.push_str(taken);
        }
        rest = after;
    }
    code
}

/// How many bytes at the start of `text` are a comment or a literal; `before` is the character of
/// code in front of it.
fn length_of_non_code(text: &str, before: Option<char>) -> usize {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if text.starts_with("//") {
        return text.find('\n').unwrap_or(text.len());
    }
    if text.starts_with("/*") {
        return block_comment(text);
    }
    if text.starts_with('"') {
        return quoted(text, '"');
    }
    if !in_word && (text.starts_with('r') || text.starts_with("br")) {
        return raw_string(text);
    }
    if let Some(after) = text.strip_prefix('\'') {
        // A lifetime has no quote behind its first character.
        let mut characters = after.chars();
        let is_literal = characters.next() == Some('\\') || characters.next() == Some('\'');
        return if is_literal { quoted(text, '\'') } else { 0 };
    }
    0
}

fn block_comment(text: &str) -> usize {
    let mut depth = 0_u32;
    let mut at = 0;
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + character.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

fn raw_string(text: &str) -> usize {
    let start = text.trim_start_matches(['b', 'r']);
    let hashes = start.len() - start.trim_start_matches('#').len();
    let Some(body) = start.get(hashes..).and_then(|rest| rest.strip_prefix('"')) else {
        return 0;
    };
    let end = format!("\"{}", "#".repeat(hashes));
    let before_body = text.len() - body.len();
    body.find(&end)
        .map_or(text.len(), |at| before_body + at + end.len())
}

/// Identifiers, keywords and numbers.
pub(crate) fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_left_out() {
        for text in [
            "// aya",
            "/// aya",
            "/* aya /* aya */ aya */",
            r#""aya \" aya""#,
            "r#\"aya \" aya\"#",
            "b\"aya\"",
        ] {
            let code = code_only(text);
            assert!(!words(&code).any(|word| word == "aya"), "{text}: {code}");
        }
    }

    #[test]
    fn code_behind_a_literal_stays() {
        for text in [
            "let a = '\"'; aya",
            "fn f<'a>() { aya }",
            "let a = '\\''; aya",
            "\"//\"; aya",
            "br\"x\"; aya",
            "var r = 1; aya",
            "/* x */ aya",
            "// x\naya",
        ] {
            let code = code_only(text);
            assert_eq!(
                words(&code).filter(|word| *word == "aya").count(),
                1,
                "{text}: {code}"
            );
        }
    }
}
