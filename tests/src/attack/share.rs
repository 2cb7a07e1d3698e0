//! Where attempts at random are made: one share of them for each kind of server and way to it.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::random::{self, Random};
use super::{Attempt, EXCEPTED, Stream, Streams, UNNAMED_OPTIONS, UNNAMED_PORT, honest, patient};
use crate::netns::Net;
use crate::server::{Options, PORT, Product, Server};
use crate::tcp::Stack;

/// Attempts at a time.
pub const BATCH: usize = 400;
/// How long the last of a batch may take that come to nothing.
const A_MOMENT: Duration = Duration::from_millis(60);
/// One honest client for so many attempts.
const HONEST: usize = 50;
/// A session that nobody ends is not ended by the server either while a test waits for it.
const PATIENT: &str = "--connect-timeout=60";

/// A kind of server, and how it is reached.
#[derive(Clone, Copy, Debug)]
pub struct Share {
    /// Which server.
    pub product: Product,
    /// Whether it offers TLS.
    pub tls: bool,
    /// Whether attempts come over IPv6.
    pub v6: bool,
    /// The users that an exception names.
    pub excepted: &'static [&'static str],
    /// Whether the server's host answers each SYN by a cookie; else it takes payload in the SYN.
    pub cookies: bool,
    /// Where attempts go.
    pub port: u16,
    /// Makes up an attempt from its seed.
    attempt: fn(u64, &Stream) -> Attempt,
}

impl Share {
    const MARIADB: Self = Self {
        product: Product::MariaDb,
        tls: true,
        v6: false,
        excepted: &[],
        cookies: false,
        port: PORT,
        attempt: random::attempt,
    };

    /// Those whose clients wait for the greeting, mostly.
    pub const GREETED: [Self; 5] = [
        Self::MARIADB,
        Self {
            v6: true,
            cookies: true,
            ..Self::MARIADB
        },
        Self {
            tls: false,
            ..Self::MARIADB
        },
        // On a port of its own, so that one policy can tell it from the others.
        Self {
            excepted: &EXCEPTED,
            port: 3310,
            ..Self::MARIADB
        },
        Self {
            product: Product::MySql,
            ..Self::MARIADB
        },
    ];

    /// The one whose clients send most before the greeting, on a port that nothing names.
    pub const EARLY: Self = Self {
        port: UNNAMED_PORT,
        attempt: random::early_attempt,
        ..Self::MARIADB
    };

    /// Whether it is as any client would find a server: TLS, IPv4, the port that everybody knows.
    #[must_use]
    pub const fn is_plain(&self) -> bool {
        self.tls && !self.v6 && self.port == PORT
    }

    /// Starts the server on its host.
    pub fn server(&self, net: &Net) -> Result<Server> {
        // 0x403: Fast Open for clients, servers, and every listener; 0x200: without a cookie of the client's.
        let (name, value) = if self.cookies {
            ("syncookies", "2")
        } else {
            ("fastopen", "1539")
        };
        net.db.set_sysctl(&format!("net.ipv4.tcp_{name}"), value)?;
        let mut options = patient(Options::new(self.product)).with(PATIENT);
        options.tls = self.tls;
        if self.port == UNNAMED_PORT {
            for option in UNNAMED_OPTIONS {
                options = options.with(option);
            }
        } else {
            options = options.port(self.port);
        }
        Server::start(&net.db, &options)
    }

    /// Gets ready to attack `server`, with honest clients from `seed` on.
    pub fn site<'a>(&self, net: &Net, server: &'a Server, seed: u64) -> Result<Site<'a>> {
        let to = if self.v6 {
            net.app.db_v6()
        } else {
            net.app.db_v4()
        };
        Ok(Site {
            server,
            stack: Stack::new(&net.app, &net.db, SocketAddr::new(to, self.port))?,
            streams: Streams::new(server, self.v6).excepting(self.excepted),
            random: Random::new(seed),
            attempt: self.attempt,
            honest: 0,
        })
    }
}

/// A server under attack.
#[derive(Debug)]
pub struct Site<'a> {
    server: &'a Server,
    stack: Stack,
    streams: Streams<'a>,
    random: Random,
    attempt: fn(u64, &Stream) -> Attempt,
    honest: u64,
}

impl Site<'_> {
    /// Makes the attempts of these seeds, and has honest clients log in behind them.
    pub fn make(&mut self, seeds: Range<u64>) -> Result<Vec<Attempt>> {
        let mut attempts = Vec::new();
        for seed in seeds {
            attempts.push((self.attempt)(seed, &self.streams.make()));
        }
        super::make(&mut self.stack, &attempts, Duration::ZERO, A_MOMENT)?;
        if self.server.offers_tls() {
            for _ in 0..attempts.len().div_ceil(HONEST) {
                let isn = self.random.initial_sequence_number();
                honest::log_in(&mut self.stack, self.server, isn).context("an honest client")?;
                self.honest += 1;
            }
        }
        Ok(attempts)
    }

    /// The next stream, as another client may send it.
    pub fn stream(&mut self) -> Stream {
        self.streams.make()
    }

    /// How many honest clients have logged in.
    #[must_use]
    pub const fn honest(&self) -> u64 {
        self.honest
    }

    /// The server.
    #[must_use]
    pub const fn server(&self) -> &Server {
        self.server
    }
}
