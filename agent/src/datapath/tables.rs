//! Policy tables: built beside those in force, visible in one map write.

use std::io;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use musttls_common::policy::{
    MAX_RULES, MAX_SERVERS, PolicyRoot, RuleSet, RuleTimes, SLOT_BITS, ServerPolicy, SlotAddress,
    SlotUser, slot_cipher, slot_port,
};

use super::take;
use crate::policy::Tables;

/// The gate's policy tables: each has two slots.
pub struct PolicyTables {
    active: Array<MapData, u32>,
    roots: Array<MapData, PolicyRoot>,
    servers: Array<MapData, ServerPolicy>,
    networks: LpmTrie<MapData, SlotAddress, RuleSet>,
    users: HashMap<MapData, SlotUser, RuleSet>,
    times: Array<MapData, RuleTimes>,
    ciphers: HashMap<MapData, u32, u64>,
    ports: HashMap<MapData, u32, u16>,
    /// What each slot holds in the keyed tables. Asking the kernel instead takes it the square of their number
    /// (`trie_get_next_key`).
    filled: [Keys; 2],
}

#[derive(Default)]
struct Keys {
    networks: Vec<Key<SlotAddress>>,
    users: Vec<SlotUser>,
    ciphers: Vec<u32>,
    ports: Vec<u32>,
}

impl PolicyTables {
    pub(super) fn new(gate: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            active: take(gate, "ACTIVE")?,
            roots: take(gate, "ROOTS")?,
            servers: take(gate, "SERVERS")?,
            networks: take(gate, "NETWORKS")?,
            users: take(gate, "USERS")?,
            times: take(gate, "TIMES")?,
            ciphers: take(gate, "CIPHERS")?,
            ports: take(gate, "SERVER_PORTS")?,
            filled: <[Keys; 2]>::default(),
        })
    }

    /// Puts a policy in force, or leaves the former one as it is.
    ///
    /// The slot that is not in force is emptied and filled; one write of ACTIVE then makes it visible. A program
    /// reads ACTIVE once, so it sees one policy or the other, whole.
    pub fn install(&mut self, tables: &Tables) -> Result<()> {
        let slot = (self.active.get(&0, 0).context("read map ACTIVE")? + 1) % 2;
        // A program that began before the last switch may still use this slot.
        wait_for_programs();
        self.empty(slot)?;
        let [first, second] = &mut self.filled;
        let keys = if slot == 0 { first } else { second };

        for (index, server) in (slot * count(MAX_SERVERS)..).zip(&tables.servers) {
            self.servers
                .set(index, server, 0)
                .context("fill the table of servers (map SERVERS)")?;
        }
        let sources = tables
            .networks
            .iter()
            .map(|(prefix, address, rules)| (prefix, SlotAddress::new(slot, *address), rules));
        let trusted = tables
            .trusted
            .iter()
            .map(|(prefix, address, rules)| (prefix, SlotAddress::trusted(slot, *address), rules));
        for (prefix, address, rules) in sources.chain(trusted) {
            let key = Key::new(SLOT_BITS + prefix, address);
            self.networks
                .insert(&key, rules, 0)
                .context("fill the table of networks (map NETWORKS)")?;
            keys.networks.push(key);
        }
        for (user, rules) in &tables.users {
            let key = SlotUser {
                slot: slot.into(),
                user: *user,
            };
            self.users
                .insert(key, rules, 0)
                .context("fill the table of users (map USERS)")?;
            keys.users.push(key);
        }
        for (index, time) in (slot * count(MAX_RULES)..).zip(&tables.times) {
            self.times
                .set(index, time, 0)
                .context("fill the table of end times (map TIMES)")?;
        }
        for &(suite, servers) in &tables.ciphers {
            let key = slot_cipher(slot, suite);
            self.ciphers
                .insert(key, servers, 0)
                .context("fill the table of cipher suites (map CIPHERS)")?;
            keys.ciphers.push(key);
        }
        for &(port, server) in &tables.ports {
            let key = slot_port(slot, port);
            self.ports
                .insert(key, server, 0)
                .context("fill the table of ports (map SERVER_PORTS)")?;
            keys.ports.push(key);
        }
        self.roots
            .set(slot, tables.root, 0)
            .context("fill the policy root (map ROOTS)")?;
        self.active
            .set(0, slot, 0)
            .context("switch to the new policy (map ACTIVE)")
    }

    /// Removes what a former policy has left in the keyed tables of `slot`.
    fn empty(&mut self, slot: u32) -> Result<()> {
        let [first, second] = &mut self.filled;
        let keys = if slot == 0 { first } else { second };
        for key in &keys.networks {
            self.networks
                .remove(key)
                .context("empty the table of networks (map NETWORKS)")?;
        }
        for user in &keys.users {
            self.users
                .remove(user)
                .context("empty the table of users (map USERS)")?;
        }
        for cipher in &keys.ciphers {
            self.ciphers
                .remove(cipher)
                .context("empty the table of cipher suites (map CIPHERS)")?;
        }
        for port in &keys.ports {
            self.ports
                .remove(port)
                .context("empty the table of ports (map SERVER_PORTS)")?;
        }
        *keys = Keys::default();
        Ok(())
    }
}

/// Waits until each program that runs now has ended: they run under RCU, and `MEMBARRIER_CMD_GLOBAL` waits for
/// a grace period (`kernel/sched/membarrier.c`, Linux 4.16; EINVAL with `nohz_full`).
pub(super) fn wait_for_programs() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: the call takes numbers only.
    let error = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if error != 0 {
        tracing::debug!(error = %io::Error::last_os_error(), "membarrier");
        // A program runs for microseconds, and is not interrupted by other tasks.
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
