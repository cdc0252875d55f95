//! Tests of the pipeline that gpuctl was made for, on the box of its requirements: a desktop, two
//! native services and two containers that do not fit on the card together, and phases that need
//! them one after another.

use rig::{Bystander, Rig, Service, until};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The box of the requirements: a card of 24576 MB, of which a desktop holds 800 MB and 1024 MB are
/// kept in reserve, and the four services.
struct Pipeline {
    rig: Rig,
    vidi: Service,
    voice: Service,
    comfyui: Service,
    ollama: Service,
    desktop: Bystander,
}

impl Pipeline {
    fn new() -> Option<Pipeline> {
        let rig = Rig::with_docker()?;
        rig.card.describe(&json!({"reclaim_delay_ms": 300}));
        for (phase, name) in [("1", "crawl"), ("2", "reason"), ("4", "video"), ("5", "publish")] {
            rig.set(&format!("phases.{phase}"), name);
        }
        let vidi = rig.native("vidi").vram(4000).priority(40).phases([2]).add();
        let voice = rig.container("cosyvoice").vram(4000).priority(50).phases([3]).add();
        let idle = "--idle-vram 600 --warmup 200ms";
        let comfyui =
            rig.native("comfyui").vram(20000).priority(100).phases([4]).server(idle).add();
        let ollama = rig.container("ollama").vram(18000).priority(10).add();
        let simserver = vidi.command().split(' ').next().unwrap();
        let desktop = rig.mark("desktop");
        let desktop = rig.by_hand(&format!("{simserver} --name {desktop} --vram 800 --graphics"));
        until("the desktop is there", || rig.card.used_mb() == 800);
        Some(Pipeline { rig, vidi, voice, comfyui, ollama, desktop })
    }

    fn json(&self, words: &str) -> Value {
        self.rig.gpuctl(words).arg("--json").arg("--quiet").run().succeeds().json()
    }

    fn states(&self) -> BTreeMap<String, String> {
        let status = self.json("status");
        let services = status["services"].as_object().unwrap().clone();
        let state = |service: &Value| service["state"].as_str().unwrap().to_owned();
        services.iter().map(|(name, service)| (name.clone(), state(service))).collect()
    }

    /// Asserts that these services are ready and all others stopped, both by what gpuctl says and
    /// in truth.
    #[track_caller]
    fn assert_ready(&self, ready: &[&str], when: &str) {
        for (name, state) in self.states() {
            let expected = if ready.contains(&name.as_str()) { "ready" } else { "stopped" };
            assert_eq!(state, expected, "{name} {when}");
        }
        let all = [
            ("vidi", &self.vidi),
            ("cosyvoice", &self.voice),
            ("comfyui", &self.comfyui),
            ("ollama", &self.ollama),
        ];
        for (name, service) in all {
            assert_eq!(service.is_healthy(), ready.contains(&name), "{name} {when}");
            assert_eq!(self.rig.processes_of(service).is_empty(), !ready.contains(&name));
        }
    }

    /// Returns the processes of all services, without the desktop.
    fn processes(&self) -> Vec<i32> {
        let all = [&self.vidi, &self.voice, &self.comfyui, &self.ollama];
        all.iter().flat_map(|service| self.rig.processes_of(service)).collect()
    }

    #[track_caller]
    fn assert_desktop_lives(&mut self) {
        assert!(self.desktop.is_alive(), "the desktop was ended");
    }
}

#[test]
fn the_phases_of_the_pipeline_follow_one_another_and_the_card_never_overflows() {
    let Some(mut pipeline) = Pipeline::new() else { return };
    let rig = &pipeline.rig;
    // This service was left running from the day before.
    rig.docker(&["start", pipeline.ollama.mark()]);
    until("ollama is there", || pipeline.ollama.is_healthy());
    let peak = rig.card.peak_mb_during(|| {
        let prepare = |phase: &str, told: &str| {
            let prepare = rig.gpuctl("prepare-phase").arg(phase).run().succeeds();
            prepare.stdout_has(told).progress();
        };
        prepare("2", "stopped ollama; freed 18000 MB; started vidi");
        pipeline.assert_ready(&["vidi"], "in phase 2");
        assert_eq!(rig.card.used_mb(), 4800);

        prepare("3", "stopped vidi; freed 4000 MB; started cosyvoice");
        pipeline.assert_ready(&["cosyvoice"], "in phase 3");
        assert_eq!(rig.card.used_mb(), 4800);

        prepare("4", "stopped cosyvoice; freed 4000 MB; started comfyui");
        pipeline.assert_ready(&["comfyui"], "in phase 4");
        assert_eq!(rig.card.used_mb(), 1400, "the desktop, and an idle ComfyUI");
        pipeline.comfyui.work();
        assert_eq!(rig.card.used_mb(), 20800);

        prepare("5", "stopped comfyui");
        pipeline.assert_ready(&[], "in phase 5");
        assert_eq!(rig.card.used_mb(), 800);
    });
    assert!((20800..=24576).contains(&peak), "it held {peak} MB at once");
    rig.assert_no_out_of_memory();
    pipeline.assert_desktop_lives();
}

#[test]
fn the_same_services_without_gpuctl_run_out_of_memory() {
    let Some(pipeline) = Pipeline::new() else { return };
    let rig = &pipeline.rig;
    let _vidi = rig.by_hand(pipeline.vidi.command());
    rig.docker(&["start", pipeline.voice.mark()]);
    let _comfyui = rig.by_hand(pipeline.comfyui.command());
    let all = [&pipeline.vidi, &pipeline.voice, &pipeline.comfyui];
    until("all run", || all.iter().all(|service| service.is_healthy()));
    let job = ureq::post(pipeline.comfyui.url("/work")).send_empty();
    assert!(job.is_err(), "the job fits, and proves nothing");
    assert!(rig.card.out_of_memory().contains(pipeline.comfyui.mark()));
}

#[test]
fn what_is_so_already_is_not_done_again() {
    let Some(pipeline) = Pipeline::new() else { return };
    let commands = [
        "prepare-phase 2",
        "prepare-phase 3",
        "prepare-phase 4",
        "start comfyui",
        "stop comfyui",
        "start ollama",
        "release-all",
        "prepare-phase 5",
    ];
    for command in commands {
        pipeline.json(command);
        let (processes, states) = (pipeline.processes(), pipeline.states());
        let again = pipeline.json(command);
        for list in ["stopped", "unloaded", "started", "steps"] {
            assert_eq!(again[list], json!([]), "{list} by the second {command}");
        }
        assert_eq!(again["success"], true);
        assert_eq!(pipeline.processes(), processes, "after the second {command}");
        assert_eq!(pipeline.states(), states, "after the second {command}");
        let dry = pipeline.rig.gpuctl(command).arg("--dry-run").run().succeeds();
        dry.stdout("nothing to do\n");
    }
}

#[test]
fn lazily_a_service_that_is_in_nobodys_way_is_left_running() {
    let Some(pipeline) = Pipeline::new() else { return };
    pipeline.json("prepare-phase 2");
    let before = pipeline.rig.processes_of(&pipeline.vidi);
    let lazy = pipeline.json("prepare-phase 3 --lazy");
    assert_eq!((&lazy["stopped"], &lazy["kept"]), (&json!([]), &json!(["vidi"])));
    assert_eq!(lazy["started"], json!(["cosyvoice"]));
    pipeline.assert_ready(&["vidi", "cosyvoice"], "in phase 3, lazily");
    assert_eq!(pipeline.rig.processes_of(&pipeline.vidi), before);

    // An idle ComfyUI would fit beside both services; at its first job it would not fit even beside
    // one.
    let lazy = pipeline.json("prepare-phase 4 --lazy");
    assert_eq!(lazy["stopped"], json!(["vidi", "cosyvoice"]));
    pipeline.assert_ready(&["comfyui"], "in phase 4, lazily");
    pipeline.comfyui.work();
    pipeline.rig.assert_no_out_of_memory();
}

#[test]
fn a_phase_may_be_called_by_its_name() {
    let Some(pipeline) = Pipeline::new() else { return };
    let reason = pipeline.json("prepare-phase reason");
    assert_eq!((&reason["phase"], &reason["name"]), (&json!(2), &json!("reason")));
    pipeline.assert_ready(&["vidi"], "in the phase called reason");
    let third = pipeline.json("prepare-phase 3");
    assert_eq!((&third["phase"], &third["name"]), (&json!(3), &Value::Null));
    for unknown in ["9", "reasons", "Reason", "-"] {
        let refused = pipeline.rig.gpuctl("prepare-phase").arg(unknown).run();
        refused.fails("not_found").stderr_has("phase");
    }
    pipeline.assert_ready(&["cosyvoice"], "after phases that do not exist");
}

#[test]
fn a_phase_that_needs_nothing_releases_everything_unless_it_is_lazy() {
    let Some(pipeline) = Pipeline::new() else { return };
    pipeline.json("start vidi");
    pipeline.json("start cosyvoice");
    let lazy = pipeline.json("prepare-phase publish --lazy");
    assert_eq!(lazy["kept"], json!(["vidi", "cosyvoice"]));
    pipeline.assert_ready(&["vidi", "cosyvoice"], "after a lazy phase that needs nothing");
    let eager = pipeline.json("prepare-phase publish");
    assert_eq!(eager["stopped"], json!(["vidi", "cosyvoice"]));
    assert_eq!(eager["freed_mb"], 8000);
    pipeline.assert_ready(&[], "after a phase that needs nothing");
}

/// Takes out of a document what depends on the clock, and the memory of its steps; asserts the
/// shape of what is taken out.
#[track_caller]
fn timeless(mut document: Value) -> Value {
    let object = document.as_object_mut().unwrap();
    assert!(object.remove("elapsed_ms").unwrap().is_u64());
    for step in object["steps"].as_array_mut().unwrap() {
        let step = step.as_object_mut().unwrap();
        assert!(step.remove("elapsed_ms").unwrap().is_u64());
        let has_freed = step["action"] == "reclaim";
        assert_eq!(step.remove("memory_mb").is_some(), has_freed, "{step:?}");
    }
    document
}

fn step(action: &str, service: &str) -> Value {
    json!({"action": action, "service": service})
}

#[test]
fn each_acting_command_reports_what_it_did_in_the_fields_of_the_contract() {
    let Some(pipeline) = Pipeline::new() else { return };
    let reclaim = json!({"action": "reclaim", "service": null});
    let told = |words: &str| timeless(pipeline.json(words));
    assert_eq!(
        told("prepare-phase 2"),
        json!({
            "success": true, "phase": 2, "name": "reason", "stopped": [], "unloaded": [], "started": ["vidi"],
            "kept": [], "freed_mb": 0, "steps": [step("start", "vidi")]
        })
    );
    assert_eq!(
        told("start cosyvoice"),
        json!({
            "success": true, "service": "cosyvoice", "stopped": [], "unloaded": [], "started": ["cosyvoice"],
            "kept": ["vidi"], "freed_mb": 0, "steps": [step("start", "cosyvoice")]
        })
    );
    assert_eq!(
        told("stop cosyvoice"),
        json!({
            "success": true, "service": "cosyvoice", "stopped": ["cosyvoice"], "unloaded": [], "started": [],
            "kept": ["vidi"], "freed_mb": 4000, "steps": [step("stop", "cosyvoice"), reclaim]
        })
    );
    assert_eq!(
        told("prepare-phase 4"),
        json!({
            "success": true, "phase": 4, "name": "video", "stopped": ["vidi"], "unloaded": [],
            "started": ["comfyui"], "kept": [], "freed_mb": 4000,
            "steps": [step("stop", "vidi"), reclaim, step("start", "comfyui")]
        })
    );
    assert_eq!(
        told("release-all"),
        json!({
            "success": true, "stopped": ["comfyui"], "unloaded": [], "started": [], "kept": [], "freed_mb": 600,
            "steps": [step("stop", "comfyui"), reclaim]
        })
    );
    let several = told("stop vidi cosyvoice");
    assert_eq!(several["services"], json!(["vidi", "cosyvoice"]));
    assert_eq!(several["stopped"], json!([]));
}

#[test]
fn a_dry_run_changes_nothing_and_foretells_what_the_real_run_does() {
    let Some(pipeline) = Pipeline::new() else { return };
    let commands = [
        "prepare-phase 2",
        "start cosyvoice",
        "prepare-phase 3",
        "start vidi",
        "prepare-phase 4 --lazy",
        "stop comfyui",
        "start ollama",
        "start comfyui",
        "release-all",
    ];
    let mut acted = Vec::new();
    for command in commands {
        let (processes, claims) = (pipeline.processes(), pipeline.rig.card.used_mb());
        let mut foretold = pipeline.json(&format!("{command} --dry-run"));
        assert_eq!(pipeline.processes(), processes, "{command} --dry-run");
        assert_eq!(pipeline.rig.card.used_mb(), claims, "{command} --dry-run");
        assert_eq!(foretold["dry_run"], true);

        let done = pipeline.json(command);
        assert_eq!(done.get("dry_run"), None);
        let lists = ["stopped", "unloaded", "started", "kept", "phase", "name", "service"];
        for field in lists {
            assert_eq!(foretold.get(field), done.get(field), "{field} of {command}");
        }
        for step in foretold["steps"].as_array_mut().unwrap() {
            step.as_object_mut().unwrap().remove("memory_mb");
        }
        assert_eq!(foretold["steps"], timeless(done.clone())["steps"], "{command}");
        if done["freed_mb"].is_u64() {
            assert_eq!(foretold["freed_mb"], done["freed_mb"], "{command}");
        }
        acted.extend(done["stopped"].as_array().unwrap().clone());
        acted.extend(done["started"].as_array().unwrap().clone());
    }
    // The whole way was gone: all four services were started, and all were stopped.
    for service in ["vidi", "cosyvoice", "comfyui", "ollama"] {
        assert!(acted.iter().filter(|name| *name == service).count() >= 2, "{service}: {acted:?}");
    }
    pipeline.assert_ready(&[], "at the end");
}
