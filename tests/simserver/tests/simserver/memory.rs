//! Tests of the memory that the server holds, and of what happens when there is not enough.

use serde_json::json;
use simgpu::Kind;

use crate::bench::{Bench, until};

#[test]
fn memory_is_claimed_in_steps_during_the_warm_up() {
    let bench = Bench::new();
    let mut server = bench.start("--vram 4000 --steps 4 --warmup 2s");
    until("the first step", || bench.claimed() > 0);
    assert!([1000, 2000, 3000].contains(&bench.claimed()), "all at once");
    server.await_ready();
    assert_eq!(bench.claimed(), 4000);
    assert_eq!(bench.holders()[0].pid, Some(server.pid()));
}

#[test]
fn an_idle_server_takes_the_rest_at_its_first_job() {
    let bench = Bench::new();
    let server = bench.start_warm("--vram 20000 --idle-vram 600");
    assert_eq!(bench.claimed(), 600);
    assert_eq!(server.post("/work", json!({})).0, 200);
    assert_eq!(bench.claimed(), 20000);
}

#[test]
fn without_enough_memory_it_says_so_and_dies() {
    let bench = Bench::with_total(1000);
    let mut server = bench.start("--name big --vram 2000");
    assert_eq!(server.end().code(), Some(1));
    let complaint = server.complaint();
    assert!(complaint.contains("torch.cuda.OutOfMemoryError: CUDA out of memory"), "{complaint}");
    assert_eq!((bench.claimed(), bench.out_of_memory_events()), (0, 1));
}

#[test]
fn a_job_without_enough_memory_is_answered_500_and_is_the_last() {
    let bench = Bench::with_total(1000);
    let mut server = bench.start_warm("--vram 2000 --idle-vram 600");
    let (status, answer) = server.post("/work", json!({}));
    assert_eq!(status, 500);
    assert!(answer["error"].as_str().unwrap().contains("CUDA out of memory"), "{answer}");
    assert_eq!(server.end().code(), Some(1));
    assert_eq!((bench.claimed(), bench.out_of_memory_events()), (0, 1));
}

#[test]
fn the_desktop_is_a_graphics_process() {
    let bench = Bench::new();
    let _desktop = bench.start_warm("--vram 700 --graphics");
    assert_eq!(bench.holders()[0].kind, Kind::Graphics);
}

#[test]
fn no_memory_needs_no_card() {
    let bench = Bench::new();
    let server = bench.start_warm("--name plain");
    assert_eq!(server.get("/health").0, 200);
    assert!(!bench.dir.path().join("claims").exists());
}
