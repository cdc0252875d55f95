//! Groups services of containers, so that several of them share a call of the engine's client.

use crate::error::Result;
use crate::model::Service;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Largest number of calls made for services that can share one: the engine does not get on faster
/// with more at once.
const AT_ONCE: usize = 4;

/// Services whose containers are handled by one call, which the first thread that needs it makes.
pub struct Batch<'a, T> {
    services: Vec<&'a Service>,
    results: OnceLock<Vec<Result<T>>>,
}

/// The batch that each service is in, by the service's name.
pub type Batches<'a, T> = HashMap<&'a str, Arc<Batch<'a, T>>>;

impl<'a, T: Clone> Batch<'a, T> {
    /// Puts services of containers into batches. Services with equal keys can share a call, and
    /// those without a key have calls of their own.
    pub fn all<K: PartialEq>(
        services: impl Iterator<Item = &'a Service>,
        key: impl Fn(&Service) -> Option<K>,
    ) -> Batches<'a, T> {
        let mut groups: Vec<(Option<K>, Vec<&'a Service>)> = Vec::new();
        for service in services {
            let key = key(service);
            match groups.iter_mut().find(|(other, _)| key.is_some() && *other == key) {
                Some((_, group)) => group.push(service),
                None => groups.push((key, vec![service])),
            }
        }
        let mut batches = HashMap::new();
        for (_, group) in groups {
            for services in group.chunks(group.len().div_ceil(AT_ONCE)) {
                let services = services.to_vec();
                let names: Vec<&str> =
                    services.iter().map(|service| service.name.as_str()).collect();
                let batch = Arc::new(Batch { services, results: OnceLock::new() });
                batches.extend(names.into_iter().map(|name| (name, batch.clone())));
            }
        }
        batches
    }

    /// Does the work for all services of the batch, once, and returns the result for one of them.
    pub fn result(
        &self,
        service: &str,
        work: impl FnOnce(&[&'a Service]) -> Vec<Result<T>>,
    ) -> Result<T> {
        let results = self.results.get_or_init(|| work(&self.services));
        let at = self.services.iter().position(|one| one.name == service);
        results[at.expect("a service is asked for in its own batch")].clone()
    }
}
