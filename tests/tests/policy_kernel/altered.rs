//! Changes of one place in the tables, each of which makes the kernel say something else of a session.

use musttls::policy::Tables;
use musttls_common::policy::{Found, LOOPBACK_RULE, MAX_SERVERS, RuleSet, UserKey};

use crate::{Case, mapped};

/// Changes the tables where a session that `found` meets them, if it does.
type Alter = fn(&mut Tables, &Case<'_>, Found) -> Option<()>;

/// All of them: what is altered, and how.
pub(crate) const ALTERATIONS: [(&str, Alter); 15] = [
    ("network: a rule less", |tables, case, found| {
        remove(network(tables, case)?, rule(found)?)
    }),
    ("network: a rule more", |tables, case, found| {
        let rule = one_more(tables, case, found)?;
        network(tables, case)?.insert(rule);
        Some(())
    }),
    ("server: a rule less", |tables, case, found| {
        let server = tables.servers.get_mut(usize::from(case.server))?;
        remove(&mut server.exceptions, rule(found)?)
    }),
    ("user: a rule less", |tables, case, found| {
        let key = UserKey::new(case.user()?)?;
        let mut users = tables.users.iter_mut();
        remove(&mut users.find(|(user, _)| *user == key)?.1, rule(found)?)
    }),
    ("any user: a rule less", |tables, case, found| {
        if names(tables, case) {
            return None;
        }
        remove(&mut tables.root.any_user, rule(found)?)
    }),
    ("time: over", |tables, _, found| {
        tables.times.get_mut(rule(found)?)?.expires_ns = 1;
        Some(())
    }),
    ("time: not yet", |tables, _, found| {
        tables.times.get_mut(rule(found)?)?.begins_ns = u64::MAX;
        Some(())
    }),
    ("conditions: a rule more", |tables, _, found| {
        tables.root.conditional.insert(rule(found)?);
        Some(())
    }),
    ("local: all of them", |tables, case, found| {
        let asks = found == Found::Depends && !case.is_local;
        tables.root.local = tables.root.conditional;
        asks.then_some(())
    }),
    ("loopback", |tables, case, found| {
        let server = tables.servers.get_mut(usize::from(case.server))?;
        server.loopback = 0;
        (found == Found::Rule(LOOPBACK_RULE)).then_some(())
    }),
    ("mode", |tables, case, _| {
        let server = tables.servers.get_mut(usize::from(case.server))?;
        server.mode ^= 1;
        server.mode_then ^= 1;
        Some(())
    }),
    ("cipher suite", |tables, case, _| {
        let mut ciphers = tables.ciphers.iter_mut();
        let (_, servers) = ciphers.find(|(suite, _)| *suite == case.session.cipher)?;
        *servers ^= 1 << case.server;
        Some(())
    }),
    ("port", |tables, case, _| {
        let mut ports = tables.ports.iter_mut();
        let (_, server) = ports.find(|(port, _)| *port == case.session.port)?;
        *server = (*server + 1) % u16::try_from(MAX_SERVERS).unwrap();
        Some(())
    }),
    ("port: of no server", |tables, case, _| {
        let is_named = tables.ports.iter().any(|it| it.0 == case.session.port);
        tables.root.server += 1;
        (!is_named).then_some(())
    }),
    ("proxies", |tables, case, _| {
        let is_proxy = case.session.proxied == Some(case.client) && !case.session.is_remote;
        let trusted = tables.trusts(mapped(case.session.peer));
        tables.trusted.clear();
        (is_proxy && trusted).then_some(())
    }),
];

/// The exception that was found.
fn rule(found: Found) -> Option<usize> {
    match found {
        Found::Rule(LOOPBACK_RULE) | Found::Depends | Found::Nothing => None,
        Found::Rule(rule) => Some(rule.into()),
    }
}

fn remove(set: &mut RuleSet, rule: usize) -> Option<()> {
    *set.0.get_mut(rule / 64)? &= !(1 << (rule % 64));
    Some(())
}

/// The set of the longest prefix of the client's address.
fn network<'t>(tables: &'t mut Tables, case: &Case<'_>) -> Option<&'t mut RuleSet> {
    let client = u128::from_be_bytes(mapped(case.client));
    let is_prefix = |bits: u32, prefix: [u8; 16]| {
        let differ = client ^ u128::from_be_bytes(prefix);
        differ.leading_zeros() >= bits
    };
    let networks = tables.networks.iter_mut();
    networks
        .filter(|(bits, prefix, _)| is_prefix(*bits, *prefix))
        .max_by_key(|(bits, ..)| *bits)
        .map(|(_, _, set)| set)
}

/// Whether the session's user has an entry.
fn names(tables: &Tables, case: &Case<'_>) -> bool {
    let key = case.user().and_then(UserKey::new);
    key.is_some_and(|key| tables.users.iter().any(|(user, _)| *user == key))
}

/// An exception that allows the session but for its network, where nothing allows it.
fn one_more(tables: &Tables, case: &Case<'_>, found: Found) -> Option<usize> {
    let key = case.user().and_then(UserKey::new);
    let user = tables.users.iter().find(|(user, _)| Some(*user) == key);
    let user = user.map_or(&tables.root.any_user, |(_, set)| set);
    let server = tables.servers.get(usize::from(case.server))?;
    let mut times = tables.times.iter().zip(0..);
    let (_, rule) = times.find(|(times, rule)| {
        server.exceptions.contains(*rule)
            && user.contains(*rule)
            && !tables.root.conditional.contains(*rule)
            && times.begins_ns == 0
            && times.holds(u64::MAX - 2)
    })?;
    (found == Found::Nothing).then_some(rule)
}
