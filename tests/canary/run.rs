//! Tests of a `gpuctl canary run` that goes well: what it does, prints and records, and how long
//! production is away, seen from outside.

use crate::canary::bench::{Bench, CANDIDATE, CANDIDATE_ID};
use rig::{Rig, until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

/// Seconds by which rounded figures of the report may differ from what was measured.
const ROUNDED: f64 = 0.1;

/// Asserts that a candidate passes and production comes back, whatever manages production.
fn passes_in_place(bench: &Bench) {
    let rig = &bench.rig;
    let before = bench.production();
    let (prober, begun) = (bench.vllm.probe(), Instant::now());
    let report = bench.passes("");
    let whole = begun.elapsed().as_secs_f64();
    let away = prober.absences().iter().sum::<Duration>().as_secs_f64();
    let downtime = report["downtime_seconds"].as_f64().unwrap();
    let restore = report["restore_seconds"].as_f64().unwrap();
    assert!(away <= downtime + ROUNDED && downtime <= whole, "{away} s of {whole} s: {report}");
    assert!(0.0 < restore && restore < downtime && downtime < 45.0, "{report}");
    assert_ne!(bench.production(), before);
    assert_eq!(bench.budget()["seconds_used"], json!(downtime));
    assert_eq!(bench.status()["budget_used"], json!(downtime));
    assert_eq!(rig.card.used_mb(), 18000);
    bench.assert_no_canary();
    rig.assert_no_out_of_memory();
    rig.assert_lock_was_given_back();
}

#[test]
fn a_candidate_that_works_passes_and_native_production_comes_back() {
    passes_in_place(&Bench::new());
}

#[test]
fn a_candidate_that_works_passes_and_a_unit_comes_back() {
    let rig = Rig::new();
    if !rig.systemd().has_control_groups() {
        return;
    }
    let vllm = rig.unit("vllm").vram(18000).add();
    passes_in_place(&Bench::of(rig, vllm));
}

#[test]
fn a_candidate_that_works_passes_and_a_container_comes_back() {
    let Some(rig) = Rig::with_docker() else { return };
    let vllm = rig.container("vllm").vram(18000).add();
    passes_in_place(&Bench::of(rig, vllm));
}

#[test]
fn a_run_tells_every_field_of_the_contract() {
    let bench = Bench::new();
    bench.canary("--vram 14000 --warmup 300ms --completion-delay 100ms");
    let mut report = bench.passes("");
    for (field, least) in
        [("llm_latency_ms", 100.0), ("downtime_seconds", 0.4), ("restore_seconds", 0.0)]
    {
        let figure = report[field].take().as_f64().unwrap();
        assert!(figure > least && figure < 45_000.0, "{field}: {figure}");
    }
    let promotion = report["promotion"].take();
    assert!(fs::exists(promotion.as_str().unwrap()).unwrap());
    assert_eq!(
        report,
        json!({"status": "pass", "mode": "canary", "validation_passed": true,
            "validation_reason": "an allocation of 18432 MB fits into 24576 MB",
            "candidate": {"vllm_memory_util": 0.75}, "candidate_id": CANDIDATE_ID,
            "allocation_mb": 18432, "model_mb": 5700, "kv_cache_mb": 12732,
            "persistent_mb": 0, "available_mb": 24576, "path": "quiesced", "rejection": null,
            "llm_latency_ms": null, "oom_events": 0, "downtime_seconds": null,
            "restored": true, "restore_seconds": null, "promotion": null})
    );
    let said = bench.try_it("--now").succeeds().progress().text();
    assert!(said.starts_with("passed: completion in "), "{said}");
    assert!(said.contains(" ms, production away for ") && said.contains("/promotions/"), "{said}");
}

#[test]
fn the_canary_is_started_with_what_the_candidate_sets_and_production_as_it_was() {
    let bench = Bench::new();
    let seen = bench.rig.path("seen");
    let note = format!(
        "echo {{port}} {{model}} {{vllm_memory_util}} {{max_model_len}} >{}; exec ",
        seen.display()
    );
    let production =
        bench.rig.shell(&format!("tr '\\0' ' ' </proc/{}/cmdline", bench.production()[0]));
    let command_line = production.run().succeeds().text();
    let server = bench.vllm.command().split(' ').next().unwrap();
    let name = bench.rig.mark("canary");
    bench.rig.set("canary.start", format!("{note}{server} --name {name} --port {{port}} --vram 1"));
    let candidate = "--set max_model_len=8192 --candidate";
    // A candidate comes from `--set` or from `--candidate`, not from both.
    bench.rig.gpuctl(&format!("canary run {candidate} -")).run().fails("usage").stderr_has("--set");
    bench.passes("--set max_model_len=8192");
    let expected = format!("{} /models/m 0.75 8192\n", bench.port);
    assert_eq!(fs::read_to_string(seen).unwrap(), expected);
    let again = bench.rig.shell(&format!("tr '\\0' ' ' </proc/{}/cmdline", bench.production()[0]));
    assert_eq!(again.run().succeeds().text(), command_line);
}

#[test]
fn the_canary_is_started_in_productions_folder_and_with_its_variables() {
    let bench = Bench::new();
    let folder = bench.rig.path("models");
    fs::create_dir(&folder).unwrap();
    bench.rig.set("services.vllm.cwd", folder.to_str().unwrap());
    bench.rig.set("services.vllm.env.CUDA_VISIBLE_DEVICES", "1");
    let server = bench.vllm.command().split(' ').next().unwrap();
    let name = bench.rig.mark("canary");
    let start = format!(
        "echo $$CUDA_VISIBLE_DEVICES >seen; exec {server} --name {name} --port {{port}} --vram 1"
    );
    bench.rig.set("canary.start", start);
    bench.passes("");
    assert_eq!(fs::read_to_string(folder.join("seen")).unwrap(), "1\n");
}

#[test]
fn production_goes_back_beside_those_that_it_ran_beside_whatever_they_declare() {
    let bench = Bench::new();
    let comfy = bench.rig.native("comfy").vram(600).priority(100).add();
    bench.rig.gpuctl("start comfy --quiet").run().succeeds();
    // By its declared size comfy would not fit beside production, nor production beside comfy.
    bench.rig.set("services.comfy.vram_mb", 20000);
    bench.passes("");
    let servers = bench.rig.processes_of(&comfy);
    // The desktop's memory did not matter either while production ran.
    let _desktop = bench.neighbour("desktop", 5000);
    bench.rig.set("services.comfy.vram_mb", 600);
    bench.rig.set("services.vllm.vram_mb", 20000);
    bench.rig.set("services.vllm.start_timeout", "20s");
    bench.canary("--vram 12000");
    bench.passes("--now");
    assert_eq!(bench.rig.processes_of(&comfy), servers);
}

#[test]
fn a_canary_that_was_given_another_environment_is_ended_too() {
    let bench = Bench::new();
    let server = bench.vllm.command().split(' ').next().unwrap();
    let (name, card) = (bench.rig.mark("canary"), bench.rig.path("card"));
    let clean = format!("exec env -i SIMGPU_DIR={} {server}", card.display());
    bench.rig.set("canary.start", format!("{clean} --name {name} --port {{port}} --vram 14000"));
    bench.passes("");
    bench.assert_no_canary();
}

#[test]
fn production_that_does_not_end_is_killed_in_time_and_comes_back() {
    let rig = Rig::new();
    let vllm = rig.native("vllm").vram(18000).server("--ignore-term").add();
    let bench = Bench::of(rig, vllm);
    bench.rig.set("services.vllm.stop_timeout", "10m");
    bench.rig.set("canary.timeout", "1s");
    bench.rig.set("canary.restore_sla", "15s");
    let report = bench.try_it("--json --quiet").fails("no").json();
    assert_eq!(
        (&report["rejection"], &report["restored"]),
        (&"not done within 1s".into(), &true.into())
    );
    // The downtime does not exceed what was promised and booked.
    assert!(report["downtime_seconds"].as_f64().unwrap() <= 16.0, "{report}");
    assert!(!bench.events().contains(&"restore_sla_missed".to_owned()));
    bench.production();
}

#[test]
fn a_candidate_that_passed_is_promoted() {
    let bench = Bench::new();
    let report = bench.passes("--set max_model_len=8192");
    let path = report["promotion"].as_str().unwrap();
    let start = bench.audit().into_iter().find(|event| event["event"] == "canary_start").unwrap();
    let id = format!("config_tuning_vllm_{}", &start["run_id"].as_str().unwrap()[..8]);
    let expected = bench.rig.state_dir().join(format!("promotions/{id}.json"));
    assert_eq!(path, expected.to_str().unwrap());
    assert!(id[19..].bytes().all(|digit| digit.is_ascii_hexdigit()), "{id}");
    let mode = |path: &str| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(path), 0o600);
    assert_eq!(mode(expected.parent().unwrap().to_str().unwrap()), 0o700);
    let mut promotion: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let timestamp = promotion["timestamp"].take();
    assert!(
        timestamp.as_str().unwrap().starts_with("20") && timestamp.as_str().unwrap().ends_with('Z')
    );
    assert_eq!(
        promotion,
        json!({"schema": "config_tuning.v1", "promotion_id": id, "subsystem": "vllm",
            "candidate": {"max_model_len": 8192, "vllm_memory_util": 0.75},
            "metrics": {"llm_latency_ms": report["llm_latency_ms"], "oom_events": 0},
            "bounds_checked": true, "timestamp": null})
    );
}

#[test]
fn a_candidate_that_is_rejected_is_not_promoted_and_production_comes_back() {
    let bench = Bench::new();
    bench.canary("--vram 14000 --completion empty");
    let report = bench.try_it("--json --quiet").fails("no").json();
    assert_eq!(
        (&report["status"], &report["validation_passed"], &report["restored"]),
        (&json!("fail"), &json!(true), &json!(true))
    );
    assert_eq!(report["promotion"], Value::Null);
    assert!(!fs::exists(bench.rig.path("state/promotions")).unwrap());
    assert!(bench.events().contains(&"rejected".to_owned()), "{:?}", bench.events());
    bench.production();
}

#[test]
fn the_audit_tells_the_run_from_its_beginning_to_its_end() {
    let bench = Bench::new();
    let report = bench.passes("");
    assert_eq!(
        bench.events(),
        [
            "canary_start",
            "prod_stopped",
            "canary_started",
            "health_ok",
            "completion",
            "canary_stopped",
            "prod_restored",
            "promoted"
        ]
    );
    let audit = bench.audit();
    for event in &audit {
        for field in ["ts", "run_id", "event", "candidate_id", "budget_used", "reason"] {
            assert!(event.get(field).is_some(), "no {field} in {event}");
        }
        assert_eq!(event["run_id"], audit[0]["run_id"]);
        assert_eq!(event["candidate_id"], CANDIDATE_ID);
        assert_eq!(event["reason"], Value::Null);
    }
    let times: Vec<_> = audit.iter().map(|event| event["ts"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    // The longest possible downtime is booked while the trial runs, and the actual one at its end.
    let downtime = &report["downtime_seconds"];
    assert_eq!((&audit[1]["budget_used"], &audit[7]["budget_used"]), (&json!(45.0), downtime));
    let modes = bench.files("gpu_").into_iter().map(|file| fs::metadata(file).unwrap());
    assert!(modes.into_iter().all(|file| file.permissions().mode() & 0o777 == 0o600));
}

#[test]
fn while_it_runs_the_lock_is_held_and_the_whole_time_is_booked() {
    let bench = Bench::new();
    bench.canary("--vram 14000 --warmup 2s");
    let words = format!("canary run {CANDIDATE} --quiet");
    let run = bench.rig.gpuctl(&words).spawn();
    until("production is away", || bench.events().contains(&"prod_stopped".to_owned()));
    let lock = bench.rig.lock_held();
    assert!(lock["holder"].as_str().unwrap().starts_with("canary"), "{lock}");
    let status = bench.status();
    assert_eq!(
        (&status["budget_used"], &status["restore_owed"], &status["runs_24h"]),
        (&json!(45.0), &json!(false), &json!(1))
    );
    assert_eq!(bench.audit()[0]["run_id"], status["run_id"]);
    let text = bench.rig.gpuctl("canary status").run().succeeds().text();
    assert!(text.contains("is under way") && text.contains("45.0s used, 15.0s left"), "{text}");
    run.wait().succeeds().stdout_has("passed: ");
    assert_eq!(bench.status()["run_id"], Value::Null);
}

#[test]
fn a_dry_run_changes_nothing_and_says_how_it_would_be_tried() {
    let bench = Bench::new();
    let before = (bench.production(), bench.files(""));
    let report = bench.try_it("--dry-run --json").succeeds().json();
    assert_eq!((&report["path"], &report["status"]), (&json!("quiesced"), &json!("pass")));
    let text = bench.try_it("--dry-run").succeeds().text();
    assert!(text.ends_with("; would be tried quiesced\n"), "{text}");
    assert_eq!((bench.production(), bench.files("")), before);
    bench.rig.assert_lock_was_given_back();

    // A dry run is refused as the real run would be.
    bench.rig.set("canary.max_downtime", "44s");
    bench.refuses("--dry-run", "budget_exhausted");
    bench.refuses("--dry-run --now", "budget_exhausted");
    bench.rig.set("canary.max_downtime", "45s");
    bench.rig.gpuctl("stop vllm").run().succeeds().stdout_has("stopped vllm").progress();
    bench.try_it("--dry-run").fails("unavailable").stderr_has("vllm is stopped");
    assert_eq!(bench.files("gpu_"), Vec::<std::path::PathBuf>::new());
}
