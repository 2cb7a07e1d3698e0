//! Edits of a file's text: an exception more, an exception less, another mode, and all else as it was, comments too.

use ipnet::IpNet;
use jiff::{Span, Timestamp, Unit};
use musttls_common::verdict::Mode;
use toml_edit::{
    ArrayOfTables, Datetime, DatetimeParseError, DocumentMut, Item, Table, Value, value,
};

use super::show::quoted;
use super::value::{begin_of, end_of, network};
use crate::span;

/// What stands above the first exception of a file that did not exist.
const HEAD: &str = "# Exceptions made by `musttls except add`. They may be changed by hand, too.\n";

/// An exception that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewException {
    /// Its name.
    pub name: String,
    /// The networks it allows.
    pub source: Vec<IpNet>,
    /// What the agent is to look at.
    pub conditions: NewConditions,
    /// The users it allows; none for any.
    pub users: Vec<String>,
    /// The server it is for.
    pub server: Option<String>,
    /// As [`begin`] has taken it.
    pub not_before: Option<String>,
    /// As [`end`] or [`end_in`] has taken it.
    pub expires: String,
    /// Who answers for it.
    pub owner: String,
    /// Why it exists.
    pub reason: String,
}

/// The conditions of an exception that is to be written; each is empty for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewConditions {
    /// Programs that clients claim to be.
    pub programs: Vec<String>,
    /// User ids on this host.
    pub uids: Vec<u32>,
    /// Users of this host, by name.
    pub local_users: Vec<String>,
    /// Paths of cgroups.
    pub cgroups: Vec<String>,
}

impl NewConditions {
    fn write(&self, table: &mut Table) -> Result<(), EditError> {
        for (key, texts) in [
            ("programs", &self.programs),
            ("local_users", &self.local_users),
            ("cgroups", &self.cgroups),
        ] {
            if !texts.is_empty() {
                table.insert(key, value(array_of(texts)?));
            }
        }
        if !self.uids.is_empty() {
            let uids = self.uids.iter().map(|uid| i64::from(*uid));
            table.insert("uids", value(uids.collect::<Value>()));
        }
        Ok(())
    }
}

/// A mode that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewMode {
    /// The mode.
    pub mode: Mode,
    /// When it ends, as [`end_in`] has made it, and the mode from then on.
    pub end: Option<(String, Mode)>,
}

/// Why a text cannot be edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is no TOML.
    #[error("{0}")]
    Syntax(String),
    /// It has its exceptions in a form that is not edited.
    #[error("its exceptions are not [[exception]] sections; edit it by hand")]
    Inline,
    /// There is no such exception in it.
    #[error("it has no exception of this name")]
    Absent,
    /// There is no such server in it.
    #[error("it has no [[server]] section of this name")]
    NoServer,
}

/// `text` with the exception behind those that it has.
pub fn add(text: &str, new: &NewException) -> Result<String, EditError> {
    let mut document = parse(text)?;
    let mut table = Table::new();
    table.insert("name", value(text_of(&new.name)?));
    if !new.source.is_empty() {
        let networks = new.source.iter().map(ToString::to_string);
        table.insert("source", value(networks.collect::<Value>()));
    }
    if !new.users.is_empty() {
        table.insert("user", value(array_of(&new.users)?));
    }
    if let Some(server) = &new.server {
        table.insert("server", value(text_of(server)?));
    }
    new.conditions.write(&mut table)?;
    if let Some(begin) = &new.not_before {
        table.insert("not_before", date(begin)?);
    }
    table.insert("expires", date(&new.expires)?);
    table.insert("owner", value(text_of(&new.owner)?));
    table.insert("reason", value(text_of(&new.reason)?));
    let is_first = text.trim().is_empty();
    table.decor_mut().set_prefix(if is_first {
        format!("{HEAD}\n")
    } else {
        "\n".to_owned()
    });
    // Behind the last line of the file, comments too.
    let trailing = document.trailing().as_str().unwrap_or_default().to_owned();
    if !is_first && !trailing.is_empty() {
        let end = if trailing.ends_with('\n') { "" } else { "\n" };
        table.decor_mut().set_prefix(format!("{trailing}{end}\n"));
        document.set_trailing("");
    }
    // Behind all other sections, wherever the exceptions of this file stand.
    table.set_position(Some(isize::MAX));
    let sections = document
        .entry("exception")
        .or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    sections
        .as_array_of_tables_mut()
        .ok_or(EditError::Inline)?
        .push(table);
    Ok(document.to_string())
}

/// `text` without the exception `name` and the comment lines right above it.
pub fn remove(text: &str, name: &str) -> Result<String, EditError> {
    let mut document = parse(text)?;
    let sections = document
        .get_mut("exception")
        .ok_or(EditError::Absent)?
        .as_array_of_tables_mut()
        .ok_or(EditError::Inline)?;
    let is_named = |table: &Table| table.get("name").and_then(Item::as_str) == Some(name);
    let at = sections
        .iter()
        .position(is_named)
        .ok_or(EditError::Absent)?;
    let prefix = sections.get(at).and_then(|table| table.decor().prefix());
    let prefix = prefix
        .and_then(|prefix| prefix.as_str())
        .unwrap_or_default();
    let kept = not_about_it(prefix).to_owned();
    sections.remove(at);
    if let Some(next) = sections.get_mut(at) {
        let own = next.decor().prefix().and_then(|prefix| prefix.as_str());
        let own = own.unwrap_or_default().to_owned();
        next.decor_mut().set_prefix(joined(&kept, &own));
    } else {
        let own = document.trailing().as_str().unwrap_or_default().to_owned();
        document.set_trailing(joined(&kept, &own));
    }
    Ok(document.to_string())
}

/// `text` with another mode, at its top or in the section of a server.
pub fn set_mode(text: &str, server: Option<&str>, new: &NewMode) -> Result<String, EditError> {
    let mut document = parse(text)?;
    let table = match server {
        None => document.as_table_mut(),
        Some(name) => server_of(&mut document, name).ok_or(EditError::NoServer)?,
    };
    set(table, "mode", new.mode.as_str().into());
    if let Some((until, then)) = &new.end {
        let until: Datetime = until
            .parse()
            .map_err(|error: DatetimeParseError| EditError::Syntax(error.to_string()))?;
        set(table, "mode_until", until.into());
        set(table, "mode_then", then.as_str().into());
    } else {
        drop_end(table);
    }
    Ok(document.to_string())
}

/// `text` without the end of the mode at its top, which another file sets; `None` if it has none.
pub fn drop_mode_end(text: &str) -> Result<Option<String>, EditError> {
    let mut document = parse(text)?;
    let had = drop_end(document.as_table_mut());
    Ok(had.then(|| document.to_string()))
}

/// Whether `text` sets the mode at its top.
pub fn sets_mode(text: &str) -> Result<bool, EditError> {
    Ok(parse(text)?.contains_key("mode"))
}

/// Whether `text` has the section of this server.
pub fn has_server(text: &str, name: &str) -> Result<bool, EditError> {
    Ok(server_of(&mut parse(text)?, name).is_some())
}

fn server_of<'d>(document: &'d mut DocumentMut, name: &str) -> Option<&'d mut Table> {
    let servers = document.get_mut("server")?.as_array_of_tables_mut()?;
    let is_named = |table: &&mut Table| table.get("name").and_then(Item::as_str) == Some(name);
    servers.iter_mut().find(is_named)
}

/// Sets a key; what stands around its value stays.
fn set(table: &mut Table, key: &str, mut new: Value) {
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(value) => {
            *new.decor_mut() = value.decor().clone();
            *value = new;
        }
        None => {
            table.insert(key, Item::Value(new));
        }
    }
}

fn drop_end(table: &mut Table) -> bool {
    let keys = ["mode_until", "mode_then"];
    keys.map(|key| table.remove(key).is_some()).contains(&true)
}

/// What of the lines above a section is not about it: all up to the last empty line.
fn not_about_it(prefix: &str) -> &str {
    let mut end = 0;
    let mut at = 0;
    for line in prefix.split_inclusive('\n') {
        at += line.len();
        if line.trim().is_empty() && line.ends_with('\n') {
            end = at;
        }
    }
    prefix.get(..end).unwrap_or_default()
}

/// Two runs of lines; of the empty ones between them, those of the first are enough.
fn joined(first: &str, second: &str) -> String {
    let second = if first.trim().is_empty() || second.trim().is_empty() {
        second
    } else {
        second.trim_start_matches(['\r', '\n'])
    };
    if first.trim().is_empty() {
        return second.to_owned();
    }
    format!("{first}{second}")
}

fn parse(text: &str) -> Result<DocumentMut, EditError> {
    text.parse()
        .map_err(|error: toml_edit::TomlError| EditError::Syntax(error.to_string()))
}

/// On one line, and nothing in it can disturb the terminal of who reads the file.
fn array_of(texts: &[String]) -> Result<Value, EditError> {
    let texts = texts.iter().map(|text| text_of(text));
    Ok(texts.collect::<Result<Vec<_>, _>>()?.into_iter().collect())
}

fn text_of(text: &str) -> Result<Value, EditError> {
    quoted(text)
        .parse()
        .map_err(|error: toml_edit::TomlError| EditError::Syntax(error.to_string()))
}

fn date(text: &str) -> Result<Item, EditError> {
    if text == NEVER {
        return Ok(value(NEVER));
    }
    let date: Datetime = text
        .parse()
        .map_err(|error: DatetimeParseError| EditError::Syntax(error.to_string()))?;
    Ok(value(date))
}

const NEVER: &str = "never";

/// Takes a network as the file does.
pub fn source(text: &str) -> Result<IpNet, String> {
    network(text).map_err(|bad| {
        let label = bad.label();
        let why = if label.is_empty() {
            bad.title(text)
        } else {
            label
        };
        format!("{why}: {}", bad.help())
    })
}

/// Takes an end as the file does: a date, a date-time or `never`.
pub fn end(text: &str) -> Result<String, String> {
    const HELP: &str = "write a date as 2027-03-31, a time as 2027-03-31T12:00:00Z, or never";
    if text == NEVER {
        return Ok(NEVER.to_owned());
    }
    let date = text
        .parse()
        .map_err(|error: DatetimeParseError| format!("{HELP} ({error})"))?;
    end_of(&date).map(|_| text.to_owned())
}

/// Takes a beginning as the file does.
pub fn begin(text: &str) -> Result<String, String> {
    begin_at(text).map(|_| text.to_owned())
}

/// The instant of a beginning.
pub fn begin_at(text: &str) -> Result<Timestamp, String> {
    const HELP: &str = "write a date as 2027-01-31, or a time as 2027-01-31T12:00:00Z";
    let date = text
        .parse()
        .map_err(|error: DatetimeParseError| format!("{HELP} ({error})"))?;
    begin_of(&date)
}

/// The first instant behind an end that [`end`] has taken; `None` for `never`.
pub fn end_at(text: &str) -> Result<Option<Timestamp>, String> {
    if text == NEVER {
        return Ok(None);
    }
    let date = text
        .parse()
        .map_err(|error: DatetimeParseError| format!("`{text}`: {error}"))?;
    end_of(&date).map(Some)
}

/// An end that is `span` behind `now`, to the second.
pub fn end_in(now: Timestamp, span: Span) -> Result<String, String> {
    let end = span::after(now, span)?
        .round(Unit::Second)
        .map_err(|error| error.to_string())?;
    Ok(end.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(name: &str) -> NewException {
        NewException {
            name: name.to_owned(),
            source: vec!["10.3.0.0/16".parse().unwrap()],
            conditions: NewConditions::default(),
            users: vec!["etl".to_owned()],
            server: None,
            not_before: Some("2027-01-01".to_owned()),
            expires: "2027-03-31".to_owned(),
            owner: "dba@example.com".to_owned(),
            reason: "DB-812".to_owned(),
        }
    }

    const HAND_MADE: &str = "\
# The head of this file.

# About a.
[[exception]] # beside the header
name = \"a\" # beside a key
source = [
  # in a list
  \"10.0.0.0/8\",
]
expires = \"never\"
owner = \"o\"
reason = \"r\"
# at the end of a

# About neither.

# About b.
[[exception]]
name   = 'b'
source = [\"10.1.0.0/16\"]
expires = 2027-01-01 # soon
owner = \"o\"
reason = \"r\"

[audit]
# where it goes
path = \"-\"

# The end.
";

    #[test]
    fn a_new_file_says_what_it_is() {
        let text = add("", &new("a")).unwrap();
        assert_eq!(
            text,
            "# Exceptions made by `musttls except add`. They may be changed by hand, too.\n\
             \n[[exception]]\nname = \"a\"\nsource = [\"10.3.0.0/16\"]\nuser = [\"etl\"]\n\
             not_before = 2027-01-01\nexpires = 2027-03-31\nowner = \"dba@example.com\"\nreason = \"DB-812\"\n"
        );
        let both = add(&text, &new("b")).unwrap();
        assert_eq!(
            both.strip_prefix(&text).unwrap().lines().nth(2),
            Some("name = \"b\"")
        );
        assert_eq!(remove(&both, "b").unwrap(), text);
        let neither = remove(&remove(&both, "a").unwrap(), "b").unwrap();
        assert!(neither.starts_with(HEAD), "{neither}");
    }

    #[test]
    fn an_addition_changes_nothing_that_is_there() {
        for text in [
            HAND_MADE,
            HAND_MADE.trim_end(),
            "# only a comment",
            "mode = \"enforce\"\n",
        ] {
            let added = add(text, &new("c")).unwrap();
            assert!(added.starts_with(text), "{added}");
            let behind = added.strip_prefix(text).unwrap();
            assert!(
                behind
                    .trim_start()
                    .starts_with("[[exception]]\nname = \"c\""),
                "{added}"
            );
        }
    }

    #[test]
    fn a_removal_takes_the_section_and_the_comment_right_above_it() {
        let text = remove(HAND_MADE, "a").unwrap();
        for gone in ["About a.", "name = \"a\"", "beside", "in a list"] {
            assert!(!text.contains(gone), "{gone} in\n{text}");
        }
        let kept = [
            "# The head of this file.",
            "# About neither.",
            "# About b.",
            "[audit]",
            "# The end.",
        ];
        let places: Vec<_> = kept
            .iter()
            .map(|kept| text.find(kept).expect(kept))
            .collect();
        assert!(places.is_sorted(), "{text}");
        assert!(text.contains("name   = 'b'"), "{text}");

        let text = remove(HAND_MADE, "b").unwrap();
        assert!(
            !text.contains("About b.") && !text.contains("'b'"),
            "{text}"
        );
        for kept in [
            "The head of",
            "About a.",
            "beside a key",
            "in a list",
            "About neither",
            "where it goes",
            "The end.",
        ] {
            assert!(text.contains(kept), "{kept} not in\n{text}");
        }
        assert_eq!(remove(&text, "b"), Err(EditError::Absent));
    }

    #[test]
    fn lines_that_end_as_elsewhere_are_taken() {
        let text = HAND_MADE.replace('\n', "\r\n");
        let added = add(&text, &new("c")).unwrap();
        let both = remove(&added, "a").unwrap();
        for kept in [
            "# The head of this file.",
            "# About b.",
            "name = \"c\"",
            "# The end.",
        ] {
            assert!(both.contains(kept), "{kept} not in\n{both}");
        }
        assert!(!both.contains("About a."), "{both}");
    }

    #[test]
    fn a_mode_is_set_where_it_stands() {
        let text = "\
# The mode.
mode = \"observe\" # for now
require = \"tls1.2\"

# About orders.
[[server]]
name = \"orders\"
mode = \"observe\"
mode_until = 2026-11-01
mode_then = \"enforce\"
";
        let enforce = NewMode {
            mode: Mode::Enforce,
            end: None,
        };
        assert_eq!(
            set_mode(text, None, &enforce).unwrap(),
            text.replacen("\"observe\"", "\"enforce\"", 1)
        );
        let orders = set_mode(text, Some("orders"), &enforce).unwrap();
        assert!(
            orders
                .ends_with("# About orders.\n[[server]]\nname = \"orders\"\nmode = \"enforce\"\n"),
            "{orders}"
        );
        let timed = NewMode {
            end: Some(("2026-11-23T15:00:00Z".to_owned(), Mode::Observe)),
            ..enforce.clone()
        };
        let timed = set_mode(text, None, &timed).unwrap();
        let end = "mode_until = 2026-11-23T15:00:00Z\nmode_then = \"observe\"\n\n# About orders.\n[[server]]";
        assert!(timed.contains(end), "{timed}");
        let dropped = drop_mode_end(&timed).unwrap().unwrap();
        assert_eq!(dropped, set_mode(text, None, &enforce).unwrap());
        assert_eq!(drop_mode_end(text), Ok(None));
        assert_eq!(
            set_mode("", None, &enforce).unwrap(),
            "mode = \"enforce\"\n"
        );
        assert_eq!(
            set_mode(text, Some("other"), &enforce),
            Err(EditError::NoServer)
        );
        assert_eq!(has_server(text, "orders"), Ok(true));
        assert_eq!(
            (sets_mode(text), sets_mode("[audit]\n")),
            (Ok(true), Ok(false))
        );
    }

    #[test]
    fn what_is_not_edited_is_told() {
        let inline = "exception = [{ name = \"a\" }]\n";
        assert_eq!(add(inline, &new("b")), Err(EditError::Inline));
        assert_eq!(remove(inline, "a"), Err(EditError::Inline));
        assert!(matches!(
            add("a = = 1", &new("b")),
            Err(EditError::Syntax(_))
        ));
        assert_eq!(remove("", "a"), Err(EditError::Absent));
    }

    #[test]
    fn text_that_would_break_out_of_its_string_does_not() {
        let mut odd = new("a");
        odd.users = vec!["e\u{9b}1m\u{202e}\nx".to_owned()];
        odd.reason = "\"\"\"'''\\ \u{1b}[2J\n[[exception]]\nname = \"b\"".to_owned();
        let text = add("", &odd).unwrap();
        let document: DocumentMut = text.parse().unwrap();
        let all = document
            .get("exception")
            .and_then(Item::as_array_of_tables)
            .unwrap();
        assert_eq!(all.len(), 1, "{text}");
        let reason = all
            .get(0)
            .and_then(|one| one.get("reason"))
            .and_then(Item::as_str);
        assert_eq!(reason, Some(odd.reason.as_str()));
        let disturbs = |c| c != '\n' && crate::login::disturbs(c);
        assert!(!text.contains(disturbs), "{text:?}");
        assert_eq!(text.lines().count(), 10, "a line each: {text}");
    }

    #[test]
    fn words_of_the_command_line_are_those_of_the_file() {
        assert_eq!(end("2027-03-31").as_deref(), Ok("2027-03-31"));
        assert_eq!(end("never").as_deref(), Ok("never"));
        assert_eq!(
            end("2027-03-31T12:00:00+02:00").as_deref(),
            Ok("2027-03-31T12:00:00+02:00")
        );
        for bad in ["2027-13-01", "soon", "2027-03-31T12:00:00", "12:00:00", ""] {
            assert!(end(bad).is_err(), "{bad}");
            assert!(begin(bad).is_err(), "{bad}");
        }
        assert!(begin("never").is_err());
        let now: Timestamp = "2026-11-22T12:00:00.25Z".parse().unwrap();
        for (text, end) in [
            ("14d", "2026-12-06T12:00:00Z"),
            ("2w", "2026-12-06T12:00:00Z"),
            ("90m", "2026-11-22T13:30:00Z"),
            ("1mo", "2026-12-22T12:00:00Z"),
        ] {
            let span = span::parse(text).unwrap();
            assert_eq!(end_in(now, span).unwrap(), end, "{text}");
        }
        for bad in ["14", "-14d", "0d", "soon", ""] {
            assert!(span::parse(bad).is_err(), "{bad}");
        }
        assert!(end_in(now, span::parse("9000y").unwrap()).is_err());
        assert_eq!(source("10.3.0.0/16").unwrap().to_string(), "10.3.0.0/16");
        assert!(source("10.3.0.1").unwrap_err().contains("10.3.0.1/32"));
        assert!(source("10.3.0.1/16").unwrap_err().contains("10.3.0.0/16"));
    }
}
