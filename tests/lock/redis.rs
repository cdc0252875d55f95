//! Tests of the ways to a Redis that the lock's URL can name: a port, a socket, TLS; a user, a
//! password, a database.

use rig::{LOCK_KEY, Redis, Rig, until};
use rustix::process::Signal;
use serde_json::Value;

/// Asserts that the lock can be taken, waited for and given back, and takes it again. The caller
/// has to prove that it is in the Redis that is meant.
#[track_caller]
fn the_lock_works(rig: &Rig) {
    rig.native("vidi").add();
    let token = rig.gpuctl("lock acquire me --ttl 1h").run().succeeds().text();
    let shown = rig.gpuctl("status --json").run().succeeds().json()["lock"].clone();
    assert_eq!((&shown["backend"], &shown["holder"]), (&"redis".into(), &"me".into()), "{shown}");
    let waiter = rig.gpuctl("start vidi").spawn();
    until("it waits", || waiter.stderr().contains("held by me"));
    rig.gpuctl(&format!("lock release --token {token}")).run().succeeds().stdout("released\n");
    waiter.wait().succeeds().progress().stdout_has("vidi");
    rig.gpuctl("lock status").run().succeeds().stdout("free\n");
    rig.gpuctl("lock acquire me --no-wait").run().succeeds().stdout_has("\n");
}

#[track_caller]
fn is_held_in(redis: &Redis, database: &str) {
    let value = redis.cli(&["-n", database, "GET", LOCK_KEY]);
    assert!(value.starts_with("me|gpuctl1|"), "{value:?}");
}

#[test]
fn the_lock_works_over_a_port_a_name_and_a_socket() {
    for way in ["port", "name", "socket"] {
        let rig = Rig::new();
        let Some(redis) = rig.redis() else { return };
        rig.set(
            "lock.url",
            match way {
                "port" => redis.url(),
                "name" => format!("redis://localhost:{}", redis.port()),
                _ => redis.socket_url(),
            },
        );
        the_lock_works(&rig);
        is_held_in(&redis, "0");
    }
}

#[test]
fn the_lock_works_in_the_database_that_the_url_names() {
    for is_socket in [false, true] {
        let rig = Rig::new();
        let Some(redis) = rig.redis() else { return };
        rig.set(
            "lock.url",
            match is_socket {
                false => format!("redis://127.0.0.1:{}/7", redis.port()),
                true => format!("{}?db=7", redis.socket_url()),
            },
        );
        the_lock_works(&rig);
        is_held_in(&redis, "7");
        assert_eq!(redis.holder(), None);
    }
}

#[test]
fn the_lock_works_with_a_password_of_any_characters() {
    let (password, encoded) = ("a/b:c@d%e?f#g h", "a%2Fb%3Ac%40d%25e%3Ff%23g%20h");
    for url in ["redis://:PASSWORD@127.0.0.1:PORT/0", "redis+unix://SOCKET?pass=PASSWORD"] {
        let rig = Rig::new();
        let Some(redis) = rig.redis_with(&["--requirepass", password]) else { return };
        let url = url.replace("PORT", &redis.port().to_string());
        let url = url.replace("SOCKET", redis.socket().to_str().unwrap());
        rig.set("lock.url", url.replace("PASSWORD", encoded));
        the_lock_works(&rig);
        is_held_in(&redis, "0");
        for command in ["config show", "config show --json", "status --json -vv", "lock status -vv"]
        {
            let told = rig.shell(&format!("gpuctl {command} 2>&1; true")).run().succeeds().text();
            assert!(!told.contains(encoded) && !told.contains(password), "{command}: {told}");
        }
    }
}

#[test]
fn the_lock_works_for_a_user_of_its_own() {
    for url in ["redis://worker:word@127.0.0.1:PORT/0", "redis+unix://SOCKET?user=worker&pass=word"]
    {
        let rig = Rig::new();
        let Some(redis) = rig.redis_with(&["--requirepass", "secret"]) else { return };
        redis.cli(&["ACL", "SETUSER", "worker", "on", ">word", &format!("~{LOCK_KEY}*"), "+@all"]);
        let url = url.replace("PORT", &redis.port().to_string());
        rig.set("lock.url", url.replace("SOCKET", redis.socket().to_str().unwrap()));
        the_lock_works(&rig);
        is_held_in(&redis, "0");
    }
}

#[test]
fn the_lock_works_over_tls_where_the_servers_certificate_can_be_trusted() {
    let rig = Rig::new();
    let Some(redis) = rig.redis_with_tls() else { return };
    rig.set("lock.url", redis.url());
    rig.native("vidi").add();
    let with_ca = |words: &str| rig.gpuctl(words).env("SSL_CERT_FILE", redis.ca());
    let token = with_ca("lock acquire me --ttl 1h").run().succeeds().text();
    is_held_in(&redis.server, "0");
    let waiter = with_ca("start vidi").spawn();
    until("it waits", || waiter.stderr().contains("held by me"));
    with_ca(&format!("lock release --token {token}")).run().succeeds().stdout("released\n");
    waiter.wait().succeeds().progress().stdout_has("started vidi");

    let refused = rig.gpuctl("lock acquire").run().fails("unavailable");
    refused.stderr_has("cannot be reached").stderr_has("certificate");
    // Neither side takes the other's protocol for its own.
    rig.set("lock.url", redis.url().replace("rediss:", "redis:"));
    rig.gpuctl("lock acquire").run().fails("unavailable").stderr_has("Redis at");
    rig.set("lock.url", redis.server.url().replace("redis:", "rediss:"));
    with_ca("lock acquire").run().fails("unavailable").stderr_has("Redis at");
    assert_eq!(redis.server.holder(), None);
}

#[test]
fn two_keys_in_one_redis_are_two_locks() {
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    for key in ["gpu0", "gpu1"] {
        rig.set("lock.key", key);
        rig.gpuctl("lock acquire --no-wait").run().succeeds().stdout_has("\n");
        rig.gpuctl("lock acquire --no-wait").run().fails("lock_busy").stderr_has("held by manual");
    }
    assert_eq!(redis.cli(&["EXISTS", "gpu0", "gpu1", LOCK_KEY]), "2");
}

#[test]
fn who_waits_for_redis_is_no_holder_and_neither_is_the_last_one() {
    let rig = Rig::new();
    for name in ["vidi", "vllm"] {
        rig.native(name).vram(100).add();
    }
    let Some(redis) = rig.lock_in_redis() else { return };
    rig.gpuctl("start vidi --quiet").run().succeeds();
    redis.signal(Signal::STOP);
    let start = rig.gpuctl("start vllm --quiet").spawn();
    until("it is at the door", || rig.kernel_locks().contains(&"OFDLCK".to_owned()));
    // This URL shows the machine's lock alone.
    rig.set("lock.url", format!("file:///run/lock/gpuctl-{LOCK_KEY}.lock"));
    let status = rig.gpuctl("status --json").run().succeeds().json();
    assert_eq!(status["lock"]["holder"], Value::Null, "{status}");
    assert_eq!(status["services"]["vidi"]["state"], "ready", "{status}");
    redis.signal(Signal::CONT);
    start.wait().ended();
}
