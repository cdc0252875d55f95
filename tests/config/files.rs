//! Tests of `gpuctl config`: where the configuration is found, what `init` writes, and what `show`
//! and `schema` say of it.

use rig::{Invocation, Rig, unconfigured_or_skip};
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// Writes a configuration that can be told from others by its reserve.
fn put(path: &Path, reserve: u32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, format!("[gpu]\nreserve_mb = {reserve}\n")).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn reserve(show: &Value) -> &Value {
    &show["gpu"]["reserve_mb"]
}

/// Returns the path of every configuration in the repository's `examples/`.
fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "toml" || kind == "json"))
        .collect();
    found.sort();
    found
}

#[test]
fn of_all_places_the_first_that_has_a_file_counts() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let home = rig.path("home");
    let flag = rig.path("flag.toml");
    let variable = rig.path("variable.toml");
    let folder = home.join("gpuctl.toml");
    let xdg = rig.path("xdg/gpuctl/config.toml");
    let user = home.join(".config/gpuctl/config.toml");
    for (reserve, path) in [&flag, &variable, &folder, &xdg, &user].into_iter().enumerate() {
        put(path, reserve as u32);
    }
    let show = |words: &str| rig.gpuctl(words).env_remove("GPUCTL_CONFIG");
    let shown = |words: &str, variables: &[(&str, &Path)]| {
        let show = variables.iter().fold(show(words), |show, (name, path)| show.env(name, path));
        reserve(&show.run().succeeds().json()).clone()
    };
    let xdg_root = rig.path("xdg");
    let all = [("GPUCTL_CONFIG", variable.as_path()), ("XDG_CONFIG_HOME", &xdg_root)];
    let named = format!("--config {} config show --json", flag.display());
    assert_eq!(shown(&named, &all), 0, "--config");
    assert_eq!(shown("config show --json", &all), 1, "$GPUCTL_CONFIG");
    assert_eq!(shown("config show --json", &all[1..]), 2, "./gpuctl.toml");
    fs::remove_file(&folder).unwrap();
    let nothing = [("GPUCTL_CONFIG", Path::new("")), all[1]];
    assert_eq!(shown("config show --json", &nothing), 3, "$XDG_CONFIG_HOME, the variable empty");
    assert_eq!(shown("config show --json", &[]), 4, "~/.config");
    let relative = [("XDG_CONFIG_HOME", Path::new("../xdg"))];
    assert_eq!(shown("config show --json", &relative), 4, "a relative XDG folder is none");
}

#[test]
fn the_machines_own_configuration_is_the_last_place() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    put(&rig.path("machine.toml"), 7);
    // The script runs in a mount namespace with an /etc of its own.
    let unshare = if rustix::process::geteuid().is_root() { "" } else { "--map-root-user" };
    let within = |script: &str| {
        let script = format!(
            "exec unshare {unshare} --mount sh -c 'mount -t tmpfs none /etc && mkdir /etc/gpuctl && {script}'"
        );
        rig.shell(&script).env_remove("GPUCTL_CONFIG").env("FROM", rig.path("machine.toml"))
    };
    if !rig
        .shell(&format!("unshare {unshare} --mount mount -t tmpfs none /etc >&- 2>&-; echo $?"))
        .run()
        .succeeds()
        .text()
        .starts_with('0')
    {
        return rig::skip_or_fail("namespaces", "mount namespace");
    }
    let copy = "cp -p \"$FROM\" /etc/gpuctl/config.toml";
    let path = within(&format!("{copy} && gpuctl config path")).run().succeeds();
    drop(path.stdout("/etc/gpuctl/config.toml\n"));
    put(&rig.path("home/.config/gpuctl/config.toml"), 8);
    let show = within(&format!("{copy} && gpuctl config show --json")).run().succeeds().json();
    assert_eq!(reserve(&show), 8, "the user's goes before the machine's");
}

#[test]
fn a_place_that_is_named_is_not_passed_over() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    put(&rig.path("home/gpuctl.toml"), 1);
    let missing = rig.path("missing.toml");
    let show = rig.gpuctl("config show").env("GPUCTL_CONFIG", &missing).run();
    show.fails("config").stderr_has("missing.toml: cannot be read").stderr_has("config init");
    let show = rig.gpuctl("config show --config").arg(&missing).run();
    drop(show.fails("config").stderr_has("missing.toml"));
    fs::remove_file(rig.path("home/gpuctl.toml")).unwrap();
    put(&rig.path("home/.config/gpuctl/config.toml"), 2);
    symlink(&missing, rig.path("home/gpuctl.toml")).unwrap();
    let show = rig.gpuctl("config show").env_remove("GPUCTL_CONFIG").run();
    drop(show.fails("config").stderr_has("gpuctl.toml"));
}

#[test]
fn a_place_need_not_be_utf8() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let odd = |name: &str| OsString::from_vec([name.as_bytes(), b"\xff"].concat());
    let folder = rig.path("").join(odd("folder"));
    let path = folder.join("gpuctl.toml");
    fs::create_dir(&folder).unwrap();
    fs::rename(rig.path("gpuctl.toml"), &path).unwrap();
    let gpuctl = |words: &str| {
        let gpuctl = rig.gpuctl(words).env("GPUCTL_CONFIG", &path).env("HOME", &folder);
        gpuctl.env_remove("GPUCTL_STATE_DIR")
    };
    gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
    assert!(folder.join(".local/state/gpuctl/logs/vidi.log").exists());
    gpuctl("status --check vidi").run().succeeds().text();
    gpuctl("stop vidi").run().succeeds().stdout_has("stopped vidi").progress();
    rig.assert_no_process_of(&vidi);
    let state = rig.path("").join(odd("state"));
    gpuctl("release-all -q").env("GPUCTL_STATE_DIR", &state).run().succeeds();
    assert!(state.exists());
}

#[test]
fn a_variable_that_decides_and_is_no_text_is_not_passed_over() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").without_match().add();
    let odd = OsStr::from_bytes(b"\xff");
    for variable in ["GPUCTL_LOCK_URL", "REDIS_URL"] {
        let told = rig.gpuctl("start vidi").env(variable, odd).run().fails("config");
        drop(told.stderr_has(&format!("the environment variable {variable} is not UTF-8 text")));
    }
    let told = rig.gpuctl("start vidi").env("GPUCTL_LOCK_TOKEN", odd).run();
    drop(told.fails("lock_lost").stderr_has("GPUCTL_LOCK_TOKEN"));
    for (key, variable) in [("$ODD", "ODD"), ("~/x", "HOME")] {
        rig.set("services.vidi.cwd", key);
        let told = rig.gpuctl("start vidi").env(variable, odd).run().fails("config");
        let problem = format!("cwd: the environment variable {variable} is not UTF-8 text");
        drop(told.stderr_has(&problem));
    }
    rig.assert_no_process_of(&vidi);
}

#[test]
fn without_any_file_the_defaults_are_shown_and_there_is_no_path() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let run =
        |words: &str| rig.gpuctl(words).env_remove("GPUCTL_CONFIG").env_remove("REDIS_URL").run();
    let show = run("config show --json").succeeds().json();
    assert_eq!(
        show,
        json!({
            "docker": "docker",
            "gpu": {"reserve_mb": 1024},
            "lock": {"key": "gpu_mutex_v2", "ttl": "10m", "wait": "31s"},
            "services": {},
        })
    );
    run("config path").fails("config").stderr_has("gpuctl config init");
    run("config check").fails("config").stderr_has("gpuctl config init");
}

#[test]
fn the_same_configuration_in_json_and_in_toml_is_the_same() {
    let rig = Rig::new();
    let services = json!({
        "a": {"type": "native", "vram_mb": 1, "start": "a --serve", "match": "a --serve",
              "env": {"A": "1"}, "start_timeout": 90, "stop_timeout": "1m30s", "phases": [2]},
        "b": {"type": "docker", "container": "b", "vram_mb": 2, "evict": "unload",
              "api": "llama-server", "url": "http://localhost:1", "headers": {"X-Key": "1"}},
        "c": {"type": "systemd", "unit": "c.service", "user": true, "vram_mb": 3, "priority": -1},
    });
    let document = json!({"gpu": {"uuid": "GPU-1"}, "phases": {"2": "two"}, "services": services});
    rig.file("same.json", &document.to_string());
    rig.file("same.toml", &toml::to_string(&document).unwrap());
    let show = |name: &str| {
        let show = rig.gpuctl("config show --json --config").arg(rig.path(name)).run();
        show.succeeds().json()
    };
    assert_eq!(show("same.json"), show("same.toml"));
    let shown = show("same.json");
    assert_eq!(shown["services"]["a"]["start_timeout"], "1m 30s");
    assert_eq!(shown["services"]["a"]["stop_timeout"], "1m 30s");
    assert_eq!(shown["services"]["b"]["stop_timeout"], "30s", "the default");
    assert_eq!(shown["services"]["c"]["start_timeout"], "2m", "the default");
    assert_eq!(shown["services"]["c"]["priority"], -1);
}

#[test]
fn a_size_may_have_a_unit_wherever_one_is_configured() {
    let rig = Rig::new();
    rig.native("llm").add();
    rig.set("gpu.reserve_mb", "1GB");
    rig.set("gpu.total_mb", "24 GiB");
    rig.set("services.llm.vram_mb", "20G");
    rig.set("canary.service", "llm");
    rig.set("canary.model_mb", "5700MB");
    rig.set("canary.kv_cache_min_mb", "370");
    rig.set("canary.extra_mb.whisper_model_size.small", "1GB");
    let shown = rig.gpuctl("config show --json").run().succeeds().json();
    for (key, mb) in [
        ("/gpu/reserve_mb", 1024),
        ("/gpu/total_mb", 24576),
        ("/services/llm/vram_mb", 20480),
        ("/canary/model_mb", 5700),
        ("/canary/kv_cache_min_mb", 370),
        ("/canary/extra_mb/whisper_model_size/small", 1024),
    ] {
        assert_eq!(shown.pointer(key), Some(&json!(mb)), "{key}");
    }
    let fits = rig.gpuctl("can-fit llm --json").run().succeeds().json();
    assert_eq!(fits["required_mb"], 20480);
}

#[test]
fn what_show_prints_is_a_configuration_that_says_the_same() {
    let rig = Rig::new();
    rig.gpuctl("config init --example pipeline --force --output")
        .arg(rig.path("gpuctl.toml"))
        .run()
        .succeeds()
        .text();
    let shown = rig.gpuctl("config show").run().succeeds().text();
    rig.write_config(&shown);
    rig.gpuctl("config check").run().succeeds().stdout_has("good: 4 services, 5 phases");
    rig.gpuctl("config show").run().succeeds().stdout(&shown);
}

#[test]
fn check_tells_what_it_found() {
    let rig = Rig::new();
    rig.native("vidi").phases([2]).add();
    rig.set("phases.5", "render");
    let checked = rig.gpuctl("config check --json").run().succeeds().json();
    let path = rig.path("gpuctl.toml").canonicalize().unwrap();
    assert_eq!(
        checked,
        json!({"valid": true, "path": path, "services": ["vidi"], "phases": [2, 5]})
    );
    rig.gpuctl("config check").run().succeeds().stdout_has("good: 1 service, 2 phases");
    let path = rig.gpuctl("config path --json").run().succeeds().json();
    assert_eq!(path, json!({"path": rig.path("gpuctl.toml")}));
}

#[test]
fn init_writes_the_services_of_the_requirements() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let path = rig.path("home/.config/gpuctl/config.toml");
    let run = |words: &str| rig.gpuctl(words).env_remove("GPUCTL_CONFIG").run();
    run("config init --example pipeline").succeeds().stdout(&format!("{}\n", path.display()));
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.lines().filter(|line| line.contains("# ")).count() > 15, "it is commented");
    run("config check").succeeds().stdout_has("good: 4 services, 5 phases");

    let shown = run("config show --json").succeeds().json();
    assert_eq!(shown["gpu"]["total_mb"], 24576);
    let table: Vec<Value> = ["comfyui", "cosyvoice", "vidi", "ollama"]
        .map(|name| {
            let service = &shown["services"][name];
            let of = ["type", "container", "vram_mb", "priority", "phases", "health"];
            Value::from(of.map(|key| service[key].clone()).to_vec())
        })
        .into();
    assert_eq!(
        Value::from(table),
        json!([
            ["native", null, 20000, 100, [4], "http://localhost:8188/system_stats"],
            ["docker", "mcn_cosyvoice", 4000, 50, [3], "http://localhost:50000/docs"],
            ["native", null, 4000, 40, [2], "http://localhost:8099/health"],
            ["docker", "mcn_ollama", 18000, 10, [], "http://localhost:11434/api/tags"],
        ])
    );
    assert_eq!(shown["services"].as_object().unwrap().len(), 4);
    let pattern = |name: &str| shown["services"][name]["match"].as_str().unwrap().to_owned();
    assert_eq!(pattern("comfyui"), r"python.*main\.py.*--listen");
    assert_eq!(pattern("vidi"), "vidi_server");
}

#[test]
fn init_overwrites_nothing_unless_it_is_told_to() {
    let rig = Rig::new();
    let path = rig.file("mine.toml", "# mine\n");
    fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
    let init = |words: &str| rig.gpuctl(words).arg("--output").arg(&path).run();
    init("config init").fails("io").stderr_has("already exists").stderr_has("--force");
    assert_eq!(fs::read_to_string(&path).unwrap(), "# mine\n");
    let written = init("config init --force --json").succeeds().json();
    assert_eq!(written, json!({"path": path}));
    assert_ne!(fs::read_to_string(&path).unwrap(), "# mine\n");
    assert_eq!(mode(&path), 0o600);
}

#[test]
fn init_writes_a_private_file_whatever_the_umask() {
    let rig = Rig::new();
    rig.shell("umask 0; gpuctl config init --output new/deep/config.toml").run().succeeds().text();
    let path = rig.path("home/new/deep/config.toml");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[test]
fn init_does_not_write_through_a_link() {
    let rig = Rig::new();
    let target = rig.file("target", "precious");
    for (name, target) in [("link", &target), ("dangling", &rig.path("nothing"))] {
        let link = rig.path(name);
        symlink(target, &link).unwrap();
        let init = rig.gpuctl("config init --output").arg(&link).run();
        drop(init.fails("io").stderr_has("already exists"));
        rig.gpuctl("config init --force --output").arg(&link).run().succeeds().text();
        assert!(fs::symlink_metadata(&link).unwrap().is_file(), "the link is replaced");
    }
    assert_eq!(fs::read_to_string(target).unwrap(), "precious");
    assert!(!rig.path("nothing").exists());
}

#[test]
fn init_writes_no_toml_where_json_would_be_read() {
    let rig = Rig::new();
    let path = rig.path("config.json");
    let init = |words: &str| rig.gpuctl(words).env("GPUCTL_CONFIG", &path);
    let refused = |init: Invocation, code: &str| {
        drop(init.run().fails(code).stderr_has("is TOML").stderr_has("hint: name it .toml"));
        assert!(!path.exists());
    };
    refused(init("config init --output").arg(&path), "usage");
    refused(init("config init --config").arg(&path), "usage");
    refused(init("config init --force"), "config");
    init("config init --output config.toml").run().succeeds().text();
}

#[test]
fn init_that_fails_leaves_nothing_behind() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    rig.file("file", "");
    fs::create_dir(rig.path("folder")).unwrap();
    let before = fs::read_dir(rig.path("")).unwrap().count();
    for place in ["file/config.toml", "folder"] {
        let init = rig.gpuctl("config init --force --output").arg(rig.path(place)).run();
        drop(init.fails("io").stderr_has("cannot write").stderr_has(place));
    }
    assert_eq!(fs::read_dir(rig.path("")).unwrap().count(), before);
    let init = rig.gpuctl("config init").env_remove("GPUCTL_CONFIG").env_remove("HOME").run();
    init.fails("config").stderr_has("HOME is not set").stderr_has("--output");
}

#[test]
fn every_example_of_the_repository_loads() {
    let rig = Rig::new();
    let examples = examples();
    assert!(!examples.is_empty(), "there are examples");
    for example in &examples {
        // A copy is checked, because a checkout may be another user's or writable by its group.
        let copy = rig.path(example.file_name().unwrap().to_str().unwrap());
        fs::write(&copy, fs::read(example).unwrap()).unwrap();
        fs::set_permissions(&copy, Permissions::from_mode(0o600)).unwrap();
        rig.gpuctl("config check --config").arg(&copy).run().succeeds().stdout_has("good");
    }
}

#[test]
fn the_schema_takes_every_example_and_refuses_what_gpuctl_refuses() {
    let rig = Rig::new();
    // A user who mends a broken configuration needs the schema too.
    rig.write_config("broken");
    let schema = rig.gpuctl("config schema").run().succeeds().json();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let takes = |value: &Value| complaint(&schema, &schema, value);
    let init =
        rig.gpuctl("config init --example pipeline --output").arg(rig.path("template.toml")).run();
    drop(init.succeeds().text());
    for example in examples().into_iter().chain([rig.path("template.toml")]) {
        let text = fs::read_to_string(&example).unwrap();
        let document = match example.extension().unwrap() == "json" {
            true => serde_json::from_str(&text).unwrap(),
            false => toml::from_str(&text).unwrap(),
        };
        assert_eq!(takes(&document), None, "{}", example.display());
    }
    let service = |service: Value| json!({"services": {"a": service}});
    for wrong in [
        json!([]),
        json!({"gpus": {}}),
        json!({"gpu": {"reserve": 1}}),
        json!({"gpu": {"reserve_mb": "1TB"}}),
        json!({"gpu": {"reserve_mb": -1}}),
        json!({"gpu": {"total_mb": 1_000_000_000}}),
        json!({"phases": {"1": 1}}),
        json!({"lock": {"ttl": true}}),
        service(json!({"vram_mb": 1})),
        service(json!({"type": "native"})),
        service(json!({"type": "podman", "vram_mb": 1})),
        service(json!({"type": "native", "vram_mb": 1, "nonsense": 1})),
        service(json!({"type": "native", "vram_mb": 1, "evict": "maybe"})),
        service(json!({"type": "native", "vram_mb": 1, "phases": [true]})),
        service(json!({"type": "native", "vram_mb": 1, "unload": {"method": "PUT"}})),
        service(json!({"type": "native", "vram_mb": 1, "api": "kobold"})),
    ] {
        assert!(takes(&wrong).is_some(), "{wrong}");
        rig.file("wrong.json", &wrong.to_string());
        let check = rig.gpuctl("config check --config").arg(rig.path("wrong.json")).run();
        drop(check.fails("config").stderr_has("wrong.json"));
    }
}

/// Returns the rule of the pattern that matches the key, or `None` if no pattern does.
fn of_pattern<'a>(patterns: &'a Value, key: &str) -> Option<&'a Value> {
    let mut patterns = patterns.as_object().unwrap().iter();
    let finds = |pattern: &str| regex_lite::Regex::new(pattern).unwrap().is_match(key);
    patterns.find(|(pattern, _)| finds(pattern)).map(|(_, rule)| rule)
}

/// Returns why a value does not follow a schema, or `None` if it does. Knows those keywords of JSON
/// Schema that gpuctl's schema uses, and panics at any other.
fn complaint(root: &Value, schema: &Value, value: &Value) -> Option<String> {
    let is_type = |name: &Value| match name.as_str().unwrap() {
        "null" => value.is_null(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        unknown => panic!("the type {unknown}"),
    };
    let schema = match schema {
        Value::Bool(true) => return None,
        Value::Bool(false) => return Some(format!("{value} is not to be there")),
        schema => schema.as_object().unwrap(),
    };
    let fields = || value.as_object().into_iter().flatten();
    let number = |limit: &Value| limit.as_f64().unwrap();
    schema.iter().find_map(|(keyword, rule)| {
        let all = |rules: &Value| rules.as_array().unwrap().clone();
        let breaks = match keyword.as_str() {
            "type" => {
                !rule.as_array().map_or_else(|| is_type(rule), |some| some.iter().any(is_type))
            }
            "enum" => !all(rule).contains(value),
            "const" => rule != value,
            "pattern" => {
                let pattern = regex_lite::Regex::new(rule.as_str().unwrap()).unwrap();
                value.as_str().is_some_and(|text| !pattern.is_match(text))
            }
            "minimum" => value.as_f64().is_some_and(|value| value < number(rule)),
            "maximum" => value.as_f64().is_some_and(|value| value > number(rule)),
            "required" => all(rule).iter().any(|key| value.get(key.as_str().unwrap()).is_none()),
            "anyOf" | "oneOf" => {
                all(rule).iter().all(|rule| complaint(root, rule, value).is_some())
            }
            "$ref" => {
                let path = rule.as_str().unwrap().strip_prefix('#').unwrap();
                return complaint(root, root.pointer(path).unwrap(), value);
            }
            "properties" => {
                return fields().find_map(|(key, value)| complaint(root, rule.get(key)?, value));
            }
            "patternProperties" => {
                return fields()
                    .find_map(|(key, value)| complaint(root, of_pattern(rule, key)?, value));
            }
            "additionalProperties" => {
                let is_known = |key: &str| {
                    let patterns = schema.get("patternProperties");
                    schema.get("properties").is_some_and(|of| of.get(key).is_some())
                        || patterns.is_some_and(|of| of_pattern(of, key).is_some())
                };
                let mut more = fields().filter(|(key, _)| !is_known(key));
                return more.find_map(|(_, value)| complaint(root, rule, value));
            }
            "items" => {
                let mut items = value.as_array().into_iter().flatten();
                return items.find_map(|item| complaint(root, rule, item));
            }
            "$schema" | "$defs" | "title" | "description" | "default" | "format" => false,
            unknown => panic!("the keyword {unknown}"),
        };
        breaks.then(|| format!("{value} breaks {keyword}: {rule}"))
    })
}
