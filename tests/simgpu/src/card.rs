//! The folder that stands for the machine's cards: which process holds how much, and what is free.
//! A claim is two files in `claims/`: a record of what is held, and a lock file whose POSIX lock
//! its owner keeps as long as it lives. The kernel drops that lock when the owner dies, and until
//! then reports the owner's PID in the PID namespace of the process that asks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::process::{Flock, FlockType};

use crate::claim::{Kind, OutOfMemory, Record};
use crate::spec::Spec;

/// A handle to the folder of the cards. Each call reads the folder afresh.
#[derive(Clone, Debug)]
pub struct Card {
    dir: PathBuf,
}

/// The memory of a device in MB. `total = reserved + claimed + free`, unless `card.json` made the
/// card smaller than its claims.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    pub total: u64,
    pub reserved: u64,
    pub claimed: u64,
    pub free: u64,
}

/// A claim as NVML would report it.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// PID in the namespace of the caller, or `None` if the process is in a namespace that the
    /// caller cannot see. After the death of the process, it is the PID that was seen last.
    pub pid: Option<u32>,
    pub device: usize,
    pub mb: u64,
    pub kind: Kind,
    pub name: String,
    /// The most memory in MB that the claim has held.
    pub max_mb: u64,
    /// Time in µs since the epoch at which the process last worked on the card, or `None` if it
    /// never has.
    pub worked_us: Option<u64>,
}

enum Owner {
    Alive(Option<u32>),
    Gone,
}

impl Card {
    /// Opens the folder, which must exist, and makes what is missing in it.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let card = Self { dir: dir.into() };
        match fs::create_dir(card.claims()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(card),
        }
    }

    /// Writes `card.json` by renaming, because programs may be reading it.
    pub fn describe(&self, description: &serde_json::Value) -> io::Result<()> {
        let draft = self.dir.join("card.json.new");
        fs::write(&draft, description.to_string())?;
        fs::rename(draft, self.dir.join("card.json"))
    }

    /// Returns how much memory of a device is reserved, claimed and free.
    pub fn memory(&self, device: usize) -> io::Result<Memory> {
        self.memory_as(&self.spec()?, device)
    }

    /// Returns all claims, including those of the dead whose memory has not been given back yet.
    pub fn holders(&self) -> io::Result<Vec<Holder>> {
        let _guard = self.lock()?;
        self.survey(&self.spec()?)
    }

    pub(crate) fn spec(&self) -> io::Result<Spec> {
        Spec::read(&self.dir.join("card.json"))
    }

    pub(crate) fn memory_as(&self, spec: &Spec, device: usize) -> io::Result<Memory> {
        let _guard = self.lock()?;
        self.memory_under_lock(spec, device)
    }

    /// Takes the lock under which one call at a time, from whichever process, reads or changes the
    /// claims. Dropping the file releases it.
    pub(crate) fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).append(true).open(self.dir.join("card.lock"))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
        Ok(file)
    }

    /// Checks whether `mb` more are free on a device, and writes a refusal to `oom.jsonl`. The
    /// caller must hold the lock.
    pub(crate) fn afford(
        &self,
        device: usize,
        mb: u64,
        name: &str,
    ) -> io::Result<Result<(), OutOfMemory>> {
        let memory = self.memory_under_lock(&self.spec()?, device)?;
        if mb <= memory.free {
            return Ok(Ok(()));
        }
        let refusal =
            OutOfMemory { device, asked_mb: mb, free_mb: memory.free, total_mb: memory.total };
        let event = serde_json::json!({
            "ts": now_ms(), "pid": std::process::id(), "name": name,
            "device": device, "asked_mb": mb, "free_mb": memory.free,
        });
        let mut log =
            OpenOptions::new().create(true).append(true).open(self.dir.join("oom.jsonl"))?;
        log.write_all(format!("{event}\n").as_bytes())?;
        Ok(Err(refusal))
    }

    /// Makes and locks the lock file of a new claim of this process. Returns the id of the claim,
    /// which names this process, and the file.
    pub(crate) fn new_claim(&self) -> io::Result<(String, File)> {
        let me = this_process()?;
        for number in 0.. {
            let id = format!("{me}-{number}");
            match File::create_new(self.lock_file(&id)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(file) => {
                    rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)?;
                    return Ok((id, file));
                }
            }
        }
        unreachable!("a process runs out of memory before it runs out of numbers")
    }

    /// Writes the record of a claim by renaming, so that nobody reads half a record, even after a
    /// SIGKILL.
    pub(crate) fn write(&self, id: &str, record: &Record) -> io::Result<()> {
        let draft = self.claims().join(format!("{id}.new"));
        fs::write(&draft, serde_json::to_vec(record)?)?;
        fs::rename(draft, self.record_file(id))
    }

    pub(crate) fn remove(&self, id: &str) -> io::Result<()> {
        fs::remove_file(self.record_file(id))?;
        fs::remove_file(self.lock_file(id))
    }

    fn memory_under_lock(&self, spec: &Spec, device: usize) -> io::Result<Memory> {
        let described = spec
            .devices
            .get(device)
            .ok_or_else(|| io::Error::other(format!("card.json has no device {device}")))?;
        let claimed = self
            .survey(spec)?
            .iter()
            .filter(|holder| holder.device == device)
            .map(|holder| holder.mb)
            .sum();
        Ok(Memory {
            total: described.total_mb,
            reserved: described.reserved_mb,
            claimed,
            free: described.total_mb.saturating_sub(described.reserved_mb + claimed),
        })
    }

    /// Reads all claims, notes which owners were found dead, and removes a claim once its owner has
    /// been known to be dead for `reclaim_delay_ms`. The caller must hold the lock.
    fn survey(&self, spec: &Spec) -> io::Result<Vec<Holder>> {
        let me = this_process()?;
        let mut holders = Vec::new();
        for entry in fs::read_dir(self.claims())? {
            let file_name = entry?.file_name();
            let Some(id) = file_name.to_str().and_then(|name| name.strip_suffix(".json")) else {
                continue;
            };
            let mut record: Record = serde_json::from_slice(&fs::read(self.record_file(id))?)?;
            let seen = record.clone();
            let pid = match owner(&self.lock_file(id), id, &me)? {
                Owner::Alive(pid) => {
                    record.pid = pid.unwrap_or(record.pid);
                    pid
                }
                Owner::Gone => {
                    let since = *record.dead_since_ms.get_or_insert_with(now_ms);
                    if now_ms().saturating_sub(since) >= spec.reclaim_delay_ms {
                        self.remove(id)?;
                        continue;
                    }
                    Some(record.pid)
                }
            };
            if record != seen {
                self.write(id, &record)?;
            }
            let Record { device, mb, kind, name, max_mb, worked_us, .. } = record;
            holders.push(Holder { pid, device, mb, kind, name, max_mb, worked_us });
        }
        Ok(holders)
    }

    fn claims(&self) -> PathBuf {
        self.dir.join("claims")
    }

    fn record_file(&self, id: &str) -> PathBuf {
        self.claims().join(format!("{id}.json"))
    }

    fn lock_file(&self, id: &str) -> PathBuf {
        self.claims().join(format!("{id}.lock"))
    }
}

/// Finds out whether the owner of a claim lives. The lock files of this process are recognised by
/// name and never opened: closing any descriptor of a file drops all locks that the process has on
/// it, and a process is not shown its own locks anyway.
fn owner(lock_file: &Path, id: &str, me: &str) -> io::Result<Owner> {
    if id.rsplit_once('-').is_some_and(|(process, _)| process == me) {
        return Ok(Owner::Alive(Some(std::process::id())));
    }
    let file = File::open(lock_file)?;
    let held = rustix::process::fcntl_getlk(&file, &Flock::from(FlockType::WriteLock))?;
    Ok(held.map_or(Owner::Gone, |lock| {
        Owner::Alive(lock.pid.map(|pid| pid.as_raw_nonzero().get() as u32))
    }))
}

/// Returns a name that no other process has, in any PID namespace, now or later: it consists of the
/// namespace, the PID in it and the start time.
fn this_process() -> io::Result<String> {
    let namespace = rustix::fs::stat("/proc/self/ns/pid")?.st_ino;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The start time is field 22; counting begins with the third, which follows the command in
    // brackets.
    let start = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19));
    Ok(format!("{namespace}-{}-{}", std::process::id(), start.unwrap_or_default()))
}

fn now_ms() -> u64 {
    now_us() / 1000
}

pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}
