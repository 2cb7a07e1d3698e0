//! Whether the kernel reports connections to Unix sockets; where it does not, why, and what to do.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use crate::capability::{self, Effective};

/// The kernel's description of its own types, which fentry needs.
const BTF: &str = "/sys/kernel/btf/vmlinux";

/// `ENOTSUPP` of the kernel (`include/linux/errno.h`), which libc does not know: no trampoline for this program.
const ENOTSUPP: i32 = 524;

/// Whether Unix sessions are reported by the kernel, or why not.
#[derive(Clone, Debug)]
pub enum UnixProbe {
    /// As they happen.
    Kernel,
    /// Not by the kernel, for this reason: they are found by polling.
    Polling(NoTracing),
}

/// Why the kernel does not take the tracing program.
#[derive(Clone, Debug)]
pub struct NoTracing {
    cause: Cause,
    /// What the system said.
    error: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    NotCapable,
    Lockdown,
    NoBtf,
    Unsupported,
    /// With the state of lockdown, which is not the cause.
    Forbidden(String),
    Other,
}

/// What of the host decides.
struct Host {
    has_btf: bool,
    may_trace: bool,
    lockdown: String,
}

impl NoTracing {
    /// The cause of `error`, on this host.
    #[must_use]
    pub fn of(error: &anyhow::Error) -> Self {
        let host = Host {
            has_btf: Path::new(BTF).exists(),
            // What cannot be read is not taken for a cause.
            may_trace: Effective::of_this_process().map_or(true, |effective| {
                effective.has(capability::BPF) && effective.has(capability::PERFMON)
            }),
            lockdown: lockdown(),
        };
        let errno = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
        Self {
            cause: Cause::of(errno, host),
            error: format!("{error:#}"),
        }
    }

    /// What to do about it.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self.cause {
            Cause::NotCapable => {
                "run as root, or add CAP_BPF and CAP_PERFMON to the unit (before Linux 5.8: CAP_SYS_ADMIN)"
            }
            Cause::Lockdown => {
                "none if this lockdown is wanted; else boot with lockdown=integrity or without it"
            }
            Cause::NoBtf => "a kernel with CONFIG_DEBUG_INFO_BTF=y",
            Cause::Unsupported => "Linux 5.11 or later (arm64: 6.4) with CONFIG_BPF_JIT=y",
            Cause::Forbidden(_) => {
                "look in the kernel's log (journalctl -k) for a security module that forbids it; without one, it \
                 takes a kernel that is not built to forbid tracing"
            }
            Cause::Other => "RUST_LOG=debug musttls run shows what the verifier says",
        }
    }
}

impl Cause {
    fn of(errno: Option<i32>, host: Host) -> Self {
        match errno {
            _ if !host.has_btf => Self::NoBtf,
            Some(libc::EPERM | libc::EACCES) if !host.may_trace => Self::NotCapable,
            Some(libc::EPERM | libc::EACCES) if host.lockdown == "confidentiality" => {
                Self::Lockdown
            }
            Some(libc::EPERM) => Self::Forbidden(host.lockdown),
            Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT | ENOTSUPP) => Self::Unsupported,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for NoTracing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::NotCapable => f.write_str("CAP_BPF or CAP_PERFMON is not in effect")?,
            Cause::Lockdown => {
                f.write_str("kernel lockdown is at confidentiality, which forbids tracing")?;
            }
            Cause::NoBtf => write!(f, "the kernel does not describe its types: no {BTF}")?,
            Cause::Unsupported => f.write_str("the kernel cannot trace with such a program")?,
            Cause::Forbidden(lockdown) => write!(
                f,
                "the kernel forbids tracing, and neither a capability nor lockdown ({lockdown}) is why"
            )?,
            Cause::Other => f.write_str("the kernel does not take the tracing program")?,
        }
        write!(f, ": {}", self.error)
    }
}

impl std::error::Error for NoTracing {}

/// The kernel's lockdown: `none`, `integrity`, `confidentiality`, or `not visible`.
#[must_use]
pub fn lockdown() -> String {
    let state = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    state
        .split(['[', ']'])
        .nth(1)
        .unwrap_or("not visible")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause(errno: i32, has_btf: bool, may_trace: bool, lockdown: &str) -> Cause {
        let lockdown = lockdown.to_owned();
        Cause::of(
            Some(errno),
            Host {
                has_btf,
                may_trace,
                lockdown,
            },
        )
    }

    #[test]
    fn a_refusal_is_put_down_to_what_the_host_shows() {
        let confidential = "confidentiality";
        assert_eq!(
            cause(libc::EPERM, true, false, confidential),
            Cause::NotCapable
        );
        assert_eq!(
            cause(libc::EPERM, true, true, confidential),
            Cause::Lockdown
        );
        assert_eq!(
            cause(libc::EPERM, true, true, "integrity"),
            Cause::Forbidden("integrity".to_owned())
        );
        assert_eq!(cause(libc::ENOENT, false, true, "none"), Cause::NoBtf);
        assert_eq!(cause(ENOTSUPP, true, true, "none"), Cause::Unsupported);
        assert_eq!(
            cause(libc::EACCES, true, true, "none"),
            Cause::Other,
            "the verifier"
        );
    }

    #[test]
    fn the_text_has_the_cause_and_the_words_of_the_system() {
        let error = anyhow::Error::from(io::Error::from_raw_os_error(libc::EPERM)).context("load");
        let text = NoTracing::of(&error).to_string();
        assert!(text.ends_with("load: Operation not permitted (os error 1)"));
        assert!(!text.contains("doctor"), "{text}");
    }
}
