//! The interfaces of the servers that this one stands in for, as their sources have them: how they
//! are asked for their jobs, given some, and told to unload their models. Requests are only
//! understood and their answers made here; `service` does what they ask for.

use serde_json::{Value, json};

use crate::args::{Api, Unload};
use crate::models::Models;
use crate::work::Work;

/// What a request asks for. A `Value` is what it is answered with.
pub enum Asked {
    /// An answer with this status.
    Tell(u16, Value),
    /// A page that is not JSON.
    Page(String),
    /// A load of these models, which is answered when it is done.
    Load(Vec<String>, Value),
    /// An unload of these models, once the running job is done and before the next. It is answered
    /// at once.
    Unload(Vec<String>, Value),
    /// An unload of these models, once there are no jobs any more. It is answered only then.
    UnloadWhenIdle(Vec<String>, Value),
    /// An unload of these models at once, which makes the running jobs fail.
    UnloadAtOnce(Vec<String>, Value),
    /// A job with these models, which is answered when it is done.
    Job(Vec<String>),
    /// A job with these models, which is answered at once.
    Queued(Vec<String>),
}

/// Returns what a request means to the API in use, or `None` if the API has no such path.
pub fn understand(
    args: &Unload,
    method: &str,
    url: &str,
    body: &Value,
    models: &Models,
    work: &Work,
) -> Option<Asked> {
    let all = || models.all.clone();
    let (path, query) = url.split_once('?').unwrap_or((url, ""));
    let named = |then: fn(Vec<String>, Value) -> Asked, answer: Value| {
        let model = body["model"].as_str().unwrap_or_default().to_owned();
        match models.all.contains(&model) {
            true => then(vec![model], answer),
            false => no_such_model(&model),
        }
    };
    let for_models = || match body["model"].as_str() {
        None => Asked::Job(all()),
        Some(model) if models.all.iter().any(|one| one == model) => {
            Asked::Job(vec![model.to_owned()])
        }
        Some(model) => no_such_model(model),
    };
    let understood = match (args.api, method, path) {
        (Api::Comfyui, "GET", "/system_stats") => {
            Asked::Tell(200, json!({"system": {"comfyui_version": "0.3"}, "devices": []}))
        }
        (Api::Vllm, "GET", "/v1/models") => {
            let models = json!({"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]});
            Asked::Tell(200, models)
        }
        (Api::Ollama, "GET", "/") => Asked::Tell(200, json!("Ollama is running")),
        (Api::Ollama, "GET", "/api/version") => Asked::Tell(200, json!({"version": "0.12.0"})),
        (Api::Ollama, "GET", "/api/ps") => Asked::Tell(200, ollama_models(models)),
        (Api::Ollama, "POST", "/api/generate" | "/api/chat") => {
            let model = &body["model"];
            let reason = |reason| json!({"model": model, "response": "", "done": true, "done_reason": reason});
            match (body["keep_alive"] == 0, body["prompt"].is_string()) {
                // Ollama's scheduler expires the runner once its last request is done.
                (true, _) => named(Asked::Unload, reason("unload")),
                (false, true) => for_models(),
                (false, false) => named(Asked::Load, reason("load")),
            }
        }
        (Api::Comfyui, "GET", "/prompt") => {
            let jobs = work.running() + work.waiting();
            Asked::Tell(200, json!({"exec_info": {"queue_remaining": jobs}}))
        }
        (Api::Comfyui, "POST", "/prompt") => Asked::Queued(all()),
        // These are flags, which the worker of ComfyUI looks at after each prompt, or at once if it
        // has none.
        (Api::Comfyui, "POST", "/free")
            if body["unload_models"] == true || body["free_memory"] == true =>
        {
            Asked::Unload(all(), Value::Null)
        }
        (Api::Comfyui, "POST", "/free") => Asked::Tell(200, Value::Null),
        (Api::Vllm, "GET", "/metrics") => Asked::Page(vllm_metrics(work)),
        (Api::Vllm, "POST", "/v1/chat/completions") => for_models(),
        (Api::Vllm, "POST", "/v1/completions") if !body["ms"].is_null() => for_models(),
        (Api::Vllm, "POST", "/sleep") if query.contains("mode=wait") => {
            Asked::UnloadWhenIdle(all(), Value::Null)
        }
        (Api::Vllm, "POST", "/sleep") => Asked::UnloadAtOnce(all(), Value::Null),
        (Api::Vllm, "POST", "/wake_up") => Asked::Load(all(), Value::Null),
        (Api::Vllm, "GET", "/is_sleeping") => {
            Asked::Tell(200, json!({"is_sleeping": models.asleep}))
        }
        (Api::Llama, "GET", "/props") if args.router => {
            Asked::Tell(200, json!({"role": "router", "model_path": "none"}))
        }
        (Api::Llama, "GET", "/props") => Asked::Tell(200, json!({"is_sleeping": false})),
        (Api::Llama, "GET", "/slots") if args.router && !query.contains("model=") => {
            let message = "model name is missing from the request";
            Asked::Tell(400, json!({"error": {"message": message}}))
        }
        (Api::Llama, "GET", "/slots") => Asked::Tell(200, llama_slots(work, args.slots)),
        (Api::Llama, "GET", "/models" | "/v1/models") => Asked::Tell(200, llama_models(models)),
        (Api::Llama, "POST", "/models/unload") => {
            let model = body["model"].as_str().unwrap_or_default();
            match models.loaded.contains(model) || !models.all.iter().any(|one| one == model) {
                true => named(Asked::UnloadAtOnce, json!({"success": true})),
                false => Asked::Tell(400, json!({"error": {"message": "model is not running"}})),
            }
        }
        (Api::Llama, "POST", "/models/load") => named(Asked::Load, json!({"success": true})),
        (Api::Llama, "POST", "/completion" | "/v1/chat/completions") => for_models(),
        (Api::Sdwebui, "GET", "/sdapi/v1/progress") => {
            let running = work.running();
            let state = json!({"job_count": running, "job_no": 0});
            Asked::Tell(200, json!({"progress": 0.01, "state": state}))
        }
        (Api::Sdwebui, "GET", "/internal/pending-tasks") => {
            Asked::Tell(200, json!({"size": work.waiting(), "tasks": []}))
        }
        // The model is in the memory of the CPU then, and computing with it fails.
        (Api::Sdwebui, "POST", "/sdapi/v1/txt2img") if models.asleep => {
            let error = "Expected all tensors to be on the same device";
            Asked::Tell(500, json!({"error": error}))
        }
        (Api::Sdwebui, "POST", "/sdapi/v1/txt2img") => for_models(),
        (Api::Sdwebui, "POST", "/sdapi/v1/unload-checkpoint") => {
            Asked::UnloadAtOnce(all(), json!({}))
        }
        (Api::Sdwebui, "POST", "/sdapi/v1/reload-checkpoint") => Asked::Load(all(), json!({})),
        _ => return None,
    };
    Some(understood)
}

fn no_such_model(model: &str) -> Asked {
    Asked::Tell(404, json!({"error": format!("model '{model}' not found")}))
}

fn ollama_models(models: &Models) -> Value {
    let bytes = models.share() << 20;
    let entry = |name| json!({"name": name, "model": name, "size": bytes, "size_vram": bytes});
    json!({"models": models.loaded.iter().map(entry).collect::<Vec<_>>()})
}

fn llama_models(models: &Models) -> Value {
    let status = |model| {
        if models.loaded.contains(model) { "loaded" } else { "unloaded" }
    };
    let entry = |model| json!({"id": model, "object": "model", "status": {"value": status(model)}});
    json!({"object": "list", "data": models.all.iter().map(entry).collect::<Vec<_>>()})
}

fn llama_slots(work: &Work, slots: usize) -> Value {
    let running = work.running();
    let slot = |id| json!({"id": id, "n_ctx": 4096, "is_processing": id < running});
    (0..slots).map(slot).collect()
}

fn vllm_metrics(work: &Work) -> String {
    let gauge = |name: &str, jobs: usize| {
        format!(
            "# HELP vllm:{name} Number of requests.\n# TYPE vllm:{name} gauge\n\
             vllm:{name}{{engine=\"0\",model_name=\"m\"}} {jobs}.0\n"
        )
    };
    let running = gauge("num_requests_running", work.running());
    running + &gauge("num_requests_waiting", work.waiting())
}
