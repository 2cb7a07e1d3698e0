//! Enforce mode and honest TLS clients: whatever form their TLS takes, they get in, the record says what
//! the server says, and the gate has dropped no segment of theirs, so that none has waited for a
//! retransmission.
//!
//! Lost packets are lost by nftables on the hosts: not every kernel has netem. Rules at `input` lose a
//! packet before the gate sees it, as a network does.

#![cfg(test)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use std::{slice, thread};

use musttls_tests::agent::Agent;

use musttls_tests::attack::honest;
use musttls_tests::audit::Record;
use musttls_tests::certs::Certs;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::evidence;
use musttls_tests::netns::{Host, Net};
use musttls_tests::raw::Raw;
use musttls_tests::server::{Options, Product, Server};
use musttls_tests::tcp::{Extension, Stack};
use musttls_tests::tls::{TlsClient, TlsStream};
use musttls_tests::wait::{self, PATIENCE};
use musttls_tests::wire::{
    CLIENT_SSL, LoginPacket, long_ssl_request, short_ssl_request, ssl_request,
};
use rustls::HandshakeKind;

const ENFORCE: &str = "mode = \"enforce\"";
/// `ER_HANDSHAKE_ERROR`.
const ER_HANDSHAKE_ERROR: u16 = 1043;
/// Logins of the bulk test; the full run sets 100000.
const LOGINS: &str = "MUSTTLS_TLS_LOGINS";
/// A pause that a slow client makes: longer than any timer of TCP on a network this short.
const SLOW: Duration = Duration::from_millis(250);

/// Both servers on one host, and the agent.
struct Site {
    agent: Agent,
    servers: Vec<Server>,
    net: Net,
}

impl Site {
    fn new() -> Self {
        Self::of(Product::all().collect())
    }

    fn of(products: Vec<Product>) -> Self {
        let net = Net::new().unwrap();
        let start = |(product, port): (Product, u16)| {
            // Lost packets must not make the server itself give up.
            let options = Options::new(product)
                .port(port)
                .with("--connect-timeout=60");
            Server::start(&net.db, &options).unwrap()
        };
        let servers = thread::scope(|scope| {
            let starting: Vec<_> = products
                .into_iter()
                .zip(3306..)
                .map(|it| scope.spawn(move || start(it)))
                .collect();
            let started = |it: thread::ScopedJoinHandle<'_, _>| it.join().unwrap();
            starting.into_iter().map(started).collect()
        });
        let agent = Agent::start(ENFORCE).unwrap();
        Self {
            agent,
            servers,
            net,
        }
    }

    fn to(&self, server: &Server) -> SocketAddr {
        server.at(self.net.app.db_v4())
    }

    /// A session behind the greeting.
    fn greeted(&self, server: &Server) -> Raw {
        Raw::greeted(&self.net.app, self.to(server)).unwrap().0
    }

    /// Logs in behind the TLS handshake; the record then says what the server says.
    fn logs_in(&self, server: &Server, what: &str, tls: Raw<TlsStream>) {
        self.logs_in_as(
            &server.open_login(),
            &format!("{:?}, {what}", server.product()),
            tls,
        );
    }

    fn logs_in_as(&self, login: &LoginPacket, what: &str, mut tls: Raw<TlsStream>) {
        tls.send(&login.packet_over_tls()).unwrap();
        let answer = tls.receive().unwrap();
        assert!(answer.is_ok(), "{what}: {answer:?}");
        let session = tls.session().unwrap();
        let port = u64::from(tls.local().unwrap().port());
        tls.quit().unwrap();
        let record = self
            .agent
            .await_record(what, |record| record.source_port() == Some(port))
            .unwrap();
        let line = format!("{what}: {}", record.line);
        assert_eq!(record.transport(), "tls", "{line}");
        assert_eq!(
            (record.action(), record.disposition()),
            (Some(1), Some(1)),
            "{line}"
        );
        assert_eq!(record.tls_version(), session.tls_version, "{line}");
        let cipher = evidence::standard_name(&session.cipher).unwrap();
        assert_eq!(record.tls_cipher(), cipher, "{line}");
    }

    /// The record says whether the session's login was sent in the clear, in so many bytes.
    fn is_exposed(&self, what: &str, port: u64, len: Option<u64>) {
        let of_this = |record: &Record| record.source_port() == Some(port);
        let record = self.agent.await_record(what, of_this).unwrap();
        let line = format!("{what}: {}", record.line);
        assert_eq!(record.number("/unmapped/exposed_packet_len"), len, "{line}");
        let told = record.at("/unmapped/credential_exposed") == true;
        assert_eq!(told, len.is_some(), "{line}");
        let severity = if len.is_some() { 2 } else { 1 };
        assert_eq!(record.number("/severity_id"), Some(severity), "{line}");
    }

    /// No segment was held since the start, and no session denied.
    fn is_undisturbed(&self, what: &str) {
        assert_eq!(self.agent.held().unwrap(), BTreeMap::new(), "{what}");
        assert_eq!(self.agent.outcome("denied").unwrap(), 0, "{what}");
    }
}

#[test]
fn every_form_of_ssl_request_passes() {
    let site = Site::new();
    for server in &site.servers {
        let with_login = server.open_login().caps(CLIENT_SSL).packet_41();
        let login_len = u64::try_from(with_login.len() - 4).unwrap();
        let forms = [
            ("SSLRequest", ssl_request(), None),
            ("SSLRequest of 33 bytes", long_ssl_request(&[0]), Some(33)),
            (
                "SSLRequest of 20,000 bytes",
                long_ssl_request(&vec![0; 20_000 - 32]),
                Some(20_000),
            ),
            ("CLIENT_SSL in a whole login", with_login, Some(login_len)),
        ];
        for (what, request, exposed) in &forms {
            let mut raw = site.greeted(server);
            raw.send(request).unwrap();
            let tls = raw
                .into_tls()
                .unwrap_or_else(|error| panic!("{what}: {error:#}"));
            let port = u64::from(tls.local().unwrap().port());
            site.logs_in(server, what, tls);
            site.is_undisturbed(what);
            site.is_exposed(what, port, *exposed);
        }
    }
}

/// What the client sent in the clear is on record, however it was cut.
#[test]
fn login_sent_before_the_tls_is_on_record_as_exposed() {
    let site = Site::new();
    let enforced = site.servers.iter().map(|server| (server, ENFORCE));
    let observed = (&site.servers[0], "mode = \"observe\"");
    let mut logins = 0;
    for (server, policy) in enforced.chain([observed]) {
        site.agent.set_policy(policy).unwrap();
        let login = server.open_login().caps(CLIENT_SSL).packet_41();
        let exposed = u64::try_from(login.len() - 4).unwrap();
        let cuts: [(&str, &[usize]); 5] = [
            ("behind the first byte", &[1]),
            ("inside the length", &[1, 2, 3]),
            ("behind the header", &[4]),
            // The gate holds what has half of the flags, and TCP sends both halves at once.
            ("inside the flags", &[5]),
            ("behind the flags", &[8, 20, 36, 37]),
        ];
        for (what, cuts) in cuts {
            let mut raw = site.greeted(server);
            let mut rest = login.as_slice();
            let mut sent = 0;
            for cut in cuts {
                let (piece, more) = rest.split_at(cut - sent);
                raw.send(piece).unwrap();
                (rest, sent) = (more, *cut);
            }
            raw.send(rest).unwrap();
            let tls = raw
                .into_tls()
                .unwrap_or_else(|error| panic!("{what}: {error:#}"));
            let port = u64::from(tls.local().unwrap().port());
            site.logs_in(server, what, tls);
            site.is_exposed(what, port, Some(exposed));
            logins += 1;
        }
    }
    let status = site.agent.status().unwrap();
    assert_eq!(status["credentials_exposed"], logins, "{status}");
}

/// `native.rs` shows what comes of it without the agent: MariaDB takes it for a broken handshake, MySQL 9.7
/// goes over to TLS and then accepts no login. With the agent it is the same answer, over TLS.
#[test]
fn ssl_request_of_4_bytes_passes() {
    let site = Site::of(vec![Product::MySql]);
    let mysql = &site.servers[0];
    let mut raw = site.greeted(mysql);
    raw.send(&short_ssl_request()).unwrap();
    let mut tls = raw.into_tls().unwrap();
    let login = mysql.open_login().packet_over_tls();
    tls.send(&login).unwrap();
    let answer = tls.receive().unwrap().error().unwrap();
    assert_eq!(answer.number, ER_HANDSHAKE_ERROR, "{answer:?}");
    let port = u64::from(tls.local().unwrap().port());
    let of_this = |record: &Record| record.source_port() == Some(port);
    let record = site.agent.await_record("4 bytes", of_this).unwrap();
    assert_eq!((record.transport(), record.action()), ("tls", Some(1)));
    site.is_undisturbed("SSLRequest of 4 bytes");
}

#[test]
fn client_hello_in_the_segment_of_the_ssl_request_passes() {
    let site = Site::new();
    for server in &site.servers {
        for client in [TlsClient::v1_2().unwrap(), TlsClient::v1_3().unwrap()] {
            let (connection, hello) = client.begin().unwrap();
            let mut raw = site.greeted(server);
            raw.send(&[ssl_request(), hello].concat()).unwrap();
            site.logs_in(server, "pipelined", raw.finish_tls(connection).unwrap());
            site.is_undisturbed("pipelined");
        }
    }
}

#[test]
fn resumed_sessions_pass_in_tls_1_2_and_1_3() {
    let site = Site::new();
    for server in &site.servers {
        for (what, client) in [
            ("TLS 1.2", TlsClient::v1_2().unwrap()),
            ("TLS 1.3", TlsClient::v1_3().unwrap()),
        ] {
            for resumes in [false, true] {
                let mut raw = site.greeted(server);
                raw.send(&ssl_request()).unwrap();
                let tls = raw.into_tls_of(&client).unwrap();
                let kind = tls.handshake();
                let resumed = kind == Some(HandshakeKind::Resumed);
                assert_eq!(resumed, resumes, "{what} {:?} {kind:?}", server.product());
                site.logs_in(server, what, tls);
                site.is_undisturbed(what);
            }
        }
    }
}

#[test]
fn hello_retry_request_passes() {
    let site = Site::new();
    for server in &site.servers {
        // One byte, as browsers send it; then as long as the share of X25519MLKEM768
        // (draft-ietf-tls-ecdhe-mlkem section 4.1).
        for len in [1, 1216] {
            let client = TlsClient::with_unknown_share(len).unwrap();
            let mut raw = site.greeted(server);
            raw.send(&ssl_request()).unwrap();
            let tls = raw.into_tls_of(&client).unwrap();
            assert_eq!(
                tls.handshake(),
                Some(HandshakeKind::FullWithHelloRetryRequest)
            );
            site.logs_in(server, "HelloRetryRequest", tls);
            site.is_undisturbed("HelloRetryRequest");
        }
    }
}

#[test]
fn client_certificate_passes() {
    let site = Site::new();
    let client = TlsClient::with_certificate(&Certs::new().unwrap()).unwrap();
    for server in &site.servers {
        server
            .query("CREATE USER certified@'%' REQUIRE X509")
            .unwrap();
        let mut login = server.open_login();
        "certified".clone_into(&mut login.user);
        let mut raw = site.greeted(server);
        raw.send(&ssl_request()).unwrap();
        site.logs_in_as(&login, "X509", raw.into_tls_of(&client).unwrap());
        site.is_undisturbed("client certificate");

        let mut raw = site.greeted(server);
        raw.send(&ssl_request()).unwrap();
        let mut tls = raw.into_tls().unwrap();
        tls.send(&login.packet_over_tls()).unwrap();
        let refused = tls.receive().unwrap().error().unwrap();
        assert_eq!(
            refused.number, 1045,
            "the account does ask for one: {refused:?}"
        );
    }
}

#[test]
fn client_hello_of_many_segments_passes() {
    let site = Site::new();
    for server in &site.servers {
        for (len, cut) in [(2_000, 1_448), (2_000, 100), (12_000, 1_448), (12_000, 536)] {
            let what = format!("{len} bytes in segments of {cut}");
            let client = TlsClient::new().unwrap().longer_by(len);
            let (connection, hello) = client.begin().unwrap();
            assert!(hello.len() > len);
            let mut raw = site.greeted(server);
            raw.send(&ssl_request()).unwrap();
            for piece in hello.chunks(cut) {
                raw.send(piece).unwrap();
            }
            site.logs_in(server, &what, raw.finish_tls(connection).unwrap());
            site.is_undisturbed(&what);
        }
    }
}

/// The command-line client of MySQL 9.7 brings OpenSSL 3.5 or newer, which offers X25519MLKEM768 first:
/// its `ClientHello` does not fit into one segment.
#[test]
fn post_quantum_key_share_passes() {
    let site = Site::new();
    // One segment a packet: neither the client's nor the server's kernel joins them.
    site.net
        .app
        .ip(&["link", "set", "veth0", "gso_max_segs", "1"])
        .unwrap();
    site.net
        .db
        .nft(
            "add table ip test; add counter ip test full; \
             add chain ip test in { type filter hook input priority 0; }; \
             add rule ip test in tcp dport 3306-3307 meta length 1500 counter name full",
        )
        .unwrap();
    for server in &site.servers {
        let login = Login::new(server, &site.net.app, Tls::V1_3);
        let answer = Client::MySqlCli.login(&site.net.app, &login).unwrap();
        let session = answer.result.unwrap_or_else(|_| panic!("{}", answer.text));
        assert_eq!(session.tls_version, "TLSv1.3");
        site.is_undisturbed("a real client with a post-quantum key share");
    }
    assert!(
        site.net.db.counted("full").unwrap() >= site.servers.len() as u64,
        "no hello was longer than a segment"
    );
}

/// What a network card hands up as one packet: many segments, joined.
#[test]
fn joined_segments_pass() {
    let site = Site::new();
    site.net
        .db
        .nft(
            "add table ip test; add counter ip test joined; \
             add chain ip test in { type filter hook input priority 0; }; \
             add rule ip test in tcp dport 3306-3307 meta length > 1500 counter name joined",
        )
        .unwrap();
    for server in &site.servers {
        let client = TlsClient::new().unwrap().longer_by(12_000);
        let (connection, hello) = client.begin().unwrap();
        let mut raw = site.greeted(server);
        raw.send(&[ssl_request(), hello].concat()).unwrap();
        site.logs_in(server, "joined", raw.finish_tls(connection).unwrap());
        site.is_undisturbed("joined segments");
    }
    assert!(site.net.db.counted("joined").unwrap() >= site.servers.len() as u64);
}

/// Options for each hop, a fragment header of a packet that is whole, and as many headers as may stand there.
#[test]
fn segments_behind_ipv6_extension_headers_pass() {
    const HOP_BY_HOP: u8 = 0;
    const MOST: usize = 8;
    let site = Site::new();
    for server in &site.servers {
        let to = server.at(site.net.app.db_v6());
        let mut stack = Stack::new(&site.net.app, &site.net.db, to).unwrap();
        for (isn, row) in [
            (1, vec![Extension::padding(HOP_BY_HOP)]),
            (2, vec![Extension::atomic_fragment()]),
            (3, vec![Extension::destination_options(); MOST]),
        ] {
            honest::log_in_behind(&row, &mut stack, server, isn).unwrap();
        }
    }
    site.is_undisturbed("extension headers");
}

#[test]
fn slow_clients_pass() {
    let site = Site::new();
    for server in &site.servers {
        let (connection, hello) = TlsClient::new().unwrap().begin().unwrap();
        let mut raw = site.greeted(server);
        thread::sleep(SLOW);
        raw.send(&ssl_request()).unwrap();
        thread::sleep(SLOW);
        let (head, rest) = hello.split_at(8);
        for byte in head {
            raw.send(&[*byte]).unwrap();
            thread::sleep(SLOW / 10);
        }
        raw.send_singly(rest).unwrap();
        site.logs_in(server, "slow", raw.finish_tls(connection).unwrap());
        site.is_undisturbed("a slow client");
    }
}

#[test]
fn half_open_probes_disturb_nothing() {
    let site = Site::new();
    let probes = 3 * 20;
    for server in &site.servers {
        let to = site.to(server);
        for _ in 0..probes / 3 {
            drop(Raw::connect(&site.net.app, to).unwrap());
            site.greeted(server).reset().unwrap();
            drop(site.greeted(server));
        }
    }
    let expected = site.servers.len() as u64 * probes;
    wait::until_true("all probes in the status", PATIENCE, || {
        Ok(site.agent.outcome("half-open")? == expected)
    })
    .unwrap();
    site.is_undisturbed("half-open probes");
    let records = site.agent.records().unwrap();
    assert!(!records.iter().any(Record::is_session), "{records:?}");
}

/// The first copies of the `ClientHello` and of each later packet of its size, then those of the server's
/// flight, and acknowledgements: what comes again was judged before.
#[test]
fn retransmitted_segments_pass() {
    let site = Site::new();
    let long = |side| format!("tcp {side} 3306-3307 meta length > 200 numgen inc mod 2 0");
    lose(&site.net.db, &long("dport"));
    lose(&site.net.app, &long("sport"));
    for server in &site.servers {
        for client in [TlsClient::v1_2().unwrap(), TlsClient::v1_3().unwrap()] {
            let mut raw = site.greeted(server);
            raw.send(&ssl_request()).unwrap();
            site.logs_in(server, "lost", raw.into_tls_of(&client).unwrap());
            site.is_undisturbed("lost segments");
        }
    }
    for host in [&site.net.db, &site.net.app] {
        assert!(host.counted("lost").unwrap() >= 2 * site.servers.len() as u64);
    }
}

/// A `ClientHello` whose `SSLRequest` is lost passes ahead of it, so that the server's acknowledgement tells the client
/// what is missing.
#[test]
fn client_hello_overtakes_a_lost_ssl_request() {
    const LOGINS: u64 = 3;
    let site = Site::new();
    // IPv4 header, TCP header with timestamps, SSLRequest.
    lose(
        &site.net.db,
        "tcp dport 3306-3307 meta length 88 numgen inc mod 2 0",
    );
    for server in &site.servers {
        for _ in 0..LOGINS {
            let mut raw = site.greeted(server);
            let sent = Instant::now();
            raw.send(&ssl_request()).unwrap();
            let tls = raw.into_tls().unwrap();
            println!("{:?}: TLS after {:?}", server.product(), sent.elapsed());
            site.logs_in(server, "lost SSLRequest", tls);
        }
    }
    let lost = site.net.db.counted("lost").unwrap();
    assert!(lost >= LOGINS, "{lost} lost");
    site.is_undisturbed("lost requests for TLS");
}

/// All orders of `0..count`.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else {
        return vec![Vec::new()];
    };
    let mut all = Vec::new();
    for order in orders(last) {
        for place in 0..count {
            let mut order = order.clone();
            order.insert(place, last);
            all.push(order);
        }
    }
    all
}

/// In each order, with nothing sent twice: one held segment would end the session. The longer `ClientHello` has the length
/// of one with post-quantum key shares, and takes three segments.
#[test]
fn request_for_tls_and_client_hello_pass_in_any_order() {
    const LONGER: usize = 2800;
    let site = Site::new();
    for server in &site.servers {
        let to = server.at(site.net.app.db_v4());
        let mut stack = Stack::new(&site.net.app, &site.net.db, to).unwrap();
        let request = ssl_request();
        let (flags, rest) = request.split_at(6);
        let in_two = [flags.to_vec(), rest.to_vec()];
        let short = TlsClient::v1_2().unwrap();
        let long = TlsClient::new().unwrap().longer_by(LONGER);
        for (client, head) in [
            (&short, &in_two[..]),
            (&short, slice::from_ref(&request)),
            (&long, slice::from_ref(&request)),
        ] {
            let (_, hello) = client.begin().unwrap();
            let pieces = head.len() + hello.len().div_ceil(honest::SEGMENT);
            for order in orders(pieces) {
                // The rest of a request for TLS, alone, may be that of a login.
                let place = |piece| order.iter().position(|it| *it == piece);
                if head.len() > 1 && place(1) < place(0) {
                    continue;
                }
                honest::log_in_out_of_order(&mut stack, server, client, head, &order)
                    .unwrap_or_else(|error| panic!("{:?} {order:?}: {error:#}", server.product()));
            }
        }
    }
    site.is_undisturbed("segments out of order");
}

#[test]
fn random_loss_both_ways_denies_nobody() {
    const CLIENTS: usize = 8;
    const EACH: usize = 3;
    let site = Site::new();
    // Behind the handshake: a lost SYN costs seconds, and never concerns the gate.
    for host in [&site.net.db, &site.net.app] {
        lose(host, "tcp flags & syn == 0 numgen random mod 100 < 5");
    }
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for server in &site.servers {
                    for _ in 0..EACH {
                        let mut raw = site.greeted(server);
                        raw.send(&ssl_request()).unwrap();
                        site.logs_in(server, "random loss", raw.into_tls().unwrap());
                    }
                }
            });
        }
    });
    assert!(site.net.db.counted("lost").unwrap() > 0);
    site.is_undisturbed("random loss");
}

/// The promise, by counter: no honest client loses a segment to the gate.
#[test]
fn many_tls_logins_hold_no_segment_and_deny_nobody() {
    const CLIENTS: u64 = 4;
    let wanted = std::env::var(LOGINS).map_or(2_000, |number| number.parse().unwrap());
    let site = Site::new();
    let sessions = CLIENTS * site.servers.len() as u64;
    let each = u64::div_ceil(wanted, sessions);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                for server in &site.servers {
                    let to = site.to(server);
                    let login = server.open_login();
                    let work = || (0..each).for_each(|number| one_of_many(to, &login, number));
                    site.net.app.run(work).unwrap();
                }
            });
        }
    });
    let logins = each * sessions;
    wait::until_true("all sessions in the status", PATIENCE, || {
        Ok(site.agent.outcome("secure")? >= logins)
    })
    .unwrap();
    site.is_undisturbed("many logins");
    assert_eq!(site.agent.outcome("secure").unwrap(), logins);
    assert_eq!(site.agent.outcome("seen").unwrap(), logins);
}

/// Every second one sends all at once, every third one speaks TLS 1.2.
fn one_of_many(to: SocketAddr, login: &LoginPacket, number: u64) {
    let client = match number % 3 {
        0 => TlsClient::v1_2(),
        _ => TlsClient::new(),
    };
    let (connection, hello) = client.unwrap().begin().unwrap();
    let mut raw = Raw::connect_here(to).unwrap();
    raw.greeting().unwrap();
    if number.is_multiple_of(2) {
        raw.send(&[ssl_request(), hello].concat()).unwrap();
    } else {
        raw.send(&ssl_request()).unwrap();
        raw.send(&hello).unwrap();
    }
    let mut tls = raw.finish_tls(connection).unwrap();
    tls.send(&login.packet_over_tls()).unwrap();
    let answer = tls.receive().unwrap();
    assert!(answer.is_ok(), "login {number}: {answer:?}");
    tls.quit().unwrap();
}

/// Loses the packets that reach `host` and match.
fn lose(host: &Host, matched: &str) {
    host.nft(&format!(
        "add table ip test; add counter ip test lost; \
         add chain ip test in {{ type filter hook input priority 0; }}; \
         add rule ip test in {matched} counter name lost drop"
    ))
    .unwrap();
}
