//! Enforce mode against clients that misbehave segment by segment.
//!
//! Every attempt is made twice: in observe mode, which shows whether the trick works at all, and in enforce
//! mode, where the server must have carried out nothing and logged no login.

#![cfg(test)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use musttls_tests::agent::Agent;
use musttls_tests::attack::{self, Attempt, Stream, Streams};
use musttls_tests::audit::Record;
use musttls_tests::evidence;
use musttls_tests::netns::Net;
use musttls_tests::server::{Options, PORT, Product, Server};
use musttls_tests::tcp::{ACK, Extension, FIN, Opening, PSH, RST, SYN, Segment, Stack, Stamp};
use musttls_tests::wait::PATIENCE;
use musttls_tests::wire::{ErrorPacket, ssl_request};

/// How long an attempt is waited for that comes to nothing.
const A_WHILE: Duration = Duration::from_millis(700);

/// Where attempts are made.
struct Place {
    product: Product,
    tls: bool,
    v6: bool,
    /// Its port, if not the classic one.
    port: u16,
    /// Options of the server.
    with: &'static [&'static str],
    /// Users whose plaintext logins are allowed.
    excepted: &'static [&'static str],
    /// Kernel parameters of the server's host, set before it starts.
    sysctls: &'static [(&'static str, &'static str)],
}

impl Place {
    const MARIADB: Self = Self {
        product: Product::MariaDb,
        tls: true,
        v6: false,
        port: PORT,
        with: &[],
        excepted: &[],
        sysctls: &[],
    };
    const MARIADB_V6: Self = Self {
        v6: true,
        ..Self::MARIADB
    };
    const MARIADB_WITHOUT_TLS: Self = Self {
        tls: false,
        ..Self::MARIADB
    };
    const MYSQL: Self = Self {
        product: Product::MySql,
        ..Self::MARIADB
    };

    fn server(&self, net: &Net) -> Server {
        for (name, value) in self.sysctls {
            net.db.set_sysctl(name, value).unwrap();
        }
        let mut options = attack::patient(Options::new(self.product));
        options.tls = self.tls;
        for option in self.with {
            options = options.with(option);
        }
        Server::start(&net.db, &options).unwrap()
    }

    fn stack(&self, net: &Net) -> Stack {
        let to = if self.v6 {
            net.app.db_v6()
        } else {
            net.app.db_v4()
        };
        let to = SocketAddr::new(to, self.port);
        Stack::new(&net.app, &net.db, to).unwrap()
    }

    /// Makes the attempts that `build` builds in either mode.
    fn keeps_out(&self, build: impl Fn(&mut Streams<'_>) -> Vec<Attempt>) {
        if !self.product.is_under_test() {
            println!("NOT RUN on {:?}: MUSTTLS_SERVER", self.product);
            return;
        }
        let net = Net::new().unwrap();
        let server = self.server(&net);
        let mut streams = Streams::new(&server, self.v6).excepting(self.excepted);
        let mut stack = self.stack(&net);

        let agent = Agent::start("mode = \"observe\"").unwrap();
        let attempts = build(&mut streams);
        attack::make(&mut stack, &attempts, PATIENCE, A_WHILE).unwrap();
        let before = attack::carried_out(&server).unwrap();
        let names = |of: &dyn Fn(&Attempt) -> bool| -> Vec<String> {
            let named = |attempt: &&Attempt| of(attempt);
            attempts
                .iter()
                .filter(named)
                .map(|attempt| attempt.name.clone())
                .collect()
        };
        assert_eq!(
            names(&|attempt| before.contains(&attempt.number)),
            names(&|attempt| attempt.works),
            "where nothing is refused"
        );
        drop(agent);

        let mut agent = Agent::start(&attack::enforcing(self.excepted)).unwrap();
        let mark = evidence::mark(&server).unwrap();
        let attempts = build(&mut streams);
        attack::make(&mut stack, &attempts, Duration::ZERO, A_WHILE).unwrap();
        let after = attack::carried_out(&server).unwrap();
        let got_in = |attempt: &&Attempt| after.contains(&attempt.number);
        let got_in: Vec<_> = attempts.iter().filter(got_in).map(|it| &it.name).collect();
        assert_eq!(got_in, [""; 0], "carried out");
        assert_eq!(
            after.difference(&before).collect::<BTreeSet<_>>(),
            BTreeSet::new()
        );
        assert_eq!(attack::plaintext_logins(&server, mark).unwrap(), [""; 0]);
        assert!(agent.is_running().unwrap(), "{}", agent.log().unwrap());
        let decided: u64 = OUTCOMES
            .iter()
            .map(|outcome| agent.outcome(outcome).unwrap())
            .sum();
        let seen = agent.outcome("seen").unwrap();
        assert!(decided <= seen, "{decided} outcomes of {seen} sessions");
    }
}

/// Each session comes to one of these, or to none yet.
const OUTCOMES: [&str; 8] = [
    "secure",
    "denied",
    "excepted",
    "observed",
    "tls-failed",
    "half-open",
    "incomplete",
    "no-login",
];

/// Overlapping segments as (from, to, copy), and whose bytes Linux delivers, by column.
type Overlap = (&'static [(usize, usize, char)], &'static str);

/// Measured on 5.10, 6.1, 6.12, 7.2 and 7.3, all alike (ADR 0002).
const OVERLAPS: [Overlap; 6] = [
    (&[(1, 10, 'x'), (0, 10, 'G')], "GGGGGGGGGG"),
    (&[(1, 10, 'x'), (0, 1, 'G')], "Gxxxxxxxxx"),
    (&[(4, 10, 'x'), (2, 8, 'y'), (0, 2, 'G')], "GGyyyyyyxx"),
    (&[(2, 6, 'x'), (4, 10, 'y'), (0, 2, 'G')], "GGxxxxyyyy"),
    (&[(4, 6, 'x'), (2, 10, 'y'), (0, 2, 'G')], "GGyyyyyyyy"),
    (&[(0, 4, 'G'), (0, 10, 'x')], "GGGGxxxxxx"),
];
/// Which of the copies are a claim of TLS.
const CLAIMS: [&str; 7] = ["", "G", "x", "y", "Gx", "Gy", "xy"];
/// Offset of the byte that holds `CLIENT_SSL`.
const FLAGS: usize = 5;

/// One overlap, with its column `column` at the flags, where the copies differ.
fn overlap(stream: &Stream, overlap: Overlap, column: usize, claims: &str) -> Attempt {
    let (segments, delivered) = overlap;
    let start = FLAGS - column;
    let mut all = vec![stream.plain(0, start)];
    for (from, to, copy) in segments {
        let bytes = if claims.contains(*copy) {
            stream.claim_bytes()
        } else {
            stream.plain.as_slice()
        };
        all.push(Segment::of(bytes, start + from, start + to));
    }
    all.push(stream.plain(start + 10, stream.len()));
    let all = all.into_iter().filter(|segment| !segment.bytes.is_empty());
    let owner = char::from(delivered.as_bytes()[column]);
    let name = format!("{delivered} from {start}, claims: {claims:?}");
    Attempt::new(name, stream, all).works_if(!claims.contains(owner))
}

fn overlaps(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for row in OVERLAPS {
        let has = |copy| row.0.iter().any(|(_, _, of)| *of == copy);
        for claims in CLAIMS.iter().filter(|claims| claims.chars().all(has)) {
            for column in 0..=FLAGS {
                attempts.push(overlap(&streams.make(), row, column, claims));
            }
        }
    }
    attempts
}

#[test]
fn overlapping_copies_get_no_login_in() {
    Place::MARIADB.keeps_out(overlaps);
    Place::MYSQL.keeps_out(overlaps);
}

#[test]
fn overlapping_copies_over_ipv6_get_no_login_in() {
    Place::MARIADB_V6.keeps_out(overlaps);
}

/// A server without TLS ignores the flag, so that claims get in as well.
#[test]
fn overlapping_copies_get_no_login_into_a_server_without_tls() {
    Place::MARIADB_WITHOUT_TLS.keeps_out(|streams| {
        let all = overlaps(streams).into_iter();
        all.map(|attempt| attempt.works_if(true)).collect()
    });
}

/// The plaintext in different cuts and orders, none of which needs a gap to be filled later.
fn cuts(stream: &Stream) -> Vec<Vec<Segment>> {
    let len = stream.len();
    let mut all = vec![vec![stream.whole()]];
    for cut in [3, 4, 5, 6, 36, 40] {
        let (first, second) = (stream.plain(0, cut), stream.plain(cut, len));
        all.push(vec![first.clone(), second.clone()]);
        all.push(vec![second, first]);
    }
    all
}

/// Every byte in a segment of its own, in `order`.
fn singly(stream: &Stream, order: impl Iterator<Item = usize>) -> Vec<Segment> {
    order.map(|at| stream.plain(at, at + 1)).collect()
}

#[test]
fn any_order_of_segments_gets_no_login_in() {
    let orders = |streams: &mut Streams<'_>| {
        let mut attempts = Vec::new();
        let patterns = streams.make();
        for (number, _) in cuts(&patterns).iter().enumerate() {
            let stream = streams.make();
            let segments = cuts(&stream).swap_remove(number);
            attempts.push(Attempt::new(format!("cut {number}"), &stream, segments));
        }
        // The head alone singly: each segment is waited for.
        for backwards in [false, true] {
            let stream = streams.make();
            let tail = stream.plain(12, stream.len());
            let mut segments = if backwards {
                singly(&stream, (0..12).rev())
            } else {
                singly(&stream, 0..12)
            };
            segments.insert(if backwards { 0 } else { 12 }, tail);
            attempts.push(Attempt::new(
                format!("singly, backwards: {backwards}"),
                &stream,
                segments,
            ));
        }
        attempts
    };
    Place::MARIADB.keeps_out(orders);
    Place::MYSQL.keeps_out(orders);
}

/// What has the server's TCP discard a segment that the gate sees.
type Defect = fn(Segment) -> Segment;

const DEFECTS: [(&str, Defect); 15] = [
    ("wrong checksum", Segment::unsound),
    ("old timestamp", |segment| segment.stamp(Stamp::Old)),
    ("acknowledges too much", Segment::ack_ahead),
    ("no ACK flag", |segment| segment.flags(PSH)),
    ("no flags", |segment| segment.flags(0)),
    ("SYN", |segment| segment.flags(SYN)),
    ("SYN and ACK", |segment| segment.flags(SYN | ACK)),
    ("SYN before the stream", |segment| {
        moved(segment, -1).flags(SYN | ACK)
    }),
    ("RST without a match", |segment| {
        moved(segment, 1).flags(RST | ACK)
    }),
    ("wrong checksum and FIN", |segment| {
        segment.flags(FIN | ACK).unsound()
    }),
    ("wrong checksum and RST", |segment| {
        segment.flags(RST | ACK).unsound()
    }),
    ("wrong checksum and TTL 1", |segment| {
        segment.hops(1).unsound()
    }),
    ("behind the window", |segment| moved(segment, 1 << 20)),
    ("far behind the window", |segment| moved(segment, i32::MAX)),
    ("far before the stream", |segment| moved(segment, i32::MIN)),
];

fn moved(mut segment: Segment, by: i32) -> Segment {
    segment.offset = segment.offset.wrapping_add(by);
    segment
}

/// A lure that is discarded, by its number in each stream, and then the plaintext.
fn decoys(streams: &mut Streams<'_>, lure: usize) -> Vec<Attempt> {
    let patterns = cuts(&streams.make()).len();
    let mut attempts = Vec::new();
    for (name, defect) in DEFECTS {
        // 20 bytes of payload and the headers are below the 76 bytes up to which the kernel sums at once.
        for len in [20, usize::MAX] {
            for number in 0..patterns {
                let stream = streams.make();
                let mut segments = vec![defect(Segment::of(&stream.lures[lure], 0, len))];
                segments.extend(cuts(&stream).swap_remove(number));
                let name = format!("{name}, {len} bytes, then cut {number}");
                attempts.push(Attempt::new(name, &stream, segments).opening(stamped()));
            }
        }
    }
    attempts
}

fn stamped() -> Opening {
    Opening {
        isn: 77,
        stamps: true,
        ..Opening::default()
    }
}

#[test]
fn claims_that_the_server_discards_get_no_login_in() {
    Place::MARIADB.keeps_out(|streams| decoys(streams, 0));
}

#[test]
fn claims_that_a_server_without_tls_discards_get_no_login_in() {
    Place::MARIADB_WITHOUT_TLS.keeps_out(|streams| decoys(streams, 0));
}

#[test]
fn excepted_logins_that_the_server_discards_get_no_other_user_in() {
    let place = Place {
        excepted: &attack::EXCEPTED,
        ..Place::MARIADB
    };
    // Behind the claim, each user in the 4.1 form and in the one before.
    place.keeps_out(|streams| (1..=4).flat_map(|lure| decoys(streams, lure)).collect());
}

/// Nothing counts the TTL down between the hook and the server, so that it hides nothing.
#[test]
fn low_ttl_gets_no_login_in() {
    Place::MARIADB.keeps_out(|streams| {
        let mut attempts = Vec::new();
        for hops in [0, 1] {
            let stream = streams.make();
            let name = format!("TTL {hops}");
            attempts.push(Attempt::new(
                name.clone(),
                &stream,
                [stream.whole().hops(hops)],
            ));
            let stream = streams.make();
            let segments = [stream.claim(0, usize::MAX).hops(hops), stream.whole()];
            attempts.push(Attempt::new(format!("claim with {name}"), &stream, segments).futile());
        }
        attempts
    });
}

/// `stream` with one more byte at `offset`, which the server does not read if it is urgent.
fn with_urgent_byte(stream: &Stream, offset: usize) -> Vec<u8> {
    // 1 passes for a sequence id, 0x0a for flags with `CLIENT_SSL` and `CLIENT_PROTOCOL_41`.
    let byte = if offset == 3 { 1 } else { 0x0a };
    let mut bytes = stream.plain.clone();
    bytes.insert(offset, byte);
    bytes
}

fn urgent(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for offset in [0, 1, 2, 3, 4, 5, 6, 7, 8, 20, 36, 40] {
        let pointer = u16::try_from(offset + 1).unwrap();
        let at = i32::try_from(offset).unwrap();
        let empty = Segment::at(0, b"").flags(ACK).urgent(pointer);
        let all = |bytes: &[u8]| Segment::at(0, bytes);
        let mut add = |name: &str, make: &dyn Fn(&[u8]) -> Vec<Segment>| {
            let stream = streams.make();
            let segments = make(&with_urgent_byte(&stream, offset));
            attempts.push(Attempt::new(
                format!("{name} at {offset}"),
                &stream,
                segments,
            ));
        };
        add("empty segment, URG", &|bytes| {
            vec![empty.clone(), all(bytes)]
        });
        add("empty segment at the byte, URG", &|bytes| {
            vec![Segment::at(at, b"").flags(ACK).urgent(1), all(bytes)]
        });
        add("one segment, URG", &|bytes| {
            vec![all(bytes).urgent(pointer)]
        });
        add("URG in a segment of the byte alone", &|bytes| {
            vec![
                Segment::of(bytes, 0, offset),
                Segment::of(bytes, offset, offset + 1).urgent(1),
                Segment::of(bytes, offset + 1, bytes.len()),
            ]
        });
        add("URG in a segment before the stream", &|bytes| {
            vec![Segment::at(-1, b"?").urgent(pointer + 1), all(bytes)]
        });
        add("URG and then the claim without it", &|bytes| {
            let mut claim = bytes.to_vec();
            claim[if offset <= 4 { 6 } else { 5 }] |= 8;
            vec![
                empty.clone(),
                Segment::of(&claim, 0, 30).unsound(),
                all(bytes),
            ]
        });
    }
    attempts
}

#[test]
fn urgent_pointer_at_any_offset_gets_no_login_in() {
    Place::MARIADB.keeps_out(urgent);
    Place::MYSQL.keeps_out(urgent);
}

/// Opens with `third` in place of the bare ACK, then goes on as if that had been lost.
fn on_third_ack(name: &str, stream: &Stream, third: &[Segment]) -> Attempt {
    let opening = Opening {
        isn: 77,
        third: Some(third.to_vec()),
        ..Opening::default()
    };
    let bare = Segment::at(0, b"").flags(ACK);
    Attempt::new(name, stream, [bare, stream.whole()]).opening(opening)
}

fn third_acks(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let stream = streams.make();
    let mut attempts = vec![on_third_ack("whole", &stream, &[stream.whole()])];
    let stream = streams.make();
    let last = [stream.whole().flags(ACK | PSH | FIN)];
    attempts.push(on_third_ack("with FIN", &stream, &last));
    let stream = streams.make();
    let two = [stream.plain(0, FLAGS), stream.plain(FLAGS, stream.len())];
    attempts.push(on_third_ack("in two segments", &stream, &two));
    let stream = streams.make();
    let decoy = [stream.claim(0, usize::MAX).unsound(), stream.whole()];
    attempts.push(on_third_ack(
        "behind a claim that is discarded",
        &stream,
        &decoy,
    ));
    let stream = streams.make();
    let late = [stream.plain(FLAGS, stream.len()), stream.plain(0, FLAGS)];
    // The first one completes the handshake, though it is not what comes next.
    attempts.push(on_third_ack(
        "in two segments, the second first",
        &stream,
        &late,
    ));
    for offset in [3, 4, 5] {
        let stream = streams.make();
        let pointer = u16::try_from(offset + 1).unwrap();
        let urgent = Segment::at(0, b"").flags(ACK).urgent(pointer);
        let mut attempt = on_third_ack("URG", &stream, &[urgent]);
        attempt.steps.pop();
        attempt.steps.pop();
        let all = Segment::at(0, &with_urgent_byte(&stream, offset));
        attempt
            .steps
            .extend([attack::Step::Send(all), attack::Step::Settle]);
        attempts.push(attempt);
    }
    attempts
}

#[test]
fn payload_on_the_third_ack_gets_no_login_in() {
    Place::MARIADB.keeps_out(third_acks);
    Place::MYSQL.keeps_out(third_acks);
}

#[test]
fn payload_on_the_third_ack_under_syn_cookies_gets_no_login_in() {
    let place = Place {
        sysctls: &[("net.ipv4.tcp_syncookies", "2")],
        ..Place::MARIADB
    };
    place.keeps_out(|streams| {
        let mut attempts = third_acks(streams);
        attempts.extend(overlaps(streams));
        attempts
    });
}

/// 0x403: fast open for clients and servers, for every listener; 0x200: without a cookie.
const FAST_OPEN: &str = "net.ipv4.tcp_fastopen";

fn in_syn(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let stream = streams.make();
    let opening = |payload: &[u8]| Opening {
        isn: 77,
        syn_payload: payload.to_vec(),
        fast_open: Some(Vec::new()),
        ..Opening::default()
    };
    let syn = Segment::at(-1, b"").flags(SYN);
    let again = [syn.clone(), stream.whole()];
    let mut attempts =
        vec![Attempt::new("in the SYN", &stream, again).opening(opening(&stream.plain))];
    let stream = streams.make();
    let rest = [
        syn.clone(),
        stream.plain(FLAGS, stream.len()),
        stream.whole(),
    ];
    let head = opening(&stream.plain[..FLAGS]);
    attempts.push(Attempt::new("its head in the SYN", &stream, rest).opening(head));
    let stream = streams.make();
    let empty = Attempt::new("behind an empty SYN", &stream, [stream.whole()]);
    attempts.push(empty.opening(opening(b"")));
    let stream = streams.make();
    // Before the handshake is over the connection exists, and takes segments.
    let early = Opening {
        third: Some(vec![stream.claim(0, usize::MAX).unsound(), stream.whole()]),
        ..opening(b"")
    };
    let bare = Segment::at(0, b"").flags(ACK);
    let early = Attempt::new("on the third ACK", &stream, [bare, stream.whole()]).opening(early);
    attempts.push(early);
    let stream = streams.make();
    // The SYN of a copy takes a number of the sequence, which the gate does not count.
    let shifted = Segment::at(-1, &stream.plain).flags(SYN | ACK);
    let shifted = Opening {
        third: Some(vec![shifted]),
        ..opening(b"")
    };
    let bare = Segment::at(0, b"").flags(ACK);
    attempts.push(
        Attempt::new("SYN and ACK", &stream, [bare])
            .opening(shifted)
            .futile(),
    );
    attempts
}

#[test]
fn payload_in_the_syn_gets_no_login_in() {
    let place = Place {
        // A session that is denied before its handshake is over is held until the server gives up.
        with: &["--connect-timeout=2"],
        sysctls: &[(FAST_OPEN, "1539")],
        ..Place::MARIADB
    };
    place.keeps_out(in_syn);
}

#[test]
fn ip_options_get_no_login_in() {
    let place = Place::MARIADB;
    place.keeps_out(|streams| {
        let mut attempts = Vec::new();
        let record_route = [&[7, 39, 4][..], &[0; 36], &[0]].concat();
        let router_alert = [0x94, 4, 0, 0];
        for options in [vec![1; 4], vec![1; 40], record_route, router_alert.to_vec()] {
            let name = format!("{} bytes of options", options.len());
            let stream = streams.make();
            let segments = [stream.whole().ip_options(&options)];
            attempts.push(Attempt::new(name.clone(), &stream, segments));
            let stream = streams.make();
            let decoy = stream.claim(0, usize::MAX).ip_options(&options).unsound();
            let segments = [decoy, stream.whole().ip_options(&options)];
            attempts.push(Attempt::new(format!("claim and {name}"), &stream, segments));
        }
        attempts
    });
}

fn fragments(streams: &mut Streams<'_>, sizes: &[usize]) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for size in sizes {
        let stream = streams.make();
        let segments = [stream.whole().in_fragments(*size)];
        attempts.push(Attempt::new(
            format!("fragments of {size}"),
            &stream,
            segments,
        ));
        let stream = streams.make();
        let segments = [
            stream.claim(0, usize::MAX).unsound().in_fragments(*size),
            stream.whole().in_fragments(*size),
        ];
        attempts.push(Attempt::new(
            format!("claim and fragments of {size}"),
            &stream,
            segments,
        ));
    }
    attempts
}

#[test]
fn ip_fragments_get_no_login_in() {
    Place::MARIADB.keeps_out(|streams| fragments(streams, &[8, 16, 24, 64]));
    // The first one must hold the whole header (RFC 8200 section 4.5).
    Place::MARIADB_V6.keeps_out(|streams| fragments(streams, &[24, 32, 64]));
}

/// Hop-by-hop options, routing header, shim for destination options (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;

#[test]
fn ipv6_extension_headers_get_no_login_in() {
    Place::MARIADB_V6.keeps_out(|streams| {
        let destination = Extension::destination_options();
        let mut rows = vec![
            vec![Extension::padding(HOP_BY_HOP)],
            vec![Extension::padding(HOP_BY_HOP), destination.clone()],
            // No segments left: it has arrived.
            vec![Extension {
                kind: ROUTING,
                body: vec![0; 7],
            }],
            vec![Extension::atomic_fragment()],
            vec![
                destination.clone(),
                Extension::atomic_fragment(),
                destination.clone(),
            ],
        ];
        rows.extend([1, 2, 7, 8, 9, 16].map(|count| vec![destination.clone(); count]));
        let mut attempts = Vec::new();
        for row in rows {
            let kinds: Vec<_> = row.iter().map(|header| header.kind).collect();
            let stream = streams.make();
            let segments = [stream.whole().extensions(&row)];
            attempts.push(Attempt::new(format!("{kinds:?}"), &stream, segments));
            let stream = streams.make();
            let decoy = stream.claim(0, usize::MAX).extensions(&row).unsound();
            let segments = [decoy, stream.whole().extensions(&row)];
            attempts.push(Attempt::new(
                format!("claim behind {kinds:?}"),
                &stream,
                segments,
            ));
            let stream = streams.make();
            let behind = stream.plain(FLAGS, stream.len()).extensions(&row);
            let segments = [behind, stream.plain(0, FLAGS)];
            attempts.push(Attempt::new(
                format!("in part behind {kinds:?}"),
                &stream,
                segments,
            ));
        }
        attempts
    });
}

/// A listener on `*` has IPv4 clients with mapped addresses; these are those of each family alone.
#[test]
fn listeners_of_one_family_let_no_login_in() {
    let v4 = Place {
        with: &["--bind-address=0.0.0.0"],
        ..Place::MARIADB
    };
    v4.keeps_out(overlaps);
    let v6 = Place {
        with: &["--bind-address=fd77:1::1"],
        ..Place::MARIADB_V6
    };
    v6.keeps_out(overlaps);
}

#[test]
fn sequence_numbers_that_wrap_get_no_login_in() {
    Place::MARIADB.keeps_out(|streams| {
        let mut attempts = Vec::new();
        for before in (0..=12).chain([36, 40]) {
            // The byte at this offset has sequence number 0.
            let opening = Opening {
                isn: u32::MAX - before,
                ..Opening::default()
            };
            let mut add = |name: &str, make: &dyn Fn(&Stream) -> Vec<Segment>| {
                let stream = streams.make();
                let name = format!("{name}, 0 at offset {before}");
                let attempt = Attempt::new(name, &stream, make(&stream));
                attempts.push(attempt.opening(opening.clone()));
            };
            add("whole", &|stream| vec![stream.whole()]);
            add("in two", &|stream| {
                vec![stream.plain(FLAGS, stream.len()), stream.plain(0, FLAGS)]
            });
            add("claim", &|stream| {
                vec![stream.claim(0, usize::MAX).unsound(), stream.whole()]
            });
            add("claim on top", &|stream| {
                let over = stream.claim(4, 20);
                vec![over, stream.plain(0, 20), stream.plain(20, stream.len())]
            });
        }
        attempts
    });
}

#[test]
fn beginning_of_a_packet_of_full_length_gets_nothing_in() {
    Place::MARIADB.keeps_out(|streams| {
        let stream = streams.make();
        let mut bytes = stream.plain.clone();
        bytes[..3].fill(0xff);
        bytes.resize(60_000, 0);
        let segments = bytes.chunks(1400).enumerate();
        let segments: Vec<_> = segments
            .map(|(number, chunk)| Segment::at(i32::try_from(number * 1400).unwrap(), chunk))
            .collect();
        vec![Attempt::new("full length", &stream, segments).futile()]
    });
}

#[test]
fn tls_request_and_plaintext_get_no_login_in() {
    let build = |streams: &mut Streams<'_>| {
        let request = ssl_request();
        let mut attempts = Vec::new();
        for sequence in [1, 2] {
            let mut add = |name: &str, make: &dyn Fn(&[u8]) -> Vec<Segment>| {
                let mut stream = streams.make();
                stream.plain[3] = sequence;
                let bytes = [request.clone(), stream.plain.clone()].concat();
                let name = format!("{name}, sequence id {sequence}");
                attempts.push(Attempt::new(name, &stream, make(&bytes)).futile());
            };
            add("one segment", &|bytes| vec![Segment::at(0, bytes)]);
            add("two segments", &|bytes| {
                vec![
                    Segment::of(bytes, 0, 36),
                    Segment::of(bytes, 36, bytes.len()),
                ]
            });
            add("the second first", &|bytes| {
                vec![
                    Segment::of(bytes, 36, bytes.len()),
                    Segment::of(bytes, 0, 36),
                ]
            });
        }
        let stream = streams.make();
        let request = Segment::at(0, &request);
        attempts.push(Attempt::new("silence", &stream, [request.clone()]).futile());
        let stream = streams.make();
        // The request is discarded, so that the login stands in its place.
        attempts.push(Attempt::new(
            "discarded",
            &stream,
            [request.unsound(), stream.whole()],
        ));
        attempts
    };
    Place::MARIADB.keeps_out(build);
    Place::MYSQL.keeps_out(build);
}

#[test]
fn ends_of_the_connection_around_the_login_get_nothing_in() {
    let build = |streams: &mut Streams<'_>| {
        let mut attempts = Vec::new();
        let mut add = |name: &str, works: bool, make: &dyn Fn(&Stream, i32) -> Vec<Segment>| {
            let stream = streams.make();
            let len = i32::try_from(stream.len()).unwrap();
            let segments = make(&stream, len);
            attempts.push(Attempt::new(name, &stream, segments).works_if(works));
        };
        let fin = |offset| Segment::at(offset, b"").flags(FIN | ACK);
        let reset = |offset| Segment::at(offset, b"").flags(RST | ACK);
        add("FIN with it", true, &|stream, _| {
            vec![stream.whole().flags(FIN | ACK | PSH)]
        });
        add("FIN behind it", true, &|stream, len| {
            vec![stream.whole(), fin(len)]
        });
        add(
            "FIN behind it, but before it in time",
            true,
            &|stream, len| vec![fin(len), stream.whole()],
        );
        add(
            "FIN in its second half, which comes first",
            true,
            &|stream, _| {
                let second = stream.plain(FLAGS, stream.len()).flags(FIN | ACK);
                vec![second, stream.plain(0, FLAGS)]
            },
        );
        add("FIN in place of it", false, &|stream, _| {
            vec![fin(0), stream.whole()]
        });
        add("RST without a match, then it", true, &|stream, _| {
            vec![reset(1), stream.whole()]
        });
        add("RST out of the window, then it", true, &|stream, _| {
            vec![reset(1 << 20), stream.whole()]
        });
        add("RST, then it", false, &|stream, _| {
            vec![reset(0), stream.whole()]
        });
        add("it again and again", true, &|stream, _| {
            let claim = stream.claim(0, usize::MAX);
            vec![
                stream.whole(),
                claim.clone(),
                stream.whole(),
                claim.unsound(),
                stream.whole(),
            ]
        });
        add("bare ACKs, then what follows it", true, &|stream, len| {
            let bare = Segment::at(len, b"").flags(ACK);
            vec![
                stream.whole(),
                bare.clone(),
                bare,
                stream.plain(20, stream.len()),
            ]
        });
        attempts
    };
    Place::MARIADB.keeps_out(build);
    Place::MYSQL.keeps_out(build);
}

/// Sent before the greeting to a listener that nothing names.
fn disguised(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for number in 0..50 {
        let stream = streams.make();
        let bare = Segment::at(0, b"").flags(ACK);
        // The server reads the length from the first segment, and the rest from the second.
        let third = vec![bare, stream.plain(0, 3), Segment::at(0, &stream.disguised)];
        let opening = Opening {
            third: Some(third),
            ..stamped()
        };
        attempts.push(Attempt::new(format!("{number}"), &stream, []).opening(opening));
    }
    attempts
}

const UNNAMED: Place = Place {
    port: attack::UNNAMED_PORT,
    with: &attack::UNNAMED_OPTIONS,
    ..Place::MARIADB
};

// A hole. The gate lets the first segment pass because it does not cover the sequence id, and the second because
// it looks like a ClientHello; the server has read the login and its command before its greeting has it denied.
#[test]
fn login_disguised_as_tls_before_the_greeting_gets_nothing_in() {
    UNNAMED.keeps_out(disguised);
}

/// Sent before the greeting to a listener that nothing names, but for the packet header, which follows it.
fn headless(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for number in 0..50 {
        let stream = streams.make();
        let bare = Segment::at(0, b"").flags(ACK);
        let headless = stream.plain(4, stream.len());
        let opening = Opening {
            third: Some(vec![bare, headless, stream.whole().unsound()]),
            ..stamped()
        };
        let header = stream.plain(0, 4);
        attempts.push(Attempt::new(format!("{number}"), &stream, [header]).opening(opening));
    }
    attempts
}

// A hole. All but the packet header passes because it does not cover the sequence id; a copy of the whole login is
// held, which has the gate forget that bytes have passed; and behind the greeting the header carries nothing.
#[test]
fn login_whose_header_follows_the_greeting_gets_nothing_in() {
    UNNAMED.keeps_out(headless);
}

/// Sent before the greeting to a listener that nothing names: PROXY protocol headers, or what a server may take for
/// some, that have the gate look for the login elsewhere than the server does.
fn behind_headers(streams: &mut Streams<'_>) -> Vec<Attempt> {
    const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x20\0";
    let binary = |len: u8| {
        let behind = [&[0, len][..], &vec![0; usize::from(len)]].concat();
        [SIGNATURE, &behind].concat()
    };
    let mut attempts = Vec::new();
    for _ in 0..10 {
        let mut add = |name: &str, third: &dyn Fn(&[u8]) -> Vec<Segment>| {
            let stream = streams.make();
            let bare = Segment::at(0, b"").flags(ACK);
            let third = [vec![bare], third(&stream.plain)].concat();
            let opening = Opening {
                third: Some(third),
                ..stamped()
            };
            attempts.push(Attempt::new(name, &stream, []).opening(opening));
        };
        add("a header that the server discards moves it", &|plain| {
            let decoy = binary(240);
            let mut long = plain.to_vec();
            long.resize(decoy.len() + 64, 0xaa);
            vec![Segment::at(0, &decoy).unsound(), Segment::at(0, &long)]
        });
        add("behind a header that comes later", &|plain| {
            vec![Segment::at(28, plain), Segment::at(0, &binary(12))]
        });
        add("behind a line that is too long", &|plain| {
            let line = [&b"PROXY UNKNOWN "[..], &[b'a'; 120], b"\r\n"].concat();
            vec![Segment::at(0, &[&line, plain].concat())]
        });
        add("behind a fifth header", &|plain| {
            let headers = b"PROXY UNKNOWN\r\n".repeat(5);
            vec![Segment::at(0, &[&headers, plain].concat())]
        });
        add("behind a header in two segments", &|plain| {
            let rest = [b"UNKNOWN\r\n", plain].concat();
            vec![Segment::at(0, b"PROXY "), Segment::at(6, &rest)]
        });
    }
    attempts
}

// A hole in each: the gate took the bytes at the place where it thought the login began for another protocol.
#[test]
fn login_behind_headers_before_the_greeting_gets_nothing_in() {
    let place = Place {
        with: &[
            "--extra-por=3399",
            "--extra-max-connections=2000",
            "--proxy-protocol-networks=*",
        ],
        ..UNNAMED
    };
    place.keeps_out(behind_headers);
}

/// The first bytes of a TLS record with a `ClientHello`, of a length that is also the number of a character set.
const HELLO: [u8; 6] = [0x16, 3, 1, 1, 0x2d, 1];
/// Where a login of the 4.1 form can hold [`HELLO`]: in its maximum packet size, character set and filler.
const HELLO_PLACES: [usize; 4] = [8, 13, 20, 26];

/// A stream whose plaintext holds [`HELLO`] at `at`.
fn with_hello(streams: &mut Streams<'_>, at: usize) -> Stream {
    let mut stream = streams.make();
    stream.plain[at..at + HELLO.len()].copy_from_slice(&HELLO);
    stream
}

/// `stream` with a login of `len` bytes, filled up.
fn with_login_of(mut stream: Stream, len: usize) -> Stream {
    let end = 4 + usize::from(u16::from_le_bytes([stream.plain[0], stream.plain[1]]));
    stream.plain.splice(end..end, vec![0; len - end]);
    let [low, high] = u16::try_from(len - 4).unwrap().to_le_bytes();
    stream.plain[..2].copy_from_slice(&[low, high]);
    stream
}

/// What follows the login's flags comes first, in a form that passes ahead of them.
fn overtaken(streams: &mut Streams<'_>) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for at in HELLO_PLACES {
        let mut add = |name: &str, make: &dyn Fn(&Stream, Segment) -> Vec<Segment>| {
            let stream = with_hello(streams, at);
            let segments = make(&stream, stream.plain(at, stream.len()));
            attempts.push(Attempt::new(format!("{name} at {at}"), &stream, segments));
        };
        add("the head behind its end", &|stream, end| {
            vec![end, stream.plain(0, at)]
        });
        add("the flags alone behind the end", &|stream, end| {
            vec![
                end,
                stream.plain(6, at),
                stream.plain(4, 6),
                stream.plain(0, 4),
            ]
        });
        add("the end in two, backwards", &|stream, _| {
            let cut = at + 20;
            vec![
                stream.plain(cut, stream.len()),
                stream.plain(at, cut),
                stream.plain(cut, stream.len()),
                stream.plain(0, at),
            ]
        });
        add("a claim between that is discarded", &|stream, end| {
            let claim = stream.claim(0, usize::MAX).unsound();
            vec![end, claim, stream.plain(0, at)]
        });
        add("all behind the end", &|stream, end| {
            vec![end, stream.whole()]
        });
    }
    for len in [1_300, 20_000] {
        let stream = with_login_of(streams.make(), len);
        let cut = 1_250;
        let mut segments: Vec<_> = (cut..stream.len())
            .step_by(1_400)
            .map(|from| stream.plain(from, from + 1_400))
            .rev()
            .collect();
        segments.push(stream.plain(0, cut));
        attempts.push(Attempt::new(
            format!("the head of {len} bytes last"),
            &stream,
            segments,
        ));
    }
    attempts
}

#[test]
fn end_of_a_login_that_comes_first_gets_nothing_in() {
    Place::MARIADB.keeps_out(overtaken);
    Place::MARIADB_V6.keeps_out(overtaken);
    Place::MYSQL.keeps_out(overtaken);
}

/// What comes first belongs to another user than the head that is judged.
#[test]
fn end_of_another_users_login_that_comes_first_gets_nothing_in() {
    let place = Place {
        excepted: &attack::EXCEPTED,
        ..Place::MARIADB
    };
    place.keeps_out(|streams| {
        let mut attempts = overtaken(streams);
        for at in HELLO_PLACES {
            // Behind the claim, each user in the 4.1 form and in the one before.
            for lure in 1..=4 {
                let mut add =
                    |name: &str, works, make: &dyn Fn(&Stream, Segment) -> Vec<Segment>| {
                        let stream = with_hello(streams, at);
                        let end = stream.plain(at, stream.len());
                        let name = format!("lure {lure}, {name}, at {at}");
                        let attempt = Attempt::new(name, &stream, make(&stream, end));
                        attempts.push(attempt.works_if(works));
                    };
                let excepted =
                    |stream: &Stream, from, to| Segment::of(&stream.lures[lure], from, to);
                add("discarded behind the end", true, &|stream, end| {
                    let decoy = excepted(stream, 0, usize::MAX).unsound();
                    vec![end, decoy, stream.plain(0, at)]
                });
                add("discarded before it", true, &|stream, end| {
                    let decoy = excepted(stream, 0, usize::MAX).unsound();
                    vec![decoy, end, stream.plain(0, at)]
                });
                add("all of it", false, &|stream, end| {
                    vec![end, excepted(stream, 0, usize::MAX)]
                });
                add("its head", false, &|stream, end| {
                    vec![end, excepted(stream, 0, 42)]
                });
                add("its head, backwards", false, &|stream, end| {
                    vec![end, excepted(stream, 4, 42), excepted(stream, 0, 4)]
                });
            }
        }
        attempts
    });
}

/// A header that comes last moves the login to where something has passed.
#[test]
fn header_behind_the_login_that_it_moves_gets_nothing_in() {
    let header = [b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\x0c".as_slice(), &[0; 12]].concat();
    let begin = header.len();
    let place = Place {
        with: &["--proxy-protocol-networks=*"],
        ..Place::MARIADB
    };
    place.keeps_out(|streams| {
        let mut attempts = Vec::new();
        let behind = |plain: &[u8]| [&header, plain].concat();
        // All of the login but its length, which the header's segment brings.
        let stream = streams.make();
        let login = Segment::of(&behind(&stream.disguised), begin, usize::MAX);
        let length = Segment::of(&behind(&stream.plain), 0, begin + 3);
        attempts.push(Attempt::new(
            "on top of it",
            &stream,
            [login.clone(), length.clone()],
        ));
        let stream = streams.make();
        let login = Segment::of(&behind(&stream.disguised), begin, usize::MAX);
        let decoy = Segment::of(&header, 0, begin).unsound();
        attempts.push(Attempt::new(
            "on top of it, twice",
            &stream,
            [decoy, login, length],
        ));
        for at in HELLO_PLACES {
            for number in 0..3 {
                let stream = with_hello(streams, at);
                let bytes = behind(&stream.plain);
                let part = |from, to| Segment::of(&bytes, from, to);
                let head = part(begin, begin + at);
                let behind_end = match number {
                    0 => vec![part(0, begin), head],
                    1 => vec![head, part(0, begin)],
                    _ => vec![part(0, begin + at)],
                };
                let end = part(begin + at, bytes.len());
                let segments = [vec![end], behind_end].concat();
                attempts.push(Attempt::new(format!("{number} at {at}"), &stream, segments));
            }
        }
        attempts
    });
}

/// The refusal is that of any login, and what came first stays unread.
#[test]
fn login_whose_end_comes_first_is_refused_like_any_other() {
    let net = Net::new().unwrap();
    for product in Product::ALL {
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start("mode = \"enforce\"").unwrap();
        let mut stack = Stack::new(&net.app, &net.db, server.at(net.app.db_v4())).unwrap();
        let mut streams = Streams::new(&server, false);
        let stream = with_hello(&mut streams, 13);
        let local = stack.greeted(stamped()).unwrap();
        let before = evidence::counts(&server, local.ip()).unwrap();
        for segment in [stream.plain(13, stream.len()), stream.plain(0, 13)] {
            stack.send(local, &segment).unwrap();
        }
        stack
            .await_that(local, "the refusal", |it| it.error().is_some())
            .unwrap();
        let refusal = ErrorPacket::refusal(2, Some(product.refusal_sqlstate()));
        let told = stack.connection(local).unwrap().error();
        assert_eq!(told, Some(refusal), "{product:?}");
        evidence::await_no_connection(&server).unwrap();
        let after = evidence::counts(&server, local.ip()).unwrap();
        assert_eq!(
            after.handshake_errors, before.handshake_errors,
            "{product:?}"
        );
        assert_eq!(after.connect_errors, before.connect_errors, "{product:?}");
        assert_eq!(agent.held().unwrap(), BTreeMap::new(), "{product:?}");
        let landed = |record: &Record| {
            record.is_denied() && record.text("/unmapped/refusal/outcome") == "landed"
        };
        agent.await_record("a refusal that landed", landed).unwrap();
        assert_eq!(attack::carried_out(&server).unwrap(), BTreeSet::new());
    }
}
