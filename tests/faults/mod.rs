//! The fault table (`FAULTS.md`): each test is named after its row and says what gpuctl promises there.

mod health;
mod killed;
mod memory;
mod output;
mod ownership;
mod start;
mod state_dir;
mod stop;
