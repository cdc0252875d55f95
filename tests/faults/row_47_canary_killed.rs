//! Tests that kill gpuctl in the middle of a trial, alone or with its whole process group, at some
//! twenty points and at moments over all of its time (row 47): its guardian brings production back.
//! A point is a state of the world, the ledger or the lock.

use rig::{Rig, Running, Signal, Trial, until, with_room};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

/// Time within which production has to be back: `restore_sla` + 5 s, with room for a loaded
/// machine.
const LIMIT: Duration = with_room(3 + 5);

/// Seconds by which rounded figures of the ledger may differ from what was measured.
const ROUNDED: f64 = 0.1;

type Point = (&'static str, fn(&Trial) -> bool);

fn slow_trial() -> Trial {
    slow(Trial::native())
}

fn slow(trial: Trial) -> Trial {
    trial.canary("--warmup 400ms --completion-delay 400ms --term-delay 200ms");
    trial.rig.set("canary.restore_sla", "3s");
    trial.rig.set("canary.maintenance_lock", trial.rig.path("maintenance.lock").to_str().unwrap());
    trial
}

fn kill(trial: &Trial, run: Running, with_group: bool) -> Instant {
    match with_group {
        true => Trial::kill_group(&run),
        false => run.signal(Signal::KILL),
    }
    let killed = Instant::now();
    // The trial may have ended before the kill.
    drop(run);
    // A guardian that has just been forked does not have its name yet.
    let is_over = || trial.rig.gpuctls().is_empty() && trial.vllm.is_healthy();
    until("nobody sees to it any more", is_over);
    killed
}

/// Asserts what is promised after a kill, however far the trial had come.
#[track_caller]
fn assert_settled(trial: &Trial, [begun, killed]: [Instant; 2], absences: &[Duration], when: &str) {
    let took = killed.elapsed();
    assert!(took < LIMIT, "{when}: production was back after {took:?}");
    trial.assert_all_is_well(when);
    trial.rig.assert_free_and_alone();
    let maintenance = fs::read_to_string(trial.rig.path("maintenance.lock"));
    assert!(maintenance.is_err(), "{when}: {maintenance:?} is left");
    let events = trial.events();
    if trial.has_told("guardian_acts") {
        trial.rig.assert_lock_was_given_back();
        assert_eq!(events.last().unwrap(), "prod_restored", "{when}: {events:?}");
    }
    if events.is_empty() {
        assert!(absences.is_empty(), "{when}: away for {absences:?}, and nothing tells of it");
        return;
    }
    let is_after = |event: &&String| *event == "promoted" || *event == "rejected";
    let last = events.iter().rev().find(|event| !is_after(event));
    assert_eq!(last.unwrap(), "prod_restored", "{when}: {events:?}");
    let audit = trial.audit();
    let runs = audit.iter().all(|event| event["run_id"] == audit[0]["run_id"]);
    assert!(runs, "{when}: {audit:#?}");

    let (used, bookings) = trial.booked();
    assert_eq!(bookings, [used], "{when}");
    let away = absences.iter().sum::<Duration>().as_secs_f64();
    let whole = begun.elapsed().as_secs_f64();
    let is_true = away <= used + ROUNDED && used <= whole;
    assert!(is_true, "{when}: away for {away} s of {whole} s, booked {used} s: {audit:#?}");
}

fn kill_at(points: &[Point]) {
    let kill_there = |(point, is_reached): &Point, with_group: bool| {
        let trial = slow_trial();
        let prober = trial.probe();
        let (begun, run) = (Instant::now(), trial.run().spawn());
        until(point, || is_reached(&trial));
        let killed = kill(&trial, run, with_group);
        let when = format!("{point}, with its group: {with_group}");
        assert_settled(&trial, [begun, killed], &prober.absences(), &when);
    };
    thread::scope(|scope| {
        for with_group in [false, true] {
            let kill_there = &kill_there;
            let kills = move || points.iter().for_each(|point| kill_there(point, with_group));
            scope.spawn(kills);
        }
    });
}

fn lock_is_held(rig: &Rig) -> bool {
    fs::read_to_string(rig.lock_file()).is_ok_and(|text| text.contains("canary"))
}

#[test]
fn row_47_killed_before_it_touches_production_nothing_has_happened_or_all_is_told() {
    kill_at(&[
        ("at once", |_| true),
        ("it has the lock", |trial| lock_is_held(&trial.rig)),
        ("its guardian runs", |trial| !trial.guardians().is_empty()),
        ("there is a journal", |trial| trial.journal().is_some()),
        ("the time is booked", |trial| trial.has_booked()),
        ("the trial is told", |trial| trial.has_told("canary_start")),
    ]);
}

#[test]
fn row_47_killed_while_it_stops_production_production_comes_back() {
    kill_at(&[
        ("production is being taken away", |trial| trial.stage().as_deref() == Some("away")),
        ("production does not answer", |trial| !trial.vllm.is_healthy()),
        ("production is gone", |trial| trial.rig.processes_of(&trial.vllm).is_empty()),
        ("its end is told", |trial| trial.has_told("prod_stopped")),
    ]);
}

#[test]
fn row_47_killed_while_the_canary_runs_the_canary_ends_and_production_comes_back() {
    kill_at(&[
        ("the canary runs", |trial| !trial.canary_processes().is_empty()),
        ("the canary's start is told", |trial| trial.has_told("canary_started")),
        ("the canary has its memory", |trial| trial.rig.card.used_mb() == 12000),
        ("the canary is healthy", |trial| trial.has_told("health_ok")),
        ("the canary has answered", |trial| trial.has_told("completion")),
    ]);
}

#[test]
fn row_47_killed_while_it_brings_production_back_production_comes_back() {
    kill_at(&[
        ("the canary has ended", |trial| trial.has_told("canary_stopped")),
        ("it is at restoring", |trial| trial.stage().as_deref() == Some("restoring")),
        ("production starts", |trial| {
            trial.has_told("canary_stopped") && !trial.rig.processes_of(&trial.vllm).is_empty()
        }),
        ("production has its memory", |trial| {
            trial.has_told("canary_stopped") && trial.rig.card.used_mb() == 15000
        }),
        ("production is healthy", |trial| {
            trial.has_told("canary_stopped") && trial.vllm.is_healthy()
        }),
        ("it is told", |trial| trial.has_told("prod_restored")),
    ]);
}

#[test]
fn row_47_a_container_and_a_unit_come_back_too() {
    let in_container = |rig| Trial::new(rig, |rig| rig.container("vllm").server("--warmup 400ms"));
    let container = Rig::with_docker().map(in_container);
    let rig = Rig::new();
    let in_unit = |rig| Trial::new(rig, |rig| rig.unit("vllm").server("--warmup 400ms"));
    let unit = rig.systemd().has_control_groups().then(|| in_unit(rig));
    for trial in [unit, container].into_iter().flatten() {
        let trial = slow(trial);
        let prober = trial.probe();
        let (begun, run) = (Instant::now(), trial.run().spawn());
        until("the canary is healthy", || trial.has_told("health_ok"));
        let killed = kill(&trial, run, true);
        assert_settled(&trial, [begun, killed], &prober.absences(), trial.vllm.mark());
        assert!(trial.has_told("guardian_acts"));
    }
}

#[test]
fn row_47_killed_at_any_moment_production_comes_back() {
    let undisturbed = slow_trial();
    let begun = Instant::now();
    // On a busy machine production may be late, which is reported on stderr.
    undisturbed.run().run().succeeds().ignores_stderr().stdout_has("passed");
    let whole = begun.elapsed();
    let moments: Vec<Duration> = (0..16).map(|number| whole * number / 15).collect();
    thread::scope(|scope| {
        for half in [0, 1] {
            let moments = &moments;
            scope.spawn(move || {
                for (number, moment) in moments.iter().enumerate().skip(half).step_by(2) {
                    let trial = slow_trial();
                    let prober = trial.probe();
                    let (begun, run) = (Instant::now(), trial.run().spawn());
                    thread::sleep(*moment);
                    let killed = kill(&trial, run, number % 4 < 2);
                    let when = format!("after {moment:?} of {whole:?}");
                    assert_settled(&trial, [begun, killed], &prober.absences(), &when);
                }
            });
        }
    });
}
