//! Checks of the services as they were found: their state, which processes use their ports, and
//! what their patterns match.

use super::check::{Check, CheckId};
use crate::config::Config;
use crate::model::{
    ApiServer, Health, HttpCall, JobProbe, Manager, Observed, Presence, Service, Snapshot, State,
    Unload, Unproven,
};
use crate::world::ports::{Listeners, local_port};
use crate::world::process::ProcessTable;

/// Checks each service, and whether services share ports.
pub fn judge(
    config: &Config,
    snapshot: &Snapshot,
    listeners: &Listeners,
    table: &ProcessTable,
) -> Vec<Check> {
    let mut checks = Vec::new();
    for service in &config.services {
        let observed = snapshot.service(&service.name);
        let mut of_service = vec![
            state(service, observed),
            health(service),
            port(service, observed, config, snapshot, listeners, table),
        ];
        of_service.extend(jobs(service, observed));
        of_service.extend(unload(service));
        if let Manager::Native(native) = &service.manager
            && native.pattern.is_some()
        {
            of_service.push(strangers(&service.name, observed));
        }
        checks.extend(of_service.into_iter().map(|check| check.of(&service.name)));
    }
    checks.extend(shared(config));
    checks
}

fn state(service: &Service, observed: &Observed) -> Check {
    let detail = || observed.detail.clone().unwrap_or_default();
    if let Presence::Dead(failure) = &observed.presence {
        return Check::failure(CheckId::ServiceState, failure, "remove it, then create it again");
    }
    match observed.state {
        State::Unknown => Check::skip(CheckId::ServiceState, "its manager cannot be queried"),
        // A process that answers in its place is reported by the check of its port.
        State::Error if observed.answered_by.is_none() => Check::fail(
            CheckId::ServiceState,
            detail(),
            format!(
                "see `gpuctl logs {0}`, and check whether services.{0}.health is right",
                service.name
            ),
        ),
        State::Error => Check::skip(CheckId::ServiceState, "something else is using its port"),
        state => Check::pass(CheckId::ServiceState, state.to_string()),
    }
}

fn health(service: &Service) -> Check {
    let id = CheckId::ServiceHealth;
    let Some(health) = &service.health else {
        let told = "none: it counts as ready when its HEALTHCHECK passes, or once it is alive";
        return Check::pass(id, told);
    };
    let url = url(health);
    match local_port(health) {
        Some(_) => Check::pass(id, url),
        None => Check::warn(
            id,
            format!(
                "{url} is not on localhost: gpuctl cannot tell whether it is the service that answers"
            ),
            format!(
                "use localhost, or an address in 127.0.0.0/8, in services.{}.health",
                service.name
            ),
        ),
    }
}

fn url(health: &Health) -> String {
    match health {
        Health::Http(url) => url.clone(),
        Health::Tcp { host, port } => format!("tcp://{host}:{port}"),
    }
}

/// Checks whether another process listens on the port of the service.
fn port(
    service: &Service,
    observed: &Observed,
    config: &Config,
    snapshot: &Snapshot,
    listeners: &Listeners,
    table: &ProcessTable,
) -> Check {
    let id = CheckId::ServicePort;
    let Some(port) = service.health.as_ref().and_then(local_port) else {
        return Check::skip(id, "it has no port on this machine");
    };
    let fix = || {
        format!(
            "stop that one, or give {0} another port; if it is {0}, make services.{0}.match find it",
            service.name
        )
    };
    if let Some(answer) = observed.answered_by.as_ref().filter(|answer| answer.service.is_none()) {
        return Check::fail(id, &answer.who, fix());
    }
    let is_down = match observed.presence {
        Presence::Unknown(_) => return Check::skip(id, "its manager cannot be queried"),
        Presence::Down(_) | Presence::Dead(_) | Presence::Missing(_) => true,
        Presence::Up(_) | Presence::Stopping(_) => false,
    };
    // If two services share a port, the other one is no stranger.
    let is_shared = config.services.iter().any(|other| {
        other.name != service.name
            && other.health.as_ref().and_then(local_port) == Some(port)
            && snapshot.service(&other.name).may_run()
    });
    if !is_down || is_shared || !listeners.is_taken(port) {
        return Check::pass(id, format!("nothing else answers on {port}"));
    }
    let holder = table.iter().find(|process| listeners.ports_of(process).contains(&port));
    let who = holder.map_or_else(
        || "another user's process".to_owned(),
        |process| format!("process {} ({})", process.pid, process.name),
    );
    Check::fail(
        id,
        format!("{who} is listening on port {port}, but {} is not running", service.name),
        fix(),
    )
}

/// Checks whether a running service that has a job probe can be asked for its jobs. `None` if the
/// service does not run or has no probe.
fn jobs(service: &Service, observed: &Observed) -> Option<Check> {
    let id = CheckId::ServiceJobs;
    let why = match (observed.jobs, &observed.jobs_unknown) {
        (Some(jobs), _) => return Some(Check::pass(id, format!("{jobs} now"))),
        (None, why) => why.as_ref()?,
    };
    let key = match &service.jobs {
        Some(JobProbe::Server(_)) => "url",
        _ => "busy",
    };
    let fix = format!(
        "it would be stopped in the middle of its work; correct services.{}.{key}, or say what to ask it with busy",
        service.name
    );
    Some(Check::warn(id, why, fix))
}

fn unload(service: &Service) -> Option<Check> {
    let url = match service.unload.as_ref()? {
        Unload::Server(ApiServer { url, .. }) | Unload::Call(HttpCall { url, .. }) => url,
    };
    let health = service.health.as_ref().and_then(local_port);
    let unload = local_port(&Health::Http(url.clone()));
    let is_elsewhere = health.is_some() && health != unload;
    Some(match is_elsewhere {
        true => Check::warn(
            CheckId::ServiceUnload,
            format!("{url} is not the server that its health check asks"),
            format!(
                "give services.{}.unload.url the host and port of its health URL",
                service.name
            ),
        ),
        false => Check::pass(CheckId::ServiceUnload, url),
    })
}

fn strangers(name: &str, observed: &Observed) -> Check {
    let id = CheckId::NativeStrangers;
    let matching: Vec<&Unproven> = observed.unproven.iter().filter(|one| one.matches).collect();
    let Some(first) = matching.first() else {
        return Check::pass(id, "nothing but the service matches at the moment");
    };
    let listed: Vec<String> = matching.iter().map(ToString::to_string).collect();
    Check::warn(
        id,
        format!(
            "matches, unproven: {}; gpuctl leaves them alone, whatever it does with {name}",
            listed.join(", ")
        ),
        format!(
            "if it is the service: gpuctl adopt {name} {}; if not, set services.{name}.match to something that only the service has in its command line",
            first.pid
        ),
    )
}

/// Checks whether services share a port or URL, or use the canary's port. Two that share one are a
/// failure if a phase needs both, and otherwise a warning.
fn shared(config: &Config) -> Vec<Check> {
    let id = CheckId::ServiceShared;
    let mut checks = Vec::new();
    for (index, service) in config.services.iter().enumerate() {
        let address = |service: &Service| {
            let health = service.health.as_ref()?;
            Some(local_port(health).map_or(url(health), |port| format!("port {port}")))
        };
        let Some(own) = address(service) else { continue };
        for other in config.services[..index].iter().filter(|o| address(o).as_ref() == Some(&own)) {
            let common = service.phases.intersection(&other.phases).next();
            let check = match common {
                Some(phase) => Check::fail(
                    id,
                    format!(
                        "uses the same {own} as {}, and phase {phase} needs both at once",
                        other.name
                    ),
                    "give one of them another port, and change its health URL to match",
                ),
                None => Check::warn(
                    id,
                    format!(
                        "uses the same {own} as {}: only one of the two can run at a time",
                        other.name
                    ),
                    "give one of them another port if both are ever to run together",
                ),
            };
            checks.push(check.of(&service.name));
        }
    }
    if let Ok(canary) = config.canary() {
        let uses = |s: &&Service| s.health.as_ref().and_then(local_port) == Some(canary.port);
        checks.extend(config.services.iter().find(uses).map(|service| {
            let message = format!("uses the canary's port {}", canary.port);
            Check::fail(id, message, "choose another canary.port").of(&service.name)
        }));
    }
    if checks.is_empty() {
        checks.push(Check::pass(id, "no port is used twice"));
    }
    checks
}
