//! `musttls top`: a live view of the running agent.
//!
//! | file | content |
//! |---|---|
//! | `mod` | the terminal, signals, and who asks the agent: all that waits |
//! | [`state`] | what is known and what keys do |
//! | [`session`] | what the audit file says of sessions in plaintext and of refusals |
//! | [`view`], [`lists`] | how it looks |
//!
//! The agent is asked by a thread of its own: one that hangs must not keep `q` from working.

pub mod lists;
pub mod session;
pub mod state;
pub mod view;

#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal as _, Stdout};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode,
    enable_raw_mode, size,
};
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};
use rustix::process::{Signal, getpid, getppid, getsid, kill_process};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use self::state::{Action, Report, Silence, State};
use self::view::Scene;
use crate::clock;
use crate::console::has_colors;
use crate::control::{self, Answer, Command, NotRunning};
use crate::datapath::Pins;
use crate::error::{Exit, Failed, exit_code, text};
use crate::trail::Tail;

/// Ages grow without an answer.
const REDRAW: Duration = Duration::from_secs(1);

/// Shows what the agent at `socket` says every `every`, until a key or a signal ends it.
pub fn run(socket: &Path, every: Duration) -> Result<Exit> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(
            anyhow!("standard input or output is no terminal").context(Failed::new(
                "show a live view",
                "run it in a terminal; musttls status prints the numbers once",
            )),
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the event loop")?;
    let _context = runtime.enter();
    let ends = Ends::new().context("take over signals")?;
    let mut screen = Screen::enter()?;
    runtime.block_on(Top::new(socket, every).work(&mut screen, ends))
}

/// The terminal while it belongs to the view; left as it was when this is dropped.
struct Screen {
    /// Whether it is the view's now. Left twice, the cursor would go back over what was printed in between.
    is_taken: Arc<AtomicBool>,
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    fn enter() -> Result<Self> {
        // A panic would otherwise tell its message to the screen that is about to vanish.
        let is_taken = Arc::new(AtomicBool::new(false));
        let taken = Arc::clone(&is_taken);
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            leave(&taken);
            former(panic);
        }));
        take(&is_taken).context("take over the terminal")?;
        let terminal = blank().inspect_err(|_| leave(&is_taken))?;
        Ok(Self { is_taken, terminal })
    }

    fn draw(&mut self, state: &mut State, scene: &Scene<'_>) -> Result<()> {
        if self.terminal.get_frame().area() != area()? {
            self.forget()?;
        }
        self.terminal
            .draw(|frame| view::draw(frame, state, scene))
            .map(drop)
            .context("draw on the terminal")
    }

    /// Has the next drawing go over everything.
    fn forget(&mut self) -> Result<()> {
        self.terminal = blank()?;
        Ok(())
    }

    /// Gives the terminal back, stops as a program does by SIGTSTP, and takes it again when somebody goes on with it.
    fn stop(&mut self) -> Result<()> {
        // A parent in another session cannot go on with it: it would hang for good (an orphaned process group, which
        // the kernel does not stop by SIGTSTP either).
        let session = getsid(None).context("find the session")?;
        if getppid().is_none_or(|parent| getsid(Some(parent)).ok() != Some(session)) {
            return Ok(());
        }
        leave(&self.is_taken);
        kill_process(getpid(), Signal::STOP).context("stop")?;
        take(&self.is_taken).context("take over the terminal again")?;
        self.forget()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave(&self.is_taken);
    }
}

/// An empty screen of the size that the terminal has now. Its size is fixed: a change of size is looked for before each drawing, because
/// to clear the screen by itself ratatui asks the terminal for its cursor, and the answer would go to who reads the keys.
fn blank() -> Result<Terminal<CrosstermBackend<Stdout>>> {
    execute!(io::stdout(), Clear(ClearType::All)).context("clear the terminal")?;
    let options = TerminalOptions {
        viewport: Viewport::Fixed(area()?),
    };
    Terminal::with_options(CrosstermBackend::new(io::stdout()), options)
        .context("draw on the terminal")
}

fn area() -> Result<Rect> {
    let (columns, rows) = size().context("measure the terminal")?;
    Ok(Rect::new(0, 0, columns, rows))
}

fn take(is_taken: &AtomicBool) -> io::Result<()> {
    is_taken.store(true, Ordering::Relaxed);
    enable_raw_mode()
        .and_then(|()| execute!(io::stdout(), EnterAlternateScreen, Hide))
        .inspect_err(|_| leave(is_taken))
}

/// Does what can be done: a terminal that is gone needs nothing.
fn leave(is_taken: &AtomicBool) {
    if is_taken.swap(false, Ordering::Relaxed) {
        drop(execute!(io::stdout(), LeaveAlternateScreen, Show));
        drop(disable_raw_mode());
    }
}

/// Signals that end the view or stop it. A terminal in raw mode sends none for Ctrl-C and Ctrl-Z: these are others'.
struct Ends {
    interrupt: Signals,
    terminate: Signals,
    hang_up: Signals,
    quit: Signals,
    stop: Signals,
}

impl Ends {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            stop: signal(SignalKind::from_raw(Signal::TSTP.as_raw()))?,
        })
    }

    /// Waits for one.
    async fn next(&mut self) -> Action {
        tokio::select! {
            _ = self.stop.recv() => Action::Stop,
            _ = self.interrupt.recv() => Action::Quit,
            _ = self.terminate.recv() => Action::Quit,
            _ = self.hang_up.recv() => Action::Quit,
            _ = self.quit.recv() => Action::Quit,
        }
    }
}

struct Top {
    socket: String,
    state: State,
    has_colors: bool,
    questions: blocking::Sender<()>,
    reports: mpsc::UnboundedReceiver<Result<Report>>,
    /// When it was asked last.
    asked: Instant,
}

impl Top {
    fn new(socket: &Path, every: Duration) -> Self {
        let (questions, received) = blocking::channel();
        let (answer, reports) = mpsc::unbounded_channel();
        let asker = Asker {
            socket: socket.to_owned(),
            tail: None,
        };
        std::thread::spawn(move || asker.work(&received, &answer));
        Self {
            socket: socket.display().to_string(),
            state: State::new(every),
            has_colors: has_colors(),
            questions,
            reports,
            asked: Instant::now(),
        }
    }

    async fn work(mut self, screen: &mut Screen, mut ends: Ends) -> Result<Exit> {
        let mut keys = keys();
        let mut redraw = ticker();
        self.ask()?;
        loop {
            self.draw(screen)?;
            let due = self.asked + self.state.interval;
            let action = tokio::select! {
                action = ends.next() => action,
                event = keys.recv() => match event.context("the terminal is not read any more")? {
                    Ok(Event::Key(key)) => self.state.key(key),
                    Ok(_) => Action::Draw,
                    Err(error) => return Err(error).context("read the terminal"),
                },
                report = self.reports.recv() => {
                    let report = report.context("nobody asks the agent any more")??;
                    self.state.take(report, Instant::now());
                    Action::Draw
                }
                () = tokio::time::sleep_until(due.into()), if self.state.asked.is_none() && !self.state.is_paused => {
                    self.ask()?;
                    continue;
                }
                _ = redraw.tick() => Action::Draw,
            };
            match action {
                Action::Draw => {}
                Action::Redraw => screen.forget()?,
                Action::Quit => return Ok(Exit::Ok),
                Action::Stop => screen.stop()?,
            }
        }
    }

    fn ask(&mut self) -> Result<()> {
        self.questions
            .send(())
            .context("nobody asks the agent any more")?;
        self.asked = Instant::now();
        self.state.asked = Some(self.asked);
        Ok(())
    }

    fn draw(&mut self, screen: &mut Screen) -> Result<()> {
        let scene = Scene {
            socket: &self.socket,
            now: Instant::now(),
            now_ms: clock::wall_ms(),
            has_colors: self.has_colors,
        };
        screen.draw(&mut self.state, &scene)
    }
}

fn ticker() -> Interval {
    let mut ticker = interval(REDRAW);
    // After a stop, once is enough.
    ticker.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticker
}

/// What comes from the terminal, read by a thread that ends with the process.
fn keys() -> mpsc::UnboundedReceiver<io::Result<Event>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        loop {
            let event = event::read();
            let is_last = event.is_err();
            if sender.send(event).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

struct Asker {
    socket: PathBuf,
    tail: Option<Tail>,
}

impl Asker {
    fn work(
        mut self,
        questions: &blocking::Receiver<()>,
        reports: &mpsc::UnboundedSender<Result<Report>>,
    ) {
        while questions.recv().is_ok() {
            if reports.send(self.report()).is_err() {
                return;
            }
        }
    }

    /// An error if it is of no use to try again.
    fn report(&mut self) -> Result<Report> {
        let status = match control::ask(&self.socket, Command::Status) {
            Ok(Answer::Status(status)) => Ok(status),
            Ok(Answer::Error { error }) => Err(Silence {
                why: format!("the agent says: {error}"),
                gate: None,
            }),
            Ok(other) => Err(Silence {
                why: format!("the agent answered {other:?} to a question for its status"),
                gate: None,
            }),
            Err(error) if exit_code(&error) == Exit::NotPermitted => return Err(error),
            Err(error) => Err(silence(&error)),
        };
        let mut is_other = false;
        if let Ok(status) = &status {
            is_other = self.follow(&status.audit.target);
        }
        let (sessions, unread) = match &mut self.tail {
            Some(tail) => {
                let mut sessions = Vec::new();
                let looked = tail.look(|line| sessions.extend(session::read(line)));
                (sessions, looked.err().map(|error| format!("{error:#}")))
            }
            None if status.is_ok() => (
                Vec::new(),
                Some(
                    "records go to the agent's standard output; set [audit] path to a file"
                        .to_owned(),
                ),
            ),
            None => (Vec::new(), None),
        };
        Ok(Report {
            status,
            is_other_file: is_other,
            sessions,
            unread,
        })
    }

    /// Follows the file of audit records that the agent names; whether it is another than before.
    fn follow(&mut self, target: &str) -> bool {
        // Standard output has no path.
        let path = target.starts_with('/').then(|| Path::new(target));
        let is_other = self.tail.as_ref().map(Tail::path) != path;
        if is_other {
            self.tail = path.map(session::follow);
        }
        is_other
    }
}

/// Why nobody answers, in one line, and whether the gate is on all the same.
fn silence(error: &anyhow::Error) -> Silence {
    let whole = text(error);
    let why = whole.lines().next().unwrap_or_default().to_owned();
    let gate = error
        .is::<NotRunning>()
        .then(|| Pins::find().ok().map(|pins| pins.is_some()))
        .flatten();
    Silence { why, gate }
}
