//! Tests of a restore that is owed: gpuctl and its guardian are gone in the middle of a trial, as
//! when the machine loses its power (row 50), or production does not come back. Every command says
//! so, and `canary recover` pays the debt.

use rig::{Rig, Running, Signal, Trial, signal, until, with_room};
use serde_json::json;
use std::thread;
use std::time::{Duration, Instant};

const OWED: &str = "vllm has not been restored since";

type Point = (&'static str, fn(&Trial) -> bool);

/// Starts a trial and returns it with its canary at work.
fn in_the_middle() -> (Trial, Running) {
    let trial = Trial::native();
    trial.canary("--completion-delay 1h");
    let run = trial.run().spawn();
    until("the canary is healthy", || trial.has_told("health_ok"));
    (trial, run)
}

/// Kills production and everything that would put it right, as a loss of power does.
fn lose_power(trial: &Trial, run: Running) {
    let guardians = trial.guardians();
    assert_eq!(guardians.len(), 1);
    trial.kill_all(&guardians);
    Trial::kill_group(&run);
    drop(run);
    // A process that was just being started is seen a moment later.
    until("nothing is left", || {
        let left = [trial.canary_processes(), trial.rig.processes_of(&trial.vllm)].concat();
        trial.kill_all(&left);
        left.is_empty()
    });
}

#[track_caller]
fn assert_recovers(trial: &Trial, when: &str) {
    let recover = trial.rig.gpuctl("canary recover").run();
    recover.succeeds().progress().stdout_has("vllm is back; it was away for");
    trial.assert_all_is_well(when);
    trial.rig.assert_lock_was_given_back();
    let (booked, events) = (trial.booked(), trial.events());
    assert_eq!(booked.1, [booked.0], "{when}");
    assert!(trial.has_told("recover"), "{when}: {events:?}");
    assert_eq!(events.last().unwrap(), "prod_restored", "{when}: {events:?}");

    let again = trial.rig.gpuctl("canary recover").run();
    again.succeeds().stdout("nothing to recover\n");
    assert_eq!((trial.booked(), trial.events()), (booked, events), "{when}");
    trial.run().arg("--dry-run").run().succeeds().stdout_has("pass");
}

/// Only `recover` is called after all processes of a trial's unit were killed, and a killed process
/// dies when it next has a processor.
#[test]
fn row_47_recover_waits_for_a_guardian_that_is_at_work_or_about_to_die() {
    for (then, said) in [(Signal::CONT, "nothing to recover"), (Signal::KILL, "vllm is back")] {
        let (trial, run) = in_the_middle();
        let [guardian] = trial.guardians()[..] else { panic!("it has one guardian") };
        signal(guardian, Signal::STOP);
        Trial::kill_group(&run);
        drop(run);
        let recover = trial.rig.gpuctl("canary recover").spawn();
        until("it waits", || recover.stderr().contains("waiting for the trial's guardian"));
        signal(guardian, then);
        recover.wait().succeeds().stdout_has(said).progress();
        trial.assert_all_is_well(said);
        trial.rig.assert_free_and_alone();
        assert_eq!(trial.events().last().unwrap(), "prod_restored", "{said}");
        assert_eq!(trial.has_told("recover"), then == Signal::KILL);
        let (used, bookings) = trial.booked();
        assert_eq!(bookings, [used], "{said}");
    }
}

#[track_caller]
fn status(trial: &Trial) -> serde_json::Value {
    trial.rig.gpuctl("canary status --json").run().succeeds().json()
}

#[test]
fn row_50_after_a_loss_of_power_at_each_stage_recover_brings_production_back_and_books_once() {
    let points: [Point; 5] = [
        ("there is a journal", |trial| trial.journal().is_some()),
        ("production is being taken away", |trial| trial.stage().as_deref() == Some("away")),
        ("the canary runs", |trial| !trial.canary_processes().is_empty()),
        ("it is at restoring", |trial| trial.stage().as_deref() == Some("restoring")),
        ("production starts", |trial| {
            trial.has_told("canary_stopped") && !trial.rig.processes_of(&trial.vllm).is_empty()
        }),
    ];
    for (point, is_reached) in points {
        let trial = Trial::native();
        trial.canary("--completion-delay 300ms");
        let run = trial.run().spawn();
        until(point, || is_reached(&trial));
        // gpuctl is stopped so that everything goes at once; otherwise the guardian would do its
        // work.
        run.signal(Signal::STOP);
        lose_power(&trial, run);
        assert_eq!(status(&trial)["restore_owed"], true, "{point}");
        assert_recovers(&trial, point);
    }
}

#[test]
fn row_50_production_that_somebody_has_started_again_is_left_alone_and_booked_for_what_it_was_away()
{
    let begun = Instant::now();
    let (trial, run) = in_the_middle();
    run.signal(Signal::STOP);
    lose_power(&trial, run);
    trial.rig.gpuctl("start vllm --quiet").run().succeeds();
    let back = begun.elapsed();
    let servers = trial.rig.processes_of(&trial.vllm);
    // After this pause production's absence, counted up to now, is longer than `back`, whenever it
    // began.
    thread::sleep(back);
    assert_recovers(&trial, "started by hand");
    assert_eq!(trial.rig.processes_of(&trial.vllm), servers, "it was stopped once more");
    let (used, back) = (trial.booked().0, back.as_secs_f64());
    assert!(used < back, "booked {used} s, and it was back after {back} s");
}

#[test]
fn row_50_a_journal_of_another_boot_is_owed_whoever_has_its_pids_now() {
    let (trial, run) = in_the_middle();
    lose_power(&trial, run);
    let mut journal = trial.journal().unwrap();
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let start: u64 = stat.rsplit(')').next().unwrap().split(' ').nth(20).unwrap().parse().unwrap();
    let me = json!([{"pid": std::process::id(), "pid_start": start}]);
    journal["keepers"] = me;
    trial.write_journal(&journal);
    assert_eq!(status(&trial)["restore_owed"], false, "one of its keepers lives");

    journal["boot"] = "01234567-89ab-cdef-0123-456789abcdef".into();
    trial.write_journal(&journal);
    assert_eq!(status(&trial)["restore_owed"], true);
    trial.run().run().fails("start_failed").stderr_has(OWED);
    assert_recovers(&trial, "another boot");
}

#[test]
fn row_50_every_command_that_acts_says_that_a_restore_is_owed_and_the_others_work() {
    let (trial, run) = in_the_middle();
    trial.rig.native("voice").phases([3]).add();
    lose_power(&trial, run);
    let rig = &trial.rig;
    rig.gpuctl("status").run().succeeds().stdout_has("vllm");
    rig.gpuctl("can-fit 1000").run().succeeds().stdout_has("fits");
    rig.gpuctl("canary status")
        .run()
        .succeeds()
        .stdout_has("a restore is owed: `gpuctl canary recover`");
    rig.gpuctl("canary check --set vllm_memory_util=0.75").run().succeeds().stdout_has("pass");
    rig.gpuctl("lock status").run().succeeds().stdout_has("free");

    let run = rig.gpuctl("canary run --set vllm_memory_util=0.75 --now --json").run();
    let refusal = run.fails("start_failed").json();
    assert!(refusal["error"]["message"].as_str().unwrap().contains(OWED), "{refusal}");
    assert!(refusal["error"]["hint"].as_str().unwrap().contains("canary recover"), "{refusal}");

    let acting = [
        ("prepare-phase 3 --dry-run", "voice"),
        ("prepare-phase 3", "started voice"),
        ("start voice", "voice"),
        ("restart voice", "voice"),
        ("stop voice", "stopped voice"),
        ("release-idle --after 1h", "nothing"),
        ("run voice -- echo worked", "worked"),
        ("release-all", "stopped voice"),
    ];
    for (words, told) in acting {
        let outcome = rig.gpuctl(words).run().succeeds().stderr_has(OWED);
        drop(outcome.stderr_has("`gpuctl canary recover` puts it right").stdout_has(told));
    }
    let by_hand = rig.by_hand("sleep 1000");
    let adopt = rig.gpuctl(&format!("adopt voice {}", by_hand.pid())).run();
    drop(adopt.succeeds().stderr_has(OWED).ignores_stdout());
    rig.gpuctl("stop voice").run().succeeds().stderr_has(OWED).stdout_has("stopped voice");
    assert_recovers(&trial, "after other commands");
    rig.gpuctl("stop voice").run().succeeds().stdout_has("voice");
}

#[test]
fn row_47_gpuctl_and_its_guardian_killed_recover_ends_the_canary_too() {
    let (trial, run) = in_the_middle();
    trial.kill_all(&trial.guardians());
    Trial::kill_group(&run);
    drop(run);
    assert_eq!(trial.canary_processes().len(), 1);
    trial.rig.gpuctl("start vllm --dry-run").run().stderr_has(OWED).fails("insufficient_vram");
    assert_recovers(&trial, "the canary runs still");
}

#[test]
fn row_50_of_two_that_recover_at_once_one_brings_production_back_and_it_stays() {
    let (trial, run) = in_the_middle();
    lose_power(&trial, run);
    let prober = trial.probe();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let recover = trial.rig.gpuctl("canary recover --quiet").run();
                let told = recover.succeeds().text();
                let is_one = ["nothing to recover", "vllm is back"].map(|text| told.contains(text));
                assert!(is_one.contains(&true), "{told}");
            });
        }
    });
    let absences = prober.absences();
    assert_eq!(absences.len(), 1, "production went away again: {absences:?}");
    let restored = trial.events().iter().filter(|event| *event == "prod_restored").count();
    assert_eq!(restored, 1, "{:?}", trial.events());
    trial.assert_all_is_well("recovered twice");
}

/// Creates a trial whose production starts only while there is no file `broken`.
fn breakable(restore_sla: &str, start_timeout: &str) -> Trial {
    let trial = Trial::new(Rig::new(), |rig| rig.native("vllm").server("--warmup 400ms"));
    let broken = trial.rig.path("broken");
    let start = format!("test ! -e {} && exec {}", broken.display(), trial.vllm.command());
    trial.rig.set("services.vllm.start", start);
    trial.rig.set("services.vllm.start_timeout", start_timeout);
    trial.rig.set("canary.restore_sla", restore_sla);
    trial.canary("--completion-delay 300ms");
    trial
}

#[track_caller]
fn break_it(trial: &Trial) {
    until("production is away", || trial.has_told("prod_stopped"));
    trial.rig.file("broken", "");
}

#[track_caller]
fn repair(trial: &Trial) {
    trial.rig.set("canary.restore_sla", "20s");
    std::fs::remove_file(trial.rig.path("broken")).unwrap();
}

#[test]
fn production_that_does_not_come_back_is_5_and_owed_until_recover_brings_it_back() {
    let trial = breakable("1s", "3s");
    let run = trial.rig.gpuctl("canary run --set vllm_memory_util=0.75 --json").spawn();
    break_it(&trial);
    let failure = run.wait().fails("start_failed").stderr_has("vllm was not back within 1s").json();
    let canary = &failure["error"]["details"]["canary"];
    assert_eq!(canary["restored"], false, "{failure}");
    let restore_seconds = canary["restore_seconds"].as_f64().unwrap();
    assert!((3.0..13.0).contains(&restore_seconds), "its start_timeout is 3 s: {failure}");
    assert!(failure["error"]["message"].as_str().unwrap().contains("has not come back"));
    assert!(failure["error"]["hint"].as_str().unwrap().contains("canary recover"), "{failure}");
    let events = trial.events();
    assert!(trial.has_told("restore_sla_missed") && !trial.has_told("prod_restored"), "{events:?}");
    assert_eq!(trial.promotions(), 0);
    trial.rig.assert_lock_was_given_back();
    assert_eq!(status(&trial)["restore_owed"], true);

    trial.rig.gpuctl("canary recover").run().fails("start_failed").stderr_has("not come back");
    assert_eq!(status(&trial)["restore_owed"], true);
    repair(&trial);
    assert_recovers(&trial, "repaired");
}

#[test]
fn row_47_a_guardian_whose_production_does_not_come_back_leaves_it_owed() {
    let trial = breakable("1s", "2s");
    trial.canary("--completion-delay 1h");
    let run = trial.run().spawn();
    break_it(&trial);
    until("the canary is healthy", || trial.has_told("health_ok"));
    let guardians = trial.guardians();
    assert_eq!(guardians.len(), 1);
    Trial::kill_group(&run);
    drop(run);
    // A guardian that is exiting has no command line any more, but still exists.
    until("its guardian gives up", || rig::state(guardians[0]).is_none());
    let owed = status(&trial);
    assert_eq!(owed["restore_owed"], true, "{owed} {:?}", trial.events());
    assert_eq!(trial.canary_processes(), [0; 0]);
    trial.rig.assert_lock_was_given_back();
    repair(&trial);
    assert_recovers(&trial, "repaired");
}

#[test]
fn production_that_comes_back_late_is_told_and_the_verdict_stands() {
    let trial = breakable("300ms", "30s");
    let run = trial.run().spawn();
    break_it(&trial);
    until("production is being started", || trial.stage().as_deref() == Some("restoring"));
    let since = Instant::now();
    until("its time is over", || since.elapsed() > Duration::from_millis(400));
    repair(&trial);
    run.wait()
        .succeeds()
        .stdout_has("passed")
        .stderr_has("warning: vllm was not back within 300ms");
    assert!(trial.has_told("restore_sla_missed") && trial.has_told("prod_restored"));
    assert_eq!(trial.promotions(), 1);
    trial.assert_all_is_well("late");
}

#[test]
fn row_50_production_that_is_ready_settles_the_debt_at_the_next_call_of_any_kind() {
    // Each call settles the debt by itself and says so on stderr; `doctor` says so in its report.
    let calls = [
        ("status", 0),
        ("history", 0),
        ("lock status", 0),
        ("can-fit 99999", 1),
        ("config check", 0),
        ("config show", 0),
        ("logs vllm", 0),
        ("start vllm", 0),
        ("canary status", 0),
        ("canary check --set vllm_memory_util=0.75", 0),
        ("canary reset-budget", 0),
        ("canary unlock --force", 0),
        ("canary recover", 0),
        ("doctor", 0),
    ];
    for (call, code) in calls {
        let begun = Instant::now();
        let (trial, run) = in_the_middle();
        run.signal(Signal::STOP);
        lose_power(&trial, run);
        let mut server = trial.rig.by_hand(trial.vllm.command());
        until("somebody has started it", || trial.vllm.is_healthy());
        let back = begun.elapsed().as_secs_f64();
        let told = trial.rig.gpuctl(call).run().exits(code);
        match call {
            "canary recover" => drop(told.progress().stdout_has("vllm is back; it was away for")),
            "doctor" => drop(told.stdout_has("vllm is back after the trial that was interrupted")),
            _ => {
                let said = "vllm is back after the trial that was interrupted";
                drop(told.ignores_stdout().stderr_has(said).ignores_stderr());
            }
        }
        assert_eq!(trial.journal(), None, "{call}");
        let used = trial.booked().0;
        if call != "canary reset-budget" {
            assert!(0.0 < used && used < back, "{call}: booked {used} s of {back} s");
        }
        assert!(trial.has_told("prod_restored"), "{call}");
        let again = trial.rig.gpuctl(call).run().exits(code).ignores_stdout().stderr_text();
        assert!(!again.contains("is back"), "{call}: {again}");
        assert!(server.is_alive());
        trial.run().arg("--dry-run").run().succeeds().stdout_has("pass");
    }
}

#[test]
fn row_50_a_journal_of_an_earlier_boot_stops_nothing() {
    let (trial, run) = in_the_middle();
    run.signal(Signal::STOP);
    lose_power(&trial, run);
    let mut journal = trial.journal().unwrap();
    assert_eq!(journal["progress"], "away");
    journal["boot"] = "01234567-89ab-cdef-0123-456789abcdef".into();
    trial.write_journal(&journal);
    // The new boot is just starting production.
    let slowly = trial.vllm.command().replace("--warmup 400ms", "--warmup 3s");
    trial.rig.set("services.vllm.start", format!("exec {slowly}"));
    let start = trial.rig.gpuctl("start vllm --quiet").spawn();
    until("it comes up", || !trial.rig.processes_of(&trial.vllm).is_empty());
    let servers = trial.rig.processes_of(&trial.vllm);
    assert_recovers(&trial, "an earlier boot");
    assert_eq!(trial.rig.processes_of(&trial.vllm), servers, "it was stopped");
    start.wait().succeeds().ignores_stderr();
}

#[test]
fn row_50_what_is_owed_holds_up_no_status_whatever_hangs() {
    let (trial, run) = in_the_middle();
    run.signal(Signal::STOP);
    lose_power(&trial, run);
    let _server = trial.rig.by_hand(&format!("{} --health hang", trial.vllm.command()));
    let port = ("127.0.0.1", trial.vllm.port());
    until("it listens", || std::net::TcpStream::connect(port).is_ok());
    for call in ["status", "doctor"] {
        let begun = Instant::now();
        let (_, told) = trial.rig.gpuctl(call).run().ended();
        let took = begun.elapsed();
        assert!(told.contains("vllm"), "{call}: {told}");
        // A second look would take as long again.
        assert!(took < with_room(12), "{call} took {took:?}");
        assert!(trial.journal().is_some(), "{call}: it is not ready");
    }
}
