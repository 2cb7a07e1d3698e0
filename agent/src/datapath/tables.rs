//! Policy tables: built beside those in force, visible in one map write.

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, ArrayOfMaps, HashMap, MapData};
use musttls_common::policy::{PolicyRoot, RuleSet, RuleTimes, ServerPolicy, UserKey};

use super::take;
use crate::policy::Tables;

/// `BPF_F_NO_PREALLOC` (`include/uapi/linux/bpf.h`).
const BPF_F_NO_PREALLOC: u32 = 1;
/// Entries of the inner maps; the kernel takes only maps of the size the gate declares.
const NETWORKS: u32 = 131_072;
const USERS: u32 = 16_384;

type Outer<V> = ArrayOfMaps<MapData, V>;

/// The gate's policy tables.
pub struct PolicyTables {
    active: Array<MapData, u32>,
    roots: Outer<Array<MapData, PolicyRoot>>,
    servers: Outer<Array<MapData, ServerPolicy>>,
    networks: Outer<LpmTrie<MapData, [u8; 16], RuleSet>>,
    users: Outer<HashMap<MapData, UserKey, RuleSet>>,
    times: Outer<Array<MapData, RuleTimes>>,
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
        })
    }

    /// Puts a policy in force, or leaves the former one as it is.
    ///
    /// The slot that is not in force is filled with new maps. The kernel returns from putting a map in its
    /// place only when no program uses the former one (`maybe_wait_bpf_programs`, Linux 4.18, commit
    /// 1ae80cf31938), so a program sees one policy or the other, whole.
    pub fn install(&mut self, tables: &Tables) -> Result<()> {
        let slot = (self.active.get(&0, 0).context("read map ACTIVE")? + 1) % 2;

        let mut roots = Array::create(1, 0).context("make a policy root table")?;
        roots
            .set(0, tables.root, 0)
            .context("fill the policy root")?;
        let mut servers =
            Array::create(count(tables.servers.len()), 0).context("make a server table")?;
        for (index, server) in (0..).zip(&tables.servers) {
            servers
                .set(index, server, 0)
                .context("fill the server table")?;
        }
        let mut networks =
            LpmTrie::create(NETWORKS, BPF_F_NO_PREALLOC).context("make a network table")?;
        for (prefix, address, rules) in &tables.networks {
            networks
                .insert(&Key::new(*prefix, *address), rules, 0)
                .context("fill the network table")?;
        }
        let mut users = HashMap::create(USERS, BPF_F_NO_PREALLOC).context("make a user table")?;
        for (user, rules) in &tables.users {
            users
                .insert(user, rules, 0)
                .context("fill the user table")?;
        }
        let rules = count(musttls_common::policy::MAX_RULES);
        let mut times = Array::create(rules, 0).context("make a table of end times")?;
        for (index, time) in (0..).zip(&tables.times) {
            times
                .set(index, time, 0)
                .context("fill the table of end times")?;
        }

        self.roots
            .set(slot, &roots, 0)
            .context("put the policy root in place")?;
        self.servers
            .set(slot, &servers, 0)
            .context("put the server table in place")?;
        self.networks
            .set(slot, &networks, 0)
            .context("put the network table in place")?;
        self.users
            .set(slot, &users, 0)
            .context("put the user table in place")?;
        self.times
            .set(slot, &times, 0)
            .context("put the table of end times in place")?;
        self.active
            .set(0, slot, 0)
            .context("switch to the new policy (map ACTIVE)")?;
        // Once more, only to wait: a program may have read ACTIVE before the switch and still use the former
        // slot, which the next call replaces table by table.
        self.roots
            .set(slot, &roots, 0)
            .context("wait for the programs that use the former policy")
    }
}

fn count(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
