//! How gpuctl speaks to a service over HTTP: what kind of server the service is, what is asked of
//! it, and what is sent along.

use crate::redact::MASK;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

/// A kind of model server whose interface gpuctl knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Api {
    Comfyui,
    Ollama,
    Vllm,
    LlamaServer,
    Sdwebui,
}

impl Api {
    /// Returns the kind of server that an image, a unit or a program is, judged by its name alone.
    /// Returns `None` if the name is not known.
    pub fn of_name(name: &str) -> Option<Api> {
        let name = name.to_ascii_lowercase();
        let begins = |with: &[&str]| {
            let rest = with.iter().find_map(|with| name.strip_prefix(with));
            rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_alphanumeric()))
        };
        // Other programs are often named after Ollama: ollama-webui, ollama-exporter.
        if name == "ollama" {
            Some(Api::Ollama)
        } else if begins(&["comfyui"]) {
            Some(Api::Comfyui)
        } else if begins(&["vllm"]) {
            Some(Api::Vllm)
        } else if begins(&["llama-server", "llama.cpp", "llama-cpp"]) {
            Some(Api::LlamaServer)
        } else if begins(&["stable-diffusion-webui", "sdwebui", "sd-webui"]) {
            Some(Api::Sdwebui)
        } else {
            None
        }
    }

    /// Returns the port that such a server listens on unless it is told otherwise.
    pub fn usual_port(self) -> u16 {
        match self {
            Api::Comfyui => 8188,
            Api::Ollama => 11434,
            Api::Vllm => 8000,
            Api::LlamaServer => 8080,
            Api::Sdwebui => 7860,
        }
    }
}

/// A server whose interface gpuctl knows, and its address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ApiServer {
    pub api: Api,
    /// Base URL of the server, without a slash at the end.
    pub url: String,
}

impl ApiServer {
    /// Reports whether the server sleeps after an unload and has to be woken. The other kinds load
    /// their models again when they are asked for something.
    pub fn can_sleep(&self) -> bool {
        self.api == Api::Vllm
    }

    /// Reports whether an unload only moves the server's model off the card, until the server is
    /// asked to take it back.
    pub fn puts_aside(&self) -> bool {
        self.api == Api::Sdwebui
    }

    /// Returns the URL of a path on the server.
    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Returns the URL at which the server shows that it is ready.
    pub fn health_url(&self) -> String {
        self.at(match self.api {
            Api::Comfyui => "/system_stats",
            Api::Ollama => "/api/version",
            Api::Vllm | Api::LlamaServer => "/health",
            // This path exists only if the interface was switched on (--api).
            Api::Sdwebui => "/sdapi/v1/progress?skip_current_image=true",
        })
    }
}

/// HTTP headers that are sent with every call to a service. Their values may be secrets.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Headers(pub BTreeMap<String, String>);

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.keys().map(|name| (name, MASK))).finish()
    }
}

/// An HTTP call that makes a service do something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCall {
    pub url: String,
    pub method: String,
    /// Body of the call, sent as JSON.
    pub body: Option<String>,
}

/// The way to make a service give its memory back while it keeps running.
#[derive(Clone, Debug)]
pub enum Unload {
    Server(ApiServer),
    Call(HttpCall),
}

/// The way to ask a service how many jobs it has, running or waiting.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum JobProbe {
    Server(ApiServer),
    /// The answer is JSON, in which the pointer leads to a number, true or false, or a list.
    Json {
        url: String,
        pointer: String,
    },
    /// The answer is a Prometheus page; the samples of the metric are added up.
    Metric {
        url: String,
        name: String,
    },
    /// A shell command that prints the number.
    Command {
        text: String,
        env: BTreeMap<String, String>,
        cwd: Option<PathBuf>,
    },
}
