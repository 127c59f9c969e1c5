//! Tensors by their names.

use std::cmp::Ordering;

use super::tensor::TensorInfo;
use crate::ids::{IdVec, TensorId};
use crate::threads;

/// Finds tensors by name: their numbers, ordered by name. Holds no copy of the names.
#[derive(Debug, Clone)]
pub(super) struct NameIndex(Vec<TensorId>);

impl NameIndex {
    pub(super) fn of(tensors: &IdVec<TensorId, TensorInfo>) -> Self {
        let name = |id: TensorId| tensors[id].name.as_str();
        let mut order: Vec<TensorId> = tensors.ids().collect();
        // Tensors of one name stay in their order.
        threads::sort_by(&mut order, |&a, &b| name(a).cmp(name(b)).then(a.cmp(&b)));
        Self(order)
    }

    /// The tensor with this name.
    pub(super) fn find(&self, tensors: &IdVec<TensorId, TensorInfo>, name: &str) -> Option<TensorId> {
        self.find_where(tensors, |known| known.cmp(name))
    }

    /// The tensor whose name compares as equal.
    pub(super) fn find_where(
        &self,
        tensors: &IdVec<TensorId, TensorInfo>,
        compare: impl Fn(&str) -> Ordering,
    ) -> Option<TensorId> {
        let at = self.0.binary_search_by(|&id| compare(&tensors[id].name)).ok()?;
        Some(self.0[at])
    }

    /// Pairs of tensors with one name.
    pub(super) fn duplicates<'a>(
        &'a self,
        tensors: &'a IdVec<TensorId, TensorInfo>,
    ) -> impl Iterator<Item = [&'a TensorInfo; 2]> {
        let pairs = self.0.windows(2).map(|pair| [&tensors[pair[0]], &tensors[pair[1]]]);
        pairs.filter(|[a, b]| a.name == b.name)
    }
}
