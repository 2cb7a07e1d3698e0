//! What is taken, what is refused, and that the examples of the help are taken as they stand.

use super::*;
use clap::CommandFactory as _;
use clap::error::ErrorKind;
use std::path::Path;

fn parse(line: &str) -> Result<Command, ErrorKind> {
    Cli::try_parse_from(line.split(' '))
        .map(|cli| cli.command)
        .map_err(|error| error.kind())
}

#[test]
fn the_definitions_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn defaults_are_the_packaged_paths() {
    let Ok(Command::Run { config }) = parse("musttls run") else {
        panic!()
    };
    assert_eq!(config, Path::new("/etc/musttls/musttls.toml"));
    let Ok(Command::Status { output, control }) = parse("musttls status --json") else {
        panic!()
    };
    assert!(output.json);
    assert_eq!(control.socket, Path::new("/run/musttls/control.sock"));
}

#[test]
fn every_command_of_the_contract_is_there() {
    for line in [
        "musttls run --config f.toml",
        "musttls status --socket /s",
        "musttls scan --json",
        "musttls doctor --json",
        "musttls config check f.toml",
        "musttls reload --socket /s",
        "musttls top --interval 5 --socket /s",
        "musttls kill-plaintext --execute --json --socket /s",
        "musttls config show f.toml --origin --json",
        "musttls except add --name n --source 10.0.0.0/8 ::1/128 --user a b --expires never --owner o --reason r",
        "musttls except add --name n --uid 1001 7 --local-user backup --cgroup /a --program mysql --for 1d --owner o --reason r",
        "musttls except rm a b --config f.toml",
        "musttls except --config f.toml list --json",
        "musttls except expiring --within 30d --json",
        "musttls clients --plaintext --server a --user u --since 14d --config f.toml --json",
        "musttls events -f -n 5 --since 1h --client 10.0.0.0/8 --user u --server a --kind tls --outcome denied --outcome kept --json --config f.toml",
        "musttls events --refused --since 2026-11-01T12:00:00Z --until 2026-11-02",
        "musttls why 10.0.0.1 etl --server a --json --config f.toml",
        "musttls why b00t/5f1c/187 --json",
        "musttls simulate --policy f.toml --since 2026-11-01 --json",
        "musttls report --policy f.toml --since 14d --output r.html --config f.toml",
        "musttls learn --server a --since 14d --for 60d --owner o --reason r --write f.toml",
        "musttls history --json --config f.toml",
        "musttls history rebuild --config f.toml",
        "musttls mode enforce orders --for 30m --execute --config f.toml",
        "musttls mode --json",
        "musttls panic --end --config f.toml",
    ] {
        assert!(parse(line).is_ok(), "{line}");
    }
    for (line, kind) in [
        ("musttls --version", ErrorKind::DisplayVersion),
        ("musttls enforce", ErrorKind::InvalidSubcommand),
        ("musttls learn", ErrorKind::MissingRequiredArgument),
        (
            "musttls clients --since yesterday",
            ErrorKind::ValueValidation,
        ),
        (
            "musttls why 10.0.0.1 --server a --port 1",
            ErrorKind::ArgumentConflict,
        ),
        ("musttls why db1", ErrorKind::ValueValidation),
        ("musttls why 10.0.0.0/8", ErrorKind::ValueValidation),
        (
            "musttls events -f --until 2026-11-01",
            ErrorKind::ArgumentConflict,
        ),
        ("musttls events --outcome refused", ErrorKind::InvalidValue),
        ("musttls mode --execute", ErrorKind::MissingRequiredArgument),
        (
            "musttls clients --since 2026-11-01T12:00",
            ErrorKind::ValueValidation,
        ),
        (
            "musttls except add --name n --uid 1 --for 1d --expires never --owner o --reason r",
            ErrorKind::ArgumentConflict,
        ),
    ] {
        assert_eq!(parse(line).err(), Some(kind), "{line}");
    }
}

fn assert_examples(command: &clap::Command, path: &str) {
    let help = command.get_after_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    assert!(help.starts_with("Example"), "{path} has no examples");
    // Wrapped, a command would be no command.
    for line in help.lines() {
        assert!(line.chars().count() <= 80, "{path}: {line}");
    }
    // An example is a command line that is taken as it stands.
    let mut examples = 0;
    for line in help
        .replace("\\\n", " ")
        .lines()
        .filter(|line| line.starts_with("  "))
    {
        for words in command_lines(line) {
            examples += 1;
            let taken = Cli::try_parse_from(&words);
            assert!(taken.is_ok(), "{path}: {words:?}: {}", taken.unwrap_err());
        }
    }
    assert!(examples > 0, "{path}: {help}");
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        assert_examples(sub, &format!("{path} {}", sub.get_name()));
    }
}

/// The command lines of `musttls` in a line of a shell, as words.
fn command_lines(line: &str) -> Vec<Vec<String>> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut is_quoted = false;
    for c in line.chars().chain([' ']) {
        match c {
            '\'' => is_quoted = !is_quoted,
            ' ' if !is_quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    let shown: Vec<String> = words.into_iter().take_while(|word| word != "#").collect();
    shown
        .split(|word| matches!(word.as_str(), "|" | "||" | "&&"))
        .map(|words| {
            let before = |word: &&String| *word == "watch" || word.contains('=');
            words.iter().skip_while(before).cloned().collect()
        })
        .filter(|words: &Vec<String>| words.first().is_some_and(|word| word == "musttls"))
        .collect()
}

#[test]
fn every_command_has_examples_that_are_taken_as_they_stand() {
    let mut command = Cli::command();
    command.build();
    assert_examples(&command, "musttls");
}

#[test]
fn an_exception_has_a_name_a_source_one_end_an_owner_and_a_reason() {
    let whole = "musttls except add --name n --source 10.0.0.0/8 --for 14d --owner o --reason r";
    assert!(parse(whole).is_ok());
    for part in [
        "--name n ",
        "--source 10.0.0.0/8 ",
        "--for 14d ",
        "--owner o ",
        " --reason r",
    ] {
        let kind = parse(&whole.replace(part, "")).err();
        assert_eq!(kind, Some(ErrorKind::MissingRequiredArgument), "{part}");
    }
    let both = format!("{whole} --expires never");
    assert_eq!(parse(&both).err(), Some(ErrorKind::ArgumentConflict));
    for (good, bad) in [("10.0.0.0/8", "10.0.0.1/8"), ("14d", "-14d")] {
        let kind = parse(&whole.replace(good, bad)).err();
        assert_eq!(kind, Some(ErrorKind::ValueValidation), "{bad}");
    }
}
