//! Tests of podman in Docker's place: where it answers differently, and what it leaves out.

use rig::{Invocation, Rig, root_or_skip, skip_or_fail, until, works};
use serde_json::{Value, json};
use toml::Table;

/// A podman with folders of its own, which are removed with the rig.
struct Podman {
    rig: Rig,
    /// Words that, put before a command, run it as the podman's user; empty for root.
    user: String,
}

impl Podman {
    /// Finds root's podman. `None`, after reporting the skip, if there is none or it cannot run
    /// containers.
    #[track_caller]
    fn find() -> Option<Podman> {
        Podman::of(|_| Some(String::new()))
    }

    /// Finds the podman of a user who has a single ID and none of root's rights.
    #[track_caller]
    fn rootless() -> Option<Podman> {
        Podman::of(Rig::as_a_user)
    }

    #[track_caller]
    fn of(user: impl Fn(&Rig) -> Option<String>) -> Option<Podman> {
        if !works("podman", &["--version"]) {
            skip_or_fail("podman", "podman");
            return None;
        }
        if !root_or_skip() {
            return None;
        }
        let rig = Rig::new();
        let image = rig.image().display().to_string();
        let user = user(&rig)?;
        let podman = Podman { rig, user };
        let rig = &podman.rig;
        let folder = rig.path("pod").display().to_string();
        let options =
            if podman.user.is_empty() { "" } else { "--storage-opt vfs.ignore_chown_errors=true" };
        // crun refuses control groups of both versions beside each other.
        let runtime = if works("runc", &["--version"]) { "--runtime runc" } else { "" };
        rig.program(
            "podman",
            &format!(
                "PATH=${{PATH#*:}} exec podman --root {folder}/root --runroot {folder}/run --tmpdir {folder}/tmp \
                --storage-driver vfs {options} --cgroup-manager cgroupfs --events-backend file {runtime} \"$@\""
            ),
        );
        let import = format!("podman import {image} localhost/simserver:1");
        let try_out = format!("{} localhost/simserver:1 /bin/simserver --help", create_words(rig));
        let (code, told) =
            podman.script(&format!("{import} && podman run --rm {try_out}")).run().ended();
        if code != Some(0) {
            let wanted = if podman.user.is_empty() { "podman" } else { "rootless podman" };
            skip_or_fail(wanted, &format!("podman that runs containers here ({})", told.trim()));
            return None;
        }
        rig.set("docker", "podman");
        Some(podman)
    }

    /// Prepares a call of a shell script by the podman's user.
    fn script(&self, script: &str) -> Invocation {
        self.rig.shell_of(&self.user, script)
    }

    #[track_caller]
    fn shell(&self, script: &str) {
        self.script(script).run().succeeds().ignores_stdout().ignores_stderr();
    }

    /// Prepares a call of gpuctl by the podman's user.
    #[track_caller]
    fn gpuctl(&self, words: &str) -> Invocation {
        self.script(&format!("exec gpuctl {words}"))
    }

    /// Makes a container and configures it as a service of this name; returns the container's name.
    fn container(&self, name: &str, options: &str, flags: &str) -> String {
        let rig = &self.rig;
        let service = rig.container(name).not_installed().set("stop_timeout", "1s").add();
        let (mark, port) = (service.mark(), service.port());
        self.shell(&format!(
            "podman create --name {mark} {} {options} localhost/simserver:1 /bin/simserver --name {mark} --port {port} {flags}",
            create_words(rig)
        ));
        mark.to_owned()
    }

    fn fact(&self, container: &str, field: &str) -> String {
        let words = format!("podman container inspect --format '{{{{{field}}}}}' {container}");
        // podman warns of control groups of version 1 with each call.
        self.script(&words).run().succeeds().ignores_stderr().text().trim().to_owned()
    }

    fn doctor(&self) -> Value {
        let report = self.gpuctl("doctor --json").run().ignores_stderr().ended().1;
        serde_json::from_str(&report[report.find('{').unwrap()..]).unwrap()
    }

    /// Returns what `config init` writes on this machine, as if nothing were configured yet.
    fn first_configuration(&self) -> Table {
        self.rig.set("docker", "docker");
        let path = self.rig.path("home/found.toml");
        let init = format!("config init --force --output {}", path.display());
        self.gpuctl(&init).run().succeeds().stdout_has("found.toml");
        self.rig.set("docker", "podman");
        let text = std::fs::read_to_string(path).unwrap();
        eprintln!("{text}");
        text.parse().unwrap()
    }

    fn service(&self, name: &str) -> Value {
        self.gpuctl("status --json").run().succeeds().json()["services"][name].clone()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // This ends podman's containers and lets go of what it has mounted.
        self.script("podman rm --all --force --time 0").run().ended();
    }
}

pub fn verdict(report: &Value, id: &str) -> Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["id"] == id).unwrap()["verdict"].clone()
}

fn create_words(rig: &Rig) -> String {
    let card = rig.card.folder().display();
    format!(
        "--ulimit nofile=1024:1024 --ulimit nproc=1024:1024 --network host --env SIMGPU_DIR={card} --volume {card}:{card}"
    )
}

#[test]
fn podman_starts_stops_and_owns_what_dockers_client_would() {
    let Some(podman) = Podman::find() else { return };
    starts_stops_and_owns(&podman);
}

#[test]
fn podman_of_a_user_does_so_without_root() {
    let Some(podman) = Podman::rootless() else { return };
    starts_stops_and_owns(&podman);
}

fn starts_stops_and_owns(podman: &Podman) {
    let rig = &podman.rig;
    let voice = podman.container("voice", "", "--vram 1000 --fork 2 --ignore-term");
    podman.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    until("it holds its memory", || rig.card.used_mb() == 1000);
    let told = podman.service("voice");
    assert_eq!((&told["state"], &told["used_mb"]), (&json!("ready"), &json!(1000)));
    assert_eq!(told["pids"][0].to_string(), podman.fact(&voice, ".State.Pid"));

    // podman cannot pause a container that has no control group of its own.
    let halt = if podman.user.is_empty() { "pause" } else { "stop --time 0" };
    podman.shell(&format!("podman {halt} {voice}"));
    if podman.user.is_empty() {
        assert_eq!(podman.service("voice")["detail"], "the container is paused");
    }
    podman.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    // podman's default is ten seconds, not the one second of this service.
    let stop = podman.gpuctl("stop voice --json --quiet").run().succeeds().json();
    assert_eq!(stop["steps"][0]["note"], "not gone within 1s, killed");
    assert_eq!(podman.fact(&voice, ".State.Status"), "exited");
    podman.gpuctl("start voice --quiet").run().succeeds();
    podman.gpuctl("stop voice --force").run().succeeds().stdout_has("stopped voice").progress();
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn a_first_configuration_has_the_containers_of_podman_where_docker_has_none() {
    let Some(podman) = Podman::find() else { return };
    are_found_once(&podman);
}

#[test]
fn a_first_configuration_has_the_containers_of_a_users_own_podman() {
    let Some(podman) = Podman::rootless() else { return };
    are_found_once(&podman);
}

fn are_found_once(podman: &Podman) {
    let voice = podman.container("voice", "", "--vram 1000");
    podman.shell(&format!("podman start {voice}"));
    until("it holds its memory", || podman.rig.card.used_mb() == 1000);
    let found = podman.first_configuration();
    assert_eq!(found["docker"].as_str(), Some("podman"));
    let services = found["services"].as_table().unwrap();
    let is_own = |service: &&toml::Value| service.to_string().contains(podman.rig.token());
    let own: Vec<&toml::Value> = services.values().filter(is_own).collect();
    assert_eq!(own.len(), 1, "{own:?}");
    assert_eq!(own[0]["container"].as_str(), Some(voice.as_str()));
    assert_eq!(own[0]["vram_mb"].as_integer(), Some(1000));
}

#[test]
fn podman_without_a_healthcheck_is_ready_when_it_lives() {
    let Some(podman) = Podman::find() else { return };
    let rig = &podman.rig;
    let voice = podman.container("voice", "", "");
    let settings = format!("type = 'docker'\ncontainer = '{voice}'\nvram_mb = 1000");
    rig.set("services.voice", settings.parse::<Table>().unwrap());
    rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    assert_eq!(podman.service("voice")["state"], "ready");
    rig.gpuctl("stop voice").run().succeeds().stdout_has("stopped voice").progress();
}

#[test]
fn what_fails_under_podman_is_told_by_its_own_reason_and_log() {
    let Some(podman) = Podman::find() else { return };
    let rig = &podman.rig;
    podman.container("voice", "", "--nonsense");
    let start = rig.gpuctl("start voice --quiet").run().fails("start_failed");
    start.stderr_has("exited with code 2").stderr_has("unexpected argument '--nonsense'");
    rig.container("absent").not_installed().add();
    let how = format!("podman create --name {} --device nvidia.com/gpu=all", rig.mark("absent"));
    rig.gpuctl("start absent").run().fails("not_found").stderr_has(&how);
    // podman is called by the name of Docker's client here, and speaks of that.
    rig.set("docker", "docker");
    let next =
        "echo 'Emulate Docker CLI using podman. Create /etc/containers/nodocker to quiet msg.' >&2";
    rig.program("docker", &format!("{next}\nexec podman \"$@\""));
    podman.container("broken", "--entrypoint /bin/absent", "");
    let told = rig.gpuctl("start broken --quiet").run().fails("start_failed");
    let told = told.stderr_has("/bin/absent").stderr_text();
    assert!(!told.contains("Emulate"), "{told}");
    rig.gpuctl("start absent").run().fails("not_found").stderr_has("docker create --name");
    // A container of podman cannot have ended with an engine, so a failed start is not repeated.
    let calls = rig.file("calls", "");
    rig.program("docker", &format!("echo \"$1\" >>'{}'\nexec podman \"$@\"", calls.display()));
    rig.gpuctl("start voice --quiet").run().fails("start_failed").stderr_has("'--nonsense'");
    let calls = std::fs::read_to_string(calls).unwrap();
    assert_eq!(calls.lines().filter(|call| *call == "start").count(), 1, "{calls}");
}

#[test]
fn a_project_of_four_services_walks_through_the_phases_under_podman() {
    let Some(podman) = Podman::find() else { return };
    let rig = &podman.rig;
    let project = rig.mark("mcn");
    let services =
        [("vidi", 12000, 2), ("cosyvoice", 4000, 3), ("ollama", 6000, 3), ("comfyui", 20000, 4)];
    let create = |name: &str, vram: u32, port: u64| {
        let container = format!("{project}_{name}_1");
        podman.shell(&format!(
            "podman rm --force --ignore --time 0 {container}; podman create --name {container} {} \
            --label com.docker.compose.project={project} --label com.docker.compose.service={name} \
            localhost/simserver:1 /bin/simserver --name {container} --vram {vram} --port {port}",
            create_words(rig)
        ));
        container
    };
    let mut ports = Vec::new();
    for (name, vram, phase) in services {
        let port = u64::from(rig.port());
        ports.push(port);
        create(name, vram, port);
        let settings = format!(
            "type = 'compose'\nproject = '{project}'\nservice = '{name}'\nvram_mb = {vram}\nphases = [{phase}]\n\
            health = 'http://127.0.0.1:{port}/health'"
        );
        rig.set(&format!("services.{name}"), settings.parse::<Table>().unwrap());
    }
    let prepare = |phase: u32| {
        rig.gpuctl(&format!("prepare-phase {phase}")).run().succeeds().ignores_stdout().progress();
        let memory: u32 = services.iter().filter(|it| it.2 == phase).map(|it| it.1).sum();
        assert_eq!(rig.card.used_mb(), u64::from(memory), "phase {phase}");
    };
    prepare(2);
    prepare(3);
    // The container is made anew by hand, and started.
    let made = create("cosyvoice", 4000, ports[1]);
    podman.shell(&format!("podman start {made}"));
    prepare(3);
    podman.shell(&format!("podman restart --time 1 {made}"));
    prepare(4);
    // The container is taken away by hand.
    podman.shell(&format!("podman rm --force --time 0 {project}_vidi_1"));
    rig.gpuctl("prepare-phase 2").run().fails("not_found").stderr_has("up --detach vidi");
    create("vidi", 12000, ports[0]);
    prepare(2);
    rig.gpuctl("release-all").run().succeeds().stdout_has("stopped vidi").progress();
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn doctor_knows_podman_and_a_card_that_a_container_of_it_was_given() {
    let Some(podman) = Podman::find() else { return };
    podman.container("voice", "--device /dev/null:/dev/nvidia0", "");
    let report = podman.doctor();
    for id in ["docker.client", "docker.engine", "docker.container", "docker.gpu", "docker.removal"]
    {
        assert_eq!(verdict(&report, id), "pass", "{id}: {report}");
    }
}

#[test]
fn what_doctor_has_done_about_a_container_of_podman_podman_can_do() {
    let Some(podman) = Podman::find() else { return };
    podman.container("voice", "--restart always", "");
    let report = podman.doctor();
    let fix = |id: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["id"] == id).unwrap()["fix"].clone()
    };
    assert_eq!(fix("docker.gpu"), "recreate it with --device nvidia.com/gpu=all");
    assert_eq!(fix("docker.restart"), "recreate it with --restart=unless-stopped");
}

/// Devices as the NVIDIA container toolkit describes them (`nvidia-ctk cdi generate`); none of them
/// is a real card.
pub const DEVICES: &str = "cdiVersion: '0.5.0'
kind: nvidia.com/gpu
devices:
  - name: all
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia0
          hostPath: /dev/null
  - name: '7'
    containerEdits:
      deviceNodes:
        - path: /dev/nvidia7
          hostPath: /dev/null
";

#[test]
fn a_card_by_the_container_device_interface_is_one_before_and_after_the_first_start() {
    let Some(podman) = Podman::find() else { return };
    let rig = &podman.rig;
    // podman looks for devices in /run, so it gets a /run of its own, which nobody else sees.
    let described = rig.file("devices.yaml", DEVICES);
    let script = format!(
        "mount -t tmpfs none /run && mkdir /run/cdi && cp {} /run/cdi/nvidia.yaml && touch {} && exec sleep infinity",
        described.display(),
        rig.path("is-mounted").display()
    );
    let script = rig.file("mounts", &script);
    let mounts = rig.by_hand(&format!("unshare --mount sh {}", script.display()));
    until("its /run is mounted", || rig.path("is-mounted").exists());
    std::fs::rename(rig.path("bin/podman"), rig.path("bin/podman.outside")).unwrap();
    let inside = format!("nsenter --mount=/proc/{}/ns/mnt --wd=/", mounts.pid());
    let next = rig.path("bin/podman.outside");
    rig.program("podman", &format!("exec {inside} {} \"$@\"", next.display()));

    let voice = podman.container("voice", "--device nvidia.com/gpu=all", "--vram 1000");
    let is_told = |when: &str| {
        let report = podman.doctor();
        assert_eq!(verdict(&report, "docker.gpu"), "pass", "{when}: {report}");
    };
    is_told("before its first start");
    // gpuctl watches GPU 0.
    podman.container("other", "--device nvidia.com/gpu=7", "");
    let report = podman.doctor();
    let checks = report["checks"].as_array().unwrap();
    let of_other = |check: &&Value| check["id"] == "docker.gpu" && check["subject"] == "other";
    let told = checks.iter().find(of_other).unwrap();
    assert!(told["message"].as_str().unwrap().contains("was given GPU 7"), "{told}");
    podman.container("web", "", "");
    let found = podman.first_configuration();
    let services = found["services"].as_table().unwrap();
    assert_eq!(services[&voice]["container"].as_str(), Some(voice.as_str()));
    assert!(!services.contains_key(&rig.mark("web")), "it has no card: {services:?}");
    rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    assert_eq!(podman.service("voice")["state"], "ready");
    if std::path::Path::new("/bin/busybox").exists() {
        podman.shell(&format!("podman exec {voice} /bin/busybox test -c /dev/nvidia0"));
    }
    is_told("while it runs");
    rig.gpuctl("stop voice").run().succeeds().stdout_has("stopped voice").progress();
    is_told("when it has ended");
    // The containers are removed while the mounts that they were made in are still there.
    podman.shell("podman rm --all --force --time 0");
}
