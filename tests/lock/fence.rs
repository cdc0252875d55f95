//! Tests that the fence rises with every holder, whatever happens to the lock and to the place
//! where it is kept.

use rig::{Rig, on_both, until};
use std::fs;

/// Takes the lock, keeps it, and returns its fence.
#[track_caller]
fn fence_of(rig: &Rig, words: &str) -> u64 {
    let acquire = rig.gpuctl(&format!("lock acquire {words} --no-wait --json")).run();
    acquire.succeeds().json()["fence"].as_u64().unwrap()
}

fn release(rig: &Rig) {
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
}

#[test]
fn fences_rise_across_release_expiry_and_takeover() {
    on_both(|rig, _| {
        let mut fences = Vec::new();
        for _ in 0..3 {
            fences.push(fence_of(rig, "released"));
            release(rig);
        }
        fences.push(fence_of(rig, "expired --ttl 1"));
        until("its time is over", || rig.lock_is_free());
        let job = rig.by_hand("sleep 1000");
        fences.push(fence_of(rig, &format!("abandoned --pid {}", job.pid())));
        drop(job);
        fences.push(fence_of(rig, "heir"));
        assert!(fences.is_sorted_by(|before, after| before < after), "{fences:?}");
        assert!(fences[0] > 0);
        assert_eq!(rig.lock_held()["fence"], *fences.last().unwrap());
    });
}

#[test]
fn fences_rise_also_for_commands_that_act() {
    on_both(|rig, _| {
        rig.native("vidi").add();
        let before = fence_of(rig, "me");
        release(rig);
        rig.gpuctl("stop vidi").run().succeeds().stdout_has("nothing to do").progress();
        let shown = rig.gpuctl("run vidi --quiet -- sh -c").arg("echo $GPUCTL_FENCE").run();
        let shown: u64 = shown.succeeds().text().trim().parse().unwrap();
        assert!(shown > before + 1, "{before}, one that stopped, {shown}");
        assert!(fence_of(rig, "me") > shown);
    });
}

#[test]
fn a_fence_is_remembered_where_the_lock_itself_was_removed() {
    let rig = Rig::new();
    let first = fence_of(&rig, "me --ttl 60");
    fs::remove_dir_all(rig.path("run")).unwrap();
    rig.assert_lock_is_free();
    let second = fence_of(&rig, "me");
    assert!(second > first, "{first}, {second}");
    // A record that was cleared by force holds no fence any more.
    fs::write(rig.lock_file(), "damaged").unwrap();
    release(&rig);
    assert!(fence_of(&rig, "me") > second);

    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    let first = fence_of(&rig, "me --ttl 60");
    redis.cli(&["FLUSHALL"]);
    release(&rig);
    assert!(fence_of(&rig, "me") > first);
}

#[test]
fn a_fence_rises_with_another_state_folder_too() {
    on_both(|rig, _| {
        let first = fence_of(rig, "me");
        release(rig);
        fs::remove_dir_all(rig.state_dir()).ok();
        assert!(fence_of(rig, "me") > first);
    });
}
