//! The example that serves the endpoints of the seeds: each answers with its command's document, and with the HTTP status
//! that `docs/endpoints.md` gives its exit code.

use rig::page::{Page, repository};
use rig::{Bystander, Rig, python_or_skip, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;

struct Endpoints {
    port: u16,
    _server: Bystander,
}

impl Endpoints {
    fn serve(rig: &Rig) -> Endpoints {
        let (port, program) = (rig.port(), repository().join("examples/http/gpu_endpoints.py"));
        // By the rig's token it is known for the rig's, and ended with it.
        let server = rig.by_hand(&format!(
            "env OF={} python3 {} {port}",
            rig.mark("http"),
            program.display()
        ));
        let endpoints = Endpoints { port, _server: server };
        until("it serves", || {
            ureq::get(endpoints.url("/")).call().is_err_and(|e| e.to_string().contains("404"))
        });
        endpoints
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// `GET /gpu/status`: its HTTP status and document.
    #[track_caller]
    fn ask(&self, endpoint: &str) -> (u16, Value) {
        let agent: ureq::Agent =
            ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let mut response = match endpoint.split_once(' ').unwrap() {
            ("GET", path) => agent.get(self.url(path)).call(),
            (_, path) => agent.post(self.url(path)).send_empty(),
        }
        .unwrap();
        (response.status().as_u16(), response.body_mut().read_json().unwrap())
    }
}

/// The HTTP statuses of the page, by exit code.
fn documented() -> BTreeMap<i64, u16> {
    let sections = Page::read("endpoints.md").sections;
    let rows = sections.iter().flat_map(|section| section.rows()).filter(|row| row.len() == 4);
    rows.filter_map(|row| Some((row[0].parse().ok()?, row[2].parse().unwrap()))).collect()
}

#[test]
fn the_endpoints_do_what_their_commands_do() {
    if !python_or_skip() {
        return;
    }
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).priority(40).phases([2]).add();
    rig.native("comfyui").vram(20000).priority(100).phases([4]).add();
    rig.set("phases.4", "video");
    let http = Endpoints::serve(&rig);

    let (status, prepared) = http.ask("POST /gpu/prepare-phase/2");
    assert_eq!(
        (status, &prepared["success"], &prepared["started"]),
        (200, &json!(true), &json!(["vidi"]))
    );
    let (_, shown) = http.ask("GET /gpu/status");
    assert_eq!(shown["vram"]["used_mb"], 4000);
    assert_eq!(shown["services"]["vidi"]["state"], "ready");
    assert_eq!(shown["lock"]["holder"], Value::Null);
    assert_eq!(http.ask("GET /gpu/can-fit/22000").1["fits"], false);
    let (_, prepared) = http.ask("POST /gpu/prepare-phase/video");
    assert_eq!((&prepared["stopped"], &prepared["phase"]), (&json!(["vidi"]), &json!(4)));
    rig.assert_no_process_of(&vidi);
    let (_, stopped) = http.ask("POST /gpu/service/comfyui/stop");
    assert_eq!(stopped["stopped"], json!(["comfyui"]));
    assert_eq!(http.ask("POST /gpu/service/vidi/start").1["started"], json!(["vidi"]));
    assert_eq!(http.ask("POST /gpu/release-all").1["stopped"], json!(["vidi"]));
}

#[test]
fn a_failure_has_the_http_status_that_the_page_gives_its_exit_code() {
    if !python_or_skip() {
        return;
    }
    let rig = Rig::new();
    rig.native("comfyui").vram(20000).priority(100).add();
    rig.native("vidi").vram(4000).priority(40).add();
    rig.native("broken").set("start", "exit 3").add();
    rig.native("slow").server("--warmup 60s").set("start_timeout", "200ms").add();
    rig.set("lock.wait", "0s");
    let http = Endpoints::serve(&rig);
    let statuses = documented();
    let fails = |endpoint: &str, code: i64| {
        let (status, document) = http.ask(endpoint);
        assert_eq!(document["error"]["exit_code"], code, "{endpoint}: {document}");
        assert_eq!(status, statuses[&code], "{endpoint}");
    };
    fails("GET /gpu/can-fit/9x", 2);
    fails("POST /gpu/service/--force/stop", 4);
    fails("POST /gpu/prepare-phase/9", 4);
    fails("POST /gpu/service/broken/start", 5);
    fails("POST /gpu/service/slow/start", 124);
    http.ask("POST /gpu/release-all");
    http.ask("POST /gpu/service/comfyui/start");
    fails("POST /gpu/service/vidi/start", 3);
    let token = rig.acquire("me");
    fails("POST /gpu/service/vidi/start", 75);
    rig.release(&token);
    rig.set("lock.url", "redis://127.0.0.1:1");
    fails("POST /gpu/service/vidi/start", 69);
    assert_eq!(http.ask("POST /gpu/status").0, 404, "no such endpoint");
}
