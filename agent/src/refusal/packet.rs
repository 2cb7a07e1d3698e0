//! The bytes of a refusal: the ERR packet or TLS alert for the client and the soft landing for the server.

use musttls_common::floor::{ALERT_HANDSHAKE_FAILURE, ALERT_LEN, ALERT_PROTOCOL_VERSION};
use musttls_common::mysql::{
    CLIENT_PLUGIN_AUTH, CLIENT_PROTOCOL_41, CLIENT_SECURE_CONNECTION, ER_SECURE_TRANSPORT_REQUIRED,
    FLAGS_HIGH_PROTOCOL_41, HEADER_LEN, SECURE_TRANSPORT_REQUIRED, SQLSTATE_MARIADB,
    SQLSTATE_MYSQL,
};
use musttls_common::tls::{CONTENT_ALERT, TLS_1_0, TLS_1_2};

/// The user of the soft landing. It stands in the server's own log: "Access denied for user
/// 'refused-by-musttls'@'host'", beside the refused client's host.
const LANDING_USER: &str = "refused-by-musttls";

/// Capability flags of the soft landing that only fill a login: long password, transactions.
const CLIENT_LONG_PASSWORD: u32 = 0x0000_0001;
const CLIENT_TRANSACTIONS: u32 = 0x0000_2000;

/// The plugin that both servers know in all versions; the user does not exist, so it is never asked.
const LANDING_PLUGIN: &str = "mysql_native_password";

/// An empty answer to the server's authentication switch request: with it the server ends the login by
/// itself, with 1045, and counts an authentication error instead of a handshake error.
const EMPTY_ANSWER: [u8; 5] = [1, 0, 0, 3, 0];

/// `ERR_Packet` with error 3159, as the answer to a login with sequence id `sequence_id`.
#[must_use]
pub fn refusal(sequence_id: u8, flags_high: u8, mariadb: bool) -> Vec<u8> {
    let mut payload = vec![0xff];
    payload.extend(ER_SECURE_TRANSPORT_REQUIRED.to_le_bytes());
    if flags_high & FLAGS_HIGH_PROTOCOL_41 != 0 {
        payload.push(b'#');
        payload.extend(if mariadb {
            SQLSTATE_MARIADB
        } else {
            SQLSTATE_MYSQL
        });
    }
    payload.extend(SECURE_TRANSPORT_REQUIRED);
    packet(sequence_id.wrapping_add(1), &payload)
}

/// `Mysqlx.Error` with code 3159 (`mysqlx.proto`: severity 1 = FATAL, code 2, `msg` 3, `sql_state` 4).
#[must_use]
pub fn x_refusal() -> Vec<u8> {
    const ERROR: u8 = 1;
    const FATAL: u8 = 1;
    // Keys of protobuf fields: number << 3, and 0 for a varint or 2 for bytes with their length before.
    let mut message = vec![ERROR, 1 << 3, FATAL, 2 << 3];
    let [low, high] = ER_SECURE_TRANSPORT_REQUIRED.to_le_bytes();
    // As a varint: seven bits a byte, the lowest first.
    message.extend([low | 0x80, high << 1 | low >> 7]);
    for (field, text) in [
        (4, &SQLSTATE_MYSQL[..]),
        (3, &SECURE_TRANSPORT_REQUIRED[..]),
    ] {
        message.push(field << 3 | 2);
        message.extend(u8::try_from(text.len()));
        message.extend(text);
    }
    let length = u32::try_from(message.len()).unwrap_or(0);
    [&length.to_le_bytes()[..], &message].concat()
}

/// A fatal alert (RFC 8446 section 6), as the answer to a client whose best or negotiated version is `version`, which
/// is refused for its version or for its cipher suites.
#[must_use]
pub fn alert(version: u16, is_version: bool) -> [u8; ALERT_LEN as usize] {
    const FATAL: u8 = 2;
    // Records of TLS 1.3 say 1.2, and a client that offered nothing known must find a version that it can read.
    let [major, minor] = version.clamp(TLS_1_0, TLS_1_2).to_be_bytes();
    let description = if is_version {
        ALERT_PROTOCOL_VERSION
    } else {
        ALERT_HANDSHAKE_FAILURE
    };
    [CONTENT_ALERT, major, minor, 0, 2, FATAL, description]
}

/// What to put into the server's receive queue in X Protocol: `CON_CLOSE`, which ends the session in order. `None`
/// when the server has read a part of a frame: `delivered` bytes, of which `end` are whole frames.
#[must_use]
pub fn x_landing(end: u16, delivered: u64) -> Option<Vec<u8>> {
    const CLOSE: [u8; 5] = [1, 0, 0, 0, 3];
    (delivered == 0 || delivered == u64::from(end)).then(|| CLOSE.to_vec())
}

/// What to put into the server's receive queue. It has got `delivered` bytes: of PROXY protocol headers, which end at
/// `begin`, and behind them of a packet with header `header`. `None` when no login fits behind them.
#[must_use]
pub fn landing(header: [u8; 4], begin: u16, delivered: u64) -> Option<Vec<u8>> {
    let mut login = payload_of_login(LANDING_USER);
    // A server that takes headers takes a login without one of them, or without any, too.
    let delivered = usize::try_from(delivered.saturating_sub(begin.into()))
        .ok()
        .filter(|&n| n <= HEADER_LEN as usize)?;
    let header = if delivered == 0 {
        header_of(login.len(), 1)
    } else {
        // The server has read (some of) the client's own header: fill the packet that it announces.
        // The sequence id is 1 where the server has not read it yet.
        let [a, b, c, _] = header;
        let announced = usize::try_from(u32::from_le_bytes([a, b, c, 0])).ok()?;
        if announced < login.len() || announced > MAX_LANDING {
            return None;
        }
        login.resize(announced, 0);
        [a, b, c, 1]
    };
    let mut bytes = header.get(delivered..)?.to_vec();
    bytes.extend(login);
    bytes.extend(EMPTY_ANSWER);
    Some(bytes)
}

/// Longest packet that is filled for a soft landing, in bytes: far above any login.
const MAX_LANDING: usize = 16 * 1024;

/// The first packet of a client that logs in as `user`, without password.
#[must_use]
pub fn login_of(user: &str) -> Vec<u8> {
    packet(1, &payload_of_login(user))
}

/// A login without password.
fn payload_of_login(user: &str) -> Vec<u8> {
    let caps = CLIENT_LONG_PASSWORD
        | CLIENT_PROTOCOL_41
        | CLIENT_TRANSACTIONS
        | CLIENT_SECURE_CONNECTION
        | CLIENT_PLUGIN_AUTH;
    let mut login = caps.to_le_bytes().to_vec();
    login.extend((1_u32 << 24).to_le_bytes()); // max packet
    login.push(45); // utf8mb4_general_ci
    login.extend([0; 23]);
    login.extend(user.as_bytes());
    login.push(0);
    login.push(0); // length of the auth response
    login.extend(LANDING_PLUGIN.as_bytes());
    login.push(0);
    login
}

const fn header_of(len: usize, sequence_id: u8) -> [u8; 4] {
    let [a, b, c, ..] = len.to_le_bytes();
    [a, b, c, sequence_id]
}

fn packet(sequence_id: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = header_of(payload.len(), sequence_id).to_vec();
    packet.extend(payload);
    packet
}

#[cfg(test)]
mod tests {
    use super::*;
    use musttls_common::mysql::{REFUSAL_LEN_41, REFUSAL_LEN_320};

    #[test]
    fn refusals_are_the_servers_own_packets() {
        let mysql = refusal(1, 0x02, false);
        assert_eq!(mysql[..13], *b"\x61\x00\x00\x02\xff\x57\x0c#HY000");
        assert_eq!(mysql.len(), REFUSAL_LEN_41 as usize);
        let mariadb = refusal(1, 0x02, true);
        assert_eq!(mariadb[..13], *b"\x61\x00\x00\x02\xff\x57\x0c#08004");
        let old = refusal(1, 0x00, true);
        assert_eq!(old[..8], *b"\x5b\x00\x00\x02\xff\x57\x0cC");
        assert_eq!(old.len(), REFUSAL_LEN_320 as usize);
    }

    #[test]
    fn refusal_of_x_is_a_fatal_error_message() {
        let bytes = x_refusal();
        assert_eq!(bytes.len(), 4 + 0x67);
        assert_eq!(
            bytes[..19],
            *b"\x67\x00\x00\x00\x01\x08\x01\x10\xd7\x18\x22\x05HY000\x1a\x58"
        );
        assert_eq!(bytes[19..], SECURE_TRANSPORT_REQUIRED[..]);
    }

    #[test]
    fn alerts_are_records_that_the_client_can_read() {
        assert_eq!(alert(0x0302, true), [0x15, 3, 2, 0, 2, 2, 70]);
        assert_eq!(alert(0x0304, false), [0x15, 3, 3, 0, 2, 2, 40]);
        assert_eq!(alert(0x0300, true), [0x15, 3, 1, 0, 2, 2, 70]);
        assert_eq!(alert(0, true), [0x15, 3, 1, 0, 2, 2, 70]);
    }

    #[test]
    fn landing_of_x_needs_a_whole_frame_before() {
        assert_eq!(x_landing(5, 5).as_deref(), Some(&[1, 0, 0, 0, 3][..]));
        assert_eq!(x_landing(5, 0), x_landing(5, 5));
        assert_eq!(x_landing(5, 7), None);
    }

    #[test]
    fn a_landing_goes_on_where_the_server_stands() {
        let whole = landing([0; 4], 0, 0).unwrap();
        let len = payload_of_login(LANDING_USER).len();
        assert_eq!(whole.len(), 4 + len + EMPTY_ANSWER.len());
        assert_eq!(whole[..4], [u8::try_from(len).unwrap(), 0, 0, 1]);

        let announced = landing([200, 0, 0, 1], 0, 4).unwrap();
        assert_eq!(announced.len(), 200 + EMPTY_ANSWER.len());
        let partly = landing([200, 0, 0, 1], 0, 2).unwrap();
        assert_eq!(partly[..2], [0, 1]);
        let other_sequence_id = landing([200, 0, 0, 7], 0, 3).unwrap();
        assert_eq!(other_sequence_id[0], 1);
        // Behind a PROXY protocol header of 28 bytes, which the server has or has not got.
        assert_eq!(landing([200, 0, 0, 1], 28, 32), Some(announced));
        assert_eq!(landing([0; 4], 28, 28), Some(whole.clone()));
        assert_eq!(landing([0; 4], 28, 0), Some(whole));
    }

    #[test]
    fn no_landing_where_none_fits() {
        assert_eq!(landing([10, 0, 0, 1], 0, 4), None);
        assert_eq!(landing([0xff, 0xff, 0xff, 1], 0, 4), None);
        assert_eq!(landing([200, 0, 0, 1], 0, 5), None);
    }
}
