//! The inventory of this machine for a first configuration: what is found here that may become a
//! service. `gather` collects it, and `draft` writes a configuration from that alone.

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

/// What is found on this machine for a first configuration.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// NVML library that an existing configuration names, or `None` for the system's.
    pub library: Option<PathBuf>,
    /// Client of the engine whose containers were found.
    pub client: String,
    /// Reason why that engine did not report all its containers.
    pub trouble: Option<Failure>,
    /// The card, or `None` if it could not be read.
    pub device: Option<Device>,
    /// Size of the card, if it is known.
    pub total: Option<Mb>,
    /// Everything that may become a service.
    pub sightings: Vec<Sighting>,
    /// Names of the processes on the card that nothing shows to be a server (a desktop, a game, a
    /// training run), with the memory that they hold.
    pub others: Vec<(String, Option<Mb>)>,
    /// Command lines of all processes, against which a proposed `match` is tried.
    pub commands: Vec<(Pid, String)>,
}

/// Something found on this machine that may become a service.
#[derive(Clone, Debug)]
pub struct Sighting {
    pub home: Home,
    pub port: Option<u16>,
    pub speech: Speech,
    /// Memory that the sighted processes hold on the card now.
    pub held: Mb,
    /// Most memory that the sighted processes, or the service that they belong to, were seen to
    /// hold.
    pub peak: Mb,
    pub clue: Clue,
}

/// Evidence that a sighting is a model server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clue {
    /// The server holds memory on the card, or answers as a model server does.
    Seen,
    /// The container may use the card.
    Card { is_up: bool },
    /// The image of the container has the name of a model server.
    Image { name: String, is_up: bool },
    /// The unit does not run, and has the name of a model server.
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

    /// Reports whether a service of a configuration already manages what was sighted.
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

    /// Merges another part of the same service, such as a replica, into this sighting.
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
    /// Raises the peaks of sightings to what gpuctl has noted for the same services of an existing
    /// configuration.
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

/// The manager of a sighting, which starts and stops it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Home {
    /// Started by hand: nobody manages it but the person who typed its command.
    Hand {
        /// The first process of what was started, with its descendants and ancestors.
        family: Vec<Pid>,
        /// The command and its arguments.
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

/// Answer of a port to the requests that tell servers apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Speech {
    /// A server of this kind.
    Known(Api),
    /// A server of unknown kind that speaks HTTP, with the path that reports success, if there is
    /// one.
    Http(Option<&'static str>),
    /// No answer in HTTP, or a port that was not asked.
    Other,
}
