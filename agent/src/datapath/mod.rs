//! The gate as the agent sees it: load, attach, fill tables, read rings and counters. The only user of aya.

pub mod cgroup;
mod links;
mod maps;
mod outgoing;
pub mod pins;
#[cfg(feature = "probe")]
pub mod probe;
pub mod sockmap;
mod sys;
mod tables;
pub mod unix_probe;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, ProgramArray, RingBuf};
use aya::programs::{CgroupSkb, FEntry, ProgramError, ProgramType, SockOps};
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Btf, Ebpf, EbpfLoader};
use links::Links;
use musttls_common::event::{Event, LOGIN_HEAD_LEN, UnixPeer};
use musttls_common::mysql::USER_MAX;
use tokio::io::unix::AsyncFd;

pub use links::{Fault, Found};
pub use maps::{Answers, Counters, Held, Known, Listeners, Told};
pub use outgoing::Outgoing;
pub use pins::Pins;
pub use tables::PolicyTables;
pub use unix_probe::{NoTracing, UnixProbe};

/// The gate's object, built from `ebpf/` by the build script.
static GATE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/musttls-ebpf"));

/// The kernel function that `on_unix_connect` hooks. Its arguments are the same since Linux 3.x:
/// `(sock, other, newsk)`.
const UNIX_CONNECT: &str = "security_unix_stream_connect";

/// The programs and their links: dropping it takes the gate off, unless it is pinned.
pub struct Gate {
    programs: Ebpf,
    links: Links,
    pins: Option<Pins>,
}

impl Gate {
    /// From now on the gate ends with this agent.
    pub fn end_with_agent(&mut self) -> Result<()> {
        self.pins.take().map_or(Ok(()), |pins| pins.unpin())
    }

    /// Checks whether its programs are attached to the root cgroup as they were, and puts back what is not.
    pub fn check(&mut self, root: BorrowedFd<'_>) -> Vec<Found> {
        self.links.check(&self.programs, root, self.pins.as_ref())
    }
}

/// The gate, attached.
pub struct Datapath {
    /// The programs and their links.
    pub gate: Gate,
    /// What the gate knows of listeners.
    pub listeners: Listeners,
    /// Denied sessions that wait for their refusal.
    pub held: Held,
    /// Counters.
    pub counters: Counters,
    /// How far agents have taken notice of the counters.
    pub told: Told,
    /// Policy tables.
    pub policy: PolicyTables,
    /// Denied sessions and new listeners.
    pub denials: Ring,
    /// New listeners.
    pub listens: Ring,
    /// Logins that the agent is asked about.
    pub asks: Ring,
    /// What it answers.
    pub answers: Answers,
    /// All other sessions.
    pub sessions: Ring,
    /// Whether Unix sessions are reported by the kernel.
    pub unix_probe: UnixProbe,
}

/// The programs and maps, not attached yet, so that a policy can be put in place first.
pub struct Loaded {
    gate: Ebpf,
    pins: Option<Pins>,
    tells_namespaces: bool,
}

impl Loaded {
    /// Loads the programs. This is where a kernel that lacks something says so.
    ///
    /// With `pins` they work on the maps that are pinned there, or pin theirs.
    pub fn new(pins: Option<Pins>) -> Result<Self> {
        lift_memlock_limit();
        let namespaces = Namespaces::probe();
        let gate = load(pins.as_ref(), &namespaces).inspect_err(|_| {
            if let Some(pins) = &pins {
                pins.give_up();
            }
        })?;
        Ok(Self {
            gate,
            pins,
            tells_namespaces: namespaces.in_sock_ops != 0,
        })
    }

    /// The policy tables, to be filled before [`Self::attach`].
    pub fn policy(&mut self) -> Result<PolicyTables> {
        PolicyTables::new(&mut self.gate)
    }

    /// Tries whether the kernel can report connections to Unix sockets.
    #[must_use]
    pub fn unix_probe(mut self) -> UnixProbe {
        attached(attach_unix_probe(&mut self.gate))
    }

    /// Attaches the programs to the root of the cgroup v2 hierarchy, or puts them in the place of a former agent's.
    /// They outlive this agent if they were loaded with pins.
    pub fn attach(mut self, policy: PolicyTables, root: BorrowedFd<'_>) -> Result<Datapath> {
        let mut told = Told(take(&mut self.gate, "TOLD")?);
        told.begin()?;
        let links = Links::attach(&self.gate, root, self.pins.as_ref())?;
        if let Some(pins) = &self.pins {
            pins.let_former_go()?;
        }
        let gate = &mut self.gate;
        let unix_probe = attached(attach_unix_probe(gate));
        Ok(Datapath {
            listeners: Listeners {
                sockets: take(gate, "SOCKETS")?,
                unix: take(gate, "UNIX_LISTENERS")?,
                by_cookie: take(gate, "LISTENERS")?,
                by_place: take(gate, "PLACES")?,
                tells_namespaces: self.tells_namespaces,
                outgoing: Outgoing::all()?,
            },
            held: Held(take(gate, "HELD")?),
            counters: Counters(take(gate, "COUNTERS")?),
            told,
            denials: Ring(take(gate, "DENIALS")?),
            sessions: Ring(take(gate, "SESSIONS")?),
            listens: Ring(take(gate, "LISTENS")?),
            asks: Ring(take(gate, "ASKS")?),
            answers: Answers(take(gate, "ANSWERS")?),
            policy,
            unix_probe,
            gate: Gate {
                programs: self.gate,
                links,
                pins: self.pins,
            },
        })
    }
}

/// Which programs may ask the kernel for a socket's network namespace: 1 for those that may (`ebpf/src/place.rs`).
struct Namespaces {
    in_sock_ops: u8,
    in_skb: u8,
}

impl Namespaces {
    fn probe() -> Self {
        let has = |program| {
            let has = is_helper_supported(program, BpfHelper::BPF_FUNC_get_netns_cookie);
            has.inspect_err(|error| tracing::debug!(%error, "probe bpf_get_netns_cookie"))
                .unwrap_or(false)
        };
        let in_sock_ops = has(ProgramType::SockOps);
        Self {
            in_sock_ops: u8::from(in_sock_ops),
            // Alone it would not do: some listeners are met by `sock_ops` only.
            in_skb: u8::from(in_sock_ops && has(ProgramType::CgroupSkb)),
        }
    }
}

fn load(pins: Option<&Pins>, namespaces: &Namespaces) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader
        .override_global("NAMESPACE_IN_SOCK_OPS", &namespaces.in_sock_ops, true)
        .override_global("NAMESPACE_IN_SKB", &namespaces.in_skb, true);
    if let Some(pins) = pins {
        for name in pins::LASTING {
            loader.map_pin_path(name, pins.map(name));
        }
    }
    let mut gate = loader.load(GATE).context("load the gate's maps (bpf(2))")?;
    for name in ["on_ingress", "on_egress"]
        .into_iter()
        .chain(CALLED.map(|(_, _, name)| name))
    {
        let program: &mut CgroupSkb = program(&mut gate, name)?;
        program.load().map_err(|error| refused(name, error))?;
    }
    let program: &mut SockOps = program(&mut gate, "on_sock_ops")?;
    program
        .load()
        .map_err(|error| refused("on_sock_ops", error))?;
    for (map, index, name) in CALLED {
        link(&mut gate, map, index, name)?;
    }
    if let Some(pins) = pins {
        pins.pin_gate(&gate)?;
    }
    Ok(gate)
}

/// Programs that others call: map, place in it, name (`ebpf/src/maps.rs`).
const CALLED: [(&str, u32, &str); 11] = [
    ("INGRESS", 0, "x_ingress"),
    ("INGRESS", 1, "on_proxy"),
    ("INGRESS", 2, "on_login"),
    ("INGRESS", 3, "on_client_hello"),
    ("INGRESS", 4, "on_third_ack"),
    ("INGRESS", 5, "on_early_login"),
    ("INGRESS", 6, "on_early_end"),
    ("INGRESS", 7, "on_older"),
    ("EGRESS", 0, "x_egress"),
    ("EGRESS", 1, "on_answer"),
    ("EGRESS", 2, "on_server_hello"),
];

/// Puts the program `name` into the map by which another one calls it. The map stays in `gate`: the kernel empties
/// it when user space lets go of it.
fn link(gate: &mut Ebpf, map: &str, index: u32, name: &str) -> Result<()> {
    let program: &mut CgroupSkb = program(gate, name)?;
    let fd = program
        .fd()
        .and_then(|fd| fd.try_clone().map_err(ProgramError::from))
        .with_context(|| format!("the descriptor of the gate's program {name}"))?;
    let array = gate
        .map_mut(map)
        .with_context(|| format!("the gate has no map {map}"))?;
    ProgramArray::try_from(array)
        .with_context(|| format!("map {map} is of another type"))?
        .set(index, &fd, 0)
        .with_context(|| format!("write map {map}"))
}

fn attached(result: Result<()>) -> UnixProbe {
    match result {
        Ok(()) => UnixProbe::Kernel,
        Err(error) => UnixProbe::Polling(NoTracing::of(&error)),
    }
}

fn attach_unix_probe(gate: &mut Ebpf) -> Result<()> {
    let btf = Btf::from_sys_fs().context("read /sys/kernel/btf/vmlinux")?;
    let program: &mut FEntry = program(gate, "on_unix_connect")?;
    program
        .load(UNIX_CONNECT, &btf)
        .map_err(|error| refused("on_unix_connect", error))?;
    program
        .attach()
        .with_context(|| format!("attach fentry to {UNIX_CONNECT}"))?;
    Ok(())
}

/// Why the kernel did not take a program. The verifier's log, which is long and for developers, goes to the
/// debug log.
fn refused(name: &str, error: ProgramError) -> anyhow::Error {
    tracing::debug!("{name}: {error}");
    let error = match error {
        ProgramError::LoadError { io_error, .. } => anyhow::Error::from(io_error),
        other => anyhow::Error::from(other),
    };
    error.context(format!("load the gate's program {name}"))
}

fn program<'a, P>(gate: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program = gate
        .program_mut(name)
        .with_context(|| format!("the gate has no program {name}"))?;
    program
        .try_into()
        .with_context(|| format!("program {name} is of another type"))
}

fn take<M>(gate: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = gate
        .take_map(name)
        .with_context(|| format!("the gate has no map {name}"))?;
    map.try_into()
        .with_context(|| format!("map {name} is of another type"))
}

/// Before Linux 5.11 (commit 4bb6ba33ffaf and others) maps count against `RLIMIT_MEMLOCK`. Where this is
/// not allowed, loading says what is missing.
fn lift_memlock_limit() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    if let Err(error) = setrlimit(
        Resource::Memlock,
        Rlimit {
            current: None,
            maximum: None,
        },
    ) {
        tracing::debug!(%error, "RLIMIT_MEMLOCK stays as it is");
    }
}

/// A ring buffer of the gate's records.
pub struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A record, copied out of a ring.
#[derive(Clone, Debug)]
pub struct Record {
    /// What happened.
    pub event: Event,
    /// What followed it.
    pub extra: Extra,
}

/// What follows an event.
#[derive(Clone, Debug)]
pub enum Extra {
    /// Nothing.
    None,
    /// What a login said, without its auth response.
    Login {
        /// Client capability flags.
        caps: u32,
        /// User name.
        user: Vec<u8>,
        /// What followed the auth response, maybe cut.
        tail: Vec<u8>,
    },
    /// Who connected to a Unix socket.
    Unix(UnixPeer),
}

impl Ring {
    /// The ring, to be waited for in the event loop.
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the ring owns its map, whose descriptor is open and the same as long as the ring lives.
        Ok(unsafe { AsyncFd::register(self) }?)
    }

    /// The next record, or `None` when the ring is empty. A record of another ABI is an error, which
    /// does not stop the reading.
    pub fn next_record(&mut self) -> Option<io::Result<Record>> {
        let item = self.0.next()?;
        Some(decode(&item).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "a record of {} bytes is not of ABI {}",
                    item.len(),
                    musttls_common::ABI_VERSION
                ),
            )
        }))
    }
}

fn decode(bytes: &[u8]) -> Option<Record> {
    let (event, rest) = split_pod::<Event>(bytes)?;
    if event.abi != musttls_common::ABI_VERSION {
        return None;
    }
    let extra = match musttls_common::event::Kind::from_u8(event.kind)? {
        musttls_common::event::Kind::Unix => Extra::Unix(split_pod::<UnixPeer>(rest)?.0),
        _ if rest.is_empty() => Extra::None,
        _ => login(rest)?,
    };
    Some(Record { event, extra })
}

fn login(bytes: &[u8]) -> Option<Extra> {
    let (head, rest) = bytes.split_at_checked(LOGIN_HEAD_LEN)?;
    let (caps, head) = head.split_first_chunk()?;
    let (user_len, head) = head.split_first_chunk()?;
    let (tail_len, user) = head.split_first_chunk()?;
    let user_len = usize::from(u16::from_ne_bytes(*user_len)).min(USER_MAX);
    Some(Extra::Login {
        caps: u32::from_ne_bytes(*caps),
        user: user.get(..user_len)?.to_vec(),
        tail: rest
            .get(..usize::from(u16::from_ne_bytes(*tail_len)))?
            .to_vec(),
    })
}

/// Reads a plain record from the front of `bytes`.
fn split_pod<T: aya::Pod>(bytes: &[u8]) -> Option<(T, &[u8])> {
    let (front, rest) = bytes.split_at_checked(size_of::<T>())?;
    // SAFETY: `front` has as many bytes as `T`, any of which are a valid `T`, since it is `Pod`;
    // `read_unaligned` needs no alignment.
    let value = unsafe { front.as_ptr().cast::<T>().read_unaligned() };
    Some((value, rest))
}
