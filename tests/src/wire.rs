//! Packets of the classic protocol's connection phase, as a client writes and reads them.
//!
//! Source: MySQL 9.1 Source Code Documentation, "Connection Phase". Written apart from
//! `musttls-common` on purpose: the tests must not share its errors.

use anyhow::{Context as _, Result, ensure};

/// `CLIENT_LONG_PASSWORD`.
pub const CLIENT_LONG_PASSWORD: u32 = 0x1;
/// `CLIENT_CONNECT_WITH_DB`.
pub const CLIENT_CONNECT_WITH_DB: u32 = 0x8;
/// `CLIENT_PROTOCOL_41`.
pub const CLIENT_PROTOCOL_41: u32 = 0x200;
/// `CLIENT_SSL`.
pub const CLIENT_SSL: u32 = 0x800;
/// `CLIENT_TRANSACTIONS`.
pub const CLIENT_TRANSACTIONS: u32 = 0x2000;
/// `CLIENT_SECURE_CONNECTION`.
pub const CLIENT_SECURE_CONNECTION: u32 = 0x8000;
/// `CLIENT_PLUGIN_AUTH`.
pub const CLIENT_PLUGIN_AUTH: u32 = 0x8_0000;
/// `CLIENT_CONNECT_ATTRS`.
pub const CLIENT_CONNECT_ATTRS: u32 = 0x10_0000;

/// `COM_QUIT` as a packet.
pub const COM_QUIT: [u8; 5] = [1, 0, 0, 0, 1];

/// The server's refusal of plaintext (`ER_SECURE_TRANSPORT_REQUIRED`).
pub const REFUSED: u16 = 3159;
/// Its words.
pub const REFUSED_TEXT: &str =
    "Connections using insecure transport are prohibited while --require_secure_transport=ON.";

/// A packet: payload behind its header. Longer than one packet can be is not made here.
#[must_use]
pub fn packet(sequence: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b, c, ..] = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_le_bytes();
    [&[a, b, c, sequence], payload].concat()
}

/// `COM_QUERY` as a packet.
#[must_use]
pub fn query(sql: &str) -> Vec<u8> {
    packet(0, &[&[3], sql.as_bytes()].concat())
}

/// A login (`HandshakeResponse41` or `HandshakeResponse320`).
#[derive(Clone, Debug)]
pub struct LoginPacket {
    /// Flags beside those its fields imply.
    pub caps: u32,
    /// User name.
    pub user: String,
    /// The auth response: a scramble, a password, or nothing.
    pub auth: Vec<u8>,
    /// Schema; empty for none.
    pub schema: String,
    /// Authentication plugin.
    pub plugin: String,
    /// Connection attributes.
    pub attributes: Vec<(String, String)>,
}

impl LoginPacket {
    /// A login without a password.
    #[must_use]
    pub fn new(user: &str) -> Self {
        Self {
            caps: CLIENT_LONG_PASSWORD | CLIENT_TRANSACTIONS | CLIENT_SECURE_CONNECTION,
            user: user.to_owned(),
            auth: Vec::new(),
            schema: String::new(),
            plugin: "mysql_native_password".to_owned(),
            attributes: Vec::new(),
        }
    }

    /// With these flags, too.
    #[must_use]
    pub const fn caps(mut self, caps: u32) -> Self {
        self.caps |= caps;
        self
    }

    /// With this auth response.
    #[must_use]
    pub fn auth(mut self, auth: &[u8]) -> Self {
        auth.clone_into(&mut self.auth);
        self
    }

    /// Into this schema.
    #[must_use]
    pub fn schema(mut self, schema: &str) -> Self {
        schema.clone_into(&mut self.schema);
        self
    }

    /// By this authentication plugin.
    #[must_use]
    pub fn plugin(mut self, plugin: &str) -> Self {
        plugin.clone_into(&mut self.plugin);
        self
    }

    /// With one more connection attribute.
    #[must_use]
    pub fn attribute(mut self, key: &str, value: &str) -> Self {
        self.attributes.push((key.to_owned(), value.to_owned()));
        self
    }

    /// The payload in the 4.1 form.
    #[must_use]
    pub fn payload_41(&self) -> Vec<u8> {
        let mut caps = self.caps | CLIENT_PROTOCOL_41 | CLIENT_PLUGIN_AUTH;
        if !self.schema.is_empty() {
            caps |= CLIENT_CONNECT_WITH_DB;
        }
        if !self.attributes.is_empty() {
            caps |= CLIENT_CONNECT_ATTRS;
        }
        let mut payload = head_41(caps);
        payload.extend(terminated(&self.user));
        payload.extend(with_length(&self.auth));
        if !self.schema.is_empty() {
            payload.extend(terminated(&self.schema));
        }
        payload.extend(terminated(&self.plugin));
        if !self.attributes.is_empty() {
            let pairs = self.attributes.iter().flat_map(|(key, value)| {
                [with_length(key.as_bytes()), with_length(value.as_bytes())].concat()
            });
            payload.extend(with_length(&pairs.collect::<Vec<_>>()));
        }
        payload
    }

    /// The packet in the 4.1 form, as the client's first.
    #[must_use]
    pub fn packet_41(&self) -> Vec<u8> {
        packet(1, &self.payload_41())
    }

    /// The packet in the 4.1 form, behind the `SSLRequest` of a session over TLS.
    #[must_use]
    pub fn packet_over_tls(&self) -> Vec<u8> {
        packet(2, &self.payload_41())
    }

    /// The packet in the form before 4.1: two bytes of flags, three of packet size.
    #[must_use]
    pub fn packet_320(&self) -> Vec<u8> {
        // Flags that came with 4.1 would change how the auth response is written.
        let caps = self.caps & 0xffff & !(CLIENT_PROTOCOL_41 | CLIENT_SECURE_CONNECTION);
        let [low, high, ..] = caps.to_le_bytes();
        let mut payload = vec![low, high, 0xff, 0xff, 0xff];
        payload.extend(terminated(&self.user));
        payload.extend(&self.auth);
        packet(1, &payload)
    }
}

const SSL_REQUEST_CAPS: u32 = CLIENT_LONG_PASSWORD
    | CLIENT_PROTOCOL_41
    | CLIENT_SSL
    | CLIENT_TRANSACTIONS
    | CLIENT_SECURE_CONNECTION
    | CLIENT_PLUGIN_AUTH;

/// `SSLRequest` as a packet.
#[must_use]
pub fn ssl_request() -> Vec<u8> {
    long_ssl_request(&[])
}

/// `SSLRequest` as a packet, with `more` behind its 32 bytes.
#[must_use]
pub fn long_ssl_request(more: &[u8]) -> Vec<u8> {
    packet(1, &[&head_41(SSL_REQUEST_CAPS), more].concat())
}

/// `SSLRequest` as old versions of Connector/J send it to MySQL: the flags alone.
#[must_use]
pub fn short_ssl_request() -> Vec<u8> {
    packet(1, &SSL_REQUEST_CAPS.to_le_bytes())
}

/// Flags, packet size 2^24, character set 45 (utf8mb4), 23 zero bytes.
fn head_41(caps: u32) -> Vec<u8> {
    let mut head = caps.to_le_bytes().to_vec();
    head.extend(0x0100_0000_u32.to_le_bytes());
    head.push(45);
    head.extend([0; 23]);
    head
}

fn terminated(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// Length as one byte: nothing here is longer than 250 bytes.
fn with_length(bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).unwrap_or(250);
    [&[length], bytes].concat()
}

/// A packet that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Sequence id.
    pub sequence: u8,
    /// Payload.
    pub payload: Vec<u8>,
}

impl Packet {
    /// Whether it is an OK packet.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.payload.first() == Some(&0)
    }

    /// It as a row of text. No value here is as long as 251 bytes.
    pub fn row(&self) -> Result<Vec<String>> {
        const NULL: u8 = 0xfb;
        let mut values = Vec::new();
        let mut rest = self.payload.as_slice();
        while let Some((&length, after)) = rest.split_first() {
            let length = if length == NULL { 0 } else { length.into() };
            let (value, after) = after.split_at_checked(length).context("a short row")?;
            values.push(String::from_utf8_lossy(value).into_owned());
            rest = after;
        }
        Ok(values)
    }

    /// It as an ERR packet; `None` if it is another.
    #[must_use]
    pub fn error(&self) -> Option<ErrorPacket> {
        let [0xff, low, high, rest @ ..] = self.payload.as_slice() else {
            return None;
        };
        let (sqlstate, message) = match rest {
            [b'#', state @ ..] => {
                let (state, message) = state.split_at_checked(5)?;
                (Some(String::from_utf8_lossy(state).into_owned()), message)
            }
            message => (None, message),
        };
        Some(ErrorPacket {
            sequence: self.sequence,
            number: u16::from_le_bytes([*low, *high]),
            sqlstate,
            message: String::from_utf8_lossy(message).into_owned(),
        })
    }
}

/// An ERR packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorPacket {
    /// Sequence id.
    pub sequence: u8,
    /// Error number.
    pub number: u16,
    /// SQLSTATE; none for clients before 4.1.
    pub sqlstate: Option<String>,
    /// The message.
    pub message: String,
}

impl ErrorPacket {
    /// The refusal as the server would send it.
    #[must_use]
    pub fn refusal(sequence: u8, sqlstate: Option<&str>) -> Self {
        Self {
            sequence,
            number: REFUSED,
            sqlstate: sqlstate.map(str::to_owned),
            message: REFUSED_TEXT.to_owned(),
        }
    }
}

/// The server's greeting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Version string.
    pub version: String,
    /// Connection id.
    pub thread_id: u32,
    /// Whether it offers TLS.
    pub offers_tls: bool,
}

impl Greeting {
    /// Reads a greeting of protocol 10.
    pub fn read(packet: &Packet) -> Result<Self> {
        ensure!(
            packet.sequence == 0,
            "the greeting has sequence id {}",
            packet.sequence
        );
        let [10, rest @ ..] = packet.payload.as_slice() else {
            anyhow::bail!("no greeting: {packet:?}");
        };
        let end = rest
            .iter()
            .position(|byte| *byte == 0)
            .context("version without end")?;
        let (version, rest) = rest.split_at_checked(end).context("version without end")?;
        let (thread_id, rest) = rest
            .get(1..)
            .and_then(<[u8]>::split_first_chunk)
            .context("short")?;
        // Eight bytes of scramble and one of filler.
        let high = rest.get(10).context("greeting without capability flags")?;
        Ok(Self {
            version: String::from_utf8_lossy(version).into_owned(),
            thread_id: u32::from_le_bytes(*thread_id),
            offers_tls: u32::from(*high) << 8 & CLIENT_SSL != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ssl_request_is_32_bytes_and_sets_the_flag_at_offset_5() {
        let request = ssl_request();
        assert_eq!(request.len(), 36);
        assert_eq!(request[5] & 0x08, 0x08);
    }

    #[test]
    fn error_packet_is_read_with_and_without_sqlstate() {
        let read = |payload: &[u8]| {
            Packet {
                sequence: 2,
                payload: payload.to_vec(),
            }
            .error()
            .unwrap()
        };
        assert_eq!(
            read(b"\xff\x57\x0c#08004no").sqlstate.as_deref(),
            Some("08004")
        );
        assert_eq!(read(b"\xff\x57\x0cno").message, "no");
        assert_eq!(read(b"\xff\x57\x0cno").number, REFUSED);
    }

    #[test]
    fn flags_of_a_320_login_are_at_the_same_offset() {
        let login = LoginPacket::new("u").caps(CLIENT_SSL).packet_320();
        assert_eq!(login[5] & 0x0a, 0x08);
    }
}
