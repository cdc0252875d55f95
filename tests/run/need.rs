//! Tests of what services and commands really need: it is seen whenever gpuctl looks, kept, and
//! shown.

use rig::{Rig, Service, until};
use serde_json::{Value, json};

/// Starts a service that declares 12000 MB, takes them at its first job, and gives them back when
/// asked.
fn comfyui(rig: &Rig) -> Service {
    let draft = rig.native("comfyui").vram(12000).server("--api comfyui --idle-vram 600");
    let service = draft.add();
    rig.gpuctl("start comfyui").run().succeeds().ignores_stdout().progress();
    service
}

fn shown(rig: &Rig) -> Value {
    rig.gpuctl("status --json").run().succeeds().json()["services"]["comfyui"].clone()
}

/// Gives the service a job, and then makes it give its memory back before anybody looks.
fn work_and_free(service: &Service, rig: &Rig) {
    service.work();
    assert_eq!(rig.card.used_mb(), 12000);
    free(service, rig);
}

fn free(service: &Service, rig: &Rig) {
    ureq::post(service.url("/free")).send(r#"{"free_memory": true}"#).unwrap();
    until("its memory is back", || rig.card.used_mb() == 600);
}

#[test]
fn the_most_that_a_service_was_seen_to_hold_is_kept() {
    let rig = Rig::new();
    rig.native("other").add();
    let service = comfyui(&rig);
    assert_eq!(shown(&rig)["peak_mb"], 600);
    work_and_free(&service, &rig);
    assert_eq!(shown(&rig)["peak_mb"], 600, "nobody has looked");
    service.work();
    assert_eq!(shown(&rig)["peak_mb"], 12000);
    free(&service, &rig);
    rig.gpuctl("status").run().succeeds().stdout_has("PEAK").stdout_has("12000  12000");
    rig.gpuctl("stop comfyui").run().succeeds().ignores_stdout().progress();
    assert_eq!((&shown(&rig)["peak_mb"], &shown(&rig)["used_mb"]), (&json!(12000), &json!(0)));
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["other"]["peak_mb"], json!(null), "of which nothing was seen");
}

#[test]
fn every_look_counts_that_of_a_start_at_its_end_too() {
    let looks = [
        ("start comfyui", true),
        ("prepare-phase 1", true),
        ("can-fit 1 --budget", false),
        ("doctor", false),
    ];
    for (look, starts) in looks {
        let rig = Rig::new();
        let server = "--api comfyui --unload-residual 600";
        let service = rig.native("comfyui").vram(12000).phases([1]).server(server).add();
        if !starts {
            // The notes of this start must not count, so they are kept elsewhere.
            let start = rig.gpuctl("start comfyui --quiet");
            start.env("GPUCTL_STATE_DIR", rig.path("other")).run().succeeds();
        }
        rig.gpuctl(look).run().ignores_stdout().ignores_stderr().ended();
        free(&service, &rig);
        assert_eq!(shown(&rig)["peak_mb"], 12000, "{look}");
    }
}

#[test]
fn where_the_driver_keeps_account_nobody_has_to_look_in_time() {
    let rig = Rig::new();
    rig.card.describe(&json!({"devices": [{"accounting": true}]}));
    let service = comfyui(&rig);
    work_and_free(&service, &rig);
    assert_eq!(shown(&rig)["peak_mb"], 12000);
    for without in [json!(null), json!(false)] {
        rig.card.describe(&json!({"devices": [{"accounting": without}]}));
        assert_eq!(shown(&rig)["peak_mb"], 12000, "it is kept");
    }
}

#[test]
fn a_run_tells_what_its_services_and_its_command_held_at_most() {
    let rig = Rig::new();
    let service = comfyui(&rig);
    let training = format!("{} --name {} --vram 3000", rig.simserver(), rig.mark("training"));
    rig.program(
        "train",
        &format!(
            "curl -sX POST {} >/dev/null\nexec {training} --exit-after 1500ms",
            service.url("/work")
        ),
    );
    rig.gpuctl("run comfyui -- train").run().succeeds().ignores_stdout().progress();
    let history = rig.gpuctl("history --json -n 1").run().succeeds().json();
    let run = history["runs"][0]["steps"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&run["action"], &run["peak_mb"]), (&json!("run"), &json!(3000)));
    assert_eq!(run["service_peaks_mb"], json!({"comfyui": 12000}));
    let told = "it held 3000 MB at most; comfyui 12000 MB";
    rig.gpuctl("history -n 1").run().succeeds().stdout_has(told);
    assert_eq!(shown(&rig)["peak_mb"], 12000);
}

#[test]
fn doctor_warns_of_a_declaration_that_is_far_from_what_was_seen() {
    let rig = Rig::new();
    rig.native("small").vram(1000).server("--vram 1500").add();
    rig.native("large").vram(6001).server("--vram 4000").add();
    rig.native("right").vram(6000).server("--vram 4000").add();
    for name in ["small", "large", "right"] {
        rig.gpuctl("start").arg(name).run().succeeds().ignores_stdout().progress();
    }
    let peak = |name: &str| {
        let doctor = rig.gpuctl("doctor --json").run().ended().1;
        let doctor: Value = serde_json::from_str(&doctor).unwrap();
        let checks = doctor["checks"].as_array().unwrap().clone();
        checks.into_iter().find(|it| it["id"] == "vram.peak" && it["subject"] == name)
    };
    for count in 0..5 {
        assert!(peak("large").is_none_or(|check| check["verdict"] == "pass"), "{count} runs");
        rig.gpuctl("run large -- sleep 1.5").run().succeeds().progress();
        rig.gpuctl("run right -- sleep 1.5").run().succeeds().progress();
    }
    let [small, large, right] = ["small", "large", "right"].map(|name| peak(name).unwrap());
    assert_eq!(small["verdict"], "warn", "{small}");
    assert_eq!(small["message"], "has held 1500 MB, more than its vram_mb of 1000 MB");
    assert_eq!(small["fix"], "set services.small.vram_mb = 1500");
    assert_eq!(large["verdict"], "warn", "{large}");
    assert_eq!(
        large["message"],
        "declares 6001 MB, and has held 4000 MB at most in 5 calls of `gpuctl run`"
    );
    assert_eq!(right["verdict"], "pass", "{right}");
}

/// What was seen never changes a plan, so a command that only looks needs no place to keep it.
#[test]
fn a_state_folder_that_cannot_be_written_keeps_nobody_from_looking() {
    let rig = Rig::new();
    comfyui(&rig);
    rig.file("none", "no folder");
    let look = rig.gpuctl("status --json").env("GPUCTL_STATE_DIR", rig.path("none")).run();
    let status = look.succeeds().json();
    assert_eq!(status["services"]["comfyui"]["used_mb"], 600);
    let notes = rig.state_dir().join("notes.json");
    std::fs::write(&notes, "{ no notes").unwrap();
    assert_eq!(shown(&rig)["peak_mb"], 600, "they are made anew");
    let mode = std::os::unix::fs::PermissionsExt::mode(&notes.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}
