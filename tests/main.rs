//! Tests of gpuctl from outside: real processes, containers and units on a simulated card, judged
//! by exit code, output and what is left behind. There is one folder or file for each command,
//! `faults` for the rows of the fault table, and one binary for all of them, which is built, linked
//! and given its Docker engine once.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "the rules of the program's own layers; a test fails by panicking"
)]

mod adopt;
mod can_fit;
mod canary {
    pub mod bench;
    mod check;
    mod config;
    mod ledger;
    mod refusals;
    mod run;
    mod spare;
    mod told;
}
mod completion {
    mod offers;
    mod shells;
}
mod config {
    mod errors;
    mod files;
    mod import;
    mod init;
    mod secrets;
    mod trust;
}
mod docs {
    mod endpoints;
    mod reference;
    mod security;
    mod transcripts;
}
mod doctor;
mod every_command {
    mod exit_codes;
    mod interrupt;
    mod progress;
    mod smoke;
}
mod faults;
mod history;
mod http;
mod lock {
    mod acting;
    mod commands;
    mod fence;
    mod line;
    mod place;
    mod redis;
    mod stopped;
    mod token;
}
mod logs;
mod man;
mod prepare_phase {
    mod acceptance;
    mod pipeline;
    mod requests;
    mod unload;
}
mod python;
mod rigs {
    mod machine;
    mod redis;
}
mod restart;
mod run {
    mod command;
    mod job;
    mod lost;
    mod need;
    mod nested;
    mod restore;
    mod room;
    mod terminal;
}
mod services {
    mod compose;
    mod compose_files;
    mod docker;
    mod docker_calls;
    mod docker_hosts;
    mod examples;
    mod gguf;
    mod llama_server;
    mod logins;
    mod native;
    mod podman;
    mod queue;
    mod rootless;
    mod scopes;
    mod systemd;
    mod unit_answers;
    mod unit_containers;
    mod unit_names;
    mod units;
    mod uvicorn;
}
mod slurm;
mod start;
mod status {
    mod fields;
    mod jobs;
    mod metrics;
    mod screen;
    mod watch;
}
mod release_idle;
mod stop;
