//! The canary: now and then the agent logs in to itself in the clear, and must be refused.
//!
//! A listener of its own on the loopback address, tagged like a server's, speaks the greeting of a server; a client of its own answers
//! with a plaintext login of nobody. Gate, ring of denials, refusal thread and `TCP_REPAIR` do with it what they do with any. ADR 0020.
//!
//! Its entry in the table of servers is [`SERVER`], which no `[[server]]` has: always in enforce mode, without exceptions, with counters
//! that nobody shows.
//!
//! Invariant: nobody else gets in. A socket filter on the listener drops all segments but those of the canary's own port.

mod wire;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use musttls_common::event::Event;
use musttls_common::policy::MAX_SERVERS;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use crate::socket::{self, Process, Socket};

/// The canary's entry in the table of servers: the last one.
pub const SERVER: u16 = 63;
const _: () = assert!(SERVER as usize == MAX_SERVERS - 1);

/// How long a canary may take: a refusal takes 10 ms, and a host that is short of CPU gets time.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes of either side that are looked at.
const MOST: u64 = 4096;

/// Whether an event is about the canary.
#[must_use]
pub const fn is_of_canary(event: &Event) -> bool {
    event.endpoints.server == SERVER
}

/// What a canary proves, in this order; the first that does not hold is what failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The client gets a connection.
    Connect,
    /// It gets the greeting.
    Greet,
    /// Its login does not reach the server's end.
    Hold,
    /// It gets an answer.
    Answer,
    /// The answer is error 3159.
    Refuse,
    /// The connection is ended.
    End,
}

impl Step {
    /// The word used in `musttls status --json`: what is wrong if the step failed.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "no-connection",
            Self::Greet => "no-greeting",
            Self::Hold => "login-passed",
            Self::Answer => "no-answer",
            Self::Refuse => "wrong-answer",
            Self::End => "not-ended",
        }
    }

    /// What it means for the servers of this host.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Connect | Self::Greet => {
                "the agent cannot tell whether plaintext logins are refused"
            }
            Self::Hold => "plaintext logins may reach servers in enforce mode",
            Self::Answer | Self::Refuse => {
                "refused clients may not be told, and hang or see a reset"
            }
            Self::End => "servers may keep sessions that are refused",
        }
    }

    /// What to do.
    #[must_use]
    pub const fn remedy(self) -> &'static str {
        match self {
            Self::Connect | Self::Greet => {
                "let 127.0.0.1 reach 127.0.0.1 (ip link show lo, nft list ruleset), and the agent have descriptors (LimitNOFILE=)"
            }
            Self::Hold => {
                "systemctl restart musttls; find out who has changed the gate (bpftool link, bpftool map, auditd: the system call bpf)"
            }
            Self::Answer | Self::Refuse | Self::End => {
                "musttls doctor: pidfd_getfd, TCP_REPAIR; the refusals in musttls status; give the agent more CPU (CPUWeight=)"
            }
        }
    }
}

/// A canary that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// At this step.
    pub step: Step,
    /// What was there instead.
    pub found: String,
}

impl Failure {
    fn new(step: Step, found: impl fmt::Display) -> Self {
        Self {
            step,
            found: found.to_string(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.step.as_str(), self.found)
    }
}

/// The server's end of the canary's connection, for the refusal thread. Without it the thread would go through the agent's own
/// descriptors; and closing a duplicate of a database's file takes its locks away (fcntl(2), `F_SETLK`).
#[derive(Debug, Default)]
pub struct Desk(Mutex<Option<OwnedFd>>);

impl Desk {
    /// Duplicates the server's end as that of any server, if it has this cookie. Returns the number of its descriptor with it.
    pub fn duplicate(&self, cookie: u64) -> io::Result<Option<(i32, Socket)>> {
        let held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // As long as it is held here, the number is no other file's.
        let Some(fd) = held.as_ref().map(AsRawFd::as_raw_fd) else {
            return Ok(None);
        };
        let socket = Process::open(own_pid())?.duplicate_if(fd, cookie)?;
        Ok(socket.map(|socket| (fd, socket)))
    }

    fn put(&self, socket: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = socket;
    }
}

/// The agent's process.
#[must_use]
pub fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

/// The listener, and what a canary needs.
#[derive(Debug)]
pub struct Canary {
    listener: TcpListener,
    address: SocketAddr,
    cookie: u64,
    desk: Arc<Desk>,
}

impl Canary {
    /// Listens on the loopback address, closed to all. Before the agent confines itself: it may not listen later.
    pub fn bind(desk: Arc<Desk>) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((Ipv4Addr::LOCALHOST, 0).into())?;
        socket::admit_port(&socket, None)?;
        let listener = socket.listen(1)?;
        Ok(Self {
            address: listener.local_addr()?,
            cookie: socket::cookie(&listener)?,
            listener,
            desk,
        })
    }

    /// The listener's socket cookie.
    #[must_use]
    pub const fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The listener.
    #[must_use]
    pub const fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Logs in once. Returns how long it took.
    pub async fn log_in(&self) -> Result<Duration, Failure> {
        let began = Instant::now();
        let deadline = began + PATIENCE;
        let no_connection = |error| Failure::new(Step::Connect, error);
        let socket = TcpSocket::new_v4().map_err(no_connection)?;
        socket
            .bind((Ipv4Addr::LOCALHOST, 0).into())
            .map_err(no_connection)?;
        // What its FIN would wait for, the gate drops: a session of a killed agent would stay denied for minutes.
        socket::reset_at_close(&socket).map_err(no_connection)?;
        let port = socket.local_addr().map_err(no_connection)?.port();
        socket::admit_port(&self.listener, Some(port)).map_err(no_connection)?;
        let server = async {
            let (stream, ended) = match self.accepted(port, deadline).await {
                Ok(mut stream) => {
                    let ended = serve(&mut stream, deadline).await;
                    (Some(stream), ended)
                }
                Err(failure) => (None, Err(failure)),
            };
            // The close that follows must be the last one.
            self.desk.put(None);
            drop(stream);
            ended
        };
        let client = async {
            let stream = within(deadline, Step::Connect, socket.connect(self.address)).await?;
            log_in(stream, deadline).await
        };
        let (client, server) = tokio::join!(client, server);
        let closed = socket::admit_port(&self.listener, None);
        // What the server's end has got says more than what the client has not.
        match (client, server) {
            (_, Err(failure)) if failure.step == Step::Hold => return Err(failure),
            (Err(failure), _) | (Ok(()), Err(failure)) => return Err(failure),
            (Ok(()), Ok(())) => {}
        }
        closed.map_err(no_connection)?;
        Ok(began.elapsed())
    }

    /// The server's end of the connection, which the refusal thread may duplicate from here on.
    async fn accepted(&self, port: u16, deadline: Instant) -> Result<TcpStream, Failure> {
        let stream = within(deadline, Step::Connect, self.accept(port)).await?;
        let duplicate = socket::reset_at_close(&stream)
            .and_then(|()| stream.as_fd().try_clone_to_owned())
            .map_err(|error| Failure::new(Step::Connect, error))?;
        self.desk.put(Some(duplicate));
        Ok(stream)
    }

    /// Takes the connection from this port, and turns others away.
    async fn accept(&self, port: u16) -> io::Result<TcpStream> {
        loop {
            let (stream, peer) = self.listener.accept().await?;
            if peer == SocketAddr::from((Ipv4Addr::LOCALHOST, port)) {
                return Ok(stream);
            }
        }
    }
}

/// The server's end: greets, and must not get what the client sends.
async fn serve(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    deadline: Instant,
) -> Result<(), Failure> {
    within(deadline, Step::Greet, stream.write_all(wire::GREETING)).await?;
    let mut got = Vec::new();
    loop {
        match timeout_at(deadline, stream.read_buf(&mut got)).await {
            Ok(Ok(1..)) if wire::begins_a_landing(&got) => {}
            Ok(Ok(1..)) => {
                let found = format!("{} bytes have reached the server", got.len());
                break Err(Failure::new(Step::Hold, found));
            }
            // A reset is an end, too.
            Ok(Ok(0) | Err(_)) => break Ok(()),
            Err(_elapsed) => {
                break Err(Failure::new(Step::End, "the server was not released"));
            }
        }
    }
}

/// The client's end: logs in, and must be told error 3159.
async fn log_in(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    deadline: Instant,
) -> Result<(), Failure> {
    let mut greeting = [0; wire::GREETING.len()];
    within(deadline, Step::Greet, stream.read_exact(&mut greeting)).await?;
    if greeting != *wire::GREETING {
        return Err(Failure::new(Step::Greet, "it is not the one that was sent"));
    }
    within(deadline, Step::Answer, stream.write_all(&wire::login())).await?;
    let mut header = [0; 4];
    within(deadline, Step::Answer, stream.read_exact(&mut header)).await?;
    let [a, b, c, _] = header;
    let mut payload = Vec::new();
    let len = u64::from(u32::from_le_bytes([a, b, c, 0])).min(MOST);
    within(
        deadline,
        Step::Answer,
        (&mut stream).take(len).read_to_end(&mut payload),
    )
    .await?;
    wire::read_refusal(&payload).map_err(|found| Failure::new(Step::Refuse, found))?;
    let mut more = [0];
    match timeout_at(deadline, stream.read(&mut more)).await {
        // RST, or FIN where the kernel has reset it otherwise.
        Ok(Err(_) | Ok(0)) => Ok(()),
        Ok(Ok(_)) => Err(Failure::new(Step::End, "more came behind the refusal")),
        Err(_elapsed) => Err(Failure::new(Step::End, "the client was not reset")),
    }
}

/// Waits for a step of one side, up to the deadline.
async fn within<T>(
    deadline: Instant,
    step: Step,
    what: impl Future<Output = io::Result<T>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, what).await {
        Ok(done) => done.map_err(|error| Failure::new(step, error)),
        Err(_elapsed) => {
            let found = format!("nothing came in {} s", PATIENCE.as_secs());
            Err(Failure::new(step, found))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::packet;
    use std::net::TcpStream as StdTcpStream;

    /// A pipe in the place of TCP: no gate of this host is in it.
    async fn through_a_pipe() -> (Result<(), Failure>, Result<(), Failure>) {
        let (client, mut server) = tokio::io::duplex(1024);
        let deadline = Instant::now() + PATIENCE;
        let server = async {
            let ended = serve(&mut server, deadline).await;
            drop(server);
            ended
        };
        tokio::join!(log_in(client, deadline), server)
    }

    #[tokio::test]
    async fn login_that_reaches_the_server_is_what_failed() {
        let (client, server) = through_a_pipe().await;
        assert_eq!(server.unwrap_err().step, Step::Hold);
        assert_eq!(client.unwrap_err().step, Step::Answer);
    }

    #[tokio::test]
    async fn server_that_gets_a_soft_landing_was_released() {
        let (mut client, mut server) = tokio::io::duplex(1024);
        let landing = packet::landing([0; 4], 0, 0).unwrap();
        // In parts, as TCP may deliver it.
        let (first, second) = landing.split_at(7);
        let client = async {
            client.write_all(first).await.unwrap();
            tokio::task::yield_now().await;
            client.write_all(second).await.unwrap();
            client.shutdown().await.unwrap();
        };
        let deadline = Instant::now() + PATIENCE;
        let (ended, ()) = tokio::join!(serve(&mut server, deadline), client);
        assert_eq!(ended, Ok(()));
    }

    #[tokio::test]
    async fn client_takes_error_3159_and_the_end_only() {
        let another = [3, 0, 0, 2, 0xff, 0x15, 0x04];
        let accepted = [7, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0];
        let refusal = packet::refusal(1, 0x02, false);
        let goes_on = [&refusal[..], &[0]].concat();
        for (answer, step) in [
            (&refusal[..], None),
            (&another, Some(Step::Refuse)),
            (&accepted, Some(Step::Refuse)),
            (&[], Some(Step::Answer)),
            (&goes_on, Some(Step::End)),
        ] {
            let (client, mut server) = tokio::io::duplex(1024);
            let server = async {
                server.write_all(wire::GREETING).await.unwrap();
                let mut login = vec![0; wire::login().len()];
                server.read_exact(&mut login).await.unwrap();
                assert_eq!(login, wire::login());
                server.write_all(answer).await.unwrap();
                drop(server);
            };
            let deadline = Instant::now() + PATIENCE;
            let (told, ()) = tokio::join!(log_in(client, deadline), server);
            assert_eq!(told.err().map(|failure| failure.step), step, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn strangers_get_no_connection() {
        let canary = Canary::bind(Arc::default()).unwrap();
        let wait = Duration::from_millis(200);
        let error = StdTcpStream::connect_timeout(&canary.address, wait).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let port = socket.local_addr().unwrap().port();
        socket::admit_port(&canary.listener, Some(port)).unwrap();
        let error = StdTcpStream::connect_timeout(&canary.address, wait).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        let deadline = Instant::now() + PATIENCE;
        let (client, server) = tokio::join!(
            socket.connect(canary.address),
            canary.accepted(port, deadline)
        );
        let (client, server) = (client.unwrap(), server.unwrap());
        assert_eq!(client.local_addr().unwrap(), server.peer_addr().unwrap());
        let cookie = socket::cookie(&server).unwrap();
        assert!(canary.desk.duplicate(cookie).unwrap().is_some());
        assert!(canary.desk.duplicate(cookie + 1).unwrap().is_none());
    }
}
