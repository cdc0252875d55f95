//! Tests of the ways to make the server unload its models.

use serde_json::{Value, json};

use crate::bench::{Bench, until};

#[test]
fn ollama_unloads_the_model_that_is_named() {
    let bench = Bench::new();
    let server = bench.start_warm("--vram 3000 --api ollama --model a --model b --model c");
    let listed = || {
        let models = server.get("/api/ps").1["models"].clone();
        let field = |model: &Value| model["name"].as_str().unwrap().to_owned();
        models.as_array().unwrap().iter().map(field).collect::<Vec<_>>()
    };
    assert_eq!(listed(), ["a", "b", "c"]);
    assert_eq!(server.get("/api/ps").1["models"][0]["size_vram"], 1000 << 20);

    let (status, answer) = server.post("/api/generate", json!({"model": "b", "keep_alive": 0}));
    assert_eq!((status, &answer["done_reason"]), (200, &json!("unload")));
    until("b is unloaded", || bench.claimed() == 2000);
    assert_eq!(listed(), ["a", "c"]);

    assert_eq!(server.post("/api/generate", json!({"model": "b", "prompt": "hello"})).0, 200);
    assert_eq!(bench.claimed(), 3000);
    assert_eq!(server.post("/api/generate", json!({"model": "d", "keep_alive": 0})).0, 404);
}

#[test]
fn comfyui_frees_all_but_its_context() {
    let bench = Bench::new();
    let server = bench.start_warm("--vram 20000 --idle-vram 600 --api comfyui");
    server.post("/work", json!({}));
    assert_eq!(server.post("/free", json!({"unload_models": true, "free_memory": true})).0, 200);
    until("the models are unloaded", || bench.claimed() == 600);
    assert_eq!(server.get("/system_stats").0, 200);
}

#[test]
fn vllm_sleeps_healthily_and_wakes_up() {
    let bench = Bench::new();
    let server = bench.start_warm("--vram 8000 --unload-residual 1200 --api vllm");
    assert_eq!(server.get("/is_sleeping").1["is_sleeping"], false);
    assert_eq!(server.post("/sleep?level=1", json!({})).0, 200);
    until("it has let go", || bench.claimed() == 1200);
    assert_eq!(server.get("/is_sleeping").1["is_sleeping"], true);
    assert_eq!(server.get("/health").0, 200);

    assert_eq!(server.post("/wake_up", json!({})).0, 200);
    assert_eq!(server.get("/is_sleeping").1["is_sleeping"], false);
    assert_eq!(bench.claimed(), 8000);
}

#[test]
fn llama_server_unloads_the_model_that_is_named() {
    let bench = Bench::new();
    let server = bench.start_warm("--vram 2000 --api llama --model a --model b");
    assert_eq!(server.post("/models/unload", json!({"model": "a"})).0, 200);
    until("a is unloaded", || bench.claimed() == 1000);
    let models = server.get("/models").1;
    assert_eq!(models["data"][0]["id"], "a");
    assert_eq!(models["data"][0]["status"]["value"], "unloaded");
    assert_eq!(models["data"][1]["status"]["value"], "loaded");
}

#[test]
fn stable_diffusion_unloads_its_checkpoint() {
    let bench = Bench::new();
    let server = bench.start_warm("--vram 6000 --api sdwebui");
    assert_eq!(server.post("/sdapi/v1/unload-checkpoint", json!({})).0, 200);
    until("the checkpoint is unloaded", || bench.claimed() == 0);
}

#[test]
fn the_answer_comes_before_the_memory_is_free() {
    let bench = Bench::new();
    let server = bench.start_warm("--vram 6000 --api comfyui --unload-delay 2s");
    assert_eq!(server.post("/free", json!({"unload_models": true})).0, 200);
    assert_eq!(bench.claimed(), 6000);
    until("the delay is over", || bench.claimed() == 0);
}

#[test]
fn it_can_say_that_it_did_and_not_do_it() {
    let bench = Bench::new();
    let server = bench.start_warm("--vram 6000 --api vllm --unload-ignored");
    assert_eq!(server.post("/sleep", json!({})).0, 200);
    assert_eq!(server.get("/is_sleeping").1["is_sleeping"], true);
    assert_eq!(bench.claimed(), 6000);
}
