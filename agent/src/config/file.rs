//! Reading the file: nothing that is not a regular, small, UTF-8 text gets further.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::{ConfigError, report};

/// Largest configuration, in bytes: of one file and of all layers together. [`super::MAX_NETWORKS`] networks take less than 5 MB.
pub(super) const SIZE_MAX: u64 = 16 * 1024 * 1024;

/// The text of the file at `path`, and a warning about its permissions.
pub(super) fn read(path: &Path) -> Result<(String, Option<String>), ConfigError> {
    let shown = path.display();
    // O_NONBLOCK: opening a FIFO must not wait for its writer.
    let file = rustix::fs::open(
        path,
        OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map(File::from)
    .map_err(|error| unreadable(path, &error.into()))?;
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    if metadata.is_dir() {
        return Err(report::plain(
            &format!("cannot read {shown}: it is a directory"),
            "name the file in it, for example musttls.toml",
        ));
    }
    if !metadata.is_file() {
        return Err(report::plain(
            &format!("cannot read {shown}: it is not a regular file"),
            "write the configuration to a file; pipes and devices are not read",
        ));
    }
    let mut bytes = Vec::new();
    file.take(SIZE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(path, &error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > SIZE_MAX {
        return Err(report::plain(
            &format!("{shown} is larger than 16 MiB ({} bytes)", metadata.len()),
            "write neighbouring networks of an exception as one shorter prefix",
        ));
    }
    let text = String::from_utf8(bytes).map_err(|error| not_utf8(path, &error))?;
    let warning = (metadata.mode() & 0o002 != 0).then(|| {
        format!("{shown}: every user of this host can change this file; run chmod o-w {shown}")
    });
    Ok((text, warning))
}

fn unreadable(path: &Path, error: &std::io::Error) -> ConfigError {
    let remedy = match error.kind() {
        std::io::ErrorKind::NotFound => {
            "create it (packaging/musttls.toml documents every key), or name another file"
        }
        std::io::ErrorKind::PermissionDenied => "run as root, or let this user read the file",
        _ => "check the path and the file system it is on",
    };
    report::plain(&format!("cannot read {}: {error}", path.display()), remedy)
}

fn not_utf8(path: &Path, error: &std::string::FromUtf8Error) -> ConfigError {
    let valid = error.utf8_error().valid_up_to();
    let before = error.as_bytes().get(..valid).unwrap_or_default();
    let line = before.split(|&byte| byte == b'\n').count();
    let column = before
        .rsplit(|&byte| byte == b'\n')
        .next()
        .map_or(0, <[u8]>::len)
        + 1;
    report::plain(
        &format!(
            "{}:{line}: byte {column} of this line is not UTF-8 text",
            path.display()
        ),
        "save the file as UTF-8",
    )
}
