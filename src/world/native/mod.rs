//! Native services: how they are started, and their own way to be stopped.

mod start;

pub use start::{Started, could_start, start};

use super::command::{self, Output};
use super::wait::Stop;
use crate::error::Result;
use crate::model::{Native, Service};

/// Runs a service's configured stop command, for at most its stop timeout. The caller waits for the
/// service's processes to end afterwards.
pub fn run_stop_command(
    service: &Service,
    native: &Native,
    text: &str,
    stop: &Stop,
) -> Result<Output> {
    command::run_shell(text, &native.env, native.cwd.as_deref(), service.stop_timeout, stop)
}
