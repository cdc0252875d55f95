//! Tests of the doctor as a whole: it finds nothing where all is well, changes nothing, bears
//! whatever hangs, and reports as text and as JSON.

use super::{Machine, finds, told, verdict};
use rig::{Rig, Signal, docker_client_or_skip, unconfigured_or_skip, until};
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Returns all files and folders below a folder, each with what shows whether it was changed.
fn content(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let meta = entry.metadata().unwrap();
        let (path, kind) = (entry.path(), meta.file_type());
        // The card's folder, which NVML reads, is left out.
        if path.ends_with("card") {
            continue;
        }
        let text = if kind.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
        found.push((path.clone(), format!("{kind:?} {:?} {text}", meta.permissions())));
        if kind.is_dir() {
            found.extend(content(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn on_a_machine_where_all_is_well_nothing_is_found() {
    let machine = Machine::new();
    let report = finds(machine.doctor(), &[]);
    for check in told(&report, |verdict| verdict == "skip") {
        let why = check["message"].as_str().unwrap();
        assert_eq!(
            (check["id"].as_str().unwrap(), why),
            ("docker.client", "no service is a container")
        );
    }
    assert!(report["passed"].as_u64().unwrap() > 40, "{report:#}");

    let text = machine.rig.gpuctl("doctor").run().succeeds().text();
    assert!(text.contains("✓ ok    config.valid"), "{text}");
    assert!(text.ends_with(" passed, 0 warnings, 0 failed, 1 skipped\n"), "{text}");
    machine.rig.gpuctl("doctor --quiet").run().succeeds();
}

#[test]
fn all_is_well_too_while_the_services_run_and_the_lock_is_held() {
    let machine = Machine::new();
    if !machine.rig.systemd().has_control_groups() {
        return;
    }
    for service in ["vidi", "vllm"] {
        machine.rig.gpuctl("start --quiet").arg(service).run().succeeds();
    }
    machine.rig.gpuctl("lock acquire me --ttl 1h").run().succeeds().text();
    let report = finds(machine.doctor(), &[]);
    assert!(report.to_string().contains("held by me"), "{report:#}");
}

#[test]
fn it_makes_and_changes_nothing() {
    let machine = Machine::new();
    let rig = &machine.rig;
    rig.set("lock.url", format!("file://{}", rig.path("run/new/lock").display()));
    let before = content(&rig.path(""));
    let elsewhere = rig.path("state/new");
    let report = finds(machine.doctor().env("GPUCTL_STATE_DIR", &elsewhere), &[]);
    assert!(report.to_string().contains("will be created when it is needed"), "{report:#}");
    assert_eq!(content(&rig.path("")), before);
}

/// Asserts that only a path that is too long by itself goes beyond the width.
#[track_caller]
fn fits(text: &str, width: usize) {
    for line in text.lines().filter(|line| line.trim_end().chars().count() > width) {
        assert!(line.split_whitespace().last().unwrap().contains('/'), "{line:?} in {text}");
    }
}

#[test]
fn the_text_tells_each_fault_with_its_fix_below_it_and_quiet_nothing_else() {
    let machine = Machine::new();
    machine.rig.set("services.vidi.vram_mb", 30000);
    machine.rig.systemd().installs(&format!("{}.service", machine.vllm.mark()), "file=enabled");
    let text = machine.rig.gpuctl("doctor").env("COLUMNS", "100").run().exits(1).text();
    fits(&text, 100);
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let fault = "✗ fail vram.service vidi: needs 30000 MB, but the card has only 23552 MB beside the reserve fix: set services.vidi.vram_mb to";
    assert!(squeezed.contains(fault), "{text}");
    assert!(squeezed.contains("! warn systemd.boot vllm: "), "{text}");
    assert!(squeezed.ends_with("1 warning, 1 failed, 2 skipped"), "{text}");

    let quiet = machine.rig.gpuctl("doctor --quiet").run().exits(1).text();
    assert!(!quiet.contains('✓') && !quiet.contains('–') && !quiet.contains("passed"), "{quiet}");
    assert_eq!(quiet.matches("fix: ").count(), 2, "{quiet}");
}

#[test]
fn on_a_terminal_it_has_colour_and_fits_the_width() {
    let machine = Machine::new();
    machine.rig.set("services.vidi.vram_mb", 30000);
    let shown = |setup: &str| {
        let script = format!("sh -c '{setup}; gpuctl doctor; echo ended; exec sleep 1000'");
        // The session's leader stays, since what it has written may be thrown away when it ends.
        let terminal = machine.rig.terminal(&script);
        terminal.shows("ended");
        terminal.text()
    };
    let text = shown("TERM=xterm; export TERM; stty cols 72");
    assert!(text.contains("\x1b[31m✗ fail\x1b[0m"), "{text}");
    let plain = shown("stty cols 72");
    assert!(!plain.contains('\x1b') && plain.contains("✗ fail"), "{plain}");
    fits(&plain, 72);
}

#[test]
fn without_a_configuration_it_examines_what_needs_none_and_names_config_init() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let doctor = rig.gpuctl(super::DOCTOR).env_remove("GPUCTL_CONFIG");
    let report = doctor.env("LD_LIBRARY_PATH", library_folder(&rig)).run().succeeds().json();
    let found = told(&report, |verdict| verdict == "warn");
    assert_eq!(found.len(), 1, "{report:#}");
    assert_eq!(found[0]["id"], "config.file");
    assert!(found[0]["fix"].as_str().unwrap().contains("gpuctl config init"));
    for id in ["nvml.device", "lock.place", "lock.record", "state.folder"] {
        assert_eq!(verdict(&report, id), "pass", "{id}");
    }
}

/// Makes a folder with the simulated card's library under the names of the real one.
fn library_folder(rig: &Rig) -> PathBuf {
    let config: toml::Table = fs::read_to_string(rig.path("gpuctl.toml")).unwrap().parse().unwrap();
    let library = config["gpu"]["nvml_library"].as_str().unwrap();
    let folder = rig.path("lib");
    fs::create_dir(&folder).unwrap();
    for name in ["libnvidia-ml.so.1", "libnvidia-ml.so"] {
        std::os::unix::fs::symlink(library, folder.join(name)).unwrap();
    }
    folder
}

#[test]
fn with_a_configuration_that_is_wrong_the_rest_is_examined() {
    if !docker_client_or_skip() {
        return;
    }
    let rig = Rig::new();
    let libraries = library_folder(&rig);
    rig.write_config("[gpu]\nreserve_mb = 1\n\n[services.vidi]\ntype = \"native\"\nvram = 1\n");
    let doctor = rig.gpuctl("doctor --json --gpu 0").env("LD_LIBRARY_PATH", libraries);
    let no_docker = ("fail", "docker.engine", "Docker cannot be reached", "systemctl start docker");
    let wrong = (
        "fail",
        "config.valid",
        "gpuctl.toml:6: services.vidi.vram: there is no such key",
        "did you mean `vram_mb`?",
    );
    let report = finds(doctor, &[wrong, no_docker]);
    for id in ["config.permissions", "nvml.library", "nvml.device", "docker.client", "state.folder"]
    {
        assert_eq!(verdict(&report, id), "pass", "{id}");
    }
    for id in ["lock.place", "native.start", "systemd.manager", "vram.service", "service.state"] {
        assert_eq!(verdict(&report, id), "skip", "{id}");
    }
}

#[test]
fn whatever_hangs_is_told_and_the_rest_is_examined() {
    let machine = Machine::new();
    let rig = &machine.rig;
    let Some(redis) = rig.redis() else { return };
    rig.set("lock.url", redis.url());
    rig.container("cosyvoice").vram(1000).not_installed().add();
    let _engine = UnixListener::bind(rig.path("no-docker.sock")).unwrap();
    rig.program("systemctl", "exec sleep 1000");
    rig.card.describe(&serde_json::json!({"faults": {"nvmlInit_v2": "hang"}}));
    let health = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = health.local_addr().unwrap();
    rig.set("services.voice.health", format!("http://{address}/"));
    redis.signal(Signal::STOP);
    let report = machine.doctor().run().exits(1).json();
    redis.signal(Signal::CONT);
    for id in ["docker.engine", "systemd.manager", "nvml.driver", "lock.redis"] {
        assert_eq!(verdict(&report, id), "fail", "{id}: {report:#}");
    }
    for id in ["config.valid", "docker.client", "state.folder", "canary.restore", "lock.place"] {
        assert_eq!(verdict(&report, id), "pass", "{id}: {report:#}");
    }
}

#[test]
fn an_interrupt_ends_it_at_once() {
    let machine = Machine::new();
    let rig = &machine.rig;
    rig.program("systemctl", &format!("touch {}; exec sleep 1000", rig.path("asked").display()));
    let doctor = machine.doctor().spawn();
    until("it asks", || rig.path("asked").exists());
    doctor.signal(Signal::INT);
    let ended = doctor.wait().exits(130).json();
    assert_eq!(ended["error"]["code"], "interrupted");
}

#[test]
fn no_secret_is_told() {
    const SECRET: &str = "s3cr3t-of-all";
    let machine = Machine::new();
    let rig = &machine.rig;
    let Some(redis) = rig.redis() else { return };
    let at = format!("127.0.0.1:{}", redis.port());
    rig.set("services.vidi.health", format!("http://u:{SECRET}@127.0.0.1:1/health?token={SECRET}"));
    rig.set(
        "services.voice.health",
        format!("http://u:{SECRET}@127.0.0.1:1/health?token={SECRET}"),
    );
    rig.set("services.voice.env.API_TOKEN", SECRET);
    rig.set("services.vidi.start", format!("/nowhere/start --url http://u:{SECRET}@h/"));
    for url in [
        format!("redis://:{SECRET}@{at}/0"),
        format!("redis://:{SECRET}@127.0.0.1:1/0"),
        format!("redis+unix:///nowhere/socket?pass={SECRET}"),
        format!("http://u:{SECRET}@h/"),
    ] {
        rig.set("lock.url", url);
        for form in ["doctor", "doctor --json", "doctor -vv"] {
            let stderr = rig.gpuctl(form).run().exits(1).stdout_has("lock.place").stderr_text();
            let stdout = rig.gpuctl(form).run().exits(1).ignores_stderr().text();
            assert!(!stderr.contains(SECRET) && !stdout.contains(SECRET), "{stdout}\n{stderr}");
        }
    }
}
