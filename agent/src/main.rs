//! `musttls`: see `musttls --help`.

use std::process::ExitCode;

use clap::Parser as _;
use musttls::cli::Cli;
use musttls::commands;
use musttls::config::ConfigError;
use musttls::console::complain;
use musttls::error::{self, exit_code};

fn main() -> ExitCode {
    let cli = Cli::parse();
    match commands::run(cli.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            let text = error::text(&error);
            // The errors of a configuration file are rendered whole.
            let text = if error.is::<ConfigError>() {
                text
            } else {
                format!("error: {text}")
            };
            complain(&text);
            exit_code(&error).into()
        }
    }
}
