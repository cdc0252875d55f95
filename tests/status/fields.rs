//! Tests of the fields of `gpuctl status`: the card, its processes and the services' states.

use rig::{
    Fault, Rig, Script, Signal, docker_client_or_skip, skip_or_fail, unconfigured_or_skip, until,
};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};

fn status(rig: &Rig) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()
}

/// Returns the command line of a server that listens nowhere; `like` is the command line of another
/// server.
fn server(like: &str, mark: &str, vram: u32) -> String {
    let program = like.split(' ').next().unwrap();
    format!("{program} --name {mark} --vram {vram}")
}

/// Returns the state and the detail of a service.
fn state(rig: &Rig, service: &str) -> (String, String) {
    let status = status(rig);
    let service = &status["services"][service];
    let text = |key: &str| service[key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("detail"))
}

#[test]
fn the_document_has_the_fields_of_the_contract() {
    let rig = Rig::new();
    rig.card.describe(&json!({
        "devices": [{"name": "NVIDIA Test", "uuid": "GPU-t", "total_mb": 24000, "temperature_c": 51, "utilization_percent": 7}],
        "driver_version": "550.1",
    }));
    let vidi =
        rig.native("vidi").vram(4000).priority(40).phases([7, 2]).server("--idle-vram 600").add();
    rig.native("idle").vram(500).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("vidi").progress();
    let pid = rig.processes_of(&vidi)[0];
    let status = status(&rig);
    let keys: Vec<&String> = status.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["schema", "gpu", "vram", "services", "lock"]);
    assert_eq!(status["schema"], 1);
    assert_eq!(
        status["gpu"],
        json!({"index": 0, "name": "NVIDIA Test", "uuid": "GPU-t", "driver_version": "550.1"})
    );
    let mut vram = status["vram"].clone();
    let name = vram["processes"][0]["name"].take();
    assert!(name.as_str().unwrap().contains("simserver"), "{name}");
    assert_eq!(
        vram,
        json!({
            "source": "nvml", "total_mb": 24000, "used_mb": 600, "free_mb": 23400,
            "available_mb": 22376, "reserve_mb": 1024, "committed_mb": 4000,
            "processes": [{"pid": pid, "name": null, "memory_mb": 600, "service": "vidi"}],
            "temperature_c": 51, "utilization_percent": 7, "error": null,
        })
    );
    let mut services = status["services"].clone();
    let health = services["vidi"]["health_ms"].take();
    assert!(health.as_f64().is_some_and(|took| took > 0.0 && took < 10000.0), "{health}");
    assert_eq!(services["vidi"]["peak_mb"].take(), 600);
    let idle = services["vidi"]["idle_s"].take();
    assert!(idle.is_u64(), "{idle}");
    let uptime = services["vidi"]["uptime_s"].take();
    assert!(uptime.is_u64(), "{uptime}");
    assert_eq!(
        services,
        json!({
            "vidi": {"state": "ready", "type": "native", "vram_mb": 4000, "used_mb": 600,
                "priority": 40, "phases": [2, 7], "pids": [pid], "jobs": null, "peak_mb": null, "idle_s": null, "health_ms": null, "uptime_s": null, "detail": null},
            "idle": {"state": "stopped", "type": "native", "vram_mb": 500, "used_mb": 0,
                "priority": 0, "phases": [], "pids": [], "jobs": null, "peak_mb": null, "idle_s": null, "health_ms": null, "uptime_s": null, "detail": null},
        })
    );
    let lock = &status["lock"];
    assert_eq!((&lock["backend"], &lock["holder"]), (&json!("file"), &Value::Null));
    assert_eq!((&lock["ttl"], &lock["owner"]), (&json!(-2), &Value::Null));
}

#[test]
fn what_is_not_known_is_null_and_never_zero() {
    let rig = Rig::new();
    rig.native("idle").add();
    rig.card.describe(&json!({"faults": {
        "nvmlDeviceGetTemperature": "not_supported", "nvmlDeviceGetUtilizationRates": "not_supported",
        "nvmlDeviceGetName": "unknown", "nvmlDeviceGetUUID": "unknown", "nvmlSystemGetDriverVersion": "unknown",
        "nvmlDeviceGetComputeRunningProcesses*": "not_supported",
    }}));
    let known = status(&rig);
    assert_eq!(
        known["gpu"],
        json!({"index": 0, "name": null, "uuid": null, "driver_version": null})
    );
    assert_eq!(known["vram"]["free_mb"], 24576);
    for key in ["temperature_c", "utilization_percent", "processes"] {
        assert_eq!(known["vram"][key], Value::Null, "{key}");
    }
    assert_eq!(known["services"]["idle"]["used_mb"], Value::Null);

    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    let unread = status(&rig);
    assert_eq!(
        unread["gpu"],
        json!({"index": null, "name": null, "uuid": null, "driver_version": null})
    );
    for key in ["total_mb", "used_mb", "free_mb", "available_mb", "processes"] {
        assert_eq!(unread["vram"][key], Value::Null, "{key}");
    }
    rig.gpuctl("status").run().succeeds().stdout_has("VRAM ? of ? MB used, ? free");
}

#[test]
fn each_process_is_told_with_its_service() {
    let rig = Rig::new();
    let wrapped = rig.native("wrapped").vram(1000).script(Script::File).without_match().add();
    let forked = rig.native("forked").vram(2000).server("--double-fork").add();
    let by_hand = rig.native("by_hand").vram(3000).add();
    let unit = rig.unit("unit").vram(4000).add();
    for service in ["wrapped", "forked", "unit"] {
        rig.gpuctl("start").arg(service).run().succeeds().stdout_has(service).progress();
    }
    let _server = rig.by_hand(by_hand.command());
    let _stranger = rig.by_hand(&server(by_hand.command(), &rig.mark("stranger"), 500));
    until("all hold their memory", || rig.card.used_mb() == 10500);
    let status = status(&rig);
    let mut owners: Vec<(u64, Value)> = status["vram"]["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| (process["memory_mb"].as_u64().unwrap(), process["service"].clone()))
        .collect();
    owners.sort_by_key(|(memory, _)| *memory);
    let expected = [
        (500, Value::Null),
        (1000, "wrapped".into()),
        (2000, "forked".into()),
        (3000, "by_hand".into()),
        (4000, "unit".into()),
    ];
    if !rig.systemd().has_control_groups() {
        return;
    }
    assert_eq!(owners, expected);
    for (service, used) in [(&wrapped, 1000), (&forked, 2000), (&by_hand, 3000), (&unit, 4000)] {
        let name = service.mark().split("-rig").next().unwrap();
        assert_eq!(status["services"][name]["used_mb"], used, "{name}");
        assert_eq!(status["services"][name]["state"], "ready", "{name}");
    }
    assert_eq!(status["vram"]["committed_mb"], 10000, "a stranger commits nothing");
    assert_eq!(status["vram"]["used_mb"], 10500);
}

#[test]
fn nothing_is_available_below_the_reserve() {
    let rig = Rig::new();
    rig.set("gpu.reserve_mb", 30000);
    let status = status(&rig);
    assert_eq!(
        (&status["vram"]["free_mb"], &status["vram"]["available_mb"]),
        (&24576.into(), &0.into())
    );
}

#[test]
fn a_check_answers_by_the_exit_code() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    rig.native("idle").add();
    let _server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    rig.gpuctl("status --check vidi").run().succeeds().stdout_has("ready");
    rig.gpuctl("status --check idle").run().exits(1).stdout_has("stopped");
    rig.gpuctl("status --check vidi --quiet").run().succeeds().stdout("");
    rig.gpuctl("status --check idle --quiet").run().exits(1).stdout("");
    rig.gpuctl("status --quiet").run().succeeds().stdout_has("VRAM");
    rig.gpuctl("status --check vidi --check idle").run().exits(1).stdout_has("stopped");
    let told = rig.gpuctl("status --check idle --json").run().exits(1).json();
    assert_eq!(told["services"]["idle"]["state"], "stopped", "the status is told all the same");
    for words in ["status --check vido", "status --check vidi --check vido"] {
        rig.gpuctl(words).run().fails("not_found").stderr_has("did you mean \"vidi\"?");
    }
    let unset = rig.gpuctl("status --check vidi").env_remove("GPUCTL_CONFIG").run();
    unset.fails("config").stderr_has("gpuctl config init");
}

#[test]
fn the_text_has_what_matters() {
    if !docker_client_or_skip() {
        return;
    }
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).priority(40).phases([2, 7]).add();
    rig.container("voice").vram(3000).not_installed().add();
    let server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    let text = rig.gpuctl("status").run().succeeds().text();
    let squeezed = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "GPU 0 NVIDIA GeForce RTX 4090, 45 °C, 10 % busy",
        "VRAM 4000 of 24576 MB used, 20576 free, 19552 available, 7000 committed",
        "█ vidi 4000 ▁ promised 3000 · available 16552 ╱ reserve 1024",
        "GPU lock free",
        "SERVICE STATE USED MB DECLARED PRIO PHASES HEALTH UPTIME MANAGED BY",
        "vidi ● ready 4000 4000 40 2,7",
        "voice ? unknown ? 3000 0 - - - docker voice",
        "PID USED MB SERVICE PROCESS",
        &format!("{} 4000 vidi simserver --name vidi", server.pid()),
    ] {
        assert!(squeezed.contains(part), "{part:?} is not in {text}");
    }
}

#[test]
fn one_of_several_cards_is_chosen_by_index_or_uuid() {
    let rig = Rig::new();
    rig.card.describe(&json!({"devices": [
        {"uuid": "GPU-a", "total_mb": 8000}, {"uuid": "GPU-b", "total_mb": 24000}]}));
    let vidi = rig.native("vidi").vram(4000).server("--device 1").add();
    let _server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    let ask = |words: &str| {
        let status = rig.gpuctl(words).run().succeeds().json();
        let used = status["services"]["vidi"]["used_mb"].as_u64().unwrap();
        (status["gpu"]["uuid"].as_str().unwrap().to_owned(), status["gpu"]["index"].clone(), used)
    };
    let (first, second) = (("GPU-a".to_owned(), json!(0), 0), ("GPU-b".to_owned(), json!(1), 4000));
    assert_eq!(ask("status --json"), first, "the default");
    assert_eq!(ask("status --json --gpu 1"), second);
    assert_eq!(ask("--gpu GPU-b status --json"), second);
    rig.set("gpu.index", 1);
    assert_eq!(ask("status --json"), second);
    assert_eq!(ask("status --json --gpu 0"), first, "the flag goes before the configuration");
    rig.write_config(
        &std::fs::read_to_string(rig.path("gpuctl.toml"))
            .unwrap()
            .replace("index = 1", "uuid = \"GPU-b\""),
    );
    assert_eq!(ask("status --json"), second);
    assert_eq!(ask("status --json --gpu GPU-a"), first);
}

#[test]
fn a_card_that_is_not_there_is_told_as_such() {
    let rig = Rig::new();
    for (gpu, problem) in [
        ("1", "there is no GPU 1: the driver lists 1"),
        ("4294967295", "there is no GPU 4294967295"),
        ("GPU-x", "there is no GPU GPU-x: the driver lists 1"),
        ("-1", "there is no GPU -1"),
        ("99999999999", "there is no GPU 99999999999"),
    ] {
        let status = rig.gpuctl(&format!("status --json --gpu={gpu}")).run().succeeds().json();
        assert_eq!(status["vram"]["source"], "estimate");
        assert_eq!(status["vram"]["free_mb"], Value::Null);
        let error = status["vram"]["error"].as_str().unwrap();
        assert!(error.contains(problem), "{error}");
        let text = rig.gpuctl(&format!("status --gpu={gpu}")).run().succeeds().text();
        assert!(text.contains(&format!("warning: {problem}")), "{text}");
    }
}

#[test]
fn without_a_configuration_there_are_no_services() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let run = |words: &str| rig.gpuctl(words).env_remove("GPUCTL_CONFIG").run().succeeds();
    let status = run("status --json").json();
    assert_eq!(status["services"], json!({}));
    assert_eq!(status["vram"]["reserve_mb"], 1024);
    assert_eq!(status["lock"]["backend"], "file");
    run("status").stdout_has("VRAM");
}

#[test]
fn a_manager_that_cannot_be_asked_leaves_its_services_unknown_and_the_rest_told() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    rig.container("voice").vram(3000).not_installed().add();
    rig.unit("vllm").vram(2000).not_installed().add();
    rig.systemd().fails(Fault::NotBooted);
    let _server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    let status = status(&rig);
    for (service, problem) in [("voice", "ocker"), ("vllm", "systemd")] {
        let service = &status["services"][service];
        assert_eq!(service["state"], "unknown");
        assert_eq!(service["used_mb"], Value::Null);
        assert!(service["error"].as_str().unwrap().contains(problem), "{service}");
        assert_eq!(service["error"], service["detail"]);
    }
    assert_eq!(status["services"]["vidi"]["state"], "ready");
    assert_eq!(status["services"]["vidi"].get("error"), None);
    assert_eq!(status["vram"]["used_mb"], 4000);
    assert_eq!(status["vram"]["committed_mb"], 9000, "what may run is taken to run");
    rig.gpuctl("status --check voice").run().exits(1).stdout_has("unknown");
}

#[test]
fn what_a_command_has_answered_counts_though_another_process_keeps_its_output_open() {
    let rig = Rig::new();
    rig.unit("vllm").add();
    rig.gpuctl("start vllm --quiet").run().succeeds();
    let own = rig.path("own-systemctl");
    std::fs::rename(rig.path("bin/systemctl"), &own).unwrap();
    rig.program("systemctl", &format!("sleep 1000 & . {}", own.display()));
    assert_eq!(state(&rig, "vllm"), ("ready".into(), String::new()));
}

#[test]
fn a_native_service_is_told_in_each_of_its_states() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").server("--warmup 1h").add();
    let ready = rig.native("ready").add();
    assert_eq!(state(&rig, "vidi"), ("stopped".into(), String::new()));
    let _starting = rig.by_hand(vidi.command());
    let _ready = rig.by_hand(ready.command());
    until("the other one is healthy", || ready.is_healthy());
    until("it listens", || state(&rig, "vidi").1.contains("503"));
    assert_eq!(state(&rig, "vidi").0, "starting");
    assert_eq!(state(&rig, "ready"), ("ready".into(), String::new()));

    rig.set("services.vidi.start_timeout", "1ms");
    until("it has been unhealthy for longer than that", || state(&rig, "vidi").0 == "error");
    let detail = state(&rig, "vidi").1;
    assert!(detail.contains(" after its start") && detail.contains("503"), "{detail}");
}

#[test]
fn a_native_service_that_is_suspended_is_in_error() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy());
    rig.shell(&format!("kill -STOP {}", server.pid())).run().succeeds();
    let stat = format!("/proc/{}/stat", server.pid());
    until("it is suspended", || std::fs::read_to_string(&stat).unwrap().contains(") T "));
    let suspended = "suspended by a signal (SIGSTOP)";
    assert_eq!(state(&rig, "vidi"), ("error".into(), suspended.into()));
}

#[test]
fn a_health_check_that_hangs_does_not_keep_the_status() {
    let rig = Rig::new();
    let hangs = rig.native("hangs").server("--health hang").add();
    let drips = rig.native("drips").server("--health drip").add();
    let endless = rig.native("endless").server("--health endless").add();
    let loops = rig.native("loops").server("--health redirect-loop").add();
    let servers = [&hangs, &drips, &endless, &loops].map(|service| rig.by_hand(service.command()));
    until("all hold their memory", || rig.card.used_mb() == 4000);
    until("the last one listens", || listens(&loops.url("")));
    let status = status(&rig);
    let state = |name: &str| status["services"][name]["state"].as_str().unwrap().to_owned();
    assert_eq!(state("hangs"), "starting");
    assert_eq!((state("drips"), state("endless")), ("starting".into(), "starting".into()));
    assert_eq!(state("loops"), "starting");
    assert!(status["services"]["loops"]["detail"].is_string());
    assert!(status["services"]["hangs"]["detail"].is_string());
    drop(servers);
}

/// Reports whether something listens at a URL, which must have no path.
fn listens(url: &str) -> bool {
    std::net::TcpStream::connect(url.trim_start_matches("http://")).is_ok()
}

#[test]
fn a_stranger_on_the_health_port_is_named() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).add();
    let stranger = rig.by_hand(&vidi.command().replace(vidi.mark(), &rig.mark("stranger")));
    until("somebody answers", || vidi.is_healthy());
    let named = format!("process {} (simserver) answers on port", stranger.pid());
    let (down, detail) = state(&rig, "vidi");
    assert_eq!(down, "error", "the service does not run");
    assert!(detail.contains(&named), "{detail}");

    // Now the service runs, and listens elsewhere.
    let _server = rig.by_hand(&server(vidi.command(), vidi.mark(), 100));
    until("it holds its memory", || rig.card.used_mb() == 4100);
    let (up, detail) = state(&rig, "vidi");
    assert_eq!(up, "error");
    assert!(detail.contains(&named), "{detail}");
    rig.gpuctl("status --check vidi").run().exits(1).stdout_has(&named);
}

#[test]
fn a_signal_ends_a_status_that_waits() {
    let rig = Rig::new();
    let hangs = rig.native("hangs").server("--health hang").add();
    let _server = rig.by_hand(hangs.command());
    rig.unit("vllm").add();
    until("it listens", || listens(&hangs.url("")));
    let status = rig.gpuctl("status -v").spawn();
    until("it has asked for the unit", || status.stderr().contains("systemctl"));
    status.signal(Signal::TERM);
    status.wait().exits(143).stderr_has("gpuctl: ");
}

/// Reads a request and answers that all is well.
fn answer(mut client: TcpStream) {
    let lines = BufReader::new(&client).lines();
    let said = lines.take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
    assert!(said.count() > 1, "no request");
    client.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
}

#[test]
fn many_health_checks_that_are_answered_late_are_under_way_at_once() {
    const COUNT: usize = 100;
    let rig = Rig::new();
    let servers: Vec<_> = (0..COUNT).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    for (number, server) in servers.iter().enumerate() {
        let url = format!("http://{}/health", server.local_addr().unwrap());
        rig.native(&format!("service{number}")).set("health", url.as_str()).add();
    }
    // No check is answered before all have asked.
    let servers: &'static [TcpListener] = servers.leak();
    std::thread::spawn(move || {
        let accept = |server: &TcpListener| server.accept().unwrap().0;
        servers.iter().map(accept).collect::<Vec<_>>().into_iter().for_each(answer);
    });
    // How many files may be open does not matter either.
    let looked = rig.shell("ulimit -Sn 60; exec gpuctl status --json").run().succeeds().json();
    let services = looked["services"].as_object().unwrap();
    assert_eq!(services.len(), COUNT);
    for (name, service) in services {
        let detail = service["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("answers on port"), "{name}: {service}");
    }
}

#[test]
fn localhost_is_this_machine_by_either_protocol() {
    let rig = Rig::new();
    let mut names = Vec::new();
    for address in ["127.0.0.1", "[::1]"] {
        let Ok(server) = TcpListener::bind(format!("{address}:0")) else {
            skip_or_fail("ipv6", &format!("address {address}"));
            continue;
        };
        let port = server.local_addr().unwrap().port();
        // The user may spell the name in either way.
        for host in ["localhost", "LocalHost"] {
            let name = format!("{}-{port}", host);
            rig.native(&name).set("health", format!("http://{host}:{port}/")).add();
            names.push(name);
        }
        std::thread::spawn(move || server.incoming().map_while(Result::ok).for_each(answer));
    }
    assert!(!names.is_empty());
    for name in names {
        let detail = state(&rig, &name).1;
        assert!(detail.contains("answers on port"), "{name}: {detail}");
    }
}
