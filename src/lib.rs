//! gpuctl shares one GPU between services that do not fit on it together. This file parses the
//! command line, runs the command and sets the exit code.

mod arguments;
mod canary;
mod cli;
mod commands;
mod completion;
mod config;
mod doctor;
mod error;
mod execute;
mod exit;
mod history;
mod http;
mod inventory;
mod lock;
mod manual;
mod model;
mod notes;
mod observe;
mod pattern;
mod plan;
mod progress;
#[cfg(any(test, fuzzing))]
pub mod properties;
mod redact;
mod report;
mod screen;
mod session;
mod step;
mod world;

use clap::Parser;
use clap::error::ErrorKind;
use config::Environment;
use exit::{Answer, Code};
use signal_hook::consts::SIGINT;
use std::process::ExitCode;

/// Runs the whole program, and returns its exit code.
pub fn main() -> ExitCode {
    world::caller::reset_signals();
    world::host::share_heap();
    let environment = Environment::of_process();
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return explain_usage(&error, &environment),
    };
    start_logging(&cli.global, &environment);
    let status = match commands::run(&cli, &environment) {
        Ok(answer) => {
            if answer == Answer::Interrupted {
                // This normally ends the process; only if it does not is there a status to return.
                let _ = signal_hook::low_level::emulate_default_handler(SIGINT);
            }
            answer.status()
        }
        Err(failure) => {
            report::print_failure(&failure, cli.global.json, &environment);
            failure.code.status()
        }
    };
    world::command::leave();
    ExitCode::from(status)
}

/// Prints why the command line was not taken. Help and version are answers, and a call without a
/// command is shown the help; everything else is a bad command line.
fn explain_usage(error: &clap::Error, environment: &Environment) -> ExitCode {
    let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let is_help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    let words: Vec<String> =
        std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    // Words after `--` are for the command of `run`.
    let as_json = words.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    if is_answer || (is_help && !as_json) {
        let unprinted = error.print().is_err_and(|e| e.kind() != std::io::ErrorKind::BrokenPipe);
        let code = match (is_answer, unprinted) {
            (true, false) => 0,
            (true, true) => Code::Io.status(),
            // If nobody reads the help, there is nobody to tell.
            (false, _) => Code::Usage.status(),
        };
        return ExitCode::from(code);
    }
    let failure = cli::mistake(error, &words);
    report::print_failure(&failure, as_json, environment);
    ExitCode::from(failure.code.status())
}

/// Starts the diagnostics on stderr, if `-v`, `GPUCTL_LOG` or `RUST_LOG` asks for them; the first
/// of these counts.
fn start_logging(global: &cli::Global, environment: &Environment) {
    let wanted = environment.get("GPUCTL_LOG").or_else(|| environment.get("RUST_LOG"));
    let level = match (wanted, global.verbose) {
        (_, 1) => "gpuctl=debug",
        (_, 2..) => "debug",
        (Some(filter), 0) => filter,
        (None, 0) => return,
    };
    env_logger::Builder::new().parse_filters(level).format_timestamp_millis().init();
}
