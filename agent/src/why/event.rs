//! A record: where it is, and what was decided then.

use std::fmt;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::Value;

use super::words;
use crate::audit::record::Outcome;
use crate::cipher;
use crate::config::DEFAULT_SERVER;
use crate::console::Progress;
use crate::error::Failed;
use crate::events::row;
use crate::history::{Class, Client};
use crate::login::printable;
use crate::trail::record::{Content, Line, Seen, read};
use crate::trail::{Flaw, Folder, Part};

/// What a record is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The run of the agent that wrote it; without it, the newest that has such a number.
    run: Option<String>,
    /// Its number in that run.
    sequence: u64,
}

impl Event {
    /// Reads `metadata.uid` or `metadata.sequence`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (run, sequence) = match text.rsplit_once('/') {
            Some((run, sequence)) if !run.is_empty() => (Some(run.to_owned()), sequence),
            Some(_) => return None,
            None => (None, text),
        };
        let is_number = sequence.bytes().all(|digit| digit.is_ascii_digit());
        let sequence = sequence.parse().ok().filter(|_| is_number)?;
        Some(Self { run, sequence })
    }

    fn is(&self, line: &Line<'_>) -> bool {
        line.number.as_ref().is_some_and(|(run, sequence)| {
            *sequence == self.sequence && self.run.as_deref().is_none_or(|wanted| wanted == run)
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(run) = &self.run {
            write!(f, "{}/", printable(run.as_bytes()).0)?;
        }
        write!(f, "{}", self.sequence)
    }
}

/// The line of a record in `audit` or the files it was rotated into; of several, the newest. And the files that were not read, or not to
/// their end, where a newer one may be.
pub fn find(audit: &Path, wanted: &Event) -> Result<(Option<Vec<u8>>, Vec<Flaw>)> {
    let reading = || {
        Failed::new(
            format!("read the audit file {}", audit.display()),
            "run it as root, and name the configuration of the agent: --config FILE",
        )
    };
    let mut folder = Folder::new(audit);
    let parts = folder.parts().with_context(reading)?;
    let all = parts.iter().map(Part::length).sum();
    let mut progress = Progress::new("looking for the record");
    let mut done = 0;
    let mut found = None;
    for part in parts.iter().rev() {
        let mut here = part
            .last(part.length(), 1, |line| {
                done += u64::try_from(line.len()).unwrap_or(0);
                progress.at(done, all);
                wanted.is(&read(line))
            })
            .with_context(reading)?;
        if let Some(line) = here.pop_back() {
            found = Some((line, part.modified()));
            break;
        }
    }
    let mut flaws = folder.flaws();
    if let Some((_, modified)) = &found {
        flaws.retain(|flaw| wanted.run.is_none() && flaw.modified >= *modified);
    }
    Ok((found.map(|(line, _)| line), flaws))
}

/// What was decided then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Then {
    /// What was done: `verdict` of audit records.
    pub verdict: &'static str,
    /// Why it was denied, or would have been.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The exception that allowed it, or the rule that requires TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The file of the policy that judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_version: Option<String>,
    /// The mode of its server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How the refusal ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refusal: Option<String>,
    /// All of it, as a sentence.
    pub why: String,
}

/// A record in words.
#[derive(Clone, Debug)]
pub struct Told {
    /// When it was, who it was about.
    pub title: String,
    /// The record as it is.
    pub record: Value,
    /// What was decided, if it is about a session.
    pub then: Option<Then>,
    /// The session as a client of the history.
    pub client: Option<Client>,
}

/// Tells what `line` says.
pub fn tell(line: &[u8]) -> Result<Told> {
    let record = serde_json::from_slice(line).context("read the record")?;
    let Line { number, content } = read(line);
    let uid = number.map_or(String::new(), |(run, sequence)| {
        format!(", {run}/{sequence}")
    });
    Ok(match content {
        Content::Session(seen) => Told {
            title: safe(&format!(
                "{} UTC{uid}: {}",
                row::time(seen.time_ms),
                session(&seen)
            )),
            record,
            then: Some(then(&seen)),
            client: Some(seen.client()),
        },
        Content::Other(notice) => Told {
            title: safe(&format!(
                "{} UTC{uid}: {}",
                row::time(notice.time_ms),
                notice.message
            )),
            record,
            then: None,
            client: None,
        },
        Content::Later | Content::Garbage => Told {
            title: "a record of a later release of musttls: --json shows it".to_owned(),
            record,
            then: None,
            client: None,
        },
    })
}

fn safe(text: &str) -> String {
    text.chars()
        .map(|c| {
            if crate::login::disturbs(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

fn session(seen: &Seen<'_>) -> String {
    let kind = match seen.class {
        Class::Plaintext | Class::NoException => "plaintext login",
        Class::Older => "session in the clear",
        Class::Tls | Class::TlsFailed => "TLS session",
        Class::Unix => "session over a Unix socket",
    };
    let mut parts = vec![kind.to_owned()];
    if seen.class != Class::Unix {
        parts.push(format!("from {}", row::client(seen)));
    }
    parts.extend(seen.user.as_ref().map(|user| format!("as user {user}")));
    let program = seen.program.as_ref();
    parts.extend(program.map(|program| format!("by {program}")));
    parts.push(match seen.port {
        0 => format!("to server {}", seen.server),
        port => format!("to server {}, port {port}", seen.server),
    });
    parts.join(" ")
}

fn then(seen: &Seen<'_>) -> Then {
    let owned = |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(str::to_owned);
    let refusal = seen.refusal.as_ref().map(|refusal| {
        let told = refusal.err_after_us.map_or_else(
            || "its client was not told".to_owned(),
            |us| format!("its client was told after {}", row::duration(us)),
        );
        match &refusal.outcome {
            Some(word) => format!("{told}, and {} ({word})", words::ending(word)),
            None => told,
        }
    });
    let policy = format!(
        "by version {} of {}, in {} mode",
        seen.policy.version.as_deref().unwrap_or("?"),
        seen.policy.name.as_deref().unwrap_or("a policy"),
        seen.mode.as_deref().unwrap_or("?")
    );
    let parts = [Some(decided(seen)), refusal, Some(policy)];
    let why = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    Then {
        verdict: seen.passed.verdict(),
        reason: owned(&seen.reason),
        rule: owned(&seen.rule),
        policy: owned(&seen.policy.name),
        policy_version: owned(&seen.policy.version),
        mode: owned(&seen.mode),
        refusal: seen
            .refusal
            .as_ref()
            .and_then(|refusal| owned(&refusal.outcome)),
        why: safe(&why),
    }
}

fn decided(seen: &Seen<'_>) -> String {
    let rule = seen.rule.as_deref().unwrap_or(DEFAULT_SERVER);
    let reason = seen.reason.as_deref().map_or_else(String::new, |word| {
        format!(": {} ({word})", words::reason(word))
    });
    match seen.passed {
        Outcome::Allowed if seen.class == Class::Unix => {
            "passed: a Unix socket is secure".to_owned()
        }
        Outcome::Allowed if seen.tls == 0 => "passed: it was TLS".to_owned(),
        Outcome::Allowed => format!(
            "passed: TLS {} was good enough",
            cipher::version_name(seen.tls)
        ),
        Outcome::Excepted => format!("passed: exception {rule} allowed it"),
        Outcome::Observed => {
            format!("passed, since observe mode only reports; rule {rule} would refuse it{reason}")
        }
        Outcome::Denied => format!("refused by rule {rule}{reason}"),
        Outcome::TlsFailed => "passed; the TLS handshake failed, and no login came".to_owned(),
        Outcome::Kept => format!(
            "went on: it is older than the {}, and existing = \"keep\" lets such sessions go on",
            seen.older_than.as_deref().unwrap_or("gate")
        ),
    }
}
