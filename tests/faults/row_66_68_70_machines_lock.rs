//! Tests of the machine's lock, which is the kernel's: a holder that is stopped goes on (row 66),
//! work under the lock keeps it whatever happens to its caller (row 68), and the lock depends on
//! nobody's session (row 70).

use super::lock_work::Work;
use rig::{Rig, Running, Signal, until};
use std::fs;
use std::time::Duration;

#[test]
fn row_66_a_holder_that_was_stopped_while_nobody_wanted_the_lock_goes_on() {
    let rig = Rig::new();
    let work = Work::begin(&rig);
    work.gpuctl.signal(Signal::STOP);
    until("it is stopped", || rig::state(work.gpuctl.pid()) == Some('T'));
    // The kernel's lock has no time limit that could run out in this pause.
    std::thread::sleep(Duration::from_secs(2));
    work.gpuctl.signal(Signal::CONT);
    work.is_done();
    work.gpuctl.wait().succeeds().progress().stdout("");
    rig.assert_free_and_alone();
}

/// Starts a `run` under the token of a lock that was taken by hand, and returns when it works; it
/// works until there is a file `done`.
fn joined(rig: &Rig, token: &str) -> Running {
    rig.native("vidi").add();
    let work = "echo works; until [ -e done ]; do sleep 0.05; done";
    let run = rig.gpuctl("run --quiet vidi -- sh -c").arg(work);
    let run = run.env("GPUCTL_LOCK_TOKEN", token).spawn();
    until("its command works", || run.stdout() == "works\n");
    run
}

/// Asserts that nobody comes in before the `run` has ended, though the lock that it joined is over.
fn keeps_others_out(rig: &Rig, run: Running) {
    let held = rig.lock_held();
    assert_eq!((&held["holder"], &held["ttl"]), (&"me".into(), &(-1).into()));
    let pids: Vec<_> = held["keepers"].as_array().unwrap().iter().map(|one| &one["pid"]).collect();
    assert!(pids.contains(&&run.pid().into()), "{held}");
    let named = format!("PID {} (gpuctl)", run.pid());
    let busy = rig.gpuctl("lock acquire other --no-wait").run().fails("lock_busy");
    busy.stderr_has("held by me").stderr_has(&named);
    rig.gpuctl("lock release --force").run().fails("no").stdout_has(&named);
    let next = rig.gpuctl("lock acquire next --wait 50").spawn();
    until("it waits", || next.stderr().contains("waiting for the GPU lock, held by me"));
    rig.file("home/done", "");
    run.wait().succeeds().stdout("works\n");
    next.wait().succeeds().progress().stdout_has("\n");
}

#[test]
fn row_68_a_joined_run_keeps_the_lock_though_its_caller_is_killed() {
    let rig = Rig::new();
    let caller = rig.by_hand("sleep 1000");
    let token = rig.acquire(&format!("me --ttl 1h --pid {}", caller.pid()));
    let run = joined(&rig, &token);
    drop(caller);
    keeps_others_out(&rig, run);
}

#[test]
fn row_68_a_joined_run_keeps_the_lock_though_its_caller_releases_it() {
    let rig = Rig::new();
    let token = rig.acquire("me --ttl 1h");
    let run = joined(&rig, &token);
    rig.release(&token);
    keeps_others_out(&rig, run);
}

#[test]
fn row_68_a_joined_run_keeps_the_lock_though_its_time_is_over() {
    let rig = Rig::new();
    let token = rig.acquire("me --ttl 2s");
    let run = joined(&rig, &token);
    until("its time is over", || rig.lock_held()["ttl"] == -1);
    keeps_others_out(&rig, run);
}

#[test]
fn row_68_a_nested_run_in_the_background_keeps_the_lock_of_the_outer_one() {
    let rig = Rig::new();
    rig.native("vidi").add();
    // The script does as Python's subprocess does: the descriptor is closed, and the token is
    // known.
    let nested = "until [ -e done ]; do sleep 0.05; done; echo >ended";
    let script = format!(
        "exec bash -c 'for fd in /proc/self/fd/*; do fd=${{fd##*/}}; [ $fd -lt 3 ] || eval \"exec $fd>&-\"; done 2>/dev/null
         setsid gpuctl run --quiet vidi -- sh -c \"{nested}\" >/dev/null 2>&1 & until [ -e begun ]; do sleep 0.05; done'"
    );
    let script = script.replace(nested, &format!("echo >begun; {nested}"));
    rig.gpuctl("run --quiet vidi -- sh -c").arg(script).run().succeeds().stdout("");
    assert_eq!(rig.lock_held()["holder"], "vidi");
    let next = rig.gpuctl("run --quiet vidi --wait 50 -- cat ended").spawn();
    until("it waits", || rig.machines_line() == 1);
    rig.file("home/done", "");
    next.wait().succeeds().stdout("\n");
    rig.assert_free_and_alone();
}

#[test]
fn row_70_the_lock_is_kept_when_the_folder_of_a_login_is_removed() {
    let rig = Rig::new();
    let folder = rig.path("locks");
    rig.set("lock.url", format!("file://{}", folder.join("lock").display()));
    let work = Work::begin(&rig);
    fs::remove_dir_all(rig.path("run")).unwrap();
    let busy = rig.gpuctl("lock acquire other --no-wait").env_remove("XDG_RUNTIME_DIR").run();
    busy.fails("lock_busy").stderr_has("held by vidi");
    work.is_done();
    work.gpuctl.wait().succeeds().progress().stdout("");
}

#[test]
fn row_70_a_cleaner_leaves_the_lock_alone_while_it_is_held() {
    let rig = Rig::new();
    let cleaner = "systemd-tmpfiles";
    if rig.shell(&format!("{cleaner} --version >/dev/null 2>&1 || echo no")).run().succeeds().text()
        != ""
    {
        return rig::skip_or_fail("systemd-tmpfiles", cleaner);
    }
    let work = Work::begin(&rig);
    let lock = rig.lock_file();
    rig.shell(&format!("touch -d '40 days ago' {}", lock.display())).run().succeeds();
    let rules =
        rig.file("rules.conf", &format!("d {} 0700 - - ABCabcmM:1d\n", rig.path("run").display()));
    let clean = format!("{cleaner} --clean {} 2>&1; true", rules.display());
    rig.shell(&clean).run().succeeds().ignores_stdout();
    assert!(lock.exists());
    work.is_done();
    work.gpuctl.wait().succeeds().progress().stdout("");
}
