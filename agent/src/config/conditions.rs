//! What an exception may ask of the client beside its network and its user: program, user and cgroup on this host. And what is done
//! about plaintext over the loopback device.

use std::fmt;
use std::io;
use std::ops::Range;

use toml::de::DeValue;

use super::PastDates;
use super::decode::Decoder;
use super::walk::{Section, Value};
use crate::login::disturbs;

/// Most programs, users or cgroups of one exception.
const MAX: usize = 64;
/// Longest name of a program, in bytes: what a client claims is cut behind 256 characters, and must not become a name by that.
const PROGRAM_MAX: usize = 255;
/// Longest path of a cgroup, in bytes (`PATH_MAX` of Linux, less its NUL).
const CGROUP_MAX: usize = 4095;
/// Where the users of this host are looked up.
const PASSWD: &str = "/etc/passwd";

/// What the tables of the kernel cannot hold of an exception: the agent looks at it, session by session. All that is named must be met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    /// Programs, as clients call themselves in their connection attributes; empty for any.
    pub programs: Vec<String>,
    /// User ids on this host; `None` for any, empty where no user is left of those that are named.
    pub uids: Option<Vec<u32>>,
    /// Those of them that are named by name, as they are written.
    pub local_users: Vec<String>,
    /// Paths below the root of cgroup v2, without a slash at their ends; empty for any.
    pub cgroups: Vec<String>,
}

impl Conditions {
    /// Whether there is one.
    #[must_use]
    pub const fn are_some(&self) -> bool {
        !self.programs.is_empty() || self.are_local()
    }

    /// Whether one is about a process of this host.
    #[must_use]
    pub const fn are_local(&self) -> bool {
        self.uids.is_some() || !self.cgroups.is_empty()
    }

    /// Whether a client that claims to be this program meets the one about programs.
    #[must_use]
    pub fn meets_program(&self, claimed: Option<&str>) -> bool {
        self.programs.is_empty()
            || claimed.is_some_and(|claimed| self.programs.iter().any(|one| one == claimed))
    }
}

impl fmt::Display for Conditions {
    /// `program mysqldump; user id 34; cgroup /system.slice/backup.service`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let uids = self.uids.iter().flatten().map(ToString::to_string);
        let parts = [
            ("program", self.programs.clone()),
            ("user id", uids.collect()),
            ("cgroup", self.cgroups.clone()),
        ];
        let parts = parts.into_iter().filter(|(_, names)| !names.is_empty());
        let parts: Vec<String> = parts
            .map(|(what, names)| format!("{what} {}", names.join(" or ")))
            .collect();
        f.write_str(&parts.join("; "))
    }
}

/// What is done about plaintext that comes over the loopback device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loopback {
    /// The same as about all other.
    SameRule,
    /// It is allowed.
    Allow,
}

impl Loopback {
    /// The word of the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SameRule => "same-rule",
            Self::Allow => "allow",
        }
    }
}

impl Decoder<'_> {
    pub(super) fn loopback(&mut self, section: Section<'_>) -> Option<Loopback> {
        let help = "write \"same-rule\" (plaintext over the loopback device is judged as any other) or \"allow\"";
        let value = section.table.get("loopback")?;
        match self.string("loopback", value, help)? {
            "same-rule" => Some(Loopback::SameRule),
            "allow" => Some(Loopback::Allow),
            other => {
                let title = format!("`{other}` is nothing to do about the loopback device");
                self.wrong(value.span(), title, "", help);
                None
            }
        }
    }

    pub(super) fn conditions(&mut self, section: Section<'_>) -> Conditions {
        let get = |key: &str| section.table.get(key);
        let local_users = get("local_users").map(|value| self.local_users(value));
        let uids = get("uids").map(|value| self.uids(value));
        let (names, of_names): (Vec<String>, Vec<Option<u32>>) =
            local_users.clone().unwrap_or_default().into_iter().unzip();
        let all = of_names.into_iter().flatten();
        let all = all.chain(uids.iter().flatten().copied()).collect();
        Conditions {
            programs: get("programs")
                .map(|value| self.programs(value))
                .unwrap_or_default(),
            uids: (local_users.is_some() || uids.is_some()).then_some(all),
            local_users: names,
            cgroups: get("cgroups")
                .map(|value| self.cgroups(value))
                .unwrap_or_default(),
        }
    }

    /// The values of a list that says whom an exception is for.
    fn some<'t>(&mut self, key: &str, value: &'t Value<'t>, help: &str) -> &'t [Value<'t>] {
        let Some(values) = self.array(key, value, help) else {
            return &[];
        };
        if values.is_empty() {
            let title = format!("`{key}` is empty: it would allow nobody");
            self.wrong(value.span(), title, "", help);
        }
        if values.len() > MAX {
            let title = format!("more than {MAX} values in `{key}`");
            let help = "spread them over several exceptions";
            self.wrong(value.span(), title, "", help);
        }
        values
    }

    fn programs(&mut self, value: &Value<'_>) -> Vec<String> {
        let help = "write names as records have them, for example programs = [\"mysqldump\"]; leave `programs` out for any program";
        let mut programs = Vec::new();
        for value in self.some("programs", value, help) {
            let Some(program) = self.string("a program", value, help) else {
                continue;
            };
            if program.is_empty()
                || program.len() > PROGRAM_MAX
                || program.contains(char::REPLACEMENT_CHARACTER)
                || program.chars().any(disturbs)
            {
                let title = "this cannot be the name of a program".to_owned();
                let help = "names have 1 to 255 bytes, without control characters";
                self.wrong(value.span(), title, "", help);
            } else {
                programs.push(program.to_owned());
            }
        }
        programs
    }

    fn uids(&mut self, value: &Value<'_>) -> Vec<u32> {
        let help = "write user ids of this host, for example uids = [1001], or names: local_users = [\"backup\"]";
        let mut uids = Vec::new();
        for value in self.some("uids", value, help) {
            let DeValue::Integer(integer) = value.get_ref() else {
                self.wrong_type("a user id", "an integer", value, help);
                continue;
            };
            match u32::from_str_radix(integer.as_str(), integer.radix()) {
                // The last one stands for none (`INVALID_UID` in `include/linux/uidgid.h`).
                Ok(u32::MAX) | Err(_) => {
                    let title = format!("`{integer}` is no user id");
                    self.wrong(value.span(), title, "", help);
                }
                Ok(uid) => uids.push(uid),
            }
        }
        uids
    }

    /// Names and their numbers; none where the host has no such user any more.
    fn local_users(&mut self, value: &Value<'_>) -> Vec<(String, Option<u32>)> {
        let help = "write names of users of this host, for example local_users = [\"backup\"], or their numbers: uids = [1001]";
        let mut users = Vec::new();
        let values = self.some("local_users", value, help);
        let passwd = std::fs::read_to_string(PASSWD);
        for value in values {
            let Some(name) = self.string("a user", value, help) else {
                continue;
            };
            if name.is_empty() || name.chars().any(|c| disturbs(c) || c == ':') {
                let title = "this cannot be the name of a user".to_owned();
                self.wrong(value.span(), title, "", help);
                continue;
            }
            let uid = match &passwd {
                Ok(passwd) => uid_of(passwd, name),
                Err(error) => {
                    let why = format!("{PASSWD} cannot be read: {error}");
                    self.no_user(value.span(), &why);
                    continue;
                }
            };
            if uid.is_none() {
                self.no_user(
                    value.span(),
                    &format!("there is no user `{name}` in {PASSWD}"),
                );
            }
            users.push((name.to_owned(), uid));
        }
        users
    }

    /// A user that is gone stands in the way of nothing else, as an exception that has ended does not (ADR 0007).
    fn no_user(&mut self, at: Range<usize>, why: &str) {
        let help = "write its number, if another service knows it: uids = [1001]; or take it out";
        match self.past {
            PastDates::Refuse => self.wrong(at, why.to_owned(), "", help),
            PastDates::Warn => {
                let warning = format!("{why}: the exception holds for nobody by that name");
                self.warnings.push((at.start, warning));
            }
        }
    }

    fn cgroups(&mut self, value: &Value<'_>) -> Vec<String> {
        let help = "write paths below the root of cgroup v2 (systemd-cgls), for example cgroups = [\"/system.slice/app.service\"]";
        let mut cgroups = Vec::new();
        for value in self.some("cgroups", value, help) {
            let Some(path) = self.string("a cgroup", value, help) else {
                continue;
            };
            let path = path.strip_suffix('/').unwrap_or(path);
            if path.is_empty() {
                let title = "the root is the cgroup of all".to_owned();
                let help = "name the cgroup of the client's service; loopback = \"allow\" is for all clients of this host";
                self.wrong(value.span(), title, "", help);
                continue;
            }
            let is_good = path.strip_prefix('/').is_some_and(|path| {
                path.split('/')
                    .all(|name| !matches!(name, "" | "." | "..") && !name.contains('\0'))
            });
            if is_good && path.len() <= CGROUP_MAX {
                cgroups.push(path.to_owned());
            } else {
                let title = format!("`{path}` is not the path of a cgroup");
                self.wrong(value.span(), title, "", help);
            }
        }
        cgroups
    }
}

/// The first of these names that no user of this host has, if one is there.
pub fn unknown_user(names: &[String]) -> io::Result<Option<&str>> {
    if names.is_empty() {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string(PASSWD)?;
    let unknown = names.iter().find(|name| uid_of(&passwd, name).is_none());
    Ok(unknown.map(String::as_str))
}

/// The number of a user in the text of passwd(5).
fn uid_of(passwd: &str, name: &str) -> Option<u32> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_named = fields.next() == Some(name);
        let uid = fields.nth(1)?;
        is_named.then(|| uid.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_names() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\nbackup2:x:35:35::/:\nbackup:x:34:34::/:\nbroken\n";
        assert_eq!(uid_of(passwd, "backup"), Some(34));
        assert_eq!(uid_of(passwd, "root"), Some(0));
        assert_eq!(uid_of(passwd, "back"), None);
        assert_eq!(uid_of(passwd, "broken"), None);
    }

    #[test]
    fn all_that_is_named_must_be_met() {
        let mut conditions = Conditions::default();
        assert!(!conditions.are_some() && conditions.meets_program(None));
        conditions.programs = vec!["mysql".to_owned()];
        assert!(conditions.are_some() && !conditions.are_local());
        assert!(conditions.meets_program(Some("mysql")));
        assert!(!conditions.meets_program(Some("mysqldump")) && !conditions.meets_program(None));
        conditions.uids = Some(Vec::new());
        assert!(conditions.are_local());
    }
}
