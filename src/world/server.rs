//! The model servers whose interface gpuctl knows: how each is told to unload its models, whether it
//! sleeps then, and how it is woken. The answer to an unload only means "requested"; NVML shows
//! whether it happened.

use super::http::{self, Fetcher, NoAnswer, ServiceReply};
use crate::model::{Api, ApiServer, Headers, HttpCall, Unload};
use serde_json::{Value, json};
use std::time::Duration;

/// What a call has brought, or why it has brought nothing.
pub type Called<T> = Result<T, NoAnswer>;

/// Requests the unloading of everything that the server has loaded; each call may take so long.
pub fn unload(unload: &Unload, headers: &Headers, limit: Duration) -> Called<()> {
    let agent = http::client(limit);
    let server = match unload {
        Unload::Call(own) => return call(own, headers, limit),
        Unload::Server(server) => server,
    };
    let get = |path: &str| http::call(&agent, "GET", &server.at(path), headers, None).json();
    let post = |path: &str, body: Value| post(&agent, server, path, headers, body);
    match server.api {
        Api::Comfyui => post("/free", json!({"unload_models": true, "free_memory": true})),
        // What has begun since it was last asked for its jobs is waited for, and not cut off.
        Api::Vllm => post("/sleep?level=1&mode=wait", Value::Null),
        Api::Sdwebui => post("/sdapi/v1/unload-checkpoint", json!({})),
        Api::Ollama => {
            let running = get("/api/ps")?;
            let models = running["models"].as_array().into_iter().flatten();
            models
                .filter_map(|model| model["model"].as_str().or(model["name"].as_str()))
                .try_for_each(|model| {
                    post("/api/generate", json!({"model": model, "keep_alive": 0}))
                })
        }
        Api::LlamaServer => {
            let models = get("/models")?;
            let models = models["data"].as_array().into_iter().flatten();
            // It refuses for a model that does not run.
            let runs = |model: &&Value| {
                ["loading", "loaded", "sleeping"].iter().any(|it| model["status"]["value"] == *it)
            };
            models
                .filter(runs)
                .filter_map(|model| model["id"].as_str())
                .try_for_each(|model| post("/models/unload", json!({"model": model})))
        }
    }
}

/// Makes a call of the configuration.
pub fn call(call: &HttpCall, headers: &Headers, limit: Duration) -> Called<()> {
    let HttpCall { url, method, body } = call;
    http::call(&http::client(limit), method, url, headers, body.as_deref()).success().map(drop)
}

/// Whether a server was put to sleep. Only vLLM tells; the others load again when they are asked
/// for something, or stay as they are. That it does not tell is no sign that it is awake.
pub fn is_asleep(server: &ApiServer, headers: &Headers, fetcher: &Fetcher) -> Called<bool> {
    if !server.can_sleep() {
        return Ok(false);
    }
    match fetcher.get(&server.at("/is_sleeping"), headers) {
        // One that does not know the question cannot have been put to sleep.
        reply @ ServiceReply::Answer { .. } => {
            Ok(reply.json().is_ok_and(|answer| answer["is_sleeping"] == true))
        }
        reply => reply.success().map(|_| false),
    }
}

/// Wakes a server that sleeps, or brings back what it has unloaded; it has done so when it answers.
pub fn wake(server: &ApiServer, headers: &Headers, limit: Duration) -> Called<()> {
    let agent = http::client(limit);
    match server.api {
        Api::Vllm => post(&agent, server, "/wake_up", headers, Value::Null),
        Api::Sdwebui => post(&agent, server, "/sdapi/v1/reload-checkpoint", headers, json!({})),
        Api::Comfyui | Api::Ollama | Api::LlamaServer => Ok(()),
    }
}

fn post(
    agent: &ureq::Agent,
    server: &ApiServer,
    path: &str,
    headers: &Headers,
    body: Value,
) -> Called<()> {
    let body = (!body.is_null()).then(|| body.to_string());
    http::call(agent, "POST", &server.at(path), headers, body.as_deref()).success().map(drop)
}
