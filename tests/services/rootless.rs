//! Tests of a user's own rootless Docker engine, with which gpuctl works as with root's, without
//! root's rights.

use rig::{Bystander, Invocation, Rig, root_or_skip, skip_or_fail, until, works};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Paths of the script that starts a rootless engine, from Debian's docker.io or from Docker's own
/// packages.
const SCRIPTS: [&str; 3] = [
    "/usr/bin/dockerd-rootless.sh",
    "/usr/share/docker.io/contrib/dockerd-rootless.sh",
    "/usr/libexec/docker/dockerd-rootless.sh",
];

/// A script that becomes the user $1 and starts the engine $2 in folders below $3. What it needs of
/// root, it gets in mounts that nobody else sees: a user name, IDs to give to containers, and the
/// device of a network in user space.
const START: &str = r#"set -e
cd "$3"
printf 'rootless:x:%s:%s::%s/home:/bin/sh\n' "$1" "$1" "$3" | cat /etc/passwd - >passwd
printf 'rootless:x:%s:\n' "$1" | cat /etc/group - >group
echo 'rootless:1000000:65536' >subid
for file in passwd group; do mount --bind $file /etc/$file; done
for file in subuid subgid; do mount --bind subid /etc/$file; done
mount -t tmpfs none /dev/net
mknod -m 666 /dev/net/tun c 10 200
exec setpriv --reuid "$1" --regid "$1" --clear-groups env HOME="$3/home" XDG_RUNTIME_DIR="$3/run" "$2" \
    --storage-driver=vfs --iptables=false --ip6tables=false
"#;

/// Shell words that lead the client to the engine by a variable.
const BY_HOST: &str = "export DOCKER_HOST=unix://$XDG_RUNTIME_DIR/docker.sock; ";
/// Shell words that lead the client to the engine by the context that it was told to use.
const BY_CONTEXT: &str = "unset DOCKER_HOST; ";

/// A rootless engine, whose user owns nothing else on this machine.
struct Rootless {
    rig: Rig,
    /// Words that, put before a command, run it as the engine's user.
    user: String,
    engine: Bystander,
}

impl Rootless {
    /// Starts an engine. `None`, after reporting the skip, if there is none or the kernel does not
    /// let users have one.
    #[track_caller]
    fn find() -> Option<Rootless> {
        let is_there = |name: &str| works("sh", &["-c", &format!("command -v {name}")]);
        let programs = ["rootlesskit", "newuidmap", "slirp4netns", "docker", "dockerd", "unshare"];
        let script = SCRIPTS.into_iter().find(|script| Path::new(script).exists());
        let Some(script) = script.filter(|_| programs.into_iter().all(is_there)) else {
            skip_or_fail(
                "rootless",
                "rootless Docker (its script, rootlesskit, uidmap, slirp4netns)",
            );
            return None;
        };
        if !root_or_skip() {
            return None;
        }
        let rig = Rig::new();
        let (image, start) = (rig.image(), rig.file("start-engine", START));
        let user = rig.as_a_user()?;
        let id = user.split(' ').nth(2)?;
        let log = rig.path("engine.log");
        let engine = rig.by_hand(&format!(
            "unshare --mount sh {} {id} {script} {} >{} 2>&1",
            start.display(),
            start.parent()?.display(),
            log.display()
        ));
        let mut rootless = Rootless { rig, user, engine };
        until("the engine answers or has ended", || {
            !rootless.engine.is_alive()
                || rootless.script("docker version").run().ended().0 == Some(0)
        });
        if !rootless.engine.is_alive() {
            let told = fs::read_to_string(log).unwrap_or_default();
            skip_or_fail(
                "rootless",
                &format!("rootless Docker that starts here ({})", told.trim()),
            );
            return None;
        }
        rootless.done(&format!("docker import {} simserver:1", image.display()));
        Some(rootless)
    }

    fn script(&self, script: &str) -> Invocation {
        self.rig.shell_of(&self.user, &format!("{BY_HOST}{script}"))
    }

    #[track_caller]
    fn done(&self, script: &str) -> String {
        self.script(script).run().succeeds().ignores_stderr().text().trim().to_owned()
    }

    /// Makes a container that publishes its port, and configures it as a service of this name;
    /// returns the container's name.
    fn container(&self, name: &str, flags: &str) -> String {
        self.container_in(name, "bridge", flags)
    }

    fn container_in(&self, name: &str, network: &str, flags: &str) -> String {
        let rig = &self.rig;
        let service = rig.container(name).not_installed().set("stop_timeout", "1s").add();
        let (mark, port, card) = (service.mark(), service.port(), rig.card.folder().display());
        self.done(&format!(
            "docker create --name {mark} --network {network} --publish 127.0.0.1:{port}:{port} --env SIMGPU_DIR={card} --volume {card}:{card} \
             simserver:1 /bin/simserver --name {mark} --host 0.0.0.0 --port {port} {flags}"
        ));
        mark.to_owned()
    }

    fn fact(&self, container: &str, field: &str) -> String {
        self.done(&format!("docker container inspect --format '{{{{{field}}}}}' {container}"))
    }
}

impl Drop for Rootless {
    fn drop(&mut self) {
        // This makes the engine let go of what it has mounted.
        self.script("docker rm --force $(docker ps --all --quiet)").run().ended();
    }
}

#[test]
fn a_users_own_engine_is_worked_with_as_roots_is_by_its_address_and_by_context() {
    let Some(rootless) = Rootless::find() else { return };
    let rig = &rootless.rig;
    let voice = rootless.container("voice", "--vram 1000 --fork 2 --ignore-term");
    let other = rig.mark("other");
    rootless
        .done(&format!("docker run --detach --name {other} simserver:1 /bin/simserver --port 1"));
    rootless
        .done("docker context create mine --docker host=$DOCKER_HOST && docker context use mine");
    for address in [BY_HOST, BY_CONTEXT] {
        let gpuctl =
            |words: &str| rig.shell_of(&rootless.user, &format!("{address}exec gpuctl {words}"));
        gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
        until("it holds its memory", || rig.card.used_mb() == 1000);
        let status: Value = gpuctl("status --json").run().succeeds().json();
        let told = &status["services"]["voice"];
        assert_eq!(
            (&told["state"], &told["used_mb"]),
            (&json!("ready"), &json!(1000)),
            "{address}"
        );
        assert_eq!(told["pids"][0].to_string(), rootless.fact(&voice, ".State.Pid"));

        let stop = gpuctl("stop voice --json --quiet").run().succeeds().json();
        assert_eq!(stop["steps"][0]["note"], "not gone within 1s, killed");
        assert_eq!(rootless.fact(&voice, ".State.ExitCode"), "137");
        gpuctl("start voice --quiet").run().succeeds();
        gpuctl("release-all --force").run().succeeds().stdout_has("stopped voice").progress();
        assert_eq!(rig.card.used_mb(), 0);
    }
    assert_eq!(rootless.fact(&other, ".State.Running"), "true", "it is nobody's to stop");
}

#[test]
fn doctor_tells_of_a_container_that_a_rootless_engine_hides() {
    let Some(rootless) = Rootless::find() else { return };
    let rig = &rootless.rig;
    rootless.container("voice", "");
    rootless.container_in("hidden", "host", "");
    rootless.container("direct", "");
    rig.set("services.direct.health", "http://{container}:1/");
    let report = rootless.script("exec gpuctl doctor --json").run().ignores_stderr().ended().1;
    let report: Value = serde_json::from_str(&report[report.find('{').unwrap()..]).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let found = |service: &str| {
        let is_meant = |it: &&Value| it["id"] == "docker.ports" && it["subject"] == service;
        checks.iter().find(is_meant).unwrap_or_else(|| panic!("{report}"))
    };
    assert_eq!(found("voice")["verdict"], "pass");
    for service in ["hidden", "direct"] {
        let check = found(service);
        assert_eq!(check["verdict"], "warn", "{check}");
        assert!(check["message"].as_str().unwrap().contains("which is rootless"), "{check}");
    }
}
