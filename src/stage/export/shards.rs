//! Sharding of an export into files.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// `keep`, or the largest size of one weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Shards {
    /// The files of the source, under their names.
    #[default]
    Keep,
    /// Files of at most this many bytes. A larger tensor has a file of its own.
    MaxBytes(u64),
}

const UNITS: [(&str, u64); 6] = [
    ("KIB", 1 << 10),
    ("MIB", 1 << 20),
    ("GIB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// The largest size, 2^50 bytes: up to here sizes in KB with a fraction go round through f64.
const LARGEST: f64 = (1_u64 << 50) as f64;

/// Reads a size such as `5GB` or `512MiB` in bytes.
///
/// # Errors
/// If the text is not a positive number and a unit of KB, MB, GB, KiB, MiB or GiB, or is more than one PiB.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let upper = text.trim().to_ascii_uppercase();
    UNITS
        .iter()
        .find_map(|(unit, factor)| {
            let number: f64 = upper.strip_suffix(unit)?.trim().parse().ok()?;
            let bytes = (number * *factor as f64).round();
            (1.0..=LARGEST).contains(&bytes).then_some(bytes as u64)
        })
        .ok_or_else(|| format!("`{text}` is not a size such as 5GB or 512MiB"))
}

impl TryFrom<String> for Shards {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text == "keep" {
            return Ok(Self::Keep);
        }
        parse_size(&text).map(Self::MaxBytes)
    }
}

impl From<Shards> for String {
    fn from(shards: Shards) -> Self {
        match shards {
            Shards::Keep => "keep".to_owned(),
            Shards::MaxBytes(bytes) => {
                let (unit, factor) = UNITS
                    .iter()
                    .rev()
                    .find(|(_, factor)| bytes % factor == 0)
                    .map_or(("KB", 1_000), |(unit, factor)| (*unit, *factor));
                if bytes % factor == 0 {
                    format!("{}{}", bytes / factor, unit.replace("IB", "iB"))
                } else {
                    format!("{}KB", bytes as f64 / 1_000.0)
                }
            }
        }
    }
}

impl JsonSchema for Shards {
    fn schema_name() -> Cow<'static, str> {
        "Shards".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "`keep`, or the largest size of a weight file, such as `5GB` or `512MiB`.",
            "type": "string",
            "format": "shard-size",
            "pattern": r"^(keep|[0-9]+(\.[0-9]+)? *([kK]|[mM]|[gG])[iI]?[bB])$",
            "examples": ["keep", "5GB"]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_go_round() {
        for text in ["keep", "5GB", "512MiB", "3GiB", "1.5KB", "1.001KB", "4.35 mb", "1048575.999KB"] {
            let shards = Shards::try_from(text.to_owned()).unwrap();
            let again = Shards::try_from(String::from(shards)).unwrap();
            assert_eq!(shards, again, "{text}");
        }
        assert!(Shards::try_from("5".to_owned()).is_err());
        assert!(Shards::try_from("0GB".to_owned()).is_err());
        assert!(Shards::try_from("99999999GB".to_owned()).is_err());
        assert!(Shards::try_from("infGB".to_owned()).is_err());
    }
}
