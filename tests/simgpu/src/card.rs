//! The folder that is the machine's cards: who holds what, and what is free.
//! A claim is two files in `claims/`: a record of what is held, and a lock file whose POSIX lock its owner keeps as
//! long as it lives. The kernel drops that lock at death, and tells who holds it in the asker's own PID namespace.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::FlockOperation;
use rustix::process::{Flock, FlockType};

use crate::claim::{Kind, OutOfMemory, Record};
use crate::spec::Spec;

/// Handle to the folder; nothing is read before it is asked for.
#[derive(Clone, Debug)]
pub struct Card {
    dir: PathBuf,
}

/// In MB. `total = reserved + claimed + free`, unless `card.json` shrank the card under its claims.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory {
    pub total: u64,
    pub reserved: u64,
    pub claimed: u64,
    pub free: u64,
}

/// One claim as NVML would tell it.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// As the caller sees it; none if the process is in a namespace that the caller cannot see.
    pub pid: Option<u32>,
    pub device: usize,
    pub mb: u64,
    pub kind: Kind,
    pub name: String,
    /// The most that it has been.
    pub max_mb: u64,
    /// When it last worked, in µs since the epoch.
    pub worked_us: Option<u64>,
}

enum Owner {
    Alive(Option<u32>),
    Gone,
}

impl Card {
    /// The folder must exist; what is missing in it is made.
    pub fn open(dir: impl Into<PathBuf>) -> io::Result<Self> {
        let card = Self { dir: dir.into() };
        match fs::create_dir(card.claims()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(card),
        }
    }

    /// Writes `card.json`, in one go, because programs may be reading it.
    pub fn describe(&self, description: &serde_json::Value) -> io::Result<()> {
        let draft = self.dir.join("card.json.new");
        fs::write(&draft, description.to_string())?;
        fs::rename(draft, self.dir.join("card.json"))
    }

    pub fn memory(&self, device: usize) -> io::Result<Memory> {
        self.memory_as(&self.spec()?, device)
    }

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

    /// One call at a time looks at the claims or changes them, whichever process it comes from.
    pub(crate) fn lock(&self) -> io::Result<File> {
        let file = OpenOptions::new().create(true).append(true).open(self.dir.join("card.lock"))?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
        Ok(file)
    }

    /// Whether `mb` more are to be had; a refusal goes on record. Call it under the lock.
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

    /// A lock file of its own for a new claim, named after this process.
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

    /// By renaming, so that nobody reads half a record, also after a SIGKILL.
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

    /// Reads all claims, books deaths and lets go of what the dead have held long enough. Call it under the lock.
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

/// Who holds a claim. Our own lock files are known by name and never opened: closing any descriptor of a file drops
/// all locks that the process has on it, and a process is not shown its own locks anyway.
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

/// A name that no other process has, in whatever namespace, now or later: namespace, PID there, start time.
fn this_process() -> io::Result<String> {
    let namespace = rustix::fs::stat("/proc/self/ns/pid")?.st_ino;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Field 22, counted from the third, which follows the command in brackets.
    let start = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19));
    Ok(format!("{namespace}-{}-{}", std::process::id(), start.unwrap_or_default()))
}

fn now_ms() -> u64 {
    now_us() / 1000
}

pub(crate) fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}
