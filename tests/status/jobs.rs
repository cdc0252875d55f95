//! Tests of what `status` shows of a service's jobs: what its own probe answers or, without one,
//! what its kind of server reports.

use rig::{Rig, Service};
use serde_json::{Value, json};

/// Starts a server with these flags, whose jobs are found at `pointer` in the page at `path`.
fn asked_at(rig: &Rig, server: &str, path: &str, pointer: &str) -> Service {
    let service = rig.native("model").server(server).add();
    rig.set("services.model.busy.url", service.url(path));
    rig.set("services.model.busy.json", pointer);
    rig.gpuctl("start model --quiet").run().succeeds();
    service
}

fn jobs(rig: &Rig) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"]["model"]["jobs"].clone()
}

#[test]
fn true_is_a_job_and_false_is_none() {
    let rig = Rig::new();
    let model = asked_at(&rig, "--api vllm", "/is_sleeping", "/is_sleeping");
    assert_eq!(jobs(&rig), 0);
    model.request("/sleep", &json!({})).join().unwrap().unwrap();
    assert_eq!(jobs(&rig), 1);
}

#[test]
fn a_list_has_as_many_jobs_as_entries() {
    let rig = Rig::new();
    let server = "--api ollama --model a --model b";
    let model = asked_at(&rig, server, "/api/ps", "/models");
    assert_eq!(jobs(&rig), 2);
    let refused = rig.gpuctl("stop model --drain 0").run().fails("service_busy");
    refused.stderr_has("model (2 jobs) is still working").ignores_stderr();
    for name in ["a", "b"] {
        let unload = json!({"model": name, "keep_alive": 0});
        model.request("/api/generate", &unload).join().unwrap().unwrap();
    }
    assert_eq!(jobs(&rig), 0);
    rig.gpuctl("stop model --drain 0 --quiet").run().succeeds();
}

#[test]
fn a_text_or_nothing_at_that_place_is_no_answer_and_not_idle() {
    for pointer in ["/object", "/no/such/place"] {
        let rig = Rig::new();
        asked_at(&rig, "--api vllm", "/v1/models", pointer);
        assert_eq!(jobs(&rig), Value::Null, "{pointer}");
        let status = rig.gpuctl("status --json").run().succeeds().json();
        assert_eq!(status["services"]["model"]["idle_s"], Value::Null, "{pointer}");
    }
}

#[test]
fn a_probe_of_its_own_stands_over_what_its_kind_of_server_tells() {
    let rig = Rig::new();
    let model = rig.native("model").server("--api comfyui").set("api", "comfyui");
    let model = model.set("url", "http://127.0.0.1:1").add();
    rig.set("services.model.url", model.url(""));
    rig.gpuctl("start model --quiet").run().succeeds();
    assert_eq!(jobs(&rig), 0);
    rig.set("services.model.busy.command", "echo 7");
    assert_eq!(jobs(&rig), 7);
}

#[test]
fn what_is_cut_off_is_told_to_people_too() {
    let rig = Rig::new();
    let model = rig.native("model").add();
    rig.set("services.model.busy.command", "echo 7");
    for command in ["stop model --no-drain", "stop model --force", "release-all --no-drain"] {
        rig.gpuctl("start model --quiet").run().succeeds();
        let stop = rig.gpuctl(command).run().succeeds().stdout_has("stopped model");
        stop.stderr_has("model: 7 jobs cut off").progress();
        rig.assert_no_process_of(&model);
    }
}
