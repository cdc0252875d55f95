//! The command line of `gpuctl config`.

use super::examples;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Write a commented starting configuration
    ///
    /// It looks at this machine: the card's processes, the ports that model servers use,
    /// containers, units and compose projects, and writes a service for each server that it finds.
    /// Guesses are marked as such. It starts and stops nothing. If nothing is found, a minimal
    /// configuration is written.
    #[command(after_long_help = examples::CONFIG_INIT)]
    Init(ConfigInitArgs),
    /// Write a configuration for the services of a compose project that use the card
    ///
    /// It takes the services that reserve a GPU or have a label gpuctl.KEY, such as gpuctl.vram_mb.
    /// Ports, stop_grace_period and start_period are taken over; guesses are marked as such. It
    /// needs the compose plugin of Docker's client, or the project as JSON (a file named .json).
    #[command(after_long_help = examples::CONFIG_IMPORT)]
    Import(ConfigImportArgs),
    /// Validate the configuration
    #[command(after_long_help = examples::CONFIG_CHECK)]
    Check,
    /// Print the effective configuration, secrets masked
    #[command(after_long_help = examples::CONFIG_SHOW)]
    Show,
    /// Print where the configuration is
    #[command(after_long_help = examples::CONFIG_PATH)]
    Path,
    /// Print the JSON Schema of the configuration
    #[command(after_long_help = examples::CONFIG_SCHEMA)]
    Schema,
}

#[derive(Debug, Args)]
pub struct ConfigImportArgs {
    /// The project's compose file, or what `docker compose config --format json` prints
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub file: PathBuf,
    #[command(flatten)]
    pub target: ConfigTarget,
}

// Where a first configuration is written. A doc comment would become the help of both commands.
#[derive(Debug, Args)]
pub struct ConfigTarget {
    /// File to write [default: --config, $GPUCTL_CONFIG, or ~/.config/gpuctl/config.toml]
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct ConfigInitArgs {
    #[command(flatten)]
    pub target: ConfigTarget,
    /// Write what is found on this machine; the default
    #[arg(long, conflicts_with = "example")]
    pub detect: bool,
    /// Write an example instead
    #[arg(long, value_name = "NAME")]
    pub example: Option<ConfigExample>,
}

/// What `config init` writes instead of what it finds.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ConfigExample {
    /// The four services of a video pipeline
    Pipeline,
    /// A machine for language models
    LlmBox,
    /// A small card and two programs
    SmallBox,
    /// The least that a configuration may say
    Minimal,
}
