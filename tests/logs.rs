//! Tests of `gpuctl logs`, which shows what a service has printed, wherever its manager keeps it.

use rig::{Rig, Signal, until};
use serde_json::json;

fn talkative(rig: &Rig) {
    rig.native("vidi").vram(1).without_health().without_match().set("start", TALK).add();
}

const TALK: &str =
    "for i in 1 2 3 4 5; do echo line $$i; done; echo 'the last' >&2; exec sleep 1000";

#[test]
fn the_last_lines_of_a_native_service_are_shown_as_text_and_as_json() {
    let rig = Rig::new();
    talkative(&rig);
    rig.gpuctl("start vidi --quiet").run().succeeds();
    rig.gpuctl("logs vidi -n 2").run().succeeds().stdout("line 5\nthe last\n");
    let all = rig.gpuctl("logs vidi").run().succeeds();
    all.stdout("line 1\nline 2\nline 3\nline 4\nline 5\nthe last\n");
    let json = rig.gpuctl("logs vidi -n 1 --json").run().succeeds().json();
    assert_eq!(json, json!({"service": "vidi", "lines": ["the last"]}));
    rig.gpuctl("logs vidi --json -f").run().fails("usage").stdout_has("--follow and --json");
}

#[test]
fn what_comes_is_followed_until_it_is_interrupted() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(1).without_match().without_health();
    let speak = rig.path("speak");
    let script = format!(
        "while ! test -e {}; do sleep 0.05; done; echo hello; exec sleep 1000",
        speak.display()
    );
    vidi.set("start", script).add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let follow = rig.gpuctl("logs vidi --follow").spawn();
    rig.file("speak", "");
    until("it is told", || follow.stdout() == "hello\n");
    follow.signal(Signal::INT);
    follow.wait().dies_of(2).ignores_stdout();
}

#[test]
fn a_service_that_was_never_started_has_no_log() {
    let rig = Rig::new();
    talkative(&rig);
    let refused = rig.gpuctl("logs vidi").run().fails("not_found");
    refused.stderr_has("vidi: it has no log: gpuctl has not started it").stderr_has("by hand");
    rig.gpuctl("logs vido").run().fails("not_found").stderr_has("did you mean \"vidi\"?");
}

#[test]
fn a_containers_log_is_told_by_its_engine_with_what_it_printed_as_errors() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").add();
    rig.gpuctl("start voice --quiet").run().succeeds();
    let engines = rig.docker(&["logs", voice.mark()]);
    let shown = rig.gpuctl("logs voice").run().succeeds().text();
    assert_eq!(shown.lines().count(), engines.lines().count(), "{shown:?} {engines:?}");
    rig.set("services.voice.container", "nobody");
    rig.gpuctl("logs voice").run().fails("not_found").stderr_has("nobody");
}

#[test]
fn a_units_log_is_asked_of_the_journal() {
    let rig = Rig::new();
    rig.unit("vllm").add();
    rig.program("journalctl", "echo \"$@\"");
    let logs = rig.gpuctl("logs vllm -n 7 -f").run().succeeds();
    logs.stdout_has("--lines 7 --no-pager --follow").stdout_has("--unit");
}
