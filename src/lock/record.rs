//! The record of the lock's holder. It is written for people; the record of a lock in Redis, or of
//! one that was taken by hand, also says when the lock is over.

use crate::error::{Failure, Result};
use crate::exit::Code;
use crate::model::Pid;
use crate::world::clock::SinceBoot;
use crate::world::wait::Handle;
use crate::world::{host, process};
use jiff::Timestamp;
use jiff::fmt::serde::timestamp;
use jiff::tz::TimeZone;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Separates the holder's name from the record in a value in Redis. An older client deletes the key
/// if the value is its own name; with the separator behind it, a gpuctl lock of the same name is
/// left alone.
const MARK: &str = "|gpuctl1|";

/// The facts that are recorded about a holder of the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Number that rises with every holder; 0 until the lock is taken. The field is the first one
    /// because a script in Redis fills it in.
    pub fence: u64,
    /// Secret that the holder alone knows, and gives to what works under its lock.
    pub token: String,
    pub host: String,
    /// ID of the boot of the holder's machine; together with `pid_ns` it says which process table
    /// `pid` belongs to.
    pub boot: String,
    /// Name of the machine's lock that the holder has (`LockFile::place`). A process that has that
    /// machine's lock later knows from it that this holder's lock is over.
    #[serde(default)]
    pub place: String,
    /// Whether the holder renews the lock in Redis. While the holder lives, the time that is left
    /// is then not the lock's end.
    #[serde(default)]
    pub renewed: bool,
    /// Inode number of the PID namespace that `pid` is a number in, or `None` if it is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_ns: Option<u64>,
    /// Process with which the lock ends, or `None` if the lock ends with its time only.
    pub pid: Option<Pid>,
    /// Start of the process in clock ticks since boot, as in /proc; it tells the process from a
    /// later one with the same PID.
    pub pid_start: Option<u64>,
    /// Time at which the holder took the lock; serialised in whole seconds.
    #[serde(with = "timestamp::second::required")]
    pub since: Timestamp,
    /// Name of the user who called gpuctl.
    #[serde(default)]
    pub user: String,
    /// What gpuctl was called for, such as `run render.sh`.
    #[serde(default)]
    pub command: String,
    /// Names of the services that the lock is held for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Time in milliseconds since the holder's boot at which a lock ends that was taken by hand on
    /// the machine; `None` for any other lock, which ends with its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_since_boot_ms: Option<u64>,
}

impl Record {
    /// Creates the record of a lock that ends with the process `pid`, if one is given. Returns
    /// `None` if there is no such process.
    pub fn new(
        token: String,
        command: &str,
        pid: Option<Pid>,
        services: &[String],
    ) -> Option<Record> {
        let pid_start = match pid {
            Some(pid) => Some(process::Id::of(pid)?.start),
            None => None,
        };
        Some(Record {
            fence: 0,
            token,
            host: host::name(),
            boot: host::boot_id(),
            pid_ns: host::pid_namespace(),
            pid,
            pid_start,
            since: host::now(),
            user: host::user(),
            command: shown(command),
            services: services.to_vec(),
            until_since_boot_ms: None,
            place: String::new(),
            renewed: false,
        })
    }

    /// Creates the record of a lock for what this process does, which renews the lock. Fails if the
    /// process table in /proc cannot be read.
    pub fn ours(token: String, command: &str, services: &[String]) -> Result<Record> {
        let record = Record::new(token, command, Some(std::process::id() as i32), services);
        record.map(|record| Record { renewed: true, ..record }).ok_or_else(|| {
            Failure::new(Code::Unavailable, "the process table in /proc cannot be read")
                .hint("mount it: mount -t proc proc /proc")
        })
    }

    /// Returns the value that is stored in Redis: the holder's name, then the record.
    pub fn encode(&self, holder: &str) -> String {
        let json = serde_json::to_string(self).expect("a record of plain fields");
        format!("{holder}{MARK}{json}")
    }

    /// Reports whether the record's PIDs belong to the process table that this process sees.
    fn is_here(&self) -> bool {
        let same_namespace = self.pid_ns.is_none_or(|ns| host::pid_namespace() == Some(ns));
        self.boot == host::boot_id() && same_namespace
    }

    /// Returns the record's process, or `None` if it names none that can be seen from here.
    fn id(&self) -> Option<process::Id> {
        let (pid, start) = self.pid.zip(self.pid_start).filter(|_| self.is_here())?;
        Some(process::Id { pid, start })
    }

    /// Opens a handle on the record's process. Returns `None` if the record names none, or none
    /// that can be seen from here.
    pub fn process(&self) -> Option<Handle> {
        self.pid.filter(|_| self.is_here()).and_then(Handle::open)
    }

    /// Reports whether the record's process has ended; `false` if that cannot be told from here.
    pub fn process_has_ended(&self) -> bool {
        self.id().is_some_and(|id| !id.is_alive())
    }

    /// Reports whether the record's process is stopped by a signal; `false` if that cannot be told
    /// from here.
    fn is_stopped(&self) -> bool {
        self.id().is_some_and(|id| id.is_alive() && process::is_suspended(id.pid))
    }

    /// Returns the time that is left to a lock that was taken by hand, or `None` if that lock is
    /// over or was not taken by hand.
    pub fn left(&self) -> Option<Duration> {
        let until = Duration::from_millis(self.until_since_boot_ms?);
        let left = SinceBoot::after_boot(until).left();
        let is_over = left.is_zero() || self.boot != host::boot_id() || self.process_has_ended();
        (!is_over).then_some(left)
    }
}

/// What ends a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// The lock ends after this time, unless it is renewed.
    In(Duration),
    /// The lock ends with the processes that hold it.
    WithProcesses,
    /// The lock never ends by itself.
    Never,
}

/// A process that keeps the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct KeeperProcess {
    pub pid: Pid,
    pub name: String,
}

/// A lock that somebody holds.
#[derive(Clone, Debug)]
pub struct Held {
    pub holder: String,
    /// The holder's record, or `None` if the holder has written none, such as an older client.
    pub record: Option<Record>,
    pub ends: Ends,
    /// Processes that keep the lock although the process in its record has ended, or before there
    /// is a record; otherwise empty.
    pub keepers: Vec<KeeperProcess>,
}

impl Held {
    /// Parses a value in Redis. `left` is the time that is left to the key, or `None` if the key
    /// has no end.
    pub fn decode(value: &str, left: Option<Duration>) -> Held {
        let split = value.split_once(MARK);
        let parsed =
            split.and_then(|(holder, json)| Some((holder, serde_json::from_str(json).ok()?)));
        let (holder, record) = parsed.unwrap_or((value, None));
        let ends = left.map_or(Ends::Never, Ends::In);
        Held { holder: holder.to_owned(), record, ends, keepers: Vec::new() }
    }

    /// Reports whether the lock is held for a service.
    pub fn is_for(&self, service: &str) -> bool {
        let named = self.record.as_ref().map_or(&[][..], |record| &record.services);
        self.holder == service || named.iter().any(|name| name == service)
    }

    /// Reports whether the holder took the lock together with the machine's lock of that place.
    pub fn was_in(&self, place: &str) -> bool {
        self.record.as_ref().is_some_and(|record| record.place == place)
    }

    /// Reports whether the holder renews the lock in Redis, and has not left it to its time.
    pub fn is_renewed(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.renewed)
    }

    /// Reports whether the lock is held under this token.
    pub fn is_of(&self, token: &str) -> bool {
        self.record.as_ref().is_some_and(|record| record.token == token)
    }

    /// Reports whether the lock ends with the processes that keep it, and not before.
    pub fn lasts_with_processes(&self) -> bool {
        self.ends == Ends::WithProcesses
    }

    /// Returns the holder's process as `HOST:PID`, or its host alone if the lock does not end with
    /// a process. Returns `None` if the lock has no record.
    pub fn owner(&self) -> Option<String> {
        let record = self.record.as_ref()?;
        Some(match record.pid {
            Some(pid) => format!("{}:{pid}", record.host),
            None => record.host.clone(),
        })
    }

    /// Reports whether the holder's process is stopped by a signal; `false` if that cannot be told
    /// from here.
    pub fn is_stopped(&self) -> bool {
        self.record.as_ref().is_some_and(Record::is_stopped)
    }

    /// Returns the time that is left as Redis's TTL gives it: in whole seconds, or -1 if no end is
    /// known in advance.
    pub fn ttl(&self) -> i64 {
        match self.ends {
            Ends::In(left) => (left.as_millis() as i64 + 500) / 1000,
            Ends::WithProcesses | Ends::Never => -1,
        }
    }

    /// Describes the holder for people:
    /// `comfyui (nora:1234, run render.sh, by root since 2026-11-28 14:03:05)`.
    pub fn describe(&self) -> String {
        let mut facts: Vec<String> = self.owner().into_iter().collect();
        if let Some(record) = &self.record {
            facts.extend(Some(record.command.clone()).filter(|command| !command.is_empty()));
            let since = record.since.to_zoned(TimeZone::system()).strftime("since %F %T");
            facts.push(match record.user.as_str() {
                "" => since.to_string(),
                user => format!("by {user} {since}"),
            });
        }
        facts.extend(self.is_stopped().then(|| "stopped".to_owned()));
        match self.ends {
            Ends::In(_) if self.is_renewed() => {}
            Ends::In(_) => facts.push(format!("{} s left", self.ttl())),
            Ends::Never => facts.push("without an end".to_owned()),
            Ends::WithProcesses => {}
        }
        if !self.keepers.is_empty() {
            let keepers: Vec<String> = self.keepers.iter().map(KeeperProcess::describe).collect();
            let keepers = keepers.join(", ");
            if self.record.is_none() && self.holder.is_empty() {
                // A process that has gone in writes its record a moment later.
                return format!("{keepers}, which is just taking it");
            }
            facts.push(format!("it has ended, and the lock is kept by {keepers}"));
        }
        match facts.is_empty() {
            true => name_of(&self.holder).to_owned(),
            false => format!("{} ({})", name_of(&self.holder), facts.join(", ")),
        }
    }
}

impl KeeperProcess {
    /// Describes the process for people: `PID 1234 (python3)`.
    pub fn describe(&self) -> String {
        format!("PID {} ({})", self.pid, self.name)
    }
}

/// Returns a text as the lock can show it: control characters, which a terminal might obey, and `|`
/// and `"`, which are part of a record, become `_`.
pub fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "|\"".contains(c) { '_' } else { c }).collect()
}

/// Returns a holder's name as it is shown to people; an older client may have given none.
pub fn name_of(holder: &str) -> &str {
    if holder.is_empty() { "somebody without a name" } else { holder }
}
