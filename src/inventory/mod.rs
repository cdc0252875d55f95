//! What is on this machine that may become a service, for a first configuration: gathered in one
//! place, and written down as a configuration from that alone.

mod at_rest;
mod draft;
mod gather;
mod speech;

pub use draft::draft;
pub use gather::gather;

use crate::config::Config;
use crate::error::Failure;
use crate::model::{Api, Containers, Device, Manager, Mb, Pid, Service};
use crate::notes::Notes;
use crate::world::ports::local_port;
use std::path::PathBuf;

/// This machine as a first configuration sees it.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The NVML library that was named, where it is not the system's.
    pub library: Option<PathBuf>,
    /// The client of the engine that its containers are from.
    pub client: String,
    /// Why that engine did not tell of all its containers.
    pub trouble: Option<Failure>,
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
    /// The most that it was seen to hold, now or before.
    pub peak: Mb,
    pub clue: Clue,
}

/// What shows that it is a model server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clue {
    /// It holds memory on the card, or answers as one does.
    Seen,
    /// Its container may use the card.
    Card { is_up: bool },
    /// The name of the image that its container was made from.
    Image { name: String, is_up: bool },
    /// The name of its unit, which does not run.
    Unit,
}

impl Sighting {
    fn is_up(&self) -> bool {
        match self.clue {
            Clue::Seen => true,
            Clue::Card { is_up } | Clue::Image { is_up, .. } => is_up,
            Clue::Unit => false,
        }
    }

    /// Whether it is what a service of a configuration is.
    fn is_managed_by(&self, service: &Service) -> bool {
        match (&self.home, &service.manager) {
            (Home::Container { name, .. }, Manager::Containers(Containers::Named(own))) => {
                name == own
            }
            (
                Home::Compose { project, service, .. },
                Manager::Containers(Containers::Compose(own)),
            ) => *project == own.project && Some(service) == own.service.as_ref(),
            (Home::Unit { unit, user }, Manager::Systemd { unit: own, user: of_user }) => {
                unit == own && user == of_user
            }
            (Home::Hand { .. }, Manager::Native(_)) => {
                let own = service.health.as_ref().and_then(local_port);
                own.is_some() && own == self.port
            }
            _ => false,
        }
    }

    /// Adds another part of the same service.
    fn add(&mut self, other: Sighting) {
        self.held = self.held + other.held;
        self.peak = self.peak + other.peak;
        if other.clue == Clue::Seen {
            self.clue = Clue::Seen;
        }
        if self.port.is_none() {
            (self.port, self.speech) = (other.port, other.speech);
        }
    }
}

impl Inventory {
    /// Remembers what a configuration that is there has noted of what its services have held.
    pub fn recall(&mut self, config: &Config) {
        let notes = Notes::read(config);
        for sighting in &mut self.sightings {
            let mut services = config.services.iter();
            let own = services.find(|service| sighting.is_managed_by(service));
            let noted = own.and_then(|service| notes.peak(&service.name));
            sighting.peak = sighting.peak.max(noted.unwrap_or_default());
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
