//! The gate without its agent: killed, ended, started again.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use musttls_tests::agent::{self, Agent};
use musttls_tests::attack;
use musttls_tests::audit::Record;
use musttls_tests::bpf::{Hook, Link, Program};
use musttls_tests::evidence;
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{OPEN_USER, Options, Product, Server};
use musttls_tests::site::Site;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::REFUSED;

const ENFORCE: &str = "persist = true\nmode = \"enforce\"";
/// `connect_timeout`: longer than an agent needs to start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long nothing happens to a session that is held.
const A_WHILE: Duration = Duration::from_millis(500);

fn options(product: Product) -> Options {
    let patience = wait::here(CONNECT_TIMEOUT).as_secs();
    Options::new(product).with(&format!("--connect-timeout={patience}"))
}

fn site(product: Product) -> Site {
    Site::new(&options(product)).unwrap()
}

fn is_let_in(site: &Site) -> bool {
    site.plaintext().unwrap().receive().unwrap().is_ok()
}

fn is_refused(site: &Site) -> bool {
    let answer = site.plaintext().unwrap().receive().unwrap();
    answer.error().is_some_and(|error| error.number == REFUSED)
}

/// A plaintext login that comes to nothing.
fn held(site: &Site) -> Raw {
    let mut raw = site.plaintext().unwrap();
    let next = raw.receive_within(wait::here(A_WHILE)).unwrap();
    assert!(matches!(next, Next::Silence), "{next:?}");
    raw
}

fn exception(site: &Site, user: &str, expires: &str) -> String {
    format!(
        "{ENFORCE}\n[[exception]]\nname = \"legacy\"\nsource = [\"{}/32\"]\nuser = [\"{user}\"]\n\
         expires = {expires}\nowner = \"dba@example.com\"\nreason = \"old\"\n",
        site.net.app.v4()
    )
}

#[test]
fn gate_of_a_killed_agent_refuses_and_the_next_agent_tells_the_clients() {
    for product in Product::all() {
        let site = site(product);
        let mark = evidence::mark(&site.server).unwrap();
        let mut agent = Agent::start(ENFORCE).unwrap();
        // More than 1 if the clock was set meanwhile.
        let version = |agent: &Agent| {
            agent.status().unwrap()["policy"]["version"]
                .as_u64()
                .unwrap()
        };
        let former = version(&agent);
        assert!(is_refused(&site));
        agent.kill().unwrap();
        let mut held = held(&site);
        site.tls_passes().unwrap();
        let counts = evidence::counts(&site.server, site.net.app.v4()).unwrap();

        agent.start_again().unwrap();
        let answer = held.receive().unwrap();
        assert_eq!(answer.error_number(), Some(REFUSED), "{answer:?}");
        assert!(is_refused(&site));
        site.tls_passes().unwrap();
        agent
            .await_records("both refusals of now", 3, Record::is_denied)
            .unwrap();
        let gap = agent
            .await_record("of the time without an agent", |record| {
                record.text("/class_name") == "Application Lifecycle"
            })
            .unwrap();
        // Those of the agent's last second may be among them.
        for outcome in ["denied", "secure"] {
            let count = gap.number(&format!("/unmapped/sessions/{outcome}"));
            assert!(count >= Some(1), "{outcome}: {}", gap.line);
        }
        assert_eq!(
            gap.text("/policy/version"),
            former.to_string(),
            "{}",
            gap.line
        );
        assert!(
            version(&agent) > former,
            "no version stands for two policies"
        );
        assert_eq!(
            evidence::logins(&site.server, OPEN_USER, mark).unwrap(),
            [""; 0]
        );
        let after = evidence::counts(&site.server, site.net.app.v4()).unwrap();
        assert_eq!(after.handshake_errors, counts.handshake_errors);
    }
}

#[test]
fn server_that_starts_while_no_agent_runs_is_covered() {
    let mut site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    agent.kill().unwrap();
    site.server.kill().unwrap();
    site.server = Server::start(&site.net.db, &options(Product::MariaDb)).unwrap();
    drop(held(&site));
    site.tls_passes().unwrap();
    agent.start_again().unwrap();
    assert!(is_refused(&site));
    site.tls_passes().unwrap();
}

#[test]
fn orderly_end_leaves_the_gate_on_and_disarm_takes_it_off() {
    let site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    assert!(is_refused(&site));
    let output = agent.home().musttls(&["disarm"]).unwrap();
    assert!(!output.status.success(), "an agent runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&format!("process {}", agent.pid())), "{said}");
    assert!(is_refused(&site));

    assert!(agent.terminate().unwrap().success());
    assert!(agent.log().unwrap().contains("the gate stays on"));
    drop(held(&site));
    let status = agent.home().musttls(&["status"]).unwrap();
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(said.contains("The gate is on all the same"), "{said}");

    assert!(agent.home().disarm().unwrap().contains("the gate is off"));
    assert!(is_let_in(&site));
    assert!(agent.home().disarm().unwrap().contains("no gate was on"));
}

#[test]
fn gate_that_is_not_to_outlive_the_agent_is_taken_over_and_ends_with_it() {
    let site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    agent.kill().unwrap();
    let mut held = held(&site);
    agent
        .home()
        .configure("persist = false\nmode = \"enforce\"")
        .unwrap();
    agent.start_again().unwrap();
    assert_eq!(held.receive().unwrap().error_number(), Some(REFUSED));
    assert!(is_refused(&site));
    agent.kill().unwrap();
    assert!(is_let_in(&site));
}

#[test]
fn exceptions_hold_and_end_without_an_agent() {
    let site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    let policy = exception(
        &site,
        OPEN_USER,
        &wait::utc(SystemTime::now() + wait::here(Duration::from_secs(6))).unwrap(),
    );
    agent.set_policy(&policy).unwrap();
    agent.kill().unwrap();
    assert!(is_let_in(&site), "the exception holds");
    wait::until_true("the exception to end", PATIENCE, || {
        let answer = site
            .plaintext()
            .unwrap()
            .receive_within(wait::here(A_WHILE))?;
        Ok(matches!(answer, Next::Silence))
    })
    .unwrap();
    agent.start_again().unwrap();
    let allowed = agent
        .await_record("of the login that was allowed", |record| {
            record.text("/unmapped/verdict") == "excepted"
        })
        .unwrap();
    assert_eq!(allowed.rule(), "legacy", "{}", allowed.line);
    assert!(is_refused(&site));
}

/// What root can do to the gate by mistake or on purpose is undone within a second or two, and told.
#[test]
fn gate_that_somebody_changes_is_put_back() {
    let site = site(Product::MariaDb);
    let agent = Agent::start(ENFORCE).unwrap();
    let links = agent::pinned().unwrap().join("links");
    let faults = |fault: &str| agent.status().unwrap()["gate_faults"][fault].as_u64();
    let ingress = links.join("on_ingress");
    for (fault, change) in [
        (
            "detached",
            (|path| Link::pinned(path).unwrap().detach().unwrap()) as fn(&Path),
        ),
        ("replaced", |path| {
            let empty = Program::empty(Hook::Ingress).unwrap();
            Link::pinned(path).unwrap().replace(&empty).unwrap();
        }),
        ("unpinned", |path| fs::remove_file(path).unwrap()),
    ] {
        assert_eq!(faults(fault), Some(0));
        change(&ingress);
        wait::until_true("the gate to be put back", PATIENCE, || {
            Ok(faults(fault) == Some(1))
        })
        .unwrap();
        assert!(is_refused(&site), "{fault}");
        let record = agent
            .await_record("of what was done", |record| {
                record.text("/unmapped/fault") == fault
            })
            .unwrap();
        assert_eq!(
            record.text("/unmapped/program"),
            "on_ingress",
            "{}",
            record.line
        );
        assert!(ingress.exists(), "{fault}");
    }
    site.tls_passes().unwrap();
    let faults = agent.status().unwrap()["gate_faults"].clone();
    let once = serde_json::json!({ "detached": 1, "replaced": 1, "unpinned": 1 });
    assert_eq!(faults, once, "what was put back stays");
}

/// What is pinned, as if an agent of another release had: its records cannot be taken over. Returns where it is.
fn of_another_release() -> PathBuf {
    let own = agent::pinned().unwrap();
    let other = own.with_file_name("abi-60000");
    fs::rename(&own, &other).unwrap();
    other
}

#[test]
fn gate_of_another_abi_judges_its_sessions_to_the_end() {
    let site = site(Product::MariaDb);
    let at = site.server.at(site.net.app.db_v4());
    let mark = evidence::mark(&site.server).unwrap();
    let mut agent = Agent::start(ENFORCE).unwrap();
    agent.kill().unwrap();
    let other = of_another_release();
    let (mut undecided, _) = Raw::greeted(&site.net.app, at).unwrap();

    agent.start_again().unwrap();
    assert!(other.exists(), "both gates are on");
    assert!(is_refused(&site));
    site.tls_passes().unwrap();
    // Nothing tells this client: the other agent's gate holds its login until the server gives up.
    undecided
        .send(&site.server.open_login().packet_41())
        .unwrap();
    let next = undecided.receive_within(wait::here(A_WHILE)).unwrap();
    assert!(matches!(next, Next::Silence), "{next:?}");
    assert!(other.exists(), "it holds a session");
    wait::until_true("the server to give up", PATIENCE, || Ok(!other.exists())).unwrap();
    assert!(is_refused(&site));
    site.tls_passes().unwrap();
    assert_eq!(
        evidence::logins(&site.server, OPEN_USER, mark).unwrap(),
        [""; 0]
    );
}

#[test]
fn start_that_fails_changes_nothing() {
    let site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    agent.kill().unwrap();
    agent
        .home()
        .configure("mode = \"enforce\"\nnonsense = 1")
        .unwrap();
    let output = agent.home().musttls(&["run"]).unwrap();
    assert_eq!(output.status.code(), Some(78));
    drop(held(&site));
    site.tls_passes().unwrap();
    agent.home().disarm().unwrap();

    // One that fails behind the gate: the control socket is in use as a directory.
    let home = agent.home();
    home.configure(ENFORCE).unwrap();
    fs::remove_file(home.control()).unwrap();
    fs::create_dir(home.control()).unwrap();
    let output = home.musttls(&["run"]).unwrap();
    assert!(!output.status.success());
    assert!(is_let_in(&site), "a first start that fails leaves no gate");

    // The same beside the gate of an agent of another release.
    fs::remove_dir(home.control()).unwrap();
    agent.start_again().unwrap();
    agent.kill().unwrap();
    let other = of_another_release();
    let home = agent.home();
    fs::remove_file(home.control()).unwrap();
    fs::create_dir(home.control()).unwrap();
    assert!(!home.musttls(&["run"]).unwrap().status.success());
    drop(held(&site));
    assert!(other.exists());
    fs::remove_dir(home.control()).unwrap();
}

/// Sets it when it goes.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sessions of both kinds go on while agents are killed and, as by an upgrade, ended.
#[test]
fn no_session_is_lost_or_let_in_while_agents_come_and_go() {
    let rounds = std::env::var("MUSTTLS_KILLS").map_or(3, |text| text.parse().unwrap());
    // Agents start while sessions take what CPU there is.
    let patience = CONNECT_TIMEOUT * 4;
    let options = Options::new(Product::MariaDb);
    let options = options.with(&format!(
        "--connect-timeout={}",
        wait::here(patience).as_secs()
    ));
    let site = Site::new(&options).unwrap();
    let mark = evidence::mark(&site.server).unwrap();
    let mut agent = Agent::start(ENFORCE).unwrap();
    let (stop, secure, refused) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let raw = site.tls().unwrap();
                    raw.quit().unwrap();
                    secure.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    // It may have to wait for the next agent.
                    let mut raw = site.plaintext().unwrap();
                    let answer = raw.receive_within(patience).unwrap();
                    let number = answer.error_number();
                    assert_eq!(number, Some(REFUSED), "{answer:?}");
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Also when a step fails: the others would go on for ever.
        let _stop = Stop(&stop);
        for _ in 0..rounds {
            agent.kill().unwrap();
            thread::sleep(Duration::from_millis(100));
            agent.start_again().unwrap();
            thread::sleep(Duration::from_millis(300));
            assert!(agent.terminate().unwrap().success());
            agent.start_again().unwrap();
            thread::sleep(Duration::from_millis(300));
        }
    });
    let (secure, refused) = (secure.into_inner(), refused.into_inner());
    println!("{rounds} kills and upgrades: {secure} TLS sessions, {refused} refusals");
    assert!(secure > rounds * 10 && refused > rounds * 10);
    let logins = evidence::logins(&site.server, OPEN_USER, mark).unwrap();
    assert!(logins.len() >= secure, "{} are logged", logins.len());
    assert_eq!(
        attack::plaintext_logins(&site.server, mark).unwrap(),
        [""; 0]
    );
}
