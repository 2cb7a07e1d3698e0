//! What policy concludes about a session, why, and what is done about it.

/// Whether the gate acts on its verdicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Report only: nothing is dropped, delayed, reset or changed.
    Observe = 0,
    /// Refuse denied sessions.
    Enforce = 1,
}

impl Mode {
    /// Reads a mode from a map. Any number but [`Mode::Observe`]'s enforces: a damaged table must
    /// not open the gate.
    #[must_use]
    #[inline(always)]
    pub const fn from_u8(n: u8) -> Self {
        match n {
            0 => Self::Observe,
            _ => Self::Enforce,
        }
    }

    /// The word used in configuration, records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Enforce => "enforce",
        }
    }
}

/// What policy concludes about a segment or the session it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing speaks against it.
    Allow,
    /// The session is refused.
    Deny(Reason),
    /// This segment cannot be judged as it stands; TCP sends the bytes again.
    Hold(Hold),
}

impl Verdict {
    /// What to do with the segment. The only place where the two modes differ.
    #[must_use]
    #[inline(always)]
    pub const fn action(self, mode: Mode) -> Action {
        match (self, mode) {
            (Self::Allow, _) | (_, Mode::Observe) => Action::Pass,
            (Self::Deny(_) | Self::Hold(_), Mode::Enforce) => Action::Drop,
        }
    }
}

/// What is done to a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes on to the server's socket (or to the client).
    Pass,
    /// It is dropped; its sender's TCP sends it again.
    Drop,
}

/// Why a session is denied. Numbers are append-only: they stand in audit records and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// The login does not set `CLIENT_SSL`.
    NoClientSsl = 1,
    /// The login sets `CLIENT_SSL`, but this connection's greeting did not offer TLS: `MariaDB`
    /// (all versions) and builds of `MySQL` up to 5.7 without TLS take it as a plaintext login.
    TlsNotOffered = 2,
    /// The login set `CLIENT_SSL` and the server answered in plaintext, with something else than
    /// an error.
    NotBorneOut = 3,
    /// More segments than [`crate::judge::MAX_HOLDS`] could not be judged.
    Unjudgeable = 4,
    /// The client's bytes passed before the server turned out to speak the `MySQL` protocol.
    LoginBeforeGreeting = 5,
    /// The client's first packet has another sequence id than 1: no login of the classic protocol, and no PROXY
    /// protocol header on whose end all servers agree; or two copies of a header contradict each other.
    NotALogin = 6,
    /// X Protocol: another message than `CapabilitiesGet`, `CapabilitiesSet` and `Close` came before TLS, as
    /// a login is (`AuthenticateStart`).
    XWithoutTls = 7,
    /// The session speaks MPTCP, in which a client may say of each segment, and of each of several connections,
    /// where in the stream it belongs: what the server reads cannot be told from the segments.
    Multipath = 8,
    /// The TLS version is below the floor of the policy.
    TlsBelowFloor = 9,
    /// The policy refuses the cipher suite, or all that the client offers.
    TlsCipherRefused = 10,
    /// The session is older than the gate, and its client sends commands in the clear.
    OlderPlaintext = 11,
}

impl Reason {
    /// Reads a reason from a record; `None` for a number of another version.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::NoClientSsl),
            2 => Some(Self::TlsNotOffered),
            3 => Some(Self::NotBorneOut),
            4 => Some(Self::Unjudgeable),
            5 => Some(Self::LoginBeforeGreeting),
            6 => Some(Self::NotALogin),
            7 => Some(Self::XWithoutTls),
            8 => Some(Self::Multipath),
            9 => Some(Self::TlsBelowFloor),
            10 => Some(Self::TlsCipherRefused),
            11 => Some(Self::OlderPlaintext),
            _ => None,
        }
    }

    /// The word used in audit records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoClientSsl => "no-client-ssl",
            Self::TlsNotOffered => "tls-not-offered",
            Self::NotBorneOut => "not-borne-out",
            Self::Unjudgeable => "unjudgeable",
            Self::LoginBeforeGreeting => "login-before-greeting",
            Self::NotALogin => "not-a-login",
            Self::XWithoutTls => "x-without-tls",
            Self::Multipath => "multipath",
            Self::TlsBelowFloor => "tls-below-floor",
            Self::TlsCipherRefused => "tls-cipher-refused",
            Self::OlderPlaintext => "older-plaintext",
        }
    }

    /// Whether it is about a session in TLS, and not about plaintext.
    #[must_use]
    #[inline(always)]
    pub const fn is_of_tls(self) -> bool {
        match self {
            Self::TlsBelowFloor | Self::TlsCipherRefused => true,
            Self::NoClientSsl
            | Self::TlsNotOffered
            | Self::NotBorneOut
            | Self::Unjudgeable
            | Self::LoginBeforeGreeting
            | Self::NotALogin
            | Self::XWithoutTls
            | Self::Multipath
            | Self::OlderPlaintext => false,
        }
    }
}

/// Why a segment is held (dropped, to be sent again). Each has its own counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hold {
    /// The server has not greeted yet: whether it offers TLS is not known.
    BeforeGreeting = 0,
    /// The segment starts behind bytes that nobody has judged.
    Gap = 1,
    /// The segment holds only one of the two low capability bytes, or part of a PROXY protocol header.
    Split = 2,
    /// The segment has the URG flag: the server would read another stream than the wire shows
    /// (RFC 6093 section 3.1).
    Urgent = 3,
    /// The headers cannot be read.
    Unreadable = 4,
    /// Payload for a socket that is still listening (third ACK of the handshake, or TCP Fast Open).
    NotEstablished = 5,
    /// An exception by user name may apply, but the segment does not hold the whole name.
    UserUnreadable = 6,
    /// The socket belongs to a protected listener but has no session record.
    NoRecord = 7,
    /// Another CPU is judging a segment of the session (X Protocol, PROXY protocol headers).
    Concurrent = 8,
    /// An exception may apply whose conditions the agent looks at: it has been asked, and not answered yet.
    Asked = 9,
}

impl Hold {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 10] = [
        Self::BeforeGreeting,
        Self::Gap,
        Self::Split,
        Self::Urgent,
        Self::Unreadable,
        Self::NotEstablished,
        Self::UserUnreadable,
        Self::NoRecord,
        Self::Concurrent,
        Self::Asked,
    ];

    /// The word used in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BeforeGreeting => "before-greeting",
            Self::Gap => "gap",
            Self::Split => "split",
            Self::Urgent => "urgent",
            Self::Unreadable => "unreadable",
            Self::NotEstablished => "not-established",
            Self::UserUnreadable => "user-unreadable",
            Self::NoRecord => "no-record",
            Self::Concurrent => "concurrent",
            Self::Asked => "asked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observe_never_drops() {
        for verdict in [
            Verdict::Allow,
            Verdict::Deny(Reason::NoClientSsl),
            Verdict::Hold(Hold::Gap),
        ] {
            assert_eq!(verdict.action(Mode::Observe), Action::Pass, "{verdict:?}");
        }
    }

    #[test]
    fn enforce_drops_what_is_denied_or_held() {
        assert_eq!(Verdict::Allow.action(Mode::Enforce), Action::Pass);
        assert_eq!(
            Verdict::Deny(Reason::NoClientSsl).action(Mode::Enforce),
            Action::Drop
        );
        assert_eq!(
            Verdict::Hold(Hold::Urgent).action(Mode::Enforce),
            Action::Drop
        );
    }

    #[test]
    fn numbers_read_back() {
        for n in 0..=u8::MAX {
            if let Some(reason) = Reason::from_u8(n) {
                assert_eq!(reason as u8, n);
            }
        }
        for (n, hold) in Hold::ALL.into_iter().enumerate() {
            assert_eq!(hold as usize, n);
        }
    }
}
