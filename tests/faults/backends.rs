//! A machine for tests of the lock, once with the lock in a file and once with it in Redis: where both make the same
//! promise, one test holds both to it: `in_both_places([|place| …])`

use rig::{LOCK_KEY, Redis, Rig, Running, until};
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::thread;

pub struct Place {
    pub rig: Rig,
    /// None for the file.
    redis: Option<Redis>,
}

/// All side by side, since much of what is proved here takes time and no work.
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

/// The same of Redis alone.
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

    /// `lock acquire`; gives the token.
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

    /// `lock acquire` of one who stands in line now, the last, and has told for whom it waits.
    #[track_caller]
    pub fn waiter(&self, words: &str) -> Running {
        let before = self.waiters();
        let waiter = self.rig.gpuctl(&format!("lock acquire {words}")).spawn();
        until("it stands in line", || {
            self.waiters() > before && waiter.stderr().contains("waiting for the GPU lock")
        });
        waiter
    }

    /// How many stand in the line of this machine.
    #[track_caller]
    pub fn waiters(&self) -> usize {
        self.rig.machines_line()
    }

    /// What `lock status --json` says.
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

    /// Somebody deletes the lock behind its holder's back.
    #[track_caller]
    pub fn vanishes(&self) {
        assert_eq!(self.server().cli(&["DEL", LOCK_KEY]), "1");
    }

    /// The lock's place has lost everything.
    #[track_caller]
    pub fn forgets(&self) {
        self.server().cli(&["FLUSHALL"]);
    }

    /// An older client takes a lock that was deleted.
    #[track_caller]
    pub fn is_taken_by(&self, name: &str) {
        assert!(self.server().legacy_acquire(name));
    }

    /// The lock is that of a holder on another machine now, for as long as before.
    #[track_caller]
    pub fn moves_to_another_host(&self) {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let value = self.server().holder().unwrap();
        assert!(value.contains(boot.trim_end()), "no boot id in {value}");
        let value = value.replace(boot.trim_end(), "01234567-89ab-cdef-0123-456789abcdef");
        assert_eq!(self.server().cli(&["SET", LOCK_KEY, &value, "XX", "KEEPTTL"]), "OK");
    }

    /// The names of all that there is of the lock, and of those who wait for it.
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
