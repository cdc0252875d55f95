//! Tests of the file of the machine's lock (rows 25 to 27): a record that names a process that is
//! no more, a damaged record, a full disk, and processes that could inherit the file's descriptor.

use rig::{Rig, Script, Service, until};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::FileExt;

fn record(rig: &Rig) -> Vec<u8> {
    fs::read(rig.lock_file()).unwrap()
}

/// Replaces the record in the lock's file.
fn forge(rig: &Rig, content: &[u8]) {
    // The record is overwritten and cut to length afterwards: an empty file would be a lock that
    // nobody holds.
    let file = fs::OpenOptions::new().write(true).open(rig.lock_file()).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.set_len(content.len() as u64).unwrap();
}

/// Gives the record's holder another start time, as if its PID were now another process's.
fn forge_start(rig: &Rig) {
    let mut document: Value = serde_json::from_slice(&record(rig)).unwrap();
    document["pid_start"] = (document["pid_start"].as_u64().unwrap() + 1).into();
    forge(rig, format!("{document}\n").as_bytes());
}

#[test]
fn row_25_a_holder_whose_pid_is_anothers_now_is_stale() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    let mut job = rig.by_hand("sleep 1000");
    let take = || rig.gpuctl(&format!("lock acquire me --ttl 1h --json --pid {}", job.pid())).run();

    let before = take().succeeds().json();
    rig.gpuctl("lock acquire other --no-wait").run().fails("lock_busy").stderr_has("me");
    forge_start(&rig);
    rig.assert_lock_is_free();
    let after = rig.gpuctl("lock acquire other --no-wait --json").run().succeeds().json();
    assert!(after["fence"].as_u64() > before["fence"].as_u64(), "{before} {after}");
    rig.gpuctl("lock release --force").run().succeeds().stdout("released\n");

    take().succeeds().json();
    forge_start(&rig);
    let start = rig.gpuctl("start vidi --no-wait").run();
    start.succeeds().stdout_has("started vidi").progress();
    assert!(vidi.is_healthy());

    // A waiter is not left waiting either.
    take().succeeds().json();
    let waiter = rig.gpuctl("lock acquire next --wait 50").spawn();
    until("it waits", || waiter.stderr().contains("held by me"));
    forge_start(&rig);
    waiter.wait().succeeds().progress().text();
    assert!(job.is_alive());
}

#[test]
fn row_25_what_was_taken_by_hand_before_the_last_boot_is_over() {
    let rig = Rig::new();
    rig.acquire("me --ttl 1h");
    let mut document: Value = serde_json::from_slice(&record(&rig)).unwrap();
    document["boot"] = "00000000-0000-0000-0000-000000000000".into();
    forge(&rig, format!("{document}\n").as_bytes());
    rig.assert_lock_is_free();
    rig.acquire("next --no-wait");
    assert_eq!(rig.lock_held()["holder"], "next");
}

/// Returns contents that are no record, among them the whole record cut short.
fn damaged(whole: &[u8]) -> Vec<Vec<u8>> {
    let cut = [1, 2, 17, whole.len() / 2, whole.len() - 2];
    let mut damaged: Vec<Vec<u8>> = cut.iter().map(|at| whole[..*at].to_vec()).collect();
    let document: Value = serde_json::from_slice(whole).unwrap();
    let without = |field: &str| {
        let mut document = document.clone();
        document.as_object_mut().unwrap().remove(field);
        document.to_string().into_bytes()
    };
    damaged.extend(["holder", "fence", "token", "since", "boot"].map(without));
    for text in [
        "{}",
        "null",
        "[]",
        "42",
        "\"fence\"",
        "{\"fence\": \"1\"}",
        "{\"fence\": -1}",
        "{\"fence\": 1, \"holder\": \"me\"}",
        "garbage",
        "\0\0\0\0\0\0\0\0",
        "{\"fence\": 1}}",
    ] {
        damaged.push(text.as_bytes().to_vec());
    }
    damaged.push(b"\xff\xfe\x00holder".to_vec());
    damaged.push([b"garbage\n", whole].concat());
    damaged
}

#[test]
fn row_26_a_damaged_record_keeps_everybody_out_until_it_is_cleared() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").phases([2]).add();
    let token = rig.acquire("me --ttl 1h");
    let whole = record(&rig);
    let mut fence = rig.lock_held()["fence"].as_u64();
    for content in damaged(&whole) {
        let shown = String::from_utf8_lossy(&content).into_owned();
        forge(&rig, &content);
        for command in ["lock acquire other --no-wait", "start vidi", "lock status"] {
            let outcome = rig.gpuctl(&format!("{command} --quiet")).run().fails("config");
            let told = outcome.stderr_has("run/lock").stderr_has("damaged");
            drop(told.stderr_has("lock release --force"));
            assert_eq!(record(&rig), content, "{command}: {shown}");
        }
        rig.assert_no_process_of(&vidi);
        let status = rig.gpuctl("status --json").run().succeeds().json();
        let lock = &status["lock"];
        assert!(lock["error"].as_str().unwrap().contains("damaged"), "{lock}: {shown}");
        assert_eq!((&lock["holder"], &lock["ttl"]), (&Value::Null, &Value::Null), "{shown}");

        let forced = rig.gpuctl("lock release --force --json").run().succeeds().json();
        assert_eq!(forced, json!({"released": true}), "{shown}");
        let next = rig.gpuctl("lock acquire next --no-wait --json").run().succeeds().json();
        assert!(next["fence"].as_u64() > fence, "{fence:?} {next}: {shown}");
        fence = next["fence"].as_u64();
    }
    // A stop, a release with a token and a wait in line are refused as well.
    forge(&rig, b"garbage");
    for command in ["stop vidi", "prepare-phase 2", "release-all", "run vidi -- touch ran"] {
        rig.gpuctl(command).run().fails("config").stderr_has("damaged");
    }
    let release = rig.gpuctl(&format!("lock release --token {token}")).run();
    release.fails("config").stderr_has("damaged");
    rig.gpuctl("lock acquire me --wait 50").run().fails("config").stderr_has("damaged");
    let under = rig.gpuctl("start vidi").env("GPUCTL_LOCK_TOKEN", &token).run();
    under.fails("config").stderr_has("damaged");
    assert_eq!(record(&rig), b"garbage");
    assert!(!rig.path("home/ran").exists());
}

#[test]
fn row_26_a_record_damaged_while_one_waits_ends_the_wait() {
    let rig = Rig::new();
    rig.acquire("me --ttl 1h");
    let waiter = rig.gpuctl("lock acquire next --wait 50").spawn();
    until("it waits", || waiter.stderr().contains("held by me"));
    forge(&rig, b"{\"fence\": ");
    waiter.wait().fails("config").stderr_has("damaged");
    assert_eq!(rig.kernel_locks(), [""; 0]);
}

#[test]
fn row_26_on_a_full_disk_nothing_is_taken_that_cannot_be_written_down() {
    let rig = Rig::new();
    let vidi = rig.native("vidi").add();
    // The file system is the test's own and ends with the last process in it.
    let mount = "mount -t tmpfs -o mode=0700,size=64k none \"$XDG_RUNTIME_DIR\"";
    let with = |script: &str| format!("unshare --mount sh -c '{mount} && {script}' 2>&1");
    if rig.shell(&format!("{} || echo no", with("true"))).run().succeeds().text() != "" {
        return rig::skip_or_fail("namespaces", "file system that can be mounted");
    }
    let script = r#"
        cd "$XDG_RUNTIME_DIR"
        head -c 1M /dev/zero >filler 2>/dev/null
        gpuctl lock acquire next --no-wait >"$HOME/told" 2>&1; echo "next: $?"
        gpuctl start vidi --quiet >"$HOME/told-start" 2>&1; echo "start: $?"
        gpuctl lock status
        rm filler
        token=$(gpuctl lock acquire me) && echo taken
        head -c 1M /dev/zero >filler 2>/dev/null
        gpuctl lock release --token $token
        gpuctl lock status
        gpuctl lock acquire me --no-wait >/dev/null && echo again
        ls
    "#;
    let told = rig.shell(&with(script)).run().succeeds().text();
    let expected = "next: 74\nstart: 74\nfree\ntaken\nreleased\nfree\nagain\nfiller\nlock\n";
    assert_eq!(told, expected);
    for file in ["home/told", "home/told-start"] {
        let told = fs::read_to_string(rig.path(file)).unwrap();
        assert!(told.contains("No space left on device"), "{told}");
    }
    rig.assert_no_process_of(&vidi);
}

/// Asserts that no process of the service has one of the lock's files open.
#[track_caller]
fn assert_no_descriptor(rig: &Rig, service: &Service) {
    let processes = rig.processes_of(service);
    assert!(!processes.is_empty());
    for pid in processes {
        for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
            let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
            assert!(!target.starts_with(rig.path("run")), "{pid} has {} open", target.display());
        }
    }
}

#[test]
fn row_27_a_service_has_none_of_the_locks_files_open() {
    for script in [Script::Foreground, Script::Background, Script::Detached, Script::Daemon] {
        let rig = Rig::new();
        // The warm-up is slow enough for the service to start while gpuctl holds the lock.
        let vidi = rig.native("vidi").script(script).server("--fork 2 --warmup 200ms").add();
        rig.gpuctl("start vidi").run().succeeds().stdout_has("started vidi").progress();
        assert_no_descriptor(&rig, &vidi);
        rig.assert_lock_was_given_back();
        rig.release(&rig.acquire("me --no-wait"));
    }
}
