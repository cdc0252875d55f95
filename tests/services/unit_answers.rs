//! Tests that what a real systemd answers is reported as it is meant: what nobody may do, which
//! part of a start has failed (in the words of this start alone), and which service has ended by
//! another's start.

use super::units::{fails, install, service, succeeds};
use rig::{Corner, Machine, until};

#[test]
fn what_a_unit_lets_nobody_do_by_hand_is_no_matter_of_permission() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=SERVER\n[Unit]\nRefuseManualStop=yes");
    succeeds(&corner, "start vllm");
    for words in ["stop vllm", "stop vllm --force", "restart vllm", "release-all"] {
        fails(&corner, words, 6, "it is configured to refuse manual start/stop");
        fails(&corner, words, 6, &format!("RefuseManualStop=no in {unit}"));
    }
    assert_eq!(corner.state("vllm").0, "ready");
    machine.sh(&format!(
        "sed -i s/RefuseManualStop=yes// /etc/systemd/system/{unit}; systemctl daemon-reload"
    ));
    succeeds(&corner, "stop vllm");
    let corner = machine.corner();
    install(&corner, "ExecStart=SERVER\n[Unit]\nRefuseManualStart=yes");
    fails(&corner, "start vllm", 5, "it is configured to refuse manual start/stop");
    fails(&corner, "start vllm", 5, "RefuseManualStart=no");
}

#[test]
fn a_start_that_would_undo_what_is_not_to_be_undone_is_5_with_systemds_reason() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=SERVER");
    let other = format!("{}.service", corner.mark("other"));
    corner.unit(
        &other,
        &format!("[Unit]\nConflicts={unit}\n[Service]\nType=oneshot\nExecStart=/bin/sleep 1000\n"),
    );
    machine.sh(&format!("systemctl start --no-block --job-mode=replace-irreversibly {other}"));
    until("it is being started", || {
        machine.try_sh(&format!("systemctl is-active {other}")).0 == "activating\n"
    });
    fails(&corner, "start vllm", 5, "is destructive");
    fails(&corner, "start vllm", 5, "`systemctl list-jobs` shows");
    machine.sh(&format!("systemctl kill --signal=KILL {other}"));
    until("it has ended", || {
        machine.try_sh(&format!("systemctl is-active {other}")).0 == "failed\n"
    });
    succeeds(&corner, "start vllm");
    succeeds(&corner, "stop vllm");
}

#[test]
fn a_failed_start_quotes_the_journal_of_this_start_only() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    install(&corner, "ExecStartPre=/bin/sh -c 'echo not today; exit 7'\nExecStart=SERVER");
    for words in ["start vllm", "start vllm", "restart vllm"] {
        let (code, said) = corner.gpuctl(words);
        assert_eq!(code, 5, "{words}: {said}");
        // The unit's main process was never begun, so it has no status.
        assert!(said.contains("vllm: failed: exit-code; its last output was:"), "{words}: {said}");
        assert_eq!(said.matches("not today").count(), 1, "{words}: {said}");
    }
    // This unit dies after it was ready, and its next start fails: only what that start said is
    // quoted.
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=/bin/sh -c 'echo this is the first; exec SERVER'");
    succeeds(&corner, "start vllm");
    machine.sh(&format!("systemctl kill --signal=KILL {unit}"));
    machine.sh(&format!(
        "sed -i 's/this is the first; .*/this is the second; exit 3\\x27/' /etc/systemd/system/{unit}; systemctl daemon-reload"
    ));
    let (code, said) = corner.gpuctl("start vllm");
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("this is the second") && !said.contains("the first"), "{said}");
}

/// Configures the first service and a second one, whose unit conflicts with the first one's.
fn conflicting(corner: &Corner, unit: &str) {
    let other = format!("{}.service", corner.mark("other"));
    let server = corner.server("other", 1, "--vram 4000");
    corner.unit(
        &other,
        &format!(
            "[Unit]\nConflicts={unit}\n[Service]\n{}ExecStart={server}\n",
            corner.environment()
        ),
    );
    let second = service(corner, &other, "phases = [1]")
        .replace("services.vllm", "services.other")
        .replace(&format!(":{}/", corner.port), &format!(":{}/", corner.port + 1));
    corner.config(&format!("{}{second}", service(corner, unit, "phases = [1]")));
}

#[test]
fn who_has_ended_by_the_start_of_a_unit_that_conflicts_with_it_is_not_told_as_kept() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=SERVER");
    conflicting(&corner, &unit);
    succeeds(&corner, "start vllm");
    let said = succeeds(&corner, "start other");
    assert!(said.contains("warning: vllm has ended meanwhile, and not by gpuctl"), "{said}");
    assert!(!said.contains("kept vllm"), "{said}");
    // If both are needed, that is a failure.
    let (code, said) = corner.gpuctl("prepare-phase 1");
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("it was ready and has ended since"), "{said}");
    succeeds(&corner, "release-all");
    assert_eq!(corner.card.used_mb(), 0);
}

#[test]
fn a_health_check_that_a_socket_answers_before_the_server_listens_is_warned_of() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=SERVER\nStandardInput=null");
    let socket = unit.replace(".service", ".socket");
    let listens = |port: u16| {
        corner.unit(&socket, &format!("[Socket]\nListenStream=127.0.0.1:{port}\n"));
        machine.sh(&format!("systemctl daemon-reload; systemctl restart {socket}"));
    };
    let told = || {
        let said = corner.gpuctl("doctor -v 2>/dev/null").1;
        said.lines().find(|line| line.contains("systemd.socket")).unwrap_or_default().to_owned()
    };
    assert_eq!(told(), "");
    listens(corner.port);
    assert!(told().contains("its health check asks the server"), "{}", told());
    let tcp = corner.text("gpuctl.toml").replace("http://", "tcp://").replace("/health", "");
    corner.file("gpuctl.toml", &tcp);
    let why = format!("port {} accepts, and {socket} accepts there", corner.port);
    assert!(told().contains(&why), "{}", told());
    listens(corner.port + 5);
    assert!(told().contains("its health check asks the server"), "{}", told());
    machine.sh(&format!("systemctl stop {socket}"));
}
