//! Tests of how long production is away in a trial that goes well, for each type of service: what a
//! prober sees from outside is what the ledger books (row 47 of the fault table rests on it), and
//! less than the night's limit.

use rig::{Rig, Trial};
use std::time::Instant;

const MAX_DOWNTIME: f64 = 60.0;

/// Seconds by which rounded figures of the ledger may differ from what was measured.
const ROUNDED: f64 = 0.1;

#[track_caller]
fn assert_booked_as_seen(trial: &Trial) {
    trial.canary("--warmup 300ms");
    let prober = trial.probe();
    let begun = Instant::now();
    let run = trial.rig.gpuctl("canary run --set vllm_memory_util=0.75 --json").run();
    let report = run.succeeds().progress().json();
    let whole = begun.elapsed().as_secs_f64();
    let absences = prober.absences();
    trial.assert_all_is_well("it went well");
    trial.rig.assert_lock_was_given_back();
    let [away] = absences.as_slice() else { panic!("away once: {absences:?}") };
    let away = away.as_secs_f64();
    let used = trial.booked().0;
    assert!((report["downtime_seconds"].as_f64().unwrap() - used).abs() < 0.01, "{report}");
    assert!(
        away <= used + ROUNDED && used <= whole,
        "away for {away} s of {whole} s, booked {used} s"
    );
    assert!(used < MAX_DOWNTIME, "{used}");
    assert_eq!(trial.events().last().unwrap(), "promoted");
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
    let rig = Rig::new();
    if !rig.systemd().has_control_groups() {
        return;
    }
    let trial = Trial::new(rig, |rig| rig.unit("vllm").server("--warmup 400ms"));
    assert_booked_as_seen(&trial);
}
