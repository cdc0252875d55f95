//! Tests of two services that are one unit by different names, or of which one is a part of the
//! other, under a real systemd.

use super::units::install;
use rig::{Corner, Machine};

/// Configures services `one` and `other` of these units, both on the corner's first port.
fn two_of(corner: &Corner, one: &str, other: &str) {
    let service = |name: &str, unit: &str| {
        format!(
            "[services.{name}]\ntype = \"systemd\"\nunit = \"{unit}\"\nvram_mb = 4000\nstart_timeout = \"20s\"\n\
             health = \"http://localhost:{}/health\"\n",
            corner.port
        )
    };
    corner.config(&format!("{}{}", service("one", one), service("other", other)));
}

#[test]
fn a_unit_that_two_services_name_by_its_name_and_by_an_alias_is_a_contradiction_and_left_alone() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=SERVER");
    let alias = format!("{}.service", corner.mark("alias"));
    machine.sh(&format!(
        "ln -s /etc/systemd/system/{unit} /etc/systemd/system/{alias} && systemctl daemon-reload"
    ));
    two_of(&corner, &unit, &alias);
    for is_up in [false, true] {
        if is_up {
            machine.sh(&format!("systemctl start {unit}"));
        }
        for words in ["start one", "stop one", "stop other --force", "release-all", "restart other"]
        {
            let (code, said) = corner.gpuctl(words);
            assert_eq!(code, 78, "up: {is_up}: {words}: {said}");
            assert!(said.contains("belongs to both one and other"), "{words}: {said}");
        }
        let active = machine.try_sh(&format!("systemctl is-active {unit}")).0;
        assert_eq!(active, if is_up { "active\n" } else { "inactive\n" });
    }
    machine.sh(&format!("systemctl stop {unit}"));
}

#[test]
fn a_unit_and_the_slice_that_it_is_in_are_a_contradiction_and_left_alone() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let slice = format!("{}.slice", corner.mark("models"));
    let unit = install(&corner, &format!("Slice={slice}\nExecStart=SERVER"));
    two_of(&corner, &unit, &slice);
    machine.sh(&format!("systemctl start {unit}"));
    for words in ["stop one", "stop other --force", "release-all"] {
        let (code, said) = corner.gpuctl(words);
        assert_eq!(code, 78, "{words}: {said}");
        assert!(said.contains("belongs to both one and other"), "{words}: {said}");
    }
    assert_eq!(machine.sh(&format!("systemctl is-active {unit}")), "active\n");
    machine.sh(&format!("systemctl stop {slice}"));
}
