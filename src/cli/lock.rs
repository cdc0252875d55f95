//! The command line of `gpuctl lock`.

use super::{WaitArgs, examples};
use clap::{Args, Subcommand};

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
    /// It gives back what `lock acquire` took. The lock of `gpuctl run` ends with its command, and
    /// is left alone unless --force is given.
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
    /// Also end the lock when this process ends
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
