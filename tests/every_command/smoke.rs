//! Tests of one way through each kind of service, and of each kind of answer.

use rig::{Rig, unconfigured_or_skip};
use serde_json::json;

#[test]
fn status_of_an_empty_card_shows_all_of_it_free() {
    let rig = Rig::new();
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["vram"]["source"], "nvml");
    assert_eq!(status["vram"]["free_mb"], 24576);
    assert_eq!(status["services"], json!({}));
}

#[test]
fn each_phase_ends_the_one_before_and_the_card_never_overflows() {
    let rig = Rig::new();
    rig.card.describe(&json!({"reclaim_delay_ms": 200}));
    let vidi = rig.native("vidi").vram(4000).priority(40).phases([2]).add();
    let voice = rig.native("cosyvoice").vram(4000).priority(50).phases([3]).add();
    let comfyui =
        rig.native("comfyui").vram(20000).phases([4]).server("--warmup 200ms --steps 4").add();
    let peak = rig.card.peak_mb_during(|| {
        for (phase, service) in [("2", &vidi), ("3", &voice), ("4", &comfyui)] {
            let ready = rig.gpuctl("prepare-phase").arg(phase).run().succeeds();
            ready.stdout_has(&format!("phase {phase}: ")).progress();
            let holders: Vec<String> = rig.card.claims().into_iter().map(|c| c.name).collect();
            assert_eq!(holders, [service.mark()], "in phase {phase}");
            assert!(service.is_healthy(), "in phase {phase}");
        }
    });
    assert!((20000..=24576).contains(&peak), "it held {peak} MB at once");
    rig.assert_no_out_of_memory();
}

#[test]
fn a_container_is_started_and_stopped() {
    let Some(rig) = Rig::with_docker() else { return };
    let voice = rig.container("cosyvoice").vram(4000).phases([3]).add();
    let running = || rig.docker(&["inspect", "--format", "{{.State.Running}}", voice.mark()]);
    assert_eq!(running(), "false\n");

    rig.gpuctl("start cosyvoice").run().succeeds().stdout_has("cosyvoice").progress();
    assert_eq!(running(), "true\n");
    assert_eq!(rig.card.used_mb(), 4000);
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["cosyvoice"]["state"], "ready");
    assert_eq!(status["services"]["cosyvoice"]["used_mb"], 4000);

    rig.gpuctl("stop cosyvoice").run().succeeds().stdout_has("cosyvoice").progress();
    assert_eq!(running(), "false\n");
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn a_unit_is_started_and_stopped() {
    let rig = Rig::new();
    let vllm = rig.unit("vllm").vram(12000).add();
    rig.gpuctl("start vllm").run().succeeds().stdout_has("vllm").progress();
    assert!(vllm.is_healthy());
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["vllm"]["state"], "ready");
    if rig.systemd().has_control_groups() {
        assert_eq!(status["services"]["vllm"]["used_mb"], 12000);
    }

    rig.gpuctl("stop vllm").run().succeeds().stdout_has("vllm").progress();
    rig.assert_no_process_of(&vllm);
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn a_configuration_that_cannot_be_parsed_is_refused_as_such() {
    let rig = Rig::new();
    rig.write_config("[gpu]\nreserve = 1");
    let error = rig.gpuctl("config check --json").run().fails("config").json();
    assert!(error["error"]["message"].as_str().unwrap().contains("reserve"));
    rig.gpuctl("config check").run().fails("config").stderr_has("reserve_mb");
}

#[test]
fn without_a_configuration_a_command_that_needs_services_names_config_init() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let prepare = rig.gpuctl("prepare-phase 2").env_remove("GPUCTL_CONFIG").run();
    prepare.fails("config").stderr_has("gpuctl config init");
}
