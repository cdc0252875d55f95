//! Tests of `gpuctl config init`: what it finds on a machine, and that what it writes is valid,
//! finds nothing else, and gives doctor nothing to fail. Other tests' processes are on this machine
//! too, so each test looks for its own.

use rig::{Rig, apart, docker_client_or_skip, until, with_room};
use serde_json::Value;
use std::fs;
use std::time::Instant;
use toml::Table;

/// Returns what init writes on this machine, and the services in it; asserts that the text is valid
/// and gives no warning.
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

/// Returns the name and the table of the one service that has this text under this key.
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

/// Asserts that doctor looks at each of these services, which init has written, and fails neither
/// them nor anything of the machine.
#[track_caller]
fn doctor_has_nothing_red(rig: &Rig, names: &[&str]) {
    let path = rig.path("found.toml");
    let (_, told) = rig.gpuctl("doctor --json --config").arg(&path).run().ended();
    let report: Value = serde_json::from_str(&told).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let text = |check: &Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let subjects: Vec<String> = checks.iter().map(|check| text(check, "subject")).collect();
    assert!(names.iter().all(|name| subjects.iter().any(|one| one == name)), "{report:#}");
    let is_ours = |check: &&Value| {
        let subject = text(check, "subject");
        subject.is_empty() || names.contains(&subject.as_str())
    };
    let failed = checks.iter().filter(is_ours).filter(|check| check["verdict"] == "fail");
    let failed: Vec<&Value> = failed.collect();
    assert!(failed.is_empty(), "{failed:#?}");
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
        let begun = Instant::now();
        let (text, services) = init(rig);
        assert!(begun.elapsed() < with_room(1), "{:?}", begun.elapsed());
        assert!(services.is_empty(), "{text}");
        assert!(text.contains("# [services.comfyui]"), "{text}");
        doctor_has_nothing_red(rig, &[]);
    });
}

#[test]
fn that_containers_could_not_be_asked_for_is_told_where_there_is_who_could_be_asked() {
    let rig = Rig::new();
    let bin = rig.path("no-docker-here");
    fs::create_dir(&bin).unwrap();
    let path = rig.path("found.toml");
    let written = |invocation: rig::Invocation| {
        invocation.arg("--output").arg(&path).run().succeeds().ignores_stdout();
        fs::read_to_string(&path).unwrap()
    };
    let text = written(rig.gpuctl("config init --force").env("PATH", &bin));
    assert!(!text.contains("could not be asked"), "{text}");
    if !docker_client_or_skip() {
        return;
    }
    // Docker's client is there, but its engine is not.
    let text = written(rig.gpuctl("config init --force"));
    let why = "# Containers could not be asked for: Docker cannot be reached";
    assert!(text.contains(why), "{text}");
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
    let (voice_name, found_voice) = found(&services, "container", voice.mark());
    assert_eq!(found_voice["type"].as_str(), Some("docker"));
    assert_eq!(found_voice["vram_mb"].as_integer(), Some(3000));
    doctor_has_nothing_red(&rig, &[&voice_name]);
    let (name, tts) = found(&services, "project", &project);
    assert_eq!((tts["type"].as_str(), tts["service"].as_str()), (Some("compose"), Some("tts")));
    assert!(name.starts_with("tts"), "{name}");
}

/// The process that listens on the port for the engine is no server.
#[test]
fn a_port_that_a_container_publishes_is_that_containers_alone() {
    let Some(rig) = Rig::with_docker() else { return };
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let port = [8000, 8080, 5001, 8099, 30000].into_iter().find(is_free).expect("a usual port");
    let (network, chat) = (rig.network(), rig.mark("chat"));
    let card = rig.card.folder().display().to_string();
    let (variable, mount) = (format!("SIMGPU_DIR={card}"), format!("{card}:{card}"));
    let published = format!("127.0.0.1:{port}:8000");
    rig.owns_container(&chat);
    let mut words = vec!["run", "--detach", "--name", &chat, "--network", &network];
    words.extend(["--publish", &published, "--env", &variable, "--volume", &mount]);
    words.extend([rig.engine().image(), "/bin/simserver", "--host", "0.0.0.0", "--port", "8000"]);
    words.extend(["--api", "vllm", "--vram", "5000", "--name", &chat]);
    rig.docker(&words);
    until("it works", || rig.card.used_mb() == 5000);
    let (text, services) = init(&rig);
    let url = format!("http://localhost:{port}");
    let (name, found_chat) = found(&services, "url", &url);
    assert_eq!((name.as_str(), found_chat["type"].as_str()), (chat.as_str(), Some("docker")));
    assert!(!text.contains("dockerd"), "{text}");
}

#[test]
fn containers_that_are_stopped_are_found_by_their_image_or_their_card_and_told_as_guesses() {
    let Some(rig) = Rig::with_docker() else { return };
    let image = rig.engine().image().to_owned();
    let named = format!("{}/ollama:1", rig.token());
    rig.docker(&["tag", &image, &named]);
    let [llm, tts, web, taken] = ["llm", "tts", "web", "taken"].map(|name| rig.mark(name));
    let port = rig.port();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = listener.local_addr().unwrap().port();
    let create = |name: &str, more: &[&str]| {
        rig.owns_container(name);
        rig.docker(&[&["create", "--name", name], more, &["/bin/simserver"]].concat());
    };
    create(&llm, &["--publish", &format!("127.0.0.1:{port}:11434"), &named]);
    create(&taken, &["--publish", &format!("127.0.0.1:{busy}:11434"), &named]);
    create(&tts, &["--gpus", "all", &image]);
    create(&web, &[&image]);
    let (text, services) = init(&rig);
    rig.docker(&["rmi", &named]);
    let (name, found_llm) = found(&services, "container", &llm);
    assert_eq!(found_llm["api"].as_str(), Some("ollama"));
    assert_eq!(found_llm["url"].as_str(), Some(format!("http://localhost:{port}").as_str()));
    let guess = format!(
        "[services.{name}]\n# A guess: it is stopped, and its image ({named}) is a model server's."
    );
    assert!(text.contains(&guess), "{text}");
    let (name_of_tts, _) = found(&services, "container", &tts);
    let guess = format!(
        "[services.{name_of_tts}]\n# A guess: it is stopped, and its container may use the card."
    );
    assert!(text.contains(&guess), "{text}");
    // Another process has this container's port now, so the container is not said to be found
    // there.
    let (name_of_taken, found_taken) = found(&services, "container", &taken);
    assert!(found_taken.get("url").is_none(), "{found_taken:?}");
    assert!(!text.contains(&web), "{text}");
    doctor_has_nothing_red(&rig, &[&name, &name_of_tts, &name_of_taken]);
}

#[test]
fn a_unit_that_does_not_run_is_found_by_its_name_and_by_the_most_that_was_seen_of_it() {
    let rig = Rig::new();
    let server = format!("{} --name {} --vram 6000", rig.simserver(), rig.mark("llm"));
    let port = rig.port();
    let command = format!("{server} --api ollama --port {port}");
    for unit in ["ollama.service", "ollama-exporter.service", "nginx.service"] {
        rig.systemd().install_unit(unit, false, &command);
    }
    let (text, services) = init(&rig);
    let (name, found_one) = found(&services, "unit", "ollama");
    assert_eq!((name.as_str(), found_one["unit"].as_str()), ("ollama", Some("ollama.service")));
    let guess =
        "[services.ollama]\n# A guess: it does not run, and has the name of a model server.";
    assert!(text.contains(guess), "{text}");
    assert!(text.contains("vram_mb = 4096"), "{text}");
    doctor_has_nothing_red(&rig, &["ollama"]);

    // What a unit holds is only known by its control group.
    if !rig.systemd().has_control_groups() {
        return;
    }
    rig.set("services.llm.type", "systemd");
    rig.set("services.llm.unit", "ollama.service");
    rig.set("services.llm.vram_mb", 7000);
    rig.set("services.llm.health", format!("http://127.0.0.1:{port}/api/version"));
    rig.gpuctl("start llm --quiet").run().succeeds();
    rig.gpuctl("stop llm --quiet").run().succeeds();
    let (text, _) = init(&rig);
    assert!(text.contains("vram_mb = 6000              # the most that was seen of it"), "{text}");
}

#[test]
fn the_box_of_the_seeds_is_found_as_a_whole() {
    let Some(rig) = Rig::with_docker() else { return };
    if !rig.has_python() || !rig.systemd().has_control_groups() {
        return;
    }
    // The box has ComfyUI, started by hand in a Python environment, a container that runs, one that
    // is stopped, and a unit.
    let port = rig.port();
    let server = format!("{} --name {} --vram 9000", rig.simserver(), rig.mark("comfy"));
    let words = format!("{server} --api comfyui --port {port}");
    let launch = format!("import subprocess\nsubprocess.run({words:?}.split())\n");
    let main = rig.file("main.py", &launch);
    let python = rig.path("venv/bin/python").display().to_string();
    let _comfy = rig.by_hand(&format!("{python} {} --listen --port {port}", main.display()));
    let voice = rig.container("cosyvoice").vram(4000).add();
    let unit = rig.unit("vidi").vram(3000).add();
    rig.gpuctl("start cosyvoice --quiet").run().succeeds();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let ollama = rig.mark("ollama");
    rig.owns_container(&ollama);
    let image = rig.engine().image().to_owned();
    rig.docker(&["create", "--name", &ollama, "--gpus", "all", &image, "/bin/simserver"]);
    until("all are there", || rig.card.used_mb() == 16000);
    let (_, services) = init(&rig);
    let (comfyui, found_comfyui) = found(&services, "start", rig.token());
    let (cosyvoice, found_cosyvoice) = found(&services, "container", voice.mark());
    let (vidi, found_vidi) = found(&services, "unit", unit.mark());
    let (ollama, _) = found(&services, "container", &ollama);
    assert!(found_comfyui["start"].as_str().unwrap().starts_with(&python), "{found_comfyui:?}");
    for (service, held) in [(&found_comfyui, 9000), (&found_cosyvoice, 4000), (&found_vidi, 3000)] {
        assert_eq!(service["vram_mb"].as_integer(), Some(held));
    }
    doctor_has_nothing_red(&rig, &[&comfyui, &cosyvoice, &vidi, &ollama]);
    let status = rig.gpuctl("status --json --config").arg(rig.path("found.toml")).run();
    let status = status.succeeds().json();
    for (name, state) in
        [(comfyui, "ready"), (cosyvoice, "ready"), (vidi, "ready"), (ollama, "stopped")]
    {
        assert_eq!(status["services"][&name]["state"], state, "{name}: {status:#}");
    }
}

#[test]
fn a_unit_is_found_by_its_control_group() {
    let rig = Rig::new();
    let unit = rig.unit("ollama").vram(6000).server("--api ollama").add();
    if !rig.systemd().has_control_groups() {
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
