//! Tests of a canary that misbehaves (row 48): it is rejected with the reason, and production is
//! back in time, with the card as it was.

use rig::{Trial, with_room};
use serde_json::Value;
use std::thread;
use std::time::Duration;

/// The canary's `restore_sla`, in seconds.
const RESTORE_SLA: u64 = 10;

/// A canary that misbehaves: its flags, the timeout of its test in seconds, and what its rejection
/// says, with a `|` between alternatives.
struct Fault {
    flags: &'static str,
    timeout: u64,
    reason: &'static str,
}

/// Timeout in seconds for canaries that are rejected for what they do, not for the time that they
/// take.
const LONG: u64 = 20;

const fn fault(flags: &'static str, timeout: u64, reason: &'static str) -> Fault {
    Fault { flags, timeout, reason }
}

fn reject_each(faults: &[Fault]) {
    thread::scope(|scope| {
        for fault in faults {
            scope.spawn(|| {
                let trial = Trial::native();
                trial.canary(fault.flags);
                reject(&trial, fault.flags, fault.timeout, fault.reason);
            });
        }
    });
}

/// Asserts that a trial rejects the canary for this reason and puts everything right; returns the
/// trial's report.
#[track_caller]
fn reject(trial: &Trial, what: &str, timeout: u64, reason: &str) -> Value {
    trial.rig.set("canary.timeout", format!("{timeout}s"));
    trial.rig.set("canary.restore_sla", format!("{RESTORE_SLA}s"));
    let prober = trial.probe();
    let run = trial.rig.gpuctl("canary run --set vllm_memory_util=0.75 --json").run();
    let report = run.fails("no").progress().json();
    let absences = prober.absences();
    assert_eq!((&report["status"], &report["restored"]), (&"fail".into(), &true.into()), "{what}");
    let told = report["rejection"].as_str().unwrap();
    assert!(reason.split('|').any(|reason| told.contains(reason)), "{what}: {told}");

    assert_eq!(trial.canary_processes(), [0; 0], "{what}: left of the canary");
    let claims = trial.rig.card.claims();
    let held: Vec<_> = claims.iter().map(|claim| (claim.name.as_str(), claim.mb)).collect();
    assert_eq!(held, [(trial.vllm.mark(), 15000)], "{what}");
    assert!(trial.vllm.is_healthy() && trial.journal().is_none(), "{what}");
    assert_eq!(trial.guardians(), [0; 0], "{what}");
    trial.rig.assert_lock_was_given_back();
    assert_eq!(trial.promotions(), 0, "{what}");

    let audit = trial.audit();
    let last = audit.last().unwrap();
    assert_eq!((&last["event"], &last["reason"]), (&"rejected".into(), &told.into()), "{what}");
    assert!(trial.has_told("prod_restored"), "{what}");
    let limit = with_room(timeout + RESTORE_SLA);
    assert!(absences.iter().sum::<Duration>() < limit, "{what}: away for {absences:?}");
    let (used, bookings) = trial.booked();
    assert_eq!((&bookings, used < limit.as_secs_f64()), (&vec![used], true), "{what}");
    report
}

#[test]
fn row_48_a_canary_that_hangs_or_is_too_slow_is_rejected_when_its_time_is_over() {
    reject_each(&[
        fault("--health hang", 4, "not done within 4s"),
        fault("--health drip", 4, "not done within 4s"),
        fault("--health 500", 4, "not done within 4s"),
        fault("--warmup 1h", 4, "not done within 4s"),
        fault("--warmup 1h --late-listen --ignore-term", 4, "not done within 4s"),
        fault("--completion-delay 1h", 4, "not done within 4s"),
        fault("--completion-delay 1h --ignore-term --fork 2", 4, "not done within 4s"),
    ]);
}

#[test]
fn row_48_a_canary_that_dies_is_rejected_at_once_with_its_last_words() {
    reject_each(&[
        fault("--warmup 1h --exit-after 500ms --exit-code 3", LONG, "code 3"),
        fault("--warmup 1h --exit-after 500ms --die-by 11", LONG, "signal 11"),
        fault("--warmup 1h --exit-after 500ms --exit-code 4 --double-fork", LONG, "code 4"),
        fault("--no-such-flag", LONG, "--help"),
        // Which of the two is seen first is a matter of chance.
        fault("--completion crash", LONG, "answered with 500|engine core died"),
        fault("--completion-delay 1h --exit-after 1500ms --die-by 9", LONG, "signal 9"),
    ]);
}

#[test]
fn row_48_a_canary_that_answers_badly_is_rejected() {
    reject_each(&[
        fault("--completion garbage", LONG, "not JSON"),
        fault("--completion empty", LONG, "no text"),
        fault("--completion 500", LONG, "answered with 500"),
        fault("--completion garbage --fork 2 --ignore-term", LONG, "not JSON"),
        fault("--completion garbage --double-fork --ignore-term", LONG, "not JSON"),
        fault("--completion garbage --daemonise", LONG, "not JSON"),
    ]);
}

#[test]
fn row_48_a_completion_that_takes_too_long_is_rejected_for_that() {
    let trial = Trial::native();
    trial.rig.set("canary.max_latency", "500ms");
    trial.canary("--completion-delay 1500ms");
    let report = reject(&trial, "slow", LONG, "may take at most 500ms");
    let latency = report["llm_latency_ms"].as_f64().unwrap();
    assert!(latency >= 1500.0, "{latency}");
}

#[test]
fn row_48_a_canary_that_runs_out_of_memory_is_rejected_for_that() {
    for flags in ["--vram 30000", "--vram 30000 --fork 2", "--completion oom"] {
        let trial = Trial::native();
        trial.canary(flags);
        let report = reject(&trial, flags, LONG, "ran out of memory");
        assert!(report["oom_events"].as_u64().unwrap() > 0, "{flags}: {report}");
    }
    // This canary reports it and hangs, before it is healthy or after.
    for flags in ["--warmup 1h", "--completion-delay 1h"] {
        let trial = Trial::native();
        let says = "echo torch.cuda.OutOfMemoryError: CUDA out of memory; exec";
        trial.rig.set("canary.start", format!("{says} {}", trial.canary_command(flags)));
        let report = reject(&trial, flags, 2, "ran out of memory");
        assert_eq!(report["oom_events"], 1, "{flags}: {report}");
    }
}

#[test]
fn row_48_memory_that_comes_back_late_holds_up_neither_the_canary_nor_production() {
    let trial = Trial::native();
    trial.rig.card.describe(&serde_json::json!({"reclaim_delay_ms": 700}));
    trial.canary("--completion empty");
    reject(&trial, "late memory", LONG, "no text");
    trial.rig.assert_no_out_of_memory();
}

#[test]
fn row_48_a_start_command_that_fails_or_is_not_there_is_rejected_with_what_it_said() {
    for (start, reason) in [
        ("echo bad luck >&2; exit 9", "bad luck"),
        ("/nonexistent/server --port {port}", "/nonexistent/server"),
        ("true", "the canary"),
    ] {
        let trial = Trial::native();
        trial.rig.set("canary.start", start);
        reject(&trial, start, LONG, reason);
    }
}

#[test]
fn row_48_a_canary_whose_port_is_taken_is_refused_before_production_is_touched() {
    let trial = Trial::native();
    let prober = trial.probe();
    let other = std::net::TcpListener::bind(("127.0.0.1", trial.port())).unwrap();
    let port = format!("port {}", trial.port());
    trial.run().run().fails("start_failed").stderr_has(&port);
    drop(other);
    assert!(prober.absences().is_empty());
    assert_eq!(trial.events(), ["refused"]);
    assert!(!trial.has_booked());
    trial.assert_all_is_well("the port is taken");
}
