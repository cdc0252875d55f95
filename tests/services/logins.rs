//! Tests of native services that are started in a login over ssh, on a machine that runs systemd:
//! they outlive the login, with and without linger, and the next login finds and ends them.

use rig::{Corner, Machine, Ssh, until};

/// Returns a call of gpuctl as a user types it, with the corner's configuration and a state folder
/// of the user's.
fn gpuctl(corner: &Corner, user: &str, words: &str) -> String {
    let home = if user == "root" { corner.path("") } else { format!("/home/{user}/") };
    let config = corner.path("gpuctl.toml");
    format!("GPUCTL_STATE_DIR={home}state /io/bin/gpuctl --config {config} {words}")
}

/// Asserts that a service which the user starts in one login is still there when that login is
/// over; returns its control group.
#[track_caller]
fn outlives_the_login(corner: &Corner, ssh: &Ssh, user: &str, flags: &str) -> String {
    let (one, port) = (corner.mark("one"), corner.port);
    let start = gpuctl(corner, user, &format!("start {one}"));
    corner.machine.sh(&ssh.login(user, flags, &start));
    ssh.is_over(user);
    let group = corner.machine.sh(&format!("tail -n 1 /proc/$(pgrep -fx 'sleep {port}0')/cgroup"));
    let state = ssh.json(user, &gpuctl(corner, user, "status --json"));
    assert_eq!(state["services"][&one]["state"], "ready", "{user}: {state:#}");
    group.trim().to_owned()
}

/// Asserts that the user can end the service in another login.
#[track_caller]
fn ends(corner: &Corner, ssh: &Ssh, user: &str) {
    let (one, port) = (corner.mark("one"), corner.port);
    ssh.sh(user, &gpuctl(corner, user, &format!("stop {one}")));
    assert_eq!(corner.machine.try_sh(&format!("pgrep -fx 'sleep {port}0'")).0, "", "{user}");
}

#[test]
fn a_service_that_is_started_over_ssh_outlives_the_login_with_and_without_linger() {
    let Some(machine) = Machine::own() else { return };
    let corner = machine.corner();
    let Some(ssh) = Ssh::new(&corner) else { return };
    let (one, port) = (corner.mark("one"), corner.port);
    corner.config(&format!(
        "[services.{one}]\ntype = \"native\"\nvram_mb = 100\nstart = \"exec sleep {port}0\"\n"
    ));
    until("the lingering user's systemd is up", || {
        machine.try_sh("test -S /run/user/1991/systemd/private").1
    });
    // Logins come without a terminal, and with one, whose end is told to all that is in its
    // session.
    for flags in ["", "-tt"] {
        let group = outlives_the_login(&corner, &ssh, "root", flags);
        assert!(group.starts_with(&format!("0::/system.slice/gpuctl-{one}-")), "{group}");
        ends(&corner, &ssh, "root");
        let group = outlives_the_login(&corner, &ssh, "lingerer", flags);
        let is_users = group.contains("/user@1991.service/");
        assert!(is_users && group.contains(&format!("/gpuctl-{one}-")), "{group}");
        ends(&corner, &ssh, "lingerer");
        // A scope of this user's own manager would end with the login, so the service stays in the
        // session's.
        let group = outlives_the_login(&corner, &ssh, "tester", flags);
        assert!(group.contains("/user-1990.slice/session-"), "{group}");
        ends(&corner, &ssh, "tester");
    }
    // If logind ends what a login leaves behind, a scope is left alone.
    machine.sh(
        "mkdir -p /etc/systemd/logind.conf.d && \
         printf '[Login]\\nKillUserProcesses=yes\\nKillExcludeUsers=\\n' >/etc/systemd/logind.conf.d/kill.conf && \
         systemctl restart systemd-logind",
    );
    for user in ["root", "lingerer"] {
        outlives_the_login(&corner, &ssh, user, "-tt");
        ends(&corner, &ssh, user);
    }
    // With neither linger nor a scope that stays, the service ends, and is not said to run.
    machine.sh(&ssh.login("tester", "", &gpuctl(&corner, "tester", &format!("start {one}"))));
    until("it has ended", || !machine.try_sh(&format!("pgrep -fx 'sleep {port}0'")).1);
    let state = ssh.json("tester", &gpuctl(&corner, "tester", "status --json"));
    assert_eq!(state["services"][&one]["state"], "stopped", "{state:#}");
}
