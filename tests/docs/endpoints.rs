//! Tests of `gpuctl http` against `docs/endpoints.md`: each endpoint answers with its command's
//! document, and with the HTTP status that the page gives its exit code.

use rig::page::Page;
use rig::{Rig, Served};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Returns the HTTP statuses that the page lists, by exit code.
fn documented() -> BTreeMap<i64, u16> {
    let sections = Page::read("endpoints.md").sections;
    let rows = sections.iter().flat_map(|section| section.rows()).filter(|row| row.len() == 4);
    rows.filter_map(|row| Some((row[0].parse().ok()?, row[2].parse().unwrap()))).collect()
}

#[test]
fn the_endpoints_do_what_their_commands_do() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).priority(40).phases([2]).add();
    rig.native("comfyui").vram(20000).priority(100).phases([4]).add();
    rig.set("phases.4", "video");
    let Some(http) = rig.http("127.0.0.1") else { return };

    let (status, prepared) = http.ask("POST /gpu/prepare-phase/2");
    assert_eq!(
        (status, &prepared["success"], &prepared["started"]),
        (200, &json!(true), &json!(["vidi"]))
    );
    let (_, shown) = http.ask("GET /gpu/status");
    assert_eq!(shown["vram"]["used_mb"], 4000);
    assert_eq!(shown["services"]["vidi"]["state"], "ready");
    assert_eq!(shown["lock"]["holder"], Value::Null);
    assert_eq!(http.ask("GET /gpu/status?check=vidi").1["checked"], true);
    assert_eq!(http.ask("GET /gpu/status?check=vidi&check=comfyui").1["checked"], false);
    let (status, answer) = http.ask("GET /gpu/can-fit/22000");
    assert_eq!((status, &answer["fits"]), (200, &json!(false)));
    assert_eq!(http.ask("GET /gpu/can-fit/22000?margin=0").1["margin_mb"], 0);
    let (_, planned) = http.ask("POST /gpu/prepare-phase/video?dry_run=1&wait=5m");
    assert_eq!((&planned["dry_run"], &planned["stopped"]), (&json!(true), &json!(["vidi"])));
    let (_, planned) = http.ask_with("POST /gpu/prepare-phase/video", "", r#"{"dry_run": true}"#);
    assert_eq!(planned["dry_run"], true);
    let (_, prepared) = http.ask("POST /gpu/prepare-phase/video?dry-run=false");
    assert_eq!((&prepared["stopped"], &prepared["phase"]), (&json!(["vidi"]), &json!(4)));
    rig.assert_no_process_of(&vidi);
    let (_, stopped) = http.ask("POST /gpu/service/comfyui/stop");
    assert_eq!(stopped["stopped"], json!(["comfyui"]));
    assert_eq!(http.ask("POST /gpu/service/vidi/start").1["started"], json!(["vidi"]));
    assert_eq!(http.ask("POST /gpu/service/vidi/restart").1["started"], json!(["vidi"]));
    assert_eq!(http.ask("POST /gpu/release-all").1["stopped"], json!(["vidi"]));
}

#[test]
fn a_lock_that_was_taken_over_http_is_acted_under_and_released_by_its_token() {
    let rig = Rig::new();
    rig.native("vidi").vram(4000).add();
    rig.set("lock.wait", "0s");
    let Some(http) = rig.http("127.0.0.1") else { return };
    let wanted = r#"{"holder": "batch", "ttl": "5m", "wait": 0.0}"#;
    let (status, taken) = http.ask_with("POST /gpu/lock/acquire", "", wanted);
    assert_eq!((status, &taken["holder"], &taken["ttl"]), (200, &json!("batch"), &json!(300)));
    assert_eq!(http.ask("GET /gpu/lock").1["holder"], "batch");
    assert_eq!(http.ask("POST /gpu/service/vidi/start").0, 423, "another's lock");

    let token = taken["token"].as_str().unwrap();
    let own = format!("Gpuctl-Lock-Token: {token}\r\n");
    let (status, started) = http.ask_with("POST /gpu/service/vidi/start", &own, "");
    assert_eq!((status, &started["started"]), (200, &json!(["vidi"])));
    let wrong = "Gpuctl-Lock-Token: 0123\r\n";
    assert_eq!(http.ask_with("POST /gpu/service/vidi/stop", wrong, "").0, 409);
    let (status, answer) = http.ask_with("POST /gpu/lock/release", wrong, "");
    assert_eq!((status, &answer["released"]), (200, &json!(false)));
    assert_eq!(http.ask("POST /gpu/lock/release").0, 400, "whose?");
    let (_, answer) = http.ask_with("POST /gpu/lock/release", &own, "");
    assert_eq!(answer["released"], true);
    rig.assert_lock_is_free();
}

#[test]
fn a_failure_has_the_http_status_that_the_page_gives_its_exit_code() {
    let rig = Rig::new();
    rig.native("comfyui").vram(20000).priority(100).add();
    rig.native("vidi").vram(4000).priority(40).add();
    rig.native("broken").set("start", "exit 3").add();
    rig.native("slow").server("--warmup 60s").set("start_timeout", "200ms").add();
    rig.set("lock.wait", "0s");
    let Some(http) = rig.http("127.0.0.1") else { return };
    let statuses = documented();
    let fails = |endpoint: &str, code: i64| {
        let (status, document) = http.ask(endpoint);
        assert_eq!(document["error"]["exit_code"], code, "{endpoint}: {document}");
        assert_eq!(status, statuses[&code], "{endpoint}");
    };
    fails("GET /gpu/can-fit/9x", 2);
    fails("POST /gpu/service/vidi/start?wiat=5m", 2);
    fails("POST /gpu/service/vidi/start?wait=soon", 2);
    fails("POST /gpu/service/vidi/start?wait=5m&no_wait=1", 2);
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
    rig.write_config("nonsense");
    fails("GET /gpu/status", 78);
}

/// Returns the operations of an OpenAPI document, each as its method and its path.
fn operations(document: &Value) -> BTreeSet<String> {
    let paths = document["paths"].as_object().unwrap().iter();
    let methods = |(path, item): (&String, &Value)| {
        let path = path.clone();
        let of = move |method: &String| format!("{} {path}", method.to_uppercase());
        item.as_object().unwrap().keys().map(of).collect::<Vec<_>>()
    };
    paths.flat_map(methods).collect()
}

#[test]
fn the_openapi_document_has_the_endpoints_that_are_answered_and_the_page_lists_them() {
    let rig = Rig::new();
    rig.set("lock.wait", "0s");
    let Some(http) = rig.http("127.0.0.1") else { return };
    let (status, document) = http.ask("GET /openapi.json");
    assert_eq!((status, &document["openapi"]), (200, &json!("3.1.0")));
    let operations = operations(&document);
    let page = Page::read("endpoints.md");
    let list = page.sections.iter().find(|section| section.title == "Endpoints").unwrap();
    let cells = list.rows().into_iter().map(|row| row[0].trim_matches('`').to_owned());
    let listed: BTreeSet<String> = cells.filter(|cell| cell.contains(" /")).collect();
    assert_eq!(operations, listed);
    for operation in &operations {
        let asked = operation.replace("{what}", "1").replace("{phase}", "9");
        assert_ne!(answered(&http, &asked), 405, "{operation}");
    }
    let fields = &document["components"]["schemas"]["StatusReport"]["properties"];
    assert!(fields["vram"].is_object(), "{fields}");
}

fn answered(http: &Served, operation: &str) -> u16 {
    http.ask(&operation.replace("{service}", "nobody")).0
}
