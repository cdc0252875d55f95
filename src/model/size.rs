//! Sizes of memory, as they are written in the configuration and on the command line.

use schemars::JsonSchema;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// A memory size in MB of 1,048,576 bytes, the unit of NVML's tools and of the project's seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Mb(pub u64);

impl Mb {
    /// Greatest size that is accepted: far more than any card has, so that a larger figure is a
    /// typing error.
    pub const MAX: Mb = Mb(16 * 1024 * 1024);

    /// Description of how a size is written, for messages.
    pub const FORM: &str = "a number of MB such as 20000, or a number with a unit: 20000MB, 20GB, 20G or 20GiB, at most 16777216 MB";

    /// Converts a number of bytes, rounding down.
    pub fn of_bytes(bytes: u64) -> Mb {
        Mb(bytes / (1024 * 1024))
    }

    pub fn saturating_sub(self, other: Mb) -> Mb {
        Mb(self.0.saturating_sub(other.0))
    }

    /// Parses `20000`, `20000MB`, `20GB`, `20G` or `20GiB`; G, GB and GiB all mean 1024 MB. Returns
    /// `None` for anything else, and for more than `Mb::MAX`.
    pub fn parse(text: &str) -> Option<Mb> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = text[..digits].parse().ok()?;
        let unit = match text[digits..].trim_start().to_ascii_lowercase().as_str() {
            "" | "m" | "mb" | "mib" => 1,
            "g" | "gb" | "gib" => 1024,
            _ => return None,
        };
        let size = Mb(number.checked_mul(unit)?);
        (size <= Mb::MAX).then_some(size)
    }
}

impl std::ops::Add for Mb {
    type Output = Mb;
    fn add(self, other: Mb) -> Mb {
        Mb(self.0.saturating_add(other.0))
    }
}

impl std::iter::Sum for Mb {
    fn sum<I: Iterator<Item = Mb>>(sizes: I) -> Mb {
        sizes.fold(Mb(0), |sum, size| sum + size)
    }
}

impl fmt::Display for Mb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MB", self.0)
    }
}

impl<'de> Deserialize<'de> for Mb {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MbVisitor;

        fn read<E: de::Error>(written: &str, quoted: impl fmt::Display) -> Result<Mb, E> {
            let wrong = || E::custom(format!("{quoted} is not a valid size; write {}", Mb::FORM));
            Mb::parse(written).ok_or_else(wrong)
        }

        impl Visitor<'_> for MbVisitor {
            type Value = Mb;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Mb::FORM)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Mb, E> {
                read(text, format_args!("\"{text}\""))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Mb, E> {
                read(&number.to_string(), number)
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Mb, E> {
                read(&number.to_string(), number)
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Mb, E> {
                read(&format!("{number:?}"), number)
            }
        }
        deserializer.deserialize_any(MbVisitor)
    }
}

impl JsonSchema for Mb {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Mb".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["integer", "string"], "minimum": 0, "maximum": Mb::MAX.0,
            "pattern": "^ *[0-9]+ *([MmGg]([Ii]?[Bb])?)? *$",
            "description": "MB of 1,048,576 bytes, as a number or with a unit: 20000, \"20GB\"; G, GB and GiB mean 1024 MB"
        })
    }
}
