//! Tests of how often gpuctl calls Docker's client, whose start takes longer than all that gpuctl
//! does itself.

use rig::Rig;
use std::path::Path;
use toml::Table;

#[test]
fn a_start_a_change_of_phase_and_doctor_call_it_no_more_than_they_must() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.container("voice").phases([3]).server("--warmup 700ms").add();
    rig.container("vidi").phases([2]).server("--warmup 700ms").add();
    let start = rig.docker_calls(|| {
        rig.gpuctl("start voice --quiet").run().succeeds();
    });
    assert!(start.len() <= 4, "{start:?}");
    for phase in ["2", "3"] {
        let change = rig.docker_calls(|| {
            rig.gpuctl("prepare-phase --quiet").arg(phase).run().succeeds();
        });
        assert!(change.len() <= 4, "{change:?}");
    }
    let doctor = rig.docker_calls(|| {
        rig.gpuctl("doctor --quiet").run().ignores_stdout().ignores_stderr().ended();
    });
    assert!(doctor.len() <= 2, "{doctor:?}");
    // This container has no health check at all.
    rig.container("plain").without_health().add();
    let plain = rig.docker_calls(|| {
        rig.gpuctl("start plain --quiet").run().succeeds();
    });
    assert!(plain.len() <= 4, "{plain:?}");
}

#[test]
fn draining_containers_at_rest_calls_it_no_more_often() {
    let Some(rig) = Rig::with_docker() else { return };
    let [voice, vidi] = [("voice", 3), ("vidi", 2)]
        .map(|(name, phase)| rig.container(name).phases([phase]).server("--api vllm").add());
    rig.gpuctl("prepare-phase 3 --quiet").run().succeeds();
    let change = || {
        let changes = ["2", "3"].map(|phase| {
            rig.docker_calls(|| {
                rig.gpuctl("prepare-phase --quiet").arg(phase).run().succeeds();
            })
        });
        let verb = |call: &String| call.split(' ').next().unwrap().to_owned();
        changes.map(|calls| calls.iter().map(verb).collect::<Vec<_>>())
    };
    let without = change();
    for (name, service) in [("voice", &voice), ("vidi", &vidi)] {
        rig.set(&format!("services.{name}.busy.url"), service.url("/metrics"));
        rig.set(&format!("services.{name}.busy.metric"), "vllm:num_requests_running");
    }
    assert_eq!(change(), without);
    assert!(without.iter().all(|calls| calls.len() <= 4), "{without:?}");
}

#[test]
fn a_healthcheck_of_a_container_is_waited_for_and_not_asked_for() {
    let Some(rig) = Rig::with_docker() else { return };
    if !Path::new("/bin/busybox").exists() {
        return rig::skip_or_fail("busybox", "busybox for the image");
    }
    let voice = rig.mark("voice");
    // The check looks for a file in the container's own file system, which appears after a while.
    let check =
        ["--health-cmd", "test -e /well", "--health-interval", "100ms", "--health-retries", "1000"];
    rig.owns_container(&voice);
    let shell = "sleep 2; touch /well; exec sleep 1000";
    let image = [rig.engine().image(), "/bin/sh", "-c", shell];
    rig.docker(&[&["create", "--name", &voice, "--network", "none"], &check[..], &image].concat());
    let settings =
        format!("type = 'docker'\ncontainer = '{voice}'\nvram_mb = 1000\nstop_timeout = '1s'");
    rig.set("services.voice", settings.parse::<Table>().unwrap());
    let calls = rig.docker_calls(|| {
        rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    });
    assert!(calls.len() <= 4 && calls.iter().any(|call| call.starts_with("events")), "{calls:?}");
}

#[test]
fn thirty_containers_of_a_phase_share_calls() {
    let Some(rig) = Rig::with_docker() else { return };
    for number in 0..30 {
        let name = format!("voice{number}");
        rig.container(&name).vram(10).phases([3]).add();
    }
    rig.native("vidi").phases([2]).add();
    let there = rig.docker_calls(|| {
        rig.gpuctl("prepare-phase 3 --quiet").run().succeeds();
    });
    assert!(there.len() <= 8, "{there:?}");
    let back = rig.docker_calls(|| {
        rig.gpuctl("prepare-phase 2 --quiet").run().succeeds();
    });
    assert!(back.len() <= 8, "{back:?}");
}

#[test]
fn where_the_first_process_reaps_nobody_no_client_is_left_behind() {
    let Some(rig) = Rig::with_docker() else { return };
    let user = if rustix::process::geteuid().is_root() { "" } else { "--map-root-user" };
    let unshare = format!("unshare {user} --pid --fork --mount-proc");
    if rig.shell(&format!("{unshare} true >&- 2>&-; echo $?")).run().succeeds().text() != "0\n" {
        return rig::skip_or_fail("namespaces", "PID namespace");
    }
    rig.container("voice").add();
    // This client takes its time to end after its last word.
    rig.program("docker", "PATH=${PATH#*:} docker \"$@\"\nsleep 0.3");
    let look = "gpuctl status --quiet >/dev/null; cat /proc/[0-9]*/comm";
    let names = rig.shell(&format!("exec {unshare} sh -c '{look}'")).run().succeeds().text();
    assert_eq!(names, "sh\n");
}
