//! Many services, and many processes on the card: the time must grow in proportion to their number,
//! not with its square.

use super::measure::{Sample, command, compare, environment, gpuctl, peak_memory};
use super::peers;
use super::report::{Row, Section, Target};
use rig::{Rig, until};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use std::process::{Child, Command, Stdio};
use toml::{Table, Value};

const SIZES: [usize; 3] = [4, 64, 1024];
const IN_DOCKER: usize = 2;

/// How many services there are, and how many of them run, in each measurement.
const SERVICES: [[usize; 2]; 4] = [[4, 4], [64, 64], [1024, 1024], [1024, 4]];

pub fn measure() -> Section {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let mut rows = services();
    rows.extend(processes());
    rows.extend(containers());
    Section {
        title: "Growth",
        note: "The services: two in Docker, the others native with a pattern each; every one that runs is a process of its own \
               that answers its health check over HTTP. All are ready unless said otherwise. Health alone is that of \
               the native ones that run. Peak memory is that of gpuctl alone.",
        rows,
    }
}

/// Processes that end when the `Crowd` is dropped.
struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for process in &mut self.0 {
            process.kill().ok();
            process.wait().ok();
        }
    }
}

fn services() -> Vec<Row> {
    let mut rows = Vec::new();
    let mut first: Option<[Sample; 2]> = None;
    for [size, running] in SERVICES {
        let them = match running < size {
            true => format!("{size} services, {running} of them running"),
            false => format!("{size} services"),
        };
        let Some(rig) = Rig::with_docker() else {
            rows.push(Row::missing("`status --json`", "", "there is no Docker engine"));
            return rows;
        };
        let (_crowd, ports) = populate(&rig, size, running);
        let calls = ["status --json", "prepare-phase 3 --dry-run --json"];
        let found = rig.gpuctl(calls[0]).run().succeeds().json();
        let states = found["services"].as_object().unwrap().values();
        let ready = states.filter(|service| service["state"] == "ready").count();
        assert_eq!(ready, running, "ready services");
        let rounds = if size > 100 { 7 } else { 15 };
        let [status, dry_run] = calls.map(|words| gpuctl(&rig, words));
        let mut ask = Command::new(peers::compiled("ask"));
        ask.args(&ports);
        let [status, dry_run, asked] = compare(rounds, [status, dry_run, ask]);
        let samples = [status, dry_run];
        let first = first.get_or_insert(samples);
        for ((words, sample), first) in calls.iter().zip(samples).zip(first) {
            let name = words.trim_end_matches(" --json");
            let what = format!("`{name}`, {them}");
            rows.push(match size == SIZES[0] {
                true => Row::alone(&what, sample.wall, "ms", Target::None),
                false => {
                    let target = if size == SIZES[2] { Target::Times(5.0) } else { Target::None };
                    Row::beside(&what, sample.wall, "with 4", first.wall, "ms", target)
                }
            });
        }
        if running < size {
            continue;
        }
        let what = format!("`status`, {them}");
        let floor = "their health alone, in C";
        rows.push(Row::beside(&what, status.wall, floor, asked.wall, "ms", Target::None));
        let limit = if size == SIZES[0] { Target::Below(12.0) } else { Target::None };
        rows.push(Row::alone(&format!("peak memory, {them}"), peak(&rig), "MB", limit));
    }
    rows
}

/// Configures `size` services, `running` of which run and are ready. Returns the processes of those
/// that run, and their ports, except for the services in Docker.
fn populate(rig: &Rig, size: usize, running: usize) -> (Crowd, Vec<String>) {
    let serve = peers::compiled("serve");
    let mut services = Table::new();
    let (mut crowd, mut ports) = (Crowd(Vec::new()), Vec::new());
    let environment = environment(rig);
    for n in IN_DOCKER..size {
        let (name, port) = (format!("service{n}"), rig.port());
        let words = [port.to_string(), rig.mark(&name)];
        if n < running {
            ports.push(port.to_string());
            let mut process = Command::new(&serve);
            process.args(&words).env_clear().envs(environment.clone()).env("GPUCTL_SERVICE", &name);
            crowd.0.push(process.stdin(Stdio::null()).spawn().unwrap());
        }
        let service: [(&str, Value); 6] = [
            ("type", "native".into()),
            ("start", format!("exec {} {}", serve.display(), words.join(" ")).into()),
            ("match", format!("serve.*{}$", rig.mark(&name)).into()),
            ("vram_mb", 1.into()),
            ("phases", vec![if n < SIZES[0] { 3 } else { 4 }].into()),
            ("health", format!("http://127.0.0.1:{port}/health").into()),
        ];
        let service = service.map(|(key, value)| (key.to_owned(), value));
        services.insert(name, Table::from_iter(service).into());
    }
    rig.set("services", services);
    let container = |n| rig.container(&format!("box{n}")).vram(1).phases([3]).add();
    let containers: Vec<_> = (0..IN_DOCKER).map(container).collect();
    let names: Vec<&str> = containers.iter().map(|container| container.mark()).collect();
    rig.docker(&[&["start"], &names[..]].concat());
    until("the containers answer", || containers.iter().all(|container| container.is_healthy()));
    (crowd, ports)
}

/// Measures `status` with processes that hold memory on the card, beside four services that do not
/// run. The claims are forged as those of dead processes whose memory the driver has not taken
/// back, because a real one is an open file in a process of its own.
fn processes() -> Vec<Row> {
    let sizes = SIZES.map(|size| {
        let rig = Rig::new();
        for name in ["a", "b", "c", "d"] {
            rig.native(name).add();
        }
        rig.card.describe(&json!({"reclaim_delay_ms": u32::MAX}));
        let mut crowd = Crowd(Vec::new());
        for n in 0..size {
            let process = Command::new("sleep").arg("1h").spawn().unwrap();
            let claim = json!({
                "device": 0, "mb": 10, "kind": "compute", "name": "sleep", "pid": process.id(),
                "dead_since_ms": u32::MAX as u64 * 1000,
            });
            crowd.0.push(process);
            rig.file(&format!("card/claims/forged-{n}.json"), &claim.to_string());
            rig.file(&format!("card/claims/forged-{n}.lock"), "");
        }
        let found = rig.gpuctl("status --json").run().succeeds().json();
        assert_eq!(found["vram"]["processes"].as_array().unwrap().len(), size, "processes");
        let [ours, floor] = compare(9, [gpuctl(&rig, "status --json"), peers::floor(&rig)]);
        let what = format!("`status`, {size} processes on the card");
        let floor_name = "the card only, in C";
        [
            Row::beside(&what, ours.wall, floor_name, floor.wall, "ms", Target::None),
            Row::alone(&format!("peak memory, {size} processes"), peak(&rig), "MB", Target::None),
        ]
    });
    sizes.into_iter().flatten().collect()
}

/// Measures `status` with containers that exist but do not run; returns `None` if there is no
/// Docker engine.
fn containers() -> Option<Row> {
    const COUNT: usize = 48;
    let rig = Rig::with_docker()?;
    let create = |n| rig.container(&format!("box{n}")).add().mark().to_owned();
    let names: Vec<String> = (0..COUNT).map(create).collect();
    let inspect = format!("container inspect {}", names.join(" "));
    let commands = [gpuctl(&rig, "status --json"), command(&rig, "docker", &inspect)];
    let [ours, floor] = compare(9, commands);
    let what = format!("`status`, {COUNT} stopped containers");
    let other = "bare `docker container inspect`";
    Some(Row::beside(&what, ours.wall, other, floor.wall, "ms", Target::None))
}

/// Returns the peak memory in MB of gpuctl alone, without the programs that it runs: the highest of
/// five calls.
fn peak(rig: &Rig) -> f64 {
    let of_one = || peak_memory(&mut gpuctl(rig, "status --json"));
    (0..5).map(|_| of_one()).fold(0.0, f64::max)
}
