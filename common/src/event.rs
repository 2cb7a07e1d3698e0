//! Ring buffer records.
//!
//! A record is an [`Event`] and, where a login was read, a [`Login`] cut behind its `tail_len` bytes.
//! The auth response of a login is never copied out of the packet.

use crate::mysql::USER_MAX;
use crate::proxy::Proxied;
use crate::session::Endpoints;

/// What happened. Numbers are append-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A session is secure: the server answered with a TLS flight.
    Secure = 1,
    /// A plaintext session is denied and held. A [`Login`] follows, if it could be read.
    Denied = 2,
    /// A plaintext session is allowed by an exception. A [`Login`] follows.
    Excepted = 3,
    /// A plaintext session passes in observe mode. A [`Login`] follows.
    Observed = 4,
    /// The client claimed TLS and the server ended it with an error packet or an alert.
    TlsFailed = 5,
    /// A socket began to listen, or a session of one that nobody has named was greeted as a server greets.
    Listen = 6,
    /// A process connected to a Unix socket of a server.
    Unix = 7,
    /// The socket of a denied session is closed: the server has let go of it, or it was reset.
    Released = 8,
    /// What the client of a session older than the gate speaks is certain. With [`crate::verdict::Reason::OlderPlaintext`]
    /// the policy denies it; in enforce mode it is then held.
    Older = 9,
    /// A plaintext login is held, and an exception may allow it whose conditions the agent looks at. A [`Login`] follows. Copies
    /// of the login ask again.
    Asked = 10,
}

impl Kind {
    /// Reads a kind from a record; `None` for a number of another version.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Secure),
            2 => Some(Self::Denied),
            3 => Some(Self::Excepted),
            4 => Some(Self::Observed),
            5 => Some(Self::TlsFailed),
            6 => Some(Self::Listen),
            7 => Some(Self::Unix),
            8 => Some(Self::Released),
            9 => Some(Self::Older),
            10 => Some(Self::Asked),
            _ => None,
        }
    }
}

/// The fixed part of a record, and the value of the map of held sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// `CLOCK_MONOTONIC` when the gate decided, in nanoseconds (`bpf_ktime_get_ns`).
    pub ktime_ns: u64,
    /// Socket cookie of the session; of the listener in [`Kind::Listen`]; the listener's inode number in
    /// [`Kind::Unix`].
    pub cookie: u64,
    /// Socket cookie of the listener that accepted the session; in [`Kind::Listen`], cookie of the listener's network namespace, 0 if
    /// it is not known.
    pub listener_cookie: u64,
    /// Who talks to whom.
    pub endpoints: Endpoints,
    /// Length of the server's greeting, header included; 0 when it was not out yet, and in X Protocol.
    pub greeting_len: u32,
    /// Version of the policy that judged.
    pub policy_version: u32,
    /// Index of the exception that allowed, [`crate::policy::LOOPBACK_RULE`] or [`crate::policy::NO_RULE`].
    pub rule: u16,
    /// Negotiated TLS version (`ProtocolVersion`), 0 if unknown.
    pub tls_version: u16,
    /// Cipher suite (IANA number), 0 if unknown.
    pub tls_cipher: u16,
    /// [`crate::ABI_VERSION`].
    pub abi: u16,
    /// Packet header of the client's login.
    pub login_header: [u8; 4],
    /// A [`Kind`].
    pub kind: u8,
    /// A [`crate::verdict::Reason`], 0 for none.
    pub reason: u8,
    /// A [`crate::verdict::Mode`].
    pub mode: u8,
    /// 1 when the greeting named `MariaDB`.
    pub mariadb: u8,
    /// Second byte of the client's capability flags.
    pub flags_high: u8,
    /// A [`crate::session::ListenerClass`].
    pub class: u8,
    /// Offset in the client's stream behind its PROXY protocol headers; in X Protocol, behind its last whole frame.
    pub client_end: u16,
    /// What the first of these headers says of the client.
    pub proxied: Proxied,
    /// The best TLS version the client offered, where its `ClientHello` was read; else 0.
    pub offered_version: u16,
    /// The TLS floor that refused the session, or of a session that passed: that would refuse it; 0 for none.
    pub floor: u16,
    /// A [`crate::older::Spoken`], in [`Kind::Older`].
    pub spoken: u8,
    /// 1 when the client is one of this host: its login came over the loopback device, and no trusted proxy has named another client.
    pub local: u8,
    /// 1 when the segment that the [`Login`] was read from ends before the login does.
    pub cut: u8,
    #[doc(hidden)]
    pub _pad: u8,
}

const _: () = assert!(size_of::<Event>() == 120 && align_of::<Event>() == 8);

/// Longest part of a login behind the auth response that is copied (schema, plugin, attributes), in
/// bytes. Drivers send 100 to 400; what is longer is cut, which the record says.
pub const TAIL_MAX: usize = 1024;

/// What a login says, without its auth response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Login {
    /// Client capability flags; the low 16 bits only, for a 320 login.
    pub caps: u32,
    /// Length of the user name, in bytes.
    pub user_len: u16,
    /// Length of `tail`, in bytes.
    pub tail_len: u16,
    /// User name.
    pub user: [u8; USER_MAX],
    /// What follows the auth response: schema, plugin name, connection attributes.
    pub tail: [u8; TAIL_MAX],
}

/// Length of a [`Login`] without its tail, in bytes.
pub const LOGIN_HEAD_LEN: usize = 8 + USER_MAX;

const _: () = assert!(size_of::<Login>() == LOGIN_HEAD_LEN + TAIL_MAX);

/// What the kernel knows of a process that connects to a Unix socket of a server; follows the
/// [`Event`] of [`Kind::Unix`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct UnixPeer {
    /// cgroup v2 id of the client (`bpf_get_current_cgroup_id`).
    pub cgroup_id: u64,
    /// Process id of the client in the initial namespace.
    pub pid: u32,
    /// Effective user id of the client.
    pub uid: u32,
    /// Name of the client's thread (`TASK_COMM_LEN`).
    pub comm: [u8; 16],
}
