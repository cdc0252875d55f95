//! Tests of SIGINT and SIGTERM: the work stops at the next safe point, and the same command, run
//! again, goes on from there.

use rig::{Rig, Signal, until};
use serde_json::json;

const SIGNALS: [(Signal, i32); 2] = [(Signal::INT, 130), (Signal::TERM, 143)];

#[test]
fn interrupted_while_a_service_comes_up_it_is_left_to_the_next_run() {
    for (signal, code) in SIGNALS {
        let rig = Rig::new();
        let vidi = rig.native("vidi").phases([2]).server("--warmup 1500ms").add();
        let prepare = rig.gpuctl("prepare-phase 2").spawn();
        until("it runs", || rig.card.used_mb() == 1000);
        prepare.signal(signal);
        prepare.wait().exits(code).stderr_has(&format!("interrupted by signal {}", code - 128));

        let process = rig.processes_of(&vidi);
        rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("vidi").progress();
        assert!(vidi.is_healthy());
        assert_eq!(rig.processes_of(&vidi), process);
    }
}

#[test]
fn interrupted_while_a_service_ends_the_next_run_ends_it() {
    for (signal, code) in SIGNALS {
        let rig = Rig::new();
        let vidi = rig.native("vidi").vram(18000).phases([2]).server("--ignore-term").add();
        let voice = rig.native("voice").vram(18000).phases([3]).add();
        rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("started vidi").progress();
        let prepare = rig.gpuctl("prepare-phase 3").spawn();
        until("it stops vidi", || prepare.stderr().contains("stopping vidi"));
        prepare.signal(signal);
        prepare.wait().exits(code).stderr_has("run the same command again to continue from here");
        rig.assert_no_process_of(&voice);

        rig.set("services.vidi.stop_timeout", "200ms");
        rig.gpuctl("prepare-phase 3").run().succeeds().stdout_has("started voice").progress();
        rig.assert_no_process_of(&vidi);
        rig.assert_no_out_of_memory();
    }
}

#[test]
fn interrupted_while_a_service_wakes_or_warms_up_nobody_waits_for_its_answer() {
    for (signal, code) in SIGNALS {
        let rig = Rig::new();
        let server = "--api vllm --unload-residual 700 --load-delay 1h --completion-delay 1h";
        let model = rig.native("model").vram(12000).phases([1]).server(server);
        let model =
            model.set("evict", "unload").set("api", "vllm").set("url", "http://localhost:1");
        let model = model.set("start_timeout", "1h").add();
        rig.set("services.model.url", model.url(""));
        rig.gpuctl("start model --quiet").run().succeeds();
        model.request("/sleep", &json!({})).join().unwrap().unwrap();
        until("it sleeps", || rig.card.used_mb() == 700);
        let wakes = rig.gpuctl("start model").spawn();
        until("it is woken", || wakes.stderr().contains("waking model"));
        wakes.signal(signal);
        wakes.wait().exits(code).stderr_has("interrupted by signal").ignores_stderr();

        let warm = rig.native("warm").vram(1000).server(server).set("start_timeout", "1h").add();
        rig.set("services.warm.warm_up.url", warm.url("/v1/completions"));
        let starts = rig.gpuctl("start warm").spawn();
        until("it is warmed up", || starts.stderr().contains("warming up warm"));
        starts.signal(signal);
        starts.wait().exits(code).stderr_has("interrupted by signal").ignores_stderr();
        assert!(warm.is_healthy() && model.is_healthy());
    }
}

#[test]
fn interrupted_while_the_memory_comes_back_nothing_is_started() {
    for (signal, code) in SIGNALS {
        let rig = Rig::new();
        let vidi = rig.native("vidi").vram(18000).phases([2]).add();
        let voice = rig.native("voice").vram(18000).phases([3]).add();
        rig.gpuctl("prepare-phase 2").run().succeeds().stdout_has("started vidi").progress();
        rig.card.describe(&json!({"reclaim_delay_ms": 3_600_000}));
        let prepare = rig.gpuctl("prepare-phase 3").spawn();
        until("vidi has ended", || rig.processes_of(&vidi).is_empty());
        prepare.signal(signal);
        prepare.wait().exits(code).stderr_has("interrupted");
        rig.assert_no_process_of(&voice);

        rig.card.describe(&json!({"reclaim_delay_ms": 0}));
        rig.gpuctl("prepare-phase 3").run().succeeds().stdout_has("started voice").progress();
        assert!(voice.is_healthy());
        rig.assert_no_out_of_memory();
    }
}

#[test]
fn interrupted_while_a_stop_command_hangs_the_stop_command_ends_too() {
    let rig = Rig::new();
    let hanging = rig.program(&format!("stop-{}", rig.mark("vidi")), "sleep 1000");
    let vidi = rig.native("vidi").set("stop", hanging.to_str().unwrap()).add();
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let server = rig.processes_of(&vidi);
    let stop = rig.gpuctl("stop vidi").spawn();
    until("the stop command runs", || rig.processes_of(&vidi).len() > 1);
    stop.signal(Signal::TERM);
    stop.wait().exits(143).stderr_has("interrupted by signal 15");
    until("the stop command has ended", || rig.processes_of(&vidi) == server);
    rig.gpuctl("stop vidi --force").run().succeeds().stdout_has("stopped vidi").progress();
}

#[test]
fn interrupted_while_memory_is_unloaded_the_next_run_goes_on() {
    let rig = Rig::new();
    let server = "--api comfyui --unload-delay 2s";
    let model = rig.native("model").vram(12000).set("evict", "unload").server(server);
    let model = model.set("api", "comfyui").set("url", "http://127.0.0.1:1").add();
    rig.set("services.model.url", model.url(""));
    let big = rig.native("big").vram(20000).priority(100).phases([4]).add();
    rig.gpuctl("start model").run().succeeds().stdout_has("started model").progress();
    let prepare = rig.gpuctl("prepare-phase 4").spawn();
    until("it asks for the memory", || prepare.stderr().contains("unloading model"));
    prepare.signal(Signal::INT);
    prepare.wait().exits(130).stderr_has("interrupted by signal 2");
    rig.assert_no_process_of(&big);
    rig.gpuctl("prepare-phase 4")
        .run()
        .succeeds()
        .stdout_has("unloaded model; freed 12000 MB; started big")
        .progress();
    assert!(model.is_healthy());
    rig.assert_no_out_of_memory();
}

#[test]
fn interrupted_while_an_unload_call_is_not_answered_nobody_waits_for_its_answer() {
    for (signal, code) in SIGNALS {
        let rig = Rig::new();
        let requests = rig.path("requests");
        // The server goes to sleep, and answers the call, only once its job is done.
        let server = format!("--api vllm --requests {}", requests.display());
        let model = rig.native("model").vram(12000).set("evict", "unload").server(&server);
        let model = model.set("api", "vllm").set("url", "http://127.0.0.1:1").add();
        rig.set("services.model.url", model.url(""));
        rig.set("services.model.busy.command", "echo 0");
        rig.native("big").vram(20000).priority(100).phases([4]).add();
        rig.gpuctl("start model --quiet").run().succeeds();
        let job = model.request("/v1/completions", &json!({"ms": 8000, "stream": true}));
        until("it works", || rig.card.jobs().len() == 1);
        let prepare = rig.gpuctl("prepare-phase 4").spawn();
        until("it is asked to unload", || {
            std::fs::read_to_string(&requests).is_ok_and(|text| text.contains("POST /sleep"))
        });
        prepare.signal(signal);
        prepare.wait().exits(code).stderr_has("interrupted by signal").ignores_stderr();
        assert_eq!(rig.card.jobs().into_values().collect::<Vec<_>>(), [false], "it works still");
        assert!(job.join().unwrap().unwrap().ends_with("data: [DONE]\n\n"));
    }
}
