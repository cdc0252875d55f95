//! Decides in which order containers are started and stopped: what others depend on is started
//! first and stopped last.

use crate::model::{Condition, Container};
use std::collections::HashSet;
use std::hash::Hash;

/// Reports whether a container has completed work that another of these containers waits for.
pub fn has_completed(container: &Container, all: &[&Container]) -> bool {
    container.exit_code == Some(0)
        && all.iter().any(|other| {
            awaited(other).any(|(name, condition)| {
                condition == Condition::Completed && name == service_of(container)
            })
        })
}

/// The name of a compose service: its project, and what it is called there.
pub type Name<'a> = (&'a str, &'a str);

/// Returns the compose service that a container is of; its names are empty if compose has not made
/// the container.
pub fn service_of(container: &Container) -> Name<'_> {
    let labels = container.setup.compose.as_ref();
    labels.map_or(("", ""), |labels| (labels.project.as_str(), labels.service.as_str()))
}

/// Returns the services that a container waits for before it is started, and how far each has to
/// be.
pub fn awaited(container: &Container) -> impl Iterator<Item = (Name<'_>, Condition)> {
    container.setup.compose.iter().flat_map(|labels| {
        let project = labels.project.as_str();
        labels.depends_on.iter().map(move |it| ((project, it.service.as_str()), it.condition))
    })
}

/// Sorts containers into levels so that each comes after those that it depends on.
pub fn levels(containers: Vec<&Container>) -> Vec<Vec<&Container>> {
    in_order(containers, |one| service_of(one), |one| awaited(one).map(|it| it.0).collect())
}

/// Sorts things that bear names into levels so that each comes as soon as all those have come that
/// it comes `after`.
pub fn in_order<T, N: Eq + Hash>(
    mut left: Vec<T>,
    name: impl Fn(&T) -> N,
    after: impl Fn(&T) -> Vec<N>,
) -> Vec<Vec<T>> {
    let mut levels = Vec::new();
    while !left.is_empty() {
        let names: HashSet<N> = left.iter().map(&name).collect();
        let is_free = |one: &T| after(one).iter().all(|other| !names.contains(other));
        let (free, others): (Vec<T>, Vec<T>) = left.into_iter().partition(is_free);
        // Only a circle leaves nothing free, and compose refuses one.
        let (level, rest) = if free.is_empty() { (others, free) } else { (free, others) };
        levels.push(level);
        left = rest;
    }
    levels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::docker::parse;
    use serde_json::json;

    #[test]
    fn services_of_one_name_in_two_projects_do_not_wait_for_each_other() {
        let container = |project: &str, service: &str, depends_on: &str| {
            json!({"Id": format!("{project} {service}"), "Name": "", "State": {}, "Config": {"Labels": {
                "com.docker.compose.project": project,
                "com.docker.compose.service": service,
                "com.docker.compose.depends_on": depends_on,
            }}})
        };
        let all = json!([
            container("day", "web", "db:service_started:false"),
            container("day", "db", ""),
            container("night", "web", ""),
            container("night", "db", "web:service_started:false"),
        ]);
        let all = parse(all.to_string().as_bytes()).expect("what an engine says");
        let levels = levels(all.iter().collect());
        let ids = |level: &Vec<&Container>| level.iter().map(|one| one.id.clone()).collect();
        let ids: Vec<Vec<String>> = levels.iter().map(ids).collect();
        assert_eq!(ids, [["day db", "night web"], ["day web", "night db"]]);
    }
}
