//! Tests of the `[canary]` section, of the `KLR_*` variables that override it, and of the seed's
//! environment file, taken unchanged.

use crate::canary::bench::{Bench, CANDIDATE, Calendar};
use rig::{Rig, unconfigured_or_skip};
use serde_json::{Value, json};
use std::fs;

/// Returns a configuration with a native service, followed by this section, which begins in line 5.
fn with(section: &str) -> String {
    format!("[services.vllm]\ntype = \"native\"\nvram_mb = 18000\nstart = \"a\"\n{section}\n")
}

/// Content of the seed's `.kloros_env`.
const SEED: &str = "KLR_GPU_MAINTENANCE_MAX_DOWNTIME=60
KLR_GPU_MAINTENANCE_WINDOW=03:00-07:00
KLR_CANARY_MODE=predictive
KLR_CANARY_PORT=9011
KLR_CANARY_TIMEOUT=30
KLR_ALLOW_SPARE_GPU=false
KLR_SPARE_GPU_ID=1
";

#[test]
fn without_a_section_the_canary_says_what_to_write() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    rig.native("vllm").add();
    for words in ["check", "run"].map(|word| format!("{word} {CANDIDATE}")) {
        let said = rig.gpuctl(&format!("canary {words}")).run().fails("config");
        drop(
            said.stderr_has("no [canary] section")
                .stderr_has("hint: name at least the production service"),
        );
    }
    for words in ["status", "recover", "reset-budget", "unlock --force"] {
        let error = rig.gpuctl(&format!("canary {words} --json")).run().fails("config").json();
        assert!(error["error"]["hint"].as_str().unwrap().contains("canary.service"), "{error}");
    }
    fs::remove_file(rig.path("gpuctl.toml")).unwrap();
    let none = rig.gpuctl("canary status").env_remove("GPUCTL_CONFIG").run();
    none.fails("config").stderr_has("gpuctl config init");
}

#[test]
fn a_wrong_key_or_value_is_told_with_its_line() {
    let rig = Rig::new();
    for (lines, place, problem) in [
        ("servic = \"vllm\"", "6: canary.servic", "did you mean `service`?"),
        ("service = \"vlm\"", "6: canary.service", "no service \"vlm\" is configured"),
        ("mode = \"canary\"", "5: canary", "no service \"\" is configured"),
        ("service = \"vllm\"\nmode = \"canry\"", "7: canary.mode", "did you mean `canary`?"),
        ("service = \"vllm\"\nport = 0", "7: canary.port", "0 is not a port"),
        ("service = \"vllm\"\nport = 65536", "7: canary.port", "65536"),
        ("service = \"vllm\"\ntimeout = \"soon\"", "7: canary.timeout", "a duration such as"),
        ("service = \"vllm\"\ntimeout = 0", "7: canary.timeout", "no time"),
        ("service = \"vllm\"\noom_pattern = \"\"", "7: canary.oom_pattern", "matches every line"),
        ("service = \"vllm\"\nrestore_sla = \"0s\"", "7: canary.restore_sla", "no time"),
        (
            "service = \"vllm\"\nwindow = \"3-7\"",
            "7: canary.window",
            "\"3-7\" is not a window such as",
        ),
        (
            "service = \"vllm\"\nwindow = \"03:00-25:00\"",
            "7: canary.window",
            "is not a window such as",
        ),
        (
            "service = \"vllm\"\nwindow = \"03:00-07:00 Mars/Base\"",
            "7: canary.window",
            "\"Mars/Base\" is not a time zone",
        ),
        (
            "service = \"vllm\"\ntime_zone = \"New York\"",
            "7: canary.time_zone",
            "\"New York\" is not a time zone",
        ),
        ("service = \"vllm\"\nmax_runs_per_day = -1", "7: canary.max_runs_per_day", "-1"),
        (
            "service = \"vllm\"\nallow_spare_gpu = \"no\"",
            "7: canary.allow_spare_gpu",
            "must be true or false",
        ),
        ("service = \"vllm\"\noom_pattern = \"(\"", "7: canary.oom_pattern", "Unmatched"),
        ("service = \"vllm\"\nstate_dir = \"$NOWHERE/x\"", "7: canary.state_dir", "NOWHERE"),
        (
            "service = \"vllm\"\nbounds = { a = { min = 2, max = 1 } }",
            "7: canary.bounds",
            "no value is within the bounds of a",
        ),
        (
            "service = \"vllm\"\nbounds = { a = { one_of = [] } }",
            "7: canary.bounds",
            "no value is within the bounds of a",
        ),
        ("service = \"vllm\"\nbounds = { a = { least = 1 } }", "7: canary.bounds", "bounds.a"),
        ("service = \"vllm\"\n[canary.extra_mb.a]\nb = -1", "8: canary.extra_mb.a.b", "-1"),
    ] {
        let text = with(&format!("[canary]\n{lines}"));
        rig.write_config(&text);
        eprintln!("{text}");
        let check = rig.gpuctl("config check").run().fails("config");
        drop(check.stderr_has(&format!("gpuctl.toml:{place}")).stderr_has(problem));
    }
    rig.write_config(&with("canary = 1"));
    rig.gpuctl("config check").run().fails("config").stderr_has("gpuctl.toml:5");
}

/// Returns the effective `[canary]` section with this variable set in the environment.
fn shown(rig: &Rig, variable: &str, value: &str) -> Value {
    let show = rig.gpuctl("config show --json").env(variable, value);
    show.run().succeeds().json()["canary"].clone()
}

#[test]
fn the_variables_stand_over_the_file() {
    let rig = Rig::new();
    rig.write_config(&with(
        "[canary]\nservice = \"vllm\"\nmode = \"predictive\"\nport = 1\ntimeout = 1\nmax_downtime = 2\nwindow = \"01:00-02:00\"\ncooldown = 3\nallow_spare_gpu = false\nspare_gpu = 7",
    ));
    let file = shown(&rig, "KLR_CANARY_MODE", "");
    assert_eq!((&file["mode"], &file["port"]), (&json!("predictive"), &json!(1)));
    for (variable, value, key) in [
        ("KLR_CANARY_MODE", "canary", "mode"),
        ("KLR_CANARY_PORT", "9012", "port"),
        ("KLR_CANARY_TIMEOUT", "31", "timeout"),
        ("KLR_GPU_MAINTENANCE_MAX_DOWNTIME", "61", "max_downtime"),
        ("KLR_GPU_MAINTENANCE_WINDOW", "22:00-04:00 Europe/Berlin", "window"),
        ("KLR_CANARY_COOLDOWN_HOURS", "0.5", "cooldown"),
        ("KLR_ALLOW_SPARE_GPU", "true", "allow_spare_gpu"),
        ("KLR_SPARE_GPU_ID", "2", "spare_gpu"),
    ] {
        let over = shown(&rig, variable, value);
        for (name, was) in file.as_object().unwrap() {
            assert_eq!(over[name] == *was, name != key, "{variable}: {name} = {}", over[name]);
        }
    }
    // Without a `[canary]` section the variables are ignored.
    rig.write_config(&with(""));
    assert_eq!(shown(&rig, "KLR_CANARY_PORT", "none"), Value::Null);
}

#[test]
fn a_wrong_value_of_a_variable_is_told_with_the_variable() {
    let rig = Rig::new();
    rig.write_config(&with("[canary]\nservice = \"vllm\""));
    for (variable, values) in [
        ("KLR_CANARY_MODE", ["real", "Canary"]),
        ("KLR_CANARY_PORT", ["0", "nine"]),
        ("KLR_CANARY_TIMEOUT", ["0", "half a minute"]),
        ("KLR_GPU_MAINTENANCE_MAX_DOWNTIME", ["-60", "1 minute or so"]),
        ("KLR_GPU_MAINTENANCE_WINDOW", ["always", "03:00-07:00 Mars/Base"]),
        ("KLR_CANARY_COOLDOWN_HOURS", ["-1", "nan"]),
        ("KLR_ALLOW_SPARE_GPU", ["maybe", "2"]),
        ("KLR_SPARE_GPU_ID", ["-1", "GPU-1"]),
    ] {
        for value in values {
            let said = rig.gpuctl("canary status").env(variable, value).run().fails("config");
            drop(said.stderr_has(&format!("${variable}: \"{value}\" is n")));
        }
    }
}

#[test]
fn the_seeds_environment_gives_the_seeds_behaviour() {
    let rig = Rig::new();
    let vllm = rig.native("vllm").vram(18000).add();
    rig.gpuctl("start vllm").run().succeeds().stdout_has("started vllm").progress();
    rig.set("canary.service", "vllm");
    rig.set("canary.start", "sleep 1000");
    rig.set("canary.model", "/models/m");
    let calendar = Calendar::new(&rig);
    let environment = rig.file(".kloros_env", SEED);
    // `sourced` runs the words at four in the morning in New York, `sourced_at` at the given time.
    let sourced_at = |words: &str, time: &str| {
        let script = format!("set -a; . {}; set +a; {words}", environment.display());
        calendar.at(rig.shell(&script), time).run()
    };
    let sourced = |words: &str| sourced_at(words, "2026-01-10T09:00:00Z");

    let status = sourced("gpuctl canary status --json").succeeds().json();
    for (field, value) in [
        ("mode", json!("predictive")),
        ("window", json!("03:00-07:00 America/New_York")),
        ("in_window", json!(true)),
        ("night", json!("20260110")),
        ("budget_left", json!(60.0)),
        ("max_runs_per_day", json!(3)),
    ] {
        assert_eq!(status[field], value, "{field}");
    }
    let shown = sourced("gpuctl config show --json").succeeds().json()["canary"].clone();
    for (key, value) in [
        ("port", json!(9011)),
        ("timeout", json!("30s")),
        ("restore_sla", json!("15s")),
        ("cooldown", json!("6h")),
        ("allow_spare_gpu", json!(false)),
        ("spare_gpu", json!(1)),
    ] {
        assert_eq!(shown[key], value, "{key}");
    }

    // The seed's mode is predictive: no canary is started, but the bounds are checked.
    let processes = rig.processes_of(&vllm);
    let run = format!("gpuctl canary run {CANDIDATE} --json");
    let verdict = sourced(&run).succeeds().json();
    assert_eq!((&verdict["mode"], &verdict["status"]), (&json!("predictive"), &json!("pass")));
    let bounds = sourced("gpuctl canary run --set vllm_memory_util=0.91 --json").fails("no").json();
    assert_eq!(bounds["status"], "invalid");
    // Within the limits the canary mode, set as the checklist says, would perform a trial.
    let real = format!("KLR_CANARY_MODE=canary {run} --dry-run");
    assert_eq!(sourced(&real).succeeds().json()["path"], "quiesced");
    let refused = |words: &str, time: &str| {
        let error = sourced_at(words, time).exits(75).json()["error"].clone();
        (error["code"].clone(), error["details"]["next"].clone())
    };
    assert_eq!(
        refused(&real, "2026-01-10T12:00:01Z"),
        (json!("outside_window"), json!("2026-01-11T08:00:00Z"))
    );
    let budget = rig.state_dir().join("gpu_budget_20260110.json");
    let seed = format!("echo '{{\"seconds_used\": 15.5}}' >{}; {real}", budget.display());
    assert_eq!(
        refused(&seed, "2026-01-10T09:00:00Z"),
        (json!("budget_exhausted"), json!("2026-01-11T08:00:00Z"))
    );
    assert_eq!(rig.processes_of(&vllm), processes);
}

#[test]
fn the_seeds_limits_are_the_defaults() {
    let rig = Rig::new();
    rig.write_config(&with("[canary]\nservice = \"vllm\""));
    let shown = shown(&rig, "KLR_CANARY_MODE", "");
    for (key, value) in [
        ("mode", json!("predictive")),
        ("port", json!(9011)),
        ("timeout", json!("30s")),
        ("restore_sla", json!("15s")),
        ("max_latency", json!("2s")),
        ("max_downtime", json!("1m")),
        ("window", json!("03:00-07:00")),
        ("time_zone", json!("America/New_York")),
        ("cooldown", json!("6h")),
        ("max_runs_per_day", json!(3)),
        ("allow_spare_gpu", json!(false)),
        ("spare_gpu", json!(1)),
        ("model_mb", json!(5700)),
        ("kv_cache_min_mb", json!(370)),
    ] {
        assert_eq!(shown[key], value, "{key}");
    }
    let home = rig.path("home/models/llm/current");
    assert_eq!(shown["model"], home.to_str().unwrap());
    assert_eq!(shown["bounds"]["vllm_memory_util"], json!({"min": 0.6, "max": 0.9}));
    let toml = rig.gpuctl("config show").run().succeeds().text();
    assert!(toml.contains("[canary]") && toml.contains("[canary.bounds."), "{toml}");
}

#[test]
fn the_schema_describes_the_section() {
    let rig = Rig::new();
    let schema = rig.gpuctl("config schema").run().succeeds().json();
    let text = schema.to_string();
    assert!(schema["properties"]["canary"].is_object(), "{text}");
    for key in
        ["restore_sla", "max_downtime", "kv_cache_min_mb", "one_of", "extra_mb", "oom_pattern"]
    {
        assert!(text.contains(&format!("\"{key}\"")), "no {key} in the schema");
    }
}

#[test]
fn budget_audit_and_promotions_lie_where_the_configuration_says() {
    let bench = Bench::new();
    let elsewhere = bench.rig.path("elsewhere/canary");
    bench.rig.set("canary.state_dir", "$STATE/canary");
    let words = format!("canary run {CANDIDATE} --json --quiet");
    let run = bench.rig.gpuctl(&words).env("STATE", bench.rig.path("elsewhere"));
    let report = run.run().succeeds().json();
    let promotion = report["promotion"].as_str().unwrap();
    assert!(promotion.starts_with(elsewhere.join("promotions").to_str().unwrap()), "{report}");
    let names: Vec<_> = fs::read_dir(&elsewhere).unwrap().map(|e| e.unwrap().file_name()).collect();
    let has = |part: &str| names.iter().any(|name| name.to_str().unwrap().starts_with(part));
    assert!(has("gpu_budget_2") && has("gpu_canary_2"), "{names:?}");
    assert_eq!(bench.files("gpu_"), Vec::<std::path::PathBuf>::new());
    // The canary's own log stays with the other logs.
    assert!(bench.rig.state_dir().join("logs/canary.log").exists());
}
