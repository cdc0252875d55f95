//! What the lock says of its holder, in the two places where it is kept, and how a holder that is
//! no more is told from one that is only slow.

use crate::model::Pid;
use crate::world::wait::Handle;
use crate::world::{group, host, process};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Between the holder's name and the record, so that a client that deletes the key where it finds
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
    /// With `pid_ns`: whose process table `pid` is an entry of.
    pub boot: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid_ns: Option<u64>,
    /// The lock ends with this process; `None`: with its time only.
    pub pid: Option<Pid>,
    /// In clock ticks since boot, as /proc has it: tells the process from a later one of its number.
    pub pid_start: Option<u64>,
    /// Seconds since 1970.
    pub since: u64,
    /// The services that it is held for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// The command that works under the lock; it may outlive its gpuctl for a moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<process::Id>,
}

impl Record {
    /// One for a lock that ends with the process, which has to be there.
    pub fn new(token: String, pid: Option<Pid>, services: &[String]) -> Option<Record> {
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
            since: host::since_epoch().as_secs(),
            services: services.to_vec(),
            command: None,
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

    /// What is left of the command, as far as that can be told from here.
    pub fn command_members(&self) -> Vec<Pid> {
        let command = self.command.filter(|_| self.is_here());
        command.map_or_else(Vec::new, |leader| group::members(Some(leader), &self.token))
    }

    /// Those whose end may end the lock: the holder, and once that is gone, what its command has
    /// left. `None` where that cannot be told, as of another machine.
    fn living(&self) -> Option<Vec<Pid>> {
        let (pid, start) = self.pid.zip(self.pid_start)?;
        if !self.is_here() {
            return None;
        }
        if (process::Id { pid, start }).is_alive() {
            return Some(vec![pid]);
        }
        Some(self.command_members())
    }
}

/// A lock that somebody holds.
#[derive(Clone, Debug)]
pub struct Held {
    pub holder: String,
    /// `None` of a client that knows nothing of records.
    pub record: Option<Record>,
    /// `None`: it never ends by itself.
    pub left: Option<Duration>,
}

impl Held {
    /// From a value in Redis.
    pub fn decode(value: &str, left: Option<Duration>) -> Held {
        let split = value.split_once(MARK);
        let parsed =
            split.and_then(|(holder, json)| Some((holder, serde_json::from_str(json).ok()?)));
        match parsed {
            Some((holder, record)) => Held { holder: holder.to_owned(), record, left },
            None => Held { holder: value.to_owned(), record: None, left },
        }
    }

    /// Whether the holder is proved to be no more, and all that worked under its lock. A lock that
    /// was given no end is nobody's to take.
    pub fn is_over(&self) -> bool {
        let living = self.record.as_ref().and_then(Record::living);
        self.left.is_some() && living.is_some_and(|living| living.is_empty())
    }

    /// Whether no command is left that a lock whose time is over may have had: nobody can tell of
    /// another machine's.
    pub fn command_is_over(&self) -> bool {
        self.record.as_ref().is_none_or(|record| record.command_members().is_empty())
    }

    /// Handles on those whose end is to be waited for.
    pub fn living(&self) -> Vec<Handle> {
        let living = self.record.as_ref().and_then(Record::living).unwrap_or_default();
        living.into_iter().filter_map(Handle::open).collect()
    }

    /// Whether it is held for a service.
    pub fn is_for(&self, service: &str) -> bool {
        let named = self.record.as_ref().map_or(&[][..], |record| &record.services);
        self.holder == service || named.iter().any(|name| name == service)
    }

    pub fn is_of(&self, token: &str) -> bool {
        self.record.as_ref().is_some_and(|record| record.token == token)
    }

    /// Whether a command works under it (that of `run`), with which it ends.
    pub fn is_of_a_command(&self) -> bool {
        self.record.as_ref().is_some_and(|record| record.command.is_some())
    }

    /// "HOST:PID", where that is known.
    pub fn owner(&self) -> Option<String> {
        let record = self.record.as_ref()?;
        Some(match record.pid {
            Some(pid) => format!("{}:{pid}", record.host),
            None => record.host.clone(),
        })
    }

    /// As Redis tells it: whole seconds, -1 for no end.
    pub fn ttl(&self) -> i64 {
        self.left.map_or(-1, |left| (left.as_millis() as i64 + 500) / 1000)
    }

    /// "comfyui (nora:1234, 29 s left)".
    pub fn describe(&self) -> String {
        let left = match self.left {
            Some(_) => format!("{} s left", self.ttl()),
            None => "without an end".to_owned(),
        };
        match self.owner() {
            Some(owner) => format!("{} ({owner}, {left})", name_of(&self.holder)),
            None => format!("{} ({left})", name_of(&self.holder)),
        }
    }
}

/// A holder's name, as people are told it; clients of the older kind can give none.
pub fn name_of(holder: &str) -> &str {
    if holder.is_empty() { "somebody without a name" } else { holder }
}
