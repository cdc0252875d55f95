//! Tests of the completion scripts in their shells, as if somebody typed and pressed the tab key.

use rig::{Rig, Terminal, skip_or_fail, until, works};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const BASH_COMPLETION: &str = "/usr/share/bash-completion/bash_completion";

/// Pairs of what is typed and what it becomes when the tab key is pressed.
const TYPED: &[(&str, &str)] = &[
    ("gpuctl prep", "gpuctl prepare-phase "),
    ("gpuctl stop com", "gpuctl stop comfyui "),
    ("gpuctl stop comfyui vi", "gpuctl stop comfyui vidi "),
    ("gpuctl start --no-p", "gpuctl start --no-preempt "),
    ("gpuctl run --phase=ren", "gpuctl run --phase=render "),
    ("gpuctl status --config oth", "gpuctl status --config other.toml "),
    ("gpuctl --config=oth", "gpuctl --config=other.toml "),
    ("gpuctl --config=other.toml stop spe", "gpuctl --config=other.toml stop special "),
    (
        "gpuctl --config 'some where.toml' stop els",
        "gpuctl --config 'some where.toml' stop elsewhere ",
    ),
    ("gpuctl run comfyui -- paint-a", "gpuctl run comfyui -- paint-all "),
    ("gpuctl run comfyui -- paint-all oth", "gpuctl run comfyui -- paint-all other.toml "),
];

/// Creates a rig with the completion scripts installed where users put them.
fn rig() -> Rig {
    let rig = Rig::new();
    rig.native("comfyui").set("start", "true").phases([4]).add();
    rig.native("vidi").set("start", "true").add();
    rig.set("phases.4", "render");
    for (file, service) in [("other.toml", "special"), ("some where.toml", "elsewhere")] {
        let text =
            format!("[services.{service}]\ntype = \"native\"\nstart = \"true\"\nvram_mb = 1\n");
        let path = rig.file(&format!("home/{file}"), &text);
        fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }
    rig.program("paint-all", "true");
    for (shell, place) in [
        ("bash", ".local/share/bash-completion/completions/gpuctl"),
        ("zsh", "functions/_gpuctl"),
        ("fish", ".config/fish/completions/gpuctl.fish"),
    ] {
        let place = rig.path("home").join(place);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        let script = rig.gpuctl("completions").arg(shell).run().succeeds().text();
        fs::write(place, script).unwrap();
    }
    rig
}

fn is_here(shell: &str) -> bool {
    let is_here = works(shell, &["-c", "true"]);
    if !is_here {
        skip_or_fail("shells", shell);
    }
    is_here
}

/// Starts a shell and returns when it has executed its start-up commands, `begin`.
#[track_caller]
fn start(rig: &Rig, shell: &str, begin: &str) -> Terminal {
    let terminal = rig.terminal(shell);
    terminal.shows("ready> ");
    terminal.types(&format!("{begin}; echo begun-$((1+1))"));
    terminal.shows("begun-2");
    terminal
}

#[track_caller]
fn completes(terminal: &Terminal) {
    for (typed, becomes) in TYPED {
        terminal.presses(&format!("{typed}\t"));
        terminal.shows(becomes);
        // Ctrl-U clears the line.
        terminal.presses("\x15");
    }
    // A second tab lists the possible completions.
    terminal.presses("gpuctl stop \t\t");
    until("both are shown", || {
        let text = terminal.text();
        let shown = text.rsplit("gpuctl stop comfyui vidi ").next().unwrap();
        shown.contains("comfyui") && shown.contains("vidi")
    });
}

#[test]
fn bash_completes_without_the_package_for_it() {
    let rig = rig();
    let terminal = start(&rig, "bash --norc -i", "source <(gpuctl completions bash)");
    completes(&terminal);
}

#[test]
fn bash_completes_with_the_package_for_it_and_also_behind_sudo() {
    if !Path::new(BASH_COMPLETION).exists() {
        return skip_or_fail("shells", "bash-completion");
    }
    let rig = rig();
    let terminal = start(&rig, "bash --norc -i", &format!("source {BASH_COMPLETION}"));
    completes(&terminal);
    terminal.presses("\x15sudo gpuctl release-all --fo\t");
    terminal.shows("sudo gpuctl release-all --force ");
}

#[test]
fn zsh_completes_from_a_folder_of_functions() {
    if !is_here("zsh") {
        return;
    }
    let rig = rig();
    let begin = "fpath=(~/functions $fpath); autoload -U compinit; compinit -u -D";
    completes(&start(&rig, "zsh -f -i", begin));
}

#[test]
fn zsh_completes_from_a_script_that_is_sourced() {
    if !is_here("zsh") {
        return;
    }
    let rig = rig();
    let begin = "autoload -U compinit; compinit -u -D; source <(gpuctl completions zsh)";
    completes(&start(&rig, "zsh -f -i", begin));
}

#[test]
fn fish_completes() {
    if !is_here("fish") {
        return;
    }
    let rig = rig();
    for (typed, becomes) in TYPED {
        let last = becomes.trim_end().rsplit(' ').next().unwrap();
        let complete = rig.shell("exec fish -c 'complete -C \"$TYPED\"'").env("TYPED", typed);
        let text = complete.run().succeeds().text();
        let offered: Vec<&str> =
            text.lines().map(|line| line.split('\t').next().unwrap()).collect();
        assert_eq!(offered, [last], "{typed}");
    }
    let complete = rig.shell("exec fish -c 'complete -C \"gpuctl stop \"'");
    complete.run().succeeds().stdout("comfyui\tnative, 1000 MB\nvidi\tnative, 1000 MB\n");
}

#[test]
fn bash_stays_silent_where_gpuctl_is_not_found() {
    let rig = rig();
    let script = rig.gpuctl("completions bash").run().succeeds().text();
    rig.file("home/gpuctl.bash", &script);
    let ask = "source ./gpuctl.bash; PATH=/nowhere; COMP_WORDS=(gpuctl s) COMP_CWORD=1 COMP_LINE='gpuctl s' COMP_POINT=8; _gpuctl gpuctl s gpuctl";
    rig.shell("exec bash -c \"$ASK\"").env("ASK", ask).run().succeeds();
}
