//! Tests of servers that lose what they are known by: they overwrite their title and environment,
//! begin anew without an environment, leave their session and their parents, and outlive their
//! front end (rows 55 and 56).

use rig::{Rig, Service, Signal, parent, python_with, signal, state, until, works};
use serde_json::json;

/// Start commands of servers that can be known by nothing but the log, the session, the start and
/// their descendants.
const DISGUISES: [&str; 5] = [
    // The server has a title of its own, and stays in the foreground.
    "SERVER --title ghost",
    // The server is in the background, in another session, and nobody's child.
    "SERVER --title ghost --daemon",
    "env -i SERVER --daemon",
    "env -i SERVER --title ghost --daemon",
    // A script stays in the foreground, with a worker in another session.
    "env -i SERVER --worker ghost-engine --title ghost; true",
];

fn server_of(rig: &Rig, python: &str, service: &Service) -> String {
    format!("{python} --name {} --port {} --vram 4000", rig.mark("vllm"), service.port())
}

/// Returns the PID of the only process that holds memory.
fn holder(rig: &Rig) -> i32 {
    let claims = rig.card.claims();
    assert_eq!(claims.len(), 1, "{claims:?}");
    claims[0].pid.unwrap() as i32
}

#[track_caller]
fn is_known_as_its_own(with_match: bool) {
    for disguise in DISGUISES {
        let rig = Rig::new();
        let Some(python) = rig.python_server() else { return };
        let draft = rig.native("vllm").vram(4000).phases([1]).set("start_timeout", "60s");
        let draft = if with_match { draft } else { draft.without_match() };
        let vllm = draft.add();
        rig.set("phases.9", "nothing");
        let start = disguise.replace("SERVER", &server_of(&rig, &python, &vllm));
        rig.set("services.vllm.start", start);
        for (start, stop) in [
            ("start vllm", "stop vllm"),
            ("prepare-phase 1", "prepare-phase 9"),
            ("start vllm", "release-all --force"),
        ] {
            let (code, told) = rig.gpuctl(start).run().ended();
            assert_eq!(code, Some(0), "{disguise}: {start}\n{told}");
            assert!(vllm.is_healthy(), "{disguise}: {start}\n{told}");
            let holder = holder(&rig);
            let status = rig.gpuctl("status --json").run().succeeds().json();
            let shown = &status["services"]["vllm"];
            assert_eq!(
                (&shown["state"], &shown["used_mb"]),
                (&json!("ready"), &json!(4000)),
                "{status}"
            );
            assert!(shown["pids"].as_array().unwrap().contains(&json!(holder)), "{status}");
            rig.gpuctl(start).run().succeeds().progress().text();
            assert_eq!(self::holder(&rig), holder, "{disguise}: it was started again");

            let (code, told) = rig.gpuctl(stop).run().ended();
            assert_eq!(code, Some(0), "{disguise}: {stop}\n{told}");
            assert!(state(holder).is_none(), "{disguise}: {holder} lives after {stop}\n{told}");
            assert_eq!(rig.card.used_mb(), 0, "{disguise}: {stop}\n{told}");
            assert!(!vllm.is_healthy(), "{disguise}: {stop}\n{told}");
        }
    }
}

#[test]
fn row_55_a_server_that_hides_in_every_way_at_once_is_known_as_its_own_without_a_pattern() {
    is_known_as_its_own(false);
}

#[test]
fn row_55_a_server_that_hides_in_every_way_at_once_is_known_as_its_own_with_a_pattern() {
    is_known_as_its_own(true);
}

#[test]
fn row_55_gunicorn_which_sets_its_title_is_started_shown_and_stopped() {
    if !works("gunicorn", &["--version"]) || python_with("setproctitle").is_none() {
        return rig::skip_or_fail("python", "gunicorn");
    }
    let rig = Rig::new();
    let api = rig.native("api").without_match().set("start_timeout", "60s").add();
    let app =
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n";
    rig.file("home/app.py", app);
    let bind = format!("127.0.0.1:{}", api.port());
    let pidfile = rig.path("gunicorn.pid");
    let flags = format!("--bind {bind} --workers 2 --pid {}", pidfile.display());
    rig.set("services.api.cwd", rig.path("home").display().to_string());
    for gunicorn in [
        format!("exec gunicorn {flags} app:app"),
        format!("gunicorn {flags} --daemon --capture-output --error-logfile - app:app"),
    ] {
        rig.set("services.api.start", &*gunicorn);
        let (code, told) = rig.gpuctl("start api").run().ended();
        assert_eq!(code, Some(0), "{gunicorn}\n{told}");
        let master: i32 = std::fs::read_to_string(&pidfile).unwrap().trim().parse().unwrap();
        // gunicorn is ready when the first of its workers is.
        let pids_now = || {
            let status = rig.gpuctl("status --json").run().succeeds().json();
            status["services"]["api"]["pids"].as_array().unwrap().clone()
        };
        until("both workers are shown", || pids_now().len() == 3);
        let pids = pids_now();
        assert!(pids.contains(&json!(master)), "{gunicorn}\n{pids:?}");
        let workers: Vec<_> = pids.iter().map(|pid| pid.as_i64().unwrap() as i32).collect();
        let (code, told) = rig.gpuctl("stop api").run().ended();
        assert_eq!(code, Some(0), "{gunicorn}\n{told}");
        assert!(workers.iter().all(|pid| state(*pid).is_none()), "{gunicorn}\n{told}");
        assert!(!api.is_healthy(), "{gunicorn}\n{told}");
    }
}

/// Reports whether the mark is in the environment of a process as others see it.
fn bears_the_mark(pid: i32, service: &str) -> bool {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let mark = format!("GPUCTL_SERVICE={service}");
    environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
}

#[test]
fn row_55_the_mark_survives_a_title_that_is_longer_than_all_before_it() {
    let title = "VLLM::EngineCore_".repeat(200);
    // The mark is overwritten only without the variable SPT_NOENV, which a configuration may set
    // otherwise.
    for (variable, survives) in [("1", true), ("", false)] {
        let rig = Rig::new();
        let Some(python) = rig.python_server() else { return };
        let vllm = rig.native("vllm").vram(4000).without_match().set("start_timeout", "60s").add();
        let server = server_of(&rig, &python, &vllm);
        let unset = if survives { "" } else { "unset SPT_NOENV; " };
        rig.set("services.vllm.start", format!("{unset}exec {server} --title {title}"));
        rig.set("services.vllm.env.SPT_NOENV", variable);
        rig.gpuctl("start vllm --quiet").run().succeeds();
        let server = holder(&rig);
        let command = std::fs::read_to_string(format!("/proc/{server}/cmdline")).unwrap();
        assert!(command.starts_with("VLLM::EngineCore_"), "{command}");
        assert_eq!(bears_the_mark(server, "vllm"), survives);
        // The server is known by the mark alone: this state folder knows nothing of the start.
        let elsewhere = rig.path("elsewhere").display().to_string();
        let stop = || rig.gpuctl("stop vllm --quiet").env("GPUCTL_STATE_DIR", &elsewhere);
        if survives {
            let status = rig.gpuctl("status --json").env("GPUCTL_STATE_DIR", &elsewhere).run();
            let status = status.succeeds().json();
            assert_eq!(status["services"]["vllm"]["state"], "ready", "{status}");
            stop().run().succeeds();
            assert!(state(server).is_none());
        } else {
            rig.gpuctl("stop vllm --quiet").run().succeeds();
        }
        assert_eq!(rig.card.used_mb(), 0);
    }
}

#[test]
fn row_55_gunicorn_and_its_workers_keep_the_mark() {
    if !works("gunicorn", &["--version"]) || python_with("setproctitle").is_none() {
        return rig::skip_or_fail("python", "gunicorn");
    }
    let rig = Rig::new();
    let api = rig.native("api").without_match().set("start_timeout", "60s").add();
    let app =
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n";
    rig.file("home/app.py", app);
    rig.set("services.api.cwd", rig.path("home").display().to_string());
    let flags = format!("--bind 127.0.0.1:{} --workers 2", api.port());
    rig.set("services.api.start", format!("exec gunicorn {flags} app:app"));
    rig.gpuctl("start api --quiet").run().succeeds();
    let elsewhere = rig.path("elsewhere").display().to_string();
    let pids = || {
        let status = rig.gpuctl("status --json").env("GPUCTL_STATE_DIR", &elsewhere).run();
        let status = status.succeeds().json();
        let pids = status["services"]["api"]["pids"].as_array().unwrap().clone();
        pids.iter().map(|pid| pid.as_i64().unwrap() as i32).collect::<Vec<_>>()
    };
    until("the master and both workers are shown", || pids().len() == 3);
    let pids = pids();
    for pid in &pids {
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
        assert!(command.starts_with("gunicorn: "), "it has no title of its own: {command}");
        assert!(bears_the_mark(*pid, "api"), "{command}");
    }
    rig.gpuctl("stop api --quiet").env("GPUCTL_STATE_DIR", &elsewhere).run().succeeds();
    assert!(pids.iter().all(|pid| state(*pid).is_none()));
    assert!(!api.is_healthy());
}

/// Starts an API server whose engine has a title and a session of its own and holds the memory, and
/// kills the API server. Returns the service and the PID of the engine, or `None` without Python.
fn orphaned_engine(rig: &Rig) -> Option<(Service, i32)> {
    let python = rig.python_server()?;
    let vllm = rig.native("vllm").vram(4000).phases([1]).set("start_timeout", "60s").add();
    let server = server_of(rig, &python, &vllm);
    rig.set("services.vllm.start", format!("exec {server} --worker VLLM::EngineCore"));
    rig.gpuctl("start vllm --quiet").run().succeeds();
    let engine = holder(rig);
    signal(parent(engine).unwrap(), Signal::KILL);
    until("nobody serves", || !vllm.is_healthy());
    until("it is an orphan", || parent(engine) == Some(1) || rig.processes_of(&vllm).is_empty());
    assert!(state(engine).is_some());
    Some((vllm, engine))
}

#[test]
fn row_56_an_orphaned_engine_with_a_title_of_its_own_is_shown_and_stopped() {
    for stop in ["stop vllm", "stop vllm --force", "release-all"] {
        let rig = Rig::new();
        let Some((_, engine)) = orphaned_engine(&rig) else { return };
        let status = rig.gpuctl("status --json").run().succeeds().json();
        assert_eq!(status["services"]["vllm"]["pids"], json!([engine]), "{status}");
        assert_eq!(status["services"]["vllm"]["used_mb"], 4000, "{status}");
        assert_eq!(status["vram"]["processes"][0]["service"], "vllm", "{status}");
        let (code, told) = rig.gpuctl(stop).run().ended();
        assert_eq!(code, Some(0), "{told}");
        assert!(told.contains("stopped vllm"), "{told}");
        assert!(state(engine).is_none(), "the engine lives\n{told}");
        assert_eq!(rig.card.used_mb(), 0, "{told}");
    }
}

#[test]
fn row_56_an_orphaned_engine_is_in_the_way_of_no_start() {
    let rig = Rig::new();
    let Some((vllm, engine)) = orphaned_engine(&rig) else { return };
    rig.native("comfyui").vram(22000).phases([2]).add();
    let (code, told) = rig.gpuctl("prepare-phase 2").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert!(state(engine).is_none(), "the engine lives\n{told}");
    rig.gpuctl("release-all --quiet").run().succeeds().progress().text();

    let rig = Rig::new();
    let (_, engine) = orphaned_engine(&rig).unwrap();
    let (code, told) = rig.gpuctl("start vllm").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert!(state(engine).is_none(), "the engine lives\n{told}");
    drop(vllm);
}
