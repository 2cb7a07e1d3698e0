use super::record::{
    Endpoints, Gap, ModeCause, OlderThan, Outcome, Refusal, RestsOn, Transport, UnixPeer,
};
use super::*;
use crate::config::AuditTarget;
use crate::login::LoginDetails;
use musttls_common::verdict::{Mode, Reason};
use serde_json::{Value, json};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn identity() -> Identity {
    Identity {
        hostname: "db-1".to_owned(),
        run: "b00t/5f1c".to_owned(),
    }
}

fn endpoints() -> Endpoints {
    Endpoints {
        client: "[::ffff:10.20.4.17]:51884".parse().unwrap(),
        server: "10.20.1.5:3306".parse().unwrap(),
        proxied: None,
    }
}

fn session(transport: Transport<'static>, outcome: Outcome) -> Session<'static> {
    Session {
        time_ms: 1_795_324_678_391,
        transport,
        outcome,
        reason: None,
        mode: Mode::Enforce,
        server: "orders",
        server_program: Some("mariadbd"),
        server_pid: Some(912),
        cgroup: Some("/system.slice/mariadb.service"),
        container: None,
        policy_name: "/etc/musttls/musttls.toml",
        policy_version: 42,
        rule: None,
        user: None,
        details: None,
        exposed: None,
        refusal: None,
        older_than: None,
        rests_on: RestsOn::default(),
    }
}

fn plaintext(outcome: Outcome) -> Session<'static> {
    Session {
        user: Some("app_rw"),
        reason: (outcome != Outcome::Excepted).then_some(Reason::NoClientSsl),
        ..session(
            Transport::Plaintext {
                endpoints: endpoints(),
            },
            outcome,
        )
    }
}

fn details() -> LoginDetails {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    LoginDetails {
        schema: Some("petname".to_owned()),
        plugin: Some("mysql_native_password".to_owned()),
        attributes: vec![
            pair("_client_name", "libmariadb"),
            pair("_client_version", "3.3.8"),
            pair("program_name", "mysqldump"),
        ],
        truncated: false,
    }
}

fn gap() -> Gap<'static> {
    Gap {
        since_ms: 1_795_324_666_391,
        until_ms: 1_795_324_678_391,
        policy_name: "/etc/musttls/musttls.toml",
        policy_version: 41,
        sessions: [("seen", 9), ("secure", 8), ("denied", 1)].into(),
    }
}

fn mode_change() -> ModeChange<'static> {
    ModeChange {
        time_ms: 1_795_324_678_391,
        policy_name: "/etc/musttls/musttls.toml",
        policy_version: 43,
        server: "orders",
        from: Mode::Enforce,
        to: Mode::Observe,
        cause: ModeCause::Panic,
    }
}

fn gate_fault() -> GateFault<'static> {
    GateFault {
        since_ms: 1_795_324_677_391,
        time_ms: 1_795_324_678_391,
        policy_name: "/etc/musttls/musttls.toml",
        policy_version: 41,
        program: "on_ingress",
        fault: "detached",
        mended: true,
    }
}

fn failed_tls() -> Transport<'static> {
    Transport::Tls {
        endpoints: endpoints(),
        version: 0,
        cipher: 0,
        offered: 0,
        floor: 0,
    }
}

fn below_floor() -> Session<'static> {
    Session {
        reason: Some(Reason::TlsBelowFloor),
        refusal: Some(Refusal {
            outcome: "answered",
            err_after_us: Some(184),
            released_after_us: Some(10_611),
        }),
        ..session(
            Transport::Tls {
                endpoints: endpoints(),
                version: 0,
                cipher: 0,
                offered: 0x0302,
                floor: 0x0303,
            },
            Outcome::Denied,
        )
    }
}

fn older(than: OlderThan) -> Session<'static> {
    Session {
        older_than: Some(than),
        ..session(
            Transport::Plaintext {
                endpoints: endpoints(),
            },
            Outcome::Kept,
        )
    }
}

/// One record of each kind, by the heading it has on the page.
fn samples() -> Vec<(&'static str, String)> {
    let details = details();
    let denied = Session {
        details: Some(&details),
        refusal: Some(Refusal {
            outcome: "landed",
            err_after_us: Some(184),
            released_after_us: Some(10_611),
        }),
        ..plaintext(Outcome::Denied)
    };
    let observed = Session {
        mode: Mode::Observe,
        details: Some(&details),
        ..plaintext(Outcome::Observed)
    };
    let excepted = Session {
        rule: Some("legacy-etl"),
        details: Some(&details),
        ..plaintext(Outcome::Excepted)
    };
    let tls = Transport::Tls {
        endpoints: endpoints(),
        version: 0x0304,
        cipher: 0x1302,
        offered: 0,
        floor: 0,
    };
    let below_observed = Transport::Tls {
        endpoints: endpoints(),
        version: 0x0303,
        cipher: 0xc030,
        offered: 0,
        floor: 0x0304,
    };
    let unix = Transport::Unix {
        path: Some("/run/mysqld/mysqld.sock"),
        peer: Some(UnixPeer {
            pid: 4711,
            uid: 33,
            program: Some("php-fpm8.2"),
        }),
    };
    let loss = Loss {
        time_ms: 1_795_324_678_391,
        lost: 7,
        reason: "no-space",
    };
    vec![
        ("A time without an agent", ocsf::gap(&identity(), &gap(), 1)),
        (
            "A gate that somebody has changed",
            ocsf::gate_fault(&identity(), &gate_fault(), 211),
        ),
        (
            "Another mode",
            ocsf::mode_change(&identity(), &mode_change(), 212),
        ),
        (
            "TLS",
            ocsf::session(&identity(), &session(tls, Outcome::Allowed), 184),
        ),
        ("Refused", ocsf::session(&identity(), &denied, 185)),
        ("Observed", ocsf::session(&identity(), &observed, 186)),
        ("Exception", ocsf::session(&identity(), &excepted, 187)),
        (
            "Failed TLS handshake",
            ocsf::session(&identity(), &session(failed_tls(), Outcome::TlsFailed), 188),
        ),
        (
            "Unix socket",
            ocsf::session(&identity(), &session(unix, Outcome::Allowed), 189),
        ),
        ("Lost records", ocsf::loss(&identity(), &loss, 190)),
        (
            "TLS below the floor",
            ocsf::session(&identity(), &below_floor(), 191),
        ),
        (
            "TLS below the observed floor",
            ocsf::session(&identity(), &session(below_observed, Outcome::Allowed), 192),
        ),
        (
            "Older than the gate",
            ocsf::session(&identity(), &older(OlderThan::Gate), 193),
        ),
        (
            "Let through in observe mode",
            ocsf::session(&identity(), &older(OlderThan::Enforcement), 194),
        ),
    ]
}

fn sample(kind: &str) -> Value {
    let (_, line) = samples()
        .into_iter()
        .find(|(name, _)| *name == kind)
        .unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn a_refusal_says_all_that_the_contract_names() {
    let record = sample("Refused");
    for (pointer, value) in [
        ("/class_uid", json!(3002)),
        ("/type_uid", json!(300_201)),
        ("/activity_id", json!(1)),
        ("/time", json!(1_795_324_678_391_u64)),
        ("/status_id", json!(2)),
        ("/status_code", json!("3159")),
        ("/action_id", json!(2)),
        ("/disposition_id", json!(21)),
        ("/is_cleartext", json!(true)),
        ("/is_remote", json!(true)),
        ("/src_endpoint", json!({"ip": "10.20.4.17", "port": 51884})),
        ("/dst_endpoint", json!({"ip": "10.20.1.5", "port": 3306})),
        ("/user/name", json!("app_rw")),
        ("/auth_protocol", json!("mysql:mysql_native_password")),
        (
            "/policy",
            json!({"name": "/etc/musttls/musttls.toml", "version": "42", "is_applied": true}),
        ),
        ("/firewall_rule/name", json!("require-tls")),
        ("/metadata/version", json!("1.8.0")),
        ("/metadata/sequence", json!(185)),
        ("/metadata/uid", json!("b00t/5f1c/185")),
        ("/metadata/profiles", json!(["security_control", "host"])),
        ("/unmapped/transport", json!("plaintext")),
        ("/unmapped/reason", json!("no-client-ssl")),
        ("/unmapped/mode", json!("enforce")),
        ("/unmapped/server", json!("orders")),
        ("/unmapped/client_program", json!("mysqldump")),
        ("/unmapped/schema", json!("petname")),
        ("/unmapped/server_pid", json!(912)),
        ("/unmapped/cgroup", json!("/system.slice/mariadb.service")),
        (
            "/unmapped/refusal",
            json!({"outcome": "landed", "err_after_us": 184, "released_after_us": 10611}),
        ),
    ] {
        assert_eq!(record.pointer(pointer), Some(&value), "{pointer}");
    }
}

#[test]
fn a_refusal_of_tls_names_the_floor_and_the_alert() {
    let record = sample("TLS below the floor");
    for (pointer, value) in [
        ("/status_code", json!("alert 70")),
        ("/status_detail", json!("weak TLS")),
        ("/is_alert", json!(true)),
        ("/unmapped/transport", json!("tls")),
        ("/unmapped/reason", json!("tls-below-floor")),
        ("/unmapped/floor", json!("tls1.2")),
        (
            "/unmapped/tls",
            json!({"version": "unknown", "cipher": "unknown", "offered": "1.1"}),
        ),
    ] {
        assert_eq!(record.pointer(pointer), Some(&value), "{pointer}");
    }
    let observed = sample("TLS below the observed floor");
    assert_eq!(observed["unmapped"]["would_refuse"], json!("tls1.3"));
    assert_eq!(observed["unmapped"]["verdict"], json!("allowed"));
    assert_eq!(observed["unmapped"].get("floor"), None);
    assert_eq!(observed["is_alert"], json!(false));
}

#[test]
fn outcomes_have_the_numbers_of_the_contract() {
    for (kind, action, disposition, cleartext, rule) in [
        ("TLS", 1, 1, false, "require-tls"),
        ("Refused", 2, 21, true, "require-tls"),
        ("Observed", 3, 15, true, "require-tls"),
        ("Exception", 1, 1, true, "legacy-etl"),
        ("Unix socket", 1, 1, false, "require-tls"),
        ("TLS below the floor", 2, 21, false, "require-tls"),
        ("TLS below the observed floor", 1, 1, false, "require-tls"),
        ("Older than the gate", 1, 1, true, "require-tls"),
        ("Let through in observe mode", 1, 1, true, "require-tls"),
    ] {
        let record = sample(kind);
        assert_eq!(record["action_id"], json!(action), "{kind}");
        assert_eq!(record["disposition_id"], json!(disposition), "{kind}");
        assert_eq!(record["is_cleartext"], json!(cleartext), "{kind}");
        assert_eq!(record["firewall_rule"]["name"], json!(rule), "{kind}");
        assert_eq!(
            record.get("status_code").is_some(),
            matches!(kind, "Refused" | "TLS below the floor"),
            "{kind}"
        );
    }
    assert_eq!(sample("Observed")["policy"]["is_applied"], json!(false));
}

/// `objects/user.json` and `authentication.json` of OCSF 1.8.0: what must be there.
#[test]
fn what_ocsf_requires_is_in_every_record() {
    for (kind, line) in samples() {
        let record: Value = serde_json::from_str(&line).unwrap();
        for key in [
            "activity_id",
            "category_uid",
            "class_uid",
            "severity_id",
            "time",
            "type_uid",
        ] {
            assert!(record[key].is_i64(), "{kind}: {key}");
        }
        let type_uid =
            record["class_uid"].as_i64().unwrap() * 100 + record["activity_id"].as_i64().unwrap();
        assert_eq!(record["type_uid"], json!(type_uid), "{kind}");
        assert!(record["metadata"]["product"]["name"].is_string(), "{kind}");
        assert!(record["device"]["type_id"].is_i64(), "{kind}");
        if record["class_uid"] == json!(3002) {
            let user = &record["user"];
            assert!(
                user["name"].is_string() || user["uid"].is_string(),
                "{kind}"
            );
            assert!(record["service"]["name"].is_string(), "{kind}");
        }
    }
}

#[test]
fn tls_and_unix_records_say_what_is_known() {
    let tls = sample("TLS");
    assert_eq!(
        tls["unmapped"]["tls"],
        json!({"version": "1.3", "cipher": "TLS_AES_256_GCM_SHA384"})
    );
    assert_eq!(tls["user"], json!({"uid": "encrypted", "type_id": 0}));
    let unix = sample("Unix socket");
    assert_eq!(
        unix["actor"],
        json!({"process": {"pid": 4711, "name": "php-fpm8.2"}, "user": {"uid": "33"}})
    );
    assert_eq!(unix["unmapped"]["socket"], json!("/run/mysqld/mysqld.sock"));
    assert_eq!(unix.get("src_endpoint"), None);
}

#[test]
fn hostile_text_stays_inside_its_string() {
    let details = LoginDetails {
        schema: Some("\",\"action_id\":1,\"x\":\"\n".to_owned()),
        ..details()
    };
    let session = Session {
        user: Some("\"}\n{"),
        details: Some(&details),
        ..plaintext(Outcome::Denied)
    };
    let line = ocsf::session(&identity(), &session, 1);
    assert_eq!(line.lines().count(), 1);
    let record: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&record["user"]["name"], &record["action_id"]),
        (&json!("\"}\n{"), &json!(2))
    );
}

#[test]
fn the_page_shows_the_records_as_they_are() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/audit-records.md");
    let page = fs::read_to_string(page).unwrap();
    let version = format!("\"version\":\"{}\"}}", env!("CARGO_PKG_VERSION"));
    for (kind, line) in samples() {
        let line = line.replace(&version, "\"version\":\"0.1.0\"}");
        assert!(page.contains(&format!("### {kind}\n")), "{kind}");
        assert!(page.contains(&line), "{kind}:\n{line}");
    }
}

fn log(path: &Path) -> AuditLog {
    let sink = AuditSink::open(&AuditTarget::File(path.to_owned())).unwrap();
    AuditLog::new(identity(), sink)
}

fn records(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}")))
        .collect()
}

fn sequences(records: &[Value]) -> Vec<u64> {
    records
        .iter()
        .map(|record| record["metadata"]["sequence"].as_u64().unwrap())
        .collect()
}

#[test]
fn records_are_numbered_lines_of_a_private_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let mut log = log(&path);
    for _ in 0..3 {
        log.session(&plaintext(Outcome::Denied), Instant::now())
            .unwrap();
    }
    assert_eq!(sequences(&records(&path)), [1, 2, 3]);
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o640
    );
    assert_eq!((log.stats().written, log.sequence()), (3, 3));
}

#[test]
fn a_moved_file_is_left_and_a_new_one_begun() {
    let directory = tempfile::tempdir().unwrap();
    let (path, old) = (directory.path().join("a"), directory.path().join("a.1"));
    let mut log = log(&path);
    log.session(&plaintext(Outcome::Denied), Instant::now())
        .unwrap();
    fs::rename(&path, &old).unwrap();
    log.session(&plaintext(Outcome::Denied), Instant::now())
        .unwrap();
    log.reopen().unwrap();
    log.session(&plaintext(Outcome::Denied), Instant::now())
        .unwrap();
    assert_eq!(
        (sequences(&records(&old)), sequences(&records(&path))),
        (vec![1, 2], vec![3])
    );
}

#[test]
fn a_broken_last_line_of_an_earlier_process_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    fs::write(&path, "{\"class_uid\":30").unwrap();
    log(&path)
        .session(&plaintext(Outcome::Denied), Instant::now())
        .unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let last = text.lines().nth(1).unwrap();
    assert!(serde_json::from_str::<Value>(last).is_ok());
}

#[test]
fn what_cannot_be_opened_is_told_with_a_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let open = |path: PathBuf| {
        let target = AuditTarget::File(path);
        let error = AuditSink::open(&target).unwrap_err().to_string();
        // What only looks says the same; of a pipe, opening says it in other words.
        let foreseen = AuditSink::examine(&target).unwrap_err().to_string();
        assert!(foreseen == error || error.contains("regular"), "{foreseen}");
        error
    };
    let missing = open(directory.path().join("none/audit.jsonl"));
    assert!(
        missing.contains("No such file") && missing.contains("create its directory"),
        "{missing}"
    );
    let file = directory.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(open(file.join("audit.jsonl")).contains("is a file"));
    let link = directory.path().join("link");
    symlink("/dev/null", &link).unwrap();
    assert!(open(link).contains("symbolic link"));
    assert!(open(directory.path().to_owned()).contains("directory"));
    let fifo = directory.path().join("fifo");
    assert!(
        Command::new("mkfifo")
            .arg(&fifo)
            .status()
            .unwrap()
            .success()
    );
    assert!(open(fifo).contains("not a regular file"));
}

#[test]
fn looking_whether_a_file_could_be_opened_makes_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    AuditSink::examine(&AuditTarget::File(path.clone())).unwrap();
    assert!(!path.exists());
    fs::write(&path, "").unwrap();
    AuditSink::examine(&AuditTarget::File(path)).unwrap();
    AuditSink::examine(&AuditTarget::Stdout).unwrap();
}

#[test]
fn a_full_disk_loses_records_and_counts_them() {
    let mut log = log(Path::new("/dev/full"));
    let now = Instant::now();
    for _ in 0..3 {
        assert_eq!(
            log.session(&plaintext(Outcome::Denied), now),
            Err(SinkError::NoSpace)
        );
    }
    assert_eq!((log.stats().written, log.stats().lost), (0, 3));
    assert_eq!(log.stats().errors, [3, 0, 0, 0, 0]);
    assert_eq!(log.sequence(), 3);
}

/// A file system of 16 KiB, also taken off when the test fails.
struct SmallDisk<'p>(&'p Path);

impl<'p> SmallDisk<'p> {
    fn mount(at: &'p Path) -> Self {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16k", "musttls-test"])
            .arg(at)
            .status()
            .unwrap();
        assert!(mounted.success());
        Self(at)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let done = Command::new("umount").arg(self.0).status();
        assert!(done.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
#[ignore = "needs root: mounts a small tmpfs"]
fn a_disk_that_was_full_leaves_only_whole_lines_and_a_loss_record() {
    let directory = tempfile::tempdir().unwrap();
    let mount = SmallDisk::mount(directory.path());
    let disk = mount.0;
    let path = disk.join("audit.jsonl");
    let mut log = log(&path);
    let now = Instant::now();
    for _ in 0..40 {
        // Fails from some record on, which is what is tested.
        log.session(&plaintext(Outcome::Denied), now).unwrap_or(());
    }
    let lost = log.stats().lost;
    // The first half of the last line is on the full disk; the file moves to where there is space.
    let old = disk.join("old");
    fs::rename(&path, &old).unwrap();
    let whole = fs::read_to_string(&old).unwrap();
    log.reopen().unwrap();
    let taken_back = fs::read_to_string(&old).unwrap();
    fs::remove_file(&old).unwrap();
    log.session(&plaintext(Outcome::Denied), now).unwrap();
    let new = records(&path);

    assert!(lost > 10 && !whole.ends_with('\n'), "{lost} lost");
    assert!(taken_back.ends_with('\n') && whole.starts_with(&taken_back));
    let told = new
        .iter()
        .find(|record| record["class_uid"] == json!(6008))
        .unwrap();
    assert_eq!(told["unmapped"]["lost"], json!(lost));
    assert_eq!(told["unmapped"]["reason"], json!("no-space"));
    let written = taken_back.lines().count() + new.len();
    assert_eq!(u64::try_from(written).unwrap() + lost, 40 + 2);
}

#[test]
fn a_pipe_nobody_empties_costs_one_wait_and_no_broken_line() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let mut log = AuditLog::new(identity(), AuditSink::pipe(writer));
    let padding = "x".repeat(3000);
    let session = Session {
        policy_name: &padding,
        ..plaintext(Outcome::Denied)
    };
    let started = Instant::now();
    let results: Vec<_> = (0..50).map(|_| log.session(&session, started)).collect();
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
    assert!(results.contains(&Err(SinkError::Full)));
    let lost = log.stats().lost;

    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    let deadline = Instant::now() + Duration::from_secs(10);
    while log.settle(1, Instant::now()).is_err() || log.sink.lost().0 > 0 {
        assert!(Instant::now() < deadline);
    }
    drop(log);
    let text = reading.join().unwrap();
    let records: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(records.last().unwrap()["unmapped"]["lost"], json!(lost));
    assert_eq!(u64::try_from(records.len()).unwrap() + lost, 50 + 1);
}

#[test]
fn a_closed_pipe_loses_records() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut log = AuditLog::new(identity(), AuditSink::pipe(writer));
    assert_eq!(
        log.session(&plaintext(Outcome::Denied), Instant::now()),
        Err(SinkError::Closed)
    );
    assert_eq!(log.stats().errors, [0, 1, 0, 0, 0]);
}

#[test]
fn losses_before_the_log_are_records() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.jsonl");
    let loss = Loss {
        time_ms: 1,
        lost: 5,
        reason: "sessions_ring_full",
    };
    log(&path).loss(&loss, Instant::now()).unwrap();
    assert_eq!(
        records(&path)[0]["message"],
        json!("5 audit records were lost: sessions_ring_full")
    );
}
