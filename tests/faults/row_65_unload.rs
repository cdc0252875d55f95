//! Unloading that can be trusted (row 65): with a child a model, with work in line, repeated, and with a context that stays.

use rig::{Rig, Service};
use serde_json::{Value, json};

/// A server that unloads, in phase 1, and what needs its memory, in phase 2.
fn rig_with(api: &str, server: &str, reclaim_ms: u64) -> (Rig, Service) {
    let rig = Rig::new();
    rig.card.describe(&json!({"reclaim_delay_ms": reclaim_ms}));
    let model = rig.native("model").vram(12000).priority(10).phases([1]).server(server);
    let model = model.set("evict", "unload").set("api", api).set("url", "http://127.0.0.1:1").add();
    rig.set("services.model.url", model.url(""));
    rig.native("big").vram(20000).priority(100).phases([2]).add();
    rig.gpuctl("start model --quiet").run().succeeds();
    (rig, model)
}

fn prepare(rig: &Rig) -> Value {
    let report = rig.gpuctl("prepare-phase 2 --json --quiet").run().succeeds().json();
    rig.assert_no_out_of_memory();
    report
}

#[test]
fn row_65_no_unload_becomes_a_stop_whatever_the_driver_takes_its_time_for() {
    for (api, server) in [
        ("comfyui", "--api comfyui --unload-residual 600 --unload-delay 200ms"),
        ("ollama", "--api ollama --model a --model b --child-per-model"),
        ("vllm", "--api vllm --unload-residual 1500"),
        ("llama-server", "--api llama --router --model a --model b --child-per-model"),
        ("sdwebui", "--api sdwebui --unload-residual 1000"),
    ] {
        for reclaim_ms in [0, 300, 2000] {
            let (rig, model) = rig_with(api, server, reclaim_ms);
            let report = prepare(&rig);
            assert_eq!(report["unloaded"], json!(["model"]), "{server}, {reclaim_ms} ms: {report}");
            assert_eq!(report["stopped"], json!([]), "{server}, {reclaim_ms} ms: {report}");
            assert!(model.is_healthy());
        }
    }
}

#[test]
fn row_65_repeated_there_is_nothing_to_stop_where_a_context_stays() {
    let (rig, model) = rig_with("vllm", "--api vllm --unload-residual 1500", 0);
    let process = rig.processes_of(&model);
    assert_eq!(prepare(&rig)["unloaded"], json!(["model"]));
    for _ in 0..3 {
        let shown = rig.gpuctl("prepare-phase 2 --dry-run --json").run().succeeds().json();
        assert_eq!((&shown["unloaded"], &shown["stopped"]), (&json!([]), &json!([])), "{shown}");
        assert_eq!(shown["kept"], json!(["big", "model"]));
        let report = prepare(&rig);
        assert_eq!((&report["unloaded"], &report["stopped"]), (&json!([]), &json!([])), "{report}");
        assert_eq!(report["kept"], json!(["big", "model"]));
        assert_eq!(rig.processes_of(&model), process);
    }
}

#[test]
fn row_65_what_keeps_a_context_is_stopped_only_where_there_is_no_room_beside_it() {
    let (rig, model) = rig_with("vllm", "--api vllm --unload-residual 1500", 0);
    prepare(&rig);
    rig.gpuctl("stop big --quiet").run().succeeds();
    let shown = rig.gpuctl("prepare-phase 2 --dry-run --json").run().succeeds().json();
    assert_eq!((&shown["started"], &shown["kept"]), (&json!(["big"]), &json!(["model"])));
    rig.set("services.big.vram_mb", 22500);
    rig.gpuctl("prepare-phase 2 --dry-run").run().succeeds().stdout_has("would stop model");
    let report = prepare(&rig);
    assert_eq!((&report["unloaded"], &report["stopped"]), (&json!([]), &json!(["model"])));
    rig.assert_no_process_of(&model);
}

#[test]
fn row_65_work_in_line_is_done_before_the_memory_is_asked_for() {
    let (rig, model) = rig_with("comfyui", "--api comfyui --unload-residual 600", 0);
    for _ in 0..3 {
        model.request("/prompt", &json!({"ms": 500})).join().unwrap().unwrap();
    }
    let report = prepare(&rig);
    assert_eq!((&report["unloaded"], &report["stopped"]), (&json!(["model"]), &json!([])));
    rig.assert_jobs_done(3);
}

#[test]
fn row_65_a_service_is_ready_when_its_warm_up_call_is_answered() {
    let rig = Rig::new();
    let server = "--api comfyui --idle-vram 600";
    let comfyui = rig.native("comfyui").vram(9000).server(server).add();
    rig.set("services.comfyui.warm_up.url", comfyui.url("/work"));
    let start = rig.gpuctl("start comfyui").run().succeeds().stdout_has("started comfyui");
    start.stderr_has("warming up comfyui").ignores_stderr();
    assert_eq!(rig.card.used_mb(), 9000);
    rig.gpuctl("stop comfyui --quiet").run().succeeds();
    rig.set("services.comfyui.warm_up.url", comfyui.url("/nowhere"));
    let start = rig.gpuctl("start comfyui --quiet").run().fails("start_failed");
    start.stderr_has("its warm-up call failed: ").ignores_stderr();
}

#[test]
fn row_65_a_model_that_was_put_aside_is_brought_back_before_its_service_counts_as_ready() {
    let (rig, model) = rig_with("sdwebui", "--api sdwebui --unload-residual 1000", 0);
    prepare(&rig);
    assert!(model.is_healthy());
    rig.gpuctl("stop big --quiet").run().succeeds();
    assert_eq!(rig.card.used_mb(), 1000);
    rig.gpuctl("prepare-phase 1 --quiet").run().succeeds().ignores_stdout();
    assert_eq!(rig.card.used_mb(), 12000);
}
