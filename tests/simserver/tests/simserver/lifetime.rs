//! Tests of how the server ends, and of what outlives it.

use std::os::unix::process::ExitStatusExt;

use rustix::process::{Pid, getpgid, getsid};
use signal_hook::consts::{SIGINT, SIGKILL, SIGTERM};

use crate::bench::{Bench, until};

#[test]
fn a_polite_request_ends_it_with_0_and_frees_its_memory() {
    for signal in [SIGTERM, SIGINT] {
        let bench = Bench::new();
        let mut server = bench.start_warm("--vram 100 --term-delay 50ms");
        server.signal(signal);
        assert_eq!(server.end().code(), Some(0));
        assert_eq!(bench.claimed(), 0);
    }
}

#[test]
fn it_can_ignore_the_request() {
    let bench = Bench::new();
    let mut server = bench.start_warm("--ignore-term");
    server.signal(SIGTERM);
    assert_eq!(server.get("/").0, 200);
    server.signal(SIGKILL);
    assert_eq!(server.end().signal(), Some(SIGKILL));
}

#[test]
fn it_can_end_by_itself() {
    let bench = Bench::new();
    assert_eq!(bench.start("--exit-after 50ms --exit-code 3").end().code(), Some(3));
    for signal in [6, 9, 11, 15] {
        let ended = bench.start(&format!("--exit-after 50ms --die-by {signal}")).end();
        assert_eq!(ended.signal(), Some(signal));
    }
}

#[test]
fn it_ends_with_the_folder_of_its_test() {
    let bench = Bench::new();
    let mut server = bench.start_warm("--vram 100 --ignore-term");
    drop(bench);
    assert_eq!(server.end().code(), Some(0));
}

#[test]
fn children_hold_equal_shares_in_the_group_and_end_with_it() {
    let bench = Bench::new();
    let mut server = bench.start_warm("--name parent --worker-name child --vram 3000 --fork 3");
    let group = getpgid(Some(pid(server.pid()))).unwrap();
    let holders = bench.holders();
    assert_eq!(holders.len(), 3);
    for holder in holders {
        assert_eq!((holder.mb, holder.name.as_str()), (1000, "child"));
        assert_eq!(getpgid(holder.pid.map(pid)).unwrap(), group);
    }
    server.signal(SIGTERM);
    assert_eq!(server.end().code(), Some(0));
    until("the children have ended", || bench.claimed() == 0);
}

#[test]
fn an_orphan_holds_the_memory_after_the_server_is_gone() {
    let bench = Bench::new();
    let mut server = bench.start_warm("--vram 3000 --double-fork");
    let orphan = bench.holders()[0].pid.unwrap();
    assert_eq!(getsid(Some(pid(orphan))).unwrap(), pid(orphan), "not in a session of its own");
    server.signal(SIGTERM);
    assert_eq!(server.end().code(), Some(0));
    assert_eq!(bench.claimed(), 3000);
}

#[test]
fn a_server_whose_worker_runs_out_of_memory_dies_too() {
    let bench = Bench::with_total(1000);
    let mut server = bench.start("--vram 3000 --fork 2");
    assert_eq!(server.end().code(), Some(1));
    assert!(bench.out_of_memory_events() > 0);
}

#[test]
fn a_daemon_leaves_the_foreground_at_once() {
    let bench = Bench::new();
    let mut server = bench.start("--vram 200 --daemonise");
    assert_eq!(server.end().code(), Some(0));
    until("the daemon holds its memory", || bench.claimed() == 200);
    assert_ne!(bench.holders()[0].pid, Some(server.pid()));
    until("the daemon listens", || {
        std::net::TcpStream::connect(("127.0.0.1", server.port)).is_ok()
    });
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number as i32).unwrap()
}
