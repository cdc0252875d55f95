//! Finds patterns that match the start command of another service, because of which a process
//! started by hand could be taken for the wrong service.

use super::Config;
use crate::model::{Manager, Native};
use crate::pattern::Pattern;
use std::fmt;

/// Overlap of two native services: the `match` of one finds the `start` of the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Name of the service whose `match` it is.
    pub finder: String,
    /// Name of the service whose `start` is found.
    pub found: String,
    /// Whether the pattern finds more than the name of a program with which both services are
    /// started.
    pub is_certain: bool,
}

impl fmt::Display for Overlap {
    /// Writes "services.a.match finds the start command of service b", or "the program of service
    /// b" if the overlap is not certain.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Overlap { finder, found, is_certain } = self;
        let what = if *is_certain { "the start command" } else { "the program" };
        write!(f, "services.{finder}.match finds {what} of service {found}")
    }
}

impl Overlap {
    /// Returns what to do about the overlap.
    pub fn hint(&self) -> String {
        let Overlap { finder, found, .. } = self;
        format!(
            "set services.{finder}.match to something that {found} does not have, such as its port"
        )
    }
}

/// Returns all overlaps of the native services, in the order of the configuration.
pub fn overlaps(config: &Config) -> Vec<Overlap> {
    let natives = || {
        config.services.iter().filter_map(|service| match &service.manager {
            Manager::Native(native) => Some((&service.name, native)),
            _ => None,
        })
    };
    let program = |native: &Native| native.start.split_whitespace().next().map(str::to_owned);
    let mut found = Vec::new();
    for (finder, own) in natives() {
        // A pattern that is not a valid expression was refused when the configuration was read.
        let Some(pattern) = own.pattern.as_deref().and_then(|text| Pattern::new(text).ok()) else {
            continue;
        };
        let others = natives().filter(|(name, _)| *name != finder);
        for (name, other) in others.filter(|(_, other)| pattern.matches_text(&other.start)) {
            let shared = program(other).filter(|shared| Some(shared) == program(own).as_ref());
            found.push(Overlap {
                finder: finder.clone(),
                found: name.clone(),
                is_certain: !shared.is_some_and(|program| pattern.matches_text(&program)),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaps_of(services: &[(&str, &str, &str)]) -> Vec<(String, String, bool)> {
        let service = |(name, start, pattern): &(&str, &str, &str)| {
            format!(
                "[services.{name}]\ntype = \"native\"\nvram_mb = 1\nstart = '{start}'\nmatch = '{pattern}'\n"
            )
        };
        let text: String = services.iter().map(service).collect();
        let found = overlaps(&Config::of_text(&text).expect("a valid configuration"));
        found.into_iter().map(|it| (it.finder, it.found, it.is_certain)).collect()
    }

    #[test]
    fn a_pattern_that_finds_another_services_start_is_certain_or_likely() {
        let overlap = |certain| vec![("a".to_owned(), "b".to_owned(), certain)];
        for (services, expected) in [
            ([("a", "serve a", "serve.*8001"), ("b", "serve b 8002", "serve.*8002")], vec![]),
            ([("a", "serve a", "serve .*1"), ("b", "serve b 8001", "b 8001")], overlap(true)),
            ([("a", "start_a.sh", "serve"), ("b", "serve b 8001", "b 8001")], overlap(true)),
            ([("a", "serve a", "serve"), ("b", "serve b 8001", "b 8001")], overlap(false)),
        ] {
            assert_eq!(overlaps_of(&services), expected, "{services:?}");
        }
    }
}
