//! Sockmaps of others on this host. Their programs move bytes from one local socket to another without a packet, so
//! that no `cgroup_skb` program sees them.

use std::collections::BTreeSet;
use std::io;

use super::sys::{self, Map};

/// `BPF_MAP_TYPE_SOCKMAP`, `BPF_MAP_TYPE_SOCKHASH`.
const SOCKMAPS: [u32; 2] = [15, 18];
/// `BPF_SK_SKB_STREAM_PARSER`, `BPF_SK_SKB_STREAM_VERDICT`, `BPF_SK_MSG_VERDICT`, `BPF_SK_SKB_VERDICT`.
const ATTACH_TYPES: [u32; 4] = [4, 5, 7, 38];
/// More maps than a host has; and more sockets of one than are looked at.
const MAPS_MAX: usize = 100_000;
const ENTRIES_MAX: usize = 65_536;

/// A sockmap, or a sockhash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sockmap {
    /// Its number.
    pub id: u32,
    /// Its name, up to 15 characters.
    pub name: String,
    /// Whether it has a program; `None` before Linux 5.17, which does not tell.
    pub has_programs: Option<bool>,
    /// Cookies of the sockets in it; `None` where its maker has left the kernel no room to tell them: values of 4
    /// bytes instead of 8.
    pub cookies: Option<BTreeSet<u64>>,
}

/// All sockmaps of this host. Needs `CAP_SYS_ADMIN`.
pub fn all() -> io::Result<Vec<Sockmap>> {
    let mut found = Vec::new();
    let mut id = 0;
    for _ in 0..MAPS_MAX {
        id = match sys::next_map(id) {
            Ok(next) => next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        match Map::by_id(id) {
            Ok(map) if SOCKMAPS.contains(&map.kind) => found.push(look(id, &map)),
            Ok(_) => {}
            // Gone since; a sockmap's keys are never too long.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::Unsupported
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn look(id: u32, map: &Map) -> Sockmap {
    Sockmap {
        id,
        name: map.name.clone(),
        has_programs: has_programs(map),
        cookies: map.holds_numbers().then(|| cookies(map)),
    }
}

fn has_programs(map: &Map) -> Option<bool> {
    let mut any = false;
    for attach_type in ATTACH_TYPES {
        // Linux 5.17 knows BPF_SK_SKB_VERDICT too, which is younger than sockmaps.
        any |= map.programs(attach_type).ok()? > 0;
    }
    Some(any)
}

fn cookies(map: &Map) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    let mut key = None;
    for _ in 0..ENTRIES_MAX {
        let Ok(next) = map.next_key(key.as_ref()) else {
            break;
        };
        // An empty place of an array is an error.
        found.extend(map.number(&next));
        key = Some(next);
    }
    found
}
