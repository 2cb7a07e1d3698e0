//! Walking through tables: what every key has in common, and the mistakes that go with it.

use std::collections::HashMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::decode::Decoder;
use super::layers::Layer;
use super::report::Problem;
use super::value::{bounded, kind, shown, similar};

/// Longest name of a server or an exception, in bytes: it stands in labels of metrics.
const NAME_MAX: usize = 64;

/// A value and where it stands.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// A table and what messages call it.
#[derive(Clone, Copy)]
pub(super) struct Section<'t> {
    pub(super) table: &'t DeTable<'t>,
    /// For example "exception `legacy-etl`".
    pub(super) what: &'t str,
    /// Where it starts, for what is missing in it.
    pub(super) at: &'t Range<usize>,
}

impl Decoder<'_> {
    /// The name of a server or an exception: given, unique, printable.
    pub(super) fn name(
        &mut self,
        section: Section<'_>,
        example: &str,
        reserved: &[&str],
        names: &mut HashMap<String, usize>,
    ) -> Option<String> {
        let name = self.required_text(section, "name", &format!("name = \"{example}\""), NAME_MAX);
        let at = section.table.get("name").map(Spanned::span)?;
        if name.is_empty() {
            return None;
        }
        if reserved.contains(&name.as_str()) {
            let title = format!("the name `{name}` is taken");
            self.wrong(
                at,
                title,
                "",
                "records use it for what no section names: choose another",
            );
        } else if let Some(first) = names.insert(name.clone(), at.start) {
            let title = format!("two sections are named `{name}`");
            self.contradiction(
                at,
                title,
                ("the first is", first),
                "give each its own name: records tell them apart by it",
            );
        }
        Some(name)
    }

    /// A string that must be there and say something; empty after a mistake.
    pub(super) fn required_text(
        &mut self,
        section: Section<'_>,
        key: &str,
        example: &str,
        max: usize,
    ) -> String {
        let help = format!("write for example {example}");
        let Some(value) = section.table.get(key) else {
            self.missing(section, key, &help);
            return String::new();
        };
        let Some(text) = self.string(key, value, &help) else {
            return String::new();
        };
        if text.trim().is_empty() {
            self.wrong(value.span(), format!("`{key}` is empty"), "", &help);
        } else if text.chars().any(char::is_control) {
            let help = "keep it on one line, without control characters";
            self.wrong(
                value.span(),
                format!("`{key}` has a control character"),
                "",
                help,
            );
        } else if text.len() > max {
            let label = format!("{} bytes", text.len());
            self.wrong(
                value.span(),
                format!("`{key}` is longer than {max} bytes"),
                &label,
                "shorten it",
            );
        } else {
            return text.to_owned();
        }
        String::new()
    }

    /// The tables of an array of tables, each with where it starts.
    pub(super) fn sections<'t>(
        &mut self,
        key: &str,
        value: Option<&'t Value<'t>>,
    ) -> Vec<(&'t DeTable<'t>, Range<usize>)> {
        let Some(value) = value else {
            return Vec::new();
        };
        let help = format!("write [[{key}]], with two brackets, above the keys of each {key}");
        let Some(values) = self.array(key, value, &help) else {
            return Vec::new();
        };
        let mut sections = Vec::new();
        for value in values {
            match value.get_ref() {
                DeValue::Table(table) => sections.push((table, value.span())),
                _ => self.wrong_type(&format!("`{key}`"), "a table", value, &help),
            }
        }
        sections
    }

    pub(super) fn section<'t>(
        &mut self,
        key: &str,
        value: Option<&'t Value<'t>>,
    ) -> Option<(&'t DeTable<'t>, Range<usize>)> {
        let value = value?;
        if let DeValue::Table(table) = value.get_ref() {
            return Some((table, value.span()));
        }
        let help = format!("write [{key}] on a line of its own, above its keys");
        self.wrong_type(&format!("`{key}`"), "a table", value, &help);
        None
    }

    pub(super) fn array<'t>(
        &mut self,
        key: &str,
        value: &'t Value<'t>,
        help: &str,
    ) -> Option<&'t [Value<'t>]> {
        if let DeValue::Array(values) = value.get_ref() {
            return Some(values);
        }
        self.wrong_type(&format!("`{key}`"), "an array", value, help);
        None
    }

    pub(super) fn string<'t>(
        &mut self,
        key: &str,
        value: &'t Value<'_>,
        help: &str,
    ) -> Option<&'t str> {
        if let DeValue::String(text) = value.get_ref() {
            return Some(text);
        }
        let what = if key.contains(' ') {
            key.to_owned()
        } else {
            format!("`{key}`")
        };
        self.wrong_type(&what, "a string", value, help);
        None
    }

    pub(super) fn boolean(&mut self, key: &str, value: &Value<'_>, help: &str) -> Option<bool> {
        if let DeValue::Boolean(answer) = value.get_ref() {
            return Some(*answer);
        }
        self.wrong_type(&format!("`{key}`"), "a boolean", value, help);
        None
    }

    pub(super) fn unknown_keys(&mut self, section: Section<'_>, known: &[&str]) {
        for key in section.table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            self.problems.push(|| {
                let (title, help) = unknown(name, section.what, known);
                Problem {
                    at: key.span(),
                    title,
                    label: String::new(),
                    help,
                }
            });
        }
    }

    pub(super) fn missing(&mut self, section: Section<'_>, key: &str, help: &str) {
        self.wrong(
            section.at.clone(),
            format!("{} has no `{key}`", section.what),
            "",
            help,
        );
    }

    pub(super) fn wrong_type(&mut self, what: &str, wanted: &str, value: &Value<'_>, help: &str) {
        let label = format!("this is {}", kind(value.get_ref()));
        self.wrong(
            value.span(),
            format!("{what} must be {wanted}"),
            &label,
            help,
        );
    }

    pub(super) fn wrong(&mut self, at: Range<usize>, title: String, label: &str, help: &str) {
        self.problems.push(move || Problem {
            at,
            title: bounded(title),
            label: label.to_owned(),
            help: help.to_owned(),
        });
    }

    /// What contradicts something else, and where that stands.
    pub(super) fn contradiction(
        &mut self,
        at: Range<usize>,
        title: String,
        (other, place): (&str, usize),
        help: &str,
    ) {
        let layers = self.layers;
        // The line is counted for what is shown only: a file may have a great many.
        self.problems.push(move || Problem {
            at,
            title: bounded(title),
            label: format!("{other} at {}", layers.origin(place)),
            help: help.to_owned(),
        });
    }

    pub(super) fn syntax(&mut self, layer: &Layer, error: &toml::de::Error) {
        let at = error.span().unwrap_or(0..0);
        self.problems.push(|| Problem {
            at: layer.start() + at.start..layer.start() + at.end,
            title: error.message().to_owned(),
            label: String::new(),
            help: "the file must be TOML (https://toml.io); packaging/musttls.toml is an example"
                .to_owned(),
        });
    }
}

/// What is wrong with a key that `what` does not have, and what to do. A key of the file itself is one that
/// stands too low: TOML gives every line behind a `[section]` to that section.
fn unknown(name: &str, what: &str, known: &[&str]) -> (String, String) {
    match name {
        "panic" | "mode" | "mode_until" | "mode_then" | "trusted_proxies" | "require"
        | "observe" | "refused_ciphers" | "persist" | "existing" | "loopback" | "canary" => (
            format!("`{name}` belongs at the top of the file, before the first [section]"),
            format!("move it up: here it is a key of {what}"),
        ),
        "server" | "exception" => (
            format!("`{name}` does not belong in {what}"),
            format!("write [[{name}]], with two brackets, on a line of its own, above its keys"),
        ),
        "audit" | "history" | "metrics" | "control" => (
            format!("`{name}` does not belong in {what}"),
            format!("write [{name}] on a line of its own, above its keys"),
        ),
        _ => (
            format!("unknown key `{}`", shown(name)),
            similar(name, known).map_or_else(
                || format!("the keys of {what} are {}", known.join(", ")),
                |similar| format!("did you mean `{similar}`?"),
            ),
        ),
    }
}
