//! Tests of where the lock is kept: in one file for everybody on the machine or in a file of one's
//! own, never through a link, and with nothing but a file in its place.

use rig::{Invocation, Rig, skip_or_fail, until};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// Configures a lock that nobody has used yet, in a folder of its own, and returns its path.
fn fresh_lock(rig: &Rig) -> PathBuf {
    let folder = rig.path("locks");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    rig.set("lock.url", url(&folder.join("lock")));
    folder.join("lock")
}

#[test]
fn the_variable_of_its_own_stands_over_the_configuration_and_that_over_redis_url() {
    let rig = Rig::new();
    let [ours, configured, shared] =
        ["ours", "configured", "shared"].map(|name| rig.path(&format!("{name}/lock")));
    let acquire = |own: &str| {
        let acquire = rig.gpuctl("lock acquire me").env("REDIS_URL", url(&shared));
        acquire.env("GPUCTL_LOCK_URL", own).run().succeeds().text()
    };
    let records = || [&ours, &configured, &shared].map(|lock| lock.exists());
    acquire("");
    assert_eq!(records(), [false, false, true]);
    rig.set("lock.url", url(&configured));
    acquire("");
    assert_eq!(records(), [false, true, true]);
    acquire(&url(&ours));
    assert_eq!(records(), [true, true, true]);
    // Each is a lock of its own, and none is taken twice.
    let again = rig.gpuctl("lock acquire other --no-wait").env("GPUCTL_LOCK_URL", url(&ours));
    again.run().fails("lock_busy").stderr_has("held by me");
}

#[test]
fn a_variable_that_names_no_place_is_told_by_its_name() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let wrong = |variable: &str, url: &str, why: &str| {
        for command in ["config check", "lock status", "start vidi"] {
            let told = rig.gpuctl(command).env(variable, url).run().fails("config").stderr_text();
            assert!(told.starts_with(&format!("gpuctl: ${variable}: {why}")), "{told}");
            assert!(!told.contains("gpuctl.toml") && !told.contains("hunter2"), "{told}");
        }
    };
    let other = "not a redis://, rediss://, redis+unix:// or file:///path URL";
    wrong("GPUCTL_LOCK_URL", "http://:hunter2@h/1", other);
    wrong("GPUCTL_LOCK_URL", "redis://:hunter2@h/x", "not a Redis URL (Invalid database number)");
    wrong("REDIS_URL", "h:6379", other);
    // A variable that is not used may be wrong.
    rig.set("lock.url", url(&rig.path("locks/lock")));
    rig.gpuctl("lock status").env("REDIS_URL", "h:6379").run().succeeds().stdout("free\n");
}

#[test]
fn the_home_folder_may_stand_behind_the_scheme() {
    let rig = Rig::new();
    rig.set("lock.url", "file://~/gl");
    rig.acquire("me");
    assert!(rig.path("home/gl").is_file());
    let Some(redis) = rig.redis() else { return };
    symlink(redis.socket(), rig.path("home/socket")).unwrap();
    rig.set("lock.url", "redis+unix://~/socket?db=0");
    rig.acquire("me");
    assert!(redis.holder().unwrap().starts_with("me|gpuctl1|"));
}

/// Runs a script on a machine whose folders for locks are empty: `/run/lock`, with this mode, and
/// `/var/tmp`. Returns its output, or `None`, after reporting the skip, if a test cannot have that.
#[track_caller]
fn on_a_machine(rig: &Rig, mode: &str, script: &str) -> Option<String> {
    let mounts = format!(
        "mount -t tmpfs -o mode={mode} none /run/lock && mount -t tmpfs -o mode=1777 none /var/tmp"
    );
    let with = |script: &str| format!("unshare --mount sh -c '{mounts} && {script}' 2>&1");
    if rig.shell(&format!("{} || echo no", with("true"))).run().succeeds().text() != "" {
        skip_or_fail("namespaces", "file system that can be mounted");
        return None;
    }
    let shell = rig.shell(&with(script)).env_remove("REDIS_URL").env_remove("XDG_RUNTIME_DIR");
    Some(shell.env_remove("GPUCTL_CONFIG").run().succeeds().text())
}

#[test]
fn without_an_url_it_is_a_file_for_everybody_where_everybody_may_make_files() {
    let rig = Rig::new();
    let script = "umask 077
        gpuctl lock acquire me >/dev/null && ls -A /run/lock /var/tmp && stat -c %a /run/lock/*";
    let in_run = "/run/lock:\ngpuctl-gpu_mutex_v2.lock\n\n/var/tmp:\n666\n";
    let Some(told) = on_a_machine(&rig, "1777", script) else { return };
    assert_eq!(told, in_run);
    // Some distributions let only root write to `/run/lock`, where others could make nothing.
    let script = script.replace("/run/lock/*", "/var/tmp/*");
    let told = on_a_machine(&rig, "0755", &script).unwrap();
    assert_eq!(told, "/run/lock:\n\n/var/tmp:\ngpuctl-gpu_mutex_v2.lock\n666\n");
}

#[test]
fn row_67_root_and_a_user_exclude_each_other_with_nothing_configured() {
    let rig = Rig::new();
    // The users share only programs and folders outside of the rig's folder, which is closed to
    // others.
    let script = "cp $(realpath $(command -v gpuctl)) /var/tmp/gpuctl
        chmod 755 /var/tmp/gpuctl; export HOME=/var/tmp GPUCTL_STATE_DIR=; cd /
        as() { id=$1; shift; setpriv --reuid=$id --regid=$id --clear-groups /var/tmp/gpuctl $*; }
        for pair in \"0 65534\" \"65534 0\" \"65534 65533\"; do
            set -- $pair
            token=$(as $1 lock acquire user$1 --ttl 1h) || exit
            as $2 lock acquire other --no-wait; echo $?
            as $2 lock release --token $token
            as $2 lock acquire other >/dev/null && as $2 lock release --force
        done
        cat /proc/sys/fs/protected_regular >&2";
    let Some(told) = on_a_machine(&rig, "1777", script) else { return };
    for user in ["0", "65534"] {
        let named = format!("gpuctl: the GPU lock is held by user{user} (");
        assert!(told.contains(&named), "{told}");
    }
    assert_eq!(told.matches("\n75\nreleased\nreleased\n").count(), 3, "{told}");
}

#[test]
fn a_lock_of_another_key_is_another_file() {
    let rig = Rig::new();
    let script = "gpuctl lock acquire me >/dev/null
        echo \"[lock]\" >/var/tmp/c.toml; echo \"key = \\\"card/1\\\"\" >>/var/tmp/c.toml
        gpuctl --config /var/tmp/c.toml lock status && ls /run/lock
        gpuctl --config /var/tmp/c.toml lock acquire other >/dev/null && ls /run/lock";
    let Some(told) = on_a_machine(&rig, "1777", script) else { return };
    let own = "gpuctl-gpu_mutex_v2.lock\n";
    assert_eq!(told, format!("free\n{own}gpuctl-card_1.lock\n{own}"));
}

#[test]
fn a_lock_of_another_key_is_another_lock() {
    let rig = Rig::new();
    let Some(redis) = rig.lock_in_redis() else { return };
    rig.acquire("me");
    rig.set("lock.key", "another");
    rig.assert_lock_is_free();
    rig.acquire("other --no-wait");
    assert!(redis.holder().unwrap().starts_with("me|gpuctl1|"));
    assert!(redis.cli(&["GET", "another"]).starts_with("other|gpuctl1|"));
}

/// Asserts that commands that need this lock are refused with this code, and that nothing is
/// started.
#[track_caller]
fn assert_refused(rig: &Rig, code: &str, why: &str) {
    for command in ["lock acquire me --no-wait", "lock acquire me --wait 5", "start vidi"] {
        let outcome = rig.gpuctl(&format!("{command} --quiet")).run();
        outcome.fails(code).stderr_has("the lock").stderr_has(why).stderr_has("hint:");
    }
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn whatever_is_no_file_in_the_place_of_the_locks_file_is_refused() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let lock = fresh_lock(&rig);
    let precious = rig.file("precious", "precious");
    for target in [&precious, &rig.path("nothing")] {
        symlink(target, &lock).unwrap();
        assert_refused(&rig, "io", "lock");
        fs::remove_file(&lock).unwrap();
    }
    assert!(!rig.path("nothing").exists());
    rig.shell(&format!("mkfifo {}", lock.display())).run().succeeds();
    assert_refused(&rig, "io", "not a regular file");
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    assert_refused(&rig, "io", "lock");
    fs::remove_dir(&lock).unwrap();
    assert_eq!(fs::read_to_string(precious).unwrap(), "precious");
    rig.acquire("me --no-wait");
}

#[test]
fn a_file_that_may_not_be_opened_is_told() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let lock = fresh_lock(&rig);
    rig.acquire("me --ttl 1h");
    fs::set_permissions(&lock, Permissions::from_mode(0o600)).unwrap();
    // The file belongs to an unknown user from now on.
    if std::os::unix::fs::chown(&lock, Some(65533), None).is_err() {
        return skip_or_fail("root", "root");
    }
    let without = "setpriv --inh-caps=-all --bounding-set=-all gpuctl lock acquire other --no-wait";
    let told = rig.shell(without).run().fails("permission");
    told.stderr_has("the lock").stderr_has("chmod 666").stdout("");
}

#[test]
fn a_file_that_is_removed_while_one_waits_for_it_is_waited_for_anew() {
    let rig = Rig::new();
    let lock = fresh_lock(&rig);
    rig.acquire("me --ttl 1h");
    let has_it = rig.path("has-it");
    let work = format!("sh -c \"touch {}; exec sleep 1000\"", has_it.display());
    let holder = rig.by_hand(&format!("flock --no-fork {} {work}", lock.display()));
    // The file is removed only after that: flock(1) would make and lock another one.
    until("it is locked", || has_it.exists());
    let waiter = rig.gpuctl("lock acquire next --wait 50").spawn();
    until("it waits", || waiter.stderr().contains("waiting for the GPU lock"));
    fs::remove_file(&lock).unwrap();
    let token = rig.acquire("other --ttl 1h");
    drop(holder);
    until("it waits for the other", || waiter.stderr().contains("held by other"));
    rig.release(&token);
    waiter.wait().succeeds().progress().stdout_has("\n");
    assert_eq!(rig.lock_held()["holder"], "next");
}

#[test]
fn a_redis_is_told_with_where_its_url_is_from() {
    let rig = Rig::new();
    let url = format!("redis://127.0.0.1:{}", rig.port());
    for variable in ["REDIS_URL", "GPUCTL_LOCK_URL"] {
        let told = rig.gpuctl("lock acquire").env(variable, &url).run().fails("unavailable");
        let told = told.stderr_has(&format!("(from ${variable}) cannot be reached"));
        drop(told.stderr_has(&format!("${variable}")));
        let status = rig.gpuctl("status").env(variable, &url).run().succeeds();
        status.stdout_has(&format!("(from ${variable})"));
    }
    rig.set("lock.url", url.as_str());
    let told = rig.gpuctl("lock acquire").run().fails("unavailable");
    told.stderr_has("(from lock.url) cannot be reached").stderr_has("correct lock.url");
}

#[test]
fn a_lock_that_is_in_redis_by_chance_says_so() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    let status = |variable: &str| rig.gpuctl("lock status").env(variable, redis.url()).run();
    status("REDIS_URL").succeeds().stdout("free, in Redis (from $REDIS_URL)\n");
    status("GPUCTL_LOCK_URL").succeeds().stdout("free\n");
    let by_chance = |call: Invocation| call.env("REDIS_URL", redis.url());
    by_chance(rig.gpuctl("lock release --force")).run().succeeds().stdout_has("(from $REDIS_URL)");
    let token = by_chance(rig.gpuctl("lock acquire me --ttl 1h")).run().succeeds().text();
    let here = by_chance(rig.gpuctl("lock acquire other --no-wait")).run().fails("lock_busy");
    here.stderr_has(", on this machine; it is kept in Redis (from $REDIS_URL)\n");
    let there = by_chance(rig.elsewhere("lock acquire other --wait 1")).run().fails("lock_busy");
    let told = there.stderr_text();
    assert!(
        told.contains("left), in Redis (from $REDIS_URL), and the wait of 1s is over"),
        "{told}"
    );
    assert!(told.contains("waiting for the GPU lock, held by me"), "{told}");
    redis.cli(&["FLUSHALL"]);
    let lost =
        by_chance(rig.gpuctl("run --vram 10 -- true")).env("GPUCTL_LOCK_TOKEN", token.trim());
    lost.run().fails("lock_lost").stderr_has(", in Redis (from $REDIS_URL): it has ended");
}

#[test]
fn a_lock_that_is_lost_in_a_redis_by_chance_is_told_with_where_its_url_is_from() {
    let rig = Rig::new();
    let Some(redis) = rig.redis() else { return };
    let run = rig.gpuctl("run --vram 10 -- sleep 1000").env("REDIS_URL", redis.url()).spawn();
    until("it runs", || redis.holder().is_some());
    redis.cli(&["FLUSHALL"]);
    redis.legacy_acquire("other");
    let lost = run.wait().fails("lock_lost");
    lost.stderr_has("the GPU lock is lost, in Redis (from $REDIS_URL): it is held by other");
}
