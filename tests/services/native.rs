//! Tests of native services: what reaches their processes, what becomes of a start script, how they
//! are stopped, and which processes belong to which service.

use rig::{Rig, Script, Service, until};
use serde_json::{Value, json};
use std::fs;
use toml::Table;

/// Returns the PID of the server itself, and not of a shell that it was started from.
fn server_of(rig: &Rig, service: &Service) -> i32 {
    let is_server = |pid: &i32| comm(*pid) == "simserver";
    rig.processes_of(service).into_iter().find(is_server).expect("a server")
}

fn comm(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

/// Returns the path of the program that stands for a model server.
fn simserver(service: &Service) -> &str {
    service.command().split_whitespace().next().unwrap()
}

#[test]
fn the_environment_and_the_folder_of_the_configuration_reach_the_service() {
    let rig = Rig::new();
    let folder = rig.path("home/models");
    fs::create_dir(&folder).unwrap();
    let env = Table::from_iter([("CUDA_VISIBLE_DEVICES".to_owned(), "1, 2".into())]);
    let vidi = rig.native("vidi").set("env", env).set("cwd", "~/models").add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();

    let process = format!("/proc/{}", server_of(&rig, &vidi));
    let environment = fs::read_to_string(format!("{process}/environ")).unwrap();
    assert!(environment.split('\0').any(|entry| entry == "CUDA_VISIBLE_DEVICES=1, 2"));
    assert_eq!(fs::read_link(format!("{process}/cwd")).unwrap(), folder);
}

#[test]
fn a_folder_that_does_not_exist_is_told_as_such() {
    let rig = Rig::new();
    rig.native("vidi").set("cwd", "/no/such/folder").add();
    let start = rig.gpuctl("start vidi --quiet").run();
    start.fails("config").stderr_has("/no/such/folder does not exist");
}

#[test]
fn what_a_service_prints_is_appended_to_its_log() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let log = rig.state_dir().join("logs/vidi.log");
    for runs in 1..=2 {
        rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
        let text = || fs::read_to_string(&log).unwrap();
        until("it has told so", || text() == format!("{}: ready\n", vidi.mark()).repeat(runs));
        rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    }
}

#[test]
fn a_start_script_that_fails_is_told_with_its_code_and_its_last_words() {
    let rig = Rig::new();
    rig.native("vidi").set("start", "echo one; echo no such model >&2; exit 4").add();
    let error = rig.gpuctl("start vidi --quiet --json").run().fails("start_failed").json();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("exited with code 4"), "{message}");
    assert!(message.contains("no such model"), "{message}");
    assert_eq!(error["error"]["details"]["log"], json!(["one", "no such model"]));
}

#[test]
fn the_log_of_a_failure_is_not_that_of_an_earlier_one() {
    let rig = Rig::new();
    let script = rig.program("start-vidi", "echo first words; exit 4");
    rig.native("vidi").set("start", script.to_str().unwrap()).add();
    let start = || rig.gpuctl("start vidi --quiet").run().fails("start_failed");
    start().stderr_has("first words");
    rig.program("start-vidi", "exit 5");
    let error = rig.gpuctl("start vidi --json --quiet").run().fails("start_failed").json();
    assert_eq!(error["error"]["details"]["log"], json!([]));
}

#[test]
fn a_start_script_that_is_killed_is_told_apart_from_one_whose_server_is() {
    let rig = Rig::new();
    let killed = rig.program("killed", "kill -KILL $$");
    rig.native("vidi").set("start", format!("exec {}", killed.display())).add();
    let start = rig.gpuctl("start vidi --quiet").run().fails("start_failed");
    start.stderr_has("its start command was killed by signal 9");

    let script = rig.program("crashing", "sh -c 'kill -SEGV $$'; exit $?");
    rig.native("voice").set("start", script.to_str().unwrap()).add();
    let start = rig.gpuctl("start voice --quiet").run().fails("start_failed");
    start.stderr_has("exited with code 139 (its child was killed by signal 11)");
}

#[test]
fn a_start_script_that_leaves_nothing_behind_is_told_without_waiting_for_the_timeout() {
    let rig = Rig::new();
    rig.native("vidi").set("start", "echo all is well").add();
    let start = rig.gpuctl("start vidi --quiet").run().fails("start_failed");
    start
        .stderr_has("exited with code 0 and left no process behind")
        .stderr_has("its last output was: all is well");
}

#[test]
fn a_server_that_dies_in_the_background_is_told_without_waiting_for_the_timeout() {
    for script in [Script::Background, Script::Daemon] {
        let rig = Rig::new();
        let server = "--warmup 1h --exit-after 300ms --exit-code 7";
        rig.native("vidi").script(script).server(server).add();
        let start = rig.gpuctl("start vidi --quiet").run().fails("start_failed");
        start.stderr_has("left no process behind");
    }
}

#[test]
fn a_stop_command_takes_the_place_of_the_signal() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--ignore-term").set("stop", "stop-vidi").add();
    rig.program("stop-vidi", &format!("pkill -KILL -f 'simserver.*{}'", vidi.mark()));
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi --json --quiet").run().succeeds().json();
    assert_eq!(stop["steps"][0]["note"], Value::Null);
    rig.assert_no_process_of(&vidi);
}

#[test]
fn a_stop_command_that_fails_is_no_reason_to_leave_the_service_running() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").set("stop", "echo not in the mood >&2; exit 3").add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi");
    stop.stderr_has("its stop command failed: not in the mood");
    rig.assert_no_process_of(&vidi);
}

#[test]
fn a_stop_command_that_hangs_is_ended_and_the_service_too() {
    let rig = Rig::new();
    let draft = rig.native("vidi").server("--ignore-term").set("stop_timeout", "500ms");
    let hanging = rig.program(&format!("stop-{}", rig.mark("vidi")), "sleep 1000");
    let vidi = draft.set("stop", hanging.to_str().unwrap()).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi");
    stop.stderr_has("did not answer within 500ms").stderr_has("killed");
    // Nothing is left of the stop command either.
    rig.assert_no_process_of(&vidi);
}

#[test]
fn a_stop_command_that_succeeds_without_effect_is_followed_by_a_kill() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").set("stop", "true").set("stop_timeout", "300ms").add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi");
    stop.stderr_has("not gone within 300ms, killed");
    rig.assert_no_process_of(&vidi);
}

#[test]
fn force_kills_at_once_and_asks_no_stop_command() {
    let rig = Rig::new();
    let vidi = rig
        .native("vidi")
        .server("--ignore-term --fork 2")
        .set("stop", "touch asked")
        // This is longer than the rig waits.
        .set("stop_timeout", "2m")
        .add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi --force --json").run().succeeds().progress().json();
    assert_eq!(stop["stopped"], json!(["vidi"]));
    rig.assert_no_process_of(&vidi);
    assert!(!rig.path("home/asked").exists());
}

#[test]
fn release_all_stops_what_was_started_in_every_shape() {
    let rig = Rig::new();
    let scripts =
        [Script::Foreground, Script::Background, Script::Detached, Script::Daemon, Script::File];
    let services: Vec<_> = scripts
        .into_iter()
        .enumerate()
        .map(|(number, script)| {
            let draft = rig.native(&format!("s{number}")).script(script).phases([1]);
            draft.without_match().server("--fork 1").add()
        })
        .collect();
    rig.gpuctl("prepare-phase 1")
        .run()
        .succeeds()
        .stdout_has("started s0, s1, s2, s3, s4")
        .progress();
    assert!(services.iter().all(Service::is_healthy));
    let release = rig.gpuctl("release-all --json --quiet").run().succeeds().json();
    assert_eq!(release["stopped"], json!(["s0", "s1", "s2", "s3", "s4"]));
    services.iter().for_each(|service| rig.assert_no_process_of(service));
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn a_stranger_that_mentions_a_marked_service_is_named_and_survives() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(0).set("match", rig.mark("vidi")).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let mut stranger = rig.by_hand(&format!("{} --name about-{}", simserver(&vidi), vidi.mark()));
    until("the stranger runs", || comm(stranger.pid()) == "simserver");

    let plan = rig.gpuctl("stop vidi --dry-run").run().succeeds();
    plan.stdout_has(&format!("left alone, matches, unproven: {} (", stranger.pid()));
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    assert!(stranger.is_alive());
    assert_eq!(rig.processes_of(&vidi), [stranger.pid()]);
}

#[test]
fn what_only_the_pattern_calls_its_own_is_named_by_a_dry_run_and_refused() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(0).set("match", rig.mark("vidi")).add();
    let mut unproven = rig.by_hand(&format!("{} --name about-{}", simserver(&vidi), vidi.mark()));
    until("it runs", || comm(unproven.pid()) == "simserver");
    let refused = rig.gpuctl("stop vidi --dry-run").run().exits(6);
    refused.stderr_has(&format!("gpuctl adopt vidi {}", unproven.pid()));
    assert!(unproven.is_alive());
}

#[test]
fn a_service_of_the_same_name_in_another_configuration_is_another() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").without_match().add();
    let other = rig.path("other.toml");
    fs::copy(rig.path("gpuctl.toml"), &other).unwrap();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    // For all that this configuration can tell, the process on the port may be this service, so it
    // is left alone.
    let stop = rig.gpuctl("stop vidi --config").arg(&other).run();
    stop.exits(6).stderr_has("not proven");
    assert!(vidi.is_healthy());
}

#[test]
fn a_link_to_the_configuration_is_the_same_configuration() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").without_match().add();
    let link = rig.path("link.toml");
    std::os::unix::fs::symlink(rig.path("gpuctl.toml"), &link).unwrap();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let stop = rig.gpuctl("stop vidi --config").arg(&link).run();
    stop.succeeds().stdout_has("stopped vidi").progress();
    rig.assert_no_process_of(&vidi);
}

#[test]
fn the_workers_of_a_server_started_by_hand_end_with_it() {
    let rig = Rig::new();
    let worker = rig.mark("worker");
    let flags = format!("--ignore-term --fork 2 --worker-name {worker}");
    let vidi = rig.native("vidi").vram(4000).server(&flags).set("stop_timeout", "200ms").add();
    let _server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    assert_eq!(rig.card.claims().len(), 2);
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["vidi"]["used_mb"], 4000);
    let stop = rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi");
    stop.stderr_has("killed");
    assert_eq!(rig.card.claims(), []);
}
