//! Tests of output that nobody reads or for which there is no room (row 43).

use rig::{Rig, on_both};

#[test]
fn row_43_closed_and_full_outputs_are_no_panic() {
    let rig = Rig::new();
    rig.native("vidi").phases([2]).add();
    for command in [
        "status",
        "status --json",
        "can-fit 100",
        "prepare-phase 2 --dry-run",
        "config show",
        "config schema",
        "--help",
        "--version",
    ] {
        for closed in [">&-", "2>&-", ">&- 2>&-", "2>/dev/full", ">&- <&-", "| true"] {
            let script = format!("gpuctl {command} {closed}; true");
            let told = rig.shell(&script).run().succeeds().text();
            assert!(!told.contains("panicked"), "{script}");
        }
    }
    for command in ["status", "can-fit 100", "config show", "config schema"] {
        let full = rig.shell(&format!("gpuctl {command} >/dev/full")).run();
        full.fails("io").stderr_has("cannot write to stdout");
    }
    // With `--json` the error belongs on the same stdout, which takes nothing.
    let full = rig.shell("gpuctl status --json >/dev/full").run();
    full.fails("io").stderr_has("cannot write to stdout");
}

#[test]
fn row_43_a_failure_keeps_its_code_where_it_cannot_be_told() {
    let rig = Rig::new();
    for output in [">&- 2>&-", "2>&-", ">/dev/full 2>&1", "2>/dev/full"] {
        rig.shell(&format!("gpuctl start nobody {output}")).run().fails("not_found");
    }
    let full = rig.shell("gpuctl start nobody --json >/dev/full").run();
    full.fails("not_found").stderr_has("nobody");
    rig.shell("gpuctl no-such-command 2>/dev/full").run().fails("usage");
}

#[test]
fn row_43_the_work_is_done_and_the_next_command_finds_nothing_locked() {
    for (output, code) in [(">/dev/full", 74), (">&-", 0), ("2>/dev/full", 0), (">&- 2>&-", 0)] {
        let rig = Rig::new();
        let vidi = rig.native("vidi").phases([2]).add();
        // The output is of no interest here, only that nothing panics.
        let script = format!("{{ gpuctl prepare-phase 2 {output}; }} >out 2>err; echo $?");
        rig.shell(&script).run().succeeds().stdout(&format!("{code}\n"));
        let err = std::fs::read_to_string(rig.path("home/err")).unwrap();
        assert!(!err.contains("panicked"), "{err}");
        assert!(vidi.is_healthy(), "{output}");
        rig.gpuctl("release-all").run().succeeds().stdout_has("stopped vidi").progress();
    }
}

#[test]
fn row_43_a_lock_whose_token_nobody_gets_to_know_is_given_back() {
    // This makes descriptor 4 a pipe whose reader has gone.
    let gone = "mkfifo pipe; exec 3<>pipe; exec 4>pipe; exec 3<&-; ";
    on_both(|rig, _| {
        for (before, output) in [("", ">/dev/full"), (gone, ">&4")] {
            for words in ["lock acquire me", "lock acquire me --quiet"] {
                let acquire =
                    rig.shell(&format!("rm -f pipe; {before}exec gpuctl {words} {output}")).run();
                acquire.fails("io").stderr_has("cannot write to stdout");
                rig.assert_lock_was_given_back();
            }
            let script = format!("rm -f pipe; {before}exec gpuctl lock acquire me --json {output}");
            rig.shell(&script).run().fails("io").stderr_has("cannot write to stdout");
            rig.assert_lock_was_given_back();
        }
    });
}

#[test]
fn row_43_the_lock_is_given_back_whatever_becomes_of_the_output() {
    on_both(|rig, _| {
        let vidi = rig.native("vidi").phases([2]).add();
        for output in [">/dev/full", ">&-", "2>/dev/full", ">&- 2>&-", "| true"] {
            rig.shell(&format!("{{ gpuctl prepare-phase 2 {output}; }} 2>/dev/null; true"))
                .run()
                .succeeds()
                .text();
            assert!(vidi.is_healthy(), "{output}");
            rig.assert_lock_was_given_back();
            rig.gpuctl("stop vidi --no-wait")
                .run()
                .succeeds()
                .stdout_has("stopped vidi")
                .progress();
        }
    });
}
