//! Gathers the inventory: looks at the card, the processes, the ports, the engine and its
//! containers, and changes nothing.

use super::{Clue, Home, Inventory, Sighting, Speech, at_rest, speech};
use crate::config::Gpu;
use crate::model::{Container, GpuAccess, Mb, Pid};
use crate::world::docker::{self, Docker, Inspected};
use crate::world::nvml::Reader;
use crate::world::ports::Listeners;
use crate::world::process::{self, ProcessTable};
use crate::world::program;
use crate::world::wait::Stop;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::iter;
use std::path::Path;
use std::thread;

/// Ports on which model servers listen by default.
const USUAL_PORTS: [u16; 16] = [
    1234, 3000, 5000, 5001, 7860, 7861, 8000, 8001, 8080, 8099, 8188, 8888, 9000, 11434, 30000,
    50000,
];
/// Maximum number of ports that are probed.
const MOST_PORTS: usize = 32;
/// Names of processes that are a person's shell, a terminal or a start script, and no part of a
/// server.
const SHELLS: [&str; 12] =
    ["sh", "bash", "dash", "zsh", "fish", "ksh", "busybox", "tmux", "screen", "sshd", "sudo", "su"];
/// The manager of a process, as control groups and ancestors show it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Leader(Pid),
    Container(String),
    Unit(String, bool),
}

/// What was found about the processes of one origin.
#[derive(Default)]
struct Finding {
    pids: BTreeSet<Pid>,
    ports: BTreeSet<u16>,
    held: Mb,
    peak: Mb,
}

/// Gathers the inventory of this machine. `docker` is the client of the container engine, and
/// programs are looked for in the folders of `path`.
pub fn gather(gpu: &Gpu, docker: &str, path: Option<&OsStr>, stop: &Stop) -> Inventory {
    let mut reader = Reader::open(gpu);
    let ((client, told), units, table, holders) = thread::scope(|scope| {
        let asked = scope.spawn(|| engine(docker, path, stop));
        let units = [false, true].map(|user| scope.spawn(move || at_rest::units(user, stop)));
        let table = ProcessTable::read();
        let holders = Listeners::read().holders(&table);
        let units = units.map(|units| units.join().unwrap_or_default());
        let asked = asked.join().unwrap_or_else(|_| (docker.to_owned(), Inspected::default()));
        (asked, units.concat(), table, holders)
    });
    let containers = told.containers;
    // Control groups do not show every container: a user's podman may have none.
    let mains: HashMap<Pid, &str> =
        containers.iter().filter_map(|one| Some((one.main()?, one.id.as_str()))).collect();
    let origin_of = |pid: Pid| origin_of(pid, &table, &mains);
    let vram = reader.read().unwrap_or_default();
    let on_card = vram.processes.iter().flatten().filter(|one| !one.is_ending);

    let mut findings: BTreeMap<Origin, Finding> = BTreeMap::new();
    for process in on_card {
        let finding = findings.entry(origin_of(process.pid)).or_default();
        let held = process.memory.unwrap_or_default();
        finding.pids.insert(process.pid);
        finding.held = finding.held + held;
        finding.peak = finding.peak + process.peak.map_or(held, |peak| peak.max(held));
    }
    // A process that listens on a port that leads to a container does so for that container.
    let forwarded: BTreeSet<u16> = containers.iter().flat_map(published).collect();
    let is_forwarder = |pid: Pid| table.get(pid).is_some_and(docker::is_engines_own);
    for (port, pids) in holders.iter().filter(|(port, _)| !forwarded.contains(port)) {
        for pid in pids.iter().filter(|pid| !is_forwarder(**pid)) {
            let origin = origin_of(*pid);
            if USUAL_PORTS.contains(port) || findings.contains_key(&origin) {
                let finding = findings.entry(origin).or_default();
                finding.pids.insert(*pid);
                finding.ports.insert(*port);
            }
        }
    }
    for container in &containers {
        let finding = findings.entry(Origin::Container(container.id.clone())).or_default();
        finding.ports.extend(published(container));
    }
    let asked: BTreeSet<u16> = findings
        .values()
        .flat_map(|finding| finding.ports.iter().copied())
        .take(MOST_PORTS)
        .collect();
    let answers: HashMap<u16, Speech> = thread::scope(|scope| {
        let begun: Vec<_> =
            asked.iter().map(|port| (*port, scope.spawn(|| speech::ask(*port)))).collect();
        begun
            .into_iter()
            .map(|(port, asked)| (port, asked.join().unwrap_or(Speech::Other)))
            .collect()
    });

    let mut inventory = Inventory {
        library: gpu.library.clone(),
        client,
        trouble: told.trouble,
        device: vram.device.clone(),
        total: vram.total,
        commands: table
            .command_lines()
            .into_iter()
            .map(|(pid, line)| (pid, line.to_string_lossy().into_owned()))
            .collect(),
        ..Inventory::default()
    };
    let mut taken = BTreeSet::new();
    // A server that does not run cannot have a port on which something listens now.
    let is_free = |port: &u16| !holders.contains_key(port);
    for (origin, finding) in &findings {
        if let Some(mut sighting) = sighting(origin, finding, &answers, &containers, &table) {
            sighting.port = sighting.port.filter(|port| sighting.is_up() || is_free(port));
            taken.extend(finding.pids.iter().copied());
            // Each replica of a service is a container, and so a finding, of its own.
            match inventory.sightings.iter_mut().find(|other| other.home == sighting.home) {
                Some(other) => other.add(sighting),
                None => inventory.sightings.push(sighting),
            }
        }
    }
    for unit in units {
        let is_nobodys = |port: &u16| {
            is_free(port) && inventory.sightings.iter().all(|other| other.port != Some(*port))
        };
        let port = unit.port.filter(is_nobodys);
        inventory.sightings.push(Sighting { port, ..unit });
    }
    let others = vram.processes.iter().flatten().filter(|one| !taken.contains(&one.pid));
    inventory.others = others.map(|one| (one.name.clone(), one.memory)).collect();
    inventory
}

/// Asks the engine for its containers, and podman if the engine reports none. Returns the client
/// that reported them, and what it reported. A client that is not installed reports none.
fn engine(docker: &str, path: Option<&OsStr>, stop: &Stop) -> (String, Inspected) {
    let told = |client: &str| match program::find(OsStr::new(client), Path::new(""), path) {
        Ok(_) => Docker::of(client, stop).all(),
        Err(_) => Inspected::default(),
    };
    let own = told(docker);
    let podman = || told("podman");
    match own.containers.is_empty().then(podman).filter(|podman| !podman.containers.is_empty()) {
        Some(podman) => ("podman".to_owned(), podman),
        None => (docker.to_owned(), own),
    }
}

/// Returns the manager of a process. `mains` maps the main process of each container to the
/// container's id.
fn origin_of(pid: Pid, table: &ProcessTable, mains: &HashMap<Pid, &str>) -> Origin {
    let groups = process::control_groups(pid);
    let line = || iter::once(pid).chain(table.ancestors(pid));
    let of_main = || line().find_map(|above| mains.get(&above).copied());
    if let Some(container) = process::container_of(&groups).or_else(of_main) {
        return Origin::Container(container.to_owned());
    }
    match process::unit_of(&groups) {
        // A user's systemd is a unit too, and what it starts without a unit has no manager.
        Some(unit) if !unit.starts_with("user@") => {
            Origin::Unit(unit.to_owned(), groups.contains("/user@"))
        }
        _ => Origin::Leader(leader_of(pid, table)),
    }
}

/// Returns the first process of what a person has started: the furthest ancestor before a shell or
/// another session, or the process itself.
fn leader_of(pid: Pid, table: &ProcessTable) -> Pid {
    let Some(own) = table.get(pid) else { return pid };
    let session = own.session;
    let of_it = table.ancestors(pid).map_while(|above| {
        let process = table.get(above)?;
        let is_part = above > 1 && process.session == session && !is_shell(&process.name);
        is_part.then_some(above)
    });
    of_it.last().unwrap_or(pid)
}

fn is_shell(name: &str) -> bool {
    SHELLS.contains(&name) || name.starts_with("tmux")
}

/// Returns the ports of this machine that lead to a container, or none if it does not run.
fn published(container: &Container) -> impl Iterator<Item = u16> {
    let is_up = container.is_up();
    let own = container.setup.bindings.iter().filter(move |one| is_up && one.is_on_loopback());
    own.filter_map(|binding| binding.port)
}

fn sighting(
    origin: &Origin,
    finding: &Finding,
    answers: &HashMap<u16, Speech>,
    containers: &[Container],
    table: &ProcessTable,
) -> Option<Sighting> {
    let known = |port: &&u16| matches!(answers.get(port), Some(Speech::Known(_)));
    let http = |port: &&u16| matches!(answers.get(port), Some(Speech::Http(_)));
    let port = finding.ports.iter().find(known).or_else(|| finding.ports.iter().find(http));
    let port = port.or_else(|| finding.ports.first()).copied();
    let speech = port.and_then(|port| answers.get(&port)).cloned().unwrap_or(Speech::Other);
    let is_seen = finding.held > Mb(0) && speech != Speech::Other;
    let seen = |home| Sighting {
        home,
        port,
        speech: speech.clone(),
        held: finding.held,
        peak: finding.peak,
        clue: Clue::Seen,
    };
    let is_known = matches!(speech, Speech::Known(_));
    match origin {
        Origin::Container(id) => {
            let container = containers.iter().find(|one| one.id == *id)?;
            let sighting = seen(home_of(container));
            match is_known || finding.held > Mb(0) {
                true => Some(sighting),
                false => by_its_making(sighting, container),
            }
        }
        _ if !is_known && !is_seen => None,
        Origin::Unit(unit, user) => Some(seen(Home::Unit { unit: unit.clone(), user: *user })),
        // The process belongs to a container of an engine that does not report it.
        Origin::Leader(pid) if process::is_in_container(*pid) => None,
        Origin::Leader(pid) => Some(seen(by_hand(*pid, table))),
    }
}

/// Turns the sighting of a container that shows nothing by itself into one that its image or its
/// access to the card explains. `None` if neither does, or if it is an ended one-off container of
/// compose.
fn by_its_making(sighting: Sighting, container: &Container) -> Option<Sighting> {
    let (setup, is_up) = (&container.setup, container.is_up());
    if !is_up && setup.compose.as_ref().is_some_and(|labels| labels.is_one_off) {
        return None;
    }
    match at_rest::by_image(container) {
        Some((api, port)) => Some(Sighting {
            port,
            speech: Speech::Known(api),
            clue: Clue::Image { name: setup.image.clone(), is_up },
            ..sighting
        }),
        None if setup.gpu == GpuAccess::None => None,
        None => Some(Sighting { clue: Clue::Card { is_up }, ..sighting }),
    }
}

fn home_of(container: &Container) -> Home {
    let has_healthcheck = container.setup.has_healthcheck;
    match &container.setup.compose {
        Some(labels) if !labels.is_one_off => Home::Compose {
            project: labels.project.clone(),
            service: labels.service.clone(),
            has_healthcheck,
        },
        _ => Home::Container { name: container.name.clone(), has_healthcheck },
    }
}

fn by_hand(leader: Pid, table: &ProcessTable) -> Home {
    let mut words = process::arguments(leader);
    let cwd = process::folder(leader);
    if let Some(program) = words.first_mut().filter(|program| !program.contains('/')) {
        // A virtual environment that was active for this process is not when gpuctl starts it, so
        // the program's path is written out.
        let [environment, path] = process::variables(leader, ["VIRTUAL_ENV", "PATH"]);
        let folders = environment.map(|folder| format!("{folder}/bin")).into_iter();
        let folders =
            folders.chain(path.iter().flat_map(|path| path.split(':').map(str::to_owned)));
        let mut places = folders.map(|folder| format!("{folder}/{program}"));
        if let Some(place) = places.find(|place| Path::new(place).is_file()) {
            *program = place;
        }
    }
    let mut family = vec![leader];
    let mut next = 0;
    while let Some(pid) = family.get(next).copied() {
        family.extend(table.children(pid));
        next += 1;
    }
    // The pattern may find a start script too, or a shell that was given the whole command.
    family.extend(table.ancestors(leader).filter(|above| *above > 1));
    Home::Hand { family, words, cwd: cwd.map(|cwd| cwd.display().to_string()) }
}
