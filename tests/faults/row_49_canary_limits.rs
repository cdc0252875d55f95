//! Tests of the canary in edge cases (row 49): at the edges of the window, at a clock change, and
//! with a ledger that was cut short or cannot be written. gpuctl decides rightly, or refuses the
//! run and leaves production untouched.

use crate::canary::bench::{Bench, CANDIDATE, Calendar};
use rig::until;
use serde_json::{Value, json};
use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Creates a bench with the seed's window, and a calendar for it.
fn in_the_seeds_window() -> (Bench, Calendar) {
    let bench = Bench::new();
    bench.rig.set("canary.window", "03:00-07:00");
    let calendar = Calendar::new(&bench.rig);
    (bench, calendar)
}

/// Returns what a dry `canary run` says at this time: its path and null, or the limit that refuses
/// it and the time of the next try.
#[track_caller]
fn says(bench: &Bench, calendar: &Calendar, time: &str) -> (Value, Value) {
    let words = format!("canary run {CANDIDATE} --dry-run --json");
    let document = calendar.at(bench.rig.shell(&format!("gpuctl {words}; true")), time).run();
    let document = document.succeeds().json();
    match document.get("error") {
        Some(error) => (error["code"].clone(), error["details"]["next"].clone()),
        None => (document["path"].clone(), Value::Null),
    }
}

#[test]
fn row_49_both_edges_of_the_window_belong_to_it_and_not_a_second_more() {
    let (bench, calendar) = in_the_seeds_window();
    let production = bench.production();
    let outside = |next: &str| (json!("outside_window"), json!(next));
    let inside = || (json!("quiesced"), Value::Null);
    for (time, expected) in [
        ("2026-01-10T07:59:59Z", outside("2026-01-10T08:00:00Z")),
        ("2026-01-10T08:00:00Z", inside()),
        ("2026-01-10T12:00:00Z", inside()),
        ("2026-01-10T12:00:01Z", outside("2026-01-11T08:00:00Z")),
        // The clocks go forward: the night's opening is an hour earlier by UTC.
        ("2026-03-08T06:59:59Z", outside("2026-03-08T07:00:00Z")),
        ("2026-03-08T07:00:00Z", inside()),
        ("2026-03-08T11:00:00Z", inside()),
        ("2026-03-08T11:00:01Z", outside("2026-03-09T07:00:00Z")),
        // The clocks go back.
        ("2026-10-31T11:00:01Z", outside("2026-11-01T08:00:00Z")),
        ("2026-11-01T07:30:00Z", outside("2026-11-01T08:00:00Z")),
        ("2026-11-01T12:00:00Z", inside()),
    ] {
        assert_eq!(says(&bench, &calendar, time), expected, "{time}");
    }
    assert_eq!(bench.production(), production);
}

#[test]
fn row_49_the_window_needs_no_time_zones_of_the_machine() {
    let (bench, calendar) = in_the_seeds_window();
    let words = format!("canary run {CANDIDATE} --dry-run --json");
    for (time, code) in [("2026-03-08T07:00:00Z", 0), ("2026-03-08T06:59:59Z", 75)] {
        let run = calendar.at(bench.rig.gpuctl(&words), time);
        let nowhere = run.env("TZDIR", "/nowhere").env("TZ", "Asia/Tokyo").run();
        assert!(nowhere.exits(code).json().is_object(), "{time}");
    }
}

#[test]
fn row_49_a_night_across_midnight_has_one_budget_under_the_date_of_its_beginning() {
    let (bench, calendar) = in_the_seeds_window();
    bench.rig.set("canary.window", "22:30-04:00 Europe/Berlin");
    bench.rig.set("canary.cooldown", "1h");
    bench.rig.set("canary.max_downtime", "47s");
    let run = |time: &str| {
        let words = format!("canary run {CANDIDATE} --json --quiet");
        calendar.at(bench.rig.gpuctl(&words), time).run()
    };
    let report = run("2026-01-10T22:59:59Z").succeeds().json();
    let budget = bench.rig.state_dir().join("gpu_budget_20260110.json");
    let booked: Value = serde_json::from_str(&fs::read_to_string(&budget).unwrap()).unwrap();
    assert_eq!(booked["seconds_used"], report["downtime_seconds"]);
    // What others have used before midnight counts after it.
    fs::write(&budget, "{\"seconds_used\": 2.5}").unwrap();
    let error = run("2026-01-11T01:00:00Z").exits(75).json()["error"].clone();
    assert_eq!(error["code"], "budget_exhausted");
    assert_eq!(error["details"]["next"], "2026-01-11T21:30:00Z");
    let audit =
        fs::read_to_string(bench.rig.state_dir().join("gpu_canary_20260110.jsonl")).unwrap();
    assert!(audit.lines().last().unwrap().contains("\"refused\""), "{audit}");
    // The next night has a budget of its own, and the runs of the last night still count.
    let report = run("2026-01-11T21:30:00Z").succeeds().json();
    assert_eq!(report["status"], "pass");
    let status = calendar.at(bench.rig.gpuctl("canary status --json"), "2026-01-11T21:30:00Z");
    let status = status.run().succeeds().json();
    assert_eq!((&status["night"], &status["runs_24h"]), (&json!("20260111"), &json!(2)));
}

#[test]
fn row_49_cooldown_and_runs_are_counted_over_a_clock_change_and_into_the_next_day() {
    let (bench, calendar) = in_the_seeds_window();
    bench.rig.set("canary.max_downtime", "10m");
    let run = |time: &str, words: &str| {
        let words = format!("canary run {CANDIDATE} --json --quiet {words}");
        calendar.at(bench.rig.gpuctl(&words), time).run()
    };
    let refused = |time: &str, words: &str| {
        let error = run(time, words).exits(75).json()["error"].clone();
        (error["code"].clone(), error["details"]["next"].clone())
    };
    // Six hours are six hours, though the clocks on the wall say seven.
    run("2026-03-08T05:30:00Z", "--now").succeeds().json();
    assert_eq!(
        refused("2026-03-08T11:00:00Z", ""),
        (json!("cooldown"), json!("2026-03-08T11:30:00Z"))
    );
    run("2026-03-08T12:00:00Z", "--now").succeeds().json();
    run("2026-03-08T20:00:00Z", "--now").succeeds().json();
    assert_eq!(
        refused("2026-03-09T05:29:59Z", "--now"),
        (json!("rate_limited"), json!("2026-03-09T05:30:00Z"))
    );
    run("2026-03-09T07:00:00Z", "").succeeds().json();
    // A cooldown of days is counted in hours, too.
    bench.rig.set("canary.cooldown", "100h");
    assert_eq!(
        refused("2026-03-13T10:59:59Z", ""),
        (json!("cooldown"), json!("2026-03-13T11:00:00Z"))
    );
    bench.rig.set("canary.cooldown", "6h");
    // Setting the clock back does not end the cooldown.
    assert_eq!(refused("2026-03-07T09:00:00Z", "").0, "cooldown");
}

#[test]
fn row_49_a_damaged_budget_refuses_the_run_and_names_the_way_out() {
    let bench = Bench::new();
    let production = bench.production();
    let budget = bench.budget_file();
    for damaged in [
        "",
        "{\"seconds_used\": 12",
        "{\"seconds_used\"",
        "{}",
        "{\"seconds_used\": -1}",
        "{\"seconds_used\": \"12\"}",
        "{\"seconds_used\": null}",
        "{\"seconds_used\": 1e300}",
        "{\"seconds_used\": 0, \"runs\": {\"a\": \"b\"}}",
        "[]",
        "12.5",
        "\0\0\0\0",
    ] {
        fs::write(&budget, damaged).unwrap();
        let said = bench.try_it("--now").fails("config");
        let said = said.stderr_has(&format!("{} is damaged", budget.display()));
        drop(said.stderr_has("`gpuctl canary reset-budget` resets the night's budget"));
        bench.try_it("--dry-run").fails("config").stderr_has("is damaged");
        assert_eq!(fs::read_to_string(&budget).unwrap(), damaged);
        let status = bench.status();
        assert_eq!(status["budget_left"], Value::Null);
        assert!(status["error"].as_str().unwrap().contains("is damaged"), "{status}");
    }
    assert_eq!(bench.production(), production);
    assert!(bench.events().iter().all(|event| event == "refused"), "{:?}", bench.events());
    bench.rig.assert_lock_was_given_back();

    fs::write(&budget, [0xff, 0xfe, 0]).unwrap();
    bench.try_it("").fails("config").stderr_has("reset-budget");
    bench.rig.gpuctl("canary reset-budget").run().succeeds().stdout_has("has been reset");
    bench.passes("");
}

#[test]
fn row_49_a_budget_that_is_no_file_refuses_the_run() {
    let bench = Bench::new();
    let production = bench.production();
    fs::create_dir(bench.budget_file()).unwrap();
    bench.try_it("").fails("io").stderr_has("gpu_budget_");
    assert_eq!(bench.production(), production);
    bench.rig.assert_lock_was_given_back();
}

#[test]
fn row_49_a_line_of_the_audit_that_was_cut_short_is_read_past_and_kept() {
    let bench = Bench::new();
    bench.rig.set("canary.max_downtime", "10m");
    bench.passes("");
    let audit = bench.files("gpu_canary_2").pop().unwrap();
    let append = |text: &[u8]| {
        OpenOptions::new().append(true).open(&audit).unwrap().write_all(text).unwrap();
    };
    let whole = fs::read(&audit).unwrap();
    append(b"{\"ts\": \"2026-01-10T0");
    bench.refuses("", "cooldown");
    append(b"\n\n\xff\xfe\nnull\n[1]\n{\"event\": \"canary_start\"}\n{\"event\": \"canary_start\", \"service\": \"vllm\", \"ts\": \"soon\"}\n");
    assert_eq!(bench.status()["runs_24h"], 1);
    bench.passes("--now");
    assert_eq!(bench.status()["runs_24h"], 2);

    let after = fs::read(&audit).unwrap();
    assert!(after.starts_with(&whole), "what was there has changed");
    let text = String::from_utf8_lossy(&after);
    let lines: Vec<_> =
        text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).collect();
    let count = |name: &str| lines.iter().filter(|line| line["event"] == name).count();
    // The cut line has not swallowed the one that came after it.
    assert_eq!((count("refused"), count("promoted"), count("prod_restored")), (1, 2, 2));
    assert!(after.ends_with(b"}\n"));
}

#[test]
fn row_49_a_damaged_journal_refuses_the_run() {
    let bench = Bench::new();
    let production = bench.production();
    let journal = bench.rig.file("state/gpu_canary_journal.json", "{\"run_id\": \"0123");
    for words in [format!("run {CANDIDATE} --now"), "recover".to_owned()] {
        let said = bench.rig.gpuctl(&format!("canary {words}")).run().fails("config");
        drop(said.stderr_has("gpu_canary_journal.json is damaged").stderr_has("remove that file"));
    }
    assert_eq!(bench.production(), production);
    assert!(journal.exists());
    fs::remove_file(journal).unwrap();
    bench.passes("");
}

#[test]
fn row_49_a_ledger_that_cannot_be_written_refuses_the_run() {
    let bench = Bench::new();
    let production = bench.production();
    let file = bench.rig.file("a-file", "precious");
    let open = bench.rig.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    // Not even root can make folders in the first one.
    for (folder, why) in [
        (Path::new("/sys/gpuctl-canary"), "/sys/gpuctl-canary"),
        (&file, "a-file"),
        (&open, "others may write"),
    ] {
        bench.rig.set("canary.state_dir", folder.to_str().unwrap());
        let said = bench.try_it("").fails("io").stderr_has(why);
        drop(
            said.stderr_has("canary.state_dir").stderr_has("the refusal is missing from the audit"),
        );
        assert_eq!(bench.production(), production, "{}", folder.display());
    }
    assert_eq!(fs::read_to_string(file).unwrap(), "precious");
    bench.rig.assert_lock_was_given_back();
}

#[test]
fn row_49_on_a_full_or_read_only_file_system_production_is_not_touched() {
    let bench = Bench::new();
    let folder = bench.rig.path("small");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    bench.rig.set("canary.state_dir", folder.to_str().unwrap());
    let production = bench.production();
    let on = |mount: &str| {
        let run = format!("gpuctl canary run {CANDIDATE} --quiet");
        let folder = folder.display();
        let script = format!("{} && {run}", mount.replace("FOLDER", &folder.to_string()));
        bench.rig.shell(&format!("unshare --mount sh -c '{script}' 2>&1")).run()
    };
    if bench.rig.shell("unshare --mount true 2>&1 || echo no").run().succeeds().text() != "" {
        return rig::skip_or_fail("namespaces", "file system that can be mounted");
    }
    // Each of these file systems, which are the test's own, has room for one more of the ledger's
    // files: lock, journal, budget, audit.
    let tmpfs = |options: &str| format!("mount -t tmpfs -o mode=0700,{options} none FOLDER");
    let full =
        (1..=5).map(|files| (tmpfs(&format!("nr_inodes={files}")), "No space left on device"));
    let read_only = (tmpfs("ro"), "Read-only file system");
    for (mount, why) in full.chain([read_only]) {
        let said = on(&mount).fails("io").text();
        assert!(said.contains(why), "{mount}: {said}");
        until("its guardian has gone", || {
            let guardian = format!("pgrep -f '[g]uardian.*{}'; true", bench.rig.path("").display());
            bench.rig.shell(&guardian).run().succeeds().text().is_empty()
        });
        bench.rig.assert_lock_is_free();
        assert_eq!(bench.production(), production, "{mount}: {said}");
    }
    bench.assert_no_canary();
}
