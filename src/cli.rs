//! What was typed: clap types only. Meaning (sizes, names, defaults) is given further on.

mod canary;
mod examples;
mod mistake;

pub use canary::{CanaryCheckArgs, CanaryCommand, CandidateArgs};
pub use mistake::mistake;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

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

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show VRAM, GPU processes and the state of each service
    ///
    /// Everything is read afresh: the driver, Docker, systemd, the process table, the health checks,
    /// the lock. What cannot be read is shown as such; the rest is shown all the same.
    #[command(after_long_help = examples::STATUS)]
    Status(StatusArgs),
    /// Tell by the exit code whether a size or a service fits now
    ///
    /// It fits (exit code 0) if what is free, less the margin, is at least the size. A service
    /// counts with its declared vram_mb. Nothing is stopped and nothing is reserved.
    #[command(after_long_help = examples::CAN_FIT)]
    CanFit(CanFitArgs),
    /// Stop what a phase does not need, start what it needs, wait until it is ready
    ///
    /// Memory counts as free when the driver shows it back, a service as ready when its health
    /// check says so. A plan that cannot work is refused before anything is stopped. A phase that
    /// needs no service releases the whole card.
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
    /// It is stopped in whatever state it is, also when it is stuck. Where it could not be started
    /// again, nothing is stopped.
    #[command(after_long_help = examples::RESTART)]
    Restart(RestartArgs),
    /// Stop services and wait for their VRAM
    ///
    /// They are asked to end, killed after their stop_timeout, and gone when the driver shows their
    /// memory back.
    #[command(after_long_help = examples::STOP)]
    Stop(StopArgs),
    /// Stop every managed service
    #[command(after_long_help = examples::RELEASE_ALL)]
    ReleaseAll(ReleaseAllArgs),
    /// Give back the memory of services that have not worked for a while
    ///
    /// A service is idle since it was last seen with jobs, or its processes at work on the card, or since
    /// it came up. Each call looks and notes what it sees, so it is meant for a timer. It evicts what is idle
    /// for --after, or else for the service's own `idle`, by unloading or stopping it as its `evict` says.
    /// A service of which it cannot be told whether it works is never idle. Nothing is evicted while
    /// another holds the GPU lock (exit code 75).
    #[command(after_long_help = examples::RELEASE_IDLE)]
    ReleaseIdle(ReleaseIdleArgs),
    /// Run a command under the GPU lock, with a service or phase made ready for it
    ///
    /// Nobody else changes anything on the GPU while the command runs. Its exit code is passed on,
    /// and the services keep running. --vram makes room for a command that is no service. With
    /// --restore, what was stopped or unloaded is made ready again afterwards, under the lock all
    /// along: exit code 5 where the command gave 0 and that failed. If the lock is lost, the command is ended (TERM, --grace,
    /// KILL). In its environment: GPUCTL_LOCK_TOKEN, with which gpuctl commands that it calls act
    /// under the same lock; GPUCTL_FENCE, a number that rises with every holder; GPUCTL_SERVICE.
    #[command(after_long_help = examples::RUN)]
    Run(RunArgs),
    /// Tie processes that were started by hand to a native service
    ///
    /// From then on they, and whatever they start, count as proven to be the service's: it is shown as
    /// running, and stopping it stops them. Either all of them are adopted or none. Processes of
    /// another service, of a container and the caller's own are refused.
    #[command(after_long_help = examples::ADOPT)]
    Adopt(AdoptArgs),
    /// Show what a service has printed
    ///
    /// The log that gpuctl keeps of a native service, a container's by `docker logs`, a unit's by
    /// `journalctl`.
    #[command(after_long_help = examples::LOGS)]
    Logs(LogsArgs),
    /// Take, give back and show the GPU lock
    #[command(subcommand, after_long_help = examples::LOCK)]
    Lock(LockCommand),
    /// Answer one HTTP request from stdin on stdout
    ///
    /// This is what systemd (Accept=yes), systemd-socket-activate --accept --inetd and inetd call for each
    /// connection, so that no daemon is needed. GET /openapi.json lists the endpoints. Unless [http] token or
    /// token_file is configured, only this machine may ask, and no page of another site.
    #[command(after_long_help = examples::HTTP)]
    Http,
    /// Try a changed configuration of production before it is promoted
    ///
    /// The trial takes the place of production for a bounded time, in a maintenance window, within
    /// a budget of downtime; production comes back also when gpuctl is killed in the middle.
    #[command(subcommand, after_long_help = examples::CANARY)]
    Canary(CanaryCommand),
    /// Check every precondition, and say how to fix what fails
    ///
    /// Exit code 1 if anything fails. It changes nothing, takes no lock, and works without a
    /// configuration too. The ids of the checks never change.
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
    /// Say what may stand at the end of a command line; the completion scripts call it
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
    /// Whose companion it is
    pub of: i32,
}

#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Exit 0 only if this service is ready or busy, else 1 (repeatable)
    #[arg(long, value_name = "SERVICE")]
    pub check: Vec<String>,
    /// Refresh it every SECS seconds (2 if no number is given), until Ctrl-C, or q on a terminal;
    /// with --json one document per line
    #[arg(long, value_name = "SECS", num_args = 0..=1, default_missing_value = "2", value_parser = interval, conflicts_with = "check")]
    pub watch: Option<Duration>,
    /// Print metrics for node_exporter's textfile collector
    #[arg(long, conflicts_with = "watch")]
    pub prometheus: bool,
}

/// Seconds between two looks.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.1..=86400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "not a number of seconds from 0.1 to 86400".to_owned())
}

#[derive(Debug, Args)]
pub struct CanFitArgs {
    /// How much: a SIZE such as 20000 or 20GB, or a service
    #[arg(value_name = "SIZE|SERVICE")]
    pub what: String,
    /// The unit of a SIZE that was typed as two words
    #[arg(hide = true)]
    pub unit: Option<String>,
    /// Keep this much free besides [default: gpu.reserve_mb]
    #[arg(long, value_name = "SIZE")]
    pub margin: Option<String>,
    /// Also count what running services have declared and not yet used
    #[arg(long)]
    pub budget: bool,
}

#[derive(Debug, Args)]
pub struct PreparePhaseArgs {
    /// Number or name of the phase
    pub phase: String,
    /// Stop only as much as the needed services require, lowest priority first
    #[arg(long)]
    pub lazy: bool,
    #[command(flatten)]
    pub acting: ActArgs,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    /// Service to make ready
    pub service: String,
    /// Stop no other service: exit 3 if it does not fit beside the others
    #[arg(long)]
    pub no_preempt: bool,
    #[command(flatten)]
    pub acting: ActArgs,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    /// Service to stop and start again
    #[arg(value_name = "SERVICE")]
    pub service: String,
    #[command(flatten)]
    pub force: Force,
    #[command(flatten)]
    pub acting: ActArgs,
}

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Service whose log to show
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Go on with what it prints from now on, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Show this many of the last lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub lines: u32,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    /// Services to stop
    #[arg(required = true, value_name = "SERVICE")]
    pub services: Vec<String>,
    #[command(flatten)]
    pub force: Force,
    #[command(flatten)]
    pub acting: ActArgs,
}

#[derive(Debug, Args)]
pub struct ReleaseAllArgs {
    #[command(flatten)]
    pub force: Force,
    #[command(flatten)]
    pub acting: ActArgs,
}

#[derive(Debug, Args)]
pub struct ReleaseIdleArgs {
    /// Services to release if they are idle [default: every one with `idle`, or with --after every one]
    #[arg(value_name = "SERVICE")]
    pub services: Vec<String>,
    /// How long a service has to have been idle [default: the service's idle]
    #[arg(long, value_name = "DUR")]
    pub after: Option<String>,
    #[command(flatten)]
    pub dry_run: DryRun,
}

#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// Native service that they belong to
    pub service: String,
    /// Processes to adopt, by PID
    #[arg(required = true, value_name = "PID", value_parser = pid)]
    pub pids: Vec<i32>,
    #[command(flatten)]
    pub waiting: WaitArgs,
}

fn pid(text: &str) -> Result<i32, String> {
    let pid = text.parse().ok().filter(|pid| *pid > 0);
    pid.ok_or_else(|| "not the number of a process".to_owned())
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub target: Target,
    /// With --vram: stop or unload services of a lower priority than this only [default: any]
    #[arg(long, value_name = "N", requires = "vram", allow_negative_numbers = true)]
    pub priority: Option<i64>,
    /// Afterwards make ready again what was stopped or unloaded, the highest priority first, however
    /// the command ended, also when gpuctl is killed
    #[arg(long)]
    pub restore: bool,
    #[command(flatten)]
    pub drain: DrainArgs,
    #[command(flatten)]
    pub waiting: WaitArgs,
    /// How long the command may take to end when the lock is lost, before it is killed
    #[arg(long, value_name = "DUR", default_value = "10s")]
    pub grace: String,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Target {
    /// Service to make ready
    pub service: Option<String>,
    /// Phase to prepare, by number or name, instead of one service
    #[arg(long)]
    pub phase: Option<String>,
    /// Room to make for a command that is no service: a SIZE such as 8000 or 8GB, the lowest priority
    /// first
    #[arg(long, value_name = "SIZE")]
    pub vram: Option<String>,
}

/// The options of every command that stops something.
#[derive(Debug, Args)]
pub struct ActArgs {
    #[command(flatten)]
    pub drain: DrainArgs,
    #[command(flatten)]
    pub waiting: WaitArgs,
    #[command(flatten)]
    pub dry_run: DryRun,
}

#[derive(Debug, Args)]
pub struct DryRun {
    /// Print the plan and change nothing; exit with the code that the real run would be refused with
    #[arg(long)]
    pub dry_run: bool,
}

#[derive(Debug, Args)]
pub struct DrainArgs {
    /// How long to wait for the work of a service before it is stopped or unloaded; exit 75 if it is
    /// not done by then [default: the service's drain]
    #[arg(long, value_name = "DUR", conflicts_with = "no_drain")]
    pub drain: Option<String>,
    /// Do not wait for the work of services: cut it off
    #[arg(long)]
    pub no_drain: bool,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    /// How long to wait for the GPU lock while another holds it [default: lock.wait]
    #[arg(long, value_name = "DUR", conflicts_with = "no_wait")]
    pub wait: Option<String>,
    /// Do not wait for the GPU lock: exit 75 while another holds it
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Subcommand)]
pub enum LockCommand {
    /// Take the GPU lock and print its token
    ///
    /// The token alone is on stdout. With it in GPUCTL_LOCK_TOKEN, other gpuctl commands act under
    /// this lock, and `lock release` gives it back. Nothing renews it: it ends after --ttl, or with
    /// the process of --pid.
    #[command(after_long_help = examples::LOCK_ACQUIRE)]
    Acquire(LockAcquireArgs),
    /// Give the GPU lock back
    ///
    /// It takes back what `lock acquire` took. The lock of `gpuctl run` ends with its command, and is left alone
    /// unless --force is given.
    #[command(after_long_help = examples::LOCK_RELEASE)]
    Release(LockReleaseArgs),
    /// Show who holds the GPU lock: exit 0 when it is free, 1 when it is held
    #[command(after_long_help = examples::LOCK_STATUS)]
    Status,
}

#[derive(Debug, Args)]
pub struct LockAcquireArgs {
    /// Name to show as the holder
    #[arg(default_value = "manual")]
    pub holder: String,
    /// How long it lasts [default: lock.ttl]
    #[arg(long, value_name = "DUR")]
    pub ttl: Option<String>,
    #[command(flatten)]
    pub waiting: WaitArgs,
    /// Also end it when this process ends
    #[arg(long)]
    pub pid: Option<i32>,
}

#[derive(Debug, Args)]
pub struct LockReleaseArgs {
    /// Token that `lock acquire` printed [default: $GPUCTL_LOCK_TOKEN]
    #[arg(long)]
    pub token: Option<String>,
    /// Release it without a token, whoever holds it
    #[arg(long, conflicts_with = "token")]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct Force {
    /// Kill at once (SIGKILL, `docker kill`), whatever it is working at
    #[arg(long, conflicts_with = "drain")]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// Show at most this many calls, the latest ones
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    pub lines: usize,
    /// Show only calls that began within this time
    #[arg(long, value_name = "DUR")]
    pub since: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Write a commented starting configuration
    ///
    /// It looks at this machine: the card's processes, the ports that model servers use, containers,
    /// units and compose projects, and writes a service for each server that it finds. What is a
    /// guess is marked as one. It starts and stops nothing. Where nothing is found, the least that
    /// a configuration may say is written.
    #[command(after_long_help = examples::CONFIG_INIT)]
    Init(ConfigInitArgs),
    /// Write a configuration for the services of a compose project that use the card
    ///
    /// Those are taken that reserve a GPU or bear a label gpuctl.KEY, such as gpuctl.vram_mb. Ports,
    /// stop_grace_period and start_period are taken over; guesses are told as such. It needs the compose
    /// plugin of Docker's client, or the project as JSON (a file named .json).
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

/// Where a first configuration is written.
#[derive(Debug, Args)]
pub struct ConfigTarget {
    /// Where to write [default: --config, $GPUCTL_CONFIG, or ~/.config/gpuctl/config.toml]
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
    /// The least
    Minimal,
}
