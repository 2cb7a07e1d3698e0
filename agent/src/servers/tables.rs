//! The sockets of a network namespace, as procfs lists them: read once a look, however many processes are in it.
//!
//! Any user may have a hundred thousand connections there, and a hundred processes named as servers. What is not in a table that was read
//! before a socket was made is looked at by its descriptor.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::linux::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::unix_table;

/// State of a listening socket (`TCP_LISTEN` in `include/net/tcp_states.h`).
const LISTENS: &str = "0A";
/// Columns of a line: local address, state, inode.
const LOCAL: usize = 1;
const STATE: usize = 3;
const INODE: usize = 9;

/// Sockets by inode.
#[derive(Debug)]
pub(super) struct Table {
    /// Of TCP: where those listen that do.
    pub(super) tcp: HashMap<u64, Option<SocketAddr>>,
    /// Unix sockets: the names of those that listen.
    pub(super) unix: HashMap<u64, Option<PathBuf>>,
}

/// The tables that a look has read.
#[derive(Debug, Default)]
pub(super) struct Tables(HashMap<(u64, u64), Arc<Table>>);

impl Tables {
    /// The table of the network namespace of process `pid`.
    pub(super) fn of(&mut self, pid: i32) -> io::Result<Arc<Table>> {
        let file = fs::metadata(format!("/proc/{pid}/ns/net"))?;
        let namespace = (file.st_dev(), file.st_ino());
        if let Some(known) = self.0.get(&namespace) {
            return Ok(known.clone());
        }
        let mut tcp = HashMap::new();
        read(&format!("/proc/{pid}/net/tcp"), &mut tcp)?;
        match read(&format!("/proc/{pid}/net/tcp6"), &mut tcp) {
            // A kernel without IPv6 has none.
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let unix = unix_table::read(pid)?;
        let table = Arc::new(Table { tcp, unix });
        self.0.insert(namespace, table.clone());
        Ok(table)
    }
}

fn read(path: &str, sockets: &mut HashMap<u64, Option<SocketAddr>>) -> io::Result<()> {
    let mut lines = BufReader::with_capacity(1 << 16, File::open(path)?);
    let mut line = String::new();
    while lines.read_line(&mut line)? > 0 {
        sockets.extend(entry(&line));
        line.clear();
    }
    Ok(())
}

/// A socket that somebody holds: inode, and where it listens, if it does.
fn entry(line: &str) -> Option<(u64, Option<SocketAddr>)> {
    let mut columns = line.split_ascii_whitespace();
    let local = columns.nth(LOCAL)?;
    let state = columns.nth(STATE - LOCAL - 1)?;
    let inode = columns.nth(INODE - STATE - 1)?.parse().ok()?;
    let listens_at = match state {
        LISTENS => Some(address(local)?),
        _ => None,
    };
    (inode != 0).then_some((inode, listens_at))
}

/// An address as the kernel prints it: words of four bytes in host byte order.
fn address(text: &str) -> Option<SocketAddr> {
    let (words, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let word = words.get(8 * at..8 * (at + 1))?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    let ip = match words.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut octets = [0; 16];
            for (at, place) in octets.chunks_exact_mut(4).enumerate() {
                place.copy_from_slice(&word(at)?);
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn inode(socket: &impl std::os::fd::AsFd) -> u64 {
        let file = File::from(socket.as_fd().try_clone_to_owned().unwrap());
        file.metadata().unwrap().st_ino()
    }

    #[test]
    fn listeners_are_found_where_they_listen_and_others_without() {
        let own = i32::try_from(std::process::id()).unwrap();
        for at in ["127.0.0.1:0", "[::1]:0", "[::]:0"] {
            let listener = TcpListener::bind(at).unwrap();
            let address = listener.local_addr().unwrap();
            let client = TcpStream::connect(address).unwrap();
            let mut tables = Tables::default();
            let table = tables.of(own).unwrap();
            assert_eq!(table.tcp[&inode(&listener)], Some(address));
            assert_eq!(table.tcp[&inode(&client)], None);
            assert!(Arc::ptr_eq(&table, &tables.of(own).unwrap()));
        }
    }

    #[test]
    fn what_nobody_holds_is_left_out_and_what_says_nothing_too() {
        let line = "   1: 0100007F:0CEA 0100007F:A5C4 06 00000000:00000000 03:00000F1E 00000000     0        0 0 3 0000\n";
        assert_eq!(entry(line), None);
        let head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
        assert_eq!(entry(head), None);
        let listener = line
            .replace(" 06 ", " 0A ")
            .replace(" 0 3 0000", " 77 3 0000");
        assert_eq!(
            entry(&listener),
            Some((77, Some("127.0.0.1:3306".parse().unwrap())))
        );
    }
}
