//! Tests of a lock that is lost while its holder acts: it is deleted (row 11), or Redis loses
//! everything (rows 22 and 23).

use super::backends::{Place, in_redis};
use super::lock_work::Work;
use rig::{LOCK_KEY, Rig, until, with_room};
use std::time::{Duration, Instant};

/// The 10 s between two renewals of the lock, with room for a loaded machine.
const A_RENEWAL: Duration = with_room(10);

#[test]
fn row_11_a_lock_that_is_deleted_or_taken_is_noticed_at_the_next_renewal_and_the_command_ended() {
    in_redis([delete, delete_and_take]);
}

fn delete(place: &Place) {
    let work = Work::begin(&place.rig);
    place.vanishes();
    let deleted = Instant::now();
    until("the command ends", || !work.goes_on());
    assert!(deleted.elapsed() < A_RENEWAL, "{:?}", deleted.elapsed());
    let lost = work.gpuctl.wait().fails("lock_lost");
    lost.stderr_has("the GPU lock is lost: nobody holds it now");
    assert_eq!(place.holder(), None);
}

fn delete_and_take(place: &Place) {
    let work = Work::begin(&place.rig);
    place.vanishes();
    place.is_taken_by("another");
    let lost = work.gpuctl.wait().fails("lock_lost");
    lost.stderr_has("the GPU lock is lost: it is held by another");
    place.rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
}

#[test]
fn row_11_a_lock_that_was_deleted_since_the_last_renewal_is_noticed_in_the_end() {
    in_redis([|place| {
        let rig = &place.rig;
        rig.native("vidi").server("--warmup 2s").add();
        let start = rig.gpuctl("start vidi --json").spawn();
        until("it starts", || start.stderr().contains("starting vidi"));
        place.vanishes();
        start.wait().fails("lock_lost").progress().stdout_has("\"lock_lost\"");
        assert_eq!(place.holder(), None);
        // The same command again finds its work done and the lock free.
        rig.gpuctl("start vidi").run().succeeds().progress().stdout_has("vidi");
    }]);
}

#[test]
fn row_11_a_lock_that_is_lost_while_a_service_wakes_ends_the_wait_for_its_answer() {
    in_redis([|place| {
        let rig = &place.rig;
        let server = "--api vllm --unload-residual 700 --load-delay 1h";
        let model = rig.native("model").vram(12000).phases([1]).server(server);
        let model = model.set("evict", "unload").set("api", "vllm").set("url", "http://[::1]");
        let model = model.set("start_timeout", "1h").add();
        rig.set("services.model.url", model.url(""));
        rig.gpuctl("start model --quiet").run().succeeds();
        ureq::post(model.url("/sleep")).send_empty().unwrap();
        until("it sleeps", || rig.card.used_mb() == 700);
        let wakes = rig.gpuctl("start model").spawn();
        until("it is woken", || wakes.stderr().contains("waking model"));
        place.vanishes();
        wakes.wait().fails("lock_lost").stderr_has("the GPU lock is lost").ignores_stderr();
        assert_eq!(place.holder(), None);
        assert!(model.is_healthy(), "it was left as it was");
        assert_eq!(rig.card.used_mb(), 700);
    }]);
}

#[test]
fn row_22_a_server_that_comes_back_empty_is_noticed_at_the_next_renewal() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    let work = Work::begin(&rig);
    redis.restart();
    let restarted = Instant::now();
    until("the command ends", || !work.goes_on());
    assert!(restarted.elapsed() < A_RENEWAL, "{:?}", restarted.elapsed());
    work.gpuctl.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
}

/// Asserts that a command that comes after the lock's place has lost everything is told of the
/// command that is still at work, and begins when that one has ended.
fn next_waits_for_the_last(rig: &Rig, lose: impl FnOnce()) {
    let work = Work::begin(rig);
    lose();
    let refused = rig.gpuctl("run --no-wait vidi -- touch ran").run().fails("lock_busy");
    drop(refused.stderr_has("held by vidi"));
    assert!(!rig.path("home/ran").exists());
    // A command that has ended but was not reaped yet has no command line.
    let beside = format!("cat /proc/{}/cmdline 2>/dev/null; true", work.pid);
    let next = rig.gpuctl("run --quiet --wait 5m vidi -- sh -c").arg(&beside).spawn();
    next.wait().succeeds().stdout("");
    work.gpuctl.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
    rig.assert_free_and_alone();
}

#[test]
fn row_11_after_a_lock_was_deleted_the_next_command_begins_when_the_last_has_ended() {
    in_redis([|place| next_waits_for_the_last(&place.rig, || place.forgets())]);
}

#[test]
fn row_22_after_an_empty_restart_the_next_command_begins_when_the_last_has_ended() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    next_waits_for_the_last(&rig, || redis.restart());
}

#[test]
fn row_23_the_fence_rises_too_for_one_who_waited_while_all_was_forgotten() {
    in_redis([|place| {
        let first = place.acquire("first");
        let second = place.waiter("second --json --wait 50");
        place.release(&first);
        let second = second.wait().succeeds().progress().json();
        // The third waits on another machine: on this one the second holds the machine's lock,
        // which forgets nothing.
        let third = place.rig.elsewhere("lock acquire third --json --wait 50").spawn();
        until("it waits", || third.stderr().contains("held by second"));
        place.forgets();
        let third = third.wait().succeeds().progress().json();
        assert!(third["fence"].as_u64() > second["fence"].as_u64(), "{second} {third}");
    }]);
}

#[test]
fn row_22_a_server_that_came_back_empty_since_the_last_renewal_is_noticed_in_the_end() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    rig.native("vidi").server("--warmup 2s").add();
    let start = rig.gpuctl("start vidi").spawn();
    until("it starts", || start.stderr().contains("starting vidi"));
    redis.restart();
    start.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
    assert_eq!(redis.holder(), None);
}

#[test]
fn row_23_the_fence_rises_also_when_redis_has_forgotten_everything() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    let fence = || {
        let document = rig.gpuctl("lock acquire --json --no-wait").run().succeeds().json();
        let release = format!("lock release --token {}", document["token"].as_str().unwrap());
        let shown = rig.gpuctl("lock status --json").run().exits(1).json();
        assert_eq!(shown["fence"], document["fence"]);
        drop(rig.gpuctl(&release).run().exits(0).text());
        document["fence"].as_u64().unwrap()
    };
    let mut fences = vec![fence(), fence()];
    redis.cli(&["FLUSHALL"]);
    fences.push(fence());
    redis.restart();
    fences.push(fence());
    // The fence also rises when Redis forgets everything while the lock is held.
    rig.gpuctl("lock acquire").run().succeeds().stdout_has("\n");
    redis.cli(&["FLUSHALL"]);
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
    fences.push(fence());
    // The fence also rises when only its counter is deleted.
    redis.cli(&["DEL", &format!("{LOCK_KEY}:fence")]);
    fences.push(fence());
    assert!(fences.is_sorted_by(|one, next| one < next), "{fences:?}");
}
