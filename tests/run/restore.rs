//! Tests of `gpuctl run --restore`: what was stopped or unloaded is ready again afterwards, however
//! the command ended.

use rig::{LOCK_KEY, Rig, Running, Service, Signal, on_both, until};
use serde_json::json;
use std::time::{Duration, Instant};

/// Starts two services that both have to make way for a command of 20 GB; ollama takes a while to
/// end.
fn prepare(rig: &Rig) -> [Service; 2] {
    let services = [
        rig.native("vidi").vram(8000).priority(40).server("--warmup 100ms").add(),
        rig.native("ollama").vram(9000).priority(60).server("--term-delay 200ms").add(),
    ];
    for name in ["vidi", "ollama"] {
        rig.gpuctl("start").arg(name).run().succeeds().ignores_stdout().progress();
    }
    services
}

fn are_back(services: &[Service]) -> bool {
    services.iter().all(Service::is_healthy)
}

#[test]
fn what_was_stopped_is_back_in_order_of_priority_however_the_command_ended() {
    let rig = Rig::new();
    let services = prepare(&rig);
    for (command, code) in [("true", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -INT $$", 130)]
    {
        let script = format!("! curl -s {} && {command}", services[1].url("/health"));
        let run = rig.gpuctl("run --restore --vram 20GB -- sh -c").arg(script).run().exits(code);
        let told = run.stderr_text();
        let [first, second] = ["starting ollama", "starting vidi"].map(|line| told.find(line));
        assert!(first.is_some() && first < second, "{told}");
        assert!(told.contains("restoring ollama, vidi") && told.contains("restored"), "{told}");
        assert!(are_back(&services), "{command}");
        rig.assert_free_and_alone();
    }
    let history = rig.gpuctl("history --json -n 1").run().succeeds().json();
    let actions: Vec<_> = history["runs"][0]["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| step["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["stop", "stop", "reclaim", "run", "start", "start"]);
}

/// Services that the call has started make room again for those that it stopped for them, as far as
/// necessary.
#[test]
fn what_ran_before_comes_back_in_the_place_of_what_was_started() {
    let rig = Rig::new();
    let services = prepare(&rig);
    let comfyui = rig.native("comfyui").vram(20000).priority(100).phases([4]).add();
    let small = rig.native("small").vram(2000).priority(100).phases([4]).add();
    rig.gpuctl("run --restore comfyui -- true").run().succeeds().progress();
    assert!(are_back(&services) && !comfyui.is_healthy());
    rig.gpuctl("run --restore --phase 4 -- true").run().succeeds().progress();
    assert!(are_back(&services) && !comfyui.is_healthy() && small.is_healthy());
    rig.assert_no_out_of_memory();
}

#[test]
fn what_was_put_to_sleep_is_awake_again() {
    let rig = Rig::new();
    let vllm = rig.native("vllm").vram(16000).server("--api vllm --unload-residual 500").add();
    rig.set("services.vllm.evict", "unload");
    rig.set("services.vllm.api", "vllm");
    rig.set("services.vllm.url", vllm.url(""));
    rig.gpuctl("start vllm").run().succeeds().ignores_stdout().progress();
    let run = rig.gpuctl("run --restore --vram 20GB -- true").run().succeeds();
    run.stderr_has("unloaded vllm").stderr_has("restored vllm").progress();
    assert_eq!(rig.card.used_mb(), 16000);
}

/// Services that ran beside one another before may do so again, whatever memory they declare.
#[test]
fn what_ran_beside_more_than_the_card_has_comes_back_as_it_was() {
    let rig = Rig::new();
    let lazy = |name, priority| {
        let draft = rig.native(name).vram(20000).priority(priority).server("--idle-vram 600");
        draft.add()
    };
    let services = [lazy("one", 1), lazy("two", 2)];
    let _by_hand = services.each_ref().map(|service| rig.by_hand(service.command()));
    until("both are there", || are_back(&services));
    rig.gpuctl("run --restore --vram 20GB -- true").run().succeeds().progress();
    assert!(are_back(&services));
}

#[test]
fn a_restore_that_fails_is_told_and_is_5_where_the_command_went_well() {
    let rig = Rig::new();
    let services = prepare(&rig);
    let breaks = |code: i32| format!("touch broken; exit {code}");
    let start = format!("[ -e broken ] && exit 3; exec {}", services[1].command());
    rig.set("services.ollama.start", start);
    rig.set("services.ollama.cwd", rig.path("home").display().to_string());
    let run =
        |code| rig.gpuctl("run --restore --json --vram 20GB -- sh -c").arg(breaks(code)).run();
    let failed = run(0).fails("start_failed").progress().json();
    let message = failed["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("not restored: ollama (ollama: "), "{message}");
    assert_eq!(failed["error"]["details"]["not_restored"], json!(["ollama"]));
    assert!(services[0].is_healthy(), "the others are back");

    std::fs::remove_file(rig.path("home/broken")).unwrap();
    rig.gpuctl("start ollama").run().succeeds().ignores_stdout().progress();
    drop(run(7).exits(7).stderr_has("warning: not restored: ollama"));
    rig.assert_free_and_alone();
}

#[test]
fn what_was_stopped_is_back_where_the_command_never_ran() {
    let rig = Rig::new();
    let services = prepare(&rig);
    rig.native("comfyui").vram(20000).priority(100).set("start", "exit 1").add();
    let run = rig.gpuctl("run --restore comfyui -- touch ran").run().fails("start_failed");
    drop(run.stderr_has("comfyui: its start command exited with code 1"));
    assert!(are_back(&services) && !rig.path("home/ran").exists());

    let run = rig.gpuctl("run --restore --vram 20GB -- touch ran").spawn();
    until("it stops ollama", || run.stderr().contains("stopping ollama"));
    run.signal(Signal::TERM);
    drop(run.wait().exits(143).stderr_has("restoring"));
    assert!(are_back(&services) && !rig.path("home/ran").exists());
    rig.assert_free_and_alone();
}

#[test]
fn the_lock_is_held_until_everything_is_back() {
    let rig = Rig::new();
    let services = prepare(&rig);
    rig.set("services.ollama.start", format!("sleep 1; exec {}", services[1].command()));
    let run = rig.gpuctl("run --restore --vram 20GB -- touch ran").spawn();
    until("the command has run", || rig.path("home/ran").exists());
    let script = format!("curl -sf {}", services[0].url("/health"));
    rig.gpuctl("run --quiet --vram 0 -- sh -c").arg(&script).run().succeeds().ignores_stdout();
    run.wait().succeeds().progress();
}

/// The card may be another caller's by then, so the lock is taken again first.
#[test]
fn what_was_stopped_is_back_where_the_lock_was_lost() {
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    rig.set("lock.wait", "1s");
    let services = prepare(&rig);
    let script = "touch there; exec sleep 1000";
    let run = || rig.gpuctl("run --restore --vram 20GB -- sh -c").arg(script).spawn();
    let lose = || {
        until("the command runs", || rig.path("home/there").exists());
        std::fs::remove_file(rig.path("home/there")).unwrap();
        assert_eq!(redis.cli(&["DEL", LOCK_KEY]), "1");
    };
    let first = run();
    lose();
    drop(first.wait().fails("lock_lost").stderr_has("restored ollama, vidi"));
    assert!(are_back(&services));
    rig.assert_free_and_alone();

    let second = run();
    lose();
    redis.cli(&["SET", LOCK_KEY, "another", "EX", "600"]);
    let told = "warning: not restored: ollama, vidi (the GPU lock is held by another";
    drop(second.wait().fails("lock_lost").stderr_has(told));
    assert_eq!(rig.card.used_mb(), 0, "nothing is done beside another");
}

/// The part of a run that is killed.
#[derive(Clone, Copy, Debug)]
enum Killed {
    Alone,
    Group,
}

fn kill(run: &Running, what: Killed) {
    match what {
        Killed::Alone => run.signal(Signal::KILL),
        Killed::Group => {
            let group = rustix::process::Pid::from_raw(run.pid()).unwrap();
            // The group may have ended already.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

/// Kills a `run --restore` at twenty moments from its start to its end, each time on the machine as
/// the run before has left it.
fn sweep(what: Killed) {
    on_both(|rig, _| {
        let services = prepare(rig);
        let run = || rig.gpuctl("run --restore --quiet --vram 20GB -- sleep 0.3").spawn();
        let begun = Instant::now();
        run().wait().succeeds();
        let whole = begun.elapsed();
        for moment in 0..20 {
            let run = run();
            let begun = Instant::now();
            while begun.elapsed() < whole * moment / 20 {
                std::thread::sleep(Duration::from_millis(1));
            }
            kill(&run, what);
            // If the machine was faster this time, the run had ended already.
            drop(run.wait().ended());
            until("the lock is free", || rig.lock_is_free());
            assert!(are_back(&services), "{what:?} at {moment}/20 of {whole:?}");
            rig.gpuctl("status --check vidi --check ollama").run().succeeds().ignores_stdout();
        }
        rig.assert_free_and_alone();
        rig.assert_no_out_of_memory();
    });
}

#[test]
fn killed_alone_at_twenty_moments_everything_is_back_and_the_lock_free() {
    sweep(Killed::Alone);
}

#[test]
fn killed_with_its_group_at_twenty_moments_everything_is_back_and_the_lock_free() {
    sweep(Killed::Group);
}

#[test]
fn what_a_killed_run_owed_is_in_the_history() {
    let rig = Rig::new();
    let services = prepare(&rig);
    let run = rig.gpuctl("run --restore --quiet --vram 20GB -- sleep 1000").spawn();
    until("the card is cleared", || rig.card.used_mb() == 0);
    run.signal(Signal::KILL);
    drop(run.wait().dies_of(9));
    until("everything is back", || rig.lock_is_free() && are_back(&services));
    let history = rig.gpuctl("history").run().succeeds().text();
    assert!(history.contains("never finished: gpuctl was killed"), "{history}");
    assert!(history.contains("restore ollama, vidi"), "{history}");
}

#[test]
fn a_warning_that_holds_for_each_step_is_told_once() {
    let rig = Rig::new();
    let services = prepare(&rig);
    rig.set("gpu.nvml_library", "/none/libnvidia-ml.so.1");
    rig.set("gpu.total_mb", 24576);
    let run = rig.gpuctl("run --restore --vram 20GB -- true").run().succeeds();
    let told = run.stderr_text();
    assert!(told.contains("restored ollama, vidi"), "{told}");
    assert_eq!(told.matches("planning with gpu.total_mb").count(), 1, "{told}");
    assert!(are_back(&services));
}
