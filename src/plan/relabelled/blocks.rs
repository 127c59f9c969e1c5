//! MXFP4 that becomes FP8 in blocks: whether the exponents of each block lie close enough together. This is the one question of a
//! plan that reads numbers: the exponents, a seventeenth of such a tensor.

use std::collections::HashMap;

use crate::finding::Failure;
use crate::format::encoding::Exact;
use crate::ids::{IdVec, ShardId, TensorId};
use crate::layer::LayerType;
use crate::model::read::WeightFile;
use crate::model::{self, LayerClass, MatrixView, ModelFolder};
use crate::quant::{Bits, FloatType, Granularity, Scheme, Span, Storage, is_zero};
use crate::stage::ActivationScheme;

/// Rows and columns of a block.
const SIZE: u64 = 128;

/// Columns that share an exponent.
const GROUP: u64 = 32;

/// Reads exponents of a model.
pub(super) struct Blocks<'m> {
    model: &'m ModelFolder,
    classes: &'m IdVec<TensorId, LayerClass>,
    files: HashMap<ShardId, WeightFile>,
}

impl<'m> Blocks<'m> {
    pub(super) fn of(model: &'m ModelFolder, classes: &'m IdVec<TensorId, LayerClass>) -> Self {
        Self { model, classes, files: HashMap::new() }
    }

    /// A tensor of MXFP4 as FP8 in blocks.
    ///
    /// # Errors
    /// As [`crate::format::encoding::StoredMatrix::exact`].
    pub(super) fn exact(&mut self, tensor: TensorId) -> Result<Exact, String> {
        let (mut wide, mut all) = (0, 0);
        let told = |failure: Failure| {
            let message = failure.findings.first().map(|finding| finding.message.clone());
            message.unwrap_or_else(|| "its exponents cannot be read".to_owned())
        };
        for view in self.views(tensor) {
            for first in (0..view.rows).step_by(SIZE as usize) {
                let spans = self.spans(tensor, view, first).map_err(told)?;
                wide += spans.iter().filter(|span| !span.fits()).count();
                all += spans.len();
            }
        }
        if wide > 0 {
            return Err(format!(
                "the exponents of {wide} of {all} blocks of {SIZE} × {SIZE} lie more than 14 apart, and one scale does not hold \
                 their numbers"
            ));
        }
        let scheme = Scheme {
            bits: Bits::Eight,
            symmetric: true,
            granularity: Granularity::Block(SIZE as usize),
            // Powers of two are exact in it.
            scale_type: FloatType::Bf16,
            storage: Storage::Float8,
        };
        let because =
            "the same numbers in FP8, since the exponents of each block lie within 14 of each other";
        Ok(Exact { scheme, activations: ActivationScheme::DynamicTokenFp8, because })
    }

    /// The matrices of a tensor.
    fn views(&self, tensor: TensorId) -> Vec<MatrixView> {
        let info = &self.model.tensors[tensor];
        match self.classes[tensor].kind {
            // What is wrong with a stack is told when it is divided.
            LayerType::Experts => model::experts::stack(self.model, tensor).map_or_else(
                |_| Vec::new(),
                |stack| stack.matrices.into_iter().map(|matrix| matrix.view).collect(),
            ),
            _ => MatrixView::by_rows(info).into_iter().collect(),
        }
    }

    /// What the exponents of the blocks beside each other span, from a row on.
    fn spans(&mut self, tensor: TensorId, view: MatrixView, first: u64) -> Result<Vec<Span>, Failure> {
        let (groups, across) = ((view.cols / GROUP) as usize, view.cols.div_ceil(SIZE) as usize);
        let per_block = (SIZE / GROUP) as usize;
        let exponents = self.rows(tensor, 1, view, first)?;
        let spans_of = |is_zero: &dyn Fn(usize, usize) -> bool| {
            let mut spans = vec![Span::default(); across];
            for (row, exponents) in exponents.chunks(groups.max(1)).enumerate() {
                for (group, &exponent) in exponents.iter().enumerate() {
                    spans[group / per_block].add(exponent, || is_zero(row, group));
                }
            }
            spans
        };
        let spans = spans_of(&|_, _| false);
        if spans.iter().all(|span| span.fits()) {
            return Ok(spans);
        }
        // Groups of zeros have exponents that mean nothing.
        let bytes = GROUP as usize / 2;
        let codes = self.rows(tensor, 0, view, first)?;
        Ok(spans_of(&|row, group| is_zero(&codes[(row * groups + group) * bytes..][..bytes])))
    }

    /// The bytes of a part for the rows of a block: codes are part 0, exponents 1.
    fn rows(
        &mut self,
        tensor: TensorId,
        part: usize,
        view: MatrixView,
        first: u64,
    ) -> Result<Vec<u8>, Failure> {
        let width = if part == 0 { view.cols / 2 } else { view.cols / GROUP } as usize;
        let info = &self.model.tensors[tensor];
        let rows = view.rows(first..first + SIZE);
        let (Some(encoded), Some((start, step)), Some(span)) =
            (&info.encoded, rows.among_all(info), rows.span_among_all(info))
        else {
            return Ok(Vec::new());
        };
        let part_info = match part.checked_sub(1) {
            Some(part) => &self.model.tensors[encoded.parts[part]],
            None => info,
        };
        let shard = part_info.shard;
        if !self.files.contains_key(&shard) {
            let file = WeightFile::open(&*self.model.source, &self.model.shards[shard])?;
            self.files.insert(shard, file);
        }
        let ranges = encoded.matrix.ranges(part, span.clone());
        let mut all = vec![0; ranges.total() as usize];
        if let Some(file) = self.files.get(&shard) {
            file.read_at(part_info.offset + ranges.start, &mut all)?;
        }
        let mut out = Vec::with_capacity(width * SIZE as usize);
        for row in 0..rows.count() {
            let at = (start + row * step - span.start) as usize * width;
            out.extend_from_slice(all.get(at..at + width).unwrap_or_default());
        }
        Ok(out)
    }
}
