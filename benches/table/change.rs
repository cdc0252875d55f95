//! A change of phase: what gpuctl adds to the time that the services themselves take to end, to
//! give their memory back and to become ready, and what the program that it replaces takes for the
//! same.

use super::measure::{gpuctl, median, run};
use super::peers::{self, SEED};
use super::report::{Row, Section, Target};
use rig::{Rig, Service, until};
use serde_json::json;
use std::time::Instant;

pub fn measure() -> Section {
    let mut rows = Vec::new();
    for (warmup, rounds) in [("200ms", 5), ("2s", 3)] {
        rows.extend(change(
            &format!("native, ready after {warmup}"),
            Rig::new(),
            Kind::Native,
            warmup,
            rounds,
        ));
    }
    match Rig::with_docker() {
        Some(rig) => {
            rows.extend(change("Docker, ready after 200ms", rig, Kind::Docker, "200ms", 5))
        }
        None => rows.push(Row::missing("Docker", "", "there is no Docker engine")),
    }
    Section {
        title: "A change of phase",
        note: "From one service to another that does not fit beside it: the first takes 100 ms to end, and the driver 300 ms \
               more to have the memory back. By hand is the same with eyes on the card and the port: `kill` or `docker stop`, \
               wait for the memory, start, wait for the answer; looked every 10 ms.",
        rows,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Native,
    Docker,
}

fn change(what: &str, rig: Rig, kind: Kind, warmup: &str, rounds: usize) -> Vec<Row> {
    rig.card.describe(&json!({"reclaim_delay_ms": 300}));
    let flags = format!("--warmup {warmup} --term-delay 100ms");
    let add = |name, phase| {
        let draft = if kind == Kind::Native { rig.native(name) } else { rig.container(name) };
        draft.vram(18000).phases([phase]).server(&flags).add()
    };
    let (from, to) = (add("vidi", 2), add("cosyvoice", 3));
    let prepare = |phase| run(&mut gpuctl(&rig, &format!("prepare-phase {phase} --quiet"))).wall;
    let mut ours = Vec::new();
    let mut floor = Vec::new();
    let mut theirs = Vec::new();
    for round in 0..rounds {
        prepare(2);
        ours.push(prepare(3));
        prepare(2);
        floor.push(by_hand(&rig, kind, &from, &to));
        // The old program takes seconds, and about as many each time, so a few rounds are enough.
        if let (true, Ok(mut seed)) = (round < 3, peers::seed(&rig, "prepare-phase 3")) {
            prepare(2);
            seed.env("REDIS_URL", "redis://127.0.0.1");
            // The simulated driver begins to take memory back when somebody looks at the card,
            // which the old program does not do.
            rig.card.peak_mb_during(|| theirs.push(run(&mut seed).wall));
        }
    }
    let (ours, floor) = (median(ours), median(floor));
    vec![
        Row::beside(what, ours, "by hand", floor, "ms", Target::Overhead),
        match peers::python() {
            Ok(_) => Row::beside(what, ours, SEED, median(theirs), "ms", Target::None),
            Err(why) => Row::missing(what, SEED, why),
        },
    ]
}

fn by_hand(rig: &Rig, kind: Kind, from: &Service, to: &Service) -> f64 {
    let begun = Instant::now();
    match kind {
        Kind::Native => {
            for pid in rig.processes_of(from) {
                rig::signal(pid, rig::Signal::TERM);
            }
        }
        Kind::Docker => drop(rig.docker(&["stop", from.mark()])),
    }
    until("the memory is back", || rig.card.used_mb() == 0);
    let server = match kind {
        Kind::Native => Some(rig.by_hand(to.command())),
        Kind::Docker => {
            rig.docker(&["start", to.mark()]);
            None
        }
    };
    until("it answers", || to.is_healthy());
    let wall = begun.elapsed().as_secs_f64() * 1e3;
    // gpuctl needs this server's memory for what it starts next.
    if server.is_some() {
        drop(server);
        until("it is gone", || rig.card.used_mb() == 0);
    }
    wall
}
