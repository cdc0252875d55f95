//! The file `card.json`: what the machine's cards are, and how NVML misbehaves. Everything has a
//! default; `{}` is one RTX 4090. The file is read afresh at each call, because tests change it
//! while programs run.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::Path;

use serde::Deserialize;

use crate::fault::Fault;

/// The contents of `card.json`.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    pub devices: Vec<Device>,
    pub driver_version: String,
    /// Time in ms that the driver takes to give back the memory of a process that has died.
    pub reclaim_delay_ms: u64,
    /// Whether NVML can say how much memory each process holds. Under WSL it cannot, and only lists
    /// the processes.
    pub process_memory_known: bool,
    /// Faults by the name of the function. A name that ends in `*` stands for all functions that
    /// begin with the rest of it.
    faults: BTreeMap<String, Fault>,
}

/// One card, as `card.json` describes it.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    pub name: String,
    pub uuid: String,
    pub total_mb: u64,
    /// Memory in MB that the driver keeps for itself.
    pub reserved_mb: u64,
    pub temperature_c: u32,
    pub utilization_percent: u32,
    /// Whether accounting mode is on, or `None` if the card has no such mode.
    pub accounting: Option<bool>,
    /// Whether the driver reports how much each process uses the card.
    pub process_utilization: bool,
}

impl Spec {
    /// Reads the file, in whose place `{}` is read if it is missing. A device without a UUID gets
    /// one that is made from its index.
    pub fn read(file: &Path) -> io::Result<Self> {
        let text = match std::fs::read_to_string(file) {
            Err(error) if error.kind() == ErrorKind::NotFound => "{}".into(),
            text => text?,
        };
        let mut spec: Self = serde_json::from_str(&text)?;
        for (index, device) in spec.devices.iter_mut().enumerate() {
            if device.uuid.is_empty() {
                device.uuid = format!("GPU-51390000-0000-4000-8000-{index:012x}");
            }
        }
        Ok(spec)
    }

    /// Returns the fault that befalls the `call`-th call of `function`, counted from 1. An entry
    /// for the function itself goes before one with `*`.
    pub fn fault(&self, function: &str, call: u64) -> Option<&Fault> {
        let by_prefix = || {
            self.faults.iter().find_map(|(name, fault)| {
                function.starts_with(name.strip_suffix('*')?).then_some(fault)
            })
        };
        self.faults.get(function).or_else(by_prefix).filter(|fault| fault.befalls(call))
    }
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            devices: vec![Device::default()],
            driver_version: "570.86.15".into(),
            reclaim_delay_ms: 0,
            process_memory_known: true,
            faults: BTreeMap::new(),
        }
    }
}

impl Default for Device {
    fn default() -> Self {
        Self {
            name: "NVIDIA GeForce RTX 4090".into(),
            uuid: String::new(),
            total_mb: 24576,
            reserved_mb: 0,
            temperature_c: 45,
            utilization_percent: 10,
            accounting: Some(false),
            process_utilization: true,
        }
    }
}
