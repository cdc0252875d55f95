//! Writes an inventory as a configuration. Pure: the same inventory always gives the same text.
//! Every figure and pattern that is a guess is marked as one, and no secret of a command line is
//! copied.

use super::{Clue, Home, Inventory, Sighting, Speech};
use crate::config::{DOCKER, MINIMAL};
use crate::model::{Api, Mb};
use crate::pattern::Pattern;
use crate::redact::{is_secret, mask};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Memory that is kept free for a desktop, unless the largest sighting leaves less.
const RESERVE: Mb = Mb(1024);
/// Memory that a service is assumed to need if it was never seen to hold any.
const GUESS: Mb = Mb(4096);

/// Section for `gpuctl http`, written as a comment.
const HTTP: &str = "# [http]\n\
    # token_file = \"~/.config/gpuctl/http-token\"   # whoever shows this token may ask `gpuctl http` from elsewhere, too";

/// Text with which the example of a service begins in `MINIMAL`.
const EXAMPLE: &str = "# A service for each program";

/// Appends a formatted line to a `String`, which cannot fail.
macro_rules! line {
    ($text:expr, $($form:tt)*) => { let _ = writeln!($text, $($form)*); };
}

/// Returns the configuration that an inventory gives. If nothing was found, the example of a
/// service is added as a comment.
pub fn draft(inventory: &Inventory) -> String {
    let mut text = String::from(
        "# Configuration of gpuctl, from a look at this machine. What is marked as a guess is one: correct it, then run\n\
         # `gpuctl config check` and `gpuctl doctor`. Sizes are in MB, or written as \"20GB\". `~` and $VAR are expanded; write $$\n\
         # for a dollar sign. It holds commands that gpuctl runs, so only you (or root) may be able to write to it.\n\n",
    );
    if inventory.client != DOCKER {
        let client = quoted(&doubled(&inventory.client));
        line!(text, "docker = {client:<18} # the client of its container engine\n");
    }
    card(&mut text, inventory);
    if let Some(trouble) = &inventory.trouble {
        line!(text, "# Containers could not be asked for: {}", plain(&trouble.message));
        trouble.hints.iter().for_each(|hint| {
            line!(text, "# hint: {}", plain(hint));
        });
        line!(text, "");
    }
    if inventory.sightings.is_empty() {
        let example = MINIMAL.find(EXAMPLE).map_or("", |begin| &MINIMAL[begin..]);
        line!(
            text,
            "# No model server was found here, running or in a container.\n#\n{}",
            example.trim_end()
        );
        return text;
    }
    line!(
        text,
        "# The steps of a pipeline, if there is one; each service then lists those that need it: phases = [\"video\"]"
    );
    line!(text, "# [phases]");
    line!(text, "# 1 = \"speech\"");
    line!(text, "# 2 = \"video\"");
    let mut names = BTreeSet::new();
    for sighting in &inventory.sightings {
        service(&mut text, sighting, &mut names, inventory);
    }
    text
}

fn card(text: &mut String, inventory: &Inventory) {
    let device = inventory.device.as_ref();
    line!(text, "[gpu]");
    line!(text, "index = {}", device.map_or(0, |device| device.index));
    if let Some(library) = &inventory.library {
        line!(text, "nvml_library = {}", quoted(&doubled(&library.display().to_string())));
    }
    let largest =
        inventory.sightings.iter().map(|one| one.peak.max(one.held)).max().unwrap_or_default();
    let room = inventory.total.map_or(RESERVE, |total| total.saturating_sub(rounded(largest)));
    line!(
        text,
        "reserve_mb = {:<14} # a guess: kept free for the desktop and whatever else",
        room.min(RESERVE).0
    );
    if let Some(total) = inventory.total {
        let name = device.and_then(|device| device.name.as_deref()).unwrap_or("this card");
        line!(
            text,
            "total_mb = {:<16} # {}, used only when NVML cannot be read",
            total.0,
            plain(name)
        );
    }
    if !inventory.others.is_empty() {
        let named = inventory.others.iter().take(12).map(|(name, held)| match held {
            Some(held) => format!("{} ({held})", plain(name)),
            None => plain(name),
        });
        line!(
            text,
            "# On the card, and taken for no service: {}",
            named.collect::<Vec<_>>().join(", ")
        );
    }
    line!(text, "\n{HTTP}\n");
}

fn service(
    text: &mut String,
    sighting: &Sighting,
    names: &mut BTreeSet<String>,
    inventory: &Inventory,
) {
    let name = name_of(sighting, names);
    line!(text, "\n[services.{}]", quoted_key(&name));
    let state = if sighting.is_up() { "shows nothing of itself" } else { "is stopped" };
    match &sighting.clue {
        Clue::Seen => {}
        Clue::Card { .. } => {
            line!(text, "# A guess: it {state}, and its container may use the card.");
        }
        Clue::Image { name, .. } => {
            line!(
                text,
                "# A guess: it {state}, and its image ({}) is a model server's.",
                plain(name)
            );
        }
        Clue::Unit => {
            line!(text, "# A guess: it does not run, and has the name of a model server.");
        }
    }
    match &sighting.home {
        Home::Hand { family, words, cwd } => {
            by_hand(text, family, words, cwd.as_deref(), sighting, inventory)
        }
        Home::Container { name, .. } => {
            line!(text, "type = \"docker\"");
            line!(text, "container = {}", quoted(name));
        }
        Home::Compose { project, service, .. } => {
            line!(text, "type = \"compose\"");
            line!(text, "project = {}", quoted(project));
            line!(text, "service = {}", quoted(service));
        }
        Home::Unit { unit, user } => {
            line!(text, "type = \"systemd\"");
            line!(text, "unit = {}", quoted(unit));
            if *user {
                line!(text, "user = true");
            }
        }
    }
    match sighting.peak.max(sighting.held) {
        Mb(0) => {
            line!(
                text,
                "vram_mb = {:<17} # a guess: it holds nothing now; write what it needs at most",
                GUESS.0
            );
        }
        most if most > sighting.held => {
            line!(text, "vram_mb = {:<17} # the most that was seen of it", rounded(most).0);
        }
        held => {
            line!(text, "vram_mb = {:<17} # seen; correct it to its peak", rounded(held).0);
        }
    }
    line!(text, "priority = 50               # a guess: higher is kept longer");
    answers(text, sighting);
}

/// Writes where a service answers, and which API it has.
fn answers(text: &mut String, sighting: &Sighting) {
    let has_own = match &sighting.home {
        Home::Container { has_healthcheck, .. } | Home::Compose { has_healthcheck, .. } => {
            *has_healthcheck
        }
        Home::Hand { .. } | Home::Unit { .. } => false,
    };
    let Some(port) = sighting.port else { return };
    match &sighting.speech {
        Speech::Known(api) => {
            line!(text, "api = \"{}\"", name_of_api(*api));
            line!(text, "url = \"http://localhost:{port}\"");
            if matches!(api, Api::Ollama | Api::Comfyui) {
                line!(
                    text,
                    "# evict = \"unload\"          # give memory back and keep running, instead of being stopped"
                );
            }
        }
        Speech::Http(Some(path)) => {
            line!(text, "health = \"http://localhost:{port}{path}\"   # a guess: it answers there");
        }
        Speech::Http(None) | Speech::Other if has_own => {}
        Speech::Http(None) => {
            line!(
                text,
                "health = \"tcp://localhost:{port}\"   # a guess: better a URL that answers once its model is loaded"
            );
        }
        Speech::Other => {}
    }
}

fn by_hand(
    text: &mut String,
    family: &[i32],
    words: &[String],
    cwd: Option<&str>,
    sighting: &Sighting,
    inventory: &Inventory,
) {
    let (command, left_out) = command_of(words);
    line!(text, "type = \"native\"");
    line!(
        text,
        "start = {}   # as it runs now; a script of your own may be better",
        quoted(&command)
    );
    for variable in left_out {
        line!(
            text,
            "# A secret was left out: have {variable} in the environment of gpuctl, or read it in a script."
        );
    }
    if let Some(cwd) = cwd {
        line!(text, "cwd = {}", quoted(&doubled(cwd)));
    }
    match pattern_of(words, sighting.port, family, inventory) {
        Some(pattern) => {
            line!(
                text,
                "match = {}   # a guess: finds what was started by hand, and nothing else now",
                quoted(&pattern)
            );
        }
        None => {
            line!(
                text,
                "# match = '…'              # nothing in its command line tells it from other processes"
            );
        }
    }
}

/// Returns the command line for `sh -c`, in which variables replace secrets, and the names of these
/// variables.
fn command_of(words: &[String]) -> (String, Vec<String>) {
    let mut left_out = Vec::new();
    let mut is_value_secret = None;
    let told = words.iter().map(|word| {
        let hidden = |left_out: &mut Vec<String>, name: &str| {
            let variable = variable_of(name);
            left_out.push(variable.clone());
            format!("\"$${variable}\"")
        };
        if let Some(name) = is_value_secret.take() {
            return hidden(&mut left_out, name);
        }
        match word.split_once('=') {
            Some((name, _)) if is_secret(name) => {
                let variable = hidden(&mut left_out, name);
                return format!("{}={variable}", shell_word(name));
            }
            None if word.starts_with('-') && is_secret(word) => {
                is_value_secret = Some(word.as_str())
            }
            _ if mask(word) != *word => return hidden(&mut left_out, "--secret-url"),
            _ => {}
        }
        doubled(&shell_word(word))
    });
    let command = told.collect::<Vec<_>>().join(" ");
    (command, left_out)
}

/// Returns the name of the variable that replaces an option's secret: API_KEY for "--api-key".
fn variable_of(option: &str) -> String {
    let upper = option.trim_start_matches('-').to_ascii_uppercase();
    upper.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

/// Returns a pattern, made from the name of the program or script and the port, that finds
/// processes of this family and no others. `None` if no such pattern is found.
fn pattern_of(
    words: &[String],
    port: Option<u16>,
    family: &[i32],
    inventory: &Inventory,
) -> Option<String> {
    let file = |word: &String| word.rsplit('/').next().unwrap_or_default().to_owned();
    let program = words.first().map(file)?;
    let is_interpreter = program.starts_with("python") || matches!(program.as_str(), "node" | "uv");
    let script = words.iter().skip(1).find(|word| !word.starts_with('-'));
    let own = match script.filter(|_| is_interpreter) {
        Some(script) => file(script),
        None => program,
    };
    let port = port
        .map(|port| port.to_string())
        .filter(|port| words.iter().any(|word| word.contains(port.as_str())));
    let folder = |word: &String| {
        let parts: Vec<&str> = word.rsplit('/').take(2).collect();
        (parts.len() == 2).then(|| format!("{}/{}", parts[1], parts[0]))
    };
    let of_folder = script.filter(|_| is_interpreter).or(words.first()).and_then(folder);
    let with_port = |name: &str| port.as_ref().map(|port| format!("{}.*{port}", escaped(name)));
    let candidates = [
        with_port(&own),
        Some(escaped(&own)),
        of_folder.as_deref().and_then(with_port),
        of_folder.as_deref().map(escaped),
    ];
    let finds_it_alone = |pattern: &String| {
        let Ok(compiled) = Pattern::new(pattern) else { return false };
        let mut found =
            inventory.commands.iter().filter(|(_, line)| compiled.matches_text(line)).peekable();
        found.peek().is_some() && found.all(|(pid, _)| family.contains(pid))
    };
    candidates.into_iter().flatten().filter(|pattern| pattern.len() > 3).find(finds_it_alone)
}

fn escaped(text: &str) -> String {
    let special = |c: char| r"\.[]{}()*+?^$|".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

fn rounded(size: Mb) -> Mb {
    Mb(size.0.div_ceil(100) * 100)
}

fn name_of_api(api: Api) -> &'static str {
    match api {
        Api::Comfyui => "comfyui",
        Api::Ollama => "ollama",
        Api::Vllm => "vllm",
        Api::LlamaServer => "llama-server",
        Api::Sdwebui => "sdwebui",
    }
}

/// Returns a name for a service that is not among `names` yet, and adds it to these.
fn name_of(sighting: &Sighting, names: &mut BTreeSet<String>) -> String {
    let raw = match (&sighting.home, &sighting.speech) {
        (Home::Container { name, .. }, _) => name.clone(),
        (Home::Compose { service, .. }, _) => service.clone(),
        (Home::Unit { unit, .. }, _) => unit.trim_end_matches(".service").to_owned(),
        (Home::Hand { .. }, Speech::Known(api)) => name_of_api(*api).to_owned(),
        (Home::Hand { words, cwd, .. }, _) => {
            let folder = cwd.as_deref().and_then(|cwd| cwd.rsplit('/').next());
            let program = words.first().and_then(|word| word.rsplit('/').next());
            folder.filter(|folder| !folder.is_empty()).or(program).unwrap_or("server").to_owned()
        }
    };
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
    let name: String = raw.chars().map(plain).collect();
    let name = name.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
    let name = if name.is_empty() { "service".to_owned() } else { name };
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let free =
        std::iter::once(name.clone()).chain(numbered).find(|name| names.insert(name.clone()));
    free.unwrap_or(name)
}

/// Returns a text as a quoted TOML string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn quoted_key(name: &str) -> String {
    if name.contains('.') { quoted(name) } else { name.to_owned() }
}

/// Returns a word as the shell has to read it, in quotes if it needs them.
fn shell_word(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Escapes a text so that it survives the expansion of `$` and `~` in a configuration.
fn doubled(text: &str) -> String {
    let text = text.replace('$', "$$");
    // A tilde is expanded only at the beginning.
    if text.starts_with('~') { format!("./{text}") } else { text }
}

/// Returns a text for a comment, without control characters, which could end its line.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}
