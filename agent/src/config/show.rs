//! What is in force by the files, each value with where it comes from.

use std::fmt::{self, Write as _};

use serde_json::{Map, Value as Json, json};
use toml::de::{DeTable, DeValue};

use super::decode::{ROOT_KEYS, SERVER_KEYS};
use super::layers::{Lines, Origin};
use super::merge;
use super::walk::Value;
use super::{Config, DEFAULT_AUDIT, DEFAULT_CONTROL, Loaded, exception, history};
use crate::cipher::Family;
use crate::span;

/// Widest setting that the origins are aligned with, in characters.
const ALIGNED_MAX: usize = 60;

/// A configuration in full: what the files say, and the defaults where they say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    layers: Vec<String>,
    sections: Vec<Section>,
    with_origin: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Section {
    /// `None` is the top of the file.
    name: Option<&'static str>,
    is_array: bool,
    settings: Vec<Setting>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Setting {
    key: &'static str,
    /// As TOML and as JSON; `None` if it is not set and has no default.
    value: Option<(String, Json)>,
    /// `None` for a default.
    origin: Option<Origin>,
}

impl Loaded {
    /// The configuration in full; with the origin of each value where that is asked for.
    #[must_use]
    pub fn effective(&self, with_origin: bool) -> Effective {
        let whole = merge::whole(&self.layers, |_, _| {}).unwrap_or_default();
        let shown = Shown {
            lines: self.layers.lines(),
            config: &self.config,
            whole: &whole,
        };
        let mut sections = vec![shown.root()];
        sections.extend(shown.servers());
        sections.extend(shown.elements("exception").map(|exception| {
            let keys = exception::KEYS.iter();
            shown.section(
                "exception",
                true,
                keys.map(|key| (*key, exception.get(*key))),
            )
        }));
        for (name, keys) in [
            ("audit", &["path"][..]),
            ("history", history::KEYS),
            ("metrics", &["listen"]),
            ("control", &["socket", "group"]),
        ] {
            let own = whole.get(name).and_then(|value| value.get_ref().as_table());
            let values = keys
                .iter()
                .map(|key| (*key, own.and_then(|own| own.get(*key))));
            sections.push(shown.section(name, false, values));
        }
        let paths = self.layers.files().map(|layer| layer.path().display());
        Effective {
            layers: paths.map(|path| path.to_string()).collect(),
            sections,
            with_origin,
        }
    }
}

struct Shown<'s, 't> {
    lines: Lines<'s>,
    config: &'s Config,
    whole: &'s DeTable<'t>,
}

impl<'s, 't> Shown<'s, 't> {
    fn root(&self) -> Section {
        let keys = ROOT_KEYS.iter().filter(|key| {
            !matches!(
                **key,
                "server" | "exception" | "audit" | "history" | "metrics" | "control"
            )
        });
        let settings = keys.map(|key| self.setting("", key, self.whole.get(*key)));
        Section {
            name: None,
            is_array: false,
            settings: settings.collect(),
        }
    }

    /// A server's settings, its own and those that it has from above.
    fn servers(&self) -> impl Iterator<Item = Section> {
        self.elements("server").enumerate().map(|(at, server)| {
            let index = u16::try_from(at + 1).unwrap_or(0);
            let observes = self.config.tls_of(index).observe.is_some();
            let settings = SERVER_KEYS
                .iter()
                .filter(|key| **key != "observe" || observes);
            let has_mode = server.contains_key("mode");
            let settings = settings.map(|key| {
                // The end of a mode goes with that mode.
                let goes_with = has_mode && matches!(*key, "mode_until" | "mode_then");
                let inherited = self
                    .whole
                    .get(*key)
                    .filter(|_| ROOT_KEYS.contains(key) && !goes_with);
                (*key, server.get(*key).or(inherited))
            });
            self.section("server", true, settings)
        })
    }

    fn elements(&self, name: &str) -> impl Iterator<Item = &'s DeTable<'t>> {
        let all = self
            .whole
            .get(name)
            .and_then(|all| all.get_ref().as_array());
        let all = all.map(|all| all.iter()).unwrap_or_default();
        all.filter_map(|one| one.get_ref().as_table())
    }

    fn section<'v>(
        &self,
        name: &'static str,
        is_array: bool,
        values: impl Iterator<Item = (&'static str, Option<&'v Value<'t>>)>,
    ) -> Section
    where
        't: 'v,
    {
        Section {
            name: Some(name),
            is_array,
            settings: values
                .map(|(key, value)| self.setting(name, key, value))
                .collect(),
        }
    }

    fn setting(&self, section: &str, key: &'static str, value: Option<&Value<'_>>) -> Setting {
        match value {
            Some(value) => Setting {
                key,
                value: Some((as_toml(value.get_ref()), as_json(value.get_ref()))),
                origin: Some(self.lines.origin(value.span().start)),
            },
            None => Setting {
                key,
                value: default(section, key).map(|value| (json_as_toml(&value), value)),
                origin: None,
            },
        }
    }
}

/// What holds where no file sets a key.
fn default(section: &str, key: &str) -> Option<Json> {
    let config = Config::default();
    match (section, key) {
        ("" | "server", "mode") => Some(json!(config.mode.as_str())),
        ("" | "server", "require") => Some(json!(config.tls.require.as_str())),
        ("" | "server", "refused_ciphers") => Some(json!(Family::ALL.map(Family::as_str))),
        ("" | "server", "loopback") => Some(json!(config.loopback.as_str())),
        ("", "panic") => Some(json!(config.panic)),
        ("", "persist") => Some(json!(config.persist)),
        ("", "existing") => Some(json!(config.existing.as_str())),
        ("", "canary") => Some(json!(config.canary.map_or("off".to_owned(), span::text))),
        ("audit", "path") => Some(json!(DEFAULT_AUDIT)),
        ("history", "enabled") => Some(json!(config.history.enabled)),
        ("history", "path") => Some(json!(config.history.path)),
        ("history", "keep") => Some(json!(span::text(config.history.keep))),
        ("history", "max_clients") => Some(json!(config.history.max_clients)),
        ("control", "socket") => Some(json!(DEFAULT_CONTROL)),
        _ => None,
    }
}

impl fmt::Display for Effective {
    /// As TOML that can be read again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.with_origin {
            writeln!(f, "# {}", self.layers.join(", "))?;
        }
        for section in &self.sections {
            section.write(f, self.with_origin)?;
        }
        Ok(())
    }
}

impl Section {
    fn write(&self, f: &mut fmt::Formatter<'_>, with_origin: bool) -> fmt::Result {
        match (self.name, self.is_array) {
            (None, _) => {}
            (Some(name), true) => writeln!(f, "\n[[{name}]]")?,
            (Some(name), false) => writeln!(f, "\n[{name}]")?,
        }
        let lines = self.settings.iter().filter_map(|setting| {
            let (text, _) = setting.value.as_ref()?;
            Some((format!("{} = {text}", setting.key), setting.origin()))
        });
        let lines: Vec<_> = lines.collect();
        let widths = lines.iter().map(|(line, _)| line.chars().count());
        let width = widths.filter(|width| *width <= ALIGNED_MAX).max();
        for (line, origin) in &lines {
            if with_origin {
                writeln!(f, "{line:width$}  # {origin}", width = width.unwrap_or(0))?;
            } else {
                writeln!(f, "{line}")?;
            }
        }
        Ok(())
    }
}

impl Setting {
    fn origin(&self) -> String {
        self.origin
            .as_ref()
            .map_or_else(|| "default".to_owned(), Origin::to_string)
    }
}

impl Effective {
    /// As JSON: the same tables and keys. With origins each value is an object of `value` and `origin`, and `layers` are
    /// the files.
    #[must_use]
    pub fn json(&self) -> Json {
        let mut all = Map::new();
        if self.with_origin {
            all.insert("layers".to_owned(), json!(self.layers));
        }
        for section in &self.sections {
            let settings = section.settings.iter().map(|setting| {
                let value = setting.value.as_ref().map(|(_, value)| value.clone());
                let value = if self.with_origin {
                    json!({ "value": value, "origin": setting.origin() })
                } else {
                    json!(value)
                };
                (setting.key.to_owned(), value)
            });
            match (section.name, all.get_mut(section.name.unwrap_or_default())) {
                (Some(_), Some(Json::Array(all))) => all.push(Json::Object(settings.collect())),
                (Some(name), _) => {
                    all.insert(name.to_owned(), Json::Object(settings.collect()));
                }
                (None, _) => {
                    all.extend(settings);
                    // They are arrays also where nothing is in them.
                    all.extend(["server", "exception"].map(|name| (name.to_owned(), json!([]))));
                }
            }
        }
        Json::Object(all)
    }
}

fn as_toml(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quoted(text),
        DeValue::Array(values) => {
            let values: Vec<_> = values.iter().map(|one| as_toml(one.get_ref())).collect();
            format!("[{}]", values.join(", "))
        }
        DeValue::Datetime(datetime) => datetime.to_string(),
        DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_) | DeValue::Table(_) => {
            json_as_toml(&as_json(value))
        }
    }
}

/// The values that a valid configuration has.
fn as_json(value: &DeValue<'_>) -> Json {
    match value {
        DeValue::String(text) => json!(text),
        DeValue::Integer(integer) => {
            json!(i64::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(0))
        }
        DeValue::Boolean(answer) => json!(answer),
        DeValue::Datetime(datetime) => json!(datetime.to_string()),
        DeValue::Array(values) => values.iter().map(|one| as_json(one.get_ref())).collect(),
        // No key of a valid configuration is one.
        DeValue::Float(_) | DeValue::Table(_) => Json::Null,
    }
}

fn json_as_toml(value: &Json) -> String {
    match value {
        Json::String(text) => quoted(text),
        Json::Array(values) => {
            let values: Vec<_> = values.iter().map(json_as_toml).collect();
            format!("[{}]", values.join(", "))
        }
        other => other.to_string(),
    }
}

/// A basic string of TOML in which nothing can disturb a terminal.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if crate::login::disturbs(c) => {
                // Writing to a `String` cannot fail (`impl fmt::Write for String`).
                write!(quoted, "\\u{:04X}", u32::from(c)).unwrap_or_default();
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PastDates;
    use jiff::Timestamp;
    use std::path::Path;

    const TEXT: &str = "mode = \"enforce\"\nrequire = \"tls1.2\"\n\
        [[server]]\nname = \"orders\"\nports = [3306, 33060]\nmode = \"observe\"\n\
        [[exception]]\nname = \"etl\"\nsource = [\"10.3.0.0/16\"]\nuser = [\"a\\u001bb\\\"\"]\nserver = \"orders\"\n\
        not_before = 2027-01-01\nexpires = 2027-03-31T12:00:00+02:00\nowner = \"o\"\nreason = \"r\"\n\
        [metrics]\nlisten = \"127.0.0.1:9637\"\n";

    fn loaded(text: &str) -> Loaded {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        Config::parse(Path::new("f.toml"), text, now, PastDates::Refuse).unwrap()
    }

    #[test]
    fn what_is_shown_is_the_same_configuration_again() {
        for text in ["", TEXT] {
            let first = loaded(text);
            for with_origin in [false, true] {
                let shown = first.effective(with_origin).to_string();
                let mut again = loaded(&shown).config;
                for server in &mut again.servers {
                    // Told for each server, as they are in force there.
                    server.tls.require = None;
                    server.tls.refused_ciphers = None;
                    server.loopback = None;
                }
                assert_eq!(again, first.config, "{shown}");
            }
        }
    }

    #[test]
    fn each_value_has_its_origin() {
        let shown = loaded(TEXT).effective(true).to_string();
        let origin = |key: &str| {
            let line = shown.lines().find(|line| line.starts_with(key)).unwrap();
            line.split_once("  # ").unwrap().1.to_owned()
        };
        assert_eq!(origin("mode = \"enforce\""), "f.toml:1");
        assert_eq!(origin("mode = \"observe\""), "f.toml:6");
        assert_eq!(origin("persist = true"), "default");
        assert_eq!(origin("not_before = 2027-01-01"), "f.toml:12");
        assert_eq!(origin("listen"), "f.toml:17");
        assert_eq!(origin("path"), "default");
        let inherited: Vec<_> = shown
            .lines()
            .filter(|line| line.starts_with("require"))
            .collect();
        assert_eq!(inherited.len(), 2, "{shown}");
        assert!(
            inherited.iter().all(|line| line.ends_with("# f.toml:2")),
            "{shown}"
        );
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }

    #[test]
    fn json_has_the_same_values() {
        let json = loaded(TEXT).effective(false).json();
        for (pointer, value) in [
            ("/mode", json!("enforce")),
            ("/observe", Json::Null),
            ("/server/0/ports", json!([3306, 33060])),
            ("/exception/0/expires", json!("2027-03-31T12:00:00+02:00")),
            ("/audit/path", json!(DEFAULT_AUDIT)),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer} of {json}");
        }
        let json = loaded(TEXT).effective(true).json();
        for (pointer, value) in [
            ("/layers", json!(["f.toml"])),
            ("/mode", json!({ "value": "enforce", "origin": "f.toml:1" })),
            ("/persist", json!({ "value": true, "origin": "default" })),
        ] {
            assert_eq!(json.pointer(pointer), Some(&value), "{pointer} of {json}");
        }
        let empty = loaded("").effective(false).json();
        assert_eq!(empty.pointer("/exception"), Some(&json!([])));
    }
}
