//! Calls to the model servers whose interfaces gpuctl knows: how each is asked to unload its
//! models, whether it sleeps then, and how it is woken. The answer to an unload only means
//! "requested"; NVML shows whether it happened.

use super::http::{self, Fetcher, NoAnswer, ServiceReply};
use crate::model::{Api, ApiServer, Headers, HttpCall, Unload};
use serde_json::{Value, json};
use std::time::Duration;

/// Result of a call to a server, or the reason why there is none.
pub type Called<T> = Result<T, NoAnswer>;

/// Asks a server to unload everything that it has loaded. Each call that this takes may last for
/// `limit`.
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
        // The server finishes jobs that have begun since it was last asked for its jobs, and does
        // not cut them off.
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
            // The server refuses to unload a model that does not run.
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

/// Makes an HTTP call that the configuration describes. Any success status is a success.
pub fn call(call: &HttpCall, headers: &Headers, limit: Duration) -> Called<()> {
    let HttpCall { url, method, body } = call;
    http::call(&http::client(limit), method, url, headers, body.as_deref()).success().map(drop)
}

/// Reports whether a server was put to sleep. Only vLLM can say so; the others load again when they
/// are asked for something, or stay as they are. A server that gives no answer is not known to be
/// awake.
pub fn is_asleep(server: &ApiServer, headers: &Headers, fetcher: &Fetcher) -> Called<bool> {
    if !server.can_sleep() {
        return Ok(false);
    }
    match fetcher.get(&server.at("/is_sleeping"), headers) {
        // A server that does not know the question cannot have been put to sleep.
        reply @ ServiceReply::Answer { .. } => {
            Ok(reply.json().is_ok_and(|answer| answer["is_sleeping"] == true))
        }
        reply => reply.success().map(|_| false),
    }
}

/// Wakes a server that sleeps, or makes it load what it has unloaded. The server has done so when
/// it answers. Servers that load again by themselves are not called.
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
