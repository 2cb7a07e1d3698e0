use super::*;
use clap::Parser as _;
use std::fs;
use std::path::PathBuf;
use std::thread;

use crate::cli::{Cli, Command};

/// A configuration of its own, whose control socket nobody listens at.
struct Place(tempfile::TempDir);

impl Place {
    fn new(text: &str) -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        let text = format!(
            "{text}\n[control]\nsocket = \"{}\"\n",
            place.0.path().join("control.sock").display()
        );
        fs::write(place.main(), text).unwrap();
        place
    }

    fn main(&self) -> PathBuf {
        self.0.path().join("musttls.toml")
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("conf.d/50-exceptions.toml")
    }

    fn text(&self) -> String {
        fs::read_to_string(self.file()).unwrap_or_default()
    }

    fn run(&self, words: &str) -> Result<Exit> {
        let words = ["musttls", "except"].into_iter().chain(words.split(' '));
        match Cli::try_parse_from(words).unwrap().command {
            Command::Except { command, .. } => run(&self.main(), command),
            _ => panic!("another command"),
        }
    }

    fn names(&self) -> Vec<String> {
        let entries = entries(&self.main(), clock::wall()).unwrap();
        entries.into_iter().map(|entry| entry.name).collect()
    }
}

fn add(name: &str) -> String {
    format!("add --name {name} --source 10.0.0.0/8 --for 14d --owner o --reason r")
}

#[test]
fn an_exception_comes_and_goes_without_an_agent() {
    let place = Place::new("# by hand\nmode = \"enforce\"");
    assert_eq!(place.run(&add("a")).unwrap(), Exit::Ok);
    assert_eq!(place.run(&add("b")).unwrap(), Exit::Ok);
    assert_eq!(place.names(), ["a", "b"]);
    let error = place.run(&add("a")).unwrap_err().to_string();
    let origin = format!("{}:3", place.file().display());
    assert!(
        error.contains("`a` already") && error.contains(&origin),
        "{error}"
    );
    assert_eq!(place.run("rm a b").unwrap(), Exit::Ok);
    assert_eq!(place.names(), [""; 0]);
    assert!(place.text().starts_with("# Exceptions made by"));
    assert!(
        place
            .run("rm a")
            .unwrap_err()
            .to_string()
            .contains("no exception `a`")
    );
}

#[test]
fn one_of_the_main_file_is_removed_there_and_its_comments_stay() {
    let main = "# The policy.\nmode = \"enforce\" # since June\n\n# Old client.\n[[exception]]\nname = \"old\"\n\
        source = [\"10.0.0.0/8\"]\nexpires = \"never\"\nowner = \"o\"\nreason = \"r\"\n\n# Where.\n";
    let place = Place::new(main);
    place.run(&add("new")).unwrap();
    place.run("rm old new").unwrap();
    let text = fs::read_to_string(place.main()).unwrap();
    assert!(
        !text.contains("exception") && !text.contains("Old client"),
        "{text}"
    );
    for kept in [
        "# The policy.\nmode = \"enforce\" # since June\n",
        "# Where.\n",
        "[control]",
    ] {
        assert!(text.contains(kept), "{kept} not in\n{text}");
    }
}

#[test]
fn a_name_that_was_mistyped_is_found() {
    let place = Place::new("");
    place.run(&add("legacy-etl")).unwrap();
    let said = |words: &str| place.run(words).unwrap_err().to_string();
    let text = said("rm legacy-elt");
    assert!(text.contains("did you mean `legacy-etl`?"), "{text}");
    let text = said("rm zzz");
    assert!(text.contains("musttls except list"), "{text}");
}

#[test]
fn what_would_be_wrong_is_not_written() {
    let place = Place::new("");
    place.run(&add("a")).unwrap();
    let before = place.text();
    for wrong in [
        format!("{} --server nowhere", add("b")),
        add("require-tls"),
        add("b").replace("--owner o", "--owner "),
    ] {
        let error = place.run(&wrong).unwrap_err();
        assert_eq!(
            crate::error::exit_code(&error),
            Exit::Config,
            "{wrong}: {error}"
        );
        assert!(error.to_string().contains("50-exceptions.toml"), "{error}");
        assert_eq!(place.text(), before, "{wrong}");
    }
    for past in [
        add("b").replace("14d", "1h --not-before 2020-01-01"),
        add("b").replace("--for 14d", "--expires 2020-01-01"),
    ] {
        let error = place.run(&past).unwrap_err().to_string();
        assert!(
            error.contains("it would have ended on 2020-01-0"),
            "{error}"
        );
        assert_eq!(place.text(), before, "{past}");
    }
}

#[test]
fn all_addresses_of_a_family_are_taken_only_where_that_is_said() {
    let place = Place::new("");
    for source in [
        "0.0.0.0/0",
        "::/0",
        "::ffff:0:0/96",
        "0.0.0.0/1 128.0.0.0/1",
        "10.0.0.0/8 8000::/1 ::/1",
    ] {
        let words = add("a").replace("10.0.0.0/8", source);
        assert_eq!(place.run(&words).unwrap(), Exit::Usage, "{source}");
        assert_eq!(place.text(), "", "{source}");
    }
    let words = add("a").replace("10.0.0.0/8", "0.0.0.0/1 129.0.0.0/8");
    assert_eq!(place.run(&words).unwrap(), Exit::Ok);
    let words = add("b").replace("10.0.0.0/8", "0.0.0.0/0") + " --everyone";
    assert_eq!(place.run(&words).unwrap(), Exit::Ok);
    assert_eq!(place.names(), ["a", "b"]);
}

#[test]
fn parallel_additions_and_removals_lose_nothing() {
    const EDITORS: usize = 4;
    const EACH: usize = 6;
    let place = Place::new("");
    thread::scope(|scope| {
        for editor in 0..EDITORS {
            let place = &place;
            scope.spawn(move || {
                for n in 0..EACH {
                    place.run(&add(&format!("e{editor}-{n}"))).unwrap();
                    if n % 2 == 1 {
                        place.run(&format!("rm e{editor}-{n}")).unwrap();
                    }
                }
            });
        }
    });
    let mut names = place.names();
    names.sort();
    let expected: Vec<_> = (0..EDITORS)
        .flat_map(|editor| (0..EACH).step_by(2).map(move |n| format!("e{editor}-{n}")))
        .collect();
    assert_eq!(names, expected);
}

#[test]
fn those_that_end_soon_are_a_finding() {
    let place = Place::new("");
    assert_eq!(place.run("expiring").unwrap(), Exit::Ok);
    place.run(&add("a")).unwrap();
    place.run(&add("b").replace("14d", "30d")).unwrap();
    place
        .run(&add("c").replace("--for 14d", "--expires never"))
        .unwrap();
    assert_eq!(place.run("expiring --within 13d").unwrap(), Exit::Ok);
    assert_eq!(place.run("expiring --within 15d").unwrap(), Exit::Finding);
    let all = entries(&place.main(), clock::wall()).unwrap();
    let states: Vec<_> = all.iter().map(|entry| entry.state).collect();
    assert_eq!(states, ["in-force"; 3]);
    let later = span::after(clock::wall(), span::parse("20d").unwrap()).unwrap();
    let all = entries(&place.main(), later).unwrap();
    let states: Vec<_> = all.iter().map(|entry| entry.state).collect();
    assert_eq!(states, ["ended", "in-force", "in-force"]);
}

#[test]
fn length_counts_from_the_beginning() {
    let place = Place::new("");
    place
        .run(&add("a").replace("14d", "14d --not-before 2099-01-01"))
        .unwrap();
    let all = entries(&place.main(), clock::wall()).unwrap();
    let one = all.first().unwrap();
    assert_eq!(one.state, "not-yet");
    assert_eq!(one.not_before.as_deref(), Some("2099-01-01T00:00:00Z"));
    assert_eq!(one.expires, "2099-01-15T00:00:00Z");
}

#[test]
fn nothing_shown_disturbs_a_terminal() {
    let place = Place::new(
        "[[exception]]\nname = \"a\"\nsource = [\"10.0.0.0/8\"]\nuser = [\"e\\u001b[2Jtl\", \"\\u009b1m\"]\n\
         expires = \"never\"\nowner = \"o\"\nreason = \"r\"\n",
    );
    let all = entries(&place.main(), clock::wall()).unwrap();
    let text = all.first().unwrap().to_string();
    assert!(
        !text.replace('\n', "").contains(char::is_control),
        "{text:?}"
    );
    assert!(text.contains("user e\u{fffd}[2Jtl \u{fffd}1m"), "{text}");
}

/// An agent that answers each reload with the next of these words.
fn agent(place: &Place, answers: &'static [&'static str]) -> thread::JoinHandle<usize> {
    use std::io::{BufRead as _, Write as _};
    let socket = place.0.path().join("control.sock");
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        let mut left = answers.iter();
        while left.len() > 0 {
            let (mut stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            std::io::BufReader::new(&stream)
                .read_line(&mut line)
                .unwrap();
            let answer = if line.contains("reload") {
                left.next().unwrap()
            } else {
                r#"{"error":{"error":"another release"}}"#
            };
            writeln!(stream, "{answer}").unwrap();
        }
        answers.len()
    })
}

const TAKEN: &str = r#"{"reloaded":{"policy_version":7,"warnings":[]}}"#;
const REFUSED: &str = r#"{"rejected":{"error":"error: no room"}}"#;

#[test]
fn what_the_agent_refuses_is_put_back() {
    let place = Place::new("");
    place.run(&add("a")).unwrap();
    let before = place.text();
    // The second one tells it that all is as it was.
    let told = agent(&place, &[REFUSED, TAKEN]);
    assert_eq!(place.run(&add("b")).unwrap(), Exit::Config);
    assert_eq!(told.join().unwrap(), 2);
    assert_eq!(place.text(), before);

    let fresh = Place::new("");
    let told = agent(&fresh, &[REFUSED, TAKEN]);
    assert_eq!(fresh.run(&add("b")).unwrap(), Exit::Config);
    assert_eq!(told.join().unwrap(), 2);
    assert!(!fresh.file().exists());
}

#[test]
fn what_the_agent_takes_stays() {
    let place = Place::new("");
    let told = agent(&place, &[TAKEN]);
    assert_eq!(place.run(&add("a")).unwrap(), Exit::Ok);
    assert_eq!(told.join().unwrap(), 1);
    assert_eq!(place.names(), ["a"]);
}

#[test]
fn conditions_are_written_listed_and_told_apart() {
    let place = Place::new("");
    let words = "add --name c --uid 1001 7 --local-user root --cgroup /system.slice/app.service --program mysqldump --for 1d \
        --owner o --reason r";
    assert_eq!(place.run(words).unwrap(), Exit::Ok);
    let text = place.text();
    for line in [
        "programs = [\"mysqldump\"]",
        "uids = [1001, 7]",
        "local_users = [\"root\"]",
        "cgroups = [\"/system.slice/app.service\"]",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    assert!(!text.contains("source"), "{text}");
    let entries = entries(&place.main(), clock::wall()).unwrap();
    assert_eq!(entries[0].uids, [0, 1001, 7]);
    let shown = entries[0].to_string();
    for part in [
        "from this host",
        "program (claimed by the client) mysqldump",
        "local user root",
        "uid 0 1001 7",
        "cgroup /system.slice/app.service",
    ] {
        assert!(shown.contains(part), "{part} is not in {shown}");
    }

    // A claim is nothing that narrows: all addresses are everyone.
    let words = "add --name d --program mysql --source 0.0.0.0/0 --for 1d --owner o --reason r";
    assert_eq!(place.run(words).unwrap(), Exit::Usage);
    let words = "add --name d --local-user no-such-user-here --for 1d --owner o --reason r";
    let error = place.run(words).unwrap_err().to_string();
    assert!(error.contains("no user `no-such-user-here`"), "{error}");
    assert_eq!(place.names(), ["c"]);
}
