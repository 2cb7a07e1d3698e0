//! The control socket: one request and one answer a connection, each a line of JSON.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::error::Failed;
use crate::status::{self, Status};

/// Version of the messages; both sides refuse another.
const VERSION: u32 = 1;
/// How long a peer may take for its message.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest request, in bytes.
const REQUEST_MAX: u64 = 4096;

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

/// Makes the socket at `path`: only its owner, root, may connect.
pub fn bind(path: &Path) -> Result<UnixListener> {
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
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("set the mode of {}", path.display()))?;
    Ok(listener)
}

/// Answers connections; commands go to the daemon by `commands`.
pub async fn serve(listener: UnixListener, commands: mpsc::Sender<Pending>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(converse(stream, commands.clone()));
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

async fn converse(mut stream: UnixStream, commands: mpsc::Sender<Pending>) {
    let answer = match timeout(PATIENCE, answer(&mut stream, commands)).await {
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

async fn answer(stream: &mut UnixStream, commands: mpsc::Sender<Pending>) -> Answer {
    let error = |error: String| Answer::Error { error };
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == 0 => {}
        Ok(peer) => {
            return error(format!(
                "user {} may not control the agent; root may",
                peer.uid()
            ));
        }
        Err(failure) => return error(format!("who is asking cannot be told: {failure}")),
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
    "no agent answers at {path}: {cause}\n  help: is `musttls run` running? Is this the [control] socket of its configuration?"
)]
pub struct NotRunning {
    path: String,
    cause: std::io::Error,
}

/// Who asks may not.
const ROOT_ONLY: &str = "run it as root: nobody else may control the agent";

/// Asks the agent at `path`.
pub fn ask(path: &Path, command: Command) -> Result<Answer> {
    let mut stream = match StdUnixStream::connect(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::PermissionDenied => {
            let path = path.display().to_string();
            return Err(NotRunning { path, cause }.into());
        }
        connected => connected
            .with_context(|| Failed::new(format!("connect to {}", path.display()), ROOT_ONLY))?,
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
        // It has answered already, without a look at the request: who asks may not.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
        sent => sent.context("send the request")?,
    }
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .context("read the agent's answer")?;
    serde_json::from_str(&answer).context("understand the agent's answer")
}
