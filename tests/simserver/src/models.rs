//! The models that are loaded, and the memory that they take on the card.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Child;
use std::time::Instant;
use std::{env, io, thread};

use simgpu::{Card, Claim, ClaimError, Kind};

use crate::args::Args;
use crate::workers;

/// The models that the server knows, which of them are loaded, and the memory that it holds.
pub struct Models {
    pub all: Vec<String>,
    pub loaded: BTreeSet<String>,
    /// Whether the server was last asked to unload, not to load, even if it did not do so.
    pub asleep: bool,
    /// Number of loads so far, so that a slow unload does not undo a load that came after it.
    pub loads: u64,
    /// Memory in MB that is held with all models loaded.
    pub vram: u64,
    residual: u64,
    memory: Memory,
    /// The child process that holds each loaded model, or `None` if models have no processes of
    /// their own.
    children: Option<BTreeMap<String, Child>>,
    args: Args,
}

/// The claim of this process, if it has one. As long as nothing is claimed, no card is needed.
struct Memory {
    device: usize,
    kind: Kind,
    name: String,
    claim: Option<Claim>,
}

impl Models {
    /// Returns the models with nothing loaded and nothing claimed.
    pub fn new(args: &Args, vram: u64) -> Self {
        let all = match args.unload.models.as_slice() {
            [] => vec![args.name.clone()],
            models => models.to_vec(),
        };
        let memory = Memory {
            device: args.memory.device,
            kind: if args.memory.graphics { Kind::Graphics } else { Kind::Compute },
            name: args.name.clone(),
            claim: None,
        };
        Self {
            all,
            loaded: BTreeSet::new(),
            asleep: false,
            loads: 0,
            vram,
            residual: args.unload.unload_residual.or(args.memory.idle_vram).unwrap_or(0),
            memory,
            children: args.unload.child_per_model.then(BTreeMap::new),
            args: args.clone(),
        }
    }

    /// Claims what is held at the start, in equal steps that end at `warm`. All models are loaded
    /// then, unless `--idle-vram` is set.
    pub fn start(&mut self, args: &Args, warm: Instant) -> Result<(), ClaimError> {
        let target = args.memory.idle_vram.unwrap_or(self.vram);
        let steps = args.memory.steps;
        for step in 1..=steps {
            if self.children.is_none() {
                self.memory.hold(target * step / steps)?;
            }
            let left = warm.saturating_duration_since(Instant::now());
            thread::sleep(left / (steps - step + 1) as u32);
        }
        if args.memory.idle_vram.is_none() {
            self.loaded = self.all.iter().cloned().collect();
        }
        self.hold()
    }

    pub fn load(&mut self, models: &[String]) -> Result<(), ClaimError> {
        self.loads += 1;
        self.asleep = false;
        self.loaded.extend(models.iter().cloned());
        self.hold()?;
        self.memory.work()
    }

    /// Notes that the server is at work on the card now.
    pub fn work(&mut self) -> Result<(), ClaimError> {
        self.memory.work()
    }

    pub fn unload(&mut self, models: &[String]) -> Result<(), ClaimError> {
        self.loaded.retain(|loaded| !models.contains(loaded));
        self.hold()
    }

    pub fn end_children(&mut self) {
        for (_, child) in std::mem::take(&mut self.children).into_iter().flatten() {
            workers::end(child).ok();
        }
    }

    /// Claims what the loaded models need, or starts and ends the child processes that do so.
    fn hold(&mut self) -> Result<(), ClaimError> {
        let share = self.share();
        let Some(children) = &mut self.children else { return self.memory.hold(self.needed()) };
        self.memory.hold(self.residual)?;
        let gone: Vec<String> =
            children.keys().filter(|model| !self.loaded.contains(*model)).cloned().collect();
        for model in gone {
            children.remove(&model).map(workers::end).transpose()?;
        }
        for model in &self.loaded {
            if !children.contains_key(model) {
                children.insert(model.clone(), workers::hold(&self.args, model, share)?);
            }
        }
        Ok(())
    }

    /// Returns the memory that a loaded model takes, in MB.
    pub fn share(&self) -> u64 {
        self.vram.saturating_sub(self.residual) / self.all.len() as u64
    }

    fn needed(&self) -> u64 {
        if self.loaded.len() == self.all.len() {
            return self.vram;
        }
        self.residual + self.share() * self.loaded.len() as u64
    }
}

impl Memory {
    /// Notes that this process is at work on the card now, if it has a claim.
    fn work(&mut self) -> Result<(), ClaimError> {
        Ok(self.claim.as_mut().map_or(Ok(()), Claim::work)?)
    }

    fn hold(&mut self, mb: u64) -> Result<(), ClaimError> {
        match &mut self.claim {
            _ if mb == 0 => self.claim = None,
            Some(claim) => claim.resize(mb)?,
            None => {
                let dir =
                    env::var_os("SIMGPU_DIR").ok_or(io::Error::other("SIMGPU_DIR is not set"))?;
                let card = Card::open(dir)?;
                self.claim = Some(card.claim(self.device, mb, self.kind, &self.name)?);
            }
        }
        Ok(())
    }
}
