//! Tests of `gpuctl http`: the acceptance criteria of the seeds as they are written, with curl, and
//! what becomes of a request whose client goes away.

use rig::{Machine, Rig, Served, answer, skip_or_fail, until, works};
use serde_json::{Value, json};
use std::io::Write;

/// Configures the seeds' services, all of them native here, and serves HTTP. `None`, after
/// reporting the skip, without curl.
fn pipeline(rig: &Rig) -> Option<Served> {
    rig.card.describe(&json!({"reclaim_delay_ms": 300}));
    let native = |name, vram, priority, phase| {
        rig.native(name).vram(vram).priority(priority).phases([phase])
    };
    native("vidi", 4000, 40, 2).add();
    native("cosyvoice", 4000, 50, 3).add();
    native("comfyui", 20000, 100, 4).add();
    if !works("curl", &["--version"]) {
        skip_or_fail("curl", "curl");
        return None;
    }
    rig.http("127.0.0.1")
}

/// Runs a line of the seeds, in which only the port is replaced, and returns the document that it
/// prints.
fn curl(rig: &Rig, http: &Served, line: &str) -> Value {
    let line = line.replace("localhost:8000", &format!("localhost:{}", http.port));
    rig.shell(&line.replacen("curl", "curl -sS --fail-with-body", 1)).run().succeeds().json()
}

#[test]
fn ac_1_the_phases_in_a_row_with_curl_do_not_run_out_of_memory() {
    let rig = Rig::new();
    let Some(http) = pipeline(&rig) else { return };
    for (line, needed) in [
        ("curl -X POST localhost:8000/gpu/prepare-phase/2", "vidi"),
        ("curl -X POST localhost:8000/gpu/prepare-phase/3", "cosyvoice"),
        ("curl -X POST localhost:8000/gpu/prepare-phase/4", "comfyui"),
    ] {
        let report = curl(&rig, &http, line);
        assert_eq!((&report["success"], &report["started"]), (&json!(true), &json!([needed])));
        rig.assert_no_out_of_memory();
    }
    assert_eq!(rig.card.used_mb(), 20000);
}

#[test]
fn ac_2_the_status_with_curl_has_the_seeds_fields() {
    let rig = Rig::new();
    let Some(http) = pipeline(&rig) else { return };
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let status = curl(&rig, &http, "curl localhost:8000/gpu/status");
    let vram = &status["vram"];
    assert_eq!((&vram["total_mb"], &vram["used_mb"]), (&json!(24576), &json!(4000)));
    assert_eq!(vram["free_mb"], 20576);
    assert_eq!(status["services"]["vidi"]["state"], "ready");
    assert_eq!(status["lock"]["holder"], Value::Null);
}

#[test]
fn ac_3_starting_comfyui_with_curl_stops_cosyvoice_first() {
    let rig = Rig::new();
    let Some(http) = pipeline(&rig) else { return };
    rig.gpuctl("start cosyvoice --quiet").run().succeeds();
    let report = curl(&rig, &http, "curl -X POST localhost:8000/gpu/service/comfyui/start");
    assert_eq!(report["stopped"], json!(["cosyvoice"]));
    let actions: Vec<&Value> =
        report["steps"].as_array().unwrap().iter().map(|step| &step["action"]).collect();
    assert_eq!(actions, ["stop", "reclaim", "start"]);
    rig.assert_no_out_of_memory();
}

#[test]
fn a_request_that_waits_for_the_lock_is_given_up_with_its_client() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    let Some(http) = rig.http("127.0.0.1") else { return };
    let token = rig.acquire("me");
    let mut stream = http.connect([127, 0, 0, 1].into());
    let request = http.request("POST /gpu/service/vidi/start?wait=1h", "", "");
    stream.write_all(request.as_bytes()).unwrap();
    until("it waits", || !rig.gpuctls().is_empty());
    drop(stream);
    until("it has gone", || rig.gpuctls().is_empty());
    rig.release(&token);
    rig.assert_no_process_of(&vidi);
}

#[test]
fn a_request_that_acts_is_carried_out_though_its_client_has_gone() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).server("--warmup 500ms").add();
    let Some(http) = rig.http("127.0.0.1") else { return };
    let mut stream = http.connect([127, 0, 0, 1].into());
    stream.write_all(http.request("POST /gpu/service/vidi/start", "", "").as_bytes()).unwrap();
    until("it acts", || !rig.processes_of(&vidi).is_empty());
    drop(stream);
    until("it has ended", || rig.gpuctls().is_empty());
    assert!(vidi.is_healthy());
    rig.gpuctl("history -n 1").run().succeeds().stdout_has("start vidi  done");
    rig.assert_lock_is_free();
}

#[test]
fn a_lock_whose_client_has_gone_before_it_could_be_told_is_given_back() {
    let rig = Rig::new();
    let Some(http) = rig.http("127.0.0.1") else { return };
    for _ in 0..5 {
        let mut stream = http.connect([127, 0, 0, 1].into());
        let request = http.request("POST /gpu/lock/acquire?ttl=1h", "", "");
        stream.write_all(request.as_bytes()).unwrap();
        drop(stream);
    }
    // Requests are answered in their order, so those before this one have begun.
    assert_eq!(http.answer(&http.request("GET /openapi.json", "", "")).0, 200);
    // A request that has just begun may still hold the lock for a moment; a lock that was left
    // behind would last an hour.
    until("they have ended, and the lock is free", || {
        rig.gpuctls().is_empty() && rig.gpuctl("lock status").run().ended().0 == Some(0)
    });
}

#[test]
fn a_client_that_waits_for_a_word_before_its_body_gets_it() {
    let rig = Rig::new();
    let Some(http) = rig.http("127.0.0.1") else { return };
    let mut stream = http.connect([127, 0, 0, 1].into());
    let whole =
        http.request("POST /gpu/lock/release", "Expect: 100-continue\r\n", r#"{"force":1}"#);
    let (head, body) = whole.split_once("\r\n\r\n").unwrap();
    stream.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
    let mut word = [0; 25];
    std::io::Read::read_exact(&mut stream, &mut word).unwrap();
    assert_eq!(&word, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    assert_eq!(answer(stream).0, 200);
}

#[test]
fn without_a_socket_one_request_from_stdin_is_answered_on_stdout() {
    let rig = Rig::new();
    let asked = |request: &str| {
        let script = format!("printf '{request}' | gpuctl http");
        rig.shell(&script).run().succeeds().ignores_stderr().text()
    };
    let answer = asked(r"GET /gpu/lock HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\"fence\": null\n}\n"), "{answer}");
    let bare = asked(r"HEAD /gpu/lock HTTP/1.0\r\n\r\n");
    assert!(bare.starts_with("HTTP/1.1 200 OK\r\n") && bare.ends_with("\r\n\r\n"), "{bare}");
    assert!(asked(r"GET /gpu/lock HTTP/1.1\r\nHost: elsewhere\r\n\r\n").contains(" 403 "));
    assert!(asked("").contains(" 400 "));
    // What was refused is in the log.
    let refused = rig.shell("echo nonsense | gpuctl http").run().succeeds().stdout_has(" 400 ");
    refused.stderr_has("answered 400: not an HTTP request");
}

#[test]
fn the_units_serve_two_hundred_at_once_on_a_machine_that_systemd_runs_and_none_of_them_stays() {
    if !works("curl", &["--version"]) {
        return skip_or_fail("curl", "curl");
    }
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let (seconds, port) = (corner.port, corner.port);
    corner.config(&format!(
        "[services.one]\ntype = \"native\"\nvram_mb = 100\nstart = 'exec sleep {seconds}'\n"
    ));
    let address = format!("127.0.0.1:{port}");
    for unit in ["gpuctl-http.socket", "gpuctl-http@.service"] {
        corner.example(unit, unit, &[("127.0.0.1:8000", &*address)]);
    }
    machine.sh("systemctl start gpuctl-http.socket");
    let curl = "curl -sS --max-time 100 -o /dev/null -w '%{http_code}\\n'";
    let service = format!("localhost:{port}/gpu/service/one");
    assert_eq!(machine.sh(&format!("{curl} -X POST {service}/start")), "200\n");
    // With systemd's own limits, the socket would not serve so many.
    let crowd = format!("for i in $(seq 200); do {curl} localhost:{port}/gpu/lock & done; wait");
    for _ in 0..3 {
        assert_eq!(machine.sh(&format!("({crowd}) | sort | uniq -c | tr -s ' '")), " 200 200\n");
    }
    assert_eq!(machine.sh("systemctl is-active gpuctl-http.socket"), "active\n");
    let requests = "systemctl list-units --all --no-legend 'gpuctl-http@*'";
    until("no request is left", || machine.sh(requests).is_empty());
    // What a request has started outlives it.
    let count = format!("pgrep -cfx 'sleep {seconds}'");
    assert_eq!(machine.try_sh(&count).0, "1\n");
    // The service is in a group of its own, so the limits of a request do not hold for it.
    let group = format!("cat /proc/$(pgrep -fx 'sleep {seconds}')/cgroup");
    assert!(machine.sh(&group).contains("/gpuctl-one-"), "{}", machine.sh(&group));
    assert_eq!(machine.sh(&format!("{curl} -X POST {service}/stop")), "200\n");
    assert_eq!(machine.try_sh(&count).0, "0\n");
    machine.sh("systemctl stop gpuctl-http.socket");
}
