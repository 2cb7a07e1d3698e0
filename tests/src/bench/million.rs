//! Plaintext logins that a server carries out in enforce mode: none, of as many sessions as are asked for.
//!
//! A round is a batch of attempts at random on each kind of server, and beside it, by ordinary sockets and from
//! several addresses, plaintext logins with a command behind them and TLS sessions. After each round the servers
//! are asked: their tables, their general logs, whether they still hold a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use musttls_tests::agent::Agent;
use musttls_tests::attack::share::{BATCH, Share, Site};
use musttls_tests::attack::{self, Attempt};
use musttls_tests::evidence;
use musttls_tests::netns::{Host, Net};
use musttls_tests::raw::Raw;
use musttls_tests::server::{OPEN_USER, Server};
use musttls_tests::wire::{COM_QUIT, LoginPacket, REFUSED};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};

use super::numbers::float;
use super::report::{Line, Verdict};
use super::setting::{ENFORCE, Setting, field, log_in_over_tls};

/// The goal.
const WANTED: u64 = 1_000_000;
/// At most so long.
const LIMIT: Duration = Duration::from_mins(40);
/// Plaintext logins of one client in a round.
const PLAIN: u64 = 500;
/// One TLS session for so many.
const HONEST: u64 = 50;
/// Last byte of the addresses that client hosts get beside their own.
const MORE_ADDRESSES: [u8; 2] = [10, 11];
/// How long the agent may take to count the last session.
const COUNTED: Duration = Duration::from_secs(5);
/// The counter of all sessions.
const SEEN: &str = "seen";

const SHARES: [Share; 6] = {
    let [a, b, c, d, e] = Share::GREETED;
    [a, b, c, d, e, Share::EARLY]
};

/// What was made, and what came of it.
#[derive(Debug, Default)]
struct Tally {
    attempts: u64,
    plain: u64,
    refused: u64,
    honest: u64,
    rounds: u64,
    carried_out: u64,
    logged: u64,
    seeds: Vec<String>,
}

impl Tally {
    const fn sessions(&self) -> u64 {
        self.attempts + self.plain + self.honest
    }

    const fn executed(&self) -> u64 {
        if self.carried_out > self.logged {
            self.carried_out
        } else {
            self.logged
        }
    }
}

pub(super) fn measure(setting: &mut Setting) -> Result<Vec<Line>> {
    let lines = with_own_policy(setting);
    // What follows expects the policy of the others.
    setting.gate(false)?;
    setting.agent.home().configure(ENFORCE)?;
    lines
}

fn with_own_policy(setting: &mut Setting) -> Result<Vec<Line>> {
    let nets: Vec<_> = SHARES.iter().map(|_| Net::new()).collect::<Result<_>>()?;
    let places: Vec<_> = SHARES.iter().zip(&nets).collect();
    let servers: Vec<_> = places
        .iter()
        .map(|(share, net)| share.server(net))
        .collect::<Result<_>>()?;
    let mut sites = Vec::new();
    for ((share, net), server) in places.iter().zip(&servers) {
        sites.push(share.site(net, server, setting.seed)?);
    }

    setting.gate(false)?;
    setting.agent.home().configure("mode = \"observe\"")?;
    setting.gate(true)?;
    let (before, works) = control(&mut sites, setting.seed)?;
    setting.gate(false)?;
    setting.agent.home().configure(&policy())?;
    setting.gate(true)?;

    let clients = clients(&mut sites, &nets)?;
    let mut run = Run {
        sites,
        clients,
        before,
        seed: setting.seed,
        tally: Tally::default(),
    };
    let start = Instant::now();
    let mut first = None;
    while run.tally.sessions() < setting.scale.sessions
        && run.tally.executed() == 0
        && start.elapsed() < LIMIT
    {
        run.round()?;
        // The first round's allocations are those of any.
        if first.is_none() {
            first = Some(Held::by(&setting.agent, &nets, &servers)?);
        }
        eprintln!(
            "{:7} s  {} sessions, {} carried out",
            start.elapsed().as_secs(),
            run.tally.sessions(),
            run.tally.executed()
        );
    }
    let time = start.elapsed();
    ensure!(setting.agent.is_running()?, "{}", setting.agent.log()?);
    let first = first.context("no round was made")?;
    let last = Held::by(&setting.agent, &nets, &servers)?;
    let mut lines = of_tally(&run.tally, setting.scale.sessions, time, works);
    lines.extend(of_counters(&setting.agent, &run.tally)?);
    lines.extend(Held::lines(&first, &last));
    Ok(lines)
}

/// Enforce mode, where an exception allows other users at one of the servers.
fn policy() -> String {
    let lures = SHARES.iter().filter(|share| !share.excepted.is_empty());
    let lures = lures.map(|share| {
        let (port, users) = (share.port, share.excepted);
        format!(
            "[[server]]\nname = \"at-{port}\"\nports = [{port}]\n\
             [[exception]]\nname = \"lure-{port}\"\nserver = \"at-{port}\"\nsource = [\"0.0.0.0/0\", \"::/0\"]\n\
             user = {users:?}\nexpires = \"never\"\nowner = \"bench\"\nreason = \"to be misused\"\n"
        )
    });
    std::iter::once(ENFORCE.to_owned()).chain(lures).collect()
}

/// What is in each server's table, and how many attempts of a batch each got in while nothing is refused.
fn control(sites: &mut [Site<'_>], seed: u64) -> Result<(Vec<BTreeSet<u32>>, usize)> {
    let mut before = Vec::new();
    for site in &mut *sites {
        site.make(batch(seed))?;
        before.push(attack::carried_out(site.server())?);
    }
    let works = before.iter().map(BTreeSet::len).sum();
    Ok((before, works))
}

const fn batch(seed: u64) -> std::ops::Range<u64> {
    seed..seed + BATCH as u64
}

/// A client with an address of its own, of one server.
struct Client<'a> {
    host: &'a Host,
    from: IpAddr,
    to: SocketAddr,
    login: LoginPacket,
    plain: Vec<u8>,
}

/// Four for each of two servers, over IPv4 and IPv6.
fn clients<'a>(sites: &mut [Site<'_>], nets: &'a [Net]) -> Result<Vec<Client<'a>>> {
    let mut clients = Vec::new();
    let attacked = SHARES.iter().zip(sites).zip(nets);
    for ((share, site), net) in attacked.filter(|((share, _), _)| share.is_plain()) {
        // Tens of thousands of short connections between the same addresses.
        for (name, value) in [
            ("ip_local_port_range", "10000 65000"),
            ("tcp_tw_reuse", "1"),
        ] {
            for host in [&net.app, &net.legacy] {
                host.set_sysctl(&format!("net.ipv4.{name}"), value)?;
            }
        }
        for host in [&net.app, &net.legacy] {
            for (number, to) in MORE_ADDRESSES.into_iter().zip([host.db_v4(), host.db_v6()]) {
                clients.push(Client {
                    host,
                    from: host.add_address(to.is_ipv4(), number)?,
                    to: SocketAddr::new(to, share.port),
                    login: site.server().open_login(),
                    plain: site.stream().plain,
                });
            }
        }
    }
    Ok(clients)
}

impl Client<'_> {
    fn connect(&self) -> Result<Raw> {
        let family = if self.to.is_ipv4() {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .context("open a socket")?;
        bind(&socket, &SocketAddr::new(self.from, 0))
            .with_context(|| format!("bind {}", self.from))?;
        connect(&socket, &self.to).with_context(|| format!("connect to {}", self.to))?;
        Raw::over(TcpStream::from(socket))
    }

    /// A share of a round: how many plaintext logins there were, how many of them got error 3159, and how many TLS
    /// sessions.
    fn log_in(&self) -> Result<[u64; 3]> {
        self.host.run(|| {
            let (mut refused, mut honest) = (0, 0);
            for number in 0..PLAIN {
                let mut raw = self.connect()?;
                raw.greeting()?;
                raw.send(&self.plain)?;
                let error = raw.receive()?.error();
                refused += u64::from(error.is_some_and(|error| error.number == REFUSED));
                if number.is_multiple_of(HONEST) {
                    log_in_over_tls(self.connect()?, &self.login)?.send(&COM_QUIT)?;
                    honest += 1;
                }
            }
            Ok([PLAIN, refused, honest])
        })?
    }
}

struct Run<'a> {
    sites: Vec<Site<'a>>,
    clients: Vec<Client<'a>>,
    /// What was in the servers' tables.
    before: Vec<BTreeSet<u32>>,
    seed: u64,
    tally: Tally,
}

impl Run<'_> {
    fn round(&mut self) -> Result<()> {
        let Self {
            sites,
            clients,
            before,
            seed,
            tally,
        } = self;
        let mut marks = Vec::new();
        for site in &*sites {
            marks.push(evidence::mark(site.server())?);
        }
        let honest_before: u64 = sites.iter().map(Site::honest).sum();
        let (attempts, counts) = thread::scope(|scope| -> Result<_> {
            let clients: Vec<_> = clients
                .iter()
                .map(|client| scope.spawn(|| client.log_in()))
                .collect();
            let attempts: Vec<Vec<Attempt>> = sites
                .iter_mut()
                .map(|site| site.make(batch(*seed)))
                .collect::<Result<_>>()?;
            let mut counts = Vec::new();
            for client in clients {
                let done = client.join();
                counts.push(done.unwrap_or_else(|_| anyhow::bail!("a client panicked"))?);
            }
            Ok((attempts, counts))
        })?;
        *seed += BATCH as u64;

        let mut by_sockets = 0;
        for [plain, refused, honest] in counts {
            tally.plain += plain;
            tally.refused += refused;
            by_sockets += honest;
        }
        let honest = by_sockets + sites.iter().map(Site::honest).sum::<u64>() - honest_before;
        tally.honest += honest;
        tally.attempts += attempts.iter().map(Vec::len).sum::<usize>() as u64;
        tally.rounds += 1;

        let mut logged_honest = 0;
        for (((site, attempts), before), mark) in sites.iter().zip(&attempts).zip(before).zip(marks)
        {
            let carried_out = attack::carried_out(site.server())?;
            let new: Vec<_> = carried_out.difference(before).collect();
            tally.carried_out += new.len() as u64;
            let logins = evidence::logins(site.server(), OPEN_USER, mark)?;
            let plain = logins.iter().filter(|login| attack::is_plaintext(login));
            let plain = plain.count() as u64;
            tally.logged += plain;
            logged_honest += logins.len() as u64 - plain;
            let got_in = attempts.iter().filter(|it| new.contains(&&it.number));
            tally.seeds.extend(got_in.map(|it| it.name.clone()));
        }
        ensure!(
            logged_honest == honest,
            "{honest} TLS sessions, of which the servers' logs have {logged_honest}"
        );
        Ok(())
    }
}

fn of_tally(tally: &Tally, wanted: u64, time: Duration, works: usize) -> Vec<Line> {
    let sessions = tally.sessions();
    let executed = tally.executed();
    let mut measured = vec![format!(
        "{executed} of {sessions} ({} attempts at random, {} plaintext logins, {} TLS sessions)",
        tally.attempts, tally.plain, tally.honest
    )];
    if sessions < wanted {
        measured.push(format!("stopped before the {wanted} that were asked for"));
    }
    measured.extend(tally.seeds.iter().cloned());
    let verdict = if executed > 0 {
        Verdict::Missed
    } else if sessions >= WANTED {
        Verdict::Met
    } else {
        // Too few to say so.
        Verdict::None
    };
    let seconds = time.as_secs_f64();
    vec![
        Line::new(
            "plaintext logins carried out by the servers, by their tables and general logs, of mixed sessions",
            measured.join("; "),
            "0 of 1,000,000",
            verdict,
        )
        .value("executed", executed)
        .value("sessions", sessions),
        Line::beside(
            "the same attempts, a batch on each server, where nothing is refused",
            format!("{works} of {} carried out", BATCH * SHARES.len()),
        )
        .value("executed", works),
        Line::new(
            "plaintext logins by ordinary sockets that were answered with 3159",
            format!("{} of {}", tally.refused, tally.plain),
            "all",
            Verdict::of(tally.refused == tally.plain),
        )
        .value("refused", tally.refused),
        Line::new(
            "TLS sessions in between that logged in, by clients and general logs",
            format!("{0} of {0}", tally.honest),
            "all",
            Verdict::of(tally.honest > 0),
        )
        .value("honest", tally.honest),
        Line::beside(
            "time, with the questions to the servers after each round",
            format!(
                "{seconds:.0} s, {:.0} sessions/s, {} rounds",
                float(sessions) / seconds,
                tally.rounds
            ),
        )
        .value("s", seconds),
    ]
}

/// Whether the counters of the gate add up.
fn of_counters(agent: &Agent, tally: &Tally) -> Result<Vec<Line>> {
    let end = Instant::now() + COUNTED;
    let mut sessions = agent.sessions()?;
    while sessions
        .values()
        .any(|counts| count(counts, SEEN) > outcomes(counts))
        && Instant::now() < end
    {
        thread::sleep(Duration::from_millis(100));
        sessions = agent.sessions()?;
    }
    let all: u64 = sessions.values().map(|counts| count(counts, SEEN)).sum();
    let mut lines = vec![
        Line::new(
            "sessions seen by the gate, of those made",
            format!("{all} of {}", tally.sessions()),
            "all",
            Verdict::of(all == tally.sessions()),
        )
        .value("seen", all),
    ];
    for (server, counts) in &sessions {
        let (seen, sum) = (count(counts, SEEN), outcomes(counts));
        let parts: Vec<_> = counts
            .iter()
            .filter(|(outcome, count)| *outcome != SEEN && **count > 0)
            .map(|(outcome, count)| format!("{count} {outcome}"))
            .collect();
        lines.push(
            Line::new(
                format!("sessions seen at servers of the name {server} = sum of their outcomes"),
                format!("{seen}; {sum} = {}", parts.join(" + ")),
                "equal",
                Verdict::of(seen == sum),
            )
            .value("seen", seen)
            .value("sum", sum),
        );
    }
    Ok(lines)
}

fn count(counts: &BTreeMap<String, u64>, outcome: &str) -> u64 {
    counts.get(outcome).copied().unwrap_or_default()
}

fn outcomes(counts: &BTreeMap<String, u64>) -> u64 {
    counts.values().sum::<u64>() - count(counts, SEEN)
}

/// What is held at a moment when no session is open.
struct Held {
    agent_rss: u64,
    agent_peak: u64,
    agent_descriptors: usize,
    server_descriptors: usize,
    server_connections: usize,
    /// TCP sockets of the servers' hosts that are not closed (`sockets: inuse`), listeners included.
    sockets: u64,
    /// TCP sockets of the machine that have memory (`alloc`).
    allocated: u64,
}

impl Held {
    fn by(agent: &Agent, nets: &[Net], servers: &[Server]) -> Result<Self> {
        let status = format!("/proc/{}/status", agent.pid());
        let status = Path::new(&status);
        let mut held = Self {
            agent_rss: field(status, "VmRSS")?,
            agent_peak: field(status, "VmHWM")?,
            agent_descriptors: descriptors(agent.pid())?,
            server_descriptors: 0,
            server_connections: 0,
            sockets: 0,
            allocated: 0,
        };
        for (net, server) in nets.iter().zip(servers) {
            held.server_descriptors += descriptors(server.pid())?;
            held.server_connections += evidence::connections(server)?.len();
            let text = net
                .db
                .run(|| fs::read_to_string("/proc/thread-self/net/sockstat"))?
                .context("read sockstat")?;
            let six = net
                .db
                .run(|| fs::read_to_string("/proc/thread-self/net/sockstat6"))?
                .context("read sockstat6")?;
            held.sockets += stat(&text, "TCP:", "inuse")? + stat(&six, "TCP6:", "inuse")?;
            held.allocated = stat(&text, "TCP:", "alloc")?;
        }
        Ok(held)
    }

    fn lines(first: &Self, last: &Self) -> Vec<Line> {
        let mib = |kib: u64| float(kib) / 1024.0;
        let grown = mib(last.agent_rss) - mib(first.agent_rss);
        vec![
            Line::new(
                "agent, resident after the first round and after the last (peak)",
                format!(
                    "{:.1} and {:.1} MiB ({:.1})",
                    mib(first.agent_rss),
                    mib(last.agent_rss),
                    mib(last.agent_peak)
                ),
                "<= 4 MiB more",
                Verdict::of(grown <= 4.0),
            )
            .value("first_kib", first.agent_rss)
            .value("last_kib", last.agent_rss),
            Line::new(
                "agent, open files, the same",
                format!("{} and {}", first.agent_descriptors, last.agent_descriptors),
                "no more",
                Verdict::of(last.agent_descriptors <= first.agent_descriptors),
            ),
            Line::new(
                "servers, all six: connections held, and open files, the same",
                format!(
                    "{} and {}; {} and {}",
                    first.server_connections,
                    last.server_connections,
                    first.server_descriptors,
                    last.server_descriptors
                ),
                "0 connections",
                Verdict::of(last.server_connections == 0),
            ),
            Line::new(
                "TCP sockets of the servers' hosts, whose storage is all that the gate keeps of a session (sockstat), the same; \
                 of the whole machine",
                format!(
                    "{} and {}; {} and {}",
                    first.sockets, last.sockets, first.allocated, last.allocated
                ),
                "no more",
                Verdict::of(last.sockets <= first.sockets),
            ),
        ]
    }
}

fn descriptors(pid: u32) -> Result<usize> {
    let path = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = fs::read_dir(&path).with_context(|| format!("list {}", path.display()))?;
    Ok(entries.count())
}

/// The number behind `name` in the line of `protocol` (`/proc/net/sockstat`).
fn stat(text: &str, protocol: &str, name: &str) -> Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(protocol))
        .and_then(|line| {
            let mut words = line.split_whitespace().skip_while(|word| *word != name);
            words.nth(1)?.parse().ok()
        })
        .with_context(|| format!("no {name} of {protocol} in {text}"))
}
