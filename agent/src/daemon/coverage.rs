//! Which servers there are, and whether each of their listeners is covered.

use std::time::Duration;

use super::Daemon;
use super::events::notify;
use crate::clock;
use crate::datapath::UnixProbe;
use crate::error;
use crate::servers::{self, NewListener, ScanError, Search, Server};

/// When the service manager is told that the agent is ready, covered or not: what waits for it, a server among them, waits no longer,
/// and the agent is not ended for being late.
const READY_AT_LAST: Duration = Duration::from_secs(10);

/// Processes and descriptors that are looked at before other events get their turn: some milliseconds.
const LOOK_STEP: usize = 2000;

/// A look for servers that has begun.
pub(super) struct Look {
    search: Search,
    why: Why,
    /// What it has taken so far.
    cpu: Duration,
}

/// Why servers are looked for.
pub(super) enum Why {
    /// It is time again.
    Routine,
    /// It is not known whose these listeners are.
    New(Vec<NewListener>),
}

/// A look that is over.
pub(super) struct Looked {
    /// What it has taken of a CPU.
    pub(super) cpu: Duration,
    /// Whether new listeners have been named.
    pub(super) was_for_new: bool,
}

impl Daemon {
    /// Looks for servers, among all processes or those that are likely to be new, and tags their listeners.
    pub(super) fn refresh(&mut self, among_all: bool) {
        // What that has found by now is older than what this one will find.
        if let Some(Look {
            why: Why::New(listeners),
            ..
        }) = self.look.take()
        {
            self.new_listeners.extend(listeners);
        }
        match self.finder.find(among_all) {
            Ok((found, errors)) => self.take_over_servers(found, &errors),
            Err(error) => self.not_listed(&error),
        }
    }

    /// Begins to look for servers without holding up what else is to be done. Returns the look if it is over by then.
    pub(super) fn begin_look(&mut self, why: Why) -> Option<Looked> {
        let began = clock::thread_cpu();
        let among_all = matches!(why, Why::New(_));
        match self.finder.begin(among_all) {
            Ok(search) => {
                self.look = Some(Look {
                    search,
                    why,
                    cpu: Duration::ZERO,
                });
                self.go_on_looking(began)
            }
            Err(error) => {
                self.not_listed(&error);
                Some(Looked {
                    cpu: clock::thread_cpu().saturating_sub(began),
                    was_for_new: among_all,
                })
            }
        }
    }

    /// Goes on with the look that has begun, or begins one for the listeners that wait for it.
    pub(super) fn step_look(&mut self) -> Option<Looked> {
        if self.look.is_some() {
            self.go_on_looking(clock::thread_cpu())
        } else if self.new_listeners.is_empty() {
            None
        } else {
            let new = std::mem::take(&mut self.new_listeners);
            self.begin_look(Why::New(new))
        }
    }

    /// Whether a look goes on, or is to.
    pub(super) const fn is_looking(&self) -> bool {
        self.look.is_some() || !self.new_listeners.is_empty()
    }

    fn go_on_looking(&mut self, began: Duration) -> Option<Looked> {
        let mut look = self.look.take()?;
        let found = self.finder.step(&mut look.search, LOOK_STEP);
        let is_over = found.is_some();
        let was_for_new = matches!(look.why, Why::New(_));
        if let Some((found, errors)) = found {
            self.take_over_servers(found, &errors);
            match std::mem::replace(&mut look.why, Why::Routine) {
                Why::New(listeners) => self.name_listeners(&listeners),
                Why::Routine => self.poll_unix(),
            }
        }
        look.cpu += clock::thread_cpu().saturating_sub(began);
        let cpu = look.cpu;
        if is_over {
            return Some(Looked { cpu, was_for_new });
        }
        self.look = Some(look);
        None
    }

    fn not_listed(&mut self, error: &std::io::Error) {
        let error = format!("the processes of this host cannot be listed in /proc: {error}");
        if self.scan_errors.as_slice() != [error.as_str()] {
            tracing::error!(
                help = "let the agent see all of /proc (no hidepid=, no ProtectProc= in the unit)",
                "{error}"
            );
        }
        self.scan_errors = vec![error];
    }

    /// Takes over what a look has found.
    fn take_over_servers(&mut self, mut found: Vec<Server>, errors: &[ScanError]) {
        self.tagger.tag(&mut found, &self.config);
        let errors: Vec<String> = errors.iter().map(ScanError::to_string).collect();
        if errors != self.scan_errors {
            for error in &errors {
                tracing::error!("{error}");
            }
            self.scan_errors = errors;
        }
        if self.registry.replace(found) {
            for server in self.registry.servers() {
                for listener in &server.listeners {
                    tracing::info!(
                        pid = server.pid,
                        program = server.program,
                        address = %listener.address,
                        protocol = listener.protocol.as_str(),
                        covered = listener.is_covered(),
                        "server"
                    );
                }
            }
        }
        self.older.look(&self.registry.servers());
        self.look_beside();
    }

    /// Looks for ways past the gate; the journal gets what has come and what has gone.
    fn look_beside(&mut self) {
        let servers = self.registry.servers();
        let look = self
            .watch
            .look(&servers.iter().map(|server| &**server).collect::<Vec<_>>());
        for alarm in look.alarms.difference(&self.watch.last.alarms) {
            tracing::warn!(
                kind = alarm.kind.as_str(),
                means = alarm.kind.meaning(),
                help = alarm.kind.remedy(),
                "bytes can get past the gate: {alarm}"
            );
        }
        for alarm in self.watch.last.alarms.difference(&look.alarms) {
            tracing::warn!(
                kind = alarm.kind.as_str(),
                "bytes can no longer get past the gate so: {alarm}"
            );
        }
        for (kind, why) in look.unchecked.difference(&self.watch.last.unchecked) {
            tracing::warn!(
                kind = kind.as_str(),
                "a way past the gate is not looked for: {why}"
            );
        }
        self.watch.last = look;
    }

    /// Takes the listeners that are new, and finds out whose they are.
    pub(super) fn look_for_new(&mut self) -> Option<Looked> {
        while let Some(record) = self.listens.get_mut().next_record() {
            match record {
                Ok(record) => self.new_listeners.push(NewListener::from(&record.event)),
                Err(error) => self.recorder.unreadable(&error),
            }
        }
        self.step_look()
    }

    /// Names listeners: a server's own, or none of a server's. All processes have been looked at since they came.
    fn name_listeners(&mut self, listeners: &[NewListener]) {
        let servers = self.registry.servers();
        let of_servers = || servers.iter().flat_map(|server| &server.listeners);
        // The agent's own is judged, too.
        let known: Vec<u64> = of_servers()
            .filter_map(|listener| listener.cookie)
            .chain(self.canary.cookie())
            .collect();
        // A new listener stays pending, and is judged if it greets as a server does, where it may be a server's: of a server
        // that cannot be looked into, or whose listener at that port is not covered; or to be passed on to one, by the service
        // manager or at a port that the configuration names.
        let all_known = self.scan_errors.is_empty();
        let of_init = servers::ports_of_init();
        for &new in listeners {
            let (cookie, port) = (new.cookie, new.port);
            // If it cannot be found out which are the service manager's, any may be.
            let may_be_a_servers = !all_known
                || of_servers().any(|listener| {
                    listener.uncovered.is_some() && listener.address.port() == port
                });
            let may_be_passed_on = self.config.names_port(port)
                || of_init.as_ref().map_or(true, |ports| ports.contains(&port));
            if may_be_a_servers || known.contains(&cookie) || may_be_passed_on {
                continue;
            }
            if let Err(error) = self.tagger.name(new) {
                tracing::warn!(
                    cookie,
                    error = error::text(&error),
                    help = "if clients of a service that began to listen just now hang, restart that service",
                    "a new listener stays pending: what may be a login is held there until the server greets"
                );
            }
        }
    }

    /// Finds Unix sessions where the kernel does not report them.
    fn poll_unix(&mut self) {
        if matches!(self.unix_probe, UnixProbe::Polling(_)) {
            for session in self.poller.look(&self.registry.servers()) {
                self.recorder.unix(&session);
            }
        }
    }

    pub(super) fn announce(&self) {
        let coverage = self.coverage();
        tracing::info!(
            policy = %self.path.display(),
            mode = self.config.mode_of(0).as_str(),
            listeners = coverage.listeners,
            covered = coverage.covered,
            unix = coverage.unix_sessions,
            "the gate is on"
        );
    }

    /// Tells the service manager once that every listener found is covered, or that some are not to be.
    pub(super) fn tell_if_ready(&mut self) {
        let Some(since) = self.unready_since else {
            return;
        };
        let coverage = self.coverage();
        let is_covered = coverage.covered == coverage.listeners && coverage.errors.is_empty();
        if !is_covered {
            if since.elapsed() < READY_AT_LAST {
                return;
            }
            tracing::error!(
                listeners = coverage.listeners,
                covered = coverage.covered,
                errors = coverage.errors.len(),
                help = "musttls status says which listeners are not covered, and why",
                "not every server is covered"
            );
        }
        self.unready_since = None;
        notify(&[sd_notify::NotifyState::Ready]);
    }
}
