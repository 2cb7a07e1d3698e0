//! The keys of an exception.

use std::collections::HashMap;

use ipnet::IpNet;
use jiff::Timestamp;
use musttls_common::mysql::USER_MAX;
use musttls_common::policy::{MAX_ENDED, MAX_RULES};
use toml::de::DeValue;
use toml::value::Datetime;

use super::conditions::Conditions;
use super::decode::Decoder;
use super::value::{begin_of, end_of, shown, similar};
use super::walk::{Section, Value};
use super::{Exception, Expiry, LOOPBACK, MAX_USERS, PastDates, REQUIRE_TLS, ServerConfig};

/// The keys of `[[exception]]`.
pub(super) const KEYS: &[&str] = &[
    "name",
    "source",
    "user",
    "server",
    "programs",
    "uids",
    "local_users",
    "cgroups",
    "not_before",
    "expires",
    "owner",
    "reason",
];

/// Longest owner or reason, in bytes.
const TEXT_MAX: usize = 1024;

impl Decoder<'_> {
    pub(super) fn exceptions(
        &mut self,
        value: Option<&Value<'_>>,
        servers: &[ServerConfig],
    ) -> Vec<Exception> {
        let mut exceptions = Vec::new();
        let mut names = HashMap::new();
        for (index, (table, at)) in self.sections("exception", value).into_iter().enumerate() {
            if index == MAX_RULES {
                let help = "put sources that share owner, reason and date into one [[exception]]";
                self.wrong(
                    at.clone(),
                    format!("more than {MAX_RULES} exceptions"),
                    "",
                    help,
                );
            }
            let section = Section {
                table,
                what: "this exception",
                at: &at,
            };
            self.exceptions.push(at.start);
            self.unknown_keys(section, KEYS);
            let name = self.name(section, "legacy-etl", &[REQUIRE_TLS, LOOPBACK], &mut names);
            let what = name.as_ref().map(|name| format!("exception `{name}`"));
            let section = Section {
                what: what.as_deref().unwrap_or(section.what),
                ..section
            };
            let expires = self.expires(section).unwrap_or(Expiry::Never);
            let conditions = self.conditions(section);
            let exception = Exception {
                name: name.unwrap_or_default(),
                source: self.sources(section, &conditions),
                users: table
                    .get("user")
                    .map(|value| self.users(value))
                    .unwrap_or_default(),
                server: table
                    .get("server")
                    .and_then(|value| self.server_of(value, servers)),
                conditions,
                not_before: self.not_before(section, expires),
                expires,
                owner: self.required_text(
                    section,
                    "owner",
                    "owner = \"dba@example.com\"",
                    TEXT_MAX,
                ),
                reason: self.required_text(
                    section,
                    "reason",
                    "reason = \"MySQL 5.6 client, migration DB-812\"",
                    TEXT_MAX,
                ),
            };
            exceptions.push(exception);
        }
        self.many_to_begin(&exceptions);
        exceptions
    }

    /// Each that has not begun and is for a login costs the gate a step on its way to one that holds.
    fn many_to_begin(&mut self, exceptions: &[Exception]) {
        let is_ahead =
            |exception: &Exception| exception.not_before.is_some_and(|begin| begin > self.now);
        let count = exceptions.iter().filter(|it| is_ahead(it)).count();
        let Some(last) = exceptions.iter().rposition(is_ahead) else {
            return;
        };
        if count >= MAX_ENDED
            && let Some(&at) = self.exceptions.get(last)
        {
            let warning = format!(
                "{count} exceptions have not begun. Where {MAX_ENDED} of them are for one login and stand before the one that holds, it is refused: put \
                 them behind the others, or add them nearer to their day"
            );
            self.warnings.push((at, warning));
        }
    }

    fn sources(&mut self, section: Section<'_>, conditions: &Conditions) -> Vec<IpNet> {
        let help = "write networks, for example source = [\"10.3.0.0/16\", \"2001:db8::/32\"]";
        let Some(value) = section.table.get("source") else {
            // Only a process of this host can meet them: from any address of it.
            if conditions.are_local() {
                return Vec::new();
            }
            self.missing(section, "source", help);
            return Vec::new();
        };
        self.networks("source", value, "allow nobody")
    }

    fn users(&mut self, value: &Value<'_>) -> Vec<String> {
        let help = "write user names, for example user = [\"etl\"]; leave `user` out for any user";
        let Some(values) = self.array("user", value, help) else {
            return Vec::new();
        };
        if values.is_empty() {
            self.wrong(
                value.span(),
                "`user` is empty: it would allow nobody".to_owned(),
                "",
                help,
            );
        }
        let mut users = Vec::with_capacity(values.len().min(MAX_USERS));
        for value in values {
            self.users += 1;
            if self.users == MAX_USERS + 1 {
                let title = format!("more than {MAX_USERS} users in all exceptions together");
                self.wrong(
                    value.span(),
                    title,
                    "",
                    "leave `user` out of an exception for any user",
                );
            }
            let Some(user) = self.string("a user", value, help) else {
                continue;
            };
            if user.is_empty() || user.contains('\0') {
                self.wrong(
                    value.span(),
                    "this cannot be a user name".to_owned(),
                    "",
                    help,
                );
            } else if user.len() > USER_MAX {
                let title = format!("this user name is longer than {USER_MAX} bytes");
                let label = format!("{} bytes", user.len());
                let help = "MySQL allows 32 characters and MariaDB 80 (128 in newer releases); check the name";
                self.wrong(value.span(), title, &label, help);
            } else {
                users.push(user.to_owned());
            }
        }
        users
    }

    fn server_of(&mut self, value: &Value<'_>, servers: &[ServerConfig]) -> Option<String> {
        let help = "name a [[server]], or leave `server` out for any server";
        let name = self.string("server", value, help)?;
        if servers.iter().any(|server| server.name == name) {
            return Some(name.to_owned());
        }
        let known: Vec<&str> = servers.iter().map(|server| server.name.as_str()).collect();
        let help = match (similar(name, &known), known.is_empty()) {
            (Some(similar), _) => {
                format!("did you mean `{similar}`? Or leave `server` out for any server")
            }
            (None, false) => format!(
                "it takes the name of a [[server]]: {}; or leave `server` out for any server",
                shown(&known.join(", "))
            ),
            (None, true) => "it takes the name of a [[server]], and there is none: leave `server` out for any server, or add a \
                             [[server]] with this name and its ports"
                .to_owned(),
        };
        self.wrong(
            value.span(),
            format!("there is no server `{name}`"),
            "",
            &help,
        );
        None
    }

    fn expires(&mut self, section: Section<'_>) -> Option<Expiry> {
        const HELP: &str =
            "write a date, for example expires = 2027-03-31, or expires = \"never\" with a reason";
        let Some(value) = section.table.get("expires") else {
            self.missing(section, "expires", HELP);
            return None;
        };
        let end = match value.get_ref() {
            DeValue::String(text) if text == "never" => return Some(Expiry::Never),
            DeValue::String(text) if text.parse::<Datetime>().is_ok() => {
                let help = format!("write the date without quotes: expires = {text}");
                self.wrong(value.span(), "this date is in quotes".to_owned(), "", &help);
                return None;
            }
            DeValue::Datetime(datetime) => match end_of(datetime) {
                Ok(end) => end,
                Err(title) => {
                    self.wrong(value.span(), title, "", HELP);
                    return None;
                }
            },
            _ => {
                self.wrong_type("`expires`", "a date or \"never\"", value, HELP);
                return None;
            }
        };
        if end <= self.now {
            let message = format!("{} ended on {end}", section.what);
            match self.past {
                PastDates::Refuse => {
                    let help = "remove the exception, or agree on a later date with its owner";
                    self.wrong(value.span(), message, "in the past", help);
                }
                PastDates::Warn => {
                    let warning = format!(
                        "{message}; it is not applied: remove it, or agree on a later date with its owner"
                    );
                    self.warnings.push((value.span().start, warning));
                }
            }
        }
        Some(Expiry::At(end))
    }

    fn not_before(&mut self, section: Section<'_>, expires: Expiry) -> Option<Timestamp> {
        const HELP: &str = "write a date, for example not_before = 2027-01-31, or leave it out";
        let value = section.table.get("not_before")?;
        let DeValue::Datetime(datetime) = value.get_ref() else {
            self.wrong_type("`not_before`", "a date", value, HELP);
            return None;
        };
        let begin = match begin_of(datetime) {
            Ok(begin) => begin,
            Err(title) => {
                self.wrong(value.span(), title, "", HELP);
                return None;
            }
        };
        if !expires.holds(begin) {
            let title = format!("{} ends before it begins", section.what);
            let help = "write a `not_before` that is before `expires`";
            self.wrong(value.span(), title, &format!("it begins on {begin}"), help);
        }
        Some(begin)
    }
}
