//! What the measurements have in common.

use super::support::Rig;
use std::time::{Duration, Instant};

/// Medians of both, measured in turn.
pub fn compare(
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

pub fn compare_heading() {
    println!("{:34} {:>12} {:>12} {:>8} {:>12}", "", "gpuctl", "floor", "ratio", "added");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The time of one of many runs of a command, in a shell's loop.
pub fn in_a_loop(rig: &Rig, command: &str) -> Duration {
    const RUNS: u32 = 20;
    let script =
        format!("i=0; while [ $i -lt {RUNS} ]; do {command} >/dev/null 2>&1; i=$((i+1)); done");
    let begun = Instant::now();
    rig.shell(&script).run().succeeds();
    begun.elapsed() / RUNS
}
