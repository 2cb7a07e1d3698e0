//! The commands, but for the daemon itself.

mod past;
mod report;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use tracing_subscriber::EnvFilter;

use crate::audit::sink::AuditSink;
use crate::cli::Command;
use crate::cli::past::HistoryCommand;
use crate::cli::policy::ConfigCommand;
use crate::config::{Config, PastDates};
use crate::console::{complain, print, print_json, print_wrapped};
use crate::control::{self, Answer, NotRunning};
use crate::count::counted_of;
use crate::daemon::lock;
use crate::datapath::{Pins, pins};
use crate::error::Exit;
use crate::mode::Order;
use crate::{clock, daemon, events, except, mode, top, why};

/// Carries out a command.
pub fn run(command: Command) -> Result<Exit> {
    match command {
        Command::Run { config } => {
            start_logging();
            daemon::run(&config)
        }
        Command::Status { output, control } => status(&control.socket, output.json),
        Command::Top { interval, control } => {
            top::run(&control.socket, Duration::from_secs(interval))
        }
        Command::Scan { output } => scan(output.json),
        Command::Doctor { output } => doctor(output.json),
        Command::Config {
            command: ConfigCommand::Check { file },
        } => check(&file),
        Command::Config {
            command:
                ConfigCommand::Show {
                    file,
                    origin,
                    output,
                },
        } => show(&file, origin, output.json),
        Command::Except { command, config } => except::run(&config, command),
        Command::Mode {
            mode: None,
            config,
            output,
            ..
        } => mode::show(&config, output.json),
        Command::Mode {
            mode: Some(name),
            server,
            length,
            execute,
            config,
            ..
        } => mode::set(
            &config,
            &Order {
                mode: name.into(),
                server,
                length,
                execute,
            },
            |proposed| past::preview(proposed, &config),
        ),
        Command::Panic { end, config } => mode::panic(&config, end),
        Command::Reload { control } => reload(&control.socket),
        Command::KillPlaintext {
            execute,
            output,
            control,
        } => kill_plaintext(&control.socket, execute, output.json),
        Command::Disarm => disarm(),
        Command::Clients {
            plaintext,
            of,
            past,
            output,
        } => past::clients(plaintext, of, &past, output.json),
        Command::Events(args) => events::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Simulate {
            policy,
            past,
            output,
        } => past::simulate(&policy, &past, output.json),
        Command::Report {
            policy,
            past,
            output,
        } => report::run(policy.as_deref(), &past, output.as_deref()),
        Command::Learn {
            of,
            past,
            terms,
            write,
            interactive,
            output,
        } => past::learn(
            of,
            &past,
            terms,
            past::Way {
                write: write.as_deref(),
                interactive,
                json: output.json,
            },
        ),
        Command::History {
            command,
            config,
            output,
        } => match command {
            None => past::history(&config, output.json),
            Some(HistoryCommand::Rebuild { config }) => past::rebuild(&config),
        },
    }
}

/// Logs go to standard error, which systemd gives to the journal; `RUST_LOG` sets what is logged.
fn start_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(filter);
    // The journal has its own time stamps and no colours.
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().with_ansi(false).init();
    } else {
        log.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .init();
    }
}

fn scan(json: bool) -> Result<Exit> {
    let found = crate::scan::scan()?;
    if json {
        print_json(&found)?;
    } else {
        print_wrapped(&found.to_string())?;
    }
    Ok(Exit::Ok)
}

fn doctor(json: bool) -> Result<Exit> {
    if let Err(error) = crate::doctor::permitted() {
        complain(&format!("error: {error}"));
        return Ok(Exit::NotPermitted);
    }
    let report = crate::doctor::examine();
    if json {
        print_json(&report)?;
    } else {
        print_wrapped(&report.to_string())?;
    }
    Ok(if report.can_enforce {
        Exit::Ok
    } else {
        Exit::Finding
    })
}

fn check(file: &Path) -> Result<Exit> {
    let loaded = Config::load(file, clock::wall(), PastDates::Refuse)?;
    for warning in &loaded.warnings {
        complain(&format!("warning: {warning}"));
    }
    let files = match loaded.layers.files().count() {
        1 => String::new(),
        files => format!(", in {files} files"),
    };
    let config = loaded.config;
    // No mistake of the file: it may be checked elsewhere, or as a user who may not write there.
    if let Err(error) = AuditSink::examine(&config.audit) {
        complain(&format!(
            "warning: on this host and as this user, `musttls run` would not start: {error}"
        ));
    }
    print(&format!(
        "{}: good: {}, {} with settings of {} own, {}{files}\n",
        file.display(),
        config.mode_of(0).as_str(),
        counted_of(config.servers.len(), "server", "servers"),
        if config.servers.len() == 1 {
            "its"
        } else {
            "their"
        },
        counted_of(config.exceptions.len(), "exception", "exceptions")
    ))?;
    Ok(Exit::Ok)
}

fn show(file: &Path, origin: bool, json: bool) -> Result<Exit> {
    let loaded = Config::load(file, clock::wall(), PastDates::Warn)?;
    for warning in &loaded.warnings {
        complain(&format!("warning: {warning}"));
    }
    let effective = loaded.effective(origin);
    if json {
        print_json(&effective.json())?;
    } else {
        print(&effective.to_string())?;
    }
    Ok(Exit::Ok)
}

/// What the agent answers, or `None` after saying that none runs.
fn ask(socket: &Path, command: control::Command) -> Result<Option<Answer>> {
    match control::ask(socket, command) {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.is::<NotRunning>() => {
            complain(&format!("error: {error:#}"));
            if Pins::find().is_ok_and(|pins| pins.is_some()) {
                complain(
                    "The gate is on all the same: it goes on by the last policy, and refused clients get no answer. \
                     Start an agent; or take it off: musttls disarm",
                );
            }
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn status(socket: &Path, json: bool) -> Result<Exit> {
    match ask(socket, control::Command::Status)? {
        Some(Answer::Status(status)) => {
            if json {
                print_json(&status)?;
            } else {
                print_wrapped(&status.to_string())?;
            }
            Ok(Exit::Ok)
        }
        None => Ok(Exit::NotRunning),
        Some(Answer::Error { error }) => bail!("{error}"),
        Some(other) => bail!("the agent answered {other:?} to a question for its status"),
    }
}

fn kill_plaintext(socket: &Path, execute: bool, json: bool) -> Result<Exit> {
    let sessions = match ask(socket, control::Command::KillPlaintext { execute })? {
        Some(Answer::Plaintext { sessions }) => sessions,
        None => return Ok(Exit::NotRunning),
        Some(Answer::Error { error }) => bail!("{error}"),
        Some(other) => bail!("the agent answered {other:?} to a question for plaintext sessions"),
    };
    let exit = if sessions.iter().any(|session| session.error.is_some()) {
        Exit::Finding
    } else {
        Exit::Ok
    };
    if json {
        print_json(&sessions)?;
        return Ok(exit);
    }
    if sessions.is_empty() {
        print(
            "no session older than the gate or its enforcement is in the clear, as far as is known\n",
        )?;
    }
    for session in &sessions {
        let is_due = session.certainty.as_deref() == Some("certain") && session.exception.is_none();
        let what = match (&session.error, session.killed, is_due) {
            (Some(error), ..) => format!("not ended: {error}"),
            (None, true, _) => "ended".to_owned(),
            (None, false, true) => "would be ended".to_owned(),
            (None, false, false) => "stays".to_owned(),
        };
        print_wrapped(&format!("{session}: {what}\n"))?;
    }
    if !execute && !sessions.is_empty() {
        complain("Nothing was changed. To end them: musttls kill-plaintext --execute");
    }
    Ok(exit)
}

fn disarm() -> Result<Exit> {
    // While it is held, no agent starts.
    let _lock = lock::take(Path::new(lock::PATH))?;
    let said = if pins::disarm()? {
        "the gate is off: plaintext logins pass from now on\n"
    } else {
        "no gate was on\n"
    };
    print(said)?;
    Ok(Exit::Ok)
}

fn reload(socket: &Path) -> Result<Exit> {
    match ask(socket, control::Command::Reload)? {
        Some(Answer::Reloaded {
            policy_version,
            warnings,
        }) => {
            for warning in &warnings {
                complain(&format!("warning: {warning}"));
            }
            print(&format!("policy version {policy_version} is in force\n"))?;
            Ok(Exit::Ok)
        }
        Some(Answer::Rejected { error }) => {
            complain(&error);
            complain("The old policy stays in force.");
            Ok(Exit::Config)
        }
        None => Ok(Exit::NotRunning),
        Some(Answer::Error { error }) => bail!("{error}"),
        Some(other) => bail!("the agent answered {other:?} to a reload"),
    }
}
