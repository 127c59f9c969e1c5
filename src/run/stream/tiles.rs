//! Tiles, the units of work, handed out in the order of the files: some rows of one matrix, or some bytes of a kept
//! tensor.

use std::ops::Range;
use std::sync::Mutex;

use crate::ids::{FileId, TaskId};
use crate::model::{MatrixRows, MatrixView};
use crate::plan::Plan;
use crate::plan::budget::{TILE_BYTES, tile_rows, tile_weight_bytes};
use crate::plan::output_tensor::logical_bytes;

/// A unit of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tile {
    /// The task.
    pub task: TaskId,
    /// Its number within the task, from 0.
    pub number: u64,
    /// What it covers.
    pub span: Span,
}

/// What a tile covers of its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Span {
    /// Rows of a matrix.
    Rows(MatrixRows),
    /// Bytes of a tensor that is no matrix, from the tensor's start.
    Bytes(Range<u64>),
}

/// The division of a task into tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cut {
    /// The matrix whose rows are counted; bytes are counted if there is none.
    pub view: Option<MatrixView>,
    /// Rows or bytes.
    pub total: u64,
    /// Rows or bytes per tile; the last may have fewer.
    pub step: u64,
}

impl Cut {
    /// The division of a task of a plan. It depends on the plan alone, and so do sums over tiles.
    #[must_use]
    pub(crate) fn of(plan: &Plan, task: TaskId) -> Self {
        let task = &plan.tasks[task];
        let tensor = &plan.model.tensors[task.tensor()];
        if let Some(matrix) = task.matrix(&plan.model) {
            let width = tile_weight_bytes(tensor.stored.bits(), tensor.working_dtype().bits());
            let spec = plan.decisions[task.tensor()].spec();
            let multiple = spec.map_or(1, |spec| spec.scheme.row_multiple() as u64);
            return Self::rows(matrix, tile_rows(matrix.cols, width, multiple));
        }
        // Encoded weights are decoded by rows.
        match MatrixView::by_rows(tensor).filter(|_| tensor.encoded.is_some()) {
            Some(whole) => {
                let width = tile_weight_bytes(tensor.stored.bits(), tensor.dtype.bits());
                Self::rows(whole, tile_rows(whole.cols, width, 1))
            }
            None => Self { view: None, total: logical_bytes(tensor), step: TILE_BYTES },
        }
    }

    fn rows(view: MatrixView, step: u64) -> Self {
        Self { view: Some(view), total: view.rows, step }
    }

    /// What the tile with this number covers.
    pub(crate) fn span(self, number: u64) -> Span {
        let start = number * self.step;
        let range = start..self.total.min(start + self.step);
        match self.view {
            Some(view) => Span::Rows(view.rows(range)),
            None => Span::Bytes(range),
        }
    }

    /// How many tiles there are.
    #[must_use]
    pub(crate) fn tiles(self) -> u64 {
        self.total.div_ceil(self.step.max(1))
    }
}

/// Files that are worked on at once. Two writers of one file wait for each other, so consecutive tiles go to different ones;
/// few, so that each is still read and written as one long stretch.
const FILES_AT_ONCE: usize = 4;

/// Hands out the tiles of some tasks to any number of workers, in an order that depends on the plan alone. Each
/// worker holds one tile at a time, which bounds memory: nothing waits in a queue.
#[derive(Debug)]
pub(crate) struct Queue<'p> {
    plan: &'p Plan,
    tasks: Vec<TaskId>,
    next: Mutex<Next>,
}

#[derive(Debug)]
struct Next {
    /// Stretches of `tasks` that are being handed out, with the number of their next tile: one an output file.
    open: Vec<(Range<usize>, u64)>,
    /// Stretches that follow, last first.
    waiting: Vec<Range<usize>>,
    /// The stretch whose turn it is.
    turn: usize,
    /// Tiles handed out so far.
    sequence: u64,
}

impl<'p> Queue<'p> {
    /// The tiles of some of the plan's tasks.
    #[must_use]
    pub(crate) fn new(plan: &'p Plan, tasks: Vec<TaskId>) -> Self {
        let mut waiting = stretches(plan, &tasks);
        waiting.reverse();
        let next = Next { open: Vec::new(), waiting, turn: 0, sequence: 0 };
        Self { plan, tasks, next: Mutex::new(next) }
    }

    /// The next tile and how many were handed out before it; none when all are handed out.
    pub(crate) fn next(&self) -> Option<(u64, Tile)> {
        let mut next = self.next.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            while next.open.len() < FILES_AT_ONCE
                && let Some(stretch) = next.waiting.pop()
            {
                next.open.push((stretch, 0));
            }
            if next.open.is_empty() {
                return None;
            }
            let turn = next.turn % next.open.len();
            if let Some(tile) = self.tile(&mut next.open[turn]) {
                next.turn = turn + 1;
                next.sequence += 1;
                return Some((next.sequence - 1, tile));
            }
            next.open.remove(turn);
            next.turn = turn;
        }
    }

    /// The next tile of a stretch.
    fn tile(&self, (stretch, number): &mut (Range<usize>, u64)) -> Option<Tile> {
        while stretch.start < stretch.end {
            let task = self.tasks[stretch.start];
            let cut = Cut::of(self.plan, task);
            if *number < cut.tiles() {
                *number += 1;
                return Some(Tile { task, number: *number - 1, span: cut.span(*number - 1) });
            }
            stretch.start += 1;
            *number = 0;
        }
        None
    }
}

/// Stretches of consecutive tasks that go to the same file of the first export.
fn stretches(plan: &Plan, tasks: &[TaskId]) -> Vec<Range<usize>> {
    let file = |task: TaskId| {
        let export = plan.exports.first()?;
        Some(export.tensors[export.tasks[task].tensors().next()?].file())
    };
    let mut out: Vec<(Option<FileId>, Range<usize>)> = Vec::new();
    for (position, &task) in tasks.iter().enumerate() {
        let file = file(task);
        match out.last_mut() {
            Some((last, stretch)) if *last == file => stretch.end = position + 1,
            _ => out.push((file, position..position + 1)),
        }
    }
    out.into_iter().map(|(_, stretch)| stretch).collect()
}
