//! Tests that each claim of `docs/security.md` names tests that exist, and tests of those claims
//! that belong to no single command.

use rig::{Rig, until};
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns a folder and all files and folders below it.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => found.extend(below(&entry.path())),
            false => found.push(entry.path()),
        }
    }
    found
}

/// Returns the names of all tests, as the sources have them.
fn tests() -> BTreeSet<String> {
    let sources = ["tests", "src"].map(|folder| below(&repository().join(folder)));
    let texts =
        sources.iter().flatten().filter(|path| path.extension().is_some_and(|is| is == "rs"));
    let mut names = BTreeSet::new();
    for path in texts {
        let text = fs::read_to_string(path).unwrap();
        for after in text.split("#[test]\n").skip(1) {
            let name = after.split_once("fn ").unwrap().1;
            names.insert(name.split('(').next().unwrap().to_owned());
        }
    }
    names
}

#[test]
fn each_claim_about_security_names_its_tests_and_they_are_there() {
    let page = fs::read_to_string(repository().join("docs/security.md")).unwrap();
    let tests = tests();
    let mut claims = 0;
    for section in page.split("\n## ").skip(1) {
        let (title, text) = section.split_once('\n').unwrap();
        let needs_tests = ["What it does not trust", "What it protects"].contains(&title);
        for claim in text.split("\n- ").skip(1) {
            let quoted: Vec<&str> = claim.split('`').skip(1).step_by(2).collect();
            let named: Vec<_> =
                quoted.iter().filter(|word| word.matches('_').count() > 3).collect();
            assert!(!needs_tests || !named.is_empty(), "no test of: {claim}");
            named
                .iter()
                .for_each(|name| assert!(tests.contains(**name), "there is no test {name}"));
            claims += named.len();
        }
    }
    assert!(claims > 20, "{claims}");
}

#[test]
fn all_that_is_left_behind_is_private_whatever_the_umask() {
    for umask in ["000", "077"] {
        let rig = Rig::new();
        rig.native("vidi").add();
        let state = rig.path("fresh/state");
        rig.set("lock.url", format!("file://{}", rig.path("place/lock").display()));
        rig.file("home/go", "");
        let run = rig.shell(&format!(
            "umask {umask} && exec gpuctl run -q vidi -- sh -c '>works; until [ ! -e go ]; do sleep 0.05; done'"
        ));
        let run = run.env("GPUCTL_STATE_DIR", &state).spawn();
        // Some of the files exist only while the command works.
        let works = rig.path("home/works");
        until("it works", || works.exists());
        let found = [below(&state), below(&rig.path("place"))].concat();
        for path in &found {
            let metadata = path.symlink_metadata().unwrap();
            let others = metadata.permissions().mode() & 0o077;
            // The lock is for everybody who may enter its folder.
            let expected = if path.ends_with("place/lock") { 0o066 } else { 0 };
            assert_eq!(others, expected, "{} under {umask}", path.display());
        }
        let is_there = |name: &str| found.iter().any(|path| path.ends_with(name));
        for name in ["history.jsonl", "history.lock", "logs/vidi.log", "place/lock"] {
            assert!(is_there(name), "{name} is not in {found:?}");
        }
        fs::remove_file(rig.path("home/go")).unwrap();
        run.wait().succeeds();
    }
}

#[test]
fn no_secret_is_on_a_command_line() {
    const SECRET: &str = "hunter2-of-all";
    let rig = Rig::new();
    let Some(redis) = rig.redis_with(&["--requirepass", SECRET]) else { return };
    rig.set("lock.url", format!("redis://:{SECRET}@127.0.0.1:{}/0", redis.port()));
    let env = toml::toml! { API_KEY = "hunter2-of-all" };
    let vidi = rig.native("vidi").set("env", env).add();
    // This program stands in for the real one, to record what it is called with.
    rig.program("docker", "echo \"$@\" >>\"$HOME/called\"; echo '[]'");
    rig.set("services.voice", toml::toml! { type = "docker" container = "voice" vram_mb = 1 });
    let work = "echo $GPUCTL_LOCK_TOKEN >token.new; mv token.new token; exec sleep 1000";
    let run = rig.gpuctl("run --quiet vidi -- sh -c").arg(work).spawn();
    let token = rig.path("home/token");
    until("it works", || token.exists());
    let token = fs::read_to_string(token).unwrap();
    let lines: Vec<String> = rig
        .gpuctls()
        .iter()
        .chain(&rig.processes_of(&vidi))
        .map(|pid| fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default())
        .map(|line| String::from_utf8_lossy(&line).into_owned())
        .chain([fs::read_to_string(rig.path("home/called")).unwrap()])
        .collect();
    assert!(lines.len() > 3, "gpuctl, its watchdog, the service, docker: {lines:?}");
    for line in lines.iter().filter(|line| !line.contains("redis-server")) {
        assert!(!line.contains(SECRET) && !line.contains(token.trim_end()), "{line}");
    }
    run.signal(rig::Signal::TERM);
    run.wait().exits(143);
}

#[test]
fn what_a_service_prints_tells_the_terminal_nothing() {
    let rig = Rig::new();
    let start = r"printf 'a\033[2Jb\007c\302\2331md\342\200\256e'; exit 3";
    rig.native("vidi").set("start", start).add();
    for form in ["start vidi", "start vidi --json", "start vidi -vv", "history", "history --json"] {
        let said = rig.shell(&format!("gpuctl {form} 2>&1; true")).run().succeeds().text();
        // A character that turns a line round is plain data in JSON.
        let turns = |c: char| c == '\u{202e}' && !form.contains("json");
        let is_obeyed = |c: char| (c.is_control() && c != '\n') || turns(c);
        assert!(said.contains("[2Jb") && !said.contains(is_obeyed), "{form}: {said:?}");
    }
}

#[test]
fn a_service_that_is_started_under_a_lock_does_not_get_its_token() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let voice = rig.native("voice").phases([2]).add();
    rig.gpuctl("run -q vidi -- gpuctl start -q voice").run().succeeds();
    for pid in rig.processes_of(&voice) {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
        let environment = String::from_utf8_lossy(&environment);
        assert!(environment.contains("GPUCTL_SERVICE=voice"), "{environment}");
        assert!(!environment.contains("GPUCTL_LOCK_TOKEN"), "{environment}");
    }
    assert!(!rig.processes_of(&voice).is_empty());
}
