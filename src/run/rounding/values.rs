//! Weights of a layer as the output will have them: of chosen codes, or rounded to nearest.

use rayon::prelude::*;

use crate::cancel::Cancel;
use crate::finding::Failure;
use crate::ids::{IdVec, TaskId};
use crate::network::Layout;
use crate::plan::rounding::{ChosenCodes, LayerMatrix, TaskRows};
use crate::plan::{Plan, shared_scales};
use crate::quant::reference::Unpacked;
use crate::quant::{
    BadWeight, FloatType, Isa, Observer, Quantized, Quantizer, Scheme, Scratch, Solver, TensorParams,
};
use crate::run::chosen_codes::read_rows;
use crate::run::stream::solvers::{Solvers, kind};
use crate::run::stream::weights::Weights;
use crate::run::stream::{self, Reading};
use crate::run::workers::Workers;

/// Rows that are rounded at once, and that codes may be packed along.
const TILE: usize = 64;

/// Makes the values of matrices.
pub(super) struct Values<'p> {
    solvers: Solvers<'p>,
    /// Of tasks that share a scale with others.
    shared: IdVec<TaskId, Option<TensorParams>>,
    plan: &'p Plan,
    isa: Isa,
}

impl<'p> Values<'p> {
    /// Looks at the weights that share a scale with others.
    ///
    /// # Errors
    /// If they cannot be read or quantized, or the work is cancelled.
    pub(super) fn new(plan: &'p Plan, isa: Isa, cancel: &Cancel) -> Result<Self, Failure> {
        let tasks: Vec<TaskId> = plan.tasks.ids().collect();
        let solvers = Solvers::new(plan, &tasks, isa);
        let sharing = shared_scales::groups(plan.content()).concat();
        let shared = match sharing.is_empty() {
            true => plan.tasks.map(|_| None),
            false => {
                let workers =
                    Workers::start(plan.budget.workers, plan.budget.worker_bytes(), cancel.clone())?;
                let reading = Reading { plan, source: &Weights::open(plan)?, workers: &workers };
                stream::survey(&reading, &solvers, &sharing)?
            }
        };
        Ok(Self { solvers, shared, plan, isa })
    }

    /// How a matrix is stored. Its observer chooses nothing.
    ///
    /// # Panics
    /// If it is no matrix of a layer that is rounded.
    pub(super) fn quantizer(&self, matrix: &LayerMatrix<'_>) -> Quantizer {
        let tensor = &self.plan.model.tensors[matrix.tensor];
        let source = crate::plan::select::float_type(tensor).unwrap_or(FloatType::F32);
        Quantizer::new(matrix.spec.scheme, Observer::Minmax, source, matrix.linear.columns, self.isa)
    }

    /// The values of a matrix, as its weights lie in its tensor: of the codes that `chosen` has of a task, else rounded to nearest.
    /// Weights that cannot be rounded stay as they are: they are told when they are streamed.
    ///
    /// # Errors
    /// If codes cannot be read.
    pub(super) fn of<'c>(
        &self,
        matrix: &LayerMatrix<'_>,
        weights: &[f32],
        chosen: impl Fn(TaskId) -> Option<&'c ChosenCodes>,
    ) -> Result<Vec<f32>, Failure> {
        let mut out = weights.to_vec();
        let (rows, columns) = (matrix.linear.rows, matrix.linear.columns);
        for part in &matrix.tasks {
            let scheme = &matrix.spec.scheme;
            let values = match chosen(part.task) {
                Some(codes) => {
                    let matrix = read_rows(codes, scheme, (part.rows, columns), 0..part.rows)?;
                    meant(&matrix, scheme, columns)
                }
                None => match self.nearest(part, (weights, rows, columns), matrix.linear.layout) {
                    Ok(values) => values,
                    Err(BadWeight { .. }) => continue,
                },
            };
            for (row, values) in part.numbers().zip(values.chunks_exact(columns.max(1))) {
                match matrix.linear.layout {
                    Layout::OutIn => out[row * columns..(row + 1) * columns].copy_from_slice(values),
                    Layout::InOut => {
                        values
                            .iter()
                            .enumerate()
                            .for_each(|(column, value)| out[column * rows + row] = *value);
                    }
                }
            }
        }
        Ok(out)
    }

    /// The weights of a task, rounded to nearest as its stage says.
    fn nearest(
        &self,
        part: &TaskRows,
        (weights, rows, columns): (&[f32], usize, usize),
        layout: Layout,
    ) -> Result<Vec<f32>, BadWeight> {
        let (Some(solver), Some((scheme, _, source, _))) =
            (self.solvers.of(part.task), kind(self.plan, part.task))
        else {
            return Ok(Vec::new());
        };
        let mut own = Vec::with_capacity(part.rows * columns);
        for row in part.numbers() {
            match layout {
                Layout::OutIn => own.extend_from_slice(&weights[row * columns..(row + 1) * columns]),
                Layout::InOut => own.extend((0..columns).map(|column| weights[column * rows + row])),
            }
        }
        let mut bytes = Vec::new();
        source.narrow(&own, &mut bytes);
        drop(own);
        let params = match self.shared[part.task] {
            None if solver.survey_passes() > 0 => Some(survey(&*solver, &bytes, part.rows)?),
            shared => shared,
        };
        let tile = TILE * columns * source.bytes();
        let tiles = bytes.par_chunks(tile.max(1)).enumerate().map(|(number, tile)| {
            let (mut out, mut values, mut scratch) = (Quantized::default(), Vec::new(), Scratch::default());
            let start = number * TILE;
            let range = start..part.rows.min(start + TILE);
            let count = range.len();
            solver.solve(params.as_ref(), tile, range, &mut out, &mut scratch)?;
            solver.dequantize(out.view(), count, &mut values, &mut scratch);
            Ok(scheme.scale_type.widen(&values))
        });
        let tiles: Result<Vec<Vec<f32>>, BadWeight> = tiles.collect();
        Ok(tiles?.concat())
    }
}

/// Looks at a matrix that has one scale for all of it.
fn survey(solver: &dyn Solver, bytes: &[u8], rows: usize) -> Result<TensorParams, BadWeight> {
    let mut survey = solver.begin_survey();
    for _ in 0..solver.survey_passes() {
        let part = solver.survey(&survey, bytes, rows)?;
        survey.merge(part);
        solver.end_pass(&mut survey);
        if solver.is_settled(&survey) {
            break;
        }
    }
    solver.tensor_params(&survey).map_err(|what| BadWeight { row: 0, col: 0, what })
}

/// What codes stand for, as engines see them.
fn meant(matrix: &Unpacked, scheme: &Scheme, columns: usize) -> Vec<f32> {
    let groups = matrix.codes.chunks(scheme.group_cols(columns).max(1));
    let params = matrix.scales.iter().zip(&matrix.zero_points);
    groups
        .zip(params)
        .flat_map(|(codes, (scale, zero))| {
            let value =
                |code: &i8| scheme.scale_type.round(f32::from(i16::from(*code) - i16::from(*zero)) * scale);
            codes.iter().map(value).collect::<Vec<_>>()
        })
        .collect()
}

/// The rows of a task among those of a rounded matrix.
pub(super) fn some_rows(matrix: &Unpacked, rows: &TaskRows, scheme: &Scheme, columns: usize) -> Unpacked {
    fn pick<T: Copy>(all: &[T], rows: &TaskRows, width: usize) -> Vec<T> {
        rows.numbers().flat_map(|row| &all[row * width..(row + 1) * width]).copied().collect()
    }
    let groups = scheme.groups_per_row(columns);
    Unpacked {
        codes: pick(&matrix.codes, rows, columns),
        scales: pick(&matrix.scales, rows, groups),
        zero_points: pick(&matrix.zero_points, rows, groups),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::network::{Checkpoint, Linear, Weights as _};
    use crate::plan::rounding::of_layer;
    use crate::plan::{Limits, plan};
    use crate::recipe::{Overrides, from_text};
    use crate::run::event::Silent;
    use crate::run::outcome::Options;

    /// Of NVFP4, whose matrices share a scale if engines fuse them, beside a matrix that is rounded with calibration.
    #[test]
    fn what_later_layers_see_is_what_is_written() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "version: 1\nname: streams\nstages:\n  - {{stage: load, model: {:?}}}\n  - {{stage: resolve-skips, modules_to_not_convert: [lm_head]}}\n  - \
             {{stage: calibrate, samples: 2, sequence_length: 16, on_missing: ignore}}\n  - {{stage: quantize-int4, rounding: gptq, targets: \
             [layers.3.mlp.down_proj]}}\n  - {{stage: quantize-nvfp4}}\n  - {{stage: export, path: {:?}}}\n",
            root.join("examples/tiny-llama"),
            folder.path().join("out")
        );
        let env = |_: &str| None;
        let loaded = from_text("test", &text, root, &Overrides::default(), &env).unwrap();
        let mut plan = plan(loaded, Limits::default()).unwrap();
        let options = Options::default();
        crate::run::rounding::round(&mut plan, &options, &Silent).unwrap();
        crate::run::run(&plan, &options, &Silent).unwrap();

        let values = Values::new(&plan, Isa::detect(), &Cancel::default()).unwrap();
        let open = |path: &Path| {
            let source = crate::format::source::folder::open(path, &[]).unwrap();
            crate::model::folder::open(source, &[], &[]).unwrap()
        };
        let written = open(&folder.path().join("out"));
        let (before, after) = (Checkpoint::open(&plan.model).unwrap(), Checkpoint::open(&written).unwrap());
        let runs = plan.runs.as_ref().unwrap();
        let mut compared = 0;
        for program in &runs.description.layers {
            for matrix in
                of_layer(plan.content(), program).iter().filter(|matrix| !matrix.spec.is_calibrated())
            {
                let Linear { tensor, rows, .. } = matrix.linear;
                let read = |checkpoint: &Checkpoint<'_>| checkpoint.read(tensor, 0..*rows).unwrap();
                let seen = values.of(matrix, &read(&before), |_| None).unwrap();
                assert!(seen == read(&after), "{tensor}");
                compared += 1;
            }
        }
        assert_eq!(compared, 27);
    }
}
