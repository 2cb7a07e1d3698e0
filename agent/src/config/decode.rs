//! TOML values to configuration. Goes on behind a mistake, so that one run tells all of them.
//!
//! The tree of values is walked by hand: serde stops at the first mistake, and `Spanned` fails on
//! valid input in flattened and internally tagged types.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use musttls_common::verdict::Mode;
use toml::de::{DeTable, DeValue};

use super::layers::Layers;
use super::merge;
use super::report::{Problem, Problems};
use super::value::{begin_of, network};
use super::walk::{Section, Value};
use super::{
    AuditTarget, Config, ControlConfig, DEFAULT_SERVER, Existing, Floor, MAX_NAMED_SERVERS,
    MAX_NETWORKS, ModeEnd, PastDates, ServerConfig,
};
use crate::span;

pub(super) const ROOT_KEYS: &[&str] = &[
    "panic",
    "mode",
    "mode_until",
    "mode_then",
    "trusted_proxies",
    "require",
    "observe",
    "refused_ciphers",
    "persist",
    "existing",
    "loopback",
    "canary",
    "server",
    "exception",
    "audit",
    "history",
    "metrics",
    "control",
];
pub(super) const SERVER_KEYS: &[&str] = &[
    "name",
    "ports",
    "mode",
    "mode_until",
    "mode_then",
    "require",
    "observe",
    "refused_ciphers",
    "loopback",
];

/// How often a canary may log in at most.
const CANARY_MIN: Duration = Duration::from_secs(10);
/// Longest path of a Unix socket, in bytes: `sun_path` of unix(7) less its NUL.
const SOCKET_PATH_MAX: usize = 107;

/// What came of the layers. Only to be used when no problem was found.
pub(super) struct Decoded {
    pub(super) config: Config,
    /// Where each exception begins.
    pub(super) exceptions: Vec<usize>,
    /// Warnings, each with the byte of all layers that it is about.
    pub(super) warnings: Vec<(usize, String)>,
}

/// Reads `layers`; exceptions are held against `now`.
pub(super) fn decode(
    layers: &Layers,
    now: Timestamp,
    past: PastDates,
    problems: &mut Problems,
) -> Decoded {
    let mut decoder = Decoder {
        problems,
        layers,
        now,
        past,
        exceptions: Vec::new(),
        warnings: Vec::new(),
        networks: 0,
        users: 0,
        ciphers: BTreeSet::new(),
    };
    let config = merge::whole(layers, |layer, error| decoder.syntax(layer, error))
        .map_or_else(Config::default, |whole| decoder.root(&whole));
    Decoded {
        config,
        exceptions: decoder.exceptions,
        warnings: decoder.warnings,
    }
}

pub(super) struct Decoder<'p> {
    pub(super) problems: &'p mut Problems,
    pub(super) layers: &'p Layers,
    pub(super) now: Timestamp,
    pub(super) past: PastDates,
    /// Where each exception begins.
    pub(super) exceptions: Vec<usize>,
    pub(super) warnings: Vec<(usize, String)>,
    /// Networks of all exceptions and trusted proxies so far.
    networks: usize,
    /// Users of all exceptions so far.
    pub(super) users: usize,
    /// Cipher suites of all sections so far.
    pub(super) ciphers: BTreeSet<u16>,
}

impl Decoder<'_> {
    fn root(&mut self, root: &DeTable<'_>) -> Config {
        let section = Section {
            table: root,
            what: "the file",
            at: &(0..0),
        };
        self.unknown_keys(section, ROOT_KEYS);
        let defaults = Config::default();
        let own = self.tls(section, defaults.tls.require);
        let tls = defaults.tls.with(&own);
        let servers = self.servers(root.get("server"), tls.require);
        let exceptions = self.exceptions(root.get("exception"), &servers);
        let mode = self.timed_mode(section);
        let help = "write true (observe mode on all servers, whatever they say) or false";
        let panic = root
            .get("panic")
            .and_then(|value| self.boolean("panic", value, help));
        Config {
            panic: panic.unwrap_or(defaults.panic),
            mode: mode.map_or(defaults.mode, |(mode, _)| mode),
            mode_end: mode.and_then(|(_, end)| end),
            trusted_proxies: root
                .get("trusted_proxies")
                .map(|value| self.networks("trusted_proxies", value, "trust no proxy"))
                .unwrap_or_default(),
            tls,
            servers,
            exceptions,
            persist: root
                .get("persist")
                .and_then(|value| {
                    self.boolean(
                        "persist",
                        value,
                        "write true (the gate outlives the agent) or false",
                    )
                })
                .unwrap_or(defaults.persist),
            existing: root
                .get("existing")
                .and_then(|value| self.existing(value))
                .unwrap_or(defaults.existing),
            loopback: self.loopback(section).unwrap_or(defaults.loopback),
            canary: self.canary(root.get("canary"), defaults.canary),
            audit: self.audit(root.get("audit")).unwrap_or(defaults.audit),
            history: self.history(root.get("history")),
            metrics: self.metrics(root.get("metrics")),
            control: self.control(root.get("control"), defaults.control),
        }
    }

    fn existing(&mut self, value: &Value<'_>) -> Option<Existing> {
        let help = "write \"keep\" (let sessions that are older than the gate or its enforcement go on) or \"refuse-plaintext\"";
        match self.string("existing", value, help)? {
            "keep" => Some(Existing::Keep),
            "refuse-plaintext" => Some(Existing::RefusePlaintext),
            other => {
                let title = format!("`{other}` is nothing to do about existing sessions");
                self.wrong(value.span(), title, "", help);
                None
            }
        }
    }

    fn canary(&mut self, value: Option<&Value<'_>>, default: Option<Duration>) -> Option<Duration> {
        let Some(value) = value else { return default };
        let help = "write a number and a unit, s, m or h, of 10s at least, for example canary = \"1m\"; or \"off\"";
        let text = self.string("canary", value, help)?;
        if text == "off" {
            return None;
        }
        let span = span::parse(text).ok().and_then(span::fixed);
        let span = span.filter(|span| *span >= CANARY_MIN);
        if span.is_none() {
            let title = format!("`{text}` is no time between two canaries");
            self.wrong(value.span(), title, "", help);
        }
        span
    }

    /// The mode of a section, and its end: what is in force by now.
    fn timed_mode(&mut self, section: Section<'_>) -> Option<(Mode, Option<ModeEnd>)> {
        const HELP: &str = "write a time, for example mode_until = 2027-01-31T12:00:00Z";
        let get = |key: &str| section.table.get(key);
        let mode = get("mode").and_then(|value| self.mode("mode", value));
        let then = get("mode_then").and_then(|value| self.mode("mode_then", value));
        let (until, then) = match (get("mode_until"), get("mode_then"), then) {
            (Some(until), Some(_), then) => (until, then?),
            (None, None, _) => return Some((mode?, None)),
            (Some(one), None, _) | (None, Some(one), _) => {
                let title = "`mode_until` and `mode_then` go together".to_owned();
                let help = "write both, or neither";
                self.wrong(one.span(), title, "", help);
                return None;
            }
        };
        if get("mode").is_none() {
            let title = "`mode_until` is the end of a mode that is not there".to_owned();
            let help = "write `mode` beside it, or leave `mode_until` and `mode_then` out";
            self.wrong(until.span(), title, "", help);
        }
        let DeValue::Datetime(datetime) = until.get_ref() else {
            self.wrong_type("`mode_until`", "a time", until, HELP);
            return None;
        };
        match begin_of(datetime) {
            Err(title) => {
                self.wrong(until.span(), title, "", HELP);
                None
            }
            Ok(at) if at <= self.now => {
                let warning = format!(
                    "`mode_until` is over: the mode is `{}`; musttls mode makes that plain",
                    then.as_str()
                );
                self.warnings.push((until.span().start, warning));
                Some((then, None))
            }
            Ok(at) => Some((mode?, Some(ModeEnd { at, then }))),
        }
    }

    fn mode(&mut self, key: &'static str, value: &Value<'_>) -> Option<Mode> {
        let help = "write \"observe\" (report only) or \"enforce\" (refuse plaintext logins)";
        let text = self.string(key, value, help)?;
        match text {
            "observe" => Some(Mode::Observe),
            "enforce" => Some(Mode::Enforce),
            _ => {
                self.wrong(value.span(), format!("there is no mode `{text}`"), "", help);
                None
            }
        }
    }

    fn servers(&mut self, value: Option<&Value<'_>>, floor: Floor) -> Vec<ServerConfig> {
        let mut servers = Vec::new();
        let mut names = HashMap::new();
        let mut ports = HashMap::new();
        let mut any_port: Option<(String, usize)> = None;
        for (index, (table, at)) in self.sections("server", value).into_iter().enumerate() {
            if index == MAX_NAMED_SERVERS {
                let title = format!("more than {MAX_NAMED_SERVERS} servers");
                let help = "put servers that share their settings into one [[server]] with all their ports";
                self.wrong(at.clone(), title, "", help);
            }
            let section = Section {
                table,
                what: "this server",
                at: &at,
            };
            self.unknown_keys(section, SERVER_KEYS);
            let name = self.name(section, "orders", &[DEFAULT_SERVER], &mut names);
            let what = name.clone().unwrap_or_default();
            let own = table
                .get("ports")
                .map(|value| self.ports(value, &what, &mut ports));
            if own.is_none() {
                if let Some((first, place)) = &any_port {
                    let title =
                        format!("server `{what}` and server `{first}` both have no `ports`");
                    let help = "each claims every port: name the ports of one of them";
                    self.contradiction(at.clone(), title, ("the first is", *place), help);
                }
                any_port.get_or_insert_with(|| (what.clone(), at.start));
            }
            let mode = self.timed_mode(section);
            servers.push(ServerConfig {
                name: what,
                ports: own.unwrap_or_default(),
                mode: mode.map(|(mode, _)| mode),
                mode_end: mode.and_then(|(_, end)| end),
                tls: self.tls(section, floor),
                loopback: self.loopback(section),
                index: u16::try_from(index + 1).unwrap_or(0),
            });
        }
        servers
    }

    fn ports(
        &mut self,
        value: &Value<'_>,
        server: &str,
        claimed: &mut HashMap<u16, (String, usize)>,
    ) -> Vec<u16> {
        let help = "write TCP ports from 1 to 65535, for example ports = [3306, 33060]";
        let Some(values) = self.array("ports", value, help) else {
            return Vec::new();
        };
        if values.is_empty() {
            let help = "name a port, or leave out `ports` to mean every port no other server names";
            self.wrong(value.span(), "`ports` is empty".to_owned(), "", help);
        }
        let mut ports = Vec::new();
        for value in values {
            let DeValue::Integer(integer) = value.get_ref() else {
                self.wrong_type("a port", "an integer", value, help);
                continue;
            };
            let port = u16::from_str_radix(integer.as_str(), integer.radix()).unwrap_or(0);
            if port == 0 {
                self.wrong(
                    value.span(),
                    format!("`{integer}` is not a TCP port"),
                    "",
                    help,
                );
                continue;
            }
            let claim = (server.to_owned(), value.span().start);
            if let Some((other, place)) = claimed.insert(port, claim) {
                let title = format!("port {port} is claimed by server `{other}` already");
                let help = "each port belongs to one server: take it out of one of them";
                self.contradiction(value.span(), title, ("the first claim is", place), help);
            }
            ports.push(port);
        }
        ports
    }

    pub(super) fn networks(&mut self, key: &str, value: &Value<'_>, if_empty: &str) -> Vec<IpNet> {
        let help =
            format!("write networks, for example {key} = [\"10.3.0.0/16\", \"2001:db8::/32\"]");
        let help = help.as_str();
        let Some(values) = self.array(key, value, help) else {
            return Vec::new();
        };
        if values.is_empty() {
            self.wrong(
                value.span(),
                format!("`{key}` is empty: it would {if_empty}"),
                "",
                help,
            );
        }
        let mut networks = Vec::with_capacity(values.len().min(MAX_NETWORKS));
        for value in values {
            self.networks += 1;
            if self.networks == MAX_NETWORKS + 1 {
                let title = format!("more than {MAX_NETWORKS} networks in all exceptions together");
                let help = "write neighbouring networks as one shorter prefix";
                self.wrong(value.span(), title, "", help);
            }
            let Some(text) = self.string("a network", value, help) else {
                continue;
            };
            match network(text) {
                Ok(network) => networks.push(network),
                Err(bad) => self.problems.push(|| Problem {
                    at: value.span(),
                    title: bad.title(text),
                    label: bad.label(),
                    help: bad.help(),
                }),
            }
        }
        networks
    }

    fn audit(&mut self, value: Option<&Value<'_>>) -> Option<AuditTarget> {
        let (table, at) = self.section("audit", value)?;
        self.unknown_keys(
            Section {
                table,
                what: "[audit]",
                at: &at,
            },
            &["path"],
        );
        let value = table.get("path")?;
        let help = "write an absolute path, or \"-\" for standard output";
        let text = self.string("path", value, help)?;
        if text == "-" {
            return Some(AuditTarget::Stdout);
        }
        self.absolute(value, text, help).map(AuditTarget::File)
    }

    fn metrics(&mut self, value: Option<&Value<'_>>) -> Option<SocketAddr> {
        let (table, at) = self.section("metrics", value)?;
        self.unknown_keys(
            Section {
                table,
                what: "[metrics]",
                at: &at,
            },
            &["listen"],
        );
        let value = table.get("listen")?;
        let help = "write an address and a port, for example listen = \"127.0.0.1:9637\" or \"[::1]:9637\"";
        let text = self.string("listen", value, help)?;
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Some(address),
            Ok(_) => {
                self.wrong(
                    value.span(),
                    "port 0 is not a fixed port".to_owned(),
                    "",
                    help,
                );
                None
            }
            Err(error) => {
                self.wrong(
                    value.span(),
                    format!("`{text}` is not a socket address"),
                    &error.to_string(),
                    help,
                );
                None
            }
        }
    }

    fn control(&mut self, value: Option<&Value<'_>>, mut control: ControlConfig) -> ControlConfig {
        let Some((table, at)) = self.section("control", value) else {
            return control;
        };
        self.unknown_keys(
            Section {
                table,
                what: "[control]",
                at: &at,
            },
            &["socket", "group"],
        );
        let socket = table.get("socket").and_then(|value| self.socket(value));
        control.socket = socket.unwrap_or(control.socket);
        control.group = table.get("group").and_then(|value| {
            self.string("group", value, "write the name of a group of this host")
                .map(str::to_owned)
        });
        control
    }

    fn socket(&mut self, value: &Value<'_>) -> Option<PathBuf> {
        let help = "write an absolute path of at most 107 bytes, for example \"/run/musttls/control.sock\"";
        let text = self.string("socket", value, help)?;
        if text.len() > SOCKET_PATH_MAX {
            let label = format!("{} bytes", text.len());
            self.wrong(
                value.span(),
                "this path is too long for a Unix socket".to_owned(),
                &label,
                help,
            );
            return None;
        }
        self.absolute(value, text, help)
    }

    pub(super) fn absolute(
        &mut self,
        value: &Value<'_>,
        text: &str,
        help: &str,
    ) -> Option<PathBuf> {
        let path = Path::new(text);
        if path.is_absolute() && path.file_name().is_some() && !text.contains('\0') {
            return Some(path.to_owned());
        }
        self.wrong(
            value.span(),
            format!("`{text}` is not an absolute path of a file"),
            "",
            help,
        );
        None
    }
}
