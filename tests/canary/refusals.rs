//! Tests of a `gpuctl canary run` that is refused: each limit has its code and names the time of
//! the next try, and production is untouched.

use crate::canary::bench::{Bench, CANDIDATE, CANDIDATE_ID, closed_window, seconds_between};
use rig::{Rig, Trial, until};
use serde_json::{Value, json};
use std::fs;

/// Asserts that the audit's last event is a refusal by this limit.
#[track_caller]
fn assert_noted(bench: &Bench, limit: &str) {
    let audit = bench.audit();
    let last = audit.last().unwrap();
    let reason = last["reason"].as_str().unwrap();
    assert!(reason.starts_with(&format!("{limit}: ")), "{last}");
    assert_eq!(
        (&last["event"], &last["run_id"], &last["candidate_id"]),
        (&json!("refused"), &Value::Null, &json!(CANDIDATE_ID))
    );
    assert!(last["ts"].is_string() && last["budget_used"].is_number(), "{last}");
}

fn next(error: &Value) -> &str {
    error["details"]["next"].as_str().unwrap_or_else(|| panic!("no next in {error}"))
}

#[test]
fn outside_the_window_a_run_is_refused_until_it_opens() {
    let bench = Bench::new();
    let window = closed_window();
    bench.rig.set("canary.window", window.as_str());
    let error = bench.refuses("", "outside_window");
    let (hour, opens) = (&window[..2], next(&error));
    assert!(opens.ends_with(&format!("T{hour}:00:00Z")), "{opens}: {window}");
    assert_eq!(bench.status()["next_window"], opens);
    assert_noted(&bench, "outside_window");
    let said = bench.try_it("").exits(75);
    let at = format!("it opens {hour}:00 UTC, in ");
    drop(said.stderr_has(&format!("outside the maintenance window {window}")).stderr_has(&at));
    // With `--now` an operator overrides the window.
    bench.passes("--now");
}

#[test]
fn with_the_budget_spent_a_run_is_refused_until_the_next_night_whoever_spent_it() {
    let bench = Bench::new();
    let budget = bench.budget_file();
    for (used, words) in [("15.001", ""), ("60", "--now"), ("100000", "--now")] {
        fs::write(&budget, format!("{{\"seconds_used\": {used}}}")).unwrap();
        let error = bench.refuses(words, "budget_exhausted");
        let next_night = next(&error)[..10].replace('-', "");
        assert!(*next_night > *bench.status()["night"].as_str().unwrap(), "{next_night}");
        assert_noted(&bench, "budget_exhausted");
    }
    // Exactly enough is left for one run, after others have used a part of the budget.
    fs::write(&budget, "{\"seconds_used\": 15}").unwrap();
    let report = bench.passes("");
    let used = bench.budget()["seconds_used"].as_f64().unwrap();
    let cost = report["downtime_seconds"].as_f64().unwrap();
    assert!((used - 15.0 - cost).abs() < 0.002, "{used} {cost}");
}

#[test]
fn soon_after_a_run_the_next_one_is_refused_until_the_cooldown_is_over() {
    let bench = Bench::new();
    bench.passes("");
    let error = bench.refuses("", "cooldown");
    let begun = bench.audit()[0]["ts"].as_str().unwrap().to_owned();
    assert_eq!(seconds_between(&bench.rig, &begun, next(&error)), 6 * 3600);
    assert_noted(&bench, "cooldown");
    let left = bench.status()["cooldown_left"].as_f64().unwrap();
    assert!((21_500.0..=21_600.0).contains(&left), "{left}");
    bench.rig.set("canary.cooldown", "0s");
    bench.passes("");
}

#[test]
fn a_rejected_candidate_counts_as_a_run_too() {
    let bench = Bench::new();
    bench.canary("--vram 14000 --completion garbage");
    bench.try_it("--quiet").fails("no").stdout_has("rejected: ");
    bench.refuses("", "cooldown");
}

#[test]
fn the_fourth_run_in_a_day_is_refused_also_by_an_operators_word() {
    let bench = Bench::new();
    bench.rig.set("canary.max_downtime", "10m");
    (0..3).for_each(|_| drop(bench.passes("--now")));
    let error = bench.refuses("--now", "rate_limited");
    let begun = bench.audit()[0]["ts"].as_str().unwrap().to_owned();
    assert_eq!(seconds_between(&bench.rig, &begun, next(&error)), 24 * 3600);
    assert_noted(&bench, "rate_limited");
    assert_eq!(bench.status()["runs_24h"], 3);
    // The limit is counted per service: another service has three runs of its own.
    let other = bench.rig.native("other").vram(1000).add();
    bench.rig.gpuctl("stop vllm").run().succeeds().stdout_has("stopped vllm").progress();
    bench.rig.gpuctl("start other").run().succeeds().stdout_has("started other").progress();
    bench.rig.set("canary.service", "other");
    assert_eq!(bench.status()["runs_24h"], 0);
    assert_eq!(bench.status()["cooldown_left"], 0.0);
    bench.canary("--vram 500");
    let report = bench.try_it("--json --quiet").succeeds().json();
    assert_eq!((&report["status"], other.is_healthy()), (&json!("pass"), true));
    assert_eq!(bench.status()["runs_24h"], 1);
}

#[test]
fn while_another_holds_the_lock_a_run_is_refused_at_once() {
    for in_redis in [false, true] {
        let bench = Bench::new();
        let _redis = match in_redis {
            true => match bench.rig.lock_in_redis() {
                None => return,
                redis => redis,
            },
            false => None,
        };
        let token = bench.rig.acquire("nightly --ttl 1h");
        let error = bench.refuses("--now", "lock_busy");
        assert_eq!(error["details"]["holder"], "nightly");
        assert!(error["message"].as_str().unwrap().contains("held by nightly"), "{error}");
        assert!(!error["hint"].as_str().unwrap().contains("--wait"), "it cannot wait: {error}");
        assert!(next(&error).ends_with('Z'));
        assert_noted(&bench, "lock_busy");
        assert_eq!(bench.status()["lock"]["holder"], "nightly");
        assert_eq!(bench.files("gpu_budget"), Vec::<std::path::PathBuf>::new());
        // A run under the caller's own lock neither waits for it nor releases it.
        let own = bench.rig.gpuctl(&format!("canary run {CANDIDATE} --quiet"));
        own.env("GPUCTL_LOCK_TOKEN", &token).run().succeeds().stdout_has("passed: ");
        assert_eq!(bench.rig.lock_held()["holder"], "nightly");
        bench.rig.release(&token);
    }
}

#[test]
fn while_production_is_used_exclusively_a_run_is_refused_for_the_locks_sake() {
    let bench = Bench::new();
    let (begun, over) = (bench.rig.path("begun"), bench.rig.path("over"));
    let work = format!(
        "touch {}; while ! [ -e {} ]; do sleep 0.05; done",
        begun.display(),
        over.display()
    );
    let job = bench.rig.gpuctl("run vllm --quiet -- sh -c").arg(work).spawn();
    until("it works", || begun.exists());
    let error = bench.refuses("", "lock_busy");
    assert_eq!(error["details"]["holder"], "vllm");
    fs::write(over, "").unwrap();
    job.wait().succeeds();
}

#[test]
fn while_production_works_a_run_is_refused_also_where_it_gives_no_answer() {
    let rig = Rig::new();
    let muted = rig.file("home/muted", "");
    let server = format!("--api vllm --mute-paths {}", muted.display());
    let trial = Trial::new(rig, |rig| rig.native("vllm").server(&server));
    let url = trial.vllm.url("/metrics");
    trial.rig.set("services.vllm.busy.url", url);
    trial.rig.set("services.vllm.busy.metric", "vllm:num_requests_running");
    let process = trial.rig.processes_of(&trial.vllm);
    let stream = trial.vllm.request("/v1/completions", &json!({"ms": 60_000, "stream": true}));
    until("it works", || trial.rig.card.jobs().len() == 1);
    for (paths, told) in [("", "1 job"), ("/metrics", "does not answer, and works on the card")] {
        trial.rig.file("home/muted", paths);
        let refused = trial.run().run().fails("service_busy");
        let told = format!("vllm ({told}) is still working; it was not touched");
        refused.stderr_has(&told).ignores_stdout();
        assert_eq!(trial.rig.processes_of(&trial.vllm), process);
    }
    drop(stream);
}

#[test]
fn of_two_runs_at_once_one_is_refused_and_the_downtime_is_booked_once() {
    let bench = Bench::new();
    bench.canary("--vram 14000 --warmup 1s");
    let words = format!("canary run {CANDIDATE} --json --quiet");
    let first = bench.rig.gpuctl(&words).spawn();
    until("production is away", || bench.events().contains(&"prod_stopped".to_owned()));
    let error = bench.try_it("--now --json").fails("lock_busy").json();
    assert!(next(&error["error"]).ends_with('Z'), "{error}");
    assert!(error["error"]["hint"].as_str().unwrap().starts_with("try again in 45s; "), "{error}");
    let report = first.wait().succeeds().json();
    assert_eq!(bench.budget()["seconds_used"], report["downtime_seconds"]);
    assert_eq!(bench.status()["runs_24h"], 1);
    bench.production();
}

#[test]
fn of_two_runs_that_begin_together_one_runs() {
    let bench = Bench::new();
    let begin = || bench.rig.gpuctl(&format!("canary run {CANDIDATE} --quiet")).spawn();
    let ended = [begin(), begin(), begin()].map(|run| run.wait().ended());
    let mut codes = ended.each_ref().map(|(code, _)| *code);
    codes.sort();
    assert_eq!(codes, [Some(0), Some(75), Some(75)], "{ended:?}");
    let starts = bench.events().iter().filter(|event| *event == "canary_start").count();
    assert_eq!(starts, 1, "{:?}", bench.events());
    assert_eq!(bench.status()["runs_24h"], 1);
    bench.production();
    bench.rig.assert_no_out_of_memory();
}

#[test]
fn a_candidate_that_cannot_work_costs_no_downtime() {
    let bench = Bench::new();
    let production = bench.production();
    let _desktop = bench.neighbour("desktop", 6576);
    for (words, status) in [("vllm_memory_util=0.75", "fail"), ("vllm_memory_util=0.95", "invalid")]
    {
        let words = format!("canary run --set {words} --json");
        let verdict = bench.rig.gpuctl(&words).run().fails("no").json();
        assert_eq!(
            (&verdict["status"], &verdict["mode"], &verdict["promotion"]),
            (&json!(status), &json!("canary"), &Value::Null)
        );
    }
    // A candidate for which no canary could be started costs none either.
    bench.canary("--vram 1 {max_model_len}");
    let words = "canary run --set vllm_memory_util=0.7 --json";
    let error = bench.rig.gpuctl(words).run().fails("config").json();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("needs max_model_len, which the candidate does not set"), "{error}");
    assert_eq!(bench.production(), production);
    assert_eq!(bench.files("gpu_budget"), Vec::<std::path::PathBuf>::new());
}

#[test]
fn without_production_nothing_is_tried() {
    let bench = Bench::new();
    bench.rig.gpuctl("stop vllm").run().succeeds().stdout_has("stopped vllm").progress();
    let error = bench.try_it("--json").fails("unavailable").json();
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("vllm is stopped"), "{error}");
    assert!(error["error"]["hint"].as_str().unwrap().contains("gpuctl start vllm"), "{error}");
    bench.rig.assert_no_process_of(&bench.vllm);
    assert_noted(&bench, "unavailable");
    assert_eq!(bench.files("gpu_budget"), Vec::<std::path::PathBuf>::new());
    bench.assert_no_canary();
    bench.rig.assert_lock_was_given_back();
}

#[test]
fn a_port_that_is_taken_is_found_before_production_is_touched() {
    let bench = Bench::new();
    let production = bench.production();
    let _listener = std::net::TcpListener::bind(("127.0.0.1", bench.port)).unwrap();
    let said = bench.try_it("").fails("start_failed");
    let port = bench.port;
    drop(
        said.stderr_has(&format!("something listens on the canary's port {port}"))
            .stderr_has("hint:"),
    );
    assert_eq!(bench.production(), production);
    assert_eq!(bench.events(), ["refused"]);
}

#[test]
fn a_start_command_that_names_a_home_that_is_not_known_is_refused_before_production_is_stopped() {
    let bench = Bench::new();
    let production = bench.production();
    let start = "exec ~/venv/bin/python3 -m vllm --port {port} -u {vllm_memory_util}";
    bench.rig.set("canary.start", start);
    let run = bench.rig.gpuctl("canary run --set vllm_memory_util=0.75").env_remove("HOME").run();
    run.fails("config").stderr_has("HOME is not set").stderr_has("hint: write the path out");
    assert_eq!(bench.production(), production);
    let check =
        bench.rig.gpuctl("canary check --set vllm_memory_util=0.75").env_remove("HOME").run();
    check.succeeds().stdout_has("pass");
}
