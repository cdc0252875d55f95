//! Tests of the manual pages and completion scripts in the repository: they are those that the
//! program makes, complete, and accepted by the tools that read them.

use rig::{Rig, skip_or_fail, works};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the texts of a folder's files, by name.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    entries.map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

fn pages() -> BTreeMap<String, String> {
    files(&repository().join("man"))
}

#[test]
fn the_pages_in_the_repository_are_those_that_the_program_makes_and_no_others() {
    let rig = Rig::new();
    // gpuctl makes the folders above as well.
    rig.gpuctl("man --out share/man").run().succeeds();
    let made = files(&rig.path("home/share/man"));
    let committed = pages();
    let names = |pages: &BTreeMap<String, String>| pages.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&committed), names(&made), "run `make generated`");
    for (name, text) in &made {
        assert!(
            committed[name] == *text,
            "man/{name} is not what the program makes: run `make generated`"
        );
    }
    rig.gpuctl("man").run().succeeds().stdout(&made["gpuctl.1"]);
}

#[test]
fn the_scripts_in_the_repository_are_those_that_the_program_prints_and_no_others() {
    let rig = Rig::new();
    let committed = files(&repository().join("completions"));
    assert_eq!(committed.keys().collect::<Vec<_>>(), ["_gpuctl", "gpuctl.bash", "gpuctl.fish"]);
    for (shell, file) in [("bash", "gpuctl.bash"), ("zsh", "_gpuctl"), ("fish", "gpuctl.fish")] {
        rig.gpuctl("completions").arg(shell).run().succeeds().stdout(&committed[file]);
    }
    let refused = rig.gpuctl("completions tcsh").run().fails("usage");
    refused.stderr_has("is none of bash, zsh, fish");
}

#[test]
fn a_page_that_cannot_be_written_is_told() {
    let rig = Rig::new();
    rig.file("home/man", "");
    rig.gpuctl("man --out man").run().fails("io").stderr_has("gpuctl: cannot write man: ");
    rig.shell("mkdir -p pages/gpuctl-lock.1").run().succeeds();
    let outcome = rig.gpuctl("man --out pages").run().fails("io");
    outcome.stderr_has("gpuctl: cannot write pages/gpuctl-lock.1: ");
}

/// Collects the names of a command and of all below it, as the help lists them.
fn commands(rig: &Rig, path: &str, found: &mut BTreeSet<String>) {
    found.insert(path.trim().replace(' ', "-"));
    let help = rig.gpuctl(path.trim_start_matches("gpuctl")).arg("-h").run().succeeds().text();
    let listed = help.split("Commands:\n").nth(1).unwrap_or_default();
    for line in listed.lines().take_while(|line| !line.is_empty()) {
        let name = line.strip_prefix("  ").and_then(|line| line.split(' ').next());
        match name.unwrap_or_default() {
            "" | "help" => {}
            name => commands(rig, &format!("{path} {name}"), found),
        }
    }
}

#[test]
fn every_command_has_a_page_with_all_that_belongs_into_it() {
    let rig = Rig::new();
    let mut found = BTreeSet::new();
    commands(&rig, "gpuctl", &mut found);
    let pages = pages();
    let of_commands = pages.keys().filter_map(|name| name.strip_suffix(".1"));
    assert_eq!(of_commands.map(str::to_owned).collect::<BTreeSet<_>>(), found);
    for (name, text) in pages.iter().filter(|(name, _)| name.ends_with(".1")) {
        for section in [
            "NAME",
            "SYNOPSIS",
            "DESCRIPTION",
            "EXIT STATUS",
            "ENVIRONMENT",
            "FILES",
            "EXAMPLES",
            "SEE ALSO",
        ] {
            let content = text.split(&format!("\n.SH {section}\n")).nth(1);
            let is_empty = content.is_none_or(|content| content.starts_with(".SH"));
            assert!(!is_empty, "{name}: nothing under {section}");
        }
    }
}

#[test]
fn every_page_that_a_page_refers_to_is_there() {
    let pages = pages();
    for (name, text) in &pages {
        for (reference, _) in text.match_indices("\\fP(") {
            let (before, after) = (&text[..reference], &text[reference + 4..]);
            let title = before.rsplit("\\fB").next().unwrap().replace("\\-", "-");
            let section = after.split(')').next().unwrap();
            if title.starts_with("gpuctl") {
                assert!(
                    pages.contains_key(&format!("{title}.{section}")),
                    "{name}: {title}({section})"
                );
            }
        }
    }
}

#[test]
fn the_manual_knows_every_exit_code_of_the_contract() {
    let text = &pages()["gpuctl.1"];
    let statuses = text.split(".SH EXIT STATUS\n").nth(1).unwrap().split(".SH").next().unwrap();
    for code in [0, 1, 2, 3, 4, 5, 6, 69, 70, 74, 75, 76, 77, 78, 124, 126, 127] {
        assert!(statuses.contains(&format!("\n\\fB{code}\\fP\n")), "{code}");
    }
    for page in ["gpuctl.1", "gpuctl-prepare-phase.1", "gpuctl-run.1", "gpuctl-stop.1"] {
        assert!(pages()[page].contains("would have to stop is still working"), "{page}");
    }
}

/// Returns the text of every Rust file below a folder, joined.
fn sources(folder: &Path) -> String {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let text = |path: PathBuf| match path.is_dir() {
        true => sources(&path),
        false => fs::read_to_string(path).unwrap(),
    };
    entries.map(text).collect()
}

#[test]
fn the_manual_knows_every_variable_that_the_program_names() {
    let sources = sources(&repository().join("src"));
    let is_one = |text: &&str| {
        let (first, rest) = text.split_once('_').unwrap_or_default();
        [first, rest].iter().all(|part| part.starts_with(|c: char| c.is_ascii_uppercase()))
            && text.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    };
    let manual = &pages()["gpuctl.1"];
    let named: BTreeSet<&str> = sources.split('"').filter(is_one).collect();
    assert!(named.contains("GPUCTL_CONFIG") && named.contains("KLR_CANARY_MODE"), "{named:?}");
    // These are set for other programs, or belong to the build.
    let not_ours = [
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "PCI_BUS_ID",
        "SPT_NOENV",
        "XDG_RUNTIME_DIR",
        "VIRTUAL_ENV",
        "PODMAN_SYSTEMD_UNIT",
        "CARGO_PKG_VERSION",
        "CARGO_MANIFEST_DIR",
    ];
    for variable in named.iter().filter(|name| !not_ours.contains(name)) {
        assert!(manual.contains(&format!("\\fB{variable}\\fP")), "{variable}");
    }
}

#[test]
fn mandoc_and_groff_have_nothing_to_say_against_the_pages() {
    let rig = Rig::new();
    for (program, check) in
        [("mandoc", "mandoc -T lint -W style"), ("groff", "groff -man -T utf8 -ww -z")]
    {
        if !works("sh", &["-c", &format!("command -v {program}")]) {
            skip_or_fail("manual", program);
            continue;
        }
        for name in pages().keys() {
            let page = repository().join("man").join(name);
            rig.shell(&format!("{check} \"$PAGE\"")).env("PAGE", page).run().succeeds();
        }
    }
}
