//! One file a subcommand: each names, in order, the steps that it consists of.

mod act;
mod can_fit;
mod config;
mod prepare_phase;
mod release_all;
mod start;
mod status;
mod stop;

use crate::cli::{Cli, Command, Global};
use crate::config::{Config, Environment};
use crate::exit::Answer;
use crate::report::progress::Progress;
use crate::world::nvml::Reader;
use crate::world::wait::Stop;
use anyhow::{Context, Result};

/// What every command that looks at the world works with.
struct Session {
    config: Config,
    stop: Stop,
    reader: Reader,
    progress: Progress,
    json: bool,
}

impl Session {
    fn open(global: &Global, environment: &Environment) -> Result<Session> {
        let config = load(global, environment)?;
        let stop = Stop::on_signals().context("cannot handle signals")?;
        Ok(Session {
            reader: Reader::open(&config.gpu),
            config,
            stop,
            progress: Progress::new(global.quiet),
            json: global.json,
        })
    }
}

fn load(global: &Global, environment: &Environment) -> Result<Config> {
    Ok(Config::load(global.config.as_deref(), global.gpu.as_deref(), environment)?)
}

pub fn run(cli: &Cli, environment: &Environment) -> Result<Answer> {
    let session = || Session::open(&cli.global, environment);
    match &cli.command {
        Command::Status(arguments) => status::run(arguments, session()?),
        Command::CanFit(arguments) => can_fit::run(arguments, session()?),
        Command::PreparePhase(arguments) => prepare_phase::run(arguments, session()?),
        Command::Start(arguments) => start::run(arguments, session()?),
        Command::Stop(arguments) => stop::run(arguments, session()?),
        Command::ReleaseAll(arguments) => release_all::run(arguments, session()?),
        Command::Config(command) => config::run(command, &cli.global, environment),
    }
}
