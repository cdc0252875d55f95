//! Tests of `gpuctl status --prometheus`, as node_exporter's textfile collector reads it.

use rig::{Rig, skip_or_fail, until, works};
use serde_json::json;
use std::collections::BTreeSet;

fn metrics(rig: &Rig) -> String {
    rig.gpuctl("status --prometheus").run().succeeds().text()
}

/// Makes a rig on which all figures are known: `vidi` works, and the lock is held for it, while
/// `idle` is stopped. Returns the rig and the server of `vidi`.
fn rich() -> (Rig, rig::Bystander) {
    let rig = Rig::new();
    rig.card.describe(&json!({"devices": [
        {"uuid": "GPU-t", "total_mb": 24000, "temperature_c": 51, "utilization_percent": 7}]}));
    let vidi = rig.native("vidi").vram(4000).priority(-40).server("--idle-vram 600");
    let vidi = vidi.set("busy", toml::toml! { command = "echo 2" }).add();
    rig.native("idle").vram(500).add();
    rig.set("canary.service", "vidi");
    let server = rig.by_hand(vidi.command());
    until("vidi is healthy", || vidi.is_healthy() && rig.card.used_mb() == 600);
    rig.acquire("vidi --ttl 1h");
    (rig, server)
}

/// Returns the samples without their times in seconds, which no two runs share.
fn stable(text: &str) -> BTreeSet<String> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let stable = samples.map(|line| match line.rsplit_once(' ') {
        Some((series, _)) if series.contains("_seconds") => series.to_owned(),
        _ => line.to_owned(),
    });
    stable.collect()
}

const STATES: [&str; 9] = [
    "unknown",
    "stopped",
    "starting",
    "ready",
    "busy",
    "stopping",
    "unresponsive",
    "asleep",
    "error",
];

#[test]
fn each_figure_is_there_in_base_units() {
    let (rig, _server) = rich();
    let text = metrics(&rig);
    let mut expected: Vec<String> = [
        "gpuctl_nvml_up 1",
        "gpuctl_gpu_memory_total_bytes{gpu=\"0\",uuid=\"GPU-t\"} 25165824000",
        "gpuctl_gpu_memory_used_bytes{gpu=\"0\",uuid=\"GPU-t\"} 629145600",
        "gpuctl_gpu_memory_free_bytes{gpu=\"0\",uuid=\"GPU-t\"} 24536678400",
        "gpuctl_gpu_memory_available_bytes{gpu=\"0\",uuid=\"GPU-t\"} 23462936576",
        "gpuctl_gpu_memory_others_bytes{gpu=\"0\",uuid=\"GPU-t\"} 0",
        "gpuctl_gpu_memory_reserve_bytes{gpu=\"0\",uuid=\"GPU-t\"} 1073741824",
        "gpuctl_gpu_memory_committed_bytes{gpu=\"0\",uuid=\"GPU-t\"} 4194304000",
        "gpuctl_gpu_temperature_celsius{gpu=\"0\",uuid=\"GPU-t\"} 51",
        "gpuctl_gpu_utilization_ratio{gpu=\"0\",uuid=\"GPU-t\"} 0.07",
        "gpuctl_service_memory_bytes{service=\"vidi\"} 629145600",
        "gpuctl_service_memory_bytes{service=\"idle\"} 0",
        "gpuctl_service_declared_bytes{service=\"vidi\"} 4194304000",
        "gpuctl_service_declared_bytes{service=\"idle\"} 524288000",
        "gpuctl_service_peak_bytes{service=\"vidi\"} 629145600",
        "gpuctl_service_jobs{service=\"vidi\"} 2",
        "gpuctl_service_idle_seconds{service=\"vidi\"}",
        "gpuctl_service_priority{service=\"vidi\"} -40",
        "gpuctl_service_priority{service=\"idle\"} 0",
        "gpuctl_service_health_seconds{service=\"vidi\"}",
        "gpuctl_service_uptime_seconds{service=\"vidi\"}",
        "gpuctl_lock_up 1",
        "gpuctl_lock_held 1",
        "gpuctl_lock_ttl_seconds",
        "gpuctl_canary_restore_owed 0",
    ]
    .map(str::to_owned)
    .to_vec();
    for (service, state) in [("vidi", "busy"), ("idle", "stopped")] {
        for other in STATES {
            let is_it = i32::from(state == other);
            let labels = format!("service=\"{service}\",state=\"{other}\"");
            expected.push(format!("gpuctl_service_state{{{labels}}} {is_it}"));
        }
    }
    assert_eq!(stable(&text), expected.into_iter().collect(), "{text}");
    let check = rig.gpuctl("status --prometheus --check idle").run();
    check.fails("no").stdout_has("gpuctl_nvml_up 1");
}

#[test]
fn promtool_has_nothing_to_say() {
    let (rig, _server) = rich();
    // These characters end a label, or begin an escape in it.
    rig.card.describe(&json!({"devices": [{"uuid": "GPU-\"\\\n}"}]}));
    let empty = Rig::new();
    empty.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    for rig in [&rig, &empty] {
        let text = metrics(rig);
        if !works("promtool", &["--version"]) {
            return skip_or_fail("promtool", "promtool");
        }
        let checked = rig.shell("gpuctl status --prometheus | promtool check metrics").run();
        assert_eq!(checked.succeeds().stderr_text(), "", "{text}");
    }
    rig.gpuctl("status --prometheus").run().succeeds().stdout_has(r#"uuid="GPU-\"\\\\n}""#);
}

#[test]
fn what_is_not_known_has_no_sample() {
    let rig = Rig::new();
    rig.container("voice").not_installed().add();
    rig.set("gpu.nvml_library", "/nowhere/libnvidia-ml.so.1");
    rig.set("gpu.total_mb", 24000);
    rig.set("lock.url", "redis://127.0.0.1:1");
    let text = metrics(&rig);
    let samples = stable(&text);
    for sample in ["gpuctl_nvml_up 0", "gpuctl_lock_up 0"] {
        assert!(samples.contains(sample), "{text}");
    }
    assert!(
        samples.contains("gpuctl_service_state{service=\"voice\",state=\"unknown\"} 1"),
        "{text}"
    );
    for name in [
        "memory_total",
        "memory_used",
        "memory_free",
        "memory_others",
        "temperature",
        "utilization",
        "service_memory",
        "peak",
        "jobs",
        "idle",
        "health",
        "uptime",
        "lock_held",
        "lock_ttl",
        "canary",
    ] {
        assert!(!text.contains(name), "{name} is in {text}");
    }
}

#[test]
fn the_manual_has_the_metrics_that_there_are() {
    let (rig, _server) = rich();
    let manual = include_str!("../../docs/metrics.md");
    let listed =
        manual.lines().filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next());
    let text = metrics(&rig);
    let printed = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    assert_eq!(listed.collect::<Vec<_>>(), printed.collect::<Vec<_>>());
}
