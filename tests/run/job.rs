//! Tests of the command of `gpuctl run` as a process: its signals, what it inherits and what it
//! leaves behind.

use rig::{Outcome, Rig, Signal, state, until};
use std::fs;

fn with_comfyui() -> Rig {
    let rig = Rig::new();
    rig.native("comfyui").add();
    rig.gpuctl("start comfyui").run().succeeds().stdout_has("comfyui").progress();
    rig
}

/// Runs a script as the command and, once that prints `ready`, sends the signals to gpuctl.
fn signalled(rig: &Rig, script: &str, signals: &[Signal]) -> Outcome {
    rig.program("work", script);
    let run = rig.gpuctl("run --quiet comfyui -- work").spawn();
    until("the command is ready", || run.stdout().contains("ready"));
    signals.iter().for_each(|signal| run.signal(*signal));
    // Shells report on stderr what their children died of.
    run.wait().ignores_stderr()
}

const FORWARDED: [(Signal, &str, i32); 6] = [
    (Signal::INT, "INT", 130),
    (Signal::TERM, "TERM", 143),
    (Signal::HUP, "HUP", 129),
    (Signal::QUIT, "QUIT", 131),
    (Signal::USR1, "USR1", 138),
    (Signal::USR2, "USR2", 140),
];

#[test]
fn signals_to_gpuctl_reach_the_command_which_decides() {
    let rig = with_comfyui();
    for (signal, name, code) in FORWARDED {
        let handles =
            format!("trap 'echo {name}; exit 7' {name}\necho ready; while :; do sleep 0.02; done");
        let outcome = signalled(&rig, &handles, &[signal]);
        outcome.exits(7).stdout(&format!("ready\n{name}\n"));
        let does_not = "ulimit -c 0; echo ready; exec sleep 1000";
        signalled(&rig, does_not, &[signal]).exits(code).stdout("ready\n");
        rig.assert_free_and_alone();
    }
}

#[test]
fn a_command_that_takes_a_signal_for_news_goes_on() {
    let rig = with_comfyui();
    let script = "trap 'echo news' USR1\ntrap 'echo bye; exit 0' TERM\ntrap 'echo no' INT\n\
                  echo ready; while :; do sleep 0.02; done";
    rig.program("work", script);
    let run = rig.gpuctl("run --quiet comfyui -- work").spawn();
    until("the command is ready", || run.stdout().contains("ready"));
    for (signal, said) in [(Signal::USR1, "news"), (Signal::INT, "no"), (Signal::INT, "no\nno")] {
        run.signal(signal);
        until(said, || run.stdout().contains(said));
    }
    run.signal(Signal::TERM);
    let outcome = run.wait().succeeds().stdout("ready\nnews\nno\nno\nbye\n");
    // Shells report on stderr what their children died of.
    drop(outcome.ignores_stderr());
    rig.assert_free_and_alone();
}

#[test]
fn two_signals_in_quick_succession_both_reach_the_command() {
    let rig = with_comfyui();
    let script = "n=0\ntrap 'echo INT; n=$((n+1))' INT\ntrap 'echo TERM; n=$((n+1))' TERM\n\
                  echo ready; until [ $n = 2 ]; do sleep 0.02; done; exit 9";
    let text = signalled(&rig, script, &[Signal::INT, Signal::TERM]).exits(9).text();
    assert!(text.contains("INT") && text.contains("TERM"), "{text}");
    rig.assert_free_and_alone();
}

#[test]
fn signals_reach_the_commands_children_too() {
    let rig = with_comfyui();
    let script = "trap 'wait; echo parent; exit 0' TERM\n\
                  sh -c 'trap \"echo child; exit 0\" TERM; echo ready; while :; do sleep 0.02; done' &\n\
                  wait; wait";
    let text = signalled(&rig, script, &[Signal::TERM]).succeeds().text();
    assert!(text.contains("child") && text.contains("parent"), "{text}");
}

#[test]
fn a_signal_while_the_command_starts_ends_either_it_or_gpuctl() {
    let rig = with_comfyui();
    rig.program("work", "echo ready; exec sleep 1000");
    for round in 0..20 {
        let run = rig.gpuctl("run comfyui -- work").spawn();
        let begin = std::time::Instant::now();
        // gpuctl has started its watchdog by then, or come a little further.
        until("gpuctl is about", || rig.gpuctls().len() > 1 || run.stdout().contains("ready"));
        while begin.elapsed().as_micros() < round * 300 {}
        run.signal(Signal::TERM);
        drop(run.wait().exits(143).ignores_stdout().ignores_stderr());
        rig.assert_free_and_alone();
    }
}

#[test]
fn under_nohup_a_hangup_ends_neither() {
    let rig = with_comfyui();
    rig.program(
        "work",
        "echo ready; until [ -e done ]; do sleep 0.02; done; kill -HUP $$; echo survived",
    );
    let run = rig.shell("exec nohup gpuctl run --quiet comfyui -- work").spawn();
    until("the command is ready", || run.stdout().contains("ready"));
    run.signal(Signal::HUP);
    rig.file("home/done", "");
    run.wait().succeeds().stdout("ready\nsurvived\n");
    rig.assert_free_and_alone();
}

#[test]
fn closed_streams_are_no_obstacle() {
    let rig = with_comfyui();
    rig.shell("exec gpuctl run --quiet comfyui -- sh -c 'cat; echo ran' <&-")
        .run()
        .succeeds()
        .stdout("ran\n");
    let closed = rig.shell("exec gpuctl run --quiet comfyui -- touch ran <&- >&- 2>&-").run();
    closed.succeeds();
    assert!(rig.path("home/ran").exists());
    rig.assert_free_and_alone();
}

#[test]
fn the_command_inherits_nothing_but_its_streams_and_the_lock_and_no_ignored_signals() {
    let rig = with_comfyui();
    // Descriptors that the test process itself inherits may be among those of the command.
    let numbers =
        |text: String| text.lines().map(|line| line.parse().unwrap()).collect::<Vec<i32>>();
    let testers = numbers(rig.shell("exec ls /proc/self/fd").run().succeeds().text());
    let list = "exec ls /proc/self/fd";
    let run = rig.gpuctl("run --quiet comfyui -- sh -c").arg(list).run();
    let mut inherited = numbers(run.succeeds().text());
    inherited.retain(|number| !testers.contains(number));
    // Shells use the numbers below ten themselves, and would close the lock's descriptor.
    assert!(matches!(inherited[..], [number] if number >= 10), "{inherited:?}");
    let target = format!("readlink /proc/self/fd/{}", inherited[0]);
    let run = rig.gpuctl("run --quiet comfyui -- sh -c").arg(target).run();
    run.succeeds().stdout(&format!("{}\n", rig.lock_file().display()));
    let status = rig.gpuctl("run --quiet comfyui -- cat /proc/self/status").run().succeeds().text();
    for mask in ["SigIgn:", "SigBlk:"] {
        let set = status.lines().find_map(|line| line.strip_prefix(mask)).unwrap();
        // Two signals above these are the C library's own.
        let set = u64::from_str_radix(set.trim(), 16).unwrap() & 0x7fff_ffff;
        assert_eq!(set, 0, "{mask}");
    }
}

#[test]
fn row_68_the_run_ends_with_its_command_and_what_that_leaves_in_the_background_keeps_the_lock() {
    let rig = with_comfyui();
    let left = "sh -c 'until [ -e done ]; do sleep 0.02; done' >/dev/null 2>&1";
    rig.program("work", &format!("{left} & setsid {left} & exit 7"));
    rig.gpuctl("run --quiet comfyui -- work").run().exits(7).stdout("");
    assert!(rig.gpuctls().is_empty(), "{:?}", rig.gpuctls());
    let held = rig.lock_held();
    assert_eq!((&held["holder"], &held["ttl"]), (&"comfyui".into(), &(-1).into()));
    let keepers = held["keepers"].as_array().unwrap();
    assert!(keepers.len() >= 2 && keepers.iter().any(|one| one["name"] == "sh"), "{held}");
    let busy = rig.gpuctl("run --no-wait comfyui -- true").run().fails("lock_busy");
    busy.stderr_has("it has ended, and the lock is kept by PID ").stdout("");
    let next = rig.gpuctl("run --quiet comfyui -- cat done").spawn();
    until("it waits", || rig.machines_line() == 1);
    let kept = rig.gpuctl("lock release --force").run().fails("no");
    kept.stdout_has("not released: ").stdout_has(" (sh)");
    rig.file("home/done", "ended\n");
    next.wait().succeeds().stdout("ended\n");
    rig.assert_free_and_alone();
}

#[test]
fn a_command_that_somebody_stops_is_waited_for() {
    let rig = with_comfyui();
    rig.program("work", "echo $$; until [ -e done ]; do sleep 0.02; done");
    let run = rig.gpuctl("run --quiet comfyui -- work").spawn();
    until("it runs", || run.stdout().ends_with('\n'));
    let pid = run.stdout().trim().parse().unwrap();
    rig::signal(pid, Signal::STOP);
    until("it is stopped", || state(pid) == Some('T'));
    rig.gpuctl("lock status").run().exits(1).stdout_has("comfyui");
    fs::write(rig.path("home/done"), "").unwrap();
    rig::signal(pid, Signal::CONT);
    run.wait().succeeds().stdout(&format!("{pid}\n"));
    rig.assert_free_and_alone();
}

#[test]
fn a_killed_watchdog_is_no_loss_while_gpuctl_lives() {
    let rig = with_comfyui();
    rig.program("work", "echo ready; until [ -e done ]; do sleep 0.02; done; exit 5");
    let run = rig.gpuctl("run --quiet comfyui -- work").spawn();
    until("the command is ready", || run.stdout().contains("ready"));
    let watchdogs: Vec<i32> = rig.gpuctls().into_iter().filter(|pid| *pid != run.pid()).collect();
    assert_eq!(watchdogs.len(), 1);
    rig::signal(watchdogs[0], Signal::KILL);
    until("it is gone", || state(watchdogs[0]).is_none());
    rig.file("home/done", "");
    run.wait().exits(5).stdout("ready\n");
    rig.assert_free_and_alone();
}
