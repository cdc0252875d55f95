//! Takes the GPU lock in a test and inspects it, wherever the rig keeps it, mostly by calls of
//! gpuctl.

use crate::redis::{LOCK_KEY, Redis};
use crate::rig::Rig;
use crate::wait::until;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

/// Runs `prove` twice side by side: with the lock in a file (no Redis), and with the lock in Redis.
/// If Redis is not available, only the former is run, and the skip is reported.
pub fn on_both(prove: impl Fn(&Rig, Option<&Redis>) + Sync) {
    let in_redis = || {
        let rig = Rig::new();
        if let Some(redis) = rig.lock_in_redis() {
            prove(&rig, Some(&redis));
        }
    };
    thread::scope(|scope| {
        scope.spawn(in_redis);
        prove(&Rig::new(), None);
    });
}

impl Rig {
    /// Starts a Redis and keeps the rig's lock in it from now on. Returns `None`, after reporting
    /// the skip, if Redis is not available.
    #[track_caller]
    pub fn lock_in_redis(&self) -> Option<Redis> {
        let redis = self.redis()?;
        self.file("redis-port", &redis.port().to_string());
        self.set("lock.url", redis.url());
        Some(redis)
    }

    /// Runs `gpuctl lock acquire` with these words, and returns the token.
    #[track_caller]
    pub fn acquire(&self, words: &str) -> String {
        let printed = self.gpuctl(&format!("lock acquire {words} --quiet")).run().succeeds().text();
        printed.trim_end_matches('\n').to_owned()
    }

    #[track_caller]
    pub fn release(&self, token: &str) {
        let release = self.gpuctl(&format!("lock release --token {token}")).run();
        release.succeeds().stdout("released\n");
    }

    /// Returns the document of `gpuctl lock status --json`; fails the test unless somebody holds
    /// the lock.
    #[track_caller]
    pub fn lock_held(&self) -> Value {
        self.gpuctl("lock status --json").run().fails("no").json()
    }

    #[track_caller]
    pub fn assert_lock_is_free(&self) {
        let status = self.gpuctl("lock status --json").run().succeeds().json();
        assert_eq!((&status["holder"], &status["ttl"]), (&Value::Null, &(-2).into()), "{status}");
    }

    /// Asserts that nobody has the lock, not even a process that has died with it, which
    /// `gpuctl lock status` would call a free lock.
    #[track_caller]
    pub fn assert_lock_was_given_back(&self) {
        if let Ok(port) = fs::read_to_string(self.path("redis-port")) {
            let ask = self
                .shell(&format!("redis-cli -p {port} EXISTS {LOCK_KEY} {LOCK_KEY}:second"))
                .run();
            ask.succeeds().stdout("0\n");
        }
        // The kernel closes the files of a process that ends only after its program can no longer
        // be seen, so that the lock may outlive it by a moment.
        until("nobody has locked its file", || self.kernel_locks().is_empty());
    }

    /// Returns the kinds of locks that the kernel lists for the lock's file: "FLOCK", "OFDLCK", and
    /// a "POSIX" for each waiter. Lines of /proc/locks that differ only in their number count once,
    /// because the kernel may list a lock twice while others come and go anywhere on the machine.
    #[track_caller]
    pub fn kernel_locks(&self) -> Vec<String> {
        let Ok(meta) = fs::metadata(self.lock_file()) else { return Vec::new() };
        let inode = format!(":{}", meta.ino());
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let words = |line| str::split_whitespace(line).skip(1).collect::<Vec<_>>();
        let is_of_it = |words: &Vec<&str>| words.iter().any(|word| word.ends_with(&inode));
        let of_it: BTreeSet<_> = locks.lines().map(words).filter(is_of_it).collect();
        of_it.iter().map(|words| words[0].to_owned()).filter(|kind| kind != "->").collect()
    }

    /// Returns how many waiters stand in the line of the machine's lock.
    #[track_caller]
    pub fn machines_line(&self) -> usize {
        self.kernel_locks().iter().filter(|kind| *kind == "POSIX").count()
    }

    /// Reports whether `gpuctl lock status` says that the lock is free now; for use in `until`.
    #[track_caller]
    pub fn lock_is_free(&self) -> bool {
        let script = "gpuctl lock status >/dev/null; echo $?";
        match self.shell(script).run().succeeds().text().as_str() {
            "0\n" => true,
            "1\n" => false,
            code => panic!("`lock status` exits {code}"),
        }
    }
}
