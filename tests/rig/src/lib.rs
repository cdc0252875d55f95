//! Support for the tests: a `Rig` is one test's own machine, with a simulated card, services of all
//! three kinds and a `gpuctl` that sees nothing else. Everything that a rig has started ends with
//! it, even if the test fails.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::new_without_default,
    reason = "what the tests stand on fails them by panicking"
)]

mod apart;
mod books;
mod bystander;
mod canary;
mod card;
mod carrier;
mod dice;
mod display;
mod docker;
mod gpuctl;
mod http;
mod locks;
mod machine;
mod nspawn;
mod outcome;
pub mod page;
mod ports;
mod prober;
mod processes;
mod programs;
mod proxy;
mod python;
mod python_server;
mod redis;
mod redis_tls;
mod rig;
mod services;
mod skip;
mod ssh;
mod surroundings;
mod systemd;
mod terminal;
mod wait;

pub use apart::apart;
pub use books::Books;
pub use bystander::Bystander;
pub use canary::Trial;
pub use card::Card;
pub use dice::{Dice, number};
pub use display::{Display, lines as on_terminal};
pub use gpuctl::{Invocation, Running, TIME_LIMIT};
pub use http::{Served, answer};
pub use locks::on_both;
pub use nspawn::{Corner, Machine};
pub use outcome::Outcome;
pub use prober::Prober;
pub use processes::{parent, signal, state};
pub use programs::{command, works};
pub use proxy::Proxy;
pub use python_server::python_with;
pub use redis::{LOCK_KEY, Redis};
pub use rig::Rig;
pub use rustix::process::Signal;
pub use services::{Draft, Script, Service};
pub use skip::{
    compose_or_skip, docker_client_or_skip, python_or_skip, root_or_skip, skip_or_fail,
    unconfigured_or_skip,
};
pub use ssh::Ssh;
pub use systemd::Fault;
pub use terminal::Terminal;
pub use wait::{until, with_room};
