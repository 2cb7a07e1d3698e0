//! Single values: networks, dates, words.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use jiff::{Timestamp, civil, tz::TimeZone};
use toml::de::DeValue;
use toml::value::Datetime;

/// Most of what a file said that a message repeats, in characters.
const SHOWN_MAX: usize = 200;
/// Longest word that is compared with those known, in bytes.
const WORD_MAX: usize = 64;

/// What is wrong with a network.
pub(super) enum BadNetwork {
    /// A bare address; the network that holds only it.
    Address(IpNet),
    /// A prefix that is too long for its family.
    Prefix(IpAddr, u8),
    /// Bits are set behind the prefix; the network it is in.
    HostBits(IpNet),
    /// Anything else.
    Syntax,
}

impl BadNetwork {
    pub(super) fn title(&self, text: &str) -> String {
        match self {
            Self::HostBits(_) => format!("`{text}` has bits set behind its prefix"),
            _ => format!("`{}` is not a network", shown(text)),
        }
    }

    pub(super) fn label(&self) -> String {
        match self {
            Self::Address(_) => "the prefix length is missing".to_owned(),
            Self::Prefix(IpAddr::V4(_), _) => "prefix length must be 0..=32 for IPv4".to_owned(),
            Self::Prefix(IpAddr::V6(_), _) => "prefix length must be 0..=128 for IPv6".to_owned(),
            Self::HostBits(_) | Self::Syntax => String::new(),
        }
    }

    pub(super) fn help(&self) -> String {
        match self {
            Self::Address(network) => format!("write it as \"{network}\""),
            Self::Prefix(address, longest) => {
                format!("write \"{address}/{longest}\" for this one address, or a shorter prefix")
            }
            Self::HostBits(network) => format!("write it as \"{network}\""),
            Self::Syntax => {
                "write an address, a slash and a prefix length, for example \"10.3.0.0/16\" or \"2001:db8::/32\""
                    .to_owned()
            }
        }
    }
}

/// Reads a network; an IPv4-mapped one is IPv4 (RFC 4291 section 2.5.5.2).
pub(super) fn network(text: &str) -> Result<IpNet, BadNetwork> {
    let Ok(network) = text.parse::<IpNet>() else {
        return Err(why_no_network(text));
    };
    if network.trunc() != network {
        return Err(BadNetwork::HostBits(network.trunc()));
    }
    Ok(unmapped(network))
}

fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else {
        return network;
    };
    v6.addr()
        .to_ipv4_mapped()
        .zip(v6.prefix_len().checked_sub(96))
        .and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok())
        .map_or(network, IpNet::V4)
}

fn why_no_network(text: &str) -> BadNetwork {
    if let Ok(address) = text.parse::<IpAddr>() {
        return BadNetwork::Address(IpNet::from(address));
    }
    let parts = text.split_once('/').and_then(|(address, prefix)| {
        Some((address.parse::<IpAddr>().ok()?, prefix.parse::<u32>().ok()?))
    });
    match parts {
        Some((address @ IpAddr::V4(_), prefix)) if prefix > 32 => BadNetwork::Prefix(address, 32),
        Some((address @ IpAddr::V6(_), prefix)) if prefix > 128 => BadNetwork::Prefix(address, 128),
        _ => BadNetwork::Syntax,
    }
}

/// The first instant at which an exception with this date no longer holds. A date without a time
/// means: through the end of that day, UTC.
pub(super) fn end_of(datetime: &Datetime) -> Result<Timestamp, String> {
    instant(datetime, civil::Date::tomorrow)
}

/// The first instant at which an exception with this date holds. A date without a time means: from the
/// beginning of that day, UTC.
pub(super) fn begin_of(datetime: &Datetime) -> Result<Timestamp, String> {
    instant(datetime, Ok)
}

/// `midnight_of` is told the date of one without a time.
fn instant(
    datetime: &Datetime,
    midnight_of: fn(civil::Date) -> Result<civil::Date, jiff::Error>,
) -> Result<Timestamp, String> {
    match datetime {
        Datetime {
            date: Some(date),
            time: None,
            offset: None,
        } => {
            let (Ok(year), Ok(month), Ok(day)) = (
                i16::try_from(date.year),
                i8::try_from(date.month),
                i8::try_from(date.day),
            ) else {
                return Err("there is no such date".to_owned());
            };
            civil::Date::new(year, month, day)
                .and_then(midnight_of)
                .and_then(|day| day.to_zoned(TimeZone::UTC))
                .map(|midnight| midnight.timestamp())
                .map_err(|error| format!("this date cannot be used: {error}"))
        }
        Datetime {
            date: Some(_),
            time: Some(_),
            offset: Some(_),
        } => datetime
            .to_string()
            .parse()
            .map_err(|error| format!("this date cannot be used: {error}")),
        Datetime {
            date: Some(_),
            time: Some(_),
            offset: None,
        } => Err("this time has no offset from UTC, such as a `Z` at its end".to_owned()),
        _ => Err("this is a time without a date".to_owned()),
    }
}

pub(super) const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The known word that was probably meant.
pub(crate) fn similar<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    // Names are short; measuring a long one against each would only take time.
    if word.len() > WORD_MAX {
        return None;
    }
    known
        .iter()
        .map(|&candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

/// What a file said, as it may stand in a message.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(SHOWN_MAX)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if text.chars().nth(SHOWN_MAX).is_some() {
        shown.push('…');
    }
    shown
}

/// `text`, as it may stand in a message.
pub(super) fn bounded(text: String) -> String {
    if text.len() <= SHOWN_MAX && !text.contains(char::is_control) {
        text
    } else {
        shown(&text)
    }
}
