//! What the agent may do, and who may do something to it.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};

use anyhow::Context as _;
use musttls_tests::agent::{self, Agent, Home};
use musttls_tests::audit::Record;
use musttls_tests::bpf::Link;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::netns::Net;
use musttls_tests::place::{self, Scratch};
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{Options, Product, SCHEMA, Server};
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{LoginPacket, REFUSED};
use rustix::process::{Pid, Signal, kill_process};

const ENFORCE: &str = "persist = true\nmode = \"enforce\"";
const OBSERVE: &str = "persist = true\nmode = \"observe\"";
/// `nobody`.
const NOBODY: u32 = 65534;

/// What the agent keeps, by the names and numbers of `linux/capability.h`.
const DAC_READ_SEARCH: (&str, u32) = ("CAP_DAC_READ_SEARCH", 2);
const NET_ADMIN: (&str, u32) = ("CAP_NET_ADMIN", 12);
const SYS_PTRACE: (&str, u32) = ("CAP_SYS_PTRACE", 19);
const SYS_ADMIN: (&str, u32) = ("CAP_SYS_ADMIN", 21);
const BPF: (&str, u32) = ("CAP_BPF", 39);

/// The lines of `/proc/PID/task/TID/status` of each thread (proc(5)).
fn threads(agent: &Agent) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
    let status = |task: PathBuf| fs::read_to_string(task.join("status")).unwrap();
    let line = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_owned(), value.trim().to_owned()))
    };
    tasks
        .map(|task| {
            status(task.unwrap().path())
                .lines()
                .filter_map(line)
                .collect()
        })
        .collect()
}

fn mask(capabilities: &[(&str, u32)]) -> String {
    let bits: u64 = capabilities.iter().map(|(_, number)| 1 << number).sum();
    format!("{bits:016x}")
}

/// That each thread has these capabilities and no others, a filter of system calls, and no way to more.
fn is_confined(agent: &Agent, capabilities: &[(&str, u32)], bounding: &str) {
    let threads = threads(agent);
    // The event loop, the refusals, the answers, the history.
    assert_eq!(threads.len(), 4, "{threads:?}");
    let (all, none) = (mask(capabilities), mask(&[]));
    for thread in threads {
        for (line, value) in [
            ("CapInh", none.as_str()),
            ("CapPrm", &all),
            ("CapEff", &all),
            ("CapBnd", bounding),
            ("CapAmb", &none),
            ("NoNewPrivs", "1"),
            ("Seccomp", "2"),
        ] {
            assert_eq!(thread[line], value, "{line} of {thread:?}");
        }
    }
    let confined = agent.status().unwrap()["confined"].clone();
    let names: Vec<_> = capabilities.iter().map(|(name, _)| *name).collect();
    assert_eq!(confined["capabilities"], serde_json::json!(names));
    assert_eq!(confined["seccomp"], true);
    let summary = confined["summary"].as_str().unwrap();
    assert!(
        agent
            .log()
            .unwrap()
            .contains(&format!("confined: {summary}"))
    );
}

/// The error's number that a plaintext login of the server's open user gets; none if it is let in.
fn plaintext(server: &Server, net: &Net) -> Option<u16> {
    let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
    raw.send(&server.open_login().packet_41()).unwrap();
    raw.receive().unwrap().error_number()
}

#[test]
fn agent_of_root_keeps_only_what_it_uses() {
    let agent = Agent::start(ENFORCE).unwrap();
    let kept = [DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, SYS_ADMIN, BPF];
    is_confined(&agent, &kept, &mask(&kept));
    assert!(
        agent.status().unwrap()["unchecked"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}

/// `CapabilityBoundingSet=` of the packaged unit: names without `CAP_`, in small letters.
fn of_the_unit() -> Vec<String> {
    let unit = include_str!("../../packaging/systemd/musttls.service");
    let names = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="))
        .unwrap();
    names
        .split_whitespace()
        .map(|name| name.strip_prefix("CAP_").unwrap().to_lowercase())
        .collect()
}

/// With what the unit gives, and what is left of it after the start: everything that a running agent does.
#[test]
fn what_the_unit_gives_is_enough_for_all_that_a_running_agent_does() {
    let set = format!("-all,+{}", of_the_unit().join(",+"));
    let home =
        Home::new()
            .unwrap()
            .through(&["setpriv", "--inh-caps=-all", "--bounding-set", &set]);
    home.configure(ENFORCE).unwrap();
    let mut agent = Agent::start_in(home).unwrap();
    let kept = [DAC_READ_SEARCH, NET_ADMIN, SYS_PTRACE, BPF];
    // CAP_PERFMON is given up; without CAP_SETPCAP it stays in a set that nothing takes from any more.
    let perfmon = ("CAP_PERFMON", 38);
    let given = mask(&[&kept[..], &[perfmon]].concat());
    is_confined(&agent, &kept, &given);
    let unchecked = agent.status().unwrap()["unchecked"].clone();
    assert_eq!(
        unchecked,
        serde_json::json!(["sockmap: needs CAP_SYS_ADMIN"])
    );

    // A server that starts later, in another network namespace, and runs as the user mysql.
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let refused = |agent: &Agent, number: usize| {
        assert_eq!(plaintext(&server, &net), Some(REFUSED));
        let records = agent
            .await_records("the refusal", number, Record::is_denied)
            .unwrap();
        for record in records {
            let outcome = record.text("/unmapped/refusal/outcome");
            assert_eq!(outcome, "landed", "{}", record.line);
        }
    };
    refused(&agent, 1);
    let login = Login::new(&server, &net.app, Tls::Required);
    let answer = Client::PyMySql.login(&net.app, &login).unwrap();
    assert!(answer.is_in(), "{}", answer.text);

    agent.set_policy(OBSERVE).unwrap();
    assert_eq!(plaintext(&server, &net), None);
    agent.set_policy(ENFORCE).unwrap();
    refused(&agent, 2);

    // Somebody detaches the gate, and takes away its pin.
    let pin = agent::pinned().unwrap().join("links/on_ingress");
    Link::pinned(&pin).unwrap().detach().unwrap();
    let put_back = |fault: &str| {
        wait::until_true("the gate to be put back", PATIENCE, || {
            Ok(agent.status()?["gate_faults"][fault] == 1)
        })
        .unwrap();
        assert!(pin.exists());
    };
    put_back("detached");
    fs::remove_file(&pin).unwrap();
    put_back("unpinned");
    refused(&agent, 3);

    // The audit file is moved away, as logrotate does.
    let moved = agent.home().audit().with_extension("1");
    fs::rename(agent.home().audit(), moved).unwrap();
    agent.signal(Signal::USR1).unwrap();
    wait::until_true("a new audit file", PATIENCE, || {
        Ok(agent.home().audit().exists())
    })
    .unwrap();
    refused(&agent, 1);

    assert!(agent.terminate().unwrap().success());
    agent.start_again().unwrap();
    is_confined(&agent, &kept, &given);
    refused(&agent, 2);
    let counts = evidence::counts(&server, net.app.v4()).unwrap();
    assert_eq!(counts.handshake_errors, 0);
    let log = agent.log().unwrap();
    assert!(!log.contains("ERROR"), "{log}");
}

struct FakeServer {
    child: Child,
    _directory: Scratch,
}

impl FakeServer {
    /// In the agent's own network namespace, which is as far as `SOCK_DESTROY` reaches.
    fn start(port: u16) -> Self {
        let directory = Scratch::new().unwrap();
        let (program, file) = (directory.join("mysqld"), directory.join("heard"));
        fs::copy(env!("CARGO_BIN_EXE_fake-mysqld"), &program).unwrap();
        let child = Command::new(program)
            .args([port.to_string(), file.display().to_string()])
            .spawn()
            .unwrap();
        wait::until_true("the scripted server", PATIENCE, || Ok(file.exists())).unwrap();
        Self {
            child,
            _directory: directory,
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The last means of a refusal, `SOCK_DESTROY`: a socket of netlink, which the filter allows for this alone.
#[test]
fn server_that_does_not_let_go_is_reset() {
    let port = free_port();
    let server = FakeServer::start(port);
    let agent = Agent::start(&format!(
        "{ENFORCE}\n[[server]]\nname = \"fake\"\nports = [{port}]\n"
    ))
    .unwrap();
    let mut raw = Raw::connect_here((Ipv4Addr::LOCALHOST, port).into()).unwrap();
    raw.greeting().unwrap();
    signal(server.child.id(), Signal::STOP);
    raw.send(&LoginPacket::new("anybody").packet_41()).unwrap();
    assert!(raw.receive().unwrap().error().is_some());
    // Its socket is in the hands of a process that stands still.
    let end = raw.receive().unwrap();
    assert!(
        matches!(end, Next::Reset),
        "{end:?}: {}",
        agent.log().unwrap()
    );
    agent
        .await_record("the refusal", Record::is_denied)
        .unwrap();
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

#[test]
fn agent_that_crashes_leaves_no_dump() {
    // Each may leave as large a dump as it likes.
    let largest = ["prlimit", "--core=unlimited"];
    let scratch = Scratch::new().unwrap();
    let mut other = Command::new(largest[0])
        .args([largest[1], "sleep", "60"])
        .current_dir(scratch.path())
        .spawn()
        .unwrap();
    wait::until_true("sleep", PATIENCE, || {
        let name = fs::read_to_string(format!("/proc/{}/comm", other.id()))?;
        Ok(name == "sleep\n")
    })
    .unwrap();
    signal(other.id(), Signal::ABORT);
    let ended = other.wait().unwrap();
    assert!(
        ended.core_dumped(),
        "{ended}: no process leaves a dump on this machine (core(5)), which proves nothing"
    );

    let home = Home::new().unwrap().through(&largest);
    home.configure("mode = \"observe\"").unwrap();
    let mut agent = Agent::start_in(home).unwrap();
    signal(agent.pid(), Signal::ABORT);
    let ended = wait::until("the agent to end", PATIENCE, || agent.ended()).unwrap();
    assert_eq!(ended.signal(), Some(Signal::ABORT.as_raw()));
    assert!(!ended.core_dumped(), "{ended}");
}

#[test]
fn nobody_but_root_may_change_it_or_take_it_off() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    let home = agent.home();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let lock = Path::new("/run/musttls/agent.lock");
    for (path, expected) in [
        (home.control().as_path(), 0o600),
        (lock, 0o600),
        (home.audit(), 0o640),
        (Path::new("/sys/fs/bpf/musttls"), 0o700),
        (&agent::pinned().unwrap(), 0o700),
    ] {
        assert_eq!(mode(path), expected, "{}", path.display());
    }

    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let fails = |args: &[&str], why: &str| {
        let output = home.musttls_of(NOBODY, args).unwrap();
        let said = said(&output);
        assert!(
            !output.status.success() && said.contains(why),
            "{args:?}: {said}"
        );
    };
    // Should the file system let them in, the agent does not.
    home.configure(OBSERVE).unwrap();
    for why in ["Permission denied", "user 65534 may not control the agent"] {
        fails(&["reload"], why);
        fails(&["status"], why);
        fs::set_permissions(home.control(), fs::Permissions::from_mode(0o666)).unwrap();
    }
    fails(&["disarm"], "Permission denied");
    let pid = agent.pid();
    for command in [
        format!("kill -HUP {pid}"),
        format!("kill -KILL {pid}"),
        format!("flock --nonblock {} true", lock.display()),
        format!("cat {}", home.audit().display()),
        format!("cat /proc/{pid}/environ"),
    ] {
        let mut shell = place::of_user(NOBODY);
        let output = shell.args(["sh", "-c", &command]).output().unwrap();
        let said = said(&output).to_lowercase();
        assert!(
            !output.status.success() && (said.contains("denied") || said.contains("not permitted")),
            "{command}: {said}"
        );
    }
    let policy = agent.status().unwrap()["policy"].clone();
    assert_eq!(
        (&policy["mode"], &policy["version"]),
        (&"enforce".into(), &1.into())
    );
    assert_eq!(plaintext(&server, &net), Some(REFUSED));
}

#[test]
fn members_of_the_group_ask_and_change_nothing() {
    let home = Home::new().unwrap();
    home.configure("mode = \"observe\"").unwrap();
    // The last section of the file is [control].
    let mut text = fs::read_to_string(home.config()).unwrap();
    text.push_str("group = \"daemon\"\n");
    fs::write(home.config(), text).unwrap();
    let agent = Agent::start_in(home).unwrap();
    let home = agent.home();
    let socket = fs::metadata(home.control()).unwrap();
    assert_eq!(socket.permissions().mode() & 0o7777, 0o660);
    // Its directory is the test's own: members of the group find the socket.
    fs::set_permissions(
        home.control().parent().unwrap(),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();

    let run = |command: Command, args: &[&str]| {
        let output = home.musttls_as(command, args).unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    };
    let member = || place::of_user_in(NOBODY, socket.gid());
    for args in [&["status"][..], &["kill-plaintext"]] {
        let (is_done, said) = run(member(), args);
        assert!(is_done, "{args:?}: {said}");
    }
    for args in [&["reload"][..], &["kill-plaintext", "--execute"]] {
        let (is_done, said) = run(member(), args);
        assert!(
            !is_done && said.contains("user 65534 may not change anything; root may"),
            "{args:?}: {said}"
        );
    }
    let (is_done, said) = run(place::of_user(NOBODY), &["status"]);
    assert!(!is_done && said.contains("Permission denied"), "{said}");
    assert_eq!(agent.status().unwrap()["policy"]["version"], 1);
}

#[test]
fn group_that_is_not_there_is_an_error_of_the_start() {
    let home = Home::new().unwrap();
    home.configure("").unwrap();
    let mut text = fs::read_to_string(home.config()).unwrap();
    text.push_str("group = \"no-such-group\"\n");
    fs::write(home.config(), text).unwrap();
    let output = home.musttls(&["run"]).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success()
            && said.contains("the group no-such-group of the control socket")
            && said.contains("groupadd --system"),
        "{said}"
    );
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The page of metrics.
fn scrape(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

#[test]
fn metrics_name_no_user_and_no_client() {
    let net = Net::new().unwrap();
    let server = Server::start(&net.db, &Options::new(Product::MariaDb)).unwrap();
    let port = free_port();
    let (refused, excepted, program) = ("asks_in_vain", "asks_and_gets", "program-that-asks");
    let (owner, reason) = ("dba@example.com", "cannot speak TLS");
    let policy = format!(
        "{ENFORCE}\n[metrics]\nlisten = \"127.0.0.1:{port}\"\n[[exception]]\nname = \"legacy\"\nsource = [\"{}/32\"]\n\
         user = [\"{excepted}\"]\nexpires = 2999-01-01\nowner = \"{owner}\"\nreason = \"{reason}\"\n",
        net.app.v4()
    );
    let agent = Agent::start(&policy).unwrap();
    let ask = |user: &str, to: IpAddr| {
        let login = LoginPacket::new(user)
            .schema(SCHEMA)
            .attribute("program_name", program);
        let (mut raw, _) = Raw::greeted(&net.app, server.at(to)).unwrap();
        raw.send(&login.packet_41()).unwrap();
        // Of the server, which does not know the user, or of the agent.
        let error = raw.receive().unwrap().error().unwrap();
        (
            error.number == REFUSED,
            raw.local().unwrap().ip().to_string(),
        )
    };
    let (is_refused, v4) = ask(refused, net.app.db_v4());
    assert!(is_refused);
    let (is_refused, v6) = ask(refused, net.app.db_v6());
    assert!(is_refused);
    let (is_refused, _) = ask(excepted, net.app.db_v4());
    assert!(!is_refused);
    let records = agent.await_records("all of them", 3, Record::is_session);
    let users: BTreeSet<String> = records
        .unwrap()
        .iter()
        .map(|record| record.user().to_owned())
        .collect();
    assert_eq!(users, [refused, excepted].map(str::to_owned).into());

    // Counted is all of it.
    let counts = ["outcome=\"denied\"} 2", "outcome=\"excepted\"} 1"];
    let page = wait::until("the counts of a tick", PATIENCE, || {
        let page = scrape(port);
        let all = counts.iter().all(|count| page.contains(count));
        Ok(all.then_some(page))
    })
    .with_context(|| scrape(port))
    .unwrap();
    for word in [refused, excepted, program, SCHEMA, owner, reason, &v4, &v6] {
        assert!(!page.contains(word), "{word} in:\n{page}");
    }
}
