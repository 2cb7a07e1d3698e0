//! Carries out refusals: tells the client, releases the server unharmed, resets the connection.
//!
//! The gate has denied the session and holds its bytes; nothing of the login has reached the server, which
//! waits for it. In this order, each step with the fallback in the last column:
//!
//! | step | how | if it cannot be done |
//! |---|---|---|
//! | wait for the server's greeting | the gate reports again when it is out | the server ends the session |
//! | duplicate the server's socket | `pidfd_getfd`, identified by `SO_COOKIE` | `SOCK_DESTROY` |
//! | tell the client | send the ERR packet; where its TLS is refused, a fatal alert | go on without |
//! | wait [`SETTLE`] | so that the server waits for the login | |
//! | release the server | `TCP_REPAIR`: a login of nobody into its receive queue, then end of stream; not in TLS | end both streams |
//! | reset | `SO_LINGER` 0: the server's own close sends the RST | after [`LET_GO`], `SOCK_DESTROY` |
//! | last resort | | the session stays held until the server gives up (`connect_timeout`) |
//!
//! It runs in a thread of its own: a refusal competes with the server's own, which takes 0.1 ms.

pub mod destroy;
mod locate;
pub mod packet;
mod seldom;

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use musttls_common::event::{Event, Kind};
use musttls_common::session::ListenerClass;
use musttls_common::tls::TLS_1_3;
use musttls_common::verdict::Reason;
use rustix::event::epoll;
use tokio::sync::mpsc;

use crate::canary::{self, Desk};
use crate::clock;
use crate::datapath::{Extra, Held, Record, Ring};
use crate::servers::Registry;
use crate::socket::Socket;
use crate::tally::{self, Tally};
use locate::Locator;
use seldom::Seldom;

/// How long a server may take to let go of a session that it was told to end, before it is reset. It needs well
/// below 1 ms; one that is short of CPU gets time, because a reset would count as a handshake error.
const LET_GO: Duration = Duration::from_secs(1);
/// From the ERR packet to the soft landing. A server that calls recv(2) while its socket is in repair mode, which
/// takes a microsecond or two, gets EPERM and counts a handshake error; one that waits for the socket does not.
/// After the greeting it begins to wait at once, unless it is short of CPU: this is its time to do so.
const SETTLE: Duration = Duration::from_millis(10);
/// How long an event may be on its way from the gate: the end of one program's run, on a host that does other things.
const ON_ITS_WAY: Duration = Duration::from_millis(100);
/// How often the map of held sessions is looked through for ones whose event was lost: while there are refusals, and
/// while there are none.
const SWEEP: Duration = Duration::from_millis(250);
const SWEEP_IDLE: Duration = Duration::from_secs(1);
/// After this long, a session that waits for its greeting and is not in the map of held ones is gone: its end was
/// not reported, or the map was full and nothing is known of it.
const FORGET: Duration = Duration::from_mins(1);
/// How often, and how long apart, a socket is looked for that was not found.
const ATTEMPTS: u32 = 10;
const RETRY: Duration = Duration::from_millis(10);
/// How long it is looked for among all servers, and how long apart, while it is not known whose the listener is: a server that has
/// just begun to listen, which the agent has yet to look at. Servers wait 10 s for a login (`connect_timeout`).
const UNOWNED: Duration = Duration::from_secs(5);
const RETRY_UNOWNED: Duration = Duration::from_millis(50);
/// How long the search waits when the agent has no descriptor or memory left for it: it goes on for as long as the gate
/// holds the session.
const WITHOUT_MEANS: Duration = Duration::from_millis(250);
/// What to do where a step of a refusal is not allowed.
const IN_THE_WAY: &str = "musttls doctor tries each step of a refusal, and says what is in its way";
/// Up to this many waiting sessions are looked for one by one, where the next ones are likely to be.
const ONE_BY_ONE: usize = 4;

/// How a refusal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The client was told, the server ended the session by itself and counted no handshake error.
    Landed,
    /// The client was told; the server's side was ended, which it counts as a handshake error.
    Answered,
    /// The server's side was ended without a word to the client.
    Ended,
    /// The kernel reset the connection; the client was not told.
    Destroyed,
    /// The session was gone before.
    Gone,
    /// Nothing could be done: the gate holds the session until the server gives up.
    Held,
}

impl Outcome {
    /// The word used in audit records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Landed => "landed",
            Self::Answered => "answered",
            Self::Ended => "ended",
            Self::Destroyed => "destroyed",
            Self::Gone => "gone",
            Self::Held => "held",
        }
    }
}

/// A refusal, carried out.
#[derive(Debug)]
pub struct Refused {
    /// What the gate said.
    pub record: Record,
    /// How it ended.
    pub outcome: Outcome,
    /// From the login to the ERR packet, if this agent has sent it.
    pub told_after: Option<Duration>,
    /// From the login to the server's letting go.
    pub released_after: Option<Duration>,
    /// The server's process.
    pub pid: Option<i32>,
}

/// What the thread tells the daemon.
#[derive(Debug)]
pub enum Report {
    /// A session was refused.
    Refused(Box<Refused>),
    /// A session of observe mode passes, and it is known by which exception it would have.
    Session(Box<Record>),
    /// A record could not be read.
    Unreadable(io::Error),
}

/// What the daemon and the refusal thread have in common.
#[derive(Debug, Default)]
pub struct ThreadState {
    /// Tells the thread to end.
    pub stop: AtomicBool,
    /// Set each time the thread turns to its work, once a second at least: whoever clears it sees whether it still does.
    pub turned: AtomicBool,
}

/// The refusal thread's state.
pub struct Engine {
    ring: Ring,
    held: Held,
    registry: Arc<Registry>,
    reports: mpsc::Sender<Report>,
    /// Reports that the daemon had no room for.
    lost: Arc<std::sync::atomic::AtomicU64>,
    epoll: std::os::fd::OwnedFd,
    locators: HashMap<i32, Locator>,
    /// Where the canary's socket is.
    desk: Arc<Desk>,
    tally: Arc<Tally>,
    waiting: HashMap<u64, Waiting>,
    told: HashMap<u64, Notified>,
    landing: HashMap<u64, Landing>,
    /// Sessions for which nothing can be done, as long as they are in the map of held ones.
    given_up: HashSet<u64>,
    /// What the journal is told of steps that fail: a client could make it happen with each session.
    no_means: Seldom,
    no_state: Seldom,
    no_landing: Seldom,
    stays_held: Seldom,
}

/// A denied session whose socket is not found yet.
struct Waiting {
    record: Record,
    attempts: u32,
    next: Instant,
    since: Instant,
}

/// A session whose client has been told, or cannot be.
struct Notified {
    record: Record,
    socket: Socket,
    /// What to put into the server's receive queue.
    landing: Option<Vec<u8>>,
    /// Whether the client was told, by this agent or by one that was ended in the middle of it.
    is_told: bool,
    told_after: Option<Duration>,
    place: Place,
    land_at: Instant,
}

/// Where a session's socket is: the server's process, and the number of its descriptor there.
#[derive(Clone, Copy, Debug)]
struct Place {
    pid: i32,
    fd: i32,
}

/// A session that the server has been told to end. Its socket is not kept: the server's close must be the
/// last one.
struct Landing {
    record: Record,
    outcome: Outcome,
    told_after: Option<Duration>,
    place: Place,
    deadline: Instant,
}

impl Engine {
    /// An engine that reads `ring` and removes from `held`.
    pub fn new(
        ring: Ring,
        held: Held,
        registry: Arc<Registry>,
        desk: Arc<Desk>,
        tally: Arc<Tally>,
        reports: mpsc::Sender<Report>,
        lost: Arc<std::sync::atomic::AtomicU64>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: `ring` is kept in the engine, so its descriptor is open as long as `epoll` is.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        epoll::add(
            &epoll,
            fd,
            epoll::EventData::new_u64(0),
            epoll::EventFlags::IN,
        )?;
        Ok(Self {
            ring,
            held,
            registry,
            reports,
            lost,
            epoll,
            locators: HashMap::new(),
            desk,
            tally,
            waiting: HashMap::new(),
            told: HashMap::new(),
            landing: HashMap::new(),
            given_up: HashSet::new(),
            no_means: Seldom::default(),
            no_state: Seldom::default(),
            no_landing: Seldom::default(),
            stays_held: Seldom::default(),
        })
    }

    /// Works until it is told to stop.
    pub fn run(mut self, state: &ThreadState) -> io::Result<()> {
        let mut events = Vec::with_capacity(1);
        let mut swept = Instant::now();
        while !state.stop.load(Ordering::Relaxed) {
            state.turned.store(true, Ordering::Relaxed);
            let pause = if self.is_idle() { SWEEP_IDLE } else { SWEEP };
            let timeout = self
                .next_deadline(swept + pause)
                .saturating_duration_since(Instant::now());
            let timeout = rustix::event::Timespec {
                tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(1),
                tv_nsec: timeout.subsec_nanos().into(),
            };
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                Some(&timeout),
            ) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            self.read_ring();
            self.refuse_waiting();
            self.land_due();
            self.reset_overdue();
            if swept.elapsed() >= pause {
                self.sweep();
                swept = Instant::now();
            }
        }
        Ok(())
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty()
            && self.told.is_empty()
            && self.landing.is_empty()
            && self.given_up.is_empty()
    }

    fn next_deadline(&self, sweep: Instant) -> Instant {
        let waiting = self
            .waiting
            .values()
            .filter(|waiting| waiting.is_greeted())
            .map(|waiting| waiting.next);
        let landing = self.landing.values().map(|landing| landing.deadline);
        let told = self.told.values().map(|told| told.land_at);
        waiting.chain(told).chain(landing).fold(sweep, Instant::min)
    }

    fn read_ring(&mut self) {
        let now = clock::monotonic_ns();
        while let Some(record) = self.ring.next_record() {
            self.tally(&record);
            match record {
                Ok(record) if record.event.kind == Kind::Released as u8 => {
                    self.released(record.event);
                }
                Ok(record) => self.denied(record),
                Err(error) => self.report(Report::Unreadable(error)),
            }
        }
        self.tally.emptied(tally::Ring::Denials, now);
    }

    /// Notes that a session has come which the gate has counted as denied.
    fn tally(&self, record: &io::Result<Record>) {
        let made_at = match record {
            Ok(Record { event, .. }) if self.is_verdict(event) => event.ktime_ns,
            Ok(_) => return,
            Err(_) => 0,
        };
        self.tally.received(tally::Ring::Denials, made_at);
    }

    /// Whether an event is a verdict, and does not only say that the greeting of a denied session is out. That one has a greeting
    /// where the verdict, which may come behind it, has none.
    fn is_verdict(&self, event: &Event) -> bool {
        let cookie = event.cookie;
        let waiting = self.waiting.get(&cookie).map(|waiting| &waiting.record);
        let told = self.told.get(&cookie).map(|told| &told.record);
        let landing = self.landing.get(&cookie).map(|landing| &landing.record);
        let known = waiting.or(told).or(landing);
        event.kind == Kind::Denied as u8
            && !canary::is_of_canary(event)
            && known.is_none_or(|known| (known.event.greeting_len > 0) == (event.greeting_len > 0))
    }

    /// Takes a denied session, or what is new about one: that its greeting is out.
    fn denied(&mut self, record: Record) {
        let cookie = record.event.cookie;
        let known = self.told.contains_key(&cookie) || self.landing.contains_key(&cookie);
        if known || self.given_up.contains(&cookie) {
            return;
        }
        if let Some(waiting) = self.waiting.get_mut(&cookie) {
            // What was written before the greeting was out may come behind what was written after.
            if record.event.greeting_len > 0 {
                waiting.record.event.greeting_len = record.event.greeting_len;
                waiting.record.event.mariadb = record.event.mariadb;
            }
        } else {
            let now = Instant::now();
            // The alert goes behind the server's TLS flight, which the server may still be writing.
            let settle = if follows_flight(&record.event) {
                SETTLE
            } else {
                Duration::ZERO
            };
            let waiting = Waiting {
                record,
                attempts: 0,
                next: now + settle,
                since: now,
            };
            self.waiting.insert(cookie, waiting);
        }
    }

    /// Looks for the sockets of the sessions that wait, and refuses those that are found.
    fn refuse_waiting(&mut self) {
        let now = Instant::now();
        let ready: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.is_greeted() && waiting.next <= now)
            .map(|(&cookie, _)| cookie)
            .collect();
        if ready.is_empty() {
            return;
        }
        let mut by_process: HashMap<i32, Vec<u64>> = HashMap::new();
        let mut unowned = HashSet::new();
        for &cookie in &ready {
            let Some(waiting) = self.waiting.get(&cookie) else {
                continue;
            };
            let mut processes = self.owners_of(&waiting.record.event);
            if processes.is_empty() {
                unowned.insert(cookie);
                processes = self.registry.pids();
            }
            for pid in processes {
                by_process.entry(pid).or_default().push(cookie);
            }
        }
        let mut failures = HashMap::new();
        let mut postponed = HashSet::new();
        for (pid, mut cookies) in by_process {
            cookies.retain(|cookie| self.waiting.contains_key(cookie));
            match self.find(pid, &cookies) {
                Ok(found) => {
                    for (cookie, (fd, socket)) in found {
                        if let Some(waiting) = self.waiting.remove(&cookie) {
                            self.refuse(waiting.record, socket, Place { pid, fd });
                        }
                    }
                }
                Err(error) if is_lack_of_means(&error) => {
                    self.say_lack_of_means(&error);
                    postponed.extend(cookies);
                }
                // What it had is closed, unless another one has it, too.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
                    self.locators.remove(&pid);
                }
                Err(error) => {
                    self.locators.remove(&pid);
                    for cookie in cookies {
                        failures.insert(cookie, error.to_string());
                    }
                }
            }
        }
        for cookie in ready {
            let Some(waiting) = self.waiting.get_mut(&cookie) else {
                continue;
            };
            if postponed.contains(&cookie) {
                waiting.next = now + WITHOUT_MEANS;
                continue;
            }
            waiting.attempts += 1;
            let failure = failures.remove(&cookie);
            // That one server cannot be looked into says nothing while it may be another's.
            let is_over = if unowned.contains(&cookie) {
                waiting.next = now + RETRY_UNOWNED;
                waiting.attempts >= ATTEMPTS && waiting.since.elapsed() > UNOWNED
            } else {
                waiting.next = now + RETRY;
                waiting.attempts >= ATTEMPTS || failure.is_some()
            };
            if is_over && let Some(waiting) = self.waiting.remove(&cookie) {
                self.without_socket(waiting.record, failure.as_deref());
            }
        }
    }

    /// The processes that own the listener of a denied session.
    fn owners_of(&self, event: &Event) -> Vec<i32> {
        if canary::is_of_canary(event) {
            vec![canary::own_pid()]
        } else {
            self.registry.owners_of(event.listener_cookie)
        }
    }

    fn say_lack_of_means(&mut self, error: &io::Error) {
        if let Some(unsaid) = self.no_means.due() {
            tracing::error!(
                %error,
                unsaid,
                waiting = self.waiting.len(),
                help = "raise LimitNOFILE= of the unit: one for each refusal under way, beside some 50",
                "denied clients wait for their answer"
            );
        }
    }

    fn find(&mut self, pid: i32, cookies: &[u64]) -> io::Result<Vec<(u64, (i32, Socket))>> {
        if pid == canary::own_pid() {
            let mut found = Vec::new();
            for &cookie in cookies {
                found.extend(self.desk.duplicate(cookie)?.map(|socket| (cookie, socket)));
            }
            return Ok(found);
        }
        let locator = match self.locators.entry(pid) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(Locator::open(pid)?),
        };
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for &cookie in cookies {
            let guess = if cookies.len() <= ONE_BY_ONE {
                locator.guess(cookie)?
            } else {
                None
            };
            match guess {
                Some(socket) => found.push((cookie, socket)),
                None => missing.push(cookie),
            }
        }
        if !missing.is_empty() {
            found.extend(locator.scan(&missing)?);
        }
        Ok(found)
    }

    /// Refuses a session whose socket is at hand.
    fn refuse(&mut self, record: Record, socket: Socket, place: Place) {
        let Place { pid, .. } = place;
        let event = record.event;
        let state = match socket.tcp_state() {
            Ok(state) if state.established => state,
            Ok(_) => return self.done(record, Outcome::Gone, None, Some(pid)),
            Err(error) => {
                if let Some(unsaid) = self.no_state.due() {
                    tracing::warn!(
                        %error,
                        pid,
                        unsaid,
                        help = IN_THE_WAY,
                        "cannot read the state of a denied session: it is reset"
                    );
                }
                return self.without_socket(record, None);
            }
        };
        let is_x = is_x(&event);
        // The answer's place in the stream is free only while the server has said nothing but its greeting. In X
        // Protocol it may say something else before it.
        let silent = is_x && event.reason != Reason::LoginBeforeGreeting as u8
            || !is_x
                && state.written == u64::from(event.greeting_len)
                && event.reason != Reason::NotBorneOut as u8;
        let [.., sequence_id] = event.login_header;
        let refusal = packet::refusal(sequence_id.max(1), event.flags_high, event.mariadb != 0);
        // By an agent that was ended before the landing.
        let was_told = !is_x
            && !is_of_tls(&event)
            && event.reason != Reason::NotBorneOut as u8
            && state.written == u64::from(event.greeting_len) + refusal.len() as u64;
        let answer = if is_of_tls(&event) {
            let is_version = event.reason == Reason::TlsBelowFloor as u8;
            // Before the server has chosen a version; or behind its flight, but in TLS 1.3 nothing of it is let out.
            if event.tls_version == 0 && silent {
                Some(packet::alert(event.offered_version, is_version).to_vec())
            } else if follows_flight(&event) {
                Some(packet::alert(event.tls_version, is_version).to_vec())
            } else {
                None
            }
        } else if !silent {
            None
        } else if is_x {
            Some(packet::x_refusal())
        } else {
            Some(refusal)
        };
        let mut told_after = None;
        if let Some(bytes) = answer {
            match socket.send_now(&bytes) {
                Ok(()) => told_after = Some(clock::since_ktime(event.ktime_ns)),
                Err(error) => tracing::debug!(%error, pid, "the refusal was not sent"),
            }
        }
        // A server that has begun with TLS counts a handshake error whatever ends it.
        let landing = if !(silent || was_told) || is_of_tls(&event) {
            None
        } else if is_x {
            packet::x_landing(event.client_end, state.received)
        } else {
            packet::landing(event.login_header, event.client_end, state.received)
        };
        let land_at = Instant::now() + SETTLE;
        let told = Notified {
            record,
            socket,
            landing,
            is_told: was_told || told_after.is_some(),
            told_after,
            place,
            land_at,
        };
        self.told.insert(event.cookie, told);
    }

    /// Releases the servers of the sessions whose clients were told.
    fn land_due(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self
            .told
            .extract_if(|_, told| told.land_at <= now)
            .collect();
        for (_, told) in due {
            self.land(told);
        }
    }

    fn land(&mut self, told: Notified) {
        let Notified {
            record,
            socket,
            landing,
            is_told,
            told_after,
            place,
            ..
        } = told;
        let pid = place.pid;
        let landed = landing.is_some_and(|bytes| {
            let landed = socket.inject(&bytes).and_then(|()| socket.end_reading());
            if let Err(error) = &landed
                && let Some(unsaid) = self.no_landing.due()
            {
                tracing::warn!(
                    %error,
                    pid,
                    unsaid,
                    help = IN_THE_WAY,
                    "no soft landing: the server will count a handshake error"
                );
            }
            landed.is_ok()
        });
        let outcome = match (landed, is_told) {
            (true, true) => Outcome::Landed,
            (false, true) => Outcome::Answered,
            (_, false) => Outcome::Ended,
        };
        if !landed && let Err(error) = socket.end() {
            tracing::debug!(%error, pid, "shutdown of a denied session");
        }
        if let Err(error) = socket.close_with_reset() {
            tracing::debug!(%error, pid, "SO_LINGER of a denied session");
        }
        let deadline = Instant::now() + LET_GO;
        let landing = Landing {
            record,
            outcome,
            told_after,
            place,
            deadline,
        };
        self.landing.insert(landing.record.event.cookie, landing);
    }

    /// The socket of a denied session is closed.
    fn released(&mut self, event: Event) {
        if let Some(landing) = self.landing.remove(&event.cookie) {
            let Landing {
                record,
                outcome,
                told_after,
                place,
                ..
            } = landing;
            self.given_back(place);
            let after = Duration::from_nanos(event.ktime_ns.saturating_sub(record.event.ktime_ns));
            let released_after = Some(after);
            self.refused(Refused {
                record,
                outcome,
                told_after,
                released_after,
                pid: Some(place.pid),
            });
        } else if let Some(told) = self.told.remove(&event.cookie) {
            self.given_back(told.place);
            self.done(
                told.record,
                Outcome::Gone,
                told.told_after,
                Some(told.place.pid),
            );
        } else if let Some(waiting) = self.waiting.remove(&event.cookie) {
            self.done(waiting.record, Outcome::Gone, None, None);
        }
    }

    fn given_back(&mut self, place: Place) {
        if let Some(locator) = self.locators.get_mut(&place.pid) {
            locator.given_back(place.fd);
        }
    }

    /// Resets the sessions that their servers hold on to.
    fn reset_overdue(&mut self) {
        let now = Instant::now();
        let overdue: Vec<_> = self
            .landing
            .extract_if(|_, landing| landing.deadline <= now)
            .collect();
        for (cookie, landing) in overdue {
            let Landing {
                record,
                outcome,
                told_after,
                place: Place { pid, .. },
                ..
            } = landing;
            if let Err(error) = destroy::destroy(&record.event.endpoints, cookie) {
                self.end(pid, cookie, &error);
            }
            let outcome = match outcome {
                Outcome::Landed => Outcome::Answered,
                other => other,
            };
            let refused = Refused {
                record,
                outcome,
                told_after,
                released_after: None,
                pid: Some(pid),
            };
            self.refused(refused);
        }
    }

    /// Ends a session that the server holds on to and the kernel does not reset.
    fn end(&mut self, pid: i32, cookie: u64, failure: &io::Error) {
        let found = self.find(pid, &[cookie]).unwrap_or_default();
        for (_, (_, socket)) in found {
            if let Err(error) = socket.end() {
                tracing::debug!(%error, %failure, pid, "end of a refused session");
            }
        }
    }

    /// Ends a session whose socket cannot be duplicated.
    fn without_socket(&mut self, record: Record, failure: Option<&str>) {
        let event = record.event;
        match destroy::destroy(&event.endpoints, event.cookie) {
            Ok(()) => self.done(record, Outcome::Destroyed, None, None),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) && failure.is_none() => {
                self.done(record, Outcome::Gone, None, None);
            }
            Err(error) => {
                if let Some(unsaid) = self.stays_held.due() {
                    tracing::warn!(
                        duplicate = failure.unwrap_or("not found"),
                        destroy = %error,
                        unsaid,
                        help = IN_THE_WAY,
                        "a denied session stays held until its server gives up"
                    );
                }
                self.given_up.insert(event.cookie);
                let refused = Refused {
                    record,
                    outcome: Outcome::Held,
                    told_after: None,
                    released_after: None,
                    pid: None,
                };
                self.report(Report::Refused(Box::new(refused)));
            }
        }
    }

    fn done(
        &mut self,
        record: Record,
        outcome: Outcome,
        told_after: Option<Duration>,
        pid: Option<i32>,
    ) {
        let released =
            (outcome == Outcome::Destroyed).then(|| clock::since_ktime(record.event.ktime_ns));
        self.refused(Refused {
            record,
            outcome,
            told_after,
            released_after: released,
            pid,
        });
    }

    fn refused(&mut self, refused: Refused) {
        self.held.remove(refused.record.event.cookie);
        self.report(Report::Refused(Box::new(refused)));
    }

    /// Finds the sessions whose event was lost: the map is the truth.
    fn sweep(&mut self) {
        let held = self.held.events();
        let cookies: HashSet<u64> = held.iter().map(|event| event.cookie).collect();
        self.given_up.retain(|cookie| cookies.contains(cookie));
        // An event says more than the map does, who logged in above all: what has come meanwhile is read first, and one that the gate has
        // yet to send behind its entry in the map is given the time.
        self.read_ring();
        let is_lost = |event: &Event| clock::since_ktime(event.ktime_ns) > ON_ITS_WAY;
        for event in held.into_iter().filter(is_lost) {
            self.denied(Record {
                event,
                extra: Extra::None,
            });
        }
        // Those that ended before their greeting was out, and whose end was not reported.
        let gone: Vec<_> = self
            .waiting
            .extract_if(|cookie, waiting| {
                !cookies.contains(cookie) && waiting.since.elapsed() > FORGET
            })
            .collect();
        for (_, waiting) in gone {
            self.done(waiting.record, Outcome::Gone, None, None);
        }
        let registry = &self.registry;
        self.locators.retain(|&pid, _| registry.is_server(pid));
    }

    fn report(&self, report: Report) {
        if self.reports.try_send(report).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Waiting {
    /// Whether there is something to refuse: before the greeting, no answer may be sent. In X Protocol the client
    /// speaks first.
    const fn is_greeted(&self) -> bool {
        self.record.event.greeting_len > 0 || is_x(&self.record.event)
    }
}

/// Whether this process or this host is short of something, which passes.
fn is_lack_of_means(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
    )
}

/// Whether the session is refused for its TLS.
fn is_of_tls(event: &Event) -> bool {
    Reason::from_u8(event.reason).is_some_and(Reason::is_of_tls)
}

/// Whether the alert comes behind the server's TLS flight, in which it chose a version before TLS 1.3.
fn follows_flight(event: &Event) -> bool {
    is_of_tls(event) && event.tls_version != 0 && event.tls_version < TLS_1_3
}

const fn is_x(event: &Event) -> bool {
    event.class == ListenerClass::X as u8
}
