//! The record that hangs on a socket (`BPF_MAP_TYPE_SK_STORAGE`).
//!
//! A listener carries one with [`Phase::Listener`]. The map has `BPF_F_CLONE`, so the kernel gives each
//! accepted socket a copy before it can receive anything, or does not accept it at all
//! (`bpf_sk_storage_clone` in `sk_clone_lock`, Linux 5.4, commit 8f51dfc73bf1): a session of a protected
//! listener without a record cannot exist.

use crate::floor::ClientHelloReader;
use crate::mysql::GreetingReader;
use crate::mysqlx::{ClientFrames, ServerFrames};
use crate::older::Older;
use crate::policy::Walk;
use crate::proxy::Headers;
use crate::tls::ServerHelloReader;
use crate::verdict::Reason;

/// What is known of the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ListenerClass {
    /// A new listener whose process the agent has not named yet. Its sessions are judged as soon as
    /// the server's first bytes are a greeting of either protocol.
    Pending = 0,
    /// The classic protocol of a `MySQL` server.
    Classic = 1,
    /// Neither the classic protocol nor X Protocol.
    Other = 2,
    /// X Protocol of a `MySQL` server.
    X = 3,
}

impl ListenerClass {
    /// Reads a class from a map; an unknown number is taken as a classic listener, the strictest.
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            0 => Self::Pending,
            2 => Self::Other,
            3 => Self::X,
            _ => Self::Classic,
        }
    }
}

/// What the agent knows of a listener: value of the `LISTENERS` and `PLACES` maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Listener {
    /// Index in the table of servers.
    pub server: u16,
    /// A [`ListenerClass`].
    pub class: u8,
    /// 1 when the gate has learned it from a greeting; 0 when the agent has said it.
    pub learned: u8,
    /// Of a place in any network namespace: 0 when it is covered in those only that have an entry of their own.
    pub here: u8,
    #[doc(hidden)]
    pub _pad: [u8; 3],
}

/// Where a listener listens: key of the `PLACES` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Place {
    /// Cookie of its network namespace (`SO_NETNS_COOKIE`), or [`Self::ANY_NAMESPACE`].
    pub netns: u64,
    /// The address that it is bound to, IPv4 as IPv4-mapped.
    pub addr: [u8; 16],
    /// Its port, host byte order.
    pub port: u32,
    #[doc(hidden)]
    pub _pad: u32,
}

impl Place {
    /// In place of a cookie: whatever the namespace, or one that is not known. The kernel gives none this number.
    pub const ANY_NAMESPACE: u64 = 0;
}

impl Listener {
    /// What the agent says of a listener.
    #[must_use]
    #[inline(always)]
    pub const fn named(server: u16, class: ListenerClass) -> Self {
        Self {
            server,
            class: class as u8,
            learned: 0,
            here: 1,
            _pad: [0; 3],
        }
    }

    /// What a greeting has told of one.
    #[must_use]
    #[inline(always)]
    pub const fn learned(server: u16, class: ListenerClass) -> Self {
        Self {
            learned: 1,
            ..Self::named(server, class)
        }
    }
}

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// The socket listens; or it is a session that `sock_ops` has not seen, which fails closed.
    Listener = 0,
    /// No verdict yet.
    Plain = 1,
    /// A claim of TLS has passed; the server has not answered it yet.
    Claimed = 2,
    /// An exception by user name allows it; the server has not answered yet, so each copy of the
    /// login is judged again.
    ExceptedUser = 3,
    /// Denied in enforce mode: nothing passes any more.
    Denied = 4,
    /// The server's own bytes were a TLS flight.
    Secure = 5,
    /// An exception allows plaintext.
    Excepted = 6,
    /// Plaintext, reported in observe mode.
    Observed = 7,
    /// Not a `MySQL` session, or one that the server refused with an ERR packet instead of a greeting; one older than the
    /// gate of which nothing more is to be learned.
    Foreign = 8,
    /// Older than the gate: passes, and is listened to.
    Older = 9,
}

impl Phase {
    /// From here on a session is decided and passes, unless [`SocketRecord::apart`] says otherwise.
    pub const DECIDED: u8 = Self::Secure as u8;

    /// Reads a phase from a record; an unknown number is taken as [`Phase::Listener`], which fails
    /// closed on a connected socket.
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            1 => Self::Plain,
            2 => Self::Claimed,
            3 => Self::ExceptedUser,
            4 => Self::Denied,
            5 => Self::Secure,
            6 => Self::Excepted,
            7 => Self::Observed,
            8 => Self::Foreign,
            9 => Self::Older,
            _ => Self::Listener,
        }
    }
}

/// Who talks to whom, as it stands in records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoints {
    /// Client address, IPv4 as IPv4-mapped.
    pub client_addr: [u8; 16],
    /// Server address, IPv4 as IPv4-mapped.
    pub server_addr: [u8; 16],
    /// Client port, host byte order.
    pub client_port: u16,
    /// Server port, host byte order.
    pub server_port: u16,
    /// Index in the table of servers.
    pub server: u16,
    #[doc(hidden)]
    pub _pad: u16,
}

/// The record. Fields are written by one direction each, but for those of the verdict (`phase`, `apart`, `reason`,
/// `rule`, `floor`, `policy_version`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SocketRecord {
    /// Socket cookie (`SO_COOKIE`) of the session. Of a listener: the cookie of its network namespace; 0 if it is not known, or does
    /// not matter.
    pub cookie: u64,
    /// Socket cookie of the listener.
    pub listener_cookie: u64,
    /// Who talks to whom; of a listener, where it listens.
    pub endpoints: Endpoints,
    /// The walk over exceptions on egress, which has no scratch record.
    pub walk: Walk,
    /// First sequence number of the client's stream: ISN + 1. Of a listener without a name: when the agent was asked for it last, in
    /// seconds after boot, and odd; 0 for never.
    pub client_base: u32,
    /// First sequence number of the server's stream: ISN + 1.
    pub server_base: u32,
    /// The greeting, read on egress.
    pub greeting: GreetingReader,
    /// The server's first TLS flight, read on egress.
    pub hello: ServerHelloReader,
    /// The client's first TLS flight, read on ingress where a floor asks for it.
    pub client_hello: ClientHelloReader,
    /// X Protocol: the client's frames before TLS, read on ingress.
    pub client_frames: ClientFrames,
    /// X Protocol: the server's frames before TLS, read on egress.
    pub server_frames: ServerFrames,
    /// PROXY protocol headers before the login, read on ingress.
    pub headers: Headers,
    /// Offset behind the headers in the client's stream, behind the user name that an exception allowed.
    pub login_head_end: u32,
    /// Version of the policy that judged.
    pub policy_version: u32,
    /// How many CPUs judge a frame of X Protocol, a PROXY protocol header or the `ClientHello` of the client at this
    /// moment.
    pub judging: u32,
    /// Index of the exception that allowed, [`crate::policy::LOOPBACK_RULE`] or [`crate::policy::NO_RULE`].
    pub rule: u16,
    /// How many segments were held.
    pub holds: u16,
    /// The packet header of the login, byte by byte as it passed or was judged.
    pub login_header: [u8; 4],
    /// A [`Phase`].
    pub phase: u8,
    /// A [`ListenerClass`].
    pub class: u8,
    /// A [`crate::verdict::Reason`], 0 for none.
    pub reason: u8,
    /// 1 when the client has sent payload.
    pub client_spoke: u8,
    /// 1 when the session has been counted as seen.
    pub counted: u8,
    /// High byte of the client's capability flags as judged.
    pub flags_high: u8,
    /// [`crate::ABI_VERSION`].
    pub abi: u16,
    /// Not 0 when the session goes no usual way, whatever its phase: [`Self::DENIED`] once it is denied, for good, because
    /// two CPUs may judge it at once, and the other's phase must not undo the denial; [`Self::OLDER`].
    pub apart: u8,
    /// 1 when a pending listener's session began with what looks like a TLS record: no more than one may pass
    /// before the server has answered.
    pub tls_first: u8,
    /// 1 when client bytes have passed while the listener was pending: nobody has judged them.
    pub unjudged: u8,
    /// 1 when `class` was learned from a greeting, so that the agent's word still counts.
    pub learned: u8,
    /// 1 when the session speaks MPTCP: a segment's place in the stream that the server reads is then not its
    /// sequence number's (RFC 8684 section 3.3).
    pub multipath: u8,
    #[doc(hidden)]
    pub _pad: u8,
    /// The TLS floor that refused, or that would; 0 for none.
    pub floor: u16,
    /// Offset in the client's stream of the first byte behind a login's flags that has passed without a judgement of
    /// its own; 0 for none. It may be in the server's queue.
    pub ahead_from: u32,
    /// Of a session older than the gate: what is known of it.
    pub older: Older,
}

const _: () = assert!(size_of::<SocketRecord>() == 232 && align_of::<SocketRecord>() == 8);

impl SocketRecord {
    /// [`Self::apart`] of a denied session.
    pub const DENIED: u8 = 1;
    /// [`Self::apart`] of a session older than the gate, as long as its client's bytes are read.
    pub const OLDER: u8 = 2;

    /// Where the session stands. A denial is for good, whatever another CPU has written to `phase`.
    #[must_use]
    #[inline(always)]
    pub const fn phase(&self) -> Phase {
        match self.apart {
            0 => Phase::from_u8(self.phase),
            Self::OLDER => Phase::Older,
            _ => Phase::Denied,
        }
    }

    /// Where the listener listens whose record it is, or was until now. That of one which the agent has told by its descriptor is at no
    /// place.
    #[must_use]
    #[inline(always)]
    pub const fn place(&self) -> Place {
        Place {
            netns: self.cookie,
            addr: self.endpoints.server_addr,
            port: self.endpoints.server_port as u32,
            _pad: 0,
        }
    }

    /// Whether the agent has named the listener by its cookie.
    #[must_use]
    #[inline(always)]
    pub const fn is_named(&self) -> bool {
        self.class != ListenerClass::Pending as u8 && self.learned == 0
    }

    /// Where in the stream behind the headers the first byte has passed without a judgement of its own.
    #[must_use]
    #[inline(always)]
    pub const fn ahead_from(&self) -> Option<i32> {
        if self.ahead_from == 0 {
            None
        } else {
            Some(self.ahead_from.cast_signed() - self.headers.end() as i32)
        }
    }

    /// Bytes from `start` of the stream behind the headers on pass without a judgement of their own.
    #[inline(always)]
    pub const fn passes_from(&mut self, start: i32) {
        let at = start
            .wrapping_add(self.headers.end() as i32)
            .cast_unsigned();
        if self.ahead_from == 0 || at < self.ahead_from {
            self.ahead_from = at;
        }
    }

    /// Whether the server can have no other copy of a login's head than those that are judged: it ends at `end` of the
    /// stream behind the headers.
    #[must_use]
    #[inline(always)]
    pub const fn is_judged_alone(&self, end: u32) -> bool {
        self.ahead_from == 0 || self.headers.end() as u32 + end <= self.ahead_from
    }

    /// The record that the agent gives a session older than the gate. `endpoints` has the index of its server's
    /// settings, `class` is its listener's.
    #[must_use]
    pub fn found(
        cookie: u64,
        listener_cookie: u64,
        endpoints: Endpoints,
        class: ListenerClass,
    ) -> Self {
        Self {
            cookie,
            listener_cookie,
            endpoints,
            rule: crate::policy::NO_RULE,
            class: class as u8,
            phase: Phase::Older as u8,
            apart: Self::OLDER,
            abi: crate::ABI_VERSION,
            older: Older::FOUND,
            ..Self::default()
        }
    }

    /// The same for a session that a gate of another ABI has judged: no more is to be done about it.
    #[must_use]
    pub const fn judged_elsewhere(self) -> Self {
        Self {
            phase: Phase::Foreign as u8,
            apart: 0,
            older: Older::NOT,
            ..self
        }
    }

    /// Whether the gate let the session through that would be denied in enforce mode, for plaintext.
    #[must_use]
    pub fn was_let_through(&self) -> bool {
        self.phase() == Phase::Observed
            && Reason::from_u8(self.reason).is_none_or(|reason| !reason.is_of_tls())
    }

    /// The record of such a session once its server is in enforce mode; from then on it is like one older than the gate.
    #[must_use]
    pub const fn let_through(self, server: u16) -> Self {
        let in_the_clear = match Reason::from_u8(self.reason) {
            Some(
                Reason::NoClientSsl
                | Reason::TlsNotOffered
                | Reason::NotBorneOut
                | Reason::XWithoutTls
                | Reason::OlderPlaintext,
            ) => true,
            // Nobody knows what became of it.
            Some(
                Reason::Unjudgeable
                | Reason::LoginBeforeGreeting
                | Reason::NotALogin
                | Reason::Multipath
                | Reason::TlsBelowFloor
                | Reason::TlsCipherRefused,
            )
            | None => false,
        };
        Self {
            endpoints: Endpoints {
                server,
                ..self.endpoints
            },
            phase: Phase::Older as u8,
            apart: Self::OLDER,
            reason: 0,
            older: Older::observed(in_the_clear),
            ..self
        }
    }

    /// The record of a session older than the gate with which the gate listens to it again.
    #[must_use]
    pub const fn again(self) -> Self {
        Self {
            phase: Phase::Older as u8,
            apart: Self::OLDER,
            older: self.older.after_a_gap(),
            ..self
        }
    }

    /// The record of a listener.
    #[must_use]
    pub fn listener(cookie: u64, listener: Listener) -> Self {
        Self {
            listener_cookie: cookie,
            endpoints: Endpoints {
                server: listener.server,
                ..Endpoints::default()
            },
            class: listener.class,
            abi: crate::ABI_VERSION,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_read_back_and_the_decided_ones_come_last() {
        for n in 0..=9 {
            assert_eq!(Phase::from_u8(n) as u8, n);
        }
        for undecided in [
            Phase::Listener,
            Phase::Plain,
            Phase::Claimed,
            Phase::ExceptedUser,
            Phase::Denied,
        ] {
            assert!((undecided as u8) < Phase::DECIDED);
        }
        assert_eq!(Phase::from_u8(200), Phase::Listener);
    }
}
