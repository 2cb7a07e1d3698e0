//! The policy compiler: a valid configuration becomes the tables that the kernel evaluates.
//!
//! The tables and their evaluation are those of [`musttls_common::policy`]; [`Tables::found`] evaluates
//! the same tables in user space; `naive`, for tests, knows no tables.
//!
//! An exception with conditions is in the tables like any other; which of them are met the agent says of each session.
//!
//! Bit `i` of a set is `config.exceptions[i]`. An exception that has ended is in no table: the kernel looks at 64 ended ones at the
//! most ([`musttls_common::policy::MAX_ENDED`]). One that has not begun is in them, and the kernel begins it to the instant.
//!
//! Invariant: an IPv6 network never matches an IPv4 client, although `::/0` contains the IPv4-mapped
//! addresses that stand for them (RFC 4291 section 2.5.5.2).

#[cfg(any(test, feature = "probe"))]
pub mod naive;

use std::collections::{BTreeMap, HashMap};
use std::iter;
use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use musttls_common::ABI_VERSION;
use musttls_common::addr::V4_MAPPED_PREFIX_BITS;
use musttls_common::policy::{
    Found, LOOPBACK_RULE, MAX_SERVERS, NEVER, PolicyRoot, Round, RuleSet, RuleTimes, ServerPolicy,
    Sets, UserKey, Walk, first_match,
};
use musttls_common::verdict::Mode;

use crate::canary;
use crate::config::{Conditions, Config, Exception, Existing, Expiry, Floor, Loopback};

/// The IPv4-mapped part of the address space, `::ffff:0:0/96`.
const V4_SPACE: (u128, u32) = (0xffff_0000_0000, V4_MAPPED_PREFIX_BITS);

/// The content of the kernel's policy maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    /// What the policy holds once.
    pub root: PolicyRoot,
    /// [`MAX_SERVERS`] entries; index 0 is the default entry, unused ones are copies of it, the last is the canary's.
    pub servers: Vec<ServerPolicy>,
    /// Prefix length in the 16-byte address space, address, and the union of the sets of all
    /// prefixes that contain it. Sorted by address, then length; at most one entry more than
    /// [`crate::config::MAX_NETWORKS`].
    pub networks: Vec<(u32, [u8; 16], RuleSet)>,
    /// The same for proxies whose PROXY protocol headers are believed: a set that is not empty trusts.
    pub trusted: Vec<(u32, [u8; 16], RuleSet)>,
    /// The exceptions that name a user and those for any user, sorted by name.
    pub users: Vec<(UserKey, RuleSet)>,
    /// When each exception begins and ends, in the order of the configuration.
    pub times: Vec<RuleTimes>,
    /// Refused cipher suites, each with the set of servers that refuse it, bit by index. Sorted by number.
    pub ciphers: Vec<(u16, u64)>,
    /// The ports that servers name, each with the index of its server.
    pub ports: Vec<(u16, u16)>,
}

/// Compiles `config`.
///
/// `now` and `boottime_now_ns` (`CLOCK_BOOTTIME`) are the same instant on two clocks. The kernel
/// compares beginnings and ends with the second, so a step of the wall clock moves them until the next compilation.
#[must_use]
pub fn compile(config: &Config, version: u32, now: Timestamp, boottime_now_ns: u64) -> Tables {
    let clocks = Clocks {
        now,
        boottime_now_ns,
    };
    let live = || {
        config
            .exceptions
            .iter()
            .enumerate()
            .filter(|(_, exception)| exception.expires.holds(now))
    };
    let any_user = set_of(live().filter(|(_, exception)| exception.users.is_empty()));
    let users = users(live(), &any_user);
    let with = |is: fn(&Conditions) -> bool| {
        set_of(live().filter(|(_, exception)| is(&exception.conditions)))
    };
    let servers = (0..MAX_SERVERS)
        .map(|index| {
            let index = u16::try_from(index).unwrap_or(0);
            server(config, index, live(), clocks)
        })
        .collect();
    let root = PolicyRoot {
        any_user,
        conditional: with(Conditions::are_some),
        local: with(Conditions::are_local),
        version,
        abi: ABI_VERSION,
        names_users: u8::from(!users.is_empty()),
        _pad: 0,
        server: config.unnamed_index(),
        _pad2: [0; 3],
    };
    let ports = config.servers.iter().flat_map(|server| {
        let ports = server.ports.iter();
        ports.map(|port| (*port, server.index))
    });
    let times = config
        .exceptions
        .iter()
        .map(|exception| RuleTimes {
            begins_ns: exception
                .not_before
                .map_or(0, |begin| clocks.boottime_ns(begin)),
            expires_ns: match exception.expires {
                Expiry::Never => NEVER,
                Expiry::At(end) => clocks.boottime_ns(end),
            },
        })
        .collect();
    Tables {
        root,
        servers,
        networks: networks(live().map(|(rule, exception)| (rule, sources(exception)))),
        trusted: networks(iter::once((0, &config.trusted_proxies[..]))),
        users,
        times,
        ciphers: ciphers(config),
        ports: ports.collect(),
    }
}

/// A plaintext login, as far as the tables know it.
#[derive(Clone, Copy, Debug)]
pub struct Login<'l> {
    /// The client's address, of 16 bytes, IPv4 as IPv4-mapped.
    pub client: [u8; 16],
    /// Whether it comes over the loopback device, and no trusted proxy has named another client.
    pub is_local: bool,
    /// The index of the server.
    pub server: u16,
    /// The user; `None` when the name could not be read: then only exceptions for any user apply.
    pub user: Option<&'l [u8]>,
}

impl Tables {
    /// What allows a plaintext login, as the gate finds it.
    #[must_use]
    pub fn found(&self, login: &Login<'_>, boottime_ns: u64) -> Found {
        let found = self.sets(login).map_or(Found::Nothing, |sets| {
            first_match(&sets, login.is_local, |rule| self.holds(rule, boottime_ns))
        });
        if !matches!(found, Found::Rule(_)) && login.is_local && self.allows_loopback(login.server)
        {
            return Found::Rule(LOOPBACK_RULE);
        }
        found
    }

    /// The exceptions with conditions that allow the login to whoever meets them, lowest first.
    #[must_use]
    pub fn conditional(&self, login: &Login<'_>, boottime_ns: u64) -> Vec<u16> {
        let Some(sets) = self.sets(login) else {
            return Vec::new();
        };
        let mut walk = Walk::new(login.is_local);
        let mut rules = Vec::new();
        loop {
            match walk.round::<true>(&sets) {
                Round::Rule(rule) if walk.is_at_conditions() && self.holds(rule, boottime_ns) => {
                    rules.extend(u16::try_from(rule));
                }
                Round::Rule(_) | Round::Nothing => {}
                Round::End => return rules,
            }
        }
    }

    /// Whether plaintext over the loopback device is allowed by a server.
    fn allows_loopback(&self, server: u16) -> bool {
        self.server(server)
            .is_some_and(|server| server.loopback != 0)
    }

    fn server(&self, index: u16) -> Option<&ServerPolicy> {
        self.servers
            .get(usize::from(index))
            .or(self.servers.first())
    }

    fn sets(&self, login: &Login<'_>) -> Option<Sets<'_>> {
        let user = login
            .user
            .and_then(UserKey::new)
            .and_then(|key| {
                self.users
                    .binary_search_by_key(&key.0, |(key, _)| key.0)
                    .ok()
            })
            .and_then(|at| self.users.get(at))
            .map_or(&self.root.any_user, |(_, set)| set);
        Some(Sets {
            server: &self.server(login.server)?.exceptions,
            source: longest_match(&self.networks, login.client)?,
            user,
            conditional: &self.root.conditional,
            local: &self.root.local,
        })
    }

    fn holds(&self, rule: u32, boottime_ns: u64) -> bool {
        usize::try_from(rule)
            .ok()
            .and_then(|rule| self.times.get(rule))
            .is_some_and(|times| times.holds(boottime_ns))
    }

    /// Whether PROXY protocol headers of `peer` are believed: whom they name, exceptions are held against.
    #[must_use]
    pub fn trusts(&self, peer: [u8; 16]) -> bool {
        longest_match(&self.trusted, peer).is_some_and(|set| *set != RuleSet::EMPTY)
    }
}

fn longest_match(networks: &[(u32, [u8; 16], RuleSet)], client: [u8; 16]) -> Option<&RuleSet> {
    let client = u128::from_be_bytes(client);
    (0..=128).rev().find_map(|bits| {
        let key = (truncate(client, bits).to_be_bytes(), bits);
        let at = networks
            .binary_search_by_key(&key, |(bits, addr, _)| (*addr, *bits))
            .ok()?;
        networks.get(at).map(|(_, _, set)| set)
    })
}

/// The networks of an exception. One that names none holds for all: its conditions let only clients of this host pass.
fn sources(exception: &Exception) -> &[IpNet] {
    static ALL: LazyLock<[IpNet; 2]> =
        LazyLock::new(|| [Ipv4Net::default().into(), Ipv6Net::default().into()]);
    if exception.source.is_empty() {
        &*ALL
    } else {
        &exception.source
    }
}

fn set_of<'c>(exceptions: impl Iterator<Item = (usize, &'c Exception)>) -> RuleSet {
    let mut set = RuleSet::EMPTY;
    for (rule, _) in exceptions {
        set.insert(rule);
    }
    set
}

fn server<'c>(
    config: &Config,
    index: u16,
    live: impl Iterator<Item = (usize, &'c Exception)>,
    clocks: Clocks,
) -> ServerPolicy {
    if index == canary::SERVER {
        return of_canary();
    }
    // The default entry's name cannot be that of a server (`config` reserves it).
    let name = config.server_name(index);
    let applies = |exception: &Exception| {
        exception
            .server
            .as_deref()
            .is_none_or(|server| server == name)
    };
    let tls = config.tls_of(index);
    let (mode, end) = config.timed_mode_of(index);
    ServerPolicy {
        exceptions: set_of(live.filter(|(_, exception)| applies(exception))),
        mode_until_ns: end.map_or(NEVER, |end| clocks.boottime_ns(end.at)),
        mode: mode as u8,
        mode_then: end.map_or(mode, |end| end.then) as u8,
        refuses_older: u8::from(config.existing == Existing::RefusePlaintext),
        loopback: u8::from(config.loopback_of(index) == Loopback::Allow),
        floor: tls.require.version(),
        observed_floor: tls.observe.map_or(0, Floor::version),
    }
}

/// What the canary is judged by: whatever the configuration says, it is refused.
const fn of_canary() -> ServerPolicy {
    ServerPolicy {
        exceptions: RuleSet::EMPTY,
        mode_until_ns: NEVER,
        mode: Mode::Enforce as u8,
        mode_then: Mode::Enforce as u8,
        refuses_older: 0,
        loopback: 0,
        floor: Floor::Tls.version(),
        observed_floor: 0,
    }
}

/// The refused cipher suites of all servers. A server without settings of its own is the default entry.
fn ciphers(config: &Config) -> Vec<(u16, u64)> {
    let mut sets: BTreeMap<u16, u64> = BTreeMap::new();
    for index in 0..MAX_SERVERS {
        let tls = config.tls_of(u16::try_from(index).unwrap_or(0));
        for suite in tls.refused_ciphers {
            *sets.entry(suite).or_default() |= 1 << index;
        }
    }
    sets.into_iter().collect()
}

fn users<'c>(
    live: impl Iterator<Item = (usize, &'c Exception)>,
    any_user: &RuleSet,
) -> Vec<(UserKey, RuleSet)> {
    let mut sets: HashMap<UserKey, RuleSet> = HashMap::new();
    for (rule, exception) in live {
        for user in &exception.users {
            // `config` lets no name through that does not fit.
            if let Some(key) = UserKey::new(user.as_bytes()) {
                sets.entry(key).or_insert(*any_user).insert(rule);
            }
        }
    }
    let mut users: Vec<_> = sets.into_iter().collect();
    users.sort_unstable_by_key(|(key, _)| key.0);
    users
}

/// The networks, each with the union of all that contain it.
///
/// Sorted by address and length, a prefix comes behind all that contain it, and those still open form
/// a stack; so each prefix is joined once with the one on top, which holds the union already.
fn networks<'c>(
    rules: impl Iterator<Item = (usize, &'c [IpNet])>,
) -> Vec<(u32, [u8; 16], RuleSet)> {
    let mut sets: BTreeMap<(u128, u32), RuleSet> = BTreeMap::new();
    for (rule, source) in rules {
        for network in source {
            sets.entry(prefix(*network))
                .or_insert(RuleSet::EMPTY)
                .insert(rule);
        }
    }
    // Parts IPv4 from the IPv6 prefixes around it, which would match IPv4 clients too.
    if sets
        .keys()
        .any(|&(address, bits)| bits < V4_SPACE.1 && truncate(V4_SPACE.0, bits) == address)
    {
        sets.entry(V4_SPACE).or_insert(RuleSet::EMPTY);
    }
    let mut open: Vec<(u128, u32, RuleSet)> = Vec::new();
    let mut networks = Vec::with_capacity(sets.len());
    for ((address, bits), mut set) in sets {
        while open
            .last()
            .is_some_and(|&(outer, len, _)| truncate(address, len) != outer)
        {
            open.pop();
        }
        if let Some((_, _, outer)) = open.last()
            && (address, bits) != V4_SPACE
        {
            set.union(outer);
        }
        open.push((address, bits, set));
        networks.push((bits, address.to_be_bytes(), set));
    }
    networks
}

/// Address and length of `network` in the 16-byte address space.
fn prefix(network: IpNet) -> (u128, u32) {
    let bits = u32::from(network.prefix_len());
    match network.network() {
        IpAddr::V4(v4) => (
            u128::from(v4.to_ipv6_mapped()),
            bits + V4_MAPPED_PREFIX_BITS,
        ),
        IpAddr::V6(v6) => (u128::from(v6), bits),
    }
}

/// `address` with everything behind its first `bits` bits zeroed.
const fn truncate(address: u128, bits: u32) -> u128 {
    match u128::MAX.checked_shr(bits) {
        Some(host) => address & !host,
        None => address,
    }
}

/// The same instant on two clocks.
#[derive(Clone, Copy)]
struct Clocks {
    now: Timestamp,
    /// `CLOCK_BOOTTIME`.
    boottime_now_ns: u64,
}

impl Clocks {
    /// An instant as the kernel compares it: 0 if it has come, and never [`NEVER`].
    fn boottime_ns(self, at: Timestamp) -> u64 {
        let left = u128::try_from(at.as_nanosecond() - self.now.as_nanosecond()).unwrap_or(0);
        if left == 0 {
            return 0;
        }
        // 584 years: an instant beyond them is not NEVER, but no machine is up that long.
        u64::try_from(left).map_or(NEVER - 1, |left| {
            self.boottime_now_ns.saturating_add(left).min(NEVER - 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::naive::Seen;
    use super::*;
    use crate::address::octets;
    use crate::config::{ModeEnd, OwnTls, ServerConfig};
    use jiff::SignedDuration;
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::{Duration, Instant};

    const BOOTTIME: u64 = 1_000_000_000;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn exception(source: &[&str]) -> Exception {
        Exception {
            name: "e".to_owned(),
            source: source
                .iter()
                .map(|network| network.parse().unwrap())
                .collect(),
            users: Vec::new(),
            server: None,
            conditions: Conditions::default(),
            not_before: None,
            expires: Expiry::Never,
            owner: "o".to_owned(),
            reason: "r".to_owned(),
        }
    }

    fn config(exceptions: Vec<Exception>) -> Config {
        let server = |name: &str, mode, index| ServerConfig {
            name: name.to_owned(),
            ports: vec![],
            mode,
            mode_end: None,
            tls: OwnTls::default(),
            loopback: (index == 2).then_some(Loopback::Allow),
            index,
        };
        Config {
            servers: vec![server("a", Some(Mode::Enforce), 1), server("b", None, 2)],
            exceptions,
            ..Config::default()
        }
    }

    /// What gate and agent say together.
    fn found(config: &Config, tables: &Tables, seen: &Seen<'_>, boottime_ns: u64) -> Option<u16> {
        let login = Login {
            client: octets(seen.client),
            is_local: seen.uid.is_some(),
            server: seen.server,
            user: seen.user,
        };
        match tables.found(&login, boottime_ns) {
            Found::Rule(rule) => Some(rule),
            Found::Nothing => None,
            Found::Depends => tables
                .conditional(&login, boottime_ns)
                .into_iter()
                .find(|rule| seen.meets(&config.exceptions[usize::from(*rule)].conditions)),
        }
    }

    fn addresses() -> impl Strategy<Value = IpAddr> {
        // Few addresses, close together, so that networks hold several and several hold an address.
        prop_oneof![
            (0..4u8, 0..4u8).prop_map(|(c, d)| IpAddr::from(Ipv4Addr::new(10, 0, c << 6, d << 6))),
            Just(IpAddr::from(Ipv4Addr::new(200, 1, 2, 3))),
            (0..4u16, 0..4u16).prop_map(|(c, d)| {
                IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, c << 14, 0, 0, 0, 0, d << 14))
            }),
            Just(IpAddr::from(Ipv6Addr::LOCALHOST)),
            Just(IpAddr::from(Ipv6Addr::new(
                0, 0, 0, 0, 0, 0xfffe, 0x0a00, 1
            ))),
        ]
    }

    fn network_around() -> impl Strategy<Value = IpNet> {
        (addresses(), 0..=128u8).prop_map(|(address, bits)| {
            let longest = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, bits.min(longest)).unwrap().trunc()
        })
    }

    fn an_exception() -> impl Strategy<Value = Exception> {
        (
            prop::collection::vec(network_around(), 1..4),
            prop::collection::vec(prop::sample::select(vec!["x", "y"]), 0..2),
            prop::option::of(prop::sample::select(vec!["a", "b"])),
            prop::option::of(prop::sample::select(vec![-1i64, 0, 10, 15])),
            prop::sample::select(vec![-1i64, 0, 10, 20, i64::MAX]),
            (
                prop::option::of(Just("p".to_owned())),
                prop::option::of(prop::collection::vec(1..3u32, 0..2)),
                any::<bool>(),
            ),
        )
            .prop_map(
                |(source, users, server, ahead, left, (program, uids, anywhere))| Exception {
                    source: if uids.is_some() && anywhere {
                        vec![]
                    } else {
                        source
                    },
                    conditions: Conditions {
                        programs: program.into_iter().collect(),
                        uids,
                        ..Conditions::default()
                    },
                    users: users.into_iter().map(str::to_owned).collect(),
                    server: server.map(str::to_owned),
                    not_before: ahead.map(|ahead| now() + SignedDuration::from_secs(ahead)),
                    expires: match left {
                        i64::MAX => Expiry::Never,
                        left => Expiry::At(now() + SignedDuration::from_secs(left)),
                    },
                    ..exception(&[])
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]
        #[test]
        fn the_tables_say_what_each_exception_says(
            exceptions in prop::collection::vec(an_exception(), 0..8),
            clients in prop::collection::vec(addresses(), 1..6),
            later in prop::sample::select(vec![0u64, 9, 10, 15, 20]),
        ) {
            let config = config(exceptions);
            let tables = compile(&config, 1, now(), BOOTTIME);
            let at = now() + Duration::from_secs(later);
            let boottime = BOOTTIME + later * 1_000_000_000;
            for client in clients {
                for server in 0..4 {
                    for user in [None, Some("x"), Some("y"), Some("z")] {
                        for (program, uid) in [(None, None), (Some("p"), None), (Some("p"), Some(1)), (Some("q"), Some(2))] {
                            let user = user.map(str::as_bytes);
                            let seen = Seen { client, server, user, program, uid };
                            prop_assert_eq!(
                                found(&config, &tables, &seen, boottime),
                                naive::decided(&config, &seen, at),
                                "{:?}", seen
                            );
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn nested_prefixes_hold_the_union() {
        let config = config(vec![
            exception(&["10.0.0.0/8", "192.0.2.0/24"]),
            exception(&["10.1.0.0/16"]),
            exception(&["10.1.2.0/24", "10.2.0.0/16"]),
        ]);
        let tables = compile(&config, 1, now(), BOOTTIME);
        let sets: Vec<(u32, u64)> = tables
            .networks
            .iter()
            .map(|(bits, _, set)| (*bits, set.0[0]))
            .collect();
        assert_eq!(
            sets,
            [
                (104, 0b001),
                (112, 0b011),
                (120, 0b111),
                (112, 0b101),
                (120, 0b001)
            ]
        );
    }

    #[test]
    fn an_ipv6_network_does_not_allow_ipv4_clients() {
        let config = config(vec![exception(&["::/0"]), exception(&["10.0.0.0/8"])]);
        let tables = compile(&config, 1, now(), BOOTTIME);
        let rule = |client: &str| {
            let login = Login {
                client: octets(client.parse().unwrap()),
                is_local: false,
                server: 0,
                user: None,
            };
            match tables.found(&login, BOOTTIME) {
                Found::Rule(rule) => Some(rule),
                Found::Depends | Found::Nothing => None,
            }
        };
        assert_eq!(rule("2001:db8::1"), Some(0));
        assert_eq!(rule("10.0.0.1"), Some(1));
        assert_eq!(rule("192.0.2.1"), None);
    }

    #[test]
    fn trusted_proxies_have_a_table_of_their_own() {
        let config = Config {
            trusted_proxies: vec!["192.0.2.0/24".parse().unwrap(), "::/0".parse().unwrap()],
            ..config(vec![exception(&["10.0.0.0/8"])])
        };
        let tables = compile(&config, 1, now(), BOOTTIME);
        let trusts = |peer: &str| tables.trusts(octets(peer.parse().unwrap()));
        assert!(trusts("192.0.2.255") && trusts("2001:db8::1"));
        assert!(!trusts("192.0.3.0") && !trusts("10.0.0.1"));
        assert_eq!(tables.networks.len(), 1);
    }

    #[test]
    fn every_server_entry_is_filled() {
        let mut only_b = exception(&["10.0.0.0/8"]);
        only_b.server = Some("b".to_owned());
        let config = config(vec![exception(&["10.0.0.0/8"]), only_b]);
        let tables = compile(&config, 7, now(), BOOTTIME);
        assert_eq!(tables.servers.len(), MAX_SERVERS);
        let entries: Vec<(u64, u8)> = tables
            .servers
            .iter()
            .take(4)
            .map(|s| (s.exceptions.0[0], s.mode))
            .collect();
        assert_eq!(entries, [(0b01, 0), (0b01, 1), (0b11, 0), (0b01, 0)]);
        assert_eq!((tables.root.version, tables.root.abi), (7, ABI_VERSION));
    }

    #[test]
    fn each_server_has_its_floor_and_its_set_of_cipher_suites() {
        let mut config = config(vec![]);
        config.tls.observe = Some(Floor::V1_2);
        config.tls.refused_ciphers = [0x0005, 0x000a].into();
        for (server, tls) in config.servers.iter_mut().zip([
            OwnTls {
                require: Some(Floor::V1_2),
                refused_ciphers: Some([0x000a, 0x1303].into()),
                ..OwnTls::default()
            },
            OwnTls {
                observe: Some(Floor::V1_3),
                ..OwnTls::default()
            },
        ]) {
            server.tls = tls;
        }
        let tables = compile(&config, 1, now(), BOOTTIME);
        let floors: Vec<(u16, u16)> = tables
            .servers
            .iter()
            .take(4)
            .map(|server| (server.floor, server.observed_floor))
            .collect();
        // What is observed everywhere is no more than server `a` requires.
        assert_eq!(
            floors,
            [
                (0x0301, 0x0303),
                (0x0303, 0),
                (0x0301, 0x0304),
                (0x0301, 0x0303)
            ]
        );
        assert_eq!(
            tables.ciphers,
            [(0x0005, !0b10), (0x000a, !0), (0x1303, 0b10)]
        );
    }

    #[test]
    fn ended_exceptions_are_in_no_table() {
        let mut ended = exception(&["10.0.0.0/8"]);
        ended.users = vec!["etl".to_owned()];
        ended.expires = Expiry::At(now());
        let tables = compile(&config(vec![ended]), 1, now(), BOOTTIME);
        assert!(tables.networks.is_empty() && tables.users.is_empty());
        assert_eq!(tables.root.names_users, 0);
        let never = RuleTimes {
            begins_ns: 0,
            expires_ns: 0,
        };
        assert_eq!(tables.times, [never]);
    }

    #[test]
    fn modes_end_when_they_are_to() {
        let mut config = config(vec![]);
        config.mode = Mode::Enforce;
        let end = |seconds, then| ModeEnd {
            at: now() + SignedDuration::from_secs(seconds),
            then,
        };
        config.mode_end = Some(end(60, Mode::Observe));
        let mut server = config.servers[0].clone();
        (server.mode, server.mode_end) = (Some(Mode::Observe), Some(end(30, Mode::Enforce)));
        config.servers = vec![server];
        let tables = compile(&config, 1, now(), BOOTTIME);
        let modes = |seconds: u64| {
            [0, 1].map(|index| tables.servers[index].mode(|| BOOTTIME + seconds * 1_000_000_000))
        };
        assert_eq!(modes(29), [Mode::Enforce, Mode::Observe]);
        assert_eq!(modes(30), [Mode::Enforce, Mode::Enforce]);
        assert_eq!(modes(60), [Mode::Observe, Mode::Enforce]);
        let later = now() + SignedDuration::from_secs(30);
        assert!(config.has_ended_mode(later) && !config.at(later).has_ended_mode(later));
        assert_eq!(config.at(later).timed_mode_of(1), (Mode::Enforce, None));
        assert_eq!(config.at(later).timed_mode_of(0), config.timed_mode_of(0));
        config.panic = true;
        let tables = compile(&config, 1, now(), BOOTTIME);
        let modes = tables.servers.iter().map(|it| it.mode(|| NEVER));
        let mut modes: Vec<_> = modes.collect();
        assert_eq!(modes.pop(), Some(Mode::Enforce), "the canary");
        assert!(modes.into_iter().all(|mode| mode == Mode::Observe));
    }

    #[test]
    fn instants_are_those_of_the_boot_clock() {
        let clocks = Clocks {
            now: now(),
            boottime_now_ns: 5,
        };
        let at = |text: &str| clocks.boottime_ns(text.parse().unwrap());
        assert_eq!(at("2026-11-22T12:00:01Z"), 1_000_000_005);
        assert_eq!(at("2026-11-22T11:59:59Z"), 0);
        assert_eq!(at("9999-12-30T00:00:00Z"), NEVER - 1);
    }

    #[test]
    fn a_hundred_thousand_networks_compile_quickly() {
        let source = (0..100_000u32)
            .map(|n| IpNet::new(Ipv4Addr::from(0x0a00_0000 | n << 4).into(), 28).unwrap())
            .collect();
        let config = config(vec![
            Exception {
                source,
                ..exception(&[])
            },
            exception(&["0.0.0.0/0"]),
        ]);
        let started = Instant::now();
        let tables = compile(&config, 1, now(), BOOTTIME);
        assert_eq!(tables.networks.len(), 100_001);
        assert!(
            tables
                .networks
                .iter()
                .skip(1)
                .all(|(_, _, set)| set.0[0] == 0b11)
        );
        // Debug build on a slow machine; the square of 100,000 is minutes.
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{:?}",
            started.elapsed()
        );
    }
}
