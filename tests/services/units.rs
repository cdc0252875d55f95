//! Tests of units of every kind under a real systemd, which is PID 1 of a machine of the tests' own
//! (row 74).

use rig::{Corner, Machine, until};

/// Returns the configuration of the service `vllm`, whose server is a unit of the corner's on its
/// first port.
pub fn service(corner: &Corner, unit: &str, more: &str) -> String {
    format!(
        "[services.vllm]\ntype = \"systemd\"\nunit = '{unit}'\nvram_mb = 4000\nstart_timeout = \"20s\"\n\
         stop_timeout = \"10s\"\nhealth = \"http://localhost:{}/health\"\n{more}\n",
        corner.port
    )
}

/// Installs a unit and configures a service of it; returns the unit's name. `SERVER` in the lines
/// stands for a server on the corner's first port.
pub fn install(corner: &Corner, lines: &str) -> String {
    let unit = format!("{}.service", corner.mark("vllm"));
    install_as(corner, &unit, &unit, lines);
    unit
}

fn install_as(corner: &Corner, file: &str, unit: &str, lines: &str) {
    let server = corner.server("vllm", 0, "--vram 4000");
    let text = format!("[Service]\n{}{lines}\n", corner.environment());
    corner.unit(file, &text.replace("SERVER", &server));
    corner.config(&service(corner, unit, ""));
}

#[track_caller]
pub fn succeeds(corner: &Corner, words: &str) -> String {
    let (code, said) = corner.gpuctl(words);
    assert_eq!(code, 0, "{words}: {said}");
    said
}

#[track_caller]
pub fn fails(corner: &Corner, words: &str, code: i32, why: &str) {
    let (found, said) = corner.gpuctl(words);
    assert_eq!(found, code, "{words}: {said}");
    assert!(said.contains(why), "{words}: {said}");
}

/// Asserts, twice, that the service starts, is ready and stops, and that nothing is left of it.
#[track_caller]
fn comes_and_goes(corner: &Corner, what: &str) {
    for _ in 0..2 {
        succeeds(corner, "start vllm");
        assert_eq!(corner.state("vllm").0, "ready", "{what}");
        assert_eq!(corner.card.used_mb(), 4000, "{what}");
        succeeds(corner, "start vllm");
        succeeds(corner, "stop vllm");
        assert_eq!(corner.state("vllm").0, "stopped", "{what}");
        assert_eq!(corner.card.used_mb(), 0, "{what}");
        succeeds(corner, "stop vllm");
    }
}

#[test]
fn units_of_every_type_come_and_go() {
    let Some(machine) = Machine::shared() else { return };
    for lines in [
        "ExecStart=SERVER",
        "Type=exec\nExecStart=SERVER",
        "Type=forking\nExecStart=/bin/sh -c 'SERVER & sleep 0.3'",
        "Type=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sh -c 'SERVER &'",
        "Type=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'sleep 0.5; SERVER & systemd-notify --ready; wait'",
        "ExecStart=SERVER\nRestart=always\nRestartSec=0",
        "ExecStart=SERVER\nRestart=on-failure",
        "ExecStart=SERVER\nRestart=on-abnormal\nKillSignal=SIGINT",
        "ExecStart=SERVER\nDelegate=yes\nSlice=gpu-models.slice",
        "ExecStart=SERVER\nKillMode=mixed\nDynamicUser=no\nPrivateTmp=yes",
    ] {
        let corner = machine.corner();
        install(&corner, lines);
        comes_and_goes(&corner, lines);
    }
}

#[test]
fn a_slice_is_a_unit_with_all_that_runs_in_it() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let slice = format!("{}.slice", corner.mark("models"));
    let members = ["server", "worker"].map(|name| format!("{}.service", corner.mark(name)));
    let [server, worker] = &members;
    corner.unit(&slice, &format!("[Unit]\nWants={server} {worker}\n"));
    let own = format!("[Service]\n{}Slice={slice}\nExecStart=", corner.environment());
    corner.unit(server, &format!("{own}{}\n", corner.server("vllm", 0, "--vram 3000")));
    corner.unit(worker, &format!("{own}{}\n", corner.server("worker", 1, "--vram 1000")));
    corner.config(&service(&corner, &slice, ""));
    comes_and_goes(&corner, "a slice");
    succeeds(&corner, "start vllm");
    let status = corner.json("gpuctl status --json");
    assert_eq!(status["services"]["vllm"]["used_mb"], 4000, "{status:#}");
    assert_eq!(status["services"]["vllm"]["pids"].as_array().unwrap().len(), 2, "{status:#}");
    succeeds(&corner, "restart vllm");
    succeeds(&corner, "stop vllm --force");
    assert_eq!(corner.card.used_mb(), 0);
    assert_eq!(corner.state("vllm").0, "stopped");
}

#[test]
fn instances_of_templates_and_escaped_names_are_units_like_others() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let template = corner.mark("vllm");
    install_as(
        &corner,
        &format!("{template}@.service"),
        &format!("{template}@a.service"),
        "ExecStart=SERVER",
    );
    comes_and_goes(&corner, "an instance");
    let corner = machine.corner();
    let name = format!("{}\\x2dllm-\\xc3\\xa9.service", corner.mark("vllm"));
    install_as(&corner, &name, &name, "ExecStart=SERVER");
    comes_and_goes(&corner, "an escaped name");
}

#[test]
fn a_unit_that_is_masked_missing_broken_or_whose_condition_fails_is_told_as_such() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=SERVER");
    machine.sh(&format!("rm /etc/systemd/system/{unit}; ln -s /dev/null /etc/systemd/system/{unit}; systemctl daemon-reload"));
    assert_eq!(corner.state("vllm"), ("stopped".to_owned(), "the unit is masked".to_owned()));
    fails(&corner, "start vllm", 5, "is masked");
    machine.sh(&format!("rm /etc/systemd/system/{unit}; systemctl daemon-reload"));
    fails(&corner, "start vllm", 4, "not-found");
    let corner = machine.corner();
    install(&corner, "Type=simple");
    fails(&corner, "start vllm", 4, "bad-setting");
    let corner = machine.corner();
    install(&corner, "ExecStart=SERVER\n[Unit]\nConditionPathExists=/nowhere");
    fails(&corner, "start vllm", 5, "unmet condition");
}

#[test]
fn a_unit_that_fails_loops_or_lacks_a_dependency_is_5_with_what_its_journal_says() {
    let Some(machine) = Machine::shared() else { return };
    for (lines, why) in [
        ("ExecStart=/bin/sh -c 'echo this is why; exit 3'", "this is why"),
        ("ExecStart=/nowhere/server", "status 203"),
        ("Restart=always\nRestartSec=100ms\nExecStart=/bin/sh -c 'echo again; exit 3'", "again"),
        (
            "ExecStart=SERVER\n[Unit]\nRequires=nowhere.service\nAfter=nowhere.service",
            "nowhere.service not found",
        ),
    ] {
        let corner = machine.corner();
        install(&corner, lines);
        fails(&corner, "start vllm", 5, why);
        succeeds(&corner, "stop vllm");
    }
}

#[test]
fn a_healthy_unit_can_be_started_more_often_than_the_start_limit_allows() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit =
        install(&corner, "ExecStart=SERVER\n[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=2");
    for _ in 0..5 {
        succeeds(&corner, "start vllm");
        succeeds(&corner, "stop vllm");
    }
    // A unit that has hit its limit can be started too. A reload for another unit begins the count
    // anew, so the limit is tried until it is hit.
    until("the limit is hit", || {
        let (said, succeeds) = machine.try_sh(&format!("systemctl restart {unit}"));
        !succeeds && said.contains("start of the service was attempted too often")
    });
    succeeds(&corner, "start vllm");
}

#[test]
fn a_unit_that_another_starts_again_is_6_and_that_one_is_named() {
    let Some(machine) = Machine::shared() else { return };
    for (kind, lines) in [
        ("path", "[Path]\nPathExists=/io\nUnit=UNIT\n"),
        ("service", "[Unit]\nUpholds=UNIT\n[Service]\nExecStart=/bin/sleep 1000\n"),
    ] {
        let corner = machine.corner();
        let unit = install(&corner, "ExecStart=SERVER");
        let starter = format!("{}.{kind}", corner.mark("keeper"));
        corner.unit(&starter, &lines.replace("UNIT", &unit));
        succeeds(&corner, "start vllm");
        machine.sh(&format!("systemctl start {starter}"));
        let (code, said) = corner.gpuctl("stop vllm");
        assert_eq!(code, 6, "{kind}: {said}");
        assert!(said.contains(&format!("vllm: {starter} started it again")), "{kind}: {said}");
        assert!(said.contains(&format!("`systemctl stop {starter}`")), "{kind}: {said}");
        machine.sh(&format!("systemctl stop {starter}"));
        succeeds(&corner, "stop vllm");
        assert_eq!(corner.card.used_mb(), 0, "{kind}");
    }
}

#[test]
fn force_keeps_a_unit_down_that_is_to_be_restarted_always() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    install(
        &corner,
        "Restart=always\nRestartSec=0\nExecStart=SERVER --ignore-term\nTimeoutStopSec=1h",
    );
    for _ in 0..5 {
        succeeds(&corner, "start vllm");
        succeeds(&corner, "stop vllm --force");
        assert_eq!(corner.state("vllm").0, "stopped");
        assert_eq!(corner.card.used_mb(), 0);
    }
}

#[test]
fn a_unit_that_does_not_end_is_killed_after_its_stop_timeout_whatever_its_own_is() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit =
        install(&corner, "Restart=always\nExecStart=SERVER --ignore-term\nTimeoutStopSec=1h");
    corner.config(
        &service(&corner, &unit, "").replace("stop_timeout = \"10s\"", "stop_timeout = \"1s\""),
    );
    succeeds(&corner, "start vllm");
    let said = succeeds(&corner, "stop vllm");
    assert!(said.contains("not gone within 1s, killed"), "{said}");
    assert_eq!(corner.state("vllm").0, "stopped");
    // This unit's own timeout is shorter.
    let corner = machine.corner();
    install(&corner, "ExecStart=SERVER --ignore-term\nTimeoutStopSec=1");
    succeeds(&corner, "start vllm");
    succeeds(&corner, "stop vllm");
    assert_eq!(corner.card.used_mb(), 0);
}

#[test]
fn row_74_a_unit_that_runs_while_its_file_is_broken_or_gone_is_seen_and_ended() {
    let Some(machine) = Machine::shared() else { return };
    for change in ["rm FILE", "echo nonsense >FILE", "printf '[Service]\\nType=simple\\n' >FILE"] {
        let corner = machine.corner();
        let unit = install(&corner, "ExecStart=SERVER");
        succeeds(&corner, "start vllm");
        let file = format!("/etc/systemd/system/{unit}");
        machine.sh(&format!("{} && systemctl daemon-reload", change.replace("FILE", &file)));
        assert_eq!(corner.state("vllm").0, "ready", "{change}");
        succeeds(&corner, "release-all");
        assert_eq!(corner.card.used_mb(), 0, "{change}");
    }
}

#[test]
fn row_74_what_a_unit_with_kill_mode_process_leaves_is_seen_and_ended_and_no_second_copy_started() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit =
        install(&corner, "KillMode=process\nExecStart=/bin/sh -c 'SERVER & exec sleep 1000'");
    succeeds(&corner, "start vllm");
    machine.sh(&format!("systemctl stop {unit}"));
    assert_eq!(corner.card.used_mb(), 4000, "it left nothing behind");
    assert_eq!(corner.state("vllm").0, "error");
    let said = succeeds(&corner, "stop vllm");
    assert!(said.contains("stopped vllm"), "{said}");
    assert_eq!(corner.card.used_mb(), 0);
    // A stop by gpuctl leaves no such processes, and a start puts no second copy beside those that
    // are left.
    comes_and_goes(&corner, "KillMode=process");
    succeeds(&corner, "start vllm");
    machine.sh(&format!("systemctl stop {unit}"));
    succeeds(&corner, "start vllm");
    assert_eq!(corner.card.used_mb(), 4000);
    assert_eq!(corner.state("vllm").0, "ready");
    succeeds(&corner, "stop vllm");
}

#[test]
fn row_74_what_polkit_refuses_is_77_and_a_pending_reload_hides_no_reason() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=SERVER");
    let as_tester = |words: &str| {
        let folder = corner.path("tester");
        let own = corner.path("");
        corner.sh(&format!("mkdir -p {folder}; chmod -R a+rX {own}; chown -R tester {folder}"));
        let command = format!(
            "GPUCTL_STATE_DIR={folder}/state gpuctl --config {} {words}",
            corner.path("gpuctl.toml")
        );
        let said =
            corner.try_sh(&format!("runuser -u tester -- sh -c '{command}; echo \"exit $?\"'")).0;
        let (said, code) = said.trim_end().rsplit_once("exit ").unwrap();
        (code.to_owned(), said.to_owned())
    };
    corner.sh(&format!("chown tester {}", corner.path("gpuctl.toml")));
    // polkit puts it in one way, and the manager, if there is no polkit, in the other.
    let is_refused = |said: &str| said.contains("uthentication") || said.contains("Access denied");
    let (code, said) = as_tester("start vllm");
    assert!(code == "77" && is_refused(&said), "{code}: {said}");
    let (_, doctor) = as_tester("doctor -v 2>/dev/null");
    let permission = doctor.lines().find(|line| line.contains("systemd.permission")).unwrap();
    let expected = match machine.try_sh("command -v pkcheck").1 {
        true => "polkit decides when a unit is to be started",
        false => "only root may start and stop units",
    };
    assert!(permission.contains(expected), "{doctor}");
    machine.sh(&format!("systemctl start {unit}"));
    until("it is ready", || as_tester("status --check vllm -q").0 == "0");
    for words in ["stop vllm", "stop vllm --force", "release-all"] {
        until("the manager answers in time, whatever others ask of it", || {
            let (code, said) = as_tester(words);
            let is_late = code == "69" && said.contains("did not answer within");
            assert!(is_late || code == "77" && is_refused(&said), "{words}: {code}: {said}");
            !is_late
        });
    }
    machine.sh(&format!("systemctl stop {unit}"));

    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=/bin/sh -c 'echo this is why; exit 3'");
    machine.sh(&format!("echo '# more' >>/etc/systemd/system/{unit}"));
    fails(&corner, "start vllm", 5, "this is why");
    machine.sh(&format!("ln -sf /dev/null /etc/systemd/system/{unit}"));
    let (_, said) = corner.gpuctl("start vllm");
    assert!(!said.contains("Warning:"), "{said}");
}

#[test]
fn a_unit_that_a_socket_would_start_is_not_started_by_looking() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = install(&corner, "ExecStart=SERVER\nStandardInput=null");
    let (socket, port) = (unit.replace(".service", ".socket"), corner.port);
    corner.unit(&socket, &format!("[Socket]\nListenStream=127.0.0.1:{port}\n"));
    machine.sh(&format!("systemctl start {socket}"));
    for words in [
        "status",
        "status --prometheus",
        "doctor",
        "stop vllm",
        "start vllm --dry-run",
        "release-all",
    ] {
        corner.gpuctl(words);
        let state = machine.try_sh(&format!("systemctl is-active {unit}")).0;
        assert_eq!(state, "inactive\n", "{words}");
    }
    assert_eq!(corner.state("vllm").0, "stopped");
    // A connection does start the unit.
    machine.try_sh(&format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}'"));
    until("it is started", || {
        let since = "systemctl show -p InactiveExitTimestampMonotonic --value";
        machine.sh(&format!("{since} {unit}")) != "0\n"
    });
    machine.try_sh(&format!("systemctl stop {socket} {unit}"));
}

#[test]
fn a_users_units_are_managed_also_where_xdg_runtime_dir_is_not_set() {
    let Some(machine) = Machine::shared() else { return };
    let corner = machine.corner();
    let unit = format!("{}.service", corner.mark("vllm"));
    let text = format!(
        "[Service]\n{}ExecStart={}\n",
        corner.environment(),
        corner.server("vllm", 0, "--vram 4000")
    );
    corner.file(&unit, &text);
    let home = "/home/lingerer/.config/systemd/user";
    machine.sh(&format!(
        "mkdir -p {home}; cp {} {home}; chown -R lingerer /home/lingerer",
        corner.path(&unit)
    ));
    corner.config(&service(&corner, &unit, "user = true"));
    corner.sh(&format!(
        "chmod -R a+rwX {}; chown lingerer {}",
        corner.path(""),
        corner.path("gpuctl.toml")
    ));
    corner.sh(&format!("chmod go-w {0} {0}gpuctl.toml", corner.path("")));
    until("the user's systemd is up", || {
        machine.try_sh("test -S /run/user/1991/systemd/private").1
    });
    let by = |user: &str, variables: &str, words: &str| {
        let folder = format!("/home/{user}/state");
        let command = format!(
            "HOME=/home/{user} GPUCTL_STATE_DIR={folder} {variables} gpuctl --config {} {words}",
            corner.path("gpuctl.toml")
        );
        let said = corner
            .try_sh(&format!("cd /; runuser -u {user} -- sh -c '{command}; echo \"exit $?\"'"))
            .0;
        let (said, code) = said.trim_end().rsplit_once("exit ").unwrap();
        (code.to_owned(), said.to_owned())
    };
    machine.sh(
        "runuser -u lingerer -- env XDG_RUNTIME_DIR=/run/user/1991 systemctl --user daemon-reload",
    );
    for variables in ["", "XDG_RUNTIME_DIR=/run/user/1991"] {
        let (code, said) = by("lingerer", variables, "start vllm");
        assert_eq!(code, "0", "{variables}: {said}");
        assert_eq!(corner.card.used_mb(), 4000);
        let (code, said) = by("lingerer", variables, "stop vllm");
        assert_eq!(code, "0", "{variables}: {said}");
        assert_eq!(corner.card.used_mb(), 0);
    }
    // This user is not logged in.
    corner.sh(&format!("chown tester {}", corner.path("gpuctl.toml")));
    let (code, said) = by("tester", "", "start vllm");
    assert!(code == "69" && said.contains("loginctl enable-linger tester"), "{code}: {said}");
}
