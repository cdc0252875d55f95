//! A candidate: the parameters that are to be tried, each within the bounds of the configuration.

use crate::config::Bound;
use crate::error::{Failure, Result};
use crate::exit::Code;
use indexmap::IndexMap;
use serde_json::{Map, Number, Value};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Maximum number of bytes that are read of a candidate, which is a handful of parameters.
const LIMIT: u64 = 1024 * 1024;

/// Parameters by name, all of them within their bounds.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    parameters: BTreeMap<String, Value>,
}

type Bounds = IndexMap<String, Bound>;

/// Returns a candidate's ID: the first 16 hexadecimal digits of the SHA-256 digest of its JSON with
/// sorted keys and no spaces.
pub fn id(document: &Map<String, Value>) -> String {
    let sorted: BTreeMap<_, _> = document.iter().collect();
    let text = serde_json::to_string(&sorted).expect("a document is a document");
    short_digest(text.as_bytes())
}

/// Returns the parameters as people read them: "max_model_len=8192, vllm_memory_util=0.75".
pub fn told(document: &Map<String, Value>) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let all: Vec<String> =
        document.iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
    all.join(", ")
}

/// Returns the first 16 hexadecimal digits of the SHA-256 digest of these bytes.
pub fn short_digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the parameters from a JSON file, or from stdin if the path is "-".
pub fn read(path: &Path) -> Result<Map<String, Value>> {
    let shown = path.display();
    let mut text = String::new();
    let read = match path.as_os_str() == "-" {
        true => std::io::stdin().take(LIMIT).read_to_string(&mut text),
        false => File::open(path).and_then(|file| file.take(LIMIT).read_to_string(&mut text)),
    };
    read.map_err(|e| Failure::new(Code::Io, format!("the candidate {shown} cannot be read: {e}")))?;
    serde_json::from_str(&text).map_err(|e| {
        Failure::new(Code::Usage, format!("the candidate {shown} is not a JSON object: {e}"))
            .hint("{\"vllm_memory_util\": 0.75}")
    })
}

/// Parses the assignments KEY=VALUE that `--set` takes.
pub fn assigned(assignments: &[String], bounds: &Bounds) -> Result<Map<String, Value>> {
    let mut document = Map::new();
    for assignment in assignments {
        set(&mut document, assignment, bounds)
            .map_err(|e| Failure::new(Code::Usage, format!("--set: {e}")))?;
    }
    Ok(document)
}

/// Adds an assignment KEY=VALUE from the command line to a candidate. VALUE becomes a number if it
/// reads as one and the bounds of KEY are a range, otherwise text. Fails if there is no `=`.
pub fn set(
    document: &mut Map<String, Value>,
    assignment: &str,
    bounds: &Bounds,
) -> std::result::Result<(), String> {
    let (name, text) = assignment
        .split_once('=')
        .ok_or_else(|| format!("\"{assignment}\" is not of the form KEY=VALUE"))?;
    let value = match bounds.get(name) {
        Some(Bound::Range { .. }) => text
            .parse::<i64>()
            .map(Number::from)
            .ok()
            .or_else(|| Number::from_f64(text.parse().ok()?))
            .map(Value::Number),
        _ => None,
    };
    // Text in place of a number is refused, and reported, with the check of the bounds.
    document.insert(name.to_owned(), value.unwrap_or_else(|| Value::from(text)));
    Ok(())
}

impl Candidate {
    /// Checks parameters against their bounds. The error is a sentence that names the parameter and
    /// its bounds.
    pub fn new(
        document: &Map<String, Value>,
        bounds: &Bounds,
    ) -> std::result::Result<Candidate, String> {
        if document.is_empty() {
            return Err("the candidate sets nothing".to_owned());
        }
        for (name, value) in document {
            let Some(bound) = bounds.get(name) else {
                let known: Vec<&str> = bounds.keys().map(String::as_str).collect();
                return Err(format!(
                    "unknown parameter {name}; known parameters: {}",
                    known.join(", ")
                ));
            };
            let is_within = match bound {
                Bound::Range { min, max } => {
                    value.as_f64().is_some_and(|number| (*min..=*max).contains(&number))
                }
                Bound::OneOf { one_of } => {
                    value.as_str().is_some_and(|text| one_of.iter().any(|choice| choice == text))
                }
            };
            if !is_within {
                let bound = match bound {
                    Bound::Range { min, max } => format!("{min} to {max}"),
                    Bound::OneOf { one_of } => format!("one of {}", one_of.join(", ")),
                };
                return Err(format!("{name} = {value} is out of bounds: {bound}"));
            }
        }
        let parameters = document.iter().map(|(name, value)| (name.clone(), value.clone()));
        Ok(Candidate { parameters: parameters.collect() })
    }

    pub fn number(&self, name: &str) -> Option<f64> {
        self.parameters.get(name)?.as_f64()
    }

    /// Returns a parameter as it is written on a command line, or `None` if it is not set.
    pub fn text(&self, name: &str) -> Option<String> {
        Some(match self.parameters.get(name)? {
            Value::String(text) => text.clone(),
            value => value.to_string(),
        })
    }

    /// Fills the port, the model and the parameters into a start command, in place of `{port}`,
    /// `{model}` and `{parameter}`; `${…}` is left to the shell. The error names a parameter that
    /// the candidate does not set.
    pub fn command(
        &self,
        template: &str,
        port: u16,
        model: &str,
    ) -> std::result::Result<String, String> {
        let mut command = String::new();
        let mut rest = template;
        while let Some(begin) = rest.find('{') {
            let end = rest[begin..].find('}').map(|end| begin + end);
            let name = end.map(|end| &rest[begin + 1..end]).filter(|name| is_name(name));
            let is_shells = rest[..begin].ends_with('$');
            let (Some(name), Some(end), false) = (name, end, is_shells) else {
                command.push_str(&rest[..=begin]);
                rest = &rest[begin + 1..];
                continue;
            };
            command.push_str(&rest[..begin]);
            command.push_str(&match name {
                "port" => port.to_string(),
                "model" => model.to_owned(),
                name => self.text(name).ok_or_else(|| {
                    format!(
                        "the canary's start command needs {name}, which the candidate does not set"
                    )
                })?,
            });
            rest = &rest[end + 1..];
        }
        command.push_str(rest);
        Ok(command)
    }

    pub fn id(&self) -> String {
        id(&self.parameters.clone().into_iter().collect())
    }

    pub fn told(&self) -> String {
        told(&self.parameters.clone().into_iter().collect())
    }

    pub fn document(&self) -> Value {
        self.parameters.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
