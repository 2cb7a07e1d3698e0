//! The keys of the history.

use toml::de::DeValue;

use super::HistoryConfig;
use super::decode::Decoder;
use super::walk::{Section, Value};
use crate::span;

/// The keys of `[history]`.
pub(super) const KEYS: &[&str] = &["enabled", "path", "keep", "max_clients"];
/// Fewest and most clients: below, what is seen once a month is lost; above, the index would be larger than it helps.
const CLIENTS: std::ops::RangeInclusive<u64> = 1_000..=100_000_000;

impl Decoder<'_> {
    pub(super) fn history(&mut self, value: Option<&Value<'_>>) -> HistoryConfig {
        let mut history = HistoryConfig::default();
        let Some((table, at)) = self.section("history", value) else {
            return history;
        };
        self.unknown_keys(
            Section {
                table,
                what: "[history]",
                at: &at,
            },
            KEYS,
        );
        if let Some(value) = table.get("enabled") {
            let enabled = self.boolean("enabled", value, "write true or false");
            history.enabled = enabled.unwrap_or(history.enabled);
        }
        if let Some(value) = table.get("path") {
            let help = "write an absolute path, for example \"/var/lib/musttls/history.db\"";
            let path = self
                .string("path", value, help)
                .and_then(|text| self.absolute(value, text, help));
            history.path = path.unwrap_or(history.path);
        }
        if let Some(value) = table.get("keep") {
            history.keep = self.span(value).unwrap_or(history.keep);
        }
        if let Some(value) = table.get("max_clients") {
            history.max_clients = self.max_clients(value).unwrap_or(history.max_clients);
        }
        history
    }

    fn span(&mut self, value: &Value<'_>) -> Option<std::time::Duration> {
        let help = "write a number and a unit, m, h, d or w, for example keep = \"90d\"";
        let text = self.string("keep", value, help)?;
        let span = span::parse(text).ok().and_then(span::fixed);
        if span.is_none() {
            let title = format!("`{text}` is no length of time");
            self.wrong(value.span(), title, "", help);
        }
        span
    }

    fn max_clients(&mut self, value: &Value<'_>) -> Option<u64> {
        let help = "write a number from 1000 to 100000000, for example max_clients = 1000000";
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong_type("`max_clients`", "an integer", value, help);
            return None;
        };
        let clients = u64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|clients| CLIENTS.contains(clients));
        if clients.is_none() {
            let title = format!("`{integer}` is out of range");
            self.wrong(value.span(), title, "", help);
        }
        clients
    }
}
