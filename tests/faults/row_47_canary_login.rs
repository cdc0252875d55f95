//! Test of a login that is lost in the middle of a trial that was started from it (row 47): the
//! connection is cut, so that the login's terminal is gone and its whole session gets SIGHUP.
//! gpuctl or its guardian brings production back.

use rig::{Rig, Signal, Trial, until, with_room};
use std::time::Instant;

type Point = (&'static str, fn(&Trial) -> bool);

/// Commands of the login: either gpuctl leads the session, or a shell does, which hands the signal
/// on before the kernel does.
const LOGINS: [&str; 2] = [
    "exec gpuctl canary run --set vllm_memory_util=0.75",
    "gpuctl canary run --set vllm_memory_util=0.75; exit",
];

const POINTS: [Point; 4] = [
    ("production is being taken away", |trial| trial.stage().as_deref() == Some("away")),
    ("the canary runs", |trial| !trial.canary_processes().is_empty()),
    ("the canary is healthy", |trial| trial.has_told("health_ok")),
    ("production is being brought back", |trial| trial.stage().as_deref() == Some("restoring")),
];

#[test]
fn row_47_a_login_that_is_lost_in_the_middle_of_a_trial_does_not_keep_production_away() {
    if !rig::works("script", &["--version"]) {
        return rig::skip_or_fail("script", "script(1), which has a terminal to lose");
    }
    for login in LOGINS {
        for (point, is_reached) in POINTS {
            let trial = Trial::new(Rig::new(), |rig| rig.native("vllm").server("--warmup 400ms"));
            trial.canary("--warmup 300ms --completion-delay 2s");
            let prober = trial.probe();
            // script(1) keeps the other end of the terminal; killing it is as if the connection
            // were cut.
            let shell = format!("exec bash --norc -ic '{login}'");
            let line = trial.rig.shell(&format!("exec script -qec \"{shell}\" /dev/null")).spawn();
            until(point, || is_reached(&trial));
            let begun = Instant::now();
            line.signal(Signal::KILL);
            line.wait().dies_of(9).ignores_stdout().ignores_stderr();
            until("it is settled", || trial.journal().is_none() && trial.guardians().is_empty());
            let took = begun.elapsed();
            assert!(took < with_room(10 + 5), "{point}: back after {took:?}");
            let away = prober.absences().iter().sum::<std::time::Duration>().as_secs_f64();
            let used = trial.booked().0;
            assert!(away <= used + 0.1, "{point}: away for {away} s, booked {used} s");
            assert!(trial.has_told("prod_restored"), "{point}: {:?}", trial.events());
            until("the lock is free", || trial.rig.lock_is_free());
            trial.assert_all_is_well(point);
        }
    }
}
