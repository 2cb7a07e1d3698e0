//! Life of the agent: reloads, ends, servers that come and go, storms, full disks.

#![cfg(test)]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use musttls_tests::agent::{Agent, Home};
use musttls_tests::audit::Record;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::netns::Net;
use musttls_tests::place::{Killed, Scratch, output};
use musttls_tests::raw::Raw;
use musttls_tests::server::{OPEN_USER, Options, Product, Server};
use musttls_tests::site::Site;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{LoginPacket, REFUSED};

const OBSERVE: &str = "mode = \"observe\"";
const ENFORCE: &str = "mode = \"enforce\"";
/// Behind the line that the harness writes itself.
const BAD: &str = "mode = \"enforce\"\n\nmoode = \"observe\"";

fn site(product: Product) -> Site {
    Site::new(&Options::new(product)).unwrap()
}

/// The error a plaintext client gets now; `None` when it is let in.
fn plaintext(site: &Site) -> Option<u16> {
    let next = site.plaintext().unwrap().receive().unwrap();
    assert!(next.is_ok() || next.error().is_some(), "{next:?}");
    next.error_number()
}

fn await_plaintext(site: &Site, expected: Option<u16>) {
    wait::until_true("the new policy", PATIENCE, || {
        Ok(plaintext(site) == expected)
    })
    .unwrap();
}

#[test]
fn mode_changes_while_running_by_reload_and_by_sighup() {
    let site = site(Product::MariaDb);
    let agent = Agent::start(OBSERVE).unwrap();
    assert_eq!(plaintext(&site), None);
    agent.set_policy(ENFORCE).unwrap();
    assert_eq!(
        plaintext(&site),
        Some(REFUSED),
        "`reload` returns when the policy is in force"
    );
    agent.home().configure(OBSERVE).unwrap();
    agent.hang_up().unwrap();
    await_plaintext(&site, None);
    agent.home().configure(ENFORCE).unwrap();
    agent.hang_up().unwrap();
    await_plaintext(&site, Some(REFUSED));
}

#[test]
fn bad_file_keeps_the_policy_and_the_error_points_at_the_line() {
    let site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    agent.home().configure(BAD).unwrap();
    let (is_taken, text) = agent.reload().unwrap();
    assert!(!is_taken, "{text}");
    let place = format!("{}:4:", agent.home().config().display());
    assert!(text.contains(&place) && text.contains("moode"), "{text}");
    assert_eq!(plaintext(&site), Some(REFUSED));
    agent.hang_up().unwrap();
    wait::until_true("the agent to say so", PATIENCE, || {
        Ok(agent.log()?.contains("moode"))
    })
    .unwrap();
    assert!(agent.is_running().unwrap());
    assert_eq!(plaintext(&site), Some(REFUSED));
    site.tls_passes().unwrap();
}

#[test]
fn bad_file_in_observe_mode_does_not_begin_to_enforce() {
    let site = site(Product::MariaDb);
    let agent = Agent::start(OBSERVE).unwrap();
    agent.home().configure(BAD).unwrap();
    assert!(!agent.reload().unwrap().0);
    assert_eq!(plaintext(&site), None);
}

#[test]
fn bad_file_at_the_start_is_an_end_with_code_78() {
    let home = Home::new().unwrap();
    home.configure(BAD).unwrap();
    let output = home.musttls(&["run"]).unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("musttls.toml:4:"), "{text}");
}

#[test]
fn removed_config_keeps_the_policy() {
    let site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    fs::remove_file(agent.home().config()).unwrap();
    assert_eq!(plaintext(&site), Some(REFUSED));
    agent.hang_up().unwrap();
    wait::until_true("the agent to say so", PATIENCE, || {
        Ok(agent.log()?.contains("musttls.toml"))
    })
    .unwrap();
    assert!(agent.is_running().unwrap());
    assert_eq!(plaintext(&site), Some(REFUSED));
    site.tls_passes().unwrap();
}

#[test]
fn exception_comes_and_goes_by_reload() {
    let site = site(Product::MariaDb);
    let agent = Agent::start(ENFORCE).unwrap();
    let exception = format!(
        "{ENFORCE}\n[[exception]]\nname = \"legacy\"\nsource = [\"{}/32\"]\nexpires = \"never\"\n\
         owner = \"dba@example.com\"\nreason = \"old\"\n",
        site.net.app.v4()
    );
    assert_eq!(plaintext(&site), Some(REFUSED));
    agent.set_policy(&exception).unwrap();
    assert_eq!(plaintext(&site), None);
    agent.set_policy(ENFORCE).unwrap();
    assert_eq!(plaintext(&site), Some(REFUSED));
}

#[test]
fn second_agent_refuses_and_names_the_first() {
    let site = site(Product::MariaDb);
    let mut first = Agent::start(ENFORCE).unwrap();
    let output = first.home().musttls(&["run"]).unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains(&first.pid().to_string()), "{text}");
    assert!(first.is_running().unwrap());
    assert_eq!(plaintext(&site), Some(REFUSED));
}

#[test]
fn second_agent_with_a_directory_of_its_own_refuses_and_names_the_first() {
    let site = site(Product::MariaDb);
    let mut first = Agent::start(ENFORCE).unwrap();
    let elsewhere = Scratch::new().unwrap();
    let config = elsewhere.join("musttls.toml");
    let text = format!(
        "{OBSERVE}\n[audit]\npath = \"{0}/audit.jsonl\"\n[control]\nsocket = \"{0}/control.sock\"\n",
        elsewhere.path().display()
    );
    fs::write(&config, text).unwrap();
    let second = Command::new(musttls_tests::place::agent_binary().unwrap())
        .args(["run", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains(&first.pid().to_string()), "{text}");
    assert!(first.is_running().unwrap());
    assert_eq!(plaintext(&site), Some(REFUSED));
}

/// Any user can run a program whose path is longer than the kernel tells: 4,096 bytes. One named as a server is taken for one,
/// and no agent ends for it.
#[test]
fn program_with_a_long_path_keeps_no_agent_from_starting() {
    let site = site(Product::MariaDb);
    let scratch = Scratch::new().unwrap();
    let name = "d".repeat(200);
    let mut directory = File::open(scratch.path()).unwrap();
    for _ in 0..25 {
        let below = within(&directory, &name);
        fs::create_dir(&below).unwrap();
        directory = File::open(&below).unwrap();
    }
    let program = within(&directory, "mysqld");
    fs::copy(env!("CARGO_BIN_EXE_fake-mysqld"), &program).unwrap();
    let heard = scratch.join("heard");
    let mut command = Command::new(&program);
    let command = command.arg("3309").arg(&heard);
    let _other = Killed(site.net.db.spawn(command).unwrap());
    wait::until_true("the scripted server", PATIENCE, || Ok(heard.exists())).unwrap();
    let agent = Agent::start(ENFORCE).unwrap();
    assert_eq!(plaintext(&site), Some(REFUSED));
    let status = agent.status().unwrap();
    assert_eq!(status["coverage"]["errors"], serde_json::json!([]));
    assert_eq!(status["servers"].as_array().unwrap().len(), 2, "{status}");
}

/// A file of a directory, whose own path may be longer than the kernel takes.
fn within(directory: &File, name: &str) -> String {
    let process = std::process::id();
    format!("/proc/{process}/fd/{}/{name}", directory.as_raw_fd())
}

#[test]
fn agent_that_may_not_look_into_a_server_ends_with_code_77() {
    let _site = site(Product::MariaDb);
    let launcher = [
        "setpriv",
        "--inh-caps=-all",
        "--bounding-set",
        "-sys_ptrace",
    ];
    let home = Home::new().unwrap().through(&launcher);
    home.configure(ENFORCE).unwrap();
    let output = home.musttls(&["run"]).unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(77), "{text}");
    assert!(text.contains("cannot be looked into"), "{text}");
}

#[test]
fn sigterm_ends_the_agent_with_code_0() {
    let site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    assert_eq!(plaintext(&site), Some(REFUSED));
    let status = agent.terminate().unwrap();
    assert_eq!(status.code(), Some(0), "{}", agent.log().unwrap());
}

#[test]
fn server_started_after_the_agent_is_covered_from_its_first_session() {
    for product in Product::all() {
        let net = Net::new().unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        // A client that tries without pause, from before the server listens.
        let to = (net.app.db_v4(), 3306).into();
        let (first, server) = thread::scope(|scope| {
            let client = scope.spawn(|| {
                wait::until("the first session", PATIENCE * 3, || {
                    Ok(Raw::greeted(&net.app, to).ok())
                })
                .and_then(|(mut raw, _)| {
                    raw.send(&login_of(product))?;
                    raw.receive()
                })
            });
            let server = Server::start(&net.db, &Options::new(product)).unwrap();
            (client.join().unwrap().unwrap(), server)
        });
        assert_eq!(first.error_number(), Some(REFUSED), "{product:?} {first:?}");
        assert!(
            !server
                .general_log()
                .unwrap()
                .contains(&format!("{OPEN_USER}@"))
        );
        agent
            .await_record("the first session", Record::is_denied)
            .unwrap();
    }
}

fn login_of(product: Product) -> Vec<u8> {
    LoginPacket::new(OPEN_USER)
        .plugin(product.default_plugin())
        .packet_41()
}

#[test]
fn restarted_server_is_covered_again() {
    let net = Net::new().unwrap();
    let _agent = Agent::start(ENFORCE).unwrap();
    for product in [Product::MariaDb, Product::MySql, Product::MariaDb] {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let login = Login::new(&server, &net.app, Tls::Off);
        let answer = Client::PyMySql.login(&net.app, &login).unwrap();
        assert_eq!(answer.error(), Some(REFUSED), "{}", answer.text);
        let login = Login::new(&server, &net.app, Tls::Required);
        assert!(Client::PyMySql.login(&net.app, &login).unwrap().is_in());
    }
}

#[test]
fn server_killed_in_the_middle_of_refusals_does_no_harm() {
    for product in Product::all() {
        let mut site = site(product);
        let mut agent = Agent::start(ENFORCE).unwrap();
        let to = site.server.at(site.net.app.db_v4());
        let login = site.server.open_login().packet_41();
        let refused = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        // Behind the kill there is nothing to connect to.
                        let Ok((mut raw, _)) = Raw::greeted(&site.net.app, to) else {
                            return;
                        };
                        let Ok(()) = raw.send(&login) else { return };
                        let Ok(next) = raw.receive() else { return };
                        assert!(!next.is_ok());
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            wait::until_true("some refusals", PATIENCE, || {
                Ok(refused.load(Ordering::Relaxed) > 20)
            })
            .unwrap();
            let pid = site.server.pid().to_string();
            output(Command::new("kill").args(["-KILL", &pid])).unwrap();
        });
        site.server.kill().unwrap();
        assert!(agent.is_running().unwrap(), "{}", agent.log().unwrap());
        agent.status().unwrap();
        site.server = Server::start(&site.net.db, &Options::new(product)).unwrap();
        assert_eq!(plaintext(&site), Some(REFUSED));
        site.tls_passes().unwrap();
    }
}

#[test]
fn storm_of_5000_plaintext_logins_is_refused_to_the_last() {
    const CLIENTS: usize = 100;
    const EACH: usize = 50;
    for product in Product::all() {
        let net = Net::new().unwrap();
        let options = Options::new(product)
            .with("--max-connections=500")
            .with("--back-log=500");
        let server = Server::start(&net.db, &options).unwrap();
        let agent = Agent::start(ENFORCE).unwrap();
        let mark = evidence::mark(&server).unwrap();
        let to = server.at(net.app.db_v4());
        let login = server.open_login().packet_41();
        let refused = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
                        raw.send(&login).unwrap();
                        let answer = raw.receive().unwrap();
                        let number = answer.error_number();
                        assert_eq!(number, Some(REFUSED), "{answer:?}");
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(refused.into_inner(), CLIENTS * EACH);
        evidence::await_no_connection(&server).unwrap();
        assert_eq!(evidence::logins(&server, OPEN_USER, mark).unwrap(), [""; 0]);
        assert_eq!(
            evidence::counts(&server, net.app.v4())
                .unwrap()
                .handshake_errors,
            0
        );
        wait::until_true("all in the status", PATIENCE, || {
            Ok(agent.outcome("denied")? >= (CLIENTS * EACH) as u64)
        })
        .unwrap();
        let login = Login::new(&server, &net.app, Tls::Required);
        assert!(Client::PyMySql.login(&net.app, &login).unwrap().is_in());
    }
}

#[test]
fn full_device_for_records_stops_nothing() {
    let site = site(Product::MariaDb);
    let home = Home::new().unwrap().audit_to("/dev/full");
    home.configure(ENFORCE).unwrap();
    let mut agent = Agent::start_in(home).unwrap();
    for _ in 0..20 {
        assert_eq!(plaintext(&site), Some(REFUSED));
    }
    site.tls_passes().unwrap();
    assert!(agent.is_running().unwrap(), "{}", agent.log().unwrap());
    agent.status().unwrap();
    wait::until_true("the agent to say so", PATIENCE, || {
        Ok(agent.log()?.contains("/dev/full"))
    })
    .unwrap();
}

#[test]
fn full_disk_for_records_stops_nothing_and_the_loss_is_told_later() {
    let site = site(Product::MariaDb);
    let disk = SmallDisk::new();
    let home = Home::new().unwrap().audit_to(disk.0.join("audit.jsonl"));
    home.configure(ENFORCE).unwrap();
    let mut agent = Agent::start_in(home).unwrap();
    let ballast = disk.0.join("ballast");
    fs::write(&ballast, vec![0; 1 << 20]).ok();
    for _ in 0..50 {
        assert_eq!(plaintext(&site), Some(REFUSED));
    }
    site.tls_passes().unwrap();
    assert!(agent.is_running().unwrap(), "{}", agent.log().unwrap());
    fs::remove_file(&ballast).unwrap();
    wait::until_true("a record of the loss", PATIENCE, || {
        assert_eq!(plaintext(&site), Some(REFUSED));
        Ok(agent
            .records()?
            .iter()
            .any(|record| record.number("/unmapped/lost").is_some()))
    })
    .unwrap();
    agent.await_record("a refusal", Record::is_denied).unwrap();
}

/// 64 KiB.
struct SmallDisk(Scratch);

impl SmallDisk {
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        let mut mount = Command::new("mount");
        output(
            mount
                .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
                .arg(scratch.path()),
        )
        .unwrap();
        Self(scratch)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        output(Command::new("umount").arg("--lazy").arg(self.0.path())).unwrap();
    }
}

#[test]
fn configuration_that_is_too_large_is_told_and_the_policy_stays() {
    use std::fmt::Write as _;
    let site = site(Product::MariaDb);
    let mut agent = Agent::start(ENFORCE).unwrap();
    let policy = |networks: u32| {
        let mut list = String::new();
        // 10.128.0.0/9 does not hold the client.
        for n in 0..networks {
            let [_, b, c, d] = (n + 0x80_0000).to_be_bytes();
            write!(list, "\"10.{b}.{c}.{d}/32\",").unwrap();
        }
        format!(
            "{ENFORCE}\n[[exception]]\nname = \"many\"\nsource = [{list}]\nexpires = \"never\"\n\
             owner = \"dba@example.com\"\nreason = \"large\"\n"
        )
    };
    for (networks, megabytes, why) in [
        (100_001, 1, "more than 100000 networks"),
        (600_000, 10, "more than 100000 networks"),
        (3_000_000, 50, "larger than 16 MiB"),
    ] {
        let policy = policy(networks);
        assert!(policy.len() > megabytes * 1_000_000);
        agent.home().configure(&policy).unwrap();
        let (is_taken, text) = agent.reload().unwrap();
        assert!(!is_taken && text.contains(why), "{networks}: {text}");
        assert!(text.len() < 10_000, "an error is for people");
        assert!(agent.is_running().unwrap(), "{}", agent.log().unwrap());
        assert_eq!(agent.status().unwrap()["policy"]["version"], 1);
        assert_eq!(plaintext(&site), Some(REFUSED));
    }
    site.tls_passes().unwrap();
}

/// Two policies in turn, each with an exception for one of two users: by a mix of them, both users or none would pass.
#[test]
fn policies_that_change_under_a_storm_judge_each_login_whole() {
    const USERS: [&str; 2] = ["ann", "bob"];
    const CLIENTS: usize = 4;
    let reloads: u64 = std::env::var("MUSTTLS_RELOADS").map_or(50, |text| text.parse().unwrap());
    // Those who pass leave in the middle of the authentication.
    let options = Options::new(Product::MariaDb).with("--max-connect-errors=4294967295");
    let site = Site::new(&options).unwrap();
    let policies = USERS.map(|user| {
        format!(
            "{ENFORCE}\n[[exception]]\nname = \"for-{user}\"\nsource = [\"{}/32\"]\nuser = [\"{user}\"]\n\
             expires = \"never\"\nowner = \"dba@example.com\"\nreason = \"storm\"\n",
            site.net.app.v4()
        )
    });
    // By its number in the record: the first one is number 1.
    let excepted = |version: u64| USERS[usize::from(version.is_multiple_of(2))];
    let agent = Agent::start(&policies[0]).unwrap();
    let to = site.server.at(site.net.app.db_v4());
    let is_over = AtomicBool::new(false);
    let logins = AtomicUsize::new(0);
    let passed = AtomicUsize::new(0);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (site, is_over, logins, passed) = (&site, &is_over, &logins, &passed);
            scope.spawn(move || {
                let user = USERS[client % USERS.len()];
                let login = LoginPacket::new(user).packet_41();
                while !is_over.load(Ordering::Relaxed) {
                    let (mut raw, _) = Raw::greeted(&site.net.app, to).unwrap();
                    raw.send(&login).unwrap();
                    let answer = raw.receive().unwrap();
                    logins.fetch_add(1, Ordering::Relaxed);
                    // The server does not know them: it asks for a password, or has an error of its own.
                    let is_refused = answer.error().is_some_and(|error| error.number == REFUSED);
                    passed.fetch_add(usize::from(!is_refused), Ordering::Relaxed);
                }
            });
        }
        for reload in 0..reloads {
            agent
                .set_policy(&policies[usize::from(reload.is_multiple_of(2))])
                .unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let (logins, passed) = (logins.into_inner(), passed.into_inner());
    assert!(logins > 100, "{logins} logins are no storm");
    let of_a_login = |record: &Record| record.is_session() && USERS.contains(&record.user());
    let records = agent
        .await_records("of the storm", logins, of_a_login)
        .unwrap();
    assert_eq!(records.len(), logins);
    let mut versions = BTreeSet::new();
    for record in &records {
        let version: u64 = record.text("/policy/version").parse().unwrap();
        versions.insert(version);
        let expected = if record.user() == excepted(version) {
            ("excepted", format!("for-{}", record.user()))
        } else {
            ("denied", "require-tls".to_owned())
        };
        let found = (record.text("/unmapped/verdict"), record.rule().to_owned());
        assert_eq!(found, expected, "{}", record.line);
    }
    let denied = records.iter().filter(|record| record.is_denied()).count();
    assert_eq!(logins - denied, passed, "what the clients saw");
    assert_eq!(agent.status().unwrap()["policy"]["version"], reloads + 1);
    println!(
        "{logins} logins, {passed} by exceptions, under {} policies in turn",
        versions.len()
    );
}
