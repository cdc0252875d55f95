//! The command lines of the commands that start and stop services, and the options that they share.

use clap::Args;
use std::ffi::OsString;

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
pub struct RunArgs {
    #[command(flatten)]
    pub target: Target,
    /// With --vram: stop or unload only services of a lower priority than this [default: any]
    #[arg(long, value_name = "N", requires = "vram", allow_negative_numbers = true)]
    pub priority: Option<i64>,
    /// Afterwards make ready again what was stopped or unloaded, highest priority first, however
    /// the command ended, even if gpuctl is killed
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
    /// Memory to make free for a command that is no service: a SIZE such as 8000 or 8GB, from the
    /// lowest priority first
    #[arg(long, value_name = "SIZE")]
    pub vram: Option<String>,
}

#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// Native service that the processes belong to
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

// The options of every command that stops something. A doc comment would become the help of each.
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
    /// Print the plan and change nothing; exit with the code with which the real run would be
    /// refused
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

#[derive(Debug, Args)]
pub struct Force {
    /// Kill at once (SIGKILL, `docker kill`), whatever work is in flight
    #[arg(long, conflicts_with = "drain")]
    pub force: bool,
}
