//! Tests of `gpuctl canary check`, which judges a candidate by arithmetic over the live card and
//! touches nothing.

use crate::canary::bench::{Bench, CANDIDATE, CANDIDATE_ID};
use rig::{Rig, until};
use serde_json::{Value, json};
use std::fs;

/// Creates a rig on which production is configured but does not run, and the card is empty.
fn empty_box() -> Rig {
    let rig = Rig::new();
    rig.native("vllm").vram(18000).add();
    rig.set("canary.service", "vllm");
    rig
}

#[track_caller]
fn check(rig: &Rig, words: &str, code: i32) -> Value {
    rig.gpuctl(&format!("canary check {words} --json")).run().exits(code).json()
}

#[test]
fn a_verdict_has_every_field_of_the_contract() {
    let rig = empty_box();
    assert_eq!(
        check(&rig, CANDIDATE, 0),
        json!({"status": "pass", "mode": "predictive", "validation_passed": true,
            "validation_reason": "an allocation of 18432 MB fits into 24576 MB",
            "candidate": {"vllm_memory_util": 0.75}, "candidate_id": CANDIDATE_ID,
            "allocation_mb": 18432, "model_mb": 5700, "kv_cache_mb": 12732,
            "persistent_mb": 0, "available_mb": 24576})
    );
    let text = rig.gpuctl(&format!("canary check {CANDIDATE}")).run().succeeds().text();
    let told = "predictive: nothing was started; --mode canary for a trial (`gpuctl canary run --mode canary`)\n";
    assert_eq!(text, format!("pass: an allocation of 18432 MB fits into 24576 MB\n{told}"));
}

#[test]
fn what_others_hold_counts_and_what_production_holds_does_not() {
    let bench = Bench::new();
    let _desktop = bench.neighbour("desktop", 6144);
    let verdict = check(&bench.rig, CANDIDATE, 0);
    assert_eq!(
        (&verdict["persistent_mb"], &verdict["available_mb"], &verdict["allocation_mb"]),
        (&json!(6144), &json!(18432), &json!(18432))
    );
    // Now the allocation needs one megabyte more than is available.
    let _more = bench.neighbour("more", 1);
    let verdict = check(&bench.rig, CANDIDATE, 1);
    assert_eq!(
        verdict,
        json!({"status": "fail", "mode": "predictive", "validation_passed": false,
            "validation_reason": "an allocation of 18432 MB does not fit into 18431 MB: 6145 MB of 24576 MB is held by others",
            "candidate": {"vllm_memory_util": 0.75}, "candidate_id": CANDIDATE_ID,
            "allocation_mb": 18432, "model_mb": 5700, "kv_cache_mb": 12732,
            "persistent_mb": 6145, "available_mb": 18431})
    );
    let text = bench.rig.gpuctl(&format!("canary check {CANDIDATE}")).run().fails("no").text();
    assert!(text.starts_with("fail: an allocation of 18432 MB does not fit"), "{text}");
}

#[test]
fn an_allocation_that_does_not_hold_model_and_cache_fails() {
    let rig = empty_box();
    rig.set("canary.model_mb", 18000);
    rig.set("canary.kv_cache_min_mb", 432);
    assert_eq!(check(&rig, CANDIDATE, 0)["kv_cache_mb"], 432);
    rig.set("canary.kv_cache_min_mb", 433);
    let verdict = check(&rig, CANDIDATE, 1);
    assert_eq!((&verdict["status"], &verdict["model_mb"]), (&json!("fail"), &json!(18000)));
    let reason = verdict["validation_reason"].as_str().unwrap();
    assert!(reason.contains("less than the model (18000 MB)"), "{reason}");
}

#[test]
fn a_share_is_as_exact_as_it_is_written() {
    let bench = Bench::new();
    bench.rig.gpuctl("stop vllm --quiet").run().succeeds();
    // 0.61 of 24576 is 14991.36.
    let neighbour = bench.neighbour("desktop", 24576 - 14992);
    assert_eq!(check(&bench.rig, "--set vllm_memory_util=0.61", 0)["allocation_mb"], 14991);
    let _more = bench.neighbour("more", 1);
    assert_eq!(check(&bench.rig, "--set vllm_memory_util=0.61", 1)["available_mb"], 14991);
    drop(neighbour);
    // 0.69 of 10000 is 6900, but slightly less in binary floating point.
    let rig = empty_box();
    rig.card.describe(&json!({"devices": [{"total_mb": 10000}]}));
    rig.set("canary.model_mb", 6530);
    assert_eq!(check(&rig, "--set vllm_memory_util=0.69", 0)["allocation_mb"], 6900);
    rig.set("canary.model_mb", 6531);
    check(&rig, "--set vllm_memory_util=0.69", 1);
}

#[test]
fn what_a_choice_adds_to_the_need_counts() {
    let bench = Bench::new();
    bench.rig.set("canary.extra_mb.whisper_model_size.small", 2000);
    let _desktop = bench.neighbour("desktop", 4145);
    let choice = |size: &str| format!("{CANDIDATE} --set whisper_model_size={size}");
    assert_eq!(check(&bench.rig, &choice("base"), 0)["status"], "pass");
    let verdict = check(&bench.rig, &choice("small"), 1);
    let reason = verdict["validation_reason"].as_str().unwrap();
    assert!(reason.contains("18432 MB and 2000 MB more does not fit into 20431 MB"), "{reason}");
}

#[test]
fn parameters_are_typed_by_their_bounds() {
    let rig = empty_box();
    let all = [
        "--set vllm_memory_util=0.75 --set whisper_model_size=small --set max_model_len=8192",
        "--set vllm_memory_util=0.750 whisper_model_size=small max_model_len=8192",
    ];
    for words in all {
        let verdict = check(&rig, words, 0);
        let typed =
            json!({"vllm_memory_util": 0.75, "whisper_model_size": "small", "max_model_len": 8192});
        assert_eq!(verdict["candidate"], typed, "{words}");
        assert_eq!(verdict["candidate_id"], "44de14599628a2a7", "{words}");
    }
    // A choice that looks like a number stays a choice, which is a string.
    rig.set("canary.bounds.tensor_parallel.one_of", vec!["1", "2"]);
    rig.set("canary.bounds.vllm_memory_util.min", 0.6);
    rig.set("canary.bounds.vllm_memory_util.max", 0.9);
    let verdict = check(&rig, "--set vllm_memory_util=0.6 tensor_parallel=2", 0);
    assert_eq!(verdict["candidate"]["tensor_parallel"], "2");
}

#[test]
fn a_candidate_comes_from_a_file_or_from_stdin_and_its_id_from_its_content() {
    let rig = empty_box();
    let (one, other) = (
        r#"{"max_model_len": 8192, "whisper_model_size": "small", "vllm_memory_util": 0.75}"#,
        "{\n\"vllm_memory_util\":7.5e-1,\"whisper_model_size\":\"small\",\"max_model_len\":8192}",
    );
    let sorted = r#"{"max_model_len":8192,"vllm_memory_util":0.75,"whisper_model_size":"small"}"#;
    let sum = rig.shell(&format!("printf %s '{sorted}' | sha256sum | cut -c1-16")).run();
    let id = sum.succeeds().text().trim().to_owned();
    for text in [one, other] {
        let file = rig.file("candidate.json", text);
        let words = format!("canary check --json --candidate {}", file.display());
        let verdict = rig.gpuctl(&words).run().succeeds().json();
        assert_eq!(verdict["candidate_id"], id, "{text}");
        let script = format!("gpuctl canary check --json --candidate - <{}", file.display());
        assert_eq!(rig.shell(&script).run().succeeds().json(), verdict, "{text}");
    }
    let differs = check(&rig, "--set vllm_memory_util=0.75 max_model_len=8193", 0);
    assert_ne!(differs["candidate_id"], id);
}

#[test]
fn a_candidate_that_is_none_is_a_bad_command_line() {
    let rig = empty_box();
    let none = rig.gpuctl("canary check").run().fails("usage");
    drop(none.stderr_has("--set").stderr_has("--candidate"));
    let both = rig.gpuctl("canary check --candidate - --set vllm_memory_util=0.7").run();
    both.fails("usage").stderr_has("cannot be used together");
    let form = rig.gpuctl("canary check --set vllm_memory_util").run();
    form.fails("usage").stderr_has("not of the form KEY=VALUE");
    for text in ["", "vllm_memory_util=0.75", "[0.75]", "0.75", "null", "{\"a\": 1} {}"] {
        let file = rig.file("candidate.json", text);
        let words = format!("canary check --candidate {}", file.display());
        let said = rig.gpuctl(&words).run().fails("usage");
        drop(said.stderr_has("candidate.json is not a JSON object").stderr_has("hint: {"));
        let error = rig.gpuctl(&format!("{words} --json")).run().fails("usage").json();
        assert_eq!(error["error"]["code"], "usage", "{text}");
    }
    let missing = rig.gpuctl("canary check --candidate /nowhere/c.json").run();
    missing.fails("io").stderr_has("/nowhere/c.json cannot be read");
}

#[test]
fn what_is_unknown_or_out_of_bounds_is_invalid_and_told_with_the_bounds() {
    let rig = empty_box();
    for (words, why) in [
        ("vllm_memory_util=0.59", "vllm_memory_util = 0.59 is out of bounds: 0.6 to 0.9"),
        ("vllm_memory_util=0.91", "vllm_memory_util = 0.91 is out of bounds: 0.6 to 0.9"),
        ("vllm_memory_util=nan", "vllm_memory_util = \"nan\" is out of bounds: 0.6 to 0.9"),
        ("vllm_memory_util=", "vllm_memory_util = \"\" is out of bounds: 0.6 to 0.9"),
        (
            "vllm_memory_util=0.7 max_model_len=4095",
            "max_model_len = 4095 is out of bounds: 4096 to 16384",
        ),
        ("vllm_memory_util=0.7 whisper_model_size=huge", "one of tiny, base, small"),
        (
            "vllm_memory_util=0.7 temperature=1",
            "unknown parameter temperature; known parameters: vllm_memory_util, max_model_len, whisper_model_size",
        ),
        ("max_model_len=4096", "the candidate does not set vllm_memory_util"),
    ] {
        let verdict = check(&rig, &format!("--set {words}"), 1);
        let reason = verdict["validation_reason"].as_str().unwrap();
        assert!(reason.contains(why), "{words}: {reason}");
        assert_eq!(
            (&verdict["status"], &verdict["validation_passed"], &verdict["allocation_mb"]),
            (&json!("invalid"), &json!(false), &Value::Null),
            "{words}"
        );
    }
    for (words, code) in [("vllm_memory_util=0.6", 0), ("vllm_memory_util=0.9", 0)] {
        check(&rig, &format!("--set {words}"), code);
    }
    let empty = rig.shell("echo '{}' | gpuctl canary check --candidate -").run();
    empty.fails("no").stdout("invalid: the candidate sets nothing\n");
    let text =
        rig.shell("echo '{\"vllm_memory_util\": \"0.7\"}' | gpuctl canary check --candidate -");
    text.run()
        .fails("no")
        .stdout("invalid: vllm_memory_util = \"0.7\" is out of bounds: 0.6 to 0.9\n");
}

#[test]
fn without_a_reading_there_is_no_verdict_but_an_estimate_where_the_size_is_configured() {
    let bench = Bench::new();
    let rig = &bench.rig;
    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    let check_it = format!("canary check {CANDIDATE} --json");
    let error = rig.gpuctl(&check_it).run().fails("unavailable").json();
    assert!(error["error"]["hint"].as_str().unwrap().contains("gpu.total_mb"), "{error}");
    rig.set("gpu.total_mb", 24576);
    let other = rig.native("other").vram(6144).add();
    let verdict = check(rig, CANDIDATE, 0);
    assert_eq!((&verdict["persistent_mb"], &verdict["available_mb"]), (&json!(0), &json!(24576)));
    let _other = rig.by_hand(other.command());
    until("it is healthy", || other.is_healthy());
    // Production's declared size is not counted; the other service's is.
    assert_eq!(check(rig, CANDIDATE, 0)["persistent_mb"], 6144);
    rig.set("gpu.total_mb", 24000);
    assert_eq!(check(rig, CANDIDATE, 1)["allocation_mb"], 18000);
}

#[test]
fn where_the_driver_does_not_say_what_production_holds_there_is_no_verdict() {
    let bench = Bench::new();
    bench.rig.card.describe(&json!({"process_memory_known": false}));
    let check = bench.rig.gpuctl(&format!("canary check {CANDIDATE}")).run();
    check.fails("unavailable").stderr_has("cannot tell what vllm holds").stderr_has("hint");
}

#[test]
fn nothing_is_started_stopped_or_written() {
    let bench = Bench::new();
    let rig = &bench.rig;
    let before = (bench.production(), rig.card.used_mb(), bench.files(""));
    let is_new = |name: &str| fs::exists(rig.path(name)).unwrap();
    for words in ["check", "run --mode predictive", "run --mode predictive --now --dry-run"] {
        for (set, code) in [("0.75", 0), ("0.95", 1)] {
            let words = format!("canary {words} --set vllm_memory_util={set} --json");
            let verdict = rig.gpuctl(&words).run().exits(code).json();
            assert_eq!((&verdict["mode"], &verdict["path"]), (&json!("predictive"), &Value::Null));
        }
    }
    assert_eq!((bench.production(), rig.card.used_mb(), bench.files("")), before);
    assert!(!is_new("state/promotions"));
    bench.assert_no_canary();
    rig.assert_lock_was_given_back();
}
