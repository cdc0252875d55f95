//! Tests that a failed start is reported at the promised time, with the log of this start only, and
//! that a container is ready when its own server listens.

use rig::{Rig, Signal, apart, signal, until};
use serde_json::json;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

#[test]
fn the_log_of_a_container_that_fails_is_of_this_start_only() {
    let Some(rig) = Rig::with_docker() else { return };
    // The server takes more memory than it declares, and later more than the card has.
    let voice = rig.container("voice").server("--vram 1000").vram(100).set("start_timeout", "60s");
    voice.add();
    rig.gpuctl("start voice --quiet").run().succeeds();
    rig.gpuctl("stop voice --quiet").run().succeeds();
    rig.card.describe(&json!({"devices": [{"total_mb": 900}]}));
    rig.set("gpu.reserve_mb", 0);
    let (code, told) = rig.gpuctl("start voice").run().ended();
    assert_eq!(code, Some(5), "{told}");
    assert!(told.contains("out of memory"), "{told}");
    assert!(!told.contains(": ready"), "it quotes the earlier start\n{told}");
    // An engine may record a start, and report it, long after the container has begun to write its
    // log.
    let late = "sleep 2; exec date -u '+[\"%FT%T.%NZ\", \"\"]'";
    let late = format!("case \"$*\" in 'container inspect --format '*) {late} ;; esac");
    rig.program("docker", &format!("{late}\nPATH=${{PATH#*:}} exec docker \"$@\""));
    rig.gpuctl("start voice --quiet").run().fails("start_failed").stderr_has("out of memory");
}

/// The service was started by a gpuctl that was killed, and the next gpuctl waits for it.
#[test]
fn the_log_of_a_service_that_is_only_awaited_is_of_its_last_start_only() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(100).set("start_timeout", "60s");
    let vidi = vidi.add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    rig.gpuctl("stop vidi --quiet").run().succeeds();
    let slow = format!("echo second start; {} --warmup 60s", vidi.command());
    rig.set("services.vidi.start", slow);
    let first = rig.gpuctl("start vidi").spawn();
    until("it starts", || !rig.servers_of("vidi").is_empty());
    first.signal(Signal::KILL);
    first.wait().ended();
    let second = rig.gpuctl("start vidi").spawn();
    until("it is waited for", || second.stderr().contains("waiting for vidi"));
    rig.servers_of("vidi").into_iter().for_each(|pid| signal(pid, Signal::KILL));
    let (code, told) = second.wait().ended();
    assert_eq!(code, Some(5), "{told}");
    assert!(told.contains("second start"), "{told}");
    assert!(!told.contains(": ready"), "it quotes the earlier start\n{told}");
}

/// The DNS server takes every query and answers none.
#[test]
fn a_start_whose_health_checks_name_is_not_resolved_ends_at_its_time() {
    apart(|rig| {
        let _names = UdpSocket::bind("127.0.0.53:53").unwrap();
        let resolv = rig.file("resolv.conf", "nameserver 127.0.0.53\n");
        let script = format!("mount --bind {} /etc/resolv.conf", resolv.display());
        rig.shell(&script).run().succeeds();
        let vidi = rig.native("vidi").set("start_timeout", "1s");
        vidi.set("health", "http://no-such-host.example:8188/").add();
        let begin = Instant::now();
        let (code, told) = rig.gpuctl("start vidi").run().ended();
        let took = begin.elapsed();
        assert_eq!(code, Some(124), "{told}");
        // 10 s is the health check's own time limit.
        assert!(took < Duration::from_secs(10), "1 s took {took:?}\n{told}");
    });
}

/// Creates a container of `simserver`; `network` has the arguments of `docker create` for its
/// network.
fn create(rig: &Rig, name: &str, network: &str, server: &str) {
    let (name, image, card) = (rig.mark(name), rig.engine().image(), rig.card.folder().display());
    rig.owns_container(&name);
    let words = format!(
        "create --name {name} {network} --env SIMGPU_DIR={card} --volume {card}:{card} {image} \
         /bin/simserver --name {name} {server}"
    );
    rig.docker(&words.split_whitespace().collect::<Vec<_>>());
}

/// Returns the arguments of `docker create` for a network on which docker-proxy publishes the port.
fn published(rig: &Rig, port: u16) -> String {
    format!("--network {} --publish 127.0.0.1:{port}:{port}", rig.network())
}

/// docker-proxy accepts connections in place of a server that does not listen yet.
#[test]
fn a_container_is_ready_when_its_server_listens_and_not_when_its_port_is_published() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").not_installed().set("start_timeout", "60s");
    let voice = voice.set("health", "tcp://127.0.0.1:1").add();
    rig.set("services.voice.health", format!("tcp://127.0.0.1:{}", voice.port()));
    let flags = format!("--host 0.0.0.0 --port {} --late-listen --warmup 3s", voice.port());
    create(&rig, "voice", &published(&rig, voice.port()), &flags);
    let (code, told) = rig.gpuctl("start voice").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert!(voice.is_healthy(), "ready too early\n{told}");
}

/// The container's port is published by another container, whose network it shares.
#[test]
fn a_container_in_anothers_network_is_known_by_the_port_that_it_listens_on_there() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").not_installed().set("start_timeout", "60s").add();
    create(&rig, "front", &published(&rig, voice.port()), "");
    rig.docker(&["start", &rig.mark("front")]);
    let network = format!("--network container:{}", rig.mark("front"));
    let flags = format!("--host 0.0.0.0 --port {} --vram 1000", voice.port());
    create(&rig, "voice", &network, &flags);
    let (code, told) = rig.gpuctl("start voice").run().ended();
    assert_eq!(code, Some(0), "{told}");
    assert!(voice.is_healthy(), "{told}");
    let (code, told) = rig.gpuctl("status --check voice").run().ended();
    assert_eq!(code, Some(0), "{told}");
}
