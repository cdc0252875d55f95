//! Tests of `adopt`: what was started by hand is tied to a native service, or refused with the
//! reason and nothing changed.

use rig::{Bystander, Rig, Service, Signal, parent, skip_or_fail, state, until, works};
use serde_json::json;

/// Starts a server on the card by hand, which gpuctl finds neither by a pattern nor by the port of
/// a health check.
fn by_hand(rig: &Rig) -> (Service, Bystander) {
    let vidi = rig.native("vidi").vram(4000).without_match().without_health().add();
    let server = rig.by_hand(vidi.command());
    until("it works", || rig.card.used_mb() == 4000);
    (vidi, server)
}

fn pids(rig: &Rig) -> serde_json::Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"]["vidi"]["pids"].clone()
}

/// Asserts that an adoption is refused with this error, its reason and its hint, and that nothing
/// is recorded.
#[track_caller]
fn is_refused(rig: &Rig, pid: i32, error: &str, reason: &str, hint: &str) {
    let refused = rig.gpuctl(&format!("adopt vidi {pid}")).run();
    refused.fails(error).stderr_has(reason).stderr_has(hint);
    assert!(!rig.path("state/starts").exists(), "something was recorded");
}

#[test]
fn what_was_adopted_is_told_as_text_and_as_json_and_stands_in_the_history() {
    let rig = Rig::new();
    let (_, server) = by_hand(&rig);
    let pid = server.pid();
    let adopt = format!("adopt vidi {pid}");
    rig.gpuctl(&adopt).run().succeeds().stdout(&format!("vidi: adopted {pid}\n"));
    assert_eq!(pids(&rig), json!([pid]));
    // The process is adopted again, and named twice, which changes nothing.
    let again = rig.gpuctl(&format!("{adopt} {pid} --json")).run().succeeds().json();
    assert_eq!(again, json!({"success": true, "service": "vidi", "adopted": [pid]}));
    assert_eq!(pids(&rig), json!([pid]));
    let runs = rig.gpuctl("history --json").run().succeeds().json()["runs"].clone();
    assert_eq!(runs[0]["command"], "adopt");
    assert_eq!(runs[0]["subject"], format!("vidi {pid}"));
    assert_eq!(runs[0]["exit_code"], 0);
}

#[test]
fn what_gpuctl_has_started_stays_recorded_when_more_is_adopted() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).without_match().add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let server = rig.processes_of(&vidi)[0];
    let worker = rig.by_hand("sleep 1000");
    rig.gpuctl(&format!("adopt vidi {}", worker.pid())).run().succeeds().stdout_has("adopted");
    let mut both = [server, worker.pid()];
    both.sort_unstable();
    assert_eq!(pids(&rig), json!(both));
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    assert!(state(server).is_none() && state(worker.pid()).is_none());
}

#[test]
fn who_holds_the_lock_is_not_disturbed() {
    let rig = Rig::new();
    let (_, server) = by_hand(&rig);
    rig.gpuctl("lock acquire nightly").run().succeeds().ignores_stdout();
    let refused = rig.gpuctl(&format!("adopt vidi {} --no-wait", server.pid())).run();
    refused.fails("lock_busy").stderr_has("nightly");
    assert_eq!(pids(&rig), json!([]));
}

#[test]
fn an_unknown_service_one_of_another_type_and_no_number_are_refused() {
    let rig = Rig::new();
    let (_, server) = by_hand(&rig);
    rig.set("services.box", toml::toml! { type = "docker" container = "box" vram_mb = 1 });
    let adopt = |words: &str| rig.gpuctl(&format!("adopt {words}")).run();
    let pid = server.pid();
    adopt(&format!("vidio {pid}")).fails("not_found").stderr_has("vidio").stderr_has("hint: ");
    adopt(&format!("box {pid}"))
        .fails("usage")
        .stderr_has("box is of type docker")
        .stderr_has("only a native service");
    for number in ["0", "-1", "python", ""] {
        assert_eq!(adopt(&format!("vidi {number}")).ended().0, Some(2), "{number}");
    }
    is_refused(&rig, 4_194_303, "not_found", "there is no process 4194303", "hint: ");
}

#[test]
fn a_caller_and_gpuctl_itself_are_not_adopted() {
    let rig = Rig::new();
    let (_, _server) = by_hand(&rig);
    is_refused(&rig, std::process::id() as i32, "usage", "was called from it", "another terminal");
    let other = rig.gpuctl("status --watch").spawn();
    until("it watches", || !other.stdout().is_empty());
    is_refused(&rig, other.pid(), "usage", "it is gpuctl", "name the server itself");
    other.signal(Signal::INT);
    other.wait().ended();
}

#[test]
fn a_thread_of_the_kernel_is_not_adopted() {
    let rig = Rig::new();
    by_hand(&rig);
    // The process with PID 2 is kthreadd, except in a container.
    match std::fs::read_to_string("/proc/2/comm").is_ok_and(|name| name.trim() == "kthreadd") {
        true => is_refused(&rig, 2, "usage", "kernel thread", "name the server itself"),
        false => skip_or_fail("kernel", "kernel thread to be seen from here"),
    }
}

#[test]
fn what_belongs_to_another_service_is_not_adopted_and_goes_on() {
    let rig = Rig::new();
    let (_, _server) = by_hand(&rig);
    let voice = rig.native("voice").vram(1000).server("--fork 1").add();
    rig.gpuctl("start voice --quiet").run().succeeds();
    for pid in rig.servers_of("voice") {
        let refused = rig.gpuctl(&format!("adopt vidi {pid}")).run();
        refused
            .fails("usage")
            .stderr_has("belongs to service voice")
            .stderr_has("gpuctl stop voice");
    }
    assert!(voice.is_healthy());
    assert_eq!(pids(&rig), json!([]));
}

#[test]
fn the_server_of_a_multiplexer_is_not_adopted_and_its_pane_is() {
    if !works("tmux", &["-V"]) {
        return skip_or_fail("tmux", "tmux");
    }
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).without_match().without_health().add();
    let tmux = format!("tmux -S {}", rig.path("run/tmux").display());
    rig.shell(&format!("{tmux} new-session -d '{}'", vidi.command())).run().succeeds();
    until("it works", || rig.card.used_mb() == 4000);
    let pane = rig.processes_of(&vidi).into_iter().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.trim() == "simserver")
    });
    let pane = pane.unwrap();
    // A shell may stay between the pane's command and the server, so the server is looked for
    // further up.
    let is_server = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.starts_with("tmux"))
    };
    let server = std::iter::successors(parent(pane), |pid| parent(*pid)).find(is_server).unwrap();
    is_refused(&rig, server, "usage", "terminal multiplexer", "name the process in the pane");
    rig.gpuctl(&format!("adopt vidi {pane}")).run().succeeds().stdout_has("adopted");
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    assert!(state(pane).is_none());
}

#[test]
fn a_process_of_a_container_is_not_adopted() {
    let Some(rig) = Rig::with_docker() else { return };
    let (_, _server) = by_hand(&rig);
    let name = rig.mark("inside");
    rig.owns_container(&name);
    let image = rig.engine().image().to_owned();
    rig.docker(&[
        "run",
        "--detach",
        "--name",
        &name,
        "--entrypoint",
        "/bin/simserver",
        &image,
        "--port",
        "0",
    ]);
    let pid = rig.docker(&["inspect", "--format", "{{.State.Pid}}", &name]);
    let pid = pid.trim().parse().unwrap();
    is_refused(&rig, pid, "usage", "in a container", "type = \"docker\"");
}

/// If the owner adopted the forwarder as the server, a stop would end it, and the container would
/// run on.
#[test]
fn who_forwards_a_port_to_a_container_is_not_adopted_and_never_said_to_be_the_server() {
    let Some(rig) = Rig::with_docker() else { return };
    let (port, network, name) = (rig.port(), rig.network(), rig.mark("inside"));
    rig.owns_container(&name);
    let image = rig.engine().image();
    // The start command stays, since on a busy machine the server takes longer to answer than the
    // container to be started.
    let run = format!(
        "docker run --detach --name {name} --network {network} --publish 127.0.0.1:{port}:8000 \
        --volume {0}:{0} --env SIMGPU_DIR={0} {image} /bin/simserver --host 0.0.0.0 --port 8000 && \
        exec sleep 1000",
        rig.card.folder().display()
    );
    let text = format!(
        "type = 'native'\nvram_mb = 100\nhealth = 'http://127.0.0.1:{port}/health'\nstart = '{run}'"
    );
    rig.set("services.vidi", text.parse::<toml::Table>().unwrap());
    let started = rig.gpuctl("start vidi --quiet").run().fails("start_failed");
    let started = started.stderr_has("it started the container").stderr_has("docker-proxy");
    let told = started.stderr_text();
    assert!(!told.contains("gpuctl adopt"), "{told}");
    // Nothing but the start command belongs to the service.
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("nothing to do");

    let listed = rig.shell(&format!("pgrep -f '[d]ocker-proxy.* -host-port {port} '")).run();
    let proxy: i32 = listed.succeeds().text().trim().parse().unwrap();
    let refused = rig.gpuctl(&format!("adopt vidi {proxy}")).run().fails("usage");
    refused.stderr_has("listens for one").stderr_has("type = \"docker\"");
    assert!(state(proxy).is_some());
}

/// The process is another user's, so the caller may neither see its environment nor signal it.
#[test]
fn a_process_that_may_not_be_looked_into_is_not_adopted() {
    let rig = Rig::new();
    let (_, _server) = by_hand(&rig);
    let roots = rig.by_hand("sleep 1000");
    let Some(user) = rig.as_a_user() else { return };
    let refused = rig.shell(&format!("{user} gpuctl adopt vidi {}", roots.pid())).run();
    refused.fails("permission").stderr_has("may not be inspected").stderr_has("as root");
    assert!(!rig.path("state/starts").exists(), "something was recorded");
}
