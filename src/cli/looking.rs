//! The command lines of the commands that only look and change nothing.

use clap::Args;
use std::time::Duration;

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

/// Parses the time between two looks, a number of seconds from 0.1 to 86400 (one day).
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
    /// Unit of a SIZE that was typed as two words
    #[arg(hide = true)]
    pub unit: Option<String>,
    /// Keep this much free as well [default: gpu.reserve_mb]
    #[arg(long, value_name = "SIZE")]
    pub margin: Option<String>,
    /// Also count what running services have declared and not yet used
    #[arg(long)]
    pub budget: bool,
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

#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Service whose log to show
    #[arg(value_name = "SERVICE")]
    pub service: String,
    /// Keep showing what the service prints, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// Show this many of the last lines
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100)]
    pub lines: u32,
}
