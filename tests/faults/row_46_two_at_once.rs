//! Tests of two commands that want different things at once (row 46).

use rig::{Rig, on_both, until};
use serde_json::Value;

/// Adds a service to each of the phases 2 and 4 that needs nearly the whole card.
fn two_phases(rig: &Rig) {
    for (name, phase) in [("vidi", 2), ("comfyui", 4)] {
        rig.native(name).vram(18000).phases([phase]).server("--warmup 200ms").add();
    }
}

/// Asserts that only this service holds memory, that no claim was ever refused, and that the lock
/// was given back.
#[track_caller]
fn assert_end_state(rig: &Rig, service: &str) {
    let held: Vec<_> = rig.card.claims().into_iter().map(|claim| claim.name).collect();
    assert_eq!(held, [rig.mark(service)]);
    rig.assert_no_out_of_memory();
    rig.assert_lock_was_given_back();
}

#[test]
fn row_46_two_phases_at_once_are_prepared_one_after_the_other() {
    on_both(|rig, _| {
        two_phases(rig);
        for _ in 0..3 {
            let both = ["2", "4"].map(|phase| {
                rig.gpuctl(&format!("prepare-phase {phase} --wait 50 --json --quiet")).spawn()
            });
            let [video, image] = both.map(|one| one.wait().succeeds().json());
            rig.assert_no_out_of_memory();
            // The last command is the one that stopped what the other had started.
            let has_stopped =
                |told: &Value, service: &str| told["stopped"] == Value::from([service]);
            let last = match (has_stopped(&video, "comfyui"), has_stopped(&image, "vidi")) {
                (true, false) => "vidi",
                (false, true) => "comfyui",
                _ => panic!("neither is the last one: {video} {image}"),
            };
            assert_end_state(rig, last);
            rig.gpuctl("release-all").run().succeeds().stdout_has(last).progress();
        }
    });
}

#[test]
fn row_46_they_are_prepared_in_the_order_in_which_they_came() {
    on_both(|rig, _| {
        two_phases(rig);
        for phases in [["2", "4"], ["4", "2"]] {
            let token = rig.acquire("somebody --ttl 1h");
            let [first, second] = phases.map(|phase| {
                let prepare = rig.gpuctl(&format!("prepare-phase {phase} --wait 50")).spawn();
                until("it waits", || prepare.stderr().contains("waiting for the GPU lock"));
                prepare
            });
            rig.release(&token);
            first.wait().succeeds().progress().stdout_has("started");
            second.wait().succeeds().progress().stdout_has("stopped");
            let last = if phases[1] == "2" { "vidi" } else { "comfyui" };
            assert_end_state(rig, last);
            rig.gpuctl("release-all").run().succeeds().stdout_has(last).progress();
        }
    });
}
