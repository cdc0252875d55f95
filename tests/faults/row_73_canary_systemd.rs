//! Tests of trials that the units in `examples/systemd` run, on a machine that systemd runs (row
//! 73): at a loss of power, at a shutdown, at a start limit, and with a debt that another shell
//! finds.

use super::night::{Night, Reached};
use rig::{Machine, until, with_room};
use std::thread;
use std::time::Instant;

#[test]
fn row_73_after_a_loss_of_power_the_boot_brings_production_back_in_whatever_order_and_waits_for_nobody()
 {
    let Some(machine) = Machine::own() else { return };
    let machine = &machine;
    let enabled = "[Install]\nWantedBy=multi-user.target";
    let cases: [(String, Reached); 5] = [
        (format!("[Unit]\nAfter=multi-user.target\n{enabled}"), |night| {
            night.books.has_told("health_ok")
        }),
        (format!("[Unit]\nBefore=gpuctl-recover.service\n{enabled}"), |night| {
            night.books.stage().as_deref() == Some("away")
        }),
        (format!("[Unit]\nBefore=multi-user.target\n{enabled}"), |night| {
            night.books.stage().as_deref() == Some("away")
        }),
        (format!("[Unit]\nAfter=gpuctl-recover.service\n{enabled}"), |night| {
            night.books.stage().as_deref() == Some("restoring")
        }),
        // Only `recover` starts production in this case.
        (String::new(), |night| night.books.has_told("canary_started")),
    ];
    let mut nights = Vec::new();
    thread::scope(|scope| {
        let begun = cases.map(|(lines, is_reached)| {
            scope.spawn(move || {
                let night = Night::new(machine, &lines);
                night.enable(&lines);
                night.until_stage(&lines, is_reached);
                // Everything that would put things right is stopped, until each trial has come so
                // far.
                night.kill("--kill-who=all --signal=STOP");
                (lines, night)
            })
        });
        nights.extend(begun.map(|night| night.join().unwrap()));
    });
    // systemd breaks an ordering cycle by leaving out one unit or another, by chance.
    let order = machine.sh("systemd-analyze verify multi-user.target 2>&1");
    assert!(!order.contains("cycle"), "{order}");
    machine.loses_power();
    machine.boots();
    for (lines, night) in &nights {
        night.until_ready(lines);
        night.assert_settled(lines);
        // Production was not stopped once more: its unit was started once in this boot.
        let unit = night.unit("vllm");
        let starts = machine.sh(&format!("journalctl -b -u {unit} -o cat | grep -c '^Started '"));
        assert_eq!(starts, "1\n", "{lines}");
    }
    assert_eq!(machine.sh("systemctl list-jobs --no-legend"), "");
    assert_eq!(machine.try_sh("systemctl is-system-running").0, "running\n");
}

#[test]
fn row_73_a_shutdown_at_any_stage_of_a_trial_is_not_held_up_and_the_next_boot_has_production_back()
{
    let Some(machine) = Machine::own() else { return };
    let machine = &machine;
    let enabled = "[Install]\nWantedBy=multi-user.target";
    // Each case has the lines of production's unit, the flags of production and of the canary that
    // make a stage last, that stage, and whether gpuctl is killed before the shutdown.
    let cases: [(&str, &str, &str, Reached, bool); 6] = [
        (
            enabled,
            "--term-delay 8s",
            "",
            |night| night.books.stage().as_deref() == Some("away"),
            false,
        ),
        (enabled, "", "--warmup 1h", |night| night.books.has_told("canary_started"), false),
        (enabled, "", "--completion-delay 1h", |night| night.books.has_told("health_ok"), false),
        (enabled, "--warmup 8s", "", |night| night.books.has_told("canary_stopped"), false),
        ("", "", "--completion-delay 1h", |night| night.books.has_told("health_ok"), false),
        (
            "",
            "--warmup 8s",
            "--completion-delay 1h",
            |night| night.books.has_told("health_ok"),
            true,
        ),
    ];
    let mut nights = Vec::new();
    thread::scope(|scope| {
        let made = cases.map(|(lines, production, canary, is_reached, is_killed)| {
            scope.spawn(move || {
                let night = Night::with(machine, lines, production, canary);
                night.enable(lines);
                (format!("{lines} {production} {canary}"), night, is_reached, is_killed)
            })
        });
        nights.extend(made.map(|night| night.join().unwrap()));
    });
    thread::scope(|scope| {
        for (when, night, is_reached, _) in &nights {
            scope.spawn(move || night.until_stage(when, *is_reached));
        }
    });
    // In the last case the guardian goes to work at once, and the shutdown comes before production
    // is ready.
    for (_, night, ..) in nights.iter().filter(|(.., is_killed)| *is_killed) {
        night.kill("--kill-who=main --signal=KILL");
    }
    let begun = Instant::now();
    machine.shuts_down();
    let took = begun.elapsed();
    assert!(took < with_room(20), "the shutdown took {took:?}");
    machine.boots();
    for (when, night, ..) in &nights {
        night.until_ready(when);
        night.assert_settled(when);
    }
}

#[test]
fn row_73_a_start_limit_that_is_hit_does_not_keep_production_away() {
    let Some(machine) = Machine::shared() else { return };
    let night = Night::new(machine, "[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=1");
    machine.try_sh(&format!("systemctl start {}", night.unit("gpuctl-canary")));
    assert_eq!(night.result(), "success 0");
    night.assert_settled("at its start limit");
}

#[test]
fn row_73_a_debt_is_seen_and_settled_from_a_shell_that_knows_another_folder() {
    let Some(machine) = Machine::shared() else { return };
    let night = Night::new(machine, "");
    night.example("gpuctl-canary", &[("ExecStopPost=-/io/bin/gpuctl canary recover\n", "")]);
    night.until_stage("the canary is healthy", |night| night.books.has_told("health_ok"));
    night.kill("--kill-who=all --signal=KILL");
    assert_eq!(night.result(), "signal 9");
    // This is a login of root's that names no state folder.
    let (_, status) = night.gpuctl("canary status");
    assert!(status.contains("a restore is owed"), "{status}");
    let (_, doctor) = night.gpuctl("doctor");
    assert!(doctor.contains("vllm has not been restored since"), "{doctor}");
    let (code, run) = night.gpuctl("canary run --set vllm_memory_util=0.75");
    assert_eq!(code, 5, "{run}");
    let (code, recover) = night.gpuctl("canary recover");
    assert!(code == 0 && recover.contains("vllm is back; it was away for"), "{recover}");
    night.assert_settled("from another shell");
    // No signpost leads to the state folder any more.
    let state = night.corner.path("state");
    let signposts = machine.try_sh(&format!("grep -rl '^{state}$' /var/lib/gpuctl/trials")).0;
    assert_eq!(signposts, "");
    until("it may be tried again", || {
        night.gpuctl("canary run --set vllm_memory_util=0.75 --dry-run").0 == 0
    });
}
