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

use serde_json::json;
use std::time::{Duration, Instant};
use support::{Rig, until};

fn main() {
    println!("{:34} {:>12} {:>12} {:>8} {:>12}", "", "gpuctl", "floor", "ratio", "added");
    start_up();
    status();
    change_of_phase();
}

/// Medians of both, measured in turn.
fn compare(
    name: &str,
    rounds: usize,
    mut gpuctl: impl FnMut() -> Duration,
    mut floor: impl FnMut() -> Duration,
) {
    gpuctl();
    floor();
    let (mut ours, mut theirs, mut added) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (a, b) = (gpuctl(), floor());
        ours.push(a.as_secs_f64() * 1e3);
        theirs.push(b.as_secs_f64() * 1e3);
        added.push((a.as_secs_f64() - b.as_secs_f64()) * 1e3);
    }
    let (ours, theirs, added) = (median(ours), median(theirs), median(added));
    println!("{name:34} {ours:9.2} ms {theirs:9.2} ms {:8.2} {added:9.2} ms", ours / theirs);
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The time of one of many runs of a command, in a shell's loop.
fn in_a_loop(rig: &Rig, command: &str) -> Duration {
    const RUNS: u32 = 20;
    let script =
        format!("i=0; while [ $i -lt {RUNS} ]; do {command} >/dev/null 2>&1; i=$((i+1)); done");
    let begun = Instant::now();
    rig.shell(&script).run().succeeds();
    begun.elapsed() / RUNS
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
