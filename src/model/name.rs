//! Names of tensors, millions of which are held at once: all names of a file lie in one text.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a tensor: a part of a text that it shares with the other names of its file.
#[derive(Clone)]
pub struct Name {
    text: Arc<String>,
    start: u32,
    end: u32,
}

impl Name {
    /// The name as a text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self
    }

    /// The name without its first so many bytes.
    #[must_use]
    pub fn without_first(&self, bytes: usize) -> Self {
        let start = (self.start as usize + bytes).min(self.end as usize) as u32;
        Self { text: Arc::clone(&self.text), start, end: self.end }
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        self.text.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

impl From<&str> for Name {
    fn from(name: &str) -> Self {
        let mut names = Names::default();
        let span = names.push(name).unwrap_or_default();
        names.shared().at(span)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Name {}

impl Hash for Name {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self
    }
}

impl Borrow<str> for Name {
    fn borrow(&self) -> &str {
        self
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|name| Self::from(name.as_str()))
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl PartialEq<str> for Name {
    fn eq(&self, other: &str) -> bool {
        **self == *other
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, other: &&str) -> bool {
        **self == **other
    }
}

/// Where a name lies in a text of names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

/// Names that are being put together.
#[derive(Debug, Default)]
pub(crate) struct Names(String);

impl Names {
    /// Adds a name; none where all of them would be longer than any header.
    pub(crate) fn push(&mut self, name: &str) -> Option<Span> {
        let end = u32::try_from(self.0.len().checked_add(name.len())?).ok()?;
        let start = self.0.len() as u32;
        self.0.push_str(name);
        Some(Span { start, end })
    }

    /// The name at a place.
    #[must_use]
    pub(crate) fn get(&self, span: Span) -> &str {
        self.0.get(span.start as usize..span.end as usize).unwrap_or_default()
    }

    /// The names, complete.
    #[must_use]
    pub(crate) fn shared(mut self) -> SharedNames {
        self.0.shrink_to_fit();
        SharedNames(Arc::new(self.0))
    }
}

/// The text that names lie in.
#[derive(Debug, Clone)]
pub(crate) struct SharedNames(Arc<String>);

impl SharedNames {
    /// The name at a place.
    #[must_use]
    pub(crate) fn at(&self, span: Span) -> Name {
        Name { text: Arc::clone(&self.0), start: span.start, end: span.end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parts_of_one_text() {
        let mut names = Names::default();
        let (first, empty, last) =
            (names.push("a.ä").unwrap(), names.push("").unwrap(), names.push("b.weight").unwrap());
        assert_eq!(names.get(last), "b.weight");
        let names = names.shared();
        let (first, empty, last) = (names.at(first), names.at(empty), names.at(last));
        assert_eq!((&*first, &*empty, &*last), ("a.ä", "", "b.weight"));
        assert!(last == "b.weight" && Name::from("b.weight").as_str() == &*last && last != first);
        assert_eq!(format!("{last:>10} {first:?}"), "  b.weight \"a.ä\"");
        assert_eq!((&*last.without_first(2), &*last.without_first(99)), ("weight", ""));
        assert!(size_of::<Name>() <= 16);
    }
}
