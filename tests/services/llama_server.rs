//! Tests with a real llama-server, which has one model or is a router of several; what the models
//! say means nothing. A library that is loaded into the server reports to the simulated card what
//! the server holds.

use super::gguf;
use rig::{Rig, Service, skip_or_fail, until, works};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

/// Memory that each process of the server holds, in MB.
const HELD: u64 = 1200;

/// Returns the program that `$GPUCTL_TEST_LLAMA_SERVER` names, or `llama-server`; `None`, after
/// reporting the skip, if it does not run.
fn program() -> Option<String> {
    let named = std::env::var("GPUCTL_TEST_LLAMA_SERVER").unwrap_or_default();
    let program = if named.is_empty() { "llama-server".to_owned() } else { named };
    let is_there = works(&program, &["--version"]);
    if !is_there {
        let what =
            "llama-server, which tests/llama-server builds; its path is $GPUCTL_TEST_LLAMA_SERVER";
        skip_or_fail("llama-server", what);
    }
    is_there.then_some(program)
}

/// Writes a model to a file in a folder that holds nothing else, and returns its path.
fn model(rig: &Rig) -> PathBuf {
    let file = rig.path("models/a.gguf");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    gguf::write(&file);
    file
}

/// Starts the server with these options, and adds a service that needs its memory.
fn rig_with(options: impl Fn(&Rig) -> String) -> Option<(Rig, Service)> {
    let program = program()?;
    let rig = Rig::new();
    let llama = rig.native("llama").vram(4800).priority(10).set("api", "llama-server");
    let llama = llama.set("url", "http://127.0.0.1:1").set("stop_timeout", "5s").add();
    let (port, mark, library) = (llama.port(), llama.mark(), rig.nvml_library());
    let start = format!(
        "exec env LD_PRELOAD={library} SIMGPU_PRELOAD_MB={HELD} LLAMA_CACHE={} {program} --host 127.0.0.1 --port {port} \
         --alias {mark} --threads 1 --ctx-size 32768 --parallel 2 --no-warmup --cache-ram 0 {}",
        rig.path("cache").display(),
        options(&rig)
    );
    rig.set("services.llama.start", start);
    rig.set("services.llama.match", format!("llama-server.*{mark}"));
    rig.set("services.llama.url", llama.url(""));
    rig.native("big").vram(21000).priority(100).add();
    rig.gpuctl("start llama --quiet").run().succeeds();
    Some((rig, llama))
}

fn with_one_model() -> Option<(Rig, Service)> {
    rig_with(|rig| format!("--model {}", model(rig).display()))
}

/// Starts the server as a router of the models a and b, neither of which is loaded.
fn with_two_models() -> Option<(Rig, Service)> {
    let (rig, llama) = rig_with(|rig| {
        let file = model(rig);
        fs::hard_link(&file, file.with_file_name("b.gguf")).unwrap();
        format!("--models-dir {}", file.parent().unwrap().display())
    })?;
    rig.set("services.llama.evict", "unload");
    Some((rig, llama))
}

fn jobs(rig: &Rig) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"]["llama"]["jobs"].clone()
}

/// Returns a request for this number of tokens.
fn completion(model: &str, tokens: u64) -> Value {
    json!({"model": model, "prompt": "a", "n_predict": tokens, "ignore_eos": true})
}

/// Returns about how many tokens the server generates in this time.
fn tokens_in(time: Duration, llama: &Service, model: &str) -> u64 {
    let answer = llama.request("/completion", &completion(model, 256)).join().unwrap().unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let rate = answer["timings"]["predicted_per_second"].as_f64().unwrap();
    (rate * time.as_secs_f64()) as u64
}

/// Returns the number of tokens that an answer reports.
fn made(answer: Option<String>) -> Value {
    let answer: Value = serde_json::from_str(&answer.expect("it was cut off")).unwrap();
    answer["tokens_predicted"].clone()
}

#[test]
fn what_a_llama_server_generates_is_seen_and_comes_to_its_end_before_the_server_is_stopped() {
    let Some((rig, llama)) = with_one_model() else { return };
    assert_eq!(jobs(&rig), 0);
    let tokens = tokens_in(Duration::from_secs(3), &llama, "a");
    let both = [(); 2].map(|()| llama.request("/completion", &completion("a", tokens)));
    until("it generates", || jobs(&rig) == 2);
    rig.gpuctl("stop llama --drain 0").run().fails("service_busy").ignores_stderr();
    assert!(llama.is_healthy());
    let stop = rig.gpuctl("stop llama").run().succeeds().stdout_has("stopped llama");
    stop.stderr_has("draining llama, ").progress();
    for request in both {
        assert_eq!(made(request.join().unwrap()), tokens);
    }
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn a_llama_server_with_an_open_stream_is_not_cut_off_and_ends_where_that_is_wanted() {
    let Some((rig, llama)) = with_one_model() else { return };
    let body = json!({"prompt": "a", "n_predict": 30_000, "ignore_eos": true, "stream": true});
    let stream = llama.request("/completion", &body);
    until("it streams", || jobs(&rig) == 1);
    let refused = rig.gpuctl("stop llama --drain 1s").run().fails("service_busy");
    refused.stderr_has("llama (1 job) is still working after 1s").ignores_stderr();
    assert!(llama.is_healthy());
    let stop = rig.gpuctl("stop llama --no-drain --json").run().succeeds().progress().json();
    let note = stop["steps"][0]["note"].as_str().unwrap();
    // The server waits for its streams after TERM.
    assert!(note.starts_with("1 job cut off"), "{stop}");
    assert_eq!(rig.card.used_mb(), 0);
    stream.join().unwrap();
}

#[test]
fn a_router_of_several_models_is_drained_and_gives_back_each_and_keeps_running() {
    let Some((rig, llama)) = with_two_models() else { return };
    assert_eq!((rig.card.used_mb(), jobs(&rig)), (HELD, json!(0)));
    let pids = || {
        let status = rig.gpuctl("status --json").run().succeeds().json();
        status["services"]["llama"]["pids"].clone()
    };
    let router = pids();
    let tokens = tokens_in(Duration::from_secs(3), &llama, "a");
    for time in ["first", "again"] {
        tokens_in(Duration::ZERO, &llama, "b");
        let request = llama.request("/completion", &completion("a", tokens));
        until("it generates", || jobs(&rig) == 1);
        assert_eq!(rig.card.used_mb(), 3 * HELD, "the router, and a child for each model");
        let start = rig.gpuctl("start big").run().succeeds().stdout_has("unloaded llama");
        start.stderr_has("draining llama, 1 job left").progress();
        assert_eq!(made(request.join().unwrap()), tokens, "{time}");
        assert_eq!(rig.card.used_mb(), 21000 + HELD, "{time}");
        assert_eq!(pids(), router, "{time}: it runs on");
        let repeated = rig.gpuctl("start big --json").run().succeeds().json();
        assert_eq!(repeated["kept"], json!(["big", "llama"]), "{repeated}");
        rig.gpuctl("stop big --quiet").run().succeeds();
    }
    rig.gpuctl("stop llama --quiet").run().succeeds();
    assert_eq!(rig.card.used_mb(), 0);
}
