//! Tests of the job queue of a real systemd: what hangs in it holds up gpuctl no longer than the
//! step's limit, and a unit that another one upholds is restarted, or the other one is named.

use super::units::{fails, install, service, succeeds};
use rig::{Corner, Machine, until, with_room};
use std::time::Instant;

/// Installs a unit whose name no other test uses; returns that name.
fn other(corner: &Corner, text: &str) -> String {
    let unit = format!("{}.service", corner.mark("other"));
    corner.unit(&unit, text);
    unit
}

#[test]
fn a_start_that_is_queued_behind_a_unit_that_hangs_ends_at_its_limit_and_can_be_taken_back() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let hanging = other(
        &corner,
        "[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStartPre=/bin/sleep 1000\nExecStart=/bin/true\n",
    );
    let unit =
        install(&corner, &format!("ExecStart=SERVER\n[Unit]\nRequires={hanging}\nAfter={hanging}"));
    let quick = service(&corner, &unit, "").replace("\"20s\"", "\"2s\"");
    corner.config(&quick);
    for words in ["start vllm", "restart vllm"] {
        let begun = Instant::now();
        fails(&corner, words, 124, "systemd has queued its start");
        assert!(begun.elapsed() < with_room(2), "{words}: {:?}", begun.elapsed());
        let (state, detail) = corner.state("vllm");
        assert_eq!((&*state, &*detail), ("starting", "systemd has queued its start"));
        // Neither a release nor a stop waits for what hangs.
        for words in ["release-all", "stop vllm"] {
            succeeds(&corner, words);
            assert_eq!(corner.state("vllm").0, "stopped");
        }
        assert!(!machine.sh("systemctl list-jobs --no-legend").contains(&unit));
    }
    machine.sh(&format!("systemctl stop {hanging}"));
}

#[test]
fn a_stop_that_is_queued_behind_a_unit_that_hangs_ends_at_its_limit_with_all_of_it_gone() {
    let Some(machine) = Machine::shared() else { return };
    for flags in ["", "--force"] {
        let corner = machine.corner();
        let unit = install(&corner, "Restart=always\nRestartSec=0\nExecStart=SERVER");
        let quick = service(&corner, &unit, "").replace("\"10s\"", "\"1s\"");
        corner.config(&quick);
        // This unit stops before the service does, and takes its time.
        let hanging = other(
            &corner,
            &format!(
                "[Unit]\nAfter={unit}\n[Service]\nExecStart=/bin/sleep 1000\nExecStop=/bin/sleep 1000\nTimeoutStopSec=infinity\n"
            ),
        );
        succeeds(&corner, "start vllm");
        machine.sh(&format!("systemctl start {hanging} && systemctl stop --no-block {hanging}"));
        let begun = Instant::now();
        succeeds(&corner, &format!("stop vllm {flags}"));
        assert!(begun.elapsed() < with_room(1 + 10), "{flags}: {:?}", begun.elapsed());
        assert_eq!((corner.state("vllm").0.as_str(), corner.card.used_mb()), ("stopped", 0));
        machine.sh(&format!("systemctl kill --signal=KILL {hanging}"));
        until("nothing is queued for it", || {
            !machine.sh("systemctl list-jobs --no-legend").contains(&unit)
        });
        succeeds(&corner, "start vllm");
        succeeds(&corner, "stop vllm");
    }
}

#[test]
fn a_unit_that_systemd_is_to_restart_is_restarted_once() {
    let Some(machine) = Machine::shared() else { return };
    for restart in ["no", "always", "on-failure"] {
        let corner = machine.corner();
        let unit = install(&corner, &format!("ExecStart=SERVER\nRestart={restart}\nRestartSec=0"));
        succeeds(&corner, "start vllm");
        for flags in ["", "--force"] {
            let invocation =
                || machine.sh(&format!("systemctl show -p InvocationID,NRestarts {unit}"));
            let before = invocation();
            succeeds(&corner, &format!("restart vllm {flags}"));
            assert_eq!(corner.state("vllm").0, "ready", "{restart} {flags}");
            assert_eq!(corner.card.used_mb(), 4000, "{restart} {flags}");
            let after = invocation();
            assert!(after != before && after.contains("NRestarts=0"), "{restart} {flags}: {after}");
        }
        succeeds(&corner, "stop vllm");
    }
}

#[test]
fn a_restart_of_a_unit_that_another_upholds_is_6_and_that_one_is_named() {
    let Some(machine) = Machine::shared() else { return };
    for (kind, lines) in [
        ("path", "[Path]\nPathExists=/io\nUnit=UNIT\n"),
        ("service", "[Unit]\nUpholds=UNIT\n[Service]\nExecStart=/bin/sleep 1000\n"),
    ] {
        let corner = machine.corner();
        let unit = install(&corner, "ExecStart=SERVER\n[Unit]\nStartLimitIntervalSec=0");
        let keeper = format!("{}.{kind}", corner.mark("keeper"));
        corner.unit(&keeper, &lines.replace("UNIT", &unit));
        succeeds(&corner, "start vllm");
        machine.sh(&format!("systemctl start {keeper}"));
        for flags in ["", "--force"] {
            let words = format!("restart vllm {flags}");
            fails(&corner, &words, 6, &format!("vllm: {keeper} started it again"));
            until("it is up by its keeper", || corner.state("vllm").0 == "ready");
            fails(&corner, &words, 6, &format!("`systemctl stop {keeper}`"));
        }
        until("it is up by its keeper", || corner.state("vllm").0 == "ready");
        machine.sh(&format!("systemctl stop {keeper}"));
        succeeds(&corner, "restart vllm");
        assert_eq!(corner.state("vllm").0, "ready", "{kind}");
        succeeds(&corner, "stop vllm");
        assert_eq!(corner.card.used_mb(), 0, "{kind}");
    }
}
