//! Tests of `config import`, which makes a first configuration from a compose project.

use rig::{Rig, compose_or_skip, docker_client_or_skip};
use std::fs;

/// A compose project as compose prints it.
const PROJECT: &str = r#"{"name": "mcn", "services": {
    "tts": {"labels": {"gpuctl.vram_mb": "4000", "gpuctl.phases": "2,3"},
            "ports": [{"target": 8000, "published": "50000", "protocol": "tcp"}], "stop_grace_period": "45s"},
    "web": {"ports": [{"target": 80, "published": "80"}]}}}"#;

#[test]
fn a_project_in_json_needs_no_compose_and_what_is_written_is_valid() {
    let rig = Rig::new();
    let file = rig.file("home/project.json", PROJECT);
    let made = rig.path("home/made.toml");
    let import = || rig.gpuctl("config import project.json --output made.toml");
    import().run().succeeds().stdout_has("made.toml");
    let check = rig.gpuctl("config check --config made.toml --json").run().succeeds().json();
    assert_eq!(check["services"], serde_json::json!(["tts"]));
    let show = rig.gpuctl("config show --config made.toml --json").run().succeeds().json();
    let tts = &show["services"]["tts"];
    assert_eq!((&tts["project"], &tts["vram_mb"]), (&"mcn".into(), &4000.into()));
    assert_eq!(tts["stop_timeout"], "45s");
    assert_eq!(tts["health"], "http://localhost:50000/");
    assert_eq!(tts["files"][0], file.display().to_string());

    // Nothing is overwritten unless that is asked for.
    fs::write(&made, "mine").unwrap();
    import().run().fails("io").stderr_has("already exists");
    assert_eq!(fs::read_to_string(&made).unwrap(), "mine");
    import().arg("--force").run().succeeds().stdout_has("made.toml");
    // The default engine is not named in the file; another one is.
    assert!(!fs::read_to_string(&made).unwrap().contains("docker ="));
    rig.set("docker", "podman");
    import().arg("--force").run().succeeds().stdout_has("made.toml");
    let show = rig.gpuctl("config show --config made.toml --json").run().succeeds().json();
    assert_eq!(show["docker"], "podman");
}

#[test]
fn phases_that_labels_name_are_given_numbers_that_no_label_has() {
    let rig = Rig::new();
    let labelled = |phases: &str| format!(r#"{{"labels": {{"gpuctl.phases": "{phases}"}}}}"#);
    let (tts, llm) = (labelled("1, speech"), labelled("speech,video"));
    let project = format!(r#"{{"name": "mcn", "services": {{"tts": {tts}, "llm": {llm}}}}}"#);
    rig.file("home/project.json", &project);
    rig.gpuctl("config import project.json --output made.toml").run().succeeds().ignores_stdout();
    let show = rig.gpuctl("config show --config made.toml --json").run().succeeds().json();
    let phases = &show["phases"];
    assert_eq!((&phases["2"], &phases["3"]), (&"speech".into(), &"video".into()), "{show}");
    rig.gpuctl("config check --config made.toml").run().succeeds().stdout_has("3 phases");
}

#[test]
fn a_card_is_seen_however_a_service_is_given_it() {
    let rig = Rig::new();
    let reserved = |device: &str| {
        format!(r#"{{"deploy": {{"resources": {{"reservations": {{"devices": [{device}]}}}}}}}}"#)
    };
    for service in [
        reserved(r#"{"capabilities": ["gpu"], "count": -1}"#),
        reserved(r#"{"driver": "nvidia"}"#),
        reserved(r#"{"driver": "cdi", "device_ids": ["nvidia.com/gpu=all"]}"#),
        r#"{"gpus": [{"count": -1}]}"#.to_owned(),
        r#"{"runtime": "nvidia"}"#.to_owned(),
        r#"{"devices": ["nvidia.com/gpu=0"]}"#.to_owned(),
        r#"{"devices": [{"source": "/dev/nvidia0", "target": "/dev/nvidia0", "permissions": "rwm"}]}"#.to_owned(),
    ] {
        let project = format!(r#"{{"name": "mcn", "services": {{"tts": {service}, "web": {{}}}}}}"#);
        rig.file("home/project.json", &project);
        let import = rig.gpuctl("config import project.json --output made.toml --force").run();
        import.succeeds().ignores_stdout();
        let check = rig.gpuctl("config check --config made.toml --json").run().succeeds().json();
        assert_eq!(check["services"], serde_json::json!(["tts"]), "{service}");
    }
}

#[test]
fn a_project_that_says_nothing_of_a_card_or_what_is_not_known_is_refused() {
    let rig = Rig::new();
    for (project, why) in [
        (r#"{"name": "mcn", "services": {"web": {}}}"#, "no service of"),
        (
            r#"{"name": "mcn", "services": {"a": {"labels": {"gpuctl.vram": "1"}}}}"#,
            "did you mean gpuctl.vram_mb?",
        ),
        (
            r#"{"name": "mcn", "services": {"a": {"labels": {"gpuctl.evict": "x"}}}}"#,
            "make no configuration",
        ),
        ("[]", "is not a compose project"),
    ] {
        rig.file("home/project.json", project);
        let import = rig.gpuctl("config import project.json --output made.toml").run();
        import.fails("config").stderr_has(why);
        assert!(!rig.path("home/made.toml").exists());
    }
    rig.gpuctl("config import absent.yaml --output made.toml")
        .run()
        .fails("io")
        .stderr_has("cannot read absent.yaml");
}

#[test]
fn without_compose_a_compose_file_cannot_be_read_and_another_way_is_told() {
    if !docker_client_or_skip() {
        return;
    }
    let rig = Rig::new();
    rig.file("home/compose.yaml", "services: {}\n");
    rig.program("docker", "echo \"docker: 'compose' is not a docker command.\" >&2; exit 1");
    let import = rig.gpuctl("config import compose.yaml --output made.toml").run();
    import.fails("unavailable").stderr_has("docker compose config --format json");
    rig.set("docker", "/nonexistent/docker");
    let import = rig.gpuctl("config import compose.yaml --output made.toml").run();
    import.fails("unavailable").stderr_has("docker compose config --format json");
}

#[test]
fn what_a_profile_of_compose_leaves_out_is_imported_all_the_same() {
    if !docker_client_or_skip() || !compose_or_skip() {
        return;
    }
    let rig = Rig::new();
    let tts = "{image: a, profiles: [speech], labels: {gpuctl.vram_mb: '1'}}";
    rig.file("home/compose.yaml", &format!("services: {{tts: {tts}, web: {{image: b}}}}\n"));
    let import = rig.gpuctl("config import compose.yaml --output made.toml").run();
    import.succeeds().stdout_has("made.toml");
    let check = rig.gpuctl("config check --config made.toml --json").run().succeeds().json();
    assert_eq!(check["services"], serde_json::json!(["tts"]));
}

#[test]
fn a_service_that_was_imported_can_be_started_though_compose_has_never_made_it() {
    let Some(rig) = Rig::with_docker() else { return };
    if !compose_or_skip() {
        return;
    }
    let (project, port) = (rig.mark("mcn"), rig.port());
    let (card, image) = (rig.card.folder().display().to_string(), rig.engine().image());
    rig.owns_container(&format!("{project}-tts-1"));
    let compose = format!(
        "name: {project}\nservices:\n  tts:\n    image: {image}\n    network_mode: host\n    pull_policy: never\n    \
        command: /bin/simserver --name {project} --vram 700 --port {port}\n    environment: {{SIMGPU_DIR: {card}}}\n    \
        volumes: ['{card}:{card}']\n    labels:\n      gpuctl.vram_mb: '700'\n      \
        gpuctl.health: http://localhost:{port}/health\n  web: {{image: {image}}}\n"
    );
    rig.file("home/compose.yaml", &compose);
    rig.gpuctl("config import compose.yaml --output made.toml").run().succeeds().stdout_has("made");
    let own = fs::read_to_string(rig.path("gpuctl.toml")).unwrap();
    let made = fs::read_to_string(rig.path("home/made.toml")).unwrap();
    rig.write_config(&format!("{own}\n{made}"));
    rig.gpuctl("start tts").run().succeeds().stdout_has("started tts").progress();
    assert_eq!(rig.card.used_mb(), 700);
    rig.gpuctl("stop tts").run().succeeds().stdout_has("stopped tts").progress();
}
