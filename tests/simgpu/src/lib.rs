//! A simulated machine with NVIDIA cards, kept in a folder that processes and containers share. As
//! a `cdylib` it is loaded in the place of `libnvidia-ml.so.1` and answers NVML's C interface from
//! the folder `$SIMGPU_DIR`; as a Rust library it lets `simserver` claim memory on the cards.

mod card;
mod claim;
mod code;
mod fault;
mod nvml;
mod preload;
mod session;
mod spec;

pub use card::{Card, Holder, Memory};
pub use claim::{Claim, ClaimError, Kind, OutOfMemory};
