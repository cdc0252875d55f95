//! Tests of the acceptance criteria of the seeds, with the sizes and priorities of their services,
//! all of them native here.

use rig::{Rig, Service, until};
use serde_json::json;

const CARD_MB: u64 = 24576;

struct Services {
    vidi: Service,
    voice: Service,
    comfyui: Service,
}

/// Configures the services. The driver takes its time to give memory back, as the real one does,
/// and ComfyUI allocates while it comes up.
fn pipeline(rig: &Rig) -> Services {
    rig.card.describe(&json!({"reclaim_delay_ms": 300}));
    let native = |name, vram, priority, phase| {
        rig.native(name).vram(vram).priority(priority).phases([phase])
    };
    Services {
        vidi: native("vidi", 4000, 40, 2).server("--fork 2").add(),
        voice: native("cosyvoice", 4000, 50, 3).server("--term-delay 100ms").add(),
        comfyui: native("comfyui", 20000, 100, 4).server("--warmup 200ms --steps 4").add(),
    }
}

#[test]
fn ac_1_the_phases_in_a_row_do_not_run_out_of_memory() {
    let rig = Rig::new();
    let services = pipeline(&rig);
    let peak = rig.card.peak_mb_during(|| {
        for (phase, needed) in
            [("2", &services.vidi), ("3", &services.voice), ("4", &services.comfyui)]
        {
            let prepare = rig.gpuctl("prepare-phase --json").arg(phase).run();
            let report = prepare.succeeds().progress().json();
            assert_eq!(report["success"], true);
            assert!(needed.is_healthy(), "in phase {phase}");
            needed.work();
            rig.assert_no_out_of_memory();
        }
    });
    assert!((20000..=CARD_MB).contains(&peak), "it held {peak} MB at once");
    rig.assert_no_process_of(&services.vidi);
    rig.assert_no_process_of(&services.voice);
}

#[test]
fn ac_1_without_gpuctl_the_same_services_do_run_out_of_memory() {
    let rig = Rig::new();
    let services = pipeline(&rig);
    let mut running = Vec::new();
    for service in [&services.vidi, &services.voice] {
        running.push(rig.by_hand(service.command()));
        until("it is healthy", || service.is_healthy());
    }
    let mut comfyui = rig.by_hand(services.comfyui.command());
    until("ComfyUI has ended", || !comfyui.is_alive());
    assert!(rig.card.out_of_memory().contains(services.comfyui.mark()));
}

#[test]
fn ac_1_a_job_that_comes_later_finds_the_memory_that_its_service_declared() {
    let rig = Rig::new();
    rig.native("vidi").vram(4000).phases([2]).add();
    let comfyui = rig.native("comfyui").vram(20000).priority(100).server("--idle-vram 600").add();
    rig.gpuctl("start comfyui").run().succeeds().stdout_has("started comfyui").progress();
    assert_eq!(rig.card.used_mb(), 600);

    let start = rig.gpuctl("start vidi --quiet").run();
    start.fails("insufficient_vram").stderr_has("comfyui (priority 100, 20000 MB)");
    comfyui.work();
    assert_eq!(rig.card.used_mb(), 20000);
    rig.assert_no_out_of_memory();
}

#[test]
fn ac_3_a_higher_priority_stops_a_lower_one_waits_for_its_memory_and_starts() {
    let rig = Rig::new();
    let services = pipeline(&rig);
    rig.gpuctl("start cosyvoice").run().succeeds().stdout_has("started cosyvoice").progress();
    rig.card.describe(&json!({"reclaim_delay_ms": 1000}));

    let start = rig.gpuctl("start comfyui --json").run().succeeds().progress().json();
    assert_eq!(start["stopped"], json!(["cosyvoice"]));
    assert_eq!(start["started"], json!(["comfyui"]));
    assert_eq!(start["freed_mb"], 4000);
    let actions: Vec<_> =
        start["steps"].as_array().unwrap().iter().map(|step| &step["action"]).collect();
    assert_eq!(actions, ["stop", "reclaim", "start"]);
    assert!(services.comfyui.is_healthy());
    rig.assert_no_process_of(&services.voice);
    rig.assert_no_out_of_memory();
}

#[test]
fn ac_3_what_fits_beside_the_others_stops_nobody() {
    let rig = Rig::new();
    let services = pipeline(&rig);
    rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    let start = rig.gpuctl("start cosyvoice --json --quiet").run().succeeds().json();
    assert_eq!((&start["stopped"], &start["kept"]), (&json!([]), &json!(["vidi"])));
    assert!(services.vidi.is_healthy() && services.voice.is_healthy());
}

#[test]
fn ac_3_a_lower_priority_is_refused_and_told_who_is_in_the_way() {
    let rig = Rig::new();
    let services = pipeline(&rig);
    rig.native("ollama").vram(18000).priority(10).add();
    rig.gpuctl("prepare-phase 4").run().succeeds().stdout_has("started comfyui").progress();
    let before = (rig.processes_of(&services.comfyui), rig.card.claims());

    for arguments in ["start ollama", "start ollama --dry-run", "start ollama --no-preempt"] {
        let start = rig.gpuctl(arguments).run().fails("insufficient_vram");
        start.stderr_has("in the way: comfyui (priority 100, 20000 MB)");
    }
    let error = rig.gpuctl("start ollama --json").run().fails("insufficient_vram").json();
    assert_eq!(error["error"]["details"]["blockers"][0]["service"], "comfyui");
    assert_eq!((rig.processes_of(&services.comfyui), rig.card.claims()), before);
    assert!(services.comfyui.is_healthy());
}

#[test]
fn ac_3_no_preempt_stops_nobody_of_lower_priority_either() {
    let rig = Rig::new();
    let services = pipeline(&rig);
    rig.gpuctl("start cosyvoice").run().succeeds().stdout_has("started cosyvoice").progress();
    let start = rig.gpuctl("start comfyui --no-preempt").run().fails("insufficient_vram");
    start.stderr_has("in the way: cosyvoice (priority 50, 4000 MB)");
    assert!(services.voice.is_healthy());
    rig.assert_no_process_of(&services.comfyui);
}

#[test]
fn what_has_been_done_is_not_done_again() {
    let rig = Rig::new();
    let services = pipeline(&rig);
    for _ in 0..2 {
        rig.gpuctl("prepare-phase 3").run().succeeds().stdout_has("cosyvoice").progress();
    }
    let before = rig.processes_of(&services.voice);
    let again = rig.gpuctl("prepare-phase 3 --json").run().succeeds().json();
    assert_eq!((&again["started"], &again["kept"]), (&json!([]), &json!(["cosyvoice"])));
    rig.gpuctl("start cosyvoice").run().succeeds().stdout_has("kept cosyvoice");
    assert_eq!(rig.processes_of(&services.voice), before);
    for _ in 0..2 {
        rig.gpuctl("release-all").run().succeeds().stdout_has("all services").progress();
    }
    rig.gpuctl("stop cosyvoice").run().succeeds().stdout_has("nothing to do");
}

#[test]
fn a_dry_run_tells_the_plan_and_changes_nothing() {
    let rig = Rig::new();
    let services = pipeline(&rig);
    rig.gpuctl("prepare-phase 3").run().succeeds().stdout_has("started cosyvoice").progress();
    let before = rig.processes_of(&services.voice);
    rig.gpuctl("prepare-phase 4 --dry-run")
        .run()
        .succeeds()
        .stdout_has("would stop cosyvoice (4000 MB)")
        .stdout_has("would start comfyui (20000 MB)");
    rig.gpuctl("release-all --dry-run").run().succeeds().stdout_has("would stop cosyvoice");
    assert_eq!(rig.processes_of(&services.voice), before);
    assert_eq!(rig.processes_of(&services.comfyui), [0; 0]);
}
