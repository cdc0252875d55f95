//! Tests of what the rig promises: it is strict, it is isolated, and it leaves nothing behind.

use rig::{Fault, Rig, Script, Signal, TIME_LIMIT, apart, skip_or_fail, until};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};

/// Reports whether `act` panics, which is how the rig fails a test.
fn panics(act: impl FnOnce()) -> bool {
    catch_unwind(AssertUnwindSafe(act)).is_err()
}

#[test]
fn what_is_not_declared_fails_the_test() {
    let rig = Rig::new();
    let told = |script| rig.shell(script).run();
    assert!(panics(|| drop(told("true"))), "an exit code that nobody stated");
    assert!(panics(|| drop(told("exit 3").succeeds())), "another exit code");
    assert!(panics(|| drop(told("echo out").succeeds())), "stdout");
    assert!(panics(|| drop(told("echo err >&2").succeeds())), "stderr");
    assert!(panics(|| drop(told("echo warning: x >&2").succeeds().progress())), "a warning");
    assert!(panics(|| drop(told("exit 78").fails("no such code"))), "an unknown name");
    told("echo out; echo err >&2; exit 78").fails("config").stdout("out\n").stderr_has("err");
    told("kill -KILL $$").dies_of(9);
}

#[test]
fn a_process_that_inherits_the_output_fails_the_test() {
    let rig = Rig::new();
    assert!(panics(|| drop(rig.shell("sleep 1000 &").run())));
    assert!(TIME_LIMIT.as_secs() < 1000, "it was not just waited for");
}

#[test]
fn a_rig_that_panics_takes_its_processes_and_its_folder_with_it() {
    let mut folder = None;
    let mut process = None;
    assert!(panics(|| {
        let rig = Rig::new();
        folder = Some(rig.path(""));
        let vidi = rig.native("vidi").script(Script::Daemon).server("--double-fork").add();
        rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
        process = rig.processes_of(&vidi).first().copied();
        panic!("as a test does that fails");
    }));
    assert!(!folder.unwrap().exists());
    // A zombie that nobody has reaped yet has no command line either.
    let command_line = fs::read(format!("/proc/{}/cmdline", process.unwrap()));
    assert_eq!(command_line.unwrap_or_default(), b"");
}

#[test]
fn what_a_rig_starts_has_nothing_of_the_testers_shell() {
    let rig = Rig::new();
    // The C library leaves its signal 32 ignored in what it starts.
    let good = "^SigBlk:.0{16}$|^SigIgn:.0{8}[08]0{7}$";
    let signals = rig.shell(&format!("grep -cE '{good}' /proc/self/status; umask")).run();
    signals.succeeds().stdout("2\n0022\n");
    let names = "env | sed 's/=.*//' | grep -vxE 'PATH|HOME|XDG_RUNTIME_DIR|GPUCTL_CONFIG|GPUCTL_STATE_DIR|\
                 SIMGPU_DIR|REDIS_URL|DOCKER_HOST|PWD|OLDPWD|SHLVL|_'";
    rig.shell(names).run().exits(1);
}

#[test]
fn nor_has_it_where_that_shell_is_an_odd_one() {
    let this_test = "rigs::machine::what_a_rig_starts_has_nothing_of_the_testers_shell";
    let odd = "trap '' HUP INT QUIT TERM CHLD USR1; umask 077; exec \"$0\" --exact \"$1\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", odd]).arg(std::env::current_exe().unwrap()).arg(this_test);
    shell.env("GPUCTL_LOCK_URL", "redis://nowhere").env("LC_ALL", "xx_XX").env("NO_COLOR", "1");
    let Output { status, stdout, .. } = shell.output().unwrap();
    let told = String::from_utf8_lossy(&stdout);
    assert!(status.success() && told.contains("1 passed"), "{told}");
}

#[test]
fn an_engine_of_the_tests_own_is_not_in_the_machines_network() {
    if std::env::var_os("GPUCTL_TEST_DOCKER_HOST").is_some() {
        return skip_or_fail("docker", "engine of the tests' own where another is named");
    }
    let network = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).unwrap();
    let machines = network("thread-self");
    let Some(rig) = Rig::with_docker() else { return };
    assert_ne!(network("thread-self"), machines);
    // A container has the network of its engine, and is asked there.
    let vidi = rig.container("vidi").add();
    rig.docker(&["start", vidi.mark()]);
    until("it answers", || vidi.is_healthy());
    let pid = rig.docker(&["inspect", "--format", "{{.State.Pid}}", vidi.mark()]);
    assert_eq!(network(pid.trim()), network("thread-self"));
}

#[test]
fn every_shape_of_start_script_can_be_started_and_stopped() {
    let scripts =
        [Script::Foreground, Script::Background, Script::Detached, Script::Daemon, Script::File];
    for script in scripts {
        // Shown when the test fails.
        eprintln!("{script:?}");
        let rig = Rig::new();
        let vidi = rig.native("vidi").script(script).without_match().add();
        rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").progress();
        assert!(vidi.is_healthy(), "{script:?}");
        rig.gpuctl("stop vidi").run().succeeds().stdout_has("vidi").progress();
        rig.assert_no_process_of(&vidi);
    }
}

#[test]
fn what_runs_by_hand_is_seen_and_a_reader_of_the_log_survives() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).server("--idle-vram 600").add();
    let log = rig.file(&format!("{}.log", vidi.mark()), "");
    let mut server = rig.by_hand(vidi.command());
    let mut reader = rig.by_hand(&format!("tail -f {}", log.display()));
    until("vidi is healthy", || vidi.is_healthy());
    vidi.work();
    assert_eq!(rig.card.used_mb(), 4000);
    assert!(rig.processes_of(&vidi).contains(&server.pid()));

    rig.gpuctl("stop vidi").run().succeeds().stdout_has("vidi").progress();
    assert!(!server.is_alive());
    assert!(reader.is_alive());
}

#[test]
fn gpuctl_in_the_background_can_be_interrupted() {
    let rig = Rig::new();
    rig.native("vidi").server("--warmup 1h").add();
    let start = rig.gpuctl("start vidi").spawn();
    until("it has told what it does", || !start.stderr().is_empty());
    start.signal(Signal::INT);
    start.wait().exits(130).stderr_has("interrupted by signal 2");
    assert!(rig.state_dir().join("logs").exists());
}

#[test]
fn systemctl_fails_in_the_ways_of_the_real_one() {
    let rig = Rig::new();
    rig.unit("vllm").add();
    rig.unit("absent").not_installed().add();
    let start = |unit| rig.shell(&format!("systemctl start -- {}.service", rig.mark(unit))).run();
    start("absent").exits(5).stderr_has("not found.");
    rig.systemd().fails(Fault::NoPermission);
    start("vllm").exits(1).stderr_has("Interactive authentication required.");
    rig.systemd().fails(Fault::NotBooted);
    rig.shell("systemctl show").run().exits(1).stderr_has("System has not been booted");
}

#[test]
fn systemctl_shows_a_block_for_each_unit_in_the_order_asked_for() {
    let rig = Rig::new();
    rig.unit("here").add();
    rig.unit("absent").not_installed().add();
    let unit = |name| format!("{}.service", rig.mark(name));
    rig.shell("systemctl --no-pager show --property Id,LoadState,ActiveState,ControlGroup -- \"$A\" \"$H\"")
        .env("A", unit("absent"))
        .env("H", unit("here"))
        .run()
        .succeeds()
        .stdout(&format!(
            "ControlGroup=\nId={}\nLoadState=not-found\nActiveState=inactive\n\n\
             ControlGroup=\nId={}\nLoadState=loaded\nActiveState=inactive\n",
            unit("absent"),
            unit("here"),
        ));
}

#[test]
fn a_unit_that_restarts_is_shown_as_such() {
    let rig = Rig::new();
    rig.unit("vllm").restarts().server("--exit-after 10ms --exit-code 3").add();
    let property = |name: &str| {
        let script = format!("systemctl show --property {name} -- {}.service", rig.mark("vllm"));
        rig.shell(&script).run().succeeds().text()
    };
    rig.shell(&format!("systemctl start -- {}.service", rig.mark("vllm"))).run().succeeds();
    until("it restarts", || property("SubState") == "SubState=auto-restart\n");
    until("it is counted", || property("NRestarts") == "NRestarts=2\n");
    assert_eq!(property("Result"), "Result=exit-code\n");
}

/// The command is never run: asking the rig for it is enough.
#[test]
#[should_panic(expected = "a pattern that may find a stranger is for a test in `apart` only")]
fn a_pattern_that_may_find_a_stranger_is_refused_where_there_are_any() {
    let rig = Rig::new();
    let pattern = format!("python|{}", rig.token());
    rig.native("vidi").set("match", pattern).add();
    let _stop = rig.gpuctl("stop vidi");
}

#[test]
fn apart_there_is_nobody_but_the_shell_that_reaps_and_the_test() {
    apart(|rig| {
        let processes: Vec<i32> = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
            .collect();
        assert!(processes.contains(&1) && processes.len() < 4, "{processes:?}");
        let vidi = rig.native("vidi").set("match", "simserver").add();
        rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
        rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
        rig.assert_no_process_of(&vidi);
    });
}
