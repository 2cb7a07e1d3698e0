//! The control socket: one request and one answer a connection, each a line of JSON.
//!
//! The kernel lets in root and the members of the socket's group (its mode is 0660, or 0600 without a group). Root may ask everything;
//! they may ask for what changes nothing.

mod peer;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Group};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::config::{ControlConfig, DEFAULT_CONTROL_GROUP};
use crate::error::Failed;
use crate::status::{self, Status};

/// Version of the messages; both sides refuse another.
const VERSION: u32 = 1;
/// How long a peer may take for its message.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request, in bytes.
const REQUEST_MAX: u64 = 4096;
/// Most peers at a time that are not root: they must not take the descriptors that refusals need, nor root's place.
const READERS: usize = 32;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Command {
    /// What the agent sees and has done.
    Status,
    /// Read the configuration again.
    Reload,
    /// List the sessions older than the gate that are in the clear; end them if `execute`.
    KillPlaintext {
        /// Whether to end them.
        execute: bool,
    },
}

impl Command {
    /// Whether it changes nothing.
    const fn only_reads(self) -> bool {
        match self {
            Self::Status | Self::KillPlaintext { execute: false } => true,
            Self::Reload | Self::KillPlaintext { execute: true } => false,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Request {
    version: u32,
    command: Command,
}

/// What is answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// To [`Command::Status`].
    Status(Box<Status>),
    /// To [`Command::Reload`]: the version of the policy now in force, and warnings.
    Reloaded {
        /// Version of the policy.
        policy_version: u32,
        /// One line each.
        warnings: Vec<String>,
    },
    /// To [`Command::Reload`]: nothing was changed.
    Rejected {
        /// Why, pointing at the line.
        error: String,
    },
    /// To [`Command::KillPlaintext`].
    Plaintext {
        /// Those in the clear, as far as is known.
        sessions: Vec<status::Older>,
    },
    /// The request cannot be carried out.
    Error {
        /// Why.
        error: String,
    },
}

/// A command that waits for its answer.
pub type Pending = (Command, oneshot::Sender<Answer>);

/// The control socket of this agent.
#[derive(Debug)]
pub struct Control {
    listener: UnixListener,
    /// The group that reads.
    readers: Option<Gid>,
}

/// Makes the socket: its owner, root, may connect, and the group that reads.
pub fn bind(config: &ControlConfig) -> Result<Control> {
    let path = config.socket.as_path();
    let mut readers = readers(config.group.as_deref())?;
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| {
            Failed::new(
                format!("create {} for the control socket", directory.display()),
                "run as root, or set [control] socket to a path in a directory that exists",
            )
        })?;
    }
    // The lock says that no other agent runs, so what is there was left behind. Anything but a socket stays.
    let left_behind = std::fs::symlink_metadata(path)
        .is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()));
    if left_behind {
        std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).with_context(|| {
        Failed::new(
            format!("bind the control socket {}", path.display()),
            "set [control] socket to a path that is free",
        )
    })?;
    if let Some(gid) = readers
        && !give(path, gid, config.group.is_some())?
    {
        readers = None;
    }
    let mode = if readers.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(Control { listener, readers })
}

/// The group that reads: the one that is named, or the default one if it exists.
fn readers(name: Option<&str>) -> Result<Option<Gid>> {
    let help = || {
        let name = name.unwrap_or(DEFAULT_CONTROL_GROUP);
        Failed::new(
            format!("find the group {name} of the control socket"),
            "create it (groupadd --system), or set [control] group to a group of this host",
        )
    };
    match Group::from_name(name.unwrap_or(DEFAULT_CONTROL_GROUP)).with_context(help)? {
        Some(group) => Ok(Some(group.gid)),
        None if name.is_none() => Ok(None),
        None => Err(std::io::Error::other("there is no such group")).with_context(help),
    }
}

/// Gives the socket at `path` to a group. `false` if it cannot be and nobody has asked for it: in a unit without `CAP_CHOWN` the group
/// must be that of the process (`Group=`).
fn give(path: &Path, gid: Gid, asked_for: bool) -> Result<bool> {
    let owner = std::fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    if owner.gid() == gid.as_raw() {
        return Ok(true);
    }
    match std::os::unix::fs::chown(path, None, Some(gid.as_raw())) {
        Ok(()) => Ok(true),
        Err(error) if asked_for => Err(error).with_context(|| {
            Failed::new(
                format!("give {} to the group {gid}", path.display()),
                "run the agent in this group (Group= of the unit), or take out [control] group",
            )
        }),
        Err(error) => {
            tracing::warn!(
                %error,
                help = "run the agent in this group (Group= of the unit)",
                "members of the group {DEFAULT_CONTROL_GROUP} cannot ask for the status: its control socket cannot be given to them"
            );
            Ok(false)
        }
    }
}

/// Answers connections; commands go to the daemon by `commands`.
pub async fn serve(control: Control, commands: mpsc::Sender<Pending>) {
    let Control { listener, readers } = control;
    let seats = Arc::new(Semaphore::new(READERS));
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
                let seat = seats.clone().try_acquire_owned().ok();
                if seat.is_none() && !is_root {
                    turn_away(&stream);
                    continue;
                }
                let (seat, commands) = (seat.filter(|_| !is_root), commands.clone());
                tokio::spawn(async move {
                    converse(stream, readers, commands).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!(
                    %error,
                    socket = ?listener.local_addr().ok(),
                    help = "if too many files are open, raise LimitNOFILE= of the unit; it is tried again each second",
                    "the control socket takes no connection: no answer to musttls status and reload"
                );
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

/// Answers a peer for whom there is no room.
fn turn_away(stream: &UnixStream) {
    let error = format!("{READERS} others ask at this moment: try again");
    if let Ok(mut line) = serde_json::to_vec(&Answer::Error { error }) {
        line.push(b'\n');
        if let Err(error) = stream.try_write(&line) {
            tracing::debug!(%error, "the control peer is gone");
        }
    }
}

async fn converse(mut stream: UnixStream, readers: Option<Gid>, commands: mpsc::Sender<Pending>) {
    let answer = match timeout(PATIENCE, answer(&mut stream, readers, commands)).await {
        Ok(answer) => answer,
        Err(_elapsed) => Answer::Error {
            error: "no request within 5 s".to_owned(),
        },
    };
    let Ok(mut line) = serde_json::to_vec(&answer) else {
        return;
    };
    line.push(b'\n');
    match timeout(PATIENCE, stream.write_all(&line)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "the control peer is gone"),
        Err(_elapsed) => tracing::debug!("the control peer does not read"),
    }
}

/// What a peer may ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    Change,
    Read,
    Nothing,
}

/// The user id of the peer and what it may ask. It does not rest on the mode of the socket, which somebody may have changed.
fn right_of(stream: &UnixStream, readers: Option<Gid>) -> std::io::Result<(u32, Right)> {
    let peer = stream.peer_cred()?;
    if peer.uid() == 0 {
        return Ok((0, Right::Change));
    }
    let Some(readers) = readers.map(Gid::as_raw) else {
        return Ok((peer.uid(), Right::Nothing));
    };
    let is_reader = peer.gid() == readers || peer::groups(stream.as_fd())?.contains(&readers);
    let right = if is_reader {
        Right::Read
    } else {
        Right::Nothing
    };
    Ok((peer.uid(), right))
}

async fn answer(
    stream: &mut UnixStream,
    readers: Option<Gid>,
    commands: mpsc::Sender<Pending>,
) -> Answer {
    let error = |error: String| Answer::Error { error };
    let (uid, right) = match right_of(stream, readers) {
        Ok(found) => found,
        Err(failure) => return error(format!("who is asking cannot be told: {failure}")),
    };
    if right == Right::Nothing {
        return error(format!(
            "user {uid} may not control the agent; root may, and members of the group in [control] may ask"
        ));
    }
    let mut line = String::new();
    let (read, _) = stream.split();
    let mut reader = tokio::io::BufReader::new(read.take(REQUEST_MAX));
    if let Err(failure) = reader.read_line(&mut line).await {
        return error(format!("the request cannot be read: {failure}"));
    }
    let request: Request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(failure) => return error(format!("the request is not understood: {failure}")),
    };
    if request.version != VERSION {
        return error(format!(
            "the request has version {}, this agent speaks {VERSION}: use the musttls of the same release",
            request.version
        ));
    }
    if right == Right::Read && !request.command.only_reads() {
        return error(format!("user {uid} may not change anything; root may"));
    }
    let (reply, answer) = oneshot::channel();
    if commands.send((request.command, reply)).await.is_err() {
        return error("the agent is ending".to_owned());
    }
    answer
        .await
        .unwrap_or_else(|_| error("the agent is ending".to_owned()))
}

/// The agent does not answer.
#[derive(Debug, thiserror::Error)]
#[error(
    "no agent answers at {path}: {cause}\n  help: start it: systemctl start musttls (journalctl -u musttls says why it ended); or name its [control] socket: --socket"
)]
pub struct NotRunning {
    path: String,
    cause: std::io::Error,
}

/// Who asks may not.
const MAY_NOT: &str = "run it as root; members of the socket's group ([control] group) may ask for what changes nothing";

/// Asks the agent at `path`.
pub fn ask(path: &Path, command: Command) -> Result<Answer> {
    let mut stream = match StdUnixStream::connect(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::PermissionDenied => {
            let path = path.display().to_string();
            return Err(NotRunning { path, cause }.into());
        }
        connected => connected
            .with_context(|| Failed::new(format!("connect to {}", path.display()), MAY_NOT))?,
    };
    stream
        .set_read_timeout(Some(Duration::from_mins(1)))
        .context("set a timeout")?;
    let mut line = serde_json::to_vec(&Request {
        version: VERSION,
        command,
    })
    .context("encode the request")?;
    line.push(b'\n');
    match stream.write_all(&line) {
        // It has answered without reading the request: this peer may not ask.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        sent => sent.context("send the request")?,
    }
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .context("read the agent's answer")?;
    serde_json::from_str(&answer).context("understand the agent's answer")
}
