//! Test of a crowd of strangers of all kinds beside services with careless patterns: every acting
//! command runs in random states of the services, and the crowd is alive afterwards, to the last
//! process (rows 52 and 53).

use rig::{Dice, Rig, Service, Signal, apart, signal, until};
use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

const ROUNDS: usize = 50;

/// Script that starts two hundred processes, some of which each pattern finds. Processes that need
/// a missing program are left out.
const CROWD: &str = r#"
as() { ( exec -a "$@" ) </dev/null >/dev/null 2>&1 & }
have() { command -v "$1" >/dev/null; }
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do
    as "python3 /srv/app$i/main.py --listen 0.0.0.0 --port 80$i" sleep 10000
    as "python -m train --config run$i.yaml" sleep 10000
    as "/opt/venv/bin/python comfy-notes/main.py --listen$i" sleep 10000
    as "vim simserver-$i.log" sleep 10000
    as "less comfyui$i.log" sleep 10000
    as "simserver-exporter --port 91$i" sleep 10000
    as "nginx: worker process $i" sleep 10000
    sh -c "sleep 10000; echo gpuctl stop vidi" &
    sh -c "sleep 10000; echo python main.py --listen" &
done
touch server.log main.py
tail -f server.log main.py >/dev/null &
python3 -c 'import time; time.sleep(10000)' main.py --listen &
setsid --fork python3 -c 'import time; time.sleep(10000)' /srv/crm/main.py --listen
env GPUCTL_SERVICE=render GPUCTL_CONFIG=/etc/other.toml "$SIMSERVER" --name render --vram 500 >/dev/null &
"$SIMSERVER" --name crm --port "$CRM_PORT" --vram 500 >/dev/null &
as 'python main.py --listen --train' "$SIMSERVER" --name train --vram 500 --fork 2
env -i SIMGPU_DIR="$SIMGPU_DIR" setsid --fork "$SIMSERVER" --name ghost --vram 500 >/dev/null
have setpriv && setpriv --reuid 65534 --regid 65534 --clear-groups sleep 10001 &
have unshare && unshare --pid --fork sh -c 'sleep 10000; echo python main.py --listen simserver' &
if have tmux; then
    tmux -L "$TOKEN" new-session -d -s notes "sleep 10000; echo python main.py --listen"
    tmux -L "$TOKEN" new-session -d -s simserver "sh -c 'sleep 10000; echo comfyui'"
fi
have screen && screen -dmS "simserver-$TOKEN" sleep 10000
if mkdir /sys/fs/cgroup/other.service; then
    sh -c 'echo $$ >/sys/fs/cgroup/other.service/cgroup.procs; exec sleep 10000' python main.py --listen &
fi
echo complete
exec sleep 10000
"#;

/// Returns PID and start time of every process here that is neither dead nor stopped, with its
/// command line.
fn everyone() -> BTreeMap<(i32, String), String> {
    let pids = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let is_alive = !matches!(fields.next()?, "Z" | "X" | "T");
        let start = fields.nth(18)?.to_owned();
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        is_alive.then_some(((pid, start), line))
    })
    .collect()
}

#[derive(Clone, Copy, Debug)]
enum Situation {
    Down,
    Started,
    ByHand,
    /// The server is killed, and its worker lives on.
    HalfDead,
}

const SITUATIONS: [Situation; 4] =
    [Situation::Down, Situation::Started, Situation::ByHand, Situation::HalfDead];

const PATTERNS: [(&str, &str); 4] = [
    ("python", "simserver"),
    (r"python.*main\.py.*--listen", "simserver.*--port"),
    ("main.py", "s[i]mserver|comfy"),
    ("(vidi|python|[.]py)", "sim"),
];

const COMMANDS: [&str; 19] = [
    "stop vidi",
    "stop comfyui",
    "stop vidi comfyui",
    "stop comfyui --force",
    "stop vidi --force",
    "stop vidi --dry-run",
    "release-all",
    "release-all --force",
    "release-all --dry-run",
    "start vidi",
    "start comfyui",
    "start comfyui --no-preempt",
    "prepare-phase 1",
    "prepare-phase 2",
    "prepare-phase 9",
    "prepare-phase 1 --lazy",
    "prepare-phase 2 --lazy --dry-run",
    "run vidi -- true",
    "run --phase 2 -- true",
];

fn bring_about(rig: &Rig, service: &Service, name: &str, situation: Situation) {
    match situation {
        Situation::Down => return,
        // The service is started before its pattern becomes careless: all that such a pattern finds
        // would be in the way of the start.
        Situation::Started => {
            rig.gpuctl(&format!("start {name} --quiet")).run().succeeds();
        }
        Situation::ByHand | Situation::HalfDead => {
            let start = rig.path(&format!("bin/start-{name}"));
            rig.shell(&format!("setsid {} >/dev/null 2>&1 &", start.display())).run().succeeds();
            until("it serves", || service.is_healthy());
        }
    }
    if let Situation::HalfDead = situation {
        let listens = |pid: &i32| {
            let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.contains("--port")
        };
        rig.processes_of(service).iter().filter(|pid| listens(pid)).for_each(|pid| {
            signal(*pid, Signal::KILL);
        });
    }
}

fn clear_away(rig: &Rig, services: &[&Service]) {
    until("the services are gone", || {
        let left: Vec<i32> = services.iter().flat_map(|of| rig.processes_of(of)).collect();
        left.iter().for_each(|pid| signal(*pid, Signal::KILL));
        left.is_empty()
    });
}

/// Reports whether a service that `serves`, or does not, is as this command promises when it
/// succeeds.
fn promised(command: &str, name: &str, serves: bool) -> bool {
    let phase = if name == "vidi" { "1" } else { "2" };
    match command.split_once(' ').map_or((command, ""), |(verb, rest)| (verb, rest)) {
        ("stop", services) => !services.contains(name) || !serves,
        ("release-all", _) => !serves,
        ("start" | "run" | "prepare-phase", needs) => {
            serves || !(needs.contains(name) || needs.contains(phase))
        }
        _ => true,
    }
}

#[test]
fn row_52_a_crowd_of_two_hundred_survives_every_command_in_every_state_of_careless_services() {
    apart(|rig| {
        let seed = std::env::var("GPUCTL_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(52);
        let mut dice = Dice::seeded(seed);
        let service = |name, phase| {
            let draft = rig.native(name).phases([phase]).server("--double-fork").vram(2000);
            let service = draft.set("start_timeout", "2s").set("stop_timeout", "1s").add();
            let alias = if name == "vidi" { "-a 'python main.py --listen'" } else { "" };
            let script = format!("exec bash -c \"exec {alias} {}\"", service.command());
            rig.program(&format!("start-{name}"), &script);
            service
        };
        let (vidi, comfyui) = (service("vidi", 1), service("comfyui", 2));
        rig.set("phases.9", "nothing");
        for name in ["vidi", "comfyui"] {
            let start = rig.path(&format!("bin/start-{name}"));
            rig.set(&format!("services.{name}.start"), start.display().to_string());
        }

        let token = rig.mark("crowd");
        rig.file("home/crowd.sh", CROWD);
        let crowd = format!(
            "env TOKEN={token} SIMSERVER={} CRM_PORT={} bash crowd.sh >told",
            rig.simserver(),
            rig.port()
        );
        let _crowd = rig.by_hand(&crowd);
        until("the crowd is complete", || {
            fs::read_to_string(rig.path("home/told")).is_ok_and(|told| told.contains("complete"))
                && rig.card.used_mb() == 2000
        });
        let (mut crowd, mut since) = (everyone(), Instant::now());
        // Some of the crowd begin as a script that is replaced a moment later.
        until("nothing has changed for a second", || {
            let before = std::mem::replace(&mut crowd, everyone());
            if before != crowd {
                since = Instant::now();
            }
            since.elapsed() > Duration::from_secs(1)
        });
        assert!(crowd.len() >= 200, "only {} in the crowd", crowd.len());

        for round in 0..ROUNDS {
            let (first, second) = dice.one_of(&PATTERNS).unwrap();
            let situations = [dice.one_of(&SITUATIONS).unwrap(), dice.one_of(&SITUATIONS).unwrap()];
            for (name, service) in [("vidi", &vidi), ("comfyui", &comfyui)] {
                rig.set(&format!("services.{name}.match"), service.mark());
            }
            bring_about(rig, &vidi, "vidi", situations[0]);
            bring_about(rig, &comfyui, "comfyui", situations[1]);
            rig.set("services.vidi.match", first);
            rig.set("services.comfyui.match", second);
            let command = COMMANDS[round % COMMANDS.len()];
            let (code, told) = rig.gpuctl(command).run().ended();
            let round = format!(
                "seed {seed}, round {round}: {situations:?}, {first} and {second}, {command} \
                 gives {code:?}\n{told}"
            );
            let now = everyone();
            let missing: Vec<_> = crowd.iter().filter(|(id, _)| !now.contains_key(id)).collect();
            assert!(missing.is_empty(), "{round}\nof the crowd, ended: {missing:?}");
            assert!(matches!(code, Some(0 | 3 | 5 | 6 | 78 | 124)), "{round}");
            if code == Some(0) && !command.contains("dry-run") {
                let is = |service: &Service, name| promised(command, name, service.is_healthy());
                assert!(is(&vidi, "vidi") && is(&comfyui, "comfyui"), "{round}\nis not so");
            }
            clear_away(rig, &[&vidi, &comfyui]);
        }
    });
}
