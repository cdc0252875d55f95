//! Tests of the canary's rows 47 to 50 with production and trials as units of a machine that
//! systemd runs: whatever ends a trial at whichever of its stages, production is back in time, and
//! away for no longer than is booked.

use super::night::{Night, RESTORE_SLA, STAGES, TIMEOUT};
use rig::{Machine, Ssh, until, with_room};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

/// Waits until no other test has trials running, and keeps others out until the guard is dropped:
/// six trials at a time are what a small machine can do.
fn six_at_a_time() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does something to a trial at each of its stages, side by side, each in a corner of its own;
/// asserts that production is back within `limit` and 5 more seconds and away for no longer than is
/// booked.
#[track_caller]
fn at_each_stage(machine: &Machine, what: &str, limit: u64, act: impl Fn(&Night) + Sync) {
    let (act, _turn) = (&act, six_at_a_time());
    thread::scope(|scope| {
        for (stage, is_reached) in STAGES {
            scope.spawn(move || {
                let when = format!("{what}, {stage}");
                let night = Night::slow(machine);
                let prober = night.corner.probe(0);
                night.until_stage(&when, is_reached);
                let begun = Instant::now();
                act(&night);
                night.assert_settled(&when);
                let took = begun.elapsed();
                assert!(took < with_room(limit + 5), "{when}: back after {took:?}");
                night.assert_booked_as_seen(prober, &when);
                let promoted = usize::from(night.books.has_told("promoted"));
                assert_eq!(night.books.promotions(), promoted, "{when}");
            });
        }
    });
}

#[test]
fn row_47_a_units_trial_whose_gpuctl_is_killed_at_any_stage_is_put_right_by_its_guardian() {
    let Some(machine) = Machine::shared() else { return };
    at_each_stage(machine, "gpuctl is killed", RESTORE_SLA, |night| {
        night.kill("--kill-who=main --signal=KILL");
        until("its guardian acts", || night.books.has_told("guardian_acts"));
    });
}

#[test]
fn row_47_a_units_trial_whose_group_is_killed_at_any_stage_is_put_right_by_its_guardian() {
    let Some(machine) = Machine::shared() else { return };
    at_each_stage(machine, "its group is killed", RESTORE_SLA, |night| {
        // Group 0 would be the test's own.
        let main = format!("systemctl show -p MainPID --value {}", night.unit("gpuctl-canary"));
        machine.sh(&format!("main=$({main}); [ \"$main\" -gt 1 ] && kill -KILL -\"$main\""));
        until("its guardian acts", || night.books.has_told("guardian_acts"));
    });
}

#[test]
fn row_73_a_units_trial_whose_control_group_is_killed_at_any_stage_is_put_right_by_the_unit() {
    let Some(machine) = Machine::shared() else { return };
    at_each_stage(machine, "its control group is killed", RESTORE_SLA, |night| {
        night.kill("--kill-who=all --signal=KILL");
        // The guardian may have begun its work before it was killed, too.
        until("the unit recovers", || night.books.has_told("recover"));
    });
}

#[test]
fn row_47_a_units_trial_that_is_stopped_by_systemctl_at_any_stage_puts_it_right_itself() {
    let Some(machine) = Machine::shared() else { return };
    at_each_stage(machine, "systemctl stop", RESTORE_SLA, |night| {
        machine.sh(&format!("systemctl stop {}", night.unit("gpuctl-canary")));
        // If the canary's test was over, its result stands.
        let concluded = if night.books.has_told("completion") { "promoted" } else { "rejected" };
        assert_eq!(night.books.events().last().unwrap(), concluded);
        assert!(!night.books.has_told("guardian_acts"));
        let result = night.result();
        assert!(["success 0", "success 143"].contains(&&*result), "{result}");
    });
}

#[test]
fn row_72_a_units_trial_that_is_suspended_at_any_stage_is_ended_and_put_right_by_its_guardian() {
    let Some(machine) = Machine::shared() else { return };
    at_each_stage(machine, "SIGSTOP", TIMEOUT + RESTORE_SLA, |night| {
        night.kill("--kill-who=main --signal=STOP");
        until("its guardian acts", || night.books.has_told("guardian_acts"));
    });
}

#[test]
fn row_47_native_production_comes_back_in_a_scope_that_outlives_the_trials_unit() {
    let Some(machine) = Machine::shared() else { return };
    let _turn = six_at_a_time();
    let kill = "systemctl kill --kill-who=all --signal=KILL";
    let kill_main = "systemctl kill --kill-who=main --signal=KILL";
    thread::scope(|scope| {
        for act in [kill, kill_main, "systemctl stop", "systemctl is-active"] {
            scope.spawn(move || {
                let night = Night::native(machine, "--completion-delay 2s");
                let prober = night.corner.probe(0);
                night.until_stage(act, |night| night.books.has_told("health_ok"));
                machine.try_sh(&format!("{act} {}", night.unit("gpuctl-canary")));
                night.assert_settled(act);
                night.assert_booked_as_seen(prober, act);
                night.result();
                let pid = format!("pgrep -f '{} '", night.corner.mark("[v]llm"));
                let group = machine.sh(&format!("tail -n 1 /proc/$({pid})/cgroup"));
                let is_own = group.starts_with("0::/system.slice/gpuctl-vllm-");
                assert!(is_own && group.ends_with(".scope\n"), "{act}: {group}");
                // The next call finds production in that scope and ends all of it.
                assert_eq!(night.gpuctl("status --check vllm -q").0, 0, "{act}");
                night.corner.sh("gpuctl stop vllm");
                assert_eq!(machine.try_sh(&pid).0, "", "{act}");
                assert_eq!(night.corner.card.used_mb(), 0, "{act}");
            });
        }
    });
}

#[test]
fn row_47_a_trial_whose_login_over_ssh_is_lost_at_any_stage_is_put_right() {
    let Some(machine) = Machine::shared() else { return };
    for_logins(machine, &["-tt"]);
}

#[test]
fn row_47_a_trial_whose_login_is_lost_is_put_right_though_logind_ends_what_a_login_leaves() {
    let Some(machine) = Machine::own() else { return };
    machine.sh(
        "mkdir -p /etc/systemd/logind.conf.d && \
         printf '[Login]\\nKillUserProcesses=yes\\nKillExcludeUsers=\\n' >/etc/systemd/logind.conf.d/kill.conf && \
         systemctl restart systemd-logind",
    );
    for_logins(&machine, &["-tt", ""]);
}

/// Begins trials in logins with these flags of ssh and cuts the connection at each stage; asserts
/// that production is back in time and away for no longer than is booked.
#[track_caller]
fn for_logins(machine: &Machine, flags: &[&str]) {
    let corner = machine.corner();
    let Some(ssh) = Ssh::new(&corner) else { return };
    let ssh = &ssh;
    for flags in flags {
        let _turn = six_at_a_time();
        thread::scope(|scope| {
            for (stage, is_reached) in STAGES {
                scope.spawn(move || {
                    let when = format!("the login is lost ({flags}), {stage}");
                    let night = Night::slow(machine);
                    let prober = night.corner.probe(0);
                    let run = format!(
                        "SIMGPU_DIR={} GPUCTL_STATE_DIR={} /io/bin/gpuctl --config {} canary run --set vllm_memory_util=0.75",
                        night.corner.path("card"),
                        night.corner.path("state"),
                        night.corner.path("gpuctl.toml")
                    );
                    let unit = night.unit("line");
                    let line = ssh.login("root", flags, &run);
                    machine.sh(&format!("systemd-run --quiet --unit={unit} {line}"));
                    until(&when, || is_reached(&night));
                    let begun = Instant::now();
                    let kill = format!("systemctl kill --kill-who=all --signal=KILL {unit}");
                    let (said, is_cut) = machine.try_sh(&kill);
                    // At the last stage the login may be over by itself, and its unit with it.
                    let is_last = STAGES.last().is_some_and(|(last, _)| *last == stage);
                    assert!(is_cut || is_last, "{when}: {said}");
                    night.assert_settled(&when);
                    let took = begun.elapsed();
                    assert!(took < with_room(TIMEOUT + RESTORE_SLA + 5), "{when}: {took:?}");
                    night.assert_booked_as_seen(prober, &when);
                });
            }
        });
    }
}

#[test]
fn row_48_a_units_canary_that_misbehaves_is_rejected_which_is_no_failure_of_the_unit() {
    let Some(machine) = Machine::shared() else { return };
    let _turn = six_at_a_time();
    thread::scope(|scope| {
        for (flags, timeout, why) in [
            ("--completion empty", TIMEOUT, "no text"),
            ("--vram 30000", TIMEOUT, "ran out of memory"),
            ("--completion oom", TIMEOUT, "ran out of memory"),
            ("--completion crash", TIMEOUT, "the canary "),
            ("--exit-after 300ms --exit-code 3 --warmup 1h", TIMEOUT, "exited with code 3"),
            ("--warmup 1h --ignore-term", 4, "not done within 4s"),
        ] {
            scope.spawn(move || {
                let night = Night::with(machine, "", "--warmup 400ms", flags);
                night.set("timeout", format!("{timeout}s"));
                let prober = night.corner.probe(0);
                let unit = night.unit("gpuctl-canary");
                machine.sh(&format!("systemctl start {unit}"));
                assert_eq!(night.result(), "success 1", "{flags}");
                night.assert_settled(flags);
                night.assert_booked_as_seen(prober, flags);
                assert!(night.books.booked().0 < with_room(timeout + RESTORE_SLA).as_secs_f64());
                let audit = night.books.audit();
                let last = audit.last().unwrap();
                assert_eq!(last["event"], "rejected", "{flags}: {audit:#?}");
                assert!(last["reason"].as_str().unwrap().contains(why), "{flags}: {last}");
                let told = machine.sh(&format!("journalctl -o cat -u {unit}"));
                assert!(told.contains("rejected") && told.contains(why), "{flags}: {told}");
                assert_eq!(night.books.promotions(), 0, "{flags}");
            });
        }
    });
}

/// A key of the canary's configuration, and its value.
type Limit = (&'static str, toml::Value);

#[test]
fn row_49_a_trial_that_a_timer_starts_is_refused_by_each_limit_which_is_no_failure_of_the_unit() {
    let Some(machine) = Machine::shared() else { return };
    let night = Night::with(machine, "", "--warmup 400ms", "");
    let elapses = || night.timer("OnActiveSec=100ms\nAccuracySec=10ms");
    elapses();
    until("the candidate has passed", || night.books.has_told("promoted"));
    assert_eq!(night.result(), "success 0");
    night.assert_settled("by a timer");
    let (booked, production) = (night.books.booked(), night.invocation());
    let prober = night.corner.probe(0);
    let refused = || night.books.events().iter().filter(|it| *it == "refused").count();
    let hour = jiff::Timestamp::now().strftime("%H").to_string().parse::<u32>().unwrap();
    let elsewhere = format!("{:02}:00-{:02}:00 UTC", (hour + 8) % 24, (hour + 9) % 24);
    let limits: [(&str, Limit, Limit); 4] = [
        ("outside_window", ("window", elsewhere.into()), ("window", "00:00-23:59 UTC".into())),
        ("budget_exhausted", ("max_downtime", "30s".into()), ("max_downtime", "1h".into())),
        ("cooldown", ("cooldown", "6h".into()), ("cooldown", "0s".into())),
        ("rate_limited", ("max_runs_per_day", 1.into()), ("max_runs_per_day", 100.into())),
    ];
    for (number, (limit, (key, value), (_, before))) in limits.into_iter().enumerate() {
        night.set(key, value);
        elapses();
        until(limit, || refused() == number + 1);
        assert_eq!(night.result(), "success 75", "{limit}");
        let audit = night.books.audit();
        let why = audit.last().unwrap()["reason"].as_str().unwrap();
        assert!(why.starts_with(&format!("{limit}: ")), "{why}");
        night.set(key, before);
    }
    // A damaged ledger is a failure of the unit.
    let budget = night.books.budget_file();
    let text = std::fs::read_to_string(&budget).unwrap();
    std::fs::write(&budget, &text[..text.len() / 2]).unwrap();
    elapses();
    until("it is refused", || refused() == 5);
    assert_eq!(night.result(), "exit-code 78");
    std::fs::write(&budget, text).unwrap();
    assert_eq!((night.books.booked(), night.invocation()), (booked, production));
    assert!(prober.absences().is_empty());
    // After that failure, the trial that the timer starts runs as before.
    elapses();
    until("it has passed once more", || night.books.promotions() == 2);
}

#[test]
fn row_50_after_a_loss_of_power_at_each_stage_a_shell_is_told_of_the_debt_and_recovers() {
    let Some(machine) = Machine::own() else { return };
    let (machine, _turn) = (&machine, six_at_a_time());
    let mut nights = Vec::new();
    thread::scope(|scope| {
        let nights_at = STAGES.map(|(stage, is_reached)| {
            scope.spawn(move || {
                let night = Night::slow(machine);
                night.until_stage(stage, is_reached);
                // Everything that would put things right is stopped, until each trial has come to
                // its stage.
                night.kill("--kill-who=all --signal=STOP");
                (stage, night, Instant::now())
            })
        });
        nights.extend(nights_at.map(|night| night.join().unwrap()));
    });
    machine.loses_power();
    machine.boots();
    for (stage, night, since) in &nights {
        let was_touched = night.books.stage().as_deref() != Some("ready");
        assert!(!night.is_healthy() && night.books.journal().is_some(), "{stage}");
        let owed = "vllm has not been restored since";
        for (words, code) in [
            ("canary status", 0),
            ("doctor", 1),
            ("release-all", 0),
            ("start vllm --dry-run", 0),
            ("canary run --set vllm_memory_util=0.75", 5),
        ] {
            let (found, said) = night.gpuctl(words);
            assert_eq!(found, code, "{stage}: {words}: {said}");
            let told = if words == "canary status" { "a restore is owed" } else { owed };
            assert!(said.contains(told), "{stage}: {words}: {said}");
        }
        let (code, said) = night.gpuctl("canary recover");
        assert!(code == 0 && said.contains("vllm is back; it was away for"), "{stage}: {said}");
        let away = since.elapsed().as_secs_f64();
        night.assert_settled(stage);
        let booked = night.books.booked().0;
        eprintln!("power is lost, {stage}: booked {booked:.1} s of {away:.1} s");
        assert!(!was_touched || booked > away / 2.0, "{stage}: booked {booked} s of {away} s");
        assert_eq!(night.gpuctl("canary recover"), (0, "nothing to recover\n".to_owned()));
    }
}
