//! The units in `examples/systemd` beside those of HTTP and the canary, on a machine that systemd runs.

use rig::page::repository;
use rig::{Machine, until};
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
    for unit in ["gpuctl-phase@.service", "gpuctl-metrics.service", "gpuctl-metrics.timer"] {
        let text = fs::read_to_string(repository().join("examples/systemd").join(unit)).unwrap();
        let text =
            text.replace("/usr/bin/gpuctl", "/io/bin/gpuctl").replace("'gpuctl", "'/io/bin/gpuctl");
        let text = text.replace("/etc/gpuctl/config.toml", &corner.path("gpuctl.toml"));
        let text = text.replace("/var/lib/prometheus/node-exporter", &corner.path(""));
        let text = text.replace("/var/lib/gpuctl", &corner.path("state"));
        let text = text.replace("StateDirectory=gpuctl\nStateDirectoryMode=0700\n", "");
        let own = format!("[Service]\n{}", corner.environment());
        corner.unit(unit, &text.replace("[Service]\n", &own));
    }
    machine.sh("systemctl start gpuctl-phase@talk.service");
    assert_eq!(corner.state("vidi").0, "ready");
    assert_eq!(machine.try_sh("systemctl is-active gpuctl-phase@talk.service").0, "inactive\n");
    // It runs each time that it is started.
    corner.sh("gpuctl stop vidi");
    machine.sh("systemctl start gpuctl-phase@talk.service");
    assert_eq!(corner.state("vidi").0, "ready");
    assert!(!machine.try_sh("systemctl start gpuctl-phase@nonsense.service").1);
    let status =
        machine.sh("systemctl show --property ExecMainStatus gpuctl-phase@nonsense.service");
    assert_eq!(status, "ExecMainStatus=4\n");
    machine.sh("systemctl start gpuctl-metrics.timer");
    until("the timer writes them", || corner.text("gpuctl.prom").contains("gpuctl_"));
    // Shut in as the unit is, it sees the card, the processes, the lock and the state.
    let figures = corner.text("gpuctl.prom");
    for figure in ["gpuctl_lock_up 1", "service=\"vidi\",state=\"ready\"} 1"] {
        assert!(figures.contains(figure), "{figures}");
    }
    machine.sh("systemctl stop gpuctl-metrics.timer");
    corner.sh("gpuctl stop vidi");
}
