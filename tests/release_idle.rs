//! Tests of `gpuctl release-idle`: what has not worked for a while is given back, and nothing else.

use rig::{Rig, Service, until};
use serde_json::{Value, json};
use std::fs;

/// Starts a server whose number of jobs stands in a file, 0 at first.
fn with_jobs(rig: &Rig, name: &str) -> Service {
    let file = rig.file(&format!("home/{name}-jobs"), "0");
    let service = rig.native(name).vram(2000).add();
    rig.set(&format!("services.{name}.busy.command"), format!("cat {}", file.display()));
    rig.gpuctl("start").arg(name).run().succeeds().ignores_stdout().progress();
    service
}

fn idle_s(rig: &Rig, name: &str) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"][name]["idle_s"].clone()
}

fn release(rig: &Rig, words: &str) -> Value {
    let report = rig.gpuctl(&format!("release-idle --json {words}")).run();
    report.succeeds().progress().json()
}

fn wait_until_idle(rig: &Rig, name: &str, seconds: u64) {
    until("it has been idle for that long", || idle_s(rig, name).as_u64() >= Some(seconds));
}

#[test]
fn a_service_is_idle_since_it_worked_on_the_card_or_came_up() {
    let rig = Rig::new();
    rig.card.describe(&json!({"devices": [{"utilization_percent": 0}]}));
    let comfyui = rig.native("comfyui").vram(9000).add();
    rig.native("down").add();
    rig.gpuctl("start comfyui").run().succeeds().ignores_stdout().progress();
    wait_until_idle(&rig, "comfyui", 2);
    assert_eq!(release(&rig, "--after 10m")["stopped"], json!([]));
    comfyui.work();
    let after_work = idle_s(&rig, "comfyui");
    assert_eq!(after_work, 0, "it has just worked");
    assert_eq!(idle_s(&rig, "down"), json!(null));
    wait_until_idle(&rig, "comfyui", 1);
    let report = release(&rig, "--after 1s");
    assert_eq!((&report["success"], &report["stopped"]), (&json!(true), &json!(["comfyui"])));
    assert_eq!(report["freed_mb"], 9000);
    rig.assert_no_process_of(&comfyui);
    assert_eq!(release(&rig, "--after 1s")["stopped"], json!([]), "there is nothing more");
    rig.assert_free_and_alone();
}

#[test]
fn a_service_with_jobs_is_not_idle_though_nothing_of_it_shows_on_the_card() {
    let rig = Rig::new();
    let film = with_jobs(&rig, "film");
    wait_until_idle(&rig, "film", 1);
    fs::write(rig.path("home/film-jobs"), "2").unwrap();
    assert_eq!(release(&rig, "--after 1s")["stopped"], json!([]));
    assert_eq!(idle_s(&rig, "film"), 0);
    assert_eq!(release(&rig, "--after 0s")["stopped"], json!([]), "it works just now");
    fs::write(rig.path("home/film-jobs"), "0").unwrap();
    assert_eq!(release(&rig, "--after 1s")["stopped"], json!([]), "it has just worked");
    assert!(film.is_healthy());
    wait_until_idle(&rig, "film", 1);
    assert_eq!(release(&rig, "film --after 1s")["stopped"], json!(["film"]));
}

#[test]
fn a_service_is_idle_since_a_call_that_was_refused_saw_it_with_jobs() {
    let rig = Rig::new();
    let film = with_jobs(&rig, "film");
    wait_until_idle(&rig, "film", 3);
    fs::write(rig.path("home/film-jobs"), "2").unwrap();
    rig.gpuctl("stop film --drain 0").run().fails("service_busy").ignores_stderr();
    fs::write(rig.path("home/film-jobs"), "0").unwrap();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    let seconds = |name: &str| status["services"]["film"][name].as_u64().unwrap();
    assert!(seconds("idle_s") + 3 <= seconds("uptime_s"), "{status}");
    assert!(film.is_healthy());
}

#[test]
fn what_cannot_be_told_is_not_idle() {
    let rig = Rig::new();
    let film = with_jobs(&rig, "film");
    let plain = rig.native("plain").add();
    rig.gpuctl("start plain").run().succeeds().ignores_stdout().progress();
    wait_until_idle(&rig, "plain", 1);
    // The probe of one service fails, and the card does not tell whether the other one works.
    fs::remove_file(rig.path("home/film-jobs")).unwrap();
    rig.card.describe(&json!({"devices": [{"process_utilization": false}]}));
    assert_eq!((idle_s(&rig, "film"), idle_s(&rig, "plain")), (json!(null), json!(null)));
    assert_eq!(release(&rig, "--after 1s")["stopped"], json!([]));
    // One of the two sources is enough if it says that there is no work.
    fs::write(rig.path("home/film-jobs"), "0").unwrap();
    assert_eq!(release(&rig, "--after 1s")["stopped"], json!(["film"]));
    rig.card.describe(&json!({}));
    assert_eq!(release(&rig, "--after 1s")["stopped"], json!(["plain"]));
    for service in [&film, &plain] {
        rig.assert_no_process_of(service);
    }
}

#[test]
fn each_goes_by_its_own_idle_unless_a_time_is_given() {
    let rig = Rig::new();
    let [soon, later, never] = ["soon", "later", "never"].map(|name| rig.native(name).add());
    rig.set("services.soon.idle", "1s");
    rig.set("services.later.idle", "1h");
    for name in ["soon", "later", "never"] {
        rig.gpuctl("start").arg(name).run().succeeds().ignores_stdout().progress();
    }
    wait_until_idle(&rig, "never", 1);
    let dry = release(&rig, "--dry-run");
    assert_eq!((&dry["dry_run"], &dry["stopped"]), (&json!(true), &json!(["soon"])));
    assert!(soon.is_healthy());
    assert_eq!(release(&rig, "later")["stopped"], json!([]));
    assert_eq!(release(&rig, "")["stopped"], json!(["soon"]));
    assert!(later.is_healthy() && never.is_healthy());
    let refused = rig.gpuctl("release-idle never").run().fails("usage");
    refused.stderr_has("never has no `idle`").stderr_has("--after 30m");
    rig.gpuctl("release-idle nobody").run().fails("not_found").stderr_has("nobody");
    rig.gpuctl("release-idle --after soon").run().fails("usage").stderr_has("not a duration");
    assert_eq!(release(&rig, "never later --after 1s")["stopped"], json!(["later", "never"]));
}

#[test]
fn nothing_is_evicted_while_another_holds_the_lock() {
    let rig = Rig::new();
    let service = rig.native("ollama").add();
    rig.gpuctl("start ollama").run().succeeds().ignores_stdout().progress();
    wait_until_idle(&rig, "ollama", 1);
    let script = "touch there; exec sleep 1000";
    let holder = rig.gpuctl("run --quiet ollama -- sh -c").arg(script).spawn();
    until("the lock is held", || rig.path("home/there").exists());
    let release = rig.gpuctl("release-idle --after 1s").run().fails("lock_busy");
    let told = release.stderr_text();
    assert!(
        told.contains("held by ollama") && told.contains("try again when it is free"),
        "{told}"
    );
    assert!(!told.contains("--wait"), "it has no such option: {told}");
    assert!(service.is_healthy());
    // Nothing is due, so there is nothing to wait for.
    rig.gpuctl("release-idle --after 1h").run().succeeds().stdout_has("kept ollama");
    holder.signal(rig::Signal::TERM);
    drop(holder.wait().exits(143));
}

#[test]
fn what_unloads_on_request_is_unloaded_once_and_left_running() {
    let rig = Rig::new();
    let server = "--api comfyui --unload-residual 500";
    let comfyui = rig.native("comfyui").vram(9000).set("evict", "unload").server(server).add();
    rig.set("services.comfyui.unload.url", comfyui.url("/free"));
    rig.set("services.comfyui.unload.body", "{\"free_memory\": true}");
    rig.gpuctl("start comfyui").run().succeeds().ignores_stdout().progress();
    wait_until_idle(&rig, "comfyui", 1);
    let process = rig.processes_of(&comfyui);
    assert_eq!(release(&rig, "--after 1s")["unloaded"], json!(["comfyui"]));
    assert_eq!(rig.card.used_mb(), 500);
    let again = release(&rig, "--after 1s");
    assert_eq!((&again["unloaded"], &again["stopped"]), (&json!([]), &json!([])));
    assert_eq!(rig.processes_of(&comfyui), process);
}
