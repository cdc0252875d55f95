//! Tests of what a trial prints while production is away: each step with its clock, also into a
//! pipe and in `history`; each attempt to bring production back; and the predictive mode's note
//! that nothing was started.

use crate::canary::bench::{Bench, CANDIDATE};
use rig::{Rig, Trial, until};
use std::fs;

/// Returns a line of progress, such as "[1.2s of 45s] stopping vllm", without its clock; fails the
/// test if the line has no clock or the clock has another limit.
#[track_caller]
fn clocked<'a>(line: &'a str, limit: &str) -> &'a str {
    let clock = line.strip_prefix('[').and_then(|line| line.split_once("] "));
    let (clock, step) = clock.unwrap_or_else(|| panic!("no clock: {line}"));
    let (over, of) = clock.split_once(" of ").unwrap_or_else(|| panic!("no clock: {line}"));
    assert_eq!(of, limit, "{line}");
    assert!(over.starts_with(|c: char| c.is_ascii_digit()) && over.ends_with('s'), "{line}");
    step
}

#[test]
fn each_step_is_told_with_its_clock_in_a_pipe_and_stays_in_history_with_mode_and_candidate() {
    let bench = Bench::new();
    let run = bench.try_it("").succeeds().stdout_has("passed");
    let told = run.stderr_text();
    let mut lines = told.lines();
    let first = lines.next().unwrap();
    assert_eq!(first, "trying vllm_memory_util=0.75 in the place of vllm, for 45s at most");
    let steps: Vec<&str> = lines.map(|line| clocked(line, "45s")).collect();
    let position = |step: &str| {
        let found = steps.iter().position(|told| told.starts_with(step));
        found.unwrap_or_else(|| panic!("no \"{step}\": {told}"))
    };
    let order = [
        "stopping vllm",
        "starting the canary",
        "testing the canary",
        "stopping the canary",
        "starting vllm",
    ];
    let places = order.map(position);
    assert!(places.is_sorted(), "{told}");

    let history = bench.rig.gpuctl("history").run().succeeds().text();
    let (_, entry) = history.rsplit_once("canary run").unwrap();
    for part in [
        "vllm (canary: vllm_memory_util=0.75)",
        "stopped vllm",
        "started the canary",
        "tested the canary",
        "stopped the canary",
        "started vllm",
    ] {
        assert!(entry.contains(part), "no \"{part}\": {history}");
    }
}

#[test]
fn the_predictive_mode_says_what_it_is_whatever_comes_of_it() {
    let bench = Bench::new();
    bench.rig.set("canary.mode", "predictive");
    let production = bench.production();
    let passed = bench.try_it("").succeeds().progress().text();
    assert!(passed.starts_with("pass: "), "{passed}");
    assert!(
        passed.contains("predictive: nothing was started; --mode canary for a trial"),
        "{passed}"
    );
    let _desktop = bench.neighbour("desktop", 6145);
    let failed = bench.try_it("").fails("no").progress().text();
    assert!(
        failed.starts_with("fail: ") && failed.contains("predictive: nothing was started\n"),
        "{failed}"
    );
    let told = bench.try_it("--json").fails("no").json();
    assert_eq!((&told["mode"], &told["path"]), (&"predictive".into(), &serde_json::Value::Null));
    assert_eq!(bench.production(), production);
    let history = bench.rig.gpuctl("history").run().succeeds().text();
    assert!(history.contains(&format!("vllm (predictive: {})", &CANDIDATE[6..])), "{history}");
}

#[test]
fn each_try_of_bringing_production_back_is_told_with_why_and_when_the_next_one_is() {
    let trial = Trial::new(Rig::new(), |rig| rig.native("vllm").server("--warmup 400ms"));
    let (broken, tries) = (trial.rig.path("broken"), trial.rig.path("tries"));
    let start = format!(
        "test ! -e {0} || {{ echo >>{1}; exit 7; }} && exec {2}",
        broken.display(),
        tries.display(),
        trial.vllm.command()
    );
    trial.rig.set("services.vllm.start", start);
    trial.rig.set("services.vllm.start_timeout", "60s");
    trial.canary("--completion-delay 300ms");
    let run = trial.run().spawn();
    until("production is away", || trial.has_told("prod_stopped"));
    trial.rig.file("broken", "");
    let tried = || fs::read_to_string(&tries).unwrap_or_default().lines().count();
    until("it has been tried four times", || tried() >= 4);
    fs::remove_file(&broken).unwrap();
    let told = run.wait().succeeds().stdout_has("passed").stderr_text();
    let again: Vec<&str> = told
        .lines()
        .filter(|line| line.contains("vllm does not start ("))
        .map(|line| clocked(line, "30s"))
        .collect();
    let pauses = again.iter().map(|line| line.rsplit_once("the next try is in ").unwrap().1);
    assert_eq!(pauses.collect::<Vec<_>>(), ["1s", "2s", "4s", "8s"], "{told}");
    assert!(again[0].contains("7"), "why: {told}");
    trial.assert_all_is_well("repaired");
}
