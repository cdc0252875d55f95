//! Tests of row 75: what a container says of itself, an engine that goes away in the middle, and
//! compose at work at the same time.

use rig::{Rig, until};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::thread;
use toml::Table;

fn fact(rig: &Rig, container: &str, field: &str) -> String {
    let format = format!("{{{{{field}}}}}");
    rig.docker(&["container", "inspect", "--format", &format, container]).trim().to_owned()
}

/// Creates the container of a service with these options of `docker create`, on this machine's
/// network; returns its name.
fn create(rig: &Rig, name: &str, options: &[&str], flags: &str) -> String {
    let voice = rig.container(name).phases([3]).set("stop_timeout", "1s").not_installed().add();
    let card = rig.card.folder().display();
    let (variable, mount) = (format!("SIMGPU_DIR={card}"), format!("{card}:{card}"));
    let port = voice.port().to_string();
    let own = ["--network", "host", "--env", &variable, "--volume", &mount];
    let image = [rig.engine().image(), "/bin/simserver", "--name", voice.mark(), "--port", &port];
    let flags: Vec<&str> = flags.split_whitespace().collect();
    rig.owns_container(voice.mark());
    rig.docker(&[&["create", "--name", voice.mark()], &own[..], options, &image, &flags].concat());
    voice.mark().to_owned()
}

/// Returns the verdict and the fix of a check of `doctor`.
fn check(rig: &Rig, id: &str) -> (String, String) {
    let report = rig.gpuctl("doctor --json").run().ignores_stderr().ended().1;
    let report: Value = serde_json::from_str(&report[report.find('{').unwrap()..]).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let found = checks.iter().find(|check| check["id"] == id).unwrap_or_else(|| panic!("{report}"));
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("fix"))
}

#[test]
fn row_75_a_container_that_its_stop_removes_is_told_of_before() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = create(&rig, "voice", &["--rm"], "");
    rig.gpuctl("start voice --quiet").run().succeeds();
    let warning = format!("its container {voice} was made with --rm");
    for words in ["stop voice --dry-run", "release-all --dry-run"] {
        rig.gpuctl(words).run().succeeds().stdout_has("stop voice").stderr_has(&warning);
    }
    assert_eq!(check(&rig, "docker.removal").0, "warn");
    assert_eq!(fact(&rig, &voice, ".State.Running"), "true", "it was only told of");

    let stop = rig.gpuctl("stop voice").run().succeeds().stdout_has("stopped voice");
    stop.stderr_has(&warning).ignores_stderr();
    until("the engine has removed it", || {
        !rig.docker(&["ps", "--all", "--format", "{{.Names}}"]).contains(&voice)
    });
    rig.gpuctl("start voice").run().fails("not_found").stderr_has("docker create");
}

#[test]
fn row_75_a_container_that_its_stop_removes_is_not_stopped_to_be_started_again() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = create(&rig, "voice", &["--rm"], "");
    rig.gpuctl("start voice --quiet").run().succeeds();
    for words in ["restart voice", "restart voice --force"] {
        let refused = rig.gpuctl(words).run().fails("start_failed");
        refused.stderr_has("was made with --rm").stderr_has("recreate it without --rm");
    }
    assert_eq!(fact(&rig, &voice, ".State.Running"), "true");
}

#[test]
fn row_75_a_container_is_given_its_own_time_to_stop_where_that_is_longer() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = create(&rig, "voice", &["--stop-timeout", "60"], "--term-delay 2s");
    rig.gpuctl("start voice --quiet").run().succeeds();
    let stop = rig.gpuctl("stop voice --json --quiet").run().succeeds().json();
    assert_eq!(stop["steps"][0].get("note"), None, "{stop}");
    assert_ne!(fact(&rig, &voice, ".State.ExitCode"), "137", "it was killed");
}

#[test]
fn row_75_a_container_that_had_to_be_killed_is_told_as_such() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = create(&rig, "voice", &[], "--ignore-term");
    rig.gpuctl("start voice --quiet").run().succeeds();
    let stop = rig.gpuctl("stop voice --json --quiet").run().succeeds().json();
    assert_eq!(stop["steps"][0]["note"], "not gone within 1s, killed");
    assert_eq!(fact(&rig, &voice, ".State.ExitCode"), "137");
}

#[test]
fn row_75_a_restart_policy_that_brings_it_back_is_told_with_the_fix_where_it_belongs() {
    for policy in ["always", "on-failure"] {
        let Some(rig) = Rig::with_docker() else { return };
        let voice = create(&rig, "voice", &["--restart", policy], "");
        let update = format!("docker update --restart=unless-stopped {voice}");
        assert_eq!(check(&rig, "docker.restart"), ("warn".to_owned(), update));

        let Some(rig) = Rig::with_docker() else { return };
        let labels = ["project=mcn", "service=tts"].map(|it| format!("com.docker.compose.{it}"));
        let options = ["--restart", policy, "--label", &labels[0], "--label", &labels[1]];
        create(&rig, "voice", &options, "");
        let (verdict, fix) = check(&rig, "docker.restart");
        assert_eq!(verdict, "warn");
        let expected = "set `restart: \"unless-stopped\"` for tts in compose.yaml";
        assert!(fix.starts_with(expected), "{fix}");
    }
}

/// Makes the first `docker` call with this verb run `deed` as well: before the call's own work if
/// `when` is "at", after it otherwise.
fn with_the_first(rig: &Rig, when: &str, verb: &str, deed: &str) {
    let (before, after) = if when == "at" { (deed, "") } else { ("", deed) };
    rig.program(
        "docker",
        &format!(
            "PATH=${{PATH#*:}}\nif [ \"$1\" = {verb} ] && mkdir {} 2>/dev/null; then\n\
            {before}\ndocker \"$@\"; code=$?\n{after}\nexit $code\nfi\nexec docker \"$@\"",
            rig.path("left").display()
        ),
    );
}

/// Takes the engine's socket away for two seconds, before the first call with this verb or after it
/// (see `with_the_first`); returns the value for `DOCKER_HOST`.
fn engine_leaves(rig: &Rig, when: &str, verb: &str) -> String {
    let real = rig.engine().host().trim_start_matches("unix://").to_owned();
    let socket = rig.path("engine.sock");
    symlink(&real, &socket).unwrap();
    let link = socket.display();
    let leave = format!("rm {link}; (sleep 2; ln -s {real} {link}) >/dev/null 2>&1 &");
    with_the_first(rig, when, verb, &leave);
    format!("unix://{link}")
}

#[test]
fn row_75_an_engine_that_is_away_for_seconds_in_the_middle_is_waited_for() {
    for (when, verb) in [("at", "stop"), ("at", "start"), ("after", "start")] {
        let Some(rig) = Rig::with_docker() else { return };
        if !rig.engine().host().starts_with("unix://") {
            return rig::skip_or_fail("docker", "engine with a socket of its own");
        }
        let voice = create(&rig, "voice", &[], "--vram 1000");
        let vidi = rig.container("vidi").phases([2]).add();
        rig.docker(&["start", &voice]);
        until("it is there", || rig.card.used_mb() == 1000);
        let host = engine_leaves(&rig, when, verb);
        let prepare = rig.gpuctl("prepare-phase 2").env("DOCKER_HOST", host).run();
        prepare.succeeds().stdout_has("stopped voice").stdout_has("started vidi").progress();
        assert!(rig.path("left").exists(), "the engine was never away {when} {verb}");
        assert_eq!(fact(&rig, vidi.mark(), ".State.Running"), "true");
        assert_eq!(fact(&rig, &voice, ".State.Running"), "false");
    }
}

/// The engine's containers outlive it, because live-restore is on.
#[test]
fn row_75_an_engine_that_restarts_in_the_middle_and_keeps_its_containers_is_waited_for() {
    let engine = Rig::with_docker_of_its_own("{\"live-restore\": true}");
    let Some(rig) = engine else { return };
    let voice = create(&rig, "voice", &[], "--vram 1000");
    let vidi = rig.container("vidi").phases([2]).add();
    for (when, verb) in [("at", "stop"), ("at", "start"), ("after", "start")] {
        rig.docker(&["stop", "--time", "0", vidi.mark()]);
        rig.docker(&["start", &voice]);
        until("it is there", || rig.card.used_mb() == 1000);
        with_the_first(&rig, when, verb, &rig.engine().restarts());
        let prepare = rig.gpuctl("prepare-phase 2").run();
        prepare.succeeds().stdout_has("stopped voice").stdout_has("started vidi").progress();
        fs::remove_dir(rig.path("left")).expect("it is restarted");
        assert_eq!(fact(&rig, vidi.mark(), ".State.Running"), "true");
        assert_eq!(fact(&rig, &voice, ".State.Running"), "false");
    }
}

/// The engine's containers end with it, because live-restore is off.
#[test]
fn row_75_what_an_engine_has_ended_that_restarts_in_the_middle_of_a_start_is_started_again() {
    let Some(rig) = Rig::with_docker_of_its_own("{}") else { return };
    let vidi = rig.container("vidi").phases([2]).add();
    let started = || fact(&rig, vidi.mark(), ".State.StartedAt");
    for health in [true, false] {
        if !health {
            rig.gpuctl("stop vidi --quiet").run().succeeds();
            let settings = format!("type = 'docker'\ncontainer = '{}'\nvram_mb = 1", vidi.mark());
            let settings = format!("{settings}\nphases = [2]");
            rig.set("services.vidi", settings.parse::<Table>().unwrap());
        }
        let restart =
            format!("docker container inspect {} >'{}'", vidi.mark(), rig.path("was").display());
        let restart = format!("{restart}; {}", rig.engine().restarts());
        with_the_first(&rig, "after", "start", &restart);
        let before = started();
        let prepare = rig.gpuctl("prepare-phase 2").run();
        prepare.succeeds().stdout_has("started vidi").progress();
        fs::remove_dir(rig.path("left")).expect("the engine was restarted");
        let was: Value =
            serde_json::from_str(&fs::read_to_string(rig.path("was")).unwrap()).unwrap();
        assert_ne!(was[0]["State"]["StartedAt"], json!(before), "it was not started before");
        assert_ne!(was[0]["State"]["StartedAt"], json!(started()), "it was not ended");
        assert_eq!(fact(&rig, vidi.mark(), ".State.Running"), "true");
    }
}

#[test]
fn row_75_an_engine_that_stays_away_is_unavailable_when_the_time_of_the_step_is_over() {
    let Some(rig) = Rig::with_docker() else { return };
    if !rig.engine().host().starts_with("unix://") {
        return rig::skip_or_fail("docker", "engine with a socket of its own");
    }
    let voice = create(&rig, "voice", &[], "");
    rig.set("services.voice.start_timeout", "1s");
    let real = rig.engine().host().trim_start_matches("unix://");
    let socket = rig.path("engine.sock");
    symlink(real, &socket).unwrap();
    let link = socket.display();
    for when in ["at", "after"] {
        with_the_first(&rig, when, "start", &format!("rm -f {link}"));
        let start = rig.gpuctl("start voice --quiet").env("DOCKER_HOST", format!("unix://{link}"));
        start.run().fails("unavailable").stderr_has("Docker cannot be reached");
        fs::remove_dir(rig.path("left")).expect("it left");
        let _ = fs::remove_file(&socket);
        symlink(real, &socket).unwrap();
        rig.docker(&["stop", "--time", "0", &voice]);
    }
}

/// The container is known by compose's labels; in a test of `services::compose_files` compose
/// itself recreates it.
#[test]
fn row_75_a_container_that_compose_makes_anew_in_the_middle_is_stopped_all_the_same() {
    let Some(rig) = Rig::with_docker() else { return };
    let project = rig.mark("mcn");
    let labels = [format!("project={project}"), "service=tts".to_owned()]
        .map(|it| format!("com.docker.compose.{it}"));
    let labels = ["--label", &labels[0], "--label", &labels[1]];
    let tts = create(&rig, "tts", &labels, "--vram 500");
    let text = format!("type = 'compose'\nproject = '{project}'\nservice = 'tts'\nvram_mb = 500");
    rig.set("services.tts", text.parse::<toml::Table>().unwrap());
    rig.gpuctl("start tts --quiet").run().succeeds();
    let config = |field: &str| fact(&rig, &tts, field);
    let command = config("join .Config.Cmd \" \"");
    let card = rig.card.folder().display().to_string();
    let anew = format!(
        "docker rm --force {tts} && docker run --detach --name {tts} --network host --label {} --label {} \
        --env SIMGPU_DIR={card} --volume {card}:{card} {} {command}",
        labels[1],
        labels[3],
        rig.engine().image()
    );
    let once = rig.path("once");
    rig.program(
        "docker",
        &format!(
            "PATH=${{PATH#*:}}\nif [ \"$1\" = stop ] && mkdir {} 2>/dev/null; then ({anew}) >/dev/null 2>&1; fi\n\
            exec docker \"$@\"",
            once.display()
        ),
    );
    let before = config(".Id");
    rig.gpuctl("stop tts").run().succeeds().stdout_has("stopped tts").progress();
    assert_ne!(config(".Id"), before, "it was never made anew");
    assert_eq!(config(".State.Running"), "false");
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn row_75_the_reason_is_the_engines_and_not_what_the_client_says_of_itself() {
    let Some(rig) = Rig::with_docker() else { return };
    create(&rig, "voice", &["--entrypoint", "/bin/absent"], "");
    let config = rig.path("home/docker");
    fs::create_dir(&config).unwrap();
    fs::write(config.join("config.json"), "{ no JSON").unwrap();
    let start = rig.gpuctl("start voice --quiet").env("DOCKER_CONFIG", &config).run();
    let told = start.fails("start_failed").stderr_has("/bin/absent").stderr_text();
    assert!(!told.contains("config file"), "{told}");
}

#[test]
fn row_75_what_a_socket_proxy_forbids_is_a_matter_of_permission() {
    let Some(rig) = Rig::with_docker() else { return };
    create(&rig, "voice", &[], "");
    let socket = rig.path("proxy.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut writer = stream;
                loop {
                    let mut first = String::new();
                    if reader.read_line(&mut first).unwrap_or(0) == 0 {
                        return;
                    }
                    let mut line = String::new();
                    while reader.read_line(&mut line).unwrap_or(0) > 2 {
                        line.clear();
                    }
                    // haproxy in docker-socket-proxy answers like this.
                    let answer = match first.contains("_ping") {
                        true => "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\nContent-Length: 0\r\n\r\n"
                            .to_owned(),
                        false => {
                            let body = "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>\n";
                            format!(
                                "HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}",
                                body.len()
                            )
                        }
                    };
                    if writer.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    let host = format!("unix://{}", socket.display());
    for words in ["start voice", "stop voice", "prepare-phase 3"] {
        let refused = rig.gpuctl(words).env("DOCKER_HOST", &host).run().fails("permission");
        refused.stderr_has("403 Forbidden").stderr_has("socket proxy");
    }
    let status = rig.gpuctl("status --json").env("DOCKER_HOST", &host).run().succeeds().json();
    assert_eq!(status["services"]["voice"]["state"], "unknown");
}

#[test]
fn row_75_the_beginning_of_an_id_that_may_come_to_be_anothers_names_no_container() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = create(&rig, "voice", &[], "");
    let id = fact(&rig, &voice, ".Id");
    for length in [1, 6] {
        rig.set("services.voice.container", &id[..length]);
        let (code, told) = rig.gpuctl("start voice").run().ended();
        assert!(matches!(code, Some(4 | 78)), "{told}");
        assert_eq!(fact(&rig, &voice, ".State.Running"), "false");
    }
    rig.set("services.voice.container", &id[..12]);
    rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
}

#[test]
fn row_75_a_container_that_publishes_nothing_is_asked_by_its_own_address() {
    let Some(rig) = Rig::with_docker() else { return };
    let network = rig.network();
    let voice = rig.container("voice").not_installed().add();
    let card = rig.card.folder().display().to_string();
    let (variable, mount) = (format!("SIMGPU_DIR={card}"), format!("{card}:{card}"));
    rig.owns_container(voice.mark());
    let server = "/bin/simserver --host 0.0.0.0 --port 8000 --warmup 500ms --name".split(' ');
    let mut words = vec!["create", "--name", voice.mark(), "--network", &network];
    words.extend(["--env", &variable, "--volume", &mount, rig.engine().image()]);
    words.extend(server);
    words.push(voice.mark());
    rig.docker(&words);
    rig.set("services.voice.health", "http://{container}:8000/health");
    rig.gpuctl("start voice").run().succeeds().stdout_has("started voice").progress();
    let told = rig.gpuctl("status --json").run().succeeds().json()["services"]["voice"].clone();
    assert_eq!(told["state"], "ready", "{told}");
    assert_ne!(told["health_ms"], json!(null), "{told}");
    rig.gpuctl("stop voice").run().succeeds().stdout_has("stopped voice").progress();
}

#[test]
fn row_75_all_that_a_server_is_asked_goes_to_its_containers_own_address() {
    let Some(rig) = Rig::with_docker() else { return };
    let network = rig.network();
    let chat = rig.container("chat").not_installed().add();
    let card = rig.card.folder().display().to_string();
    let (variable, mount) = (format!("SIMGPU_DIR={card}"), format!("{card}:{card}"));
    rig.owns_container(chat.mark());
    let server = "/bin/simserver --host 0.0.0.0 --port 8000 --api vllm --vram 12000 --unload-residual 1500 --name";
    let mut words = vec!["create", "--name", chat.mark(), "--network", &network];
    words.extend(["--env", &variable, "--volume", &mount, rig.engine().image()]);
    words.extend(server.split(' '));
    words.push(chat.mark());
    rig.docker(&words);
    let settings = format!(
        "type = 'docker'\ncontainer = '{}'\nvram_mb = 12000\npriority = 10\napi = 'vllm'\nurl = 'http://{{container}}:8000'\n\
         evict = 'unload'\n[warm_up]\nurl = 'http://{{container}}:8000/version'\nmethod = 'GET'",
        chat.mark()
    );
    rig.set("services.chat", settings.parse::<Table>().unwrap());
    let render = rig.native("render").vram(18000).set("priority", 90).add();
    rig.gpuctl("start chat").run().succeeds().stdout_has("started chat").progress();

    let networks = fact(&rig, chat.mark(), "json .NetworkSettings.Networks");
    let networks: Value = serde_json::from_str(&networks).unwrap();
    let address = networks[&network]["IPAddress"].as_str().unwrap();
    let job = rig.by_hand(&format!(
        "curl --silent --max-time 60 --json '{{\"ms\": 2000}}' http://{address}:8000/v1/completions"
    ));
    let chat_now =
        || rig.gpuctl("status --json").run().succeeds().json()["services"]["chat"].clone();
    until("it works", || chat_now()["jobs"] == 1);
    let start = rig.gpuctl("start render").run().succeeds().stdout_has("unloaded chat");
    start.stderr_has("draining chat, 1 job left");
    assert!(rig.card.jobs().values().all(|is_done| *is_done), "its job was cut off");
    let asleep = chat_now();
    assert_eq!(
        (&asleep["state"], &asleep["used_mb"]),
        (&json!("asleep"), &json!(1500)),
        "{asleep}"
    );
    rig.gpuctl("stop render").run().succeeds().stdout_has("stopped render").progress();
    rig.gpuctl("start chat").run().succeeds().stdout_has("started chat").progress();
    assert_eq!(chat_now()["state"], "ready");
    drop((job, render));
}
