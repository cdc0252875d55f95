//! Tests of memory that does not come back or that somebody else takes (row 42).

use rig::{Rig, until};
use serde_json::json;

const FOR_EVER: u64 = 3_600_000;

#[test]
fn row_42_memory_that_does_not_come_back_is_told_with_its_holders() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(18000).phases([2]).add();
    let voice = rig.native("voice").vram(18000).phases([3]).add();
    rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("started vidi").progress();
    let holder = rig.card.claims()[0].pid.unwrap();
    rig.card.describe(&json!({"reclaim_delay_ms": FOR_EVER}));

    let error = rig.gpuctl("prepare-phase 3 --json --quiet").run().fails("stop_failed").json();
    let error = &error["error"];
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&format!("still held by process {holder} (")), "{message}");
    assert!(message.contains("vidi"), "{message}");
    assert_eq!(error["details"]["holders"][0]["memory_mb"], 18000);
    assert_eq!(error["details"]["stopped"], json!(["vidi"]));
    rig.assert_no_process_of(&vidi);
    rig.assert_no_process_of(&voice);
    rig.assert_no_out_of_memory();

    // vidi has ended, but its memory, which the next service needs, is waited for in vain.
    let start = rig.gpuctl("start voice --quiet").run().fails("stop_failed");
    start.stderr_has(&format!("process {holder} ("));
}

#[test]
fn row_42_what_somebody_else_takes_meanwhile_is_told_and_nothing_is_started() {
    let rig = Rig::new();
    let voice = rig.native("voice").vram(4000).phases([3]).add();
    let comfyui = rig.native("comfyui").vram(20000).phases([4]).add();
    rig.gpuctl("prepare-phase 3").run().succeeds().stdout_has("started voice").progress();
    rig.card.describe(&json!({"reclaim_delay_ms": FOR_EVER}));
    let prepare = rig.gpuctl("prepare-phase 4").spawn();
    until("voice has ended", || rig.processes_of(&voice).is_empty());

    let server = voice.command().split_whitespace().next().unwrap();
    let game = rig.mark("game");
    let game = rig.by_hand(&format!("{server} --vram 8000 --name {game}"));
    until("somebody else takes memory", || rig.card.used_mb() == 12000);
    rig.card.describe(&json!({"reclaim_delay_ms": 0}));
    let prepare = prepare.wait().fails("insufficient_vram");
    prepare.stderr_has(&format!("process {} (", game.pid())).stderr_has("nothing was started");
    rig.assert_no_process_of(&comfyui);
    rig.assert_no_out_of_memory();
}

#[test]
fn row_42_memory_that_somebody_else_gives_back_is_not_taken_for_it() {
    let rig = Rig::new();
    let voice = rig.native("voice").vram(4000).add();
    let game = rig.native("game").vram(8000).server("--api comfyui").add();
    let _game = rig.by_hand(game.command());
    until("the game runs", || rig.card.used_mb() == 8000);
    rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    rig.card.describe(&json!({"reclaim_delay_ms": FOR_EVER}));
    let stop = rig.gpuctl("stop voice").spawn();
    until("voice has ended", || rig.processes_of(&voice).is_empty());
    let free = json!({"free_memory": true});
    ureq::post(game.url("/free")).send_json(&free).unwrap();
    until("the game has given back more than voice held", || rig.card.used_mb() == 4000);
    stop.wait().fails("stop_failed").stderr_has("the memory of voice did not come back");
}
