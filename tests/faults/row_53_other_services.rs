//! Tests of patterns that find what is proven to be another service's, and of services that claim
//! the same process, unit or container (row 53).

use rig::{Draft, Rig, Script, Service, state, until};

/// Adds vllm-small and vllm, which is down and whose pattern finds the processes of vllm-small,
/// too, but no start command.
fn beside(small: Draft) -> (Service, Service) {
    let rig = small.rig();
    let pattern = format!("simserver.*vllm.*{}", rig.token());
    let vllm = rig.native("vllm").vram(10000).phases([1]).script(Script::File);
    let vllm = vllm.set("match", pattern).set("start_timeout", "5s").add();
    let small = small.vram(2000).phases([2]).set("start_timeout", "5s").add();
    (vllm, small)
}

fn sorted(mut pids: Vec<i32>) -> Vec<i32> {
    pids.sort_unstable();
    pids
}

/// Asserts that the servers of vllm-small live on, whatever is done with vllm.
#[track_caller]
fn is_left_alone(rig: &Rig, vllm: &Service, small: &Service) {
    let servers = || sorted(rig.processes_of(small));
    let before = servers();
    assert!(!before.is_empty(), "vllm-small does not run");
    let commands = [
        "prepare-phase 2",
        "prepare-phase 2 --lazy",
        "stop vllm",
        "stop vllm --force",
        "start vllm",
        "stop vllm",
        "start vllm",
        "prepare-phase 2",
    ];
    for command in commands {
        let (code, told) = rig.gpuctl(command).run().ended();
        assert_eq!(servers(), before, "{command} gives {code:?}\n{told}");
        assert!(small.is_healthy(), "{command} gives {code:?}\n{told}");
        assert_eq!(code, Some(0), "{command}\n{told}");
        assert_eq!(vllm.is_healthy(), command == "start vllm", "{command}\n{told}");
    }
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["services"]["vllm"]["pids"], serde_json::json!([]), "{status}");
    assert_eq!(status["services"]["vllm-small"]["state"], "ready", "{status}");
}

#[test]
fn row_53_a_pattern_that_finds_what_gpuctl_started_for_another_service_leaves_it_alone() {
    let rig = Rig::new();
    let (vllm, small) = beside(rig.native("vllm-small").script(Script::File));
    rig.gpuctl("start vllm-small --quiet").run().succeeds();
    is_left_alone(&rig, &vllm, &small);
}

#[test]
fn row_53_a_pattern_that_finds_what_listens_on_another_services_port_leaves_it_alone() {
    let rig = Rig::new();
    let (vllm, small) = beside(rig.native("vllm-small").script(Script::File));
    let _server = rig.by_hand(small.command());
    until("it serves", || small.is_healthy());
    is_left_alone(&rig, &vllm, &small);
}

#[test]
fn row_53_a_pattern_that_finds_what_runs_in_another_services_unit_leaves_it_alone() {
    let rig = Rig::new();
    if !rig.systemd().has_control_groups() {
        return;
    }
    let (vllm, small) = beside(rig.unit("vllm-small").server("--fork 2"));
    rig.gpuctl("start vllm-small --quiet").run().succeeds();
    is_left_alone(&rig, &vllm, &small);
}

#[test]
fn row_53_a_pattern_that_finds_what_runs_in_another_services_container_leaves_it_alone() {
    let Some(rig) = Rig::with_docker() else { return };
    let (vllm, small) = beside(rig.container("vllm-small").server("--fork 2"));
    rig.gpuctl("start vllm-small --quiet").run().succeeds();
    is_left_alone(&rig, &vllm, &small);
}

#[test]
fn row_53_services_that_name_one_unit_or_one_pattern_are_refused_both_named() {
    let rig = Rig::new();
    for (first, second) in [
        (rig.unit("red"), rig.unit("blue").set("unit", format!("{}.service", rig.mark("red")))),
        (
            rig.native("red"),
            rig.native("blue").set("match", format!("simserver.*{}", rig.mark("red"))),
        ),
    ] {
        let red = first.add();
        let blue = second.add();
        for command in ["config check", "start red", "stop blue", "release-all"] {
            let (code, told) = rig.gpuctl(command).run().ended();
            assert_eq!(code, Some(78), "{command}\n{told}");
            assert!(told.contains("red") && told.contains("blue"), "{command}\n{told}");
        }
        rig.assert_no_process_of(&red);
        rig.assert_no_process_of(&blue);
    }
}

#[test]
fn row_53_services_that_name_one_container_by_name_and_by_id_are_refused_both_named() {
    let Some(rig) = Rig::with_docker() else { return };
    let red = rig.container("red").phases([1]).add();
    let id = rig.docker(&["container", "inspect", "--format", "{{.Id}}", red.mark()]);
    let blue = rig.container("blue").phases([2]).set("container", id.trim()).not_installed().add();
    rig.docker(&["start", red.mark()]);
    for command in ["prepare-phase 1", "prepare-phase 2", "start red", "stop blue", "release-all"] {
        let (code, told) = rig.gpuctl(command).run().ended();
        assert_eq!(code, Some(78), "{command}\n{told}");
        assert!(told.contains("red") && told.contains("blue"), "{command}\n{told}");
    }
    let running =
        rig.docker(&["container", "inspect", "--format", "{{.State.Running}}", red.mark()]);
    assert_eq!(running.trim(), "true");
    rig.assert_no_process_of(&blue);
}

#[test]
fn row_53_a_pattern_that_finds_another_services_start_is_told_of_by_config_check() {
    let rig = Rig::new();
    rig.native("vllm").set("match", format!("vllm.*{}", rig.token())).add();
    rig.native("vllm-small").add();
    let (code, told) = rig.gpuctl("config check").run().ended();
    assert!(matches!(code, Some(0 | 78)), "{code:?}\n{told}");
    let warns = told.lines().any(|line| line.contains("match") && line.contains("vllm-small"));
    assert!(warns, "{code:?}\n{told}");
}

/// The process is started by hand, listens on the port that both services name, and matches the
/// patterns of both.
#[test]
fn row_53_a_process_that_is_proven_for_two_services_alike_is_left_to_neither() {
    let rig = Rig::new();
    let red = rig.native("red").phases([1]).script(Script::File).add();
    let pattern = format!("{}.*--port", rig.mark("red"));
    let blue = rig.native("blue").phases([2]).set("match", pattern);
    blue.set("health", red.url("/health")).set("start", "exit 1").add();
    let server = rig.by_hand(red.command());
    until("it serves", || red.is_healthy());
    for command in ["stop red", "stop blue --force", "release-all", "prepare-phase 2", "start red"]
    {
        let (code, told) = rig.gpuctl(command).run().ended();
        assert_eq!(state(server.pid()), Some('S'), "{command} gives {code:?}\n{told}");
        assert_eq!(code, Some(78), "{command}\n{told}");
        assert!(told.contains("red") && told.contains("blue"), "{command}\n{told}");
    }
}
