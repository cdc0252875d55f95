//! What was typed: clap types only. Meaning (sizes, names, defaults) is given further on.

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Share one GPU between services that do not fit on it together
///
/// Each call looks at the world, decides, acts and reports by its exit code; nothing stays
/// behind. SIZE is a number of MB (1 MB is 1,048,576 bytes), or has a suffix: 20000, 20000MB,
/// 20GB, 20GiB; GB and GiB both mean 1024 MB.
#[derive(Debug, Parser)]
#[command(name = "gpuctl", version, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Configuration file [default: the first of $GPUCTL_CONFIG, ./gpuctl.toml,
    /// ~/.config/gpuctl/config.toml, /etc/gpuctl/config.toml]
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// GPU to manage, by NVML index or UUID [default: gpu.index or gpu.uuid of the configuration]
    #[arg(long, global = true, value_name = "INDEX|UUID")]
    pub gpu: Option<String>,
    /// Print one JSON document on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// No progress and no warnings, errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show what is done: -v every external command and its time, -vv more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show VRAM, GPU processes and the state of each service
    Status(Status),
    /// Answer by the exit code whether a size or a service fits now: 0 yes, 1 no
    CanFit(CanFit),
    /// Stop what a phase does not need, start what it needs, wait until it is ready
    PreparePhase(PreparePhase),
    /// Make one service ready, preempting lower priorities only as far as needed
    Start(Start),
    /// Stop services and wait for their VRAM
    Stop(Stop),
    /// Stop every managed service
    ReleaseAll(ReleaseAll),
    /// Make a service or phase ready, run a command under the GPU lock, pass on its exit code
    Run(Run),
    /// Take, give back and show the GPU lock
    #[command(subcommand)]
    Lock(Lock),
    /// Try a changed configuration of production before it is promoted
    #[command(subcommand)]
    Canary(Canary),
    /// Check every precondition, and say how to mend what fails: exit 1 if anything does
    Doctor,
    /// Show what gpuctl did, when, and how it ended
    History(History),
    /// Write, check and show the configuration
    #[command(subcommand)]
    Config(Config),
    /// Bring production back when the gpuctl of a trial is gone; `canary run` starts it
    #[command(hide = true)]
    Guardian(Companion),
    /// End a command whose gpuctl is gone; `run` starts it
    #[command(hide = true)]
    Watchdog(Companion),
}

#[derive(Debug, Args)]
pub struct Companion {
    /// Whose companion it is
    pub of: i32,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Exit 0 only if this service is ready or busy, else 1 (repeatable)
    #[arg(long, value_name = "SERVICE")]
    pub check: Vec<String>,
}

#[derive(Debug, Args)]
pub struct CanFit {
    /// A SIZE in MB (or 20GB), or a configured service
    #[arg(value_name = "SIZE|SERVICE")]
    pub what: String,
    /// Keep this much free beside it [default: gpu.reserve_mb]
    #[arg(long, value_name = "SIZE")]
    pub margin: Option<String>,
    /// Also count what running services have declared and not yet used
    #[arg(long)]
    pub budget: bool,
}

#[derive(Debug, Args)]
pub struct PreparePhase {
    /// Number or name of the phase
    pub phase: String,
    /// Stop only as much as the needed services require, lowest priority first
    #[arg(long)]
    pub lazy: bool,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub dry_run: DryRun,
}

#[derive(Debug, Args)]
pub struct Start {
    pub service: String,
    /// Refuse (3) rather than stop another service
    #[arg(long)]
    pub no_preempt: bool,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub dry_run: DryRun,
}

#[derive(Debug, Args)]
pub struct Stop {
    #[arg(required = true, value_name = "SERVICE")]
    pub services: Vec<String>,
    #[command(flatten)]
    pub force: Force,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub dry_run: DryRun,
}

#[derive(Debug, Args)]
pub struct ReleaseAll {
    #[command(flatten)]
    pub force: Force,
    #[command(flatten)]
    pub waiting: Waiting,
    #[command(flatten)]
    pub dry_run: DryRun,
}

#[derive(Debug, Args)]
pub struct Run {
    /// Service to make ready
    #[arg(required_unless_present = "phase")]
    pub service: Option<String>,
    /// Phase to prepare, by number or name, instead of one service
    #[arg(long, conflicts_with = "service")]
    pub phase: Option<String>,
    #[command(flatten)]
    pub waiting: Waiting,
    /// How long the command may take to end when the lock is lost, before it is killed
    #[arg(long, value_name = "DUR", default_value = "10s")]
    pub grace: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct Waiting {
    /// Wait so long for the GPU lock while another holds it [default: lock.wait]
    #[arg(long, value_name = "DUR", conflicts_with = "no_wait")]
    pub wait: Option<String>,
    /// Do not wait for the GPU lock: exit 75 while another holds it
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum Lock {
    /// Take the GPU lock and print its token
    Acquire(LockAcquire),
    /// Give the GPU lock back
    Release(LockRelease),
    /// Show who holds the GPU lock: exit 0 when it is free, 1 when it is held
    Status,
}

#[derive(Debug, Args)]
pub struct LockAcquire {
    /// What to show as the holder
    #[arg(default_value = "manual")]
    pub holder: String,
    /// When it ends by itself; nothing renews it [default: lock.ttl]
    #[arg(long, value_name = "DUR")]
    pub ttl: Option<String>,
    #[command(flatten)]
    pub waiting: Waiting,
    /// It also ends when this process does
    #[arg(long)]
    pub pid: Option<i32>,
}

#[derive(Debug, Args)]
pub struct LockRelease {
    /// What `lock acquire` printed [default: $GPUCTL_LOCK_TOKEN]
    #[arg(long)]
    pub token: Option<String>,
    /// Whoever holds it, without a token
    #[arg(long, conflicts_with = "token")]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct DryRun {
    /// Print the plan, change nothing, and exit as the real run would be refused
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct Force {
    /// SIGKILL or `docker kill` at once
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Subcommand)]
pub enum Canary {
    /// Judge a candidate by arithmetic: exit 0 if it can work, 1 if not or out of bounds
    Check(CanaryCheck),
    /// Try a candidate in the configured mode
    Run(CanaryRun),
    /// Show mode, window, budget, runs, lock, and whether a restore is owed
    Status,
    /// Put an interrupted trial right: production back, its downtime booked
    Recover,
    /// Begin this night's downtime budget anew (an emergency; written to the audit)
    ResetBudget,
    /// Release a lock that is stuck (an emergency; written to the audit)
    Unlock(CanaryUnlock),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Candidate {
    /// JSON file with the candidate's parameters; - for stdin
    #[arg(long, value_name = "FILE")]
    pub candidate: Option<PathBuf>,
    /// A parameter of the candidate (repeatable)
    #[arg(long, value_name = "KEY=VALUE", num_args = 1..)]
    pub set: Vec<String>,
}

#[derive(Debug, Args)]
pub struct CanaryCheck {
    #[command(flatten)]
    pub candidate: Candidate,
}

#[derive(Debug, Args)]
pub struct CanaryRun {
    #[command(flatten)]
    pub candidate: Candidate,
    /// predictive: arithmetic only; canary: a real second server [default: canary.mode]
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
    Predictive,
    Canary,
}

#[derive(Debug, Args)]
pub struct CanaryUnlock {
    /// Whoever holds it
    #[arg(long, required = true)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct History {
    /// So many calls at most, the last ones
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub lines: usize,
    /// Only calls that began within this time
    #[arg(long, value_name = "DUR")]
    pub since: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Config {
    /// Write a commented starting configuration
    Init(ConfigInit),
    /// Validate the configuration
    Check,
    /// Print the effective configuration, secrets masked
    Show,
    /// Print where the configuration is
    Path,
    /// Print the JSON Schema of the configuration
    Schema,
}

#[derive(Debug, Args)]
pub struct ConfigInit {
    /// Where to write [default: --config, $GPUCTL_CONFIG, or ~/.config/gpuctl/config.toml]
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Overwrite an existing file
    #[arg(long)]
    pub force: bool,
}
