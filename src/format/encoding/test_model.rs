//! Models in memory, for tests of encodings that are read.

use std::ops::Range;

use serde_json::Value;

use super::{Catalog, Fetched, ReadEncoding, Recognized, StoredTensor, unquantized};
use crate::format::Dtype;
use crate::ids::TensorId;
use crate::quant::Integers;

/// A model of some tensors.
#[derive(Debug, Default)]
pub(super) struct TestModel {
    pub(super) declaration: Option<Value>,
    pub(super) config: Value,
    tensors: Vec<(String, Dtype, Vec<u64>, Vec<u8>)>,
}

impl TestModel {
    pub(super) fn with(mut self, name: &str, dtype: Dtype, shape: &[u64], bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len() as u64, shape.iter().product::<u64>() * dtype.bits() / 8, "{name}");
        self.tensors.push((name.to_owned(), dtype, shape.to_vec(), bytes));
        self
    }

    pub(super) fn recognize(
        &self,
        encoding: &dyn ReadEncoding,
        name: &str,
    ) -> Option<Result<Recognized, String>> {
        encoding.recognize(self, self.find(name).unwrap())
    }

    /// Rows of a recognized matrix, from the bytes that they need and no others.
    pub(super) fn rows(&self, codes: &str, found: &Recognized, rows: Range<u64>) -> Result<Vec<f32>, String> {
        let columns = *found.shape.last().unwrap() as usize;
        let mut out = Vec::new();
        self.fetched(codes, found, rows, |fetched, row| {
            let mut weights = vec![f32::MAX; columns];
            found.matrix.decode_row(fetched, row, &mut weights)?;
            // The way to bytes is another one in some encodings.
            let (mut bytes, mut appended) = (Vec::new(), Vec::new());
            unquantized::write(&weights, found.dtype, &mut bytes);
            let to = (found.dtype, &mut appended);
            found.matrix.append_row(fetched, row, to, &mut vec![f32::MAX; columns])?;
            assert!(appended == bytes, "row {row}");
            out.append(&mut weights);
            Ok(())
        })?;
        Ok(out)
    }

    /// Codes, zero points and scales of rows that can be re-labelled.
    pub(super) fn integers(
        &self,
        codes: &str,
        found: &Recognized,
        rows: Range<u64>,
    ) -> Result<Integers, String> {
        let mut out = Integers::default();
        self.fetched(codes, found, rows, |fetched, row| found.matrix.relabel_row(fetched, row, &mut out))?;
        Ok(out)
    }

    /// Does something with each of some rows, for which the bytes that they need were fetched.
    fn fetched(
        &self,
        codes: &str,
        found: &Recognized,
        mut rows: Range<u64>,
        mut each: impl FnMut(&Fetched<'_>, u64) -> Result<(), String>,
    ) -> Result<(), String> {
        let indices = std::iter::once(self.find(codes).unwrap()).chain(found.parts.iter().copied());
        let bytes: Vec<Vec<u8>> = indices
            .enumerate()
            .map(|(part, index)| {
                let ranges = found.matrix.ranges(part, rows.clone());
                let all = &self.tensors[index.index()].3;
                let stretch = |start: u64| &all[start as usize..(start + ranges.bytes) as usize];
                ranges.starts().flat_map(|start| stretch(start).to_vec()).collect()
            })
            .collect();
        let fetched = Fetched { rows: rows.clone(), parts: bytes.iter().map(Vec::as_slice).collect() };
        rows.try_for_each(|row| each(&fetched, row))
    }
}

impl Catalog for TestModel {
    fn tensor(&self, tensor: TensorId) -> StoredTensor<'_> {
        let (name, dtype, shape, _) = &self.tensors[tensor.index()];
        StoredTensor { name, dtype: *dtype, shape }
    }

    fn find(&self, name: &str) -> Option<TensorId> {
        self.tensors.iter().position(|tensor| tensor.0 == name).map(TensorId::new)
    }

    fn declaration(&self) -> Option<&Value> {
        self.declaration.as_ref()
    }

    fn config(&self, key: &str) -> Option<&Value> {
        self.config.get(key)
    }

    fn bytes(&self, tensor: TensorId, range: Range<u64>) -> Result<Vec<u8>, String> {
        let bytes = self.tensors[tensor.index()].3.get(range.start as usize..range.end as usize);
        bytes.map(<[u8]>::to_vec).ok_or_else(|| "is too short".to_owned())
    }
}
