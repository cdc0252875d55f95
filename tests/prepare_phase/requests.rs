//! Tests that count what a change of phase asks of services at rest: draining costs two questions
//! for each victim, and nothing else.

use rig::{Rig, Service};
use std::fs;

const HEALTH: &str = "GET /health";
const JOBS: &str = "GET /metrics";

/// Configures a service that writes down what it is asked, in a file of its name, and listens only
/// once it is ready.
fn service<const N: usize>(rig: &Rig, name: &str, phases: [u32; N], has_probe: bool) -> Service {
    let requests = rig.path(name);
    let server = format!("--api vllm --late-listen --requests {}", requests.display());
    let service = rig.native(name).vram(4000).phases(phases).server(&server).add();
    if has_probe {
        rig.set(&format!("services.{name}.busy.url"), service.url("/metrics"));
        rig.set(&format!("services.{name}.busy.metric"), "vllm:num_requests_running");
    }
    service
}

/// Returns the requests that each of the services gets while gpuctl carries out this command.
fn asked<const N: usize>(rig: &Rig, names: [&str; N], words: &str) -> [Vec<String>; N] {
    names.iter().for_each(|name| fs::write(rig.path(name), "").unwrap());
    rig.gpuctl(words).run().succeeds();
    let lines = |text: String| text.lines().map(str::to_owned).collect();
    names.map(|name| lines(fs::read_to_string(rig.path(name)).unwrap()))
}

#[test]
fn a_change_of_phase_asks_services_at_rest_no_more_than_it_must() {
    for (has_probe, unloads) in [(false, false), (true, false), (false, true), (true, true)] {
        let rig = Rig::new();
        let old = service(&rig, "old", [1], has_probe);
        if unloads {
            rig.set("services.old.evict", "unload");
            rig.set("services.old.unload.url", old.url("/sleep"));
        }
        service(&rig, "kept", [1, 2], has_probe);
        service(&rig, "new", [2], has_probe);
        rig.gpuctl("prepare-phase 1 --quiet").run().succeeds();
        let [old, kept, new] = asked(&rig, ["old", "kept", "new"], "prepare-phase 2 --quiet");
        let told = format!("with a probe: {has_probe}, unloads: {unloads}");
        // Jobs are asked for before anything is done, and just before it is.
        let drained: &[&str] = if has_probe { &[JOBS, JOBS] } else { &[] };
        let expected = match unloads {
            // Only a healthy service is asked to unload.
            true => [&[HEALTH], drained, &["POST /sleep"]].concat(),
            false => drained.to_vec(),
        };
        assert_eq!(old, expected, "{told}");
        // The look that the plan is made from asks once, and the last look once more.
        assert_eq!(kept, [HEALTH; 2], "{told}");
        // A further question comes if the service listens a moment before it is ready.
        assert!(new.iter().all(|line| line == HEALTH) && new.len() <= 3, "{told}: {new:?}");
    }
}

#[test]
fn a_phase_that_is_prepared_asks_each_of_its_services_once_and_nobody_for_jobs() {
    let rig = Rig::new();
    service(&rig, "there", [1], true);
    rig.gpuctl("prepare-phase 1 --quiet").run().succeeds();
    assert_eq!(asked(&rig, ["there"], "prepare-phase 1 --quiet"), [[HEALTH]]);
}
