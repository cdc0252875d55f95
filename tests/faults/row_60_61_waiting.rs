//! Tests of memory that dead processes still hold, and of servers that are too busy to answer (rows
//! 60 and 61).

use rig::{Rig, Service, Signal, signal, state, until};
use serde_json::json;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Starts vidi, of phase 1, and kills it: the driver lists its memory for two seconds more. If vidi
/// was started `by_hand`, it stays a zombie.
fn killed(rig: &Rig, by_hand: bool) -> Service {
    rig.card.describe(&json!({"reclaim_delay_ms": 2000}));
    let vidi = rig.native("vidi").vram(10000).phases([1]).add();
    rig.native("comfyui").vram(20000).phases([2]).add();
    rig.set("phases.9", "nothing");
    let zombie = by_hand.then(|| rig.by_hand(vidi.command()));
    if !by_hand {
        rig.gpuctl("start vidi --quiet").run().succeeds();
    }
    until("it serves", || vidi.is_healthy());
    rig.servers_of("vidi").into_iter().for_each(|pid| signal(pid, Signal::KILL));
    until("it is dead", || rig.servers_of("vidi").is_empty());
    // Forgetting the child leaves a zombie, because nobody waits for it.
    std::mem::forget(zombie);
    assert_eq!(rig.card.used_mb(), 10000);
    vidi
}

#[test]
fn row_60_the_memory_of_a_service_that_was_killed_is_waited_for_by_the_next_phase() {
    for by_hand in [false, true] {
        let rig = Rig::new();
        killed(&rig, by_hand);
        let (code, told) = rig.gpuctl("prepare-phase 2").run().ended();
        assert_eq!(code, Some(0), "a zombie: {by_hand}\n{told}");
        assert_eq!(rig.card.used_mb(), 20000);
        rig.assert_no_out_of_memory();
    }
}

#[test]
fn row_60_the_memory_of_a_service_that_was_killed_is_waited_for_by_start_and_run() {
    for command in ["start comfyui", "run comfyui -- true", "start vidi"] {
        let rig = Rig::new();
        killed(&rig, false);
        let (code, told) = rig.gpuctl(command).run().ended();
        assert_eq!(code, Some(0), "{command}\n{told}");
        rig.assert_no_out_of_memory();
    }
}

#[test]
fn row_60_the_memory_of_a_service_that_was_killed_is_waited_for_by_its_stop() {
    for command in ["stop vidi", "stop vidi --force", "release-all", "prepare-phase 9"] {
        let rig = Rig::new();
        killed(&rig, false);
        let (code, told) = rig.gpuctl(command).run().ended();
        assert_eq!(code, Some(0), "{command}\n{told}");
        assert_eq!(rig.card.used_mb(), 0, "{command}: done was said too early\n{told}");
    }
}

/// Starts a server that does one thing at a time and is ready in phase 1. Returns the service and
/// its PID, or `None` without Python.
fn one_at_a_time(rig: &Rig, start_timeout: &str) -> Option<(Service, i32)> {
    let python = rig.python_server()?;
    let comfyui = rig.native("comfyui").vram(4000).phases([1]).without_match();
    let comfyui = comfyui.set("start_timeout", start_timeout).add();
    let server =
        format!("{python} --name {} --port {} --vram 4000", comfyui.mark(), comfyui.port());
    rig.set("services.comfyui.start", format!("exec {server}"));
    rig.gpuctl("prepare-phase 1").run().succeeds().stdout_has("comfyui").progress();
    let pid = rig.card.claims()[0].pid.unwrap() as i32;
    Some((comfyui, pid))
}

/// Makes the server work for this many seconds, during which it answers nobody else. Returns the
/// connection of the request.
fn work(service: &Service, seconds: u32) -> TcpStream {
    let mut client = TcpStream::connect(("127.0.0.1", service.port())).unwrap();
    write!(client, "GET /takes/{seconds} HTTP/1.0\r\n\r\n").unwrap();
    client
}

#[test]
fn row_61_a_service_that_works_for_longer_than_it_may_take_to_start_is_never_restarted() {
    let rig = Rig::new();
    let begin = Instant::now();
    let Some((comfyui, pid)) = one_at_a_time(&rig, "2s") else { return };
    until("it is older than its start may take", || begin.elapsed() > Duration::from_secs(3));
    let _client = work(&comfyui, 600);
    for command in ["prepare-phase 1", "start comfyui", "run --phase 1 -- touch ran"] {
        let (code, told) = rig.gpuctl(command).run().ended();
        assert!(state(pid).is_some(), "{command}: it was ended at work: {code:?}\n{told}");
        assert_eq!(code, Some(124), "{command}\n{told}");
        assert!(told.contains("comfyui"), "{command}\n{told}");
    }
    assert!(!rig.path("home/ran").exists());
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["comfyui"]["state"], "unresponsive", "{status}");
    let detail = status["services"]["comfyui"]["detail"].as_str().unwrap();
    assert!(detail.contains("`gpuctl restart comfyui`"), "{detail}");
    assert_eq!(rig.card.claims()[0].pid, Some(pid as u32));
    // No plan restarts the service, but its owner may.
    rig.gpuctl("restart comfyui").run().succeeds().stdout_has("started comfyui").progress();
    assert!(state(pid).is_none() && comfyui.is_healthy());
    let pid = rig.card.claims()[0].pid.unwrap() as i32;
    // A service that is not needed is stopped like any other: it cannot say that it works.
    rig.gpuctl("stop comfyui").run().succeeds().stdout_has("stopped comfyui").progress();
    assert!(state(pid).is_none());
}

#[test]
fn row_61_a_service_that_answers_at_last_is_kept() {
    let rig = Rig::new();
    let begin = Instant::now();
    let Some((comfyui, pid)) = one_at_a_time(&rig, "4s") else { return };
    until("it is older than its start may take", || begin.elapsed() > Duration::from_secs(5));
    let _client = work(&comfyui, 12);
    let (code, told) = rig.gpuctl("prepare-phase 1").run().ended();
    assert!(state(pid).is_some(), "it was ended at work: {code:?}\n{told}");
    assert!(matches!(code, Some(0 | 124)), "{code:?}\n{told}");
    until("it answers", || comfyui.is_healthy());
    let (code, told) = rig.gpuctl("prepare-phase 1").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(rig.card.claims()[0].pid, Some(pid as u32), "{told}");
}
