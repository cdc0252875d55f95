//! A model of the GPU lock's protocol that is explored exhaustively: clients on two machines, each
//! with its kernel's lock, one Redis between them, and the faults that befall them. A step is one
//! script on the server (`server`, after the Lua beside `src/lock/redis`) with what its caller does
//! with the answer (`steps` and `holding`, after `src/lock`), or one fault.
//!
//! Time goes by in ticks. Three ticks are the time of a lock in Redis (30 s), so one tick is the
//! interval of renewals. A tick is possible once everybody has done what is due by then; whatever
//! takes less than a tick happens within one, in any order. Wake-ups are not modelled: a waiter may
//! look at any time, as it does once a second.

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
