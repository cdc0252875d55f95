//! Tests of a `canary run` that is stopped in the middle of a trial, by SIGSTOP or Ctrl-Z, or whose
//! driver hangs (row 72): the guardian ends such a trial at its deadline if it does not go on by
//! itself, and production is back in time.

use rig::{Rig, Signal, Trial, until, with_room};
use serde_json::json;
use std::time::{Duration, Instant};

const TIMEOUT: u64 = 10;
const RESTORE_SLA: u64 = 3;

/// Time within which production has to be back: `timeout` + `restore_sla` + 5 s, with room for a
/// loaded machine.
const LIMIT: Duration = with_room(TIMEOUT + RESTORE_SLA + 5);

type Point = (&'static str, fn(&Trial) -> bool);

/// The stages of a trial from the moment at which production is away.
const STAGES: [Point; 4] = [
    ("production is gone", |trial| trial.rig.processes_of(&trial.vllm).is_empty()),
    ("the canary runs", |trial| !trial.canary_processes().is_empty()),
    ("the canary is healthy", |trial| trial.has_told("health_ok")),
    ("production is being brought back", |trial| trial.stage().as_deref() == Some("restoring")),
];

fn slow_trial() -> Trial {
    let trial = Trial::new(Rig::new(), |rig| rig.native("vllm").server("--warmup 400ms"));
    trial.rig.set("canary.timeout", format!("{TIMEOUT}s"));
    trial.rig.set("canary.restore_sla", format!("{RESTORE_SLA}s"));
    trial.canary("--warmup 200ms --completion-delay 3s --term-delay 200ms");
    trial
}

#[track_caller]
fn assert_back_in_time(trial: &Trial, begun: Instant, absences: &[Duration], when: &str) {
    let took = begun.elapsed();
    assert!(took < LIMIT, "{when}: production was back after {took:?}");
    trial.assert_all_is_well(when);
    trial.rig.assert_lock_was_given_back();
    let audit = trial.audit();
    let acts = audit.iter().find(|event| event["event"] == "guardian_acts");
    let why = acts.unwrap_or_else(|| panic!("{when}: {audit:#?}"))["reason"].as_str().unwrap();
    assert!(why.contains("stopped or stuck"), "{when}: {why}");
    let away = absences.iter().sum::<Duration>().as_secs_f64();
    let used = trial.booked().0;
    assert!(away <= used + 0.1, "{when}: away for {away} s, booked {used} s: {audit:#?}");
}

#[test]
fn row_72_a_trial_that_is_stopped_at_any_stage_is_ended_and_production_is_back_in_time() {
    let first: Point =
        ("production is being taken away", |trial| trial.stage().as_deref() == Some("away"));
    std::thread::scope(|scope| {
        for (point, is_reached) in [first].into_iter().chain(STAGES) {
            scope.spawn(move || {
                let trial = slow_trial();
                let prober = trial.probe();
                let run = trial.run().spawn();
                until(point, || is_reached(&trial));
                let begun = Instant::now();
                run.signal(Signal::STOP);
                run.wait().dies_of(9).ignores_stderr();
                until("the guardian has done it", || trial.guardians().is_empty());
                assert_back_in_time(&trial, begun, &prober.absences(), point);
            });
        }
    });
}

#[test]
fn row_72_ctrl_z_at_a_terminal_keeps_production_away_for_no_longer_than_a_trial_may() {
    let trial = slow_trial();
    let prober = trial.probe();
    let terminal = trial.rig.terminal("bash --norc -i");
    until("its prompt", || terminal.text().contains("ready> "));
    terminal.types("gpuctl canary run --set vllm_memory_util=0.75");
    until("the canary is healthy", || trial.has_told("health_ok"));
    let begun = Instant::now();
    terminal.presses("\x1a");
    until("it is stopped", || terminal.text().contains("Stopped"));
    until("the guardian has done it", || trial.guardians().is_empty());
    assert_back_in_time(&trial, begun, &prober.absences(), "Ctrl-Z");
}

#[test]
fn row_72_who_is_stopped_and_goes_on_in_time_is_left_to_it() {
    let trial = slow_trial();
    let run = trial.run().spawn();
    until("the canary is healthy", || trial.has_told("health_ok"));
    run.signal(Signal::STOP);
    until("it is stopped", || rig::state(run.pid()) == Some('T'));
    run.signal(Signal::CONT);
    run.wait().succeeds().progress().stdout_has("passed");
    assert!(!trial.has_told("guardian_acts"));
    trial.assert_all_is_well("stopped for a moment");
}

#[test]
fn row_72_production_that_comes_back_slowly_is_not_taken_for_a_trial_that_is_stuck() {
    let trial = Trial::new(Rig::new(), |rig| rig.native("vllm").server("--warmup 8s"));
    trial.rig.set("canary.restore_sla", "1s");
    let run = trial.run().run().succeeds().stdout_has("passed");
    drop(run.stderr_has("warning: vllm was not back within 1s"));
    assert!(!trial.has_told("guardian_acts"));
    trial.assert_all_is_well("slow");
}

#[test]
fn row_72_a_driver_that_hangs_from_any_stage_of_a_trial_on_keeps_production_away_for_no_longer() {
    let first: Point = ("there is a journal", |trial| trial.journal().is_some());
    std::thread::scope(|scope| {
        for (point, is_reached) in [first].into_iter().chain(STAGES) {
            scope.spawn(move || {
                let trial = slow_trial();
                let prober = trial.probe();
                let run = trial.run().spawn();
                until(point, || is_reached(&trial));
                let begun = Instant::now();
                trial.rig.card.describe(&json!({"faults": {"nvml*": "hang"}}));
                let (code, told) = run.wait().ended();
                // The trial has passed, was rejected for its time, or has stopped nothing because
                // the card could not be read; on a busy machine its guardian may have ended it.
                let is_told = matches!(code, Some(0 | 1 | 69)) || trial.has_told("guardian_acts");
                assert!(is_told, "{point}: {code:?}: {told}");
                until("its guardian has ended", || trial.guardians().is_empty());
                let took = begun.elapsed();
                assert!(took < LIMIT, "{point}: production was back after {took:?}: {told}");
                let away = prober.absences().iter().sum::<Duration>().as_secs_f64();
                let used = trial.booked().0;
                assert!(away <= used + 0.1, "{point}: away for {away} s, booked {used} s: {told}");
                trial.rig.card.describe(&json!({}));
                trial.assert_all_is_well(point);
                trial.rig.assert_lock_was_given_back();
            });
        }
    });
}
