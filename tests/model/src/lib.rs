//! The protocol of the GPU lock as a model that is explored exhaustively: clients on two machines whose lock is the
//! kernel's, one Redis between them, and what befalls them. A step is one script on the server (`server`, after the Lua
//! beside `src/lock/redis`) with what its caller makes of the answer (`client`, after `src/lock`), or one fault.
//!
//! Time goes by in ticks, three to the time of a lock in Redis (30 s), so that one is a renewal's interval. A tick is
//! possible when everybody has done what is due by then; whatever takes less than a tick happens within one, in any
//! order. Who wakes whom is not in it: who waits may look at any time, as it does once a second.

mod client;
mod explore;
mod fair;
mod holding;
mod server;
mod steps;
mod suffered;
mod world;

pub use explore::{Explored, explore};
pub use steps::Step;
pub use world::{Faults, Kind, Promise, Rules, Scenario};
