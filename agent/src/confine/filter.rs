//! Which system calls the agent may make (seccomp(2)): all but those that it never makes and that would help somebody who had
//! taken it over.
//!
//! A list of what is denied, not of what is allowed: ADR 0016. What is denied fails with EPERM, and what is younger than this
//! list with ENOSYS, as on an older kernel, so that a C library falls back to what it did before.

use std::collections::BTreeMap;
use std::io;

use anyhow::{Context as _, Result};
use seccompiler::SeccompCmpOp::{self, Eq, MaskedEq, Ne};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter, sock_filter,
};

/// The youngest system call that was considered, `file_setattr` of Linux 6.17. From 424 on numbers are the same on all machines; the
/// second set of numbers of amd64 (x32, from `0x4000_0000` on) is above it, too.
const YOUNGEST: u32 = 469;
/// System calls that `libc` does not name yet (`include/uapi/asm-generic/unistd.h`).
const SETXATTRAT: i64 = 463;
const REMOVEXATTRAT: i64 = 466;
const OPEN_TREE_ATTR: i64 = 467;

/// Never made, whatever the arguments.
const DENIED: &[i64] = &[
    // Another program. Another process: see `clone` below.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes, but for pidfd_getfd(2): their memory, their course, their end.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_kcmp,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_send_signal,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // The tree of files, and other namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    OPEN_TREE_ATTR,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    // Files by their numbers, past all paths, which CAP_DAC_READ_SEARCH allows: the way out of a container.
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    // Owners, devices, capabilities of files.
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_mknodat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    REMOVEXATTRAT,
    // Another user or group.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setfsuid,
    libc::SYS_setfsgid,
    libc::SYS_setgroups,
    // The kernel: its modules, its successor, its log, its clocks, its names, its keys.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_personality,
    libc::SYS_vhangup,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // What attacks on the kernel are made of. io_uring also makes calls that no filter sees.
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_memfd_create,
    libc::SYS_memfd_secret,
    // The control socket, the metrics and the canary listen already.
    libc::SYS_listen,
];

/// The same; elsewhere than on amd64 there are no such calls.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[i64] = &[
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_mknod,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[i64] = &[];

/// The commands of bpf(2) that a running agent uses (`enum bpf_cmd`): elements of maps, pins, links, and the sockmaps of others. No new
/// map and no new program is among them.
const BPF_ALLOWED: [u64; 12] = [
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    6,  // BPF_OBJ_PIN
    7,  // BPF_OBJ_GET
    12, // BPF_MAP_GET_NEXT_ID
    14, // BPF_MAP_GET_FD_BY_ID
    15, // BPF_OBJ_GET_INFO_BY_FD
    16, // BPF_PROG_QUERY
    28, // BPF_LINK_CREATE
    29, // BPF_LINK_UPDATE
];

/// The families of sockets that it makes: service manager and control socket, `sock_diag`, which is all that is allowed of netlink:
/// routes and packet filters can be changed there.
const FAMILIES: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

const EXEC: u64 = libc::PROT_EXEC as u64;
const WRITE: u64 = libc::PROT_WRITE as u64;
const THREAD: u64 = libc::CLONE_THREAD as u64;

/// What of a thread's namespaces a new one could have for itself.
const NEW_NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Puts the filter in force for this thread and those that it will start. Returns why there is none, where the kernel or the
/// machine has nothing to make one of.
pub(super) fn apply() -> Result<Option<String>> {
    let Ok(machine) = TargetArch::try_from(std::env::consts::ARCH) else {
        return Ok(Some(format!("not written for {}", std::env::consts::ARCH)));
    };
    let program = program(machine, std::process::id()).context("compile the filter")?;
    match apply_filter(&program) {
        Ok(()) => Ok(None),
        Err(seccompiler::Error::Seccomp(error)) if is_lacking(&error) => {
            Ok(Some("not in this kernel: CONFIG_SECCOMP_FILTER".to_owned()))
        }
        Err(error) => Err(error).context("seccomp"),
    }
}

/// No such system call, or no such operation of it.
fn is_lacking(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL))
}

/// Whether this kernel takes filters (seccomp(2), `actions_avail`).
pub fn examine() -> Result<String> {
    let path = "/proc/sys/kernel/seccomp/actions_avail";
    let actions = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    anyhow::ensure!(
        actions.split_whitespace().any(|action| action == "errno"),
        "no action errno in {path}"
    );
    Ok("available".to_owned())
}

/// The filter, for the process `pid`.
fn program(machine: TargetArch, pid: u32) -> Result<BpfProgram, BackendError> {
    let deny = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let filter = SeccompFilter::new(rules(pid)?, SeccompAction::Allow, deny, machine)?;
    let mut program = newer_than_this();
    program.append(&mut filter.try_into()?);
    Ok(program)
}

/// What is denied, by number: any of the rules, each with all of its conditions; without a rule whatever the arguments.
fn rules(pid: u32) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = DENIED
        .iter()
        .chain(DENIED_HERE)
        .map(|&call| (call, Vec::new()))
        .collect();
    // Threads only, and none with namespaces of its own.
    let mut clone = vec![rule(&[(0, MaskedEq(THREAD), 0)])?];
    for namespace in NEW_NAMESPACES {
        let flag = u64::from(namespace.unsigned_abs());
        clone.push(rule(&[(0, MaskedEq(flag), flag)])?);
    }
    rules.insert(libc::SYS_clone, clone);
    // Its own threads: abort(3).
    rules.insert(libc::SYS_tgkill, vec![rule(&[(0, Ne, u64::from(pid))])?]);
    rules.insert(libc::SYS_bpf, vec![none_of(&BPF_ALLOWED)?]);
    let families = FAMILIES.map(|family| u64::from(family.unsigned_abs()));
    let other_netlink = [
        (0, Eq, u64::from(libc::AF_NETLINK.unsigned_abs())),
        (2, Ne, u64::from(libc::NETLINK_SOCK_DIAG.unsigned_abs())),
    ];
    let socket = vec![none_of(&families)?, rule(&other_netlink)?];
    rules.insert(libc::SYS_socket, socket);
    // Memory that is written and then run, as MemoryDenyWriteExecute= of systemd denies it.
    rules.insert(
        libc::SYS_mmap,
        vec![rule(&[(2, MaskedEq(WRITE | EXEC), WRITE | EXEC)])?],
    );
    for call in [libc::SYS_mprotect, libc::SYS_pkey_mprotect] {
        rules.insert(call, vec![rule(&[(2, MaskedEq(EXEC), EXEC)])?]);
    }
    // Keys put into the terminal that the agent was started in, as if somebody had typed them.
    let ioctls = [libc::TIOCSTI, libc::TIOCLINUX];
    rules.insert(
        libc::SYS_ioctl,
        ioctls
            .into_iter()
            .map(|request| rule(&[(1, Eq, request)]))
            .collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

/// A rule of conditions on the lower halves of arguments: argument, comparison, value.
fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, BackendError> {
    let conditions = conditions.iter().map(|(argument, comparison, value)| {
        SeccompCondition::new(
            *argument,
            SeccompCmpArgLen::Dword,
            comparison.clone(),
            *value,
        )
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

/// A rule for a first argument that is none of `values`.
fn none_of(values: &[u64]) -> Result<SeccompRule, BackendError> {
    let conditions: Vec<_> = values.iter().map(|&value| (0, Ne, value)).collect();
    rule(&conditions)
}

/// The beginning of the filter: ENOSYS for what is younger than it, and for clone3(2), whose flags are in memory, where no filter can
/// see them; C libraries then call clone(2).
fn newer_than_this() -> BpfProgram {
    let instruction = |code: u32, jt, jf, k| sock_filter {
        code: u16::try_from(code).unwrap_or(u16::MAX),
        jt,
        jf,
        k,
    };
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let clone3 = u32::try_from(libc::SYS_clone3).unwrap_or(u32::MAX);
    vec![
        // The number of the call: the first field of `struct seccomp_data`.
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K, 1, 0, YOUNGEST),
        instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, clone3),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, no_such_call),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::process::Command;

    const PID: u32 = 4711;
    const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    const ENOSYS: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    /// `AUDIT_ARCH_*` of `include/uapi/linux/audit.h`.
    const AMD64: u32 = 0xc000_003e;
    const I386: u32 = 0x4000_0003;

    /// What the filter answers: a reading of it as bpf(4) defines it, apart from the crate that made it.
    fn answer_of(architecture: u32, call: i64, arguments: &[u64]) -> u32 {
        let program = program(TargetArch::x86_64, PID).unwrap();
        let mut data = [0_u32; 16];
        data[0] = u32::try_from(call).unwrap();
        data[1] = architecture;
        for (place, argument) in arguments.iter().enumerate() {
            data[4 + 2 * place] = u32::try_from(argument & 0xffff_ffff).unwrap();
            data[5 + 2 * place] = u32::try_from(argument >> 32).unwrap();
        }
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let one = &program[at];
            let mut go = |holds: bool| at += usize::from(if holds { one.jt } else { one.jf });
            match u32::from(one.code) {
                0x20 => accumulator = data[usize::try_from(one.k).unwrap() / 4],
                0x54 => accumulator &= one.k,
                0x05 => at += usize::try_from(one.k).unwrap(),
                0x15 => go(accumulator == one.k),
                0x25 => go(accumulator > one.k),
                0x35 => go(accumulator >= one.k),
                0x06 => return one.k,
                code => panic!("instruction {code:#x}"),
            }
            at += 1;
        }
    }

    fn answer(call: i64, arguments: &[u64]) -> u32 {
        answer_of(AMD64, call, arguments)
    }

    #[test]
    fn what_is_denied_fails_and_all_else_passes() {
        let rules = rules(PID).unwrap();
        for call in 0..=i64::from(YOUNGEST) {
            let expected = match rules.get(&call) {
                _ if call == libc::SYS_clone3 => ENOSYS,
                Some(rules) if rules.is_empty() => EPERM,
                // By argument: see the other tests.
                Some(_) => continue,
                None => ALLOW,
            };
            assert_eq!(answer(call, &[]), expected, "{call}");
        }
        for call in [
            libc::SYS_execve,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_setns,
        ] {
            assert_eq!(answer(call, &[]), EPERM, "{call}");
        }
        for call in [
            libc::SYS_pidfd_getfd,
            libc::SYS_pidfd_open,
            libc::SYS_exit_group,
        ] {
            assert_eq!(answer(call, &[]), ALLOW, "{call}");
        }
    }

    #[test]
    fn younger_calls_and_those_of_x32_are_not_there_and_those_of_i386_are_the_end() {
        assert_eq!(answer(i64::from(YOUNGEST) + 1, &[]), ENOSYS);
        let x32 = 0x4000_0000;
        for call in [libc::SYS_read, libc::SYS_execve, 520, 521] {
            assert_eq!(answer(x32 + call, &[]), ENOSYS, "{call}");
        }
        // execve of i386.
        assert_eq!(answer_of(I386, 11, &[]), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn threads_may_be_made_and_processes_and_namespaces_not() {
        // As glibc's pthread_create has them.
        let thread = 0x003d_0f00;
        let clone = |flags: u64| answer(libc::SYS_clone, &[flags]);
        assert_eq!(clone(thread), ALLOW);
        // fork(3), and posix_spawn(3): CLONE_VM | CLONE_VFORK.
        assert_eq!(clone(0x0120_0011), EPERM);
        assert_eq!(clone(0x4111), EPERM);
        for namespace in NEW_NAMESPACES {
            let flag = u64::from(namespace.unsigned_abs());
            assert_eq!(clone(thread | flag), EPERM, "{flag:#x}");
        }
    }

    #[test]
    fn arguments_decide_where_a_call_is_needed() {
        assert_eq!(answer(libc::SYS_tgkill, &[u64::from(PID), 1, 6]), ALLOW);
        assert_eq!(answer(libc::SYS_tgkill, &[1, 1, 9]), EPERM);
        for command in 0..64 {
            let expected = if BPF_ALLOWED.contains(&command) {
                ALLOW
            } else {
                EPERM
            };
            assert_eq!(answer(libc::SYS_bpf, &[command]), expected, "{command}");
            // Only the lower half is a number of `int`: the kernel looks at nothing else.
            let shown = command | 1 << 32;
            assert_eq!(answer(libc::SYS_bpf, &[shown]), expected, "{command}");
        }
        for (family, expected) in [
            (libc::AF_UNIX, ALLOW),
            (libc::AF_INET, ALLOW),
            (libc::AF_INET6, ALLOW),
            (libc::AF_PACKET, EPERM),
            (libc::AF_ALG, EPERM),
            (libc::AF_VSOCK, EPERM),
            (libc::AF_XDP, EPERM),
        ] {
            let family = u64::from(family.unsigned_abs());
            assert_eq!(answer(libc::SYS_socket, &[family]), expected, "{family}");
        }
        let netlink = |protocol| answer(libc::SYS_socket, &[16, 3, protocol]);
        assert_eq!(netlink(4), ALLOW, "NETLINK_SOCK_DIAG");
        assert_eq!(netlink(0), EPERM, "NETLINK_ROUTE");
        assert_eq!(netlink(12), EPERM, "NETLINK_NETFILTER");
        let (read, write, exec) = (1, 2, 4);
        for (call, protection, expected) in [
            (libc::SYS_mmap, read | write, ALLOW),
            (libc::SYS_mmap, read | exec, ALLOW),
            (libc::SYS_mmap, read | write | exec, EPERM),
            (libc::SYS_mprotect, read | write, ALLOW),
            (libc::SYS_mprotect, read | exec, EPERM),
            (libc::SYS_pkey_mprotect, exec, EPERM),
        ] {
            assert_eq!(answer(call, &[0, 4096, protection]), expected, "{call}");
        }
        assert_eq!(answer(libc::SYS_ioctl, &[0, 0x5412]), EPERM, "TIOCSTI");
        assert_eq!(answer(libc::SYS_ioctl, &[0, 0x5421]), ALLOW, "FIONBIO");
    }

    #[test]
    fn every_machine_that_it_is_written_for_takes_it() {
        for machine in [TargetArch::x86_64, TargetArch::aarch64] {
            let length = program(machine, PID).unwrap().len();
            assert!((100..4096).contains(&length), "{length}");
        }
    }

    /// A thread may be filtered alone; the others of this process are not.
    #[test]
    fn kernel_takes_it_and_threads_still_start() {
        assert!(Command::new("true").status().unwrap().success());
        examine().unwrap();
        let filtered = std::thread::spawn(|| {
            let listener = TcpListener::bind("127.0.0.1:0");
            assert_eq!(apply().unwrap(), None);
            let spawned = Command::new("true").status();
            let thread = std::thread::spawn(|| TcpListener::bind("127.0.0.1:0"));
            let again = thread.join().unwrap();
            (listener, spawned, again)
        });
        let (before, spawned, after) = filtered.join().unwrap();
        before.unwrap();
        let errno = |error: io::Error| error.raw_os_error();
        assert_eq!(errno(spawned.unwrap_err()), Some(libc::EPERM));
        assert_eq!(errno(after.unwrap_err()), Some(libc::EPERM), "listen(2)");
        assert!(Command::new("true").status().unwrap().success());
    }
}
