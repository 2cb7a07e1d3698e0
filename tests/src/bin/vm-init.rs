//! The first process of a test VM: starts MariaDB and the agent on this kernel, checks that plaintext is
//! refused and the rest passes, says `VM-RESULT: pass` or `VM-RESULT: fail: why`, and powers off.
//!
//! `xtask/src/vm/userland.rs` says what is in the VM. Only loopback is talked to.

#![forbid(unsafe_code)]

#[path = "../vm/host.rs"]
mod host;

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::bpf::verified_instructions;
use musttls_tests::place::output;
use musttls_tests::raw::Raw;
use musttls_tests::tls::TlsClient;
use musttls_tests::wait;
use musttls_tests::wire::{ErrorPacket, LoginPacket, REFUSED_TEXT, ssl_request};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};

/// An emulated CPU takes its time.
const PATIENCE: Duration = Duration::from_mins(2);

const PORT: u16 = 3306;
/// How often a server is started anew.
const RESTARTS: usize = 10;
/// The account in the VM's data directory; its password is the same word.
const USER: &str = "tester";
const GENERAL_LOG: &str = "/var/lib/mysql/general.log";

fn main() {
    // The kernel panics when its first process ends, so nothing may end it before the power is off.
    let result = std::panic::catch_unwind(run);
    match result {
        Ok(Ok(())) => println!("VM-RESULT: pass"),
        Ok(Err(error)) => println!("VM-RESULT: fail: {}", one_line(&format!("{error:#}"))),
        Err(_) => println!("VM-RESULT: fail: the tests panicked"),
    }
    rustix::fs::sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        println!("cannot power off: {error}");
    }
    loop {
        std::thread::park();
    }
}

/// Most characters of an error that are shown: a verifier's log is long, and its end says why.
const SHOWN: usize = 1500;

fn one_line(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    let line: Vec<char> = words.join(" ").chars().collect();
    if line.len() <= SHOWN {
        return line.into_iter().collect();
    }
    let (head, tail) = (
        line.iter().take(SHOWN / 3),
        line.iter().skip(line.len() - SHOWN * 2 / 3),
    );
    head.chain(&[' ', '…', ' ']).chain(tail).collect()
}

fn run() -> Result<()> {
    prepare()?;
    println!(
        "vm: kernel {}",
        fs::read_to_string("/proc/sys/kernel/osrelease")?.trim()
    );
    let mut server = start_server()?;
    let result = check_all();
    if result.is_err() {
        println!(
            "vm: the server's general log:\n{}",
            fs::read_to_string(GENERAL_LOG)?
        );
    }
    server.kill().context("end the server")?;
    server.wait().context("wait for the server")?;
    result?;
    host::run().context("the tests of the host")
}

/// What an init system does before it starts services.
fn prepare() -> Result<()> {
    for (kind, place) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("cgroup2", "/sys/fs/cgroup"),
        ("bpf", "/sys/fs/bpf"),
        ("tmpfs", "/tmp"),
    ] {
        fs::create_dir_all(place).with_context(|| format!("create {place}"))?;
        mount(kind, place, kind, MountFlags::empty(), None)
            .with_context(|| format!("mount {kind} on {place}"))?;
    }
    output(Command::new("/bin/ip").args(["link", "set", "lo", "up"])).map(drop)
}

fn start_server() -> Result<Child> {
    let mut server = Command::new("/usr/sbin/mariadbd")
        .arg("--general-log=ON")
        .arg(format!("--general-log-file={GENERAL_LOG}"))
        .args([
            &format!("--port={PORT}"),
            "--bind-address=*",
            "--log-warnings=2",
        ])
        .stdin(Stdio::null())
        .spawn()
        .context("start mariadbd")?;
    wait::until("mariadbd to answer", PATIENCE, || {
        if let Some(status) = server.try_wait()? {
            bail!("mariadbd ended with {status}");
        }
        Ok(over_socket("SELECT 1").ok())
    })?;
    Ok(server)
}

/// Asks as `root` over the Unix socket.
fn over_socket(sql: &str) -> Result<String> {
    output(client().args(["--user=root", "--execute", sql]))
}

fn client() -> Command {
    let mut command = Command::new("/usr/bin/mariadb");
    command.args(["--batch", "--skip-column-names"]);
    command
}

/// Asks as the tester over TCP: whether it was let in, and all that the client printed.
fn over_tcp(ip: IpAddr, tls: bool, sql: &str) -> Result<(bool, String)> {
    let output = client()
        .args(["--protocol=TCP", if tls { "--ssl" } else { "--skip-ssl" }])
        .arg(format!("--host={ip}"))
        .arg(format!("--port={PORT}"))
        .arg(format!("--user={USER}"))
        .arg(format!("--password={USER}"))
        .args(["--execute", sql])
        .output()
        .context("run mariadb")?;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&text).trim().to_owned(),
    ))
}

const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

fn check_all() -> Result<()> {
    let mut failed = Vec::new();
    let mut check = |name: &str, result: Result<String>| match result {
        Ok(said) => println!("check: {name}: ok {}", one_line(&said)),
        Err(error) => {
            let why = one_line(&format!("{error:#}"));
            println!("check: {name}: FAIL {why}");
            failed.push(format!("{name}: {why}"));
        }
    };
    let others = verified_instructions()?;
    // Before the agent: that it does not find itself attached is part of what it says.
    check("doctor", doctor());
    match Agent::start("mode = \"enforce\"") {
        Ok(mut agent) => {
            check(
                "the kernel tells of the gate's programs",
                tell_instructions(&others),
            );
            check("plaintext is refused", plaintext_is_refused());
            check("TLS passes", tls_passes());
            check(
                "the record of TLS agrees with the server",
                record_agrees(&agent),
            );
            check("a Unix socket passes", over_socket("SELECT USER()"));
            check(
                "20 refusals count no handshake error",
                refusals_do_no_harm(),
            );
            check("the server never read the refused user", user_is_unknown());
            check("refusals end by themselves", refusals_land(&agent));
            // Its first session races with the end of listen(2).
            let restarts = (0..RESTARTS)
                .try_for_each(|_| restart_is_covered())
                .with_context(|| told_of_second(&agent));
            check(
                "a new listener is covered",
                restarts.map(|()| String::new()),
            );
            check("the TLS floor holds", floor_holds(&agent));
            check("observe mode passes", observe_passes(&agent));
            check("the agent ends in order", ends_in_order(&mut agent));
        }
        Err(error) => check("the agent starts", Err(error)),
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

fn doctor() -> Result<String> {
    let output = Command::new("/usr/sbin/musttls")
        .arg("doctor")
        .output()
        .context("run doctor")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    println!("{text}");
    ensure!(
        output.status.success(),
        "doctor ended with {}",
        output.status
    );
    Ok(String::new())
}

/// One line for each program that `others` has not, in the form that `xtask/src/instructions.rs` reads.
fn tell_instructions(others: &BTreeMap<String, Option<u32>>) -> Result<String> {
    let mut programs = verified_instructions()?;
    programs.retain(|name, _| !others.contains_key(name));
    for (name, count) in &programs {
        match count {
            Some(count) => println!("VM-INSTRUCTIONS: {name} {count}"),
            None => println!("VM-INSTRUCTIONS: {name} not told"),
        }
    }
    ensure!(!programs.is_empty(), "it has none");
    Ok(format!("{} programs", programs.len()))
}

fn plaintext_is_refused() -> Result<String> {
    let expected = format!("ERROR 3159 (08004): {REFUSED_TEXT}");
    for ip in LOOPBACK {
        let (is_in, text) = over_tcp(ip, false, "SELECT 1")?;
        ensure!(
            !is_in && text.lines().any(|line| line == expected),
            "from {ip}: {text}"
        );
    }
    Ok(expected)
}

fn tls_passes() -> Result<String> {
    let mut all = String::new();
    for ip in LOOPBACK {
        let (is_in, text) = over_tcp(ip, true, "SHOW STATUS LIKE 'Ssl_cipher'")?;
        let cipher = text.strip_prefix("Ssl_cipher\t").unwrap_or_default();
        ensure!(is_in && !cipher.is_empty(), "from {ip}: {text}");
        cipher.clone_into(&mut all);
    }
    Ok(all)
}

/// Ciphers of TLS 1.3 have one name with everybody.
fn record_agrees(agent: &Agent) -> Result<String> {
    let sql = "SHOW STATUS WHERE Variable_name IN ('Ssl_cipher', 'Ssl_version')";
    let (_, text) = over_tcp(Ipv4Addr::LOCALHOST.into(), true, sql)?;
    let record = agent.await_record("TLS", |record| {
        record.transport() == "tls"
            && text.contains(&format!("Ssl_cipher\t{}", record.tls_cipher()))
            && text.contains(&format!("Ssl_version\t{}", record.tls_version()))
    })?;
    Ok(format!("{} {}", record.tls_version(), record.tls_cipher()))
}

fn preauth_errors() -> Result<String> {
    over_socket("SHOW GLOBAL STATUS LIKE 'Aborted_connects_preauth'")
}

fn login() -> Vec<u8> {
    LoginPacket::new(USER).packet_41()
}

fn refusals_do_no_harm() -> Result<String> {
    let before = preauth_errors()?;
    for ip in LOOPBACK {
        for _ in 0..10 {
            let mut raw = Raw::connect_here(SocketAddr::new(ip, PORT))?;
            raw.greeting()?;
            raw.send(&login())?;
            let next = raw.receive()?;
            let expected = Some(ErrorPacket::refusal(2, Some("08004")));
            ensure!(next.error() == expected, "from {ip}: {next:?}");
        }
    }
    wait::until_true("the server to hold no connection", PATIENCE, || {
        let sql = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE USER <> 'root'";
        Ok(over_socket(sql)?.trim() == "0")
    })?;
    let after = preauth_errors()?;
    ensure!(before == after, "`{before}` became `{after}`");
    Ok(after)
}

/// Only its TLS logins are in the log.
fn user_is_unknown() -> Result<String> {
    let log = fs::read_to_string(GENERAL_LOG).context("read the general log")?;
    let logins: Vec<_> = log
        .lines()
        .filter(|line| line.contains(&format!("{USER}@")) || line.contains(&format!("'{USER}'")))
        .filter(|line| !line.contains("using SSL/TLS"))
        .collect();
    ensure!(logins.is_empty(), "{logins:?}");
    Ok(String::new())
}

fn refusals_land(agent: &Agent) -> Result<String> {
    let records = agent.await_records("22 refusals", 22, Record::is_denied)?;
    for record in &records {
        let outcome = record.text("/unmapped/refusal/outcome");
        ensure!(outcome == "landed", "{}", record.line);
    }
    let last = records.last().context("no record")?;
    Ok(last.at("/unmapped/refusal").to_string())
}

/// A second server, with its own port, and nothing but the first session to judge.
fn restart_is_covered() -> Result<()> {
    let place = Path::new("/tmp/second");
    output(
        Command::new("/bin/cp")
            .args(["-a", "/var/lib/mysql"])
            .arg(place),
    )?;
    let mut second = Command::new("/usr/sbin/mariadbd")
        .args(["--datadir=/tmp/second", "--port=3307", "--bind-address=*"])
        .args(["--socket=/tmp/second.sock", "--pid-file=/tmp/second.pid"])
        .stdin(Stdio::null())
        .spawn()
        .context("start a second mariadbd")?;
    let to = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 3307);
    let first = wait::until("the second mariadbd to listen", PATIENCE, || {
        let Ok(mut raw) = Raw::connect_here(to) else {
            return Ok(None);
        };
        raw.greeting()?;
        raw.send(&login())?;
        Ok(Some(raw.receive()?))
    });
    second.kill().context("end the second mariadbd")?;
    second.wait().context("wait for the second mariadbd")?;
    let first = first?;
    ensure!(
        first.error() == Some(ErrorPacket::refusal(2, Some("08004"))),
        "{first:?}"
    );
    fs::remove_dir_all(place).context("remove the second mariadbd's data")
}

/// What the agent recorded of the second server last.
fn told_of_second(agent: &Agent) -> String {
    let records = agent.records().unwrap_or_default();
    let is_of_second = |record: &&Record| record.number("/dst_endpoint/port") == Some(3307);
    let last = records.iter().rfind(is_of_second);
    last.map_or("no record".to_owned(), |record| record.line.clone())
}

/// At the `ClientHello`, which is refused with an alert, and at the `ServerHello`.
fn floor_holds(agent: &Agent) -> Result<String> {
    const PROTOCOL_VERSION: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 70];
    agent.set_policy("mode = \"enforce\"\nrequire = \"tls1.3\"")?;
    let (_, hello) = TlsClient::v1_2()?.begin()?;
    for ip in LOOPBACK {
        let mut raw = Raw::connect_here(SocketAddr::new(ip, PORT))?;
        raw.greeting()?;
        raw.send(&ssl_request())?;
        raw.send(&hello)?;
        let (bytes, end) = raw.read_to_end()?;
        ensure!(bytes == PROTOCOL_VERSION, "from {ip}: {bytes:x?}, {end:?}");
        let (is_in, text) = over_tcp(ip, true, "SHOW STATUS LIKE 'Ssl_version'")?;
        ensure!(is_in && text.contains("TLSv1.3"), "from {ip}: {text}");
    }
    agent
        .set_policy("mode = \"enforce\"\nrefused_ciphers = [\"0x1301\", \"0x1302\", \"0x1303\"]")?;
    for ip in LOOPBACK {
        let (is_in, text) = over_tcp(ip, true, "SELECT 1")?;
        ensure!(
            !is_in,
            "from {ip}: let in by a refused cipher suite: {text}"
        );
    }
    Ok(String::new())
}

fn observe_passes(agent: &Agent) -> Result<String> {
    agent.set_policy("mode = \"observe\"")?;
    for ip in LOOPBACK {
        let (is_in, text) = over_tcp(ip, false, "SELECT 'in'")?;
        ensure!(is_in && text.contains("in"), "from {ip}: {text}");
    }
    agent.await_records("plaintext", 2, |record| record.action() == Some(3))?;
    Ok(String::new())
}

fn ends_in_order(agent: &mut Agent) -> Result<String> {
    let status = agent.terminate()?;
    ensure!(
        status.code() == Some(0),
        "it ended with {status}:\n{}",
        agent.log()?
    );
    Ok(String::new())
}
