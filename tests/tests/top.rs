//! `musttls top`: in a terminal, with a real agent and a real server.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

use musttls_tests::agent::{Agent, Home};
use musttls_tests::client::{Client, Login, Tls};
use musttls_tests::place::agent_binary;
use musttls_tests::server::{Options, PASSWORD, Product};
use musttls_tests::site::Site;
use musttls_tests::terminal::{Screen, Terminal};
use musttls_tests::wait::{self, PATIENCE};
use rustix::process::{Pid, Signal, kill_process};

const SIZE: (u16, u16) = (80, 24);

fn top(home: &Home) -> Terminal {
    let binary = agent_binary().unwrap();
    let control = home.control();
    let words = ["top", "--interval", "1", "--socket"].map(Path::new);
    let words: Vec<_> = std::iter::once(binary.as_path())
        .chain(words)
        .chain(std::iter::once(control.as_path()))
        .collect();
    Terminal::run(&words, SIZE).unwrap()
}

fn assert_left(terminal: &mut Terminal) {
    let screen = terminal.screen().unwrap();
    assert!(!screen.is_alternate, "the alternate screen is still shown");
    assert!(screen.has_cursor, "the cursor is still hidden");
    assert!(terminal.is_cooked().unwrap(), "the terminal is still raw");
}

/// The number in the row of a kind of sessions.
fn count(screen: &Screen, kind: &str) -> Option<u64> {
    let row = screen.row(kind)?;
    let rest = row.strip_prefix(kind)?;
    rest.split_whitespace().next()?.parse().ok()
}

#[test]
fn a_refusal_is_shown_with_the_server_and_q_leaves_the_terminal_as_it_was() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let policy = format!(
        "[[server]]\nname = \"orders\"\nports = [{}]\nmode = \"enforce\"\n[[exception]]\nname = \"etl\"\n\
         source = [\"192.0.2.0/24\"]\nexpires = \"never\"\nowner = \"dba@example.com\"\nreason = \"r\"\n",
        site.server.port()
    );
    let agent = Agent::start(&policy).unwrap();
    let mut terminal = top(agent.home());
    terminal
        .await_text("servers  orders enforce", PATIENCE)
        .unwrap();
    let screen = terminal.screen().unwrap();
    assert!(screen.is_alternate && !screen.has_cursor);
    assert_eq!(count(screen, "refused"), Some(0), "{}", screen.text());
    assert!(!terminal.is_cooked().unwrap());

    // Its name would set the terminal's title.
    let login =
        Login::new(&site.server, &site.net.app, Tls::Off).user("x\u{1b}]0;owned\u{7}", PASSWORD);
    let answer = Client::PyMySql.login(&site.net.app, &login).unwrap();
    assert_eq!(answer.error(), Some(3159), "{}", answer.text);
    site.tls_passes().unwrap();
    terminal
        .await_screen("the refusal and the TLS session", PATIENCE, |screen| {
            count(screen, "refused") == Some(1) && count(screen, "TLS").is_some_and(|n| n > 0)
        })
        .unwrap();
    terminal
        .await_text("x\u{fffd}]0;owned\u{fffd}", PATIENCE)
        .unwrap();
    terminal
        .await_screen("the version of the TLS session", PATIENCE, |screen| {
            screen
                .text()
                .lines()
                .any(|row| row.contains("1.3  ") && row.contains("100 %"))
        })
        .unwrap();

    terminal.keys("2").unwrap();
    terminal
        .await_text("no-client-ssl  landed", PATIENCE)
        .unwrap();
    terminal.keys("\t").unwrap();
    terminal.await_text("dba@example.com", PATIENCE).unwrap();
    terminal.keys("\t").unwrap();
    terminal
        .await_screen("the server's mode", PATIENCE, |screen| {
            screen
                .row("enforce")
                .is_some_and(|row| row.contains("orders") && row.contains("yes"))
        })
        .unwrap();
    terminal.keys("/nothing of the kind\r").unwrap();
    terminal
        .await_text("nothing has `nothing of the kind` in it", PATIENCE)
        .unwrap();

    terminal.resize((40, 10)).unwrap();
    terminal.await_text("too small: 40x10", PATIENCE).unwrap();
    terminal.resize((120, 40)).unwrap();
    terminal
        .await_text("servers  orders enforce", PATIENCE)
        .unwrap();
    terminal.await_text("F10Quit", PATIENCE).unwrap();

    terminal.keys("q").unwrap();
    let status = terminal.await_end(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0));
    assert_left(&mut terminal);
    let said = String::from_utf8_lossy(terminal.said());
    assert!(
        !said.contains("\u{1b}]"),
        "a client's escape sequence reached the terminal"
    );
}

#[test]
fn it_waits_for_an_agent_and_says_that_the_gate_of_a_killed_one_is_on() {
    let site = Site::new(&Options::new(Product::MariaDb)).unwrap();
    let home = Home::new().unwrap();
    home.configure("mode = \"enforce\"\npersist = true\n")
        .unwrap();
    let mut terminal = top(&home);
    terminal
        .await_text("NO ANSWER: no agent answers at", PATIENCE)
        .unwrap();
    terminal.await_text("No gate stays on", PATIENCE).unwrap();

    let mut agent = Agent::start_in(home).unwrap();
    let pid = agent.pid();
    terminal
        .await_text(&format!("process {pid}"), PATIENCE)
        .unwrap();
    terminal
        .await_screen("no banner", PATIENCE, |screen| {
            !screen.text().contains("NO ANSWER")
        })
        .unwrap();
    terminal
        .await_text("servers  default enforce", PATIENCE)
        .unwrap();

    agent.kill().unwrap();
    terminal.await_text("THE GATE IS ON", PATIENCE).unwrap();
    let answer = Client::PyMySql
        .login(
            &site.net.app,
            &Login::new(&site.server, &site.net.app, Tls::Required),
        )
        .unwrap();
    assert!(answer.is_in(), "{}", answer.text);

    terminal.signal(Signal::TERM).unwrap();
    let status = terminal.await_end(PATIENCE).unwrap();
    assert_eq!(status.code(), Some(0));
    assert_left(&mut terminal);
}

/// The process that `parent` waits for.
fn child_of(parent: u32) -> Pid {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = fs::read_to_string(path).unwrap();
    let pid = text.split_whitespace().next().unwrap().parse().unwrap();
    Pid::from_raw(pid).unwrap()
}

#[test]
fn a_stop_gives_the_terminal_to_the_shell_and_fg_takes_it_again() {
    // No agent is needed for that; the socket is nobody's.
    let binary: PathBuf = agent_binary().unwrap();
    let script = format!(
        "set -m; '{}' top --socket /nonexistent/s; for i in 1 2; do echo halted; read line; fg; done; echo over",
        binary.display()
    );
    let words = ["bash", "--norc", "-c", &script].map(Path::new);
    let mut terminal = Terminal::run(&words, SIZE).unwrap();
    for by_key in [true, false] {
        terminal.await_text("NO ANSWER", PATIENCE).unwrap();
        assert!(terminal.screen().unwrap().is_alternate);
        if by_key {
            terminal.keys("\u{1a}").unwrap();
        } else {
            kill_process(child_of(terminal.pid()), Signal::TSTP).unwrap();
        }
        terminal.await_text("halted", PATIENCE).unwrap();
        wait::until_true("the terminal to be as it was", PATIENCE, || {
            terminal.is_cooked()
        })
        .unwrap();
        assert_left(&mut terminal);
        terminal.keys("\n").unwrap();
    }
    terminal.await_text("NO ANSWER", PATIENCE).unwrap();
    terminal.keys("\u{3}").unwrap();
    terminal.await_text("over", PATIENCE).unwrap();
    terminal.await_end(PATIENCE).unwrap();
    assert_left(&mut terminal);
}

#[test]
fn without_a_terminal_it_says_what_to_do() {
    let home = Home::new().unwrap();
    let output = home.musttls(&["top"]).unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("is no terminal") && text.contains("musttls status"),
        "{text}"
    );
}
