//! Soft eviction: asking a server over HTTP to give its memory back while it keeps running. The
//! answer only means "requested"; NVML shows whether it happened.

use super::health::client;
use crate::model::{Preset, Unload};
use crate::redact::mask;
use serde_json::{Value, json};
use std::time::Duration;

const CALL_LIMIT: Duration = Duration::from_secs(10);

type Answered<T> = std::result::Result<T, String>;

/// Requests the unloading of everything that the server has loaded.
pub fn request(unload: &Unload) -> Answered<()> {
    match unload {
        Unload::Call { url, method, body } => {
            let mut request = ureq::http::Request::builder().method(method.as_str()).uri(url);
            if body.is_some() {
                request = request.header("content-type", "application/json");
            }
            let request = request
                .body(body.clone().unwrap_or_default())
                .map_err(|e| format!("{}: {e}", mask(url)))?;
            answer(url, client(CALL_LIMIT).run(request)).map(drop)
        }
        Unload::Preset { preset, url } => match preset {
            Preset::Comfyui => {
                post(url, "/free", &json!({"unload_models": true, "free_memory": true}))
            }
            Preset::Vllm => post(url, "/sleep?level=1", &Value::Null),
            Preset::Sdwebui => post(url, "/sdapi/v1/unload-checkpoint", &json!({})),
            Preset::Ollama => {
                let loaded = get(url, "/api/ps")?;
                names(&loaded["models"], "model").try_for_each(|model| {
                    post(url, "/api/generate", &json!({"model": model, "keep_alive": 0}))
                })
            }
            Preset::LlamaServer => {
                let models = get(url, "/models")?;
                let loaded = models["data"].as_array().into_iter().flatten();
                loaded
                    .filter(|model| model["status"]["value"] != "unloaded")
                    .filter_map(|model| model["id"].as_str())
                    .try_for_each(|model| post(url, "/models/unload", &json!({"model": model})))
            }
        },
    }
}

/// Whether a server was put to sleep by [`request`]. Only vLLM sleeps: the others load again when
/// they are asked for something.
pub fn is_asleep(unload: &Unload) -> Answered<bool> {
    let Unload::Preset { preset: Preset::Vllm, url } = unload else {
        return Ok(false);
    };
    // A server that does not know the question cannot have been put to sleep.
    match client(CALL_LIMIT).get(format!("{url}/is_sleeping")).call() {
        Ok(mut response) if response.status().is_success() => {
            let answer = response.body_mut().read_json::<Value>();
            Ok(answer.is_ok_and(|answer| answer["is_sleeping"] == true))
        }
        Ok(_) => Ok(false),
        Err(error) => Err(format!("{}: {error}", mask(url))),
    }
}

/// Wakes a server that is asleep.
pub fn wake(unload: &Unload) -> Answered<()> {
    match unload {
        Unload::Preset { preset: Preset::Vllm, url } => post(url, "/wake_up", &Value::Null),
        Unload::Preset { .. } | Unload::Call { .. } => Ok(()),
    }
}

fn names<'a>(list: &'a Value, key: &'static str) -> impl Iterator<Item = &'a str> {
    list.as_array().into_iter().flatten().filter_map(move |entry| entry[key].as_str())
}

fn get(base: &str, path: &str) -> Answered<Value> {
    let url = format!("{base}{path}");
    let mut response = answer(&url, client(CALL_LIMIT).get(&url).call())?;
    response.body_mut().read_json().map_err(|e| format!("{}: {e}", mask(&url)))
}

fn post(base: &str, path: &str, body: &Value) -> Answered<()> {
    let url = format!("{base}{path}");
    let request = client(CALL_LIMIT).post(&url);
    let result = if body.is_null() { request.send_empty() } else { request.send_json(body) };
    answer(&url, result).map(drop)
}

type Response = ureq::http::Response<ureq::Body>;

fn answer(url: &str, result: std::result::Result<Response, ureq::Error>) -> Answered<Response> {
    match result {
        Ok(response) if response.status().is_success() => Ok(response),
        Ok(response) => Err(format!("{} answers {}", mask(url), response.status())),
        Err(error) => Err(format!("{}: {error}", mask(url))),
    }
}
