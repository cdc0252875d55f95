//! Tests of what is shown while work goes on: bars on a terminal, plain lines in a pipe, nothing
//! with `-q`, and every external command with `-v`.

use rig::{Display, Rig, Terminal, until};
use serde_json::json;

/// Makes a rig on which ComfyUI runs, and phase 3 wants CosyVoice in its place.
fn before_phase_3() -> Rig {
    let rig = Rig::new();
    rig.native("comfyui").phases([4]).vram(20000).add();
    rig.native("cosyvoice").phases([3]).vram(4000).priority(200).server("--warmup 300ms").add();
    rig.set("phases.3", "speech");
    rig.gpuctl("start comfyui -q").run().succeeds();
    rig
}

/// Opens a terminal of the kind that `term` names, 100 columns wide, at a shell.
fn shell(rig: &Rig, term: &str) -> Terminal {
    let terminal = rig.terminal("sh -i");
    terminal.shows("ready> ");
    terminal.types(&format!("export TERM={term}; stty cols 100; echo at-$(echo work)"));
    terminal.shows("at-work");
    terminal
}

#[test]
fn in_a_pipe_each_step_is_a_plain_line_and_the_summary_is_the_result() {
    let rig = before_phase_3();
    let prepare = rig.gpuctl("prepare-phase 3").env("TERM", "xterm").run().succeeds();
    let prepare = prepare
        .stdout_has("phase 3 (speech): stopped comfyui; freed 20000 MB; started cosyvoice (");
    assert_eq!(prepare.stderr_text(), "stopping comfyui\nreclaiming memory\nstarting cosyvoice\n");
    let again = rig.gpuctl("prepare-phase 3").run().succeeds().stdout_has("kept cosyvoice (");
    assert_eq!(again.stderr_text(), "");
}

#[test]
fn run_tells_the_summary_before_its_command_and_only_if_there_was_something_to_do() {
    let rig = before_phase_3();
    let run = || rig.shell("gpuctl run --phase speech -- echo works 2>&1").run().succeeds().text();
    let first = run();
    let (told, rest) = first.split_once("phase 3 (speech): stopped comfyui; ").unwrap();
    assert!(told.ends_with("starting cosyvoice\n"), "{first}");
    assert!(rest.ends_with("s)\nworks\n"), "{first}");
    assert_eq!(run(), "works\n");
}

#[test]
fn quiet_is_silent_but_for_errors() {
    let rig = before_phase_3();
    for command in [
        "prepare-phase 3",
        "stop cosyvoice",
        "start comfyui",
        "can-fit 1",
        "stop comfyui",
        "release-all",
    ] {
        rig.gpuctl(command).arg("-q").run().succeeds();
    }
    rig.gpuctl("can-fit -q 90000").run().exits(1);
    rig.gpuctl("start -q nobody")
        .run()
        .fails("not_found")
        .stderr_has("gpuctl: ")
        .stderr_has("hint: ");
    // A status is the answer that was asked for, and no remark.
    rig.gpuctl("status -q").run().succeeds().stdout_has("comfyui");
    let json = rig.gpuctl("release-all -q --json").run().succeeds().json();
    assert_eq!(json["success"], true);
}

#[test]
fn a_terminal_shows_each_step_with_its_clock_its_limit_and_the_memory() {
    let rig = before_phase_3();
    // The driver takes its time, so that there is something to see.
    rig.card.describe(&json!({"reclaim_delay_ms": 600}));
    let terminal = shell(&rig, "xterm-256color");
    terminal.types("gpuctl prepare-phase 3");
    for text in ["reclaiming memory", " MB of 20000 MB", "starting cosyvoice", "─", " of 30s"] {
        terminal.shows(text);
    }
    terminal.shows("phase 3 (speech): stopped comfyui; freed 20000 MB; started cosyvoice (");
    for text in [
        "✓\u{1b}[0m stopped comfyui",
        "✓\u{1b}[0m reclaimed memory",
        "✓\u{1b}[0m started cosyvoice",
    ] {
        terminal.shows(text);
    }
}

#[test]
fn without_colour_a_terminal_shows_the_same_in_the_colour_it_has() {
    let rig = before_phase_3();
    let terminal = shell(&rig, "xterm-256color");
    terminal.types("NO_COLOR=1 gpuctl prepare-phase 3");
    terminal.shows("✓ started cosyvoice");
    terminal.shows("phase 3 (speech): ");
    // The cursor is moved, but no colour is set.
    let shown = terminal.text();
    assert!(shown.contains("\u{1b}[2K"), "{shown:?}");
    let is_colour = |part: &str| {
        part.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
    };
    assert!(!shown.split("\u{1b}[").skip(1).any(is_colour), "{shown:?}");
}

#[test]
fn a_dumb_terminal_is_told_plain_lines() {
    let rig = before_phase_3();
    let terminal = shell(&rig, "dumb");
    terminal.types("gpuctl prepare-phase 3");
    terminal.shows("phase 3 (speech): ");
    let shown = terminal.text();
    assert!(
        shown.contains("stopping comfyui\r\nreclaiming memory\r\nstarting cosyvoice\r\n"),
        "{shown}"
    );
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[test]
fn a_step_that_fails_is_marked_on_a_terminal_and_its_error_follows() {
    let rig = Rig::new();
    rig.native("vidi").server("--exit-after 300ms --exit-code 3 --warmup 1h").add();
    let terminal = shell(&rig, "xterm-256color");
    terminal.types("gpuctl start vidi; echo code=$?.");
    terminal.shows("✗\u{1b}[0m starting vidi");
    terminal.shows("gpuctl: vidi: ");
    terminal.shows("code=5.");
}

#[test]
fn a_command_of_run_finds_the_terminal_as_it_was() {
    let rig = before_phase_3();
    let terminal = shell(&rig, "xterm-256color");
    terminal
        .types("gpuctl run cosyvoice -- sh -c 'echo first-line; echo second-line'; echo code=$?.");
    terminal.shows("code=0.");
    let shown = terminal.text();
    let after = &shown[shown.rfind("second-line").unwrap()..];
    let before = after.split("code=").next().unwrap();
    assert!(!before.contains('\u{1b}'), "it draws over the command's output: {shown:?}");
}

#[test]
fn verbose_shows_every_external_command_and_how_long_it_took() {
    let rig = Rig::new();
    rig.unit("vidi").add();
    let started = rig.gpuctl("start vidi -v").run().succeeds().stdout_has("vidi").stderr_text();
    assert!(started.contains("`systemctl "), "{started}");
    assert!(
        started.lines().any(|line| line.contains("` exited with code") && line.contains(" after ")),
        "{started}"
    );
    for (variable, value) in [("GPUCTL_LOG", "gpuctl=debug"), ("RUST_LOG", "debug")] {
        let status = rig.gpuctl("status").env(variable, value).run().succeeds().stdout_has("vidi");
        status.stderr_has("`systemctl ");
    }
    // gpuctl's own variable overrides `RUST_LOG`.
    rig.gpuctl("status")
        .env("GPUCTL_LOG", "off")
        .env("RUST_LOG", "debug")
        .run()
        .succeeds()
        .stdout_has("vidi");
}

#[test]
fn who_waits_for_the_lock_is_shown_the_holder_and_its_own_patience() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let token = rig.gpuctl("lock acquire somebody").run().succeeds().text();
    let terminal = shell(&rig, "xterm-256color");
    terminal.types("gpuctl start vidi --wait 5m; echo code=$?.");
    terminal.shows("waiting for the GPU lock, held by somebody");
    terminal.shows(" of 5m");
    rig.gpuctl("lock release --token").arg(token.trim()).run().succeeds().stdout("released\n");
    terminal.shows("code=0.");
    until("it is told what became of it", || {
        terminal.text().contains("had to wait for the GPU lock")
    });
}

#[test]
fn a_command_is_told_with_the_time_that_it_took_and_not_with_the_wait_for_another() {
    let rig = Rig::new();
    rig.unit("vllm").add();
    rig.set("services.box", toml::toml! { type = "docker" container = "box" vram_mb = 1 });
    // This client has said all, and is then left alone until the other one has ended.
    let inspected = r#"[{"Id":"aaa","Name":"/box","State":{"Status":"exited"}}"#;
    rig.program("docker", &format!("echo '{inspected}'; echo ']'; exec sleep 0.2"));
    rig.program("systemctl", "sleep 3; echo LoadState=loaded; echo ActiveState=inactive");
    let told = rig.gpuctl("status -v").run().succeeds().ignores_stdout().stderr_text();
    let time = |command: &str| {
        let line =
            told.lines().find(|line| line.contains(command)).unwrap_or_else(|| panic!("{told}"));
        line.rsplit_once("after ").unwrap().1.to_owned()
    };
    assert!(time("`systemctl").starts_with("3s"), "{told}");
    assert!(time("`docker container inspect").ends_with("ms"), "{told}");
}

/// Returns what a command shows on a terminal of 60 columns; asserts that it exits with this code,
/// and that the terminal breaks no line.
#[track_caller]
fn at_60_columns(rig: &Rig, variables: &str, words: &str, exit: &str) -> String {
    let display = Display::start(rig, (40, 60), variables, words);
    display.terminal.shows(&format!("code={exit}."));
    let told = display.lines().join("\n");
    assert!(!(0..40).any(|row| display.emulated().screen().row_wrapped(row)), "{words}:\n{told}");
    told
}

#[test]
fn on_a_narrow_terminal_messages_break_between_words_and_in_a_pipe_nowhere() {
    let rig = before_phase_3();
    rig.native("another").add();
    rig.native("third").add();
    let refused = "\
gpuctl: no service named \"nobody-of-this-name\" is configured
hint: configured services: comfyui, cosyvoice, another,
  third
code=4.";
    // The first terminal has a cursor that can be moved, the second has none.
    for variables in ["", "TERM=dumb"] {
        let told = at_60_columns(&rig, variables, "start nobody-of-this-name", "4");
        assert_eq!(told, refused);
    }
    let told = at_60_columns(&rig, "", "start comfyui --gpu 0 --no-preemptt", "2");
    assert!(told.contains("hint: usage: gpuctl start") && told.contains("\n  "), "{told}");
    let told = at_60_columns(&rig, "", "can-fit 90000", "1");
    assert!(told.starts_with("does not fit: 90000 MB needed, "), "{told}");
    assert!(told.contains("\n  "), "{told}");
    let told = at_60_columns(&rig, "", "prepare-phase 3", "0");
    assert!(
        told.contains("phase 3 (speech): stopped comfyui; freed 20000 MB; started\n  cosyvoice ("),
        "{told}"
    );
    // What is drawn during a wait breaks between words too.
    rig.gpuctl("lock acquire somebody-with-a-name").run().succeeds().text();
    let waiting = Display::start(&rig, (40, 60), "", "prepare-phase 4 --wait 60");
    until("the step breaks between words", || {
        let rows: Vec<String> = waiting.emulated().screen().rows(0, 60).take(2).collect();
        rows[0].trim_end().ends_with("waiting for the GPU lock, held by")
            && rows[1].starts_with("  somebody-with-a-name (")
    });
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
    waiting.terminal.shows("code=0.");
    // Scripts count on one line, even if the shell that they come from has set its width.
    let piped =
        rig.gpuctl("start nobody-of-this-name").env("COLUMNS", "60").run().fails("not_found");
    let expected = refused.replace("\n  ", " ").replace("code=4.", "");
    assert_eq!(piped.stderr_text(), expected);
}
