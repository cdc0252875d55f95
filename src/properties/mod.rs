//! Properties that hold for any input: one for each thing that gpuctl reads and others write. A
//! property takes any bytes and panics if it does not hold for them. `make fuzz` tries to break the
//! properties; the tests check them with the inputs in fuzz/corpus.

mod canary;
mod config;
mod history;
mod http;
mod lock;
#[cfg(test)]
mod tests;
mod words;
mod world;

#[cfg(test)]
pub use tests::settings;

pub use canary::{candidate, ledger};
pub use config::{config_json, config_toml};
pub use history::history;
pub use http::http;
pub use lock::lock;
pub use words::words;
pub use world::{docker, proc, systemd};
