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
//!
//! What no table can hold, the agent looks at: the client's program, its uid, its cgroup. Exceptions with such conditions are
//! [`PolicyRoot::conditional`] and come behind all others ([`Walk`]); an [`Answer`] of the agent names the one whose conditions a
//! session meets.

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
/// The same when a login over the loopback device is allowed by [`ServerPolicy::loopback`].
pub const LOOPBACK_RULE: u16 = u16::MAX - 1;
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
    /// 1 when plaintext that comes over the loopback device is allowed.
    pub loopback: u8,
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
    /// The exceptions with conditions that the agent looks at.
    pub conditional: RuleSet,
    /// Those of them that only a client of this host can meet, over the loopback device: by uid or cgroup.
    pub local: RuleSet,
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

/// Most exceptions that are in the tables, match and do not hold, before one that holds. They have not begun yet, or have ended: the
/// agent takes an exception out of the tables when it ends, so these matter only where no agent has run since.
pub const MAX_ENDED: usize = 64;

/// Most rounds of a [`Walk`] before the login counts as not excepted: of one that goes on to exceptions with conditions, and of one
/// that does not.
pub const WALK_ROUNDS: usize = 2 * RULE_WORDS + MAX_ENDED;
/// See [`WALK_ROUNDS`].
pub const WALK_ROUNDS_PLAIN: usize = RULE_WORDS + MAX_ENDED;

/// What the agent says of the conditions that a session meets: value of the map `ANSWERS`, by the session's cookie.
///
/// It is one word, which is read at once, and says itself whose it is: the kernel may give a place in that map to another session
/// while a program reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer(pub u64);

impl Answer {
    /// That the session with `cookie` meets the conditions of exception `rule`, or with [`NO_RULE`] of none, under the policy of this
    /// version.
    #[must_use]
    pub const fn new(cookie: u64, policy_version: u32, rule: u16) -> Self {
        Self(Self::about(cookie, policy_version) | rule as u64)
    }

    /// What it says of that session under that policy: the exception, or [`NO_RULE`]; `None` if it is about something else.
    #[must_use]
    #[inline(always)]
    pub const fn rule(self, cookie: u64, policy_version: u32) -> Option<u16> {
        if self.0 & !0xffff == Self::about(cookie, policy_version) {
            Some(self.0 as u16)
        } else {
            None
        }
    }

    /// Cookies are counted up, as are versions: two that are alike in these bits are not there at one time.
    #[inline(always)]
    const fn about(cookie: u64, policy_version: u32) -> u64 {
        cookie << 32 | (policy_version as u64 & 0xffff) << 16
    }
}

/// The sets that a session is held against.
#[derive(Clone, Copy, Debug)]
pub struct Sets<'s> {
    /// The exceptions for its server.
    pub server: &'s RuleSet,
    /// Those for its client's address.
    pub source: &'s RuleSet,
    /// Those for its user.
    pub user: &'s RuleSet,
    /// [`PolicyRoot::conditional`].
    pub conditional: &'s RuleSet,
    /// [`PolicyRoot::local`].
    pub local: &'s RuleSet,
}

impl Sets<'_> {
    /// Which exceptions of `word` are in the sets of all fields, have conditions, and may be met by a client that is local or not.
    #[must_use]
    #[inline(always)]
    pub fn may_be_met(&self, word: usize, is_local: bool) -> u64 {
        let (Some(server), Some(source), Some(user), Some(conditional), Some(local)) = (
            self.server.0.get(word),
            self.source.0.get(word),
            self.user.0.get(word),
            self.conditional.0.get(word),
            self.local.0.get(word),
        ) else {
            return 0;
        };
        let all = server & source & user & conditional;
        if is_local { all } else { all & !local }
    }
}

/// A walk over the exceptions that are in the sets of all fields: first those without conditions, lowest first, then the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Walk {
    /// What is left of the word before `index`.
    word: u64,
    /// Index of the next word; from [`RULE_WORDS`] on, of those with conditions.
    index: u32,
    /// Which of [`PolicyRoot::local`] are left out: none, or with all bits set all. No branch, which the verifier would follow apart.
    without: u32,
}

/// What one round of a [`Walk`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// An exception, by index: one with conditions if [`Walk::is_at_conditions`] says so.
    Rule(u32),
    /// Nothing yet.
    Nothing,
    /// There are no more.
    End,
}

impl Walk {
    /// The beginning of a walk for a client that is local or not.
    #[must_use]
    #[inline(always)]
    pub const fn new(is_local: bool) -> Self {
        Self {
            word: 0,
            index: 0,
            without: if is_local { 0 } else { u32::MAX },
        }
    }

    /// Whether it has come to the exceptions with conditions.
    #[must_use]
    #[inline(always)]
    pub const fn is_at_conditions(&self) -> bool {
        self.index > RULE_WORDS as u32
    }

    /// Whether it is one for a local client.
    #[must_use]
    #[inline(always)]
    pub const fn is_local(&self) -> bool {
        self.without == 0
    }

    /// One round: a word or a bit. Only with `CONDITIONS` it goes on to the exceptions that have some.
    #[inline(always)]
    pub fn round<const CONDITIONS: bool>(&mut self, sets: &Sets<'_>) -> Round {
        const WORDS: u32 = RULE_WORDS as u32;
        if self.word == 0 {
            if self.index >= if CONDITIONS { 2 * WORDS } else { WORDS } {
                return Round::End;
            }
            let index = self.index as usize & (RULE_WORDS - 1);
            let (Some(server), Some(source), Some(user), Some(conditional), Some(local)) = (
                sets.server.0.get(index),
                sets.source.0.get(index),
                sets.user.0.get(index),
                sets.conditional.0.get(index),
                sets.local.0.get(index),
            ) else {
                return Round::End;
            };
            let wanted = if !CONDITIONS || self.index < WORDS {
                !conditional
            } else {
                let without = self.without.cast_signed() as i64;
                conditional & !(local & without.cast_unsigned())
            };
            self.word = server & source & user & wanted;
            self.index += 1;
            return Round::Nothing;
        }
        let word = self.index.wrapping_sub(1);
        let rule = (word & (WORDS - 1)) * 64 + self.word.trailing_zeros();
        self.word &= self.word - 1;
        Round::Rule(rule)
    }
}

/// What policy says of a plaintext login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// This exception allows it.
    Rule(u16),
    /// An exception may, whose conditions the agent looks at.
    Depends,
    /// Nothing does.
    Nothing,
}

/// What policy says of a login that is held against `sets`: the lowest exception without conditions that holds now, by `holds`; else
/// whether one with conditions does.
pub fn first_match(sets: &Sets<'_>, is_local: bool, mut holds: impl FnMut(u32) -> bool) -> Found {
    let mut walk = Walk::new(is_local);
    for _ in 0..WALK_ROUNDS {
        match walk.round::<true>(sets) {
            Round::Rule(rule) if holds(rule) => {
                return if walk.is_at_conditions() {
                    Found::Depends
                } else {
                    u16::try_from(rule).map_or(Found::Nothing, Found::Rule)
                };
            }
            Round::Rule(_) | Round::Nothing => {}
            Round::End => return Found::Nothing,
        }
    }
    Found::Nothing
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

    /// Of exceptions without conditions.
    fn plain<'s>(server: &'s RuleSet, source: &'s RuleSet, user: &'s RuleSet) -> Sets<'s> {
        Sets {
            server,
            source,
            user,
            conditional: &RuleSet::EMPTY,
            local: &RuleSet::EMPTY,
        }
    }

    #[test]
    fn the_lowest_common_exception_wins() {
        let all = set(&[3, 64, 700, 1023]);
        let found =
            |source: &[usize]| first_match(&plain(&all, &set(source), &all), true, |_| true);
        assert_eq!(found(&[64, 700]), Found::Rule(64));
        assert_eq!(found(&[1023]), Found::Rule(1023));
    }

    #[test]
    fn an_ended_exception_does_not_hide_a_later_one() {
        let all = set(&[3, 4, 700]);
        let sets = plain(&all, &all, &all);
        assert_eq!(
            first_match(&sets, true, |rule| rule == 700),
            Found::Rule(700)
        );
        assert_eq!(first_match(&sets, true, |_| false), Found::Nothing);
    }

    #[test]
    fn fields_that_share_nothing_match_nothing() {
        let (one, two, both) = (set(&[1]), set(&[2]), set(&[1, 2]));
        let sets = plain(&one, &two, &both);
        assert_eq!(first_match(&sets, true, |_| true), Found::Nothing);
    }

    #[test]
    fn exceptions_without_conditions_come_first_and_the_others_are_asked_for() {
        let all = set(&[3, 64, 65, 700]);
        let (conditional, local) = (set(&[3, 64, 65]), set(&[64]));
        let sets = Sets {
            conditional: &conditional,
            local: &local,
            ..plain(&all, &all, &all)
        };
        let found =
            |is_local, rules: &[u32]| first_match(&sets, is_local, |it| rules.contains(&it));
        assert_eq!(found(true, &[3, 64, 65, 700]), Found::Rule(700));
        assert_eq!(found(false, &[3]), Found::Depends);
        assert_eq!(found(true, &[64]), Found::Depends);
        assert_eq!(found(false, &[64]), Found::Nothing);
        assert_eq!(sets.may_be_met(0, false), 1 << 3);
        assert_eq!(sets.may_be_met(1, true), 0b11);
        assert_eq!(sets.may_be_met(1, false), 0b10);
        assert_eq!(sets.may_be_met(700 / 64, true), 0);
        assert_eq!(sets.may_be_met(RULE_WORDS, true), 0);
    }

    #[test]
    fn an_answer_is_about_one_session_and_one_policy() {
        let answer = Answer::new(0x1_0000_0005, 0x2_0007, 1023);
        assert_eq!(answer.rule(0x1_0000_0005, 0x2_0007), Some(1023));
        assert_eq!(answer.rule(0x1_0000_0006, 0x2_0007), None);
        assert_eq!(answer.rule(0x1_0000_0005, 0x2_0008), None);
        assert_eq!(Answer::new(5, 7, NO_RULE).rule(5, 7), Some(NO_RULE));
        assert_eq!(Answer(0).rule(5, 7), None);
    }

    #[test]
    fn conditions_of_any_number_of_local_exceptions_cost_a_remote_client_no_round() {
        let mut all = RuleSet::EMPTY;
        (0..MAX_RULES).for_each(|rule| all.insert(rule));
        let mut local = all;
        local.0[RULE_WORDS - 1] &= !(1 << 63);
        let sets = Sets {
            conditional: &all,
            local: &local,
            ..plain(&all, &all, &all)
        };
        assert_eq!(first_match(&sets, false, |_| true), Found::Depends);
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
