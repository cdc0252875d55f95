//! Tests of native services on a machine that runs systemd: each start has a scope of its own.

use rig::{Corner, Machine, until};

/// Configures the corner's native service `one`, with this start command.
fn start_is(corner: &Corner, start: &str) {
    let one = format!(
        "[services.{}]\ntype = \"native\"\nvram_mb = 100\nstart = '''{start}'''\n",
        corner.mark("one")
    );
    corner.config(&one);
}

/// Returns a script that counts the processes in scopes of the corner's service that run `sleep`
/// with the corner's port, followed by one more digit, as the number of seconds.
fn in_scope(corner: &Corner) -> String {
    format!(
        "for p in $(pgrep -fx '(/bin/)?sleep {}[0-9]'); do tail -n 1 /proc/$p/cgroup; done | \
         grep -c '^0::/system.slice/gpuctl-{}-[0-9a-f]*.scope$'",
        corner.port,
        corner.mark("one")
    )
}

#[test]
fn what_comes_of_a_start_is_in_its_scope_outlives_the_callers_unit_and_ends_with_a_stop() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let (one, port) = (corner.mark("one"), corner.port);
    // The first process is in the background, nobody's child, in a session of its own, without
    // environment or log.
    start_is(
        &corner,
        &format!("(setsid env -i /bin/sleep {port}1 >/dev/null 2>&1 &); exec sleep {port}0"),
    );
    let caller = format!("{}.service", corner.mark("caller"));
    let environment = format!(
        "Environment=GPUCTL_STATE_DIR={} GPUCTL_CONFIG={}",
        corner.path("state"),
        corner.path("gpuctl.toml")
    );
    corner.unit(
        &caller,
        &format!("[Service]\nType=oneshot\n{environment}\nExecStart=/io/bin/gpuctl start {one}\n"),
    );
    for start in [format!("gpuctl start {one}"), format!("systemctl start {caller}")] {
        corner.sh(&start);
        assert_eq!(corner.try_sh(&in_scope(&corner)).0, "2\n", "{start}");
        corner.sh(&format!("gpuctl stop {one}"));
        assert_eq!(
            corner.try_sh(&format!("pgrep -fx '(/bin/)?sleep {port}[0-9]'")).0,
            "",
            "{start}"
        );
    }
}

#[test]
fn a_service_outlives_the_login_that_started_it_and_a_users_own_does_so_with_linger() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let (one, port) = (corner.mark("one"), corner.port);
    start_is(&corner, &format!("exec sleep {port}0"));
    let login = |user: &str, state: &str| {
        format!(
            "systemd-run --quiet --wait --collect -p User={user} -p PAMName=login -p KillMode=control-group \
             -E GPUCTL_STATE_DIR={state} -E GPUCTL_CONFIG={} /io/bin/gpuctl start {one}",
            corner.path("gpuctl.toml")
        )
    };
    corner.sh(&login("root", &corner.path("state")));
    assert_eq!(corner.try_sh(&in_scope(&corner)).0, "1\n");
    corner.sh(&format!("gpuctl stop {one}"));
    corner.sh(&format!("chown lingerer {}", corner.path("gpuctl.toml")));
    until("the user's systemd is up", || {
        machine.try_sh("test -S /run/user/1991/systemd/private").1
    });
    corner.sh(&login("lingerer", &format!("/home/lingerer/{one}")));
    let of_user = format!("tail -n 1 /proc/$(pgrep -fx 'sleep {port}0')/cgroup");
    let group = corner.sh(&of_user);
    assert!(
        group.contains("user@1991.service") && group.contains(&format!("gpuctl-{one}-")),
        "{group}"
    );
    let stop = format!(
        "GPUCTL_STATE_DIR=/home/lingerer/{one} gpuctl --config {} stop {one}",
        corner.path("gpuctl.toml")
    );
    corner.sh(&format!("runuser -u lingerer -- sh -c '{stop}'"));
    assert_eq!(corner.try_sh(&format!("pgrep -fx 'sleep {port}0'")).0, "");
}

#[test]
fn without_a_scope_the_command_runs_once_all_the_same() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let (one, port, ran) = (corner.mark("one"), corner.port, corner.path("ran"));
    start_is(&corner, &format!("echo ran >>{ran}; exec sleep {port}0"));
    let programs = corner.path("programs");
    corner.sh(&format!(
        "mkdir {programs}; printf '#!/bin/sh\\nexit 1\\n' >{programs}/systemd-run; chmod +x {programs}/systemd-run"
    ));
    corner.sh(&format!("PATH={programs}:$PATH gpuctl start {one}"));
    assert_eq!(corner.sh(&format!("cat {ran}; pgrep -cfx 'sleep {port}0'")), "ran\n1\n");
    assert_eq!(corner.try_sh(&in_scope(&corner)).0, "0\n");
    corner.sh(&format!("gpuctl stop {one}"));
    assert_eq!(corner.try_sh(&format!("pgrep -fx 'sleep {port}0'")).0, "");
}

#[test]
fn what_a_unit_has_started_is_whole_for_a_shell_with_another_state_folder() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let (one, port) = (corner.mark("one"), corner.port);
    start_is(
        &corner,
        &format!(
            "echo said by {one}; (setsid env -i /bin/sleep {port}1 >/dev/null 2>&1 &); exec sleep {port}0"
        ),
    );
    corner.sh(&format!("GPUCTL_STATE_DIR={} gpuctl start {one}", corner.path("units")));
    assert_eq!(corner.state(&one).0, "ready");
    let (code, log) = corner.gpuctl(&format!("logs {one}"));
    assert_eq!((code, log.trim()), (0, &*format!("said by {one}")));
    let (code, told) = corner.gpuctl(&format!("stop {one}"));
    assert_eq!(code, 0, "{told}");
    assert_eq!(corner.try_sh(&format!("pgrep -fx '(/bin/)?sleep {port}[0-9]'")).0, "");
}
