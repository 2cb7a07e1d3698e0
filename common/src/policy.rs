//! Exceptions as bit vectors: which exception, if any, allows a plaintext login.
//!
//! Lakshman and Stiliadis (SIGCOMM 1998): each field of a session is looked up once and gives the set
//! of exceptions that it satisfies; the intersection is the answer. Bit `i` of a [`RuleSet`] is
//! exception `i`. The cost does not depend on how many exceptions or networks there are.
//!
//! | field | table | when the field is not in it |
//! |---|---|---|
//! | server | [`ServerPolicy::exceptions`] | - |
//! | source address | longest prefix match; each prefix holds the union of the prefixes that contain it | the empty set |
//! | user | hash of [`UserKey`]; each user holds the exceptions that name it and those for any user | [`PolicyRoot::any_user`] |
//! | time | [`RuleTimes`] of the exceptions left, lowest bit first | - |

use crate::mysql::USER_MAX;
use crate::verdict::Mode;

/// Most exceptions in a policy.
pub const MAX_RULES: usize = 1024;
/// Words of a [`RuleSet`].
pub const RULE_WORDS: usize = MAX_RULES / 64;
/// Most servers that have settings of their own; index 0 holds the settings of all others.
pub const MAX_SERVERS: usize = 64;
/// [`crate::event::Event::rule`] when no exception matched.
pub const NO_RULE: u16 = u16::MAX;
/// [`RuleTimes::expires_ns`] of an exception that does not end, [`ServerPolicy::mode_until_ns`] of a mode that does not.
pub const NEVER: u64 = u64::MAX;

/// A set of exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RuleSet(pub [u64; RULE_WORDS]);

impl RuleSet {
    /// No exception.
    pub const EMPTY: Self = Self([0; RULE_WORDS]);

    /// Adds exception `rule`; one that is out of range is not added.
    pub fn insert(&mut self, rule: usize) {
        if let Some(word) = self.0.get_mut(rule / 64) {
            *word |= 1 << (rule % 64);
        }
    }

    /// Adds all of `other`.
    pub fn union(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }

    /// Whether exception `rule` is in the set.
    #[must_use]
    pub fn contains(&self, rule: usize) -> bool {
        self.0
            .get(rule / 64)
            .is_some_and(|word| word & (1 << (rule % 64)) != 0)
    }
}

/// A user name as a map key, padded with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct UserKey(pub [u8; USER_MAX]);

impl UserKey {
    /// The key of `name`, or `None` when it is longer than [`USER_MAX`] or holds a NUL.
    #[must_use]
    pub fn new(name: &[u8]) -> Option<Self> {
        let mut key = [0; USER_MAX];
        key.get_mut(..name.len())?.copy_from_slice(name);
        (!name.contains(&0)).then_some(Self(key))
    }
}

/// Most networks in a policy's table.
pub const MAX_NETWORK_ENTRIES: usize = 131_072;
/// Most users in a policy's table.
pub const MAX_USER_ENTRIES: usize = 16_384;
/// Most refused cipher suites in a policy's table: IANA has some 340.
pub const MAX_CIPHER_ENTRIES: usize = 1024;
const _: () = assert!(MAX_SERVERS == 64, "a set of servers is a u64");
/// Bits of [`SlotAddress`] before the address.
pub const SLOT_BITS: u32 = 64;

/// Key of the network table: the slot, all of whose bits count, and an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SlotAddress {
    /// The slot, and which table; eight bytes, so that values behind the key are aligned.
    pub slot: [u8; 8],
    /// IPv6 address, or IPv4-mapped.
    pub address: [u8; 16],
}

impl SlotAddress {
    /// The key of `address` in `slot`.
    #[must_use]
    #[inline(always)]
    pub const fn new(slot: u32, address: [u8; 16]) -> Self {
        Self {
            slot: [slot as u8, 0, 0, 0, 0, 0, 0, 0],
            address,
        }
    }

    /// The key of `address` in the table of trusted proxies of `slot`: a set that is not empty trusts it.
    #[must_use]
    #[inline(always)]
    pub const fn trusted(slot: u32, address: [u8; 16]) -> Self {
        Self {
            slot: [slot as u8, 1, 0, 0, 0, 0, 0, 0],
            address,
        }
    }
}

/// Key of the user table: the slot and a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SlotUser {
    /// The slot.
    pub slot: u64,
    /// The user.
    pub user: UserKey,
}

/// Settings of one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ServerPolicy {
    /// The exceptions that apply to this server.
    pub exceptions: RuleSet,
    /// First instant at which `mode_then` is in force instead of `mode`, by `CLOCK_BOOTTIME` in nanoseconds; [`NEVER`] if
    /// `mode` does not end.
    pub mode_until_ns: u64,
    /// A [`crate::verdict::Mode`].
    pub mode: u8,
    /// The mode after `mode_until_ns`.
    pub mode_then: u8,
    /// 1 when sessions older than the gate are refused if they are in the clear.
    pub refuses_older: u8,
    #[doc(hidden)]
    pub _pad: u8,
    /// The lowest TLS version that passes (`ProtocolVersion`).
    pub floor: u16,
    /// A higher floor that is only reported; 0 for none.
    pub observed_floor: u16,
}

impl ServerPolicy {
    /// The mode in force. `now` is `CLOCK_BOOTTIME` in nanoseconds, and asked for only where it matters.
    #[must_use]
    #[inline(always)]
    pub fn mode(&self, now: impl FnOnce() -> u64) -> Mode {
        if self.mode_until_ns != NEVER && now() >= self.mode_until_ns {
            Mode::from_u8(self.mode_then)
        } else {
            Mode::from_u8(self.mode)
        }
    }
}

/// Key of the table of refused cipher suites: the slot above the suite's IANA number. The value is a set of servers,
/// bit by index.
#[must_use]
#[inline(always)]
pub const fn slot_cipher(slot: u32, cipher: u16) -> u32 {
    slot << 16 | cipher as u32
}

/// Key of the table of ports: the slot above the port. The value is the index of the server that names it.
#[must_use]
#[inline(always)]
pub const fn slot_port(slot: u32, port: u16) -> u32 {
    slot << 16 | port as u32
}

/// What a policy holds once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct PolicyRoot {
    /// The exceptions that do not name users.
    pub any_user: RuleSet,
    /// Version of the policy, counted up by the agent; stands in each record.
    pub version: u32,
    /// [`crate::ABI_VERSION`].
    pub abi: u16,
    /// Whether any exception names users: if so, a login whose user name cannot be read is held.
    pub names_users: u8,
    #[doc(hidden)]
    pub _pad: u8,
    /// The server of ports that no server names.
    pub server: u16,
    #[doc(hidden)]
    pub _pad2: [u16; 3],
}

/// When an exception holds, by `CLOCK_BOOTTIME` in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RuleTimes {
    /// First instant at which it holds; 0 if it has no beginning.
    pub begins_ns: u64,
    /// First instant at which the exception no longer holds; [`NEVER`] if it does not end.
    pub expires_ns: u64,
}

impl RuleTimes {
    /// Whether the exception holds at `now`.
    #[must_use]
    #[inline(always)]
    pub const fn holds(&self, now: u64) -> bool {
        now >= self.begins_ns && (self.expires_ns == NEVER || now < self.expires_ns)
    }
}

/// Most exceptions that have ended and are still in the tables before one that holds. The agent takes an
/// exception out of the tables when it ends; this bound matters only where no agent has run since.
pub const MAX_ENDED: usize = 64;

/// Most rounds of a [`Walk`] before the login counts as not excepted.
pub const WALK_ROUNDS: usize = RULE_WORDS + MAX_ENDED;

/// A walk over the exceptions that are in all three sets, lowest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Walk {
    /// What is left of the word before `index`.
    word: u64,
    /// Index of the next word.
    index: u64,
}

/// What one round of a [`Walk`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// An exception, by index.
    Rule(u32),
    /// Nothing yet.
    Nothing,
    /// There are no more.
    End,
}

impl Walk {
    /// One round: a word or a bit.
    #[inline(always)]
    pub fn round(&mut self, server: &RuleSet, source: &RuleSet, user: &RuleSet) -> Round {
        if self.word == 0 {
            let index = self.index as usize;
            let (Some(server), Some(source), Some(user)) =
                (server.0.get(index), source.0.get(index), user.0.get(index))
            else {
                return Round::End;
            };
            self.word = server & source & user;
            self.index += 1;
            return Round::Nothing;
        }
        let rule = (self.index as u32).wrapping_sub(1) * 64 + self.word.trailing_zeros();
        self.word &= self.word - 1;
        Round::Rule(rule)
    }
}

/// The lowest exception that is in all three sets and holds now, by `holds`.
pub fn first_match(
    server: &RuleSet,
    source: &RuleSet,
    user: &RuleSet,
    mut holds: impl FnMut(u32) -> bool,
) -> Option<u16> {
    let mut walk = Walk::default();
    for _ in 0..WALK_ROUNDS {
        match walk.round(server, source, user) {
            Round::Rule(rule) if holds(rule) => return u16::try_from(rule).ok(),
            Round::Rule(_) | Round::Nothing => {}
            Round::End => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(rules: &[usize]) -> RuleSet {
        let mut set = RuleSet::EMPTY;
        for &rule in rules {
            set.insert(rule);
        }
        set
    }

    #[test]
    fn the_lowest_common_exception_wins() {
        let all = set(&[3, 64, 700, 1023]);
        assert_eq!(
            first_match(&all, &set(&[64, 700]), &all, |_| true),
            Some(64)
        );
        assert_eq!(first_match(&all, &set(&[1023]), &all, |_| true), Some(1023));
    }

    #[test]
    fn an_ended_exception_does_not_hide_a_later_one() {
        let all = set(&[3, 4, 700]);
        assert_eq!(first_match(&all, &all, &all, |rule| rule == 700), Some(700));
        assert_eq!(first_match(&all, &all, &all, |_| false), None);
    }

    #[test]
    fn fields_that_share_nothing_match_nothing() {
        assert_eq!(
            first_match(&set(&[1]), &set(&[2]), &set(&[1, 2]), |_| true),
            None
        );
    }

    #[test]
    fn an_exception_holds_from_its_beginning_to_its_end() {
        let holds = |begins_ns, expires_ns, now| {
            RuleTimes {
                begins_ns,
                expires_ns,
            }
            .holds(now)
        };
        assert_eq!(
            [9, 10, 19, 20].map(|now| holds(10, 20, now)),
            [false, true, true, false]
        );
        assert!(holds(0, NEVER, 0) && holds(0, NEVER, NEVER));
        assert!(!holds(0, 0, 0));
    }

    #[test]
    fn user_keys_are_padded_and_bounded() {
        assert_eq!(
            UserKey::new(b"etl").map(|key| key.0[..4] == *b"etl\0"),
            Some(true)
        );
        assert_eq!(
            UserKey::new(&[b'a'; USER_MAX]).map(|key| key.0[127]),
            Some(b'a')
        );
        assert_eq!(UserKey::new(&[b'a'; USER_MAX + 1]), None);
        assert_eq!(UserKey::new(b"a\0b"), None);
    }
}
