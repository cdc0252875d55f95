//! What is on this machine that may become a service, for a first configuration: gathered in one
//! place, and written down as a configuration from that alone.

mod draft;
mod gather;
mod speech;

pub use draft::draft;
pub use gather::gather;

use crate::model::{Api, Device, Mb, Pid};
use std::path::PathBuf;

/// This machine as a first configuration sees it.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The NVML library that was named, where it is not the system's.
    pub library: Option<PathBuf>,
    pub device: Option<Device>,
    pub total: Option<Mb>,
    pub sightings: Vec<Sighting>,
    /// Processes on the card that nothing shows to be a server: a desktop, a game, a training run.
    pub others: Vec<(String, Option<Mb>)>,
    /// The command lines of all processes, by which a `match` is judged.
    pub commands: Vec<(Pid, String)>,
}

/// Something that may be a service.
#[derive(Clone, Debug)]
pub struct Sighting {
    pub home: Home,
    pub port: Option<u16>,
    pub speech: Speech,
    /// What its processes hold on the card.
    pub held: Mb,
}

impl Sighting {
    /// Adds another part of the same service.
    fn add(&mut self, other: Sighting) {
        self.held = self.held + other.held;
        if self.port.is_none() {
            (self.port, self.speech) = (other.port, other.speech);
        }
    }
}

/// Who starts and stops it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// Nobody but the person who has typed its command.
    Hand {
        family: Vec<Pid>,
        words: Vec<String>,
        cwd: Option<String>,
    },
    Container {
        name: String,
        has_healthcheck: bool,
    },
    Compose {
        project: String,
        service: String,
        has_healthcheck: bool,
    },
    Unit {
        unit: String,
        user: bool,
    },
}

/// What a port answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speech {
    Known(Api),
    /// HTTP, with a success at this path if at any.
    Http(Option<&'static str>),
    /// It takes connections, or nobody asked.
    Other,
}
