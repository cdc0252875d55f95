//! Tests of soft eviction: each kind of server gives its memory back and keeps running, and is
//! stopped if it does not.

use rig::{Rig, Service, until};
use serde_json::{Value, json};
use toml::Table;

/// Memory in MB that the model server holds until it unloads.
const HELD: u32 = 12000;

/// Starts a model server that is to unload when it is evicted, and configures `big`, which needs
/// its memory.
fn rig_with(api: &str, server: &str) -> (Rig, Service, Service) {
    let rig = Rig::new();
    let model = rig
        .native("model")
        .vram(HELD)
        .priority(10)
        .set("evict", "unload")
        .server(server)
        .set("api", api)
        .set("url", "http://127.0.0.1:1")
        .add();
    rig.set("services.model.url", model.url(""));
    let big = rig.native("big").vram(20000).priority(100).add();
    rig.gpuctl("start model").run().succeeds().stdout_has("started model").progress();
    assert_eq!(rig.card.used_mb(), u64::from(HELD));
    (rig, model, big)
}

fn start_big(rig: &Rig) -> Value {
    let report = rig.gpuctl("start big --json --quiet").run().succeeds().json();
    assert_eq!(report["started"], json!(["big"]));
    rig.assert_no_out_of_memory();
    report
}

#[track_caller]
fn assert_unloads(api: &str, server: &str) -> (Rig, Service, Service) {
    let (rig, model, big) = rig_with(api, server);
    let process = rig.processes_of(&model);
    let report = start_big(&rig);
    assert_eq!((&report["unloaded"], &report["stopped"]), (&json!(["model"]), &json!([])));
    assert_eq!(rig.processes_of(&model), process, "it keeps running");
    assert!(model.is_healthy() && big.is_healthy());
    (rig, model, big)
}

#[track_caller]
fn assert_stopped_instead(rig: &Rig, model: &Service, why: &str) {
    let report = start_big(rig);
    assert_eq!((&report["unloaded"], &report["stopped"]), (&json!([]), &json!(["model"])));
    let notes: Vec<_> =
        report["steps"].as_array().unwrap().iter().flat_map(|step| step["note"].as_str()).collect();
    assert!(notes.iter().any(|note| note.contains(why)), "{notes:?}");
    rig.assert_no_process_of(model);
}

#[test]
fn ollama_unloads_each_of_its_models() {
    assert_unloads("ollama", "--api ollama --model llama3 --model qwen --unload-residual 500");
}

#[test]
fn comfyui_frees_its_memory() {
    assert_unloads("comfyui", "--api comfyui --unload-residual 600 --unload-delay 300ms");
}

#[test]
fn llama_server_unloads_each_of_its_models() {
    assert_unloads("llama-server", "--api llama --model a --model b");
}

#[test]
fn sdwebui_unloads_its_checkpoint() {
    assert_unloads("sdwebui", "--api sdwebui --unload-residual 1000");
}

#[test]
fn vllm_sleeps_and_is_woken_by_its_next_start() {
    let (rig, model, big) = assert_unloads("vllm", "--api vllm --unload-residual 700");
    assert_eq!(rig.card.used_mb(), 20700);
    rig.gpuctl("stop big").run().succeeds().stdout_has("stopped big").progress();

    let process = rig.processes_of(&model);
    let wake = rig.gpuctl("start model --json --quiet").run().succeeds().json();
    assert_eq!(wake["started"], json!(["model"]));
    assert_eq!(rig.card.used_mb(), u64::from(HELD));
    assert_eq!(rig.processes_of(&model), process);
    let again = rig.gpuctl("start model --json --quiet").run().succeeds().json();
    assert_eq!((&again["started"], &again["kept"]), (&json!([]), &json!(["model"])));
    rig.assert_no_process_of(&big);
}

#[test]
fn a_sleeper_that_does_not_tell_whether_it_sleeps_is_not_ready_and_is_waited_for() {
    let rig = Rig::new();
    let muted = rig.file("home/muted", "");
    let server = format!("--api vllm --unload-residual 700 --mute-paths {}", muted.display());
    let model = rig.native("model").vram(HELD).phases([1]).set("evict", "unload").server(&server);
    let model = model.set("api", "vllm").set("url", "http://127.0.0.1:1");
    let model = model.set("start_timeout", "2s").add();
    rig.set("services.model.url", model.url(""));
    rig.gpuctl("start model --quiet").run().succeeds();
    model.request("/sleep", &json!({})).join().unwrap().unwrap();
    until("it sleeps", || rig.card.used_mb() == 700);
    let process = rig.processes_of(&model);

    let status_of = |rig: &Rig| rig.gpuctl("status --json").run().succeeds().json();
    until("its start is over", || {
        status_of(&rig)["services"]["model"]["uptime_s"].as_u64() > Some(2)
    });
    rig.file("home/muted", "/is_sleeping");
    let status = status_of(&rig);
    let service = &status["services"]["model"];
    assert_eq!(service["state"], "unresponsive", "{status}");
    let detail = service["detail"].as_str().unwrap();
    assert!(detail.contains("cannot tell whether it sleeps: "), "{detail}");
    rig.gpuctl("status --check model --quiet").run().fails("no").ignores_stdout();
    for command in ["start model", "run --phase 1 -- true"] {
        let refused = rig.gpuctl(command).run().fails("timeout");
        let told = "model: not ready within 2s: cannot tell whether it sleeps: ";
        refused.stderr_has(told).ignores_stderr();
    }
    assert_eq!((rig.card.used_mb(), rig.processes_of(&model)), (700, process.clone()));

    rig.set("services.model.start_timeout", "2m");
    let start = rig.gpuctl("start model --json").spawn();
    until("it is waited for", || start.stderr().contains("waiting for model"));
    rig.file("home/muted", "");
    assert_eq!(start.wait().succeeds().progress().json()["started"], json!(["model"]));
    assert_eq!((rig.card.used_mb(), rig.processes_of(&model)), (u64::from(HELD), process));
}

#[test]
fn a_sleeper_is_not_woken_where_there_is_no_room_for_it() {
    let (rig, model, big) = assert_unloads("vllm", "--api vllm --unload-residual 700");
    let wake = rig.gpuctl("start model --quiet").run().fails("insufficient_vram");
    wake.stderr_has("in the way: big (priority 100, 20000 MB)");
    assert!(model.is_healthy() && big.is_healthy());
    rig.assert_no_out_of_memory();
}

#[test]
fn a_sleeper_of_higher_priority_makes_room_before_it_wakes() {
    let (rig, model, big) = assert_unloads("vllm", "--api vllm --unload-residual 700");
    rig.set("services.model.priority", 200);
    let wake = rig.gpuctl("start model --json --quiet").run().succeeds().json();
    assert_eq!((&wake["stopped"], &wake["started"]), (&json!(["big"]), &json!(["model"])));
    assert_eq!(rig.card.used_mb(), u64::from(HELD));
    assert!(model.is_healthy());
    rig.assert_no_process_of(&big);
    rig.assert_no_out_of_memory();
}

#[test]
fn a_call_of_its_own_unloads_too() {
    let (rig, model, _) = rig_with("comfyui", "--api comfyui --unload-residual 600");
    let mut call = Table::new();
    call.insert("url".to_owned(), model.url("/free").into());
    call.insert("method".to_owned(), "POST".into());
    call.insert("body".to_owned(), r#"{"free_memory": true}"#.into());
    rig.set("services.model.unload", call);
    let report = start_big(&rig);
    assert_eq!(report["unloaded"], json!(["model"]));
    assert_eq!(rig.card.used_mb(), 20600);
}

#[test]
fn what_is_unloaded_already_is_kept_as_it_is() {
    let (rig, model, _) = assert_unloads("ollama", "--api ollama");
    rig.gpuctl("stop big").run().succeeds().stdout_has("stopped big").progress();
    let report = start_big(&rig);
    assert_eq!((&report["unloaded"], &report["kept"]), (&json!([]), &json!(["model"])));
    assert!(model.is_healthy());
}

#[test]
fn an_unload_that_is_answered_and_not_done_becomes_a_stop() {
    let (rig, model, _) = rig_with("comfyui", "--api comfyui --unload-ignored");
    assert_stopped_instead(&rig, &model, "its memory did not come back within 10s");
}

#[test]
fn an_unload_call_that_fails_becomes_a_stop() {
    let (rig, model, _) = rig_with("sdwebui", "--api none");
    assert_stopped_instead(&rig, &model, "its unload call failed: ");
}

#[test]
fn an_unload_that_gives_back_too_little_for_the_plan_becomes_a_stop() {
    let (rig, model, _) = rig_with("comfyui", "--api comfyui --unload-residual 2900");
    rig.set("services.big.vram_mb", 21000);
    let report = start_big(&rig);
    assert_eq!((&report["unloaded"], &report["stopped"]), (&json!([]), &json!(["model"])));
    rig.assert_no_process_of(&model);
}

#[test]
fn one_that_does_not_answer_is_stopped_rather_than_asked() {
    let server = "--api comfyui --unhealthy-after 3s";
    let (rig, model, _) = rig_with("comfyui", server);
    until("it is unhealthy", || !model.is_healthy());
    let report = start_big(&rig);
    assert_eq!((&report["unloaded"], &report["stopped"]), (&json!([]), &json!(["model"])));
}

#[test]
fn a_stop_stops_also_what_unloads_when_it_is_evicted() {
    let (rig, model, _) = rig_with("comfyui", "--api comfyui");
    rig.gpuctl("release-all").run().succeeds().stdout_has("stopped model").progress();
    rig.assert_no_process_of(&model);
}
