//! Tests of `gpuctl status --watch`: on a terminal it is drawn anew in its place, and in a pipe one
//! status follows another.

use rig::{Display, Rig, Running, Signal, on_terminal, state, until};
use serde_json::{Value, json};
use std::io::Read;
use std::net::TcpListener;

const SIZE: (u16, u16) = (24, 80);
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H\x1b[2J";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
const BEGIN: &str = "\x1b[?2026h\x1b[H";
const END: &str = "\x1b[J\x1b[?2026l";

fn with_vidi() -> Rig {
    let rig = Rig::new();
    rig.native("vidi").vram(4000).add();
    rig
}

/// Asserts that the terminal is as before: on its first page, with its cursor and with wrapped
/// lines.
#[track_caller]
fn is_as_before(display: &Display) {
    let text = display.terminal.text();
    assert!(text.contains(LEAVE) && text.rfind(LEAVE) > text.rfind(ENTER), "{text:?}");
    let emulated = display.emulated();
    let screen = emulated.screen();
    assert!(!screen.alternate_screen() && !screen.hide_cursor(), "{text:?}");
}

#[test]
fn a_change_is_seen_in_place_and_ctrl_c_ends_it() {
    let rig = with_vidi();
    let display = Display::start(&rig, SIZE, "", "status --watch 0.1");
    display.shows("vidi     ○ stopped");
    display.shows("every 100ms, q ends");
    rig.gpuctl("start vidi --quiet").run().succeeds();
    display.shows("vidi     ● ready");
    let lines = display.lines();
    let tables = lines.iter().filter(|line| line.starts_with("SERVICE")).count();
    assert_eq!(tables, 1, "drawn in its place: {lines:?}");
    rig.gpuctl("stop vidi --quiet").run().succeeds();
    display.shows("vidi     ○ stopped");
    assert!(
        !display.lines().iter().any(|line| line.contains("PID")),
        "nothing is left of the rest"
    );
    display.terminal.presses("\x03");
    display.terminal.shows("code=130.");
    is_as_before(&display);
    let lines = display.lines();
    assert_eq!(
        lines.last().map(String::as_str),
        Some("code=130."),
        "no word of failure: {lines:?}"
    );
}

#[test]
fn q_ends_it_and_leaves_the_terminal_as_it_was() {
    let rig = with_vidi();
    let words = "--version; export TERM=xterm; echo \"<$(stty -g)>\"; gpuctl status --watch 86400; \
                 echo \"code=$? <$(stty -g)>\"; read line; echo \"read $line.\"";
    let display = Display::start(&rig, SIZE, "", words);
    display.shows("q ends");
    // Other keys do nothing, nor does Ctrl-\, and what was typed ahead is left to the next program.
    display.terminal.presses("x\x1b[A\n\x1cqnext\n");
    display.terminal.shows("code=0 ");
    display.terminal.shows("read next.");
    is_as_before(&display);
    let text = display.terminal.text();
    let modes: Vec<&str> =
        text.split('<').skip(1).filter_map(|rest| Some(rest.split_once('>')?.0)).collect();
    assert!(modes.len() == 2 && modes[0] == modes[1], "{modes:?}");
    let (_, after) = text.split_once(ENTER).unwrap();
    let (drawn, _) = after.split_once(LEAVE).unwrap();
    assert!(!drawn.contains("^[") && !drawn.contains("next"), "no key is shown: {drawn:?}");
}

#[test]
fn keys_that_are_anothers_do_not_end_it() {
    let rig = with_vidi();
    for words in ["status --watch 86400 </dev/null", "status --watch 86400 | cat"] {
        let display = Display::start(&rig, SIZE, "", words);
        display.shows("vidi");
        assert!(!display.terminal.text().contains("q ends"), "{words}");
        display.terminal.presses("q\n");
        // The key is shown, as it would be without gpuctl.
        display.terminal.shows("q\r\n");
        assert_eq!(rig.gpuctls().len(), 1, "{words}");
        display.terminal.presses("\x03");
        display.terminal.shows("code=");
    }
}

#[test]
fn a_frame_is_whole_and_clears_nothing_that_it_does_not_draw() {
    let rig = with_vidi();
    let display = Display::start(&rig, SIZE, "", "status --watch 0.1");
    until("there are some", || display.terminal.text().matches(END).count() > 4);
    display.terminal.presses("\x03");
    display.terminal.shows("code=130.");
    let text = display.terminal.text();
    let (_, after) = text.split_once(ENTER).unwrap();
    let (drawn, _) = after.split_once(LEAVE).unwrap();
    let drawn = drawn.replace("^C", "");
    assert!(!drawn.contains("\x1b[2J") && !drawn.contains("\x1bc"), "{drawn:?}");
    for frame in drawn.split_inclusive(END) {
        assert!(frame.starts_with(BEGIN) && frame.ends_with(END), "{frame:?}");
        assert!(frame.contains("VRAM") || frame.contains("looking"), "{frame:?}");
    }
}

#[test]
fn it_takes_the_size_that_the_terminal_has() {
    let rig = with_vidi();
    let mut display = Display::start(&rig, SIZE, "", "status --watch 86400");
    display.shows("reserve 1024");
    let begin = display.terminal.text().len();
    display.resize((2, 40));
    let lines = || on_terminal(&display.emulated_from(begin));
    until("it is drawn anew at once", || {
        lines().last().is_some_and(|line| line.ends_with("more lines: the window is too small"))
    });
    assert_eq!(lines().len(), 2, "{:?}", lines());
    assert!(lines().iter().all(|line| line.chars().count() < 40), "{:?}", lines());
}

#[test]
fn whichever_way_it_ends_the_terminal_is_as_before() {
    let rig = with_vidi();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        let display = Display::start(&rig, SIZE, "", "status --watch");
        display.shows("every 2s");
        let [gpuctl] = rig.gpuctls()[..] else { panic!("one gpuctl: {:?}", rig.gpuctls()) };
        rig::signal(gpuctl, signal);
        display.terminal.shows(&format!("code={code}."));
        is_as_before(&display);
    }
}

#[test]
fn ctrl_z_gives_the_terminal_back_and_fg_takes_it_again() {
    let rig = with_vidi();
    let terminal = rig.terminal("sh -i");
    terminal.shows("ready> ");
    terminal.types("TERM=xterm gpuctl status --watch 86400");
    terminal.shows("vidi");
    terminal.presses("\x1a");
    until("it is stopped", || rig.gpuctls().iter().any(|pid| state(*pid) == Some('T')));
    terminal.is_the_leaders();
    // What gpuctl has written may not have been read yet.
    until("it is given back", || terminal.text().matches(LEAVE).count() == 1);
    terminal.types("fg");
    // The terminal shows again what is typed.
    terminal.shows("fg\r\n");
    until("it is drawn anew", || terminal.text().matches(END).count() > 1);
    assert_eq!(terminal.text().matches(ENTER).count(), 2, "{:?}", terminal.text());
    terminal.presses("\x03");
    terminal.is_the_leaders();
    terminal.types("echo code=$?.");
    terminal.shows("code=130.");
}

#[test]
fn while_something_does_not_answer_the_last_look_stays_with_its_age() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).server("--health hang").add();
    let display = Display::start(&rig, SIZE, "", "status --watch 0.1");
    display.shows("○ stopped");
    let _server = rig.by_hand(vidi.command());
    display.shows("s old: something is not answering");
    assert!(
        display.lines().iter().any(|line| line.starts_with("SERVICE")),
        "{:?}",
        display.lines()
    );
    display.terminal.presses("\x03");
    display.terminal.shows("code=130.");
}

#[test]
fn a_driver_that_comes_back_is_seen() {
    let rig = with_vidi();
    let watch = rig.gpuctl("status --json --watch 0.1").spawn();
    let sources = || {
        let text = watch.stdout();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let source = |status: Value| status["vram"]["source"].as_str().unwrap().to_owned();
        let mut sources: Vec<String> = lines.map(source).collect();
        sources.dedup();
        sources
    };
    until("the card is read", || sources() == ["nvml"]);
    rig.card.describe(
        &json!({"faults": {"nvmlInit_v2": "driver_not_loaded", "nvmlDevice*": "gpu_is_lost"}}),
    );
    until("it is lost", || sources() == ["nvml", "estimate"]);
    rig.card.describe(&json!({}));
    until("it is read again", || sources() == ["nvml", "estimate", "nvml"]);
    watch.signal(Signal::INT);
    drop(watch.wait().exits(130).stdout_has("gpu"));
}

/// Returns how many statuses have been printed so far.
fn printed(watch: &Running) -> usize {
    watch.stdout().matches("VRAM").count()
}

#[test]
fn in_a_pipe_each_has_its_time_and_no_control_characters() {
    let rig = with_vidi();
    let watch = rig.gpuctl("status --watch 0.1").spawn();
    until("there are three", || printed(&watch) > 2);
    watch.signal(Signal::INT);
    let text = watch.wait().exits(130).text();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    let (first, rest) = text.split_once("\n\n2").expect("a blank line before the next time");
    let (time, status) = first.split_once('\n').unwrap();
    assert!(time.starts_with("20") && status.starts_with("GPU 0 "), "{first}");
    assert!(rest.contains("SERVICE"), "{rest}");
}

#[test]
fn on_a_terminal_that_cannot_be_drawn_on_it_is_as_in_a_pipe() {
    let rig = with_vidi();
    let display = Display::start(&rig, SIZE, "TERM=dumb", "status --watch 0.1");
    until("there are two", || display.terminal.text().matches("VRAM").count() > 1);
    assert!(!display.terminal.text().contains('\x1b'), "{:?}", display.terminal.text());
    display.terminal.presses("\x03");
    display.terminal.shows("code=130.");
}

#[test]
fn as_json_it_is_one_document_a_line() {
    let rig = with_vidi();
    let watch = rig.gpuctl("status --json --watch 0.1").spawn();
    until("vidi is stopped", || watch.stdout().lines().count() > 1);
    rig.gpuctl("start vidi --quiet").run().succeeds();
    until("vidi is ready", || watch.stdout().contains("\"state\":\"ready\""));
    watch.signal(Signal::TERM);
    let text = watch.wait().exits(143).text();
    let documents: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a document")).collect();
    let keys: Vec<&String> = documents[0].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["time", "schema", "gpu", "vram", "services", "lock"]);
    assert!(documents[0]["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(documents[0]["services"]["vidi"]["state"], "stopped");
    assert_eq!(documents.last().unwrap()["services"]["vidi"]["state"], "ready");
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_without_a_word() {
    let rig = with_vidi();
    for words in ["status --watch 0.1", "status --watch 0.1 --json"] {
        let script = format!("{{ gpuctl {words}; echo code=$? >&2; }} | head -n 1");
        let told = rig.shell(&script).run().succeeds().stdout_has("20").stderr_text();
        assert_eq!(told, "code=0\n", "{words}");
    }
    let full = rig.shell("gpuctl status --watch 0.1 >/dev/full").run();
    full.fails("io").stderr_has("cannot write to stdout");
}

#[test]
fn a_reader_whose_connection_breaks_off_ends_it_without_a_word() {
    let rig = with_vidi();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!("exec gpuctl status --watch 0.1 >/dev/tcp/127.0.0.1/{port}");
    let watch = rig.shell("exec bash -c \"$SCRIPT\"").env("SCRIPT", script).spawn();
    let (mut reader, _) = listener.accept().unwrap();
    // The reader closes with data unread, which breaks the connection off.
    let mut first = [0];
    reader.read_exact(&mut first).unwrap();
    drop(reader);
    watch.wait().succeeds();
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let rig = with_vidi();
    for (words, problem) in [
        ("status --watch 0", "not a number of seconds"),
        ("status --watch 0.05", "not a number of seconds"),
        ("status --watch=-1", "not a number of seconds"),
        ("status --watch nan", "not a number of seconds"),
        ("status --watch inf", "not a number of seconds"),
        ("status --watch soon", "not a number of seconds"),
        ("status --watch --check vidi", "cannot be used together"),
        ("status --watch --prometheus", "cannot be used together"),
        ("status --prometheus --json", "--prometheus and --json"),
    ] {
        let outcome = rig.gpuctl(words).run();
        match words.contains("--json") {
            true => drop(outcome.fails("usage").stdout_has(problem)),
            false => drop(outcome.fails("usage").stderr_has(problem)),
        }
    }
}

#[test]
fn in_a_small_window_there_is_something_of_every_service() {
    let rig = Rig::new();
    for name in ["comfyui", "cosyvoice", "vidi", "ollama"] {
        rig.native(name).vram(4000).add();
    }
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let display = Display::start(&rig, (12, 60), "", "status --watch 86400");
    display.shows("vidi");
    until("all are there", || {
        let lines = display.lines();
        let shows = |name: &str| lines.iter().any(|line| line.starts_with(name));
        ["comfyui", "cosyvoice", "vidi", "ollama", "SERVICE"].into_iter().all(shows)
    });
    assert!(
        !display.lines().iter().any(|line| line.contains("more lines")),
        "{:?}",
        display.lines()
    );
    display.terminal.presses("\x03");
    display.terminal.shows("code=130.");
}
