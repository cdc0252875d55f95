//! Tests with a real compose project, whose files gpuctl and the project's owner both work with.

use rig::{Rig, compose_or_skip, until};
use serde_json::{Value, json};
use std::path::PathBuf;
use toml::Table;

/// A real compose project of four services, with a health check each.
struct Project {
    rig: Rig,
    file: PathBuf,
}

/// The services of the project, each with its memory in MB and its phase.
const SERVICES: [(&str, u32, u32); 4] =
    [("vidi", 12000, 2), ("cosyvoice", 4000, 3), ("ollama", 6000, 3), ("comfyui", 20000, 4)];

impl Project {
    /// Writes the project's file and configures its services, with more lines for each, in which
    /// `FILE` stands for that file. `None`, after reporting the skip, without an engine or without
    /// compose.
    #[track_caller]
    fn of_four(more: &str) -> Option<Project> {
        let rig = Rig::with_docker()?;
        if !compose_or_skip() {
            return None;
        }
        let (card, image) =
            (rig.card.folder().display().to_string(), rig.engine().image().to_owned());
        let project = rig.mark("mcn");
        let mut text = format!("name: {project}\nservices:\n");
        let file = rig.path("home/compose.yaml");
        for (name, vram, phase) in SERVICES {
            let port = rig.port();
            rig.owns_container(&format!("{project}-{name}-1"));
            text.push_str(&format!(
                "  {name}:\n    image: {image}\n    network_mode: host\n    init: true\n    \
                command: /bin/simserver --name {project}-{name} --vram {vram} --port {port}\n    \
                environment: {{SIMGPU_DIR: {card}}}\n    volumes: ['{card}:{card}']\n    \
                stop_grace_period: 5s\n    pull_policy: never\n",
            ));
            let settings = format!(
                "type = 'compose'\nproject = '{project}'\nservice = '{name}'\nvram_mb = {vram}\nphases = [{phase}]\n\
                health = 'http://127.0.0.1:{port}/health'\n{more}"
            );
            let settings = settings.replace("FILE", &file.display().to_string());
            rig.set(&format!("services.{name}"), settings.parse::<Table>().unwrap());
        }
        rig.file("home/compose.yaml", &text);
        Some(Project { rig, file })
    }

    /// Runs compose as the project's owner does.
    #[track_caller]
    fn by_hand(&self, words: &str) {
        let command = format!("docker compose --file {} {words}", self.file.display());
        self.rig.shell(&command).run().succeeds().ignores_stdout().ignores_stderr();
    }

    #[track_caller]
    fn prepare(&self, phase: u32) {
        let command = format!("prepare-phase {phase}");
        self.rig.gpuctl(&command).run().succeeds().ignores_stdout().progress();
        self.assert_in(phase);
    }

    /// Asserts that the services of the phase are ready, and that no others run.
    #[track_caller]
    fn assert_in(&self, phase: u32) {
        let status: Value = self.rig.gpuctl("status --json").run().succeeds().json();
        for (name, _, of) in SERVICES {
            let expected = if of == phase { "ready" } else { "stopped" };
            assert_eq!(status["services"][name]["state"], expected, "{name}: {status}");
        }
        let memory =
            SERVICES.iter().filter(|(.., of)| *of == phase).map(|(_, vram, _)| vram).sum::<u32>();
        assert_eq!(self.rig.card.used_mb(), u64::from(memory));
    }
}

#[test]
fn a_compose_project_walks_through_the_phases_while_its_owner_works_with_it_too() {
    let Some(project) = Project::of_four("files = ['FILE']") else { return };
    // No container of the project exists yet.
    project.prepare(2);
    project.prepare(3);
    project.by_hand("up --detach --force-recreate cosyvoice ollama");
    project.prepare(3);
    project.by_hand("restart cosyvoice");
    project.prepare(4);
    project.by_hand("down --timeout 5");
    project.assert_in(0);
    project.prepare(3);
    project.by_hand("up --detach vidi");
    until("vidi holds its memory", || project.rig.card.used_mb() == 22000);
    project.prepare(4);
    project.prepare(2);
    project.rig.gpuctl("release-all").run().succeeds().stdout_has("stopped vidi").progress();
    project.assert_in(0);
    project.by_hand("down --timeout 5");
}

#[test]
fn a_container_that_is_missing_is_made_from_the_files_that_the_others_name() {
    let Some(project) = Project::of_four("") else { return };
    project.rig.gpuctl("prepare-phase 4").run().fails("not_found").stderr_has("docker compose");
    project.by_hand("create vidi");
    let told = format!(
        "creating the containers of service comfyui of the compose project {}",
        project.rig.mark("mcn")
    );
    let prepared = project.rig.gpuctl("prepare-phase 4").run().succeeds().ignores_stdout();
    prepared.stderr_has(&told).progress();
    project.assert_in(4);
    project.by_hand("down --timeout 5");
}

/// The owner has made the other containers with `docker compose --env-file`.
#[test]
fn a_container_that_is_missing_is_made_with_the_variables_of_the_others() {
    let Some(project) = Project::of_four("") else { return };
    let text = std::fs::read_to_string(&project.file).unwrap();
    project.rig.file("home/compose.yaml", &text.replace("--vram 20000", "--vram $COMFYUI_VRAM"));
    let variables = project.rig.file("home/night.env", "COMFYUI_VRAM=20000\n");
    project.by_hand(&format!("--env-file {} create vidi", variables.display()));
    project.prepare(4);
    project.by_hand("down --timeout 5");
}

#[test]
fn without_compose_a_missing_container_is_not_found_before_anything_is_stopped_for_it() {
    let Some(project) = Project::of_four("files = ['FILE']") else { return };
    let rig = &project.rig;
    project.prepare(2);
    rig.program(
        "docker",
        "if [ \"$1\" = compose ]; then echo \"docker: 'compose' is not a docker command.\" >&2; exit 1; fi\n\
        PATH=${PATH#*:} exec docker \"$@\"",
    );
    let how = format!("docker compose --project-name {} --file", rig.mark("mcn"));
    for words in ["prepare-phase 4", "prepare-phase 4 --dry-run"] {
        rig.gpuctl(words).run().fails("not_found").stderr_has(&how);
    }
    assert_eq!(rig.card.used_mb(), 12000, "vidi was stopped for it");
    std::fs::remove_file(rig.path("bin/docker")).unwrap();
    project.by_hand("down --timeout 5");
}

/// Compose makes containers anew, with other IDs, when their configuration has changed.
#[test]
fn containers_that_are_made_anew_in_the_middle_of_a_plan_are_no_failure() {
    let Some(project) = Project::of_four("files = ['FILE']") else { return };
    let rig = &project.rig;
    project.prepare(3);
    // The container is made anew between the look and the stop: the one to be stopped has gone, and
    // another is there.
    let compose = format!(
        "docker compose --file {} up --detach --force-recreate cosyvoice",
        project.file.display()
    );
    rig.program(
        "docker",
        &format!(
            "PATH=${{PATH#*:}}\nif [ \"$1\" = stop ] && mkdir {}/once 2>/dev/null; then {compose} >/dev/null 2>&1; fi\nexec docker \"$@\"",
            rig.path("home").display()
        ),
    );
    let report = rig.gpuctl("prepare-phase 4 --json --quiet").run().succeeds().json();
    assert!(report["stopped"].as_array().unwrap().contains(&json!("cosyvoice")), "{report}");
    std::fs::remove_file(rig.path("bin/docker")).unwrap();
    project.assert_in(4);
    project.by_hand("down --timeout 5");
}

#[test]
fn containers_that_are_made_anew_in_the_middle_of_a_start_are_no_failure() {
    let Some(project) = Project::of_four("files = ['FILE']") else { return };
    let rig = &project.rig;
    project.by_hand("create");
    for how in ["--no-start --force-recreate", "--detach --force-recreate"] {
        let compose = format!("docker compose --file {} up {how}", project.file.display());
        let once = rig.path("home/once");
        rig.program(
            "docker",
            &format!(
                "PATH=${{PATH#*:}}\nif [ \"$1\" = start ] && mkdir {0} 2>/dev/null; then {compose} vidi >/dev/null 2>&1; fi\nexec docker \"$@\"",
                once.display()
            ),
        );
        project.prepare(2);
        std::fs::remove_dir(once).expect("it was made anew");
        rig.gpuctl("release-all --quiet").run().succeeds();
    }
    std::fs::remove_file(rig.path("bin/docker")).unwrap();
    project.by_hand("down --timeout 5");
}

#[test]
fn missing_containers_are_made_with_those_that_they_depend_on_which_are_started_first() {
    let Some(project) = Project::of_four("files = ['FILE']") else { return };
    let rig = &project.rig;
    let text = std::fs::read_to_string(&project.file).unwrap();
    let depends = "  cosyvoice:\n    depends_on: [vidi]\n";
    std::fs::write(&project.file, text.replace("  cosyvoice:\n", depends)).unwrap();
    let calls = rig.docker_calls(|| {
        let done = rig.gpuctl("prepare-phase 3 --json --quiet").run().succeeds().json();
        let started = done["started"].as_array().unwrap();
        assert_eq!((started.len(), &started[2]), (3, &json!("cosyvoice")), "{done}");
    });
    let made = calls.iter().filter(|call| call.contains("--no-start")).count();
    assert_eq!(made, 1, "two of compose get in each other's way: {calls:?}");
    assert_eq!(rig.card.used_mb(), 22000);
    let done = rig.gpuctl("prepare-phase 4 --json --quiet").run().succeeds().json();
    assert_eq!(done["stopped"].as_array().unwrap().len(), 3, "{done}");
    project.by_hand("down --timeout 5");
}

#[test]
fn what_a_container_depends_on_is_made_anew_where_it_is_missing_and_else_refused() {
    let Some(project) = Project::of_four("files = ['FILE']") else { return };
    let rig = &project.rig;
    let text = std::fs::read_to_string(&project.file).unwrap();
    let depends = "  cosyvoice:\n    depends_on: [vidi]\n";
    std::fs::write(&project.file, text.replace("  cosyvoice:\n", depends)).unwrap();
    project.by_hand("create");
    project.by_hand("rm --force vidi");
    let bin = "if [ \"$1\" = compose ]; then exit 1; fi\nPATH=${PATH#*:} exec docker \"$@\"";
    let without_compose = rig.program("docker", bin);
    for words in ["start cosyvoice", "start cosyvoice --dry-run"] {
        let refused = rig.gpuctl(words).run().fails("not_found");
        refused
            .stderr_has("cosyvoice: there is no container of service vidi")
            .stderr_has("up --detach vidi");
    }
    rig.gpuctl("stop cosyvoice").run().succeeds().stdout_has("nothing to do");
    std::fs::remove_file(without_compose).unwrap();
    let done = rig.gpuctl("start cosyvoice --json --quiet").run().succeeds().json();
    assert_eq!(done["started"], json!(["vidi", "cosyvoice"]));
    assert_eq!(rig.card.used_mb(), 16000);
    project.by_hand("down --timeout 5");
}
