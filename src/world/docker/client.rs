//! Recognises running clients of container engines, and the container that such a client runs for
//! as long as the container lives.

use super::resolve;
use crate::model::{ComposeLabels, Container};
use crate::world::process::{self, Process};
use std::path::PathBuf;

/// Environment variables that determine which engine a client speaks to.
pub const ENGINE_VARIABLES: [&str; 3] = ["DOCKER_HOST", "DOCKER_CONTEXT", "CONTAINER_HOST"];

/// Names of the processes that are clients of an engine.
const CLIENTS: [&str; 2] = ["docker", "podman"];

/// Reports whether a process is a client of an engine.
pub fn is_client(process: &Process) -> bool {
    CLIENTS.contains(&process.name.as_str())
}

/// Reports whether a process is a client that stays for as long as a container runs, judging by its
/// command line; see [`keeps`].
pub fn is_run_by(container: &Container, process: &Process) -> bool {
    is_client(process) && {
        let words = process::arguments(process.pid);
        keeps(&words, || process::folder(process.pid), container)
    }
}

/// Reports whether a client's command stays for as long as a container runs: `docker run --name
/// NAME`, `docker start --attach NAME`, or `docker compose up` of the container's project, which is
/// given by name or by the client's folder.
fn keeps(words: &[String], folder: impl Fn() -> Option<PathBuf>, container: &Container) -> bool {
    // Splits "--name=NAME" into two words.
    let split = |word: &String| match word.split_once('=') {
        Some((option, value)) if option.starts_with("--") => {
            vec![option.to_owned(), value.to_owned()]
        }
        _ => vec![word.clone()],
    };
    let words: Vec<String> = words.iter().flat_map(split).collect();
    let has = |any: &[&str]| words.iter().any(|word| any.contains(&word.as_str()));
    let after = |option: &str| {
        let at = words.iter().position(|word| word == option)?;
        words[at + 1..].split_first()
    };
    let value = |option: &str| after(option).map(|(value, _)| value.as_str());
    let is_it = |word: &String| resolve(std::slice::from_ref(container), word).is_some();
    let is_its_project = |labels: &ComposeLabels| match value("--project-name").or(value("-p")) {
        Some(project) => project == labels.project,
        None => labels.files.folder.is_some() && folder() == labels.files.folder,
    };
    // Without names, all services are meant. The value of an option is taken for a name, and then
    // matches no service. A container of `docker compose run` belongs to whoever ran it.
    let is_brought_up = |labels: &ComposeLabels| {
        let names = words.iter().skip_while(|word| *word != "up").skip(1);
        let names: Vec<&String> = names.filter(|word| !word.starts_with('-')).collect();
        let is_named = names.is_empty() || names.contains(&&labels.service);
        has(&["up"]) && is_named && !labels.is_one_off
    };
    let verb = words.iter().find(|word| ["compose", "run", "start"].contains(&word.as_str()));
    match verb.map_or("", String::as_str) {
        _ if has(&["--detach", "-d"]) => false,
        "compose" => {
            let labels = container.setup.compose.as_ref();
            labels.is_some_and(|labels| is_brought_up(labels) && is_its_project(labels))
        }
        // Words after the image belong to the container's own command, even a `--name`.
        "run" => after("--name").is_some_and(|(name, rest)| {
            *name == container.name
                && rest.iter().any(|word| is_image(word, &container.setup.image))
        }),
        "start" => has(&["--attach", "-a", "-ai"]) && words.iter().any(is_it),
        _ => false,
    }
}

/// Reports whether a word means an image. The image's name may say where it came from, as podman
/// records it: "docker.io/ollama/ollama:latest".
fn is_image(word: &str, image: &str) -> bool {
    let [word, image] = [word, image].map(|name| name.strip_suffix(":latest").unwrap_or(name));
    image.strip_suffix(word).is_some_and(|place| place.is_empty() || place.ends_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::docker::parse;
    use serde_json::json;

    #[test]
    fn a_client_keeps_the_container_that_it_names_and_waits_for() {
        let id = "c0ffee".repeat(10) + "c0ff";
        let labels = |name: &str| format!("com.docker.compose.{name}");
        let image = "docker.io/ollama/ollama:latest";
        let made = |one_off: &str| {
            let labels = json!({
                labels("project"): "llm",
                labels("service"): "server",
                labels("oneoff"): one_off,
                labels("project.working_dir"): "/srv/llm",
            });
            let config = json!({"Image": image, "Labels": labels});
            let said = json!([{"Id": id, "Name": "/ollama", "State": {}, "Config": config}]);
            parse(said.to_string().as_bytes()).expect("what an engine says").remove(0)
        };
        let of_service = made("False");
        let keeps_it = |line: &str, folder: &str, container: &Container| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            keeps(&words, || Some(folder.into()), container)
        };
        let keeps = |line: &str, folder: &str| keeps_it(line, folder, &of_service);
        for line in [
            "docker run --rm --name ollama ollama/ollama serve",
            "docker --context it run --name=ollama docker.io/ollama/ollama:latest",
            "docker container run --name ollama ollama/ollama:latest --name it",
            "docker start --attach ollama",
            "/usr/bin/podman start -a c0ffeec0ffee",
            "docker compose -p llm up",
            "docker compose --project-name=llm up server",
        ] {
            assert!(keeps(line, "/"), "{line}");
        }
        for line in [
            "docker run --rm ollama/ollama",
            "docker run --rm ollama/ollama tool --name ollama",
            "docker run --rm tool --name ollama",
            "docker run --name backup --volumes-from ollama image",
            "docker run --detach --name ollama image",
            "docker start ollama",
            "docker start --attach other",
            "docker logs --follow ollama",
            "docker exec -it ollama run",
            "docker compose -p other up llm",
            "docker compose up llm",
            "docker compose -p llm up -d",
            "docker compose -p llm logs",
            "docker compose -p llm up other",
            "docker compose -p llm up --timeout 9",
        ] {
            assert!(!keeps(line, "/"), "{line}");
        }
        assert!(keeps("docker compose up", "/srv/llm"));
        assert!(!keeps("docker compose -p other up", "/srv/llm"));
        assert!(!keeps_it("docker compose up", "/srv/llm", &made("True")));
    }
}
