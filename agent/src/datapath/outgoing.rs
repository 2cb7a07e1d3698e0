//! Gates of agents with another `ABI_VERSION`, on their way out.
//!
//! Their records cannot be taken over, so this agent's gate is attached beside them. They keep the sessions that they
//! have begun to judge; new sessions are this agent's alone, because their record is taken from the listeners. When the
//! last of their sessions is decided, they are taken off.
//!
//! What is used of them is the same in every ABI: the names of the pins, and the counters of outcomes
//! (`musttls_common::counter`).

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::maps::{MapData, PerCpuArray};
use musttls_common::counter::{self, Outcome};
use musttls_common::policy::MAX_SERVERS;

use super::maps::Counters;
use super::pins;
use super::sys::{self, Key};

/// A gate of another ABI that is attached beside this agent's.
pub struct Outgoing {
    /// Its `ABI_VERSION`.
    pub abi: u32,
    directory: PathBuf,
    sockets: sys::Map,
    places: sys::Map,
    held: sys::Map,
    counters: Counters,
}

impl Outgoing {
    /// All that are attached.
    pub fn all() -> Result<Vec<Self>> {
        pins::others()?
            .into_iter()
            .map(|(abi, directory)| {
                Self::open(abi, directory.clone()).with_context(|| {
                    crate::error::Failed::new(
                        format!("take over from the gate pinned in {}", directory.display()),
                        "musttls disarm takes it off; then start again",
                    )
                })
            })
            .collect()
    }

    fn open(abi: u32, directory: PathBuf) -> Result<Self> {
        let map = |name: &str| directory.join("maps").join(name);
        let counters = MapData::from_pin(map("COUNTERS")).context("open its COUNTERS")?;
        let counters = PerCpuArray::try_from(aya::maps::Map::PerCpuArray(counters))
            .context("its COUNTERS are of another type")?;
        Ok(Self {
            abi,
            sockets: sys::Map::pinned(&map("SOCKETS")).context("open its SOCKETS")?,
            // Up to ABI 7, places were ports.
            places: sys::Map::pinned(&map("PLACES"))
                .or_else(|_| sys::Map::pinned(&map("PORTS")))
                .context("open its PLACES")?,
            held: sys::Map::pinned(&map("HELD")).context("open its HELD")?,
            counters: Counters(counters),
            directory,
        })
    }

    /// Takes a listener from it: sessions that it begins from now on are not judged by it.
    pub(super) fn untag(&self, socket: &impl AsRawFd) -> io::Result<()> {
        self.sockets.delete(&key(socket))
    }

    /// Whether it has a record of a session.
    pub(super) fn knows(&self, socket: &impl AsRawFd) -> io::Result<bool> {
        self.sockets.contains(&key(socket))
    }

    /// Takes all places from it, as [`Self::untag`] does a listener.
    pub(super) fn untag_places(&self) -> io::Result<()> {
        while let Ok(key) = self.places.next_key(None) {
            self.places.delete(&key)?;
        }
        Ok(())
    }

    /// How many sessions it has not decided; one more if it holds any that it has denied.
    #[must_use]
    pub fn undecided(&self) -> u64 {
        let totals = self.counters.totals(MAX_SERVERS);
        let count = |server, outcome| {
            let index = usize::try_from(counter::outcome(server, outcome)).unwrap_or(usize::MAX);
            totals.get(index).copied().unwrap_or(0)
        };
        let mut undecided = u64::from(self.held.next_key(None).is_ok());
        for server in 0..MAX_SERVERS {
            let server = u16::try_from(server).unwrap_or(0);
            let decided: u64 = Outcome::ALL
                .into_iter()
                .filter(|outcome| *outcome != Outcome::Seen)
                .map(|outcome| count(server, outcome))
                .sum();
            undecided += count(server, Outcome::Seen).saturating_sub(decided);
        }
        undecided
    }

    /// Takes it off.
    pub fn end(&self) -> Result<()> {
        pins::take_off(&self.directory).map(drop)
    }
}

/// The kernel's own key of a socket storage: a descriptor.
fn key(socket: &impl AsRawFd) -> Key {
    let mut key = [0; size_of::<Key>()];
    key[..4].copy_from_slice(&socket.as_raw_fd().to_ne_bytes());
    key
}
