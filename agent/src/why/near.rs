//! Exceptions that come near a login: which of their conditions it does not meet.
//!
//! Which exception decides is not concluded here ([`crate::simulate::Judge`] asks the gate's tables); a test holds both together.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::config::{Exception, Expiry};

/// Most networks or users of an exception that a sentence names.
const NAMED: usize = 3;

/// A plaintext login, as exceptions see it.
#[derive(Clone, Copy, Debug)]
pub struct Login<'l> {
    /// Where it comes from; none if that is not known.
    pub address: Option<IpAddr>,
    /// Its user; none if that is not known.
    pub user: Option<&'l str>,
    /// The name of the server's settings.
    pub server: &'l str,
    /// Its program, as it calls itself; none if that is not known.
    pub program: Option<&'l str>,
    /// The rule that decided about it last: what that one wants of its process on this host it met then.
    pub last_rule: Option<&'l str>,
}

/// A condition of an exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The address is in one of its networks.
    Source,
    /// The user is one of its users.
    User,
    /// The server is the one it is for.
    Server,
    /// It has begun.
    NotBefore,
    /// It has not ended.
    Expires,
    /// The client calls itself one of its programs.
    Program,
    /// The client's process on this host has one of its user ids, and is in one of its cgroups. Nobody but a running agent can tell.
    Process,
}

/// The conditions of `exception` that `login` does not meet at `now`.
fn unmet(exception: &Exception, login: &Login<'_>, now: Timestamp) -> Vec<Condition> {
    let is_in = |address: IpAddr| {
        exception
            .source
            .iter()
            .any(|network| network.contains(&address))
    };
    let is_named = |user: &str| exception.users.iter().any(|named| named == user);
    let server = exception.server.as_deref();
    [
        (
            Condition::Source,
            // Only local ones are for any address: of this host.
            exception.source.is_empty() || login.address.is_some_and(is_in),
        ),
        (
            Condition::User,
            exception.users.is_empty() || login.user.is_some_and(is_named),
        ),
        (
            Condition::Server,
            server.is_none_or(|server| server == login.server),
        ),
        (
            Condition::NotBefore,
            exception.not_before.is_none_or(|begin| begin <= now),
        ),
        (Condition::Expires, exception.expires.holds(now)),
        (
            Condition::Program,
            exception.conditions.meets_program(login.program),
        ),
        (
            Condition::Process,
            !exception.conditions.are_local() || login.last_rule == Some(&exception.name),
        ),
    ]
    .into_iter()
    .filter_map(|(condition, is_met)| (!is_met).then_some(condition))
    .collect()
}

/// An exception that comes near.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Near {
    /// Its name.
    pub exception: String,
    /// What is not met.
    pub unmet: Vec<Condition>,
    /// The same as a sentence.
    pub why: String,
}

/// The exceptions that come near `login`, the nearest first: those that hold its address, and those that name its user and are for
/// other addresses only.
#[must_use]
pub fn near(exceptions: &[Exception], login: &Login<'_>, now: Timestamp) -> Vec<Near> {
    let mut near: Vec<Near> = exceptions
        .iter()
        .filter_map(|exception| {
            let unmet = unmet(exception, login, now);
            let is_near = if unmet.contains(&Condition::Source) {
                unmet.len() == 1 && !exception.users.is_empty()
            } else {
                !unmet.is_empty()
            };
            is_near.then(|| Near {
                exception: exception.name.clone(),
                why: format!(
                    "exception {} allows {}, but {}",
                    exception.name,
                    allows(exception, login.address),
                    listed(
                        &unmet
                            .iter()
                            .map(|&it| but(exception, it, login))
                            .collect::<Vec<_>>()
                    )
                ),
                unmet,
            })
        })
        .collect();
    near.sort_by_key(|near| near.unmet.len());
    near
}

/// What an exception allows: `10.1.0.0/16 as user etl on server orders`. Of many networks that of `address` is named.
#[must_use]
pub fn allows(exception: &Exception, address: Option<IpAddr>) -> String {
    let holding: Vec<&IpNet> = exception
        .source
        .iter()
        .filter(|network| address.is_some_and(|address| network.contains(&address)))
        .collect();
    let mut text = match holding.first() {
        Some(network) => network.to_string(),
        None if exception.source.is_empty() => "this host".to_owned(),
        None => some(exception.source.iter().map(ToString::to_string), "networks"),
    };
    if !exception.users.is_empty() {
        text.push_str(" as user ");
        text.push_str(&some(exception.users.iter().cloned(), "users"));
    }
    if let Some(server) = &exception.server {
        text.push_str(" on server ");
        text.push_str(server);
    }
    if exception.conditions.are_some() {
        text.push_str(" if it is ");
        text.push_str(&exception.conditions.to_string());
    }
    text
}

fn but(exception: &Exception, unmet: Condition, login: &Login<'_>) -> String {
    match (unmet, login.address, login.user) {
        (Condition::Source, Some(address), _) => format!("not {address}"),
        (Condition::Source, None, _) => "the address is not known".to_owned(),
        (Condition::User, _, Some(_)) => "not this user".to_owned(),
        (Condition::User, _, None) => "for that user only".to_owned(),
        (Condition::Server, ..) => format!("this is server {}", login.server),
        (Condition::NotBefore, ..) => {
            let begin = exception.not_before.map(begin).unwrap_or_default();
            format!("it begins {begin}")
        }
        (Condition::Expires, ..) => match exception.expires {
            Expiry::At(at) => format!("it ended {}", end(at)),
            Expiry::Never => "it has ended".to_owned(),
        },
        (Condition::Program, ..) => match login.program {
            Some(program) => format!("it calls itself {program}"),
            None => "its program is not known".to_owned(),
        },
        (Condition::Process, ..) => "its process is not known here".to_owned(),
    }
}

fn some(names: impl ExactSizeIterator<Item = String>, what: &str) -> String {
    let more = names.len().saturating_sub(NAMED);
    let names: Vec<String> = names.take(NAMED).collect();
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} other {what}", names.join(", ")),
    }
}

fn listed(parts: &[String]) -> String {
    match parts {
        [rest @ .., last] if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        parts => parts.join(", "),
    }
}

/// `on 2026-11-01` for what ended with that day (UTC), as dates of the configuration do; or else `at` a time.
#[must_use]
pub fn end(at: Timestamp) -> String {
    day(at)
        .and_then(|day| day.yesterday().ok())
        .map_or_else(|| format!("at {at}"), |day| format!("on {day}"))
}

/// The same of what begins.
fn begin(at: Timestamp) -> String {
    day(at).map_or_else(|| format!("at {at}"), |day| format!("on {day}"))
}

/// The day that begins at this instant, if one does.
fn day(at: Timestamp) -> Option<jiff::civil::Date> {
    let at = at.to_zoned(TimeZone::UTC).datetime();
    (at.time() == jiff::civil::Time::midnight()).then(|| at.date())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Conditions, Config};
    use crate::history::Client;
    use crate::simulate::{Fate, Judge};
    use jiff::SignedDuration;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn now() -> Timestamp {
        "2026-11-23T12:00:00Z".parse().unwrap()
    }

    fn exception(name: &str, source: &str) -> Exception {
        Exception {
            name: name.to_owned(),
            source: source
                .split(' ')
                .map(|network| network.parse().unwrap())
                .collect(),
            users: Vec::new(),
            server: None,
            not_before: None,
            expires: Expiry::Never,
            owner: "o".to_owned(),
            reason: "r".to_owned(),
            conditions: Conditions::default(),
        }
    }

    fn an_exception() -> impl Strategy<Value = Exception> {
        let source = prop::sample::select(vec![
            "10.0.0.1/32",
            "10.0.0.0/8",
            "::/0",
            "0.0.0.0/0",
            "192.0.2.0/24 2001:db8::/32",
        ]);
        (
            source,
            prop::collection::vec(prop::sample::select(vec!["x", "y"]), 0..2),
            prop::option::of(prop::sample::select(vec!["default", "other"])),
            prop::option::of(-1_i64..=1),
            prop::option::of(-1_i64..=1),
            prop::collection::vec(prop::sample::select(vec!["p", "q"]), 0..2),
        )
            .prop_map(|(source, users, server, begin, end, programs)| {
                let at = |seconds| now() + SignedDuration::from_secs(seconds);
                Exception {
                    users: users.into_iter().map(str::to_owned).collect(),
                    server: server.map(str::to_owned),
                    not_before: begin.map(at),
                    expires: end.map_or(Expiry::Never, |seconds| Expiry::At(at(seconds))),
                    conditions: Conditions {
                        programs: programs.into_iter().map(str::to_owned).collect(),
                        ..Conditions::default()
                    },
                    ..exception(source, source)
                }
            })
    }

    proptest! {
        #[test]
        fn the_first_exception_of_which_all_is_met_is_that_of_the_tables(
            exceptions in prop::collection::vec(an_exception(), 0..6),
            address in prop::sample::select(vec!["10.0.0.1", "10.9.9.9", "192.0.2.7", "2001:db8::1", "::1"]),
            user in prop::option::of(prop::sample::select(vec!["x", "y", "z"])),
            program in prop::option::of(prop::sample::select(vec!["p", "r"])),
        ) {
            let address: IpAddr = address.parse().unwrap();
            let login = Login { address: Some(address), user, server: "default", program, last_rule: None };
            // Those that the tables can hold come first.
            let met = exceptions
                .iter()
                .filter(|exception| unmet(exception, &login, now()).is_empty())
                .min_by_key(|exception| exception.conditions.are_some())
                .map(|exception| exception.name.clone());
            let near = near(&exceptions, &login, now());
            let config = Config { exceptions, ..Config::default() };
            let client = Client {
                peer: Some(address),
                user: user.map(Arc::from),
                program: program.map(Arc::from),
                ..Client::in_the_clear()
            };
            let fate = Judge::new(&config, now()).fate_on(0, &client);
            let decided = match fate {
                Fate::Excepted(name) => Some(name.to_owned()),
                Fate::Observed(_) => None,
                Fate::Passes | Fate::Refused(_) | Fate::Undecided(..) => panic!("{fate:?}"),
            };
            prop_assert_eq!(met, decided);
            prop_assert!(near.iter().all(|near| !near.unmet.is_empty()));
        }
    }

    #[test]
    fn a_sentence_names_what_is_not_met() {
        let etl = Exception {
            users: vec!["etl".to_owned()],
            expires: Expiry::At("2026-11-02T00:00:00Z".parse().unwrap()),
            ..exception("etl-batch", "10.1.0.0/16")
        };
        let soon = Exception {
            server: Some("billing".to_owned()),
            not_before: Some("2026-12-01T00:00:00Z".parse().unwrap()),
            ..exception("soon", "10.0.0.0/8 192.0.2.0/24")
        };
        let elsewhere = Exception {
            users: ["a", "etl", "b", "c", "d"].map(str::to_owned).to_vec(),
            expires: Expiry::At("2026-11-24T10:00:00Z".parse().unwrap()),
            ..exception(
                "elsewhere",
                "172.16.0.0/12 192.168.0.0/16 198.51.100.0/24 2001:db8::/32",
            )
        };
        let far = exception("far", "203.0.113.0/24");
        let exceptions = [soon, etl, elsewhere, far];
        let told = |user| {
            let login = Login {
                address: Some("10.1.2.3".parse().unwrap()),
                user,
                server: "orders",
                program: None,
                last_rule: None,
            };
            let near = near(&exceptions, &login, now());
            near.into_iter().map(|near| near.why).collect::<Vec<_>>()
        };
        let soon = "exception soon allows 10.0.0.0/8 on server billing, but this is server orders and it begins on 2026-12-01";
        assert_eq!(
            told(Some("etl")),
            [
                "exception etl-batch allows 10.1.0.0/16 as user etl, but it ended on 2026-11-01",
                "exception elsewhere allows 172.16.0.0/12, 192.168.0.0/16, 198.51.100.0/24 and 1 other networks \
                 as user a, etl, b and 2 other users, but not 10.1.2.3",
                soon,
            ]
        );
        assert_eq!(
            told(None),
            [
                soon,
                "exception etl-batch allows 10.1.0.0/16 as user etl, but for that user only and it ended on 2026-11-01",
            ]
        );
        assert_eq!(
            end("2026-11-01T10:00:00Z".parse().unwrap()),
            "at 2026-11-01T10:00:00Z"
        );
    }
}
