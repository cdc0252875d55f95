//! Tests of what other tests may rely on from `simserver`. No test asserts how long a thing takes;
//! each waits until it has happened.

mod bench;
mod health;
mod lifetime;
mod memory;
mod unload;
