//! `musttls learn --interactive`: each proposal is shown, and a person says what becomes of it.

use std::collections::BTreeSet;
use std::io::{self, BufRead, Write};

use super::{Lesson, Proposal, Subject, seen};
use crate::fix::Fix;
use crate::login::printable;

/// What may be said of a proposal.
const QUESTION: &str = "[e]xception, [f]ix: show how it turns on TLS, [s]kip, [q]uit? ";

/// Most lines of what was seen, so that the question stays on the screen.
const SHOWN: usize = 12;

/// What somebody has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Except,
    Fix,
    Skip,
    Quit,
}

impl Choice {
    fn read(line: &str) -> Option<Self> {
        Some(match line.trim() {
            "e" | "exception" => Self::Except,
            "f" | "fix" => Self::Fix,
            "s" | "skip" => Self::Skip,
            "q" | "quit" => Self::Quit,
            _ => return None,
        })
    }
}

/// Asks about each proposal of `lesson`, on `output`, and keeps those for which an exception is wanted. The end of `input` is as good as quit: nobody is
/// excepted unasked.
pub fn choose(
    mut lesson: Lesson,
    input: &mut impl BufRead,
    output: &mut impl Write,
) -> io::Result<Lesson> {
    let proposals = std::mem::take(&mut lesson.proposals);
    let count = proposals.len();
    for (index, proposal) in proposals.into_iter().enumerate() {
        writeln!(output, "\n{} of {count}: {}", index + 1, title(&proposal))?;
        let rows = proposal.sources.iter();
        let rows = rows.flat_map(|(source, rows)| rows.iter().map(move |row| (source, row)));
        for (source, row) in rows.clone().take(SHOWN) {
            writeln!(output, "  {source}: {}", printable(seen(row).as_bytes()).0)?;
        }
        match rows.count().saturating_sub(SHOWN) {
            0 => {}
            more => writeln!(output, "  and {more} more")?,
        }
        match ask(input, output)? {
            Choice::Except => lesson.proposals.push(proposal),
            Choice::Fix => {
                for Fix { driver, how } in fixes(&proposal) {
                    writeln!(output, "  {driver}: {how}")?;
                }
            }
            Choice::Skip => {}
            Choice::Quit => break,
        }
    }
    Ok(lesson)
}

fn title(Proposal { subject, .. }: &Proposal) -> String {
    let Subject { server, user } = subject;
    let user = user.as_deref().map_or_else(
        || "whoever logs in".to_owned(),
        |user| format!("user {}", printable(user.as_bytes()).0),
    );
    let server = server
        .as_deref()
        .map_or_else(String::new, |server| format!(" of server {server}"));
    format!("{user}{server}, in plaintext or weak TLS from")
}

/// Each once.
fn fixes(proposal: &Proposal) -> Vec<Fix> {
    let mut drivers = BTreeSet::new();
    let rows = proposal.sources.values().flatten();
    rows.filter_map(|row| row.fix)
        .filter(|fix| drivers.insert(fix.driver))
        .collect()
}

fn ask(input: &mut impl BufRead, output: &mut impl Write) -> io::Result<Choice> {
    loop {
        write!(output, "{QUESTION}")?;
        output.flush()?;
        let mut line = String::new();
        if input.read_line(&mut line)? == 0 {
            writeln!(output)?;
            return Ok(Choice::Quit);
        }
        if let Some(choice) = Choice::read(&line) {
            return Ok(choice);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Config;
    use crate::history::Client;
    use crate::learn::learn;

    fn lesson() -> Lesson {
        let client = |user: &str| Client {
            peer: Some([10, 3, 0, 7].into()),
            user: Some(Arc::from(user)),
            driver: Some(Arc::from("libmariadb")),
            ..Client::in_the_clear()
        };
        let clients = ["a", "b\u{1b}[2J", "c"].map(client);
        learn(
            &Config::default(),
            &clients,
            "2026-11-23T12:00:00Z".parse().unwrap(),
        )
    }

    /// The users for whom exceptions are left, and what was shown.
    fn chosen(answers: &str) -> (Vec<String>, String) {
        let mut shown = Vec::new();
        let chosen = choose(lesson(), &mut answers.as_bytes(), &mut shown).unwrap();
        let users = chosen.proposals.into_iter();
        (
            users.filter_map(|one| one.subject.user).collect(),
            String::from_utf8(shown).unwrap(),
        )
    }

    #[test]
    fn exceptions_are_for_those_who_were_chosen() {
        let (users, shown) = chosen("e\ns\ne\n");
        assert_eq!(users, ["a", "c"]);
        assert!(shown.contains("1 of 3: user a,"), "{shown}");
    }

    #[test]
    fn a_fix_is_shown_and_makes_no_exception() {
        let (users, shown) = chosen("f\nq\n");
        assert!(users.is_empty());
        assert!(shown.contains("MariaDB Connector/C: "), "{shown}");
    }

    #[test]
    fn what_is_no_answer_is_asked_again_and_the_end_excepts_nobody() {
        let (users, shown) = chosen("yes\n\ne\n");
        assert_eq!(users, ["a"]);
        assert_eq!(shown.matches("[q]uit").count(), 4, "{shown}");
        assert!(chosen("").0.is_empty());
    }

    #[test]
    fn names_reach_no_terminal_with_control_characters() {
        let (_, shown) = chosen("s\ns\ns\n");
        assert!(
            !shown.contains('\u{1b}') && shown.contains("[2J"),
            "{shown}"
        );
    }
}
