//! gpuctl from outside: real processes, containers and units on a simulated card, judged by exit code, output and what
//! is left in the world.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the rules of the program's own layers; a test fails by panicking"
)]

mod docker;
mod fault_docker;
mod pipeline;
mod rigs;
mod smoke;
mod support;
mod systemd;
