//! Tests of units whose command is a client that runs a container and waits for its end.

use rig::{Rig, Service};
use serde_json::json;

/// Installs and configures a unit that runs a container by `docker run --rm`. `None`, after
/// reporting the skip, without control groups.
#[track_caller]
fn runs_a_container(rig: &Rig) -> Option<Service> {
    if !rig.systemd().has_control_groups() {
        return None;
    }
    let vllm = rig.unit("vllm").vram(18000).phases([2]).not_installed().add();
    let (name, port, engine) = (vllm.mark(), vllm.port(), rig.engine());
    let card = rig.card.folder().display();
    let server = format!("/bin/simserver --name {name} --port {port} --vram 18000");
    let command = format!(
        "env DOCKER_HOST={} docker run --rm --name {name} --network host --env SIMGPU_DIR={card} --volume {card}:{card} {} {server}",
        engine.host(),
        engine.image()
    );
    rig.owns_container(name);
    rig.systemd().install_unit(&format!("{name}.service"), false, &command);
    Some(vllm)
}

#[test]
fn what_a_unit_runs_in_a_container_is_its_services_own() {
    let Some(rig) = Rig::with_docker() else { return };
    let Some(vllm) = runs_a_container(&rig) else { return };
    rig.set("phases.9", "nothing");
    for command in ["prepare-phase 9", "stop vllm", "stop vllm --force"] {
        rig.gpuctl("start vllm --quiet").run().succeeds();
        let status = rig.gpuctl("status --json").run().succeeds().json();
        let shown = &status["services"]["vllm"];
        assert_eq!(
            (&shown["state"], &shown["used_mb"]),
            (&json!("ready"), &json!(18000)),
            "{shown}"
        );
        // The unit makes its container anew.
        rig.gpuctl("restart vllm --quiet").run().succeeds();
        rig.gpuctl(command).arg("--quiet").run().succeeds();
        assert_eq!(rig.card.used_mb(), 0, "{command}");
        let filter = format!("name={}", vllm.mark());
        assert_eq!(rig.docker(&["ps", "--quiet", "--filter", &filter]).trim(), "", "{command}");
    }
}
