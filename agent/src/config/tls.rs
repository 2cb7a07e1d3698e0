//! The keys about TLS itself: the floor, a floor that is only observed, the refused cipher suites.

use std::collections::BTreeSet;
use std::fmt;

use musttls_common::policy::MAX_CIPHER_ENTRIES;
use musttls_common::tls::{TLS_1_0, TLS_1_2, TLS_1_3};

use super::decode::Decoder;
use super::value::{shown, similar};
use super::walk::{Section, Value};
use crate::cipher::{self, Family};

/// The keys, in the file and in a `[[server]]` alike.
pub(super) const KEYS: [&str; 3] = ["require", "observe", "refused_ciphers"];

/// Most cipher suites in all sections together, so that those of the families have their place beside them.
const MAX_CIPHERS: usize = MAX_CIPHER_ENTRIES / 2;

/// The lowest TLS version that is good enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Floor {
    /// Any version of TLS, which SSL 3.0 is not.
    Tls,
    /// TLS 1.2.
    V1_2,
    /// TLS 1.3.
    V1_3,
}

impl Floor {
    const ALL: [Self; 3] = [Self::Tls, Self::V1_2, Self::V1_3];

    /// The word in the configuration and in records.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::V1_2 => "tls1.2",
            Self::V1_3 => "tls1.3",
        }
    }

    /// As `ProtocolVersion` of TLS.
    #[must_use]
    pub const fn version(self) -> u16 {
        match self {
            Self::Tls => TLS_1_0,
            Self::V1_2 => TLS_1_2,
            Self::V1_3 => TLS_1_3,
        }
    }

    /// The floor with this `ProtocolVersion`.
    #[must_use]
    pub fn of_version(version: u16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|floor| floor.version() == version)
    }
}

impl fmt::Display for Floor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What TLS must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsPolicy {
    /// The floor.
    pub require: Floor,
    /// A higher floor that is only reported.
    pub observe: Option<Floor>,
    /// The cipher suites that are refused, by IANA number.
    pub refused_ciphers: BTreeSet<u16>,
}

impl Default for TlsPolicy {
    fn default() -> Self {
        Self {
            require: Floor::Tls,
            observe: None,
            refused_ciphers: Family::ALL.into_iter().flat_map(Family::suites).collect(),
        }
    }
}

/// What a `[[server]]` says about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnTls {
    /// Its floor.
    pub require: Option<Floor>,
    /// A higher floor that is only reported.
    pub observe: Option<Floor>,
    /// The cipher suites it refuses.
    pub refused_ciphers: Option<BTreeSet<u16>>,
}

impl TlsPolicy {
    /// This policy with what a server says for itself. An observed floor of this policy is of no use to a server that
    /// requires as much.
    #[must_use]
    pub fn with(&self, own: &OwnTls) -> Self {
        let require = own.require.unwrap_or(self.require);
        Self {
            require,
            observe: own
                .observe
                .or(self.observe)
                .filter(|observe| *observe > require),
            refused_ciphers: own
                .refused_ciphers
                .as_ref()
                .unwrap_or(&self.refused_ciphers)
                .clone(),
        }
    }
}

impl Decoder<'_> {
    /// The keys of a section; `inherited` is the floor where it sets none.
    pub(super) fn tls(&mut self, section: Section<'_>, inherited: Floor) -> OwnTls {
        let [require, observe, refused] = KEYS.map(|key| section.table.get(key));
        let own = OwnTls {
            require: require.and_then(|value| self.floor("require", value)),
            observe: observe.and_then(|value| self.floor("observe", value)),
            refused_ciphers: refused.and_then(|value| self.ciphers(value)),
        };
        if let (Some(value), Some(floor)) = (observe, own.observe) {
            let required = own.require.unwrap_or(inherited);
            if floor <= required {
                let title = format!("`observe` is not above what is required, `{required}`");
                let help = "observe tells what a higher floor would refuse: write a higher one, or leave it out";
                match require {
                    Some(require) => {
                        let other = ("`require` is", require.span().start);
                        self.contradiction(value.span(), title, other, help);
                    }
                    None => self.wrong(value.span(), title, "", help),
                }
            }
        }
        own
    }

    fn floor(&mut self, key: &str, value: &Value<'_>) -> Option<Floor> {
        let help = "write \"tls\", \"tls1.2\" or \"tls1.3\"";
        let text = self.string(key, value, help)?;
        let floor = Floor::ALL.into_iter().find(|floor| floor.as_str() == text);
        if floor.is_none() {
            let title = format!("there is no TLS floor `{}`", shown(text));
            self.wrong(value.span(), title, "", help);
        }
        floor
    }

    fn ciphers(&mut self, value: &Value<'_>) -> Option<BTreeSet<u16>> {
        let help = "write families (\"NULL\", \"anon\", \"EXPORT\", \"RC4\", \"3DES\"), names of IANA or numbers as \"0x000a\"; [] refuses none";
        let mut suites = BTreeSet::new();
        for value in self.array("refused_ciphers", value, help)? {
            let Some(text) = self.string("a cipher suite", value, help) else {
                continue;
            };
            if let Some(family) = Family::named(text) {
                suites.extend(family.suites());
            } else if let Some(number) = cipher::number(text) {
                suites.insert(number);
            } else {
                let known: Vec<&str> = cipher::names().collect();
                let help = similar(text, &known).map_or_else(
                    || help.to_owned(),
                    |similar| format!("did you mean `{similar}`? {help}"),
                );
                let title = format!("there is no cipher suite `{}`", shown(text));
                self.wrong(value.span(), title, "", &help);
            }
        }
        self.ciphers.extend(&suites);
        if self.ciphers.len() > MAX_CIPHERS {
            let title = format!("more than {MAX_CIPHERS} cipher suites in all sections together");
            let help = "name families: there are not that many suites";
            self.wrong(value.span(), title, "", help);
        }
        Some(suites)
    }
}
