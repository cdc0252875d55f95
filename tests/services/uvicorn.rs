//! Tests with a model server as many are written: a program in Python behind uvicorn, which streams
//! what it generates and reports its jobs.

use rig::{Rig, Service, Signal, python_with, signal, until};
use serde_json::json;

/// A program that streams words for `ms` milliseconds at `POST /generate`, and answers anything
/// else, such as `GET /jobs` or a health check, with the list of its jobs.
const APP: &str = r#"
import asyncio, json

jobs = []


async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/generate":
        jobs.append("job")
        for _ in range(json.loads(body)["ms"] // 50):
            await send({"type": "http.response.body", "body": b"word\n", "more_body": True})
            await asyncio.sleep(0.05)
        jobs.pop()
        await send({"type": "http.response.body", "body": b"done"})
    else:
        await send({"type": "http.response.body", "body": json.dumps({"jobs": jobs}).encode()})
"#;

/// Starts the server, which is in phase 1, and adds another service in phase 2. `None`, after
/// reporting the skip, without uvicorn.
fn rig_with_uvicorn() -> Option<(Rig, Service)> {
    let python = python_with("uvicorn")?;
    let rig = Rig::new();
    let app = rig.file("home/app.py", APP);
    let folder = app.parent().unwrap().display();
    let api = rig.native("api").vram(12000).phases([1]).add();
    let port = api.port();
    let server = format!("exec {python} -m uvicorn --app-dir {folder} --port {port} app:app");
    rig.set("services.api.start", server);
    rig.set("services.api.match", format!("uvicorn --app-dir {folder}"));
    rig.set("services.api.busy.url", api.url("/jobs"));
    rig.set("services.api.busy.json", "/jobs");
    rig.native("big").vram(20000).phases([2]).add();
    rig.gpuctl("prepare-phase 1 --quiet").run().succeeds();
    Some((rig, api))
}

fn jobs(rig: &Rig) -> serde_json::Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"]["api"]["jobs"].clone()
}

#[test]
fn a_stream_of_uvicorn_comes_to_its_end_before_its_server_is_stopped() {
    let Some((rig, api)) = rig_with_uvicorn() else { return };
    assert_eq!(jobs(&rig), 0);
    let streams = [(); 2].map(|()| api.request("/generate", &json!({"ms": 2000})));
    until("it streams", || jobs(&rig) == 2);
    rig.gpuctl("prepare-phase 2 --drain 0").run().fails("service_busy").ignores_stderr();
    let prepare = rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("stopped api");
    prepare.stderr_has("draining api, ").progress();
    for stream in streams {
        assert!(stream.join().unwrap().unwrap().ends_with("word\ndone"));
    }
    assert!(!api.is_healthy());
}

#[test]
fn a_stream_of_uvicorn_that_somebody_else_has_told_to_end_is_waited_for_all_the_same() {
    let Some((rig, api)) = rig_with_uvicorn() else { return };
    let stream = api.request("/generate", &json!({"ms": 5000}));
    until("it streams", || jobs(&rig) == 1);
    let status = rig.gpuctl("status --json").run().succeeds().json();
    let pid = status["services"]["api"]["pids"][0].as_i64().unwrap();
    let prepare = rig.gpuctl("prepare-phase 2").spawn();
    until("it is waited for", || prepare.stderr().contains("draining api, 1 job left"));
    // From then on the server takes no more requests, and it ends once the stream has ended.
    signal(pid as i32, Signal::TERM);
    prepare.wait().succeeds().stdout_has("started big").progress();
    assert!(stream.join().unwrap().unwrap().ends_with("word\ndone"));
    assert!(!api.is_healthy());
}
