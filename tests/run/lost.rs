//! Tests that `gpuctl run`, if it loses the lock while its command works, first ends the command
//! and then exits with 76.

use rig::{LOCK_KEY, Redis, Rig, Signal, on_both, signal, state, until};

/// A command that ignores TERM, as do its two children, one of them in a session of its own.
const STUBBORN: &str = "trap 'echo TERM' TERM
    sh -c 'trap \"\" TERM; echo child $$; while :; do sleep 0.05; done' &
    setsid sh -c 'trap \"\" TERM; echo child $$; while :; do sleep 0.05; done' &
    echo child $$; while :; do sleep 0.05; done";

/// A command that ends on TERM, as do its two children, one of them in a session of its own.
const POLITE: &str = "trap 'echo TERM; exit 0' TERM
    sh -c 'trap \"echo TERM; exit 0\" TERM; echo child $$; while :; do sleep 0.05; done' &
    setsid sh -c 'trap \"echo TERM; exit 0\" TERM; echo child $$; while :; do sleep 0.05; done' &
    echo child $$; while :; do sleep 0.05; done";

fn children(text: &str) -> Vec<i32> {
    text.lines().filter_map(|line| line.strip_prefix("child ")?.parse().ok()).collect()
}

fn lose(rig: &Rig, grace: &str, script: &str, lose: impl FnOnce()) -> String {
    rig.native("comfyui").add();
    rig.program("work", script);
    let run = rig.gpuctl(&format!("run --quiet --grace {grace} comfyui -- work")).spawn();
    until("it works", || children(&run.stdout()).len() == 3);
    let working = children(&run.stdout());
    lose();
    let outcome =
        run.wait().fails("lock_lost").stderr_has("the GPU lock is lost: nobody holds it now");
    assert!(working.iter().all(|pid| state(*pid).is_none()), "the command outlives gpuctl");
    let text = outcome.text();
    rig.assert_free_and_alone();
    text
}

/// Runs a proof with the lock in Redis, or reports the skip if there is no Redis.
fn in_redis(prove: impl FnOnce(&Rig, &Redis)) {
    let rig = Rig::new();
    if let Some(redis) = rig.lock_in_redis() {
        prove(&rig, &redis);
    }
}

fn delete(redis: &Redis) {
    assert_eq!(redis.cli(&["DEL", LOCK_KEY]), "1");
}

#[test]
fn row_11_where_the_key_is_deleted_the_command_and_its_children_are_told_to_end() {
    in_redis(|rig, redis| {
        let text = lose(rig, "15s", POLITE, || delete(redis));
        assert_eq!(text.matches("TERM").count(), 3, "{text}");
    });
}

#[test]
fn a_command_that_ignores_it_is_killed_after_the_grace() {
    in_redis(|rig, redis| {
        let text = lose(rig, "1s", STUBBORN, || delete(redis));
        assert_eq!(text.matches("TERM").count(), 1, "{text}");
    });
}

#[test]
fn an_end_that_comes_before_the_loss_is_noticed_is_lock_lost_too() {
    in_redis(|rig, redis| {
        rig.native("comfyui").add();
        let delete = format!("redis-cli -p {} DEL {LOCK_KEY} >/dev/null; exit 0", redis.port());
        rig.program("work", &delete);
        let run = rig.gpuctl("run --quiet comfyui -- work").run();
        run.fails("lock_lost").stderr_has("the GPU lock is lost");
        rig.assert_free_and_alone();
    });
}

#[test]
fn what_a_command_holds_is_not_taken_away_by_force_and_its_process_is_named() {
    on_both(|rig, _| {
        rig.native("comfyui").add();
        let force = "gpuctl lock release --force; echo $?; gpuctl lock release --force --json";
        let run = rig.gpuctl("run --quiet comfyui -- sh -c").arg(force).spawn();
        let owner = format!(":{}, run sh", run.pid());
        let told = run.wait().exits(1).text();
        assert!(told.starts_with("not released: "), "{told}");
        assert!(told.contains(&owner) && told.contains("\n1\n"), "{told}");
        assert!(told.contains("\"released\": false"), "{told}");
        rig.assert_free_and_alone();
    });
}

#[test]
fn a_gpuctl_that_is_stopped_for_too_long_loses_its_command_first() {
    in_redis(|rig, _| {
        rig.native("comfyui").add();
        rig.program("work", STUBBORN);
        let run = rig.gpuctl("run --quiet --grace 9s comfyui -- work").spawn();
        until("it works", || children(&run.stdout()).len() == 3);
        let working = children(&run.stdout());
        run.signal(Signal::STOP);
        let touch = rig.path("second");
        let second =
            rig.elsewhere(&format!("run --quiet --wait 5m comfyui -- touch {}", touch.display()));
        let second = second.spawn();
        until("TERM comes", || run.stdout().contains("TERM"));
        assert!(!touch.exists(), "a second command runs beside the first");
        until("all are killed", || working.iter().all(|pid| state(*pid).is_none()));
        second.wait().succeeds();
        assert!(touch.exists());
        run.signal(Signal::CONT);
        let outcome = run.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
        drop(outcome.stdout_has("TERM"));
        rig.assert_free_and_alone();
    });
}

#[test]
fn a_command_keeps_the_lock_that_was_taken_by_hand_when_that_is_over() {
    in_redis(|rig, redis| {
        rig.native("comfyui").add();
        rig.program("work", "echo works; until [ -e done ]; do sleep 0.05; done");
        let token = rig.gpuctl("lock acquire me --ttl 5").run().succeeds().text();
        let run = rig.gpuctl("run --quiet comfyui -- work").env("GPUCTL_LOCK_TOKEN", token.trim());
        let run = run.spawn();
        until("it works", || run.stdout() == "works\n");
        until("its time is over", || rig.lock_held()["ttl"] == -1);
        assert!(redis.ttl_ms() > 5_000, "nobody comes in elsewhere");
        let busy = rig.elsewhere("lock acquire other --no-wait").run();
        busy.fails("lock_busy").stderr_has("held by me");
        rig.file("home/done", "");
        run.wait().succeeds().stdout("works\n");
        rig.assert_free_and_alone();
        rig.assert_lock_was_given_back();
    });
}

#[test]
fn a_stopped_command_is_ended_as_well() {
    in_redis(|rig, redis| {
        rig.native("comfyui").add();
        rig.program("work", "echo child $$; exec sleep 1000");
        let run = rig.gpuctl("run --quiet comfyui -- work").spawn();
        until("it works", || run.stdout().ends_with('\n'));
        let work = children(&run.stdout())[0];
        signal(work, Signal::STOP);
        delete(redis);
        drop(run.wait().fails("lock_lost").stderr_has("lost").stdout_has("child"));
        assert!(state(work).is_none());
        rig.assert_free_and_alone();
    });
}
