//! Which records are wanted.

use std::net::IpAddr;

use clap::ValueEnum;
use ipnet::IpNet;
use jiff::{Timestamp, ToSpan as _};

use crate::audit::record::Outcome;
use crate::history::Class;
use crate::span::Since;
use crate::trail::record::{Content, Line, Notice, Seen};

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A TCP session in the clear
    Plaintext,
    /// A TLS session
    Tls,
    /// A session over a Unix socket
    Unix,
    /// No session: modes, the gate, losses
    Agent,
}

/// Which records are wanted: those that are all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this instant or later, in milliseconds of Unix time.
    pub since_ms: Option<i64>,
    /// Before this instant.
    pub until_ms: Option<i64>,
    /// Of a client in this network, or for whom a PROXY header names one.
    pub client: Option<IpNet>,
    /// Of this user.
    pub user: Option<String>,
    /// Of this server.
    pub server: Option<String>,
    /// With one of these outcomes; empty for any.
    pub outcomes: Vec<Outcome>,
    /// About one of these; empty for any.
    pub kinds: Vec<Kind>,
}

impl Filter {
    /// Whether `line` is wanted. One that cannot be read is if every one is.
    #[must_use]
    pub fn takes(&self, line: &Line<'_>) -> bool {
        match &line.content {
            Content::Session(seen) => self.takes_session(seen),
            Content::Other(notice) => self.takes_notice(notice),
            Content::Later | Content::Garbage => *self == Self::default(),
        }
    }

    fn takes_session(&self, seen: &Seen<'_>) -> bool {
        let kind = match seen.class {
            Class::Plaintext | Class::NoException | Class::Older => Kind::Plaintext,
            Class::Tls | Class::TlsFailed => Kind::Tls,
            Class::Unix => Kind::Unix,
        };
        let clients = [seen.peer, seen.proxied];
        self.takes_time(seen.time_ms)
            && self.takes_kind(kind)
            && self.takes_server(Some(&seen.server))
            && self.client.is_none_or(|network| {
                let mut clients = clients.into_iter().flatten();
                clients.any(|client| network.contains(&client.to_canonical()))
            })
            && self
                .user
                .as_deref()
                .is_none_or(|user| seen.user.as_deref() == Some(user))
            && (self.outcomes.is_empty() || self.outcomes.contains(&seen.passed))
    }

    fn takes_notice(&self, notice: &Notice<'_>) -> bool {
        self.takes_time(notice.time_ms)
            && self.takes_kind(Kind::Agent)
            && self.takes_server(notice.server.as_deref())
            && self.client.is_none()
            && self.user.is_none()
            && self.outcomes.is_empty()
    }

    fn takes_time(&self, time_ms: i64) -> bool {
        self.since_ms.is_none_or(|since| time_ms >= since)
            && self.until_ms.is_none_or(|until| time_ms < until)
    }

    fn takes_kind(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }

    fn takes_server(&self, server: Option<&str>) -> bool {
        let wanted = self.server.as_deref();
        wanted.is_none() || wanted == server
    }
}

/// Reads until when: as [`Since::parse`], and a day is meant to its end.
pub fn until(text: &str) -> Result<Since, String> {
    match Since::parse(text)? {
        Since::At(day) if text.parse::<Timestamp>().is_err() => {
            let next = day.checked_add(24.hours());
            next.map(Since::At).map_err(|error| error.to_string())
        }
        other => Ok(other),
    }
}

/// Reads a network, or an address as the network of it alone.
pub fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    text.parse::<IpNet>().map_err(|error| {
        format!("{error}; write an address or a network: 10.3.0.7, 10.3.0.0/16, 2001:db8::/32")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail::record::read;

    fn documented() -> impl Iterator<Item = &'static str> {
        let page = include_str!("../../../docs/audit-records.md");
        page.lines()
            .filter(|line| line.starts_with("{\"class_uid\""))
    }

    fn count(filter: &Filter) -> usize {
        let takes = |line: &&str| filter.takes(&read(line.as_bytes()));
        documented().filter(takes).count()
    }

    #[test]
    fn records_are_told_apart_by_each_filter() {
        let all = Filter::default();
        assert_eq!(count(&all), documented().count());
        let kinds = |kinds: &[Kind]| {
            count(&Filter {
                kinds: kinds.to_vec(),
                ..all.clone()
            })
        };
        assert_eq!(kinds(&[Kind::Agent]), 4);
        assert_eq!(kinds(&[Kind::Unix]), 1);
        assert_eq!(kinds(&[Kind::Plaintext]), 5);
        assert_eq!(kinds(&[Kind::Plaintext, Kind::Tls]), 9);
        let outcomes = |outcomes: &[Outcome]| {
            count(&Filter {
                outcomes: outcomes.to_vec(),
                ..all.clone()
            })
        };
        assert_eq!(outcomes(&[Outcome::Denied]), 2);
        assert_eq!(outcomes(&[Outcome::Denied, Outcome::Excepted]), 3);
        let client = |text| {
            count(&Filter {
                client: Some(network(text).unwrap()),
                ..all.clone()
            })
        };
        assert_eq!(client("10.20.0.0/16"), 9);
        assert_eq!(client("10.20.4.17"), 9);
        assert_eq!(client("10.20.4.18"), 0);
        let user = |name: &str| {
            count(&Filter {
                user: Some(name.to_owned()),
                ..all.clone()
            })
        };
        assert_eq!((user("app_rw"), user("app")), (3, 0));
        // The record of another mode is about a server, too.
        let server = |name: &str| {
            count(&Filter {
                server: Some(name.to_owned()),
                ..all.clone()
            })
        };
        assert_eq!((server("orders"), server("default")), (11, 0));
    }

    #[test]
    fn times_have_a_beginning_and_an_end() {
        let time_ms = 1_795_324_678_391;
        let filter = |since_ms, until_ms| Filter {
            since_ms,
            until_ms,
            ..Filter::default()
        };
        assert_eq!(
            count(&filter(Some(time_ms), Some(time_ms + 1))),
            documented().count()
        );
        assert_eq!(count(&filter(Some(time_ms + 1), None)), 0);
        assert_eq!(count(&filter(None, Some(time_ms))), 0);

        let now: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let at = |since: Result<Since, String>| since.unwrap().instant(now).to_string();
        assert_eq!(at(Since::parse("2h")), "2026-11-23T10:00:00Z");
        assert_eq!(at(Since::parse("2026-11-01")), "2026-11-01T00:00:00Z");
        assert_eq!(at(until("2026-11-01")), "2026-11-02T00:00:00Z");
        assert_eq!(
            at(until("2026-11-01T12:00:00+01:00")),
            "2026-11-01T11:00:00Z"
        );
        assert!(
            Since::parse("2026-11-01T12:00:00")
                .unwrap_err()
                .contains("offset")
        );
        assert!(Since::parse("yesterday").is_err() && until("now").is_err());
    }

    #[test]
    fn what_cannot_be_read_is_wanted_by_those_who_want_all() {
        let later = documented()
            .next()
            .unwrap()
            .replace("\"schema_version\":1", "\"schema_version\":2");
        for line in [later.as_str(), "no JSON"] {
            assert!(Filter::default().takes(&read(line.as_bytes())));
            let one = Filter {
                user: Some("x".to_owned()),
                ..Filter::default()
            };
            assert!(!one.takes(&read(line.as_bytes())));
        }
    }

    #[test]
    fn a_network_is_one_of_either_family_or_an_address() {
        assert_eq!(
            network("::ffff:10.0.0.1").unwrap().to_string(),
            "10.0.0.1/32"
        );
        assert_eq!(
            network("2001:db8::/32").unwrap().to_string(),
            "2001:db8::/32"
        );
        assert!(network("db1").unwrap_err().contains("10.3.0.0/16"));
    }
}
