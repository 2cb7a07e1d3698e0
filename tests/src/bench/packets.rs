//! What the gate costs a packet, over an empty program at the same hook.
//!
//! *Unprotected* sockets: `BPF_PROG_TEST_RUN` gives the packet a socket without a record, which is their
//! path. *Decided* sessions need a real socket: the kernel's own clock around each program, while queries
//! go back and forth in a few TLS sessions. Half of those packets are for the client's socket, which is an
//! unprotected one on the same machine, so that the clock's mean is of both; what the same clock says of
//! connections between unprotected sockets is taken out. All kinds take turns.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use musttls_tests::bpf::{Hook, Link, Program, Runs, Stats};
use musttls_tests::wait::PATIENCE;

use super::numbers::{Sample, float};
use super::report::{Line, Verdict};
use super::setting::{Setting, cgroup_root, open_session};

/// Runs in one call of `BPF_PROG_TEST_RUN`: 10 ms.
const REPEAT: u32 = 500_000;
/// Connections that are busy at the same time.
const CONNECTIONS: u32 = 4;
const ECHO_PORT: u16 = 7;
/// About what a query and its answer have over TLS.
const ECHO_LEN: usize = 100;

pub(super) fn measure(setting: &mut Setting) -> Result<Vec<Line>> {
    setting.gate(true)?;
    let mut lines = Vec::new();
    for hook in Hook::ALL {
        let what = format!(
            "unprotected socket, {}, over an empty program (TEST_RUN)",
            hook.of_gate()
        );
        lines.push(
            test_runs(setting, hook, &what).unwrap_or_else(|error| Line::missing(what, &error)),
        );
    }
    match live(setting) {
        Ok(live) => lines.extend(live),
        Err(error) => lines.push(Line::missing("decided session, live", &error)),
    }
    Ok(lines)
}

fn test_runs(setting: &Setting, hook: Hook, what: &str) -> Result<Line> {
    let gate = Program::find(hook.of_gate())?;
    let empty = Program::empty(hook)?;
    let frame = frame();
    let mut costs = Vec::new();
    let mut gates = Vec::new();
    let mut empties = Vec::new();
    for _ in 0..setting.scale.packet_rounds {
        let without = f64::from(empty.test_run(&frame, REPEAT)?);
        let with = f64::from(gate.test_run(&frame, REPEAT)?);
        costs.push(with - without);
        gates.push(with);
        empties.push(without);
    }
    let (cost, gate, empty) = (Sample::new(costs), Sample::new(gates), Sample::new(empties));
    let measured = format!(
        "{:.0} ns ({:.0} - {:.0}; {} ns)",
        cost.median(),
        gate.median(),
        empty.median(),
        cost.spread(0)
    );
    let is_met = cost.median() <= 10.0;
    Ok(Line::new(what, measured, "<= 10 ns", Verdict::of(is_met))
        .value("cost_ns", cost.median())
        .value("gate_ns", gate.median())
        .value("empty_ns", empty.median()))
}

/// Ethernet, IPv4, TCP to the classic port, 40 bytes of payload.
fn frame() -> Vec<u8> {
    let mut frame = vec![0; 14 + 20 + 20 + 40];
    let ip = [
        0x45, 0, 0, 80, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 77, 1, 2, 10, 77, 1, 1,
    ];
    let tcp = [
        0x80, 0, 0x0c, 0xea, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff,
    ];
    let bytes = [0x08, 0x00].into_iter().chain(ip).chain(tcp);
    for (place, byte) in frame.iter_mut().skip(12).zip(bytes) {
        *place = byte;
    }
    frame
}

/// The gate's program at a hook between two empty ones: programs run in the order in which they were
/// attached, and the first one touches the packet first.
struct Trio {
    first: Program,
    gate: Program,
    last: Program,
    _links: [Link; 2],
}

/// Mean nanoseconds of a run.
#[derive(Clone, Copy)]
struct Means {
    first: f64,
    gate: f64,
    last: f64,
    packets: u64,
}

impl Means {
    /// Of the gate over the two empty ones.
    fn cost(self) -> f64 {
        self.gate - f64::midpoint(self.first, self.last)
    }
}

impl Trio {
    fn during(&self, work: impl FnOnce() -> Result<()>) -> Result<Means> {
        let now =
            || -> Result<_> { Ok([self.first.runs()?, self.gate.runs()?, self.last.runs()?]) };
        let before = now()?;
        work()?;
        let after = now()?;
        let [first, gate, last] =
            [0, 1, 2].map(|index: usize| match (after.get(index), before.get(index)) {
                (Some(after), Some(before)) => after.since(*before),
                _ => Runs::default(),
            });
        ensure!(gate.count > 0, "the gate's program did not run");
        let mean = |runs: Runs| float(runs.ns) / float(runs.count);
        Ok(Means {
            first: mean(first),
            gate: mean(gate),
            last: mean(last),
            packets: gate.count,
        })
    }
}

fn live(setting: &mut Setting) -> Result<Vec<Line>> {
    let root = cgroup_root()?;
    setting.gate(false)?;
    // A socket that begins to listen under the gate gets a record, and so do its sessions.
    let listener = Echo::listen(setting)?;
    let first = Hook::ALL.map(|hook| attach(&root, hook));
    setting.gate(true)?;
    let _stats = Stats::enable()?;
    let mut trios = Vec::new();
    for (hook, first) in Hook::ALL.into_iter().zip(first) {
        let (first, first_link) = first?;
        let (last, last_link) = attach(&root, hook)?;
        let trio = Trio {
            first,
            gate: Program::find(hook.of_gate())?,
            last,
            _links: [first_link, last_link],
        };
        trios.push((hook, trio));
    }

    let scale = setting.scale;
    let to = setting.at(&setting.mariadb);
    let login = setting.mariadb.open_login();
    let mut sessions = Vec::new();
    let mut echoes = Vec::new();
    for _ in 0..CONNECTIONS {
        sessions.push(setting.client().run(|| open_session(to, &login))??);
        echoes.push(Echo::new(setting, &listener)?);
    }
    let mut query = |count: u32| {
        at_once(&mut sessions, |session| {
            for _ in 0..count {
                let rows = session.ask("SELECT 1")?;
                ensure!(rows.len() > 3, "no answer to a query: {rows:?}");
            }
            Ok(())
        })
    };
    let mut exchange = |count: u32| at_once(&mut echoes, |echo| echo.exchange(count));
    query(scale.round_trips)?;
    exchange(scale.round_trips)?;

    let mut lines = Vec::new();
    for (hook, trio) in &trios {
        let mut protected = Vec::new();
        let mut unprotected = Vec::new();
        for _ in 0..scale.packet_rounds {
            protected.push(trio.during(|| query(scale.round_trips))?);
            unprotected.push(trio.during(|| exchange(scale.round_trips))?);
        }
        lines.extend(of_hook(*hook, &protected, &unprotected));
    }
    Ok(lines)
}

/// Works on all connections at the same time: a machine with nothing else to do would sleep between two
/// packets, and wake up with cold caches.
fn at_once<T: Send>(
    connections: &mut [T],
    work: impl Fn(&mut T) -> Result<()> + Sync,
) -> Result<()> {
    thread::scope(|scope| {
        let threads: Vec<_> = connections
            .iter_mut()
            .map(|connection| scope.spawn(|| work(connection)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| bail!("a connection's thread panicked"))
        })
    })
}

fn of_hook(hook: Hook, protected: &[Means], unprotected: &[Means]) -> Vec<Line> {
    let program = hook.of_gate();
    let mixed = Sample::new(protected.iter().map(|means| means.cost()));
    let other = Sample::new(unprotected.iter().map(|means| means.cost()));
    // Half of the packets in the TLS session are for the client's own, unprotected socket.
    let decided = Sample::new(
        protected
            .iter()
            .zip(unprotected)
            .map(|(mixed, other)| 2.0 * mixed.cost() - other.cost()),
    );
    let empties = Sample::new(protected.iter().map(|means| means.last - means.first));
    let gate = Sample::new(protected.iter().map(|means| means.gate));
    let packets: u64 = protected.iter().map(|means| means.packets).sum();
    let line = |what: String, sample: &Sample, goal: f64| {
        let measured = format!("{:.0} ns ({} ns)", sample.median(), sample.spread(0));
        let verdict = Verdict::of(sample.median() <= goal);
        Line::new(what, measured, &format!("<= {goal} ns"), verdict)
            .value("cost_ns", sample.median())
            .value("rounds", sample.len())
    };
    vec![
        line(
            format!("decided session, {program}, over an empty program (live TLS queries)"),
            &decided,
            30.0,
        )
        .value("packets", packets),
        line(
            format!("unprotected socket, {program}, over an empty program (live echo)"),
            &other,
            10.0,
        ),
        Line::beside(
            format!("the same clock's mean of {program} over both ends of the TLS session"),
            format!(
                "{:.0} ns in all, {:.0} ns over the empty ones",
                gate.median(),
                mixed.median()
            ),
        )
        .value("run_ns", gate.median())
        .value("cost_ns", mixed.median()),
        Line::beside(
            format!("noise, {program}: second empty program over the first"),
            format!("{:.0} ns ({} ns)", empties.median(), empties.spread(0)),
        )
        .value("cost_ns", empties.median()),
    ]
}

fn attach(root: &File, hook: Hook) -> Result<(Program, Link)> {
    let program = Program::empty(hook)?;
    let link = program.attach(root, hook)?;
    Ok((program, link))
}

/// A connection between two sockets that are nothing to the gate.
struct Echo(TcpStream);

impl Echo {
    fn listen(setting: &Setting) -> Result<TcpListener> {
        let to = SocketAddr::new(setting.net.app.db_v4(), ECHO_PORT);
        let bind = || TcpListener::bind(to);
        setting
            .net
            .db
            .run(bind)?
            .with_context(|| format!("listen on {to}"))
    }

    fn new(setting: &Setting, listener: &TcpListener) -> Result<Self> {
        let to = listener.local_addr().context("find the echo's address")?;
        let stream = setting
            .client()
            .run(|| TcpStream::connect_timeout(&to, PATIENCE))?
            .with_context(|| format!("connect to {to}"))?;
        let (mut far, _) = listener.accept().context("accept the echo connection")?;
        for end in [&stream, &far] {
            end.set_nodelay(true).context("set TCP_NODELAY")?;
            end.set_read_timeout(Some(PATIENCE * 30))
                .context("set a time limit")?;
        }
        // It ends with the connection.
        thread::spawn(move || {
            let mut bytes = [0; ECHO_LEN];
            while far.read_exact(&mut bytes).is_ok() && far.write_all(&bytes).is_ok() {}
        });
        Ok(Self(stream))
    }

    fn exchange(&mut self, count: u32) -> Result<()> {
        let mut bytes = [0; ECHO_LEN];
        for _ in 0..count {
            if let Err(error) = self
                .0
                .write_all(&bytes)
                .and_then(|()| self.0.read_exact(&mut bytes))
            {
                bail!("the echo ended: {error}");
            }
        }
        Ok(())
    }
}
