//! What clap has to say of a bad command line, as a failure of ours.

use crate::error::Failure;
use crate::exit::Code;
use clap::error::ErrorKind;

/// Returns the failure that a bad command line is.
pub fn mistake(error: &clap::Error) -> Failure {
    let message = error.to_string();
    // What is missing is listed below the first line; the usage and the advice come after a blank one.
    let what: Vec<&str> = message.lines().map(str::trim).take_while(|l| !l.is_empty()).collect();
    let what = match error.kind() {
        // clap has only the help to say then.
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "a subcommand is missing".to_owned(),
        _ => what.join(" ").trim_start_matches("error: ").to_owned(),
    };
    Failure::new(Code::Usage, what).hint("see `gpuctl --help`")
}
