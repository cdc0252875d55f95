//! Tests of the lock over a long history: clients come and go at random; they, their watchdogs and
//! their commands are killed and stopped; the lock is deleted, and its Redis is restarted with and
//! without its data; on one machine and on two. `history_check` judges what the clients wrote down.
//!
//! `GPUCTL_TEST_HISTORY_SECONDS=600` makes the history longer; `GPUCTL_TEST_HISTORY_SEED` repeats
//! one, as far as the machine's timing allows.

use super::history_check::check;
use rig::{Dice, LOCK_KEY, Redis, Rig, Running, Signal, number, parent, signal, state, until};
use rustix::process::{Pid, PidfdFlags, pidfd_open, pidfd_send_signal};
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// Shell function with which all clients write: a line with the time since boot, in one write.
/// (`echo` is the shell's own.)
const STAMP: &str = r#"stamp() { read now _ </proc/uptime; echo "$now $*" >>"$HOME/history"; }"#;

/// Script `work NAME SECONDS`, the command of a `gpuctl run`. While inside, it holds a lock of the
/// kernel's, which proves that it is alone.
const WORK: &str = r#"
exec 9>>"$HOME/witness"
flock --nonblock 9 || stamp clash "$1"
trap 'is_told=1' TERM
stamp enter "$1" "$GPUCTL_FENCE" run
echo "$1 $$" >"$HOME/inside"
[ -n "$is_told" ] || sleep "$2" 9>&-
stamp leave "$1"
"#;

/// Script `borrow NAME SECONDS END LOCK...`, which works under a lock that it takes by hand. It
/// ends with a release or, in the middle of its work, by the lock's time or its own death.
const BORROW: &str = r#"
who=$1 seconds=$2 end=$3; shift 3
case $1 in --pid) set -- --pid $$ --ttl 1h ;; esac
held=$(gpuctl lock acquire "$who" --json --quiet --wait 5m "$@") || exit
token=${held#*\"token\": \"}; token=${token%%\"*}
fence=${held#*\"fence\": }; fence=${fence%%,*}
# Told in whole seconds.
read now _ </proc/uptime
status=$(gpuctl lock status --json)
case $status in *"\"fence\": $fence"*) ;; *) exit 76 ;; esac
left=${status#*\"ttl\": }; left=${left%%,*}
stamp enter "$who" "$fence" until "$(awk "BEGIN { print $now + $left - 0.5 }") $now"
sleep "$seconds"
case $end in dies) stamp kill "$who"; kill -KILL $$ ;; esac
stamp leave "$who"
gpuctl lock release --quiet --token "$token" >/dev/null
"#;

/// Number of clients that work under `gpuctl run`.
const RUNNERS: usize = 6;
/// Number of clients that take the lock by hand.
const BORROWERS: usize = 2;

/// One attempt of a client to get the lock.
struct Turn {
    name: String,
    running: Running,
    is_run: bool,
    /// Whether the client or its command has been killed.
    is_killed: bool,
    /// Whether the lock's place failed during this turn.
    is_disturbed: bool,
}

/// A client, which takes one turn after another with a pause in between.
enum Client {
    Away { until: Instant },
    There(Box<Turn>),
}

/// The place of the lock, and what a restart does to the lock there.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    File,
    /// A Redis that comes back empty.
    Forgetful,
    /// A Redis that comes back with all that it held.
    Durable,
    /// A Redis that two machines share and that is never restarted.
    TwoMachines,
}

struct History<'a> {
    rig: &'a Rig,
    redis: Option<Redis>,
    place: Place,
    dice: Dice,
    clients: Vec<Client>,
    turns: usize,
    /// Processes that are stopped, each with the time at which it is to be continued.
    stopped: Vec<(Instant, OwnedFd)>,
    longest_stop: u64,
    expected: HashSet<String>,
    /// Whether no new turns begin.
    is_closing: bool,
}

impl History<'_> {
    fn stamp(&self, line: &str) {
        let uptime = fs::read_to_string("/proc/uptime").unwrap();
        let line = format!("{} {line}\n", uptime.split(' ').next().unwrap());
        let mut file =
            File::options().append(true).create(true).open(self.rig.path("home/history")).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }

    fn begin(&mut self, client: usize) -> Turn {
        self.turns += 1;
        let name = format!("c{client}.{}", self.turns);
        let millis = self.dice.below(400);
        let seconds = format!("{}.{:03}", millis / 1000, millis % 1000);
        let is_run = client < RUNNERS;
        let running = if is_run {
            let words = format!("run --wait 5m vidi -- work {name} {seconds}");
            match self.place == Place::TwoMachines && client % 2 == 1 {
                true => self.rig.elsewhere(&words).spawn(),
                false => self.rig.gpuctl(&words).spawn(),
            }
        } else {
            let lock = self.dice.one_of(&["--pid", "--ttl 1s", "--ttl 2s"]).unwrap();
            let end = self.dice.one_of(&["releases", "releases", "dies"]).unwrap();
            // Some go on for longer than their lock lasts.
            let seconds = if self.dice.below(5) == 0 { "2.6" } else { &seconds };
            self.rig.shell(&format!("exec borrow {name} {seconds} {end} {lock}")).spawn()
        };
        Turn { name, running, is_run, is_killed: false, is_disturbed: false }
    }

    /// Begins the turns whose pause is over, judges those that have ended, and continues the
    /// stopped processes that are due.
    fn tend(&mut self) {
        for index in 0..self.clients.len() {
            let next = match &self.clients[index] {
                Client::Away { until } if Instant::now() >= *until && !self.is_closing => {
                    Client::There(Box::new(self.begin(index)))
                }
                Client::There(turn) if state(turn.running.pid()).is_none() => {
                    Client::Away { until: Instant::now() + self.dice.millis(300) }
                }
                _ => continue,
            };
            if let Client::There(turn) = std::mem::replace(&mut self.clients[index], next) {
                self.ended(*turn);
            }
        }
        let is_closing = self.is_closing;
        self.stopped.retain(|(due, handle)| {
            let is_due = Instant::now() >= *due || is_closing;
            if is_due {
                // The process may have been killed meanwhile.
                pidfd_send_signal(handle, Signal::CONT).ok();
            }
            !is_due
        });
    }

    fn ended(&mut self, turn: Turn) {
        let (code, told) = turn.running.wait().ended();
        let is_good = match code {
            Some(0) => true,
            // The client itself has died, or (137) its command.
            None => turn.is_killed || !turn.is_run,
            Some(137) => turn.is_killed,
            // The lock's time was over before the client could give it back.
            Some(1) => !turn.is_run,
            Some(76) => turn.is_disturbed || !turn.is_run,
            Some(69) => turn.is_disturbed,
            _ => false,
        };
        assert!(is_good, "{} ended with {code:?}: {told}", turn.name);
        if code == Some(0) {
            self.expected.insert(turn.name);
        }
    }

    fn mischief(&mut self) {
        let runs: Vec<usize> =
            (0..RUNNERS).filter(|index| matches!(self.clients[*index], Client::There(_))).collect();
        let Some(victim) = self.dice.one_of(&runs) else { return };
        match self.dice.below(12) {
            0..3 => self.turn(victim).is_killed = true,
            3..5 => return self.kill_command(),
            5..8 if self.dice.below(2) == 0 => return self.strike_watchdog(victim),
            5..10 => {
                let may_lose = self.longest_stop > 10_000;
                let turn = self.turn(victim);
                turn.is_disturbed |= may_lose;
                let pid = turn.running.pid();
                return self.stop(pid);
            }
            10 => return self.forget(),
            _ => return self.restart(),
        }
        self.turn(victim).running.signal(Signal::KILL);
    }

    fn turn(&mut self, client: usize) -> &mut Turn {
        match &mut self.clients[client] {
            Client::There(turn) => turn,
            Client::Away { .. } => panic!("client {client} is away"),
        }
    }

    fn turns(&mut self) -> impl Iterator<Item = &mut Turn> {
        self.clients.iter_mut().filter_map(|client| match client {
            Client::There(turn) => Some(&mut **turn),
            Client::Away { .. } => None,
        })
    }

    /// Stops a gpuctl or its watchdog for a while.
    fn stop(&mut self, pid: i32) {
        let Ok(handle) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else {
            return;
        };
        pidfd_send_signal(&handle, Signal::STOP).ok();
        let due = Instant::now() + self.dice.millis(self.longest_stop);
        self.stopped.push((due, handle));
    }

    /// Stops or kills the watchdog alone.
    fn strike_watchdog(&mut self, victim: usize) {
        let gpuctl = self.turn(victim).running.pid();
        let is_its = |pid: &i32| parent(*pid) == Some(gpuctl);
        let Some(watchdog) = self.rig.gpuctls().into_iter().find(is_its) else { return };
        match self.dice.below(2) {
            0 => signal(watchdog, Signal::KILL),
            _ => self.stop(watchdog),
        }
    }

    /// Kills the command alone, without its gpuctl.
    fn kill_command(&mut self) {
        let inside = fs::read_to_string(self.rig.path("home/inside")).unwrap_or_default();
        let Some((name, pid)) = inside.trim_end().split_once(' ') else { return };
        let pid: i32 = pid.parse().unwrap();
        let Ok(handle) = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()) else {
            return;
        };
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let is_it =
            String::from_utf8_lossy(&line).contains(&*self.rig.path("bin/work").to_string_lossy());
        let Some(turn) = self.turns().find(|turn| is_it && turn.name == name) else { return };
        turn.is_killed = true;
        self.stamp(&format!("kill {name}"));
        pidfd_send_signal(handle, Signal::KILL).ok();
    }

    /// Deletes the lock, or everything in Redis, as somebody else would.
    fn forget(&mut self) {
        // Redis may have been restarted just now.
        self.redis.iter().for_each(|redis| until("Redis has loaded", || redis.is_ready()));
        self.turns().for_each(|turn| turn.is_disturbed = true);
        self.stamp("forget -");
        match &self.redis {
            Some(redis) if self.place == Place::TwoMachines || self.dice.below(2) == 0 => {
                drop(redis.cli(&["DEL", LOCK_KEY]))
            }
            Some(redis) => drop(redis.cli(&["FLUSHALL"])),
            // The kernel holds nothing that could be deleted.
            None => {}
        }
        self.stamp("forgotten -");
    }

    fn restart(&mut self) {
        // A durable Redis that comes back lets nobody in for a while, so it is restarted rarely.
        let is_rare = self.place == Place::Durable && self.dice.below(4) > 0;
        if self.redis.is_none() || self.place == Place::TwoMachines || is_rare {
            return;
        }
        self.turns().for_each(|turn| turn.is_disturbed = true);
        if self.place == Place::Forgetful {
            self.stamp("forget -");
        }
        self.redis.as_mut().unwrap().restart();
        if self.place == Place::Forgetful {
            self.stamp("forgotten -");
        }
        // Turns that began meanwhile are disturbed, too.
        self.turns().for_each(|turn| turn.is_disturbed = true);
    }
}

fn unfold(place: Place) {
    let rig = Rig::new();
    let redis = match place {
        Place::File => None,
        Place::Forgetful | Place::TwoMachines => Some(rig.redis()),
        Place::Durable => Some(rig.redis_with(&["--appendonly", "yes"])),
    };
    // Without a Redis the test is skipped.
    let redis = match redis {
        Some(None) => return,
        redis => redis.flatten(),
    };
    redis.iter().for_each(|redis| rig.set("lock.url", redis.url()));
    rig.native("vidi").add();
    rig.gpuctl("start vidi").run().succeeds().progress().text();
    rig.program("work", &format!("{STAMP}\n{WORK}"));
    rig.program("borrow", &format!("{STAMP}\n{BORROW}"));

    let seconds = number("GPUCTL_TEST_HISTORY_SECONDS").unwrap_or(12);
    let mut history = History {
        rig: &rig,
        redis,
        place,
        dice: Dice::new(),
        clients: (0..RUNNERS + BORROWERS).map(|_| Client::Away { until: Instant::now() }).collect(),
        turns: 0,
        stopped: Vec::new(),
        // In a long history processes may be stopped for longer than the lock's time.
        longest_stop: if seconds < 60 { 1_500 } else { 45_000 },
        expected: HashSet::new(),
        is_closing: false,
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        let due = Instant::now() + history.dice.millis(400);
        until("the next mischief is due", || {
            history.tend();
            Instant::now() >= due
        });
        history.mischief();
    }
    // Clients that are waiting now still get in.
    history.is_closing = true;
    until("all have ended", || {
        history.tend();
        history.turns().count() == 0
    });
    let text = fs::read_to_string(rig.path("home/history")).unwrap();
    match check(&text, &history.expected) {
        Ok(proof) => eprintln!("{} turns: {proof:?}", history.turns),
        Err(fault) => panic!("{fault}\n{text}"),
    }
    until("no gpuctl is left", || rig.gpuctls().is_empty());
}

#[test]
fn row_03_in_a_history_of_the_file_lock_nobody_works_beside_another_and_fences_rise() {
    unfold(Place::File);
}

#[test]
fn row_22_in_a_history_of_a_redis_that_forgets_nobody_works_beside_another_and_fences_rise() {
    unfold(Place::Forgetful);
}

#[test]
fn row_03_in_a_history_of_a_redis_that_keeps_all_nobody_works_beside_another_and_fences_rise() {
    unfold(Place::Durable);
}

#[test]
fn row_69_in_a_history_of_two_machines_nobody_works_beside_another_and_fences_rise() {
    unfold(Place::TwoMachines);
}
