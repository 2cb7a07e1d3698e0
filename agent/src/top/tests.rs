use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;
use serde_json::{Value, json};

use super::session::Session;
use super::state::{Action, Focus, Pane, Report, Silence, State};
use super::view::{self, Scene, duration};
use crate::status::Status;

/// Now, in milliseconds of Unix time.
const NOW_MS: i64 = 1_795_000_000_000;
const DAY_MS: i64 = 86_400_000;

fn status(refused: u64) -> Value {
    json!({
        "version": "0.1.0", "pid": 4711, "started_ms": NOW_MS - 3 * DAY_MS - 4 * 3_600_000,
        "policy": {"name": "/etc/musttls/musttls.toml", "version": 7, "mode": "observe", "exceptions": 2, "rejected": null},
        "coverage": {"listeners": 2, "covered": 2, "unix_sessions": "kernel", "errors": []},
        "servers": [{
            "pid": 912, "program": "mariadbd", "cgroup": "/system.slice/mariadb.service", "container": null,
            "listeners": [
                {"address": "0.0.0.0:3306", "protocol": "classic", "settings": "orders", "mode": "enforce", "covered": true, "reason": null},
                {"address": "[::]:3307", "protocol": "classic", "settings": "default", "mode": "observe", "covered": true, "reason": null},
            ],
            "unix": ["/run/mysqld/mysqld.sock"],
        }],
        "sessions": {
            "orders": {"seen": 13_000 + refused, "secure": 12_345, "denied": refused, "excepted": 4, "half-open": 600, "no-login": 1},
            "default": {"seen": 20, "observed": 20},
        },
        "tls_versions": {"orders": {"1.2": 345, "1.3": 12_000}, "default": {}},
        "exceptions": [
            {"name": "forever", "owner": "ops", "server": null, "ends_ms": null, "holds": true, "sessions": 0},
            {"name": "gone", "owner": "ops", "server": null, "ends_ms": NOW_MS - 1, "holds": false, "sessions": 1},
            {"name": "legacy-etl", "owner": "dba@example.com", "server": "orders", "ends_ms": NOW_MS + 5 * DAY_MS + 7_200_000, "holds": true, "sessions": 4},
        ],
        "refusals": {"landed": refused}, "held_segments": {"split": 3, "gap": 0}, "lost_events": {},
        "audit": {"target": "/var/log/musttls/audit.jsonl", "written": 12_400, "lost": 0, "sequence": 12_400},
    })
}

fn session(seconds_ago: i64, user: &str, verdict: &str) -> Session {
    let is_refused = verdict == "denied";
    Session {
        time_ms: NOW_MS - seconds_ago * 1000,
        client: "10.20.4.17".to_owned(),
        user: user.to_owned(),
        program: "mysqldump".to_owned(),
        server: if is_refused { "orders" } else { "default" }.to_owned(),
        verdict: verdict.to_owned(),
        reason: "no-client-ssl".to_owned(),
        rule: "require-tls".to_owned(),
        outcome: if is_refused { "landed" } else { "" }.to_owned(),
        is_plaintext: true,
    }
}

fn report(status: Value, sessions: Vec<Session>) -> Report {
    Report {
        status: Ok(Box::new(serde_json::from_value(status).unwrap())),
        is_other_file: false,
        sessions,
        unread: None,
    }
}

fn silent(why: &str, gate: Option<bool>) -> Report {
    let why = why.to_owned();
    Report {
        status: Err(Silence { why, gate }),
        is_other_file: false,
        sessions: Vec::new(),
        unread: None,
    }
}

/// Two answers, two seconds apart.
fn state(start: Instant) -> State {
    let mut state = State::new(Duration::from_secs(2));
    let old = vec![
        session(7200, "report", "would_deny"),
        session(90, "app", "denied"),
    ];
    state.take(report(status(11), old), start);
    let new = vec![session(2, "ev\u{1b}[31mil\u{202e}", "denied")];
    state.take(report(status(12), new), start + Duration::from_secs(2));
    state
}

fn buffer(
    state: &mut State,
    start: Instant,
    (width, height): (u16, u16),
    has_colors: bool,
) -> Buffer {
    let scene = Scene {
        socket: "/run/musttls/control.sock",
        now: start + Duration::from_secs(3),
        now_ms: NOW_MS,
        has_colors,
    };
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal
        .draw(|frame| view::draw(frame, state, &scene))
        .unwrap();
    terminal.backend().buffer().clone()
}

/// The rows of the screen, without the blanks at their ends.
fn screen(state: &mut State, start: Instant, size: (u16, u16)) -> Vec<String> {
    let buffer = buffer(state, start, size, false);
    let width = usize::from(size.0);
    buffer
        .content()
        .chunks(width)
        .map(|row| {
            let text: String = row.iter().map(ratatui::buffer::Cell::symbol).collect();
            text.trim_end().to_owned()
        })
        .collect()
}

fn key(code: KeyCode) -> KeyEvent {
    KeyEvent::new(code, KeyModifiers::NONE)
}

fn press(state: &mut State, keys: &str) {
    for c in keys.chars() {
        state.key(key(KeyCode::Char(c)));
    }
}

/// What stands above the lists at 80 columns.
const ABOVE: [&str; 11] = [
    "musttls top  agent 0.1.0, process 4711, up 3 d 4 h  policy 7 observe",
    "sessions                total  a second  TLS versions on record",
    "TLS                    12,345       0.0  1.3           12,000   97 %",
    "refused                    12       0.5  1.2              345    2 %",
    "plaintext passed           20       0.0  other              0    0 %",
    "by an exception             4       0.0  covered  2 of 2 listeners",
    "TLS failed                  0       0.0  lost     0 events and records",
    "no login                  601       0.0  held     3 segments",
    "servers  default observe, orders enforce",
    "exceptions  2 in force; legacy-etl ends in 5 d 2 h (dba@example.com)",
    " 1 Clients   2 Refusals   3 Exceptions   4 Servers   5 Health",
];

/// The rows of the list, without the empty ones below it.
fn list_of(rows: &[String]) -> Vec<&str> {
    let list = rows.get(ABOVE.len()..rows.len() - 1).unwrap();
    let end = list
        .iter()
        .rposition(|row| !row.is_empty())
        .map_or(0, |last| last + 1);
    list.iter().take(end).map(String::as_str).collect()
}

#[test]
fn at_80x24_all_lists_have_their_rows() {
    let start = Instant::now();
    let mut state = state(start);
    let rows = screen(&mut state, start, (80, 24));
    assert_eq!(rows.get(..ABOVE.len()).unwrap(), ABOVE);
    assert_eq!(
        rows.last().unwrap(),
        "F1Help TabNext /Filter SpacePause +-every 2 s F10Quit                   1-3 of 3"
    );
    for (key, list) in [
        ("1", CLIENTS_80),
        ("2", REFUSALS_80),
        ("3", EXCEPTIONS_80),
        ("4", SERVERS_80),
        ("5", HEALTH_80),
    ] {
        press(&mut state, key);
        let rows = screen(&mut state, start, (80, 24));
        assert_eq!(list_of(&rows), list, "list {key}");
    }
}

#[test]
fn at_120x40_names_have_more_room() {
    let start = Instant::now();
    let mut state = state(start);
    let rows = screen(&mut state, start, (120, 40));
    assert_eq!(rows.len(), 40);
    assert_eq!(rows.get(..ABOVE.len()).unwrap(), ABOVE);
    assert_eq!(list_of(&rows), CLIENTS_120);
    assert!(rows.last().unwrap().ends_with("1-3 of 3"));
}

#[test]
fn a_terminal_that_is_too_small_is_told_so_and_none_panics() {
    let start = Instant::now();
    let mut state = state(start);
    let rows = screen(&mut state, start, (40, 10));
    assert_eq!(
        rows.get(..3).unwrap(),
        ["too small: 40x10; musttls top needs", "70x18. q quits", ""]
    );
    state.take(silent(&"long ".repeat(100), Some(true)), start);
    for pane in ["1", "2", "3", "4", "5", "?", "/"] {
        state.focus = Focus::List;
        press(&mut state, pane);
        for size in [(1, 1), (5, 3), (70, 18), (71, 19), (300, 100)] {
            let rows = screen(&mut state, start, size);
            assert_eq!(rows.len(), usize::from(size.1));
        }
    }
}

#[test]
fn the_smallest_size_has_a_row_of_each_list() {
    let start = Instant::now();
    let mut state = state(start);
    state.take(silent(&"long ".repeat(100), Some(true)), start);
    let rows = screen(&mut state, start, (70, 18));
    assert!(
        rows.iter()
            .any(|row| row.contains("mysqldump") || row.contains("mysqldu")),
        "{rows:#?}"
    );
}

#[test]
fn no_agent_is_told_with_what_it_means_and_the_last_answer_stays() {
    let start = Instant::now();
    let mut unanswered = State::new(Duration::from_secs(2));
    let why = "no agent answers at /s: No such file or directory (os error 2)";
    unanswered.take(silent(why, Some(false)), start);
    let rows = screen(&mut unanswered, start, (80, 24));
    assert_eq!(
        rows.get(..3).unwrap(),
        [
            "musttls top",
            "NO ANSWER: no agent answers at /s: No such file or directory (os error 2). No",
            "gate stays on without an agent. Trying on.",
        ]
    );

    for pane in ["1", "2", "3", "4", "5"] {
        press(&mut unanswered, pane);
        let rows = screen(&mut unanswered, start, (80, 24));
        assert!(
            rows.iter().any(|row| row == "no agent has answered yet"),
            "{rows:#?}"
        );
    }

    let mut state = state(start);
    state.take(silent(why, Some(true)), start + Duration::from_secs(3));
    let rows = screen(&mut state, start, (80, 24));
    assert_eq!(
        rows.get(1..4).unwrap(),
        [
            "NO ANSWER: no agent answers at /s: No such file or directory (os error 2). THE",
            "GATE IS ON all the same: it judges by the last policy, and refused clients get",
            "no answer. What follows is 1 s old. Trying on.",
        ]
    );
    let refused = "refused                    12         -  1.2              345    2 %";
    assert!(rows.iter().any(|row| row == refused), "{rows:#?}");

    state.take(
        report(status(13), Vec::new()),
        start + Duration::from_secs(4),
    );
    let rows = screen(&mut state, start, (80, 24));
    assert!(!rows.join(" ").contains("NO ANSWER"));
}

#[test]
fn an_agent_that_does_not_answer_is_pointed_out() {
    let start = Instant::now();
    let mut state = state(start);
    state.asked = Some(start);
    assert_eq!(
        screen(&mut state, start, (80, 24))
            .get(..ABOVE.len())
            .unwrap(),
        ABOVE
    );
    state.asked = start.checked_sub(Duration::from_secs(4));
    assert_eq!(
        screen(&mut state, start, (80, 24)).get(1).unwrap(),
        "the agent at /run/musttls/control.sock has not answered for 7 s"
    );
}

#[test]
fn alarms_are_told_on_every_list_and_explained_in_health() {
    let start = Instant::now();
    let mut status = status(12);
    *status.pointer_mut("/coverage/covered").unwrap() = json!(1);
    status.as_object_mut().unwrap().insert(
        "alarms".to_owned(),
        json!([{"kind": "sockmap", "pid": 912, "program": "maria\u{1b}dbd", "found": "a sockmap", "meaning": "m".repeat(90), "remedy": "unload it"}]),
    );
    let mut state = State::new(Duration::from_secs(2));
    state.take(report(status, Vec::new()), start);
    let rows = screen(&mut state, start, (80, 24));
    assert_eq!(rows.get(1).unwrap(), "1 ALARMS: see Health (key 5)");
    assert!(
        rows.iter()
            .any(|row| row.ends_with("covered  1 of 2 listeners"))
    );
    press(&mut state, "5");
    let rows = screen(&mut state, start, (80, 24));
    let at = rows
        .iter()
        .position(|row| row.starts_with("ALARM"))
        .unwrap();
    assert_eq!(
        rows.get(at..at + 4).unwrap(),
        [
            "ALARM        maria\u{fffd}dbd 912: a sockmap (sockmap)".to_owned(),
            format!("  means      {}", "m".repeat(67)),
            format!("             {}", "m".repeat(23)),
            "  help       unload it".to_owned(),
        ]
    );
}

#[test]
fn rates_are_differences_of_two_answers_of_one_agent() {
    let start = Instant::now();
    let mut state = state(start);
    assert_eq!(state.rate(&["denied"]), Some(0.5));
    let mut other = status(20);
    *other.pointer_mut("/pid").unwrap() = json!(4712);
    state.take(
        report(other.clone(), Vec::new()),
        start + Duration::from_secs(4),
    );
    assert_eq!(state.rate(&["denied"]), None, "of two agents");
    assert_eq!(state.total(&["denied"]), 20);
    let mut less = other.clone();
    *less.pointer_mut("/sessions/orders/denied").unwrap() = json!(3);
    state.take(report(less, Vec::new()), start + Duration::from_secs(6));
    assert_eq!(state.rate(&["denied"]), None, "counted down");
    state.take(report(other, Vec::new()), start + Duration::from_secs(6));
    assert_eq!(state.rate(&["denied"]), None, "no time has passed");
}

#[test]
fn clients_are_counted_together_and_another_file_begins_anew() {
    let start = Instant::now();
    let mut state = State::new(Duration::from_secs(2));
    let sessions = vec![
        session(9, "app", "denied"),
        session(3, "app", "denied"),
        session(5, "app", "denied"),
        Session {
            is_plaintext: false,
            ..session(1, "tls", "denied")
        },
    ];
    state.take(report(status(1), sessions), start);
    let clients = state.clients_by_time();
    let (_, client) = clients.first().unwrap();
    assert_eq!((clients.len(), client.sessions), (1, 3));
    assert_eq!(client.last.time_ms, NOW_MS - 3000);
    assert_eq!(
        state.refusals.len(),
        4,
        "refused TLS is a refusal, and no client in plaintext"
    );
    let mut other = report(status(1), vec![session(1, "new", "would_deny")]);
    other.is_other_file = true;
    state.take(other, start);
    assert_eq!((state.clients.len(), state.refusals.len()), (1, 0));
}

#[test]
fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
    let start = Instant::now();
    let mut state = State::new(Duration::from_secs(2));
    let sessions = (0..3000).map(|n| session(4000 - n, &format!("u{n}"), "denied"));
    state.take(report(status(1), sessions.collect()), start);
    assert_eq!((state.clients.len(), state.refusals.len()), (2000, 500));
    let clients = state.clients_by_time();
    let users = [clients.first(), clients.last()].map(|found| found.unwrap().0.user.clone());
    assert_eq!(users, ["u2999", "u1000"]);
}

#[test]
fn lists_scroll_by_row_and_page_and_stay_within_bounds() {
    let start = Instant::now();
    let mut state = State::new(Duration::from_secs(2));
    let sessions = (0..30).map(|n| session(n, &format!("u{n:02}"), "denied"));
    state.take(report(status(1), sessions.collect()), start);
    let mut after = |code: KeyCode| {
        state.key(key(code));
        let rows = screen(&mut state, start, (80, 24));
        rows.last()
            .unwrap()
            .rsplit("  ")
            .next()
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(after(KeyCode::Up), "1-11 of 30");
    assert_eq!(after(KeyCode::Down), "2-12 of 30");
    assert_eq!(after(KeyCode::PageDown), "13-23 of 30");
    assert_eq!(after(KeyCode::End), "20-30 of 30");
    assert_eq!(after(KeyCode::Down), "20-30 of 30");
    assert_eq!(after(KeyCode::Up), "19-29 of 30");
    assert_eq!(after(KeyCode::PageUp), "8-18 of 30");
    assert_eq!(after(KeyCode::Home), "1-11 of 30");
    assert_eq!(after(KeyCode::Tab), "1-11 of 30", "the refusals");
    assert_eq!(after(KeyCode::BackTab), "1-11 of 30");
}

#[test]
fn a_filter_leaves_rows_out_whatever_the_case_until_esc() {
    let start = Instant::now();
    let mut state = state(start);
    press(&mut state, "/REPq");
    state.key(key(KeyCode::Backspace));
    assert_eq!(state.focus, Focus::Filter, "q is a letter here");
    let rows = screen(&mut state, start, (80, 24));
    assert!(
        rows.last()
            .unwrap()
            .starts_with("Filter: REP_   Enter keeps it, Esc shows all")
    );
    state.key(key(KeyCode::Enter));
    let rows = screen(&mut state, start, (80, 24));
    assert_eq!(list_of(&rows).len(), 2, "titles and one row: {rows:#?}");
    assert!(rows.last().unwrap().ends_with("1-1 of 1"));
    press(&mut state, "3");
    let rows = screen(&mut state, start, (80, 24));
    assert_eq!(list_of(&rows), ["nothing has `REP` in it (Esc shows all)"]);
    state.key(key(KeyCode::Esc));
    assert_eq!(list_of(&screen(&mut state, start, (80, 24))), EXCEPTIONS_80);
}

#[test]
fn keys_do_as_in_htop() {
    let mut state = State::new(Duration::from_secs(2));
    assert_eq!(state.key(key(KeyCode::Char('q'))), Action::Quit);
    assert_eq!(state.key(key(KeyCode::F(10))), Action::Quit);
    let control = |c| KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL);
    assert_eq!(state.key(control('c')), Action::Quit);
    assert_eq!(state.key(control('z')), Action::Stop);
    assert_eq!(state.key(control('l')), Action::Redraw);
    press(&mut state, " ");
    assert!(state.is_paused);
    press(&mut state, " ");
    assert!(!state.is_paused);
    press(&mut state, "+++");
    assert_eq!(state.interval.as_secs(), 20);
    press(&mut state, "---------");
    assert_eq!(state.interval.as_secs(), 1);
    press(&mut state, "+++++++++");
    assert_eq!(state.interval.as_secs(), 60);
    state.key(key(KeyCode::BackTab));
    assert_eq!(state.pane, Pane::Health);
    state.key(key(KeyCode::Tab));
    assert_eq!(state.pane, Pane::Clients);
    state.key(key(KeyCode::F(1)));
    assert_eq!(state.focus, Focus::Help);
    let start = Instant::now();
    let rows = screen(&mut state, start, (80, 24));
    assert!(
        rows.iter()
            .any(|row| row.starts_with("q F10 Ctrl-C   quit"))
    );
    assert!(
        rows.iter().all(|row| row.chars().count() < 80),
        "a line of the help is cut"
    );
    assert_eq!(state.key(key(KeyCode::Char('x'))), Action::Draw);
    assert_eq!(state.focus, Focus::List);
}

#[test]
fn without_colors_there_are_none_and_with_them_refusals_are_red() {
    let start = Instant::now();
    let mut state = state(start);
    for has_colors in [true, false] {
        let buffer = buffer(&mut state, start, (80, 24), has_colors);
        let colors: Vec<_> = buffer.content().iter().map(|cell| cell.fg).collect();
        assert_eq!(colors.contains(&Color::Red), has_colors);
        assert_eq!(
            colors.iter().any(|color| *color != Color::Reset),
            has_colors
        );
        assert!(buffer.content().iter().all(|cell| cell.bg == Color::Reset));
    }
}

#[test]
fn an_answer_of_an_older_agent_is_understood() {
    let mut old = status(1);
    let fields = old.as_object_mut().unwrap();
    fields.remove("tls_versions");
    fields.remove("exceptions");
    let status: Status = serde_json::from_value(old).unwrap();
    assert!(status.exceptions.is_empty() && status.tls_versions.is_empty());
}

#[test]
fn durations_read_well() {
    let texts = [-5, 59_999, 60_000, 3_600_000, DAY_MS, 10 * DAY_MS].map(duration);
    assert_eq!(
        texts,
        ["0 s", "59 s", "1 min", "1 h 0 min", "1 d 0 h", "10 d"]
    );
}

const CLIENTS_80: &[&str] = &[
    "ago       sessions client     user         program      server      verdict",
    "2 s       1        10.20.4.17 ev�[31mil�   mysqldump    orders      refused",
    "1 min     1        10.20.4.17 app          mysqldump    orders      refused",
    "2 h 0 min 1        10.20.4.17 report       mysqldump    default     passed",
];
const REFUSALS_80: &[&str] = &[
    "ago       client     user        program     server      reason         ended",
    "2 s       10.20.4.17 ev�[31mil�  mysqldump   orders      no-client-ssl  landed",
    "1 min     10.20.4.17 app         mysqldump   orders      no-client-ssl  landed",
];
const EXCEPTIONS_80: &[&str] = &[
    "ends           exception             owner                 server      sessions",
    "in 5 d 2 h     legacy-etl            dba@example.com       orders      4",
    "never          forever               ops                   any         0",
    "not in force   gone                  ops                   any         1",
];
const SERVERS_80: &[&str] = &[
    "mode     listener                    speaks  settings  program         covered",
    "enforce  0.0.0.0:3306                classic orders    mariadbd 912    yes",
    "observe  [::]:3307                   classic default   mariadbd 912    yes",
    "recorded /run/mysqld/mysqld.sock     unix              mariadbd 912",
];
const HEALTH_80: &[&str] = &[
    "what         how it is",
    "gate         stays on without the agent (musttls disarm takes it off)",
    "policy       /etc/musttls/musttls.toml version 7, observe, 2 exceptions in force",
    "audit        /var/log/musttls/audit.jsonl: 12400 written, 0 lost",
    "refusals     landed 12",
    "held         split 3",
    "lost         none",
    "TLS          orders 1.2: 345, 1.3: 12,000",
    "Unix         sessions are found by kernel",
];
const CLIENTS_120: &[&str] = &[
    "ago       sessions client     user                   program                server                verdict",
    "2 s       1        10.20.4.17 ev�[31mil�             mysqldump              orders                refused",
    "1 min     1        10.20.4.17 app                    mysqldump              orders                refused",
    "2 h 0 min 1        10.20.4.17 report                 mysqldump              default               passed",
];
