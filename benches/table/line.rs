//! The time from the end of one command under the lock to the beginning of the next one's, and what
//! a long line costs.

use super::measure::median;
use super::report::{Row, Section, Target};
use redis::{Client, Connection};
use rig::{LOCK_KEY, Redis, Rig, until};
use std::collections::HashMap;
use std::fs;

/// Number of commands that wait in a line, one behind another.
const COMMANDS: usize = 40;

/// Number of hand-overs that are measured while the line keeps its length.
const HANDOVERS: usize = 60;

/// Script that takes the lock in Redis, as gpuctl runs it: behind the functions of the line.
const ACQUIRE: &str = concat!(
    include_str!("../../src/lock/redis/line.lua"),
    include_str!("../../src/lock/redis/acquire.lua")
);
/// Script that gives up the lock in Redis, as gpuctl runs it: behind the functions of the line.
const RELEASE: &str = concat!(
    include_str!("../../src/lock/redis/line.lua"),
    include_str!("../../src/lock/redis/release.lua")
);

pub fn measure() -> Section {
    let mut rows = Vec::new();
    let flock = run_to_run(&Rig::new(), |file| format!("flock {file} sh -c"));
    let gpuctl = |_: &str| "gpuctl run --quiet --wait 1h vidi -- sh -c".to_owned();
    let ours = run_to_run(&Rig::new(), gpuctl);
    let target = Target::TimesAnd(4.0, 2.0);
    rows.push(Row::beside("`run` to `run`", ours, "flock(1)", flock, "ms", target));
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else {
        rows.push(Row::missing("`run` to `run`, Redis", "flock(1)", "there is no Redis"));
        return section(rows);
    };
    let ours = run_to_run(&rig, gpuctl);
    rows.push(Row::beside("`run` to `run`, Redis", ours, "flock(1)", flock, "ms", Target::None));
    drop(redis);
    long_lines(&mut rows);
    section(rows)
}

fn section(rows: Vec<Row>) -> Section {
    Section {
        title: "A line",
        note: "`run` to `run`: from the end of one command to the begin of the next that waits, both of them a shell, the service \
               ready. A long line is of as many machines, each a client with the scripts of gpuctl: what the server works for a \
               hand-over, release and acquire together, how many clients that wakes, and what it works for one look of a waiter.",
        rows,
    }
}

/// Runs commands in a line, which write down when they begin and when they end, and returns the
/// median time from an end to the next beginning, in milliseconds.
fn run_to_run(rig: &Rig, prefix: impl Fn(&str) -> String) -> f64 {
    rig.native("vidi").add();
    rig.gpuctl("start vidi --quiet").run().succeeds();
    let prefix = prefix(rig.path("run/floor").to_str().unwrap());
    let hold = format!("{prefix} 'touch held; until [ -e go ]; do sleep 0.01; done'");
    let holder = rig.shell(&hold).spawn();
    until("it is held", || rig.path("home/held").exists());
    let stamp = "date +%s%N >>stamps";
    let script = format!(
        "i=0; while [ $i -lt {COMMANDS} ]; do {prefix} '{stamp}; {stamp}' & i=$((i+1)); done; wait"
    );
    let line = rig.shell(&script).spawn();
    let processes = || rig.shell("pgrep -c -f 'date [+]%s%N >>stamps; date' || true").run();
    until("all wait", || processes().succeeds().text().trim().parse().unwrap_or(0) > COMMANDS);
    // This gives each of them the time to take its place.
    std::thread::sleep(std::time::Duration::from_secs(1));
    rig.file("home/go", "");
    holder.wait().succeeds();
    line.wait().succeeds();
    let stamps = fs::read_to_string(rig.path("home/stamps")).unwrap();
    let stamps: Vec<u64> = stamps.lines().map(|line| line.parse().unwrap()).collect();
    assert_eq!(stamps.len(), 2 * COMMANDS);
    let pauses = stamps[1..].chunks_exact(2).map(|pair| (pair[1] - pair[0]) as f64 / 1e6);
    median(pauses.collect())
}

/// Clients of the lock in Redis, each as if on a machine of its own, over one connection.
struct Simulated {
    connection: Connection,
    /// Time at which each client got in line, as the server reported it, by the client's number.
    arrivals: HashMap<usize, String>,
}

/// What a hand-over and a waiter's look cost, in microseconds of the server's time, and how many
/// clients a hand-over wakes.
struct Costs {
    hand_over: f64,
    woken: f64,
    look: f64,
}

fn long_lines(rows: &mut Vec<Row>) {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    let [short, long] = [10, 1000].map(|waiters| {
        redis.cli(&["FLUSHALL"]);
        costs(&redis, waiters)
    });
    let what = "a hand-over, 1000 machines wait";
    let beside = |rows: &mut Vec<Row>, what: &str, ours, theirs, unit, target| {
        rows.push(Row::beside(what, ours, "10 machines wait", theirs, unit, target));
    };
    beside(rows, what, long.hand_over, short.hand_over, "µs", Target::Times(2.0));
    beside(rows, "woken by it", long.woken, short.woken, "clients", Target::Times(1.0));
    beside(rows, "a look of one of 1000", long.look, short.look, "µs", Target::Times(2.0));
}

fn costs(redis: &Redis, waiters: usize) -> Costs {
    let connection = Client::open(redis.url()).unwrap().get_connection().unwrap();
    let mut simulated = Simulated { connection, arrivals: HashMap::new() };
    assert!(simulated.acquire(0));
    let line = |simulated: &mut Simulated, from: usize| {
        (from..from + waiters).for_each(|one| assert!(!simulated.acquire(one)));
    };
    line(&mut simulated, 1);
    redis.cli(&["CONFIG", "RESETSTAT"]);
    line(&mut simulated, 1);
    let look = stat(redis, "eval", "usec_per_call");
    let mut hand_over = Vec::new();
    let mut woken = 0.0;
    for holder in 0..HANDOVERS {
        // The next client looks again, since it may have been silent for too long while all the
        // others were asked.
        assert!(!simulated.acquire(holder + 1));
        redis.cli(&["CONFIG", "RESETSTAT"]);
        simulated.release(holder);
        assert!(simulated.acquire(holder + 1), "the longest waiting is next");
        hand_over.push(stat(redis, "eval", "usec"));
        woken += stat(redis, "lpush", "calls");
        // The line keeps its length, and every client looks from time to time, as waiters do once a
        // second.
        assert!(!simulated.acquire(holder + waiters + 1));
        if holder % 5 == 0 {
            line(&mut simulated, holder + 2);
        }
    }
    Costs { hand_over: median(hand_over), woken: woken / HANDOVERS as f64, look }
}

fn stat(redis: &Redis, command: &str, field: &str) -> f64 {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:")));
    let fields = line.unwrap_or_default().split(',');
    let mut values = fields.filter_map(|pair| pair.split_once('='));
    let value = values.find_map(|(name, value)| (name == field).then_some(value));
    value.map_or(0.0, |value| value.trim().parse().unwrap())
}

impl Simulated {
    /// Tries once to take the lock for a client, and reports whether the client has it.
    fn acquire(&mut self, one: usize) -> bool {
        let beside = |what: &str| format!("{LOCK_KEY}:{what}");
        let keys = ["fence", "queue", "seen", "called", "wake:", "second", "server"].map(beside);
        let (token, place) = (format!("{one:032x}"), format!("place-{one}"));
        let before = "me|gpuctl1|{\"fence\":";
        let after = format!(",\"token\":\"{token}\",\"place\":\"{place}\"}}");
        let mut command = redis::cmd("EVAL");
        command.arg(ACQUIRE).arg(8).arg(LOCK_KEY).arg(&keys);
        command.arg(token).arg(before).arg(after).arg(30_000).arg(1);
        command.arg(self.arrivals.get(&one).map_or("", String::as_str)).arg(place);
        command.arg("").arg(30_000).arg(1).arg(0);
        let answer: Vec<String> = command.query(&mut self.connection).unwrap();
        let arrival = match answer[0].as_str() {
            "busy" => answer[4].clone(),
            "turn" => answer[3].clone(),
            _ => return true,
        };
        self.arrivals.insert(one, arrival);
        false
    }

    fn release(&mut self, one: usize) {
        let beside = |what: &str| format!("{LOCK_KEY}:{what}");
        let keys = ["queue", "seen", "called", "wake:", "second"].map(beside);
        let mut command = redis::cmd("EVAL");
        command.arg(RELEASE).arg(6).arg(LOCK_KEY).arg(&keys);
        command.arg(format!("{one:032x}")).arg("holder").arg("").arg("");
        command.query::<i64>(&mut self.connection).unwrap();
    }
}
