//! Properties of what Docker, systemd and /proc say: any of it is read or refused, and a clear
//! statement that a service runs is never read as its absence.

use crate::exit::Code;
use crate::model::{Pid, Presence};
use crate::world::process::{self, Process};
use crate::world::{docker, systemd};
use serde_json::Value;

pub fn docker(input: &[u8]) {
    let asked = ["mcn_cosyvoice", "ollama", "f00d"];
    let inspected = match docker::parse(input) {
        Ok(inspected) => inspected,
        Err(failure) => return assert_eq!(failure.code, Code::Unavailable),
    };
    let document: Value = serde_json::from_slice(input).unwrap_or_default();
    for name in asked {
        let one = docker::resolve(&inspected, name);
        let containers = document.as_array().into_iter().flatten();
        let mut named = containers.filter(|c| c["Name"] == format!("/{name}"));
        let (Some(told), None) = (named.next(), named.next()) else { continue };
        let one = one.expect("what is told of is found by its name");
        assert!(told["Id"] == one.id.as_str(), "{one:?}");
        let state = &told["State"];
        let runs = state["Running"] == true && state["Status"] != "removing";
        assert!(!runs || matches!(one.presence, Presence::Up(_)), "{one:?}");
    }
}

pub fn systemd(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    systemd::read(&["vllm.service", "ollama.service", "a@0.service"], &text);
    // What is said of another unit changes nothing for this one.
    let vllm = "Id=vllm.service\nLoadState=loaded\nActiveState=active\nSubState=running\n\
        MainPID=4242\nControlGroup=/system.slice/vllm.service\nNRestarts=1\n";
    let shown = systemd::read(&["vllm.service", "ollama.service"], &format!("{vllm}\n{text}"));
    let shown = &shown["vllm.service"];
    assert_eq!(shown.control_group.as_deref(), Some("/system.slice/vllm.service"));
    let Presence::Up(running) = &shown.presence else { panic!("{shown:?}") };
    assert_eq!((running.pids.as_slice(), running.restarts), (&[4242][..], 1));
}

pub fn proc(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let text = text.as_ref();
    stat(text);
    assert_eq!(process::words(&joined(&process::words(input))), process::words(input));
    let environment = [input, b"\0GPUCTL_SERVICE=vidi=2\0"].concat();
    let [service, _] = process::values(&environment, ["GPUCTL_SERVICE", "GPUCTL_CONFIG"]);
    assert_eq!(service.as_deref(), Some("vidi=2"));
    assert!(process::place::depth_in(&format!("Name:\tx\nNSpid:\t7\t1\n{text}")) == 2);
    process::place::depth_in(text);
    process::is_within(text, "/system.slice/vllm.service");
    if let Some(path) = text.lines().next().filter(|path| path.starts_with('/') && path.len() > 1) {
        let within = |group: &str| process::is_within(&format!("1:cpu:/\n0::{group}"), path);
        assert!(within(path) && within(&format!("{path}/worker")), "{path}");
        assert!(!within(&format!("{path}x")), "{path}");
    }
}

fn stat(text: &str) {
    if let Some(process) = Process::parse(1, text, 100) {
        assert_eq!(process.started.time().as_secs(), process.ticks / 100);
    }
    // The kernel writes a process's name as it is, without escaping anything.
    let rest = "S 17 42 43 34816 42 4194304 200 0 0 0 1 2 3 4 20 0 1 0 56789 9 8 7";
    let process = Process::parse(42, &format!("42 ({text}) {rest}\n"), 100);
    let process = process.expect("the fields that follow are whole");
    assert_eq!(process.name, text);
    assert_eq!((process.parent, process.group, process.session), (17, 42, 43) as (Pid, Pid, Pid));
    assert_eq!((process.state, process.ticks), ('S', 56789));
}

fn joined(words: &[String]) -> Vec<u8> {
    words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect()
}
