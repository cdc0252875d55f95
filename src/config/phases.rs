//! Phases as the configuration writes them: by number or by name, with either of them as the key.

use super::complaint::Complaint;
use crate::model::{Service, nearest};
use schemars::JsonSchema;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A phase, by its number or its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum PhaseRef {
    Number(u32),
    Name(String),
}

impl PhaseRef {
    /// Parses a phase. Text that is a number stands for the phase of that number, other text for a
    /// name.
    pub fn parse(text: &str) -> PhaseRef {
        match text.parse() {
            // Only the usual form of a number counts: otherwise "1" and "01" would be one phase
            // with two names.
            Ok(number) if u32::to_string(&number) == text => PhaseRef::Number(number),
            _ => PhaseRef::Name(text.to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for PhaseRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PhaseVisitor;
        impl Visitor<'_> for PhaseVisitor {
            type Value = PhaseRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the number or the name of a phase")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<PhaseRef, E> {
                Ok(PhaseRef::parse(text))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PhaseRef, E> {
                let refused = |_| E::invalid_value(de::Unexpected::Unsigned(number), &self);
                u32::try_from(number).map(PhaseRef::Number).map_err(refused)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<PhaseRef, E> {
                let refused = |_| E::invalid_value(de::Unexpected::Signed(number), &self);
                u32::try_from(number).map(PhaseRef::Number).map_err(refused)
            }
        }
        deserializer.deserialize_any(PhaseVisitor)
    }
}

/// Returns the JSON Schema of `[phases]`, which maps a number to a name or a name to a number.
pub fn schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "patternProperties": {"^[0-9]+$": {"type": "string"}},
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": u32::MAX}
    })
}

/// Numbers and names of the phases that have a name.
#[derive(Default)]
pub struct PhaseNames {
    by_number: BTreeMap<u32, String>,
    by_name: BTreeMap<String, u32>,
}

impl PhaseNames {
    /// Reads the names from the `[phases]` table, in which either the number or the name may be the
    /// key. Fails with the key that is wrong and the reason.
    pub fn of(
        table: &BTreeMap<String, PhaseRef>,
    ) -> std::result::Result<PhaseNames, Complaint<String>> {
        let mut names = PhaseNames::default();
        for (key, value) in table {
            names.add(key, value).map_err(|problem| (key.clone(), problem))?;
        }
        Ok(names)
    }

    fn add(&mut self, key: &str, value: &PhaseRef) -> std::result::Result<(), String> {
        let (number, name) = match (&PhaseRef::parse(key), value) {
            (PhaseRef::Number(number), PhaseRef::Name(name))
            | (PhaseRef::Name(name), PhaseRef::Number(number)) => (*number, name.clone()),
            (PhaseRef::Number(number), PhaseRef::Number(_)) => {
                return Err(format!("a phase's name must be a word, as in {number} = \"video\""));
            }
            (PhaseRef::Name(_), PhaseRef::Name(_)) => {
                return Err("a phase must be a number, as in 4 = \"video\" or video = 4".to_owned());
            }
        };
        // "01" is accepted neither as a number nor as a name.
        if name.is_empty() || name.parse::<u64>().is_ok() {
            return Err("a phase's name must be a word, not a number".to_owned());
        }
        if self.by_name.insert(name.clone(), number).is_some() {
            return Err(format!("\"{name}\" is the name of two phases"));
        }
        match self.by_number.insert(number, name.clone()) {
            Some(other) => Err(format!("phase {number} has two names, \"{other}\" and \"{name}\"")),
            None => Ok(()),
        }
    }

    /// Returns the numbers of the phases that a service lists, or fails if a name is not known.
    pub fn numbers(&self, phases: &[PhaseRef]) -> std::result::Result<BTreeSet<u32>, String> {
        let number = |phase: &PhaseRef| match phase {
            PhaseRef::Number(number) => Ok(*number),
            PhaseRef::Name(name) => {
                self.by_name.get(name).copied().ok_or_else(|| self.unknown(name))
            }
        };
        phases.iter().map(number).collect()
    }

    fn unknown(&self, name: &str) -> String {
        match nearest(name, self.by_name.keys().map(String::as_str)) {
            Some(nearest) => format!("no phase is named \"{name}\"; did you mean \"{nearest}\"?"),
            None => {
                format!("no phase is named \"{name}\"; give it a number under [phases]: {name} = 4")
            }
        }
    }

    /// Returns the number of every phase that has a name or is listed by a service, with its name
    /// if it has one.
    pub fn with<'a>(
        self,
        services: impl IntoIterator<Item = &'a Service>,
    ) -> BTreeMap<u32, Option<String>> {
        let listed = services.into_iter().flat_map(|service| &service.phases);
        let mut phases: BTreeMap<u32, Option<String>> =
            listed.map(|number| (*number, None)).collect();
        phases.extend(self.by_number.into_iter().map(|(number, name)| (number, Some(name))));
        phases
    }
}
