//! `musttls mode` and `musttls panic`: which servers refuse, which only report, and for how long.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use jiff::{Span, Timestamp};
use musttls_common::verdict::Mode;
use serde::Serialize;

use crate::clock;
use crate::config::edit::{self, NewMode};
use crate::config::{Config, DEFAULT_SERVER, Loaded, PastDates, drop_ins};
use crate::console::{complain, print, print_json, print_wrapped};
use crate::control::{self, NotRunning};
use crate::edits::{Change, change, changed, not_edited, text_of};
use crate::error::Exit;
use crate::status::ModeEnd;

/// The file of [`panic()`], in the directory of those laid over the main file.
const PANIC: &str = "99-panic.toml";

/// The mode of a server, as the files have it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    server: String,
    mode: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<ModeEnd>,
    /// Whether it has no mode of its own.
    inherited: bool,
}

/// Shows the modes that the files have.
pub fn show(main: &Path, json: bool) -> Result<Exit> {
    let loaded = Config::load(main, clock::wall(), PastDates::Warn)?;
    let config = loaded.config;
    let entries: Vec<Entry> = config
        .indices()
        .map(|index| Entry {
            server: config.server_name(index).to_owned(),
            mode: config.mode_of(index).as_str(),
            end: ModeEnd::of(&config, index),
            inherited: index != 0 && !config.has_mode(index),
        })
        .collect();
    if json {
        print_json(&entries)?;
        return Ok(Exit::Ok);
    }
    let socket = &config.control.socket;
    let answer = control::ask(socket, control::Command::Status);
    if answer.is_err_and(|error| error.is::<NotRunning>()) {
        complain(&format!(
            "note: no agent answers at {}: these are the modes of the files",
            socket.display()
        ));
    }
    if config.panic {
        complain("All servers are in observe mode, because of `panic`: musttls panic --end");
    }
    for Entry {
        server, mode, end, ..
    } in &entries
    {
        let end = end.as_ref().map_or_else(String::new, ModeEnd::to_string);
        print(format!("{server:<20} {mode} {end}").trim_end())?;
        print("\n")?;
    }
    Ok(Exit::Ok)
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Order {
    /// The mode.
    pub mode: Mode,
    /// On which server; on all without a mode of their own.
    pub server: Option<String>,
    /// For how long; for good.
    pub length: Option<Span>,
    /// Not only said.
    pub execute: bool,
}

/// Sets a mode in the files and has the running agent apply it. Enforcing that is not to be executed is only described, by `preview` of the
/// configuration as it would be.
pub fn set(
    main: &Path,
    order: &Order,
    preview: impl FnOnce(&Config) -> Result<Exit>,
) -> Result<Exit> {
    let now = clock::wall();
    let loaded = Config::load(main, now, PastDates::Warn)?;
    let (index, server) = place(&loaded.config, order.server.as_deref())?;
    let config = &loaded.config;
    for other in config.indices() {
        if index == 0 && other != 0 && config.has_mode(other) {
            complain(&format!(
                "note: {} has a mode of its own, {}, and keeps it",
                config.server_name(other),
                config.mode_of(other).as_str()
            ));
        }
    }
    if config.panic {
        complain(
            "note: all servers are in observe mode, because of `panic`, until musttls panic --end",
        );
    }
    let new = new_mode(config, index, order, now)?;
    let until = new.end.as_ref().map_or_else(String::new, |(until, then)| {
        format!(" until {until}, then {}", then.as_str())
    });
    let what = format!(
        "{}: {}{until}",
        config.server_name(index),
        new.mode.as_str()
    );
    if new.mode == Mode::Enforce && !order.execute {
        let changes = changes(main, &loaded, server, &new)?;
        let layers = changed(loaded.layers, &changes);
        let proposed = Config::check(layers, now, PastDates::Warn)?;
        print_wrapped(&format!("would set {what}\n"))?;
        let exit = preview(&proposed.config)?;
        complain("Nothing was changed. To refuse plaintext logins: the same with --execute");
        return Ok(exit);
    }
    change(
        main,
        now,
        |loaded| changes(main, loaded, server, &new),
        &what,
    )
}

/// The entry in the table of servers that is meant, and its name if it has a section.
fn place<'s>(config: &Config, server: Option<&'s str>) -> Result<(u16, Option<&'s str>)> {
    let Some(name) = server.filter(|name| *name != DEFAULT_SERVER) else {
        return Ok((0, None));
    };
    let mut named = config.indices().filter(|index| *index != 0);
    let index = named.find(|index| config.server_name(*index) == name);
    let known = || -> Vec<&str> { config.indices().map(|it| config.server_name(it)).collect() };
    let index = index.ok_or_else(|| {
        anyhow!(
            "there is no [[server]] `{name}`\n  help: the servers are {}; add a [[server]] with its ports for another",
            known().join(", ")
        )
    })?;
    Ok((index, Some(name)))
}

fn new_mode(config: &Config, index: u16, order: &Order, now: Timestamp) -> Result<NewMode> {
    let mode = order.mode;
    let Some(length) = order.length else {
        return Ok(NewMode { mode, end: None });
    };
    // What it would be without this order: the mode that a timed one returns to.
    let mut plain = config.clone();
    plain.panic = false;
    let then = match plain.timed_mode_of(index) {
        (_, Some(end)) => end.then,
        (mode, None) => mode,
    };
    if then == mode {
        bail!(
            "{} is in {} mode already, and stays in it: --for has nothing to go back to",
            config.server_name(index),
            mode.as_str()
        );
    }
    let until = edit::end_in(now, length).map_err(|error| anyhow!("--for: {error}"))?;
    Ok(NewMode {
        mode,
        end: Some((until, then)),
    })
}

/// The files that are to change: the one that sets the mode, and others that set its end.
fn changes(
    main: &Path,
    loaded: &Loaded,
    server: Option<&str>,
    new: &NewMode,
) -> Result<Vec<Change>> {
    let mut texts = BTreeMap::new();
    let mut target: PathBuf = main.to_owned();
    for layer in loaded.layers.files() {
        let (path, text) = (layer.path(), layer.text());
        let is_it = match server {
            Some(name) => edit::has_server(text, name),
            None => edit::sets_mode(text),
        };
        if is_it.map_err(|error| not_edited(path, &error))? {
            path.clone_into(&mut target);
        }
        if server.is_none() {
            let dropped = edit::drop_mode_end(text).map_err(|error| not_edited(path, &error))?;
            texts.extend(dropped.map(|after| (path.to_owned(), after)));
        }
    }
    let text = match texts.remove(&target) {
        Some(text) => text,
        None => text_of(loaded, &target).unwrap_or_default(),
    };
    let after = edit::set_mode(&text, server, new).map_err(|error| not_edited(&target, &error))?;
    texts.insert(target, after);
    Ok(texts
        .into_iter()
        .map(|(path, after)| Change {
            before: text_of(loaded, &path),
            path,
            after: Some(after),
        })
        .collect())
}

/// Puts all servers in observe mode, whatever the other files say, or takes that back.
pub fn panic(main: &Path, end: bool) -> Result<Exit> {
    let now = clock::wall();
    let path = drop_ins(main).join(PANIC);
    let edit = |loaded: &Loaded| {
        let before = text_of(loaded, &path);
        if end && before.is_none() {
            bail!(
                "there is no {}: nobody has called musttls panic\n  help: musttls config show --origin shows what sets `panic`",
                path.display()
            );
        }
        let text = format!(
            "# musttls panic, {now:.0}. All servers are in observe mode until musttls panic --end.\npanic = true\n"
        );
        Ok(vec![Change {
            path: path.clone(),
            before,
            after: (!end).then_some(text),
        }])
    };
    let done = if end {
        "servers are in their own modes again"
    } else {
        "all servers are in observe mode: nothing is refused"
    };
    change(main, now, edit, done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use crate::span;

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(text: &str) -> Self {
            let place = Self(tempfile::tempdir().unwrap());
            let socket = place.0.path().join("control.sock");
            place.write(
                "musttls.toml",
                &format!("{text}\n[control]\nsocket = \"{}\"\n", socket.display()),
            );
            place
        }

        fn write(&self, name: &str, text: &str) {
            let path = self.0.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn main(&self) -> PathBuf {
            self.0.path().join("musttls.toml")
        }

        fn set(&self, mode: Mode, server: Option<&str>, length: Option<&str>) -> Result<Exit> {
            let order = Order {
                mode,
                server: server.map(str::to_owned),
                length: length.map(|text| span::parse(text).unwrap()),
                execute: true,
            };
            set(&self.main(), &order, |_| panic!("it is executed"))
        }

        fn modes(&self) -> Vec<(Mode, Option<Mode>)> {
            let loaded = Config::load(&self.main(), clock::wall(), PastDates::Refuse).unwrap();
            let config = loaded.config;
            config
                .indices()
                .map(|index| config.timed_mode_of(index))
                .map(|(mode, end)| (mode, end.map(|end| end.then)))
                .collect()
        }
    }

    const TWO: &str = "mode = \"observe\" # for now\n[[server]]\nname = \"orders\"\nports = [1]\n\
                       [[server]]\nname = \"hr\"\nports = [2]\nmode = \"observe\"\n";
    use Mode::{Enforce, Observe};

    #[test]
    fn a_mode_is_set_in_the_file_that_has_it() {
        let place = Place::new(TWO);
        assert_eq!(place.set(Enforce, None, None).unwrap(), Exit::Ok);
        assert_eq!(
            place.modes(),
            [(Enforce, None), (Enforce, None), (Observe, None)]
        );
        place.set(Enforce, Some("hr"), Some("30m")).unwrap();
        assert_eq!(place.modes()[2], (Enforce, Some(Observe)));
        // Longer: it goes back to what it was before the first.
        place.set(Enforce, Some("hr"), Some("2h")).unwrap();
        assert_eq!(place.modes()[2], (Enforce, Some(Observe)));
        place.set(Observe, Some("orders"), None).unwrap();
        assert_eq!(
            place.modes(),
            [(Enforce, None), (Observe, None), (Enforce, Some(Observe))]
        );
        let text = fs::read_to_string(place.main()).unwrap();
        assert!(text.contains("mode = \"enforce\" # for now\n"), "{text}");
        let error = place.set(Enforce, None, Some("1h")).unwrap_err();
        assert!(
            error.to_string().contains("nothing to go back to"),
            "{error}"
        );
        let error = place.set(Enforce, Some("sales"), None).unwrap_err();
        assert!(error.to_string().contains("default, orders, hr"), "{error}");
    }

    #[test]
    fn ends_in_other_layers_go_with_the_mode() {
        let place =
            Place::new("mode = \"observe\"\nmode_until = 2099-01-01\nmode_then = \"enforce\"\n");
        place.write("conf.d/10.toml", "mode = \"enforce\"\n");
        assert_eq!(place.modes(), [(Enforce, Some(Enforce))]);
        place.set(Observe, None, None).unwrap();
        assert_eq!(place.modes(), [(Observe, None)]);
        let text = fs::read_to_string(place.0.path().join("conf.d/10.toml")).unwrap();
        assert_eq!(text, "mode = \"observe\"\n");
    }

    #[test]
    fn enforcing_needs_to_be_said_twice() {
        let place = Place::new(TWO);
        let order = Order {
            mode: Enforce,
            server: None,
            length: None,
            execute: false,
        };
        let preview = |config: &Config| {
            assert_eq!(config.mode_of(0), Enforce);
            Ok(Exit::Finding)
        };
        assert_eq!(set(&place.main(), &order, preview).unwrap(), Exit::Finding);
        assert_eq!(place.modes()[0], (Observe, None));
    }

    #[test]
    fn panic_holds_over_everything_and_ends_by_command() {
        let place =
            Place::new("mode = \"enforce\"\n[[server]]\nname = \"a\"\nmode = \"enforce\"\n");
        // An exception that has ended is no reason to go on refusing.
        place.write(
            "conf.d/50-exceptions.toml",
            "[[exception]]\nname = \"old\"\nsource = [\"10.0.0.0/8\"]\nexpires = 2020-01-01\nowner = \"o\"\nreason = \"r\"\n",
        );
        assert!(panic(&place.main(), true).is_err());
        assert_eq!(panic(&place.main(), false).unwrap(), Exit::Ok);
        let load = || {
            Config::load(&place.main(), clock::wall(), PastDates::Warn)
                .unwrap()
                .config
        };
        assert_eq!([0, 1].map(|index| load().mode_of(index)), [Observe; 2]);
        assert_eq!(
            panic(&place.main(), false).unwrap(),
            Exit::Ok,
            "twice is once"
        );
        assert_eq!(panic(&place.main(), true).unwrap(), Exit::Ok);
        assert_eq!([0, 1].map(|index| load().mode_of(index)), [Enforce; 2]);
        assert!(!place.0.path().join("conf.d").join(PANIC).exists());
    }
}
