//! The policy tables, read in one step.

use core::arch::asm;
use core::ptr;

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::programs::SkBuffContext;
use musttls_common::policy::{
    Answer, Found, LOOPBACK_RULE, MAX_RULES, MAX_SERVERS, NO_RULE, PolicyRoot, RULE_WORDS, Round,
    RuleSet, SLOT_BITS, ServerPolicy, Sets, SlotAddress, SlotUser, WALK_ROUNDS, WALK_ROUNDS_PLAIN,
    Walk, slot_cipher, slot_port,
};
use musttls_common::proxy::Proxied;
use musttls_common::session::SocketRecord;
use musttls_common::verdict::Mode;

use crate::maps::{ACTIVE, ANSWERS, CIPHERS, NETWORKS, ROOTS, SERVER_PORTS, SERVERS, TIMES, USERS};
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

    /// Whether exception `rule` holds whatever the login's bytes are: it names neither users nor conditions.
    #[inline(always)]
    pub(crate) fn is_for_any_login(&self, rule: u16) -> bool {
        rule == LOOPBACK_RULE
            || has(&self.root.any_user, rule) && !has(&self.root.conditional, rule)
    }

    /// Whether a PROXY protocol header of `peer` is believed.
    #[inline(always)]
    pub(crate) fn trusts(&self, peer: [u8; 16]) -> bool {
        let address = SlotAddress::trusted(self.slot, peer);
        NETWORKS
            .get(&Key::new(SLOT_BITS + 128, address))
            .is_some_and(|set| set.0[0] != 0)
    }

    /// Whom exceptions are held against: the client that a trusted proxy has named, or the peer.
    #[inline(always)]
    pub(crate) fn client(&self, ctx: &SkBuffContext, record: &SocketRecord) -> Client {
        self.client_of(ctx, record.endpoints.client_addr, &record.headers.proxied)
    }

    /// The same for a peer without a record.
    #[inline(always)]
    pub(crate) fn client_of(
        &self,
        ctx: &SkBuffContext,
        peer: [u8; 16],
        proxied: &Proxied,
    ) -> Client {
        if proxied.has_address() && self.trusts(peer) {
            Client {
                address: proxied.addr,
                is_local: false,
            }
        } else {
            Client::direct(ctx, peer)
        }
    }

    /// The exception that allows plaintext of `client`, whose user is not known. Those with conditions do not.
    #[inline(always)]
    pub(crate) fn exception(&self, client: &Client, walk: &mut Walk) -> Option<u16> {
        let found = self.found::<false>(client, None, walk, |_, _| Found::Nothing);
        match found {
            Found::Rule(rule) => Some(rule),
            Found::Depends | Found::Nothing => None,
        }
    }

    /// What policy says of a plaintext login of `user` (if known) from `client`. `walk` lies in a map. With `CONDITIONS`, `depends`
    /// is asked where only exceptions that have some may allow it.
    #[inline(always)]
    pub(crate) fn found<const CONDITIONS: bool>(
        &self,
        client: &Client,
        user: Option<&SlotUser>,
        walk: &mut Walk,
        depends: impl FnOnce(&Sets<'_>, &Walk) -> Found,
    ) -> Found {
        let place = ptr::from_mut(walk);
        store_words(place, Walk::new(client.is_local));
        let found = self.listed::<CONDITIONS>(client.address, user, place, depends);
        // Back from the map, where the verifier does not know it: it would follow either kind of client apart.
        let is_local = load_words(place).is_local();
        if !matches!(found, Found::Rule(_)) && self.server.loopback != 0 && is_local {
            return Found::Rule(LOOPBACK_RULE);
        }
        found
    }

    /// The same without what the server allows by itself.
    #[inline(always)]
    fn listed<const CONDITIONS: bool>(
        &self,
        client: [u8; 16],
        user: Option<&SlotUser>,
        place: *mut Walk,
        depends: impl FnOnce(&Sets<'_>, &Walk) -> Found,
    ) -> Found {
        let address = SlotAddress::new(self.slot, client);
        let Some(source) = NETWORKS.get(&Key::new(SLOT_BITS + 128, address)) else {
            return Found::Nothing;
        };
        let named = match user {
            // SAFETY: the agent does not change the tables of the slot in force.
            Some(user) => unsafe { USERS.get(user) },
            None => None,
        };
        let sets = Sets {
            server: &self.server.exceptions,
            source,
            user: named.unwrap_or(&self.root.any_user),
            conditional: &self.root.conditional,
            local: &self.root.local,
        };
        let now = boottime();

        let rounds = if CONDITIONS {
            WALK_ROUNDS
        } else {
            WALK_ROUNDS_PLAIN
        };
        let mut round = 0;
        while round < rounds {
            round += 1;
            // The walk goes back to the map after each round, so that the verifier can treat all rounds
            // alike (as in `packet::advance`).
            let mut walk = load_words(place);
            let found = walk.round::<CONDITIONS>(&sets);
            store_words(place, walk);
            match found {
                Round::Rule(rule) => {
                    if !self.holds(rule, now) {
                        continue;
                    }
                    if CONDITIONS {
                        let walk = load_words(place);
                        if walk.is_at_conditions() {
                            return depends(&sets, &walk);
                        }
                    }
                    return Found::Rule(rule as u16);
                }
                Round::Nothing => {}
                Round::End => return Found::Nothing,
            }
        }
        Found::Nothing
    }

    /// Whether exception `rule` has begun and not ended.
    #[inline(always)]
    fn holds(&self, rule: u32, now: u64) -> bool {
        TIMES
            .get(self.slot * MAX_RULES as u32 + rule)
            .is_some_and(|times| times.holds(now))
    }

    /// What the agent has answered about the session with `cookie`, if it holds for this policy and for the login as it stands.
    #[inline(always)]
    pub(crate) fn answered(&self, sets: &Sets<'_>, walk: &Walk, cookie: u64) -> Found {
        let Some(place) = ANSWERS.get_ptr(cookie) else {
            return Found::Depends;
        };
        // SAFETY: a valid place in the map, of eight aligned bytes; read once, because it may become another session's.
        let answer = Answer(unsafe { place.read_volatile() });
        let Some(rule) = answer.rule(cookie, self.version()) else {
            return Found::Depends;
        };
        if rule == NO_RULE {
            return Found::Nothing;
        }
        let is_met = sets.may_be_met(word_of(rule), walk.is_local()) >> (rule % 64) & 1 != 0;
        if is_met && self.holds(u32::from(rule), boottime()) {
            Found::Rule(rule)
        } else {
            Found::Depends
        }
    }
}

/// The device `lo` of each network namespace (`LOOPBACK_IFINDEX` in `include/net/net_namespace.h`).
const LOOPBACK_IFINDEX: u32 = 1;

/// Whom exceptions are held against.
pub(crate) struct Client {
    pub(crate) address: [u8; 16],
    /// Whether it is a process of this host and of the server's network namespace: the packet passes over the loopback device.
    pub(crate) is_local: bool,
}

impl Client {
    /// The peer of a packet.
    #[inline(always)]
    pub(crate) fn direct(ctx: &SkBuffContext, address: [u8; 16]) -> Self {
        // SAFETY: `skb` is the context the kernel passed; the verifier checks the read.
        let device = unsafe { (*ctx.skb.skb).ifindex };
        Self {
            address,
            is_local: device == LOOPBACK_IFINDEX,
        }
    }
}

const _: () = assert!(RULE_WORDS == 16, "the mask in `word_of`");

/// The word of a set that exception `rule` is in.
#[inline(always)]
fn word_of(rule: u16) -> usize {
    let mut word = u64::from(rule / 64);
    // The compiler may know that the mask changes nothing, and leave it out; the verifier does not know.
    // SAFETY: one instruction on a register.
    unsafe { asm!("{word} &= 15", word = inout(reg) word) };
    word as usize
}

/// Whether exception `rule` is in a set.
#[inline(always)]
fn has(set: &RuleSet, rule: u16) -> bool {
    set.0
        .get(word_of(rule))
        .is_some_and(|bits| bits >> (rule % 64) & 1 != 0)
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
