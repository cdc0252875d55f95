//! One call of an NVML function: whether the library is initialised, what `card.json` says, and
//! whether a fault befalls the call. It also holds the safe half of the answers, apart from C's way
//! of passing them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::card::{Card, Memory};
use crate::claim::Kind;
use crate::code::{self, Code};
use crate::fault::Outcome;
use crate::spec::{Device, Spec};

/// Number of bytes in a MB.
pub const MB: u64 = 1 << 20;

/// Number of calls of `nvmlInit` that no `nvmlShutdown` has undone. The library is initialised as
/// long as it is above 0.
static INITIALISED: AtomicUsize = AtomicUsize::new(0);
static CALLS: Mutex<BTreeMap<&str, u64>> = Mutex::new(BTreeMap::new());

/// One call of an NVML function, with the description of the cards that it goes by.
pub struct Session {
    card: Card,
    pub spec: Spec,
}

/// A process on a device, with what all its claims of a kind hold together.
pub struct Process {
    pub pid: u32,
    /// Memory in bytes, or `u64::MAX`, which is NVML's "not available", if the driver cannot tell.
    pub bytes: u64,
}

impl Session {
    /// Begins a call of a function that needs `nvmlInit` to have been called. Fails if it was not,
    /// or if a fault makes the call fail.
    pub fn enter(function: &'static str) -> Result<Self, Code> {
        if INITIALISED.load(Ordering::SeqCst) == 0 {
            return Err(code::UNINITIALIZED);
        }
        Self::open(function)
    }

    pub fn init(function: &'static str) -> Result<(), Code> {
        Self::open(function)?;
        INITIALISED.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    pub fn shutdown(function: &'static str) -> Result<(), Code> {
        Self::enter(function)?;
        INITIALISED.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }

    fn open(function: &'static str) -> Result<Self, Code> {
        let dir = std::env::var_os("SIMGPU_DIR").ok_or(code::DRIVER_NOT_LOADED)?;
        let card = Card::open(dir).map_err(|_| code::DRIVER_NOT_LOADED)?;
        let call = count_call(function);
        loop {
            let spec = card.spec().map_err(|_| code::UNKNOWN)?;
            let Some(fault) = spec.fault(function, call) else {
                return Ok(Self { card, spec });
            };
            match fault.outcome {
                // The call hangs for ever, unless the fault is taken out of card.json.
                Outcome::Hang => std::thread::sleep(Duration::from_millis(20)),
                Outcome::Fail(code) => {
                    std::thread::sleep(fault.delay);
                    return Err(code);
                }
                Outcome::Proceed => {
                    std::thread::sleep(fault.delay);
                    return Ok(Self { card, spec });
                }
            }
        }
    }

    pub fn device(&self, index: usize) -> Result<&Device, Code> {
        self.spec.devices.get(index).ok_or(code::INVALID_ARGUMENT)
    }

    pub fn memory(&self, device: usize) -> Result<Memory, Code> {
        self.device(device)?;
        self.card.memory_as(&self.spec, device).map_err(|_| code::UNKNOWN)
    }

    pub fn processes(&self, device: usize, kind: Kind) -> Result<Vec<Process>, Code> {
        self.device(device)?;
        let mut bytes = BTreeMap::<u32, u64>::new();
        for holder in self.card.holders().map_err(|_| code::UNKNOWN)? {
            if let Some(pid) = holder.pid
                && holder.device == device
                && holder.kind == kind
            {
                *bytes.entry(pid).or_default() += holder.mb * MB;
            }
        }
        let known = self.spec.process_memory_known;
        Ok(bytes
            .into_iter()
            .map(|(pid, bytes)| Process { pid, bytes: if known { bytes } else { u64::MAX } })
            .collect())
    }

    /// Returns the claims on a device whose process has worked after `since_us`, each as a PID and
    /// the time of the last work. Times are in µs since the epoch. Fails if there are none, as the
    /// real library does.
    pub fn samples(&self, device: usize, since_us: u64) -> Result<Vec<(u32, u64)>, Code> {
        if !self.device(device)?.process_utilization {
            return Err(code::NOT_SUPPORTED);
        }
        let holders = self.card.holders().map_err(|_| code::UNKNOWN)?;
        let of_device = holders.iter().filter(|holder| holder.device == device);
        let samples: Vec<(u32, u64)> = of_device
            .filter_map(|holder| Some((holder.pid?, holder.worked_us?)))
            .filter(|(_, at)| *at > since_us)
            .collect();
        if samples.is_empty() { Err(code::NOT_FOUND) } else { Ok(samples) }
    }

    /// Reports whether accounting mode is on. Fails if the card has no such mode.
    pub fn accounts(&self, device: usize) -> Result<bool, Code> {
        self.device(device)?.accounting.ok_or(code::NOT_SUPPORTED)
    }

    /// Returns the most memory in bytes that a process has held, as accounting mode keeps it. Fails
    /// if that mode is off.
    pub fn most(&self, device: usize, pid: u32) -> Result<u64, Code> {
        if !self.accounts(device)? {
            return Err(code::NOT_SUPPORTED);
        }
        let holders = self.card.holders().map_err(|_| code::UNKNOWN)?;
        let own = holders.iter().filter(|it| it.device == device && it.pid == Some(pid));
        own.map(|holder| holder.max_mb * MB).reduce(|a, b| a + b).ok_or(code::NOT_FOUND)
    }

    /// Returns the first word of the command line of a process, as the real library does.
    pub fn process_name(&self, pid: u32) -> Result<Vec<u8>, Code> {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).map_err(|_| code::NOT_FOUND)?;
        Ok(command.split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
    }
}

/// Counts a call of a function. Returns how many times this process has called it, including this
/// call.
fn count_call(function: &'static str) -> u64 {
    let mut calls = CALLS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = calls.entry(function).or_default();
    *count += 1;
    *count
}
