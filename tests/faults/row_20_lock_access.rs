//! Tests of a Redis that demands a login or does not permit what the lock needs (row 20): gpuctl
//! reports it with what helps and without any secret.

use super::row_15_16_18_19_21_lock_server::{is_refused, vidi};
use rig::{LOCK_KEY, Rig, until};

const SECRETS: [&str; 2] = ["hunter2secret", "wrong-pass-secret"];

/// Asserts that no output of gpuctl has a secret. `codes` are the exit codes of commands that take
/// or release the lock and of `lock status`; commands that only mention the lock end with 0.
#[track_caller]
fn keeps_secrets(rig: &Rig, codes: [i32; 2]) {
    let [acting, showing] = codes;
    for flags in ["", "-vv", "--json", "-vv --json"] {
        for (command, code) in [
            ("start vidi", acting),
            ("lock acquire --wait 200ms", acting),
            ("lock release --force", acting),
            ("lock status", showing),
            ("status", 0),
            ("config show", 0),
            ("config check", 0),
        ] {
            let script = format!("gpuctl {flags} {command} 2>&1; echo \"exit $?\"");
            let told = rig.shell(&script).env("GPUCTL_LOG", "trace").run().succeeds().text();
            assert!(told.ends_with(&format!("exit {code}\n")), "{command}: {told}");
            for secret in SECRETS {
                assert!(!told.contains(secret), "{command}: {told}");
            }
        }
    }
}

#[test]
fn row_20_a_server_that_does_not_let_us_in_is_told_and_no_secret_is_printed() {
    let rig = Rig::new();
    let [password, wrong] = SECRETS;
    let Some(redis) = rig.redis_with(&["--requirepass", password]) else { return };
    let vidi = vidi(&rig);
    let at = format!("127.0.0.1:{}/0", redis.port());

    rig.set("lock.url", format!("redis://{at}"));
    is_refused(&rig, &vidi, "permission", "wants a password");
    for user in ["", "default", "nobody"] {
        rig.set("lock.url", format!("redis://{user}:{wrong}@{at}"));
        is_refused(&rig, &vidi, "permission", "does not take the user and password");
        keeps_secrets(&rig, [77, 77]);
    }
    rig.set("lock.url", format!("redis://:{password}@{at}"));
    keeps_secrets(&rig, [0, 0]);
}

#[test]
fn row_20_a_password_for_a_server_that_has_none_is_told_and_not_printed() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    let vidi = vidi(&rig);
    rig.set("lock.url", format!("redis://:{}@127.0.0.1:{}/0", SECRETS[1], redis.port()));
    is_refused(&rig, &vidi, "permission", "does not take the user and password");
    keeps_secrets(&rig, [77, 77]);
}

#[test]
fn row_20_a_user_without_the_rights_is_told_which_it_needs_and_they_are_enough() {
    let rig = Rig::new();
    let password = SECRETS[0];
    let Some(redis) = rig.redis() else { return };
    let vidi = vidi(&rig);
    rig.set("lock.url", format!("redis://worker:{password}@127.0.0.1:{}/0", redis.port()));
    let login = format!(">{password}");
    let key = format!("~{LOCK_KEY}*");
    for rights in [&["-@all"][..], &["+@all"][..], &["+@all", "-set", &key][..]] {
        redis.cli(&[&["ACL", "SETUSER", "worker", "reset", "on", &login][..], rights].concat());
        let refused = rig.gpuctl("lock acquire --wait 1s").run().fails("permission");
        refused.stderr_has("does not let this user").stderr_has(&key);
        rig.gpuctl("start vidi").run().fails("permission").stderr_has("hint: its ACL must allow");
        rig.assert_no_process_of(&vidi);
        assert_eq!(redis.holder(), None);
    }
    status_tells_nothing_secret(&rig, password);

    let named = "eval type get set del exists pttl pexpire time lpush blpop";
    let named: Vec<String> = named.split(' ').map(|command| format!("+{command}")).collect();
    let mut rights = vec!["ACL", "SETUSER", "worker", "reset", "on", &login, &key, "+@sortedset"];
    rights.extend(named.iter().map(String::as_str));
    redis.cli(&rights);
    let acquire = rig.gpuctl("lock acquire me --no-wait").run();
    let token = acquire.succeeds().text();
    let waiter = rig.gpuctl("lock acquire next").spawn();
    until("it waits", || waiter.stderr().contains("held by me"));
    rig.gpuctl(&format!("lock release --token {token}")).run().succeeds().stdout("released\n");
    waiter.wait().succeeds().progress().stdout_has("\n");
    rig.gpuctl("lock status").run().exits(1).stdout_has("held by next");
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
    rig.gpuctl("run vidi -- true").run().succeeds().progress();
}

#[track_caller]
fn status_tells_nothing_secret(rig: &Rig, secret: &str) {
    let told = rig.shell("gpuctl status --json -vv 2>&1").run().succeeds().text();
    assert!(!told.contains(secret), "{told}");
}
