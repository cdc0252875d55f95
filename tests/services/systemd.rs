//! Tests of systemd units: what `systemctl` says of them, what it is asked, and how it fails. Most
//! run in the rig's own systemd; what only the real one says is repeated in its words.

use rig::{Fault, Rig, Signal, until};
use serde_json::{Value, json};
use std::fs;
use toml::Table;

fn service(rig: &Rig, name: &str) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"][name].clone()
}

fn has(text: &Value, part: &str) -> bool {
    text.as_str().is_some_and(|text| text.contains(part))
}

fn systemctl(rig: &Rig, verb: &str, unit: &str) {
    rig.shell(&format!("systemctl {verb} -- {}.service", rig.mark(unit))).run().succeeds();
}

/// Configures a unit without a health check, so that what systemd says is all that gpuctl knows.
fn without_health(rig: &Rig, service: &str, unit: &str) {
    let settings = format!("type = 'systemd'\nunit = '{unit}'\nvram_mb = 1000");
    rig.set(&format!("services.{service}"), settings.parse::<Table>().unwrap());
}

/// Units by name, each with what systemd 252 printed for it, and with the state and the detail that
/// follow from that.
const REAL: &[(&str, &str, &str, Option<&str>)] = &[
    (
        "ok",
        "MainPID=19628\nResult=success\nNRestarts=0\nExecMainStatus=0\nControlGroup=/app.slice/ok.service\n\
         Id=ok.service\nLoadState=loaded\nActiveState=active\nSubState=running\n\
         InactiveExitTimestampMonotonic=1000",
        "ready",
        None,
    ),
    (
        "fails",
        "MainPID=0\nResult=exit-code\nNRestarts=0\nExecMainStatus=3\nControlGroup=\nId=fails.service\n\
         LoadState=loaded\nActiveState=failed\nSubState=failed\nInactiveExitTimestampMonotonic=1000",
        "stopped",
        Some("failed: exit-code, status 3"),
    ),
    (
        "loops",
        "MainPID=0\nResult=exit-code\nNRestarts=4\nExecMainStatus=3\nControlGroup=\nId=loops.service\n\
         LoadState=loaded\nActiveState=activating\nSubState=auto-restart\n\
         InactiveExitTimestampMonotonic=1000",
        "error",
        Some("restarts in a loop: failed: exit-code, status 3, 4 restarts"),
    ),
    (
        "stubborn",
        "MainPID=19637\nResult=success\nNRestarts=0\nExecMainStatus=0\nControlGroup=/app.slice/stubborn.service\n\
         Id=stubborn.service\nLoadState=loaded\nActiveState=deactivating\nSubState=stop-sigterm\n\
         InactiveExitTimestampMonotonic=1000",
        "stopping",
        Some("the unit is being stopped"),
    ),
    (
        "masked",
        "MainPID=0\nResult=success\nNRestarts=0\nExecMainStatus=0\nControlGroup=\nId=masked.service\n\
         LoadState=masked\nActiveState=inactive\nSubState=dead\nInactiveExitTimestampMonotonic=0",
        "stopped",
        Some("the unit is masked"),
    ),
    (
        "bad",
        "MainPID=0\nResult=success\nNRestarts=0\nExecMainStatus=0\nControlGroup=\nId=bad.service\n\
         LoadState=bad-setting\nActiveState=inactive\nSubState=dead\nInactiveExitTimestampMonotonic=0",
        "stopped",
        Some("there is no usable systemd unit bad.service (bad-setting)"),
    ),
    (
        "coming",
        "MainPID=19646\nResult=success\nNRestarts=0\nExecMainStatus=0\nControlGroup=/app.slice/coming.service\n\
         Id=coming.service\nLoadState=loaded\nActiveState=activating\nSubState=start\n\
         InactiveExitTimestampMonotonic=9000000000000000",
        "starting",
        Some("systemd says activating (start)"),
    ),
    (
        "nope",
        "MainPID=0\nResult=success\nNRestarts=0\nExecMainStatus=0\nControlGroup=\nId=nope.service\n\
         LoadState=not-found\nActiveState=inactive\nSubState=dead\nInactiveExitTimestampMonotonic=0",
        "stopped",
        Some("there is no usable systemd unit nope.service (not-found)"),
    ),
];

#[test]
fn what_the_real_systemctl_shows_is_understood() {
    let rig = Rig::new();
    let blocks: Vec<&str> = REAL.iter().map(|(_, block, _, _)| *block).collect();
    let shown = rig.file("shown", &(blocks.join("\n\n") + "\n"));
    rig.program("systemctl", &format!("cat '{}'", shown.display()));
    for (name, ..) in REAL {
        without_health(&rig, name, name);
    }
    let status = rig.gpuctl("status --json").run().succeeds().json();
    for (name, _, state, detail) in REAL {
        let service = &status["services"][name];
        assert_eq!((&service["state"], &service["detail"]), (&json!(state), &json!(detail)));
    }
    assert_eq!(status["services"]["ok"]["pids"], json!([19628]));
}

#[test]
fn a_masked_unit_cannot_be_started_and_systemds_reason_is_told() {
    let rig = Rig::new();
    let (_, shown, ..) = REAL.iter().find(|(name, ..)| *name == "masked").unwrap();
    let shown = rig.file("shown", shown);
    let reason = "Failed to start masked.service: Unit masked.service is masked.";
    let answer = format!(
        "case \" $* \" in *' show '*) cat '{}' ;; *) echo '{reason}' >&2; exit 1 ;; esac",
        shown.display()
    );
    rig.program("systemctl", &answer);
    without_health(&rig, "masked", "masked.service");
    rig.gpuctl("start masked --quiet").run().fails("start_failed").stderr_has(reason);
}

#[test]
fn a_unit_that_runs_is_starting_until_it_is_healthy_and_stopped_when_it_is_not_there() {
    let rig = Rig::new();
    let vllm = rig.unit("vllm").set("start_timeout", "1h").server("--warmup 400ms").add();
    assert_eq!(service(&rig, "vllm")["state"], "stopped");
    rig.unit("slow").set("start_timeout", "1h").server("--warmup 1h").add();
    systemctl(&rig, "start", "slow");
    until("it answers", || has(&service(&rig, "slow")["detail"], "503"));
    assert_eq!(service(&rig, "slow")["state"], "starting");
    systemctl(&rig, "start", "vllm");
    until("it is well", || vllm.is_healthy());
    assert_eq!(service(&rig, "vllm")["state"], "ready");
    systemctl(&rig, "stop", "vllm");
    assert_eq!(service(&rig, "vllm")["state"], "stopped");
}

#[test]
fn a_unit_that_is_unhealthy_beyond_its_time_is_in_error() {
    let rig = Rig::new();
    rig.unit("vllm").set("start_timeout", "1s").server("--health 500").add();
    rig.gpuctl("start vllm --quiet").run().fails("timeout").stderr_has("gpuctl stop vllm");
    until("its time is over", || service(&rig, "vllm")["state"] == "error");
    assert!(has(&service(&rig, "vllm")["detail"], "500"));
}

#[test]
fn a_unit_that_fails_is_told_with_its_code_and_the_end_of_its_journal() {
    let rig = Rig::new();
    rig.unit("vllm").set("start_timeout", "1h").server("--nonsense").add();
    let start = rig.gpuctl("start vllm --quiet").run().fails("start_failed");
    start
        .stderr_has("vllm: failed: exit-code, status 2")
        .stderr_has("unexpected argument '--nonsense'")
        .stderr_has("its log: gpuctl logs vllm");
    let vllm = service(&rig, "vllm");
    assert_eq!((&vllm["state"], &vllm["used_mb"]), (&json!("stopped"), &json!(0)));
    assert_eq!(vllm["detail"], "failed: exit-code, status 2");
}

#[test]
fn a_unit_that_restarts_in_a_loop_is_found_out_before_its_time_is_over() {
    let rig = Rig::new();
    let server = "--warmup 1h --exit-after 20ms --exit-code 3";
    rig.unit("vllm").restarts().set("start_timeout", "1h").server(server).add();
    let start = rig.gpuctl("start vllm --quiet").run().fails("start_failed");
    start.stderr_has("vllm: restarts in a loop: failed: exit-code, status 3");
    until("status says so", || service(&rig, "vllm")["state"] == "error");
    rig.gpuctl("stop vllm").run().succeeds().stdout_has("stopped vllm").progress();
    assert_ne!(service(&rig, "vllm")["state"], "error");
}

#[test]
fn a_unit_that_is_being_stopped_is_shown_as_such() {
    let rig = Rig::new();
    let vllm = rig.unit("vllm").server("--term-delay 1h").add();
    rig.gpuctl("start vllm").run().succeeds().stdout_has("vllm").progress();
    let mut stop = rig.by_hand(&format!("systemctl stop -- {}.service", vllm.mark()));
    until("it is stopping", || service(&rig, "vllm")["state"] == "stopping");
    assert!(stop.is_alive());
    let kill = format!("systemctl kill --signal=KILL -- {}.service", vllm.mark());
    rig.shell(&kill).run().succeeds();
    until("it has stopped", || service(&rig, "vllm")["state"] == "stopped");
}

#[test]
fn a_unit_that_is_being_stopped_already_is_waited_for_and_not_in_the_way() {
    for command in ["stop vllm", "release-all", "prepare-phase 4", "start video --no-preempt"] {
        let rig = Rig::new();
        if !rig.systemd().has_control_groups() {
            return;
        }
        // The unit is more important than what needs its memory.
        let vllm = rig.unit("vllm").vram(20000).priority(90);
        let vllm = vllm.server("--term-delay 1h").add();
        rig.native("video").vram(20000).priority(10).phases([4]).add();
        rig.gpuctl("start vllm --quiet").run().succeeds().text();
        let _stop = rig.by_hand(&format!("systemctl stop -- {}.service", vllm.mark()));
        until("it is stopping", || service(&rig, "vllm")["state"] == "stopping");
        let waits = rig.gpuctl(command).spawn();
        until("it has seen that", || waits.stderr().contains("vllm"));
        assert_eq!(rig.card.used_mb(), 20000, "it holds its memory");
        rig.shell(&format!("systemctl kill --signal=KILL -- {}.service", vllm.mark()))
            .run()
            .succeeds();
        waits.wait().succeeds().stdout_has("vllm").progress();
        assert_eq!(service(&rig, "vllm")["state"], "stopped", "{command}");
        let starts = !command.contains("stop") && !command.contains("release");
        assert_eq!(rig.card.used_mb(), if starts { 20000 } else { 0 }, "{command}");
        rig.assert_no_out_of_memory();
    }
}

#[test]
fn a_unit_that_systemd_does_not_know_is_not_found() {
    let rig = Rig::new();
    rig.unit("vllm").phases([3]).not_installed().add();
    let vidi = rig.native("vidi").phases([2]).add();
    rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("started vidi").progress();
    for command in ["start vllm", "stop vllm", "prepare-phase 3", "prepare-phase 3 --dry-run"] {
        rig.gpuctl(command).run().fails("not_found").stderr_has("systemctl daemon-reload");
    }
    assert!(vidi.is_healthy());
    rig.gpuctl("release-all").run().succeeds().stdout_has("stopped vidi").progress();
}

#[test]
fn without_systemd_its_units_are_unknown_and_the_others_are_not() {
    let rig = Rig::new();
    rig.unit("vllm").phases([3]).add();
    rig.native("vidi").phases([2]).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").progress();
    rig.systemd().fails(Fault::NotBooted);
    for command in ["start vllm", "stop vllm", "prepare-phase 2", "release-all"] {
        rig.gpuctl(command).run().fails("unavailable").stderr_has("systemd cannot be reached");
    }
    let vllm = service(&rig, "vllm");
    assert_eq!((&vllm["state"], &vllm["used_mb"]), (&json!("unknown"), &Value::Null));
    assert!(has(&vllm["error"], "systemd cannot be reached"), "{vllm}");
    assert_eq!(service(&rig, "vidi")["state"], "ready");
}

#[test]
fn what_polkit_does_not_permit_is_a_matter_of_permission() {
    let rig = Rig::new();
    let vllm = rig.unit("vllm").add();
    rig.systemd().fails(Fault::NoPermission);
    let why = "Interactive authentication required";
    rig.gpuctl("start vllm --quiet").run().fails("permission").stderr_has(why);
    // A user who has the permission has started it; looking is permitted to everybody.
    fs::remove_file(rig.path("systemd/fault")).unwrap();
    systemctl(&rig, "start", "vllm");
    until("it is well", || vllm.is_healthy());
    rig.systemd().fails(Fault::NoPermission);
    assert_eq!(service(&rig, "vllm")["state"], "ready");
    for command in ["stop vllm --quiet", "stop vllm --force --quiet", "release-all --quiet"] {
        let error = rig.gpuctl(command).arg("--json").run().fails("permission").json();
        assert!(has(&error["error"]["message"], why), "{error}");
    }
    assert!(vllm.is_healthy());
}

#[test]
fn a_unit_that_takes_no_notice_of_term_is_killed_after_its_stop_timeout() {
    let rig = Rig::new();
    // Without control groups nothing would be known of the server's child.
    let flags = match rig.systemd().has_control_groups() {
        true => "--ignore-term --fork 1",
        false => "--ignore-term",
    };
    let vllm = rig.unit("vllm").set("stop_timeout", "1s").server(flags).add();
    rig.gpuctl("start vllm").run().succeeds().stdout_has("vllm").progress();
    let stop = rig.gpuctl("stop vllm --json --quiet").run().succeeds().json();
    assert_eq!(stop["stopped"], json!(["vllm"]));
    assert_eq!(stop["steps"][0]["note"], "not gone within 1s, killed");
    rig.assert_no_process_of(&vllm);
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn a_forced_stop_kills_the_unit_at_once() {
    let rig = Rig::new();
    let vllm = rig.unit("vllm").set("stop_timeout", "1h").server("--term-delay 1h").add();
    rig.gpuctl("start vllm").run().succeeds().stdout_has("vllm").progress();
    rig.gpuctl("stop vllm --force").run().succeeds().stdout_has("stopped vllm").progress();
    rig.assert_no_process_of(&vllm);
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn systemd_is_asked_once_for_all_units_and_the_users_systemd_for_the_users() {
    let rig = Rig::new();
    rig.unit("one").add();
    rig.unit("two").add();
    rig.unit("absent").not_installed().add();
    rig.unit("mine").set("user", true).add();
    let name = |unit| format!("{}.service", rig.mark(unit));
    let mut calls = rig.systemctl_calls(|| drop(service(&rig, "one")));
    calls.sort();
    let [users, systems] = &calls[..] else { panic!("{calls:?}") };
    assert!(users.contains("--user show"), "{users}");
    assert!(users.ends_with(&format!("-- {}", name("mine"))), "{users}");
    assert!(systems.contains("--no-ask-password show"), "{systems}");
    let units = format!("-- {} {} {}", name("one"), name("two"), name("absent"));
    assert!(systems.ends_with(&units), "{systems}");

    let acts = rig.systemctl_calls(|| {
        rig.gpuctl("start mine").run().succeeds().stdout_has("mine").progress();
        rig.gpuctl("stop mine").run().succeeds().stdout_has("mine").progress();
    });
    let acts = |verb: &str| acts.iter().find(|call| call.contains(verb)).cloned().unwrap();
    assert!(acts(" start ").contains("--user start --no-block -- mine"), "{}", acts(" start "));
    assert!(acts(" stop ").contains("--user stop -- mine"), "{}", acts(" stop "));
}

#[test]
fn memory_is_told_to_the_unit_in_whose_control_group_it_is_held() {
    let rig = Rig::new();
    if !rig.systemd().has_control_groups() {
        return;
    }
    // Nothing but the control group connects the worker with the unit.
    let server = "--double-fork --worker-name engine-core";
    rig.unit("vllm").vram(12000).server(server).add();
    let other = rig.unit("vllm-2").vram(3000).add();
    rig.gpuctl("start vllm").run().succeeds().stdout_has("vllm").progress();
    rig.gpuctl("start vllm-2").run().succeeds().stdout_has("vllm-2").progress();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    let processes = status["vram"]["processes"].as_array().unwrap();
    let owner = |mb: u64| processes.iter().find(|p| p["memory_mb"] == mb).unwrap();
    assert_eq!(owner(12000)["service"], "vllm");
    assert_eq!(owner(3000)["service"], "vllm-2");
    assert_eq!(status["services"]["vllm"]["used_mb"], 12000);
    assert_ne!(owner(12000)["pid"], status["services"]["vllm"]["pids"][0]);
    // The worker is stopped with its unit, and its memory is waited for.
    rig.gpuctl("stop vllm").run().succeeds().stdout_has("freed 12000 MB").progress();
    assert_eq!(rig.card.used_mb(), 3000);
    assert!(other.is_healthy());
}

#[test]
fn a_systemctl_that_hangs_is_given_up_at_the_deadline() {
    let rig = Rig::new();
    rig.unit("vllm").add();
    rig.native("vidi").add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").progress();
    let asked = rig.path("asked");
    rig.program("systemctl", &format!(": >'{}'\nexec sleep 1000", asked.display()));
    let start = rig.gpuctl("start vllm").spawn();
    until("it asks", || asked.exists());
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert!(has(&status["services"]["vllm"]["error"], "did not answer within 5s"), "{status}");
    assert_eq!(status["services"]["vidi"]["state"], "ready");
    start.wait().fails("unavailable").stderr_has("did not answer within 5s");

    fs::remove_file(&asked).unwrap();
    let start = rig.gpuctl("start vllm").spawn();
    until("it asks", || asked.exists());
    start.signal(Signal::TERM);
    start.wait().exits(143).stderr_has("interrupted by signal 15");
}

#[test]
fn a_unit_is_taken_for_a_service_and_what_is_no_units_name_is_refused() {
    let rig = Rig::new();
    let vllm = rig.unit("vllm").add();
    rig.set("services.vllm.unit", vllm.mark());
    rig.gpuctl("start vllm").run().succeeds().stdout_has("started vllm").progress();
    for name in ["--user", "-H", "", "a b", "../a", "a;b.service", "vllm@.service", "vllm@"] {
        rig.set("services.vllm.unit", name);
        rig.gpuctl("status").run().fails("config").stderr_has("services.vllm.unit");
    }
    rig.set("services.vllm.unit", "vllm@0.service");
    rig.gpuctl("config check").run().succeeds().stdout_has("good");
}

/// Replaces `systemctl` by one whose stop succeeds but leaves the unit running; from then on, the
/// script `show` runs before each question for a unit's state, and may answer in its place.
fn left_behind_by_a_stop(rig: &Rig, show: &str) {
    let (stopped, real) = (rig.path("stopped"), rig.path("bin/systemctl.real"));
    fs::rename(rig.path("bin/systemctl"), &real).unwrap();
    let (stopped, real) = (stopped.display(), real.display());
    rig.program(
        "systemctl",
        &format!(
            "case \" $* \" in\n*' stop '*) : >'{stopped}'; exit 0 ;;\n*' show '*) if [ -e '{stopped}' ]; then {show}; fi ;;\nesac\n\
             exec '{real}' \"$@\""
        ),
    );
}

#[test]
fn what_a_stop_leaves_in_a_control_group_is_not_ended_where_systemd_cannot_be_asked_whose_it_is() {
    let gone = "echo 'Failed to connect to bus: Connection refused' >&2; exit 1";
    let hangs = "exec sleep 1000";
    // This one lets systemd say that the unit is up again, so nothing in its control group is a
    // leftover.
    let is_up = "true";
    for (show, code, why) in [
        (gone, "unavailable", "systemd cannot be reached: Failed to connect to bus"),
        (hangs, "unavailable", "did not answer within 5s"),
        (is_up, "stop_failed", "started it again as soon as it was stopped"),
    ] {
        let rig = Rig::new();
        let vllm = rig.unit("vllm").vram(4000).server("--fork 2").add();
        if !rig.systemd().has_control_groups() {
            return;
        }
        rig.gpuctl("start vllm --quiet").run().succeeds();
        let processes = rig.processes_of(&vllm);
        left_behind_by_a_stop(&rig, show);
        rig.gpuctl("stop vllm --quiet").run().fails(code).stderr_has(why);
        assert_eq!(rig.processes_of(&vllm), processes, "{show}");
        assert!(vllm.is_healthy(), "{show}");
        assert_eq!(rig.card.used_mb(), 4000, "{show}");
        fs::remove_file(rig.path("stopped")).unwrap();
        fs::rename(rig.path("bin/systemctl.real"), rig.path("bin/systemctl")).unwrap();
        rig.gpuctl("stop vllm --quiet").run().succeeds();
        rig.assert_no_process_of(&vllm);
    }
}
