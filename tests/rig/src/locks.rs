//! The GPU lock as a test takes it and looks at it: by gpuctl, in whichever place the rig keeps it.

use crate::redis::{LOCK_KEY, Redis};
use crate::rig::Rig;
use serde_json::{Value, json};
use std::fs;
use std::thread;

/// Proves the same of the lock's both places side by side: of the file (no Redis) and of Redis. Without a Redis to be
/// had, of the file alone, and it is said so.
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
    /// A Redis of the rig's own, in which its lock is from now on.
    #[track_caller]
    pub fn lock_in_redis(&self) -> Option<Redis> {
        let redis = self.redis()?;
        self.file("redis-port", &redis.port().to_string());
        self.set("lock.url", redis.url());
        Some(redis)
    }

    /// `lock acquire` with these words; its token.
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

    /// `lock status --json` of a lock that somebody holds.
    #[track_caller]
    pub fn lock_held(&self) -> Value {
        self.gpuctl("lock status --json").run().fails("no").json()
    }

    #[track_caller]
    pub fn assert_lock_is_free(&self) {
        let status = self.gpuctl("lock status --json").run().succeeds().json();
        assert_eq!((&status["holder"], &status["ttl"]), (&Value::Null, &(-2).into()), "{status}");
    }

    /// That nobody has the lock, not even one who has died with it, which `lock status` would call free.
    #[track_caller]
    pub fn assert_lock_was_given_back(&self) {
        match fs::read_to_string(self.path("redis-port")) {
            Ok(port) => {
                let ask = self.shell(&format!("redis-cli -p {port} EXISTS {LOCK_KEY}")).run();
                ask.succeeds().stdout("0\n");
            }
            Err(_) => {
                let text = fs::read_to_string(self.path("run/lock.json")).unwrap();
                let mut record: Value = serde_json::from_str(&text).unwrap();
                record["fence"].take();
                assert_eq!(record, json!({"fence": null}));
            }
        }
    }

    /// Whether `lock status` says so now; for `until`.
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
