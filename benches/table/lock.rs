//! How fast the lock changes hands, in Redis and in a file, beside flock(1) as the floor and beside
//! the client that gpuctl replaces.

use super::measure::{at, median};
use super::report::{Row, Section, Target};
use rig::{Redis, Rig, until};
use std::cell::Cell;
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const HANDOVERS: usize = 60;

/// Longest wait for a hand-over, far more than any takes, which only keeps a broken build from
/// hanging.
const LIMIT: Duration = Duration::from_secs(60);

pub fn measure() -> Section {
    let mut rows = Vec::new();
    for waiters in [2, 10, 50] {
        let times = |kind| Some(hand_over(&Lock::new(kind)?, waiters));
        let flock = times(Kind::Flock).unwrap();
        let raw = times(Kind::Raw).map(median);
        let seed = (waiters == 2).then(by_the_old_client).flatten();
        for kind in [Kind::Redis, Kind::File] {
            let what = format!("hand-over, {}, {waiters} waiting", kind.name());
            let Some(times) = times(kind) else {
                rows.push(Row::missing(&what, "", "there is no Redis"));
                continue;
            };
            let ours = median(times.clone());
            let mut beside = |what: &str, ours, other, theirs| {
                rows.push(Row::beside(what, ours, other, theirs, "ms", Target::None));
            };
            beside(&what, ours, "flock(1)", median(flock.clone()));
            let worst = format!("{what}, 99th of 100");
            beside(&worst, at(times, 0.99), "flock(1)", at(flock.clone(), 0.99));
            if let (Kind::Redis, Some(raw)) = (kind, raw) {
                beside(&what, ours, "raw Redis, LPUSH to BLPOP", raw);
            }
            if let Some(seed) = &seed {
                beside(&what, ours, "the seeds' back-off", median(seed.clone()));
            }
        }
    }
    for contenders in [2, 10, 50] {
        let rate = |kind| Lock::new(kind).map(|lock| entries_a_second(&lock, contenders));
        let flock = rate(Kind::Flock).unwrap();
        let raw = rate(Kind::Raw);
        for kind in [Kind::Redis, Kind::File] {
            let what = format!("throughput, {}, {contenders} contend", kind.name());
            let ours = rate(kind);
            rows.push(match ours {
                Some(rate) => Row::beside(&what, rate, "flock(1)", flock, "a second", Target::None),
                None => Row::missing(&what, "flock(1)", "there is no Redis"),
            });
            if let (Kind::Redis, Some(raw), Some(ours)) = (kind, raw, ours) {
                let other = "raw Redis, BLPOP and LPUSH";
                rows.push(Row::beside(&what, ours, other, raw, "a second", Target::None));
            }
        }
    }
    Section {
        title: "The lock",
        note: "A hand-over is from the call that releases, its process included, to the next one's first step. Throughput is of \
               acquires and releases, two processes of gpuctl each and one of flock.",
        rows,
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Redis,
    File,
    Flock,
    /// A list in Redis alone, used by redis-cli.
    Raw,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Redis => "Redis",
            Kind::File => "file",
            Kind::Flock => "flock(1)",
            Kind::Raw => "raw Redis",
        }
    }
}

/// A lock of one kind, on a machine of its own.
struct Lock {
    kind: Kind,
    redis: Option<Redis>,
    rig: Rig,
    /// Folder of the lock's file, in memory as is the folder in which the file lies by default.
    folder: TempDir,
    /// Number of clients that wait for a list in Redis alone; other kinds are not counted.
    waiting: Cell<usize>,
}

/// A process that waits for the lock or has it. Dropping the `Client` ends the process.
struct Client {
    process: Child,
    /// The process's input; for flock(1) and a list in Redis alone, closing it ends the command
    /// that has the lock.
    input: Option<ChildStdin>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// The client that has the lock, by its number, the time at which it got it, and its token, which
/// is empty unless gpuctl gave it.
struct Taken {
    number: usize,
    at: Instant,
    token: String,
}

impl Lock {
    fn new(kind: Kind) -> Option<Lock> {
        let rig = Rig::new();
        let redis = match kind {
            Kind::Redis | Kind::Raw => Some(rig.redis()?),
            Kind::File | Kind::Flock => None,
        };
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let lock = Lock { kind, redis, rig, folder, waiting: Cell::new(0) };
        if kind == Kind::Raw {
            lock.redis.as_ref().unwrap().cli(&["LPUSH", "raw", "1"]);
        }
        Some(lock)
    }

    fn url(&self) -> String {
        match &self.redis {
            Some(redis) => redis.url(),
            None => format!("file://{}/run/lock", self.folder.path().display()),
        }
    }

    /// Returns the path of the file that flock(1) locks.
    fn floor(&self) -> String {
        format!("{}/floor", self.folder.path().display())
    }

    /// Returns a command line of `redis-cli` with these words.
    fn raw(&self, words: &str) -> String {
        let port = self.redis.as_ref().map(Redis::port).unwrap_or_default();
        format!("redis-cli -p {port} {words}")
    }

    /// Prepares a call of a program that sees only this lock, without the rig's shell around it.
    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var("PATH").unwrap())
            .env("HOME", self.rig.path("home"))
            .env("GPUCTL_LOCK_URL", self.url())
            .env("GPUCTL_STATE_DIR", self.rig.state_dir())
            .current_dir(self.rig.path("home"));
        self.rig.on_its_machine(&mut command);
        command
    }

    fn gpuctl(&self, words: &str) -> Command {
        let words: Vec<&str> = words.split(' ').collect();
        self.command(env!("CARGO_BIN_EXE_gpuctl"), &words)
    }

    /// Starts one more client, and sends to `tell` once that client has the lock.
    fn queue_up(&self, number: usize, tell: &Sender<Taken>) -> Client {
        let mut command = match self.kind {
            Kind::Flock => self.command("flock", &[&self.floor(), "sh", "-c", "echo; read -r end"]),
            Kind::Raw => {
                let wait = format!("{} >/dev/null; echo; read -r end", self.raw("BLPOP raw 0"));
                self.command("sh", &["-c", &wait])
            }
            _ => self.gpuctl("lock acquire me --wait 1h --ttl 1h"),
        };
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = piped.spawn().unwrap();
        let (input, output) = (process.stdin.take(), process.stdout.take().unwrap());
        let told = tell.clone();
        thread::spawn(move || {
            let mut token = String::new();
            // A client that is ended while it waits prints nothing.
            if BufReader::new(output).read_line(&mut token).is_ok_and(|count| count > 0) {
                let at = Instant::now();
                told.send(Taken { number, at, token: token.trim().to_owned() }).ok();
            }
        });
        Client { process, input }
    }

    /// Waits until the client stands in line for the lock.
    fn watch(&self, client: &mut Client) {
        if self.kind == Kind::Flock {
            let (pid, blocked) = (client.process.id().to_string(), "->");
            until("flock waits", || {
                let locks = std::fs::read_to_string("/proc/locks").unwrap();
                let mut lines = locks.lines().filter(|line| line.contains(blocked));
                lines.any(|line| line.split_whitespace().any(|word| word == pid))
            });
        } else if let (Kind::Raw, Some(redis)) = (self.kind, &self.redis) {
            let blocked = || redis.cli(&["CLIENT", "LIST"]).matches("cmd=blpop").count();
            let before = self.waiting.replace(self.waiting.get() + 1);
            until("redis-cli waits", || blocked() > before);
        } else {
            let mut line = String::new();
            BufReader::new(client.process.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert!(line.starts_with("waiting for the GPU lock"), "{line}");
        }
    }

    /// Makes the holder give up the lock, and returns the process that releases it, or `None` for
    /// flock(1), where the holder's end does that.
    fn release(&self, holder: &mut Client, token: &str) -> Option<Child> {
        holder.input = None;
        (self.kind != Kind::Flock).then(|| {
            let mut release = match self.kind {
                Kind::Raw => {
                    self.waiting.set(self.waiting.get() - 1);
                    self.command("sh", &["-c", &format!("exec {}", self.raw("LPUSH raw 1"))])
                }
                _ => self.gpuctl(&format!("lock release --quiet --token {token}")),
            };
            release.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
        })
    }

    /// Returns the shell command that takes the lock and releases it once.
    fn entry(&self) -> String {
        match self.kind {
            Kind::Flock => format!("flock {} true", self.floor()),
            Kind::Raw => format!("{}; {}", self.raw("BLPOP raw 0"), self.raw("LPUSH raw 1")),
            _ => format!(
                "export GPUCTL_LOCK_URL={}; t=$(gpuctl lock acquire me -q --wait 1h); \
                 gpuctl lock release --token $t",
                self.url()
            ),
        }
    }
}

/// Returns the times from a holder's release, its process included, to the next holder's first
/// output, in milliseconds. The line keeps its length throughout.
fn hand_over(lock: &Lock, waiters: usize) -> Vec<f64> {
    let (tell, told): (_, Receiver<Taken>) = channel();
    let mut clients = vec![lock.queue_up(0, &tell)];
    let mut taken = told.recv_timeout(LIMIT).unwrap();
    let add = |clients: &mut Vec<Client>| {
        let mut client = lock.queue_up(clients.len(), &tell);
        lock.watch(&mut client);
        clients.push(client);
    };
    (0..waiters).for_each(|_| add(&mut clients));
    let mut times = Vec::new();
    for _ in 0..HANDOVERS {
        let begun = Instant::now();
        let release = lock.release(&mut clients[taken.number], &taken.token);
        let former = taken.number;
        taken = told.recv_timeout(LIMIT).unwrap();
        times.push((taken.at - begun).as_secs_f64() * 1e3);
        if let Some(mut release) = release {
            assert!(release.wait().unwrap().success());
        }
        clients[former].process.wait().unwrap();
        add(&mut clients);
    }
    times
}

/// Returns the times of hand-overs as the services did them before gpuctl, in milliseconds: by SET
/// NX and, after a failure, sleeps of 1, 2, 4, 8 and 16 s between tries. The holder works for times
/// that suit none of these pauses. Returns `None` if there is no Redis.
fn by_the_old_client() -> Option<Vec<f64>> {
    let lock = Lock::new(Kind::Redis)?;
    let redis = lock.redis.as_ref().unwrap();
    let try_it = format!("redis-cli -p {} SET gpu_mutex_v2 me NX EX 600", redis.port());
    let script = format!(
        "echo; for pause in 1 2 4 8 16; do [ \"$({try_it})\" = OK ] && break; sleep $pause; done"
    );
    let round = |work: u64| {
        assert!(redis.legacy_acquire("other"));
        let waiter = lock.rig.shell(&script).spawn();
        thread::sleep(Duration::from_millis(work));
        let begun = Instant::now();
        redis.legacy_release("other");
        waiter.wait().succeeds().text();
        let time = begun.elapsed().as_secs_f64() * 1e3;
        redis.legacy_release("me");
        time
    };
    Some([300, 1500, 2500, 4000, 5500].map(round).to_vec())
}

fn entries_a_second(lock: &Lock, contenders: usize) -> f64 {
    let entries = 200 / contenders;
    let entry = lock.entry();
    let script = format!(
        "i=0; while [ $i -lt {entries} ]; do {{ {entry}; }} >/dev/null || exit 1; i=$((i+1)); done"
    );
    let begun = Instant::now();
    let running: Vec<_> = (0..contenders).map(|_| lock.rig.shell(&script).spawn()).collect();
    running.into_iter().for_each(|running| drop(running.wait().succeeds()));
    (contenders * entries) as f64 / begun.elapsed().as_secs_f64()
}
