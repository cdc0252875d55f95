//! gpuctl from outside: real processes, containers and units on a simulated card, judged by exit code, output and what
//! is left in the world.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the rules of the program's own layers; a test fails by panicking"
)]

mod acceptance;
mod can_fit;
mod canary_bench;
mod canary_check;
mod canary_config;
mod canary_ledger;
mod canary_refusals;
mod canary_run;
mod canary_spare;
mod completion;
mod completion_shells;
mod config;
mod config_errors;
mod config_fuzz;
mod config_secrets;
mod config_trust;
mod docker;
mod docs_endpoints;
mod docs_reference;
mod docs_transcripts;
mod doctor;
mod execute;
mod fault_docker;
/// Of this binary too: built, linked and given its Docker engine once.
#[path = "../faults/mod.rs"]
mod faults;
mod history;
mod interrupt;
mod lock;
mod lock_fence;
mod lock_line;
mod lock_place;
mod lock_redis;
mod lock_stopped;
mod lock_token;
mod locking;
mod manual;
mod native;
mod nvml;
mod pipeline;
mod progress;
mod refusals;
mod rigs;
mod rigs_redis;
mod run;
mod run_job;
mod run_lost;
mod run_nested;
mod run_terminal;
mod security;
mod smoke;
mod status;
mod status_metrics;
mod status_screen;
mod status_watch;
mod support;
mod systemd;
mod unload;
