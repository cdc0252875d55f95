//! Tests of `gpuctl can-fit`: whether a size or a service fits, for this moment or beside what is
//! promised to others.

use rig::{Rig, unconfigured_or_skip, until};
use serde_json::{Value, json};

/// Memory in MB that is available on an empty card: 24576 MB without the reserve of 1024 MB.
const AVAILABLE: u64 = 23552;

#[test]
fn a_size_is_taken_in_every_form() {
    let rig = Rig::new();
    for (size, mb) in [
        ("20000", 20000),
        ("20000MB", 20000),
        ("20000mb", 20000),
        ("20000MiB", 20000),
        ("20000 MB", 20000),
        ("20GB", 20480),
        ("20GiB", 20480),
        ("20gib", 20480),
        ("20G", 20480),
        ("20 g", 20480),
        ("0", 0),
        ("007", 7),
        ("23GB", AVAILABLE),
    ] {
        let answer = rig.gpuctl("can-fit --json").arg(size).run().succeeds().json();
        assert_eq!(answer["required_mb"], mb, "{size}");
    }
    let two_words = rig.gpuctl("can-fit 20 GB --json").run().succeeds().json();
    assert_eq!(two_words["required_mb"], 20480);
    let help = rig.gpuctl("can-fit --help").run().succeeds().text();
    assert!(help.contains("SIZE"), "{help}");
    let help = rig.gpuctl("--help").run().succeeds().text();
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(help.contains("G, GB and GiB all mean 1024 MB"), "{help}");
}

#[test]
fn the_exit_code_answers_to_the_megabyte() {
    let rig = Rig::new();
    for (words, fits) in [
        ("can-fit 23552", true),
        ("can-fit 23553", false),
        ("can-fit 24GB", false),
        ("can-fit 16777216", false),
        ("can-fit 24576 --margin 0", true),
        ("can-fit 24577 --margin 0", false),
        ("can-fit 20480 --margin 4GB", true),
        ("can-fit 20481 --margin 4GB", false),
        ("can-fit 0 --margin 24576", true),
        ("can-fit 0 --margin 24577", false),
        ("can-fit 1 --margin 24576", false),
        ("can-fit 1 --margin 16777216", false),
    ] {
        let (code, word) = if fits { (0, "fits: ") } else { (1, "does not fit: ") };
        let text = rig.gpuctl(words).run().exits(code).text();
        assert!(text.starts_with(word), "{words}: {text}");
        let answer = rig.gpuctl(words).arg("--json").run().exits(code).json();
        assert_eq!(answer["fits"], fits, "{words}");
    }
}

#[test]
fn the_answer_has_the_fields_of_the_contract() {
    let rig = Rig::new();
    rig.set("gpu.reserve_mb", 1000);
    let vidi = rig.native("vidi").vram(4000).add();
    let _server = rig.by_hand(vidi.command());
    until("it holds its memory", || rig.card.used_mb() == 4000);
    let answer = rig.gpuctl("can-fit 20000 --json").run().exits(1).json();
    assert_eq!(
        answer,
        json!({"fits": false, "required_mb": 20000, "margin_mb": 1000, "free_mb": 20576,
            "available_mb": 19576, "source": "nvml"})
    );
    let text = rig.gpuctl("can-fit 20000 --margin 500").run().succeeds().text();
    assert_eq!(text, "fits: 20000 MB needed, 20076 MB available (20576 MB free, margin 500 MB)\n");
}

#[test]
fn a_service_needs_what_it_declares() {
    let rig = Rig::new();
    rig.native("comfyui").vram(20000).add();
    rig.native("giant").vram(30000).add();
    let answer = rig.gpuctl("can-fit comfyui --json").run().succeeds().json();
    assert_eq!(answer["required_mb"], 20000);
    rig.gpuctl("can-fit giant").run().exits(1).stdout_has("does not fit: 30000 MB needed");
    rig.gpuctl("can-fit comfyui --margin 4577").run().exits(1).stdout_has("does not fit");
}

#[test]
fn a_service_that_is_not_configured_is_not_found() {
    let rig = Rig::new();
    rig.native("comfyui").add();
    let unknown = rig.gpuctl("can-fit comfui").run().fails("not_found");
    drop(unknown.stderr_has("\"comfui\"").stderr_has("hint: did you mean \"comfyui\"?"));
    rig.gpuctl("can-fit GB").run().fails("not_found").stderr_has("configured services: comfyui");
}

#[test]
fn a_budget_counts_what_an_idle_service_will_take() {
    let rig = Rig::new();
    let comfyui = rig.native("comfyui").vram(20000).server("--idle-vram 600").add();
    let _server = rig.by_hand(comfyui.command());
    until("it is idle", || rig.card.used_mb() == 600);
    let answer = |words: &str, code: i32| rig.gpuctl(words).run().exits(code).json();
    let now = answer("can-fit 20000 --json", 0);
    assert_eq!((&now["free_mb"], &now["available_mb"]), (&23976.into(), &22952.into()));
    let promised = answer("can-fit 20000 --budget --json", 1);
    assert_eq!((&promised["free_mb"], &promised["available_mb"]), (&23976.into(), &3552.into()));
    answer("can-fit 3552 --budget --json", 0);
    answer("can-fit 3553 --budget --json", 1);
    answer("can-fit 4576 --budget --margin 0 --json", 0);

    comfyui.work();
    let busy = answer("can-fit 3552 --budget --json", 0);
    assert_eq!(busy["available_mb"], 3552, "what is used is not counted twice");
    rig.set("services.comfyui.evict", "unload");
    rig.set("services.comfyui.unload.url", "http://localhost:1");
    answer("can-fit 3552 --budget --json", 0);
}

#[test]
fn a_budget_leaves_out_what_unloads_on_request() {
    let rig = Rig::new();
    let call = toml::toml! { url = "http://localhost:1" };
    let draft = rig.native("comfyui").vram(20000).server("--idle-vram 600");
    let comfyui = draft.set("evict", "unload").set("unload", call).add();
    let _server = rig.by_hand(comfyui.command());
    until("it is idle", || rig.card.used_mb() == 600);
    rig.gpuctl("can-fit 20000 --budget").run().succeeds().stdout_has("22952 MB available");
}

#[test]
fn a_budget_takes_a_service_that_cannot_be_asked_for_running() {
    let rig = Rig::new();
    rig.container("ollama").vram(18000).not_installed().add();
    rig.gpuctl("can-fit 20000").run().succeeds().stdout_has("23552 MB available");
    rig.gpuctl("can-fit 20000 --budget").run().exits(1).stdout_has(" 5552 MB available");
}

#[test]
fn without_a_reading_there_is_an_answer_only_by_the_cards_declared_size() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").vram(4000).server("--idle-vram 600").add();
    rig.native("stopped").vram(9000).add();
    let _server = rig.by_hand(vidi.command());
    until("it runs", || rig.card.used_mb() == 600);
    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    let refused = rig.gpuctl("can-fit 1").run().fails("unavailable");
    drop(refused.stderr_has("VRAM cannot be read: ").stderr_has("hint: for an estimate"));

    rig.set("gpu.total_mb", 24576);
    let estimate = |words: &str, code: i32| -> Value {
        let answer = rig.gpuctl(words).arg("--json").run().exits(code);
        answer
            .stderr_has("warning: gpu.nvml_library cannot be loaded")
            .stderr_has("gpu.total_mb")
            .json()
    };
    let answer = estimate("can-fit 19552", 0);
    assert_eq!(
        answer,
        json!({"fits": true, "required_mb": 19552, "margin_mb": 1024, "free_mb": 20576,
            "available_mb": 19552, "source": "estimate"})
    );
    estimate("can-fit 19553", 1);
    rig.gpuctl("can-fit 1 --quiet").run().succeeds();
}

#[test]
fn an_estimate_takes_a_service_that_cannot_be_asked_for_running() {
    let rig = Rig::new();
    rig.container("ollama").vram(18000).not_installed().add();
    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    rig.set("gpu.total_mb", 24576);
    let answer = rig.gpuctl("can-fit 20000 --quiet --json").run().exits(1).json();
    assert_eq!(answer["free_mb"], 6576);
}

#[test]
fn what_is_no_size_is_a_bad_command_line() {
    let rig = Rig::new();
    for bad in [
        "1.5GB",
        "20XB",
        "20 000",
        "1e3",
        "0x10",
        "20GBB",
        "99999999999999999999",
        "16777217",
        "16385GB",
        "18014398509481984GB",
        "5-",
        "1,000",
    ] {
        let size = rig.gpuctl("can-fit").arg(bad).run().fails("usage");
        drop(
            size.stderr_has(&format!("\"{bad}\" is not a valid size"))
                .stderr_has("hint: a size is"),
        );
        let margin = rig.gpuctl("can-fit 1 --margin").arg(bad).run().fails("usage");
        drop(margin.stderr_has(&format!("\"{bad}\" is not a valid size")));
    }
    rig.gpuctl("can-fit 1 --margin much").run().fails("usage").stderr_has("not a valid size");
    rig.gpuctl("can-fit -5").run().fails("usage").stderr_has("`can-fit` has no option -5");
    rig.gpuctl("can-fit").run().fails("usage").stderr_has("SIZE|SERVICE");
    for words in ["1 2", "20 TB", "ollama GB"] {
        let size = rig.gpuctl(&format!("can-fit {words}")).run().fails("usage");
        drop(size.stderr_has(&format!("\"{words}\" is not a valid size")).stderr_has("20GB"));
    }
    let error = rig.gpuctl("can-fit 20XB --json").run().fails("usage").json();
    assert_eq!(error["error"]["message"], "\"20XB\" is not a valid size");
}

#[test]
fn sizes_need_no_configuration_and_services_do() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    // Without a configuration, gpuctl uses the library that the system has.
    let library = rig.path("lib");
    std::fs::create_dir(&library).unwrap();
    let ours = rig.gpuctl("config show --json").run().succeeds().json();
    let ours = ours["gpu"]["nvml_library"].as_str().unwrap().to_owned();
    std::os::unix::fs::symlink(ours, library.join("libnvidia-ml.so.1")).unwrap();
    let run = |words: &str| {
        rig.gpuctl(words).env_remove("GPUCTL_CONFIG").env("LD_LIBRARY_PATH", &library).run()
    };
    run("can-fit 23552").succeeds().stdout_has("fits");
    run("can-fit 23553").exits(1).stdout_has("does not fit");
    run("can-fit 1 --budget").succeeds().stdout_has("fits");
    run("can-fit comfyui").fails("config").stderr_has("gpuctl config init");
}

#[test]
fn the_answer_is_about_the_card_that_was_named() {
    let rig = Rig::new();
    rig.card
        .describe(&json!({"devices": [{"total_mb": 8000}, {"total_mb": 48000, "uuid": "GPU-b"}]}));
    for (words, code) in [
        ("can-fit 20000", 1),
        ("can-fit 20000 --gpu 0", 1),
        ("can-fit 20000 --gpu 1", 0),
        ("can-fit 20000 --gpu GPU-b", 0),
    ] {
        rig.gpuctl(words).run().exits(code).stdout_has("fit");
    }
    // For a card that is not there, there is no estimate either, and no plan.
    rig.set("gpu.total_mb", 24576);
    rig.native("vidi").phases([2]).add();
    for words in ["can-fit 1", "can-fit 1 --budget", "prepare-phase 2", "start vidi --dry-run"] {
        let refused = rig.gpuctl(words).arg("--gpu=2").run().fails("unavailable");
        refused.stderr_has("there is no GPU 2");
    }
}
