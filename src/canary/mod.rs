//! The GPU canary: a changed configuration of production is tried in a maintenance window, for a
//! bounded time, and production always comes back.

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
