use super::*;
use musttls_common::mysql::USER_MAX;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

const GOOD: &str = r#"
mode = "enforce"
[[server]]
name  = "orders"
ports = [3306]
mode  = "observe"
[[exception]]
name    = "legacy-etl"
source  = ["10.3.0.0/16", "2001:db8::/32", "::ffff:192.0.2.0/120"]
user    = ["etl"]
server  = "orders"
expires = 2027-03-31
owner   = "dba@example.com"
reason  = "MySQL 5.6 client, migration DB-812"
[audit]
path = "-"
[metrics]
listen = "127.0.0.1:9637"
[control]
socket = "/run/musttls/other.sock"
"#;

fn now() -> Timestamp {
    "2026-11-22T12:00:00Z".parse().unwrap()
}

fn parse(text: &str) -> Result<Loaded, String> {
    Config::parse(
        Path::new("/etc/musttls/musttls.toml"),
        text,
        now(),
        PastDates::Refuse,
    )
    .map_err(|error| error.to_string())
}

/// The report of a file that is wrong.
fn report(text: &str) -> String {
    parse(text).expect_err("the file is wrong")
}

/// The report of an otherwise right exception with `line` in place of the one of the same key.
fn exception_report(line: &str) -> String {
    report(&exception_with(line))
}

fn exception_with(line: &str) -> String {
    let key = line.split_once('=').map_or(line, |(key, _)| key).trim();
    let mut text = "[[exception]]\n".to_owned();
    for good in [
        "name = \"a\"",
        "source = [\"10.0.0.0/8\"]",
        "expires = \"never\"",
        "owner = \"o\"",
        "reason = \"r\"",
    ] {
        if !good.starts_with(key) {
            writeln!(text, "{good}").unwrap();
        }
    }
    if line.contains('=') {
        writeln!(text, "{line}").unwrap();
    }
    text
}

fn assert_says(report: &str, parts: &[&str]) {
    for part in parts {
        assert!(report.contains(part), "`{part}` is not in:\n{report}");
    }
}

#[test]
fn the_contract_example_is_read() {
    let config = parse(GOOD).unwrap().config;
    assert_eq!(config.mode, Mode::Enforce);
    assert_eq!(
        config.servers,
        [ServerConfig {
            name: "orders".to_owned(),
            ports: vec![3306],
            mode: Some(Mode::Observe),
            mode_end: None,
            tls: OwnTls::default(),
            loopback: None,
            index: 1,
        }]
    );
    let exception = config.exceptions.first().unwrap();
    let source: Vec<String> = exception.source.iter().map(ToString::to_string).collect();
    assert_eq!(source, ["10.3.0.0/16", "2001:db8::/32", "192.0.2.0/24"]);
    assert_eq!(exception.users, ["etl"]);
    assert_eq!(exception.server.as_deref(), Some("orders"));
    assert_eq!(
        exception.expires,
        Expiry::At("2027-04-01T00:00:00Z".parse().unwrap())
    );
    assert_eq!(config.audit, AuditTarget::Stdout);
    assert_eq!(config.metrics, "127.0.0.1:9637".parse().ok());
    assert_eq!(config.control.socket, Path::new("/run/musttls/other.sock"));
}

#[test]
fn an_empty_file_is_the_defaults() {
    let loaded = parse("").unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn the_packaged_file_is_the_defaults() {
    let path = Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../packaging/musttls.toml"
    ));
    let loaded = Config::load(path, now(), PastDates::Refuse).unwrap();
    assert_eq!(loaded.config, Config::default());
}

#[test]
fn the_example_in_the_packaged_file_is_valid() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/musttls.toml");
    let text = fs::read_to_string(path).unwrap();
    // Commented-out settings are `#key` without a space; prose is `# text`.
    let settings: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let config = parse(&settings).unwrap().config;
    assert_eq!((config.servers.len(), config.exceptions.len()), (1, 1));
    assert_eq!(config.metrics, "127.0.0.1:9637".parse().ok());
}

#[test]
fn every_key_is_documented() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let page = fs::read_to_string(page).unwrap();
    for key in [
        "mode",
        "require",
        "observe",
        "refused_ciphers",
        "persist",
        "existing",
        "canary",
        "[[server]]",
        "[[exception]]",
        "name",
        "ports",
        "source",
        "user",
        "server",
    ] {
        assert!(page.contains(&format!("`{key}`")), "{key}");
    }
    for key in [
        "not_before",
        "expires",
        "owner",
        "reason",
        "path",
        "listen",
        "socket",
    ] {
        assert!(page.contains(&format!("`{key}`")), "{key}");
    }
}

#[test]
fn an_unknown_key_is_pointed_at_and_the_right_one_named() {
    assert_says(
        &exception_report("expire = 2027-03-31"),
        &[
            "error: unknown key `expire`",
            "/etc/musttls/musttls.toml:6:1",
            "^^^^^^",
            "did you mean `expires`?",
            "no setting was changed",
        ],
    );
    assert_says(
        &report("zzz = 1"),
        &[
            "musttls.toml:1:1",
            "panic, mode, mode_until, mode_then, trusted_proxies, require, observe, refused_ciphers, persist, existing, loopback, canary, server, exception, audit",
        ],
    );
    assert_says(
        &report("[audit]\nfile = \"/x\""),
        &["unknown key `file`", ":2:1"],
    );
}

#[test]
fn a_key_of_the_file_that_stands_behind_a_section_is_sent_to_the_top() {
    const TITLE: &str = "error: `mode` belongs at the top of the file, before the first [section]";
    for section in ["[audit]", "[metrics]", "[control]"] {
        assert_says(
            &report(&format!("# a comment\n{section}\n  mode = \"enforce\"\n")),
            &[
                TITLE,
                "/etc/musttls/musttls.toml:3:3",
                "^^^^",
                &format!("here it is a key of {section}"),
                "1 error,",
            ],
        );
    }
    assert_says(
        &exception_report("mode = \"enforce\""),
        &[TITLE, ":7:1", "here it is a key of this exception"],
    );
    assert_says(
        &report("[metrics]\naudit = { path = \"-\" }\n"),
        &[
            ":2:1",
            "`audit` does not belong in [metrics]",
            "write [audit]",
        ],
    );
    assert_says(
        &report("[audit]\n[[audit.server]]\nname = \"a\"\n"),
        &["`server` does not belong in [audit]", "write [[server]]"],
    );
}

#[test]
fn trusted_proxies_are_networks() {
    let config = parse("trusted_proxies = [\"10.4.0.10/32\", \"::ffff:192.0.2.0/120\"]")
        .unwrap()
        .config;
    let networks: Vec<_> = config
        .trusted_proxies
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(networks, ["10.4.0.10/32", "192.0.2.0/24"]);
    assert_says(
        &report("trusted_proxies = []"),
        &[
            "`trusted_proxies` is empty: it would trust no proxy",
            ":1:19",
        ],
    );
    assert_says(
        &report("trusted_proxies = [\"10.4.0.10\"]"),
        &["`10.4.0.10` is not a network", ":1:20"],
    );
}

#[test]
fn each_key_of_the_file_is_known_by_the_name_of_its_place() {
    for key in decode::ROOT_KEYS {
        let report = report(&format!("[metrics]\n{key} = 1\n"));
        assert!(!report.contains("unknown key"), "{report}");
    }
}

#[test]
fn a_mode_may_have_an_end() {
    let end = |at: &str, then| {
        let at = at.parse().unwrap();
        Some(ModeEnd { at, then })
    };
    let config = parse(
        "mode = \"observe\"\nmode_until = 2026-12-01\nmode_then = \"enforce\"\n\
         [[server]]\nname = \"a\"\nports = [1]\n\
         [[server]]\nname = \"b\"\nports = [2]\nmode = \"enforce\"\n\
         [[server]]\nname = \"c\"\nports = [3]\nmode = \"enforce\"\n\
         mode_until = 2026-11-30T12:00:00Z\nmode_then = \"observe\"\n",
    )
    .unwrap()
    .config;
    assert_eq!(
        [0, 1, 2, 3].map(|index| config.timed_mode_of(index)),
        [
            (Mode::Observe, end("2026-12-01T00:00:00Z", Mode::Enforce)),
            (Mode::Observe, end("2026-12-01T00:00:00Z", Mode::Enforce)),
            (Mode::Enforce, None),
            (Mode::Enforce, end("2026-11-30T12:00:00Z", Mode::Observe)),
        ]
    );
    let over = parse("mode = \"enforce\"\nmode_until = 2026-11-01\nmode_then = \"observe\"\n");
    let over = over.unwrap();
    assert_eq!(over.config.timed_mode_of(0), (Mode::Observe, None));
    assert_says(&over.warnings.join("\n"), &["`mode_until` is over", ":2:"]);
    let panic =
        parse("panic = true\nmode = \"enforce\"\n[[server]]\nname = \"a\"\nmode = \"enforce\"\n");
    let panic = panic.unwrap().config;
    assert_eq!([0, 1].map(|index| panic.mode_of(index)), [Mode::Observe; 2]);
    for (text, says) in [
        ("mode_until = 2026-12-01\n", "go together"),
        (
            "mode = \"observe\"\nmode_then = \"enforce\"\n",
            "go together",
        ),
        (
            "mode_until = 2026-12-01\nmode_then = \"enforce\"\n",
            "the end of a mode that is not there",
        ),
        (
            "mode = \"observe\"\nmode_until = \"soon\"\nmode_then = \"enforce\"\n",
            "`mode_until` must be a time",
        ),
        (
            "mode = \"observe\"\nmode_until = 2026-12-01\nmode_then = \"off\"\n",
            "there is no mode `off`",
        ),
    ] {
        assert_says(&report(text), &[says]);
    }
}

#[test]
fn all_mistakes_are_told_in_the_order_of_the_file() {
    let report = report(
        "mode = \"enforced\"\n[[server]]\nname = 1\nports = [0]\n[metrics]\nlisten = \"x\"\n",
    );
    let at = |part: &str| {
        report
            .find(part)
            .unwrap_or_else(|| panic!("{part} in\n{report}"))
    };
    assert!(at(":1:8") < at(":3:8"));
    assert!(at(":3:8") < at(":4:10"));
    assert!(at(":4:10") < at(":6:10"));
    assert_says(&report, &["4 errors"]);
}

#[test]
fn wrong_types_and_modes_name_what_is_wanted() {
    assert_says(
        &report("mode = 1"),
        &["`mode` must be a string", "this is an integer"],
    );
    assert_says(
        &report("mode = \"audit\""),
        &["no mode `audit`", "\"observe\"", "\"enforce\""],
    );
    assert_says(
        &report("[server]\nname = \"a\""),
        &["`server` must be an array", "[[server]]"],
    );
    assert_says(
        &exception_report("source = \"10.0.0.0/8\""),
        &["must be an array", "source = ["],
    );
    assert_says(
        &exception_report("user = \"etl\""),
        &["`user` must be an array", "user = ["],
    );
}

#[test]
fn floors_and_cipher_suites_are_read_and_inherited() {
    let config = parse(
        "require = \"tls1.2\"\nobserve = \"tls1.3\"\nrefused_ciphers = [\"RC4\", \"TLS_AES_128_CCM_8_SHA256\", \"0xfefe\"]\n\
         [[server]]\nname = \"a\"\nports = [1]\nrequire = \"tls1.3\"\n\
         [[server]]\nname = \"b\"\nports = [2]\nrequire = \"tls\"\nobserve = \"tls1.2\"\nrefused_ciphers = []\n",
    )
    .unwrap()
    .config;
    let all = config.tls_of(0);
    assert_eq!((all.require, all.observe), (Floor::V1_2, Some(Floor::V1_3)));
    for suite in [0x0005, 0xc011, 0x1305, 0xfefe] {
        assert!(all.refused_ciphers.contains(&suite), "{suite:#x}");
    }
    assert!(!all.refused_ciphers.contains(&0x000a), "3DES is not named");
    let a = config.tls_of(1);
    assert_eq!((a.require, a.observe), (Floor::V1_3, None));
    assert_eq!(a.refused_ciphers, all.refused_ciphers);
    let b = config.tls_of(2);
    assert_eq!((b.require, b.observe), (Floor::Tls, Some(Floor::V1_2)));
    assert!(b.refused_ciphers.is_empty());
}

#[test]
fn what_is_refused_by_default_is_in_every_family() {
    let tls = Config::default().tls_of(0);
    assert_eq!((tls.require, tls.observe), (Floor::Tls, None));
    for suite in [0x0001, 0x0018, 0x0003, 0x0005, 0x000a, 0x0009] {
        assert!(tls.refused_ciphers.contains(&suite), "{suite:#x}");
    }
    assert!(!tls.refused_ciphers.contains(&0x002f));
}

#[test]
fn wrong_floors_and_cipher_suites_are_told_apart() {
    assert_says(
        &report("require = \"tls1.1\""),
        &["there is no TLS floor `tls1.1`", "\"tls1.2\""],
    );
    assert_says(
        &report("require = \"tls1.3\"\nobserve = \"tls1.3\""),
        &["`observe` is not above what is required, `tls1.3`", ":2:11"],
    );
    assert_says(
        &report("require = \"tls1.2\"\n[[server]]\nname = \"a\"\nobserve = \"tls1.2\""),
        &["`observe` is not above what is required, `tls1.2`"],
    );
    assert_says(
        &report("refused_ciphers = [\"TLS_RSA_WITH_RC4_128_SH\"]"),
        &[
            "there is no cipher suite",
            "did you mean `TLS_RSA_WITH_RC4_128_SHA`?",
        ],
    );
    let numbers: Vec<String> = (0..513)
        .map(|n| format!("\"0x{:04x}\"", 0xe000 + n))
        .collect();
    assert_says(
        &report(&format!("refused_ciphers = [{}]", numbers.join(","))),
        &["more than 512 cipher suites"],
    );
}

#[test]
fn names_are_required_unique_and_not_reserved() {
    let two = "[[server]]\nname = \"a\"\nports = [1]\n[[server]]\nname = \"a\"\nports = [2]\n";
    assert_says(&report(two), &["two sections are named `a`", ":5:8"]);
    assert_says(
        &report("[[server]]\nname = \"default\""),
        &["`default` is taken"],
    );
    assert_says(
        &exception_report("name = \"require-tls\""),
        &["`require-tls` is taken"],
    );
    assert_says(
        &exception_report("name"),
        &["this exception has no `name`", ":1:1"],
    );
    let twice = exception_with("server = \"x\"")
        .replace("server = \"x\"\n", "")
        .repeat(2);
    assert_says(&report(&twice), &["two sections are named `a`"]);
}

#[test]
fn ports_belong_to_one_server() {
    let two = "[[server]]\nname = \"a\"\nports = [1]\n[[server]]\nname = \"b\"\nports = [2, 1]\n";
    assert_says(&report(two), &["port 1 is claimed by server `a`", ":6:13"]);
    let open = "[[server]]\nname = \"a\"\n[[server]]\nname = \"b\"\n";
    assert_says(
        &report(open),
        &["server `b` and server `a` both have no `ports`", ":3:1"],
    );
    for bad in ["0", "65536", "-1", "70000000000000000000000"] {
        let text = format!("[[server]]\nname = \"a\"\nports = [{bad}]");
        assert_says(&report(&text), &["is not a TCP port", ":3:10"]);
    }
}

#[test]
fn an_exception_names_a_server_of_the_file() {
    let text = format!(
        "[[server]]\nname = \"orders\"\n{}",
        exception_with("server = \"order\"")
    );
    assert_says(
        &report(&text),
        &["there is no server `order`", "did you mean `orders`?"],
    );
    let text = text.replace("\"order\"", "\"10.0.0.1:3306\"");
    assert_says(&report(&text), &["the name of a [[server]]: orders; or"]);
    let text = exception_with("server = \"orders\"");
    assert_says(&report(&text), &["and there is none: leave `server` out"]);
}

#[test]
fn bad_networks_come_with_the_right_one() {
    for (bad, parts) in [
        (
            "10.0.8.0/33",
            ["prefix length must be 0..=32 for IPv4", "10.0.8.0/32"],
        ),
        (
            "2001:db8::/129",
            ["prefix length must be 0..=128 for IPv6", "2001:db8::/128"],
        ),
        (
            "10.0.8.1/24",
            ["bits set behind its prefix", "write it as \"10.0.8.0/24\""],
        ),
        (
            "::ffff:10.0.8.1/120",
            ["bits set behind its prefix", "::ffff:10.0.8.0/120"],
        ),
        (
            "10.0.8.1",
            [
                "the prefix length is missing",
                "write it as \"10.0.8.1/32\"",
            ],
        ),
        ("db-1.example.com", ["is not a network", "10.3.0.0/16"]),
    ] {
        let report = exception_report(&format!("source = [\"10.0.0.0/8\", \"{bad}\"]"));
        assert_says(&report, &parts);
        assert_says(&report, &[":6:25"]);
    }
    assert_says(&exception_report("source = []"), &["`source` is empty"]);
    assert_says(
        &exception_report("source"),
        &["exception `a` has no `source`"],
    );
}

#[test]
fn conditions_are_read_and_those_of_this_host_need_no_network() {
    let text = "loopback = \"allow\"\n[[server]]\nname = \"a\"\nloopback = \"same-rule\"\n\
        [[exception]]\nname = \"e\"\nprograms = [\"mysqldump\"]\nuids = [1001, 0x10]\nlocal_users = [\"root\"]\n\
        cgroups = [\"/system.slice/app.service/\"]\nexpires = \"never\"\nowner = \"o\"\nreason = \"r\"";
    let config = parse(text).unwrap().config;
    let exception = &config.exceptions[0];
    assert!(exception.source.is_empty());
    assert_eq!(exception.conditions.programs, ["mysqldump"]);
    assert_eq!(exception.conditions.uids, Some(vec![0, 1001, 16]));
    assert_eq!(exception.conditions.local_users, ["root"]);
    assert_eq!(exception.conditions.cgroups, ["/system.slice/app.service"]);
    assert_eq!(
        (config.loopback_of(0), config.loopback_of(1)),
        (Loopback::Allow, Loopback::SameRule)
    );
    assert_eq!(Config::default().loopback, Loopback::SameRule);

    let without = exception_with("source").replace("source\n", "");
    for (line, is_good) in [
        ("uids = [1]", true),
        ("cgroups = [\"/a\"]", true),
        ("local_users = [\"root\"]", true),
        ("programs = [\"mysql\"]", false),
    ] {
        let text = format!("{without}{line}\n");
        assert_eq!(parse(&text).is_ok(), is_good, "{text}");
    }
    assert_says(
        &report(&format!("{without}programs = [\"mysql\"]")),
        &["has no `source`"],
    );
}

#[test]
fn wrong_conditions_are_told_apart() {
    for (line, parts) in [
        (
            "programs = []",
            &["`programs` is empty", "allow nobody"][..],
        ),
        (
            "programs = [\"a\\u001b\"]",
            &["cannot be the name of a program", "control characters"],
        ),
        (
            "programs = [\"a\\uFFFD\"]",
            &["cannot be the name of a program"],
        ),
        ("programs = [1]", &["a program must be a string"]),
        (
            "uids = [\"root\"]",
            &["a user id must be an integer", "local_users"],
        ),
        ("uids = [-1]", &["`-1` is no user id"]),
        ("uids = [4294967295]", &["`4294967295` is no user id"]),
        (
            "local_users = [\"no-such-user-here\"]",
            &[
                "no user `no-such-user-here` in /etc/passwd",
                "uids = [1001]",
            ],
        ),
        ("local_users = [\"a:b\"]", &["cannot be the name of a user"]),
        ("cgroups = [\"/\"]", &["the root is the cgroup of all"]),
        (
            "cgroups = [\"system.slice\"]",
            &["`system.slice` is not the path of a cgroup"],
        ),
        ("cgroups = [\"/a/../b\"]", &["is not the path of a cgroup"]),
        ("loopback = \"allow\"", &["belongs at the top of the file"]),
    ] {
        assert_says(&exception_report(line), parts);
    }
    assert_says(
        &report("loopback = \"yes\""),
        &[
            "`yes` is nothing to do about the loopback device",
            "same-rule",
        ],
    );
    let many: Vec<String> = (0..65).map(|uid| uid.to_string()).collect();
    assert_says(
        &exception_report(&format!("uids = [{}]", many.join(", "))),
        &["more than 64 values in `uids`"],
    );
}

/// As an exception that has ended does not (ADR 0007).
#[test]
fn a_local_user_that_is_gone_does_not_stand_in_the_way_of_a_start() {
    let text = exception_with("local_users = [\"no-such-user-here\"]");
    let path = Path::new("/etc/musttls/musttls.toml");
    assert!(Config::parse(path, &text, now(), PastDates::Refuse).is_err());
    let loaded = Config::parse(path, &text, now(), PastDates::Warn).unwrap();
    assert!(
        loaded.warnings[0].contains("holds for nobody by that name"),
        "{:?}",
        loaded.warnings
    );
    // Nobody, and not anybody.
    assert_eq!(loaded.config.exceptions[0].conditions.uids, Some(vec![]));
}

#[test]
fn users_fit_the_kernel_table() {
    let long = "u".repeat(USER_MAX + 1);
    assert_says(
        &exception_report(&format!("user = [\"{long}\"]")),
        &["longer than 128 bytes", "129 bytes"],
    );
    assert!(
        parse(&exception_with(&format!(
            "user = [\"{}\"]",
            "u".repeat(USER_MAX)
        )))
        .is_ok()
    );
    assert_says(
        &exception_report("user = [\"\"]"),
        &["cannot be a user name"],
    );
    assert_says(&exception_report("user = []"), &["`user` is empty"]);
}

#[test]
fn owner_reason_and_end_are_required() {
    for key in ["owner", "reason", "expires"] {
        assert_says(
            &exception_report(key),
            &[&format!("exception `a` has no `{key}`")],
        );
    }
    assert_says(&exception_report("reason = \" \""), &["`reason` is empty"]);
    assert_says(&exception_report("owner = \"\""), &["`owner` is empty"]);
}

#[test]
fn ends_are_dates_or_never() {
    for (line, end) in [
        ("expires = 2026-11-22", "2026-11-23T00:00:00Z"),
        (
            "expires = 2026-11-22T14:00:00+01:00",
            "2026-11-22T13:00:00Z",
        ),
        ("expires = 2026-11-22 12:00:01Z", "2026-11-22T12:00:01Z"),
    ] {
        let config = parse(&exception_with(line)).unwrap().config;
        assert_eq!(
            config.exceptions[0].expires,
            Expiry::At(end.parse().unwrap()),
            "{line}"
        );
    }
    assert_says(
        &exception_report("expires = \"2027-03-31\""),
        &["without quotes: expires = 2027-03-31"],
    );
    assert_says(
        &exception_report("expires = \"soon\""),
        &["must be a date or \"never\""],
    );
    assert_says(
        &exception_report("expires = 12:00:00"),
        &["time without a date"],
    );
    assert_says(
        &exception_report("expires = 2027-03-31T12:00:00"),
        &["no offset from UTC"],
    );
    assert_says(
        &exception_report("expires = 9999-12-31"),
        &["this date cannot be used"],
    );
}

#[test]
fn a_past_date_is_refused_by_a_check_and_a_warning_at_the_start() {
    let text = exception_with("expires = 2026-11-21");
    assert_says(
        &report(&text),
        &["exception `a` ended on 2026-11-22T00:00:00Z", ":6:11"],
    );
    let loaded = Config::parse(Path::new("f.toml"), &text, now(), PastDates::Warn).unwrap();
    assert_eq!(
        loaded.warnings,
        [
            "f.toml:6:11: exception `a` ended on 2026-11-22T00:00:00Z; it is not applied: remove it, or agree on a later date with its owner"
        ]
    );
    assert!(!loaded.config.exceptions[0].expires.holds(now()));
}

#[test]
fn more_exceptions_that_have_not_begun_than_the_gate_gets_over_are_a_warning() {
    let parse = |count: usize| {
        let text: String = (0..count)
            .map(|n| exception_with(&format!("name = \"n{n}\"\nnot_before = 2027-01-31")))
            .collect();
        Config::parse(Path::new("f.toml"), &text, now(), PastDates::Refuse)
            .unwrap()
            .warnings
    };
    assert_eq!(parse(63), [""; 0]);
    let warnings = parse(64);
    assert!(
        warnings[0].contains("64 exceptions have not begun"),
        "{warnings:?}"
    );
}

#[test]
fn what_the_kernel_tables_hold_is_the_limit() {
    let mut many = String::new();
    for n in 0..=1024 {
        many.push_str(&exception_with(&format!("name = \"n{n}\"")));
    }
    assert_says(&report(&many), &["more than 1024 exceptions", "1 error"]);
    let mut many = String::new();
    for n in 1..=63 {
        write!(many, "[[server]]\nname = \"s{n}\"\nports = [{n}]\n").unwrap();
    }
    assert_says(&report(&many), &["more than 62 servers", "1 error"]);
    let networks = "\"10.0.0.0/8\",".repeat(MAX_NETWORKS + 1);
    assert_says(
        &exception_report(&format!("source = [{networks}]")),
        &["more than 100000 networks", "1 error", ":6:1300011"],
    );
    let users = "\"u\",\n".repeat(MAX_USERS + 1);
    assert_says(
        &exception_report(&format!("user = [{users}]")),
        &["more than 10000 users"],
    );
}

#[test]
fn paths_and_addresses_are_checked() {
    assert_says(
        &report("[audit]\npath = \"audit.jsonl\""),
        &["not an absolute path", ":2:8"],
    );
    assert_says(
        &report("[metrics]\nlisten = \"9637\""),
        &["not a socket address", "127.0.0.1:9637"],
    );
    assert_says(&report("[metrics]\nlisten = \"[::1]:0\""), &["port 0"]);
    let long = format!("[control]\nsocket = \"/{}\"", "x".repeat(107));
    assert_says(&report(&long), &["too long for a Unix socket", "108 bytes"]);
}

#[test]
fn syntax_errors_are_pointed_at() {
    let report = report("mode = \"enforce\nname = = 2\n");
    assert_says(
        &report,
        &["musttls.toml:1:", "musttls.toml:2:", "must be TOML"],
    );
    assert_says(
        &self::report("mode = \"observe\"\nmode = \"enforce\"\n"),
        &["duplicate key", ":2:1"],
    );
}

#[test]
fn ten_megabytes_of_mistakes_give_a_short_answer_quickly() {
    let mut text = String::new();
    while text.len() < 10_000_000 {
        text.push_str(
            "[[exception]]\nname = \"x\"\nnam = \"x\"\nsource = [\"10.0.0.1/8\"]\nexpires = 1\n",
        );
    }
    let started = Instant::now();
    let report = report(&text);
    assert_says(&report, &["... and ", " more errors"]);
    assert!(report.len() < 10_000, "{}", report.len());
    // Debug build on a slow machine; a hang is minutes.
    assert!(
        started.elapsed() < Duration::from_mins(1),
        "{:?}",
        started.elapsed()
    );
}

#[test]
fn files_that_are_no_configuration_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("musttls.toml");
    let load = |path: &Path| {
        Config::load(path, now(), PastDates::Refuse).map_err(|error| error.to_string())
    };
    assert_says(
        &load(&path).unwrap_err(),
        &["cannot read", "No such file", "help: create it"],
    );
    assert_says(
        &load(directory.path()).unwrap_err(),
        &["it is a directory", "help: "],
    );
    assert_says(
        &load(Path::new("/dev/null")).unwrap_err(),
        &["not a regular file"],
    );
    fs::write(&path, b"mode = \"observe\"\n# \xff\n").unwrap();
    assert_says(
        &load(&path).unwrap_err(),
        &["musttls.toml:2: byte 3", "UTF-8"],
    );
    fs::File::create(&path)
        .unwrap()
        .set_len(16 * 1024 * 1024 + 1)
        .unwrap();
    assert_says(&load(&path).unwrap_err(), &["larger than 16 MiB"]);
    fs::write(&path, GOOD).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o646)).unwrap();
    assert_says(
        &load(&path).unwrap().warnings.concat(),
        &["every user", "chmod o-w"],
    );
}

#[test]
fn servers_are_found_by_port() {
    let config = parse(
        "[[server]]\nname = \"rest\"\n[[server]]\nname = \"orders\"\nports = [3306, 3307]\nmode = \"enforce\"\n",
    )
    .unwrap()
    .config;
    assert_eq!(
        (config.server_index(3307), config.server_name(2)),
        (2, "orders")
    );
    assert_eq!((config.server_index(1), config.server_name(1)), (1, "rest"));
    assert_eq!(
        (config.mode_of(2), config.mode_of(1), config.mode_of(0)),
        (Mode::Enforce, Mode::Observe, Mode::Observe)
    );
    assert_eq!(Config::default().server_index(3306), 0);
    assert_eq!(
        (config.server_name(0), config.server_name(3)),
        ("default", "default")
    );
}

#[test]
fn a_server_keeps_its_entry_whatever_the_order_is() {
    let entries = |text: &str, names: &mut Vec<String>| -> Vec<(String, u16)> {
        let mut config = parse(text).unwrap().config;
        config.keep_indices(names);
        let entry = |server: &ServerConfig| (server.name.clone(), server.index);
        config.servers.iter().map(entry).collect()
    };
    let server =
        |name: &str, port: u16| format!("[[server]]\nname = \"{name}\"\nports = [{port}]\n");
    let entry = |name: &str, index| (name.to_owned(), index);
    let mut names = Vec::new();
    let both = [server("a", 1), server("b", 2)].concat();
    assert_eq!(entries(&both, &mut names), [entry("a", 1), entry("b", 2)]);
    let other = [server("c", 3), server("b", 2)].concat();
    assert_eq!(entries(&other, &mut names), [entry("c", 3), entry("b", 2)]);
    assert_eq!(entries(&both, &mut names), [entry("a", 1), entry("b", 2)]);

    let many: String = (0..62).map(|n| server(&format!("s{n}"), n + 1)).collect();
    let all = entries(&many, &mut names);
    let used: std::collections::BTreeSet<u16> = all.iter().map(|(_, index)| *index).collect();
    assert_eq!(used, (1..=62).collect(), "each has one of its own");
}
