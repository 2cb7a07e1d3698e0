use super::*;
use crate::config::PastDates;
use musttls_common::mysql::{CLIENT_CONNECT_ATTRS, CLIENT_PROTOCOL_41};
use std::path::Path;

const CAPS: u32 = CLIENT_PROTOCOL_41 | CLIENT_CONNECT_ATTRS;

fn now() -> Timestamp {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

/// The exceptions `e0`, `e1` and so on, each with the lines that are its own.
fn config(exceptions: &[&str]) -> Config {
    let end = "expires = \"never\"\nowner = \"o\"\nreason = \"r\"\n";
    let mut text = String::new();
    for (number, lines) in exceptions.iter().enumerate() {
        let section = format!("[[exception]]\nname = \"e{number}\"\n{lines}\n{end}");
        text.push_str(&section);
    }
    let loaded = Config::parse(Path::new("f.toml"), &text, now(), PastDates::Refuse);
    loaded.unwrap_or_else(|error| panic!("{error}")).config
}

fn attributes(program: &str) -> Vec<u8> {
    let len = |text: &str| u8::try_from(text.len()).unwrap();
    let mut pairs = vec![len("program_name")];
    pairs.extend(b"program_name");
    pairs.push(len(program));
    pairs.extend(program.as_bytes());
    let mut tail = vec![u8::try_from(pairs.len()).unwrap()];
    tail.extend(pairs);
    tail
}

fn record(client: [u8; 4], user: &str, tail: Vec<u8>) -> Record {
    let event = Event {
        endpoints: musttls_common::session::Endpoints {
            client_addr: musttls_common::addr::v4_mapped(client),
            ..Default::default()
        },
        local: u8::from(client[0] == 127),
        kind: Kind::Asked as u8,
        ..Event::default()
    };
    Record {
        event,
        extra: Extra::Login {
            caps: CAPS,
            user: user.as_bytes().to_vec(),
            tail,
        },
    }
}

/// A host where the client is this process, below these cgroups.
#[derive(Default)]
struct Known {
    peer: Option<Found>,
    below: Vec<&'static str>,
    /// Cgroups cannot be looked up again yet.
    is_early: bool,
    asked: u32,
}

impl Lookup for Known {
    fn peer(&mut self, _event: &Event) -> Found {
        self.asked += 1;
        self.peer.unwrap_or(Found::Unknown)
    }

    fn is_below(&mut self, _cgroup: u64, path: &str) -> Meets {
        if self.below.contains(&path) {
            Some(true)
        } else if self.is_early {
            None
        } else {
            Some(false)
        }
    }
}

fn process(uid: u32) -> Known {
    Known {
        peer: Some(Found::Peer(Peer {
            uid,
            cgroup: Some(7),
        })),
        ..Known::default()
    }
}

fn decide(config: &Config, record: &Record, host: &mut Known) -> Decision {
    Question::of(record, config).decide(config, now(), host)
}

#[test]
fn the_first_exception_whose_conditions_are_met_decides() {
    let config = config(&[
        "source = [\"10.0.0.0/8\"]",
        "source = [\"10.0.0.0/8\"]\nprograms = [\"mysqldump\"]\nuser = [\"dump\"]",
        "source = [\"10.0.0.0/8\"]\nprograms = [\"mysqldump\", \"mysql\"]",
    ]);
    let seen = |client, user: &str, program: &str| {
        let record = record(client, user, attributes(program));
        decide(&config, &record, &mut Known::default())
    };
    assert_eq!(seen([10, 0, 0, 1], "dump", "mysqldump"), Decision::Met(1));
    assert_eq!(seen([10, 0, 0, 1], "app", "mysqldump"), Decision::Met(2));
    assert_eq!(seen([10, 0, 0, 1], "app", "mysql"), Decision::Met(2));
    assert_eq!(seen([10, 0, 0, 1], "app", "mysq"), Decision::NotMet);
    assert_eq!(seen([192, 0, 2, 1], "app", "mysql"), Decision::NotMet);
}

#[test]
fn names_of_programs_are_compared_as_they_are_shown_and_never_by_their_beginning() {
    let config = config(&["source = [\"10.0.0.0/8\"]\nprograms = [\"mysql\"]"]);
    for claimed in ["mysql\0", "mysql\x1b", "MYSQL", " mysql", "", "mysql-long"] {
        let record = record([10, 0, 0, 1], "u", attributes(claimed));
        let decision = decide(&config, &record, &mut Known::default());
        assert_eq!(decision, Decision::NotMet, "{claimed:?}");
    }
}

#[test]
fn the_rest_of_a_login_that_was_cut_may_name_the_program() {
    let config = config(&["source = [\"10.0.0.0/8\"]\nprograms = [\"mysql\"]"]);
    let whole = attributes("mysql");
    for len in 0..whole.len() {
        let mut record = record([10, 0, 0, 1], "u", whole[..len].to_vec());
        assert_eq!(
            decide(&config, &record, &mut Known::default()),
            Decision::NotMet
        );
        record.event.cut = 1;
        assert_eq!(
            decide(&config, &record, &mut Known::default()),
            Decision::NotYet
        );
    }
    // More than is copied of a login: no copy will have it.
    let mut record = record([10, 0, 0, 1], "u", vec![0xfc; TAIL_MAX]);
    record.event.cut = 1;
    assert_eq!(
        decide(&config, &record, &mut Known::default()),
        Decision::NotMet
    );
}

#[test]
fn users_and_cgroups_of_this_host_are_those_of_the_socket() {
    let config = config(&[
        "uids = [1001]",
        "uids = [1002]\ncgroups = [\"/a\", \"/b\"]",
        "cgroups = [\"/c\"]\nprograms = [\"mysql\"]",
    ]);
    let local = record([127, 0, 0, 1], "u", attributes("mysql"));
    assert_eq!(
        decide(&config, &local, &mut process(1001)),
        Decision::Met(0)
    );
    assert_eq!(
        decide(&config, &local, &mut process(1002)),
        Decision::NotMet
    );
    let below = |uid, path| Known {
        below: vec![path],
        ..process(uid)
    };
    assert_eq!(
        decide(&config, &local, &mut below(1002, "/b")),
        Decision::Met(1)
    );
    assert_eq!(
        decide(&config, &local, &mut below(1003, "/c")),
        Decision::Met(2)
    );
    let other = record([127, 0, 0, 1], "u", attributes("other"));
    assert_eq!(
        decide(&config, &other, &mut below(1003, "/c")),
        Decision::NotMet
    );
}

#[test]
fn what_did_not_come_over_the_loopback_device_is_nobodys_on_this_host() {
    let config = config(&["uids = [1001]"]);
    let mut record = record([127, 0, 0, 1], "u", Vec::new());
    record.event.local = 0;
    let mut host = process(1001);
    assert_eq!(decide(&config, &record, &mut host), Decision::NotMet);
    assert_eq!(host.asked, 0);
}

#[test]
fn without_an_answer_of_the_kernel_nothing_is_met_and_it_may_be_asked_again() {
    let config = config(&["uids = [0]", "cgroups = [\"/c\"]"]);
    let local = record([127, 0, 0, 1], "u", Vec::new());
    for found in [Found::Elsewhere, Found::Nobody] {
        let mut host = Known {
            peer: Some(found),
            ..Known::default()
        };
        assert_eq!(decide(&config, &local, &mut host), Decision::NotMet);
        assert_eq!(host.asked, 1);
    }
    assert_eq!(
        decide(&config, &local, &mut Known::default()),
        Decision::NotYet
    );
    let mut early = Known {
        is_early: true,
        ..process(5)
    };
    assert_eq!(decide(&config, &local, &mut early), Decision::NotYet);
    let mut unknown = process(5);
    unknown.peer = Some(Found::Peer(Peer {
        uid: 5,
        cgroup: None,
    }));
    assert_eq!(decide(&config, &local, &mut unknown), Decision::NotMet);
}

#[test]
fn behind_a_trusted_proxy_the_client_is_the_one_that_it_names() {
    let mut config = config(&["source = [\"192.0.2.0/24\"]\nprograms = [\"mysql\"]"]);
    let mut record = record([10, 4, 0, 10], "u", attributes("mysql"));
    record.event.proxied.source = musttls_common::proxy::Source::Address as u8;
    record.event.proxied.addr = musttls_common::addr::v4_mapped([192, 0, 2, 9]);
    record.event.proxied.port = 5;
    assert_eq!(
        decide(&config, &record, &mut Known::default()),
        Decision::NotMet
    );
    config.trusted_proxies = vec!["10.4.0.10/32".parse().unwrap()];
    assert_eq!(
        decide(&config, &record, &mut Known::default()),
        Decision::Met(0)
    );
}

#[test]
fn an_exception_that_has_ended_or_is_for_another_server_is_not_met() {
    let text = "source = [\"10.0.0.0/8\"]\nprograms = [\"mysql\"]";
    let mut config = config(&[text]);
    let record = record([10, 0, 0, 1], "u", attributes("mysql"));
    config.exceptions[0].expires = crate::config::Expiry::At(now());
    assert_eq!(
        decide(&config, &record, &mut Known::default()),
        Decision::NotMet
    );
    config.exceptions[0].expires = crate::config::Expiry::Never;
    config.exceptions[0].server = Some("orders".to_owned());
    assert_eq!(
        decide(&config, &record, &mut Known::default()),
        Decision::NotMet
    );
}
