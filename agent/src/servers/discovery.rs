//! Which processes are servers, and at which ports the service manager listens.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::mem;

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};

use super::Server;
use super::look::ProcessLook;
use super::tables::Tables;

/// Program files of servers: MySQL and Percona, MariaDB, and their debug builds.
const PROGRAMS: [&str; 4] = ["mysqld", "mariadbd", "mysqld-debug", "mariadbd-debug"];

/// A server that could not be looked into.
#[derive(Debug, thiserror::Error)]
#[error(
    "process {pid} ({program}) cannot be looked into: {source}\n  help: the agent needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH to read /proc/{pid}/fd"
)]
pub struct ScanError {
    /// Its process id.
    pub pid: i32,
    /// Name of its program file.
    pub program: String,
    /// What procfs said.
    pub source: procfs::ProcError,
}

/// Looks for the server processes of this host, again and again.
#[derive(Debug, Default)]
pub struct Finder {
    /// Processes that were no server's when they were looked at.
    others: HashSet<i32>,
    round: i32,
}

/// Of the processes that were no server's, each is looked at again in one of so many rounds: its number may be another's
/// by now, or it has become a server without listening anew (`execve(2)`).
const ROUNDS: i32 = 10;

/// A look at the processes of this host, cut up: whoever has many descriptors must not hold up what else is to be done.
pub struct Search {
    pids: std::vec::IntoIter<i32>,
    all: bool,
    others: HashSet<i32>,
    process: Option<ProcessLook>,
    tables: Tables,
    found: Vec<Server>,
    errors: Vec<ScanError>,
}

impl Finder {
    /// Finds the server processes, and what was in the way of some. With `all`, each process is looked at.
    ///
    /// A process that ends meanwhile is not there; that is no error.
    pub fn find(&mut self, all: bool) -> io::Result<(Vec<Server>, Vec<ScanError>)> {
        let mut search = self.begin(all)?;
        loop {
            if let Some(found) = self.step(&mut search, usize::MAX) {
                return Ok(found);
            }
        }
    }

    /// Begins to look for them, to go on with [`Self::step`].
    pub fn begin(&mut self, all: bool) -> io::Result<Search> {
        self.round = (self.round + 1) % ROUNDS;
        Ok(Search {
            pids: pids()?.into_iter(),
            all,
            others: HashSet::new(),
            process: None,
            tables: Tables::default(),
            found: Vec::new(),
            errors: Vec::new(),
        })
    }

    /// Looks at up to `budget` processes and descriptors. Returns what the search has found once it has come to its end.
    pub fn step(
        &mut self,
        search: &mut Search,
        mut budget: usize,
    ) -> Option<(Vec<Server>, Vec<ScanError>)> {
        while budget > 0 {
            if let Some(look) = &mut search.process {
                let pid = look.pid();
                let looked = look.step(&mut budget, &mut search.tables);
                match looked.map_err(|source| (look.program().to_owned(), source)) {
                    Ok(None) => continue,
                    Ok(Some(server)) => search.found.push(server),
                    Err((program, source)) => search.fail(pid, program, source),
                }
                search.process = None;
                continue;
            }
            let Some(pid) = search.pids.next() else {
                self.others = mem::take(&mut search.others);
                return Some((mem::take(&mut search.found), mem::take(&mut search.errors)));
            };
            if !search.all && pid % ROUNDS != self.round && self.others.contains(&pid) {
                search.others.insert(pid);
                continue;
            }
            budget = budget.saturating_sub(1);
            let Ok(process) = Process::new(pid) else {
                continue;
            };
            match program(&process) {
                Ok(Some(program)) => match ProcessLook::new(process, program.clone()) {
                    Ok(look) => search.process = Some(look),
                    Err(source) => search.fail(pid, program, source),
                },
                Ok(None) => {
                    search.others.insert(pid);
                }
                Err((program, source)) => search.fail(pid, program, source),
            }
        }
        None
    }
}

impl Search {
    fn fail(&mut self, pid: i32, program: String, source: procfs::ProcError) {
        if !matches!(source, procfs::ProcError::NotFound(_)) {
            self.errors.push(ScanError {
                pid,
                program,
                source,
            });
        }
    }
}

/// Finds them once, as [`Finder::find`] does.
pub fn find() -> io::Result<(Vec<Server>, Vec<ScanError>)> {
    Finder::default().find(true)
}

/// The processes there are.
fn pids() -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok()),
        );
    }
    Ok(pids)
}

/// Ports at which the service manager (process 1) listens, to start services for them.
pub fn ports_of_init() -> Result<HashSet<u16>, procfs::ProcError> {
    let init = Process::new(1)?;
    let inodes: HashSet<u64> = init
        .fd()?
        .flatten()
        .filter_map(|descriptor| match descriptor.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect();
    let mut entries = init.tcp()?;
    entries.extend(init.tcp6().unwrap_or_default());
    Ok(entries
        .iter()
        .filter(|entry| entry.state == TcpState::Listen && inodes.contains(&entry.inode))
        .map(|entry| entry.local_address.port())
        .collect())
}

/// The name of the process's program file, if it is a server's. Where that may not be read, the name of its
/// thread (which anyone may) tells whether it should have been. Where its path is too long for the kernel to tell
/// (4,096 bytes), which any user can arrange, that name stands for it.
fn program(process: &Process) -> Result<Option<String>, (String, procfs::ProcError)> {
    let is_server = |name: &str| PROGRAMS.contains(&name).then(|| name.to_owned());
    match process.exe() {
        Ok(exe) => {
            let name = exe
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            // procfs marks a file that was replaced by an upgrade.
            Ok(is_server(name.strip_suffix(" (deleted)").unwrap_or(name)))
        }
        Err(error) => match process.stat().ok().and_then(|stat| is_server(&stat.comm)) {
            Some(name) if is_too_long(&error) => Ok(Some(name)),
            Some(name) => Err((name, error)),
            None => Ok(None),
        },
    }
}

fn is_too_long(error: &procfs::ProcError) -> bool {
    matches!(error, procfs::ProcError::Io(error, _) if error.raw_os_error() == Some(libc::ENAMETOOLONG))
}
