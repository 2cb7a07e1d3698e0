//! What attaches the gate's programs to the root cgroup: links, which others cannot detach by mistake, but which root can.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use anyhow::{Context as _, Result};
use aya::Ebpf;

use super::pins::Pins;
use super::sys;

/// The programs that are attached, and where (`enum bpf_attach_type`), in this order: egress before ingress, because a
/// session whose greeting was not seen is held; `sock_ops` before ingress, because it takes over what ingress concludes of a
/// third ACK.
pub(super) const ATTACHED: [(&str, u32); 3] =
    [("on_sock_ops", 3), ("on_egress", 1), ("on_ingress", 0)];

/// What somebody else has done to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// It is attached to nothing.
    Detached,
    /// It attaches a program that is not this agent's.
    Replaced,
    /// It is no longer pinned: the gate would end with this agent.
    Unpinned,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Detached, Self::Replaced, Self::Unpinned];

    /// The word used in audit records, metrics and `musttls status`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Detached => "detached",
            Self::Replaced => "replaced",
            Self::Unpinned => "unpinned",
        }
    }
}

/// A fault that was found.
#[derive(Debug)]
pub struct Found {
    /// The program that it is about.
    pub program: &'static str,
    /// What it is.
    pub fault: Fault,
    /// Whether it is as it was again, or why not.
    pub mended: Result<()>,
}

/// The link of a program.
struct Link {
    program: &'static str,
    attach_type: u32,
    fd: OwnedFd,
}

/// All links of a gate. Dropping them takes it off, unless they are pinned.
pub(super) struct Links(Vec<Link>);

impl Links {
    /// Attaches all programs, or puts them in the place of a former agent's.
    pub(super) fn attach(gate: &Ebpf, root: BorrowedFd<'_>, pins: Option<&Pins>) -> Result<Self> {
        let mut links = Vec::new();
        for (name, attach_type) in ATTACHED {
            let former = pins.map_or(Ok(None), |pins| pins.link(name))?;
            let fd = if let Some(fd) = former {
                sys::update_link(fd.as_fd(), program(gate, name)?)
                    .with_context(|| format!("put {name} in the place of the former agent's"))?;
                fd
            } else {
                let fd = create(gate, root, name, attach_type)?;
                if let Some(pins) = pins {
                    pins.pin_link(name, fd.as_fd())?;
                }
                fd
            };
            links.push(Link {
                program: name,
                attach_type,
                fd,
            });
        }
        Ok(Self(links))
    }

    /// Looks whether all is as this agent has left it, and mends what is not.
    pub(super) fn check(
        &mut self,
        gate: &Ebpf,
        root: BorrowedFd<'_>,
        pins: Option<&Pins>,
    ) -> Vec<Found> {
        let mut found = Vec::new();
        for link in &mut self.0 {
            // What cannot be asked is taken for attached: the next look asks again.
            let Ok(Some(fault)) = link.fault(gate, pins) else {
                continue;
            };
            found.push(Found {
                program: link.program,
                fault,
                mended: link.mend(fault, gate, root, pins),
            });
        }
        found
    }
}

impl Link {
    fn fault(&self, gate: &Ebpf, pins: Option<&Pins>) -> Result<Option<Fault>> {
        let info = sys::link_info(self.fd.as_fd()).context("ask for a link")?;
        let own = sys::program_id(program(gate, self.program)?).context("ask for a program")?;
        Ok(if !info.is_attached {
            Some(Fault::Detached)
        } else if info.program != own {
            Some(Fault::Replaced)
        } else if let Some(pins) = pins
            && !pins.has_link(self.program, info.id)
        {
            Some(Fault::Unpinned)
        } else {
            None
        })
    }

    fn mend(
        &mut self,
        fault: Fault,
        gate: &Ebpf,
        root: BorrowedFd<'_>,
        pins: Option<&Pins>,
    ) -> Result<()> {
        match fault {
            Fault::Detached => {
                self.fd = create(gate, root, self.program, self.attach_type)?;
                pins.map_or(Ok(()), |pins| pins.pin_link(self.program, self.fd.as_fd()))
            }
            Fault::Replaced => sys::update_link(self.fd.as_fd(), program(gate, self.program)?)
                .with_context(|| format!("put {} back", self.program)),
            Fault::Unpinned => {
                pins.map_or(Ok(()), |pins| pins.pin_link(self.program, self.fd.as_fd()))
            }
        }
    }
}

fn create(gate: &Ebpf, root: BorrowedFd<'_>, name: &str, attach_type: u32) -> Result<OwnedFd> {
    sys::create_link(program(gate, name)?, root, attach_type)
        .with_context(|| format!("attach {name} to the root cgroup"))
}

fn program<'g>(gate: &'g Ebpf, name: &str) -> Result<BorrowedFd<'g>> {
    let program = gate
        .program(name)
        .with_context(|| format!("the gate has no program {name}"))?;
    let fd = program
        .fd()
        .with_context(|| format!("the descriptor of the gate's program {name}"))?;
    Ok(fd.as_fd())
}
