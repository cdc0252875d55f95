//! A machine for tests of the lock, either with the lock in a file or with the lock in Redis. If
//! both places make the same promise, one test proves it of both: `in_both_places([|place| …])`.

use rig::{LOCK_KEY, Redis, Rig, Running, until};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::thread;

/// A rig whose lock is in a file or in Redis.
pub struct Place {
    pub rig: Rig,
    /// The Redis that holds the lock, or `None` if the lock is in a file.
    redis: Option<Redis>,
}

/// Runs each test with a lock file and with a lock in Redis. All run side by side, because most of
/// these tests take much time and little work.
pub fn in_both_places<const N: usize>(tests: [fn(&Place); N]) {
    thread::scope(|scope| {
        for (name, has_redis) in [("a lock file", false), ("Redis", true)] {
            for test in tests {
                let run = move || Place::new(has_redis).iter().for_each(test);
                thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, run).unwrap();
            }
        }
    });
}

/// Runs each test with a lock in Redis, all side by side.
pub fn in_redis<const N: usize>(tests: [fn(&Place); N]) {
    thread::scope(|scope| {
        for test in tests {
            scope.spawn(move || Place::new(true).iter().for_each(test));
        }
    });
}

impl Place {
    fn new(has_redis: bool) -> Option<Place> {
        let rig = Rig::new();
        let redis = if has_redis { Some(rig.redis()?) } else { None };
        redis.iter().for_each(|redis| rig.set("lock.url", redis.url()));
        Some(Place { rig, redis })
    }

    /// Runs `lock acquire` with these arguments and returns the token.
    #[track_caller]
    pub fn acquire(&self, words: &str) -> String {
        let acquired = self.rig.gpuctl(&format!("lock acquire {words}")).run();
        acquired.succeeds().progress().text().trim_end().to_owned()
    }

    #[track_caller]
    pub fn release(&self, token: &str) {
        let release = self.rig.gpuctl(&format!("lock release --token {token}")).run();
        release.succeeds().stdout("released\n");
    }

    /// Starts a `lock acquire` and returns when it stands last in line and has reported whom it
    /// waits for.
    #[track_caller]
    pub fn waiter(&self, words: &str) -> Running {
        let before = self.waiters();
        let waiter = self.rig.gpuctl(&format!("lock acquire {words}")).spawn();
        until("it stands in line", || {
            self.waiters() > before && waiter.stderr().contains("waiting for the GPU lock")
        });
        waiter
    }

    /// Returns the number of waiters in this machine's line.
    #[track_caller]
    pub fn waiters(&self) -> usize {
        self.rig.machines_line()
    }

    /// Returns the document that `lock status --json` prints, whether the lock is held or not.
    #[track_caller]
    pub fn status(&self) -> Value {
        self.rig.shell("gpuctl lock status --json || test $? = 1").run().succeeds().json()
    }

    #[track_caller]
    pub fn holder(&self) -> Option<String> {
        self.status()["holder"].as_str().map(str::to_owned)
    }

    fn server(&self) -> &Redis {
        self.redis.as_ref().expect("a lock in Redis")
    }

    /// Deletes the lock in Redis behind its holder's back.
    #[track_caller]
    pub fn vanishes(&self) {
        assert_eq!(self.server().cli(&["DEL", LOCK_KEY]), "1");
    }

    /// Deletes everything in Redis.
    #[track_caller]
    pub fn forgets(&self) {
        self.server().cli(&["FLUSHALL"]);
    }

    /// Takes a lock that was deleted, as a client from before gpuctl does.
    #[track_caller]
    pub fn is_taken_by(&self, name: &str) {
        assert!(self.server().legacy_acquire(name));
    }

    /// Makes the lock that of a holder on another machine, with the time to live that it has.
    #[track_caller]
    pub fn moves_to_another_host(&self) {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let value = self.server().holder().unwrap();
        assert!(value.contains(boot.trim_end()), "no boot id in {value}");
        let value = value.replace(boot.trim_end(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(self.server().cli(&["SET", LOCK_KEY, &value, "XX", "KEEPTTL"]), "OK");
    }

    /// Returns the sorted names of everything that exists of the lock and its waiters: the keys in
    /// Redis, or the files and the kernel's locks.
    #[track_caller]
    pub fn remains(&self) -> Vec<String> {
        let mut names = match &self.redis {
            Some(redis) => redis.cli(&["KEYS", "*"]).lines().map(str::to_owned).collect(),
            None => [names_in(self.rig.path("run")), self.rig.kernel_locks()].concat(),
        };
        names.sort();
        names
    }
}

fn names_in(folder: PathBuf) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
