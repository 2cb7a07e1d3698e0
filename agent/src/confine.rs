//! The agent gives up what it no longer needs: capabilities, other programs, most of what the kernel offers root.
//!
//! None of this rests on a service manager, so that a container and `musttls run` in a shell have it, too. Why each
//! part is as it is, and why Landlock is not among them: ADR 0016.

pub mod filter;

use std::fmt;
use std::fs;
use std::io;

use anyhow::{Context as _, Result, anyhow, ensure};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, dumpable_behavior, set_dumpable_behavior, setrlimit,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

use crate::capability::{
    BPF, Capability, DAC_OVERRIDE, DAC_READ_SEARCH, NET_ADMIN, SYS_ADMIN, SYS_PTRACE,
};
use crate::error::Failed;

/// What a running agent uses, each for what `docs/capabilities.md` says. Whoever does not want it to have one of them does not
/// give it: nothing is kept that was not there.
const KEPT: [Capability; 5] = [DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, BPF];

/// What to do where giving up is forbidden, which no kernel does.
const REMEDY: &str = "the filter of system calls that the agent is started under (the container's seccomp profile, SystemCallFilter= of \
                      the unit) must allow prctl, capset and seccomp";

/// What confines this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// The capabilities that are left.
    pub capabilities: Vec<&'static str>,
    /// Why system calls are not filtered, if they are not.
    pub not_filtered: Option<String>,
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no_new_privs, no core dump, ")?;
        match &self.not_filtered {
            None => f.write_str("seccomp")?,
            Some(why) => write!(f, "NO seccomp ({why})")?,
        }
        write!(f, "; {}", self.capabilities.join(" "))
    }
}

/// From now on nobody gets a dump of this process's memory, and only who has `CAP_SYS_PTRACE` may look into it: logins will be there.
///
/// `RLIMIT_CORE` alone does not keep a program that the kernel pipes dumps to from getting one (core(5)), so it is the attribute
/// `dumpable` that does; and the limit stays, should something set the attribute again.
pub fn never_dump() -> Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)
        .context("setrlimit(RLIMIT_CORE)")
        .and_then(|()| {
            set_dumpable_behavior(DumpableBehavior::NotDumpable).context("prctl(PR_SET_DUMPABLE)")
        })
        .with_context(|| Failed::new("keep logins out of core dumps", REMEDY))
}

/// Confines this thread, and those that it will start; it must be the only one. What is open stays open.
pub fn confine() -> Result<Confinement> {
    let threads = fs::read_dir("/proc/self/task")
        .context("read /proc/self/task")?
        .count();
    ensure!(
        threads == 1,
        "{threads} threads run already, of which this would confine one; please report it"
    );
    let capabilities = drop_capabilities()
        .with_context(|| Failed::new("give up the capabilities that are not needed", REMEDY))?;
    ensure!(
        dumpable_behavior().context("prctl(PR_GET_DUMPABLE)")? == DumpableBehavior::NotDumpable,
        "this process may be dumped again; please report it"
    );
    let not_filtered = filter::apply()
        .with_context(|| Failed::new("filter the agent's own system calls", REMEDY))?;
    Ok(Confinement {
        capabilities,
        not_filtered,
    })
}

/// Gives up every capability that is not needed, for good. Returns the names of those that are left.
fn drop_capabilities() -> Result<Vec<&'static str>> {
    set_no_new_privs(true).context("prctl(PR_SET_NO_NEW_PRIVS)")?;
    let had = capabilities(None).context("capget")?;
    let kept = kept(had.effective);
    // Without CAP_SETPCAP the bounding set stays. It limits what execve(2) gives to root, and there is none any more.
    if had.effective.contains(CapabilitySet::SETPCAP) {
        drop_bounding(kept).context("prctl(PR_CAPBSET_DROP)")?;
    }
    clear_ambient_capability_set().context("prctl(PR_CAP_AMBIENT_CLEAR_ALL)")?;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets).context("capset")?;
    let now = capabilities(None).context("capget")?;
    if now != sets {
        return Err(anyhow!("{now:?} is left, not {sets:?}"));
    }
    let all = KEPT.into_iter().chain([DAC_OVERRIDE]);
    Ok(all
        .filter(|one| kept.contains(one.bit()))
        .map(|one| one.name)
        .collect())
}

/// Of what the agent has, what it needs from here on.
fn kept(had: CapabilitySet) -> CapabilitySet {
    let needed = KEPT
        .iter()
        .fold(CapabilitySet::empty(), |all, one| all | one.bit());
    // Only in its place: it also writes to what is not root's.
    let needed = if had.contains(DAC_READ_SEARCH.bit()) {
        needed
    } else {
        needed | DAC_OVERRIDE.bit()
    };
    had & needed
}

fn drop_bounding(kept: CapabilitySet) -> io::Result<()> {
    for number in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(one) {
            // Behind the last one that this kernel knows.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
            Ok(true) if !kept.contains(one) => remove_capability_from_bounding_set(one)?,
            Ok(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capability::PERFMON;

    /// Whoever runs tests has no use for a dump of this one either.
    #[test]
    fn nobody_gets_a_dump() {
        never_dump().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    }

    #[test]
    fn what_was_not_there_is_not_kept() {
        let unit = [BPF, PERFMON, NET_ADMIN, SYS_PTRACE, DAC_READ_SEARCH]
            .into_iter()
            .fold(CapabilitySet::empty(), |all, one| all | one.bit());
        assert_eq!(kept(unit), unit - PERFMON.bit());
        assert_eq!(kept(CapabilitySet::empty()), CapabilitySet::empty());
    }

    #[test]
    fn cap_dac_override_is_kept_only_in_the_place_of_cap_dac_read_search() {
        let both = DAC_OVERRIDE.bit() | DAC_READ_SEARCH.bit();
        assert_eq!(kept(both), DAC_READ_SEARCH.bit());
        assert_eq!(kept(DAC_OVERRIDE.bit()), DAC_OVERRIDE.bit());
        assert_eq!(
            kept(CapabilitySet::all()).bits().count_ones(),
            u32::try_from(KEPT.len()).unwrap()
        );
    }

    #[test]
    fn documentation_says_why_each_is_kept() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/capabilities.md");
        let page = fs::read_to_string(page).unwrap();
        let (_, kept) = page.split_once("## What is kept").unwrap();
        for one in KEPT {
            assert!(kept.contains(&format!("| {} ", one.name)), "{}", one.name);
        }
    }
}
