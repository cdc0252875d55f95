//! Turns a parsed configuration file into a `Config`: expands `~` and variables, applies the rules
//! between keys, and refuses what cannot work.

use super::calls::Calls;
use super::complaint::Complaint;
use super::file::{self, ConfigFile};
use super::phases::PhaseNames;
use super::text::ConfigText;
use super::{Config, Environment, Gpu, HttpToken, Lock, Place, Selector, UrlSource};
use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::{Compose, Containers, Evict, Manager, Native, Service, variable};
use crate::pattern::Pattern;
use std::ffi::CStr;
use std::path::PathBuf;
use std::time::Duration;

/// Validates a parsed configuration. `source` is its text, or `None` if there is no file; `gpu` is
/// the card that the command line names; variables of the environment override the file.
pub fn validate(
    source: Option<&ConfigText>,
    mut file: ConfigFile,
    gpu: Option<&str>,
    environment: &Environment,
) -> Result<Config> {
    let complain = |key: &[&str], problem: &str| match source {
        Some(source) => source.complaint(key, problem),
        None => Failure::new(Code::Config, format!("{}: {problem}", key.join("."))),
    };
    expand(&mut file, environment).map_err(|(key, problem)| {
        complain(&key.iter().map(String::as_str).collect::<Vec<_>>(), &problem)
    })?;

    if file.docker.0.trim().is_empty() || file.docker.0.starts_with('-') {
        return Err(complain(&["docker"], "is not the name or path of a program"));
    }
    if file.gpu.index.is_some() && file.gpu.uuid.is_some() {
        return Err(complain(&["gpu", "uuid"], "give either index or uuid, not both"));
    }
    for (key, text) in [("uuid", &file.gpu.uuid), ("nvml_library", &file.gpu.nvml_library)] {
        if text.as_ref().is_some_and(|text| text.trim().is_empty()) {
            return Err(complain(&["gpu", key], "is empty"));
        }
    }
    let gpu = Gpu {
        selector: match (gpu, &file.gpu.uuid) {
            (Some(typed), _) => Selector::parse(typed),
            (None, Some(uuid)) => Selector::Uuid(uuid.clone()),
            (None, None) => Selector::Index(file.gpu.index.unwrap_or(0)),
        },
        reserve: file.gpu.reserve_mb,
        total: file.gpu.total_mb,
        library: file.gpu.nvml_library.as_ref().map(PathBuf::from),
    };

    let mut source_of_url =
        if file.lock.url.is_some() { UrlSource::Config } else { UrlSource::Nowhere };
    for (source, stronger) in [(UrlSource::RedisUrl, false), (UrlSource::GpuctlLockUrl, true)] {
        if (stronger || file.lock.url.is_none())
            && let Some(variable) = source.variable()
            && let Some(url) = environment.text(variable)?
        {
            file.lock.url = Some(url.to_owned());
            source_of_url = source;
        }
    }
    let place =
        Place::of(&file.lock, source_of_url).map_err(|problem| match source_of_url.variable() {
            Some(variable) => wrong_variable(variable, &problem),
            None => complain(&["lock", "url"], &problem),
        })?;
    if file.lock.key.is_empty() {
        return Err(complain(&["lock", "key"], "is empty"));
    }
    if file.lock.ttl.0.is_zero() {
        return Err(complain(&["lock", "ttl"], "must be longer than zero"));
    }
    let lock = Lock {
        place,
        key: file.lock.key.clone(),
        ttl: file.lock.ttl.0,
        wait: file.lock.wait.0,
        // A token that is not UTF-8 still counts as given: altered here, it is that of nobody's
        // lock.
        token: environment
            .raw(variable::LOCK_TOKEN)
            .map(|token| token.to_string_lossy().into_owned()),
    };

    let http =
        HttpToken::of(&file.http).map_err(|(key, problem)| complain(&["http", key], &problem))?;

    let names = PhaseNames::of(&file.phases)
        .map_err(|(key, problem)| complain(&["phases", &key], &problem))?;
    let mut services: Vec<Service> = Vec::new();
    for (name, entry) in &file.services {
        let service = service(name, entry, &names).map_err(|(key, problem)| {
            let key: Vec<&str> = ["services", name].into_iter().chain(key).collect();
            complain(&key, &problem)
        })?;
        if let Some(twin) =
            services.iter().find(|twin| same_instance(&twin.manager, &service.manager))
        {
            let twin = &twin.name;
            return Err(match &service.manager {
                Manager::Native(_) => complain(
                    &["services", name, "match"],
                    &format!(
                        "is also that of service {twin}; choose something that only this one has"
                    ),
                ),
                other => {
                    let what = match other {
                        Manager::Systemd { .. } => "unit",
                        _ => "container",
                    };
                    let problem = format!("manages the same {what} as service {twin}");
                    complain(&["services", name], &problem)
                }
            });
        }
        services.push(service);
    }
    let canary = match &mut file.canary {
        Some(canary) => {
            let wrong = |(name, problem): Complaint<_>| wrong_variable(name, &problem);
            canary.overlay(environment).map_err(wrong)?;
            let resolved = canary.resolve(&services, environment);
            Some(resolved.map_err(|(key, problem)| complain(&["canary", key], &problem))?)
        }
        None => None,
    };
    let phases = names.with(&services);

    Ok(Config {
        path: source.map(|source| source.path.to_owned()),
        docker: file.docker.0.clone(),
        gpu,
        lock,
        http,
        phases,
        services,
        canary,
        state_dir: environment.state_dir(),
        file,
    })
}

fn wrong_variable(name: &str, problem: &str) -> Failure {
    Failure::new(Code::Config, format!("${name}: {problem}"))
}

/// Expands `~` and variables in paths, commands, URLs, headers and the values of variables.
/// Patterns and the bodies of requests are left alone. Fails with the key that is wrong and the
/// reason.
fn expand(
    file: &mut ConfigFile,
    environment: &Environment,
) -> std::result::Result<(), Complaint<Vec<String>>> {
    let mut texts: Vec<(Vec<String>, &mut String)> = Vec::new();
    let key = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
    texts.push((key(&["docker"]), &mut file.docker.0));
    texts.extend(file.gpu.nvml_library.as_mut().map(|text| (key(&["gpu", "nvml_library"]), text)));
    texts.extend(file.lock.url.as_mut().map(|text| (key(&["lock", "url"]), text)));
    texts.extend(file.http.token.as_mut().map(|text| (key(&["http", "token"]), text)));
    texts.extend(file.http.token_file.as_mut().map(|text| (key(&["http", "token_file"]), text)));
    if let Some(canary) = &mut file.canary {
        let entry = |field: &str| key(&["canary", field]);
        texts.push((entry("start"), &mut canary.start));
        texts.push((entry("model"), &mut canary.model));
        texts.extend(canary.maintenance_lock.as_mut().map(|t| (entry("maintenance_lock"), t)));
        texts.extend(canary.state_dir.as_mut().map(|text| (entry("state_dir"), text)));
    }
    for (name, service) in &mut file.services {
        let entry = |field: &str| key(&["services", name, field]);
        texts.extend(service.health.as_mut().map(|text| (entry("health"), text)));
        texts.extend(service.start.as_mut().map(|text| (entry("start"), text)));
        texts.extend(service.stop.as_mut().map(|text| (entry("stop"), text)));
        texts.extend(service.cwd.as_mut().map(|text| (entry("cwd"), text)));
        texts.extend(service.files.iter_mut().map(|text| (entry("files"), text)));
        texts.extend(service.url.as_mut().map(|text| (entry("url"), text)));
        texts.extend(service.headers.values_mut().map(|text| (entry("headers"), text)));
        if let Some(busy) = &mut service.busy {
            let texts_of = [busy.url.as_mut(), busy.command.as_mut()].into_iter().flatten();
            texts.extend(texts_of.map(|text| (entry("busy"), text)));
        }
        texts.extend(service.warm_up.as_mut().map(|call| (entry("warm_up"), &mut call.url)));
        texts.extend(service.unload.as_mut().map(|call| (entry("unload"), &mut call.url)));
        texts.extend(service.env.values_mut().map(|text| (entry("env"), text)));
    }
    for (key, text) in texts {
        *text = environment.expand(text).map_err(|problem| (key, problem))?;
    }
    Ok(())
}

fn same_instance(a: &Manager, b: &Manager) -> bool {
    match (a, b) {
        (Manager::Containers(a), Manager::Containers(b)) => share_containers(a, b),
        (Manager::Systemd { unit: a, user: x }, Manager::Systemd { unit: b, user: y }) => {
            a == b && x == y
        }
        (Manager::Native(a), Manager::Native(b)) => a.pattern.is_some() && a.pattern == b.pattern,
        _ => false,
    }
}

/// Reports whether two services have a container in common, judged by their names. A whole project
/// has the containers of each of its services.
fn share_containers(a: &Containers, b: &Containers) -> bool {
    match (a, b) {
        (Containers::Named(a), Containers::Named(b)) => a == b,
        (Containers::Compose(a), Containers::Compose(b)) => {
            let is_whole = a.service.is_none() || b.service.is_none();
            a.project == b.project && (is_whole || a.service == b.service)
        }
        _ => false,
    }
}

fn service(
    name: &str,
    entry: &file::ServiceTable,
    names: &PhaseNames,
) -> std::result::Result<Service, Complaint<Option<&'static str>>> {
    let fail = |key: &'static str, problem: &str| Err((Some(key), problem.to_owned()));
    if !is_plain_name(name) {
        return Err((
            None,
            "a service's name may contain only letters, digits, `.`, `_` and `-`".to_owned(),
        ));
    }
    for (key, span) in
        [("start_timeout", entry.start_timeout), ("stop_timeout", entry.stop_timeout)]
    {
        if span.0 < Duration::from_millis(1) {
            return fail(key, "must be longer than zero");
        }
    }
    let texts = [
        ("container", &entry.container),
        ("project", &entry.project),
        ("service", &entry.service),
        ("unit", &entry.unit),
        ("health", &entry.health),
        ("start", &entry.start),
        ("match", &entry.pattern),
        ("stop", &entry.stop),
        ("cwd", &entry.cwd),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            if text.contains('\0') {
                return fail(key, "contains a NUL character");
            }
            if text.trim().is_empty() {
                return fail(key, "is empty");
            }
        }
    }
    let manager = manager(entry)?;
    let calls = Calls::of(entry, &manager).map_err(|(key, problem)| (Some(key), problem))?;
    let evict = match entry.evict {
        file::EvictKey::Stop => Evict::Stop,
        file::EvictKey::Unload if calls.unload.is_none() => {
            return fail("evict", "\"unload\" needs api and url, or an unload = { … } call");
        }
        file::EvictKey::Unload => Evict::Unload,
    };
    Ok(Service {
        name: name.to_owned(),
        manager,
        vram: entry.vram_mb,
        priority: entry.priority,
        health: calls.health,
        phases: names.numbers(&entry.phases).map_err(|problem| (Some("phases"), problem))?,
        start_timeout: entry.start_timeout.0,
        stop_timeout: entry.stop_timeout.0,
        server: calls.server,
        headers: calls.headers,
        jobs: calls.jobs,
        drain: entry.drain.0,
        idle: entry.idle.map(|span| span.0),
        warm_up: calls.warm_up,
        evict,
        unload: calls.unload,
    })
}

/// Resolves the manager of a service. Fails if a key belongs to another type of service, or if the
/// type needs a key that is missing.
fn manager(
    entry: &file::ServiceTable,
) -> std::result::Result<Manager, Complaint<Option<&'static str>>> {
    use file::Type;
    let owned_by: [(&'static str, bool, Type); 11] = [
        ("container", entry.container.is_some(), Type::Docker),
        ("project", entry.project.is_some(), Type::Compose),
        ("service", entry.service.is_some(), Type::Compose),
        ("files", !entry.files.is_empty(), Type::Compose),
        ("unit", entry.unit.is_some(), Type::Systemd),
        ("user", entry.user.is_some(), Type::Systemd),
        ("start", entry.start.is_some(), Type::Native),
        ("match", entry.pattern.is_some(), Type::Native),
        ("stop", entry.stop.is_some(), Type::Native),
        ("env", !entry.env.is_empty(), Type::Native),
        ("cwd", entry.cwd.is_some(), Type::Native),
    ];
    for (key, given, owner) in owned_by {
        if given && owner != entry.r#type {
            let problem = format!("is only for type = \"{}\"", format!("{owner:?}").to_lowercase());
            return Err((Some(key), problem));
        }
    }
    let missing = |key: &str| (Some("type"), format!("this type needs the key `{key}`"));
    match entry.r#type {
        Type::Docker => {
            let container = entry.container.clone().ok_or_else(|| missing("container"))?;
            match is_plain_name(&container) {
                true => Ok(Manager::Containers(Containers::Named(container))),
                false => {
                    Err((Some("container"), "is not the name or ID of a container".to_owned()))
                }
            }
        }
        Type::Compose => {
            let project = entry.project.clone().ok_or_else(|| missing("project"))?;
            if !is_plain_name(&project) {
                return Err((Some("project"), "is not the name of a compose project".to_owned()));
            }
            if entry.service.as_ref().is_some_and(|service| !is_plain_name(service)) {
                return Err((Some("service"), "is not the name of a compose service".to_owned()));
            }
            let files: Vec<PathBuf> = entry.files.iter().map(PathBuf::from).collect();
            if files.iter().any(|file| !file.is_absolute()) {
                return Err((Some("files"), "must be absolute paths".to_owned()));
            }
            let service = entry.service.clone();
            Ok(Manager::Containers(Containers::Compose(Compose { project, service, files })))
        }
        Type::Systemd => {
            let unit = entry.unit.clone().ok_or_else(|| missing("unit"))?;
            let plain = |c: char| c.is_ascii_alphanumeric() || "@._-:\\".contains(c);
            if unit.is_empty() || unit.starts_with('-') || !unit.chars().all(plain) {
                return Err((Some("unit"), "is not the name of a unit".to_owned()));
            }
            // If one of its units is a template, `systemctl show` fails for all of them.
            if unit.ends_with('@') || unit.contains("@.") {
                let problem = "is a template; name an instance of it, such as name@0.service";
                return Err((Some("unit"), problem.to_owned()));
            }
            let unit = if unit.contains('.') { unit } else { format!("{unit}.service") };
            Ok(Manager::Systemd { unit, user: entry.user.unwrap_or(false) })
        }
        Type::Native => {
            if let Some(pattern) = &entry.pattern {
                refuse_broad(pattern).map_err(|problem| (Some("match"), problem))?;
            }
            for (name, value) in &entry.env {
                if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                    return Err((
                        Some("env"),
                        format!("\"{}\" cannot be set", name.escape_default()),
                    ));
                }
            }
            Ok(Manager::Native(Native {
                start: entry.start.clone().ok_or_else(|| missing("start"))?,
                pattern: entry.pattern.clone(),
                stop: entry.stop.clone(),
                env: entry.env.clone(),
                cwd: entry.cwd.as_ref().map(PathBuf::from),
            }))
        }
    }
}

fn is_plain_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// Refuses a pattern that is not a valid expression, or that says nothing about the service because
/// it matches the empty command line or command lines that have nothing in common.
fn refuse_broad(pattern: &str) -> std::result::Result<(), String> {
    const UNLIKE: [&CStr; 4] = [c"/sbin/init", c"sshd: user@pts/0", c"python3 -m app 80", c"bash"];
    let compiled = Pattern::new(pattern).map_err(|why| {
        format!("\"{pattern}\" is not a valid extended regular expression, as for pkill -f: {why}")
    })?;
    if compiled.matches(c"") || UNLIKE.iter().filter(|line| compiled.matches(line)).count() > 1 {
        return Err(format!(
            "\"{pattern}\" matches processes of every kind; choose something that only this service has in its command line"
        ));
    }
    Ok(())
}
