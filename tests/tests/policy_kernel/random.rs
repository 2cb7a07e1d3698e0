//! Policies and sessions made up at random, the same for the same seed.

use std::collections::BTreeSet;
use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use musttls::config::{
    Conditions, Config, Exception, Expiry, Loopback, MAX_NAMED_SERVERS, ModeEnd, OwnTls,
    ServerConfig, TlsPolicy,
};
use musttls_common::mysql::{USER_MAX, USER_OFFSET_41, USER_OFFSET_320};
use musttls_common::policy::{MAX_ENDED, MAX_RULES};
use musttls_common::verdict::Mode;
use musttls_tests::attack::random::Random;

use crate::packet::Form;

/// Ports of servers: more than any policy names.
const PORTS: RangeInclusive<u16> = 3300..=3400;
/// Addresses that networks are made around, beside those that only one policy has: the ends of both address spaces, and places
/// beside the IPv4-mapped part of the IPv6 one (`::ffff:0:0/96`).
const LANDMARKS: [&str; 10] = [
    "0.0.0.0",
    "255.255.255.255",
    "127.0.0.1",
    "::",
    "::1",
    "::a00:1",
    "::fffe:ffff:ffff",
    "::1:0:0:0",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
    "2001:db8::1",
];
const PROGRAMS: [&str; 3] = ["mysqldump", "mysqldum", "etl"];
/// Cipher suites.
const CIPHERS: [u16; 4] = [0x0005, 0x000a, 0x1301, 0xc02f];

/// Makes things up.
pub(crate) struct Maker {
    random: Random,
    /// What time it is when the policy is compiled.
    now: Timestamp,
    /// How long after that sessions come.
    later: SignedDuration,
    addresses: Vec<IpAddr>,
    users: Vec<String>,
}

/// A plaintext login.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    /// The peer; IPv4-mapped, it comes over IPv6.
    pub(crate) peer: IpAddr,
    /// Whom its PROXY header names.
    pub(crate) proxied: Option<IpAddr>,
    pub(crate) is_remote: bool,
    pub(crate) port: u16,
    pub(crate) user: Vec<u8>,
    pub(crate) form: Form,
    pub(crate) flags: u32,
    /// How many bytes of the login are in the packet.
    pub(crate) keep: usize,
    pub(crate) program: Option<&'static str>,
    /// The user id of a client that is local.
    pub(crate) uid: u32,
    pub(crate) cipher: u16,
}

impl Session {
    /// Whether the packet has the whole user name and its NUL.
    pub(crate) fn shows_user(&self) -> bool {
        let at = match self.form {
            Form::Current => USER_OFFSET_41,
            Form::Old => USER_OFFSET_320,
        };
        self.keep > at as usize + self.user.len()
    }
}

impl Maker {
    pub(crate) fn new(seed: u64, now: Timestamp, later: SignedDuration) -> Self {
        let mut random = Random::new(seed);
        let landmarks = LANDMARKS.iter().map(|text| text.parse().unwrap());
        let mut addresses: Vec<IpAddr> = landmarks.collect();
        for _ in 0..random.within(1..4) {
            let [a, b, c, d, ..] = random.number().to_ne_bytes();
            addresses.push(Ipv4Addr::new(a, b, c, d).into());
            addresses.push(Ipv4Addr::new(a, b, c, d ^ 0x81).into());
            let low = u128::from(random.number());
            addresses.push(Ipv6Addr::from(0x2001_0db8 << 96 | low).into());
        }
        let long = "a".repeat(USER_MAX);
        let users = ["etl", "et", "etl2", "ETL", "etl ", "ü", "root", &long];
        let mut users: Vec<String> = users.map(str::to_owned).into();
        users.push("a".repeat(USER_MAX - 1));
        Self {
            random,
            now,
            later,
            addresses,
            users,
        }
    }

    pub(crate) fn config(&mut self) -> Config {
        let count = match self.random.within(0..100) {
            0..=2 => MAX_RULES,
            3..=9 => self.random.within(60..300),
            _ => self.random.within(0..12),
        };
        let servers = self.servers();
        let mut waiting = 0;
        let exceptions = (0..count)
            .map(|_| self.exception(&servers, &mut waiting))
            .collect();
        let trusted = self.random.within(0..3);
        Config {
            mode: self.mode(),
            mode_end: self.mode_end(),
            tls: TlsPolicy {
                refused_ciphers: self.ciphers(),
                ..TlsPolicy::default()
            },
            trusted_proxies: iter::repeat_with(|| self.network()).take(trusted).collect(),
            loopback: if self.random.chance(10) {
                Loopback::Allow
            } else {
                Loopback::SameRule
            },
            panic: self.random.chance(3),
            servers,
            exceptions,
            ..Config::default()
        }
    }

    /// [`MAX_RULES`] exceptions, of which the last allows all clients of one address, so many others from tomorrow on.
    pub(crate) fn waiting(&mut self, count: usize) -> Config {
        let network: IpNet = self.address().into();
        let tomorrow = self.now + SignedDuration::from_hours(24);
        let mut exceptions = vec![
            Exception {
                name: String::new(),
                source: vec![network],
                users: Vec::new(),
                server: None,
                conditions: Conditions::default(),
                not_before: None,
                expires: Expiry::At(self.now),
                owner: String::new(),
                reason: String::new(),
            };
            MAX_RULES
        ];
        for exception in exceptions.iter_mut().take(count) {
            (exception.not_before, exception.expires) = (Some(tomorrow), Expiry::Never);
        }
        if let Some(last) = exceptions.last_mut() {
            last.expires = Expiry::Never;
        }
        Config {
            exceptions,
            ..Config::default()
        }
    }

    fn servers(&mut self) -> Vec<ServerConfig> {
        let count = if self.random.chance(5) {
            MAX_NAMED_SERVERS
        } else {
            self.random.within(0..5)
        };
        let mut ports = PORTS;
        let mut any_port = self.random.chance(30);
        let mut servers: Vec<_> = (1..=count)
            .map(|index| {
                let takes_any = any_port && self.random.chance(50);
                any_port &= !takes_any;
                let own = usize::from(!takes_any);
                ServerConfig {
                    name: format!("s{index}"),
                    ports: ports.by_ref().take(own).collect(),
                    mode: self.random.chance(50).then(|| self.mode()),
                    mode_end: self.mode_end(),
                    tls: OwnTls {
                        refused_ciphers: self.random.chance(50).then(|| self.ciphers()),
                        ..OwnTls::default()
                    },
                    loopback: self.random.chance(20).then_some(Loopback::Allow),
                    index: u16::try_from(index).unwrap(),
                }
            })
            .collect();
        // Entries of the table are given by name, not in the order of the file.
        servers.reverse();
        servers
    }

    /// `waiting` counts those that are in the tables and do not hold when sessions come: the walk gets over [`MAX_ENDED`] of them.
    fn exception(&mut self, servers: &[ServerConfig], waiting: &mut usize) -> Exception {
        let conditions = self.conditions();
        let anywhere = conditions.are_local() && self.random.chance(50);
        let sources = if anywhere {
            0
        } else {
            self.random.within(1..4)
        };
        let source = iter::repeat_with(|| self.network()).take(sources);
        let source = source.collect();
        let users = if self.random.chance(50) {
            self.random.within(1..4)
        } else {
            0
        };
        let mut exception = Exception {
            name: String::new(),
            source,
            users: iter::repeat_with(|| self.random.pick(&self.users).unwrap().clone())
                .take(users)
                .collect(),
            server: if self.random.chance(30) {
                self.random
                    .pick(servers)
                    .map(|server| server.name.clone())
                    .or_else(|| Some("default".to_owned()))
            } else {
                None
            },
            conditions,
            not_before: self.random.chance(20).then(|| self.instant()),
            expires: if self.random.chance(30) {
                Expiry::At(self.instant())
            } else {
                Expiry::Never
            },
            owner: String::new(),
            reason: String::new(),
        };
        if exception.not_before.is_some() || exception.expires != Expiry::Never {
            *waiting += 1;
        }
        if *waiting >= MAX_ENDED - 1 {
            (exception.not_before, exception.expires) = (None, Expiry::Never);
        }
        exception
    }

    fn conditions(&mut self) -> Conditions {
        if !self.random.chance(30) {
            return Conditions::default();
        }
        let program = self.random.pick(&PROGRAMS).map(|&it| it.to_owned());
        let uids = self
            .random
            .chance(50)
            .then(|| (0..3).filter(|_| self.random.chance(50)).collect());
        Conditions {
            programs: if uids.is_none() || self.random.chance(30) {
                program.into_iter().collect()
            } else {
                Vec::new()
            },
            uids,
            ..Conditions::default()
        }
    }

    /// Some instant around those at which the policy is compiled and at which sessions come: a few at which they come.
    fn instant(&mut self) -> Timestamp {
        let milliseconds = i64::try_from(self.random.number() % 20).unwrap();
        let around = [
            SignedDuration::from_secs(-3600),
            SignedDuration::ZERO,
            self.later / 2,
            self.later + SignedDuration::from_millis(milliseconds),
            self.later + SignedDuration::from_secs(3600),
            SignedDuration::from_hours(24 * 365 * 1000),
        ];
        self.now + *self.random.pick(&around).unwrap()
    }

    fn mode(&mut self) -> Mode {
        if self.random.chance(50) {
            Mode::Enforce
        } else {
            Mode::Observe
        }
    }

    fn mode_end(&mut self) -> Option<ModeEnd> {
        self.random.chance(30).then(|| ModeEnd {
            at: self.instant(),
            then: self.mode(),
        })
    }

    fn ciphers(&mut self) -> BTreeSet<u16> {
        CIPHERS
            .into_iter()
            .filter(|_| self.random.chance(30))
            .collect()
    }

    fn address(&mut self) -> IpAddr {
        *self.random.pick(&self.addresses).unwrap()
    }

    fn network(&mut self) -> IpNet {
        let address = self.address();
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let bits = if self.random.chance(40) {
            *self
                .random
                .pick(&[0, 1, 31, 32, 95, 96, 97, 127, 128])
                .unwrap()
        } else {
            u8::try_from(self.random.within(0..129)).unwrap()
        };
        IpNet::new(address, bits.min(longest)).unwrap().trunc()
    }

    /// A login from the first address of the last exception.
    pub(crate) fn session_of(&mut self, config: &Config) -> Session {
        let source = config.exceptions.last().and_then(|it| it.source.first());
        Session {
            peer: source.unwrap().network(),
            proxied: None,
            ..self.session(config)
        }
    }

    /// A login that `config` is asked about.
    pub(crate) fn session(&mut self, config: &Config) -> Session {
        let form = if self.random.chance(85) {
            Form::Current
        } else {
            Form::Old
        };
        let user = self.user();
        let whole = user.len() + 100;
        let named = config.servers.len();
        let last = PORTS.start() + u16::try_from(named.min(8)).unwrap();
        let port = *PORTS.start() + u16::try_from(self.random.within(0..named + 2)).unwrap();
        Session {
            peer: self.client(config),
            proxied: self
                .random
                .chance(25)
                .then(|| self.client(config).to_canonical()),
            is_remote: self.random.chance(60),
            port: if self.random.chance(80) { port } else { last },
            keep: if self.random.chance(10) {
                self.random.within(8..whole)
            } else {
                whole
            },
            user,
            form,
            flags: u32::try_from(self.random.number() >> 32).unwrap(),
            program: self.program(),
            uid: u32::try_from(self.random.within(0..4)).unwrap(),
            cipher: *self.random.pick(&CIPHERS).unwrap(),
        }
    }

    fn program(&mut self) -> Option<&'static str> {
        let is_told = self.random.chance(80);
        self.random.pick(&PROGRAMS).copied().filter(|_| is_told)
    }

    /// One that the policy names, or one beside such.
    fn user(&mut self) -> Vec<u8> {
        let mut user = self.random.pick(&self.users).unwrap().clone().into_bytes();
        match self.random.within(0..10) {
            0 => drop(user.pop()),
            1 => user.push(b'a'),
            2 => user.extend([b'a'; USER_MAX]),
            3 => user = vec![0xff, 0xfe],
            4 => user.clear(),
            _ => {}
        }
        user
    }

    /// A client at an edge of a network of the policy, beside it, within it, or elsewhere.
    fn client(&mut self, config: &Config) -> IpAddr {
        let exception = self.random.pick(&config.exceptions);
        let networks = exception.map_or(&config.trusted_proxies, |one| &one.source);
        let networks = if self.random.chance(20) {
            &config.trusted_proxies
        } else {
            networks
        };
        let network = self.random.pick(networks).copied();
        let client = match network.filter(|_| self.random.chance(85)) {
            None => self.address(),
            Some(IpNet::V4(network)) => {
                let (first, last) = (network.network().to_bits(), network.broadcast().to_bits());
                let within = u32::try_from(self.random.number() >> 32).unwrap();
                let all = [
                    first,
                    last,
                    first.wrapping_sub(1),
                    last.wrapping_add(1),
                    first | within & (last ^ first),
                ];
                Ipv4Addr::from_bits(*self.random.pick(&all).unwrap()).into()
            }
            Some(IpNet::V6(network)) => {
                let (first, last) = (network.network().to_bits(), network.broadcast().to_bits());
                let within =
                    u128::from(self.random.number()) << 64 | u128::from(self.random.number());
                let all = [
                    first,
                    last,
                    first.wrapping_sub(1),
                    last.wrapping_add(1),
                    first | within & (last ^ first),
                ];
                Ipv6Addr::from_bits(*self.random.pick(&all).unwrap()).into()
            }
        };
        match client {
            IpAddr::V4(client) if self.random.chance(30) => client.to_ipv6_mapped().into(),
            client => client,
        }
    }
}
