//! The solvers of a run: one for all tasks that are quantized alike.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::finding::Failure;
use crate::ids::{IdVec, TaskId};
use crate::plan::select::float_type;
use crate::plan::{Plan, shared_scales};
use crate::quant::{Chosen, Float4, Float8, FloatType, Isa, Observer, Quantizer, Scheme, Solver, Storage};
use crate::run::chosen_codes::read_rows;

/// Solvers, made once: preparing a search for ranges takes too long to do it for each tile.
pub(crate) struct Solvers<'p> {
    plan: &'p Plan,
    isa: Isa,
    kinds: Vec<OfKind>,
    /// The kind of each task of the plan; none if the task is kept, or does not belong to this run.
    of: IdVec<TaskId, Option<u32>>,
}

/// The common properties of tasks of one kind.
struct OfKind {
    kind: Kind,
    solver: Box<dyn Solver>,
    /// The first of them.
    first: TaskId,
}

/// The properties in which solvers differ: scheme, observer, type of the weights, columns.
pub(crate) type Kind = (Scheme, Observer, FloatType, usize);

impl<'p> Solvers<'p> {
    /// Of some of a plan's tasks, and of those that share scales with them.
    pub(crate) fn new(plan: &'p Plan, tasks: &[TaskId], isa: Isa) -> Self {
        let mut kinds: Vec<OfKind> = Vec::new();
        let mut of = plan.tasks.map(|_| None);
        let mut is_wanted = plan.tasks.map(|_| false);
        tasks.iter().for_each(|&task| is_wanted[task] = true);
        let is_shared = |group: &Vec<TaskId>| group.iter().any(|task| is_wanted[*task]);
        let shared = shared_scales::groups(plan.content()).into_iter().filter(is_shared).flatten();
        for index in tasks.iter().copied().chain(shared) {
            let Some(kind) = kind(plan, index) else { continue };
            let at = kinds.iter().position(|known| known.kind == kind).unwrap_or_else(|| {
                let (scheme, observer, source, columns) = kind;
                let solver: Box<dyn Solver> = match scheme.storage {
                    Storage::Float8 => Box::new(Float8::new(scheme, source, columns)),
                    Storage::Mxfp4 | Storage::Nvfp4 => Box::new(Float4::new(scheme, source, columns)),
                    Storage::Packed | Storage::Plain => {
                        Box::new(Quantizer::new(scheme, observer, source, columns, isa))
                    }
                };
                kinds.push(OfKind { kind, solver, first: index });
                kinds.len() - 1
            });
            of[index] = Some(at as u32);
        }
        Self { plan, isa, kinds, of }
    }

    /// The solver of a task; none if it is kept.
    pub(crate) fn of(&self, task: TaskId) -> Option<Shared<'_>> {
        let solver = &self.kinds[self.of[task]? as usize].solver;
        Some(match self.plan.weighing.of(task) {
            Some(importance) => Shared::Own(solver.weighted(importance.clone())),
            None => Shared::OfKind(solver.as_ref()),
        })
    }

    /// The solver of some rows of a task; none if it is kept. If its codes were chosen before, they are read now.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(crate) fn of_rows(&self, task: TaskId, rows: Range<usize>) -> Result<Option<Shared<'_>>, Failure> {
        let (Some(codes), Some((scheme, _, source, columns))) =
            (self.plan.roundings.as_ref().and_then(|of| of.chosen(task)), kind(self.plan, task))
        else {
            return Ok(self.of(task));
        };
        let count = self.plan.tasks[task].matrix(&self.plan.model).map_or(0, |view| view.rows as usize);
        let first = rows.start;
        let matrix = Arc::new(read_rows(codes, &scheme, (count, columns), rows)?);
        // The observer chooses nothing here.
        let nearest = Quantizer::new(scheme, Observer::Minmax, source, columns, self.isa);
        let chosen = Chosen::of_rows(nearest, first, matrix);
        Ok(Some(Shared::Own(match self.plan.weighing.of(task) {
            Some(importance) => chosen.weighted(importance.clone()),
            None => Box::new(chosen),
        })))
    }

    /// Whether a task is the first of its kind.
    pub(crate) fn is_first(&self, task: TaskId) -> bool {
        self.of[task].is_some_and(|kind| self.kinds[kind as usize].first == task)
    }
}

/// The solver of a task: that of its kind, or its own with the importance of the task's columns.
pub(crate) enum Shared<'q> {
    OfKind(&'q dyn Solver),
    Own(Box<dyn Solver>),
}

impl<'q> Deref for Shared<'q> {
    type Target = dyn Solver + 'q;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::OfKind(solver) => *solver,
            Self::Own(solver) => solver.as_ref(),
        }
    }
}

/// The properties of a task; none if it is kept.
pub(crate) fn kind(plan: &Plan, index: TaskId) -> Option<Kind> {
    let task = &plan.tasks[index];
    let spec = plan.decisions[task.tensor()].spec()?;
    let source = float_type(&plan.model.tensors[task.tensor()])?;
    Some((spec.scheme, spec.observer, source, task.matrix(&plan.model)?.cols as usize))
}
