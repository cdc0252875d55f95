//! One file a subcommand: each names, in order, the steps that it consists of.

mod act;
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
mod task;
mod watch;

use crate::canary::{debt, guardian};
use crate::cli::{Cli, Command, DrainArgs, Global, WaitArgs};
use crate::config::{Config, Environment, Span};
use crate::error::{Failure, Result};
use crate::execute::drain::Drain;
use crate::exit::{Answer, Code};
use crate::lock::watchdog;
use crate::model::Mb;
use crate::progress::Progress;
use crate::report::{Form, Report, print};
use crate::screen::Screen;
use crate::world::wait::Stop;
use crate::world::{caller, client};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// Every command that looks at the world works with this.
struct Session {
    config: Config,
    stop: Stop,
    /// The same while the lock is waited for, which ends when nobody waits for the answer any more.
    patient: Stop,
    progress: Progress,
    form: Form,
    /// Nothing but errors, and what is asked for as such.
    quiet: bool,
}

impl Session {
    fn open(global: &Global, environment: &Environment, form: Form) -> Result<Session> {
        caller::lift_limits()?;
        let stop =
            Stop::on_signals().map_err(|e| Failure::bug(format!("cannot handle signals: {e}")))?;
        Ok(Session {
            config: load(global, environment)?,
            patient: match &form {
                Form::Http(_) => client::watch()?.map_or(stop.clone(), |gone| stop.or_gone(&gone)),
                _ => stop.clone(),
            },
            stop,
            progress: Progress::new(
                global.quiet,
                Screen::of(rustix::stdio::stderr(), environment),
                log::max_level() > log::LevelFilter::Off,
            ),
            form,
            quiet: global.quiet,
        })
    }
}

impl Session {
    /// The same, once production that is back has settled the trial that was interrupted.
    fn settled(self) -> Session {
        debt::settle_by_itself(&self.config, &self.stop, &self.progress);
        self
    }

    /// Prints what was done or found, unless the exit code is all that is wanted.
    fn conclude(&self, report: &impl Report) -> Result<()> {
        match (self.quiet, &self.form) {
            (true, Form::Text(_)) => Ok(()),
            (_, form) => print(report, form),
        }
    }
}

/// A duration as it was typed.
fn duration(flag: &str, text: &str) -> crate::error::Result<Duration> {
    Span::parse(text).map(|span| span.0).ok_or_else(|| no_duration(flag, text, ", 7 days at most"))
}

fn no_duration(flag: &str, text: &str, limit: &str) -> Failure {
    Failure::new(Code::Usage, format!("{flag}: \"{text}\" is not a duration"))
        .hint(format!("90s, 10m, 1h30m or a number of seconds{limit}"))
}

/// Reads a size as it was typed.
fn size(text: &str) -> crate::error::Result<Mb> {
    Mb::parse(text).ok_or_else(|| {
        Failure::new(Code::Usage, format!("\"{text}\" is not a valid size"))
            .hint(format!("a size is {}", Mb::FORM))
    })
}

impl DrainArgs {
    /// Returns how long to wait for work in flight.
    fn drain(&self) -> Result<Drain> {
        match &self.drain {
            _ if self.no_drain => Ok(Drain::CutOff),
            Some(text) => duration("--drain", text).map(Drain::Within),
            None => Ok(Drain::Configured),
        }
    }
}

impl WaitArgs {
    /// Returns how long to wait for the lock.
    fn patience(&self, config: &Config) -> crate::error::Result<Duration> {
        match &self.wait {
            _ if self.no_wait => Ok(Duration::ZERO),
            Some(text) => duration("--wait", text),
            None => Ok(config.lock.wait),
        }
    }
}

fn load(global: &Global, environment: &Environment) -> Result<Config> {
    Config::load(global.config.as_deref(), global.gpu.as_deref(), environment)
}

/// Carries out what was typed, and prints what came of it.
pub fn run(cli: &Cli, environment: &Environment) -> Result<Answer> {
    dispatch(cli, environment, &Form::new(cli.global.json, environment))
}

/// The same, with the report in a form of the caller's.
fn dispatch(cli: &Cli, environment: &Environment, form: &Form) -> Result<Answer> {
    // A panic has told where it happened; what is left is the exit code of a bug.
    let run = AssertUnwindSafe(|| choose(cli, environment, form));
    catch_unwind(run).unwrap_or_else(|_| Err(Failure::bug("gpuctl panicked")))
}

fn choose(cli: &Cli, environment: &Environment, form: &Form) -> Result<Answer> {
    let session = || Session::open(&cli.global, environment, form.clone()).map(Session::settled);
    match &cli.command {
        Command::Status(arguments) => match arguments.watch {
            Some(every) => watch::run(every, session()?),
            None => status::run(arguments, session()?),
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
        Command::Canary(command) => {
            canary::run(command, Session::open(&cli.global, environment, form.clone())?)
        }
        Command::History(arguments) => history::run(arguments, &session()?),
        Command::Guardian(companion) => {
            Ok(guardian::serve(&load(&cli.global, environment)?, companion.of)?)
        }
        Command::Watchdog(companion) => {
            let pay = |debt| run::pay(&load(&cli.global, environment)?, debt);
            watchdog::serve(companion.of, pay)
        }
        Command::Doctor => doctor::run(&cli.global, environment),
        Command::Config(command) => config::run(command, &cli.global, environment),
        Command::Completions(arguments) => completions::run(arguments),
        Command::Complete(arguments) => completions::complete(arguments, environment),
        Command::Man(arguments) => man::run(arguments),
    }
}
