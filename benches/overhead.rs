//! What gpuctl adds to the time that others take anyway: each measurement beside its floor, in turn, so that the ratio
//! holds on a noisy machine. `make bench`

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a measurement fails by panicking, and prints what it measured"
)]
#![allow(dead_code, unused_imports, reason = "the tests' support has more than is measured here")]

#[path = "../tests/cli/support/mod.rs"]
mod support;

mod measure;

use measure::{compare, compare_heading, in_a_loop};
use serde_json::json;
use std::time::Instant;
use support::{Rig, until};

fn main() {
    compare_heading();
    start_up();
    status();
    change_of_phase();
}

fn start_up() {
    let rig = Rig::new();
    compare(
        "start-up, against /bin/true",
        10,
        || in_a_loop(&rig, "gpuctl --version"),
        || in_a_loop(&rig, "/bin/true"),
    );
}

/// Four services, two of them in Docker and ready, against one `docker container inspect` of both.
fn status() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("cosyvoice").vram(4000).phases([3]).add();
    let ollama = rig.container("ollama").vram(18000).phases([3]).add();
    rig.native("vidi").vram(4000).add();
    rig.native("comfyui").vram(20000).add();
    rig.gpuctl("prepare-phase 3 --quiet").run().succeeds().text();
    let inspect = format!("docker container inspect {} {}", voice.mark(), ollama.mark());
    compare(
        "status, against docker inspect",
        10,
        || in_a_loop(&rig, "gpuctl status"),
        || in_a_loop(&rig, &inspect),
    );
}

/// From one service to the other, against the same by hand with eyes on the card and the port: TERM, wait until the
/// memory is back, start, wait until it answers.
fn change_of_phase() {
    for (warmup, rounds) in [("200ms", 9), ("2s", 5)] {
        let rig = Rig::new();
        rig.card.describe(&json!({"reclaim_delay_ms": 300}));
        let flags = format!("--warmup {warmup} --term-delay 100ms");
        let vidi = rig.native("vidi").vram(4000).phases([2]).server(&flags).add();
        let voice = rig.native("cosyvoice").vram(4000).phases([3]).server(&flags).add();
        let prepare = |phase: &str| {
            let begun = Instant::now();
            rig.gpuctl("prepare-phase --quiet").arg(phase).run().succeeds().text();
            begun.elapsed()
        };
        let by_hand = || {
            prepare("2");
            let begun = Instant::now();
            for pid in rig.processes_of(&vidi) {
                rig.shell(&format!("kill {pid}")).run().succeeds();
            }
            until("the memory is back", || rig.card.used_mb() == 0);
            let server = rig.by_hand(voice.command());
            until("it answers", || voice.is_healthy());
            let elapsed = begun.elapsed();
            drop(server);
            until("it is gone", || rig.card.used_mb() == 0);
            elapsed
        };
        let by_gpuctl = || {
            prepare("2");
            prepare("3")
        };
        compare(&format!("prepare-phase, {warmup} warm-up"), rounds, by_gpuctl, by_hand);
    }
}
