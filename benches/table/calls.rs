//! The time from the start of a process to its end, which a step of a pipeline waits for at each
//! call.

use super::measure::{command, compare, gpuctl};
use super::peers::{self, SEED};
use super::report::{Row, Section, Target};
use rig::Rig;
use std::process::Command;

pub fn measure() -> Section {
    let mut rows = start_up();
    rows.extend(can_fit());
    rows.extend(status());
    Section {
        title: "Start to exit",
        note: "Wall time unless said otherwise. The four services of `status`: two in Docker and two native, ready, with health \
               checks over HTTP and the lock in Redis.",
        rows,
    }
}

fn start_up() -> Vec<Row> {
    let rig = Rig::new();
    let [ours, floor] = compare(40, [gpuctl(&rig, "--version"), command(&rig, "/bin/true", "")]);
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_gpuctl")).unwrap().len() as f64 / 1_048_576.0;
    vec![
        Row::beside("`--version`", ours.wall, "`/bin/true`", floor.wall, "ms", Target::None),
        Row::alone("`--version`, CPU time", ours.cpu, "ms", Target::Below(2.0)),
        Row::alone("the binary", size, "MB", Target::Below(6.0)),
    ]
}

fn can_fit() -> Vec<Row> {
    let rig = Rig::new();
    let what = "`can-fit 1`";
    let [ours, floor] = compare(40, [gpuctl(&rig, "can-fit 1"), peers::floor(&rig)]);
    vec![
        Row::beside(what, ours.wall, "the same reading in C", floor.wall, "ms", Target::None),
        against(
            what,
            || gpuctl(&rig, "can-fit 1"),
            SEED,
            peers::seed(&rig, "can-fit 1"),
            Target::None,
        ),
    ]
}

fn status() -> Vec<Row> {
    let what = "`status --json`, 4 services";
    let Some((rig, redis)) =
        Rig::with_docker().and_then(|rig| rig.redis().map(|redis| (rig, redis)))
    else {
        return vec![Row::missing(what, "", "there is no Docker engine or no Redis")];
    };
    rig.set("lock.url", redis.url());
    let container = |name| rig.container(name).vram(4000).phases([3]).add();
    let [voice, ollama] = ["cosyvoice", "ollama"].map(container);
    for name in ["vidi", "comfyui"] {
        rig.native(name).vram(4000).phases([3]).add();
    }
    rig.gpuctl("prepare-phase 3 --quiet").run().succeeds().text();
    let status = || gpuctl(&rig, "status --json");
    let names = format!("container inspect {} {}", voice.mark(), ollama.mark());
    // Nothing else is measured between these two: the command that ran after it would find Docker's
    // client less well cached.
    let [ours, inspect] = compare(100, [status(), command(&rig, "docker", &names)]);
    let [beside_reading, reading] = compare(40, [status(), peers::floor(&rig)]);
    let mut seed = peers::seed(&rig, "status");
    if let Ok(seed) = &mut seed {
        seed.env("REDIS_URL", redis.url());
    }
    vec![
        Row::beside(
            what,
            ours.wall,
            "bare `docker container inspect`",
            inspect.wall,
            "ms",
            Target::Times(1.15),
        ),
        against(what, status, SEED, seed, Target::Faster(20.0)),
        against(
            what,
            status,
            "`gpustat --json`, the card only",
            peers::gpustat(&rig),
            Target::None,
        ),
        Row::beside(
            what,
            beside_reading.wall,
            "the card only, in C",
            reading.wall,
            "ms",
            Target::None,
        ),
    ]
}

/// Returns a row that compares a command with another program, or says why that program cannot be
/// run.
fn against(
    what: &str,
    ours: impl Fn() -> Command,
    other: &str,
    theirs: Result<Command, &str>,
    target: Target,
) -> Row {
    match theirs {
        Err(why) => Row::missing(what, other, why),
        Ok(theirs) => {
            let [ours, theirs] = compare(10, [ours(), theirs]);
            Row::beside(what, ours.wall, other, theirs.wall, "ms", target)
        }
    }
}
