//! Finds what several services claim, perhaps each by another name: a container by its name and by
//! its id, a unit by an alias or as a part of a slice. None of these services may have it.

use crate::config::Config;
use crate::error::Result;
use crate::model::{Managed, Manager};
use crate::world::systemd::UnitView;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The kind of a contested thing, its name, and the services that claim it, by their places in the
/// configuration.
type Contested = (&'static str, String, BTreeSet<usize>);

/// Returns what several services claim, judging by what their managers say. `units` holds the
/// answers of the system's manager and of the user's.
pub fn by_several(
    config: &Config,
    managed: &[Managed],
    units: &[Result<HashMap<String, UnitView>>; 2],
) -> Vec<Contested> {
    let mut claims: BTreeMap<(&str, bool, &str), BTreeSet<usize>> = BTreeMap::new();
    for (at, (service, of)) in config.services.iter().zip(managed).enumerate() {
        for container in &of.containers {
            claims.entry(("container", false, &container.id)).or_default().insert(at);
        }
        if let Manager::Systemd { unit, user } = &service.manager
            && let Ok(told) = &units[usize::from(*user)]
            && let Some(view) = told.get(unit)
        {
            claims.entry(("unit", *user, &view.id)).or_default().insert(at);
        }
    }
    let claims = claims.into_iter().map(|((kind, _, id), services)| match kind {
        "container" => (kind, id[..12.min(id.len())].to_owned(), services),
        _ => (kind, id.to_owned(), services),
    });
    claims.chain(nested(managed)).filter(|(_, _, services)| services.len() > 1).collect()
}

/// Returns the unit of each control group, with the services in whose control groups it is.
fn nested(managed: &[Managed]) -> impl Iterator<Item = Contested> {
    let holders = |group: &str| -> BTreeSet<usize> {
        let is_in = |outer: &String| {
            let rest = group.strip_prefix(outer.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let holders = managed.iter().enumerate();
        let holders = holders.filter(|(_, of)| of.control_groups.iter().any(is_in));
        holders.map(|(at, _)| at).collect()
    };
    let groups = managed.iter().flat_map(|of| &of.control_groups);
    groups.map(move |group| {
        let unit = group.rsplit('/').next().unwrap_or_default();
        ("unit", unit.to_owned(), holders(group))
    })
}
