//! Tests of processes that are started by hand and become proven by `gpuctl adopt`, and of
//! processes that gpuctl has started and still recognises after its configuration has moved.

use rig::{
    Rig, Service, Signal, apart, parent, python_with, signal, skip_or_fail, state, until, works,
};
use serde_json::json;
use std::fs;

/// Starts a server of `vidi` by hand that listens on no port and matches no pattern. Returns the
/// service and the PID of the server's first process.
fn by_hand(rig: &Rig) -> (Service, i32) {
    let vidi = rig.native("vidi").vram(4000).phases([1]).without_match().without_health().add();
    rig.set("phases.9", "nothing");
    let server = vidi.command().replace(&format!("--port {} ", vidi.port()), "--port 0 ");
    let (server, log) = (format!("{server} --fork 2"), rig.path("log").display().to_string());
    rig.shell(&format!("setsid {server} >{log} 2>&1 &")).run().succeeds();
    until("it works", || rig.card.used_mb() == 4000);
    let servers = rig.servers_of("vidi");
    let first = servers.iter().find(|pid| !servers.contains(&parent(**pid).unwrap())).unwrap();
    (vidi, *first)
}

fn shown(rig: &Rig) -> serde_json::Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"]["vidi"].clone()
}

#[test]
fn an_adopted_process_is_shown_and_stopped_with_its_descendants() {
    for stop in ["stop vidi", "stop vidi --force", "release-all", "prepare-phase 9"] {
        let rig = Rig::new();
        let (_, server) = by_hand(&rig);
        assert_eq!(shown(&rig)["pids"], json!([]));
        let (code, told) = rig.gpuctl(&format!("adopt vidi {server}")).run().ended();
        assert_eq!(code, Some(0), "{told}");
        let vidi = shown(&rig);
        assert_eq!(vidi["state"], "ready", "{vidi}");
        assert_eq!(
            (&vidi["used_mb"], vidi["pids"].as_array().unwrap().len()),
            (&json!(4000), 3),
            "{vidi}"
        );
        rig.gpuctl(&format!("adopt vidi {server}")).run().succeeds().progress().text();
        let (code, told) = rig.gpuctl(stop).run().ended();
        assert_eq!(code, Some(0), "{stop}\n{told}");
        assert!(rig.servers_of("vidi").is_empty(), "{stop}\n{told}");
        assert_eq!(rig.card.used_mb(), 0, "{stop}\n{told}");
        assert_eq!(shown(&rig)["state"], "stopped");
    }
}

#[test]
fn several_processes_are_adopted_at_once_or_none() {
    let rig = Rig::new();
    let (_, server) = by_hand(&rig);
    let beside = rig.by_hand("sleep 1000");
    let none = 4_194_303;
    let (code, told) = rig.gpuctl(&format!("adopt vidi {server} {none}")).run().ended();
    assert!(matches!(code, Some(1..70)), "{code:?}\n{told}");
    assert!(told.contains(&none.to_string()), "{told}");
    assert_eq!(shown(&rig)["pids"], json!([]));
    rig.gpuctl(&format!("adopt vidi {server} {}", beside.pid())).run().succeeds().progress().text();
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    assert!(rig.servers_of("vidi").is_empty());
    assert!(state(beside.pid()).is_none(), "it was adopted too");
}

/// This test runs in a PID namespace of its own, because of what would happen if PID 1 were
/// adopted.
#[test]
fn what_is_anothers_or_cannot_be_a_service_is_not_adopted() {
    apart(|rig| {
        let (_, server) = by_hand(rig);
        rig.native("voice").add();
        rig.set("services.box", toml::toml! { type = "docker" container = "box" vram_mb = 1 });
        rig.gpuctl("start voice --quiet").run().succeeds();
        let voice = rig.servers_of("voice")[0];
        for (what, refused) in [
            (format!("vidi {voice}"), "voice"),
            (format!("nobody {server}"), "nobody"),
            (format!("box {server}"), "box"),
            ("vidi 1".to_owned(), "1"),
            (format!("vidi {}", std::process::id()), "vidi"),
        ] {
            let (code, told) = rig.gpuctl(&format!("adopt {what}")).run().ended();
            assert!(
                matches!(code, Some(1..=78)) && !told.contains("usage"),
                "{what}: {code:?}\n{told}"
            );
            assert!(told.contains(refused), "{what}\n{told}");
        }
        rig.gpuctl(&format!("adopt nobody {server}")).run().fails("not_found").stderr_has("nobody");
        assert_eq!(shown(rig)["pids"], json!([]));
        rig.gpuctl("stop vidi voice --quiet").run().succeeds().progress().text();
        assert!(state(server).is_some() && state(voice).is_none());
    });
}

/// PIDs are reused, so an adoption applies to that one process and to no later one of the same
/// number.
#[test]
fn an_adopted_process_that_has_ended_leaves_nothing_behind() {
    let rig = Rig::new();
    let (_, server) = by_hand(&rig);
    rig.gpuctl(&format!("adopt vidi {server}")).run().succeeds().progress().text();
    rig.servers_of("vidi").into_iter().for_each(|pid| signal(pid, Signal::KILL));
    until("it is gone", || rig.servers_of("vidi").is_empty() && rig.card.used_mb() == 0);
    assert_eq!(shown(&rig)["pids"], json!([]));
    rig.gpuctl("stop vidi").run().succeeds().stdout_has("nothing to do").progress();
}

/// Asserts that a service without a pattern, started by gpuctl, is still known after `change`,
/// which returns the path of the new configuration and the service's name in it.
#[track_caller]
fn is_still_known(change: impl FnOnce(&Rig) -> (String, &'static str)) {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).without_match().add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let server = rig.servers_of("vidi")[0];
    let (config, name) = change(&rig);
    let gpuctl = |words: &str| rig.gpuctl(words).env("GPUCTL_CONFIG", &config);
    let status = gpuctl("status --json").run().succeeds().json();
    let service = &status["services"][name];
    assert_eq!(
        (&service["state"], &service["pids"]),
        (&json!("ready"), &json!([server])),
        "{status}"
    );
    assert_eq!(status["vram"]["processes"][0]["service"], name, "{status}");
    let (code, told) = gpuctl(&format!("start {name}")).run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(rig.servers_of("vidi"), [server], "{told}");
    let (code, told) = gpuctl(&format!("stop {name}")).run().ended();
    assert_eq!(code, Some(0), "{told}");
    rig.assert_no_process_of(&vidi);
}

#[test]
fn a_configuration_that_was_moved_still_knows_what_it_started() {
    is_still_known(|rig| {
        fs::create_dir(rig.path("home/etc")).unwrap();
        fs::rename(rig.path("gpuctl.toml"), rig.path("home/etc/gpu.toml")).unwrap();
        (rig.path("home/etc/gpu.toml").display().to_string(), "vidi")
    });
}

#[test]
fn a_configuration_under_a_second_name_still_knows_what_it_started() {
    is_still_known(|rig| {
        fs::hard_link(rig.path("gpuctl.toml"), rig.path("second.toml")).unwrap();
        (rig.path("second.toml").display().to_string(), "vidi")
    });
}

#[test]
fn a_service_that_was_renamed_is_still_known() {
    is_still_known(|rig| {
        let text = fs::read_to_string(rig.path("gpuctl.toml")).unwrap();
        rig.write_config(&text.replace("[services.vidi]", "[services.video]"));
        (rig.path("gpuctl.toml").display().to_string(), "video")
    });
}

#[test]
fn workers_of_uvicorn_by_hand_whose_parent_was_killed_are_found_and_stopped() {
    let Some(python) = python_with("uvicorn") else { return };
    let rig = Rig::new();
    let app = "async def app(scope, receive, send):\n    \
               if scope['type'] == 'http':\n        \
               await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n        \
               await send({'type': 'http.response.body', 'body': b''})\n";
    rig.file("home/app.py", app);
    let api = rig.native("api").set("start_timeout", "60s").add();
    rig.set("services.api.match", format!("uvicorn.*{}", rig.mark("api")));
    let server = format!("{python} -m uvicorn --workers 2 --port {} app:app", api.port());
    let mut server =
        rig.by_hand(&format!("env NAME={} {server} --header x:{}", rig.token(), rig.mark("api")));
    until("it serves", || api.is_healthy());
    signal(server.pid(), Signal::KILL);
    until("the parent is gone", || !server.is_alive());
    assert!(api.is_healthy(), "the workers serve on");
    let (code, told) = rig.gpuctl("stop api").run().ended();
    // The workers are found by the port that they serve or reported as not managed; the answer is
    // never "nothing to do".
    assert!(!told.contains("nothing to do"), "{code:?}\n{told}");
    match code {
        Some(0) => assert!(!api.is_healthy(), "{told}"),
        code => {
            assert!(matches!(code, Some(6 | 77)), "{code:?}\n{told}");
            assert!(told.contains(&api.port().to_string()) || told.contains("gpuctl adopt api"));
        }
    }
}

#[test]
fn a_server_whose_main_thread_has_ended_while_others_serve_is_found_and_stopped() {
    let rig = Rig::new();
    let Some(python) = rig.python_server() else { return };
    let api = rig.native("api").vram(4000).set("start_timeout", "60s").add();
    let server = format!("exec {python} --name {} --port {}", api.mark(), api.port());
    rig.set("services.api.start", format!("{server} --vram 4000 --leave-main"));
    let (code, told) = rig.gpuctl("start api").run().ended();
    assert_eq!(code, Some(0), "{told}");
    let pid = rig.card.claims()[0].pid.unwrap();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["api"]["pids"], json!([pid]), "{status}");
    let (code, told) = rig.gpuctl("stop api").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert!(!api.is_healthy(), "{told}");
    assert_eq!(rig.card.used_mb(), 0, "{told}");
}

/// Such a start is, for example, a start command that runs `conda activate` in an existing tmux
/// session.
#[test]
fn a_start_in_the_background_whose_server_appears_after_four_seconds_is_waited_for() {
    if !works("tmux", &["-V"]) {
        return skip_or_fail("tmux", "tmux");
    }
    let rig = Rig::new();
    let tmux = format!("tmux -S {}", rig.path("run/tmux").display());
    rig.shell(&format!("{tmux} new-session -d -s {}", rig.mark("mine"))).run().succeeds();
    let comfyui = rig.native("comfyui").vram(4000).set("start_timeout", "60s").add();
    let slow = rig.program("slow", &format!("sleep 4; exec {}", comfyui.command()));
    rig.set("services.comfyui.start", format!("{tmux} new-window -d {}", slow.display()));
    let (code, told) = rig.gpuctl("start comfyui").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert!(comfyui.is_healthy());
    rig.gpuctl("stop comfyui").run().succeeds().stdout_has("stopped comfyui").progress();
    assert!(!comfyui.is_healthy());
    rig.shell(&format!("{tmux} kill-server")).run().succeeds();
}

#[test]
fn a_container_that_a_native_start_runs_is_named_with_the_type_to_write() {
    let labels =
        ["project=mcn", "service=tts"].map(|it| format!("--label com.docker.compose.{it}"));
    is_named_with_the_type("", "type = \"docker\"");
    is_named_with_the_type(&labels.join(" "), "type = \"compose\", project = \"mcn\"");
}

fn is_named_with_the_type(options: &str, keys: &str) {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.native("voice").vram(4000).add();
    let (name, card) = (rig.mark("by-a-script"), rig.card.folder().display());
    let server = voice.command().split_once(' ').unwrap().1;
    rig.owns_container(&name);
    // Another container comes up meanwhile.
    let other = rig.mark("other");
    rig.owns_container(&other);
    let image = rig.engine().image();
    let run = format!(
        "docker run --detach --name {other} --network host {image} /bin/simserver --name {other} >/dev/null && \
         docker run --detach --name {name} --network host --env SIMGPU_DIR={card} --volume {card}:{card} {options} \
         {image} /bin/simserver {server}"
    );
    rig.set("services.voice.start", run);
    let (code, told) = rig.gpuctl("start voice").run().ended();
    assert_eq!(code, Some(5), "{told}");
    assert!(told.contains(&name), "does not name the container\n{told}");
    assert!(told.contains(keys) && !told.contains(&other), "{told}");
}

/// The server's command line does not show which service it belongs to.
#[test]
fn a_server_by_hand_that_no_pattern_finds_is_named_with_what_makes_it_the_services() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").set("match", format!("{}.*8188", rig.token())).add();
    let server = rig.by_hand(vidi.command());
    until("it serves", || vidi.is_healthy());
    let (code, told) = rig.gpuctl("start vidi").run().ended();
    assert_eq!(code, Some(5), "{told}");
    let adopt = format!("gpuctl adopt vidi {}", server.pid());
    assert!(told.contains(&adopt), "{told}");
    rig.shell(&adopt).run().succeeds().progress().text();
    rig.gpuctl("start vidi").run().succeeds().progress().text();
    assert_eq!(rig.processes_of(&vidi), [server.pid()]);
}
