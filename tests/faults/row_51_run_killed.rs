//! Tests of a `gpuctl run` that is killed while its command works (row 51): the command is ended,
//! or keeps the lock until it has ended.
//!
//! Each part of a command holds a lock of the kernel's on one file for as long as it lives: a
//! command that finds that lock taken works beside another.

use rig::{LOCK_KEY, Redis, Rig, Running, Signal, on_both, parent, signal, state, until};
use std::fs;
use std::time::{Duration, Instant};

/// Beginning of every command's script: it locks the file, or reports that another command has
/// locked it.
const ALONE: &str = "exec 9>>held >/dev/null 2>&1; flock -n 9 || echo \"side by side: $$\" >>trouble; echo \"begin $$\" >>log\n";

/// Script that works until it is ended, or until there is a file `done`.
const WORK: &str = "until [ -e done ]; do sleep 0.02; done";

/// The processes of a `run` that are killed.
#[derive(Clone, Copy, Debug)]
enum Killed {
    Alone,
    Group,
    WithWatchdog,
}

fn prepare(rig: &Rig, body: &str) {
    rig.native("comfyui").add();
    rig.gpuctl("start comfyui").run().succeeds().stdout_has("comfyui").progress();
    rig.program("first", &format!("{ALONE}{body}"));
    rig.program("second", &format!("{ALONE}echo second >>log"));
}

fn log(rig: &Rig) -> String {
    fs::read_to_string(rig.path("home/log")).unwrap_or_default()
}

/// Starts the first command and returns when it works, with the PID of the command's leader.
fn first(rig: &Rig) -> (Running, i32) {
    let run = rig.gpuctl("run --quiet --grace 1s comfyui -- first").spawn();
    until("the first command works", || log(rig).contains("ready"));
    let log = log(rig);
    let leader = log.lines().find_map(|line| line.strip_prefix("begin ")?.parse().ok()).unwrap();
    (run, leader)
}

fn kill(rig: &Rig, run: &Running, what: Killed) {
    match what {
        Killed::Alone => run.signal(Signal::KILL),
        Killed::Group => {
            let group = rustix::process::Pid::from_raw(run.pid()).unwrap();
            rustix::process::kill_process_group(group, Signal::KILL).unwrap();
        }
        Killed::WithWatchdog => {
            // The watchdog is killed first, because it would see gpuctl's end; gpuctl is stopped,
            // so that it starts no other watchdog.
            run.signal(Signal::STOP);
            let is_its = |pid: &i32| parent(*pid) == Some(run.pid());
            rig.gpuctls().into_iter().filter(is_its).for_each(|pid| signal(pid, Signal::KILL));
            run.signal(Signal::KILL);
        }
    }
}

#[track_caller]
fn assert_never_side_by_side(rig: &Rig) {
    let trouble = fs::read_to_string(rig.path("home/trouble")).unwrap_or_default();
    assert_eq!(trouble, "");
}

/// Kills the first `run` while a second one waits; asserts that the first command has ended before
/// the second begins.
fn kill_and_wait(what: Killed, body: &str) {
    on_both(|rig, _| {
        prepare(rig, body);
        let (run, leader) = first(rig);
        let second = rig.gpuctl("run --wait 1m comfyui -- second").spawn();
        until("the second waits", || second.stderr().contains("waiting for the GPU lock"));
        kill(rig, &run, what);
        drop(run.wait().dies_of(9));
        second.wait().succeeds().progress();
        assert!(log(rig).ends_with("second\n") && state(leader).is_none());
        assert_never_side_by_side(rig);
        rig.assert_free_and_alone();
    });
}

const CHILDREN: &str = "(until [ -e done ]; do sleep 0.02; done) &
    setsid sh -c 'until [ -e done ]; do sleep 0.02; done' &
    timeout 1000 sh -c 'until [ -e done ]; do sleep 0.02; done' &
    (setsid sh -c 'sh -c \"until [ -e done ]; do sleep 0.02; done\" & exit')\n";

fn with_children(rest: &str) -> String {
    format!("{CHILDREN}echo ready >>log; {rest}")
}

#[test]
fn row_51_killed_alone_its_command_and_that_ones_children_are_ended() {
    kill_and_wait(Killed::Alone, &with_children(WORK));
}

#[test]
fn row_51_killed_with_its_group_its_command_and_that_ones_children_are_ended() {
    kill_and_wait(Killed::Group, &with_children(WORK));
}

#[test]
fn row_51_a_command_that_ignores_sigterm_is_killed() {
    let body = format!("trap '' TERM; {}", with_children(WORK));
    kill_and_wait(Killed::Alone, &body);
    kill_and_wait(Killed::Group, &body);
}

#[test]
fn row_51_a_command_that_is_stopped_is_ended() {
    let body = format!("(sleep 0.2; kill -STOP $$) & {}", with_children(WORK));
    kill_and_wait(Killed::Alone, &body);
    kill_and_wait(Killed::Group, &format!("trap '' TERM; {body}"));
}

#[test]
fn row_51_what_a_command_leaves_when_its_leader_ends_is_ended_too() {
    // The leader has ended by the time that gpuctl is killed, and gpuctl has not noticed.
    on_both(|rig, _| {
        prepare(rig, &with_children("exit 0"));
        rig.program("first", &format!("{ALONE}trap '' HUP; {}", with_children(WORK)));
        let (run, leader) = first(rig);
        run.signal(Signal::STOP);
        signal(leader, Signal::KILL);
        until("the leader has ended", || state(leader).is_none());
        let second = rig.gpuctl("run --wait 1m comfyui -- second").spawn();
        until("the second waits", || second.stderr().contains("waiting for the GPU lock"));
        run.signal(Signal::KILL);
        drop(run.wait().dies_of(9));
        second.wait().succeeds().progress();
        assert_never_side_by_side(rig);
    });
}

/// Ends the lock in Redis, as its time to live does; the machine's lock has no time to live.
fn let_the_lock_run_out(redis: Option<&Redis>) {
    if let Some(redis) = redis {
        redis.cli(&["PEXPIRE", LOCK_KEY, "1"]);
    }
}

#[test]
fn row_51_killed_with_its_watchdog_its_command_keeps_the_lock_until_it_has_ended() {
    on_both(|rig, redis| {
        prepare(rig, &with_children(WORK));
        let (run, leader) = first(rig);
        let second = rig.gpuctl("run --wait 1m comfyui -- second").spawn();
        until("the second waits", || second.stderr().contains("waiting for the GPU lock"));
        kill(rig, &run, Killed::WithWatchdog);
        drop(run.wait().dies_of(9));
        let_the_lock_run_out(redis);
        rig.gpuctl("start comfyui --wait 2").run().fails("lock_busy").stderr_has("comfyui");
        rig.gpuctl("lock status").run().exits(1).stdout_has("comfyui");
        assert!(state(leader).is_some() && !log(rig).contains("second"));
        rig.file("home/done", "");
        second.wait().succeeds().progress();
        assert_never_side_by_side(rig);
        rig.assert_free_and_alone();
    });
}

#[test]
fn row_51_killed_while_the_service_comes_up_the_command_never_runs() {
    on_both(|rig, _| {
        let comfyui = rig.native("comfyui").server("--warmup 1500ms").add();
        rig.program("first", &format!("{ALONE}echo first >>log"));
        rig.program("second", &format!("{ALONE}echo second >>log"));
        let run = rig.gpuctl("run --quiet comfyui -- first").spawn();
        until("the service comes up", || rig.card.used_mb() > 0);
        run.signal(Signal::KILL);
        drop(run.wait().dies_of(9));
        rig.gpuctl("run --quiet comfyui -- second").run().succeeds();
        assert!(comfyui.is_healthy());
        assert!(log(rig).ends_with("second\n") && !log(rig).contains("first"));
        assert_never_side_by_side(rig);
        rig.assert_free_and_alone();
    });
}

/// Kills the first `run` at twenty moments from its start on, each followed by a second run;
/// asserts that their commands never work side by side.
fn sweep(what: Killed) {
    on_both(|rig, _| {
        prepare(rig, &with_children(WORK));
        for moment in 0..20 {
            let run = rig.gpuctl("run --quiet --grace 1s comfyui -- first").spawn();
            let mut begin = Instant::now();
            let second = (moment % 2 == 0)
                .then(|| rig.gpuctl("run --quiet --wait 1m comfyui -- second").spawn());
            // The moments are counted from gpuctl's start or from the start of its command, in
            // turn.
            let step = match second.is_some() {
                true => Duration::from_millis(5),
                false => {
                    until("the command is there", || {
                        assert!(state(run.pid()).is_some(), "{}", run.stderr());
                        rig.gpuctls().len() > 1
                    });
                    begin = Instant::now();
                    Duration::from_millis(1)
                }
            };
            while begin.elapsed() < step * moment {
                std::hint::spin_loop();
            }
            kill(rig, &run, what);
            drop(run.wait().dies_of(9));
            // Nobody else ends the command in that case.
            let ends_itself = matches!(what, Killed::WithWatchdog);
            ends_itself.then(|| rig.file("home/done", ""));
            let second = second
                .unwrap_or_else(|| rig.gpuctl("run --quiet --wait 1m comfyui -- second").spawn());
            second.wait().succeeds();
            if ends_itself {
                // The second run may have come first, so that the first one's command is still at
                // work.
                until("the first's command has ended", || rig.lock_is_free());
                fs::remove_file(rig.path("home/done")).unwrap();
            }
            assert_never_side_by_side(rig);
        }
        rig.assert_free_and_alone();
    });
}

#[test]
fn row_51_killed_alone_at_twenty_moments_there_are_never_two_commands() {
    sweep(Killed::Alone);
}

#[test]
fn row_51_killed_with_its_group_at_twenty_moments_there_are_never_two_commands() {
    sweep(Killed::Group);
}

#[test]
fn row_51_killed_with_its_watchdog_at_twenty_moments_there_are_never_two_commands() {
    sweep(Killed::WithWatchdog);
}
