//! Tests that the doctor finds faults of what native services are started with and found by.

use super::{DOCTOR, Machine, finds};
use rig::{Rig, until};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_start_command_that_cannot_be_run_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let plain = rig.file("plain.sh", "#!/bin/sh\n");
    let moved = rig.program("moved.sh", "");
    fs::write(&moved, "#!/nowhere/venv/bin/python\n").unwrap();
    let (plain, moved) = (plain.display(), moved.display());
    let folder = rig.path("bin");
    let folder = folder.display();
    for (command, message, fix) in [
        ("/nowhere/start.sh".to_owned(), "`/nowhere/start.sh` does not exist", "restore it"),
        (
            "exec env A=1 /nowhere/start.sh --x".to_owned(),
            "`/nowhere/start.sh` does not exist",
            "services.vidi.start",
        ),
        (format!("{plain} &"), "plain.sh` cannot be executed: Permission denied", "chmod +x"),
        (format!("{moved}"), "its interpreter /nowhere/venv/bin/python is missing", "restore it"),
        (format!("{folder}"), "bin` cannot be executed: it is not a file", "services.vidi.start"),
        (
            "no-such-program --port 1".to_owned(),
            "there is no program `no-such-program` in the PATH",
            "install",
        ),
    ] {
        rig.set("services.vidi.start", command);
        finds(machine.doctor(), &[("fail", "native.start vidi", message, fix)]);
    }
    for good in ["cd /nowhere && ./x", "sh -c true", "$HOME_OF_NOBODY/x", "plain=1 moved.sh"] {
        fs::write(rig.path("bin/moved.sh"), "#!/bin/sh\n").unwrap();
        rig.set("services.vidi.start", good.replace('$', "$$"));
        finds(machine.doctor(), &[]);
    }
}

#[test]
fn without_a_path_in_the_environment_programs_are_found_where_they_would_be() {
    let rig = Rig::new();
    rig.set("gpu.total_mb", 24576);
    rig.native("vidi").set("start", "sleep 1000").add();
    finds(rig.gpuctl(DOCTOR).env_remove("PATH"), &[]);
    rig.set("services.vidi.start", "no-such-program");
    let message = "there is no program `no-such-program` in /usr/local/bin:/bin:/usr/bin";
    let fault = ("fail", "native.start vidi", message, "install it");
    finds(rig.gpuctl(DOCTOR).env_remove("PATH"), &[fault]);
}

#[test]
fn a_relative_start_command_is_looked_for_in_the_services_folder() {
    let machine = Machine::new();
    let rig = &machine.rig;
    rig.set("services.vidi.start", "./start.sh");
    rig.set("services.vidi.cwd", rig.path("bin").to_str().unwrap());
    finds(machine.doctor(), &[("fail", "native.start vidi", "bin/./start.sh", "restore it")]);
    rig.program("start.sh", "");
    finds(machine.doctor(), &[]);
}

#[test]
fn a_folder_and_a_stop_command_that_are_missing_are_found() {
    let machine = Machine::new();
    machine.rig.set("services.vidi.cwd", "/nowhere/ComfyUI");
    machine.rig.set("services.vidi.stop", "/nowhere/stop.sh");
    let folder =
        ("fail", "native.folder vidi", "there is no folder /nowhere/ComfyUI", "services.vidi.cwd");
    let stop = ("fail", "native.stop vidi", "/nowhere/stop.sh", "services.vidi.stop");
    finds(machine.doctor(), &[folder, stop]);
}

#[test]
fn a_stranger_that_a_pattern_matches_is_found_also_while_the_service_runs() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let mark = rig.mark("log");
    rig.set("services.vidi.match", format!("simserver.*{}|{mark}", rig.mark("vidi")));
    let stranger = rig.by_hand(&format!("sh -c 'while :; do sleep 1000; done' {mark}"));
    let command_line = format!("/proc/{}/cmdline", stranger.pid());
    until("it runs", || fs::read_to_string(&command_line).unwrap().starts_with("sh\0-c\0while"));
    let named = format!("{} (sh -c", stranger.pid());
    let taken = ("warn", "native.strangers vidi", named.as_str(), "services.vidi.match");
    let report = finds(machine.doctor(), &[taken]);
    assert!(
        report.to_string().contains("gpuctl leaves them alone, whatever it does with vidi"),
        "{report:#}"
    );

    // The service is started under a pattern that finds nothing else, and so proven to be the
    // service.
    rig.set("services.vidi.match", format!("simserver.*{}", rig.mark("vidi")));
    rig.gpuctl("start vidi --quiet").run().succeeds();
    rig.set("services.vidi.match", format!("simserver.*{}|{mark}", rig.mark("vidi")));
    finds(machine.doctor(), &[taken]);
}

#[test]
fn a_pattern_that_finds_another_services_start_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let token = rig.token().to_owned();
    rig.native("second").add();
    rig.set("services.vidi.match", format!("simserver.*name .*{token}"));
    let told =
        ("fail", "native.match vidi", "finds the start command of service", "services.vidi.match");
    finds(machine.doctor(), &[told]);
    rig.gpuctl("config check").run().fails("config").stderr_has("services.vidi.match");

    // This pattern matches only the name of the program, with which both services are started.
    let program = rig.program("serve", "").display().to_string();
    rig.set("services.vidi.start", format!("{program} vidi"));
    rig.set("services.second.start", format!("{program} second"));
    rig.set("services.vidi.match", format!("{token}.*serve"));
    let told = ("warn", "native.match vidi", "finds the program of service", "services.vidi.match");
    finds(machine.doctor(), &[told]);
    let checked = rig.gpuctl("config check --json").run().succeeds().json();
    assert_eq!(checked["valid"], true);
    assert!(checked["warnings"][0].as_str().unwrap().contains("services.vidi.match"), "{checked}");
}

#[test]
fn permissions_of_a_script_are_judged_as_they_are_for_the_caller() {
    let machine = Machine::new();
    let script = machine.rig.program("start.sh", "");
    machine.rig.set("services.vidi.start", script.to_str().unwrap());
    finds(machine.doctor(), &[]);
    fs::set_permissions(&script, Permissions::from_mode(0o600)).unwrap();
    finds(machine.doctor(), &[("fail", "native.start vidi", "cannot be executed", "chmod +x")]);
}
