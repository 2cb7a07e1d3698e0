//! `/proc/PID/net/unix`, which holds what strangers have written.
//!
//! Any user of the network namespace may bind a socket to any bytes: such that are not UTF-8, spaces and newlines among them. A
//! name can so look like lines of its own. Lines that say nothing are left out, and of two about one inode the first counts.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// `__SO_ACCEPTCON` (`include/uapi/linux/net.h`), which the kernel shows for listening sockets.
const LISTENS: u32 = 1 << 16;
/// Columns before the name: address, references, protocol, flags, type, state, inode.
const COLUMNS: usize = 7;
const FLAGS: usize = 3;
const INODE: usize = 6;

/// The sockets of the namespace that a process is in, by inode; those that listen with their names, abstract ones from `@` on.
pub(super) fn read(pid: i32) -> io::Result<HashMap<u64, Option<PathBuf>>> {
    Ok(parse(&fs::read(format!("/proc/{pid}/net/unix"))?))
}

fn parse(table: &[u8]) -> HashMap<u64, Option<PathBuf>> {
    let mut sockets = HashMap::new();
    for line in table.split(|byte| *byte == b'\n') {
        if let Some((inode, path)) = entry(line) {
            sockets.entry(inode).or_insert(path);
        }
    }
    sockets
}

fn entry(line: &[u8]) -> Option<(u64, Option<PathBuf>)> {
    let mut rest = line;
    let mut columns = [""; COLUMNS];
    for column in &mut columns {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|byte| *byte == b' ');
        let (text, behind) = rest.split_at(end.unwrap_or(rest.len()));
        *column = std::str::from_utf8(text).ok()?;
        rest = behind;
    }
    let inode = columns.get(INODE)?.parse().ok()?;
    let flags = u32::from_str_radix(columns.get(FLAGS)?, 16).ok()?;
    let name = rest.strip_prefix(b" ").filter(|name| !name.is_empty());
    let path = name.filter(|_| flags & LISTENS != 0);
    Some((
        inode,
        path.map(|name| OsString::from_vec(name.to_vec()).into()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
    use std::path::Path;

    const HEAD: &str = "Num       RefCount Protocol Flags    Type St Inode Path\n";

    fn inode(socket: &impl std::os::fd::AsFd) -> u64 {
        let file = fs::File::from(socket.as_fd().try_clone_to_owned().unwrap());
        file.metadata().unwrap().ino()
    }

    #[test]
    fn listeners_have_their_names_and_others_none() {
        let table = format!(
            "{HEAD}0000000000000000: 00000002 00000000 00010000 0001 01 12345 /run/my sql/mysqld.sock\n\
             0000000000000000: 00000003 00000000 00000000 0001 03   77 /run/my sql/mysqld.sock\n\
             0000000000000000: 00000002 00000000 00010000 0001 01   78 @abstract\n\
             0000000000000000: 00000003 00000000 00000000 0001 03   79\n"
        );
        let sockets = parse(table.as_bytes());
        let path = |inode| sockets[&inode].as_deref();
        assert_eq!(path(12345), Some(Path::new("/run/my sql/mysqld.sock")));
        assert_eq!(path(78), Some(Path::new("@abstract")));
        assert_eq!((path(77), path(79), sockets.len()), (None, None, 4));
    }

    #[test]
    fn names_that_are_no_text_or_look_like_lines_hide_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let own = UnixListener::bind(&path).unwrap();
        let forged = format!(
            "\u{1}\n0: 1 0 00010000 1 1 {} /forged\n\n\n: : :\n",
            inode(&own)
        );
        let names: [&[u8]; 3] = [
            b"\xff\xfe\x80",
            forged.as_bytes(),
            b"\n\n\xff 1 2 3 4 5 6 7 8",
        ];
        let others: Vec<UnixDatagram> = names
            .iter()
            .map(|name| UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()))
            .collect::<Result<_, _>>()
            .unwrap();
        let own_pid = i32::try_from(std::process::id()).unwrap();
        let sockets = read(own_pid).unwrap();
        assert!(sockets.contains_key(&inode(&own)));
        for other in &others {
            assert!(sockets.contains_key(&inode(other)));
        }
    }
}
