//! Tensors by their names.

use std::cmp::Ordering;

use super::tensor::TensorInfo;
use crate::threads;

/// Finds tensors by name: their indices, ordered by name. Holds no copy of the names.
#[derive(Debug, Clone)]
pub(super) struct NameIndex(Vec<u32>);

impl NameIndex {
    pub(super) fn of(tensors: &[TensorInfo]) -> Self {
        let name = |index: u32| tensors[index as usize].name.as_str();
        let mut order: Vec<u32> = (0..tensors.len() as u32).collect();
        // Tensors of one name stay in their order.
        threads::sort_by(&mut order, |&a, &b| name(a).cmp(name(b)).then(a.cmp(&b)));
        Self(order)
    }

    /// The index of the tensor with this name.
    pub(super) fn find(&self, tensors: &[TensorInfo], name: &str) -> Option<usize> {
        self.find_where(tensors, |known| known.cmp(name))
    }

    /// The index of the tensor whose name compares as equal.
    pub(super) fn find_where(
        &self,
        tensors: &[TensorInfo],
        compare: impl Fn(&str) -> Ordering,
    ) -> Option<usize> {
        let at = self.0.binary_search_by(|&i| compare(&tensors[i as usize].name)).ok()?;
        Some(self.0[at] as usize)
    }

    /// Pairs of tensors with one name.
    pub(super) fn duplicates<'a>(
        &'a self,
        tensors: &'a [TensorInfo],
    ) -> impl Iterator<Item = [&'a TensorInfo; 2]> {
        let pairs = self.0.windows(2).map(|pair| [&tensors[pair[0] as usize], &tensors[pair[1] as usize]]);
        pairs.filter(|[a, b]| a.name == b.name)
    }
}
