//! Who is at the other end of a Unix socket, as the kernel noted when it connected (unix(7)).

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// Most groups that a process has (`NGROUPS_MAX`).
const GROUPS_MAX: usize = 65_536;

/// The supplementary groups of the peer (`SO_PEERGROUPS`, Linux 4.13).
pub(super) fn groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    // What nearly every process has; the kernel says how many there are if they are more.
    let mut groups = vec![0_u32; 32];
    loop {
        let size = groups.len() * size_of::<u32>();
        let mut len = libc::socklen_t::try_from(size).unwrap_or(0);
        // SAFETY: `groups` has `len` writable bytes, and `len` is a valid place.
        let error = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        let found = usize::try_from(len).unwrap_or(0) / size_of::<u32>();
        if error == 0 {
            groups.truncate(found);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        let is_too_small = error.raw_os_error() == Some(libc::ERANGE);
        if !is_too_small || found <= groups.len() || found > GROUPS_MAX {
            return Err(error);
        }
        groups.resize(found, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixStream;

    #[test]
    fn groups_of_the_peer_are_ours_here() {
        let (one, _other) = UnixStream::pair().unwrap();
        let mut found = super::groups(one.as_fd()).unwrap();
        let mut ours: Vec<u32> = rustix::process::getgroups()
            .unwrap()
            .into_iter()
            .map(rustix::process::Gid::as_raw)
            .collect();
        found.sort_unstable();
        ours.sort_unstable();
        assert_eq!(found, ours);
    }
}
