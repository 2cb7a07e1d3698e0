//! Which capabilities this process has in effect (capabilities(7)).

use std::fs;

use anyhow::{Context as _, Result};
use rustix::thread::CapabilitySet;

/// A capability, by its name and its number in `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// For example `CAP_BPF`.
    pub name: &'static str,
    number: u32,
}

/// Reads what the files' modes keep from root: `/proc/PID/fd` of other users' processes.
pub const DAC_READ_SEARCH: Capability = Capability::new("CAP_DAC_READ_SEARCH", 2);
/// Stands for [`DAC_READ_SEARCH`], too.
pub const DAC_OVERRIDE: Capability = Capability::new("CAP_DAC_OVERRIDE", 1);
/// Sets sockets of others; attaches to cgroups.
pub const NET_ADMIN: Capability = Capability::new("CAP_NET_ADMIN", 12);
/// Looks into processes of others.
pub const SYS_PTRACE: Capability = Capability::new("CAP_SYS_PTRACE", 19);
/// Stands for both of [`BPF`] and [`PERFMON`].
pub const SYS_ADMIN: Capability = Capability::new("CAP_SYS_ADMIN", 21);
/// Tracing; offsets that the verifier knows only within bounds.
pub const PERFMON: Capability = Capability::new("CAP_PERFMON", 38);
/// Loads programs and maps.
pub const BPF: Capability = Capability::new("CAP_BPF", 39);
/// What looking into processes of others takes.
pub const LOOKING: [Capability; 2] = [SYS_PTRACE, DAC_READ_SEARCH];

impl Capability {
    const fn new(name: &'static str, number: u32) -> Self {
        Self { name, number }
    }

    /// As a set of its own.
    #[must_use]
    pub const fn bit(self) -> CapabilitySet {
        CapabilitySet::from_bits_retain(1 << self.number)
    }
}

/// The capabilities in effect.
#[derive(Clone, Copy, Debug)]
pub struct Effective(u64);

impl Effective {
    /// Those of this process (proc(5), `CapEff`).
    pub fn of_this_process() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
        Self::parse(&status).context("find CapEff in /proc/self/status")
    }

    pub(crate) fn parse(status: &str) -> Option<Self> {
        let bits = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(bits.trim(), 16).ok().map(Self)
    }

    /// Whether `capability` is among them, or one that stands for it.
    #[must_use]
    pub fn has(self, capability: Capability) -> bool {
        let bit = |of: Capability| self.0 & (1 << of.number) != 0;
        bit(capability)
            || ([BPF, PERFMON].contains(&capability) && bit(SYS_ADMIN))
            || (capability == DAC_READ_SEARCH && bit(DAC_OVERRIDE))
    }

    /// Those of `wanted` that are not among them.
    pub fn lacking(self, wanted: &[Capability]) -> impl Iterator<Item = Capability> {
        wanted.iter().copied().filter(move |&one| !self.has(one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_read_from_the_status_of_a_process() {
        let some = Effective::parse("Name:\tx\nCapEff:\t000000c000081004\nCapBnd:\t0\n").unwrap();
        for one in [DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, PERFMON, BPF] {
            assert!(some.has(one), "{}", one.name);
        }
        assert!(!some.has(SYS_ADMIN));
        assert!(Effective::parse("Name:\tx\n").is_none());
    }

    #[test]
    fn cap_sys_admin_stands_for_bpf_and_perfmon_only() {
        let admin = Effective::parse("CapEff:\t0000000000200000\n").unwrap();
        assert_eq!(
            admin
                .lacking(&[BPF, PERFMON, NET_ADMIN])
                .collect::<Vec<_>>(),
            [NET_ADMIN]
        );
    }

    #[test]
    fn cap_dac_override_reads_what_cap_dac_read_search_reads() {
        let overriding = Effective::parse("CapEff:\t0000000000000002\n").unwrap();
        assert!(overriding.has(DAC_READ_SEARCH));
        assert!(!overriding.has(NET_ADMIN));
    }
}
