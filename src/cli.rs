//! The command line as it was typed: clap types only. Sizes, names and defaults are resolved
//! elsewhere.

mod acting;
mod canary;
mod config;
mod examples;
mod lock;
mod looking;
mod mistake;

pub use acting::{
    ActArgs, AdoptArgs, DrainArgs, DryRun, PreparePhaseArgs, ReleaseAllArgs, ReleaseIdleArgs,
    RestartArgs, RunArgs, StartArgs, StopArgs, Target, WaitArgs,
};
pub use canary::{CanaryCheckArgs, CanaryCommand, CandidateArgs};
pub use config::{ConfigCommand, ConfigExample, ConfigImportArgs, ConfigInitArgs, ConfigTarget};
pub use lock::{LockAcquireArgs, LockCommand, LockReleaseArgs};
pub use looking::{CanFitArgs, HistoryArgs, LogsArgs, StatusArgs};
pub use mistake::mistake;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// Share one GPU between services that do not fit on it together
///
/// Each call looks at the world, decides, acts, and reports by its exit code; no daemon is left
/// behind. Repeating a command that has succeeded does nothing. Results are on stdout, progress and
/// errors on stderr.
///
/// SIZE is a number of MB of 1,048,576 bytes, or has a unit: 20000, 20000MB, 20GB, 20G, 20GiB; G, GB
/// and GiB all mean 1024 MB. DUR is a duration: 90s, 10m, 1h30m, or a plain number of seconds.
#[derive(Debug, Parser)]
#[command(name = "gpuctl", version, propagate_version = true, after_long_help = examples::GPUCTL)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Configuration file [default: the first of $GPUCTL_CONFIG, ./gpuctl.toml,
    /// ~/.config/gpuctl/config.toml, /etc/gpuctl/config.toml]
    #[arg(long, global = true, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// GPU to manage, by NVML index or UUID [default: gpu.index or gpu.uuid of the configuration]
    #[arg(long, global = true, value_name = "INDEX|UUID")]
    pub gpu: Option<String>,
    /// Print one JSON document on stdout, for failures too
    #[arg(long, global = true)]
    pub json: bool,
    /// Show errors only, no progress and no warnings
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Show what is being done: -v every external command and its time, -vv more
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
}

// Deferred, so that a command's options are built only if it is the one that was typed.
#[derive(Debug, Subcommand)]
#[command(defer = true)]
pub enum Command {
    /// Show VRAM, GPU processes and the state of each service
    ///
    /// Everything is read anew: the driver, Docker, systemd, the process table, the health checks,
    /// the lock. What cannot be read is shown as unknown; the rest is still shown.
    #[command(after_long_help = examples::STATUS)]
    Status(StatusArgs),
    /// Report by the exit code whether a size or a service fits now
    ///
    /// It fits (exit code 0) if what is free, less the margin, is at least the size. A service
    /// counts with its declared vram_mb. Nothing is stopped and nothing is reserved.
    #[command(after_long_help = examples::CAN_FIT)]
    CanFit(CanFitArgs),
    /// Stop what a phase does not need, start what it needs, wait until it is ready
    ///
    /// Memory counts as free once the driver reports it as free, and a service as ready once its
    /// health check passes. A plan that cannot work is refused before anything is stopped. A phase
    /// that needs no service releases the whole card.
    #[command(after_long_help = examples::PREPARE_PHASE)]
    PreparePhase(PreparePhaseArgs),
    /// Make one service ready, stopping lower priorities only as far as needed
    ///
    /// Services of a strictly lower priority are stopped, lowest first, until it fits; one of the
    /// same or a higher priority never is.
    #[command(after_long_help = examples::START)]
    Start(StartArgs),
    /// Stop one service, then make it ready as `start` does
    ///
    /// It is stopped whatever its state, even if it is stuck. If it could not be started again,
    /// nothing is stopped.
    #[command(after_long_help = examples::RESTART)]
    Restart(RestartArgs),
    /// Stop services and wait for their VRAM
    ///
    /// They are asked to end, killed after their stop_timeout, and count as stopped once the driver
    /// reports their memory as free.
    #[command(after_long_help = examples::STOP)]
    Stop(StopArgs),
    /// Stop every managed service
    #[command(after_long_help = examples::RELEASE_ALL)]
    ReleaseAll(ReleaseAllArgs),
    /// Give back the memory of services that have not worked for a while
    ///
    /// A service is idle from the time when it was last seen with jobs or at work on the card, or
    /// when it came up. Each call looks and records what it sees, so run it from a timer. It evicts
    /// the services that have been idle for --after, or else for their own `idle`, by unloading or
    /// stopping them as their `evict` says. A service is never idle if it cannot be determined
    /// whether it works. Nothing is evicted while another holds the GPU lock (exit code 75).
    #[command(after_long_help = examples::RELEASE_IDLE)]
    ReleaseIdle(ReleaseIdleArgs),
    /// Run a command under the GPU lock, with a service or phase made ready for it
    ///
    /// Nobody else changes anything on the GPU while the command runs. Its exit code is passed on,
    /// and the services keep running. --vram makes room for a command that is no service. With
    /// --restore, what was stopped or unloaded is made ready again afterwards, still under the
    /// lock; if that fails although the command succeeded, the exit code is 5. If the lock is lost,
    /// the command is ended (TERM, --grace, KILL). Its environment has GPUCTL_LOCK_TOKEN, so that
    /// gpuctl commands that it calls act under the same lock; GPUCTL_FENCE, a number that rises
    /// with every holder; and GPUCTL_SERVICE.
    #[command(after_long_help = examples::RUN)]
    Run(RunArgs),
    /// Tie processes that were started by hand to a native service
    ///
    /// From then on these processes, and all that they start, count as proven to be the service's:
    /// it is shown as running, and stopping it stops them. Either all of them are adopted or none.
    /// Processes of another service, of a container and the caller's own are refused.
    #[command(after_long_help = examples::ADOPT)]
    Adopt(AdoptArgs),
    /// Show what a service has printed
    ///
    /// It shows the log that gpuctl keeps of a native service, `docker logs` of a container, or
    /// `journalctl` of a unit.
    #[command(after_long_help = examples::LOGS)]
    Logs(LogsArgs),
    /// Take, give back and show the GPU lock
    #[command(subcommand, after_long_help = examples::LOCK)]
    Lock(LockCommand),
    /// Answer one HTTP request from stdin on stdout
    ///
    /// systemd (Accept=yes), systemd-socket-activate --accept --inetd or inetd calls this for each
    /// connection, so that no daemon is needed. GET /openapi.json lists the endpoints. Unless a
    /// token or token_file is configured under [http], only this machine may ask, and no page of
    /// another site.
    #[command(after_long_help = examples::HTTP)]
    Http,
    /// Try a changed configuration of production before it is promoted
    ///
    /// The trial takes the place of production for a bounded time, in a maintenance window, within
    /// a budget of downtime; production comes back even if gpuctl is killed in the middle.
    #[command(subcommand, after_long_help = examples::CANARY)]
    Canary(CanaryCommand),
    /// Check every precondition, and say how to fix what fails
    ///
    /// The exit code is 1 if anything fails. It changes no service, does not take the GPU lock, and
    /// works without a configuration too. The ids of the checks never change.
    #[command(after_long_help = examples::DOCTOR)]
    Doctor,
    /// Show what gpuctl did, when, and how it ended
    ///
    /// Every call that changes something writes its steps, its result and how long each took into
    /// a log in the state folder. A call that was killed is shown as such.
    #[command(after_long_help = examples::HISTORY)]
    History(HistoryArgs),
    /// Write, check and show the configuration
    #[command(subcommand, after_long_help = examples::CONFIG)]
    Config(ConfigCommand),
    /// Print the completion script for a shell
    ///
    /// It completes commands and options, and the services and phases of the configuration.
    #[command(after_long_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
    /// Print the manual page, or write all of them
    ///
    /// One page per command, gpuctl(1) for the whole, and gpuctl.toml(5) for the configuration.
    #[command(after_long_help = examples::MAN)]
    Man(ManArgs),
    /// List what may come next on a command line; the completion scripts call it
    #[command(hide = true)]
    Complete(CompleteArgs),
    /// Bring production back when the gpuctl of a trial is gone; `canary run` starts it
    #[command(hide = true)]
    Guardian(CompanionArgs),
    /// End a command whose gpuctl is gone; `run` starts it
    #[command(hide = true)]
    Watchdog(CompanionArgs),
}

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    pub shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Write every page into this folder, which is created
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct CompleteArgs {
    /// The command line up to the cursor
    #[arg(last = true)]
    pub words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub struct CompanionArgs {
    /// PID of the gpuctl that it watches
    pub of: i32,
}
