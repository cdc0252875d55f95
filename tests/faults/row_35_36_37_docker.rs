//! Tests of Docker's faults (rows 35 to 37): a container that is missing, an engine that cannot be
//! asked, and a container that does not run.

use rig::{Rig, Signal, docker_client_or_skip, until};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

fn fact(rig: &Rig, container: &str, field: &str) -> String {
    let format = format!("{{{{{field}}}}}");
    rig.docker(&["container", "inspect", "--format", &format, container]).trim().to_owned()
}

fn service(rig: &Rig, name: &str) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"][name].clone()
}

fn has(text: &Value, part: &str) -> bool {
    text.as_str().is_some_and(|text| text.contains(part))
}

/// Creates the container of a service that is not installed yet, with these options of `docker
/// create` and this command; returns its name.
fn create(rig: &Rig, name: &str, options: &[&str], command: &[&str]) -> String {
    let image = fact(rig, rig.container("of-the-image").add().mark(), ".Config.Image");
    let container = rig.mark(name);
    rig.owns_container(&container);
    let create = ["create", "--name", &container, "--network", "host"];
    rig.docker(&[&create[..], options, &[&image], command].concat());
    container
}

#[test]
fn row_35_a_missing_container_is_not_found_and_how_to_create_it_is_told() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").vram(4000).phases([3]).not_installed().add();
    let how = format!("docker create --name {}", voice.mark());
    rig.gpuctl("start voice").run().fails("not_found").stderr_has(&how);
    rig.gpuctl("start voice --dry-run").run().fails("not_found").stderr_has(&how);
    rig.gpuctl("stop voice").run().fails("not_found").stderr_has(&how);
    rig.gpuctl("stop voice --force").run().fails("not_found").stderr_has(&how);
    let error = rig.gpuctl("prepare-phase 3 --json").run().fails("not_found").json();
    assert!(has(&error["error"]["message"], voice.mark()), "{error}");
    assert!(has(&error["error"]["hint"], &how), "{error}");

    let voice = service(&rig, "voice");
    assert_eq!((&voice["state"], &voice["used_mb"]), (&json!("stopped"), &json!(0)));
    assert!(has(&voice["detail"], "there is no Docker container named"), "{voice}");
    assert_eq!(voice.get("error"), None);
}

/// A container that was made by hand under that name would be in compose's way.
#[test]
fn row_35_a_missing_container_of_composes_is_told_to_be_created_by_compose() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").not_installed().add();
    rig.set("services.voice.container", format!("{}-tts-1", rig.token()));
    let told = rig.gpuctl("start voice").run().fails("not_found");
    told.stderr_has("docker compose up --no-start").stderr_has("type = \"compose\"");
    rig.set("services.voice.container", voice.mark());
    let told = rig.gpuctl("start voice").run().fails("not_found").stderr_has("docker create");
    assert!(!told.stderr_text().contains("compose"));
}

#[test]
fn row_35_a_missing_container_is_in_nobody_elses_way() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.container("absent").vram(4000).phases([3]).not_installed().add();
    let vidi = rig.native("vidi").phases([2]).add();
    let voice = rig.container("voice").phases([4]).add();
    rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("started vidi").progress();
    // Phase 3 is refused before vidi is stopped for it.
    let before = rig.processes_of(&vidi);
    rig.gpuctl("prepare-phase 3 --quiet").run().fails("not_found").stderr_has("absent");
    assert_eq!(rig.processes_of(&vidi), before);
    rig.gpuctl("prepare-phase 4").run().succeeds().stdout_has("started voice").progress();
    rig.assert_no_process_of(&vidi);
    rig.gpuctl("release-all").run().succeeds().stdout_has("stopped voice").progress();
    assert_eq!(fact(&rig, voice.mark(), ".State.Running"), "false");
}

/// Asserts that an engine that cannot be asked makes its containers unknown and nothing else.
fn assert_containers_are_unknown(status: &Value, why: &str) {
    let voice = &status["services"]["voice"];
    assert_eq!((&voice["state"], &voice["used_mb"]), (&json!("unknown"), &Value::Null));
    assert!(has(&voice["error"], why), "{voice}");
    let vidi = &status["services"]["vidi"];
    assert_eq!((&vidi["state"], &vidi["used_mb"]), (&json!("ready"), &json!(1000)));
    assert_eq!(vidi.get("error"), None);
    assert_eq!(status["vram"]["used_mb"], 1000);
}

/// Creates a rig whose Docker cannot be asked, with a service of another type that is ready.
fn rig_without_engine() -> Rig {
    let rig = Rig::new();
    rig.container("voice").phases([3]).not_installed().add();
    rig.native("vidi").phases([2]).add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    rig
}

#[test]
fn row_36_an_engine_without_its_socket_is_unavailable() {
    if !docker_client_or_skip() {
        return;
    }
    let rig = rig_without_engine();
    let why = "Docker cannot be reached";
    assert_containers_are_unknown(&rig.gpuctl("status --json").run().succeeds().json(), why);
    rig.gpuctl("status --check vidi").run().succeeds().stdout_has(why);
    rig.gpuctl("status --check voice").run().fails("no").stdout_has(why);
    let commands =
        ["start voice", "stop voice", "prepare-phase 3", "prepare-phase 2", "release-all"];
    for command in commands {
        rig.gpuctl(command).run().fails("unavailable").stderr_has("systemctl start docker");
        rig.gpuctl(command).arg("--dry-run").run().fails("unavailable").stderr_has("voice");
    }
    // Nothing was stopped for that reason, and commands that need no container still work.
    assert_eq!(service(&rig, "vidi")["state"], "ready");
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
}

#[test]
fn row_36_a_docker_that_is_not_installed_is_unavailable() {
    let rig = rig_without_engine();
    let bin = rig.path("no-docker-here");
    fs::create_dir(&bin).unwrap();
    let gpuctl = |words: &str| rig.gpuctl(words).env("PATH", &bin).run();
    let why = "the command `docker` is not installed";
    gpuctl("start voice").fails("unavailable").stderr_has(why);
    gpuctl("prepare-phase 3").fails("unavailable").stderr_has(why);
    let status = gpuctl("status --json").succeeds().json();
    assert!(has(&status["services"]["voice"]["error"], why), "{status}");
    assert_eq!(status["services"]["vidi"]["state"], "ready");
}

#[test]
fn row_36_a_socket_that_may_not_be_opened_is_a_matter_of_permission() {
    if !docker_client_or_skip() {
        return;
    }
    let rig = rig_without_engine();
    // The socket lets nobody in: root is stripped of the right to ignore its mode.
    let socket = rig.path("forbidden.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, Permissions::from_mode(0o000)).unwrap();
    let gpuctl = |words: &str| {
        let strip = "if [ $(id -u) = 0 ]; then exec setpriv --bounding-set=-all gpuctl $0; fi";
        let script = rig.shell(&format!("{strip}; exec gpuctl $0")).arg(words);
        script.env("DOCKER_HOST", format!("unix://{}", socket.display())).run()
    };
    for command in ["start voice", "stop voice", "prepare-phase 3", "release-all"] {
        gpuctl(command).fails("permission").stderr_has("add your user to the group docker");
    }
    let status = gpuctl("status --json").succeeds().json();
    assert_eq!(status["services"]["voice"]["state"], "unknown");
    assert!(has(&status["services"]["voice"]["error"], "Docker denies access"), "{status}");
    assert_eq!(status["services"]["vidi"]["state"], "ready");
}

#[test]
fn row_36_an_engine_that_hangs_is_given_up_at_the_deadline() {
    if !docker_client_or_skip() {
        return;
    }
    let rig = rig_without_engine();
    // The kernel accepts and nobody answers, as with an engine that is stopped by a signal.
    let _listener = UnixListener::bind(rig.path("no-docker.sock")).unwrap();
    let why = "did not answer within 5s";
    let commands = ["start voice", "stop voice", "prepare-phase 2", "prepare-phase 3 --dry-run"];
    // Status comes before the other commands, one of which makes vidi busy.
    assert_containers_are_unknown(&rig.gpuctl("status --json").run().succeeds().json(), why);
    for command in commands.map(|command| rig.gpuctl(command).spawn()) {
        command.wait().fails("unavailable").stderr_has(why);
    }
}

#[test]
fn row_36_waiting_for_an_engine_that_hangs_can_be_interrupted() {
    let rig = rig_without_engine();
    let asked = rig.path("asked");
    rig.program("docker", &format!("echo $$ >'{}'\nexec sleep 1000", asked.display()));
    let start = rig.gpuctl("start voice").spawn();
    let pid = || fs::read_to_string(&asked).unwrap_or_default();
    until("it asks the engine", || !pid().trim().is_empty());
    start.signal(Signal::INT);
    start.wait().exits(130).stderr_has("interrupted by signal 2");
    assert!(!Path::new("/proc").join(pid().trim()).exists(), "its docker is left behind");
}

#[test]
fn row_37_a_paused_container_is_told_as_such_and_made_to_run() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").vram(4000).phases([3]).add();
    rig.gpuctl("start voice").run().succeeds().stdout_has("voice").progress();
    let pid = fact(&rig, voice.mark(), ".State.Pid");
    for command in ["start voice", "prepare-phase 3"] {
        rig.docker(&["pause", voice.mark()]);
        let paused = service(&rig, "voice");
        assert_eq!((&paused["state"], &paused["used_mb"]), (&json!("error"), &json!(4000)));
        assert_eq!(paused["detail"], "the container is paused");

        rig.gpuctl(command).run().succeeds().stdout_has("started voice").progress();
        assert_eq!(service(&rig, "voice")["state"], "ready");
        assert_eq!(fact(&rig, voice.mark(), ".State.Pid"), pid, "it was not started anew");
    }
}

#[test]
fn row_37_a_paused_container_can_be_stopped() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").vram(4000).add();
    for command in ["stop voice", "stop voice --force", "release-all"] {
        rig.gpuctl("start voice").run().succeeds().stdout_has("voice").progress();
        rig.docker(&["pause", voice.mark()]);
        rig.gpuctl(command).run().succeeds().stdout_has("stopped voice").progress();
        assert_eq!(fact(&rig, voice.mark(), ".State.Status"), "exited");
        assert_eq!(rig.card.used_mb(), 0);
    }
}

#[test]
fn row_37_a_container_in_a_restart_loop_is_found_out_before_its_time_is_over() {
    let Some(rig) = Rig::with_docker() else { return };
    let server = "--warmup 1h --exit-after 50ms --exit-code 3 --vram 99999";
    let voice = rig.container("voice").restarts().set("start_timeout", "1h").server(server).add();
    let error = rig.gpuctl("start voice --json --quiet").run().fails("start_failed").json();
    assert!(has(&error["error"]["message"], "voice: restarts in a loop: exited with code"));
    assert!(has(&error["error"]["hint"], "its log: gpuctl logs voice"), "{error}");
    until("status says so", || {
        let voice = service(&rig, "voice");
        voice["state"] == "error" && has(&voice["detail"], "restarts in a loop")
    });
    // After this report, the container can be stopped.
    rig.gpuctl("stop voice").run().succeeds().stdout_has("stopped voice").progress();
    assert_eq!(fact(&rig, voice.mark(), ".State.Restarting"), "false");
    assert_eq!(fact(&rig, voice.mark(), ".State.Running"), "false");
}

#[test]
fn row_37_a_container_that_exits_at_once_is_told_with_its_code_and_the_end_of_its_log() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").set("start_timeout", "1h").server("--nonsense").add();
    let error = rig.gpuctl("start voice --json --quiet").run().fails("start_failed").json();
    let message = &error["error"]["message"];
    assert!(has(message, "voice: exited with code 2"), "{error}");
    assert!(error.to_string().contains("unexpected argument '--nonsense'"), "{error}");
    let text = rig.gpuctl("start voice --quiet").run().fails("start_failed");
    text.stderr_has("unexpected argument '--nonsense'").stderr_has("gpuctl logs voice");
    assert_eq!(fact(&rig, voice.mark(), ".State.Status"), "exited");
    // An exit with success is a failed start, too.
    rig.container("brief").server("--warmup 1h --exit-after 20ms").add();
    rig.gpuctl("start brief --quiet").run().fails("start_failed").stderr_has("brief: exited");
}

#[test]
fn row_37_a_container_that_exits_is_told_with_its_log_though_another_fails_meanwhile() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.container("asr").phases([3]).server("--nonsense").add();
    rig.container("voice").phases([3]).not_installed().add();
    let voice = create(&rig, "voice", &["--entrypoint", "/bin/absent"], &[]);
    // `voice` fails while the log of `asr` is read.
    let next = "PATH=${PATH#*:} exec docker \"$@\"";
    let slow = format!("case \"$*\" in logs*) sleep 2 ;; start*{voice}*) sleep 1 ;; esac");
    rig.program("docker", &format!("{slow}\n{next}"));
    let told = rig.gpuctl("prepare-phase 3 --quiet").run().fails("start_failed");
    told.stderr_has("asr: exited with code 2").stderr_has("unexpected argument '--nonsense'");
}

#[test]
fn row_37_a_container_that_keeps_no_log_is_told_without_one() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.container("voice").set("start_timeout", "1h").not_installed().add();
    create(&rig, "voice", &["--log-driver", "none"], &["/bin/simserver", "--nonsense"]);
    let error = rig.gpuctl("start voice --json --quiet").run().fails("start_failed").json();
    assert_eq!(error["error"]["message"], "voice: exited with code 2");
    assert_eq!(error["error"]["hint"], "its log: gpuctl logs voice");
}

#[test]
fn row_37_a_container_whose_program_is_missing_is_told_as_such() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.container("voice").set("start_timeout", "1h").not_installed().add();
    let container = create(&rig, "voice", &["--entrypoint", "/bin/absent"], &[]);
    rig.gpuctl("start voice --quiet").run().fails("start_failed").stderr_has("/bin/absent");
    assert_eq!(fact(&rig, &container, ".State.Status"), "created");
    let voice = service(&rig, "voice");
    assert_eq!(voice["state"], "stopped");
    assert!(has(&voice["detail"], "/bin/absent"), "{voice}");
}

#[test]
fn row_37_a_stranger_on_the_port_of_a_container_is_named() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").set("start_timeout", "1h").phases([3]).add();
    let stranger = voice.command().replace(voice.mark(), &rig.mark("stranger"));
    let stranger = rig.by_hand(&stranger);
    until("the stranger answers", || voice.is_healthy());
    let named = format!("process {} (simserver)", stranger.pid());
    for command in ["start voice", "prepare-phase 3", "start voice --dry-run"] {
        rig.gpuctl(command).run().fails("start_failed").stderr_has(&named);
        assert_eq!(fact(&rig, voice.mark(), ".State.Status"), "created", "it was started");
    }
    let voice = service(&rig, "voice");
    assert_eq!(voice["state"], "error");
    assert!(has(&voice["detail"], &named), "{voice}");
}

#[test]
fn row_37_a_container_that_cannot_have_its_port_is_told_with_its_log() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").set("start_timeout", "1h").add();
    let stranger = voice.command().replace(voice.mark(), &rig.mark("stranger"));
    // The stranger does not pass for healthy, so that the container is started.
    let _stranger = rig.by_hand(&format!("{stranger} --health 500"));
    until("the stranger listens", || ureq::get(voice.url("/")).call().is_err_and(is_answer));
    let start = rig.gpuctl("start voice --quiet").run().fails("start_failed");
    start.stderr_has("Address already in use").stderr_has("voice: exited with code");
}

fn is_answer(error: ureq::Error) -> bool {
    matches!(error, ureq::Error::StatusCode(_))
}

#[test]
fn row_37_a_container_that_ran_out_of_the_hosts_memory_is_told_as_such() {
    let Some(rig) = Rig::with_docker() else { return };
    let has_limits = rig.docker(&["info", "--format", "{{.MemoryLimit}}"]) == "true\n";
    if !has_limits || !Path::new("/bin/busybox").exists() {
        return rig::skip_or_fail("busybox", "memory limit, or no busybox for the image");
    }
    rig.container("voice").set("start_timeout", "1h").not_installed().add();
    // The script takes 256 MB at most, should the limit not hold.
    let greed = "x=x; i=0; while [ $i -lt 28 ]; do x=$x$x; i=$((i+1)); done; exit 1";
    let limits = ["--memory", "16m", "--memory-swap", "16m", "--entrypoint", "/bin/sh"];
    let container = create(&rig, "voice", &limits, &["-c", greed]);
    let why = "was killed for want of memory";
    // On a busy machine the engine may see a container's end before it sees the reason, and then
    // forgets the reason.
    let sees_why = |_| {
        let start = rig.gpuctl("start voice --quiet").run().fails("start_failed");
        let is_told = start.stderr_text().contains(why);
        let engine_knows = fact(&rig, &container, ".State.OOMKilled") == "true";
        assert!(is_told || !engine_knows, "the engine knows why");
        is_told
    };
    assert!((0..10).any(sees_why));
    let voice = service(&rig, "voice");
    assert_eq!(voice["state"], "stopped");
    assert!(has(&voice["detail"], why), "{voice}");
}
