//! Thin adapters, one file per thing talked to. They ask and they act; they decide nothing.

pub mod byte_locks;
pub mod caller;
pub mod client;
pub mod command;
pub mod companion;
pub mod docker;
pub mod ending;
pub mod files;
pub mod group;
pub mod health;
pub mod host;
pub mod job;
pub mod logs;
pub mod native;
pub mod nvml;
pub mod ports;
pub mod process;
pub mod program;
pub mod scope;
pub mod starts;
pub mod systemd;
pub mod terminal;
pub mod unload;
pub mod wait;
