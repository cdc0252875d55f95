//! Tests that the doctor finds faults of Docker's client and engine, and of how containers were
//! created.

use super::{Fault, Machine, finds, verdict};
use rig::{Rig, Service, docker_client_or_skip};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

/// Option that gives a container the null device as its card.
const CARD: &str = "--device /dev/null:/dev/nvidia0";

/// Returns a machine with a container that was created with these options, in which `PORT` stands
/// for the port of its health check. `None`, after reporting the skip, if there is no engine.
#[track_caller]
fn with_container(options: &str) -> Option<Machine> {
    let machine = Machine::of(Rig::with_docker()?);
    let rig = &machine.rig;
    let voice = declare(rig);
    rig.owns_container(voice.mark());
    let options = options.replace("PORT", voice.url("").rsplit(':').next().unwrap());
    let mut create = vec!["create", "--name", voice.mark()];
    create.extend(options.split(' '));
    create.extend([rig.engine().image(), "/bin/simserver"]);
    rig.docker(&create);
    Some(machine)
}

/// Adds a container to the configuration, but creates none.
fn declare(rig: &Rig) -> Service {
    rig.container("cosyvoice").vram(1000).not_installed().add()
}

#[test]
fn of_a_container_that_is_well_made_nothing_is_found() {
    for options in [
        "--network host",
        "--network bridge --publish PORT:1",
        "--network host --restart unless-stopped",
    ] {
        let Some(machine) = with_container(&format!("{options} {CARD}")) else { return };
        let report = finds(machine.doctor(), &[]);
        for id in ["client", "engine", "permission", "container", "gpu", "ports", "restart"] {
            assert_eq!(verdict(&report, &format!("docker.{id}")), "pass", "{id}");
        }
    }
}

#[test]
fn how_a_container_was_made_is_found() {
    let [gpu, restart, ports] =
        ["gpu", "restart", "ports"].map(|id| format!("docker.{id} cosyvoice"));
    let update = "docker update --restart=unless-stopped";
    for (options, id, message, fix) in [
        ("--network host", &gpu, "was created without a GPU", "recreate it with --gpus all"),
        ("--network host --restart always CARD", &restart, "whenever the engine starts", update),
        ("--network bridge --publish 1:1 CARD", &ports, "does not publish", "--publish"),
        ("--network none CARD", &ports, "does not publish", "--network host"),
    ] {
        let Some(machine) = with_container(&options.replace("CARD", CARD)) else { return };
        finds(machine.doctor(), &[("warn", id, message, fix)]);
    }
}

/// Such a check passes too early, as docker-proxy accepts connections in the server's place.
#[test]
fn a_tcp_health_check_of_a_published_port_is_found() {
    let options = format!("--network bridge --publish PORT:1 {CARD}");
    let Some(machine) = with_container(&options) else { return };
    let rig = &machine.rig;
    let config = rig.gpuctl("config show --json").run().succeeds().json();
    let url = config["services"]["cosyvoice"]["health"].as_str().unwrap().to_owned();
    let port = url.split(':').nth(2).unwrap().split('/').next().unwrap();
    rig.set("services.cosyvoice.health", format!("tcp://127.0.0.1:{port}"));
    let told = ("warn", "docker.ports cosyvoice", "before the server listens", "http://");
    finds(machine.doctor(), &[told]);
}

#[test]
fn a_container_whose_name_begins_the_id_of_another_is_judged_by_how_it_was_made_itself() {
    let Some(machine) = with_container(&format!("--network host {CARD}")) else { return };
    let rig = &machine.rig;
    let other =
        rig.docker(&["container", "inspect", "--format", "{{.Id}}", &rig.mark("cosyvoice")]);
    let name = &other[..12];
    rig.container("namesake").set("container", name).not_installed().add();
    rig.owns_container(name);
    let options = ["--name", name, "--network", "host", "--restart", "always"];
    let image = [rig.engine().image(), "/bin/simserver"];
    let card: Vec<&str> = CARD.split(' ').collect();
    rig.docker(&[&["create"], &options[..], &card, &image].concat());
    let update = format!("docker update --restart=unless-stopped {name}");
    let message = "whenever the engine starts";
    finds(machine.doctor(), &[("warn", "docker.restart namesake", message, &update)]);
}

#[test]
fn a_container_with_another_card_is_found() {
    let Some(machine) = with_container("--network host --gpus device=7") else { return };
    let message = "was given GPU 7, but gpuctl watches GPU 0";
    let other = ("warn", "docker.gpu cosyvoice", message, "gpu.index");
    let no_runtime = (!has_nvidia(&machine.rig)).then_some(NO_RUNTIME);
    finds(machine.doctor(), &[&[other], no_runtime.as_slice()].concat());
}

const NO_RUNTIME: Fault<'static> =
    ("warn", "docker.runtime", "the engine has no NVIDIA runtime", "nvidia-ctk runtime configure");

fn has_nvidia(rig: &Rig) -> bool {
    rig.docker(&["info", "--format", "{{json .Runtimes}}"]).contains("nvidia")
}

#[test]
fn an_engine_without_the_runtime_that_a_container_wants_is_found() {
    let Some(machine) = with_container("--network host --gpus all") else { return };
    let no_runtime = (!has_nvidia(&machine.rig)).then_some(NO_RUNTIME);
    finds(machine.doctor(), no_runtime.as_slice());
}

#[test]
fn a_container_that_is_missing_is_found() {
    let Some(rig) = Rig::with_docker() else { return };
    let machine = Machine::of(rig);
    let voice = declare(&machine.rig);
    let fix = format!("docker create --name {}", voice.mark());
    finds(
        machine.doctor(),
        &[("fail", "docker.container cosyvoice", "there is no Docker container", &fix)],
    );
}

#[test]
fn an_engine_that_is_absent_hangs_or_forbids_is_found() {
    if !docker_client_or_skip() {
        return;
    }
    let machine = Machine::new();
    let rig = &machine.rig;
    declare(rig);
    let absent = ("fail", "docker.engine", "Docker cannot be reached", "systemctl start docker");
    let report = finds(machine.doctor(), &[absent]);
    assert_eq!(verdict(&report, "docker.container"), "skip");

    let socket = rig.path("no-docker.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let hangs = ("fail", "docker.engine", "did not answer within 5s", "systemctl restart docker");
    finds(machine.doctor(), &[hangs]);

    fs::set_permissions(&socket, Permissions::from_mode(0o000)).unwrap();
    let forbids = ("fail", "docker.permission", "Docker denies access", "usermod -aG docker");
    finds(machine.doctor_without_privileges(), &[forbids]);
}

#[test]
fn a_machine_without_dockers_client_is_found() {
    let machine = Machine::new();
    let rig = &machine.rig;
    declare(rig);
    let tools = rig.path("tools");
    fs::create_dir(&tools).unwrap();
    for tool in ["sh", "cat"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{tool}"), tools.join(tool)).unwrap();
    }
    let path = format!("{}:{}", rig.path("bin").display(), tools.display());
    let fault =
        ("fail", "docker.client", "there is no program `docker` in the PATH", "install Docker's");
    finds(machine.doctor().env("PATH", path), &[fault]);
}

#[test]
fn an_engine_that_may_lock_up_is_found() {
    let old = ("warn", "docker.version", "may hang for good", "update it to 20.10.27");
    for (info, is_old) in [
        (r#"{"ServerVersion": "20.10.24+dfsg1"}"#, true),
        (r#"{"ServerVersion": "19.03.15"}"#, true),
        (r#"{"ServerVersion": "20.10.27"}"#, false),
        (r#"{"ServerVersion": "28.1.1-rc.1"}"#, false),
        (r#"{"ServerVersion": "dev"}"#, false),
        (r#"{"version": {"Version": "4.3.1"}}"#, false),
    ] {
        let machine = Machine::new();
        declare(&machine.rig);
        machine.rig.program("docker", &format!("[ $1 = info ] || exit 1; echo '{info}'"));
        // No container exists behind this client, so the doctor fails in any case.
        let report = machine.doctor().run().exits(1).json();
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["id"] == old.1).unwrap();
        assert_eq!(check["verdict"], if is_old { old.0 } else { "pass" }, "{check:#}");
        let has = |key: &str, part| check[key].as_str().is_some_and(|text| text.contains(part));
        assert_eq!((has("message", old.2), has("fix", old.3)), (is_old, is_old), "{check:#}");
    }
}
