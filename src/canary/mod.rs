//! The GPU canary: tries a changed configuration of production in a maintenance window, for a
//! bounded time, and always brings production back.

mod admission;
pub mod candidate;
pub mod conduct;
pub mod debt;
pub mod guardian;
pub mod ledger;
pub mod limits;
pub mod maintenance;
pub mod restore;
mod server;
pub mod trial;
pub mod verdict;

#[cfg(test)]
mod tests;
