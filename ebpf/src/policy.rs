//! The policy tables, read in one step.

use core::ptr;

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use musttls_common::policy::{
    MAX_RULES, MAX_SERVERS, PolicyRoot, Round, SLOT_BITS, ServerPolicy, SlotAddress, SlotUser,
    WALK_ROUNDS, Walk, slot_cipher, slot_port,
};
use musttls_common::proxy::Proxied;
use musttls_common::session::SocketRecord;
use musttls_common::verdict::Mode;

use crate::maps::{ACTIVE, CIPHERS, NETWORKS, ROOTS, SERVER_PORTS, SERVERS, TIMES, USERS};
use crate::packet::{load_words, store_words};

/// The policy in force, as it applies to one server.
pub(crate) struct Policy<'a> {
    slot: u32,
    /// The server's index.
    index: u32,
    root: &'a PolicyRoot,
    server: &'a ServerPolicy,
}

impl Policy<'_> {
    /// The policy for `server`. `None` when there is none, which enforces without exceptions; the agent
    /// attaches the gate only after it has written one.
    #[inline(always)]
    pub(crate) fn of(server: u16) -> Option<Self> {
        let slot = *ACTIVE.get(0)? & 1;
        let root = ROOTS.get(slot)?;
        let index = u32::from(server) % MAX_SERVERS as u32;
        let server = SERVERS.get(slot * MAX_SERVERS as u32 + index)?;
        Some(Self {
            slot,
            index,
            root,
            server,
        })
    }

    /// The slot of the tables.
    #[inline(always)]
    pub(crate) const fn slot(&self) -> u32 {
        self.slot
    }

    #[inline(always)]
    pub(crate) fn mode(&self) -> Mode {
        self.server.mode(boottime)
    }

    /// Whether sessions older than the gate are refused if they are in the clear.
    #[inline(always)]
    pub(crate) const fn refuses_older(&self) -> bool {
        self.server.refuses_older != 0
    }

    #[inline(always)]
    pub(crate) const fn version(&self) -> u32 {
        self.root.version
    }

    #[inline(always)]
    pub(crate) const fn names_users(&self) -> bool {
        self.root.names_users != 0
    }

    /// The lowest TLS version that passes.
    #[inline(always)]
    pub(crate) const fn floor(&self) -> u16 {
        self.server.floor
    }

    /// A higher floor that is only reported; 0 for none.
    #[inline(always)]
    pub(crate) const fn observed_floor(&self) -> u16 {
        self.server.observed_floor
    }

    /// Whether the server refuses a cipher suite.
    #[inline(always)]
    pub(crate) fn refuses(&self, cipher: u16) -> bool {
        // SAFETY: the agent does not change the tables of the slot in force.
        let servers = unsafe { CIPHERS.get(slot_cipher(self.slot, cipher)) };
        servers.is_some_and(|servers| servers >> self.index & 1 != 0)
    }

    /// Whether exception `rule` holds for any user.
    #[inline(always)]
    pub(crate) fn is_for_any_user(&self, rule: u16) -> bool {
        let word = usize::from(rule / 64) & (musttls_common::policy::RULE_WORDS - 1);
        self.root
            .any_user
            .0
            .get(word)
            .is_some_and(|bits| bits & (1 << (rule % 64)) != 0)
    }

    /// Whether a PROXY protocol header of `peer` is believed.
    #[inline(always)]
    pub(crate) fn trusts(&self, peer: [u8; 16]) -> bool {
        let address = SlotAddress::trusted(self.slot, peer);
        NETWORKS
            .get(&Key::new(SLOT_BITS + 128, address))
            .is_some_and(|set| set.0[0] != 0)
    }

    /// Whose address exceptions are held against: the client that a trusted proxy has named, or the peer.
    #[inline(always)]
    pub(crate) fn client(&self, record: &SocketRecord) -> [u8; 16] {
        self.client_of(record.endpoints.client_addr, &record.headers.proxied)
    }

    /// The same for a peer without a record.
    #[inline(always)]
    pub(crate) fn client_of(&self, peer: [u8; 16], proxied: &Proxied) -> [u8; 16] {
        if proxied.has_address() && self.trusts(peer) {
            proxied.addr
        } else {
            peer
        }
    }

    /// The exception that allows a plaintext login of `user` (if known) from `client`. `walk` lies in a map.
    #[inline(always)]
    pub(crate) fn exception(
        &self,
        client: [u8; 16],
        user: Option<&SlotUser>,
        walk: &mut Walk,
    ) -> Option<u16> {
        let address = SlotAddress::new(self.slot, client);
        let source = NETWORKS.get(&Key::new(SLOT_BITS + 128, address))?;
        let named = match user {
            // SAFETY: the agent does not change the tables of the slot in force.
            Some(user) => unsafe { USERS.get(user) },
            None => None,
        };
        let user = named.unwrap_or(&self.root.any_user);
        let now = boottime();

        *walk = Walk::default();
        let place = ptr::from_mut(walk);
        let mut round = 0;
        while round < WALK_ROUNDS {
            round += 1;
            // The walk goes back to the map after each round, so that the verifier can treat all rounds
            // alike (as in `packet::advance`).
            let mut walk = load_words(place);
            let found = walk.round(&self.server.exceptions, source, user);
            store_words(place, walk);
            match found {
                Round::Rule(rule) => {
                    let times = TIMES.get(self.slot * MAX_RULES as u32 + rule)?;
                    if times.holds(now) {
                        return Some(rule as u16);
                    }
                }
                Round::Nothing => {}
                Round::End => return None,
            }
        }
        None
    }
}

/// `CLOCK_BOOTTIME` in nanoseconds.
#[inline(always)]
pub(crate) fn boottime() -> u64 {
    // SAFETY: the helper has no requirements.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// The index of the server whose settings hold at `port`.
#[inline(always)]
pub(crate) fn server_of(port: u16) -> u16 {
    let Some(slot) = ACTIVE.get(0) else { return 0 };
    let slot = *slot & 1;
    // SAFETY: the agent does not change the tables of the slot in force.
    if let Some(server) = unsafe { SERVER_PORTS.get(slot_port(slot, port)) } {
        return *server;
    }
    ROOTS.get(slot).map_or(0, |root| root.server)
}

/// The mode for `server`.
#[inline(always)]
pub(crate) fn mode(server: u16) -> Mode {
    match Policy::of(server) {
        Some(policy) => policy.mode(),
        None => Mode::Enforce,
    }
}
