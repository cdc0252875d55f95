//! For how long production is away in a trial that goes well: what a prober sees from outside is what the ledger books
//! (row 47 of the fault table rests on it), and less than the night's limit. For each type of service.

use rig::{Rig, Trial};

const MAX_DOWNTIME: f64 = 60.0;

#[track_caller]
fn assert_booked_as_seen(trial: &Trial) {
    trial.rig.set("canary.max_downtime", "5m");
    trial.canary("--warmup 300ms");
    // A machine that is busy just then makes both of them late; not each time.
    let differences: Vec<f64> = (0..3).map(|_| booked_beyond_seen(trial)).collect();
    let is_true = |difference: &f64| difference.abs() < 1.0;
    assert!(differences.iter().any(is_true), "booked beyond what was seen: {differences:?} s");
    // Never less than it was.
    assert!(differences.iter().all(|difference| *difference > -1.0), "{differences:?}");
}

#[track_caller]
fn booked_beyond_seen(trial: &Trial) -> f64 {
    let before = if trial.has_booked() { trial.booked().0 } else { 0.0 };
    let prober = trial.probe();
    let run = trial.rig.gpuctl("canary run --set vllm_memory_util=0.75 --json").run();
    let report = run.succeeds().progress().json();
    let absences = prober.absences();
    trial.assert_all_is_well("it went well");
    trial.rig.assert_lock_was_given_back();
    let [away] = absences.as_slice() else { panic!("away once: {absences:?}") };
    let away = away.as_secs_f64();
    let used = trial.booked().0 - before;
    assert!((report["downtime_seconds"].as_f64().unwrap() - used).abs() < 0.01, "{report}");
    assert!(away < MAX_DOWNTIME && used < MAX_DOWNTIME);
    assert_eq!(trial.events().last().unwrap(), "promoted");
    // 0.5 s are promised; the prober's own pause and a loaded machine may add as much.
    used - away
}

#[test]
fn a_native_service_is_away_for_as_long_as_is_booked() {
    assert_booked_as_seen(&Trial::native());
}

#[test]
fn a_container_is_away_for_as_long_as_is_booked() {
    let Some(rig) = Rig::with_docker() else { return };
    let trial = Trial::new(rig, |rig| rig.container("vllm").server("--warmup 400ms"));
    assert_booked_as_seen(&trial);
}

#[test]
fn a_unit_is_away_for_as_long_as_is_booked() {
    let trial = Trial::new(Rig::new(), |rig| rig.unit("vllm").server("--warmup 400ms"));
    assert_booked_as_seen(&trial);
}
