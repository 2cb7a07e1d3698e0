//! Another process's socket, duplicated (`pidfd_getfd`, Linux 5.6), the only code that touches one; and what is asked of sockets with
//! system calls that have no wrapper.
//!
//! A duplicate shares the open file description with its owner, so nothing is ever set on it that the owner
//! could notice: no `O_NONBLOCK`, no options but those of a refusal, and these only after the socket was
//! identified by its cookie.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::{ManuallyDrop, MaybeUninit, size_of_val};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open, readlinkat_raw};
use rustix::io::Errno;
use rustix::net::{
    SendFlags, Shutdown, SocketAddrUnix, getpeername, getsockname, send, shutdown, sockopt,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// `TCP_REPAIR_OFF_NO_WP` (`include/uapi/linux/tcp.h`, Linux 4.19): leave repair mode without a window probe.
const TCP_REPAIR_OFF_NO_WP: libc::c_int = -1;
/// `TCP_RECV_QUEUE` (`include/uapi/linux/tcp.h`).
const TCP_RECV_QUEUE: libc::c_int = 1;
/// `TCP_ESTABLISHED` (`include/net/tcp_states.h`).
const TCP_ESTABLISHED: u8 = 1;

/// A process whose sockets may be duplicated.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    pidfd: OwnedFd,
    /// `/proc/PID/fd`.
    descriptors: OwnedFd,
}

impl Process {
    /// Opens process `pid`.
    pub fn open(pid: i32) -> io::Result<Self> {
        let id = Pid::from_raw(pid).ok_or(io::ErrorKind::NotFound)?;
        let pidfd = pidfd_open(id, PidfdFlags::empty())?;
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            pid,
            pidfd,
            descriptors: open(format!("/proc/{pid}/fd"), flags, Mode::empty())?,
        })
    }

    /// Duplicates descriptor `fd`, if it is a socket's: else `ENOTSOCK`.
    ///
    /// Nothing else is touched, because a file is not closed before its file system agrees: that of a local user may never do so
    /// (FUSE), and who waits for it cannot be killed (`fuse_flush`).
    pub fn duplicate(&self, fd: i32) -> io::Result<Socket> {
        let mut name = [MaybeUninit::uninit(); 16];
        match readlinkat_raw(&self.descriptors, fd.to_string(), &mut name) {
            Ok((name, _)) if name.starts_with(b"socket:") => {}
            Ok(_) => return Err(Errno::NOTSOCK.into()),
            // It is not open, or the process has ended.
            Err(Errno::NOENT) => return Err(Errno::BADF.into()),
            Err(error) => return Err(error.into()),
        }
        let duplicate = pidfd_getfd(&self.pidfd, fd, PidfdGetfdFlags::empty())?;
        if sockopt::socket_domain(&duplicate) == Err(Errno::NOTSOCK) {
            close_elsewhere(duplicate);
            return Err(Errno::NOTSOCK.into());
        }
        Ok(Socket(duplicate))
    }

    /// The same, if it is the socket with this cookie.
    pub fn duplicate_if(&self, fd: i32, cookie: u64) -> io::Result<Option<Socket>> {
        let socket = self.duplicate(fd)?;
        Ok((socket.cookie().ok() == Some(cookie)).then_some(socket))
    }

    /// Length of its table of descriptors: each open one has a lower number (proc(5), `FDSize`).
    pub fn descriptor_table_len(&self) -> io::Result<i32> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let len = status.lines().find_map(|line| line.strip_prefix("FDSize:"));
        len.and_then(|len| len.trim().parse().ok()).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("no FDSize in /proc/{}/status", self.pid),
            )
        })
    }
}

/// Closes what has taken the place of a socket just now, in a thread that may wait for as long as it takes.
fn close_elsewhere(file: OwnedFd) {
    // Where there can be no thread it stays open: the closure must not close it here.
    let file = ManuallyDrop::new(file);
    let thread = thread::Builder::new().name("closing".to_owned());
    if let Err(error) = thread.spawn(move || drop(ManuallyDrop::into_inner(file))) {
        tracing::debug!(%error, "a descriptor stays open");
    }
}

/// A duplicate of another process's socket.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::os::fd::AsRawFd for Socket {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// What kind of socket it is: what its bytes pass on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// TCP.
    Tcp,
    /// MPTCP: TCP connections, and a stream made of them.
    Mptcp,
    /// SMC: a TCP connection, and shared memory in place of it where both sides can.
    Smc,
    /// `AF_XDP`: frames straight from the driver.
    Xdp,
    /// `AF_PACKET`: frames.
    Packet,
    /// A raw socket of IPv4 or IPv6: packets.
    RawIp,
    /// Anything else.
    Other,
}

/// Address families and protocols that `libc` does not name (`include/linux/socket.h`, `include/uapi/linux/in.h`).
const AF_SMC: i32 = 43;
const IPPROTO_MPTCP: i32 = 262;

impl Kind {
    /// By `SO_DOMAIN`, `SO_TYPE` and `SO_PROTOCOL`.
    const fn of(domain: i32, r#type: i32, protocol: i32) -> Self {
        match (domain, r#type, protocol) {
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, libc::IPPROTO_TCP) => Self::Tcp,
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_STREAM, IPPROTO_MPTCP) => Self::Mptcp,
            (libc::AF_INET | libc::AF_INET6, libc::SOCK_RAW, _) => Self::RawIp,
            (AF_SMC, ..) => Self::Smc,
            (libc::AF_XDP, ..) => Self::Xdp,
            (libc::AF_PACKET, ..) => Self::Packet,
            _ => Self::Other,
        }
    }
}

/// What TCP says of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpState {
    /// Whether the connection is established and neither side has ended it.
    pub established: bool,
    /// Bytes that the owner has written, in all.
    pub written: u64,
    /// Bytes that have come in order, in all.
    pub received: u64,
}

/// A connection, as TCP tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Its own address.
    pub local: SocketAddr,
    /// The peer's.
    pub peer: SocketAddr,
    /// For how long the peer has sent nothing. The session is at least so old.
    pub idle: Duration,
}

impl Socket {
    /// The connection, if it is an established one of TCP.
    pub fn connection(&self) -> io::Result<Option<Connection>> {
        if self.kind()? != Kind::Tcp {
            return Ok(None);
        }
        let info = self.tcp_info()?;
        if info.first() != Some(&TCP_ESTABLISHED) {
            return Ok(None);
        }
        let local = SocketAddr::try_from(getsockname(&self.0)?);
        let peer = getpeername(&self.0)?.map(SocketAddr::try_from);
        let (Ok(local), Some(Ok(peer))) = (local, peer) else {
            return Ok(None);
        };
        // tcpi_last_data_recv, u32 at 52: milliseconds; it counts from the handshake if nothing has come.
        let idle = info.get(52..).and_then(|bytes| bytes.first_chunk());
        let idle = idle.copied().map_or(0, u32::from_ne_bytes);
        Ok(Some(Connection {
            local,
            peer,
            idle: Duration::from_millis(idle.into()),
        }))
    }

    /// Its cookie (`SO_COOKIE`).
    pub fn cookie(&self) -> io::Result<u64> {
        Ok(sockopt::socket_cookie(&self.0)?)
    }

    /// The cookie of its network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
    pub fn netns_cookie(&self) -> io::Result<u64> {
        netns_cookie(&self.0)
    }

    /// Its inode number, by which procfs names it.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(rustix::fs::fstat(&self.0)?.st_ino)
    }

    /// What kind of socket it is.
    pub fn kind(&self) -> io::Result<Kind> {
        let domain = sockopt::socket_domain(&self.0)?.as_raw();
        let r#type = sockopt::socket_type(&self.0)?.as_raw();
        let protocol = sockopt::socket_protocol(&self.0)?.map_or(0, |one| one.as_raw().get());
        let number = |raw: u32| i32::try_from(raw).unwrap_or(-1);
        Ok(Kind::of(
            i32::from(domain),
            number(r#type),
            number(protocol),
        ))
    }

    /// Where it listens, if it does.
    pub fn listens_at(&self) -> io::Result<Option<SocketAddr>> {
        if !sockopt::socket_acceptconn(&self.0)? {
            return Ok(None);
        }
        Ok(SocketAddr::try_from(getsockname(&self.0)?).ok())
    }

    /// Path of its own name, if it is a Unix socket that has one.
    #[must_use]
    pub fn unix_path(&self) -> Option<PathBuf> {
        let name = SocketAddrUnix::try_from(getsockname(&self.0).ok()?).ok()?;
        Some(PathBuf::from(OsStr::from_bytes(name.path_bytes()?)))
    }

    /// Process, user and group id of the peer of a Unix socket.
    pub fn peer_credentials(&self) -> io::Result<rustix::net::UCred> {
        Ok(sockopt::socket_peercred(&self.0)?)
    }

    /// What TCP says of it (`TCP_INFO`, `struct tcp_info` of `include/uapi/linux/tcp.h`, Linux 4.19).
    pub fn tcp_state(&self) -> io::Result<TcpState> {
        let info = self.tcp_info()?;
        let number = |offset: usize| {
            let bytes = info
                .get(offset..offset + 8)
                .and_then(|bytes| bytes.first_chunk());
            bytes
                .copied()
                .map(u64::from_ne_bytes)
                .ok_or(io::ErrorKind::Unsupported)
        };
        // tcpi_notsent_bytes, u32 at 144; tcpi_bytes_sent, tcpi_bytes_retrans, u64 at 200 and 208.
        let not_sent = number(144)? & u64::from(u32::MAX);
        Ok(TcpState {
            established: info.first() == Some(&TCP_ESTABLISHED),
            written: number(200)?
                .wrapping_sub(number(208)?)
                .wrapping_add(not_sent),
            received: number(128)?,
        })
    }

    /// `TCP_INFO`; what the kernel does not know is 0.
    fn tcp_info(&self) -> io::Result<[u8; 256]> {
        let mut info = [0_u8; 256];
        let mut len = libc::socklen_t::try_from(info.len()).unwrap_or(0);
        // SAFETY: `info` has `len` writable bytes, and `len` is a valid place.
        let error = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if error != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(info)
    }

    /// Sends `bytes` to the peer, all or nothing, without waiting.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = send(&self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the send buffer took a part only",
            ))
        }
    }

    /// Puts `bytes` into the receive queue, as if the peer had sent them (`TCP_REPAIR`, Linux 3.5).
    pub fn inject(&self, bytes: &[u8]) -> io::Result<()> {
        self.set(libc::TCP_REPAIR, 1)?;
        // As few calls as can be: the owner must not read meanwhile. Leaving the mode resets the queue.
        let sent = self
            .set(libc::TCP_REPAIR_QUEUE, TCP_RECV_QUEUE)
            .and_then(|()| self.send_now(bytes));
        // Whatever happened: the socket must not stay in repair mode.
        let off = self.set(libc::TCP_REPAIR, TCP_REPAIR_OFF_NO_WP);
        let off = if off.is_err() {
            self.set(libc::TCP_REPAIR, 0)
        } else {
            off
        };
        sent.and(off)
    }

    /// Ends the stream that the owner reads, behind what is queued, and wakes it.
    pub fn end_reading(&self) -> io::Result<()> {
        Ok(shutdown(&self.0, Shutdown::Read)?)
    }

    /// Ends both streams, which the owner and the peer see.
    pub fn end(&self) -> io::Result<()> {
        Ok(shutdown(&self.0, Shutdown::Both)?)
    }

    /// Closes the duplicate, so that the owner's close sends the peer an RST instead of a FIN.
    pub fn close_with_reset(self) -> io::Result<()> {
        Ok(sockopt::set_socket_linger(&self.0, Some(Duration::ZERO))?)
    }

    fn set(&self, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let len = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
        // SAFETY: `value` is a valid place of `len` bytes.
        let error = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::IPPROTO_TCP,
                option,
                (&raw const value).cast(),
                len,
            )
        };
        if error == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}

/// A socket's cookie (`SO_COOKIE`).
pub fn cookie(socket: &impl AsFd) -> io::Result<u64> {
    Ok(sockopt::socket_cookie(socket)?)
}

/// Has a socket of the agent's own end at its close, with an RST: it waits for nobody, also where the agent is killed.
pub fn reset_at_close(socket: &impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(socket, Some(Duration::ZERO))?)
}

/// Lets a TCP socket of the agent's own take segments from this port of its peers only; from none without one. Sockets that a listener
/// accepts have its filter, too (`SO_ATTACH_FILTER`, socket(7); a program sees the TCP header, `tcp_filter`).
pub fn admit_port(socket: &impl AsFd, port: Option<u16>) -> io::Result<()> {
    let instruction = |code: u32, jt, jf, k| libc::sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    };
    let whole = instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX);
    let nothing = instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0);
    let from = u32::from(port.unwrap_or(0));
    let by_port = [
        instruction(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, from),
        whole,
        nothing,
    ];
    let program = if port.is_some() {
        &by_port[..]
    } else {
        &[nothing]
    };
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).unwrap_or(0),
        filter: program.as_ptr().cast_mut(),
    };
    let len = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or(0);
    // SAFETY: `program` is a valid place of `len` bytes and names as many instructions as it says, which the kernel copies.
    let error = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            len,
        )
    };
    if error == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The cookie of a socket's network namespace (`SO_NETNS_COOKIE`, Linux 5.14).
pub fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len = libc::socklen_t::try_from(size_of_val(&cookie)).unwrap_or(0);
    // SAFETY: `cookie` has `len` writable bytes, and `len` is a valid place.
    let error = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if error == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    fn connection() -> (TcpStream, TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        let me = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let socket = me.duplicate(server.as_raw_fd()).unwrap();
        (client, server, socket)
    }

    #[test]
    fn a_socket_is_found_by_its_cookie_only() {
        let (_client, server, socket) = connection();
        let me = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let cookie = socket.cookie().unwrap();
        assert!(
            me.duplicate_if(server.as_raw_fd(), cookie)
                .unwrap()
                .is_some()
        );
        assert!(
            me.duplicate_if(server.as_raw_fd(), cookie + 1)
                .unwrap()
                .is_none()
        );
        assert!(me.descriptor_table_len().unwrap() > server.as_raw_fd());
    }

    #[test]
    fn nothing_but_a_socket_is_duplicated() {
        let me = Process::open(i32::try_from(std::process::id()).unwrap()).unwrap();
        let file = fs::File::open("/proc/self/status").unwrap();
        let error = me.duplicate(file.as_raw_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().as_raw_fd();
        let error = me.duplicate(closed).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn tcp_counts_what_was_written_and_received() {
        let (mut client, mut server, socket) = connection();
        server.write_all(b"greeting").unwrap();
        let mut greeting = [0; 8];
        client.read_exact(&mut greeting).unwrap();
        client.write_all(b"abc").unwrap();
        server.read_exact(&mut [0; 3]).unwrap();
        let state = socket.tcp_state().unwrap();
        assert_eq!(
            state,
            TcpState {
                established: true,
                written: 8,
                received: 3
            }
        );
    }

    /// Needs `CAP_NET_ADMIN`, as the agent does.
    #[test]
    fn a_reader_gets_the_injected_bytes_and_then_the_end_and_can_still_write() {
        let (_client, mut server, socket) = connection();
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            server.read_to_end(&mut all).unwrap();
            // The client's TCP ignores it, since it acknowledges bytes that were never sent.
            server.write_all(b"answer").unwrap();
            all
        });
        socket
            .inject(b"from nobody")
            .expect("TCP_REPAIR (needs CAP_NET_ADMIN)");
        socket.end_reading().unwrap();
        assert_eq!(reader.join().unwrap(), b"from nobody");
    }
}
