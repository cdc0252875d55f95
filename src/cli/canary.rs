//! The command line of `gpuctl canary`.

use super::{DryRun, examples};
use crate::config::Mode;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum CanaryCommand {
    /// Judge a candidate by arithmetic: exit 0 if it can work, 1 if not or out of bounds
    ///
    /// The live card is read; nothing is started or stopped.
    #[command(after_long_help = examples::CANARY_CHECK)]
    Check(CanaryCheckArgs),
    /// Try a candidate in the configured mode
    ///
    /// Mode canary stops production, starts the candidate in its place, asks it for one completion,
    /// and brings production back. A candidate that passes is written to promotions/. Outside the
    /// window, within the cooldown or beyond the budget it is refused with exit code 75.
    #[command(after_long_help = examples::CANARY_RUN)]
    Run(CanaryRunArgs),
    /// Show mode, window, budget, runs, lock, and whether a restore is owed
    #[command(after_long_help = examples::CANARY_STATUS)]
    Status,
    /// Recover from an interrupted trial: bring production back and record its downtime
    #[command(after_long_help = examples::CANARY_RECOVER)]
    Recover,
    /// Reset this night's downtime budget (for emergencies; recorded in the audit)
    #[command(after_long_help = examples::CANARY_RESET_BUDGET)]
    ResetBudget,
    /// Release a lock that is stuck (for emergencies; recorded in the audit)
    #[command(after_long_help = examples::CANARY_UNLOCK)]
    Unlock(CanaryUnlockArgs),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct CandidateArgs {
    /// JSON file with the candidate's parameters, or - for stdin
    #[arg(long, value_name = "FILE")]
    pub candidate: Option<PathBuf>,
    /// A parameter of the candidate (repeatable)
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
pub struct CanaryCheckArgs {
    #[command(flatten)]
    pub candidate: CandidateArgs,
}

#[derive(Debug, Args)]
pub struct CanaryRunArgs {
    #[command(flatten)]
    pub candidate: CandidateArgs,
    /// How to judge it [default: canary.mode]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<CanaryMode>,
    /// Waive the window and the cooldown, never the budget
    #[arg(long)]
    pub now: bool,
    #[command(flatten)]
    pub dry_run: DryRun,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum CanaryMode {
    /// by arithmetic only
    Predictive,
    /// by a real server in the place of production
    Canary,
}

impl From<CanaryMode> for Mode {
    fn from(mode: CanaryMode) -> Mode {
        match mode {
            CanaryMode::Predictive => Mode::Predictive,
            CanaryMode::Canary => Mode::Canary,
        }
    }
}

#[derive(Debug, Args)]
pub struct CanaryUnlockArgs {
    /// Required, because the lock is released whoever holds it
    #[arg(long, required = true)]
    pub force: bool,
}
