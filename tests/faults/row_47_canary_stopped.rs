//! Tests of a trial that is broken off in the middle, by a signal, by the loss of the lock, or by
//! the death of gpuctl or of its guardian alone; and of callers that wait for the lock meanwhile
//! (row 47).

use rig::{LOCK_KEY, Redis, Rig, Running, Signal, Trial, until};
use serde_json::json;

const SLOW: &str = "--warmup 300ms --completion-delay 600ms";

type Point = (&'static str, fn(&Trial) -> bool);

const POINTS: [Point; 4] = [
    ("production is gone", |trial| trial.rig.processes_of(&trial.vllm).is_empty()),
    ("the canary runs", |trial| !trial.canary_processes().is_empty()),
    ("the canary is healthy", |trial| trial.has_told("health_ok")),
    ("production is being taken away", |trial| trial.stage().as_deref() == Some("away")),
];

#[test]
fn row_47_interrupted_in_the_middle_production_is_back_before_gpuctl_ends() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        for (point, is_reached) in POINTS {
            let trial = Trial::native();
            trial.canary(SLOW);
            let run = trial.run().spawn();
            until(point, || is_reached(&trial));
            run.signal(signal);
            run.wait().exits(code).stderr_has(&format!("interrupted by signal {}", code - 128));
            trial.assert_all_is_well(point);
            trial.rig.assert_lock_was_given_back();
            let events = trial.events();
            assert!(trial.has_told("prod_restored"), "{point}: {events:?}");
            assert_eq!(events.last().unwrap(), "rejected", "{point}: {events:?}");
            assert_eq!(trial.booked().1.len(), 1, "{point}");
            assert_eq!(trial.promotions(), 0, "{point}");
        }
    }
}

#[test]
fn row_47_a_second_signal_ends_gpuctl_at_once_and_its_guardian_brings_production_back() {
    let trial = Trial::new(Rig::new(), |rig| rig.native("vllm").server("--warmup 3s"));
    trial.canary("--completion-delay 1h");
    let run = trial.run().spawn();
    until("the canary is healthy", || trial.has_told("health_ok"));
    run.signal(Signal::INT);
    until("production is being brought back", || trial.stage().as_deref() == Some("restoring"));
    run.signal(Signal::INT);
    drop(run.wait().dies_of(2).stderr_has("stopping vllm"));
    until("its guardian has done it", || trial.guardians().is_empty());
    trial.assert_all_is_well("after two signals");
    assert_eq!(trial.events().last().unwrap(), "prod_restored");
}

/// Proves something of a trial whose lock is in Redis.
fn in_redis(prove: impl Fn(&Trial, &Redis)) {
    let rig = Rig::new();
    if let Some(redis) = rig.lock_in_redis() {
        prove(&Trial::in_rig(rig), &redis);
    }
}

#[test]
fn row_47_when_the_lock_is_lost_in_the_middle_production_comes_back_and_it_is_76() {
    in_redis(|trial, redis| {
        // The trial lasts until after the next renewal, which notices the loss.
        trial.canary("--completion-delay 18s");
        let run = trial.run().spawn();
        until("the canary is healthy", || trial.has_told("health_ok"));
        redis.cli(&["DEL", LOCK_KEY]);
        run.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
        trial.assert_all_is_well("the lock is lost");
        trial.rig.assert_lock_was_given_back();
        assert_eq!(trial.events().last().unwrap(), "rejected");
        assert_eq!(trial.promotions(), 0);
    });
}

#[test]
fn row_47_a_lock_that_was_lost_since_the_last_renewal_is_noticed_in_the_end() {
    in_redis(|trial, redis| {
        trial.canary(SLOW);
        let run = trial.run().spawn();
        until("the canary runs", || !trial.canary_processes().is_empty());
        redis.cli(&["DEL", LOCK_KEY]);
        run.wait().fails("lock_lost").stderr_has("the GPU lock is lost");
        trial.assert_all_is_well("the lock was lost");
        assert!(trial.has_told("prod_restored"));
    });
}

/// Starts a caller that waits for the lock and needs the whole card. The file `between` exists
/// afterwards if its service was started while the trial's journal was still there.
fn waiting(trial: &Trial) -> Running {
    let video = trial.rig.native("video").vram(20000).priority(100).phases([4]).add();
    let (journal, between) = (trial.journal_file(), trial.rig.path("between"));
    let (journal, between) = (journal.display(), between.display());
    let start = format!("test ! -e {journal} || touch {between}; exec {}", video.command());
    trial.rig.set("services.video.start", start);
    let waiter = trial.rig.gpuctl("prepare-phase 4 --wait 50").spawn();
    until("it waits", || waiter.stderr().contains("waiting for the GPU lock"));
    waiter
}

#[test]
fn row_47_who_waits_for_the_lock_of_a_trial_that_is_killed_gets_it_after_its_guardian() {
    for (point, is_reached) in POINTS {
        Trial::on_both(|trial| {
            trial.canary(SLOW);
            let run = trial.run().spawn();
            until(point, || is_reached(trial));
            let waiter = waiting(trial);
            Trial::kill_group(&run);
            drop(run);
            waiter.wait().succeeds().stdout_has("started video").stderr_has("waiting");
            assert!(!trial.rig.path("between").exists(), "{point}: it came in between");
            assert_eq!(trial.events().last().unwrap(), "prod_restored", "{point}");
            assert_eq!(trial.journal(), None, "{point}");
            trial.rig.assert_no_out_of_memory();
        });
    }
}

#[test]
fn row_47_on_another_card_the_canary_ends_with_gpuctl() {
    let points: [Point; 4] = [
        ("the canary runs", |trial| !trial.canary_processes().is_empty()),
        ("the canary's start is told", |trial| trial.has_told("canary_started")),
        ("the canary is healthy", |trial| trial.has_told("health_ok")),
        ("the canary has answered", |trial| trial.has_told("completion")),
    ];
    for (point, is_reached) in points {
        for with_group in [false, true] {
            let trial = beside_production();
            let prober = trial.probe();
            let run = trial.run().spawn();
            until(point, || is_reached(&trial));
            match with_group {
                true => Trial::kill_group(&run),
                false => run.signal(Signal::KILL),
            }
            drop(run);
            until("the canary ends", || trial.canary_processes().is_empty());
            until("the lock is free", || trial.rig.lock_is_free());
            assert!(prober.absences().is_empty(), "{point}");
            trial.assert_all_is_well(point);
            assert!(!trial.has_booked(), "{point}");
        }
    }
}

fn beside_production() -> Trial {
    let trial = Trial::native();
    trial.rig.card.describe(&json!({"devices": [{}, {}]}));
    // A dollar sign that the shell is to see is written twice.
    trial.canary(&format!("--device $$CUDA_VISIBLE_DEVICES {SLOW}"));
    trial.rig.set("canary.allow_spare_gpu", true);
    trial.rig.set("canary.spare_gpu", 1);
    trial
}

#[test]
fn row_47_when_the_guardian_alone_is_killed_the_trial_goes_on() {
    let trial = Trial::native();
    trial.canary(SLOW);
    let run = trial.run().spawn();
    until("the canary runs", || !trial.canary_processes().is_empty());
    trial.kill_all(&trial.guardians());
    run.wait().succeeds().progress().stdout_has("passed");
    trial.assert_all_is_well("without a guardian");
    trial.rig.assert_lock_was_given_back();
}
