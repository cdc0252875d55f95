//! What the lock says of its holder: for people, and of a lock in Redis or of one that was taken by
//! hand also when it is over.

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

/// It stands between the holder's name and the record, so that a client that deletes the key where it finds
/// its own name there leaves ours alone.
const MARK: &str = "|gpuctl1|";

/// Who holds the lock, and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Rises with every holder. First, because Redis fills it in.
    pub fence: u64,
    /// Known to the holder alone.
    pub token: String,
    pub host: String,
    /// It tells, with `pid_ns`, whose process table `pid` is an entry of.
    pub boot: String,
    /// The machine's lock that the holder has: whoever has it later knows that this one is over.
    #[serde(default)]
    pub place: String,
    /// Its holder renews it in Redis: what is left of its time is no end, for as long as that lives.
    #[serde(default)]
    pub renewed: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_ns: Option<u64>,
    /// The lock ends with this process; `None`: with its time only.
    pub pid: Option<Pid>,
    /// The start of the process in clock ticks since boot, as /proc has it, which tells it from a later
    /// one of its number.
    pub pid_start: Option<u64>,
    /// The time at which the holder took it, in whole seconds where it is written down.
    #[serde(with = "timestamp::second::required")]
    pub since: Timestamp,
    /// Who has called gpuctl.
    #[serde(default)]
    pub user: String,
    /// What gpuctl was called for: "run render.sh".
    #[serde(default)]
    pub command: String,
    /// The services that it is held for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// When a lock on the machine ends that was taken by hand, in milliseconds since that boot;
    /// any other one ends with its processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until_since_boot_ms: Option<u64>,
}

impl Record {
    /// One for a lock that ends with the process, which has to be there.
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

    /// One of what this process does, which renews it.
    pub fn ours(token: String, command: &str, services: &[String]) -> Result<Record> {
        let record = Record::new(token, command, Some(std::process::id() as i32), services);
        record.map(|record| Record { renewed: true, ..record }).ok_or_else(|| {
            Failure::new(Code::Unavailable, "the process table in /proc cannot be read")
                .hint("mount it: mount -t proc proc /proc")
        })
    }

    /// The value in Redis.
    pub fn encode(&self, holder: &str) -> String {
        let json = serde_json::to_string(self).expect("a record of plain fields");
        format!("{holder}{MARK}{json}")
    }

    /// Whether its processes are entries of the process table that we see.
    fn is_here(&self) -> bool {
        let same_namespace = self.pid_ns.is_none_or(|ns| host::pid_namespace() == Some(ns));
        self.boot == host::boot_id() && same_namespace
    }

    /// Its process, as far as that can be seen from here.
    fn id(&self) -> Option<process::Id> {
        let (pid, start) = self.pid.zip(self.pid_start).filter(|_| self.is_here())?;
        Some(process::Id { pid, start })
    }

    /// A handle on its process, as far as that can be seen from here.
    pub fn process(&self) -> Option<Handle> {
        self.pid.filter(|_| self.is_here()).and_then(Handle::open)
    }

    /// Whether its process has ended, as far as that can be told from here.
    pub fn process_has_ended(&self) -> bool {
        self.id().is_some_and(|id| !id.is_alive())
    }

    /// Whether its process is stopped by a signal.
    fn is_stopped(&self) -> bool {
        self.id().is_some_and(|id| id.is_alive() && process::is_suspended(id.pid))
    }

    /// What is left of a lock that was taken by hand; `None`: it is over, or is none.
    pub fn left(&self) -> Option<Duration> {
        let until = Duration::from_millis(self.until_since_boot_ms?);
        let left = SinceBoot::after_boot(until).left();
        let is_over = left.is_zero() || self.boot != host::boot_id() || self.process_has_ended();
        (!is_over).then_some(left)
    }
}

/// When a lock ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// After so long, unless it is renewed.
    In(Duration),
    /// It ends with the processes that hold it.
    WithProcesses,
    /// Never by itself.
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
    /// `None` of a client that knows nothing of records.
    pub record: Option<Record>,
    pub ends: Ends,
    /// Those that keep the lock of a command that has ended.
    pub keepers: Vec<KeeperProcess>,
}

impl Held {
    /// Reads it from a value in Redis; `left` is `None` of one without an end.
    pub fn decode(value: &str, left: Option<Duration>) -> Held {
        let split = value.split_once(MARK);
        let parsed =
            split.and_then(|(holder, json)| Some((holder, serde_json::from_str(json).ok()?)));
        let (holder, record) = parsed.unwrap_or((value, None));
        let ends = left.map_or(Ends::Never, Ends::In);
        Held { holder: holder.to_owned(), record, ends, keepers: Vec::new() }
    }

    /// Whether it is held for a service.
    pub fn is_for(&self, service: &str) -> bool {
        let named = self.record.as_ref().map_or(&[][..], |record| &record.services);
        self.holder == service || named.iter().any(|name| name == service)
    }

    /// Whether its holder had the machine's lock of that place.
    pub fn was_in(&self, place: &str) -> bool {
        self.record.as_ref().is_some_and(|record| record.place == place)
    }

    /// Whether its holder renews it, and has not left it to its time.
    pub fn is_renewed(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.renewed)
    }

    pub fn is_of(&self, token: &str) -> bool {
        self.record.as_ref().is_some_and(|record| record.token == token)
    }

    /// Whether it ends with processes, and not before.
    pub fn lasts_with_processes(&self) -> bool {
        self.ends == Ends::WithProcesses
    }

    /// "HOST:PID", where that is known.
    pub fn owner(&self) -> Option<String> {
        let record = self.record.as_ref()?;
        Some(match record.pid {
            Some(pid) => format!("{}:{pid}", record.host),
            None => record.host.clone(),
        })
    }

    pub fn is_stopped(&self) -> bool {
        self.record.as_ref().is_some_and(Record::is_stopped)
    }

    /// Returns the rest of its time as Redis tells it: whole seconds, -1 for no end that is known before.
    pub fn ttl(&self) -> i64 {
        match self.ends {
            Ends::In(left) => (left.as_millis() as i64 + 500) / 1000,
            Ends::WithProcesses | Ends::Never => -1,
        }
    }

    /// "comfyui (nora:1234, run render.sh, by root since 2026-11-28 14:03:05)".
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
                // Whoever is inside writes down who it is a moment later.
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
    /// "PID 1234 (python3)".
    pub fn describe(&self) -> String {
        format!("PID {} ({})", self.pid, self.name)
    }
}

/// A text as the lock can show it: nothing that a terminal obeys, nor that is part of our record.
pub fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || "|\"".contains(c) { '_' } else { c }).collect()
}

/// A holder's name, as people are told it; clients of the older kind can give none.
pub fn name_of(holder: &str) -> &str {
    if holder.is_empty() { "somebody without a name" } else { holder }
}
