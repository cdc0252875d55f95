//! Tests of the line of waiters: they are served in the order of their arrival, whoever else gives
//! up, and waiting costs nothing.

use rig::{Invocation, Rig, Running, Signal, on_both, until};
use std::fs::{self, DirEntry};
use std::thread;
use std::time::{Duration, Instant};

/// Takes the lock and returns its token.
fn hold(rig: &Rig) -> String {
    rig.gpuctl("lock acquire holder --ttl 10m").run().succeeds().text().trim().to_owned()
}

fn release(rig: &Rig, token: &str) {
    rig.gpuctl("lock release --token").arg(token).run().succeeds().stdout_has("released");
}

/// Returns a script that waits in line, notes its name when it has the lock, and releases the lock.
fn client(name: &str) -> String {
    format!(
        "token=$(gpuctl lock acquire {name} --wait 10m --pid $$) || exit 11
        echo {name} >>../served
        gpuctl lock release --quiet --token $token >/dev/null"
    )
}

fn served(rig: &Rig) -> Vec<String> {
    let served = fs::read_to_string(rig.path("served")).unwrap_or_default();
    served.lines().map(str::to_owned).collect()
}

/// Starts the commands one after the other, each when the previous one is in line.
fn queue_up(invocations: impl IntoIterator<Item = Invocation>) -> Vec<Running> {
    let queue_up = |invocation: Invocation| {
        let waiter = invocation.spawn();
        until("it waits", || waiter.stderr().contains("waiting for the GPU lock"));
        waiter
    };
    invocations.into_iter().map(queue_up).collect()
}

#[test]
fn those_who_wait_are_served_in_the_order_of_their_arrival() {
    on_both(|rig, _| {
        let token = hold(rig);
        let names: Vec<_> = (0..15).map(|number| format!("w{number}")).collect();
        let clients = queue_up(names.iter().map(|name| rig.shell(&client(name))));
        release(rig, &token);
        clients.into_iter().for_each(|client| drop(client.wait().succeeds().progress()));
        assert_eq!(served(rig), names);
    });
}

#[test]
fn nobody_overtakes_those_who_wait_in_the_moment_in_which_the_lock_is_free() {
    const OVERTAKE: &str = "while [ ! -e ../last ]; do
            gpuctl lock acquire thief --ttl 1s HOW >/dev/null 2>&1
            [ $? = 75 ] || echo thief >>../served
        done
        echo >../HOW";
    on_both(|rig, _| {
        let token = hold(rig);
        // The last client keeps the lock until the thieves have ended.
        let last = client("last").replace(
            "echo last >>../served",
            "echo >../last; until [ -e ../--no-wait ] && [ -e '../--wait 1ms' ]; do sleep 0.01; done",
        );
        let names: Vec<_> = (0..25).map(|number| format!("w{number}")).collect();
        let clients = names.iter().map(|name| rig.shell(&client(name)));
        let clients = queue_up(clients.chain([rig.shell(&last)]));
        let thieves = ["--no-wait", "--wait 1ms"].map(|how| {
            let quoted = OVERTAKE.replace("../HOW", &format!("'../{how}'"));
            rig.shell(&quoted.replace("HOW", how)).spawn()
        });
        release(rig, &token);
        clients.into_iter().for_each(|client| drop(client.wait().succeeds().progress()));
        thieves.into_iter().for_each(|thief| drop(thief.wait().succeeds()));
        assert_eq!(served(rig), names);
    });
}

#[test]
fn those_who_give_up_or_are_stopped_or_killed_leave_the_order_of_the_others_as_it_is() {
    on_both(|rig, _| {
        let token = hold(rig);
        let quitter = || rig.gpuctl("lock acquire quitter --wait 10m --ttl 10m");
        let client = |name| rig.shell(&client(name));
        let impatient = rig.gpuctl("lock acquire impatient --wait 1s");
        let line = [
            quitter(),
            client("w1"),
            impatient,
            client("w2"),
            quitter(),
            quitter(),
            client("w3"),
            quitter(),
            client("w4"),
            client("w5"),
        ];
        let mut line = queue_up(line).into_iter();
        let mut next = || line.next().unwrap();
        let (stopped, w1, impatient, w2, interrupted, killed, w3, also_stopped, w4, w5) =
            (next(), next(), next(), next(), next(), next(), next(), next(), next(), next());

        stopped.signal(Signal::STOP);
        also_stopped.signal(Signal::STOP);
        killed.signal(Signal::KILL);
        interrupted.signal(Signal::INT);
        interrupted.wait().exits(130).stderr_has("interrupted by signal 2");
        drop(killed.wait().dies_of(9).progress());
        impatient.wait().fails("lock_busy").stderr_has("the wait of 1s is over");
        release(rig, &token);
        for client in [w1, w2, w3, w4, w5] {
            client.wait().succeeds().progress();
        }
        assert_eq!(served(rig), ["w1", "w2", "w3", "w4", "w5"]);

        // The stopped waiters have lost nothing but time.
        stopped.signal(Signal::CONT);
        let token = stopped.wait().succeeds().progress().text();
        also_stopped.signal(Signal::CONT);
        release(rig, token.trim());
        also_stopped.wait().succeeds().progress().stdout_has("\n");
    });
}

/// How long waiters are watched. They look again once a second, in case a holder has left without
/// waking them.
const WATCHED: Duration = Duration::from_secs(4);

/// Returns how often the threads of a process have gone to sleep, all together; a process that
/// polls does so again and again.
fn sleeps(process: &Running) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    let of_task = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        line.unwrap().trim().parse::<u64>().unwrap()
    };
    let status = |task: DirEntry| fs::read_to_string(task.path().join("status")).map(of_task);
    tasks.flatten().filter_map(|task| status(task).ok()).sum()
}

fn assert_that_nobody_polls(rig: &Rig, command: &str, count: usize) {
    let token = hold(rig);
    let line = queue_up((0..count).map(|_| rig.gpuctl(&format!("{command} --wait 10m"))));
    let before: Vec<u64> = line.iter().map(sleeps).collect();
    let begun = Instant::now();
    thread::sleep(WATCHED);
    let woken = line.iter().zip(before).map(|(waiter, before)| sleeps(waiter) - before);
    let most = woken.max().unwrap();
    // Each look takes a few sleeps, and one look may come early.
    let looks = begun.elapsed().as_secs() + 1;
    assert!(most <= looks * 4, "{most} times in {:?}", begun.elapsed());
    for waiter in line {
        waiter.signal(Signal::INT);
        waiter.wait().exits(130).stderr_has("interrupted by signal 2");
    }
    release(rig, &token);
}

#[test]
fn those_who_wait_in_a_line_of_twenty_sleep() {
    on_both(|rig, _| assert_that_nobody_polls(rig, "lock acquire waiter", 20));
}

#[test]
fn who_waits_before_a_start_sleeps() {
    on_both(|rig, _| {
        rig.native("vidi").add();
        assert_that_nobody_polls(rig, "start vidi", 1);
    });
}
