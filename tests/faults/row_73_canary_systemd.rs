//! Trials of the canary as the units in `examples/systemd` run them, on a machine that systemd runs (rows 47, 50 and 73):
//! killed with their whole control group, in a shutdown, in a loss of power, and found again from another shell.

use rig::page::repository;
use rig::{Corner, Machine, Ssh, until, with_room};
use std::fs;
use std::time::Instant;

const TIMEOUT: u64 = 20;
const RESTORE_SLA: u64 = 10;

/// What the ledger's figures leave out.
const ROUNDED: f64 = 0.2;

/// A stage of a trial.
type Reached = fn(&Night) -> bool;

/// Production and its canary on a machine of their own.
struct Night<'a> {
    corner: Corner<'a>,
}

impl<'a> Night<'a> {
    /// Production is `vllm.service`, with these lines of its own, and is up; the units of the examples are installed.
    fn new(machine: &'a Machine, lines: &str) -> Night<'a> {
        let corner = machine.corner();
        let night = Night { corner };
        let corner = &night.corner;
        let server = corner.server("vllm", 0, "--vram 15000 --warmup 400ms");
        let unit = format!("[Service]\n{}ExecStart={server}\n{lines}\n", corner.environment());
        corner.unit("vllm.service", &unit);
        let canary =
            corner.server("candidate", 1, "").replace(&format!("{}", corner.port + 1), "{port}");
        corner.config(&format!(
            "[services.vllm]\ntype = \"systemd\"\nunit = \"vllm.service\"\nvram_mb = 15000\nstart_timeout = \"20s\"\n\
             stop_timeout = \"10s\"\nhealth = \"http://localhost:{port}/health\"\n\
             [canary]\nservice = \"vllm\"\nmode = \"canary\"\nmodel = \"/models/m\"\nport = {second}\n\
             window = \"00:00-23:59 UTC\"\ncooldown = \"0s\"\nmax_runs_per_day = 100\nmax_downtime = \"1h\"\n\
             timeout = \"{TIMEOUT}s\"\nrestore_sla = \"{RESTORE_SLA}s\"\nmax_latency = \"10s\"\n\
             start = 'exec {canary} --vram 12000 --completion-delay 4s'\n",
            port = corner.port,
            second = corner.port + 1,
        ));
        machine.sh("mkdir -p /etc/gpuctl && echo '{\"vllm_memory_util\": 0.75}' >/etc/gpuctl/candidate.json");
        for unit in ["gpuctl-canary.service", "gpuctl-recover.service"] {
            night.example(unit, "");
        }
        machine.sh("systemctl start vllm.service");
        night.until_ready("it has been started");
        night
    }

    /// Installs a unit of the examples, with more lines in its `[Service]`.
    fn example(&self, unit: &str, lines: &str) {
        let text = fs::read_to_string(repository().join("examples/systemd").join(unit)).unwrap();
        let text = text.replace("/usr/bin/gpuctl", "/io/bin/gpuctl");
        let text = text.replace("/etc/gpuctl/config.toml", &self.corner.path("gpuctl.toml"));
        let own = format!("[Service]\n{}{lines}", self.corner.environment());
        self.corner.unit(unit, &text.replace("[Service]\n", &own));
    }

    fn has_told(&self, event: &str) -> bool {
        let asked = format!("grep -qs '\"event\":\"{event}\"' /var/lib/gpuctl/gpu_canary_*.jsonl");
        self.corner.machine.try_sh(&asked).1
    }

    fn stage(&self) -> String {
        let asked = "sed -n 's/.*\"progress\": \"\\(.*\\)\".*/\\1/p' /var/lib/gpuctl/gpu_canary_journal.json 2>/dev/null";
        self.corner.machine.try_sh(asked).0.trim().to_owned()
    }

    fn is_healthy(&self) -> bool {
        let ask = format!(
            "exec 3<>/dev/tcp/127.0.0.1/{} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q '200 OK' <&3",
            self.corner.port
        );
        self.corner.machine.try_sh(&format!("bash -c \"{}\"", ask.replace('"', "\\\""))).1
    }

    #[track_caller]
    fn until_ready(&self, when: &str) {
        until(&format!("{when}: production is ready"), || self.is_healthy());
    }

    /// The trial of the unit has come so far.
    fn until_stage(&self, unit: &str, is_reached: impl Fn(&Night) -> bool) {
        self.corner.machine.sh(&format!("systemctl start --no-block {unit}"));
        until("the trial has come so far", || is_reached(self));
    }

    /// Seconds for which production was away tonight, as the ledger has it.
    fn booked(&self) -> f64 {
        let text = self.corner.machine.sh("cat /var/lib/gpuctl/gpu_budget_*.json");
        let budget: serde_json::Value = serde_json::from_str(&text).unwrap();
        budget["seconds_used"].as_f64().unwrap()
    }

    /// Production is as it was, and nothing is owed or left of the trial.
    #[track_caller]
    fn assert_settled(&self, when: &str) {
        let machine = self.corner.machine;
        until(&format!("{when}: it is settled"), || self.stage().is_empty());
        assert!(self.is_healthy(), "{when}");
        assert_eq!(self.corner.card.used_mb(), 15000, "{when}");
        assert_eq!(machine.try_sh("pgrep -f '[c]andidate-'").0, "", "{when}: left of the canary");
        until(&format!("{when}: its guardian has ended"), || {
            machine.try_sh("pgrep -f '[g]uardian'").0.is_empty()
        });
        let events = machine.sh("cat /var/lib/gpuctl/gpu_canary_*.jsonl");
        assert!(events.contains("\"event\":\"prod_restored\""), "{when}: {events}");
    }

    /// Watches from now on, from outside of gpuctl, whether production answers.
    fn probe(&self) {
        let (port, log) = (self.corner.port, self.corner.path("probe"));
        let look = format!(
            "ask() {{ exec 3<>/dev/tcp/127.0.0.1/{port} && printf 'GET /health HTTP/1.0\\r\\n\\r\\n' >&3 && grep -q '200 OK' <&3; }}\n\
             while :; do s=$(date +%s%N); if (ask); then a=up; else a=down; fi; echo $s $a $(date +%s%N); sleep 0.05; done \
             2>/dev/null >{log}\n"
        );
        self.corner.file("prober", &look);
        let prober = self.corner.path("prober");
        self.corner.machine.sh(&format!("systemd-run --quiet --unit=probe bash {prober}"));
    }

    /// For how many seconds production was certainly away.
    fn away(&self) -> f64 {
        let text = self.corner.text("probe");
        let looks = text.lines().filter_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let [begun, state, ended] = words[..] else { return None };
            Some((begun.parse::<u64>().ok()?, state == "up", ended.parse::<u64>().ok()?))
        });
        let (mut since, mut away) = (None, 0);
        for (begun, is_up, ended) in looks {
            match (is_up, since) {
                (false, None) => since = Some((ended, ended)),
                (false, Some((first, _))) => since = Some((first, begun)),
                (true, Some((first, last))) => {
                    away += last.saturating_sub(first);
                    since = None;
                }
                (true, None) => {}
            }
        }
        assert!(since.is_none(), "it is away still");
        away as f64 / 1e9
    }
}

#[test]
fn row_73_a_trials_unit_that_is_killed_with_all_that_is_in_it_brings_production_back() {
    let kills: [(&str, Reached); 5] = [
        ("systemctl kill --kill-who=all --signal=KILL gpuctl-canary", |night| {
            night.stage() == "away"
        }),
        ("systemctl kill --kill-who=all --signal=KILL gpuctl-canary", |night| {
            night.has_told("health_ok")
        }),
        ("systemctl kill --kill-who=main --signal=KILL gpuctl-canary", |night| {
            night.has_told("canary_started")
        }),
        ("systemctl stop gpuctl-canary", |night| night.has_told("health_ok")),
        ("systemctl kill --kill-who=main --signal=STOP gpuctl-canary", |night| {
            night.has_told("health_ok")
        }),
    ];
    for (kill, is_reached) in kills {
        let Some(machine) = Machine::own() else { return };
        let night = Night::new(&machine, "");
        night.probe();
        night.until_stage("gpuctl-canary", is_reached);
        let begun = Instant::now();
        machine.sh(kill);
        night.until_ready(kill);
        night.assert_settled(kill);
        let took = begun.elapsed();
        assert!(took < with_room(TIMEOUT + RESTORE_SLA + 5), "{kill}: back after {took:?}");
        let (away, booked) = (night.away(), night.booked());
        assert!(away <= booked + ROUNDED, "{kill}: away for {away} s, booked {booked} s");
        eprintln!("{kill}: away for {away:.1} s, booked {booked:.1} s");
    }
}

#[test]
fn row_73_a_trial_whose_login_over_ssh_is_lost_brings_production_back_whatever_logind_does_with_it()
{
    let conf = "mkdir -p /etc/systemd/logind.conf.d && \
                printf '[Login]\\nKillUserProcesses=yes\\nKillExcludeUsers=\\n' >/etc/systemd/logind.conf.d/kill.conf && \
                systemctl restart systemd-logind";
    for (kept, flags) in [("true", "-tt"), (conf, "-tt"), (conf, "")] {
        let Some(machine) = Machine::own() else { return };
        let night = Night::new(&machine, "");
        let Some(ssh) = Ssh::new(&night.corner) else { return };
        machine.sh(kept);
        night.probe();
        let run = format!(
            "SIMGPU_DIR={} /io/bin/gpuctl --config {} canary run --set vllm_memory_util=0.75",
            night.corner.path("card"),
            night.corner.path("gpuctl.toml")
        );
        let line = ssh.login("root", flags, &run);
        machine.sh(&format!("systemd-run --quiet --unit=line {line}"));
        until("the canary is healthy", || night.has_told("health_ok"));
        let begun = Instant::now();
        machine.sh("systemctl kill --kill-who=all --signal=KILL line");
        night.assert_settled(flags);
        let took = begun.elapsed();
        assert!(took < with_room(TIMEOUT + RESTORE_SLA + 5), "back after {took:?}");
        let (away, booked) = (night.away(), night.booked());
        assert!(away <= booked + ROUNDED, "away for {away} s, booked {booked} s");
    }
}

#[test]
fn row_73_after_a_loss_of_power_the_boot_brings_production_back_in_whatever_order_and_waits_for_nobody()
 {
    let enabled = "[Install]\nWantedBy=multi-user.target";
    let cases: [(String, Reached); 5] = [
        (format!("[Unit]\nAfter=multi-user.target\n{enabled}"), |night| {
            night.has_told("health_ok")
        }),
        (format!("[Unit]\nBefore=gpuctl-recover.service\n{enabled}"), |night| {
            night.stage() == "away"
        }),
        (format!("[Unit]\nBefore=multi-user.target\n{enabled}"), |night| night.stage() == "away"),
        (format!("[Unit]\nAfter=gpuctl-recover.service\n{enabled}"), |night| {
            night.stage() == "restoring"
        }),
        // Nobody but recover starts it.
        (String::new(), |night| night.has_told("canary_started")),
    ];
    for (lines, is_reached) in cases {
        let Some(machine) = Machine::own() else { return };
        let night = Night::new(&machine, &lines);
        machine.sh("systemctl enable -q gpuctl-recover.service");
        if !lines.is_empty() {
            machine.sh("systemctl enable -q vllm.service");
        }
        // In a cycle systemd leaves out one or the other, by chance.
        let order = machine.sh("systemd-analyze verify multi-user.target 2>&1");
        assert!(!order.contains("cycle"), "{lines}: {order}");
        night.until_stage("gpuctl-canary", is_reached);
        machine.loses_power();
        machine.boots();
        night.until_ready(&lines);
        night.assert_settled(&lines);
        assert_eq!(machine.sh("systemctl list-jobs --no-legend"), "", "{lines}");
        assert_eq!(machine.try_sh("systemctl is-system-running").0, "running\n", "{lines}");
        // It was not stopped once more: the unit was started once in this boot.
        let starts = machine.sh("journalctl -b -u vllm.service -o cat | grep -c '^Started vllm'");
        assert_eq!(starts, "1\n", "{lines}");
    }
}

#[test]
fn row_73_a_shutdown_in_a_trial_is_not_held_up_and_the_next_boot_has_production_back() {
    for (signals, lines) in [(false, "[Install]\nWantedBy=multi-user.target"), (true, "")] {
        let Some(machine) = Machine::own() else { return };
        let night = Night::new(&machine, lines);
        machine.sh("systemctl enable -q gpuctl-recover.service");
        if !lines.is_empty() {
            machine.sh("systemctl enable -q vllm.service");
        }
        night.until_stage("gpuctl-canary", |night| night.has_told("health_ok"));
        if signals {
            machine.sh("systemctl kill --kill-who=main --signal=KILL gpuctl-canary");
        }
        let begun = Instant::now();
        machine.shuts_down();
        let took = begun.elapsed();
        assert!(took < with_room(20), "the shutdown took {took:?}");
        machine.boots();
        night.until_ready("after the shutdown");
        night.assert_settled("after the shutdown");
    }
}

#[test]
fn row_73_a_start_limit_that_is_hit_does_not_keep_production_away() {
    let Some(machine) = Machine::own() else { return };
    let night = Night::new(&machine, "[Unit]\nStartLimitIntervalSec=1h\nStartLimitBurst=1");
    let trial =
        machine.try_sh("systemctl start gpuctl-canary; systemctl show -p Result gpuctl-canary").0;
    assert!(trial.contains("Result=success"), "{trial}");
    night.assert_settled("at its start limit");
}

#[test]
fn row_73_a_debt_is_seen_and_settled_from_a_shell_that_knows_another_folder() {
    let Some(machine) = Machine::own() else { return };
    let night = Night::new(&machine, "");
    let elsewhere =
        "ExecStopPost=\nExecStopPost=/bin/true\nEnvironment=GPUCTL_STATE_DIR=/srv/gpuctl\n";
    night.example("gpuctl-canary.service", "");
    machine.sh(&format!(
        "mkdir -p /etc/systemd/system/gpuctl-canary.service.d && printf '[Service]\\n{}' \
         >/etc/systemd/system/gpuctl-canary.service.d/elsewhere.conf && systemctl daemon-reload",
        elsewhere.replace('\n', "\\n")
    ));
    machine.sh("systemctl start --no-block gpuctl-canary");
    until("the canary is healthy", || {
        machine.try_sh("grep -qs health_ok /srv/gpuctl/gpu_canary_*.jsonl").1
    });
    machine.sh("systemctl kill --kill-who=all --signal=KILL gpuctl-canary");
    until("the unit has ended", || !machine.try_sh("systemctl is-active gpuctl-canary").1);
    // A login of root's, which says nothing of a folder.
    let config = format!(
        "export SIMGPU_DIR={}; gpuctl --config {}",
        night.corner.path("card"),
        night.corner.path("gpuctl.toml")
    );
    let status = machine.sh(&format!("{config} canary status"));
    assert!(status.contains("a restore is owed"), "{status}");
    let doctor = machine.try_sh(&format!("{config} doctor")).0;
    assert!(doctor.contains("vllm has not been restored since"), "{doctor}");
    let run =
        machine.try_sh(&format!("{config} canary run --set vllm_memory_util=0.75; echo exit $?")).0;
    assert!(run.ends_with("exit 5\n"), "{run}");
    let recover = machine.sh(&format!("{config} canary recover"));
    assert!(recover.contains("vllm is back; it was away for"), "{recover}");
    assert!(night.is_healthy());
    assert_eq!(
        machine.sh("ls /var/lib/gpuctl/trials; ls /srv/gpuctl | grep -c journal || true"),
        "0\n"
    );
}

#[test]
fn row_73_a_timer_starts_the_trial_and_says_which_answers_are_no_failures() {
    let Some(machine) = Machine::own() else { return };
    let night = Night::new(&machine, "");
    night.corner.unit("gpuctl-canary.timer", "[Timer]\nOnActiveSec=1s\nAccuracySec=100ms\n");
    machine.sh("systemctl start gpuctl-canary.timer");
    until("the candidate has passed", || night.has_told("promoted"));
    night.assert_settled("by a timer");
    let result = || machine.sh("systemctl show -p Result,ExecMainStatus gpuctl-canary");
    until("the unit has ended", || result() == "Result=success\nExecMainStatus=0\n");
    // Not now is no failure, and production that is not back is one.
    let config =
        night.corner.text("gpuctl.toml").replace("max_downtime = \"1h\"", "max_downtime = \"1s\"");
    night.corner.file("gpuctl.toml", &config);
    machine.sh("systemctl start gpuctl-canary");
    assert_eq!(result(), "Result=success\nExecMainStatus=75\n");
}
