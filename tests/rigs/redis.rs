//! Tests of what the rig's Redis, and the faulty proxy to it, promise.

use rig::{LOCK_KEY, Outcome, Proxy, Redis, Rig, Signal, until};
use rustix::process::{Pid, WaitOptions, waitpid};
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::thread;

/// Runs `redis-cli` with these words against a port, and returns the outcome.
fn ask(rig: &Rig, port: u16, words: &str) -> Outcome {
    rig.shell(&format!("redis-cli -h 127.0.0.1 -p {port} {words}")).run()
}

fn is_refused(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_err()
}

#[test]
fn a_redis_answers_at_its_port_and_its_socket_and_ends_when_dropped() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    ask(&rig, redis.port(), "SET colour red").succeeds().stdout("OK\n");
    let socket = redis.socket_url().replace("redis+unix://", "");
    rig.shell(&format!("redis-cli -s {socket} GET colour")).run().succeeds().stdout("red\n");
    assert_eq!(redis.url(), format!("redis://127.0.0.1:{}/0", redis.port()));
    let port = redis.port();
    drop(redis);
    assert!(is_refused(port));
}

#[test]
fn a_redis_that_nobody_ends_goes_with_the_thread_that_started_it() {
    let rig = Rig::new();
    let start = || rig.redis().map(|redis| ManuallyDrop::new(redis).pid());
    let started = thread::scope(|scope| scope.spawn(start).join().unwrap());
    let Some(pid) = started.and_then(Pid::from_raw) else { return };
    until("it has ended", || waitpid(Some(pid), WaitOptions::NOHANG).unwrap().is_some());
}

#[test]
fn a_redis_comes_back_empty_at_the_same_port() {
    let rig = Rig::new();
    let Some(mut redis) = rig.redis() else { return };
    redis.cli(&["SET", "colour", "red"]);
    let port = redis.port();
    redis.stop();
    assert!(is_refused(port));
    redis.restart();
    ask(&rig, port, "GET colour").succeeds().stdout("\n");
}

#[test]
fn a_redis_that_is_stopped_by_a_signal_hangs_until_it_is_continued() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    redis.signal(Signal::STOP);
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", redis.pid())).unwrap();
    until("it is stopped", || stat().contains(") T "));
    let ping = rig.shell(&format!("exec redis-cli -p {} PING", redis.port())).spawn();
    redis.signal(Signal::CONT);
    ping.wait().succeeds().stdout("PONG\n");
    redis.signal(Signal::STOP);
    // The server ends with the test nevertheless.
}

#[test]
fn a_redis_that_has_much_to_read_says_that_it_is_loading() {
    let rig = Rig::new();
    let options = ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"];
    let Some(mut redis) = rig.redis_with(&options) else { return };
    let script = "for key = 1, 1000 do redis.call('SET', key, string.rep('x', 100)) end";
    redis.cli(&["EVAL", script, "0"]);
    redis.cli(&["SAVE"]);
    redis.restart();
    ask(&rig, redis.port(), "GET 1").succeeds().stdout_has("LOADING");
    until("it has loaded", || redis.cli(&["INFO", "persistence"]).contains("\nloading:0"));
    assert_eq!(redis.cli(&["DBSIZE"]), "1000");
}

#[test]
fn a_redis_can_be_made_to_refuse() {
    let rig = Rig::new();
    let Some(redis) = rig.redis_with(&["--requirepass", "secret"]) else { return };
    ask(&rig, redis.port(), "GET colour").succeeds().stdout_has("NOAUTH");
    redis.cli(&["ACL", "SETUSER", "reader", "on", ">word", "~*", "+get"]);
    let reader = "--user reader --pass word --no-auth-warning";
    ask(&rig, redis.port(), &format!("{reader} SET a b")).succeeds().stdout_has("NOPERM");
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let denied = std::panic::catch_unwind(|| redis.cli(&["SET", "a", "b"]));
    assert!(denied.is_err(), "the test fails when Redis refuses");

    let port = redis.port().to_string();
    let replica = ["--replicaof", "127.0.0.1", &port, "--masterauth", "secret"];
    let replica = rig.redis_with(&replica).unwrap();
    ask(&rig, replica.port(), "SET a b").succeeds().stdout_has("READONLY");
}

#[test]
fn a_redis_over_tls_is_vouched_for_by_its_own_authority_only() {
    let rig = Rig::new();
    let Some(redis) = rig.redis_with_tls() else { return };
    let (ca, port) = (redis.ca(), redis.port());
    ask(&rig, port, &format!("--tls --cacert {} PING", ca.display())).succeeds().stdout("PONG\n");
    ask(&rig, port, "--tls PING").exits(1).stderr_has("certificate");
    assert_eq!(redis.url(), format!("rediss://127.0.0.1:{port}/0"));
    assert_eq!(redis.server.cli(&["PING"]), "PONG");
}

#[test]
fn a_legacy_client_excludes_others_and_releases_its_own_lock_only() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    assert_eq!((redis.holder(), redis.ttl_ms()), (None, -2));
    assert!(redis.legacy_acquire("vidi"));
    assert!(!redis.legacy_acquire("vllm"));
    redis.legacy_release("vllm");
    assert_eq!(redis.holder().as_deref(), Some("vidi"));
    assert!((590_000..=600_000).contains(&redis.ttl_ms()));
    redis.legacy_release("vidi");
    assert_eq!(redis.holder(), None);
    redis.cli(&["SET", LOCK_KEY, "for ever"]);
    assert_eq!(redis.ttl_ms(), -1);
}

/// Starts a Redis and a proxy to it; returns `None`, after reporting the skip, if Redis is not
/// available.
#[track_caller]
fn redis_and_proxy(rig: &Rig) -> Option<(Redis, Proxy)> {
    let redis = rig.redis()?;
    let proxy = Proxy::to(redis.port());
    Some((redis, proxy))
}

#[test]
fn a_proxy_passes_what_is_said() {
    let rig = Rig::new();
    let Some((mut redis, proxy)) = redis_and_proxy(&rig) else { return };
    ask(&rig, proxy.port(), "SET colour red").succeeds().stdout("OK\n");
    ask(&rig, proxy.port(), "GET colour").succeeds().stdout("red\n");
    assert_eq!((proxy.connections(), proxy.lost()), (2, 0));
    assert_eq!(proxy.url(), format!("redis://127.0.0.1:{}/0", proxy.port()));
    redis.stop();
    ask(&rig, proxy.port(), "GET colour").exits(1).stderr_has("Error");
    let port = proxy.port();
    drop(proxy);
    assert!(is_refused(port));
}

#[test]
fn a_proxy_loses_a_reply_to_what_has_been_done() {
    let rig = Rig::new();
    let Some((redis, proxy)) = redis_and_proxy(&rig) else { return };
    proxy.lose_reply("INCR");
    ask(&rig, proxy.port(), "GET count").succeeds().stdout("\n");
    ask(&rig, proxy.port(), "INCR count").exits(1).stderr_has("closed the connection");
    ask(&rig, proxy.port(), "INCR count").succeeds().stdout("2\n");
    assert_eq!(proxy.lost(), 1);
    proxy.lose_replies("INCR");
    for _ in 0..2 {
        ask(&rig, proxy.port(), "INCR count").exits(1).stderr_has("closed the connection");
    }
    assert_eq!((proxy.lost(), redis.cli(&["GET", "count"])), (3, "4".to_owned()));
    proxy.pass();
    ask(&rig, proxy.port(), "INCR count").succeeds().stdout("5\n");
}

#[test]
fn a_proxy_resets_connections_once() {
    let rig = Rig::new();
    let Some((redis, proxy)) = redis_and_proxy(&rig) else { return };
    let waits = || redis.cli(&["CLIENT", "LIST"]).contains("cmd=blpop");
    let script = format!("exec redis-cli -p {} BLPOP list 0", proxy.port());
    let blocked = rig.shell(&script).spawn();
    until("it waits", waits);
    proxy.reset();
    blocked.wait().exits(1).stderr_has("Connection reset by peer");
    until("the server knows", || !waits());
    ask(&rig, proxy.port(), "PING").succeeds().stdout("PONG\n");
}

#[test]
fn a_proxy_swallows_and_refuses_until_it_passes_again() {
    let rig = Rig::new();
    let Some((redis, proxy)) = redis_and_proxy(&rig) else { return };
    proxy.swallow();
    let unheard = rig.shell(&format!("exec redis-cli -p {} SET a b", proxy.port())).spawn();
    until("it is connected", || proxy.connections() == 1);
    proxy.refuse();
    assert!(is_refused(proxy.port()));
    proxy.pass();
    ask(&rig, proxy.port(), "GET a").succeeds().stdout("\n");
    unheard.signal(Signal::KILL);
    unheard.wait().dies_of(9);
    assert_eq!(redis.cli(&["DBSIZE"]), "0");
}
