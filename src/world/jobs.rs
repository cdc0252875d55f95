//! How many jobs a service has, running or waiting: asked of the server itself, in the way of its
//! kind or as its owner configured. If that cannot be found out, the result is an error and never
//! 0.

use super::command::run_shell;
use super::http::{Fetcher, NoAnswer};
use super::wait::Stop;
use crate::model::{Api, ApiServer, Headers, JobProbe};
use crate::redact::mask;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Number of jobs, or the reason why it cannot be found out.
pub type Count = Result<u64, NoAnswer>;

/// Asks how many jobs a service has, running or waiting. A busy command may take `limit`.
pub fn count(
    probe: &JobProbe,
    headers: &Headers,
    fetcher: &Fetcher,
    limit: Duration,
    stop: &Stop,
) -> Count {
    match probe {
        JobProbe::Server(server) => of_server(server, headers, fetcher),
        JobProbe::Json { url, pointer } => at(&fetcher.get(url, headers).json()?, pointer)
            .map_err(|why| NoAnswer::other(format!("{}: {why}", mask(url)))),
        JobProbe::Metric { url, name } => {
            let page = fetcher.get(url, headers).success()?;
            metric(&String::from_utf8_lossy(&page), name)
                .map_err(|why| NoAnswer::other(format!("{}: {why}", mask(url))))
        }
        JobProbe::Command { text, env, cwd } => {
            let begun = Instant::now();
            let output = run_shell(text, env, cwd.as_deref(), limit, stop).map_err(|failure| {
                NoAnswer { why: failure.message, is_silence: begun.elapsed() >= limit }
            })?;
            match output.status.success() {
                true => printed(&String::from_utf8_lossy(&output.stdout)).map_err(NoAnswer::other),
                false => {
                    Err(NoAnswer::other(format!("its busy command failed: {}", output.reason())))
                }
            }
        }
    }
}

fn of_server(server: &ApiServer, headers: &Headers, fetcher: &Fetcher) -> Count {
    let get = |path: &str| fetcher.get(&server.at(path), headers);
    let told = |path: &str, found: Result<u64, String>| {
        found.map_err(|why| NoAnswer::other(format!("{}: {why}", mask(&server.at(path)))))
    };
    match server.api {
        Api::Comfyui => told("/prompt", at(&get("/prompt").json()?, "/exec_info/queue_remaining")),
        Api::Vllm => {
            let page = get("/metrics").success()?;
            let page = String::from_utf8_lossy(&page);
            let sum = || {
                Ok(metric(&page, "vllm:num_requests_running")?
                    + metric(&page, "vllm:num_requests_waiting")?)
            };
            told("/metrics", sum())
        }
        Api::LlamaServer => of_llama_server(server, headers, fetcher),
        Api::Sdwebui => {
            let path = "/sdapi/v1/progress?skip_current_image=true";
            let progress = get(path).json()?;
            // The count is -1 while a job begins; waiting jobs are reported only where the web
            // pages are served.
            let runs = progress["state"]["job_count"].as_i64().map(|count| u64::from(count != 0));
            let waiting = match get("/internal/pending-tasks").json() {
                Err(failed) if failed.is_silence => return Err(failed),
                waiting => waiting.ok().and_then(|tasks| tasks["size"].as_u64()).unwrap_or(0),
            };
            told(path, runs.map(|runs| runs + waiting).ok_or("tells of no jobs".to_owned()))
        }
        Api::Ollama => Err(NoAnswer::other("Ollama tells nobody of its jobs")),
    }
}

/// Counts the jobs of a llama-server, or of one that has a child for each of its models, in which
/// case it asks about each model. A server or model that sleeps is not asked, because that would
/// wake it.
fn of_llama_server(server: &ApiServer, headers: &Headers, fetcher: &Fetcher) -> Count {
    let get = |path: &str| fetcher.get(&server.at(path), headers);
    let slots = |path: &str| -> Count {
        let slots = get(path).json()?;
        let slots = slots
            .as_array()
            .ok_or_else(|| NoAnswer::other(format!("{} lists no slots", mask(&server.at(path)))))?;
        Ok(slots.iter().filter(|slot| slot["is_processing"] == true).count() as u64)
    };
    let props = get("/props").json().unwrap_or_default();
    if props["is_sleeping"] == true {
        return Ok(0);
    }
    if props["role"] != "router" {
        return slots("/slots");
    }
    let models = get("/models").json()?;
    let awake = |model: &&Value| model["status"]["value"] == "loaded";
    let names = |model: &Value| model["id"].as_str().map(encoded);
    let loaded = models["data"].as_array().into_iter().flatten().filter(awake).filter_map(names);
    loaded.map(|name| slots(&format!("/slots?model={name}&autoload=false"))).sum()
}

/// Encodes a text as part of a URL's query.
fn encoded(text: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let part = |byte: u8| match plain(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(part).collect()
}

/// Returns the number of jobs at a JSON pointer in a document: a number, `true` for one job, or a
/// list of jobs. `false` and null count as 0.
pub fn at(document: &Value, pointer: &str) -> Result<u64, String> {
    match document.pointer(pointer) {
        Some(Value::Number(number)) => whole(number.as_f64().unwrap_or(f64::NAN)),
        Some(Value::Bool(busy)) => Ok(u64::from(*busy)),
        Some(Value::Array(jobs)) => Ok(jobs.len() as u64),
        Some(Value::Null) => Ok(0),
        Some(_) => Err(format!("what stands at \"{pointer}\" is no number of jobs")),
        None => Err(format!("there is nothing at \"{pointer}\"")),
    }
}

/// Returns the sum of a metric's samples on a Prometheus page; fails if there are none.
pub fn metric(page: &str, name: &str) -> Result<u64, String> {
    let samples: Vec<f64> = page
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix(name))
        .filter_map(|rest| match rest.strip_prefix('{') {
            // A label's value may hold a brace, but no sample does.
            Some(labels) => labels.rsplit_once('}').map(|(_, rest)| rest),
            None => rest.starts_with([' ', '\t']).then_some(rest),
        })
        .map(|rest| rest.split_whitespace().next().unwrap_or_default().parse().unwrap_or(f64::NAN))
        .collect();
    match samples.is_empty() {
        true => Err(format!("there is no metric {name}")),
        false => whole(samples.iter().sum()),
    }
}

/// Parses the number that a busy command has printed.
pub fn printed(text: &str) -> Result<u64, String> {
    text.trim()
        .parse()
        .ok()
        .and_then(|number| whole(number).ok())
        .ok_or_else(|| "its busy command did not print a number".to_owned())
}

/// Rounds a number of jobs up, since a part of a job counts as one; a negative number becomes 0.
fn whole(number: f64) -> Result<u64, String> {
    match number.is_finite() {
        true => Ok(number.max(0.0).ceil() as u64),
        false => Err("that is no number of jobs".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn jobs_are_a_number_true_or_a_list_and_nothing_else_is_idle() {
        let document = json!({
            "three": 3, "half": 0.5, "none": 0, "less": -1, "yes": true, "no": false, "list": [1, 2],
            "empty": [], "null": null, "text": "busy", "table": {"a": 1},
        });
        let found = |name: &str| at(&document, &format!("/{name}")).ok();
        for (name, jobs) in [("three", 3), ("half", 1), ("yes", 1), ("list", 2)] {
            assert_eq!(found(name), Some(jobs), "{name}");
        }
        for name in ["none", "less", "no", "empty", "null"] {
            assert_eq!(found(name), Some(0), "{name}");
        }
        for name in ["text", "table", "missing"] {
            assert_eq!(found(name), None, "{name}");
        }
        assert_eq!(at(&json!([{}, {}]), ""), Ok(2));
    }

    #[test]
    fn a_metric_is_the_sum_of_its_samples() {
        let page = "# HELP vllm:running Jobs.\n# TYPE vllm:running gauge\n\
                    vllm:running{engine=\"0\",model=\"a}b\"} 2.0\nvllm:running{engine=\"1\"} 1 1700000000\n\
                    vllm:running_total 9\nplain 4\nbad NaN\n";
        assert_eq!(metric(page, "vllm:running"), Ok(3));
        assert_eq!(metric(page, "plain"), Ok(4));
        assert!(metric(page, "vllm:runn").is_err() && metric(page, "bad").is_err());
    }

    #[test]
    fn a_command_prints_one_number() {
        assert_eq!(printed(" 2\n"), Ok(2));
        assert_eq!(printed("0"), Ok(0));
        assert!(printed("").is_err() && printed("two").is_err() && printed("1 2").is_err());
    }
}
