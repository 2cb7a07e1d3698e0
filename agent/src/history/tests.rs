//! The history over audit files as they come: rotated, cut, of other releases, damaged.

use super::*;
use std::fs;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// An audit file and an index.
struct Place {
    directory: TempDir,
    config: Config,
    written: u64,
}

const NOW: &str = "2026-11-23T12:00:00Z";

fn now() -> Timestamp {
    NOW.parse().unwrap()
}

/// The time of the first record, in milliseconds.
fn start_ms() -> i64 {
    now().as_millisecond() - 3_600_000
}

impl Place {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let config = Config {
            audit: AuditTarget::File(directory.path().join("audit.jsonl")),
            history: HistoryConfig {
                path: directory.path().join("state/history.db"),
                ..HistoryConfig::default()
            },
            ..Config::default()
        };
        Self {
            directory,
            config,
            written: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn audit(&self) -> PathBuf {
        self.path("audit.jsonl")
    }

    fn append(&self, text: &[u8]) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.audit())
            .unwrap();
        file.write_all(text).unwrap();
    }

    /// Writes the next record, as it comes from `change`.
    fn record(&mut self, change: impl FnOnce(&mut Value)) {
        self.written += 1;
        let mut record = plain(self.written);
        change(&mut record);
        self.append(format!("{record}\n").as_bytes());
    }

    fn records(&mut self, count: usize) {
        for _ in 0..count {
            self.record(|_| {});
        }
    }

    fn open(&self) -> History {
        History::open(&self.config).unwrap()
    }

    fn read(&self) -> History {
        let mut history = self.open();
        assert!(history.update(now(), |_, _| true).unwrap());
        history
    }

    fn state(&self) -> State {
        self.read().state().unwrap()
    }

    fn clients(&self) -> Vec<Client> {
        self.read().clients(&Filter::default()).unwrap()
    }

    /// As logrotate does, with the file that the agent opens behind it.
    fn rotate(&self, to: &str) {
        fs::rename(self.audit(), self.path(to)).unwrap();
    }
}

fn plain(sequence: u64) -> Value {
    json!({
        "class_uid": 3002,
        "time": start_ms() + i64::try_from(sequence).unwrap() * 1000,
        "user": {"name": "etl", "type_id": 0},
        "src_endpoint": {"ip": "10.3.0.7", "port": 50_000 + sequence % 10_000},
        "dst_endpoint": {"ip": "10.0.0.1", "port": 3306},
        "firewall_rule": {"name": "require-tls"},
        "metadata": {"version": "1.8.0", "uid": format!("db-1/b00t-5f1c/{sequence}"), "sequence": sequence},
        "unmapped": {
            "schema_version": 1, "transport": "plaintext", "verdict": "would_deny", "reason": "no-client-ssl",
            "mode": "observe", "server": "orders", "client_program": "mysqldump",
            "connection_attributes": {"_client_name": "libmariadb", "_client_version": "3.3.8", "program_name": "mysqldump"}
        }
    })
}

fn set(record: &mut Value, path: &str, value: Value) {
    let (parent, key) = path.rsplit_once('/').unwrap();
    let parent = record.pointer_mut(parent).unwrap();
    parent
        .as_object_mut()
        .unwrap()
        .insert(key.to_owned(), value);
}

#[test]
fn sessions_that_differ_in_time_only_are_one_client() {
    let mut place = Place::new();
    place.records(3);
    place.record(|record| set(record, "/unmapped/verdict", json!("denied")));
    let clients = place.clients();
    let [client] = &clients[..] else {
        panic!("{clients:?}")
    };
    assert_eq!(
        (client.class, client.sessions, client.refused),
        (Class::Plaintext, 4, 1)
    );
    assert_eq!(client.peer, Some("10.3.0.7".parse().unwrap()));
    assert_eq!(client.user.as_deref(), Some("etl"));
    assert_eq!(client.driver.as_deref(), Some("libmariadb"));
    assert_eq!(client.version.as_deref(), Some("3.3.8"));
    assert_eq!(client.program.as_deref(), Some("mysqldump"));
    assert_eq!((&*client.server, client.port), ("orders", 3306));
    assert_eq!(client.passed, Outcome::Denied);
    assert_eq!(client.last_s - client.first_s, 3);
}

#[test]
fn every_kind_of_session_is_told_apart() {
    let mut place = Place::new();
    place.record(|_| {});
    place.record(|record| {
        set(record, "/unmapped/transport", json!("tls"));
        set(record, "/unmapped/verdict", json!("allowed"));
        set(
            record,
            "/unmapped/tls",
            json!({"version": "1.3", "cipher": "TLS_AES_256_GCM_SHA384"}),
        );
    });
    place.record(|record| {
        set(record, "/unmapped/transport", json!("tls"));
        set(record, "/unmapped/verdict", json!("denied"));
        set(
            record,
            "/unmapped/tls",
            json!({"version": "unknown", "cipher": "unknown", "offered": "1.1"}),
        );
    });
    place.record(|record| {
        set(record, "/unmapped/transport", json!("tls"));
        set(record, "/unmapped/verdict", json!("tls_failed"));
    });
    place.record(|record| {
        set(record, "/unmapped/transport", json!("unix"));
        set(record, "/unmapped/verdict", json!("allowed"));
        record.as_object_mut().unwrap().remove("src_endpoint");
    });
    place.record(|record| set(record, "/unmapped/reason", json!("multipath")));
    place.record(|record| {
        set(record, "/unmapped/older_than", json!("gate"));
        set(record, "/unmapped/verdict", json!("kept"));
    });
    place.record(|record| {
        set(
            record,
            "/unmapped/connection_attributes/_client_role",
            json!("binary_log_listener"),
        );
    });
    place.record(|record| {
        set(
            record,
            "/unmapped/connection_attributes/_connector_name",
            json!("mysql-connector-python"),
        );
        set(
            record,
            "/unmapped/connection_attributes/_connector_version",
            json!("8.4.0"),
        );
    });
    place.record(|record| {
        set(
            record,
            "/unmapped/proxied",
            json!({"ip": "192.0.2.9", "port": 1, "trusted": true}),
        );
    });
    let clients = place.clients();
    let seen: Vec<_> = clients
        .iter()
        .map(|client| {
            (
                client.class,
                client.tls,
                client.driver.as_deref().unwrap_or(""),
            )
        })
        .collect();
    for expected in [
        (Class::Plaintext, 0, "libmariadb"),
        (Class::Plaintext, 0, REPLICA),
        (Class::Plaintext, 0, "mysql-connector-python"),
        (Class::NoException, 0, "libmariadb"),
        (Class::Older, 0, "libmariadb"),
        (Class::Tls, 0x0304, "libmariadb"),
        (Class::Tls, 0x0302, "libmariadb"),
        (Class::TlsFailed, 0, "libmariadb"),
        (Class::Unix, 0, "libmariadb"),
    ] {
        assert!(seen.contains(&expected), "{expected:?} in {seen:?}");
    }
    assert_eq!(clients.len(), 10);
    assert!(
        clients
            .iter()
            .any(|client| client.proxied == Some("192.0.2.9".parse().unwrap()))
    );
    assert!(clients.iter().any(|client| client.cipher == 0x1302));
    let plaintext = Filter {
        plaintext: true,
        ..Filter::default()
    };
    assert_eq!(place.read().clients(&plaintext).unwrap().len(), 6);
}

#[test]
fn what_the_audit_log_writes_is_what_is_read() {
    // The samples of the documentation, which the tests of the audit log hold against what it writes.
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/audit-records.md");
    let page = fs::read_to_string(page).unwrap();
    let place = Place::new();
    let mut sessions = 0;
    for line in page
        .lines()
        .filter(|line| line.starts_with("{\"class_uid\""))
    {
        sessions += u64::from(line.contains("\"class_uid\":3002"));
        place.append(format!("{line}\n").as_bytes());
    }
    let state = place.state();
    assert!(sessions >= 8, "{sessions}");
    assert_eq!(
        (state.sessions, state.garbage, state.later),
        (sessions, 0, 0)
    );
}

#[test]
fn each_line_counts_once_however_often_it_is_looked_at() {
    let mut place = Place::new();
    for round in 1..5 {
        place.records(10);
        assert_eq!(place.state().sessions, round * 10);
        assert_eq!(place.state().sessions, round * 10);
    }
    assert_eq!(place.state().behind, 0);
}

#[test]
fn two_that_write_at_once_do_no_harm() {
    let mut place = Place::new();
    place.records(2000);
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let config = place.config.clone();
            std::thread::spawn(move || {
                let mut history = History::open(&config).unwrap();
                let parts = history.folder.parts().unwrap();
                // In small bites, so that they meet.
                while history
                    .index
                    .read(&parts[0], 8 * 1024, now().as_second())
                    .unwrap()
                    > 0
                {}
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(place.state().sessions, 2000);
}

#[test]
fn a_reader_that_is_stopped_goes_on_where_it_was() {
    let mut place = Place::new();
    place.records(10);
    let mut history = place.open();
    let parts = history.folder.parts().unwrap();
    assert!(
        history
            .index
            .read(&parts[0], 1200, now().as_second())
            .unwrap()
            > 0
    );
    let partly = history.state().unwrap();
    assert!(
        partly.sessions > 0 && partly.sessions < 10 && partly.behind > 0,
        "{partly:?}"
    );
    drop(history);
    assert_eq!(place.state().sessions, 10);
    let mut history = place.open();
    place.records(1);
    assert!(!history.update(now(), |_, _| false).unwrap());
}

#[test]
fn rotated_files_are_read_to_their_end_and_no_line_twice() {
    let mut place = Place::new();
    place.records(3);
    assert_eq!(place.state().sessions, 3);
    // The agent goes on in the old file until it is told.
    place.records(2);
    place.rotate("audit.jsonl.1");
    place.records(4);
    assert_eq!(place.state().sessions, 9);
    fs::rename(place.path("audit.jsonl.1"), place.path("audit.jsonl.2")).unwrap();
    place.rotate("audit.jsonl.1");
    place.records(1);
    let state = place.state();
    assert_eq!((state.sessions, state.holes.len()), (10, 0), "{state:?}");
    // Gone: it was read.
    fs::remove_file(place.path("audit.jsonl.2")).unwrap();
    place.records(1);
    let state = place.state();
    assert_eq!((state.sessions, state.holes.len()), (11, 0), "{state:?}");
}

/// As logrotate does with what is two weeks old.
fn compress(place: &Place, name: &str) {
    let status = std::process::Command::new("gzip")
        .arg(place.path(name))
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn compressed_files_count_once_whenever_they_were_read() {
    let mut place = Place::new();
    place.records(5);
    place.rotate("audit.jsonl.3");
    place.records(4);
    place.rotate("audit.jsonl.2");
    place.records(3);
    place.rotate("audit.jsonl.1");
    place.records(2);
    // But for when the index was begun.
    let found = |place: &Place| {
        let state = State {
            since_s: 0,
            ..place.state()
        };
        (place.clients(), state)
    };
    let before = found(&place);
    assert_eq!((before.1.sessions, before.1.behind), (14, 0));
    // While gzip is at it, both are there; it was read to its end, so nothing of it is read.
    fs::copy(place.path("audit.jsonl.3"), place.path("aside")).unwrap();
    compress(&place, "audit.jsonl.3");
    let is_as_before = |place: &Place| found(place) == before;
    assert!(is_as_before(&place), "{:?}", place.state());
    fs::rename(place.path("aside"), place.path("audit.jsonl.3")).unwrap();
    assert!(is_as_before(&place), "{:?}", place.state());
    fs::remove_file(place.path("audit.jsonl.3")).unwrap();
    compress(&place, "audit.jsonl.2");
    assert!(is_as_before(&place), "{:?}", place.state());
    // The same from the files alone.
    let mut history = place.open();
    history.rebuild().unwrap();
    assert!(history.update(now(), |_, _| true).unwrap());
    assert!(is_as_before(&place), "{:?}", place.state());
    // And decompressed again.
    let status = std::process::Command::new("gzip")
        .arg("-d")
        .arg(place.path("audit.jsonl.3.gz"))
        .status();
    assert!(status.unwrap().success());
    assert!(is_as_before(&place), "{:?}", place.state());
}

#[test]
fn a_file_that_was_compressed_before_its_end_was_read_is_read_on() {
    let mut place = Place::new();
    place.records(10);
    let mut history = place.open();
    let parts = history.folder.parts().unwrap();
    let index = &mut history.index;
    assert!(index.read(&parts[0], 1200, now().as_second()).unwrap() > 0);
    let partly = history.state().unwrap();
    assert!(partly.sessions > 0 && partly.sessions < 10, "{partly:?}");
    drop(history);
    place.rotate("audit.jsonl.1");
    compress(&place, "audit.jsonl.1");
    assert_eq!(place.open().state().unwrap().behind, partly.behind);
    place.records(3);
    let state = place.state();
    assert_eq!((state.sessions, state.behind), (13, 0), "{state:?}");
    assert_eq!(state.holes.len(), 0, "{state:?}");
}

#[test]
fn a_damaged_compressed_file_is_named_and_read_up_to_there() {
    let mut place = Place::new();
    place.records(2000);
    place.rotate("audit.jsonl.1");
    place.records(2);
    compress(&place, "audit.jsonl.1");
    let packed = place.path("audit.jsonl.1.gz");
    let whole = fs::read(&packed).unwrap();
    fs::write(&packed, &whole[..whole.len() / 2]).unwrap();
    let times = |path: &Path| {
        let file = fs::File::options().append(true).open(path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    times(&packed);
    let mut history = place.read();
    let state = history.state().unwrap();
    assert!((500..2000).contains(&state.sessions), "{state:?}");
    assert_eq!((state.behind, state.holes.len()), (0, 1), "{state:?}");
    assert_eq!(state.left_out, [packed.display().to_string()]);
    assert!(history.flaws().unwrap()[0].to_string().contains("damaged"));
    // A whole copy is read on where the other ended.
    fs::write(&packed, &whole).unwrap();
    times(&packed);
    let state = place.state();
    assert_eq!((state.sessions, state.behind), (2002, 0), "{state:?}");
    assert!(state.left_out.is_empty());
}

#[test]
fn what_no_program_but_gzip_compressed_is_told_where_it_is_missing() {
    let mut place = Place::new();
    place.records(3);
    place.rotate("audit.jsonl.2");
    place.records(3);
    assert_eq!(place.state().sessions, 6);
    let zst = place.path("audit.jsonl.2.zst");
    let mtime = |seconds: i64| {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs());
        let file = fs::File::options().append(true).open(&zst).unwrap();
        file.set_modified(at).unwrap();
    };
    fs::rename(place.path("audit.jsonl.2"), &zst).unwrap();
    mtime(start_ms() / 1000 + 3);
    assert!(place.state().left_out.is_empty(), "it was read");
    // An index that was begun later.
    let mut history = place.open();
    history.rebuild().unwrap();
    mtime(start_ms() / 1000 - 7200);
    assert!(history.update(now(), |_, _| true).unwrap());
    assert_eq!(place.state().left_out, [zst.display().to_string()]);
    // Too old to matter.
    mtime(1000);
    assert!(place.state().left_out.is_empty());
}

#[test]
fn a_file_that_comes_back_is_not_counted_again() {
    let mut place = Place::new();
    place.records(5);
    place.rotate("audit.jsonl.1");
    place.records(2);
    assert_eq!(place.state().sessions, 7);
    let aside = place.path("aside");
    fs::rename(place.path("audit.jsonl.1"), &aside).unwrap();
    place.records(1);
    assert_eq!(place.state().sessions, 8);
    fs::rename(&aside, place.path("audit.jsonl.1")).unwrap();
    assert_eq!(place.state().sessions, 8);
}

#[test]
fn a_file_that_is_copied_and_cut_is_read_once() {
    let mut place = Place::new();
    place.records(3);
    assert_eq!(place.state().sessions, 3);
    place.records(2);
    fs::copy(place.audit(), place.path("audit.jsonl.1")).unwrap();
    fs::write(place.audit(), "").unwrap();
    assert_eq!(place.state().sessions, 5);
    place.records(2);
    let state = place.state();
    assert_eq!((state.sessions, state.holes.len()), (7, 0), "{state:?}");
}

#[test]
fn the_same_inode_with_another_content_is_another_file() {
    let mut place = Place::new();
    place.records(5);
    assert_eq!(place.state().sessions, 5);
    fs::write(place.audit(), "").unwrap();
    place.records(9);
    assert_eq!(place.state().sessions, 14);
}

#[test]
fn what_is_missing_is_told() {
    let mut place = Place::new();
    place.records(3);
    assert_eq!(place.state().holes.len(), 0);
    place.written += 7;
    place.records(2);
    let state = place.state();
    assert_eq!(state.holes.len(), 1, "{state:?}");
    assert_eq!(state.holes[0].missing, Some(7));
    // Another run, whose first records are gone with the file that was read last.
    fs::remove_file(place.audit()).unwrap();
    place.written = 4;
    place.record(|record| set(record, "/metadata/uid", json!("db-1/b00t-later/5")));
    let state = place.state();
    let found: Vec<_> = state.holes.iter().map(|hole| hole.missing).collect();
    assert_eq!(found, [Some(7), Some(4), None], "{state:?}");
    assert_eq!(state.sessions, 6);
}

#[test]
fn a_file_that_is_gone_without_a_gap_is_no_hole() {
    let mut place = Place::new();
    place.records(3);
    assert_eq!(place.state().sessions, 3);
    fs::remove_file(place.audit()).unwrap();
    place.records(2);
    let state = place.state();
    assert_eq!((state.sessions, state.holes.len()), (5, 0), "{state:?}");
}

#[test]
fn a_line_without_its_end_waits_for_it() {
    let mut place = Place::new();
    place.records(2);
    let line = format!("{}\n", plain(3));
    let (head, tail) = line.split_at(100);
    place.append(head.as_bytes());
    let state = place.state();
    assert_eq!((state.sessions, state.garbage), (2, 0));
    assert_eq!(state.behind, 100);
    place.append(tail.as_bytes());
    let state = place.state();
    assert_eq!((state.sessions, state.garbage, state.behind), (3, 0, 0));
    assert_eq!(state.holes.len(), 0, "{state:?}");
}

#[test]
fn lines_that_are_not_understood_are_counted_and_passed_over() {
    let mut place = Place::new();
    place.record(|_| {});
    place.append(b"no JSON\n\xff\xfe\x00\n{\"class_uid\":3002,\n[]\n\n");
    place.record(|record| set(record, "/unmapped/schema_version", json!(2)));
    place.record(|record| set(record, "/metadata/version", json!("2.0.0")));
    place.record(|record| set(record, "/unmapped/verdict", json!("quarantined")));
    place.record(|record| set(record, "/unmapped/transport", json!("quic")));
    place.record(|record| set(record, "/unmapped", json!("another shape")));
    place.record(|record| set(record, "/class_uid", json!(6002)));
    place.record(|_| {});
    let state = place.state();
    assert_eq!(
        (state.sessions, state.garbage, state.later),
        (2, 3, 6),
        "{state:?}"
    );
    // Their numbers are not missing: the lines are there.
    assert_eq!(state.holes.len(), 0, "{state:?}");
}

#[test]
fn a_line_without_an_end_that_is_no_record_is_passed_over() {
    let mut place = Place::new();
    place.record(|_| {});
    place.append(&vec![b'x'; 3 * CHUNK / 2]);
    place.append(b"\n");
    place.record(|_| {});
    let state = place.state();
    assert_eq!((state.sessions, state.behind), (2, 0), "{state:?}");
    assert!(state.garbage >= 1);
}

#[test]
fn a_damaged_index_is_made_anew() {
    let mut place = Place::new();
    place.records(300);
    place.record(|record| set(record, "/src_endpoint/ip", json!("10.3.0.8")));
    assert_eq!(place.state().sessions, 301);
    let index = place.config.history.path.clone();
    let damages: [(&str, &dyn Fn()); 4] = [
        ("no database", &|| {
            fs::write(&index, "nonsense ".repeat(4000)).unwrap();
        }),
        ("cut", &|| {
            OpenOptions::new()
                .write(true)
                .open(&index)
                .unwrap()
                .set_len(5000)
                .unwrap();
        }),
        ("of another release", &|| {
            let db = rusqlite::Connection::open(&index).unwrap();
            db.execute_batch("PRAGMA user_version = 77").unwrap();
        }),
        ("of another program", &|| {
            fs::remove_file(&index).unwrap();
            let db = rusqlite::Connection::open(&index).unwrap();
            db.execute_batch("CREATE TABLE other (x)").unwrap();
        }),
    ];
    for (what, damage) in damages {
        damage();
        let mut history = place.open();
        history.update(now(), |_, _| true).unwrap();
        let clients = history.clients(&Filter::default()).unwrap();
        assert_eq!(clients.len(), 2, "{what}");
        assert_eq!(history.state().unwrap().sessions, 301, "{what}");
        assert!(history.take_rebuilt().is_some(), "{what}");
        assert!(place.path("state/history.db.damaged").exists(), "{what}");
        fs::remove_file(place.path("state/history.db.damaged")).unwrap();
    }
}

#[test]
fn damage_that_is_met_while_it_is_open_is_mended() {
    let mut place = Place::new();
    for n in 0..2000 {
        place.record(|record| set(record, "/user/name", json!(format!("user{n}"))));
    }
    let mut history = place.read();
    assert_eq!(history.clients(&Filter::default()).unwrap().len(), 2000);
    drop(history);
    // All pages but the first.
    let mut bytes = fs::read(&place.config.history.path).unwrap();
    bytes[4096..].fill(0xa5);
    fs::write(&place.config.history.path, bytes).unwrap();
    let mut history = place.open();
    let found = history
        .update(now(), |_, _| true)
        .and_then(|_| history.clients(&Filter::default()))
        .unwrap();
    assert_eq!(found.len(), 2000);
    assert!(history.take_rebuilt().is_some());
}

#[test]
fn of_many_that_find_it_damaged_one_makes_it_anew() {
    let mut place = Place::new();
    place.records(500);
    assert_eq!(place.state().sessions, 500);
    for _ in 0..10 {
        fs::write(&place.config.history.path, "nonsense ".repeat(4000)).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let config = place.config.clone();
                std::thread::spawn(move || {
                    let mut history = History::open(&config).unwrap();
                    history.update(now(), |_, _| true).unwrap();
                    history.state().unwrap().sessions
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), 500);
        }
    }
}

#[test]
fn another_process_may_make_it_anew() {
    let mut place = Place::new();
    place.records(2);
    let first = place.read();
    let mut second = place.open();
    second.rebuild().unwrap();
    assert!(!first.is_current() && second.is_current());
    drop(first);
    second.update(now(), |_, _| true).unwrap();
    assert_eq!(second.state().unwrap().sessions, 2);
}

#[test]
fn a_clock_that_was_set_back_puts_nobody_into_the_future() {
    let mut place = Place::new();
    let next_year = now().as_millisecond() + 365 * 86_400_000;
    place.record(|record| set(record, "/time", json!(next_year)));
    place.record(|_| {});
    place.record(|record| set(record, "/time", json!(-5)));
    let clients = place.clients();
    let [client] = &clients[..] else {
        panic!("{clients:?}")
    };
    assert_eq!(client.last_s, now().as_second());
    assert_eq!(client.first_s, 0);
    assert_eq!(place.state().newest_s, now().as_second());
}

#[test]
fn a_clock_that_is_ahead_of_the_records_takes_nothing_out() {
    let mut place = Place::new();
    place.records(3);
    let mut history = place.read();
    let later: Timestamp = "2099-01-01T00:00:00Z".parse().unwrap();
    history.update(later, |_, _| true).unwrap();
    assert_eq!(history.state().unwrap().clients, 1);
}

#[test]
fn what_is_too_old_goes() {
    let mut place = Place::new();
    place.config.history.keep = Duration::from_hours(24);
    let long_ago = now().as_millisecond() - 25 * 3_600_000;
    place.record(|record| {
        set(record, "/time", json!(long_ago));
        set(record, "/user/name", json!("gone"));
    });
    place.records(1);
    let state = place.state();
    assert_eq!((state.clients, state.forgotten), (1, 1), "{state:?}");
    assert_eq!(place.clients()[0].user.as_deref(), Some("etl"));
}

#[test]
fn of_too_many_those_go_that_came_once() {
    let mut place = Place::new();
    place.config.history.max_clients = 100;
    place.records(2);
    for n in 0..500 {
        place.record(|record| set(record, "/user/name", json!(format!("scan{n}"))));
    }
    let state = place.state();
    assert!(state.clients <= 100 && state.forgotten >= 401, "{state:?}");
    let clients = place.clients();
    assert!(
        clients
            .iter()
            .any(|client| client.user.as_deref() == Some("etl"))
    );
    assert!(
        clients
            .iter()
            .any(|client| client.user.as_deref() == Some("scan499"))
    );
    let history = place.read();
    let texts = rusqlite::Connection::open(history.path()).unwrap();
    let texts: i64 = texts
        .query_row("SELECT count(*) FROM text", [], |row| row.get(0))
        .unwrap();
    assert!(texts < 120, "{texts}");
}

#[test]
fn hostile_names_are_kept_safe_and_short() {
    let mut place = Place::new();
    place.record(|record| set(record, "/user/name", json!("a\u{1b}[2Jb\u{202e}c\n")));
    place.append(b"{\"class_uid\":3002,\"user\":{\"name\":\"\xff\"}}\n");
    place.record(|record| {
        set(
            record,
            "/unmapped/connection_attributes/_client_name",
            json!("x".repeat(100_000)),
        );
        set(record, "/unmapped/server", json!("\u{7}bell"));
        set(
            record,
            "/firewall_rule/name",
            json!("'; DROP TABLE client; --"),
        );
    });
    let clients = place.clients();
    assert_eq!(clients.len(), 2);
    for client in &clients {
        for text in [
            client.user.as_deref(),
            client.driver.as_deref(),
            Some(&*client.server),
            client.rule.as_deref(),
        ] {
            let text = text.unwrap();
            assert!(text.chars().count() <= 128, "{text}");
            assert!(!text.chars().any(char::is_control), "{text:?}");
            assert!(!text.contains('\u{202e}'), "{text:?}");
        }
    }
    assert!(
        clients
            .iter()
            .any(|client| client.user.as_deref() == Some("a\u{fffd}[2Jb\u{fffd}c\u{fffd}"))
    );
}

#[test]
fn the_index_is_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut place = Place::new();
    place.records(1);
    let history = place.read();
    for entry in fs::read_dir(place.path("state")).unwrap() {
        let entry = entry.unwrap();
        let mode = entry.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", entry.path().display());
    }
    let directory = fs::metadata(place.path("state"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(directory & 0o777, 0o700);
    drop(history);
    // A link that another put there leads nowhere.
    fs::remove_file(&place.config.history.path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &place.config.history.path).unwrap();
    assert!(History::open(&place.config).is_err());
}

#[test]
fn there_is_no_history_without_a_file_of_records() {
    let mut place = Place::new();
    place.config.audit = AuditTarget::Stdout;
    assert!(source(&place.config).is_err());
    place.config.audit = AuditTarget::File("/dev/null".into());
    let error = source(&place.config).unwrap_err().to_string();
    assert!(
        error.contains("/dev/null") && error.contains("help: "),
        "{error}"
    );
    place.config.history.enabled = false;
    assert!(
        source(&place.config)
            .unwrap_err()
            .to_string()
            .contains("enabled")
    );
}

#[test]
fn a_client_takes_less_than_200_bytes() {
    let mut place = Place::new();
    let count = 20_000_u32;
    let mut lines = String::new();
    for n in 0..count {
        let mut record = plain(u64::from(n) + 1);
        let spread = n.wrapping_mul(2_654_435_761);
        set(
            &mut record,
            "/src_endpoint/ip",
            json!(
                std::net::Ipv6Addr::from((0x2001_0db8_u128 << 96) | u128::from(spread)).to_string()
            ),
        );
        set(&mut record, "/user/name", json!(format!("application-{n}")));
        lines.extend([record.to_string(), "\n".to_owned()]);
    }
    place.append(lines.as_bytes());
    place.written = u64::from(count);
    assert_eq!(place.state().clients, u64::from(count));
    // What closes it last writes the journal back.
    let size = fs::metadata(&place.config.history.path).unwrap().len();
    let each = size / u64::from(count);
    assert!(each <= 200, "{each} bytes");
}

#[test]
fn sessions_are_counted_by_hour() {
    let mut place = Place::new();
    // An hour before now, and half an hour before.
    place.record(|record| set(record, "/unmapped/verdict", json!("denied")));
    place.record(|_| {});
    for (version, minutes) in [("1.3", 30), ("1.3", 31), ("1.2", 31), ("0x9999", 31)] {
        let at = now().as_millisecond() - minutes * 60_000;
        place.record(|record| {
            set(record, "/time", json!(at));
            set(record, "/unmapped/transport", json!("tls"));
            set(record, "/unmapped/verdict", json!("allowed"));
            record["unmapped"]["tls"] = json!({"version": version, "cipher": "x"});
        });
    }
    let mut history = place.read();
    let tally = |class, passed, tls, sessions| Tally {
        begin_s: now().as_second() - HOUR_S,
        class,
        passed,
        tls,
        sessions,
    };
    let expected = [
        tally(Class::Plaintext, Outcome::Observed, 0, 1),
        tally(Class::Plaintext, Outcome::Denied, 0, 1),
        // A version that a client made up is none.
        tally(Class::Tls, Outcome::Allowed, 0, 1),
        tally(Class::Tls, Outcome::Allowed, 0x0303, 1),
        tally(Class::Tls, Outcome::Allowed, 0x0304, 2),
    ];
    assert_eq!(history.tallies(None).unwrap(), expected);
    let later = now().as_second();
    assert_eq!(history.tallies(Some(later)).unwrap(), []);
    // A second time, they are added up.
    place.record(|_| {});
    let tallies = place.read().tallies(None).unwrap();
    assert_eq!((tallies.len(), hours::sum(&tallies)), (5, 7));
}

#[test]
fn hours_are_forgotten_with_their_clients_and_are_bounded() {
    let mut place = Place::new();
    let day_ms = 24 * 3_600_000;
    for days in [500, 399, 95, 1] {
        place.record(|record| {
            set(
                record,
                "/time",
                json!(now().as_millisecond() - days * day_ms),
            );
        });
    }
    let days = |place: &Place| -> Vec<i64> {
        let tallies = place.read().tallies(None).unwrap();
        let age = |tally: &Tally| (now().as_second() - tally.begin_s) / (24 * HOUR_S);
        tallies.iter().map(age).collect()
    };
    assert_eq!(days(&place), [1]);
    fs::remove_dir_all(place.path("state")).unwrap();
    place.config.history.keep = Duration::from_hours(24 * 10_000);
    assert_eq!(days(&place), [399, 95, 1]);
}
