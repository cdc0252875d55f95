//! `gpuctl config init`: what it finds on a machine, and that what it writes is valid, finds nothing else, and leaves
//! doctor nothing to say against it. Other tests' processes are on this machine too, so each looks for its own.

use rig::{Rig, apart, until};
use std::fs;
use toml::Table;

/// What init writes of this machine, and the services in it.
#[track_caller]
fn init(rig: &Rig) -> (String, Table) {
    let path = rig.path("found.toml");
    rig.gpuctl("config init --force --output").arg(&path).run().succeeds().text();
    let text = fs::read_to_string(&path).unwrap();
    eprintln!("{text}");
    let check = rig.gpuctl("config check --json --config").arg(&path).run().succeeds().json();
    assert!(check.get("warnings").is_none(), "{check}");
    let services = text.parse::<Table>().unwrap().remove("services");
    (text, services.and_then(|all| all.as_table().cloned()).unwrap_or_default())
}

/// The one service in which this text stands under that key.
#[track_caller]
fn found(services: &Table, key: &str, text: &str) -> (String, Table) {
    let has = |service: &toml::Value| {
        service.get(key).and_then(toml::Value::as_str).is_some_and(|value| value.contains(text))
    };
    let mut all = services.iter().filter(|(_, service)| has(service));
    let (name, service) =
        all.next().unwrap_or_else(|| panic!("none has {key} {text}: {services:?}"));
    assert!(all.next().is_none(), "more than one has {key} {text}");
    (name.clone(), service.as_table().unwrap().clone())
}

/// Nothing that doctor finds fault with among what init has written of these services.
#[track_caller]
fn doctor_has_nothing_red(rig: &Rig, names: &[&str]) {
    let path = rig.path("found.toml");
    let (_, told) = rig.gpuctl("doctor --json --config").arg(&path).run().ended();
    let report: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
    for check in report["checks"].as_array().into_iter().flatten() {
        let subject = check["subject"].as_str().unwrap_or_default();
        let is_ours = names.contains(&subject) || subject.is_empty();
        assert!(!is_ours || check["verdict"] != "fail", "{check:#}");
    }
}

#[test]
fn a_server_that_was_started_by_hand_is_found_with_all_that_is_needed_to_manage_it() {
    let rig = Rig::new();
    let server =
        format!("{} --name {} --api comfyui --vram 12345", rig.simserver(), rig.mark("comfy"));
    let port = rig.port();
    let _comfy = rig.by_hand(&format!("{server} --port {port}"));
    until("it works", || rig.card.used_mb() == 12345);
    let (_, services) = init(&rig);
    let (name, comfy) = found(&services, "start", rig.token());
    assert_eq!(name, "comfyui");
    assert_eq!(comfy["type"].as_str(), Some("native"));
    assert_eq!(comfy["api"].as_str(), Some("comfyui"));
    assert_eq!(comfy["url"].as_str(), Some(format!("http://localhost:{port}").as_str()));
    assert_eq!(comfy["vram_mb"].as_integer(), Some(12400));
    assert!(comfy["match"].as_str().unwrap().contains(&port.to_string()), "{comfy:?}");
    doctor_has_nothing_red(&rig, &["comfyui"]);
    let status = rig.gpuctl("status --json --config").arg(rig.path("found.toml")).run();
    let status = status.succeeds().json();
    assert_eq!(status["services"]["comfyui"]["state"], "ready", "{status:#}");
    assert_eq!(status["services"]["comfyui"]["used_mb"], 12345);
}

#[test]
fn a_server_of_no_known_kind_is_found_by_the_card_and_what_it_answers() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    let _server = rig.by_hand(vidi.command());
    until("it works", || rig.card.used_mb() == 4000);
    let (_, services) = init(&rig);
    let (name, found) = found(&services, "start", rig.token());
    assert_eq!(
        found["health"].as_str(),
        Some(format!("http://localhost:{}/health", vidi.port()).as_str())
    );
    doctor_has_nothing_red(&rig, &[&name]);
}

#[test]
fn what_is_on_the_card_and_serves_nobody_is_named_and_no_service() {
    let rig = Rig::new();
    let game = format!("{} --name {} --vram 3000 --port 0", rig.simserver(), rig.mark("game"));
    let _game = rig.by_hand(&game);
    until("it plays", || rig.card.used_mb() == 3000);
    let ollama = format!(
        "{} --name {} --api ollama --vram 5000 --port {}",
        rig.simserver(),
        rig.mark("llm"),
        rig.port()
    );
    let _ollama = rig.by_hand(&ollama);
    until("both are there", || rig.card.used_mb() == 8000);
    let (text, services) = init(&rig);
    assert!(
        text.contains("# On the card, and taken for no service: ") && text.contains("(3000 MB)"),
        "{text}"
    );
    assert!(!text.contains(&rig.mark("game")), "{text}");
    let (name, _) = found(&services, "start", &rig.mark("llm"));
    assert_eq!(name, "ollama");
    doctor_has_nothing_red(&rig, &["ollama"]);
}

#[test]
fn on_a_bare_machine_the_least_is_written_and_doctor_has_nothing_red() {
    apart(|rig| {
        let (text, services) = init(rig);
        assert!(services.is_empty(), "{text}");
        assert!(text.contains("# [services.comfyui]"), "{text}");
        doctor_has_nothing_red(rig, &[]);
    });
}

#[test]
fn no_secret_of_a_command_line_is_copied() {
    let rig = Rig::new();
    let launch = format!(
        "import subprocess, sys\nsubprocess.run({:?}.split() + sys.argv[1:5])\n",
        format!("{} --vram 2000 --api vllm", rig.simserver())
    );
    let launch = rig.file("launch.py", &launch).display().to_string();
    let words = format!(
        "--name {} --port {} --api-key hunter2 --url=http://u:hunter3@h/",
        rig.mark("llm"),
        rig.port()
    );
    let _server = rig.by_hand(&format!("python3 {launch} {words}"));
    until("it works", || rig.card.used_mb() == 2000);
    let (text, services) = init(&rig);
    assert!(!text.contains("hunter"), "{text}");
    let (_, llm) = found(&services, "start", "launch.py");
    let start = llm["start"].as_str().unwrap();
    assert!(start.contains("--api-key \"$$API_KEY\""), "{start}");
    assert!(text.contains("have API_KEY in the environment"), "{text}");
}

#[test]
fn containers_and_a_compose_project_are_found_by_the_engine() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").vram(3000).server("--api vllm").add();
    rig.gpuctl("start voice --quiet").run().succeeds();
    let project = rig.mark("mcn");
    let part = rig.mark("part");
    rig.owns_container(&part);
    let image = rig.engine().image().to_owned();
    let labels = [
        format!("com.docker.compose.project={project}"),
        "com.docker.compose.service=tts".to_owned(),
        "com.docker.compose.oneoff=False".to_owned(),
    ];
    let mut words = vec!["create", "--name", &part, "--device", "/dev/null:/dev/nvidia0"];
    labels.iter().for_each(|label| words.extend(["--label", label]));
    words.extend([image.as_str(), "/bin/simserver"]);
    rig.docker(&words);
    let (_, services) = init(&rig);
    let (_, found_voice) = found(&services, "container", voice.mark());
    assert_eq!(found_voice["type"].as_str(), Some("docker"));
    assert_eq!(found_voice["vram_mb"].as_integer(), Some(3000));
    let (name, tts) = found(&services, "project", &project);
    assert_eq!((tts["type"].as_str(), tts["service"].as_str()), (Some("compose"), Some("tts")));
    assert!(name.starts_with("tts"), "{name}");
}

#[test]
fn a_unit_is_found_by_its_control_group() {
    let rig = Rig::new();
    let unit = rig.unit("ollama").vram(6000).server("--api ollama").add();
    if !rig.systemd().has_control_groups() {
        eprintln!("SKIPPED: control groups cannot be made here");
        return;
    }
    rig.gpuctl("start ollama --quiet").run().succeeds();
    let (_, services) = init(&rig);
    let (_, found) = found(&services, "unit", unit.mark());
    assert_eq!(found["type"].as_str(), Some("systemd"));
    assert_eq!(found["api"].as_str(), Some("ollama"));
    assert_eq!(found["vram_mb"].as_integer(), Some(6000));
}

#[test]
fn the_examples_are_written_by_name_and_are_valid() {
    let rig = Rig::new();
    for (name, services) in [("pipeline", 4), ("llm-box", 2), ("small-box", 2), ("minimal", 0)] {
        let path = rig.path("example.toml");
        let init = format!("config init --force --example {name} --output");
        rig.gpuctl(&init).arg(&path).run().succeeds().text();
        let check = rig.gpuctl("config check --json --config").arg(&path).run().succeeds().json();
        let found = check["services"].as_array().unwrap().len();
        assert!(found >= services, "{name}: {check}");
    }
    let both = rig.gpuctl("config init --detect --example minimal").run().fails("usage");
    both.stderr_has("cannot be used together");
}
