//! Tests of how the health check is answered, well and badly.

use std::io::Read;
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::bench::{Bench, agent, until};

#[test]
fn it_is_healthy_when_warm_and_not_before() {
    let bench = Bench::new();
    let mut server = bench.start("--warmup 2s");
    until("it listens", || TcpStream::connect(("127.0.0.1", server.port)).is_ok());
    assert_eq!(server.get("/health").0, 503);
    server.await_ready();
    assert_eq!(server.get("/health").0, 200);
    assert_eq!(server.get("/system_stats").0, 200);
    assert_eq!(server.post("/nowhere", json!({})).0, 404);
}

#[test]
fn a_late_listener_refuses_connections_until_warm() {
    let bench = Bench::new();
    let mut server = bench.start("--vram 10 --warmup 2s --late-listen");
    until("it warms up", || bench.claimed() == 10);
    assert!(TcpStream::connect(("127.0.0.1", server.port)).is_err());
    server.await_ready();
    assert_eq!(server.get("/").0, 200);
}

#[test]
fn it_can_be_healthy_only_for_a_while() {
    let bench = Bench::new();
    let server = bench.start_warm("--unhealthy-after 300ms");
    until("it is unhealthy", || server.get("/health").0 == 503);
}

#[test]
fn an_error_is_500() {
    let bench = Bench::new();
    assert_eq!(bench.start_warm("--health 500").get("/health").0, 500);
}

#[test]
fn a_redirect_leads_to_itself() {
    let bench = Bench::new();
    let server = bench.start_warm("--health redirect-loop");
    let outcome = agent().get(server.url("/health")).call();
    assert!(matches!(outcome, Err(ureq::Error::TooManyRedirects)), "{outcome:?}");
}

#[test]
fn a_hang_is_no_answer_and_does_not_keep_others_waiting() {
    let bench = Bench::new();
    let server = bench.start_warm("--health hang --vram 100 --idle-vram 10");
    let call = || {
        agent()
            .get(server.url("/health"))
            .config()
            .timeout_global(Some(Duration::from_millis(300)))
            .build()
            .call()
    };
    thread::scope(|scope| {
        let hung: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
        assert_eq!(server.post("/work", json!({})).0, 200);
        for one in hung {
            assert!(matches!(one.join().unwrap(), Err(ureq::Error::Timeout(_))));
        }
    });
}

#[test]
fn a_drip_comes_byte_by_byte() {
    let bench = Bench::new();
    let server = bench.start_warm("--health drip");
    let mut body = agent().get(server.url("/health")).call().unwrap().into_body();
    let mut some = [0; 64];
    assert_eq!(body.as_reader().read(&mut some).unwrap(), 1);
    assert_eq!(body.as_reader().read(&mut some).unwrap(), 1);
}

#[test]
fn an_endless_body_goes_on() {
    let bench = Bench::new();
    let server = bench.start_warm("--health endless");
    let mut body = agent().get(server.url("/health")).call().unwrap().into_body();
    let mut much = vec![0; 20 << 20];
    body.as_reader().read_exact(&mut much).unwrap();
}
