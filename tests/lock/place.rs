//! Where the lock is kept, and that its files are nobody else's business: made private, refused where others could
//! have put something else in their place, and never written through a link.

use rig::{Rig, unconfigured_or_skip, until};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

fn url(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A lock that nobody has used yet, in a folder of its own.
fn fresh_lock(rig: &Rig) -> PathBuf {
    let folder = rig.path("locks");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    rig.set("lock.url", url(&folder.join("lock")));
    folder.join("lock")
}

fn beside(lock: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}{suffix}", lock.display()))
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
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
    let records = || [&ours, &configured, &shared].map(|lock| beside(lock, ".json").exists());
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
    wrong("GPUCTL_LOCK_URL", "redis://:hunter2@h/x", "no Redis URL (Invalid database number)");
    wrong("REDIS_URL", "h:6379", other);
    // What is not asked may be wrong.
    rig.set("lock.url", url(&rig.path("locks/lock")));
    rig.gpuctl("lock status").env("REDIS_URL", "h:6379").run().succeeds().stdout("free\n");
}

#[test]
fn the_home_folder_may_stand_behind_the_scheme() {
    let rig = Rig::new();
    rig.set("lock.url", "file://~/gl");
    rig.acquire("me");
    assert!(rig.path("home/gl.json").is_file());
    let Some(redis) = rig.redis() else { return };
    symlink(redis.socket(), rig.path("home/socket")).unwrap();
    rig.set("lock.url", "redis+unix://~/socket?db=0");
    rig.acquire("me");
    assert!(redis.holder().unwrap().starts_with("me|gpuctl1|"));
}

#[test]
fn without_an_url_the_lock_is_in_the_users_runtime_folder() {
    if !unconfigured_or_skip() {
        return;
    }
    let rig = Rig::new();
    let is_root = rustix::process::geteuid().is_root();
    // Root's place is the machine's, which a test does not touch.
    let other = "unshare --user --map-user=1000 --map-group=1000 ";
    let user = if is_root { other } else { "" };
    if is_root && rig.shell(&format!("{other} true 2>&1 || echo no")).run().succeeds().text() != ""
    {
        return rig::skip_or_fail("namespaces", "user namespace");
    }
    let gpuctl = |words: &str| {
        let gpuctl = rig.shell(&format!("{user}gpuctl {words}")).env_remove("REDIS_URL");
        gpuctl.env_remove("GPUCTL_CONFIG")
    };
    gpuctl("lock acquire me").run().succeeds().text();
    let lock = rig.path("run/gpuctl/gpu_mutex_v2.lock");
    assert!(lock.is_file() && beside(&lock, ".json").is_file());
    assert_eq!(mode(lock.parent().unwrap()), 0o700);
    gpuctl("lock acquire other --no-wait").run().fails("lock_busy").stderr_has("held by me");

    // A relative one is none, and nothing is made in the current folder.
    let user_1000_has_one = Path::new("/run/user/1000").exists();
    if is_root && !user_1000_has_one {
        let lost = gpuctl("lock status").env("XDG_RUNTIME_DIR", "here").run();
        lost.fails("config").stderr_has("XDG_RUNTIME_DIR").stderr_has("lock.url");
        assert!(!rig.path("home/here").exists());
    }
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

#[test]
fn what_is_made_is_private_whatever_the_umask() {
    for umask in ["000", "022", "077"] {
        let rig = Rig::new();
        let lock = rig.path("new/er/lock");
        rig.set("lock.url", url(&lock));
        rig.shell(&format!("umask {umask} && gpuctl lock acquire me")).run().succeeds().text();
        let script = format!("umask {umask} && exec gpuctl lock acquire other --wait 50");
        let waiter = rig.shell(&script).spawn();
        until("it waits", || waiter.stderr().contains("held by me"));
        let queue = beside(&lock, ".queue");
        let ticket = fs::read_dir(&queue).unwrap().next().unwrap().unwrap().path();
        for folder in [&rig.path("new"), lock.parent().unwrap(), &queue] {
            assert_eq!(mode(folder), 0o700, "{} under {umask}", folder.display());
        }
        for file in [&lock, &beside(&lock, ".json"), &ticket, &rig.state_dir().join("fence")] {
            assert_eq!(mode(file), 0o600, "{} under {umask}", file.display());
        }
        rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");
        waiter.wait().succeeds().progress().text();
        assert_eq!(fs::read_dir(&queue).unwrap().count(), 0);
    }
}

/// Whatever is asked of this lock is refused by that code, and nothing is started.
#[track_caller]
fn assert_refused(rig: &Rig, code: &str, why: &str) {
    for command in ["lock acquire me --no-wait", "lock acquire me --wait 5", "start vidi"] {
        let outcome = rig.gpuctl(&format!("{command} --quiet")).run();
        outcome.fails(code).stderr_has("the lock").stderr_has(why).stderr_has("hint:");
    }
    assert_eq!(rig.card.used_mb(), 0);
}

#[test]
fn a_folder_that_others_may_write_to_is_refused() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let lock = fresh_lock(&rig);
    for open in [0o777, 0o770, 0o702, 0o1777] {
        fs::set_permissions(lock.parent().unwrap(), Permissions::from_mode(open)).unwrap();
        assert_refused(&rig, "permission", "others may write");
        rig.gpuctl("lock status").run().fails("permission").stderr_has("others may write");
        rig.gpuctl("lock release --force").run().fails("permission").stderr_has("chmod go-w");
        let shown = rig.gpuctl("status --json").run().succeeds().json()["lock"].take();
        assert!(shown["error"].as_str().unwrap().contains("others may write"), "{shown}");
        assert!(shown["ttl"].is_null() && shown["holder"].is_null(), "{shown}");
    }
    assert_eq!(fs::read_dir(lock.parent().unwrap()).unwrap().count(), 0);
}

#[test]
fn a_folder_of_another_user_is_refused() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let lock = fresh_lock(&rig);
    if !rig::root_or_skip() {
        return;
    }
    chown(lock.parent().unwrap(), Some(65534), None).unwrap();
    assert_refused(&rig, "permission", "belongs to another user");
}

#[test]
fn a_link_to_a_folder_is_refused() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let lock = fresh_lock(&rig);
    let (folder, elsewhere) = (lock.parent().unwrap(), rig.path("elsewhere"));
    fs::rename(folder, &elsewhere).unwrap();
    symlink(&elsewhere, folder).unwrap();
    assert_refused(&rig, "io", "a link to one");
    assert_eq!(fs::read_dir(&elsewhere).unwrap().count(), 0);
    // A file in the folder's place neither.
    fs::remove_file(folder).unwrap();
    fs::write(folder, "precious").unwrap();
    assert_refused(&rig, "io", "not a folder");
    assert_eq!(fs::read_to_string(folder).unwrap(), "precious");
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
fn whatever_is_no_file_in_the_place_of_the_record_is_refused() {
    let rig = Rig::new();
    rig.native("vidi").add();
    let lock = fresh_lock(&rig);
    let record = beside(&lock, ".json");
    let precious = rig.file("precious", "{\"fence\": 1}");
    symlink(&precious, &record).unwrap();
    assert_refused(&rig, "io", "lock.json");
    rig.gpuctl("lock status").run().fails("io").stderr_has("lock.json");
    fs::remove_file(&record).unwrap();
    rig.shell(&format!("mkfifo {}", record.display())).run().succeeds();
    assert_refused(&rig, "io", "lock.json");
    rig.gpuctl("lock status").run().fails("io").stderr_has("lock.json");
    rig.gpuctl("status").run().succeeds().stdout_has("lock.json");
    fs::remove_file(&record).unwrap();
    fs::create_dir(&record).unwrap();
    assert_refused(&rig, "io", "lock.json");
    assert_eq!(fs::read_to_string(precious).unwrap(), "{\"fence\": 1}");
}

#[test]
fn nothing_is_written_through_a_link() {
    let rig = Rig::new();
    let lock = fresh_lock(&rig);
    let precious = rig.file("precious", "precious");
    let draft = beside(&lock, ".json.new");
    symlink(&precious, &draft).unwrap();
    rig.gpuctl("lock acquire me").run().fails("io").stderr_has("lock.json");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    fs::remove_file(&draft).ok();
    rig.shell(&format!("mkfifo {}", draft.display())).run().succeeds();
    rig.gpuctl("lock acquire me").run().fails("io").stderr_has("lock.json");
    fs::remove_file(&draft).ok();
    symlink(&precious, rig.state_dir().join("fence")).unwrap();
    let acquire = rig.gpuctl("lock acquire me").run().succeeds();
    acquire.stderr_has("the lock's fence cannot be remembered").text();
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
}

#[test]
fn nothing_is_removed_but_what_waiters_have_left() {
    let rig = Rig::new();
    let lock = fresh_lock(&rig);
    let queue = beside(&lock, ".queue");
    let elsewhere = rig.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let files = ["thesis.tex", "00000000000000000001-1"].map(|name| elsewhere.join(name));
    files.iter().for_each(|file| fs::write(file, "precious").unwrap());
    symlink(&elsewhere, &queue).unwrap();
    rig.gpuctl("lock acquire me --no-wait").run().fails("io").stderr_has("lock.queue");
    assert!(files.iter().all(|file| file.exists()));

    fs::remove_file(&queue).unwrap();
    fs::rename(&elsewhere, &queue).unwrap();
    fs::set_permissions(&queue, Permissions::from_mode(0o700)).unwrap();
    rig.acquire("me --no-wait");
    assert!(queue.join("thesis.tex").exists());
    assert!(!queue.join("00000000000000000001-1").exists());
}
