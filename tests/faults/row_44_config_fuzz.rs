//! Tests of broken configurations (row 44): whatever is in the file, gpuctl ends in time with 0, 77
//! or 78, and never panics.

use rig::{Dice, Rig};
use std::fs;

/// Number of configurations that a test tries.
const ROUNDS: u64 = 150;

const VALID_TOML: &str = r#"
[gpu]
index = 0
reserve_mb = 1024
[lock]
url = "redis://:secret@localhost:6379/0"
ttl = "10m"
[phases]
4 = "video"
[services.comfyui]
type = "native"
vram_mb = 20000
priority = 100
phases = [4]
health = "http://localhost:8188/system_stats"
start = "~/mcn/start_comfy.sh"
match = 'python.*main\.py.*8188'
env = { CUDA_VISIBLE_DEVICES = "0" }
start_timeout = "120s"
evict = "unload"
api = "comfyui"
url = "http://localhost:8188"
headers = { Authorization = "Bearer key" }
busy = { url = "http://localhost:8188/prompt", json = "/exec_info/queue_remaining" }
drain = "10m"
idle = "30m"
warm_up = { url = "http://localhost:8188/warm", method = "POST", body = "{}" }
unload = { url = "http://localhost:8188/free", method = "POST", body = "{}" }
[services.vllm]
type = "systemd"
unit = "vllm.service"
user = false
vram_mb = 1
"#;

const VALID_JSON: &str = r#"{"gpu": {"uuid": "GPU-1"}, "phases": {"1": "a"}, "lock": {"wait": 31},
 "services": {"a": {"type": "docker", "container": "c", "vram_mb": 4000, "phases": [1, 2],
  "health": "tcp://localhost:50000", "stop_timeout": "1m"}}}"#;

/// Strings that break parsers and arithmetic.
const NASTY: &[&str] = &[
    "\0",
    "\"",
    "'",
    "\"\"\"",
    "[",
    "]",
    "{",
    "}",
    "[[",
    "=",
    ".",
    ",",
    "\n",
    "\r",
    "\t",
    "#",
    "\\",
    "\\u0000",
    "$",
    "$$",
    "${",
    "${X:-",
    "~",
    "-1",
    "0",
    "18446744073709551616",
    "9223372036854775807",
    "1e999",
    "nan",
    "inf",
    "0x",
    "1979-05-27",
    "true",
    "null",
    "\u{feff}",
    "é",
    "\u{202e}",
    "\u{1b}[2J",
    "services",
    "gpu",
    "unload = {}",
    "://",
    "(",
    "(((((",
    "[[:alpha:]",
    "{9999}",
    "x|",
    "*",
];

/// Checks one configuration file; fails the test if gpuctl exits with anything but 0, 77 or 78,
/// such as after a crash, a panic (101) or a bug (70).
fn try_it(rig: &Rig, file: &str, content: &[u8], seed: u64) {
    let path = rig.path(file);
    fs::write(&path, content).unwrap();
    let script = "gpuctl config check --config \"$FILE\" >\"$FILE.out\" 2>&1; echo $?";
    let code = rig.shell(script).env("FILE", &path).run().succeeds().text();
    let told =
        String::from_utf8_lossy(&fs::read(rig.path(&format!("{file}.out"))).unwrap()).into_owned();
    let content = String::from_utf8_lossy(content);
    let context = format!("seed {seed}: exit {code}{told}\n--- of\n{content}");
    assert!(["0\n", "77\n", "78\n"].contains(&code.as_str()), "{context}");
    assert!(!told.contains("panicked"), "{context}");
    if code != "0\n" {
        assert!(told.starts_with("gpuctl: configuration "), "{context}");
        let is_a_hint = |line: &str| line.starts_with("hint: ");
        assert!(told.lines().skip(1).all(is_a_hint), "more than one line: {context}");
    }
}

fn private(rig: &Rig, file: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(rig.file(file, ""), fs::Permissions::from_mode(0o600)).unwrap();
}

#[test]
fn row_44_bytes_at_random_are_refused_and_never_panic() {
    let rig = Rig::new();
    for seed in 1..=ROUNDS {
        let mut dice = Dice::seeded(seed);
        let length = dice.below(400);
        let bytes: Vec<u8> = match seed % 3 {
            0 => (0..length).map(|_| dice.below(256) as u8).collect(),
            1 => (0..length).map(|_| b' ' + dice.below(95) as u8).collect(),
            _ => (0..length / 4).flat_map(|_| dice.one_of(NASTY).unwrap().bytes()).collect(),
        };
        let file = dice.one_of(&["fuzz.toml", "fuzz.json"]).unwrap();
        private(&rig, file);
        try_it(&rig, file, &bytes, seed);
    }
}

#[test]
fn row_44_a_valid_configuration_that_is_mangled_never_panics() {
    let rig = Rig::new();
    for (file, valid) in [("fuzz.toml", VALID_TOML), ("fuzz.json", VALID_JSON)] {
        private(&rig, file);
        rig.file(file, valid);
        rig.gpuctl("config check --config").arg(rig.path(file)).run().succeeds().stdout_has("good");
        for seed in 1..=ROUNDS {
            let mut dice = Dice::seeded(seed);
            let mut bytes = valid.as_bytes().to_vec();
            for _ in 0..=dice.below(4) {
                let at = dice.below(bytes.len() as u64) as usize;
                let to = (at + 1 + dice.below(12) as usize).min(bytes.len());
                match dice.below(5) {
                    0 => bytes[at] = dice.below(256) as u8,
                    1 => drop(bytes.splice(at..to, [])),
                    2 => drop(bytes.splice(at..at, dice.one_of(NASTY).unwrap().bytes())),
                    3 => drop(bytes.splice(at..to, dice.one_of(NASTY).unwrap().bytes())),
                    _ => bytes.extend_from_within(at..to),
                }
            }
            try_it(&rig, file, &bytes, seed);
        }
    }
}

#[test]
fn row_44_a_value_of_any_kind_in_the_place_of_any_other_never_panics() {
    let rig = Rig::new();
    private(&rig, "fuzz.toml");
    let values = [
        "''",
        "\"\\u0000\"",
        "-1",
        "9223372036854775807",
        "0.0",
        "nan",
        "true",
        "[]",
        "[[[[1]]]]",
        "{}",
        "1979-05-27T07:32:00Z",
        "'$'",
        "'$$'",
        "'${'",
        "'~nobody/x'",
        "'http://'",
        "'tcp://:'",
        "'.*'",
        "'('",
        "'[z-a]'",
        "'a{1,99999}'",
        "'99999999999d'",
    ];
    let lines: Vec<&str> = VALID_TOML.lines().collect();
    let mut dice = Dice::seeded(44);
    for (number, line) in lines.iter().enumerate() {
        let Some((key, _)) = line.split_once(" = ") else { continue };
        for _ in 0..6 {
            let changed = format!("{key} = {}", dice.one_of(&values).unwrap());
            let mut text = lines.clone();
            text[number] = &changed;
            try_it(&rig, "fuzz.toml", text.join("\n").as_bytes(), number as u64);
        }
    }
}

#[test]
fn a_configuration_as_large_as_allowed_is_answered_in_time_whatever_is_in_it() {
    let rig = Rig::new();
    private(&rig, "fuzz.toml");
    private(&rig, "fuzz.json");
    let native = "type='native'\nvram_mb=1\nstart='x'\n";
    let many =
        |count: usize, entry: &dyn Fn(usize) -> String| (0..count).map(entry).collect::<String>();
    let toml = [
        format!("{} = 1", vec!["a"; 500_000].join(".")),
        format!("[{}]", vec!["a"; 500_000].join(".")),
        format!("a = {}", "[".repeat(1_000_000)),
        format!("a = {}", "{a=".repeat(300_000)),
        "[[a]]\n".repeat(170_000),
        format!("[services.a]\n{native}match='{}'", "(".repeat(900_000)),
        format!("[services.a]\n{native}match='(((x{{200}}){{200}}){{200}}){{200}}'"),
        format!("[services.a]\n{native}health='http://{}/'", "a@:".repeat(300_000)),
        format!("[services.a]\n{native}cwd='{}'", "${".repeat(400_000)),
        format!("[phases]\n{}", many(60_000, &|n| format!("{n} = 'p{n}'\n"))),
        format!(
            "[services]\n{}",
            many(5_000, &|n| format!("s{n}={{type='docker',vram_mb=1,container='c{n}'}}\n"))
        ),
        "\n".repeat(1_000_000) + "[",
    ];
    for (seed, text) in toml.iter().enumerate() {
        assert!(text.len() <= 1024 * 1024, "{seed}");
        try_it(&rig, "fuzz.toml", text.as_bytes(), seed as u64);
    }
    let json = ["[".repeat(1_000_000), "{\"services\":".repeat(80_000), "\"".repeat(1_000_000)];
    for (seed, text) in json.iter().enumerate() {
        try_it(&rig, "fuzz.json", text.as_bytes(), 100 + seed as u64);
    }
}
