//! Support for real model servers, which know nothing of a simulated card. Loaded into such a
//! server by `LD_PRELOAD`, this library claims `$SIMGPU_PRELOAD_MB` MB on the first card for as
//! long as the process lives. It kills the process if it cannot claim them, and when `$SIMGPU_DIR`
//! is removed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{env, fs, mem, thread};

use crate::card::Card;
use crate::claim::Kind;

/// The function that the dynamic linker calls before the program begins.
#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;

extern "C" fn at_load() {
    let mb = env::var("SIMGPU_PRELOAD_MB").ok().and_then(|mb| mb.parse().ok());
    if let (Some(mb), Some(folder)) = (mb, env::var_os("SIMGPU_DIR")) {
        hold(mb, PathBuf::from(folder));
    }
}

fn hold(mb: u64, folder: PathBuf) {
    let program = fs::read_link("/proc/self/exe").unwrap_or_default();
    let name = program.file_name().map_or_else(OsString::new, OsString::from);
    let claim =
        Card::open(&folder).map(|card| card.claim(0, mb, Kind::Compute, &name.to_string_lossy()));
    match claim {
        // The claim lives as long as the process.
        Ok(Ok(claim)) => mem::forget(claim),
        _ => end(),
    }
    thread::spawn(move || end_without(&folder));
}

/// Waits until the folder is gone, and then kills this process.
fn end_without(folder: &Path) {
    while folder.exists() {
        thread::sleep(Duration::from_millis(200));
    }
    end();
}

fn end() {
    let this = rustix::process::getpid();
    rustix::process::kill_process(this, rustix::process::Signal::KILL).ok();
}
