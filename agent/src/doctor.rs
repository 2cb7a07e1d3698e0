//! `musttls doctor`: what this host has and lacks, what a lack costs, and what to do about it.
//!
//! Features are tried, not guessed from version numbers.

mod report;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};

use crate::address;
use crate::bypass::{Alarm, Kind, Look, Watch};
use crate::capability::{
    BPF, Capability, DAC_READ_SEARCH, Effective, NET_ADMIN, PERFMON, SYS_PTRACE,
};
use crate::confine::filter;
use crate::datapath::unix_probe::{NoTracing, UnixProbe, lockdown};
use crate::datapath::{Loaded, cgroup};
use crate::login::printable;
use crate::refusal::destroy;
use crate::servers;
use crate::socket::Process;
pub use report::{Check, Report};

/// How a feature is judged.
struct Feature {
    name: &'static str,
    required: bool,
    cost: &'static str,
    remedy: &'static str,
    /// Without these in effect the test fails, whatever else the host has.
    needs: &'static [Capability],
    test: fn() -> Result<String>,
}

const FEATURES: [Feature; 11] = [
    Feature {
        name: "root of cgroup v2",
        required: true,
        cost: "nothing can be judged: the gate hangs there",
        remedy: "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1); in a container, use the host's cgroup namespace",
        needs: &[],
        test: cgroup_root,
    },
    Feature {
        name: "the gate's programs",
        required: true,
        cost: "nothing can be judged",
        remedy: "Linux 5.10 or later with CONFIG_CGROUP_BPF=y; RUST_LOG=debug musttls run shows what the verifier says",
        needs: &[BPF, PERFMON],
        test: programs,
    },
    Feature {
        name: "CAP_BPF and CAP_PERFMON",
        required: true,
        cost: "the gate's programs are not taken",
        remedy: "run as root, or add both capabilities to the unit (before Linux 5.8: CAP_SYS_ADMIN)",
        needs: &[],
        test: || in_effect(&[BPF, PERFMON]),
    },
    Feature {
        name: "CAP_NET_ADMIN",
        required: true,
        cost: "the gate cannot be attached, and no server can be released unharmed",
        remedy: "run as root, or add the capability to the unit",
        needs: &[],
        test: || in_effect(&[NET_ADMIN]),
    },
    Feature {
        name: "CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH",
        required: false,
        cost: "the agent does not start where a server of another user runs",
        remedy: "run as root, or add both capabilities to the unit",
        needs: &[],
        test: || in_effect(&[SYS_PTRACE, DAC_READ_SEARCH]),
    },
    Feature {
        name: "duplicating a socket (pidfd_getfd)",
        required: false,
        cost: "clients see a reset instead of error 3159, servers count a handshake error, listeners are covered by their place only",
        remedy: "set kernel.yama.ptrace_scope to 2 or less; allow pidfd_getfd in seccomp filters and security modules",
        needs: &[SYS_PTRACE],
        test: duplicate,
    },
    Feature {
        name: "TCP_REPAIR",
        required: false,
        cost: "a refusal counts as a handshake error in the server (max_connect_errors)",
        remedy: "give the agent CAP_NET_ADMIN in the server's network namespace; a kernel with CONFIG_CHECKPOINT_RESTORE is not needed",
        needs: &[NET_ADMIN],
        test: repair,
    },
    Feature {
        name: "SOCK_DESTROY",
        required: false,
        cost: "a server that does not let go of a refused session is shut down instead of reset",
        remedy: "a kernel with CONFIG_INET_DIAG_DESTROY=y, and the module tcp_diag",
        needs: &[NET_ADMIN],
        test: sock_destroy,
    },
    Feature {
        name: "tracing of Unix connections (fentry)",
        required: false,
        cost: "sessions over Unix sockets are found by polling once a second: short ones are missed",
        // The cause has its own, unless the test fails before.
        remedy: "the gate's programs first: see the line about them",
        needs: &[BPF, PERFMON],
        test: unix_probe,
    },
    Feature {
        name: "filter of system calls (seccomp)",
        required: false,
        cost: "the agent makes do with capabilities alone to confine itself: who took it over could make every system call",
        remedy: "a kernel with CONFIG_SECCOMP_FILTER=y",
        needs: &[],
        test: filter::examine,
    },
    Feature {
        name: "room for socket records (net.core.optmem_max)",
        required: false,
        cost: "where other programs fill it, the kernel refuses connections to protected listeners",
        remedy: "sysctl net.core.optmem_max=131072",
        needs: &[],
        test: optmem,
    },
];

/// Why this host cannot be examined by this process. Half of the answers would be about the process instead.
#[derive(Debug, thiserror::Error)]
#[error(
    "musttls doctor needs root, or the capabilities CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, CAP_SYS_PTRACE and \
     CAP_DAC_READ_SEARCH: user {uid} lacks {lacking}"
)]
pub struct NotPermitted {
    uid: u32,
    lacking: String,
}

/// Whether this process may look at all. Root may, also with less in effect: then that is the finding.
pub fn permitted() -> Result<(), NotPermitted> {
    // Where it cannot be read, the checks say so.
    Effective::of_this_process().map_or(Ok(()), |effective| {
        permit(rustix::process::geteuid(), effective)
    })
}

fn permit(uid: rustix::process::Uid, effective: Effective) -> Result<(), NotPermitted> {
    let lacking: Vec<&str> = effective
        .lacking(&[BPF, PERFMON, NET_ADMIN, SYS_PTRACE, DAC_READ_SEARCH])
        .map(|capability| capability.name)
        .collect();
    if uid.is_root() || lacking.is_empty() {
        return Ok(());
    }
    Err(NotPermitted {
        uid: uid.as_raw(),
        lacking: lacking.join(", "),
    })
}

/// Examines this host.
#[must_use]
pub fn examine() -> Report {
    let checks: Vec<Check> = FEATURES.iter().map(check).collect();
    let mut context = vec![lockdown_state(), yama()];
    let can_enforce = checks.iter().all(|check| check.found || !check.required);
    let mut checks = checks;
    checks.append(&mut context);
    checks.extend(bypasses());
    Report {
        can_enforce,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        checks,
    }
}

fn check(feature: &Feature) -> Check {
    let (found, detail, remedy) = match (feature.test)() {
        Ok(detail) => (true, detail, ""),
        Err(error) => (false, format!("{error:#}"), remedy(feature, &error)),
    };
    Check {
        name: feature.name,
        found,
        required: feature.required,
        detail,
        cost: if found { "" } else { feature.cost },
        remedy,
    }
}

/// What to do about `error`: the capabilities come first, because without them no other answer is to be had.
fn remedy(feature: &Feature, error: &anyhow::Error) -> &'static str {
    if !feature.needs.is_empty() && in_effect(feature.needs).is_err() {
        return "the capabilities first: see the line about them";
    }
    error
        .downcast_ref::<NoTracing>()
        .map_or(feature.remedy, NoTracing::remedy)
}

fn cgroup_root() -> Result<String> {
    let root = cgroup::open_root()?;
    Ok(root.path.map_or_else(
        || "opened without a mount point".to_owned(),
        |path| path.display().to_string(),
    ))
}

fn programs() -> Result<String> {
    Loaded::new(None).map(|_| "the verifier accepts them".to_owned())
}

fn unix_probe() -> Result<String> {
    match Loaded::new(None)?.unix_probe() {
        UnixProbe::Kernel => Ok("each connection is reported".to_owned()),
        UnixProbe::Polling(why) => Err(why.into()),
    }
}

fn in_effect(capabilities: &[Capability]) -> Result<String> {
    let lacking: Vec<&str> = Effective::of_this_process()?
        .lacking(capabilities)
        .map(|capability| capability.name)
        .collect();
    anyhow::ensure!(lacking.is_empty(), "not in effect: {}", lacking.join(", "));
    Ok("in effect".to_owned())
}

/// A connection of this process with itself.
fn connection() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listen on the loopback")?;
    let address = listener.local_addr().context("find the port")?;
    let client = TcpStream::connect(address).context("connect over the loopback")?;
    let (server, _) = listener.accept().context("accept over the loopback")?;
    Ok((client, server))
}

/// Duplicates a listening socket of a server, as a refusal does; without a server, one of this process, and
/// the capability is what remains to be trusted.
fn duplicate() -> Result<String> {
    let (servers, _) = servers::find().context("look for servers")?;
    let listening = servers
        .iter()
        .find_map(|server| Some((server, server.listeners.first()?)));
    if let Some((server, listener)) = listening {
        let process = Process::open(server.pid).context("pidfd_open of the server")?;
        process.duplicate(listener.fd).with_context(|| {
            format!(
                "pidfd_getfd of a socket of {} {}",
                server.program, server.pid
            )
        })?;
        return Ok(format!("works with {} {}", server.program, server.pid));
    }
    let (_client, server) = connection()?;
    let mine = Process::open(i32::try_from(std::process::id())?).context("pidfd_open")?;
    mine.duplicate(server.as_raw_fd())
        .context("pidfd_getfd of a socket of this process")?;
    in_effect(&[SYS_PTRACE])?;
    Ok("works with this process; no server runs that it could be tried with".to_owned())
}

fn repair() -> Result<String> {
    let (_client, server) = connection()?;
    let mine = Process::open(i32::try_from(std::process::id())?).context("pidfd_open")?;
    let socket = mine.duplicate(server.as_raw_fd()).context("pidfd_getfd")?;
    socket.inject(b"x").context("setsockopt(TCP_REPAIR)")?;
    Ok("works".to_owned())
}

fn sock_destroy() -> Result<String> {
    let (client, server) = connection()?;
    let cookie = rustix::net::sockopt::socket_cookie(server.as_fd()).context("SO_COOKIE")?;
    let endpoints = address::endpoints(client.local_addr()?, server.local_addr()?);
    destroy::destroy(&endpoints, cookie).context("SOCK_DESTROY of a connection of this process")?;
    Ok("works".to_owned())
}

fn optmem() -> Result<String> {
    const ENOUGH: u64 = 20_480;
    let path = "/proc/sys/net/core/optmem_max";
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let bytes: u64 = text
        .trim()
        .parse()
        .with_context(|| format!("understand {path}"))?;
    anyhow::ensure!(bytes >= ENOUGH, "{bytes} bytes");
    Ok(format!("{bytes} bytes"))
}

/// Not a feature, but why some are missing.
fn lockdown_state() -> Check {
    let active = lockdown();
    let found = active != "confidentiality";
    Check {
        name: "kernel lockdown",
        found,
        required: false,
        detail: active,
        cost: if found {
            ""
        } else {
            "no tracing; the gate itself is not affected"
        },
        remedy: if found { "" } else { "none is needed" },
    }
}

/// Ways past the gate, a line for each kind.
fn bypasses() -> Vec<Check> {
    const NAME: &str = "ways past the gate";
    match servers::find() {
        Ok((servers, _)) => {
            bypasses_of(&Watch::default().look(&servers.iter().collect::<Vec<_>>()))
        }
        Err(error) => vec![Check {
            name: NAME,
            found: false,
            required: false,
            detail: format!("no servers to look at: {error}"),
            cost: "bytes that reach a server without being judged would not be noticed",
            remedy: "let this process see all of /proc (no hidepid=)",
        }],
    }
}

fn bypasses_of(look: &Look) -> Vec<Check> {
    let name = |kind| match kind {
        Kind::Mptcp => "no listener of MPTCP",
        Kind::Smc => "no listener of SMC",
        Kind::RawSocket => "no raw socket in a server",
        Kind::UserSpace => "no network in user space",
        Kind::Sockmap => "no sockmap around servers",
    };
    let check = |kind| {
        let mut alarms = look
            .alarms
            .iter()
            .filter(|alarm| alarm.kind == kind)
            .peekable();
        let unchecked = look.unchecked.iter().find(|(one, _)| *one == kind);
        let (found, detail, cost, remedy) = match (alarms.peek().is_some(), unchecked) {
            (true, _) => {
                let safe = |alarm: &Alarm| printable(alarm.to_string().as_bytes()).0;
                let all: Vec<String> = alarms.map(safe).collect();
                (false, all.join("; "), kind.meaning(), kind.remedy())
            }
            (false, Some((_, why))) => (
                false,
                format!("not looked for: {why}"),
                "if there is one, nobody is told",
                "run as root, or give the agent CAP_SYS_PTRACE, and CAP_SYS_ADMIN for sockmaps",
            ),
            (false, None) => (true, "none found".to_owned(), "", ""),
        };
        Check {
            name: name(kind),
            found,
            required: false,
            detail,
            cost,
            remedy,
        }
    };
    Kind::ALL.into_iter().map(check).collect()
}

fn yama() -> Check {
    let scope = fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").unwrap_or_default();
    let found = scope.trim() != "3";
    let detail = if scope.is_empty() {
        "not in this kernel"
    } else {
        scope.trim()
    };
    Check {
        name: "yama.ptrace_scope",
        found,
        required: false,
        detail: detail.to_owned(),
        cost: if found {
            ""
        } else {
            "no socket can be duplicated, by nobody, until the next boot"
        },
        remedy: if found {
            ""
        } else {
            "set kernel.yama.ptrace_scope to 2 or less and reboot"
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: &str = "CapEff:\t0000000000000000\n";
    const ENOUGH: &str = "CapEff:\t000000c000081004\n";

    #[test]
    fn another_user_than_root_is_told_which_capabilities_are_lacking() {
        use rustix::process::Uid;
        let user = Uid::from_raw(1000);
        let error = permit(user, Effective::parse(NOTHING).unwrap()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("needs root"), "{text}");
        assert!(
            text.contains("user 1000 lacks CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN"),
            "{text}"
        );
        assert!(!text.contains('\n'), "{text}");
        permit(user, Effective::parse(ENOUGH).unwrap()).unwrap();
        permit(Uid::ROOT, Effective::parse(NOTHING).unwrap()).unwrap();
    }

    #[test]
    fn a_cause_that_is_known_has_its_own_remedy() {
        let tracing = FEATURES
            .iter()
            .find(|one| one.name.contains("fentry"))
            .unwrap();
        let no_tracing = NoTracing::of(&anyhow::anyhow!("load"));
        let own = no_tracing.remedy();
        let feature = Feature {
            needs: &[],
            ..*tracing
        };
        assert_eq!(remedy(&feature, &no_tracing.into()), own);
        assert_eq!(remedy(&feature, &anyhow::anyhow!("load")), tracing.remedy);
    }

    #[test]
    fn every_lack_has_a_cost_and_a_remedy() {
        for feature in &FEATURES {
            assert!(
                !feature.cost.is_empty() && !feature.remedy.is_empty(),
                "{}",
                feature.name
            );
        }
    }
}
