//! Tests that the doctor finds faults of a simulated systemd and of its units.

use super::{Machine, finds, verdict};
use rig::Fault;

#[test]
fn a_machine_that_is_not_booted_with_systemd_is_found() {
    let machine = Machine::new();
    machine.rig.systemd().fails(Fault::NotBooted);
    let fault = ("fail", "systemd.manager", "systemd cannot be reached", "booted with systemd?");
    let report = finds(machine.doctor(), &[fault]);
    assert_eq!(verdict(&report, "systemd.unit"), "skip");
}

#[test]
fn a_unit_that_is_missing_masked_or_enabled_is_found() {
    let machine = Machine::new();
    let unit = format!("{}.service", machine.vllm.mark());
    let installs = |facts: &str| machine.rig.systemd().installs(&unit, facts);
    installs("file=static");
    finds(machine.doctor(), &[]);
    installs("load=masked file=masked");
    let fix = format!("systemctl unmask {unit}");
    finds(machine.doctor(), &[("fail", "systemd.unit vllm", "is masked", &fix)]);
    installs("load=bad-setting");
    finds(machine.doctor(), &[("fail", "systemd.unit vllm", "(bad-setting)", "systemctl status")]);
    installs("file=enabled");
    let fix = format!("systemctl disable {unit}");
    finds(machine.doctor(), &[("warn", "systemd.boot vllm", "it starts at boot", &fix)]);
    installs("");
    machine.rig.set("services.vllm.unit", "absent.service");
    let fault = (
        "fail",
        "systemd.unit vllm",
        "no usable systemd unit absent.service (not-found)",
        "daemon-reload",
    );
    finds(machine.doctor(), &[fault]);
}
