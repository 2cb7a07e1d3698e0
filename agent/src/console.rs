//! What commands print: data on standard output, talk on standard error.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};

/// Prints data. A reader that has gone away (`musttls status | head`) is no error.
pub fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

/// Prints data as JSON.
pub fn print_json(data: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(data).context("encode JSON")?;
    text.push('\n');
    print(&text)
}

/// Says something to the person at the terminal. There is nowhere to say that this failed.
pub fn complain(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
}
