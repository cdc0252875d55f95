//! Tests of unloading that can be trusted (row 65): with one child per model, with work in line,
//! repeated, and with a context that stays.

use rig::{Rig, Service, number, until};
use serde_json::{Value, json};
use std::thread;

/// Creates a rig with a running server that unloads, in phase 1, and a service that needs its
/// memory, in phase 2. Returns the rig and the server.
fn rig_with(api: &str, server: &str, reclaim_ms: u64) -> (Rig, Service) {
    let rig = Rig::new();
    rig.card.describe(&json!({"reclaim_delay_ms": reclaim_ms}));
    let model = rig.native("model").vram(12000).priority(10).phases([1]).server(server);
    let model = model.set("evict", "unload");
    let model = match api {
        "" => {
            let model = model.set("unload", toml::toml! { url = "http://127.0.0.1:1" }).add();
            rig.set("services.model.unload.url", model.url("/free"));
            rig.set("services.model.unload.body", r#"{"unload_models": true}"#);
            model
        }
        api => {
            let model = model.set("api", api).set("url", "http://127.0.0.1:1").add();
            rig.set("services.model.url", model.url(""));
            model
        }
    };
    rig.native("big").vram(20000).priority(100).phases([2]).add();
    rig.gpuctl("start model --quiet").run().succeeds();
    (rig, model)
}

fn prepare(rig: &Rig) -> Value {
    let report = rig.gpuctl("prepare-phase 2 --json --quiet").run().succeeds().json();
    rig.assert_no_out_of_memory();
    report
}

/// `GPUCTL_TEST_UNLOADS=50` repeats each unload that many times.
#[test]
fn row_65_no_unload_becomes_a_stop_whatever_the_driver_takes_its_time_for() {
    let kinds = [
        ("comfyui", "--api comfyui --unload-residual 600 --unload-delay 200ms"),
        ("ollama", "--api ollama --model a --model b --child-per-model"),
        ("vllm", "--api vllm --unload-residual 1500"),
        ("llama-server", "--api llama --router --model a --model b --child-per-model"),
        ("sdwebui", "--api sdwebui --unload-residual 1000"),
        // This server is unloaded by a call of its own in the configuration.
        ("", "--api comfyui --unload-residual 1500"),
    ];
    thread::scope(|scope| {
        for (api, server) in kinds {
            scope.spawn(move || {
                for reclaim_ms in [0, 300, 600, 2000] {
                    unload_again_and_again(api, server, reclaim_ms);
                }
            });
        }
    });
}

fn unload_again_and_again(api: &str, server: &str, reclaim_ms: u64) {
    let (rig, model) = rig_with(api, server, reclaim_ms);
    let process = rig.processes_of(&model)[0];
    for time in 0..number("GPUCTL_TEST_UNLOADS").unwrap_or(1) {
        let told = format!("{server}, {reclaim_ms} ms, {time}");
        let report = prepare(&rig);
        assert_eq!(report["unloaded"], json!(["model"]), "{told}: {report}");
        assert_eq!(report["stopped"], json!([]), "{told}: {report}");
        rig.gpuctl("prepare-phase 1 --quiet").run().succeeds().ignores_stdout();
        model.work();
        assert!(rig.processes_of(&model).contains(&process), "{told}: it was stopped");
    }
}

/// Asserts that a repeated `prepare-phase` neither stops nor unloads anything, and that its dry run
/// says so.
fn assert_nothing_to_do(rig: &Rig, model: &Service) {
    let process = rig.processes_of(model);
    for _ in 0..2 {
        let shown = rig.gpuctl("prepare-phase 2 --dry-run --json").run().succeeds().json();
        for report in [shown, prepare(rig)] {
            let done = (&report["unloaded"], &report["stopped"], &report["started"]);
            assert_eq!(done, (&json!([]), &json!([]), &json!([])), "{report}");
            assert_eq!(report["kept"], json!(["big", "model"]), "{report}");
        }
        assert_eq!(rig.processes_of(model), process);
    }
}

#[test]
fn row_65_repeated_there_is_nothing_to_stop_where_a_context_stays() {
    let (rig, model) = rig_with("vllm", "--api vllm --unload-residual 1500", 0);
    assert_eq!(prepare(&rig)["unloaded"], json!(["model"]));
    assert_nothing_to_do(&rig, &model);
}

#[test]
fn row_65_repeated_there_is_nothing_to_stop_where_much_more_than_a_context_stays() {
    let server = "--api comfyui --idle-vram 3300 --unload-residual 3300";
    let (rig, model) = rig_with("comfyui", server, 0);
    model.work();
    assert_eq!(prepare(&rig)["unloaded"], json!(["model"]));
    assert_nothing_to_do(&rig, &model);
    // What a job makes the service load again is given back again.
    rig.gpuctl("stop big --quiet").run().succeeds();
    model.work();
    assert_eq!(rig.card.used_mb(), 12000);
    assert_eq!(prepare(&rig)["unloaded"], json!(["model"]));
    assert_nothing_to_do(&rig, &model);
    // What earlier processes of the service have kept is not taken to be what new ones keep.
    rig.gpuctl("stop big --quiet").run().succeeds();
    rig.gpuctl("restart model --quiet").run().succeeds();
    assert_eq!(rig.card.used_mb(), 3300);
    rig.gpuctl("prepare-phase 2 --dry-run").run().succeeds().stdout_has("would unload model");
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

/// Gives a service a job as soon as at most `used_mb` are used and `is_time` is true, while `act`
/// runs; returns what `act` returns.
fn work_in_between(
    rig: &Rig,
    model: &Service,
    used_mb: u64,
    is_time: impl Fn() -> bool + Sync,
    act: impl FnOnce() -> Value,
) -> Value {
    thread::scope(|scope| {
        let works = scope.spawn(|| {
            until("it has unloaded", || rig.card.used_mb() <= used_mb && is_time());
            model.request("/prompt", &json!({"ms": 700})).join().unwrap().unwrap();
        });
        let report = act();
        works.join().unwrap();
        report
    })
}

#[test]
fn row_65_a_job_that_comes_to_a_service_that_has_just_unloaded_is_done_and_its_memory_is_given_back()
 {
    let (rig, model) = rig_with("comfyui", "--api comfyui --unload-residual 600", 0);
    // The end of `slow` takes longer than the unload beside it.
    let slow = rig.native("slow").vram(9000).priority(10).server("--term-delay 1500ms").add();
    rig.gpuctl("start slow --quiet").run().succeeds();
    let run = "run --vram 20000 -- sh -c";
    let held = rig.path("held");
    let script = format!("gpuctl status --json >{}", held.display());
    work_in_between(
        &rig,
        &model,
        9600,
        || true,
        || {
            rig.gpuctl(run).arg(&script).run().succeeds().ignores_stdout().progress();
            Value::Null
        },
    );
    let seen: Value = serde_json::from_str(&std::fs::read_to_string(held).unwrap()).unwrap();
    assert_eq!(seen["services"]["model"]["used_mb"], 600, "while the command ran: {seen}");
    rig.assert_jobs_done(1);
    rig.assert_no_out_of_memory();
    assert!(model.is_healthy());
    rig.assert_no_process_of(&slow);
}

#[test]
fn row_65_a_job_that_comes_while_the_next_service_starts_is_done_before_it_counts_as_ready() {
    let (rig, model) = rig_with("comfyui", "--api comfyui --unload-residual 600", 300);
    // `lazy` takes its memory only at its first job, as ComfyUI does.
    let lazy = rig.native("lazy").vram(20000).priority(100).phases([3]);
    let lazy = lazy.server("--idle-vram 600 --warmup 1500ms").add();
    let starts = || !rig.processes_of(&lazy).is_empty();
    let report = work_in_between(&rig, &model, 1200, starts, || {
        rig.gpuctl("prepare-phase 3 --json --quiet").run().succeeds().json()
    });
    assert_eq!((&report["unloaded"], &report["stopped"]), (&json!(["model"]), &json!([])));
    assert_eq!(report["started"], json!(["lazy"]), "{report}");
    assert_eq!(rig.card.used_mb(), 1200, "{report}");
    rig.assert_jobs_done(1);
    lazy.work();
    rig.assert_no_out_of_memory();
}

#[test]
fn row_65_what_loads_again_and_does_not_end_its_work_is_told_and_not_cut_off() {
    let (rig, model) = rig_with("comfyui", "--api comfyui --unload-residual 600", 0);
    let lazy = rig.native("lazy").vram(20000).priority(100).phases([3]);
    let lazy = lazy.server("--idle-vram 600 --warmup 1500ms").add();
    rig.set("services.model.drain", "1s");
    let starts = || !rig.processes_of(&lazy).is_empty();
    thread::scope(|scope| {
        scope.spawn(|| {
            until("it has unloaded", || rig.card.used_mb() < 1500 && starts());
            model.request("/prompt", &json!({"ms": 60_000})).join().unwrap().unwrap();
        });
        let prepare = rig.gpuctl("prepare-phase 3 --quiet").run().fails("service_busy");
        prepare.stderr_has("model (1 job) is still working").ignores_stderr();
    });
    assert!(model.is_healthy());
    assert_eq!(rig.card.jobs().values().copied().collect::<Vec<_>>(), [false], "it works on");
}

/// Creates a rig with a service that has unloaded and runs on, and one in phase 3 that takes its
/// memory only at its first job, as ComfyUI does; returns the rig and both.
fn rig_with_one_that_has_unloaded(vram_mb: u32) -> (Rig, Service, Service) {
    let (rig, model) = rig_with("comfyui", "--api comfyui --unload-residual 600", 0);
    prepare(&rig);
    rig.gpuctl("stop big --quiet").run().succeeds();
    assert_eq!(rig.card.used_mb(), 600);
    let lazy = rig.native("lazy").vram(vram_mb).priority(100).phases([3]);
    let lazy = lazy.server("--idle-vram 600 --warmup 1500ms").add();
    (rig, model, lazy)
}

#[test]
fn row_65_a_job_that_comes_to_a_service_that_had_unloaded_before_is_done_and_its_memory_is_given_back()
 {
    for command in ["prepare-phase 3", "prepare-phase 3 --lazy", "start lazy"] {
        let (rig, model, lazy) = rig_with_one_that_has_unloaded(20000);
        let process = rig.processes_of(&model);
        let starts = || !rig.processes_of(&lazy).is_empty();
        let report = work_in_between(&rig, &model, 1200, starts, || {
            rig.gpuctl(&format!("{command} --json --quiet")).run().succeeds().json()
        });
        assert_eq!(report["unloaded"], json!(["model"]), "{command}: {report}");
        assert_eq!((&report["stopped"], &report["kept"]), (&json!([]), &json!([])), "{report}");
        assert_eq!(rig.card.used_mb(), 1200, "{command}: {report}");
        assert_eq!(rig.processes_of(&model), process);
        rig.assert_jobs_done(1);
        lazy.work();
        rig.assert_no_out_of_memory();
    }
}

#[test]
fn row_65_a_service_that_had_unloaded_before_may_load_again_where_there_is_room_for_it() {
    let (rig, model, lazy) = rig_with_one_that_has_unloaded(5000);
    let starts = || !rig.processes_of(&lazy).is_empty();
    let report = work_in_between(&rig, &model, 1200, starts, || {
        rig.gpuctl("start lazy --json --quiet").run().succeeds().json()
    });
    assert_eq!((&report["unloaded"], &report["stopped"]), (&json!([]), &json!([])), "{report}");
    assert_eq!(report["kept"], json!(["model"]), "{report}");
    assert_eq!(rig.card.used_mb(), 12600, "{report}");
}

#[test]
fn row_65_who_had_unloaded_before_and_works_again_without_an_end_is_told_and_not_cut_off() {
    let (rig, model, lazy) = rig_with_one_that_has_unloaded(20000);
    rig.set("services.model.drain", "1s");
    let prepare = rig.gpuctl("prepare-phase 3 --quiet").spawn();
    until("the next service starts", || !rig.processes_of(&lazy).is_empty());
    model.request("/prompt", &json!({"ms": 60_000})).join().unwrap().unwrap();
    let refused = prepare.wait().fails("service_busy");
    refused.stderr_has("model (1 job) is still working").ignores_stderr();
    assert!(model.is_healthy());
    assert_eq!(rig.card.jobs().values().copied().collect::<Vec<_>>(), [false], "it works on");
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
fn row_65_a_call_that_warms_up_or_wakes_and_is_not_answered_in_time_is_a_timeout() {
    let slow = "--api vllm --unload-residual 700 --load-delay 1h --completion-delay 1h";
    let (rig, model) = rig_with("vllm", slow, 0);
    prepare(&rig);
    rig.gpuctl("stop big --quiet").run().succeeds();
    rig.set("services.model.start_timeout", "1s");
    let wake = rig.gpuctl("start model --quiet").run().fails("timeout");
    wake.stderr_has("model: not ready within 1s: ").ignores_stderr();
    assert!(model.is_healthy(), "it was left running");
    let warm = rig.native("warm").vram(1000).server(slow).set("start_timeout", "2s").add();
    rig.set("services.warm.warm_up.url", warm.url("/v1/completions"));
    let start = rig.gpuctl("start warm --quiet").run().fails("timeout");
    start.stderr_has("warm: not ready within 2s: ").ignores_stderr();
    assert!(warm.is_healthy(), "it was left running");
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

#[test]
fn row_65_repeated_nothing_is_stopped_where_the_driver_does_not_tell_who_holds_what() {
    let (rig, model) = rig_with("comfyui", "--api comfyui --unload-residual 600", 0);
    rig.card.describe(&json!({"process_memory_known": false}));
    let process = rig.processes_of(&model);
    assert_eq!(prepare(&rig)["unloaded"], json!(["model"]));
    let report = prepare(&rig);
    assert_eq!((&report["stopped"], &report["started"]), (&json!([]), &json!([])), "{report}");
    let note = report["steps"][0]["note"].as_str().unwrap();
    assert!(note.contains("the driver does not tell what it holds"), "{report}");
    assert_eq!(rig.processes_of(&model), process);
    // Without room beside it, the service is stopped.
    rig.set("services.big.vram_mb", 23500);
    rig.gpuctl("stop big --quiet").run().succeeds();
    assert_eq!(prepare(&rig)["stopped"], json!(["model"]));
    rig.assert_no_process_of(&model);
}
