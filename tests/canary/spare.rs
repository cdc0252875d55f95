//! Tests of a `gpuctl canary run` beside production, on a spare card: it costs no downtime and no
//! budget, and needs no window.

use crate::canary::bench::{Bench, CANDIDATE, closed_window};
use rig::{Signal, until, with_room};
use serde_json::{Value, json};
use std::fs;
use std::time::{Duration, Instant};

/// Creates a bench with two cards, of which the second may be used for the canary, while the window
/// is closed. The canary writes the number of the card that it was given to the file `seen`.
fn two_cards() -> Bench {
    let bench = Bench::new();
    bench.rig.card.describe(&json!({"devices": [{}, {}]}));
    bench.rig.set("canary.allow_spare_gpu", true);
    bench.rig.set("canary.window", closed_window());
    let server = bench.vllm.command().split(' ').next().unwrap();
    let (name, seen) = (bench.rig.mark("canary"), bench.rig.path("seen"));
    let start = format!(
        "echo $$CUDA_VISIBLE_DEVICES >{}; exec {server} --name {name} --port {{port}} --vram 14000 --device $$CUDA_VISIBLE_DEVICES --warmup 500ms",
        seen.display()
    );
    bench.rig.set("canary.start", start);
    bench
}

#[test]
fn a_canary_on_the_spare_card_costs_neither_downtime_nor_budget_and_needs_no_window() {
    let bench = two_cards();
    let production = bench.production();
    let run = bench.rig.gpuctl(&format!("canary run {CANDIDATE} --json --quiet")).spawn();
    until("it has passed", || {
        assert!(bench.vllm.is_healthy(), "production is away");
        bench.files("promotions").len() == 1
    });
    let report = run.wait().succeeds().json();
    assert_eq!(bench.production(), production);
    assert_eq!(
        (&report["path"], &report["status"], &report["downtime_seconds"], &report["oom_events"]),
        (&json!("spare"), &json!("pass"), &json!(0.0), &json!(0))
    );
    assert_eq!((&report["restored"], &report["restore_seconds"]), (&Value::Null, &Value::Null));
    assert!(report["llm_latency_ms"].as_f64().unwrap() > 0.0);
    assert!(fs::exists(report["promotion"].as_str().unwrap()).unwrap());
    assert_eq!(fs::read_to_string(bench.rig.path("seen")).unwrap(), "1\n");
    assert_eq!(
        bench.events(),
        [
            "canary_start",
            "spare_path_selected",
            "canary_started",
            "health_ok",
            "completion",
            "canary_stopped",
            "promoted"
        ]
    );
    assert_eq!(bench.files("gpu_budget"), Vec::<std::path::PathBuf>::new());
    assert_eq!(bench.status()["budget_used"], 0.0);
    bench.assert_no_canary();
    bench.rig.assert_no_out_of_memory();
    bench.rig.assert_lock_was_given_back();

    // The trial still counts as a run.
    bench.refuses("", "cooldown");
    let text = bench.try_it("--now").succeeds().progress().text();
    assert!(text.starts_with("passed: ") && !text.contains("away"), "{text}");
}

#[test]
fn a_canary_on_the_spare_card_that_fails_is_rejected_and_ended() {
    let bench = two_cards();
    bench.canary("--vram 30000 --device 1");
    let production = bench.production();
    let report = bench.try_it("--json --quiet").fails("no").json();
    assert_eq!((&report["path"], &report["promotion"]), (&json!("spare"), &Value::Null));
    assert_eq!(bench.production(), production);
    assert_eq!(bench.events().last().unwrap(), "rejected");
    bench.assert_no_canary();
}

#[test]
fn without_room_on_the_spare_card_it_would_be_tried_in_the_night_and_in_place() {
    let bench = two_cards();
    let server = bench.vllm.command().split(' ').next().unwrap();
    let name = bench.rig.mark("other");
    let other = format!("{server} --name {name} --device 1 --vram 6145");
    let _other = bench.rig.by_hand(&other);
    until("it holds its memory", || bench.rig.card.claims().len() == 2);
    bench.refuses("", "outside_window");
    let report = bench.try_it("--now --dry-run --json").succeeds().json();
    assert_eq!(report["path"], "quiesced");
}

#[test]
fn without_a_spare_card_it_is_tried_in_place() {
    let bench = two_cards();
    bench.rig.card.describe(&json!({"devices": [{}]}));
    bench.refuses("", "outside_window");
    bench.canary("--vram 14000");
    bench.passes("--now");
    let seen = bench.events();
    assert!(!seen.contains(&"spare_path_selected".to_owned()), "{seen:?}");
}

#[test]
fn productions_own_card_is_no_spare_one_however_it_is_named() {
    let bench = two_cards();
    bench.rig.set("canary.spare_gpu", 0);
    // There would be room for both if the canary were tried beside production.
    bench.rig.set("canary.bounds.vllm_memory_util.min", 0.1);
    bench.rig.set("canary.bounds.vllm_memory_util.max", 0.9);
    bench.rig.set("canary.model_mb", 1000);
    for selector in ["--gpu 0", "--gpu GPU-51390000-0000-4000-8000-000000000000"] {
        let words =
            format!("canary run {selector} --set vllm_memory_util=0.2 --json --now --dry-run");
        let report = bench.rig.gpuctl(&words).run().succeeds().json();
        assert_eq!(report["path"], "quiesced", "{selector}");
    }
}

#[test]
fn a_larger_spare_card_needs_room_for_the_same_share_of_it() {
    let bench = two_cards();
    bench.rig.card.describe(&json!({"devices": [{}, {"total_mb": 49152}]}));
    let path = || bench.try_it("--now --dry-run --json").succeeds().json()["path"].clone();
    assert_eq!(path(), "spare");
    let server = bench.vllm.command().split(' ').next().unwrap();
    let name = bench.rig.mark("other");
    // 0.75 of the spare card is 36864 MB. One megabyte less is left there, although that is more
    // than production's card has in all.
    let _other = bench.rig.by_hand(&format!("{server} --name {name} --device 1 --vram 12289"));
    until("it holds its memory", || bench.rig.card.claims().len() == 2);
    assert_eq!(path(), "quiesced");
}

/// Returns the PIDs of the canary's processes that hold memory of a card.
fn canaries(bench: &Bench) -> Vec<i32> {
    let mark = bench.rig.mark("canary");
    let claims = bench.rig.card.claims();
    let of_canary = claims.iter().filter(|claim| claim.name == mark);
    of_canary.filter_map(|claim| i32::try_from(claim.pid?).ok()).collect()
}

#[test]
fn a_canary_on_the_spare_card_that_is_stopped_is_rejected_at_its_deadline_and_ended() {
    let bench = two_cards();
    bench.rig.set("canary.timeout", "8s");
    let production = bench.production();
    let run = bench.rig.gpuctl(&format!("canary run {CANDIDATE} --json --quiet")).spawn();
    until("the canary holds its memory", || !canaries(&bench).is_empty());
    let begun = Instant::now();
    canaries(&bench).into_iter().for_each(|pid| rig::signal(pid, Signal::STOP));
    let report = run.wait().fails("no").json();
    assert!(begun.elapsed() < with_room(10), "{:?}", begun.elapsed());
    assert_eq!((&report["path"], &report["promotion"]), (&json!("spare"), &Value::Null));
    let why = report["rejection"].as_str().unwrap();
    assert!(why.contains("not done within 8s"), "{why}");
    assert_eq!(bench.production(), production);
    assert_eq!(bench.events().last().unwrap(), "rejected");
    bench.assert_no_canary();
    bench.rig.assert_lock_was_given_back();
    assert_eq!(bench.status()["budget_used"], 0.0);
}

#[test]
fn a_run_beside_production_that_is_stopped_harms_nobody_and_ends_its_canary_when_it_goes_on() {
    let bench = two_cards();
    bench.rig.set("canary.timeout", "8s");
    let production = bench.production();
    let run = bench.rig.gpuctl(&format!("canary run {CANDIDATE} --json --quiet")).spawn();
    until("the canary holds its memory", || !canaries(&bench).is_empty());
    run.signal(Signal::STOP);
    until("it is stopped", || rig::state(run.pid()) == Some('T'));
    let since = Instant::now();
    until("its time is over", || since.elapsed() > Duration::from_secs(9));
    assert_eq!(bench.production(), production);
    run.signal(Signal::CONT);
    let (code, told) = run.wait().ended();
    assert!(matches!(code, Some(0 | 1)), "{code:?}: {told}");
    assert_eq!(bench.production(), production);
    bench.assert_no_canary();
    bench.rig.assert_lock_was_given_back();
}
