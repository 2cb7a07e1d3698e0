//! PROXY protocol headers before the login: what they hide, whom they name, and who may name anyone.

#![cfg(test)]

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::{Child, Command};
use std::time::Duration;

use musttls_tests::agent::Agent;
use musttls_tests::attack::{self, Attempt, Stream, Streams, honest};
use musttls_tests::audit::Record;
use musttls_tests::evidence;
use musttls_tests::haproxy::HaProxy;
use musttls_tests::netns::{Host, Net};
use musttls_tests::place::Scratch;
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{OPEN_USER, Options, PORT, Product, Server};
use musttls_tests::tcp::{ACK, Opening, Segment, Stack, Stamp};
use musttls_tests::tls::TlsClient;
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{ErrorPacket, LoginPacket, ssl_request};

const ENFORCE: &str = "mode = \"enforce\"";
const A_WHILE: Duration = Duration::from_secs(1);
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The client that headers name: nobody's address here.
const CLIENT: &str = "203.0.113.9";
const LINE: &[u8] = b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 3306\r\n";

/// A header of version 2.
fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.extend([0x20 | command, family]);
    header.extend(u16::try_from(rest.len()).unwrap().to_be_bytes());
    header.extend(rest);
    header
}

/// One of version 2 for [`CLIENT`], with a TLV behind its addresses.
fn binary_v4() -> Vec<u8> {
    let rest = [
        203, 0, 113, 9, 192, 0, 2, 1, 0x9c, 0x40, 0x0c, 0xea, 4, 0, 2, 0, 0,
    ];
    binary(1, 0x11, &rest)
}

/// Every form, alone and in chains.
fn headers() -> Vec<(&'static str, Vec<u8>)> {
    let mut v6 = vec![0x20; 36];
    v6.extend([4, 0, 0]);
    vec![
        ("TCP4", LINE.to_vec()),
        (
            "TCP6",
            b"PROXY TCP6 2001:db8::9 2001:db8::1 40000 3306\r\n".to_vec(),
        ),
        ("UNKNOWN", b"PROXY UNKNOWN\r\n".to_vec()),
        ("UNKNOWN with more", b"PROXY UNKNOWN a b c d\r\n".to_vec()),
        ("version 2", binary_v4()),
        ("version 2 over IPv6", binary(1, 0x21, &v6)),
        ("LOCAL", binary(0, 0, &[])),
        ("LOCAL with more", binary(0, 0, &[7; 200])),
        ("twice", LINE.repeat(2)),
        ("1 and 2", [LINE, &binary_v4()].concat()),
        ("2 and 1", [&binary_v4(), LINE].concat()),
        ("four", LINE.repeat(4)),
    ]
}

/// A server that takes headers from everybody, and locks nobody out.
fn proxied(net: &Net) -> Server {
    let options = attack::patient(Options::new(Product::MariaDb));
    Server::start(&net.db, &options.with("--proxy-protocol-networks=*")).unwrap()
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "it is compared with what may be no error"
)]
fn refusal() -> Option<ErrorPacket> {
    let sqlstate = Product::MariaDb.refusal_sqlstate();
    Some(ErrorPacket::refusal(2, Some(sqlstate)))
}

/// Opens a session with `header` sent `early`, before the greeting is read, or behind it.
fn behind(header: &[u8], early: bool, from: &Host, to: SocketAddr) -> Raw {
    let mut raw = Raw::connect(from, to).unwrap();
    if early {
        raw.send(header).unwrap();
    }
    raw.greeting().unwrap();
    if !early {
        raw.send(header).unwrap();
    }
    raw
}

fn logs_in(raw: Raw, login: &LoginPacket) {
    let mut tls = raw.into_tls().unwrap();
    tls.send(&login.packet_over_tls()).unwrap();
    assert!(tls.receive().unwrap().is_ok());
}

/// The request for TLS waits for the header, since without it the same bytes could be a login; the `ClientHello` waits for
/// neither.
#[test]
fn client_hello_overtakes_header_and_request_for_tls() {
    let net = Net::new().unwrap();
    let server = proxied(&net);
    let agent = Agent::start(ENFORCE).unwrap();
    let to = server.at(net.app.db_v4());
    let mut stack = Stack::new(&net.app, &net.db, to).unwrap();
    let client = TlsClient::new().unwrap();
    for header in [LINE.to_vec(), binary_v4(), LINE.repeat(4)] {
        let head = [header, ssl_request()];
        for order in [[2, 0, 1], [0, 2, 1], [0, 1, 2]] {
            honest::log_in_out_of_order(&mut stack, &server, &client, &head, &order)
                .unwrap_or_else(|error| panic!("{head:x?} {order:?}: {error:#}"));
        }
    }
    assert_eq!(agent.held().unwrap(), BTreeMap::new());
    assert_eq!(agent.outcome("denied").unwrap(), 0);
}

#[test]
fn plaintext_behind_headers_is_refused_and_tls_let_in() {
    let net = Net::new().unwrap();
    let server = proxied(&net);
    let agent = Agent::start(ENFORCE).unwrap();
    let mark = evidence::mark(&server).unwrap();
    let before = evidence::counts(&server, net.app.v4()).unwrap();
    let to = server.at(net.app.db_v4());
    let login = server.open_login();
    for (name, header) in headers() {
        for early in [true, false] {
            let mut raw = behind(&header, early, &net.app, to);
            raw.send(&login.packet_41()).unwrap();
            assert_eq!(raw.receive().unwrap().error(), refusal(), "{name} {early}");
            let mut raw = behind(&header, early, &net.app, to);
            raw.send(&ssl_request()).unwrap();
            logs_in(raw, &login);
        }
        // In one segment, behind the greeting.
        let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
        raw.send(&[&header[..], &login.packet_41()].concat())
            .unwrap();
        assert_eq!(raw.receive().unwrap().error(), refusal(), "{name}");
        let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
        raw.send(&[&header[..], &ssl_request()].concat()).unwrap();
        logs_in(raw, &login);
    }
    evidence::await_no_connection(&server).unwrap();
    assert_eq!(
        attack::plaintext_logins(&server, mark).unwrap(),
        [""; 0],
        "let in"
    );
    let after = evidence::counts(&server, net.app.v4()).unwrap();
    assert_eq!(after.handshake_errors, before.handshake_errors);
    let count = u64::try_from(headers().len()).unwrap() * 3;
    assert_eq!(agent.outcome("denied").unwrap(), count);
    assert_eq!(agent.outcome("secure").unwrap(), count);
    let all = usize::try_from(count).unwrap();
    let named = |record: &Record| {
        record.source() == Some(net.app.v4()) && record.at("/unmapped/proxied/trusted") == false
    };
    let records = agent
        .await_records("all with their header", 2 * all, named)
        .unwrap();
    let v4 = records
        .iter()
        .find(|record| record.text("/unmapped/proxied/ip") == CLIENT)
        .unwrap();
    assert_eq!(v4.number("/unmapped/proxied/port"), Some(40000));
    let landed = |record: &Record| record.text("/unmapped/refusal/outcome") == "landed";
    assert_eq!(records.iter().filter(|record| landed(record)).count(), all);
}

/// TCP sends it again in one segment.
#[test]
fn header_in_single_bytes_passes_late() {
    let net = Net::new().unwrap();
    let server = proxied(&net);
    let agent = Agent::start(ENFORCE).unwrap();
    let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
    raw.send_singly(b"PROXY UNKNOWN\r\n").unwrap();
    raw.send(&ssl_request()).unwrap();
    logs_in(raw, &server.open_login());
    assert!(agent.held().unwrap().contains_key("split"));
}

#[test]
fn what_is_no_strict_header_and_a_fifth_one_are_refused() {
    let net = Net::new().unwrap();
    let server = proxied(&net);
    let agent = Agent::start(ENFORCE).unwrap();
    let mark = evidence::mark(&server).unwrap();
    let all = [
        LINE.repeat(5),
        b"PROXY UNKNOWN\n".to_vec(),
        b"PROXY UNKNOWN x\0y\r\n".to_vec(),
        b"PROXUNKNOWN x\r\n".to_vec(),
        binary(1, 0x12, &[0; 12]),
        binary(2, 0, &[]),
    ];
    for header in &all {
        let (mut raw, _) = Raw::greeted(&net.app, server.at(net.app.db_v4())).unwrap();
        raw.send(&[&header[..], &server.open_login().packet_41()].concat())
            .unwrap();
        assert!(!raw.receive().unwrap().is_ok(), "{header:?}");
    }
    let refused = |record: &Record| record.text("/unmapped/reason") == "not-a-login";
    agent.await_records("refusals", all.len(), refused).unwrap();
    evidence::await_no_connection(&server).unwrap();
    assert_eq!(attack::plaintext_logins(&server, mark).unwrap(), [""; 0]);
}

/// A server that takes no headers says so itself, with or without the gate; what stands behind one is judged.
#[test]
fn server_without_proxies_answers_a_header_itself() {
    let net = Net::new().unwrap();
    for product in Product::all() {
        let options = attack::patient(Options::new(product));
        let server = Server::start(&net.db, &options).unwrap();
        let to = server.at(net.app.db_v4());
        let answers = || -> Vec<_> {
            let ask = |header: &[u8]| {
                let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
                raw.send(header).unwrap();
                raw.receive_within(A_WHILE).unwrap()
            };
            headers().iter().map(|(_, header)| ask(header)).collect()
        };
        let alone = answers();
        assert!(
            !alone.iter().any(|next| matches!(next, Next::Silence)),
            "{product:?} {alone:?}"
        );
        let agent = Agent::start(ENFORCE).unwrap();
        let mark = evidence::mark(&server).unwrap();
        assert_eq!(answers(), alone, "{product:?}");
        assert_eq!(agent.outcome("denied").unwrap(), 0);
        for (name, header) in headers() {
            let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
            raw.send(&[&header[..], &server.open_login().packet_41()].concat())
                .unwrap();
            let error = raw.receive().unwrap().error();
            assert_eq!(
                error,
                Some(ErrorPacket::refusal(2, Some(product.refusal_sqlstate()))),
                "{product:?} {name}"
            );
        }
        evidence::await_no_connection(&server).unwrap();
        assert_eq!(attack::plaintext_logins(&server, mark).unwrap(), [""; 0]);
    }
}

/// Enforce mode with an exception for plaintext from `source`.
fn excepting(source: &str, trusted: Option<IpAddr>) -> String {
    let trusted = trusted.map_or_else(String::new, |peer| {
        format!("trusted_proxies = [\"{peer}/32\"]\n")
    });
    format!(
        "{ENFORCE}\n{trusted}[[exception]]\nname = \"excused\"\nsource = [\"{source}/32\"]\n\
         expires = \"never\"\nowner = \"tests\"\nreason = \"to be misused\"\n"
    )
}

#[test]
fn header_counts_for_an_exception_only_if_its_peer_is_trusted() {
    let net = Net::new().unwrap();
    let server = proxied(&net);
    let to = server.at(net.app.db_v4());
    let peer = net.app.v4();
    let other = b"PROXY TCP4 203.0.113.77 192.0.2.1 40000 3306\r\n";
    let unknown = b"PROXY UNKNOWN\r\n";
    let ask = |header: &[u8]| {
        let (mut raw, _) = Raw::greeted(&net.app, to).unwrap();
        raw.send(&[header, &server.open_login().packet_41()].concat())
            .unwrap();
        raw.receive().unwrap()
    };
    // The exception is for the client that the header names; the peer is not trusted.
    let agent = Agent::start(&excepting(CLIENT, None)).unwrap();
    assert_eq!(ask(LINE).error(), refusal());

    agent.set_policy(&excepting(CLIENT, Some(peer))).unwrap();
    assert!(ask(LINE).is_ok());
    assert!(ask(&binary_v4()).is_ok());
    let record = agent
        .await_record("the excepted client", |record| record.rule() == "excused")
        .unwrap();
    assert_eq!(record.source(), Some(peer), "{}", record.line);
    assert_eq!(record.text("/unmapped/proxied/ip"), CLIENT);
    assert_eq!(record.at("/unmapped/proxied/trusted"), true);
    for header in [
        &other[..],
        unknown,
        b"",
        // The proxy's own header is the first; what follows may be its client's.
        &[&other[..], LINE].concat(),
        &[&unknown[..], LINE].concat(),
    ] {
        assert_eq!(ask(header).error(), refusal(), "{header:?}");
    }

    // The exception is for the peer: it speaks for itself only.
    let for_peer = peer.to_string();
    agent.set_policy(&excepting(&for_peer, Some(peer))).unwrap();
    assert_eq!(ask(LINE).error(), refusal());
    assert!(ask(unknown).is_ok() && ask(b"").is_ok());
    // Not trusted, a header changes nothing for it.
    agent.set_policy(&excepting(&for_peer, None)).unwrap();
    assert!(ask(LINE).is_ok());
}

/// One attempt: copies of the front of the stream, each with the place where it belongs, then the login.
fn attempt(name: &str, stream: &Stream, copies: &[(i32, &[u8])], login_at: usize) -> Attempt {
    let segments = copies.iter().map(|&(at, bytes)| Segment::at(at, bytes));
    let login = Segment::at(i32::try_from(login_at).unwrap(), &stream.plain);
    Attempt::new(name, stream, segments.chain([login]))
}

fn contradictions(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let longer = b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 33060\r\n";
    let two = [LINE, b"PROXY UNKNOWN\r\n"].concat();
    let local = |len: usize| binary(0, 0, &vec![b'x'; len]);
    let end = LINE.len();
    let mut all = vec![
        attempt("a header", &streams.make(), &[(0, LINE)], end),
        attempt("two headers", &streams.make(), &[(0, &two)], two.len()),
        attempt(
            "the second before the first",
            &streams.make(),
            &[(i32::try_from(end).unwrap(), &two[end..]), (0, LINE)],
            two.len(),
        ),
    ];
    // The copy that comes later, and the one before it, in both orders; the login is where the server's is.
    for (name, first, second) in [
        ("longer line", &longer[..], LINE),
        ("shorter line", LINE, &longer[..]),
        ("longer length", &local(40), &local(24)),
        ("shorter length", &local(24), &local(40)),
        ("other version", &local(24), LINE),
        ("no header", &stream_like_a_header(), LINE),
    ] {
        let login_at = if name == "no header" { 0 } else { first.len() };
        if login_at > 0 {
            all.push(attempt(
                &format!("{name} behind"),
                &streams.make(),
                &[(0, first), (0, second)],
                login_at,
            ));
        }
        // The server's TCP discards the first copy, so that the second is the server's.
        let stream = streams.make();
        let decoy = Segment::at(0, &padded(first)).unsound();
        let login = Segment::at(i32::try_from(second.len()).unwrap(), &stream.plain);
        all.push(Attempt::new(
            format!("{name} as a decoy"),
            &stream,
            [decoy, Segment::at(0, second), login],
        ));
    }
    // A header whose first four bytes come as those of a login's, so that it is one of the old form.
    let stream = streams.make();
    let fronts = [
        Segment::of(&stream.plain, 0, 4),
        Segment::at(0, LINE),
        Segment::of(&stream.plain, 4, stream.len()),
    ];
    all.push(Attempt::new("packet header before", &stream, fronts));
    // The rest of the header from another copy.
    let stream = streams.make();
    let halves = [
        Segment::of(&longer[..], 10, longer.len()),
        Segment::of(LINE, 0, 10),
        Segment::at(i32::try_from(longer.len()).unwrap(), &stream.plain),
    ];
    all.push(Attempt::new("header from two copies", &stream, halves));
    all
}

/// A login's packet header.
fn stream_like_a_header() -> Vec<u8> {
    vec![0x20, 0, 0, 1]
}

/// Long enough that Linux checks its sum behind the gate.
fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut long = bytes.to_vec();
    long.resize(bytes.len().max(100), 0);
    long
}

/// Makes the attempts that `build` builds in observe mode, and then with `policy`, where none may get in. What each
/// comes to where nothing is refused is not asserted, but for those that `works` names: what Linux makes of overlapping
/// copies is in ADR 0002.
fn keeps_out(
    net: &Net,
    server: &Server,
    policy: &str,
    build: impl Fn(&mut Streams<'_>) -> Vec<Attempt>,
    works: impl Fn(&str) -> bool,
) {
    let to = SocketAddr::new(net.app.db_v4(), PORT);
    let mut stack = Stack::new(&net.app, &net.db, to).unwrap();
    let mut streams = Streams::new(server, false).excepting(&attack::EXCEPTED);
    let agent = Agent::start("mode = \"observe\"").unwrap();
    let attempts = build(&mut streams);
    attack::make(&mut stack, &attempts, A_WHILE, A_WHILE).unwrap();
    let before = attack::carried_out(server).unwrap();
    let failed: Vec<_> = attempts
        .iter()
        .filter(|attempt| works(&attempt.name) && !before.contains(&attempt.number))
        .map(|attempt| &attempt.name)
        .collect();
    assert_eq!(failed, [""; 0], "where nothing is refused");
    drop(agent);

    let mut agent = Agent::start(policy).unwrap();
    let mark = evidence::mark(server).unwrap();
    let attempts = build(&mut streams);
    attack::make(&mut stack, &attempts, Duration::ZERO, A_WHILE).unwrap();
    let after = attack::carried_out(server).unwrap();
    let got_in: Vec<_> = attempts
        .iter()
        .filter(|attempt| after.contains(&attempt.number))
        .map(|attempt| &attempt.name)
        .collect();
    assert_eq!(got_in, [""; 0], "carried out");
    assert_eq!(attack::plaintext_logins(server, mark).unwrap(), [""; 0]);
    assert!(agent.is_running().unwrap(), "{}", agent.log().unwrap());
}

#[test]
fn contradicting_copies_get_no_login_in() {
    let net = Net::new().unwrap();
    let server = proxied(&net);
    keeps_out(&net, &server, ENFORCE, contradictions, |name| {
        matches!(
            name,
            "a header" | "two headers" | "the second before the first"
        )
    });
}

/// HAProxy puts its header on the third ACK of the handshake. None of it waits, under SYN cookies neither.
#[test]
fn header_of_haproxy_on_the_third_ack_passes_at_once() {
    let net = Net::new().unwrap();
    let server = proxied(&net);
    let login = server.open_login();
    for (cookies, v6, header) in [
        ("1", false, "send-proxy"),
        ("1", false, "send-proxy-v2"),
        ("1", true, "send-proxy"),
        ("1", true, "send-proxy-v2"),
        ("2", false, "send-proxy-v2"),
    ] {
        net.db
            .set_sysctl("net.ipv4.tcp_syncookies", cookies)
            .unwrap();
        let (here, db) = if v6 {
            (net.app.v6(), net.app.db_v6())
        } else {
            (net.app.v4(), net.app.db_v4())
        };
        let agent = Agent::start(ENFORCE).unwrap();
        let at = SocketAddr::new(here, 3307);
        let _haproxy = HaProxy::proxying(&net.app, at, server.at(db), header).unwrap();
        let connect = || {
            wait::until("HAProxy", PATIENCE, || {
                let connected = Raw::connect(&net.app, at).ok();
                Ok(connected.and_then(|mut raw| raw.greeting().ok().map(|_| raw)))
            })
            .unwrap()
        };
        for _ in 0..10 {
            let mut raw = connect();
            raw.send(&ssl_request()).unwrap();
            logs_in(raw, &login);
        }
        // The gate judges the clients of a proxy on this host, too: their records have no header.
        let named = |record: &Record| {
            record.transport() == "tls" && record.text("/unmapped/proxied/ip") == here.to_string()
        };
        agent
            .await_records("all with their header", 10, named)
            .unwrap();
        let held = agent.held().unwrap();
        assert!(held.is_empty(), "{header} {held:?}");
        assert_eq!(agent.outcome("denied").unwrap(), 0, "{header}");
    }
}

/// A login of an excepted user that holds another one from `at` on, where the stream begins if the segment lies before
/// it.
fn nested(stream: &Stream) -> (Vec<u8>, usize) {
    let mut login = LoginPacket::new(attack::EXCEPTED[0]).packet_41();
    let at = login.len();
    login.extend(&stream.plain);
    let [a, b, c, ..] = u32::try_from(login.len() - 4).unwrap().to_le_bytes();
    login[..3].copy_from_slice(&[a, b, c]);
    (login, at)
}

/// What is sent on the third ACK, and what after the greeting.
type Sent = (Vec<Segment>, Vec<Segment>);

/// Attempts with payload on the third ACK; the name of one that works where nothing is refused ends with a `!`.
#[expect(clippy::too_many_lines, reason = "it is a list")]
fn third_acks(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let mut all = Vec::new();
    let mut add = |name: &str, make: &dyn Fn(&Stream) -> Sent| {
        let stream = streams.make();
        let (third, then) = make(&stream);
        let opening = Opening {
            isn: 77,
            stamps: true,
            third: Some(third),
            ..Opening::default()
        };
        all.push(Attempt::new(name, &stream, then).opening(opening));
    };
    let bare = || Segment::at(0, b"").flags(ACK);
    let at = |offset: usize, bytes: &[u8]| Segment::at(i32::try_from(offset).unwrap(), bytes);
    let before = |offset: usize, bytes: &[u8]| Segment::at(-i32::try_from(offset).unwrap(), bytes);
    let end = LINE.len();
    let other = b"PROXY TCP4 203.0.113.8 192.0.2.1 40000 3306\r\n";
    let longer = b"PROXY TCP4 203.0.113.9 192.0.2.1 40000 33060\r\n";

    add("a login!", &|it| {
        (vec![it.whole()], vec![bare(), it.whole()])
    });
    add("a header, a login behind!", &|it| {
        (vec![Segment::at(0, LINE)], vec![at(end, &it.plain)])
    });
    add("a header of version 2, a login behind!", &|it| {
        let header = binary_v4();
        (
            vec![Segment::at(0, &header)],
            vec![at(header.len(), &it.plain)],
        )
    });
    add("header and login in one!", &|it| {
        let both = Segment::at(0, &[LINE, &it.plain].concat());
        (vec![both.clone()], vec![bare(), both])
    });
    add("two headers, a login behind!", &|it| {
        let two = [LINE, &binary_v4()].concat();
        (vec![Segment::at(0, &two)], vec![at(two.len(), &it.plain)])
    });
    add("two third ACKs!", &|it| {
        let both = vec![Segment::at(0, LINE), Segment::at(0, other)];
        (both, vec![at(end, &it.plain)])
    });
    add("two third ACKs with other ends", &|it| {
        let both = vec![Segment::at(0, longer), Segment::at(0, LINE)];
        (both, vec![at(end, &it.plain), at(longer.len(), &it.plain)])
    });
    add("a header and a login as third ACKs!", &|it| {
        (vec![Segment::at(0, LINE), at(end, &it.plain)], vec![])
    });
    add("a login and a header as third ACKs", &|it| {
        (vec![it.whole(), Segment::at(0, LINE)], vec![it.whole()])
    });
    add("a header, then another copy", &|it| {
        let then = vec![
            Segment::at(0, longer),
            at(longer.len(), &it.plain),
            at(end, &it.plain),
        ];
        (vec![Segment::at(0, LINE)], then)
    });
    add("its end overlapped by a login!", &|it| {
        let tail = [&LINE[end - 5..], &it.plain].concat();
        (vec![Segment::at(0, LINE)], vec![at(end - 5, &tail)])
    });
    add("a header in two", &|it| {
        let cut = vec![Segment::at(0, &LINE[..20])];
        (cut, vec![at(20, &[&LINE[20..], &it.plain].concat())])
    });
    add("a header longer than its segment", &|it| {
        let header = binary(0, 0, &[&[0; 10], &it.plain[..]].concat());
        (vec![Segment::at(0, &header[..26])], vec![at(26, &it.plain)])
    });
    // The server's TCP cuts off what lies before the stream.
    add("an end of a header!", &|it| {
        let header = binary(0, 0, &it.plain[..it.len().min(200)]);
        let rest = at(header.len() - 16, &it.plain[header.len() - 16..]);
        (vec![before(16, &header)], vec![rest])
    });
    add("an end of a header, the login cut!", &|it| {
        let header = binary(0, 0, &it.plain[..30]);
        (vec![before(16, &header)], vec![at(30, &it.plain[30..])])
    });
    add("an end of a line!", &|it| {
        let line = [b"PROXY UNKNOWN ", LINE].concat();
        (vec![before(14, &line)], vec![at(end, &it.plain)])
    });
    add("one byte before", &|it| {
        (vec![before(1, LINE)], vec![bare(), it.whole()])
    });
    // And keeps what lies behind its front.
    add("behind a gap!", &|it| {
        let header = binary(0, 0, &it.plain[20..it.len().min(200)]);
        let front = it.plain(0, 20);
        let rest = it.plain(20, it.len());
        (vec![at(4, &header)], vec![front, rest])
    });
    add("a line behind a gap!", &|it| {
        (
            vec![at(end, LINE)],
            vec![Segment::at(0, LINE), at(2 * end, &it.plain)],
        )
    });
    // Segments that the server's TCP discards.
    let discards: [(&str, &dyn Fn(Segment) -> Segment); 3] = [
        ("wrong sum", &Segment::unsound),
        ("wrong acknowledgement", &Segment::ack_ahead),
        ("old timestamp", &|it| it.stamp(Stamp::Old)),
    ];
    for (name, discarded) in discards {
        add(&format!("a header with {name}, then a login"), &|it| {
            let decoy = discarded(Segment::at(0, &LINE.repeat(2)));
            (vec![decoy, it.whole()], vec![bare(), it.whole()])
        });
        add(&format!("a header with {name}, then another"), &|it| {
            let decoy = discarded(Segment::at(0, &longer.repeat(2)));
            let two = LINE.repeat(2);
            let then = vec![at(two.len(), &it.plain), at(2 * longer.len(), &it.plain)];
            (vec![decoy, Segment::at(0, &two)], then)
        });
        add(&format!("an excepted login with {name}"), &|it| {
            let excepted = it.lures[1].clone();
            let decoy = discarded(Segment::at(0, &excepted));
            (vec![decoy, it.whole()], vec![bare(), it.whole()])
        });
    }
    // Behind the name of an excepted user.
    add("an excepted login, then a copy", &|it| {
        (vec![Segment::at(0, &it.lures[1])], vec![it.whole()])
    });
    add("an excepted login and a copy as third ACKs", &|it| {
        (vec![Segment::at(0, &it.lures[1]), it.whole()], vec![])
    });
    add("the end of an excepted login!", &|it| {
        let (login, front) = nested(it);
        (vec![before(front, &login)], vec![])
    });
    add("the end of an excepted login, cut!", &|it| {
        let (login, front) = nested(it);
        let cut = before(front, &login[..front + 40]);
        (vec![cut], vec![at(40, &it.plain[40..])])
    });
    add("an excepted login behind a gap", &|it| {
        let first = it.plain(0, 40);
        let excepted = it.lures[1].clone();
        (vec![at(40, &excepted)], vec![first, it.plain(40, it.len())])
    });
    all
}

#[test]
fn payload_on_the_third_ack_gets_no_login_in() {
    let net = Net::new().unwrap();
    let server = proxied(&net);
    let works = |name: &str| name.ends_with('!');
    keeps_out(&net, &server, ENFORCE, third_acks, works);
    let excepting = attack::enforcing(&attack::EXCEPTED);
    keeps_out(&net, &server, &excepting, third_acks, works);
}

/// A SYN cookie that is answered at another place of the stream is none, so that not all of them work.
#[test]
fn payload_on_the_third_ack_under_syn_cookies_gets_no_login_in() {
    let net = Net::new().unwrap();
    net.db.set_sysctl("net.ipv4.tcp_syncookies", "2").unwrap();
    let server = proxied(&net);
    let excepting = attack::enforcing(&attack::EXCEPTED);
    keeps_out(&net, &server, &excepting, third_acks, |name| {
        name == "a header, a login behind!"
    });
}

/// A scripted server stands in for Percona's, which greets behind a header only; on a port that nothing names, and on
/// the classic one.
#[test]
fn mandatory_header_passes_before_the_greeting() {
    let net = Net::new().unwrap();
    for port in [3306, 13307] {
        let directory = Scratch::new().unwrap();
        let program = directory.join("mysqld");
        fs::copy(env!("CARGO_BIN_EXE_fake-mysqld"), &program).unwrap();
        let heard = directory.join("heard");
        let mut command = Command::new(&program);
        command.arg(port.to_string()).arg(&heard).arg("proxied");
        let agent = Agent::start(ENFORCE).unwrap();
        let _server = Killed(net.db.spawn(&mut command).unwrap());
        wait::until_true("the scripted server", PATIENCE, || Ok(heard.exists())).unwrap();
        let to = SocketAddr::new(net.app.db_v4(), port);
        let login = LoginPacket::new(OPEN_USER).packet_41();
        for header in [LINE, b"PROXY UNKNOWN\r\n"] {
            let mut raw = wait::until("the greeting", PATIENCE, || {
                let mut raw = Raw::connect(&net.app, to)?;
                raw.send(header)?;
                Ok(raw.greeting().ok().map(|_| raw))
            })
            .unwrap();
            raw.send(&login).unwrap();
            assert_eq!(
                raw.receive().unwrap().error(),
                Some(ErrorPacket::refusal(2, Some("HY000"))),
                "{port}"
            );
        }
        agent
            .await_records("both refusals", 2, |record| {
                record.text("/unmapped/reason") == "no-client-ssl"
            })
            .unwrap();
        assert!(!agent.held().unwrap().contains_key("before-greeting"));
        // Of the login of nobody, too, since the scripted server logs anyone in.
        let heard = fs::read(&heard).unwrap();
        let user = OPEN_USER.as_bytes();
        assert!(!heard.windows(user.len()).any(|bytes| bytes == user));
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
