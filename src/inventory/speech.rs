//! Asks a port what kind of server it is. Each kind is recognised by an answer that no other gives.

use super::Speech;
use crate::model::{Api, Headers};
use crate::world::http::{Fetcher, ServiceReply};
use serde_json::Value;
use std::time::Duration;

/// Time that an answer may take. A server that takes longer is not recognised.
const LIMIT: Duration = Duration::from_millis(300);

/// Paths at which servers of no known kind may report that they are healthy.
const HEALTH_PATHS: [&str; 5] = ["/health", "/healthz", "/v1/models", "/docs", "/"];

/// Asks a port of this machine what kind of server it is.
pub fn ask(port: u16) -> Speech {
    let fetcher = Fetcher::new(LIMIT);
    let get =
        |path: &str| fetcher.get(&format!("http://localhost:{port}{path}"), &Headers::default());
    let ServiceReply::Answer { body, .. } = get("/") else { return Speech::Other };
    let json = |path: &str| get(path).json().unwrap_or_default();
    if String::from_utf8_lossy(&body).contains("Ollama is running") {
        return Speech::Known(Api::Ollama);
    }
    if json("/system_stats")["system"].is_object() {
        return Speech::Known(Api::Comfyui);
    }
    match models_of(&json("/v1/models")) {
        Some("vllm") => return Speech::Known(Api::Vllm),
        Some("llamacpp") => return Speech::Known(Api::LlamaServer),
        _ => {}
    }
    if json("/sdapi/v1/progress")["progress"].is_number() {
        return Speech::Known(Api::Sdwebui);
    }
    let is_well = |path: &&&'static str| get(path).success().is_ok();
    Speech::Http(HEALTH_PATHS.iter().find(is_well).copied())
}

/// Returns the owner of the first model that an OpenAI-like server lists, which tells its kind.
fn models_of(answer: &Value) -> Option<&str> {
    answer["data"][0]["owned_by"].as_str()
}
