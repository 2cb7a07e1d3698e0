//! The hosts, servers and the agent of a run, and the clients that load them.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use musttls_tests::agent::Agent;
use musttls_tests::netns::{Host, Net};
use musttls_tests::place::{cache, output};
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{Options, Product, Server};
use musttls_tests::wait;
use musttls_tests::wire::{CLIENT_SSL, LoginPacket, packet, ssl_request};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{ClientConnection, StreamOwned};

/// How long other programs' agents are waited for.
const AGENTS_OF_OTHERS: Duration = Duration::from_mins(15);
/// The policy of all measurements but those of policies.
pub(crate) const ENFORCE: &str = "mode = \"enforce\"\n";

/// How long and how often is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    /// Rounds of `BPF_PROG_TEST_RUN` and of live packets.
    pub(crate) packet_rounds: u32,
    /// Packets there and back in a round, on each connection.
    pub(crate) round_trips: u32,
    /// Pairs with and without the gate.
    pub(crate) pairs: u32,
    /// Seconds of sysbench in each half of a pair; of new sessions, the same.
    pub(crate) pair_time: Duration,
    /// Blocks of logins.
    pub(crate) login_blocks: u32,
    /// Logins in a block, of each kind.
    pub(crate) logins: u32,
    /// Other sessions.
    pub(crate) crowd: u32,
    /// Of the storm of refusals.
    pub(crate) storm: Duration,
    /// Reloads from the small policy to the large one.
    pub(crate) policy_rounds: u32,
    /// Sessions of which no plaintext login may be carried out.
    pub(crate) sessions: u64,
}

impl Scale {
    /// About two minutes.
    pub(crate) const QUICK: Self = Self {
        packet_rounds: 20,
        round_trips: 2_000,
        pairs: 6,
        pair_time: Duration::from_secs(2),
        login_blocks: 3,
        logins: 300,
        crowd: 1_000,
        storm: Duration::from_secs(4),
        policy_rounds: 6,
        sessions: 10_000,
    };

    /// About seven minutes.
    pub(crate) const FULL: Self = Self {
        packet_rounds: 60,
        round_trips: 3_000,
        pairs: 20,
        pair_time: Duration::from_secs(2),
        login_blocks: 8,
        logins: 1_000,
        crowd: 10_000,
        storm: Duration::from_secs(15),
        policy_rounds: 20,
        sessions: 100_000,
    };
}

/// Everything a measurement needs.
#[derive(Debug)]
pub(crate) struct Setting {
    /// How much to measure.
    pub(crate) scale: Scale,
    /// Of the first attempt at random.
    pub(crate) seed: u64,
    /// The agent, running or not.
    pub(crate) agent: Agent,
    is_gated: bool,
    /// Servers without an opinion on plaintext.
    pub(crate) mariadb: Server,
    /// The same of MySQL, if it is installed.
    pub(crate) mysql: Result<Server>,
    /// Servers with `require_secure_transport=ON`.
    pub(crate) mariadb_own: Server,
    /// The same of MySQL.
    pub(crate) mysql_own: Result<Server>,
    /// Hosts; dropped last.
    pub(crate) net: Net,
}

impl Setting {
    /// Makes hosts and servers and starts the agent.
    pub(crate) fn new(scale: Scale) -> Result<Self> {
        raise_descriptors()?;
        let net = Net::new()?;
        for host in [&net.app, &net.db] {
            let tune = || -> std::io::Result<()> {
                // Tens of thousands of short connections between the same two addresses.
                std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "10000 65000")?;
                std::fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")
            };
            host.run(tune)?.context("set the range of ports")?;
        }
        let start = |product, port| {
            let mut options = Options::new(product)
                .port(port)
                .with("--general-log=OFF")
                .with("--max-connections=12000")
                .with("--max-connect-errors=4294967295")
                // What the nftables rule leaves behind goes soon.
                .with("--connect-timeout=2")
                .with("--back-log=4000");
            if product == Product::MariaDb {
                options = options.with("--performance-schema=OFF");
            }
            if port > 3307 {
                options = options.with("--require-secure-transport=ON");
            }
            Server::start(&net.db, &options)
        };
        let mariadb = start(Product::MariaDb, 3306)?;
        let mysql = start(Product::MySql, 3307);
        let mariadb_own = start(Product::MariaDb, 3308)?;
        let mysql_own = start(Product::MySql, 3309);
        await_agents_of_others()?;
        let agent = Agent::start(ENFORCE)?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = now.context("a clock before 1970")?.as_secs() << 20;
        Ok(Self {
            scale,
            seed,
            agent,
            is_gated: true,
            mariadb,
            mysql,
            mariadb_own,
            mysql_own,
            net,
        })
    }

    /// Starts the agent or ends it; it takes its programs with it.
    pub(crate) fn gate(&mut self, on: bool) -> Result<()> {
        if on != self.is_gated {
            if on {
                self.agent.start_again()?;
            } else {
                let status = self.agent.terminate()?;
                ensure!(status.success(), "the agent ended with {status}");
            }
            self.is_gated = on;
        }
        Ok(())
    }

    /// A new agent, with what it has learned so far forgotten.
    pub(crate) fn fresh_gate(&mut self) -> Result<()> {
        self.gate(false)?;
        self.gate(true)
    }

    /// The client's host.
    pub(crate) const fn client(&self) -> &Host {
        &self.net.app
    }

    /// `server` as the client names it.
    pub(crate) fn at(&self, server: &Server) -> SocketAddr {
        server.at(self.net.app.db_v4())
    }
}

/// The root of the cgroup v2 hierarchy, where the gate hangs.
pub(crate) fn cgroup_root() -> Result<File> {
    let mounts = std::fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let path = mounts
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .find_map(|fields| match fields.as_slice() {
            [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
            _ => None,
        })
        .context("cgroup v2 is not mounted, so that no empty program can be attached")?;
    File::open(&path).with_context(|| format!("open {}", path.display()))
}

/// As many as are allowed: the crowd of sessions has two ends, one of them in this program.
fn raise_descriptors() -> Result<()> {
    let former = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: former.maximum,
        maximum: former.maximum,
    };
    setrlimit(Resource::Nofile, wanted).context("raise the limit of open files")
}

/// Waits until no test runs an agent: there can be one on a machine.
fn await_agents_of_others() -> Result<()> {
    for path in [
        cache().join("tests/agent.lock"),
        PathBuf::from("/run/musttls/agent.lock"),
    ] {
        let Ok(lock) = File::open(&path) else {
            continue;
        };
        wait::until_true(
            &format!("{} to be free", path.display()),
            AGENTS_OF_OTHERS,
            || Ok(flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok()),
        )?;
    }
    Ok(())
}

/// A TLS session.
pub(crate) type Session = Raw<StreamOwned<ClientConnection, std::net::TcpStream>>;

/// Opens a TLS session from where this thread is and logs in.
pub(crate) fn open_session(to: SocketAddr, login: &LoginPacket) -> Result<Session> {
    log_in_over_tls(Raw::connect_here(to)?, login)
}

/// Goes over to TLS on a connection, and logs in.
pub(crate) fn log_in_over_tls(mut raw: Raw, login: &LoginPacket) -> Result<Session> {
    raw.greeting()?;
    raw.send(&ssl_request())?;
    let mut session = raw.into_tls()?;
    session.send(&packet(2, &login.clone().caps(CLIENT_SSL).payload_41()))?;
    match session.receive()? {
        next if next.is_ok() => Ok(session),
        other => bail!("no login over TLS: {other:?}"),
    }
}

/// Logs in over plaintext and returns how long the answer took.
pub(crate) fn timed_login(to: SocketAddr, login: &[u8]) -> Result<(Duration, Next)> {
    let mut raw = Raw::connect_here(to)?;
    raw.greeting()?;
    let start = Instant::now();
    raw.send(login)?;
    let next = raw.receive()?;
    Ok((start.elapsed(), next))
}

/// Times of `count` logins, one after the other, each of which must be refused with `wanted`: an error
/// number, or `None` for a reset.
pub(crate) fn timed_logins(
    host: &Host,
    to: SocketAddr,
    login: &[u8],
    count: u32,
    wanted: Option<u16>,
) -> Result<Vec<Duration>> {
    host.run(|| {
        (0..count)
            .map(|_| {
                let (time, next) = timed_login(to, login)?;
                let is_wanted = match wanted {
                    Some(number) => next.error().is_some_and(|error| error.number == number),
                    None => next == Next::Reset,
                };
                ensure!(is_wanted, "{to} answered {next:?} in place of {wanted:?}");
                Ok(time)
            })
            .collect()
    })?
}

/// `nsenter --net` into a host.
pub(crate) fn inside(host: &Host, program: &str) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", host.path().display()))
        .arg(program);
    command
}

/// The first number behind `name` in a file of `key: value` lines.
pub(crate) fn field(path: &Path, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("{} has no {name}", path.display()))
}

/// What `program` prints, in one line; a question mark if it cannot be run.
pub(crate) fn told(program: &str, args: &[&str]) -> String {
    output(Command::new(program).args(args)).map_or_else(
        |_| "?".to_owned(),
        |text| text.lines().next().unwrap_or("?").trim().to_owned(),
    )
}

/// User and system time of a process (`proc_pid_stat(5)`, fields 14 and 15, in clock ticks of 10 ms).
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    // The name, in brackets, may hold anything.
    let (_, fields) = text.rsplit_once(')').context("stat without a name")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 10))
}
