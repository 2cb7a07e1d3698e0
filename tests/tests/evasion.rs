//! Enforce mode against clients that try to get a plaintext login past the gate.
//!
//! Whatever the client saw, the server is asked, too: nobody got in.

#![cfg(test)]

use std::process::{Command, Stdio};
use std::time::Duration;

use musttls_tests::agent::Agent;
use musttls_tests::audit::Record;
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::evidence::{self, Mark};
use musttls_tests::netns::Net;
use musttls_tests::raw::{Next, Raw};
use musttls_tests::server::{OPEN_USER, Options, Product, Server};
use musttls_tests::wire::{
    CLIENT_SSL, COM_QUIT, ErrorPacket, LoginPacket, REFUSED, packet, query, ssl_request,
};

/// How long a client waits for an answer that need not come.
const A_WHILE: Duration = Duration::from_secs(1);

struct Site {
    agent: Agent,
    server: Server,
    mark: Mark,
    net: Net,
}

impl Site {
    fn greeted(&self) -> Raw {
        Raw::greeted(&self.net.app, self.server.at(self.net.app.db_v4()))
            .unwrap()
            .0
    }

    fn login(&self) -> LoginPacket {
        self.server.open_login()
    }

    /// What a login in the 4.1 form gets.
    #[expect(
        clippy::unnecessary_wraps,
        reason = "it is compared with what may be no error"
    )]
    fn refusal(&self) -> Option<ErrorPacket> {
        Some(ErrorPacket::refusal(
            2,
            Some(self.server.product().refusal_sqlstate()),
        ))
    }

    /// Reads what comes for [`A_WHILE`]; none of it may be an OK packet.
    fn is_kept_out(&self, raw: &mut Raw, what: &str) -> Vec<Next> {
        let mut all = Vec::new();
        loop {
            let next = raw.receive_within(A_WHILE).unwrap();
            assert!(
                !next.is_ok(),
                "{what}: let in by {:?}",
                self.server.product()
            );
            all.push(next.clone());
            if !matches!(next, Next::Packet(_)) {
                return all;
            }
        }
    }
}

/// Runs `attack` on a server of each kind.
fn on_both(options: impl Fn(Product) -> Options, attack: impl Fn(&Site)) {
    on(&Product::ALL, options, attack);
}

/// Runs `attack` on a server of each release: where releases may read the client differently.
fn on_each(options: impl Fn(Product) -> Options, attack: impl Fn(&Site)) {
    on(&Product::RELEASES, options, attack);
}

/// Runs `attack` on each server, then asks it who got in.
fn on(products: &[Product], options: impl Fn(Product) -> Options, attack: impl Fn(&Site)) {
    for &product in products {
        if !product.is_under_test() {
            println!("NOT RUN on {product:?}: MUSTTLS_SERVER");
            continue;
        }
        let net = Net::new().unwrap();
        let mut server = Server::start(&net.db, &options(product)).unwrap();
        let agent = Agent::start("mode = \"enforce\"").unwrap();
        let mark = evidence::mark(&server).unwrap();
        assert!(server.is_running().unwrap());
        let mut site = Site {
            agent,
            server,
            mark,
            net,
        };
        attack(&site);
        evidence::await_no_connection(&site.server).unwrap();
        let logins = evidence::logins(&site.server, OPEN_USER, site.mark).unwrap();
        assert_eq!(logins, [""; 0], "{product:?}");
        assert!(
            site.server.is_running().unwrap(),
            "{}",
            site.server.error_log().unwrap()
        );
        assert!(
            site.agent.is_running().unwrap(),
            "{}",
            site.agent.log().unwrap()
        );
        if site.server.offers_tls() {
            let login = Login::new(&site.server, &site.net.app, Tls::Required);
            let answer = Client::PyMySql.login(&site.net.app, &login).unwrap();
            assert!(answer.is_in(), "{product:?}: {}", answer.text);
        }
    }
}

#[test]
fn claim_of_tls_to_a_server_without_it_is_refused() {
    on_each(
        |product| Options::new(product).without_tls(),
        |site| {
            let login = site.login().caps(CLIENT_SSL);
            let mut raw = site.greeted();
            raw.send(&login.packet_41()).unwrap();
            assert_eq!(raw.receive().unwrap().error(), site.refusal());
            let mut raw = site.greeted();
            raw.send(&login.packet_320()).unwrap();
            assert_eq!(
                raw.receive().unwrap().error(),
                Some(ErrorPacket::refusal(2, None))
            );
            let claim = |record: &Record| {
                record.is_denied() && record.text("/unmapped/reason") == "tls-not-offered"
            };
            site.agent.await_records("claims", 2, claim).unwrap();
        },
    );
}

#[test]
fn login_before_the_greeting_is_refused_after_it() {
    on_each(Options::new, |site| {
        let mut raw = Raw::connect(&site.net.app, site.server.at(site.net.app.db_v4())).unwrap();
        raw.send(&[site.login().packet_41(), COM_QUIT.to_vec()].concat())
            .unwrap();
        assert!(raw.greeting().unwrap().offers_tls);
        assert_eq!(raw.receive().unwrap().error(), site.refusal());
    });
}

#[test]
fn login_in_single_bytes_is_refused() {
    on_both(Options::new, |site| {
        let mut raw = site.greeted();
        // The refusal may come before the last byte has gone.
        raw.send_singly(&site.login().packet_41()).ok();
        assert_eq!(raw.receive().unwrap().error(), site.refusal());
    });
}

#[test]
fn login_cut_at_any_offset_is_refused() {
    on_both(Options::new, |site| {
        let login = site.login().packet_41();
        for cut in 1..12 {
            let (first, second) = login.split_at(cut);
            let mut raw = site.greeted();
            raw.send(first).unwrap();
            raw.send(second).ok();
            assert_eq!(
                raw.receive().unwrap().error(),
                site.refusal(),
                "cut at {cut}"
            );
        }
    });
}

#[test]
fn login_followed_by_a_query_and_the_end_of_stream_is_refused() {
    on_both(Options::new, |site| {
        let mark = evidence::mark(&site.server).unwrap();
        let mut raw = site.greeted();
        raw.send(&[site.login().packet_41(), query("SELECT 'smuggled'")].concat())
            .unwrap();
        raw.close_writing().unwrap();
        assert_eq!(raw.receive().unwrap().error(), site.refusal());
        evidence::await_no_connection(&site.server).unwrap();
        assert!(!evidence::is_named(&site.server, "smuggled", mark).unwrap());
    });
}

#[test]
fn tls_request_and_then_a_plaintext_login_is_kept_out() {
    on_both(Options::new, |site| {
        let mut second = site.login().packet_41();
        let first = second.clone();
        second[3] = 2;
        for login in [first, second] {
            let mut raw = site.greeted();
            raw.send(&[ssl_request(), login.clone()].concat()).unwrap();
            site.is_kept_out(&mut raw, "in one segment");
            let mut raw = site.greeted();
            raw.send(&ssl_request()).unwrap();
            raw.send(&login).ok();
            site.is_kept_out(&mut raw, "in two segments");
        }
    });
}

#[test]
fn login_that_claims_tls_and_goes_on_in_plaintext_is_kept_out() {
    on_each(Options::new, |site| {
        let mut raw = site.greeted();
        raw.send(&site.login().caps(CLIENT_SSL).packet_41())
            .unwrap();
        let mut second = site.login().packet_41();
        second[3] = 2;
        raw.send(&second).ok();
        site.is_kept_out(&mut raw, "CLIENT_SSL and a whole login");
    });
}

#[test]
fn garbage_is_kept_out_and_does_no_harm() {
    on_both(Options::new, |site| {
        let zeros = vec![0; 100];
        let ones = vec![0xff; 100];
        let noise: Vec<u8> = (0_u32..300)
            .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let short = packet(1, &[0x05]);
        let mut reply = site.login().packet_41();
        reply.truncate(20);
        let all: [&[u8]; 9] = [
            b"GET / HTTP/1.1\r\nHost: db\r\n\r\n",
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00",
            b"SSH-2.0-OpenSSH_9.2\r\n",
            b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n",
            &zeros,
            &ones,
            &noise,
            &short,
            &reply,
        ];
        let mut clients: Vec<_> = all
            .into_iter()
            .map(|bytes| {
                let mut raw = site.greeted();
                raw.send(bytes).unwrap();
                (raw, bytes)
            })
            .collect();
        for (raw, bytes) in &mut clients {
            site.is_kept_out(raw, &format!("{bytes:x?}"));
        }
    });
}

#[test]
fn silent_and_leaving_clients_do_no_harm() {
    on_both(Options::new, |site| {
        let to = site.server.at(site.net.app.db_v4());
        let silent: Vec<_> = (0..20).map(|_| site.greeted()).collect();
        for _ in 0..20 {
            drop(Raw::connect(&site.net.app, to).unwrap());
            site.greeted().reset().unwrap();
            let mut raw = site.greeted();
            raw.send(&site.login().packet_41()).unwrap();
            raw.reset().unwrap();
        }
        drop(silent);
        // This server counts them: that is what it does without the gate, too.
        site.server
            .query("TRUNCATE performance_schema.host_cache")
            .unwrap();
    });
}

#[test]
fn urgent_byte_at_any_offset_gets_no_login_in() {
    on_both(Options::new, |site| {
        let login = site.login().packet_41();
        let mut clients = Vec::new();
        for offset in 0..=8 {
            // 0x0a on the wire at offset 5 would read as CLIENT_SSL and CLIENT_PROTOCOL_41.
            for urgent in [0x0a, 0x00, 0xff] {
                let (first, second) = login.split_at(offset);
                let mut raw = site.greeted();
                raw.send(first).unwrap();
                raw.send_urgent(urgent).ok();
                raw.send(second).ok();
                clients.push((raw, offset, urgent));
            }
        }
        for (raw, offset, urgent) in &mut clients {
            site.is_kept_out(raw, &format!("urgent {urgent:#x} at {offset}"));
        }
    });
}

#[test]
fn urgent_byte_that_replaces_one_gets_no_login_in() {
    on_both(Options::new, |site| {
        let login = site.login().packet_41();
        for offset in 0..=8 {
            let mut raw = site.greeted();
            raw.send(&login[..offset]).unwrap();
            // Behind the flags the refusal may come first.
            raw.send_urgent(login[offset]).ok();
            raw.send(&login[offset + 1..]).ok();
            site.is_kept_out(&mut raw, &format!("urgent byte in place of byte {offset}"));
        }
    });
}

/// Runs `tests/scripts/empty_urgent.py` against `site`.
fn empty_urgent(net: &Net, server: &Server) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/empty_urgent.py");
    let mut python = Command::new("python3");
    let port = server.at(net.app.db_v4()).port().to_string();
    python
        .arg(script)
        .arg(net.app.db_v4().to_string())
        .args([port.as_str(), OPEN_USER]);
    python.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = net
        .app
        .spawn(&mut python)
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn empty_urgent_segment_shifts_no_login_in() {
    for product in Product::all() {
        let net = Net::new().unwrap();
        let server = Server::start(&net.db, &Options::new(product)).unwrap();
        let agent = Agent::start("mode = \"observe\"").unwrap();
        assert_eq!(
            empty_urgent(&net, &server),
            "in",
            "the attack works where nothing is refused"
        );
        drop(agent);
        let agent = Agent::start("mode = \"enforce\"").unwrap();
        let mark = evidence::mark(&server).unwrap();
        assert_ne!(empty_urgent(&net, &server), "in", "{product:?}");
        assert!(
            evidence::logins(&server, OPEN_USER, mark)
                .unwrap()
                .is_empty(),
            "{product:?}"
        );
        drop(agent);
    }
}

#[test]
fn empty_first_packet_is_left_to_the_server() {
    on_both(Options::new, |site| {
        let mut raw = site.greeted();
        raw.send(&packet(1, b"")).unwrap();
        let error = raw.receive().unwrap().error().unwrap();
        assert_eq!(error.number, 1043, "{error:?}");
        let mut raw = site.greeted();
        raw.send(&[packet(1, b""), site.login().packet_41()].concat())
            .unwrap();
        site.is_kept_out(&mut raw, "empty packet and a login");
    });
}

#[test]
fn login_in_a_packet_of_full_length_is_refused() {
    on_each(Options::new, |site| {
        const FULL: usize = 0xff_ffff;
        let mut payload = site.login().payload_41();
        payload.resize(FULL, 0);
        let mut raw = site.greeted();
        // The refusal comes long before the last byte has gone.
        raw.send(&[packet(1, &payload), packet(2, b"")].concat())
            .ok();
        let error = raw.receive().unwrap().error().unwrap();
        assert_eq!(error.number, REFUSED, "{error:?}");
        assert!(matches!(error.sequence, 2 | 3), "{error:?}");
    });
}

#[test]
fn wrong_sequence_id_is_kept_out() {
    on_each(Options::new, |site| {
        for sequence in [0, 2, 3, 255] {
            let mut login = site.login().packet_41();
            login[3] = sequence;
            let mut raw = site.greeted();
            raw.send(&login).unwrap();
            site.is_kept_out(&mut raw, &format!("sequence id {sequence}"));
        }
    });
}
