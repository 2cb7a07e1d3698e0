//! For tests: what the documentation says of an exception, read one after the other. It knows neither sets nor tables.

use std::net::IpAddr;

use jiff::Timestamp;
use musttls_common::policy::{Found, LOOPBACK_RULE};

use crate::config::{Conditions, Config, Exception, Loopback};

/// A plaintext login, as one who knew all of it would describe it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'s> {
    /// The client: IPv4 as IPv4.
    pub client: IpAddr,
    /// The entry in the table of servers.
    pub server: u16,
    /// The user; `None` if the name cannot be read.
    pub user: Option<&'s [u8]>,
    /// What the client calls itself.
    pub program: Option<&'s str>,
    /// The client's user id on this host; `None` for a client of another host.
    pub uid: Option<u32>,
}

impl Seen<'_> {
    /// Whether it meets the conditions that no table holds.
    #[must_use]
    pub fn meets(&self, conditions: &Conditions) -> bool {
        let is_uid = conditions
            .uids
            .as_ref()
            .is_none_or(|uids| self.uid.is_some_and(|uid| uids.contains(&uid)));
        conditions.meets_program(self.program) && is_uid
    }

    fn is_of(&self, exception: &Exception, server: &str) -> bool {
        let is_user = |user: &[u8]| exception.users.iter().any(|named| named.as_bytes() == user);
        exception.is_for(self.client)
            && exception.server.as_deref().is_none_or(|one| one == server)
            && (exception.users.is_empty() || self.user.is_some_and(is_user))
            && (self.uid.is_some() || !exception.conditions.are_local())
    }
}

/// The exceptions that are for such a login, whenever they hold and whoever meets their conditions: those with conditions, or those
/// without.
pub fn matching<'c>(
    config: &'c Config,
    seen: &Seen<'c>,
    are_conditional: bool,
) -> impl Iterator<Item = (u16, &'c Exception)> {
    let (seen, server) = (*seen, config.server_name(seen.server));
    (0..)
        .zip(&config.exceptions)
        .filter(move |(_, exception)| exception.conditions.are_some() == are_conditional)
        .filter(move |(_, exception)| seen.is_of(exception, server))
}

/// What allows it at `at`, as far as the gate can know.
#[must_use]
pub fn found(config: &Config, seen: &Seen<'_>, at: Timestamp) -> Found {
    let holding = |are_conditional| {
        matching(config, seen, are_conditional).find(|(_, exception)| exception.holds(at))
    };
    if let Some((rule, _)) = holding(false) {
        Found::Rule(rule)
    } else if seen.uid.is_some() && config.loopback_of(seen.server) == Loopback::Allow {
        Found::Rule(LOOPBACK_RULE)
    } else if holding(true).is_some() {
        Found::Depends
    } else {
        Found::Nothing
    }
}

/// What allows it at `at`, once the agent has looked at the conditions.
#[must_use]
pub fn decided(config: &Config, seen: &Seen<'_>, at: Timestamp) -> Option<u16> {
    match found(config, seen, at) {
        Found::Rule(rule) => Some(rule),
        Found::Nothing => None,
        Found::Depends => matching(config, seen, true)
            .find(|(_, exception)| exception.holds(at) && seen.meets(&exception.conditions))
            .map(|(rule, _)| rule),
    }
}
