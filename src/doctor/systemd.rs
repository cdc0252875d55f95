//! Checks of systemd: whether it answers, whether this user may start and stop units, and how the
//! services' units are installed.

use super::check::{Check, CheckId};
use super::{Examined, UNCONFIGURED};
use crate::model::{Health, Manager, Service};
use crate::world::ports::local_port;
use crate::world::program;
use crate::world::systemd::{self, Installed};
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::path::Path;

pub fn examine(case: &Examined) -> Vec<Check> {
    let Some(config) = &case.config else {
        return vec![Check::skip(CheckId::SystemdManager, UNCONFIGURED)];
    };
    let mut checks = Vec::new();
    for (is_user, whose) in [(false, "system"), (true, "user")] {
        let units: Vec<(&Service, &str)> = config
            .services
            .iter()
            .filter_map(|service| match &service.manager {
                Manager::Systemd { unit, user } if *user == is_user => {
                    Some((service, unit.as_str()))
                }
                _ => None,
            })
            .collect();
        if units.is_empty() {
            continue;
        }
        let names: Vec<&str> = units.iter().map(|(_, unit)| *unit).collect();
        match systemd::installed(&names, is_user, &case.stop) {
            Ok(installed) => {
                checks.push(Check::pass(
                    CheckId::SystemdManager,
                    format!("the {whose}'s manager answers"),
                ));
                if !is_user {
                    checks.push(permission(case));
                }
                for (service, unit) in units {
                    let installed = installed.get(unit);
                    let mut of_unit = judge(unit, is_user, installed);
                    of_unit.extend(socket(service, installed, is_user, case));
                    checks.extend(of_unit.into_iter().map(|check| check.of(&service.name)));
                }
            }
            Err(failure) => {
                let fix = "install systemd, or start the service with a command: type = \"native\"";
                checks.push(Check::failure(CheckId::SystemdManager, &failure, fix));
                let skipped = |(service, _): (&Service, &str)| {
                    Check::skip(CheckId::SystemdUnit, "systemd cannot be queried").of(&service.name)
                };
                checks.extend(units.into_iter().map(skipped));
            }
        }
    }
    if checks.is_empty() {
        checks.push(Check::skip(CheckId::SystemdManager, "no service is a unit"));
    }
    checks
}

/// Checks whether this user may start and stop the system's units, as far as that can be known
/// beforehand: for a single unit, polkit decides only when it is to be started or stopped.
fn permission(case: &Examined) -> Check {
    let id = CheckId::SystemdPermission;
    if geteuid().is_root() {
        return Check::pass(id, "root may start and stop units");
    }
    if program::find(OsStr::new(systemd::PKCHECK), Path::new(""), case.path.as_deref()).is_err() {
        return Check::warn(
            id,
            "only root may start and stop units, since there is no polkit that could let you",
            "run gpuctl as root, or install polkit and let a rule allow it (docs/operations.md)",
        );
    }
    match systemd::lets_act(&case.stop) {
        true => Check::pass(id, "polkit lets you start and stop units"),
        false => Check::skip(id, "polkit decides when a unit is to be started or stopped"),
    }
}

fn judge(unit: &str, is_user: bool, installed: Option<&Installed>) -> Vec<Check> {
    let Some(Installed { load_state, file_state, .. }) = installed else {
        return vec![Check::skip(
            CheckId::SystemdUnit,
            format!("systemctl show said nothing about {unit}"),
        )];
    };
    let systemctl = if is_user { "systemctl --user" } else { "systemctl" };
    match load_state.as_str() {
        "loaded" => {}
        "masked" => {
            let fix = format!("`{systemctl} unmask {unit}`");
            return vec![Check::fail(CheckId::SystemdUnit, format!("{unit} is masked"), fix)];
        }
        other => {
            let failure = systemd::missing(unit, other);
            return vec![Check::failure(
                CheckId::SystemdUnit,
                &failure,
                "write a unit file for it",
            )];
        }
    }
    let boot = match file_state.starts_with("enabled") {
        true => Check::warn(
            CheckId::SystemdBoot,
            format!("{unit} is enabled: it starts at boot, whatever else is on the card"),
            format!(
                "`{systemctl} disable {unit}`; or leave it enabled if it is the one that always runs"
            ),
        ),
        false => Check::pass(
            CheckId::SystemdBoot,
            if file_state.is_empty() { "not enabled" } else { file_state },
        ),
    };
    vec![Check::pass(CheckId::SystemdUnit, unit), boot]
}

/// Checks whether the health check of a unit that a socket starts asks the server, and not the
/// socket. `None` if no socket starts the unit, or its health check uses no port of this machine.
fn socket(
    service: &Service,
    installed: Option<&Installed>,
    is_user: bool,
    case: &Examined,
) -> Option<Check> {
    let (id, socket) = (CheckId::SystemdSocket, installed?.socket.as_deref()?);
    let port = service.health.as_ref().and_then(local_port)?;
    let asks_server = match &service.health {
        Some(Health::Tcp { .. }) => {
            !systemd::accepts_for(socket, port, is_user, &case.stop).unwrap_or(false)
        }
        _ => true,
    };
    Some(match asks_server {
        true => Check::pass(id, format!("its health check asks the server, not {socket}")),
        false => Check::warn(
            id,
            format!(
                "its health check asks only whether port {port} accepts, and {socket} accepts there before the server listens"
            ),
            format!(
                "ask the server itself: let services.{}.health be an http:// URL",
                service.name
            ),
        ),
    })
}
