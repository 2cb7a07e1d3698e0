//! HTML that is made of two things only: markup that stands in this program, and text, which is escaped.
//!
//! No template engine: what one would give is that text cannot become markup, and here the types say that
//! (markup is `&'static str`), in fewer lines than a template's set-up.

use std::fmt::Display;

use crate::login::disturbs;

/// Longest word, in bytes, that is not cut at the end of a line: a longer one would make a table wider than the page.
const WORD: usize = 24;

/// A page as it grows.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    /// Appends markup.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Appends text, for an element's content or for an attribute in double quotes.
    ///
    /// Characters that mean something to HTML are escaped; those that could change the order of reading, and control characters,
    /// are shown as U+FFFD, as everywhere.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        for c in text.to_string().chars() {
            match c {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                c if disturbs(c) => self.0.push(char::REPLACEMENT_CHARACTER),
                c => self.0.push(c),
            }
        }
        self
    }

    /// Appends text that somebody else chose: it does not reach into what stands beside it, whatever direction it is written in.
    pub(super) fn foreign(&mut self, text: impl Display) -> &mut Self {
        let text = text.to_string();
        let is_long = text.split_whitespace().any(|word| word.len() > WORD);
        self.raw("<bdi class=\"")
            .raw(if is_long { "long" } else { "word" })
            .raw("\">")
            .text(text)
            .raw("</bdi>")
    }

    /// The page.
    pub(super) fn finish(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_never_becomes_markup() {
        let mut html = Html::default();
        html.raw("<p title=\"")
            .text("\" onload='x' &amp;")
            .raw("\">")
            .foreign("<script>\u{1b}[2J\u{202e}ü\u{0}</script>")
            .raw("</p>");
        assert_eq!(
            html.finish(),
            "<p title=\"&quot; onload=&#39;x&#39; &amp;amp;\">\
             <bdi class=\"long\">&lt;script&gt;\u{fffd}[2J\u{fffd}ü\u{fffd}&lt;/script&gt;</bdi></p>"
        );
    }
}
