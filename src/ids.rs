//! Numbers of tensors, tasks, stages and files, each of a type of its own, and lists that they index.
//!
//! A number of one kind does not index a list of another. Of some there may be millions, so each has four bytes.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Index, IndexMut, Range};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The number of an element of an [`IdVec`].
pub trait Id: Copy + Ord {
    /// The element at this position. Lists with more than 2³² elements do not occur: what is counted is bounded.
    fn new(position: usize) -> Self;

    /// The position.
    fn index(self) -> usize;
}

/// The numbers of a range.
pub fn each<I: Id>(range: Range<I>) -> impl Iterator<Item = I> {
    (range.start.index()..range.end.index()).map(I::new)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(u32);

        impl $name {
            /// The element at this position.
            #[must_use]
            pub const fn new(position: usize) -> Self {
                Self(position as u32)
            }

            /// The position.
            #[must_use]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }

        impl Id for $name {
            fn new(position: usize) -> Self {
                Self::new(position)
            }

            fn index(self) -> usize {
                self.index()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                usize::schema_name()
            }

            fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
                usize::json_schema(generator)
            }
        }
    )*};
}

ids! {
    /// A tensor of the model.
    TensorId;
    /// A weight file of the model.
    ShardId;
    /// A stage of the recipe.
    StageId;
    /// A task of the plan.
    TaskId;
    /// An export of the plan.
    ExportId;
    /// A tensor of an export.
    OutputTensorId;
    /// A weight file of an export.
    FileId;
}

/// A list whose elements have numbers of the type `I`. Without their numbers, they are a slice.
pub struct IdVec<I, T> {
    items: Vec<T>,
    of: PhantomData<fn() -> I>,
}

impl<I: Id, T> IdVec<I, T> {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { items: Vec::new(), of: PhantomData }
    }

    /// An empty list with memory for so many elements.
    #[must_use]
    pub fn with_capacity(count: usize) -> Self {
        Vec::with_capacity(count).into()
    }

    /// Adds an element, and returns its number.
    pub fn push(&mut self, item: T) -> I {
        self.items.push(item);
        I::new(self.items.len() - 1)
    }

    /// The element with this number, if there is one.
    #[must_use]
    pub fn get(&self, id: I) -> Option<&T> {
        self.items.get(id.index())
    }

    /// The numbers of the elements.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = I> + ExactSizeIterator + use<I, T> {
        (0..self.items.len()).map(I::new)
    }

    /// The elements with their numbers.
    pub fn numbered(&self) -> impl DoubleEndedIterator<Item = (I, &T)> + ExactSizeIterator {
        self.items.iter().enumerate().map(|(position, item)| (I::new(position), item))
    }

    /// A list of the same numbers, with an element made for each.
    pub fn map<U>(&self, make: impl FnMut(&T) -> U) -> IdVec<I, U> {
        self.items.iter().map(make).collect()
    }

    /// The elements alone.
    #[must_use]
    pub fn into_vec(self) -> Vec<T> {
        self.items
    }
}

impl<I: Id, T> Index<I> for IdVec<I, T> {
    type Output = T;

    fn index(&self, id: I) -> &T {
        &self.items[id.index()]
    }
}

impl<I: Id, T> Index<Range<I>> for IdVec<I, T> {
    type Output = [T];

    fn index(&self, ids: Range<I>) -> &[T] {
        &self.items[ids.start.index()..ids.end.index()]
    }
}

impl<I: Id, T> IndexMut<I> for IdVec<I, T> {
    fn index_mut(&mut self, id: I) -> &mut T {
        &mut self.items[id.index()]
    }
}

impl<I, T> Deref for IdVec<I, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl<I, T> DerefMut for IdVec<I, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.items
    }
}

impl<I, T> From<Vec<T>> for IdVec<I, T> {
    fn from(items: Vec<T>) -> Self {
        Self { items, of: PhantomData }
    }
}

impl<I, T> FromIterator<T> for IdVec<I, T> {
    fn from_iter<Items: IntoIterator<Item = T>>(items: Items) -> Self {
        Vec::from_iter(items).into()
    }
}

impl<I, T> IntoIterator for IdVec<I, T> {
    type Item = T;
    type IntoIter = std::vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<'a, I, T> IntoIterator for &'a IdVec<I, T> {
    type Item = &'a T;
    type IntoIter = std::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

impl<'a, I, T> IntoIterator for &'a mut IdVec<I, T> {
    type Item = &'a mut T;
    type IntoIter = std::slice::IterMut<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter_mut()
    }
}

impl<I, T> Extend<T> for IdVec<I, T> {
    fn extend<Items: IntoIterator<Item = T>>(&mut self, items: Items) {
        self.items.extend(items);
    }
}

impl<I, T> Default for IdVec<I, T> {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl<I, T: Clone> Clone for IdVec<I, T> {
    fn clone(&self) -> Self {
        self.items.clone().into()
    }
}

impl<I, T: PartialEq> PartialEq for IdVec<I, T> {
    fn eq(&self, other: &Self) -> bool {
        self.items == other.items
    }
}

impl<I, T: Eq> Eq for IdVec<I, T> {}

impl<I, T: fmt::Debug> fmt::Debug for IdVec<I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.items.fmt(f)
    }
}

impl<I, T: Serialize> Serialize for IdVec<I, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.items.serialize(serializer)
    }
}

impl<'de, I, T: Deserialize<'de>> Deserialize<'de> for IdVec<I, T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self::from)
    }
}

impl<I, T: schemars::JsonSchema> schemars::JsonSchema for IdVec<I, T> {
    fn inline_schema() -> bool {
        Vec::<T>::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        Vec::<T>::schema_name()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Vec::<T>::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_numbers() {
        let json = serde_json::to_string(&[TaskId::new(7)]).unwrap();
        assert_eq!(json, "[7]");
        assert_eq!(serde_json::from_str::<[TaskId; 1]>(&json).unwrap(), [TaskId::new(7)]);
        assert_eq!(schemars::schema_for!(TaskId), schemars::schema_for!(usize));
        assert_eq!(size_of::<Option<[TaskId; 2]>>(), 12);
    }

    #[test]
    fn lists_are_indexed_by_their_own_numbers() {
        let mut list: IdVec<TaskId, &str> = vec!["a", "b"].into();
        let id = list.push("c");
        assert_eq!((list[id], list.get(TaskId::new(3)), list.len()), ("c", None, 3));
        assert!(list.numbered().map(|(id, _)| id).eq(list.ids()));
        assert_eq!(list.map(|text| text.len())[id], 1);
    }
}
