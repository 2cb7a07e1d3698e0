//! A server that always says the same, and writes down what it heard: whatever differs between two runs
//! was changed on the way. The agent knows servers by the name of their program, so a test copies this
//! one to a file named `mysqld`.
//!
//! Usage: `mysqld PORT FILE [LATER | proxied | flickers | hoards | multipath ADDRESS | opens COUNT]`. `FILE` appears when it listens. With `LATER`, it listens on that port,
//! too, once its first session has ended, and serves that one only. With `proxied` it greets behind a PROXY protocol
//! header of version 1 only, as Percona Server does, which reads it with one peek (`vio_process_proxy_header`). With `flickers`
//! it listens and closes again all the time, with `hoards` it listens by MPTCP on 600 ports from `PORT` on, with `multipath` on one, at
//! `ADDRESS`; they serve nobody. With `opens` it has `COUNT` sockets open before it listens.

#![forbid(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use musttls_tests::raw::{Next, Raw};
use musttls_tests::wire::packet;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A greeting of MySQL 8.4 with TLS on offer; version, connection id and scramble never change.
const GREETING: &[u8] = b"\x0a8.4.0\0\x2a\0\0\0ABCDEFGH\0\xff\xff\xff\x02\0\xff\xdf\x15\
\0\0\0\0\0\0\0\0\0\0IJKLMNOPQRST\0caching_sha2_password\0";

const OK: &[u8] = b"\0\0\0\x02\0\0\0";

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let mut next = || arguments.next().context("usage: mysqld PORT FILE");
    let port = next()?;
    let file = PathBuf::from(next()?);
    let third = next();
    let create = || File::create(&file).with_context(|| format!("create {}", file.display()));
    if third.as_ref().is_ok_and(|third| third == "flickers") {
        create()?;
        return flicker(number(&port)?);
    }
    if third.as_ref().is_ok_and(|third| third == "hoards") {
        let _all = hoard(Ipv4Addr::UNSPECIFIED, number(&port)?, 600)?;
        create()?;
        loop {
            thread::park();
        }
    }
    if third.as_ref().is_ok_and(|third| third == "multipath") {
        let address = next()?.to_string_lossy().parse();
        let _one = hoard(address.context("ADDRESS is none")?, number(&port)?, 1)?;
        create()?;
        loop {
            thread::park();
        }
    }
    let opens = third.as_ref().is_ok_and(|third| third == "opens");
    let _many = if opens { open(&next()?)? } else { Vec::new() };
    let listener = listen(&port)?;
    let mut heard = create()?;
    let mut serve_next = |listener: &TcpListener| -> Result<()> {
        let (stream, _) = listener.accept().context("accept")?;
        heard
            .write_all(&serve(stream)?)
            .context("write down what was heard")
    };
    if third.as_ref().is_ok_and(|third| third == "proxied") {
        loop {
            let (stream, _) = listener.accept().context("accept")?;
            if take_header(&stream)? {
                let all = serve(stream)?;
                heard.write_all(&all).context("write down what was heard")?;
            }
        }
    }
    if let (Ok(later), false) = (third, opens) {
        serve_next(&listener)?;
        let second = listen(&later)?;
        loop {
            serve_next(&second)?;
        }
    }
    loop {
        serve_next(&listener)?;
    }
}

fn listen(port: &OsStr) -> Result<TcpListener> {
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, number(port)?)).context("listen")
}

fn number(port: &OsStr) -> Result<u16> {
    port.to_string_lossy().parse().context("PORT is no number")
}

/// Opens so many sockets.
fn open(count: &OsStr) -> Result<Vec<UnixDatagram>> {
    let count: u64 = count.to_string_lossy().parse().context("COUNT is none")?;
    let limit = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    setrlimit(Resource::Nofile, limit).context("set RLIMIT_NOFILE")?;
    let socket = |_| UnixDatagram::unbound().context("open a socket");
    (0..count).map(socket).collect()
}

/// Listens for some milliseconds, again and again.
fn flicker(port: u16) -> Result<()> {
    const PAUSE: Duration = Duration::from_millis(3);
    loop {
        let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).context("listen")?;
        thread::sleep(PAUSE);
        drop(listener);
        thread::sleep(PAUSE);
    }
}

/// Listens by MPTCP on so many ports from `first` on.
fn hoard(address: Ipv4Addr, first: u16, count: usize) -> Result<Vec<OwnedFd>> {
    let listen = |port| {
        let socket = socket_with(
            AddressFamily::INET,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            Some(ipproto::MPTCP),
        )?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        bind(&socket, &SocketAddrV4::new(address, port))?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    };
    let all: rustix::io::Result<Vec<OwnedFd>> = (first..).take(count).map(listen).collect();
    all.context("listen by MPTCP")
}

/// Takes a header off the front of the stream, if it is there whole.
fn take_header(mut stream: &TcpStream) -> Result<bool> {
    let mut peeked = [0; 108];
    let len = stream.peek(&mut peeked).context("peek")?;
    let header = peeked.get(..len).unwrap_or_default();
    let end = header.windows(2).position(|two| two == b"\r\n");
    let Some(end) = end.filter(|_| header.starts_with(b"PROXY ")) else {
        return Ok(false);
    };
    let mut taken = vec![0; end + 2];
    stream.read_exact(&mut taken).context("read the header")?;
    Ok(true)
}

/// One session: greeting, login, OK, and an OK for every packet until the client leaves.
fn serve(stream: TcpStream) -> Result<Vec<u8>> {
    let mut copy = stream.try_clone().context("share the connection")?;
    let mut raw = Raw::over(stream)?;
    raw.send(&packet(0, GREETING))?;
    let mut heard = Vec::new();
    let mut sequence = 2;
    while let Next::Packet(one) = raw.receive()? {
        heard.extend(packet(one.sequence, &one.payload));
        raw.send(&packet(sequence, OK))?;
        sequence = 1;
    }
    // What is behind the last whole packet.
    copy.read_to_end(&mut heard).context("read to the end")?;
    Ok(heard)
}
