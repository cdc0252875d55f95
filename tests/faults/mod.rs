//! The fault table (`FAULTS.md`): each test is named after its row and says what gpuctl promises there.

mod backends;
mod health;
mod killed;
mod lock_access;
mod lock_contention;
mod lock_file;
mod lock_handover;
mod lock_holder;
mod lock_killed;
mod lock_legacy;
mod lock_lost;
mod lock_network;
mod lock_server;
mod lock_waiting;
mod lock_work;
mod memory;
mod output;
mod ownership;
mod run_killed;
mod start;
mod state_dir;
mod stop;
mod two_at_once;
