//! A claim: memory that this process holds on a card until it gives the claim up or dies.

use std::fmt;
use std::fs::File;
use std::io;

use serde::{Deserialize, Serialize};

use crate::card::{Card, now_us};

/// What a process uses a card for. NVML lists the two kinds of processes separately.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Compute,
    Graphics,
}

/// The record of a claim, as it is stored in the folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub device: usize,
    pub mb: u64,
    pub kind: Kind,
    pub name: String,
    /// PID of the owner as it was seen by the process that looked last, because nobody can ask for
    /// it once the owner is dead.
    pub pid: u32,
    /// Time in ms since the epoch at which the owner was first found dead.
    pub dead_since_ms: Option<u64>,
    /// The most memory in MB that the claim has held, or 0 if the program that wrote the record
    /// keeps no account of it.
    #[serde(default)]
    pub max_mb: u64,
    /// Time in µs since the epoch at which the owner last worked on the card, or `None` if it has
    /// not.
    pub worked_us: Option<u64>,
}

/// Memory that this process holds on a card. Dropping the claim gives the memory back.
#[derive(Debug)]
pub struct Claim {
    card: Card,
    id: String,
    record: Record,
    /// The lock file, which stays open as long as the claim: its lock proves that the owner lives.
    _lock: File,
}

/// The refusal of a request for more memory than is free.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutOfMemory {
    pub device: usize,
    pub asked_mb: u64,
    pub free_mb: u64,
    pub total_mb: u64,
}

/// Why a claim could not be made or changed.
#[derive(Debug)]
pub enum ClaimError {
    OutOfMemory(OutOfMemory),
    Folder(io::Error),
}

impl Card {
    /// Claims `mb` MB if they are free. No other claim can come between the check and the taking.
    pub fn claim(
        &self,
        device: usize,
        mb: u64,
        kind: Kind,
        name: &str,
    ) -> Result<Claim, ClaimError> {
        let _guard = self.lock()?;
        self.afford(device, mb, name)??;
        let (id, lock) = self.new_claim()?;
        let pid = std::process::id();
        let (name, dead_since_ms, worked_us) = (name.into(), None, None);
        let record = Record { device, mb, kind, name, pid, dead_since_ms, max_mb: mb, worked_us };
        self.write(&id, &record)?;
        Ok(Claim { card: self.clone(), id, record, _lock: lock })
    }
}

impl Claim {
    pub fn mb(&self) -> u64 {
        self.record.mb
    }

    /// Changes the size of the claim to `mb` MB. Growing may be refused, and then changes nothing;
    /// shrinking is never refused.
    pub fn resize(&mut self, mb: u64) -> Result<(), ClaimError> {
        let _guard = self.card.lock()?;
        let more = mb.saturating_sub(self.record.mb);
        if more > 0 {
            self.card.afford(self.record.device, more, &self.record.name)??;
        }
        let max_mb = self.record.max_mb.max(mb);
        let record = Record { mb, max_mb, ..self.record.clone() };
        self.card.write(&self.id, &record)?;
        self.record = record;
        Ok(())
    }

    /// Notes that the process is at work on the card now.
    pub fn work(&mut self) -> io::Result<()> {
        let _guard = self.card.lock()?;
        self.record.worked_us = Some(now_us());
        self.card.write(&self.id, &self.record)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The folder may be gone already, with the test that made it; then there is nothing to give
        // back.
        if let Ok(_guard) = self.card.lock() {
            self.card.remove(&self.id).ok();
        }
    }
}

impl fmt::Display for OutOfMemory {
    /// Uses the words of PyTorch, which is where users meet this error.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { device, asked_mb, free_mb, total_mb } = self;
        write!(
            f,
            "CUDA out of memory. Tried to allocate {asked_mb} MiB. GPU {device} has a total capacity of \
             {total_mb} MiB of which {free_mb} MiB is free."
        )
    }
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory(refusal) => write!(f, "torch.cuda.OutOfMemoryError: {refusal}"),
            Self::Folder(error) => write!(f, "the simulated card cannot be used: {error}"),
        }
    }
}

impl std::error::Error for ClaimError {}

impl From<OutOfMemory> for ClaimError {
    fn from(refusal: OutOfMemory) -> Self {
        Self::OutOfMemory(refusal)
    }
}

impl From<io::Error> for ClaimError {
    fn from(error: io::Error) -> Self {
        Self::Folder(error)
    }
}
