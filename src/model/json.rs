//! Strict reading of JSON objects: a name that occurs twice is detected, while the usual maps silently keep the last
//! one.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, de};

/// The entries of a JSON object in the order of the text, duplicates and all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entries<V>(pub Vec<(String, V)>);

impl<V> Entries<V> {
    /// The names that occur more than once, each once, ordered.
    #[must_use]
    pub(crate) fn duplicates(&self) -> Vec<&str> {
        duplicates(self.0.iter().map(|(name, _)| name.as_str())).collect()
    }
}

/// Those of `names` that occur more than once, each once, ordered.
pub(crate) fn duplicates<'a>(names: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let mut twice: Vec<&str> =
        names.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
    twice.dedup();
    twice.into_iter()
}

impl<'de, V: DeserializeOwned> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<V>(PhantomData<V>);

impl<'de, V: DeserializeOwned> Visitor<'de> for EntriesVisitor<V> {
    type Value = Entries<V>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value::<V>().map_err(|e| named(&name, &e))?;
            entries.push((name, value));
        }
        Ok(Entries(entries))
    }
}

/// The different texts that an object has as values. Its names, of which there may be millions, are not held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Values(pub BTreeSet<String>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self::default())
    }
}

impl<'de> Visitor<'de> for Values {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((_, value)) = map.next_entry::<de::IgnoredAny, String>()? {
            self.0.insert(value);
        }
        Ok(self)
    }
}

/// The same error, with the name of the entry in which it occurred.
pub(super) fn named<E: de::Error>(name: &str, error: &E) -> E {
    Error::custom(format_args!("`{name}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_order_and_sees_duplicates() {
        let entries: Entries<u32> = serde_json::from_str(r#"{"b": 1, "a": 2, "b": 3, "b": 4}"#).unwrap();
        assert_eq!(entries.0[0], ("b".to_owned(), 1));
        assert_eq!(entries.duplicates(), ["b"]);
        let wrong = serde_json::from_str::<Entries<u32>>(r#"{"x": "y"}"#).unwrap_err();
        assert!(wrong.to_string().contains("`x`"), "{wrong}");
    }
}
