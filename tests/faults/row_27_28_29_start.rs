//! Tests of what a detached service inherits, and of starts that come to nothing (rows 27 to 29).

use rig::{Rig, Script};
use rustix::fs::FlockOperation;
use std::fs::File;

const SHAPES: [Script; 5] =
    [Script::Foreground, Script::Background, Script::Detached, Script::Daemon, Script::File];

#[test]
fn row_27_a_detached_service_inherits_no_lock() {
    for shape in SHAPES {
        let rig = Rig::new();
        let vidi = rig.native("vidi").script(shape).add();
        let lock = rig.file("a.lock", "");
        // flock(1) hands its descriptor on to the command, and the lock lasts as long as any
        // process has it.
        let locked = format!("flock {} gpuctl start vidi", lock.display());
        rig.shell(&locked).run().succeeds().stdout_has("started vidi").progress();
        assert!(vidi.is_healthy());
        let lock = File::open(lock).unwrap();
        let taken = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive);
        assert!(taken.is_ok(), "{shape:?} still holds it");
        // The service does not hold gpuctl's own lock either: the next command finds it free.
        rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    }
}

#[test]
fn row_28_a_command_substitution_returns_as_soon_as_the_service_is_ready() {
    for shape in SHAPES {
        let rig = Rig::new();
        let vidi = rig.native("vidi").script(shape).add();
        let script = r#"x=$(gpuctl start vidi 2>&1) && echo "<$x>""#;
        rig.shell(script).run().succeeds().stdout_has("started vidi");
        assert!(vidi.is_healthy(), "{shape:?}");
    }
}

#[test]
fn row_28_nor_is_any_other_descriptor_kept_open() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    // Descriptor 7 is the rig's own pipe: the run would fail if a process kept it open.
    let script = "gpuctl start vidi 7>&1 8>&2 >/dev/null 2>&1";
    rig.shell(script).run().succeeds();
    assert!(vidi.is_healthy());
}

#[test]
fn row_29_a_start_that_exits_at_once_is_told_with_its_code_and_the_tail_of_its_log() {
    let rig = Rig::new();
    // The failure is reported before the start_timeout is over, which is longer than the rig waits.
    let vidi = rig.native("vidi").server("--exit-after 0s --exit-code 3 --warmup 1h").add();
    let start = rig.gpuctl("start vidi --quiet").run().fails("start_failed");
    start.stderr_has("vidi: its start command exited with code 3").stderr_has("logs/vidi.log");
    rig.assert_no_process_of(&vidi);

    let words: Vec<String> = (1..=40).map(|number| format!("echo line {number}")).collect();
    rig.program("start-vidi", &format!("{}\nexit 3", words.join("\n")));
    rig.set("services.vidi.start", "start-vidi");
    let error = rig.gpuctl("start vidi --json --quiet").run().fails("start_failed").json();
    let log = error["error"]["details"]["log"].as_array().unwrap();
    assert_eq!((log.len(), &log[14]), (15, &"line 40".into()));
}
