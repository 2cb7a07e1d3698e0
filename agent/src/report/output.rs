//! Where a report goes: a file that is replaced in one step, or standard output.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, IsTerminal, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::console::print;
use crate::error::Failed;

/// Rights of a report: it names users and addresses.
const MODE: u32 = 0o640;
/// What is said instead of HTML on a terminal.
pub const TERMINAL: &str = "a report is a page of HTML, which a terminal does not show\n  help: name a file for it and open that in a \
    browser: musttls report --output report.html";

/// Whether the report would go to a terminal, as far as is known before it is made.
#[must_use]
pub fn is_for_terminal(output: Option<&Path>) -> bool {
    output.is_none() && io::stdout().is_terminal()
}

/// Writes it. Who reads the file sees the former report or the new one.
pub fn write(output: Option<&Path>, page: &str) -> Result<()> {
    let Some(path) = output else {
        return print(page);
    };
    let failed = || {
        Failed::new(
            format!("write the report {}", path.display()),
            "name a file in a directory where you may write",
        )
    };
    match fs::metadata(path) {
        // A pipe or a device is written to, and not replaced.
        Ok(metadata) if !metadata.is_file() => {
            let mut file = OpenOptions::new()
                .write(true)
                .open(path)
                .with_context(failed)?;
            if file.is_terminal() {
                bail!("{TERMINAL}");
            }
            file.write_all(page.as_bytes()).with_context(failed)
        }
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(failed),
        _ => replace(path, page).with_context(failed),
    }
}

fn replace(path: &Path, page: &str) -> io::Result<()> {
    // A link stays one.
    let path = match fs::canonicalize(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => path.to_owned(),
        found => found?,
    };
    let Some(name) = path.file_name() else {
        return Err(io::Error::other("it is no path of a file"));
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.new", std::process::id()));
    let new: PathBuf = path.with_file_name(hidden);
    let written = make(&new, page).and_then(|()| fs::rename(&new, &path));
    if written.is_err() {
        drop(fs::remove_file(&new));
    }
    written
}

fn make(new: &Path, page: &str) -> io::Result<()> {
    // Not there before: in a directory of others it could be a link.
    let mut file: File = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(MODE)
        .open(new)?;
    file.write_all(page.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    #[test]
    fn a_file_is_replaced_and_a_link_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("r.html"), directory.path().join("l"));
        write(Some(&file), "one").unwrap();
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, MODE);
        symlink(&file, &link).unwrap();
        write(Some(&link), "two").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }

    #[test]
    fn what_is_no_file_stays_what_it_is() {
        write(Some(Path::new("/dev/null")), "page").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let error = write(Some(Path::new("/nonexistent/r.html")), "page").unwrap_err();
        let text = crate::error::text(&error);
        assert!(
            text.contains("/nonexistent/r.html") && text.contains("help: "),
            "{text}"
        );
    }
}
