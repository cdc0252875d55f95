//! Finds what does not show itself and is taken for a model server by its name: containers by their
//! image, and units that do not run.

use super::{Clue, Home, Sighting, Speech};
use crate::model::{Api, Container, ContainerNetwork, Mb, Presence};
use crate::world::systemd;
use crate::world::wait::Stop;

/// Returns the kind of server that a container is, judged by its image, and the port of this
/// machine that leads to it, if there is one. `None` if the image does not have the name of a model
/// server.
pub fn by_image(container: &Container) -> Option<(Api, Option<u16>)> {
    let image = container.setup.image.split('@').next()?;
    let name = image.rsplit('/').next()?.split(':').next()?;
    let api = Api::of_name(name)?;
    let usual = api.usual_port();
    let bindings = container.setup.bindings.iter();
    let leads = bindings.filter(|binding| binding.own == usual && binding.is_on_loopback());
    let port = match container.setup.network {
        ContainerNetwork::Host => Some(usual),
        _ => leads.filter_map(|binding| binding.port).next(),
    };
    Some((api, port))
}

/// Returns the installed units that have the name of a model server and do not run, of the calling
/// user (`user`) or of the system. None are found if their manager cannot be asked.
pub fn units(user: bool, stop: &Stop) -> Vec<Sighting> {
    let api_of = |unit: &str| Api::of_name(unit.strip_suffix(".service").unwrap_or(unit));
    let files = systemd::unit_files(user, stop).unwrap_or_default();
    let named: Vec<&str> =
        files.iter().map(String::as_str).filter(|unit| api_of(unit).is_some()).collect();
    let is_down = |view: &systemd::UnitView| matches!(view.presence, Presence::Down(_));
    let views = match named.is_empty() {
        true => return Vec::new(),
        false => systemd::show(&named, user, stop)().unwrap_or_default(),
    };
    let at_rest = named.into_iter().filter(|unit| views.get(*unit).is_some_and(is_down));
    let sighting = |unit: &str| {
        let api = api_of(unit)?;
        Some(Sighting {
            home: Home::Unit { unit: unit.to_owned(), user },
            port: Some(api.usual_port()),
            speech: Speech::Known(api),
            held: Mb(0),
            peak: Mb(0),
            clue: Clue::Unit,
        })
    };
    at_rest.filter_map(sighting).collect()
}
