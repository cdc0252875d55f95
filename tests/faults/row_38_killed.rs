//! Tests that kill gpuctl in the middle of `prepare-phase`, at twenty points, and run it again (row
//! 38).
//!
//! The phase changes from vidi and voice to comfyui, ollama and a slow service. A point is a state
//! of the world or a line that gpuctl has printed; the slow service keeps every point well before
//! the end.

use rig::{Rig, Script, Service, Signal, until};
use serde_json::json;
use std::time::{Duration, Instant};

struct World {
    rig: Rig,
    vidi: Service,
    voice: Service,
    comfyui: Service,
    ollama: Service,
}

/// A point at which gpuctl is to be killed: its name, and whether it is reached, judged by the
/// world and what gpuctl has printed so far.
type Point = (&'static str, fn(&World, &str) -> bool);

fn in_phase_two() -> World {
    let rig = Rig::new();
    rig.card.describe(&json!({"reclaim_delay_ms": 250}));
    let native = |name, vram, phase| rig.native(name).vram(vram).phases([phase]);
    let vidi = native("vidi", 10000, 2).server("--fork 2 --term-delay 200ms").add();
    let voice = native("voice", 8000, 2).script(Script::Daemon).server("--double-fork").add();
    let comfyui = native("comfyui", 16000, 4)
        .script(Script::File)
        .server("--idle-vram 16000 --warmup 500ms --steps 8")
        .add();
    let ollama = native("ollama", 3000, 4).script(Script::Background).add();
    native("slow", 1000, 4).server("--warmup 1200ms").add();
    rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("started vidi, voice").progress();
    World { rig, vidi, voice, comfyui, ollama }
}

fn kill_at_and_run_again(points: &[Point]) {
    for (point, is_reached) in points {
        let world = in_phase_two();
        let rig = &world.rig;
        let prepare = rig.gpuctl("prepare-phase 4").spawn();
        until(point, || is_reached(&world, &prepare.stderr()));
        prepare.signal(Signal::KILL);
        drop(prepare.wait().dies_of(9).ignores_stderr());

        rig.gpuctl("prepare-phase 4").run().succeeds().stdout_has("phase 4").progress();
        let mut held: Vec<_> = rig.card.claims().into_iter().map(|c| (c.name, c.mb)).collect();
        held.sort();
        let expected = [("comfyui", 16000), ("ollama", 3000), ("slow", 1000)];
        assert_eq!(held, expected.map(|(name, mb)| (rig.mark(name), mb)), "{point}");
        rig.assert_no_process_of(&world.vidi);
        rig.assert_no_process_of(&world.voice);
        assert_eq!(rig.processes_of(&world.ollama).len(), 1, "{point}");
        assert!(world.comfyui.is_healthy() && world.ollama.is_healthy(), "{point}");
        rig.assert_no_out_of_memory();

        rig.gpuctl("release-all").run().succeeds().stdout_has("stopped comfyui").progress();
        for service in [&world.comfyui, &world.ollama] {
            rig.assert_no_process_of(service);
        }
        assert_eq!(rig.card.used_mb(), 0, "{point}");
    }
}

fn log_exists(world: &World, service: &str) -> bool {
    world.rig.state_dir().join(format!("logs/{service}.log")).exists()
}

fn runs(world: &World, service: &Service) -> bool {
    !world.rig.processes_of(service).is_empty()
}

#[test]
fn row_38_killed_while_it_stops_services_the_next_run_converges() {
    kill_at_and_run_again(&[
        ("at once", |_, _| true),
        ("anything is told", |_, told| !told.is_empty()),
        ("it stops vidi", |_, told| told.contains("stopping vidi")),
        ("it stops voice", |_, told| told.contains("stopping voice")),
        ("the first process is gone", |world, _| {
            world.rig.card.claims().len() + world.rig.processes_of(&world.vidi).len() < 6
        }),
    ]);
}

#[test]
fn row_38_killed_while_it_waits_for_their_end_and_memory_the_next_run_converges() {
    kill_at_and_run_again(&[
        ("voice is gone", |world, _| !runs(world, &world.voice)),
        ("vidi is gone", |world, _| !runs(world, &world.vidi)),
        ("both are gone", |world, _| !runs(world, &world.vidi) && !runs(world, &world.voice)),
        ("some memory is back", |world, _| world.rig.card.used_mb() < 18000),
        ("all memory is back", |world, _| world.rig.card.used_mb() == 0),
    ]);
}

#[test]
fn row_38_killed_while_it_starts_services_the_next_run_converges() {
    kill_at_and_run_again(&[
        ("it starts comfyui", |_, told| told.contains("starting comfyui")),
        ("it starts ollama", |_, told| told.contains("starting ollama")),
        ("comfyui has a log", |world, _| log_exists(world, "comfyui")),
        ("ollama has a log", |world, _| log_exists(world, "ollama")),
        ("comfyui runs", |world, _| runs(world, &world.comfyui)),
    ]);
}

#[test]
fn row_38_killed_while_it_waits_until_they_are_ready_the_next_run_converges() {
    kill_at_and_run_again(&[
        ("ollama runs", |world, _| runs(world, &world.ollama)),
        ("comfyui takes memory", |world, _| world.rig.card.used_mb() >= 8000),
        ("comfyui has its memory", |world, _| world.rig.card.used_mb() >= 18000),
        ("ollama is ready", |world, _| world.ollama.is_healthy()),
        ("comfyui is ready", |world, _| world.comfyui.is_healthy()),
    ]);
}

/// Nothing shows which service a process belongs to between the fork of a start command and its
/// execution.
#[test]
fn row_38_a_server_that_a_killed_gpuctl_was_just_starting_is_awaited_by_the_next_run() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").without_match().server("--warmup 1s").add();
    let server = vidi.command().to_owned();
    rig.shell("mkfifo late").run().succeeds();
    rig.set("services.vidi.start", "touch begun; read _ <late; exit 1");
    rig.set("services.vidi.cwd", rig.path("home").display().to_string());
    let config = std::fs::canonicalize(rig.path("gpuctl.toml")).unwrap();
    let script = format!(
        "cd {}; until [ -e begun ]; do sleep 0.02; done; GPUCTL_SERVICE=vidi GPUCTL_CONFIG={} exec {server}",
        rig.path("home").display(),
        config.display()
    );
    rig.program("orphan", &script);
    let orphan = rig.by_hand("orphan");
    let born = Instant::now();
    until("it is older than what comes next", || born.elapsed() > Duration::from_millis(100));
    let start = rig.gpuctl("start vidi").spawn();
    let environment = format!("/proc/{}/environ", orphan.pid());
    until("it shows whose it is", || {
        std::fs::read_to_string(&environment).is_ok_and(|text| text.contains("GPUCTL_SERVICE=vidi"))
    });
    std::fs::write(rig.path("home/late"), "\n").unwrap();
    start.wait().succeeds().stdout_has("started vidi").progress();
    assert!(vidi.is_healthy());
    assert_eq!(rig.processes_of(&vidi), [orphan.pid()]);
}
