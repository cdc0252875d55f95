//! Tests of `gpuctl canary status`, `reset-budget` and `unlock`, and of the file in which other
//! programs look for a trial (`canary.maintenance_lock`).

use crate::canary::bench::{Bench, CANDIDATE};
use rig::until;
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, UNIX_EPOCH};

#[test]
fn status_tells_where_the_night_stands() {
    let bench = Bench::new();
    let mut status = bench.status();
    let night = status["night"].take();
    assert_eq!(night.as_str().unwrap().len(), 8);
    let next = status["next_window"].take();
    assert!(next.as_str().unwrap().ends_with(":00:00Z"), "{next}");
    let window = status["window"].take();
    assert!(window.as_str().unwrap().ends_with(" UTC"), "{window}");
    let free = json!({"backend": "file", "holder": null, "ttl": -2, "owner": null});
    assert_eq!(
        status,
        json!({"service": "vllm", "mode": "canary", "window": null, "in_window": true,
            "next_window": null, "night": null, "budget_used": 0.0, "budget_left": 60.0,
            "runs_24h": 0, "max_runs_per_day": 3, "cooldown_left": 0.0, "lock": free,
            "restore_owed": false, "run_id": null})
    );
    let report = bench.passes("");
    let downtime = report["downtime_seconds"].as_f64().unwrap();
    let status = bench.status();
    assert_eq!((&status["budget_used"], &status["runs_24h"]), (&json!(downtime), &json!(1)));
    let left = status["budget_left"].as_f64().unwrap();
    assert!((left + downtime - 60.0).abs() < 0.002, "{status}");
    let text = bench.rig.gpuctl("canary status").run().succeeds().text();
    for part in
        ["canary of vllm, mode canary", ": open now", "runs within 24 h: 1 of 3", "GPU lock free"]
    {
        assert!(text.contains(part), "no {part} in {text}");
    }
    // A lock that cannot be read is reported, and everything else is still shown.
    bench.rig.set("lock.url", "redis://127.0.0.1:1");
    let status = bench.status();
    assert!(status["lock"]["error"].is_string() && status["lock"]["ttl"].is_null(), "{status}");
    assert_eq!(status["runs_24h"], 1);
}

#[test]
fn reset_budget_begins_the_night_anew_and_is_written_to_the_audit() {
    let bench = Bench::new();
    let budget = bench.budget_file();
    fs::write(&budget, "{\"seconds_used\": 59.5}").unwrap();
    bench.refuses("", "budget_exhausted");
    let done = bench.rig.gpuctl("canary reset-budget --json").run().succeeds().json();
    assert_eq!(done["success"], true);
    assert_eq!(bench.budget()["seconds_used"], 0.0);
    let last = bench.audit().pop().unwrap();
    assert_eq!((&last["event"], &last["budget_used"]), (&json!("budget_reset"), &json!(0.0)));
    assert_eq!(last["before"], 59.5);
    bench.passes("");
    // The runs are still counted.
    let text = bench.rig.gpuctl("canary reset-budget").run().succeeds().text();
    assert!(text.ends_with("has been reset\n"), "{text}");
    assert_eq!(
        (&bench.status()["budget_used"], &bench.status()["runs_24h"]),
        (&json!(0.0), &json!(1))
    );
    bench.refuses("", "cooldown");
}

#[test]
fn a_budget_that_is_reset_while_a_run_is_under_way_holds_what_the_run_has_cost() {
    let bench = Bench::new();
    bench.canary("--vram 14000 --warmup 1s");
    let run = bench.rig.gpuctl(&format!("canary run {CANDIDATE} --json --quiet")).spawn();
    until("production is away", || bench.events().contains(&"prod_stopped".to_owned()));
    bench.rig.gpuctl("canary reset-budget").run().succeeds().stdout_has("has been reset");
    let report = run.wait().succeeds().json();
    assert_eq!(bench.budget()["seconds_used"], report["downtime_seconds"]);
}

#[test]
fn unlock_releases_whosever_lock_and_file_it_is_by_force_only() {
    let bench = Bench::new();
    let file = bench.rig.path("gpu_maintenance.lock");
    bench.rig.set("canary.maintenance_lock", file.to_str().unwrap());
    bench.rig.acquire("stuck --ttl 1h");
    fs::write(&file, format!("legacy:{}:2026-01-01T00:00:00\n", std::process::id())).unwrap();
    bench.rig.gpuctl("canary unlock").run().fails("usage").stderr_has("--force");
    assert_eq!(bench.rig.lock_held()["holder"], "stuck");
    bench.rig.gpuctl("canary unlock --force").run().succeeds().stdout("unlocked\n");
    bench.rig.assert_lock_is_free();
    assert!(!file.exists());
    let last = bench.audit().pop().unwrap();
    assert_eq!((&last["event"], &last["reason"]), (&json!("unlocked"), &json!("stuck")));
    bench.rig.gpuctl("canary unlock --force").run().succeeds().stdout("there was no lock\n");
    bench.passes("");
}

#[test]
fn the_file_for_other_programs_is_there_while_a_run_is_under_way() {
    let bench = Bench::new();
    let file = bench.rig.path("gpu_maintenance.lock");
    bench.rig.set("canary.maintenance_lock", file.to_str().unwrap());
    bench.canary("--vram 14000 --warmup 1s");
    let run = bench.rig.gpuctl(&format!("canary run {CANDIDATE} --quiet")).spawn();
    until("production is away", || bench.events().contains(&"prod_stopped".to_owned()));
    let text = fs::read_to_string(&file).unwrap();
    let parts: Vec<_> = text.trim_end().split(':').collect();
    assert_eq!(parts[..2], ["canary", &run.pid().to_string()], "{text}");
    let since = UNIX_EPOCH + Duration::from_secs(parts[2].parse().unwrap());
    assert!(parts.len() == 3 && since.elapsed().is_ok_and(|age| age.as_secs() < 600), "{text}");
    run.wait().succeeds().stdout_has("passed: ");
    assert!(!file.exists());
}

#[test]
fn a_file_of_another_program_that_lives_refuses_the_run_and_one_of_the_dead_does_not() {
    let bench = Bench::new();
    let file = bench.rig.path("gpu_maintenance.lock");
    bench.rig.set("canary.maintenance_lock", file.to_str().unwrap());
    let mut holder = bench.rig.by_hand("sleep 1000");
    let content = format!("orchestrator:{}:1763000000.5", holder.pid());
    fs::write(&file, &content).unwrap();
    let error = bench.refuses("", "lock_busy");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("gpu_maintenance.lock is held by orchestrator:"), "{error}");
    assert!(error["details"]["next"].is_string(), "{error}");
    bench.try_it("--dry-run").exits(75).stderr_has("is held by orchestrator:");
    assert_eq!(fs::read_to_string(&file).unwrap(), content);
    bench.rig.assert_lock_was_given_back();
    // A file that does not say whose it is may be anybody's.
    for content in ["", "orchestrator", "orchestrator:-1:0", "orchestrator:soon:0"] {
        fs::write(&file, content).unwrap();
        bench.refuses("", "lock_busy");
    }

    fs::write(&file, &content).unwrap();
    bench.rig.shell(&format!("kill {}", holder.pid())).run().succeeds();
    until("it has ended", || !holder.is_alive());
    bench.passes("");
    assert!(!file.exists());
}

#[test]
fn a_file_of_a_program_that_nobody_has_buried_yet_is_one_of_the_dead() {
    let bench = Bench::new();
    let (file, pid) = (bench.rig.path("gpu_maintenance.lock"), bench.rig.path("pid"));
    bench.rig.set("canary.maintenance_lock", file.to_str().unwrap());
    let parent = format!("sh -c 'sleep 0.2 & echo $! >{}; exec sleep 1000'", pid.display());
    let _parent = bench.rig.by_hand(&parent);
    let dead = || fs::read_to_string(&pid).unwrap_or_default().trim().to_owned();
    until("it is a zombie", || {
        let status = fs::read_to_string(format!("/proc/{}/status", dead())).unwrap_or_default();
        status.contains("zombie")
    });
    fs::write(&file, format!("orchestrator:{}:0", dead())).unwrap();
    bench.passes("");
    assert!(!file.exists());
}

#[test]
fn a_file_for_other_programs_that_cannot_be_made_refuses_the_run() {
    let bench = Bench::new();
    let production = bench.production();
    bench.rig.set("canary.maintenance_lock", "/nowhere/gpu_maintenance.lock");
    let said = bench.try_it("").fails("io");
    drop(said.stderr_has("/nowhere/gpu_maintenance.lock").stderr_has("canary.maintenance_lock"));
    assert_eq!(bench.production(), production);
    assert_eq!(bench.events(), ["refused"]);
    assert_eq!(bench.files("gpu_budget"), Vec::<std::path::PathBuf>::new());
    assert_eq!(bench.status()["run_id"], Value::Null);
    bench.rig.assert_lock_was_given_back();
}
