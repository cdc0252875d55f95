//! Tests that the doctor finds faults that keep a trial from being run, and a trial that was broken
//! off.

use super::{Machine, finds, verdict};
use serde_json::json;
use std::fs;

fn journal(machine: &Machine, text: &str) {
    fs::write(machine.rig.state_dir().join("gpu_canary_journal.json"), text).unwrap();
}

#[test]
fn a_restore_that_is_owed_is_found() {
    let machine = Machine::new();
    let left = json!({"run_id": "r1", "service": "vllm", "candidate_id": "c1", "night": "2026-01-02", "progress": "away",
        "away": null, "token": "t", "boot": "another", "keepers": []});
    journal(&machine, &left.to_string());
    let owed = "a trial was interrupted (run r1), and vllm has not been restored since";
    finds(machine.doctor(), &[("fail", "canary.restore", owed, "gpuctl canary recover")]);
    journal(&machine, "{\"run_id\":");
    finds(machine.doctor(), &[("fail", "canary.restore", "is damaged", "then remove that file")]);
}

#[test]
fn a_ledger_that_is_damaged_is_found() {
    let machine = Machine::new();
    machine.rig.gpuctl("canary reset-budget").run().succeeds().stdout_has("has been reset");
    let entries = fs::read_dir(machine.rig.state_dir()).unwrap().flatten();
    let budget = |name: &str| name.starts_with("gpu_budget_");
    let mut budgets = entries.filter(|entry| budget(entry.file_name().to_str().unwrap()));
    fs::write(budgets.next().unwrap().path(), "{\"seconds_us").unwrap();
    let fault = ("fail", "canary.ledger", "is damaged", "canary reset-budget");
    finds(machine.doctor(), &[fault]);
}

#[test]
fn a_trial_that_no_nights_budget_permits_is_found() {
    let machine = Machine::new();
    machine.rig.set("canary.max_downtime", "44s");
    let told = "a trial may take 45s, and 44s are allowed a night";
    finds(machine.doctor(), &[("warn", "canary.budget", told, "raise canary.max_downtime")]);
    machine.rig.set("canary.mode", "canary");
    finds(machine.doctor(), &[("fail", "canary.budget", told, "raise canary.max_downtime")]);
}

#[test]
fn a_canary_that_cannot_be_started_or_has_no_card_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    rig.set("canary.start", "/nowhere/python3 -m vllm --port {port}");
    let start =
        ("fail", "canary.start", "`/nowhere/python3` does not exist", "correct canary.start");
    finds(machine.doctor(), &[start]);
    rig.set("canary.start", "sh -c true");

    rig.set("canary.allow_spare_gpu", true);
    let missing = ("fail", "canary.spare_gpu", "there is no GPU 1", "correct canary.spare_gpu");
    finds(machine.doctor(), &[missing]);
    rig.set("canary.spare_gpu", 0);
    let own =
        ("fail", "canary.spare_gpu", "GPU 0 is production's own card", "allow_spare_gpu = false");
    finds(machine.doctor(), &[own]);
    rig.card.describe(&json!({"devices": [{}, {}]}));
    rig.set("canary.spare_gpu", 1);
    assert_eq!(verdict(&finds(machine.doctor(), &[]), "canary.spare_gpu"), "pass");

    rig.set("canary.maintenance_lock", "/nowhere/locks/gpu_maintenance.lock");
    let lock = (
        "fail",
        "canary.maintenance_lock",
        "there is no folder /nowhere/locks",
        "create that folder",
    );
    finds(machine.doctor(), &[lock]);
}
