//! Weights in memory, for tests.

use std::collections::BTreeMap;
use std::ops::Range;

use super::Weights;
use crate::finding::Finding;

/// The shape and numbers of each tensor.
pub(super) struct Small(pub BTreeMap<String, (Vec<usize>, Vec<f32>)>);

impl Weights for Small {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.0.get(name)?.0.clone())
    }

    fn read(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, Finding> {
        let (shape, values) = &self.0[name];
        let inner: usize = shape[1..].iter().product();
        Ok(values[rows.start * inner..rows.end * inner].to_vec())
    }
}
