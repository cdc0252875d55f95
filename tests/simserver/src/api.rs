//! How the servers that this one stands in for are told to unload their models, as their documentation gives it.
//! Only what is asked and what is answered; the doing is in `service`.

use serde_json::{Value, json};

use crate::args::Api;
use crate::models::Models;

pub enum Asked {
    Tell(Value),
    Load(Vec<String>, Value),
    Unload(Vec<String>, Value),
    NoSuchModel(String),
}

/// What a request means to `api`; none if it has no such path.
pub fn understand(
    api: Api,
    method: &str,
    path: &str,
    body: &Value,
    models: &Models,
) -> Option<Asked> {
    let all = || models.all.clone();
    let named = |then: fn(Vec<String>, Value) -> Asked, answer: Value| {
        let model = body["model"].as_str().unwrap_or_default().to_owned();
        if models.all.contains(&model) {
            then(vec![model], answer)
        } else {
            Asked::NoSuchModel(model)
        }
    };
    let understood = match (api, method, path) {
        (Api::Comfyui, "GET", "/system_stats") => {
            Asked::Tell(json!({"system": {"comfyui_version": "0.3"}, "devices": []}))
        }
        (Api::Vllm, "GET", "/v1/models") => {
            Asked::Tell(json!({"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]}))
        }
        (Api::Ollama, "GET", "/") => Asked::Tell(json!("Ollama is running")),
        (Api::Ollama, "GET", "/api/ps") => Asked::Tell(ollama_models(models)),
        (Api::Ollama, "POST", "/api/generate" | "/api/chat") => {
            let model = &body["model"];
            let reason = |reason| json!({"model": model, "response": "", "done": true, "done_reason": reason});
            match body["keep_alive"] == 0 {
                true => named(Asked::Unload, reason("unload")),
                false => named(
                    Asked::Load,
                    reason(if body["prompt"].is_string() { "stop" } else { "load" }),
                ),
            }
        }
        (Api::Comfyui, "POST", "/free")
            if body["unload_models"] == true || body["free_memory"] == true =>
        {
            Asked::Unload(all(), Value::Null)
        }
        (Api::Comfyui, "POST", "/free") => Asked::Tell(Value::Null),
        (Api::Vllm, "POST", "/sleep") => Asked::Unload(all(), Value::Null),
        (Api::Vllm, "POST", "/wake_up") => Asked::Load(all(), Value::Null),
        (Api::Vllm, "GET", "/is_sleeping") => Asked::Tell(json!({"is_sleeping": models.asleep})),
        (Api::Llama, "GET", "/models" | "/v1/models") => Asked::Tell(llama_models(models)),
        (Api::Llama, "POST", "/models/unload") => named(Asked::Unload, json!({"success": true})),
        (Api::Llama, "POST", "/models/load") => named(Asked::Load, json!({"success": true})),
        (Api::Sdwebui, "POST", "/sdapi/v1/unload-checkpoint") => Asked::Unload(all(), json!({})),
        (Api::Sdwebui, "POST", "/sdapi/v1/reload-checkpoint") => Asked::Load(all(), json!({})),
        _ => return None,
    };
    Some(understood)
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
