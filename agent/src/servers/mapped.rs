//! What a process has mapped.

use std::fs::File;
use std::io::{self, Read as _};

/// Longest text that is read, in bytes. 65,530 mappings (`vm.max_map_count`) with short paths have 8 MB; any user may have as many
/// with paths of 4,096 bytes.
const MAX: u64 = 16 << 20;

/// `/proc/PID/maps` (proc(5)).
pub fn read(pid: i32) -> io::Result<String> {
    limited(File::open(format!("/proc/{pid}/maps"))?, MAX)
}

fn limited(maps: impl io::Read, max: u64) -> io::Result<String> {
    let mut text = Vec::new();
    let len = maps.take(max + 1).read_to_end(&mut text)?;
    if u64::try_from(len).is_ok_and(|len| len > max) {
        return Err(io::Error::other(format!("is longer than {max} bytes")));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_long_a_text_is_not_kept() {
        assert_eq!(limited(&b"abc"[..], 3).unwrap(), "abc");
        let error = limited(io::repeat(b'x'), 3).unwrap_err();
        assert_eq!(error.to_string(), "is longer than 3 bytes");
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(read(own).unwrap().contains("[stack]"));
    }
}
