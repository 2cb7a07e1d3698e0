//! `musttls except`: exceptions are added to the files and removed from them, and the running agent applies that.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use ipnet::IpNet;
use jiff::{Span, Timestamp};
use serde::Serialize;

use crate::cli::policy::{ExceptAdd, ExceptCommand};
use crate::clock;
use crate::config::edit::{self, NewConditions, NewException};
use crate::config::{
    self, Config, Exception, Expiry, Loaded, Origin, PastDates, drop_ins, unknown_user,
};
use crate::console::{complain, print, print_json, print_wrapped};
use crate::edits::{Change, change, not_edited, text_of};
use crate::error::Exit;
use crate::login::printable;
use crate::span;

/// The file that new exceptions go to, in the directory of those laid over the main file.
const FILE: &str = "50-exceptions.toml";

/// Carries out a command on the configuration whose main file is `main`.
pub fn run(main: &Path, command: ExceptCommand) -> Result<Exit> {
    match command {
        ExceptCommand::Add(new) => add(main, *new),
        ExceptCommand::Rm { names } => remove(main, &names),
        ExceptCommand::List { output } => {
            let entries = entries(main, clock::wall())?;
            show(&entries, output.json, "there are no exceptions")?;
            Ok(Exit::Ok)
        }
        ExceptCommand::Expiring { within, output } => expiring(main, within, output.json),
    }
}

fn add(main: &Path, new: ExceptAdd) -> Result<Exit> {
    if !new.everyone
        && let Some(all) = everyone(&new.source)
    {
        complain(&format!(
            "error: the networks are all of {all}: everyone could log in in plaintext\n  help: name the networks of the clients, or say \
             --everyone if that is meant"
        ));
        return Ok(Exit::Usage);
    }
    let now = clock::wall();
    let new = exception(new, now)?;
    let target = drop_ins(main).join(FILE);
    let edit = |loaded: &Loaded| {
        if let Some((_, origin)) = find(loaded, &new.name) {
            bail!(
                "there is an exception `{}` already, at {origin}\n  help: choose another name, or remove that one: musttls except rm",
                new.name
            );
        }
        let before = text_of(loaded, &target);
        let after = edit::add(before.as_deref().unwrap_or_default(), &new)
            .map_err(|error| not_edited(&target, &error))?;
        Ok(vec![Change {
            path: target.clone(),
            before,
            after: Some(after),
        }])
    };
    let begins = new.not_before.as_deref();
    let begins = begins.map_or_else(String::new, |begin| format!(", begins {begin}"));
    let ends = match new.expires.as_str() {
        "never" => ", never ends".to_owned(),
        end => format!(", ends {end}"),
    };
    let done = format!(
        "exception `{}` added to {}{begins}{ends}",
        new.name,
        target.display()
    );
    change(main, now, edit, &done)
}

fn remove(main: &Path, names: &[String]) -> Result<Exit> {
    let edit = |loaded: &Loaded| {
        let mut changes: Vec<Change> = Vec::new();
        for name in names {
            let Some((_, origin)) = find(loaded, name) else {
                let known: Vec<&str> = loaded
                    .config
                    .exceptions
                    .iter()
                    .map(|exception| exception.name.as_str())
                    .collect();
                let help = config::similar(name, &known).map_or_else(
                    || "musttls except list shows them".to_owned(),
                    |similar| format!("did you mean `{similar}`?"),
                );
                bail!(
                    "there is no exception `{}` in the files\n  help: {help}",
                    printable(name.as_bytes()).0
                );
            };
            let path = origin.path;
            if !changes.iter().any(|change| change.path == path) {
                let before = text_of(loaded, &path);
                changes.push(Change {
                    path: path.clone(),
                    after: before.clone(),
                    before,
                });
            }
            for change in changes.iter_mut().filter(|change| change.path == path) {
                let text = change.after.as_deref().unwrap_or_default();
                let after = edit::remove(text, name).map_err(|error| not_edited(&path, &error))?;
                change.after = Some(after);
            }
        }
        Ok(changes)
    };
    let done = format!("removed: {}", names.join(", "));
    change(main, clock::wall(), edit, &done)
}

/// What is to be written for the words of the command line.
fn exception(new: ExceptAdd, now: Timestamp) -> Result<NewException> {
    let expires = match (new.expires, new.length) {
        (Some(expires), _) => expires,
        (None, Some(length)) => {
            let begin = new.not_before.as_deref().map(edit::begin_at);
            let begin = begin
                .transpose()
                .map_err(|error| anyhow!("--not-before: {error}"))?;
            edit::end_in(begin.unwrap_or(now), length).map_err(|error| anyhow!("--for: {error}"))?
        }
        (None, None) => bail!("neither --expires nor --for says when it ends"),
    };
    let end = edit::end_at(&expires).map_err(|error| anyhow!("--expires: {error}"))?;
    if let Some(end) = end
        && end <= now
    {
        bail!("--expires: it would have ended on {end}");
    }
    if let Some(unknown) = unknown_user(&new.local_user).context("read /etc/passwd")? {
        bail!(
            "--local-user: there is no user `{}` in /etc/passwd\n  help: name its number, if another service knows it: --uid",
            printable(unknown.as_bytes()).0
        );
    }
    Ok(NewException {
        name: new.name,
        source: new.source,
        conditions: NewConditions {
            programs: new.program,
            uids: new.uid,
            local_users: new.local_user,
            cgroups: new.cgroup,
        },
        users: new.user,
        server: new.server,
        not_before: new.not_before,
        expires,
        owner: new.owner,
        reason: new.reason,
    })
}

/// The family of addresses of which the networks leave none out.
fn everyone(source: &[IpNet]) -> Option<&'static str> {
    IpNet::aggregate(&source.to_vec())
        .into_iter()
        .find(|network| network.prefix_len() == 0)
        .map(|network| match network {
            IpNet::V4(_) => "IPv4",
            IpNet::V6(_) => "IPv6",
        })
}

fn find<'l>(loaded: &'l Loaded, name: &str) -> Option<(&'l Exception, Origin)> {
    loaded.exceptions().find(|(one, _)| one.name == name)
}

fn expiring(main: &Path, within: Span, json: bool) -> Result<Exit> {
    let now = clock::wall();
    let until = span::after(now, within).map_err(|error| anyhow!("--within: {error}"))?;
    let mut entries = entries(main, now)?;
    entries.retain(|entry| entry.end.is_some_and(|end| end <= until));
    entries.sort_by_key(|entry| entry.end);
    show(
        &entries,
        json,
        &format!("no exception ends before {until:.0}"),
    )?;
    Ok(if entries.is_empty() {
        Exit::Ok
    } else {
        Exit::Finding
    })
}

/// An exception of the files.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    name: String,
    /// `in-force`, `not-yet` or `ended`, by the clock of this host.
    state: &'static str,
    source: Vec<String>,
    /// Empty for any.
    user: Vec<String>,
    server: Option<String>,
    /// As clients claim; empty for any, as are the next two.
    programs: Vec<String>,
    /// Those of `local_users`, too.
    uids: Vec<u32>,
    local_users: Vec<String>,
    cgroups: Vec<String>,
    not_before: Option<String>,
    /// The first instant at which it does not hold, or `never`.
    expires: String,
    owner: String,
    reason: String,
    file: String,
    line: usize,
    #[serde(skip)]
    end: Option<Timestamp>,
}

fn entries(main: &Path, now: Timestamp) -> Result<Vec<Entry>> {
    let loaded = Config::load(main, now, PastDates::Warn)?;
    let entries = loaded.exceptions();
    Ok(entries
        .map(|(exception, origin)| Entry::of(exception, &origin, now))
        .collect())
}

impl Entry {
    fn of(exception: &Exception, origin: &Origin, now: Timestamp) -> Self {
        let end = match exception.expires {
            Expiry::At(end) => Some(end),
            Expiry::Never => None,
        };
        Self {
            name: exception.name.clone(),
            state: if exception.holds(now) {
                "in-force"
            } else if exception.expires.holds(now) {
                "not-yet"
            } else {
                "ended"
            },
            source: exception.source.iter().map(ToString::to_string).collect(),
            user: exception.users.clone(),
            server: exception.server.clone(),
            programs: exception.conditions.programs.clone(),
            uids: exception.conditions.uids.clone().unwrap_or_default(),
            local_users: exception.conditions.local_users.clone(),
            cgroups: exception.conditions.cgroups.clone(),
            not_before: exception.not_before.map(|begin| begin.to_string()),
            expires: end.map_or_else(|| "never".to_owned(), |end| end.to_string()),
            owner: exception.owner.clone(),
            reason: exception.reason.clone(),
            file: origin.path.display().to_string(),
            line: origin.line,
            end,
        }
    }
}

/// Most networks or users of an exception that are shown to a person.
const SHOWN: usize = 8;

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |text: &str| printable(text.as_bytes()).0;
        write!(f, "{}  ", plain(&self.name))?;
        match (self.state, &self.not_before) {
            ("not-yet", Some(begin)) => write!(f, "begins {begin}, ")?,
            ("ended", _) => write!(f, "ENDED, ")?,
            _ => {}
        }
        match self.expires.as_str() {
            "never" => f.write_str("never ends")?,
            end => write!(f, "ends {end}")?,
        }
        if self.source.is_empty() {
            f.write_str("\n    from this host")?;
        } else {
            write!(f, "\n    from {}", some(&self.source))?;
        }
        let uids: Vec<_> = self.uids.iter().map(ToString::to_string).collect();
        for (what, values) in [
            ("user", &self.user),
            ("program (claimed by the client)", &self.programs),
            ("local user", &self.local_users),
            ("uid", &uids),
            ("cgroup", &self.cgroups),
        ] {
            if !values.is_empty() {
                let values: Vec<_> = values.iter().map(|value| plain(value)).collect();
                write!(f, ", {what} {}", some(&values))?;
            }
        }
        if let Some(server) = &self.server {
            write!(f, ", server {}", plain(server))?;
        }
        write!(f, "\n    {}: {}", plain(&self.owner), plain(&self.reason))?;
        write!(f, "\n    {}:{}", self.file, self.line)
    }
}

/// A list, of which only the first are told where it is long.
fn some(all: &[String]) -> String {
    let shown: Vec<_> = all.iter().take(SHOWN).map(String::as_str).collect();
    match all.len().saturating_sub(SHOWN) {
        0 => shown.join(" "),
        more => format!("{} and {more} more", shown.join(" ")),
    }
}

fn show(entries: &[Entry], json: bool, none: &str) -> Result<()> {
    if json {
        return print_json(&entries);
    }
    if entries.is_empty() {
        return print(&format!("{none}\n"));
    }
    for entry in entries {
        print_wrapped(&format!("{entry}\n"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
