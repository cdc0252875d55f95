//! Tests of `gpuctl run`: the service is made ready, the command runs under the lock, and its exit
//! code is passed on.

use rig::{Rig, Service, Signal, skip_or_fail, until, works};
use std::fs;

fn with_comfyui() -> (Rig, Service) {
    let rig = Rig::new();
    let comfyui = rig.native("comfyui").phases([4]).add();
    (rig, comfyui)
}

/// Returns a command that makes the file `ran`, which shows that it was run.
fn touching(rig: &Rig) -> String {
    format!("touch {}", rig.path("ran").display())
}

#[test]
fn the_command_runs_with_the_service_ready_and_its_streams_are_the_callers() {
    let (rig, comfyui) = with_comfyui();
    let url = comfyui.url("/health");
    rig.program(
        "ask",
        &format!("cat; echo complaint >&2; exec gpuctl status --check comfyui # {url}"),
    );
    let outcome =
        rig.shell("echo input | gpuctl run --quiet comfyui -- sh -c 'cat; echo complaint >&2'");
    outcome.run().succeeds().stdout("input\n").stderr_has("complaint\n");
    rig.gpuctl("run --quiet comfyui -- ask")
        .run()
        .succeeds()
        .stdout_has("busy")
        .stderr_has("complaint");
    let outcome = rig.gpuctl("run comfyui -- echo only this").run();
    outcome.succeeds().stdout("only this\n").progress();
    assert!(comfyui.is_healthy(), "the service runs on");
    rig.assert_free_and_alone();
}

#[test]
fn what_it_tells_itself_goes_to_stderr() {
    let (rig, _) = with_comfyui();
    let outcome = rig.gpuctl("run comfyui -- echo done").run();
    outcome.succeeds().stdout("done\n").stderr_has("comfyui");
}

#[test]
fn its_exit_code_is_passed_through() {
    let (rig, _) = with_comfyui();
    for code in [0, 1, 7, 76, 255] {
        rig.gpuctl("run --quiet comfyui -- sh -c").arg(format!("exit {code}")).run().exits(code);
        rig.assert_free_and_alone();
    }
    for signal in [2, 9, 15] {
        let run = rig.gpuctl("run --quiet comfyui -- sh -c").arg(format!("kill -{signal} $$"));
        run.run().exits(128 + signal);
        rig.assert_free_and_alone();
    }
}

#[test]
fn a_command_that_cannot_be_executed_is_told_from_one_that_is_not_there_and_stops_nothing() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").phases([2]).add();
    let comfyui = rig.native("comfyui").phases([4]).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").progress();
    let text = rig.file("text", "no program");
    rig.file("bin/unmarked", "#!/bin/sh\n");
    let moved = rig.program("moved", "");
    fs::write(moved, "#!/nowhere/venv/bin/python\n").unwrap();
    for (command, code, said) in [
        (text.to_str().unwrap(), 126, "cannot be executed"),
        ("/", 126, "cannot be executed"),
        (&format!("{}/x", text.display()), 126, "cannot be executed"),
        ("unmarked", 126, "cannot be executed"),
        ("no-such-program", 127, "there is no program `no-such-program` in the PATH"),
        ("moved", 127, "its interpreter /nowhere/venv/bin/python is missing"),
        ("/no/such/program", 127, "does not exist"),
        ("./bin/no-such-program", 127, "does not exist"),
    ] {
        let run = rig.gpuctl(&format!("run --quiet --phase 4 -- {command} argument"));
        run.run().exits(code).stderr_has(said);
        rig.assert_free_and_alone();
    }
    let document =
        rig.gpuctl("run --quiet --json --phase 4 -- no-such-program").run().exits(127).json();
    assert_eq!(document["error"]["exit_code"], 127);
    assert!(vidi.is_healthy());
    rig.assert_no_process_of(&comfyui);
}

#[test]
fn the_command_is_found_where_execvp_finds_it() {
    let (rig, _comfyui) = with_comfyui();
    let program = rig.program("found", "echo found");
    let folder = program.parent().unwrap().to_str().unwrap();
    fs::create_dir_all(rig.path("first/found")).unwrap();
    let first = rig.path("first");
    for path in [
        format!("{}:{folder}", first.display()),
        format!("{}:{folder}", program.display()),
        format!("/nowhere:{folder}"),
    ] {
        let run = rig.gpuctl("run --quiet comfyui -- found").env("PATH", &path).run();
        run.succeeds().stdout("found\n");
    }
    for word in ["found", "./found"] {
        let run = format!("run --quiet comfyui -- {word}");
        let script =
            format!("g=$(command -v gpuctl); cd {folder}; PATH=/nowhere: exec \"$g\" {run}");
        rig.shell(&script).run().succeeds().stdout("found\n");
    }
    rig.shell("g=$(command -v gpuctl); unset PATH; exec \"$g\" run --quiet comfyui -- true")
        .run()
        .succeeds();
}

#[test]
fn without_a_command_or_with_two_subjects_it_is_a_usage_error() {
    let (rig, comfyui) = with_comfyui();
    for (words, problem) in [
        ("run comfyui", "<CMD>..."),
        ("run comfyui --", "<CMD>..."),
        ("run -- true", "<SERVICE|--phase <PHASE>|--vram <SIZE>>"),
        ("run", "<SERVICE|--phase <PHASE>|--vram <SIZE>>"),
        ("run comfyui --phase 4 -- true", "--phase <PHASE>"),
        ("run comfyui true", "write: gpuctl run comfyui -- true"),
        ("run --wait 1s --no-wait comfyui -- true", "--no-wait"),
        ("run --grace soon comfyui -- true", "--grace: \"soon\""),
        ("run --wait never comfyui -- true", "--wait: \"never\""),
    ] {
        rig.gpuctl(words).run().fails("usage").stderr_has(problem);
    }
    rig.assert_no_process_of(&comfyui);
}

#[test]
fn where_the_service_cannot_be_made_ready_the_command_is_not_run() {
    let rig = Rig::new();
    rig.native("huge").vram(1_000_000).add();
    rig.native("broken").server("--exit-at-once 3").add();
    rig.native("crashes").set("start", "echo no model >&2; exit 3").add();
    let slow = rig.native("slow").server("--warmup 1h").set("start_timeout", "300ms").add();
    let touch = touching(&rig);
    for (subject, name) in [
        ("huge", "insufficient_vram"),
        ("nobody", "not_found"),
        ("--phase 9", "not_found"),
        ("crashes", "start_failed"),
        ("slow", "timeout"),
    ] {
        let outcome = rig.gpuctl(&format!("run --quiet {subject} -- {touch}")).run().fails(name);
        drop(outcome.stderr_has("gpuctl: "));
        assert!(!rig.path("ran").exists(), "{subject}");
        rig.assert_free_and_alone();
    }
    drop(slow);
}

#[test]
fn while_another_holds_the_lock_the_command_is_not_run() {
    let (rig, comfyui) = with_comfyui();
    let touch = touching(&rig);
    let token = rig.gpuctl("lock acquire somebody --ttl 60").run().succeeds().text();
    for waiting in ["--no-wait", "--wait 200ms"] {
        let run = rig.gpuctl(&format!("run {waiting} comfyui -- {touch}"));
        run.run().fails("lock_busy").stderr_has("held by somebody");
    }
    rig.assert_no_process_of(&comfyui);
    assert!(!rig.path("ran").exists());
    let run = rig.gpuctl(&format!("run comfyui -- {touch}")).spawn();
    until("it waits", || run.stderr().contains("waiting for the GPU lock"));
    assert!(!rig.path("ran").exists());
    rig.gpuctl(&format!("lock release --token {token}")).run().succeeds().stdout_has("released");
    run.wait().succeeds().progress();
    assert!(rig.path("ran").exists());
}

#[test]
fn interrupted_before_the_command_runs_it_is_not_started() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let rig = Rig::new();
        rig.native("slow").server("--warmup 1h").add();
        let run = rig.gpuctl(&format!("run slow -- {}", touching(&rig))).spawn();
        until("the service comes up", || rig.card.used_mb() > 0);
        run.signal(signal);
        run.wait().exits(code).stderr_has("interrupted by signal");
        assert!(!rig.path("ran").exists());
        rig.assert_free_and_alone();
    }
}

#[test]
fn the_command_is_told_the_lock_and_the_services() {
    let rig = Rig::new();
    rig.native("comfyui").phases([4]).add();
    rig.native("ollama").phases([4]).add();
    rig.set("phases.4", "video");
    let print = "echo $GPUCTL_LOCK_TOKEN $GPUCTL_FENCE $GPUCTL_SERVICE $GPUCTL_CONFIG";
    let mut fences = Vec::new();
    for (subject, services) in [
        ("comfyui", "comfyui"),
        ("--phase 4", "comfyui,ollama"),
        ("--phase video", "comfyui,ollama"),
    ] {
        let run = rig.gpuctl(&format!("run --quiet {subject} -- sh -c")).arg(print).run();
        let text = run.succeeds().text();
        let words: Vec<&str> = text.split_whitespace().collect();
        let [token, fence, service, config] = words[..] else { panic!("{text}") };
        assert!(token.len() == 32 && token.bytes().all(|b| b.is_ascii_hexdigit()), "{token}");
        assert_eq!((service, config), (services, rig.path("gpuctl.toml").to_str().unwrap()));
        fences.push(fence.parse::<u64>().unwrap());
    }
    assert!(fences.is_sorted_by(|a, b| a < b), "{fences:?}");
}

#[test]
fn lower_priorities_make_room_and_higher_ones_do_not() {
    let rig = Rig::new();
    let low = rig.native("low").vram(18000).priority(1).phases([1]).add();
    let high = rig.native("high").vram(18000).priority(9).phases([2]).add();
    rig.set("phases.1", "crawl");
    rig.gpuctl("run --quiet low -- true").run().succeeds();
    rig.gpuctl("run --quiet high -- true").run().succeeds();
    rig.assert_no_process_of(&low);
    let run = rig.gpuctl(&format!("run low -- {}", touching(&rig))).run();
    run.fails("insufficient_vram").stderr_has("high");
    assert!(high.is_healthy() && !rig.path("ran").exists());
    rig.gpuctl("run --quiet --phase crawl -- true").run().succeeds();
    assert!(low.is_healthy());
    rig.assert_no_process_of(&high);
    rig.assert_no_out_of_memory();
}

#[test]
fn the_lock_shows_the_service_and_the_service_is_busy_while_the_command_runs() {
    let (rig, _) = with_comfyui();
    rig.program("work", "echo working; until [ -e done ]; do sleep 0.05; done");
    let run = rig.gpuctl("run --quiet comfyui -- work").spawn();
    until("it works", || run.stdout().contains("working"));
    rig.gpuctl("lock status").run().exits(1).stdout_has("comfyui");
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["comfyui"]["state"], "busy");
    assert_eq!(status["lock"]["holder"], "comfyui");
    rig.gpuctl("stop comfyui --no-wait").run().fails("lock_busy").stderr_has("comfyui");
    rig.file("home/done", "");
    run.wait().succeeds().stdout("working\n");
    rig.assert_free_and_alone();
}

#[test]
fn a_command_is_run_where_the_callers_process_group_is_in_another_pid_namespace() {
    let rig = Rig::new();
    let apart = "unshare --user --map-root-user --pid --fork --mount-proc";
    if !works("unshare", &apart.split(' ').skip(1).chain(["true"]).collect::<Vec<_>>()) {
        return skip_or_fail("namespaces", "PID namespace");
    }
    let run = rig.shell(&format!("{apart} gpuctl run --vram 1 --quiet -- sh -c 'exit 7'"));
    run.run().exits(7);
}
