//! Tests of `gpuctl history`: every acting command leaves its start, its steps, its result and its
//! duration.

use rig::{Display, Rig, Signal, Trial, until};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

fn log(rig: &Rig) -> PathBuf {
    rig.state_dir().join("history.jsonl")
}

/// Returns the calls that are known, oldest first.
fn runs(rig: &Rig) -> Vec<Value> {
    let document = rig.gpuctl("history --json -n 1000").run().succeeds().json();
    document["runs"].as_array().unwrap().clone()
}

/// Returns the steps of a call as text, such as "stop vidi, reclaim".
fn steps(run: &Value) -> String {
    let step = |step: &Value| {
        let words = [&step["action"], &step["service"]];
        words.iter().filter_map(|word| word.as_str()).collect::<Vec<_>>().join(" ")
    };
    run["steps"].as_array().unwrap().iter().map(step).collect::<Vec<_>>().join(", ")
}

/// Adds a line to the log that is so long that the next one begins a new file.
fn fill(rig: &Rig) {
    let text = fs::read_to_string(log(rig)).unwrap();
    fs::write(log(rig), format!("{text}{}\n", " ".repeat(1024 * 1024))).unwrap();
}

#[test]
fn each_acting_command_leaves_its_steps_its_result_and_its_duration() {
    let rig = Rig::new();
    rig.native("vidi").phases([2]).priority(40).vram(4000).add();
    rig.native("comfyui").phases([4]).priority(100).vram(20000).add();
    rig.set("phases.4", "video");
    rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("vidi").progress();
    rig.gpuctl("start comfyui").run().succeeds().stdout_has("comfyui").progress();
    rig.gpuctl("start vidi -q").run().fails("insufficient_vram").stderr_has("gpuctl: ");
    rig.gpuctl("run comfyui -- sh -c").arg("exit 7").run().exits(7).progress();
    rig.gpuctl("stop comfyui --force").run().succeeds().stdout_has("comfyui").progress();
    rig.gpuctl("prepare-phase video").run().succeeds().stdout_has("comfyui").progress();
    rig.gpuctl("release-all").run().succeeds().stdout_has("comfyui").progress();
    rig.gpuctl("release-all").run().succeeds().stdout_has("nothing to do").progress();
    let found: Vec<_> = runs(&rig)
        .iter()
        .map(|run| {
            let what = ["command", "subject"].map(|key| run[key].as_str().unwrap().to_owned());
            assert_eq!(run["state"], "ended");
            assert!(run["elapsed_ms"].is_u64() && run["began"].is_string(), "{run}");
            (what.join(" "), run["exit_code"].as_i64().unwrap(), steps(run))
        })
        .collect();
    let expected = [
        ("prepare-phase 2", 0, "start vidi"),
        ("start comfyui", 0, "stop vidi, reclaim, start comfyui"),
        ("start vidi", 3, ""),
        ("run comfyui: sh", 7, "run"),
        ("stop comfyui", 0, "kill comfyui, reclaim"),
        ("prepare-phase 4 (video)", 0, "start comfyui"),
        ("release-all ", 0, "stop comfyui, reclaim"),
        ("release-all ", 0, ""),
    ];
    assert_eq!(
        found,
        expected.map(|(what, code, steps)| (what.to_owned(), code, steps.to_owned()))
    );
    let refused = &runs(&rig)[2];
    assert!(refused["error"].as_str().unwrap().contains("MB"), "{refused}");
    assert_eq!(runs(&rig)[1]["steps"][1]["memory_mb"], 4000);

    let text = rig.gpuctl("history").run().succeeds().text();
    for line in [
        "start comfyui  done in ",
        "stopped vidi ",
        "memory back (4000 MB) ",
        "start vidi  exit 3 after ",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn trials_of_the_canary_and_what_brings_production_back_are_there_too() {
    let trial = Trial::native();
    trial.run().arg("-q").run().succeeds().stdout_has("passed");
    trial
        .rig
        .gpuctl("canary run --set vllm_memory_util=0.01 -q")
        .run()
        .exits(1)
        .stdout_has("vllm_memory_util");
    trial.rig.gpuctl("canary recover -q").run().succeeds().stdout_has("nothing to recover");
    let found = runs(&trial.rig);
    let told = found.iter().skip(1).map(|run| {
        (run["command"].as_str().unwrap(), run["exit_code"].as_i64().unwrap(), steps(run))
    });
    let expected = [
        (
            "canary run",
            0,
            "stop vllm, reclaim, start the canary, test the canary, stop the canary, start vllm",
        ),
        ("canary run", 1, ""),
        ("canary recover", 0, ""),
    ];
    assert!(
        told.eq(expected.map(|(what, code, steps)| (what, code, steps.to_owned()))),
        "{found:?}"
    );
}

#[test]
fn what_changes_nothing_leaves_nothing() {
    let rig = Rig::new();
    rig.native("vidi").phases([2]).add();
    rig.gpuctl("history").run().succeeds().stdout("nothing yet\n");
    rig.gpuctl("prepare-phase 2 --dry-run").run().succeeds().stdout_has("would start vidi");
    rig.gpuctl("start nobody").run().fails("not_found").stderr_has("nobody");
    rig.gpuctl("status -q").run().succeeds().stdout_has("vidi");
    assert_eq!(runs(&rig), Vec::<Value>::new());
    assert!(!log(&rig).exists());
}

#[test]
fn a_call_that_is_at_work_is_told_from_one_that_was_killed() {
    let rig = Rig::new();
    rig.native("vidi").phases([2]).add();
    rig.native("slow").server("--warmup 1h").add();
    let working = rig.gpuctl("prepare-phase 2").run();
    working.succeeds().stdout_has("vidi").progress();
    let start = rig.gpuctl("start slow").spawn();
    until("it starts", || start.stderr().contains("starting slow"));
    assert_eq!(runs(&rig)[1]["state"], "running");
    rig.gpuctl("history").run().succeeds().stdout_has("start slow  in progress");
    start.signal(Signal::KILL);
    start.wait().dies_of(9).stderr_has("starting slow");
    assert_eq!(
        (&runs(&rig)[1]["state"], &runs(&rig)[1]["exit_code"]),
        (&"lost".into(), &Value::Null)
    );
    rig.gpuctl("history").run().succeeds().stdout_has("start slow  never finished");
}

#[test]
fn the_last_calls_and_those_since_a_time_are_shown() {
    let rig = Rig::new();
    rig.native("vidi").add();
    for _ in 0..3 {
        rig.gpuctl("release-all").run().succeeds().stdout_has("nothing to do").progress();
    }
    let shown = |words: &str| {
        let document = rig.gpuctl(&format!("history --json {words}")).run().succeeds().json();
        document["runs"].as_array().unwrap().len()
    };
    assert_eq!(["", "-n 2", "-n 0", "--since 1h", "--since 0"].map(shown), [3, 2, 0, 3, 0]);
    // The first entry of the log is now from 2001.
    let text = fs::read_to_string(log(&rig)).unwrap();
    let first = text.lines().next().unwrap();
    let time = serde_json::from_str::<Value>(first).unwrap()["time"].as_str().unwrap().to_owned();
    fs::write(log(&rig), text.replace(&time, "2001-02-03T04:05:06Z")).unwrap();
    assert_eq!(["", "--since 1h"].map(shown), [3, 2]);
    let long = ["2000000h", "9999999999", "99999999999999999"];
    assert_eq!(long.map(|span| shown(&format!("--since {span}"))), [3, 3, 3]);
    for words in ["history -n 0", "history --since 0"] {
        let told = rig.gpuctl(words).run().succeeds();
        drop(told.stdout_has("no such calls").stdout_has("`gpuctl history`"));
    }
    rig.gpuctl("history --since soon").run().fails("usage").stderr_has("--since");
    rig.gpuctl("history").env("TZ", "UTC").run().succeeds().stdout_has("2001-02-03\n04:05:06  ");
}

#[test]
fn many_writers_at_once_lose_nothing_also_where_a_new_file_is_begun() {
    let rig = Rig::new();
    rig.native("vidi").add();
    rig.gpuctl("release-all").run().succeeds().stdout_has("nothing to do").progress();
    let at_once = || {
        let calls: Vec<_> =
            (0..12).map(|_| rig.gpuctl("release-all --wait 60 -q").spawn()).collect();
        for call in calls {
            call.wait().succeeds();
        }
    };
    at_once();
    assert_eq!(runs(&rig).len(), 13);
    fill(&rig);
    at_once();
    let found = runs(&rig);
    assert_eq!(found.len(), 25);
    assert!(found.iter().all(|run| run["state"] == "ended"), "{found:?}");
    assert!(rig.state_dir().join("history.1.jsonl").exists());
    // The oldest file goes when the next one is begun.
    fill(&rig);
    rig.gpuctl("release-all -q").run().succeeds();
    assert_eq!(runs(&rig).len(), 13);
}

#[test]
fn lines_that_are_damaged_are_passed_over() {
    let rig = Rig::new();
    rig.native("vidi").add();
    rig.gpuctl("release-all -q").run().succeeds();
    let text = fs::read_to_string(log(&rig)).unwrap();
    fs::write(log(&rig), format!("\0\u{1}{{\n{text}{}", &text[..40])).unwrap();
    rig.gpuctl("release-all -q").run().succeeds();
    assert_eq!(runs(&rig).len(), 2);
    // A damaged line at the end of one file is not joined to the first of the next file.
    let text = fs::read_to_string(log(&rig)).unwrap();
    fs::write(rig.state_dir().join("history.1.jsonl"), format!("{text}{}", &text[..40])).unwrap();
    fs::remove_file(log(&rig)).unwrap();
    rig.gpuctl("release-all -q").run().succeeds();
    assert_eq!(runs(&rig).len(), 3);
}

#[test]
fn it_is_private_and_holds_no_secret() {
    let rig = Rig::new();
    rig.native("vidi").add();
    rig.gpuctl("run -q vidi -- echo hunter2-secret").run().succeeds().stdout("hunter2-secret\n");
    rig.set("lock.url", "redis://:hunter2-secret@127.0.0.1:1/0");
    rig.gpuctl("stop vidi -q").run().fails("unavailable").stderr_has("127.0.0.1:1");
    assert_eq!(fs::metadata(log(&rig)).unwrap().permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(log(&rig)).unwrap();
    assert!(text.contains("127.0.0.1:1") && !text.contains("hunter2"), "{text}");
}

#[test]
fn a_log_that_cannot_be_written_is_told_and_the_work_is_done() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let elsewhere = rig.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let linked = rig.path("linked-state");
    symlink(&elsewhere, &linked).unwrap();
    let open = rig.path("open-state");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    for folder in [PathBuf::from("/sys/gpuctl-state"), linked, open] {
        let release = rig.gpuctl("release-all").env("GPUCTL_STATE_DIR", &folder).run();
        release
            .succeeds()
            .stdout_has("nothing to do")
            .stderr_has("warning: cannot write the event log");
    }
    assert_eq!(fs::read_dir(elsewhere).unwrap().count(), 0);
}

#[test]
fn a_link_in_the_logs_place_is_not_followed() {
    let rig = Rig::new();
    rig.native("vidi").add();
    rig.gpuctl("release-all -q").run().succeeds();
    let precious = rig.file("precious", "precious");
    fs::remove_file(log(&rig)).unwrap();
    symlink(&precious, log(&rig)).unwrap();
    let release = rig.gpuctl("release-all").run().succeeds().stdout_has("nothing to do");
    release.stderr_has("warning: cannot write the event log");
    assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
    rig.gpuctl("history").run().fails("io").stderr_has("history.jsonl");
}

#[test]
fn it_fits_a_narrow_terminal_without_a_word_in_two() {
    let rig = Rig::new();
    rig.native("comfyui").phases([4]).priority(100).vram(20000).add();
    rig.native("vidi").vram(8000).priority(50).add();
    rig.gpuctl("run --phase 4 --quiet -- sleep 1").run().succeeds();
    rig.gpuctl("start vidi").run().fails("insufficient_vram").ignores_stderr();
    for columns in [40, 60, 80] {
        let display = Display::finished(&rig, (50, columns), "", "history");
        let lines = display.lines();
        let told = lines.join("\n");
        assert!(!(0..50).any(|row| display.emulated().screen().row_wrapped(row)), "{told}");
        let words: Vec<&str> = told.split_whitespace().collect();
        assert!(words.join(" ").contains("exit 3 after "), "{told}");
        let refusal = ": vidi needs 8000 MB, but at most 3552 MB can be freed";
        assert!(words.join(" ").contains(refusal), "{told}");
        assert!(words.join(" ").contains("(comfyui held 20000 MB at most)"), "{told}");
    }
}
