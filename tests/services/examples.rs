//! Tests of the units in `examples/systemd`, except those of HTTP and the canary, on a machine that
//! runs systemd.

use crate::canary::bench::Calendar;
use rig::page::repository;
use rig::{Machine, Rig, until};
use std::fs;

#[test]
fn a_phase_is_a_unit_and_a_timer_writes_the_figures() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let (port, server) = (corner.port, corner.server("vidi", 0, "--vram 4000"));
    corner.config(&format!(
        "[phases]\n2 = \"talk\"\n[services.vidi]\ntype = \"native\"\nvram_mb = 4000\nphases = [2]\n\
         start = 'exec {server}'\nhealth = \"http://localhost:{port}/health\"\n"
    ));
    let folder = corner.path("");
    let places = [
        ("'gpuctl", "'/io/bin/gpuctl"),
        ("/var/lib/prometheus/node-exporter", &folder),
        ("StateDirectory=gpuctl\nStateDirectoryMode=0700\n", ""),
    ];
    for unit in ["gpuctl-phase@.service", "gpuctl-metrics.service", "gpuctl-metrics.timer"] {
        corner.example(unit, unit, &places);
    }
    machine.sh("systemctl start gpuctl-phase@talk.service");
    assert_eq!(corner.state("vidi").0, "ready");
    assert_eq!(machine.try_sh("systemctl is-active gpuctl-phase@talk.service").0, "inactive\n");
    // The unit runs each time that it is started.
    corner.sh("gpuctl stop vidi");
    machine.sh("systemctl start gpuctl-phase@talk.service");
    assert_eq!(corner.state("vidi").0, "ready");
    assert!(!machine.try_sh("systemctl start gpuctl-phase@nonsense.service").1);
    let status =
        machine.sh("systemctl show --property ExecMainStatus gpuctl-phase@nonsense.service");
    assert_eq!(status, "ExecMainStatus=4\n");
    machine.sh("systemctl start gpuctl-metrics.timer");
    until("the timer writes them", || corner.text("gpuctl.prom").contains("gpuctl_"));
    // Though the unit is confined, it sees the card, the processes, the lock and the state.
    let figures = corner.text("gpuctl.prom");
    for figure in ["gpuctl_lock_up 1", "service=\"vidi\",state=\"ready\"} 1"] {
        assert!(figures.contains(figure), "{figures}");
    }
    machine.sh("systemctl stop gpuctl-metrics.timer");
    corner.sh("gpuctl stop vidi");
}

#[test]
fn a_timer_gives_back_what_is_idle_and_a_lock_that_is_held_is_no_failure_of_its_unit() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    corner.card.describe(&serde_json::json!({"devices": [{"utilization_percent": 0}]}));
    let server = corner.server("vidi", 0, "--vram 4000");
    corner.config(&format!(
        "[services.vidi]\ntype = \"native\"\nvram_mb = 4000\nidle = \"1s\"\n\
         start = 'exec {server}'\nhealth = \"http://localhost:{}/health\"\n",
        corner.port
    ));
    let often = [("=1min", "=1s"), ("=30s", "=1s"), ("AccuracySec=1s", "AccuracySec=100ms")];
    for unit in ["gpuctl-release-idle.service", "gpuctl-release-idle.timer"] {
        corner.example(unit, unit, &often);
    }
    corner.sh("gpuctl start vidi");
    let token = corner.sh("gpuctl lock acquire somebody --ttl 10m");
    machine.sh("systemctl start gpuctl-release-idle.timer");
    let show = "systemctl show --property Result,ExecMainStatus gpuctl-release-idle.service";
    until("it is refused", || machine.sh(show) == "Result=success\nExecMainStatus=75\n");
    assert_eq!(corner.state("vidi").0, "ready");
    corner.sh(&format!("gpuctl lock release --token {token}"));
    until("it is given back", || corner.state("vidi").0 == "stopped");
    assert_eq!(corner.card.used_mb(), 0);
    until("that was a success", || machine.sh(show) == "Result=success\nExecMainStatus=0\n");
    machine.sh("systemctl stop gpuctl-release-idle.timer");
}

/// Returns the values of a key in all timers of the examples.
fn timers(key: &str) -> Vec<String> {
    let entries = fs::read_dir(repository().join("examples/systemd")).unwrap().flatten();
    let timers = entries.filter(|entry| entry.path().extension().is_some_and(|it| it == "timer"));
    let texts = timers.map(|timer| fs::read_to_string(timer.path()).unwrap());
    let lines: Vec<String> =
        texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    lines.iter().filter_map(|line| line.strip_prefix(key)).map(str::to_owned).collect()
}

#[test]
fn the_timers_times_are_such_as_systemd_knows_and_the_canarys_are_in_the_default_window() {
    if !rig::works("systemd-analyze", &["--version"]) {
        return rig::skip_or_fail("systemd-analyze", "systemd-analyze");
    }
    let rig = Rig::new();
    rig.native("vllm").add();
    rig.set("canary.service", "vllm");
    let calendar = Calendar::new(&rig);
    let (times, delays) = (timers("OnCalendar="), timers("RandomizedDelaySec="));
    assert_eq!((times.len(), delays.len()), (1, 1), "{times:?} {delays:?}");
    let analyze = |words: &str| {
        rig.shell(&format!("TZ=UTC LC_ALL=C systemd-analyze {words}")).run().succeeds().text()
    };
    let spans = ["OnBootSec=", "OnUnitActiveSec=", "AccuracySec="].map(timers).concat();
    assert!(spans.len() >= 6, "{spans:?}");
    for span in spans.iter().chain(&delays) {
        analyze(&format!("timespan '{span}'"));
    }
    let delay = analyze(&format!("timespan '{}'", delays[0]));
    let delay = delay.lines().find_map(|line| line.trim().strip_prefix("us: ")).unwrap();
    let delay = delay.parse::<u64>().unwrap() / 1_000_000;
    // These days are in winter and in summer, and those on which the clocks change.
    for day in ["2026-01-10", "2026-07-10", "2026-03-08", "2026-11-01"] {
        let told = analyze(&format!("calendar --base-time='{day} 00:00:00 UTC' '{}'", times[0]));
        let next = told.lines().find_map(|line| line.trim().strip_prefix("Next elapse: "));
        let next = next.unwrap_or_else(|| panic!("{told}"));
        for time in [next.to_owned(), format!("{next} + {delay} seconds")] {
            let status =
                calendar.at(rig.gpuctl("canary status --json"), &time).run().succeeds().json();
            assert_eq!(status["in_window"], true, "{time}: {status:#}");
        }
    }
}
