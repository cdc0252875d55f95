//! Tests of `gpuctl run --vram`: room is made for a command that is no service.

use rig::{Rig, Service, until};
use serde_json::json;

/// Starts three services that fill the card but for 2552 MB; comfyui has the highest priority, then
/// tts, then ollama.
fn full_card() -> (Rig, [Service; 3]) {
    let rig = Rig::new();
    let native = |name, vram, priority| rig.native(name).vram(vram).priority(priority).add();
    let services =
        [native("comfyui", 9000, 100), native("tts", 4000, 50), native("ollama", 8000, 10)];
    for name in ["comfyui", "tts", "ollama"] {
        rig.gpuctl("start --no-preempt").arg(name).run().succeeds().ignores_stdout().progress();
    }
    assert_eq!(rig.card.used_mb(), 21000);
    (rig, services)
}

fn run(rig: &Rig, words: &str) -> Vec<String> {
    rig.gpuctl(&format!("{words} -- true")).run().succeeds().progress();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    let services = status["services"].as_object().unwrap().iter();
    let ready = services.filter(|(_, service)| service["state"] == "ready");
    ready.map(|(name, _)| name.clone()).collect()
}

#[test]
fn room_is_made_from_the_lowest_priority_up_and_no_more_than_is_asked_for() {
    let (rig, _) = full_card();
    assert_eq!(run(&rig, "run --vram 2GB"), ["comfyui", "tts", "ollama"]);
    assert_eq!(run(&rig, "run --vram 2552"), ["comfyui", "tts", "ollama"]);
    assert_eq!(run(&rig, "run --vram 8GB"), ["comfyui", "tts"]);
    assert_eq!(run(&rig, "run --vram 20GB"), [""; 0]);
}

/// Victims that are not needed after all are spared.
#[test]
fn who_need_not_go_after_all_is_spared() {
    let (rig, _) = full_card();
    // If tts and ollama go, 14552 MB are free; if ollama and comfyui go, 19552 MB.
    assert_eq!(run(&rig, "run --vram 19000"), ["tts"]);
}

#[test]
fn only_strictly_lower_priorities_make_room_where_one_is_given() {
    let (rig, services) = full_card();
    assert_eq!(run(&rig, "run --vram 8GB --priority 50"), ["comfyui", "tts"]);
    let refused = rig.gpuctl("run --vram 12GB --priority 50 --json -- true").run();
    let error = refused.fails("insufficient_vram").json()["error"].clone();
    assert_eq!(
        error["message"],
        "the command needs 12288 MB, but at most 10552 MB can be freed (beside a reserve of 1024 MB); \
         in the way: comfyui (priority 100, 9000 MB), tts (priority 50, 4000 MB)"
    );
    assert!(error["hint"].as_str().unwrap().contains("--priority"), "{error}");
    assert_eq!(error["details"]["needed_mb"], 12288);
    assert!(services[..2].iter().all(Service::is_healthy), "nothing was stopped");
    assert_eq!(run(&rig, "run --vram 12GB --priority 51"), ["comfyui"]);
    assert_eq!(run(&rig, "run --vram 20GB --priority 101"), [""; 0]);
}

#[test]
fn what_cannot_fit_is_refused_before_anything_is_stopped() {
    let (rig, services) = full_card();
    let run = |words: &str| rig.gpuctl(&format!("{words} -- touch ran")).run();
    run("run --vram 23553")
        .fails("insufficient_vram")
        .stderr_has("the command needs 23553 MB, but at most 23552 MB can be freed")
        .stderr_has("hint: the card is too small for this");
    // gpuctl must not stop a stranger.
    let _stranger = rig.by_hand(&format!("{} --vram 2000", rig.simserver()));
    until("the stranger holds its memory", || rig.card.used_mb() == 23000);
    run("run --vram 22000").fails("insufficient_vram").stderr_has("in the way: process");
    assert!(services.iter().all(Service::is_healthy) && !rig.path("home/ran").exists());
    run("run --vram 20TB")
        .fails("usage")
        .stderr_has("\"20TB\" is not a valid size")
        .stderr_has("20GB");
    run("run comfyui --vram 2GB").fails("usage").stderr_has("cannot be used together");
    run("run comfyui --priority 2").fails("usage").stderr_has("--priority is for --vram");
    run("run --restore").fails("usage").stderr_has("--vram");
}

#[test]
fn a_service_that_unloads_on_request_is_asked_to() {
    let rig = Rig::new();
    let ollama = rig.native("ollama").vram(20000).server("--api ollama --model a").add();
    rig.set("services.ollama.evict", "unload");
    rig.set("services.ollama.api", "ollama");
    rig.set("services.ollama.url", ollama.url(""));
    rig.gpuctl("start ollama").run().succeeds().ignores_stdout().progress();
    let process = rig.processes_of(&ollama);
    let room = rig.gpuctl("run --vram 16GB -- cat /dev/null").run().succeeds();
    room.stderr_has("room of 16384 MB: unloaded ollama; freed 20000 MB").progress();
    assert_eq!((rig.processes_of(&ollama), rig.card.used_mb()), (process, 0));
}

#[test]
fn the_lock_shows_what_the_room_is_for() {
    let (rig, _) = full_card();
    let script = "touch there; exec sleep 1000";
    let run = rig.gpuctl("run --quiet --vram 2GB -- sh -c").arg(script).spawn();
    until("the command runs", || rig.path("home/there").exists());
    let status = rig.gpuctl("lock status --json").run().exits(1).json();
    assert_eq!(status["holder"], json!("2048 MB"));
    run.signal(rig::Signal::TERM);
    drop(run.wait().exits(143));
    rig.gpuctl("history").run().succeeds().stdout_has("run room of 2048 MB: sh");
}
