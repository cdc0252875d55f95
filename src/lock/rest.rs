//! Ends the rest of a command whose lock is lost, or whose gpuctl has died.

use crate::error::Result;
use crate::world::ending::{FirstMove, end};
use crate::world::group;
use crate::world::process;
use crate::world::wait::Stop;
use std::time::Duration;

/// Ends a command and all processes that bear its token: TERM first, and KILL after `grace`.
/// Returns whether KILL was needed. Without a `leader`, the command is only those that bear the
/// token.
pub fn end_command(leader: Option<process::Id>, token: &str, grace: Duration) -> Result<bool> {
    end("the command", || group::members(leader, token), FirstMove::Term, grace, &Stop::never())
}
