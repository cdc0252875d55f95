//! Tests of how `gpuctl status` looks: on terminals of several sizes, with and without colour, and
//! in a pipe.

use rig::{Bystander, Display, Rig, docker_client_or_skip, until};
use serde_json::json;
use std::os::unix::fs::symlink;

/// A rig with four services, of which one is ready, one is in error and two are stopped; a desktop
/// holds memory too.
struct World {
    rig: Rig,
    _servers: Vec<Bystander>,
}

fn world() -> World {
    let rig = Rig::new();
    rig.card.describe(&json!({"devices": [{"reserved_mb": 300}]}));
    let comfyui = rig.native("comfyui").vram(20000).priority(100).phases([4]);
    let comfyui = comfyui.server("--vram 9000").add();
    rig.native("cosyvoice").vram(4000).priority(50).phases([3]).add();
    let vidi = rig.native("vidi").vram(4000).priority(40).phases([2, 7]).add();
    rig.native("ollama").vram(8000).priority(10).phases([1]).add();
    let [comfyui_server, vidi_server] = [&comfyui, &vidi].map(|one| rig.by_hand(one.command()));
    let desktop = comfyui.command().split(' ').next().unwrap().to_owned();
    let desktop = format!("{desktop} --name {} --vram 700 --graphics", rig.mark("desktop"));
    let servers = vec![comfyui_server, vidi_server, rig.by_hand(&desktop)];
    until("all are up", || {
        rig.card.used_mb() == 13700 && comfyui.is_healthy() && vidi.is_healthy()
    });
    rig.shell(&format!("kill -STOP {}", servers[1].pid())).run().succeeds();
    let stat = format!("/proc/{}/stat", servers[1].pid());
    until("vidi is suspended", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    World { rig, _servers: servers }
}

/// Returns the lines up to the processes. The rows of services end before HEALTH, UPTIME and what
/// follows, which no two runs share.
fn stable(lines: &[String]) -> String {
    let titles = lines.iter().find(|line| line.starts_with("SERVICE")).expect("a table");
    let end = titles.find("  HEALTH").unwrap_or(usize::MAX);
    let upto = lines.iter().position(|line| line.trim_start().starts_with("PID")).unwrap();
    let is_row = |line: &str| {
        ["comfyui ", "cosyvoice ", "vidi ", "ollama "].iter().any(|name| line.starts_with(name))
    };
    let shown = lines[..upto].iter().map(|line| match is_row(line) {
        true => line.chars().take(end).collect::<String>().trim_end().to_owned(),
        false => line.clone(),
    });
    shown.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

const AT_80: &str = "
GPU 0 NVIDIA GeForce RTX 4090, 45 °C, 10 % busy, driver 570.86.15
VRAM 13700 of 24576 MB used, 10576 free, 9552 available, 24000 committed
█████████████████████████████▒▒▒▒▒▒▒▒▒▒▒▒▒░░░┼▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁╱╱╱
█ comfyui 9000  ▒ vidi 4000  ░ others 700  ┼ driver 300  ▁ promised 9552
  ╱ reserve 1024
GPU lock free

SERVICE    STATE       USED MB  DECLARED  PRIO  PHASES  HEALTH  UPTIME
comfyui    ● ready        9000     20000   100  4
cosyvoice  ○ stopped         0      4000    50  3
vidi       ✗ error        4000      4000    40  2,7
  suspended by a signal (SIGSTOP)
ollama     ○ stopped         0      8000    10  1";
const AT_160: &str = "
GPU 0 NVIDIA GeForce RTX 4090, 45 °C, 10 % busy, driver 570.86.15
VRAM 13700 of 24576 MB used, 10576 free, 9552 available, 24000 committed
███████████████████████████████████████████████████████████▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒░░░░┼┼▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁╱╱╱╱╱╱╱
█ comfyui 9000  ▒ vidi 4000  ░ others 700  ┼ driver 300  ▁ promised 9552  ╱ reserve 1024
GPU lock free

SERVICE    STATE       USED MB  DECLARED  PRIO  PHASES  HEALTH  UPTIME
comfyui    ● ready        9000     20000   100  4
cosyvoice  ○ stopped         0      4000    50  3
vidi       ✗ error        4000      4000    40  2,7
ollama     ○ stopped         0      8000    10  1";
const AT_40: &str = "
GPU 0 NVIDIA GeForce RTX 4090, 45 °C,
  10 % busy, driver 570.86.15
VRAM 13700 of 24576 MB used, 10576 free,
  9552 available, 24000 committed
███████████████▒▒▒▒▒▒░┼▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁╱╱
█ comfyui 9000  ▒ vidi 4000
  ░ others 700  ┼ driver 300
  ▁ promised 9552  ╱ reserve 1024
GPU lock free

SERVICE    STATE       USED MB  DECLARED
comfyui    ● ready        9000     20000
cosyvoice  ○ stopped         0      4000
vidi       ✗ error        4000      4000
  suspended by a signal (SIGSTOP)
ollama     ○ stopped         0      8000";
const IN_ASCII: &str = "
GPU 0 NVIDIA GeForce RTX 4090, 45 C, 10 % busy, driver 570.86.15
VRAM 13700 of 24576 MB used, 10576 free, 9552 available, 24000 committed
#############################+++++++++++++oood_______________________________///
# comfyui 9000  + vidi 4000  o others 700  d driver 300  _ promised 9552
  / reserve 1024
GPU lock free

SERVICE    STATE       USED MB  DECLARED  PRIO  PHASES  HEALTH  UPTIME
comfyui    * ready        9000     20000   100  4
cosyvoice  . stopped         0      4000    50  3
vidi       x error        4000      4000    40  2,7
  suspended by a signal (SIGSTOP)
ollama     . stopped         0      8000    10  1";

#[test]
fn it_fits_the_terminal() {
    let world = world();
    for (columns, variables, expected) in [
        (80, "", AT_80),
        (160, "LANG=en_GB.UTF-8", AT_160),
        (40, "LC_ALL=C.UTF-8 LANG=C", AT_40),
        (80, "LANG=C", IN_ASCII),
        (80, "LC_CTYPE=POSIX LANG=de_DE.UTF-8", IN_ASCII),
    ] {
        let display = Display::finished(&world.rig, (50, columns), variables, "status");
        let emulated = display.emulated();
        let wrapped = (0..50).filter(|row| emulated.screen().row_wrapped(*row)).count();
        let lines = display.lines();
        let told = lines.join("\n");
        assert_eq!(wrapped, 0, "lines wrap at {columns} columns:\n{told}");
        assert_eq!(stable(&lines), expected.trim(), "at {columns} columns, {variables}:\n{told}");
    }
    for columns in [16, 20, 30, 60, 79] {
        let display = Display::finished(&world.rig, (90, columns), "", "status");
        let told = display.lines().join("\n");
        assert!(!(0..90).any(|row| display.emulated().screen().row_wrapped(row)), "{told}");
        assert!(told.contains("GPU 0") && told.contains("●"), "at {columns}:\n{told}");
    }
}

#[test]
fn a_wide_terminal_has_the_detail_in_line_and_health_and_uptime_are_told() {
    let world = world();
    let at_160 = Display::finished(&world.rig, (50, 160), "", "status").lines();
    let row = |name: &str| at_160.iter().find(|line| line.starts_with(name)).unwrap().clone();
    assert!(row("vidi").ends_with("s  suspended by a signal (SIGSTOP)"), "{}", row("vidi"));
    let words: Vec<String> = row("comfyui").split_whitespace().map(str::to_owned).collect();
    let [.., health, unit, uptime] = words.as_slice() else { panic!("{words:?}") };
    assert!(health.parse::<f64>().is_ok() && ["ms", "s"].contains(&unit.as_str()), "{words:?}");
    assert!(uptime.ends_with('s'), "{words:?}");
    assert!(row("ollama").ends_with(" -       -"), "{}", row("ollama"));
    let process = at_160.iter().find(|line| line.contains("--graphics")).expect("its command line");
    assert!(process.contains("    700  -        simserver --name desktop-"), "{process}");
}

#[test]
fn colour_is_for_those_who_want_it_and_of_the_terminals_own() {
    let world = world();
    for (variables, is_coloured) in [
        ("", true),
        ("CLICOLOR_FORCE=0", true),
        ("NO_COLOR=1", false),
        ("NO_COLOR=1 CLICOLOR_FORCE=1", false),
        ("TERM=dumb", false),
    ] {
        let display = Display::finished(&world.rig, (50, 80), variables, "status");
        let text = display.terminal.text();
        assert_eq!(text.contains('\x1b'), is_coloured, "{variables}: {text}");
        for sequence in text.split('\x1b').skip(1) {
            let (code, _) = sequence.split_once('m').expect("a colour and nothing else");
            let known = ["[0", "[1", "[2", "[31", "[32", "[33", "[34", "[35", "[36"];
            assert!(known.contains(&code), "{code:?} in {text}");
        }
    }
    let plain = world.rig.gpuctl("status").run().succeeds().text();
    assert!(!plain.chars().any(|c| c.is_control() && c != '\n'), "{plain:?}");
    let forced = world.rig.gpuctl("status").env("CLICOLOR_FORCE", "1").run().succeeds().text();
    assert!(forced.contains("\x1b[32m●\x1b[0m ready"), "{forced}");
}

#[test]
fn in_a_pipe_a_line_is_as_long_as_it_has_to_be() {
    if !docker_client_or_skip() {
        return;
    }
    let rig = Rig::new();
    rig.container("voice").not_installed().add();
    let text = rig.gpuctl("status").run().succeeds().text();
    let row = text.lines().find(|line| line.starts_with("voice")).unwrap();
    assert!(row.contains("unknown") && row.ends_with("Is the docker daemon running?"), "{text}");
    // `watch` gives the width in this variable.
    let bounded = rig.gpuctl("status").env("COLUMNS", "50").run().succeeds().text();
    assert!(bounded.lines().all(|line| line.chars().count() <= 50), "{bounded}");
    assert!(bounded.contains("\n  Docker cannot be reached: "), "{bounded}");
}

#[test]
fn nothing_that_others_have_named_moves_the_cursor() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let server = vidi.command().split(' ').next().unwrap();
    // The fifteen bytes of this name that the kernel keeps are whole characters.
    let evil = rig.path("home/ev\u{1b}[2J\u{7}\u{9b}31m\u{202e}il");
    symlink(server, &evil).unwrap();
    let _evil =
        rig.by_hand(&format!("'{}' --vram 500 --name {}", evil.display(), rig.mark("evil")));
    let legacy = rig.lock_in_redis();
    if let Some(redis) = &legacy {
        assert!(redis.legacy_acquire("py\u{1b}]0;owned\u{7}\nthon"));
    }
    until("it holds its memory", || rig.card.used_mb() == 500);
    for words in ["status", "status --prometheus"] {
        let text = rig.gpuctl(words).run().succeeds().text();
        assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{words}: {text:?}");
        assert!(!text.contains('\u{202e}'), "{words}: {text:?}");
    }
    let text = rig.gpuctl("status").run().succeeds().text();
    assert!(text.contains(r"ev\u{1b}[2J\u{7}\u{9b}31m\u{202e}il"), "{text}");
    if legacy.is_some() {
        assert!(text.contains(r"GPU lock held by py\u{1b}]0;owned\u{7} thon ("), "{text}");
    }
}

#[test]
fn wide_characters_count_twice() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let wide = rig.path("home/模型服务器模型服务器模型服务器");
    symlink(vidi.command().split(' ').next().unwrap(), &wide).unwrap();
    let _wide = rig.by_hand(&format!("{} --vram 500 --name {}", wide.display(), rig.mark("wide")));
    until("it holds its memory", || rig.card.used_mb() == 500);
    for columns in [40, 41, 60] {
        let display = Display::finished(&rig, (30, columns), "", "status");
        let lines = display.lines();
        let row = lines.iter().position(|line| line.contains("模型")).expect("the process");
        assert!(!display.emulated().screen().row_wrapped(row as u16), "{lines:?}");
        assert!(lines[row].ends_with('…'), "{lines:?}");
    }
}

#[test]
fn without_nvml_the_bar_shows_what_runs_as_declared() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    rig.native("idle").vram(2000).add();
    let _server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    rig.set("gpu.total_mb", 8000);
    let text = rig.gpuctl("status").run().succeeds().text();
    let bar = format!("\n{}{}{}\n", "█".repeat(50), "·".repeat(37), "╱".repeat(13));
    for part in [
        "GPU (not read)\nVRAM 4000 of 8000 MB used, 4000 free, 2976 available, 4000 committed (estimate)\n",
        &bar,
        "\n█ vidi 4000  · available 2976  ╱ reserve 1024\n",
        "\nwarning: gpu.nvml_library cannot be loaded: /nowhere/libnvidia-ml.so.1: ",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains("PID"), "{text}");
}

#[test]
fn memory_that_cannot_be_told_apart_is_not_called_the_others() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    let _server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    rig.card.describe(&json!({"process_memory_known": false}));
    rig.gpuctl("status").run().succeeds().stdout_has("\n░ unattributed 4000  · available");
}

#[test]
fn the_lock_is_told_with_holder_owner_and_time_left() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let token = rig.acquire("nora --ttl 1h --pid 1");
    let text = rig.gpuctl("status").run().succeeds().text();
    let line = text.lines().find(|line| line.starts_with("GPU lock")).unwrap();
    let has_owner =
        line.starts_with("GPU lock held by nora (") && line.contains(":1, lock acquire");
    assert!(has_owner && line.ends_with(" s left)"), "{line}");
    rig.release(&token);
    rig.gpuctl("status").run().succeeds().stdout_has("\nGPU lock free\n");
}

#[test]
fn many_services_each_have_a_cell_and_a_full_card_has_no_room_for_more() {
    let rig = Rig::new();
    rig.set("gpu.reserve_mb", 0);
    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    rig.set("gpu.total_mb", 24000);
    let services: Vec<_> = (0..8)
        .map(|index| {
            let vram = if index == 0 { 30000 } else { 1 };
            rig.native(&format!("s{index}")).vram(vram).server("--vram 0").add()
        })
        .collect();
    let _servers: Vec<_> = services.iter().map(|one| rig.by_hand(one.command())).collect();
    until("all are healthy", || services.iter().all(|one| one.is_healthy()));
    let text = rig.gpuctl("status").env("COLUMNS", "20").run().succeeds().text();
    let bar = format!("\n{}▓▒▄▚█▓▒\n", "█".repeat(13));
    assert!(text.contains(&bar), "{bar} is not in {text}");
}

#[test]
fn signs_that_combine_and_screens_of_a_few_columns_are_no_panic() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let wide = rig.path("home/☁️☁️☁️☁️☁️模型");
    symlink(vidi.command().split(' ').next().unwrap(), &wide).unwrap();
    let _wide = rig.by_hand(&format!("{} --vram 500 --name {}", wide.display(), rig.mark("wide")));
    until("it holds its memory", || rig.card.used_mb() == 500);
    for columns in ["0", "1", "2", "3", "5", "30", "1000", "99999999999", "x"] {
        rig.gpuctl("status").env("COLUMNS", columns).run().succeeds().stdout_has("V");
    }
}

#[test]
fn what_is_promised_is_told_apart_from_what_is_available() {
    let rig = Rig::new();
    rig.native("comfyui").vram(20000).server("--vram 600").add();
    rig.gpuctl("start comfyui --quiet").run().succeeds();
    let status = rig.gpuctl("status").run().succeeds();
    status.stdout_has("promised 19400").stdout_has("available 3552");
}

#[test]
fn who_manages_a_service_is_told_where_there_is_room() {
    let rig = Rig::new();
    let unit = rig.unit("vllm").add();
    rig.native("vidi").add();
    let wide = rig.gpuctl("status").env("COLUMNS", "160").run().succeeds();
    wide.stdout_has("MANAGED BY").stdout_has(&format!("systemd {}", unit.mark()));
}
