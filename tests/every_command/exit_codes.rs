//! Tests of every way to end: each exit code is provoked, and reported in one line on stderr or as
//! one object on stdout.

use rig::{Rig, Signal, unconfigured_or_skip, until};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// Asserts that the command fails with this code and says `problem`, both as text and as JSON.
#[track_caller]
fn refuses(rig: &Rig, words: &str, code: &str, problem: &str) {
    refuses_in_text(rig, words, code, problem);
    refuses_in_json(rig, words, code, problem);
}

#[track_caller]
fn refuses_in_text(rig: &Rig, words: &str, code: &str, problem: &str) {
    let errors = rig.path("stderr");
    let script = format!("exec gpuctl {words} --quiet 2>\"$ERRORS\"");
    rig.shell(&script).env("ERRORS", &errors).run().fails(code).stdout("");
    is_one_line_and_hints(&fs::read_to_string(errors).unwrap(), problem);
}

#[track_caller]
fn is_one_line_and_hints(told: &str, problem: &str) {
    let mut lines = told.lines();
    let first = lines.next().unwrap_or_default();
    assert!(first.starts_with("gpuctl: ") && first.contains(problem), "{told}");
    assert!(lines.all(|line| line.starts_with("hint: ")), "more than hints: {told}");
}

#[track_caller]
fn refuses_in_json(rig: &Rig, words: &str, code: &str, problem: &str) {
    let told = rig.gpuctl(words).arg("--quiet").arg("--json").run().fails(code).json();
    is_an_error(&told, code, problem);
}

#[track_caller]
fn is_an_error(document: &Value, code: &str, problem: &str) {
    assert_eq!(document.as_object().unwrap().len(), 1, "{document}");
    let error = &document["error"];
    let fields: Vec<&String> = error.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["code", "exit_code", "message", "hint", "details"]);
    assert_eq!(error["code"], code);
    assert!(error["exit_code"].is_u64() && error["details"].is_object(), "{error}");
    assert!(error["hint"].is_null() || error["hint"].is_string(), "{error}");
    assert!(error["message"].as_str().unwrap().contains(problem), "{error}");
}

#[test]
fn a_no_is_an_answer_and_no_error() {
    let rig = Rig::new();
    rig.native("vidi").add();
    for (words, key, no) in
        [("can-fit 99999", "fits", "does not fit"), ("status --check vidi", "schema", "stopped")]
    {
        rig.gpuctl(words).run().exits(1).stdout_has(no);
        let answer = rig.gpuctl(words).arg("--json").run().exits(1).json();
        assert!(answer.get(key).is_some() && answer.get("error").is_none(), "{answer}");
    }
}

#[test]
fn a_bad_command_line_is_refused_with_what_is_wrong_in_it() {
    let rig = Rig::new();
    for (words, problem) in [
        ("statsu", "statsu"),
        ("status --bogus", "--bogus"),
        ("status extra", "extra"),
        ("can-fit", "<SIZE|SERVICE>"),
        ("prepare-phase", "<PHASE>"),
        ("start", "<SERVICE>"),
        ("stop", "<SERVICE>"),
        ("start a b", "\"b\""),
        ("status --gpu", "--gpu <INDEX|UUID>"),
        ("status --config", "--config <PATH>"),
        ("status --check", "--check <SERVICE>"),
        ("config", "a command is missing"),
        ("config bogus", "bogus"),
    ] {
        let text = rig.gpuctl(words).run().fails("usage").stdout("");
        drop(if words == "config" { text.stderr_has("Usage") } else { text.stderr_has(problem) });
        // `--json` comes before the words, because an option at their end takes what comes after
        // it.
        let told = rig.gpuctl("--json").arg(words.split(' ').next().unwrap());
        let told = words.split(' ').skip(1).fold(told, |told, word| told.arg(word)).run();
        is_an_error(&told.fails("usage").json(), "usage", problem);
    }
    rig.gpuctl("").run().fails("usage").stderr_has("Usage: gpuctl");
    rig.gpuctl("status -q -v").run().fails("usage").stderr_has("cannot be used together");
    refuses(&rig, "can-fit 20XB", "usage", "\"20XB\" is not a valid size");
}

#[test]
fn what_people_type_is_answered_with_what_to_write() {
    let rig = Rig::new();
    rig.native("vidi").add();
    for (words, problem, hint) in [
        ("status vidi", "`status` shows all services", "gpuctl status --check vidi"),
        (
            "run vidi ./render.sh --all",
            "has to follow \"--\"",
            "write: gpuctl run vidi -- ./render.sh …",
        ),
        (
            "run vidi --wiat 5m -- ./render.sh",
            "`run` has no option --wiat",
            "did you mean \"--wait\"?",
        ),
        ("statsu", "there is no command \"statsu\"", "did you mean \"status\"?"),
        ("start vidi other", "`start` takes no more words", "usage: gpuctl start"),
        (
            "history -n few",
            "--lines <N>: \"few\" is not a whole number",
            "see `gpuctl history --help`",
        ),
        (
            "status --watch soon",
            "\"soon\" is not a number of seconds",
            "see `gpuctl status --help`",
        ),
        ("adopt vidi 0", "\"0\" is not the number of a process", "see `gpuctl adopt --help`"),
        ("config init --example few", "is none of pipeline", "see `gpuctl config init --help`"),
        ("completions fsh", "\"fsh\" is none of bash, zsh, fish", "did you mean \"fish\"?"),
        (
            "start --wait 5 --no-wait vidi",
            "--wait <DUR> and --no-wait cannot be used together",
            "usage: ",
        ),
        ("run vidi", "`run` needs <CMD>", "usage: gpuctl run"),
    ] {
        let told = rig.gpuctl(words).run().fails("usage").stdout("").stderr_text();
        is_one_line_and_hints(&told, problem);
        assert!(told.contains(hint), "{words}: {told}");
    }
}

#[test]
fn a_wait_that_is_no_duration_is_refused_by_a_dry_run_too() {
    let rig = Rig::new();
    rig.native("vidi").phases([2]).add();
    for command in ["prepare-phase 2", "start vidi", "stop vidi", "release-all"] {
        for dry_run in ["", "--dry-run"] {
            let words = format!("{command} --wait bogus {dry_run}");
            refuses(&rig, &words, "usage", "--wait: \"bogus\" is not a duration");
        }
    }
}

#[test]
fn json_that_is_asked_of_the_command_of_run_is_not_asked_of_gpuctl() {
    let rig = Rig::new();
    for words in ["--bogus run x -- foo --json", "run -- foo --json"] {
        let told = rig.gpuctl(words).run().fails("usage").stdout("");
        is_one_line_and_hints(&told.stderr_text(), "");
    }
    let told = rig.gpuctl("run --json -- foo").run().fails("usage").json();
    is_an_error(&told, "usage", "SERVICE");
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_stopped() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(8000).priority(90).add();
    rig.native("comfyui").vram(20000).priority(10).phases([4]).add();
    rig.native("giant").vram(30000).phases([5]).add();
    let _server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    refuses(&rig, "start comfyui", "insufficient_vram", "in the way: vidi (priority 90, 8000 MB)");
    refuses(&rig, "start comfyui --dry-run", "insufficient_vram", "comfyui needs 20000 MB");
    refuses(&rig, "prepare-phase 5", "insufficient_vram", "giant needs 30000 MB");
    rig.native("titan").vram(30000).phases([5]).add();
    refuses(&rig, "prepare-phase 5", "insufficient_vram", "giant and titan need 60000 MB");
    let told = rig.gpuctl("start comfyui --json").run().fails("insufficient_vram").json();
    assert_eq!(told["error"]["details"]["blockers"][0]["service"], "vidi");
    assert!(vidi.is_healthy());
}

#[test]
fn what_could_not_be_started_is_refused_before_anything_is_stopped() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").phases([2]).add();
    rig.native("comfyui").phases([4]).add();
    let _server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    let file = rig.file("file", "precious");
    let open = rig.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
    let logless = rig.path("logless");
    fs::create_dir_all(logless.join("logs/comfyui.log")).unwrap();
    fs::set_permissions(&logless, Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(logless.join("logs"), Permissions::from_mode(0o700)).unwrap();
    let unusable = [&open, &file, &file.join("below"), &logless];
    let words = ["prepare-phase 4", "prepare-phase 4 --dry-run", "start comfyui --dry-run"];
    for words in words.into_iter().chain(["run --phase 4 -- true"]) {
        let told = rig.gpuctl(words).env_remove("GPUCTL_STATE_DIR").env_remove("HOME");
        let told = told.env_remove("XDG_STATE_HOME").run().fails("config");
        drop(told.stderr_has("no folder for state"));
        for folder in unusable {
            let told = rig.gpuctl(words).env("GPUCTL_STATE_DIR", folder).run().fails("io");
            drop(told.stderr_has(&format!("cannot use {}", folder.display())));
        }
        assert!(vidi.is_healthy(), "{words}");
    }
    assert_eq!(fs::read_dir(open).unwrap().count(), 0);

    // A folder that is not there yet can be made, and a dry run makes none.
    let new = rig.path("new/state");
    let dry = rig.gpuctl("prepare-phase 4 --dry-run").env("GPUCTL_STATE_DIR", &new).run();
    drop(dry.succeeds().stdout_has("would start comfyui"));
    assert!(!rig.path("new").exists());

    rig.set("services.comfyui.cwd", "/no/such/folder");
    for words in words.into_iter().chain(["run --phase 4 -- true"]) {
        let told = rig.gpuctl(words).run().fails("config");
        drop(told.stderr_has("comfyui: the folder /no/such/folder does not exist"));
        assert!(vidi.is_healthy(), "{words}");
    }
}

#[test]
fn what_is_not_configured_is_not_found() {
    let rig = Rig::new();
    rig.native("vidi").phases([2]).add();
    rig.unit("vllm").not_installed().add();
    for (words, problem) in [
        ("start vido", "no service named \"vido\""),
        ("stop vido", "no service named \"vido\""),
        ("stop vidi vido", "no service named \"vido\""),
        ("status --check vido", "no service named \"vido\""),
        ("can-fit vido", "no service named \"vido\""),
        ("prepare-phase 9", "no phase \"9\""),
        ("prepare-phase analysis --dry-run", "no phase \"analysis\""),
        ("start vllm", "vllm"),
    ] {
        refuses(&rig, words, "not_found", problem);
    }
    let error = rig.gpuctl("start vido --json").run().fails("not_found").json();
    assert_eq!(error["error"]["hint"], "did you mean \"vidi\"?");
    let multi = rig.gpuctl("start").arg("two\nlines").run().fails("not_found");
    drop(multi.stderr_has("gpuctl: no service named \"two\\nlines\" is configured\nhint: "));
}

#[test]
fn a_start_that_fails_is_told_with_the_code_and_the_log() {
    let rig = Rig::new();
    rig.native("vidi").set("start", "echo no such model; exit 3").add();
    refuses(&rig, "start vidi", "start_failed", "its start command exited with code 3");
    refuses(&rig, "start vidi", "start_failed", "its last output was: no such model");
}

#[test]
fn a_stranger_on_the_port_fails_the_start() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let stranger = rig.by_hand(&vidi.command().replace(vidi.mark(), &rig.mark("stranger")));
    until("somebody answers", || vidi.is_healthy());
    let named = format!("vidi: process {} (simserver) answers on port", stranger.pid());
    refuses(&rig, "start vidi", "start_failed", &named);
    rig.assert_no_process_of(&vidi);
}

#[test]
fn memory_that_does_not_come_back_fails_the_stop() {
    let problem = "the memory of vidi did not come back";
    // Both calls run side by side, because each waits for the memory.
    let [text, json] = ["", "--json"].map(|form| {
        let rig = Rig::new();
        rig.native("vidi").vram(4000).add();
        rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").progress();
        rig.card.describe(&serde_json::json!({"reclaim_delay_ms": 600_000}));
        let script = format!("exec gpuctl stop vidi --quiet {form} 2>../stderr");
        (rig.shell(&script).spawn(), rig)
    });
    let told = json.0.wait().fails("stop_failed").json();
    is_an_error(&told, "stop_failed", problem);
    let holder = &told["error"]["details"]["holders"][0];
    assert_eq!(holder["memory_mb"], 4000, "who holds it is named");
    drop(text.0.wait().fails("stop_failed"));
    is_one_line_and_hints(&fs::read_to_string(text.1.path("stderr")).unwrap(), problem);
}

#[test]
fn what_cannot_be_reached_is_unavailable() {
    let rig = Rig::new();
    rig.container("voice").phases([3]).not_installed().add();
    rig.native("vidi").phases([2]).add();
    for words in ["start voice", "stop voice", "prepare-phase 3", "prepare-phase 2", "release-all"]
    {
        refuses(&rig, words, "unavailable", "voice: ");
    }
    rig.set("gpu.nvml_library", "/nowhere");
    refuses(&rig, "can-fit 1", "unavailable", "VRAM cannot be read");
}

#[test]
fn a_file_that_cannot_be_written_is_told_as_such() {
    let rig = Rig::new();
    rig.native("vidi").add();
    rig.file("state-file", "precious");
    refuses(&rig, "config init --output ../gpuctl.toml", "io", "already exists");
    refuses(&rig, "config init --output ../state-file/x", "io", "cannot write");
    fs::write(rig.state_dir().join("logs"), "precious").unwrap();
    refuses(&rig, "start vidi", "io", "logs");
    assert_eq!(fs::read_to_string(rig.state_dir().join("logs")).unwrap(), "precious");
}

#[test]
fn a_configuration_that_others_may_write_is_no_ones_to_run() {
    let rig = Rig::new();
    rig.native("vidi").add();
    fs::set_permissions(rig.path("gpuctl.toml"), Permissions::from_mode(0o666)).unwrap();
    for words in ["status", "can-fit 1", "start vidi", "stop vidi", "release-all", "config check"] {
        refuses(&rig, words, "permission", "others may write to it");
    }
}

#[test]
fn a_configuration_that_is_wrong_or_missing_is_told_by_every_command() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let commands = [
        "status",
        "can-fit 1",
        "prepare-phase 1",
        "start a",
        "stop a",
        "release-all",
        "config show",
    ];
    rig.write_config("[gpu]\nindx = 0");
    for words in commands {
        refuses(&rig, words, "config", "gpuctl.toml:2: gpu.indx: there is no such key");
    }
    fs::remove_file(rig.path("gpuctl.toml")).unwrap();
    for words in commands {
        refuses(&rig, words, "config", "gpuctl.toml: cannot be read: No such file");
    }
    for words in ["prepare-phase 1", "start a", "stop a", "release-all", "status --check a"] {
        let told = rig.gpuctl(words).arg("--json").env_remove("GPUCTL_CONFIG").run();
        let told = told.fails("config").json();
        is_an_error(&told, "config", "no configuration found");
        assert!(told["error"]["hint"].as_str().unwrap().contains("gpuctl config init"), "{told}");
    }
}

#[test]
fn a_service_that_is_not_ready_in_time_is_a_timeout() {
    let rig = Rig::new();
    rig.native("vidi").set("start_timeout", "300ms").server("--warmup 1h").add();
    refuses(&rig, "start vidi", "timeout", "vidi: not ready within 300ms");
}

#[test]
fn an_interrupt_ends_with_the_signals_code() {
    for (signal, code, words) in [
        (Signal::INT, 130, "start vidi --quiet"),
        (Signal::TERM, 143, "start vidi --quiet"),
        (Signal::INT, 130, "start vidi --quiet --json"),
    ] {
        let rig = Rig::new();
        let vidi = rig.native("vidi").server("--warmup 1h").add();
        let start = rig.gpuctl(words).spawn();
        until("it has started it", || !rig.processes_of(&vidi).is_empty());
        start.signal(signal);
        let ended = start.wait().exits(code);
        if words.ends_with("--json") {
            let told = ended.json();
            is_an_error(&told, "interrupted", "");
            assert_eq!(told["error"]["exit_code"], 130);
        } else {
            drop(ended.stderr_has("gpuctl: "));
        }
    }
}

#[test]
fn an_output_that_takes_nothing_is_an_error_and_no_panic() {
    let rig = Rig::new();
    rig.native("vidi").add();
    for words in [
        "status",
        "status --json",
        "can-fit 1",
        "config schema",
        "config show",
        "config path",
        "stop vidi",
        "stop vidi --json",
        "release-all --dry-run",
        "--help",
        "--version",
        "status --help",
    ] {
        let full = rig.shell(&format!("exec gpuctl {words} >/dev/full")).run().fails("io");
        if words.contains("--help") || words == "--version" {
            continue;
        }
        drop(full.stderr_has("gpuctl: cannot write to stdout: No space left on device"));
    }
    // An error that cannot be told on stdout is told on stderr.
    let full = rig.shell("exec gpuctl start vido --json >/dev/full").run().fails("not_found");
    drop(full.stderr_has("gpuctl: no service named"));
    rig.shell("exec gpuctl start vido 2>/dev/full").run().fails("not_found");
    rig.shell("exec gpuctl start vido 2>&-").run().fails("not_found");
}

#[test]
fn an_output_that_is_closed_or_not_read_changes_nothing() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    for words in ["status", "status --json", "config schema", "config show", "--help", "--version"]
    {
        rig.shell(&format!("exec gpuctl {words} >&-")).run().succeeds();
        // The loop ends when the reader has gone.
        let script = format!(
            "{{ while (echo x) 2>/dev/null; do :; done; gpuctl {words}; echo =$? >&2; }} | head -n 0"
        );
        rig.shell(&script).run().succeeds().stdout("").stderr_has("=0\n");
    }
    rig.shell("exec gpuctl start vidi >&- 2>&-").run().succeeds();
    assert!(vidi.is_healthy());
    rig.shell("exec gpuctl stop vidi --json >&- 2>&-").run().succeeds();
    rig.assert_no_process_of(&vidi);
}

#[test]
fn help_and_version_are_answers() {
    let rig = Rig::new();
    // Neither help nor version needs a configuration, let alone a valid one.
    rig.write_config("broken");
    let version = format!("gpuctl {}\n", env!("CARGO_PKG_VERSION"));
    rig.gpuctl("--version").run().succeeds().stdout(&version);
    rig.gpuctl("-V").run().succeeds().stdout(&version);
    let commands = [
        "",
        "status",
        "can-fit",
        "prepare-phase",
        "start",
        "stop",
        "release-all",
        "config",
        "config init",
    ];
    for words in commands {
        let help = rig.gpuctl(words).arg("--help").run().succeeds().text();
        assert!(help.contains(&format!("Usage: {}", format!("gpuctl {words}").trim())), "{help}");
        for flag in ["--config <PATH>", "--gpu <INDEX|UUID>", "--json", "--quiet", "--verbose"] {
            assert!(help.contains(flag), "{words}: {flag}: {help}");
        }
    }
}

#[test]
fn quiet_is_silent_and_verbose_shows_external_commands() {
    let rig = Rig::new();
    rig.native("vidi").add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").progress();
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("vidi").progress();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").stderr_has("vidi");
    rig.unit("vllm").add();
    rig.gpuctl("status -v")
        .run()
        .succeeds()
        .stdout_has("ready")
        .stderr_has("`systemctl --no-pager ");
    let status = rig.gpuctl("status -v --json").run().succeeds().stderr_has("systemctl").json();
    assert_eq!(status["schema"], 1, "diagnostics do not get into the document");
    rig.gpuctl("status").run().succeeds().stdout_has("ready");
}
