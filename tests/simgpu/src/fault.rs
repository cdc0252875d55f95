//! The faults that `card.json` gives to NVML functions: an error code, silence for ever, or
//! slowness. A fault is written as `"gpu_is_lost"`, `15`, `"hang"`, or as an object with the
//! optional keys `error`, `delay_ms`, `from_call` and `to_call`.

use std::time::Duration;

use serde::Deserialize;

use crate::code::{self, Code};

/// A fault of an NVML function, and the calls of the function that have it.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "Written")]
pub struct Fault {
    pub outcome: Outcome,
    /// Time that the function takes before it proceeds or fails.
    pub delay: Duration,
    from_call: u64,
    to_call: u64,
}

/// What an NVML function with a fault does: it proceeds as usual, fails, or never answers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    Proceed,
    Fail(Code),
    Hang,
}

impl Fault {
    /// Reports whether the fault befalls this process's `call`-th call of the function, counted
    /// from 1.
    pub fn befalls(&self, call: u64) -> bool {
        (self.from_call..=self.to_call).contains(&call)
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Short(Error),
    Long(Long),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Long {
    error: Option<Error>,
    #[serde(default)]
    delay_ms: u64,
    #[serde(default)]
    from_call: u64,
    to_call: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Error {
    Number(Code),
    Name(String),
}

impl TryFrom<Written> for Fault {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let long = match written {
            Written::Long(long) => long,
            Written::Short(error) => {
                Long { error: Some(error), delay_ms: 0, from_call: 0, to_call: None }
            }
        };
        Ok(Self {
            outcome: long.error.map_or(Ok(Outcome::Proceed), Outcome::try_from)?,
            delay: Duration::from_millis(long.delay_ms),
            from_call: long.from_call,
            to_call: long.to_call.unwrap_or(u64::MAX),
        })
    }
}

impl TryFrom<Error> for Outcome {
    type Error = String;

    fn try_from(error: Error) -> Result<Self, String> {
        match error {
            Error::Number(code) => Ok(Self::Fail(code)),
            Error::Name(name) if name == "hang" => Ok(Self::Hang),
            Error::Name(name) => {
                code::named(&name).map(Self::Fail).ok_or(format!("no NVML code {name:?}"))
            }
        }
    }
}
