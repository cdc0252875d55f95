//! Thin adapters to the outside world, one file for each thing that gpuctl talks to. They ask and
//! act, but decide nothing.

pub mod byte_locks;
pub mod caller;
pub mod client;
pub mod clock;
pub mod command;
pub mod companion;
pub mod compose;
pub mod docker;
pub mod ending;
pub mod files;
pub mod group;
pub mod health;
pub mod host;
pub mod http;
pub mod job;
pub mod jobs;
pub mod logs;
pub mod native;
pub mod nvml;
pub mod ports;
pub mod process;
pub mod program;
pub mod questions;
pub mod scope;
pub mod server;
pub mod starts;
pub mod systemd;
pub mod terminal;
pub mod wait;
pub mod word;
