//! The subcommands. Each has a file of its own, which names the steps of the command in their
//! order.

mod adopt;
mod can_fit;
mod canary;
mod completions;
mod config;
mod doctor;
mod history;
mod http;
mod lock;
mod logs;
mod man;
mod prepare_phase;
mod release_all;
mod release_idle;
mod restart;
mod run;
mod start;
mod status;
mod stop;
mod watch;

use crate::canary::guardian;
use crate::cli::{Cli, Command};
use crate::config::Environment;
use crate::error::{Failure, Result};
use crate::exit::Answer;
use crate::lock::watchdog;
use crate::report::Form;
use crate::session::{Session, load};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Carries out the command that was typed and prints its report.
pub fn run(cli: &Cli, environment: &Environment) -> Result<Answer> {
    dispatch(cli, environment, &Form::new(cli.global.json, environment))
}

/// Carries out the command that was typed, with its report in the given form.
fn dispatch(cli: &Cli, environment: &Environment, form: &Form) -> Result<Answer> {
    // A panic has already printed where it happened; what remains is the exit code of a bug.
    let run = AssertUnwindSafe(|| choose(cli, environment, form));
    catch_unwind(run).unwrap_or_else(|_| Err(Failure::bug("gpuctl panicked")))
}

fn choose(cli: &Cli, environment: &Environment, form: &Form) -> Result<Answer> {
    let open = || Session::open(&cli.global, environment, form.clone());
    let session = || open().map(Session::settled);
    match &cli.command {
        Command::Status(arguments) => match arguments.watch {
            Some(every) => watch::run(every, session()?),
            // `status` settles a trial by the look that it takes anyway; two looks might take too
            // long.
            None => status::run(arguments, open()?),
        },
        Command::CanFit(arguments) => can_fit::run(arguments, session()?),
        Command::PreparePhase(arguments) => prepare_phase::run(arguments, session()?),
        Command::Start(arguments) => start::run(arguments, session()?),
        Command::Restart(arguments) => restart::run(arguments, session()?),
        Command::Stop(arguments) => stop::run(arguments, session()?),
        Command::ReleaseAll(arguments) => release_all::run(arguments, session()?),
        Command::ReleaseIdle(arguments) => release_idle::run(arguments, session()?),
        Command::Run(arguments) => run::run(arguments, session()?, environment),
        Command::Adopt(arguments) => adopt::run(arguments, session()?),
        Command::Logs(arguments) => logs::run(arguments, session()?),
        Command::Lock(command) => lock::run(command, session()?),
        Command::Http => http::run(&cli.global, environment),
        Command::Canary(command) => canary::run(command, open()?),
        Command::History(arguments) => history::run(arguments, &session()?),
        Command::Guardian(companion) => {
            Ok(guardian::serve(&load(&cli.global, environment)?, companion.of)?)
        }
        Command::Watchdog(companion) => {
            let pay = |debt| run::pay(&load(&cli.global, environment)?, debt);
            watchdog::serve(companion.of, pay)
        }
        Command::Doctor => doctor::run(&cli.global, environment),
        Command::Config(command) => config::run(command, &cli.global, environment, session),
        Command::Completions(arguments) => completions::run(arguments),
        Command::Complete(arguments) => completions::complete(arguments, environment),
        Command::Man(arguments) => man::run(arguments),
    }
}
