//! Whole pages, read again.

use super::*;
use std::sync::Arc;

use jiff::SignedDuration;
use musttls_common::verdict::Mode;

use crate::audit::record::Outcome;
use crate::config::{Conditions, Exception, Expiry, OwnTls, ServerConfig};
use crate::history::{Class, Hole};

const NAMES: [&str; 4] = ["etl", "mysqldump", "libmariadb", "dba@example.com"];
/// What would become markup, end an attribute, or disturb a terminal or the order of reading.
const HOSTILE: [&str; 4] = [
    "</bdi><script>alert(1)</script>",
    "\"' onmouseover='x' --><!--",
    "\u{1b}[2J\u{0}\u{202e}\u{fffd}",
    "</style></svg><img src=//x>&lt;&#60;",
];

fn now() -> Timestamp {
    "2026-11-23T12:30:00Z".parse().unwrap()
}

fn config([user, owner, reason, name]: [&str; 4]) -> Config {
    let exception = |name: String, source: &str, end| Exception {
        name,
        source: vec![source.parse().unwrap()],
        users: vec![user.to_owned()],
        server: Some(name_of_server()),
        not_before: None,
        expires: end,
        owner: owner.to_owned(),
        reason: reason.to_owned(),
        conditions: Conditions::default(),
    };
    let mut first = exception(
        format!("{name}-used"),
        "10.3.0.0/16",
        Expiry::At(now() + SignedDuration::from_hours(24 * 3)),
    );
    // No exception knows a user whose name cannot be shown.
    first.users.clear();
    let days = |days: i64| Expiry::At(now() + SignedDuration::from_hours(24 * days));
    Config {
        mode: Mode::Enforce,
        servers: vec![ServerConfig {
            name: name_of_server(),
            ports: vec![3306],
            mode: Some(Mode::Observe),
            mode_end: None,
            tls: OwnTls::default(),
            loopback: None,
            index: 1,
        }],
        exceptions: vec![
            first,
            exception(format!("{name}-idle"), "192.0.2.0/24", days(60)),
            exception(format!("{name}-ended"), "192.0.2.0/24", days(-1)),
            exception(format!("{name}-for-good"), "192.0.2.0/24", Expiry::Never),
        ],
        ..Config::default()
    }
}

fn name_of_server() -> String {
    "orders".to_owned()
}

fn clients([user, program, driver, _]: [&str; 4]) -> Vec<Client> {
    let text = |text: &str| Some(Arc::from(text));
    let client = |peer: [u8; 4], sessions| Client {
        server: Arc::from("orders"),
        peer: Some(peer.into()),
        user: text(user),
        program: text(program),
        driver: text(driver),
        version: text(driver),
        first_s: now().as_second() - 7200,
        last_s: now().as_second() - 60,
        sessions,
        rule: text(user),
        ..Client::in_the_clear()
    };
    let mut excepted = client([10, 3, 0, 7], 40);
    excepted.passed = Outcome::Excepted;
    let mut refused = client([10, 9, 0, 1], 3);
    (refused.refused, refused.passed) = (2, Outcome::Denied);
    let secure = Client {
        class: Class::Tls,
        passed: Outcome::Allowed,
        tls: 0x0304,
        cipher: 0x1301,
        ..client([10, 0, 0, 1], 900)
    };
    vec![excepted, client([10, 9, 0, 2], 50), refused, secure]
}

fn tallies() -> Vec<Tally> {
    let tally = |hours: i64, class, passed, tls, sessions| Tally {
        begin_s: (now().as_second() / HOUR_S - hours) * HOUR_S,
        class,
        passed,
        tls,
        sessions,
    };
    vec![
        tally(2, Class::Plaintext, Outcome::Excepted, 0, 40),
        tally(2, Class::Plaintext, Outcome::Observed, 0, 50),
        tally(1, Class::Tls, Outcome::Allowed, 0x0304, 890),
        tally(1, Class::Tls, Outcome::Allowed, 0x0302, 10),
        tally(0, Class::Plaintext, Outcome::Denied, 0, 1_002),
        tally(0, Class::Unix, Outcome::Allowed, 0, 17),
    ]
}

fn page_of(names: [&str; 4]) -> String {
    let config = config(names);
    report(
        &Facts {
            host: names[3].to_owned(),
            now: now(),
            since: None,
            config: &config,
            policy: names[2].to_owned(),
            version: Some(43),
            clients: clients(names),
            tallies: tallies(),
            state: State {
                since_s: now().as_second() - 86_400,
                holes: vec![Hole {
                    at_s: 0,
                    missing: None,
                    why: names[0].to_owned(),
                }],
                ..State::default()
            },
        },
        |_| {},
    )
}

/// The tags of a page with their attributes' names, in their order; each that is opened is closed where it may be.
fn structure(page: &str) -> Vec<String> {
    const VOID: [&str; 2] = ["meta", "!DOCTYPE"];
    let mut found = Vec::new();
    let mut open: Vec<String> = Vec::new();
    let mut rest = page;
    while let Some((_, tag)) = rest.split_once('<') {
        let (tag, behind) = tag.split_once('>').expect("a tag without its end");
        rest = behind;
        let name = tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap();
        let values: Vec<&str> = tag.split('"').collect();
        assert!(values.len() % 2 == 1, "an attribute without its end: {tag}");
        let attributes: Vec<&str> = values.iter().step_by(2).copied().collect();
        found.push(attributes.join("\"\""));
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_deref(), Some(name), "closed: {tag}");
        } else if !tag.ends_with('/') && !VOID.contains(&name) {
            open.push(name.to_owned());
        }
    }
    assert_eq!(open, Vec::<String>::new());
    found
}

/// What stands between the tags.
fn words(page: &str) -> String {
    let parts = page.split('<').filter_map(|part| part.split_once('>'));
    parts.map(|(_, text)| text).collect()
}

#[test]
fn whatever_a_client_calls_itself_the_page_has_the_same_tags() {
    let expected = structure(&page_of(NAMES));
    for turn in 0..4 {
        let names = std::array::from_fn(|index| HOSTILE[(index + turn) % 4]);
        let page = page_of(names);
        assert!(structure(&page) == expected, "turn {turn}");
        assert!(!page.contains("<script") && !page.contains("<img"));
        let disturbing = |c| crate::login::disturbs(c) && c != '\n';
        assert_eq!(page.find(disturbing), None);
        assert!(words(&page).contains("&lt;/bdi&gt;&lt;script&gt;alert(1)&lt;/script&gt;"));
    }
}

#[test]
fn a_page_is_alone() {
    let page = page_of(NAMES);
    let policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">";
    assert!(page.contains(policy));
    for foreign in [
        "<script", "<link", "<img", " src=", "href=", "http://", "https://", "@import",
    ] {
        assert!(!page.contains(foreign), "{foreign}");
    }
    // A reference to a part of the page itself is all that a style may load.
    assert!(page.split("url(").skip(1).all(|rest| rest.starts_with('#')));
}

#[test]
fn the_same_facts_make_the_same_page() {
    assert_eq!(page_of(NAMES), page_of(NAMES));
}

#[test]
fn the_first_lines_say_whose_page_it_is_and_what_is_the_matter() {
    let page = page_of(NAMES);
    let head = page.split_once("<header>").unwrap().1;
    let head = head.split_once("<dl").unwrap().0;
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        head,
        format!(
            "\n<p class=\"about\">musttls report of <b><bdi class=\"word\">dba@example.com</bdi></b> &middot; 2026-11-23 10:00 to 2026-11-23 12:30 UTC \
             &middot; made 2026-11-23 12:30 UTC by musttls {version} &middot; policy <bdi class=\"word\">libmariadb</bdi>, version 43, in force</p>\n\
             <h1>90.9 % of the sessions over TCP used TLS</h1>\n\
             <p class=\"verdict\"><b class=\"bad\">2 clients</b> would be refused if every server were in enforce mode.</p>\n"
        )
    );
}

#[test]
fn each_section_says_what_the_facts_say() {
    let text = words(&page_of(NAMES));
    for expected in [
        "1,002 sessions were refused in this period.",
        "deprecated (RFC 8996)",
        "MariaDB Connector/C",
        "40 sessions",
        "2026-11-26 12:30 soon",
        "ended 2026-11-22 12:30",
        "never",
        "by nobody",
        "Records are missing in 1 place",
        "TLS had 0 % of the sessions let in on 2026-11-23 10:00, and 100 % on 2026-11-23 11:00.",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
    // 10.9.0.2 is busier than 10.3.0.7; the other two of those in the clear follow.
    let clear = text.split_once("Clients in plaintext").unwrap().1;
    let order = ["10.9.0.2", "10.3.0.7", "10.9.0.1"].map(|client| clear.find(client).unwrap());
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn without_a_session_there_is_a_page_that_says_so() {
    let config = Config::default();
    let page = report(
        &Facts {
            host: "db-1".to_owned(),
            now: now(),
            since: Some(now() - SignedDuration::from_hours(24)),
            config: &config,
            policy: "p.toml".to_owned(),
            version: None,
            clients: Vec::new(),
            tallies: Vec::new(),
            state: State::default(),
        },
        |_| {},
    );
    structure(&page);
    let text = words(&page);
    assert!(
        text.contains("No session over TCP is on record")
            && text.contains("There were no sessions.")
            && text.contains("would refuse is not known"),
        "{text}"
    );
    assert!(text.contains("2026-11-22 12:00 to 2026-11-23 12:30 UTC"));
}

#[test]
fn of_very_many_clients_the_first_are_shown() {
    let config = Config::default();
    let clients = (0..2_000).map(|n| Client {
        user: Some(Arc::from(format!("user{n}"))),
        ..Client::in_the_clear()
    });
    let facts = Facts {
        host: "db-1".to_owned(),
        now: now(),
        since: None,
        config: &config,
        policy: "p.toml".to_owned(),
        version: None,
        clients: clients.collect(),
        tallies: tallies(),
        state: State::default(),
    };
    let page = report(&facts, |_| {});
    assert!(words(&page).contains("And 1,500 more"));
    assert!(page.len() < 2 << 20, "{} bytes", page.len());
}
