//! Tests of what a caller hands down, and of what many services ask of one server (rows 62 and 63).

use rig::{Rig, Service, until, with_room, works};
use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

/// Adds vidi to phase 1 and comfyui to phase 2, which do not fit on the card together.
fn two_phases(rig: &Rig) -> (Service, Service) {
    let vidi = rig.native("vidi").vram(16000).phases([1]).set("stop_timeout", "5s").add();
    let comfyui = rig.native("comfyui").vram(20000).phases([2]).add();
    (vidi, comfyui)
}

/// Returns the mask of signals in a line of `/proc/PID/status`, less the two that the C library
/// keeps to itself (32 and 33).
fn mask(status: &str, name: &str) -> u64 {
    let line =
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).unwrap();
    u64::from_str_radix(line, 16).unwrap() & !(0b11 << 31)
}

#[test]
fn row_62_signals_that_the_caller_blocks_or_ignores_are_neither_gpuctls_nor_the_services() {
    for caller in [
        "env --block-signal=CHLD",
        "env --block-signal",
        "env --ignore-signal=TERM --ignore-signal=INT --ignore-signal=CHLD --ignore-signal=PIPE",
    ] {
        if !works("env", &["--block-signal=CHLD", "true"]) {
            return rig::skip_or_fail("coreutils", "env that blocks signals");
        }
        let rig = Rig::new();
        let (_, comfyui) = two_phases(&rig);
        let run = format!("{caller} gpuctl run comfyui -- sh -c 'exit 7'");
        let (code, told) = rig.shell(&run).run().ended();
        assert_eq!(code, Some(7), "{caller}\n{told}");
        let server = rig.servers_of("comfyui")[0];
        let status = fs::read_to_string(format!("/proc/{server}/status")).unwrap();
        assert_eq!(mask(&status, "SigBlk"), 0, "{caller}: blocked in the service");
        let (code, told) = rig.shell(&format!("{caller} gpuctl stop comfyui")).run().ended();
        assert_eq!(code, Some(0), "{caller}\n{told}");
        assert!(!told.contains("killed"), "{caller}: TERM did not reach it\n{told}");
        rig.assert_no_process_of(&comfyui);
    }
}

#[test]
fn row_62_what_a_service_inherits_is_the_default_and_not_the_callers() {
    if !works("env", &["--block-signal=CHLD", "true"]) {
        return rig::skip_or_fail("coreutils", "env that blocks signals");
    }
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let told = rig.path("home/told");
    // The shell of the start command shows what was handed down to it: it changes none of this
    // itself, and its children inherit it.
    let start = format!("grep -E '^Sig(Blk|Ign)' /proc/self/status >told; exec {}", vidi.command());
    rig.set("services.vidi.start", start);
    rig.set("services.vidi.cwd", rig.path("home").display().to_string());
    let caller =
        "env --block-signal=CHLD --block-signal=TERM --ignore-signal=HUP --ignore-signal=PIPE";
    rig.shell(&format!("{caller} gpuctl start vidi --quiet")).run().succeeds();
    let told = fs::read_to_string(told).unwrap();
    assert_eq!((mask(&told, "SigBlk"), mask(&told, "SigIgn")), (0, 0), "{told}");
}

/// Asserts that a phase is prepared, or refused with a reason before anything is stopped, and that
/// gpuctl is never ended by a signal and never panics. `limit` gets the number of threads that the
/// user already has and returns the arguments of `ulimit`.
#[track_caller]
fn is_done_or_refused(user: impl Fn(&Rig) -> Option<String>, limit: impl Fn(usize) -> String) {
    let rig = Rig::new();
    let Some(user) = user(&rig) else { return };
    let (vidi, comfyui) = two_phases(&rig);
    rig.shell(&format!("{user} gpuctl start vidi --quiet")).run().succeeds();
    let victims = rig.servers_of("vidi");
    let threads = |pid: &i32| fs::read_dir(format!("/proc/{pid}/task")).unwrap().count();
    let limit = limit(victims.iter().map(threads).sum());
    let command =
        format!("{user} bash -c 'ulimit {limit} || exit 99; exec gpuctl prepare-phase 2'");
    let (code, told) = rig.shell(&command).run().ended();
    assert_ne!(code, Some(99), "no such limit: {limit}");
    assert!(!told.contains("panicked"), "{limit}: {code:?}\n{told}");
    if code == Some(0) {
        assert!(comfyui.is_healthy(), "{limit}\n{told}");
        return rig.assert_no_process_of(&vidi);
    }
    assert!(matches!(code, Some(code) if code < 128 && code != 70), "{limit}: {code:?}\n{told}");
    assert!(told.contains("gpuctl:"), "{limit}: no reason\n{told}");
    assert_eq!(rig.servers_of("vidi"), victims, "{limit}: {code:?}, and vidi was stopped\n{told}");
    assert!(vidi.is_healthy(), "{limit}: {code:?}\n{told}");
}

fn root(_: &Rig) -> Option<String> {
    Some(String::new())
}

#[test]
fn row_62_a_caller_that_may_write_no_file_is_served_or_refused_before_anything_is_stopped() {
    for limit in ["-f 0", "-f 1"] {
        is_done_or_refused(root, |_| limit.to_owned());
    }
}

#[test]
fn row_62_a_caller_with_few_descriptors_is_served_or_refused_before_anything_is_stopped() {
    for limit in ["-n 4", "-n 8", "-n 16", "-n 32"] {
        is_done_or_refused(root, |_| limit.to_owned());
    }
}

/// Root is not bound by such a limit, so a user who runs nothing else calls gpuctl.
#[test]
fn row_62_a_caller_with_few_processes_is_served_or_refused_before_anything_is_stopped() {
    for more in [1, 2, 3, 5, 8] {
        is_done_or_refused(Rig::as_a_user, |threads| format!("-u {}", threads + more));
    }
}

/// Script that stands in for `systemctl`: every service unit that it is asked about is active, and
/// has been for long.
const ACTIVE_UNITS: &str = r#"
for unit; do
    case $unit in
        *.service) printf '%s\n' "Id=$unit" LoadState=loaded ActiveState=active SubState=running UnitFileState=enabled \
            MainPID=0 ControlGroup= Result=success NRestarts=0 ExecMainStatus=0 InactiveExitTimestampMonotonic=1 '' ;;
    esac
done"#;

/// The server has a short queue and takes a while for each answer, one after the other.
#[test]
fn row_63_a_thousand_services_with_one_health_url_ask_it_once() {
    let rig = Rig::new();
    let Some(python) = rig.python_server() else { return };
    let (port, count) = (rig.port(), rig.path("count"));
    let flags = format!("--port {port} --backlog 5 --slow 0.05 --count {}", count.display());
    let name = rig.mark("one");
    let _server = rig.by_hand(&format!("{python} --name {name} {flags}"));
    let asked = || fs::read_to_string(&count).unwrap_or_default().lines().count();
    until("it serves", || is_answered(port) && asked() > 0);
    let before = asked();
    let service = |index: usize| {
        format!(
            "[services.s{index}]\ntype = \"systemd\"\nunit = \"{name}-{index}.service\"\nvram_mb = 1\n\
             health = \"http://127.0.0.1:{port}/health\"\n"
        )
    };
    let services: String = (0..1000).map(service).collect();
    rig.systemd();
    rig.program("systemctl", ACTIVE_UNITS);
    rig.write_config(&format!("[gpu]\nnvml_library = \"{}\"\n{services}", rig.nvml_library()));
    let begin = Instant::now();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    let took = begin.elapsed();
    assert_eq!(asked() - before, 1, "asked, for one look, in {took:?}");
    let shown = status["services"].as_object().unwrap();
    let starting = shown.values().filter(|service| service["state"] == json!("starting")).count();
    assert_eq!((shown.len(), starting), (1000, 0), "{took:?}");
    assert!(took < with_room(1), "status took {took:?}");
}

fn is_answered(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok_and(|mut server| {
        let mut answer = String::new();
        server.write_all(b"GET / HTTP/1.0\r\n\r\n").is_ok()
            && server.read_to_string(&mut answer).is_ok()
            && answer.contains("200")
    })
}
