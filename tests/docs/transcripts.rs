//! Tests that what `docs/` shows of a terminal is what happens: a shell plays each section that has
//! a `console` block, on a machine of its own, and the whole transcript is compared.

use regex_lite::Regex;
use rig::page::{Page, Section};
use rig::{Rig, skip_or_fail, works};
use serde_json::{Value as Json, json};
use toml::{Table, Value};

/// Pages with transcripts, each of which has a test of its own.
const PAGES: [&str; 5] = ["planning.md", "checklist.md", "lock.md", "operations.md", "desktop.md"];

/// Makes the machine that the pages describe: the card, the four services, and programs that stand
/// for the reader's own.
fn machine() -> Rig {
    let rig = Rig::new();
    rig.card.describe(&json!({"reclaim_delay_ms": 300}));
    for (phase, name) in
        [("1", "crawl"), ("2", "analysis"), ("3", "speech"), ("4", "video"), ("5", "render")]
    {
        rig.set(&format!("phases.{phase}"), name);
    }
    let native = |name, vram, priority| rig.native(name).vram(vram).priority(priority);
    let comfyui = native("comfyui", 20000, 100).phases([4]).server("--idle-vram 600").add();
    native("cosyvoice", 4000, 50).phases([3]).add();
    native("vidi", 4000, 40).phases([2]).add();
    native("ollama", 18000, 10).add();

    let server = comfyui.command().split(' ').next().unwrap();
    let run = |name, vram| format!("exec {server} --name {} --vram {vram}", rig.mark(name));
    rig.program("start_whisper", &run("whisper", 2000));
    // This program returns once the training holds its memory, as its log then tells.
    let training = format!("({}) >training.log 2>&1 &", run("training", 6000));
    let is_there = "until [ -s training.log ]; do sleep 0.02; done";
    rig.program("start_training", &format!("{training}\n{is_there}"));
    rig
}

/// Makes the machine of `desktop.md`: two servers that unload when they are asked, and a game.
fn desktop() -> Rig {
    let rig = Rig::new();
    rig.card.describe(&json!({"reclaim_delay_ms": 300}));
    let servers = [
        ("ollama", 12000, 10, "--api ollama --model qwen --unload-residual 500"),
        ("comfyui", 14000, 20, "--api comfyui --idle-vram 600"),
    ];
    for (name, vram, priority, flags) in servers {
        let draft = rig.native(name).vram(vram).priority(priority).set("evict", "unload");
        let server = draft.set("idle", "30m").server(flags).add();
        rig.set(&format!("services.{name}.api"), name);
        rig.set(&format!("services.{name}.url"), server.url(""));
    }
    let game = format!("{} --name {} --vram 15000", rig.simserver(), rig.mark("game"));
    rig.program("game", &format!("exec {game} --graphics --exit-after 900ms >/dev/null"));
    rig
}

/// Adds the configuration that a section shows.
fn configure(rig: &Rig, text: &str) {
    let mut keys = Vec::new();
    leaves("", Value::Table(text.parse::<Table>().unwrap()), &mut keys);
    for (key, value) in keys {
        rig.set(&key, value);
    }
}

/// Collects the values of a table by their full keys.
fn leaves(key: &str, value: Value, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Table(table) => {
            for (name, value) in table {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                leaves(&key, value, found);
            }
        }
        value => found.push((key.to_owned(), value)),
    }
}

/// Returns a script that types the commands of a transcript and shows what they print, with `$?` as
/// a reader would see it.
fn script(transcript: &str) -> String {
    let commands = transcript.lines().filter_map(|line| line.strip_prefix("$ "));
    let typed = commands.map(|command| {
        let shown = command.replace('\'', r"'\''");
        format!("status=$?; echo '$ {shown}'; (exit $status)\n{command}\n")
    });
    format!("exec 2>&1\n{}exit 0\n", typed.collect::<String>())
}

/// Returns the pattern of a transcript: `…` stands for any part of a line and, on a line of its
/// own, for any lines but commands.
fn pattern(transcript: &str) -> Regex {
    let lines = transcript.lines().map(|line| match line.trim() {
        "…" => r"(?:\n|[^$\n].*\n)*".to_owned(),
        _ => line.split('…').map(regex_lite::escape).collect::<Vec<_>>().join(".+") + "\n",
    });
    Regex::new(&format!("^{}$", lines.collect::<String>())).unwrap()
}

/// Plays a section, and returns what happened if the page shows something else.
fn play(section: &Section, machine: fn() -> Rig) -> Option<String> {
    let shown = section.text_of("console");
    if shown.is_empty() {
        return None;
    }
    let rig = machine();
    configure(&rig, &section.text_of("toml"));
    let told = rig.shell(&script(&shown)).run().succeeds().text();
    let title = &section.title;
    let is_so = pattern(&shown).is_match(&told);
    (!is_so).then(|| format!("## {title}\n{shown}\n--- and this is what happens:\n{told}"))
}

#[track_caller]
fn play_all(page: &str) {
    let machine = if page == "desktop.md" { desktop } else { machine };
    let sections = Page::read(page).sections;
    let wrong: Vec<String> = sections.iter().filter_map(|section| play(section, machine)).collect();
    assert!(wrong.is_empty(), "{page} shows:\n{}", wrong.join("\n"));
}

#[test]
fn each_page_that_shows_a_terminal_is_played() {
    let shows =
        |page: &Page| page.sections.iter().any(|section| !section.text_of("console").is_empty());
    let mut pages: Vec<String> =
        Page::all().into_iter().filter(shows).map(|page| page.name).collect();
    pages.sort();
    let mut played = PAGES.map(str::to_owned);
    played.sort();
    assert_eq!(pages, played);
}

#[test]
fn planning_decides_as_the_page_says() {
    play_all(PAGES[0]);
}

#[test]
fn the_checklist_of_the_seeds_can_be_walked() {
    play_all(PAGES[1]);
}

#[test]
fn the_lock_is_taken_and_given_back_as_the_page_says() {
    play_all(PAGES[2]);
}

#[test]
fn the_history_tells_what_the_page_says() {
    play_all(PAGES[3]);
}

#[test]
fn a_desktop_with_one_card_works_as_the_page_says() {
    play_all(PAGES[4]);
}

/// Makes each call of curl on the page as it is written but for the port. A call is written as
/// `curl … | jq 'FILTER'   # STATUS VALUE`.
#[test]
fn what_the_checklist_asks_by_curl_is_answered_as_it_says() {
    if !works("curl", &["--version"]) {
        return skip_or_fail("curl", "curl");
    }
    let rig = machine();
    let Some(http) = rig.http("127.0.0.1") else { return };
    let sections = Page::read("checklist.md").sections;
    let calls: String = sections.iter().map(|section| section.text_of("sh")).collect();
    assert!(calls.lines().count() > 10, "{calls}");
    for call in calls.lines() {
        let (typed, wanted) = call.split_once(" # ").unwrap();
        let (curl, filter) = typed.split_once("| jq").unwrap_or((typed, ""));
        let curl = curl.replace("localhost:8000", &format!("localhost:{}", http.port));
        let told = rig.shell(&format!("{curl} -s -w '%{{http_code}}'")).run().succeeds().text();
        let (document, status) = told.split_at(told.len() - 3);
        let document: Json = serde_json::from_str(document).unwrap();
        let filter = filter.trim().trim_matches('\'').replace('.', "/");
        let answer = document.pointer(&filter).unwrap();
        let told = match filter.is_empty() {
            true => status.to_owned(),
            false => format!("{status} {answer}"),
        };
        assert_eq!(told, wanted, "{call}\n{document:#}");
    }
}
