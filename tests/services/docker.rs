//! Tests of containers on a real engine: what is seen of them, how they are stopped, and what the
//! engine is asked.

use super::podman::{DEVICES, verdict};
use rig::{Rig, command, skip_or_fail, until};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use toml::Table;

/// Returns one of the engine's facts about a container, as in
/// `fact(&rig, voice.mark(), ".State.ExitCode")`.
fn fact(rig: &Rig, container: &str, field: &str) -> String {
    let format = format!("{{{{{field}}}}}");
    rig.docker(&["container", "inspect", "--format", &format, container]).trim().to_owned()
}

fn status(rig: &Rig) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()
}

#[test]
fn memory_on_the_card_is_told_to_the_containers_whose_processes_hold_it() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").vram(4000).server("--fork 2").add();
    rig.container("ollama").vram(6000).server("--vram 5000").add();
    rig.container("idle").vram(9000).add();
    let simserver = voice.command().split(' ').next().unwrap();
    let _desktop =
        rig.by_hand(&format!("{simserver} --name {} --vram 800 --graphics", rig.mark("desktop")));
    until("the desktop is there", || rig.card.used_mb() == 800);
    for service in ["voice", "ollama"] {
        rig.gpuctl("start").arg(service).run().succeeds().stdout_has(service).progress();
    }

    let status = status(&rig);
    let mut owners: Vec<(Value, Value)> = Vec::new();
    for process in status["vram"]["processes"].as_array().unwrap() {
        owners.push((process["service"].clone(), process["memory_mb"].clone()));
    }
    owners.sort_by_key(|owner| format!("{owner:?}"));
    let expected: [(Value, Value); 4] = [
        (Value::Null, json!(800)),
        (json!("ollama"), json!(5000)),
        (json!("voice"), json!(2000)),
        (json!("voice"), json!(2000)),
    ];
    assert_eq!(owners, expected);
    let used = |service: &str| status["services"][service]["used_mb"].clone();
    assert_eq!((used("voice"), used("ollama"), used("idle")), (json!(4000), json!(5000), json!(0)));
    assert_eq!(status["vram"]["committed_mb"], 10000, "what they declare, if they hold less");
    let pid: i32 = fact(&rig, voice.mark(), ".State.Pid").parse().unwrap();
    assert_eq!(status["services"]["voice"]["pids"], json!([pid]));
    assert_eq!(status["services"]["idle"]["state"], "stopped");
    assert_eq!(status["services"]["idle"]["detail"], Value::Null);
}

#[test]
fn a_container_that_takes_no_notice_of_term_is_killed_after_its_stop_timeout() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").set("stop_timeout", "1s").server("--ignore-term").add();
    rig.gpuctl("start voice").run().succeeds().stdout_has("voice").progress();
    let stop = rig.gpuctl("stop voice --json --quiet").run().succeeds().json();
    assert_eq!(stop["stopped"], json!(["voice"]));
    assert_eq!(fact(&rig, voice.mark(), ".State.Running"), "false");
    assert_eq!(fact(&rig, voice.mark(), ".State.ExitCode"), "137");
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn the_engine_is_told_how_long_a_container_may_take_to_stop() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").set("stop_timeout", "50s").add();
    rig.gpuctl("start voice").run().succeeds().stdout_has("voice").progress();
    let calls = rig.docker_calls(|| {
        rig.gpuctl("stop voice").run().succeeds().stdout_has("voice").progress();
    });
    assert!(calls.contains(&format!("stop -t 50 -- {}", voice.mark())), "{calls:?}");
}

#[test]
fn a_forced_stop_kills_the_container_at_once() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").set("stop_timeout", "1h").server("--term-delay 1h").add();
    rig.gpuctl("start voice").run().succeeds().stdout_has("voice").progress();
    let calls = rig.docker_calls(|| {
        rig.gpuctl("stop voice --force").run().succeeds().stdout_has("voice").progress();
    });
    assert!(calls.contains(&format!("kill -- {}", voice.mark())), "{calls:?}");
    assert!(!calls.iter().any(|call| call.starts_with("stop")), "{calls:?}");
    assert_eq!(fact(&rig, voice.mark(), ".State.ExitCode"), "137");
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn without_a_health_check_of_ours_the_one_of_the_container_is_asked() {
    let Some(rig) = Rig::with_docker() else { return };
    if !Path::new("/bin/busybox").exists() {
        return rig::skip_or_fail("busybox", "busybox for the image");
    }
    let other = rig.container("other").add();
    let voice = rig.mark("voice");
    let card = rig.card.folder().display().to_string();
    let (mount, check) = (format!("{card}:{card}"), format!("test -e {card}/well"));
    let image = fact(&rig, other.mark(), ".Config.Image");
    let health = ["--health-cmd", &check, "--health-interval", "100ms", "--health-retries", "1"];
    rig.owns_container(&voice);
    let create = ["create", "--name", &voice, "--network", "none", "--volume", &mount];
    rig.docker(&[&create[..], &health, &[&image, "/bin/simserver"]].concat());
    let settings = format!("type = 'docker'\ncontainer = '{voice}'\nvram_mb = 1000");
    rig.set("services.voice", settings.parse::<Table>().unwrap());

    let start = rig.gpuctl("start voice").spawn();
    let voice = || status(&rig)["services"]["voice"].clone();
    until("its check has failed", || {
        voice()["detail"].as_str().is_some_and(|why| why.contains("HEALTHCHECK says unhealthy"))
    });
    assert_eq!(voice()["state"], "starting");
    assert!(!start.stderr().contains("ready"), "{}", start.stderr());
    fs::write(rig.card.folder().join("well"), "").unwrap();
    start.wait().succeeds().stdout_has("started voice").progress();
    assert_eq!(voice()["state"], "ready");
}

#[test]
fn however_many_containers_there_are_the_engine_is_asked_once() {
    let Some(rig) = Rig::with_docker() else { return };
    let names = ["voice", "ollama", "tts"];
    let mut all: Vec<String> = Vec::new();
    for name in names {
        all.push(rig.container(name).vram(100).add().mark().to_owned());
    }
    all.push(rig.container("absent").not_installed().add().mark().to_owned());
    rig.docker(&["start", &all[0], &all[1]]);
    until("both hold their memory", || rig.card.claims().len() == 2 && rig.card.used_mb() == 200);
    let calls = rig.docker_calls(|| {
        let status = status(&rig);
        assert_eq!(status["services"]["tts"]["state"], "stopped");
        assert_eq!(status["services"]["absent"]["state"], "stopped");
        assert_eq!(status["services"]["voice"]["used_mb"], 100);
        assert_eq!(status["services"]["ollama"]["used_mb"], 100);
    });
    assert_eq!(calls, [format!("container inspect -- {}", all.join(" "))]);
}

#[test]
fn the_engine_is_left_alone_where_no_container_is_configured() {
    let Some(rig) = Rig::with_docker() else { return };
    rig.native("vidi").add();
    let calls = rig.docker_calls(|| drop(status(&rig)));
    assert_eq!(calls, [""; 0]);
}

#[test]
fn an_image_of_that_name_is_no_container() {
    let Some(rig) = Rig::with_docker() else { return };
    let other = rig.container("other").add();
    let voice = rig.container("voice").not_installed().add();
    let image = fact(&rig, other.mark(), ".Config.Image");
    rig.docker(&["tag", &image, voice.mark()]);
    // `docker inspect` without a type would have found the image.
    assert!(rig.docker(&["inspect", voice.mark()]).contains("\"RepoTags\""));
    let start = rig.gpuctl("start voice").run();
    let state = status(&rig)["services"]["voice"].clone();
    rig.docker(&["rmi", voice.mark()]);
    start.fails("not_found").stderr_has("there is no Docker container named");
    assert_eq!(state["state"], "stopped");
    assert!(state["detail"].as_str().unwrap().contains("there is no Docker container"));
}

#[test]
fn a_container_may_be_configured_by_its_id() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").vram(4000).add();
    let id = fact(&rig, voice.mark(), ".Id");
    for id in [&id[..], &id[..12]] {
        rig.set("services.voice.container", id);
        rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
        let status = status(&rig);
        assert_eq!(status["services"]["voice"]["state"], "ready");
        assert_eq!(status["services"]["voice"]["used_mb"], 4000);
        rig.gpuctl("stop voice").run().succeeds().stdout_has("stopped voice").progress();
        assert_eq!(fact(&rig, voice.mark(), ".State.Running"), "false");
    }
}

#[test]
fn a_container_that_ended_badly_is_stopped_and_its_end_is_told() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("voice").server("--exit-after 10ms --exit-code 3").add();
    rig.docker(&["start", voice.mark()]);
    until("it has ended", || fact(&rig, voice.mark(), ".State.Running") == "false");
    let status = status(&rig);
    assert_eq!(status["services"]["voice"]["state"], "stopped");
    assert_eq!(status["services"]["voice"]["detail"], "exited with code 3");
    // Nothing is left to stop, and nothing to complain about.
    rig.gpuctl("stop voice").run().succeeds().stdout_has("voice: nothing to do");
    rig.gpuctl("release-all").run().succeeds().stdout_has("nothing to do");
}

#[test]
fn a_container_that_could_not_be_removed_is_an_error_and_in_nobodys_way() {
    let rig = Rig::new();
    let voice = rig.container("voice").phases([3]).not_installed().add();
    let vidi = rig.native("vidi").phases([2]).add();
    let state = json!({"Status": "dead", "Dead": true, "ExitCode": 137});
    let one = json!({"Id": "feed", "Name": format!("/{}", voice.mark()), "State": state});
    rig.program("docker", &format!("printf '%s\\n' '[' '{one}' ']'"));
    rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("started vidi").progress();

    let told = &status(&rig)["services"]["voice"];
    assert_eq!((&told["state"], &told["used_mb"]), (&json!("error"), &json!(0)));
    assert_eq!(told["detail"], "dead: the engine could not remove it");
    rig.gpuctl("stop voice").run().succeeds().stdout_has("voice: kept vidi");
    for words in
        ["start voice", "start voice --dry-run", "prepare-phase 3", "prepare-phase 3 --dry-run"]
    {
        let refused = rig.gpuctl(words).run().fails("start_failed");
        let refused = refused.stderr_has("voice: dead: the engine could not remove it");
        drop(refused.stderr_has(&format!("docker rm --force {}", voice.mark())));
    }
    assert!(vidi.is_healthy(), "nothing was stopped for it");
    rig.gpuctl("release-all").run().succeeds().stdout_has("stopped vidi").progress();
}

#[test]
fn a_name_that_the_engine_could_take_for_an_option_is_refused_by_the_configuration() {
    let rig = Rig::new();
    for name in ["--help", "-v", "", "a b", "../a", "a/b", "a;b", "a\nb"] {
        rig.container("voice").not_installed().set("container", name).add();
        let error = rig.gpuctl("config check --json").run().fails("config").json();
        let message = error["error"]["message"].as_str().unwrap();
        assert!(message.contains("services.voice.container"), "{name:?}: {message}");
        rig.gpuctl("start voice").run().fails("config").stderr_has("services.voice.container");
    }
}

#[test]
fn of_several_that_cannot_be_ended_each_is_told() {
    let Some(rig) = Rig::with_docker() else { return };
    let services = ["voice", "ollama"].map(|name| rig.container(name).phases([3]).add());
    rig.gpuctl("prepare-phase 3 --quiet").run().succeeds();
    let refuses = "case \"$1\" in stop) echo 'no way' >&2; exit 1 ;; esac";
    rig.program("docker", &format!("{refuses}\nPATH=${{PATH#*:}} exec docker \"$@\""));
    let told = rig.gpuctl("release-all").run().fails("stop_failed").stderr_text();
    for service in services {
        let failure = format!(": docker stop {}: no way\n", service.mark());
        assert_eq!(told.matches(&failure).count(), 1, "{told}");
    }
}

#[test]
fn a_container_that_is_being_removed_is_waited_for_and_gone_is_as_good_as_stopped() {
    // No real engine can be held in the middle of a removal, so a script answers in its place.
    let rig = Rig::new();
    let voice =
        json!([{"Id": "1", "Name": "/voice", "State": {"Status": "removing", "Dead": false}}]);
    rig.file("home/voice.json", &voice.to_string());
    let missing = "echo 'Error response from daemon: No such container: voice' >&2; exit 1";
    rig.program(
        "docker",
        &format!(
            "case $1 in
            version) echo 28.2.2 ;;
            stop) rm voice.json; {missing} ;;
            container) if [ -e voice.json ]; then cat voice.json; else echo '[]'; {missing}; fi ;;
            esac"
        ),
    );
    rig.set("services.voice", toml::toml! { type = "docker" container = "voice" vram_mb = 1 });
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["voice"]["state"], "stopping");
    assert_eq!(status["services"]["voice"]["detail"], "the container is being removed");
    let stopped = rig.gpuctl("stop voice --json").run().succeeds().progress().json();
    assert_eq!(stopped["stopped"], json!(["voice"]));
    rig.gpuctl("stop voice").run().fails("not_found").stderr_has("no Docker container");
}

#[test]
fn a_forced_stop_waits_for_a_removal_that_has_begun() {
    let Some(rig) = Rig::with_docker() else { return };
    if !Path::new("/bin/busybox").exists() {
        return rig::skip_or_fail("busybox", "busybox for the image");
    }
    let voice = rig.mark("voice");
    rig.owns_container(&voice);
    // The removal of so many files takes longer than a call of Docker's client.
    let files = "i=0; while [ $i -lt 20000 ]; do : >/f$i; i=$((i+1)); done; echo; exec sleep 1000";
    let create = ["run", "--detach", "--rm", "--network", "none", "--name", &voice];
    rig.docker(&[&create[..], &[rig.engine().image(), "/bin/sh", "-c", files]].concat());
    until("its files are written", || !rig.docker(&["logs", &voice]).is_empty());
    rig.set(
        "services.voice",
        toml::toml! { type = "docker" container = (voice.as_str()) vram_mb = 1 },
    );
    // The container ends just before gpuctl kills it.
    let next = "PATH=${PATH#*:}; if [ $1 = kill ]; then docker \"$@\"; fi; exec docker \"$@\"";
    rig.program("docker", next);
    let stopped = rig.gpuctl("stop voice --force --json").run().succeeds().ignores_stderr().json();
    assert_eq!(stopped["stopped"], json!(["voice"]));
    let filter = format!("name={voice}");
    assert_eq!(rig.docker(&["ps", "--all", "--quiet", "--filter", &filter]), "");
}

#[test]
fn what_the_client_has_said_counts_before_its_end() {
    // Docker's own client ends so soon after its answer that nobody would see which of the two
    // gpuctl waits for.
    let rig = Rig::new();
    let voice = json!([{"Id": "1", "Name": "/voice", "State": {"Status": "exited"}}]);
    rig.file("home/voice.json", &serde_json::to_string_pretty(&voice).unwrap());
    rig.program(
        "docker",
        "cat voice.json; until [ -s shown.json ]; do sleep 0.01; done; touch ended",
    );
    rig.set("services.voice", toml::toml! { type = "docker" container = "voice" vram_mb = 1 });
    rig.shell("gpuctl status --json >shown.json").run().succeeds();
    until("the client ends", || rig.path("home/ended").exists());
    let shown = fs::read_to_string(rig.path("home/shown.json")).unwrap();
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["services"]["voice"]["state"], "stopped");
}

/// Docker has the Container Device Interface since version 25, and cannot be configured for it
/// before.
#[test]
fn a_card_by_the_container_device_interface_is_one_before_and_after_the_first_start() {
    let version = command("dockerd").arg("--version").output();
    let version = version.map(|it| String::from_utf8_lossy(&it.stdout).into_owned());
    let major = version.iter().flat_map(|it| it.split([' ', '.'])).find_map(|it| it.parse().ok());
    if major.is_some_and(|major: u32| major < 25) {
        return skip_or_fail("cdi", "Docker engine with the Container Device Interface");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("nvidia.yaml"), DEVICES).unwrap();
    let network =
        DEVICES.replace("nvidia.com/gpu", "vendor.com/net").replace("/dev/nvidia", "/dev/net");
    fs::write(folder.path().join("net.yaml"), network).unwrap();
    let configuration = json!({"features": {"cdi": true}, "cdi-spec-dirs": [folder.path()]});
    let Some(rig) = Rig::with_docker_of_its_own(&configuration.to_string()) else { return };
    let card = rig.card.folder().display();
    let create = |name: &str, device: &str| {
        let service = rig.container(name).not_installed().set("stop_timeout", "1s").add();
        let (mark, image) = (service.mark().to_owned(), rig.engine().image());
        rig.owns_container(&mark);
        let words = format!(
            "create --name {mark} --network host --device {device} --env SIMGPU_DIR={card} --volume {card}:{card} \
             {image} /bin/simserver --name {mark} --port {} --vram 1000",
            service.port()
        );
        rig.docker(&words.split_whitespace().collect::<Vec<_>>());
        mark
    };
    let voice = create("voice", "nvidia.com/gpu=all");
    let report = || -> Value {
        let told = rig.gpuctl("doctor --json").run().ignores_stderr().ended().1;
        serde_json::from_str(&told).unwrap()
    };
    let is_told = |when: &str| {
        let report = report();
        assert_eq!(verdict(&report, "docker.gpu"), "pass", "{when}: {report}");
    };
    is_told("before its first start");
    rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    assert_eq!(status(&rig)["services"]["voice"]["state"], "ready");
    if Path::new("/bin/busybox").exists() {
        rig.docker(&["exec", &voice, "/bin/busybox", "test", "-c", "/dev/nvidia0"]);
    }
    is_told("while it runs");
    rig.gpuctl("stop voice").run().succeeds().stdout_has("stopped voice").progress();
    is_told("when it has ended");

    // gpuctl watches GPU 0, and not every device of that interface is a card.
    create("other", "nvidia.com/gpu=7");
    create("web", "vendor.com/net=all");
    let report = report();
    let told = |subject: &str| {
        let checks = report["checks"].as_array().unwrap().iter();
        let is_of_it = |check: &&Value| check["id"] == "docker.gpu" && check["subject"] == subject;
        checks.filter(is_of_it).map(|check| check["message"].to_string()).collect::<String>()
    };
    assert!(told("other").contains("was given GPU 7"), "{report}");
    assert!(told("web").contains("was created without a GPU"), "{report}");
}
